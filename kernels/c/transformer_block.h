/* The two halves of a transformer block around its attention (transformer_block.c). */
#ifndef REDLITE_TRANSFORMER_BLOCK_H
#define REDLITE_TRANSFORMER_BLOCK_H
#include "matrix_products.h"

/* D width, H heads, G key/value heads, K head size, T rows. */
typedef struct {
    const float *norms[4];        /* [D] before and behind attention, before and behind MLP; NULL: none */
    const float *biases[4];       /* [D] of LayerNorm; NULL: RMSNorm */
    const float *qk_norms[2];     /* of queries and keys, as qk_norm says */
    const Matrix *before, *after; /* matrices q, k, v; matrices o, gate, up, down, or o, up, down */
    int64_t size, rotated;        /* K, and how many numbers of a head are rotated: R */
    int64_t qk_norm;              /* a value of enum QkNorm */
    int64_t act, gated;           /* a value of enum Act; 1: there is a gate */
    float eps, residual;          /* residual: what is added to x is multiplied by it */
    float xielu[4];               /* p, n, beta and eps of the activation XIELU */
} Block;

/* The norm of queries and keys: of each head or of all together [H·K]; of each head behind the rotation. */
enum QkNorm { QK_NONE, QK_HEAD, QK_WIDTH, QK_LATE };

/* x [T, D] → q [T, H, K], k and v [T, G, K]. rotary: cos and sin [T, R] for queries, then for keys. Returns
 * 0, or −1 if memory runs out. */
int rl_before_attention(const Block *block, const float *x, const float *const *rotary, float *q, float *k,
                        float *v, int64_t rows, int threads);

/* x [T, D], attended [T, H·K] → y [T, D]. Returns 0, or −1 if memory runs out. */
int rl_after_attention(const Block *block, const float *x, const float *attended, float *y, int64_t rows,
                       int threads);

#endif
