"""A model written as a Hugging Face directory: config.json, weights in safetensors files, tokenizer files."""
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from redlite.errors import Error
from redlite.model.llama import LLaMA
from redlite.model.lora import MergedRows
from redlite.store.files import replacing, write_json
from redlite.text import export
from redlite.weights import fused
from redlite.weights.gguf import GGUF
from redlite.weights.hf_files import DTYPES
from redlite.weights.source import open_source

SHARD_BYTES = 5_000_000_000  # the largest file of weights
INDEX = "model.safetensors.index.json"
Part = Tensor | MergedRows      # of a written tensor: some of its rows, or all


def save_pretrained(model: LLaMA, directory: str | Path, source: str | Path | None = None,
                    dtype: torch.dtype | None = None) -> None:
    """Write a directory that transformers and `redlite.load` take.

    source  the directory or .gguf file that the model came from: its tokenizer's files are written too
    dtype   of the written weights; None: as they are, float32 where they are quantised

    Weights go to model.safetensors, or above 5 GB to numbered files and an index. Each file appears whole or
    not at all, config.json last. Parameters may be sharded over ranks (DTensor): then every rank calls this,
    and rank 0 writes. Raises Error if the directory already holds other weights, or cannot be written, and
    for a model whose matrices are packed for inference.
    """
    directory = Path(directory)
    parameters = fused.joined(_parameters(model), model.config)
    writes = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    dtypes = {name: dtype or p[0].dtype for name, p in parameters.items()}
    sizes = {name: sum(p.numel() for p in parts) * dtypes[name].itemsize
             for name, parts in parameters.items()}
    shards = _shards(sizes)
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    index = {INDEX} if len(shards) > 1 else set()
    if writes:
        _prepare(directory, {*names, *index})
    for file, shard in zip(names, shards, strict=True):
        _write_safetensors(directory / file if writes else None,
                           {name: (parameters[name], dtypes[name]) for name in shard})
    if not writes:
        return
    if index:
        places = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        write_json(directory / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places})
    if source is not None:
        _write_tokenizer(source, directory)
    config, written = model.config.to_hf(), set(dtypes.values())
    if len(written) == 1:
        config["torch_dtype"] = str(written.pop()).removeprefix("torch.")
    write_json(directory / "config.json", config)


def _parameters(model: LLaMA) -> dict[str, Part]:
    """name → every weight that a file of this model holds."""
    own: dict[str, Part] = dict(model.named_parameters())
    for owner, module in model.named_modules():
        if isinstance(getattr(module, "weight", None), MergedRows):
            own[f"{owner}.weight"] = module.weight
    with torch.device("meta"):
        needed = dict(LLaMA(model.config).named_parameters())
    if missing := [name for name in needed if name not in own]:
        raise Error(f"save_pretrained: {len(missing)} of {len(needed)} weights are packed for inference "
                    f"({missing[0]} first); load the model with LM.load(path, trainable=True)")
    return own


def _shards(sizes: dict[str, int]) -> list[list[str]]:
    """Names in order, cut where SHARD_BYTES would be passed."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if shards[-1] and held + size > SHARD_BYTES:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards


def _prepare(directory: Path, names: set[str]) -> None:
    """Make the directory. Raises Error if it holds files of weights that `names` does not list."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Error(f"{directory}: cannot be made ({error.strerror}); choose another directory") from None
    for pattern in ("*.safetensors*", "pytorch_model*.bin*"):
        for old in sorted(directory.glob(pattern)):
            if old.name not in names:
                raise Error(f"{old}: is a file of other weights, which would be mixed up with the new ones; "
                            "remove it or choose another directory")


def _write_safetensors(path: Path | None, tensors: dict[str, tuple[list[Part], torch.dtype]]) -> None:
    """One safetensors file, tensor by tensor; the rows of one tensor are those of a list, in order.

    path  None: only take part in gathering sharded parameters
    """
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (parts, dtype) in tensors.items():
        end = at + sum(part.numel() for part in parts) * dtype.itemsize
        shape = list(parts[0].shape)
        if len(parts) > 1:
            shape[0] = sum(part.shape[0] for part in parts)
        header[name] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned, as the format asks

    def numbers() -> Iterator[memoryview]:
        for parts, dtype in tensors.values():
            for piece in itertools.chain.from_iterable(map(_pieces, parts)):
                yield piece.to("cpu", dtype).contiguous().view(-1).view(torch.uint8).numpy().data

    if path is None:
        for _ in numbers():
            pass
        return
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for piece in numbers():
            file.write(piece)


def _pieces(part: Part) -> Iterator[Tensor]:
    """A tensor, gathered where it is sharded, or the runs of rows of a matrix that is made as it is written.
    """
    if isinstance(part, MergedRows):
        yield from part.pieces()
        return
    whole = part.detach()
    yield whole.full_tensor() if hasattr(whole, "full_tensor") else whole


def _write_tokenizer(source: str | Path, directory: Path) -> None:
    opened = open_source(source)
    if isinstance(opened, GGUF):
        with opened:
            export.write(opened.path, opened.metadata, directory)
    else:
        export.copy(opened, directory)
