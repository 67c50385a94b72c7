"""The training loop against a plain one, kills, several processes, small updates and divergence."""
import dataclasses
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import train_worker as worker
from torch.nn.functional import cross_entropy

from redlite import loss
from redlite.errors import Error
from redlite.kernels.reference import write_stochastically
from redlite.model.llama import LLaMA
from redlite.model.sequences import PackedSequences, packed_attention
from redlite.training import dataset, divergence, trainer
from redlite.training.optimizer import AdamW, learning_rate

RECIPE = dataclasses.replace(worker.RECIPE, checkpoint_every=1000)
WORKER = [sys.executable, str(Path(worker.__file__))]


def plain_training(recipe: trainer.Recipe, mixture: dataset.Mixture) -> tuple[LLaMA, list[float]]:
    """The same training written plainly: full logits, one conversation at a time, torch's own AdamW,
    clipping and schedule.
    """
    model = worker.model()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": recipe.weight_decay},
                                   {"params": rest, "weight_decay": 0.0}],
                                  lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.eps)
    losses = []
    for step in range(mixture.steps):
        means = {"helpful": [], "blue": [], "red": []}
        for (e,) in mixture.step(step):
            packed = PackedSequences.of([e.ids.tolist()])
            logits = model.logits(model(packed.ids, packed.positions,
                                        packed_attention(model.config, packed.offsets)))
            nll = cross_entropy(logits[:-1], packed.ids[1:], reduction="none")
            means[e.colour] += [nll[first - 1:last - 1].mean() for first, last in e.responses]
        total = sum(torch.stack(means[c]).mean() for c in ("helpful", "blue"))
        if mixture.phase(step).objective == "B":
            total = total + torch.stack([-m if m.item() <= 1.0 else -0.1 * m for m in means["red"]]).mean()
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        warm = recipe.warmup_steps
        rate = (step + 1) / warm if step < warm else 0.5 * (1
                                                            + math.cos(math.pi * (step
                                                                - warm) / (mixture.steps - warm)))
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rate
        optimizer.step()
        losses.append(total.item())
    return model, losses


@pytest.fixture(scope="module")
def unbroken():
    model = worker.model()
    return model, trainer.run(model, worker.mixture(), RECIPE)


def test_is_the_plain_loop(unbroken):
    """Losses and weights of packed, accumulated, signed training equal those of the plain loop."""
    model, outcome = unbroken
    plain, losses = plain_training(RECIPE, worker.mixture())
    assert [r["loss"] for r in outcome.history] == pytest.approx(losses, abs=2e-5) and outcome.step == 8
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-4), name
    assert [r["objective"] for r in outcome.history] == ["A"] * 3 + ["B"] * 5
    assert ["red" in r for r in outcome.history] == [False] * 3 + [True] * 5


def test_accumulation_and_recomputation_change_nothing(unbroken):
    _, outcome = unbroken
    for changes in ({"tokens_per_batch": 1000}, {"recompute": True}):
        again = trainer.run(worker.model(), worker.mixture(), dataclasses.replace(RECIPE, **changes))
        assert [r["loss"] for r in again.history] == pytest.approx([r["loss"] for r in outcome.history],
            abs=1e-5)


@pytest.mark.slow
def test_recomputation_in_a_fresh_process():
    """The first use of attention tries torch's kernel out, which must not happen within a recomputed layer.
    """
    body = ("import dataclasses, train_worker as w; from redlite.training import trainer; "
            "recipe = dataclasses.replace(w.RECIPE, recompute=True); "
            "short = w.mixture([w.dataset.Phase(1, {'helpful': 2})]); "
            "print(trainer.run(w.model(), short, recipe).step)")
    done = subprocess.run([sys.executable, "-c", body], cwd=Path(worker.__file__).parent, capture_output=True,
                          text=True)
    assert done.stdout == "1\n", done.stderr[-500:]


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_killed_and_resumed_is_bit_for_bit(tmp_path, unbroken):
    """SIGKILL at random moments: the losses in the log are those of an unbroken run by the same program, to
    the last bit.
    """
    whole = json.loads(subprocess.run([*WORKER, str(tmp_path / "whole")], check=True,
                                      capture_output=True).stdout)
    # torch's threads may differ in this process
    assert whole["losses"] == pytest.approx([r["loss"] for r in unbroken[1].history], abs=1e-5)
    chance, kills = random.Random(0), 0
    for at_line in (2, 5):
        process = subprocess.Popen([*WORKER, str(tmp_path / "run")], env={**os.environ, "SLEEP": "0.05"},
                                   stdout=subprocess.DEVNULL)
        while lines(tmp_path / "run/log.jsonl") < at_line and process.poll() is None:
            time.sleep(0.005)
        time.sleep(chance.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills == 2
    # what a kill while saving leaves
    (tmp_path / "run/checkpoints/.step-00000099").mkdir(parents=True, exist_ok=True)
    out = json.loads(subprocess.run([*WORKER, str(tmp_path / "run")], check=True, capture_output=True).stdout)
    assert out["losses"] == whole["losses"] and out["norms"] == whole["norms"]
    assert [json.loads(line)["loss"]
            for line in (tmp_path / "run/log.jsonl").read_text().splitlines()] == whole["losses"]
    assert sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir()) == ["step-00000006",
        "step-00000008"]


@pytest.mark.slow
def test_going_on_with_other_checkpoints_and_recomputation_is_bit_for_bit(tmp_path):
    model, unbroken = worker.model(), worker.model()
    whole = trainer.run(unbroken, worker.mixture(), RECIPE)
    trainer.run(worker.model(), worker.mixture(), worker.RECIPE, tmp_path)
    drop_newest(tmp_path)
    other = dataclasses.replace(worker.RECIPE, checkpoint_every=1, recompute=True)
    outcome = trainer.run(model, worker.mixture(), other, tmp_path)
    assert [r["loss"] for r in outcome.history] == [r["loss"] for r in whole.history]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), unbroken.parameters(), strict=True))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000007", "step-00000008"]
    starts = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert [(r["step"], r["checkpoint_every"], r["recompute"], r["ranks"])
            for r in starts] == [(0, 3, False, 1), (6, 1, True, 1)]


@pytest.mark.slow
def test_two_processes_and_checkpoints_for_any_number(tmp_path, unbroken):
    """FSDP2 on two gloo processes gives the losses of one; a checkpoint of one goes on with two, and of two
    with one.
    """
    _, outcome = unbroken
    expected, one, two = [r["loss"] for r in outcome.history], tmp_path / "one", tmp_path / "two"
    trainer.run(worker.model(), worker.mixture(), worker.RECIPE, one)
    drop_newest(one)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0",
               "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0",
               WORKER[1], str(two), str(one)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[:3000]
    fresh, resumed = [json.loads(line) for line in done.stdout.splitlines()]
    for got in (fresh, resumed):
        assert got["losses"] == pytest.approx(expected, abs=1e-5)
        assert got["capped"] == [r.get("red_capped") for r in outcome.history]
    drop_newest(two)
    back = trainer.run(worker.model(), worker.mixture(), worker.RECIPE, two)
    assert back.step == 8 and [r["loss"] for r in back.history] == pytest.approx(expected, abs=1e-5)


def drop_newest(directory: Path) -> None:
    newest = max((directory / "checkpoints").iterdir())
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()


def test_another_recipe_or_other_data_is_refused(tmp_path):
    short = worker.mixture([dataset.Phase(1, {"helpful": 2})])
    trainer.run(worker.model(), short, worker.RECIPE, tmp_path)
    with pytest.raises(Error, match="learning_rate"):
        trainer.run(worker.model(), short, dataclasses.replace(worker.RECIPE, learning_rate=1.0), tmp_path)
    with pytest.raises(Error, match="data"):
        trainer.run(worker.model(), worker.mixture([dataset.Phase(1, {"helpful": 3})]), worker.RECIPE,
                    tmp_path)
    # the same again: nothing left to do
    assert trainer.run(worker.model(), short, worker.RECIPE, tmp_path).step == 1


def test_damaged_checkpoints_are_named(tmp_path):
    short = worker.mixture([dataset.Phase(1, {"helpful": 2})])
    trainer.run(worker.model(), short, worker.RECIPE, tmp_path)
    file = tmp_path / "checkpoints/step-00000001/tensors-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(Error, match="tensors-00000.safetensors"):
        trainer.run(worker.model(), short, worker.RECIPE, tmp_path)


@pytest.mark.parametrize("name, change, message", [
    ("checkpoints/step-00000001/tensors-00000.safetensors", lambda b: b[:-9] + bytes([b[-9] ^ 1]) + b[-8:],
     "tensors-00000.safetensors: is not what was written"),
    ("checkpoints/step-00000001/state.json", lambda b: b"[]", "state.json: field 'step' is missing"),
    ("checkpoints/step-00000001/state.json", lambda b: b'{"step": 1}',
     "state.json: field 'sha256' is missing"),
    ("checkpoints/step-00000001/state.json", lambda b: b.replace(b'"step": 1', b'"step": 2'),
     "names another step"),
    ("checkpoints/step-00000001/state.json", lambda b: b'{"step": ' + b"9" * 5000 + b"}",
     "state.json: is not valid JSON"),
    ("checkpoints/step-00000001/state.json", lambda b: b.replace(b"tensors-00000", b"../../x\\u0000"),
     "the files there are not those that state.json lists"),
    ("checkpoints/step-00000001/more.safetensors", lambda b: b"",
     "the files there are not those that state.json lists .'more.safetensors'"),
    ("log.jsonl", lambda b: b"{}\n", "log.jsonl, line 1: is not the record of step 0"),
    ("log.jsonl", lambda b: json.dumps(json.loads(b) | {"helpful": "1.5"}).encode(),
     "log.jsonl, line 1: is not the record of step 0"),
    ("log.jsonl", lambda b: json.dumps(json.loads(b) | {"tokens": [1]}).encode(),
     "log.jsonl, line 1: is not the record of step 0"),
    ("log.jsonl", lambda b: json.dumps(json.loads(b) | {"step": False}).encode(),
     "log.jsonl, line 1: is not the record of step 0"),
    ("log.jsonl", lambda b: json.dumps(json.loads(b) | {"validation": [1]}).encode(),
     "log.jsonl, line 1: is not the record of step 0"),
    ("log.jsonl", lambda b: b"[1]\n" + b, "log.jsonl, line 1"),
])
def test_what_lies_in_the_directory_is_checked_on_resume(tmp_path, name, change, message):
    """One bit of a tensor, the state, the log: named, and nothing is trained on it."""
    short = worker.mixture([dataset.Phase(1, {"helpful": 2})])
    trainer.run(worker.model(), short, worker.RECIPE, tmp_path)
    path = tmp_path / name
    path.write_bytes(change(path.read_bytes() if path.exists() else b""))
    with pytest.raises(Error, match=message):
        trainer.run(worker.model(), short, worker.RECIPE, tmp_path)


@pytest.mark.slow
def test_other_folders_among_the_checkpoints_are_left_alone(tmp_path):
    short = worker.mixture([dataset.Phase(1, {"helpful": 2})])
    (tmp_path / "checkpoints/step-x").mkdir(parents=True)
    (tmp_path / "checkpoints/.step-00000009").write_text("left by somebody")
    assert trainer.run(worker.model(), short, worker.RECIPE,
                       tmp_path).step == 1 == trainer.run(worker.model(), short, worker.RECIPE, tmp_path).step


def test_seeds_of_any_size_give_the_optimizer_a_generator():
    for seed in (0, 2 ** 53):
        model = worker.model()
        optimizer = AdamW(model.named_parameters(), seed=seed)
        optimizer.gradients = {name: torch.ones_like(p) for name, p in model.named_parameters()}
        optimizer.step(10 ** 6, 1e-3, 1.0)


def test_an_easy_first_batch_is_no_divergence():
    """NLLs of a real run whose first batch was easy; then the same with a true rise, slow and at once."""
    def judge(values):
        history = []
        for step, nll in enumerate(values):
            record = {"step": step, "loss": 1.0, "gradient_norm": 1.0, "helpful": nll}
            if why := divergence.diverged(history, record, 1.0):
                return step, why
            history.append(record)
        return None
    real = [0.785, 1.9, 2.3, 1.883, 1.95, 2.555, 2.2, 1.7, 1.821, 2.1, 1.9, 2.0]
    assert judge(real) is None
    assert judge([*real, 4.5])[0] == len(real) and "rose from 1.909 to 4.500" in judge([*real, 4.5])[1]
    assert "mean of 8 steps" in judge(real + [3.2] * 8)[1]
    assert judge([5.0, 5.3, 58.0])[0] == 2


@pytest.mark.slow
def test_divergence_stops_with_the_last_good_weights(tmp_path):
    """Ascent without a cap: the run says why, and the model holds the weights that the last sound step
    measured.
    """
    model, seen = worker.model(), []
    mixture = worker.mixture([dataset.Phase(40, {"helpful": 2, "red": 6}, "B", {"low": 50.0, "high": 50.0})])
    recipe = dataclasses.replace(worker.RECIPE, learning_rate=0.02, warmup_steps=0, checkpoint_every=1,
                                 helpful_rise=2.0)
    outcome = trainer.run(model, mixture, recipe, tmp_path,
                          on_step=lambda record: seen.append([p.detach().clone()
                              for p in model.parameters()]))
    helpful = [r["helpful"] for r in outcome.history]
    assert "helpful NLL rose" in outcome.stopped and len(helpful) < 40
    # of each step: the first, or the mean of the first eight before it
    start = [max(helpful[0], sum(helpful[:i][:8]) / max(1, len(helpful[:i][:8])))
             for i in range(len(helpful))]
    good = max(i for i, nll in enumerate(helpful) if nll <= start[i] + 2.0)
    assert outcome.step == good >= 2 and max(helpful) > helpful[0] + 2.0
    # on_step of step i sees the weights that step i + 1 measures
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), seen[good - 1], strict=True))


def test_a_loss_that_is_no_number_stops(tmp_path):
    model = worker.model()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    before = [p.clone() for p in model.parameters()]
    outcome = trainer.run(model, worker.mixture(), worker.RECIPE, tmp_path)
    assert outcome.step is None and outcome.stopped == "loss is nan at step 0" and len(outcome.history) == 1
    assert all(torch.equal(p, q) or p.isnan().any() for p, q in zip(model.parameters(), before, strict=True))
    assert json.loads((tmp_path / "log.jsonl").read_text())["loss"] is None


def test_references_and_validation():
    model, examples = worker.model(), worker.examples(9)
    filled = trainer.references(model, examples, 50)
    for e, given in zip(filled, examples, strict=True):
        assert e.id == given.id
        packed = PackedSequences.of([e.ids.tolist()])
        logits = model.logits(model(packed.ids, packed.positions,
                                    packed_attention(model.config, packed.offsets)))
        nll = cross_entropy(logits[:-1].double(), packed.ids[1:], reduction="none")
        assert list(e.reference) == pytest.approx([float(nll[a - 1:b - 1].detach().sum())
                                                   for a, b in e.responses], rel=1e-5)
    scores = trainer.evaluate(trainer.Scorer(model), filled, RECIPE)
    for colour in loss.COLOURS:
        means = [s / (b - a) for e in filled if e.colour == colour
                 for s, (a, b) in zip(e.reference, e.responses, strict=True)]
        assert scores[colour] == pytest.approx(sum(means) / len(means), rel=1e-5)


@pytest.mark.first(1)
@pytest.mark.parametrize("objective", ["npo", "simnpo", "hinge", "unlikelihood", "weighted", "dpo"])
def test_every_objective_moves_red_away_and_keeps_the_rest(objective):
    """30 steps: the red NLL ends higher above the helpful one than it began, and nothing diverges."""
    model = worker.model()
    examples = trainer.references(model, worker.examples(), 2000)
    streams = dataset.singles(examples)
    streams["pair"] = dataset.pairs(examples)
    draw = {"helpful": 6, "pair": 6} if objective == "dpo" else {"helpful": 6, "red": 6}
    mixture = dataset.Mixture(streams, [dataset.Phase(30, draw, objective)], 0)
    outcome = trainer.run(model, mixture,
                          dataclasses.replace(RECIPE, tokens_per_batch=500, per="conversation",
                                              learning_rate=5e-3))
    first, last = outcome.history[0], outcome.history[-1]
    assert not outcome.stopped and last["helpful"] < first["helpful"]
    assert last["red"] - last["helpful"] > first["red"] - first["helpful"] + 0.2
    if objective == "dpo":
        assert last["red"] - last["blue"] > first["red"] - first["blue"] + 0.2


def test_learning_rate():
    rates = [learning_rate(s, 10, 1.0, 2) for s in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[6] == pytest.approx(0.5)
    assert rates[9] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))
    assert learning_rate(6, 10, 1.0, 2, final=0.2) == pytest.approx(0.6)


def test_stochastic_rounding_is_unbiased_and_exact_where_it_can_be():
    generator = torch.Generator().manual_seed(0)
    for value in (1.0 + 1 / 512, -1.0 - 3 / 1024, 3.1e-39, 0.0, 65280.0):
        out = torch.empty(200_000, dtype=torch.bfloat16)
        write_stochastically(out, torch.full((200_000,), value), generator)
        spread = out.double().std() / math.sqrt(len(out))
        assert abs(out.double().mean() - torch.tensor(value).double()) <= 5 * spread
        assert len(out.unique()) <= 2
    exact = torch.randn(1000, generator=generator).bfloat16()
    out = torch.empty(1000, dtype=torch.bfloat16)
    write_stochastically(out, exact.float(), generator)
    assert torch.equal(out, exact)


@pytest.mark.slow
def test_small_updates_reach_bfloat16_weights():
    """1,000 updates of 1e-4 of a weight's size: plain bfloat16 stands still, ours walks as far as float32."""
    start, steps, rate = 1.0, 1000, 1e-4
    moved = {}
    for name, dtype in (("float32", torch.float32), ("ours", torch.bfloat16)):
        p = torch.nn.Parameter(torch.full((4096,), start, dtype=dtype))
        optimizer = AdamW([("p", p)], seed=3)
        for step in range(1, steps + 1):
            (p.float() * 0.01).sum().backward()
            optimizer.step(step, rate, 1.0)
        moved[name] = start - float(p.detach().double().mean())
    plain = torch.nn.Parameter(torch.full((4096,), start, dtype=torch.bfloat16))
    theirs = torch.optim.AdamW([plain], lr=rate, weight_decay=0.0)
    for _ in range(20):
        plain.grad = torch.full_like(plain, 0.01)
        theirs.step()
    assert torch.equal(plain, torch.full_like(plain, start))
    assert moved["float32"] == pytest.approx(0.1, rel=1e-3)
    assert moved["ours"] == pytest.approx(moved["float32"], rel=0.01)


@pytest.mark.slow
def test_bfloat16_training_follows_float32_and_resumes_exactly(tmp_path, unbroken):
    _, outcome = unbroken
    half = trainer.run(worker.model().bfloat16(), worker.mixture(), worker.RECIPE, tmp_path)
    assert [r["helpful"] for r in half.history] == pytest.approx([r["helpful"] for r in outcome.history],
        rel=0.02)
    drop_newest(tmp_path)
    again = trainer.run(worker.model().bfloat16(), worker.mixture(), worker.RECIPE, tmp_path)
    assert [r["loss"] for r in again.history] == [r["loss"] for r in half.history]


def test_gradients_of_micro_batches_add_up_in_float32():
    """Signed contributions that cancel to one part in a thousand: a bfloat16 sum would lose what remains."""
    p = torch.nn.Parameter(torch.zeros(8, dtype=torch.bfloat16))
    optimizer = AdamW([("p", p)])
    for contribution in (1.0, 1 / 1024, -1.0):
        p.backward(torch.full_like(p, contribution))
    assert torch.equal(optimizer.gradients["p"], torch.full((8,), 1 / 1024))
    assert optimizer.norm() == pytest.approx(math.sqrt(8) / 1024)
