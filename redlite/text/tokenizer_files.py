"""The tokenizer files of a model's directory: parsed once, hashed as they are read, types checked."""
import hashlib
import json
import re
from pathlib import Path
from typing import Any, TypeVar

from redlite.errors import Error
from redlite.store.files import check_fetched, unreadable
from redlite.store.text import short
from redlite.text.added_tokens import Rule

MAX_IDS = 1 << 24
MAX_DIGITS = 9  # of an id that is a key of a JSON object
# Control tokens, also where a model's files forget to say so.
CONTROL_LOOK = re.compile(r"<\|.*\|>|</?s>|<(unk|pad)>", re.S)
ROLES = ("bos", "eos", "pad")
CONTROL_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
RoleIds = tuple[int | None, int | None, int | None]  # of BOS, EOS and PAD
Added = dict[int, tuple[str, bool]]  # tokens beside the vocabulary: id → (text, is a control token)
T = TypeVar("T", dict, list)


class TokenizerFiles:
    """The files of one directory.

    config  tokenizer_config.json, {} where there is none
    map     special_tokens_map.json, likewise
    more    added_tokens.json, likewise
    """

    def __init__(self, path: Path):
        self.path, self._hash = path, hashlib.sha256()
        self._parsed: dict[str, dict[str, Any]] = {}
        self.config = self.json("tokenizer_config.json")
        self.map = self.json("special_tokens_map.json")
        self.more = self.json("added_tokens.json")

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def read(self, name: str) -> bytes:
        try:
            content = (self.path / name).read_bytes()
        except OSError as error:
            raise unreadable(self.path / name, error) from None
        check_fetched(self.path / name, content[:32])
        self._hash.update(f"{name} {len(content)}\n".encode() + content)
        return content

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object; {} where there is no such file."""
        if not self.has(name):
            return {}
        if name not in self._parsed:
            self._parsed[name] = parse_json(self.read(name), self.path / name)
        return self._parsed[name]

    def fail(self, name: str, what: str) -> Error:
        return Error(f"{self.path / name}: {what}")

    def fingerprint(self) -> str:
        """SHA-256 of the files that were read so far."""
        return self._hash.hexdigest()

    def flag(self, key: str, default: bool) -> bool:
        """A truth value of tokenizer_config.json."""
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail("tokenizer_config.json", f"{key} is {short(value)}; true or false is needed")
        return value

    def a_list(self, name: str, where: dict[str, Any], key: str) -> list:
        """where[key], from the file `name`; [] where there is none."""
        return self._typed(name, where, key, list, "a list")

    def an_object(self, name: str, where: dict[str, Any], key: str) -> dict:
        """where[key], from the file `name`; {} where there is none."""
        return self._typed(name, where, key, dict, "an object")

    def _typed(self, name: str, where: dict[str, Any], key: str, kind: type[T], word: str) -> T:
        value = where.get(key)
        if value is None:
            return kind()
        if not isinstance(value, kind):
            raise self.fail(name, f"{key} is {short(value)}; {word} is needed")
        return value

    def token(self, role: str) -> str | None:
        """The text of bos_token, eos_token and so on; None where the files name none."""
        for name, source in (("tokenizer_config.json", self.config), ("special_tokens_map.json", self.map)):
            value = source.get(role)
            if isinstance(value, dict):
                value = value.get("content")
            if value is not None and not isinstance(value, str):
                raise self.fail(name, f"{role} is {short(source.get(role))}; a text is needed")
            if value is not None or role in source:
                return value
        return None

    def named(self) -> dict[str, str]:
        """The texts of all tokens that the files name: bos_token, unk_token, image_token and so on.

        transformers 5 gives them to chat templates under these names.
        """
        found: dict[str, str] = {}
        for source in (self.map, self.config):
            extra = source.get("extra_special_tokens")
            for name, value in {**source, **(extra if isinstance(extra, dict) else {})}.items():
                text = value.get("content") if isinstance(value, dict) else value
                if name.endswith("_token") and isinstance(text, str):
                    found[name] = text
        return found

    def chat_template(self) -> str | None:
        """chat_template.jinja, else tokenizer_config.json's (of a list of named ones, "default"), or None."""
        if self.has("chat_template.jinja"):
            try:
                return self.read("chat_template.jinja").decode()
            except UnicodeDecodeError:
                raise self.fail("chat_template.jinja", "is not UTF-8") from None
        value = self.config.get("chat_template")
        if isinstance(value, list):
            named = [e for e in value if isinstance(e, dict) and e.get("name") == "default"]
            value = named[-1].get("template") if named else None
        if value is not None and not isinstance(value, str):
            raise self.fail("tokenizer_config.json", f"chat_template is {short(value)}; a text is needed")
        return value

    def added(self, core: dict[str, Any]) -> Added:
        """The added tokens of tokenizer.json (`core`), tokenizer_config.json and added_tokens.json."""
        found: Added = {}
        controls = self._control_texts()

        def put(file: str, id: Any, text: Any, special: Any) -> None:
            if not isinstance(text, str) or not text or type(id) is not int or not 0 <= id < MAX_IDS:
                raise self.fail(file, f"added token {short(text)} has id {short(id)}; "
                                      f"a text and an id from 0 to {MAX_IDS - 1} are needed")
            control = special is True or text in controls or CONTROL_LOOK.fullmatch(text) is not None
            before = found.get(id, (text, False))
            if before[0] != text:
                raise self.fail(file, f"added token {short(text)} has id {id}, and so has {short(before[0])}")
            found[id] = (text, control or before[1])

        for entry in self.a_list("tokenizer.json", core, "added_tokens"):
            if not isinstance(entry, dict):
                raise self.fail("tokenizer.json", "added_tokens holds something that is not an object")
            put("tokenizer.json", entry.get("id"), entry.get("content"), entry.get("special"))
        decoder = self.an_object("tokenizer_config.json", self.config, "added_tokens_decoder")
        for key, entry in decoder.items():
            if not isinstance(entry, dict) or not key.isdecimal() or len(key) > MAX_DIGITS:
                raise self.fail("tokenizer_config.json", f"added_tokens_decoder has the entry {short(key)}; "
                                                         "an id with an object is needed")
            put("tokenizer_config.json", int(key), entry.get("content"), entry.get("special"))
        for text, id in self.more.items():
            put("added_tokens.json", id, text, False)
        return found

    def rules(self, core: dict[str, Any]) -> dict[str, Rule]:
        """How each added token is found in text, where it is not `added_tokens.PLAIN`.

        core is as for `added`, which checks the entries. tokenizer.json counts where it has the token.
        """
        found: dict[str, Rule] = {}
        older = self.an_object("tokenizer_config.json", self.config, "added_tokens_decoder").values()
        newer = self.a_list("tokenizer.json", core, "added_tokens")
        for name, entries in (("tokenizer_config.json", older), ("tokenizer.json", newer)):
            for entry in entries:
                values = {field: entry.get(field) for field in Rule._fields}
                for field, value in values.items():
                    if value is not None and not isinstance(value, bool):
                        raise self.fail(name, f"added token {short(entry['content'])}: {field} is "
                                              f"{short(value)}; true or false is needed")
                found[entry["content"]] = Rule(**{field: value or False for field, value in values.items()})
        return {text: rule for text, rule in found.items() if any(rule)}

    def _control_texts(self) -> set[str | None]:
        """The texts that the files name as control tokens of any role."""
        texts = {self.token(role) for role in CONTROL_ROLES}
        for source in (self.config, self.map):
            extra = source.get("additional_special_tokens")
            for entry in extra if isinstance(extra, list) else []:
                text = entry.get("content") if isinstance(entry, dict) else entry
                if isinstance(text, str):
                    texts.add(text)
        return texts


def parse_json(content: bytes, path: Path) -> dict[str, Any]:
    """A JSON object from a file's bytes. Raises Error."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:  # bad UTF-8 and over-long integers are ValueErrors too
        raise Error(f"{path}: is not JSON ({' '.join(str(error).split())[:80]})") from None
    if not isinstance(value, dict):
        raise Error(f"{path}: a JSON object is needed at its top")
    return value
