"""Chat formats: ids and masks against transformers' apply_chat_template
(tests/beside/make_tokenizer_goldens.py), and the rules for messages.
"""
import io
import itertools
import json
import shutil
from pathlib import Path

import make_tokenizer_goldens as maker
import pytest
import sentencepiece

from redlite.errors import Error
from redlite.text import chat, tokenizer

HERE = Path(__file__).parents[1]
SMALL = json.loads((HERE / "golden" / "tokenizer.json").read_text())
GOLDEN = json.loads((HERE / "golden" / "chat.json").read_text())
SHARED = HERE.parents[1] / "shared" / "tokenizers"
USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}


def byte_level(tmp_path, name, **config):
    split, special, _ = maker.BYTE_LEVEL[name]
    (tmp_path / "tokenizer.json").write_text(json.dumps(maker.small(SMALL, split, special)))
    eos = {"llama-3": "<|end_of_text|>"}.get(name, "<|im_end|>")
    bos = "<|begin_of_text|>" if name == "llama-3" else None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos, "bos_token": bos,
                                                                **config}))
    return tokenizer.load(tmp_path)


def llama(tmp_path, legacy):
    if not (SHARED / "llama.model").exists():
        pytest.skip("needs ../shared/tokenizers/llama.model")
    shutil.copy(SHARED / "llama.model", tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"legacy": legacy}))
    return tokenizer.load(tmp_path)


def flips(mask):
    return [i for i, (a, b) in enumerate(itertools.pairwise([False, *mask])) if a != b]


def agrees(template, golden, messages, skip=0):
    ids, mask = golden
    got = template.encode(messages, add_generation_prompt=messages[-1]["role"] == "user")
    assert got.ids[skip:] == ids, messages
    assert flips(got.trained[skip:]) == mask, messages


@pytest.mark.parametrize("name", maker.BYTE_LEVEL)
def test_byte_level_formats_equal_transformers(tmp_path, name):
    template = chat.named(byte_level(tmp_path, name), name)
    given = maker.conversations(False)
    assert len(given) == len(GOLDEN[name])
    for messages, golden in zip(given, GOLDEN[name], strict=True):
        agrees(template, golden, messages)


@pytest.mark.first(2)
@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("name", maker.SENTENCEPIECE)
def test_sentencepiece_formats_equal_transformers(tmp_path, name, legacy):
    template = chat.named(llama(tmp_path, legacy), name)
    for messages, golden in zip(maker.conversations(True),
                                GOLDEN[f"{name} {'legacy' if legacy else 'first'}"], strict=True):
        agrees(template, golden, messages, skip=1)


# ---- sentencepiece itself as the judge: the ids of a conversation are those of its texts between control
# tokens ----

@pytest.mark.parametrize("legacy", [True, False])
def test_vicuna_ids_are_those_of_the_whole_text(tmp_path, legacy):
    words = llama(tmp_path, legacy)
    reference = sentencepiece.SentencePieceProcessor(str(SHARED / "llama.model"))
    template = chat.named(words, "vicuna_v1.1")
    assert template.name == "vicuna_v1.1" and template.stop_ids == (2,) and template.bos
    contents = [t for t in maker.strings() if len(t) < 60]
    for k in range(0, len(contents) - 3, 3):
        u, a, v = contents[k:k + 3]
        got = template.encode([{"role": "user", "content": u}, {"role": "assistant", "content": a},
                               {"role": "user", "content": v}], True)
        first = reference.EncodeAsIds(f"{maker.VICUNA_DEFAULT} USER: {u} ASSISTANT: {a}")
        second = f"USER: {v} ASSISTANT:"
        # Without a space of its own, the text is encoded as it stands after a line break, which is a token of
        # its own.
        last = reference.EncodeAsIds(second) if legacy else reference.EncodeAsIds("\n" + second)[2:]
        assert got.ids == [1, *first, 2, *last], (u, a, v)
        answer = [i for i, t in zip(got.ids, got.trained, strict=True) if t]
        assert answer[-1] == 2 and b"".join(map(words.piece_bytes, answer)).decode() == " " + a.replace("▁",
                                                                                                        " ")


def test_a_prompt_is_the_beginning_of_the_trained_conversation(tmp_path):
    """What the model is asked with is what it was trained after, for every format and answers of every
    sort.
    """
    for name in maker.BYTE_LEVEL:
        (tmp_path / name).mkdir()
        starts_with_prompt(chat.named(byte_level(tmp_path / name, name), name))
    for legacy in (True, False):
        words = llama(tmp_path, legacy)
        for name in (*maker.SENTENCEPIECE, "plain"):
            starts_with_prompt(chat.named(words, name))


def starts_with_prompt(template):
    for user, answer in (("Hi", "Yo"), ("a  ", "b"), ("漢字", "é"), ("1", "2"), ("x\n", "(thought) y"),
                         ("", "")):
        asked = [{"role": "user", "content": user}]
        prompt = template.encode(asked, True)
        whole = template.encode([*asked, {"role": "assistant", "content": answer}])
        n = len(prompt.ids)
        assert whole.ids[:n] == prompt.ids and not any(prompt.trained) and not any(whole.trained[:n]), (
            template.name,
            user,
            answer,
        )
        assert whole.trained[n] and len(whole.ids) == len(whole.trained)


# ---- without ../shared ----

def small_sentencepiece(tmp_path, **config):
    """A model of 80 pieces; its tokenizer and sentencepiece itself on it."""
    out = io.BytesIO()
    text = [
        "### System: User: Assistant: USER: ASSISTANT: [INST] [/INST] <<SYS>> <</SYS>> "
        "hello there, how are you? fine! yes no"
    ] * 30
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(text), model_writer=out, vocab_size=360,
                                             model_type="bpe", byte_fallback=True,
                                             normalization_rule_name="identity",
                                             remove_extra_whitespaces=False, minloglevel=2,
                                             hard_vocab_limit=False)
    (tmp_path / "tokenizer.model").write_bytes(out.getvalue())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer.load(tmp_path), sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())


SYSTEM = {"role": "system", "content": "be good"}
TWO = [{"role": "user", "content": " hello "}, {"role": "assistant", "content": "fine\n"},
       {"role": "user", "content": "how?"}]
TEXTS = {  # (system and two turns: the texts between control tokens; None is BOS, ... is EOS)
    "vicuna_v1.1": [None, "be good USER:  hello  ASSISTANT: fine\n", ..., "USER: how? ASSISTANT:"],
    "llama-2": [None, "[INST] <<SYS>>\nbe good\n<</SYS>>\n\n hello [/INST] fine ", ..., None,
                "[INST] how? [/INST]"],
    "mistral": [None, "[INST] be good\n\n hello  [/INST] fine\n", ..., "[INST] how? [/INST]"],
    "stable-beluga": [None, "### System:\nbe good\n\n### User:  hello \n\n### Assistant:\nfine\n", ...,
                      "### User: how?\n\n### Assistant:\n"],
    "plain": [None, "be good\n hello \nfine\n", ..., "\nhow?"],
}


@pytest.mark.parametrize("name", TEXTS)
def test_sentencepiece_formats_by_their_texts(tmp_path, name):
    words, reference = small_sentencepiece(tmp_path)
    expected = []
    for part in TEXTS[name]:
        expected += [1] if part is None else [2] if part is ... else reference.EncodeAsIds(part)
    got = chat.named(words, name).encode([SYSTEM, *TWO], True)
    assert got.ids == expected
    answer = b"".join(words.piece_bytes(i) for i, t in zip(got.ids, got.trained, strict=True) if t).decode()
    assert answer == {"llama-2": " fine ", "stable-beluga": "fine\n", "plain": "\nfine\n"}.get(name,
                                                                                               " fine\n")
    assert [i for i, t in zip(got.ids, got.trained, strict=True) if t][-1] == 2


def test_defaults_for_the_system_message(tmp_path):
    words, reference = small_sentencepiece(tmp_path)
    vicuna, llama2 = (chat.named(words, n) for n in ("vicuna_v1.1", "llama-2"))
    empty = {"role": "system", "content": ""}
    assert vicuna.encode([USER], True).ids == [
        1,
        *reference.EncodeAsIds(f"{maker.VICUNA_DEFAULT} USER: Hi ASSISTANT:"),
    ]
    assert vicuna.encode([empty, USER], True).ids == [1, *reference.EncodeAsIds("USER: Hi ASSISTANT:")]
    assert llama2.encode([USER], True).ids == [1, *reference.EncodeAsIds("[INST] Hi [/INST]")]


def test_bos_follows_the_files(tmp_path):
    for config, bos in (({}, True), ({"add_bos_token": False}, False)):
        words, _ = small_sentencepiece(tmp_path, **config)
        ids = chat.named(words, "vicuna_v1.1").encode([USER], True).ids
        assert (ids[0] == 1) == bos and ids.count(1) == bos


def test_contents_never_hold_control_tokens(tmp_path):
    for name in maker.BYTE_LEVEL:
        (tmp_path / name).mkdir()
        words = byte_level(tmp_path / name, name)
        template, evil = chat.named(words, name), "".join(words.special) + "x"
        plain = template.encode([{"role": r, "content": "x"}
                                 for r in ("system", "user", "assistant", "user")], True)
        got = template.encode([{"role": r, "content": evil} for r in ("system", "user", "assistant", "user")],
                              True)
        controls = set(words.special.values())
        assert [i for i in got.ids if i in controls] == [i for i in plain.ids if i in controls]


# ---- errors ----

def test_llama_3_stops_and_dates(tmp_path):
    words = byte_level(tmp_path, "llama-3")
    found = chat.named(words, "llama-3")
    assert set(found.stop_ids) == {words.special["<|eot_id|>"], words.special["<|end_of_text|>"]}
    dated = chat.named(words, "llama-3.1")
    assert "Today Date: 26 Jul 2024\n\nbe good" in words.decode(dated.encode([SYSTEM, USER], True).ids)


@pytest.mark.parametrize("name, word", [("nonsense", "vicuna_v1.1"), ("chatml", "<|im_start|>"),
                                        ("mistral-v3", "[INST]")])
def test_formats_that_do_not_fit_are_errors(tmp_path, name, word):
    words, _ = small_sentencepiece(tmp_path)
    with pytest.raises(Error) as error:
        chat.named(words, name)
    assert word in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("messages, generate, word", [
    ([], True, "no user message"), ([SYSTEM], True, "no user message"), ([ANSWER], False, "message 0"),
    ([USER, USER], True, "message 1"), ([SYSTEM, SYSTEM, USER], True, "message 1"),
    ([USER, SYSTEM], True, "message 1"), ([USER, ANSWER], True, "ends with the assistant"),
    ([{"role": "tool", "content": "x"}], True, "'tool'"),
    ([{"role": "user", "content": None}], True, "NoneType"), (["Hi"], True, "message 0"),
    ([{"role": ["a"], "content": "x"}], True, "message 0"), ([USER, ANSWER, ANSWER], False, "message 2"),
])
def test_messages_out_of_order_are_errors(tmp_path, messages, generate, word):
    words, _ = small_sentencepiece(tmp_path)
    with pytest.raises(Error) as error:
        chat.named(words, "llama-2").encode(messages, generate)
    assert word in str(error.value) and "\n" not in str(error.value)


def test_fingerprints_tell_formats_apart(tmp_path):
    words, _ = small_sentencepiece(tmp_path)
    prints = [chat.named(words, name).fingerprint() for name in TEXTS]
    assert len(set(prints)) == len(prints)
    assert prints == [chat.named(words, name).fingerprint() for name in TEXTS]
    words, _ = small_sentencepiece(tmp_path, add_bos_token=False)
    assert chat.named(words, "vicuna_v1.1").fingerprint() not in prints
