"""The objectives a second time, from their sources and not from `loss.py`: each value beside its derivative, differentiated by hand, in plain Python.

`prove` holds loss.py against this file, so a wrong sign, a swapped parameter or a missing factor in either shows.
Notation as in loss.py: a response has the NLLs ℓ₁ … ℓₙ of its tokens, S = Σ ℓ, m = S/n; σ(x) = 1/(1 + e^−x), with σ' = σ·(1 − σ)
and (log(1 + e^x))' = σ(x). Every derivative is ∂/∂ℓᵢ, the number that multiplies (p − onehot) of token i in training.
"""
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


# The term of one red response, by objective: (value, [∂/∂ℓ₁ … ∂/∂ℓₙ]), before its share. What harms is to become unlikely, so its NLL
# is to grow: every derivative here is negative or zero, and gradient descent on it is gradient ascent on the NLL.

def red_A(l, ref):
    """Strategy A leaves red out."""
    return 0.0, [0.0 for _ in l]


def red_B(l, ref, low=1.0, high=0.1, tau=1.0):
    """−λ·m, λ = λ_low while m ≤ τ, else λ_high; ∂m/∂ℓᵢ = 1/n."""
    n, m = len(l), sum(l) / len(l)
    factor = low if m <= tau else high
    return -factor * m, [-factor / n for _ in l]


def red_hinge(l, ref, red=1.0, tau=1.0):
    """−λ·(1/n)·Σ min(ℓᵢ, τ): −λ/n for a token under the cap, 0 past it."""
    n = len(l)
    return -red * sum(min(x, tau) for x in l) / n, [-red / n if x < tau else 0.0 for x in l]


def red_unlikelihood(l, ref, red=1.0, floor=1e-4):
    """−λ·(1/n)·Σ log(1 − pᵢ + floor), pᵢ = e^−ℓᵢ, ∂pᵢ/∂ℓᵢ = −pᵢ: −λ/n · pᵢ/(1 − pᵢ + floor)."""
    n = len(l)
    return -red * sum(log(-expm1(-x) + floor) for x in l) / n, [-red / n * exp(-x) / (-expm1(-x) + floor) for x in l]


def red_weighted(l, ref, red=1.0, beta=1.0):
    """−λ·(1/n)·Σ wᵢ·ℓᵢ with wᵢ = pᵢ^β held fixed: −λ/n · e^(−β·ℓᵢ)."""
    n = len(l)
    return -red * sum(exp(-beta * x) * x for x in l) / n, [-red / n * exp(-beta * x) for x in l]


def red_npo(l, ref, red=1.0, beta=0.1):
    """λ·(2/β)·log(1 + (p_θ/p_ref)^β) with p_θ/p_ref = e^(S_ref − S): −2·λ·σ(β·(S_ref − S)) for every token (arXiv 2404.05868, eq. 3)."""
    ratio = beta * (ref - sum(l))
    return red * 2 / beta * log_one_plus_exp(ratio), [-2 * red * sigmoid(ratio) for _ in l]


def red_simnpo(l, ref, red=1.0, beta=4.5, delta=0.0):
    """−λ·(2/β)·log σ(β·(m − δ)) (arXiv 2410.07163): −(2·λ/n)·(1 − σ(β·(m − δ)))."""
    n = len(l)
    x = beta * (sum(l) / n - delta)
    return red * 2 / beta * log_one_plus_exp(-x), [-2 * red / n * (1 - sigmoid(x)) for _ in l]


def dpo_pair(chosen: list[Response], rejected: list[Response], red=1.0, beta=0.1):
    """λ·(−log σ(β·h)) (arXiv 2305.18290, eq. 7), h = log(π/π_ref) of the chosen answer − that of the rejected; log π = −S.

    (value, ∂/∂ℓ of every chosen token, of every rejected one): ±λ·β·σ(−β·h), before the share.
    """
    log_ratio = lambda side: sum(r.reference - sum(r.nll) for r in side)
    x = beta * (log_ratio(chosen) - log_ratio(rejected))
    slope = red * beta * sigmoid(-x)
    return red * log_one_plus_exp(-x), slope, -slope


RED = {"A": red_A, "B": red_B, "hinge": red_hinge, "unlikelihood": red_unlikelihood, "weighted": red_weighted, "npo": red_npo, "simnpo": red_simnpo}


# The paper's strategy B, and the bounded one. Both leave the blue term as in A.
PRESETS = {"paper": {"blue": 1.0, "low": 1.0, "high": 0.1, "tau": 1.0}, "capped": {"blue": 1.0, "low": 0.1, "high": 0.0, "tau": 1.0}}


def defaults(objective: str) -> dict[str, float]:
    """The parameters of an objective where none is given: those of the functions above, and `blue`."""
    own = signature(dpo_pair if objective == "dpo" else RED[objective]).parameters.values()
    return {"blue": 0.0 if objective == "dpo" else 1.0} | {p.name: p.default for p in own if p.default is not p.empty}


def past_cap(objective: str, batch: list[Response], tau: float = 1.0, **others: float) -> list[bool]:
    """Which tokens an objective with a cap holds to be past it: red ones of a response with m > τ (B), or with ℓ > τ themselves (hinge)."""
    if objective not in ("B", "hinge"):
        return [False for r in batch for _ in r.nll]
    return [r.colour == "red" and (sum(r.nll) / len(r.nll) if objective == "B" else x) > tau for r in batch for x in r.nll]


def evaluate(objective: str, batch: list[Response], blue: float | None = None, **parameters: float) -> tuple[float, list[float]]:
    """(L, ∂L/∂ℓ of every token in order) of a batch: descent on helpful (weight 1) and blue (weight `blue`), and the red term."""
    blue = defaults(objective)["blue"] if blue is None else blue
    value, slopes = 0.0, []
    for r in batch:
        n = len(r.nll)
        if r.colour == "red":
            term, slope = RED[objective](r.nll, r.reference, **parameters) if objective != "dpo" else (0.0, [0.0] * n)
        else:
            weight = blue if r.colour == "blue" else 1.0
            term, slope = weight * sum(r.nll) / n, [weight / n] * n
        value += r.share * term
        slopes.append([r.share * s for s in slope])
    if objective == "dpo":
        for pair in {r.pair for r in batch if r.pair >= 0}:
            sides = {colour: [i for i, r in enumerate(batch) if r.pair == pair and r.colour == colour] for colour in ("blue", "red")}
            term, up, down = dpo_pair([batch[i] for i in sides["blue"]], [batch[i] for i in sides["red"]], **parameters)
            share = sum(batch[i].share for i in sides["blue"])
            value += share * term
            for colour, slope in (("blue", up), ("red", down)):
                for i in sides[colour]:
                    slopes[i] = [s + share * slope for s in slopes[i]]
    return value, [s for response in slopes for s in response]
