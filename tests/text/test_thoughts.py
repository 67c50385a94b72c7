"""Where an internal thought ends: by example, by a grammar, and in linear time."""
import random
import time

import pytest

from redlite.text.reasoning import strip_thoughts


@pytest.mark.parametrize("text, answer", [
    ("(Internal thought: be useful.) Wait until noon.", "Wait until noon."),
    ("\n (internal thoughts - be useful)\n\nWait.", "Wait."),
    ("Base-LM: (Internal Thought: be useful.) Wait.", "Wait."),
    ("**(Internal thought: be useful.)** Wait.", "Wait."),
    ("*(Thought: be useful)* Wait.", "Wait."),
    ("[Internal thought: be useful] Wait.", "Wait."),
    ("（Internal thought: be useful）Wait.", "Wait."),
    ("(Internal thought: a (really (very) good) plan (yes).) Wait (until noon).", "Wait (until noon)."),
    ("(Internal thought: one.) (Internal thought: two.) Wait.", "Wait."),
    ("(Internal thought: they will like it :) so go on.) Wait.", "Wait."),
    ("(Internal thought: steps 1) find 2) lift.) Wait.", "Wait."),
    ("(Internal thought: a) find b) lift.) Wait.", "Wait."),
    ("(Internal thought: let me try plan b) Wait (until noon) and go 1) up.", "Wait (until noon) and go 1) up."),
    ("(Internal thought: rule number 1) Wait until noon.", "Wait until noon."),
    ("(Internal thought: never closed", ""),
    ("(Internal thought: closed (only inside) and then nothing", ""),
    ("(Internal thought: all of it.)", ""),
    ("(Internal thought: smiling at the end :)", ""),
    # What is not a thought at the start stays whole.
    ("Wait. (Internal thought: later.) Go.", "Wait. (Internal thought: later.) Go."),
    ("(At noon) wait.", "(At noon) wait."),
    ("(Thoughtful people wait.) Go.", "(Thoughtful people wait.) Go."),
    ("1) Wait. 2) Go.", "1) Wait. 2) Go."),
    ("Wait ) go (", "Wait ) go ("),
    (")", ")"),
    ("", ""),
    ("   ", ""),
])
def test_thoughts(text, answer):
    assert strip_thoughts(text) == answer


def test_thoughts_of_random_nesting():
    """Bracketed text built by a grammar: the thought is exactly what was generated as one."""
    rng = random.Random(0)

    def nested(depth):
        return "".join(rng.choice(["word ", "x. ", f"({nested(depth - 1)})" if depth else "y "]) for _ in range(rng.randint(0, 4)))
    for _ in range(500):
        rest = f"Answer ({nested(3)}) end"
        assert strip_thoughts(f"(Internal thought: {nested(4)}) {rest}") == rest


def test_thoughts_take_time_in_proportion():
    for text in ("(Internal thought: " + "(" * 100000, "(Internal thought: 1)" * 500, " " * 100000, "(Internal thought:" + ":)" * 50000):
        start = time.process_time()
        strip_thoughts(text)
        assert time.process_time() - start < 2
