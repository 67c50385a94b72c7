"""LoRA (arXiv 2106.09685): a low-rank update B·A beside frozen matrices, merged when the model is saved.

A matrix W [out, in] becomes W + (alpha / rank) · B·A with A [rank, in], B [out, rank]. B begins at zero, so
training begins at the model itself. Adapters are kept in the weights' dtype. In bfloat16 they are updated by
stochastic rounding like any weight (training/optimizer.py). Nothing of the model changes but the `Linear`
modules named.

W may be quantised (`kernels.FrozenMatrix`, QLoRA's idea, arXiv 2305.14314). Then the adapters are float32,
and a merged matrix is made a run of rows at a time, while it is written.
"""
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from redlite import kernels
from redlite.errors import Error
from redlite.model.llama import Linear, LLaMA
from redlite.store.files import write_atomic, write_json

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PIECE = 1 << 20     # numbers of a merged matrix that are held while it is written


class Adapted(nn.Module):
    """A `Linear` with an adapter.

    Its weight and bias are those of the module it replaces, under their own names.
    """

    def __init__(self, base: Linear, rank: int, scale: float, generator: torch.Generator):
        super().__init__()
        self.weight, self.bias, self.scale = base.weight, base.bias, scale
        outputs, inputs = base.weight.shape
        bound = 1 / math.sqrt(inputs)  # as PyTorch and PEFT: Kaiming uniform with a = √5
        a = (torch.rand(rank, inputs, generator=generator) * 2 - 1) * bound
        self.lora_A = nn.Parameter(a.to(base.weight.device, base.weight.dtype))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank).to(self.lora_A))

    def forward(self, x_TD: Tensor) -> Tensor:
        update = kernels.linear(kernels.linear(x_TD, self.lora_A), self.lora_B)
        return kernels.linear(x_TD, self.weight, self.bias) + self.scale * update


def attach(model: LLaMA, rank: int, alpha: float | None = None, targets: tuple[str, ...] = TARGETS,
           seed: int = 0) -> LLaMA:
    """Put an adapter on every matrix whose name ends in one of `targets`, and freeze everything else.

    It changes the model in place and returns it. alpha: the update is scaled by alpha / rank; None: 2 · rank.
    TARGETS, all of them, mean every matrix of the layers, whatever the family calls it. Raises Error for a
    target that the model does not have, and for a family whose files keep several matrices as one.
    """
    if model.config.family.fused:
        raise Error(f"the files of {model.config.model_type} models keep q, k and v as one matrix, for which "
                    "redlite has no adapter; train all weights", "lora")
    if targets == TARGETS:
        matrices = (name for name, m in model.model.layers.named_modules() if isinstance(m, Linear))
        own = {name.rpartition(".")[2] for name in matrices}
        targets = tuple(sorted(own))
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    scale = (2 * rank if alpha is None else alpha) / rank
    missing = set(targets)
    for name, module in list(model.named_modules()):
        owner, _, leaf = name.rpartition(".")
        if isinstance(module, Linear) and leaf in targets:
            setattr(model.get_submodule(owner), leaf, Adapted(module, rank, scale, generator))
            missing.discard(leaf)
    if missing:
        raise Error(f"the model has no matrix named {sorted(missing)[0]}; use {', '.join(TARGETS)}",
                    "lora_targets")
    return model


def adapters(model: nn.Module) -> dict[str, Adapted]:
    """name of the matrix → its adapter."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Adapted)}


@torch.no_grad()
def merged(model: LLaMA) -> LLaMA:
    """A model without adapters that computes what `model` computes; it shares the weights without adapter.

    Products are summed in float32 and rounded once. Weights that are sharded over ranks stay sharded; every
    rank calls this. In place of quantised matrices it has `MergedRows`: it can be written, but not run.
    """
    own, adapted = dict(model.named_parameters()), adapters(model)
    with torch.device("meta"):
        whole = LLaMA(model.config)
    for name, _ in list(whole.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        module = whole.get_submodule(owner)
        if name not in own:
            delattr(module, leaf)
            setattr(module, leaf, MergedRows(model.get_submodule(owner).weight, adapted.get(owner)))
            continue
        weight: Tensor = own[name]
        if leaf == "weight" and owner in adapted:
            weight = _with_update(weight, adapted[owner])
        setattr(module, leaf, nn.Parameter(weight.detach(), requires_grad=False))
    return whole


@dataclass(frozen=True)
class MergedRows:
    """A quantised matrix [N, D] with its adapter's update, if it has one: float32, for a file of weights."""
    base: Any
    adapter: Adapted | None
    dtype = torch.float32

    @property
    def shape(self) -> torch.Size:
        return self.base.shape

    def numel(self) -> int:
        return self.shape.numel()

    def pieces(self) -> Iterator[Tensor]:
        """The matrix in runs of rows, first to last, of PIECE numbers or one row."""
        rows = max(1, PIECE // self.shape[1])
        for ids in torch.arange(self.shape[0]).split(rows):
            piece = self.base.rows(ids)
            if self.adapter is not None:
                update = self.adapter.lora_B[ids].float() @ self.adapter.lora_A.float()
                piece += self.adapter.scale * update
            yield piece


def _whole(tensor: Tensor) -> Tensor:
    """The tensor, gathered where it is sharded over ranks."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _with_update(weight: Tensor, adapter: Adapted) -> Tensor:
    """The matrix with its update; sharded as the matrix is."""
    a, b = _whole(adapter.lora_A), _whole(adapter.lora_B)
    update = adapter.scale * (b.float() @ a.float())
    if hasattr(weight, "device_mesh"):
        from torch.distributed.tensor import DTensor, distribute_tensor
        assert isinstance(weight, DTensor)
        update = distribute_tensor(update, weight.device_mesh, weight.placements)
    return (weight.float() + update).to(weight.dtype)


def save_adapter(model: LLaMA, directory: str | Path, base: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors in PEFT's layout.

    Every rank calls this; rank 0 writes.
    base  what the adapter belongs to: a path or a hub name
    """
    directory, found = Path(directory), adapters(model)
    tensors = {}
    for name, adapter in found.items():
        for side, tensor in (("lora_A", adapter.lora_A), ("lora_B", adapter.lora_B)):
            tensors[f"base_model.model.{name}.{side}.weight"] = _whole(tensor).detach().cpu().contiguous()
    if torch.distributed.is_initialized() and torch.distributed.get_rank():
        return
    first = next(iter(found.values()))
    rank = first.lora_A.shape[0]
    write_adapter(directory, tensors, rank, first.scale * rank, base)


def write_adapter(directory: Path, tensors: dict[str, Tensor], rank: int, alpha: float, base: str) -> None:
    """Write an adapter's two files in PEFT's layout.

    tensors  base_model.model.MODULE.lora_A.weight [rank, inputs] and .lora_B.weight [outputs, rank]
    """
    from safetensors.torch import save
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha, "lora_dropout": 0.0, "bias": "none",
        "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
        "target_modules": sorted({name.split(".")[-3] for name in tensors})}
    directory.mkdir(parents=True, exist_ok=True)
    write_atomic(directory / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
    write_json(directory / "adapter_config.json", settings)
