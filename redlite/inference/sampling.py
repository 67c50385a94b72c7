"""Logits to token ids, pure: no state but the uniform numbers that are handed in."""
import hashlib
import numbers
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from redlite.errors import Error

COLDEST = 1e-30  # at no more than this a logit divided by the temperature may be no float32 any more, and the softmax is the largest logit alone
WHOLE = ("top_k", "max_new_tokens", "seed")  # settings that are whole numbers


def wrong_kind(settings: dict[str, object]) -> str:
    """Which setting of an answer is no number, or no whole one where it must be; "" if none. numpy's numbers are numbers, True is none."""
    for name, value in settings.items():
        if not isinstance(value, numbers.Integral if name in WHOLE else numbers.Real) or isinstance(value, bool):
            return f"{name} {repr(value)[:40]} must be a {'whole ' if name in WHOLE else ''}number"
    return ""


@dataclass(frozen=True)
class Rule:
    """How a request's tokens are drawn.

    temperature         0 takes the first largest logit; otherwise softmax(logits / temperature) is sampled
    top_p               only the fewest most likely tokens whose probabilities reach top_p are kept (arXiv 1904.09751); 1 keeps all
    top_k               only the k most likely tokens are kept (arXiv 1805.04833), before top_p; 0 keeps all
    min_p               only tokens at least min_p times as likely as the likeliest are kept (arXiv 2407.01082); 0 keeps all
    repetition_penalty  logits of tokens that prompt or answer hold are divided by it where positive, else multiplied (arXiv 1909.05858); 1 is off
    """
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def fault(self) -> str:
        """What is wrong with the numbers, "" if nothing."""
        if wrong := wrong_kind(vars(self)):
            return wrong
        if not 0 <= self.temperature < float("inf") or not 0 < self.top_p <= 1:
            return f"temperature {self.temperature} must be at least 0 and top_p {self.top_p} above 0 and at most 1"
        if self.top_k < 0 or not 0 <= self.min_p <= 1 or not 1e-6 <= self.repetition_penalty <= 1e6:  # beyond, logits might become infinite
            return f"top_k {self.top_k} must be at least 0, min_p {self.min_p} from 0 to 1, repetition_penalty {self.repetition_penalty} from 1e-6 to 1e6"
        return ""


def sample(logits_BV: Tensor, rules: list[Rule], uniform_B: Tensor, seen: list[list[int]]) -> Tensor:
    """One token id for each row, int64 [B].

    logits_BV  float32
    uniform    the random number in [0, 1) that decides each row, so a row's choice depends on nothing else
    seen       the ids of each row's prompt and answer so far; read only where the row has a repetition penalty
    Raises Error where a row's largest logit is NaN or infinite.
    """
    device = logits_BV.device
    penalised = [row for row, rule in enumerate(rules) if rule.repetition_penalty != 1]
    if penalised:
        logits_BV = logits_BV.clone()
        for row in penalised:
            ids, penalty = torch.tensor(sorted(set(seen[row])), device=device), rules[row].repetition_penalty
            old = logits_BV[row, ids]
            logits_BV[row, ids] = torch.where(old > 0, old / penalty, old * penalty)
    # On CPUs numpy's, which runs in this thread: torch's wakes OpenMP threads, and those then spin where the C library's should work.
    ids_B = torch.from_numpy(logits_BV.numpy().argmax(-1)) if device.type == "cpu" else logits_BV.argmax(-1)
    if not torch.isfinite(logits_BV.gather(1, ids_B[:, None])).all():  # argmax takes NaN and infinity before any number
        raise Error("the model's logits are not finite: its weights are damaged, or its numbers pass the ends of the dtype; in float16, try --dtype bfloat16 or float32")
    drawn = [row for row, rule in enumerate(rules) if rule.temperature > COLDEST]
    if not drawn:
        return ids_B

    def column(values) -> Tensor:
        return torch.tensor([[v] for v in values], dtype=torch.float32, device=device)
    mine = [rules[row] for row in drawn]
    p, order = torch.softmax(logits_BV[drawn] / column(r.temperature for r in mine), -1).sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(p.shape[-1], device=device)
    kept = (rank < column(r.top_k or p.shape[-1] for r in mine)) & (p >= column(r.min_p for r in mine) * p[:, :1])
    p = p * (rank < column(r.top_k or p.shape[-1] for r in mine))
    total = p.double().cumsum(-1)
    kept &= total - p < column(r.top_p for r in mine) * total[:, -1:]  # the token that reaches top_p is kept
    kept[:, 0] = True  # the first always, also where top_p is so small that it is 0 in float32
    mass = (p * kept).double().cumsum(-1)
    place = torch.searchsorted(mass, (uniform_B[drawn, None].double() * mass[:, -1:]), right=True)
    place = place.clamp(max=kept.sum(-1, keepdim=True) - 1)  # rounding may leave u · mass at the very end
    ids_B[drawn] = order.gather(1, place)[:, 0]
    return ids_B


def uniforms(seed: int) -> np.random.Generator:
    """A request's own stream of uniform numbers (Philox, the same on every platform)."""
    return np.random.Generator(np.random.Philox(key=seed))


def request_seed(seed: int, ids: list[int], repeat: int) -> int:
    """The seed of the repeat-th request for one prompt: it depends on the prompt, not on its place in a batch."""
    digest = hashlib.sha256(f"{seed}:{repeat}:{','.join(map(str, ids))}".encode()).digest()
    return int.from_bytes(digest[:16], "little")
