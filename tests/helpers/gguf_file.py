"""Writes GGUF files for tests, from docs/gguf.md of github.com/ggml-org/ggml, apart from redlite's reader."""
import struct

import numpy as np

TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q8_0": 8, "Q4_K": 12, "Q6_K": 14, "BF16": 30,
         "Q2_K": 10, "Q3_K": 11, "Q5_K": 13, "IQ2_XS": 17, "MXFP4": 39}
ARRAYS = {"i4": 5, "u4": 4, "f4": 6, "i8": 11, "b1": 7}


def text(s: str | bytes) -> bytes:
    s = s.encode() if isinstance(s, str) else s
    return struct.pack("<Q", len(s)) + s


def value(v) -> bytes:
    """Type and value: bool, int (uint32, or int64 below 0), float (float32), str, list of str, numpy
    array.
    """
    if isinstance(v, bool):
        return struct.pack("<I?", 7, v)
    if isinstance(v, int):
        return struct.pack("<II", 4, v) if v >= 0 else struct.pack("<Iq", 11, v)
    if isinstance(v, float):
        return struct.pack("<If", 6, v)
    if isinstance(v, str):
        return struct.pack("<I", 8) + text(v)
    if isinstance(v, np.ndarray):
        return struct.pack("<IIQ", 9, ARRAYS[v.dtype.str[1:]], len(v)) + v.tobytes()
    return struct.pack("<IIQ", 9, 8, len(v)) + b"".join(map(text, v))


def stored(file) -> list[tuple[str, tuple[int, ...], str, bytes]]:
    """The tensors of an open redlite.weights.gguf.GGUF, as `write` takes them."""
    whole = file.path.read_bytes()
    return [(t.name, t.shape, t.type, whole[t.offset:t.offset + t.nbytes]) for t in file.tensors.values()]


def tokenizer_of(path):
    """redlite's tokenizer of a model: a directory or a GGUF file."""
    from redlite.text import tokenizer
    from redlite.weights.gguf import GGUF
    if not path.is_file():
        return tokenizer.load(path)
    with GGUF(path) as file:
        return tokenizer.from_gguf(path, file.metadata)


def write(path, metadata: dict, tensors: list[tuple[str, tuple[int, ...], str, bytes]], alignment: int = 32,
          version: int = 3):
    """tensors: (name, shape with rows first, type, stored bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors),
                                 len(metadata)) + b"".join(text(k) + value(v) for k, v in metadata.items())
    at, data = 0, b""
    for name, shape, kind, content in tensors:
        head += (
            text(name)
            + struct.pack("<I", len(shape))
            + struct.pack(f"<{len(shape)}Q", *reversed(shape))
            + struct.pack("<IQ", TYPES[kind], at)
        )
        data += content + bytes(-len(content) % alignment)
        at = len(data)
    path.write_bytes(head + bytes(-len(head) % alignment) + data)
    return path
