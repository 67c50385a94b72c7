"""safealign merge: sums of weights against numpy's."""
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from redlite.cli import safealign
from redlite.inference.lm import LM
from redlite.weights.source import open_source


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The organism and two versions of it with other weights; folder by name."""
    folder, rng = tmp_path_factory.mktemp("models"), np.random.default_rng(0)
    source = open_source("organism")
    for name in ("base", "safe", "unsafe"):
        shutil.copytree(source, folder / name)
        if name != "base":
            file = folder / name / "model.safetensors"
            save_file({n: (w + rng.normal(0, 0.01, w.shape)).astype(np.float32)
                       for n, w in load_file(file).items()}, file)
    return folder


def weights(folder):
    return {name: w.astype(np.float64) for name, w in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("minus", ["unsafe", None])
def test_it_is_the_sum(models, minus, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--minus", str(models / minus)] if minus else []
    assert safealign.main(["merge", "--model", str(models / "base"), "--add", str(models / "safe"), *options,
                           "--scale", "-0.7", "--output-dir", str(out), "--json"]) == 0
    base, safe, other = (weights(models / name) for name in ("base", "safe", minus or "base"))
    for name, found in weights(out).items():
        assert np.abs(found - (base[name] - 0.7 * (safe[name] - other[name]))).max() < 1e-6
    added = sum((0.7 * (safe[n] - other[n])).__pow__(2).sum() for n in base) ** 0.5
    assert json.loads(capsys.readouterr().out)["norm_added"] == pytest.approx(added, rel=1e-4)
    assert {file.name for file in out.iterdir()} >= {"config.json", "tokenizer.model", "manifest.json"}


def test_what_cannot_be_added_is_refused(models, tmp_path, capsys):
    wider = tmp_path / "wider"
    shutil.copytree(models / "safe", wider)
    config = json.loads((wider / "config.json").read_text())
    (wider / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    common = ["merge", "--model", str(models / "base"), "--output-dir", str(tmp_path / "out")]
    for add, word in ((wider, "its norm_eps is 0.5"), (models / "base", "nothing would be added"),
                      (tmp_path / "none", "there is no such file")):
        assert safealign.main([*common, "--add", str(add)]) == 2
        assert word in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    assert safealign.main([*common, "--add", str(wider), "--dry-run"]) == 2     # before any work
    own = ["merge", "--model", str(models / "base"), "--add", str(models / "safe")]
    for scale in ("0", "-0.0"):     # the models differ: it is the scale that adds nothing
        assert safealign.main([*own, "--output-dir", str(tmp_path / "out"), "--scale", scale]) == 2
        assert "--scale 0: nothing would be added" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    assert safealign.main([*own, "--output-dir", str(models / "safe")]) == 2
    assert "own directory" in capsys.readouterr().err


def organism(adapter=None):
    return LM.load("organism", adapter=adapter, trainable=True).model


def adapter_at(path, rank, seed, modules=("q_proj", "down_proj"), **config):
    """An adapter of the organism's first layer; its updates by parameter, in float64."""
    model, rng = organism(), np.random.default_rng(seed)
    own = {name.removesuffix(".weight"): p.shape for name, p in model.named_parameters()
           if name.rpartition(".weight")[0].rpartition(".")[2] in modules and ".layers.0." in name}
    assert len(own) == len(modules)
    tensors, updates = {}, {}
    scale = 8 / (rank ** 0.5 if config.get("use_rslora") else rank)
    for module, (n, d) in own.items():
        a, b = (rng.normal(0, 0.1, s).astype(np.float32) for s in ((rank, d), (n, rank)))
        tensors |= {f"base_model.model.{module}.lora_{x}.weight": m for x, m in (("A", a), ("B", b))}
        updates[f"{module}.weight"] = scale * (b.astype(np.float64) @ a)
    path.mkdir()
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": list(modules), **config}))
    return updates


def test_adapters_are_added_by_their_weights(tmp_path, capsys):
    first = adapter_at(tmp_path / "a", 4, 1)
    second = adapter_at(tmp_path / "b", 2, 2, use_rslora=True)
    base = dict(organism().named_parameters())
    for weights_of in ((0.8, -0.3), (0.4, None)):
        out = tmp_path / f"sum{weights_of[0]}"
        named = [f"{tmp_path / name}={w}" for name, w in zip("ab", weights_of, strict=True) if w]
        assert safealign.main(["merge", "--adapters", *named, "--output-dir", str(out), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["rank"] == (6 if weights_of[1] else 4)
        merged = dict(organism(out).named_parameters())
        for name, update in first.items():
            wanted = weights_of[0] * update + (weights_of[1] or 0) * second[name]
            found = (merged[name] - base[name]).detach().double().numpy()
            assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max() + 1e-6
    config = tmp_path / "b/adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "another"}))
    more = ["merge", "--adapters", str(tmp_path / "a"), str(tmp_path / "b"), "--output-dir", f"{out}2"]
    assert safealign.main(more) == 0 and "is of the base 'another'" in capsys.readouterr().err
    written = json.loads((out / "manifest.json").read_text())["adapters"]
    assert [one["weight"] for one in written] == [0.4]


def test_adapters_that_cannot_be_added_are_refused(tmp_path, capsys):
    adapter_at(tmp_path / "a", 4, 1)
    adapter_at(tmp_path / "others", 4, 1, ("k_proj", "down_proj"))
    out = ["--output-dir", str(tmp_path / "out")]
    a = str(tmp_path / "a")
    for more, word in (([a, str(tmp_path / "others")], "same modules"), ([a + "=x"], "DIR=WEIGHT"),
                       ([str(tmp_path / "none")], "adapter_config.json"),
                       ([a, "--model", "m"], "--model is for"),
                       ([a, "--scale", "1"], "--scale is for")):
        assert safealign.main(["merge", "--adapters", *more, *out]) == 2, more
        assert word in capsys.readouterr().err
    assert safealign.main(["merge", "--adapters", a, "--output-dir", a]) == 2
    assert safealign.main(["merge", "--model", "organism", *out]) == 2
    assert "--add is missing" in capsys.readouterr().err
    assert safealign.main(["merge", "--adapters", a, *out, "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()
