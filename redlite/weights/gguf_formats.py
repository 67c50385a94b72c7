"""Numbers as files store them: a tensor's bytes in a file, read by the C library or by numpy.

gguf_types.py defines the formats. The C library's reader knows the common ones and gives the same bits.
"""
import math
import os
import weakref
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
from redlite.weights.gguf import GGUF
from redlite.weights.gguf_types import TYPES

PIECE = 1 << 15  # elements decoded at a time: they stay in the cache, and torch starts no threads for so few
CHECKED = 1 << 20  # numbers of a `FileRows` that are looked at together
READ_FAULTS = {
    read_tensor.SHORTER: "the file became shorter while it was read",
    read_tensor.NOT_FINITE: "NaN or infinite {what}; the file is damaged, fetch it again",
    read_tensor.OUT_OF_RANGE: "values beyond the range of {dtype}; use {wider}",
}


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
            read_into(file.fileno(), self.offset, raw.reshape(-1), self.where)
        return raw if self.order is None else raw[self.order]


class FileRows:
    """A matrix [N, D] that stays in its file, for `kernels.embedding`: a prompt needs few of its rows.

    It has a descriptor of its own, so the file may be closed, renamed or removed meanwhile. Raises Error for
    a matrix with damaged numbers, of which it holds a few megabytes at a time to look at.
    """

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, place: Place):
        self._place, self.shape = place, torch.Size(place.shape)
        with place.open() as file:
            self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        rows = max(1, CHECKED // self.shape[1])
        for first in range(0, self.shape[0], rows):
            self.rows(torch.arange(first, min(first + rows, self.shape[0])))

    def rows(self, ids_T: Tensor) -> Tensor:
        """The rows at int64 ids [T]: float32 [T, D]. Raises Error if the file has changed for the worse."""
        if len(ids_T) and not 0 <= int(ids_T.min()) <= int(ids_T.max()) < self.shape[0]:
            raise IndexError(f"a row outside 0 to {self.shape[0] - 1} was asked for")
        place, out = self._place, torch.empty(len(ids_T), self.shape[1])
        order = ids_T.contiguous().numpy()
        if place.order is not None:
            order = place.order[order]
        decode(self._descriptor, place.offset, place.kind, out, place.where, order)
        return out


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

    The C library does it where there is one that knows the type, else numpy, with the same bits. The file is
    read, not mapped, and in small pieces. So no page of it stays in this process's memory, and a file that
    shrinks meanwhile is an Error where a mapping would kill the process. Raises Error also for NaN, infinity
    and numbers beyond the range of out's dtype: weights that hold them are damaged.
    """
    if order is not None and out.numel() // max(1, len(out)) % TYPES[kind].elements:
        decode(descriptor, offset, kind, out, where)  # a quantised bias: a block holds several of its rows
        out.copy_(out[torch.from_numpy(order)])
    elif kind in read_tensor.KINDS and kernels.FORCED in (None, "c") and not library.missing():
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
            read_into(descriptor, offset + int(first) // form.elements * form.size, run, where)
        with np.errstate(invalid="ignore", over="ignore"):  # what comes of damaged scales is refused below
            form.decode(piece.reshape(-1, form.size), values.reshape(-1, form.elements))
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
    wider = "float32 or bfloat16" if dtype == torch.float16 else "float32"
    return Error(f"{where}: " + words.format(what=what, dtype=str(dtype).removeprefix("torch."), wider=wider))


def read_into(descriptor: int, offset: int, into: np.ndarray, where: str) -> None:
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
