"""Writes tests/golden/logits.json: logits of tiny random models, computed by transformers.

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
IDS = np.random.default_rng(0).integers(3, 211, 50).tolist()
SHOWN = [0, 1, 7, 64, 210]


def weights(shapes: dict, seed: int) -> dict:
    """The same arrays for the same names and shapes, whoever asks."""
    rng = np.random.default_rng(seed)
    return {name: (rng.standard_normal(shapes[name]) * (0.1 if len(shapes[name]) > 1 else 0.3)
                   + ("norm" in name)).astype(np.float32)
            for name in sorted(shapes)}


def main():
    import torch
    import transformers

    out = {}
    for seed, (name, (kind, extra)) in enumerate(CASES.items()):
        config = transformers.AutoConfig.for_model(kind, **(BASE | extra))
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        state = {n: p for n, p in model.state_dict().items()
                 if not (config.tie_word_embeddings and n == "lm_head.weight")}
        model.load_state_dict({n: torch.from_numpy(w) for n,
                               w in weights({n: tuple(p.shape) for n, p in state.items()}, seed).items()},
                              strict=False)
        model.tie_weights()
        with torch.no_grad():
            logits = model(torch.tensor([IDS])).logits[0]
        out[name] = {"config": json.loads(config.to_json_string(use_diff=False)),
                     "given": {"model_type": kind, **BASE, **extra}, "seed": seed,
                     "logits": [[round(v, 6) for v in row] for row in logits[:, SHOWN].tolist()],
                     "absmax": logits.abs().max().item()}
    text = json.dumps({"transformers": transformers.__version__, "cases": out}, separators=(",", ":"))
    (Path(__file__).parents[1] / "golden" / "logits.json").write_text(text + "\n")
    print({n: round(c["absmax"], 2) for n, c in out.items()}, len(text))


if __name__ == "__main__":
    main()
