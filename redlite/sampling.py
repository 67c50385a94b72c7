"""Logits to token ids, pure: no state but the uniform numbers that are handed in."""
import hashlib

import numpy as np
import torch
from torch import Tensor


def sample(logits_BV: Tensor, temperature_B: Tensor, top_p_B: Tensor, uniform_B: Tensor) -> Tensor:
    """One token id for each row, int64 [B].

    logits_BV    float32
    temperature  0 takes the first largest logit; otherwise softmax(logits / temperature) is sampled
    top_p        only the fewest most likely tokens whose probabilities reach top_p are kept (arXiv
                 1904.09751); 1 keeps all
    uniform      the random number in [0, 1) that decides each row, so a row's choice depends on nothing else
    """
    ids_B = logits_BV.argmax(-1)
    drawn = (temperature_B > 0).nonzero()[:, 0]
    if len(drawn) == 0:
        return ids_B
    p, order = torch.softmax(logits_BV[drawn] / temperature_B[drawn, None], -1).sort(dim=-1, descending=True, stable=True)
    total = p.double().cumsum(-1)
    kept = total - p < top_p_B[drawn, None]  # the token that reaches top_p is kept, the first always
    mass = (p * kept).double().cumsum(-1)
    place = torch.searchsorted(mass, (uniform_B[drawn, None].double() * mass[:, -1:]), right=True)
    place = place.clamp(max=kept.sum(-1, keepdim=True) - 1)  # rounding may leave u · mass at the very end
    ids_B[drawn] = order.gather(1, place)[:, 0]
    return ids_B


def uniforms(seed: int) -> np.random.Generator:
    """A request's own stream of uniform numbers (Philox, the same on every platform)."""
    return np.random.Generator(np.random.Philox(key=seed))


def request_seed(seed: int, ids: list[int], repeat: int) -> int:
    """The seed of the repeat-th request for one prompt: it depends on the prompt, not on its place in a batch."""
    digest = hashlib.sha256(f"{seed}:{repeat}:{','.join(map(str, ids))}".encode()).digest()
    return int.from_bytes(digest[:16], "little")
