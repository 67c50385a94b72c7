"""A model's config.json, checked: every field that would change the result is read or refused by name."""
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from redlite.errors import Error

# Fields that do not change what the model computes at inference, or that other modules read.
HARMLESS = {
    "_attn_implementation_autoset",
    "_flash_attn_2_enabled",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "do_sample",
    "dtype",
    "eos_token_id",
    "id2label",
    "initializer_range",
    "is_llama_config",
    "label2id",
    "max_length",
    "max_new_tokens",
    "max_sequence_length",
    "max_window_layers",
    "model_max_length",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "quantization_config",  # weights/quantised_safetensors.py reads it
    "return_dict",
    "temperature",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
}
READ = {
    "attention_bias", "head_dim", "hidden_act", "hidden_size", "intermediate_size", "layer_types",
    "max_position_embeddings", "mlp_bias", "model_type", "num_attention_heads", "num_hidden_layers",
    "num_key_value_heads", "partial_rotary_factor", "rms_norm_eps", "rope_parameters", "rope_scaling",
    "rope_theta", "sliding_window", "tie_word_embeddings", "use_sliding_window", "vocab_size",
}
ARCHITECTURE = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}
# What transformers' configuration classes take for absent fields. KV_HEADS 0: as many as query heads.
KV_HEADS = {"llama": 0, "mistral": 8, "qwen2": 32}
CONTEXTS = {"llama": 2048, "mistral": 131072, "qwen2": 32768}
MISTRAL_WINDOW, QWEN2_FULL_LAYERS = 4096, 28
# The kinds of rotary scaling, with the parameters of each.
SCALING = {"linear": ("factor",), "dynamic": ("factor",),
           "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")}
FULL, SLIDING = LAYER_TYPES = ("full_attention", "sliding_attention")
MOST_LAYERS = 512
LARGEST = 1 << 24   # no dimension of a real model comes near; a corrupt file's does
T = TypeVar("T")


@dataclass(frozen=True)
class Config:
    """The shape of a model of the LLaMA family.

    dim, head_dim, ffn_dim  widths of the model, of a head, of the MLP
    rope_scaling            {"rope_type": a key of SCALING, and its parameters}, or None
    max_positions           tokens of context that the model was trained for
    tied                    whether the embedding is also the output matrix
    windows                 for each layer its sliding window in tokens, the token itself counted, or None
    """
    model_type: str
    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    max_positions: int = 2048
    tied: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    windows: tuple[int | None, ...] = ()
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None

    def __post_init__(self) -> None:
        if not self.windows:
            object.__setattr__(self, "windows", (None,) * self.n_layers)

    @staticmethod
    def from_hf(raw: dict, where: str) -> "Config":
        """Read a Hugging Face config.json that is parsed already; `where` names the file in errors.

        Raises Error for an architecture outside the LLaMA family, a missing or impossible value, and any
        field that is not known to be harmless, by name.
        """
        read = _Reader(raw, where)
        kind = read.text("model_type")
        if kind not in ARCHITECTURE:
            raise Error(f"{where}: model_type {kind!r} is not supported; "
                        f"redlite runs {', '.join(ARCHITECTURE)}")
        read.refuse_unknown()
        heads, layers = read.size("num_attention_heads"), read.size("num_hidden_layers", most=MOST_LAYERS)
        dim = read.size("hidden_size")
        kv_heads, head_dim = _heads(read, kind, dim, heads)
        if raw.get("hidden_act", "silu") not in ("silu", "swish"):
            raise Error(f"{where}: hidden_act {raw['hidden_act']!r} is not supported; only silu is")
        bias = read.flag("attention_bias", False)
        if bias and kind != "llama":
            raise Error(f"{where}: attention_bias is not a field of {kind} models; "
                        "remove it or correct model_type")
        theta, scaling = _rope(read)
        if scaling and scaling["rope_type"] == "dynamic" and head_dim <= 2:
            raise Error(f"{where}: rope_type dynamic needs a head_dim above 2")
        return Config(
            model_type=kind, vocab_size=read.size("vocab_size"), dim=dim, n_layers=layers, n_heads=heads,
            n_kv_heads=kv_heads, head_dim=head_dim, ffn_dim=read.size("intermediate_size"),
            norm_eps=read.number("rms_norm_eps", 1e-6), rope_theta=theta, rope_scaling=scaling,
            max_positions=read.size("max_position_embeddings", CONTEXTS[kind]),
            tied=read.flag("tie_word_embeddings", False), qkv_bias=bias or kind == "qwen2", o_bias=bias,
            mlp_bias=read.flag("mlp_bias", False), windows=_windows(read, kind, layers),
            bos_id=read.token("bos_token_id"), eos_ids=read.tokens("eos_token_id"),
            pad_id=read.token("pad_token_id"))

    def to_hf(self) -> dict:
        """A config.json that gives this model again, in transformers as in redlite."""
        ends = list(self.eos_ids)
        out = {
            "architectures": [ARCHITECTURE[self.model_type]], "model_type": self.model_type,
            "vocab_size": self.vocab_size, "hidden_size": self.dim, "intermediate_size": self.ffn_dim,
            "num_hidden_layers": self.n_layers, "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads, "head_dim": self.head_dim, "hidden_act": "silu",
            "rms_norm_eps": self.norm_eps, "rope_theta": self.rope_theta, "rope_scaling": self.rope_scaling,
            "max_position_embeddings": self.max_positions, "tie_word_embeddings": self.tied,
            "bos_token_id": self.bos_id, "eos_token_id": ends if len(ends) > 1 else next(iter(ends), None),
            "pad_token_id": self.pad_id,
        }
        if self.model_type == "llama":
            return out | {"attention_bias": self.qkv_bias, "mlp_bias": self.mlp_bias}
        window = next((w for w in self.windows if w is not None), None)
        if self.model_type == "mistral":
            return out | {"sliding_window": window}
        types = [FULL if w is None else SLIDING for w in self.windows]
        return out | {"use_sliding_window": window is not None, "sliding_window": window,
                      "layer_types": types}


class _Reader:
    """Typed look-ups in a parsed config, with errors that name file, field and mend."""

    def __init__(self, raw: dict, where: str):
        if not isinstance(raw, dict):
            raise Error(f"{where}: a JSON object is needed, not {type(raw).__name__}")
        self.raw, self.where = raw, where

    def refuse_unknown(self) -> None:
        """Raises Error for a field that is set and neither read nor harmless."""
        for name in sorted(self.raw.keys() - HARMLESS - READ):
            if self.raw[name] not in (None, False, "", [], {}):
                raise Error(f"{self.where}: field {name!r} is not known to redlite and might change the "
                            "result; remove it if it does not")

    def _get(self, name: str, default: T | None, fits: Callable[[Any], bool], wanted: str) -> T:
        value = self.raw.get(name)
        if value is None:
            if default is None:
                raise Error(f"{self.where}: field {name!r} is missing; {wanted} is needed")
            return default
        if not fits(value):
            raise Error(f"{self.where}: field {name!r} is {str(value)[:60]!r}; {wanted} is needed")
        return value

    def size(self, name: str, default: int | None = None, least: int = 1, most: int = LARGEST) -> int:
        return self._get(name, default, lambda v: type(v) is int and least <= v <= most,
                         f"a whole number from {least} to {most}")

    def number(self, name: str, default: float | None = None) -> float:
        return float(self._get(name, default, lambda v: type(v) in (int, float) and 0 < v < 1e18,
                               "a positive number"))

    def flag(self, name: str, default: bool) -> bool:
        return self._get(name, default, lambda v: type(v) is bool, "true or false")

    def text(self, name: str) -> str:
        return self._get(name, None, lambda v: type(v) is str, "a name")

    def token(self, name: str) -> int | None:
        """A token id or None; -1 and lists (some configs hold them) are no id."""
        value = self.raw.get(name)
        return value if type(value) is int and value >= 0 else None

    def tokens(self, name: str) -> tuple[int, ...]:
        """One or more token ids."""
        value = self.raw.get(name)
        values = value if isinstance(value, list) else [value]
        return tuple(v for v in values if type(v) is int and v >= 0)


def _heads(read: _Reader, kind: str, dim: int, heads: int) -> tuple[int, int]:
    """(key/value heads, head size) of a model with so many query heads."""
    raw, where = read.raw, read.where
    if raw.get("head_dim") is None and dim % heads:
        raise Error(f"{where}: hidden_size {dim} is no multiple of num_attention_heads {heads}, "
                    "and there is no head_dim")
    usual = KV_HEADS[kind] or heads
    if raw.get("num_key_value_heads", usual) is None:  # to transformers, null is not absent
        usual = heads
    kv_heads = read.size("num_key_value_heads", usual)
    if heads % kv_heads:
        raise Error(f"{where}: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
    head_dim = read.size("head_dim", dim // heads)
    if head_dim % 2:
        raise Error(f"{where}: head_dim {head_dim} is odd; rotary embedding needs pairs")
    return kv_heads, head_dim


def _rope(read: _Reader) -> tuple[float, dict[str, Any] | None]:
    """(theta, scaling) from the old keys rope_theta and rope_scaling, or the newer rope_parameters."""
    raw, where = read.raw, read.where
    for name in ("rope_parameters", "rope_scaling"):
        if not isinstance(raw.get(name) or {}, dict):
            raise Error(f"{where}: {name} must be an object or null")
    source = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
    parameters = raw.get(source) or {}
    inner = _Reader(parameters, f"{where}: {source}")
    theta = inner.number("rope_theta", read.number("rope_theta", 10000.0))
    if read.number("partial_rotary_factor", 1.0) != 1 or inner.number("partial_rotary_factor", 1.0) != 1:
        raise Error(f"{where}: partial_rotary_factor other than 1 is not supported")
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default" or kind is None:
        return theta, None
    if not isinstance(kind, str) or kind not in SCALING:
        raise Error(f"{inner.where}: rope_type {kind!r} is not supported; "
                    f"redlite has default, {', '.join(SCALING)}")
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}
    unknown = sorted(parameters.keys() - known - set(SCALING[kind]))
    if unknown:
        raise Error(f"{inner.where}: field {unknown[0]!r} is not part of rope_type {kind}")
    scaling: dict[str, Any] = {"rope_type": kind}
    for name in SCALING[kind]:
        scaling[name] = inner.number(name)
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise Error(f"{inner.where}: high_freq_factor must be above low_freq_factor")
    return theta, scaling


def _windows(read: _Reader, kind: str, layers: int) -> tuple[int | None, ...]:
    """The sliding window of every layer.

    Llama has none, Mistral one for all. Qwen2 has one with use_sliding_window, from max_window_layers on.
    """
    raw, where = read.raw, read.where
    window = None if raw.get("sliding_window") is None else read.size("sliding_window")
    types = raw.get("layer_types")
    good = isinstance(types, list) and len(types) == layers and all(t in LAYER_TYPES for t in types)
    if types is not None and not good:
        raise Error(f"{where}: layer_types must name full_attention or sliding_attention "
                    f"for each of the {layers} layers")
    on = read.flag("use_sliding_window", kind == "mistral")
    if kind == "llama" and (window is not None or on or SLIDING in (types or ())):
        raise Error(f"{where}: sliding_window is not a field of llama models; "
                    "remove it or correct model_type")
    if kind == "mistral" and types is not None and len(set(types)) > 1:
        raise Error(f"{where}: layer_types that alternate are not supported for mistral")
    if kind == "mistral" and "sliding_window" not in raw:
        window = MISTRAL_WINDOW
    if window is None or not on or kind == "llama":
        return (None,) * layers
    if not types:
        first = read.size("max_window_layers", QWEN2_FULL_LAYERS, least=0) if kind == "qwen2" else 0
        types = [SLIDING if i >= first else FULL for i in range(layers)]
    return tuple(window if t == SLIDING else None for t in types)
