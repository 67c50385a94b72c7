/* Products by packed matrices (linear.c), for the other kernels. */
#ifndef REDLITE_LINEAR_H
#define REDLITE_LINEAR_H
#include <stdint.h>

typedef struct {
    int32_t format; /* 0 float32, 1 int8, 2 int4 */
    const void *packed;
    const float *bias; /* [columns], or NULL */
    int64_t columns, inputs;
} Matrix;

/* y[m] [rows, columns of m] = x [rows, inputs] · matrix mᵀ + bias for `count` matrices of the same inputs: x is laid out once for those of
 * one format that follow one another. Returns 0, or −1 where memory for that is not to be had. */
int rl_products(const Matrix *matrices, int count, const float *x, float *const *y, int64_t rows, int threads);

/* One of them. */
int rl_linear(int format, const void *packed, const float *x, const float *bias, float *y, int64_t rows, int64_t columns, int64_t inputs, int threads);

#endif
