"""The proof must pass on what is right and fail, with exit code 1, on what is wrong."""
import json
import re
import types
from pathlib import Path

import pytest
import torch

from redlite import loss
from redlite.cli import safealign
from redlite.kernels import reference
from redlite.model import lora
from redlite.training import prove


@pytest.fixture
def only_reference(monkeypatch):
    """Makes the proof check one implementation, which the test may replace."""
    def use(function=reference.token_nll):
        monkeypatch.setattr(prove, "available",
                            lambda: ([prove.Implementation("subject", function, "cpu", (torch.float32,))],
                                     []))
    use()
    return use


@pytest.mark.parametrize("command", ["train", "audit"])
def test_help_names_every_objective_and_matrix(command, capsys):
    with pytest.raises(SystemExit):
        safealign.main([command, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name in loss.OBJECTIVES.keys() - {"A"} | set(lora.TARGETS if command == "train" else ()):
        assert re.search(rf"\b{name}\b", shown), name


def test_the_plan_of_prove_is_json_where_json_is_asked_for(capsys):
    assert safealign.main(["prove", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"].startswith("would check every objective")


@pytest.mark.slow
def test_everything_here_is_proved(capsys):
    """All objectives, all implementations that run here, all their precisions."""
    assert safealign.main(["prove", "--json"]) == 0
    text, said = capsys.readouterr()
    result = json.loads(text)
    assert result["ok"] and "FAILED" not in said
    assert [row["objective"] for row in result["objectives"]] == list(loss.OBJECTIVES)
    implementations, _ = prove.available()
    assert [(row["implementation"], row["dtype"])
            for row in result["token_nll"]] == [(x.name, prove.NAMES[d]) for x in implementations
                                                for d in x.dtypes]
    assert all(row["plain_hidden"] > 0 and row["plain_weight"] > 0 and 0 < row["ratio"] <= prove.LIMIT
               for row in result["token_nll"])


class _Wrong(torch.autograd.Function):
    """Right values, and the gradient of the weights too large by a part in ten thousand."""

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        ctx.save_for_backward(hidden, weight, targets)
        return reference.token_nll(hidden.detach(), weight.detach(), targets)

    @staticmethod
    def backward(ctx, coefficient):
        hidden, weight, targets = (x.detach() for x in ctx.saved_tensors)
        with torch.enable_grad():
            hidden.requires_grad_(), weight.requires_grad_()
            d_hidden, d_weight = torch.autograd.grad(reference.token_nll(hidden, weight, targets),
                                                     (hidden, weight), coefficient)
        return d_hidden, d_weight * 1.0001, None


def _nan(hidden, weight, targets):
    return reference.token_nll(hidden, weight, targets) * float("nan")


@pytest.mark.parametrize("wrong", [_Wrong.apply, _nan])
def test_a_wrong_kernel_is_found(only_reference, wrong, capsys):
    only_reference(wrong)
    assert safealign.main(["prove"]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_a_wrong_coefficient_is_found(only_reference, monkeypatch, capsys):
    """An ascent that stops too little of its gradient: the value is the objective's, the coefficient is not
    its derivative.
    """
    monkeypatch.setitem(loss.OBJECTIVES, "simnpo", lambda nll, r,
                        **p: loss.simnpo(nll, r, **p) + 1e-5 * (nll - nll.detach()).sum())
    assert safealign.main(["prove"]) == 1
    assert [line for line in capsys.readouterr().out.splitlines() if "FAILED" in line and "simnpo" in line]


MUTATIONS = [  # in loss.py: what stands there, what a slip would put in its place
    ("B", "return A(nll, r, blue=blue) - _red(torch.where(m <= tau",
     "return A(nll, r, blue=blue) + _red(torch.where(m <= tau"),
    ("B", "low * m, high * m", "high * m, low * m"),
    ("B", "m <= tau", "m > tau"),
    ("A", "torch.where(r.colour == BLUE, blue * m, m)", "torch.where(r.colour == HELPFUL, blue * m, m)"),
    ("A", "torch.where(r.colour == RED, 0.0, r.share * term)", "(r.share * term)"),
    ("hinge", "clamp(max=tau)", "clamp(min=tau)"),
    ("hinge", "- red * _red(r.mean(nll.clamp", "+ red * _red(r.mean(nll.clamp"),
    ("unlikelihood", "torch.expm1(-nll)", "torch.exp(-nll)"),
    ("weighted", "torch.exp(-beta * nll.detach())", "torch.exp(-beta * nll)"),
    ("npo", "beta * (reference - r.sum(nll))", "beta * (r.sum(nll) - reference)"),
    ("npo", "2 / beta * softplus(beta * (reference", "1 / beta * softplus(beta * (reference"),
    ("simnpo", "-beta * (r.mean(nll) - delta)", "-beta * (r.mean(nll) + delta)"),
    ("simnpo", "r.mean(nll) - delta", "r.sum(nll) - delta"),
    ("dpo", "r.colour == RED, 1.0, -1.0", "r.colour == RED, -1.0, 1.0"),
    ("dpo", "r.sum(nll) - r.reference", "r.sum(nll) + r.reference"),
    ("dpo", "softplus(-beta * h)", "softplus(beta * h)"),
    ("B", '"paper": {"blue": 1.0, "low": 1.0, "high": 0.1', '"paper": {"blue": 1.0, "low": 1.0, "high": 0.0'),
    ("B", '"high": 0.0, "tau": 1.0}', '"high": 0.0, "tau": 1.01}'),
    ("B", "high: float = 0.1, tau: float = 1.0", "high: float = 0.1, tau: float = 1.01"),
    ("B", "r.mean(nll).repeat_interleave(r.length) > tau if",
     "r.sum(nll).repeat_interleave(r.length) > tau if"),
    ("hinge", 'objective == "B" else nll > tau', 'objective == "B" else nll > 2 * tau'),
    ("hinge", "return past & (r.colour == RED)", "return past & (r.colour != RED)"),
]


@pytest.mark.parametrize("name, right, wrong", MUTATIONS)
def test_a_slip_in_an_objective_is_found(name, right, wrong):
    """A wrong sign is the derivative of a wrong loss: differences of that loss would agree with it, the
    formulas do not.
    """
    source = Path(loss.__file__).read_text()
    assert source.count(right) == 1
    module = types.ModuleType("loss_with_a_slip")
    module.__dict__["__name__"] = "redlite.loss"
    exec(compile(source.replace(right, wrong), "loss_with_a_slip", "exec"), module.__dict__)
    module.OBJECTIVES = {name: module.OBJECTIVES[name]}
    assert [row["ok"] for row in prove.check_objectives(module)] == [False]


def test_the_cases_reach_both_sides_of_every_cap():
    """Else a proof of B and hinge would say nothing of one of their branches."""
    sides = set()
    for seed in range(5):
        c = prove.case(prove.SHAPES[0], torch.float32, seed)
        nll = prove.plain(c.hidden, c.weight, c.targets)[c.rows]
        red = (c.responses.colour == loss.RED).repeat_interleave(c.responses.length)
        for name in ("B", "hinge"):
            sides |= {(name, bool(x)) for x in loss.capped(name, nll, c.responses)[red]}
    assert sides == {("B", True), ("B", False), ("hinge", True), ("hinge", False)}
