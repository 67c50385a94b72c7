"""Packed products against float64 on the matrix that the format stands for, as worked out in numpy from the
formats' definitions.
"""
from pathlib import Path

import numpy as np
import pytest
import torch

from redlite.kernels.cpu import library, packed
from redlite.kernels.cpu.packed import PackedMatrix

pytestmark = pytest.mark.skipif(bool(library.missing()), reason=library.missing())
SHAPES = [(1, 1, 1), (1, 47, 31), (2, 16, 32), (5, 31, 64), (7, 123, 47), (13, 100, 160), (32, 33, 96),
          (61, 50, 70), (100, 40, 90), (130, 17, 33)]


@pytest.fixture(params=library.isas())
def path(request):
    with library.using(request.param):
        yield request.param


def bfloat16(x: np.ndarray) -> np.ndarray:
    """float32 numbers to 8 bits, to nearest, ties to even, by frexp's definition of a float; as float64."""
    fraction, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.rint(fraction * 256) / 256, exponent)


def stored(weight: np.ndarray, format: str) -> np.ndarray:
    """The matrix that int8 and int4 keep: blocks of 32, scale and minimum in half precision."""
    if format == "float32":
        return weight.astype(np.float64)
    if format == "bfloat16":
        return bfloat16(weight)
    out = np.zeros(weight.shape)
    for r, row in enumerate(weight):
        for b in range(0, len(row), 32):
            part = row[b:b + 32]
            if format == "int8":
                scale = np.float64(np.float16(np.abs(part).max() / np.float32(127)))
                q = np.clip(np.rint(part * np.float32(1 / np.float32(scale) if scale else 0)), -127, 127)
                out[r, b:b + 32] = q * scale
            else:
                low = np.float32(np.float16(part.min()))
                scale = np.float64(np.float16((part.max() - part.min()) / np.float32(15)))
                q = np.clip(np.rint((part - low) * np.float32(1 / np.float32(scale) if scale else 0)), 0, 15)
                out[r, b:b + 32] = q * scale + np.float64(low)
    return out


def rounded(x: np.ndarray, format: str) -> tuple[np.ndarray, np.ndarray]:
    """The activations that the products take, float64, and half a step of their rounding: a block of 32 is
    whole multiples of a 127th of its largest magnitude; with int8 weights of a 126th, and the sums of the
    positive and of the negative ones among inputs 0, 1, 4, 5 and 2, 3, 6, 7 of every eight count too.
    bfloat16 weights take bfloat16 activations.
    """
    out, half = x.astype(np.float64), np.zeros(x.shape)
    if format == "bfloat16":
        return bfloat16(x), np.abs(x) * 2.0**-8
    for b in range(0, x.shape[1] if format != "float32" else 0, 32):
        part = x[:, b:b + 32]
        most, top = np.abs(part).max(1, keepdims=True), np.float32(127)
        if format == "int8":
            top, whole = np.float32(126), np.zeros((len(x), 32), np.float32)
            whole[:, :part.shape[1]] = part
            fours = whole.reshape(-1, 4, 2, 2, 2).swapaxes(
                2, 3)  # [row, eight, which of its two fours, half of the eight, neighbour]
            for one_sign in (np.maximum(fours, 0), np.maximum(-fours, 0)):
                by_half = one_sign[..., 0] + one_sign[..., 1]
                most = np.maximum(most, (by_half[..., 0] + by_half[..., 1]).reshape(len(x),
                                                                                    -1).max(1, keepdims=True))
        out[:, b:b + 32] = np.rint(part * (top / most)).astype(np.float64) * (most / top)
        half[:, b:b + 32] = most / top / 2
    return out, half


@pytest.mark.parametrize("format", packed.FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_equal_float64_on_the_stored_matrix(path, format, shape):
    T, N, D = shape
    rng = np.random.default_rng(T * N + D)
    weight, x, bias = (rng.standard_normal(s).astype(np.float32) for s in ((N, D), (T, D), (N,)))
    kept = stored(weight, format)
    matrix = PackedMatrix.of(torch.from_numpy(weight), format)
    np.testing.assert_allclose(matrix.rows(torch.arange(N)).numpy(), kept, rtol=0, atol=1e-6)
    got = matrix.product(torch.from_numpy(x), torch.from_numpy(bias)).numpy()
    taken, half = rounded(x, format)
    exact = taken @ kept.T + bias
    size = np.abs(x).max(1, keepdims=True) * np.abs(kept).sum(1)[None] + np.abs(
        bias)  # of the terms that are summed in float32
    assert (np.abs(got - exact) <= size * 3e-7 * np.sqrt(D)).all()
    # And no further from the product of x itself than the rounding of x explains.
    assert (np.abs(got - (x.astype(np.float64) @ kept.T + bias))
            <= half @ np.abs(kept).T + size * 4e-7 * np.sqrt(D)).all()


@pytest.mark.parametrize("format", packed.FORMATS)
def test_the_largest_products_fit(path, format):
    """Where 16 bits hold sums on the way, the largest of both signs: every weight and input at its end."""
    sign = torch.where(torch.arange(64) % 2 == 0, 1.0, -1.0)
    weight = torch.stack([torch.ones(64), -torch.ones(64), sign, -sign, torch.full((64,), 15.0)])
    weight[4, ::32] = 0  # for int4: 0 to 15
    matrix = PackedMatrix.of(weight, format)
    kept = matrix.rows(torch.arange(5)).double()
    for x in (torch.ones(64), -torch.ones(64), sign, -sign, (sign > 0).float(), -(sign < 0).float()):
        exact = kept @ torch.from_numpy(rounded(x[None].numpy(), format)[0][0])
        np.testing.assert_allclose(matrix.product(x[None])[0].numpy(), exact.numpy(), rtol=1e-6, atol=1e-4)
    # Inputs of a few sizes, many of which round up, against weights that all have their sign or all the
    # other.
    rng = np.random.default_rng(0)
    x = rng.choice(np.array([0, 1, 1 / 2, 1 / 3, 1 / 5, 0.25, 0.2539], np.float32),
                   (300, 64)) * rng.choice(np.array([-1, 1, 1], np.float32), (300, 64))
    matrix = PackedMatrix.of(
        torch.from_numpy(
            np.concatenate([np.where(x >= 0, 1, -1), np.where(x > 0, -1, 1)]).astype(np.float32)), format)
    exact = rounded(x, format)[0] @ matrix.rows(torch.arange(600)).double().numpy().T
    np.testing.assert_allclose(matrix.product(torch.from_numpy(x)).numpy(), exact, rtol=1e-6, atol=2e-5)


@pytest.mark.parametrize("format", packed.FORMATS)
def test_a_rows_result_is_the_same_whatever_it_is_batched_with(path, format):
    torch.manual_seed(0)
    matrix, x = PackedMatrix.of(torch.randn(100, 200), format), torch.randn(140, 200)
    whole = matrix.product(x)
    for first, last in ((0, 1), (3, 5), (7, 13), (0, 17), (1, 40), (2, 99)):
        assert torch.equal(matrix.product(x[first:last]), whole[first:last])


@pytest.mark.parametrize("format", packed.FORMATS)
def test_threads_change_nothing(path, format):
    torch.manual_seed(0)
    matrix, x, before = PackedMatrix.of(torch.randn(300, 64),
                                        format), torch.randn(9, 64), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(matrix.product(x))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(r, results[0]) for r in results)


def test_gguf_blocks_are_kept_as_they_are(path, tmp_path):
    """Blocks written here byte by byte as the GGUF specification lays them out."""
    rng = np.random.default_rng(0)
    N, D = 19, 96
    scale, low = (rng.uniform(-2, 2, (N, D // 32)).astype(np.float16) for _ in range(2))
    q8, q4 = rng.integers(-128, 128, (N, D // 32, 32)), rng.integers(0, 16, (N, D // 32, 32))
    nibbles = (q4[..., :16] | q4[..., 16:] << 4).astype(np.uint8)
    halves = [h[..., None].view(np.uint8).reshape(N, D // 32, 2) for h in (scale, low)]
    cases = {
        "Q8_0": (np.concatenate([halves[0], q8.astype(np.int8).view(np.uint8)],
                                -1), q8 * scale[..., None].astype(np.float64)),
        "Q4_0": (np.concatenate([halves[0], nibbles], -1), (q4 - 8) * scale[..., None].astype(np.float64)),
        "Q4_1": (np.concatenate([*halves, nibbles], -1),
                 q4 * scale[..., None].astype(np.float64) + low[..., None].astype(np.float64)), }
    x = rng.standard_normal((5, D)).astype(np.float32)
    for kind, (raw, meant) in cases.items():
        meant = meant.reshape(N, D)
        (tmp_path / kind).write_bytes(raw.tobytes())
        matrix = PackedMatrix(packed.GGUF_KINDS[kind].format, (N, D))
        with open(tmp_path / kind, "rb") as file:
            assert matrix.read(file.fileno(), 0, kind, keep=True) == 0
        np.testing.assert_allclose(matrix.rows(torch.arange(N)).numpy(), meant, rtol=1e-3, atol=1e-6)
        exact = rounded(x, "int8" if kind == "Q8_0" else "int4")[0] @ meant.T
        assert (abs(matrix.product(torch.from_numpy(x)).numpy() - exact) <= 1e-5 *
                (abs(x).max(1, keepdims=True) * abs(meant).sum(1))).all()
    with pytest.raises(ValueError, match="are not int8 as they are"):
        PackedMatrix("int8", (1, 40)).read(0, 0, "Q8_0", keep=True)


def random_super_blocks(kind, N, D, rng):
    """(raw blocks, the matrix that they mean, float64), from ggml's description of the types, k-quants.

    Scales, minima and weights of every value. The 256 weights of a block are d·s·q − m·t for Q4_K, with s and
    t for each 32 of them, and d·s·(q − 32) for Q6_K, with s for each 16.
    """
    shape = N, D // 256
    halves = rng.uniform(0.001, 0.01, (*shape, 2)).astype(np.float16)
    d, m = halves[..., :1].astype(np.float64), halves[..., 1:].astype(np.float64)
    d_bytes, m_bytes = (halves[..., i:i + 1].view(np.uint8) for i in range(2))
    if kind == "Q4_K":
        s, t = rng.integers(0, 64, (2, *shape, 8))
        q = rng.integers(0, 16, (*shape, 8, 32))
        q[0, 0], s[0, 0] = 15, 63
        meant = (d * s)[..., None] * q - (m * t)[..., None]
        twelve = np.concatenate([s[..., :4] | s[..., 4:] >> 4 << 6, t[..., :4] | t[..., 4:] >> 4 << 6,
                                 s[..., 4:] & 15 | (t[..., 4:] & 15) << 4], -1)
        nibbles = (q[..., ::2, :] | q[..., 1::2, :] << 4).reshape(*shape, 128)
        raw = [d_bytes, m_bytes, twelve, nibbles]
    else:
        s, q = rng.integers(-128, 128, (*shape, 16)), rng.integers(0, 64, (*shape, 2, 4, 32))
        q[0, 0], s[0, 0] = 63, 127
        q[-1, 0], s[-1, 0] = 0, -128
        meant = (d * s)[..., None] * (q.reshape(*shape, 16, 16) - 32)
        low = (q[..., :2, :] & 15) | (q[..., 2:, :] & 15) << 4
        high = sum((q[..., i, :] >> 4) << 2 * i for i in range(4))
        raw = [low.reshape(*shape, 128), high.reshape(*shape, 64), s.astype(np.int8).view(np.uint8), d_bytes]
    return np.concatenate([part.astype(np.uint8) for part in raw], -1), meant.reshape(N, D)


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K"])
def test_super_blocks_are_multiplied_as_they_are(path, tmp_path, kind):
    """Against float64 of the weights that the file means; columns and rows fill no panel or tile."""
    rng = np.random.default_rng(0)
    N, D = 37, 768
    raw, meant = random_super_blocks(kind, N, D, rng)
    (tmp_path / "raw").write_bytes(raw.tobytes())
    matrix = PackedMatrix(packed.GGUF_KINDS[kind].format, (N, D))
    with open(tmp_path / "raw", "rb") as file:
        assert matrix.read(file.fileno(), 0, kind, keep=True) == 0
    np.testing.assert_allclose(matrix.rows(torch.arange(N)).numpy(), meant, rtol=1e-6, atol=1e-7)
    x = rng.standard_normal((29, D)).astype(np.float32)
    x[0], x[1] = 1, -1  # the largest sums that 16 bits must hold, of either sign
    x[2] = np.where(np.arange(D) % 4 < 2, 1, -1)
    bias = rng.standard_normal(N).astype(np.float32)
    whole = matrix.product(torch.from_numpy(x), torch.from_numpy(bias))
    taken, _ = rounded(x, "int4")
    terms = np.abs(taken) @ (np.abs(meant).T + 0.63)  # the minima and q · d are summed apart: up to 63 · 0.01
    assert (np.abs(whole.numpy() - (taken @ meant.T + bias)) <= 2e-6 * (terms + np.abs(bias))).all()
    before = torch.get_num_threads()
    try:
        for threads, first, last in ((1, 0, 29), (3, 0, 29), (2, 4, 5), (1, 3, 16), (2, 7, 20)):
            torch.set_num_threads(threads)
            part = matrix.product(torch.from_numpy(x[first:last]), torch.from_numpy(bias))
            assert torch.equal(part, whole[first:last])
    finally:
        torch.set_num_threads(before)
    with pytest.raises(ValueError, match="are not q"):
        PackedMatrix(matrix.format, (1, 128)).read(0, 0, kind, keep=True)


@pytest.mark.parametrize("format", packed.FORMATS)
def test_edges(path, format):
    matrix = PackedMatrix.of(torch.randn(20, 40), format)
    assert matrix.product(torch.empty(0, 40)).shape == (0, 20)
    assert torch.equal(matrix.product(torch.zeros(2, 40)), torch.zeros(2, 20))
    x = torch.zeros(3, 40)
    x[1, 7], x[2, 0] = float("nan"), float("inf")
    got = matrix.product(x)
    assert torch.equal(got[0], torch.zeros(20)) and not torch.isfinite(got[1:]).any(1).all()
    huge = matrix.product(torch.full((1, 40), 1e30))
    assert torch.isfinite(huge).all()
    assert torch.equal(
        PackedMatrix.of(torch.zeros(16, 32), format).product(torch.randn(2, 32)), torch.zeros(2, 16))
    with pytest.raises(ValueError, match=r"\[T, 40\]"):
        matrix.product(torch.randn(2, 41))
    with pytest.raises(IndexError):
        matrix.rows(torch.tensor([20]))


def test_the_instruction_sets():
    assert library.isa() == library.isas()[0] and library.isas()[-1] == "portable"
    with library.using("portable"):
        assert library.isa() == "portable"
    assert library.isa() == library.isas()[0]
    with pytest.raises(ValueError, match="no instruction set 'mmx' here"), library.using("mmx"):
        pass
    assert library.library().rl_use(b"mmx") == -1
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    if {"avx2", "fma", "f16c"} <= set(flags):
        assert library.isas()[-2:] == ("avx2", "portable")
        wide = {"avx512f", "avx512bw", "avx512_vnni"}
        assert ("avx512-vnni" in library.isas()) == (wide <= set(flags))
        assert ("avx512-bf16" in library.isas()) == (wide | {"avx512_bf16"} <= set(flags))
