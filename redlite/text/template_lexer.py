"""A template's source → tokens, white space trimmed as Jinja 3.1 does with trim_blocks and lstrip_blocks.

Source of the rules: jinja2's lexer.py. `-` beside a tag trims all white space on that side. Without it a
block tag or comment that begins a line takes the blanks before it along (`+` keeps them), and the line
break behind it.
"""
from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from redlite.text.template_values import TemplateError

CLOSE = {"{": "}}", "%": "%}", "#": "#}"}
MOST_DIGITS = 18    # of a number
_SPACE = re.compile(r"\s*")
_TAG = re.compile(r"\{([{%#])([-+]?)")
_RAW = re.compile(r"\{%[-+]?\s*raw\s*(?:-%\}\s*|%\})")
_RAW_END = re.compile(r"\{%([-+]?)\s*endraw\s*(?:\+%\}|-%\}\s*|%\}\n?)")
_TOKEN = re.compile(r"""
    (?P<space>\s+)
  | (?P<string>'(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*")
  | (?P<float>(?<!\.)\d+(?:\.\d+(?:[eE][-+]?\d+)?|[eE][-+]?\d+)(?!\w))
  | (?P<int>(?:[1-9](?:_?\d)*|0+)(?!\w))
  | (?P<name>[A-Za-z_]\w*)
  | (?P<mark>\*\*|//|==|!=|<=|>=|[-+*/%~<>=.,:|()\[\]{}])
""", re.VERBOSE | re.DOTALL)


@dataclass(frozen=True)
class Token:
    """kind: text, a tag's begin or end ("{{", "%}", …), or, inside a tag, string, float, int, name, mark."""
    kind: str
    value: str
    line: int


def string_value(token: str) -> str:
    """The text of a string literal, its escapes resolved as Python does."""
    return token[1:-1].encode("ascii", "backslashreplace").decode("unicode-escape")


def tokens(source: str, where: str) -> Iterator[Token]:
    """Texts and tags. Raises TemplateError naming the line."""
    source = source.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
    breaks = [match.start() for match in re.finditer("\n", source)]
    place, at_line_start = 0, True
    while place < len(source):
        match = _TAG.search(source, place)
        text = source[place:match.start() if match else len(source)]
        if match and (match[1] != "{" or match[2] == "-"):
            text = _trimmed(text, match[2], at_line_start)
        if text:
            yield Token("text", text, bisect_left(breaks, place) + 1)
        if not match:
            return
        raw = _RAW.match(source, match.start())
        if raw:
            line, ended = bisect_left(breaks, raw.start()) + 1, _RAW_END.search(source, raw.end())
            if not ended:
                raise TemplateError(f"{where}, line {line}: {{% raw %}} does not end")
            text = _trimmed(source[raw.end():ended.start()], ended[1], raw[0].endswith("\n"))
            if text:
                yield Token("text", text, line)
            place, at_line_start = ended.end(), ended[0].endswith("\n")
            continue
        end, trim = yield from _tag(source, match, breaks, where)
        place = end
        if trim == "-":
            place = _SPACE.match(source, end).end()  # type: ignore[union-attr]
        elif trim == "line" and source.startswith("\n", end):
            place += 1
        at_line_start = source[place - 1] == "\n"


def _trimmed(text: str, sign: str, at_line_start: bool) -> str:
    """The text before a block tag or comment, or before a tag with the sign `-`."""
    if sign == "-":
        return text.rstrip()
    line_start = text.rfind("\n") + 1
    if sign != "+" and (line_start or at_line_start) and text[line_start:].isspace():
        return text[:line_start]
    return text


def _tag(source: str, match: re.Match, breaks: list[int],
         where: str) -> Generator[Token, None, tuple[int, str]]:
    """The tokens of one tag; returns where it ends, and what it trims behind it: "-", "line" or ""."""
    kind, place = match[1], match.end()
    line = bisect_left(breaks, match.start()) + 1
    close = CLOSE[kind]
    if kind == "#":
        end = source.find(close, place)
        if end < 0:
            raise TemplateError(f"{where}, line {line}: a comment does not end")
        sign = source[end - 1] if end > place and source[end - 1] in "-+" else ""
        return end + 2, "-" if sign == "-" else "" if sign else "line"
    yield Token("{" + kind, "", line)
    depth = 0
    while True:
        sign = source[place] if source.startswith(("-" + close, "+" + close), place) else ""
        if depth == 0 and source.startswith(close, place + len(sign)) and (sign != "+" or kind == "%"):
            yield Token(close, "", line)
            trim = "-" if sign == "-" else "line" if kind == "%" and not sign else ""
            return place + len(sign) + 2, trim
        found = _TOKEN.match(source, place)
        line = bisect_left(breaks, place) + 1
        if not found:
            if place >= len(source):
                raise TemplateError(f"{where}, line {line}: a tag does not end with {close}")
            raise TemplateError(f"{where}, line {line}: {source[place:place + 12]!r} is not in the subset")
        value, what = found[0], found.lastgroup or ""
        if what in ("int", "float") and len(value) > MOST_DIGITS:
            raise TemplateError(f"{where}, line {line}: a number of more than {MOST_DIGITS} digits")
        if what == "mark":
            depth += (value in "([{") - (value in ")]}")
        if what != "space":
            yield Token(what, value, line)
        place = found.end()
