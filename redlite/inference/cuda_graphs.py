"""A generation step captured as a CUDA graph: one launch replays all its kernels, where launching each one costs more than running it.

A graph has fixed shapes and addresses. So ids, positions and places are static buffers, the batch is rounded up to a
bucket, and graphs are captured anew when the cache has moved to make room.
"""
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from redlite import kernels
from redlite.inference.cache import Cache
from redlite.inference.forward import Forward
from redlite.model.llama import LLaMA


def buckets(slots: int) -> list[int]:
    """Batch sizes that steps are captured for: powers of two, from 16 on their halfway points too, and `slots` itself last."""
    sizes, size = [], 1
    while size < slots:
        sizes += [size] if size < 16 else [size, size + size // 2]
        size *= 2
    return [n for n in sizes if n < slots] + [slots]


def uncapturable(device: torch.device) -> str:
    """Why steps on this GPU cannot be captured; "" if they can."""
    if kernels.implementation("cached_attention", device.type) == "triton":
        return ""
    return kernels.why("cached_attention", device.type) or f"REDLITE_KERNELS={kernels.FORCED} forces attention that waits for the device"


def capture(step: Callable[[], Tensor], pool) -> tuple[Callable[[], None], Tensor]:
    """(function that replays the step, the tensor that each replay writes its result to). The step is also run, twice."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles the kernels and lets cuBLAS take its workspace, neither of which can be captured
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        out = step()
    return graph.replay, out


class DecodeGraphs(Forward):
    """The captured steps of one model over one cache.

    Rows past the active requests compute on token 0 at place 0 of a free slot, which the next request to move
    in overwrites; a slot that is not free is never among them, since active requests fill the first slots.
    """

    def __init__(self, model: LLaMA, cache: Cache):
        super().__init__(model, cache)
        self.sizes = buckets(len(cache.lengths))
        self.inputs = torch.zeros(3, len(cache.lengths), dtype=torch.int64, device=cache.device)  # ids, positions, places
        self.steps: dict[int, tuple[Callable[[], None], Tensor]] = {}
        self.capacity, self.pool = -1, None

    @staticmethod
    def of(model: LLaMA, cache: Cache) -> "DecodeGraphs | None":
        """None where steps are not captured: on CPUs, and with a warning on a GPU that lacks what it takes."""
        if cache.device.type != "cuda":
            return None
        if reason := uncapturable(cache.device):
            warnings.warn(f"generation on {cache.device} runs without CUDA graphs, which is slower: {reason}", stacklevel=2)
            return None
        return DecodeGraphs(model, cache)

    def logits(self, ids: list[int]) -> Tensor:
        """Run one new token of each of the first len(ids) slots, as `Steps.logits`; logits [B, V], valid until the next call."""
        B, cache = len(ids), self.cache
        size = next(n for n in self.sizes if n >= B)
        places = torch.zeros(size, dtype=torch.int64)
        places[:B] = cache.advance(B)
        newest = torch.tensor(ids + [0] * (size - B))
        with torch.cuda.device_of(self.inputs):
            self.inputs[:, :size] = torch.stack((newest, places + cache.prefix_length, places)).to(cache.device)
            if cache.capacity != self.capacity:  # the cache lies elsewhere now
                self.steps, self.capacity = {}, cache.capacity
                self.pool = torch.cuda.graph_pool_handle()  # a pool whose graphs are all gone may not be used again
            if size not in self.steps:
                self.steps[size] = capture(lambda: self._step(size), self.pool)
            replay, out = self.steps[size]
            replay()
        return out[:B]

    def _step(self, size: int) -> Tensor:
        ids, positions, places = self.inputs[:, :size]
        return self.model.logits(self.model(ids, positions, self.cache.attend_step(places), positions + 1))
