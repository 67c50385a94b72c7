"""Guesses of the next tokens: what followed the same tokens earlier in a sequence (n-gram look-up).

Where a step waits for the weights, one of several tokens takes little longer than one of a single token. So
a guess of what comes next is run along with the newest token. As far as the model would have chosen those
tokens itself, their step is saved. What it would not have chosen is thrown away, so answers never change.

Sources: greedy verification of guesses, arXiv 2211.17192; guesses from the prompt, arXiv 2304.04487 and
github.com/apoorvumang/prompt-lookup-decoding.
"""
import heapq
from collections.abc import Sequence
from typing import NamedTuple

LENGTHS = (4, 3, 2)     # of the runs of tokens that are looked up, in this order
MOST_ROWS = 12          # tokens of a step: a tile of the products in C
FIRST, MOST = 2, 7      # tokens of a guess: of the first ones in an answer, and after some that were right
# How often the first token of a guess is right, by the length of the run that it followed, to begin with.
# In greedy answers of Qwen2.5-Coder-1.5B it is a little more, in SmolLM2's more (data/perf/look-up.json).
RIGHT = {4: 0.8, 3: 0.6, 2: 0.4}
PACE = 0.1              # how fast what is measured replaces what was thought
GROWTH = 0.4            # where nothing is measured, a step of n rows is thought to take n ** GROWTH as long
FORGOTTEN = 256         # steps after which times are measured anew: sequences grow, and machines are shared
WORTH = 1.03            # how much faster a step with guesses must be to be made
PATIENCE = 16, 512      # chances that are left out, at least and at most, where guesses do not pay


class Looked:
    """One answer's sequence, and where each short run of its tokens last ended.

    rates  how often guesses were right in this answer, by the length of the run; to begin with `RIGHT`
    most   tokens of its next guess
    """

    def __init__(self) -> None:
        self.rates, self.most = dict(RIGHT), FIRST
        self._ids: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}
        self._left_out, self._patience = 0, PATIENCE[0]

    def follow(self, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Take up the tokens that are new."""
        known, ids, ends = len(self._ids), self._ids, self._ends
        if known < len(prompt):
            ids += prompt[known:]
        ids += answer[len(ids) - len(prompt):]
        for end in range(max(known, 1), len(ids)):
            for n in LENGTHS:
                if n <= end:
                    ends[tuple(ids[end - n:end])] = end

    def next(self, most: int) -> tuple[list[int], int]:
        """What followed the newest tokens before, and how many of those stood there; [] and 0 for nothing."""
        for n in LENGTHS:
            if (end := self._ends.get(tuple(self._ids[-n:]))) is not None:
                return self._ids[end:end + most], n
        return [], 0

    def leave_out(self) -> bool:
        """Where a guess does not pay: whether to leave it out. Now and then one token is tried again."""
        self._left_out += 1
        if self._left_out < self._patience:
            return True
        self._left_out, self._patience = 0, min(2 * self._patience, PATIENCE[1])
        return False

    def tell(self, guess: "Guess", right: int) -> None:
        """How many tokens of a guess were right; behind the first wrong one nothing is known."""
        for i in range(min(len(guess.tokens), right + 1)):
            self.rates[guess.n] += PACE * ((i < right) - self.rates[guess.n])
        self.most = min(2 * self.most + 1, MOST) if right == len(guess.tokens) else max(right + 1, FIRST)
        if right:
            self._left_out, self._patience = 0, PATIENCE[0]


class Guess(NamedTuple):
    """Tokens that may come next in an answer, and the length of the run that they followed."""
    tokens: list[int]
    n: int


NONE = Guess([], 0)


class Guesses:
    """Decides how many tokens to guess, by how often guesses were right and by what steps take here."""

    def __init__(self) -> None:
        self._took: dict[int, float] = {}   # tokens of a step → seconds
        self._steps = 0

    def choose(self, answers: Sequence[tuple[Looked | None, int]]) -> list[Guess]:
        """A guess for each answer under way, perhaps without tokens.

        answers  what was looked up for each, None for one that is not guessed; and tokens that it may have
        """
        count = len(answers)
        if not self.may(count):
            return [NONE] * count
        found = [NONE] * count
        for i, (looked, most) in enumerate(answers):
            if looked is not None and most > 0:
                found[i] = Guess(*looked.next(min(most, looked.most, MOST_ROWS - count)))
        if not any(guess.tokens for guess in found):
            return found
        sizes = self._sizes(found, [looked for looked, _ in answers])
        for i, (looked, _) in enumerate(answers):
            if looked is not None and found[i].tokens and not sizes[i] and not looked.leave_out():
                sizes[i] = 1
        return [Guess(guess.tokens[:size], guess.n) for guess, size in zip(found, sizes, strict=True)]

    def may(self, count: int) -> bool:
        """Whether so many answers leave room for guesses, and the time of a step without is known."""
        return count < MOST_ROWS and count in self._took

    def _sizes(self, found: list[Guess], looked: list[Looked | None]) -> list[int]:
        """How many tokens of each guess give the most tokens a second; the likeliest are taken first."""
        likely: list[tuple[float, int]] = []    # minus the probability that a token is reached and right
        for i, (guess, one) in enumerate(zip(found, looked, strict=True)):
            if one is not None and guess.tokens:
                rate = one.rates[guess.n]
                likely += [(-rate ** j, i) for j in range(1, len(guess.tokens) + 1)]
        heapq.heapify(likely)
        count = len(found)
        sizes, made, tokens = [0] * count, [0] * count, float(count)
        best = WORTH * count / self._seconds(count)
        for rows in range(count + 1, min(count + len(likely), MOST_ROWS) + 1):
            minus, i = heapq.heappop(likely)
            tokens -= minus
            made[i] += 1
            if (speed := tokens / self._seconds(rows)) > best:
                sizes, best = list(made), speed
        return sizes

    def _seconds(self, rows: int) -> float:
        """What a step of so many tokens takes: as measured, or by the nearest smaller one that was."""
        if rows in self._took:
            return self._took[rows]
        nearest = max((n for n in self._took if n < rows), default=0)
        return self._took[nearest] * (rows / nearest) ** GROWTH if nearest else 0.0

    def tell(self, answers: Sequence[tuple[Looked | None, Guess, int]], seconds: float) -> None:
        """How a step went.

        answers  what was looked up, what was guessed, and how many tokens of it were right
        """
        for looked, guess, right in answers:
            if looked is not None and guess.tokens:
                looked.tell(guess, right)
        self._steps += 1
        if self._steps % FORGOTTEN == 0:
            self._took.clear()
        rows = sum(1 + len(guess.tokens) for _, guess, _ in answers)
        old = self._seconds(rows) or seconds
        # A step that another program held up counts for twice the usual time at most.
        self._took[rows] = old + (0.2 if seconds > old else 0.5) * (min(seconds, 2 * old) - old)
