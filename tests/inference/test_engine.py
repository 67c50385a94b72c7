"""The engine against the plain definition: run the whole sequence again for every token, and take the
argmax.
"""
import random
from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import packed_models
import pytest
import torch

from redlite import kernels
from redlite.inference import forward
from redlite.inference.cache import Cache
from redlite.inference.engine import Engine, Request
from redlite.inference.prefix import common_prefix, prefix_groups, shareable
from redlite.inference.sampling import Rule
from redlite.model.config import Config
from redlite.model.llama import LLaMA
from redlite.model.sequences import PackedSequences, packed_attention

VARIANTS = {
    "llama": Config("llama", 97, 32, 3, 4, 2, 8, 64),
    "window": Config("mistral", 97, 32, 3, 4, 2, 8, 64, windows=(6, 6, 6)),
    "mixed windows": Config("qwen2", 97, 32, 3, 4, 2, 8, 64, windows=(None, 9, 9), qkv_bias=True),
    "dynamic": Config("llama", 97, 32, 2, 4, 4, 8, 64, max_positions=24,
                      rope_scaling={"rope_type": "dynamic", "factor": 4.0}),
}


def make(config):
    return LLaMA(config).initialize(0, std=0.3)


def prompts(count=11, shared=30, seed=0):
    rng = random.Random(seed)
    prefix = [rng.randrange(97) for _ in range(shared)]
    return [prefix + [rng.randrange(97) for _ in range(rng.randint(1, 20))]
            for _ in range(count)] + [[5, 6, 7], [5]]


@torch.no_grad()
def is_greedy(model, prompt, made, count):
    """Whether these are `count` tokens, each the argmax behind those before it; one pass tells of all."""
    packed = PackedSequences.of([prompt + made[:-1]])
    hidden = model(packed.ids, packed.positions, packed_attention(model.config, packed.offsets),
                   packed.lengths)
    return len(made) == count and model.logits(hidden)[len(prompt) - 1:].argmax(-1).tolist() == made


@torch.no_grad()
def one_by_one(model, ids, count):
    """Greedy continuation with no cache: the oracle (for dynamic scaling it would rotate old keys anew, so
    see that test).
    """
    ids = list(ids)
    for _ in range(count):
        packed = PackedSequences.of([ids])
        hidden = model(packed.ids, packed.positions, packed_attention(model.config, packed.offsets),
                       packed.lengths)
        ids.append(int(model.logits(hidden)[-1].argmax()))
    return ids[len(ids) - count:]


@pytest.mark.first(1)
@pytest.mark.parametrize("name", ["llama", "window", "mixed windows"])
@pytest.mark.parametrize("max_batch, prefill", [(1, 1), (3, 40), (32, 4096)])
def test_greedy_equals_recomputation(name, max_batch, prefill):
    model = make(VARIANTS[name])
    wanted = prompts()
    results = dict(Engine(model, max_batch, prefill).run([Request(p, 3 + i) for i, p in enumerate(wanted)]))
    assert sorted(results) == list(range(len(wanted)))
    for i, p in enumerate(wanted):
        assert is_greedy(model, p, results[i].ids, 3 + i), i
        assert results[i].finish == "length"


def test_dynamic_scaling_does_not_depend_on_the_batch():
    model, wanted = make(VARIANTS["dynamic"]), prompts()
    alone = [next(Engine(model, 1).run([Request(p, 12)]))[1].ids for p in wanted]
    together = dict(Engine(model, 5).run([Request(p, 12) for p in wanted]))
    assert [together[i].ids for i in range(len(wanted))] == alone


def test_keys_and_values_stay_within_their_memory(monkeypatch):
    model, wanted = make(VARIANTS["llama"]), prompts()      # which share 30 tokens, but for two
    requests = [Request(p, 9) for p in wanted]
    token = 2 * 3 * 2 * 8 * 4   # keys and values, layers, heads, numbers of a head, bytes of a number
    pages = 2 * 4096 // (8 * 4)   # tokens: the keys of a head begin and end within a page
    most, claimed = [], []
    step = Engine._next_logits

    def counted(active, ran):
        most.append(len(active))
        shared = ran.cache.prefix_length
        claimed.append(sum(len(a.request.ids) - shared + 9 + pages for a in active) * token)
        return step(active, ran)
    monkeypatch.setattr(Engine, "_next_logits", staticmethod(counted))
    free = dict(Engine(model, 5).run(requests))
    assert max(most) == 5
    assert max(claimed) > 900 * token
    for room, slots in ((900 * token, 3), (1, 1)):     # at least one is run, whatever it needs
        most.clear()
        claimed.clear()
        bound = dict(Engine(model, 5, cache_bytes=room).run(requests))
        assert max(most) == slots
        assert slots == 1 or max(claimed) <= room
        assert [bound[i].ids for i in range(len(wanted))] == [free[i].ids for i in range(len(wanted))]


@pytest.mark.slow
def test_sampled_answers_depend_on_the_request_alone():
    model, wanted = make(VARIANTS["llama"]), prompts()
    requests = [Request(p, 12, Rule(1.2, 0.9), seed=100 + i) for i, p in enumerate(wanted)]
    first = {requests[i].seed: r.ids for i, r in Engine(model, 4).run(requests)}
    turned = requests[::-1]
    second = {turned[i].seed: r.ids for i, r in Engine(model, 32).run(turned)}
    assert first == second
    others = {r.seed: r for r in requests}
    assert any(first[s] != one_by_one(model, others[s].ids, 12)
               for s in first), "sampling at 1.2 gave the greedy answers"


def test_end_tokens_and_stop_functions_end_a_request():
    model = make(VARIANTS["llama"])
    p = prompts()[0]
    ids = one_by_one(model, p, 10)
    end = ids[4]
    result = next(Engine(model).run([Request(p, 10, stop_ids=frozenset([end]))]))[1]
    assert result.finish == "stop" and result.ids == ids[:ids.index(end) + 1]
    result = next(Engine(model).run([Request(p, 10, stopped=lambda made: len(made) == 3)]))[1]
    assert result.finish == "stop" and result.ids == ids[:3]


def test_the_context_ends_an_answer():
    config = Config("llama", 97, 32, 2, 4, 2, 8, 64, max_positions=10)
    result = next(Engine(make(config)).run([Request([1, 2, 3, 4], 50)]))[1]
    assert (len(result.ids), result.finish) == (6, "length")


def test_no_requests():
    assert list(Engine(make(VARIANTS["llama"])).run([])) == []


def test_common_prefix_leaves_a_token():
    assert common_prefix([[1, 2, 3], [1, 2, 4], [1, 2, 3, 5]]) == 2
    assert common_prefix([[1, 2, 3], [1, 2, 3]]) == 2
    assert common_prefix([[1], [1, 2]]) == 0


def test_windows_and_dynamic_scaling_forbid_sharing_where_it_would_change_the_result():
    assert shareable(VARIANTS["window"], 30, 31) == 0 and shareable(VARIANTS["window"], 4, 6) == 4
    assert shareable(VARIANTS["dynamic"], 20, 25) == 0 and shareable(VARIANTS["dynamic"], 20, 24) == 20
    assert shareable(VARIANTS["llama"], 20, 500) == 20


def saved(groups, wanted):
    return sum((len(g) - 1) * common_prefix([wanted[i] for i in g]) for g in groups if len(g) > 1)


def test_prefix_groups_separate_what_shares_nothing_and_join_what_does():
    rng = np.random.default_rng(0)
    kinds = [rng.integers(0, 97, 200).tolist() for _ in range(3)]
    wanted = [[1, 2] + kinds[i % 3] + rng.integers(0, 97, 9).tolist() for i in range(60)]
    groups = prefix_groups(wanted)
    assert groups == [list(range(k, 60, 3)) for k in range(3)]
    assert saved(groups, wanted) >= 3 * 19 * 202
    assert prefix_groups([]) == [] and prefix_groups([[1, 2]]) == [[0]]
    assert sorted(i for g in prefix_groups(prompts()) for i in g) == list(range(13))


def test_prefix_groups_take_one_group_where_parts_save_little():
    wanted = [[1] * 50 + [i, i] for i in range(40)]
    assert prefix_groups(wanted) == [list(range(40))]


def test_prompts_that_share_nothing_decode_together():
    """Between groups that share long prefixes, as BBH's single examples between those of one task."""
    shared = [[1000 + n] * 400 for n in range(3)]
    prompts = [[*shared[i % 3], i] if i < 6 else [10 * i] * 300 for i in range(20)]
    groups = prefix_groups(prompts)
    assert sorted(map(sorted, groups)) == [[0, 3], [1, 4], [2, 5], list(range(6, 20))]


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="no Linux")
def test_one_long_request_takes_no_memory_of_the_others():
    """Room for 33 slots as long as it would be 33 times its own."""
    config = Config("llama", 97, 32, 8, 4, 4, 64, 64)
    cache = Cache(config, 33, torch.float32, torch.device("cpu"))
    token = 2 * 8 * 4 * 64 * 4

    def memory():
        fields = Path("/proc/self/smaps_rollup").read_text().split()
        return int(fields[fields.index("Anonymous:") + 1]) * 1024

    def fill(slot, length):
        cache.reserve(length)
        for layer in (*cache.keys, *cache.values):
            layer[slot, :, :length] = slot + 1
        cache.lengths[slot] = length
    before = memory()
    for slot in range(32):
        fill(slot, 40)
    fill(32, 2000)
    assert (32 * 40 + 2000) * token <= memory() - before <= 1.3 * (32 * (40 + 8) + 2000) * token
    assert all(bool((layer[5, :, :40] == 6).all()) for layer in cache.keys)
    cache.free(32, 33)
    assert cache.written[32] == 2000
    cache.release()
    assert memory() - before <= 1.3 * 32 * (40 + 8) * token and cache.written[32] == 0
    assert all(bool((layer[31, :, :40] == 32).all()) for layer in cache.values)


@pytest.mark.skipif(bool(kernels.unpackable("cpu")), reason="no C library")
@pytest.mark.parametrize("format", ["float32", "int8"])
def test_a_long_prompt_that_comes_holds_nobody(monkeypatch, format):
    """Its layers run in parts; between them the others get tokens and new ones join. Answers are the same."""
    model, rng = packed_models.make("llama", format), random.Random(0)
    monkeypatch.setattr(forward, "PART", 1)     # one layer a part
    lengths = [5, 700, 9, 800, 3]
    wanted = [Request([rng.randrange(97) for _ in range(n)], 12, Rule(0.7), seed=n) for n in lengths]
    coming, order, grown = deque(enumerate(wanted)), [], []

    def arrivals(free):
        if coming and free:
            i, request = coming.popleft()
            return [(i, replace(request, stopped=lambda ids: grown.append(i)))]
        return []
    engine = Engine(model, 4)
    found = {}
    for i, answer in engine.follow(arrivals):
        found[i] = answer.ids
        order.append(i)
    assert found == {i: answer.ids for i, answer in Engine(model).run(wanted)}
    # three layers, a token of the first answer with each; the short one behind the long one has not waited
    assert grown[:grown.index(1)].count(0) >= 3 and grown.index(2) < grown.index(1)
    assert sorted(order) == list(range(5)) and grown.index(1) < grown.index(3)


def test_an_answer_leaves_as_it_ends_and_the_next_joins_at_once():
    """Two slots. The first token comes from the prompt, so n tokens take n − 1 steps."""
    engine, steps, came = Engine(make(VARIANTS["llama"]), 2), [], {}
    step = engine._next_logits
    engine._next_logits = lambda *given: steps.append(1) or step(*given)
    new = [12, 3, 3, 3, 3]
    for i, answer in engine.run([Request([i, i], n) for i, n in enumerate(new)]):
        came[i] = len(steps)
        assert len(answer.ids) == new[i]
    assert came == {1: 2, 2: 4, 3: 6, 4: 8, 0: 11}
