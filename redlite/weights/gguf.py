"""The GGUF container (versions 2 and 3, little-endian): metadata and tensors.

Format: github.com/ggml-org/ggml, docs/gguf.md; gguf_formats.py has the tensors' numbers. Nothing in a file is
believed: every count, length and offset is held against the file's size before anything is allocated, so
whatever the file says, memory stays within a small multiple of its size and the time within one pass over it.
"""
import math
import mmap
import os
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from redlite.errors import Error
from redlite.store.text import short
from redlite.weights.gguf_formats import FORMATS, decode

U32, U64 = struct.Struct("<I"), struct.Struct("<Q")
SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
BOOL, STRING, ARRAY = 7, 8, 9
TYPE_NAMES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
              13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
              22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0",
              35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0"}


# ---- the container ----

class TensorInfo(NamedTuple):
    """A stored tensor. `shape` is in torch's order (rows first), `offset` counts bytes from the start of the file."""
    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int


class GGUF:
    """An open GGUF file, memory-mapped.

    metadata  key → bool, int, float, str, list of str, or numpy array of numbers
    tensors   name → TensorInfo, in the file's order
    texts     False: pass over the metadata's arrays of texts (a vocabulary takes long), which are then not in `metadata`
    Raises Error with file and field for anything malformed, and for a tensor type that is not in FORMATS.
    """

    def __init__(self, path, texts: bool = True):
        self.path = Path(path)
        try:
            if not self.path.is_file():
                raise Error(f"{path}: is not a file")
            self._file = open(self.path, "rb")
            self._size = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise Error(f"{path}: cannot be read ({error.strerror})") from None
        try:
            if self._size < 24:
                raise Error(f"{path}: has only {self._size} bytes; a GGUF file was expected")
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            reader = _Reader(self._map, self.path, texts)
            tensors, pairs = reader.start()
            self.metadata: dict[str, object] = reader.metadata(pairs)
            self.tensors: dict[str, TensorInfo] = reader.tensors(tensors, self.metadata)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file. Arrays from `raw` and `packed` stay valid."""
        self._file.close()

    def __enter__(self) -> "GGUF":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def raw(self, name: str) -> np.ndarray:
        """The stored bytes of a tensor: read-only uint8 view of the mapped file."""
        info = self._info(name)
        return np.frombuffer(self._map, np.uint8, info.nbytes, info.offset)

    def packed(self, name: str) -> np.ndarray:
        """The stored blocks of a tensor: read-only uint8 view [rows, blocks a row, bytes a block], for kernels that take them as they are."""
        info = self._info(name)
        form = FORMATS[info.type]
        return self.raw(name).reshape(-1, info.shape[-1] // form.elements, form.size)

    def fileno(self) -> int:
        """The open file's descriptor."""
        return self._file.fileno()

    def dequantize(self, name: str, dtype: torch.dtype = torch.float32, out: Tensor | None = None) -> Tensor:
        """A tensor as numbers: computed in float32 as llama.cpp does (each operation rounded), then rounded to `dtype`.

        out  a contiguous CPU tensor of the right shape to fill instead of a new one; `dtype` is then its own
        """
        info = self._info(name)
        if out is None:
            out = torch.empty(info.shape, dtype=dtype)
        if tuple(out.shape) != info.shape:
            raise ValueError(f"out has shape {tuple(out.shape)}, the tensor {info.shape}")
        decode(self._file.fileno(), info.offset, info.type, out, f"{self.path}: tensor {short(name)}")
        return out

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise Error(f"{self.path}: there is no tensor {short(name)}")
        return self.tensors[name]


class _Reader:
    """A position in the mapped file that never passes its end."""

    def __init__(self, data: mmap.mmap, path: Path, texts: bool):
        self.data, self.path, self.texts, self.at, self.size = data, path, texts, 0, len(data)

    def fail(self, what: str) -> Error:
        return Error(f"{self.path}: {what}; the file is damaged or not a GGUF file")

    def take(self, count: int, what: str) -> int:
        """The place of the next `count` bytes, and go past them."""
        if count > self.size - self.at:
            raise self.fail(f"ends at byte {self.size}, inside {what}")
        at, self.at = self.at, self.at + count
        return at

    def u32(self, what: str) -> int:
        return U32.unpack_from(self.data, self.take(4, what))[0]

    def u64(self, what: str) -> int:
        return U64.unpack_from(self.data, self.take(8, what))[0]

    def text(self, what: str) -> str:
        length = self.u64(what)
        at = self.take(length, what)
        try:
            return self.data[at:at + length].decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8") from None

    def start(self) -> tuple[int, int]:
        """(number of tensors, number of metadata pairs) from the fixed header."""
        if self.data[:4] != b"GGUF":
            raise Error(f"{self.path}: is not a GGUF file (it does not begin with the letters GGUF)")
        self.at = 4
        version = self.u32("the version")
        if version not in (2, 3):
            why = "is big-endian" if version in (2 << 24, 3 << 24) else f"has GGUF version {version}"
            raise Error(f"{self.path}: {why}; redlite reads little-endian versions 2 and 3")
        tensors, pairs = self.u64("the header"), self.u64("the header")
        for count, least, what in ((tensors, 32, "tensors"), (pairs, 13, "metadata pairs")):  # the smallest such record in bytes
            if count > self.size // least:
                raise self.fail(f"claims {count} {what} in {self.size} bytes")
        return tensors, pairs

    def metadata(self, pairs: int) -> dict[str, object]:
        found: dict[str, object] = {}
        for i in range(pairs):
            key = self.text(f"the key of metadata pair {i}")
            if key in found:
                raise self.fail(f"metadata key {short(key)} is there twice")
            found[key] = self.value(self.u32("a metadata type"), f"metadata {short(key)}")
        return {key: value for key, value in found.items() if value is not None}

    def value(self, kind: int, what: str):
        if kind == STRING:
            return self.text(what)
        if kind == ARRAY:
            inner, count = self.u32(what), self.u64(what)
            if inner == STRING:
                return self.strings(count, what)
            if inner == ARRAY:
                raise self.fail(f"{what} is an array of arrays, which no model has")
            return self.numbers(inner, count, what).copy()
        return self.numbers(kind, 1, what)[0].item()

    def numbers(self, kind: int, count: int, what: str) -> np.ndarray:
        """A view of the next `count` numbers."""
        if kind not in SCALARS:
            raise self.fail(f"{what} has the unknown type {kind}")
        dtype = np.dtype(SCALARS[kind])
        at = self.take(count * dtype.itemsize, what)
        if kind == BOOL and count and np.frombuffer(self.data, np.uint8, count, at).max() > 1:
            raise self.fail(f"{what} has a truth value that is neither 0 nor 1")
        return np.frombuffer(self.data, dtype, count, at)

    def strings(self, count: int, what: str) -> list[str] | None:
        """An array of strings, None if they are passed over. Vocabularies have a hundred thousand, so this is `text` in one tight loop."""
        if count > (self.size - self.at) // 8:
            raise self.fail(f"{what} claims {count} strings")
        data, size, at, unpack, texts, found = self.data, self.size, self.at, U64.unpack_from, self.texts, []
        for i in range(count):
            end = at + 8 if at + 8 > size else at + 8 + unpack(data, at)[0]
            if end > size:
                raise self.fail(f"ends at byte {size}, inside {what}, string {i}")
            if texts:
                try:
                    found.append(data[at + 8:end].decode())
                except UnicodeDecodeError:
                    raise self.fail(f"{what}, string {i}, is not UTF-8") from None
            at = end
        self.at = at
        return found if texts else None

    def tensors(self, count: int, metadata: dict[str, object]) -> dict[str, TensorInfo]:
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self.fail(f"metadata 'general.alignment' is {short(alignment)}; a power of two is needed")
        found: dict[str, TensorInfo] = {}
        for i in range(count):
            info = self.tensor(i, alignment)
            if info.name in found:
                raise self.fail(f"tensor {short(info.name)} is there twice")
            found[info.name] = info
        start, end = -(-self.at // alignment) * alignment, 0  # the data begin at the next aligned byte
        for info in sorted(found.values(), key=lambda t: t.offset):
            if info.offset < end:
                raise self.fail(f"tensor {short(info.name)} overlaps another")
            end = info.offset + info.nbytes
            if start + end > self.size:
                raise Error(f"{self.path}: tensor {short(info.name)} needs {info.nbytes} bytes at {start + info.offset} and the file has "
                            f"{self.size}; it is truncated, fetch it again")
        return {name: info._replace(offset=start + info.offset) for name, info in found.items()}

    def tensor(self, number: int, alignment: int) -> TensorInfo:
        """One entry of the tensor table; its offset still counts from the start of the data."""
        name = self.text(f"the name of tensor {number}")
        what = f"tensor {short(name)}"
        dims = self.u32(what)
        if not 1 <= dims <= 4:
            raise self.fail(f"{what} has {dims} dimensions")
        shape = tuple(self.u64(what) for _ in range(dims))[::-1]
        kind, offset = self.u32(what), self.u64(what)
        name_of_kind = TYPE_NAMES.get(kind)
        if name_of_kind not in FORMATS:
            raise Error(f"{self.path}: {what} has type {name_of_kind or kind}, which redlite does not read; it reads {', '.join(FORMATS)}")
        form = FORMATS[name_of_kind]
        if 0 in shape or shape[-1] % form.elements:
            raise self.fail(f"{what} of type {name_of_kind} has the impossible shape {short(shape)}")
        nbytes = math.prod(shape) // form.elements * form.size
        if nbytes > self.size:
            raise self.fail(f"{what} of shape {short(shape)} needs {nbytes} bytes in a file of {self.size}")
        if offset % alignment:
            raise self.fail(f"{what} begins at {offset}, which is no multiple of the alignment {alignment}")
        return TensorInfo(name, shape, name_of_kind, offset, nbytes)
