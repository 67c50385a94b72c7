"""Matrices that files keep as one and the model as several: q, k, v and gate, up of Phi-3."""
import itertools
import math
import re
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from redlite.errors import Error
from redlite.model.config import Config
from redlite.weights.gguf_formats import Place
from redlite.weights.gguf_types import TYPES
from redlite.weights.hf_files import Mapped, Stored

PARTS = {"self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
         "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj")}
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


def parts_of(module: str, tensor: Stored, config: Config) -> list[tuple[str, range]]:
    """The modules that a module is in the model, each with its rows of a tensor; itself if it is not fused.

    Raises Error if a fused module's tensor has another number of rows.
    """
    heads, groups, size = config.n_heads, config.n_kv_heads, config.head_dim
    sizes = {"self_attn.qkv_proj": (heads * size, groups * size, groups * size),
             "mlp.gate_up_proj": (config.ffn_dim, config.ffn_dim)}
    rows = tensor.shape[0] if tensor.shape else 0
    match = re.fullmatch(r"(model\.layers\.[0-9]+\.)(.*)", module)
    if match is None or match[2] not in PARTS:
        return [(module, range(rows))]
    counts = sizes[match[2]]
    if rows != sum(counts):
        raise Error(f"{tensor.where} has shape {list(tensor.shape)} and the configuration needs "
                    f"{sum(counts)} rows; they do not belong together")
    ends = [0, *itertools.accumulate(counts)]
    return [(match[1] + part, range(first, last))
            for part, first, last in zip(PARTS[match[2]], ends, ends[1:], strict=False)]


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
    whole = {part: name for name, parts in PARTS.items() for part in parts} if config.family.fused else {}
    found: dict[str, list[T]] = {}
    for name, parameter in parameters.items():
        match = re.fullmatch(r"(model\.layers\.[0-9]+\.)(.*)(\.weight|\.bias)", name)
        if match and match[2] in whole:
            name = f"{match[1]}{whole[match[2]]}{match[3]}"
        found.setdefault(name, []).append(parameter)
    return found
