/* What a transformer block does between its products: norms, rotary embedding, SwiGLU, sums. See loops.h. */
#ifndef REDLITE_ELEMENTWISE_LOOPS_H
#define REDLITE_ELEMENTWISE_LOOPS_H
#include "loops.h"
#include "vector.h"
#include <math.h>

INLINE void norm_row(const float *x, const float *weight, float eps, float *y, int64_t width)
{
    Floats square = {0};
    int64_t j = 0;
    for (; j + LANES <= width; j += LANES)
        square += load(x + j) * load(x + j);
    Floats rest = load_some(x + j, width - j, 0.0f);
    square += rest * rest;
    const Floats scale = all(1.0f / sqrtf(total(square) / (float)width + eps));
    for (j = 0; j + LANES <= width; j += LANES)
        store(y + j, load(x + j) * scale * load(weight + j));
    if (j < width)
        store_some(y + j, rest * scale * load_some(weight + j, width - j, 0.0f), width - j);
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
    for (; i < half; i++) {
        float a = head[i], b = head[half + i];
        head[i] = a * cos[i] - b * sin[i];
        head[half + i] = b * cos[half + i] + a * sin[half + i];
    }
}

INLINE Floats silu(Floats x) /* x / (1 + e^−x); where e^−x overflows, the limit 0 */
{
    return x / (all(1.0f) + exponential(choose(x < all(-88.0f), all(88.0f), -x)));
}

INLINE void run_elementwise(const Elementwise *s, int64_t first, int64_t end)
{
    for (int64_t r = first; r < end; r++) {
        int64_t w = s->width, j = 0;
        if (s->kind == NORM) {
            norm_row(s->x + r * w, s->other, s->eps, s->y + r * w, w);
        } else if (s->kind == ROTATE) {
            for (int64_t h = 0; h < s->heads; h++)
                rotate_head(s->y + (r * s->heads + h) * w, s->cos + r * w, s->sin + r * w, w);
        } else {
            const float *a = s->x + r * w, *b = s->other + r * w;
            float *y = s->y + r * w;
            for (; j + LANES <= w; j += LANES)
                store(y + j, s->kind == ADD ? load(a + j) + load(b + j) : silu(load(a + j)) * load(b + j));
            if (j < w) {
                Floats p = load_some(a + j, w - j, 0.0f), q = load_some(b + j, w - j, 0.0f);
                store_some(y + j, s->kind == ADD ? p + q : silu(p) * q, w - j);
            }
        }
    }
}

#endif
