"""token_nll on GPUs, in Triton: three kernels, whose lines README.md derives.

`_statistics` computes a row block's logits tile by tile, and keeps the running maximum and sum of each row.
`_gradient` computes a tile again and writes coefficient · (p − onehot) in the inputs' precision. `_product`
multiplies that with the weights or with the hidden rows, and sums in float32. The kernels get the numbers of
the rows that count; rows that are masked, or whose coefficient is 0, are in none of them.

Memory beside the inputs and the gradients returned, with P = min(K, max(V, GRADIENT_ROWS)):
- a gradient tile of GRADIENT_BYTES;
- dH of P rows in float32;
- for half-precision weights, dW of C entries in float32, or of all V if K > P.
So at most 8·D·max(V, GRADIENT_ROWS) bytes and the tile, whatever N is; if K ≤ V, 4·K·D + 4·C·D bytes and the
tile.

TRITON_INTERPRET=1, set before triton is first imported, runs the kernels on CPU tensors, for tests. Its
products of bfloat16 are wrong, so float32 and float16 are proven there. Shape letters as in cpu/token_nll.py.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# The arguments of Triton's kernels are its own values, which have no Python types.
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from .. import reference

SPLITS = 16  # parts of the vocabulary for a row block's statistics: 128 rows × 16 keep a large GPU busy
STATISTICS_ROWS = 16384  # rows a launch of _statistics: bounds its partial results, 12 · SPLITS bytes a row
GRADIENT_ROWS = 4096
GRADIENT_BYTES = 64 << 20
DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def _logits(hidden, weight, rows_M, columns_N, V, D, h_row, h_column, w_row, w_column,
            DOT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """hidden[rows] @ weight[columns].T, a [BM, BN] tile in float32; columns_N past V give 0."""
    acc = tl.zeros((BM, BN), tl.float32)
    h_start = hidden + rows_M.to(tl.int64)[:, None] * h_row
    w_start = weight + columns_N.to(tl.int64)[None, :] * w_row
    for k in range(0, D, BK):
        d_K = k + tl.arange(0, BK)
        h = tl.load(h_start + d_K[None, :] * h_column, mask=d_K[None, :] < D, other=0.0)
        w = tl.load(w_start + d_K[:, None] * w_column, mask=(d_K[:, None] < D) & (columns_N[None, :] < V),
                    other=0.0)
        acc = tl.dot(h.to(DOT), w.to(DOT), acc, input_precision="ieee")
    return acc


@triton.jit
def _statistics(hidden, weight, rows, targets, maximum, total, target, row_count, V, D, h_row, h_column,
                w_row, w_column, span, DOT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
                BK: tl.constexpr):
    """Program (i, s): row block i over entries s·span to (s + 1)·span.

    Stores maximum and Σ e^(l − maximum) without the target, and the target's l.
    """
    split = tl.program_id(1)
    place_M = tl.program_id(0) * BM + tl.arange(0, BM)
    inside_M = place_M < row_count
    rows_M = tl.load(rows + place_M, mask=inside_M, other=0)
    y_M = tl.load(targets + place_M, mask=inside_M, other=-1)
    m_M = tl.full((BM,), -3.4028234e38, tl.float32)  # −infinity less −infinity would be NaN
    s_M = tl.zeros((BM,), tl.float32)
    t_M = tl.zeros((BM,), tl.float32)
    for first in range(split * span, tl.minimum(V, (split + 1) * span), BN):
        v_N = first + tl.arange(0, BN)
        logit = _logits(hidden, weight, rows_M, v_N, V, D, h_row, h_column, w_row, w_column, DOT, BM, BN, BK)
        is_target = v_N[None, :] == y_M[:, None]
        t_M += tl.sum(tl.where(is_target, logit, 0.0), 1)
        logit = tl.where((v_N[None, :] < V) & (is_target == 0), logit, float("-inf"))
        new_M = tl.maximum(m_M, tl.max(logit, 1))
        s_M = s_M * tl.exp(m_M - new_M) + tl.sum(tl.exp(logit - new_M[:, None]), 1)
        m_M = new_M
    out = split * row_count + place_M
    tl.store(maximum + out, m_M, mask=inside_M)
    tl.store(total + out, s_M, mask=inside_M)
    tl.store(target + out, t_M, mask=inside_M)


@triton.jit
def _gradient(hidden, weight, rows, targets, maximum, total, scale, out, first, row_count, column_count, V, D,
              h_row, h_column, w_row, w_column, DOT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
              BK: tl.constexpr):
    """out[row, j] = coefficient · (p − onehot) of entry first + j: a [row_count, column_count] tile.

    maximum, total: of the whole row without its target; scale: coefficient · (1 − p of the target).
    """
    place_M = tl.program_id(0) * BM + tl.arange(0, BM)
    inside_M = place_M < row_count
    rows_M = tl.load(rows + place_M, mask=inside_M, other=0)
    y_M = tl.load(targets + place_M, mask=inside_M, other=-1)
    j_N = tl.program_id(1) * BN + tl.arange(0, BN)
    v_N = first + j_N
    logit = _logits(hidden, weight, rows_M, v_N, V, D, h_row, h_column, w_row, w_column, DOT, BM, BN, BK)
    logit = tl.where(v_N[None, :] < V, logit, float("-inf"))
    m_M = tl.load(maximum + place_M, mask=inside_M, other=float("inf"))
    s_M = tl.load(total + place_M, mask=inside_M, other=1.0)
    c_M = tl.load(scale + place_M, mask=inside_M, other=0.0)
    q = tl.exp(logit - m_M[:, None]) / s_M[:, None]  # of the entries other than the target, they add up to 1
    g = c_M[:, None] * tl.where(v_N[None, :] == y_M[:, None], -1.0, q)
    where = out + place_M.to(tl.int64)[:, None] * column_count + j_N[None, :]
    tl.store(where, g.to(out.dtype.element_ty), mask=inside_M[:, None] & (j_N[None, :] < column_count))


@triton.jit
def _product(a, b, out, b_rows, M, N, K, a_row, a_column, b_row, b_column, ADD: tl.constexpr,
             GATHER: tl.constexpr, DOT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """out = a @ b, or with ADD out += a @ b; with GATHER the rows b_rows of b. out [M, N] float32,
    contiguous.
    """
    band = 8 * tl.cdiv(N, BN)  # programs in bands of 8 block rows, so that neighbours share what they load
    i = tl.program_id(0) // band * 8
    height = tl.minimum(tl.cdiv(M, BM) - i, 8)
    i += tl.program_id(0) % band % height
    m_M = i * BM + tl.arange(0, BM)
    n_N = tl.program_id(0) % band // height * BN + tl.arange(0, BN)
    inside = (m_M[:, None] < M) & (n_N[None, :] < N)
    where = out + m_M.to(tl.int64)[:, None] * N + n_N[None, :]
    acc = tl.zeros((BM, BN), tl.float32)
    for first in range(0, K, BK):
        k_K = first + tl.arange(0, BK)
        row_K = tl.load(b_rows + k_K, mask=k_K < K, other=0) if GATHER else k_K
        x = tl.load(a + m_M.to(tl.int64)[:, None] * a_row + k_K.to(tl.int64)[None, :] * a_column,
                    mask=(m_M[:, None] < M) & (k_K[None, :] < K), other=0.0)
        y = tl.load(b + row_K.to(tl.int64)[:, None] * b_row + n_N[None, :] * b_column,
                    mask=(k_K[:, None] < K) & (n_N[None, :] < N), other=0.0)
        acc = tl.dot(x.to(DOT), y.to(DOT), acc, input_precision="ieee")
    if ADD:
        acc += tl.load(where, mask=inside, other=0.0)
    tl.store(where, acc, mask=inside)


def _tiles(dot: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Block sizes, by the products' precision and the device's shared memory.

    Half precision takes 144, 96 or 64 KiB of it, float32 48.
    """
    if device.type != "cuda":
        return dict(BM=64, BN=64, BK=64)  # the interpreter pays by the block
    if dot == torch.float32:
        return dict(BM=64, BN=64, BK=32, num_warps=4, num_stages=3)
    capability = torch.cuda.get_device_capability(device)
    if capability in ((9, 0), (10, 0)):
        return dict(BM=128, BN=256, BK=64, num_warps=8, num_stages=3)
    if capability == (8, 0):
        return dict(BM=128, BN=128, BK=64, num_warps=8, num_stages=3)
    return dict(BM=128, BN=128, BK=32, num_warps=8, num_stages=4)


class _Head:
    """One call's hidden and weight, and the launches over some of their rows (int64 numbers) and entries."""

    def __init__(self, hidden_ND: Tensor, weight_VD: Tensor):
        self.hidden, self.weight = hidden_ND, weight_VD
        self.dot = torch.promote_types(hidden_ND.dtype, weight_VD.dtype)  # float16 with bfloat16 is float32
        self.tiles = _tiles(self.dot, hidden_ND.device)
        self.constants = dict(DOT=DTYPES[self.dot], **self.tiles)

    def statistics(self, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(maximum, Σ e^(l − maximum), z) of each row, float32, the first two without its target.

        z is the log-sum-exp of the other entries minus the target's logit.
        """
        V, D = self.weight.shape
        BM, BN = self.tiles["BM"], self.tiles["BN"]
        span = triton.cdiv(triton.cdiv(V, BN), SPLITS) * BN
        splits = triton.cdiv(V, span)
        maximum, total, target = self.hidden.new_empty(3, splits, len(rows), dtype=torch.float32)
        _statistics[triton.cdiv(len(rows), BM),
                    splits](self.hidden, self.weight, rows, targets, maximum, total, target, len(rows), V, D,
                            *self.hidden.stride(), *self.weight.stride(), span, **self.constants)
        highest = maximum.amax(0)
        total = (total * torch.exp(maximum - highest)).sum(0)
        return highest, total, (highest - target.sum(0)) + total.log()

    def gradient(self, out: Tensor, first: int, rows: Tensor, targets: Tensor, maximum: Tensor, total: Tensor,
                 scale: Tensor) -> None:
        """Write coefficient · (p − onehot) of entries from `first` on, to out [rows, entries]."""
        BM, BN = self.tiles["BM"], self.tiles["BN"]
        _gradient[triton.cdiv(len(rows), BM),
                  triton.cdiv(out.shape[1], BN)](self.hidden, self.weight, rows, targets, maximum, total,
                                                 scale, out, first, *out.shape, *self.weight.shape,
                                                 *self.hidden.stride(), *self.weight.stride(),
                                                 **self.constants)

    def product(self, a: Tensor, b: Tensor, out: Tensor, add: bool, b_rows: Tensor | None = None) -> None:
        """out (+)= a @ b, or a @ b[b_rows]."""
        (M, K), N = a.shape, b.shape[1]
        grid = (triton.cdiv(M, self.tiles["BM"]) * triton.cdiv(N, self.tiles["BN"]),)
        _product[grid](a, b, out, b if b_rows is None else b_rows, M, N, K, *a.stride(), *b.stride(), ADD=add,
                       GATHER=b_rows is not None, **self.constants)


class _TokenNLL(torch.autograd.Function):
    """Forward keeps three numbers of each row that counts; backward computes the logits again."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        kept_K = reference.kept_rows(hidden_ND, weight_VD, targets_N)
        head, y_K = _Head(hidden_ND, weight_VD), targets_N[kept_K]
        parts = []
        with torch.cuda.device_of(hidden_ND):
            for a in range(0, len(kept_K), STATISTICS_ROWS):
                parts.append(head.statistics(kept_K[a:a + STATISTICS_ROWS], y_K[a:a + STATISTICS_ROWS]))
        if parts:
            maximum_K, total_K, z_K = map(torch.cat, zip(*parts, strict=True))
        else:
            maximum_K, total_K, z_K = hidden_ND.new_empty(3, 0, dtype=torch.float32)
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, kept_K, maximum_K, total_K, z_K)
        return hidden_ND.new_zeros(len(targets_N), dtype=torch.float32).index_copy(0, kept_K, softplus(z_K))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, coefficient_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, targets_N, kept_K, maximum_K, total_K, z_K = ctx.saved_tensors
        scale_K = coefficient_N[kept_K].float() * torch.sigmoid(z_K)
        used = (coefficient_N[kept_K] != 0) & (scale_K != 0)  # NaN counts as used, so that it shows
        kept_K, maximum_K, total_K, scale_K = kept_K[used], maximum_K[used], total_K[used], scale_K[used]
        if not len(kept_K):
            return torch.zeros_like(hidden_ND), torch.zeros_like(weight_VD), None
        # float16 tiles lose what is below 6e-8. So a power of two, which is exact, makes the largest scale 1.
        largest = torch.nan_to_num(scale_K.abs(), nan=0.0, posinf=0.0).max().clamp(min=2.0 ** -126)
        unit = torch.exp2(torch.ceil(torch.log2(largest)))
        with torch.cuda.device_of(hidden_ND):
            rows = kept_K, targets_N[kept_K], maximum_K, total_K, scale_K / unit
            return *_backward(_Head(hidden_ND, weight_VD), rows, unit, *ctx.needs_input_grad[:2]), None


def _backward(head: _Head, of_rows: tuple[Tensor, ...], unit: Tensor, want_hidden: bool,
              want_weight: bool) -> tuple[Tensor | None, Tensor | None]:
    """(dH, dW), `unit` times the sums. of_rows: row number, target, maximum, Σ and scale of each row [K]."""
    rows_K, (V, D) = of_rows[0], head.weight.shape
    S = min(len(rows_K), GRADIENT_ROWS)
    C = min(V, GRADIENT_BYTES // head.dot.itemsize // S)
    P = min(len(rows_K), max(V, GRADIENT_ROWS))
    tile = head.hidden.new_empty(S * C, dtype=head.dot)
    d_hidden = torch.zeros_like(head.hidden) if want_hidden else None
    d_weight = torch.empty_like(head.weight, memory_format=torch.contiguous_format) if want_weight else None
    whole = d_weight if head.weight.dtype == torch.float32 else None
    if want_weight and whole is None and len(rows_K) > P:
        whole = head.hidden.new_empty(V, D, dtype=torch.float32)
    for p in range(0, len(rows_K), P):
        dh_PD = head.hidden.new_empty(min(P, len(rows_K) - p), D, dtype=torch.float32)
        for first in range(0, V, C):
            w_CD = head.weight[first:first + C]
            if whole is not None:
                dw_CD = whole[first:first + C]
            elif want_weight:
                dw_CD = torch.empty_like(w_CD, dtype=torch.float32, memory_format=torch.contiguous_format)
            for a in range(p, min(p + P, len(rows_K)), S):
                block = tuple(x[a:min(a + S, p + P)] for x in of_rows)
                grad_SC = tile[:len(block[0]) * len(w_CD)].view(len(block[0]), len(w_CD))
                head.gradient(grad_SC, first, *block)
                if want_hidden:
                    head.product(grad_SC, w_CD, dh_PD[a - p:a - p + S], add=first > 0)
                if want_weight:
                    head.product(grad_SC.T, head.hidden, dw_CD, add=a > 0, b_rows=block[0])
            if d_weight is not None and whole is None:
                d_weight[first:first + C] = dw_CD.mul_(unit)
        if d_hidden is not None:
            d_hidden[rows_K[p:p + P]] = dh_PD.mul_(unit).to(d_hidden.dtype)
    if d_weight is not None and whole is not None:
        d_weight.copy_(whole.mul_(unit))
    return d_hidden, d_weight


def unusable(device_type: str) -> str:
    """Why these kernels cannot run on "cpu" or "cuda" tensors; "" if they can.

    CPU tensors need the interpreter, which is tried on a small example.
    """
    if device_type != "cpu":
        return ""
    if not triton.knobs.runtime.interpret or isinstance(_product, triton.JITFunction):
        return "Triton runs on CPU tensors under TRITON_INTERPRET=1 only, set before triton is imported"
    try:
        token_nll(torch.ones(1, 1), torch.ones(2, 1), torch.zeros(1, dtype=torch.int64))
    except Exception as error:  # anything: the interpreter of triton 3.6 fails with numpy 2.4, for one
        said = " ".join(str(error).split())[:120]
        return f"the interpreter of triton {triton.__version__} does not work here ({said})"
    return ""


def token_nll(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """As `reference.token_nll`, on a GPU, or on CPU tensors under TRITON_INTERPRET=1, for dtypes in DTYPES.
    """
    for x in (hidden_ND, weight_VD):
        if x.dtype not in DTYPES:
            raise ValueError(f"token_nll in Triton takes float32, float16 and bfloat16; got {x.dtype}")
    return _TokenNLL.apply(hidden_ND, weight_VD, targets_N)
