"""Tokenizers: sentencepiece and byte-level BPE behind one class, read from a model's directory or GGUF file.

`encode` never makes a control token from text: `</s>` or `<|im_end|>` in a question are encoded as plain characters.
Only chat.py puts control tokens in, by id.

The space before text (sentencepiece models): sentencepiece puts one before every text it encodes. Where control tokens
cut a conversation into segments, the older convention (`legacy`: Meta's code, llama.cpp, tokenizer_config.json with
`legacy` true or absent) encodes each segment apart, so each gets the space; the newer one (`legacy: false`) gives it to
the first segment only. `encode_segment` follows the model's own files.
"""
import hashlib
import json
import math
import re
from pathlib import Path

from redlite import bpe, spm
from redlite.errors import Error
from redlite.gguf import GGUF, short

MAX_IDS = 1 << 24
CONTROL_LOOK = re.compile(r"<\|.*\|>|</?s>|<(unk|pad)>", re.S)  # control tokens, also where a model's files forget to say so
SPACE = "▁"
GGUF_PATTERNS = {"gpt-2": "gpt-2", "gpt2": "gpt-2", "smollm": "smollm", "starcoder": "smollm", "llama-bpe": "llama-bpe",
                 "llama3": "llama-bpe", "llama-v3": "llama-bpe", "qwen2": "qwen2", "deepseek-r1-qwen": "qwen2"}


class Tokenizer:
    """Text ↔ token ids.

    kind           "sentencepiece" or "byte-level"
    vocab_size     one more than the highest id
    special        text of each control token → its id
    bos_id eos_id pad_id  int or None
    add_bos        whether the model's files want bos_id before a text (`encode` itself never adds it)
    legacy         see the module's docstring; False for byte-level models, which have no such space
    chat_template  the template text of the model's files, or None
    """

    def __init__(self, core: spm.SentencePiece | bpe.ByteLevelBPE, texts: dict[int, bytes], special: dict[str, int], defined: dict[str, int], *,
                 bos_id: int | None, eos_id: int | None, pad_id: int | None, add_bos: bool, legacy: bool, space_prefix: bool,
                 chat_template: str | None, fingerprint: str):
        """texts: the bytes of added tokens, by id. defined: added tokens that text may hold → id."""
        self._core, self._texts, self._defined, self._fingerprint = core, texts, defined, fingerprint
        self.kind = "sentencepiece" if isinstance(core, spm.SentencePiece) else "byte-level"
        self.special, self.bos_id, self.eos_id, self.pad_id = special, bos_id, eos_id, pad_id
        self.add_bos, self.legacy, self.chat_template, self._space_prefix = add_bos, legacy, chat_template, space_prefix
        self.vocab_size = max(core.size, max(texts, default=-1) + 1)
        longest = sorted(defined, key=lambda t: (-len(t), t))
        self._cut = re.compile("(" + "|".join(map(re.escape, longest)) + ")").split if defined else None
        self._controls = frozenset(special.values())

    def encode(self, text: str) -> list[int]:
        """Ids of a whole text, without BOS or EOS. Lone surrogates become U+FFFD."""
        return self.encode_segment(text, True)

    def encode_segment(self, text: str, first: bool) -> list[int]:
        """Ids of a text that stands between control tokens; first: no other text comes before it (BOS does not count)."""
        text = _valid(text)
        if self._cut is None:
            return self._plain(text, first)
        ids: list[int] = []
        for i, part in enumerate(self._cut(text)):  # texts and added tokens by turns
            if i % 2:
                ids.append(self._defined[part])
            elif part:
                ids += self._plain(part, first and i == 0)
        return ids

    def _plain(self, text: str, first: bool) -> list[int]:
        if self.kind == "byte-level":
            return self._core.encode(text)
        return self._core.encode(text, self._space_prefix and (first or self.legacy))

    def encode_parts(self, parts: list[str], first: bool) -> list[list[int]]:
        """Ids of the parts' whole text as one segment, shared out: each token goes to the part in which it begins."""
        whole = self.encode_segment("".join(parts), first)
        shared, at = [], 0
        for i in range(1, len(parts)):
            lead = self.encode_segment("".join(parts[:i]), first)
            end = len(lead) if whole[:len(lead)] == lead else self._tokens_within(whole, sum(len(self.piece_bytes(t)) for t in lead))
            shared.append(whole[at:end])
            at = max(at, end)
        return [*shared, whole[at:]]

    def _tokens_within(self, ids: list[int], count: int) -> int:
        """How many tokens begin within the first `count` bytes."""
        for n, id in enumerate(ids):
            if count <= 0:
                return n
            count -= len(self.piece_bytes(id))
        return len(ids)

    def decode(self, ids: list[int]) -> str:
        """Text of ids; control tokens are left out, bytes that are not UTF-8 and ids outside the vocabulary show as U+FFFD."""
        ids = [i for i in ids if i not in self._controls]
        if self.kind == "byte-level":
            return b"".join(map(self.piece_bytes, ids)).decode("utf-8", "replace")
        out, run = [], []
        for i in [*ids, -1]:
            if 0 <= i < self._core.size:
                run.append(i)
                continue
            if run:
                out.append(self._core.decode(run, self._space_prefix and not out))
                run = []
            if i >= 0:
                out.append(self.piece_bytes(i).decode("utf-8", "replace"))
        return "".join(out)

    def piece_bytes(self, id: int) -> bytes:
        """The bytes that a token adds to the text (before sentencepiece's first space is cut); empty for control tokens."""
        if id in self._controls:
            return b""
        found = self._texts.get(id)
        if found is None:
            found = self._core.piece_bytes(id)
        return "\ufffd".encode() if found is None else found

    def fingerprint(self) -> str:
        """SHA-256 of the files or tables that decide the ids."""
        return self._fingerprint


def _valid(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # a pair of surrogates is one character, a lone one none
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def load(path) -> Tokenizer:
    """The tokenizer of a model: a directory (tokenizer.model, else tokenizer.json) or a .gguf file.

    Raises Error for files that are missing, damaged, or of a kind that redlite does not know.
    """
    path = Path(path)
    if path.is_file():
        return _from_gguf(path)
    if not path.is_dir():
        raise Error(f"{path}: there is no such model directory or GGUF file")
    files = _Files(path)
    if files.has("tokenizer.model"):
        return _from_sentencepiece(files)
    if files.has("tokenizer.json"):
        return _from_tokenizer_json(files)
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
            value = named.get("default")
            if value is None:
                raise self.fail("tokenizer_config.json", "chat_template is a list without one named 'default'; choose the format with --template")
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
                names.add(e.get("content") if isinstance(e, dict) else e if isinstance(e, str) else None)

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

def _sentencepiece(model: bytes, where: str) -> spm.SentencePiece:
    try:
        return spm.SentencePiece(model)
    except (RuntimeError, OSError) as error:
        raise Error(f"{where}: sentencepiece does not take it as a model ({' '.join(str(error).split())[:100]})") from None


def _from_sentencepiece(files: _Files, model: bytes | None = None, core: dict | None = None, legacy: bool | None = None,
                        space_prefix: bool | None = None) -> Tokenizer:
    """From tokenizer.model, or from a model built out of tokenizer.json (`core`)."""
    name = "tokenizer.json" if model else "tokenizer.model"
    content = model or files.read(name)
    if space_prefix is None:
        space_prefix = files.flag("add_prefix_space", True)
    words = _sentencepiece(content, str(files.path / name))
    added = files.added(core or {})
    special = {words.model.IdToPiece(i): i for i in range(words.size) if words.kind(i) in (spm.CONTROL, spm.UNKNOWN)}
    texts, defined = {}, {}
    for id, (text, control) in added.items():
        if id < words.size and words.model.IdToPiece(id) != text and model is None:
            raise files.fail("added_tokens", f"token {short(text)} has id {id}, which {name} gives to {short(words.model.IdToPiece(id))}")
        if control:
            special[text] = id
        elif id >= words.size:
            defined[text] = id
        if id >= words.size:
            texts[id] = text.encode("utf-8", "replace")
    ids = _named(files, lambda t: special.get(t, defined.get(t)))
    for role, found in (("bos", words.model.bos_id()), ("eos", words.model.eos_id()), ("pad", words.model.pad_id())):
        if ids[role] is None and f"{role}_token" not in files.config and found >= 0:
            ids[role] = found
    return Tokenizer(words, texts, special, defined, bos_id=ids["bos"], eos_id=ids["eos"], pad_id=ids["pad"],
                     add_bos=files.flag("add_bos_token", ids["bos"] is not None), legacy=files.flag("legacy", True) if legacy is None else legacy,
                     space_prefix=space_prefix, chat_template=files.chat_template(), fingerprint=files.fingerprint())


def _named(files: _Files, find) -> dict[str, int | None]:
    """The ids of bos, eos and pad, as the files name them."""
    ids: dict[str, int | None] = {}
    for role in ("bos", "eos", "pad"):
        text = files.token(f"{role}_token")
        ids[role] = None if text is None else find(text)
        if text is not None and ids[role] is None and role != "pad":
            raise files.fail("tokenizer_config.json", f"{role}_token {short(text)} is not in the vocabulary")
    return ids


# ---- tokenizer.json ----

SPLITS = {  # the regular expressions of tokenizer.json files that this module knows, as their pattern in bpe.py
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt-2",
}


def _from_tokenizer_json(files: _Files) -> Tokenizer:
    name = "tokenizer.json"
    core = files.json(name)
    model = _dict(files, name, core, "model")
    if model.get("type", "BPE") != "BPE":
        raise files.fail(name, f"model.type is {short(model.get('type'))}; redlite knows BPE")
    vocab, merges = _vocab(files, model)
    if model.get("byte_fallback") is True:
        return _metaspace(files, core, vocab, merges)
    pattern = _pattern(files, core.get("pre_tokenizer"))
    normalizer = core.get("normalizer")
    if normalizer is not None and normalizer != {"type": "NFC"}:
        raise files.fail(name, f"normalizer {short(json.dumps(normalizer))} is not known for byte-level BPE; NFC or none is")
    words = bpe.ByteLevelBPE(vocab, merges, pattern, ignore_merges=model.get("ignore_merges") is True, nfc=normalizer is not None)
    return _byte_level(words, vocab, files.added(core), lambda find: _named(files, find), lambda bos: files.flag("add_bos_token", _bos_first(core, bos)),
                       files.chat_template(), files.fingerprint())


def _byte_level(words, vocab, added, named, add_bos, chat_template, fingerprint) -> Tokenizer:
    """The part that tokenizer.json and GGUF have in common."""
    special = {t: i for i, (t, control) in added.items() if control}
    defined = {t: i for i, (t, control) in added.items() if not control}
    texts = {i: t.encode("utf-8", "replace") for i, (t, _) in added.items()}
    ids = named(lambda t: special.get(t, defined.get(t, vocab.get(t))))
    for text, i in list(defined.items()):  # what begins or ends a text is a control token, whatever the file calls it
        if i in ids.values():
            special[text] = defined.pop(text)
    return Tokenizer(words, texts, special, defined, bos_id=ids["bos"], eos_id=ids["eos"], pad_id=ids["pad"],
                     add_bos=ids["bos"] is not None and add_bos(ids["bos"]), legacy=False, space_prefix=False, chat_template=chat_template,
                     fingerprint=fingerprint)


def _vocab(files: _Files, model: dict) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """model.vocab and model.merges, checked: merges are pairs whose parts and whole are in the vocabulary."""
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
        return vocab, merge_pairs(vocab, _list(files, name, model, "merges"))
    except ValueError as error:
        raise files.fail(name, f"model.merges: {error}") from None


def merge_pairs(vocab: dict[str, int], merges: list) -> list[tuple[str, str]]:
    """Merges as pairs; each is "left right" or [left, right]. Raises ValueError."""
    pairs = []
    for i, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str) or not isinstance(pair[1], str):
            raise ValueError(f"entry {i} is {short(merge)}; two tokens are needed")
        if pair[0] not in vocab or pair[1] not in vocab or pair[0] + pair[1] not in vocab:
            raise ValueError(f"entry {i}, {short(merge)}, has a part or a whole that is not in the vocabulary")
        pairs.append((pair[0], pair[1]))
    return pairs


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


def _metaspace(files: _Files, core: dict, vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """A sentencepiece vocabulary in a tokenizer.json, given back to sentencepiece: a piece's score is minus the rank of its first merge."""
    name = "tokenizer.json"
    space_prefix, legacy = _space_rule(files, core)
    added = files.added(core)
    if len(vocab) < max(vocab.values()) + 1:
        raise files.fail(name, "model.vocab leaves out an id")
    pieces = sorted(vocab, key=vocab.__getitem__)
    rank: dict[str, int] = {}
    for i, (left, right) in enumerate(merges):
        rank.setdefault(left + right, i)
    unknown = _dict(files, name, core, "model").get("unk_token") or "<unk>"
    kinds = []
    for i, piece in enumerate(pieces):
        if piece == unknown:
            kinds.append(spm.UNKNOWN)
        elif re.fullmatch("<0x[0-9A-F]{2}>", piece):
            kinds.append(spm.BYTE)
        elif i in added and not added[i][1]:
            kinds.append(spm.USER_DEFINED)
        else:  # a longer piece that no merge makes can never come from text
            kinds.append(spm.NORMAL if (len(piece) == 1 or piece in rank) and not (i in added and added[i][1]) else spm.CONTROL)
    if kinds.count(spm.UNKNOWN) != 1 or kinds.count(spm.BYTE) != 256:
        raise files.fail(name, f"model.vocab needs the unknown token {short(unknown)} and 256 byte tokens <0x00> to <0xFF>")
    built = spm.build(pieces, [-float(rank.get(p, len(merges))) for p in pieces], kinds)
    tokenizer = _from_sentencepiece(files, built, core, legacy, space_prefix)
    if "add_bos_token" not in files.config and tokenizer.bos_id is not None:
        tokenizer.add_bos = _bos_first(core, tokenizer.bos_id)
    return tokenizer


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


# ---- GGUF ----

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

    def numbers(self, key: str, count: int) -> list | None:
        value = self.values.get(f"tokenizer.{key}")
        if value is not None and (not hasattr(value, "tolist") or len(value) != count):
            raise self.fail(key, f"is not an array of {count} numbers, one a token")
        return None if value is None else value.tolist()

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


def _from_gguf(path: Path) -> Tokenizer:
    with GGUF(path) as file:
        table = _Table(path, file.metadata)
    model = table.get("ggml.model", str, "a text")
    tokens = table.texts("ggml.tokens") if model else []
    kinds = table.numbers("ggml.token_type", len(tokens)) or [spm.NORMAL] * len(tokens)
    ids = {"bos": table.id("bos", len(tokens)), "eos": table.id("eos", len(tokens)), "pad": table.id("padding", len(tokens))}
    if model == "llama":
        return _gguf_llama(table, tokens, kinds, ids)
    if model == "gpt2":
        return _gguf_byte_level(table, tokens, kinds, ids)
    raise table.fail("ggml.model", f"is {short(model)}; redlite knows llama (sentencepiece) and gpt2 (byte-level BPE)")


def _gguf_llama(table: _Table, tokens: list[str], kinds: list[int], ids: dict[str, int | None]) -> Tokenizer:
    scores = table.numbers("ggml.scores", len(tokens))
    if scores is None or not all(map(math.isfinite, scores)):
        raise table.fail("ggml.scores", "is missing or holds numbers that are not finite")
    if not set(kinds) <= set(range(1, 7)):
        raise table.fail("ggml.token_type", "holds a type that is not 1 to 6")
    if kinds.count(spm.UNKNOWN) != 1:
        raise table.fail("ggml.token_type", f"marks {kinds.count(spm.UNKNOWN)} unknown tokens; sentencepiece needs one")
    kinds = [spm.CONTROL if k == spm.USER_DEFINED and CONTROL_LOOK.fullmatch(t) else k for k, t in zip(kinds, tokens)]
    space_prefix = table.get("ggml.add_space_prefix", bool, "true or false")
    words = _sentencepiece(spm.build(tokens, scores, kinds, True), str(table.path))
    special = {t: i for i, (t, k) in enumerate(zip(tokens, kinds)) if k in (spm.CONTROL, spm.UNKNOWN)}
    add_bos = table.get("ggml.add_bos_token", bool, "true or false")
    return Tokenizer(words, {}, special, {}, bos_id=ids["bos"], eos_id=ids["eos"], pad_id=ids["pad"],
                     add_bos=ids["bos"] is not None and add_bos is not False, legacy=True, space_prefix=space_prefix is not False,
                     chat_template=table.get("chat_template", str, "a text"), fingerprint=table.fingerprint())


def _gguf_byte_level(table: _Table, tokens: list[str], kinds: list[int], ids: dict[str, int | None]) -> Tokenizer:
    pre = table.get("ggml.pre", str, "a text")
    if pre not in GGUF_PATTERNS:
        raise table.fail("ggml.pre", f"is {short(pre)}; redlite knows {', '.join(GGUF_PATTERNS)}")
    vocab = {t: i for i, t in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise table.fail("ggml.tokens", "holds a token twice")
    try:
        merges = merge_pairs(vocab, table.texts("ggml.merges"))
    except ValueError as error:
        raise table.fail("ggml.merges", str(error)) from None
    pattern = GGUF_PATTERNS[pre]
    added = {i: (t, k != spm.USER_DEFINED or CONTROL_LOOK.fullmatch(t) is not None or i in ids.values())
             for i, (t, k) in enumerate(zip(tokens, kinds)) if k in (spm.UNKNOWN, spm.CONTROL, spm.USER_DEFINED) and t}
    words = bpe.ByteLevelBPE(vocab, merges, pattern, ignore_merges=pattern == "llama-bpe", nfc=pattern == "qwen2")
    add_bos = table.get("ggml.add_bos_token", bool, "true or false")
    return _byte_level(words, vocab, added, lambda find: ids, lambda bos: add_bos is True or (add_bos is None and pattern == "llama-bpe"),
                       table.get("chat_template", str, "a text"), table.fingerprint())
