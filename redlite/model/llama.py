"""The LLaMA family in plain PyTorch: LLaMA 1 to 3, Vicuna, StableBeluga, Starling, SmolLM2, Mistral, Qwen2.

Shape letters: T tokens of all sequences packed end to end, D model width, H query heads, G key/value heads, K
head size, V vocabulary. Parameter names are those of Hugging Face checkpoints.

Attention goes through one hook. The model computes rotated queries, keys and values of the T tokens and calls
`attend(layer, q_THK, k_TGK, v_TGK) -> out_THK`. Training, scoring and generation differ only in the function
that they pass: `packed_attention` of sequences.py, those of inference/cache.py, anything at all in a test.
"""
import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from redlite import kernels
from redlite.model.config import Config
from redlite.model.sequences import Attend


class Linear(nn.Linear):
    """x @ weight.T + bias. For inference the weight may be a matrix that `kernels.pack` made."""

    def reset_parameters(self) -> None:
        """Leave the weights as they are: they are loaded, or drawn by `LLaMA.initialize`.

        (torch's own draw on the meta device imports its compiler, which takes seconds.)
        """

    def forward(self, x_TD: Tensor) -> Tensor:
        return kernels.linear(x_TD, self.weight, self.bias)


class Embedding(nn.Embedding):
    """Rows of the weight matrix, which may be packed like that of `Linear`."""

    def reset_parameters(self) -> None:
        """Leave the weights as they are; see `Linear`."""

    def forward(self, ids_T: Tensor) -> Tensor:
        return kernels.embedding(ids_T, self.weight)


class RMSNorm(nn.Module):
    """x / √(mean(x²) + eps) · weight (arXiv 1910.07467)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x_TD: Tensor) -> Tensor:
        return kernels.rms_norm(x_TD, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245): H/G query heads share a key/value head."""

    def __init__(self, c: Config):
        super().__init__()
        self.head_dim = c.head_dim
        self.q_proj = Linear(c.dim, c.n_heads * c.head_dim, bias=c.qkv_bias)
        self.k_proj = Linear(c.dim, c.n_kv_heads * c.head_dim, bias=c.qkv_bias)
        self.v_proj = Linear(c.dim, c.n_kv_heads * c.head_dim, bias=c.qkv_bias)
        self.o_proj = Linear(c.n_heads * c.head_dim, c.dim, bias=c.o_bias)

    def forward(self, x_TD: Tensor, cos_TK: Tensor, sin_TK: Tensor, layer: int, attend: Attend) -> Tensor:
        q_THK = self.q_proj(x_TD).unflatten(-1, (-1, self.head_dim))
        k_TGK = self.k_proj(x_TD).unflatten(-1, (-1, self.head_dim))
        v_TGK = self.v_proj(x_TD).unflatten(-1, (-1, self.head_dim))
        q_THK, k_TGK = kernels.rotary(q_THK, cos_TK, sin_TK), kernels.rotary(k_TGK, cos_TK, sin_TK)
        return self.o_proj(attend(layer, q_THK, k_TGK, v_TGK).flatten(-2))


class MLP(nn.Module):
    """down(silu(gate(x)) · up(x)): SwiGLU (arXiv 2002.05202)."""

    def __init__(self, c: Config):
        super().__init__()
        self.gate_proj = Linear(c.dim, c.ffn_dim, bias=c.mlp_bias)
        self.up_proj = Linear(c.dim, c.ffn_dim, bias=c.mlp_bias)
        self.down_proj = Linear(c.ffn_dim, c.dim, bias=c.mlp_bias)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.down_proj(kernels.swiglu(self.gate_proj(x_TD), self.up_proj(x_TD)))


class Block(nn.Module):
    """One layer: attention, then MLP, each on normalised input and added to the residual stream."""

    def __init__(self, c: Config):
        super().__init__()
        self.input_layernorm = RMSNorm(c.dim, c.norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c.dim, c.norm_eps)
        self.mlp = MLP(c)
        self.packed: kernels.PackedBlock | None = None

    def pack(self) -> None:
        """Run in C from now on: the same arithmetic in two calls, before and after the attention.

        All matrices must be `kernels.PackedMatrix`.
        """
        def pair(linear: Linear) -> tuple[Any, Tensor | None]:
            return linear.weight, linear.bias

        a, m = self.self_attn, self.mlp
        self.packed = kernels.PackedBlock(
            (self.input_layernorm.weight, self.post_attention_layernorm.weight), self.input_layernorm.eps,
            a.head_dim,
            (pair(a.q_proj), pair(a.k_proj), pair(a.v_proj)),
            (pair(a.o_proj), pair(m.gate_proj), pair(m.up_proj), pair(m.down_proj)))

    def forward(self, x_TD: Tensor, cos_TK: Tensor, sin_TK: Tensor, layer: int, attend: Attend) -> Tensor:
        if self.packed:
            q_THK, k_TGK, v_TGK = self.packed.before_attention(x_TD, cos_TK, sin_TK)
            return self.packed.after_attention(x_TD, attend(layer, q_THK, k_TGK, v_TGK))
        x_TD = x_TD + self.self_attn(self.input_layernorm(x_TD), cos_TK, sin_TK, layer, attend)
        return x_TD + self.mlp(self.post_attention_layernorm(x_TD))


class Trunk(nn.Module):
    """Everything up to the final norm. It is a module of its own because checkpoints name it `model.`"""

    def __init__(self, c: Config):
        super().__init__()
        self.embed_tokens = Embedding(c.vocab_size, c.dim)
        self.layers = nn.ModuleList(Block(c) for _ in range(c.n_layers))
        self.norm = RMSNorm(c.dim, c.norm_eps)


class LLaMA(nn.Module):
    """A decoder of the LLaMA family (arXiv 2302.13971) as its `Config` says.

    With a tied output there is no `lm_head`; `output_weight` is the embedding then.
    `recompute` (off by default) makes training keep only each layer's input and compute the rest again.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config, self.recompute = config, False
        self.model = Trunk(config)
        if not config.tied:
            self.lm_head = Linear(config.dim, config.vocab_size, bias=False)

    @property
    def blocks(self) -> list[Block]:
        """The layers, first to last."""
        return cast(list[Block], list(self.model.layers))

    @property
    def output_weight(self) -> Tensor:
        """The [V, D] matrix whose product with the hidden state gives the logits."""
        return self.model.embed_tokens.weight if self.config.tied else self.lm_head.weight

    @property
    def cache_dtype(self) -> torch.dtype:
        """The dtype of the keys and values that generation keeps.

        It is the weights' own, but float16 for int8 and int4 weights on CPUs: their products round
        activations far more than float16 does.
        """
        quantised = any(block.packed and block.packed.quantised for block in self.blocks)
        return torch.float16 if quantised else self.output_weight.dtype

    def forward(self, ids_T: Tensor, positions_T: Tensor, attend: Attend,
                lengths_T: Tensor | None = None) -> Tensor:
        """Hidden states [T, D] after the final norm, in the weights' dtype.

        ids_T        int64, the tokens
        positions_T  int64, each token's place in its own sequence, from 0
        attend       the attention; see the module's docstring
        lengths_T    int64, the length so far of each token's sequence. Only dynamic rotary scaling reads it;
                     None: position + 1
        """
        x_TD = self.model.embed_tokens(ids_T)
        cos_TK, sin_TK = rotary_table(self.config, positions_T, lengths_T, x_TD.dtype)
        for i, block in enumerate(self.blocks):
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
        """Draw fresh weights, in place; returns the model itself.

        Matrices are normal(0, std); those that write to the residual stream are scaled by 1/√(2·layers), as
        in GPT-2. Biases are 0, norms 1.
        """
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


def rotary_table(config: Config, positions_T: Tensor, lengths_T: Tensor | None,
                 dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [T, K] of each token's rotary angles, written twice along K, computed in float32.

    Default: angle_i = position · θ^(−2i/K) (arXiv 2104.09864). `linear` divides positions by the factor.
    `dynamic` raises θ with the sequence's length once it passes the trained context (NTK-aware).
    `llama3` divides low frequencies by the factor and blends between (Llama 3.1's reference code).
    """
    K, scaling = config.head_dim, config.rope_scaling or {}
    kind = scaling.get("rope_type", "default")
    exponent = torch.arange(0, K, 2, device=positions_T.device).float() / K
    if kind == "dynamic":
        trained = config.max_positions
        length_T = (positions_T + 1 if lengths_T is None else lengths_T).clamp(min=trained).float()[:, None]
        growth_T = scaling["factor"] * length_T / trained - (scaling["factor"] - 1)
        theta_T = config.rope_theta * growth_T ** (K / (K - 2))
        frequency = 1.0 / theta_T ** exponent            # [T, K/2]: each sequence has its own
    else:
        frequency = 1.0 / config.rope_theta ** exponent  # [K/2]: the same for all
    if kind == "linear":
        frequency = frequency / scaling["factor"]
    elif kind == "llama3":
        # Pairs that turn often over the trained context keep their frequency; slow ones are stretched.
        turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        frequency = frequency * (keep + (1 - keep) / scaling["factor"])
    angle_TK = (positions_T.float()[:, None] * frequency).repeat(1, 2)
    return angle_TK.cos().to(dtype), angle_TK.sin().to(dtype)
