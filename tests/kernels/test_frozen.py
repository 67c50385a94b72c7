"""Frozen quantised matrices in training: their tiles against the definition bit by bit, products, gradients
and token NLLs against float64 on the matrix's own rows.
"""
import numpy as np
import pytest
import torch

from redlite.kernels.cpu import frozen, library
from redlite.kernels.cpu.frozen import FrozenMatrix
from redlite.kernels.cpu.packed import GGUF_KINDS, PackedMatrix
from redlite.kernels.cpu.token_nll import token_nll

pytestmark = pytest.mark.skipif(bool(library.missing()), reason=library.missing())
SHAPES = [(5, 47, 123), (1, 16, 32), (3, 1, 33), (0, 17, 64), (9, 100, 1)]
KEPT = {"q4_k": "Q4_K", "q6_k": "Q6_K"}


@pytest.fixture(params=library.isas())
def isa(request):
    with library.using(request.param):
        yield request.param


def matrix(format: str, N: int, D: int, tmp_path) -> PackedMatrix:
    """A random quantised matrix; q4_k and q6_k from random blocks of a file, D then a multiple of 256."""
    rng = np.random.default_rng(N + D)
    if format not in KEPT:
        return PackedMatrix.of(torch.from_numpy(rng.standard_normal((N, D), dtype=np.float32)), format)
    kind, D = KEPT[format], -(-D // 256) * 256
    raw = rng.integers(0, 256, (N * D // 256, GGUF_KINDS[kind].size), dtype=np.uint8)
    halves = rng.uniform(-0.01, 0.01, (len(raw), 2)).astype("<f2").view(np.uint8)
    if kind == "Q4_K":
        raw[:, :4] = halves
    else:
        raw[:, -2:] = halves[:, :2]
    (tmp_path / "blocks").write_bytes(raw.tobytes())
    packed = PackedMatrix(format, (N, D))
    with (tmp_path / "blocks").open("rb") as file:
        assert packed.read(file.fileno(), 0, kind, keep=True) == 0
    return packed


def whole(packed: PackedMatrix) -> torch.Tensor:
    return packed.rows(torch.arange(packed.shape[0]))


def near(found: torch.Tensor, exact: torch.Tensor, sizes: torch.Tensor) -> None:
    """found within float32's rounding of a sum of numbers whose magnitudes add up to `sizes`."""
    assert torch.all((found - exact).abs() <= 1e-6 * (1 + sizes))


@pytest.mark.parametrize("format", ["int8", "int4", "q4_k", "q6_k"])
@pytest.mark.parametrize(("N", "D"), [(47, 123), (16, 32), (1, 33), (100, 513), (33, 1)])
def test_tiles_are_the_definition_s_numbers_to_the_last_bit(format, N, D, isa, tmp_path):
    packed = matrix(format, N, D, tmp_path)
    for most in (None, 1, 40):
        found = [(first, w_CD.clone()) for first, w_CD in FrozenMatrix(packed).tiles(most)]
        assert [first for first, _ in found] == list(range(0, N, {None: N, 1: 16, 40: 32}[most]))
        bits = torch.cat([w_CD for _, w_CD in found]).view(torch.int32)
        assert torch.equal(bits, whole(packed).view(torch.int32))


@pytest.mark.parametrize("format", ["int8", "int4", "q4_k", "q6_k"])
@pytest.mark.parametrize("tile", [1, 1 << 13, 1 << 20])
@pytest.mark.parametrize(("T", "N", "D"), SHAPES)
def test_product_and_gradient_are_those_of_the_packed_numbers(format, tile, T, N, D, monkeypatch, tmp_path):
    monkeypatch.setattr(frozen, "TILE_BYTES", tile)
    monkeypatch.setattr(frozen, "TILE_ROWS", 1)
    packed = matrix(format, N, D, tmp_path)
    w_ND, draw = whole(packed).double(), torch.Generator().manual_seed(T * N + D)
    x = torch.randn(T, packed.shape[1], generator=draw, requires_grad=True)
    bias, above = torch.randn(N, generator=draw, requires_grad=True), torch.randn(T, N, generator=draw)
    y = FrozenMatrix(packed).product(x, bias)
    y.backward(above)
    exact = x.detach().double()
    near(y, exact @ w_ND.T + bias.detach().double(), exact.abs() @ w_ND.abs().T)
    near(x.grad, above.double() @ w_ND, above.double().abs() @ w_ND.abs())
    near(bias.grad, above.double().sum(0), above.double().abs().sum(0))


@pytest.mark.parametrize("format", ["int8", "q6_k"])
@pytest.mark.parametrize("tile", [1, 1 << 14, 1 << 24])
def test_token_nll_and_its_gradient_are_those_of_the_packed_numbers(format, tile, monkeypatch, tmp_path):
    from redlite.kernels.cpu import token_nll as nll_module
    monkeypatch.setattr(nll_module, "TILE_BYTES", tile)
    packed, draw = matrix(format, 123, 256, tmp_path), torch.Generator().manual_seed(3)
    hidden = torch.randn(31, 256, generator=draw, requires_grad=True)
    targets = torch.randint(0, 123, (31,), generator=draw)
    targets[::5] = -100
    coefficients = torch.randn(31, generator=draw)
    found = token_nll(hidden, FrozenMatrix(packed), targets)
    found.backward(coefficients)
    exact = hidden.detach().double().requires_grad_(True)
    logits = exact @ whole(packed).double().T
    wanted = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="none")
    wanted.backward(coefficients.double())
    assert torch.allclose(found.double(), wanted, atol=1e-4, rtol=1e-5)
    assert torch.allclose(hidden.grad.double(), exact.grad, atol=1e-4, rtol=1e-4)
    assert torch.all(hidden.grad[::5] == 0)


def test_activations_are_not_rounded():
    """One input of 1e4 leaves the others of its block whole; inference rounds them away."""
    packed = PackedMatrix.of(torch.eye(32), "int8")
    x = torch.ones(1, 32)
    x[0, 0] = 1e4
    assert torch.allclose(FrozenMatrix(packed).product(x)[0, 1:], torch.ones(31), atol=1e-3)
    assert packed.product(x)[0, 1:].abs().max() < 0.5


def test_what_does_not_fit_is_refused():
    held = FrozenMatrix(PackedMatrix.of(torch.eye(32), "int8"))
    for x in (torch.ones(2, 31), torch.ones(2, 32, dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match="float32 activations"):
            held.product(x)
    with pytest.raises(ValueError, match="quantised"):
        FrozenMatrix(PackedMatrix.of(torch.eye(32), "bfloat16"))
    with pytest.raises(ValueError, match="targets lie in 0 to 31"):
        token_nll(torch.ones(1, 32), held, torch.tensor([32]))
