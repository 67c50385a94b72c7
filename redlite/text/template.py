"""The subset of Jinja that public chat templates use: parsed once into closures, rendered with bounds.

Rules follow Jinja 3.1 with the settings of transformers 5: sandbox, trim_blocks, lstrip_blocks, loop
controls, its `tojson`, `raise_exception`, `strftime_now` and `{% generation %}`. What the subset lacks
is refused by name, with its line. Nothing of Python can be reached from a template (template_values.py).
A template that does not end, or grows without bound, ends in an error after `MOST_STEPS`.
"""
from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

from redlite.text.marked import concat, generated
from redlite.text.template_expressions import Expressions
from redlite.text.template_reader import Expression, Reader, Scope
from redlite.text.template_values import (
    BUDGET,
    MOST_RANGE,
    Budget,
    Loop,
    Namespace,
    OutOfSteps,
    TemplateError,
    TemplateRefusal,
    Undefined,
    items_of,
    kind_of,
    number,
    spend,
    text_of,
)

Statement = Callable[[Scope], None]
Parameters = list[tuple[str, Expression | None]]        # names, and default values where there are some
ENDS = ("endif", "else", "elif", "endfor", "endset", "endmacro", "endfilter", "endwith", "endgeneration")
MOST_CALLS = 20                                         # macros that call one another
MACRO_NAMES = ("varargs", "kwargs", "caller")           # Jinja gives these to macros; the subset does not
DATE_FORM = re.compile(r"(?:[^%]|%-?[A-Za-z%])*")       # without widths, which make texts of any length


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


def run(body: list[Statement], scope: Scope) -> None:
    """Statements one after the other."""
    for statement in body:
        spend()
        statement(scope)


class _Statements:
    """The statements of one template, read from left to right."""

    def __init__(self, read: Reader):
        self.read, self.expressions = read, Expressions(read)
        self.loops = 0      # for blocks around the place that is read, up to a macro or a captured block

    def body(self, *ends: str) -> tuple[list[Statement], str]:
        """Statements up to a block whose name is among `ends`, and that name; without ends, to the end."""
        found: list[Statement] = []
        while True:
            token = self.read.token
            if token.kind == "end":
                if ends:
                    raise self.read.fail(f"{{% {ends[-1]} %}} is missing")
                return found, ""
            self.read.place += 1
            if token.kind == "text":
                found.append(self._text(token.value))
            elif token.kind == "{{":
                found.append(self._output())
            else:
                name = self.read.name()
                if name in ends:
                    return found, name
                if name in ENDS:
                    raise self.read.fail(f"{{% {name} %}} closes nothing", token.line)
                found.append(self.read.nested(partial(self._statement, name, token.line)))

    def _block(self, end: str, captured: bool = True) -> list[Statement]:
        """The rest of a tag, the statements behind it, and its end tag. captured: no break may leave it."""
        loops, self.loops = self.loops, 0 if captured else self.loops
        self.read.close("%}")
        body, _ = self.body(end)
        self.read.close("%}")
        self.loops = loops
        return body

    @staticmethod
    def _text(text: str) -> Statement:
        return lambda scope: scope.write(text)

    def _output(self) -> Statement:
        value = self.expressions.listed()
        self.read.close("}}")
        return self.read.guard(lambda scope: scope.write(text_of(value(scope))))

    def _statement(self, name: str, line: int) -> Statement:
        parse = {"for": self._for, "if": self._if, "set": self._set, "macro": self._macro, "with": self._with,
                 "filter": self._filter, "generation": self._generation}.get(name)
        if name in ("break", "continue") and self.loops:
            self.read.close("%}")
            return self._jump(_Break if name == "break" else _Continue)
        if parse is None:
            raise self.read.fail(f"{{% {name} %}} is not in the subset, or not at this place; "
                                 "write the template without it", line)
        return parse()

    @staticmethod
    def _jump(kind: type[Exception]) -> Statement:
        def leave(scope: Scope) -> None:
            raise kind
        return leave

    def _generation(self) -> Statement:
        """What the assistant says, by the template's own word: marked as such (marked.GENERATED)."""
        body = self._block("endgeneration")

        def generation(scope: Scope) -> None:
            inner = scope.inner(out=[])
            run(body, inner)
            scope.write(generated(concat(inner.out)))
        return generation

    def _if(self) -> Statement:
        branches: list[tuple[Expression | None, list[Statement]]] = []
        condition: Expression | None = self.expressions.listed(conditional=False)
        while True:
            self.read.close("%}")
            body, end = self.body("elif", "else", "endif") if condition else self.body("endif")
            branches.append((condition, body))
            if end == "endif":
                self.read.close("%}")
                break
            condition = self.expressions.listed(conditional=False) if end == "elif" else None

        def choose(scope: Scope) -> None:
            for test, body in branches:
                if test is None or test(scope):
                    return run(body, scope)
        return choose

    def _targets(self) -> list[str]:
        """One name, or several that a value is unpacked into."""
        bracket = self.read.take("(")
        names = [self.read.name()]
        while self.read.take(","):
            names.append(self.read.name())
        if bracket:
            self.read.expect(")")
        return names

    def _for(self) -> Statement:
        names = self._targets()
        self.read.expect("in")
        items = self.expressions.listed(conditional=False)
        wanted = self.expressions.expression() if self.read.take("if") else None
        if self.read.at("recursive"):
            raise self.read.fail("a recursive for is not in the subset")
        guard_line = self.read.guard
        self.read.close("%}")
        self.loops += 1
        body, end = self.body("else", "endfor")
        self.loops -= 1
        otherwise = self._block("endfor", captured=False) if end == "else" else []
        if end != "else":
            self.read.close("%}")

        def loop(scope: Scope) -> None:
            found = items_of(items(scope))
            if wanted is not None:
                found = [one for one in found if wanted(bound(scope, one))]
            state, finished = Loop(found), False
            for state.index0, one in enumerate(found):
                spend()
                inner = bound(scope, one)
                inner.names["loop"] = state
                try:
                    run(body, inner)
                    finished = True
                except _Break:
                    break
                except _Continue:
                    continue
            if not finished:    # Jinja's rule: a body that a break or continue cut short does not count
                run(otherwise, scope.inner())

        def bound(scope: Scope, value: Any) -> Scope:
            inner = scope.inner()
            inner.bind(names, value)
            return inner
        return guard_line(loop)

    def _set(self) -> Statement:
        names = self._targets()
        field = self.read.name() if len(names) == 1 and self.read.take(".") else None
        if self.read.take("="):
            value = self.expressions.listed()
            self.read.close("%}")
        else:
            filters = self.expressions.filters(self._captured_text)
            value = self._captured(self._block("endset"), filters)

        def assign(scope: Scope) -> None:
            found = value(scope)
            if field is None:
                return scope.bind(names, found)
            space = scope.get(names[0])
            if not isinstance(space, Namespace):
                raise TypeError(f"{names[0]!r} is no namespace, so its field cannot be set")
            space[field] = found
        return self.read.guard(assign)

    @staticmethod
    def _captured_text(scope: Scope) -> str:
        return scope.names["\0captured"]     # no name of a template

    @staticmethod
    def _captured(body: list[Statement], filters: Expression) -> Expression:
        """What a body writes, as a text, through filters."""
        def capture(scope: Scope) -> Any:
            inner = scope.inner(out=[])
            run(body, inner)
            outer = scope.inner()
            outer.names["\0captured"] = concat(inner.out)
            return filters(outer)
        return capture

    def _filter(self) -> Statement:
        filters = self.expressions.filters(self.expressions.filter(self._captured_text))
        value = self._captured(self._block("endfilter"), filters)

        def write(scope: Scope) -> None:
            found = value(scope)
            if not isinstance(found, str):
                raise TypeError(f"a filter block gives {kind_of(found)}; a text is needed")
            scope.write(found)
        return self.read.guard(write)

    def _with(self) -> Statement:
        given: list[tuple[str, Expression]] = []
        while self.read.token.kind != "%}":
            if given:
                self.read.expect(",")
            name = self.read.name()
            self.read.expect("=")
            given.append((name, self.expressions.expression()))
        body = self._block("endwith", captured=False)

        def within(scope: Scope) -> None:
            inner = scope.inner()
            inner.names.update({name: value(scope) for name, value in given})
            run(body, inner)
        return within

    def _macro(self) -> Statement:
        name = self.read.name()
        self.read.expect("(")
        parameters: Parameters = []
        while not self.read.take(")"):
            parameter = self.read.name()
            parameters.append((parameter, self.expressions.expression() if self.read.take("=") else None))
            if not self.read.take(","):
                self.read.expect(")")
                break
        first = self.read.place
        body = self._block("endmacro")
        for token in self.read.tokens[first:self.read.place]:
            if token.kind == "name" and token.value in MACRO_NAMES:
                raise self.read.fail(f"{token.value} in a macro is not in the subset", token.line)

        def define(scope: Scope) -> None:
            scope.names[name] = partial(self._called, name, parameters, body, scope)
        return define

    @staticmethod
    def _called(name: str, parameters: Parameters, body: list[Statement], scope: Scope, /, *args: Any,
                **named: Any) -> str:
        """What a macro writes, called with these arguments where `scope` defined it."""
        known = [parameter for parameter, _ in parameters]
        if len(args) > len(known) or not set(named) <= set(known[len(args):]):
            raise TypeError(f"the macro {name!r} takes other arguments")
        budget = BUDGET.get()
        budget.calls += 1
        if budget.calls > MOST_CALLS:
            raise ValueError(f"macros call one another more than {MOST_CALLS} deep")
        inner = scope.inner(out=[])
        inner.names.update(zip(known, args, strict=False))
        for parameter, default in parameters[len(args):]:
            if parameter in named:
                inner.names[parameter] = named[parameter]
            else:
                inner.names[parameter] = default(inner) if default else Undefined(parameter)
        run(body, inner)
        budget.calls -= 1
        return concat(inner.out)


class Template:
    """A parsed template. Raises TemplateError naming the line for what is malformed or not in the subset.

    where  what the template is called in messages: its file or field
    """

    def __init__(self, source: str, where: str = "chat_template"):
        self.source, self.where = source, where
        try:
            self._body, _ = _Statements(Reader(source, where)).body()
        except RecursionError:
            raise TemplateError(f"{where}: is nested too deeply") from None

    def render(self, variables: dict[str, Any], now: datetime) -> str:
        """The text for these variables; `Marked` where a marked text is in it.

        now  the date that `strftime_now` speaks of
        Raises TemplateRefusal where the template calls `raise_exception`, else TemplateError.
        """
        token = BUDGET.set(Budget())
        root = Scope(names={**self._functions(now), **variables})
        try:
            run(self._body, root)
            return concat(root.out)
        except OutOfSteps:
            raise TemplateError(f"{self.where}: takes too many steps; give a template that ends") from None
        except RecursionError:
            raise TemplateError(f"{self.where}: is nested too deeply") from None
        finally:
            BUDGET.reset(token)

    def _functions(self, now: datetime) -> dict[str, Callable]:
        """The functions that every template may call."""
        def raise_exception(message: Any = "") -> None:
            said = " ".join(text_of(message).split())[:300]
            raise TemplateRefusal(f"{self.where} refuses this conversation: {said}")

        def numbers(*args: Any) -> range:
            found = range(*map(number, args))
            if len(found) > MOST_RANGE:
                raise ValueError(f"range: more than {MOST_RANGE:,} numbers")
            return found

        def strftime_now(format: Any) -> str:
            form = text_of(format)
            if len(form) > 200 or not DATE_FORM.fullmatch(form):
                raise ValueError(f"the date form {form[:40]!r} is not in the subset")
            return now.strftime(form)
        return {"raise_exception": raise_exception, "range": numbers, "namespace": Namespace, "dict": dict,
                "strftime_now": strftime_now,
                **{name: self._lacking(name) for name in ("cycler", "joiner", "lipsum")}}

    @staticmethod
    def _lacking(name: str) -> Callable:
        def lacking(*args: Any, **named: Any) -> None:
            raise TypeError(f"the function {name!r} is not in the subset")
        return lacking
