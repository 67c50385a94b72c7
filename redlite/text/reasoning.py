"""What an answer says apart from the internal thought that the Chain of Utterances prompt makes a model open with."""
import re

# Quantifiers next to each other never match the same characters, so that no text takes more than linear time.
_MARKUP = re.compile(r"""[\s*_"“”]*""")
_SPEAKER = re.compile(r"Base-LM\s*:", re.IGNORECASE)
_OPENS = re.compile(r"[(\[（][\s*_]*(?:(?:internal|inner|private)\s+(?:thoughts?|monologue|thinking|reasoning)|thoughts?\s*[:\-–—])", re.IGNORECASE)
_CLOSERS = {"(": ")", "[": "]", "（": "）"}
_SMILEY = re.compile(r"(?<!\S)[:;]-?$")
_ITEM = re.compile(r"(?<!\S)(?:\d{1,2}|[a-z])$", re.IGNORECASE)


def strip_thoughts(text: str) -> str:
    """The answer without the internal thought it opens with (arXiv 2308.09662, section 3.1: such thoughts are not judged).

    A thought is a bracket at the very start that says it is one: "(Internal thought: …)", "(internal thoughts – …)",
    "(Thought: …)", also behind white space, markup or "Base-LM:". It ends at its own closing bracket; brackets inside
    pair off, and ":)" or the "1)", "2)" of a list do not close it, unless nothing else does. A thought that never closes is
    all there is: the answer is "". Several in a row all go. Brackets that do not call themselves a thought, and
    thoughts later in the text, stay.
    """
    kept = 0  # where what is not thought begins
    while True:
        start = _MARKUP.match(text, kept).end()
        if speaker := _SPEAKER.match(text, start):
            start = _MARKUP.match(text, speaker.end()).end()
        if not _OPENS.match(text, start):
            return text[kept:].strip()
        end = _closing(text, start, lenient=True) or _closing(text, start, lenient=False)
        if end is None:
            return ""
        while text[end:end + 1] in tuple('*_"”'):  # what closes the markup that the thought stood in
            end += 1
        kept = end


def _closing(text: str, start: int, lenient: bool) -> int | None:
    """The index behind the bracket that closes the one at `start`; None if none does."""
    opener, closer = text[start], _CLOSERS[text[start]]
    depth, expected = 0, ("1", "a")
    for match in re.finditer(f"[{re.escape(opener + closer)}]", text[start:]):
        i = start + match.start()
        before = text[max(start + 1, i - 3):i]
        if lenient and i > start:
            if _SMILEY.search(before):
                continue
            item = _ITEM.search(before)
            if text[i] == closer and depth == 1 and item and item.group().lower() in expected:
                expected = ("1", "a", str(int(item.group()) + 1) if item.group().isdecimal() else chr(ord(item.group().lower()) + 1))
                continue
        depth += 1 if text[i] == opener else -1
        if depth == 0:
            return i + 1
    return None
