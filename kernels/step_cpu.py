"""A generation step through all layers in C (step.c), on packed weights: inference on CPUs. Shape letters as in reference.py."""
import ctypes

import torch
from torch import Tensor

from . import packed
from .block_cpu import PackedBlock
from .decode_cpu import SharedPrefix


class _Layer(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("norm_before", "norm_after", "before", "after", "keys", "values", "prefix_keys", "prefix_values")] + [("window", ctypes.c_int64)]


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("layers", "width", "heads", "groups", "size", "capacity", "prefix")] + [("eps", ctypes.c_float), ("scale", ctypes.c_float)]


class PackedStep:
    """All layers of a model over one cache, as the C function takes them. To be made anew when the cache's tensors are others."""

    def __init__(self, blocks: list[PackedBlock], keys: list[Tensor], values: list[Tensor], prefix: list[SharedPrefix], windows: tuple[int | None, ...]):
        """A layer each: its block, its keys and values [slots, G, S, K] float32, its shared prefix (an empty list: none), its window."""
        self._library = packed.library()
        if self._library.rl_step.argtypes is None:
            pointer = ctypes.c_void_p
            self._library.rl_step.argtypes = [*[pointer] * 6, ctypes.c_int64, ctypes.c_int]
        if not all(t.is_contiguous() and t.dtype == torch.float32 for t in (*keys, *values)):
            raise ValueError("the cache must be contiguous float32: it is written in place")
        self._keep = blocks, keys, values, prefix  # the addresses below point into these
        G, S, K = keys[0].shape[1:]
        length = prefix[0].length if prefix else 0
        self._reach = min([w for w in windows if w is not None], default=None) if prefix else None
        self._shape = _Shape(len(blocks), blocks[0].width, blocks[0].heads, G, K, S, length, blocks[0].eps, K ** -0.5)
        self._layers = (_Layer * len(blocks))(*(
            (*b.norms, ctypes.addressof(b.qkv), ctypes.addressof(b.rest), k.data_ptr(), v.data_ptr(),
             *((ctypes.addressof(p.keys), ctypes.addressof(p.values)) if p else (None, None)), 0 if p or w is None else w)
            for b, k, v, p, w in zip(blocks, keys, values, prefix or [None] * len(blocks), windows)))

    def __call__(self, x_BD: Tensor, cos_BK: Tensor, sin_BK: Tensor, places_B: Tensor) -> Tensor:
        """The last layer's output [B, D] for one new token of each of B requests, to the last bit as block after block gives it."""
        if self._reach is not None and self._shape.prefix + int(places_B.max()) >= self._reach:
            raise ValueError(f"a shared prefix of {self._shape.prefix} tokens does not lie within a window of {self._reach}")
        x_BD, cos_BK, sin_BK, places_B = x_BD.clone(memory_format=torch.contiguous_format), cos_BK.contiguous(), sin_BK.contiguous(), places_B.contiguous()
        if self._library.rl_step(self._layers, ctypes.byref(self._shape), x_BD.data_ptr(), cos_BK.data_ptr(), sin_BK.data_ptr(), places_B.data_ptr(), len(x_BD),
                                 torch.get_num_threads()):
            raise MemoryError("no memory for a generation step's activations")
        return x_BD
