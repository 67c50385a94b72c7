r"""Thousands of mutated templates: each renders or ends in one line, soon.

    python tests/beside/fuzz_templates.py [COUNT [DIRECTORY of *.jinja]]
"""
import random
import sys
import time
from datetime import datetime
from pathlib import Path

from redlite.errors import Error
from redlite.text import template

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
import templates  # noqa: E402

WORDS = [
    "{%", "%}", "{{", "}}", "{#", "#}", "for", "in", "if", "else", "endif", "endfor", "set", "macro",
    "endmacro", "(", ")", "[", "]", "{", "}", "|", "~", "+", "*", "**", "-", "//", "%", ".", ",", ":", "=",
    "==", "'", "\"", "\\", "not", "is", "range(99999)", "messages", "999999999999999999", "'ab' * 99999",
    "loop", "namespace()", "tojson", "list", "join", "replace", "x", "0", "none", "true", "\n", " ", "é",
    "\0", "{% for x in range(9999) %}", "{% endfor %}", "{% break %}", "{% set x = x ~ x %}",
    "{% set x = [x, x] %}", "|tojson(indent=9)", "|indent('  ')", ".split('')", "[::-1]",
]


def mutated(source: str, rng: random.Random) -> str:
    """A source with one to six pieces cut, doubled, moved or put in."""
    for _ in range(rng.randrange(1, 7)):
        a, b = sorted(rng.randrange(len(source) + 1) for _ in range(2))
        b = min(b, a + 60)
        word = rng.choice(WORDS)
        source = rng.choice([source[:a] + source[b:], source[:b] + source[a:],
                             source[:a] + word + source[a:], source[:a] + word + source[b:]])
    return source


def outcome(source: str) -> str:
    """"rendered" or "refused"; anything that is no Error of one line escapes."""
    try:
        template.Template(source).render(templates.VARIABLES, datetime(2024, 7, 26))
    except Error as error:
        if "\n" in str(error):
            raise AssertionError(f"more than one line: {error}") from None
        return "refused"
    return "rendered"


def main(count: int, sources: list[str], seed: int = 5) -> dict:
    rng, found, slowest = random.Random(seed), {"rendered": 0, "refused": 0}, 0.0
    for _ in range(count):
        source = mutated(rng.choice(sources), rng)
        started = time.perf_counter()
        found[outcome(source)] += 1
        if time.perf_counter() - started > slowest:
            slowest, worst = time.perf_counter() - started, source
    print(found, f"slowest {slowest:.2f} s", repr(worst[:200]))
    return found


if __name__ == "__main__":
    given = sys.argv[2:] and [file.read_text() for file in sorted(Path(sys.argv[2]).glob("*.jinja"))]
    main(int((sys.argv[1:2] or ["5000"])[0]), given or [s for s in templates.sources() if s])
