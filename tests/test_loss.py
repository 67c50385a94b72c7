"""Objectives of loss.py; what they are worth is held against formulas.py by test_prove.py, and formulas.py
is held against differences here.
"""
import math

import pytest
import torch

from redlite import loss
from redlite.loss import BLUE, HELPFUL, RED, Responses
from redlite.training import formulas, prove

LENGTH = [3, 1, 4, 2, 5, 2]
COLOUR = [HELPFUL, BLUE, RED, BLUE, RED, RED]
SHARE = [1.0, 0.25, 0.5, 0.75, 0.3, 0.2]
REFERENCE = [float("nan"), 2.0, 3.0, 1.5, 4.5, 2.5]
PAIR = [-1, 0, 0, 1, 1, -1]


def responses(dtype=torch.float64) -> Responses:
    return Responses(torch.tensor(LENGTH), torch.tensor(COLOUR), torch.tensor(SHARE, dtype=dtype),
                     torch.tensor(REFERENCE, dtype=dtype), torch.tensor(PAIR))


def nlls(dtype=torch.float64, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(sum(LENGTH), generator=generator, dtype=torch.float64).mul(2.5).add(0.05).to(dtype)


@pytest.mark.parametrize("name", sorted(loss.OBJECTIVES))
@pytest.mark.parametrize("defaults", [True, False])
def test_the_second_statement_of_the_objectives_is_right(name, defaults):
    """formulas.py, the referee of `prove`: its derivatives, made by hand, against central differences of
    its own values.
    """
    parameters = {} if defaults else prove.ALTERED[name]
    nll = nlls()
    nll[4:8] *= 1.2
    nll[10:15] *= 0.3
    assert nll[4:8].mean() > 1.3 and nll[10:15].mean() < 1      # red responses on both sides of τ
    # `weighted` holds its weights fixed while it is differentiated
    fixed = torch.exp(-parameters.get("beta", 1.0) * nll)

    def value(x):
        batch = [formulas.Response(loss.COLOURS[c], s, part.tolist(), ref, p)
                 for part, c, s, ref, p in zip(x.split(LENGTH), COLOUR, SHARE, REFERENCE, PAIR, strict=True)]
        return formulas.evaluate(name, batch, **parameters)
    _, slopes = value(nll)
    for i in range(len(nll)):
        step = torch.zeros_like(nll)
        step[i] = 1e-6
        difference = (value(nll + step)[0] - value(nll - step)[0]) / 2e-6
        of = next(k for k in range(len(LENGTH)) if i < sum(LENGTH[:k + 1]))
        if name == "weighted" and COLOUR[of] == RED:   # d/dℓ of the weight, taken out
            difference -= parameters.get("red", 1.0) * SHARE[of] / LENGTH[of] * parameters.get("beta",
                1.0) * float(fixed[i] * nll[i])
        assert slopes[i] == pytest.approx(difference, abs=1e-8)


def test_literal_values_of_one_red_token():
    """Figures computed apart, with ℓ = 0.5 and S_ref = 1: what each objective's red token is multiplied by.
    """
    r = Responses(torch.tensor([1]), torch.tensor([RED]), torch.ones(1, dtype=torch.float64),
                  torch.ones(1, dtype=torch.float64), torch.tensor([-1]))
    expected = {"A": 0.0, "B": -1.0, "hinge": -1.0, "unlikelihood": -1.5411024, "weighted": -0.6065307,
                "npo": -1.0249948, "simnpo": -0.1906989, "dpo": 0.0}
    for name, number in expected.items():
        _, coefficient = loss.coefficients(name, torch.tensor([0.5], dtype=torch.float64), r)
        assert float(coefficient) == pytest.approx(number, abs=1e-6), name


@pytest.mark.parametrize("name", sorted(loss.OBJECTIVES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_finiteness(name, dtype):
    """The loss is a number of the NLL's dtype, and certain (ℓ = 0), negative by rounding and hopeless
    tokens give finite coefficients.
    """
    nll = nlls(dtype)
    nll[:6] = torch.tensor([0.0, -1e-7, 80.0, 1e4, 0.0, -1e-6])
    nll[8:13] = 0.0
    value, coefficient = loss.coefficients(name, nll, responses(dtype))
    assert value.ndim == 0 and value.dtype == coefficient.dtype == dtype
    assert torch.isfinite(value) and torch.isfinite(coefficient).all()


@pytest.mark.parametrize("name", sorted(set(loss.OBJECTIVES) - {"weighted"}))
def test_gradcheck(name):
    """Finite differences in float64, away from the caps; `weighted` stops a gradient and has no such check.
    """
    for seed in range(5):
        nll = nlls(seed=seed).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: loss.OBJECTIVES[name](x, responses()), nll)


def test_presets_are_the_papers_two_readings():
    """Red coefficients times length over share: (1, 1, 0.1, 1) and (1, 0.1, 0, 1), at, below and above τ."""
    r = Responses(torch.tensor([2, 2, 2]), torch.full((3,), RED), torch.full((3,), 1 / 3), torch.zeros(3),
                  torch.full((3,), -1))
    nll = torch.tensor([0.2, 0.4, 1.0, 1.0, 3.0, 2.0])
    for preset, expected in (("paper", [-1, -1, -0.1]), ("capped", [-0.1, -0.1, 0])):
        _, c = loss.coefficients("B", nll, r, loss.PRESETS[preset])
        assert torch.allclose(c * 2 * 3, torch.tensor(expected).repeat_interleave(2).float())


@pytest.mark.slow
def test_bounds():
    """Every stated lower bound holds from certain to hopeless red tokens, and `paper` has none."""
    r = Responses(torch.tensor([1]), torch.tensor([RED]), torch.ones(1), torch.tensor([1.0]),
                  torch.tensor([-1]))
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
        part = Responses(*(getattr(whole, f)[i:j]
                           for f in ("length", "colour", "share", "reference", "pair")))
        n = int(part.length.sum())
        parts.append(loss.coefficients("B", nll[at:at + n], part))
        at += n
    assert sum(v for v, _ in parts) == pytest.approx(float(value))
    assert torch.equal(torch.cat([c for _, c in parts]), coefficient)


@pytest.mark.parametrize("name", sorted(loss.OBJECTIVES))
def test_empty(name):
    none = Responses(*(torch.zeros(0, dtype=d)
                       for d in (torch.int64, torch.int64, torch.float32, torch.float32, torch.int64)))
    value, coefficient = loss.coefficients(name, torch.zeros(0), none)
    assert float(value) == 0 and coefficient.shape == (0,)


def test_capped_marks_responses_for_B_and_tokens_for_hinge():
    r = Responses(torch.tensor([2, 2, 2]), torch.tensor([RED, RED, BLUE]), torch.ones(3), torch.zeros(3),
                  torch.full((3,), -1))
    nll = torch.tensor([0.1, 2.5, 0.1, 1.2, 9.0, 9.0])
    assert loss.capped("B", nll, r).tolist() == [True, True, False, False, False, False]
    assert loss.capped("hinge", nll, r).tolist() == [False, True, False, True, False, False]
    assert not loss.capped("npo", nll, r).any()
    for name in ("B", "hinge"):
        _, coefficient = loss.coefficients(name, nll, r,
                                           {"tau": 1.0} | ({"high": 0.0} if name == "B" else {}))
        assert torch.equal(coefficient == 0, loss.capped(name, nll, r))
