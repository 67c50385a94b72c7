"""A weighted sum of LoRA adapters as one adapter, exactly: w1·B1·A1 + w2·B2·A2 = [w1·B1 w2·B2]·[A1; A2].

PEFT calls this add_weighted_adapter with combination_type "cat". One adapter with a weight is an adapter of
that strength.
"""
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from redlite.errors import Error
from redlite.weights.adapter import Adapter
from redlite.weights.hf_files import Stored

MATRICES = {"lora_A", "lora_B"}


class Sum(NamedTuple):
    """An adapter to write: its tensors by PEFT's names, and its rank, which is its alpha as well."""
    tensors: dict[str, Tensor]
    rank: int


def weighted_sum(parts: Sequence[tuple[Adapter, float]]) -> Sum:
    """The sum of adapters, each times its weight, in float32. Its rank is the sum of their ranks.

    Raises Error for an adapter that has more than LoRA's two matrices, such as DoRA's magnitudes or trained
    embeddings, and for adapters of different modules or shapes.
    """
    first = parts[0][0]
    for adapter, _ in parts:
        _require_plain(adapter)
        if other := sorted(adapter.updates.keys() ^ first.updates.keys()):
            raise Error(f"{adapter.path}: {first.path} and it differ on {other[0]}; "
                        "give adapters of the same modules")
    tensors: dict[str, Tensor] = {}
    for module in first.updates:
        downs, ups = [], []
        for adapter, weight in parts:
            update = adapter.updates[module]
            downs.append(_read(update.parts["lora_A"]))
            ups.append(weight * update.scale * _read(update.parts["lora_B"]))
            if downs[-1].shape[1] != downs[0].shape[1] or len(ups[-1]) != len(ups[0]):
                raise Error(f"{adapter.path}: {module} has another shape than in {first.path}; "
                            "give adapters of one model")
        name = f"base_model.model.{module}"
        tensors[f"{name}.lora_A.weight"] = torch.cat(downs)
        tensors[f"{name}.lora_B.weight"] = torch.cat(ups, 1)
    ranks = {len(t) for name, t in tensors.items() if name.endswith("lora_A.weight")}
    if len(ranks) > 1:
        raise Error(f"{first.path}: has ranks that differ from module to module, which is not added here; "
                    "use PEFT's add_weighted_adapter")
    return Sum(tensors, ranks.pop())


def _require_plain(adapter: Adapter) -> None:
    more = [*adapter.wholes, *adapter.kept, *adapter.tokens]
    more += [f"{module}.{name}" for module, update in adapter.updates.items()
             for name in update.parts.keys() - MATRICES]
    if more or not adapter.updates:
        raise Error(f"{adapter.path}: has {more[0] if more else 'no matrices'}; adapters are added that have "
                    "lora_A and lora_B alone; merge it with its base first")


def _read(stored: Stored) -> Tensor:
    out = torch.empty(stored.shape)
    stored.fill(out)
    return out
