"""Generation steps captured as CUDA graphs: one launch replays all kernels of a step.

Launching each kernel by itself takes longer than running it. A graph has fixed shapes and addresses. So ids,
positions and places are static buffers, and the batch is rounded up to a bucket. When the cache has moved to
make room, graphs are captured anew.
"""
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from redlite import kernels
from redlite.inference.cache import Cache
from redlite.inference.forward import Forward
from redlite.model.llama import LLaMA


def buckets(slots: int) -> list[int]:
    """Batch sizes to capture: powers of two, from 16 on also those halfway between, and last `slots`."""
    sizes, size = [], 1
    while size < slots:
        sizes += [size] if size < 16 else [size, size + size // 2]
        size *= 2
    return [n for n in sizes if n < slots] + [slots]


def uncapturable(device: torch.device) -> str:
    """Why steps on this GPU cannot be captured; "" if they can."""
    if kernels.implementation("cached_attention", device.type) == "triton":
        return ""
    forced = f"REDLITE_KERNELS={kernels.FORCED} forces attention that waits for the device"
    return kernels.why("cached_attention", device.type) or forced


def capture(step: Callable[[], Tensor], pool: Any) -> tuple[Callable[[], None], Tensor]:
    """(function that replays the step, the tensor that each replay fills). Also runs the step, twice."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles kernels and takes cuBLAS's workspace: neither can be captured
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        out = step()
    return graph.replay, out


class GraphForward(Forward):
    """As `Forward`, but new tokens run by the captured steps of one model over one cache.

    Rows past the active requests compute on token 0 at place 0 of a free slot. The next request that moves in
    overwrites it. Active requests fill the first slots, so such a row never touches one of theirs.
    """

    def __init__(self, model: LLaMA, cache: Cache):
        super().__init__(model, cache)
        self.sizes, slots = buckets(len(cache.lengths)), len(cache.lengths)
        self.inputs = torch.zeros(3, slots, dtype=torch.int64, device=cache.device)  # ids, positions, places
        self.captured: dict[int, tuple[Callable[[], None], Tensor]] = {}             # by batch size
        self.capacity = -1
        self.pool: Any = None       # the memory that the graphs share

    @staticmethod
    def of(model: LLaMA, cache: Cache) -> "GraphForward | None":
        """None where steps cannot be captured: on CPUs, and with a warning on some GPUs."""
        if cache.device.type != "cuda":
            return None
        reason = uncapturable(cache.device)
        if not reason and model.config.attention_cap:
            reason = "the soft cap of its scores runs in the reference kernel"
        if reason:
            warnings.warn(f"generation on {cache.device} runs without CUDA graphs, which is slower: {reason}",
                          stacklevel=2)
            return None
        return GraphForward(model, cache)

    def next_logits(self, ids: list[int]) -> Tensor:
        """As `Forward.next_logits`; the logits [B, V] are valid until the next call."""
        B, cache = len(ids), self.cache
        size = next(n for n in self.sizes if n >= B)
        places = torch.zeros(size, dtype=torch.int64)
        places[:B] = cache.advance(B)
        newest = torch.tensor(ids + [0] * (size - B))
        with torch.cuda.device_of(self.inputs):
            inputs = torch.stack((newest, places + cache.prefix_length, places))
            self.inputs[:, :size] = inputs.to(cache.device)
            if cache.capacity != self.capacity:  # the cache has moved to more room
                self.captured, self.capacity = {}, cache.capacity
                # A pool whose graphs are all gone may not be used again.
                self.pool = torch.cuda.graph_pool_handle()
            if size not in self.captured:
                self.captured[size] = capture(lambda: self._run(size), self.pool)
            replay, out = self.captured[size]
            replay()
        return out[:B]

    def _run(self, size: int) -> Tensor:
        ids, positions, places = self.inputs[:, :size]
        return self.model.logits(self.model(ids, positions, self.cache.attend_step(places), positions + 1))
