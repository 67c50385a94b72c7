"""A generation step's attention in every implementation against a float64 softmax over prefix and cache,
written out here.
"""
from contextlib import nullcontext

import pytest
import torch

from redlite import kernels
from redlite.kernels import reference
from redlite.kernels.cpu import cached_attention as in_c
from redlite.kernels.cpu import library


def expected(q, keys, values, places, k, v, pk, pv, window, scale):
    """Row by row: everything in float64, one softmax over all keys that count."""
    out = torch.empty_like(q, dtype=torch.float64)
    (B, H, _), G = q.shape, k.shape[1]
    for b in range(B):
        for h in range(H):
            g = h // (H // G)
            own_k = torch.cat((keys[b, g, :places[b]], k[b, g][None])).double()
            own_v = torch.cat((values[b, g, :places[b]], v[b, g][None])).double()
            all_k, all_v = (torch.cat((p[:, g].double(), o)) if p is not None else o
                            for p, o in ((pk, own_k), (pv, own_v)))
            if window:
                all_k, all_v = all_k[-window:], all_v[-window:]
            out[b, h] = torch.softmax(all_k @ q[b, h].double() * scale, 0) @ all_v
    return out


@pytest.mark.parametrize("name, kept",
                         [("reference", torch.float32), *((isa, dtype)
                                                          for isa in library.isas()
                                                          for dtype in in_c.KEPT)])
@pytest.mark.parametrize("B,G,R,K,S,P,window", [(1, 1, 1, 8, 5, 0, None), (3, 2, 3, 64, 40, 47, None),
                                                (5, 3, 5, 10, 33, 1, None), (2, 1, 7, 80, 70, 130, None),
                                                (4, 2, 2, 16, 30, 0, 6), (33, 1, 4, 32, 9, 20, None),
                                                (3, 2, 50, 24, 12, 37, None), (2, 2, 8, 40, 19, 33, None)])
def test_against_float64(name, kept, B, G, R, K, S, P, window):
    torch.manual_seed(B * 100 + P)
    q, k, v = torch.randn(B, G * R, K) * 2, torch.randn(B, G, K), torch.randn(B, G, K)
    keys, values, places = torch.randn(B + 2, G, S,
                                       K).to(kept), torch.randn(B + 2, G, S,
                                                                K).to(kept), torch.randint(0, S, (B, ))
    keys[:, :, -1] = float("nan")   # a place that holds no key yet may hold anything
    places = places.clamp(max=S - 2)
    pk, pv = (torch.randn(P, G, K), torch.randn(P, G, K)) if P else (None, None)
    function = reference.cached_attention if name == "reference" else in_c.cached_attention
    prefix = None if not P else (pk, pv) if name == "reference" else in_c.SharedPrefix(pk, pv, kept)
    rounding = 0.0
    if kept == torch.bfloat16 and P:
        q, pk, pv = (x.to(kept).float() for x in (q, pk, pv))
        rounding = 2.0**-8  # of the exponentials that multiply the prefix's values
    own = keys, values, places, k.to(kept), v.to(kept)
    wanted = expected(q, *own, pk, pv, window, 0.3)
    size = expected(q, keys, values.abs(), places, own[3], own[4].abs(), pk, None if pv is None else pv.abs(),
                    window, 0.3)
    with nullcontext() if name == "reference" else library.using(name):
        got = function(q, k, v, keys, values, places, prefix, window=window, scale=0.3)
    assert ((got.double() - wanted).abs() < 1e-5 + rounding * size).all()
    assert all(
        torch.equal(keys[b, :, places[b]], k[b].to(kept)) and torch.equal(values[b, :,
                                                                                 places[b]], v[b].to(kept))
        for b in range(B))


@pytest.mark.skipif(bool(library.missing()), reason=library.missing())
@pytest.mark.parametrize("kept", in_c.KEPT)
def test_a_request_does_not_depend_on_its_batch_or_the_threads(kept):
    torch.manual_seed(0)
    B, G, R, K, S, P = 13, 2, 3, 64, 50, 90
    q, k, v, keys, values = (torch.randn(*s)
                             for s in ((B, G * R, K), (B, G, K), (B, G, K), (B, G, S, K), (B, G, S, K)))
    keys, values, places = keys.to(kept), values.to(kept), torch.randint(0, S, (B,))
    prefix = in_c.SharedPrefix(torch.randn(P, G, K), torch.randn(P, G, K), kept)
    whole, before = in_c.cached_attention(q, k, v, keys, values, places, prefix), torch.get_num_threads()
    try:
        for threads, first, last in ((1, 0, 1), (1, 4, 9), (2, 4, 9), (3, 12, 13), (2, 0, 13), (5, 0, 13)):
            torch.set_num_threads(threads)
            part = slice(first, last)
            assert torch.equal(
                in_c.cached_attention(q[part], k[part], v[part], keys[part], values[part], places[part],
                                      prefix), whole[part])
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(bool(library.missing()), reason=library.missing())
def test_huge_scores_and_faults():
    q = torch.full((1, 1, 8), 1e4)
    keys, values = torch.full((1, 1, 3, 8), -1e4), torch.ones(1, 1, 3, 8)
    out = in_c.cached_attention(q, torch.full((1, 1, 8), 1e4), torch.full((1, 1, 8), 5.0), keys, values,
                                torch.tensor([2]))
    assert torch.equal(out, torch.full((1, 1, 8), 5.0))
    with pytest.raises(ValueError, match="within a window"):
        in_c.cached_attention(q, q, q, keys, values, torch.tensor([2]),
                              in_c.SharedPrefix(torch.ones(6, 1, 8), torch.ones(6, 1, 8)), window=8)
    with pytest.raises(ValueError, match="must be float32, float16 or bfloat16, not float64 and float64"):
        in_c.cached_attention(q, q, q, keys.double(), values.double(), torch.tensor([2]))
    with pytest.raises(ValueError, match="the prefix was not packed for a bfloat16 cache"):
        in_c.cached_attention(q, q, q, keys.bfloat16(), values.bfloat16(), torch.tensor([2]),
                              in_c.SharedPrefix(torch.ones(6, 1, 8), torch.ones(6, 1, 8)))
    big = torch.tensor([65504.0, 65519.9, 65520.0, -1e9, 6e-8, 2e-8, -0.0, 1 + 2**-11]).view(
        1, 1, 8)  # the ends of half precision, as torch rounds them; what lies beyond becomes the end
    for isa in library.isas():
        with library.using(isa):
            halves = torch.zeros(1, 1, 3, 8,
                                 dtype=torch.float16), torch.zeros(1, 1, 3, 8, dtype=torch.float16)
            in_c.cached_attention(q, big, -big, *halves, torch.tensor([1]))
        assert torch.equal(halves[0][0, :, 1], big[0].clamp(-65504, 65504).half()) and torch.equal(
            halves[1][0, :, 1], -big[0].clamp(-65504, 65504).half())
        shorts = [torch.zeros(1, 1, 3, 8, dtype=torch.bfloat16) for _ in range(2)]
        with library.using(isa):
            in_c.cached_attention(q, big, -big, *shorts, torch.tensor([1]))
        assert all(torch.equal(x[0, :, 1], y) for x, y in zip(shorts, (big[0].bfloat16(), -big[0].bfloat16()),
                                                              strict=True))
    assert kernels.implementation("cached_attention") == ("reference"
                                                          if kernels.FORCED == "reference" else "c")
