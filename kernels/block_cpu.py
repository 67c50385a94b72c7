"""The halves of a transformer block around its attention in C (block.c), on packed weights: inference on CPUs.

Shape letters as in reference.py, and H·K, G·K the widths of queries and of keys and values.
"""
import ctypes

import torch
from torch import Tensor

from . import packed


class _Matrix(ctypes.Structure):
    _fields_ = [("format", ctypes.c_int32), ("packed", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("columns", ctypes.c_int64), ("inputs", ctypes.c_int64)]


class PackedBlock:
    """A block's norms and matrices as the C functions take them. A matrix is (Packed, bias or None)."""

    def __init__(self, norms: tuple[Tensor, Tensor], eps: float, head_size: int, qkv: tuple, rest: tuple):
        """norms: weights [D] before attention and before the MLP; qkv: q, k, v; rest: o, gate, up, down."""
        self._library = packed.library()
        if self._library.rl_after_attention.argtypes is None:
            i64, pointer = ctypes.c_int64, ctypes.c_void_p
            self._library.rl_before_attention.argtypes = [pointer, pointer, ctypes.c_float, *[pointer] * 6, i64, i64, ctypes.c_int]
            self._library.rl_after_attention.argtypes = [pointer, pointer, pointer, ctypes.c_float, pointer, pointer, i64, ctypes.c_int]
        self._keep = norms, qkv, rest  # the addresses below point into these
        self.norms, self.eps, self.head_size = [w.data_ptr() for w in norms], eps, head_size
        self.qkv, self.rest = _matrices(qkv), _matrices(rest)
        self._shapes = [(m.shape[0] // head_size, head_size) for m, _ in qkv]
        self.weights = sum(m.shape.numel() for m, _ in (*qkv, *rest))
        self.quantised = any(m.format != "float32" for m, _ in (*qkv, *rest))
        self.width, self.heads, self.groups = qkv[0][0].shape[1], self._shapes[0][0], self._shapes[1][0]

    def before_attention(self, x_TD: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """rms_norm, the three products, rotary: q [T, H, K], k and v [T, G, K]."""
        x_TD, rows = x_TD.contiguous(), len(x_TD)
        q, k, v = (torch.empty(rows, *shape) for shape in self._shapes)
        _check(self._library.rl_before_attention(x_TD.data_ptr(), self.norms[0], self.eps, self.qkv, cos_TK.data_ptr(), sin_TK.data_ptr(), q.data_ptr(), k.data_ptr(),
                                                 v.data_ptr(), rows, self.head_size, torch.get_num_threads()))
        return q, k, v

    def after_attention(self, x_TD: Tensor, attended: Tensor) -> Tensor:
        """x + attended · Wo, then the MLP around its own residual: [T, D]. attended [T, H, K]."""
        x_TD, attended = x_TD.contiguous(), attended.contiguous()
        out = torch.empty_like(x_TD)
        _check(self._library.rl_after_attention(x_TD.data_ptr(), attended.data_ptr(), self.norms[1], self.eps, self.rest, out.data_ptr(), len(x_TD),
                                                torch.get_num_threads()))
        return out


def _matrices(pairs: tuple) -> ctypes.Array:
    return (_Matrix * len(pairs))(*((packed.FORMATS[m.format], m.buffer.data_ptr(), None if bias is None else bias.data_ptr(), *m.shape) for m, bias in pairs))


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("no memory for a block's activations")
