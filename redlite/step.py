"""A generation step of a packed model on a CPU in one call: what its layers ask of Python each would cost more than a small model's work."""
import torch
from torch import Tensor

from redlite import kernels
from redlite.cache import Cache
from redlite.model import LLaMA, rotary_table


class PackedSteps:
    """The steps of one model over one cache; the counterpart of `graph.DecodeGraphs`."""

    def __init__(self, model: LLaMA, cache: Cache):
        self.model, self.cache, self.capacity = model, cache, -1

    @staticmethod
    def of(model: LLaMA, cache: Cache) -> "PackedSteps | None":
        """None where a model's layers or a generation step's attention do not run in C."""
        packed = all(block.packed for block in model.model.layers)
        return PackedSteps(model, cache) if packed and kernels.implementation("cached_attention", cache.device.type) == "c" else None

    def logits(self, ids: list[int]) -> Tensor:
        """Run one new token of each of the first len(ids) slots, as the model over `Cache.attend_decode`; logits [B, V], the same to the last bit."""
        model, cache, trunk = self.model, self.cache, self.model.model
        if cache.capacity != self.capacity:  # the cache lies elsewhere now
            self.run = kernels.PackedStep([block.packed for block in trunk.layers], cache.keys, cache.values, cache.share_prefix(), cache.config.windows)
            self.capacity = cache.capacity
        places_B = cache.advance(len(ids))
        positions_B = places_B + cache.prefix_length
        x_BD = trunk.embed_tokens(torch.tensor(ids))
        cos_BK, sin_BK = rotary_table(model.config, positions_B, positions_B + 1, x_BD.dtype)
        return model.logits(trunk.norm(self.run(x_BD, cos_BK, sin_BK, places_B)))
