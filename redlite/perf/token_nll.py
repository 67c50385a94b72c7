"""Times and weighs token_nll against F.cross_entropy over full logits: forward and backward, in turns."""
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from redlite import kernels

SHAPE = 2048, 576, 49152  # tokens, width and vocabulary of SmolLM2-135M's head


Inputs = tuple[Tensor, Tensor, Tensor, Tensor]    # hidden, weight, targets, coefficients


def _full_logits(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(hidden @ weight.T, targets, ignore_index=-100, reduction="none")


FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "token_nll": kernels.token_nll, "F.cross_entropy": _full_logits}


def _inputs(masked: bool) -> Inputs:
    """Random inputs. masked: half the rows masked, the signs of the others mixed."""
    N, D, V = SHAPE
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator)
    weight = torch.randn(V, D, generator=generator) * D ** -0.5
    targets = torch.randint(V, (N,), generator=generator)
    if masked:
        targets[torch.randperm(N, generator=generator)[:N // 2]] = -100
    sign = torch.ones(N)
    if masked:
        sign = torch.where(torch.rand(N, generator=generator) < 0.5, -1.0, 1.0)
    return hidden.requires_grad_(), weight.requires_grad_(), targets, sign / N


def _step(function: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: Inputs) -> tuple[float, Tensor]:
    """Seconds of one forward and backward, and the gradient of the hidden rows."""
    hidden, weight, targets, coefficient = inputs
    hidden.grad = weight.grad = None
    start = time.perf_counter()
    (function(hidden, weight, targets) * coefficient).sum().backward()
    took = time.perf_counter() - start
    assert hidden.grad is not None
    return took, hidden.grad


def _peak_extra(name: str, threads: int, masked: bool, out: Any) -> None:
    """Put into `out` the bytes that a step takes at its peak, beyond its inputs and the two gradients.

    Runs in a process of its own, where no memory of earlier steps lies about. A tiny step comes first, so
    that the libraries' own buffers, which any product makes, are there before.
    """
    torch.set_num_threads(threads)
    function = FUNCTIONS[name]
    hidden, weight = torch.zeros(8, 16, requires_grad=True), torch.zeros(32, 16, requires_grad=True)
    _step(function, (hidden, weight, torch.zeros(8, dtype=torch.int64), torch.ones(8)))
    inputs = _inputs(masked)
    with open("/proc/self/clear_refs", "w") as control:
        control.write("5")  # the peak starts again from here (proc(5))
    before = _status("VmRSS")
    _step(function, inputs)
    out.put(_status("VmHWM") - before - inputs[0].nbytes - inputs[1].nbytes)


def _status(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field + ":"))


def _measured(name: str, threads: int, masked: bool) -> int | None:
    """`_peak_extra` in a new process; None on a system without Linux's /proc."""
    if not os.path.exists("/proc/self/clear_refs"):
        return None
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    process = context.Process(target=_peak_extra, args=(name, threads, masked, out))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"the process that weighs {name} ended with {process.exitcode}")
    return int(out.get(timeout=10))


def run(rounds: int = 5, threads: int = 2) -> dict[str, Any]:
    """Print a table and return its figures: medians over `rounds` pairs, taken in turns.

    A case's `time_ratio` is the median of the pairs' ratios, token_nll over full logits. Its `memory_ratio`
    is that of the peak bytes beyond the inputs and the gradients. Needs about 2.5 GB of memory. Raises
    RuntimeError where the two disagree on the gradient.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        cases = {"half the rows masked, mixed signs": _case(True, rounds, threads),
                 "no row masked": _case(False, rounds, threads)}
    finally:
        torch.set_num_threads(before)
    N, D, V = SHAPE
    used = kernels.implementation("token_nll")
    print(f"token_nll ({used}) against F.cross_entropy over full logits: {N} tokens x {D} x {V}, float32, "
          f"forward and backward, {threads} threads, medians of {rounds} pairs in turns")
    for name, c in cases.items():
        memory = "not measurable here"
        if c["memory_ratio"] is not None:
            memory = f"{c['bytes'] / 1e6:.0f} / {c['full_bytes'] / 1e6:.0f} MB = {c['memory_ratio']:.3f}"
        print(f"  {name:34s} time {c['seconds']:.2f} / {c['full_seconds']:.2f} s = {c['time_ratio']:.2f}   "
              f"extra memory {memory}")
    return {"tokens": N, "width": D, "vocabulary": V, "threads": threads, "rounds": rounds,
            "implementation": used, "cases": cases}


def _case(masked: bool, rounds: int, threads: int) -> dict[str, Any]:
    inputs = _inputs(masked)
    times: dict[str, list[float]] = {name: [] for name in FUNCTIONS}
    for _ in range(rounds + 1):
        gradients = []
        for name, function in FUNCTIONS.items():
            seconds, gradient = _step(function, inputs)
            times[name].append(seconds)
            gradients.append(gradient)
        difference = float((gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max())
        if not difference < 1e-4:
            raise RuntimeError("token_nll and F.cross_entropy disagree on the gradient "
                               f"by {difference:.1e} of its largest entry")
    ours, full = (x[1:] for x in times.values())  # the first pair warms up
    extra, full_extra = (_measured(name, threads, masked) for name in FUNCTIONS)
    ratio = None if extra is None or full_extra is None else extra / full_extra
    return {"seconds": statistics.median(ours), "full_seconds": statistics.median(full),
            "time_ratio": statistics.median(a / b for a, b in zip(ours, full, strict=True)),
            "bytes": extra, "full_bytes": full_extra, "memory_ratio": ratio}
