/* Products with packed matrices (matrix_products.c). */
#ifndef REDLITE_MATRIX_PRODUCTS_H
#define REDLITE_MATRIX_PRODUCTS_H
#include <stdint.h>

typedef struct {
    int32_t format; /* packed_matrix.h: 0 float32, 1 int8, 2 int4, 3 bfloat16, 4 Q4_K, 5 Q6_K */
    const void *packed;
    const float *bias; /* [columns], or NULL */
    int64_t columns, inputs;
} Matrix;

/* y[m] [rows, columns of m] = x [rows, inputs] · matrix mᵀ + bias, for `count` matrices with the same inputs.
 * Neighbours of one format share one layout of x. Returns 0, or −1 if memory runs out. */
int rl_products(const Matrix *matrices, int count, const float *x, float *const *y, int64_t rows,
                int threads);

/* By vdpbf16ps (matrix_products_bf16.c), for attention: out[rows, columns rounded up] = scale · x · matrix.
 * The rows of x lie anywhere, and are rounded to bfloat16 in `room`: [rows, blocks of inputs and one more].
 * The matrix's panels are `apart` numbers apart. */
void rl_multiply_bf16(const float *const *x, const uint16_t *matrix, int64_t rows, int64_t inputs,
                      int64_t columns, int64_t apart, float scale, float *out, uint16_t *room);

#endif
