"""token_nll on CPUs: torch multiplies a tile of logits, and the two passes of token_nll.c work on it in
place.

Where the processor multiplies bfloat16, bfloat16 rows and weights stay what they are: the library's product
gives float32 logits, and the tile of their gradient is rounded to bfloat16 for torch's products of it.

Memory beside the inputs and the gradients returned: five buffers of at most TILE_BYTES each, whatever N and
V. They are the tile, a block of hidden rows and its gradient, and for half-precision weights a block of them
and its gradient; for a frozen quantised matrix a block of it. One case needs more. The gradient of a
half-precision weight over more rows than one block holds is summed in a float32 [V, D] and rounded once; its
size does not depend on N either.

Shape letters as in reference.py; K the rows that count, S the rows and C the vocabulary entries of a tile.
"""
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from .. import reference
from .frozen import PANEL, FrozenMatrix
from .library import isa, library
from .packed import PackedMatrix

TILE_BYTES = 16 << 20  # of each buffer
TILE_ROWS = 2048  # more rows a tile gain nothing: the products are at full speed, and its columns get few


def _tile_shape(rows: int, weight_VD: Tensor | FrozenMatrix) -> tuple[int, int]:
    """(S, C): up to TILE_ROWS rows, then as many columns as TILE_BYTES leaves; at least 1 of each."""
    floats, (V, D) = TILE_BYTES // 4, weight_VD.shape
    S = max(1, min(rows, TILE_ROWS, floats // D))
    plain = isinstance(weight_VD, Tensor) and weight_VD.dtype == torch.float32      # no block beside it
    C = floats // S if plain else min(floats // S, floats // D)
    C = C // PANEL * PANEL or C     # whole panels, where a run has one
    return S, max(1, min(V, C))


def _in_bfloat16(hidden_ND: Tensor, weight_VD: Tensor | FrozenMatrix) -> bool:
    """Whether the products take bfloat16: both factors are, and the processor multiplies it."""
    narrow = isinstance(weight_VD, Tensor) and {hidden_ND.dtype, weight_VD.dtype} == {torch.bfloat16}
    return narrow and isa() in ("avx512-bf16", "amx-bf16")


def _narrow_logits(h_SD: Tensor, weight_VD: Tensor, C: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """As `_logits` of bfloat16 rows, in float32; the weights [c, D] stay bfloat16."""
    tile, wide_SD = torch.empty(len(h_SD) * C), h_SD.float()
    packed = PackedMatrix("bfloat16", (0, h_SD.shape[1]))
    for first in range(0, len(weight_VD), C):
        w_CD = weight_VD[first:first + C]
        if packed.shape != w_CD.shape:
            packed = PackedMatrix("bfloat16", (len(w_CD), h_SD.shape[1]))
        packed.refill(w_CD)
        logits_SC = tile[:len(h_SD) * len(w_CD)].view(len(h_SD), len(w_CD))
        yield first, w_CD, packed.product(wide_SD, out=logits_SC)


def _runs(weight_VD: Tensor | FrozenMatrix, C: int) -> Iterator[tuple[int, Tensor]]:
    """Each run of C vocabulary entries: (first entry, weights [c, D] float32)."""
    if isinstance(weight_VD, FrozenMatrix):
        yield from weight_VD.tiles(C)
        return
    for first in range(0, len(weight_VD), C):
        yield first, weight_VD[first:first + C].float()


def _logits(h_SD: Tensor, weight_VD: Tensor | FrozenMatrix, C: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Each of `_runs` with its logits: (first entry, weights [c, D], logits [S, c]).

    All runs' logits lie in the same memory.
    """
    if _in_bfloat16(h_SD, weight_VD):
        assert isinstance(weight_VD, Tensor)
        yield from _narrow_logits(h_SD, weight_VD, C)
        return
    h_SD = h_SD.float()
    tile = h_SD.new_empty(len(h_SD) * max(C, PANEL))    # a frozen matrix's run is a panel at least
    for first, w_CD in _runs(weight_VD, C):
        logits_SC = tile[:len(h_SD) * len(w_CD)].view(len(h_SD), len(w_CD))
        yield first, w_CD, torch.mm(h_SD, w_CD.T, out=logits_SC)


def _pass(function: Callable[..., None], logits_SC: Tensor, first: int, targets_S: Tensor,
          *row_values: Tensor) -> None:
    """Run a pass of token_nll.c over a tile; row_values: its three contiguous float32 [S] arguments.

    It takes half the threads. Those of torch's product before it still spin, and sharing their cores costs
    more than it gains.
    """
    threads = max(1, torch.get_num_threads() // 2)
    function(logits_SC.data_ptr(), *logits_SC.shape, first, targets_S.data_ptr(),
             *(x.data_ptr() for x in row_values), threads)


class _TokenNLL(torch.autograd.Function):
    """Forward keeps three numbers of each row that counts; backward computes the logits again.

    Let maximum and Σ e^(logit − maximum) go over the entries other than the target, and z = maximum + log Σ −
    target's logit. Then NLL = log(1 + e^z) and 1 − p = σ(z). Neither loses digits near p = 1, as log Σ over
    all entries would.
    """

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor | FrozenMatrix, targets_N: Tensor) -> Tensor:
        kept_K = reference.kept_rows(hidden_ND, weight_VD, targets_N)
        K = len(kept_K)
        maximum_K, sum_K, target_K = (torch.full((K,), start)
                                      for start in (torch.finfo(torch.float32).min, 0.0, 0.0))
        S, C = _tile_shape(K, weight_VD)
        for a in range(0, K, S):
            rows, y_S = kept_K[a:a + S], targets_N[kept_K[a:a + S]].long()
            for first, _, logits_SC in _logits(hidden_ND[rows], weight_VD, C):
                _pass(library().rl_nll_statistics, logits_SC, first, y_S, maximum_K[a:a + S], sum_K[a:a + S],
                      target_K[a:a + S])
        z_K = (maximum_K - target_K) + sum_K.log()
        frozen = isinstance(weight_VD, FrozenMatrix)
        ctx.frozen = weight_VD if frozen else None
        ctx.save_for_backward(hidden_ND, None if frozen else weight_VD, targets_N, kept_K, maximum_K, sum_K,
                              z_K)
        return torch.zeros(len(targets_N)).index_copy(0, kept_K, softplus(z_K))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, coefficient_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, targets_N, kept_K, maximum_K, sum_K, z_K = ctx.saved_tensors
        weight_VD = ctx.frozen or weight_VD
        want_hidden, want_weight, _ = ctx.needs_input_grad
        scale_K = coefficient_N[kept_K].float() * torch.sigmoid(z_K)
        used = (coefficient_N[kept_K] != 0) & (scale_K != 0)  # NaN counts as used, so that it shows
        kept_K, maximum_K, sum_K, scale_K = kept_K[used], maximum_K[used], sum_K[used], scale_K[used]
        K, (V, D), narrow = len(kept_K), weight_VD.shape, _in_bfloat16(hidden_ND, weight_VD)
        S, C = _tile_shape(K, weight_VD)
        d_hidden = torch.zeros_like(hidden_ND) if want_hidden else None
        d_weight = (torch.empty if K else torch.zeros)(V, D, dtype=weight_VD.dtype) if want_weight else None
        # Half-precision dW over several blocks of rows is summed in float32 and rounded once.
        apart = want_weight and K > S and weight_VD.dtype != torch.float32
        sum_VD = torch.empty(V, D) if apart else d_weight
        for a in range(0, K, S):
            rows, y_S = kept_K[a:a + S], targets_N[kept_K[a:a + S]].long()
            h_SD = hidden_ND[rows] if narrow else hidden_ND[rows].float()
            dh_SD = torch.zeros(h_SD.shape)
            for first, w_CD, grad_SC in _logits(h_SD, weight_VD, C):
                _pass(library().rl_nll_gradient, grad_SC, first, y_S, maximum_K[a:a + S], sum_K[a:a + S],
                      scale_K[a:a + S])
                if narrow:
                    grad_SC = grad_SC.bfloat16()
                if want_hidden and narrow:
                    dh_SD += grad_SC @ w_CD
                elif want_hidden:
                    dh_SD.addmm_(grad_SC, w_CD)
                if sum_VD is not None:
                    dw_CD = sum_VD[first:first + C]
                    if dw_CD.dtype == torch.float32 and narrow:     # one of several blocks of rows
                        dw_CD.copy_(grad_SC.T @ h_SD) if a == 0 else dw_CD.add_(grad_SC.T @ h_SD)
                    elif dw_CD.dtype == torch.float32:
                        dw_CD.addmm_(grad_SC.T, h_SD, beta=int(a > 0))
                    else:  # the only block of rows: this is the whole sum
                        dw_CD.copy_(grad_SC.T @ h_SD)
            if d_hidden is not None:
                d_hidden[rows] = dh_SD.to(d_hidden.dtype)
        if apart and d_weight is not None and sum_VD is not None:
            d_weight.copy_(sum_VD)
        return d_hidden, d_weight, None


def token_nll(hidden_ND: Tensor, weight_VD: Tensor | FrozenMatrix, targets_N: Tensor) -> Tensor:
    """As `reference.token_nll`, with a bounded tile of logits instead of whole rows.

    A frozen matrix is unpacked a run of entries at a time, and has no gradient.
    """
    nll_N: Tensor = _TokenNLL.apply(hidden_ND, weight_VD, targets_N)
    return nll_N
