"""Packed sequences and the attention over them: no padding, anywhere."""
from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor

from redlite import kernels
from redlite.model.config import Config

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PackedSequences:
    """Sequences packed end to end: `ids` [T], `positions` [T], `lengths` [T] and int32 `offsets` [B + 1]."""
    ids: Tensor
    positions: Tensor
    lengths: Tensor
    offsets: Tensor

    @staticmethod
    def of(sequences: list[list[int]], device: str | torch.device = "cpu", start: int = 0) -> "PackedSequences":
        """Pack token-id lists; positions count from `start` (the length of a shared prefix before them all)."""
        sizes = torch.tensor([len(s) for s in sequences], dtype=torch.int64)
        ids = torch.tensor([t for s in sequences for t in s], dtype=torch.int64)
        offsets = torch.zeros(len(sizes) + 1, dtype=torch.int64)
        offsets[1:] = sizes.cumsum(0)
        positions = torch.arange(len(ids)) - offsets[:-1].repeat_interleave(sizes) + start
        lengths = (sizes + start).repeat_interleave(sizes)
        return PackedSequences(*(x.to(device) for x in (ids, positions, lengths, offsets.int())))


def packed_attention(config: Config, offsets: Tensor) -> Attend:
    """The attention of training and scoring: causal within each packed sequence, with the layer's sliding window."""
    def attend(layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor) -> Tensor:
        return kernels.attention(q_THK, k_TGK, v_TGK, offsets, window=config.windows[layer])[0]
    return attend
