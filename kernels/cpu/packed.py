"""Matrices packed for the C products (matrix_products.c), for inference on CPUs.

Shapes: N output columns (rows of the weight matrix), D inputs, T rows of activations.
"""
import ctypes
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .library import library
from .memory import weights
from .read_tensor import KINDS, order_address
from .structs import Matrix

# What a matrix can be turned into.
FORMATS = {"float32": 0, "int8": 1, "int4": 2, "bfloat16": 3}
CODES = FORMATS | {"q4_k": 4, "q6_k": 5}        # these two hold GGUF's own blocks
PACK_ROWS = 4096  # rows converted at once while packing, to bound the extra memory


class GGUFKind(NamedTuple):
    """A type of GGUF blocks that a packed format keeps without rounding: a block's weights and bytes."""
    format: str
    elements: int
    size: int


GGUF_KINDS = {"Q8_0": GGUFKind("int8", 32, 34), "Q4_0": GGUFKind("int4", 32, 18),
              "Q4_1": GGUFKind("int4", 32, 20), "Q4_K": GGUFKind("q4_k", 256, 144),
              "Q6_K": GGUFKind("q6_k", 256, 210)}


class PackedMatrix:
    """A matrix [N, D] in the layout of packed_matrix.h.

    `shape`, `dtype` and `device` are those of the matrix that it stands for; `buffer` holds its bytes.
    Raises RuntimeError if there is no C library, MemoryError if there is no room.
    """

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, format: str, shape: tuple[int, int]):
        self.format, self.shape = format, torch.Size(shape)
        self.buffer = weights(library().rl_packed_bytes(CODES[format], *shape))

    @staticmethod
    def of(weight_ND: Tensor, format: str = "float32") -> "PackedMatrix":
        """Pack a matrix; int8 and int4 quantise it in blocks of 32 inputs, by the rule of packed_matrix.c."""
        packed = PackedMatrix(format, (weight_ND.shape[0], weight_ND.shape[1]))
        for first in range(0, len(weight_ND), PACK_ROWS):
            rows = weight_ND[first:first + PACK_ROWS].detach().float().contiguous()
            library().rl_pack_float(FORMATS[format], packed.buffer.data_ptr(), rows.data_ptr(), first,
                                    *rows.shape)
        return packed

    def read(self, descriptor: int, offset: int, kind: str, order: np.ndarray | None = None,
             keep: bool = False) -> int:
        """Pack what an open file stores into this new matrix; arguments and result as `read_tensor.fill`.

        keep  take the blocks as they are, without rounding: for a kind of GGUF_KINDS in its format
        """
        if keep and (GGUF_KINDS[kind].format != self.format or self.shape[1] % GGUF_KINDS[kind].elements):
            raise ValueError(f"{kind} blocks in rows of {self.shape[1]} are not {self.format} as they are")
        return int(library().rl_read_packed(descriptor, offset, KINDS[kind], *self.shape,
                                            order_address(order, self.shape[0]), CODES[self.format], keep,
                                            self.buffer.data_ptr(), torch.get_num_threads()))

    def rows(self, ids: Tensor) -> Tensor:
        """The matrix's rows at int64 ids [T], float32 [T, D]."""
        ids = ids.contiguous()
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.shape[0]:
            raise IndexError(f"a row outside 0 to {self.shape[0] - 1} was asked for")
        out = torch.empty(len(ids), self.shape[1])
        library().rl_unpack_rows(CODES[self.format], self.buffer.data_ptr(), ids.data_ptr(), *out.shape,
                                 out.data_ptr())
        return out

    def product(self, x_TD: Tensor, bias_N: Tensor | None = None) -> Tensor:
        """x @ weight.T + bias, float32 [T, N]. No bit of a row's result depends on the other rows."""
        x_TD = x_TD.float().contiguous()
        if x_TD.dim() != 2 or x_TD.shape[1] != self.shape[1]:
            raise ValueError(f"activations [T, {self.shape[1]}] are needed, not {list(x_TD.shape)}")
        out = torch.empty(len(x_TD), self.shape[0])
        matrix = self.struct(bias_N)
        if library().rl_linear(ctypes.byref(matrix), x_TD.data_ptr(), out.data_ptr(), len(x_TD),
                               torch.get_num_threads()):
            raise MemoryError(f"no memory for the tiles of {list(x_TD.shape)} activations")
        return out

    def struct(self, bias_N: Tensor | None) -> Matrix:
        """The matrix as C takes it. It holds addresses: the matrix and the bias must outlive it."""
        bias = None if bias_N is None else bias_N.data_ptr()
        return Matrix(CODES[self.format], self.buffer.data_ptr(), bias, *self.shape)
