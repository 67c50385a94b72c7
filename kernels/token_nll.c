/*
 * The two passes of token_nll over a tile of logits. The products around them are matrix products
 * (token_nll_cpu.py); README.md derives every line.
 *
 * A tile holds `rows` rows of `columns` logits, those of the vocabulary entries first, first + 1, …; row r
 * has the target targets[r], which may lie in another tile. A row's sums are over its other entries, so
 * that 1 − p of the target keeps all its digits when p is near 1. Rows go to the threads in equal runs,
 * and a row's numbers do not depend on how many threads there are.
 *
 * The arithmetic is written once, on vectors (vector.h), and compiled twice: for any processor that the
 * compiler knows, and for AVX2 with FMA, chosen at run time.
 */
#include "redlite.h"
#include "isa.h"
#include "pool.h"
#include "vector.h"
#include <math.h>
#include <string.h>

typedef struct {
    float *logits;
    int64_t rows, columns, first;
    const int64_t *targets;
    float *maximum, *sum, *target; /* of a row, over the tiles seen so far: max l and Σ e^(l − max) without the target, and its l */
    const float *scale;            /* of a row: coefficient · (1 − p) */
} Tile;

INLINE int64_t target_column(const Tile *t, int64_t row) /* of the row's target in this tile, or −1 */
{
    int64_t column = t->targets[row] - t->first;
    return column >= 0 && column < t->columns ? column : -1;
}

/* Online log-sum-exp (arXiv 1805.02867): m' = max(m, tile), s' = s · e^(m − m') + Σ e^(l − m'). The tile's target becomes −infinity. */
INLINE void statistics(const Tile *t, int64_t row)
{
    float *l = t->logits + row * t->columns;
    int64_t whole = t->columns / LANES * LANES, rest = t->columns - whole, column = target_column(t, row);
    if (column >= 0) {
        t->target[row] = l[column];
        l[column] = -INFINITY;
    }
    float before = t->maximum[row], maximum = before, lanes[LANES];
    Floats highest = all(before);
    for (int64_t j = 0; j < whole; j += LANES) {
        Floats x = load(l + j);
        highest = choose(x > highest, x, highest);
    }
    store(lanes, highest);
    for (int i = 0; i < LANES; i++)
        maximum = lanes[i] > maximum ? lanes[i] : maximum;
    for (int64_t j = whole; j < t->columns; j++)
        maximum = l[j] > maximum ? l[j] : maximum;

    Floats sums[2] = {{0}, {0}}, m = all(maximum);
    int64_t j = 0;
    for (; j + 2 * LANES <= whole; j += 2 * LANES) {
        sums[0] += exponential(load(l + j) - m);
        sums[1] += exponential(load(l + j + LANES) - m);
    }
    for (; j < whole; j += LANES)
        sums[0] += exponential(load(l + j) - m);
    if (rest)
        sums[1] += exponential(load_some(l + whole, rest, -INFINITY) - m);
    float sum = total(sums[0] + sums[1]);
    t->sum[row] = (before == maximum ? t->sum[row] : t->sum[row] * expf(before - maximum)) + sum;
    t->maximum[row] = maximum;
}

/* In place: logit → coefficient · (p − onehot) = scale · (q − onehot), q = e^(l − max) / Σ but 0 for the target; max and Σ are the whole row's. */
INLINE void gradient(const Tile *t, int64_t row)
{
    float *l = t->logits + row * t->columns;
    int64_t whole = t->columns / LANES * LANES, rest = t->columns - whole, column = target_column(t, row);
    float lanes[LANES];
    Floats m = all(t->maximum[row]), factor = all(t->scale[row] / t->sum[row]);
    for (int64_t j = 0; j < whole; j += LANES)
        store(l + j, factor * exponential(load(l + j) - m));
    if (rest) {
        store(lanes, factor * exponential(load_some(l + whole, rest, -INFINITY) - m));
        memcpy(l + whole, lanes, (size_t)rest * sizeof(float));
    }
    if (column >= 0)
        l[column] = -t->scale[row];
}

typedef enum { STATISTICS, GRADIENT } Pass;

INLINE void run(const Tile *t, Pass pass, int64_t start, int64_t end)
{
    for (int64_t row = start; row < end; row++)
        if (pass == STATISTICS)
            statistics(t, row);
        else
            gradient(t, row);
}

static void run_portable(const Tile *t, Pass pass, int64_t start, int64_t end) { run(t, pass, start, end); }
#if defined(__x86_64__)
__attribute__((target("avx2,fma,f16c"))) static void run_avx2(const Tile *t, Pass pass, int64_t start, int64_t end) { run(t, pass, start, end); }
#endif

typedef struct {
    Tile tile;
    Pass pass;
    void (*run)(const Tile *, Pass, int64_t, int64_t);
} Work;

static void share(void *context, int part, int parts)
{
    const Work *work = context;
    work->run(&work->tile, work->pass, work->tile.rows * part / parts, work->tile.rows * (part + 1) / parts);
}

static void run_parallel(Work *work, int threads)
{
    work->run = run_portable;
#if defined(__x86_64__)
    if (rl_level() >= AVX2)
        work->run = run_avx2;
#endif
    rl_parallel(share, work, work->tile.rows < threads ? (int)work->tile.rows : threads);
}

/* Take a tile into the statistics of its rows, which start as maximum −FLT_MAX and sum 0. `target` [rows] is written, and the logit
 * in the tile with it, where the tile holds the target. */
RL_EXPORT void rl_nll_statistics(float *logits, int64_t rows, int64_t columns, int64_t first, const int64_t *targets,
                                 float *maximum, float *sum, float *target, int threads)
{
    Work work = {{.logits = logits, .rows = rows, .columns = columns, .first = first, .targets = targets,
                  .maximum = maximum, .sum = sum, .target = target}, STATISTICS, NULL};
    run_parallel(&work, threads);
}

/* Turn a tile of logits, in place, into coefficient · (p − onehot), given the statistics of the whole rows and scale = coefficient · (1 − p). */
RL_EXPORT void rl_nll_gradient(float *logits, int64_t rows, int64_t columns, int64_t first, const int64_t *targets,
                               const float *maximum, const float *sum, const float *scale, int threads)
{
    Work work = {{.logits = logits, .rows = rows, .columns = columns, .first = first, .targets = targets,
                  .maximum = (float *)maximum, .sum = (float *)sum, .scale = scale}, GRADIENT, NULL};
    run_parallel(&work, threads);
}
