"""Vocabularies from tokenizer.json, the file of the tokenizers library (github.com/huggingface/tokenizers).

It describes a pipeline of many possible steps: normalizer, pre-tokenizer, model, decoder. BPE and unigram
models are known here, with the steps of pretokenizer.py and decoder.py. Whatever else would change the ids is
refused by name. Truncation and padding are not done, as transformers does not either unless it is asked.
"""
import re
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from redlite.store.text import short
from redlite.text import bpe, decoder, pretokenizer
from redlite.text.patterns import LLAMA3
from redlite.text.pipeline import Pipeline
from redlite.text.pretokenizer import PREPEND, SPACE, Pretokenizer, Split, Steps, fields
from redlite.text.tokenizer_files import MAX_IDS, ROLES, Added, TokenizerFiles
from redlite.text.unigram import Unigram
from redlite.text.vocabulary import (
    Texts,
    Vocabulary,
    base_size,
    byte_level,
    merge_ids,
    ranks_within,
    require_roles,
    shown_texts,
    sorted_texts,
)

NAME = "tokenizer.json"
PROCESSORS = ("TemplateProcessing", "ByteLevel")    # the second changes offsets alone
T = TypeVar("T")
_warned: dict[Any, Any] = {}    # what `warnings` showed, so that it shows it once


def from_tokenizer_json(files: TokenizerFiles) -> Vocabulary:
    """From tokenizer.json and the files beside it. Raises Error."""
    core = files.json(NAME)
    model = files.an_object(NAME, core, "model")
    added, rules = files.added(core), files.rules(core)
    no_prefix = not files.flag("add_prefix_space", True)
    normal = core.get("normalizer")
    if no_prefix and normal is not None:
        normal = {"type": "Sequence", "normalizers": [step for step in _entries(files, normal)
                                                      if step != PREPEND]}
    normalize = _read(files, "normalizer", lambda: pretokenizer.normalizer(normal))
    pre = _read(files, "pre_tokenizer", lambda: Pretokenizer(core.get("pre_tokenizer"), no_prefix))
    prepends = normal is not None and PREPEND in _entries(files, normal)
    usual = "Unigram" if isinstance(model.get("vocab"), list) else "BPE"
    kind = usual if model.get("type") is None else model["type"]
    if kind == "Unigram":
        vocab = _read(files, "model", lambda: _scores(model))
    elif kind == "BPE":
        vocab = _vocab(files, model)
    else:
        raise files.fail(NAME, f"model.type is {short(kind)}; redlite knows BPE and Unigram")
    _check_added(files, vocab, added)
    known = vocab | {text: i for i, (text, _) in added.items()}
    roles = [files.token(f"{role}_token") for role in ROLES]
    bos, eos, pad = (known.get(text) if text else None for text in roles)
    ids = bos, eos, pad
    require_roles(files, roles, ids)
    _check_processor(files, core)
    add_bos = bos is not None and files.flag("add_bos_token", _bos_first(core, bos))
    template = files.chat_template()
    if pre.byte_level and kind == "BPE":
        _warn_if_wrong(files)
        _read(files, "decoder", lambda: decoder.byte_level(core.get("decoder")))
        whole = _read(files, "model", lambda: _byte_level_settings(model))
        return byte_level(vocab, _merges(files, model, vocab), added, ids, pre.split, ignore_merges=whole,
                          add_bos=add_bos, chat_template=template, fingerprint=files.fingerprint(),
                          normalize=normalize, rules=rules)
    if pre.byte_level:
        raise files.fail(NAME, "pre_tokenizer ByteLevel is not known for a unigram model")
    out = _read(files, "decoder", lambda: decoder.Decoder(core.get("decoder")))
    unknown = _read(files, "model", lambda: _unknown(model, kind, vocab))
    texts = sorted_texts(vocab, added, ids, unknown)
    if kind == "Unigram":
        words: Any = _read(files, "model", lambda: _unigram(model, texts))
        split = pre.split
    else:
        words, split = _character_bpe(files, model, vocab, texts, unknown, pre.split)
    tokens = {id: token for token, id in vocab.items()} | shown_texts(added, rules, normalize)
    made = Pipeline(tokens, base_size(vocab, added), words, split, normalize, out)
    always = prepends or pre.metaspace == "always"
    return Vocabulary(made, {}, texts.special, texts.defined, *ids, add_bos=add_bos, legacy=always,
                      space_prefix=always or pre.metaspace == "first", chat_template=template,
                      fingerprint=files.fingerprint(), rules=rules)


def _read(files: TokenizerFiles, field: str, make: Callable[[], T]) -> T:
    """What `make` makes of a field; its ValueError becomes the Error that names the field."""
    try:
        return make()
    except ValueError as error:
        reason = ascii(str(error))[1:-1]
        raise files.fail(NAME, f"{field}: {reason[:160]}; redlite does not take that") from None


def _entries(files: TokenizerFiles, normal: Any) -> list[dict[str, Any]]:
    return _read(files, "normalizer", lambda: Steps(normal, "normalizers").found)


def _check_added(files: TokenizerFiles, vocab: dict[str, int], added: Added) -> None:
    """Raises Error for an added token whose text or id the vocabulary gives to another."""
    tokens = {id: token for token, id in vocab.items() if id in added}
    for id, (text, _) in added.items():
        if vocab.get(text, id) != id or tokens.get(id, text) != text:
            raise files.fail(NAME, f"added token {short(text)} has id {id}, and model.vocab says otherwise")


# ---- vocabularies and their models ----

def _vocab(files: TokenizerFiles, model: dict[str, Any]) -> dict[str, int]:
    """model.vocab of BPE, checked."""
    vocab = files.an_object(NAME, model, "vocab")
    if not vocab:
        raise files.fail(NAME, "model.vocab is empty")
    for token, id in vocab.items():
        if type(id) is not int or not 0 <= id < MAX_IDS:
            raise files.fail(NAME, f"model.vocab gives {short(token)} the id {short(id)}; "
                                   f"a number from 0 to {MAX_IDS - 1} is needed")
    if len(set(vocab.values())) != len(vocab):
        raise files.fail(NAME, "model.vocab gives two tokens one id")
    return vocab


def _merges(files: TokenizerFiles, model: dict[str, Any], vocab: dict[str, int]) -> np.ndarray:
    try:
        return merge_ids(vocab, files.a_list(NAME, model, "merges"))
    except ValueError as error:
        raise files.fail(NAME, f"model.merges: {error}") from None


def _bpe_settings(model: dict[str, Any]) -> tuple[bool, bool, bool]:
    """(byte_fallback, fuse_unk, ignore_merges). Raises ValueError for what would change the ids otherwise."""
    dropout, _, prefix, suffix, fallback, fuse, whole, _, _ = fields(
        {**model, "type": "BPE"}, dropout=None, unk_token=None, continuing_subword_prefix=None,
        end_of_word_suffix=None, byte_fallback=False, fuse_unk=False, ignore_merges=False, vocab=None,
        merges=None)
    if dropout or prefix or suffix:
        raise ValueError("it has dropout, continuing_subword_prefix or end_of_word_suffix")
    return fallback, fuse, whole


def _byte_level_settings(model: dict[str, Any]) -> bool:
    """Whether words that are tokens are not merged."""
    return _bpe_settings(model)[2]


def _unknown(model: dict[str, Any], kind: str, vocab: dict[str, int]) -> str | None:
    """The token that stands for unknown characters."""
    if kind == "Unigram":
        id = model.get("unk_id")
        if id is None:
            return None
        if type(id) is not int or not 0 <= id < len(vocab):
            raise ValueError(f"unk_id is {short(id)}")
        return list(vocab)[id]
    unknown = model.get("unk_token")
    if unknown is not None and (not isinstance(unknown, str) or unknown not in vocab):
        raise ValueError(f"unk_token {short(unknown)} is not in the vocabulary")
    return unknown


def _character_bpe(files: TokenizerFiles, model: dict[str, Any], vocab: dict[str, int], texts: Texts,
                   unknown: str | None, split: Split) -> tuple[bpe.BPE, Split]:
    """BPE over characters, as sentencepiece's models have it, and the splitting that goes with it."""
    fallback, fuse, whole = _read(files, "model", lambda: _bpe_settings(model))
    ranks, made = ranks_within(_merges(files, model, vocab), texts.special)
    # The bytes' tokens serve even where they are added tokens.
    of_bytes = {name: vocab[name] for name in decoder.BYTE_NAMES if name in vocab}
    symbols = bpe.character_symbols(texts.plain | of_bytes, None if unknown is None else vocab[unknown],
                                    byte_fallback=fallback, fuse_unknown=fuse)
    found = bpe.BPE(texts.plain, ranks, made, symbols, str if whole else None)
    if whole or SPACE not in texts.plain:
        return found, split
    ids = set(made)
    cut = _at_spaces([token for token, id in vocab.items() if id in ids])
    return found, lambda text, first: [word for piece in split(text, first) for word in cut(piece)]


def _at_spaces(tokens: list[str]) -> Callable[[str], list[str]]:
    """Cuts before each run of ▁, but not where a token goes on from what stands before the run.

    No merge crosses such a place, so the ids stay the same. Words are short then, and can be remembered.
    """
    before = {token[i - 1] for token in tokens if SPACE in token
              for i in range(1, len(token)) if token[i] == SPACE and token[i - 1] != SPACE}
    joined = f"(?:(?<=[{''.join(map(re.escape, sorted(before)))}]){SPACE}+[^{SPACE}]*)*" if before else ""
    return re.compile(f"{SPACE}+[^{SPACE}]*{joined}|[^{SPACE}]+{joined}").findall


def _scores(model: dict[str, Any]) -> dict[str, int]:
    """Token → id of a unigram vocabulary. Raises ValueError for entries out of order."""
    vocab = model.get("vocab")
    found: dict[str, int] = {}
    for i, entry in enumerate(vocab if isinstance(vocab, list) else []):
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str) or not entry[0] \
                or type(entry[1]) not in (int, float) or not abs(entry[1]) < 1e9:
            raise ValueError(f"vocab, entry {i}: a token and its score are needed")
        if entry[0] in found:
            raise ValueError(f"vocab holds {short(entry[0])} twice")
        found[entry[0]] = i
    if not found:
        raise ValueError("vocab is empty")
    return found


def _unigram(model: dict[str, Any], texts: Texts) -> Unigram:
    _, vocab, fallback = fields({**model, "type": "Unigram"}, unk_id=None, vocab=None, byte_fallback=False)
    scores = {token: (float(vocab[id][1]), id) for token, id in texts.plain.items()}
    return Unigram(scores, min(float(score) for _, score in vocab), model.get("unk_id"), fallback)


# ---- what stands before a text, and a known fault ----

def _processors(core: dict[str, Any]) -> list[Any]:
    entry = core.get("post_processor")
    if isinstance(entry, dict) and entry.get("type") == "Sequence":
        steps = entry.get("processors")
        return steps if isinstance(steps, list) else []
    return [] if entry is None else [entry]


def _check_processor(files: TokenizerFiles, core: dict[str, Any]) -> None:
    for step in _processors(core):
        if not isinstance(step, dict) or step.get("type") not in PROCESSORS:
            kind = step.get("type") if isinstance(step, dict) else step
            raise files.fail(NAME, f"post_processor {short(kind)} is not known; redlite knows "
                                   f"{' and '.join(PROCESSORS)}")


def _bos_first(core: dict[str, Any], bos: int) -> bool:
    """Whether the post_processor puts the BOS token before a text. Only its first template counts."""
    for step in _processors(core):
        if step["type"] != "TemplateProcessing":
            continue
        single, tokens = step.get("single"), step.get("special_tokens")
        if not isinstance(single, list) or not single:
            continue
        token = single[0].get("SpecialToken") if isinstance(single[0], dict) else None
        if not isinstance(token, dict) or not isinstance(tokens, dict):
            return False
        entry = tokens.get(str(token.get("id")))
        return isinstance(entry, dict) and entry.get("ids") == [bos]
    return False


def is_wrong(files: TokenizerFiles) -> bool:
    """Whether this is Mistral's tekken vocabulary with Llama 3's splitting.

    Mistral published such files for a year; transformers 5.24 warns of them too (`fix_mistral_regex`).
    """
    core = files.json(NAME)
    added, pre = core.get("added_tokens"), core.get("pre_tokenizer")
    steps = pre.get("pretokenizers") if isinstance(pre, dict) else None
    if not isinstance(added, list) or not isinstance(steps, list) or not steps:
        return False
    texts = {entry.get("id"): entry.get("content") for entry in added
             if isinstance(entry, dict) and entry.get("id") in (3, 4)}
    pattern = steps[0].get("pattern") if isinstance(steps[0], dict) else None
    return texts == {3: "[INST]", 4: "[/INST]"} and pattern == {"Regex": LLAMA3}


def _warn_if_wrong(files: TokenizerFiles) -> None:
    if is_wrong(files):
        text = (f"{files.path / NAME} splits text by Llama 3's pattern, which Mistral did not train with; "
                "put the model's tekken.json beside it")
        warnings.warn_explicit(text, UserWarning, NAME, 0, registry=_warned)    # line 0: no source is shown
