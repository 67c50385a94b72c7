"""Writes tests/golden/gguf_types.json: what the gguf package decodes from random blocks of every type.

Run by hand where gguf is installed:  python tests/beside/make_gguf_type_goldens.py
For each type: its code, numbers and bytes of a block, and SHA-256 of the float32 bits of BLOCKS blocks,
with the first eight numbers for a reader. Blocks come from numpy's generator; F64 is rounded by numpy.
"""
import hashlib
import json
import zlib
from pathlib import Path

import numpy as np

BLOCKS = 64
# The high bytes of a block's halves, and MXFP4's exponent. Bit 6 is cleared there, so that none is huge.
HALVES = {"F16": [1], "Q8_0": [1], "Q4_0": [1], "Q4_1": [1, 3], "Q5_0": [1], "Q5_1": [1, 3], "Q2_K": [81, 83],
          "Q3_K": [109], "Q4_K": [1, 3], "Q5_K": [1, 3], "Q6_K": [209], "TQ1_0": [53], "TQ2_0": [65],
          "IQ4_NL": [1], "IQ4_XS": [1], "IQ2_XXS": [1], "IQ2_XS": [1], "IQ2_S": [1], "IQ3_XXS": [1],
          "IQ3_S": [1], "IQ1_S": [1], "IQ1_M": [55], "F32": [3], "BF16": [1], "F64": [7],
          "MXFP4": [0], "NVFP4": []}


def random_blocks(kind: str, size: int) -> np.ndarray:
    """Random bytes [BLOCKS, size] of finite blocks."""
    raw = np.random.default_rng(zlib.crc32(kind.encode())).integers(0, 256, (BLOCKS, size)).astype(np.uint8)
    raw[:, HALVES[kind]] &= 0xbf
    return raw


def main():
    import gguf

    types = {}
    for kind in HALVES:
        code = gguf.GGMLQuantizationType[kind]
        elements, size = gguf.GGML_QUANT_SIZES[code]
        raw = random_blocks(kind, size)
        if kind in ("F32", "F16", "F64"):
            numbers = raw.view({"F32": "<f4", "F16": "<f2", "F64": "<f8"}[kind]).astype(np.float32)
        else:
            numbers = gguf.dequantize(raw, code)
        assert np.isfinite(numbers).all() and (numbers.astype(np.float32) == numbers).all(), kind
        numbers = numbers.astype(np.float32)  # some types come as float64, with numbers of float32
        types[kind] = {"code": code.value, "elements": elements, "size": size,
                       "sha256": hashlib.sha256(numbers.tobytes()).hexdigest(),
                       "first": [float(x) for x in numbers.reshape(-1)[:8]]}
    from importlib.metadata import version
    path = Path(__file__).parents[1] / "golden" / "gguf_types.json"
    path.write_text(json.dumps({"gguf": version("gguf"), "types": types}, indent=1) + "\n")


if __name__ == "__main__":
    main()
