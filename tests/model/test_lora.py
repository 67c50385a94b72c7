"""LoRA against the update written out, and its files against PEFT's layout."""
import json

import pytest
import torch
import train_worker as worker
from safetensors.torch import load_file

from redlite.errors import Error
from redlite.model import lora
from redlite.model.llama import LLaMA
from redlite.model.sequences import PackedSequences, packed_attention
from redlite.training import dataset, trainer


def hidden(model: LLaMA) -> torch.Tensor:
    packed = PackedSequences.of([[1, 5, 9, 2, 7], [3, 4]])
    return model(packed.ids, packed.positions, packed_attention(model.config, packed.offsets))


def trained(targets=lora.TARGETS) -> tuple[LLaMA, trainer.TrainingResult]:
    model = lora.attach(worker.model(), 4, 6.0, targets, seed=3)
    return model, trainer.run(model, worker.mixture(),
                              trainer.Recipe(learning_rate=2e-2, tokens_per_batch=100))


def test_begins_at_the_model_and_trains_nothing_else():
    plain = worker.model()
    model = lora.attach(worker.model(), 4)
    assert torch.equal(hidden(model), hidden(plain))
    model, outcome = trained(("q_proj", "down_proj"))
    before = dict(plain.named_parameters())
    assert {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {"lora_A",
                                                                                              "lora_B"}
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if "lora" not in n)
    assert len(lora.adapters(model)) == 2 * plain.config.n_layers
    assert all(a.lora_B.abs().max() > 0 for a in lora.adapters(model).values())
    assert outcome.history[2]["helpful"] < outcome.history[0]["helpful"]


def test_merged_is_the_update_written_out():
    """W + (alpha/rank)·B·A in float64, and the merged model computes what the adapted one does."""
    model, _ = trained()
    whole, plain = lora.merged(model), dict(worker.model().named_parameters())
    for name, adapter in lora.adapters(model).items():
        expected = plain[name
                         + ".weight"].double() + 6.0 / 4 * adapter.lora_B.double() @ adapter.lora_A.double()
        assert torch.allclose(whole.get_submodule(name).weight.double(), expected, atol=1e-6)
    assert torch.allclose(hidden(whole), hidden(model), atol=2e-5)
    assert [n for n, _ in whole.named_parameters()] == list(plain)


@pytest.mark.slow
def test_the_files_are_pefts(tmp_path):
    """Names, shapes and fields as PEFT writes and reads them."""
    model, _ = trained(("q_proj", "v_proj"))
    lora.save_adapter(model, tmp_path, "some/base")
    settings, tensors = (
        json.loads((tmp_path / "adapter_config.json").read_text()),
        load_file(tmp_path / "adapter_model.safetensors"),
    )
    assert settings["peft_type"] == "LORA" and settings["r"] == 4 and settings["lora_alpha"] == 6
    assert settings["target_modules"] == ["q_proj", "v_proj"]
    assert settings["base_model_name_or_path"] == "some/base" and settings["bias"] == "none"
    prefix = "base_model.model.model.layers.{}.self_attn.{}.lora_{}.weight"
    c = model.config
    assert {n: tuple(t.shape) for n, t in tensors.items()} == {
        **{prefix.format(i, p, "A"): (4, c.dim) for i in range(c.n_layers) for p in ("q_proj", "v_proj")},
        **{prefix.format(i, p, "B"): (heads * c.head_dim, 4) for i in range(c.n_layers)
           for p, heads in (("q_proj", c.n_heads), ("v_proj", c.n_kv_heads))}}


def test_peft_loads_the_adapter(tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    from redlite.weights.save import save_pretrained
    model, _ = trained()
    lora.save_adapter(model, tmp_path / "adapter", "base")
    save_pretrained(worker.model(), tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", torch_dtype=torch.float32),
        tmp_path / "adapter",
    )
    ids = [1, 5, 9, 2, 7]
    packed = PackedSequences.of([ids])
    ours = model.logits(model(packed.ids, packed.positions, packed_attention(model.config, packed.offsets)))
    assert torch.allclose(theirs(torch.tensor([ids])).logits[0], ours, atol=2e-4)


@pytest.mark.slow
def test_resumes_bit_for_bit_and_in_bfloat16(tmp_path):
    recipe = trainer.Recipe(learning_rate=1e-2, tokens_per_batch=100, checkpoint_every=5, seed=1)
    half = [dataset.Phase(8, {"helpful": 4, "blue": 4})]
    unbroken = trainer.run(lora.attach(worker.model().bfloat16(), 4), worker.mixture(half), recipe, tmp_path)
    for file in (tmp_path / "checkpoints/step-00000008").iterdir():
        file.unlink()
    (tmp_path / "checkpoints/step-00000008").rmdir()
    again = trainer.run(lora.attach(worker.model().bfloat16(), 4), worker.mixture(half), recipe, tmp_path)
    assert [r["loss"] for r in again.history] == [r["loss"] for r in unbroken.history]
    assert unbroken.history[-1]["helpful"] < unbroken.history[0]["helpful"]


def test_unknown_targets_are_named():
    with pytest.raises(Error, match="no matrix named c_attn"):
        lora.attach(worker.model(), 4, targets=("q_proj", "c_attn"))
