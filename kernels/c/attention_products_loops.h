/*
 * The products of attention: many queries with packed keys, and their exponentials with packed values. Each
 * number is summed over the inputs in order, in float32.
 *
 * Narrow products are those of matrix_products_bf16.c: the matrix is bfloat16, and rows are rounded to it.
 * With vdpbf16ps they run there; elsewhere here. See loops.h for how this file is compiled.
 */
#ifndef REDLITE_ATTENTION_PRODUCTS_LOOPS_H
#define REDLITE_ATTENTION_PRODUCTS_LOOPS_H
#include "bfloat16.h"
#include "cached_attention.h"
#include "isa.h"
#include "matrix_products.h"

/* Up to TILE_ROWS rows × TILE_PANELS panels of 16 columns stay in registers. */
#if defined(REDLITE_AVX512)
enum { TILE_ROWS = 8, TILE_PANELS = 2 };
#else
enum { TILE_ROWS = 6, TILE_PANELS = 1 };
#endif
enum { VECTORS = PANEL / LANES };

/* out[m][panels · PANEL] = scale · Σ_i x[m][i] · panel[i][PANEL], for `rows` rows m. The panels are `apart`
 * numbers apart. */
INLINE void multiply_rows(const float *const *x, const float *panel, int64_t apart, int64_t inputs,
                          float scale, float *out, int64_t stride, const int rows, const int panels)
{
    const float *at[TILE_ROWS];
    Floats sum[TILE_ROWS][TILE_PANELS * VECTORS];
    _Pragma("GCC unroll 8") for (int m = 0; m < rows; m++) {
        at[m] = x[m];
        _Pragma("GCC unroll 4") for (int n = 0; n < panels * VECTORS; n++)
            sum[m][n] = (Floats){0};
    }
    for (int64_t i = 0; i < inputs; i++) {
        Floats w[TILE_PANELS * VECTORS];
        _Pragma("GCC unroll 4") for (int n = 0; n < panels * VECTORS; n++)
            w[n] = load(panel + n / VECTORS * apart + i * PANEL + n % VECTORS * LANES);
        _Pragma("GCC unroll 8") for (int m = 0; m < rows; m++) {
            Floats a = all(at[m][i]);
            _Pragma("GCC unroll 4") for (int n = 0; n < panels * VECTORS; n++)
                sum[m][n] += a * w[n];
        }
    }
    _Pragma("GCC unroll 8") for (int m = 0; m < rows; m++)
        _Pragma("GCC unroll 4") for (int n = 0; n < panels * VECTORS; n++)
            store(out + m * stride + n * LANES, sum[m][n] * all(scale));
}

typedef void MultiplyRows(const float *const *x, const float *panel, int64_t apart, int64_t inputs,
                          float scale, float *out, int64_t stride);

/* Functions of their own: one that held several such loops would have no registers left for the rows'
 * addresses. */
#define FOR_ROWS(rows, panels)                                                                               \
    static __attribute__((noinline)) void multiply_##rows##_##panels(                                        \
        const float *const *x, const float *panel, int64_t apart, int64_t inputs, float scale, float *out,   \
        int64_t stride)                                                                                      \
    {                                                                                                        \
        multiply_rows(x, panel, apart, inputs, scale, out, stride, rows, panels);                            \
    }
#if defined(REDLITE_AVX512)
#define FOR_PANELS(panels)                                                                                   \
    FOR_ROWS(1, panels) FOR_ROWS(2, panels) FOR_ROWS(3, panels) FOR_ROWS(4, panels) FOR_ROWS(5, panels)      \
    FOR_ROWS(6, panels) FOR_ROWS(7, panels) FOR_ROWS(8, panels)
FOR_PANELS(1) FOR_PANELS(2)
static MultiplyRows *const multiplications[TILE_PANELS][TILE_ROWS] = {
    {multiply_1_1, multiply_2_1, multiply_3_1, multiply_4_1, multiply_5_1, multiply_6_1, multiply_7_1,
     multiply_8_1},
    {multiply_1_2, multiply_2_2, multiply_3_2, multiply_4_2, multiply_5_2, multiply_6_2, multiply_7_2,
     multiply_8_2}};
#else
FOR_ROWS(1, 1) FOR_ROWS(2, 1) FOR_ROWS(3, 1) FOR_ROWS(4, 1) FOR_ROWS(5, 1) FOR_ROWS(6, 1)
static MultiplyRows *const multiplications[TILE_PANELS][TILE_ROWS] = {
    {multiply_1_1, multiply_2_1, multiply_3_1, multiply_4_1, multiply_5_1, multiply_6_1}};
#endif

/* Round rows to bfloat16 in `room`, where x then points. Returns what is left of the room. */
INLINE float *round_rows(const float **x, int64_t rows, int64_t inputs, float *room)
{
    for (int64_t m = 0; m < rows; m++, room += padded(inputs)) {
        for (int64_t j = 0; j < inputs; j += LANES)
            store(room + j, rounded(load_numbers(x[m], j, inputs - j, 0)));
        x[m] = room;
    }
    return room;
}

/* A bfloat16 panel as floats. An even input and the next lie side by side. */
INLINE void widen(const uint16_t *panel, int64_t inputs, float *to)
{
    for (int64_t i = 0; i < inputs; i += 2)
        for (int64_t n = 0; n < PANEL; n += LANES) {
            Bits pairs;
            memcpy(&pairs, panel + i * PANEL + n * 2, sizeof pairs);
            store(to + i * PANEL + n, (Floats)(pairs << 16));
            store(to + (i + 1) * PANEL + n, (Floats)(pairs & 0xffff0000));
        }
}

/* out[rows, padded(columns)] = scale · x · matrix. The matrix's panels are `apart` numbers apart. Every row
 * of x meets a panel before the next panel comes. narrow: the matrix is bfloat16, and x is rounded to it, in
 * `room`, which holds rounded_floats(rows, inputs). */
INLINE void multiply(const float **x, const void *matrix, int64_t rows, int64_t inputs, int64_t columns,
                     int64_t apart, float scale, float *out, int narrow, float *room)
{
    const int64_t stride = padded(columns), between = narrow ? padded(inputs) * PANEL : apart;
#if defined(REDLITE_AVX512) && defined(RL_BF16_COMPILER)
    if (narrow && rl_level() >= AVX512_BF16) {
        rl_multiply_bf16(x, matrix, rows, inputs, columns, apart, scale, out, (uint16_t *)room);
        return;
    }
#endif
    float *wide = narrow ? round_rows(x, rows, inputs, room) : NULL;
    for (int64_t column = 0, panels; column < columns; column += panels * PANEL) {
        const int64_t at = column / PANEL * apart;
        panels = stride - column < TILE_PANELS * PANEL ? 1 : TILE_PANELS;
        for (int64_t n = 0; narrow && n < panels; n++)
            widen((const uint16_t *)matrix + at + n * apart, inputs, wide + n * between);
        for (int64_t row = 0; row < rows; row += TILE_ROWS) {
            const float *panel = narrow ? wide : (const float *)matrix + at;
            int64_t count = rows - row < TILE_ROWS ? rows - row : TILE_ROWS;
            multiplications[panels - 1][count - 1](x + row, panel, between, inputs, scale,
                                                   out + row * stride + column, stride);
        }
    }
}

#endif
