/* The two halves of a transformer block around its attention (transformer_block.c). */
#ifndef REDLITE_TRANSFORMER_BLOCK_H
#define REDLITE_TRANSFORMER_BLOCK_H
#include "matrix_products.h"

/* D width, H heads, G key/value heads, K head size, T rows. */
typedef struct {
    const float *norm_before, *norm_after; /* [D]: norm weights before the attention and before the MLP */
    const Matrix *before, *after;          /* matrices q, k, v; matrices o, gate, up, down */
    int64_t size;                          /* K */
    float eps;
} Block;

/* x [T, D] → q [T, H, K], k and v [T, G, K]; cos and sin [T, K]. Returns 0, or −1 if memory runs out. */
int rl_before_attention(const Block *block, const float *x, const float *cos, const float *sin, float *q,
                        float *k, float *v, int64_t rows, int threads);

/* x [T, D], attended [T, H·K] → y [T, D]. Returns 0, or −1 if memory runs out. */
int rl_after_attention(const Block *block, const float *x, const float *attended, float *y, int64_t rows,
                       int threads);

#endif
