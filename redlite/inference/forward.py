"""How a model runs over a cache: many tokens at a time (prompts) or one new token of each request.

`Forward` does it in PyTorch, `CForward` in one call of the C library, and `cuda_graphs.GraphForward` replays
captured CUDA graphs for the new tokens.
"""
from collections.abc import Iterator

import torch
from torch import Tensor

from redlite import kernels
from redlite.inference.cache import Cache
from redlite.model.llama import Block, LLaMA
from redlite.model.rotary import rotary_tables
from redlite.model.sequences import PackedSequences

PART = 10**10    # weights × rows of a part of a long prompt, about a tenth of a second of two cores
REPLAYED = 512  # tokens of answers begun before that run in one pass


class Forward:
    """Runs a model in PyTorch, one operation after the other, on any device."""

    def __init__(self, model: LLaMA, cache: Cache):
        self.model, self.cache = model, cache

    def compute_prefix(self, ids: list[int]) -> None:
        """Run what all requests share, once, and keep its keys and values as the cache's prefix."""
        self.cache.compute_prefix(self.model, ids)

    def prefill(self, new: PackedSequences, first: int) -> Tensor:
        """Run new sequences that follow the prefix: logits [B, V] of each one's last token.

        Their keys and values go to the slots from `first` on, which must have room for them.
        """
        attend = self.cache.attend_prefill(first, new.offsets)
        hidden_TD = self.model(new.ids, new.positions, attend, new.lengths)
        return self.model.logits(hidden_TD[new.offsets[1:].long() - 1])

    def next_logits(self, ids: list[int]) -> Tensor:
        """Run one new token for each of the first len(ids) slots, which must have room: logits [B, V]."""
        places_B = self.cache.advance(len(ids)).to(self.cache.device)
        positions_B = places_B + self.cache.prefix_length
        ids_B = torch.tensor(ids, device=self.cache.device)
        return self.model.logits(
            self.model(ids_B, positions_B, self.cache.attend_step(places_B), positions_B + 1))

    def replay(self, first: int, answers: list[list[int]]) -> None:
        """Run tokens that were generated before, behind what the slots from `first` on hold already.

        answers  one a slot, from the longest to the shortest; the slots must have room
        """
        cache = self.cache
        for n in range(max(map(len, answers))):
            going = [ids[n] for ids in answers if len(ids) > n]
            places_B = cache.lengths[first:first + len(going)].clone()
            cache.lengths[first:first + len(going)] += 1
            positions_B = places_B.to(cache.device) + cache.prefix_length
            self.model(torch.tensor(going, device=cache.device), positions_B,
                       cache.attend_step(places_B.to(cache.device), first), positions_B + 1)

    def run_tree(self, new: PackedSequences, parents: list[int]) -> Tensor:
        """Run sequences without storing their keys and values: hidden states [T, D] after the final norm.

        parents  parents[i] is the index of the sequence that i continues, or −1 where i follows the prefix
                 alone. All −1 come first, and the others are in the order of their parents.
        """
        self._check_tree(new, parents)
        stems = parents.count(-1)
        if stems == len(parents):
            attend = self.cache.attend_new(new.offsets)
        else:
            leaves = new.offsets[stems:] - int(new.offsets[stems])
            sizes, owners = (leaves[1:] - leaves[:-1]).cpu(), torch.tensor(parents[stems:])
            groups = torch.zeros(stems + 1, dtype=torch.int32)
            groups[1:] = torch.zeros(stems, dtype=torch.int32).index_add_(0, owners, sizes).cumsum(0)
            attend = self.cache.attend_tree(new.offsets[:stems + 1], leaves, groups.to(new.offsets.device))
        return self.model(new.ids, new.positions, attend, new.lengths)

    def _check_tree(self, new: PackedSequences, parents: list[int]) -> None:
        """Attention to a parent applies no window.

        Raises ValueError if a sequence is longer than the smallest.
        """
        windows = [w for w in self.cache.config.windows if w is not None]
        longest = int(new.positions.max()) + 1
        if windows and max(parents) >= 0 and longest > min(windows):
            raise ValueError(f"sequences that continue others have up to {longest} tokens, "
                             f"more than the window of {min(windows)}")


class CForward(Forward):
    """Runs a model of packed weights in C, all layers in one call, on CPUs.

    In a small model, calling each operation from Python takes longer than the operation.
    """

    def __init__(self, model: LLaMA, cache: Cache):
        super().__init__(model, cache)
        blocks = (block for block in model.model.layers if isinstance(block, Block))
        self.blocks = [block.packed for block in blocks if block.packed]
        self.capacity = -1  # the cache's capacity when `_trunk` was made; -1: none yet

    @staticmethod
    def of(model: LLaMA, cache: Cache) -> "CForward | None":
        """A CForward, or None if the layers or the cached attention cannot run in C."""
        forward = CForward(model, cache)
        if len(forward.blocks) < model.config.n_layers:
            return None
        runs = kernels.implementation("cached_attention", cache.device.type) == "c"
        return forward if runs else None

    def trunk(self) -> kernels.PackedTrunk:
        """All layers, bound to the cache's current buffers; made again when the cache was reallocated."""
        cache = self.cache
        if cache.capacity != self.capacity:  # the cache was reallocated
            self._trunk = kernels.PackedTrunk(
                self.blocks, cache.config.windows, cache.share_prefix(), cache.keys, cache.values,
                cache.config.rope_kinds, cache.dtype, **cache.scores)
            self.capacity = cache.capacity
        return self._trunk

    def compute_prefix(self, ids: list[int]) -> None:
        """As `Forward.compute_prefix`. Generation steps read it rounded to the cache's dtype, and packed."""
        cache = self.cache
        alone = Cache(cache.config, 1, cache.dtype, cache.device)
        alone.reserve(len(ids))
        CForward(self.model, alone)._sequences(PackedSequences.of([ids]), slot=0)

        def prefix(store_1GSK: Tensor) -> Tensor:
            return store_1GSK[0, :, :len(ids)].transpose(0, 1)
        cache.prefix = [(prefix(k), prefix(v)) for k, v in zip(alone.keys, alone.values, strict=True)]
        cache.shared = [kernels.shared_prefix(k.float(), v.float(), cache.dtype) for k, v in cache.prefix]
        self.capacity = -1  # so that a new trunk is made, with this prefix

    def prefill(self, new: PackedSequences, first: int) -> Tensor:
        out_TD = self._sequences(new, slot=first)
        self.cache.admit(first, new.offsets)
        return self._logits(out_TD[new.offsets[1:].long() - 1])

    @torch.no_grad()
    def prefill_in_parts(self, ids: list[int]) -> Iterator[tuple[Cache, Tensor] | None]:
        """Run a prompt that follows no prefix, a part of the layers at a time.

        Yields None after each part, and at last what `adopt` puts into a slot, with the logits [1, V] of the
        last token: to the last bit those of `prefill`.
        """
        alone = Cache(self.cache.config, 1, self.cache.dtype, self.cache.device)
        alone.reserve(len(ids))
        new = PackedSequences.of([ids])
        x_TD = self.model.embed(new.ids)
        rotary = rotary_tables(self.model.config, new.positions, new.lengths, x_TD.dtype)
        trunk = CForward(self.model, alone).trunk()
        out_TD = x_TD
        for out_TD in trunk.sequence_in_parts(x_TD, rotary, PART):  # noqa: B007 (the last is used below)
            yield None
        yield alone, self._logits(out_TD[-1:])

    def adopt(self, alone: Cache, slot: int, length: int) -> None:
        """Take keys and values of so many tokens from a cache of one slot; there must be room."""
        own, others = (cache.keys + cache.values for cache in (self.cache, alone))
        for to, of in zip(own, others, strict=True):
            to[slot, :, :length] = of[0, :, :length]
        self.cache.lengths[slot] = length

    def next_logits(self, ids: list[int]) -> Tensor:
        """The same to the last bit as `Forward.next_logits` of a packed model."""
        places_B = self.cache.advance(len(ids))
        positions_B = places_B + self.cache.prefix_length
        x_BD = self.model.embed(torch.tensor(ids))
        rotary = rotary_tables(self.model.config, positions_B, positions_B + 1, x_BD.dtype)
        return self._logits(self.trunk().step(x_BD, rotary, places_B))

    def replay(self, first: int, answers: list[list[int]]) -> None:
        """As `Forward.replay`, many tokens at a time: to the last bit the numbers of one at a time."""
        for _ in self._rows(first, answers):
            pass
        self.cache.lengths[first:first + len(answers)] += torch.tensor([len(ids) for ids in answers])

    def rows_logits(self, answers: list[list[int]]) -> Tensor:
        """Run several tokens of each of the first slots, which must have room: logits [R, V] of each token.

        Each has the numbers that it has alone, to the last bit. The cache's lengths stay: whoever calls says
        how many of these tokens it keeps.
        """
        return self._logits(torch.cat(list(self._rows(0, answers))))

    def _rows(self, first: int, answers: list[list[int]]) -> Iterator[Tensor]:
        """Tokens behind what the slots from `first` on hold, so many a pass: outputs [T, D] of each pass."""
        lengths = torch.tensor([len(ids) for ids in answers])
        starts = self.cache.lengths[first:first + len(answers)].clone()
        ids = torch.tensor([token for own in answers for token in own])
        slots = torch.arange(first, first + len(answers)).repeat_interleave(lengths)
        places = torch.cat([torch.arange(n) + start for n, start in zip(lengths, starts, strict=True)])
        for part in torch.arange(len(ids)).split(REPLAYED):
            x_TD, positions = self.model.embed(ids[part]), places[part] + self.cache.prefix_length
            rotary = rotary_tables(self.model.config, positions, positions + 1, x_TD.dtype)
            yield self.trunk().step(x_TD, rotary, places[part], slots[part])

    def run_tree(self, new: PackedSequences, parents: list[int]) -> Tensor:
        self._check_tree(new, parents)
        return self.model.final(self._sequences(new, parents))

    def _logits(self, out_BD: Tensor) -> Tensor:
        return self.model.logits(self.model.final(out_BD))

    def _sequences(self, new: PackedSequences, parents: list[int] | None = None,
                   slot: int | None = None) -> Tensor:
        """All layers over packed sequences; their keys and values go to the slots from `slot` on, if given.

        Returns [T, D] before the final norm.
        """
        x_TD = self.model.embed(new.ids)
        rotary = rotary_tables(self.model.config, new.positions, new.lengths, x_TD.dtype)
        return self.trunk().sequences(x_TD, rotary, new.offsets, parents, slot)
