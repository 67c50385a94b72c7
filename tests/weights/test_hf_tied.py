"""A tied output matrix, as transformers 5.24 settles it (modeling_utils.py, tie_weights)."""
import json

import pytest
import torch
from family_models import PATHS, load, run
from safetensors.numpy import save_file
from test_checkpoint import case_weights

from redlite.errors import Error
from redlite.model.config import Config
from redlite.weights import checkpoint
from redlite.weights.save import save_pretrained

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
IDS = [1, 7, 5, 9, 200, 3]


def write(folder, tied, change):
    """A model of the goldens whose configuration says `tied`, its tensors changed by `change`."""
    raw, tensors = case_weights("grouped")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(raw | {"tie_word_embeddings": tied}))
    return folder


@torch.no_grad()
@pytest.mark.parametrize("packed", PATHS)
def test_saved_under_the_outputs_name_alone(packed, tmp_path):
    for name, gone in (("a", HEAD), ("b", EMBEDDING)):
        (tmp_path / name).mkdir()

        def change(tensors, gone=gone):
            tensors[EMBEDDING] = tensors[HEAD].copy()
            del tensors[gone]
        write(tmp_path / name, True, change)
    a, b = (load(tmp_path / name, packed) for name in "ab")
    assert a.config.tied and b.config.tied and not hasattr(b, "lm_head")
    assert torch.equal(run(a, [IDS]), run(b, [IDS]))


@torch.no_grad()
@pytest.mark.parametrize("packed", PATHS)
def test_another_matrix_in_the_files_counts(packed, tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    wrong, right = (load(write(tmp_path / n, tied, lambda tensors: None), packed)
                    for n, tied in (("a", True), ("b", False)))
    assert not wrong.config.tied and torch.equal(run(wrong, [IDS]), run(right, [IDS]))
    if not packed:
        save_pretrained(wrong, tmp_path / "c")
        assert not checkpoint.read_config(tmp_path / "c")[0].tied


@torch.no_grad()
def test_the_same_matrix_twice_is_tied(tmp_path):
    model = load(write(tmp_path, True, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].copy()})))
    assert model.config.tied and not hasattr(model, "lm_head")
    assert isinstance(model.config, Config)


@torch.no_grad()
def test_saved_without_the_output(tmp_path):
    """AutoModel saves names without "model."; transformers takes them for a causal model too."""
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()

    def bare(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)
    for tied in (True, False):
        def change(tensors, tied=tied):
            if tied:
                del tensors[HEAD]

        def both(tensors, change=change):
            change(tensors)
            bare(tensors)
        a, b = load(write(tmp_path / "a", tied, change)), load(write(tmp_path / "b", tied, both))
        assert torch.equal(run(a, [IDS]), run(b, [IDS]))


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model.", "language_model."])
def test_a_prefix_is_named(tmp_path, prefix):
    def change(tensors):
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)
    with pytest.raises(Error, match=f"'{prefix}model.embed_tokens.weight' stands where model.embed_tokens"):
        load(write(tmp_path, False, change))
