"""Writes tests/golden/gguf_blocks.json: numbers that llama.cpp decodes from random blocks of every tensor
type.

Run by hand where llama-cpp-python is installed beside redlite:  python tests/beside/make_gguf_goldens.py
It calls `ggml_get_type_traits(type)->to_float` of llama.cpp's library over ctypes. Blocks come from numpy's
generator.
"""
import ctypes
import json
import sys
import zlib
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "helpers"))
from gguf_file import TYPES  # noqa: E402

SIZES = {"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (32, 34), "Q4_0": (32, 18), "Q4_1": (32, 20),
         "Q5_0": (32, 22), "Q4_K": (256, 144), "Q6_K": (256, 210)}
HALVES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q4_K": [0, 2], "Q6_K": [208],
          "F16": [0]}  # where a block holds half-precision numbers


def blocks(kind: str, count: int = 4) -> bytes:
    """Random blocks with finite scales, the first with scale 0, the second with a subnormal one; plain types
    hold 32 numbers a block.
    """
    elements, size = SIZES[kind]
    rng = np.random.default_rng(zlib.crc32(kind.encode()))
    if elements == 1:
        values = rng.standard_normal(32 * count).astype(np.float32)
        return (
            values.astype("<f2").tobytes()
            if kind == "F16"
            else values.tobytes()
            if kind == "F32"
            else (values.view(np.uint32) >> 16).astype("<u2").tobytes()
        )
    raw = rng.integers(0, 256, (count, size)).astype(np.uint8)
    for at in HALVES[kind]:
        scales = rng.standard_normal(count).astype("<f2")
        scales[:2] = 0, 1e-6
        raw[:, at:at + 2] = scales.view(np.uint8).reshape(count, 2)
    return raw.tobytes()


def main():
    import llama_cpp

    class Traits(ctypes.Structure):
        _fields_ = [("name", ctypes.c_char_p), ("elements", ctypes.c_int64), ("interleave", ctypes.c_int64),
                    ("size", ctypes.c_size_t),
                    ("quantized", ctypes.c_bool),
                    ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64))]

    library = ctypes.CDLL(str(next(Path(llama_cpp.__file__).parent.rglob("libggml-base.so"))))
    library.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    out = {}
    for kind, (elements, size) in SIZES.items():
        raw, traits = blocks(kind), library.ggml_get_type_traits(TYPES[kind]).contents
        if (traits.elements, traits.size) != (elements, size):
            raise SystemExit(f"{kind}: llama.cpp has blocks of {traits.elements} in {traits.size} bytes")
        if kind == "F32":
            continue
        numbers = np.empty(len(raw) // size * elements, np.float32)
        traits.to_float(raw, numbers.ctypes.data, len(numbers))
        out[kind] = numbers.tobytes().hex()
    text = json.dumps({"llama_cpp": llama_cpp.__version__, "float32": out}, indent=0)
    (Path(__file__).parents[1] / "golden" / "gguf_blocks.json").write_text(text + "\n")
    print({k: len(v) // 8 for k, v in out.items()}, len(text))


if __name__ == "__main__":
    main()
