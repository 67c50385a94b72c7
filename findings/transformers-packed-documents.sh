#!/usr/bin/env bash
# transformers 5.24.0 (torch 2.13.0): whether packed documents see each other depends on use_cache.
#
# Two documents lie in one row, and position_ids start again at 0 for the second. With use_cache=False the
# library notices the restart and keeps the documents apart. With the default, use_cache=True, it does not:
# the second document reads the first. The same goes for an attention_mask of ones, which masks nothing out.
#
# Surprise: a switch for speed, and a mask that says "all tokens count", each change the logits. No warning.
# For evaluation: an answer's likelihood, or a training loss, may depend on an unrelated document beside it.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0
"$work/venv/bin/pip" install -q transformers==5.24.0
"$work/venv/bin/python" - <<'PYTHON'
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

print("transformers", transformers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                     num_attention_heads=4, num_key_value_heads=2)).eval()
for p in model.parameters():
    if p.dim() > 1:
        torch.nn.init.normal_(p, 0, 0.3)
first, second = torch.randint(0, 64, (1, 6)), torch.randint(0, 64, (1, 6))
row, positions = torch.cat([first, second], 1), torch.arange(6).repeat(2)[None]
with torch.no_grad():
    alone = model(second).logits
    far = {}
    for name, options in {
        "use_cache=False": dict(use_cache=False),
        "default (use_cache=True)": dict(),
        "use_cache=False, attention_mask of ones": dict(use_cache=False, attention_mask=torch.ones_like(row)),
    }.items():
        logits = model(row, position_ids=positions, **options).logits[:, 6:]
        far[name] = (logits - alone).abs().max().item()
        print(f"seen: {name}: logits of the second document are up to {far[name]:.3g} from those of it alone")
print("one would expect: the same logits three times")
apart, default, ones = far.values()
assert apart < 1e-4, "documents are no longer kept apart without a cache"
assert default > 0.1, "documents are now kept apart with a cache"
assert ones > 0.1, "documents are now kept apart with a mask of ones"
PYTHON
