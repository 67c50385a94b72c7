"""Tokenizers against llama.cpp and the tokenizers library (stored goldens,
tests/beside/make_tokenizer_goldens.py) and against sentencepiece itself.
"""
import copy
import io
import itertools
import json
import random
import shutil
import struct
from pathlib import Path

import gguf_file
import make_tokenizer_goldens as maker
import numpy as np
import pytest
import sentencepiece

from redlite.errors import Error
from redlite.text import bpe, patterns, pretokenizer, spm, tokenizer

HERE = Path(__file__).parents[1]
GOLDEN = json.loads((HERE / "golden" / "tokenizer.json").read_text())
SHARED = HERE.parents[1] / "shared" / "tokenizers"
STRINGS = maker.strings()
MODELS = ["llama", "mistral_v1"]


# ---- tokenizers made here ----

def gguf(path, **metadata):
    """A GGUF file of metadata alone."""
    def text(s):
        return struct.pack("<Q", len(s.encode())) + s.encode()

    def value(v):
        if isinstance(v, bool):
            return struct.pack("<I?", 7, v)
        if isinstance(v, int):
            return struct.pack("<II", 4, v)
        if isinstance(v, str):
            return struct.pack("<I", 8) + text(v)
        if isinstance(v, np.ndarray):
            return struct.pack("<IIQ", 9, {"i": 5, "f": 6}[v.dtype.kind], len(v)) + v.tobytes()
        return struct.pack("<IIQ", 9, 8, len(v)) + b"".join(map(text, v))
    body = b"".join(text(k.replace("__", ".")) + value(v) for k, v in metadata.items())
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(metadata)) + body)
    return path


def smollm2_parts():
    """SmolLM2's vocabulary with its ids; what the strings cannot reach is filled with unused names."""
    part = GOLDEN["smollm2"]
    tokens = [f"\u2603{i}" for i in range(part["size"])]
    ids = itertools.accumulate(part["token_ids"])
    for token, id in [*zip(part["tokens"].split(" "), ids, strict=True), *part["special"].items()]:
        tokens[id] = token
    return tokens, part["merges"].split("\n"), part["special"]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    tokens, merges, special = smollm2_parts()
    kinds = np.array([3 if i in special.values() else 1 for i in range(len(tokens))], np.int32)
    file = gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", tokenizer__ggml__model="gpt2",
                tokenizer__ggml__pre="smollm", tokenizer__ggml__tokens=tokens,
                tokenizer__ggml__token_type=kinds, tokenizer__ggml__merges=merges,
                tokenizer__ggml__bos_token_id=1, tokenizer__ggml__eos_token_id=2,
                tokenizer__ggml__add_bos_token=False, tokenizer__chat_template="x")
    return gguf_file.tokenizer_of(file)


def bytes_json(pattern="gpt-2", merges=("a b", "Ġ ab", "c c", "cc cc", "ab ab")):
    """A tokenizer.json with all 256 bytes and a few merges."""
    tokens = [*bpe.BYTE_CHARS, *(m.replace(" ", "") for m in merges)]
    made = maker.small({"smollm2": {"tokens": " ".join(tokens), "merges": "\n".join(merges)}}, pattern,
                       ["<|end|>", "</s>"])
    return made


def directory(path, core, **config):
    path.mkdir(exist_ok=True)
    (path / "tokenizer.json").write_text(json.dumps(core))
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def tiny_model():
    """A sentencepiece model of 500 pieces, trained on invented words."""
    rng = random.Random(3)
    words = ["".join(rng.choice("abcdefghé漢") for _ in range(rng.randrange(1, 7))) for _ in range(800)]
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(rng.choice(words) for _ in range(12)) for _ in range(400)]),
        model_writer=out, vocab_size=500, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        user_defined_symbols=["<tool>", "<|mark|>"], minloglevel=2)
    return out.getvalue()


def tiny(path, content, **config):
    (path / "tokenizer.model").write_bytes(content)
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer.load(path)


@pytest.fixture(params=MODELS)
def real(request, tmp_path):
    """(directory with a real LLaMA-family tokenizer.model, sentencepiece itself on it)"""
    file = SHARED / f"{request.param}.model"
    if not file.exists():
        pytest.skip("needs ../shared/tokenizers")
    shutil.copy(file, tmp_path / "tokenizer.model")
    return tmp_path, sentencepiece.SentencePieceProcessor(str(file))


# ---- byte-level BPE ----

def test_strings_are_those_of_the_golden_file():
    assert maker.of_all(STRINGS) == GOLDEN["strings"] and len(STRINGS) >= 400


def test_smollm2_ids_equal_llama_cpp(smollm2):
    for text, ids in zip(STRINGS, GOLDEN["smollm2"]["ids"], strict=True):
        assert smollm2.encode(text) == ids, ascii(text)
    assert (smollm2.bos_id, smollm2.eos_id, smollm2.add_bos, smollm2.vocab_size,
            smollm2.chat_template) == (1, 2, False, 49152, "x")


def test_smollm2_ids_from_tokenizer_json(tmp_path):
    tokens, merges, special = smollm2_parts()
    core = maker.small(GOLDEN, "smollm", [])
    core["model"]["vocab"] = {t: i for i, t in enumerate(tokens)}
    core["added_tokens"] = [{"id": i, "content": t, "special": True} for t, i in special.items()]
    words = tokenizer.load(directory(tmp_path, core, bos_token="<|im_start|>", eos_token="<|im_end|>"))
    for text, ids in zip(STRINGS, GOLDEN["smollm2"]["ids"], strict=True):
        assert words.encode(text) == ids, ascii(text)
    assert words.special == special and words.bos_id == 1


def test_tiktokens_list_of_ranks_is_passed_over(tmp_path):
    """Meta's tokenizer.model for Llama 3, which mirrors have beside tokenizer.json."""
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    refused(tmp_path, "tokenizer.model: is a list of tokens and ranks", "tokenizer.json")
    words = tokenizer.load(directory(tmp_path, bytes_json()))
    assert words.kind == "byte-level" and words.decode(words.encode("a b")) == "a b"


@pytest.mark.parametrize("pattern", maker.SPLITS)
def test_splitting_equals_the_tokenizers_library(pattern):
    digests = GOLDEN["splits"][pattern]
    cut = patterns.compiled(pattern)
    for i, text in enumerate(STRINGS):
        words = cut(text)
        assert "".join(words) == text
        assert maker.digest(words) == digests[8 * i:8 * i + 8], (ascii(text), words)


@pytest.mark.parametrize("expression", sorted({e for named in patterns.PATTERNS.values() for e in named} | {
    r"(?i:[K\u212A])+", r"(?i:[^\u017F])", r"(?i:\u0130)", r"\p{M}+", r"[^\p{M}]", r"\W\D\S", r"\w+",
    "[ä-ü]+|b"}))
def test_ascii_text_is_cut_as_by_the_pattern_for_all_text(expression):
    small, whole = patterns._pattern(expression, few=True), patterns._pattern(expression, few=False)
    for pair in itertools.product(map(chr, range(128)), repeat=2):
        text = f"1a'{''.join(pair)} 'S{pair[0]}\n"
        assert small.findall(text) == whole.findall(text), text
    found = patterns.Translated(expression)
    assert found.of("plain") is small and found.of("naïve") is whole


def test_seed_coders_splitting_keeps_line_breaks_apart_from_marks():
    """By the expression that llama.cpp has for it (llama-vocab.cpp of llama-cpp-python 0.3.36)."""
    text, start = "It's 12 !?\n\nx", ["It", "'s", " ", "1", "2"]
    assert patterns.compiled("seed-coder")(text) == [*start, " !?", "\n\n", "x"]
    assert patterns.compiled("qwen2")(text) == [*start, " !?\n\n", "x"]


def without_token(words) -> set[int]:
    """The byte values that are no token by themselves."""
    tokens = set(words._core.tokens.values())
    return {byte for byte in range(256) if bpe.BYTE_CHARS[byte] not in tokens}


def test_bytes_without_a_token_are_left_out_and_nothing_else(smollm2):
    tokenless = without_token(smollm2)
    assert len(tokenless) == 21
    for text in STRINGS:
        missing = set(text.encode()) & tokenless
        kept = bytes(b for b in text.encode() if b not in missing)
        assert b"".join(map(smollm2.piece_bytes, smollm2.encode(text))) == kept
        if not missing:
            assert smollm2.decode(smollm2.encode(text)) == text


@pytest.mark.parametrize("pattern", maker.SPLITS)
def test_decoding_gives_the_text_back(tmp_path, pattern):
    words, rng = tokenizer.load(directory(tmp_path, bytes_json(pattern))), random.Random(5)
    texts = STRINGS + ["".join(chr(rng.choice([rng.randrange(128), rng.randrange(0xD800),
                                               rng.randrange(0xE000, 0x110000)])) for _ in range(30))
                       for _ in range(200)]
    for text in texts:
        back = words.decode(words.encode(text))
        assert back == (pretokenizer.normalizer({"type": "NFC"})(text) if pattern == "qwen2" else text)


@pytest.mark.parametrize("form, text, normal", [     # what tokenizers 0.23.3 gives
    ("NFKC", "\u32ff\uff21", "\u32ffA"),
    ("NFC", "a\u0323\u1abf\u0334", "\u1ea1\u1abf\u0334"),
    ("NFC", "a\u1abf\u0323\u0302", "a\u1abf\u0323\u0302"),
    ("NFC", "\U00011935\U00011930e\u0301", "\U00011935\U00011930\u00e9"),
    ("NFD", "\U00011938\u00e9", "\U00011938e\u0301"),
    ("NFKD", "\U00010797\ufb01", "\U00010797fi"),
    ("NFKC", "\U0001ccd6\u2460", "\U0001ccd61"),
    ("NFKC", "\ufb01", "fi"),
])
def test_normal_forms_are_those_of_the_library_on_every_python(form, text, normal):
    assert pretokenizer.normalizer({"type": form})(text) == normal


def slow_merge(core, symbols):
    """Byte-pair encoding by its definition: rank by rank, left to right."""
    for pair, rank in sorted(core._ranks.items(), key=lambda item: item[1]):
        i, merged, left, right = 0, core._merged[rank], pair >> 32, pair & 0xffffffff
        while i < len(symbols) - 1:
            if (symbols[i], symbols[i + 1]) == (left, right):
                symbols[i:i + 2] = [merged]
            i += 1
    return symbols


def test_both_ways_of_merging_follow_the_definition(tmp_path):
    made = bytes_json(merges=["a a", "a b", "aa b", "b b", "aa aa", "ab ab", "aab b", "aaaa aa"])
    core, rng = tokenizer.load(directory(tmp_path, made))._core._model, random.Random(1)
    for _ in range(400):
        symbols = core._symbols("".join(rng.choice("aaabbc") for _ in range(rng.randrange(1, 60))))
        expected = slow_merge(core, symbols[:])
        assert core._merge_short(symbols[:]) == expected and core._merge_long(symbols[:]) == expected


def test_a_whole_word_in_the_vocabulary_is_not_merged_where_the_model_says_so(tmp_path):
    core = bytes_json("llama-bpe")
    core["model"]["vocab"]["xyz"] = len(core["model"]["vocab"]) + 2
    assert core["model"]["ignore_merges"] is True
    assert len(tokenizer.load(directory(tmp_path, core)).encode("xyz")) == 1
    core["model"]["ignore_merges"] = False
    assert len(tokenizer.load(directory(tmp_path, core)).encode("xyz")) == 3


# ---- sentencepiece ----

def test_ids_equal_sentencepiece(real):
    path, reference = real
    words = tokenizer.load(path)
    for text in STRINGS:
        ids = reference.EncodeAsIds(text)
        assert words.encode(text) == ids, ascii(text)
        assert words.decode(ids) == reference.DecodeIds(ids)
    assert (words.bos_id, words.eos_id, words.add_bos, words.legacy, words.vocab_size) == (1, 2, True, True,
                                                                                           32000)


@pytest.mark.first(1)
def test_the_first_space_follows_the_legacy_rule(real):
    path, reference = real
    lead = reference.EncodeAsIds("x\n")
    for legacy in (True, False):
        (path / "tokenizer_config.json").write_text(json.dumps({"legacy": legacy}))
        words = tokenizer.load(path)
        for text in filter(None, STRINGS):
            whole = reference.EncodeAsIds(text)
            assert words.encode_segment(text, True) == whole
            bare = reference.EncodeAsIds("x\n" + text)
            if (
                bare[:2] == lead
            ):  # the line break is a token of its own, so what follows is encoded as in the middle of a text
                assert words.encode_segment(text, False) == (whole if legacy else bare[2:]), ascii(text)


def test_gguf_vocabulary_gives_sentencepiece_ids(real):
    path, reference = real
    n = reference.GetPieceSize()
    kinds = [2 if reference.IsUnknown(i) else 3 if reference.IsControl(i) else 6 if reference.IsByte(i) else 1
             for i in range(n)]
    file = gguf(path / "m.gguf", tokenizer__ggml__model="llama",
                tokenizer__ggml__tokens=[reference.IdToPiece(i) for i in range(n)],
                tokenizer__ggml__scores=np.array([reference.GetScore(i) for i in range(n)], np.float32),
                tokenizer__ggml__token_type=np.array(kinds, np.int32),
                tokenizer__ggml__bos_token_id=1, tokenizer__ggml__eos_token_id=2)
    words = gguf_file.tokenizer_of(file)
    for text in STRINGS:
        assert words.encode(text) == reference.EncodeAsIds(text), ascii(text)
    assert words.legacy and words.add_bos and (words.bos_id, words.eos_id) == (1, 2)


def converted(reference):
    """A tokenizer.json as transformers' converter writes it: the merges of every piece, in the order of the
    scores.
    """
    pieces = [reference.IdToPiece(i) for i in range(reference.GetPieceSize())]
    vocab = {p: i for i, p in enumerate(pieces)}
    normal = [i for i in range(len(pieces))
              if not (reference.IsControl(i) or reference.IsUnknown(i) or reference.IsByte(i))]
    merges = []
    for i in sorted(normal, key=lambda i: -reference.GetScore(i)):
        cuts = [(pieces[i][:k], pieces[i][k:]) for k in range(1, len(pieces[i]))]
        merges += sorted((c for c in cuts if c[0] in vocab and c[1] in vocab),
                         key=lambda c: (vocab[c[0]], vocab[c[1]]))
    return {"added_tokens": [{"id": i, "content": pieces[i], "special": True} for i in range(3)],
            "pre_tokenizer": None,
            "normalizer": {"type": "Sequence",
                           "normalizers": [{"type": "Prepend", "prepend": "▁"},
                                           {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "post_processor": {"type": "TemplateProcessing",
                               "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                                          {"Sequence": {"id": "A", "type_id": 0}}],
                               "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
            "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "vocab": vocab,
                      "merges": merges}}


@pytest.mark.first(1)
def test_tokenizer_json_of_a_sentencepiece_model_gives_its_ids(real):
    path, reference = real
    (path / "tokenizer.model").unlink()
    words = tokenizer.load(directory(path, converted(reference), bos_token="<s>", eos_token="</s>"))
    for text in STRINGS:
        assert words.encode(text) == reference.EncodeAsIds(text), ascii(text)
    assert words.legacy and words.add_bos and words.bos_id == 1 and words.vocab_size == 32000


@pytest.mark.parametrize("scheme, prefix, legacy",
                         [("always", True, True), ("first", True, False), ("never", False, False)])
def test_metaspace_decides_the_space_rule(tmp_path, tiny_model, scheme, prefix, legacy):
    reference = sentencepiece.SentencePieceProcessor(model_proto=tiny_model)
    core = converted(reference) | {"normalizer": None,
                                   "pre_tokenizer": {"type": "Metaspace", "replacement": "▁",
                                                     "prepend_scheme": scheme, "split": False}}
    words = tokenizer.load(directory(tmp_path, core, bos_token="<s>", eos_token="</s>"))
    assert words.legacy == legacy
    assert (
        words.encode("ab cd") == reference.EncodeAsIds("ab cd")
        if prefix
        else words.encode(" ab cd") == reference.EncodeAsIds("ab cd")
    )
    assert (words.encode_segment("ab", False) == words.encode("ab")) == (legacy or not prefix)


def test_tiny_model_equals_sentencepiece(tmp_path, tiny_model):
    reference, words = sentencepiece.SentencePieceProcessor(model_proto=tiny_model), tiny(tmp_path,
                                                                                          tiny_model)
    for text in STRINGS:
        if "<|mark|>" not in text:
            assert words.encode(text) == reference.EncodeAsIds(text), ascii(text)
            assert words.decode(words.encode(text)) == reference.DecodeIds(reference.EncodeAsIds(text))
    mark = reference.PieceToId("<|mark|>")
    assert reference.EncodeAsIds("a <|mark|>").count(mark) == 1
    assert mark not in words.encode("a <|mark|>") and words.special["<|mark|>"] == mark
    assert words.encode("a<tool>b") == reference.EncodeAsIds("a<tool>b")
    assert reference.PieceToId("<tool>") in words.encode("a<tool>b")


def test_a_piece_that_no_merge_makes_never_comes_from_text(tmp_path, tiny_model):
    reference = sentencepiece.SentencePieceProcessor(model_proto=tiny_model)
    core, piece = converted(reference), reference.IdToPiece(reference.EncodeAsIds("abcabc")[0])
    assert len(piece) > 1
    core["model"]["merges"] = [m for m in core["model"]["merges"] if m[0] + m[1] != piece]
    ids = tokenizer.load(directory(tmp_path, core, bos_token="<s>")).encode("abcabc")
    assert reference.PieceToId(piece) not in ids and "".join(reference.IdToPiece(i) for i in ids) == "▁abcabc"


def test_a_model_without_the_first_space(tmp_path, tiny_model):
    bare = (
        tiny_model + b"\x1a\x02\x18\x00"
    )  # a second normalizer_spec, merged with the first: add_dummy_prefix = false
    reference, words = sentencepiece.SentencePieceProcessor(model_proto=bare), tiny(tmp_path, bare)
    assert reference.EncodeAsIds("ab cd") != sentencepiece.SentencePieceProcessor(
        model_proto=tiny_model
    ).EncodeAsIds("ab cd")
    for text in ("ab cd", " ab", "漢\n"):
        assert words.encode(text) == reference.EncodeAsIds(text)
        assert words.decode(words.encode(text)) == reference.DecodeIds(reference.EncodeAsIds(text)) == text


# ---- what both kinds promise ----

def test_text_never_becomes_a_control_token(smollm2, tmp_path, tiny_model):
    added = {"500": {"content": "<|im_end|>", "special": False}, "501": {"content": "[END]", "special": True}}
    for words in (smollm2, tiny(tmp_path, tiny_model, added_tokens_decoder=added)):
        texts = [*words.special, *("a " + t + " b" for t in words.special), "".join(words.special), *STRINGS]
        assert len(words.special) >= 5
        for text in texts:
            assert not set(words.encode(text)) & set(words.special.values()), text
        assert all(words.piece_bytes(i) == b""
                   for i in words.special.values()) and words.decode(list(words.special.values())) == ""


@pytest.mark.parametrize("kind", ["sentencepiece", "byte-level"])
def test_added_tokens_that_text_may_hold(tmp_path, tiny_model, kind):
    added = {"600": {"content": "<call>", "special": False}, "601": {"content": "<call>x", "special": False}}
    if kind == "sentencepiece":
        words = tiny(tmp_path, tiny_model, added_tokens_decoder=added)
    else:
        words = tokenizer.load(directory(tmp_path, bytes_json(), added_tokens_decoder=added))
    assert words.encode("ab<call>xab<call>") == [*words.encode("ab"), 601,
                                                 *words.encode_segment("ab", words.legacy), 600]
    assert words.vocab_size == 602 and words.piece_bytes(601) == b"<call>x"
    assert words.decode([601, 600]) == "<call>x<call>"
    if kind == "sentencepiece":  # the newer rule: text behind an added token is not at the start
        words = tiny(tmp_path, tiny_model, added_tokens_decoder=added, legacy=False)
        assert words.encode("ab<call>ab") == [*words.encode("ab"), 600, *words.encode_segment("ab", False)]
        assert words.encode_segment("ab", False) != words.encode("ab")


def test_tokens_with_a_role_are_control_tokens_whatever_the_files_call_them(tmp_path, tiny_model):
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[STOP]": 500, "[EXTRA]": 501, "[WORD]": 502}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "[STOP]",
                                                                  "additional_special_tokens": ["[EXTRA]"]}))
    words = tiny(tmp_path, tiny_model)
    assert words.eos_id == 500 and words.special["[EXTRA]"] == 501
    assert set(words.encode("[STOP][EXTRA][WORD]")) & {500, 501, 502} == {502}
    for name in ("added_tokens.json", "special_tokens_map.json", "tokenizer.model"):
        (tmp_path / name).unlink()
    core = bytes_json()
    core["added_tokens"] = [{"id": 300, "content": "[STOP]", "special": False}]
    words = tokenizer.load(directory(tmp_path, core, eos_token="[STOP]"))
    assert words.eos_id == 300 and 300 not in words.encode("[STOP]") and words.decode([300]) == ""


def test_gguf_says_bos_and_composes_for_qwen2(tmp_path):
    tokens, merges = [*bpe.BYTE_CHARS, "ab", "<|b|>"], ["a b"]
    kinds = np.array([1] * 257 + [3], np.int32)

    def load(pre, **more):
        return gguf_file.tokenizer_of(gguf(tmp_path / "m.gguf",
                                           **{f"tokenizer__ggml__{k}": v for k, v in dict(
            model="gpt2", pre=pre, tokens=tokens, token_type=kinds, merges=merges, bos_token_id=257,
            **more).items()}))
    assert load("llama-bpe").add_bos and not load("qwen2").add_bos and load("qwen2",
                                                                            add_bos_token=True).add_bos
    assert load("qwen2").encode("e\u0301") == load("gpt-2").encode("é") != load("gpt-2").encode("e\u0301")


def test_parts_share_out_the_ids_of_the_whole_text(smollm2, tmp_path, tiny_model):
    rng = random.Random(2)
    missing = without_token(smollm2)
    for words in (smollm2, tiny(tmp_path, tiny_model, legacy=False)):
        for text in STRINGS:
            cuts = sorted(rng.randrange(len(text) + 1) for _ in range(2))
            parts = [text[:cuts[0]], text[cuts[0]:cuts[1]], text[cuts[1]:]]
            for first in (True, False):
                shared = words.encode_parts(parts, first)
                assert sum(shared, []) == words.encode_segment(text, first) and len(shared) == 3
                if text.isascii() and not (
                    set(text.encode()) & missing
                ):  # a byte a character: each token begins in the part it is given to
                    at, start = 0, 0
                    shift = sum(len(words.piece_bytes(i))
                                for i in sum(shared, [])) - len(text)  # the space before the text
                    for part, own in zip(parts, shared, strict=True):
                        for id in own:
                            assert start <= max(at - shift, 0) < start + len(part), (parts, first)
                            at += len(words.piece_bytes(id))
                        start += len(part)


def test_surrogates(smollm2, tmp_path, tiny_model):
    for words in (smollm2, tiny(tmp_path, tiny_model)):
        assert words.encode("a\ud800b") == words.encode("a\ufffdb")
        assert words.encode("\udc00") == words.encode("\ufffd")
        assert words.encode("\ud83d\ude00") == words.encode("😀")


def test_ids_outside_the_vocabulary_show(smollm2, tmp_path, tiny_model):
    for words in (smollm2, tiny(tmp_path, tiny_model)):
        ids = words.encode("ab")
        space = " " if words.kind == "sentencepiece" else ""
        assert words.decode([*ids, words.vocab_size + 5,
                             *ids]) == f"ab\ufffd{space}ab" and words.piece_bytes(10**9) == "\ufffd".encode()


def test_pieces_add_up_to_the_text(tmp_path, tiny_model):
    words = tiny(tmp_path, tiny_model)
    for text in STRINGS:
        assert b"".join(map(words.piece_bytes, words.encode(text))).decode() == (" " + text if text
                                                                                 else "").replace("▁", " ")


def test_fingerprint_follows_the_files(tmp_path, tiny_model):
    first = tiny(tmp_path, tiny_model).fingerprint()
    assert tiny(tmp_path, tiny_model).fingerprint() == first and len(first) == 64
    assert tiny(tmp_path, tiny_model, legacy=False).fingerprint() != first


def test_what_the_files_say_about_bos(tmp_path):
    core, bos = bytes_json(), {"bos_token": "<|end|>", "eos_token": {"content": "</s>"}}
    id = core["added_tokens"][0]["id"]
    words = tokenizer.load(directory(tmp_path, core, **bos))
    assert (words.bos_id, words.eos_id, words.add_bos) == (id, id + 1, False)
    core["post_processor"] = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|end|>"}}, {"Sequence": {"id": "A"}}],
        "special_tokens": {"<|end|>": {"ids": [id]}}}]}
    assert tokenizer.load(directory(tmp_path, core, **bos)).add_bos is True
    assert tokenizer.load(directory(tmp_path, core, add_bos_token=False, **bos)).add_bos is False


def test_chat_templates(tmp_path):
    core = bytes_json()
    assert tokenizer.load(directory(tmp_path, core)).chat_template is None
    named = [{"name": "tool_use", "template": "b"}, {"name": "default", "template": "a"}]
    assert tokenizer.load(directory(tmp_path, core, chat_template=named)).chat_template == "a"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert tokenizer.load(directory(tmp_path, core, chat_template="text")).chat_template == "file"


# ---- faults ----

def refused(path, *words):
    with pytest.raises(Error) as error:
        gguf_file.tokenizer_of(path)
    line = str(error.value)
    assert "\n" not in line and len(line) < 600 and all(w in line for w in words), line


FAULTS = [
    ({"model": {"type": "WordPiece"}}, ["model.type", "WordPiece"]),
    ({"model": {"type": "Unigram"}}, ["model", "vocab is empty"]),
    ({"model": {"type": "Unigram", "vocab": [["a", "b"]]}}, ["model", "entry 0"]),
    ({"pre_tokenizer": {"type": "Whitespace"}}, ["pre_tokenizer", "Whitespace"]),
    ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": 3, "use_regex": True}},
     ["pre_tokenizer", "add_prefix_space"]),
    ({"pre_tokenizer": {"type": "ByteLevel", "unheard_of": True}}, ["pre_tokenizer", "unheard_of"]),
    ({"pre_tokenizer": {"type": "Sequence",
                        "pretokenizers": [{"type": "Split", "pattern": {"Regex": "(a+)+b"},
                                           "behavior": "Isolated"},
                                                             {"type": "ByteLevel", "add_prefix_space": False,
                                                              "use_regex": False}]}}, ["pre_tokenizer"]),
    ({"normalizer": {"type": "BertNormalizer"}}, ["normalizer", "BertNormalizer"]),
    ({"decoder": {"type": "WordPiece"}}, ["decoder", "WordPiece"]),
    ({"decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]}}, ["decoder", "ByteFallback"]),
    ({"post_processor": {"type": "RobertaProcessing"}}, ["post_processor", "RobertaProcessing"]),
    ({"model": 3}, ["model"]),
    ({"model": {"vocab": {"a": -1}}}, ["model.vocab"]),
    ({"model": {"vocab": {"a": 1, "b": 1}}}, ["model.vocab"]),
    ({"model": {"vocab": {"a": 1}, "merges": ["a b"]}}, ["model.merges", "entry 0"]),
    ({"model": {"vocab": {"a": 1 << 40}}}, ["model.vocab"]), ({"model": {"vocab": {}}}, ["model.vocab"]),
    ({"added_tokens": [{"id": True, "content": "x"}]}, ["added token"]),
    ({"added_tokens": {}}, ["added_tokens"]),
]


@pytest.mark.parametrize("change, words", FAULTS)
def test_a_tokenizer_json_out_of_order_is_refused_by_field(tmp_path, change, words):
    refused(directory(tmp_path, bytes_json() | change), str(tmp_path / "tokenizer.json"), *words)


def test_faults_of_other_files_are_refused_by_name(tmp_path, tiny_model):
    refused(tmp_path / "none", "no such model directory")
    refused(tmp_path, "neither tokenizer.model nor tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("[" * 100_000)
    refused(tmp_path, "tokenizer.json")
    for config, word in (({"legacy": "yes"}, "legacy"), ({"bos_token": "<bos>"}, "bos_token"),
                         ({"chat_template": 3}, "chat_template"), ({"eos_token": 5}, "eos_token"),
                         ({"added_tokens_decoder": {"x": {}}}, "added_tokens_decoder"),
                         ({"added_tokens_decoder": {"3": {"content": "zzz"}}}, "'zzz'")):
        (tmp_path / "tokenizer.model").write_bytes(tiny_model)
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        refused(tmp_path, str(tmp_path), word)
    (tmp_path / "tokenizer_config.json").unlink()
    for content in (b"", b"\0" * 100, tiny_model[:-30], b"IQ==\nIg==\n"):
        (tmp_path / "tokenizer.model").write_bytes(content)
        refused(tmp_path, "tokenizer.model", "sentencepiece")
    for metadata, word in ((dict(model="gpt2", pre="strange", merges=[]), "strange"),
                           (dict(model="bert"), "bert"), (dict(model="llama"), "scores"),
                           (dict(model="gpt2", pre="smollm", merges=["a"]), "merges"),
                           (dict(model="gpt2", pre="smollm", merges=[], bos_token_id=9), "bos_token_id")):
        refused(gguf(tmp_path / "m.gguf",
                     **{f"tokenizer__ggml__{k}": v for k, v in {"tokens": ["a", "b"], **metadata}.items()}),
                "m.gguf", word)


@pytest.mark.parametrize("change, word", [
    ({"scores": [float("nan")] * 3}, "piece 0"), ({"scores": [0.0, float("inf"), 0.0]}, "piece 1"),
    ({"pieces": ["<unk>", "a", "a"]}, "piece 2"),
    ({"pieces": ["<unk>", "", "b"]}, "piece 1"), ({"pieces": ["<unk>", "a", "b\0"]}, "piece 2"),
    ({"kinds": [1, 1, 1]}, "0 unknown"), ({"kinds": [2, 6, 1]}, "piece 1"),
    ({"kinds": [2, 7, 1]}, "type 7"), ({"algorithm": 3}, "type is 3"),
])
def test_models_out_of_order_never_reach_the_library(change, word):
    model = spm.Model(**{"pieces": ["<unk>", "a", "b"], "scores": [0.0, -1.0, -2.0], "kinds": [2, 1, 1],
                         **change})
    with pytest.raises(ValueError, match=word):
        spm.SentencePiece(model)


def test_a_normalizing_model_is_refused(tmp_path):
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(["a b c d e"] * 20), model_writer=out,
                                             vocab_size=12, model_type="bpe", minloglevel=2,
                                             hard_vocab_limit=False)
    (tmp_path / "tokenizer.model").write_bytes(out.getvalue())
    refused(tmp_path, "normalization")


def survives(path):
    """A damaged file is a one-line Error, or a tokenizer that works."""
    try:
        words = gguf_file.tokenizer_of(path)
        ids = words.encode("Hello wörld 123 </s> 漢字 " + "ab" * 20)
        words.decode(ids), [words.piece_bytes(i) for i in ids]
        return True
    except Error as error:
        assert "\n" not in str(error) and len(str(error)) < 600, error
        return False


@pytest.mark.slow
def test_damaged_model_files(tmp_path, tiny_model):
    rng, alive = random.Random(9), 0
    for i in range(400):
        data = bytearray(tiny_model)
        for _ in range(rng.choice([1, 1, 3])):
            at = rng.randrange(len(data))
            if i % 4 == 0:
                data[at] ^= 1 << rng.randrange(8)
            elif i % 4 == 1:
                data[at] = rng.randrange(256)
            elif i % 4 == 2:
                del data[at:at + rng.choice([1, 2, 50])]
            else:
                data[at:at] = bytes(rng.randrange(256) for _ in range(3))
        (tmp_path / "tokenizer.model").write_bytes(data)
        alive += survives(tmp_path)
    assert 10 < alive < 390  # both ways out were taken


def nodes(value, path=()):
    yield path
    for key, inner in (value.items() if isinstance(value, dict) else enumerate(value)
                       if isinstance(value, list) else ()):
        yield from nodes(inner, (*path, key))


def write(path, core, config):
    directory(path, core)
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return survives(path)


@pytest.mark.slow
def test_tokenizer_files_with_wrong_values(tmp_path, tiny_model):
    """Every field of both JSON files replaced by values of each type, for both kinds of tokenizer.json."""
    config = {"bos_token": "<|end|>", "eos_token": {"content": "</s>", "special": True}, "pad_token": None,
              "add_bos_token": True, "legacy": True,
              "additional_special_tokens": ["<|end|>"],
              "chat_template": [{"name": "default", "template": "x"}],
              "added_tokens_decoder": {"900": {"content": "<z>", "special": False}}}
    strange = [None, True, -1, 1 << 70, 1.5, "", "\ud800", "▁", [], [[]], {}, {"a": {}}, ["a"], float("nan")]
    byte, piece = (
        bytes_json("smollm"),
        converted(sentencepiece.SentencePieceProcessor(model_proto=tiny_model)),
    )
    rng, tried, alive = random.Random(4), 0, 0
    for core, own in ((byte, config), (piece, config | {"bos_token": "<s>"})):
        few, many = [], []  # thousands of places lie in the vocabulary and the merges
        for where, path in [("c", p) for p in nodes(core)] + [("o", p) for p in nodes(own)]:
            (many if path[:2] in (("model", "vocab"), ("model", "merges")) else few).append((where, path))
        assert write(tmp_path, core, own)
        for where, path in [*few * 2, *rng.sample(many, 60)]:
            made = {"c": copy.deepcopy(core), "o": copy.deepcopy(own)}
            holder = made[where]
            for key in path[:-1]:
                holder = holder[key]
            if path:
                holder[path[-1]] = rng.choice(strange)
            else:
                made[where] = rng.choice(strange)
            tried, alive = tried + 1, alive + write(tmp_path, made["c"], made["o"])
    assert tried > 200 and 40 < alive < tried - 40


@pytest.mark.slow
def test_long_runs_do_not_hang(smollm2):
    """Long runs of one kind take time in proportion to their length, not its square (some of these take
    minutes otherwise).
    """
    for text in ("a" * 50_000, " " * 50_000, "\n" * 50_000 + "x", " \n" * 25_000, "1" * 50_000, "'" * 50_000,
                 "\u0301" * 25_000):
        assert smollm2.decode(smollm2.encode(text)) == text
