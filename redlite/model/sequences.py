"""Packed sequences and the attention over them: no padding, anywhere."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from redlite import kernels
from redlite.model.config import Config

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # (layer, q_THK, k_TGK, v_TGK) → out_THK


@dataclass(frozen=True)
class PackedSequences:
    """B sequences of T tokens in all, one after the other.

    ids        int64 [T]
    positions  int64 [T]: each token's place in its own sequence
    lengths    int64 [T]: the length of each token's sequence
    offsets    int32 [B + 1]: where each sequence begins, and T
    """
    ids: Tensor
    positions: Tensor
    lengths: Tensor
    offsets: Tensor

    @staticmethod
    def of(sequences: Sequence[Sequence[int]], device: str | torch.device = "cpu",
           start: int = 0) -> "PackedSequences":
        """Pack lists of token ids.

        start: the first position, which is the length of a prefix before them all.
        """
        sizes = torch.tensor([len(s) for s in sequences], dtype=torch.int64)
        ids = torch.tensor(list(chain.from_iterable(sequences)), dtype=torch.int64)
        offsets = torch.zeros(len(sizes) + 1, dtype=torch.int64)
        offsets[1:] = sizes.cumsum(0)
        positions = torch.arange(len(ids)) - offsets[:-1].repeat_interleave(sizes) + start
        lengths = (sizes + start).repeat_interleave(sizes)
        return PackedSequences(ids.to(device), positions.to(device), lengths.to(device),
                               offsets.int().to(device))


def packed_attention(config: Config, offsets: Tensor) -> Attend:
    """The attention of training and scoring: causal within each sequence, with each layer's window."""
    def attend(layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor) -> Tensor:
        return kernels.attention(q_THK, k_TGK, v_TGK, offsets, window=config.windows[layer],
                                 scale=config.attention_scale, cap=config.attention_cap)[0]
    return attend
