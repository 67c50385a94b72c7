"""Records of journals and the checking of their fields."""
import json
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


def require(value, fields: dict[str, type | tuple[type, ...]], path, mend: str) -> dict:
    """`value`, an object that was read from `path`, if each field ("a.b": b of a) is there and of its kind; else Error naming it. True is no number."""
    for field, kind in fields.items():
        found = value
        for name in field.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        if not isinstance(found, kind) or isinstance(found, bool) and kind is not bool:
            raise Error(f"{path}: field {field!r} is missing or not of its kind; {mend}")
    return value
