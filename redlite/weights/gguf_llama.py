"""A GGUF file of llama.cpp as a LLaMA: its metadata as a `Config`, its tensors' names and row orders.

Source: github.com/ggml-org/llama.cpp, src/llama-arch.cpp (names and keys) and convert_hf_to_gguf.py (what it
did to the weights).
"""
import dataclasses
import re
from typing import Any

import numpy as np
import torch

from redlite.errors import Error
from redlite.model.config import Config
from redlite.model.rope import rotary_table
from redlite.store.text import short
from redlite.weights.gguf import GGUF
from redlite.weights.gguf_formats import decoded, place_in
from redlite.weights.hf_files import Stored

ARCHITECTURES = ("llama", "qwen2")  # llama.cpp's names; Mistral's models are "llama"
EMBEDDING, ROPE = "token_embd.weight", "rope_freqs.weight"
NAMES = {EMBEDDING: "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
         "output.weight": "lm_head.weight"}
PARTS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
         "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
         "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
# Metadata keys of an architecture that config_of reads, and those that change nothing.
READ = {"block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
        "attention.head_count_kv", "attention.key_length", "attention.value_length",
        "attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.dimension_count", "rope.scaling.type",
        "rope.scaling.factor", "rope.scale_linear", "vocab_size"}
HARMLESS = {"tensor_data_layout", "rope.scaling.original_context_length", "rope.scaling.finetuned"}
DAMAGED = "the file is damaged, fetch it again"


# ---- tensors ----

def tensors(source: GGUF, config: Config) -> dict[str, Stored]:
    """name → tensor, under the names of our parameters; a tensor that is none of them keeps its own name."""
    stored: dict[str, Stored] = {}
    for info in source.tensors.values():
        if info.name == ROPE:  # divisors of the rotary frequencies, which config_of has read
            continue
        name = hf_name(info.name)
        order = row_order(config, source.metadata["general.architecture"], name) if name else None
        stored[name or info.name] = place_in(source, info.name, order)
    return stored


def hf_name(name: str) -> str | None:
    """The parameter that a GGUF tensor is, or None."""
    if name in NAMES:
        return NAMES[name]
    match = re.fullmatch(r"blk\.(0|[1-9][0-9]{0,5})\.([a-z_]+)\.(weight|bias)", name)
    if match is None or match[2] not in PARTS:
        return None
    return f"model.layers.{match[1]}.{PARTS[match[2]]}.{match[3]}"


def row_order(config: Config, architecture: str, name: str) -> np.ndarray | None:
    """For each row of the parameter `name`, its row in the GGUF tensor, int64; None: the same order.

    llama.cpp stores Q and K of its "llama" architecture for rotary embedding of neighbouring pairs. So rows
    2i and 2i + 1 of a head are our rows i and i + K/2. Whole rows move, so this holds for quantised blocks as
    well.
    """
    match = re.search(r"self_attn\.([qk])_proj\.", name)
    if architecture != "llama" or not match:
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
            if name != key and name not in READ | HARMLESS and not off:
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
                    "redlite runs GGUF files of llama and qwen2")
    metadata = _Metadata(source, kind)
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
    for key in ("attention.value_length", "rope.dimension_count"):
        if get(key, int, head_dim) != head_dim:
            raise Error(f"{path}: metadata {kind}.{key} is {get(key, int)}, not the head size {head_dim}; "
                        "redlite does not run such models")
    ends = [values.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    raw = {
        "model_type": kind, "vocab_size": vocab_size, "hidden_size": dim,
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
    if kind == "llama":
        raw["attention_bias"] = "blk.0.attn_q.bias" in source.tensors
        raw["mlp_bias"] = "blk.0.ffn_gate.bias" in source.tensors
    config = Config.from_hf(raw, f"{path} (its metadata as a config.json)")
    if config.rope_scaling and config.rope_scaling["rope_type"] == "llama3":
        _check_llama3(source, config)
    return config, raw


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
    if kind not in ("none", "linear"):
        raise Error(f"{source.path}: metadata rope.scaling.type is {short(kind)}; "
                    "redlite has none, linear and Llama 3's")
    if ROPE in source.tensors:
        if factor != 1.0:
            raise Error(f"{source.path}: has both {ROPE} and a linear rope factor; {DAMAGED}")
        largest = float(decoded(source, ROPE).max())
        # The file holds the divisors and not their rule. These are the rule's parameters in every published
        # model; _check_llama3 compares what they give with the divisors.
        return {"rope_type": "llama3", "factor": round(largest, 4), "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return None if factor in (0.0, 1.0) else {"rope_type": "linear", "factor": _shortest(factor)}


def _check_llama3(source: GGUF, config: Config) -> None:
    """Raises Error unless the file's divisors are those that the configuration gives."""
    plain, scaled = (_frequencies(c) for c in (dataclasses.replace(config, rope_scaling=None), config))
    stored = decoded(source, ROPE).double()
    if stored.shape != plain.shape or not torch.allclose(plain / scaled, stored, rtol=1e-3):
        raise Error(f"{source.path}: tensor {ROPE} does not hold the divisors of Llama 3's rope scaling; "
                    "redlite does not run such models")


def _frequencies(config: Config) -> torch.Tensor:
    """The rotary frequencies [K/2], float64: at position 1 the angle is the frequency, at most 1 radian."""
    cos, sin = rotary_table(config, torch.ones(1, dtype=torch.int64), None, torch.float32)
    return torch.atan2(sin, cos)[0, :config.head_dim // 2].double()
