"""Decoders of the LLaMA kind in plain PyTorch; families.py lists them and what sets each apart.

Shape letters: T tokens of all sequences packed end to end, D model width, H query heads, G key/value heads, K
head size, V vocabulary. Parameter names are those of Hugging Face checkpoints.

Attention goes through one hook. The model computes rotated queries, keys and values of the T tokens and calls
`attend(layer, q_THK, k_TGK, v_TGK) -> out_THK`. Training, scoring and generation differ only in the function
that they pass: `packed_attention` of sequences.py, those of inference/cache.py, anything at all in a test.
"""
import math
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from redlite import kernels
from redlite.model.config import Config
from redlite.model.rotary import rotary_tables
from redlite.model.sequences import Attend

Rotary = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]  # cos and sin [T, R] for queries, for keys
ROWS = 256  # rows of capped logits that training holds at once: [ROWS, V] float32
XIELU_START = {"alpha_p": math.log(math.expm1(0.8)), "alpha_n": math.log(math.expm1(0.3)), "beta": 0.5,
               "eps": -1e-6}


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


class Norm(nn.Module):
    """RMSNorm (arXiv 1910.07467) or LayerNorm with a bias; `kind` as in `families.Family.norm`."""

    def __init__(self, dim: int, eps: float, kind: str):
        super().__init__()
        self.kind, self.eps = kind, eps
        self.weight = nn.Parameter(torch.ones(dim))
        if kind.startswith("layer"):
            self.bias = nn.Parameter(torch.zeros(dim))

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        """The weight that multiplies, and the bias of LayerNorm or None: contiguous, float32."""
        weight = self.weight.detach().float().contiguous()
        weight = weight + 1.0 if self.kind.endswith("+1") else weight
        return weight, self.bias.detach().float().contiguous() if self.kind.startswith("layer") else None

    def forward(self, x_TD: Tensor) -> Tensor:
        if self.kind == "rms":
            return kernels.rms_norm(x_TD, self.weight, self.eps)
        if self.kind == "rms+1":  # in float32 and rounded once, unlike "rms"
            return kernels.rms_norm(x_TD.float(), 1.0 + self.weight.float(), self.eps).to(x_TD.dtype)
        weight = self.weight + 1.0 if self.kind == "layer+1" else self.weight
        return nn.functional.layer_norm(x_TD, weight.shape, weight, self.bias, self.eps)


class Attention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245): H/G query heads share a key/value head.

    Queries and keys may be normalised, each head by itself or all together, before or behind the rotation.
    """

    def __init__(self, c: Config):
        super().__init__()
        self.head_dim, self.qk_norm, self.qk_names = c.head_dim, c.family.qk_norm, c.family.qk_names
        self.q_proj = Linear(c.dim, c.n_heads * c.head_dim, bias=c.qkv_bias)
        self.k_proj = Linear(c.dim, c.n_kv_heads * c.head_dim, bias=c.qkv_bias)
        self.v_proj = Linear(c.dim, c.n_kv_heads * c.head_dim, bias=c.qkv_bias)
        self.o_proj = Linear(c.n_heads * c.head_dim, c.dim, bias=c.o_bias)
        if self.qk_norm:
            for name, heads in zip(self.qk_names, (c.n_heads, c.n_kv_heads), strict=True):
                size = heads * c.head_dim if self.qk_norm == "width" else c.head_dim
                setattr(self, name, Norm(size, c.norm_eps, "rms+1" if c.family.norm == "rms+1" else "rms"))

    @property
    def qk_norms(self) -> tuple[Norm, ...]:
        """The norms of queries and of keys, or ()."""
        return tuple(getattr(self, name) for name in self.qk_names) if self.qk_norm else ()

    def forward(self, x_TD: Tensor, rotary: Rotary, layer: int, attend: Attend) -> Tensor:
        q_THK = self._rotated(self.q_proj(x_TD), 0, rotary)
        k_TGK = self._rotated(self.k_proj(x_TD), 1, rotary)
        v_TGK = self.v_proj(x_TD).unflatten(-1, (-1, self.head_dim))
        return self.o_proj(attend(layer, q_THK, k_TGK, v_TGK).flatten(-2))

    def _rotated(self, x: Tensor, which: int, rotary: Rotary) -> Tensor:
        """Queries (which 0) or keys (1), [T, heads · K], by heads, normalised and rotated."""
        norm = self.qk_norms[which] if self.qk_norm else None
        if norm and self.qk_norm == "width":
            x = norm(x)
        x = x.unflatten(-1, (-1, self.head_dim))
        if norm and self.qk_norm == "head":
            x = norm(x)
        x = kernels.rotary(x, *rotary[which])
        return norm(x) if norm and self.qk_norm == "late" else x


class XIELU(nn.Module):
    """Apertus's activation (arXiv 2411.13010).

    With p = softplus(alpha_p) and n = beta + softplus(alpha_n): p·x² + beta·x above 0, and below it
    n·(e^min(x, eps) − 1 − x) + beta·x.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alpha_p, self.alpha_n = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
        self.beta = nn.Parameter(torch.tensor(0.5), requires_grad=False)
        self.eps = nn.Parameter(torch.tensor(-1e-6), requires_grad=False)

    def numbers(self) -> tuple[float, ...]:
        """p, n, beta and eps."""
        p, n = (float(nn.functional.softplus(alpha.detach())) for alpha in (self.alpha_p, self.alpha_n))
        return p, float(self.beta) + n, float(self.beta), float(self.eps)

    def forward(self, x: Tensor) -> Tensor:
        p = nn.functional.softplus(self.alpha_p)
        n = self.beta + nn.functional.softplus(self.alpha_n)
        below = (torch.expm1(torch.min(x, self.eps)) - x) * n
        return torch.where(x > 0, p * x * x, below) + self.beta * x


class MLP(nn.Module):
    """down(act(gate(x)) · up(x)), with silu SwiGLU (arXiv 2002.05202); without a gate down(act(up(x)))."""

    def __init__(self, c: Config):
        super().__init__()
        self.names, self.act = c.family.mlp, c.act
        gate, up, down = self.names
        if gate:
            setattr(self, gate, Linear(c.dim, c.ffn_dim, bias=c.mlp_bias))
        setattr(self, up, Linear(c.dim, c.ffn_dim, bias=c.mlp_bias))
        setattr(self, down, Linear(c.ffn_dim, c.dim, bias=c.mlp_bias))
        if self.act == "xielu":
            self.act_fn = XIELU()

    def matrix(self, place: int) -> Linear:
        """Gate, up or down: 0, 1 or 2."""
        return getattr(self, self.names[place])

    def forward(self, x_TD: Tensor) -> Tensor:
        up_TF = self.matrix(1)(x_TD)
        if self.act == "xielu":
            return self.matrix(2)(self.act_fn(up_TF))
        if not self.names[0]:
            return self.matrix(2)(kernels.ACTIVATIONS[self.act](up_TF))
        gate_TF = self.matrix(0)(x_TD)
        return self.matrix(2)(kernels.gated(self.act, gate_TF, up_TF))


class Block(nn.Module):
    """One layer: attention, then MLP, each added to the residual stream.

    Norms stand before or behind them, or both, as the family has it.
    """

    def __init__(self, c: Config):
        super().__init__()
        self.norms, self.residual_scale = c.family.norms, c.residual_scale
        self.norm_eps, self.rotated = c.norm_eps, c.rotated
        for name in self.norms:
            if name:
                setattr(self, name, Norm(c.dim, c.norm_eps, c.family.norm))
        self.self_attn = Attention(c)
        self.mlp = MLP(c)
        self.packed: kernels.PackedBlock | None = None

    def pack(self) -> None:
        """Run in C from now on: the same arithmetic in two calls, before and after the attention.

        All matrices must be `kernels.PackedMatrix`. Nothing changes where C lacks the activation.
        """
        def pair(linear: Linear) -> tuple[Any, Tensor | None]:
            return linear.weight, linear.bias

        a, m = self.self_attn, self.mlp
        if m.act not in kernels.PACKED_ACTIVATIONS:
            return
        norms = [getattr(self, name) if name else None for name in self.norms]
        rest = [a.o_proj, *(m.matrix(place) for place, name in enumerate(m.names) if name)]
        self.packed = kernels.PackedBlock(
            tuple(norm and norm.tensors() for norm in norms), self.norm_eps, a.head_dim,
            (pair(a.q_proj), pair(a.k_proj), pair(a.v_proj)), tuple(map(pair, rest)), rotated=self.rotated,
            act=m.act, residual=self.residual_scale, qk_norm=a.qk_norm,
            qk_norms=tuple(norm.tensors()[0] for norm in a.qk_norms),
            xielu=m.act_fn.numbers() if m.act == "xielu" else ())

    def forward(self, x_TD: Tensor, rotary: Rotary, layer: int, attend: Attend) -> Tensor:
        if self.packed:
            q_THK, k_TGK, v_TGK = self.packed.before_attention(x_TD, rotary)
            return self.packed.after_attention(x_TD, attend(layer, q_THK, k_TGK, v_TGK))
        x_TD = self._added(x_TD, self._norm(1, self.self_attn(self._norm(0, x_TD), rotary, layer, attend)))
        return self._added(x_TD, self._norm(3, self.mlp(self._norm(2, x_TD))))

    def _norm(self, place: int, x_TD: Tensor) -> Tensor:
        return getattr(self, self.norms[place])(x_TD) if self.norms[place] else x_TD

    def _added(self, x_TD: Tensor, more_TD: Tensor) -> Tensor:
        return x_TD + (more_TD if self.residual_scale == 1 else more_TD * self.residual_scale)


class Trunk(nn.Module):
    """Everything up to the final norm. It is a module of its own because checkpoints name it `model.`"""

    def __init__(self, c: Config):
        super().__init__()
        self.embed_tokens = Embedding(c.vocab_size, c.dim)
        self.layers = nn.ModuleList(Block(c) for _ in range(c.n_layers))
        self.norm = Norm(c.dim, c.norm_eps, c.family.norm)


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

    def untie(self) -> None:
        """Give the model an output matrix of its own, whose weights are not set yet."""
        embedding = self.model.embed_tokens.weight
        self.config = replace(self.config, tied=False)
        with torch.device(embedding.device):
            self.lm_head = Linear(self.config.dim, self.config.vocab_size, bias=False)

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

        It is the weights' own, but float16 for quantised weights on CPUs: their products round
        activations far more than float16 does.
        """
        packed = {block.packed.kept for block in self.blocks if block.packed}
        return next((kept for kept in (torch.float16, torch.bfloat16) if kept in packed),
                    self.output_weight.dtype)

    def forward(self, ids_T: Tensor, positions_T: Tensor, attend: Attend,
                lengths_T: Tensor | None = None) -> Tensor:
        """Hidden states [T, D] after the final norm, in the weights' dtype.

        ids_T        int64, the tokens
        positions_T  int64, each token's place in its own sequence, from 0
        attend       the attention; see the module's docstring
        lengths_T    int64, the length so far of each token's sequence. Only dynamic rotary scaling reads it;
                     None: position + 1
        """
        x_TD = self.embed(ids_T)
        rotary = rotary_tables(self.config, positions_T, lengths_T, x_TD.dtype)
        for i, (block, kind) in enumerate(zip(self.blocks, self.config.rope_kinds, strict=True)):
            if self.recompute and torch.is_grad_enabled():
                x_TD = checkpoint(block, x_TD, rotary[kind], i, attend, use_reentrant=False)
            else:
                x_TD = block(x_TD, rotary[kind], i, attend)
        return self.final(x_TD)

    def embed(self, ids_T: Tensor) -> Tensor:
        """The input [T, D] of the first layer."""
        x_TD, scale = self.model.embed_tokens(ids_T), self.config.embedding_scale
        # The scale has the weights' precision, as in transformers.
        return x_TD if scale == 1 else x_TD * x_TD.new_tensor(scale)

    def final(self, x_TD: Tensor) -> Tensor:
        """Hidden states of the last layer's output [T, D]: its norm, times the multiplier of the logits."""
        hidden_TD, scale = self.model.norm(x_TD), self.config.logit_scale
        return hidden_TD if scale == 1 else hidden_TD * scale

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """[T, V] float32 logits of hidden states [T, D]."""
        logits_TV, cap = kernels.linear(hidden_TD, self.output_weight).float(), self.config.logit_cap
        return logits_TV if cap is None else kernels.softcap(logits_TV, cap)

    def token_nll(self, hidden_TD: Tensor, targets_T: Tensor) -> Tensor:
        """−log p(target) of each hidden state, float32 [T]; 0 for target −100. See `kernels.token_nll`."""
        if self.config.logit_cap is None:
            return kernels.token_nll(hidden_TD, self.output_weight, targets_T)
        # With a cap the logits are made and kept a few rows at a time, and again in the backward pass.
        parts = [checkpoint(self._capped_nll, hidden_TD[i:i + ROWS], targets_T[i:i + ROWS],
                            use_reentrant=False) for i in range(0, len(targets_T), ROWS)]
        return torch.cat(parts) if parts else hidden_TD.sum(-1).float()

    def _capped_nll(self, hidden_TD: Tensor, targets_T: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.logits(hidden_TD), targets_T.long(), reduction="none")

    @torch.no_grad()
    def initialize(self, seed: int, std: float = 0.02) -> "LLaMA":
        """Draw fresh weights, in place; returns the model itself.

        Matrices are normal(0, std); those that write to the residual stream are scaled by 1/√(2·layers), as
        in GPT-2. Biases are 0, norms 1.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if "norm" in name:
                plain = name.endswith("weight") and "+1" not in self.config.family.norm
                parameter.fill_(1.0 if plain else 0.0)
            elif ".act_fn." in name:  # p = n = 0.8, as the paper begins
                parameter.copy_(torch.tensor(XIELU_START[name.rpartition(".")[2]]).expand(parameter.shape))
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                deep = name.endswith(("o_proj.weight", f"{self.config.family.mlp[2]}.weight"))
                scale = std / math.sqrt(2 * self.config.n_layers) if deep else std
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, scale, generator=generator))
        return self
