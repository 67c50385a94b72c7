"""Attention of a generation step on GPUs, in Triton: split keys, and one product with the prefix for all
requests.

`_own` attends to a run of one request's own keys, for all heads of a group, and puts the new key and value
into the cache. `_shared` attends to a run of the prefix, for a block of (request, head) rows of a group: the
whole batch reads each prefix key once. Both leave partial outputs and their log-sum-exps, in float32, which
`_merge` merges.

Nothing here waits for the device, and every launch depends on shapes alone: a step can be captured as a CUDA
graph. How keys are split depends on the batch size, so a request's last bits may too.

Memory beside inputs and result: (K + 1) · 4 bytes a partial, at most MOST_SPLITS of each kind for a request's
head.

TRITON_INTERPRET=1, set before triton is first imported, runs the kernels on CPU tensors, for tests. Its
products of bfloat16 are wrong, so float32 and float16 are proven there.

Shape letters as in reference.py; R = H / G heads a group, RP that padded to a power of two, X the head size K
padded likewise, C partials, L log-sum-exps in units of ln 2.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# The arguments of Triton's kernels are its own values, which have no Python types.
import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)  # scores are kept times this, for exp2 is the GPU's own exponential
NO_WINDOW = 2 ** 30
PROGRAMS = 264      # two for each of an H100's 132 cores: keys are split until there are this many
SPLIT_KEYS = 128    # a run of keys shorter than this is not worth a partial result
MOST_SPLITS = 32
DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def _step(q_MX, k_NX, v_NX, seen_MN, m_M, s_M, acc_MX, scale, DOT: tl.constexpr):
    """One tile of keys into the running maximum, sum and output of each row."""
    score = tl.dot(q_MX, tl.trans(k_NX), input_precision="ieee") * (scale * LOG2E)
    score = tl.where(seen_MN, score, float("-inf"))
    new_M = tl.maximum(m_M, tl.max(score, 1))
    p_MN = tl.exp2(score - new_M[:, None])
    shrink_M = tl.exp2(m_M - new_M)
    acc_MX = tl.dot(p_MN.to(DOT), v_NX, acc_MX * shrink_M[:, None], input_precision="ieee")
    return new_M, s_M * shrink_M + tl.sum(p_MN, 1), acc_MX


@triton.jit
def _put(out, lse, rows_M, inside_M, m_M, s_M, acc_MX, K, X: tl.constexpr):
    """Store the partial results of rows_M (rows of `lse`); rows that saw no key get 0 and −infinity."""
    x_X = tl.arange(0, X)
    none_M = s_M == 0.0
    s_M = tl.where(none_M, 1.0, s_M)
    place = out + rows_M.to(tl.int64)[:, None] * K + x_X[None, :]
    tl.store(place, acc_MX / s_M[:, None], mask=inside_M[:, None] & (x_X[None, :] < K))
    tl.store(lse + rows_M, tl.where(none_M, float("-inf"), m_M + tl.log2(s_M)), mask=inside_M)


@triton.jit
def _own(q, k, v, keys, values, places, out, lse, G, S, K, C, splits, scale, window, q_row, q_head, k_row,
         k_head, v_row, v_head, R: tl.constexpr, RP: tl.constexpr, X: tl.constexpr, BN: tl.constexpr,
         DOT: tl.constexpr):
    """Program (b, g, c): run c of request b's older keys, group g. Run 0 also has the new key, and stores it.
    """
    b, g, c = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    place = tl.load(places + b).to(tl.int32)
    r_M, x_X = tl.arange(0, RP), tl.arange(0, X)
    head_M = g * R + r_M
    q_MX = tl.load(q + b * q_row + head_M[:, None] * q_head + x_X[None, :],
                   mask=(r_M[:, None] < R) & (x_X[None, :] < K), other=0.0)
    keys += (b * G + g) * S * K
    values += (b * G + g) * S * K
    m_M = tl.full((RP,), -3.4028234e38, tl.float32)  # −infinity less −infinity would be NaN
    s_M = tl.zeros((RP,), tl.float32)
    acc_MX = tl.zeros((RP, X), tl.float32)
    if c == 0:  # no other program reads the new place
        k_X = tl.load(k + b * k_row + g * k_head + x_X, mask=x_X < K, other=0.0)
        v_X = tl.load(v + b * v_row + g * v_head + x_X, mask=x_X < K, other=0.0)
        tl.store(keys + place * K + x_X, k_X, mask=x_X < K)
        tl.store(values + place * K + x_X, v_X, mask=x_X < K)
        m_M = tl.sum(q_MX.to(tl.float32) * k_X.to(tl.float32)[None, :], 1) * (scale * LOG2E)
        s_M += 1.0
        acc_MX += v_X.to(tl.float32)[None, :]
    oldest = tl.maximum(place - window + 1, 0)
    span = tl.cdiv(tl.cdiv(place - oldest, splits), BN) * BN
    low = oldest + c * span
    high = tl.minimum(place, low + span)
    for start in range(low, high, BN):
        key_N = start + tl.arange(0, BN)
        inside = (key_N[:, None] < high) & (x_X[None, :] < K)
        where = key_N[:, None] * K + x_X[None, :]
        k_NX = tl.load(keys + where, mask=inside, other=0.0)
        v_NX = tl.load(values + where, mask=inside, other=0.0)
        m_M, s_M, acc_MX = _step(q_MX.to(DOT), k_NX.to(DOT), v_NX.to(DOT), (key_N < high)[None, :], m_M, s_M,
                                 acc_MX, scale, DOT)
    _put(out, lse, (b * G * R + head_M) * C + c, r_M < R, m_M, s_M, acc_MX, K, X)


@triton.jit
def _shared(q, keys, values, places, out, lse, B, H, P, K, C, first, span, scale, window, q_row, q_head,
            k_row, k_head, v_row, v_head, R: tl.constexpr, BM: tl.constexpr, X: tl.constexpr,
            BN: tl.constexpr, DOT: tl.constexpr):
    """Program (i, g, c): block i of group g's (request, head) rows, over prefix keys c·span to (c + 1)·span.
    """
    g, c = tl.program_id(1), tl.program_id(2)
    row_M, x_X = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, X)
    b_M, head_M = row_M // R, g * R + row_M % R
    inside_M = b_M < B
    place_M = P + tl.load(places + b_M, mask=inside_M, other=0).to(tl.int32)
    q_MX = tl.load(q + b_M.to(tl.int64)[:, None] * q_row + head_M[:, None] * q_head + x_X[None, :],
                   mask=inside_M[:, None] & (x_X[None, :] < K), other=0.0)
    m_M = tl.full((BM,), -3.4028234e38, tl.float32)
    s_M = tl.zeros((BM,), tl.float32)
    acc_MX = tl.zeros((BM, X), tl.float32)
    high = tl.minimum(P, (c + 1) * span)
    for start in range(c * span, high, BN):
        key_N = start + tl.arange(0, BN)
        inside = (key_N[:, None] < high) & (x_X[None, :] < K)
        k_NX = tl.load(keys + key_N.to(tl.int64)[:, None] * k_row + g * k_head + x_X[None, :], mask=inside,
                       other=0.0)
        v_NX = tl.load(values + key_N.to(tl.int64)[:, None] * v_row + g * v_head + x_X[None, :], mask=inside,
                       other=0.0)
        seen_MN = (key_N[None, :] < high) & (place_M[:, None] - key_N[None, :] < window)
        m_M, s_M, acc_MX = _step(q_MX.to(DOT), k_NX.to(DOT), v_NX.to(DOT), seen_MN, m_M, s_M, acc_MX, scale,
                                 DOT)
    _put(out, lse, (b_M.to(tl.int64) * H + head_M) * C + first + c, inside_M, m_M, s_M, acc_MX, K, X)


@triton.jit
def _merge(partial, lse, out, C, K, CP: tl.constexpr, X: tl.constexpr):
    """Program i: the C partials of row i, weighted by 2^(L − max L). The new key's is never empty."""
    i = tl.program_id(0).to(tl.int64)
    c_C, x_X = tl.arange(0, CP), tl.arange(0, X)
    l_C = tl.load(lse + i * C + c_C, mask=c_C < C, other=float("-inf"))
    weight_C = tl.exp2(l_C - tl.max(l_C, 0))
    part = tl.load(partial + (i * C + c_C)[:, None] * K + x_X[None, :],
                   mask=(c_C[:, None] < C) & (x_X[None, :] < K), other=0.0)
    total_X = tl.sum(part * weight_C[:, None], 0) / tl.sum(weight_C, 0)
    tl.store(out + i * K + x_X, total_X.to(out.dtype.element_ty), mask=x_X < K)


def _splits(keys: int, programs: int) -> int:
    """How many runs to cut `keys` keys into; without cutting there would be `programs` programs."""
    return max(1, min(MOST_SPLITS, triton.cdiv(PROGRAMS, programs), triton.cdiv(keys, SPLIT_KEYS)))


def _check(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor,
           prefix: tuple[Tensor, Tensor] | None) -> None:
    if q.dtype not in DTYPES or any(x.dtype != q.dtype for x in (k, v, keys, values, *(prefix or ()))):
        dtypes = [str(x.dtype)[6:] for x in (q, k, v, keys, values)]
        raise ValueError("cached_attention in Triton takes one of float32, bfloat16 and float16 throughout; "
                         f"got {dtypes}")
    if not (keys.is_contiguous() and values.is_contiguous()):
        raise ValueError("the cache must be contiguous: it is written in place")
    if keys.shape[2] * keys.shape[3] >= 2 ** 31:
        raise ValueError(f"{keys.shape[2]} keys of size {keys.shape[3]} a request are too many: the kernels "
                         "count in 32 bits")


def cached_attention(q_BHK: Tensor, k_BGK: Tensor, v_BGK: Tensor, keys_NGSK: Tensor, values_NGSK: Tensor,
                     places_B: Tensor, prefix: tuple[Tensor, Tensor] | None = None, *,
                     window: int | None = None, scale: float | None = None) -> Tensor:
    """As `reference.cached_attention`, all in one of the dtypes in DTYPES. Places are not checked."""
    _check(q_BHK, k_BGK, v_BGK, keys_NGSK, values_NGSK, prefix)
    (B, H, K), (G, S) = q_BHK.shape, keys_NGSK.shape[1:3]
    out_BHK = torch.empty((B, H, K), dtype=q_BHK.dtype, device=q_BHK.device)
    if not B:
        return out_BHK
    q, k, v, *shared = (x if x.stride(-1) == 1 else x.contiguous()
                        for x in (q_BHK, k_BGK, v_BGK, *(prefix or ())))
    places, P = places_B.to(q.device), len(shared[0]) if shared else 0
    R, X = H // G, max(16, triton.next_power_of_2(K))
    BM = min(64, max(16, triton.next_power_of_2(B * R)))
    BN, warps = (32, 4) if q.dtype == torch.float32 or X > 128 else (64, 4)
    own = _splits(S, B * G)
    blocks = triton.cdiv(B * R, BM)
    span = triton.cdiv(triton.cdiv(P, _splits(P, blocks * G)), BN) * BN
    C = own + (triton.cdiv(P, span) if P else 0)
    partial, lse = q.new_empty((B, H, C, K), dtype=torch.float32), q.new_empty((B, H, C), dtype=torch.float32)
    scale, window = K**-0.5 if scale is None else scale, NO_WINDOW if window is None else min(
        window, NO_WINDOW)
    common = dict(R=R, X=X, BN=BN, DOT=DTYPES[q.dtype], num_warps=warps)
    with torch.cuda.device_of(q):
        _own[(B, G, own)](q, k, v, keys_NGSK, values_NGSK, places, partial, lse, G, S, K, C, own, scale,
                          window, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
                          RP=max(16, triton.next_power_of_2(R)), **common)
        if P:
            _shared[(blocks, G, C - own)](q, *shared, places, partial, lse, B, H, P, K, C, own, span, scale,
                                          window, *q.stride()[:2], *shared[0].stride()[:2],
                                          *shared[1].stride()[:2], BM=BM, **common)
        _merge[(B * H,)](partial, lse, out_BHK, C, K, CP=triton.next_power_of_2(C), X=X)
    return out_BHK
