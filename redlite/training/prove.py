"""Proves the loss on the user's own machine: objectives and implementations of token_nll against float64.

Three claims are checked.
1. `loss.py` is what the papers say. The value and ∂L/∂ℓ of every objective are held against `formulas.py`,
   which states both a second time; so are default parameters, presets, and the marks of tokens past a cap. No
   blue or helpful token is pushed down, and no red one up.
2. `loss.coefficients` gives ∂L/∂ℓ of what loss.py says, by central differences in float64.
3. The gradients that training applies, of L through token_nll to the hidden rows and the output weights, are
   near those of the plain formula in float64: as near as the plain formula in the same precision, times
   LIMIT.
Inputs are random. Half the targets are likely ones, and masked rows lie between.
"""
import inspect
import math
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from redlite import kernels, loss
from redlite.kernels.cpu import library
from redlite.loss import BLUE, COLOURS, HELPFUL, RED, Responses
from redlite.training import formulas, prove_operations

LIMIT = 2.0            # times the plain formula's own error
DIFFERENCES = 1e-6     # relative error allowed to central differences, which are good to about 1e-9
FORMULAS = 1e-12       # relative error allowed to formulas.py, in float64
FLAGS = "signs", "settings", "caps"    # what is right or wrong of an objective, rather than near or far
SHAPES = (47, 31, 123), (96, 40, 300)  # rows, width, vocabulary
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
TokenNLL = Callable[[Tensor, Tensor, Tensor], Tensor]
Row = dict[str, Any]   # of a table


class Implementation(NamedTuple):
    name: str
    token_nll: TokenNLL
    device: str
    dtypes: tuple[torch.dtype, ...]


class Case(NamedTuple):
    """Inputs in float64, rounded to the precision that is checked. rows: those whose target is not −100."""
    hidden: Tensor
    weight: Tensor
    targets: Tensor
    rows: Tensor
    responses: Responses


def available() -> tuple[list[Implementation], list[str]]:
    """The implementations of token_nll that run here, and one line about each that does not."""
    every, missing = tuple(NAMES), list[str]()
    reference = import_module("redlite.kernels.reference")
    found = [Implementation("reference", reference.token_nll, "cpu", every)]
    if library.missing():
        missing.append(f"c: {library.missing()}")
    else:
        c = import_module("redlite.kernels.cpu.token_nll")
        found.append(Implementation(f"c ({library.isa()})", c.token_nll, "cpu", every))
        if library.isa() != "portable":
            found.append(Implementation("c (portable)", _portable(c._TokenNLL), "cpu", every))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and "triton" not in sys.modules:
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        triton = import_module("redlite.kernels.triton.token_nll")
    except ImportError as error:
        return found, [*missing, f"triton: not installed ({error})"]
    reason = triton.unusable(device)
    if reason:
        return found, [*missing, f"triton: {reason}"]
    if device == "cuda":
        name = f"triton ({torch.cuda.get_device_name()})"
        found.append(Implementation(name, triton.token_nll, device, every))
    else:
        few = torch.float32, torch.float16
        found.append(Implementation("triton (interpreter)", triton.token_nll, device, few))
        missing.append("triton in bfloat16: its interpreter multiplies bfloat16 wrongly; a GPU is needed")
    return found, missing


def _portable(function: Any) -> TokenNLL:
    """The C library's token_nll, an autograd function, without wide instruction sets in either direction."""
    class Portable(function):
        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> Any:
            with library.using("portable"):
                return function.forward(ctx, *inputs)

        @staticmethod
        def backward(ctx: Any, coefficient: Tensor) -> Any:
            with library.using("portable"):
                return function.backward(ctx, coefficient)
    apply: TokenNLL = Portable.apply
    return apply


def case(shape: tuple[int, int, int], dtype: torch.dtype, seed: int = 0) -> Case:
    """Random inputs of a shape (N, D, V), rounded to `dtype`.

    Every fifth row is masked. Every other target is the likeliest token, and so are all of the first red
    response.
    """
    N, D, V = shape
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(n, D, generator=generator, dtype=torch.float64) for n in (N, V))
    hidden, weight = hidden.to(dtype).double(), (weight * 5 / math.sqrt(D)).to(dtype).double()
    row, anything = torch.arange(N), torch.randint(V, (N,), generator=generator)
    likely = (row % 2 == 0) | (row * 3 >= N) & (row * 2 < N)
    targets = torch.where(likely, (hidden @ weight.T).argmax(1), anything)
    targets[::5] = -100
    rows = (targets != -100).nonzero()[:, 0]
    length = torch.full((6,), len(rows) // 6)
    length[-1] += len(rows) - int(length.sum())
    colour = torch.tensor([HELPFUL, BLUE, RED, BLUE, RED, RED])
    pair = torch.tensor([-1, 0, 0, 1, 1, -1])
    share = torch.tensor([1.0, 0.25, 0.5, 0.75, 0.25, 0.25], dtype=torch.float64)
    moved = torch.tensor([1.0, 1.1, 0.9, 1.0, 1.2, 0.7], dtype=torch.float64)
    nll = plain(hidden, weight, targets)[rows]
    reference = torch.segment_reduce(nll, "sum", lengths=length) * moved
    return Case(hidden, weight, targets, rows, Responses(length, colour, share, reference, pair))


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The formula as anyone writes it, with all logits in memory and in the inputs' precision."""
    return cross_entropy(hidden @ weight.T, targets, ignore_index=-100, reduction="none")


def gradients(function: TokenNLL, c: Case, objective: str, dtype: torch.dtype,
              device: str = "cpu") -> tuple[Tensor, Tensor]:
    """∂L/∂hidden and ∂L/∂weight in float64, computed with `function` for token_nll on inputs of `dtype`."""
    hidden, weight = (x.to(device, dtype, copy=True).requires_grad_() for x in (c.hidden, c.weight))
    nll = function(hidden, weight, c.targets.to(device))[c.rows.to(device)]
    wide = nll.detach().to(torch.promote_types(nll.dtype, torch.float32))
    share, reference = c.responses.share.to(wide.dtype), c.responses.reference.to(wide.dtype)
    responses = replace(c.responses, share=share, reference=reference).to(device)
    _, coefficient = loss.coefficients(objective, wide, responses)
    nll.backward(coefficient.to(nll.dtype))
    assert hidden.grad is not None and weight.grad is not None
    return hidden.grad.double().cpu(), weight.grad.double().cpu()


def _error(got: Tensor, exact: Tensor) -> float:
    """‖got − exact‖ / ‖exact‖; infinite where that is no number, which a comparison with NaN would hide."""
    return _finite(float((got - exact).norm() / exact.norm()))


def _largest(difference: Tensor, scale: Tensor) -> float:
    return _finite(float(difference.abs().max() / scale.abs().max()))


def _finite(error: float) -> float:
    return error if math.isfinite(error) else math.inf


# Values of the parameters other than the defaults; each of its own, so that none can stand for another.
ALTERED = {
    "A": {"blue": 0.7}, "B": {"blue": 0.7, "low": 0.6, "high": 0.23, "tau": 1.3},
    "hinge": {"blue": 0.7, "red": 1.9, "tau": 0.6},
    "unlikelihood": {"blue": 0.7, "red": 1.9, "floor": 3e-4},
    "weighted": {"blue": 0.7, "red": 1.9, "beta": 0.4}, "npo": {"blue": 0.7, "red": 1.9, "beta": 0.04},
    "simnpo": {"blue": 0.7, "red": 1.9, "beta": 1.6, "delta": 0.8},
    "dpo": {"blue": 0.7, "red": 1.9, "beta": 0.04}}


def check_objectives(loss: Any = loss) -> list[Row]:
    """Each objective in float64, beside formulas.py and central differences.

    loss  the module that is checked

    A row has the worst errors over five random batches, with the default parameters and with ALTERED (B with
    its presets too). An error is relative: of the value to itself, of the coefficients to the largest one. A
    row also says whether signs, settings (default parameters and presets) and caps are right.
    """
    rows = []
    for name in loss.OBJECTIVES:
        row: Row = {"objective": name, "formulas": 0.0, "differences": 0.0, "signs": True, "caps": True}
        signature = inspect.signature(loss.OBJECTIVES[name]).parameters.values()
        own = {p.name: p.default for p in signature if p.kind == p.KEYWORD_ONLY}
        row["settings"] = own == formulas.defaults(name) and (name != "B" or loss.PRESETS == formulas.PRESETS)
        presets = loss.PRESETS.values() if name == "B" else ()
        for parameters in ({}, ALTERED[name], *presets):
            for seed in range(5):
                _check_batch(loss, name, parameters, case(SHAPES[0], torch.float32, seed), row)
        near = row["formulas"] <= FORMULAS and row["differences"] <= DIFFERENCES
        rows.append(row | {"ok": near and all(row[flag] for flag in FLAGS)})
    return rows


def _check_batch(loss: Any, name: str, parameters: dict[str, float], c: Case, row: Row) -> None:
    """Add to a row of `check_objectives` what one batch shows."""
    nll, r = plain(c.hidden, c.weight, c.targets)[c.rows], c.responses
    value, coefficient = loss.coefficients(name, nll, r, parameters)
    expected, slopes = formulas.evaluate(name, _listed(nll, r), **parameters)
    by_hand = torch.tensor(slopes, dtype=torch.float64)
    off = _finite(abs(float(value) - expected) / abs(expected)), _largest(coefficient - by_hand, by_hand)
    row["formulas"] = max(row["formulas"], *off)
    differences = _central_differences(loss, name, nll, r, parameters)
    row["differences"] = max(row["differences"], _largest(coefficient - differences, differences))
    caps = formulas.past_cap(name, _listed(nll, r), **parameters)
    row["caps"] &= loss.capped(name, nll, r, parameters).tolist() == caps
    red = (r.colour == RED).repeat_interleave(r.length)
    row["signs"] &= bool((torch.where(red, -coefficient, coefficient) >= 0).all())


def _listed(nll: Tensor, r: Responses) -> list[formulas.Response]:
    """The same batch for formulas.py."""
    tokens = [x.tolist() for x in nll.split(r.length.tolist())]
    columns = r.share.tolist(), tokens, r.reference.tolist(), r.pair.tolist()
    colours = [COLOURS[c] for c in r.colour.tolist()]
    return [formulas.Response(*fields) for fields in zip(colours, *columns, strict=True)]


def _central_differences(loss: Any, name: str, nll: Tensor, r: Responses,
                         parameters: dict[str, float]) -> Tensor:
    """∂L/∂ℓ [N] from the values of the objective alone."""
    differences = torch.empty_like(nll)
    for i in range(len(nll)):
        step = min(1e-5, 3e-4 * (float(nll[i]) + 1e-4))  # unlikelihood bends within its floor, 1e-4
        up, down = nll.clone(), nll.clone()
        up[i] += step
        down[i] -= step
        rise = _primitive(loss, name, up, r, parameters) - _primitive(loss, name, down, r, parameters)
        differences[i] = rise / (2 * step)
    return differences


def _primitive(loss: Any, name: str, nll: Tensor, r: Responses, parameters: dict[str, float]) -> Any:
    """A function with the objective's gradient, from whose values differences can be taken.

    It is the objective itself, except for `weighted`, which stops a gradient: e^(−βℓ) is ∂/∂ℓ of −e^(−βℓ)/β.
    """
    if name != "weighted":
        return loss.OBJECTIVES[name](nll, r, **parameters)
    beta, red = parameters.get("beta", 1.0), parameters.get("red", 1.0)
    term = red * r.share * r.mean(-torch.exp(-beta * nll) / beta)
    return loss.A(nll, r, blue=parameters.get("blue", 1.0)) - torch.where(r.colour == RED, term, 0.0).sum()


def check_implementation(implementation: Implementation) -> list[Row]:
    """A row a precision: the worst errors of both gradients, beside the plain formula's worst.

    The worst is over all objectives and SHAPES.
    """
    rows = []
    for dtype in implementation.dtypes:
        row: Row = {"implementation": implementation.name, "dtype": NAMES[dtype], "hidden": 0.0,
                    "plain_hidden": 0.0, "weight": 0.0, "plain_weight": 0.0, "ratio": 0.0}
        for seed, shape in enumerate(SHAPES):
            c = case(shape, dtype, seed)
            for objective in loss.OBJECTIVES:
                exact = gradients(plain, c, objective, torch.float64)
                own = gradients(plain, c, objective, dtype, implementation.device)
                got = gradients(implementation.token_nll, c, objective, dtype, implementation.device)
                for part, x, y, z in zip(("hidden", "weight"), got, own, exact, strict=True):
                    error, plain_error = _error(x, z), _error(y, z)
                    row[part] = max(row[part], error)
                    row[f"plain_{part}"] = max(row[f"plain_{part}"], plain_error)
                    row["ratio"] = max(row["ratio"], error / plain_error)
        rows.append(row | {"ok": row["ratio"] <= LIMIT})
    return rows


def prove() -> dict[str, Any]:
    """Run all checks and print their tables. Returns the tables' rows and `ok`; takes some seconds."""
    implementations, missing = available()
    print(f"redlite prove: torch {torch.__version__}, {platform.machine()}; "
          f"token_nll on CPUs here: {kernels.implementation('token_nll')}")
    print("\nObjectives of loss.py, float64: value and ∂L/∂ℓ against formulas.py, ∂L/∂ℓ against central "
          "differences; signs by colour; default parameters, presets and caps of formulas.py\n"
          f"  {'objective':15s}formulas (at most {FORMULAS:.0e})   differences (at most {DIFFERENCES:.0e})   "
          f"{'   '.join(FLAGS)}")
    objectives = check_objectives()
    for row in objectives:
        flags = "   ".join(("right" if row[k] else "WRONG").ljust(len(k)) for k in FLAGS)
        errors = f"{row['formulas']:<26.1e}{row['differences']:<29.1e}"
        print(f"  {row['objective']:15s}{errors}{flags}   {_word(row)}")
    print(f"\ntoken_nll: ‖gradient − float64‖ / ‖float64‖, the worst of {len(loss.OBJECTIVES)} objectives x "
          f"{len(SHAPES)} shapes; in brackets the plain formula's\n  {'implementation':24s}{'precision':11s}"
          f"{'hidden':21s}{'weight':21s}worst ratio (at most {LIMIT:g})")
    table = []
    for implementation in implementations:
        for row in check_implementation(implementation):
            table.append(row)
            hidden = f"{row['hidden']:.1e} ({row['plain_hidden']:.1e})"
            weight = f"{row['weight']:.1e} ({row['plain_weight']:.1e})"
            print(f"  {row['implementation']:24s}{row['dtype']:11s}{hidden}    {weight}    "
                  f"{row['ratio']:.2f}   {_word(row)}", flush=True)
    for line in missing:
        print(f"  not checked here: {line}")
    operations = [] if library.missing() else prove_operations.check_operations()
    if operations:
        print("\nBetween the products, and AdamW's step: ‖result − float64‖ / ‖float64‖, the worst of the "
              "result and its gradients; in brackets plain PyTorch's\n  operation    implementation        "
              f"precision  error                worst ratio (at most {prove_operations.LIMIT:g})")
    for row in operations:
        error = f"{row['error']:.1e} ({row['plain']:.1e})"
        print(f"  {row['operation']:13s}{row['implementation']:22s}{row['dtype']:11s}{error}    "
              f"{row['ratio']:.2f}   {_word(row)}", flush=True)
    ok = all(row["ok"] for row in objectives + table + operations)
    print("\nproved" if ok else "\nNOT proved: see the lines marked FAILED")
    return {"ok": ok, "objectives": objectives, "token_nll": table, "operations": operations,
            "not_checked": missing}


def _word(row: Row) -> str:
    return "ok" if row["ok"] else "FAILED"
