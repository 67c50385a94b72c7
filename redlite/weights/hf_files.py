"""The weight files of a Hugging Face directory: which there are, and where each tensor lies in them.

No format can run code: .bin files are read with `weights_only=True`. Names, shapes, dtypes and offsets are
compared with the files' sizes before the first number is read.
"""
import ctypes
import math
import mmap
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeGuard

import torch
from torch import Tensor

from redlite.errors import Error
from redlite.store.files import loads, read_json
from redlite.store.text import short
from redlite.weights.gguf_formats import Place

COPY_BYTES = 1 << 22        # of a mapped .bin file that are touched at a time
HEADER_BYTES = 100_000_000  # the most that the safetensors format allows
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}  # names in safetensors files
CODES = {"F8_E4M3": 1, "I8": 1, "U8": 1, "I32": 4, "I64": 8}  # bytes of what quantised weights consist of
INVERSE_FREQUENCIES = "rotary_emb.inv_freq"  # a buffer of old checkpoints; it follows from the configuration
FETCH = "the file is damaged, fetch it again"


class Mapped(NamedTuple):
    """A tensor that `torch.load` has mapped into memory. where: file and tensor, for errors."""
    tensor: Tensor
    where: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def fill(self, out: Tensor) -> None:
        """Copy the tensor into `out`, in blocks of rows, and let go of each block's pages."""
        if not self.tensor.dim():
            out.copy_(self.tensor)
        if not self.tensor.dim() or not len(self.tensor):
            return
        rows = max(1, COPY_BYTES // max(1, self.tensor[0].nbytes))
        for first in range(0, len(self.tensor), rows):
            block, copy = self.tensor[first:first + rows], out[first:first + rows]
            copy.copy_(block)
            # The extremes need no memory of the block's size, as isfinite of all numbers would.
            if copy.numel() and not all(extreme.isfinite() for extreme in copy.aminmax()):
                dtype = str(out.dtype).removeprefix("torch.")
                raise Error(f"{self.where}: NaN, infinite values or values beyond the range of {dtype}; "
                            "use float32 or fetch the file again")
            _release(block)


class Stored(Protocol):
    """A tensor in files: `where` names file and tensor in errors."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def where(self) -> str: ...

    def fill(self, out: Tensor) -> None:
        """Fill a contiguous CPU tensor of any float dtype. Raises Error for what is damaged."""


def weight_files(folder: Path) -> list[Path]:
    """The files of a directory's weights, an index among them. Raises Error where there are none."""
    return _weight_files(folder)[1]


def tensors(folder: Path) -> dict[str, Stored]:
    """name → tensor, of all weights of a directory.

    Raises Error for files that contradict each other or are damaged.
    """
    listed, paths = _weight_files(folder)
    stored: dict[str, Stored] = {}
    for path in paths:
        if path.suffix == ".json":
            continue
        for name, tensor in tensors_of(path).items():
            if name.endswith(INVERSE_FREQUENCIES):
                continue
            if name in stored:
                raise Error(f"{tensor.where} is also in another file of {folder}; "
                            "keep one set of weights there")
            if listed and listed.get(name) != path.name:
                raise Error(f"{tensor.where} is not where the index in {folder} puts it; "
                            "fetch the files again")
            stored[name] = tensor
    for name, file in listed.items():
        if name not in stored and not name.endswith(INVERSE_FREQUENCIES):
            raise Error(f"{folder / file}: tensor {short(name)} is missing, though the index puts it there; "
                        "fetch the files again")
    return stored


def tensors_of(path: Path) -> dict[str, Stored]:
    """name → tensor, of one .safetensors or .bin file. Raises Error if it is damaged."""
    return _bin_tensors(path) if path.suffix == ".bin" else _safetensors(path)


def check_plain(stored: dict[str, Stored]) -> None:
    """Raises Error for a tensor that holds codes and no numbers."""
    for tensor in stored.values():
        if isinstance(tensor, Place) and tensor.kind in CODES:
            raise Error(f"{tensor.where} has dtype {tensor.kind}; redlite reads {', '.join(DTYPES.values())} "
                        "and, where config.json's quantization_config says how, codes")


def _weight_files(folder: Path) -> tuple[dict[str, str], list[Path]]:
    """(tensor → file of the index, or {}; the files, the index among them)."""
    for single, index, pattern in (
            ("model.safetensors", "model.safetensors.index.json", "*.safetensors"),
            ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model*.bin")):
        if (folder / single).exists():
            return {}, [folder / single]
        if (folder / index).exists():
            listed = _read_index(folder / index)
            return listed, [folder / index, *(folder / name for name in sorted(set(listed.values())))]
        if found := sorted(folder.glob(pattern)):
            return {}, found
    message = f"{folder}: has no weights (model.safetensors, pytorch_model.bin or their index)"
    if others := sorted(folder.glob("*.gguf")):
        message += f"; to use {others[0].name}, name that file itself"
    raise Error(message)


def _read_index(path: Path) -> dict[str, str]:
    """tensor → file of a sharded checkpoint. Only plain names of files beside the index are allowed."""
    raw = read_json(path)
    listed = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(listed, dict) or not listed:
        raise Error(f"{path}: has no weight_map of tensor and file names; {FETCH}")
    suffix = ".safetensors" if path.name.startswith("model") else ".bin"
    for tensor, name in listed.items():
        if type(name) is not str or not re.fullmatch(r"[^/\\:\0]+", name) or not name.endswith(suffix):
            raise Error(f"{path}: puts tensor {short(tensor)} into {short(name)}, which is no {suffix} file "
                        "beside it; refused")
    return listed


# ---- safetensors ----

def _safetensors(path: Path) -> dict[str, Stored]:
    """The tensors of one file: eight bytes of length, a JSON header, the numbers.

    Format: github.com/huggingface/safetensors.
    """
    header, start, data_bytes = _safetensors_header(path)
    stored: dict[str, Stored] = {}
    spans = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        where = f"{path}: tensor {short(name)}"
        shape, kind, first, end = _entry(entry, where, data_bytes)
        spans.append((first, end, where))
        stored[name] = Place(partial(open, path, "rb"), start + first, kind, shape, where)
    spans.sort()
    for (_, before, _), (first, _, where) in zip(spans, spans[1:], strict=False):  # each with its next
        if first < before:
            raise Error(f"{where} overlaps another; {FETCH}")
    return stored


def _safetensors_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """(the header, where the numbers begin, how many bytes they have)."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, HEADER_BYTES):
                raise Error(f"{path}: the header claims {length} bytes in a file of {size}; "
                            "it is truncated or no safetensors file, fetch it again")
            header = loads(file.read(length).decode("utf-8"))
    except OSError as error:
        raise Error(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise Error(f"{path}: the header is not valid JSON ({error}); {FETCH}") from None
    if not isinstance(header, dict):
        raise Error(f"{path}: the header is not a JSON object; {FETCH}")
    return header, 8 + length, size - 8 - length


def _entry(entry: Any, where: str, data_bytes: int) -> tuple[tuple[int, ...], str, int, int]:
    """(shape, dtype, start, end) of a tensor's entry in a header, compared with the size of the data."""
    fields = entry if isinstance(entry, dict) else {}
    kind, sizes, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not _sizes(sizes) or not _sizes(offsets) or len(offsets) != 2:
        raise Error(f"{where} has no proper shape and data_offsets; {FETCH}")
    shape: tuple[int, ...] = tuple(sizes)
    start, end = offsets
    plain = {name: dtype.itemsize for dtype, name in DTYPES.items()}
    if not isinstance(kind, str) or kind not in plain | CODES:
        raise Error(f"{where} has dtype {short(kind)}; redlite reads {', '.join(plain | CODES)}")
    if not start <= end <= data_bytes:
        raise Error(f"{where} lies at bytes {start} to {end} of {data_bytes}; the file is truncated, "
                    "fetch it again")
    if len(shape) > 8 or math.prod(shape) * (plain | CODES)[kind] != end - start:
        raise Error(f"{where} of shape {short(list(shape))} and dtype {kind} does not fill its {end - start} "
                    f"bytes; {FETCH}")
    return shape, kind, start, end


def _sizes(values: Any) -> TypeGuard[list[int]]:
    """Whether values are a list of whole numbers, none below 0."""
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)


# ---- PyTorch's .bin files ----

def _bin_tensors(path: Path) -> dict[str, Stored]:
    """The tensors of one file, mapped into memory and not read yet."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise Error(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:  # a damaged archive or pickle makes torch raise almost anything
        reason = short(str(error).partition("\n")[0])
        raise Error(f"{path}: torch.load(weights_only=True, mmap=True) refuses it ({reason}); "
                    "fetch it again or convert it to safetensors") from None
    if not isinstance(found, dict):
        raise Error(f"{path}: holds no dictionary of tensors; a state dict is needed")
    stored: dict[str, Stored] = {}
    for name, tensor in found.items():
        if type(name) is not str or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise Error(f"{path}: entry {short(name)} is no tensor under a name; a state dict is needed")
        if tensor.dtype not in DTYPES and not name.endswith(INVERSE_FREQUENCIES):
            raise Error(f"{path}: tensor {short(name)} has dtype {tensor.dtype}; "
                        f"redlite reads {', '.join(DTYPES.values())}")
        stored[name] = Mapped(tensor.detach(), f"{path}: tensor {short(name)}")
    return stored


def _release(block: Tensor) -> None:
    """Drop the pages of a block of a mapped file from this process's memory.

    They are read again if they are used.
    """
    if sys.platform != "linux" or not block.is_contiguous():
        return
    page = mmap.PAGESIZE
    first = -(-block.data_ptr() // page) * page
    end = (block.data_ptr() + block.nbytes) // page * page
    if end > first:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), mmap.MADV_DONTNEED)
