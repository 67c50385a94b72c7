"""Byte-level byte-pair encoding: text → words by a splitting pattern → bytes → merges by rank → ids.

Source: GPT-2 (Radford et al. 2019) and the tokenizer.json and GGUF files of the models that follow it. A word is
merged the same way wherever it stands, so each is merged once and remembered.

Character classes (letters, numbers) follow the Unicode version of the running Python (`unicodedata.unidata_version`);
a letter that Unicode gained later is treated as a symbol.
"""
import heapq
import re
import unicodedata
from functools import cache

import numpy as np

CACHED_WORDS = 1 << 17   # remembered words; the memory is emptied when full, and longer words never enter it
CACHED_LENGTH = 40
GONE = -2                # a symbol that was merged into its left neighbour
SHORT = 24               # symbols up to which scanning all pairs beats a heap
SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # Unicode White_Space; `\s` of `re` holds U+001C to U+001F too


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(b) if b in set(plain) else chr(next(others)) for b in range(256)]


BYTE_CHARS = byte_alphabet()
CHAR_BYTES = {c: b for b, c in enumerate(BYTE_CHARS)}


@cache
def char_classes() -> dict[str, str]:
    r"""The insides of `[…]` for \p{L} and \p{N}, by "L" and "N". Planes above 3 hold neither."""
    majors = "".join(map(unicodedata.category, map(chr, range(0x40000))))[::2]
    return {major: "".join(f"{chr(run.start())}-{chr(run.end() - 1)}" for run in re.finditer(f"{major}+", majors)) for major in "LN"}


# The splitting patterns, by the name of llama.cpp's `tokenizer.ggml.pre` for each. {L} {N} {S}: letters, numbers, white space.
# Where a model splits twice (single digits first, then GPT-2's pattern), the pattern here does both at once.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?[{L}]+| ?[{N}]+| ?[^{S}{L}{N}]+|[{S}]+(?![^{S}])|[{S}]+"
SMOLLM = r"[{N}]|'s|'t|'re|'ve|'m|'ll|'d| ?[{L}]+| ?[^{S}{L}{N}]+|[{S}]+(?![^{S}{N}])|[{S}]+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n{L}{N}]?[{L}]+|[{N}]{{1,3}}| ?[^{S}{L}{N}]+[\r\n]*|[{S}]*[\r\n]+"
          r"|[{S}]+(?![^{S}])|[{S}]+")
QWEN2 = LLAMA3.replace("{{1,3}}", "")
PATTERNS = {"gpt-2": GPT2, "smollm": SMOLLM, "llama-bpe": LLAMA3, "qwen2": QWEN2}


@cache
def compiled(pattern: str) -> re.Pattern:
    return re.compile(PATTERNS[pattern].format(**char_classes(), S=SPACE))


class ByteLevelBPE:
    """Words to ids.

    vocab          token in the byte alphabet → id
    merges         int64 [merges, 3] in order of rank: the ids of left, right and what they become, all in `vocab`
    pattern        a name in PATTERNS
    ignore_merges  a word that is a token as it stands is not merged (Llama-3)
    nfc            text is put in Unicode's composed form first (Qwen2)

    Bytes without a token of their own (`missing_bytes`; SmolLM2 has 21: values that valid UTF-8 never holds, and a few
    rare ones) are left out of the ids when no merge takes them, as llama.cpp and the tokenizers library do: such text
    still encodes, and does not decode to itself.
    """

    def __init__(self, vocab: dict[str, int], merges: np.ndarray, pattern: str, *, ignore_merges: bool = False, nfc: bool = False):
        self.nfc, self._split = nfc, compiled(pattern)
        self._byte_ids = [vocab.get(c, -1) for c in BYTE_CHARS]
        pairs, ranks = merges[::-1, 0] << 32 | merges[::-1, 1], range(len(merges) - 1, -1, -1)  # the lowest last, so that it stays where a pair comes again
        self._ranks: dict[int, int] = dict(zip(pairs.tolist(), ranks))  # left id << 32 | right id → rank
        self._merged: list[int] = merges[:, 2].tolist()                 # rank → id
        self._tokens, self._bytes = {i: t for t, i in vocab.items()}, {}  # _bytes: those that were asked for
        self._whole = {token_bytes(t): i for t, i in vocab.items()} if ignore_merges else {}
        self._words: dict[str, list[int]] = {}
        self.missing_bytes = bytes(b for b, i in enumerate(self._byte_ids) if i < 0)
        self.size = max(vocab.values(), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        """Token ids of valid Unicode text."""
        if self.nfc:
            text = unicodedata.normalize("NFC", text)
        ids, words = [], self._words
        for word in self._split.findall(text):
            ids += words[word] if word in words else self._word(word)
        return ids

    def piece_bytes(self, id: int) -> bytes | None:
        found = self._bytes.get(id)
        if found is None and id in self._tokens:
            found = self._bytes[id] = token_bytes(self._tokens[id])
        return found

    def _word(self, word: str) -> list[int]:
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
        """The same merges in n·log n: a heap of rank·n + place over a linked list. An entry whose pair has another rank by now is stale."""
        ranks, n = self._ranks, len(symbols)
        left, right = list(range(-1, n - 1)), [*range(1, n), -1]
        heap = [ranks[pair] * n + i for i, pair in enumerate(a << 32 | b for a, b in zip(symbols, symbols[1:])) if pair in ranks]
        heapq.heapify(heap)
        while heap:
            rank, i = divmod(heapq.heappop(heap), n)
            j = right[i]
            if j < 0 or ranks.get(symbols[i] << 32 | symbols[j]) != rank:
                continue
            after, before, merged = right[j], left[i], self._merged[rank]
            symbols[i], symbols[j], right[i] = merged, GONE, after
            if after >= 0:
                left[after] = i
                found = ranks.get(merged << 32 | symbols[after])
                if found is not None:
                    heapq.heappush(heap, found * n + i)
            if before >= 0:
                found = ranks.get(symbols[before] << 32 | merged)
                if found is not None:
                    heapq.heappush(heap, found * n + before)
        return [s for s in symbols if s != GONE]


def token_bytes(token: str) -> bytes:
    """The bytes of a token in the byte alphabet; a token with other characters (an added one) stands for its UTF-8."""
    try:
        return bytes(map(CHAR_BYTES.__getitem__, token))
    except KeyError:
        return token.encode("utf-8", "replace")
