/*
 * The two halves of a transformer block around its attention, on packed weights: inference on CPUs.
 *
 *   before: n = norm(x);  q, k, v = n Wqᵀ, n Wkᵀ, n Wvᵀ (+ biases);  q and k normalised and rotated
 *   after:  y = x + r · norm(a Woᵀ);  n = norm(y);  y + r · norm((act(n Wgᵀ) · (n Wuᵀ)) Wdᵀ)
 * A family lacks some of the norms, and may lack the gate: act(n Wuᵀ) then.
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

/* Norm `place` of a block, if it has it: from x to y. Returns where the result is. */
static const float *norm(const Block *block, int place, const float *x, float *y, int64_t width, int64_t rows,
                         int threads)
{
    Elementwise operation = {.kind = NORM, .x = x, .other = block->norms[place], .bias = block->biases[place],
                             .y = y, .eps = block->eps, .width = width};
    if (!operation.other)
        return x;
    elementwise(operation, rows, threads);
    return y;
}

static void add(const Block *block, const float *a, const float *b, float *y, int64_t width, int64_t rows,
                int threads)
{
    elementwise((Elementwise){.kind = ADD, .x = a, .other = b, .y = y, .factor = block->residual,
                              .width = width}, rows, threads);
}

/* Normalise queries (which 0) or keys (1) of `heads` heads in place. */
static void norm_heads(const Block *block, int which, float *x, int64_t heads, int64_t rows, int threads)
{
    int64_t numbers = heads * block->size, width = block->qk_norm == QK_WIDTH ? numbers : block->size;
    elementwise((Elementwise){.kind = NORM, .x = x, .other = block->qk_norms[which], .y = x,
                              .eps = block->eps, .width = width}, rows * numbers / width, threads);
}

static inline int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

int rl_before_attention(const Block *block, const float *x, const float *const *rotary, float *q, float *k,
                        float *v, int64_t rows, int threads)
{
    const Matrix *m = block->before;
    int64_t inputs = m->inputs, size = block->size, rotated = block->rotated;
    float *normed = malloc((size_t)(lesser(rows, CHUNK_ROWS) * inputs) * sizeof(float));
    int failed = !normed;
    for (int64_t first = 0; first < rows && !failed; first += CHUNK_ROWS) {
        int64_t count = lesser(rows - first, CHUNK_ROWS);
        const float *in = norm(block, 0, x + first * inputs, normed, inputs, count, threads);
        float *to[3] = {q + first * m[0].columns, k + first * m[1].columns, v + first * m[2].columns};
        failed = rl_products(m, 3, in, to, count, threads);
        for (int i = 0; i < 2 && !failed; i++) {
            int64_t heads = m[i].columns / size;
            Elementwise rotate = {.kind = ROTATE, .cos = rotary[2 * i] + first * rotated,
                                  .sin = rotary[2 * i + 1] + first * rotated, .y = to[i], .width = size,
                                  .heads = heads, .rotated = rotated};
            if (block->qk_norm == QK_HEAD || block->qk_norm == QK_WIDTH)
                norm_heads(block, i, to[i], heads, count, threads);
            elementwise(rotate, count, threads);
            if (block->qk_norm == QK_LATE)
                norm_heads(block, i, to[i], heads, count, threads);
        }
    }
    free(normed);
    return failed ? -1 : 0;
}

int rl_after_attention(const Block *block, const float *x, const float *attended, float *y, int64_t rows,
                       int threads)
{
    const int halves = block->gated ? 2 : 1; /* gate and up, or up alone */
    const Matrix *o = block->after, *gate = o + 1, *down = gate + halves;
    int64_t width = o->columns, wide = gate->columns, most = lesser(rows, CHUNK_ROWS);
    float *scratch = malloc((size_t)(most * (width + 2 * wide)) * sizeof(float));
    float *normed = scratch, *gated = scratch + most * width, *upped = gated + most * wide;
    Elementwise activation = {.kind = ACTIVATE, .act = (int)block->act, .x = gated, .y = gated, .width = wide,
                              .other = block->gated ? upped : NULL, .xielu = block->xielu};
    int failed = !scratch;
    for (int64_t first = 0; first < rows && !failed; first += CHUNK_ROWS) {
        int64_t count = lesser(rows - first, CHUNK_ROWS);
        float *out = y + first * width;
        failed = rl_products(o, 1, attended + first * o->inputs, &normed, count, threads);
        if (failed)
            break;
        norm(block, 1, normed, normed, width, count, threads);
        add(block, x + first * width, normed, out, width, count, threads);
        const float *in = norm(block, 2, out, normed, width, count, threads);
        failed = rl_products(gate, halves, in, (float *[]){gated, upped}, count, threads);
        if (failed)
            break;
        elementwise(activation, count, threads);
        failed = rl_products(down, 1, gated, &normed, count, threads);
        if (failed)
            break;
        norm(block, 3, normed, normed, width, count, threads);
        add(block, out, normed, out, width, count, threads);
    }
    free(scratch);
    return failed ? -1 : 0;
}
