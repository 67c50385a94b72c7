"""Writes tests/golden/logits.json and families.json: logits and greedy ids of tiny models by transformers.

Run by hand where transformers 5 is installed beside redlite:  python tests/beside/make_model_goldens.py
Each case holds the config.json that transformers writes, the seed of the weights, the ids and, for a few
vocabulary entries at every position, the logits. The weights come from numpy's generator in the order of
the parameters' sorted names, so redlite makes the same ones without transformers (tests/model/test_model.py).
"""
import json
from pathlib import Path

import numpy as np

BASE = dict(vocab_size=211, hidden_size=48, intermediate_size=100, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2)
CASES = {
    "llama1": ("llama", dict(num_key_value_heads=4, rms_norm_eps=1e-6)),
    "grouped": ("llama", dict(rms_norm_eps=1e-5, rope_theta=500000.0)),
    "linear": ("llama", dict(rope_scaling={"type": "linear", "factor": 4.0})),
    "dynamic": ("llama", dict(rope_scaling={"type": "dynamic", "factor": 2.0}, max_position_embeddings=32)),
    "llama3": ("llama", dict(rope_theta=10000.0,
                             rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
                             max_position_embeddings=256)),
    "tied": ("llama", dict(tie_word_embeddings=True)),
    "biased": ("llama", dict(attention_bias=True, mlp_bias=True)),
    "head size": ("llama", dict(head_dim=20)),
    "mistral": ("mistral", dict(sliding_window=7)),
    "mistral open": ("mistral", dict(sliding_window=None)),
    "qwen2": ("qwen2", dict(tie_word_embeddings=True)),
    "qwen2 window": ("qwen2", dict(use_sliding_window=True, sliding_window=5, max_window_layers=1)),
}
SMALL = dict(vocab_size=97, hidden_size=32, intermediate_size=56, num_hidden_layers=4,
             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
             bos_token_id=1, eos_token_id=2, pad_token_id=0)
LONG = {"short_factor": [1.0 + 0.1 * i for i in range(4)], "long_factor": [1.5 + 2.0 * i for i in range(4)]}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
# Each family, with what sets it apart switched on; the layers with a window have a short one.
FAMILIES = {
    "llama yarn": ("llama", dict(rope_scaling=YARN)),
    "llama longrope": ("llama", dict(rope_scaling={"rope_type": "longrope", **LONG,
                                                   "original_max_position_embeddings": 24})),
    "qwen2 yarn": ("qwen2", dict(rope_scaling=YARN | {"beta_fast": 20, "beta_slow": 2, "mscale": 0.7,
                                                      "mscale_all_dim": 0.4})),
    "qwen3": ("qwen3", dict(head_dim=12)),
    "qwen3 window": ("qwen3", dict(head_dim=8, attention_bias=True, use_sliding_window=True,
                                   sliding_window=6, max_window_layers=2, tie_word_embeddings=True)),
    "smollm3": ("smollm3", dict(no_rope_layer_interval=2)),
    "smollm3 window": ("smollm3", dict(no_rope_layers=[1, 0, 0, 1], use_sliding_window=True,
                                       sliding_window=5, mlp_bias=True)),
    "ministral": ("ministral", dict(head_dim=8, sliding_window=6,
                                    layer_types=["full_attention", "sliding_attention"] * 2)),
    "ministral3": ("ministral3", dict(head_dim=12, rope_parameters=YARN | {
        "rope_theta": 10000.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3})),
    "granite": ("granite", dict(embedding_multiplier=6.0, logits_scaling=0.25, residual_multiplier=0.22,
                                attention_multiplier=0.2, tie_word_embeddings=True)),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", dict(sliding_window=6)),
    "olmo3 yarn": ("olmo3", dict(sliding_window=6, rope_parameters={
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": YARN | {"rope_theta": 10000.0}})),
    "phi3": ("phi3", dict(sliding_window=9)),
    "phi3 partial": ("phi3", dict(partial_rotary_factor=0.5)),
    "phi3 longrope": ("phi3", dict(original_max_position_embeddings=24, rope_scaling={
        "type": "longrope", **LONG})),
    "gemma": ("gemma", dict(head_dim=12, num_key_value_heads=1)),
    "gemma2": ("gemma2", dict(head_dim=12, query_pre_attn_scalar=20, sliding_window=6,
                              attn_logit_softcapping=3.0, final_logit_softcapping=8.0)),
    "gemma3": ("gemma3_text", dict(head_dim=12, query_pre_attn_scalar=20, sliding_window=6,
                                   num_hidden_layers=6, sliding_window_pattern=3,
                                   rope_scaling={"rope_type": "linear", "factor": 8.0})),
    "apertus": ("apertus", dict(rope_parameters=LLAMA3 | {"rope_theta": 10000.0})),
    "arcee": ("arcee", dict(mlp_bias=True, rope_scaling=YARN)),
    "hunyuan": ("hunyuan_v1_dense", dict(head_dim=8, rope_scaling={"type": "dynamic", "alpha": 100.0,
                                                                   "factor": 1.0})),
    "seed_oss": ("seed_oss", dict(head_dim=12)),
    "exaone4": ("exaone4", dict(sliding_window=6, rope_scaling=LLAMA3)),
    "exaone4 global": ("exaone4", dict(sliding_window=None, layer_types=["full_attention"] * 4)),
    "cwm": ("cwm", dict(head_dim=8, sliding_window=6, rope_parameters=LLAMA3 | {"rope_theta": 10000.0})),
    "hyperclovax": ("hyperclovax", dict(embedding_multiplier=5.0, logits_scaling=2.5, residual_multiplier=0.4,
                                        attention_multiplier=0.25)),
    "internlm3": ("internlm3", dict(head_dim=8, attention_bias=True, mlp_bias=True)),
    "nemotron": ("nemotron", dict(head_dim=8, partial_rotary_factor=0.5)),
    "starcoder2": ("starcoder2", dict(sliding_window=7)),
    "stablelm": ("stablelm", dict(use_qkv_bias=True, partial_rotary_factor=0.25, num_key_value_heads=4)),
    "jais2": ("jais2", dict(head_dim=8)),
}
IDS = np.random.default_rng(0).integers(3, 211, 50).tolist()
SHOWN, SHOWN_SMALL = [0, 1, 7, 64, 210], [0, 1, 7, 64, 96]


def weights(shapes: dict, seed: int) -> dict:
    """The same arrays for the same names and shapes, whoever asks."""
    rng = np.random.default_rng(seed)
    return {name: (rng.standard_normal(shapes[name]) * (0.1 if len(shapes[name]) > 1 else 0.3)
                   + ("norm" in name)).astype(np.float32)
            for name in sorted(shapes)}


PROMPT, NEW = IDS[:12], 48


def layered(shapes: dict) -> dict:
    """The shapes of layer 0 and of what belongs to no layer: all layers are alike."""
    return {n: list(s) for n, s in shapes.items() if ".layers." not in n or ".layers.0." in n}


def unlayered(shapes: dict, layers: int) -> dict:
    """The shapes of all layers again."""
    return {n.replace(".layers.0.", f".layers.{i}."): tuple(s) for n, s in shapes.items()
            for i in range(layers if ".layers.0." in n else 1)}


def built(kind: str, settings: dict, seed: int):
    """(config, model, shapes of what its files hold) of transformers, with the weights of a seed."""
    import torch
    import transformers
    config = transformers.AutoConfig.for_model(kind, **settings)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()
    state = {n: p for n, p in model.state_dict().items()
             if not (config.tie_word_embeddings and n == "lm_head.weight")}
    shapes = {n: tuple(p.shape) for n, p in state.items()}
    made = weights(shapes, seed)
    model.load_state_dict({n: torch.from_numpy(np.asarray(w)) for n, w in made.items()}, strict=False)
    model.tie_weights()
    return config, model, shapes


def greedy(model) -> tuple[list[int], float]:
    """(48 greedy ids behind the prompt, without a cache; the least lead of a token over the next best)."""
    import torch
    ids, least = list(PROMPT), 9.0
    for _ in range(NEW):
        best = model(torch.tensor([ids])).logits[0, -1].topk(2)
        least = min(least, float(best.values[0] - best.values[1]))
        ids.append(int(best.indices[0]))
    return ids[len(PROMPT):], least


def families(torch) -> dict:
    """Every family of FAMILIES; a seed is taken with which no two tokens come near each other."""
    out = {}
    for name, (kind, extra) in FAMILIES.items():
        for seed in range(20):
            config, model, shapes = built(kind, SMALL | extra, seed)
            ids, lead = greedy(model)
            if lead > 1e-3 and len(set(ids)) > 3:
                break
        logits = model(torch.tensor([IDS])).logits[0]
        out[name] = {"config": json.loads(config.to_json_string(use_diff=False)),
                     "given": {"model_type": kind, **SMALL, **extra}, "seed": seed, "shapes": layered(shapes),
                     "logits": [[round(v, 5) for v in row] for row in logits[::5, SHOWN_SMALL].tolist()],
                     "greedy": ids, "absmax": round(logits.abs().max().item(), 4)}
        print(name, seed, round(lead, 4), out[name]["absmax"], flush=True)
    return out


def main():
    import torch
    import transformers

    out = {}
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    for seed, (name, (kind, extra)) in enumerate(CASES.items()):
        config, model, _ = built(kind, BASE | extra, seed)
        logits = model(torch.tensor([IDS])).logits[0]
        out[name] = {"config": json.loads(config.to_json_string(use_diff=False)),
                     "given": {"model_type": kind, **BASE, **extra}, "seed": seed,
                     "logits": [[round(v, 6) for v in row] for row in logits[:, SHOWN].tolist()],
                     "absmax": logits.abs().max().item()}
    IDS[:] = [i % 97 for i in IDS]
    PROMPT[:] = IDS[:12]
    for file, cases in (("logits", out), ("families", families(torch))):
        text = json.dumps({"transformers": transformers.__version__, "cases": cases}, separators=(",", ":"))
        (Path(__file__).parents[1] / "golden" / f"{file}.json").write_text(text + "\n")
        print({n: round(c["absmax"], 2) for n, c in cases.items()}, len(text))


if __name__ == "__main__":
    main()
