/*
 * The two halves of a transformer block around its attention, on packed weights: inference on CPUs.
 *
 *   before: n = rms_norm(x);  q, k, v = n Wqᵀ, n Wkᵀ, n Wvᵀ (+ biases);  q and k rotated
 *   after:  y = x + a Woᵀ;  n = rms_norm(y);  y + (silu(n Wgᵀ) · (n Wuᵀ)) Wdᵀ
 *
 * Rows run in chunks that leave everything between two products in the cache, so that nothing of width F is
 * ever written for all rows. A row's result does not depend on the other rows, nor on the number of threads.
 */
#include "redlite.h"
#include "isa.h"
#include "pool.h"
#include "block.h"
#include "vector.h"
#include <math.h>
#include <stdlib.h>

enum { CHUNK = 192 }; /* rows between two products: 192 × (D + 2F) floats */

/* One step between products, over rows [first, end). */
typedef enum { NORM, ROTATE, GATE, ADD } Kind;
typedef struct {
    Kind kind;
    const float *x, *other, *cos, *sin; /* NORM: x, other = weight; ROTATE: in y; GATE, ADD: x and other */
    float *y;
    float eps;
    int64_t width, heads; /* floats of a row; ROTATE: width = K */
} Step;

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

INLINE void rotate_head(float *head, const float *cos, const float *sin, int64_t size) /* pairs (i, i + size / 2) */
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

INLINE Floats silu(Floats x) /* x / (1 + e^−x); far below 0, where e^−x overflows, the limit 0 */
{
    return x / (all(1.0f) + exponential(choose(x < all(-88.0f), all(88.0f), -x)));
}

INLINE void run_step(const Step *s, int64_t first, int64_t end)
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

static void step_portable(const Step *s, int64_t first, int64_t end) { run_step(s, first, end); }
#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static void step_avx2(const Step *s, int64_t first, int64_t end) { run_step(s, first, end); }
#endif

typedef struct {
    const Step *step;
    int64_t rows;
    void (*run)(const Step *, int64_t, int64_t);
} Work;

static void share(void *context, int part, int parts)
{
    const Work *w = context;
    w->run(w->step, w->rows * part / parts, w->rows * (part + 1) / parts);
}

static void elementwise(Step step, int64_t rows, int threads)
{
    Work work = {&step, rows, step_portable};
#if defined(__x86_64__)
    if (rl_level() >= AVX2)
        work.run = step_avx2;
#endif
    if (rows * step.width * (step.kind == ROTATE ? step.heads : 1) < 1 << 15) /* waking a thread costs more */
        work.run(&step, 0, rows);
    else
        rl_parallel(share, &work, threads);
}

RL_EXPORT int rl_before_attention(const float *x, const float *norm, float eps, const Matrix *matrices, const float *cos, const float *sin,
                                  float *q, float *k, float *v, int64_t rows, int64_t head_size, int threads)
{
    int64_t inputs = matrices[0].inputs;
    float *normed = malloc((size_t)(rows < CHUNK ? rows : CHUNK) * (size_t)inputs * sizeof(float)), *outs[3] = {q, k, v};
    int failed = !normed;
    for (int64_t first = 0; first < rows && !failed; first += CHUNK) {
        int64_t count = rows - first < CHUNK ? rows - first : CHUNK;
        elementwise((Step){.kind = NORM, .x = x + first * inputs, .other = norm, .y = normed, .eps = eps, .width = inputs}, count, threads);
        float *to[3];
        for (int m = 0; m < 3; m++)
            to[m] = outs[m] + first * matrices[m].columns;
        failed = rl_products(matrices, 3, normed, to, count, threads);
        for (int m = 0; m < 2 && !failed; m++)
            elementwise((Step){.kind = ROTATE, .y = to[m], .cos = cos + first * head_size, .sin = sin + first * head_size, .width = head_size,
                               .heads = matrices[m].columns / head_size}, count, threads);
    }
    free(normed);
    return failed ? -1 : 0;
}

RL_EXPORT int rl_after_attention(const float *x, const float *attended, const float *norm, float eps, const Matrix *matrices,
                                 float *y, int64_t rows, int threads)
{
    const Matrix *o = matrices, *gate = matrices + 1, *down = matrices + 3; /* up follows gate */
    int64_t width = o->columns, wide = gate->columns, most = rows < CHUNK ? rows : CHUNK;
    float *scratch = malloc((size_t)most * (size_t)(width + 2 * wide) * sizeof(float));
    int failed = !scratch;
    for (int64_t first = 0; first < rows && !failed; first += CHUNK) {
        int64_t count = rows - first < CHUNK ? rows - first : CHUNK;
        float *normed = scratch, *gated = scratch + most * width, *upped = gated + most * wide, *out = y + first * width;
        failed = rl_products(o, 1, attended + first * o->inputs, &normed, count, threads);
        if (failed)
            break;
        elementwise((Step){.kind = ADD, .x = x + first * width, .other = normed, .y = out, .width = width}, count, threads);
        elementwise((Step){.kind = NORM, .x = out, .other = norm, .y = normed, .eps = eps, .width = width}, count, threads);
        failed = rl_products(gate, 2, normed, (float *[]){gated, upped}, count, threads);
        if (failed)
            break;
        elementwise((Step){.kind = GATE, .x = gated, .other = upped, .y = gated, .width = wide}, count, threads);
        failed = rl_products(down, 1, gated, &normed, count, threads);
        if (!failed)
            elementwise((Step){.kind = ADD, .x = out, .other = normed, .y = out, .width = width}, count, threads);
    }
    free(scratch);
    return failed ? -1 : 0;
}
