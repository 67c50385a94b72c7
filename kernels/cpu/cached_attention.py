"""Attention of a generation step on CPUs in C (cached_attention.c). Shape letters as in reference.py."""
import ctypes

import torch
from torch import Tensor

from . import structs
from .library import library
from .packed import PackedMatrix


class SharedPrefix:
    """The keys and values [P, G, K] of a shared prefix, packed for the products of every step."""

    def __init__(self, k_PGK: Tensor, v_PGK: Tensor):
        self.length = len(k_PGK)
        self._matrices = [PackedMatrix.of(m) for m in (*k_PGK.unbind(1), *v_PGK.permute(1, 2, 0).unbind(0))]
        self._pointers = (ctypes.c_void_p * len(self._matrices))(*(m.buffer.data_ptr()
                                                                   for m in self._matrices))
        # where C finds the pointers to each group's matrix
        self.keys = ctypes.addressof(self._pointers)
        self.values = self.keys + ctypes.sizeof(self._pointers) // 2


def cached_attention(q_BHK: Tensor, k_BGK: Tensor, v_BGK: Tensor, keys_NGSK: Tensor, values_NGSK: Tensor,
                     places_B: Tensor, prefix: SharedPrefix | None = None, *, window: int | None = None,
                     scale: float | None = None, cap: float | None = None) -> Tensor:
    """As `reference.cached_attention`, for float32 queries and a float32 or float16 cache.

    Raises ValueError where a prefix reaches beyond the window, and for a cache of another dtype or that is
    not contiguous; MemoryError if there is no room for the scores.
    """
    (B, H, K), (G, S) = q_BHK.shape, keys_NGSK.shape[1:3]
    if prefix and window is not None and prefix.length + int(places_B.max()) >= window:
        raise ValueError(
            f"a shared prefix of {prefix.length} tokens does not lie within a window of {window}")
    if not (keys_NGSK.is_contiguous() and values_NGSK.is_contiguous()):
        raise ValueError("the cache must be contiguous: it is written in place")
    if keys_NGSK.dtype != values_NGSK.dtype or keys_NGSK.dtype not in (torch.float32, torch.float16):
        kinds = f"{str(keys_NGSK.dtype)[6:]} and {str(values_NGSK.dtype)[6:]}"
        raise ValueError(f"the cache must be float32 or float16, not {kinds}")
    q_BHK, k_BGK, v_BGK, places_B = (x.contiguous() for x in (q_BHK, k_BGK, v_BGK, places_B))
    out = torch.empty_like(q_BHK)
    arguments = structs.CachedAttention(
        *(x.data_ptr() for x in (q_BHK, k_BGK, v_BGK, keys_NGSK, values_NGSK, places_B)),
        prefix.keys if prefix else None, prefix.values if prefix else None, out.data_ptr(), B, G, H // G, K,
        S, prefix.length if prefix else 0, 0 if prefix or window is None else window,
        keys_NGSK.dtype == torch.float16, K**-0.5 if scale is None else scale, cap or 0.0)
    if B and library().rl_cached_attention(ctypes.byref(arguments), torch.get_num_threads()):
        raise MemoryError("no memory for the scores of a generation step")
    return out
