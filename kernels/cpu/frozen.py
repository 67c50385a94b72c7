"""Frozen quantised matrices in training: products that are differentiable in the activations, tile by tile.

A tile of rows of the matrix is unpacked into float32, used, and overwritten by the next, in the forward pass
(y = x Wᵀ) and in the backward pass (dx = dy W) alike. Both see the same numbers, those that `rows` gives.
Activations are not rounded, unlike in `PackedMatrix.product`, so the gradient is that of what was computed.
Nothing of the size of the matrix is held, and nothing is kept for the backward pass.

Shapes: N rows of the matrix, D inputs, T rows of activations, C rows of a tile.
"""
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .library import library
from .packed import CODES, PackedMatrix

PANEL = 16      # rows that lie side by side in packed_matrix.h
# A tile has so many rows, or more if they are smaller than TILE_BYTES: it should stay in the cache, but each
# tile of the backward pass adds to all of dx.
TILE_ROWS, TILE_BYTES = 256, 1 << 20


class FrozenMatrix:
    """A quantised matrix [N, D] as training takes it; `shape`, `dtype` and `device` are the matrix's.

    Raises ValueError for a matrix of plain numbers, which needs no unpacking.
    """

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, packed: PackedMatrix):
        if packed.format in ("float32", "bfloat16"):
            raise ValueError(f"a quantised matrix is needed, not {packed.format}")
        self.packed, self.shape = packed, packed.shape

    def rows(self, ids: Tensor) -> Tensor:
        """The matrix's rows at int64 ids [T], float32 [T, D]."""
        return self.packed.rows(ids)

    def tiles(self, most: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """Runs of rows from first to last: (first row, its numbers [C, D] float32).

        A tile lives until the next is asked for. It is the transpose of a contiguous tensor.
        most  rows of a tile, but at least PANEL; None: see TILE_ROWS
        """
        N, D = self.shape
        rows = max(TILE_ROWS, TILE_BYTES // (4 * D)) if most is None else most
        panels, every = max(1, rows // PANEL), -(-N // PANEL)
        memory = torch.empty(D * min(panels, every) * PANEL)
        for first in range(0, every, panels):
            count = min(panels, every - first)
            w_DC = memory[:D * count * PANEL].view(D, count * PANEL)
            library().rl_unpack_panels(CODES[self.packed.format], self.packed.buffer.data_ptr(), first, count,
                                       D, w_DC.data_ptr(), torch.get_num_threads())
            yield first * PANEL, w_DC.T[:N - first * PANEL]

    def product(self, x_TD: Tensor, bias_N: Tensor | None = None) -> Tensor:
        """x @ matrix.T + bias, float32 [T, N], differentiable in x and in the bias."""
        if x_TD.dim() != 2 or x_TD.shape[1] != self.shape[1] or x_TD.dtype != torch.float32:
            raise ValueError(f"float32 activations [T, {self.shape[1]}] are needed, not {x_TD.dtype} "
                             f"{list(x_TD.shape)}")
        y_TN: Tensor = _Product.apply(x_TD, self)
        return y_TN if bias_N is None else y_TN.add_(bias_N)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, matrix: FrozenMatrix) -> Tensor:
        ctx.matrix = matrix
        y_TN = x_TD.new_empty(len(x_TD), matrix.shape[0])
        for first, w_CD in matrix.tiles():
            torch.mm(x_TD, w_CD.T, out=y_TN[:, first:first + len(w_CD)])
        return y_TN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TN: Tensor) -> tuple[Tensor, None]:
        dx_TD = dy_TN.new_zeros(len(dy_TN), ctx.matrix.shape[1])
        for first, w_CD in ctx.matrix.tiles():
            dx_TD.addmm_(dy_TN[:, first:first + len(w_CD)], w_CD)
        return dx_TD, None
