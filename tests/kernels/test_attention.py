"""Attention against plain softmax attention in float64 with autograd, in every implementation and dtype that
claims it.

A result may be off by twice the error of that same plain formula computed in the inputs' dtype, plus
`rounding`.
"""
import os
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported
from torch.utils.checkpoint import checkpoint

from redlite import kernels
from redlite.kernels import merge_attention, reference
from redlite.kernels.cpu import flash_attention

IMPLEMENTATIONS = {"reference": reference, "torch-flash": flash_attention}
if find_spec("triton"):
    from redlite.kernels.triton import attention as in_triton
    IMPLEMENTATIONS["triton"] = SimpleNamespace(
        attention=lambda *x, **named: on_gpu(*x, **named)) if torch.cuda.is_available() else in_triton


def on_gpu(*tensors, **named):
    """The Triton attention of CPU tensors, computed on the GPU; results come back, and gradients through the
    copies.
    """
    def moved(x):
        return x.cuda() if isinstance(x, torch.Tensor) else x

    return tuple(x.cpu()
                 for x in in_triton.attention(*map(moved, tensors), **{n: moved(x)
                                                                       for n, x in named.items()}))




def plain(q, k, v, q_lengths, k_lengths, causal=True, window=None, scale=None):
    """Softmax attention head by head and sequence by sequence, in the inputs' dtype; independent of kernels/.
    """
    (_, H, K), G = q.shape, k.shape[1]
    scale = 1 / K ** 0.5 if scale is None else scale
    outs, lses, q0, k0 = [], [], 0, 0
    for t, s in zip(q_lengths, k_lengths, strict=True):
        place, key = torch.arange(t)[:, None] + s - t, torch.arange(s)[None]
        seen = (key <= place) & (key > place -
                                 (window or s + t + 1)) if causal else torch.ones(t, s, dtype=torch.bool)
        for h in range(H):
            keys, values = k[k0:k0 + s, h * G // H], v[k0:k0 + s, h * G // H]
            scores = torch.where(seen, q[q0:q0 + t, h] @ keys.T * scale, -torch.inf)
            lowest = torch.full((t, 1), torch.finfo(q.dtype).min, dtype=q.dtype)
            top = torch.cat([scores, lowest], 1).amax(1, keepdim=True).detach()
            mass = (scores - top).exp()
            total = mass.sum(1, keepdim=True)
            any_seen = seen.any(1, keepdim=True)
            p = mass / torch.where(any_seen, total, 1)
            outs.append(p @ values)
            lses.append((top + torch.where(any_seen, total, 1).log())[:, 0])
        q0, k0 = q0 + t, k0 + s
    if not outs:
        return q.clone(), q.sum(-1)
    B = len(q_lengths)
    out = torch.cat([torch.stack(outs[b * H:(b + 1) * H], 1) for b in range(B)])
    lse = torch.cat([torch.stack(lses[b * H:(b + 1) * H], 1) for b in range(B)])
    return out, lse


def sees_nothing(q_lengths, k_lengths, causal=True, **_):
    """Bool [T]: the queries that see no key."""
    return torch.cat([
        torch.arange(t) < (t - s if causal else t * (s == 0))
        for t, s in zip(q_lengths, k_lengths, strict=True)] or [torch.zeros(0, dtype=torch.bool)])


def offsets(lengths, device="cpu"):
    return torch.tensor([0, *lengths], device=device).cumsum(0).int()


CASES = {  # name: (query lengths, key lengths or None for the same, H, G, K, arguments, size of q)
    "one sequence": ([67], None, 2, 2, 64, {}, 1),
    "packed, odd, one empty, one token": ([1, 5, 0, 35, 50], None, 3, 1, 64, {}, 1),
    "one token": ([1], None, 2, 1, 128, {}, 1),
    "smollm2's heads": ([9, 41], None, 9, 3, 64, {}, 1),
    "eight query heads a key head": ([21], None, 8, 1, 64, {}, 1),
    "head size 80": ([3, 37], None, 2, 1, 80, {}, 1),
    "head size 96": ([3, 37], None, 2, 1, 96, {}, 1),
    "head size 128": ([3, 67], None, 2, 1, 128, {}, 1),
    "more keys than queries": ([1, 7, 20, 40], [31, 7, 45, 75], 3, 1, 64, {}, 1),
    "more queries than keys": ([9, 5, 40], [4, 0, 17], 2, 1, 64, {}, 1),
    "shared prefix": ([23, 0, 40], [37, 3, 0], 2, 1, 64, dict(causal=False), 1),
    "window of one": ([40, 3], None, 2, 1, 64, dict(window=1), 1),
    "window": ([70, 3, 40], None, 2, 1, 64, dict(window=19), 1),
    "window wider than most": ([90, 3, 20], None, 2, 1, 64, dict(window=64), 1),
    "window over a cache": ([1, 40, 9], [50, 75, 4], 2, 1, 64, dict(window=13), 1),
    "own scale": ([33], None, 2, 1, 64, dict(scale=0.7), 1),
    "huge scores": ([50, 2], None, 2, 1, 64, {}, 300),
    "all empty": ([0, 0], None, 2, 1, 64, {}, 1),
    "no sequence": ([], None, 2, 1, 64, {}, 1),
}
DTYPES = {
    "reference": (torch.float32, torch.bfloat16, torch.float16),
    "torch-flash": (torch.float32, torch.bfloat16, torch.float16),
    "triton": (torch.float32, torch.float16, *([torch.bfloat16] if torch.cuda.is_available() else []))
}  # the interpreter's bfloat16 products are wrong

HALF_IN_INTERPRETER = ("smollm2's heads", "head size 80", "head size 128", "window over a cache"
                       )  # it is slow: float16 on these only


def inputs(case, dtype, seed=0):
    """q, k, v, the gradients of both results, and the arguments, of a case; the numbers are exact in `dtype`.
    """
    q_lengths, k_lengths, H, G, K, arguments, size = CASES[case]
    k_lengths = q_lengths if k_lengths is None else k_lengths
    generator = torch.Generator().manual_seed(seed)
    T, S = sum(q_lengths), sum(k_lengths)
    q, k, v, d_out = (torch.randn(shape, generator=generator).to(dtype)
                      for shape in ((T, H, K), (S, G, K), (S, G, K), (T, H, K)))
    d_lse = torch.randn(T, H, generator=generator)
    return (q * size).to(dtype), k, v, d_out, d_lse, q_lengths, k_lengths, arguments


def results(function, q, k, v, d_out, d_lse, dark):
    """out, lse, dq, dk, dv; the log-sum-exp of a row that sees nothing must be -inf, and takes no gradient.
    """
    q, k, v = (x.detach().clone().requires_grad_() for x in (q, k, v))
    out, lse = function(q, k, v)
    loss = (out * d_out.to(out.dtype)).sum() + (lse[~dark] * d_lse[~dark].to(lse.dtype)).sum()
    return [
        out.detach(),
        lse.detach(), *torch.autograd.grad(loss, (q, k, v), allow_unused=True, materialize_grads=True)]


def rounding(name, dtype, truth, q, k, v, d_out, scale=None, **_):
    """What the sums may lose to rounding beyond the plain formula's own loss.

    One rounding of the largest value; of the products dO·V, for dS = P (dO·V − dO·O) cancels to the last bit
    in softmax's own backward only; and of the scores in float32, for P = exp(score − log-sum-exp) is not
    normalised anew in a flash backward.
    """
    longest = {
        letter: x.double().norm(dim=-1).max()
        for letter, x in zip("qkvd", (q, k, v, d_out), strict=True)}
    scale = q.shape[2] ** -0.5 if scale is None else scale
    largest, single = truth.abs().max(), torch.finfo(torch.float32).eps
    if name == "lse":
        return single * largest
    products = {"dq": "dvk", "dk": "dvq"}.get(name)
    lost = torch.finfo(dtype).eps * (
        largest +
        (scale * longest[products[0]] * longest[products[1]] * longest[products[2]] if products else 0))
    return lost + single * scale * longest["q"] * longest["k"] * largest


def check(function, case, dtype, device="cpu"):
    q, k, v, d_out, d_lse, q_lengths, k_lengths, arguments = inputs(case, dtype)
    dark = sees_nothing(q_lengths, k_lengths, **arguments)
    exact = results(lambda *x: plain(*x, q_lengths, k_lengths, **arguments), *(x.double() for x in (q, k, v)),
                    d_out, d_lse, dark)
    same = results(lambda *x: plain(*x, q_lengths, k_lengths, **arguments), q, k, v, d_out, d_lse, dark)

    def call(*x):
        out, lse = function(*(y.to(device) for y in x), offsets(q_lengths, device),
                            offsets(k_lengths, device), **arguments)
        assert out.dtype == dtype and lse.dtype == torch.float32
        return out.cpu(), lse.cpu()

    got = results(call, q, k, v, d_out, d_lse, dark)
    assert torch.all(got[0][dark] == 0) and torch.all(got[1][dark] == -torch.inf)
    assert not torch.any(got[1][~dark].isinf())
    for name, ours, theirs, truth in zip(("out", "lse", "dq", "dk", "dv"), got, same, exact, strict=True):
        if name == "lse":
            ours, theirs, truth = (x[~dark] for x in (ours, theirs, truth))
        assert ours.shape == truth.shape and not ours.isnan().any(), name
        if not truth.numel():
            continue
        error, allowed = (ours.double() - truth).abs().max(), 2 * (theirs.double() - truth).abs().max()
        more = rounding(name, dtype, truth, q, k, v, d_out, **arguments)
        assert error <= allowed + more, f"{name}: error {error:.2e}, allowed {allowed:.2e} + {more:.2e}"


@pytest.mark.first(8)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_matches_float64(name, case):
    for dtype in DTYPES[name]:
        if name == "triton" and not torch.cuda.is_available(
        ) and dtype == torch.float16 and case not in HALF_IN_INTERPRETER:
            continue
        check(IMPLEMENTATIONS[name].attention, case, dtype)


@pytest.mark.slow
def test_masked_pieces_longer_than_a_block_of_rows():
    """A window and a cache, with more queries than the CPU path puts into one piece."""
    CASES["long"] = ([600, 3], [700, 3], 2, 1, 8, dict(window=290), 1)
    CASES["long, no window"] = ([600, 3], [700, 3], 2, 1, 8, {}, 1)
    try:
        check(flash_attention.attention, "long", torch.float32)
        check(flash_attention.attention, "long, no window", torch.float32)
    finally:
        del CASES["long"], CASES["long, no window"]


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_strided_inputs_and_gradients(name, order):
    """Queries, keys and values as slices of one projection, in any memory order; gradients likewise, and with
    stride 0.
    """
    shape, generator = (40, 4, 64), torch.Generator().manual_seed(1)
    back = tuple(order.index(i) for i in range(3))
    fused, d_out = (torch.randn([(40, n, 64)[i]
                                 for i in order], generator=generator).permute(back)
                    for n in (4, 2))
    assert fused.shape == shape
    grads = []
    for function, dtype in ((IMPLEMENTATIONS[name].attention, torch.float32), (reference.attention,
                                                                               torch.float64)):
        x = fused.to(dtype).detach().requires_grad_()
        assert x.stride() == fused.stride()
        out = function(x[:, :2], x[:, 2:3], x[:, 3:], offsets([13, 27]))[0]
        grads.append([g for d in (d_out.to(dtype), torch.ones((), dtype=dtype).expand(out.shape))
                      for g in torch.autograd.grad(out, x, d, retain_graph=True)])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_activation_checkpointing_changes_nothing(name):
    q, k, v = (torch.randn(20, h, 64, generator=torch.Generator().manual_seed(h), requires_grad=True)
               for h in (2, 1, 1))

    def loss(*x):
        out, lse = IMPLEMENTATIONS[name].attention(*x, offsets([13, 7]))
        return out.square().sum() + lse.square().sum()

    kept, recomputed = loss(q, k, v), checkpoint(loss, q, k, v, use_reentrant=False)
    assert torch.equal(kept, recomputed)
    for a, b in zip(torch.autograd.grad(kept, (q, k, v)), torch.autograd.grad(recomputed, (q, k, v)),
                    strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_prefix_and_suffix_merge_to_the_whole(name):
    """Shared keys apart, each request's own apart, merged: as attention over both; values and gradients."""
    attention, P, lengths = IMPLEMENTATIONS[name].attention, 29, [4, 0, 17]
    generator = torch.Generator().manual_seed(2)
    pk, pv, q, k, v, d = (torch.randn(n, h, 64, generator=generator)
                          for n, h in ((P, 1), (P, 1), (21, 2), (21, 1), (21, 1), (21, 2)))
    whole_k = [torch.cat([pk, x]) for x in k.split(lengths)]
    whole_v = [torch.cat([pv, x]) for x in v.split(lengths)]
    leaves = [x.double().requires_grad_() for x in (q, torch.cat(whole_k), torch.cat(whole_v))]
    truth, truth_lse = plain(*leaves, lengths, [P + n for n in lengths])
    d_truth = torch.autograd.grad((truth * d).sum(), leaves)
    keep = torch.cat([torch.arange(P + n) >= P for n in lengths])

    leaves = [x.clone().requires_grad_() for x in (q, k, v, pk, pv)]
    shared = attention(leaves[0], leaves[3], leaves[4], offsets([21]), offsets([P]), causal=False)
    out, lse = merge_attention(*shared, *attention(*leaves[:3], offsets(lengths)))
    torch.testing.assert_close(out.double(), truth, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse.double(), truth_lse, rtol=1e-5, atol=1e-5)
    dq, dk, dv, dpk, dpv = torch.autograd.grad((out * d).sum(), leaves)
    torch.testing.assert_close(dq.double(), d_truth[0], rtol=1e-4, atol=1e-5)
    for own, prefix, both in ((dk, dpk, d_truth[1]), (dv, dpv, d_truth[2])):
        torch.testing.assert_close(own.double(), both[keep], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(prefix.double(), both[~keep].view(3, P, 1, 64).sum(0), rtol=1e-4,
                                   atol=1e-5)


def test_merge_of_two_empty_key_sets_is_zero():
    zero, nothing = torch.zeros(2, 1, 4, requires_grad=True), torch.full((2, 1), -torch.inf,
                                                                         requires_grad=True)
    out, lse = merge_attention(zero, nothing, zero, nothing)
    (out.sum() + lse.sum()).backward()
    assert torch.equal(out, torch.zeros(2, 1, 4)) and torch.equal(
        lse, nothing) and not zero.grad.isnan().any() and not nothing.grad.isnan().any()


@pytest.mark.slow
def test_gradcheck():
    """Both results' gradients by finite differences, in float64."""
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(n, h, 4, dtype=torch.float64, generator=generator, requires_grad=True)
               for n, h in ((6, 4), (9, 2), (9, 2)))
    for name, module in IMPLEMENTATIONS.items():
        if name != "triton":  # which has no float64
            attend = partial(module.attention, q_offsets=offsets([2, 4]), k_offsets=offsets([2, 7]), window=3)
            assert torch.autograd.gradcheck(attend, (q, k, v))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_arguments_that_do_not_fit_are_refused(name):
    attention, q, k, ends = IMPLEMENTATIONS[name].attention, torch.zeros(4, 4,
                                                                         64), torch.zeros(4, 2,
                                                                                          64), offsets([4])
    for arguments, message in [(dict(q=torch.zeros(4, 3, 64)), "H a multiple of G"),
                               (dict(v=torch.zeros(4, 2, 32)), "q \\[T, H, K\\]"),
                               (dict(q=q.half()), "one dtype"),
                               (dict(k=k[:3], v=k[:3]), "as many keys as queries"),
                               (dict(k_offsets=offsets([2, 2])), "equally many"),
                               (dict(window=0), "at least 1"),
                               (dict(window=3, causal=False), "goes with causal=True"),
                               (dict(scale=0.0), "positive")]:
        with pytest.raises(ValueError, match=message):
            attention(
                **{
                    "q_THK": arguments.pop("q", q), "k_SGK": arguments.pop("k", k), "v_SGK": arguments.pop(
                        "v", k), "q_offsets": ends, **arguments})


def test_the_cpu_serves_by_torch_flash_and_says_why_when_it_cannot(monkeypatch):
    if kernels.FORCED is None:
        assert (kernels.implementation("attention", "cpu"), kernels.why("attention",
                                                                        "cpu")) == ("torch-flash", "")
    monkeypatch.delattr(torch, "_scaled_dot_product_flash_attention_for_cpu")
    assert "lacks the CPU flash kernel" in flash_attention.unusable()
    monkeypatch.setattr(torch, "_scaled_dot_product_flash_attention_for_cpu",
                        lambda q, k, v, *a, **b: (torch.zeros_like(q), q[..., 0]), raising=False)
    assert "does not compute what redlite needs" in flash_attention.unusable()
    monkeypatch.setattr(kernels, "FORCED", None)
    kernels._choose.cache_clear(), kernels.unusable.cache_clear()
    try:
        assert kernels.implementation("attention", "cpu") == "reference"
        assert "does not compute" in kernels.why("attention", "cpu")
    finally:
        monkeypatch.undo()
        kernels._choose.cache_clear(), kernels.unusable.cache_clear()
