"""Keys and values of a generation batch: one shared prefix for all requests, a ragged suffix for each.

Shape letters as in model/llama.py, and B requests in the batch, P tokens of the shared prefix, S room for a
suffix. The methods named `attend_…` return the closures that `LLaMA.forward` calls for each layer.
"""
import mmap
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redlite import kernels
from redlite.kernels.cpu.memory import release, zeros
from redlite.model.config import Config
from redlite.model.llama import LLaMA
from redlite.model.sequences import Attend, PackedSequences, packed_attention

GROWTH = 64  # tokens by which the room for suffixes grows at least, or by a half


def free_bytes(device: torch.device) -> int:
    """Memory that a device could still give; on CPUs without Linux's /proc/meminfo, all that there is."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except FileNotFoundError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024


class Cache:
    """Slots 0 to n−1 hold the active requests. The last one moves into a freed slot, so there are no gaps.

    dtype  of the keys and values. `shared` may hold the prefix's in float32, rounded to it before
    """

    def __init__(self, config: Config, slots: int, dtype: torch.dtype, device: torch.device):
        self.config, self.dtype, self.device = config, dtype, device
        # How scores are made.
        self.scores: dict[str, Any] = {"scale": config.attention_scale, "cap": config.attention_cap}
        self.prefix: list[tuple[Tensor, Tensor]] = []   # by layer: keys and values [P, G, K]
        self.shared: list[Any] = []                     # by layer: what `kernels.shared_prefix` made of it
        self.lengths = torch.zeros(slots, dtype=torch.int64)    # of each slot's suffix
        self.capacity = 0                                       # S
        self.keys: list[Tensor] = []                            # by layer: [slots, G, S, K]
        self.values: list[Tensor] = []
        self.written = [0] * slots      # by slot, tokens up to which earlier requests wrote its memory

    @staticmethod
    def bytes_per_token(model: LLaMA) -> int:
        """What a token's keys and values take in a slot."""
        c = model.config
        return 2 * c.n_layers * c.n_kv_heads * c.head_dim * model.cache_dtype.itemsize

    @staticmethod
    def page_tokens(model: LLaMA) -> int:
        """How many tokens' memory a suffix may take beyond its own, since it is had in whole pages."""
        return -(-2 * mmap.PAGESIZE // (model.config.head_dim * model.cache_dtype.itemsize))

    @property
    def prefix_length(self) -> int:
        return len(self.prefix[0][0]) if self.prefix else 0

    def reserve(self, capacity: int) -> None:
        """Make room for suffixes of `capacity` tokens."""
        if capacity <= self.capacity:
            return
        capacity = max(capacity, self.capacity + max(GROWTH, self.capacity // 2))
        for store in (self.keys, self.values):
            for layer in range(self.config.n_layers):
                grown = self._zeros(capacity)
                if self.capacity:
                    self._copy(store[layer], grown)
                    store[layer] = grown
                else:
                    store.append(grown)
        self.capacity = capacity
        self.written = self.lengths.tolist()

    def _copy(self, old: Tensor, grown: Tensor) -> None:
        """Copy what slots hold. On CPUs nothing more, so that one long suffix takes no memory of others."""
        if self.device.type == "cpu":
            for slot, length in enumerate(self.lengths.tolist()):
                grown[slot, :, :length] = old[slot, :, :length]
        else:
            used, longest = int((self.lengths > 0).sum()), int(self.lengths.max())
            grown[:used, :, :longest] = old[:used, :, :longest]

    def release(self) -> None:
        """Give memory that was written, and holds nothing now, back to the system."""
        for slot, length in enumerate(self.lengths.tolist()):
            if length < self.written[slot]:
                for layer in (*self.keys, *self.values):
                    for group in layer[slot]:
                        release(group[length:self.written[slot]])
                self.written[slot] = length

    def _zeros(self, capacity: int) -> Tensor:
        """Room [slots, G, capacity, K]. On CPUs a page takes memory from when it is first written."""
        shape = torch.Size((len(self.lengths), self.config.n_kv_heads, capacity, self.config.head_dim))
        if self.device.type != "cpu":
            return torch.zeros(shape, dtype=self.dtype, device=self.device)
        return zeros(shape.numel() * self.dtype.itemsize).view(self.dtype).view(shape)

    @torch.no_grad()
    def compute_prefix(self, model: LLaMA, ids: list[int]) -> None:
        """Run the shared prefix once, and keep its keys and values."""
        packed = PackedSequences.of([ids], self.device)
        attend_packed, self.prefix = packed_attention(self.config, packed.offsets), []

        def attend(layer: int, q_PHK: Tensor, k_PGK: Tensor, v_PGK: Tensor) -> Tensor:
            self.prefix.append((k_PGK.contiguous(), v_PGK.contiguous()))
            return attend_packed(layer, q_PHK, k_PGK, v_PGK)
        model(packed.ids, packed.positions, attend, packed.lengths)

    def _ends(self, tokens: int) -> list[Tensor]:
        """Offsets of one sequence of that many queries, and of one prefix."""
        lengths = tokens, self.prefix_length
        return [torch.tensor([0, n], dtype=torch.int32, device=self.device) for n in lengths]

    def attend_new(self, offsets: Tensor) -> Attend:
        """For new packed suffixes that follow the prefix and are not kept (scoring).

        Attention over the prefix is one product for every query of the batch. It is merged with the
        attention within the suffixes.
        """
        ends = self._ends(int(offsets[-1]))

        def attend(layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor) -> Tensor:
            own = kernels.attention(q_THK, k_TGK, v_TGK, offsets, window=self.config.windows[layer],
                                    **self.scores)
            if not self.prefix:
                return own[0]
            shared = kernels.attention(q_THK, *self.prefix[layer], *ends, causal=False, **self.scores)
            return kernels.merge_attention(*shared, *own)[0]
        return attend

    def attend_tree(self, stems: Tensor, leaves: Tensor, leaf_groups: Tensor) -> Attend:
        """For packed stems that follow the prefix, and then packed leaves that each follow a stem.

        stems        offsets of the stems, over their tokens
        leaves       offsets of the leaves, from 0, over the L tokens that come after the stems'
        leaf_groups  offsets of the leaf tokens of each stem in turn; a stem may have none
        A leaf sees the prefix, its stem, and its own tokens up to itself.
        """
        attend_stems, split = self.attend_new(stems), int(stems[-1])
        ends = self._ends(int(leaves[-1]))

        def attend(layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor) -> Tensor:
            out_stems = attend_stems(layer, q_THK[:split], k_TGK[:split], v_TGK[:split])
            q_LHK = q_THK[split:]
            merged = kernels.attention(q_LHK, k_TGK[split:], v_TGK[split:], leaves, **self.scores)
            stem = kernels.attention(q_LHK, k_TGK[:split], v_TGK[:split], leaf_groups, stems, causal=False,
                                     **self.scores)
            merged = kernels.merge_attention(*stem, *merged)
            if self.prefix:
                before = kernels.attention(q_LHK, *self.prefix[layer], *ends, causal=False, **self.scores)
                merged = kernels.merge_attention(*before, *merged)
            return torch.cat((out_stems, merged[0]))
        return attend

    def attend_prefill(self, first: int, offsets: Tensor) -> Attend:
        """For new packed suffixes that are kept in the slots from `first` on; call `reserve` before."""
        self.admit(first, offsets)
        bounds, attend_new = offsets.tolist(), self.attend_new(offsets)

        def attend(layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor) -> Tensor:
            for slot, (start, end) in enumerate(pairwise(bounds), first):
                self.keys[layer][slot, :, :end - start] = k_TGK[start:end].transpose(0, 1)
                self.values[layer][slot, :, :end - start] = v_TGK[start:end].transpose(0, 1)
            return attend_new(layer, q_THK, k_TGK, v_TGK)
        return attend

    def admit(self, first: int, offsets: Tensor) -> None:
        """Note that the slots from `first` on hold suffixes of these lengths from now on."""
        self.lengths[first:first + len(offsets) - 1] = (offsets[1:] - offsets[:-1]).long().cpu()

    def advance(self, active: int) -> Tensor:
        """Let the first `active` slots grow by one token; the place [active] of that token in each suffix."""
        places_B = self.lengths[:active].clone()
        self.lengths[:active] += 1
        return places_B

    def keep(self, slot: int, tokens: int, ran: int) -> None:
        """Let a slot grow by the first of the tokens that were run there; the others are written over."""
        start = int(self.lengths[slot])
        self.lengths[slot] = start + tokens
        self.written[slot] = max(self.written[slot], start + ran)

    def share_prefix(self) -> list[Any]:
        """By layer, the prefix in the layout of generation steps; [] without a prefix. Made only once."""
        if self.prefix and not self.shared:
            self.shared = [kernels.shared_prefix(k, v, self.dtype) for k, v in self.prefix]
        return self.shared

    def attend_step(self, places_B: Tensor, first: int = 0) -> Attend:
        """For one new token of each of B slots from `first` on, at these places of their suffixes.

        Lengths stay.
        """
        shared = self.share_prefix()

        def attend(layer: int, q_BHK: Tensor, k_BGK: Tensor, v_BGK: Tensor) -> Tensor:
            return kernels.cached_attention(
                q_BHK, k_BGK, v_BGK, self.keys[layer][first:], self.values[layer][first:], places_B,
                shared[layer] if shared else None, window=self.config.windows[layer], **self.scores)
        return attend

    def free(self, slot: int, active: int) -> None:
        """Give up a slot: the last active one moves into it."""
        last, length = active - 1, int(self.lengths[active - 1])
        for place in (slot, last):
            self.written[place] = max(self.written[place], int(self.lengths[place]))
        if slot != last:
            for store in (self.keys, self.values):
                for layer in store:
                    layer[slot, :, :length] = layer[last, :, :length]
            self.lengths[slot] = length
        self.lengths[last] = 0
