"""The operations of training on CPUs against plain PyTorch in float64, in every instruction set here."""
import math

import pytest
import torch

from redlite import kernels
from redlite.kernels import reference
from redlite.kernels.cpu import elementwise, library, optimizer
from redlite.training import prove_operations
from redlite.training.prove_operations import cases, textbook_adamw

ISAS = library.isas()
needs_c = pytest.mark.skipif(not ISAS, reason="needs the C library")
UPDATE = kernels.Update(5, 3e-3, 0.25, (0.9, 0.95), 1e-6, 0.99)


@needs_c
def test_the_proof_holds_and_notices_a_wrong_kernel(monkeypatch):
    rows = prove_operations.check_operations()
    assert [row for row in rows if not row["ok"]] == []
    assert {row["operation"] for row in rows} == {"rms_norm", "rotary", "gated", "adamw"}
    monkeypatch.setattr(elementwise, "rotary", lambda x, cos, sin: reference.rotary(x, cos, -sin))
    wrong = {row["operation"] for row in prove_operations.check_operations() if not row["ok"]}
    assert wrong == {"rotary"}


def gradients(function, inputs, count, dtype):
    taken = [x.to(dtype, copy=True).requires_grad_(i < count) for i, x in enumerate(inputs)]
    y = function(*taken)
    upstream = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).reshape(y.shape).to(dtype)
    return [y.detach(), *torch.autograd.grad(y, taken[:count], upstream)]


@needs_c
@pytest.mark.parametrize("operation", ["rms_norm", "rotary", "gated"])
def test_wide_sets_agree_to_the_last_bit_and_with_any_number_of_threads(operation):
    inputs, count, _, c = cases()[operation]
    for dtype in (torch.float32, torch.bfloat16):
        found = {}
        for isa in [isa for isa in ISAS if isa != "portable"]:
            with library.using(isa):
                found[isa] = gradients(c, inputs, count, dtype)
        before = torch.get_num_threads()
        torch.set_num_threads(3)
        found["three threads"] = gradients(c, inputs, count, dtype)
        torch.set_num_threads(before)
        first, *others = found.values()
        for other in others:
            assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@needs_c
def test_extreme_gates_have_the_limits_of_silu():
    gate = torch.tensor([[-1e4, -100.0, -88.5, 0.0, 88.5, 1e4, math.inf]], requires_grad=True)
    up = torch.full_like(gate, 2.0, requires_grad=True)
    y = elementwise.gated("silu", gate, up)
    assert y.detach()[0, 3:6].tolist() == [0.0, 177.0, 2e4] and y.detach()[0, :3].abs().max() < 1e-30
    d_gate, d_up = torch.autograd.grad(y[:, :6].sum(), (gate, up))
    assert torch.isfinite(d_gate[0, :6]).all() and torch.isfinite(d_up[0, :6]).all()
    assert d_gate[0, 3:6].tolist() == [1.0, 2.0, 2.0] and d_up[0, 3:6].tolist() == [0.0, 88.5, 1e4]


@needs_c
def test_a_frozen_weight_has_no_gradient_and_mixed_dtypes_take_the_reference():
    x, weight = torch.randn(5, 19, requires_grad=True), torch.ones(19)
    y = elementwise.rms_norm(x, weight, 1e-5)
    y.sum().backward()
    assert x.grad is not None and weight.grad is None
    mixed = elementwise.rms_norm(x.detach().bfloat16(), weight, 1e-5)
    assert torch.equal(mixed, reference.rms_norm(x.detach().bfloat16(), weight, 1e-5))


@needs_c
def test_part_of_a_head_is_rotated_and_the_rest_is_copied():
    x = torch.randn(7, 2, 20, dtype=torch.float64)
    angle = torch.randn(7, 3, dtype=torch.float64).repeat(1, 2)
    got = elementwise.rotary(x.float(), angle.cos().float(), angle.sin().float())
    assert torch.allclose(got.double(), reference.rotary(x, angle.cos(), angle.sin()), atol=1e-6)
    assert torch.equal(got[..., 6:], x.float()[..., 6:])


def step(function, state, gradient, seed=0, update=UPDATE):
    out = [x.clone() for x in state]
    function(*out, gradient, update, torch.Generator().manual_seed(seed))
    return out


def some_state(count, dtype):
    generator = torch.Generator().manual_seed(1)
    w, m, v, g = (torch.randn(count, generator=generator) for _ in range(4))
    return [w.to(dtype), (m / 10).to(dtype), (v.square() / 10).to(dtype)], g


@needs_c
@pytest.mark.parametrize("count", [1, 15, 40_003])
@pytest.mark.parametrize("gradient_dtype", [torch.float32, torch.bfloat16])
def test_float32_adamw_is_the_textbooks_in_every_set(count, gradient_dtype):
    state, gradient = some_state(count, torch.float32)
    gradient = gradient.to(gradient_dtype)
    exact = textbook_adamw(*(x.double() for x in (*state, gradient)), UPDATE)
    found = {}
    for isa in ISAS:
        with library.using(isa):
            found[isa] = step(optimizer.adamw, state, gradient)
        for got, expected in zip(found[isa], exact, strict=True):
            assert torch.allclose(got.double(), expected, rtol=1e-6, atol=1e-7)
    wide = [found[isa] for isa in ISAS if isa != "portable"]
    assert all(torch.equal(a, b) for other in wide[1:] for a, b in zip(wide[0], other, strict=True))


@needs_c
def test_bfloat16_adamw_rounds_without_bias_and_the_three_roundings_are_independent():
    count = 400_000
    state = [torch.full((count,), value).bfloat16() for value in (0.7, 0.013, 0.0002)]
    gradient = torch.full((count,), 0.0317)
    got = step(optimizer.adamw, state, gradient)
    ups = []
    for after, before, exact in zip(got, state, textbook_adamw(*(x[:1].double() for x in state),
                                                              gradient[:1].double(), UPDATE), strict=True):
        low, high = sorted(set(after.tolist()))
        assert low <= float(exact) <= high and high - low == 2.0 ** (math.floor(math.log2(low)) - 7)
        share = (float(exact) - low) / (high - low)
        up = (after == high).double()
        assert abs(float(up.mean()) - share) < 5 * math.sqrt(share * (1 - share) / count) + 2e-5
        ups.append(up)
        assert not torch.equal(after, before)
    correlation = torch.corrcoef(torch.stack([*ups, ups[0].roll(1)])) - torch.eye(4)
    assert correlation.abs().max() < 5 / math.sqrt(count)


@needs_c
def test_bfloat16_adamw_depends_on_the_generator_and_on_nothing_else():
    state, gradient = some_state(70_001, torch.bfloat16)
    first = step(optimizer.adamw, state, gradient)
    for isa in ISAS[:-1]:
        with library.using(isa):
            again = step(optimizer.adamw, state, gradient)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = step(optimizer.adamw, state, gradient, seed=1)
    assert 0.2 < float((first[0] != other[0]).double().mean()) < 0.8


@needs_c
def test_adamw_refuses_a_gradient_of_another_size():
    state, gradient = some_state(8, torch.float32)
    with pytest.raises(ValueError, match="one size"):
        optimizer.adamw(*state, gradient[:7], UPDATE, torch.Generator())


@needs_c
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 16_384, 50_021])
def test_the_sum_of_squares_is_float64s_in_every_set(count, dtype):
    x = (torch.randn(count, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    exact = float(x.double().square().sum())
    for isa in ISAS:
        with library.using(isa):
            assert float(optimizer.square_sum(x)) == pytest.approx(exact, rel=1e-6)
    x[0] = float("nan")
    assert math.isnan(float(optimizer.square_sum(x)))
    assert float(optimizer.square_sum(torch.tensor([1e30, 0.0]))) == math.inf
