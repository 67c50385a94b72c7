"""Chat formats: ids and masks against transformers' apply_chat_template (tests/make_tokenizer_goldens.py), and the rules for messages."""
import itertools
import json
import shutil
from pathlib import Path

import pytest

import make_tokenizer_goldens as maker
from redlite import chat, tokenizer
from redlite.errors import Error

HERE = Path(__file__).parent
SMALL = json.loads((HERE / "golden" / "tokenizer.json").read_text())
GOLDEN = json.loads((HERE / "golden" / "chat.json").read_text())
SHARED = HERE.parents[1] / "shared" / "tokenizers"
USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}


def byte_level(tmp_path, name, **config):
    split, special, _ = maker.BYTE_LEVEL[name]
    (tmp_path / "tokenizer.json").write_text(json.dumps(maker.small(SMALL, split, special)))
    eos = {"llama-3": "<|end_of_text|>"}.get(name, "<|im_end|>")
    bos = "<|begin_of_text|>" if name == "llama-3" else None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos, "bos_token": bos, **config}))
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
    template = chat.choose(byte_level(tmp_path, name), None, "", name)
    given = maker.conversations(False)
    assert len(given) == len(GOLDEN[name])
    for messages, golden in zip(given, GOLDEN[name]):
        agrees(template, golden, messages)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("name", maker.SENTENCEPIECE)
def test_sentencepiece_formats_equal_transformers(tmp_path, name, legacy):
    template = chat.choose(llama(tmp_path, legacy), None, "", name)
    for messages, golden in zip(maker.conversations(True), GOLDEN[f"{name} {'legacy' if legacy else 'first'}"], strict=True):
        agrees(template, golden, messages, skip=1)
