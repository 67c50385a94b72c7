"""Vocabularies: what a Tokenizer is made of, and how one comes from a model's directory.

tokenizer.model is read here, tokenizer.json in tokenizer_json.py, tekken.json in tekken.py, a GGUF file's
metadata in gguf_vocabulary.py. Nothing in a file is believed. Every field is checked for its type before it
is used. What would change the ids and is not known is refused by name.
"""
from dataclasses import dataclass, field, replace
from itertools import repeat
from operator import add
from typing import NamedTuple

import numpy as np

from redlite.store.text import short
from redlite.text import bpe, spm
from redlite.text.added_tokens import PLAIN, Rule
from redlite.text.pipeline import Pipeline
from redlite.text.pretokenizer import Normalize, Split
from redlite.text.tokenizer_files import CONTROL_LOOK, ROLES, Added, RoleIds, TokenizerFiles


@dataclass(frozen=True)
class Vocabulary:
    """What a Tokenizer is made of.

    core           makes ids of plain text
    texts          the bytes of added tokens that the core does not know, by id
    special        control tokens: text → id, never made from text
    defined        added tokens that text may hold → id
    bos_id eos_id pad_id  None where the model has no such token
    add_bos        whether the model's files want bos_id before a text
    legacy         see tokenizer.py
    space_prefix   whether a space goes before text at all
    chat_template  the template text of the model's files, or None
    fingerprint    SHA-256 of the files or tables that decide the ids
    end_ids        tokens that end an answer beside eos_id, where a GGUF file has such
    rules          how added tokens are found, where that is not `added_tokens.PLAIN`: text → rule
    named          the texts of the tokens that a directory's files name, for chat templates: name → text
    """
    core: spm.SentencePiece | Pipeline
    texts: dict[int, bytes]
    special: dict[str, int]
    defined: dict[str, int]
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    add_bos: bool
    legacy: bool
    space_prefix: bool
    chat_template: str | None
    fingerprint: str
    end_ids: tuple[int, ...] = ()
    rules: dict[str, Rule] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)


def from_sentencepiece(files: TokenizerFiles) -> Vocabulary:
    """From tokenizer.model and the files beside it. Raises Error."""
    content = files.read("tokenizer.model")
    try:
        model = spm.parse(content)
    except ValueError as error:  # UnicodeDecodeError is one
        raise files.fail("tokenizer.model", f"is damaged or no sentencepiece model: {error}") from None
    return sentencepiece(files, "tokenizer.model", model, files.added({}),
                         legacy=files.flag("legacy", True), add_bos=files.flag("add_bos_token", True))


def sentencepiece(files: TokenizerFiles, name: str, model: spm.Model, added: Added, *, legacy: bool,
                  add_bos: bool) -> Vocabulary:
    """The vocabulary of a sentencepiece model that comes from the file `name`, with its added tokens."""
    roles = [files.token(f"{role}_token") for role in ROLES]
    kinds, size = list(model.kinds), len(model.pieces)
    texts: dict[int, bytes] = {}
    defined: dict[str, int] = {}
    special: dict[str, int] = {}
    for i, (piece, kind) in enumerate(zip(model.pieces, model.kinds, strict=True)):
        looks_like_control = kind == spm.USER_DEFINED and CONTROL_LOOK.fullmatch(piece)
        has_role = piece in roles and kind not in (spm.UNKNOWN, spm.BYTE)
        if looks_like_control or has_role:
            kinds[i] = spm.CONTROL
    for id, (text, control) in added.items():
        if id < size and model.pieces[id] != text:
            raise files.fail(name, f"gives the id {id} to {short(model.pieces[id])}, "
                                   f"and the model's other files give it to {short(text)}")
        if id >= size:
            texts[id] = text.encode("utf-8", "replace")
            (special if control else defined)[text] = id
        elif control and kinds[id] not in (spm.UNKNOWN, spm.BYTE):
            kinds[id] = spm.CONTROL
    space_prefix = model.space_prefix and files.flag("add_prefix_space", True)
    model = replace(model, kinds=kinds, space_prefix=space_prefix)
    special |= spm.controls(model)

    def role_id(number: int) -> int | None:
        if named := roles[number]:
            return special.get(named)
        if f"{ROLES[number]}_token" in files.config:  # which says that there is none
            return None
        return model.id(number)

    ids = role_id(0), role_id(1), role_id(2)
    require_roles(files, roles, ids)
    try:
        core = spm.SentencePiece(model)
    except ValueError as error:
        raise files.fail(name, f"as a sentencepiece model: {error}") from None
    return Vocabulary(core, texts, special, defined, *ids, add_bos=add_bos and ids[0] is not None,
                      legacy=legacy, space_prefix=space_prefix, chat_template=files.chat_template(),
                      fingerprint=files.fingerprint())


def require_roles(files: TokenizerFiles, roles: list[str | None], ids: RoleIds) -> None:
    """Raises Error if BOS or EOS is named and not there. A PAD that is not there is not needed either."""
    for role, text, id in zip(ROLES, roles, ids, strict=True):
        if text is not None and id is None and role != "pad":
            raise files.fail("tokenizer_config.json", f"{role}_token {short(text)} is not in the vocabulary")


class Texts(NamedTuple):
    """A vocabulary's texts → ids, by what they are: `plain` ones are what words are made of."""
    plain: dict[str, int]
    special: dict[str, int]
    defined: dict[str, int]


def sorted_texts(vocab: dict[str, int], added: Added, ids: RoleIds, unknown: str | None = None) -> Texts:
    """A vocabulary and its added tokens, apart.

    ids      of BOS, EOS and PAD, which are control tokens whatever the file calls them
    unknown  the token of unknown characters, which is one too
    """
    special = {text: i for i, (text, control) in added.items() if control or i in ids or text == unknown}
    roles = set(ids) - added.keys()     # a set, since a vocabulary is long
    if roles - {None} or unknown is not None:
        special |= {text: i for text, i in vocab.items() if i in roles or text == unknown and i not in added}
    defined = {text: i for i, (text, _) in added.items() if text not in special}
    controls = set(special.values())
    return Texts({text: i for text, i in vocab.items() if i not in controls}, special, defined)


def base_size(vocab: dict[str, int], added: Added) -> int:
    """One more than the highest id of a vocabulary, without the added tokens that it may list too."""
    return max(set(vocab.values()) - added.keys(), default=-1) + 1


def shown_texts(added: Added, rules: dict[str, Rule], normalize: Normalize | None) -> dict[int, str]:
    """Id → text of added tokens. Those that are looked for in normalized text are normalized themselves."""
    found = {}
    for id, (text, _) in added.items():
        late = normalize is not None and rules.get(text, PLAIN).normalized
        found[id] = normalize(text) if normalize is not None and late else text
    return found


def ranks_within(merges: np.ndarray, special: dict[str, int]) -> tuple[dict[int, int], list[int]]:
    """The ranks of merges, and what each makes, without those that have a control token's part."""
    merges = merges[~np.isin(merges, list(special.values())).any(axis=1)]
    return bpe.ranks_of(merges), merges[:, 2].tolist()


def byte_level(vocab: dict[str, int], merges: np.ndarray | None, added: Added, ids: RoleIds, split: Split, *,
               ignore_merges: bool, add_bos: bool, chat_template: str | None, fingerprint: str,
               normalize: Normalize | None = None, rules: dict[str, Rule] | None = None) -> Vocabulary:
    """A byte-level vocabulary; arguments as for `bpe.BPE`, `Pipeline` and `Vocabulary`.

    merges  as from `merge_ids`; None: tokens merge if they make a token together
    added   tokens beside the vocabulary
    """
    plain, special, defined = sorted_texts(vocab, added, ids)
    whole = (lambda word: bpe.in_alphabet(word.encode())) if ignore_merges else None
    ranks: bpe.Ranks
    made: list[int] | range
    if merges is None:
        ranks, made = bpe.Concatenations(plain), range(max(plain.values()) + 1)
    else:
        ranks, made = ranks_within(merges, special)
    model = bpe.BPE(plain, ranks, made, bpe.byte_symbols(plain), whole)
    rules = rules or {}
    shown = shown_texts(added, rules, normalize)
    texts = {id: text.encode("utf-8", "replace") for id, text in shown.items()}
    tokens = dict(zip(plain.values(), plain, strict=True))
    core = Pipeline(tokens, base_size(vocab, added), model, split, normalize, texts=texts)
    return Vocabulary(core, {}, special, defined, *ids, add_bos=add_bos, legacy=False, space_prefix=False,
                      chat_template=chat_template, fingerprint=fingerprint, rules=rules)


def merge_ids(vocab: dict[str, int], merges: list) -> np.ndarray:
    """int64 [merges, 3]: the ids of left, right and whole of each merge, "left right" or [left, right].

    Raises ValueError for an entry that is no pair of tokens of the vocabulary.
    """
    parts: list[str] = []
    if set(map(type, merges)) == {str} and set(map(str.count, merges, repeat(" "))) == {1}:
        parts = " ".join(merges).split(" ")     # one flat list: a hundred thousand pairs take long to make
    else:
        for i, merge in enumerate(merges):
            pair = merge.split(" ") if isinstance(merge, str) else merge
            if not isinstance(pair, list) or list(map(type, pair)) != [str, str]:
                raise ValueError(f"entry {i} is {short(merge)}; two tokens are needed")
            parts += pair
    lefts, rights = parts[::2], parts[1::2]
    columns = [np.fromiter(map(vocab.get, texts, repeat(-1)), np.int64, len(lefts))
               for texts in (lefts, rights, map(add, lefts, rights))]
    found = np.stack(columns, axis=1)
    if found.min(initial=0) < 0:
        i = int(np.flatnonzero((found < 0).any(axis=1))[0])
        raise ValueError(f"entry {i}, {short(merges[i])}, "
                         "has a part or a whole that is not in the vocabulary")
    return found
