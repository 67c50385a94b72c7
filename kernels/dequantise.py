"""Tensors of an open file into memory by the C library (dequantise.c): decoded by all threads at once, dense or packed."""
import ctypes

import numpy as np
import torch
from torch import Tensor

from . import native

KINDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q8_0": 8, "Q4_K": 12, "Q6_K": 14, "BF16": 30}  # GGUF's own numbers
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
SHORTER, OUT_OF_RANGE, NOT_FINITE, NO_MEMORY = -1, -2, -3, -4  # what the functions below return beside 0 and errno


def library() -> ctypes.CDLL | None:
    """The C library, its readers declared; None where there is none."""
    found, _ = native.library()
    if found is not None and found.rl_read_packed.argtypes is None:
        i64, pointer, number = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int
        found.rl_read_tensor.argtypes = [number, i64, number, i64, i64, pointer, number, pointer, number]
        found.rl_read_packed.argtypes = [number, i64, number, i64, i64, pointer, number, number, pointer, number]
    return found


def fill(descriptor: int, offset: int, kind: str, out: Tensor, order: np.ndarray | None = None) -> int:
    """Fill `out` (CPU, contiguous, of a dtype in DTYPES) with what an open file stores from `offset` as `kind`, a key of KINDS.

    order  int64 [rows]: for each row (of the first axis) the file's row, or None
    Returns 0, an errno, or one of the faults above; `out` is then filled in part.
    """
    if not out.is_contiguous() or out.device.type != "cpu":
        raise ValueError("a contiguous CPU tensor is needed")
    rows = 1 if order is None else len(out)
    inputs = out.numel() // rows if rows else 0
    return library().rl_read_tensor(descriptor, offset, KINDS[kind], rows, inputs, order_address(order, rows), DTYPES[out.dtype], out.data_ptr(), torch.get_num_threads())


def order_address(order: np.ndarray | None, rows: int) -> int | None:
    """Where C finds an order of rows. The array must outlive the call."""
    if order is None:
        return None
    if order.dtype != np.int64 or order.shape != (rows,) or not order.flags.c_contiguous:
        raise ValueError(f"an order of {rows} rows is int64 [{rows}], contiguous")
    return order.ctypes.data
