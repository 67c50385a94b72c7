"""Filters and tests of the template language: the built-in ones of Jinja 3.1 that chat templates use.

`tojson` is that of transformers (utils/chat_template_utils.py): json.dumps without escapes for HTML.
"""
from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

from redlite.text import marked
from redlite.text.marked import concat
from redlite.text.template_operators import COMPARE, METHODS, contains, item, join, part, replace, same
from redlite.text.template_values import (
    COLLECTIONS,
    VIEWS,
    Namespace,
    Stream,
    Undefined,
    bounded,
    items_of,
    kind_of,
    number,
    spend,
    text_of,
    texts_in,
)

MOST_INDENT = 100   # spaces
MOST_NUMBER = 1000  # characters of a text that becomes a number
_WORD = re.compile(r"([-\s({\[<]+)")    # Jinja's beginnings of words, for `title`


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
            sort_keys: bool = False) -> str:
    if indent is not None and not (isinstance(indent, int) and 0 <= indent <= MOST_INDENT):
        raise ValueError(f"tojson with an indent of {indent!r} is not in the subset")
    texts = texts_in(value)
    pair = tuple(separators) if separators else None
    text = json.dumps(value, ensure_ascii=bool(ensure_ascii), indent=indent, separators=pair,
                      sort_keys=bool(sort_keys), default=_no_json)
    spend(len(text) >> 3)
    return marked.blend(text, *texts)


def _no_json(value: Any) -> Any:
    raise TypeError(f"{kind_of(value)} is no JSON")


def _trim(value: Any, chars: str | None = None) -> str:
    return marked.strip(text_of(value), chars)


def _safe(value: Any) -> marked.Safe:
    text = text_of(value)
    return marked.Safe(text, marked.marks_of(text))


def _recased(name: str) -> Callable[[Any], str]:
    method = METHODS[str][name]
    return lambda value: method(text_of(value))


def _title(value: Any) -> str:
    text = text_of(value)
    spend(len(text))
    words = [word[0].upper() + word[1:].lower() for word in _WORD.split(str(text)) if word]
    return marked.recase(text, "".join(words))


def _length(value: Any) -> int:
    if isinstance(value, Undefined):
        return 0
    if isinstance(value, str) or isinstance(value, COLLECTIONS) and not isinstance(value, Namespace):
        return len(value)
    raise TypeError(f"{kind_of(value)} has no length")


def _default(value: Any, default_value: Any = "", boolean: bool = False) -> Any:
    missing = isinstance(value, Undefined) or boolean and not value
    return default_value if missing else value


def _first(value: Any) -> Any:
    items = items_of(value)
    return items[0] if items else Undefined("the first item of nothing")


def _last(value: Any) -> Any:
    if isinstance(value, Stream):
        raise TypeError(f"{kind_of(value)} has no last item")
    items = items_of(value)
    return items[-1] if items else Undefined("the last item of nothing")


def _indent(value: Any, width: Any = 4, first: bool = False, blank: bool = False) -> str:
    text = concat([value, "\n"]) if isinstance(value, str) else ""
    if not text or not isinstance(width, (str, int)) or isinstance(width, int) and width > MOST_INDENT:
        raise TypeError(f"indent of {kind_of(value)} by {width!r} is not in the subset")
    space = width if isinstance(width, str) else " " * width
    found = METHODS[str]["splitlines"](text)
    spend(len(found) * len(space) >> 3)
    out = [concat([space, line]) if i and (line or blank) else line for i, line in enumerate(found)]
    return concat([space if first else "", join(out, "\n")])


def path(value: Any, attribute: Any) -> Any:
    """The field of a value by a name with dots."""
    if attribute is None:
        return value
    names = attribute.split(".") if isinstance(attribute, str) else [attribute]
    for name in names:
        value = item(value, int(name) if isinstance(name, str) and name.isdigit() else name)
    return value


def _folded(value: Any, case_sensitive: bool = False) -> Any:
    return str(value).lower() if isinstance(value, str) and not case_sensitive else value


def _sort(value: Any, reverse: bool = False, case_sensitive: bool = False, attribute: Any = None) -> list:
    items = items_of(value)
    texts_in(items)
    names = attribute.split(",") if isinstance(attribute, str) else [attribute]
    return sorted(items, key=lambda one: [_folded(path(one, name), case_sensitive) for name in names],
                  reverse=bool(reverse))


def _dictsort(value: Any, case_sensitive: bool = False, by: str = "key", reverse: bool = False) -> list:
    if not isinstance(value, dict) or by not in ("key", "value"):
        raise TypeError(f"dictsort of {kind_of(value)} by {by!r}")
    texts_in(value)
    place = ("key", "value").index(by)
    return sorted(value.items(), key=lambda pair: _folded(pair[place], case_sensitive), reverse=bool(reverse))


def _unique(value: Any, case_sensitive: bool = False, attribute: Any = None) -> Stream:
    out: list = []
    seen: list = []
    for one in items_of(value):
        key = _folded(path(one, attribute), case_sensitive)
        if not contains(key, seen):
            seen.append(key)
            out.append(one)
    return Stream(out)


def _extreme(choose: Callable) -> Callable:
    def pick(value: Any, case_sensitive: bool = False, attribute: Any = None) -> Any:
        items = items_of(value)
        texts_in(items)
        if not items:
            return Undefined("an extreme of nothing")
        return choose(items, key=lambda one: _folded(path(one, attribute), case_sensitive))
    return pick


def _int(value: Any, default: int = 0, base: int = 10) -> int:
    if isinstance(value, Undefined):
        raise TypeError(f"{kind_of(value)}, is no number")
    if isinstance(value, str) and len(value) > MOST_NUMBER:
        raise ValueError(f"a text of {len(value):,} characters as a number is not in the subset")
    try:
        found = int(value, base) if isinstance(value, str) else int(value)
    except (TypeError, ValueError):
        try:
            found = int(float(value))
        except (TypeError, ValueError, OverflowError):
            return default
    return bounded(found)


def _float(value: Any, default: float = 0.0) -> float:
    if isinstance(value, Undefined):
        raise TypeError(f"{kind_of(value)}, is no number")
    try:
        return float(value)
    except (TypeError, ValueError):
        return default


def _round(value: Any, precision: int = 0, method: str = "common") -> Any:
    if abs(number(precision)) > 30:
        raise ValueError(f"a precision of {precision} is too large")
    if method == "common":
        return round(number(value), precision)
    return {"ceil": math.ceil, "floor": math.floor}[method](number(value) * 10 ** precision) / 10 ** precision


def _reverse(value: Any) -> Any:
    if isinstance(value, Stream):
        raise TypeError(f"{kind_of(value)} cannot be reversed")
    return part(value, None, None, -1) if isinstance(value, str) else Stream(items_of(value)[::-1])


def _items(value: Any) -> Stream:
    if isinstance(value, Undefined):
        return Stream([])
    if not isinstance(value, dict):
        raise TypeError(f"{kind_of(value)} has no pairs")
    return Stream(items_of(value.items()))


def _joined(value: Any, d: Any = "", attribute: Any = None) -> str:
    return join([text_of(path(one, attribute)) for one in items_of(value)], text_of(d))


def _replace(value: Any, old: Any, new: Any, count: int | None = None) -> str:
    return replace(text_of(value), text_of(old), text_of(new), -1 if count is None else count)


def _sum(value: Any, attribute: Any = None, start: Any = 0) -> Any:
    total = number(start)
    for one in items_of(value):
        total = bounded(total + number(path(one, attribute)))
    return total


FILTERS: dict[str, Callable] = {
    "trim": _trim, "tojson": _tojson, "length": _length, "count": _length, "upper": _recased("upper"),
    "lower": _recased("lower"), "title": _title, "capitalize": _recased("capitalize"), "first": _first,
    "last": _last, "default": _default, "d": _default, "list": items_of, "string": text_of, "safe": _safe,
    "int": _int, "float": _float, "abs": lambda value: abs(number(value)), "indent": _indent, "join": _joined,
    "replace": _replace, "items": _items, "dictsort": _dictsort, "reverse": _reverse, "sort": _sort,
    "unique": _unique, "round": _round, "min": _extreme(min), "max": _extreme(max), "sum": _sum,
}
SAFE = ("safe", "length", "count", "tojson", "default", "d", "replace")  # these do not tell
SELECTING = ("map", "select", "reject", "selectattr", "rejectattr")  # these take filters and tests by name

_SIZED = (str, list, tuple, range, Undefined)
TESTS: dict[str, Callable[..., bool]] = {
    "defined": lambda v: not isinstance(v, Undefined), "undefined": lambda v: isinstance(v, Undefined),
    "none": lambda v: v is None, "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool), "true": lambda v: v is True, "false": lambda v: v is False,
    "number": lambda v: isinstance(v, (int, float)),
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "float": lambda v: isinstance(v, float),
    "mapping": lambda v: isinstance(v, dict) and not isinstance(v, Namespace),
    "sequence": lambda v: isinstance(v, (*_SIZED, dict)) and not isinstance(v, Namespace),
    "iterable": lambda v: isinstance(v, (*_SIZED, *VIEWS, dict, Stream)) and not isinstance(v, Namespace),
    "callable": callable, "even": lambda v: number(v) % 2 == 0, "odd": lambda v: number(v) % 2 == 1,
    "divisibleby": lambda v, n: number(v) % number(n) == 0,
    "upper": lambda v: str(text_of(v)).isupper(), "lower": lambda v: str(text_of(v)).islower(),
    "eq": same, "equalto": same, "ne": COMPARE["!="], "lt": COMPARE["<"], "lessthan": COMPARE["<"],
    "gt": COMPARE[">"], "greaterthan": COMPARE[">"], "le": COMPARE["<="], "ge": COMPARE[">="],
    **{name: compare for name, compare in COMPARE.items() if name != "not in"},
}


def select(name: str, value: Any, args: list, named: dict[str, Any]) -> Stream:
    """The filters of SELECTING."""
    items = items_of(value) if value else []
    spend(len(items))
    if name == "map":
        return Stream(_mapped(items, args, dict(named)))
    attribute = None
    if name.endswith("attr"):
        if not args:
            raise TypeError(f"{name}: the name of a field is missing")
        attribute, *args = args
    if args and args[0] not in TESTS:
        raise TypeError(f"the test {args[0]!r} is not in the subset")
    test: Callable[..., Any] = TESTS[args[0]] if args else bool
    wanted = name.startswith("select")
    return Stream([one for one in items if bool(test(path(one, attribute), *args[1:], **named)) is wanted])


def _mapped(items: list, args: list, named: dict[str, Any]) -> list:
    if not args and "attribute" in named:
        attribute, default = named.pop("attribute"), named.pop("default", None)
        if named or isinstance(attribute, str) and "." in attribute and default is not None:
            raise TypeError("such a map is not in the subset")
        found = [path(one, attribute) for one in items]
        return found if default is None else [_default(one, default) for one in found]
    if not args or args[0] not in FILTERS:
        raise TypeError(f"map by the filter {args[0] if args else None!r} is not in the subset")
    return [FILTERS[args[0]](one, *args[1:], **named) for one in items]
