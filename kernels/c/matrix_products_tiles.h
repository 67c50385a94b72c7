/* What matrix_products.c shares with its inner loops, matrix_products_<instruction set>.c. */
#ifndef REDLITE_MATRIX_PRODUCTS_TILES_H
#define REDLITE_MATRIX_PRODUCTS_TILES_H
#include "matrix_products.h"
#include "packed_matrix.h"

enum { MOST_ROWS = 64 };

/*
 * The largest magnitude of a byte of x.
 *
 * With four-bit weights, 16 bits hold all 16 products of a column's even inputs, or of its odd ones: 16 · 15
 * · 127 < 2¹⁵. With Q6_K's they hold the eight of half a block, less what weights of 32 would give: 8 · 32 ·
 * 127 < 2¹⁵. The sums begin with the latter; what runs over on the way cancels.
 *
 * Int8 weights are stored as 0 to 255, and 16 bits hold four products: of inputs k, k + 1, k + 4 and k + 5 of
 * each eight (k = 0, 2). Neither the positive nor the negative ones of those four bytes may sum to more than
 * 128: 255 · 128 < 2¹⁵. So x is scaled to keep these sums within 126; rounding adds at most half a unit for
 * each byte.
 */
enum { TOP = 127, TOP_Q8 = 126 };

/* Products of one x with one or more matrices of one format. The rows of x go in tiles, as even as can be. A
 * tile is laid out in the order of use: float32 [inputs][rows of the tile]; quantised [blocks][8
 * fours][rows][4] signed bytes. */
typedef struct Product Product;

/* Multiplies a tile with a panel: out[count][PANEL], for `count` rows from `row` on. Rows of out lie `stride`
 * numbers apart. ahead: what to prefetch, or NULL. */
typedef void Tile(const Product *p, const uint8_t *panel, int64_t row, int count, float *out, int64_t stride,
                  const uint8_t *ahead);

struct Product {
    int format, most; /* most: rows of a tile */
    Tile *tile;
    const Matrix *matrices;
    float *const *y; /* of each matrix: [rows, columns] */
    int count;       /* of matrices */
    const float *x;  /* [rows, inputs]: number k of row r is x[r · row_stride + k · input_stride] */
    int64_t row_stride, input_stride; /* float32 and bfloat16 take any; else input_stride is 1 */
    int64_t rows, inputs, blocks, tiles, panels, panel_bytes; /* panels: of all matrices */
    int64_t share;   /* bytes of the next panel that a tile prefetches with each of its own blocks */
    float *tiled;    /* x in tiles (float32, or bfloat16 in one of these layouts) */
    enum { BF16_FLOATS, BF16_ROWS, BF16_RUNS } layout;
    int8_t *bytes;   /* x in tiles (quantised) */
    float *scale;    /* tiles of [blocks][rows]: x = scale · byte */
    float *sums;     /* the same, int4 and Q4_K: Σ x of the block, as rounded, which the minimum multiplies */
    int32_t *starts; /* the same, int8, in the place of sums: −128 Σ byte, which cancels the weights' + 128;
                      * Q6_K: −32 Σ byte of each half of the block, side by side */
    int paired;      /* a start of Q6_K is two 16-bit numbers: of a four's first two inputs, of the last */
};

/*
 * With bfloat16 weights, a tile of x is laid out as rounded floats, [inputs][rows]; row by row, each with
 * room for one more block, since rows a page apart would fall on the same lines of the cache; or in groups of
 * 16 rows, each [blocks][rows of the group][32].
 */
enum { BF16_GROUP = 16 };
void rl_lay_out_bf16(const Product *p, int64_t row, int count);

/* For products that are made otherwise than by rl_products: choose the inner loop, the rows of a tile and the
 * number of tiles by the format and the rows; put tiles first to last − 1 of x where the inner loop reads. */
void rl_choose(Product *p);
void rl_lay_out(const Product *p, int64_t first, int64_t last);
void rl_begin_tiles(const Product *p), rl_end_tiles(const Product *p);
static inline int64_t first_row(const Product *p, int64_t tile) { return p->rows * tile / p->tiles; }
int64_t rl_tile_row_bytes(const Product *p); /* of a row of x in its tile */

#if defined(__x86_64__)
Tile rl_tile_bf16_avx2, rl_tile_bf16_avx512, rl_tile_bf16_amx;
void rl_amx_begin(void), rl_amx_end(void);
Tile rl_tile_f32_avx2, rl_tile_q8_avx2, rl_tile_q4_avx2, rl_tile_q4k_avx2, rl_tile_q6k_avx2;
Tile rl_tile_f32_avx512, rl_tile_q8_avx512, rl_tile_q4_avx512, rl_tile_q4k_avx512, rl_tile_q6k_avx512;
enum { ROWS_AVX2 = 6, ROWS_AVX2_Q8 = 4, ROWS_AVX512 = 12, ROWS_AMX = 64 };
int rl_round_block_avx2(const float *x, int for_int8, float *scale, int8_t *bytes);
int rl_round_block_avx512(const float *x, int for_int8, float *scale, int8_t *bytes);
#elif defined(__aarch64__)
Tile rl_tile_f32_neon, rl_tile_q8_neon, rl_tile_q4_neon, rl_tile_q4k_neon, rl_tile_q6k_neon;
Tile rl_tile_q8_dot, rl_tile_q4_dot, rl_tile_q4k_dot, rl_tile_q6k_dot;
enum { ROWS_NEON = 6, ROWS_NEON_INT = 4 };
#endif

/* The arguments of an inner loop, whose last one is a constant in each copy. */
#define TILE_ARGUMENTS \
    const Product *p, const uint8_t *panel, int64_t row, float *out, int64_t stride, const uint8_t *ahead, \
        const int count
/* In a switch over the rows of a tile: the copy for a constant number of them. */
#define COPY(tile, rows) case rows: tile(p, panel, row, out, stride, ahead, rows); break;
#define UP_TO_4(tile) switch (count) { COPY(tile, 1) COPY(tile, 2) COPY(tile, 3) COPY(tile, 4) }
#define UP_TO_6(tile) \
    switch (count) { COPY(tile, 1) COPY(tile, 2) COPY(tile, 3) COPY(tile, 4) COPY(tile, 5) COPY(tile, 6) }
#define UP_TO_12(tile)                                                                         \
    switch (count) {                                                                           \
        COPY(tile, 1) COPY(tile, 2) COPY(tile, 3) COPY(tile, 4) COPY(tile, 5) COPY(tile, 6)    \
        COPY(tile, 7) COPY(tile, 8) COPY(tile, 9) COPY(tile, 10) COPY(tile, 11) COPY(tile, 12) \
    }
/* A function of type Tile. */
#define TILE(attributes, name, choice)                                                               \
    attributes void name(const Product *p, const uint8_t *panel, int64_t row, int count, float *out, \
                         int64_t stride, const uint8_t *ahead)                                       \
    {                                                                                                \
        choice                                                                                       \
    }
/* With block b, prefetch a few lines of the next panel into the second-level cache, so that no load waits for
 * memory. */
#define FETCH_AHEAD(b)                                                \
    for (int64_t line = 0; line < (ahead ? p->share : 0); line += 64) \
        __builtin_prefetch(ahead + (b) * p->share + line, 0, 2);
#define EACH_ROW _Pragma("GCC unroll 12") for (int r = 0; r < count; r++)

#endif
