/*
 * What the parts of the packed products share: linear.c the whole, pack.c the layout's writing, linear_<isa>.c the inner loops.
 *
 * Layout. Output columns go in panels of 16. A float32 panel is [K][16]. A quantised panel is a run of
 * blocks of 32 inputs: 16 scales (IEEE half), for int4 16 minima (half), then the weights in pairs of
 * inputs: int8 [16 pairs][16 columns][2]; int4 [4][16 columns][2] 16-bit words of which nibble t of word v
 * belongs to pair 4v + t. Bits a weight: 32, 8.5 and 5 (Q4_0 is stored as Q4_1 with minimum −8 · scale).
 */
#ifndef REDLITE_TILES_H
#define REDLITE_TILES_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { PANEL = 16, BLOCK = 32, MOST_ROWS = 12 };
enum { F32 = 0, Q8 = 1, Q4 = 2 };

static const size_t QUANT_BYTES[3] = {0, PANEL * 2 + BLOCK * PANEL, PANEL * 4 + BLOCK * PANEL / 2}; /* a block of a panel */

/* One product. Rows of x go in tiles, as even as can be, and each tile is laid out in the order of use: float32
 * [inputs][rows of the tile], or int16 [pairs of inputs][rows][2] with one scale a row.
 * Split, for dot products of bytes, each int16 is 256 · high + low: of 8 inputs first 0, 4, 1, 5, then 2, 6, 3, 7 (the order of an
 * int4 word's nibbles), each four as [rows][4 high, signed; 4 low, unsigned]. */
typedef struct Product Product;
typedef void Tile(const Product *p, int64_t row, int count, int64_t column, float *out); /* out[count][PANEL] of rows from `row`, columns from `column` */

struct Product {
    int format, most, split;    /* most: rows of a tile */
    Tile *tile;
    const void *packed;
    const float *x, *bias;      /* [rows, inputs], [columns] or NULL */
    float *y;                   /* [rows, columns] */
    int64_t rows, columns, inputs, blocks, tiles;
    float *tiled;               /* x in tiles (float32) */
    int16_t *quantised;         /* x in tiles (int16) */
    float *scale, *sums;        /* [rows]; tiles of [blocks][rows]: int4: scale · Σ x; split int8: −128 Σ low, below 2²⁴ and so exact */
};

static inline uint8_t *block_at(const void *packed, int format, int64_t blocks, int64_t column, int64_t block)
{
    return (uint8_t *)packed + ((size_t)(column / PANEL) * (size_t)blocks + (size_t)block) * QUANT_BYTES[format];
}

static inline float half_to_float(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, fraction = h & 0x3ff, bits;
    if (exponent == 31)
        bits = sign | 0x7f800000 | fraction << 13;
    else if (exponent)
        bits = sign | (exponent + 112) << 23 | fraction << 13;
    else {
        float tiny = (float)fraction * 0x1p-24f;
        return sign ? -tiny : tiny;
    }
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#if defined(__x86_64__)
Tile rl_tile_f32_avx2, rl_tile_q8_avx2, rl_tile_q4_avx2, rl_tile_f32_avx512, rl_tile_q8_avx512, rl_tile_q4_avx512;
enum { ROWS_AVX2 = 6, ROWS_AVX512 = 12 };
float rl_largest_avx2(const float *x, int64_t n);
void rl_quantise_avx2(const float *x, int64_t n, float inverse, int16_t *out);
#elif defined(__aarch64__)
Tile rl_tile_f32_neon, rl_tile_q8_neon, rl_tile_q4_neon, rl_tile_q8_dot, rl_tile_q4_dot;
enum { ROWS_NEON = 6, ROWS_NEON_INT = 4, ROWS_DOT = 3 };
#endif

/* In a switch over the rows of a tile: the copy of `tile` for a constant number of them. */
#define COPY(tile, rows) case rows: tile(p, row, column, out, rows); break;
#define EACH_ROW _Pragma("GCC unroll 12") for (int r = 0; r < count; r++)

#endif
