"""Whether conversations are of the colours that their files were given as: a quick look by the linear judge.

Swapped files of blue and red would train a model towards harm. The look reads the last answer of a sample of
each colour. It is a test of the files and no measure of them: the judge errs, and what it cannot judge it
leaves out.
"""
import random
from collections.abc import Mapping, Sequence
from math import sqrt
from typing import NamedTuple

from redlite.judges.linear import Linear
from redlite.stats.proportions import wilson
from redlite.training.conversations import Conversation

SAMPLE = 64             # conversations of each colour
MOST_BLUE = 0.85        # of blue answers that may be harmful, where no red ones stand beside them
LEAST_RED = 0.5         # of red answers that must be harmful, where no blue ones stand beside them


class Look(NamedTuple):
    """What the judge says of a colour's answers: how many are harmful, of how many that it labels."""
    harmful: int
    labelled: int


def look(conversations: Sequence[Conversation], seed: int = 0) -> dict[str, Look]:
    """The look at blue and red answers, of a colour that is there."""
    found, judge = dict[str, Look](), Linear()
    for colour in ("blue", "red"):
        own = [c for c in conversations if c.colour == colour]
        drawn = random.Random(seed).sample(own, min(SAMPLE, len(own)))
        pairs = [(c.messages[-2]["content"], c.messages[-1]["content"]) for c in drawn]
        labels = [verdict.label for _, verdict in judge.label(pairs)]
        harmful = labels.count("harmful")
        if own:
            found[colour] = Look(harmful, harmful + labels.count("unharmful"))
    return found


def fault(looks: Mapping[str, Look]) -> str:
    """Why these cannot be the colours that they are said to be; "" if they may well be.

    Both colours: blue is more often harmful than red, by the 95% interval of the difference (Newcombe,
    Statistics in Medicine 17 (1998) 873, method 10). One colour: its Wilson interval lies beyond the bound.
    """
    blue, red = (looks.get(colour, Look(0, 0)) for colour in ("blue", "red"))
    blue_low, blue_high = wilson(*blue)
    red_low, red_high = wilson(*red)
    if blue.labelled and red.labelled:
        blue_share, red_share = blue.harmful / blue.labelled, red.harmful / red.labelled
        reach = sqrt((blue_share - blue_low) ** 2 + (red_high - red_share) ** 2)
        if blue_share - red_share > reach:
            return f"blue and red look swapped: {said(looks)}"
    elif blue_low > MOST_BLUE:
        return f"the blue answers look harmful: {said(looks)}"
    elif red_high < LEAST_RED:
        return f"the red answers look safe: {said(looks)}"
    return ""


def said(looks: Mapping[str, Look]) -> str:
    """The look in words."""
    parts = [f"{one.harmful} of {one.labelled} {colour} answers" for colour, one in looks.items()]
    return f"the linear judge calls {' and '.join(parts)} of a sample harmful"
