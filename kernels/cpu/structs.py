"""The structs that the C functions take, field by field as in kernels/c. library.py compares sizes and
offsets.

The headers say what the fields mean: matrix_products.h, transformer_block.h, transformer_layers.h,
cached_attention.h, sequence_attention.h, token_nll.h, training.h.
"""
import ctypes
from ctypes import c_float, c_int32, c_int64, c_uint32, c_void_p


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class Matrix(ctypes.Structure):
    _fields_ = [("format", c_int32), *_fields(c_void_p, "packed bias"), *_fields(c_int64, "columns inputs")]


class Block(ctypes.Structure):
    _fields_ = [("norms", c_void_p * 4), ("biases", c_void_p * 4), ("qk_norms", c_void_p * 2),
                *_fields(c_void_p, "before after"), *_fields(c_int64, "size rotated qk_norm act gated"),
                *_fields(c_float, "eps residual"), ("xielu", c_float * 4)]


class Layer(ctypes.Structure):
    _fields_ = [("block", Block), *_fields(c_void_p, "keys values prefix_keys prefix_values"),
                *_fields(c_int64, "window rope")]


class Shape(ctypes.Structure):
    _fields_ = [*_fields(c_int64, "width heads groups size capacity prefix kept"),
                *_fields(c_float, "scale cap")]


class Rows(ctypes.Structure):
    _fields_ = [("rows", c_int64), *_fields(c_void_p, "places offsets parents"),
                *_fields(c_int64, "sequences slot"), ("slots", c_void_p)]


class CachedAttention(ctypes.Structure):
    _fields_ = [*_fields(c_void_p, "q k v keys values places prefix_keys prefix_values out"),
                *_fields(c_int64, "requests groups repeat size capacity prefix window"),
                ("kept", c_int32), *_fields(c_float, "scale cap"), ("slots", c_void_p)]


class SequenceAttention(ctypes.Structure):
    _fields_ = [*_fields(c_void_p, "q k v offsets parents prefix_keys prefix_values out"),
                *_fields(c_int64, "sequences groups repeat size prefix window"),
                *_fields(c_float, "scale cap"), ("count", c_int64), ("tasks", c_void_p),
                ("narrow", c_int64)]


class TokenNLL(ctypes.Structure):
    _fields_ = [*_fields(c_void_p, "hidden weights targets maximum sum target scale d_hidden d_weights"),
                *_fields(c_int64, "rows width entries entry_stride width_stride first"),
                *_fields(c_int32, "narrow narrow_gradient add")]


class AdamW(ctypes.Structure):
    _fields_ = [*_fields(c_void_p, "weight mean square gradient"), ("count", c_int64),
                *_fields(c_int32, "narrow narrow_gradient"),
                *_fields(c_float, "scale take_mean keep_square take_square square_bias eps decay rate"),
                ("seed", c_uint32 * 4)]


class Squares(ctypes.Structure):
    _fields_ = [("x", c_void_p), ("count", c_int64), ("narrow", c_int32), ("sums", c_void_p)]


class Training(ctypes.Structure):
    _fields_ = [*_fields(c_int32, "kind narrow"),
                *_fields(c_void_p, "x other cos sin dy y dx dother scale partial"),
                ("eps", c_float), *_fields(c_int64, "rows width heads rotated")]


class Layout(ctypes.Structure):
    """A name, and the size of that struct or the offset of that field; see library.c."""
    _fields_ = [("name", ctypes.c_char_p), ("bytes", c_int64)]


def layouts() -> dict[str, int]:
    """The size of each struct and the offset of each of its fields, by name; rl_layouts gives C's."""
    found = {}
    for struct in (Matrix, Block, Layer, Shape, Rows, CachedAttention, SequenceAttention, TokenNLL, AdamW,
                   Squares, Training):
        found[struct.__name__] = ctypes.sizeof(struct)
        for field in struct._fields_:
            found[f"{struct.__name__}.{field[0]}"] = getattr(struct, field[0]).offset
    return found
