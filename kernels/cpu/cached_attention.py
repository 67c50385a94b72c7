"""Attention of a generation step on CPUs in C (cached_attention.c). Shape letters as in reference.py."""
import ctypes

import torch
from torch import Tensor

from . import structs
from .library import library
from .packed import PackedMatrix

KEPT = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # of a cache; see cached_attention.h


class SharedPrefix:
    """The keys and values [P, G, K] of a shared prefix, packed for the products of every step.

    kept  the dtype of the caches that go with it. With bfloat16 the prefix is rounded to that too
    """

    def __init__(self, k_PGK: Tensor, v_PGK: Tensor, kept: torch.dtype = torch.float32):
        self.length, self.narrow = len(k_PGK), kept == torch.bfloat16
        format = "bfloat16" if self.narrow else "float32"
        self._matrices = [PackedMatrix.of(m, format)
                          for m in (*k_PGK.unbind(1), *v_PGK.permute(1, 2, 0).unbind(0))]
        self._pointers = (ctypes.c_void_p * len(self._matrices))(*(m.buffer.data_ptr()
                                                                   for m in self._matrices))
        # where C finds the pointers to each group's matrix
        self.keys = ctypes.addressof(self._pointers)
        self.values = self.keys + ctypes.sizeof(self._pointers) // 2


def cached_attention(q_BHK: Tensor, k_BGK: Tensor, v_BGK: Tensor, keys_NGSK: Tensor, values_NGSK: Tensor,
                     places_B: Tensor, prefix: SharedPrefix | None = None, *, window: int | None = None,
                     scale: float | None = None, cap: float | None = None) -> Tensor:
    """As `reference.cached_attention`, for float32 queries and a float32, float16 or bfloat16 cache.

    With a bfloat16 cache, queries and exponentials that meet the prefix are rounded to bfloat16 too.
    Raises ValueError where a prefix reaches beyond the window or was packed for another kind of cache, and
    for a cache of another dtype or that is not contiguous; MemoryError if there is no room for the scores.
    """
    (B, H, K), (G, S) = q_BHK.shape, keys_NGSK.shape[1:3]
    if prefix and window is not None and prefix.length + int(places_B.max()) >= window:
        raise ValueError(
            f"a shared prefix of {prefix.length} tokens does not lie within a window of {window}")
    if not (keys_NGSK.is_contiguous() and values_NGSK.is_contiguous()):
        raise ValueError("the cache must be contiguous: it is written in place")
    if keys_NGSK.dtype != values_NGSK.dtype or keys_NGSK.dtype not in KEPT:
        kinds = f"{str(keys_NGSK.dtype)[6:]} and {str(values_NGSK.dtype)[6:]}"
        raise ValueError(f"the cache must be float32, float16 or bfloat16, not {kinds}")
    if prefix and prefix.narrow != (keys_NGSK.dtype == torch.bfloat16):
        raise ValueError(f"the prefix was not packed for a {str(keys_NGSK.dtype)[6:]} cache")
    q_BHK, k_BGK, v_BGK, places_B = (x.contiguous() for x in (q_BHK, k_BGK, v_BGK, places_B))
    out = torch.empty_like(q_BHK)
    arguments = structs.CachedAttention(
        *(x.data_ptr() for x in (q_BHK, k_BGK, v_BGK, keys_NGSK, values_NGSK, places_B)),
        prefix.keys if prefix else None, prefix.values if prefix else None, out.data_ptr(), B, G, H // G, K,
        S, prefix.length if prefix else 0, 0 if prefix or window is None else window,
        KEPT[keys_NGSK.dtype], K**-0.5 if scale is None else scale, cap or 0.0)
    if B and library().rl_cached_attention(ctypes.byref(arguments), torch.get_num_threads()):
        raise MemoryError("no memory for the scores of a generation step")
    return out
