"""Generation steps that run guesses of the next tokens along; see look_up.py for what is guessed, and why."""
import math
import time
from collections.abc import Callable
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from redlite.inference import prefix, sampling
from redlite.inference.forward import CForward, Forward
from redlite.inference.look_up import NONE, Guesses, Looked

if TYPE_CHECKING:
    from redlite.inference.engine import _Active

NextLogits = Callable[["list[_Active]", Forward], Tensor]
Choose = Callable[["list[_Active]", Tensor], None]


class GuessedSteps:
    """Steps of one batch, which append what steps of one token each would append, to the last bit.

    A token's logits in C do not depend on the rows beside it, and a row sees keys up to its own place only.
    What was not right stays behind the end of its slot, and is written over.
    """

    def __init__(self, forward: CForward, next_logits: NextLogits, choose: Choose):
        """next_logits, choose: a step without guesses, and how its tokens are chosen and appended."""
        self.forward, self.next_logits, self.choose = forward, next_logits, choose
        self.guesses = Guesses()

    @staticmethod
    def of(forward: Forward, next_logits: NextLogits, choose: Choose) -> "GuessedSteps | None":
        """None where they do not serve: where the layers do not run in C, and for LongRoPE.

        LongRoPE changes all keys of a sequence at one length, which must be met with the newest token.
        """
        if not isinstance(forward, CForward) or prefix.rotation_changes_at(forward.model.config):
            return None
        return GuessedSteps(forward, next_logits, choose)

    def step(self, active: "list[_Active]") -> None:
        """Run the newest token of every request, and perhaps guesses of those that follow."""
        start, guesses = time.perf_counter(), self.guesses
        made = [NONE] * len(active)
        if guesses.may(len(active)):
            for a in active:
                if a.request.rule.greedy:
                    a.looked = a.looked or Looked()
                    a.looked.follow(a.request.ids, a.ids)
            made = guesses.choose([(a.looked, a.limit - len(a.ids) - 1) for a in active])
        before = [len(a.ids) for a in active]
        if any(guess.tokens for guess in made):
            self._take(active, [guess.tokens for guess in made])
        else:
            self.choose(active, self.next_logits(active, self.forward))
        guesses.tell([(a.looked, guess, len(a.ids) - n - 1)
                      for a, guess, n in zip(active, made, before, strict=True)], time.perf_counter() - start)

    @torch.no_grad()
    def _take(self, active: "list[_Active]", made: list[list[int]]) -> None:
        """Run the newest token of every request with its guess, and append what is right."""
        cache = self.forward.cache
        rows = [[a.ids[-1], *guess] for a, guess in zip(active, made, strict=True)]
        starts = cache.lengths[:len(active)].tolist()
        cache.reserve(max(start + len(own) for start, own in zip(starts, rows, strict=True)))
        logits_RV = self.forward.rows_logits(rows)
        largest = logits_RV.numpy().argmax(-1).tolist()
        firsts = [0, *accumulate(map(len, rows))]
        if alone := [i for i, guess in enumerate(made) if not guess]:
            self.choose([active[i] for i in alone], logits_RV[[firsts[i] for i in alone]])
        for i, (a, guess) in enumerate(zip(active, made, strict=True)):
            kept = 1
            if guess:
                before = len(a.ids)
                for row, guessed in enumerate([*guess, -1], firsts[i]):
                    if not math.isfinite(logits_RV[row, largest[row]]):
                        raise sampling.not_finite()
                    a.take(largest[row])
                    if a.finish or largest[row] != guessed:
                        break
                kept = len(a.ids) - before
            cache.keep(i, kept, len(rows[i]))
