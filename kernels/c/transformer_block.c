/*
 * The two halves of a transformer block around its attention, on packed weights: inference on CPUs.
 *
 *   before: n = rms_norm(x);  q, k, v = n Wqᵀ, n Wkᵀ, n Wvᵀ (+ biases);  q and k rotated
 *   after:  y = x + a Woᵀ;  n = rms_norm(y);  y + (silu(n Wgᵀ) · (n Wuᵀ)) Wdᵀ
 * Rows run in chunks, so that what stands between two products stays in the cache. Nothing of the MLP's width
 * is ever written for all rows. A row's result depends neither on the other rows nor on the number of
 * threads.
 */
#include "loops.h"
#include "thread_pool.h"
#include "transformer_block.h"
#include <stdlib.h>

enum { CHUNK_ROWS = 192 }; /* rows between two products: 192 × (D + 2F) floats */

typedef struct {
    const Elementwise *operation;
    int64_t rows;
} Work;

static void share(void *context, int part, int parts)
{
    const Work *w = context;
    rl_loops()->elementwise(w->operation, w->rows * part / parts, w->rows * (part + 1) / parts);
}

static void elementwise(Elementwise operation, int64_t rows, int threads)
{
    int64_t numbers = rows * operation.width * (operation.kind == ROTATE ? operation.heads : 1);
    if (numbers < 1 << 15) /* waking a thread costs more */
        rl_loops()->elementwise(&operation, 0, rows);
    else
        rl_parallel(share, &(Work){&operation, rows}, threads);
}

static void norm(const float *x, const float *weight, float eps, float *y, int64_t width, int64_t rows,
                 int threads)
{
    Elementwise operation = {.kind = NORM, .x = x, .other = weight, .y = y, .eps = eps, .width = width};
    elementwise(operation, rows, threads);
}

static void add(const float *a, const float *b, float *y, int64_t width, int64_t rows, int threads)
{
    elementwise((Elementwise){.kind = ADD, .x = a, .other = b, .y = y, .width = width}, rows, threads);
}

static inline int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

int rl_before_attention(const Block *block, const float *x, const float *cos, const float *sin, float *q,
                        float *k, float *v, int64_t rows, int threads)
{
    const Matrix *m = block->before;
    int64_t inputs = m->inputs, size = block->size;
    float *normed = malloc((size_t)(lesser(rows, CHUNK_ROWS) * inputs) * sizeof(float));
    int failed = !normed;
    for (int64_t first = 0; first < rows && !failed; first += CHUNK_ROWS) {
        int64_t count = lesser(rows - first, CHUNK_ROWS);
        norm(x + first * inputs, block->norm_before, block->eps, normed, inputs, count, threads);
        float *to[3] = {q + first * m[0].columns, k + first * m[1].columns, v + first * m[2].columns};
        failed = rl_products(m, 3, normed, to, count, threads);
        Elementwise rotate = {.kind = ROTATE, .cos = cos + first * size, .sin = sin + first * size};
        for (int i = 0; i < 2 && !failed; i++) {
            rotate.y = to[i], rotate.width = size, rotate.heads = m[i].columns / size;
            elementwise(rotate, count, threads);
        }
    }
    free(normed);
    return failed ? -1 : 0;
}

int rl_after_attention(const Block *block, const float *x, const float *attended, float *y, int64_t rows,
                       int threads)
{
    const Matrix *o = block->after, *gate = o + 1, *down = o + 3; /* up follows gate */
    int64_t width = o->columns, wide = gate->columns, most = lesser(rows, CHUNK_ROWS);
    float *scratch = malloc((size_t)(most * (width + 2 * wide)) * sizeof(float));
    float *normed = scratch, *gated = scratch + most * width, *upped = gated + most * wide;
    Elementwise swiglu = {.kind = GATE, .x = gated, .other = upped, .y = gated, .width = wide};
    int failed = !scratch;
    for (int64_t first = 0; first < rows && !failed; first += CHUNK_ROWS) {
        int64_t count = lesser(rows - first, CHUNK_ROWS);
        float *out = y + first * width;
        failed = rl_products(o, 1, attended + first * o->inputs, &normed, count, threads);
        if (failed)
            break;
        add(x + first * width, normed, out, width, count, threads);
        norm(out, block->norm_after, block->eps, normed, width, count, threads);
        failed = rl_products(gate, 2, normed, (float *[]){gated, upped}, count, threads);
        if (failed)
            break;
        elementwise(swiglu, count, threads);
        failed = rl_products(down, 1, gated, &normed, count, threads);
        if (!failed)
            add(out, normed, out, width, count, threads);
    }
    free(scratch);
    return failed ? -1 : 0;
}
