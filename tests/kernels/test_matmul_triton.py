"""Products with packed weights in Triton, against float64 on the matrix that the format stands for (worked
out in numpy, test_linear.py).
"""
import os

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported
pytest.importorskip("triton", reason="triton is not installed")

from test_linear import stored

from redlite.kernels.triton import packed as packed_triton
from redlite.kernels.triton import token_nll
from redlite.kernels.triton.packed import PackedTriton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
UNUSABLE = token_nll.unusable(DEVICE)
pytestmark = pytest.mark.skipif(bool(UNUSABLE), reason=UNUSABLE)
SHAPES = [(1, 1, 1), (1, 47, 31), (2, 16, 32), (7, 70, 47), (13, 33, 160), (33, 40, 600), (64, 33, 96),
          (70, 40, 64), (129, 50, 70)]  # T, N, D
UNIT = {torch.float32: 1e-6, torch.float16: 2**-11,
        torch.bfloat16: 2**-8}  # half a step of rounding; for float32 of a sum


@pytest.mark.slow
@pytest.mark.parametrize("format", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_equal_float64_on_the_stored_matrix(format, dtype, shape, monkeypatch):
    if dtype == torch.bfloat16 and DEVICE == "cpu":
        pytest.skip("Triton's interpreter multiplies bfloat16 wrongly")
    monkeypatch.setattr(packed_triton, "CHUNK", 24)  # so that these small matrices take several
    T, N, D = shape
    rng = np.random.default_rng(T * N + D)
    weight, x, bias = (torch.from_numpy(rng.standard_normal(s).astype(np.float32))
                       for s in ((N, D), (T, D), (N, )))
    x, bias = x.to(dtype), bias.to(dtype)
    kept = stored(weight.numpy(), format)
    matrix = PackedTriton.of(weight, format, dtype, DEVICE)
    assert (matrix.shape, matrix.dtype) == ((N, D), dtype)
    order = torch.from_numpy(rng.permutation(N))
    np.testing.assert_allclose(
        matrix.rows(order.to(DEVICE)).double().cpu().numpy(), kept[order.numpy()], rtol=UNIT[dtype],
        atol=1e-6)
    for added in (None, bias):
        got = matrix.product(x.to(DEVICE), None if added is None else added.to(DEVICE))
        assert got.dtype == dtype
        exact = x.double().numpy() @ kept.T + (0 if added is None else added.double().numpy())
        size = np.abs(x.double().numpy()) @ np.abs(
            kept).T  # of the terms summed: float32 sums; for many rows the weights are rounded to the dtype
        allowed = UNIT[dtype] * np.abs(exact) + size * (UNIT[dtype] if T > packed_triton.FEW else 1e-6) + 1e-6
        assert (np.abs(got.double().cpu().numpy() - exact) <= 1.01 * allowed).all()


def test_gguf_blocks_are_kept_as_they_are():
    """Blocks written here byte by byte as the GGUF specification lays them out."""
    rng = np.random.default_rng(0)
    N, D = 19, 96
    scale, low = (rng.uniform(-2, 2, (N, D // 32)).astype(np.float16) for _ in range(2))
    q8, q4 = rng.integers(-127, 128, (N, D // 32, 32)), rng.integers(0, 16, (N, D // 32, 32))
    nibbles = (q4[..., :16] | q4[..., 16:] << 4).astype(np.uint8)
    halves = [h[..., None].view(np.uint8).reshape(N, D // 32, 2) for h in (scale, low)]
    wide_scale, wide_low = (h[..., None].astype(np.float64) for h in (scale, low))
    cases = {
        "Q8_0": (np.concatenate([halves[0], q8.astype(np.int8).view(np.uint8)], -1), q8 * wide_scale),
        "Q4_0": (np.concatenate([halves[0], nibbles], -1), (q4 - 8) * wide_scale),
        "Q4_1": (np.concatenate([*halves, nibbles], -1), q4 * wide_scale + wide_low),
    }
    x = rng.standard_normal((5, D)).astype(np.float32)
    for kind, (raw, meant) in cases.items():
        meant = meant.reshape(N, D)
        matrix = PackedTriton.of_gguf(kind,
                                      np.ascontiguousarray(raw).reshape(-1), (N, D), torch.float32, DEVICE)
        np.testing.assert_allclose(
            matrix.rows(torch.arange(N, device=DEVICE)).cpu().numpy(), meant, rtol=1e-6, atol=1e-6)
        got = matrix.product(torch.from_numpy(x).to(DEVICE)).double().cpu().numpy()
        assert (np.abs(got - x.astype(np.float64) @ meant.T) <= 1e-6 * (np.abs(x) @ np.abs(meant).T)).all()
    with pytest.raises(ValueError, match="whole blocks"):
        PackedTriton.of_gguf("Q8_0", np.zeros(34, np.uint8), (1, 64), torch.float32, DEVICE)


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_edges(format):
    torch.manual_seed(0)
    matrix = PackedTriton.of(torch.randn(20, 40), format, torch.float32, DEVICE)
    assert matrix.product(torch.empty(0, 40, device=DEVICE)).shape == (0, 20)
    assert torch.equal(matrix.product(torch.zeros(2, 40, device=DEVICE)), torch.zeros(2, 20, device=DEVICE))
    x = torch.zeros(3, 40, device=DEVICE)
    x[1, 7] = float("nan")
    got = matrix.product(x)
    assert torch.equal(got[0], torch.zeros(20, device=DEVICE)) and got[1].isnan().all() and torch.equal(
        got[2], got[0])
    turned = torch.randn(40, 5, device=DEVICE).T
    assert torch.equal(matrix.product(turned), matrix.product(turned.contiguous()))
    none = PackedTriton.of(torch.zeros(16, 32), format, torch.float32, DEVICE)
    assert torch.equal(none.product(torch.randn(2, 32, device=DEVICE)), torch.zeros(2, 16, device=DEVICE))
    assert matrix.rows(torch.tensor([20, -1], device=DEVICE)).isnan().all()
    assert matrix.rows(torch.tensor([], dtype=torch.int64, device=DEVICE)).shape == (0, 40)
    with pytest.raises(ValueError, match=r"\[T, 40\]"):
        matrix.product(torch.randn(2, 41, device=DEVICE))


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_a_model_of_packed_matrices_is_the_model_of_the_stored_ones(format):
    from redlite.model.config import Config
    from redlite.model.llama import LLaMA
    from redlite.model.sequences import PackedSequences, packed_attention
    config = Config("qwen2", 50, 32, 1, 4, 2, 8, 48, qkv_bias=True)
    model, ids = LLaMA(config).initialize(0,
                                          std=0.3).requires_grad_(False), PackedSequences.of([[3, 1, 4, 1, 5],
                                                                                              [9, 2]])
    matrices = [(m, m.weight.clone())
                for m in model.modules()
                if isinstance(m, (torch.nn.Linear, torch.nn.Embedding))]
    logits = []
    for make in (lambda w: torch.from_numpy(stored(w.numpy(), format)).float(),
                 lambda w: PackedTriton.of(w, format, torch.float32, DEVICE)):
        for module, weight in matrices:
            del module.weight
            module.weight = make(weight)
        device = model.output_weight.device
        model.to(device)
        moved = PackedSequences(*(x.to(device) for x in (ids.ids, ids.positions, ids.lengths, ids.offsets)))
        logits.append(
            model.logits(model(moved.ids, moved.positions, packed_attention(config, moved.offsets))).cpu())
    assert (logits[0] - logits[1]).abs().max() < 1e-4 and logits[0].std() > 0.1


def test_what_a_model_is_packed_as(monkeypatch):
    from redlite import kernels
    from redlite.errors import Error
    from redlite.inference.lm import packing
    monkeypatch.setattr(kernels, "FORCED", None)
    assert packing("bfloat16", "cuda", "int8") == "int8" and packing("float16", "cuda:0", "int4") == "int4"
    assert packing("bfloat16", "cuda", None) is None and packing("float16", "cpu", None) is None
    if not kernels.unpackable("cpu"):
        assert packing("bfloat16", "cpu", None) == "bfloat16"
    with pytest.raises(Error, match="float32"):
        packing("bfloat16", "cpu", "int8")
    monkeypatch.setattr(kernels, "FORCED", "reference")
    with pytest.raises(Error, match="'int4' cannot be had: REDLITE_KERNELS=reference"):
        packing("bfloat16", "cuda", "int4")


@pytest.mark.skipif(DEVICE == "cpu", reason="loading to a GPU needs one, and torch sees none")
@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_the_embedded_model_answers_from_packed_matrices(quantize):
    import redlite
    plain, packed = (redlite.load("organism", dtype="bfloat16", device="cuda", quantize=q)
                     for q in (None, quantize))
    ids = plain.tokenizer.encode("A question about the weather.")
    assert isinstance(packed.model.output_weight, PackedTriton)
    a, b = (torch.log_softmax(lm.logits(ids), -1) for lm in (plain, packed))
    assert (a.exp() * (a - b)).sum(-1).mean() < {"int8": 0.01, "int4": 0.2}[quantize]
    assert len(packed.generate([ids, ids[:2]], 4)) == 2
