"""Objectives against formulas written a second time, in plain Python float64, response by response."""
import math

import pytest
import torch

from redlite import loss
from redlite.loss import BLUE, HELPFUL, RED, Responses

LENGTH = [3, 1, 4, 2, 5, 2]
COLOUR = [HELPFUL, BLUE, RED, BLUE, RED, RED]
SHARE = [1.0, 0.25, 0.5, 0.75, 0.3, 0.2]
REFERENCE = [float("nan"), 2.0, 3.0, 1.5, 4.5, 2.5]
PAIR = [-1, 0, 0, 1, 1, -1]


def responses(dtype=torch.float64) -> Responses:
    return Responses(torch.tensor(LENGTH), torch.tensor(COLOUR), torch.tensor(SHARE, dtype=dtype), torch.tensor(REFERENCE, dtype=dtype), torch.tensor(PAIR))


def nlls(dtype=torch.float64, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(sum(LENGTH), generator=generator, dtype=torch.float64).mul(2.5).add(0.05).to(dtype)


def by_response(nll):
    out, at = [], 0
    for n in LENGTH:
        out.append([float(x) for x in nll[at:at + n]])
        at += n
    return out


def descent(l, blue):
    """d/dℓ of the helpful and blue part, a list a response."""
    return [[{HELPFUL: 1.0, BLUE: blue, RED: 0.0}[c] * s / len(x)] * len(x) for x, c, s in zip(l, COLOUR, SHARE)]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


# What each objective adds for the tokens of a red response with NLLs x (a list), its share s and its reference r.
RED_TERMS = {
    "A": lambda x, s, r: [0.0] * len(x),
    "B": lambda x, s, r: [-s / len(x) * (1.0 if sum(x) / len(x) <= 1 else 0.1)] * len(x),
    "hinge": lambda x, s, r: [-s / len(x) * (t <= 1.0) for t in x],
    "unlikelihood": lambda x, s, r: [-s / len(x) * math.exp(-t) / (1 - math.exp(-t) + 1e-4) for t in x],
    "weighted": lambda x, s, r: [-s / len(x) * math.exp(-t) for t in x],
    "npo": lambda x, s, r: [-2 * s * (ratio := math.exp(r - sum(x)) ** 0.1) / (1 + ratio)] * len(x),
    "simnpo": lambda x, s, r: [-2 * s / len(x) * (1 - sigmoid(4.5 * sum(x) / len(x)))] * len(x),
}


@pytest.mark.parametrize("name", RED_TERMS)
def test_coefficients_are_the_formula(name):
    nll = nlls()
    nll[10:15] *= 0.3
    l = by_response(nll)
    assert sum(l[2]) / 4 > 1 > sum(l[4]) / 5      # red responses on both sides of τ
    expected = descent(l, 1.0)
    for i, (x, c, s, r) in enumerate(zip(l, COLOUR, SHARE, REFERENCE)):
        if c == RED:
            expected[i] = RED_TERMS[name](x, s, r)
    _, coefficient = loss.coefficients(name, nll, responses())
    assert torch.allclose(coefficient, torch.tensor(sum(expected, []), dtype=torch.float64), rtol=1e-12, atol=1e-15)


def test_dpo_coefficients_are_the_formula():
    nll, beta = nlls(), 0.1
    l = by_response(nll)
    expected = descent(l, 0.0)
    for blue, red in ((1, 2), (3, 4)):
        h = (sum(l[red]) - REFERENCE[red]) - (sum(l[blue]) - REFERENCE[blue])
        c = SHARE[blue] * beta * (1 - sigmoid(beta * h))
        expected[blue], expected[red] = [c] * len(l[blue]), [-c] * len(l[red])
    _, coefficient = loss.coefficients("dpo", nll, responses(), {"beta": beta})
    assert torch.allclose(coefficient, torch.tensor(sum(expected, []), dtype=torch.float64), rtol=1e-12, atol=1e-15)
    assert torch.equal(coefficient[-2:], torch.zeros(2, dtype=torch.float64))     # red without a partner


@pytest.mark.parametrize("name", sorted(loss.OBJECTIVES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_finiteness(name, dtype):
    """The loss is a number of the NLL's dtype, and certain (ℓ = 0), negative by rounding and hopeless tokens give finite coefficients."""
    nll = nlls(dtype)
    nll[:6] = torch.tensor([0.0, -1e-7, 80.0, 1e4, 0.0, -1e-6])
    nll[8:13] = 0.0
    value, coefficient = loss.coefficients(name, nll, responses(dtype))
    assert value.ndim == 0 and value.dtype == coefficient.dtype == dtype
    assert torch.isfinite(value) and torch.isfinite(coefficient).all()


@pytest.mark.parametrize("name", sorted(set(loss.OBJECTIVES) - {"weighted"}))
def test_gradcheck(name):
    """Finite differences in float64, away from the caps; `weighted` stops a gradient and has no such check."""
    for seed in range(5):
        nll = nlls(seed=seed).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: loss.OBJECTIVES[name](x, responses()), nll)


def test_presets_are_the_papers_two_readings():
    """Red coefficients times length over share: (1, 1, 0.1, 1) and (1, 0.1, 0, 1), at, below and above τ."""
    r = Responses(torch.tensor([2, 2, 2]), torch.full((3,), RED), torch.full((3,), 1 / 3), torch.zeros(3), torch.full((3,), -1))
    nll = torch.tensor([0.2, 0.4, 1.0, 1.0, 3.0, 2.0])
    for preset, expected in (("paper", [-1, -1, -0.1]), ("capped", [-0.1, -0.1, 0])):
        _, c = loss.coefficients("B", nll, r, loss.PRESETS[preset])
        assert torch.allclose(c * 2 * 3, torch.tensor(expected).repeat_interleave(2).float())


def test_bounds():
    """Every stated lower bound holds from certain to hopeless red tokens, and `paper` has none."""
    r = Responses(torch.tensor([1]), torch.tensor([RED]), torch.ones(1), torch.tensor([1.0]), torch.tensor([-1]))
    grid = [torch.tensor([x]) for x in torch.linspace(0, 200, 2001).tolist()]
    lowest = {name: min(float(f(x, r)) for x in grid) for name, f in loss.OBJECTIVES.items()}
    assert float(loss.B(torch.tensor([200.0]), r, **loss.PRESETS["paper"])) == pytest.approx(-20)
    assert min(float(loss.B(x, r, **loss.PRESETS["capped"])) for x in grid) == pytest.approx(-0.1)
    assert lowest["hinge"] == pytest.approx(-1) and lowest["weighted"] == pytest.approx(-1 / math.e, abs=1e-3)
    assert all(lowest[name] >= 0 for name in ("npo", "simnpo", "dpo")) and lowest["unlikelihood"] >= -1.1e-4
    assert max(float(loss.unlikelihood(x, r)) for x in grid) <= -math.log(1e-4) + 1e-3


def test_micro_batches_add_up():
    """The loss and the coefficients of a global batch do not depend on how it is cut."""
    nll, whole = nlls(), responses()
    value, coefficient = loss.coefficients("B", nll, whole)
    parts, at = [], 0
    for i, j in ((0, 2), (2, 3), (3, 6)):
        part = Responses(*(getattr(whole, f)[i:j] for f in ("length", "colour", "share", "reference", "pair")))
        n = int(part.length.sum())
        parts.append(loss.coefficients("B", nll[at:at + n], part))
        at += n
    assert sum(v for v, _ in parts) == pytest.approx(float(value))
    assert torch.equal(torch.cat([c for _, c in parts]), coefficient)


@pytest.mark.parametrize("name", sorted(loss.OBJECTIVES))
def test_empty(name):
    none = Responses(*(torch.zeros(0, dtype=d) for d in (torch.int64, torch.int64, torch.float32, torch.float32, torch.int64)))
    value, coefficient = loss.coefficients(name, torch.zeros(0), none)
    assert float(value) == 0 and coefficient.shape == (0,)


def test_capped_marks_responses_for_B_and_tokens_for_hinge():
    r = Responses(torch.tensor([2, 2, 2]), torch.tensor([RED, RED, BLUE]), torch.ones(3), torch.zeros(3), torch.full((3,), -1))
    nll = torch.tensor([0.1, 2.5, 0.1, 1.2, 9.0, 9.0])
    assert loss.capped("B", nll, r).tolist() == [True, True, False, False, False, False]
    assert loss.capped("hinge", nll, r).tolist() == [False, True, False, True, False, False]
    assert not loss.capped("npo", nll, r).any()
    for name in ("B", "hinge"):
        _, coefficient = loss.coefficients(name, nll, r, {"tau": 1.0} | ({"high": 0.0} if name == "B" else {}))
        assert torch.equal(coefficient == 0, loss.capped(name, nll, r))
