"""The GGUF container (versions 2 and 3, little-endian): metadata, and where each tensor lies.

A model may be split over files that llama.cpp names NAME-00001-of-00003.gguf. Each is a whole GGUF file; the
first one has the metadata.

It needs no torch. Format: github.com/ggml-org/ggml, docs/gguf.md. gguf_types.py says how the tensors' bytes
are numbers, gguf_formats.py reads them.

Nothing in a file is believed. Every count, length and offset is compared with the file's size before anything
is allocated. So memory stays within a small multiple of the file's size, the time within one pass over it.
"""
import math
import mmap
import os
import struct
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from redlite.errors import Error
from redlite.store.files import Hashing, check_fetched, unreadable
from redlite.store.text import short
from redlite.text.lazy_pattern import LazyPattern
from redlite.weights.gguf_types import NAMES, OTHERS, TYPES

U32, U64 = struct.Struct("<I"), struct.Struct("<Q")
SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?",
           10: "<u8", 11: "<i8", 12: "<f8"}
BOOL, STRING, ARRAY = 7, 8, 9
MOST_ALIGNMENT = 1 << 20
SMALLEST_TENSOR, SMALLEST_PAIR = 32, 13  # bytes of the shortest possible record
PART = LazyPattern(r"(?P<name>.+)-[0-9]{5}-of-(?P<count>[0-9]{5})\.gguf")  # llama.cpp's split_path


class TensorInfo(NamedTuple):
    """A stored tensor.

    shape   in torch's order, rows first
    type    a key of TYPES
    offset  of its first byte, from the start of the file
    nbytes  how many bytes it has
    part    the file of a split model that holds it, from 0
    """
    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int
    part: int = 0


class Part:
    """One open file. It is closed by `close`, or when nothing refers to it any more.

    metadata  key → bool, int, float, str, list of str, or numpy array of numbers
    tensors   name → TensorInfo, in the file's order
    without   keys of lists of texts that are not read: they are there as empty lists
    Raises Error with file and field for anything malformed, and for a tensor type that is not in TYPES.
    """

    def __init__(self, path: Path, without: tuple[str, ...] = ()):
        self.path = path
        try:
            if not path.is_file():
                raise Error(f"{path}: is not a file")
            file = open(path, "rb")  # noqa: SIM115 (closed by self.close)
        except OSError as error:
            raise unreadable(path, error) from None
        self.close = weakref.finalize(self, file.close)
        self._descriptor = file.fileno()
        self._hashing: Hashing | None = None
        try:
            size = os.fstat(self._descriptor).st_size
            if size < 24:
                raise Error(f"{path}: has only {size} bytes; a GGUF file was expected")
            with mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ) as data:
                reader = _Reader(data, self.path)
                tensors, pairs = reader.start()
                self.metadata: dict[str, Any] = reader.metadata(pairs, without)
                self.tensors: dict[str, TensorInfo] = reader.tensors(tensors, self.metadata)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """The descriptor of the open file. Raises Error once it is closed."""
        if not self.close.alive:
            raise Error(f"{self.path}: is closed")
        return self._descriptor

    def start_hashing(self) -> None:
        """Begin to compute `sha256` in a thread, beside what else there is to do."""
        if self._hashing is None:
            self._hashing = Hashing(self.path, self.fileno())

    def sha256(self) -> str:
        """SHA-256 of the whole file, computed once, from the open descriptor.

        Raises Error if it cannot be read.
        """
        self.start_hashing()
        assert self._hashing is not None
        return self._hashing.result()


class GGUF:
    """An open model: one GGUF file, or all parts of one that is split, whichever of them `path` names.

    path      of the file, or of the first part
    parts     the open files
    metadata  of the first part
    tensors   name → TensorInfo, of all parts, in the files' order
    It is closed by `close`, by a `with` block, or when nothing refers to it any more. Raises Error as `Part`
    does, and for a part that is missing or belongs to another model. `without` is `Part`'s.
    """

    def __init__(self, path: str | Path, without: tuple[str, ...] = ()):
        self.parts = [Part(Path(path), without)]
        try:
            if count := _split_count(self.parts[0]):
                self._open_parts(count)
        except BaseException:
            self.close()
            raise
        self.path, self.metadata = self.parts[0].path, self.parts[0].metadata
        self.tensors: dict[str, TensorInfo] = {}
        for i, part in enumerate(self.parts):
            for name, info in part.tensors.items():
                if name in self.tensors:
                    raise Error(f"{part.path}: tensor {short(name)} is also in another part of the model; "
                                "fetch the parts again")
                self.tensors[name] = info._replace(part=i)

    def _open_parts(self, count: int) -> None:
        """Open what lies beside the one part that is open, and check that they are one model."""
        given = self.parts[0]
        match = PART.fullmatch(given.path.name)
        if match is None or int(match["count"]) != count:
            raise Error(f"{given.path}: is one of {count} parts of a split model, but not named "
                        f"NAME-0000N-of-{count:05d}.gguf as llama.cpp names them; give it its name back")
        paths = [given.path.with_name(f"{match['name']}-{i + 1:05d}-of-{count:05d}.gguf")
                 for i in range(count)]
        for path in paths:
            if not path.is_file():
                raise Error(f"{path}: is missing; the model is split over {count} files, "
                            "which must lie side by side")
        self.parts = [given if path == given.path else Part(path) for path in paths]
        for i, part in enumerate(self.parts):
            if (part.metadata.get("split.no"), part.metadata.get("split.count")) != (i, count):
                raise Error(f"{part.path}: does not say that it is part {i + 1} of {count}; "
                            "fetch the parts again")
        stated, found = given.metadata.get("split.tensors.count"), sum(len(p.tensors) for p in self.parts)
        if stated is not None and stated != found:
            raise Error(f"{given.path}: the model's {count} parts hold {found} tensors and should hold "
                        f"{short(stated)}; fetch the parts again")

    def __enter__(self) -> "GGUF":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every file."""
        for part in self.parts:
            part.close()

    def start_hashing(self) -> None:
        """Begin to compute `hashes` in threads, beside what else there is to do."""
        for part in self.parts:
            part.start_hashing()

    def hashes(self) -> dict[str, str]:
        """File name → SHA-256 of each part; see `Part.sha256`."""
        self.start_hashing()
        return {part.path.name: part.sha256() for part in self.parts}

    def tensor(self, name: str) -> TensorInfo:
        """The tensor of that name. Raises Error where there is none."""
        if name not in self.tensors:
            raise Error(f"{self.path}: there is no tensor {short(name)}")
        return self.tensors[name]

    def numbers(self, name: str) -> np.ndarray:
        """A small tensor as float32, flat, without torch. Raises Error if it is damaged."""
        info = self.tensor(name)
        form, out = TYPES[info.type], np.empty(math.prod(info.shape), np.float32)
        raw = np.frombuffer(_read(self.parts[info.part], info), np.uint8)
        with np.errstate(invalid="ignore", over="ignore"):
            form.decode(raw.reshape(-1, form.size), out.reshape(-1, form.elements))
        if not np.isfinite(out).all():
            raise Error(f"{self.path}: tensor {short(name)}: NaN or infinite values; "
                        "the file is damaged, fetch it again")
        return out


def _read(part: Part, info: TensorInfo) -> bytes:
    """A tensor's bytes. Raises Error if the file became shorter, or cannot be read."""
    try:
        raw = os.pread(part.fileno(), info.nbytes, info.offset)
    except OSError as error:
        raise unreadable(part.path, error) from None
    if len(raw) < info.nbytes:
        raise Error(f"{part.path}: tensor {short(info.name)}: the file became shorter while it was read")
    return raw


def _split_count(part: Part) -> int:
    """Over how many files a model is split; 0 for one that is whole."""
    count = part.metadata.get("split.count", 0)
    if type(count) is not int or not 0 <= count < 1 << 16:
        raise Error(f"{part.path}: metadata 'split.count' is {short(count)}; a small number is needed")
    return count if count > 1 else 0


class _Reader:
    """A position in the mapped file that never passes its end."""

    def __init__(self, data: mmap.mmap, path: Path):
        self.data, self.path, self.at, self.size = data, path, 0, len(data)

    def fail(self, what: str) -> Error:
        return Error(f"{self.path}: {what}; the file is damaged or not a GGUF file")

    def take(self, count: int, what: str) -> int:
        """The place of the next `count` bytes; the position moves behind them."""
        if count > self.size - self.at:
            raise self.fail(f"ends at byte {self.size}, inside {what}")
        at, self.at = self.at, self.at + count
        return at

    def u32(self, what: str) -> int:
        return int(U32.unpack_from(self.data, self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(U64.unpack_from(self.data, self.take(8, what))[0])

    def text(self, what: str) -> str:
        length = self.u64(what)
        at = self.take(length, what)
        try:
            return self.data[at:at + length].decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8") from None

    def start(self) -> tuple[int, int]:
        """The fixed header: (number of tensors, number of metadata pairs)."""
        check_fetched(self.path, self.data[:32])
        if self.data[:4] != b"GGUF":
            raise Error(f"{self.path}: is not a GGUF file (it does not begin with the letters GGUF); "
                        "give a .gguf file, or a model's directory")
        self.at = 4
        version = self.u32("the version")
        if version not in (2, 3):
            big_endian = version in (2 << 24, 3 << 24)
            why = "is big-endian" if big_endian else f"has GGUF version {version}"
            raise Error(f"{self.path}: {why}; redlite reads little-endian versions 2 and 3")
        tensors, pairs = self.u64("the header"), self.u64("the header")
        claims = (tensors, SMALLEST_TENSOR, "tensors"), (pairs, SMALLEST_PAIR, "metadata pairs")
        for count, least, what in claims:
            if count > self.size // least:
                raise self.fail(f"claims {count} {what} in {self.size} bytes")
        return tensors, pairs

    def metadata(self, pairs: int, without: tuple[str, ...] = ()) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for i in range(pairs):
            key = self.text(f"the key of metadata pair {i}")
            if key in found:
                raise self.fail(f"metadata key {short(key)} is there twice")
            found[key] = self.value(self.u32("a metadata type"), f"metadata {short(key)}", key not in without)
        return found

    def value(self, kind: int, what: str, read: bool = True) -> Any:
        """The next value. read: False to pass over the texts of a list."""
        if kind == STRING:
            return self.text(what)
        if kind == ARRAY:
            inner, count = self.u32(what), self.u64(what)
            if inner == STRING:
                return self.texts(count, what) if read else self.pass_over(count, what)
            if inner == ARRAY:
                raise self.fail(f"{what} is an array of arrays, which no model has")
            return self.numbers(inner, count, what)
        return self.numbers(kind, 1, what)[0].item()

    def numbers(self, kind: int, count: int, what: str) -> np.ndarray:
        """The next `count` numbers."""
        if kind not in SCALARS:
            raise self.fail(f"{what} has the unknown type {kind}")
        dtype = np.dtype(SCALARS[kind])
        at = self.take(count * dtype.itemsize, what)
        raw = np.frombuffer(self.data[at:self.at], np.uint8)
        if kind == BOOL and count and raw.max() > 1:
            raise self.fail(f"{what} has a truth value that is neither 0 nor 1")
        return raw.view(dtype)

    def texts(self, count: int, what: str) -> list[str]:
        """An array of texts. A vocabulary has a hundred thousand, so this is `text` in one tight loop."""
        if count > (self.size - self.at) // 8:
            raise self.fail(f"{what} claims {count} strings")
        data, size, at, unpack, found = self.data, self.size, self.at, U64.unpack_from, []
        for i in range(count):
            start = at + 8
            end = start + unpack(data, at)[0] if start <= size else start
            if end > size:
                raise self.fail(f"ends at byte {size}, inside {what}, string {i}")
            try:
                found.append(data[start:end].decode())
            except UnicodeDecodeError:
                raise self.fail(f"{what}, string {i}, is not UTF-8") from None
            at = end
        self.at = at
        return found

    def pass_over(self, count: int, what: str) -> list[str]:
        """Move behind an array of texts without reading them."""
        data, size, at, unpack = self.data, self.size, self.at, U64.unpack_from
        for i in range(count):
            if at + 8 > size or (at := at + 8 + unpack(data, at)[0]) > size:
                raise self.fail(f"ends at byte {size}, inside {what}, string {i}")
        self.at = at
        return []

    def tensors(self, count: int, metadata: dict[str, Any]) -> dict[str, TensorInfo]:
        """The table of tensors, which stands between the metadata and the tensors' bytes."""
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= MOST_ALIGNMENT or alignment & (alignment - 1):
            raise self.fail(f"metadata 'general.alignment' is {short(alignment)}; a power of two is needed")
        found: dict[str, TensorInfo] = {}
        for i in range(count):
            info = self.tensor(i, alignment)
            if info.name in found:
                raise self.fail(f"tensor {short(info.name)} is there twice")
            found[info.name] = info
        start, end = -(-self.at // alignment) * alignment, 0  # the bytes begin at the next aligned place
        for info in sorted(found.values(), key=lambda t: t.offset):
            if info.offset < end:
                raise self.fail(f"tensor {short(info.name)} overlaps another")
            end = info.offset + info.nbytes
            if start + end > self.size:
                raise Error(f"{self.path}: tensor {short(info.name)} needs {info.nbytes} bytes at "
                            f"{start + info.offset} and the file has {self.size}; it is truncated, "
                            "fetch it again")
        return {name: info._replace(offset=start + info.offset) for name, info in found.items()}

    def tensor(self, number: int, alignment: int) -> TensorInfo:
        """One row of the table. Its offset still counts from the start of the tensors' bytes."""
        name = self.text(f"the name of tensor {number}")
        what = f"tensor {short(name)}"
        dimensions = self.u32(what)
        if not 1 <= dimensions <= 4:
            raise self.fail(f"{what} has {dimensions} dimensions")
        shape = tuple(self.u64(what) for _ in range(dimensions))[::-1]
        code, offset = self.u32(what), self.u64(what)
        if code not in NAMES:
            raise Error(f"{self.path}: {what} has type {OTHERS.get(code, code)}, which redlite does not "
                        f"read; it reads {', '.join(TYPES)}")
        kind = NAMES[code]
        form = TYPES[kind]
        if 0 in shape or shape[-1] % form.elements:
            raise self.fail(f"{what} of type {kind} has the impossible shape {short(shape)}")
        nbytes = math.prod(shape) // form.elements * form.size
        if nbytes > self.size:
            raise self.fail(f"{what} of shape {short(shape)} needs {nbytes} bytes in a file of {self.size}")
        if offset % alignment:
            raise self.fail(f"{what} begins at {offset}, which is no multiple of the alignment {alignment}")
        return TensorInfo(name, shape, kind, offset, nbytes)
