"""Tokenizers run here against the tokenizers library 0.23.3 and mistral-common 1.13.1 (stored goldens,
tests/beside/make_pipeline_goldens.py).
"""
import copy
import json
import warnings
from pathlib import Path

import fuzz_tokenizers
import make_pipeline_goldens as maker
import make_tokenizer_goldens
import mistral_conversations
import pytest

import redlite
from redlite.errors import Error
from redlite.model.config import Config
from redlite.model.llama import LLaMA
from redlite.text import chat_choice, patterns, tokenizer, tokenizer_json
from redlite.text.pretokenizer import Pretokenizer
from redlite.weights import save

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "pipelines.json").read_text())
TEXTS = maker.texts()


def saved(path, core, **config):
    path.mkdir(exist_ok=True)
    (path / "tokenizer.json").write_text(json.dumps(core))
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def differences(digests, made):
    """The texts of which something else was made than the golden file says."""
    return [ascii(text) for i, (text, value) in enumerate(zip(TEXTS, made, strict=True))
            if maker.digests([value]) != digests[4 * i:4 * i + 4]]


def both(words):
    """[ids, the text that they decode to] of each text."""
    return [[ids, words.decode(ids)] for ids in map(words.encode, TEXTS)]


def test_the_golden_file_is_of_these_strings():
    assert make_tokenizer_goldens.of_all(TEXTS) == GOLDEN["strings"] and len(TEXTS) > 600


@pytest.mark.parametrize("name", GOLDEN["small"])
def test_ids_and_texts_equal_the_tokenizers_library(tmp_path, name):
    golden = GOLDEN["small"][name]
    words = tokenizer.load(saved(tmp_path, golden["core"]))
    assert differences(golden["made"], both(words)) == []
    assert words.kind == ("byte-level" if "ByteLevel" in json.dumps(golden["core"]["pre_tokenizer"])
                          else "sentencepiece")


def test_byte_tokens_that_are_added_tokens(tmp_path):
    """Trainers that take special tokens alone put the bytes' tokens there. Ids by tokenizers 0.23.3."""
    vocab = {"<unk>": 0, "a": 1} | {f"<0x{byte:02X}>": byte + 2 for byte in range(256)}
    added = [{"id": id, "content": text, "special": True, "single_word": False, "lstrip": False,
              "rstrip": False, "normalized": False} for text, id in vocab.items() if text != "a"]
    core = {"version": "1.0", "added_tokens": added, "normalizer": None, "pre_tokenizer": None,
            "post_processor": None, "decoder": None,
            "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "fuse_unk": False,
                      "vocab": vocab, "merges": []}}
    words = tokenizer.load(saved(tmp_path, core))
    assert words.encode("aéb") == [1, 197, 171, 100]
    # The library makes a token of <0x41>, [1, 197, 171, 67, 100]; a text's letters never become one here.
    assert words.encode("aé<0x41>b") == [1, 197, 171, *(byte + 2 for byte in b"<0x41>"), 100]


@pytest.mark.parametrize("name", GOLDEN["behaviors"])
def test_splits_equal_the_tokenizers_library(name):
    expression, behavior, invert = name.rsplit(" ", 2)
    pascal = "".join(word.capitalize() for word in behavior.split("_"))
    cut = Pretokenizer({"type": "Split", "pattern": {"Regex": expression}, "behavior": pascal,
                        "invert": invert == "True"}).split
    assert differences(GOLDEN["behaviors"][name], [cut(text, True) for text in TEXTS]) == []


# ---- tekken ----

def tekken(path, version="v13", **change):
    path.mkdir(exist_ok=True)
    core = copy.deepcopy(GOLDEN["tekken"]["core"])
    core["config"]["version"] = version
    if version != "v3":
        core["special_tokens"] = GOLDEN["tekken"]["special_tokens"]
    (path / "tekken.json").write_text(json.dumps(core | change))
    return path


def test_tekken_equals_mistral_common(tmp_path):
    words = tokenizer.load(tekken(tmp_path))
    assert differences(GOLDEN["tekken"]["made"], both(words)) == []
    assert (words.bos_id, words.eos_id, words.pad_id) == (1, 2, 11)
    assert words.add_bos and words.vocab_size == 290
    assert words.encode("[INST]</s>") and max(words.special.values()) == 29 < min(words.encode("[INST]</s>"))


@pytest.mark.parametrize("version", maker.VERSIONS)
def test_tekken_conversations_equal_mistral_common(tmp_path, version):
    words = tokenizer.load(tekken(tmp_path, version))
    found = chat_choice.choose(words, tmp_path, None)
    right = GOLDEN["tekken"]["chats"][version]
    for messages, ids in zip(mistral_conversations.CONVERSATIONS, right, strict=True):
        assert found.encode(messages, True).ids == ids, messages


def as_published(expression):
    """A small tokenizer.json with Mistral's first control tokens, and a splitting pattern."""
    core = copy.deepcopy(GOLDEN["small"]["tekken"]["core"])
    core["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": expression}
    return core


def test_mistral_s_wrong_pattern_warns_once_in_one_line(tmp_path, capsys):
    tokenizer_json._warned.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda *args, **more: print(warnings.formatwarning(*args[:4]), end="")
        for _ in range(2):
            words = tokenizer.load(saved(tmp_path, as_published(patterns.LLAMA3)))
    (line,) = capsys.readouterr().out.splitlines()
    assert "Llama 3's pattern" in line and "tekken.json" in line
    right = tokenizer.load(saved(tmp_path / "right", as_published(maker.TEKKEN)))
    assert differences(GOLDEN["small"]["tekken"]["made"], both(right)) == []
    assert words._core._split("aB123", True) == ["aB", "123"] != right._core._split("aB123", True)
    tekken(tmp_path)        # beside a wrong tokenizer.json it is taken, beside a right one it is not
    assert tokenizer.load(tmp_path).vocab_size == 290
    assert tokenizer.load(tekken(tmp_path / "right")).vocab_size == right.vocab_size


@pytest.mark.parametrize("change, word", [
    ({"special_tokens": None}, "special_tokens is missing"), ({"special_tokens": [{"rank": 1}]}, "entry 0"),
    ({"vocab": [{"rank": 0}]}, "256"), ({"vocab": None}, "0 tokens"), ({"config": {}}, "default_vocab_size"),
    ({"config": {"default_vocab_size": 290, "default_num_special_tokens": 30, "pattern": "(a+)+b"}},
     "pattern"),
    ({"config": {"default_vocab_size": 290, "default_num_special_tokens": 3, "pattern": "a"}},
     "more than 3"),
])
def test_a_tekken_json_out_of_order_is_refused(tmp_path, change, word):
    with pytest.raises(Error, match=word) as error:
        tokenizer.load(tekken(tmp_path, **change))
    assert "tekken.json" in str(error.value) and len(str(error.value)) < 300


# ---- single rules ----

def with_added(core, **token):
    made = copy.deepcopy(core)
    made["added_tokens"].append({"id": 900, "lstrip": False, "rstrip": False, "single_word": False,
                                 "normalized": False, "special": False} | token)
    return made


def test_an_added_token_takes_its_white_space_along(tmp_path):
    core = GOLDEN["small"]["o200k"]["core"]
    words = tokenizer.load(saved(tmp_path, with_added(core, content="<tok>", lstrip=True)))
    assert words.encode("a <tok> b") == [*words.encode("a"), 900, *words.encode(" b")]
    assert words.base_size < 900 < words.vocab_size == 901


def test_a_control_token_hides_the_added_tokens_within_it(tmp_path):
    core = with_added(GOLDEN["small"]["o200k"]["core"], content="INST")
    words = tokenizer.load(saved(tmp_path, core))
    assert 900 in words.encode("INST") and 900 not in words.encode("a[INST]b")


@pytest.mark.parametrize("expression, word", [
    ("(a+)+b", "exponential"), ("(a|a)*", "exponential"), (r"\p{Han}", "Han"), ("(?<n>a)", "group"),
    ("[a&&b]", "&&"), ("[[:alpha:]]", "class within"), ("a)", "closed"), ("(a", "not closed"),
    ("*a", "nothing"), (r"\bq", r"b"), ("a{2}+", "repetition"), ("[b-a]", "order"),
    ("(" * 30 + ")" * 30, "deeply"), ("[]a]", "begins with"),
])
def test_what_a_pattern_may_not_hold_is_refused_by_name(expression, word):
    with pytest.raises(ValueError, match=word):
        patterns.Translated(expression)


def test_an_added_token_without_a_row_is_refused_when_it_is_used(tmp_path):
    """A <pad> behind the last row, as in the first conversions of Llama 2."""
    core = copy.deepcopy(GOLDEN["small"]["first"]["core"])
    rows = len(core["model"]["vocab"])
    core["added_tokens"] = [entry for entry in core["added_tokens"] if entry["id"] < rows]
    saved(tmp_path, core, bos_token="<s>", eos_token="</s>")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": rows}))
    config = Config("llama", rows, 32, 1, 4, 2, 8, 48, max_positions=64)
    save.save_pretrained(LLaMA(config).initialize(0), tmp_path, None)
    lm = redlite.load(tmp_path)
    assert lm.tokenizer.special["<pad>"] == rows and lm.logits(lm.tokenizer.encode("ab")).shape[1] == rows
    with pytest.raises(Error, match="outside the vocabulary"):
        lm.logits([rows])
    save.save_pretrained(LLaMA(Config("llama", rows - 1, 32, 1, 4, 2, 8, 48)).initialize(0), tmp_path, None)
    with pytest.raises(Error, match="do not belong together"):
        redlite.load(tmp_path)


def test_damaged_tokenizer_files_end_in_one_short_line(capsys):
    found = fuzz_tokenizers.main(120, 9)
    assert found["refused"] > 20 and found["loaded"] > 10


def test_classes_are_those_of_unicode_16_whatever_python_has():
    """Code points that Unicode 14, 15, 15.1 and 16 added (UnicodeData.txt), and one that 17 added."""
    for name, code, there in (("Lo", 0x31350, True), ("Lo", 0x2EBF0, True), ("Lu", 0xA7DC, True),
                              ("Nd", 0x1CCF5, True), ("Sc", 0x20C0, True), ("So", 0x1CD00, True),
                              ("M", 0xE0100, True), ("L", 0x323B0, False), ("L", 0xAA, True)):
        found = any(first <= code <= last for first, last in patterns.category(name))
        assert found == there, (name, hex(code))
