"""Quantised directories: each layout is packed here in plain loops from its definition, and read back."""
import json

import numpy as np
import pytest
import safetensors.torch
import test_checkpoint as made
import torch

from redlite.errors import Error
from redlite.weights import checkpoint, configuration, hf_files, quantised_safetensors
from redlite.weights.quantised_safetensors import decoded

ROWS, COLUMNS = 48, 64
RNG = np.random.default_rng(7)
NAME = "model.layers.0.mlp.up_proj"


def words(codes: list[int], bits: int) -> list[int]:
    """Numbers as int32, the first in the lowest bits."""
    run, out = 32 // bits, []
    for i in range(0, len(codes), run):
        word = sum(c << bits * j for j, c in enumerate(codes[i:i + run]))
        out.append(word - (1 << 32) if word >= 1 << 31 else word)
    return out


def int32(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int32)


def read(tmp_path, tensors, settings, name=NAME + ".weight", dtype=torch.float32):
    """What a directory with these tensors gives under a name."""
    tmp_path.mkdir(exist_ok=True)
    tensors = {n: t.contiguous() for n, t in tensors.items()}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    stored = decoded(hf_files.tensors(tmp_path), {"quantization_config": settings}, "config.json")
    hf_files.check_plain(stored)
    out = torch.full(stored[name].shape, 99.0, dtype=dtype)
    stored[name].fill(out)
    return out, stored


def codes(bits, rows=ROWS, columns=COLUMNS):
    return RNG.integers(0, 1 << bits, (rows, columns))


def scales(*shape):
    return torch.from_numpy(RNG.uniform(0.01, 0.5, shape).astype(np.float32)).half()


# ---- FP8 ----

def fp8(shape=(ROWS, COLUMNS)):
    return torch.from_numpy(RNG.standard_normal(shape).astype(np.float32)).to(torch.float8_e4m3fn)


@pytest.mark.parametrize("block", [(16, 16), (40, 24)])  # the second leaves a rest on both sides
def test_fp8_blocks_as_deepseek_and_qwen_write_them(tmp_path, block):
    weight = fp8()
    scale = torch.from_numpy(RNG.uniform(0.1, 2, (-(-ROWS // block[0]), -(-COLUMNS // block[1]))
                                         ).astype(np.float32))
    out, _ = read(tmp_path, {NAME + ".weight": weight, NAME + ".weight_scale_inv": scale},
                  {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": list(block),
                   "activation_scheme": "dynamic"})
    for r in range(ROWS):
        for c in range(COLUMNS):
            assert out[r, c] == weight[r, c].float() * scale[r // block[0], c // block[1]]


@pytest.mark.parametrize("shape", [(), (1,), (ROWS, 1)])
def test_fp8_with_a_scale_for_a_matrix_or_a_row(tmp_path, shape):
    weight, scale = fp8(), scales(*shape).to(torch.bfloat16)
    tensors = {NAME + ".weight": weight, NAME + ".weight_scale": scale,
               NAME + ".input_scale": torch.ones(1), "model.norm.weight": torch.ones(COLUMNS)}
    strategy = {"strategy": "channel" if shape == (ROWS, 1) else "tensor", "num_bits": 8, "type": "float"}
    found = [read(tmp_path, tensors, settings) for settings in (
        {"quant_method": "compressed-tensors", "format": "float-quantized",
         "config_groups": {"group_0": {"weights": strategy}}},
        {"quant_method": "fbgemm_fp8"})]
    for out, stored in found:
        assert torch.equal(out, weight.float() * scale.float())
        assert set(stored) == {NAME + ".weight", "model.norm.weight"}


# ---- compressed-tensors ----

def group(**weights):
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}


def test_int8_with_zero_points(tmp_path):
    q, zero = RNG.integers(-128, 128, (ROWS, COLUMNS)), RNG.integers(-128, 128, (ROWS, 1))
    scale = scales(ROWS, 1)
    out, _ = read(tmp_path, {NAME + ".weight": torch.from_numpy(q.astype(np.int8)),
                             NAME + ".weight_scale": scale,
                             NAME + ".weight_zero_point": torch.from_numpy(zero.astype(np.int8))},
                  group(strategy="channel", num_bits=8, type="int"))
    assert torch.equal(out, torch.from_numpy((q - zero).astype(np.float32)) * scale.float())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["symmetric", "zero points", "ordered"])
def test_packed_groups(tmp_path, bits, kind):
    q, zero = codes(bits), codes(bits, ROWS, COLUMNS // 16)
    scale, of = scales(ROWS, COLUMNS // 16), np.arange(COLUMNS) // 16
    tensors = {NAME + ".weight_packed": int32([words(row.tolist(), bits) for row in q]),
               NAME + ".weight_shape": torch.tensor([ROWS, COLUMNS]), NAME + ".weight_scale": scale}
    if kind == "zero points":  # packed along the rows
        packed = [words(zero[:, g].tolist(), bits) for g in range(zero.shape[1])]
        tensors[NAME + ".weight_zero_point"] = int32(packed).T
    else:
        zero[:] = 1 << (bits - 1)
    if kind == "ordered":
        of = RNG.permutation(of)
        tensors[NAME + ".weight_g_idx"] = torch.from_numpy(of.astype(np.int32))
    out, _ = read(tmp_path, tensors, group(strategy="group", group_size=16, num_bits=bits, type="int"))
    for r in range(ROWS):
        for c in range(COLUMNS):
            g = of[c]
            assert out[r, c] == float(q[r, c] - zero[r, g]) * scale[r, g].float()


# ---- AWQ and GPTQ: stored as [in, out] ----

def test_awq(tmp_path):
    order, groups = [0, 2, 4, 6, 1, 3, 5, 7], COLUMNS // 32
    q, zero, scale = codes(4, COLUMNS, ROWS), codes(4, groups, ROWS), scales(groups, ROWS)

    def packed(matrix):  # nibble k of a word has column order[k] of its eight
        return int32([words([row[8 * w + order[k]] for w in range(ROWS // 8) for k in range(8)], 4)
                      for row in matrix.tolist()])
    out, _ = read(tmp_path, {NAME + ".qweight": packed(q), NAME + ".qzeros": packed(zero),
                             NAME + ".scales": scale, NAME + ".bias": torch.zeros(ROWS)},
                  {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"})
    for i in range(COLUMNS):
        for o in range(ROWS):
            assert out[o, i] == float(q[i, o] - zero[i // 32, o]) * scale[i // 32, o].float()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("version", [None, "gptq_v2"])
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq(tmp_path, bits, version, act_order):
    groups = COLUMNS // 32
    q, scale = codes(bits, COLUMNS, ROWS), scales(groups, ROWS)
    zero = 1 + codes(bits, groups, ROWS) % ((1 << bits) - 1)
    of = np.arange(COLUMNS) // 32
    if act_order:
        of = RNG.permutation(of)
    tensors = {NAME + ".qweight": int32([words(q[:, o].tolist(), bits) for o in range(ROWS)]).T,
               NAME + ".qzeros": int32([words(row, bits) for row in (zero - (version is None)).tolist()]),
               NAME + ".scales": scale, NAME + ".bias": torch.zeros(ROWS)}
    if act_order or version:
        tensors[NAME + ".g_idx"] = torch.from_numpy(of.astype(np.int32))
    settings = {"quant_method": "gptq", "bits": bits, "group_size": 32, "desc_act": act_order, "sym": False}
    out, stored = read(tmp_path, tensors, settings | ({"checkpoint_format": version} if version else {}))
    assert set(stored) == {NAME + ".weight"}  # the zeros that stand for no bias are dropped
    for i in range(COLUMNS):
        for o in range(ROWS):
            assert out[o, i] == float(q[i, o] - zero[of[i], o]) * scale[of[i], o].float()


# ---- bitsandbytes ----

@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16])
def test_nf4(tmp_path, nested, storage):
    q, table = codes(4).reshape(-1), np.sort(RNG.standard_normal(16)).astype(np.float32)
    most = RNG.uniform(0.1, 2, ROWS * COLUMNS // 64).astype(np.float32)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [ROWS, COLUMNS]}
    packed = torch.tensor([q[i] << 4 | q[i + 1] for i in range(0, len(q), 2)], dtype=torch.uint8)
    tensors = {NAME + ".weight": packed.view(storage)[:, None],
               NAME + ".weight.quant_map": torch.from_numpy(table)}
    if nested:
        levels, inner = RNG.uniform(-1, 1, 256).astype(np.float32), RNG.integers(0, 256, len(most))
        outer = RNG.uniform(0.5, 1, -(-len(most) // 32)).astype(np.float32)
        most = np.array([levels[inner[i]] * outer[i // 32] + np.float32(0.25) for i in range(len(most))])
        state |= {"nested_blocksize": 32, "nested_dtype": "float32", "nested_offset": 0.25}
        tensors |= {NAME + ".weight.absmax": torch.from_numpy(inner.astype(np.uint8)),
                    NAME + ".weight.nested_absmax": torch.from_numpy(outer),
                    NAME + ".weight.nested_quant_map": torch.from_numpy(levels)}
    else:
        tensors[NAME + ".weight.absmax"] = torch.from_numpy(most)
    tensors[NAME + ".weight.quant_state.bitsandbytes__nf4"] = torch.tensor(
        list(json.dumps(state).encode()), dtype=torch.uint8)
    out, _ = read(tmp_path, tensors, {"quant_method": "bitsandbytes", "load_in_4bit": True})
    expected = [table[c] * most[i // 64] for i, c in enumerate(q)]
    assert torch.equal(out.reshape(-1), torch.from_numpy(np.array(expected, np.float32)))


# ---- what is refused ----

@pytest.mark.parametrize("settings, words_of_it", [
    ({"quant_method": "quip"}, "names the method 'quip'; redlite reads fp8"),
    ({"quant_method": ["awq"]}, "names the method"),
    ("awq", "names the method"),
    ({"quant_method": "awq", "bits": 8}, "bits is 8; redlite reads 4"),
    ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "version is 'gemv'"),
    ({"quant_method": "gptq", "bits": 3}, "bits is 3; redlite reads 2, 4, 8"),
    ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
    ({"quant_method": "gptq", "bits": 4, "is_marlin_format": True}, "is_marlin_format is set"),
    ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt is 'e5m2'"),
    ({"quant_method": "fp8", "weight_block_size": [128]}, r"weight_block_size is \[128\]"),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "load_in_8bit is True"),
    ({"quant_method": "compressed-tensors"}, "config_groups is None"),
    (group(strategy="tensor_group", group_size=16), "strategy 'tensor_group' with size 16 is not read"),
    (group(strategy="group", group_size=-1), "strategy 'group' with size -1"),
    (group(strategy="tensor") | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config is"),
    (group(strategy="tensor") | {"transform_config": {"config_groups": 1}}, "transform_config is"),
])
def test_settings_that_are_refused(tmp_path, settings, words_of_it):
    with pytest.raises(Error, match=words_of_it) as caught:
        read(tmp_path, {NAME + ".weight": torch.ones(2, 2)}, settings)
    assert "config.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_method_that_is_not_read_is_refused_with_the_configuration(tmp_path):
    raw = made.case_weights("grouped")[0] | {"quantization_config": {"bits": 4}}
    with pytest.raises(Error, match="quantization_config names the method None"):
        checkpoint.read_config(made.write_directory(tmp_path / "m", raw, {}))


GPTQ = {"quant_method": "gptq", "bits": 4}


def gptq_tensors(**change):
    ints = torch.int32
    tensors = {"qweight": torch.zeros(8, 48, dtype=ints), "qzeros": torch.zeros(2, 6, dtype=ints),
               "scales": torch.ones(2, 48), "g_idx": torch.zeros(64, dtype=ints)} | change
    return {f"{NAME}.{leaf}": t for leaf, t in tensors.items() if t is not None}


@pytest.mark.parametrize("tensors, settings, words_of_it", [
    (gptq_tensors(qzeros=None), GPTQ, "up_proj.qzeros' is missing"),
    (gptq_tensors(scales=torch.ones(2, 47)), GPTQ, "does not fit its scales and zero points"),
    (gptq_tensors(scales=torch.ones(96)), GPTQ, "is not of F32 or F16 or BF16 in 2 dimensions"),
    (gptq_tensors(g_idx=torch.full((64,), 2, dtype=torch.int32)), GPTQ, "names a group that has no scale"),
    (gptq_tensors(qzeros=torch.full((2, 6), -1, dtype=torch.int32)), GPTQ, "a zero point that does not fit"),
    (gptq_tensors(scales=torch.full((2, 48), torch.inf)), GPTQ, "NaN or infinite"),
    (gptq_tensors(weight=torch.ones(48, 64)), GPTQ, "is there plain and quantised"),
    ({NAME + ".weight": fp8()}, {"quant_method": "fp8"}, "has dtype F8_E4M3; redlite reads F32"),
    ({NAME + ".weight": fp8()}, None, "has dtype F8_E4M3; redlite reads F32, F16, BF16 and, where"),
    ({NAME + ".weight": fp8(), NAME + ".weight_scale_inv": torch.ones(3, 2)},
     {"quant_method": "fp8", "weight_block_size": [16, 16]}, r"has shape \[3, 2\]; \[3, 4\] is needed"),
    ({NAME + ".weight": fp8(), NAME + ".weight_scale": torch.ones(5)}, group(strategy="channel"),
     "fits no group of quantization_config"),
    ({NAME + ".weight_packed": torch.zeros(4, 4, dtype=torch.int32), NAME + ".weight_scale": torch.ones(4, 1),
      NAME + ".weight_shape": torch.tensor([4, 0])}, group(strategy="channel"), "does not hold"),
])
def test_tensors_that_do_not_fit(tmp_path, tensors, settings, words_of_it):
    with pytest.raises(Error, match=words_of_it) as caught:
        read(tmp_path, tensors, settings)
    assert "\n" not in str(caught.value)


def test_a_quantised_directory_loads(tmp_path):
    """A golden model with its matrices in FP8 gives the logits of the numbers that FP8 stands for."""
    raw, weights = made.case_weights("grouped")
    plain, stored = {}, {}
    for name, w in weights.items():
        plain[name] = stored[name] = torch.from_numpy(w)
        if name.endswith("_proj.weight"):
            scale = torch.from_numpy(RNG.uniform(0.01, 0.02, (len(w), 1)).astype(np.float32))
            stored[name] = (plain[name] / scale).to(torch.float8_e4m3fn)
            stored[name.removesuffix("weight") + "weight_scale"] = scale
            plain[name] = stored[name].float() * scale
    settings = {"quantization_config": {"quant_method": "fbgemm_fp8"}}
    quantised = made.write_directory(tmp_path / "q", raw | settings, stored)
    expected = made.logits(made.load(made.write_directory(tmp_path / "p", raw, plain)))
    assert torch.equal(made.logits(made.load(quantised)), expected)
    assert torch.allclose(made.logits(made.load(quantised, packed="float32")), expected, atol=1e-4)


def test_every_method_that_is_named_is_read():
    assert tuple(quantised_safetensors.READERS) == configuration.METHODS
