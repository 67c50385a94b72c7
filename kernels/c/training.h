/* Structs of the operations of training alone; kernels/cpu/structs.py has their twins. */
#ifndef REDLITE_TRAINING_H
#define REDLITE_TRAINING_H
#include <stdint.h>

/* A step of AdamW over one tensor of `count` numbers. */
typedef struct {
    void *weight, *mean, *square; /* [count] in place: all float32, or with `narrow` all bfloat16 */
    const void *gradient;         /* [count] float32, or with `narrow_gradient` bfloat16 */
    int64_t count;
    int32_t narrow, narrow_gradient;
    float scale;                               /* of the gradient */
    float take_mean, keep_square, take_square; /* 1 − β₁, β₂, 1 − β₂ */
    float square_bias, eps;                    /* 1 − β₂^t; added to the root */
    float decay, rate;                         /* of the weight; −(learning rate) / (1 − β₁^t) */
    uint32_t seed[4];                          /* of the bits that round to bfloat16 */
} AdamW;

/* The sum of squares of each block of SQUARES numbers of x [count], float32 or with `narrow` bfloat16. */
typedef struct {
    const void *x;
    int64_t count;
    int32_t narrow;
    double *sums; /* [⌈count / SQUARES⌉], each summed in float32 */
} Squares;

enum { SQUARES = 1 << 11 };

/* What lies between a block's products, over rows of numbers that are all float32, or with `narrow` all
 * bfloat16. Backward, dy is ∂L/∂y, and dx and dother receive ∂L/∂x and ∂L/∂other.
 *
 * NORM  y = other · (x · scale) with scale = 1 / √(mean x² + eps); other [width] is the weight
 * TURN  y = x [rows, heads, width], the first `rotated` numbers of each head turned by cos, sin
 *       [rows, rotated]
 * GATE  y = silu(x) · other */
typedef struct {
    enum { NORM_FORWARD, NORM_BACKWARD, TURN_FORWARD, TURN_BACKWARD, GATE_FORWARD, GATE_BACKWARD } kind;
    int32_t narrow;
    const void *x, *other, *cos, *sin, *dy;
    void *y, *dx, *dother; /* TURN_BACKWARD takes ∂L/∂y as x and makes ∂L/∂x as y */
    float *scale;          /* NORM: [rows], made by the forward pass */
    float *partial;        /* NORM_BACKWARD: [⌈rows / BLOCK_ROWS⌉, width], parts of ∂L/∂other, or NULL */
    float eps;
    int64_t rows, width, heads, rotated;
} Training;

/* Rows whose part of ∂L/∂other is one sum: so it does not depend on how many threads there are. */
enum { BLOCK_ROWS = 64 };

#endif
