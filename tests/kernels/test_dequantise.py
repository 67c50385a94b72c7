"""Reading tensors in C: the same bits as gguf_formats.py's numpy, for every kind, shape, order, dtype and
number of threads; and no fault missed.
"""
import errno
import os

import numpy as np
import pytest
import torch
from make_gguf_goldens import SIZES

from redlite.errors import Error
from redlite.kernels.cpu import library, read_tensor
from redlite.kernels.cpu.packed import GGUF_KINDS, PackedMatrix
from redlite.weights import gguf_formats

pytestmark = pytest.mark.skipif(bool(library.missing()), reason=library.missing())
HALVES = {
    "F16": (0, ), "BF16": (), "F32": (), "Q8_0": (0, ), "Q4_0": (0, ), "Q4_1": (0, 2), "Q5_0": (0, ),
    "Q4_K": (0, 2), "Q6_K": (208, )}  # where blocks have halves


def stored(kind: str, numbers: int, seed: int = 0) -> np.ndarray:
    """Random bytes for so many numbers: every finite half (tiny ones and −0 too), quants of every value;
    float32 and bfloat16 below 2⁶⁴.
    """
    elements, size = SIZES[kind]
    raw = np.random.default_rng(seed).integers(0, 256, (numbers // elements, size), dtype=np.uint8)
    for at in HALVES[kind]:
        raw[:, at + 1] &= np.where((raw[:, at + 1] & 0x7c) == 0x7c, 0x83, 0xff).astype(np.uint8)
    if kind in ("F32", "BF16"):
        raw[:, -1] &= 0xdf
    return raw


def file_of(tmp_path, raw: np.ndarray, before: int = 7) -> int:
    path = tmp_path / "bytes"
    path.write_bytes(bytes(before) + raw.tobytes())
    return os.open(path, os.O_RDONLY)


def bits(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().view(torch.uint8).numpy()


@pytest.fixture(params=library.isas())
def path(request):
    with library.using(request.param):
        yield


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("rows, blocks", [(1, 1), (1, 300), (3, 5), (17, 2), (700, 1)])
def test_the_same_bits_as_numpy(tmp_path, path, threads, kind, rows, blocks):
    width = (SIZES[kind][0] if SIZES[kind][0] > 1 else 61) * blocks
    descriptor = file_of(tmp_path, stored(kind, rows * width))
    for order in (None, np.random.default_rng(1).permutation(rows)):
        expected = torch.empty(rows, width)
        gguf_formats.decode_in_numpy(descriptor, 7, kind, expected, "t", order)
        got = torch.empty(rows, width)
        assert read_tensor.fill(descriptor, 7, kind, got, order) == 0 and np.array_equal(
            bits(got), bits(expected))
        assert len(np.unique(bits(got))) > 1
        if kind not in ("F32", "BF16"):
            for dtype in (torch.bfloat16, torch.float16):
                got = torch.empty(rows, width, dtype=dtype)
                reach = torch.finfo(dtype).max
                code = read_tensor.fill(descriptor, 7, kind, got, order)
                assert code == (0 if expected.abs().max() <= reach else read_tensor.OUT_OF_RANGE)
                assert code or np.array_equal(bits(got), bits(expected.to(dtype)))
    os.close(descriptor)


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("rows, blocks", [(1, 1), (16, 2), (49, 3)])
def test_packed_as_if_the_whole_matrix_stood_between(tmp_path, threads, kind, rows, blocks):
    width = (SIZES[kind][0] if SIZES[kind][0] > 1 else 40) * blocks
    raw = stored(kind, rows * width)
    descriptor = file_of(tmp_path, raw)
    for order in (None, np.random.default_rng(1).permutation(rows)):
        whole = torch.empty(rows, width)
        gguf_formats.decode_in_numpy(descriptor, 7, kind, whole, "t", order)
        for format in ("float32", "int8", "int4"):
            matrix = PackedMatrix(format, (rows, width))
            assert matrix.read(descriptor, 7, kind, order) == 0
            assert np.array_equal(matrix.buffer.numpy(), PackedMatrix.of(whole, format).buffer.numpy())
            if format == "float32":
                assert np.array_equal(bits(matrix.rows(torch.arange(rows))), bits(whole))
        if kind in GGUF_KINDS:
            matrix = PackedMatrix(GGUF_KINDS[kind].format, (rows, width))
            assert matrix.read(descriptor, 7, kind, order, keep=True) == 0
            # Q4_0 is kept with the minimum −8 · scale, which is infinite as float16 for the largest scales.
            most = whole.view(rows, -1, 32).abs().amax(-1).repeat_interleave(32, 1)
            got, fits = matrix.rows(torch.arange(rows)), most <= (8188 if kind == "Q4_0" else torch.inf)
            assert fits.float().mean() > 0.5
            assert torch.allclose(got[fits], whole[fits], rtol=1e-6, atol=1e-7)
            assert kind not in ("Q4_K", "Q6_K") or torch.equal(got, whole)
    os.close(descriptor)


def test_every_half_both_ways(tmp_path, path):
    halves = np.arange(65536, dtype="<u2")
    halves = halves[(halves & 0x7c00) != 0x7c00]
    descriptor = file_of(tmp_path, halves)
    got, expected = torch.empty(len(halves)), halves.view("<f2").astype(np.float32)
    assert read_tensor.fill(descriptor, 7, "F16", got) == 0 and np.array_equal(
        bits(got), expected.view(np.uint8))
    os.close(descriptor)
    steps = np.sort(expected[expected >= 0])
    between = ((steps[1:].astype(np.float64) + steps[:-1]) / 2).astype(np.float32)  # the ties
    values = np.concatenate([
        between,
        np.nextafter(between, np.float32(0)),
        np.nextafter(between, np.float32(1e9)), [1e-30, 65504, -65504, -0.0]]).astype("<f4")
    descriptor = file_of(tmp_path, values)
    for dtype in (torch.float16, torch.bfloat16):
        got = torch.empty(len(values), dtype=dtype)
        assert read_tensor.fill(descriptor, 7, "F32", got) == 0 and np.array_equal(
            bits(got), bits(torch.from_numpy(values).to(dtype)))
    os.close(descriptor)


@pytest.mark.parametrize("kind, at", [("F32", 2), ("F16", 0), ("BF16", 0), ("Q8_0", 0), ("Q4_1", 2),
                                      ("Q4_0", 0), ("Q5_0", 0), ("Q4_K", 0), ("Q6_K", 208)])
@pytest.mark.parametrize("which", ["infinite", "NaN"])
def test_no_number_that_is_not_finite_gets_through(tmp_path, path, threads, kind, at, which):
    value = {"infinite": (b"\x80\x7f", b"\x00\xfc"),
             "NaN": (b"\xc0\xff", b"\x01\x7c")}[which][kind not in ("F32", "BF16")]
    rows, width = 50, max(SIZES[kind][0], 32)
    raw = stored(kind, rows * width)
    if kind == "Q6_K":
        raw[-1, 192:208] = 1
    raw[-1, at:at + 2] = list(value)
    descriptor = file_of(tmp_path, raw)
    assert read_tensor.fill(descriptor, 7, kind, torch.empty(rows, width)) == read_tensor.NOT_FINITE
    assert PackedMatrix("float32", (rows, width)).read(descriptor, 7, kind) == read_tensor.NOT_FINITE
    if kind in GGUF_KINDS:
        assert PackedMatrix(GGUF_KINDS[kind].format, (rows, width)).read(descriptor, 7, kind,
                                                                         keep=True) == read_tensor.NOT_FINITE
    os.close(descriptor)


def test_faults_of_files_and_callers(tmp_path, threads):
    descriptor, out = file_of(tmp_path, stored("Q8_0", 40 * 64)), torch.empty(40, 64)
    assert read_tensor.fill(descriptor, 8, "Q8_0", out) == read_tensor.SHORTER == PackedMatrix(
        "int8", (40, 64)).read(descriptor, 8, "Q8_0", keep=True)
    assert read_tensor.fill(descriptor, 7, "Q8_0", torch.empty(0, 64)) == 0 == PackedMatrix(
        "float32", (0, 64)).read(descriptor, 7, "Q8_0")
    assert read_tensor.fill(descriptor, 7, "Q4_K", torch.empty(3, 64),
                            np.arange(3)) == errno.EINVAL  # rows are no whole blocks
    with pytest.raises(Error, match=r"w: cannot be read \(Is a directory\)"):
        folder = os.open(tmp_path, os.O_RDONLY)
        gguf_formats.decode(folder, 0, "F32", out, "w")
    os.close(folder)
    for order in (np.arange(39), np.arange(40, dtype=np.int32), np.arange(80)[::2]):
        with pytest.raises(ValueError):
            read_tensor.fill(descriptor, 7, "Q8_0", out, order)
    with pytest.raises(ValueError):
        read_tensor.fill(descriptor, 7, "Q8_0", torch.empty(64, 40).T)
    with pytest.raises(ValueError):
        PackedMatrix("int4", (40, 64)).read(descriptor, 7, "Q8_0", keep=True)
    os.close(descriptor)


def test_a_quantised_bias_is_put_in_order_too(tmp_path):
    raw, order = stored("Q8_0", 64), np.random.default_rng(0).permutation(64)
    descriptor, plain, ordered = file_of(tmp_path, raw), torch.empty(64), torch.empty(64)
    gguf_formats.decode(descriptor, 7, "Q8_0", plain, "t")
    gguf_formats.decode(descriptor, 7, "Q8_0", ordered, "t", order)
    assert torch.equal(ordered, plain[torch.from_numpy(order)])
    os.close(descriptor)
