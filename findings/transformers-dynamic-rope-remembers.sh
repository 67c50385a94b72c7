#!/usr/bin/env bash
# transformers 5.24.0 (torch 2.13.0): with rope_type "dynamic" a model's logits depend on earlier prompts.
#
# Dynamic NTK scaling raises the rotary base for texts beyond the trained length. The library keeps the
# largest length so far in the model. A later text that is shorter, but still beyond the trained length, gets
# the base of the longest one. Only a text within the trained length sets it back.
#
# Surprise: forward passes in eval mode, without a cache, are expected to be functions of their input.
# For evaluation: results depend on the order of the questions, and a run that is resumed differs from one
# that was never stopped.
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


def far_after(kind):
    """How far the logits of one text move after a longer text, and after a short one as well."""
    torch.manual_seed(0)
    rope = {"rope_type": kind, "factor": 2.0, "rope_theta": 10000.0}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                         num_attention_heads=4, num_key_value_heads=2,
                                         max_position_embeddings=32, rope_parameters=rope)).eval()
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, 0, 0.3)
    text, longer, short = (torch.randint(0, 64, (1, n)) for n in (40, 120, 10))
    with torch.no_grad():
        fresh = model(text, use_cache=False).logits
        model(longer, use_cache=False)
        later = model(text, use_cache=False).logits
        model(short, use_cache=False)
        again = model(text, use_cache=False).logits
    return (later - fresh).abs().max().item(), (again - fresh).abs().max().item()


print("the trained length is 32 tokens, the text has 40, the longer one 120, the short one 10")
moved, back = far_after("dynamic")
linear, _ = far_after("linear")
print(f"seen: after the longer text the same text's logits move by up to {moved:.3g}; after a short one by {back:.3g}")
print(f"seen: with rope_type linear they move by {linear:.3g}")
print("one would expect: 0 each time")
assert moved > 0.1, "the longest text is no longer remembered"
assert back < 1e-5, "a short text no longer sets the base back"
assert linear < 1e-5
PYTHON
