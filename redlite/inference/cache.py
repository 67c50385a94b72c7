"""Keys and values of a generation batch: one shared prefix for all requests, a ragged suffix for each.

Shape letters as in model.py, and B requests in the batch, P tokens of the shared prefix, S room for a suffix.
The methods named `attend_…` return the closures that `LLaMA.forward` calls for each layer.
"""
import torch
from torch import Tensor

from redlite import kernels
from redlite.model.config import Config
from redlite.model.llama import LLaMA
from redlite.model.sequences import Attend, PackedSequences, packed_attention

GROWTH = 64  # tokens by which the room for suffixes grows at least, or by a half


class Cache:
    """Slots 0 to n−1 hold the active requests; a freed slot is filled by the last one, so no gap is ever computed.

    dtype  of the suffixes' keys and values; the prefix's tensors may be wider, though they hold no other numbers where `PackedSteps` made them
    """

    def __init__(self, config: Config, slots: int, dtype: torch.dtype, device: torch.device):
        self.config, self.dtype, self.device = config, dtype, device
        self.prefix: list[tuple[Tensor, Tensor]] = []   # a layer: keys and values [P, G, K]
        self.shared: list = []                          # a layer: the same, as generation steps take it
        self.lengths = torch.zeros(slots, dtype=torch.int64)    # of each slot's suffix
        self.capacity = 0
        self.keys: list[Tensor] = []                            # a layer: [slots, G, S, K]
        self.values: list[Tensor] = []

    @property
    def prefix_length(self) -> int:
        return len(self.prefix[0][0]) if self.prefix else 0

    def reserve(self, capacity: int) -> None:
        """Make room for suffixes of `capacity` tokens."""
        if capacity <= self.capacity:
            return
        capacity = max(capacity, self.capacity + max(GROWTH, self.capacity // 2))
        shape = (len(self.lengths), self.config.n_kv_heads, capacity, self.config.head_dim)
        for store in (self.keys, self.values):
            for layer in range(self.config.n_layers):
                grown = torch.zeros(shape, dtype=self.dtype, device=self.device)
                if self.capacity:
                    grown[:, :, :self.capacity] = store[layer]
                    store[layer] = grown
                else:
                    store.append(grown)
        self.capacity = capacity

    @torch.no_grad()
    def compute_prefix(self, model: LLaMA, ids: list[int]) -> None:
        """Run the shared prefix once, and keep its keys and values."""
        packed = PackedSequences.of([ids], self.device)
        attend_packed, self.prefix = packed_attention(self.config, packed.offsets), []

        def attend(layer, q_PHK, k_PGK, v_PGK):
            self.prefix.append((k_PGK.contiguous(), v_PGK.contiguous()))
            return attend_packed(layer, q_PHK, k_PGK, v_PGK)
        model(packed.ids, packed.positions, attend, packed.lengths)

    def attend_new(self, offsets: Tensor) -> Attend:
        """For new packed suffixes that follow the prefix and are not kept (scoring).

        Attention over the prefix is one product for every query of the batch, merged with that over the suffixes.
        """
        ends = [torch.tensor([0, n], dtype=torch.int32, device=self.device) for n in (offsets[-1], self.prefix_length)]

        def attend(layer, q_THK, k_TGK, v_TGK):
            own = kernels.attention(q_THK, k_TGK, v_TGK, offsets, window=self.config.windows[layer])
            if not self.prefix:
                return own[0]
            shared = kernels.attention(q_THK, *self.prefix[layer], *ends, causal=False)
            return kernels.merge_attention(*shared, *own)[0]
        return attend

    def attend_tree(self, stems: Tensor, leaves: Tensor, leaf_groups: Tensor) -> Attend:
        """For packed stems [offsets over S tokens] that follow the prefix, then packed leaves that each follow a stem.

        leaves: offsets of the leaves, from 0, over the L tokens after the S; leaf_groups: offsets of the runs of
        leaf tokens that belong to each stem in turn (a stem's run may be empty). A leaf sees the prefix, its stem
        and its own tokens up to itself.
        """
        attend_stems, split = self.attend_new(stems), int(stems[-1])
        ends = [torch.tensor([0, n], dtype=torch.int32, device=self.device) for n in (leaves[-1], self.prefix_length)]

        def attend(layer, q_THK, k_TGK, v_TGK):
            out_stems = attend_stems(layer, q_THK[:split], k_TGK[:split], v_TGK[:split])
            q_LHK = q_THK[split:]
            merged = kernels.attention(q_LHK, k_TGK[split:], v_TGK[split:], leaves)
            stem = kernels.attention(q_LHK, k_TGK[:split], v_TGK[:split], leaf_groups, stems, causal=False)
            merged = kernels.merge_attention(*stem, *merged)
            if self.prefix:
                merged = kernels.merge_attention(*kernels.attention(q_LHK, *self.prefix[layer], *ends, causal=False), *merged)
            return torch.cat((out_stems, merged[0]))
        return attend

    def attend_prefill(self, first: int, offsets: Tensor) -> Attend:
        """For new packed suffixes whose keys and values go to the slots from `first` on; `reserve` comes before."""
        self.admit(first, offsets)
        bounds, attend_new = offsets.tolist(), self.attend_new(offsets)

        def attend(layer, q_THK, k_TGK, v_TGK):
            for slot, (start, end) in enumerate(zip(bounds, bounds[1:]), first):
                self.keys[layer][slot, :, :end - start] = k_TGK[start:end].transpose(0, 1)
                self.values[layer][slot, :, :end - start] = v_TGK[start:end].transpose(0, 1)
            return attend_new(layer, q_THK, k_TGK, v_TGK)
        return attend

    def admit(self, first: int, offsets: Tensor) -> None:
        """The slots from `first` on hold suffixes of these lengths from now on."""
        self.lengths[first:first + len(offsets) - 1] = (offsets[1:] - offsets[:-1]).long().cpu()

    def advance(self, active: int) -> Tensor:
        """Let the first `active` slots grow by one token; the place [active] in its suffix that each one's new token takes."""
        places_B = self.lengths[:active].clone()
        self.lengths[:active] += 1
        return places_B

    def share_prefix(self) -> list:
        """A layer: the prefix as generation steps take it, made at the first of them; empty without a prefix."""
        if self.prefix and not self.shared:
            self.shared = [kernels.shared_prefix(k, v) for k, v in self.prefix]
        return self.shared

    def attend_step(self, places_B: Tensor) -> Attend:
        """For one new token of each of the first B slots, at these places of their suffixes; lengths stay as they are."""
        shared = self.share_prefix()

        def attend(layer, q_BHK, k_BGK, v_BGK):
            return kernels.cached_attention(q_BHK, k_BGK, v_BGK, self.keys[layer], self.values[layer], places_B,
                                            shared[layer] if shared else None, window=self.config.windows[layer])
        return attend

    def free(self, slot: int, active: int) -> None:
        """Give up a slot: the last active one moves into it."""
        last, length = active - 1, int(self.lengths[active - 1])
        if slot != last:
            for store in (self.keys, self.values):
                for layer in store:
                    layer[slot, :, :length] = layer[last, :, :length]
            self.lengths[slot] = length
        self.lengths[last] = 0


def common_prefix(sequences: list[list[int]]) -> int:
    """Length of the longest prefix shared by all, at least one token of each left over."""
    first, last = min(sequences), max(sequences)  # all others lie between these two in lexical order
    limit = min(len(s) for s in sequences) - 1
    return next((i for i in range(limit) if first[i] != last[i]), max(limit, 0))


def shareable(config: Config, shared: int, longest: int) -> int:
    """How much of a common prefix may be computed apart: none where a key's value or reach depends on what follows.

    longest: tokens of the longest sequence that will be attended to, generated ones included.
    """
    windows = [w for w in config.windows if w is not None]
    if windows and longest > min(windows):
        return 0
    if (config.rope_scaling or {}).get("rope_type") == "dynamic" and longest > config.max_positions:
        return 0
    return shared
