"""Values of the template language: what a template can hold, and how its work is counted.

Values are texts, numbers, booleans, none, lists, tuples, dicts and their views, ranges, and the classes
of this file. Nothing of Python can be reached beside what template_operators.py names. Rules follow Jinja
3.1's sandbox. An operation that Jinja has and this subset lacks raises a TypeError that names it, never
another value.

Work is counted. Every operation calls `spend` with about the number of values or characters that it
touches, before it makes them, so a template that would run long or grow large ends early.
"""
from __future__ import annotations

from collections.abc import ItemsView, KeysView, ValuesView
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from redlite.errors import Error
from redlite.text import marked

MOST_STEPS = 1_000_000      # expressions, statements, and an eighth of the characters of one rendering
MOST_RANGE = 100_000        # as Jinja's sandbox
LARGEST = 1 << 256          # whole numbers beyond it are refused
VIEWS = (KeysView, ItemsView, ValuesView)
LISTS: tuple[Any, ...] = (list, tuple, range, *VIEWS)
COLLECTIONS: tuple[Any, ...] = (*LISTS, dict)


class TemplateError(Error):
    """The template is malformed, needs what the subset lacks, or went beyond its bounds."""


class TemplateRefusal(Error):
    """The template itself refused the conversation, by `raise_exception`."""


class OutOfSteps(Exception):
    """The rendering has used up its steps."""


@dataclass
class Budget:
    """The steps that a rendering may still take, and how deep its macros are."""
    steps: int = MOST_STEPS
    calls: int = 0


BUDGET: ContextVar[Budget] = ContextVar("template_budget")


def spend(steps: int = 1) -> None:
    """Count work. Raises OutOfSteps."""
    budget = BUDGET.get()
    budget.steps -= steps
    if budget.steps < 0:
        raise OutOfSteps


class Undefined:
    """What a missing name or field is: empty as text, false, without items. Any other use is an error."""

    def __init__(self, name: str):
        self.name = name

    def __repr__(self) -> str:
        return "Undefined"

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Undefined)

    def __hash__(self) -> int:
        return hash(Undefined)


class Namespace(dict):
    """`namespace(...)`: the one thing whose fields a template may set."""


class Stream:
    """What the filters map, select, … give: items to go through once; always true, without a length."""

    def __init__(self, items: list):
        self._items = items

    def take(self) -> list:
        """The items, the first time; then none."""
        found, self._items = self._items, []
        return found


@dataclass
class Loop:
    """`loop` inside a for block."""
    items: list
    index0: int = 0

    def field(self, name: str) -> Any:
        if name in ("cycle", "changed"):
            raise TypeError(f"loop.{name} is not in the subset")
        n, i = len(self.items), self.index0
        known = {"index": i + 1, "index0": i, "revindex": n - i, "revindex0": n - i - 1, "first": i == 0,
                 "last": i == n - 1, "length": n, "depth": 1, "depth0": 0,     # no loop is recursive
                 "previtem": self.items[i - 1] if i else Undefined("loop.previtem"),
                 "nextitem": self.items[i + 1] if i + 1 < n else Undefined("loop.nextitem")}
        return known.get(name, Undefined(f"loop.{name}"))


# Reading values

KINDS: tuple[tuple[tuple[Any, ...], str], ...] = (
    ((str,), "a text"), ((bool,), "a boolean"), ((int, float), "a number"), ((Namespace,), "a namespace"),
    ((dict,), "an object"), (LISTS, "a list"), ((Stream,), "the result of a filter"), ((Loop,), "loop"))


def kind_of(value: Any) -> str:
    """What a value is, for messages."""
    if isinstance(value, Undefined):
        return f"{value.name!r}, which is undefined"
    for kinds, name in KINDS:
        if isinstance(value, kinds):
            return name
    return "none" if value is None else "a function"


def items_of(value: Any) -> list:
    """The items that a for block goes over."""
    if isinstance(value, Undefined):
        return []
    if isinstance(value, str):
        spend(len(value))
        return marked.pieces(value, [(i, i + 1) for i in range(len(value))])
    if isinstance(value, COLLECTIONS) and not isinstance(value, Namespace):
        spend(len(value) >> 3)
        return list(value)
    if isinstance(value, Stream):
        return value.take()
    raise TypeError(f"{kind_of(value)} has no items")


def texts_in(value: Any) -> list[str]:
    """Every text inside a value, the keys of its objects too. It counts the work of a walk through it."""
    found: list[str] = []
    left = [value]
    while left:
        spend()
        one = left.pop()
        if isinstance(one, str):
            spend(len(one) >> 3)
            found.append(one)
        elif isinstance(one, dict):
            left += [*one.values(), *one]
        elif isinstance(one, LISTS) and not isinstance(one, range):
            left += one
    return found


def text_of(value: Any) -> str:
    """A value as `{{ … }}` writes it."""
    if isinstance(value, str):
        return value
    if isinstance(value, Undefined):
        return ""
    if callable(value) or isinstance(value, (Stream, Loop, Namespace)):
        raise TypeError(f"writing {kind_of(value)} as text is not in the subset")
    texts = texts_in(value)
    if any(isinstance(text, marked.Safe) for text in texts):
        raise TypeError("writing a list of safe texts is not in the subset")
    return marked.blend(str(value), *texts)


def unsafe(value: Any) -> Any:
    """Any value but a safe text, with which Jinja's operators escape the other side for HTML."""
    if isinstance(value, marked.Safe):
        raise TypeError("the filter 'safe' with anything but ~ behind it is not in the subset")
    return value


def key_of(value: Any) -> Any:
    """A value that may be the key of an object."""
    if isinstance(value, (str, int, float, type(None))):
        return value
    raise TypeError(f"{kind_of(value)} as a key is not in the subset")


def number(value: Any) -> Any:
    """A value that is a number."""
    if isinstance(value, (int, float)):
        return bounded(value)
    raise TypeError(f"{kind_of(value)} is no number")


def bounded(value: Any) -> Any:
    """A number that is not so large that counting with it would take long."""
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError("a number is larger than 2^256")
    return value
