"""token_nll in every implementation, against autograd of the plain formula in float64."""
import os
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported

from redlite.kernels.cpu import library
from redlite.kernels.cpu import token_nll as in_c
from redlite.training import prove

FOUND, MISSING = prove.available()
BY_KIND = {"reference": None, "c": None, "c portable": None, "triton": None}
for _x in FOUND:
    BY_KIND["c portable" if _x.name == "c (portable)" else _x.name.split()[0]] = _x
HALVES = [torch.float16, torch.bfloat16]
DTYPES = [torch.float32, *HALVES]


@pytest.fixture(params=BY_KIND)
def implementation(request):
    if BY_KIND[request.param] is None:
        pytest.skip("; ".join(MISSING) or f"{request.param} is the same as c here")
    return BY_KIND[request.param]


def need(implementation, dtype):
    if dtype not in implementation.dtypes:
        pytest.skip("Triton's interpreter multiplies bfloat16 wrongly")


def inputs(N, D, V, dtype, seed=0, scale=1.0):
    """hidden, weight in `dtype`, targets with masked rows, coefficients of both signs with zeros; at least
    one row counts.
    """
    g = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(N, D,
                                 generator=g).to(dtype), (torch.randn(V, D, generator=g) * scale).to(dtype)
    targets = torch.randint(V, (N,), generator=g)
    coefficient = torch.randn(N, generator=g)
    targets[1::3] = -100
    coefficient[3::7] = 0
    return hidden, weight, targets, coefficient


def plain(hidden, weight, targets):
    return cross_entropy(hidden @ weight.T, targets, ignore_index=-100, reduction="none")


def run(function, hidden, weight, targets, coefficient, device="cpu", dtype=None):
    """(nll, dH, dW) in float64."""
    hidden, weight = (x.to(device, dtype or x.dtype, copy=True).requires_grad_() for x in (hidden, weight))
    nll = function(hidden, weight, targets.to(device))
    nll.backward(coefficient.to(device, nll.dtype))
    if function is not plain:
        assert nll.dtype == torch.float32
        assert hidden.grad.dtype == hidden.dtype and weight.grad.dtype == weight.dtype
    return [x.detach().double().cpu() for x in (nll, hidden.grad, weight.grad)]


def distance(a, b):
    return float((a - b).norm())


def assert_near_float64(implementation, given, factor=2.0):
    """Error at most `factor` × that of the plain formula in the same precision; 1e-7 of the norm is for sums
    of a few terms.
    """
    exact = run(plain, *given, dtype=torch.float64)
    own = run(plain, *given)
    got = run(implementation.token_nll, *given, device=implementation.device)
    for name, x, y, z in zip(("nll", "hidden", "weight"), got, own, exact, strict=True):
        assert torch.isfinite(x).all(), name
        assert distance(x, z) <= factor * distance(y, z) + 1e-7 * float(z.norm()), name
    masked, unused = given[2] == -100, (given[2] == -100) | (given[3] == 0)
    assert (got[0][masked] == 0).all() and (got[1][unused] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=prove.NAMES.get)
@pytest.mark.parametrize("shape", [(47, 31, 123), (1, 31, 123), (2, 1, 3), (70, 40, 300), (9, 8, 8)], ids=str)
def test_gradients_are_as_near_to_float64_as_the_plain_formulas(implementation, dtype, shape):
    need(implementation, dtype)
    assert_near_float64(implementation, inputs(*shape, dtype, scale=0.5))


@pytest.mark.parametrize("shape", [(530, 12, 801), (1100, 30, 70), (90, 1100, 400)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=prove.NAMES.get)
def test_several_runs_blocks_and_slices_in_c(dtype, shape):
    for kind in ("c", "c portable"):
        if BY_KIND[kind] is not None:
            assert_near_float64(BY_KIND[kind], inputs(*shape, dtype, scale=shape[1] ** -0.5))


def test_wide(implementation):
    """Widths and vocabularies at the ends of the promised range."""
    assert_near_float64(implementation, inputs(4, 8192, 50, torch.float32, scale=0.02))
    if not implementation.name.startswith("triton (interpreter"):  # minutes there
        assert_near_float64(implementation, inputs(4, 3, 256_000, torch.float32))


def test_a_single_entry_has_probability_one(implementation):
    nll, d_hidden, d_weight = run(implementation.token_nll, *inputs(5, 7, 1, torch.float32),
                                  device=implementation.device)
    assert (nll == 0).all() and (d_hidden == 0).all() and (d_weight == 0).all()


@pytest.mark.parametrize("rows", [0, 5])
def test_no_row_counts(implementation, rows):
    hidden, weight, targets, coefficient = inputs(rows, 7, 11, torch.float32)
    nll, d_hidden, d_weight = run(implementation.token_nll, hidden, weight, torch.full_like(targets, -100),
                                  coefficient, device=implementation.device)
    assert nll.shape == (rows,) and (nll == 0).all()
    assert d_hidden.shape == (rows, 7) and (d_hidden
                                            == 0).all() and d_weight.shape == (11, 7) and (d_weight
                                                                                           == 0).all()


def test_rows_that_do_not_count_are_in_no_product(implementation):
    """NaN in masked rows, and in rows of coefficient 0, reaches nothing: 0 · NaN would be NaN."""
    hidden, weight, targets, coefficient = inputs(30, 7, 11, torch.float32)
    unused = (targets == -100) | (coefficient == 0)
    assert (targets[unused] != -100).any()
    clean = run(implementation.token_nll, hidden, weight, targets, coefficient, device=implementation.device)
    hidden[unused] = float("nan")
    nll, d_hidden, d_weight = run(implementation.token_nll, hidden, weight, targets, coefficient,
                                  device=implementation.device)
    assert torch.equal(d_hidden, clean[1]) and torch.equal(d_weight, clean[2])
    assert torch.equal(nll[~unused], clean[0][~unused]) and (nll[targets == -100] == 0).all()


def test_nan_shows(implementation):
    """A NaN in a row that counts, or in its coefficient, is not lost in a maximum or a comparison."""
    hidden, weight, targets, coefficient = inputs(6, 7, 40, torch.float32)
    hidden[0, 3] = float("nan")
    nll, d_hidden, d_weight = run(implementation.token_nll, hidden, weight, targets, coefficient,
                                  device=implementation.device)
    assert nll[0].isnan() and d_hidden[0].isnan().all() and d_weight.isnan().all() and torch.isfinite(
        nll[1:]).all()
    hidden[0, 3], coefficient[0] = 0.0, float("nan")
    _, d_hidden, d_weight = run(implementation.token_nll, hidden, weight, targets, coefficient,
                                device=implementation.device)
    assert d_hidden[0].isnan().all() and d_weight.isnan().any() and torch.isfinite(d_hidden[1:]).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=prove.NAMES.get)
def test_logits_of_ten_thousand(implementation, dtype):
    """Whole numbers, so that the logits are exact and reach ±1e4: nll and gradients are those of float64."""
    need(implementation, dtype)
    g = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randint(-1, 2, (n, 4), generator=g).to(dtype) * 50 for n in (40, 60))
    hidden[:2], weight[:2] = 50, torch.tensor([[50], [-50]])
    targets, coefficient = torch.randint(60, (40,), generator=g), torch.randn(40, generator=g)
    targets[:4] = torch.tensor([0, 1, -100, 0])
    exact = run(plain, hidden, weight, targets, coefficient, dtype=torch.float64)
    assert exact[0][0] < 10 and exact[0][1] > 19_990
    got = run(implementation.token_nll, hidden, weight, targets, coefficient, device=implementation.device)
    assert torch.allclose(got[0], exact[0], rtol=1e-6, atol=1e-6)
    unit = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    for x, z in zip(got[1:], exact[1:], strict=False):
        assert distance(x, z) <= unit * float(z.norm())


def test_probabilities_next_to_one(implementation):
    """Targets with 1 − p from 1e-3 to 1e-12: the NLL and the gradient keep their digits, where p − 1 has none
    left in float32.

    The reference and F.cross_entropy lose them; so does any form that subtracts from a sum over all entries.
    """
    if implementation.name == "reference":
        pytest.skip("the definition forms p − 1")
    x, coefficient = torch.tensor([7.0, 14.0, 21.0, 28.0]), torch.tensor([1.0, -2.0, 3.0, -4.0])
    weight = torch.tensor([[1.0], [0.0], [0.0], [0.0]])  # the target's logit is x, the others' are 0
    nll, d_hidden, _ = run(implementation.token_nll, x[:, None], weight, torch.zeros(4, dtype=torch.int64),
                           coefficient, device=implementation.device)
    others = 3 * torch.exp(-x.double())
    assert others[3] < 3e-12
    assert torch.allclose(nll, torch.log1p(others), rtol=5e-6, atol=0)
    assert torch.allclose(d_hidden[:, 0], -coefficient.double() * others / (1 + others), rtol=5e-6, atol=0)


def test_small_coefficients_in_float16(implementation):
    """1e-6 · p lies below float16's smallest number, 6e-8, for most p: it must not be rounded before the sum
    over rows.
    """
    g = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(64, 4, generator=g) * 1000).half(), (torch.randn(200, 4, generator=g)
                                                                       / 4000).half()
    given = hidden, weight, torch.randint(200, (64,), generator=g), torch.full((64,), 1e-6)
    exact = run(plain, *given, dtype=torch.float64)
    got = run(implementation.token_nll, *given, device=implementation.device)
    assert distance(got[2], exact[2]) <= 2e-3 * float(exact[2].norm())


@pytest.fixture
def small_tiles(implementation, monkeypatch):
    """Blocks so small that one call has several of rows and of vocabulary entries; returns the bytes that one
    may take.
    """
    nbytes = 16 * 40 * 4
    if implementation.name.startswith("c "):
        monkeypatch.setattr(in_c, "TILE_ROWS", 16)
        monkeypatch.setattr(in_c, "TILE_BYTES", nbytes)
    elif implementation.name.startswith("triton"):
        from redlite.kernels.triton import token_nll as in_triton
        monkeypatch.setattr(in_triton, "STATISTICS_ROWS", 32)
        monkeypatch.setattr(in_triton, "GRADIENT_ROWS", 16)
        monkeypatch.setattr(in_triton, "GRADIENT_BYTES", nbytes)
    else:
        pytest.skip("the reference has blocks of rows only, of a fixed number")
    return nbytes


@pytest.mark.parametrize("dtype", DTYPES, ids=prove.NAMES.get)
@pytest.mark.parametrize("shape", [(90, 9, 123), (75, 9, 24), (3, 9, 123)], ids=str)
def test_blocks_add_up(implementation, small_tiles, dtype, shape):
    """Many rows for the vocabulary (dW summed over blocks in float32), and few."""
    need(implementation, dtype)
    assert_near_float64(implementation, inputs(*shape, dtype))


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any torch operation returns."""

    nbytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self.nbytes = max(self.nbytes, x.nbytes)
        return out


def test_memory_does_not_grow_with_the_rows(implementation, small_tiles):
    """No tensor is larger than a block, the inputs or the gradients; [N, V] would be."""
    N, D, V = 80, 9, 500
    hidden, weight, targets, coefficient = (x.to(implementation.device)
                                            for x in inputs(N, D, V, torch.float32))
    hidden.requires_grad_(), weight.requires_grad_()
    with Largest() as largest:
        implementation.token_nll(hidden, weight, targets).backward(coefficient)
    bound = max(small_tiles, V * D * 4, N * D * 4)
    assert 0 < largest.nbytes <= bound < N * V * 4 / 8


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_only_the_gradients_asked_for(implementation, frozen):
    hidden, weight, targets, coefficient = inputs(20, 7, 33, torch.float32)
    both = run(implementation.token_nll, hidden, weight, targets, coefficient, device=implementation.device)
    hidden, weight, targets, coefficient = (x.to(implementation.device)
                                            for x in (hidden, weight, targets, coefficient))
    (hidden if frozen == "weight" else weight).requires_grad_()
    implementation.token_nll(hidden, weight, targets).backward(coefficient)
    assert (hidden.grad is None) == (frozen == "hidden") and (weight.grad is None) == (frozen == "weight")
    got, expected = (weight.grad, both[2]) if frozen == "hidden" else (hidden.grad, both[1])
    assert torch.equal(got.double().cpu(), expected)


def test_any_layout_and_narrow_targets(implementation):
    hidden, weight, targets, coefficient = (x.to(implementation.device)
                                            for x in inputs(20, 8, 33, torch.float32))
    expected = run(implementation.token_nll, hidden, weight, targets, coefficient,
                   device=implementation.device)
    every_other = torch.empty(20, 16, device=hidden.device)[:, ::2].copy_(hidden).requires_grad_()
    turned = weight.T.contiguous().T.requires_grad_()
    assert not every_other.is_contiguous() and not turned.is_contiguous()
    nll = implementation.token_nll(every_other, turned, targets.int())
    nll.backward(coefficient)
    for x, y in zip((nll.detach(), every_other.grad, turned.grad), expected, strict=True):
        assert torch.allclose(x.double().cpu(), y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad, message", [(11, "0 to 10"), (-1, "0 to 10"), (-101, "0 to 10")])
def test_targets_outside_the_vocabulary(implementation, bad, message):
    hidden, weight, targets, _ = (x.to(implementation.device) for x in inputs(5, 7, 11, torch.float32))
    targets[2] = bad
    with pytest.raises(ValueError, match=message):
        implementation.token_nll(hidden, weight, targets)


def test_shapes_that_do_not_fit(implementation):
    hidden, weight, targets, _ = (x.to(implementation.device) for x in inputs(5, 7, 11, torch.float32))
    for arguments in ((hidden[:4], weight, targets), (hidden, weight[:, :6], targets),
                      (hidden[None], weight, targets), (hidden, weight, targets.float())):
        with pytest.raises(ValueError, match="token_nll wants"):
            implementation.token_nll(*arguments)


def call(function, hidden, weight, first, *rows, d_weight=None):
    """A function of token_nll.c over the entries of `weight`, which begin with number `first`."""
    in_c._pass(getattr(library.library(), function), hidden, weight, first, rows, None, d_weight)


needs_c = pytest.mark.skipif(bool(library.missing()), reason=library.missing())


@needs_c
@pytest.mark.parametrize("isa", library.isas())
def test_the_c_exponential(isa):
    """Two units in the last place of float64's over the whole range.

    A row of one number, 1, has the weights as its logits; with maximum 0, sum 1 and scale 1 the weights'
    gradient is e^logit.
    """
    x = torch.cat((torch.linspace(-87.2, 0, 40_000), -torch.logspace(-30, 1, 2_000),
                   torch.tensor([0.0, -87.29, 1e-3, 3.0, 88.0]))).contiguous()
    special = torch.tensor([-87.4, -1e4, -3e38, float("-inf"), float("nan")])
    logits, zero, one = torch.cat((x, special))[:, None].contiguous(), torch.zeros(1), torch.ones(1)
    found, nowhere = torch.empty_like(logits), torch.tensor([-1])
    with library.using(isa):
        call("rl_nll_gradient", one[:, None], logits, 0, nowhere, zero, one, None, one, d_weight=found)
    exact = x.double().exp()
    assert float(((found[:len(x), 0].double() - exact).abs() / exact).max()) <= 2 * 2.0 ** -23
    assert (found[-5:-1] == 0).all() and found[-1].isnan().all()


@needs_c
@pytest.mark.parametrize("isa", library.isas())
@pytest.mark.parametrize("columns", [1, 7, 16, 31, 333])
def test_the_passes_of_every_instruction_set(isa, columns):
    """Statistics over two runs and the gradient of the second, against float64's log-sum-exp and softmax.

    With the identity as hidden rows the weights are the logits, and their gradient is that of the logits.
    """
    logits = torch.randn(5, 2 * columns, generator=torch.Generator().manual_seed(columns)) * 20
    targets = torch.tensor([0, columns, 2 * columns - 1, columns - 1, columns + columns // 2])
    coefficient = torch.tensor([1.0, -0.5, 2.0, 0.25, -1.0])
    others = logits.double().scatter(1, targets[:, None], -torch.inf)
    maximum, total, target = torch.full((5,), -3e38), torch.zeros(5), torch.zeros(5)
    weight, found = logits.T.contiguous(), torch.empty(columns, 5)
    with library.using(isa):
        for start in (0, columns):
            call("rl_nll_statistics", torch.eye(5), weight[start:start + columns], start, targets, maximum,
                 total, target, None)
        assert torch.equal(target, logits.gather(1, targets[:, None])[:, 0])
        log_sum = maximum.double() + total.double().log()
        assert torch.allclose(log_sum, others.logsumexp(1), rtol=3e-7, atol=3e-7)
        chance = logits.double().softmax(1).gather(1, targets[:, None])[:, 0]
        scale = (coefficient * (1 - chance)).float()
        call("rl_nll_gradient", torch.eye(5), weight[columns:], columns, targets, maximum, total, None, scale,
             d_weight=found)
    onehot = torch.nn.functional.one_hot(targets, 2 * columns)
    wanted = coefficient[:, None].double() * (logits.double().softmax(1) - onehot)
    assert torch.allclose(found.T.double(), wanted[:, columns:], rtol=2e-6, atol=1e-7)


@needs_c
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_and_wide_sets_change_nothing(dtype):
    """Over several runs of entries and blocks of rows. Bfloat16's sets differ by the order of their sums."""
    given, before, results = inputs(1300, 40, 1700, dtype, scale=0.2), torch.get_num_threads(), []
    sets = [isa for isa in library.isas() if isa != "portable" and dtype == torch.float32]
    try:
        for isa, threads in [(isa, 2) for isa in sets] + [(library.isa(), n) for n in (1, 3, 7)]:
            torch.set_num_threads(threads)
            with library.using(isa):
                results.append(run(in_c.token_nll, *given))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for result in results[1:] for x, y in zip(result, results[0], strict=True))


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from redlite.kernels.triton import token_nll as k
tile, counts = dict(BM=128, BN=256, BK=64), dict(num_warps=8, num_stages=3)
pointers = dict.fromkeys(("hidden", "weight", "a", "b"), "*bf16")
pointers |= dict.fromkeys(("rows", "targets", "b_rows"), "*i64")
pointers |= dict.fromkeys(("maximum", "total", "target", "scale"), "*fp32")
for function, out in ((k._statistics, None), (k._gradient, "*bf16"), (k._product, "*fp32")):
    strides = dict.fromkeys(("h_column", "w_column", "a_column", "b_column"), 1)
    constants = {**tile, **strides, "DOT": k.tl.bfloat16, "ADD": True, "GATHER": True}
    constants = {n: v for n, v in constants.items() if n in function.arg_names}
    signature = {n: pointers.get(n, "i32") for n in function.arg_names} | {"out": out}
    signature |= dict.fromkeys(constants, "constexpr")
    signature = {n: signature[n] for n in function.arg_names}
    source = ASTSource(function, signature, {(function.arg_names.index(n),): v for n, v in constants.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=counts)
    assert compiled.metadata.shared <= 227 * 1024, compiled.metadata.shared
    print(function.__name__, "wgmma" in compiled.asm["ptx"])
"""


@pytest.mark.slow
def test_triton_compiles_for_the_h100():
    """With the block sizes that `_tiles` gives there: fits its shared memory, and uses its matrix units.
    Needs no GPU.
    """
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", COMPILE], env=environment,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["_statistics True", "_gradient True", "_product True"]
