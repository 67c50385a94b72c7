"""Every operation in plain PyTorch: the definition, and the oracle of the tests.

Shapes: T tokens of all sequences packed end to end, S keys likewise, H query heads, G key/value
heads (H a multiple of G), K the head size, N rows, D hidden width, V vocabulary size, F the MLP's width.
"""
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

ROWS = 256  # rows whose logits and log-probabilities, [ROWS, V] float32, token_nll holds at once


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last axis, the mean in float32 (arXiv 1910.07467)."""
    wide = x_TD.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight_D * wide.to(x_TD.dtype)


def rotary(x_THK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Rotary position embedding of the pairs (x[i], x[i + K/2]) of every head (arXiv 2104.09864).

    The pairs lie as in Hugging Face checkpoints. cos_TK, sin_TK: of each pair's angle, written twice along K,
    in x's dtype. If they are narrower than K, only so many numbers of each head are rotated, the first ones.
    """
    if cos_TK.shape[-1] < x_THK.shape[-1]:
        turned, rest = x_THK.tensor_split([cos_TK.shape[-1]], dim=-1)
        return torch.cat((rotary(turned, cos_TK, sin_TK), rest), dim=-1)
    first, second = x_THK.chunk(2, dim=-1)
    return x_THK * cos_TK[:, None] + torch.cat((-second, first), dim=-1) * sin_TK[:, None]


def _relu2(x: Tensor) -> Tensor:
    return torch.nn.functional.relu(x).square()


# The activations of MLPs: of the gate, whose result multiplies the other half, or of the only matrix.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu,
    "gelu_tanh": partial(torch.nn.functional.gelu, approximate="tanh"), "relu": torch.nn.functional.relu,
    "relu2": _relu2}


def gated(act: str, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """act(gate) · up; with silu SwiGLU (arXiv 2002.05202)."""
    return ACTIVATIONS[act](gate_TF) * up_TF


def softcap(x: Tensor, cap: float) -> Tensor:
    """cap · tanh(x / cap), which keeps x between −cap and cap (Gemma 2, arXiv 2408.00118)."""
    return cap * torch.tanh(x / cap)


def check_attention(q_THK: Tensor, k_SGK: Tensor, v_SGK: Tensor, q_offsets: Tensor, k_offsets: Tensor | None,
                    *, causal: bool, window: int | None, scale: float | None) -> None:
    """Raise ValueError where the arguments of `attention` do not fit together. Values are not read: no GPU
    waits.
    """
    shapes = f"q {tuple(q_THK.shape)}, k {tuple(k_SGK.shape)}, v {tuple(v_SGK.shape)}"
    if not (q_THK.ndim == k_SGK.ndim == 3 and k_SGK.shape == v_SGK.shape and q_THK.shape[2] == k_SGK.shape[2]
            and k_SGK.shape[1] > 0 and q_THK.shape[1] % k_SGK.shape[1] == 0):
        raise ValueError(
            f"attention wants q [T, H, K] and k, v [S, G, K] with H a multiple of G; got {shapes}")
    if not q_THK.dtype == k_SGK.dtype == v_SGK.dtype:
        raise ValueError(
            f"attention wants q, k and v of one dtype; got {q_THK.dtype}, {k_SGK.dtype}, {v_SGK.dtype}")
    if k_offsets is None and len(q_THK) != len(k_SGK):
        raise ValueError(f"attention without k_offsets wants as many keys as queries; got {shapes}")
    if k_offsets is not None and len(q_offsets) != len(k_offsets):
        raise ValueError(
            f"attention wants equally many q_offsets and k_offsets; got {len(q_offsets)} and {len(k_offsets)}"
        )
    if window is not None and (not causal or window < 1):
        raise ValueError(f"attention's window goes with causal=True and is at least 1; got causal={causal}, "
                         f"window={window}")
    if scale is not None and not scale > 0:
        raise ValueError(f"attention's scale is positive; got {scale}")


def attention(q_THK: Tensor, k_SGK: Tensor, v_SGK: Tensor, q_offsets: Tensor, k_offsets: Tensor | None = None,
              *, causal: bool = True, window: int | None = None, scale: float | None = None,
              cap: float | None = None) -> tuple[Tensor, Tensor]:
    """Attention over packed sequences: sequence b has queries q[q_offsets[b]:q_offsets[b+1]], and keys
    likewise.

    Offsets are integers [B + 1] that rise from 0 to T, for keys to S; without k_offsets those of the queries
    serve. The last query of a sequence stands at its last key: a cache holds more keys than there are
    queries.

    causal  a query sees its own key and those before it
    window  it sees only the last `window` of these, its own included
    scale   positive; 1/sqrt(K) by default
    cap     scaled scores become `softcap` of them; None: they stay

    Returns out [T, H, K] in q's dtype, and the log-sum-exp of the scaled scores [T, H], float32. A query that
    sees no key has out 0 and log-sum-exp -inf. Both are differentiable in q, k and v. Float64 inputs are
    computed in float64. Raises ValueError as `check_attention`.
    """
    check_attention(q_THK, k_SGK, v_SGK, q_offsets, k_offsets, causal=causal, window=window, scale=scale)
    H, G, K = q_THK.shape[1], k_SGK.shape[1], q_THK.shape[2]
    k_offsets = q_offsets if k_offsets is None else k_offsets
    scale = K ** -0.5 if scale is None else scale
    wide = torch.promote_types(q_THK.dtype, torch.float32)
    outs, lses = [], []
    q_bounds, k_bounds = q_offsets.tolist(), k_offsets.tolist()
    for q0, q1, k0, k1 in zip(q_bounds, q_bounds[1:], k_bounds, k_bounds[1:], strict=False):
        q_HtK = q_THK[q0:q1].transpose(0, 1).to(wide)
        k_HsK, v_HsK = (x[k0:k1].transpose(0, 1).to(wide).repeat_interleave(H // G, 0)
                        for x in (k_SGK, v_SGK))
        scores_Hts = q_HtK @ k_HsK.transpose(1, 2) * scale
        if cap is not None:
            scores_Hts = softcap(scores_Hts, cap)
        if causal:
            place_t = torch.arange(q1 - q0, device=q_THK.device)[:, None] + (k1 - k0) - (q1 - q0)
            ahead_ts = place_t - torch.arange(k1 - k0, device=q_THK.device)[None]
            hidden_ts = ahead_ts < 0 if window is None else (ahead_ts < 0) | (ahead_ts >= window)
            scores_Hts = scores_Hts.masked_fill(hidden_ts, float("-inf"))
        lse_Ht = torch.logsumexp(scores_Hts, -1) if k1 > k0 else scores_Hts.new_full(
            (H, q1 - q0), float("-inf"))
        p_Hts = torch.exp(scores_Hts - lse_Ht.masked_fill(lse_Ht.isinf(), 0.0)[..., None])
        outs.append((p_Hts @ v_HsK).transpose(0, 1).to(q_THK.dtype))
        lses.append(lse_Ht.transpose(0, 1))
    if not outs:
        return q_THK.clone(), q_THK.to(wide).sum(-1)  # both without rows, but in the graph
    return torch.cat(outs), torch.cat(lses)


def decode_attention(q_BHK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, lengths_B: Tensor,
                     prefix_k_PGK: Tensor | None = None, prefix_v_PGK: Tensor | None = None, *,
                     window: int | None = None, scale: float | None = None,
                     cap: float | None = None) -> Tensor:
    """Attention of one query a request, over a shared prefix and the first lengths[b] keys of its own cache.

    The query stands at the last of its keys. window: it sees only keys less than `window` places before it;
    the prefix comes before the cache. Returns [B, H, K] in q's dtype; scores and sums are float32.
    """
    B, H, K = q_BHK.shape
    G, S = k_BGSK.shape[1:3]
    q_BGRK = (q_BHK.float() * (K ** -0.5 if scale is None else scale)).view(B, G, H // G, K)
    scores_BGRS = q_BGRK @ k_BGSK.float().transpose(-1, -2)
    if cap is not None:
        scores_BGRS = softcap(scores_BGRS, cap)
    place_S = torch.arange(S, device=q_BHK.device)
    hidden_BS = place_S[None] >= lengths_B[:, None]
    if window is not None:
        hidden_BS = hidden_BS | (lengths_B[:, None] - 1 - place_S[None] >= window)
    scores_BGRS = scores_BGRS.masked_fill(hidden_BS[:, None, None], float("-inf"))
    if prefix_k_PGK is None or prefix_v_PGK is None or not len(prefix_k_PGK):
        return (torch.softmax(scores_BGRS, -1) @ v_BGSK.float()).view(B, H, K).to(q_BHK.dtype)
    P = len(prefix_k_PGK)
    q_GbK = q_BGRK.transpose(0, 1).reshape(G, -1,
                                           K)  # all queries of a group, for one product with the prefix
    shared_BGRP = (q_GbK @ prefix_k_PGK.float().permute(1, 2, 0)).view(G, B, H // G, P).transpose(0, 1)
    if cap is not None:
        shared_BGRP = softcap(shared_BGRP, cap)
    if window is not None:
        far_BP = P + lengths_B[:, None] - 1 - torch.arange(P, device=q_BHK.device)[None] >= window
        shared_BGRP = shared_BGRP.masked_fill(far_BP[:, None, None], float("-inf"))
    p_BGRX = torch.softmax(torch.cat((shared_BGRP, scores_BGRS), -1), -1)
    p_GbP = p_BGRX[..., :P].transpose(0, 1).reshape(G, -1, P)
    out_GbK = p_GbP @ prefix_v_PGK.float().transpose(0, 1)
    out_BGRK = out_GbK.view(G, B, H // G, K).transpose(0, 1) + p_BGRX[..., P:] @ v_BGSK.float()
    return out_BGRK.reshape(B, H, K).to(q_BHK.dtype)


def cached_attention(q_BHK: Tensor, k_BGK: Tensor, v_BGK: Tensor, keys_NGSK: Tensor, values_NGSK: Tensor,
                     places_B: Tensor, prefix: tuple[Tensor, Tensor] | None = None, *,
                     window: int | None = None, scale: float | None = None,
                     cap: float | None = None) -> Tensor:
    """A generation step: the new key and value of request b go to places[b] of the cache's row b; its query
    attends.

    keys, values [N ≥ B, G, S, K] are written in place. prefix: keys and values [P, G, K] that come before
    every cache. The attention is `decode_attention`.
    """
    B, rows_B = len(q_BHK), torch.arange(len(q_BHK), device=q_BHK.device)
    places_B = places_B.to(q_BHK.device)
    keys_NGSK[rows_B, :, places_B], values_NGSK[rows_B, :, places_B] = k_BGK, v_BGK
    longest = int(places_B.max()) + 1 if B else 0
    return decode_attention(q_BHK, keys_NGSK[:B, :, :longest], values_NGSK[:B, :, :longest], places_B + 1,
                            *(prefix or (None, None)), window=window, scale=scale, cap=cap)


def merge_attention(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of two disjoint sets of keys, from the results over each of them.

    Arguments and results are outputs [T, H, K] and log-sum-exps [T, H]. Weights and sums are float32, the
    output has the inputs' dtype. A query that sees a key of neither set has output 0 and log-sum-exp -inf.
    """
    neither = torch.isneginf(lse_a) & torch.isneginf(lse_b)  # -inf − -inf would be NaN, in the gradient too
    lse_a, lse_b = torch.where(neither, 0.0, lse_a), torch.where(neither, 0.0, lse_b)
    weight_a = torch.sigmoid(lse_a - lse_b)[..., None]
    out = (weight_a * out_a + (1 - weight_a) * out_b).to(out_a.dtype)
    return out, torch.where(neither, float("-inf"), torch.logaddexp(lse_a, lse_b))


def kept_rows(hidden_ND: Tensor, weight_VD: Any, targets_N: Tensor) -> Tensor:
    """The rows [K] of token_nll whose target is not −100, int64; of the weights only the shape is read.

    Raises ValueError for arguments that do not fit.
    """
    if not (len(hidden_ND.shape) == len(weight_VD.shape) == 2 and hidden_ND.shape[1] == weight_VD.shape[1]
            and targets_N.shape == hidden_ND.shape[:1]):
        shapes = ", ".join(str(tuple(x.shape)) for x in (hidden_ND, weight_VD, targets_N))
        raise ValueError(f"token_nll wants hidden [N, D], weight [V, D], targets [N]; got {shapes}")
    if targets_N.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"token_nll wants integer targets; got {targets_N.dtype}")
    kept_K = (targets_N != -100).nonzero()[:, 0]
    outside = (targets_N[kept_K] < 0) | (targets_N[kept_K] >= weight_VD.shape[0])
    if outside.any():
        raise ValueError(f"token_nll's targets lie in 0 to {weight_VD.shape[0] - 1}, or are -100; got "
                         f"{int(targets_N[kept_K][outside][0])}")
    return kept_K


class _TokenNLL(torch.autograd.Function):
    """NLL of each kept row, in blocks of ROWS. Backward forms coefficient × (p − onehot), again block by
    block.
    """

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        kept = kept_rows(hidden_ND, weight_VD, targets_N)
        nll_N = hidden_ND.new_zeros(len(targets_N), dtype=torch.float32)
        for i in range(0, len(kept), ROWS):
            rows = kept[i:i + ROWS]
            log_p = torch.log_softmax(hidden_ND[rows].float() @ weight_VD.float().T, -1)
            nll_N[rows] = -log_p.gather(1, targets_N[rows, None].long())[:, 0]
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, kept)
        return nll_N

    @staticmethod
    def backward(ctx: Any, coefficient_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, targets_N, kept = ctx.saved_tensors
        kept = kept[coefficient_N[kept] != 0]
        d_hidden = torch.zeros_like(hidden_ND)
        d_weight = torch.zeros_like(weight_VD, dtype=torch.float32)
        for i in range(0, len(kept), ROWS):
            rows = kept[i:i + ROWS]
            block = hidden_ND[rows].float()
            grad = torch.softmax(block @ weight_VD.float().T, -1)  # p
            grad[torch.arange(len(rows)), targets_N[rows]] -= 1.0  # p − onehot
            grad *= coefficient_N[rows, None]                      # coefficient × (p − onehot)
            d_hidden[rows] = (grad @ weight_VD.float()).to(hidden_ND.dtype)
            d_weight += grad.T @ block
        return d_hidden, d_weight.to(weight_VD.dtype), None


def token_nll(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """−log softmax(hidden @ weight.T)[target] of each row, float32 [N]; 0 for rows whose target is −100.

    hidden [N, D] and weight [V, D] are float32, bfloat16 or float16, targets [N] int64. Logits, sums and both
    gradients are computed in float32; a gradient is rounded once, to its input's dtype. The upstream gradient
    is one coefficient a row, of any sign. Rows with target −100 or coefficient 0 cost nothing. Raises
    ValueError as `kept_rows`.
    """
    nll_N: Tensor = _TokenNLL.apply(hidden_ND, weight_VD, targets_N)
    return nll_N


# Numbers that AdamW updates at once. This bounds the float32 temporaries, and on a CPU they stay in cache.
CHUNK = {"cpu": 1 << 18, "cuda": 1 << 26}


@dataclass(frozen=True)
class Update:
    """What a step of AdamW does to every number: its count from 1, and the factors of its formulas.

    scale of the gradient; decay, what the weight is multiplied by.
    """
    count: int
    rate: float
    scale: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    decay: float = 1.0


def write_stochastically(target: Tensor, value: Tensor, generator: torch.Generator) -> None:
    """target (bfloat16) ← value (float32, finite), rounded at random so that its expected value is `value`.

    bfloat16 is the upper half of float32. 16 random bits are added to the lower half, and the carry rounds.
    """
    noise = torch.randint(0, 1 << 16, value.shape, dtype=torch.int32, device=value.device,
                          generator=generator)
    target.copy_((value.view(torch.int32) + noise).bitwise_and_(-(1 << 16)).view(torch.float32))


@torch.no_grad()
def adamw(weight: Tensor, mean: Tensor, square: Tensor, gradient: Tensor, update: Update,
          generator: torch.Generator) -> None:
    """A step of AdamW (arXiv 1711.05101) in place, computed in float32.

    weight, mean and square are contiguous and of one size and dtype, float32 or bfloat16; bfloat16 is written
    back by `write_stochastically`. The gradient has their size, in any dtype.
    """
    (b1, b2), u = update.betas, update
    size = CHUNK[weight.device.type]
    parts = (x.reshape(-1).split(size) for x in (weight, mean, square, gradient))
    for w, m, v, g in zip(*parts, strict=True):
        g = g.float() * u.scale
        # float32 tensors are updated in place: .float() gives the tensor itself.
        wide_m, wide_v, wide_w = m.float(), v.float(), w.float()
        wide_m.lerp_(g, 1 - b1)
        wide_v.mul_(b2).addcmul_(g, g, value=1 - b2)
        bottom = (wide_v / (1 - b2 ** u.count)).sqrt_().add_(u.eps)
        wide_w.mul_(u.decay).addcdiv_(wide_m, bottom, value=-u.rate / (1 - b1 ** u.count))
        for kept, value in ((m, wide_m), (v, wide_v), (w, wide_w)):
            if kept is not value:
                write_stochastically(kept, value, generator)


def square_sum(x: Tensor) -> Tensor:
    """Σ x², float64 []; the squares are added up in float32."""
    return torch.linalg.vector_norm(x, dtype=torch.float32).pow(2).double()
