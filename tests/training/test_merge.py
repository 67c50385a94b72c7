"""safealign merge: sums of weights against numpy's."""
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from redlite.cli import safealign
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
    assert safealign.main([*own, "--output-dir", str(models / "safe")]) == 2
    assert "own directory" in capsys.readouterr().err
