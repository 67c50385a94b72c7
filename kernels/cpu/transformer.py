"""Transformer blocks on packed weights in C, for inference on CPUs. Shape letters as in reference.py.

`PackedBlock` is one block, in two halves around its attention (transformer_block.c). `PackedTrunk` runs all
layers of a model in one call (transformer_layers.c).
"""
import ctypes
from collections.abc import Iterator

import torch
from torch import Tensor

from . import structs
from .cached_attention import KEPT, SharedPrefix
from .library import library
from .packed import PackedMatrix

WORK = 10**11  # weights × rows a call, about a second of two cores: between calls Python can be interrupted
Biased = tuple[PackedMatrix, Tensor | None]  # a matrix and its bias


QK_NORMS = ("", "head", "width", "late")                # enum QkNorm of transformer_block.h
ACTIVATIONS = ("silu", "gelu_tanh", "relu2", "xielu")   # enum Act of loops.h
Rotary = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]  # cos and sin [T, R] for queries, for keys
NormWeights = tuple[Tensor, Tensor | None] | None       # weight and bias [D]; None: there is no norm


class PackedBlock:
    """A block's norms and matrices as the C functions take them."""

    def __init__(self, norms: tuple[NormWeights, ...], eps: float, head_size: int, qkv: tuple[Biased, ...],
                 rest: tuple[Biased, ...], *, rotated: int, act: str = "silu", residual: float = 1.0,
                 qk_norm: str = "", qk_norms: tuple[Tensor, ...] = (), xielu: tuple[float, ...] = ()):
        """What makes up the block.

        norms     before attention, behind it, before MLP, behind it; with a bias LayerNorm, else RMSNorm
        qkv       q, k, v
        rest      o, gate, up, down, or without a gate o, up, down
        rotated   numbers of a head that are rotated
        act       one of ACTIVATIONS; xielu: its p, n, beta, eps
        residual  multiplies what is added to the residual stream
        qk_norm   one of QK_NORMS; qk_norms: the weights for queries and keys
        """
        matrices = [
            (structs.Matrix * len(part))(*(m.struct(bias) for m, bias in part)) for part in (qkv, rest)]
        self._keep = norms, qkv, rest, matrices, qk_norms  # the addresses in `struct` point into these
        four, two = ctypes.c_void_p * 4, ctypes.c_void_p * 2
        self.struct = structs.Block(
            four(*(n and n[0].data_ptr() for n in norms)),
            four(*(n[1].data_ptr() if n and n[1] is not None else None for n in norms)),
            two(*(w.data_ptr() for w in qk_norms)), *map(ctypes.addressof, matrices), head_size, rotated,
            QK_NORMS.index(qk_norm), ACTIVATIONS.index(act), len(rest) == 4, eps, residual,
            (ctypes.c_float * 4)(*xielu))
        self.head_size, self.width = head_size, qkv[0][0].shape[1]
        self._shapes = [(m.shape[0] // head_size, head_size) for m, _ in qkv]
        self.heads, self.groups = self._shapes[0][0], self._shapes[1][0]
        self.weights = sum(m.shape.numel() for m, _ in (*qkv, *rest))
        formats = {m.format for m, _ in (*qkv, *rest)}
        # Of the keys and values that generation keeps: products round activations as much, or far more.
        self.kept = (torch.float16 if formats - {"float32", "bfloat16"} else
                     torch.bfloat16 if "bfloat16" in formats else torch.float32)

    def before_attention(self, x_TD: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Norm, the three products, norms of queries and keys, rotary: q [T, H, K], k and v [T, G, K]."""
        x_TD, rows = x_TD.contiguous(), len(x_TD)
        q, k, v = (torch.empty(rows, *shape) for shape in self._shapes)
        tables = [t.contiguous() for pair in rotary for t in pair]
        pointers = (ctypes.c_void_p * 4)(*(t.data_ptr() for t in tables))
        _check(library().rl_before_attention(ctypes.byref(self.struct), x_TD.data_ptr(), pointers, *(
            t.data_ptr() for t in (q, k, v)), rows, torch.get_num_threads()))
        return q, k, v

    def after_attention(self, x_TD: Tensor, attended_THK: Tensor) -> Tensor:
        """x + attended · Wo, then the MLP around its own residual: [T, D]."""
        x_TD, attended_THK = x_TD.contiguous(), attended_THK.contiguous()
        out = torch.empty_like(x_TD)
        _check(library().rl_after_attention(ctypes.byref(self.struct), *(
            t.data_ptr() for t in (x_TD, attended_THK, out)), len(x_TD), torch.get_num_threads()))
        return out


class PackedTrunk:
    """All layers of a model over one cache, as the C functions take them. It is void once the cache moves."""

    def __init__(self, blocks: list[PackedBlock], windows: tuple[int | None, ...], prefix: list[SharedPrefix],
                 keys: list[Tensor], values: list[Tensor], ropes: tuple[int, ...], kept: torch.dtype,
                 scale: float | None = None, cap: float | None = None):
        """Each list has one entry a layer.

        ropes         each layer's index into the rotary tables of a call
        kept          the dtype of the cache, one of KEPT
        scale, cap    of the attention's scores, as for `kernels.attention`
        prefix        the shared prefix, packed for such a cache; an empty list: none
        keys, values  the cache [slots, G, S, K]; an empty list: nothing is kept
        """
        if any(t.dtype != kept or not t.is_contiguous() for t in (*keys, *values)) or kept not in KEPT:
            raise ValueError(f"the cache must be contiguous and {str(kept)[6:]}: it is written in place")
        if any(p.narrow != (kept == torch.bfloat16) for p in prefix):
            raise ValueError(f"the prefix was not packed for a {str(kept)[6:]} cache")
        self._keep = blocks, keys, values, prefix  # the addresses below point into these
        self._reach = min([w for w in windows if w is not None], default=None) if prefix else None
        self._slots, self._capacity = tuple(keys[0].shape[::2]) if keys else (0, 0)
        first, P = blocks[0], prefix[0].length if prefix else 0
        self._shape = structs.Shape(first.width, first.heads, first.groups, first.head_size, self._capacity,
                                    P, KEPT[kept], scale or first.head_size**-0.5, cap or 0.0)
        self._weights = max(b.weights for b in blocks)
        self._layers = (structs.Layer * len(blocks))()
        for n, (layer, block, window) in enumerate(zip(self._layers, blocks, windows, strict=True)):
            layer.block, layer.rope = block.struct, ropes[n]
            if keys:
                layer.keys, layer.values = keys[n].data_ptr(), values[n].data_ptr()
            if prefix:
                layer.prefix_keys, layer.prefix_values = prefix[n].keys, prefix[n].values
            elif window is not None:
                layer.window = window

    def step(self, x_BD: Tensor, rotary: list[Rotary | None], places_B: Tensor,
             slots_B: Tensor | None = None) -> Tensor:
        """One new token of each of the first B slots, at these places: the last layer's output [B, D].

        slots_B  the slot of each token, int64; a slot may have several, in turn. None: 0 to B − 1

        The result is, to the last bit, that of the blocks one after the other, and that of the tokens of a
        slot one after the other.
        """
        longest, used = int(places_B.max()) + 1, len(x_BD) if slots_B is None else int(slots_B.max()) + 1
        if used > self._slots or longest > self._capacity:
            raise ValueError(f"{self._cache()} has no room for token {longest} of {used} requests")
        self._check_reach(longest)
        places_B = places_B.contiguous()
        rows = structs.Rows(rows=len(x_BD), places=places_B.data_ptr())
        if slots_B is not None:
            slots_B = slots_B.contiguous()
            rows.slots = slots_B.data_ptr()
        return self._run(x_BD, rotary, rows)

    def sequences(self, x_TD: Tensor, rotary: list[Rotary | None], offsets: Tensor,
                  parents: list[int] | None = None, slot: int | None = None) -> Tensor:
        """Sequences packed end to end, each after the prefix: the last layer's output [T, D].

        offsets  [B + 1]: where each sequence begins in x
        parents  parents[i] is the sequence whose tokens i continues, or −1; windows do not bound those
        slot     where the cache keeps the first one's keys and values, the others behind it; None: nowhere
        """
        offsets, count = offsets.to(torch.int64).contiguous(), len(offsets) - 1
        longest = int((offsets[1:] - offsets[:-1]).max())
        if slot is not None and (slot + count > self._slots or longest > self._capacity):
            raise ValueError(
                f"{self._cache()} has no room for {count} sequences of up to {longest} from slot {slot} on")
        self._check_reach(longest)
        follows = torch.tensor(parents, dtype=torch.int64) if parents else None
        rows = structs.Rows(len(x_TD), None, offsets.data_ptr(),
                            None if follows is None else follows.data_ptr(), count,
                            -1 if slot is None else slot)
        return self._run(x_TD, rotary, rows)

    def _cache(self) -> str:
        return f"a cache of {self._slots} slots of {self._capacity} tokens"

    def _check_reach(self, longest: int) -> None:
        if self._reach is not None and self._shape.prefix + longest > self._reach:
            raise ValueError(
                f"a shared prefix of {self._shape.prefix} tokens does not lie within a window of "
                f"{self._reach}")

    def sequence_in_parts(self, x_TD: Tensor, rotary: list[Rotary | None], work: int) -> Iterator[Tensor]:
        """One sequence into slot 0, some layers at a time; yields [T, D] after each part, at last the output.

        work  weights × rows of a part
        """
        offsets = torch.tensor([0, len(x_TD)])
        rows = structs.Rows(len(x_TD), None, offsets.data_ptr(), None, 1, 0)
        if len(x_TD) > self._capacity:
            raise ValueError(f"{self._cache()} has no room for {len(x_TD)} tokens")
        yield from self._parts(x_TD, rotary, rows, work)

    def _run(self, x: Tensor, rotary: list[Rotary | None], rows: structs.Rows) -> Tensor:
        *_, out = self._parts(x, rotary, rows, WORK)
        return out

    def _parts(self, x: Tensor, rotary: list[Rotary | None], rows: structs.Rows,
               work: int) -> Iterator[Tensor]:
        x = x.clone(memory_format=torch.contiguous_format)
        tables = [[t.contiguous() for pair in table for t in pair] if table else [] for table in rotary]
        pointers = (ctypes.c_void_p * (4 * len(tables)))()
        for n, table in enumerate(tables):
            for m, tensor in enumerate(table):
                pointers[4 * n + m] = tensor.data_ptr()
        at_once = max(1, work // max(1, len(x) * self._weights))
        for first in range(0, len(self._layers), at_once):
            _check(library().rl_layers(
                ctypes.byref(self._layers, first * ctypes.sizeof(structs.Layer)),
                min(at_once, len(self._layers) - first), ctypes.byref(self._shape), ctypes.byref(rows),
                x.data_ptr(), pointers, torch.get_num_threads()))
            yield x


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("no memory for the activations of a model's layers")
