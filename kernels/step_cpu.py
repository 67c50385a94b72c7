"""All layers of a packed model in one C call (step.c): inference on CPUs. Shape letters as in reference.py."""
import ctypes

import torch
from torch import Tensor

from . import packed
from .block_cpu import PackedBlock
from .decode_cpu import SharedPrefix

WORK = 10**11  # products of a weight and a row in one call, about a second of two cores: in between, Python hears an interrupt


class _Layer(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("norm_before", "norm_after", "before", "after", "keys", "values", "prefix_keys", "prefix_values")] + [("window", ctypes.c_int64)]


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("width", "heads", "groups", "size", "capacity", "prefix", "half")] + [("eps", ctypes.c_float), ("scale", ctypes.c_float)]


class PackedTrunk:
    """All layers of a model over one cache, as the C functions take them. To be made anew when the cache's tensors are others."""

    def __init__(self, blocks: list[PackedBlock], windows: tuple[int | None, ...], prefix: list[SharedPrefix], keys: list[Tensor], values: list[Tensor]):
        """A layer each: its block, its window, its shared prefix (an empty list: none), its keys and values [slots, G, S, K], float32 or float16 (empty: none are kept)."""
        self._library = packed.library()
        if self._library.rl_step.argtypes is None:
            pointer, i64 = ctypes.c_void_p, ctypes.c_int64
            self._library.rl_step.argtypes = [pointer, i64, *[pointer] * 5, i64, ctypes.c_int]
            self._library.rl_sequences.argtypes = [pointer, i64, *[pointer] * 6, i64, i64, ctypes.c_int]
        kinds = {t.dtype if t.is_contiguous() else None for t in (*keys, *values)} or {torch.float32}
        if kinds not in ({torch.float32}, {torch.float16}):
            raise ValueError("the cache must be contiguous, and float32 or float16: it is written in place")
        self._keep = blocks, keys, values, prefix  # the addresses below point into these
        self._reach = min([w for w in windows if w is not None], default=None) if prefix else None
        self._room = tuple(keys[0].shape[::2]) if keys else (0, 0)  # slots, S
        first = blocks[0]
        self._shape = _Shape(first.width, first.heads, first.groups, first.head_size, self._room[1], prefix[0].length if prefix else 0, kinds == {torch.float16}, first.eps, first.head_size ** -0.5)
        self._weights = max(b.weights for b in blocks)
        self._layers = (_Layer * len(blocks))(*(
            (*b.norms, ctypes.addressof(b.qkv), ctypes.addressof(b.rest), k, v, *((ctypes.addressof(p.keys), ctypes.addressof(p.values)) if p else (None, None)), 0 if p or w is None else w)
            for b, w, p, k, v in zip(blocks, windows, prefix or [None] * len(blocks), *([t.data_ptr() for t in store] or [None] * len(blocks) for store in (keys, values)))))

    def step(self, x_BD: Tensor, cos_BK: Tensor, sin_BK: Tensor, places_B: Tensor) -> Tensor:
        """The last layer's output [B, D] for one new token of each of the first B slots, at these places; to the last bit as block after block gives it."""
        longest = int(places_B.max()) + 1
        if len(x_BD) > self._room[0] or longest > self._room[1]:
            raise ValueError(f"a cache of {self._room[0]} slots of {self._room[1]} tokens has no room for token {longest} of {len(x_BD)} requests")
        self._check(self._shape.prefix + longest)
        return self._run(self._library.rl_step, x_BD, cos_BK, sin_BK, [places_B], len(x_BD))

    def sequences(self, x_TD: Tensor, cos_TK: Tensor, sin_TK: Tensor, offsets: Tensor, parents: list[int] | None = None, slot: int | None = None) -> Tensor:
        """The last layer's output [T, D] for sequences packed end to end, from `offsets` [B + 1] on, each after the prefix.

        parents  of each the sequence that it follows, all of whose tokens it sees, or −1; windows are not looked at for those
        slot     where the cache keeps the first one's keys and values, the others' in the slots after it; None: they are not kept
        """
        offsets, count = offsets.to(torch.int64), len(offsets) - 1
        longest = int((offsets[1:] - offsets[:-1]).max())
        if slot is not None and (slot + count > self._room[0] or longest > self._room[1]):
            raise ValueError(f"a cache of {self._room[0]} slots of {self._room[1]} tokens has no room for {count} sequences of up to {longest} from slot {slot} on")
        self._check(self._shape.prefix + longest)
        lists = [offsets] + ([torch.tensor(parents, dtype=torch.int64)] if parents else [None])
        return self._run(self._library.rl_sequences, x_TD, cos_TK, sin_TK, lists, count, -1 if slot is None else slot)

    def _check(self, longest: int) -> None:
        if self._reach is not None and longest > self._reach:
            raise ValueError(f"a shared prefix of {self._shape.prefix} tokens does not lie within a window of {self._reach}")

    def _run(self, function, x: Tensor, cos: Tensor, sin: Tensor, lists: list[Tensor | None], *numbers: int) -> Tensor:
        x, cos, sin = x.clone(memory_format=torch.contiguous_format), cos.contiguous(), sin.contiguous()
        lists = [None if t is None else t.contiguous() for t in lists]
        at_once = max(1, WORK // max(1, len(x) * self._weights))
        for first in range(0, len(self._layers), at_once):
            if function(ctypes.byref(self._layers, first * ctypes.sizeof(_Layer)), min(at_once, len(self._layers) - first), ctypes.byref(self._shape), x.data_ptr(), cos.data_ptr(), sin.data_ptr(),
                        *(None if t is None else t.data_ptr() for t in lists), *numbers, torch.get_num_threads()):
                raise MemoryError("no memory for the activations of a model's layers")
        return x
