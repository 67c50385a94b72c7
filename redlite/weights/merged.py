"""Matrices that an adapter makes of a base's: computed when they are read, whole, in float32."""
from dataclasses import dataclass

import torch
from torch import Tensor

from redlite.weights.hf_files import Stored, check_finite


@dataclass(frozen=True)
class _OfBase:
    """A matrix of the shape of the base's."""
    base: Stored

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def where(self) -> str:
        return self.base.where


@dataclass(frozen=True)
class Merged(_OfBase):
    """A matrix [out, in] with its update: weight + scale · B·A, and DoRA's norms of the rows.

    a, b       A [rank, in] and B [out, rank]; of an embedding [V, D] PEFT has them the other way round, so
               there a is Bᵀ's and b Aᵀ's tensor, and `embedding` is true
    magnitude  [out] or None: DoRA scales each row of the sum to this length
    """
    a: Stored
    b: Stored
    scale: float
    magnitude: Stored | None
    embedding: bool

    def fill(self, out: Tensor) -> None:
        """Fill `out` [out, in], computed in float32 and rounded once."""
        whole = _read(self.base)
        a, b = _read(self.a), _read(self.b)
        update = (b @ a).T if self.embedding else b @ a
        whole.add_(update, alpha=self.scale)
        if self.magnitude is not None:
            whole *= (_read(self.magnitude) / whole.norm(dim=1))[:, None]
        out.copy_(whole)
        check_finite(out, f"{self.a.where}, merged into the base's")


@dataclass(frozen=True)
class Replaced(_OfBase):
    """A matrix [V, D] of which some rows are others: rows[i] is row indices[i]."""
    indices: list[int]
    rows: Stored

    def fill(self, out: Tensor) -> None:
        self.base.fill(out)
        rows = torch.empty(self.rows.shape, dtype=out.dtype)
        self.rows.fill(rows)
        out[self.indices] = rows


def _read(stored: Stored) -> Tensor:
    out = torch.empty(stored.shape)
    stored.fill(out)
    return out
