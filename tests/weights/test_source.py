"""A GGUF file is opened once and hashed once on the way to its weights; text and the container need no
torch.
"""
import builtins
import gc
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import test_checkpoint as made

import redlite
from redlite.errors import Error
from redlite.inference import lm
from redlite.redteam import answerers
from redlite.store import files
from redlite.weights.gguf import GGUF
from redlite.weights.source import open_source, resolve

TOKENS = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "ab"]
TOKENIZER = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": TOKENS,
             "tokenizer.ggml.scores": -np.arange(len(TOKENS), dtype="<f4"),
             "tokenizer.ggml.token_type": np.array([2, 3, 3, *[1] * (len(TOKENS) - 3)], "<i4")}
ROOT = Path(redlite.__file__).parents[1]


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """(a small GGUF model, its SHA-256, the calls that open it from now on, the paths that were hashed)."""
    path = made.write_gguf(tmp_path / "vicuna.gguf", "grouped", **TOKENIZER)
    digest, opens, hashes = hashlib.sha256(path.read_bytes()).hexdigest(), [], []

    def counting(name, real):
        def wrapper(file, *more, **options):
            if isinstance(file, (str, os.PathLike)) and Path(file) == path:
                opens.append(name)
            return real(file, *more, **options)
        return wrapper

    def hashing(path, descriptor=None, real=files.sha256_file):
        hashes.append(path)
        return real(path, descriptor)
    monkeypatch.setattr(builtins, "open", counting("open", open))
    monkeypatch.setattr(os, "open", counting("os.open", os.open))
    monkeypatch.setattr("io.open", counting("io.open", open))
    monkeypatch.setattr(files, "sha256_file", hashing)
    return path, digest, opens, hashes


def test_loading_a_gguf_opens_it_once(counted):
    path, _, opens, hashes = counted
    model = redlite.load(path)
    assert opens == ["open"] and hashes == [] and len(model.generate([[1, 5]], 2)[0].ids) == 2


def test_an_answerer_opens_and_hashes_its_gguf_once(counted):
    path, digest, opens, hashes = counted
    choice = answerers.local_model(path, "float32", "cpu", template="vicuna_v1.1")
    assert choice.identity["weights"] == hashlib.sha256(f"vicuna.gguf {digest}\n".encode()).hexdigest()
    assert choice.count([{"role": "user", "content": "ab"}]) > 1 and choice.seconds(10, 10) > 0
    choice.load(None)
    assert opens == ["open"] and hashes == [path]


def test_what_was_hashed_is_what_is_loaded(counted):
    """A file put in the model's place after its hash was taken is not the one that is loaded."""
    path = counted[0]
    parts = lm.parts(path)
    before = lm.fingerprints(parts)
    expected = lm.LM.load(parts).logits([1, 5, 7])
    os.replace(made.write_gguf(path.with_name("other.gguf"), "tied", **TOKENIZER), path)
    assert lm.fingerprints(parts) == before
    assert lm.LM.load(parts).logits([1, 5, 7]).equal(expected)


def test_a_gguf_is_closed_when_nothing_refers_to_it(tmp_path):
    file = GGUF(made.write_gguf(tmp_path / "m.gguf", "grouped"))
    descriptor = file.parts[0].fileno()
    os.fstat(descriptor)
    del file
    gc.collect()
    with pytest.raises(OSError):
        os.fstat(descriptor)


def test_names_paths_and_what_is_neither(tmp_path):
    folder = resolve("organism")
    assert (folder / "model.safetensors").exists() and open_source(folder) == folder
    with pytest.raises(Error, match="'nowhere': there is no such file or directory, .*organism"):
        open_source("nowhere")


@pytest.mark.parametrize("modules", [
    "redlite", "redlite.weights.source", "redlite.text.tokenizer, redlite.text.chat, redlite.text.export",
])
def test_these_import_no_torch(modules):
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4943162336\n"


def test_what_is_no_model_says_what_to_give(tmp_path):
    def message(path):
        for tell in (redlite.inspect, redlite.load):
            with pytest.raises(Error) as caught:
                tell(path)
        return str(caught.value).replace(str(tmp_path), "D")

    raw, tensors = made.case_weights("grouped")
    hub = tmp_path / "models--org--name"
    model = hub / "snapshots" / "abc"
    model.mkdir(parents=True)
    made.write_directory(model, raw, tensors)
    assert message(hub) == "D/models--org--name: has no config.json; " \
        "did you mean D/models--org--name/snapshots/abc?"
    assert message(model.parent).endswith("did you mean D/models--org--name/snapshots/abc?")
    for name in ("model.safetensors", "config.json"):
        assert message(model / name).endswith(f"{name}: is one file of a model; give its directory "
                                              "D/models--org--name/snapshots/abc")
    (model / "model.safetensors").write_bytes(POINTER)
    made.refused(model, "model.safetensors: is a pointer of Git LFS and not the file itself")
    own = tmp_path / "own"
    own.mkdir()
    assert message(own) == "D/own: has no config.json; give a directory in Hugging Face's layout, " \
        "or a .gguf file"
    (own / "params.json").write_text("{}")
    assert "a layout of Meta's or Mistral's own (params.json)" in message(own)
    (own / "x.gguf").write_bytes(POINTER)
    assert message(own).endswith("to use x.gguf, name that file itself")
    assert "x.gguf: is a pointer of Git LFS and not the file itself" in message(own / "x.gguf")
    (own / "y.bin").write_bytes(b"ggjt" + bytes(99))
    assert message(own / "y.bin").endswith("give a .gguf file, or a model's directory")


def test_an_adapter_beside_its_bases_configuration(tmp_path):
    """Some trainers copy config.json there. Merged weights beside an adapter are a model."""
    raw, tensors = made.case_weights("grouped")
    folder = made.write_directory(tmp_path / "a", raw, tensors)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    assert open_source(folder) == folder
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    with pytest.raises(Error, match="is an adapter of org/base: give --model org/base --adapter"):
        open_source(folder)
