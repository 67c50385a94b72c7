/*
 * The layout of packed matrices. Output columns go in panels of 16. A float32 panel is [inputs][16].
 *
 * A quantised panel is a run of blocks of 32 inputs. A block begins with 16 scales, for int4 also 16 minima
 * (float16). Then come the weights; four inputs of a column lie side by side, as the dot products of bytes
 * take them:
 *   int8  [8 fours][16 columns][4] bytes, each the weight + 128
 *   int4  [4][16 columns][4] bytes; run v has fours 2v in the low nibbles and fours 2v + 1 in the high ones
 * A bfloat16 panel has blocks of 32 inputs too: [16 pairs][16 columns][2], an input and the next side by
 * side. Inputs beyond the last are 0. Bits a weight: 32, 8.5, 5 and 16. Q4_0 is stored as Q4_1 with minimum
 * −8 · scale.
 */
#ifndef REDLITE_PACKED_MATRIX_H
#define REDLITE_PACKED_MATRIX_H
#include "half.h"
#include <stddef.h>

enum { PANEL = 16, BLOCK = 32 };
enum { F32 = 0, Q8 = 1, Q4 = 2, BF16 = 3 };
/* GGUF's own numbers of tensor types. */
enum {
    G_F32 = 0,
    G_F16 = 1,
    G_Q4_0 = 2,
    G_Q4_1 = 3,
    G_Q5_0 = 6,
    G_Q8_0 = 8,
    G_Q4_K = 12,
    G_Q6_K = 14,
    G_BF16 = 30
};

/* Bytes of a block of a panel, by format. */
static const size_t QUANT_BYTES[4] = {0, PANEL * 2 + BLOCK * PANEL, PANEL * 4 + BLOCK * PANEL / 2,
                                     2 * BLOCK * PANEL};

static inline uint8_t *block_at(const void *packed, int format, int64_t blocks, int64_t column, int64_t block)
{
    return (uint8_t *)packed
           + ((size_t)(column / PANEL) * (size_t)blocks + (size_t)block) * QUANT_BYTES[format];
}

/* The byte of a block that holds weight k of a column; shift_of gives the shift of its nibble for int4. */
static inline int byte_of(int format, int64_t column, int k)
{
    int lane = (int)(column % PANEL) * 4 + k % 4;
    return format == Q8 ? PANEL * 2 + k / 4 * PANEL * 4 + lane : PANEL * 4 + k / 8 * PANEL * 4 + lane;
}

static inline int shift_of(int k) { return k / 4 % 2 * 4; }

/* The number of a bfloat16 panel, in all its blocks, that holds weight k of a column. */
static inline int64_t bf16_at(int64_t column, int64_t k)
{
    return (k / 2 * PANEL + column % PANEL) * 2 + k % 2;
}

static inline float bf16_to_float(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float x;
    memcpy(&x, &wide, sizeof x);
    return x;
}

/* Round n numbers to nearest, ties to even; what is beyond the range becomes infinity, and NaN stays one. */
static inline void round_to_bf16(const float *x, int64_t n, uint16_t *out)
{
    for (int64_t k = 0; k < n; k++) {
        uint32_t bits;
        memcpy(&bits, x + k, sizeof bits);
        uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, nan = bits >> 16 | 0x40;
        out[k] = (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded);
    }
}

/* Pack rows [first, first + count) of a matrix with `inputs` columns, given as float32 or as GGUF blocks that
 * are kept as they are. `packed` starts zeroed. */
void rl_pack_float(int format, void *packed, const float *rows, int64_t first, int64_t count, int64_t inputs);
void rl_pack_gguf(int kind, void *packed, const uint8_t *raw, int64_t first, int64_t count, int64_t inputs);

#endif
