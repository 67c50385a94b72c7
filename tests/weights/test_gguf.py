"""GGUF: blocks against llama.cpp's numbers (stored) and against their definition element by element; damaged
containers.
"""
import hashlib
import json
import struct
from pathlib import Path

import gguf_file
import numpy as np
import pytest
import torch
from make_gguf_goldens import SIZES, blocks

from redlite.errors import Error
from redlite.kernels.cpu.packed import GGUF_KINDS
from redlite.weights.gguf import GGUF
from redlite.weights.gguf_formats import PIECE, decoded, place_in
from redlite.weights.gguf_types import TYPES

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "gguf_blocks.json").read_text())["float32"]


def half(data: bytes) -> float:
    return struct.unpack("<e", data)[0]


def nibble(data: bytes, j: int) -> int:
    return data[j % 16] >> (4 if j >= 16 else 0) & 15


def element(kind: str, block: bytes, i: int) -> float:
    """Element i of a block in exact arithmetic, from the struct definitions of ggml-common.h."""
    if kind == "F32":
        return struct.unpack("<f", block)[0]
    if kind == "F16":
        return half(block)
    if kind == "BF16":
        return struct.unpack("<f", b"\0\0" + block)[0]
    if kind == "Q8_0":
        return half(block[:2]) * struct.unpack("b", block[2 + i:3 + i])[0]
    if kind == "Q4_0":
        return half(block[:2]) * (nibble(block[2:], i) - 8)
    if kind == "Q4_1":
        return half(block[:2]) * nibble(block[4:], i) + half(block[2:4])
    if kind == "Q5_0":
        fifth = int.from_bytes(block[2:6], "little") >> i & 1
        return half(block[:2]) * ((nibble(block[6:], i) | fifth << 4) - 16)
    if kind == "Q4_K":
        group, packed = i // 32, block[4:16]
        if group < 4:
            scale, minimum = packed[group] & 63, packed[group + 4] & 63
        else:
            scale = packed[group + 4] & 15 | packed[group - 4] >> 6 << 4
            minimum = packed[group + 4] >> 4 | packed[group] >> 6 << 4
        byte = block[16 + i // 64 * 32 + i % 32]
        return half(block[:2]) * scale * (byte >> 4 if i // 32 % 2
                                          else byte & 15) - half(block[2:4]) * minimum
    low, high, scales = block[:128], block[128:192], block[192:208]                         # Q6_K
    part, j, quarter = i // 128, i % 32, i % 128 // 32
    byte = low[part * 64 + (quarter % 2) * 32 + j]
    q = (byte >> 4 if quarter >= 2 else byte & 15) | (high[part * 32 + j] >> 2 * quarter & 3) << 4
    return half(block[208:210]) * struct.unpack("b", scales[i // 16:i // 16 + 1])[0] * (q - 32)


def one_tensor(tmp_path, kind, raw, shape=None):
    return gguf_file.write(tmp_path / f"{kind}.gguf", {"general.architecture": "llama"},
                           [("t", shape or (len(raw) // SIZES[kind][1] * SIZES[kind][0],), kind, raw)])


@pytest.mark.parametrize("kind", SIZES)
def test_every_element_is_what_the_format_says(tmp_path, kind):
    raw, (elements, size) = blocks(kind), SIZES[kind]
    with GGUF(one_tensor(tmp_path, kind, raw)) as file:
        got = decoded(file, "t").double()
    exact = torch.tensor([element(kind, raw[b:b + size], i) for b in range(0, len(raw), size)
                          for i in range(elements)], dtype=torch.float64)
    largest = exact.abs().max()
    assert largest > 0.1 and (got - exact).abs().max() <= 2e-7 * largest  # three float32 roundings at most


@pytest.mark.parametrize("kind", GOLDEN)
def test_numbers_are_those_of_llama_cpp(tmp_path, kind):
    with GGUF(one_tensor(tmp_path, kind, blocks(kind))) as file:
        got = decoded(file, "t").numpy()
    expected = np.frombuffer(bytes.fromhex(GOLDEN[kind]), np.float32)
    assert got.shape == expected.shape and np.abs(got - expected).max() <= 1.2e-7 * np.abs(expected).max()


def test_the_kernels_keep_the_blocks_that_the_table_says():
    assert {name: (TYPES[name].elements, TYPES[name].size) for name in SIZES} == SIZES
    kept = {name: (t.kept, t.elements, t.size) for name, t in TYPES.items() if t.kept}
    assert kept == {name: tuple(kind) for name, kind in GGUF_KINDS.items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_are_rounded_once_from_float32(tmp_path, dtype):
    with GGUF(one_tensor(tmp_path, "Q4_K", blocks("Q4_K"))) as file:
        assert torch.equal(decoded(file, "t", dtype), decoded(file, "t").to(dtype))


def test_shapes_rows_first_and_raw_blocks(tmp_path):
    raw = blocks("Q8_0", 6)
    with GGUF(one_tensor(tmp_path, "Q8_0", raw, (3, 64))) as file:
        assert file.tensors["t"].shape == (3, 64)
        assert place_in(file, "t").blocks().shape == (3, 68) and place_in(file, "t").blocks().tobytes() == raw
        turned = place_in(file, "t", np.array([2, 0, 1])).blocks()
        assert turned.tobytes() == raw[-68:] + raw[:-68]
        assert decoded(file, "t")[2, 33].item() == np.float32(element("Q8_0", raw[-34:], 1))
        out = torch.empty(3, 64, dtype=torch.bfloat16)
        place_in(file, "t").fill(out)
        assert torch.equal(out, decoded(file, "t", torch.bfloat16))
        with pytest.raises(Error, match="no tensor 'u'"):
            place_in(file, "u")
    with pytest.raises(Error, match="is closed"):
        decoded(file, "t")


def test_a_tensor_of_several_pieces(tmp_path):
    values = np.random.default_rng(0).standard_normal(2 * PIECE + 37).astype("<f4")
    with GGUF(one_tensor(tmp_path, "F32", values.tobytes())) as file:
        assert np.array_equal(decoded(file, "t").numpy(), values)


def test_metadata_of_every_type(tmp_path):
    head = b"GGUF" + struct.pack("<IQQ", 2, 0, 14)
    numbers = [(0, "<B", 200), (1, "<b", -5), (2, "<H", 60000), (3, "<h", -300), (4, "<I", 4 << 28),
               (5, "<i", -7), (6, "<f", 0.5), (7, "<?", True),
               (10, "<Q", 1 << 63), (11, "<q", -1 << 40), (12, "<d", 0.1)]
    for kind, form, number in numbers:
        head += gguf_file.text(f"n{kind}") + struct.pack("<I", kind) + struct.pack(form, number)
    head += b"".join(gguf_file.text(k) + gguf_file.value(v) for k, v in
                     {"s": "é\0x", "strings": ["", "a", "日本"], "array": np.array([1.5, -2], "<f4")}.items())
    (tmp_path / "m.gguf").write_bytes(head)
    with GGUF(tmp_path / "m.gguf") as file:
        assert {k: file.metadata[k] for k in (f"n{n[0]}" for n in numbers)} == {f"n{n[0]}": n[2]
                                                                                for n in numbers}
        assert all(type(file.metadata[f"n{n[0]}"]) is type(n[2]) for n in numbers)
        assert file.metadata["s"] == "é\0x" and file.metadata["strings"] == ["", "a", "日本"]
        assert file.metadata["array"].tolist() == [1.5, -2.0]


@pytest.mark.parametrize("alignment", [1, 8, 32, 4096])
def test_alignment(tmp_path, alignment):
    tensors = [("a", (3,), "F32", np.arange(3, dtype="<f4").tobytes()),
               ("b", (1,), "F16", np.array([7], "<f2").tobytes())]
    path = gguf_file.write(tmp_path / "a.gguf", {"general.alignment": alignment}, tensors, alignment)
    with GGUF(path) as file:
        assert decoded(file, "a").tolist() == [0, 1, 2] and decoded(file, "b").tolist() == [7]


# ---- damage ----

def refused(path, words=None):
    with pytest.raises(Error, match=words) as caught, GGUF(path) as file:
        for name in file.tensors:
            decoded(file, name)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def small(tmp_path, **change):
    arguments = {"metadata": {"general.architecture": "llama", "list": ["a", "b"],
                              "n": np.arange(3, dtype="<i4"), "m": 7},
                 "tensors": [("t", (2, 32), "Q8_0", blocks("Q8_0", 2)),
                             ("u", (4,), "F32", bytes(16))]} | change
    return gguf_file.write(tmp_path / "s.gguf", **arguments)


@pytest.mark.slow
def test_truncated_at_every_byte(tmp_path):
    whole = small(tmp_path).read_bytes()
    whole = whole[:len(whole) - 16]  # what follows is padding
    for length in range(len(whole)):
        (tmp_path / "t.gguf").write_bytes(whole[:length])
        refused(tmp_path / "t.gguf")
    (tmp_path / "t.gguf").write_bytes(whole)
    with GGUF(tmp_path / "t.gguf") as file:
        assert list(file.tensors) == ["t", "u"]


def test_truncated_data_name_the_tensor(tmp_path):
    path = small(tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    refused(path, "tensor 'u' needs 16 bytes .* truncated")


def patched(tmp_path, old: bytes, new: bytes):
    path = small(tmp_path)
    whole = path.read_bytes()
    assert whole.count(old) == 1
    path.write_bytes(whole.replace(old, new))
    return path


@pytest.mark.parametrize("old, new, words", [
    (b"GGUF\3\0\0\0", b"GGML\3\0\0\0", "does not begin with the letters GGUF"),
    (b"GGUF\3\0\0\0", b"GGUF\1\0\0\0", "version 1"),
    (b"GGUF\3\0\0\0", b"GGUF\0\0\0\3", "big-endian"),
    (b"GGUF\3\0\0\0" + struct.pack("<Q", 2), b"GGUF\3\0\0\0" + struct.pack("<Q", 1 << 62),
     "claims 4611686018427387904 tensors"),
    (struct.pack("<Q", 4) + gguf_file.text("general.architecture"),
     struct.pack("<Q", 1 << 60) + gguf_file.text("general.architecture"), "metadata pairs"),
    (struct.pack("<IQ", 8, 2), struct.pack("<IQ", 8, 1 << 61),
     "metadata 'list' claims 2305843009213693952 strings"),
    (struct.pack("<IQ", 5, 3), struct.pack("<IQ", 5, 1 << 61), "metadata 'n'"),
    (struct.pack("<IIQ", 9, 5, 3), struct.pack("<IIQ", 9, 9, 3), "array of arrays"),
    (struct.pack("<IIQ", 9, 5, 3), struct.pack("<IIQ", 9, 99, 3), "'n' has the unknown type 99"),
    (gguf_file.text("a") + gguf_file.text("b"), gguf_file.text(b"\xff") + gguf_file.text("b"),
     "'list', string 0, is not UTF-8"),
    (struct.pack("<IQQIQ", 2, 32, 2, 8, 0), struct.pack("<IQQIQ", 9, 32, 2, 8, 0),
     "tensor 't' has 9 dimensions"),
    (struct.pack("<IQQIQ", 2, 32, 2, 8, 0), struct.pack("<IQQIQ", 2, 32, 2, 9, 0),
     "tensor 't' has type Q8_1"),
    (struct.pack("<IQQIQ", 2, 32, 2, 8, 0), struct.pack("<IQQIQ", 2, 32, 2, 77, 0), "tensor 't' has type 77"),
    (struct.pack("<IQQIQ", 2, 32, 2, 8, 0), struct.pack("<IQQIQ", 2, 33, 2, 8, 0), "impossible shape"),
    (struct.pack("<IQQIQ", 2, 32, 2, 8, 0), struct.pack("<IQQIQ", 2, 0, 2, 8, 0), "impossible shape"),
    (struct.pack("<IQQIQ", 2, 32, 2, 8, 0), struct.pack("<IQQIQ", 2, 1 << 63, 1 << 63, 8, 0),
     "needs .* bytes in a file of"),
    (struct.pack("<IQQIQ", 2, 32, 2, 8, 0), struct.pack("<IQQIQ", 2, 32, 2, 8, 5),
     "no multiple of the alignment"),
    (struct.pack("<IQIQ", 1, 4, 0, 96), struct.pack("<IQIQ", 1, 4, 0, 64), "'u' overlaps another"),
    (gguf_file.text("m") + gguf_file.value(7), gguf_file.text("n") + gguf_file.value(7),
     "key 'n' is there twice"),
    (gguf_file.text("u"), gguf_file.text("t"), "tensor 't' is there twice"),
    (gguf_file.text("u"), gguf_file.text(b"\x85"), "name of tensor 1 is not UTF-8"),
])
def test_damage_is_refused_by_name(tmp_path, old, new, words):
    refused(patched(tmp_path, old, new), words)


@pytest.mark.parametrize("alignment", [0, 3, 1 << 21, "32"])
def test_alignment_that_is_no_power_of_two(tmp_path, alignment):
    refused(small(tmp_path, metadata={"general.alignment": alignment}), "general.alignment")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("kind, at", [("F32", None), ("F16", None), ("BF16", None), ("Q8_0", 0), ("Q4_1", 2),
                                      ("Q4_K", 2), ("Q6_K", 208)])
def test_numbers_that_are_not_finite(tmp_path, kind, at, value):
    raw = bytearray(blocks(kind))
    number = struct.pack("<f", float(value))[2:] if kind == "BF16" else struct.pack("<f" if kind == "F32"
                                                                                    else "<e", float(value))
    start = SIZES[kind][1] * 2 + (at or 0)
    raw[start:start + len(number)] = number
    refused(one_tensor(tmp_path, kind, bytes(raw)), "tensor 't': NaN or infinite values")


def test_numbers_beyond_float16(tmp_path):
    with GGUF(one_tensor(tmp_path, "F32", np.array([1, 1e5], "<f4").tobytes())) as file:
        assert decoded(file, "t", torch.bfloat16)[1] > 9e4
        with pytest.raises(Error, match="beyond the range of float16; use float32 or bfloat16"):
            decoded(file, "t", torch.float16)


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    path = one_tensor(tmp_path, "F32", bytes(400))
    with GGUF(path) as file:
        with open(path, "r+b") as other:
            other.truncate(300)
        with pytest.raises(Error, match="tensor 't': the file became shorter"):
            decoded(file, "t")


def test_what_is_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "none.gguf"):
        refused(path, "is not a file")
    (tmp_path / "empty.gguf").write_bytes(b"")
    refused(tmp_path / "empty.gguf", "only 0 bytes")


# ---- a model split over several files ----

def split(folder, counts=(1, 0, 2), name="m", **change):
    """A model in parts with so many tensors each, as llama.cpp's gguf-split writes it; the parts' paths."""
    paths, number = [], 0
    for i, count in enumerate(counts):
        fields = {"split.no": i, "split.count": len(counts), "split.tensors.count": sum(counts)}
        if i == 0:
            fields["general.architecture"] = "llama"
        tensors = [(f"t{number + j}", (32,), "F32", np.full(32, number + j, "<f4").tobytes())
                   for j in range(count)]
        number += count
        path = folder / f"{name}-{i + 1:05d}-of-{len(counts):05d}.gguf"
        paths.append(gguf_file.write(path, fields | change, tensors))
    return paths


def test_any_part_of_a_split_model_gives_all(tmp_path):
    paths = split(tmp_path)
    for path in paths:
        with GGUF(path) as file:
            assert file.path == paths[0] and file.metadata["general.architecture"] == "llama"
            assert list(file.tensors) == ["t0", "t1", "t2"]
            assert [decoded(file, f"t{i}")[5].item() for i in range(3)] == [0, 1, 2]
            assert file.hashes() == {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}
    with pytest.raises(Error, match=r"m-00003-of-00003.gguf: is closed"):
        decoded(file, "t2")


def test_parts_that_do_not_make_a_model(tmp_path):
    paths = split(tmp_path)
    other = split(tmp_path, (1, 1, 1), "other")
    paths[1].rename(tmp_path / "away")
    with pytest.raises(Error, match=r"m-00002-of-00003.gguf: is missing; the model is split over 3 files"):
        GGUF(paths[2])
    paths[1].write_bytes(other[2].read_bytes())
    with pytest.raises(Error, match=r"m-00002-of-00003.gguf: does not say that it is part 2 of 3"):
        GGUF(paths[0])
    paths[1].write_bytes(other[1].read_bytes())
    with pytest.raises(Error, match="hold 4 tensors and should hold 3"):
        GGUF(paths[0])
    for path in split(tmp_path, (1, 1), "twice"):
        path.write_bytes(path.read_bytes().replace(b"t1", b"t0"))
    with pytest.raises(Error, match="tensor 't0' is also in another part"):
        GGUF(tmp_path / "twice-00001-of-00002.gguf")
    paths[0].rename(tmp_path / "mine.gguf")
    refused(tmp_path / "mine.gguf", "is one of 3 parts of a split model, but not named NAME-0000N-of-00003")
    refused(gguf_file.write(tmp_path / "x.gguf", {"split.count": "3"}, []), "metadata 'split.count' is '3'")


def test_a_split_of_one_part_is_whole(tmp_path):
    with GGUF(gguf_file.write(tmp_path / "x.gguf", {"split.no": 0, "split.count": 1}, [])) as file:
        assert file.tensors == {}


def test_texts_that_are_passed_over(tmp_path):
    """What is not wanted is an empty list, and all that stands behind it is as ever."""
    texts = ["a", "", "ü" * 300, "b c"]
    metadata = {"before": 1, "merges": texts, "tokens": texts, "after": 2.5}
    path = gguf_file.write(tmp_path / "m.gguf", metadata, [("w", (2,), "F32", bytes(8))])
    whole, part = GGUF(path), GGUF(path, ("merges",))
    assert whole.metadata["merges"] == texts and part.metadata["merges"] == []
    assert part.metadata | {"merges": texts} == whole.metadata and part.tensors == whole.tensors


@pytest.mark.parametrize("length", [1 << 62, 5000])
def test_texts_that_are_passed_over_end_within_the_file(length, tmp_path):
    path = tmp_path / "m.gguf"
    gguf_file.write(path, {"merges": ["one", "other"]}, [])
    raw = path.read_bytes()
    path.write_bytes(raw.replace(gguf_file.text("other"), struct.pack("<Q", length) + b"other"))
    with pytest.raises(Error, match="metadata 'merges', string 1"):
        GGUF(path, ("merges",))
