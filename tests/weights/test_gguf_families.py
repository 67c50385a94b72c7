"""GGUF files of other families, written as llama.cpp's converter writes them, against transformers' numbers.

The rules of the writer here are those of llama.cpp's convert_hf_to_gguf.py: Q and K of llama and
granite are permuted, 1 is added to Gemma's norms, Phi-3's matrices stay fused.
"""
import dataclasses

import gguf_file
import numpy as np
import pytest
import torch
from family_models import GOLDEN, PATHS, SMALL_IDS, run
from make_model_goldens import NEW, SHOWN_SMALL, unlayered, weights

from redlite.errors import Error
from redlite.inference.engine import Engine, Request
from redlite.model.llama import LLaMA
from redlite.weights import checkpoint

NAMES = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
         "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
         "self_attn.k_norm": "attn_k_norm", "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
         "post_attention_layernorm": "ffn_norm"}
AFTER = NAMES | {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm":
                 "post_ffw_norm", "pre_feedforward_layernorm": "ffn_norm"}
LONG = {"rope.scaling.original_context_length": 24, "rope.scaling.attn_factor": 0.0}
# golden → (architecture, its own metadata)
CASES = {
    "llama yarn": ("llama", {"rope.dimension_count": 8, "rope.scaling.type": "yarn",
                             "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16}),
    "qwen3": ("qwen3", {"attention.key_length": 12, "attention.value_length": 12}),
    "granite": ("granite", {"embedding_scale": 6.0, "residual_scale": 0.22, "attention.scale": 0.2,
                            "logit_scale": 0.25}),
    "olmo2": ("olmo2", {}),
    "phi3": ("phi3", {"attention.sliding_window": 9, "rope.dimension_count": 8,
                      "rope.scaling.original_context_length": 4096}),
    "phi3 partial": ("phi3", {"rope.dimension_count": 4, "attention.sliding_window": 0}),
    "phi3 longrope": ("phi3", LONG | {"rope.dimension_count": 8}),
    "gemma": ("gemma", {"attention.key_length": 12, "attention.value_length": 12}),
    "gemma2": ("gemma2", {"attention.key_length": 12, "attention.value_length": 12,
                          "attention.sliding_window": 6, "attn_logit_softcapping": 3.0,
                          "final_logit_softcapping": 8.0}),
    "gemma3": ("gemma3", {"attention.key_length": 12, "attention.value_length": 12, "rope.freq_base": 1e6,
                          "attention.sliding_window": 6, "rope.scaling.type": "linear",
                          "rope.scaling.factor": 8.0}),
}


def write(name, path):
    case = GOLDEN[name]
    arch, own = CASES[name]
    config, heads = case["config"], case["config"]["num_attention_heads"]
    own = dict(own)
    fields = {"block_count": config["num_hidden_layers"], "context_length": config["max_position_embeddings"],
              "embedding_length": config["hidden_size"], "feed_forward_length": config["intermediate_size"],
              "attention.head_count": heads, "attention.head_count_kv": config["num_key_value_heads"],
              "attention.layer_norm_rms_epsilon": config["rms_norm_eps"], "rope.freq_base": 10000.0} | own
    stored = []
    if "rope.scaling.attn_factor" in fields:
        rope = config["rope_parameters"]
        factor = 64 / 24
        fields["rope.scaling.attn_factor"] = float(np.sqrt(1 + np.log(factor) / np.log(24)))
        stored += [(f"rope_factors_{k}.weight", (4,), "F32",
                    np.array(rope[f"{k}_factor"], "<f4").tobytes()) for k in ("long", "short")]
    shapes = unlayered(case["shapes"], config["num_hidden_layers"])
    for full, w in weights(shapes, case["seed"]).items():
        w = np.asarray(w)
        if arch.startswith("gemma") and full.endswith("norm.weight"):
            w = w + np.float32(1)
        if full.startswith("model.layers."):
            layer, part = full.removeprefix("model.layers.").split(".", 1)
            part, leaf = part.rsplit(".", 1)
            if arch in ("llama", "granite") and part in ("self_attn.q_proj", "self_attn.k_proj"):
                n = heads if part.endswith("q_proj") else config["num_key_value_heads"]
                w = w.reshape(n, 2, w.shape[0] // n // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)
            new = f"blk.{layer}.{(AFTER if arch in ('olmo2', 'gemma2', 'gemma3') else NAMES)[part]}.{leaf}"
        else:
            new = {"model.embed_tokens.weight": "token_embd.weight",
                   "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}[full]
        stored.append((new, w.shape, "F32", w.astype("<f4").tobytes()))
    metadata = {"general.architecture": arch, "tokenizer.ggml.bos_token_id": 1,
                "tokenizer.ggml.eos_token_id": 2} | {f"{arch}.{k}": v for k, v in fields.items()}
    gguf_file.write(path, metadata, stored)
    return path


@torch.no_grad()
@pytest.mark.parametrize("packed", PATHS)
@pytest.mark.parametrize("name", CASES)
def test_logits_and_greedy_ids(name, packed, tmp_path):
    """Gemma's goldens have another period and scale of scores than GGUF files can tell: set here by hand."""
    path, case = write(name, tmp_path / "model.gguf"), GOLDEN[name]
    config, _ = checkpoint.read_config(path)
    if name == "gemma3":
        assert config.windows == (6, 6, 6, 6, 6, None) and config.attention_scale == 12**-0.5
        config = dataclasses.replace(config, windows=(6, 6, None) * 2, attention_scale=20**-0.5)
    if name == "gemma2":
        assert config.windows == (6, None, 6, None) and config.attention_scale == 12**-0.5
        config = dataclasses.replace(config, attention_scale=20**-0.5)
    with torch.device("meta"):
        model = LLaMA(config)
    checkpoint.load_weights(model, path, packed=packed)
    got = run(model.eval(), [SMALL_IDS])
    assert (got[::5, SHOWN_SMALL] - torch.tensor(case["logits"])).abs().max() <= 2e-4
    assert dict(Engine(model).run([Request(SMALL_IDS[:12], NEW)]))[0].ids == case["greedy"]


def test_other_architectures_are_named(tmp_path):
    gguf_file.write(tmp_path / "m.gguf", {"general.architecture": "rwkv6"}, [])
    with pytest.raises(Error, match="is 'rwkv6'; redlite runs GGUF files of llama, qwen2, qwen3"):
        checkpoint.read_config(tmp_path / "m.gguf")
