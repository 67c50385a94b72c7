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
#include "block_loops.h"
#include <stdlib.h>

enum { CHUNK_ROWS = 192 }; /* rows between two products: 192 × (D + 2F) floats */

static void step_portable(const Step *s, int64_t first, int64_t end) { run_step(s, first, end); }
#if defined(__x86_64__)
void rl_run_step_avx2(const Step *s, int64_t first, int64_t end);
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
        work.run = rl_run_step_avx2;
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
    float *normed = malloc((size_t)(rows < CHUNK_ROWS ? rows : CHUNK_ROWS) * (size_t)inputs * sizeof(float)), *outs[3] = {q, k, v};
    int failed = !normed;
    for (int64_t first = 0; first < rows && !failed; first += CHUNK_ROWS) {
        int64_t count = rows - first < CHUNK_ROWS ? rows - first : CHUNK_ROWS;
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
    int64_t width = o->columns, wide = gate->columns, most = rows < CHUNK_ROWS ? rows : CHUNK_ROWS;
    float *scratch = malloc((size_t)most * (size_t)(width + 2 * wide) * sizeof(float));
    int failed = !scratch;
    for (int64_t first = 0; first < rows && !failed; first += CHUNK_ROWS) {
        int64_t count = rows - first < CHUNK_ROWS ? rows - first : CHUNK_ROWS;
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
