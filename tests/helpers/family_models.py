"""The tiny models of tests/golden/families.json: every family as transformers saves it."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from make_model_goldens import IDS, unlayered, weights
from safetensors.numpy import save_file

from redlite import kernels
from redlite.kernels.cpu import library
from redlite.model.llama import LLaMA
from redlite.model.sequences import PackedSequences, packed_attention
from redlite.weights import checkpoint

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "families.json").read_text())["cases"]
SMALL_IDS = [i % 97 for i in IDS]
IN_C = not library.missing() and kernels.implementation("cached_attention") == "c"
PATHS = [None, pytest.param("float32", marks=pytest.mark.skipif(not IN_C, reason="no C library"))]


def directory(name, folder, source="config"):
    """A model as transformers saves it: config.json and weights under its names."""
    case = GOLDEN[name]
    shapes = unlayered(case["shapes"], case["config"]["num_hidden_layers"])
    arrays = {n: np.asarray(w) for n, w in weights(shapes, case["seed"]).items()}
    save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(case[source]))
    return folder


def load(folder, packed=None):
    with torch.device("meta"):
        model = LLaMA(checkpoint.read_config(folder)[0])
    checkpoint.load_weights(model, folder, packed=packed)
    return model.eval()


def run(model, sequences):
    packed = PackedSequences.of(sequences)
    return model.logits(model(packed.ids, packed.positions, packed_attention(model.config, packed.offsets),
                              packed.lengths))
