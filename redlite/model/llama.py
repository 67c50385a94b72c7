"""The LLaMA family in plain PyTorch: LLaMA 1 to 3, Vicuna, StableBeluga, Starling, SmolLM2, Mistral, Qwen2.

Shape letters: T tokens of all sequences packed end to end, D model width, H query heads, G key/value
heads, K head size, F width of the MLP, V vocabulary. Parameter names are those of Hugging Face checkpoints.

Attention goes through one hook: the model computes rotated queries, keys and values of the T tokens and
calls `attend(layer, q_THK, k_TGK, v_TGK) -> out_THK`. Training, scoring and generation differ only in
the closure that they pass (`packed_attention` here; caches in cache.py; anything at all in a test).
"""
import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from redlite import kernels
from redlite.model.config import Config
from redlite.model.sequences import Attend


class Linear(nn.Linear):
    """x @ weight.T + bias, uninitialised; for inference the weight may be a matrix that `kernels.pack` made."""

    def reset_parameters(self) -> None:
        """Nothing: weights are loaded, or drawn by `LLaMA.initialize`; torch's own draw on the meta device imports its compiler, seconds long."""

    def forward(self, x_TD: Tensor) -> Tensor:
        return kernels.linear(x_TD, self.weight, self.bias)


class Embedding(nn.Embedding):
    """Rows of the weight matrix, which may be packed like that of `Linear`, and is uninitialised like it."""

    def reset_parameters(self) -> None:
        """Nothing; see `Linear`."""

    def forward(self, ids_T: Tensor) -> Tensor:
        return kernels.embedding(ids_T, self.weight)


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x_TD: Tensor) -> Tensor:
        return kernels.rms_norm(x_TD, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.head_dim = c.head_dim
        self.q_proj = Linear(c.dim, c.n_heads * c.head_dim, bias=c.qkv_bias)
        self.k_proj = Linear(c.dim, c.n_kv_heads * c.head_dim, bias=c.qkv_bias)
        self.v_proj = Linear(c.dim, c.n_kv_heads * c.head_dim, bias=c.qkv_bias)
        self.o_proj = Linear(c.n_heads * c.head_dim, c.dim, bias=c.o_bias)

    def forward(self, x_TD: Tensor, cos_TK: Tensor, sin_TK: Tensor, layer: int, attend: Attend) -> Tensor:
        q_THK, k_TGK, v_TGK = (proj(x_TD).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q_THK, k_TGK = kernels.rotary(q_THK, cos_TK, sin_TK), kernels.rotary(k_TGK, cos_TK, sin_TK)
        return self.o_proj(attend(layer, q_THK, k_TGK, v_TGK).flatten(-2))


class MLP(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.gate_proj = Linear(c.dim, c.ffn_dim, bias=c.mlp_bias)
        self.up_proj = Linear(c.dim, c.ffn_dim, bias=c.mlp_bias)
        self.down_proj = Linear(c.ffn_dim, c.dim, bias=c.mlp_bias)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.down_proj(kernels.swiglu(self.gate_proj(x_TD), self.up_proj(x_TD)))


class Block(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.input_layernorm = RMSNorm(c.dim, c.norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c.dim, c.norm_eps)
        self.mlp = MLP(c)
        self.packed: kernels.PackedBlock | None = None

    def pack(self) -> None:
        """Run in C from now on, all matrices being `kernels.PackedMatrix`: the same arithmetic in two calls around the attention."""
        a, m = self.self_attn, self.mlp
        pair = (lambda linear: (linear.weight, linear.bias))
        self.packed = kernels.PackedBlock((self.input_layernorm.weight, self.post_attention_layernorm.weight), self.input_layernorm.eps, a.head_dim,
                                          (pair(a.q_proj), pair(a.k_proj), pair(a.v_proj)), (pair(a.o_proj), pair(m.gate_proj), pair(m.up_proj), pair(m.down_proj)))

    def forward(self, x_TD: Tensor, cos_TK: Tensor, sin_TK: Tensor, layer: int, attend: Attend) -> Tensor:
        if self.packed:
            return self.packed.after_attention(x_TD, attend(layer, *self.packed.before_attention(x_TD, cos_TK, sin_TK)))
        x_TD = x_TD + self.self_attn(self.input_layernorm(x_TD), cos_TK, sin_TK, layer, attend)
        return x_TD + self.mlp(self.post_attention_layernorm(x_TD))


class Trunk(nn.Module):
    """Everything up to the final norm; a module of its own because checkpoints name it `model.`"""

    def __init__(self, c: Config):
        super().__init__()
        self.embed_tokens = Embedding(c.vocab_size, c.dim)
        self.layers = nn.ModuleList(Block(c) for _ in range(c.n_layers))
        self.norm = RMSNorm(c.dim, c.norm_eps)


class LLaMA(nn.Module):
    """A decoder of the LLaMA family (arXiv 2302.13971) as its `Config` says.

    With a tied output there is no `lm_head`; `output_weight` is the embedding then.
    `recompute` (off by default) makes training keep only each layer's input and recompute the rest.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config, self.recompute = config, False
        self.model = Trunk(config)
        if not config.tied:
            self.lm_head = Linear(config.dim, config.vocab_size, bias=False)

    @property
    def output_weight(self) -> Tensor:
        """The [V, D] matrix whose product with the hidden state gives the logits."""
        return self.model.embed_tokens.weight if self.config.tied else self.lm_head.weight

    @property
    def cache_dtype(self) -> torch.dtype:
        """Of the keys and values that generation keeps: the weights' own, but float16 on CPUs for int8 and int4 weights, whose activations are rounded far more."""
        quantised = any(block.packed and block.packed.quantised for block in self.model.layers)
        return torch.float16 if quantised else self.output_weight.dtype

    def forward(self, ids_T: Tensor, positions_T: Tensor, attend: Attend, lengths_T: Tensor | None = None) -> Tensor:
        """Hidden states [T, D] after the final norm, in the weights' dtype.

        ids_T, positions_T: int64, the token and its place in its own sequence (from 0).
        lengths_T: the length so far of each token's sequence; only dynamic rotary scaling reads it, and
        takes position + 1 without it.
        """
        x_TD = self.model.embed_tokens(ids_T)
        cos_TK, sin_TK = rotary_table(self.config, positions_T, lengths_T, x_TD.dtype)
        for i, block in enumerate(self.model.layers):
            if self.recompute and torch.is_grad_enabled():
                x_TD = checkpoint(block, x_TD, cos_TK, sin_TK, i, attend, use_reentrant=False)
            else:
                x_TD = block(x_TD, cos_TK, sin_TK, i, attend)
        return self.model.norm(x_TD)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """[T, V] float32 logits of hidden states [T, D]."""
        return kernels.linear(hidden_TD, self.output_weight).float()

    @torch.no_grad()
    def initialize(self, seed: int, std: float = 0.02) -> "LLaMA":
        """Fresh weights: normal(0, std) matrices, the ones that write to the residual stream scaled by 1/√(2·layers); biases 0, norms 1."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1.0)
            else:
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = std / math.sqrt(2 * self.config.n_layers) if deep else std
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, scale, generator=generator))
        return self


def rotary_table(config: Config, positions_T: Tensor, lengths_T: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [T, K] of each token's rotary angles, written twice along K, computed in float32.

    Default: angle_i = position · θ^(−2i/K) (arXiv 2104.09864). `linear` divides positions by the factor;
    `dynamic` raises θ with the sequence's length once it passes the trained context (NTK-aware); `llama3`
    divides low frequencies by the factor and blends between (Llama 3.1's reference code).
    """
    K, scaling = config.head_dim, config.rope_scaling or {}
    kind, exponent = scaling.get("rope_type", "default"), torch.arange(0, K, 2, device=positions_T.device).float() / K
    positions = positions_T.float()[:, None]
    if kind == "dynamic":
        trained = config.max_positions
        length = (positions_T + 1 if lengths_T is None else lengths_T).clamp(min=trained).float()[:, None]
        theta = config.rope_theta * ((scaling["factor"] * length / trained) - (scaling["factor"] - 1)) ** (K / (K - 2))
        frequency = 1.0 / theta ** exponent                                   # [T, K/2]: each sequence has its own
    else:
        frequency = 1.0 / config.rope_theta ** exponent                       # [K/2]
        if kind == "linear":
            frequency = frequency / scaling["factor"]
        elif kind == "llama3":
            turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)  # full turns over the trained context
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            keep = ((turns - low) / (high - low)).clamp(0, 1)                 # 1: a fast pair, kept as it is; 0: a slow one, stretched
            frequency = frequency * (keep + (1 - keep) / scaling["factor"])
    angle_TK = (positions * frequency).repeat(1, 2)
    return angle_TK.cos().to(dtype), angle_TK.sin().to(dtype)
