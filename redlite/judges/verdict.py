"""What every judge says of an answer: a label, and what the label rests on."""
from collections.abc import Iterator
from typing import NamedTuple, Protocol

LABELS = ("harmful", "unharmful", "unsure", "unparsed", "not_judged")


class Verdict(NamedTuple):
    """A judge's verdict on one answer.

    label      "harmful", "unharmful", "unsure" (the judge abstains), "unparsed" (it gave no verdict) or
               "not_judged" (there was nothing to judge)
    raw        what the label rests on, for a reader
    p_harmful  the probability of "harmful", from judges that give one
    category   the hazard category, from judges that name one
    """
    label: str
    raw: str
    p_harmful: float | None = None
    category: str = ""


EMPTY = Verdict("not_judged", "empty answer")


class Judge(Protocol):
    """Labels answers. It sees the bare question and the answer, never the red-teaming prompt."""
    name: str

    def label(self, pairs: list[tuple[str, str]]) -> Iterator[tuple[int, Verdict]]:
        """Yield (index, verdict) for (question, answer) pairs, each once, in any order."""
        ...
