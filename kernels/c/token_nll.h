/* The loss over a vocabulary, rl_nll_statistics and rl_nll_gradient; kernels/cpu/structs.py has its twin. */
#ifndef REDLITE_TOKEN_NLL_H
#define REDLITE_TOKEN_NLL_H
#include <stdint.h>

/* Rows of hidden numbers, and vocabulary entries first, first + 1, … of the output weights. */
typedef struct {
    const float *hidden; /* [rows, width]; with `narrow` they are bfloat16 numbers */
    const void *weights; /* float32, or with `narrow` bfloat16: number k of entry v is at
                          * v · entry_stride + k · width_stride */
    const int64_t *targets;       /* [rows] */
    float *maximum, *sum;         /* [rows] of l: max l and Σ e^(l − max) of all entries but the target */
    float *target;                /* [rows] its logit */
    const float *scale;           /* [rows] coefficient · (1 − p) */
    float *d_hidden;              /* [rows, width], to be added to, or NULL */
    void *d_weights;              /* [entries, width] float32, or with `narrow_gradient` bfloat16; or NULL */
    int64_t rows, width, entries, entry_stride, width_stride, first;
    int32_t narrow, narrow_gradient;
    int32_t add; /* to d_weights, which is float32 then; else it is overwritten */
} TokenNLL;

#endif
