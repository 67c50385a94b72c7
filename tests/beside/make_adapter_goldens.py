"""Writes tests/golden/adapters.json: logits of tiny models with adapters, computed by PEFT.

Run by hand where peft and transformers are installed:  python tests/beside/make_adapter_goldens.py
For each case PEFT makes the adapter and saves it. Its tensors are then drawn from numpy's generator in the
order of their sorted names, written back, and loaded by PEFT on a fresh base. The golden keeps the
directory's adapter_config.json, the tensors' shapes, and the logits for a few vocabulary entries at every
position. So the tests make the same directory without PEFT.
"""
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parent))
from make_model_goldens import BASE, IDS, SHOWN, weights  # noqa: E402

SEED = 5
LLAMA, TIED, BIASED = {}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}
FUSED = {"model_type": "phi3", "pad_token_id": 0}
CASES = {
    "plain": (LLAMA, dict(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"])),
    "rslora by regex": (LLAMA, dict(r=3, lora_alpha=5, use_rslora=True,
                                    target_modules=r".*\.layers\.[02]\.(self_attn|mlp)\.(k|o|up)_proj")),
    "patterns": (LLAMA, dict(r=4, lora_alpha=8, target_modules="all-linear",
                             rank_pattern={"down_proj": 2, r"^model\.layers\.1\.self_attn\.q_proj": 6},
                             alpha_pattern={"layers.0.mlp.gate_proj": 32, r"self_attn\.[kv]_proj": 3})),
    "dora": (LLAMA, dict(r=4, lora_alpha=8, use_dora=True, target_modules=["q_proj", "down_proj"])),
    "some layers": (LLAMA, dict(r=2, lora_alpha=8, target_modules=["q_proj", "up_proj"],
                                layers_to_transform=[0, 2])),
    "saved whole": (LLAMA, dict(r=2, target_modules=["q_proj"],
                                modules_to_save=["lm_head", "embed_tokens", "post_attention_layernorm"])),
    "biases": (BIASED, dict(r=2, target_modules=["q_proj", "up_proj"], bias="all")),
    "biases of the adapted": (BIASED, dict(r=2, target_modules=["q_proj", "up_proj"], bias="lora_only")),
    "embeddings": (LLAMA, dict(r=2, lora_alpha=7, target_modules=["embed_tokens", "lm_head", "k_proj"])),
    "tied, head adapted": (TIED, dict(r=2, target_modules=["lm_head", "k_proj"])),
    "tied, head saved": (TIED, dict(r=2, target_modules=["k_proj"], modules_to_save=["lm_head"])),
    "tied, embedding adapted": (TIED, dict(r=2, target_modules=["embed_tokens", "k_proj"])),
    "grown": (LLAMA, dict(r=2, target_modules=["k_proj"], modules_to_save=["embed_tokens", "lm_head"])),
    "grown, not trained": (LLAMA, dict(r=2, target_modules=["k_proj"])),
    "grown, adapted": (LLAMA, dict(r=2, target_modules=["k_proj", "embed_tokens", "lm_head"])),
    "grown, tied": (TIED, dict(r=2, target_modules=["k_proj"])),
    "tokens": (LLAMA, dict(r=2, target_modules=["k_proj"], trainable_token_indices=[210, 7, 3])),
    "tokens of both": (LLAMA, dict(r=2, target_modules=["k_proj"], trainable_token_indices={
        "embed_tokens": [5, 7], "lm_head": [64]})),
    "tokens, tied": (TIED, dict(r=2, target_modules=["k_proj"], trainable_token_indices=[64, 7])),
    "tokens, tied, both": (TIED, dict(r=2, target_modules=["k_proj"], trainable_token_indices={
        "lm_head": [64, 7], "embed_tokens": [64, 7]})),
    "tokens, tied, apart": (TIED, dict(r=2, target_modules=["k_proj"], trainable_token_indices={
        "lm_head": [64, 8], "embed_tokens": [64, 7]})),
    "tokens, tied, head": (TIED, dict(r=2, target_modules=["k_proj"], trainable_token_indices={
        "lm_head": [64, 8]})),
    "grown and tokens": (LLAMA, dict(r=2, target_modules=["k_proj"], trainable_token_indices=[212, 7])),
    "grown, tied, tokens": (TIED, dict(r=2, target_modules=["k_proj"], trainable_token_indices=[212, 7])),
    "fused": (FUSED, dict(r=3, target_modules="all-linear", rank_pattern={"gate_up_proj": 2})),
    "fused, dora": (FUSED, dict(r=2, use_dora=True, target_modules=["qkv_proj", "gate_up_proj"])),
}
GROWN, TIED_TWICE = 216, "grown, tied"


def values(shapes: dict, tied: bool) -> dict:
    """The tensors of an adapter: DoRA's magnitudes are positive, the rest as a model's weights.

    PEFT writes some tensors under two names, here with the same numbers too: those trained whole, and those
    of a tied embedding.
    """
    found = weights(shapes, SEED + 1)
    for name in shapes:
        twin = name.replace(".modules_to_save.", ".")
        twin = twin.replace("lm_head", "model.embed_tokens") if tied else twin
        if shapes.get(twin) == shapes[name]:
            found[name] = found[twin].copy()
    return {name: np.abs(v) + 0.5 if "magnitude" in name else v for name, v in found.items()}


def main():
    import peft
    import safetensors.torch
    import torch
    import transformers

    def base(name, extra, folder):
        settings = BASE | {"model_type": "llama"} | extra
        config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        state = {n: p for n, p in model.state_dict().items()
                 if not (config.tie_word_embeddings and n == "lm_head.weight")}
        drawn = weights({n: tuple(p.shape) for n, p in state.items()}, SEED)
        model.load_state_dict({n: torch.from_numpy(w) for n, w in drawn.items()}, strict=False)
        model.tie_weights()
        if name.startswith("grown"):  # PEFT compares with the base's own files
            config.save_pretrained(folder)
            model.name_or_path = str(folder)
            model.resize_token_embeddings(GROWN, mean_resizing=False)
        return model

    out = {}
    for name, (extra, settings) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder) / "base"
            lora = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
            wrapped = peft.get_peft_model(base(name, extra, home), lora)
            wrapped.save_pretrained(folder)
            file = Path(folder) / "adapter_model.safetensors"
            shapes = {n: list(t.shape) for n, t in safetensors.torch.load_file(file).items()}
            tensors = {n: torch.from_numpy(w) for n, w in values(shapes, TIED_TWICE in name).items()}
            safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
            model = peft.PeftModel.from_pretrained(base(name, extra, home), folder).eval()
            with torch.no_grad():
                logits = model(torch.tensor([IDS])).logits[0]
                plain = base(name, extra, home)(torch.tensor([IDS])).logits[0]
            config = json.loads((Path(folder) / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = None
        if isinstance(config["target_modules"], list):  # PEFT writes a set
            config["target_modules"].sort()
        assert (logits - plain).abs().max() > 0.01, name
        out[name] = {"base": extra, "config": config, "shapes": shapes,
                     "logits": [[round(v, 6) for v in row] for row in logits[:, SHOWN].tolist()]}
        print(name, len(shapes), round((logits - plain).abs().max().item(), 3), logits.abs().max().item())
    text = json.dumps({"peft": peft.__version__, "transformers": transformers.__version__, "cases": out},
                      separators=(",", ":"))
    (Path(__file__).parents[1] / "golden" / "adapters.json").write_text(text + "\n")
    print(len(text))


if __name__ == "__main__":
    main()
