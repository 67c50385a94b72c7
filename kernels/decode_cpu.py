"""Attention of a generation step on CPUs in C (decode.c), float32, over caches of float32 or float16. Shape letters as in reference.py."""
import ctypes

import torch
from torch import Tensor

from . import packed


class SharedPrefix:
    """The keys and values [P, G, K] of a shared prefix, packed a group at a time for the products of every step."""

    def __init__(self, k_PGK: Tensor, v_PGK: Tensor):
        self.length = len(k_PGK)
        self._matrices = [[packed.Packed.of(m) for m in parts] for parts in (k_PGK.unbind(1), v_PGK.permute(1, 2, 0).unbind(0))]
        self.keys, self.values = ((ctypes.c_void_p * len(ms))(*(m.buffer.data_ptr() for m in ms)) for ms in self._matrices)


def cached_attention(q_BHK: Tensor, k_BGK: Tensor, v_BGK: Tensor, keys_NGSK: Tensor, values_NGSK: Tensor, places_B: Tensor,
                     prefix: SharedPrefix | None = None, *, window: int | None = None, scale: float | None = None) -> Tensor:
    """See `reference.cached_attention`."""
    (B, H, K), (G, S) = q_BHK.shape, keys_NGSK.shape[1:3]
    if prefix and window is not None and prefix.length + int(places_B.max()) >= window:
        raise ValueError(f"a shared prefix of {prefix.length} tokens does not lie within a window of {window}")
    if not (keys_NGSK.is_contiguous() and values_NGSK.is_contiguous()):
        raise ValueError("the cache must be contiguous: it is written in place")
    if not keys_NGSK.dtype == values_NGSK.dtype in (torch.float32, torch.float16):
        raise ValueError(f"the cache must be float32 or float16, not {str(keys_NGSK.dtype)[6:]} and {str(values_NGSK.dtype)[6:]}")
    library = packed.library()
    if library.rl_cached_attention.argtypes is None:
        pointer, i64 = ctypes.c_void_p, ctypes.c_int64
        library.rl_cached_attention.argtypes = [*[pointer] * 5, ctypes.c_int, *[pointer] * 4, *[i64] * 7, ctypes.c_float, ctypes.c_int]
    q_BHK, k_BGK, v_BGK, places_B = q_BHK.contiguous(), k_BGK.contiguous(), v_BGK.contiguous(), places_B.contiguous()
    out = torch.empty_like(q_BHK)
    if B and library.rl_cached_attention(
            q_BHK.data_ptr(), k_BGK.data_ptr(), v_BGK.data_ptr(), keys_NGSK.data_ptr(), values_NGSK.data_ptr(), keys_NGSK.dtype == torch.float16, places_B.data_ptr(),
            prefix.keys if prefix else None, prefix.values if prefix else None, out.data_ptr(), B, G, H // G, K, S, prefix.length if prefix else 0,
            0 if prefix or window is None else window, K ** -0.5 if scale is None else scale, torch.get_num_threads()):
        raise MemoryError("no memory for the scores of a generation step")
    return out
