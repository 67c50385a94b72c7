"""Text for people: columns, percentages, durations, shortened values, the order of names."""
import re


def columns(rows: list[list[str]]) -> list[str]:
    """Rows of texts as aligned lines; the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip() for row in rows]


def percent(value: float | None) -> str:
    """A share for people; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.1f}%"


def clock(seconds: float) -> str:
    """A duration for people: 42 s, 3 min 5 s, 2 h 10 min."""
    whole_seconds = round(seconds)
    if whole_seconds < 60:
        return f"{whole_seconds} s"
    if whole_seconds < 3600:
        return f"{whole_seconds // 60} min {whole_seconds % 60} s"
    return f"{whole_seconds // 3600} h {whole_seconds % 3600 // 60} min"


def short(text: object) -> str:
    """A name from a file, fit for a one-line message: quoted, control characters escaped, cut."""
    shown = ascii(text)
    return shown if len(shown) <= 80 else shown[:76] + "..." + shown[-1]


def natural(name: str) -> tuple:
    """A sort key that puts "10" behind "9"."""
    def key(part: str) -> tuple:
        digits = part.lstrip("0")  # compared as texts: a name may have more digits than Python makes a number of
        return (0, len(digits), digits) if part[0] in "0123456789" else (1, 0, part)
    return tuple(map(key, re.findall(r"[0-9]+|[^0-9]+", name)))
