"""AdamW's step and the gradient's norm on CPUs: training.c goes once over each tensor."""
import ctypes

import torch
from torch import Tensor

from .. import reference
from ..reference import Update
from .library import library
from .structs import AdamW, Squares

SQUARES = 1 << 11       # numbers whose squares are one float32 sum, as in training.h


def adamw(weight: Tensor, mean: Tensor, square: Tensor, gradient: Tensor, update: Update,
          generator: torch.Generator) -> None:
    """As `reference.adamw`; bfloat16 is rounded by other random bits, which follow from the generator's."""
    tensors = weight, mean, square
    kinds = {x.dtype for x in tensors}
    served = kinds in ({torch.float32}, {torch.bfloat16})
    if not served or gradient.dtype not in (torch.float32, torch.bfloat16):
        reference.adamw(weight, mean, square, gradient, update, generator)
        return
    if not all(x.is_contiguous() and x.numel() == gradient.numel() for x in tensors):
        raise ValueError(f"contiguous tensors of one size are needed, not {[list(x.shape) for x in tensors]} "
                         f"and a gradient {list(gradient.shape)}")
    gradient, narrow = gradient.contiguous(), weight.dtype == torch.bfloat16
    seed = torch.randint(1 << 32, (4,), generator=generator).tolist() if narrow else [0] * 4
    u, (b1, b2) = update, update.betas
    step = AdamW(*(x.data_ptr() for x in (*tensors, gradient)), weight.numel(), narrow,
                 gradient.dtype == torch.bfloat16, u.scale, 1 - b1, b2, 1 - b2, 1 - b2 ** u.count, u.eps,
                 u.decay, -u.rate / (1 - b1 ** u.count), (ctypes.c_uint32 * 4)(*seed))
    library().rl_adamw(ctypes.byref(step), torch.get_num_threads())


def square_sum(x: Tensor) -> Tensor:
    """As `reference.square_sum`; no bit depends on how many threads there are."""
    if x.dtype not in (torch.float32, torch.bfloat16):
        return reference.square_sum(x)
    x, sums = x.contiguous(), torch.empty(-(-x.numel() // SQUARES), dtype=torch.float64)
    squares = Squares(x.data_ptr(), x.numel(), x.dtype == torch.bfloat16, sums.data_ptr())
    library().rl_squares(ctypes.byref(squares), torch.get_num_threads())
    return sums.sum()
