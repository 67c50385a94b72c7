"""Matrices that files keep as one and the model as several: q, k, v and gate, up of Phi-3."""
import math
import re
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from redlite.model.config import Config
from redlite.weights.fit import FUSED, parts_of
from redlite.weights.gguf_formats import Place
from redlite.weights.gguf_types import TYPES
from redlite.weights.hf_files import Mapped, Stored

T = TypeVar("T")


class Rows(NamedTuple):
    """Rows of a stored tensor whose bytes are not simply in their order."""
    whole: Stored
    first: int
    rows: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows, *self.whole.shape[1:])

    @property
    def where(self) -> str:
        return self.whole.where

    def fill(self, out: Tensor) -> None:
        filled = torch.empty(self.whole.shape, dtype=out.dtype)
        self.whole.fill(filled)
        out.copy_(filled[self.first:self.first + self.rows])


def split(stored: dict[str, Stored], config: Config) -> dict[str, Stored]:
    """name → tensor with each fused matrix taken apart by rows. Raises Error for one of another size."""
    found: dict[str, Stored] = {}
    for name, tensor in stored.items():
        module, _, leaf = name.rpartition(".")
        for part, rows in parts_of(module, tensor, config):
            if part == module:
                found[name] = tensor
            else:
                found[f"{part}.{leaf}"] = rows_of(tensor, rows.start, len(rows))
    return found


def rows_of(tensor: Stored, first: int, count: int) -> Stored:
    """Some rows of a stored tensor, as a tensor."""
    if isinstance(tensor, Mapped):
        return Mapped(tensor.tensor[first:first + count], tensor.where)
    if not isinstance(tensor, Place) or tensor.order is not None:
        return Rows(tensor, first, count)
    form, width = TYPES[tensor.kind], math.prod(tensor.shape[1:])
    offset = tensor.offset + first * width // form.elements * form.size
    return tensor._replace(offset=offset, shape=(count, *tensor.shape[1:]))


def joined(parameters: Mapping[str, T], config: Config) -> dict[str, list[T]]:
    """name in files → the parameters whose rows make it up, in order."""
    whole = {part: name for name, parts in FUSED.items() for part in parts} if config.family.fused else {}
    found: dict[str, list[T]] = {}
    for name, parameter in parameters.items():
        match = re.fullmatch(r"(model\.layers\.[0-9]+\.)(.*)(\.weight|\.bias)", name)
        if match and match[2] in whole:
            name = f"{match[1]}{whole[match[2]]}{match[3]}"
        found.setdefault(name, []).append(parameter)
    return found
