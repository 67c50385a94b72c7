"""A model's configuration and weights from its files, the weights into a `LLaMA`, plain or packed.

The files are read in small pieces straight into the parameters, which exist once and in the wanted dtype. So
loading needs little more memory than the weights themselves. Names and shapes are checked before the first
weight is read.
"""
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from redlite import kernels
from redlite.kernels.cpu import read_tensor
from redlite.model.llama import Embedding, Linear, LLaMA
from redlite.model.parameters import shapes
from redlite.store.files import read_json
from redlite.weights import fit, fused, gguf_llama, hf_files, quantised_safetensors
from redlite.weights.adapter import Adapter
from redlite.weights.configuration import read_config as read_config
from redlite.weights.fit import EMBEDDING, HEAD
from redlite.weights.gguf import GGUF
from redlite.weights.gguf_formats import FileRows, Place, read_error
from redlite.weights.gguf_types import TYPES, packed_format
from redlite.weights.hf_files import Stored
from redlite.weights.source import Source, open_source, path_of

COMPARED = 1 << 22  # numbers of two matrices that are compared at a time


def load_weights(model: LLaMA, weights: str | Path | GGUF, dtype: torch.dtype = torch.float32,
                 device: str | torch.device = "cpu", packed: str | None = None,
                 adapter: Adapter | None = None, frozen: bool = False) -> None:
    """Fill a model that was built on the meta device.

    weights  a directory, a .gguf file, or such a file opened
    packed   "float32" or "bfloat16" (CPU only), "int8" or "int4": matrices become what `kernels.pack` makes,
             for inference; see `_pack`. On CPUs an embedding that is not the output matrix too stays in its
             file; see `FileRows`. None: plain tensors
    adapter  merged into the weights; `model` is built from what `adapter.config` gave
    frozen   on CPUs: quantised matrices become `kernels.FrozenMatrix`, beside which adapters can be trained

    Every parameter becomes a new tensor of `dtype` on `device`, one after the other. Beside them no more than
    a few megabytes are held; on a GPU, or where matrices are packed, one tensor. Raises Error, before
    anything is read, for a tensor that is missing, has another shape or does not belong to the model. Raises
    it while reading for damaged numbers. Errors name file and tensor.
    """
    source = open_source(weights)
    stored = tensors(source, model, adapter)
    parameters = dict(model.named_parameters())
    names = [name for name in stored if name in parameters]  # in the files' order
    on_cpu = torch.device(device).type == "cpu"
    if packed:  # a large matrix is held twice while it is packed: begin with the largest
        names.sort(key=lambda name: -math.prod(stored[name].shape))
    for name in names:
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if packed and isinstance(module, (Linear, Embedding)) and leaf == "weight":
            delattr(module, leaf)
            tensor, looked_up = stored[name], isinstance(module, Embedding) and not model.config.tied
            weight: Any
            if looked_up and on_cpu and isinstance(tensor, Place):
                weight = FileRows(tensor)
            else:
                weight = _pack(tensor, packed, dtype, device)
                weight = kernels.FrozenMatrix(weight) if frozen else weight
            module.weight = weight
            continue
        filled = torch.empty(stored[name].shape, dtype=dtype)
        stored[name].fill(filled)
        setattr(module, leaf, nn.Parameter(filled.to(device), parameters[name].requires_grad))
    if packed and on_cpu and not frozen:
        for block in model.blocks:
            block.pack()


def tensors(source: Source, model: LLaMA, adapter: Adapter | None = None) -> dict[str, Stored]:
    """The tensors of a model's files under the names of our parameters, with the adapter in them; none is
    read.

    model  built, perhaps on the meta device, from the files' configuration and what `adapter.config` gave
    Raises Error for a tensor that is missing, has another shape or does not belong to the model.
    """
    if isinstance(source, GGUF):
        stored = gguf_llama.tensors(source, model.config)
    else:
        stored = fit.with_prefix(hf_files.tensors(source))
        raw = read_json(source / "config.json")
        stored = quantised_safetensors.decoded(stored, raw, str(source / "config.json"))
        hf_files.check_plain(stored)
    if model.config.family.fused:
        stored = fused.split(stored, model.config)
    if adapter:
        stored = adapter.merged(stored, model.config)
    if model.config.tied:
        _settle_tied(model, stored)
    fit.check(stored, shapes(model.config), path_of(source))
    return stored


def _pack(stored: Stored, packed: str, dtype: torch.dtype, device: str | torch.device) -> Any:
    """A matrix in a packed format. Blocks of a GGUF file that the format can hold are kept as they are.

    `packed_format` says which those are. Anything else is quantised anew, from its float32 value.

    On CPUs a file's bytes become the packed matrix panel by panel. On GPUs, from a .bin file, and from
    types that the C library does not decode, a whole matrix stands between.
    """
    format, keep = packed, False  # keep: take the blocks as they are
    if isinstance(stored, Place):
        form = TYPES[stored.kind]
        format, keep = packed_format(stored.kind, packed, torch.device(device).type)
        rows, columns = stored.shape
        if torch.device(device).type == "cpu" and stored.kind in read_tensor.KINDS:
            matrix = kernels.PackedMatrix(format, (rows, columns))
            with stored.open() as file:
                fault = matrix.read(file.fileno(), stored.offset, stored.kind, stored.order, keep)
            if fault:
                held = torch.bfloat16 if format == "bfloat16" else torch.float32
                raise read_error(fault, stored.where, held, "scales" if keep else "values")
            return matrix
        if keep:
            raw = stored.blocks()
            scales = 4 if stored.kind == "Q4_1" else 2  # bytes of the scale, and of Q4_1's minimum
            halves = raw.reshape(-1, form.size)[:, :scales]
            if not np.isfinite(np.ascontiguousarray(halves).view("<f2").astype(np.float32)).all():
                raise read_error(read_tensor.NOT_FINITE, stored.where, torch.float32, "scales")
            return kernels.pack_gguf(stored.kind, raw.reshape(-1), (rows, columns), dtype, device)
    filled = torch.empty(stored.shape)
    stored.fill(filled)
    if format == "bfloat16" and filled.numel():
        hf_files.check_finite(torch.stack(filled.aminmax()).bfloat16(), stored.where)
    return kernels.pack(filled, format, dtype, device)


def _settle_tied(model: LLaMA, stored: dict[str, Stored]) -> None:
    """Make model and files agree on a tied output matrix, as transformers 5 does.

    A matrix of which only the output's name is in the files is the embedding too. Where both are there and
    differ, the configuration is wrong: the model gets an output matrix of its own.
    """
    embedding, head = stored.get(EMBEDDING), stored.get(HEAD)
    if head is None:
        return
    if embedding is None:
        stored[EMBEDDING] = stored.pop(HEAD)
    elif embedding.shape == head.shape and _same(embedding, head):
        del stored[HEAD]
    else:
        model.untie()


def _same(one: Stored, other: Stored) -> bool:
    """Whether two matrices of one shape hold the same numbers; read in blocks of rows where they can be."""
    rows = max(1, COMPARED // max(1, math.prod(one.shape[1:])))
    if not all(isinstance(matrix, (Place, hf_files.Mapped)) for matrix in (one, other)):
        rows = max(1, one.shape[0])
    for first in range(0, one.shape[0], rows):
        count = min(rows, one.shape[0] - first)
        a, b = (torch.empty(count, *one.shape[1:]) for _ in range(2))
        fused.rows_of(one, first, count).fill(a)
        fused.rows_of(other, first, count).fill(b)
        if not torch.equal(a, b):
            return False
    return True
