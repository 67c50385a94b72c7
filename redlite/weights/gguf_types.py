"""The tensor types of GGUF: one table of their codes and sizes, with the decoder of each in numpy.

It needs no torch. Source: github.com/ggml-org/ggml, src/ggml-quants.c and src/ggml-common.h. These decoders
are the definition. The C library has those of KINDS in kernels/cpu/read_tensor.py, which give the same bits.

A decoder takes blocks [n, bytes] uint8, and fills out [n, elements] float32. Products of halves, scales and
small whole numbers are exact in float32. So only the one sum of some types rounds.
"""
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from redlite.weights.iq_grids import grid

Decoder = Callable[[np.ndarray, np.ndarray], None]


# ---- bits ----

def _half(two_bytes: np.ndarray) -> np.ndarray:
    """[n, 2] bytes → [n, 1] float32: one little-endian half-precision number a row."""
    return np.ascontiguousarray(two_bytes).view("<f2").astype(np.float32)


def _words(some_bytes: np.ndarray, dtype: str) -> np.ndarray:
    """[n, b] bytes → [n, words] of a little-endian dtype."""
    return np.ascontiguousarray(some_bytes).view(dtype)


def _fields(packed: np.ndarray, bits: int, run: int) -> np.ndarray:
    """[n, b] bytes → [n, b · 8 / bits] numbers of so many bits.

    Of each run of bytes come all lowest fields first, then all second ones, and so on.
    """
    runs = packed.reshape(len(packed), -1, run)
    planes = np.empty((*runs.shape[:2], 8 // bits, run), np.uint8)
    for k in range(8 // bits):
        np.right_shift(runs, k * bits, out=planes[:, :, k])
    planes &= np.uint8((1 << bits) - 1)
    return planes.reshape(len(packed), -1)


def _scale(out: np.ndarray, scales: np.ndarray) -> None:
    """Multiply out [n, elements] by scales [n, groups], each of which serves as many elements."""
    groups = out.reshape(*scales.shape, -1)
    groups *= scales[:, :, None]


def _lower(out: np.ndarray, minima: np.ndarray) -> None:
    """Subtract minima [n, groups], each of which serves as many elements, from out [n, elements]."""
    groups = out.reshape(*minima.shape, -1)
    groups -= minima[:, :, None]


# ---- plain numbers ----

def _f32(blocks: np.ndarray, out: np.ndarray) -> None:
    np.copyto(out, blocks.view("<f4"))


def _f16(blocks: np.ndarray, out: np.ndarray) -> None:
    np.copyto(out, blocks.view("<f2"))


def _bf16(blocks: np.ndarray, out: np.ndarray) -> None:
    np.left_shift(blocks.view("<u2"), 16, out=out.view(np.uint32), dtype=np.uint32)


def _f64(blocks: np.ndarray, out: np.ndarray) -> None:
    np.copyto(out, blocks.view("<f8"), casting="same_kind")


# ---- blocks of 32 with one scale ----

def _q8_0(blocks: np.ndarray, out: np.ndarray) -> None:
    """Half d, 32 × int8 q: d·q."""
    np.copyto(out, blocks[:, 2:].view(np.int8))
    out *= _half(blocks[:, :2])


def _q4_0(blocks: np.ndarray, out: np.ndarray) -> None:
    """Half d, 16 bytes of nibbles: d·(q − 8)."""
    np.copyto(out, _fields(blocks[:, 2:], 4, 16))
    out -= 8
    out *= _half(blocks[:, :2])


def _q4_1(blocks: np.ndarray, out: np.ndarray) -> None:
    """Half d, half m, 16 bytes of nibbles: d·q + m."""
    np.copyto(out, _fields(blocks[:, 4:], 4, 16))
    out *= _half(blocks[:, :2])
    out += _half(blocks[:, 2:4])


def _q5_0(blocks: np.ndarray, out: np.ndarray) -> None:
    """Half d, 32 fifth bits, 16 bytes of nibbles: d·(q − 16).

    llama.cpp uses it where a row is no multiple of Q4_K's 256.
    """
    np.copyto(out, _fields(blocks[:, 6:], 4, 16) | _fields(blocks[:, 2:6], 1, 1) << 4)
    out -= 16
    out *= _half(blocks[:, :2])


def _q5_1(blocks: np.ndarray, out: np.ndarray) -> None:
    """Half d, half m, 32 fifth bits, 16 bytes of nibbles: d·q + m."""
    np.copyto(out, _fields(blocks[:, 8:], 4, 16) | _fields(blocks[:, 4:8], 1, 1) << 4)
    out *= _half(blocks[:, :2])
    out += _half(blocks[:, 2:4])


# ---- super-blocks of 256: a half for the block, a small whole number for each group of it ----

def _q2_k(blocks: np.ndarray, out: np.ndarray) -> None:
    """16 bytes of a scale s (low nibble) and a minimum t, 64 of bit pairs, half d, half m: (d·s)·q − (m·t).

    Each s and t serve 16 elements.
    """
    np.copyto(out, _fields(blocks[:, 16:80], 2, 32))
    _scale(out, _half(blocks[:, 80:82]) * (blocks[:, :16] & 15))
    _lower(out, _half(blocks[:, 82:84]) * (blocks[:, :16] >> 4))


def _q3_k(blocks: np.ndarray, out: np.ndarray) -> None:
    """32 bytes of third bits, 64 of bit pairs, 12 of sixteen 6-bit scales s, half d: (d·(s − 32))·(q − 4).

    Each s serves 16 elements. Eight bytes hold the low four bits of all s, four the high two.
    """
    np.copyto(out, _fields(blocks[:, 32:96], 2, 32) | _fields(blocks[:, :32], 1, 32) << 2)
    out -= 4
    scales = _fields(blocks[:, 96:104], 4, 8) | _fields(blocks[:, 104:108], 2, 4) << 4
    _scale(out, _half(blocks[:, 108:110]) * (scales.astype(np.float32) - 32))


def _scales_and_minima(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """12 bytes of Q4_K and Q5_K → (eight 6-bit scales, eight 6-bit minima)."""
    first = packed[:, :4]    # low 6 bits: s0 to s3; high 2 bits: of s4 to s7
    second = packed[:, 4:8]  # low 6 bits: t0 to t3; high 2 bits: of t4 to t7
    third = packed[:, 8:12]  # low 4 bits of s4 to s7; low 4 bits of t4 to t7
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6 << 4)], axis=1)
    minima = np.concatenate([second & 63, (third >> 4) | (second >> 6 << 4)], axis=1)
    return scales, minima


def _q4_k(blocks: np.ndarray, out: np.ndarray) -> None:
    """Half d, half m, 12 bytes of eight 6-bit scales s and minima t, 128 bytes of nibbles: (d·s)·q − (m·t).

    Each s and t serve 32 elements.
    """
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    np.copyto(out, _fields(blocks[:, 16:], 4, 32))
    _scale(out, _half(blocks[:, :2]) * scales)
    _lower(out, _half(blocks[:, 2:4]) * minima)


def _q5_k(blocks: np.ndarray, out: np.ndarray) -> None:
    """As Q4_K, with 32 bytes of fifth bits between the scales and the nibbles."""
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    np.copyto(out, _fields(blocks[:, 48:], 4, 32) | _fields(blocks[:, 16:48], 1, 32) << 4)
    _scale(out, _half(blocks[:, :2]) * scales)
    _lower(out, _half(blocks[:, 2:4]) * minima)


def _q6_k(blocks: np.ndarray, out: np.ndarray) -> None:
    """128 bytes of low nibbles, 64 of high bit pairs, 16 × int8 scales s, half d: (d·s)·(q − 32).

    Each s serves 16 elements.
    """
    np.copyto(out, _fields(blocks[:, :128], 4, 64) | _fields(blocks[:, 128:192], 2, 32) << 4)
    out -= 32
    _scale(out, _half(blocks[:, 208:210]) * blocks[:, 192:208].view(np.int8))


# ---- three values: −1, 0, 1 ----

def _tq1_0(blocks: np.ndarray, out: np.ndarray) -> None:
    """48 bytes of five digits, 4 bytes of four, half d: d·(digit − 1).

    A byte is a fraction of 256. Multiplied by 3, its whole part is the first digit, and so on.
    """
    parts, at = [], 0
    for size, digits in ((32, 5), (16, 5), (4, 4)):
        powers = np.array([3 ** k for k in range(digits)], np.uint8)[:, None]
        parts.append((blocks[:, None, at:at + size] * powers).reshape(len(blocks), -1))  # modulo 256
        at += size
    np.copyto(out, np.concatenate(parts, axis=1).astype(np.uint16) * 3 >> 8)
    out -= 1
    out *= _half(blocks[:, 52:54])


def _tq2_0(blocks: np.ndarray, out: np.ndarray) -> None:
    """64 bytes of bit pairs, half d: d·(q − 1)."""
    np.copyto(out, _fields(blocks[:, :64], 2, 32))
    out -= 1
    out *= _half(blocks[:, 64:66])


# ---- four bits that stand for one of sixteen values ----

IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
# Twice the values of E2M1: a sign, two bits of exponent, one of mantissa (OCP Microscaling Formats 1.0).
E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def _iq4_nl(blocks: np.ndarray, out: np.ndarray) -> None:
    """Half d, 16 bytes of nibbles: d·IQ4[q]."""
    np.copyto(out, IQ4.take(_fields(blocks[:, 2:], 4, 16)))
    out *= _half(blocks[:, :2])


def _iq4_xs(blocks: np.ndarray, out: np.ndarray) -> None:
    """Half d, eight 6-bit scales s, 128 bytes of nibbles: (d·(s − 32))·IQ4[q].

    Two bytes hold the high two bits of each s, four the low four. Each s serves 32 elements.
    """
    scales = _fields(blocks[:, 4:8], 4, 1) | _fields(blocks[:, 2:4], 2, 1) << 4
    np.copyto(out, IQ4.take(_fields(blocks[:, 8:], 4, 16)))
    _scale(out, _half(blocks[:, :2]) * (scales.astype(np.float32) - 32))


def _mxfp4(blocks: np.ndarray, out: np.ndarray) -> None:
    """An exponent e, 16 bytes of nibbles: 2^(e − 128)·E2M1[q], where E2M1 is doubled."""
    np.copyto(out, E2M1.take(_fields(blocks[:, 1:], 4, 16)))
    out *= np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 128)


def _nvfp4(blocks: np.ndarray, out: np.ndarray) -> None:
    """4 bytes of scales, 32 bytes of nibbles: scale·E2M1[q] / 2; each scale serves 16 elements.

    A scale has four bits of exponent, bias 7, and three of mantissa; its sign is not read, 0x7f is 0.
    """
    codes = blocks[:, :4]
    exponents = (codes >> 3 & 15).astype(np.int32)
    mantissas = (codes & 7) + 8 * (exponents > 0)
    scales = np.ldexp(mantissas.astype(np.float32), np.maximum(exponents, 1) - 11)
    scales[codes == 0x7f] = 0
    np.copyto(out, E2M1.take(_fields(blocks[:, 4:], 4, 8)))
    _scale(out, scales)


# ---- grids: an index stands for eight or four numbers at once (iq_grids.py) ----

PLUS_MINUS = 1 - 2 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1,
                                   bitorder="little").astype(np.float32)  # a byte's bits as eight factors
# Seven signs; the eighth makes the count of minus signs even.
SIGNS = np.array([i | (i.bit_count() & 1) << 7 for i in range(128)], np.uint8)
SEVENS = np.array([0, 7, 14, 21], np.uint32)  # where four such numbers stand in a word of 32 bits


def _points(out: np.ndarray, name: str, index: np.ndarray, signs: np.ndarray, scales: np.ndarray) -> None:
    """Fill out [n, 256] with points of a grid, negate where a bit of signs [n, 32] is set, then scale."""
    np.copyto(out, grid(name).take(index, axis=0).reshape(out.shape))
    out *= PLUS_MINUS.take(signs, axis=0).reshape(out.shape)
    _scale(out, scales)


def _iq2_xxs(blocks: np.ndarray, out: np.ndarray) -> None:
    """Half d, then 8 × (4 indices; four sevens of signs and a 4-bit scale s): d·(s + ½)/4 · point."""
    halves = blocks[:, 2:].reshape(-1, 8, 8)
    words = _words(halves[:, :, 4:].reshape(-1, 32), "<u4")
    signs = SIGNS[words[:, :, None] >> SEVENS & np.uint32(127)].reshape(-1, 32)
    scales = (words >> np.uint32(28)).astype(np.float32) + np.float32(0.5)
    _points(out, "IQ2_XXS", halves[:, :, :4], signs, _half(blocks[:, :2]) * scales * np.float32(0.25))


def _iq2_xs(blocks: np.ndarray, out: np.ndarray) -> None:
    """Half d, 32 × (9-bit index, seven signs), sixteen 4-bit scales s: d·(s + ½)/4 · point."""
    words = _words(blocks[:, 2:66], "<u2")
    scales = _fields(blocks[:, 66:74], 4, 1) + np.float32(0.5)
    _points(out, "IQ2_XS", words & 511, SIGNS[words >> 9],
            _half(blocks[:, :2]) * scales * np.float32(0.25))


def _iq2_s(blocks: np.ndarray, out: np.ndarray) -> None:
    """Half d, 32 low bytes of indices, 32 of signs, 8 of high bit pairs, sixteen 4-bit scales; as IQ2_XS."""
    index = blocks[:, 2:34] | _fields(blocks[:, 66:74], 2, 1).astype(np.uint16) << 8
    scales = _fields(blocks[:, 74:82], 4, 1) + np.float32(0.5)
    _points(out, "IQ2_S", index, blocks[:, 34:66], _half(blocks[:, :2]) * scales * np.float32(0.25))


def _iq3_xxs(blocks: np.ndarray, out: np.ndarray) -> None:
    """Half d, 64 indices, 8 × (four sevens of signs and a 4-bit scale s): d·(s + ½)/2 · point."""
    words = _words(blocks[:, 66:98], "<u4")
    signs = SIGNS[words[:, :, None] >> SEVENS & np.uint32(127)].reshape(-1, 32)
    scales = (words >> np.uint32(28)).astype(np.float32) + np.float32(0.5)
    _points(out, "IQ3_XXS", blocks[:, 2:66], signs, _half(blocks[:, :2]) * scales * np.float32(0.5))


def _iq3_s(blocks: np.ndarray, out: np.ndarray) -> None:
    """Half d, 64 low bytes of indices, 8 of high bits, 32 of signs, eight 4-bit scales s: d·(2s + 1)·p."""
    index = blocks[:, 2:66] | _fields(blocks[:, 66:74], 1, 1).astype(np.uint16) << 8
    scales = 2 * _fields(blocks[:, 106:110], 4, 1) + 1
    _points(out, "IQ3_S", index, blocks[:, 74:106], _half(blocks[:, :2]) * scales)


def _iq1_s(blocks: np.ndarray, out: np.ndarray) -> None:
    """Half d, 32 low bytes of indices, 8 × (four 3-bit tops, 3-bit scale s, sign): d·(2s + 1)·(point ± ⅛).

    Each word serves 32 elements.
    """
    words = _words(blocks[:, 34:50], "<u2")
    tops = words[:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & 7
    index = blocks[:, 2:34] | tops.reshape(-1, 32) << 8
    np.copyto(out, grid("IQ1_S").take(index, axis=0).reshape(out.shape))
    _lower(out, np.where(words >> 15, np.float32(0.125), np.float32(-0.125)))
    _scale(out, _half(blocks[:, :2]) * (2 * (words >> 12 & 7) + 1))


def _iq1_m(blocks: np.ndarray, out: np.ndarray) -> None:
    """32 low bytes of indices, 32 nibbles of a 3-bit top and a sign, four words: d·(2s + 1)·(point ± ⅛).

    A word has four 3-bit scales s, each for 16 elements; the high nibbles of the four are the bits of half d.
    """
    words, nibbles = _words(blocks[:, 48:56], "<u2"), _fields(blocks[:, 32:48], 4, 1)
    d = np.bitwise_or.reduce(words >> 12 << np.array([0, 4, 8, 12], np.uint16), axis=1, keepdims=True)
    scales = (words[:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & 7).reshape(-1, 16)
    index = blocks[:, :32] | (nibbles & 7).astype(np.uint16) << 8
    np.copyto(out, grid("IQ1_S").take(index, axis=0).reshape(out.shape))
    _lower(out, np.where(nibbles & 8, np.float32(0.125), np.float32(-0.125)))
    _scale(out, d.view("<f2").astype(np.float32) * (2 * scales + 1))


# ---- the table ----

class TensorType(NamedTuple):
    """How a tensor's numbers are stored.

    code      the type's number in GGUF files
    elements  numbers in a block
    size      bytes in a block
    decode    fills out [n, elements] float32 from blocks [n, size] uint8
    kept      the packed format that takes these blocks as they are; None: they are decoded
    in_c      whether the C library decodes it too
    """
    code: int
    elements: int
    size: int
    decode: Decoder
    kept: str | None = None
    in_c: bool = False


TYPES = {
    "F32": TensorType(0, 1, 4, _f32, in_c=True),
    "F16": TensorType(1, 1, 2, _f16, in_c=True),
    "BF16": TensorType(30, 1, 2, _bf16, in_c=True),
    "F64": TensorType(28, 1, 8, _f64),
    "Q8_0": TensorType(8, 32, 34, _q8_0, "int8", in_c=True),
    "Q4_0": TensorType(2, 32, 18, _q4_0, "int4", in_c=True),
    "Q4_1": TensorType(3, 32, 20, _q4_1, "int4", in_c=True),
    "Q5_0": TensorType(6, 32, 22, _q5_0, in_c=True),
    "Q5_1": TensorType(7, 32, 24, _q5_1),
    "Q2_K": TensorType(10, 256, 84, _q2_k, in_c=True),
    "Q3_K": TensorType(11, 256, 110, _q3_k, in_c=True),
    "Q4_K": TensorType(12, 256, 144, _q4_k, "q4_k", in_c=True),
    "Q5_K": TensorType(13, 256, 176, _q5_k, in_c=True),
    "Q6_K": TensorType(14, 256, 210, _q6_k, "q6_k", in_c=True),
    "TQ1_0": TensorType(34, 256, 54, _tq1_0),
    "TQ2_0": TensorType(35, 256, 66, _tq2_0),
    "IQ4_NL": TensorType(20, 32, 18, _iq4_nl),
    "IQ4_XS": TensorType(23, 256, 136, _iq4_xs),
    "MXFP4": TensorType(39, 32, 17, _mxfp4, in_c=True),
    "NVFP4": TensorType(40, 64, 36, _nvfp4),
    "IQ2_XXS": TensorType(16, 256, 66, _iq2_xxs),
    "IQ2_XS": TensorType(17, 256, 74, _iq2_xs),
    "IQ2_S": TensorType(22, 256, 82, _iq2_s),
    "IQ3_XXS": TensorType(18, 256, 98, _iq3_xxs),
    "IQ3_S": TensorType(21, 256, 110, _iq3_s),
    "IQ1_S": TensorType(19, 256, 50, _iq1_s),
    "IQ1_M": TensorType(29, 256, 56, _iq1_m),
}


def packed_format(kind: str, wanted: str, device: str = "cpu") -> tuple[str, bool]:
    """The packed format of a matrix of this type, and whether its blocks are kept as they are.

    wanted  "float32", "bfloat16"; "int8", which keeps Q8_0; "int4", which keeps Q8_0, Q4_0 and Q4_1, on CPUs
            Q4_K and Q6_K too. It turns other quantised blocks into int8: the file's maker gave them more bits
    """
    form = TYPES[kind]
    held = {"int8": ("int8",), "int4": ("int8", "int4")}.get(wanted, ())
    if wanted == "int4" and device == "cpu":
        held += ("q4_k", "q6_k")
    if form.kept in held:
        return form.kept, True
    return ("int8" if wanted == "int4" and form.elements > 1 else wanted), False


NAMES = {form.code: name for name, form in TYPES.items()}
# Types that are refused, by the name that their users know: none is a type of stored weights.
OTHERS = {9: "Q8_1", 15: "Q8_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 41: "Q1_0"}
