"""The weight files of a Hugging Face directory: which there are, and where each tensor lies in them.

No format can run code: .bin files are read with `weights_only=True`. Names, shapes, dtypes and offsets are
compared with the files' sizes before the first number is read.
"""
import ctypes
import mmap
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from redlite.errors import Error
from redlite.store.files import check_fetched, unreadable
from redlite.store.text import short
from redlite.weights.gguf_formats import Place
from redlite.weights.headers import CODES, INVERSE_FREQUENCIES, gathered, safetensors_entries

COPY_BYTES = 1 << 22        # of a mapped .bin file that are touched at a time
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}  # names in safetensors files


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
            check_finite(copy, self.where)
            _release(block)


def check_finite(numbers: Tensor, where: str) -> None:
    """Raises Error for NaN and infinity in numbers that were rounded to their dtype.

    The extremes need no memory of the tensor's size, as isfinite of all numbers would.
    """
    if numbers.numel() and not all(extreme.isfinite() for extreme in numbers.aminmax()):
        dtype = str(numbers.dtype).removeprefix("torch.")
        other = "" if dtype == "float32" else "use float32 or "
        raise Error(f"{where}: NaN, infinite values or values beyond the range of {dtype}; "
                    f"{other}fetch the file again")


class Stored(Protocol):
    """A tensor in files: `where` names file and tensor in errors."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def where(self) -> str: ...

    def fill(self, out: Tensor) -> None:
        """Fill a contiguous CPU tensor of any float dtype. Raises Error for what is damaged."""


def tensors(folder: Path) -> dict[str, Stored]:
    """name → tensor, of all weights of a directory.

    Raises Error for files that contradict each other or are damaged.
    """
    return gathered(folder, tensors_of)


def tensors_of(path: Path) -> dict[str, Stored]:
    """name → tensor, of one .safetensors or .bin file. Raises Error if it is damaged."""
    return _bin_tensors(path) if path.suffix == ".bin" else _safetensors(path)


def check_plain(stored: dict[str, Stored]) -> None:
    """Raises Error for a tensor that holds codes and no numbers."""
    for tensor in stored.values():
        if isinstance(tensor, Place) and tensor.kind in CODES:
            raise Error(f"{tensor.where} has dtype {tensor.kind}; redlite reads {', '.join(DTYPES.values())} "
                        "and, where config.json's quantization_config says how, codes")


# ---- safetensors ----

def _safetensors(path: Path) -> dict[str, Stored]:
    """The tensors of one file."""
    opened = partial(open, path, "rb")
    return {name: Place(opened, entry.offset, entry.kind, entry.shape, f"{path}: tensor {short(name)}")
            for name, entry in safetensors_entries(path).items()}


# ---- PyTorch's .bin files ----

def _bin_tensors(path: Path) -> dict[str, Stored]:
    """The tensors of one file, mapped into memory and not read yet."""
    try:
        with open(path, "rb") as file:
            check_fetched(path, file.read(32))
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Error:
        raise
    except OSError as error:
        raise unreadable(path, error) from None
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
