"""Vocabularies from tokenizer.json, the file of the tokenizers library (github.com/huggingface/tokenizers).

It describes a pipeline of many possible steps. Those of byte-level BPE as GPT-2, SmolLM2, Llama 3 and Qwen2
have it are known here, and those of a sentencepiece vocabulary. Anything else is refused by name.
"""
import json
from typing import Any

import numpy as np

from redlite.store.text import short
from redlite.text import spm
from redlite.text.spm import SPACE
from redlite.text.tokenizer_files import MAX_IDS, ROLES, Added, TokenizerFiles
from redlite.text.vocabulary import Vocabulary, byte_level, merge_ids, require_roles, sentencepiece

NAME = "tokenizer.json"
# The regular expressions that are known, with the name of their pattern in bpe.py.
SPLITS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+": "qwen2",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt-2",
}


def from_tokenizer_json(files: TokenizerFiles) -> Vocabulary:
    """From tokenizer.json and the files beside it. Raises Error."""
    core = files.json(NAME)
    model = files.an_object(NAME, core, "model")
    if model.get("type", "BPE") != "BPE":
        raise files.fail(NAME, f"model.type is {short(model.get('type'))}; redlite knows BPE")
    vocab, merges = _vocab(files, model)
    added = files.added(core)
    if model.get("byte_fallback") is True:
        return _metaspace(files, core, vocab, merges, added)
    pattern, normalizer = _pattern(files, core.get("pre_tokenizer")), core.get("normalizer")
    if normalizer is not None and normalizer != {"type": "NFC"}:
        raise files.fail(NAME, f"normalizer {short(json.dumps(normalizer))} is not known for byte-level BPE; "
                               "NFC or none is")
    roles = [files.token(f"{role}_token") for role in ROLES]
    known = vocab | {text: i for i, (text, _) in added.items()}
    bos, eos, pad = (known.get(text) if text else None for text in roles)
    ids = bos, eos, pad
    require_roles(files, roles, ids)
    add_bos = bos is not None and files.flag("add_bos_token", _bos_first(core, bos))
    return byte_level(vocab, merges, added, ids, pattern, ignore_merges=model.get("ignore_merges") is True,
                      nfc=normalizer is not None, add_bos=add_bos, chat_template=files.chat_template(),
                      fingerprint=files.fingerprint())


def _vocab(files: TokenizerFiles, model: dict[str, Any]) -> tuple[dict[str, int], np.ndarray]:
    """model.vocab, checked, and model.merges by `merge_ids`."""
    vocab = files.an_object(NAME, model, "vocab")
    if not vocab:
        raise files.fail(NAME, "model.vocab is empty")
    for token, id in vocab.items():
        if type(id) is not int or not 0 <= id < MAX_IDS:
            raise files.fail(NAME, f"model.vocab gives {short(token)} the id {short(id)}; "
                                   f"a number from 0 to {MAX_IDS - 1} is needed")
    if len(set(vocab.values())) != len(vocab):
        raise files.fail(NAME, "model.vocab gives two tokens one id")
    try:
        return vocab, merge_ids(vocab, files.a_list(NAME, model, "merges"))
    except ValueError as error:
        raise files.fail(NAME, f"model.merges: {error}") from None


def _steps(step: Any, inner: str) -> list:
    """The steps of a pipeline, which is one step or a "Sequence" that holds them under the key `inner`."""
    if isinstance(step, dict) and step.get("type") == "Sequence":
        steps = step.get(inner)
        return steps if isinstance(steps, list) else []
    return [step]


def _pattern(files: TokenizerFiles, pre: Any) -> str:
    """The pattern of bpe.py that a pre_tokenizer splits by."""
    steps = _steps(pre, "pretokenizers")
    kinds = [step.get("type") if isinstance(step, dict) else None for step in steps]
    if kinds and kinds[-1] == "ByteLevel" and steps[-1].get("add_prefix_space") is False:
        split = steps[-1].get("use_regex", True)
        if kinds == ["ByteLevel"] and split is True:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") is True and split is True:
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and split is False and steps[0].get("behavior") == "Isolated" \
                and steps[0].get("invert", False) is False:
            pattern = steps[0].get("pattern")
            expression = pattern.get("Regex") if isinstance(pattern, dict) else None
            if isinstance(expression, str) and expression in SPLITS:
                return SPLITS[expression]
    raise files.fail(NAME, f"pre_tokenizer {short(json.dumps(pre))} is not known; "
                           "redlite knows those of GPT-2, SmolLM2, Llama-3 and Qwen2")


def _bos_first(core: dict[str, Any], bos: int) -> bool:
    """Whether the post_processor puts the BOS token before a text. Only its first template counts."""
    for step in _steps(core.get("post_processor"), "processors"):
        if not isinstance(step, dict) or step.get("type") != "TemplateProcessing":
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


# ---- sentencepiece vocabularies ----

def _metaspace(files: TokenizerFiles, core: dict[str, Any], vocab: dict[str, int], merges: np.ndarray,
               added: Added) -> Vocabulary:
    """A sentencepiece vocabulary, given back to sentencepiece: a piece's score is −(rank of its first merge).

    That undoes how transformers writes such files: it lists the merges in the order of their pieces' scores.
    """
    space_prefix, legacy = _space_rule(files, core)
    pieces = sorted(vocab, key=vocab.__getitem__)
    if vocab[pieces[-1]] != len(pieces) - 1:
        raise files.fail(NAME, "model.vocab leaves out an id")
    rank: dict[int, int] = {}
    for i, whole in enumerate(merges[:, 2].tolist()):
        rank.setdefault(whole, i)
    unknown, kinds = core["model"].get("unk_token") or "<unk>", []
    for i, piece in enumerate(pieces):
        if piece == unknown:
            kinds.append(spm.UNKNOWN)
        elif spm.BYTE_NAME.fullmatch(piece):
            kinds.append(spm.BYTE)
        elif i in added:
            kinds.append(spm.CONTROL if added[i][1] else spm.USER_DEFINED)
        elif len(piece) == 1 or i in rank:
            kinds.append(spm.NORMAL)
        else:  # no merge makes this longer piece, so it can never come from text
            kinds.append(spm.CONTROL)
    scores = [-float(rank.get(i, len(merges))) for i in range(len(pieces))]
    try:
        model = spm.checked(spm.Model(pieces, scores, kinds, space_prefix=space_prefix))
    except ValueError as error:
        raise files.fail(NAME, f"model.vocab as a sentencepiece model: {error}") from None
    bos = files.token("bos_token")
    bos_first = bos in vocab and _bos_first(core, vocab[bos])
    return sentencepiece(files, NAME, model, added, legacy=legacy,
                         add_bos=files.flag("add_bos_token", bos_first))


def _space_rule(files: TokenizerFiles, core: dict[str, Any]) -> tuple[bool, bool]:
    """(whether a space goes before text, and before every segment of it) of a sentencepiece vocabulary."""
    normalizer, pre = core.get("normalizer"), core.get("pre_tokenizer")
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if pre is None:
        steps = _steps(normalizer, "normalizers")
        if steps == [{"type": "Prepend", "prepend": SPACE}, replace]:
            return True, True
        if steps == [replace]:
            return False, False
    if normalizer is None and isinstance(pre, dict) and pre.get("type") == "Metaspace" \
            and pre.get("replacement") == SPACE and pre.get("split") is False:
        usual = "always" if pre.get("add_prefix_space", True) is True else "never"
        scheme = pre.get("prepend_scheme", usual)
        if scheme in ("always", "first", "never"):
            return scheme != "never", scheme == "always"
    raise files.fail(NAME, f"normalizer {short(json.dumps(normalizer))} with pre_tokenizer "
                           f"{short(json.dumps(pre))} is not known for a sentencepiece vocabulary; "
                           "put the model's tokenizer.model beside it")
