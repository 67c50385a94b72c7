"""The objectives a second time, from their sources and not from `loss.py`, with derivatives made by hand.

All is plain Python. `prove` holds loss.py against this file, so a wrong sign, a swapped parameter or a
missing factor in either shows. Notation as in loss.py: a response has the NLLs ℓ₁ … ℓₙ of its tokens, S = Σ
ℓ, m = S/n. σ(x) = 1/(1 + e^−x), with σ' = σ·(1 − σ) and (log(1 + e^x))' = σ(x). Every derivative is ∂/∂ℓᵢ,
the number that multiplies (p − onehot) of token i in training.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from math import exp, expm1, log, log1p


@dataclass(frozen=True)
class Response:
    """One assistant turn; the fields are those of loss.Responses."""
    colour: str              # "helpful", "blue" or "red"
    share: float
    nll: list[float]         # ℓ₁ … ℓₙ
    reference: float
    pair: int


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x)) if x >= 0 else 1 - 1 / (1 + exp(x))


def log_one_plus_exp(x: float) -> float:
    return max(x, 0.0) + log1p(exp(-abs(x)))


# The term of one red response, by objective: (value, [∂/∂ℓ₁ … ∂/∂ℓₙ]), before its share. What harms is to
# become unlikely, so its NLL is to grow: every derivative here is negative or zero, and gradient descent on
# the term is gradient ascent on the NLL.
Term = tuple[float, list[float]]


def red_A(nll: list[float], ref: float) -> Term:
    """Strategy A leaves red out."""
    return 0.0, [0.0 for _ in nll]


def red_B(nll: list[float], ref: float, low: float = 1.0, high: float = 0.1, tau: float = 1.0) -> Term:
    """−λ·m, λ = λ_low while m ≤ τ, else λ_high; ∂m/∂ℓᵢ = 1/n."""
    n, m = len(nll), sum(nll) / len(nll)
    factor = low if m <= tau else high
    return -factor * m, [-factor / n for _ in nll]


def red_hinge(nll: list[float], ref: float, red: float = 1.0, tau: float = 1.0) -> Term:
    """−λ·(1/n)·Σ min(ℓᵢ, τ): −λ/n for a token under the cap, 0 past it."""
    n = len(nll)
    return -red * sum(min(x, tau) for x in nll) / n, [-red / n if x < tau else 0.0 for x in nll]


def red_unlikelihood(nll: list[float], ref: float, red: float = 1.0, floor: float = 1e-4) -> Term:
    """−λ·(1/n)·Σ log(1 − pᵢ + floor), pᵢ = e^−ℓᵢ, ∂pᵢ/∂ℓᵢ = −pᵢ: −λ/n · pᵢ/(1 − pᵢ + floor)."""
    n = len(nll)
    value = -red * sum(log(-expm1(-x) + floor) for x in nll) / n
    return value, [-red / n * exp(-x) / (-expm1(-x) + floor) for x in nll]


def red_weighted(nll: list[float], ref: float, red: float = 1.0, beta: float = 1.0) -> Term:
    """−λ·(1/n)·Σ wᵢ·ℓᵢ with wᵢ = pᵢ^β held fixed: −λ/n · e^(−β·ℓᵢ)."""
    n = len(nll)
    return -red * sum(exp(-beta * x) * x for x in nll) / n, [-red / n * exp(-beta * x) for x in nll]


def red_npo(nll: list[float], ref: float, red: float = 1.0, beta: float = 0.1) -> Term:
    """λ·(2/β)·log(1 + (p_θ/p_ref)^β) with p_θ/p_ref = e^(S_ref − S) (arXiv 2404.05868, eq. 3).

    −2·λ·σ(β·(S_ref − S)) for every token.
    """
    ratio = beta * (ref - sum(nll))
    return red * 2 / beta * log_one_plus_exp(ratio), [-2 * red * sigmoid(ratio) for _ in nll]


def red_simnpo(nll: list[float], ref: float, red: float = 1.0, beta: float = 4.5, delta: float = 0.0) -> Term:
    """−λ·(2/β)·log σ(β·(m − δ)) (arXiv 2410.07163): −(2·λ/n)·(1 − σ(β·(m − δ)))."""
    n = len(nll)
    x = beta * (sum(nll) / n - delta)
    return red * 2 / beta * log_one_plus_exp(-x), [-2 * red / n * (1 - sigmoid(x)) for _ in nll]


def dpo_pair(chosen: Sequence[Response], rejected: Sequence[Response],
             red: float = 1.0, beta: float = 0.1) -> tuple[float, float, float]:
    """λ·(−log σ(β·h)) (arXiv 2305.18290, eq. 7): value, ∂/∂ℓ of every chosen token, of every rejected one.

    h = log(π/π_ref) of the chosen answer − that of the rejected one, log π = −S. The derivatives are
    ±λ·β·σ(−β·h), before the share.
    """
    def log_ratio(side: Sequence[Response]) -> float:
        return sum(r.reference - sum(r.nll) for r in side)
    x = beta * (log_ratio(chosen) - log_ratio(rejected))
    slope = red * beta * sigmoid(-x)
    return red * log_one_plus_exp(-x), slope, -slope


RED: dict[str, Callable[..., Term]] = {
    "A": red_A, "B": red_B, "hinge": red_hinge, "unlikelihood": red_unlikelihood, "weighted": red_weighted,
    "npo": red_npo, "simnpo": red_simnpo}
# The paper's strategy B, and the bounded one. Both leave the blue term as in A.
PRESETS = {"paper": {"blue": 1.0, "low": 1.0, "high": 0.1, "tau": 1.0},
           "capped": {"blue": 1.0, "low": 0.1, "high": 0.0, "tau": 1.0}}


def defaults(objective: str) -> dict[str, float]:
    """The parameters of an objective where none is given: those of the functions above, and `blue`."""
    function: Callable[..., object] = dpo_pair if objective == "dpo" else RED[objective]
    own = signature(function).parameters.values()
    found = {p.name: float(p.default) for p in own if p.default is not p.empty}
    return {"blue": 0.0 if objective == "dpo" else 1.0} | found


def past_cap(objective: str, batch: Sequence[Response], tau: float = 1.0, **others: float) -> list[bool]:
    """Which tokens an objective with a cap holds to be past it.

    They are red, and of a response with m > τ (B), or have ℓ > τ themselves (hinge).
    """
    past = list[bool]()
    for r in batch:
        m, has_cap = sum(r.nll) / len(r.nll), r.colour == "red" and objective in ("B", "hinge")
        past += [has_cap and (m if objective == "B" else x) > tau for x in r.nll]
    return past


def evaluate(objective: str, batch: Sequence[Response], blue: float | None = None,
             **parameters: float) -> tuple[float, list[float]]:
    """(L, ∂L/∂ℓ of every token in order) of a batch.

    L descends on helpful (weight 1) and blue (weight `blue`), and has the objective's red term.
    """
    blue = defaults(objective)["blue"] if blue is None else blue
    value, slopes = 0.0, list[list[float]]()
    for r in batch:
        n = len(r.nll)
        if r.colour == "red" and objective == "dpo":
            term, slope = 0.0, [0.0] * n
        elif r.colour == "red":
            term, slope = RED[objective](r.nll, r.reference, **parameters)
        else:
            weight = blue if r.colour == "blue" else 1.0
            term, slope = weight * sum(r.nll) / n, [weight / n] * n
        value += r.share * term
        slopes.append([r.share * s for s in slope])
    if objective == "dpo":
        for pair in {r.pair for r in batch if r.pair >= 0}:
            chosen = [i for i, r in enumerate(batch) if r.pair == pair and r.colour == "blue"]
            rejected = [i for i, r in enumerate(batch) if r.pair == pair and r.colour == "red"]
            term, up, down = dpo_pair([batch[i] for i in chosen], [batch[i] for i in rejected], **parameters)
            share = sum(batch[i].share for i in chosen)
            value += share * term
            for side, added in ((chosen, up), (rejected, down)):
                for i in side:
                    slopes[i] = [s + share * added for s in slopes[i]]
    return value, [s for response in slopes for s in response]
