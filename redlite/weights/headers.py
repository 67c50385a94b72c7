"""The files of a Hugging Face directory's weights, and the headers of those in safetensors; no torch.

Names, shapes, dtypes and offsets are compared with the files' sizes before the first number is read.
"""
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard, TypeVar

from redlite.errors import Error
from redlite.store.files import check_fetched, loads, read_json, unreadable
from redlite.store.text import short
from redlite.text.lazy_pattern import LazyPattern
from redlite.weights.fit import Told

HEADER_BYTES = 100_000_000  # the most that the safetensors format allows
PLAIN = {"F32": 4, "F16": 2, "BF16": 2}  # bytes of a number
CODES = {"F8_E4M3": 1, "I8": 1, "U8": 1, "I32": 4, "I64": 8}  # of what quantised weights consist of
INVERSE_FREQUENCIES = "rotary_emb.inv_freq"  # a buffer of old checkpoints; it follows from the configuration
FETCH = "the file is damaged, fetch it again"
OWN_LAYOUT = "consolidated"     # the beginning of names of Meta's and Mistral's own files
SHARD = LazyPattern(r"(?P<name>.+)-(?P<part>[0-9]{5})-of-(?P<count>[0-9]{5})(?P<suffix>\.[a-z]+)")
T = TypeVar("T", bound=Told)


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
        found = [path for path in sorted(folder.glob(pattern)) if not path.name.startswith(OWN_LAYOUT)]
        if found:
            _check_shards(found)
            return {}, found
    if found := sorted(folder.glob(f"{OWN_LAYOUT}*.safetensors")):
        return {}, found
    message = f"{folder}: has no weights (model.safetensors, pytorch_model.bin or their index)"
    if others := sorted(folder.glob("*.gguf")):
        message += f"; to use {others[0].name}, name that file itself"
    raise Error(message)


def _check_shards(found: list[Path]) -> None:
    """Raises Error for a file that is missing by the names of the others, NAME-00001-of-00003 and so on."""
    names = {path.name for path in found}
    for path in found:
        match = SHARD.fullmatch(path.name)
        for i in range(int(match["count"]) if match else 0):
            name = f"{match['name']}-{i + 1:05d}-of-{match['count']}{match['suffix']}"
            if name not in names:
                raise Error(f"{path.with_name(name)}: is missing; the weights are split over "
                            f"{int(match['count'])} files, which must lie side by side")


def gathered(folder: Path, read: Callable[[Path], dict[str, T]]) -> dict[str, T]:
    """name → tensor, of all files of weights of a directory.

    read  gives the tensors of one file
    Raises Error for files that are missing or contradict each other or their index.
    """
    listed, paths = weight_files(folder)
    found: dict[str, T] = {}
    for path in paths:
        if path.suffix == ".json":
            continue
        if not path.is_file():
            raise Error(f"{path}: is missing; fetch the files again")
        for name, tensor in read(path).items():
            if name.endswith(INVERSE_FREQUENCIES):
                continue
            if name in found:
                raise Error(f"{tensor.where} is also in another file of {folder}; "
                            "keep one set of weights there")
            if listed and listed.get(name) != path.name:
                raise Error(f"{tensor.where} is not where the index in {folder} puts it; "
                            "fetch the files again")
            found[name] = tensor
    for name, file in listed.items():
        if name not in found and not name.endswith(INVERSE_FREQUENCIES):
            raise Error(f"{folder / file}: tensor {short(name)} is missing, though the index puts it there; "
                        "fetch the files again")
    return found


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
            start = file.read(32)
            check_fetched(path, start)
            length = int.from_bytes(start[:8], "little")
            if size < 8 or length > min(size - 8, HEADER_BYTES):
                raise Error(f"{path}: the header claims {length} bytes in a file of {size}; "
                            "it is truncated or no safetensors file, fetch it again")
            file.seek(8)
            header = loads(file.read(length).decode("utf-8"))
    except OSError as error:
        raise unreadable(path, error) from None
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
