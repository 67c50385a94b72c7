"""Attention on CPUs through torch's own flash kernel, which never holds all scores of a sequence.

torch's public `scaled_dot_product_attention` gives no log-sum-exp, and aligns the first query with the first
key. The operator below it gives the log-sum-exp and takes any mask. So every sequence is cut into pieces:
runs of queries with the keys that they may see. Each piece is one call. The operator is not public:
`unusable` tries it on a small example, and says what is wrong if it is missing or differs.

Shape letters as in reference.py; R = H / G query heads a key/value head; t and s one piece's queries and
keys.
"""
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from .. import reference

ROWS = 256  # queries of a masked piece: this bounds its mask, and later pieces skip the keys they cannot see


class Piece(NamedTuple):
    """Queries q0 to q1 with keys k0 to k1; `mask` [t, s] is added to the scores, `causal` is the triangle."""
    q0: int
    q1: int
    k0: int
    k1: int
    causal: bool = False
    mask: Tensor | None = None


def _cut(q_bounds: list[int], k_bounds: list[int], causal: bool, window: int | None,
         dtype: torch.dtype) -> list[Piece]:
    """The pieces of every sequence. A query is in a piece exactly if it sees a key."""
    pieces = []
    for q0, q1, k0, k1 in zip(q_bounds, q_bounds[1:], k_bounds, k_bounds[1:], strict=False):
        shift = (k1 - k0) - (q1 - q0)  # query i stands at key i + shift
        first = q0 + max(-shift, 0) if causal else q0  # the first query that stands at a key
        if first >= q1 or k1 == k0:
            continue
        reach = k1 - k0 if window is None else min(window, k1 - k0)
        if not causal or q1 - first == 1:  # one query: its window is all that it sees
            pieces.append(Piece(first, q1, k1 - reach, k1))
        elif shift <= 0 and reach == k1 - k0:
            pieces.append(Piece(first, q1, k0, k1, causal=True))
        else:
            for a in range(first, q1, ROWS):
                b = min(a + ROWS, q1)
                start = max(0, a - q0 + shift - reach + 1)  # the first key that query a sees, counted from k0
                end = b - q0 + shift
                ahead_ts = torch.arange(a - q0 + shift, end)[:, None] - torch.arange(start, end)[None]
                mask_ts = torch.zeros(ahead_ts.shape, dtype=dtype).masked_fill_(
                    (ahead_ts < 0) | (ahead_ts >= reach), float("-inf"))
                pieces.append(Piece(a, b, k0 + start, k0 + end, mask=mask_ts))
    return pieces


def _queries(x_THK: Tensor, piece: Piece, G: int) -> Tensor:
    """The piece's rows as a [G, R, t, K] view."""
    return x_THK[piece.q0:piece.q1].unflatten(1, (G, -1)).permute(1, 2, 0, 3)


def _keys(x_SGK: Tensor, piece: Piece, R: int) -> Tensor:
    """The piece's rows as a [G, R, s, K] view, without copies: the stride along R is 0."""
    return x_SGK[piece.k0:piece.k1].transpose(0, 1)[:, None].expand(-1, R, -1, -1)


def _plain_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in `dtype` with each head's numbers side by side, which the operator needs but does not check."""
    x = x.to(dtype)
    return x if x.stride(-1) == 1 else x.contiguous()


class _Attention(torch.autograd.Function):
    """Forward and backward, piece by piece; half precision in float32, which is faster on most CPUs."""

    @staticmethod
    def forward(ctx: Any, q_THK: Tensor, k_SGK: Tensor, v_SGK: Tensor, pieces: list[Piece],
                scale: float) -> tuple[Tensor, Tensor]:
        T, H, K = q_THK.shape
        G = k_SGK.shape[1]
        wide = torch.promote_types(q_THK.dtype, torch.float32)
        q_wide, k_wide, v_wide = (_plain_rows(x, wide) for x in (q_THK, k_SGK, v_SGK))
        out_THK = q_THK.new_zeros((T, H, K))
        lse_TH = q_THK.new_full((T, H), float("-inf"), dtype=wide)
        for piece in pieces:
            out_GRtK, lse_GRt = torch._scaled_dot_product_flash_attention_for_cpu(
                _queries(q_wide, piece, G), _keys(k_wide, piece, H // G), _keys(v_wide, piece, H // G),
                0.0, piece.causal, attn_mask=piece.mask, scale=scale)
            _queries(out_THK, piece, G).copy_(out_GRtK)
            _queries(lse_TH[..., None], piece, G).copy_(lse_GRt[..., None])
        ctx.save_for_backward(q_THK, k_SGK, v_SGK, out_THK, lse_TH)
        ctx.pieces, ctx.scale, ctx.wide = pieces, scale, wide
        ctx.set_materialize_grads(False)
        return out_THK, lse_TH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse_TH = ctx.saved_tensors  # read once: checkpointing computes them at each reading
        K, dtype = q.shape[2], q.dtype
        q, k, v, out = (_plain_rows(x, ctx.wide) for x in (q, k, v, out))
        d_out = torch.zeros_like(out) if d_out is None else _plain_rows(d_out, ctx.wide)
        if d_lse is not None:
            # The operator computes dS = P (dO·V − dO·O). A further column, 1 in v and dlse in dO, adds dlse
            # to it.
            q, k, out = (pad(x, (0, 1)) for x in (q, k, out))
            v, d_out = pad(v, (0, 1), value=1.0), torch.cat((d_out, d_lse[..., None]), -1)
        G, R = k.shape[1], q.shape[1] // k.shape[1]
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for piece in ctx.pieces:
            dq_GRtK, dk_GRsK, dv_GRsK = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                _queries(d_out, piece, G), _queries(q, piece, G), _keys(k, piece, R), _keys(v, piece, R),
                _queries(out, piece, G), _queries(lse_TH[..., None], piece, G)[..., 0], 0.0, piece.causal,
                attn_mask=piece.mask, scale=ctx.scale)
            _queries(dq, piece, G).copy_(dq_GRtK)
            dk[piece.k0:piece.k1] += dk_GRsK.sum(1).transpose(0, 1)
            dv[piece.k0:piece.k1] += dv_GRsK.sum(1).transpose(0, 1)
        return (*(x[..., :K].to(dtype) for x in (dq, dk, dv)), None, None)


def attention(q_THK: Tensor, k_SGK: Tensor, v_SGK: Tensor, q_offsets: Tensor, k_offsets: Tensor | None = None,
              *, causal: bool = True, window: int | None = None,
              scale: float | None = None) -> tuple[Tensor, Tensor]:
    """As `reference.attention`, without its scores in memory."""
    reference.check_attention(q_THK, k_SGK, v_SGK, q_offsets, k_offsets, causal=causal, window=window,
                              scale=scale)
    q_bounds = q_offsets.tolist()
    k_bounds = q_bounds if k_offsets is None else k_offsets.tolist()
    pieces = _cut(q_bounds, k_bounds, causal, window, torch.promote_types(q_THK.dtype, torch.float32))
    return _Attention.apply(q_THK, k_SGK, v_SGK, pieces, q_THK.shape[2] ** -0.5 if scale is None else scale)


def unusable() -> str:
    """Why torch's flash kernel cannot serve here; "" if a small example and its gradients come out right."""
    with torch.inference_mode(False), torch.enable_grad():
        generator = torch.Generator().manual_seed(0)
        q, k, v, d_out = (torch.randn(shape, generator=generator, requires_grad=True)
                          for shape in ((3, 4, 8), (5, 2, 8), (5, 2, 8), (3, 4, 8)))
        offsets = torch.tensor([0, 3]), torch.tensor([0, 5])
        results = []
        for function in (reference.attention, attention):
            try:
                out, lse = function(q, k, v, *offsets)
                results.append((out, lse, *torch.autograd.grad((out * d_out).sum() + lse.sum(), (q, k, v))))
            except (AttributeError, RuntimeError, TypeError) as error:  # absent or different
                said = str(error).splitlines()[0]
                return f"torch {torch.__version__} lacks the CPU flash kernel that redlite calls ({said})"
    if all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*results, strict=True)):
        return ""
    return f"the CPU flash kernel of torch {torch.__version__} does not compute what redlite needs"
