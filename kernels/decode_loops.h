/*
 * Attention while generating: one new query a request, over a prefix that all requests share and over the
 * request's own cache, to which its new key and value are added first.
 *
 * (Group, request) pairs go in runs of one group: the queries of a run over the prefix first, so that its packed keys
 * and values (pack.c) are read once for many of them, then each request's own cache. The two parts meet by their largest
 * scores and sums, as parts of one softmax do (arXiv 2402.05099, section 3.1); all of it in float32. Every number is
 * summed in one order whatever is computed beside it, so a request's result does not depend on its batch.
 *
 * decode.c compiles this file for any processor and loops_avx2.c for AVX2: GCC takes vectors apart where a function's
 * target lacks them, before it is inlined into one that has them.
 */
#ifndef REDLITE_DECODE_LOOPS_H
#define REDLITE_DECODE_LOOPS_H
#include "tiles.h"
#include "vector.h"
#include <math.h>

enum { ROWS = 6, VECTORS = PANEL / LANES }; /* prefix: a tile is up to 6 queries by a panel of 16 columns, in registers */
enum { QUERIES = 3, KEYS = 4, RUNS = 4 };   /* own cache: up to 3 queries by 4 keys, then by 4 runs of LANES columns */
enum { CHUNK_QUERIES = 48 };                /* prefix: about as many queries meet a panel while it is in the nearest cache */
enum { CACHE_LINE = 16 };                   /* floats; where it is longer, some are asked for twice */

/* Shapes: B requests, G groups, R queries a group, K head size, S capacity, P prefix; [x̂] is x rounded up to whole panels. */
typedef struct {
    const float *q, *k, *v;         /* [B, G·R, K], [B, G, K] */
    void *keys, *values;            /* [slots, G, S, K], floats or halves */
    const int64_t *places;          /* [B]: where the new key goes; the keys before it are the cache */
    const void *const *prefix_keys, *const *prefix_values; /* G float32 matrices each, packed: [P, K] and [K, P] */
    int64_t requests, groups, repeat, size, capacity, prefix, window; /* window 0: none */
    int half;                       /* whether they are halves */
    float scale;
    float *out;                     /* [B, G·R, K] */
} Decode;

/* A thread's memory. N: the queries of a run. */
typedef struct {
    const float **rows;    /* [N] where each query, then its exponentials, lie */
    float *own;            /* [3, Ŝ] scores, then their exponentials */
    float *scores;         /* [N, P̂] the same over the prefix */
    float *shared;         /* [N, K̂] Σ e^(s − largest) v */
    float *largest, *sum;  /* [N], [N] */
} Scratch;

/* LANES numbers of a cache from number `at` on; the first `count` of them, then 0. `half` is a constant in each copy. */
INLINE Floats cached(const void *from, int64_t at, const int half) { return half ? load_halves((const uint16_t *)from + at) : load((const float *)from + at); }

INLINE Floats cached_some(const void *from, int64_t at, int64_t count, const int half)
{
    float lanes[LANES];
    for (int i = 0; i < LANES; i++)
        lanes[i] = i >= count ? 0.0f : half ? half_to_float(((const uint16_t *)from)[at + i]) : ((const float *)from)[at + i];
    return load(lanes);
}

/* `count` floats into a cache, from number `at` on. */
INLINE void into_cache(void *to, int64_t at, const float *from, int64_t count, int half)
{
    if (!half) {
        memcpy((float *)to + at, from, (size_t)count * sizeof(float));
        return;
    }
    int64_t j = 0;
    for (; j + LANES <= count; j += LANES)
        store_halves((uint16_t *)to + at + j, load(from + j));
    for (; j < count; j++)
        ((uint16_t *)to)[at + j] = float_to_half(from[j] > MOST_HALF ? MOST_HALF : from[j] < -MOST_HALF ? -MOST_HALF : from[j]);
}

/* What a cache of halves would hold, as floats. */
INLINE void as_cached(float *x, int64_t count)
{
    uint16_t halves[LANES];
    for (int64_t j = 0, n; j < count; j += n) {
        n = count - j < LANES ? count - j : LANES;
        into_cache(halves, 0, x + j, n, 1);
        if (n == LANES)
            store(x + j, load_halves(halves));
        else
            for (int64_t i = 0; i < n; i++)
                x[j + i] = half_to_float(halves[i]);
    }
}

INLINE int64_t whole(int64_t count) { return (count + PANEL - 1) / PANEL * PANEL; }

INLINE int64_t run_requests(const Decode *d) { return d->repeat < CHUNK_QUERIES ? CHUNK_QUERIES / d->repeat : 1; }

/* In a switch: the copy of a call for a constant N. */
#define COPY_OF(rows, call) case rows: { enum { N = rows }; call; } break;

/* scores → e^(scores − largest) in place; their sum. `count` is a multiple of LANES; places behind the last score hold −∞. */
static __attribute__((noinline)) float exponentials(float *scores, int64_t count, float *largest)
{
    Floats top = all(-INFINITY), sum = {0};
    for (int64_t j = 0; j < count; j += LANES) {
        Floats s = load(scores + j);
        top = choose(s > top, s, top);
    }
    const Floats m = all(*largest = greatest(top));
    for (int64_t j = 0; j < count; j += LANES) {
        Floats e = exponential(load(scores + j) - m);
        store(scores + j, e);
        sum += e;
    }
    return total(sum);
}

INLINE void end_with_nothing(float *scores, int64_t count)
{
    for (int64_t end = whole(count); count < end; count++)
        scores[count] = -INFINITY;
}

/* out[m][PANEL] = scale · Σ_i x[m][i] panel[i]. */
INLINE void multiply_rows(const float *const *x, const float *panel, int64_t inputs, float scale, float *out, int64_t stride, const int rows)
{
    const float *at[ROWS];
    Floats sum[ROWS][VECTORS];
    _Pragma("GCC unroll 6") for (int m = 0; m < rows; m++) {
        at[m] = x[m];
        _Pragma("GCC unroll 4") for (int n = 0; n < VECTORS; n++)
            sum[m][n] = (Floats){0};
    }
    for (int64_t i = 0; i < inputs; i++) {
        Floats w[VECTORS];
        _Pragma("GCC unroll 4") for (int n = 0; n < VECTORS; n++)
            w[n] = load(panel + i * PANEL + n * LANES);
        _Pragma("GCC unroll 6") for (int m = 0; m < rows; m++) {
            Floats a = all(at[m][i]);
            _Pragma("GCC unroll 4") for (int n = 0; n < VECTORS; n++)
                sum[m][n] += a * w[n];
        }
    }
    _Pragma("GCC unroll 6") for (int m = 0; m < rows; m++)
        _Pragma("GCC unroll 4") for (int n = 0; n < VECTORS; n++)
            store(out + m * stride + n * LANES, sum[m][n] * all(scale));
}

/* Functions of their own, since one that holds several such loops has no registers left for the rows' addresses. */
#define FOR_ROWS(rows)                                                                                                                         \
    static __attribute__((noinline)) void multiply_##rows(const float *const *x, const float *panel, int64_t inputs, float scale, float *out, int64_t stride) \
    {                                                                                                                                          \
        multiply_rows(x, panel, inputs, scale, out, stride, rows);                                                                             \
    }
FOR_ROWS(1) FOR_ROWS(2) FOR_ROWS(3) FOR_ROWS(4) FOR_ROWS(5) FOR_ROWS(6)

/* out[rows, whole(columns)] = scale · x · matrix, whose panels are `apart` floats apart; every row of x meets a panel before the next panel comes. */
INLINE void multiply(const float *const *x, const float *matrix, int64_t rows, int64_t inputs, int64_t columns, int64_t apart, float scale, float *out)
{
    static void (*const copies[ROWS])(const float *const *, const float *, int64_t, float, float *, int64_t) = {multiply_1, multiply_2, multiply_3, multiply_4, multiply_5, multiply_6};
    for (int64_t column = 0; column < columns; column += PANEL)
        for (int64_t row = 0; row < rows; row += ROWS)
            copies[(rows - row < ROWS ? rows - row : ROWS) - 1](x + row, matrix + column / PANEL * apart, inputs, scale, out + row * whole(columns) + column, whole(columns));
}

/* The prefix's part for requests [first, end) of group g: s->shared, s->largest, s->sum. */
INLINE void attend_prefix(const Decode *d, int64_t g, int64_t first, int64_t end, const Scratch *s)
{
    int64_t count = (end - first) * d->repeat, stride = whole(d->prefix);
    for (int64_t b = first, i = 0; b < end; b++)
        for (int64_t r = 0; r < d->repeat; r++)
            s->rows[i++] = d->q + ((b * d->groups + g) * d->repeat + r) * d->size;
    multiply(s->rows, d->prefix_keys[g], count, d->size, d->prefix, d->size * PANEL, d->scale, s->scores);
    for (int64_t i = 0; i < count; i++) {
        float *scores = s->scores + i * stride;
        end_with_nothing(scores, d->prefix);
        s->sum[i] = exponentials(scores, stride, s->largest + i);
        s->rows[i] = scores;
    }
    multiply(s->rows, d->prefix_values[g], count, d->prefix, d->size, d->prefix * PANEL, 1.0f, s->shared);
}

/* scores[m, s] = scale · q_m · key_s, of keys that lie from number `keys` of the cache on; the values there, wanted next, are asked for meanwhile. */
INLINE void score(const Decode *d, const float *q, int64_t keys, int64_t count, float *scores, int64_t stride, const int queries, const int half)
{
    const int64_t size = d->size, line = CACHE_LINE * sizeof(float) / (half ? sizeof(uint16_t) : sizeof(float));
    for (int64_t s = 0; s < count; s += KEYS) {
        int64_t key[KEYS];
        for (int n = 0; n < KEYS; n++)
            key[n] = keys + (s + n < count ? s + n : count - 1) * size;
        for (int n = 0; n < KEYS; n++) /* a long cache comes from memory, at whose speed this runs */
            for (int64_t j = 0; j < size; j += line)
                __builtin_prefetch((const char *)d->values + (key[n] + j) * (int64_t)(half ? sizeof(uint16_t) : sizeof(float)));
        Floats sum[QUERIES][KEYS];
        _Pragma("GCC unroll 3") for (int m = 0; m < queries; m++)
            _Pragma("GCC unroll 4") for (int n = 0; n < KEYS; n++)
                sum[m][n] = (Floats){0};
        int64_t j = 0;
        for (; j + LANES <= size; j += LANES) {
            Floats a[QUERIES];
            _Pragma("GCC unroll 3") for (int m = 0; m < queries; m++)
                a[m] = load(q + m * size + j);
            _Pragma("GCC unroll 4") for (int n = 0; n < KEYS; n++) {
                Floats b = cached(d->keys, key[n] + j, half);
                _Pragma("GCC unroll 3") for (int m = 0; m < queries; m++)
                    sum[m][n] += a[m] * b;
            }
        }
        if (j < size)
            _Pragma("GCC unroll 4") for (int n = 0; n < KEYS; n++)
                _Pragma("GCC unroll 3") for (int m = 0; m < queries; m++)
                    sum[m][n] += load_some(q + m * size + j, size - j, 0.0f) * cached_some(d->keys, key[n] + j, size - j, half);
        _Pragma("GCC unroll 3") for (int m = 0; m < queries; m++) {
            float four[KEYS];
            totals(sum[m], four);
            for (int n = 0; n < KEYS; n++) /* those behind the last go where −∞ comes next */
                scores[m * stride + s + n] = four[n] * d->scale;
        }
    }
}

/* out[m][n] = Σ_s p[m, s] v[s] for `runs` runs of LANES columns from number `v` of the cache on; in one run the columns behind `width` are 0. */
INLINE void weigh(const Decode *d, const float *p, int64_t stride, int64_t v, int64_t count, int64_t width, Floats out[QUERIES][RUNS], const int queries, const int runs, const int half)
{
    Floats sum[QUERIES][RUNS];
    _Pragma("GCC unroll 3") for (int m = 0; m < queries; m++)
        _Pragma("GCC unroll 4") for (int n = 0; n < runs; n++)
            sum[m][n] = (Floats){0};
    for (int64_t s = 0; s < count; s++) {
        Floats a[QUERIES];
        _Pragma("GCC unroll 3") for (int m = 0; m < queries; m++)
            a[m] = all(p[m * stride + s]);
        _Pragma("GCC unroll 4") for (int n = 0; n < runs; n++) {
            int64_t at = v + s * d->size + n * LANES;
            Floats x = width < LANES ? cached_some(d->values, at, width, half) : cached(d->values, at, half);
            _Pragma("GCC unroll 3") for (int m = 0; m < queries; m++)
                sum[m][n] += a[m] * x;
        }
    }
    _Pragma("GCC unroll 3") for (int m = 0; m < queries; m++)
        _Pragma("GCC unroll 4") for (int n = 0; n < runs; n++)
            out[m][n] = sum[m][n];
}

/* Queries [r, r + queries) of request b, group g, over keys [start, place] of its cache, joined with the prefix's part, whose first row is `row`. */
INLINE void attend_own(const Decode *d, int64_t b, int64_t g, int64_t r, int64_t row, const Scratch *s, const int queries, const int half)
{
    int64_t size = d->size, stride = whole(d->capacity), place = d->places[b], first = (b * d->groups + g) * d->repeat + r;
    int64_t start = d->window && place + 1 > d->window ? place + 1 - d->window : 0, count = place + 1 - start;
    int64_t cache = ((b * d->groups + g) * d->capacity + start) * size;
    score(d, d->q + first * size, cache, count, s->own, stride, queries, half);
    float mine[QUERIES], theirs[QUERIES]; /* what the sums over the values are multiplied by */
    for (int m = 0; m < queries; m++) {
        float largest, sum, top;
        end_with_nothing(s->own + m * stride, count);
        sum = exponentials(s->own + m * stride, whole(count), &largest);
        mine[m] = 1.0f, theirs[m] = 0.0f;
        if (d->prefix) {
            top = largest > s->largest[row + m] ? largest : s->largest[row + m];
            mine[m] = expf(largest - top), theirs[m] = expf(s->largest[row + m] - top);
            sum = mine[m] * sum + theirs[m] * s->sum[row + m];
        }
        mine[m] /= sum, theirs[m] /= sum;
    }
    for (int64_t column = 0, step; column < size; column += step) {
        Floats out[QUERIES][RUNS];
        int64_t width = size - column;
        step = width < RUNS * LANES ? LANES : RUNS * LANES;
        if (step > LANES)
            weigh(d, s->own, stride, cache + column, count, LANES, out, queries, RUNS, half);
        else
            weigh(d, s->own, stride, cache + column, count, width < LANES ? width : LANES, out, queries, 1, half);
        for (int m = 0; m < queries; m++)
            for (int n = 0; n * LANES < step; n++) {
                Floats value = out[m][n] * all(mine[m]);
                if (d->prefix)
                    value += all(theirs[m]) * load(s->shared + (row + m) * whole(size) + column + n * LANES);
                float *to = d->out + (first + m) * size + column + n * LANES;
                if (width < LANES)
                    store_some(to, value, width);
                else
                    store(to, value);
            }
    }
}

/* Pairs [first, end): group pair / B, request pair % B. */
INLINE void attend(const Decode *d, int64_t first, int64_t end, const Scratch *s)
{
    for (int64_t pair = first, next; pair < end; pair = next) {
        int64_t g = pair / d->requests, from = pair % d->requests, until = d->requests < from + end - pair ? d->requests : from + end - pair;
        until = until < from + run_requests(d) ? until : from + run_requests(d);
        next = pair + until - from;
        if (d->prefix)
            attend_prefix(d, g, from, until, s);
        for (int64_t b = from; b < until; b++) {
            int64_t place = ((b * d->groups + g) * d->capacity + d->places[b]) * d->size, new = (b * d->groups + g) * d->size;
            into_cache(d->keys, place, d->k + new, d->size, d->half);
            into_cache(d->values, place, d->v + new, d->size, d->half);
            for (int64_t r = 0, count; r < d->repeat; r += count) {
                int64_t parts = (d->repeat - r + QUERIES - 1) / QUERIES, row = (b - from) * d->repeat + r;
                count = (d->repeat - r + parts - 1) / parts; /* as even as can be */
                switch (count + (d->half ? QUERIES : 0)) {
                    COPY_OF(1, attend_own(d, b, g, r, row, s, N, 0)) COPY_OF(2, attend_own(d, b, g, r, row, s, N, 0)) COPY_OF(3, attend_own(d, b, g, r, row, s, N, 0))
                    COPY_OF(4, attend_own(d, b, g, r, row, s, N - QUERIES, 1)) COPY_OF(5, attend_own(d, b, g, r, row, s, N - QUERIES, 1))
                    COPY_OF(6, attend_own(d, b, g, r, row, s, N - QUERIES, 1))
                }
            }
        }
    }
}

#endif
