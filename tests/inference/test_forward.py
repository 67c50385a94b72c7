"""A packed model's generation step in one call: the same bits as block after block, and the same tokens as
running the whole sequence again.
"""
import random

import pytest
import torch
from packed_models import VARIANTS, make
from test_engine import is_greedy

from redlite import kernels
from redlite.inference.cache import Cache
from redlite.inference.engine import Engine, Request
from redlite.inference.forward import CForward
from redlite.kernels.cpu import library, packed
from redlite.model.llama import LLaMA
from redlite.model.sequences import PackedSequences

pytestmark = pytest.mark.skipif(bool(library.missing()) or kernels.implementation("cached_attention") != "c",
                                reason=library.missing() or "REDLITE_KERNELS forces another attention")


def filled(model, prefix, suffixes):
    """A cache that holds a shared prefix (a list of ids, or none) and these suffixes."""
    cache = Cache(model.config, len(suffixes) + 1, model.cache_dtype, torch.device("cpu"))
    if prefix:
        cache.compute_prefix(model, prefix)
    cache.reserve(max(map(len, suffixes)))
    packed_ids = PackedSequences.of(suffixes, start=len(prefix))
    model(packed_ids.ids, packed_ids.positions, cache.attend_prefill(0, packed_ids.offsets),
          packed_ids.lengths)
    return cache


@pytest.mark.first(6)
@torch.no_grad()
@pytest.mark.parametrize("format", packed.FORMATS)
@pytest.mark.parametrize("name, shared", [("llama", 0), ("llama", 21), ("windows and biases", 0),
                                          ("dynamic", 0)])
@pytest.mark.parametrize("requests", [1, 9])
def test_the_same_bits_as_block_after_block(name, shared, format, requests):
    rng, model = random.Random(requests), make(name, format)
    prefix, suffixes = [rng.randrange(97) for _ in range(shared)
                        ], [[rng.randrange(97) for _ in range(rng.randint(1, 20))] for _ in range(requests)]
    one, other = filled(model, prefix, suffixes), filled(model, prefix, suffixes)
    forward, before, active = CForward.of(model, one), torch.get_num_threads(), requests
    try:
        for step in range(70):  # far enough for the caches to move to more room
            torch.set_num_threads(1 + step % 3)
            if step in (5, 40) and active > 1:  # a request ends
                one.free(1, active), other.free(1, active)
                active -= 1
            ids = [rng.randrange(97) for _ in range(active)]
            one.reserve(int(one.lengths[:active].max())
                        + 1), other.reserve(int(other.lengths[:active].max()) + 1)
            got = forward.next_logits(ids)
            positions = other.lengths[:active] + len(prefix)
            wanted = model.logits(
                model(torch.tensor(ids), positions, other.attend_step(other.advance(active)), positions + 1))
            assert torch.equal(got, wanted), step
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one.lengths, other.lengths) and all(
        torch.equal(a, b) for a, b in zip(one.keys + one.values, other.keys + other.values, strict=True))


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "windows and biases"])
def test_the_engine_takes_it_and_gives_the_tokens_of_recomputation(name, monkeypatch):
    model, calls, logits = make(name), [], CForward.next_logits
    monkeypatch.setattr(CForward, "next_logits",
                        lambda self, ids: calls.append(len(ids)) or logits(self, ids))
    prompts = [[n % 97 for n in range(12)] + [90 - i] * (1 + i % 4) for i in range(7)]
    for i, result in Engine(model, max_batch=4).run([Request(p, 10 + i) for i, p in enumerate(prompts)]):
        assert is_greedy(model, prompts[i], result.ids, 10 + i), i
    assert max(calls) == 4


def test_only_where_all_of_it_runs_in_c():
    plain = LLaMA(VARIANTS["llama"]).initialize(0)
    assert CForward.of(plain, Cache(plain.config, 1, torch.float32, torch.device("cpu"))) is None


def test_a_prefix_within_a_window_only():
    model = make("windows and biases")
    cache = filled(model, list(range(6)), [[1], [2]])
    forward = CForward.of(model, cache)
    with pytest.raises(ValueError, match="within a window of 9"), torch.no_grad():
        for _ in range(4):
            cache.reserve(int(cache.lengths.max()) + 1)
            forward.next_logits([3, 4])
