"""A GGUF file of llama.cpp as a LLaMA: its metadata as a `Config`, its tensors' names and row orders.

Source: github.com/ggml-org/llama.cpp, src/llama-arch.cpp (names and keys) and convert_hf_to_gguf.py (what it
did to the weights). Only what reads the weights themselves imports torch.
"""
from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from redlite.errors import Error
from redlite.model.config import Config
from redlite.model.families import FAMILIES
from redlite.model.rope import TRAINED
from redlite.store.text import short
from redlite.weights.gguf import GGUF

if TYPE_CHECKING:
    from torch import Tensor

    from redlite.weights.hf_files import Stored

# llama.cpp's names of the families that are read, with ours; Mistral's models are "llama".
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "granite": "granite",
                 "smollm3": "smollm3", "olmo2": "olmo2", "phi3": "phi3", "gemma": "gemma", "gemma2": "gemma2",
                 "gemma3": "gemma3_text"}
# Those whose rows of Q and K were put in llama.cpp's other order; see row_order.
PAIRED = ("llama", "granite", "smollm3")
EMBEDDING, ROPE = "token_embd.weight", "rope_freqs.weight"
NAMES = {EMBEDDING: "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
         "output.weight": "lm_head.weight"}
PARTS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
         "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
         "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
         "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
AFTER = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
# Where a family's parts are not those of PARTS.
OTHER_PARTS = {
    "olmo2": AFTER, "gemma2": AFTER | {"ffn_norm": "pre_feedforward_layernorm"},
    "gemma3": AFTER | {"ffn_norm": "pre_feedforward_layernorm"},
    "phi3": {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
}
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
# Metadata keys of an architecture that config_of reads, and those that change nothing.
READ = {"block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
        "attention.head_count_kv", "attention.key_length", "attention.value_length",
        "attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.dimension_count", "rope.scaling.type",
        "rope.scaling.factor", "rope.scale_linear", "rope.scaling.original_context_length", "vocab_size"}
HARMLESS = {"tensor_data_layout", "rope.scaling.finetuned"}
OWN_KEYS = {
    "granite": {"attention.scale", "embedding_scale", "residual_scale", "logit_scale"},
    "phi3": {"attention.sliding_window", "rope.scaling.attn_factor"},
    "gemma2": {"attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping"},
    "gemma3": {"attention.sliding_window", "final_logit_softcapping", "rope.freq_base_swa"},
}
# Gemma's largest models scale scores by the width over the heads; llama.cpp knows them by their layers.
GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}
DAMAGED = "the file is damaged, fetch it again"


# ---- tensors ----

class LessOne(NamedTuple):
    """A stored tensor less 1 in every number."""
    stored: Stored

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def where(self) -> str:
        return self.stored.where

    def fill(self, out: Tensor) -> None:
        import torch

        from redlite.weights.hf_files import check_finite
        exact = torch.empty(self.shape)
        self.stored.fill(exact)
        out.copy_(exact - 1.0)  # rounded once, behind the subtraction
        check_finite(out, self.where)


def tensors(source: GGUF, config: Config) -> dict[str, Stored]:
    """name → tensor, under the names of our parameters; a tensor that is none of them keeps its own name."""
    from redlite.weights.gguf_formats import place_in
    stored: dict[str, Stored] = {}
    architecture = source.metadata["general.architecture"]
    for tensor, name in names(source).items():
        place = place_in(source, tensor, row_order(config, architecture, name))
        # The converter has added 1 to the weights of Gemma's norms.
        folded = config.family.norm == "rms+1" and name != tensor and name.endswith("norm.weight")
        stored[name] = LessOne(place) if folded else place
    return stored


def names(source: GGUF) -> dict[str, str]:
    """tensor → our parameter, or the tensor's own name where it is none.

    Factors of the rotary frequencies are left out: config_of has read them.
    """
    architecture = source.metadata["general.architecture"]
    return {name: hf_name(name, architecture) or name for name in source.tensors
            if name not in (ROPE, LONG, SHORT)}


def hf_name(name: str, architecture: str = "llama") -> str | None:
    """The parameter that a GGUF tensor is, or None."""
    parts = PARTS | OTHER_PARTS.get(architecture, {})
    if name in NAMES:
        return NAMES[name]
    match = re.fullmatch(r"blk\.(0|[1-9][0-9]{0,5})\.([a-z_]+)\.(weight|bias)", name)
    if match is None or match[2] not in parts:
        return None
    return f"model.layers.{match[1]}.{parts[match[2]]}.{match[3]}"


def row_order(config: Config, architecture: str, name: str) -> np.ndarray | None:
    """For each row of the parameter `name`, its row in the GGUF tensor, int64; None: the same order.

    llama.cpp stores Q and K of the PAIRED architectures for rotary embedding of neighbouring pairs. So rows
    2i and 2i + 1 of a head are our rows i and i + K/2. Whole rows move, so this holds for quantised blocks as
    well.
    """
    match = re.search(r"self_attn\.([qk])_proj\.", name)
    if architecture not in PAIRED or not match:
        return None
    heads = config.n_heads if match[1] == "q" else config.n_kv_heads
    rows = np.arange(heads * config.head_dim).reshape(heads, config.head_dim // 2, 2)
    return rows.swapaxes(1, 2).reshape(-1)


# ---- the configuration ----

class _Metadata:
    """The metadata of one architecture, each value checked for its type."""

    def __init__(self, source: GGUF, architecture: str):
        self.path, self.values, self.architecture = source.path, source.metadata, architecture

    def get(self, name: str, wanted: type, default: Any = None) -> Any:
        """The value of a key. Raises Error if it is of another type, or missing without a default."""
        value = self.values.get(f"{self.architecture}.{name}", default)
        if type(value) is not wanted:
            found = "missing" if value is None else short(value)
            raise Error(f"{self.path}: metadata {self.architecture}.{name} is {found}; "
                        f"a single number of type {wanted.__name__} is needed")
        return value

    def refuse_unknown(self) -> None:
        """Raises Error for a key that might change the result."""
        for key, value in self.values.items():
            name = key.removeprefix(self.architecture + ".")
            off = type(value) in (int, bool) and not value
            known = READ | HARMLESS | OWN_KEYS.get(self.architecture, set())
            if name != key and name not in known and not off:
                raise Error(f"{self.path}: metadata {short(key)} is not known to redlite and might change "
                            "the result")


def config_of(source: GGUF) -> tuple[Config, dict]:
    """(Config, the config.json it amounts to) of a GGUF file.

    Raises Error for a model that redlite does not run.
    """
    path, values = source.path, source.metadata
    kind = values.get("general.architecture")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise Error(f"{path}: metadata general.architecture is {short(kind)}; "
                    f"redlite runs GGUF files of {', '.join(ARCHITECTURES)}")
    metadata, family = _Metadata(source, kind), FAMILIES[ARCHITECTURES[kind]]
    metadata.refuse_unknown()
    get = metadata.get
    heads, dim = get("attention.head_count", int), get("embedding_length", int)
    vocab_size = _vocab_size(source)
    if get("vocab_size", int, vocab_size) != vocab_size:
        raise Error(
            f"{path}: metadata {kind}.vocab_size is {get('vocab_size', int)} and tensor {EMBEDDING!r} "
            f"has {vocab_size} rows; {DAMAGED}"
        )
    head_dim = get("attention.key_length", int, dim // heads if heads > 0 and dim % heads == 0 else 0)
    for key in ("attention.value_length", *(() if kind == "phi3" else ("rope.dimension_count",))):
        if get(key, int, head_dim) != head_dim:
            raise Error(f"{path}: metadata {kind}.{key} is {get(key, int)}, not the head size {head_dim}; "
                        "redlite does not run such models")
    ends = [values.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    raw = {
        "model_type": ARCHITECTURES[kind], "vocab_size": vocab_size, "hidden_size": dim,
        "intermediate_size": get("feed_forward_length", int), "num_hidden_layers": get("block_count", int),
        "num_attention_heads": heads, "num_key_value_heads": get("attention.head_count_kv", int, heads),
        "head_dim": head_dim, "rms_norm_eps": _shortest(get("attention.layer_norm_rms_epsilon", float)),
        "rope_theta": _shortest(get("rope.freq_base", float, 10000.0)),
        "max_position_embeddings": get("context_length", int),
        "tie_word_embeddings": "output.weight" not in source.tensors,
        "bos_token_id": values.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": list(dict.fromkeys(e for e in ends if type(e) is int)),
        "pad_token_id": values.get("tokenizer.ggml.padding_token_id"),
        "rope_scaling": _scaling(source, metadata),
    }
    for field in ({name for name, _ in (family.qkv_bias, family.mlp_bias)} - {""}):
        part = "attn_q" if field == "attention_bias" else "ffn_gate"
        raw[field] = f"blk.0.{part}.bias" in source.tensors
    raw |= _own_fields(source, metadata, dim, heads, head_dim)
    config = Config.from_hf(raw, f"{path} (its metadata as a config.json)")
    if config.rope_scaling and config.rope_scaling["rope_type"] == "llama3":
        _check_llama3(source, config)
    return config, raw


def _own_fields(source: GGUF, metadata: _Metadata, dim: int, heads: int, head_dim: int) -> dict[str, Any]:
    """The fields that only some families have."""
    get, kind = metadata.get, metadata.architecture

    def optional(name: str) -> float | None:
        return _shortest(get(name, float)) if f"{kind}.{name}" in source.metadata else None

    window = get("attention.sliding_window", int, 0) or None
    if kind == "granite":
        return {"embedding_multiplier": _shortest(get("embedding_scale", float, 1.0)),
                "residual_multiplier": _shortest(get("residual_scale", float, 1.0)),
                "attention_multiplier": _shortest(get("attention.scale", float, head_dim**-0.5)),
                "logits_scaling": _shortest(get("logit_scale", float, 1.0))}
    if kind == "phi3":
        return {"partial_rotary_factor": get("rope.dimension_count", int, head_dim) / (head_dim or 1),
                "sliding_window": window, TRAINED: get("rope.scaling.original_context_length", int,
                                                       get("context_length", int))}
    if kind in GEMMA_27B_LAYERS:
        largest = get("block_count", int) == GEMMA_27B_LAYERS[kind]
        own = {"query_pre_attn_scalar": dim // heads if largest and heads > 0 else head_dim,
               "sliding_window": window, "final_logit_softcapping": optional("final_logit_softcapping")}
        if kind == "gemma2":
            return own | {"attn_logit_softcapping": optional("attn_logit_softcapping")}
        return own | {"rope_local_base_freq": _shortest(get("rope.freq_base_swa", float, 10000.0))}
    return {}


def _vocab_size(source: GGUF) -> int:
    """The rows of the embedding."""
    info = source.tensors.get(EMBEDDING)
    if info is None or len(info.shape) != 2:
        raise Error(f"{source.path}: tensor {EMBEDDING!r} is missing or no matrix; {DAMAGED}")
    return info.shape[0]


def _shortest(value: float) -> float:
    """The shortest decimal of a float32: 1e-05, where its 64 bits show 9.999999747378752e-06."""
    return float(str(np.float32(value))) if abs(value) < 3e38 else value


def _scaling(source: GGUF, metadata: _Metadata) -> dict | None:
    """rope_scaling: from metadata (linear), or from the tensor of Llama 3's divisors."""
    kind = metadata.get("rope.scaling.type", str, "none")
    factor = metadata.get("rope.scaling.factor", float, metadata.get("rope.scale_linear", float, 1.0))
    trained = metadata.get("rope.scaling.original_context_length", int, 0)
    if LONG in source.tensors and SHORT in source.tensors:
        factors = {name: [_shortest(f) for f in source.numbers(tensor).tolist()]
                   for name, tensor in (("long_factor", LONG), ("short_factor", SHORT))}
        return {"rope_type": "longrope", **factors,
                "attention_factor": _shortest(metadata.get("rope.scaling.attn_factor", float, 1.0))}
    if kind == "yarn" and trained:
        return {"rope_type": "yarn", "factor": _shortest(factor), TRAINED: trained}
    if kind not in ("none", "linear"):
        raise Error(f"{source.path}: metadata rope.scaling.type is {short(kind)}; "
                    "redlite has none, linear, yarn with its trained context, and Llama 3's")
    if ROPE in source.tensors:
        if factor != 1.0:
            raise Error(f"{source.path}: has both {ROPE} and a linear rope factor; {DAMAGED}")
        largest = float(source.numbers(ROPE).max())
        # The file holds the divisors and not their rule. These are the rule's parameters in every published
        # model; _check_llama3 compares what they give with the divisors.
        return {"rope_type": "llama3", "factor": round(largest, 4), "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return None if factor in (0.0, 1.0) else {"rope_type": "linear", "factor": _shortest(factor)}


def _check_llama3(source: GGUF, config: Config) -> None:
    """Raises Error unless the file's divisors are those that the configuration gives."""
    # The rule of rotary.py: pairs that turn often over the trained context keep their frequency.
    scaling = config.rope_scaling
    assert scaling is not None
    frequency = config.rope_theta ** -(np.arange(0, config.rotated, 2) / config.rotated)
    turns = scaling[TRAINED] * frequency / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = np.clip((turns - low) / (high - low), 0, 1)
    stored, divisors = source.numbers(ROPE), 1 / (keep + (1 - keep) / scaling["factor"])
    if stored.shape != divisors.shape or not np.allclose(divisors, stored, rtol=1e-3):
        raise Error(f"{source.path}: tensor {ROPE} does not hold the divisors of Llama 3's rope scaling; "
                    "redlite does not run such models")
