/* Norms, rotary embedding and SwiGLU of training, forward and backward: see training.h and loops.h. */
#ifndef REDLITE_TRAINING_LOOPS_H
#define REDLITE_TRAINING_LOOPS_H
#include "bfloat16.h"
#include "elementwise_loops.h"
#include "loops.h"
#include <math.h>

/* As reference.py, bfloat16 is rounded twice: x · scale, and its product with the weight. */
INLINE void train_norm(const Training *s, int64_t row, const int narrow)
{
    const int64_t w = s->width, at = row * w;
    Floats sum[PARTS] = {{0}};
    for (int64_t j = 0; j < w; j += LANES) {
        Floats x = load_numbers(s->x, at + j, w - j, narrow);
        sum[j / LANES % PARTS] += x * x;
    }
    const Floats scale = all(1.0f / sqrtf(total(sum) / (float)w + s->eps));
    s->scale[row] = scale[0];
    for (int64_t j = 0; j < w; j += LANES) {
        Floats x = load_numbers(s->x, at + j, w - j, narrow) * scale;
        x = narrow ? rounded(x) : x;
        store_numbers(s->y, at + j, load_numbers(s->other, j, w - j, narrow) * x, w - j, narrow);
    }
}

/* With n = x · scale and g = other · dy: dx = scale · (g − n · mean(g n)), and dother = Σ_rows dy n. */
INLINE void train_norm_back(const Training *s, int64_t row, const int narrow)
{
    const int64_t w = s->width, at = row * w;
    const Floats scale = all(s->scale[row]);
    Floats sum[PARTS] = {{0}};
    for (int64_t j = 0; j < w; j += LANES) {
        Floats n = load_numbers(s->x, at + j, w - j, narrow) * scale;
        Floats g = load_numbers(s->other, j, w - j, narrow) * load_numbers(s->dy, at + j, w - j, narrow);
        sum[j / LANES % PARTS] += g * n;
    }
    const Floats mean = all(total(sum) / (float)w);
    float *partial = s->partial ? s->partial + row / BLOCK_ROWS * w : NULL;
    for (int64_t j = 0; j < w; j += LANES) {
        Floats n = load_numbers(s->x, at + j, w - j, narrow) * scale;
        Floats dy = load_numbers(s->dy, at + j, w - j, narrow);
        Floats g = load_numbers(s->other, j, w - j, narrow) * dy;
        store_numbers(s->dx, at + j, scale * (g - n * mean), w - j, narrow);
        if (partial)
            store_numbers(partial, j, load_numbers(partial, j, w - j, 0) + dy * n, w - j, 0);
    }
}

/* The pair (a, b) becomes (a cos a' − b sin a', b cos b' + a sin b'); backward, by the transpose of that. */
INLINE void train_turn(const Training *s, int64_t row, const int narrow, const int back)
{
    const int64_t half = s->rotated / 2, table = row * s->rotated;
    for (int64_t h = 0; h < s->heads; h++) {
        const int64_t at = (row * s->heads + h) * s->width;
        for (int64_t j = 0; j < half; j += LANES) {
            const int64_t left = half - j;
            Floats a = load_numbers(s->x, at + j, left, narrow);
            Floats b = load_numbers(s->x, at + half + j, left, narrow);
            Floats cos_a = load_numbers(s->cos, table + j, left, narrow);
            Floats cos_b = load_numbers(s->cos, table + half + j, left, narrow);
            Floats sin_a = load_numbers(s->sin, table + j, left, narrow);
            Floats sin_b = load_numbers(s->sin, table + half + j, left, narrow);
            Floats y_a = back ? a * cos_a + b * sin_b : a * cos_a - b * sin_a;
            Floats y_b = back ? b * cos_b - a * sin_a : b * cos_b + a * sin_b;
            store_numbers(s->y, at + j, y_a, left, narrow);
            store_numbers(s->y, at + half + j, y_b, left, narrow);
        }
        for (int64_t j = s->rotated; j < s->width; j += LANES)
            store_numbers(s->y, at + j, load_numbers(s->x, at + j, s->width - j, narrow), s->width - j,
                          narrow);
    }
}

INLINE void train_gate(const Training *s, int64_t row, const int narrow)
{
    const int64_t w = s->width, at = row * w;
    for (int64_t j = 0; j < w; j += LANES) {
        Floats x = load_numbers(s->x, at + j, w - j, narrow);
        Floats up = load_numbers(s->other, at + j, w - j, narrow);
        store_numbers(s->y, at + j, silu(x) * up, w - j, narrow);
    }
}

/* silu'(x) = σ(x) (1 + x (1 − σ(x))), and 1 − σ(x) = σ(−x) keeps its digits; where e^−x overflows, σ is 0. */
INLINE void train_gate_back(const Training *s, int64_t row, const int narrow)
{
    const int64_t w = s->width, at = row * w;
    for (int64_t j = 0; j < w; j += LANES) {
        Floats x = load_numbers(s->x, at + j, w - j, narrow);
        Floats up = load_numbers(s->other, at + j, w - j, narrow);
        Floats dy = load_numbers(s->dy, at + j, w - j, narrow);
        Floats e = exponential(smaller_of(all(88.0f), -x)), s_x = all(1.0f) / (all(1.0f) + e);
        Floats rest = e / (all(1.0f) + e);
        store_numbers(s->dother, at + j, dy * x * s_x, w - j, narrow);
        store_numbers(s->dx, at + j, dy * up * s_x * (all(1.0f) + x * rest), w - j, narrow);
    }
}

INLINE void train_row(const Training *s, int64_t row, const int narrow)
{
    switch (s->kind) {
    case NORM_FORWARD:
        train_norm(s, row, narrow);
        break;
    case NORM_BACKWARD:
        train_norm_back(s, row, narrow);
        break;
    case TURN_FORWARD:
        train_turn(s, row, narrow, 0);
        break;
    case TURN_BACKWARD:
        train_turn(s, row, narrow, 1);
        break;
    case GATE_FORWARD:
        train_gate(s, row, narrow);
        break;
    default:
        train_gate_back(s, row, narrow);
    }
}

INLINE void run_training(const Training *s, int64_t first, int64_t end)
{
    for (int64_t row = first; row < end; row++)
        if (s->narrow)
            train_row(s, row, 1);
        else
            train_row(s, row, 0);
}

#endif
