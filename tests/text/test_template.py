"""The template language against jinja2 (tests/beside/make_template_goldens.py), its marks and its bounds."""
import json
import time
from datetime import datetime
from pathlib import Path

import fuzz_templates
import pytest
import templates

from redlite.text.marked import GENERATED, Marked
from redlite.text.template import Template
from redlite.text.template_values import TemplateError, TemplateRefusal

GOLDEN = Path(__file__).parents[1] / "golden"
NOW = datetime(2024, 7, 26)
ROWS = json.loads((GOLDEN / "templates.json").read_text())


def rendered(source, **variables):
    return Template(source).render(variables or templates.VARIABLES, NOW)


def fails(source, **variables):
    """The one line that a template ends in."""
    with pytest.raises(TemplateError) as error:
        rendered(source, **variables)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_small_templates_render_as_in_jinja2():
    assert [row[0] for row in ROWS] == templates.sources() and len(ROWS) > 400
    for source, wanted in ROWS:
        try:
            got = rendered(source)
        except (TemplateError, TemplateRefusal):
            got = None
        assert got == wanted, source


def test_public_templates_were_compared():
    """The stored outcome of the comparison with jinja2 over public templates: nothing differs silently."""
    stored = json.loads((GOLDEN / "public_templates.json").read_text())
    rows, total = stored["templates"].values(), stored["total"]
    assert total["templates"] == len(rows) >= 900 and not any("different" in row for row in rows)
    assert {row["source"].split("/")[-1] for row in rows if "refused" in row} == {"openbmb-MiniCPM3-4B.jinja"}
    assert sum(row.get("exact", 0) for row in rows) == total["exact"]


@pytest.mark.parametrize("source, words", [
    ("a\n{% include 'x' %}", ("line 2", "include")), ("{% call f() %}a{% endcall %}", ("call",)),
    ("\n\n{{ 'a' | nosuch }}", ("line 3", "filter 'nosuch'")), ("{{ 1 is nosuch }}", ("test 'nosuch'",)),
    ("{{ 'a'.encode() }}", ("'encode'",)),
    ("{{ items.append(1) }}", ("'append'",)),
    ("{{ ''.__class__ }}", ("__class__",)),
    ("{{ range.__name__ }}", ("'__name__'", "function")),
    ("{{ strftime_now.__self__ }}", ("'__self__'", "function")),
    ("\n{% set s = namespace(a=1) %}{{ s.__class__ }}", ("line 2", "'__class__' of a namespace")),
    ("{% for i in items %}{{ loop.__class__ }}{% endfor %}", ("'__class__' of loop",)),
    ("{{ messages | map(attribute='__class__') | list }}", ("'__class__'",)),
    ("\n{{ 'a' '\\u12' }}", ("line 2: a malformed escape in '\\u12'",)),
    ("{{ ('9' * 5000) | int }}", ("5,000 characters as a number",)),
    ("{{ cycler(1) }}", ("cycler",)),
    ("{{ '%s' % 1 }}", ("%",)),
    ("{{ ('a' | safe) + '<' }}", ("safe",)), ("{% for i in items recursive %}{% endfor %}", ("recursive",)),
    ("{% macro f() %}{{ varargs }}{% endmacro %}", ("varargs",)), ("{{ loop.cycle }}", ("loop",)),
    ("{% for i in items %}{{ loop.cycle(1) }}{% endfor %}", ("loop.cycle",)),
    ("{{ '{:>9}'.format(1) }}", ("format",)),
    ("{{ messages[0].x.y }}", ("line 1", "'x'")), ("{% block a %}{% endblock %}", ("block",)),
])
def test_what_the_subset_lacks_is_refused_by_name_and_line(source, words):
    message = fails(source)
    assert all(word in message for word in words), message


def test_a_refusal_of_the_template_gives_its_own_words():
    with pytest.raises(TemplateRefusal, match="^chat_template refuses this conversation: Only user, please$"):
        rendered("{{ raise_exception('Only user,\n please') }}")


@pytest.mark.slow
@pytest.mark.parametrize("source", [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% set x = namespace(t='a') %}{% for i in range(999) %}{% set x.t = x.t ~ x.t %}{% endfor %}",
    "{% set x = namespace(t=[1]) %}{% for i in range(999) %}{% set x.t = x.t + x.t %}{% endfor %}",
    "{% set x = namespace(t=[1]) %}{% for i in range(99) %}{% set x.t = [x.t, x.t] %}{% endfor %}{{ x.t }}",
    "{% set x = namespace(t=1) %}{% for i in range(99) %}{% set x.t = [x.t, x.t] %}{% endfor %}{{ x.t | "
    "tojson }}",
    "{% set x = namespace(t=1, u=1) %}{% for i in range(99) %}{% set x.t = [x.t, x.t] %}{% set x.u = "
    "[x.u, x.u] %}"
    "{% endfor %}{{ x.t == x.u }}",
    "{% set x = namespace(t=(1,)) %}{% for i in range(99) %}{% set x.t = (x.t, x.t) %}{% endfor %}{{ "
    "{x.t: 1} }}",
    "{% set x = namespace(t=9) %}{% for i in range(99) %}{% set x.t = x.t * x.t %}{% endfor %}",
    "{{ 'ab' * 99999999999 }}",
    "{{ 9 ** 9 ** 9 ** 9 }}",
    "{% set x = 'a' * 9999999 %}{{ x | replace('a', x) }}",
    "{% set x = 'a' * 9999999 %}{{ x | join(x) }}", "{{ [[]] | tojson(indent=99999999) }}",
    "{{ 'a' | indent(99999999) }}", "{{ 5 | round(-999999999) }}", "{{ strftime_now('%99999999d') }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f() %}{{ f() ~ f() }}{% endmacro %}{{ f() }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}x{% endmacro %}{{ f(19) }}{{ f(19) "
    "}}{{ f(19) }}",
    *("{% set a = 'x' * 99999 %}{% for i in range(99999) %}{% set b = " + work + " %}{% endfor %}" for work in
      ("a.count('xx')", "a.find('y')", "a.isalpha()", "a == a.upper()", "a < a + 'y'", "a.startswith(a)")),
    "{{ " + "(" * 999 + "1" + ")" * 999 + " }}", "{{ " + "not " * 9999 + "1 }}", "{{ " + "-" * 9999 + "1 }}",
    "{% if 1 %}" * 999 + "{% endif %}" * 999, "x" * (1 << 20) + "y", "{{ " + "9" * 400 + " }}",
])
def test_endless_and_exponential_templates_end_in_one_line(source):
    started = time.process_time()
    message = fails(source)
    assert len(message) < 300 and time.process_time() - started < 20


def test_mutated_templates_end():
    found = fuzz_templates.main(300, [source for source in templates.sources() if source])
    assert found["rendered"] > 20 and found["refused"] > 100


@pytest.mark.parametrize("expression, text, marked", [
    ("'[' + m + ']'", "[ ab\n]", " ab\n"),
    ("m | trim", "ab", "ab"),
    ("m.strip() ~ '!'", "ab!", "ab"),
    ("m[1]", "a", "a"),
    ("m[::-1]", "\nba ", "\nba "),
    ("m.split('b')[0] + '-' + m.split('b')[1]", " a-\n", " a\n"),
    ("m | upper", " AB\n", " AB\n"),
    ("m.replace('a', 'X')", " Xb\n", " b\n"),
    ("'a-a'.replace('-', m)", "a ab\na", " ab\n"),
    ("m | tojson", '" ab\\n"', '" ab\\n"'),
    ("[m, 'x'] | join('+')", " ab\n+x", " ab\n"),
    ("m.splitlines() | first", " ab", " ab"),
    ("m * 2", " ab\n ab\n", " ab\n ab\n"),
    ("m | list | last", "\n", "\n"),
    ("[m] | string", "[' ab\\n']", "[' ab\\n']"),
    ("m.removeprefix(' ')", "ab\n", "ab\n"),
    ("'{}:{}'.format(m, 1)", " ab\n:1", " ab\n"),
    ("m | indent(1)", " ab\n", " ab"),
    ("m | safe", " ab\n", " ab\n"),
])
def test_marks_follow_the_characters_of_a_message(expression, text, marked):
    got = Template(f"{{{{ {expression} }}}}").render({"m": Marked.of(" ab\n", 5)}, NOW)
    assert got == text
    assert "".join(c for c, mark in zip(got, got.marks, strict=True) if mark == chr(5)) == marked
    assert set(got.marks) <= {chr(0), chr(5)}


@pytest.mark.parametrize("before, behind", [
    ("{% macro say(m) %}", "{% endmacro %}{{ say(m) }}"),
    ("{% set text %}", "{% endset %}{{ text }}"),
    ("{% filter string %}", "{% endfilter %}"),
])
def test_generation_blocks_are_marked_in_their_place(before, behind):
    """transformers 5.24.0 marks too early there: findings/transformers-mask-inside-a-macro.sh."""
    said = "a{% generation %}b{{ m }}{% endgeneration %}c"
    got = Template(f"z{before}{said}{behind}").render({"m": Marked.of("d", 2)}, NOW)
    assert [ord(mark) for mark in got.marks] == [0, 0, GENERATED, GENERATED + 2, 0] and got == "zabdc"


def test_generation_blocks_are_marked():
    got = Template("a{% generation %}b{{ m }}{% endgeneration %}c").render({"m": Marked.of("d", 2)}, NOW)
    assert [ord(mark) for mark in got.marks] == [0, GENERATED, GENERATED + 2, 0] and got == "abdc"
