"""Products with frozen packed matrices in training: differentiable in the activations, tile by tile.

A tile of rows of the matrix is unpacked into float32, used, and overwritten by the next, in the forward pass
(y = x Wᵀ) and in the backward pass (dx = dy W) alike. Both see the same numbers, those that `rows` gives.
Activations are not rounded, unlike in `PackedMatrix.product`, so the gradient is that of what was computed.
Nothing of the size of the matrix is held, and nothing is kept for the backward pass.

Shapes: N rows of the matrix, D inputs, T rows of activations.
"""
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .packed import PackedMatrix

TILE_BYTES = 4 << 20    # of unpacked rows


class FrozenMatrix:
    """A packed matrix [N, D] as training takes it; `shape`, `dtype` and `device` are the matrix's."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, packed: PackedMatrix):
        self.packed, self.shape = packed, packed.shape

    def rows(self, ids: Tensor) -> Tensor:
        """The matrix's rows at int64 ids [T], float32 [T, D]."""
        return self.packed.rows(ids)

    def tiles(self) -> Iterator[tuple[slice, Tensor]]:
        """Runs of rows, first to last: which they are, and their numbers [n, D] float32."""
        N, D = self.shape
        size = max(1, TILE_BYTES // (4 * max(1, D)))
        for first in range(0, N, size):
            last = min(N, first + size)
            yield slice(first, last), self.packed.rows(torch.arange(first, last))

    def product(self, x_TD: Tensor, bias_N: Tensor | None = None) -> Tensor:
        """x @ matrix.T + bias, float32 [T, N], differentiable in x and in the bias."""
        if x_TD.dim() != 2 or x_TD.shape[1] != self.shape[1] or x_TD.dtype != torch.float32:
            raise ValueError(f"float32 activations [T, {self.shape[1]}] are needed, not {x_TD.dtype} "
                             f"{list(x_TD.shape)}")
        y_TN: Tensor = _Product.apply(x_TD, self)
        return y_TN if bias_N is None else y_TN + bias_N


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, matrix: FrozenMatrix) -> Tensor:
        ctx.matrix = matrix
        y_TN = x_TD.new_empty(len(x_TD), matrix.shape[0])
        for rows, w_nD in matrix.tiles():
            y_TN[:, rows] = x_TD @ w_nD.T
        return y_TN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TN: Tensor) -> tuple[Tensor, None]:
        dx_TD = dy_TN.new_zeros(len(dy_TN), ctx.matrix.shape[1])
        for rows, w_nD in ctx.matrix.tiles():
            dx_TD.addmm_(dy_TN[:, rows], w_nD)
        return dx_TD, None
