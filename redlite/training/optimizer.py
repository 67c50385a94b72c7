"""AdamW on float32 or bfloat16 weights, with gradients added up in float32; the learning rate.

bfloat16 keeps 8 bits, so rounding to the nearest loses an update below about 1/512 of a weight. Fine-tuning
makes almost only such updates. So weights and both moments are computed in float32 and written back by
stochastic rounding: up with the probability that makes the expected value exact. Small updates then add up as
they do in float32, at 2 bytes a number, without a float32 copy of the model. `kernels.adamw` does this.
"""
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import Parameter

from redlite import kernels
from redlite.training import processes
from redlite.training.processes import local


class AdamW:
    """AdamW (arXiv 1711.05101) over named parameters; the decay touches matrices only.

    Every backward hands its gradients over by hooks on the parameters. The first micro-batch's are kept as
    they are, and later ones are added in float32: signed objectives cancel, and a bfloat16 sum would lose
    what remains. The state of step t depends on that of step t − 1, the gradient, the seed and t, and
    nothing else.
    """

    def __init__(self, named: Iterable[tuple[str, Parameter]], betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 0.0, seed: int = 0):
        self.parameters = {name: p for name, p in named if p.requires_grad}
        self.betas, self.eps, self.weight_decay, self.seed = betas, eps, weight_decay, seed
        self.mean, self.square = self._zeros(), self._zeros()   # the moments, by name
        self.gradients: dict[str, Tensor] = {}
        self._hooks = [p.register_post_accumulate_grad_hook(self._collector(name))
                       for name, p in self.parameters.items()]

    def _zeros(self) -> dict[str, Tensor]:
        return {name: torch.zeros_like(p, requires_grad=False) for name, p in self.parameters.items()}

    def _collector(self, name: str) -> Callable[[Tensor], None]:
        def collect(p: Tensor) -> None:
            assert p.grad is not None       # the hook runs when it has been set
            gradient, p.grad = local(p.grad), None
            if name in self.gradients:
                gradient = self.gradients[name].float().add_(gradient)
            self.gradients[name] = gradient
        return collect

    def norm(self) -> float:
        """The gradient's 2-norm over all parameters and ranks; inf or NaN when any of it is."""
        squares = [kernels.square_sum(g) for g in self.gradients.values()]
        total = torch.stack(squares).sum() if squares else torch.zeros((), dtype=torch.float64)
        square = float(processes.add_up(total))
        return math.sqrt(square) if square >= 0 else float("nan")

    @torch.no_grad()
    def step(self, count: int, rate: float, scale: float) -> None:
        """Update number `count` (from 1) with gradients · scale, and forget them."""
        device = next(iter(self.parameters.values())).device
        seed = (self.seed * 1_000_003 + count) * 65_537 + processes.rank()
        generator = torch.Generator(device).manual_seed(seed % (1 << 63))
        for name, p in self.parameters.items():
            if name not in self.gradients:
                continue
            decay = 1 - rate * self.weight_decay if p.ndim > 1 else 1.0
            update = kernels.Update(count, rate, scale, self.betas, self.eps, decay)
            weight, mean, square = (local(t) for t in (p.data, self.mean[name], self.square[name]))
            kernels.adamw(weight, mean, square, self.gradients.pop(name), update, generator)

    def close(self) -> None:
        """Take the hooks off the parameters."""
        for hook in self._hooks:
            hook.remove()


def learning_rate(step: int, steps: int, peak: float, warmup: int, final: float = 0.0) -> float:
    """The rate of a step, which counts from 0: linear up to `peak` over `warmup` steps, then a half cosine.

    The cosine would reach peak · final at `steps`, one past the last step.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done)))
