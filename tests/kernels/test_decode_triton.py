"""A generation step's attention in Triton against a float64 softmax written out here, and the engine on top
of it.

Without a GPU the kernels run in Triton's interpreter; its products of bfloat16 are wrong, so bfloat16 waits
for a GPU.
"""
import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported
pytest.importorskip("triton", reason="triton is not installed")

from redlite import kernels
from redlite.kernels.triton import cached_attention as in_triton
from redlite.kernels.triton import token_nll

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(bool(token_nll.unusable(DEVICE)), reason=token_nll.unusable(DEVICE))
CASES = [  # B, G, R, K, S, P, window
    (1, 1, 1, 8, 5, 0, None),
    (3, 2, 3, 64, 40, 47, None),
    (2, 1, 5, 10, 300, 1, None),
    (2, 1, 7, 80, 290, 330, None),
    (2, 2, 2, 16, 300, 0, 6),
    (3, 1, 2, 16, 280, 150, 170),
    (17, 1, 4, 32, 9, 20, None),
]


def given(B, G, R, K, S, P, dtype):
    """Arguments of cached_attention: random keys, NaN wherever no key lies yet, the first and last places
    among those asked for.
    """
    g = torch.Generator().manual_seed(B * 100 + P)
    q, k, v, keys, values = ((torch.randn(*s, generator=g) * 2).to(dtype) for s in
                             ((B, G * R, K), (B, G, K), (B, G, K), (B + 2, G, S, K), (B + 2, G, S, K)))
    places = torch.randint(0, S, (B,), generator=g)
    places[0], places[-1] = 0, S - 1
    for b, place in enumerate(places.tolist()):
        keys[b, :, place:] = values[b, :, place:] = float("nan")
    prefix = tuple((torch.randn(P, G, K, generator=g) * 2).to(dtype) for _ in range(2)) if P else None
    return [q, k, v, keys, values, places, prefix]


def expected(q, k, v, keys, values, places, prefix, window, scale):
    """Row by row in float64, one softmax over all keys that count."""
    out, (B, H, _), G = torch.empty_like(q, dtype=torch.float64), q.shape, k.shape[1]
    for b in range(B):
        for h in range(H):
            g = h // (H // G)
            own = [
                torch.cat((cache[b, g, :places[b]], new[b, g][None])).double()
                for cache, new in ((keys, k), (values, v))]
            all_k, all_v = [torch.cat((p[:, g].double(), o))
                            for p, o in zip(prefix, own, strict=True)] if prefix else own
            if window:
                all_k, all_v = all_k[-window:], all_v[-window:]
            out[b, h] = torch.softmax(all_k @ q[b, h].double() * scale, 0) @ all_v
    return out


def on_device(arguments):
    return [
        tuple(x.to(DEVICE)
              for x in a) if isinstance(a, tuple) else a if a is None else a.to(DEVICE)
        for a in arguments]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_float64(case, dtype):
    if dtype == torch.bfloat16 and DEVICE == "cpu":
        pytest.skip("Triton's interpreter multiplies bfloat16 wrongly")
    window = case[-1]
    arguments = given(*case[:-1], dtype)
    wanted = expected(*arguments, window, 0.1)
    moved = on_device(arguments)
    before = moved[3].clone(), moved[4].clone()
    got = in_triton.cached_attention(*moved, window=window, scale=0.1)
    assert got.dtype == dtype
    assert (got.double().cpu() - wanted).abs().max() < {
        torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}[dtype]
    rows = torch.arange(case[0], device=DEVICE)
    for old, cache, new in zip(before, moved[3:5], moved[1:3], strict=True):
        old[rows, :, moved[5]] = new
        assert torch.equal(cache.nan_to_num(7.0),
                           old.nan_to_num(7.0)), "the cache holds the new entry, and is otherwise as it was"


def test_inputs_need_not_be_contiguous():
    q, k, v, keys, values, places, prefix = given(3, 2, 3, 16, 20, 30, torch.float32)
    wanted = expected(q, k, v, keys, values, places, prefix, None, 0.25)
    both = torch.cat((k, v), 1)  # as of one projection for keys and values
    pairs = torch.stack(prefix, -1)
    q, both, pairs, keys, values, places = on_device([
        q.transpose(0, 1).contiguous(), both, pairs, keys, values, places])
    got = in_triton.cached_attention(q.transpose(0, 1), both[:, :2], both[:, 2:], keys, values, places,
                                     pairs.unbind(-1))
    assert (got.double().cpu() - wanted).abs().max() < 1e-5
    with pytest.raises(ValueError, match="contiguous"):
        in_triton.cached_attention(q.transpose(0, 1), both[:, :2], both[:, 2:], keys.transpose(1, 2), values,
                                   places)
    with pytest.raises(ValueError, match="float16"):
        in_triton.cached_attention(q.transpose(0, 1), both[:, :2].half(), both[:, 2:], keys, values, places)


def test_huge_scores_and_an_empty_batch():
    q, keys, values = torch.full((1, 1, 8), 1e4, device=DEVICE), torch.full(
        (1, 1, 3, 8), -1e4, device=DEVICE), torch.ones(1, 1, 3, 8, device=DEVICE)
    out = in_triton.cached_attention(q, q.clone(), torch.full_like(q, 5.0), keys, values,
                                     torch.tensor([2], device=DEVICE))
    assert torch.equal(out, torch.full_like(q, 5.0))
    out = in_triton.cached_attention(q[:0], q[:0], q[:0], keys, values,
                                     torch.tensor([], dtype=torch.int64, device=DEVICE))
    assert out.shape == (0, 1, 8)


@pytest.mark.slow
def test_the_engine_generates_the_same_through_it(monkeypatch):
    """Shared prefix, ragged suffixes, requests that come and go; the oracle recomputes every sequence with
    the plain kernels.
    """
    from test_engine import VARIANTS, make, one_by_one, prompts

    from redlite.inference.engine import Engine, Request
    model, wanted = make(VARIANTS["llama"]), prompts()[:4]
    answers = [one_by_one(model, p, 2 + i) for i, p in enumerate(wanted)]
    prefixes = []

    def through_triton(*arguments, cap=None, **options):
        assert cap is None  # Triton's attention has no cap
        prefixes.append(len(arguments[6][0]))
        return in_triton.cached_attention(*arguments, **options)
    monkeypatch.setattr(kernels, "cached_attention", through_triton)
    monkeypatch.setattr(kernels, "shared_prefix", lambda k, v, kept: (k, v))
    results = dict(Engine(model.to(DEVICE), 3).run([Request(p, 2 + i) for i, p in enumerate(wanted)]))
    assert [results[i].ids for i in range(len(wanted))] == answers
    assert set(prefixes) == {30}
