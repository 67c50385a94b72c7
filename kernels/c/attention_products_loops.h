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

/* LANES columns' weights of input i + odd, of panels that are `apart` numbers apart. narrow: they are
 * bfloat16, an even input and the next side by side. */
INLINE Floats of_panels(const void *panel, int64_t apart, int64_t i, int odd, int n, const int narrow)
{
    const int64_t at = n / VECTORS * apart, column = n % VECTORS * LANES;
    if (!narrow)
        return load((const float *)panel + at + i * PANEL + column);
    Bits pairs;
    memcpy(&pairs, (const uint16_t *)panel + at + i * PANEL + column * 2, sizeof pairs);
    return (Floats)(odd ? pairs & 0xffff0000 : pairs << 16);
}

/* out[m][panels · PANEL] = scale · Σ_i x[m][i] · panel[i][PANEL], for `rows` rows m. narrow: with an odd
 * number of inputs, one more must be 0. */
INLINE void multiply_rows(const float *const *x, const void *panel, int64_t apart, int64_t inputs,
                          float scale, float *out, int64_t stride, const int rows, const int panels,
                          const int narrow)
{
    const float *at[TILE_ROWS];
    Floats sum[TILE_ROWS][TILE_PANELS * VECTORS];
    _Pragma("GCC unroll 8") for (int m = 0; m < rows; m++) {
        at[m] = x[m];
        _Pragma("GCC unroll 4") for (int n = 0; n < panels * VECTORS; n++)
            sum[m][n] = (Floats){0};
    }
    for (int64_t i = 0; i < inputs; i += 1 + narrow)
        _Pragma("GCC unroll 2") for (int odd = 0; odd <= narrow; odd++) {
            Floats w[TILE_PANELS * VECTORS];
            _Pragma("GCC unroll 4") for (int n = 0; n < panels * VECTORS; n++)
                w[n] = of_panels(panel, apart, i, odd, n, narrow);
            _Pragma("GCC unroll 8") for (int m = 0; m < rows; m++) {
                Floats a = all(at[m][i + odd]);
                _Pragma("GCC unroll 4") for (int n = 0; n < panels * VECTORS; n++)
                    sum[m][n] += a * w[n];
            }
        }
    _Pragma("GCC unroll 8") for (int m = 0; m < rows; m++)
        _Pragma("GCC unroll 4") for (int n = 0; n < panels * VECTORS; n++)
            store(out + m * stride + n * LANES, sum[m][n] * all(scale));
}

typedef void MultiplyRows(const float *const *x, const void *panel, int64_t apart, int64_t inputs,
                          float scale, float *out, int64_t stride);

/* Functions of their own: one that held several such loops would have no registers left for the rows'
 * addresses. */
#define FOR_ROWS(rows, panels, narrow)                                                                       \
    static __attribute__((noinline)) void multiply_##rows##_##panels##_##narrow(                             \
        const float *const *x, const void *panel, int64_t apart, int64_t inputs, float scale, float *out,    \
        int64_t stride)                                                                                      \
    {                                                                                                        \
        multiply_rows(x, panel, apart, inputs, scale, out, stride, rows, panels, narrow);                    \
    }
#define FOR_6(panels, narrow)                                                                                \
    FOR_ROWS(1, panels, narrow) FOR_ROWS(2, panels, narrow) FOR_ROWS(3, panels, narrow)                      \
    FOR_ROWS(4, panels, narrow) FOR_ROWS(5, panels, narrow) FOR_ROWS(6, panels, narrow)
#define OF_6(panels, narrow)                                                                                 \
    multiply_1_##panels##_##narrow, multiply_2_##panels##_##narrow, multiply_3_##panels##_##narrow,          \
        multiply_4_##panels##_##narrow, multiply_5_##panels##_##narrow, multiply_6_##panels##_##narrow
#if defined(REDLITE_AVX512)
#define FOR_8(panels, narrow)                                                                                \
    FOR_6(panels, narrow) FOR_ROWS(7, panels, narrow) FOR_ROWS(8, panels, narrow)
#define OF_8(panels, narrow)                                                                                 \
    {OF_6(panels, narrow), multiply_7_##panels##_##narrow, multiply_8_##panels##_##narrow}
FOR_8(1, 0) FOR_8(2, 0) FOR_8(1, 1) FOR_8(2, 1)
static MultiplyRows *const multiplications[2][TILE_PANELS][TILE_ROWS] = {{OF_8(1, 0), OF_8(2, 0)},
                                                                         {OF_8(1, 1), OF_8(2, 1)}};
#else
FOR_6(1, 0) FOR_6(1, 1)
static MultiplyRows *const multiplications[2][TILE_PANELS][TILE_ROWS] = {{{OF_6(1, 0)}}, {{OF_6(1, 1)}}};
#endif

/* Round rows to bfloat16 in `room`, where x then points; a 0 follows each. */
INLINE void round_rows(const float **x, int64_t rows, int64_t inputs, float *room)
{
    for (int64_t m = 0; m < rows; m++, room += padded(inputs + 1)) {
        for (int64_t j = 0; j < inputs; j += LANES)
            store(room + j, rounded(load_numbers(x[m], j, inputs - j, 0)));
        room[inputs] = 0.0f;
        x[m] = room;
    }
}

/* out[rows, padded(columns)] = scale · x · matrix. The matrix's panels are `apart` numbers apart. Every row
 * of x meets a panel before the next panel comes. narrow: the matrix is bfloat16, and x is rounded to it, in
 * `room`, which holds rounded_floats(inputs) for each row. */
INLINE void multiply(const float **x, const void *matrix, int64_t rows, int64_t inputs, int64_t columns,
                     int64_t apart, float scale, float *out, int narrow, float *room)
{
    const int64_t stride = padded(columns);
#if defined(REDLITE_AVX512) && defined(RL_BF16_COMPILER)
    if (narrow && rl_level() >= AVX512_BF16) {
        rl_multiply_bf16(x, matrix, rows, inputs, columns, apart, scale, out, (uint16_t *)room);
        return;
    }
#endif
    if (narrow)
        round_rows(x, rows, inputs, room);
    for (int64_t column = 0, panels; column < columns; column += panels * PANEL) {
        const char *panel = (const char *)matrix + bytes_of(column / PANEL * apart, narrow);
        panels = stride - column < TILE_PANELS * PANEL ? 1 : TILE_PANELS;
        for (int64_t row = 0; row < rows; row += TILE_ROWS) {
            int64_t count = rows - row < TILE_ROWS ? rows - row : TILE_ROWS;
            multiplications[narrow][panels - 1][count - 1](x + row, panel, apart, inputs, scale,
                                                           out + row * stride + column, stride);
        }
    }
}

#endif
