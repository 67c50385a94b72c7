"""Byte-pair encoding: words → symbols (bytes, or characters) → merges by rank → ids.

Sources: GPT-2 (Radford et al. 2019); github.com/huggingface/tokenizers and github.com/openai/tiktoken, whose
merges these are. Text is cut into words before (patterns.py, pretokenizer.py).
"""
import heapq
import itertools
from collections.abc import Callable
from typing import Protocol

import numpy as np

GONE = -2   # a symbol that was merged into its left neighbour
SHORT = 48  # symbols up to which scanning all pairs beats a heap
NEVER = 1 << 62     # the rank of a pair that does not merge


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
_TO_ALPHABET = dict(enumerate(BYTE_CHARS))


def in_alphabet(data: bytes) -> str:
    """Bytes, written in the byte alphabet."""
    return data.decode("latin-1").translate(_TO_ALPHABET)


def token_bytes(token: str) -> bytes:
    """The bytes of a token in the byte alphabet; one with other characters stands for its UTF-8."""
    try:
        return bytes(map(CHAR_BYTES.__getitem__, token))
    except KeyError:
        return token.encode("utf-8", "replace")


# ---- which pairs merge ----

class Ranks(Protocol):
    """Pairs of ids, left id << 32 | right id → the rank of their merge, or what is given for none."""

    def get(self, pair: int, none: int, /) -> int: ...


def ranks_of(merges: np.ndarray) -> dict[int, int]:
    """The ranks of int64 [merges, 3]; of a pair that comes twice the later one, as in tokenizers."""
    pairs = merges[:, 0] << 32 | merges[:, 1]
    return dict(zip(pairs.tolist(), range(len(merges)), strict=True))


class Concatenations:
    """tiktoken's rule: two tokens merge if they make a token together, whose id is the rank.

    vocab  token → id; a pair is looked up when it is first asked for
    """

    def __init__(self, vocab: dict[str, int]):
        self._vocab, self._tokens = vocab, {i: token for token, i in vocab.items()}
        self._known: dict[int, int] = {}

    def get(self, pair: int, none: int, /) -> int:
        if pair in self._known:
            return self._known[pair]
        left, right = self._tokens.get(pair >> 32), self._tokens.get(pair & 0xFFFFFFFF)
        found = none if left is None or right is None else self._vocab.get(left + right, none)
        if len(self._known) >= 1 << 20:
            self._known.clear()
        self._known[pair] = found
        return found


class BPE:
    """Words to ids.

    vocab          token → id
    ranks, merged  rank of a pair of ids, and the id that a rank's merge makes
    symbols        a word → the ids that it begins with; −1 for one that has no token
    whole          the text of a word as a token, for models whose words are not merged if they are tokens as
                   they stand (Llama 3); None for the others
    """

    def __init__(self, vocab: dict[str, int], ranks: Ranks, merged: list[int] | range,
                 symbols: Callable[[str], list[int]], whole: Callable[[str], str] | None = None):
        self._vocab, self._ranks, self._merged = vocab, ranks, merged
        self._symbols, self._whole = symbols, whole

    def word(self, word: str) -> list[int]:
        """The ids of one word."""
        if self._whole is not None and (id := self._vocab.get(self._whole(word))) is not None:
            return [id]
        symbols = self._symbols(word)
        merged = self._merge_short(symbols) if len(symbols) <= SHORT else self._merge_long(symbols)
        return [i for i in merged if i >= 0]

    def _merge_short(self, symbols: list[int]) -> list[int]:
        """Merge the pair of the lowest rank, leftmost first, until no pair has a rank."""
        get, merged = self._ranks.get, self._merged
        # The rank of each symbol's pair with the next one.
        found = [get(left << 32 | right, NEVER) for left, right in itertools.pairwise(symbols)]
        while found and (rank := min(found)) != NEVER:
            at = found.index(rank)
            symbols[at:at + 2] = [merged[rank]]
            del found[at]
            if at < len(found):
                found[at] = get(symbols[at] << 32 | symbols[at + 1], NEVER)
            if at:
                found[at - 1] = get(symbols[at - 1] << 32 | symbols[at], NEVER)
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
            rank = ranks.get(symbols[i] << 32 | symbols[right[i]], NEVER)
            if rank != NEVER:
                heapq.heappush(heap, rank * n + i)

        for i in range(n - 1):
            push(i)
        while heap:
            rank, i = divmod(heapq.heappop(heap), n)
            j = right[i]
            if j < 0 or ranks.get(symbols[i] << 32 | symbols[j], NEVER) != rank:
                continue
            after, before = right[j], left[i]
            symbols[i], symbols[j], right[i] = self._merged[rank], GONE, after
            if after >= 0:
                left[after] = i
                push(i)
            if before >= 0:
                push(before)
        return [s for s in symbols if s != GONE]


# ---- what a word begins with ----

def byte_symbols(vocab: dict[str, int]) -> Callable[[str], list[int]]:
    """The ids of a word's bytes.

    Some bytes may have no token of their own (in SmolLM2 21: values that valid UTF-8 never holds, and a few
    rare ones). They are left out of the ids where no merge takes them, as in llama.cpp and the tokenizers
    library. Such text still encodes, and does not decode to itself.
    """
    of_byte = [vocab.get(c, -1) for c in BYTE_CHARS]
    return lambda word: [of_byte[byte] for byte in word.encode()]


def character_symbols(vocab: dict[str, int], unknown: int | None, *, byte_fallback: bool,
                      fuse_unknown: bool) -> Callable[[str], list[int]]:
    """The ids of a word's characters.

    byte_fallback  a character without a token becomes its bytes' tokens, <0x0A> and so on
    unknown        the id for one that has no such tokens either; None: it is left out
    fuse_unknown   a run of unknown characters becomes one id
    """
    of_byte = [vocab.get(f"<0x{byte:02X}>") for byte in range(256)] if byte_fallback else [None] * 256

    def symbols(word: str) -> list[int]:
        found: list[int] = []
        pending = False     # an unknown character's id is held back, as in the tokenizers library
        for character in word:
            id = vocab.get(character)
            if id is None:
                ids = [of_byte[byte] for byte in character.encode()]
                if None not in ids:
                    found += ids    # type: ignore[arg-type]  # mypy does not see that None is not in it
                elif unknown is not None:
                    if pending and not fuse_unknown:
                        found.append(unknown)
                    pending = True
                continue
            if pending:
                found.append(unknown)   # type: ignore[arg-type]  # it is a number while one is pending
                pending = False
            found.append(id)
        return [*found, unknown] if pending and unknown is not None else found

    return symbols
