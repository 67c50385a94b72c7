"""Vocabularies from a model's directory: tokenizer.model or tokenizer.json, and their side files.

Nothing in a file is believed: every field is checked for its type before it is used, and what would change the ids and is
not known is refused by name.
"""
import hashlib
import json
import re
from dataclasses import dataclass, replace
from itertools import repeat
from operator import add
from pathlib import Path

import numpy as np

from redlite.errors import Error
from redlite.store.text import short
from redlite.text import bpe, spm
from redlite.text.spm import SPACE

MAX_IDS = 1 << 24
CONTROL_LOOK = re.compile(r"<\|.*\|>|</?s>|<(unk|pad)>", re.S)  # control tokens, also where a model's files forget to say so
ROLES = ("bos", "eos", "pad")


@dataclass(frozen=True)
class Vocabulary:
    """What a Tokenizer is made of.

    texts          the bytes of added tokens, by id
    special        control tokens: text → id, never made from text
    defined        added tokens that text may hold → id
    legacy         see tokenizer.py
    space_prefix   a space goes before text at all
    fingerprint    SHA-256 of the files or tables that decide the ids
    """
    core: spm.SentencePiece | bpe.ByteLevelBPE
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


def read(path: Path) -> Vocabulary:
    """From a directory: tokenizer.model, else tokenizer.json. Raises Error."""
    if not path.is_dir():
        raise Error(f"{path}: there is no such model directory or GGUF file")
    try:
        files = _Files(path)
        if files.has("tokenizer.model"):
            return _from_sentencepiece(files)
        if files.has("tokenizer.json"):
            return _from_tokenizer_json(files)
    except RecursionError:
        raise Error(f"{path}: a JSON file of the tokenizer is nested too deeply") from None
    raise Error(f"{path}: has neither tokenizer.model nor tokenizer.json; copy the model's tokenizer there")


# ---- files of a directory ----

class _Files:
    """The tokenizer files of a directory, parsed once and hashed as they are read."""

    def __init__(self, path: Path):
        self.path, self._hash, self._parsed = path, hashlib.sha256(), {}
        self.config = self.json("tokenizer_config.json")
        self.map = self.json("special_tokens_map.json")
        self.more = self.json("added_tokens.json")

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def read(self, name: str) -> bytes:
        try:
            content = (self.path / name).read_bytes()
        except OSError as error:
            raise Error(f"{self.path / name}: cannot be read ({error.strerror})") from None
        self._hash.update(f"{name} {len(content)}\n".encode() + content)
        return content

    def json(self, name: str) -> dict:
        """A JSON object; {} where there is no such file."""
        if not self.has(name):
            return {}
        if name not in self._parsed:
            self._parsed[name] = parse_json(self.read(name), self.path / name)
        return self._parsed[name]

    def fail(self, name: str, what: str) -> Error:
        return Error(f"{self.path / name}: {what}")

    def fingerprint(self) -> str:
        return self._hash.hexdigest()

    def flag(self, key: str, default: bool) -> bool:
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail("tokenizer_config.json", f"{key} is {short(value)}; true or false is needed")
        return value

    def token(self, role: str) -> str | None:
        """The text of bos_token, eos_token, …; None where the files name none."""
        for name, source in (("tokenizer_config.json", self.config), ("special_tokens_map.json", self.map)):
            value = source.get(role)
            if isinstance(value, dict):
                value = value.get("content")
            if value is not None and not isinstance(value, str):
                raise self.fail(name, f"{role} is {short(source.get(role))}; a text is needed")
            if value is not None or role in source:
                return value
        return None

    def chat_template(self) -> str | None:
        """chat_template.jinja, else chat_template of tokenizer_config.json: a text, or a list of named ones of which "default" counts."""
        if self.has("chat_template.jinja"):
            try:
                return self.read("chat_template.jinja").decode()
            except UnicodeDecodeError:
                raise self.fail("chat_template.jinja", "is not UTF-8") from None
        value = self.config.get("chat_template")
        if isinstance(value, list):
            named = {e.get("name"): e.get("template") for e in value if isinstance(e, dict) and isinstance(e.get("name"), str)}
            value = named.get("default")  # none: the model's name or --template must say the format
        if value is not None and not isinstance(value, str):
            raise self.fail("tokenizer_config.json", f"chat_template is {short(value)}; a text is needed")
        return value

    def added(self, core: dict) -> dict[int, tuple[str, bool]]:
        """id → (text, is a control token) from tokenizer.json (`core`), tokenizer_config.json and added_tokens.json."""
        found: dict[int, tuple[str, bool]] = {}
        names = {self.token(role) for role in ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")}
        for source in (self.config, self.map):
            extra = source.get("additional_special_tokens") or []
            for e in extra if isinstance(extra, list) else []:
                e = e.get("content") if isinstance(e, dict) else e
                names.update([e] if isinstance(e, str) else [])

        def put(file: str, id, text, special) -> None:
            if not isinstance(text, str) or not text or type(id) is not int or not 0 <= id < MAX_IDS:
                raise self.fail(file, f"added token {short(text)} has id {short(id)}; a text and an id from 0 to {MAX_IDS - 1} are needed")
            control = special is True or text in names or CONTROL_LOOK.fullmatch(text) is not None
            if id in found and found[id][0] != text:
                raise self.fail(file, f"added token {short(text)} has id {id}, and so has {short(found[id][0])}")
            found[id] = (text, control or (id in found and found[id][1]))

        for entry in _list(self, "tokenizer.json", core, "added_tokens"):
            if not isinstance(entry, dict):
                raise self.fail("tokenizer.json", "added_tokens holds something that is not an object")
            put("tokenizer.json", entry.get("id"), entry.get("content"), entry.get("special"))
        for key, entry in _dict(self, "tokenizer_config.json", self.config, "added_tokens_decoder").items():
            if not isinstance(entry, dict) or not key.isdecimal() or len(key) > 9:
                raise self.fail("tokenizer_config.json", f"added_tokens_decoder has the entry {short(key)}; an id with an object is needed")
            put("tokenizer_config.json", int(key), entry.get("content"), entry.get("special"))
        for text, id in self.more.items():
            put("added_tokens.json", id, text, False)
        return found


def parse_json(content: bytes, path: Path) -> dict:
    """A JSON object from a file's bytes, or Error."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:  # bad UTF-8 and over-long integers are ValueErrors too
        raise Error(f"{path}: is not JSON ({' '.join(str(error).split())[:80]})") from None
    if not isinstance(value, dict):
        raise Error(f"{path}: a JSON object is needed at its top")
    return value


def _typed(files: _Files, name: str, where: dict, key: str, kind: type, word: str):
    value = where.get(key)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise files.fail(name, f"{key} is {short(value)}; {word} is needed")
    return value


def _list(files: _Files, name: str, where: dict, key: str) -> list:
    return _typed(files, name, where, key, list, "a list")


def _dict(files: _Files, name: str, where: dict, key: str) -> dict:
    return _typed(files, name, where, key, dict, "an object")


# ---- sentencepiece ----

def _from_sentencepiece(files: _Files) -> Vocabulary:
    content = files.read("tokenizer.model")
    try:
        model = spm.parse(content)
    except ValueError as error:  # UnicodeDecodeError is one
        raise files.fail("tokenizer.model", f"is damaged or no sentencepiece model: {error}") from None
    return _sentencepiece(files, "tokenizer.model", model, files.added({}), files.flag("legacy", True), files.flag("add_bos_token", True))


def _sentencepiece(files: _Files, name: str, model: spm.Model, added: dict[int, tuple[str, bool]], legacy: bool, add_bos: bool) -> Vocabulary:
    """`model` comes from the file `name`."""
    texts, defined, special, kinds, size = {}, {}, {}, list(model.kinds), len(model.pieces)
    roles = [files.token(f"{role}_token") for role in ROLES]
    for i, (piece, kind) in enumerate(zip(model.pieces, kinds)):
        if kind == spm.USER_DEFINED and CONTROL_LOOK.fullmatch(piece) or piece in roles and kind not in (spm.UNKNOWN, spm.BYTE):
            kinds[i] = spm.CONTROL
    for id, (text, control) in added.items():
        if id < size and model.pieces[id] != text:
            raise files.fail(name, f"gives the id {id} to {short(model.pieces[id])}, and the model's other files give it to {short(text)}")
        if id >= size:
            texts[id] = text.encode("utf-8", "replace")
            (special if control else defined)[text] = id
        elif control and kinds[id] not in (spm.UNKNOWN, spm.BYTE):
            kinds[id] = spm.CONTROL
    model = replace(model, kinds=kinds, space_prefix=model.space_prefix and files.flag("add_prefix_space", True))
    special.update((piece, i) for i, (piece, kind) in enumerate(zip(model.pieces, kinds)) if kind in (spm.CONTROL, spm.UNKNOWN))
    ids = [special.get(text) if text else None if f"{role}_token" in files.config else model.id(n) for n, (role, text) in enumerate(zip(ROLES, roles))]
    _found(files, roles, ids)
    try:
        core = spm.SentencePiece(model)
    except ValueError as error:
        raise files.fail(name, f"as a sentencepiece model: {error}") from None
    return Vocabulary(core, texts, special, defined, *ids, add_bos=add_bos and ids[0] is not None, legacy=legacy, space_prefix=model.space_prefix,
                      chat_template=files.chat_template(), fingerprint=files.fingerprint())


def _found(files: _Files, roles: list[str | None], ids: list[int | None]) -> None:
    """BOS and EOS that are named must be there. A PAD that is not there is not needed either."""
    for role, text, id in zip(ROLES, roles, ids):
        if text is not None and id is None and role != "pad":
            raise files.fail("tokenizer_config.json", f"{role}_token {short(text)} is not in the vocabulary")


# ---- tokenizer.json ----

SPLITS = {  # the regular expressions of tokenizer.json files that this module knows, as their pattern in bpe.py
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt-2",
}


def _from_tokenizer_json(files: _Files) -> Vocabulary:
    name = "tokenizer.json"
    core = files.json(name)
    model = _dict(files, name, core, "model")
    if model.get("type", "BPE") != "BPE":
        raise files.fail(name, f"model.type is {short(model.get('type'))}; redlite knows BPE")
    vocab, merges = _vocab(files, model)
    added = files.added(core)
    if model.get("byte_fallback") is True:
        return _metaspace(files, core, vocab, merges, added)
    pattern, normalizer = _pattern(files, core.get("pre_tokenizer")), core.get("normalizer")
    if normalizer is not None and normalizer != {"type": "NFC"}:
        raise files.fail(name, f"normalizer {short(json.dumps(normalizer))} is not known for byte-level BPE; NFC or none is")
    roles = [files.token(f"{role}_token") for role in ROLES]
    known = {**vocab, **{text: i for i, (text, _) in added.items()}}
    ids = [known.get(text) if text else None for text in roles]
    _found(files, roles, ids)
    add_bos = ids[0] is not None and files.flag("add_bos_token", _bos_first(core, ids[0]))
    return byte_level(vocab, merges, added, ids, pattern, ignore_merges=model.get("ignore_merges") is True, nfc=normalizer is not None, add_bos=add_bos,
                      chat_template=files.chat_template(), fingerprint=files.fingerprint())


def byte_level(vocab: dict[str, int], merges: np.ndarray, added: dict[int, tuple[str, bool]], ids: list[int | None], pattern: str, *,
               ignore_merges: bool, nfc: bool, add_bos: bool, chat_template: str | None, fingerprint: str) -> Vocabulary:
    """added: id → (text, is a control token). ids: of BOS, EOS and PAD, which are control tokens whatever the file calls them."""
    named = {i: t for t, i in vocab.items() if i in ids and i not in added}
    special = {t: i for i, (t, control) in added.items() if control or i in ids} | {t: i for i, t in named.items()}
    defined = {t: i for i, (t, _) in added.items() if t not in special}
    controls = set(special.values())
    plain = {t: i for t, i in vocab.items() if i not in controls}
    core = bpe.ByteLevelBPE(plain, merges[~np.isin(merges, list(controls)).any(axis=1)], pattern, ignore_merges=ignore_merges, nfc=nfc)
    return Vocabulary(core, {i: t.encode("utf-8", "replace") for i, (t, _) in added.items()}, special, defined, *ids, add_bos=add_bos, legacy=False,
                      space_prefix=False, chat_template=chat_template, fingerprint=fingerprint)


def _vocab(files: _Files, model: dict) -> tuple[dict[str, int], np.ndarray]:
    """model.vocab, checked, and model.merges by `merge_ids`."""
    name = "tokenizer.json"
    vocab = _dict(files, name, model, "vocab")
    if not vocab:
        raise files.fail(name, "model.vocab is empty")
    for token, id in vocab.items():
        if type(id) is not int or not 0 <= id < MAX_IDS:
            raise files.fail(name, f"model.vocab gives {short(token)} the id {short(id)}; a number from 0 to {MAX_IDS - 1} is needed")
    if len(set(vocab.values())) != len(vocab):
        raise files.fail(name, "model.vocab gives two tokens one id")
    try:
        return vocab, merge_ids(vocab, _list(files, name, model, "merges"))
    except ValueError as error:
        raise files.fail(name, f"model.merges: {error}") from None


def merge_ids(vocab: dict[str, int], merges: list) -> np.ndarray:
    """int64 [merges, 3]: the ids of left, right and whole of merges, each "left right" or [left, right]. Raises ValueError."""
    if all(isinstance(merge, str) and merge.count(" ") == 1 for merge in merges):  # one flat list: a hundred thousand pairs take long to make
        parts = " ".join(merges).split(" ") if merges else []
    else:
        parts = []
        for i, merge in enumerate(merges):
            pair = merge.split(" ") if isinstance(merge, str) else merge
            if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str) or not isinstance(pair[1], str):
                raise ValueError(f"entry {i} is {short(merge)}; two tokens are needed")
            parts += pair
    lefts, rights = parts[::2], parts[1::2]
    found = np.array([list(map(vocab.get, texts, repeat(-1))) for texts in (lefts, rights, map(add, lefts, rights))], np.int64).T
    if found.min(initial=0) < 0:
        i = int(np.flatnonzero((found < 0).any(axis=1))[0])
        raise ValueError(f"entry {i}, {short(merges[i])}, has a part or a whole that is not in the vocabulary")
    return found


def _pattern(files: _Files, pre) -> str:
    """The pattern of bpe.py for a pre_tokenizer."""
    steps = pre.get("pretokenizers") if isinstance(pre, dict) and pre.get("type") == "Sequence" else [pre]
    steps = steps if isinstance(steps, list) and all(isinstance(s, dict) for s in steps) else []
    kinds = [s.get("type") for s in steps]
    if steps and kinds[-1] == "ByteLevel" and steps[-1].get("add_prefix_space") is False:
        split = steps[-1].get("use_regex", True)
        if kinds == ["ByteLevel"] and split is True:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") is True and split is True:
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and split is False and steps[0].get("behavior") == "Isolated" and steps[0].get("invert", False) is False:
            pattern = steps[0].get("pattern")
            expression = pattern.get("Regex") if isinstance(pattern, dict) else None
            if isinstance(expression, str) and expression in SPLITS:
                return SPLITS[expression]
    raise files.fail("tokenizer.json", f"pre_tokenizer {short(json.dumps(pre))} is not known; redlite knows those of GPT-2, SmolLM2, Llama-3 and Qwen2")


def _bos_first(core: dict, bos: int) -> bool:
    """Whether the post_processor of tokenizer.json puts the BOS token before a text."""
    post = core.get("post_processor")
    steps = post.get("processors") if isinstance(post, dict) and post.get("type") == "Sequence" else [post]
    for step in steps if isinstance(steps, list) else []:
        if isinstance(step, dict) and step.get("type") == "TemplateProcessing" and isinstance(step.get("single"), list) and step["single"]:
            first, tokens = step["single"][0], step.get("special_tokens")
            token = first.get("SpecialToken") if isinstance(first, dict) else None
            entry = tokens.get(str(token.get("id"))) if isinstance(token, dict) and isinstance(tokens, dict) else None
            return isinstance(entry, dict) and entry.get("ids") == [bos]
    return False


def _metaspace(files: _Files, core: dict, vocab: dict[str, int], merges: np.ndarray, added: dict[int, tuple[str, bool]]) -> Vocabulary:
    """A sentencepiece vocabulary in a tokenizer.json, given back to sentencepiece: a piece's score is minus the rank of its first merge.

    That undoes how transformers writes such files (its converter lists the merges of each piece in the order of the scores).
    """
    name = "tokenizer.json"
    space_prefix, legacy = _space_rule(files, core)
    pieces = sorted(vocab, key=vocab.__getitem__)
    if vocab[pieces[-1]] != len(pieces) - 1:
        raise files.fail(name, "model.vocab leaves out an id")
    rank: dict[int, int] = {}
    for i, whole in enumerate(merges[:, 2].tolist()):
        rank.setdefault(whole, i)
    unknown, kinds = core["model"].get("unk_token") or "<unk>", []
    for i, piece in enumerate(pieces):
        if piece == unknown:
            kinds.append(spm.UNKNOWN)
        elif re.fullmatch("<0x[0-9A-F]{2}>", piece):
            kinds.append(spm.BYTE)
        elif i in added:
            kinds.append(spm.CONTROL if added[i][1] else spm.USER_DEFINED)
        else:  # a longer piece that no merge makes can never come from text
            kinds.append(spm.NORMAL if len(piece) == 1 or i in rank else spm.CONTROL)
    try:
        model = spm.checked(spm.Model(pieces, [-float(rank.get(i, len(merges))) for i in range(len(pieces))], kinds, space_prefix=space_prefix))
    except ValueError as error:
        raise files.fail(name, f"model.vocab as a sentencepiece model: {error}") from None
    bos = files.token("bos_token")
    return _sentencepiece(files, name, model, added, legacy, files.flag("add_bos_token", bos in vocab and _bos_first(core, vocab[bos])))


def _space_rule(files: _Files, core: dict) -> tuple[bool, bool]:
    """(a space goes before text, before every segment) from the normalizer and pre_tokenizer of a sentencepiece-like tokenizer.json."""
    normalizer, pre = core.get("normalizer"), core.get("pre_tokenizer")
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if pre is None:
        steps = normalizer.get("normalizers") if isinstance(normalizer, dict) and normalizer.get("type") == "Sequence" else [normalizer]
        if steps == [{"type": "Prepend", "prepend": SPACE}, replace]:
            return True, True
        if steps == [replace]:
            return False, False
    if normalizer is None and isinstance(pre, dict) and pre.get("type") == "Metaspace" and pre.get("replacement") == SPACE and pre.get("split") is False:
        scheme = pre.get("prepend_scheme", "always" if pre.get("add_prefix_space", True) is True else "never")
        if scheme in ("always", "first", "never"):
            return scheme != "never", scheme == "always"
    raise files.fail("tokenizer.json", f"normalizer {short(json.dumps(normalizer))} with pre_tokenizer {short(json.dumps(pre))} is not known for a "
                     "sentencepiece vocabulary; put the model's tokenizer.model beside it")
