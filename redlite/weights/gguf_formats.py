"""Numbers as files store them, GGUF's blocks among them: the formats in numpy, and the reading of a tensor in C or in numpy.

Source: github.com/ggml-org/ggml, src/ggml-quants.c. The numpy functions are the definition; kernels/c/dequantise_loops.h gives the same bits.
"""
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from redlite import kernels
from redlite.errors import Error
from redlite.kernels.cpu import library, read_tensor

PIECE = 1 << 15  # elements decoded at a time: they stay in the cache, and torch starts no threads for so few


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
    torch.from_numpy(out).copy_(torch.from_numpy(blocks).view(torch.float16))  # numpy's own conversion takes ten times as long


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
    """Half d, 32 fifth bits, 16 bytes of nibbles: d·(q − 16). llama.cpp puts it where a row is no multiple of Q4_K's 256."""
    fifth = np.unpackbits(blocks[:, 2:6], axis=1, bitorder="little") << 4
    np.copyto(out, _nibbles(blocks[:, 6:]).reshape(-1, 32) | fifth)
    out -= 16
    out *= _half(blocks[:, :2])


def _q4_k(blocks: np.ndarray, out: np.ndarray) -> None:
    """Half d, half m, 12 bytes of eight 6-bit scales s and minima t, 128 bytes of nibbles: (d·s)·q − (m·t), s and t for 32 elements each."""
    first, second, third = (blocks[:, i:i + 4] for i in (4, 8, 12))  # the low 6 bits of s0–3 and t0–3; the nibbles of s4–7 and t4–7
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6 << 4)], axis=1)
    minima = np.concatenate([second & 63, (third >> 4) | (second >> 6 << 4)], axis=1)
    groups = out.reshape(-1, 8, 32)
    np.copyto(groups, _nibbles(blocks[:, 16:].reshape(-1, 32)).reshape(-1, 8, 32))
    groups *= (_half(blocks[:, :2]) * scales)[:, :, None]
    groups -= (_half(blocks[:, 2:4]) * minima)[:, :, None]


def _q6_k(blocks: np.ndarray, out: np.ndarray) -> None:
    """128 bytes of low nibbles, 64 of high bit pairs, 16 × int8 scales s, half d: (d·s)·(q − 32), s for 16 elements each."""
    low = _nibbles(blocks[:, :128].reshape(-1, 64)).reshape(-1, 2, 4, 32)     # [n, half, quarter, 32]
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    groups = out.reshape(-1, 16, 16)
    np.copyto(groups, (low | high << 4).reshape(-1, 16, 16))
    groups -= 32
    groups *= (_half(blocks[:, 208:210]) * blocks[:, 192:208].view(np.int8))[:, :, None]


class Format(NamedTuple):
    """How a tensor type is stored: blocks of `elements` numbers in `size` bytes."""
    elements: int
    size: int
    decode: Callable[[np.ndarray, np.ndarray], None]


FORMATS = {"F32": Format(1, 4, _f32), "F16": Format(1, 2, _f16), "BF16": Format(1, 2, _bf16), "Q8_0": Format(32, 34, _q8_0),
           "Q4_0": Format(32, 18, _q4_0), "Q4_1": Format(32, 20, _q4_1), "Q5_0": Format(32, 22, _q5_0), "Q4_K": Format(256, 144, _q4_k),
           "Q6_K": Format(256, 210, _q6_k)}


# ---- tensors ----

def decode(descriptor: int, offset: int, kind: str, out: Tensor, where: str, order: np.ndarray | None = None) -> None:
    """Fill `out` (contiguous, on the CPU) with numbers stored as `kind` from `offset` of an open file.

    order  int64 [rows]: for each row of `out` (its first axis) the row in the file; None where they are the same
    The C library does it where there is one, numpy where there is none, with the same bits. The file is read, not mapped,
    and in small pieces: no page of it stays in this process's memory, and a file that shrinks or a disk that fails
    meanwhile is an Error, not a dead process. Raises Error, with `where` (file and tensor), also for NaN, infinity and
    numbers beyond the range of out's dtype: weights that hold them are damaged.
    """
    if order is not None and out.numel() // max(1, len(out)) % FORMATS[kind].elements:  # a quantised bias: blocks of several rows
        decode(descriptor, offset, kind, out, where)
        out.copy_(out[torch.from_numpy(order)])
    elif kernels.FORCED in (None, "c") and not library.missing():
        if fault := read_tensor.fill(descriptor, offset, kind, out, order):
            raise read_error(fault, where, out.dtype)
    else:
        decode_in_numpy(descriptor, offset, kind, out, where, order)


def decode_in_numpy(descriptor: int, offset: int, kind: str, out: Tensor, where: str, order: np.ndarray | None) -> None:
    """`decode` in numpy."""
    form, flat, width = FORMATS[kind], out.view(-1), 1 if order is None else max(1, out.numel() // len(out))
    size = PIECE if order is None else max(1, PIECE // width) * width
    raw, work = np.empty(size // form.elements * form.size, np.uint8), np.empty(size, np.float32)
    largest = torch.finfo(out.dtype).max
    for start in range(0, flat.numel(), size):
        values = work[:min(size, flat.numel() - start)]
        piece = raw[:len(values) // form.elements * form.size]
        runs = piece[None] if order is None else piece.reshape(-1, width // form.elements * form.size)  # that lie together in the file
        for run, first in zip(runs, [start] if order is None else order[start // width:] * width):
            _read(descriptor, offset + int(first) // form.elements * form.size, run, where)
        with np.errstate(invalid="ignore", over="ignore"):  # what comes of damaged scales is refused below
            form.decode(piece.reshape(-1, form.size), values.reshape(-1, form.elements))
        numbers = torch.from_numpy(values)
        low, high = numbers.aminmax()
        if not max(high, -low) <= largest:  # written so that NaN fails it too
            raise read_error(read_tensor.OUT_OF_RANGE if np.isfinite(values).all() else read_tensor.NOT_FINITE, where, out.dtype)
        flat[start:start + len(values)].copy_(numbers)


def read_error(fault: int, where: str, dtype: torch.dtype, what: str = "values") -> Error:
    """What `fault`, as `read_tensor.fill` returns it, means for the user; what: "values" or "scales" that were looked at."""
    if fault == read_tensor.NO_MEMORY:
        raise MemoryError(f"{where}: no memory to decode it in")
    return Error(f"{where}: " + {read_tensor.SHORTER: "the file became shorter while it was read",
                                 read_tensor.OUT_OF_RANGE: f"values beyond the range of {str(dtype)[6:]}; use float32 or bfloat16",
                                 read_tensor.NOT_FINITE: f"NaN or infinite {what}; the file is damaged, fetch it again"
                                 }.get(fault, f"cannot be read ({os.strerror(abs(fault))})"))


def _read(descriptor: int, offset: int, into: np.ndarray, where: str) -> None:
    view = memoryview(into)
    while len(view):
        try:
            count = os.preadv(descriptor, [view], offset)
        except OSError as error:
            raise Error(f"{where}: cannot be read ({error.strerror})") from None
        if not count:
            raise Error(f"{where}: the file became shorter while it was read")
        view, offset = view[count:], offset + count
