"""Records of journals, and the one check of what a user may have edited in them."""
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from sys import intern

from redlite.errors import Error
from redlite.store.files import unreadable

SHORT = 40      # characters of a text that records are likely to share: labels, topics, names
# Types; or the texts that a field may be; or [kind], a list of it; or {str: kind}, an object of such values.
Kind = type | tuple[type, ...] | tuple[str, ...] | list["Kind"] | dict[type, "Kind"]
NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object",
         list: "a list", type(None): "null"}


def parse(line: bytes) -> dict | None:
    """The object on a line of a journal, None if there is none."""
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _shared(record: dict) -> dict:
    """The record, whose names and short texts are one object with those of all others: journals are long."""
    made = {}
    for name, value in record.items():
        short = type(value) is str and len(value) <= SHORT
        made[intern(name)] = intern(value) if short else value
    return made


def read_lines(path: str | Path) -> tuple[list[dict], int]:
    """The objects of a journal file, and how many bytes of it hold them; ([], 0) if it does not exist.

    A killed process may leave its last line torn. A torn line is in neither figure. A prefix of a JSON object
    never parses, so a last line that parses is complete, even without a newline. A bad line anywhere else did
    not come from a crash, and raises Error with file and line.
    """
    records, sound = [], 0
    for record, _, end in each_line(path):
        records.append(_shared(record))
        sound = end
    return records, sound


def each_line(path: str | Path) -> Iterator[tuple[dict, int, int]]:
    """Yield the objects of a journal file, each with the places where its line begins and ends, in bytes.

    For torn and bad lines see `read_lines`.
    """
    path = Path(path)
    if not path.exists():
        return
    start, bad = 0, 0
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if bad:
                    raise Error(f"{path}, line {bad}: is not a JSON object; restore the line from a copy, "
                                "or delete it to have it done again")
                record = parse(line)
                if record is None:
                    bad = number    # torn, if no line follows
                    continue
                yield record, start, start + len(line)
                start += len(line)
    except OSError as error:
        raise unreadable(path, error) from None


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
