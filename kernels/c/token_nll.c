/*
 * The two passes of token_nll over a tile of logits, divided among threads; the matrix products around them
 * are torch's (kernels/cpu/token_nll.py). token_nll_loops.h has the arithmetic.
 *
 * A row's sums leave its target out, so that 1 − p of the target keeps all its digits when p is near 1. Each
 * thread takes an equal run of rows; a row's numbers do not depend on how many threads there are.
 */
#include "loops.h"
#include "thread_pool.h"

typedef struct {
    LogitTile tile;
    NllPass pass;
} Work;

static void share(void *context, int part, int parts)
{
    const Work *w = context;
    rl_loops()->nll(&w->tile, w->pass, w->tile.rows * part / parts, w->tile.rows * (part + 1) / parts);
}

/* Add a tile to the statistics of its rows, which start with maximum −FLT_MAX and sum 0. Where the tile holds
 * a row's target, `target` [rows] receives its logit, and the logit in the tile is overwritten. */
void rl_nll_statistics(float *logits, int64_t rows, int64_t columns, int64_t first, const int64_t *targets,
                       float *maximum, float *sum, float *target, int threads)
{
    LogitTile tile = {logits, rows, columns, first, targets, maximum, sum, target, NULL};
    rl_parallel(share, &(Work){tile, STATISTICS}, rows < threads ? (int)rows : threads);
}

/* Turn a tile of logits, in place, into coefficient · (p − onehot). The statistics are those of the whole
 * rows, and scale [rows] = coefficient · (1 − p). */
void rl_nll_gradient(float *logits, int64_t rows, int64_t columns, int64_t first, const int64_t *targets,
                     const float *maximum, const float *sum, const float *scale, int threads)
{
    LogitTile tile = {logits, rows, columns, first, targets, (float *)maximum, (float *)sum, NULL, scale};
    rl_parallel(share, &(Work){tile, GRADIENT}, rows < threads ? (int)rows : threads);
}
