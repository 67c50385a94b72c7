"""Byte-level byte-pair encoding: text → words by a splitting pattern → bytes → merges by rank → ids.

Source: GPT-2 (Radford et al. 2019) and the tokenizer.json and GGUF files of the models that follow it. A word
is merged the same way wherever it stands, so each is merged once and remembered.

Character classes (letters, numbers) follow the Unicode version of the running Python
(`unicodedata.unidata_version`); a letter that Unicode gained later is treated as a symbol.
"""
import heapq
import re
import unicodedata
from functools import cache

import numpy as np

CACHED_WORDS = 1 << 17  # remembered words; all are forgotten when there are so many
CACHED_LENGTH = 40      # characters; longer words are not remembered
GONE = -2               # a symbol that was merged into its left neighbour
SHORT = 24              # symbols up to which scanning all pairs beats a heap
# Unicode's White_Space, as the inside of `[…]`. `\s` of `re` holds U+001C to U+001F too.
SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    plain = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    found, next_character = [], 256
    for byte in range(256):
        if byte in plain:
            found.append(chr(byte))
        else:
            found.append(chr(next_character))
            next_character += 1
    return found


BYTE_CHARS = byte_alphabet()
CHAR_BYTES = {c: b for b, c in enumerate(BYTE_CHARS)}


@cache
def char_classes() -> dict[str, str]:
    r"""The insides of `[…]` for \p{L} and \p{N}, by "L" and "N". Planes above 3 hold neither."""
    categories = "".join(map(unicodedata.category, map(chr, range(0x40000))))
    majors = categories[::2]  # the first letter of each
    found = {}
    for major in "LN":
        runs = re.finditer(f"{major}+", majors)
        found[major] = "".join(f"{chr(run.start())}-{chr(run.end() - 1)}" for run in runs)
    return found


# The splitting patterns, by the name of llama.cpp's `tokenizer.ggml.pre` for each.
# {L} {N} {S}: letters, numbers, white space. Where a model splits twice (single digits first, then GPT-2's
# pattern), the pattern here does both at once.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?[{L}]+| ?[{N}]+| ?[^{S}{L}{N}]+|[{S}]+(?![^{S}])|[{S}]+"
SMOLLM = r"[{N}]|'s|'t|'re|'ve|'m|'ll|'d| ?[{L}]+| ?[^{S}{L}{N}]+|[{S}]+(?![^{S}{N}])|[{S}]+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n{L}{N}]?[{L}]+|[{N}]{{1,3}}| ?[^{S}{L}{N}]+[\r\n]*"
          r"|[{S}]*[\r\n]+|[{S}]+(?![^{S}])|[{S}]+")
QWEN2 = LLAMA3.replace("{{1,3}}", "")
PATTERNS = {"gpt-2": GPT2, "smollm": SMOLLM, "llama-bpe": LLAMA3, "qwen2": QWEN2}


@cache
def compiled(pattern: str) -> re.Pattern:
    """The splitting pattern of that name in PATTERNS."""
    return re.compile(PATTERNS[pattern].format(**char_classes(), S=SPACE))


class ByteLevelBPE:
    """Words to ids.

    vocab          token in the byte alphabet → id
    merges         int64 [merges, 3] by rank: the ids of left, right and what they become, all in `vocab`
    pattern        a name in PATTERNS
    ignore_merges  a word that is a token as it stands is not merged (Llama-3)
    nfc            text is put in Unicode's composed form first (Qwen2)

    Some bytes may have no token of their own (in SmolLM2 21: values that valid UTF-8 never holds, and a few
    rare ones). They are left out of the ids where no merge takes them, as in llama.cpp and the tokenizers
    library. Such text still encodes, and does not decode to itself.
    """

    def __init__(self, vocab: dict[str, int], merges: np.ndarray, pattern: str, *,
                 ignore_merges: bool = False, nfc: bool = False):
        self.nfc, self._split = nfc, compiled(pattern)
        self._byte_ids = [vocab.get(c, -1) for c in BYTE_CHARS]  # −1: no token
        # left id << 32 | right id → rank. The lowest rank comes last, so a pair that comes twice has it.
        pairs, ranks = merges[::-1, 0] << 32 | merges[::-1, 1], range(len(merges) - 1, -1, -1)
        self._ranks: dict[int, int] = dict(zip(pairs.tolist(), ranks, strict=True))
        self._merged: list[int] = merges[:, 2].tolist()  # rank → id
        self._tokens = {i: token for token, i in vocab.items()}
        self._bytes: dict[int, bytes] = {}  # of the tokens that were asked for
        self._whole = {token_bytes(token): i for token, i in vocab.items()} if ignore_merges else {}
        self._words: dict[str, list[int]] = {}
        self.size = max(vocab.values(), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        """Token ids of valid Unicode text."""
        if self.nfc:
            text = unicodedata.normalize("NFC", text)
        ids: list[int] = []
        words = self._words
        for word in self._split.findall(text):
            ids += words[word] if word in words else self._word(word)
        return ids

    def piece_bytes(self, id: int) -> bytes | None:
        """The bytes that a token adds to the text; None for an id that is not there."""
        found = self._bytes.get(id)
        if found is None and id in self._tokens:
            found = self._bytes[id] = token_bytes(self._tokens[id])
        return found

    def _word(self, word: str) -> list[int]:
        """Ids of a word that is not remembered yet."""
        data = word.encode()
        if data in self._whole:
            found = [self._whole[data]]
        else:
            symbols = [self._byte_ids[b] for b in data]
            merged = self._merge_short(symbols) if len(symbols) <= SHORT else self._merge_long(symbols)
            found = [i for i in merged if i >= 0]
        if len(word) <= CACHED_LENGTH:
            if len(self._words) >= CACHED_WORDS:
                self._words.clear()
            self._words[word] = found
        return found

    def _merge_short(self, symbols: list[int]) -> list[int]:
        """Merge the pair of the lowest rank, leftmost first, until no pair has a rank."""
        ranks = self._ranks
        while len(symbols) > 1:
            best, at = None, -1
            for i in range(len(symbols) - 1):
                found = ranks.get(symbols[i] << 32 | symbols[i + 1])
                if found is not None and (best is None or found < best):
                    best, at = found, i
            if best is None:
                break
            symbols[at:at + 2] = [self._merged[best]]
        return symbols

    def _merge_long(self, symbols: list[int]) -> list[int]:
        """The same merges in n·log n steps: a linked list of the symbols, and a heap of their pairs.

        An entry of the heap is rank·n + the place of the pair's left symbol, so the lowest rank comes first
        and of equal ranks the leftmost. An entry is stale when its pair has another rank by now.
        """
        ranks, n = self._ranks, len(symbols)
        left, right = list(range(-1, n - 1)), [*range(1, n), -1]
        heap: list[int] = []

        def push(i: int) -> None:
            rank = ranks.get(symbols[i] << 32 | symbols[right[i]])
            if rank is not None:
                heapq.heappush(heap, rank * n + i)

        for i in range(n - 1):
            push(i)
        while heap:
            rank, i = divmod(heapq.heappop(heap), n)
            j = right[i]
            if j < 0 or ranks.get(symbols[i] << 32 | symbols[j]) != rank:
                continue
            after, before = right[j], left[i]
            symbols[i], symbols[j], right[i] = self._merged[rank], GONE, after
            if after >= 0:
                left[after] = i
                push(i)
            if before >= 0:
                push(before)
        return [s for s in symbols if s != GONE]


def token_bytes(token: str) -> bytes:
    """The bytes of a token in the byte alphabet; one with other characters stands for its UTF-8."""
    try:
        return bytes(map(CHAR_BYTES.__getitem__, token))
    except KeyError:
        return token.encode("utf-8", "replace")
