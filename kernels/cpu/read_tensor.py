"""Tensors of an open file into memory by the C library (read_tensor.c), decoded by all threads at once."""
import numpy as np
import torch
from torch import Tensor

from .library import library

# GGUF's own numbers of its tensor types
KINDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12,
         "Q5_K": 13, "Q6_K": 14, "BF16": 30, "MXFP4": 39}
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
SHORTER, OUT_OF_RANGE, NOT_FINITE, NO_MEMORY = -1, -2, -3, -4  # results beside 0 and an errno


def fill(descriptor: int, offset: int, kind: str, out: Tensor, order: np.ndarray | None = None) -> int:
    """Fill a tensor with what an open file stores. Raises RuntimeError if there is no C library.

    offset  of the first byte in the file
    kind    a key of KINDS: how the file stores the numbers
    out     on the CPU, contiguous, of a dtype in DTYPES
    order   int64 [rows]: for each row of `out` (its first axis) the file's row; None: the same order
    Returns 0, an errno, or one of the faults above; after a fault `out` is filled in part.
    """
    if not out.is_contiguous() or out.device.type != "cpu":
        raise ValueError("a contiguous CPU tensor is needed")
    rows = 1 if order is None else len(out)
    inputs = out.numel() // rows if rows else 0
    return int(library().rl_read_tensor(descriptor, offset, KINDS[kind], rows, inputs,
                                        order_address(order, rows), DTYPES[out.dtype], out.data_ptr(),
                                        torch.get_num_threads()))


def order_address(order: np.ndarray | None, rows: int) -> int | None:
    """The address of an order of rows, for C. The array must outlive the call."""
    if order is None:
        return None
    if order.dtype != np.int64 or order.shape != (rows,) or not order.flags.c_contiguous:
        raise ValueError(f"an order of {rows} rows is int64 [{rows}], contiguous")
    return int(order.ctypes.data)
