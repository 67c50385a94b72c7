"""The files of a Hugging Face directory's weights, and the headers of those in safetensors; no torch.

Names, shapes, dtypes and offsets are compared with the files' sizes before the first number is read.
"""
import math
import re
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from redlite.errors import Error
from redlite.store.files import loads, read_json
from redlite.store.text import short

HEADER_BYTES = 100_000_000  # the most that the safetensors format allows
PLAIN = {"F32": 4, "F16": 2, "BF16": 2}  # bytes of a number
CODES = {"F8_E4M3": 1, "I8": 1, "U8": 1, "I32": 4, "I64": 8}  # of what quantised weights consist of
FETCH = "the file is damaged, fetch it again"


class Entry(NamedTuple):
    """A tensor in a safetensors file. offset, nbytes: of its bytes, from the start of the file."""
    kind: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def weight_files(folder: Path) -> tuple[dict[str, str], list[Path]]:
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


def safetensors_entries(path: Path) -> dict[str, Entry]:
    """The tensors of one file: eight bytes of length, a JSON header, the numbers.

    Format: github.com/huggingface/safetensors. Raises Error for a header that is damaged.
    """
    header, start, data_bytes = _safetensors_header(path)
    found: dict[str, Entry] = {}
    spans = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        where = f"{path}: tensor {short(name)}"
        shape, kind, first, end = _entry(entry, where, data_bytes)
        spans.append((first, end, where))
        found[name] = Entry(kind, shape, start + first, end - first)
    spans.sort()
    for (_, before, _), (first, _, where) in zip(spans, spans[1:], strict=False):  # each with its next
        if first < before:
            raise Error(f"{where} overlaps another; {FETCH}")
    return found


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
    sizes_of = PLAIN | CODES
    if not isinstance(kind, str) or kind not in sizes_of:
        raise Error(f"{where} has dtype {short(kind)}; redlite reads {', '.join(sizes_of)}")
    if not start <= end <= data_bytes:
        raise Error(f"{where} lies at bytes {start} to {end} of {data_bytes}; the file is truncated, "
                    "fetch it again")
    if len(shape) > 8 or math.prod(shape) * sizes_of[kind] != end - start:
        raise Error(f"{where} of shape {short(list(shape))} and dtype {kind} does not fill its {end - start} "
                    f"bytes; {FETCH}")
    return shape, kind, start, end


def _sizes(values: Any) -> TypeGuard[list[int]]:
    """Whether values are a list of whole numbers, none below 0."""
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)
