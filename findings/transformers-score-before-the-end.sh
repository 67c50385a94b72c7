#!/usr/bin/env bash
# transformers 5.24.0 (torch 2.13.0): a sequence classifier whose pad token is its end token reads the score
# one token too early.
#
# LlamaForSequenceClassification, as reward models and classifiers of harm use it, takes the score at the last
# token that is not the pad token. It looks at the ids alone; the attention_mask is not asked. Where pad and
# end token are one, as is common, and the text ends with the end token, the score is that of the token before.
#
# Surprise: neither a batch of one without padding nor an attention_mask of ones helps, and nothing warns.
# For evaluation: a reward model trained to judge at the end token is read where it was never trained.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0
"$work/venv/bin/pip" install -q transformers==5.24.0
"$work/venv/bin/python" - <<'PYTHON'
import torch
import transformers
from transformers import LlamaConfig, LlamaForSequenceClassification

print("transformers", transformers.__version__, "torch", torch.__version__)
END = 2
ids = torch.tensor([[5, 6, 7, 8, END]])


def place(pad):
    """Which token's score the classifier returns for ids, of which none is padding."""
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_labels=1, eos_token_id=END, pad_token_id=pad)).eval()
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, 0, 0.3)
    with torch.no_grad():
        score = model(ids, attention_mask=torch.ones_like(ids)).logits.item()
        each = model.score(model.model(ids).last_hidden_state)[0, :, 0]
    nearest = int((each - score).abs().argmin())
    assert abs(each[nearest].item() - score) < 1e-4
    print(f"seen: pad token {pad}, end token {END}: score {score:.4f} is that of token {nearest + 1} of {ids.shape[1]};"
          f" the scores are {[round(x, 4) for x in each.tolist()]}")
    return nearest


own, shared = place(pad=0), place(pad=END)
print("one would expect: the last token both times, as the attention_mask says that all tokens count")
assert own == 4, "the classifier no longer reads the last token"
assert shared == 3, "the attention_mask now decides"
PYTHON
