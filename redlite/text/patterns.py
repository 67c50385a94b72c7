r"""The regular expressions that cut text into words, translated for Python's `re`.

Tokenizer files are written for Oniguruma (github.com/kkos/oniguruma) and for tiktoken's engine, which know
\p{L} and Unicode's white space. `re` knows neither, so classes are written out here. What is not known, or
could take exponential time, is refused by name.

Character classes are those of Unicode 16, as in tokenizers 0.23.3, also where the running Python has an older
version (3.10 has 13). A letter that Unicode gained later is treated as a symbol.

Most text is ASCII, and the classes of Unicode take long to write out and to compile. So an expression becomes
two patterns: a small one for ASCII, and the whole one, which is made when other text first comes.
"""
import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache

Ranges = list[tuple[int, int]]
LAST = 0x10FFFF
# ASCII, and what is equal to ASCII letters where case does not count: İ, ı, ſ and the sign of Kelvin.
FEW = (*range(128), 0x130, 0x131, 0x17F, 0x212A)
MAX_LENGTH, MAX_DEPTH = 20_000, 20
# Unicode's White_Space, as the inside of `[…]`. `\s` of `re` holds U+001C to U+001F too.
SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
SPACES: Ranges = [(9, 13), (32, 32), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A),
                  (0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000)]
WHITE = "".join(chr(c) for first, last in SPACES for c in range(first, last + 1))
# Letters of Unicode's Alphabetic that are symbols by their category.
CIRCLED: Ranges = [(0x24B6, 0x24E9), (0x1F130, 0x1F149), (0x1F150, 0x1F169), (0x1F170, 0x1F189)]
FRACTIONS: Ranges = [(0xB2, 0xB3), (0xB9, 0xB9), (0xBC, 0xBE)]     # ² ³ ¹ ¼ ½ ¾: \w to Oniguruma alone
CATEGORIES = frozenset(("L", "Lu", "Ll", "Lt", "Lm", "Lo", "M", "Mn", "Mc", "Me", "N", "Nd", "Nl", "No", "P",
                        "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S", "Sm", "Sc", "Sk", "So", "Z", "Zs",
                        "Zl", "Zp"))
CONTROL_ESCAPES = {"r": "\r", "n": "\n", "t": "\t", "f": "\f", "v": "\v"}

# Characters that Unicode 14 to 16 added, by category: code points and ranges of them, in hexadecimal.
NEWER = {
    "Ll": (
        "1C8A 2C5F A7C1 A7CD A7D1 A7D3 A7D5 A7D7 A7D9 A7DB 10597-105A1 105A3-105B1 105B3-105B9 "
        "105BB-105BC 10D70-10D85 1DF00-1DF09 1DF0B-1DF1E 1DF25-1DF2A"),
    "Lm": (
        "8C9 A7F2-A7F4 10780-10785 10787-107B0 107B2-107BA 10D4E 10D6F 16D40-16D42 16D6B-16D6C "
        "1AFF0-1AFF3 1AFF5-1AFFB 1AFFD-1AFFE 1E030-1E06D 1E4EB"),
    "Lo": (
        "870-887 889-88E 8B5 8C8 C5D CDD 170D 171F 1B4C 9FFD-9FFF 105C0-105F3 10D4A-10D4D 10D4F "
        "10EC2-10EC4 10F70-10F81 11071-11072 11075 1123F-11240 11380-11389 1138B 1138E 11390-113B5 113B7 "
        "113D1 113D3 11740-11746 11AB0-11ABF 11BC0-11BE0 11F02 11F04-11F10 11F12-11F33 12F90-12FF0 1342F "
        "13441-13446 13460-143FA 16100-1611D 16A70-16ABE 16D43-16D6A 18CFF 1B11F-1B122 1B132 1B155 1DF0A "
        "1E290-1E2AD 1E4D0-1E4EA 1E5D0-1E5ED 1E5F0 1E7E0-1E7E6 1E7E8-1E7EB 1E7ED-1E7EE 1E7F0-1E7FE "
        "2A6DE-2A6DF 2B735-2B739 2EBF0-2EE5D 31350-323AF"),
    "Lu": (
        "1C89 2C2F A7C0 A7CB-A7CC A7D0 A7D6 A7D8 A7DA A7DC 10570-1057A 1057C-1058A 1058C-10592 "
        "10594-10595 10D50-10D65"),
    "Mc": (
        "CF3 1715 113B8-113BA 113C2 113C5 113C7-113CA 113CC-113CD 113CF 11F03 11F34-11F35 11F3E-11F3F "
        "11F41 1612A-1612C"),
    "Mn": (
        "897-89F 8CA-8D2 C3C ECE 180F 1AC1-1ACE 1DFA 10D69-10D6D 10EFC-10EFF 10F82-10F85 11070 "
        "11073-11074 110C2 11241 113BB-113C0 113CE 113D0 113D2 113E1-113E2 11F00-11F01 11F36-11F3A 11F40 "
        "11F42 11F5A 13440 13447-13455 1611E-16129 1612D-1612F 1CF00-1CF2D 1CF30-1CF46 1E08F 1E2AE "
        "1E4EC-1E4EF 1E5EE-1E5EF"),
    "Nd": (
        "10D40-10D49 116D0-116E3 11BF0-11BF9 11F50-11F59 16130-16139 16AC0-16AC9 16D70-16D79 1CCF0-1CCF9 "
        "1E4F0-1E4F9 1E5F1-1E5FA"),
    "No": "1D2C0-1D2D3",
    "Pd": "2E5D 10D6E",
    "Pe": "2E56 2E58 2E5A 2E5C",
    "Po": (
        "61D 1B4E-1B4F 1B7D-1B7F 2E53-2E54 10F86-10F89 113D4-113D5 113D7-113D8 116B9 11B00-11B09 11BE1 "
        "11F43-11F4F 12FF1-12FF2 16D6D-16D6F 1E5FF"),
    "Ps": "2E55 2E57 2E59 2E5B",
    "Sc": "20C0",
    "Sk": "888 FBC2",
    "Sm": "10D8E-10D8F",
    "So": (
        "2427-2429 2FFC-2FFF 31E4-31E5 31EF FD40-FD4F FDCF FDFE-FDFF 1CC00-1CCEF 1CD00-1CEB3 1CF50-1CFC3 "
        "1D1E9-1D1EA 1F6DC-1F6DF 1F774-1F776 1F77B-1F77F 1F7D9 1F7F0 1F8B2-1F8BB 1F8C0-1F8C1 1F979 1F9CC "
        "1FA75-1FA77 1FA7B-1FA7C 1FA87-1FA89 1FA8F 1FAA9-1FAAF 1FAB7-1FABF 1FAC3-1FAC6 1FACE-1FACF "
        "1FAD7-1FADC 1FADF-1FAE9 1FAF0-1FAF8 1FBCB-1FBEF"),
}

# The splitting patterns, by the name of llama.cpp's `tokenizer.ggml.pre` for each. Where a model splits twice
# (single digits first, then GPT-2's pattern), smollm does both at once.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SMOLLM = r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")
SEED_CODER = QWEN2.replace(r"\p{N}]+[\r\n]*", r"\p{N}\r\n]+")
QWEN35 = QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
         r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
         r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK3 = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
             r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
PATTERNS: dict[str, tuple[str, ...]] = {
    "gpt-2": (GPT2,), "smollm": (SMOLLM,), "llama-bpe": (LLAMA3,), "qwen2": (QWEN2,), "qwen35": (QWEN35,),
    "seed-coder": (SEED_CODER,),
    "tekken": (TEKKEN,), "gpt-4o": (O200K,),
    "deepseek-v3": (r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"),
}


# ---- character classes ----

def ranges_of(runs: str) -> Ranges:
    """Ranges from their text: code points and ranges of them, in hexadecimal."""
    found = []
    for run in runs.split():
        first, _, last = run.partition("-")
        found.append((int(first, 16), int(last or first, 16)))
    return found


@cache
def category(name: str) -> Ranges:
    r"""The code points of \p{name}, name being a general category or the first letter of some."""
    found = []
    for run in re.finditer(f"{name}+" if len(name) == 1 else f"(?:{name})+", _categories(len(name))):
        start, end = (at // len(name) for at in run.span())
        found.append((start, end - 1))
    if name in ("M", "Mn"):
        found.append((0xE0100, 0xE01EF))
    return found


@cache
def _categories(letters: int) -> str:
    """The category of each code point up to U+3FFFF, its first or both letters.

    Above are unassigned and private characters, formats, and the selectors that `category` adds.
    """
    every = list(map(unicodedata.category, map(chr, range(0x40000))))
    for name, runs in NEWER.items():
        for first, last in ranges_of(runs):
            every[first:last + 1] = [name] * (last + 1 - first)
    return "".join(every)[::3 - letters]


@cache
def few_of(name: str) -> Ranges:
    """As `category`, of the characters of FEW alone."""
    return [(c, c) for c in FEW if unicodedata.category(chr(c)).startswith(name)]


def word_characters(of: Callable[[str], Ranges] = category) -> Ranges:
    r"""What \w means to both engines; each has a few characters more. of: `category` or `few_of`."""
    ranges = [r for name in ("L", "M", "Nd", "Nl", "Pc") for r in of(name)]
    return [*ranges, *CIRCLED]


def complement(ranges: Ranges) -> Ranges:
    found, place = [], 0
    for first, last in sorted(ranges):
        if first > place:
            found.append((place, first - 1))
        place = max(place, last + 1)
    return [*found, (place, LAST)] if place <= LAST else found


def inside(ranges: Ranges) -> str:
    """Ranges as the inside of `[…]`: in order, and joined where they touch, which `re` compiles faster."""
    ranges = complement(complement(ranges))
    return "".join(re.escape(chr(first)) + ("-" + re.escape(chr(last)) if last > first else "")
                   for first, last in ranges)


# ---- translation ----

class _Translator:
    """One expression; `at` is the place up to which it is read. few: for ASCII text only."""

    def __init__(self, text: str, few: bool):
        self.text, self.at, self.captures, self.few = text, 0, 0, few
        self.category = few_of if few else category

    def inside(self, ranges: Ranges) -> str:
        """The inside of `[…]`; of a class for ASCII without any, a character that is not there."""
        if self.few:
            ranges = [(c, c) for c in FEW if any(first <= c <= last for first, last in ranges)]
        return inside(ranges or [(LAST, LAST)])

    def take(self, what: str) -> bool:
        if self.text.startswith(what, self.at):
            self.at += len(what)
            return True
        return False

    def next(self) -> str:
        if self.at >= len(self.text):
            raise ValueError("it ends too early")
        self.at += 1
        return self.text[self.at - 1]

    def alternatives(self, depth: int) -> tuple[str, bool]:
        """(translation up to a closing bracket or the end, whether it holds a choice or a repetition)."""
        if depth > MAX_DEPTH:
            raise ValueError("its groups are nested too deeply")
        out: list[str] = []
        complex = False
        while self.at < len(self.text) and self.text[self.at] != ")":
            if self.take("|"):
                out.append("|")
                complex = True
                continue
            atom, inner = self.atom(depth)
            atom, repeated = self.repeat(atom, inner)
            complex = complex or inner or repeated
            out.append(atom)
        return "".join(out), complex

    def atom(self, depth: int) -> tuple[str, bool]:
        character = self.next()
        if character == "(":
            opening = "(?:"
            for known in ("?:", "?i:", "?=", "?!", "?<=", "?<!"):
                if self.take(known):
                    opening = "(" + known
                    break
            else:
                if self.take("?"):
                    raise ValueError(f"it has the group (?{self.text[self.at:self.at + 3]}")
            body, complex = self.alternatives(depth + 1)
            if not self.take(")"):
                raise ValueError("a bracket is not closed")
            return f"{opening}{body})", complex
        if character == "[":
            return self.bracket(), False
        if character == "\\":
            found = self.escape()
            return (f"[{self.inside(found)}]" if isinstance(found, list) else re.escape(found)), False
        if character in "*+?{":
            raise ValueError(f"{character} repeats nothing")
        special = {".": r"[^\n]", "$": r"(?=\n|\Z)", "^": r"(?<![^\n])"}     # lines, as in Oniguruma
        return special.get(character, re.escape(character)), False

    def repeat(self, atom: str, complex: bool) -> tuple[str, bool]:
        """The atom with the repetition that follows it, if one does."""
        count = re.compile(r"[*+?]|\{\d{1,4}(?:,\d{0,4})?\}").match(self.text, self.at)
        if count is None:
            if self.at < len(self.text) and self.text[self.at] == "{":
                raise ValueError("it has a repetition that is not known")
            return atom, False
        self.at = count.end()
        if complex and count[0] != "?":
            raise ValueError("it repeats a group that holds a choice or a repetition, "
                             "which can take exponential time")
        if self.take("+"):
            if count[0][0] == "{":
                raise ValueError(f"it has the repetition {count[0]}+")
            self.captures += 1      # possessive: what was matched once is not given back
            return f"(?=(?P<p{self.captures}>{atom}{count[0]}))(?P=p{self.captures})", True
        lazy = "?" if self.take("?") else ""
        if self.at < len(self.text) and self.text[self.at] in "*+?{":
            raise ValueError("it repeats a repetition")
        return atom + count[0] + lazy, True

    def escape(self) -> str | Ranges:
        r"""What stands behind a backslash: a character, or the class that it means."""
        character = self.next()
        if character in "pP":
            name = re.compile(r"\{(\^?)(\w+)\}").match(self.text, self.at)
            if name is None or name[2] not in CATEGORIES:
                raise ValueError(f"it has \\{character}{self.text[self.at:self.at + 12]}")
            self.at = name.end()
            negated = (character == "P") != (name[1] == "^")
            found = self.category(name[2])
            return complement(found) if negated else found
        if character in "sSdDwW":
            if character in "sS":
                ranges = SPACES
            elif character in "dD":
                ranges = self.category("Nd")
            else:
                ranges = [*word_characters(self.category), *FRACTIONS]
            return complement(ranges) if character.isupper() else ranges
        if character in "xu":
            digits = re.compile(r"[0-9a-fA-F]{4}" if character == "u" else "[0-9a-fA-F]{2}")
            number = digits.match(self.text, self.at)
            if number is None:
                raise ValueError(f"it has \\{character} without its digits")
            self.at = number.end()
            return chr(int(number[0], 16))
        if character in CONTROL_ESCAPES:
            return CONTROL_ESCAPES[character]
        if character.isalnum():
            raise ValueError(f"it has \\{character}")
        return character

    def bracket(self) -> str:
        """A character class, from behind its opening bracket."""
        opening = "[^" if self.take("^") else "["
        if self.text.startswith("]", self.at):
            raise ValueError("it has a class that begins with ]")
        ranges: Ranges = []
        while not self.take("]"):
            if self.text.startswith("&&", self.at):
                raise ValueError("it has && in a class")
            first = self.member()
            if isinstance(first, list):
                ranges += first
                continue
            last = first
            if self.text.startswith("-", self.at) and not self.text.startswith("-]", self.at):
                self.at += 1
                end = self.member()
                if isinstance(end, list) or end < first:
                    raise ValueError("it has a range without an order")
                last = end
            ranges.append((ord(first), ord(last)))
        return f"{opening}{self.inside(ranges)}]"

    def member(self) -> str | Ranges:
        character = self.next()
        if character == "[":
            raise ValueError("it has a class within a class")
        return self.escape() if character == "\\" else character


class Translated:
    """A translated expression; its methods are those of `re.Pattern`, for the text that they are given."""

    def __init__(self, expression: str):
        """Raises ValueError, saying what is not known."""
        self._expression, self._small = expression, _pattern(expression, few=True)
        self.groups = self._small.groups    # they stand for possessive repetitions

    def of(self, text: str) -> re.Pattern[str]:
        """The pattern for a text."""
        return self._small if text.isascii() else _pattern(self._expression, few=False)

    def findall(self, text: str) -> list[str]:
        return self.of(text).findall(text)

    def finditer(self, text: str) -> Iterator[re.Match[str]]:
        return self.of(text).finditer(text)

    def sub(self, new: Callable[[re.Match[str]], str], text: str) -> str:
        return self.of(text).sub(new, text)


@cache
def _pattern(expression: str, few: bool) -> re.Pattern[str]:
    """The expression for `re`; few: for ASCII text only. Whatever is wrong with it is found by both."""
    if len(expression) > MAX_LENGTH:
        raise ValueError(f"it is longer than {MAX_LENGTH} characters")
    reader = _Translator(expression, few)
    text, _ = reader.alternatives(0)
    if reader.at < len(expression):
        raise ValueError("a bracket is closed that was not opened")
    try:
        found = re.compile(text)
        if found.match("") is not None:
            raise ValueError("it matches an empty text, where the engines differ")
        return found
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"Python's re does not take it ({error})") from None


# ---- cutting ----

Cut = Callable[[str], list[str]]


def isolated(pattern: re.Pattern[str] | Translated) -> Cut:
    """Cuts a text into what the pattern matches and what lies between."""
    whole, finditer = pattern.findall, pattern.finditer

    def with_gaps(text: str) -> list[str]:
        words, done = [], 0
        for match in finditer(text):
            start, end = match.span()
            if done < start:
                words.append(text[done:start])
            if start < end:
                words.append(text[start:end])
            done = end
        return [*words, text[done:]] if done < len(text) else words

    def cut(text: str) -> list[str]:
        words = whole(text)     # most patterns match every character
        return words if sum(map(len, words)) == len(text) and "" not in words else with_gaps(text)

    return with_gaps if pattern.groups else cut


@cache
def compiled(name: str) -> Cut:
    """Cuts a text into words by the pattern of that name in PATTERNS."""
    steps = [isolated(Translated(expression)) for expression in PATTERNS[name]]
    if len(steps) == 1:
        return steps[0]

    def cut(text: str) -> list[str]:
        words = [text]
        for step in steps:
            words = [word for piece in words for word in step(piece)]
        return words

    return cut
