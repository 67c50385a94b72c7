"""Attention of packed sequences in C against a float64 softmax written out here, and a packed model's passes
against those of plain operations.
"""
import ctypes
import random

import pytest
import torch
from packed_models import make

from redlite import kernels
from redlite.inference.cache import Cache
from redlite.inference.forward import CForward, Forward
from redlite.kernels.cpu import library, structs, transformer
from redlite.kernels.cpu.cached_attention import SharedPrefix
from redlite.model.sequences import PackedSequences

pytestmark = pytest.mark.skipif(bool(library.missing()) or kernels.implementation("cached_attention") != "c",
                                reason=library.missing() or "REDLITE_KERNELS forces another attention")


def attend(q_THK, k_TGK, v_TGK, offsets, parents=None, prefix=None, window=0, scale=0.3, threads=2,
           narrow=False):
    (_, H, K), G, out = q_THK.shape, k_TGK.shape[1], torch.full_like(q_THK, float("nan"))
    lists = [torch.tensor(x, dtype=torch.int64) if x is not None else None for x in (offsets, parents)]
    shared = SharedPrefix(*prefix, torch.bfloat16 if narrow else torch.float32) if prefix else None
    arguments = structs.SequenceAttention(
        *(None if t is None else t.data_ptr() for t in (q_THK, k_TGK, v_TGK, *lists)), shared and shared.keys,
        shared and shared.values, out.data_ptr(),
        len(offsets) - 1, G, H // G, K, shared.length if shared else 0, window, scale, narrow=narrow)
    assert library.library().rl_sequence_attention(ctypes.byref(arguments), threads) == 0
    return out


def expected(q, k, v, offsets, parents, prefix, window, scale):
    """In float64: for each row one softmax over all keys that it sees."""
    out, R = torch.empty_like(q, dtype=torch.float64), q.shape[1] // k.shape[1]
    for b, (start, end) in enumerate(zip(offsets, offsets[1:], strict=False)):
        row, key = torch.arange(start, end)[:, None], torch.arange(start, end)
        seen = key <= row
        if window:
            seen &= key > row - window
        parts = [(k[start:end], v[start:end])]
        if parents and parents[b] >= 0:
            stem = slice(offsets[parents[b]], offsets[parents[b] + 1])
            parts.insert(0, (k[stem], v[stem]))
        if prefix:
            parts.insert(0, prefix)
        keys, values = (torch.cat(x).double().repeat_interleave(R, 1) for x in zip(*parts, strict=True))
        all_before = torch.ones(end - start, len(keys) - (end - start), dtype=torch.bool)
        scores = torch.einsum("thk,shk->hts", q[start:end].double(), keys) * scale
        scores = scores.masked_fill(~torch.cat((all_before, seen), 1), -torch.inf)
        out[start:end] = torch.einsum("hts,shk->thk", scores.softmax(-1), values)
    return out


@pytest.mark.first(3)
@pytest.mark.parametrize("isa", library.isas())
@pytest.mark.parametrize("G,R,K,P,lengths,parents,window", [(1, 1, 8, 0, [1], None, 0),
                                                            (3, 3, 64, 47, [5, 70, 1, 64], None, 0),
                                                            (2, 2, 10, 0, [130, 3], None, 0),
                                                            (2, 1, 80, 20, [9, 4, 6, 2], [-1, -1, 0, 1], 0),
                                                            (1, 50, 24, 17, [7, 3, 5], [-1, 0, 0], 0),
                                                            (2, 2, 16, 0, [90, 8], None, 6),
                                                            (1, 2, 16, 0, [1200], None, 520),
                                                            (1, 1, 16, 530, [600, 20], [-1, 0], 0),
                                                            (2, 8, 40, 33, [0, 17, 0], None, 0)])
def test_against_float64(isa, G, R, K, P, lengths, parents, window):
    torch.manual_seed(P + K)
    offsets, T = [0, *torch.tensor(lengths).cumsum(0).tolist()], sum(lengths)
    q, k, v = torch.randn(T, G * R, K) * 2, torch.randn(T, G, K), torch.randn(T, G, K)
    prefix = (torch.randn(P, G, K), torch.randn(P, G, K)) if P else None
    with library.using(isa):
        got = attend(q, k, v, offsets, parents, prefix, window)
    assert (got.double() - expected(q, k, v, offsets, parents, prefix, window, 0.3)).abs().max() < 1e-5
    # Narrow: everything is rounded to bfloat16, and so are the exponentials that multiply the values.
    got, rounded = None, [x.bfloat16().float() for x in (q, k, v, *(prefix or ()))]
    with library.using(isa):
        got = attend(q, k, v, offsets, parents, prefix, window, narrow=True)
        assert torch.equal(attend(*rounded[:3], offsets, parents, rounded[3:], window, narrow=True), got)
    wanted = expected(*rounded[:3], offsets, parents, rounded[3:], window, 0.3)
    sizes = [x.abs() for x in (rounded[2], *rounded[4:])]
    size = expected(*rounded[:2], sizes[0], offsets, parents, rounded[3:4] + sizes[1:], window, 0.3)
    assert ((got.double() - wanted).abs() < 1e-5 + 2.0**-8 * size).all()


@pytest.mark.parametrize("narrow", [False, True])
def test_a_sequence_does_not_depend_on_its_batch_or_the_threads(narrow):
    torch.manual_seed(0)
    lengths = [3, 150, 64, 20, 1]
    offsets, T = [0, *torch.tensor(lengths).cumsum(0).tolist()], sum(lengths)
    q, k, v, prefix = torch.randn(T, 6, 64), torch.randn(T, 2, 64), torch.randn(T, 2,
                                                                                64), (torch.randn(90, 2, 64),
                                                                                      torch.randn(90, 2, 64))

    def rows(start, end, offsets, threads=2):
        return attend(q[start:end], k[start:end], v[start:end], offsets, None, prefix, threads=threads,
                      narrow=narrow)
    whole = rows(0, T, offsets)
    for threads in (1, 3, 5):
        assert torch.equal(rows(0, T, offsets, threads), whole)
    for start, end in zip(offsets, offsets[1:], strict=False):
        assert torch.equal(rows(start, end, [0, end - start]), whole[start:end])
    assert torch.equal(rows(3, 100, [0, 97]), whole[3:100])  # nor on the rows after it
    huge = attend(q * 1e4, k * 1e4, v, offsets, None, prefix, narrow=narrow)
    assert torch.isfinite(huge).all()


@torch.no_grad()
@pytest.mark.parametrize("name, shared", [("llama", 0), ("llama", 21), ("windows and biases", 0),
                                          ("dynamic", 0), ("llama", 1)])
@pytest.mark.parametrize("work", [transformer.WORK, 1])
def test_a_packed_models_passes_are_those_of_plain_operations(name, shared, work, monkeypatch):
    """Prefix, prompts and a tree in one C call each, or a layer at a time, against the same model an
    operation at a time with torch's attention.
    """
    monkeypatch.setattr(transformer, "WORK", work)
    rng, model = random.Random(shared), make(name)

    def ids(n):
        return [rng.randrange(97) for _ in range(n)]
    prefix, prompts = ids(shared), [ids(rng.randint(1, 20)) for _ in range(5)]
    results = []
    for kind in (Forward, CForward):
        cache = Cache(model.config, 7, torch.float32, torch.device("cpu"))
        forward = kind(model, cache)
        if prefix:
            forward.compute_prefix(prefix)
        cache.reserve(20)
        logits = forward.prefill(PackedSequences.of(prompts, start=shared), 1)
        stems, leaves = prompts[:3], [prompts[3], prompts[4], prompts[0]]
        parents = [-1, -1, -1, 0, 2, 2] if name == "llama" else [-1] * 6
        new = PackedSequences.of(stems + leaves, start=shared)
        for i, parent in enumerate(parents):
            new.positions[new.offsets[i]:new.offsets[i + 1]] += len(stems[parent]) if parent >= 0 else 0
        new.lengths[:] = new.positions + 1
        results.append([
            logits,
            forward.run_tree(new, parents),
            cache.lengths.float(), *(t for pair in cache.prefix for t in pair)] + [
                store[slot, :, :len(prompts[slot - 1])]
                for store in cache.keys + cache.values
                for slot in range(1, 6)])
    for plain, fast in zip(*results, strict=True):
        assert (plain - fast).abs().max() <= 2e-5 * plain.abs().max()


@torch.no_grad()
def test_what_does_not_fit_is_refused():
    model = make("windows and biases")
    cache = Cache(model.config, 2, torch.float32, torch.device("cpu"))
    forward = CForward(model, cache)
    cache.reserve(10)
    room = cache.capacity
    with pytest.raises(
            ValueError,
            match=f"2 slots of {room} tokens has no room for 2 sequences of up to 3 from slot 1 on"):
        forward.prefill(PackedSequences.of([[1, 2, 3], [4]]), 1)
    with pytest.raises(ValueError, match="no room"):
        forward.prefill(PackedSequences.of([[1] * (room + 1)]), 0)
    forward.prefill(PackedSequences.of([[1, 2], [3]]), 0)
    cache.lengths[1] = room
    with pytest.raises(ValueError, match=f"no room for token {room + 1} of 2 requests"):
        forward.next_logits([4, 5])
    forward = CForward(model, Cache(model.config, 0, torch.float32, torch.device("cpu")))
    forward.compute_prefix(list(range(6)))
    forward.run_tree(PackedSequences.of([[1, 2, 3]], start=6), [-1])
    with pytest.raises(ValueError, match="within a window of 9"):
        forward.run_tree(PackedSequences.of([[1, 2, 3, 4]], start=6), [-1])
    for kind in (Forward, CForward):  # a leaf whose stem lies behind the window in part
        forward = kind(model, Cache(model.config, 0, torch.float32, torch.device("cpu")))
        new = PackedSequences.of([list(range(7)), [3, 4, 5]])
        new.positions[7:] += 7
        with pytest.raises(ValueError,
                           match="up to 10 tokens, more than the window of 9"):
            forward.run_tree(new, [-1, 0])


@torch.no_grad()
@pytest.mark.parametrize("format", ["int8", "int4"])
def test_quantised_models_attend_to_what_their_caches_hold(format):
    """A prompt that shares its start attends to the same halves as alone; and a prefix may be set again."""
    model = make("llama", format)
    prompts = [[n % 97 for n in range(30)] + [i] for i in range(3)]

    def kept(shared):
        cache = Cache(model.config, 3, model.cache_dtype, torch.device("cpu"))
        forward = CForward(model, cache)
        cache.reserve(40)
        forward.prefill(PackedSequences.of([[5, 6]]), 2)   # before there is a prefix
        if shared:
            forward.compute_prefix(prompts[0][:shared])
        forward.prefill(PackedSequences.of([p[shared:] for p in prompts], start=shared), 0)
        keys = [
            torch.cat([
                cache.prefix[n][0].transpose(0, 1) if shared else torch.empty(2, 0, 8),
                cache.keys[n][0, :, :31 - shared].float()], 1) for n in range(3)]
        return keys
    alone, together = kept(0), kept(20)
    assert all(torch.equal(k, k.half().float()) for k in together)
    assert torch.equal(alone[0],
                       together[0])  # the first layer's do not come from sums that are cut elsewhere
    assert all((a - b).abs().max() < 0.1 * a.abs().max() for a, b in zip(alone, together, strict=True))
