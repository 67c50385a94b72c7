"""Logits to token ids, pure: no state but the uniform numbers that are handed in."""
import hashlib
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from redlite.errors import Error

# A logit divided by a lower temperature may pass float32's range; then only the largest logit counts.
COLDEST = 1e-30
WHOLE = ("top_k", "max_new_tokens", "seed")  # settings that are whole numbers


def wrong_kind(settings: Mapping[str, object]) -> str:
    """Which of these settings is no number, or no whole one where it must be; "" if none.

    Python's and numpy's numbers count; True and False do not.
    """
    for name, value in settings.items():
        kind = numbers.Integral if name in WHOLE else numbers.Real
        if not isinstance(value, kind) or isinstance(value, bool):
            return f"{name} {repr(value)[:40]} must be a {'whole ' if name in WHOLE else ''}number"
    return ""


@dataclass(frozen=True)
class Rule:
    """How a request's tokens are drawn.

    temperature         0 takes the first largest logit; otherwise softmax(logits / temperature) is sampled
    top_p               keeps the fewest most likely tokens whose probabilities reach it (arXiv 1904.09751);
                        1 keeps all
    top_k               keeps the k most likely tokens (arXiv 1805.04833), before top_p; 0 keeps all
    min_p               keeps tokens at least min_p times as likely as the likeliest (arXiv 2407.01082);
                        0 keeps all
    repetition_penalty  divides positive logits of tokens that prompt or answer hold, and multiplies
                        negative ones (arXiv 1909.05858); 1 is off
    """
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @property
    def greedy(self) -> bool:
        """Whether a token is the first largest logit as the model gives it, whatever came before."""
        return self.temperature <= COLDEST and self.repetition_penalty == 1

    def fault(self) -> str:
        """What is wrong with the numbers, "" if nothing."""
        if wrong := wrong_kind(vars(self)):
            return wrong
        if not 0 <= self.temperature < float("inf") or not 0 < self.top_p <= 1:
            return (f"temperature {self.temperature} must be at least 0 "
                    f"and top_p {self.top_p} above 0 and at most 1")
        # Beyond these penalties, logits might become infinite.
        if self.top_k < 0 or not 0 <= self.min_p <= 1 or not 1e-6 <= self.repetition_penalty <= 1e6:
            return (f"top_k {self.top_k} must be at least 0, min_p {self.min_p} from 0 to 1, "
                    f"repetition_penalty {self.repetition_penalty} from 1e-6 to 1e6")
        return ""


def sample(logits_BV: Tensor, rules: list[Rule], uniform_B: Tensor, seen: list[list[int]]) -> Tensor:
    """One token id for each row, int64 [B].

    logits_BV  float32
    uniform_B  the random number in [0, 1) that decides each row, so a row's choice depends on nothing else
    seen       the ids of each row's prompt and answer so far; read only for a repetition penalty
    Raises Error where a row's largest logit is NaN or infinite.
    """
    logits_BV = _penalised(logits_BV, rules, seen)
    if logits_BV.device.type == "cpu":
        # numpy's argmax runs in this thread. torch's would wake OpenMP threads, and these then spin where the
        # C library's should work.
        ids_B = torch.from_numpy(logits_BV.numpy().argmax(-1))
    else:
        ids_B = logits_BV.argmax(-1)
    # argmax takes NaN and infinity before any number.
    if not torch.isfinite(logits_BV.gather(1, ids_B[:, None])).all():
        raise not_finite()
    drawn = [row for row, rule in enumerate(rules) if rule.temperature > COLDEST]
    if drawn:
        ids_B[drawn] = _draw(logits_BV[drawn], [rules[row] for row in drawn], uniform_B[drawn])
    return ids_B


def not_finite() -> Error:
    """The Error for logits of which the largest is NaN or infinite."""
    return Error("the model's logits are not finite: its weights are damaged, or its numbers pass the "
                 "ends of the dtype; in float16, try dtype bfloat16 or float32", "dtype")


def _penalised(logits_BV: Tensor, rules: list[Rule], seen: list[list[int]]) -> Tensor:
    """The logits after each row's repetition penalty."""
    penalised = [row for row, rule in enumerate(rules) if rule.repetition_penalty != 1]
    if penalised:
        logits_BV = logits_BV.clone()
    for row in penalised:
        ids = torch.tensor(sorted(set(seen[row])), device=logits_BV.device)
        penalty = rules[row].repetition_penalty
        old = logits_BV[row, ids]
        logits_BV[row, ids] = torch.where(old > 0, old / penalty, old * penalty)
    return logits_BV


def _draw(logits_NV: Tensor, rules: list[Rule], uniform_N: Tensor) -> Tensor:
    """A sampled token id [N] for each row: where u · mass falls in the cumulated probabilities."""
    V, device = logits_NV.shape[1], logits_NV.device

    def column(values: Iterable[float]) -> Tensor:
        return torch.tensor([[v] for v in values], dtype=torch.float32, device=device)
    temperature_N1 = column(r.temperature for r in rules)
    p, order = torch.softmax(logits_NV / temperature_N1, -1).sort(dim=-1, descending=True, stable=True)
    among_top_k = torch.arange(V, device=device) < column(r.top_k or V for r in rules)
    kept = among_top_k & (p >= column(r.min_p for r in rules) * p[:, :1])
    p = p * among_top_k
    total = p.double().cumsum(-1)
    kept &= total - p < column(r.top_p for r in rules) * total[:, -1:]  # the token that reaches top_p is kept
    kept[:, 0] = True  # also where top_p is so small that it is 0 in float32
    mass = (p * kept).double().cumsum(-1)
    place = torch.searchsorted(mass, uniform_N[:, None].double() * mass[:, -1:], right=True)
    place = place.clamp(max=kept.sum(-1, keepdim=True) - 1)  # rounding may leave u · mass at the very end
    return order.gather(1, place)[:, 0]


def uniforms(seed: int) -> np.random.Generator:
    """A request's own stream of uniform numbers (Philox, the same on every platform)."""
    return np.random.Generator(np.random.Philox(key=seed))


def request_seed(seed: int, ids: Sequence[int], repeat: int) -> int:
    """The seed of the repeat-th request for a prompt: its place in a batch does not matter."""
    digest = hashlib.sha256(f"{seed}:{repeat}:{','.join(map(str, ids))}".encode()).digest()
    return int.from_bytes(digest[:16], "little")
