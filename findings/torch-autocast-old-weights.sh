#!/usr/bin/env bash
# torch 2.13.0: inside one autocast region a model goes on with the weights that it had at its first pass.
#
# autocast keeps the bfloat16 copies of float32 weights until the outermost region ends, and does not look
# whether the weights have changed since. So load_state_dict and an optimizer's step change nothing that the
# model computes within the region. Its parameters are the new ones all the while.
#
# Surprise: under no_grad, as evaluations run, the old weights answer; under inference_mode the new ones do.
# Copies of frozen weights are not kept either, so the same code is right for one model and not for another.
# For evaluation: two checkpoints that are loaded one after the other in a region score exactly alike, as
# though safety training had done nothing; and a training loop in one region repeats its first step.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy
"$work/venv/bin/python" - <<'PYTHON'
import torch

print("torch", torch.__version__)
torch.manual_seed(0)
x = torch.randn(16, 8)
before, after = torch.nn.Linear(8, 4), torch.nn.Linear(8, 4)


def moved(mode, requires_grad=True):
    """How far outputs move when other weights are loaded within a region; 0 where the old ones serve."""
    model = torch.nn.Linear(8, 4).requires_grad_(requires_grad)
    model.load_state_dict(before.state_dict())
    with mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        first = model(x)
        model.load_state_dict(after.state_dict())
        second = model(x)
    assert torch.equal(model.weight, after.weight)
    return (second.float() - first.float()).abs().max().item()


far = {"no_grad": moved(torch.no_grad), "inference_mode": moved(torch.inference_mode),
       "no_grad, requires_grad=False": moved(torch.no_grad, requires_grad=False)}
for name, value in far.items():
    print(f"seen: {name}: other weights are loaded within a region, and outputs move by up to {value:.3g}")

model, losses = torch.nn.Linear(8, 4), []
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with torch.autocast("cpu", dtype=torch.bfloat16):
    for _ in range(4):
        loss = model(x).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
print("seen: losses of four steps within a region:", [round(value, 6) for value in losses])
print("one would expect: outputs that move three times, and a loss that falls")
assert far["no_grad"] == 0 and len(set(losses)) == 1, "autocast sees new weights now"
assert far["inference_mode"] > 0.1 and far["no_grad, requires_grad=False"] > 0.1
PYTHON
