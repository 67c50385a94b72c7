"""Continuous batching: token ids in, token ids out. Knows no text.

Requests join the batch as slots fall free and leave as they finish; what all prompts of a group share
at their start is computed once (cache.py). No sequence is padded.
"""
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from redlite.inference import sampling
from redlite.inference.cache import Cache, common_prefix, shareable
from redlite.inference.cuda_graphs import DecodeGraphs
from redlite.inference.forward import Forward, PackedForward
from redlite.model.llama import LLaMA
from redlite.model.sequences import PackedSequences

# Common tokens from which a prefix is computed and attended to once for all. `redlite.cli.perf shared-prefix`, 32 requests on 2 cores, time apart
# over time shared (SmolLM2-135M | organism): 4 tokens 1.08 | 0.99, 8: 1.04 | 1.07, 16: 1.14 | 0.97, 64: 1.60 | 1.42, 362 (CoU): 3.64 | 3.41.
SHARED_AT_LEAST = 8
GROUP_COST = 256       # tokens that one more group must save: its own prefix pass and its thin last batches


@dataclass
class Request:
    """One prompt to continue. `stopped` sees the ids generated so far after each token; True ends the request."""
    ids: list[int]
    max_new_tokens: int
    rule: sampling.Rule = sampling.Rule()
    seed: int = 0
    stop_ids: frozenset[int] = frozenset()
    stopped: Callable[[list[int]], bool] | None = None


@dataclass
class Result:
    """`ids` as generated, the end token included; finish "stop" or "length"; seconds from its first pass to its last token."""
    ids: list[int]
    finish: str
    seconds: float


@dataclass
class _Active:
    index: int
    request: Request
    limit: int
    uniforms: np.random.Generator | None
    started: float
    ids: list[int] = field(default_factory=list)
    finish: str = ""


class Engine:
    """Generates for many requests at once.

    max_batch       requests decoded together
    prefill_tokens  prompt tokens run in one pass (one longer prompt is still run whole)
    """

    def __init__(self, model: LLaMA, max_batch: int = 32, prefill_tokens: int = 2048):
        self.model, self.max_batch, self.prefill_tokens = model, max_batch, prefill_tokens

    def run(self, requests: list[Request]) -> Iterator[tuple[int, Result]]:
        """Yield (index of the request, its Result) as each finishes, in no order. A prompt needs at least one token."""
        for group in prefix_groups([r.ids for r in requests]):
            yield from self._run_group({i: requests[i] for i in group})

    def _run_group(self, requests: dict[int, Request]) -> Iterator[tuple[int, Result]]:
        slots = min(self.max_batch, len(requests))
        cache = Cache(self.model.config, slots, self.model.cache_dtype, self.model.output_weight.device)
        prompts = [r.ids for r in requests.values()]
        longest = max(len(r.ids) + r.max_new_tokens for r in requests.values())
        shared = shareable(self.model.config, common_prefix(prompts), longest) if len(prompts) > 1 else 0
        steps = DecodeGraphs.of(self.model, cache) or PackedForward.of(self.model, cache) or Forward(self.model, cache)
        if shared >= SHARED_AT_LEAST:
            steps.prefix(prompts[0][:shared])
        waiting, active = deque(requests.items()), []
        while waiting or active:
            if waiting and len(active) < slots:
                first = len(active)
                active += self._admit(waiting, slots - len(active), cache)
                self._choose(active[first:], self._prefill(active[first:], first, steps))
                yield from self._retire(active, cache)
            if active and not (waiting and len(active) < slots):
                self._choose(active, self._decode(active, steps))
                yield from self._retire(active, cache)

    def _admit(self, waiting: deque, room: int, cache: Cache) -> list[_Active]:
        """As many waiting requests as slots and one prefill pass hold."""
        admitted, tokens = [], 0
        while waiting and len(admitted) < room:
            index, request = waiting[0]
            size = len(request.ids) - cache.prefix_length
            if admitted and tokens + size > self.prefill_tokens:
                break
            waiting.popleft()
            tokens += size
            limit = max(0, min(request.max_new_tokens, self.context_limit() - len(request.ids)))
            uniforms = sampling.uniforms(request.seed) if request.rule.temperature > 0 else None
            admitted.append(_Active(index, request, limit, uniforms, time.monotonic()))
        return admitted

    def context_limit(self) -> int:
        """Tokens that the model's positions reach: prompt and answer together."""
        scaling = self.model.config.rope_scaling or {}
        stretch = scaling["factor"] if scaling.get("rope_type") == "dynamic" else 1
        return int(self.model.config.max_positions * stretch)

    @staticmethod
    @torch.no_grad()
    def _prefill(new: list[_Active], first: int, steps: Forward) -> Tensor:
        """Run the suffixes of new requests into their slots; logits [B, V] of each one's last token."""
        cache = steps.cache
        suffixes = [a.request.ids[cache.prefix_length:] for a in new]
        cache.reserve(max(map(len, suffixes)))
        return steps.prefill(PackedSequences.of(suffixes, cache.device, start=cache.prefix_length), first)

    @staticmethod
    @torch.no_grad()
    def _decode(active: list[_Active], steps: Forward) -> Tensor:
        """Run the newest token of every active request; logits [B, V]."""
        steps.cache.reserve(int(steps.cache.lengths[:len(active)].max()) + 1)
        return steps.logits([a.ids[-1] for a in active])

    @staticmethod
    def _choose(active: list[_Active], logits_BV: Tensor) -> None:
        """Pick each request's next token and note which have come to their end."""
        drawn = torch.tensor([a.uniforms.random() if a.uniforms else 0.0 for a in active], dtype=torch.float32, device=logits_BV.device)
        seen = [a.request.ids + a.ids if a.request.rule.repetition_penalty != 1 else [] for a in active]
        ids = sampling.sample(logits_BV, [a.request.rule for a in active], drawn, seen).tolist()
        for a, token in zip(active, ids):
            if len(a.ids) >= a.limit:  # no room for even one token
                a.finish = "length"
                continue
            a.ids.append(token)
            if token in a.request.stop_ids or (a.request.stopped and a.request.stopped(a.ids)):
                a.finish = "stop"
            elif len(a.ids) >= a.limit:
                a.finish = "length"

    @staticmethod
    def _retire(active: list[_Active], cache: Cache) -> Iterator[tuple[int, Result]]:
        """Take the finished requests out of the batch, and yield them."""
        now, done = time.monotonic(), []
        for slot in reversed(range(len(active))):
            if active[slot].finish:
                cache.free(slot, len(active))
                done.append(active[slot])
                active[slot] = active[-1]
                active.pop()
        for a in reversed(done):
            yield a.index, Result(a.ids, a.finish, now - a.started)


def prefix_groups(prompts: list[list[int]]) -> list[list[int]]:
    """Indices of the prompts in groups, so chosen that computing each group's common prefix once saves the most.

    In lexical order, prompts that share a prefix are neighbours, so groups are runs. Runs are joined from
    the longest shared prefix to the shortest; a run stays cut where its parts save more apart. Prompts that are left
    alone, with nothing to save, make one group: together they decode as a batch.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    if len(order) < 2:
        return [order] if order else []
    shared = [common_prefix([prompts[a], prompts[b]]) for a, b in zip(order, order[1:])]
    runs = {i: (i, i + 1, 0, None) for i in range(len(order))}  # by first place: (first, end, saved, parts)
    ends = {i + 1: i for i in range(len(order))}                # end of a run → its first place
    for cut in sorted(range(len(shared)), key=lambda i: -shared[i]):
        left, right = runs.pop(ends.pop(cut + 1)), runs.pop(cut + 1)
        saved_apart = left[2] + right[2]
        saved_whole = (right[1] - left[0] - 1) * shared[cut]
        apart = saved_apart > saved_whole + GROUP_COST
        runs[left[0]] = (left[0], right[1], max(saved_apart, saved_whole) if apart else saved_whole, (left, right) if apart else None)
        ends[right[1]] = left[0]
    stack, groups, alone = list(runs.values()), [], []
    while stack:
        first, end, _, parts = stack.pop()
        if parts:
            stack += reversed(parts)
        elif end - first == 1:
            alone.append(order[first])
        else:
            groups.append(sorted(order[first:end]))
    return sorted([*groups, sorted(alone)] if alone else groups)
