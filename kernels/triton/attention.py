"""Attention on GPUs, in Triton: FlashAttention-2 (arXiv 2307.08691) over packed sequences, forward and
backward.

`_forward` goes over the keys that a block of queries sees, and keeps each row's running maximum and sum.
`_backward_q` goes over them again for dQ, and stores delta = O·dO − dlse. `_backward_kv`, launched after it,
goes over the queries of every head that reads a block of keys. So one program sums each gradient: no atomics,
one order.

A table computed on the device (`_blocks`) says which sequence and rows a program serves; the host waits for
nothing. Memory beside inputs, results and gradients: the table, and delta [T, H] float32. README.md derives
the lines.

TRITON_INTERPRET=1, set before triton is first imported, runs the kernels on CPU tensors, for tests. Its
products of bfloat16 are wrong, so float32 and float16 are proven there.

Shape letters as in reference.py; M rows of a block of queries, N of a block of keys, X the head size K padded
to a power of two (columns past K are read as 0).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# The arguments of Triton's kernels are its own values, which have no Python types.
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import reference

LOG2E = tl.constexpr(1.4426950408889634)  # scores are kept times this, for exp2 is the GPU's own exponential
LN2 = tl.constexpr(0.6931471805599453)
NO_WINDOW = 2 ** 30  # wider than any sequence, and places minus it stay within int32
DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def _rows(start, rows, inside, row_stride, K, X: tl.constexpr):
    """Load start[rows], a [rows, X] tile; rows outside and columns past K are 0."""
    column = tl.arange(0, X)
    return tl.load(start + rows.to(tl.int64)[:, None] * row_stride + column[None, :],
                   mask=inside[:, None] & (column[None, :] < K), other=0.0)


@triton.jit
def _put(start, rows, inside, row_stride, x, K, X: tl.constexpr):
    """Store x at start[rows]."""
    column = tl.arange(0, X)
    place = start + rows.to(tl.int64)[:, None] * row_stride + column[None, :]
    tl.store(place, x.to(start.dtype.element_ty), mask=inside[:, None] & (column[None, :] < K))


@triton.jit
def _seen(place_M, key_N, length, window, CAUSAL: tl.constexpr):
    """Bool [M, N]: the query at place_M sees key_N, both counted from the sequence's first key."""
    ahead = place_M[:, None] - key_N[None, :]
    inside = (key_N[None, :] < length) & tl.full(ahead.shape, 1, tl.int1)
    if CAUSAL:
        inside = inside & (ahead >= 0) & (ahead < window)
    return inside


@triton.jit
def _key_range(first, end, length, window, CAUSAL: tl.constexpr, BN: tl.constexpr):
    """(low, high): where the keys seen by queries at places `first` to `end` − 1 lie; low is a multiple of
    BN.
    """
    low, high = 0, length
    if CAUSAL:
        low = tl.maximum(first - window + 1, 0) // BN * BN
        high = tl.minimum(length, tl.maximum(end, 0))
    return low, high


@triton.jit
def _forward(q, k, v, out, lse, sequence, block, q_offsets, k_offsets, K, H, R, scale, window,
             q_row, q_head, k_row, k_head, v_row, v_head,
             CAUSAL: tl.constexpr, DOT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, X: tl.constexpr):
    """Program (i, h): block i of queries, head h. out [T, H, K] and lse [T, H] are contiguous."""
    b, head = tl.load(sequence + tl.program_id(0)), tl.program_id(1)
    q0, q1, k0, k1 = tl.load(q_offsets + b), tl.load(q_offsets + b
                                                     + 1), tl.load(k_offsets + b), tl.load(k_offsets + b + 1)
    first, length = tl.load(block + tl.program_id(0)) * BM, k1 - k0
    rows_M = q0 + first + tl.arange(0, BM)
    inside_M = rows_M < q1
    shift = length - (q1 - q0)  # query i stands at key i + shift
    place_M = first + tl.arange(0, BM) + shift
    q_MX = _rows(q + head * q_head, rows_M, inside_M, q_row, K, X).to(DOT)
    low, high = _key_range(first + shift, tl.minimum(first + BM, q1 - q0) + shift, length, window, CAUSAL, BN)
    m_M = tl.full((BM,), -3.4028234e38, tl.float32)  # −infinity less −infinity would be NaN
    s_M = tl.zeros((BM,), tl.float32)
    acc_MX = tl.zeros((BM, X), tl.float32)
    for start in range(low, high, BN):
        key_N = start + tl.arange(0, BN)
        k_NX = _rows(k + head // R * k_head, k0 + key_N, key_N < length, k_row, K, X).to(DOT)
        score = tl.dot(q_MX, tl.trans(k_NX), input_precision="ieee") * (scale * LOG2E)
        if CAUSAL:  # no mask is needed if all queries see the whole block
            if (start + BN - 1 > first + shift) | (first + BM - 1 + shift - start >= window) | (start + BN
                                                                                                > length):
                score = tl.where(_seen(place_M, key_N, length, window, CAUSAL), score, float("-inf"))
        else:
            score = tl.where(key_N[None, :] < length, score, float("-inf"))
        new_M = tl.maximum(m_M, tl.max(score, 1))
        p_MN = tl.exp2(score - new_M[:, None])
        shrink_M = tl.exp2(m_M - new_M)
        s_M = s_M * shrink_M + tl.sum(p_MN, 1)
        v_NX = _rows(v + head // R * v_head, k0 + key_N, key_N < length, v_row, K, X).to(DOT)
        acc_MX = tl.dot(p_MN.to(DOT), v_NX, acc_MX * shrink_M[:, None], input_precision="ieee")
        m_M = new_M
    none_M = s_M == 0.0
    _put(out + head * K, rows_M, inside_M, H * K, acc_MX / tl.where(none_M, 1.0, s_M)[:, None], K, X)
    tl.store(lse + rows_M.to(tl.int64) * H + head,
             tl.where(none_M, float("-inf"), (m_M + tl.log2(tl.where(none_M, 1.0, s_M))) * LN2),
             mask=inside_M)


@triton.jit
def _backward_q(q, k, v, out, d_out, lse, d_lse, delta, dq, sequence, block, q_offsets, k_offsets, K, H, R,
                scale, window, q_row, q_head, k_row, k_head, v_row, v_head, d_row, d_head,
                CAUSAL: tl.constexpr, LSE: tl.constexpr, DOT: tl.constexpr, BM: tl.constexpr,
                BN: tl.constexpr, X: tl.constexpr):
    """Program (i, h): dQ = scale · dS K of block i of queries, with dS = P (dO·V − delta); stores delta.

    LSE: whether d_lse is given.
    """
    b, head = tl.load(sequence + tl.program_id(0)), tl.program_id(1)
    q0, q1, k0, k1 = tl.load(q_offsets + b), tl.load(q_offsets + b
                                                     + 1), tl.load(k_offsets + b), tl.load(k_offsets + b + 1)
    first, length = tl.load(block + tl.program_id(0)) * BM, k1 - k0
    rows_M = q0 + first + tl.arange(0, BM)
    inside_M = rows_M < q1
    shift = length - (q1 - q0)
    place_M = first + tl.arange(0, BM) + shift
    entry_M = rows_M.to(tl.int64) * H + head
    d_MX = _rows(d_out + head * d_head, rows_M, inside_M, d_row, K, X)
    delta_M = tl.sum(
        d_MX.to(tl.float32) * _rows(out + head * K, rows_M, inside_M, H * K, K, X).to(tl.float32), 1)
    if LSE:
        delta_M -= tl.load(d_lse + entry_M, mask=inside_M, other=0.0)
    tl.store(delta + entry_M, delta_M, mask=inside_M)
    lse_M = tl.load(lse + entry_M, mask=inside_M, other=0.0) * LOG2E
    q_MX = _rows(q + head * q_head, rows_M, inside_M, q_row, K, X).to(DOT)
    low, high = _key_range(first + shift, tl.minimum(first + BM, q1 - q0) + shift, length, window, CAUSAL, BN)
    dq_MX = tl.zeros((BM, X), tl.float32)
    for start in range(low, high, BN):
        key_N = start + tl.arange(0, BN)
        k_NX = _rows(k + head // R * k_head, k0 + key_N, key_N < length, k_row, K, X).to(DOT)
        v_NX = _rows(v + head // R * v_head, k0 + key_N, key_N < length, v_row, K, X).to(DOT)
        score = tl.dot(q_MX, tl.trans(k_NX), input_precision="ieee") * (scale * LOG2E)
        seen = _seen(place_M, key_N, length, window, CAUSAL)
        p_MN = tl.exp2(tl.where(seen, score - lse_M[:, None], float("-inf")))
        ds_MN = p_MN * (tl.dot(d_MX.to(DOT), tl.trans(v_NX), input_precision="ieee") - delta_M[:, None])
        dq_MX = tl.dot(ds_MN.to(DOT), k_NX, dq_MX, input_precision="ieee")
    _put(dq + head * K, rows_M, inside_M, H * K, dq_MX * scale, K, X)


@triton.jit
def _backward_kv(q, k, v, d_out, lse, delta, dk, dv, sequence, block, q_offsets, k_offsets, K, H, R, G, scale,
                 window, q_row, q_head, k_row, k_head, v_row, v_head, d_row, d_head, CAUSAL: tl.constexpr,
                 DOT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, X: tl.constexpr):
    """Program (j, g): dK = scale · dSᵀ Q and dV = Pᵀ dO of block j of keys, over the R heads of group g.

    Tiles are transposed, [N, M].
    """
    b, group = tl.load(sequence + tl.program_id(0)), tl.program_id(1)
    q0, q1, k0, k1 = tl.load(q_offsets + b), tl.load(q_offsets + b
                                                     + 1), tl.load(k_offsets + b), tl.load(k_offsets + b + 1)
    first, length, count = tl.load(block + tl.program_id(0)) * BN, k1 - k0, q1 - q0
    shift = length - count
    key_N = first + tl.arange(0, BN)
    inside_N = key_N < length
    k_NX = _rows(k + group * k_head, k0 + key_N, inside_N, k_row, K, X).to(DOT)
    v_NX = _rows(v + group * v_head, k0 + key_N, inside_N, v_row, K, X).to(DOT)
    low, high = 0, count
    if CAUSAL:
        low = tl.maximum(first - shift, 0) // BM * BM
        last = tl.minimum(first + BN, length) - 1
        high = tl.minimum(count, last - shift + tl.minimum(window, length))
    dk_NX = tl.zeros((BN, X), tl.float32)
    dv_NX = tl.zeros((BN, X), tl.float32)
    for head in range(group * R, (group + 1) * R):
        for start in range(low, high, BM):
            query_M = start + tl.arange(0, BM)
            inside_M = query_M < count
            entry_M = (q0 + query_M).to(tl.int64) * H + head
            q_MX = _rows(q + head * q_head, q0 + query_M, inside_M, q_row, K, X).to(DOT)
            d_MX = _rows(d_out + head * d_head, q0 + query_M, inside_M, d_row, K, X).to(DOT)
            lse_M = tl.load(lse + entry_M, mask=inside_M, other=0.0) * LOG2E
            delta_M = tl.load(delta + entry_M, mask=inside_M, other=0.0)
            score = tl.dot(k_NX, tl.trans(q_MX), input_precision="ieee") * (scale * LOG2E)
            seen = inside_N[:, None] & inside_M[None, :]
            if CAUSAL:
                ahead = (query_M + shift)[None, :] - key_N[:, None]
                seen = seen & (ahead >= 0) & (ahead < window)
            p_NM = tl.exp2(tl.where(seen, score - lse_M[None, :], float("-inf")))
            dv_NX = tl.dot(p_NM.to(DOT), d_MX, dv_NX, input_precision="ieee")
            ds_NM = p_NM * (tl.dot(v_NX, tl.trans(d_MX), input_precision="ieee") - delta_M[None, :])
            dk_NX = tl.dot(ds_NM.to(DOT), q_MX, dk_NX, input_precision="ieee")
    _put(dk + group * K, k0 + key_N, inside_N, G * K, dk_NX * scale, K, X)
    _put(dv + group * K, k0 + key_N, inside_N, G * K, dv_NX, K, X)


def _blocks(offsets: Tensor, rows: int, size: int) -> tuple[Tensor, Tensor]:
    """The sequence that each program serves, and the block of it; offsets [B + 2], the last sequence empty.

    There are at most rows / size + B blocks; the programs behind the real ones get the empty sequence.
    """
    B = len(offsets) - 2
    ends = ((offsets[1:-1] - offsets[:-2] + size - 1) // size).cumsum(0)
    program = torch.arange(triton.cdiv(rows, size) + B, device=offsets.device)
    sequence = torch.searchsorted(ends, program, right=True)
    starts = torch.cat((ends.new_zeros(1), ends))
    return sequence.int(), torch.where(sequence < B, program - starts[sequence], 0).int()


def _tiles(dtype: torch.dtype, X: int, backward: bool) -> dict[str, Any]:
    """Block sizes and launch options, sized for an H100's 227 KiB of shared memory a block."""
    if dtype == torch.float32 or X > 128:
        return dict(BM=32, BN=32, num_warps=4, num_stages=1)
    if backward:
        return dict(BM=64, BN=64, num_warps=4 if X <= 64 else 8, num_stages=2)
    return dict(BM=128, BN=64, num_warps=4 if X <= 64 else 8, num_stages=3)


def _plain(x: Tensor) -> Tensor:
    """x with each head's numbers side by side, as the kernels read them."""
    return x if x.stride(-1) == 1 else x.contiguous()


class _Attention(torch.autograd.Function):
    """out and lse; backward takes the gradient of either or both."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, q_offsets: Tensor, k_offsets: Tensor, causal: bool,
                window: int | None, scale: float) -> tuple[Tensor, Tensor]:
        (T, H, K), G = q.shape, k.shape[1]
        q, k, v = (_plain(x) for x in (q, k, v))
        X = max(16, triton.next_power_of_2(K))
        window = NO_WINDOW if window is None else min(window, NO_WINDOW)
        out, lse = q.new_empty((T, H, K)), q.new_empty((T, H), dtype=torch.float32)
        tiles = _tiles(q.dtype, X, backward=False)
        if T:
            with torch.cuda.device_of(q):
                sequence, block = _blocks(q_offsets, T, tiles["BM"])
                _forward[(len(sequence), H)](q, k, v, out, lse, sequence, block, q_offsets, k_offsets, K, H,
                                             H // G, scale, window, *q.stride()[:2], *k.stride()[:2],
                                             *v.stride()[:2], CAUSAL=causal, DOT=DTYPES[q.dtype], X=X,
                                             **tiles)
        ctx.save_for_backward(q, k, v, out, lse, q_offsets, k_offsets)
        ctx.causal, ctx.window, ctx.scale = causal, window, scale
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, q_offsets, k_offsets = ctx.saved_tensors
        (T, H, K), (S, G, _) = q.shape, k.shape
        d_out = torch.zeros_like(out) if d_out is None else _plain(d_out)
        d_lse = None if d_lse is None else d_lse.contiguous()
        X = max(16, triton.next_power_of_2(K))
        dq, dk, dv = q.new_empty((T, H, K)), k.new_empty((S, G, K)), v.new_empty((S, G, K))
        delta = torch.empty_like(lse)
        strides = (*q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *d_out.stride()[:2])
        options = dict(CAUSAL=ctx.causal, DOT=DTYPES[q.dtype], X=X, **_tiles(q.dtype, X, backward=True))
        with torch.cuda.device_of(q):
            if T:
                sequence, block = _blocks(q_offsets, T, options["BM"])
                _backward_q[(len(sequence), H)](q, k, v, out, d_out, lse, lse if d_lse is None else d_lse,
                                                delta, dq, sequence, block, q_offsets, k_offsets, K, H,
                                                H // G, ctx.scale, ctx.window, *strides, LSE=d_lse
                                                is not None, **options)
            if S:
                sequence, block = _blocks(k_offsets, S, options["BN"])
                _backward_kv[(len(sequence), G)](q, k, v, d_out, lse, delta, dk, dv, sequence, block,
                                                 q_offsets, k_offsets, K, H, H // G, G, ctx.scale, ctx.window,
                                                 *strides, **options)
        return dq, dk, dv, None, None, None, None, None


def attention(q_THK: Tensor, k_SGK: Tensor, v_SGK: Tensor, q_offsets: Tensor, k_offsets: Tensor | None = None,
              *, causal: bool = True, window: int | None = None,
              scale: float | None = None) -> tuple[Tensor, Tensor]:
    """As `reference.attention`, without its scores in memory. Raises ValueError also for dtypes not in
    DTYPES.
    """
    reference.check_attention(q_THK, k_SGK, v_SGK, q_offsets, k_offsets, causal=causal, window=window,
                              scale=scale)
    if q_THK.dtype not in DTYPES:
        raise ValueError(f"attention in Triton takes float32, bfloat16 or float16; got {q_THK.dtype}")
    k_offsets = q_offsets if k_offsets is None else k_offsets
    q_ends, k_ends = (torch.cat((x, x[-1:])).to(q_THK.device, torch.int32)
                      for x in (q_offsets, k_offsets))  # one more, empty sequence
    return _Attention.apply(q_THK, k_SGK, v_SGK, q_ends, k_ends, causal, window,
                            q_THK.shape[2]**-0.5 if scale is None else scale)
