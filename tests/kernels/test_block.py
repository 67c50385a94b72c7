"""The C halves of a block against the plain PyTorch model in float64, for every packed format's own weights,
and bit for bit over batches.
"""
import copy

import pytest
import torch

from redlite import kernels
from redlite.kernels.cpu import library, packed
from redlite.model.config import Config
from redlite.model.llama import LLaMA
from redlite.model.sequences import PackedSequences, packed_attention

pytestmark = pytest.mark.skipif(bool(library.missing()), reason=library.missing())
SHAPES = {
    "even": dict(hidden_size=64, intermediate_size=160, num_attention_heads=4, num_key_value_heads=2),
    "odd": dict(hidden_size=40, intermediate_size=77, num_attention_heads=5, num_key_value_heads=1,
                head_dim=6), "biased": dict(hidden_size=48, intermediate_size=33, num_attention_heads=2,
                                            num_key_value_heads=2, attention_bias=True, mlp_bias=True), }


def models(shape, format):
    """(plain float64 model whose matrices are those that the packed ones stand for, packed model)."""
    config = Config.from_hf({
        "model_type": "llama", "vocab_size": 50, "num_hidden_layers": 2, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 999} | SHAPES[shape], "test")
    plain = LLaMA(config).initialize(1, std=0.2).requires_grad_(False)
    for p in plain.parameters():
        p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    fast = copy.deepcopy(plain)
    for (_, a), (_, b) in zip(plain.named_modules(), fast.named_modules(), strict=True):
        if isinstance(a, (torch.nn.Linear, torch.nn.Embedding)):
            del b.weight
            b.weight = kernels.PackedMatrix.of(a.weight, format)
            a.weight.copy_(b.weight.rows(torch.arange(len(a.weight))))
    for block in fast.model.layers:
        block.pack()
    return plain.double(), fast


def run(model, sequences):
    p = PackedSequences.of(sequences, torch.device("cpu"))
    return model(p.ids, p.positions, packed_attention(model.config, p.offsets), p.lengths)


@pytest.mark.first(6)
@pytest.mark.parametrize("isa", library.isas())
@pytest.mark.parametrize("format", packed.FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_against_float64(shape, format, isa):
    plain, fast = models(shape, format)
    sequences = [
        torch.randint(0, 50, (n, ), generator=torch.Generator().manual_seed(n)).tolist()
        for n in (1, 7, 30, 250)]  # more than a chunk of rows in all
    with library.using(isa):
        got = run(fast, sequences)
    expected = run(plain, sequences)
    assert got.dtype == torch.float32
    if format == "float32":
        assert (got.double() - expected).abs().max() < 2e-5 * expected.abs().max()
        return
    # Activations are rounded to 7 or 8 bits. The same model, an operation at a time, rounds almost all of
    # them alike.
    assert rms(got.double() - expected) < 0.07 * rms(expected)
    for block in fast.model.layers:
        block.packed = None
    with library.using(isa):
        apart = run(fast, sequences)
    assert rms(got - apart) < 0.01 * rms(apart)


def rms(x):
    return x.square().mean().sqrt()


def test_rows_do_not_depend_on_the_batch_or_the_threads():
    _, fast = models("even", "int8")
    block, x = fast.model.layers[0].packed, torch.randn(700, 64)
    cos, sin = torch.randn(700, 16), torch.randn(700, 16)
    q, k, v = block.before_attention(x, ((cos, sin), (cos, sin)))
    y = block.after_attention(x, q)
    before = torch.get_num_threads()
    try:
        for threads, first, last in ((1, 0, 1), (2, 5, 8), (3, 100, 400), (2, 0, 700)):
            torch.set_num_threads(threads)
            some = cos[first:last], sin[first:last]
            part = block.before_attention(x[first:last], (some, some))
            assert all(torch.equal(a, b[first:last]) for a, b in zip(part, (q, k, v), strict=True))
            assert torch.equal(block.after_attention(x[first:last], part[0]), y[first:last])
    finally:
        torch.set_num_threads(before)


def test_extremes():
    """Huge gates, where e^−x leaves float32, and rows of zeros."""
    _, fast = models("even", "float32")
    x = torch.zeros(3, 64)
    x[1], x[2] = 1e20, -1e20
    out = fast.model.layers[0].packed.after_attention(x, torch.zeros(3, 4, 16))
    assert torch.isfinite(out).all()
    assert fast.model.layers[0].packed.after_attention(x[:0], torch.zeros(0, 4, 16)).shape == (0, 64)
