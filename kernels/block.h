/* The two halves of a transformer block around its attention (block.c), for the other kernels. */
#ifndef REDLITE_BLOCK_H
#define REDLITE_BLOCK_H
#include "linear.h"

/* x [rows, D] → q [rows, H, K], k and v [rows, G, K]; matrices q, k, v; cos and sin [rows, K]. Returns 0, or −1 for want of memory. */
int rl_before_attention(const float *x, const float *norm, float eps, const Matrix *matrices, const float *cos, const float *sin, float *q, float *k, float *v,
                        int64_t rows, int64_t head_size, int threads);

/* x [rows, D], attended [rows, H·K] → y [rows, D]; matrices o, gate, up, down. Returns 0, or −1 for want of memory. */
int rl_after_attention(const float *x, const float *attended, const float *norm, float eps, const Matrix *matrices, float *y, int64_t rows, int threads);

#endif
