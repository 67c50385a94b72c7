"""Continuous batching: token ids in, token ids out. It does not handle text.

Requests join the batch as slots become free and leave as they finish. What all prompts of a group share at
their start is computed once (prefix.py). No sequence is padded.
"""
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from redlite.answer import Answer
from redlite.inference import prefix, sampling
from redlite.inference.cache import Cache, free_bytes
from redlite.inference.cuda_graphs import GraphForward
from redlite.inference.forward import CForward, Forward
from redlite.inference.guessed import GuessedSteps
from redlite.inference.look_up import Looked
from redlite.inference.unfinished import Begun, Unfinished, key_of
from redlite.model.llama import LLaMA
from redlite.model.sequences import PackedSequences


@dataclass(frozen=True)
class Request:
    """Token ids to continue, and how. The seed alone decides a sampled answer, whatever else runs.

    stop      texts at which an answer ends; `LM.run` looks for them, the engine does not
    stop_ids  tokens at which an answer ends
    stopped   sees the ids generated so far after each token; True ends the answer
    """
    ids: Sequence[int]
    max_new_tokens: int
    rule: sampling.Rule = sampling.Rule()
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    stopped: Callable[[list[int]], bool] | None = None

    def fault(self) -> str:
        """What is wrong with the settings, "" if nothing."""
        whole_numbers = {"max_new_tokens": self.max_new_tokens, "seed": self.seed}
        if wrong := sampling.wrong_kind(whole_numbers) or self.rule.fault():
            return wrong
        if self.max_new_tokens < 1:
            return f"max_new_tokens {self.max_new_tokens} must be at least 1"
        if not 0 <= self.seed < 1 << 128:
            return f"seed {self.seed} must be at least 0 and below 2^128"
        return ""


LONG = 512  # tokens of a prompt that is run in parts where others wait for their next token
# How many slots are free → (index, request) of at most as many that have come.
Arrivals = Callable[[int], list[tuple[int, Request]]]


@dataclass
class _Active:
    """A request in its slot.

    limit   tokens that it may generate
    finish  "" until it has ended
    key     among the unfinished answers of a run directory
    claim   tokens whose keys and values it may need
    looked  what its next tokens are guessed by; None before the first guess
    """
    index: int
    request: Request
    limit: int
    generator: np.random.Generator | None
    started: float
    ids: list[int] = field(default_factory=list)
    finish: str = ""
    key: str = ""
    claim: int = 0
    looked: Looked | None = None

    def seconds(self) -> float:
        """Since its prefill began, those of earlier processes included."""
        return time.monotonic() - self.started

    def go_on(self, begun: Begun) -> None:
        """Take up what an earlier process made of the answer."""
        self.started -= begun.seconds
        for token in begun.ids:
            self.next_uniform()
            self.take(token)
            if self.finish:     # that process ended before it could say so
                return

    def sequence(self, border: int) -> tuple[list[int], list[int]]:
        """Tokens to run as a prompt, and tokens behind them that must be run as generated before.

        border  the length at which all keys of a sequence change, 0 for none: there it was run whole
        The newest token is in neither, if there is one: the next step runs it.
        """
        prompt, made = len(self.request.ids), self.ids[:-1]
        whole = border - prompt if prompt < border <= prompt + len(made) else 0
        return [*self.request.ids, *made[:whole]], made[whole:]

    def next_uniform(self) -> float:
        """The next random number of a request that is sampled."""
        return self.generator.random() if self.generator else 0.0

    def seen(self) -> list[int]:
        """The ids that the repetition penalty applies to; [] without a penalty."""
        return [*self.request.ids, *self.ids] if self.request.rule.repetition_penalty != 1 else []

    def take(self, token: int) -> None:
        """Append a token, and note whether the answer has come to its end."""
        request = self.request
        if len(self.ids) >= self.limit:  # the prompt already fills the context
            self.finish = "length"
            return
        self.ids.append(token)
        if token in request.stop_ids or (request.stopped and request.stopped(self.ids)):
            self.finish = "stop"
        elif len(self.ids) >= self.limit:
            self.finish = "length"


@dataclass
class _Slow:
    """A request whose prompt is long, and run in parts, so that others are answered meanwhile."""
    answer: _Active
    forward: CForward
    parts: Iterator[tuple[Cache, Tensor] | None]

    @staticmethod
    def among(admitted: list[_Active], forward: Forward) -> "_Slow | None":
        """The first of these that is worth it, if there is one."""
        found = [a for a in admitted if len(a.request.ids) > LONG]
        if not found or not isinstance(forward, CForward):
            return None
        return _Slow(found[0], forward, forward.prefill_in_parts(list(found[0].request.ids)))

    def go_on(self, slot: int) -> Tensor | None:
        """Run one more part; after the last the request has this slot, and the logits [1, V] are returned."""
        if (made := next(self.parts)) is None:
            return None
        (alone, logits_1V), length = made, len(self.answer.request.ids)
        self.forward.cache.reserve(length)
        self.forward.adopt(alone, slot, length)
        return logits_1V


class Engine:
    """Generates for many requests at once.

    max_batch       requests that generate together
    prefill_tokens  prompt tokens run in one pass (one longer prompt is still run whole)
    cache_bytes     that keys and values may take; fewer requests generate together where they might take more
                    (one longer request is still run). None: half of the memory that is free
    unfinished      where `run` keeps the tokens of answers under way, and finds those of an earlier process;
                    None: nowhere
    identity        of the model, among those that answer in one run directory
    guesses         run guesses of the next tokens along where that is faster (look_up.py); answers are the
                    same to the last bit. Greedy answers alone are guessed, and only where the layers run in C
    """

    def __init__(self, model: LLaMA, max_batch: int = 32, prefill_tokens: int = 2048,
                 cache_bytes: int | None = None, guesses: bool = True):
        self.model, self.max_batch, self.prefill_tokens = model, max_batch, prefill_tokens
        self.cache_bytes, self.guesses = cache_bytes, guesses
        self.unfinished: Unfinished | None = None
        self.identity = ""

    def run(self, requests: list[Request],
            beside: Sequence[Sequence[int]] = ()) -> Iterator[tuple[int, Answer]]:
        """Yield (index of the request, its answer without text) as each finishes, in no particular order.

        beside  other prompts, which are answered already: what prompts share is found over them too. How much
                that is decides the last bits, which so are the same whichever requests are left

        A prompt needs at least one token. An answer's `seconds` run from its prefill to its last token.
        """
        prompts = [*(r.ids for r in requests), *beside]
        for group in prefix.prefix_groups(prompts):
            if own := {i: requests[i] for i in group if i < len(requests)}:
                yield from self._run_group(own, [prompts[i] for i in group])

    def follow(self, arrivals: Arrivals) -> Iterator[tuple[int, Answer]]:
        """`run` for requests that come while others are generated; ends when none is left.

        arrivals  asked before each step for those that have come, at most as many as are free. They share no
                  prefix.
        """
        yield from self._steps(self._forward(self.max_batch, []), self.max_batch, deque(), arrivals)

    @property
    def on_cpu(self) -> bool:
        """There memory is taken as it is written; elsewhere each slot takes what the longest needs."""
        return self.model.output_weight.device.type == "cpu"

    def bytes_at_most(self, request: Request) -> int:
        """What the keys and values of a request that shares nothing may take."""
        return self._claim(request, 0) * Cache.bytes_per_token(self.model)

    def _run_group(self, requests: dict[int, Request],
                   prompts: list[Sequence[int]]) -> Iterator[tuple[int, Answer]]:
        stem = self._stem(prompts, max(r.max_new_tokens for r in requests.values()))
        slots = min(self.max_batch, len(requests))
        if not self.on_cpu:
            slots = self._slots(list(requests.values()), len(stem))
        forward = self._forward(slots, stem)
        yield from self._steps(forward, slots, deque(requests.items()))

    def _slots(self, requests: list[Request], shared: int) -> int:
        """How many of these requests may generate together where each slot takes room for the longest."""
        longest = max(self._claim(r, shared) for r in requests)
        return max(1, min(self.max_batch, len(requests), self._budget() // longest))

    def _budget(self) -> int:
        """The tokens whose keys and values may be in memory."""
        free = self.cache_bytes or free_bytes(self.model.output_weight.device) // 2
        return free // Cache.bytes_per_token(self.model)

    def _claim(self, request: Request, shared: int) -> int:
        """The tokens whose keys and values a request may need, without those of a shared prefix."""
        longest = min(len(request.ids) + request.max_new_tokens, self.context_limit())
        return longest - shared + Cache.page_tokens(self.model)

    def _stem(self, prompts: list[Sequence[int]], new: int) -> list[int]:
        """What these prompts share at their start and is worth computing once; [] for nothing.

        new  the most tokens that one of them may be answered with
        """
        if len(prompts) < 2:
            return []
        longest = max(map(len, prompts)) + new
        shared = prefix.shareable(self.model.config, prefix.common_prefix(prompts), longest)
        return list(prompts[0][:shared]) if shared >= prefix.SHARED_AT_LEAST else []

    def _steps(self, forward: Forward, slots: int, waiting: deque[tuple[int, Request]],
               arrivals: Arrivals | None = None) -> Iterator[tuple[int, Answer]]:
        active, budget = list[_Active](), self._budget()
        slow: _Slow | None = None
        guessed = GuessedSteps.of(forward, self._next_logits, self._choose) if self.guesses else None
        while True:
            if arrivals:
                waiting.extend(arrivals(slots - len(active) - len(waiting) - bool(slow)))
            if not waiting and not active and not slow:
                return
            first, under_way = len(active), [*active, *([slow.answer] if slow else [])]
            long = sys.maxsize if not arrivals else int(not slow)
            admitted = self._admit(waiting, under_way, slots, forward.cache, budget, long)
            if arrivals and not slow and (slow := _Slow.among(admitted, forward)):
                admitted.remove(slow.answer)
            if admitted:
                yield from self._answers([a for a in admitted if a.finish])
                active += [a for a in admitted if not a.finish]
                self._begin(active[first:], first, forward)
                yield from self._retire(active, forward.cache)
            # A step with free slots would waste them: fill them first, unless nothing waits that fits. But
            # where requests come, somebody waits for the next token of those under way.
            if active and (arrivals or not (admitted and waiting)):
                if guessed:
                    guessed.step(active)
                else:
                    self._choose(active, self._next_logits(active, forward))
                if self.unfinished:
                    self.unfinished.tick()
                yield from self._retire(active, forward.cache)
            if slow and (logits_1V := slow.go_on(len(active))) is not None:
                active.append(slow.answer)
                self._choose([slow.answer], logits_1V)
                slow = None
                yield from self._retire(active, forward.cache)

    def _forward(self, slots: int, stem: list[int]) -> Forward:
        """The fastest way to run the model here, with a new cache that holds the shared prefix `stem`."""
        cache = Cache(self.model.config, slots, self.model.cache_dtype, self.model.output_weight.device)
        faster = GraphForward.of(self.model, cache) or CForward.of(self.model, cache)
        forward = faster or Forward(self.model, cache)
        if stem:
            forward.compute_prefix(stem)
        return forward

    def _admit(self, waiting: deque[tuple[int, Request]], active: list[_Active], slots: int, cache: Cache,
               budget: int, long: int) -> list[_Active]:
        """Take as many waiting requests, in turn, as fit the free slots, the budget and one prefill pass.

        long  how many long prompts at most
        Those that an earlier process began come first, from the longest to the shortest.
        """
        admitted, tokens, shared = list[_Active](), 0, cache.prefix_length
        while waiting and len(active) + len(admitted) < slots:
            index, request = waiting[0]
            size = len(request.ids) - shared
            long -= len(request.ids) > LONG
            if long < 0 or (admitted and tokens + size > self.prefill_tokens):
                break
            claims = [a.claim for a in (*active, *admitted)]
            if claims and self.on_cpu and sum(claims) + self._claim(request, shared) > budget:
                break
            waiting.popleft()
            tokens += size
            limit = max(0, min(request.max_new_tokens, self.context_limit() - len(request.ids)))
            generator = sampling.uniforms(request.seed) if request.rule.temperature > 0 else None
            answer = _Active(index, request, limit, generator, time.monotonic(),
                             claim=self._claim(request, shared))
            if self.unfinished:
                answer.key = key_of(self.identity, request, shared)
                if begun := self.unfinished.take(answer.key, answer, self.model.config.vocab_size):
                    answer.go_on(begun)
                    tokens += len(answer.ids)
            admitted.append(answer)
        claimed = sum(a.claim for a in (*active, *admitted))
        if self.on_cpu and admitted and claimed + sum(cache.written) > budget:
            cache.release()
        return sorted(admitted, key=lambda a: -len(a.ids))

    def context_limit(self) -> int:
        """The most tokens, prompt and answer together, that the model has positions for."""
        scaling = self.model.config.rope_scaling or {}
        stretch = scaling["factor"] if scaling.get("rope_type") == "dynamic" else 1
        return int(self.model.config.max_positions * stretch)

    @classmethod
    @torch.no_grad()
    def _begin(cls, admitted: list[_Active], first: int, forward: Forward) -> None:
        """Run the suffixes of requests into their slots, and choose each one's first token.

        Of those that an earlier process began, all tokens but the newest are run instead.
        """
        if not admitted:
            return
        cache = forward.cache
        border = prefix.rotation_changes_at(forward.model.config)
        prompts, made = zip(*(a.sequence(border) for a in admitted), strict=True)
        suffixes = [ids[cache.prefix_length:] for ids in prompts]
        cache.reserve(max(len(s) + len(m) for s, m in zip(suffixes, made, strict=True)))
        packed = PackedSequences.of(suffixes, cache.device, start=cache.prefix_length)
        logits_BV = forward.prefill(packed, first)
        for run, answers in groupby(enumerate(made, first), key=lambda item: bool(item[1])):
            if run:
                own = list(answers)
                forward.replay(own[0][0], [ids for _, ids in own])
        new = [a for a in admitted if not a.ids]
        cls._choose(new, logits_BV[len(logits_BV) - len(new):])

    @staticmethod
    @torch.no_grad()
    def _next_logits(active: list[_Active], forward: Forward) -> Tensor:
        """Run the newest token of every active request; logits [B, V]."""
        forward.cache.reserve(int(forward.cache.lengths[:len(active)].max()) + 1)
        logits_BV = forward.next_logits([a.ids[-1] for a in active])
        border = prefix.rotation_changes_at(forward.model.config)
        for slot, a in enumerate(active):
            if border and len(a.request.ids) + len(a.ids) == border:  # all keys change, not the newest alone
                whole = PackedSequences.of([[*a.request.ids, *a.ids]], forward.cache.device)
                logits_BV[slot] = forward.prefill(whole, slot)[0]
        return logits_BV

    @staticmethod
    def _choose(active: list[_Active], logits_BV: Tensor) -> None:
        """Pick each request's next token and note which have come to their end."""
        rules, seen = [a.request.rule for a in active], [a.seen() for a in active]
        uniforms = [a.next_uniform() for a in active]
        uniform_B = torch.tensor(uniforms, dtype=torch.float32, device=logits_BV.device)
        ids = sampling.sample(logits_BV, rules, uniform_B, seen).tolist()
        for a, token in zip(active, ids, strict=True):
            a.take(token)

    def _retire(self, active: list[_Active], cache: Cache) -> Iterator[tuple[int, Answer]]:
        """Take the finished requests out of the batch, and yield their answers."""
        done = list[_Active]()
        for slot in reversed(range(len(active))):
            if active[slot].finish:
                cache.free(slot, len(active))
                done.append(active[slot])
                active[slot] = active[-1]  # as Cache.free does
                active.pop()
        yield from self._answers(done[::-1])    # in the order of their slots

    def _answers(self, done: list[_Active]) -> Iterator[tuple[int, Answer]]:
        """The answers of finished requests, which are unfinished until the caller has kept them."""
        seconds = [a.seconds() for a in done]
        for a, taken in zip(done, seconds, strict=True):
            yield a.index, Answer("", a.finish, len(a.request.ids), len(a.ids), taken, a.ids)
            if self.unfinished:
                self.unfinished.drop(a.key)
