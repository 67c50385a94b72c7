"""Expressions of the template language: tokens → closures over a scope.

The grammar and its precedence are those of jinja2's parser.py.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redlite.text.template_filters import FILTERS, SAFE, SELECTING, TESTS, select
from redlite.text.template_lexer import Token, string_value
from redlite.text.template_operators import BINARY, COMPARE, attribute, item, part
from redlite.text.template_reader import Expression, Reader, Scope
from redlite.text.template_values import Undefined, items_of, key_of, kind_of, number, spend, unsafe

CONSTANTS = {"true": True, "false": False, "none": None, "True": True, "False": False, "None": None}
OPERATORS = ("else", "or", "and", "is", "if", "in", "not")  # names that are no values


class Spread(list):
    """The items of `*items` among the arguments of a call."""


Arguments = tuple[list[Expression], dict[str, Expression]]      # by place, and by name


class Expressions:
    """The expressions of a template, loosest first: each method reads one and gives its closure."""

    def __init__(self, read: Reader):
        self.read = read

    def listed(self, conditional: bool = True) -> Expression:
        """One expression, or several with commas between them."""
        first = self.expression(conditional)
        if not self.read.at(","):
            return first
        parts = [first]
        while self.read.take(","):
            if self.read.token.kind in ("%}", "}}") or self.read.at(")"):
                break
            parts.append(self.expression(conditional))
        return lambda scope: tuple(part(scope) for part in parts)

    def expression(self, conditional: bool = True) -> Expression:
        return self.read.nested(self._condition if conditional else self._either)

    def _condition(self) -> Expression:
        value = self._either()
        while self.read.take("if"):
            test = self._either()
            no: Expression = lambda scope: Undefined("else")  # noqa: E731
            if self.read.take("else"):
                no = self.read.nested(self._condition)
            value = self._choice(test, value, no)
        return value

    @staticmethod
    def _choice(test: Expression, yes: Expression, no: Expression) -> Expression:
        return lambda scope: yes(scope) if test(scope) else no(scope)

    def _either(self) -> Expression:
        values = [self._both()]
        while self.read.take("or"):
            values.append(self._both())
        return self._chain(values, False)

    def _both(self) -> Expression:
        values = [self._negation()]
        while self.read.take("and"):
            values.append(self._negation())
        return self._chain(values, True)

    @staticmethod
    def _chain(values: list[Expression], wanted: bool) -> Expression:
        """`and` (wanted: True) or `or`: the first value that decides, else the last."""
        if len(values) == 1:
            return values[0]

        def decide(scope: Scope) -> Any:
            for value in values:
                found = value(scope)
                if bool(found) is not wanted:
                    break
            return found
        return decide

    def _negation(self) -> Expression:
        if self.read.take("not"):
            value = self.read.nested(self._negation)
            return lambda scope: not value(scope)
        return self._comparison()

    def _comparison(self) -> Expression:
        first, rest = self._binary(0), []
        while True:
            name = self.read.token.value if self.read.token.kind in ("mark", "name") else ""
            if name == "not" and self.read.following().value == "in":
                self.read.place += 1
                name = "not in"
            if name not in COMPARE:
                break
            self.read.place += 1
            rest.append((COMPARE[name], self._binary(0)))
        if not rest:
            return first

        def compare(scope: Scope) -> bool:
            left = first(scope)
            for operator, expression in rest:
                right = expression(scope)
                if not operator(left, right):
                    return False
                left = right
            return True
        return self.read.guard(compare)

    def _binary(self, level: int) -> Expression:
        if level == len(BINARY):
            return self._unary()
        value = self._binary(level + 1)
        while self.read.at(*BINARY[level]):
            operator = BINARY[level][self.read.token.value]
            self.read.place += 1
            value = self._operation(operator, value, self._binary(level + 1))
        return value

    def _operation(self, operator: Callable[[Any, Any], Any], a: Expression, b: Expression) -> Expression:
        return self.read.guard(lambda scope: operator(a(scope), b(scope)))

    def _unary(self, filtered: bool = True) -> Expression:
        if self.read.at("-", "+"):
            sign = -1 if self.read.token.value == "-" else 1
            self.read.place += 1
            operand = self.read.nested(lambda: self._unary(filtered=False))
            value = self.read.guard(lambda scope: sign * number(operand(scope)))
        else:
            value = self._primary()
        value = self._postfix(value)
        return self.filters(value) if filtered else value

    def _primary(self) -> Expression:
        read, token = self.read, self.read.token
        read.place += 1
        if token.kind == "string":
            read.place -= 1
            text = ""
            while read.token.kind == "string":      # texts side by side are one
                text += self._string(read.token)
                read.place += 1
            return lambda scope: text
        if token.kind in ("int", "float"):
            value: float = int(token.value) if token.kind == "int" else float(token.value)
            return lambda scope: value
        if token.kind == "name" and token.value in CONSTANTS:
            return lambda scope: CONSTANTS[token.value]
        if token.kind == "name" and token.value not in OPERATORS:
            return lambda scope: scope.get(token.value)
        if token.kind == "mark" and token.value in ("(", "[", "{"):
            return {"(": self._bracketed, "[": self._list, "{": self._object}[token.value]()
        raise read.fail(f"a value is missing before {token.value or token.kind!r}", token.line)

    def _string(self, token: Token) -> str:
        try:
            return string_value(token.value)
        except UnicodeDecodeError:
            raise self.read.fail(f"a malformed escape in {token.value[:20]}", token.line) from None

    def _bracketed(self) -> Expression:
        if self.read.take(")"):
            return lambda scope: ()
        value = self.read.nested(self.listed)
        self.read.expect(")")
        return value

    def _list(self) -> Expression:
        parts: list[Expression] = []
        while not self.read.take("]"):
            parts.append(self.expression())
            if not self.read.take(","):
                self.read.expect("]")
                break
        return lambda scope: [part(scope) for part in parts]

    def _object(self) -> Expression:
        pairs: list[tuple[Expression, Expression]] = []
        while not self.read.take("}"):
            key = self.expression()
            self.read.expect(":")
            pairs.append((key, self.expression()))
            if not self.read.take(","):
                self.read.expect("}")
                break
        return self.read.guard(lambda scope: {key_of(key(scope)): value(scope) for key, value in pairs})

    def _postfix(self, value: Expression) -> Expression:
        """Fields, items and calls behind a value."""
        while True:
            if self.read.take("."):
                value = self._field(value)
            elif self.read.take("["):
                value = self._subscript(value)
            elif self.read.take("("):
                value = self._call(value)
            else:
                return value

    def _field(self, value: Expression) -> Expression:
        token = self.read.token
        if token.kind not in ("name", "int"):
            raise self.read.fail(f"a name is missing before {token.value or token.kind!r}")
        self.read.place += 1
        if token.kind == "int":
            return self.read.guard(lambda scope: item(value(scope), int(token.value)))
        return self.read.guard(lambda scope: attribute(value(scope), token.value))

    def _subscript(self, value: Expression) -> Expression:
        parts: list[Expression | None] = [None]
        while not self.read.take("]"):
            if self.read.take(":"):
                parts.append(None)
            elif parts[-1] is not None:
                raise self.read.fail("']' is missing")
            else:
                parts[-1] = self.expression()
        if len(parts) > 3 or parts == [None]:
            raise self.read.fail("such a subscript is not in the subset")
        if len(parts) == 1:
            key = parts[0] or (lambda scope: None)
            return self.read.guard(lambda scope: item(value(scope), key(scope)))
        parts += [None] * (3 - len(parts))
        return self.read.guard(lambda scope: part(value(scope), *(at and at(scope) for at in parts)))

    def _arguments(self) -> Arguments:
        """Behind "(": positional arguments and named ones."""
        args: list[Expression] = []
        named: dict[str, Expression] = {}
        while not self.read.take(")"):
            if self.read.take("*"):
                args.append(self._spread(self.expression()))
            elif self.read.token.kind == "name" and self.read.following().value == "=":
                name = self.read.name()
                self.read.expect("=")
                named[name] = self.expression()
            elif named:
                raise self.read.fail("an argument without a name stands behind one with a name")
            else:
                args.append(self.expression())
            if not self.read.take(","):
                self.read.expect(")")
                break
        return args, named

    @staticmethod
    def _spread(value: Expression) -> Expression:
        """`*value` among arguments."""
        return lambda scope: Spread(items_of(value(scope)))

    def _call(self, function: Expression) -> Expression:
        args, named = self._arguments()

        def apply(scope: Scope) -> Any:
            called = function(scope)
            if not callable(called):
                raise TypeError(f"{kind_of(called)} cannot be called")
            given: list = []
            for arg in args:
                found = arg(scope)
                given += found if isinstance(found, Spread) else [found]
            return called(*given, **{name: value(scope) for name, value in named.items()})
        return self.read.guard(apply)

    def filters(self, value: Expression) -> Expression:
        """Filters, tests and calls behind a value."""
        while True:
            if self.read.take("|"):
                value = self.filter(value)
            elif self.read.take("is"):
                value = self._test(value)
            elif self.read.take("("):
                value = self._call(value)
            else:
                return value

    def filter(self, value: Expression) -> Expression:
        """The filter whose name comes next, upon a value."""
        name = self.read.name()
        args, named = self._arguments() if self.read.take("(") else ([], {})

        def apply(scope: Scope) -> Any:
            found = value(scope)
            given = [arg(scope) for arg in args]
            by_name = {key: arg(scope) for key, arg in named.items()}
            if name in SELECTING:
                return select(name, found, given, by_name)
            if name not in FILTERS:     # as in Jinja, only where it is reached
                raise TypeError(f"the filter {name!r} is not in the subset")
            spend(len(found) >> 3 if isinstance(found, str) else 1)
            if name not in SAFE:
                unsafe(found)
            return FILTERS[name](found, *given, **by_name)
        return self.read.guard(apply)

    def _test(self, value: Expression) -> Expression:
        wanted = not self.read.take("not")
        name = self.read.name()
        args: list[Expression] = []
        if self.read.take("("):
            args, _ = self._arguments()
        elif self.read.token.kind in ("string", "int", "float") or self.read.at("[", "{") or (
                self.read.token.kind == "name" and not self.read.at("else", "or", "and", "is")):
            args = [self._postfix(self._primary())]
        if self.read.at("is"):
            raise self.read.fail("tests cannot be chained with 'is'")

        def apply(scope: Scope) -> bool:
            if name not in TESTS:
                raise TypeError(f"the test {name!r} is not in the subset")
            return bool(TESTS[name](value(scope), *[arg(scope) for arg in args])) is wanted
        return self.read.guard(apply)
