"""How a model runs over a cache: the prefix, new sequences, and one new token of each request at a time."""
import torch
from torch import Tensor

from redlite import kernels
from redlite.inference.cache import Cache
from redlite.model.llama import LLaMA, rotary_table
from redlite.model.sequences import PackedSequences


class Forward:
    """An operation at a time, on any device. `PackedForward` and `graph.DecodeGraphs` run the same faster, where they can."""

    def __init__(self, model: LLaMA, cache: Cache):
        self.model, self.cache = model, cache

    def prefix(self, ids: list[int]) -> None:
        """Run what all requests share, once, and keep its keys and values as the cache's prefix."""
        self.cache.compute_prefix(self.model, ids)

    def prefill(self, new: PackedSequences, first: int) -> Tensor:
        """Run new sequences that follow the prefix into the slots from `first` on, which have room for them; logits [B, V] of each one's last token."""
        hidden_TD = self.model(new.ids, new.positions, self.cache.attend_prefill(first, new.offsets), new.lengths)
        return self.model.logits(hidden_TD[new.offsets[1:].long() - 1])

    def logits(self, ids: list[int]) -> Tensor:
        """Run one new token of each of the first len(ids) slots, which have room for it; logits [B, V]."""
        places_B = self.cache.advance(len(ids)).to(self.cache.device)
        positions_B = places_B + self.cache.prefix_length
        return self.model.logits(self.model(torch.tensor(ids, device=self.cache.device), positions_B, self.cache.attend_step(places_B), positions_B + 1))

    def tree(self, new: PackedSequences, parents: list[int]) -> Tensor:
        """Run sequences that follow the prefix and are not kept: hidden states [T, D] after the final norm.

        parents: −1 for those that follow the prefix alone, which come first; then, in order, of each other one which of those it follows.
        """
        self._check_tree(new, parents)
        stems, split = parents.count(-1), int(new.offsets[parents.count(-1)])
        if stems == len(parents):
            attend = self.cache.attend_new(new.offsets)
        else:
            leaves = new.offsets[stems:] - split
            sizes = torch.zeros(stems, dtype=torch.int32).index_add_(0, torch.tensor(parents[stems:]), (leaves[1:] - leaves[:-1]).cpu())
            groups = torch.cat((torch.zeros(1, dtype=torch.int32), sizes.cumsum(0, dtype=torch.int32))).to(new.offsets.device)
            attend = self.cache.attend_tree(new.offsets[:stems + 1], leaves, groups)
        return self.model(new.ids, new.positions, attend, new.lengths)

    def _check_tree(self, new: PackedSequences, parents: list[int]) -> None:
        reach = min([w for w in self.cache.config.windows if w is not None], default=None)
        if reach is not None and max(parents) >= 0 and (longest := int(new.positions.max()) + 1) > reach:
            raise ValueError(f"sequences of up to {longest} tokens that follow others do not lie within a window of {reach}")


class PackedForward(Forward):
    """On packed weights, on CPUs: all layers in one C call, where each operation asked of Python would cost more than a small model's work on it."""

    capacity = -1  # of the cache, when the trunk was made

    @staticmethod
    def of(model: LLaMA, cache: Cache) -> "PackedForward | None":
        """None where a model's layers or a generation step's attention do not run in C."""
        packed = all(block.packed for block in model.model.layers)
        return PackedForward(model, cache) if packed and kernels.implementation("cached_attention", cache.device.type) == "c" else None

    def trunk(self) -> kernels.PackedTrunk:
        cache = self.cache
        if cache.capacity != self.capacity:  # the cache lies elsewhere now
            self._trunk = kernels.PackedTrunk([block.packed for block in self.model.model.layers], cache.config.windows, cache.share_prefix(), cache.keys, cache.values)
            self.capacity = cache.capacity
        return self._trunk

    def prefix(self, ids: list[int]) -> None:
        cache = self.cache
        alone = Cache(cache.config, 1, cache.dtype, cache.device)
        alone.reserve(len(ids))
        PackedForward(self.model, alone)._sequences(PackedSequences.of([ids]), slot=0)
        cache.prefix = [tuple(store[0, :, :len(ids)].transpose(0, 1).float().contiguous() for store in pair) for pair in zip(alone.keys, alone.values)]
        cache.shared, self.capacity = [], -1

    def prefill(self, new: PackedSequences, first: int) -> Tensor:
        out_TD = self._sequences(new, slot=first)
        self.cache.admit(first, new.offsets)
        return self._logits(out_TD[new.offsets[1:].long() - 1])

    def logits(self, ids: list[int]) -> Tensor:
        """The same to the last bit as `Forward.logits` of a packed model."""
        places_B = self.cache.advance(len(ids))
        positions_B = places_B + self.cache.prefix_length
        x_BD = self.model.model.embed_tokens(torch.tensor(ids))
        return self._logits(self.trunk().step(x_BD, *rotary_table(self.model.config, positions_B, positions_B + 1, x_BD.dtype), places_B))

    def tree(self, new: PackedSequences, parents: list[int]) -> Tensor:
        self._check_tree(new, parents)
        return self.model.model.norm(self._sequences(new, parents))

    def _logits(self, out_BD: Tensor) -> Tensor:
        return self.model.logits(self.model.model.norm(out_BD))

    def _sequences(self, new: PackedSequences, parents: list[int] | None = None, slot: int | None = None) -> Tensor:
        x_TD = self.model.model.embed_tokens(new.ids)
        return self.trunk().sequences(x_TD, *rotary_table(self.model.config, new.positions, new.lengths, x_TD.dtype), new.offsets, parents, slot)
