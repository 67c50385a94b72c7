"""Unigram models: a word becomes the tokens whose scores add up to the most.

Source: Kudo 2018 (arXiv 1804.10959), and github.com/huggingface/tokenizers, models/unigram, whose rules for
ties and unknown characters these are.
"""
UNKNOWN_PENALTY = 10.0  # below the lowest score of the vocabulary


class Unigram:
    """Words to ids.

    scores         token → (score, id), of the tokens that may come from text
    lowest         the lowest score of the whole vocabulary
    unknown        the id of an unknown run of characters; None: there is none, and it is left out
    byte_fallback  unknown characters become the tokens of their bytes, <0x0A> and so on
    """

    def __init__(self, scores: dict[str, tuple[float, int]], lowest: float, unknown: int | None,
                 byte_fallback: bool):
        self._scores, self._unknown = scores, unknown
        self._unknown_score = lowest - UNKNOWN_PENALTY
        # first character → the lengths of its tokens
        lengths: dict[str, set[int]] = {}
        for token in scores:
            lengths.setdefault(token[0], set()).add(len(token))
        self._lengths = {character: sorted(found) for character, found in lengths.items()}
        of_byte = [scores.get(f"<0x{byte:02X}>", (0.0, -1))[1] for byte in range(256)]
        self._of_byte = of_byte if byte_fallback and -1 not in of_byte else None

    def word(self, word: str) -> list[int]:
        """The ids of one word, by Viterbi's algorithm: the best way to each place, from left to right."""
        best: list[float] = [0.0] * (len(word) + 1)
        came_from = [-1] * (len(word) + 1)
        known = [True] * (len(word) + 1)
        for start in range(len(word)):
            single = False
            for length in self._lengths.get(word[start], ()):
                end = start + length
                entry = self._scores.get(word[start:end]) if end <= len(word) else None
                if entry is None:
                    continue
                single = single or length == 1
                if came_from[end] < 0 or best[start] + entry[0] > best[end]:
                    best[end], came_from[end], known[end] = best[start] + entry[0], start, True
            if not single:
                score = best[start] + self._unknown_score
                if came_from[start + 1] < 0 or score > best[start + 1]:
                    best[start + 1], came_from[start + 1], known[start + 1] = score, start, False
        return self._ids(word, came_from, known)

    def _ids(self, word: str, came_from: list[int], known: list[bool]) -> list[int]:
        """The ids of the best way, which is read from its end. Unknown pieces side by side are one."""
        pieces: list[tuple[int, int, bool]] = []
        end = len(word)
        while end > 0:
            start = came_from[end]
            if not known[end] and pieces and not pieces[-1][2]:
                pieces[-1] = (start, pieces[-1][1], False)
            else:
                pieces.append((start, end, known[end]))
            end = start
        ids: list[int] = []
        for start, end, _ in reversed(pieces):
            entry = self._scores.get(word[start:end])
            if entry is not None:
                ids.append(entry[1])
            elif self._of_byte is not None:
                ids += [self._of_byte[byte] for byte in word[start:end].encode()]
            elif self._unknown is not None:
                ids.append(self._unknown)
        return ids
