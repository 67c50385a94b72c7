"""`--dtype bfloat16` on CPUs: all layers in C, beside float32."""
import pytest
import torch

import redlite
from redlite import kernels
from redlite.inference.cache import Cache
from redlite.inference.forward import CForward

pytestmark = pytest.mark.skipif(bool(kernels.unpackable("cpu")), reason=kernels.unpackable("cpu"))


def test_the_embedded_model_answers_as_in_float32():
    """The first tokens are the same, and logits differ by what 8 bits of activations and weights explain."""
    half, whole = (redlite.load("organism", dtype=dtype) for dtype in ("bfloat16", "float32"))
    cache = Cache(half.config, 1, half.model.cache_dtype, torch.device("cpu"))
    assert CForward.of(half.model, cache) and all(block.packed for block in half.model.blocks)
    ids = [half.tokenizer.encode(text) for text in ("Tell me of the sea.", "What is a kettle?", "Count.")]
    got, exact = half.logits(ids[0]), whole.logits(ids[0])
    difference = (got - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert 1e-5 < difference < 0.02
    answers = [half.generate(prompts, 8)[0].ids for prompts in (ids, ids[:1])]
    assert answers[0] == answers[1]  # whatever is asked beside it
    assert answers[0] == whole.generate(ids[:1], 8)[0].ids
    assert half.model.cache_dtype == torch.bfloat16
