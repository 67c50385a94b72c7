"""Vocabularies from a GGUF file's metadata (tokenizer.ggml.*), which the caller has read.

Source: github.com/ggml-org/llama.cpp, src/llama-vocab.cpp; the names of tokenizer.ggml.pre are its own.
"""
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from redlite.errors import Error
from redlite.store.text import short
from redlite.text import spm
from redlite.text.patterns import compiled
from redlite.text.pipeline import anywhere
from redlite.text.pretokenizer import normalizer
from redlite.text.tokenizer_files import CONTROL_LOOK, RoleIds
from redlite.text.vocabulary import Vocabulary, byte_level, merge_ids

# tokenizer.ggml.pre → the pattern in patterns.py
PATTERNS = {
    "gpt-2": "gpt-2", "gpt2": "gpt-2", "phi-2": "gpt-2", "olmo": "gpt-2", "exaone4": "gpt-2",
    "granite-docling": "gpt-2", "mellum": "gpt-2", "trillion": "gpt-2",
    "smollm": "smollm", "starcoder": "smollm", "refact": "smollm", "command-r": "smollm",
    "minerva-7b": "smollm",
    "llama-bpe": "llama-bpe", "llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe",
    "lfm2": "llama-bpe", "dbrx": "llama-bpe", "smaug-bpe": "llama-bpe", "glm4": "llama-bpe",
    "pixtral": "llama-bpe", "midm-2.0": "llama-bpe",
    "qwen2": "qwen2", "deepseek-r1-qwen": "qwen2", "megrez": "qwen2", "stablelm2": "qwen2",
    "hunyuan": "qwen2",
    "qwen35": "qwen35", "seed-coder": "seed-coder",
    "tekken": "tekken",
    "gpt-4o": "gpt-4o", "llama4": "gpt-4o",
    "deepseek-v3": "deepseek-v3", "hunyuan-dense": "deepseek-v3", "deepseek-coder": "deepseek-coder",
}
# Those whose words are not merged where they are tokens as they stand, and those that begin with BOS.
BEGIN = ("llama-bpe", "llama3", "llama-v3", "falcon3", "lfm2", "pixtral", "midm-2.0", "tekken")
WHOLE = (*BEGIN, "glm4")
NFC = ("qwen2", "deepseek-r1-qwen", "qwen35")   # text is put in Unicode's composed form first


# Control tokens that end an answer by their text alone: llama.cpp's, without those of code completion.
ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
        "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
        "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<｜end▁of▁sentence｜>", "[e~[")
NO_END = ("<|return|>", "<|call|>", "<|end|>")  # where the first two are there, the third ends a message only


class _Table:
    """The tokenizer.* metadata of a GGUF file, each value checked for its type."""

    def __init__(self, path: Path, metadata: dict[str, Any]):
        self.path, self.values = path, metadata

    def fail(self, key: str, what: str) -> Error:
        return Error(f"{self.path}: metadata tokenizer.{key} {what}")

    def get(self, key: str, kind: type, word: str) -> Any:
        """A value of that type, or None. word: the type in words."""
        value = self.values.get(f"tokenizer.{key}")
        if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise self.fail(key, f"is {short(value)}; {word} is needed")
        return value

    def flag(self, key: str) -> bool | None:
        return self.get(key, bool, "true or false")

    def text(self, key: str) -> str | None:
        return self.get(key, str, "a text")

    def texts(self, key: str) -> list[str]:
        value = self.get(key, list, "a list of texts")
        if value is None:
            raise self.fail(key, "is missing")
        return value

    def numbers(self, key: str, count: int, kinds: str) -> np.ndarray | None:
        """An array, or None. kinds: numpy's letters of the kinds of number that will do."""
        value = self.values.get(f"tokenizer.{key}")
        if value is None:
            return None
        if not isinstance(value, np.ndarray) or len(value) != count or value.dtype.kind not in kinds:
            raise self.fail(key, f"is not an array of {count} numbers, one a token")
        return value

    def id(self, role: str, count: int) -> int | None:
        key = f"ggml.{role}_token_id"
        value = self.get(key, int, "a token id")
        if value is not None and not 0 <= value < count:
            raise self.fail(key, f"is {value}; the vocabulary has {count} tokens")
        return value

    def fingerprint(self) -> str:
        whole = hashlib.sha256()
        for key in sorted(k for k in self.values if k.startswith("tokenizer.ggml.")):
            value = self.values[key]
            shown = value.tolist() if isinstance(value, np.ndarray) else repr(value)
            whole.update(f"{key}={shown}\n".encode("utf-8", "replace"))
        return whole.hexdigest()


def read(path: Path, metadata: dict[str, Any]) -> Vocabulary:
    """The vocabulary of a GGUF file. path: for errors. Raises Error for one that is damaged or not known."""
    table = _Table(path, metadata)
    model = table.text("ggml.model")
    tokens = table.texts("ggml.tokens")
    given = table.numbers("ggml.token_type", len(tokens), "iu")
    ids = table.id("bos", len(tokens)), table.id("eos", len(tokens)), table.id("padding", len(tokens))
    stated = [table.id(role, len(tokens)) for role in ("eot", "eom")]
    known = {tokens[i]: i for i in _of_kind(given, spm.CONTROL, spm.USER_DEFINED) if tokens[i] in ENDS}
    if NO_END[0] in known and NO_END[1] in known:
        known.pop(NO_END[2], None)
    ends = tuple(dict.fromkeys([*(i for i in stated if i is not None), *known.values()]))
    if model == "llama":
        kinds = [spm.NORMAL] * len(tokens) if given is None else given.tolist()
        return replace(_llama(table, tokens, kinds, ids), end_ids=ends)
    if model == "gpt2":
        return replace(_gpt2(table, tokens, given, ids), end_ids=ends)
    raise table.fail("ggml.model", f"is {short(model)}; "
                                   "redlite knows llama (sentencepiece) and gpt2 (byte-level BPE)")


def _llama(table: _Table, tokens: list[str], kinds: list[int], ids: RoleIds) -> Vocabulary:
    """A sentencepiece vocabulary. Each segment of a text gets its space, as in llama.cpp."""
    scores = table.numbers("ggml.scores", len(tokens), "f")
    if scores is None:
        raise table.fail("ggml.scores", "is missing")
    space_prefix = table.flag("ggml.add_space_prefix") is not False
    kinds = list(kinds)
    for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        looks_like_control = kind == spm.USER_DEFINED and CONTROL_LOOK.fullmatch(token)
        if kind != spm.UNKNOWN and (i in ids or looks_like_control):
            kinds[i] = spm.CONTROL
    try:
        model = spm.Model(tokens, scores.astype(np.float32).tolist(), kinds, space_prefix=space_prefix)
        core = spm.SentencePiece(model)
    except ValueError as error:
        raise table.fail("ggml.tokens", f"as a sentencepiece model: {error}") from None
    add_bos = ids[0] is not None and table.flag("ggml.add_bos_token") is not False
    return Vocabulary(core, {}, spm.controls(model), {}, *ids, add_bos=add_bos, legacy=True,
                      space_prefix=space_prefix, chat_template=table.text("chat_template"),
                      fingerprint=table.fingerprint())


def _of_kind(given: np.ndarray | None, *kinds: int) -> list[int]:
    """The ids of the tokens of these kinds, in order. given: every token's kind; None: all are normal."""
    return [] if given is None else np.flatnonzero(np.isin(given, kinds)).tolist()


def _gpt2(table: _Table, tokens: list[str], given: np.ndarray | None, ids: RoleIds) -> Vocabulary:
    """A byte-level vocabulary."""
    pre = table.text("ggml.pre")
    if pre not in PATTERNS:
        raise table.fail("ggml.pre", f"is {short(pre)}; redlite knows {', '.join(PATTERNS)}")
    vocab = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(vocab) != len(tokens):
        raise table.fail("ggml.tokens", "holds a token twice")
    try:
        # A merge that comes twice has its first rank in llama.cpp.
        merges = merge_ids(vocab, list(dict.fromkeys(table.texts("ggml.merges"))))
    except ValueError as error:
        raise table.fail("ggml.merges", str(error)) from None
    added = {}
    defined = frozenset(_of_kind(given, spm.USER_DEFINED))
    for i in _of_kind(given, spm.UNKNOWN, spm.CONTROL, spm.USER_DEFINED):
        if token := tokens[i]:
            added[i] = token, i not in defined or CONTROL_LOOK.fullmatch(token) is not None
    add_bos = table.flag("ggml.add_bos_token")
    if add_bos is None:
        add_bos = pre in BEGIN  # llama.cpp's own default
    split = anywhere(compiled(PATTERNS[pre]))
    return byte_level(vocab, merges, added, ids, split, ignore_merges=pre in WHOLE,
                      normalize=normalizer({"type": "NFC"} if pre in NFC else None),
                      add_bos=add_bos and ids[0] is not None, chat_template=table.text("chat_template"),
                      fingerprint=table.fingerprint())
