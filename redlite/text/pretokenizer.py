"""The steps of tokenizer.json before its model: `normalizer` and `pre_tokenizer`.

They follow github.com/huggingface/tokenizers 0.23.3, and are tested against it. A step, a field or a value
that is not known here is refused by name, since it would change the ids.
"""
import functools
import re
import unicodedata
from collections.abc import Callable
from typing import Any

from redlite.text.patterns import (
    GPT2,
    WHITE,
    Cut,
    Translated,
    category,
    compiled,
    inside,
    isolated,
    ranges_of,
)

Normalize = Callable[[str], str]
# (text, whether it stands at the very start) → words
Split = Callable[[str, bool], list[str]]
SPACE = "▁"
PREPEND = {"type": "Prepend", "prepend": SPACE}     # a normalizer of the older sentencepiece conversions
MAX_STEPS = 50
BEHAVIORS = ("Isolated", "Removed", "Contiguous", "MergedWithPrevious", "MergedWithNext")
# Punctuation that the library's older table lacks, and characters that it has beside; in hexadecimal.
NO_PUNCTUATION = (
    "61D 9FD A76 C77 C84 1B4E-1B4F 1B7D-1B7F 2E43-2E4F 2E52-2E5D 10D6E 10EAD 10F55-10F59 10F86-10F89 "
    "113D4-113D5 113D7-113D8 1144B-1144F 1145A-1145B 1145D 11660-1166C 116B9 1183B 11944-11946 119E2 "
    "11A3F-11A46 11A9A-11A9C 11A9E-11AA2 11B00-11B09 11BE1 11C41-11C45 11C70-11C71 11EF7-11EF8 "
    "11F43-11F4F 11FFF 12FF1-12FF2 16D6D-16D6F 16E97-16E9A 16FE2 1E5FF 1E95E-1E95F")
MORE_PUNCTUATION = "24 2B 3C-3E 5E 60 7C 7E 166D 111C9"


class Steps:
    """What a pipeline's entry holds, each field checked once. Raises ValueError with what is wrong."""

    def __init__(self, entry: Any, inner: str):
        """inner: the key under which a "Sequence" holds its steps."""
        self.found: list[dict[str, Any]] = []
        self._add(entry, inner, 0)

    def _add(self, entry: Any, inner: str, depth: int) -> None:
        if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
            raise ValueError("a step is no object with a type")
        if entry["type"] != "Sequence":
            self.found.append(entry)
        elif depth > 3 or not isinstance(entry.get(inner), list):
            raise ValueError(f"a Sequence without a list {inner}, or one too deep")
        else:
            for step in entry[inner]:
                self._add(step, inner, depth + 1)
        if len(self.found) > MAX_STEPS:
            raise ValueError(f"more than {MAX_STEPS} steps")


def fields(step: dict[str, Any], **known: Any) -> list[Any]:
    """The values of a step's fields, in the order of `known`.

    known  field → its value where it is absent or null; its type is the one needed, and of None any
    Raises ValueError for a field that is not known or of another type.
    """
    for key in step:
        if key != "type" and key not in known:
            raise ValueError(f"{step['type']} has the field {key[:40]!r}")
    found = []
    for key, usual in known.items():
        value = usual if step.get(key) is None else step[key]
        if usual is not None and type(value) is not type(usual):
            raise ValueError(f"{step['type']}.{key} is of another type")
        found.append(value)
    return found


def pattern_of(pattern: Any, kind: str) -> re.Pattern[str] | Translated:
    """The pattern of a Split or Replace: {"String": …} or {"Regex": …}."""
    if isinstance(pattern, dict) and len(pattern) == 1:
        ((name, text),) = pattern.items()
        if name in ("String", "Regex") and isinstance(text, str) and text:
            return re.compile(re.escape(text)) if name == "String" else Translated(text)
    raise ValueError(f"{kind}.pattern is neither a String nor a Regex")


# ---- normalizers ----

# tokenizers 0.23.3 normalizes by the tables of Unicode 9: to it these later characters (up to 17.0) neither
# decompose, compose nor change places. Python's tables are later, and differ from version to version.
NEWER = """
    7FD 897-89F 8CA-8D3 9FE C3C D3B-D3C EBA 1715 1ABF-1ADD 1AE0-1AEB 1DF6-1DFA 32FF A7F1-A7F4 A82C AB69
    105C9 105D2 105DA 105E4 10781-10785 10787-107B0 107B2-107BA 10D24-10D27 10D69-10D6D 10EAB-10EAC
    10EFA-10EFB 10EFD-10EFF 10F46-10F50 10F82-10F85 11070 1133B 11382-11385 1138B 1138E 11390-11391
    113B8 113BB 113C2 113C5 113C7-113C9 113CE-113D0 1145E 11839-1183A 11930 11935 11938 1193D-1193E
    11943 119E0 11A34 11A47 11A99 11D42 11D44-11D45 11D97 11F41-11F42 1611E-16129 1612F 16D63-16D6A
    16FF0-16FF1 1CCD6-1CCF9 1E030-1E06D 1E08F 1E130-1E136 1E2AE 1E2EC-1E2EF 1E4EC-1E4EF 1E5EE-1E5EF
    1E6E3 1E6E6 1E6EE-1E6EF 1E6F5 1F16C 1FBF0-1FBF9
"""


@functools.cache
def _newer() -> tuple[frozenset[str], re.Pattern[str]]:
    """The characters of NEWER, and a pattern that splits a text at them."""
    found: list[str] = []
    for word in NEWER.split():
        first, _, last = word.partition("-")
        found += map(chr, range(int(first, 16), int(last or first, 16) + 1))
    return frozenset(found), re.compile(f"([{''.join(found)}]+)")


def _in_form(kind: Any, text: str) -> str:
    """Unicode's normal form of a text, as of Unicode 9."""
    if text.isascii():
        return text
    newer, pattern = _newer()
    if newer.isdisjoint(text):      # looked up before the split, which is 20 times as slow
        return unicodedata.normalize(kind, text)
    parts = pattern.split(text)
    parts[::2] = [unicodedata.normalize(kind, part) for part in parts[::2]]   # the others are newer
    return "".join(parts)


def normalizer(entry: Any) -> Normalize | None:
    """The function of a `normalizer`; None for one that does nothing. Raises ValueError."""
    if entry is None:
        return None
    steps = [_normalizer(step) for step in Steps(entry, "normalizers").found]
    if not steps:
        return None

    def run(text: str) -> str:
        for step in steps:
            text = step(text)
        return text

    return run if len(steps) > 1 else steps[0]


def _normalizer(step: dict[str, Any]) -> Normalize:
    kind = step["type"]
    if kind in ("NFC", "NFD", "NFKC", "NFKD"):
        fields(step)
        return lambda text: _in_form(kind, text)
    if kind == "Prepend":
        (lead,) = fields(step, prepend="")
        return lambda text: lead + text if text else text
    if kind == "Replace":
        return replacing(step)
    if kind == "Strip":
        left, right = fields(step, strip_left=True, strip_right=True)

        def strip(text: str) -> str:
            text = text.lstrip(WHITE) if left else text
            return text.rstrip(WHITE) if right else text

        return strip
    if kind == "Lowercase":
        fields(step)
        return lambda text: "".join(map(str.lower, text))     # each by itself: no final sigma
    raise ValueError(f"{kind} is not known")


def replacing(step: dict[str, Any]) -> Normalize:
    """What a Replace does, which is a step of normalizers and of decoders."""
    pattern, content = fields(step, pattern=None, content="")
    find = pattern_of(pattern, "Replace")
    old = pattern.get("String")
    if old is None:
        return lambda text: find.sub(lambda _: content, text)
    return lambda text: text.replace(old, content)


# ---- pre-tokenizers ----

class Pretokenizer:
    """The `pre_tokenizer` of a file.

    split       text to words
    byte_level  whether its last step writes the words in the byte alphabet
    metaspace   "always", "first" or "never", where a step is a Metaspace; else None
    """

    def __init__(self, entry: Any, no_prefix: bool = False):
        """no_prefix: put no space before text, whatever a Metaspace says. Raises ValueError."""
        self.byte_level, self._no_prefix = False, no_prefix
        self.metaspace: str | None = None
        found = [] if entry is None else Steps(entry, "pretokenizers").found
        steps: list[Split] = []
        if _digits_then_gpt2(found):
            self.byte_level = True
            steps.append(_same(compiled("smollm")))
        else:
            for step in found:
                if self.byte_level:
                    raise ValueError(f"{step['type']} comes behind ByteLevel")
                steps += self._step(step)
        self.split: Split = _whole if not steps else steps[0] if len(steps) == 1 else _chain(steps)

    def _step(self, step: dict[str, Any]) -> list[Split]:
        kind = step["type"]
        if kind == "Split":
            pattern, behavior, invert = fields(step, pattern=None, behavior="", invert=False)
            return [_same(_by(pattern_of(pattern, kind), behavior, invert))]
        if kind == "Digits":
            (individual,) = fields(step, individual_digits=False)
            digits = re.compile(f"[{inside(category('N'))}]")
            return [_same(_by(digits, "Isolated" if individual else "Contiguous"))]
        if kind == "Punctuation":
            (behavior,) = fields(step, behavior="Isolated")
            marks = inside(category("P") + ranges_of(MORE_PUNCTUATION))
            found = re.compile(f"(?![{inside(ranges_of(NO_PUNCTUATION))}])[{marks}]")
            return [_same(_by(found, behavior))]
        if kind == "WhitespaceSplit":
            fields(step)
            return [_same(_by(Translated(r"\s"), "Removed"))]
        if kind == "ByteLevel":
            prefix, _, use_regex = fields(step, add_prefix_space=True, trim_offsets=True, use_regex=True)
            self.byte_level = True
            lead: list[Split] = [_space_before] if prefix else []
            return [*lead, _same(isolated(Translated(GPT2)))] if use_regex else lead
        if kind == "Metaspace":
            return [self._metaspace(step)]
        raise ValueError(f"{kind} is not known")

    def _metaspace(self, step: dict[str, Any]) -> Split:
        replacement, scheme, prefix, split = fields(step, replacement=SPACE, prepend_scheme=None,
                                                    add_prefix_space=None, split=True)
        if replacement != SPACE or self.metaspace is not None:
            raise ValueError("Metaspace comes twice, or has another replacement")
        if prefix not in (None, True, False) or scheme not in (None, "always", "first", "never"):
            raise ValueError("Metaspace.prepend_scheme is not known")
        if prefix is False and scheme in ("always", "first"):
            raise ValueError("Metaspace.add_prefix_space does not match prepend_scheme")
        scheme = scheme or ("never" if prefix is False else "always")
        self.metaspace = scheme = "never" if self._no_prefix else scheme
        pieces = _by(re.compile(SPACE), "MergedWithNext")

        def run(text: str, first: bool) -> list[str]:
            text = text.replace(" ", SPACE)
            if text and not text.startswith(SPACE) and (scheme == "always" or scheme == "first" and first):
                text = SPACE + text
            return pieces(text) if split else [text]

        return run


def _digits_then_gpt2(steps: list[dict[str, Any]]) -> bool:
    """Whether one pattern does both: each digit by itself, then GPT-2's splitting."""
    if [step["type"] for step in steps] != ["Digits", "ByteLevel"]:
        return False
    prefix, _, use_regex = fields(steps[1], add_prefix_space=True, trim_offsets=True, use_regex=True)
    return fields(steps[0], individual_digits=False)[0] and use_regex and not prefix


def _whole(text: str, first: bool) -> list[str]:
    return [text]


def _same(cut: Cut) -> Split:
    """A step to which it does not matter where the text stands."""
    return lambda text, first: cut(text)


def _space_before(text: str, first: bool) -> list[str]:
    return [text if not text or text.startswith(" ") else " " + text]


def _chain(steps: list[Split]) -> Split:
    def run(text: str, first: bool) -> list[str]:
        words = [text]
        for step in steps:
            words = [word for i, piece in enumerate(words) for word in step(piece, first and i == 0)]
        return words

    return run


def _by(pattern: re.Pattern[str] | Translated, behavior: str, invert: bool = False) -> Cut:
    """Cuts at what the pattern matches, which is handled by `behavior`; invert: at what it does not match."""
    if behavior not in BEHAVIORS:
        raise ValueError(f"the behavior {behavior[:40]!r} is not known")
    if behavior == "Isolated":
        return isolated(pattern)

    def cut(text: str) -> list[str]:
        pieces: list[tuple[str, bool]] = []     # in order, and whether it is cut at
        done = 0
        for match in pattern.finditer(text):
            start, end = match.span()
            if done < start:
                pieces.append((text[done:start], invert))
            if start < end:
                pieces.append((text[start:end], not invert))
            done = end
        if done < len(text):
            pieces.append((text[done:], invert))
        if behavior == "Removed":
            return [piece for piece, matched in pieces if not matched]
        if behavior == "MergedWithNext":
            mirrored = [(piece[::-1], matched) for piece, matched in reversed(pieces)]
            return [piece[::-1] for piece in reversed(_merged(mirrored, behavior))]
        return _merged(pieces, behavior)

    return cut


def _merged(pieces: list[tuple[str, bool]], behavior: str) -> list[str]:
    """Contiguous: neighbours of one kind joined. Else a match joined to the piece before it."""
    found: list[str] = []
    before: bool | None = False if behavior != "Contiguous" else None
    for piece, matched in pieces:
        joins = matched == before if behavior == "Contiguous" else matched and not before
        if joins and found:
            found[-1] += piece
        else:
            found.append(piece)
        before = matched
    return found
