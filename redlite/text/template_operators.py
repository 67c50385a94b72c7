"""What a template can do with values: fields, items and slices, the methods of texts and objects, operators.

Rules are those of Jinja 3.1's sandbox, and so Python's. What is not here is refused by name.
"""
from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from redlite.text import marked
from redlite.text.marked import concat
from redlite.text.template_values import (
    COLLECTIONS,
    Loop,
    Namespace,
    Undefined,
    items_of,
    key_of,
    kind_of,
    number,
    spend,
    text_of,
    texts_in,
    unsafe,
)


def join(parts: list[str], between: str = "") -> str:
    """As str.join."""
    spend(sum(map(len, parts)) + len(parts) * len(between) >> 3)
    out: list[str] = []
    for i, part in enumerate(parts):
        out += [between, part] if i else [part]
    return concat(out)


def _join_method(between: str, parts: Any) -> str:
    found = items_of(parts)
    for part in found:
        if not isinstance(part, str):
            raise TypeError(f"join: {kind_of(part)} among the parts; a text is needed")
    return join(found, between)


def _split(text: str, sep: str | None = None, maxsplit: int = -1) -> list[str]:
    spend(len(text) >> 1 if sep is None else str.count(text, sep) if sep else 0)
    return marked.split(text, sep, maxsplit)


def _rsplit(text: str, sep: str | None = None, maxsplit: int = -1) -> list[str]:
    spend(len(text) >> 1 if sep is None else str.count(text, sep) if sep else 0)
    return marked.split(text, sep, maxsplit, from_right=True)


def _splitlines(text: str, keepends: bool = False) -> list[str]:
    spend(len(text) >> 2)
    return marked.lines(text, bool(keepends))


def replace(text: str, old: str, new: str, count: int = -1) -> str:
    """As str.replace."""
    times = str.count(text, old)
    spend(times + (len(text) + (times if count < 0 else min(count, times)) * len(new) >> 3))
    return marked.replace(text, old, new, count)


def _removeprefix(text: str, part: str) -> str:
    return marked.pieces(text, [(len(part) if str.startswith(text, part) else 0, len(text))])[0]


def _removesuffix(text: str, part: str) -> str:
    cut = len(part) if str.endswith(text, part) else 0
    return marked.pieces(text, [(0, len(text) - cut)])[0]


def _format(text: str, *args: Any) -> str:
    """`'{} of {}'.format(a, b)`: bare braces only."""
    parts: list[str] = re.split(r"(\{\{|\}\}|\{\})", text)
    given = list(args)
    for i, part in enumerate(parts):
        if part == "{}" and not given:
            raise TypeError("format: there are more {} than values")
        if part == "{}":
            parts[i] = text_of(given.pop(0))
        elif i % 2:
            parts[i] = part[0]
        elif "{" in part or "}" in part:
            raise TypeError("format with anything but {} is not in the subset")
    return concat(parts)


def _get(of: dict, key: Any, default: Any = None) -> Any:
    return of.get(key_of(key), default)


# The methods that values have. Those of texts give back marked text where they were marked.
METHODS: dict[type, dict[str, Callable]] = {
    str: {
        "strip": lambda s, c=None: marked.strip(s, c),
        "lstrip": lambda s, c=None: marked.strip(s, c, right=False),
        "rstrip": lambda s, c=None: marked.strip(s, c, left=False),
        "split": _split, "rsplit": _rsplit, "splitlines": _splitlines, "replace": replace,
        "join": _join_method, "removeprefix": _removeprefix, "removesuffix": _removesuffix, "format": _format,
        "upper": lambda s: marked.recase(s, str.upper(s)), "lower": lambda s: marked.recase(s, str.lower(s)),
        "title": lambda s: marked.recase(s, str.title(s)),
        "capitalize": lambda s: marked.recase(s, str.capitalize(s)),
        **{method.__name__: method for method in (
            str.startswith, str.endswith, str.find, str.rfind, str.count, str.index, str.isdigit, str.isspace,
            str.isalpha, str.isalnum, str.isupper, str.islower, str.isnumeric)},
    },
    dict: {"items": dict.items, "keys": dict.keys, "values": dict.values, "get": _get},
}


def _method(method: Callable, value: Any, /, *args: Any, **named: Any) -> Any:
    """A method's result; those of texts may read all of the text, and of a text to look for."""
    spend(sum(len(text) for text in (value, *args) if isinstance(text, str)) >> 5)
    return method(value, *args, **named)


def attribute(value: Any, name: str) -> Any:
    """value.name: a method, a field, or Undefined."""
    if isinstance(value, Undefined):
        raise TypeError(f"{kind_of(value)}, has no {name!r}")
    if name.startswith("__"):
        raise TypeError(f"the attribute {name!r} of {kind_of(value)} is not in the subset")
    if isinstance(value, Loop):
        return value.field(name)
    if isinstance(value, Namespace):
        return dict.get(value, name, Undefined(name))
    unsafe(value)
    for kind, methods in METHODS.items():
        if isinstance(value, kind) and name in methods:
            return partial(_method, methods[name], value)
    if hasattr(value, name):
        raise TypeError(f"the attribute {name!r} of {kind_of(value)} is not in the subset")
    if isinstance(value, dict) and name in value:
        return value[name]
    return Undefined(name)


def item(value: Any, key: Any) -> Any:
    """value[key]; a missing one is Undefined."""
    unsafe(value)
    if isinstance(value, Undefined):
        raise TypeError(f"{kind_of(value)}, has no {key!r}")
    if isinstance(value, dict) and not isinstance(value, Namespace) and key_of(key) in value:
        return value[key]
    if isinstance(value, (str, list, tuple, range)) and isinstance(key, int):
        if not -len(value) <= key < len(value):
            return Undefined(f"item {key}")
        place = key % len(value)
        return marked.pieces(value, [(place, place + 1)])[0] if isinstance(value, str) else value[place]
    return attribute(value, str(key)) if isinstance(key, str) else Undefined(f"item {key!r}")


def part(value: Any, start: Any, stop: Any, step: Any) -> Any:
    """value[start:stop:step]."""
    unsafe(value)
    if isinstance(value, (str, list, tuple, range)):
        spend(len(value) >> 3)
        if isinstance(value, marked.Marked):
            return value.cut(start, stop, step)
        return value[start:stop:step]
    raise TypeError(f"{kind_of(value)} cannot be sliced")


# Operators

def _add(a: Any, b: Any) -> Any:
    if isinstance(a, str) and isinstance(b, str):
        unsafe(a)
        unsafe(b)
        spend(len(a) + len(b) >> 3)
        return concat([a, b])
    if isinstance(a, list) and isinstance(b, list) or isinstance(a, tuple) and isinstance(b, tuple):
        spend(len(a) + len(b))
        return a + b  # type: ignore[operator]
    if not isinstance(a, (int, float)) or not isinstance(b, (int, float)):
        raise TypeError(f"{kind_of(a)} and {kind_of(b)} cannot be added")
    return number(a) + number(b)


def _multiply(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, str):
        a, b = b, a
    if isinstance(a, str) and isinstance(b, int):
        unsafe(a)
        spend(len(a) * max(b, 0) >> 3)
        return concat([a] * b) if a else ""
    return number(a) * number(b)


def _remainder(a: Any, b: Any) -> Any:
    if isinstance(a, str):
        raise TypeError("formatting with % is not in the subset")
    return number(a) % number(b)


def _power(a: Any, b: Any) -> Any:
    if abs(number(b)) > 64 or abs(number(a)) > 1 << 32:
        raise ValueError("such a power is too large")
    return a ** b


def _tilde(a: Any, b: Any) -> str:
    texts = [text_of(a), text_of(b)]
    spend(sum(map(len, texts)) >> 3)
    return concat(texts)


def same(a: Any, b: Any) -> bool:
    """a == b."""
    if isinstance(a, COLLECTIONS) and isinstance(b, COLLECTIONS):
        texts_in(a)     # both count their work
        texts_in(b)
    elif isinstance(a, str) and isinstance(b, str):
        spend(len(a) >> 6)
    return bool(a == b)


def contains(a: Any, b: Any) -> bool:
    """a in b."""
    if isinstance(b, str):
        if not isinstance(a, str):
            raise TypeError(f"{kind_of(a)} cannot be in a text")
        spend(len(b) >> 6)
        return str(a) in str(b)
    if isinstance(b, dict) and not isinstance(b, Namespace):
        return key_of(a) in b
    for item in items_of(b):
        spend()
        if same(a, item):
            return True
    return False


def _ordered(name: str) -> Callable[[Any, Any], bool]:
    def compare(a: Any, b: Any) -> bool:
        if isinstance(a, str) and isinstance(b, str):
            spend(len(a) >> 6)
        else:
            a, b = number(a), number(b)
        return {"<": a < b, ">": a > b, "<=": a <= b, ">=": a >= b}[name]
    return compare


COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": same, "!=": lambda a, b: not same(a, b), "in": contains, "not in": lambda a, b: not contains(a, b),
    **{name: _ordered(name) for name in ("<", ">", "<=", ">=")}}
BINARY: list[dict[str, Callable[[Any, Any], Any]]] = [          # loosest first, as Jinja binds them
    {"+": _add, "-": lambda a, b: number(a) - number(b)},
    {"~": _tilde},
    {"*": _multiply, "/": lambda a, b: number(a) / number(b), "//": lambda a, b: number(a) // number(b),
     "%": _remainder},
    {"**": _power}]
