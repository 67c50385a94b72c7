"""Text that remembers, character by character, which message it came from.

A chat template mixes its own words with the contents of messages. Where a character came from decides
whether it can be part of a control token, and whether it is trained. Templates trim and replace, so that
cannot be found afterwards. Contents are `Marked` before they are rendered, and every operation of the
language keeps the marks.
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

TEMPLATE = 0            # the mark of the template's own words; message i has the mark i + 1
GENERATED = 1 << 16     # added to the mark of what stands in a `{% generation %}` block
_RUN = re.compile(r"(.)\1*", re.DOTALL)


class Marked(str):
    """A text with one mark a character, kept as a second string of the same length, chr(mark) for each."""
    marks: str

    def __new__(cls, text: str, marks: str) -> Marked:
        if len(text) != len(marks):
            raise ValueError(f"{len(marks)} marks for {len(text)} characters")
        made = super().__new__(cls, text)
        made.marks = marks
        return made

    @classmethod
    def of(cls, text: str, mark: int) -> Marked:
        """All of a text with one mark."""
        return cls(str(text), chr(mark) * len(text))

    def cut(self, start: int | None, stop: int | None, step: int | None = None) -> Marked:
        """self[start:stop:step]."""
        part = slice(start, stop, step)
        return Marked(str.__getitem__(self, part), self.marks[part])


class Safe(Marked):
    """What Jinja's filter `safe` gives: as text the same, but its operators would escape for HTML."""


def marks_of(text: str) -> str:
    """The marks of any text; a plain one is the template's."""
    return text.marks if isinstance(text, Marked) else chr(TEMPLATE) * len(text)


def runs_of(marks: str) -> Iterator[tuple[int, int, int]]:
    """(start, end, mark) of each run of equal marks; long contents are one run each."""
    for run in _RUN.finditer(marks):
        yield run.start(), run.end(), ord(run[1])


def marked(text: str) -> Marked:
    """Any text as a Marked one."""
    return text if isinstance(text, Marked) else Marked.of(text, TEMPLATE)


def generated(text: str) -> Marked:
    """A text with `GENERATED` added to every mark."""
    marks = marks_of(text)
    return Marked(text, marks.translate({ord(mark): chr(ord(mark) | GENERATED) for mark in set(marks)}))


def concat(parts: Iterable[str]) -> str:
    """The parts one behind the other; a plain str where none is marked."""
    found = list(parts)
    whole = "".join(map(str, found))
    if any(isinstance(part, Marked) for part in found):
        return Marked(whole, "".join(map(marks_of, found)))
    return whole


def blend(text: str, *sources: str) -> str:
    """A text computed from others in a way that loses places: it gets the first message's mark in them."""
    for source in sources:
        for mark in marks_of(source):
            if mark != chr(TEMPLATE):
                return Marked(text, mark * len(text))
    return text


def pieces(text: str, ends: list[tuple[int, int]]) -> list[str]:
    """text[a:b] for every (a, b)."""
    if not isinstance(text, Marked):
        return [text[a:b] for a, b in ends]
    return [text.cut(a, b) for a, b in ends]


def strip(text: str, characters: str | None = None, left: bool = True, right: bool = True) -> str:
    """As str.strip, lstrip, rstrip."""
    kept = str.lstrip(text, characters) if left else str(text)
    start = len(text) - len(kept)
    stop = start + len(str.rstrip(kept, characters)) if right else len(text)
    return pieces(text, [(start, stop)])[0]


def split(text: str, separator: str | None = None, most: int = -1, from_right: bool = False) -> list[str]:
    """As str.split and rsplit."""
    parts = str.rsplit(text, separator, most) if from_right else str.split(text, separator, most)
    ends, place = [], 0
    for part in parts:
        place = str.index(text, part, place) if separator is None else place
        ends.append((place, place + len(part)))
        place += len(part) + (len(separator) if separator is not None else 0)
    return pieces(text, ends)


def lines(text: str, keep_ends: bool = False) -> list[str]:
    """As str.splitlines."""
    ends, place = [], 0
    for line in str.splitlines(text, True):
        shown = line if keep_ends else line.splitlines()[0]
        ends.append((place, place + len(shown)))
        place += len(line)
    return pieces(text, ends)


def replace(text: str, old: str, new: str, most: int = -1) -> str:
    """As str.replace."""
    if not isinstance(text, Marked) and not isinstance(new, Marked):
        return str.replace(text, old, new, most)
    parts: list[str] = []
    place = done = 0
    for match in re.finditer(re.escape(str(old)), str(text)):
        if 0 <= most <= done:
            break
        parts += [pieces(text, [(place, match.start())])[0], new]
        place, done = match.end(), done + 1
    return concat([*parts, pieces(text, [(place, len(text))])[0]])


def recase(text: str, changed: str) -> str:
    """What upper(), lower() and the like made of a text, with its marks where the length is the same."""
    if isinstance(text, Marked) and len(changed) == len(text):
        return Marked(changed, text.marks)
    return blend(changed, text)
