"""Proves the operations between a block's products, and AdamW's step, against float64; see prove.py.

Each implementation's results and gradients must be as near those of plain PyTorch in float64 as plain PyTorch
is in the same precision, times LIMIT. AdamW in bfloat16 rounds at random: there each number must be one of
the two neighbours of what float64 gives.
"""
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from redlite.kernels import Update, reference
from redlite.kernels.cpu import library

LIMIT = 2.0                 # times plain PyTorch's own error in the same precision
NEAREST = 2.0 ** -25        # float32's relative rounding: an error below it counts as this
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ROWS, WIDTH, HEADS = 131, 44, 3     # no multiples of a vector's or a block's length
Row = dict[str, Any]


def implementations() -> Iterator[tuple[str, Any]]:
    """The C library's instruction sets that differ here: (name, a context within which it serves)."""
    for name in dict.fromkeys((library.isa(), *library.isas()[-1:])):
        if name:
            yield f"c ({name})", library.using(name)


def cases() -> dict[str, tuple[list[Tensor], int, Callable[..., Tensor], Callable[..., Tensor]]]:
    """operation → (inputs in float64, how many of them have gradients, plain PyTorch, C)."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    c = import_module("redlite.kernels.cpu.elementwise")
    half = drawn(ROWS, WIDTH // 4)
    tables = [torch.cat((f(half), f(half)), -1) for f in (torch.cos, torch.sin)]

    def norm(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, weight: function(x, weight, 1e-5)

    def gate(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, up: function("silu", x, up)
    return {
        "rms_norm": ([drawn(ROWS, WIDTH) * 3, 1 + drawn(WIDTH) / 4], 2, norm(_plain_norm), norm(c.rms_norm)),
        "rotary": ([drawn(ROWS, HEADS, WIDTH), *tables], 1, reference.rotary, c.rotary),
        "gated": ([drawn(ROWS, WIDTH) * 3, drawn(ROWS, WIDTH)], 2, gate(reference.gated), gate(c.gated))}


def _plain_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`reference.rms_norm`, but float64 stays float64."""
    if x.dtype != torch.float64:
        return reference.rms_norm(x, weight, eps)
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def check_operations() -> list[Row]:
    """The worst relative error of each operation's result and gradients, C's and plain PyTorch's."""
    rows = []
    for operation, (inputs, differentiable, plain, c) in cases().items():
        for dtype_name, dtype in DTYPES.items():
            near = [x.to(dtype).double() for x in inputs]
            upstream = torch.randn(plain(*near).shape, generator=torch.Generator().manual_seed(1))
            upstream = upstream.to(dtype)
            exact = _results(plain, near, differentiable, torch.float64, upstream)
            own = _results(plain, near, differentiable, dtype, upstream)
            for name, context in implementations():
                with context:
                    got = _results(c, near, differentiable, dtype, upstream)
                errors = [[float((a - e).norm() / e.norm()) for a, e in zip(found, exact, strict=True)]
                          for found in (got, own)]
                ratio = max(a / max(b, NEAREST) for a, b in zip(*errors, strict=True))
                rows.append({"operation": operation, "implementation": name, "dtype": dtype_name,
                             "error": max(errors[0]), "plain": max(errors[1]), "ratio": ratio,
                             "ok": ratio <= LIMIT})
    return rows + check_adamw()


def _results(function: Callable[..., Tensor], inputs: list[Tensor], differentiable: int, dtype: torch.dtype,
             upstream: Tensor) -> list[Tensor]:
    """The result and the gradient of each differentiable input, in float64."""
    taken = [x.to(dtype, copy=True).requires_grad_(i < differentiable) for i, x in enumerate(inputs)]
    y = function(*taken)
    found = torch.autograd.grad(y, taken[:differentiable], upstream.to(dtype))
    return [x.detach().double() for x in (y, *found)]


def textbook_adamw(w: Tensor, m: Tensor, v: Tensor, g: Tensor, u: Update) -> tuple[Tensor, Tensor, Tensor]:
    """AdamW's step (arXiv 1711.05101, algorithm 2) in the inputs' precision: new weight, mean, square."""
    (b1, b2), g = u.betas, g * u.scale
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    step = (m / (1 - b1 ** u.count)) / ((v / (1 - b2 ** u.count)).sqrt() + u.eps)
    return u.decay * w - u.rate * step, m, v


def check_adamw() -> list[Row]:
    """A step of AdamW by the reference and by C.

    In float32, errors as above. In bfloat16, the largest distance to the float64 value in units of the
    distance between its neighbours, which must be below 1.
    """
    rows, update = [], Update(3, 1e-3, 0.7, (0.9, 0.99), 1e-8, 0.999)
    generator = torch.Generator().manual_seed(2)
    w, m, v, g = (torch.randn(20_011, generator=generator) for _ in range(4))
    c = import_module("redlite.kernels.cpu.optimizer")
    for dtype_name, dtype in DTYPES.items():
        state = [x.to(dtype) for x in (w, m / 10, v.square() / 10)]
        gradient = g.to(dtype)
        wide_w, wide_m, wide_v = (x.double() for x in state)
        exact = textbook_adamw(wide_w, wide_m, wide_v, gradient.double(), update)
        errors = {}
        for name, context, function in (("reference", nullcontext(), reference.adamw),
                                        *((n, k, c.adamw) for n, k in implementations())):
            got = [x.clone() for x in state]
            with context:
                function(*got, gradient, update, torch.Generator().manual_seed(3))
            narrow = dtype == torch.bfloat16
            errors[name] = max(float(_spacings(a, e).max()) if narrow else
                               float((a.double() - e).norm() / e.norm()) for a, e in zip(got, exact,
                                                                                        strict=True))
        for name, error in errors.items():
            plain = errors["reference"]
            ratio = error if dtype == torch.bfloat16 else error / max(plain, NEAREST)
            limit = 1.001 if dtype == torch.bfloat16 else LIMIT
            rows.append({"operation": "adamw", "implementation": name, "dtype": dtype_name, "error": error,
                         "plain": plain, "ratio": ratio, "ok": ratio <= limit})
    return rows


def _spacings(got: Tensor, exact: Tensor) -> Tensor:
    """|got − exact| in units of bfloat16's spacing at `exact`."""
    spacing = torch.exp2(exact.abs().clamp(min=2.0 ** -126).log2().floor() - 7)
    return (got.double() - exact).abs() / spacing
