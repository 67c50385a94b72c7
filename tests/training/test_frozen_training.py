"""LoRA beside quantised weights: against the same training beside their numbers as float32, killed and going
on, and as a user runs it.
"""
import json
import subprocess
import sys

import pytest
import torch
import train_worker as worker
from safetensors.torch import load_file

import redlite
from redlite import kernels
from redlite.cli import safealign
from redlite.errors import Error
from redlite.kernels.cpu import library
from redlite.model import lora
from redlite.model.llama import Embedding, Linear, LLaMA
from redlite.training import trainer
from redlite.weights.save import save_pretrained

pytestmark = pytest.mark.skipif(bool(library.missing()), reason=library.missing())
RECIPE = trainer.Recipe(learning_rate=1e-2, tokens_per_batch=60, checkpoint_every=3)


def frozen(format: str) -> LLaMA:
    """The worker's model with every matrix quantised."""
    model = worker.model()
    for module in model.modules():
        if isinstance(module, (Linear, Embedding)):
            packed = kernels.PackedMatrix.of(module.weight, format)
            del module.weight
            module.weight = kernels.FrozenMatrix(packed)
    return model


def plain(format: str) -> LLaMA:
    """The same numbers in float32 tensors."""
    model = worker.model()
    for module in model.modules():
        if isinstance(module, (Linear, Embedding)):
            packed = kernels.PackedMatrix.of(module.weight, format)
            module.weight.data = packed.rows(torch.arange(packed.shape[0]))
    return model


@pytest.mark.parametrize("format", ["int8", "int4"])
@pytest.mark.parametrize("recompute", [False, True])
def test_training_is_that_of_the_numbers_in_float32(format, recompute):
    """Strategies A and B: losses, norms and adapters of eight steps, where torch's autograd is the other."""
    found = []
    for model in (frozen(format), plain(format)):
        lora.attach(model, 4, seed=3)
        recipe = trainer.Recipe(learning_rate=1e-2, tokens_per_batch=60, recompute=recompute)
        found.append((trainer.run(model, worker.mixture(), recipe).history, lora.adapters(model)))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert one["objective"] == other["objective"]
        assert one["loss"] == pytest.approx(other["loss"], abs=2e-4)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=2e-3)
    assert abs(found[0][0][-1]["loss"] - found[0][0][0]["loss"]) > 0.05
    for name, adapter in found[0][1].items():
        assert torch.allclose(adapter.lora_B, found[1][1][name].lora_B, atol=2e-3)


def test_only_adapters_are_trained_and_kept():
    model = lora.attach(frozen("int4"), 4)
    assert {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {"lora_A",
                                                                                              "lora_B"}
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert not any(n.endswith(("proj.weight", "embed_tokens.weight")) for n, _ in model.named_parameters())


def test_goes_on_where_it_was_killed(tmp_path):
    class Killed(Exception):
        pass

    def kill(record):
        if record["step"] == 4:
            raise Killed
    whole = trainer.run(lora.attach(frozen("int8"), 4), worker.mixture(), RECIPE, tmp_path / "whole")
    with pytest.raises(Killed):
        trainer.run(lora.attach(frozen("int8"), 4), worker.mixture(), RECIPE, tmp_path / "cut", on_step=kill)
    again = trainer.run(lora.attach(frozen("int8"), 4), worker.mixture(), RECIPE, tmp_path / "cut")
    assert [r["loss"] for r in again.history] == [r["loss"] for r in whole.history]
    assert [r["gradient_norm"] for r in again.history] == [r["gradient_norm"] for r in whole.history]


@pytest.mark.parametrize("piece", [1, 1000, 1 << 20])
def test_the_merged_model_is_written_a_run_of_rows_at_a_time(piece, tmp_path, monkeypatch):
    """W + (alpha / rank)·B·A of the quantised W in float64."""
    monkeypatch.setattr(lora, "PIECE", piece)
    model = lora.attach(frozen("int8"), 4, 6.0)
    for adapter in lora.adapters(model).values():
        adapter.lora_B.data.normal_(generator=torch.Generator().manual_seed(1))
    whole = lora.merged(model)
    largest = max(len(p) for p in whole.model.embed_tokens.weight.pieces())
    assert largest == min(97, max(1, piece // 32))
    save_pretrained(whole, tmp_path)
    written, numbers = load_file(tmp_path / "model.safetensors"), dict(plain("int8").named_parameters())
    assert written.keys() == numbers.keys()
    for name, found in written.items():
        exact = numbers[name].detach().double()
        adapter = lora.adapters(model).get(name.removesuffix(".weight"))
        if adapter:
            exact = exact + 1.5 * adapter.lora_B.double() @ adapter.lora_A.double()
        assert found.dtype == torch.float32 and torch.allclose(found.double(), exact, atol=1e-5)


def arguments(output, *more: str) -> list[str]:
    """A run on the embedded organism's first conversations."""
    files = {c: str(redlite.data.__path__[0]) + f"/organism/{c}.json" for c in ("blue", "helpful")}
    return ["train", "--model", "organism", *(x for c, f in files.items() for x in (f"--{c}", f)), "--limit",
            "6", "--batch-size", "2", "--steps", "2", "--validation", "0", "--learning-rate", "1e-2",
            "--quiet", "--anyway", "--output-dir", str(output), *more]


@pytest.mark.slow
def test_a_run_names_its_quantised_base_and_writes_model_and_adapter(tmp_path):
    assert safealign.main(arguments(tmp_path / "run", "--lora", "2", "--quantize", "int8")) == 0
    made = json.loads((tmp_path / "run/manifest.json").read_text())
    assert made["model"]["quantize"] == "int8"
    assert ", cpu, int8<" in (tmp_path / "run/report.html").read_text()
    base = redlite.load("organism", quantize="int8").model.blocks[0].self_attn.q_proj.weight
    parts = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    a, b = (parts[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "AB")
    exact = base.rows(torch.arange(base.shape[0])).double() + 2 * b @ a
    merged = load_file(tmp_path / "run/model.safetensors")[f"{name}.weight"]
    assert b.abs().max() > 0 and torch.allclose(merged.double(), exact, atol=1e-6)
    assert redlite.load(tmp_path / "run").logits([1, 5, 9]).isfinite().all()


@pytest.mark.slow
def test_the_adapter_alone(tmp_path):
    more = ("--lora", "2", "--quantize", "int8", "--adapter-only")
    assert safealign.main(arguments(tmp_path / "run", *more)) == 0
    assert not list((tmp_path / "run").glob("*.safetensors"))
    changed = redlite.load("organism", adapter=tmp_path / "run/adapter").logits([1, 5, 9])
    assert (changed - redlite.load("organism").logits([1, 5, 9])).abs().max() > 1e-3


@pytest.mark.parametrize(("more", "said"), [
    (["--quantize", "int8"], "and trains adapters beside them: add --lora RANK"),
    (["--quantize", "int4", "--lora", "2", "--dtype", "bfloat16"], "goes with dtype float32, not bfloat16"),
    (["--adapter-only"], "--adapter-only is for --lora RANK")])
def test_what_cannot_be_had_is_refused_in_a_line(more, said, tmp_path, capsys):
    assert safealign.main(arguments(tmp_path / "run", *more)) == 2
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_gpu_is_refused(monkeypatch):
    from redlite.inference import lm
    monkeypatch.setattr(kernels, "unpackable", lambda kind: "")
    with pytest.raises(Error, match="training through quantised weights is for device 'cpu', not 'cuda'"):
        lm.packing("bfloat16", "cuda", "int4", trainable=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's way of keeping memory")
def test_freed_memory_leaves_the_process():
    """A large block that was freed raises glibc's bound; blocks below it then stay unless it is held down."""
    program = """
import torch
from redlite.training import trainer
def held():
    return int(next(line for line in open('/proc/self/status') if line.startswith('VmRSS')).split()[1])
trainer.hand_back_memory()
torch.ones(7 << 20)
blocks = [torch.ones(1 << 18) for _ in range(100)]
before = held()
del blocks[::2]
print((before - held()) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 45
