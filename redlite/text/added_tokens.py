"""Added tokens: texts that are looked for before anything else is done, each with an id of its own."""
import re
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from redlite.text.patterns import WHITE, inside, word_characters


class Rule(NamedTuple):
    """How an added token is found; fields and meaning are those of the tokenizers library.

    lstrip rstrip  it takes the white space on its left, on its right along
    single_word    it is no token beside a letter, a number or a connector such as _
    normalized     it is looked for in text that was normalized
    """
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


PLAIN = Rule()
Found = tuple[str, int | None]      # a text, and its id if it is an added token


@cache
def _word_character() -> re.Pattern:
    r"""What \w means to the regex library of Rust, which the tokenizers library uses here."""
    return re.compile(f"[{inside([*word_characters(), (0x200C, 0x200D)])}]")


class AddedTokens:
    """Finds added tokens in text: the leftmost first, of those that begin there the longest.

    ids    text → id; None for what is no token here, and yet covers its characters (control tokens)
    rules  text → how it is found, where that is not `PLAIN`
    """

    def __init__(self, ids: Mapping[str, int | None], rules: Mapping[str, Rule]):
        self._ids, self._rules = ids, rules
        lengths: dict[str, set[int]] = {}
        for text in ids:
            lengths.setdefault(text[0], set()).add(len(text))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        self._start = re.compile("[" + "".join(map(re.escape, lengths)) + "]") if lengths else None

    def cut(self, text: str) -> list[Found]:
        """The text in pieces: plain ones, and added tokens."""
        if self._start is None:
            return [(text, None)] if text else []
        found: list[Found] = []
        done = at = 0
        while match := self._start.search(text, at):
            start = match.start()
            token = self._longest(text, start)
            if token is None:
                at = start + 1
                continue
            stop = at = start + len(token)
            id, rule = self._ids[token], self._rules.get(token, PLAIN)
            if id is None or rule.single_word and _beside_word(text, start, stop):
                continue
            while rule.lstrip and start > done and text[start - 1] in WHITE:
                start -= 1
            if rule.lstrip:
                start = max(start, done)    # what the token before took along is not taken twice
            while rule.rstrip and stop < len(text) and text[stop] in WHITE:
                stop += 1
            if done < start:
                found.append((text[done:start], None))
            if start < stop:
                found.append((text[start:stop], id))
            done = stop
        return [*found, (text[done:], None)] if done < len(text) else found

    def _longest(self, text: str, start: int) -> str | None:
        for length in self._lengths[text[start]]:
            token = text[start:start + length]
            if token in self._ids:
                return token
        return None


def _beside_word(text: str, start: int, stop: int) -> bool:
    """Whether a letter or its like touches text[start:stop]."""
    is_word = _word_character().match
    return bool(start and is_word(text[start - 1]) or stop < len(text) and is_word(text[stop]))
