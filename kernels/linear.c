/*
 * y = x Wᵀ for weights packed once: float32, int8 (Q8_0) and int4 (Q4_0, Q4_1), for one row as for many.
 *
 * Quantised products are exact integers: a row of x becomes int16 with one scale (15 bits, so that the
 * rounding of x is far below that of the weights), a block's 32 products are summed in int32 (at most
 * 32 · 127 · 32767 < 2³¹), and y += scale_w · sum (+ minimum · sum of x) in float32.
 *
 * Every output is summed over the inputs in one fixed order whatever the number of rows, so a row's result
 * does not depend, to the last bit, on what it is batched with.
 */
#include "redlite.h"
#include "isa.h"
#include "linear.h"
#include "pool.h"
#include "tiles.h"
#include <math.h>
#include <stdlib.h>

enum { X_BLOCK_BYTES = 192 * 1024 };

static int64_t first_row(const Product *p, int64_t tile) { return p->rows * tile / p->tiles; }

static float largest_portable(const float *x, int64_t n)
{
    float most = 0;
    for (int64_t k = 0; k < n; k++) {
        float magnitude = fabsf(x[k]);
        most = magnitude > most || magnitude != magnitude ? magnitude : most;
        if (most != most)
            break;
    }
    return most;
}

static float largest(const float *x, int64_t n) /* magnitude; NaN where there is one */
{
#if defined(__x86_64__)
    if (rl_level() >= AVX2)
        return rl_largest_avx2(x, n);
#endif
    return largest_portable(x, n);
}

static void quantise(const float *x, int64_t n, float inverse, int16_t *out)
{
#if defined(__x86_64__)
    if (rl_level() >= AVX2) {
        rl_quantise_avx2(x, n, inverse, out);
        return;
    }
#endif
    for (int64_t k = 0; k < n; k++) /* on ARM two instructions each: no more than a thousandth of the product */
        out[k] = (int16_t)lrintf(x[k] * inverse);
}

/* Row r of a tile of `count` rows into its place, as bytes; tiles.h gives the order. */
static void put_split(const int16_t *line, int64_t width, int64_t r, int count, uint8_t *tile)
{
    static const int OFFSET[4] = {0, 4, 1, 5};
    for (int64_t four = 0; four < width / 4; four++) {
        const int16_t *from = line + four / 2 * 8 + four % 2 * 2;
        uint8_t *to = tile + (four * count + r) * 8;
        for (int i = 0; i < 4; i++) {
            int value = from[OFFSET[i]];
            to[i] = (uint8_t)(value >> 8);
            to[i + 4] = (uint8_t)value;
        }
    }
}

/* One row in int16 with its scale; a row with NaN or infinity gets the scale NaN. `line` is scratch of blocks · 32. */
static void quantise_row(const Product *p, int64_t tile, int64_t r, int count, int16_t *line)
{
    int64_t before = first_row(p, tile), row = before + r, width = p->blocks * BLOCK;
    const float *x = p->x + row * p->inputs;
    float most = largest(x, p->inputs);
    int finite = most <= 3.4e38f;
    float inverse = finite && most > 0 ? 32767.0f / most : 0;
    p->scale[row] = finite ? most / 32767.0f : NAN;
    memset(line, 0, sizeof(int16_t) * (size_t)width);
    if (inverse > 0 && inverse <= 3.4e38f)
        quantise(x, p->inputs, inverse, line);
    else if (finite)
        p->scale[row] = 0; /* every input is 0, or so small that its scale has no inverse */
    int16_t *out = p->quantised + before * width;
    if (p->split)
        put_split(line, width, r, count, (uint8_t *)out);
    else
        for (int64_t pair = 0; pair < width / 2; pair++)
            memcpy(out + (pair * count + r) * 2, line + pair * 2, 4);
    if (p->format == Q8 && !p->split)
        return;
    for (int64_t b = 0; b < p->blocks; b++) {
        int32_t sum = 0;
        for (int k = 0; k < BLOCK; k++)
            sum += p->format == Q4 ? line[b * BLOCK + k] : line[b * BLOCK + k] & 255;
        p->sums[before * p->blocks + b * count + r] = p->format == Q4 ? p->scale[row] * (float)sum : -128.0f * (float)sum;
    }
}

static void lay_out(void *context, int part, int parts)
{
    const Product *p = context;
    int16_t *line = p->format == F32 ? NULL : p->quantised + p->rows * p->blocks * BLOCK + (int64_t)part * p->blocks * BLOCK;
    for (int64_t tile = p->tiles * part / parts; tile < p->tiles * (part + 1) / parts; tile++) {
        int64_t row = first_row(p, tile);
        int count = (int)(first_row(p, tile + 1) - row);
        for (int r = 0; r < count; r++) {
            if (p->format != F32) {
                quantise_row(p, tile, r, count, line);
                continue;
            }
            const float *x = p->x + (row + r) * p->inputs;
            float *out = p->tiled + row * p->inputs + r;
            for (int64_t k = 0; k < p->inputs; k++)
                out[k * count] = x[k];
        }
    }
}

static void tile_portable(const Product *p, int64_t row, int count, int64_t column, float *out)
{
    memset(out, 0, sizeof(float) * PANEL * (size_t)count);
    if (p->format == F32) {
        const float *w = (const float *)p->packed + (size_t)column * (size_t)p->inputs, *x = p->tiled + row * p->inputs;
        for (int64_t k = 0; k < p->inputs; k++)
            for (int r = 0; r < count; r++)
                for (int j = 0; j < PANEL; j++)
                    out[r * PANEL + j] += x[k * count + r] * w[k * PANEL + j];
        return;
    }
    const int16_t *q = p->quantised + row * p->blocks * BLOCK;
    for (int64_t b = 0; b < p->blocks; b++) {
        const uint8_t *at = block_at(p->packed, p->format, p->blocks, column, b);
        uint16_t halves[PANEL * 2];
        memcpy(halves, at, p->format == Q8 ? PANEL * 2 : PANEL * 4);
        for (int r = 0; r < count; r++) {
            int32_t sum[PANEL] = {0};
            for (int k = 0; k < BLOCK; k++)
                for (int j = 0; j < PANEL; j++) {
                    int pair = k / 2, word = (pair / 4 * PANEL + j) * 2 + k % 2, nibble = pair % 4;
                    int w = p->format == Q8 ? (int8_t)at[PANEL * 2 + (pair * PANEL + j) * 2 + k % 2]
                                            : at[PANEL * 4 + word * 2 + nibble / 2] >> nibble % 2 * 4 & 15;
                    sum[j] += w * q[((b * BLOCK / 2 + pair) * count + r) * 2 + k % 2];
                }
            for (int j = 0; j < PANEL; j++) {
                out[r * PANEL + j] += half_to_float(halves[j]) * p->scale[row + r] * (float)sum[j];
                if (p->format == Q4)
                    out[r * PANEL + j] += half_to_float(halves[PANEL + j]) * p->sums[row * p->blocks + b * count + r];
            }
        }
    }
}

/* A thread's share: a run of panels, for one run of tiles after the other, so that the tiles stay in the cache. */
static void multiply(void *context, int part, int parts)
{
    const Product *p = context;
    int64_t panels = (p->columns + PANEL - 1) / PANEL, start = panels * part / parts, end = panels * (part + 1) / parts;
    int64_t tile_bytes = p->most * (p->format == F32 ? p->inputs * 4 : p->blocks * BLOCK * 2);
    int64_t step = X_BLOCK_BYTES / tile_bytes > 0 ? X_BLOCK_BYTES / tile_bytes : 1;
    float out[MOST_ROWS * PANEL];
    for (int64_t first = 0; first < p->tiles; first += step)
        for (int64_t panel = start; panel < end; panel++)
            for (int64_t tile = first; tile < first + step && tile < p->tiles; tile++) {
                int64_t row = first_row(p, tile), column = panel * PANEL;
                int count = (int)(first_row(p, tile + 1) - row), width = (int)(p->columns - column < PANEL ? p->columns - column : PANEL);
                p->tile(p, row, count, column, out);
                for (int r = 0; r < count; r++)
                    for (int j = 0; j < width; j++)
                        p->y[(row + r) * p->columns + column + j] = out[r * PANEL + j] + (p->bias ? p->bias[column + j] : 0.0f);
            }
}

/* The inner loops of the instruction set in use. */
static void choose(Product *p)
{
    p->most = 6, p->tile = tile_portable;
#if defined(__x86_64__)
    static Tile *const avx2[3] = {rl_tile_f32_avx2, rl_tile_q8_avx2, rl_tile_q4_avx2};
    static Tile *const avx512[3] = {rl_tile_f32_avx512, rl_tile_q8_avx512, rl_tile_q4_avx512};
    if (rl_level() >= AVX512)
        p->most = ROWS_AVX512, p->tile = avx512[p->format];
    else if (rl_level() >= AVX2)
        p->most = ROWS_AVX2, p->tile = avx2[p->format];
#elif defined(__aarch64__)
    static Tile *const neon[3] = {rl_tile_f32_neon, rl_tile_q8_neon, rl_tile_q4_neon};
    static Tile *const dot[3] = {rl_tile_f32_neon, rl_tile_q8_dot, rl_tile_q4_dot};
    p->split = rl_level() >= NEON_DOT && p->format != F32;
    if (rl_level() >= NEON_DOT)
        p->most = p->split ? ROWS_DOT : ROWS_NEON, p->tile = dot[p->format];
    else if (rl_level() >= NEON)
        p->most = p->format == F32 ? ROWS_NEON : ROWS_NEON_INT, p->tile = neon[p->format];
#endif
    p->tiles = (p->rows + p->most - 1) / p->most;
}

/* y[rows, columns] = x[rows, inputs] · packedᵀ (+ bias[columns], or NULL). Returns 0, or −1 where memory for the tiles of x is not to be had. */
RL_EXPORT int rl_linear(int format, const void *packed, const float *x, const float *bias, float *y, int64_t rows, int64_t columns, int64_t inputs, int threads)
{
    if (rows == 0)
        return 0;
    Product p = {.format = format, .packed = packed, .x = x, .bias = bias, .y = y, .rows = rows, .columns = columns, .inputs = inputs,
                 .blocks = (inputs + BLOCK - 1) / BLOCK};
    choose(&p);
    void *scratch = NULL;
    threads = threads < 1 ? 1 : threads > 64 ? 64 : threads;
    int helpers = p.tiles < threads ? (int)p.tiles : threads;
    if (format == F32 && rows == 1)
        p.tiled = (float *)x;
    else {
        size_t cells = (size_t)(rows * p.blocks), bytes = format == F32 ? (size_t)(rows * inputs) * sizeof(float)
            : (cells + (size_t)(helpers * p.blocks)) * BLOCK * sizeof(int16_t) + ((size_t)rows + cells) * sizeof(float);
        scratch = malloc(bytes);
        if (!scratch)
            return -1;
        p.tiled = scratch;
        p.scale = scratch, p.sums = p.scale + rows;
        p.quantised = (int16_t *)(p.sums + cells);
        rl_parallel(lay_out, &p, helpers);
    }
    rl_parallel(multiply, &p, threads);
    free(scratch);
    return 0;
}
