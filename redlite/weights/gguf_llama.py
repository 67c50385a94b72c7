"""A GGUF file of llama.cpp as a model of ours: its metadata as a `Config`, its tensors' names, and the order of their rows.

Source: github.com/ggml-org/llama.cpp, src/llama-arch.cpp (names and keys) and convert_hf_to_gguf.py (what it did to the weights).
"""
import dataclasses
import re
from functools import partial

import numpy as np
import torch

from redlite.errors import Error
from redlite.model.config import Config
from redlite.model.llama import rotary_table
from redlite.store.text import short
from redlite.weights.gguf import GGUF

NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}
PARTS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
              "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
              "ffn_down": "mlp.down_proj"}
ROPE = "rope_freqs.weight"  # divisors of the rotary frequencies: Llama 3's scaling, which config_of reads
# Metadata keys of an architecture that config_of reads, and those that change nothing.
READ = {"block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv",
             "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.dimension_count",
             "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear", "vocab_size"}
HARMLESS = {"tensor_data_layout", "rope.scaling.original_context_length", "rope.scaling.finetuned"}


def hf_name(name: str) -> str | None:
    """The parameter that a GGUF tensor is, or None."""
    if name in NAMES:
        return NAMES[name]
    match = re.fullmatch(r"blk\.(0|[1-9][0-9]{0,5})\.([a-z_]+)\.(weight|bias)", name)
    return f"model.layers.{match[1]}.{PARTS[match[2]]}.{match[3]}" if match and match[2] in PARTS else None


def row_order(config: Config, architecture: str, name: str) -> np.ndarray | None:
    """For each row of parameter `name`, the row of the GGUF tensor that it is; None where the order is the same.

    llama.cpp stores the Q and K of its "llama" architecture for rotary embedding of neighbouring pairs, so the rows
    2i and 2i + 1 of a head are our rows i and i + K/2. Whole rows move, so this holds for quantised blocks as well.
    """
    match = re.search(r"self_attn\.([qk])_proj\.", name)
    if architecture != "llama" or not match:
        return None
    heads = config.n_heads if match[1] == "q" else config.n_kv_heads
    return np.arange(heads * config.head_dim).reshape(heads, config.head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


def config_of(source: GGUF) -> tuple[Config, dict]:
    """(Config, the config.json it amounts to) of a GGUF file; llama.cpp's architectures "llama" (Mistral's too) and "qwen2"."""
    read = source.metadata.get
    kind = read("general.architecture")
    if not isinstance(kind, str) or kind not in ("llama", "qwen2"):
        raise Error(f"{source.path}: metadata general.architecture is {short(kind)}; redlite runs GGUF files of llama and qwen2")
    get = partial(_value, source, kind)
    for key, value in source.metadata.items():
        name = key.removeprefix(kind + ".")
        if name != key and name not in READ | HARMLESS and not (type(value) in (int, bool) and not value):
            raise Error(f"{source.path}: metadata {short(key)} is not known to redlite and might change the result")
    heads, dim = get("attention.head_count", int), get("embedding_length", int)
    if "token_embd.weight" not in source.tensors or len(source.tensors["token_embd.weight"].shape) != 2:
        raise Error(f"{source.path}: tensor 'token_embd.weight' is missing or no matrix; the file is damaged, fetch it again")
    vocab_size = source.tensors["token_embd.weight"].shape[0]
    if get("vocab_size", int, vocab_size) != vocab_size:
        raise Error(f"{source.path}: metadata {kind}.vocab_size is {get('vocab_size', int)} and tensor 'token_embd.weight' has {vocab_size} rows; the file is damaged, fetch it again")
    head_dim = get("attention.key_length", int, dim // heads if heads > 0 and dim % heads == 0 else 0)
    for key in ("attention.value_length", "rope.dimension_count"):
        if get(key, int, head_dim) != head_dim:
            raise Error(f"{source.path}: metadata {kind}.{key} is {get(key, int)}, not the head size {head_dim}; redlite does not run such models")
    ends = [read(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    raw = {
        "model_type": kind, "vocab_size": vocab_size, "hidden_size": dim, "intermediate_size": get("feed_forward_length", int),
        "num_hidden_layers": get("block_count", int), "num_attention_heads": heads, "num_key_value_heads": get("attention.head_count_kv", int, heads),
        "head_dim": head_dim, "rms_norm_eps": _shortest(get("attention.layer_norm_rms_epsilon", float)),
        "rope_theta": _shortest(get("rope.freq_base", float, 10000.0)), "max_position_embeddings": get("context_length", int),
        "tie_word_embeddings": "output.weight" not in source.tensors, "bos_token_id": read("tokenizer.ggml.bos_token_id"),
        "eos_token_id": list(dict.fromkeys(e for e in ends if type(e) is int)), "pad_token_id": read("tokenizer.ggml.padding_token_id"),
        "rope_scaling": _scaling(source, get)}
    if kind == "llama":
        raw |= {"attention_bias": "blk.0.attn_q.bias" in source.tensors, "mlp_bias": "blk.0.ffn_gate.bias" in source.tensors}
    config = Config.from_hf(raw, f"{source.path} (its metadata as a config.json)")
    if (scaling := config.rope_scaling) and scaling["rope_type"] == "llama3":
        _check_llama3(source, config)
    return config, raw


def _value(source: GGUF, kind: str, name: str, wanted: type, default=None):
    value = source.metadata.get(f"{kind}.{name}", default)
    if type(value) is not wanted:
        raise Error(f"{source.path}: metadata {kind}.{name} is {'missing' if value is None else short(value)}; a single number of type {wanted.__name__} is needed")
    return value


def _shortest(value: float) -> float:
    """The shortest decimal number with the same float32 value: 1e-05, where a float32 widened to 64 bits shows 9.999999747378752e-06."""
    return float(str(np.float32(value))) if abs(value) < 3e38 else value


def _scaling(source: GGUF, get) -> dict | None:
    """rope_scaling of a GGUF file: by metadata (linear), or by the tensor of Llama 3's divisors."""
    kind, factor = get("rope.scaling.type", str, "none"), get("rope.scaling.factor", float, get("rope.scale_linear", float, 1.0))
    if kind not in ("none", "linear"):
        raise Error(f"{source.path}: metadata rope.scaling.type is {short(kind)}; redlite has none, linear and Llama 3's")
    if ROPE in source.tensors:
        if factor != 1.0:
            raise Error(f"{source.path}: has both {ROPE} and a linear rope factor; the file is damaged, fetch it again")
        largest = float(source.dequantize(ROPE).max())
        # The file holds the divisors and not the rule; these are the rule's parameters in every published model, and _check_llama3 compares.
        return {"rope_type": "llama3", "factor": round(largest, 4), "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192}
    return {"rope_type": "linear", "factor": _shortest(factor)} if factor not in (0.0, 1.0) else None


def _check_llama3(source: GGUF, config: Config) -> None:
    """Hold the file's divisors against those that the configuration gives."""
    plain = dataclasses.replace(config, rope_scaling=None)
    angles = [torch.atan2(*reversed(rotary_table(c, torch.ones(1, dtype=torch.int64), None, torch.float32)))[0, :config.head_dim // 2].double()
              for c in (plain, config)]  # at position 1 the angle is the frequency, at most 1 radian
    stored = source.dequantize(ROPE).double()
    if stored.shape != angles[0].shape or not torch.allclose(angles[0] / angles[1], stored, rtol=1e-3):
        raise Error(f"{source.path}: tensor {ROPE} does not hold the divisors of Llama 3's rope scaling; redlite does not run such models")
