"""Numbers as files store them: the formats in numpy, and tensors read by the C library or by numpy.

Source: github.com/ggml-org/ggml, src/ggml-quants.c. The numpy functions are the definition; the C library's
reader of tensors gives the same bits.
"""
import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from redlite import kernels
from redlite.errors import Error
from redlite.kernels.cpu import library, read_tensor
from redlite.store.text import short
from redlite.weights.gguf import GGUF, TYPES

PIECE = 1 << 15  # elements decoded at a time: they stay in the cache, and torch starts no threads for so few
READ_FAULTS = {
    read_tensor.SHORTER: "the file became shorter while it was read",
    read_tensor.NOT_FINITE: "NaN or infinite {what}; the file is damaged, fetch it again",
    read_tensor.OUT_OF_RANGE: "values beyond the range of {dtype}; use float32 or bfloat16",
}


# ---- formats: blocks [n, bytes] uint8 → out [n, elements] float32, in float32 arithmetic ----

def _half(two_bytes: np.ndarray) -> np.ndarray:
    """[n, 2] bytes → [n, 1] float32: one little-endian half-precision number a row."""
    return np.ascontiguousarray(two_bytes).view("<f2").astype(np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """[n, b] bytes → [n, 2, b] of 0 to 15: all low nibbles, then all high ones."""
    out = np.empty((packed.shape[0], 2, packed.shape[1]), np.uint8)
    np.bitwise_and(packed, 15, out=out[:, 0])
    np.right_shift(packed, 4, out=out[:, 1])
    return out


def _f32(blocks: np.ndarray, out: np.ndarray) -> None:
    np.copyto(out, blocks.view("<f4"))


def _f16(blocks: np.ndarray, out: np.ndarray) -> None:
    # numpy's own conversion takes ten times as long.
    torch.from_numpy(out).copy_(torch.from_numpy(blocks).view(torch.float16))


def _bf16(blocks: np.ndarray, out: np.ndarray) -> None:
    np.left_shift(blocks.view("<u2"), 16, out=out.view(np.uint32), dtype=np.uint32)


def _q8_0(blocks: np.ndarray, out: np.ndarray) -> None:
    """Half d, 32 × int8 q: d·q."""
    np.copyto(out, blocks[:, 2:].view(np.int8))
    out *= _half(blocks[:, :2])


def _q4_0(blocks: np.ndarray, out: np.ndarray) -> None:
    """Half d, 16 bytes of nibbles: d·(q − 8)."""
    np.copyto(out, _nibbles(blocks[:, 2:]).reshape(-1, 32))
    out -= 8
    out *= _half(blocks[:, :2])


def _q4_1(blocks: np.ndarray, out: np.ndarray) -> None:
    """Half d, half m, 16 bytes of nibbles: d·q + m."""
    np.copyto(out, _nibbles(blocks[:, 4:]).reshape(-1, 32))
    out *= _half(blocks[:, :2])
    out += _half(blocks[:, 2:4])


def _q5_0(blocks: np.ndarray, out: np.ndarray) -> None:
    """Half d, 32 fifth bits, 16 bytes of nibbles: d·(q − 16).

    llama.cpp uses it where a row is no multiple of Q4_K's 256.
    """
    fifth = np.unpackbits(blocks[:, 2:6], axis=1, bitorder="little") << 4
    np.copyto(out, _nibbles(blocks[:, 6:]).reshape(-1, 32) | fifth)
    out -= 16
    out *= _half(blocks[:, :2])


def _q4_k(blocks: np.ndarray, out: np.ndarray) -> None:
    """Half d, half m, 12 bytes of eight 6-bit scales s and minima t, 128 bytes of nibbles: (d·s)·q − (m·t).

    Each s and t serve 32 elements.
    """
    first = blocks[:, 4:8]    # low 6 bits: s0 to s3; high 2 bits: of s4 to s7
    second = blocks[:, 8:12]  # low 6 bits: t0 to t3; high 2 bits: of t4 to t7
    third = blocks[:, 12:16]  # low 4 bits of s4 to s7; low 4 bits of t4 to t7
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6 << 4)], axis=1)
    minima = np.concatenate([second & 63, (third >> 4) | (second >> 6 << 4)], axis=1)
    groups = out.reshape(-1, 8, 32)
    np.copyto(groups, _nibbles(blocks[:, 16:].reshape(-1, 32)).reshape(-1, 8, 32))
    groups *= (_half(blocks[:, :2]) * scales)[:, :, None]
    groups -= (_half(blocks[:, 2:4]) * minima)[:, :, None]


def _q6_k(blocks: np.ndarray, out: np.ndarray) -> None:
    """128 bytes of low nibbles, 64 of high bit pairs, 16 × int8 scales s, half d: (d·s)·(q − 32).

    Each s serves 16 elements.
    """
    low = _nibbles(blocks[:, :128].reshape(-1, 64)).reshape(-1, 2, 4, 32)  # [n, half, quarter, 32]
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3
    groups = out.reshape(-1, 16, 16)
    np.copyto(groups, (low | high << 4).reshape(-1, 16, 16))
    groups -= 32
    groups *= (_half(blocks[:, 208:210]) * blocks[:, 192:208].view(np.int8))[:, :, None]


DECODERS: dict[str, Callable[[np.ndarray, np.ndarray], None]] = {
    "F32": _f32, "F16": _f16, "BF16": _bf16, "Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0,
    "Q4_K": _q4_k, "Q6_K": _q6_k}


# ---- tensors in files ----

class OpenFile(Protocol):
    """Whatever has a descriptor: a part of a GGUF, or what `open` gives."""

    def fileno(self) -> int: ...


class Place(NamedTuple):
    """A tensor's bytes in a file.

    open    gives the open file, as a context
    offset  of the first byte, from the start of the file
    kind    a key of TYPES: how the numbers are stored
    shape   of the tensor
    where   file and tensor, for errors
    order   int64 [rows]: for each row of the tensor the row in the file; None where they are the same
    """
    open: Callable[[], AbstractContextManager[OpenFile]]
    offset: int
    kind: str
    shape: tuple[int, ...]
    where: str
    order: np.ndarray | None = None

    def fill(self, out: Tensor) -> None:
        """Fill `out`, a contiguous CPU tensor of any float dtype, with the tensor's numbers; see `decode`."""
        with self.open() as file:
            decode(file.fileno(), self.offset, self.kind, out, self.where, self.order)

    def blocks(self) -> np.ndarray:
        """The bytes as they are: uint8 [rows, bytes a row], the rows in the tensor's order."""
        form = TYPES[self.kind]
        raw = np.empty((self.shape[0], math.prod(self.shape[1:]) // form.elements * form.size), np.uint8)
        with self.open() as file:
            _read(file.fileno(), self.offset, raw.reshape(-1), self.where)
        return raw if self.order is None else raw[self.order]


def place_in(file: GGUF, name: str, order: np.ndarray | None = None) -> Place:
    """Where the tensor `name` lies in a GGUF file; order as for `Place`."""
    info = file.tensor(name)
    part = file.parts[info.part]
    where = f"{part.path}: tensor {short(name)}"
    return Place(lambda: nullcontext(part), info.offset, info.type, info.shape, where, order)


def decoded(file: GGUF, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of a GGUF file: computed in float32 as llama.cpp does it, then rounded to `dtype`."""
    place = place_in(file, name)
    out = torch.empty(place.shape, dtype=dtype)
    place.fill(out)
    return out


def decode(descriptor: int, offset: int, kind: str, out: Tensor, where: str,
           order: np.ndarray | None = None) -> None:
    """Fill a tensor with numbers that an open file stores.

    offset  of the first byte in the file
    kind    a key of TYPES
    out     contiguous, on the CPU, of any float dtype
    where   file and tensor, for errors
    order   int64 [rows]: for each row of `out` (its first axis) the row in the file; None: the same

    The C library does it where there is one, else numpy, with the same bits. The file is read, not mapped,
    and in small pieces. So no page of it stays in this process's memory, and a file that shrinks meanwhile is
    an Error where a mapping would kill the process. Raises Error also for NaN, infinity and numbers beyond
    the range of out's dtype: weights that hold them are damaged.
    """
    if order is not None and out.numel() // max(1, len(out)) % TYPES[kind].elements:
        decode(descriptor, offset, kind, out, where)  # a quantised bias: a block holds several of its rows
        out.copy_(out[torch.from_numpy(order)])
    elif kernels.FORCED in (None, "c") and not library.missing():
        if fault := read_tensor.fill(descriptor, offset, kind, out, order):
            raise read_error(fault, where, out.dtype)
    else:
        decode_in_numpy(descriptor, offset, kind, out, where, order)


def decode_in_numpy(descriptor: int, offset: int, kind: str, out: Tensor, where: str,
                    order: np.ndarray | None) -> None:
    """`decode` in numpy."""
    form, flat = TYPES[kind], out.view(-1)
    width = 1 if order is None else max(1, out.numel() // len(out))
    size = max(1, PIECE // width) * width  # whole rows where they are reordered
    raw, work = np.empty(size // form.elements * form.size, np.uint8), np.empty(size, np.float32)
    largest = torch.finfo(out.dtype).max
    for start in range(0, flat.numel(), size):
        values = work[:min(size, flat.numel() - start)]
        piece = raw[:len(values) // form.elements * form.size]
        if order is None:
            runs, firsts = piece[None], np.array([start])
        else:  # each row lies together in the file
            runs = piece.reshape(-1, width // form.elements * form.size)
            firsts = order[start // width:][:len(runs)] * width
        for run, first in zip(runs, firsts, strict=True):
            _read(descriptor, offset + int(first) // form.elements * form.size, run, where)
        with np.errstate(invalid="ignore", over="ignore"):  # what comes of damaged scales is refused below
            DECODERS[kind](piece.reshape(-1, form.size), values.reshape(-1, form.elements))
        numbers = torch.from_numpy(values)
        low, high = numbers.aminmax()
        if not max(high, -low) <= largest:  # written so that NaN fails it too
            fault = read_tensor.OUT_OF_RANGE if np.isfinite(values).all() else read_tensor.NOT_FINITE
            raise read_error(fault, where, out.dtype)
        flat[start:start + len(values)].copy_(numbers)


def read_error(fault: int, where: str, dtype: torch.dtype, what: str = "values") -> Error:
    """The error that a fault of `read_tensor.fill` means.

    what: "values" or "scales", whichever were looked at.
    """
    if fault == read_tensor.NO_MEMORY:
        raise MemoryError(f"{where}: no memory to decode it in")
    words = READ_FAULTS.get(fault, f"cannot be read ({os.strerror(abs(fault))})")
    return Error(f"{where}: " + words.format(what=what, dtype=str(dtype).removeprefix("torch.")))


def _read(descriptor: int, offset: int, into: np.ndarray, where: str) -> None:
    """Fill contiguous bytes from an offset of the file."""
    view = memoryview(into.data)
    while len(view):
        try:
            count = os.preadv(descriptor, [view], offset)
        except OSError as error:
            raise Error(f"{where}: cannot be read ({error.strerror})") from None
        if not count:
            raise Error(f"{where}: {READ_FAULTS[read_tensor.SHORTER]}")
        view, offset = view[count:], offset + count
