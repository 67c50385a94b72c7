"""Every type of GGUF tensors against the gguf package: the table, and the numbers to the last bit."""
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import test_gguf
import torch
from make_gguf_type_goldens import BLOCKS, random_blocks

from redlite.errors import Error
from redlite.kernels.cpu import library, read_tensor
from redlite.weights.gguf import GGUF
from redlite.weights.gguf_formats import PIECE, decoded, place_in
from redlite.weights.gguf_types import NAMES, OTHERS, TYPES
from redlite.weights.iq_grids import GRIDS, grid

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "gguf_types.json").read_text())["types"]


def test_the_table_is_that_of_the_gguf_package():
    assert {name: (t.code, t.elements, t.size) for name, t in TYPES.items()} == {
        name: (g["code"], g["elements"], g["size"]) for name, g in GOLDEN.items()}
    assert {name: TYPES[name].code for name in read_tensor.KINDS} == read_tensor.KINDS
    assert {name for name, t in TYPES.items() if t.in_c} == set(read_tensor.KINDS)
    assert not NAMES.keys() & OTHERS.keys() and sorted(NAMES | OTHERS)[:4] == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", TYPES)
def test_every_bit_is_that_of_the_gguf_package(kind):
    form, golden = TYPES[kind], GOLDEN[kind]
    out = np.empty((BLOCKS, form.elements), np.float32)
    form.decode(random_blocks(kind, form.size), out)
    assert out.reshape(-1)[:8].tolist() == golden["first"]
    assert hashlib.sha256(out.tobytes()).hexdigest() == golden["sha256"]


@pytest.mark.skipif(bool(library.missing()), reason=library.missing())
@pytest.mark.parametrize("isa", library.isas())
@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "MXFP4"])
def test_the_reader_in_c_gives_the_bits_of_the_gguf_package(tmp_path, kind, isa):
    form = TYPES[kind]
    with GGUF(test_gguf.one_tensor(tmp_path, kind, random_blocks(kind, form.size).tobytes(),
                                   (BLOCKS * form.elements,))) as file, library.using(isa):
        place, out = place_in(file, "t"), torch.empty(BLOCKS * form.elements)
        assert read_tensor.fill(file.parts[0].fileno(), place.offset, kind, out) == 0
    assert hashlib.sha256(out.numpy().tobytes()).hexdigest() == GOLDEN[kind]["sha256"]


def test_grids_hold_their_points_in_order():
    sizes = {name: (len(grid(name)), width) for name, (_, width, _) in GRIDS.items()}
    assert sizes == {"IQ2_XXS": (256, 8), "IQ2_XS": (512, 8), "IQ2_S": (1024, 8), "IQ3_XXS": (256, 4),
                     "IQ3_S": (512, 4), "IQ1_S": (2048, 8)}
    assert grid("IQ2_XXS")[1].tolist() == [43, 8, 8, 8, 8, 8, 8, 8]  # 0x080808080808082b, the second there
    assert all(set(grid(name).ravel()) <= set(levels) for name, (levels, _, _) in GRIDS.items())


@pytest.mark.parametrize("kind", ["Q3_K", "IQ2_XS", "MXFP4"])
def test_a_tensor_of_several_pieces_with_reordered_rows(tmp_path, kind):
    """Also a type without a reader in C, which numpy's serves."""
    form, rows = TYPES[kind], 3 * PIECE // 4096 + 1
    raw = np.concatenate([random_blocks(kind, form.size)] * (rows * 4096 // form.elements // BLOCKS + 1))
    raw = raw[:rows * 4096 // form.elements]
    expected = np.empty((len(raw), form.elements), np.float32)
    form.decode(raw, expected)
    expected = torch.from_numpy(expected.reshape(rows, 4096))
    order = np.random.default_rng(0).permutation(rows)
    with GGUF(test_gguf.one_tensor(tmp_path, kind, raw.tobytes(), (rows, 4096))) as file:
        assert torch.equal(decoded(file, "t"), expected)
        out = torch.empty(rows, 4096, dtype=torch.bfloat16)
        place_in(file, "t", order).fill(out)
        assert torch.equal(out, expected[torch.from_numpy(order)].to(torch.bfloat16))


@pytest.mark.parametrize("code, name", OTHERS.items())
def test_types_of_no_weights_are_refused_by_name(tmp_path, code, name, monkeypatch):
    monkeypatch.setitem(test_gguf.gguf_file.TYPES, name, code)
    path = test_gguf.gguf_file.write(tmp_path / "x.gguf", {}, [("t", (256,), name, bytes(512))])
    with pytest.raises(Error, match=f"tensor 't' has type {name}, which redlite does not read"):
        GGUF(path)
