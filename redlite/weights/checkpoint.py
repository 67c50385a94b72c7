"""Weights in and out: safetensors, PyTorch .bin and GGUF files into a `LLaMA`, and a Hugging Face directory out of one.

Reading goes through one table, `Stored`: a tensor's shape, where it is, and a function that fills a tensor of ours.
The files are read in small pieces straight into the parameters, which exist once and in the wanted dtype, so loading
needs little more memory than the weights themselves. No format can run code: .bin files are read with
`weights_only=True`. Names, shapes and dtypes are checked before the first weight is read.
"""
import ctypes
import dataclasses
import json
import math
import mmap
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from redlite import kernels
from redlite.errors import Error
from redlite.kernels.cpu import read_tensor
from redlite.kernels.cpu.packed import GGUF_KINDS
from redlite.model.config import Config
from redlite.model.llama import Embedding, Linear, LLaMA
from redlite.store.files import loads, read_json, replacing, write_atomic, write_json
from redlite.store.text import short
from redlite.text import export
from redlite.weights import gguf_llama
from redlite.weights.gguf import GGUF
from redlite.weights.gguf_formats import decode, read_error

SHARD_BYTES = 5_000_000_000           # the largest file that save_pretrained writes
COPY_BYTES = 1 << 22                  # of a mapped .bin file that are touched at a time
HEADER_BYTES = 100_000_000            # the most that the safetensors format allows
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                   "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json")
SAFETENSORS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
FETCH = "the file is damaged, fetch it again"


class Place(NamedTuple):
    """Bytes in a file: `open` gives it, as a context, with `fileno`; `order`: for each of our rows the row there, or None."""
    open: Callable[[], AbstractContextManager]
    offset: int
    kind: str
    order: np.ndarray | None = None


class Stored(NamedTuple):
    """A tensor in a file. `where` names file and tensor; `fill` writes its numbers into a CPU tensor of that shape and any float dtype.

    place  its bytes, unless only `fill` knows how to get at them
    """
    shape: tuple[int, ...]
    where: str
    fill: Callable[[Tensor], None]
    place: Place | None = None

    @staticmethod
    def at(place: Place, shape: tuple[int, ...], where: str) -> "Stored":
        return Stored(shape, where, partial(_fill_from, place, where), place)


# ---- what lies in a model's directory ----

def is_gguf(path) -> bool:
    """Whether a model's path means a GGUF file; any other model is a directory."""
    return Path(path).is_file()


def read_config(path) -> tuple[Config, dict]:
    """The shape of the model at `path` (a directory with config.json, or a .gguf file), and the raw config it comes from.

    End tokens named only by generation_config.json are added. For a GGUF file the raw config is its metadata in
    config.json's terms. Raises Error for an architecture that redlite does not run and for any field that would
    change the result and is not understood.
    """
    path = Path(path)
    if is_gguf(path):
        with GGUF(path, texts=False) as source:
            return gguf_llama.config_of(source)
    raw = read_json(path / "config.json")
    config = Config.from_hf(raw, str(path / "config.json"))
    more = path / "generation_config.json"
    if more.exists():
        ends = read_json(more)
        ends = ends.get("eos_token_id") if isinstance(ends, dict) else None
        ends = [e for e in (ends if isinstance(ends, list) else [ends]) if type(e) is int and e >= 0]
        config = dataclasses.replace(config, eos_ids=tuple(dict.fromkeys((*config.eos_ids, *ends))))
    return config, raw


def files(path) -> dict[str, Path]:
    """name → path of every file that decides what the model computes: configuration and weights, without the tokenizer."""
    path = Path(path)
    if is_gguf(path):
        return {path.name: path}
    found = [*(path / name for name in ("config.json", "generation_config.json") if (path / name).exists()), *_weight_files(path)[1]]
    return {p.name: p for p in found}


def _weight_files(folder: Path) -> tuple[dict[str, str], list[Path]]:
    """(the index's tensor → file, or {}; the files, the index among them) of a directory's weights."""
    for single, index, pattern in (("model.safetensors", "model.safetensors.index.json", "*.safetensors"),
                                   ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model*.bin")):
        if (folder / single).exists():
            return {}, [folder / single]
        if (folder / index).exists():
            listed = _read_index(folder / index)
            return listed, [folder / index, *(folder / name for name in sorted(set(listed.values())))]
        if found := sorted(folder.glob(pattern)):
            return {}, found
    other = next(iter(sorted(folder.glob("*.gguf"))), None)
    raise Error(f"{folder}: has no weights (model.safetensors, pytorch_model.bin or their index)"
                + (f"; to use {other.name}, name that file itself" if other else ""))


def _read_index(path: Path) -> dict[str, str]:
    """tensor → file of a sharded checkpoint. Only plain names of files beside the index are allowed."""
    raw = read_json(path)
    listed = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(listed, dict) or not listed:
        raise Error(f"{path}: has no weight_map of tensor and file names; {FETCH}")
    suffix = ".safetensors" if path.name.startswith("model") else ".bin"
    for tensor, name in listed.items():
        if type(name) is not str or not re.fullmatch(r"[^/\\:\0]+", name) or not name.endswith(suffix):
            raise Error(f"{path}: puts tensor {short(tensor)} into {short(name)}, which is no {suffix} file beside it; refused")
    return listed


# ---- loading ----

def load_weights(model: LLaMA, path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", packed: str | None = None) -> None:
    """Fill `model`, built on the meta device, with the weights at `path`.

    packed  "float32" (CPU only), "int8" or "int4": matrices become what `kernels.pack` makes, for inference; see `_pack`
    Every parameter becomes a new tensor of `dtype` on `device`, one after the other; beside them no more than a few
    megabytes (on a GPU or where matrices are packed, one tensor) are held. Raises Error, before anything is read, for a tensor that is missing,
    has another shape or does not belong to the model, naming file and tensor; and while reading for damaged numbers.
    """
    path, parameters = Path(path), dict(model.named_parameters())
    source = GGUF(path, texts=False) if is_gguf(path) else None
    try:
        stored = _gguf_tensors(source, model.config) if source else _hf_tensors(path)
        _check(stored, {name: tuple(p.shape) for name, p in parameters.items()}, path, model.config.tied)
        blocks = gguf_blocks(source, model.config) if source and packed else {}
        names = [n for n in stored if n in parameters]  # in the files' order
        for name in sorted(names, key=lambda n: -math.prod(stored[n].shape)) if packed else names:  # a large matrix is held twice while it is packed: early
            owner, _, leaf = name.rpartition(".")
            module = model.get_submodule(owner)
            if packed and isinstance(module, (Linear, Embedding)) and leaf == "weight":
                delattr(module, leaf)
                module.weight = _pack(stored[name], blocks.get(name), packed, dtype, device)
                continue
            filled = torch.empty(stored[name].shape, dtype=dtype)
            stored[name].fill(filled)
            setattr(module, leaf, nn.Parameter(filled.to(device), parameters[name].requires_grad))
        for block in model.model.layers if packed and torch.device(device).type == "cpu" else ():
            block.pack()
    finally:
        if source:
            source.close()


def _pack(stored: Stored, blocks: tuple | None, packed: str, dtype: torch.dtype, device: str | torch.device):
    """A matrix in a packed format. Blocks of a GGUF file that the format can hold are kept as they are.

    int4 keeps Q4_0 and Q4_1, and puts whatever a GGUF file stores in other blocks into int8, since its maker gave
    such matrices more bits on purpose; int8 keeps Q8_0. Anything else is quantised anew, from its float32 value.
    On CPUs a file's bytes become the packed matrix panel by panel; elsewhere, and from a .bin file, a whole matrix stands between.
    """
    kind = blocks[0] if blocks else None
    keep = packed != "float32" and kind in GGUF_KINDS and GGUF_KINDS[kind].format in {packed, "int8"}
    format = GGUF_KINDS[kind].format if keep else "int8" if packed == "int4" and kind and kind not in ("F32", "F16", "BF16") else packed
    if stored.place and torch.device(device).type == "cpu":
        matrix, place = kernels.PackedMatrix(format, stored.shape), stored.place
        with place.open() as file:
            fault = matrix.read(file.fileno(), place.offset, place.kind, place.order, keep)
        if fault:
            raise read_error(fault, stored.where, torch.float32, "scales" if keep else "values")
        return matrix
    if keep:
        raw = np.ascontiguousarray(blocks[1]())
        halves = raw.reshape(-1, GGUF_KINDS[kind].size)[:, :4 if kind == "Q4_1" else 2]
        if not np.isfinite(np.ascontiguousarray(halves).view("<f2").astype(np.float32)).all():
            raise read_error(read_tensor.NOT_FINITE, stored.where, torch.float32, "scales")
        return kernels.pack_gguf(kind, raw.reshape(-1), blocks[2], dtype, device)
    filled = torch.empty(stored.shape)
    stored.fill(filled)
    return kernels.pack(filled, format, dtype, device)


def _check(stored: dict[str, Stored], wanted: dict[str, tuple], path: Path, tied: bool) -> None:
    for name, shape in wanted.items():
        if name not in stored:
            raise Error(f"{path}: tensor {name} is missing; the weights do not belong to this configuration or are incomplete")
        if stored[name].shape != shape:
            raise Error(f"{stored[name].where} has shape {list(stored[name].shape)} and the configuration needs {list(shape)}; they do not belong together")
    for name, found in stored.items():
        if name not in wanted and not (tied and name == "lm_head.weight"):  # a tied model's own copy of the embedding: transformers ignores it too
            raise Error(f"{found.where} does not belong to a model of this configuration")


def _hf_tensors(folder: Path) -> dict[str, Stored]:
    """The tensors of a Hugging Face directory."""
    listed, paths = _weight_files(folder)
    stored: dict[str, Stored] = {}
    for path in paths:
        if path.suffix == ".json":
            continue
        for name, tensor in (_bin_tensors if path.suffix == ".bin" else _safetensors)(path).items():
            if name.endswith("rotary_emb.inv_freq"):  # a buffer that old versions of transformers saved; it follows from the configuration
                continue
            if name in stored:
                raise Error(f"{tensor.where} is also in another file of {folder}; keep one set of weights there")
            if listed and listed.get(name) != path.name:
                raise Error(f"{tensor.where} is not where the index in {folder} puts it; fetch the files again")
            stored[name] = tensor
    if missing := next((n for n in listed if n not in stored and not n.endswith("rotary_emb.inv_freq")), None):
        raise Error(f"{folder / listed[missing]}: tensor {short(missing)} is missing, though the index puts it there; fetch the files again")
    return stored


def _safetensors(path: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file: eight bytes of length, a JSON header, the numbers (github.com/huggingface/safetensors)."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, HEADER_BYTES):
                raise Error(f"{path}: the header claims {length} bytes in a file of {size}; it is truncated or no safetensors file, fetch it again")
            header = loads(file.read(length).decode("utf-8"))
    except OSError as error:
        raise Error(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise Error(f"{path}: the header is not valid JSON ({error}); {FETCH}") from None
    if not isinstance(header, dict):
        raise Error(f"{path}: the header is not a JSON object; {FETCH}")
    stored, spans = {}, []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        where = f"{path}: tensor {short(name)}"
        shape, kind, start, end = _entry(entry, where, size - 8 - length)
        spans.append((start, end, where))
        stored[name] = Stored.at(Place(partial(open, path, "rb"), 8 + length + start, kind), shape, where)
    for (_, before, _), (start, _, where) in zip(sorted(spans), sorted(spans)[1:]):
        if start < before:
            raise Error(f"{where} overlaps another; {FETCH}")
    return stored


def _entry(entry, where: str, data_bytes: int) -> tuple[tuple[int, ...], str, int, int]:
    """(shape, kind, start, end) of a tensor's entry in a safetensors header, held against the size of the data."""
    whole = (lambda values: isinstance(values, list) and all(type(v) is int and v >= 0 for v in values))
    if not isinstance(entry, dict) or not whole(entry.get("shape")) or not whole(entry.get("data_offsets")) or len(entry["data_offsets"]) != 2:
        raise Error(f"{where} has no proper shape and data_offsets; {FETCH}")
    kind, shape, (start, end) = entry.get("dtype"), tuple(entry["shape"]), entry["data_offsets"]
    if kind not in SAFETENSORS.values():
        raise Error(f"{where} has dtype {short(kind)}; redlite reads {', '.join(SAFETENSORS.values())}")
    if not start <= end <= data_bytes:
        raise Error(f"{where} lies at bytes {start} to {end} of {data_bytes}; the file is truncated, fetch it again")
    if len(shape) > 8 or math.prod(shape) * (4 if kind == "F32" else 2) != end - start:
        raise Error(f"{where} of shape {short(list(shape))} and dtype {kind} does not fill its {end - start} bytes; {FETCH}")
    return shape, kind, start, end


def _fill_from(place: Place, where: str, out: Tensor) -> None:
    with place.open() as file:
        decode(file.fileno(), place.offset, place.kind, out, where, place.order)


def _bin_tensors(path: Path) -> dict[str, Stored]:
    """The tensors of one PyTorch file, mapped, not read."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise Error(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:  # a damaged archive or pickle makes torch raise almost anything
        raise Error(f"{path}: torch.load(weights_only=True, mmap=True) refuses it ({short(str(error).split(chr(10))[0])}); fetch it again "
                    "or convert it to safetensors") from None
    if not isinstance(found, dict):
        raise Error(f"{path}: holds no dictionary of tensors; a state dict is needed")
    for name, tensor in found.items():
        if type(name) is not str or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise Error(f"{path}: entry {short(name)} is no tensor under a name; a state dict is needed")
        if tensor.dtype not in SAFETENSORS and not name.endswith("rotary_emb.inv_freq"):
            raise Error(f"{path}: tensor {short(name)} has dtype {tensor.dtype}; redlite reads {', '.join(SAFETENSORS.values())}")
    return {name: Stored(tuple(t.shape), f"{path}: tensor {short(name)}", partial(_fill_from_mapping, t.detach(), f"{path}: tensor {short(name)}"))
            for name, t in found.items()}


def _fill_from_mapping(tensor: Tensor, where: str, out: Tensor) -> None:
    """Copy a tensor that torch.load has mapped, in blocks of rows, and let go of each block's pages."""
    rows = max(1, COPY_BYTES // max(1, tensor[0].nbytes)) if tensor.dim() and len(tensor) else 1
    for first in range(0, len(tensor), rows) if tensor.dim() else ():
        block, copy = tensor[first:first + rows], out[first:first + rows]
        copy.copy_(block)
        if copy.numel() and not all(x.isfinite() for x in copy.aminmax()):  # needs no memory of the block's size, as isfinite of it all would
            raise Error(f"{where}: NaN, infinite values or values beyond the range of {str(out.dtype)[6:]}; use float32 or fetch the file again")
        _release(block)


def _release(block: Tensor) -> None:
    """Drop the pages of a block in a mapped file from this process's memory; they are read again should anyone ask."""
    if sys.platform != "linux" or not block.is_contiguous():
        return
    page = mmap.PAGESIZE
    first, end = -(-block.data_ptr() // page) * page, (block.data_ptr() + block.nbytes) // page * page
    if end > first:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), mmap.MADV_DONTNEED)


# ---- GGUF ----

def gguf_blocks(source: GGUF, config: Config) -> dict[str, tuple[str, Callable[[], np.ndarray], tuple[int, ...]]]:
    """parameter → (tensor type, function that gives its stored blocks, shape) for kernels that multiply by quantised blocks.

    The blocks are uint8 [rows, bytes a row] with the rows in the parameter's order: a view of the file, or for
    reordered Q and K a copy of that one tensor.
    """
    def blocks(tensor: str, order: np.ndarray | None) -> np.ndarray:
        rows = source.packed(tensor)
        rows = rows.reshape(len(rows), -1)
        return rows if order is None else rows[order]

    found = {}
    for info in source.tensors.values():
        if name := gguf_llama.hf_name(info.name):
            found[name] = info.type, partial(blocks, info.name, gguf_llama.row_order(config, source.metadata["general.architecture"], name)), info.shape
    return found


def _gguf_tensors(source: GGUF, config: Config) -> dict[str, Stored]:
    stored = {}
    for info in source.tensors.values():
        if info.name == gguf_llama.ROPE:
            continue
        name, where = gguf_llama.hf_name(info.name), f"{source.path}: tensor {short(info.name)}"
        order = gguf_llama.row_order(config, source.metadata["general.architecture"], name) if name else None
        stored[name or info.name] = Stored.at(Place(partial(nullcontext, source), info.offset, info.type, order), info.shape, where)
    return stored


# ---- saving ----

def save_pretrained(model: LLaMA, directory, source_dir=None, dtype: torch.dtype | None = None) -> None:
    """Write a Hugging Face directory that transformers and `redlite.load` take: config.json, weights, tokenizer files.

    source_dir  the directory or .gguf file that the model came from: its tokenizer files are copied (made, from a GGUF)
    dtype       of the written weights; None: as they are
    Weights go to model.safetensors, or above 5 GB to numbered files and an index. Each file appears whole or not at
    all, config.json last. Parameters may be sharded over ranks (DTensor): then every rank calls this, and rank 0
    writes. Raises Error if the directory already holds other weights, or cannot be written.
    """
    directory = Path(directory)
    first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    kinds = {name: dtype or p.dtype for name, p in model.named_parameters()}
    shards = _shards({name: p.numel() * kinds[name].itemsize for name, p in model.named_parameters()})
    names = ["model.safetensors"] if len(shards) == 1 else [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if first:
        _prepare(directory, {*names, *(["model.safetensors.index.json"] if len(names) > 1 else [])})
    parameters = dict(model.named_parameters())
    for file, shard in zip(names, shards):
        _write_safetensors(directory / file if first else None, {name: (parameters[name], kinds[name]) for name in shard})
    if not first:
        return
    if len(names) > 1:
        total = sum(p.numel() * kinds[name].itemsize for name, p in parameters.items())
        write_json(directory / "model.safetensors.index.json",
                   {"metadata": {"total_size": total}, "weight_map": {name: file for file, shard in zip(names, shards) for name in shard}})
    if source_dir is not None:
        _copy_tokenizer(Path(source_dir), directory)
    stored = {str(k)[6:] for k in kinds.values()}
    write_json(directory / "config.json", model.config.to_hf() | ({"torch_dtype": stored.pop()} if len(stored) == 1 else {}))


def _shards(sizes: dict[str, int]) -> list[list[str]]:
    """Names in order, cut where SHARD_BYTES would be passed."""
    shards, held = [[]], 0
    for name, size in sizes.items():
        if shards[-1] and held + size > SHARD_BYTES:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards


def _prepare(directory: Path, names: set[str]) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Error(f"{directory}: cannot be made ({error.strerror}); choose another directory") from None
    for old in sorted(p for pattern in ("*.safetensors*", "pytorch_model*.bin*") for p in directory.glob(pattern)):
        if old.name not in names:
            raise Error(f"{old}: is a file of other weights, which would be mixed up with the new ones; remove it or choose another directory")


def _write_safetensors(path: Path | None, tensors: dict[str, tuple[Tensor, torch.dtype]]) -> None:
    """One safetensors file, tensor by tensor; path None: only take part in gathering sharded parameters."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (tensor, kind) in tensors.items():
        end = at + tensor.numel() * kind.itemsize
        header[name], at = {"dtype": SAFETENSORS[kind], "shape": list(tensor.shape), "data_offsets": [at, end]}, end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned, as the format asks

    def pieces():
        yield len(text).to_bytes(8, "little") + text
        for tensor, kind in tensors.values():
            whole = tensor.detach()
            whole = whole.full_tensor() if hasattr(whole, "full_tensor") else whole
            yield whole.to("cpu", kind).contiguous().view(-1).view(torch.uint8).numpy()

    if path is None:
        for _ in pieces():
            pass
    else:
        with replacing(path) as file:
            for piece in pieces():
                file.write(piece)


def _copy_tokenizer(source: Path, directory: Path) -> None:
    if is_gguf(source):
        export.write(source, directory)
        return
    for name in TOKENIZER_FILES:
        if (source / name).exists() and (source / name).resolve() != (directory / name).resolve():
            try:
                content = (source / name).read_bytes()
            except OSError as error:
                raise Error(f"{source / name}: cannot be read ({error.strerror})") from None
            write_atomic(directory / name, content)
