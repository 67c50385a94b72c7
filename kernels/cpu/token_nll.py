"""token_nll on CPUs: token_nll.c multiplies a run of vocabulary entries at a time, and works on their logits.

Where the processor multiplies bfloat16, bfloat16 rows and weights stay what they are: logits and sums are
float32, and the logits' gradient is rounded to bfloat16 for the two products with it.

Memory beside the inputs and the gradients returned: what token_nll.c takes for a block of rows and a run of
entries, and for half-precision weights that become float32 a block of at most TILE_BYTES. The gradient of
half-precision weights over more rows than one block holds is summed in a float32 [V, D] and rounded once.

Shape letters as in reference.py; K the rows that count, S the rows of a block, C the entries of a call.
"""
import ctypes
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from .. import reference
from .frozen import FrozenMatrix
from .library import isa, library
from .structs import TokenNLL

TILE_BYTES = 16 << 20   # of a block of rows in float32, and of weights
TILE_ROWS = 2048        # more rows gain nothing: packing a run of entries is a small part of the work then
CALL_ENTRIES = 12_288   # between two calls of C, Python hears an interrupt; many of token_nll.c's runs


def _block_rows(rows: int, D: int) -> int:
    """S, at least 1."""
    return max(1, min(rows, TILE_ROWS, TILE_BYTES // 4 // D))


def _in_bfloat16(hidden_ND: Tensor, weight_VD: Tensor | FrozenMatrix) -> bool:
    """Whether the products take bfloat16: both factors are, and the processor multiplies it."""
    narrow = isinstance(weight_VD, Tensor) and {hidden_ND.dtype, weight_VD.dtype} == {torch.bfloat16}
    return narrow and isa() in ("avx512-bf16", "amx-bf16")


def _runs(weight_VD: Tensor | FrozenMatrix, narrow: bool) -> Iterator[tuple[int, Tensor]]:
    """Each run of vocabulary entries: (first entry, weights [C, D]), float32, or with `narrow` bfloat16."""
    if isinstance(weight_VD, FrozenMatrix):
        yield from weight_VD.tiles(max(1, TILE_BYTES // 4 // weight_VD.shape[1]))
        return
    plain = narrow or weight_VD.dtype == torch.float32
    C = CALL_ENTRIES if plain else max(1, TILE_BYTES // 4 // weight_VD.shape[1])
    for first in range(0, len(weight_VD), C):
        w_CD = weight_VD[first:first + C].detach()
        yield first, w_CD if plain else w_CD.float()


def _pass(function: Callable[..., int], h_SD: Tensor, w_CD: Tensor, first: int,
          rows_S: Sequence[Tensor | None], dh_SD: Tensor | None = None, dw_CD: Tensor | None = None,
          add: bool = False) -> None:
    """Run a function of token_nll.c.

    rows_S  contiguous [S]: targets int64; maximum, sum, target's logit and scale float32
    dh_SD   float32, is added to
    dw_CD   float32 or bfloat16, is overwritten; with `add` it is float32 and is added to
    """
    tensors = h_SD, w_CD, *rows_S, dh_SD, dw_CD
    addresses = (None if x is None else x.data_ptr() for x in tensors)
    narrow, narrow_gradient = (x is not None and x.dtype == torch.bfloat16 for x in (w_CD, dw_CD))
    call = TokenNLL(*addresses, *h_SD.shape, len(w_CD), *w_CD.stride(), first, narrow,
                    narrow_gradient, add)
    if function(ctypes.byref(call), torch.get_num_threads()):
        raise MemoryError(f"no memory for the products of {list(h_SD.shape)} rows and {list(w_CD.shape)} "
                          "weights")


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
        S, narrow = _block_rows(K, weight_VD.shape[1]), _in_bfloat16(hidden_ND, weight_VD)
        for a in range(0, K, S):
            rows = kept_K[a:a + S]
            h_SD, y_S = hidden_ND[rows].float().contiguous(), targets_N[rows].long()
            rows_S = y_S, *(x[a:a + S] for x in (maximum_K, sum_K, target_K)), None
            for first, w_CD in _runs(weight_VD, narrow):
                _pass(library().rl_nll_statistics, h_SD, w_CD, first, rows_S)
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
        S = _block_rows(K, D)
        d_hidden = torch.zeros_like(hidden_ND) if want_hidden else None
        d_weight = (torch.empty if K else torch.zeros)(V, D, dtype=weight_VD.dtype) if want_weight else None
        # Half-precision dW over several blocks of rows is summed in float32 and rounded once.
        apart = want_weight and K > S and weight_VD.dtype != torch.float32
        sum_VD = torch.empty(V, D) if apart else d_weight
        for a in range(0, K, S):
            rows = kept_K[a:a + S]
            h_SD, y_S = hidden_ND[rows].float().contiguous(), targets_N[rows].long()
            dh_SD = torch.zeros(h_SD.shape) if want_hidden else None
            rows_S = y_S, maximum_K[a:a + S], sum_K[a:a + S], None, scale_K[a:a + S]
            for first, w_CD in _runs(weight_VD, narrow):
                dw_CD = None if sum_VD is None else sum_VD[first:first + len(w_CD)]
                if dw_CD is not None and dw_CD.dtype == torch.float16:
                    own = torch.empty(dw_CD.shape)
                    _pass(library().rl_nll_gradient, h_SD, w_CD, first, rows_S, dh_SD, own)
                    dw_CD.copy_(own)
                else:
                    _pass(library().rl_nll_gradient, h_SD, w_CD, first, rows_S, dh_SD, dw_CD, a > 0)
            if d_hidden is not None and dh_SD is not None:
                d_hidden[rows] = dh_SD.to(d_hidden.dtype)
        if apart and d_weight is not None and sum_VD is not None:
            d_weight.copy_(sum_VD)
        return d_hidden, d_weight, None


def token_nll(hidden_ND: Tensor, weight_VD: Tensor | FrozenMatrix, targets_N: Tensor) -> Tensor:
    """As `reference.token_nll`, with the logits of a run of entries instead of whole rows.

    A frozen matrix is unpacked a run of entries at a time, and has no gradient.
    """
    nll_N: Tensor = _TokenNLL.apply(hidden_ND, weight_VD, targets_N)
    return nll_N
