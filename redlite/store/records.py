"""Records of journals and the checking of their fields."""
import json
from collections.abc import Mapping
from pathlib import Path

from redlite.errors import Error


def _parse(line: bytes) -> dict | None:
    """The object on a line, None if there is none."""
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def read_lines(path) -> tuple[list[dict], int]:
    """The objects of a journal file, and the number of bytes of it that are sound; ([], 0) if it does not exist.

    The last line may be torn: what does not parse there is left out of both. (No proper beginning of an object's text
    is an object, so a last line that parses is complete even without its newline.) A bad line anywhere else did not
    come from a crash and raises Error with file and line.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise Error(f"{path}: cannot be read ({error.strerror})") from None
    lines = data.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    records, sound = [], 0
    for number, line in enumerate(lines, 1):
        record = _parse(line)
        if record is None:
            if number == len(lines):
                return records, sound
            raise Error(f"{path}, line {number}: is not a JSON object; restore the line from a copy, or delete it to have it done again")
        records.append(record)
        sound = min(sound + len(line) + 1, len(data))
    return records, sound


Kind = type | tuple[type, ...] | tuple[str, ...]  # of a field: types, or the texts that it may be
NAMES = {str: "a text", int: "a number", float: "a number", bool: "true or false", dict: "an object",
         list: "a list", type(None): "null"}


def require(value: object, fields: Mapping[str, Kind], where: object, mend: str) -> dict:
    """`value`, if it is an object whose every field is there and of its kind; else Error naming the field.

    fields  name ("a.b" is field b of the object a) → its kind; a field that may be missing has NoneType in it
    where   the file, and the place in it, that `value` was read from
    mend    what the user can do about a field that is wrong

    True and False are no numbers.
    """
    for field, kind in fields.items():
        found = value
        for name in field.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        if not _is(found, kind):
            raise Error(f"{where}: field {field!r} is missing or not {_wanted(kind)}; {mend}")
    if not isinstance(value, dict):
        raise Error(f"{where}: must hold a JSON object; {mend}")
    return value


def _is(value: object, kind: Kind) -> bool:
    if isinstance(kind, tuple) and isinstance(kind[0], str):
        return value in kind
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _wanted(kind: Kind) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join(dict.fromkeys(k if isinstance(k, str) else NAMES[k] for k in kinds))
