"""Text for people: columns, percentages, durations, shortened values, the order of names."""
import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

LONGEST_CELL = 120  # characters of a table's cell on a terminal


def columns(rows: list[list[str]]) -> list[str]:
    """Rows of texts as aligned lines; the first column to the left, the others to the right."""
    rows = [[_cell(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def _cell(text: str) -> str:
    """A cell on one line, cut in its middle: the name of a topic may be a page long."""
    flat, half = plain(re.sub(r"\s", " ", text)), LONGEST_CELL // 2
    return flat if len(flat) <= LONGEST_CELL else f"{flat[:half]}…{flat[1 - half:]}"


def percent(value: float | None) -> str:
    """A share for people; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.1f}%"


def points(difference: float) -> str:
    """A difference of shares for people, in points."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}"     # + 0.0: no "-0.0"


def clock(seconds: float) -> str:
    """A duration for people: 42 s, 3 min 5 s, 2 h 10 min."""
    whole_seconds = round(seconds)
    if whole_seconds < 60:
        return f"{whole_seconds} s"
    if whole_seconds < 3600:
        return f"{whole_seconds // 60} min {whole_seconds % 60} s"
    return f"{whole_seconds // 3600} h {whole_seconds % 3600 // 60} min"


# C0 but line ends and tabs, DEL and C1; what turns the direction of writing; other ends of lines.
_UNSAFE = {*range(9), *range(11, 32), *range(127, 160), 0x61C, 0x200E, 0x200F, 0x2028, 0x2029,
           *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
_ESCAPED = {code: f"\\u{code:04x}" for code in _UNSAFE}


def plain(text: str) -> str:
    """Text that a terminal shows as it is: what would steer it is escaped, as JSON escapes it."""
    return text.translate(_ESCAPED)


class Plain:
    """A text stream to which everything is written as `plain` text; `stream` is the stream itself."""

    def __init__(self, stream: Any):
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text."""
        return int(self.stream.write(plain(text)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def short(text: object, most: int = 80) -> str:
    """A name from a file, fit for a one-line message: quoted, control characters escaped, cut."""
    shown = ascii(text)
    return shown if len(shown) <= most else shown[:most - 4] + "..." + shown[-1]


def natural(name: str) -> tuple:
    """A sort key that puts "10" behind "9"."""
    return tuple(map(_natural_part, re.findall(r"[0-9]+|[^0-9]+", name)))


def in_natural_order(names: Iterable[str]) -> dict[str, int]:
    """The place of each name, once, in the order of `natural`."""
    return {name: place for place, name in enumerate(sorted(set(names), key=natural))}


def _natural_part(part: str) -> tuple[int, int, str]:
    if part[0] not in "0123456789":
        return 1, 0, part
    digits = part.lstrip("0")  # compared as texts: Python turns only some thousands of digits into a number
    return 0, len(digits), digits


def printable(text: object) -> str:
    """A text from outside on one line of a terminal: characters that steer it, or that hide, are escaped.

    Control, format and bidi characters become \\xNN or \\uNNNN; white space becomes a space.
    """
    shown = " ".join(str(text).split())
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def markdown_table(rows: list[list[str]]) -> list[str]:
    """Rows of texts as a Markdown table; the first column to the left, the others to the right."""
    lines = ["| " + " | ".join(_markdown(cell) for cell in row) + " |" for row in rows]
    rule = "|---|" + "---:|" * (len(rows[0]) - 1)
    return [lines[0], rule, *lines[1:]]


def _markdown(text: str) -> str:
    """A text that stays one cell and no markup."""
    flat = " ".join(text.split())
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", flat)


JOINED = 10_000     # rows


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV (RFC 4180), but for its line ends: a carriage return would be escaped on a terminal."""
    parts, lines = [], []
    for number, row in enumerate(rows, 1):
        out = io.StringIO(newline="")
        csv.writer(out).writerow(row)     # with the RFC's line end, so that carriage returns are quoted
        lines.append(out.getvalue().removesuffix("\r\n") + "\n")
        if number % JOINED == 0:    # a million short texts take several times their characters
            parts.append("".join(lines))
            lines.clear()
    return "".join([*parts, *lines])


def valid_xml(text: str) -> str:
    """A text with what XML 1.0 cannot hold replaced by �: control characters and surrogates."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)
