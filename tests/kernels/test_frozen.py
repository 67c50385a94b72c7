"""Frozen packed matrices in training: product and gradient against float64 on the matrix's own rows."""
import pytest
import torch

from redlite.kernels.cpu import frozen, library
from redlite.kernels.cpu.packed import PackedMatrix

needs_c = pytest.mark.skipif(bool(library.missing()), reason="there is no C library")


@needs_c
@pytest.mark.parametrize("format", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("tile", [1, 1 << 10, 1 << 20])
@pytest.mark.parametrize(("T", "N", "D"), [(5, 47, 123), (1, 16, 32), (3, 1, 33), (0, 17, 64)])
def test_product_and_gradient_are_those_of_the_packed_numbers(format, tile, T, N, D, monkeypatch):
    monkeypatch.setattr(frozen, "TILE_BYTES", tile)
    draw = torch.Generator().manual_seed(T * N + D)
    packed = PackedMatrix.of(torch.randn(N, D, generator=draw), format)
    whole = packed.rows(torch.arange(N)).double()
    x = torch.randn(T, D, generator=draw, requires_grad=True)
    bias, above = torch.randn(N, generator=draw, requires_grad=True), torch.randn(T, N, generator=draw)
    y = frozen.FrozenMatrix(packed).product(x, bias)
    y.backward(above)
    exact, bound = x.detach().double() @ whole.T + bias.detach().double(), 1e-6
    sizes, sizes_above = x.detach().double().abs() @ whole.abs().T, above.double().abs() @ whole.abs()
    assert torch.all((y - exact).abs() <= bound * (1 + sizes))
    assert torch.all((x.grad - above.double() @ whole).abs() <= bound * (1 + sizes_above))
    assert torch.allclose(bias.grad.double(), above.double().sum(0), atol=1e-5)


@needs_c
def test_activations_are_not_rounded():
    """One input of 1e4 leaves the others of its block whole; inference rounds them away."""
    packed = PackedMatrix.of(torch.eye(32), "int8")
    x = torch.ones(1, 32)
    x[0, 0] = 1e4
    assert torch.allclose(frozen.FrozenMatrix(packed).product(x)[0, 1:], torch.ones(31), atol=1e-3)
    assert packed.product(x)[0, 1:].abs().max() < 0.5


@needs_c
def test_other_activations_are_refused():
    matrix = frozen.FrozenMatrix(PackedMatrix.of(torch.eye(32), "int8"))
    for x in (torch.ones(2, 31), torch.ones(2, 32, dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match="float32 activations"):
            matrix.product(x)
