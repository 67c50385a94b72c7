/*
 * What the parts of the packed products share: linear.c the whole, pack.c the layout's writing, linear_<isa>.c the inner loops.
 *
 * Layout. Output columns go in panels of 16. A float32 panel is [K][16]. A quantised panel is a run of blocks of 32 inputs: 16 scales
 * (IEEE half), for int4 16 minima (half), then the weights, four inputs of a column side by side, as the dot products of bytes take them:
 * int8 [8 fours][16 columns][4] bytes, each the weight + 128; int4 [4][16 columns][4] bytes, of which run v has the inputs of four 2v in the
 * low nibbles and of four 2v + 1 in the high ones. Bits a weight: 32, 8.5 and 5 (Q4_0 is stored as Q4_1 with minimum −8 · scale).
 */
#ifndef REDLITE_TILES_H
#define REDLITE_TILES_H
#include "half.h"
#include "linear.h"
#include <stddef.h>

enum { PANEL = 16, BLOCK = 32, MOST_ROWS = 12 };
enum { F32 = 0, Q8 = 1, Q4 = 2 };

static const size_t QUANT_BYTES[3] = {0, PANEL * 2 + BLOCK * PANEL, PANEL * 4 + BLOCK * PANEL / 2}; /* a block of a panel */

/* The largest magnitude of a byte of x. With int4 weights 16 bits hold all 16 products of a column's even inputs, or of its odd ones: 16 · 15 · 127 < 2¹⁵.
 * With int8 weights, 0 to 255, they are to hold four products, of inputs k, k + 1, k + 4 and k + 5 of each eight (k = 0, 2): neither the positive
 * ones among those four bytes nor the negative ones may come to more than 128 together, 255 · 128 < 2¹⁵. So x is scaled to leave them
 * within 126, and rounding adds half a unit each. */
enum { TOP = 127, TOP_Q8 = 126 };

/* Products of one x by one or more matrices of one format. Rows of x go in tiles, as even as can be, and each tile is laid out in the order
 * of use: float32 [inputs][rows of the tile]; quantised [blocks][8 fours][rows][4] signed bytes. */
typedef struct Product Product;
typedef void Tile(const Product *p, const uint8_t *panel, int64_t row, int count, float *out, const uint8_t *ahead); /* out[count][PANEL], of rows from `row` */

struct Product {
    int format, most;           /* most: rows of a tile */
    Tile *tile;
    const Matrix *matrices;
    float *const *y;            /* a matrix: [rows, columns] */
    int count;                  /* of matrices */
    const float *x;             /* [rows, inputs] */
    int64_t rows, inputs, blocks, tiles, panels, panel_bytes; /* panels: of all matrices */
    int64_t share;              /* bytes of the next panel that a tile asks for ahead, with each block of its own */
    float *tiled;               /* x in tiles (float32) */
    int8_t *bytes;              /* x in tiles (quantised) */
    float *scale;               /* tiles of [blocks][rows]: x = scale · byte */
    float *sums;                /* the same, int4: Σ x of the block, as rounded, for the minimum */
    int32_t *starts;            /* the same, int8: −128 Σ byte, where the sum starts, for the weights' + 128 (in the place of sums) */
};

static inline uint8_t *block_at(const void *packed, int format, int64_t blocks, int64_t column, int64_t block)
{
    return (uint8_t *)packed + ((size_t)(column / PANEL) * (size_t)blocks + (size_t)block) * QUANT_BYTES[format];
}

/* Where weight k of a block, for a column, lies: its byte, and for int4 the shift of its nibble. */
static inline int byte_of(int format, int64_t column, int k)
{
    int lane = (int)(column % PANEL) * 4 + k % 4;
    return format == Q8 ? PANEL * 2 + k / 4 * PANEL * 4 + lane : PANEL * 4 + k / 8 * PANEL * 4 + lane;
}

static inline int shift_of(int k) { return k / 4 % 2 * 4; }

#if defined(__x86_64__)
Tile rl_tile_f32_avx2, rl_tile_q8_avx2, rl_tile_q4_avx2, rl_tile_f32_avx512, rl_tile_q8_avx512, rl_tile_q4_avx512;
enum { ROWS_AVX2 = 6, ROWS_AVX2_Q8 = 4, ROWS_AVX512 = 12 };
int rl_round_block_avx2(const float *x, int eights, float *scale, int8_t *bytes);
#elif defined(__aarch64__)
Tile rl_tile_f32_neon, rl_tile_q8_neon, rl_tile_q4_neon, rl_tile_q8_dot, rl_tile_q4_dot;
enum { ROWS_NEON = 6, ROWS_NEON_INT = 4 };
#endif

/* In a switch over the rows of a tile: the copy of `tile` for a constant number of them. */
#define COPY(tile, rows) case rows: tile(p, panel, row, out, ahead, rows); break;
/* With block b: weights of the next panel come from memory while this one is multiplied, a few lines at a time, so that no load waits. */
#define FETCH_AHEAD(b)                                                                                                 \
    for (int64_t line = 0; line < (ahead ? p->share : 0); line += 64)                                                  \
        __builtin_prefetch(ahead + (b) * p->share + line, 0, 2); /* to the second-level cache: the first holds this panel */
#define EACH_ROW _Pragma("GCC unroll 12") for (int r = 0; r < count; r++)

#endif
