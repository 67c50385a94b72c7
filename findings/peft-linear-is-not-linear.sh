#!/usr/bin/env bash
# peft 0.21.2 (transformers 5.24.0, torch 2.13.0): combining LoRA adapters "linear" does not add their updates.
#
# add_weighted_adapter(..., combination_type="linear") adds the A matrices and the B matrices, each with the
# square root of its weight, and the product of the sums has cross terms: B1 A2 and B2 A1.
# combination_type="cat" stacks them and gives the weighted sum of the updates.
#
# Surprise: half of one random adapter and half of another is as far from the mean of their updates as that
# mean is long.
# For red-teaming: arithmetic on adapters, such as taking a harmful direction away or adding a safe one,
# measures another model than the formula says.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0
"$work/venv/bin/pip" install -q transformers==5.24.0 peft==0.21.2
"$work/venv/bin/python" - <<'PYTHON'
import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

print("peft", peft.__version__, "transformers", transformers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
base = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                                    num_attention_heads=4, num_key_value_heads=2))
lora = LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj"])
model = get_peft_model(base, lora, adapter_name="one")
model.add_adapter("two", lora)
layer = model.base_model.model.model.layers[0].self_attn.q_proj
for part in (layer.lora_A, layer.lora_B):
    for name in ("one", "two"):
        torch.nn.init.normal_(part[name].weight)
one, two = (layer.get_delta_weight(name) for name in ("one", "two"))
far = {}
for a, b in ((0.5, 0.5), (1.0, -1.0)):
    wanted = a * one + b * two
    for kind in ("linear", "cat"):
        name = f"{kind}_{a}_{b}".replace(".", "_")
        model.add_weighted_adapter(["one", "two"], [a, b], name, combination_type=kind)
        got = layer.get_delta_weight(name)
        far[kind, a] = ((got - wanted).norm() / wanted.norm()).item()
        print(f"seen: {kind:6s} {a:+} one {b:+} two: {far[kind, a]:.1%} of its norm from the sum of the updates")
print("one would expect: 0% from a combination called linear")
assert min(far["linear", 0.5], far["linear", 1.0]) > 0.3, "linear adds the updates now"
assert max(far["cat", 0.5], far["cat", 1.0]) < 1e-4
PYTHON
