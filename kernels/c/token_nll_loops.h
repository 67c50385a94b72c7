/* The two passes of token_nll over rows of logits. kernels/README.md derives every line; see loops.h. */
#ifndef REDLITE_TOKEN_NLL_LOOPS_H
#define REDLITE_TOKEN_NLL_LOOPS_H
#include "loops.h"
#include "vector.h"
#include <math.h>
#include <string.h>

INLINE int64_t target_column(const LogitTile *t, int64_t row) /* of the row's target in this tile, or −1 */
{
    int64_t column = t->targets[row] - t->first;
    return column >= 0 && column < t->columns ? column : -1;
}

/* Online log-sum-exp (arXiv 1805.02867): m' = max(m, tile), s' = s · e^(m − m') + Σ e^(l − m'). In the tile
 * the target's logit becomes −infinity. */
INLINE void statistics(const LogitTile *t, int64_t row)
{
    float *l = t->logits + row * t->stride;
    int64_t whole = t->columns / SUM_LANES * SUM_LANES, rest = t->columns - whole;
    int64_t column = target_column(t, row);
    if (column >= 0) {
        t->target[row] = l[column];
        l[column] = -INFINITY;
    }
    float before = t->maximum[row], maximum = before;
    Floats highest[PARTS], sums[PARTS] = {{0}};
    EACH_PART highest[i] = all(before);
    for (int64_t j = 0; j < whole; j += SUM_LANES)
        EACH_PART highest[i] = larger_of(load(l + j + i * LANES), highest[i]);
    EACH_PART {
        highest[i] = larger_of(load_some(l + whole + i * LANES, rest - i * LANES, -INFINITY), highest[i]);
        float most = greatest(highest[i]);
        maximum = most > maximum ? most : maximum;
    }
    const Floats m = all(maximum);
    for (int64_t j = 0; j < whole; j += SUM_LANES)
        EACH_PART sums[i] += exponential(load(l + j + i * LANES) - m);
    EACH_PART sums[i] += exponential(load_some(l + whole + i * LANES, rest - i * LANES, -INFINITY) - m);
    float sum = total(sums);
    t->sum[row] = (before == maximum ? t->sum[row] : t->sum[row] * expf(before - maximum)) + sum;
    t->maximum[row] = maximum;
}

/* In place: logit → coefficient · (p − onehot) = scale · (q − onehot), with q = e^(l − max) / Σ, but 0 for
 * the target. max and Σ are those of the whole row. */
INLINE void gradient(const LogitTile *t, int64_t row)
{
    float *l = t->logits + row * t->stride;
    int64_t whole = t->columns / LANES * LANES, rest = t->columns - whole;
    int64_t column = target_column(t, row);
    Floats m = all(t->maximum[row]), factor = all(t->scale[row] / t->sum[row]);
    for (int64_t j = 0; j < whole; j += LANES)
        store(l + j, factor * exponential(load(l + j) - m));
    if (rest)
        store_some(l + whole, factor * exponential(load_some(l + whole, rest, -INFINITY) - m), rest);
    if (column >= 0)
        l[column] = -t->scale[row];
}

INLINE void run_nll(const LogitTile *t, NllPass pass, int64_t start, int64_t end)
{
    for (int64_t row = start; row < end; row++)
        if (pass == STATISTICS)
            statistics(t, row);
        else
            gradient(t, row);
}

#endif
