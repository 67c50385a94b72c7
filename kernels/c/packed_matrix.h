/*
 * The layout of packed matrices. Output columns go in panels of 16. A float32 panel is [inputs][16].
 *
 * A quantised panel is a run of blocks of 32 inputs. A block begins with 16 scales, for int4 also 16 minima
 * (float16). Then come the weights; four inputs of a column lie side by side, as the dot products of bytes
 * take them:
 *   int8  [8 fours][16 columns][4] bytes, each the weight + 128
 *   int4  [4][16 columns][4] bytes; run v has fours 2v in the low nibbles and fours 2v + 1 in the high ones
 * A bfloat16 panel has blocks of 32 inputs too: [16 pairs][16 columns][2], an input and the next side by
 * side. Inputs beyond the last are 0. Q4_0 is stored as Q4_1 with minimum −8 · scale.
 *
 * Q4_K and Q6_K keep GGUF's own numbers. Every eight blocks begin with 16 float16 d; Q4_K's also with 16 m.
 *   Q4_K  a block has 16 bytes s and 16 bytes t, then weights as int4: scale d · s, minimum −m · t
 *   Q6_K  a block has 16 signed bytes s for its inputs 0 to 15, 16 for the others, and the low four bits as
 *         int4. Then come the high two bits, [2 halves][16 columns][4] bytes: the first four inputs of a half
 *         have the lowest bits. The weight is d · s · (number − 32)
 * Bits a weight: float32 32, int8 8.5, int4 5, bfloat16 16, Q4_K 4.625, Q6_K 6.5625.
 */
#ifndef REDLITE_PACKED_MATRIX_H
#define REDLITE_PACKED_MATRIX_H
#include "half.h"
#include <stddef.h>

enum { PANEL = 16, BLOCK = 32 };
enum { F32 = 0, Q8 = 1, Q4 = 2, BF16 = 3, Q4K = 4, Q6K = 5, FORMATS = 6 };
enum { GROUP = 8 }; /* blocks that share d and m */
/* GGUF's own numbers of tensor types. */
enum {
    G_F32 = 0,
    G_F16 = 1,
    G_Q4_0 = 2,
    G_Q4_1 = 3,
    G_Q5_0 = 6,
    G_Q8_0 = 8,
    G_Q2_K = 10,
    G_Q3_K = 11,
    G_Q4_K = 12,
    G_Q5_K = 13,
    G_Q6_K = 14,
    G_BF16 = 30,
    G_MXFP4 = 39
};

/* By format: bytes of a block's scales and minima, of the block, and of what eight blocks begin with. */
static const size_t SCALE_BYTES[FORMATS] = {0, PANEL * 2, PANEL * 4, 0, PANEL * 2, PANEL * 2},
                    QUANT_BYTES[FORMATS] = {0, PANEL * 2 + BLOCK * PANEL, PANEL * 4 + BLOCK * PANEL / 2,
                                            2 * BLOCK * PANEL, PANEL * 2 + BLOCK * PANEL / 2,
                                            PANEL * 2 + BLOCK * PANEL * 3 / 4},
                    GROUP_BYTES[FORMATS] = {0, 0, 0, 0, PANEL * 4, PANEL * 2};

/* Bytes of a quantised panel with so many blocks. */
static inline size_t panel_bytes(int format, int64_t blocks)
{
    return (size_t)blocks * QUANT_BYTES[format] + (size_t)(blocks / GROUP) * GROUP_BYTES[format];
}

/* Where d and m of a block begin (Q4_K, Q6_K), and the block itself. */
static inline uint8_t *group_at(const void *packed, int format, int64_t blocks, int64_t column, int64_t block)
{
    return (uint8_t *)packed + (size_t)(column / PANEL) * panel_bytes(format, blocks)
           + panel_bytes(format, block / GROUP * GROUP);
}

static inline uint8_t *block_at(const void *packed, int format, int64_t blocks, int64_t column, int64_t block)
{
    if (!GROUP_BYTES[format])
        return (uint8_t *)packed
               + ((size_t)(column / PANEL) * (size_t)blocks + (size_t)block) * QUANT_BYTES[format];
    return group_at(packed, format, blocks, column, block) + GROUP_BYTES[format]
           + (size_t)(block % GROUP) * QUANT_BYTES[format];
}

/* The byte of a block that holds weight k of a column; shift_of gives the shift of its nibble, unless the
 * format is int8. Q6_K's high bits are in another byte, with a shift of their own. */
static inline int byte_of(int format, int64_t column, int k)
{
    int lane = (int)(column % PANEL) * 4 + k % 4;
    return (int)SCALE_BYTES[format] + k / (format == Q8 ? 4 : 8) * PANEL * 4 + lane;
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

static inline int high_byte_of(int64_t column, int k)
{
    return PANEL * 2 + BLOCK * PANEL / 2 + k / 16 * PANEL * 4 + (int)(column % PANEL) * 4 + k % 4;
}

static inline int high_shift_of(int k) { return k / 4 % 4 * 2; }

/* Weight k of a column as it is stored: 0 to 255, 15 or 63. */
static inline int number_of(int format, const uint8_t *block, int64_t column, int k)
{
    int byte = block[byte_of(format, column, k)];
    if (format == Q8)
        return byte;
    int high = format == Q6K ? block[high_byte_of(column, k)] >> high_shift_of(k) & 3 : 0;
    return (byte >> shift_of(k) & 15) | high << 4;
}

/* A column's scale of inputs 0 to 15 of a block (half 0) or of the others (half 1), and the block's minimum.
 * group: see group_at. */
static inline float scale_of(int format, const uint8_t *group, const uint8_t *block, int64_t column, int half)
{
    uint16_t d;
    memcpy(&d, (GROUP_BYTES[format] ? group : block) + column % PANEL * 2, 2);
    if (!GROUP_BYTES[format])
        return half_to_float(d);
    const uint8_t *s = block + column % PANEL;
    return half_to_float(d) * (format == Q6K ? (float)(int8_t)s[half * PANEL] : (float)s[0]);
}

static inline float minimum_of(int format, const uint8_t *group, const uint8_t *block, int64_t column)
{
    uint16_t m;
    if (format != Q4 && format != Q4K)
        return 0;
    memcpy(&m, (format == Q4K ? group : block) + PANEL * 2 + column % PANEL * 2, 2);
    return half_to_float(m) * (format == Q4K ? -(float)block[PANEL + column % PANEL] : 1);
}

/* The 6-bit scale and minimum of an eighth of a Q4_K or Q5_K block; the last four are split over two. */
static inline void q4_k_scale(const uint8_t *raw, int eighth, uint8_t *scale, uint8_t *least)
{
    const uint8_t *bytes = raw + 4 + eighth % 4;
    *scale = eighth < 4 ? bytes[0] & 63 : (uint8_t)((bytes[8] & 15) | bytes[0] >> 6 << 4);
    *least = eighth < 4 ? bytes[4] & 63 : (uint8_t)(bytes[8] >> 4 | bytes[4] >> 6 << 4);
}

/* Pack rows [first, first + count) of a matrix with `inputs` columns, given as float32 or as GGUF blocks that
 * are kept as they are. `packed` starts zeroed. */
void rl_pack_float(int format, void *packed, const float *rows, int64_t first, int64_t count, int64_t inputs);
void rl_pack_gguf(int kind, void *packed, const uint8_t *raw, int64_t first, int64_t count, int64_t inputs);

#endif
