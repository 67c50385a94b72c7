"""Vocabularies from a GGUF file's metadata (tokenizer.ggml.*).

Source: github.com/ggml-org/llama.cpp, src/llama-vocab.cpp; the names of tokenizer.ggml.pre are its own.
"""
import hashlib
from pathlib import Path

import numpy as np

from redlite.errors import Error
from redlite.store.text import short
from redlite.text import spm
from redlite.text.vocabulary import CONTROL_LOOK, Vocabulary, byte_level, merge_ids
from redlite.weights.gguf import GGUF

PATTERNS = {"gpt-2": "gpt-2", "gpt2": "gpt-2", "smollm": "smollm", "starcoder": "smollm", "llama-bpe": "llama-bpe",
            "llama3": "llama-bpe", "llama-v3": "llama-bpe", "qwen2": "qwen2", "deepseek-r1-qwen": "qwen2"}


class _Table:
    """The tokenizer.* metadata of a GGUF file, each value checked for its type."""

    def __init__(self, path: Path, metadata: dict[str, object]):
        self.path, self.values = path, metadata

    def fail(self, key: str, what: str) -> Error:
        return Error(f"{self.path}: metadata tokenizer.{key} {what}")

    def get(self, key: str, kind: type, word: str):
        value = self.values.get(f"tokenizer.{key}")
        if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise self.fail(key, f"is {short(value)}; {word} is needed")
        return value

    def texts(self, key: str) -> list[str]:
        value = self.get(key, list, "a list of texts")
        if value is None:
            raise self.fail(key, "is missing")
        return value

    def numbers(self, key: str, count: int, kinds: str) -> np.ndarray | None:
        """kinds: numpy's letters of the kinds of number that will do."""
        value = self.values.get(f"tokenizer.{key}")
        if value is not None and (not isinstance(value, np.ndarray) or len(value) != count or value.dtype.kind not in kinds):
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
            whole.update(f"{key}={value.tolist() if hasattr(value, 'tolist') else value!r}\n".encode("utf-8", "replace"))
        return whole.hexdigest()


def read(path: Path) -> Vocabulary:
    """From the metadata of a .gguf file. Raises Error."""
    with GGUF(path) as file:
        table = _Table(path, file.metadata)
    model = table.get("ggml.model", str, "a text")
    tokens = table.texts("ggml.tokens")
    kinds = table.numbers("ggml.token_type", len(tokens), "iu")
    kinds = [spm.NORMAL] * len(tokens) if kinds is None else kinds.tolist()
    ids = [table.id(role, len(tokens)) for role in ("bos", "eos", "padding")]
    if model == "llama":
        return _llama(table, tokens, kinds, ids)
    if model == "gpt2":
        return _gpt2(table, tokens, kinds, ids)
    raise table.fail("ggml.model", f"is {short(model)}; redlite knows llama (sentencepiece) and gpt2 (byte-level BPE)")


def _llama(table: _Table, tokens: list[str], kinds: list[int], ids: list[int | None]) -> Vocabulary:
    """A sentencepiece vocabulary; each segment gets its space, as in llama.cpp."""
    scores = table.numbers("ggml.scores", len(tokens), "f")
    if scores is None:
        raise table.fail("ggml.scores", "is missing")
    space_prefix = table.get("ggml.add_space_prefix", bool, "true or false") is not False
    kinds = [spm.CONTROL if k != spm.UNKNOWN and (i in ids or k == spm.USER_DEFINED and CONTROL_LOOK.fullmatch(t)) else k
             for i, (t, k) in enumerate(zip(tokens, kinds))]
    try:
        core = spm.SentencePiece(spm.Model(tokens, scores.astype(np.float32).tolist(), kinds, space_prefix=space_prefix))
    except ValueError as error:
        raise table.fail("ggml.tokens", f"as a sentencepiece model: {error}") from None
    special = {t: i for i, (t, k) in enumerate(zip(tokens, kinds)) if k in (spm.CONTROL, spm.UNKNOWN)}
    return Vocabulary(core, {}, special, {}, *ids, add_bos=ids[0] is not None and table.get("ggml.add_bos_token", bool, "true or false") is not False,
                      legacy=True, space_prefix=space_prefix, chat_template=table.get("chat_template", str, "a text"), fingerprint=table.fingerprint())


def _gpt2(table: _Table, tokens: list[str], kinds: list[int], ids: list[int | None]) -> Vocabulary:
    pre = table.get("ggml.pre", str, "a text")
    if pre not in PATTERNS:
        raise table.fail("ggml.pre", f"is {short(pre)}; redlite knows {', '.join(PATTERNS)}")
    pattern, vocab = PATTERNS[pre], {t: i for i, t in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise table.fail("ggml.tokens", "holds a token twice")
    try:
        merges = merge_ids(vocab, table.texts("ggml.merges"))
    except ValueError as error:
        raise table.fail("ggml.merges", str(error)) from None
    added = {i: (t, k != spm.USER_DEFINED or CONTROL_LOOK.fullmatch(t) is not None)
             for i, (t, k) in enumerate(zip(tokens, kinds)) if t and k in (spm.UNKNOWN, spm.CONTROL, spm.USER_DEFINED)}
    add_bos = table.get("ggml.add_bos_token", bool, "true or false")
    if add_bos is None:
        add_bos = pattern == "llama-bpe"  # llama.cpp's own default
    return byte_level(vocab, merges, added, ids, pattern, ignore_merges=pattern == "llama-bpe", nfc=pattern == "qwen2", add_bos=add_bos and ids[0] is not None,
                      chat_template=table.get("chat_template", str, "a text"), fingerprint=table.fingerprint())
