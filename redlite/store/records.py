"""Records of journals, and the one check of what a user may have edited in them."""
import json
import math
from collections.abc import Mapping
from pathlib import Path

from redlite.errors import Error
from redlite.store.files import read_bytes

# Types; or the texts that a field may be; or [kind], a list of it; or {str: kind}, an object of such values.
Kind = type | tuple[type, ...] | tuple[str, ...] | list["Kind"] | dict[type, "Kind"]
NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object",
         list: "a list", type(None): "null"}


def _parse(line: bytes) -> dict | None:
    """The object on a line, None if there is none."""
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def read_lines(path: str | Path) -> tuple[list[dict], int]:
    """The objects of a journal file, and how many bytes of it hold them; ([], 0) if it does not exist.

    A killed process may leave its last line torn. A torn line is in neither figure. A prefix of a JSON object
    never parses, so a last line that parses is complete, even without a newline. A bad line anywhere else did
    not come from a crash, and raises Error with file and line.
    """
    path = Path(path)
    if not path.exists():
        return [], 0
    data = read_bytes(path)
    lines = data.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    records: list[dict] = []
    sound = 0
    for number, line in enumerate(lines, 1):
        record = _parse(line)
        if record is None:
            if number == len(lines):
                break
            raise Error(f"{path}, line {number}: is not a JSON object; restore the line from a copy, "
                        "or delete it to have it done again")
        records.append(record)
        sound = min(sound + len(line) + 1, len(data))
    return records, sound


def require(value: object, fields: Mapping[str, Kind], where: object, mend: str) -> dict:
    """`value`, if it is an object whose every field is there and of its kind; else Error naming the field.

    fields  name ("a.b" is field b of the object a) → its kind; a field that may be missing has NoneType in it
    where   the file, and the place in it, that `value` was read from
    mend    what the user can do about a field that is wrong

    True and False are no numbers, and neither are NaN and Infinity.
    """
    for field, kind in fields.items():
        found = value
        for name in field.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        if not is_kind(found, kind):
            raise Error(f"{where}: field {field!r} is missing or not {_wanted(kind)}; {mend}")
    if not isinstance(value, dict):
        raise Error(f"{where}: must hold a JSON object; {mend}")
    return value


def is_kind(value: object, kind: Kind) -> bool:
    """Whether a value from JSON is of this kind."""
    if isinstance(kind, list):
        return isinstance(value, list) and all(is_kind(item, kind[0]) for item in value)
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(is_kind(item, kind[str]) for item in value.values())
    if isinstance(kind, tuple) and isinstance(kind[0], str):
        return value in kind
    if isinstance(value, bool):
        return kind is bool or (isinstance(kind, tuple) and bool in kind)
    return isinstance(value, kind) and not (isinstance(value, float) and not math.isfinite(value))


def _wanted(kind: Kind) -> str:
    if isinstance(kind, list):
        return f"a list, each item of it {_wanted(kind[0])}"
    if isinstance(kind, dict):
        return f"an object, each value in it {_wanted(kind[str])}"
    kinds: list[type | str] = [*kind] if isinstance(kind, tuple) else [kind]
    if float in kinds and int in kinds:
        kinds.remove(int)
    return " or ".join(k if isinstance(k, str) else NAMES[k] for k in kinds)
