"""AdamW on float32 or bfloat16 weights, gradient accumulation in float32, the gradient's norm, the learning rate.

Small updates to bfloat16 weights: bfloat16 keeps 8 bits, so at rest a weight takes no update below about
1/512 of itself, and fine-tuning makes almost only such updates. Here weights and both moments are
computed in float32 and written back by stochastic rounding (up with the probability that makes the
expected value exact), so that small updates add up as they do in float32, at 2 bytes a number and no
float32 copy of the model.
"""
import math
from typing import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

CHUNK = {"cpu": 1 << 18, "cuda": 1 << 26}   # numbers updated at once: bounds the float32 temporaries; on a CPU they stay in cache


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; a plain tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def write_stochastically(target: Tensor, value: Tensor, generator: torch.Generator) -> None:
    """target (bfloat16) ← value (float32, finite), rounded up or down at random so that its expected value is `value`.

    bfloat16 is the upper half of float32: 16 random bits are added to the lower half, and the carry rounds.
    """
    noise = torch.randint(0, 1 << 16, value.shape, dtype=torch.int32, device=value.device, generator=generator)
    target.copy_((value.view(torch.int32) + noise).bitwise_and_(-(1 << 16)).view(torch.float32))


class AdamW:
    """AdamW (arXiv 1711.05101) over named parameters; the decay touches matrices only.

    Gradients arrive by `collect_gradients`, which every backward feeds: the first micro-batch's as it is,
    later ones added in float32, whatever the weights' dtype (signed objectives cancel: bfloat16 sums would
    lose what remains). The state of step t depends on nothing but step t − 1's, the gradient, seed and t.
    """

    def __init__(self, named: Iterable[tuple[str, Parameter]], betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.0, seed: int = 0):
        self.parameters = {name: p for name, p in named if p.requires_grad}
        self.betas, self.eps, self.weight_decay, self.seed = betas, eps, weight_decay, seed
        self.mean = {name: torch.zeros_like(p, requires_grad=False) for name, p in self.parameters.items()}
        self.square = {name: torch.zeros_like(p, requires_grad=False) for name, p in self.parameters.items()}
        self.gradients: dict[str, Tensor] = {}
        self._hooks = [p.register_post_accumulate_grad_hook(self._collector(name)) for name, p in self.parameters.items()]

    def _collector(self, name: str):
        def collect(p: Parameter) -> None:
            gradient, p.grad = local(p.grad), None
            self.gradients[name] = self.gradients[name].float().add_(gradient) if name in self.gradients else gradient
        return collect

    def norm(self) -> float:
        """The gradient's 2-norm over all parameters and ranks; inf or NaN when any of it is."""
        squares = [torch.linalg.vector_norm(g, dtype=torch.float32).pow(2) for g in self.gradients.values()]
        total = torch.stack(squares).double().sum() if squares else torch.zeros((), dtype=torch.float64)
        if dist.is_initialized():
            dist.all_reduce(total)
        return math.sqrt(total) if total >= 0 else float("nan")

    @torch.no_grad()
    def step(self, count: int, rate: float, scale: float) -> None:
        """Update number `count` (from 1) with gradients · scale, and forget them."""
        (b1, b2), device = self.betas, next(iter(self.parameters.values())).device
        rank = dist.get_rank() if dist.is_initialized() else 0
        generator = torch.Generator(device).manual_seed(((self.seed * 1_000_003 + count) * 65_537 + rank) % (1 << 63))
        for name, p in self.parameters.items():
            if name not in self.gradients:
                continue
            decay = 1 - rate * self.weight_decay if p.ndim > 1 else 1.0
            flat = [local(t).view(-1).split(CHUNK[device.type]) for t in (p.data, self.mean[name], self.square[name])]
            for w, m, v, g in zip(*flat, self.gradients.pop(name).reshape(-1).split(CHUNK[device.type])):
                g = g.float() * scale
                mean, square, weight = m.float(), v.float(), w.float()     # the tensors themselves when they are float32
                mean.lerp_(g, 1 - b1)
                square.mul_(b2).addcmul_(g, g, value=1 - b2)
                bottom = (square / (1 - b2 ** count)).sqrt_().add_(self.eps)
                weight.mul_(decay).addcdiv_(mean, bottom, value=-rate / (1 - b1 ** count))
                for kept, value in ((m, mean), (v, square), (w, weight)):
                    if kept is not value:
                        write_stochastically(kept, value, generator)

    def close(self) -> None:
        """Take the hooks off the parameters."""
        for hook in self._hooks:
            hook.remove()


def learning_rate(step: int, steps: int, peak: float, warmup: int, final: float = 0.0) -> float:
    """Linear warm-up over `warmup` steps to `peak`, then a half cosine down to peak · final at the last of `steps`; step counts from 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done)))
