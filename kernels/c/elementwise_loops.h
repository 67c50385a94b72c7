/* What a transformer block does between its products: norms, rotary embedding, activations, sums. */
#ifndef REDLITE_ELEMENTWISE_LOOPS_H
#define REDLITE_ELEMENTWISE_LOOPS_H
#include "loops.h"
#include "vector.h"
#include <math.h>

INLINE void norm_row(const float *x, const float *weight, float eps, float *y, int64_t width)
{
    Floats square[PARTS] = {{0}};
    int64_t j = 0;
    for (; j + SUM_LANES <= width; j += SUM_LANES)
        EACH_PART square[i] += load(x + j + i * LANES) * load(x + j + i * LANES);
    EACH_PART {
        Floats rest = load_some(x + j + i * LANES, width - j - i * LANES, 0.0f);
        square[i] += rest * rest;
    }
    const Floats scale = all(1.0f / sqrtf(total(square) / (float)width + eps));
    for (j = 0; j + LANES <= width; j += LANES)
        store(y + j, load(x + j) * scale * load(weight + j));
    if (j < width) {
        Floats rest = load_some(x + j, width - j, 0.0f);
        store_some(y + j, rest * scale * load_some(weight + j, width - j, 0.0f), width - j);
    }
}

/* LayerNorm: (x − mean) / √(variance + eps) · weight + bias. */
INLINE void layer_norm_row(const float *x, const float *weight, const float *bias, float eps, float *y,
                           int64_t width)
{
    Floats sum[PARTS] = {{0}}, square[PARTS] = {{0}};
    int64_t j = 0;
    for (; j + SUM_LANES <= width; j += SUM_LANES)
        EACH_PART sum[i] += load(x + j + i * LANES);
    EACH_PART sum[i] += load_some(x + j + i * LANES, width - j - i * LANES, 0.0f);
    const float middle = total(sum) / (float)width;
    for (j = 0; j + SUM_LANES <= width; j += SUM_LANES)
        EACH_PART {
            Floats d = load(x + j + i * LANES) - all(middle);
            square[i] += d * d;
        }
    EACH_PART {
        Floats d = load_some(x + j + i * LANES, width - j - i * LANES, middle) - all(middle);
        square[i] += d * d;
    }
    const Floats scale = all(1.0f / sqrtf(total(square) / (float)width + eps));
    for (j = 0; j + LANES <= width; j += LANES)
        store(y + j, (load(x + j) - all(middle)) * scale * load(weight + j) + load(bias + j));
    if (j < width) {
        Floats rest = load_some(x + j, width - j, middle) - all(middle);
        store_some(y + j, rest * scale * load_some(weight + j, width - j, 0.0f)
                       + load_some(bias + j, width - j, 0.0f), width - j);
    }
}

/* Rotates the pairs (i, i + size / 2). */
INLINE void rotate_head(float *head, const float *cos, const float *sin, int64_t size)
{
    int64_t half = size / 2, i = 0;
    for (; i + LANES <= half; i += LANES) {
        Floats a = load(head + i), b = load(head + half + i);
        store(head + i, a * load(cos + i) - b * load(sin + i));
        store(head + half + i, b * load(cos + half + i) + a * load(sin + half + i));
    }
    const int64_t left = half - i;
    if (left) {
        Floats a = load_some(head + i, left, 0.0f), b = load_some(head + half + i, left, 0.0f);
        store_some(head + i, a * load_some(cos + i, left, 0.0f) - b * load_some(sin + i, left, 0.0f), left);
        store_some(head + half + i, b * load_some(cos + half + i, left, 0.0f)
                       + a * load_some(sin + half + i, left, 0.0f), left);
    }
}

INLINE Floats silu(Floats x) /* x / (1 + e^−x); where e^−x overflows, the limit 0 */
{
    return x / (all(1.0f) + exponential(smaller_of(all(88.0f), -x)));
}

/* √(2/π) (x + 0.044715 x³) = u; ½ x (1 + tanh u) = x / (1 + e^−2u). */
INLINE Floats gelu_tanh(Floats x)
{
    Floats u2 = all(1.5957691216f) * x * (all(1.0f) + all(0.044715f) * x * x);
    return x / (all(1.0f) + exponential(smaller_of(all(88.0f), -u2)));
}

INLINE Floats relu2(Floats x)
{
    Floats above = choose(x > all(0.0f), x, all(0.0f));
    return above * above;
}

/* p·x² + beta·x above 0; n·(e^min(x, eps) − 1 − x) + beta·x below. */
INLINE Floats xielu(Floats x, const float *s)
{
    Floats least = choose(x < all(s[3]), x, all(s[3]));
    Floats below = (exponential(least) - all(1.0f) - x) * all(s[1]);
    return choose(x > all(0.0f), all(s[0]) * x * x, below) + all(s[2]) * x;
}

INLINE Floats activated(Floats x, const float *parameters, const int act)
{
    switch (act) {
    case SILU:
        return silu(x);
    case GELU_TANH:
        return gelu_tanh(x);
    case RELU2:
        return relu2(x);
    default:
        return xielu(x, parameters);
    }
}

/* y = act(x) · factor; without a factor act(x). `act` is a constant in each copy of this code. */
INLINE void activate_row(const Elementwise *s, int64_t row, const int act)
{
    int64_t w = s->width, j = 0;
    const float *x = s->x + row * w, *factor = s->other ? s->other + row * w : NULL;
    float *y = s->y + row * w;
    for (; j + LANES <= w; j += LANES) {
        Floats a = activated(load(x + j), s->xielu, act);
        store(y + j, factor ? a * load(factor + j) : a);
    }
    if (j < w) {
        Floats a = activated(load_some(x + j, w - j, 0.0f), s->xielu, act);
        store_some(y + j, factor ? a * load_some(factor + j, w - j, 0.0f) : a, w - j);
    }
}

INLINE void add_row(const float *a, const float *b, float factor, float *y, int64_t width)
{
    int64_t j = 0;
    for (; j + LANES <= width; j += LANES)
        store(y + j, load(a + j) + all(factor) * load(b + j));
    if (j < width)
        store_some(y + j, load_some(a + j, width - j, 0.0f) + all(factor) * load_some(b + j, width - j, 0.0f),
                   width - j);
}

INLINE void run_elementwise(const Elementwise *s, int64_t first, int64_t end)
{
    for (int64_t r = first; r < end; r++) {
        int64_t w = s->width;
        if (s->kind == NORM && s->bias)
            layer_norm_row(s->x + r * w, s->other, s->bias, s->eps, s->y + r * w, w);
        else if (s->kind == NORM)
            norm_row(s->x + r * w, s->other, s->eps, s->y + r * w, w);
        else if (s->kind == ROTATE)
            for (int64_t h = 0; h < s->heads; h++)
                rotate_head(s->y + (r * s->heads + h) * w, s->cos + r * s->rotated, s->sin + r * s->rotated,
                            s->rotated);
        else if (s->kind == ADD)
            add_row(s->x + r * w, s->other + r * w, s->factor, s->y + r * w, w);
        else if (s->act == SILU)
            activate_row(s, r, SILU);
        else if (s->act == GELU_TANH)
            activate_row(s, r, GELU_TANH);
        else if (s->act == RELU2)
            activate_row(s, r, RELU2);
        else
            activate_row(s, r, XIELU);
    }
}

#endif
