"""What parsing a template needs: the scope that its closures run over, and the reader of its tokens."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from redlite.text.template_lexer import Token, tokens
from redlite.text.template_values import OutOfSteps, TemplateError, Undefined, items_of, spend

MOST_DEPTH = 40             # nested blocks and brackets
MOST_SOURCE = 1 << 20       # characters of a template
FAULTS = (TypeError, ValueError, LookupError, ArithmeticError)  # what an operation on unfit values raises


@dataclass
class Scope:
    """Names, and the output that statements add to. A for, a macro and a with have one of their own."""
    parent: Scope | None = None
    names: dict[str, Any] = field(default_factory=dict)
    out: list[str] = field(default_factory=list)

    def get(self, name: str) -> Any:
        scope: Scope | None = self
        while scope:
            if name in scope.names:
                return scope.names[name]
            scope = scope.parent
        return Undefined(name)

    def inner(self, out: list[str] | None = None) -> Scope:
        """A scope inside this one, with its own output if `out` is given."""
        return Scope(self, {}, self.out if out is None else out)

    def bind(self, names: list[str], value: Any) -> None:
        """Give one name a value, or several its items."""
        if len(names) == 1:
            self.names[names[0]] = value
            return
        parts = items_of(value)
        if len(parts) != len(names):
            raise TypeError(f"{len(parts)} values for the names {', '.join(names)}")
        self.names.update(zip(names, parts, strict=True))

    def write(self, text: str) -> None:
        spend(1 + (len(text) >> 3))
        self.out.append(text)


Expression = Callable[[Scope], Any]


class Reader:
    """A template's tokens, read from left to right."""

    def __init__(self, source: str, where: str):
        if len(source) > MOST_SOURCE:
            raise TemplateError(f"{where}: has {len(source):,} characters, more than {MOST_SOURCE:,}")
        self.where, self.tokens, self.place, self.depth = where, list(tokens(source, where)), 0, 0
        self.end = Token("end", "", self.tokens[-1].line if self.tokens else 1)

    @property
    def token(self) -> Token:
        return self.tokens[self.place] if self.place < len(self.tokens) else self.end

    @property
    def line(self) -> int:
        """The line of the token that was read last."""
        return self.tokens[max(self.place - 1, 0)].line if self.tokens else 1

    def following(self) -> Token:
        """The token behind the next one."""
        return self.tokens[self.place + 1] if self.place + 1 < len(self.tokens) else self.end

    def fail(self, message: str, line: int | None = None) -> TemplateError:
        return TemplateError(f"{self.where}, line {line or self.token.line}: {message}")

    def at(self, *values: str) -> bool:
        """Whether the next token is a name or mark with one of these values."""
        return self.token.kind in ("name", "mark") and self.token.value in values

    def take(self, *values: str) -> bool:
        """As `at`; the token is read then."""
        found = self.at(*values)
        self.place += found
        return found

    def expect(self, value: str) -> None:
        if not self.take(value):
            raise self.fail(f"{value!r} is missing before {self.token.value or self.token.kind!r}")

    def name(self) -> str:
        if self.token.kind != "name":
            raise self.fail(f"a name is missing before {self.token.value or self.token.kind!r}")
        self.place += 1
        return self.tokens[self.place - 1].value

    def close(self, kind: str) -> None:
        """The end of a tag."""
        if self.token.kind != kind:
            raise self.fail(f"{self.token.value or self.token.kind!r} is not expected before {kind}")
        self.place += 1

    def nested(self, parse: Callable[[], Any]) -> Any:
        """What `parse` gives, one level deeper."""
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise self.fail(f"is nested more than {MOST_DEPTH} deep")
        found = parse()
        self.depth -= 1
        return found

    def guard(self, run: Callable[[Scope], Any]) -> Expression:
        """`run` as a counted step whose faults name the line."""
        line, where = self.line, self.where

        def guarded(scope: Scope) -> Any:
            try:
                spend()
                return run(scope)
            except FAULTS as error:
                message = str(error).replace("<lambda>()", "it")
                raise TemplateError(f"{where}, line {line}: {message}") from None
            except OutOfSteps:
                raise TemplateError(f"{where}, line {line}: takes too many steps, or writes too much; "
                                    "give a template that ends") from None
        return guarded
