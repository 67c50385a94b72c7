"""Matrices of int8 and int4 weights on GPUs, in Triton: the numbers of cpu/packed.py in another layout.

Weights are quantised in blocks of 32 inputs. int8 is w = scale · q with q from −127 to 127; int4 is
w = minimum + scale · q with q from 0 to 15. Scale and minimum are float16 (c/packed_matrix.c has the rule).

The blocks of all N columns at one place lie together, so that a program reads its columns' blocks as one run
of memory: int8 [D/32, N, 32], int4 [D/32, N, 16], scales and minima [D/32, N]. Byte j of an int4 block holds
input j in its low half and input j + 16 in its high half. Bits a weight: 8.5 and 5.

Up to FEW rows, `_product` multiplies x by the q themselves, which are exact in every dtype of x, and scales
each block's sum in float32. More rows are bound by arithmetic, not by reading. For them `_unpack` writes
CHUNK columns at a time, rounded to x's dtype, and torch multiplies; these CHUNK · D numbers are all the
memory needed.

TRITON_INTERPRET=1, set before triton is first imported, runs the kernels on CPU tensors, for tests. Its
products of bfloat16 are wrong, so float32 and float16 are proven there.

Shapes: N output columns (rows of the matrix), D inputs, T rows of activations.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# The arguments of Triton's kernels are its own values, which have no Python types.
import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ..cpu.packed import GGUF_KINDS

BLOCK = 32
FEW = 128       # rows up to which a product reads the packed weights
CHUNK = 4096    # columns unpacked or packed at once
PROGRAMS = 1056  # eight for each of an H100's 132 cores: inputs are split to have enough reads in flight
DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def _product(x, weight, scale, minimum, bias, out, T, N, D, span, x_row, INT4: tl.constexpr,
             BIAS: tl.constexpr, DOT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """Program (n, c): out[c, T, N] of columns n·BN on, summed over blocks c·span to (c + 1)·span of inputs.
    """
    t_M, n_N = tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN)
    inside_N = n_N < N
    acc = tl.zeros((BM, BN), tl.float32)
    for block in range(tl.program_id(1) * span, tl.minimum(tl.cdiv(D, 32), (tl.program_id(1) + 1) * span)):
        s_N = tl.load(scale + block * N + n_N, mask=inside_N, other=0.0).to(tl.float32)
        first = tl.cast(block, tl.int64) * N
        if INT4:
            j = tl.arange(0, 16)
            byte = tl.load(weight + (first + n_N[None, :]) * 16 + j[:, None], mask=inside_N[None, :], other=0)
            d = block * 32 + j
            low = tl.load(x + t_M[:, None] * x_row + d[None, :], mask=(t_M[:, None] < T) & (d[None, :] < D),
                          other=0.0)
            high = tl.load(x + t_M[:, None] * x_row + d[None, :] + 16,
                           mask=(t_M[:, None] < T) & (d[None, :] + 16 < D), other=0.0)
            dots = tl.dot(low, (byte & 15).to(DOT), input_precision="ieee")
            dots = tl.dot(high, (byte >> 4).to(DOT), dots, input_precision="ieee")
            m_N = tl.load(minimum + block * N + n_N, mask=inside_N, other=0.0).to(tl.float32)
            acc += dots * s_N[None, :] + tl.sum(low.to(tl.float32) + high.to(tl.float32),
                                                1)[:, None] * m_N[None, :]
        else:
            j = tl.arange(0, 32)
            q = tl.load(weight + (first + n_N[None, :]) * 32 + j[:, None], mask=inside_N[None, :], other=0)
            d = block * 32 + j
            x_MK = tl.load(x + t_M[:, None] * x_row + d[None, :], mask=(t_M[:, None] < T) & (d[None, :] < D),
                           other=0.0)
            acc += tl.dot(x_MK, q.to(DOT), input_precision="ieee") * s_N[None, :]
    if BIAS:
        acc += tl.load(bias + n_N, mask=inside_N, other=0.0).to(tl.float32)[None, :]
    where = out + tl.program_id(1) * T * N + t_M[:, None] * N + n_N[None, :]
    tl.store(where, acc.to(out.dtype.element_ty), mask=(t_M[:, None] < T) & inside_N[None, :])


@triton.jit
def _unpack(weight, scale, minimum, ids, out, count, N, D, INT4: tl.constexpr, BN: tl.constexpr):
    """Program (i, b): out[r, 32 b to 32 b + 31] = the matrix's row ids[r], r in block i; NaN for no such row.
    """
    r, d = tl.program_id(0) * BN + tl.arange(0, BN), tl.program_id(1) * 32 + tl.arange(0, 32)
    row = tl.load(ids + r, mask=r < count, other=0).to(tl.int64)
    real = (row >= 0) & (row < N)
    block = tl.program_id(1).to(tl.int64) * N + tl.where(real, row, 0)
    w = tl.load(scale + block).to(tl.float32)[:, None]
    j = tl.arange(0, 32)
    if INT4:
        byte = tl.load(weight + block[:, None] * 16 + (j % 16)[None, :])
        w = ((byte >>
              (j // 16 * 4)[None, :].to(tl.uint8)) & 15).to(tl.float32) * w + tl.load(minimum + block).to(
                  tl.float32)[:, None]
    else:
        w = tl.load(weight + block[:, None] * 32 + j[None, :]).to(tl.float32) * w
    w = tl.where(real[:, None], w, float("nan")).to(out.dtype.element_ty)
    tl.store(out + r.to(tl.int64)[:, None] * D + d[None, :], w, mask=(r[:, None] < count) & (d[None, :] < D))


def _launch(BM: int) -> dict[str, int]:
    """Launch options of `_product`. Few rows are bound by unpacking, which one warp does with the fewest
    instructions.
    """
    return dict(num_warps=1 if BM == 16 else 4, num_stages=5)


class PackedTriton:
    """A matrix [N, D] of int8 or int4 weights; `shape`, `dtype`, `device` are those of the matrix it stands
    for.
    """

    def __init__(self, format: str, shape: tuple[int, int], dtype: torch.dtype, device: str | torch.device):
        if dtype not in DTYPES:
            raise ValueError(f"packed products in Triton are of float32, bfloat16 or float16, not {dtype}")
        self.format, self.shape, self.dtype, self.device = format, torch.Size(shape), dtype, torch.device(
            device)
        blocks, N = triton.cdiv(shape[1], BLOCK), shape[0]
        width, kind = (16, torch.uint8) if format == "int4" else (32, torch.int8)
        self.weight = torch.empty((blocks, N, width), dtype=kind, device=device)
        self.scale = torch.empty((blocks, N), dtype=torch.float16, device=device)
        self.minimum = torch.empty_like(self.scale) if format == "int4" else self.scale  # int8 reads none

    @staticmethod
    def of(weight_ND: Tensor, format: str, dtype: torch.dtype, device: str | torch.device) -> "PackedTriton":
        """Quantise a matrix to "int8" or "int4" by the rule of c/packed_matrix.c."""
        packed = PackedTriton(format, (weight_ND.shape[0], weight_ND.shape[1]), dtype, device)
        for first in range(0, len(weight_ND), CHUNK):
            rows = weight_ND[first:first + CHUNK].detach().to(device).float()
            more = -rows.shape[1] % BLOCK
            rows = torch.cat((rows, rows[:, -1:].expand(-1, more)),
                             1).unflatten(1, (-1, BLOCK))  # a repeated number changes neither extreme
            low, high = rows.amin(-1), rows.amax(-1)
            scale = ((high - low) / 15 if format == "int4" else torch.maximum(-low, high) / 127).half()
            inverse = torch.where(scale > 0, 1 / scale.float(), 0.0)[..., None]
            part = slice(first, first + len(rows))
            packed.scale[:, part] = scale.T
            if format == "int4":
                packed.minimum[:, part] = low.half().T
                q = ((rows - low.half().float()[..., None]) * inverse).round().clamp(0, 15).to(torch.uint8)
                q = q[..., :16] | q[..., 16:] << 4
            else:
                q = (rows * inverse).round().clamp(-127, 127).to(torch.int8)
            packed.weight[:, part] = q.transpose(0, 1)
        return packed

    @staticmethod
    def of_gguf(kind: str, raw: np.ndarray, shape: tuple[int, int], dtype: torch.dtype,
                device: str | torch.device) -> "PackedTriton":
        """Take the blocks of a GGUF tensor as they are. raw: contiguous uint8; kind: a key of GGUF_KINDS."""
        format, _, size = GGUF_KINDS[kind]
        if shape[1] % BLOCK or raw.size != shape[0] * shape[1] // BLOCK * size or not raw.flags.c_contiguous:
            raise ValueError(f"{kind} [{shape[0]}, {shape[1]}] takes whole blocks of 32, contiguous; "
                             f"{raw.size} bytes given")
        packed = PackedTriton(format, shape, dtype, device)
        blocks = raw.reshape(shape[0], -1, size).transpose(1, 0, 2)
        halves = torch.from_numpy(
            np.ascontiguousarray(blocks[..., :4 if kind == "Q4_1" else 2]).view(np.float16))
        packed.scale.copy_(halves[..., 0])
        if format == "int4":
            packed.minimum.copy_(halves[..., 1] if kind == "Q4_1" else halves[..., 0].float() * -8)
        numbers = torch.from_numpy(np.ascontiguousarray(blocks[..., 4 if kind == "Q4_1" else 2:]))
        packed.weight.copy_(numbers if format == "int4" else numbers.view(torch.int8))
        return packed

    def rows(self, ids_T: Tensor) -> Tensor:
        """The rows [T, D] at int64 ids [T], in `dtype`. An id outside gives NaN: checking would wait for the
        device.
        """
        return self._rows(ids_T, self.dtype)

    def _rows(self, ids_T: Tensor, dtype: torch.dtype) -> Tensor:
        out = torch.empty((len(ids_T), self.shape[1]), dtype=dtype, device=self.device)
        if out.numel():
            with torch.cuda.device_of(self.weight):
                _unpack[(triton.cdiv(len(ids_T),
                                     32), len(self.weight))](self.weight, self.scale, self.minimum,
                                                             ids_T.contiguous(), out, len(ids_T), *self.shape,
                                                             INT4=self.format == "int4", BN=32)
        return out

    def product(self, x_TD: Tensor, bias_N: Tensor | None = None) -> Tensor:
        """x @ weight.T + bias, [T, N] in x's dtype, summed in float32."""
        if x_TD.dim() != 2 or x_TD.shape[1] != self.shape[1] or x_TD.dtype not in DTYPES:
            raise ValueError(f"activations [T, {self.shape[1]}] of float32, bfloat16 or float16 are needed, "
                             f"not {list(x_TD.shape)} of {x_TD.dtype}")
        T, N = len(x_TD), self.shape[0]
        if T > FEW:
            return self._product_of_many(x_TD, bias_N)
        out = torch.empty((T, N), dtype=x_TD.dtype, device=x_TD.device)
        if not out.numel():
            return out
        x_TD = x_TD if x_TD.stride(-1) == 1 else x_TD.contiguous()
        BM, BN = max(16, triton.next_power_of_2(T)), 64
        columns, blocks = triton.cdiv(N, BN), len(self.weight)
        most = 256 // BM  # partial results stay far smaller than the weights
        span = triton.cdiv(blocks, max(1, min(most, PROGRAMS // columns, blocks // 8)))
        splits = triton.cdiv(blocks, span)
        parts = out if splits == 1 else torch.empty((splits, T, N), dtype=torch.float32, device=x_TD.device)
        with torch.cuda.device_of(x_TD):
            _product[(columns, splits)](x_TD, self.weight, self.scale, self.minimum,
                                        self.scale if bias_N is None else bias_N, parts, T, *self.shape, span,
                                        x_TD.stride(0), INT4=self.format == "int4", BIAS=bias_N is not None
                                        and splits == 1, DOT=DTYPES[x_TD.dtype], BM=BM, BN=BN, **_launch(BM))
        if splits == 1:
            return out
        total = parts.sum(0)
        return (total if bias_N is None else total + bias_N).to(x_TD.dtype)

    def _product_of_many(self, x_TD: Tensor, bias_N: Tensor | None) -> Tensor:
        out = torch.empty((len(x_TD), self.shape[0]), dtype=x_TD.dtype, device=x_TD.device)
        for first in range(0, self.shape[0], CHUNK):
            columns = torch.arange(first, min(first + CHUNK, self.shape[0]), device=self.device)
            bias = None if bias_N is None else bias_N[columns]
            out[:, first:first + CHUNK] = torch.nn.functional.linear(x_TD, self._rows(columns, x_TD.dtype),
                                                                     bias)
        return out
