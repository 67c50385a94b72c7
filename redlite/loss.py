"""Every objective of SAFE-ALIGN and its relatives, over the NLL of each trained token: the file to audit.

ℓ = −log p is the NLL of one token in nats. m and S are its mean and sum over a response (one assistant turn).
m̄[colour] is the mean of m over the responses of a colour in the whole global batch. `share` holds each
response's part of that mean, so neither processes nor accumulation change the loss. Every objective is

    L = λ_helpful·m̄[helpful] + λ_blue·m̄[blue] + (a term in the red responses),        λ_helpful = 1,

and its docstring gives the term, its source and its bound. Training applies to the logits z of each token
the row  ∂L/∂z = coefficient · (p − onehot),  coefficient = ∂L/∂ℓ.  Only `coefficients` makes that number: the
trainer multiplies by what it returns, and the ledger prints it.

`bin/safealign prove` proves this file on your machine: against training/formulas.py, which states every
objective and its derivative a second time, and against differences in float64.
"""
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import softplus

HELPFUL, BLUE, RED = range(3)
COLOURS = ("helpful", "blue", "red")
PRESETS = {"paper": {"blue": 1.0, "low": 1.0, "high": 0.1, "tau": 1.0},
           "capped": {"blue": 1.0, "low": 0.1, "high": 0.0, "tau": 1.0}}


@dataclass(frozen=True)
class Responses:
    """What the objectives know of the N trained tokens, which are in the order of responses."""
    length: Tensor       # [R] int64, tokens of each response; they add up to N
    colour: Tensor       # [R] int64: HELPFUL, BLUE or RED
    share: Tensor        # [R] weight in the colour's mean; a colour's shares sum to 1 over the global batch
    reference: Tensor    # [R] S under the model before training (NPO, DPO); NaN where it is not needed
    pair: Tensor         # [R] index of the blue/red pair that the response belongs to (DPO), else -1

    def sum(self, x_N: Tensor) -> Tensor:
        """[R]: the sum of x over each response's tokens."""
        return torch.segment_reduce(x_N, "sum", lengths=self.length, unsafe=True)

    def mean(self, x_N: Tensor) -> Tensor:
        """[R]: the mean of x over each response's tokens; of the NLL, the paper's "sample loss"."""
        return self.sum(x_N) / self.length

    def to(self, device: str | torch.device) -> "Responses":
        return Responses(*(getattr(self, f.name).to(device) for f in fields(self)))


def A(nll: Tensor, r: Responses, *, blue: float = 1.0) -> Tensor:
    """Strategy A (arXiv 2308.09662, section 4): no red term. L ≥ 0."""
    m = r.mean(nll)
    term = torch.where(r.colour == BLUE, blue * m, m)
    return torch.where(r.colour == RED, 0.0, r.share * term).sum()


def B(nll: Tensor, r: Responses, *, blue: float = 1.0, low: float = 1.0,
      high: float = 0.1, tau: float = 1.0) -> Tensor:
    """Strategy B (same section). Red: −λ_low·m where m ≤ τ, −λ_high·m where m > τ.

    L ≥ −λ_low·τ with λ_high = 0; no bound with λ_high > 0.
    PRESETS: `paper` (1, 1, 0.1, 1) keeps pushing for ever; `capped` (1, 0.1, 0, 1) stops at τ: L ≥ −0.1.
    """
    m = r.mean(nll)
    return A(nll, r, blue=blue) - _red(torch.where(m <= tau, low * m, high * m), r)


def hinge(nll: Tensor, r: Responses, *, blue: float = 1.0, red: float = 1.0, tau: float = 1.0) -> Tensor:
    """Red: the mean of −λ·min(ℓ, τ), token by token: a token is pushed until p = e^−τ. L ≥ −λ·τ."""
    return A(nll, r, blue=blue) - red * _red(r.mean(nll.clamp(max=tau)), r)


def unlikelihood(nll: Tensor, r: Responses, *, blue: float = 1.0, red: float = 1.0,
                 floor: float = 1e-4) -> Tensor:
    """Red: the mean of −λ·log(1 − p + floor) (arXiv 1908.04319).

    0 ≤ term ≤ −λ·log(floor), to within floor; |coefficient| ≤ λ·share/floor. Without the floor, a token with
    p = 1, whose NLL rounds to 0, would have an infinite coefficient.
    """
    return A(nll, r, blue=blue) - red * _red(r.mean(torch.log(floor - torch.expm1(-nll))), r)


def weighted(nll: Tensor, r: Responses, *, blue: float = 1.0, red: float = 1.0, beta: float = 1.0) -> Tensor:
    """Red: the mean of −λ·sg(p^β)·ℓ, where sg stops the gradient. Term ≥ −λ/(e·β).

    The ascent fades as the token becomes unlikely.
    """
    return A(nll, r, blue=blue) - red * _red(r.mean(torch.exp(-beta * nll.detach()) * nll), r)


def npo(nll: Tensor, r: Responses, *, blue: float = 1.0, red: float = 1.0, beta: float = 0.1) -> Tensor:
    """NPO (arXiv 2404.05868). Red: λ·(2/β)·log(1 + (p_θ/p_ref)^β). Term ≥ 0.

    p is that of the whole response, so p_θ/p_ref = e^(S_ref − S).
    """
    # NaN elsewhere must not reach a gradient as 0 · NaN.
    reference = torch.where(r.colour == RED, r.reference, 0.0)
    return A(nll, r, blue=blue) + red * _red(2 / beta * softplus(beta * (reference - r.sum(nll))), r)


def simnpo(nll: Tensor, r: Responses, *, blue: float = 1.0, red: float = 1.0,
           beta: float = 4.5, delta: float = 0.0) -> Tensor:
    """SimNPO (arXiv 2410.07163). Red: −λ·(2/β)·log σ(β·(m − δ)); needs no reference. Term ≥ 0."""
    return A(nll, r, blue=blue) + red * _red(2 / beta * softplus(-beta * (r.mean(nll) - delta)), r)


def dpo(nll: Tensor, r: Responses, *, blue: float = 0.0, red: float = 1.0, beta: float = 0.1) -> Tensor:
    """DPO (arXiv 2305.18290) on pairs of one question: λ·(−log σ(β·h)). Term ≥ 0.

    h = Σ_red (S − S_ref) − Σ_blue (S − S_ref), where Σ runs over the pair's responses of that colour. Pairs
    are averaged by the shares of their blue side. λ_blue = 0 by default: the pair itself raises blue.
    """
    paired = r.pair >= 0
    signed = torch.where(r.colour == RED, 1.0, -1.0) * (r.sum(nll) - r.reference)
    pairs = int(r.pair.max()) + 1 if len(r.pair) else 0
    h = nll.new_zeros(pairs).index_add(0, r.pair[paired], signed[paired])
    blue_side = paired & (r.colour == BLUE)
    share = nll.new_zeros(pairs).index_add(0, r.pair[blue_side], r.share[blue_side].to(nll.dtype))
    return A(nll, r, blue=blue) + red * (share * softplus(-beta * h)).sum()


def _red(term_R: Tensor, r: Responses) -> Tensor:
    """The mean of a term over the red responses of the global batch: this micro-batch's part of it."""
    return torch.where(r.colour == RED, r.share * term_R, 0.0).sum()


OBJECTIVES: dict[str, Callable[..., Tensor]] = {
    f.__name__: f for f in (A, B, hinge, unlikelihood, weighted, npo, simnpo, dpo)}
NEED_REFERENCE = ("npo", "dpo")


def coefficients(objective: str, nll: Tensor, responses: Responses,
                 parameters: Mapping[str, float] | None = None) -> tuple[Tensor, Tensor]:
    """(L, ∂L/∂ℓ [N]) of an objective of OBJECTIVES at these NLLs [N].

    The training gradient is exactly coefficient · ∇ℓ. L is this micro-batch's part of the loss: the parts
    of a global batch add up to it.
    """
    with torch.enable_grad():
        leaf = nll.detach().requires_grad_()
        value = OBJECTIVES[objective](leaf, responses, **(parameters or {}))
        (coefficient,) = torch.autograd.grad(value, leaf)
    return value.detach(), coefficient


def capped(objective: str, nll: Tensor, r: Responses,
           parameters: Mapping[str, float] | None = None) -> Tensor:
    """[N] bool: the red tokens past the cap τ of an objective (B: by response, hinge: by token)."""
    if objective not in ("B", "hinge"):
        return torch.zeros_like(nll, dtype=torch.bool)
    tau = (parameters or {}).get("tau", 1.0)
    past = r.mean(nll).repeat_interleave(r.length) > tau if objective == "B" else nll > tau
    return past & (r.colour == RED).repeat_interleave(r.length)
