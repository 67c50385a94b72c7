"""Quantised weights in Hugging Face directories, decoded while they are loaded.

They are FP8, AWQ, GPTQ, compressed-tensors, and bitsandbytes' four bits. config.json's quantization_config
names the method; the tensors' names and shapes say the rest. A weight becomes code × scale in float32, which
is exact, and is rounded once to the wanted dtype. Methods that quantise activations as well are run without
that. What is not read is refused by name.

Sources: transformers 5.24 (integrations/finegrained_fp8.py), compressed-tensors 0.20, AutoAWQ 0.2 (GEMM
layout), GPTQModel and AutoGPTQ (v1 and v2 layouts), bitsandbytes 0.50 (functional.py).
"""
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from redlite.errors import Error
from redlite.store.files import loads
from redlite.store.text import short
from redlite.weights.configuration import quantisation
from redlite.weights.gguf_formats import Place, read_into
from redlite.weights.headers import FETCH
from redlite.weights.hf_files import Stored, check_finite

PIECE = 1 << 20  # numbers decoded at a time
Piece = tuple[slice, slice, np.ndarray]  # rows, columns, and the float32 numbers that belong there
FLOAT8 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
INTEGERS = {"I8": "<i1", "U8": "<u1", "I32": "<i4", "I64": "<i8"}
# Scales of activations and of cached keys and values, which are not quantised here.
ACTIVATIONS = ("input_scale", "activation_scale", "input_scale_ub", "output_scale", "input_zero_point",
               "output_zero_point", "input_global_scale", "k_scale", "v_scale", "q_scale")
AWQ_ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])  # the column, of each eight, that a word's nibble k holds


class Coded(NamedTuple):
    """A matrix whose numbers `pieces` decodes; where: file and tensor, for errors."""
    shape: tuple[int, ...]
    where: str
    pieces: Callable[[], Iterator[Piece]]

    def fill(self, out: Tensor) -> None:
        """Fill `out` [rows, columns], rounded once to its dtype."""
        for rows, columns, values in self.pieces():
            part = out[rows, columns]
            part.copy_(torch.from_numpy(values))
            check_finite(part, self.where)


# ---- numbers as they are stored ----

def _bytes(place: Place, first: int, count: int, width: int) -> np.ndarray:
    """`count` numbers of `width` bytes, from number `first` of a tensor on, as bytes."""
    raw = np.empty(count * width, np.uint8)
    with place.open() as file:
        read_into(file.fileno(), place.offset + first * width, raw, place.where)
    return raw


def _numbers(place: Place, first: int = 0, count: int | None = None) -> np.ndarray:
    """Numbers of a tensor, flat: integers as they are stored, all others float32."""
    count = math.prod(place.shape) if count is None else count
    if place.kind in INTEGERS:
        dtype = np.dtype(INTEGERS[place.kind])
        return _bytes(place, first, count, dtype.itemsize).view(dtype)
    if place.kind == "F8_E4M3":
        return FLOAT8[_bytes(place, first, count, 1)]
    out = torch.empty(count)
    size = 4 if place.kind == "F32" else 2
    Place(place.open, place.offset + first * size, place.kind, (count,), place.where).fill(out)
    return out.numpy()


def _whole(place: Place) -> np.ndarray:
    return _numbers(place).reshape(place.shape)


def _unpack(words: np.ndarray, bits: int) -> np.ndarray:
    """int32 [n, w] → [n, w · 32 / bits] numbers below 2^bits, the lowest bits first."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    return (words.view(np.uint32)[:, :, None] >> shifts & np.uint32((1 << bits) - 1)).reshape(len(words), -1)


def _fail(place: Stored, what: str) -> Error:
    return Error(f"{place.where} {what}; {FETCH}")


# ---- matrices [out, in] with a scale for each block of rows and columns ----

def _scaled(shape: tuple[int, int], where: str, block: tuple[int, int], scales: Place,
            codes: Callable[[int, int], np.ndarray], zeros: Callable[[], np.ndarray] | None = None,
            groups: Place | None = None) -> Coded:
    """A matrix code × scale, or (code − zero) × scale.

    block   rows and columns that share a scale
    scales  one for each block
    codes   gives rows [first, last) as float32 [rows, in]
    zeros   gives a zero point for each block
    groups  of each column its column of scales, where they are not in order
    """
    rows, columns = shape
    grid = -(-rows // block[0]), -(-columns // block[1])
    if math.prod(scales.shape) != math.prod(grid):
        raise _fail(scales, f"has shape {list(scales.shape)}; {list(grid)} is needed")

    def pieces() -> Iterator[Piece]:
        scale, zero = _whole(scales).reshape(grid), None if zeros is None else zeros().reshape(grid)
        column = np.arange(columns) // block[1]
        if groups is not None and (found := _whole(groups)).size == columns and found.min(initial=0) >= 0:
            column = found
            if column.max(initial=0) >= grid[1]:
                raise _fail(groups, "names a group that has no scale")
        step = max(1, PIECE // columns)
        for first in range(0, rows, step):
            last = min(first + step, rows)
            row = np.arange(first, last) // block[0]
            values = codes(first, last)
            if zero is not None:
                values = values - zero[row][:, column]
            yield slice(first, last), slice(None), values * scale[row][:, column]
    return Coded(shape, where, pieces)


def _floats(place: Place) -> np.ndarray:
    return _numbers(place).astype(np.float32)


def _row_codes(place: Place) -> Callable[[int, int], np.ndarray]:
    """Rows of a matrix of int8 or FP8 numbers, as float32."""
    width = place.shape[1]

    def codes(first: int, last: int) -> np.ndarray:
        flat = _numbers(place, first * width, (last - first) * width)
        return flat.astype(np.float32).reshape(-1, width)
    return codes


class _Directory:
    """The tensors of a directory, taken out by name while matrices are put in."""

    def __init__(self, stored: dict[str, Stored], settings: dict, where: str):
        self.left, self.made = dict(stored), dict[str, Stored]()
        self.settings, self.where = settings, where

    def modules(self, leaf: str) -> list[str]:
        """The modules that have a tensor of that name."""
        return [name[:-len(leaf) - 1] for name in self.left if name.endswith(f".{leaf}")]

    def take(self, module: str, leaf: str, kinds: tuple[str, ...],
             dimensions: tuple[int, ...] = (2,)) -> Place:
        """A tensor. Raises Error if it is missing, or of another dtype or number of dimensions."""
        found = self.left.pop(f"{module}.{leaf}", None)
        if found is None:
            raise Error(f"{self.where}: tensor {short(f'{module}.{leaf}')} is missing; {FETCH}")
        if not isinstance(found, Place) or found.kind not in kinds or len(found.shape) not in dimensions:
            raise _fail(found, f"is not of {' or '.join(kinds)} in {dimensions[0]} dimensions")
        return found

    def maybe(self, module: str, leaf: str, kinds: tuple[str, ...],
              dimensions: tuple[int, ...] = (2,)) -> Place | None:
        return self.take(module, leaf, kinds, dimensions) if f"{module}.{leaf}" in self.left else None

    def refuse(self, what: str) -> Error:
        return Error(f"{self.where}: quantization_config: {what}")

    def setting(self, name: str, allowed: tuple[Any, ...]) -> Any:
        """A setting that must be one of these. Raises Error if it is not."""
        value = self.settings.get(name)
        if not any(value is a or type(value) is type(a) and value == a for a in allowed):
            raise self.refuse(f"{name} is {short(value)}; redlite reads {', '.join(map(str, allowed))}")
        return value


FLOATS = ("F32", "F16", "BF16")
ANY = (0, 1, 2)


# ---- the methods ----

def _fp8(d: _Directory) -> None:
    """float8_e4m3 with a scale for each block, row or matrix (DeepSeek, Qwen, FBGEMM)."""
    d.setting("fmt", (None, "e4m3"))
    size = d.settings.get("weight_block_size")
    if size is not None and not _sizes(size):
        raise d.refuse(f"weight_block_size is {short(size)}; two whole numbers are needed")
    for leaf in ("weight_scale_inv", "weight_scale"):
        for module in d.modules(leaf):
            weight, scales = d.take(module, "weight", ("F8_E4M3",)), d.take(module, leaf, FLOATS, ANY)
            rows, columns = weight.shape
            count = math.prod(scales.shape)
            if size is not None:
                block = size[0], size[1]
            else:
                block = (rows, columns) if count == 1 else (1, columns)
            d.made[f"{module}.weight"] = _scaled((rows, columns), weight.where, block, scales,
                                                 _row_codes(weight))


def _sizes(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    return all(type(v) is int and 0 < v < 1 << 24 for v in value)


def _compressed(d: _Directory) -> None:
    """compressed-tensors: FP8 and int8 matrices, and 4 or 8 bits packed into int32."""
    for name in ("sparsity_config", "transform_config"):
        value = d.settings.get(name)
        if value and value != {"format": "dense"}:
            raise d.refuse(f"{name} is {short(value)}; redlite reads no such weights")
    groups = d.settings.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise d.refuse(f"config_groups is {short(groups)}; an object is needed")
    schemes = [_scheme(d, group) for group in groups.values()]
    for module in d.modules("weight_packed"):
        _packed_module(d, module, schemes)
    for module in d.modules("weight_scale"):
        weight = d.take(module, "weight", ("F8_E4M3", "I8"))
        scales = d.take(module, "weight_scale", FLOATS, ANY)
        zero = d.maybe(module, "weight_zero_point", ("I8",), ANY)
        if zero is not None and math.prod(zero.shape) != math.prod(scales.shape):
            raise _fail(zero, f"has shape {list(zero.shape)}; {list(scales.shape)} is needed")
        groups_of = d.maybe(module, "weight_g_idx", ("I32",), (1,))
        shape = weight.shape[0], weight.shape[1]
        block = _block_of(schemes, shape, scales)
        zeros = None if zero is None else partial(_floats, zero)
        d.made[f"{module}.weight"] = _scaled(shape, weight.where, block, scales, _row_codes(weight), zeros,
                                             groups_of)


def _scheme(d: _Directory, group: Any) -> tuple[str, Any]:
    """(how scales are shared, the size of a group or block) of the weights of a group of modules."""
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise d.refuse("config_groups has a group without weights; an object is needed")
    strategy, size = weights.get("strategy"), weights.get("group_size")
    if strategy == "block":
        size = weights.get("block_structure")
    fits = {"tensor": True, "channel": True, "group": type(size) is int and 0 < size < 1 << 24,
            "block": _sizes(size)}
    if not isinstance(strategy, str) or not fits.get(strategy):
        raise d.refuse(f"strategy {short(strategy)} with size {short(size)} is not read; "
                       f"redlite reads {', '.join(fits)}")
    return strategy, size


def _block_of(schemes: list[tuple[str, Any]], shape: tuple[int, int], scales: Place) -> tuple[int, int]:
    """The rows and columns that share a scale, by the first scheme that gives as many scales as there are."""
    rows, columns = shape
    for strategy, size in schemes:
        block = {"tensor": (rows, columns), "channel": (1, columns), "group": (1, size)}.get(strategy)
        height, width = block if block else (size[0], size[1])
        if math.prod(scales.shape) == -(-rows // height) * -(-columns // width):
            return height, width
    raise _fail(scales, f"has shape {list(scales.shape)}, which fits no group of quantization_config")


def _packed_module(d: _Directory, module: str, schemes: list[tuple[str, Any]]) -> None:
    """weight_packed int32 [out, in · bits / 32], weight_shape, weight_scale, maybe zero points and groups."""
    packed = d.take(module, "weight_packed", ("I32",))
    stated = d.take(module, "weight_shape", ("I64", "I32"), (1,))
    scales = d.take(module, "weight_scale", FLOATS, ANY)
    zero = d.maybe(module, "weight_zero_point", ("I32",))
    groups_of = d.maybe(module, "weight_g_idx", ("I32",), (1,))
    found = _numbers(stated).tolist() if stated.shape == (2,) else [0, 0]
    rows, columns = found
    bits = packed.shape[1] * 32 // columns if columns > 0 else 0
    if bits not in (4, 8) or packed.shape != (rows, -(-columns * bits // 32)):
        raise _fail(packed, f"of shape {list(packed.shape)} does not hold {found} numbers of 4 or 8 bits")
    block, half = _block_of(schemes, (rows, columns), scales), 1 << (bits - 1)
    width = packed.shape[1]

    def codes(first: int, last: int) -> np.ndarray:
        words = _numbers(packed, first * width, (last - first) * width).reshape(-1, width)
        return _unpack(words, bits)[:, :columns].astype(np.float32) - half

    def zeros() -> np.ndarray:  # packed along the rows
        assert zero is not None
        return np.ascontiguousarray(_unpack(np.ascontiguousarray(_whole(zero).T), bits)[:, :rows].T
                                    ).astype(np.float32) - half
    if zero is not None and zero.shape != (-(-rows * bits // 32), -(-columns // block[1])):
        raise _fail(zero, f"has shape {list(zero.shape)}, which does not fit {found} numbers")
    d.made[f"{module}.weight"] = _scaled((rows, columns), packed.where, block, scales, codes,
                                         zeros if zero is not None else None, groups_of)


def _awq(d: _Directory) -> None:
    """qweight [in, out / 8], qzeros [groups, out / 8], scales [groups, out]: (q − z)·s, four bits each."""
    d.setting("bits", (4,))
    version = d.settings.get("version", "gemm")
    if not isinstance(version, str) or version.lower() != "gemm":
        raise d.refuse(f"version is {short(version)}; redlite reads gemm")
    for module in d.modules("qweight"):
        weight, zeros = d.take(module, "qweight", ("I32",)), d.take(module, "qzeros", ("I32",))
        scales = d.take(module, "scales", FLOATS)
        inputs, outputs = weight.shape[0], weight.shape[1] * 8
        groups = scales.shape[0]
        fits = scales.shape == (groups, outputs) and zeros.shape == (groups, outputs // 8)
        if not fits or not groups or inputs % groups:
            raise _fail(scales, "does not fit qweight and qzeros")
        _no_bias(d, module)
        d.made[f"{module}.weight"] = Coded((outputs, inputs), weight.where,
                                           partial(_awq_pieces, weight, zeros, scales))


def _in_order(words: np.ndarray) -> np.ndarray:
    """AWQ's words [n, w] → float32 [n, 8w], each column where it belongs."""
    codes = _unpack(words, 4).reshape(len(words), -1, 8)
    out = np.empty(codes.shape, np.float32)
    out[:, :, AWQ_ORDER] = codes
    return out.reshape(len(words), -1)


def _awq_pieces(weight: Place, zeros: Place, scales: Place) -> Iterator[Piece]:
    zero, scale = _in_order(_whole(zeros)), _whole(scales)
    inputs, width = weight.shape
    group, step = inputs // len(scale), max(1, PIECE // (8 * width))
    for first in range(0, inputs, step):
        last = min(first + step, inputs)
        codes = _in_order(_numbers(weight, first * width, (last - first) * width).reshape(-1, width))
        of = np.arange(first, last) // group
        yield slice(None), slice(first, last), np.ascontiguousarray(((codes - zero[of]) * scale[of]).T)


def _gptq(d: _Directory) -> None:
    """qweight [in · bits / 32, out], qzeros [groups, out · bits / 32], scales [groups, out], g_idx [in].

    W = (q − z)·s by the group of each input. Version 1 stores z − 1, version 2 stores z.
    """
    bits = d.setting("bits", (2, 4, 8))
    version = d.setting("checkpoint_format", (None, "gptq", "gptq_v2"))
    if d.settings.get("is_marlin_format"):
        raise d.refuse("is_marlin_format is set; redlite reads gptq and gptq_v2")
    for module in d.modules("qweight"):
        weight, zeros = d.take(module, "qweight", ("I32",)), d.take(module, "qzeros", ("I32",))
        scales, index = d.take(module, "scales", FLOATS), d.maybe(module, "g_idx", ("I32",), (1,))
        outputs, groups = weight.shape[1], scales.shape[0]
        inputs = index.shape[0] if index else weight.shape[0] * 32 // bits
        # A module may have bits of its own; its shapes say them.
        own = weight.shape[0] * 32 // inputs if inputs else 0
        fits = own in (2, 4, 8) and weight.shape[0] * 32 == inputs * own and groups > 0 and (
            scales.shape == (groups, outputs) and zeros.shape == (groups, outputs * own // 32))
        if not fits:
            raise _fail(weight, f"of shape {list(weight.shape)} does not fit its scales and zero points")
        _no_bias(d, module)
        d.made[f"{module}.weight"] = Coded((outputs, inputs), weight.where, partial(
            _gptq_pieces, weight, zeros, scales, index, inputs, own, version != "gptq_v2"))


def _gptq_pieces(weight: Place, zeros: Place, scales: Place, index: Place | None, inputs: int, bits: int,
                 less_one: bool) -> Iterator[Piece]:
    zero, scale = _unpack(_whole(zeros), bits), _whole(scales)
    if less_one:
        if zero.max(initial=0) == (1 << bits) - 1:  # runtimes read it as 0, as 2^bits, or carry
            raise _fail(zeros, "holds a zero point that does not fit its bits, as version 1 of GPTQ may")
        zero = zero + 1
    zero = zero.astype(np.float32)
    group = -(-inputs // len(scale))
    of = np.arange(inputs) // group if index is None else _whole(index)
    if of.min(initial=0) < 0 or of.max(initial=0) >= len(scale):
        raise _fail(index or scales, "names a group that has no scale")
    width, run = weight.shape[1], 32 // bits
    step = max(1, PIECE // (run * width))
    shifts = np.arange(0, 32, bits, dtype=np.uint32)[:, None]
    for first in range(0, weight.shape[0], step):
        last = min(first + step, weight.shape[0])
        words = _numbers(weight, first * width, (last - first) * width)
        words = words.view(np.uint32).reshape(-1, 1, width)
        codes = (words >> shifts & np.uint32((1 << bits) - 1)).reshape(-1, width).astype(np.float32)
        own = of[first * run:last * run]
        yield (slice(None), slice(first * run, last * run),
               np.ascontiguousarray(((codes - zero[own]) * scale[own]).T))


def _no_bias(d: _Directory, module: str) -> None:
    """Drop a bias of zeros, which these packers write for every matrix."""
    bias = d.left.get(f"{module}.bias")
    if isinstance(bias, Place) and bias.kind in FLOATS and not _numbers(bias).any():
        del d.left[f"{module}.bias"]


def _bitsandbytes(d: _Directory) -> None:
    """4-bit codes of a stored map, the high nibble first, with a scale for each run of numbers."""
    for name in ("load_in_8bit", "_load_in_8bit"):
        d.setting(name, (None, False))
    for quant in ("nf4", "fp4"):
        for module in d.modules(f"weight.quant_state.bitsandbytes__{quant}"):
            state = d.take(module, f"weight.quant_state.bitsandbytes__{quant}", ("U8",), (1,))
            fields = _state(state)
            codes = d.take(module, "weight", ("U8", *FLOATS))
            table = d.take(module, "weight.quant_map", ("F32",), (1,))
            most = d.take(module, "weight.absmax", ("F32", "U8"), (1,))
            nested = None
            if most.kind == "U8":
                nested = (d.take(module, "weight.nested_absmax", ("F32",), (1,)),
                          d.take(module, "weight.nested_quant_map", ("F32",), (1,)))
            rows, columns = fields["shape"]
            stored_bytes = math.prod(codes.shape) * {"U8": 1, "F32": 4}.get(codes.kind, 2)
            runs = -(-rows * columns // fields["blocksize"])
            inner = -(-runs // fields["nested_blocksize"])
            sizes = not nested or nested[0].shape == (inner,) and nested[1].shape == (256,)
            fits = stored_bytes * 2 == rows * columns and table.shape == (16,) and most.shape == (runs,)
            if not fits or not sizes:
                raise _fail(codes, f"does not hold {rows} × {columns} numbers with their scales")
            d.made[f"{module}.weight"] = Coded((rows, columns), codes.where, partial(
                _nibble_pieces, codes, table, most, nested, fields))


def _state(place: Place) -> dict[str, Any]:
    """The JSON in a tensor of bytes that says a matrix's shape and the sizes of its runs."""
    try:
        raw = loads(_numbers(place).tobytes().decode())
    except ValueError:
        raise _fail(place, "is not JSON in UTF-8") from None
    fields = {"nested_blocksize": 256, "nested_offset": 0.0} | (raw if isinstance(raw, dict) else {})
    fine = _sizes(fields.get("shape")) and type(fields["nested_offset"]) in (int, float) and all(
        type(fields.get(name)) is int and 0 < fields[name] < 1 << 24 and fields[name] % 2 == 0
        for name in ("blocksize", "nested_blocksize"))
    if not fine:
        raise _fail(place, "has no proper shape, blocksize and nested_blocksize")
    return fields


def _nibble_pieces(codes: Place, table: Place, most: Place, nested: tuple[Place, Place] | None,
                   fields: dict[str, Any]) -> Iterator[Piece]:
    (rows, columns), run = fields["shape"], fields["blocksize"]
    scale, values = _numbers(most), _numbers(table)
    if nested:
        outer = np.repeat(_numbers(nested[0]), fields["nested_blocksize"])[:len(scale)]
        scale = _numbers(nested[1])[scale] * outer + np.float32(fields["nested_offset"])
    step = 2 * max(1, PIECE // (2 * columns))  # an even number of rows, so that pieces begin with a byte
    for first in range(0, rows, step):
        last = min(first + step, rows)
        start, count = first * columns, (last - first) * columns
        raw = _bytes(codes, start // 2, count // 2, 1)
        numbers = values[np.stack([raw >> 4, raw & 15], axis=1).reshape(-1)]
        numbers *= scale[np.arange(start, start + count) // run]
        yield slice(first, last), slice(None), numbers.reshape(-1, columns)


READERS: dict[str, Callable[[_Directory], None]] = {
    "fp8": _fp8, "fbgemm_fp8": _fp8, "compressed-tensors": _compressed, "awq": _awq, "gptq": _gptq,
    "bitsandbytes": _bitsandbytes}


def decoded(stored: dict[str, Stored], raw: dict, where: str) -> dict[str, Stored]:
    """The tensors of a directory with its quantised matrices as `Coded`, under the names of plain ones.

    raw    the parsed config.json; where: that file, for errors
    Raises Error for a method that is not read, and for tensors that do not fit each other.
    """
    method = quantisation(raw, where)
    if method is None:
        return stored
    d = _Directory(stored, raw["quantization_config"], where)
    READERS[method](d)
    left = {name: tensor for name, tensor in d.left.items() if name.rpartition(".")[2] not in ACTIVATIONS}
    if twice := left.keys() & d.made.keys():
        raise Error(f"{left[min(twice)].where} is there plain and quantised; {FETCH}")
    return left | d.made
