"""What lies between a block's products, on CPUs: each operation one pass of training.c, forward and backward.

Backward starts from the inputs again, so nothing is kept but them, and of a norm one number a row. Where C
lacks an operation or a dtype, the reference serves; the functions say where.

Shapes: T rows, D their width, H heads of K numbers, R of which are rotated, F the MLP's width.
"""
import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import reference
from .library import library
from .structs import Training

NORM, TURN, GATE, BACK = 0, 2, 4, 1     # kinds of training.h; BACK is added for the backward pass
BLOCK_ROWS = 64                         # as there


def _run(kind: int, x: Tensor, rows: int, width: int, eps: float = 0.0, heads: int = 0, rotated: int = 0,
         **tensors: Tensor | None) -> None:
    """Call C; all tensors are contiguous, and of x's dtype but for scale and partial, which are float32."""
    addresses = {name: None if t is None else t.data_ptr() for name, t in tensors.items()}
    operation = Training(kind=kind, narrow=x.dtype == torch.bfloat16, x=x.data_ptr(), eps=eps, rows=rows,
                         width=width, heads=heads, rotated=rotated, **addresses)
    library().rl_training(ctypes.byref(operation), torch.get_num_threads())


def _serves(*tensors: Tensor) -> bool:
    """Whether all are float32, or all bfloat16."""
    kinds = {x.dtype for x in tensors}
    return len(kinds) == 1 and kinds <= {torch.float32, torch.bfloat16}


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        x, weight_D = x.contiguous(), weight_D.contiguous()
        D = x.shape[-1]
        y, scale = torch.empty_like(x), torch.empty(x.numel() // D)
        _run(NORM, x, len(scale), D, eps, other=weight_D, y=y, scale=scale)
        ctx.save_for_backward(x, weight_D, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight_D, scale = ctx.saved_tensors
        dx, D = torch.empty_like(x), x.shape[-1]
        partial = torch.zeros(-(-len(scale) // BLOCK_ROWS), D) if ctx.needs_input_grad[1] else None
        _run(NORM + BACK, x, len(scale), D, other=weight_D, dy=dy.contiguous(), dx=dx, scale=scale,
             partial=partial)
        return dx, None if partial is None else partial.sum(0).to(weight_D.dtype), None


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_THK: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
        ctx.save_for_backward(cos_TR, sin_TR)
        return _turned(x_THK, cos_TR, sin_TR, TURN)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_THK: Tensor) -> tuple[Tensor, None, None]:
        cos_TR, sin_TR = ctx.saved_tensors
        return _turned(dy_THK, cos_TR, sin_TR, TURN + BACK), None, None


def _turned(x_THK: Tensor, cos_TR: Tensor, sin_TR: Tensor, kind: int) -> Tensor:
    x_THK = x_THK.contiguous()
    y_THK = torch.empty_like(x_THK)
    T, H, K = x_THK.shape
    _run(kind, x_THK, T, K, heads=H, rotated=cos_TR.shape[-1], cos=cos_TR, sin=sin_TR, y=y_THK)
    return y_THK


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
        gate_TF, up_TF = gate_TF.contiguous(), up_TF.contiguous()
        ctx.save_for_backward(gate_TF, up_TF)
        y_TF, F = torch.empty_like(gate_TF), gate_TF.shape[-1]
        _run(GATE, gate_TF, gate_TF.numel() // F, F, other=up_TF, y=y_TF)
        return y_TF

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TF: Tensor) -> tuple[Tensor, Tensor]:
        gate_TF, up_TF = ctx.saved_tensors
        d_gate, d_up, F = torch.empty_like(gate_TF), torch.empty_like(up_TF), gate_TF.shape[-1]
        _run(GATE + BACK, gate_TF, gate_TF.numel() // F, F, other=up_TF, dy=dy_TF.contiguous(), dx=d_gate,
             dother=d_up)
        return d_gate, d_up


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """As `reference.rms_norm`."""
    if not _serves(x, weight_D) or not x.numel():
        return reference.rms_norm(x, weight_D, eps)
    y: Tensor = _Norm.apply(x, weight_D, eps)
    return y


def rotary(x_THK: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """As `reference.rotary`, but bfloat16 is rounded once."""
    if not _serves(x_THK, cos_TR, sin_TR) or x_THK.dim() != 3 or not x_THK.numel():
        return reference.rotary(x_THK, cos_TR, sin_TR)
    y_THK: Tensor = _Turn.apply(x_THK, cos_TR.contiguous(), sin_TR.contiguous())
    return y_THK


def gated(act: str, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """As `reference.gated`, but bfloat16 is rounded once; C has silu alone."""
    if act != "silu" or not _serves(gate_TF, up_TF) or gate_TF.shape != up_TF.shape or not gate_TF.numel():
        return reference.gated(act, gate_TF, up_TF)
    y_TF: Tensor = _Gate.apply(gate_TF, up_TF)
    return y_TF
