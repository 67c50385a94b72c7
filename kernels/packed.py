"""Matrices packed once for the C products (linear.c): float32, int8 and int4, for inference on CPUs.

Shapes: N output columns (rows of the weight matrix), D inputs, T rows of activations.
"""
import ctypes
import mmap

import numpy as np
import torch
from torch import Tensor

from . import dequantise, native

FORMATS = {"float32": 0, "int8": 1, "int4": 2}
GGUF_KINDS = {"Q8_0": (80, "int8", 34), "Q4_0": (40, "int4", 18), "Q4_1": (41, "int4", 20)}  # kind, format, bytes a block of 32
PACK_ROWS = 4096  # rows converted at once while packing, to bound the extra memory


def library() -> ctypes.CDLL:
    """The C library, its functions on packed matrices declared. Raises RuntimeError where there is none."""
    found, reason = native.library()
    if found is None:
        raise RuntimeError(reason)
    if found.rl_linear.argtypes is None:
        i64, pointer = ctypes.c_int64, ctypes.c_void_p
        found.rl_packed_bytes.argtypes, found.rl_packed_bytes.restype = [ctypes.c_int, i64, i64], ctypes.c_size_t
        found.rl_pack_float.argtypes = [ctypes.c_int, pointer, pointer, i64, i64, i64]
        found.rl_pack_gguf.argtypes = [ctypes.c_int, pointer, pointer, i64, i64, i64]
        found.rl_unpack_rows.argtypes = [ctypes.c_int, pointer, pointer, i64, i64, pointer]
        found.rl_linear.argtypes = [ctypes.c_int, *[pointer] * 4, i64, i64, i64, ctypes.c_int]
    return found


def zeros(count: int) -> Tensor:
    """Zeroed bytes, at a page's start. Their pages come from the system as they are written, so nothing is zeroed twice."""
    try:
        memory = mmap.mmap(-1, max(count, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no memory for a packed matrix of {count} bytes ({error.strerror})") from None
    return torch.frombuffer(memory, dtype=torch.uint8)[:count]


def usable() -> str:
    """Why packed products cannot run here; "" if they can."""
    return native.library()[1]


class Packed:
    """A matrix [N, D] in the layout of linear.c. `shape`, `dtype` and `device` are those of the matrix that it stands for."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, format: str, shape: tuple[int, int]):
        self.format, self.shape = format, torch.Size(shape)
        self.buffer = zeros(library().rl_packed_bytes(FORMATS[format], *shape))

    @staticmethod
    def of(weight_ND: Tensor, format: str = "float32") -> "Packed":
        """Pack a matrix; int8 and int4 quantise it in blocks of 32 inputs (see linear.c for the rule)."""
        packed = Packed(format, tuple(weight_ND.shape))
        for first in range(0, len(weight_ND), PACK_ROWS):
            rows = weight_ND[first:first + PACK_ROWS].detach().float().contiguous()
            library().rl_pack_float(FORMATS[format], packed.buffer.data_ptr(), rows.data_ptr(), first, len(rows), rows.shape[1])
        return packed

    @staticmethod
    def of_gguf(kind: str, raw, shape: tuple[int, int]) -> "Packed":
        """Pack the blocks of a GGUF tensor as they are, without rounding again. raw: a contiguous uint8 array; kind: a key of GGUF_KINDS."""
        number, format, block = GGUF_KINDS[kind]
        if shape[1] % 32 or raw.size != shape[0] * shape[1] // 32 * block or not raw.flags.c_contiguous:
            raise ValueError(f"{kind} [{shape[0]}, {shape[1]}] takes whole blocks of 32, contiguous; {raw.size} bytes given")
        packed = Packed(format, shape)
        library().rl_pack_gguf(number, packed.buffer.data_ptr(), raw.ctypes.data, 0, *shape)
        return packed

    def read(self, descriptor: int, offset: int, kind: str, order: np.ndarray | None = None, keep: bool = False) -> int:
        """Pack, into this new matrix, what an open file stores from `offset` as `kind`; arguments and result as for `dequantise.fill`.

        keep  take the blocks as they are, as `of_gguf`: for kinds of GGUF_KINDS in their format
        """
        number = GGUF_KINDS[kind][0] if keep else 0
        if keep and (GGUF_KINDS[kind][1] != self.format or self.shape[1] % 32):
            raise ValueError(f"{kind} blocks in rows of {self.shape[1]} are not {self.format} as they are")
        return dequantise.library().rl_read_packed(descriptor, offset, dequantise.KINDS[kind], *self.shape, dequantise.order_address(order, self.shape[0]),
                                                   FORMATS[self.format], number, self.buffer.data_ptr(), torch.get_num_threads())

    def rows(self, ids: Tensor) -> Tensor:
        """The matrix's rows at int64 ids [T], float32 [T, D]."""
        ids = ids.contiguous()
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.shape[0]:
            raise IndexError(f"a row outside 0 to {self.shape[0] - 1} was asked for")
        out = torch.empty(len(ids), self.shape[1])
        library().rl_unpack_rows(FORMATS[self.format], self.buffer.data_ptr(), ids.data_ptr(), len(ids), self.shape[1], out.data_ptr())
        return out

    def product(self, x_TD: Tensor, bias_N: Tensor | None = None) -> Tensor:
        """x @ weight.T + bias, float32 [T, N]. A row's result is the same to the last bit whatever the other rows are."""
        x_TD = x_TD.float().contiguous()
        if x_TD.dim() != 2 or x_TD.shape[1] != self.shape[1]:
            raise ValueError(f"activations [T, {self.shape[1]}] are needed, not {list(x_TD.shape)}")
        out = torch.empty(len(x_TD), self.shape[0])
        failed = library().rl_linear(FORMATS[self.format], self.buffer.data_ptr(), x_TD.data_ptr(), bias_N.data_ptr() if bias_N is not None else None,
                                      out.data_ptr(), len(x_TD), *self.shape, torch.get_num_threads())
        if failed:
            raise MemoryError(f"no memory for the tiles of {list(x_TD.shape)} activations")
        return out
