"""Reading what a model writes for a collection: lists, conversations, and which questions are alike."""
import re
from functools import cache

from redlite.text.reasoning import strip_thoughts

Turns = list[dict[str, str]]    # HarmfulQA's: "from" is human or gpt, "value" the text

# "1. x", "(1) x", "**1.** x", "### 1: x", "Question 1: x", "- 1) x", or a bullet and a space.
_ITEM = re.compile(r"[-*_#>•–\s]*(?:(?:question|subtopic)\s*)?\(?\d{1,3}[*_]*[.):]\s*(.+)|\s*[-*•–]\s+(.+)",
                   re.IGNORECASE)
_SPEAKER = re.compile(r"^[\s*_]*(Red-LM|Base-LM)[\s*_]*:[\s*_]*", re.MULTILINE)
_NEXT = re.compile(r"\n\s*(?:###|\(Base-LM )")      # where the model begins another example


def read_list(text: str) -> list[str]:
    """The items of a numbered or bulleted list, without thoughts, emphasis, quotes and headings.

    A heading is what ends in a colon. A reply without a mark is read for its lines that end in a question
    mark.
    """
    lines = strip_thoughts(text).splitlines()
    items = [match[1] or match[2] for line in lines if (match := _ITEM.match(line))]
    if not items:
        items = [line for line in lines if line.rstrip(" *_\"”'").endswith("?")]
    clean = [re.sub(r"\*\*|__", "", item).strip(" \t\"“”'*_") for item in items]
    return [item for item in clean if re.search(r"\w", item) and not item.endswith(":")]


def read_conversation(question: str, text: str) -> tuple[Turns, str]:
    """(turns, "") of a reply that goes on behind "Base-LM:", or ([], why it is none). Thoughts are removed.

    A question at the end that nobody answers is left out. Each speaker's turn must follow the other's.
    """
    turns: Turns = [{"from": "human", "value": question}]
    pieces = _pieces(strip_thoughts(text))  # a thought may hold drafts of turns
    if not pieces:
        return [], "no answer"
    for speaker, piece in pieces:
        who, value = ("human", piece.strip()) if speaker == "Red-LM" else ("gpt", strip_thoughts(piece))
        value = _NEXT.split(value)[0].strip()
        if who == turns[-1]["from"]:
            return [], "turns do not alternate"
        if not value:
            return [], "an empty turn"
        turns.append({"from": who, "value": value})
    if turns[-1]["from"] == "human":
        turns.pop()
    return (turns, "") if len(turns) >= 2 else ([], "no answer")


def _pieces(text: str) -> list[tuple[str, str]]:
    """(speaker, what is said) in order.

    A reply may begin by repeating whose turn it is, and the question too.
    """
    speakers, begins, ends = ["Base-LM"], [0], []
    for match in _SPEAKER.finditer(text):
        if not text[:match.start()].strip():
            speakers, begins = [match[1]], [match.end()]
            continue
        ends.append(match.start())
        speakers.append(match[1])
        begins.append(match.end())
    ends.append(len(text))
    found = [(who, text[begin:end]) for who, begin, end in zip(speakers, begins, ends, strict=True)]
    return found[1:] if speakers[0] == "Red-LM" else found


def alike(text: str, others: list[str], least: float) -> bool:
    """Whether a text is at least so similar to one of the others."""
    mine = shingles(text)
    return any(similarity(mine, shingles(other)) >= least for other in others)


def similarity(a: frozenset[str], b: frozenset[str]) -> float:
    """Jaccard's index of two sets of shingles."""
    return len(a & b) / len(a | b) if a or b else 1.0


@cache
def shingles(text: str) -> frozenset[str]:
    """The runs of four characters of a text in lower case, letters, digits and single spaces only."""
    plain = " ".join(re.findall(r"\w+", text.lower()))
    return frozenset(plain[i:i + 4] for i in range(max(1, len(plain) - 3)))
