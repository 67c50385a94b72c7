/*
 * y = x Wᵀ for weights packed beforehand: float32, int8 (like GGUF's Q8_0), int4 (like Q4_0, Q4_1), Q4_K and
 * Q6_K (GGUF's own numbers), and bfloat16 (matrix_products_bf16.c).
 * The same code serves one row of x and many.
 *
 * Quantised products are exact integers. Each block of 32 inputs of a row of x becomes bytes with one scale:
 * max|x| / 127; for int8 weights the largest of max|x| and some sums of four inputs, / 126.
 * That keeps 16-bit sums of products from overflowing; TOP_Q8 in matrix_products_tiles.h says which sums. A
 * block's products with the weights are summed in integers; then, in float32,
 * y += scale_w · (scale_x · sum) (+ minimum · Σ x). Q6_K's blocks have a scale_w for each half.
 *
 * Every output is summed over the inputs in one fixed order, whatever the number of rows. So a row's result
 * does not depend, to the last bit, on the rows beside it.
 */
#include "isa.h"
#include "matrix_products_tiles.h"
#include "thread_pool.h"
#include <math.h>
#include <stdlib.h>

enum { X_CACHE_BYTES = 192 * 1024 }; /* of x, kept in the cache at a time */

static int64_t panels_of(const Matrix *m) { return (m->columns + PANEL - 1) / PANEL; }

static inline float larger(float x, float most) { return x > most || x != x ? x : most; } /* NaN wins */
static inline float positive_part(float x) { return x > 0 ? x : 0; }

/* Round a block of x to bytes · scale. Returns the sum of the bytes. for_int8: bound sums of four inputs too,
 * see TOP_Q8.
 * The scale is NaN if a number or one of those sums is not finite, and 0 if the block is so small that the
 * scale has no inverse. */
static int round_block(const float *x, int for_int8, float *scale, int8_t *bytes)
{
#if defined(__x86_64__)
    if (rl_level() >= AVX512)
        return rl_round_block_avx512(x, for_int8, scale, bytes);
    if (rl_level() >= AVX2)
        return rl_round_block_avx2(x, for_int8, scale, bytes);
#endif
    const float top = for_int8 ? TOP_Q8 : TOP;
    float most = 0;
    int sum = 0;
    for (int k = 0; k < BLOCK; k++)
        most = larger(fabsf(x[k]), most);
    for (int k = 0; for_int8 && k < BLOCK; k += k % 4 ? 6 : 2) { /* inputs 0 and 2 of each eight */
        for (int sign = 1; sign >= -1; sign -= 2) {
            float near = positive_part(sign * x[k]) + positive_part(sign * x[k + 1]),
                  far = positive_part(sign * x[k + 4]) + positive_part(sign * x[k + 5]);
            most = larger(near + far, most);
        }
    }
    float inverse = top / most; /* infinite for 0 */
    *scale = !(most <= 3.4e38f) ? NAN : inverse <= 3.4e38f ? most / top : 0;
    for (int k = 0; k < BLOCK; k++) {
        bytes[k] = *scale > 0 ? (int8_t)lrintf(x[k] * inverse) : 0;
        sum += bytes[k];
    }
    return sum;
}

/* The starts of both halves of a block: see Product. */
static void put_starts(const Product *p, const int8_t *bytes, int32_t *starts)
{
    for (int half = 0; half < 2; half++, bytes += BLOCK / 2) {
        int sums[4] = {0};
        for (int k = 0; k < BLOCK / 2; k++)
            sums[k % 4] += bytes[k];
        int even = -32 * (sums[0] + sums[1]), odd = -32 * (sums[2] + sums[3]);
        starts[half] = p->paired ? (int32_t)((uint32_t)odd << 16 | (uint16_t)even) : even + odd;
    }
}

/* Round row `row + r` to bytes, and store it in the order of its tile of `count` rows. */
static void lay_out_bytes(const Product *p, int64_t row, int64_t r, int count)
{
    const float *x = p->x + (row + r) * p->row_stride;
    int8_t *out = p->bytes + row * p->blocks * BLOCK, bytes[BLOCK];
    float padded[BLOCK] = {0};
    for (int64_t b = 0; b < p->blocks; b++, x += BLOCK) {
        int64_t left = p->inputs - b * BLOCK, cell = row * p->blocks + b * count + r;
        if (left < BLOCK) /* in the last block alone */
            memcpy(padded, x, (size_t)left * sizeof(float));
        int sum = round_block(left < BLOCK ? padded : x, p->format == Q8, p->scale + cell, bytes);
        if (p->format == Q8)
            p->starts[cell] = -128 * sum;
        else if (p->format == Q6K)
            put_starts(p, bytes, p->starts + 2 * cell);
        else
            p->sums[cell] = p->scale[cell] * (float)sum;
        for (int four = 0; four < BLOCK / 4; four++)
            memcpy(out + ((b * BLOCK / 4 + four) * count + r) * 4, bytes + four * 4, 4);
    }
}

static void lay_out_floats(const Product *p, int64_t row, int count)
{
    const float *x = p->x + row * p->row_stride;
    float *out = p->tiled + row * p->inputs;
    if (p->input_stride == 1)
        for (int r = 0; r < count; r++)
            for (int64_t k = 0; k < p->inputs; k++)
                out[k * count + r] = x[r * p->row_stride + k];
    else /* reads neighbours where the rows are */
        for (int64_t k = 0; k < p->inputs; k++)
            for (int r = 0; r < count; r++)
                out[k * count + r] = x[r * p->row_stride + k * p->input_stride];
}

void rl_lay_out(const Product *p, int64_t first, int64_t last)
{
    for (int64_t tile = first; tile < last; tile++) {
        int64_t row = first_row(p, tile);
        int count = (int)(first_row(p, tile + 1) - row);
        if (p->format == BF16)
            rl_lay_out_bf16(p, row, count);
        else if (p->format == F32)
            lay_out_floats(p, row, count);
        else
            for (int r = 0; r < count; r++)
                lay_out_bytes(p, row, r, count);
    }
}

static void lay_out(void *context, int part, int parts)
{
    const Product *p = context;
    rl_lay_out(p, p->tiles * part / parts, p->tiles * (part + 1) / parts);
}

static void tile_portable(const Product *p, const uint8_t *panel, int64_t row, int count, float *out,
                          int64_t stride, const uint8_t *ahead)
{
    (void)ahead;
    for (int r = 0; r < count; r++)
        memset(out + r * stride, 0, sizeof(float) * PANEL);
    if (p->format == F32) {
        const float *w = (const float *)panel, *x = p->tiled + row * p->inputs;
        for (int64_t k = 0; k < p->inputs; k++)
            for (int r = 0; r < count; r++)
                for (int j = 0; j < PANEL; j++)
                    out[r * stride + j] += x[k * count + r] * w[k * PANEL + j];
        return;
    }
    if (p->format == BF16) {
        const float *x = p->tiled + row * p->blocks * BLOCK;
        const uint16_t *w = (const uint16_t *)panel;
        for (int64_t k = 0; k < p->inputs; k++)
            for (int r = 0; r < count; r++)
                for (int j = 0; j < PANEL; j++)
                    out[r * stride + j] += x[k * count + r] * bf16_to_float(w[bf16_at(j, k)]);
        return;
    }
    const int8_t *q = p->bytes + row * p->blocks * BLOCK;
    const int f = p->format, halves = f == Q6K ? 2 : 1, started = f == Q8 || f == Q6K;
    for (int64_t b = 0; b < p->blocks; b++, q += BLOCK * count) {
        const uint8_t *group = group_at(panel, f, p->blocks, 0, b);
        const uint8_t *block = block_at(panel, f, p->blocks, 0, b);
        for (int r = 0; r < count; r++) {
            int64_t cell = row * p->blocks + b * count + r;
            for (int j = 0; j < PANEL; j++) {
                float *to = out + r * stride + j;
                for (int half = 0; half < halves; half++) {
                    int32_t sum = started ? p->starts[cell * halves + half] : 0;
                    for (int k = BLOCK / halves * half; k < BLOCK / halves * (half + 1); k++)
                        sum += number_of(f, block, j, k) * q[(k / 4 * count + r) * 4 + k % 4];
                    *to += scale_of(f, group, block, j, half) * (p->scale[cell] * (float)sum);
                }
                if (!started)
                    *to += minimum_of(f, group, block, j) * p->sums[cell];
            }
        }
    }
}

int64_t rl_tile_row_bytes(const Product *p)
{
    if (p->format == F32)
        return p->inputs * (int64_t)sizeof(float);
    if (p->format == BF16)
        return p->blocks * BLOCK * (p->layout == BF16_FLOATS ? 4 : 2);
    return p->blocks * (BLOCK + 8);
}

/* Multiply tiles [first, last) with one panel of matrix i. next: whether this thread goes on to the
 * panel behind it, which is then fetched ahead. */
static void multiply_panel(const Product *p, int i, int64_t panel, int64_t first, int64_t last, int next)
{
    const Matrix *m = p->matrices + i;
    const uint8_t *weights = (const uint8_t *)m->packed + panel * p->panel_bytes;
    const int64_t column = panel * PANEL, width = m->columns - column < PANEL ? m->columns - column : PANEL;
    /* AMX stores whole groups of rows, and the last panel may be wider than the matrix. */
    const int direct = width == PANEL && p->layout != BF16_RUNS;
    const int64_t stride = direct ? m->columns : PANEL;
    float buffer[MOST_ROWS * PANEL];
    for (int64_t tile = first; tile < last; tile++) {
        int64_t row = first_row(p, tile);
        int count = (int)(first_row(p, tile + 1) - row);
        const uint8_t *ahead = weights + p->panel_bytes + (tile - first) * p->blocks * p->share;
        float *to = p->y[i] + row * m->columns + column, *out = direct ? to : buffer;
        p->tile(p, weights, row, count, out, stride, next && p->share ? ahead : NULL);
        for (int r = 0; m->bias && r < count; r++)
            for (int j = 0; j < width; j++)
                out[r * stride + j] += m->bias[column + j];
        for (int r = 0; !direct && r < count; r++)
            memcpy(to + r * m->columns, out + r * stride, (size_t)width * sizeof(float));
    }
}

/* A thread's share is a run of panels. It takes a few tiles at a time, so that their part of x stays in the
 * cache. */
static void multiply_share(const Product *p, int part, int parts)
{
    int64_t start = p->panels * part / parts, end = p->panels * (part + 1) / parts;
    int64_t tile_bytes = p->most * rl_tile_row_bytes(p);
    int64_t step = X_CACHE_BYTES / tile_bytes > 0 ? X_CACHE_BYTES / tile_bytes : 1;
    for (int64_t first = 0; first < p->tiles; first += step) {
        int64_t before = 0, last_tile = first + step < p->tiles ? first + step : p->tiles;
        for (int i = 0; i < p->count; i++) { /* `before` counts the panels of the matrices before this one */
            int64_t panels = panels_of(p->matrices + i), last = end - before < panels ? end - before : panels;
            for (int64_t panel = start > before ? start - before : 0; panel < last; panel++)
                multiply_panel(p, i, panel, first, last_tile, panel + 1 < last);
            before += panels;
        }
    }
}

/* Around the tiles that a thread multiplies. */
void rl_begin_tiles(const Product *p)
{
#if defined(RL_BF16_COMPILER)
    if (p->layout == BF16_RUNS)
        rl_amx_begin();
#endif
    (void)p;
}

void rl_end_tiles(const Product *p)
{
#if defined(RL_BF16_COMPILER)
    if (p->layout == BF16_RUNS)
        rl_amx_end();
#endif
    (void)p;
}

static void multiply(void *context, int part, int parts)
{
    rl_begin_tiles(context);
    multiply_share(context, part, parts);
    rl_end_tiles(context);
}

void rl_choose(Product *p)
{
    p->most = 6, p->tile = tile_portable;
#if defined(__x86_64__)
    static Tile *const avx2[FORMATS] = {rl_tile_f32_avx2, rl_tile_q8_avx2, rl_tile_q4_avx2, NULL,
                                        rl_tile_q4k_avx2, rl_tile_q6k_avx2};
    static Tile *const avx512[FORMATS] = {rl_tile_f32_avx512, rl_tile_q8_avx512, rl_tile_q4_avx512, NULL,
                                          rl_tile_q4k_avx512, rl_tile_q6k_avx512};
    if (p->format == BF16) {
#if defined(RL_BF16_COMPILER)
        if (rl_level() >= AMX)
            p->most = ROWS_AMX, p->tile = rl_tile_bf16_amx, p->layout = BF16_RUNS;
        else if (rl_level() >= AVX512_BF16)
            p->most = ROWS_AVX512, p->tile = rl_tile_bf16_avx512, p->layout = BF16_ROWS;
        else
#endif
        if (rl_level() >= AVX2)
            p->most = ROWS_AVX2, p->tile = rl_tile_bf16_avx2;
    } else if (rl_level() >= AVX512)
        p->most = ROWS_AVX512, p->tile = avx512[p->format];
    else if (rl_level() >= AVX2)
        p->most = p->format == Q8 ? ROWS_AVX2_Q8 : ROWS_AVX2, p->tile = avx2[p->format], p->paired = 1;
#elif defined(__aarch64__)
    static Tile *const neon[FORMATS] = {rl_tile_f32_neon, rl_tile_q8_neon, rl_tile_q4_neon, NULL,
                                        rl_tile_q4k_neon, rl_tile_q6k_neon};
    static Tile *const dot[FORMATS] = {rl_tile_f32_neon, rl_tile_q8_dot, rl_tile_q4_dot, NULL,
                                       rl_tile_q4k_dot, rl_tile_q6k_dot};
    if (p->format == BF16)
        ; /* the portable loop */
    else if (rl_level() >= NEON_DOT)
        p->most = ROWS_NEON, p->tile = dot[p->format];
    else if (rl_level() >= NEON)
        p->most = p->format == F32 ? ROWS_NEON : ROWS_NEON_INT, p->tile = neon[p->format];
#endif
    p->tiles = (p->rows + p->most - 1) / p->most;
}

/* The inner loop that serves products of a format: equal in two instruction sets where both run the same. */
Tile *rl_product_loop(int format)
{
    Product p = {.format = format};
    rl_choose(&p);
    return p.tile;
}

/* Products by matrices of one format. */
static int products(const Matrix *matrices, int count, const float *x, float *const *y, int64_t rows,
                    int threads)
{
    Product p = {.format = matrices->format, .matrices = matrices, .count = count, .x = x, .y = y};
    p.rows = rows, p.inputs = p.row_stride = matrices->inputs, p.input_stride = 1;
    p.blocks = (matrices->inputs + BLOCK - 1) / BLOCK;
    p.panel_bytes = p.format == F32 ? p.inputs * PANEL * (int64_t)sizeof(float)
                                    : (int64_t)panel_bytes(p.format, p.blocks);
    for (int i = 0; i < count; i++)
        p.panels += panels_of(matrices + i);
    rl_choose(&p);
    /* A panel meets `visits` blocks of x; each fetches `share` bytes of the next panel. */
    int64_t lines = (p.panel_bytes + 63) / 64, visits = p.tiles * p.blocks;
    p.share = p.tiles > 1 ? (lines + visits - 1) / visits * 64 : 0;
    void *scratch = NULL;
    threads = threads < 1 ? 1 : threads > 64 ? 64 : threads;
    if (p.format == F32 && rows == 1)
        p.tiled = (float *)x;
    else {
        size_t cells = (size_t)(rows * p.blocks);
        size_t bytes = cells * (BLOCK + 3 * sizeof(float));
        if (p.format == F32)
            bytes = (size_t)(rows * p.inputs) * sizeof(float);
        if (p.format == BF16) /* and AMX's last group reads whole tiles */
            bytes = cells * BLOCK * sizeof(float) + BF16_GROUP * BLOCK * sizeof(uint16_t);
        scratch = malloc(bytes);
        if (!scratch)
            return -1;
        p.tiled = p.scale = scratch;
        p.sums = p.scale + cells, p.starts = (int32_t *)p.sums, p.bytes = (int8_t *)(p.sums + 2 * cells);
        rl_parallel(lay_out, &p, p.tiles < threads ? (int)p.tiles : threads);
    }
    rl_parallel(multiply, &p, threads);
    free(scratch);
    return 0;
}

int rl_products(const Matrix *matrices, int count, const float *x, float *const *y, int64_t rows, int threads)
{
    for (int first = 0, end; first < count && rows; first = end) {
        for (end = first + 1; end < count && matrices[end].format == matrices[first].format; end++)
            ;
        if (products(matrices + first, end - first, x, y + first, rows, threads))
            return -1;
    }
    return 0;
}

/* One product, for Python. */
int rl_linear(const Matrix *matrix, const float *x, float *y, int64_t rows, int threads)
{
    return rl_products(matrix, 1, x, &y, rows, threads);
}
