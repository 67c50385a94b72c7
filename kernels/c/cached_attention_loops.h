/*
 * Attention while generating. Each request has one new query; it sees a prefix that all requests share, then
 * the request's own cache, to which its new key and value are added first. With `slots` several rows may be
 * tokens of one request, in turn: its cache holds all of them, and each row sees those up to its place.
 *
 * Work comes in (group, request) pairs. A run of pairs of one group first multiplies all its queries with the
 * prefix, so that the packed keys and values are read once for many queries. Then each request attends to its
 * own cache. The two partial softmaxes are merged by their maxima and sums (arXiv 2402.05099, section 3.1),
 * all in float32; only products with a bfloat16 prefix round what they multiply.
 *
 * Every number is summed in one order whatever is computed beside it. So a request's result does not depend
 * on its batch. See loops.h for how this file is compiled.
 */
#ifndef REDLITE_CACHED_ATTENTION_LOOPS_H
#define REDLITE_CACHED_ATTENTION_LOOPS_H
#include "attention_products_loops.h"
#include "loops.h"
#include <math.h>

enum { KEYS = 4, RUNS = 4 };    /* own cache: QUERIES × 4 registers of keys, or 4 runs of LANES columns */
enum { CACHE_LINE_BYTES = 64 }; /* where lines are longer, some are fetched twice */

/* LANES numbers of a cache from number `at` on. `kept` is a constant in each copy of this code. */
INLINE Floats cached(const void *from, int64_t at, const int kept)
{
    return kept == KEPT_HALVES ? load_halves((const uint16_t *)from + at)
                               : load_numbers(from, at, LANES, kept == KEPT_BF16);
}

/* The first `count` of those, then 0. */
INLINE Floats cached_some(const void *from, int64_t at, int64_t count, const int kept)
{
    return kept == KEPT_HALVES ? load_some_halves((const uint16_t *)from + at, count)
                               : load_numbers(from, at, count, kept == KEPT_BF16);
}

#if defined(REDLITE_AVX512)
/* DOT_LANES numbers of a query in both halves, and of two keys. */
INLINE Floats of_query(const float *from)
{
    return (Floats)_mm512_castpd_ps(_mm512_broadcast_f64x4(_mm256_loadu_pd((const double *)from)));
}

INLINE Floats of_keys(const void *keys, const int64_t *at, int64_t j, const int kept)
{
    int64_t a = at[0] + j, b = at[KEYS] + j;
    if (kept != KEPT_FLOATS) {
        const uint16_t *from = keys;
        __m128i low = _mm_loadu_si128((const __m128i *)(from + a)),
                high = _mm_loadu_si128((const __m128i *)(from + b));
        __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
        return kept == KEPT_HALVES ? (Floats)_mm512_cvtph_ps(both) : from_shorts((Shorts)both);
    }
    const float *from = keys;
    __m256d low = _mm256_loadu_pd((const double *)(from + a)),
            high = _mm256_loadu_pd((const double *)(from + b));
    return (Floats)_mm512_castpd_ps(_mm512_insertf64x4(_mm512_castpd256_pd512(low), high, 1));
}

INLINE Floats beside(Floats a, Floats b) /* the lower half of each */
{
    return LANES_OF(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
}

INLINE Floats some_of_query(const float *from, int64_t count)
{
    Floats some = load_some(from, count, 0.0f);
    return beside(some, some);
}

INLINE Floats some_of_keys(const void *keys, const int64_t *at, int64_t j, int64_t count, const int kept)
{
    return beside(cached_some(keys, at[0] + j, count, kept), cached_some(keys, at[KEYS] + j, count, kept));
}
#else
INLINE Floats of_query(const float *from) { return load(from); }

INLINE Floats of_keys(const void *keys, const int64_t *at, int64_t j, const int kept)
{
    return cached(keys, *at + j, kept);
}

INLINE Floats some_of_query(const float *from, int64_t count) { return load_some(from, count, 0.0f); }

INLINE Floats some_of_keys(const void *keys, const int64_t *at, int64_t j, int64_t count, const int kept)
{
    return cached_some(keys, *at + j, count, kept);
}
#endif

INLINE void into_cache(void *to, int64_t at, const float *from, int64_t count, int kept)
{
    if (kept == KEPT_FLOATS) {
        memcpy((float *)to + at, from, (size_t)count * sizeof(float));
        return;
    }
    if (kept == KEPT_BF16) {
        round_to_bf16(from, count, (uint16_t *)to + at);
        return;
    }
    int64_t j = 0;
    for (; j + LANES <= count; j += LANES)
        store_halves((uint16_t *)to + at + j, load(from + j));
    for (; j < count; j++)
        ((uint16_t *)to)[at + j] =
            float_to_half(from[j] > MOST_HALF ? MOST_HALF : from[j] < -MOST_HALF ? -MOST_HALF : from[j]);
}

INLINE void round_to_half(float *x, int64_t count)
{
    uint16_t halves[LANES];
    for (int64_t j = 0, n; j < count; j += n) {
        n = count - j < LANES ? count - j : LANES;
        into_cache(halves, 0, x + j, n, KEPT_HALVES);
        if (n == LANES)
            store(x + j, load_halves(halves));
        else
            for (int64_t i = 0; i < n; i++)
                x[j + i] = half_to_float(halves[i]);
    }
}

/* Turn scores into e^(score − largest), in place. Returns the sum. `count` is a multiple of PANEL, padded
 * with −∞. */
static __attribute__((noinline)) float exponentials(float *scores, int64_t count, float *largest)
{
    Floats top = all(-INFINITY), sum[PARTS] = {{0}};
    for (int64_t j = 0; j < count; j += LANES)
        top = larger_of(load(scores + j), top);
    const Floats m = all(*largest = greatest(top));
    for (int64_t j = 0; j < count; j += SUM_LANES)
        EACH_PART {
            Floats e = exponential(load(scores + j + i * LANES) - m);
            store(scores + j + i * LANES, e);
            sum[i] += e;
        }
    return total(sum);
}

/* Turn scores x into cap · tanh(x / cap), in place; those up to the next whole panel too. */
static __attribute__((noinline)) void cap_scores(float *scores, int64_t count, float cap)
{
    for (int64_t j = 0; j < padded(count); j += LANES) {
        Floats x = load(scores + j) * all(1.0f / cap), size = choose(x < all(0.0f), -x, x);
        Floats e = exponential(all(-2.0f) * size), tanh = (all(1.0f) - e) / (all(1.0f) + e);
        store(scores + j, choose(x < all(0.0f), all(-cap), all(cap)) * tanh);
    }
}

INLINE void pad_scores(float *scores, int64_t count)
{
    for (int64_t end = padded(count); count < end; count++)
        scores[count] = -INFINITY;
}

/* The prefix's part for requests [first, end) of group g: s->shared, s->largest and s->sum. */
INLINE void attend_prefix(const CachedAttention *d, int64_t g, int64_t first, int64_t end,
                          const CachedScratch *s)
{
    const int narrow = d->kept == KEPT_BF16;
    const int64_t count = (end - first) * d->repeat, stride = padded(d->prefix),
                  key_inputs = inputs_of(d->size, narrow), value_inputs = inputs_of(d->prefix, narrow);
    for (int64_t b = first, i = 0; b < end; b++)
        for (int64_t r = 0; r < d->repeat; r++)
            s->rows[i++] = d->q + ((b * d->groups + g) * d->repeat + r) * d->size;
    multiply(s->rows, d->prefix_keys[g], count, d->size, d->prefix, key_inputs * PANEL, d->scale, s->scores,
             narrow, s->rounded);
    for (int64_t i = 0; i < count; i++) {
        float *scores = s->scores + i * stride;
        if (d->cap > 0)
            cap_scores(scores, d->prefix, d->cap);
        pad_scores(scores, d->prefix);
        s->sum[i] = exponentials(scores, stride, s->largest + i);
        s->rows[i] = scores;
    }
    multiply(s->rows, d->prefix_values[g], count, d->prefix, d->size, value_inputs * PANEL, 1.0f, s->shared,
             narrow, s->rounded);
}

/* scores[m, s] = scale · q_m · key_s, for keys from number `keys` of the cache on. Meanwhile the values of
 * those keys, which are needed next, are fetched. */
INLINE void score(const CachedAttention *d, const float *q, int64_t keys, int64_t count, float *scores,
                  int64_t stride, const int queries, const int kept)
{
    const int64_t size = d->size, bytes = kept == KEPT_FLOATS ? sizeof(float) : sizeof(uint16_t);
    for (int64_t s = 0; s < count; s += KEYS * DOTS) {
        int64_t key[KEYS * DOTS];
        for (int n = 0; n < KEYS * DOTS; n++)
            key[n] = keys + (s + n < count ? s + n : count - 1) * size;
        Floats sum[QUERIES][KEYS];
        _Pragma("GCC unroll 3") for (int m = 0; m < queries; m++)
            _Pragma("GCC unroll 4") for (int n = 0; n < KEYS; n++)
                sum[m][n] = (Floats){0};
        int64_t j = 0;
        for (; j + DOT_LANES <= size; j += DOT_LANES) {
            /* A long cache comes from memory, at whose speed this runs. */
            const char *ahead = (const char *)d->values + (key[0] + j * KEYS * DOTS) * bytes;
            _Pragma("GCC unroll 4") for (int n = 0; n < KEYS * LANES * bytes; n += CACHE_LINE_BYTES)
                __builtin_prefetch(ahead + n);
            Floats a[QUERIES];
            _Pragma("GCC unroll 3") for (int m = 0; m < queries; m++)
                a[m] = of_query(q + m * size + j);
            _Pragma("GCC unroll 4") for (int n = 0; n < KEYS; n++) {
                Floats b = of_keys(d->keys, key + n, j, kept);
                _Pragma("GCC unroll 3") for (int m = 0; m < queries; m++)
                    sum[m][n] += a[m] * b;
            }
        }
        if (j < size)
            _Pragma("GCC unroll 4") for (int n = 0; n < KEYS; n++)
                _Pragma("GCC unroll 3") for (int m = 0; m < queries; m++)
                    sum[m][n] += some_of_query(q + m * size + j, size - j)
                        * some_of_keys(d->keys, key + n, j, size - j, kept);
        _Pragma("GCC unroll 3") for (int m = 0; m < queries; m++) {
            float each[KEYS * DOTS];
            totals(sum[m], each);
            for (int n = 0; n < KEYS * DOTS; n++) /* those past the last key are overwritten by pad_scores */
                scores[m * stride + s + n] = each[n] * d->scale;
        }
    }
}

/* out[m][n] = Σ_s p[m, s] · value_s, for `runs` runs n of LANES columns from number `v` of the cache on. A
 * single run may be narrower, `width` columns; the others are 0. */
INLINE void weigh(const CachedAttention *d, const float *p, int64_t stride, int64_t v, int64_t count,
                  int64_t width, Floats out[QUERIES][RUNS], const int queries, const int runs, const int kept)
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
            Floats x = width < LANES ? cached_some(d->values, at, width, kept) : cached(d->values, at, kept);
            _Pragma("GCC unroll 3") for (int m = 0; m < queries; m++)
                sum[m][n] += a[m] * x;
        }
    }
    _Pragma("GCC unroll 3") for (int m = 0; m < queries; m++)
        _Pragma("GCC unroll 4") for (int n = 0; n < runs; n++)
            out[m][n] = sum[m][n];
}

/* Queries [r, r + queries) of request b, group g, over keys [start, place] of its own cache; merged with the
 * prefix's part, whose first row is `row`. */
INLINE void attend_own(const CachedAttention *d, int64_t b, int64_t g, int64_t r, int64_t row,
                       const CachedScratch *s, const int queries, const int kept)
{
    int64_t size = d->size, stride = padded(d->capacity), place = d->places[b];
    int64_t first = (b * d->groups + g) * d->repeat + r;
    int64_t start = d->window && place + 1 > d->window ? place + 1 - d->window : 0, count = place + 1 - start;
    int64_t slot = d->slots ? d->slots[b] : b;
    int64_t cache = ((slot * d->groups + g) * d->capacity + start) * size;
    score(d, d->q + first * size, cache, count, s->own, stride, queries, kept);
    float mine[QUERIES], theirs[QUERIES]; /* factors of the two sums over values: own cache, prefix */
    for (int m = 0; m < queries; m++) {
        float largest, sum, top;
        if (d->cap > 0)
            cap_scores(s->own + m * stride, count, d->cap);
        pad_scores(s->own + m * stride, count);
        sum = exponentials(s->own + m * stride, padded(count), &largest);
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
            weigh(d, s->own, stride, cache + column, count, LANES, out, queries, RUNS, kept);
        else
            weigh(d, s->own, stride, cache + column, count, width < LANES ? width : LANES, out, queries, 1,
                  kept);
        for (int m = 0; m < queries; m++)
            for (int n = 0; n * LANES < step; n++) {
                Floats value = out[m][n] * all(mine[m]);
                if (d->prefix)
                    value += all(theirs[m]) * load(s->shared + (row + m) * padded(size) + column + n * LANES);
                float *to = d->out + (first + m) * size + column + n * LANES;
                if (width < LANES)
                    store_some(to, value, width);
                else
                    store(to, value);
            }
    }
}

/* In a switch: `queries` and `kept` as constants, which the compiler unrolls. */
#define OWN_CASE(queries, kept)                                                                              \
    case queries + kept *QUERIES:                                                                            \
        attend_own(d, b, g, r, row, s, queries, kept);                                                       \
        break;
#define OWN_CASES(kept) OWN_CASE(1, kept) OWN_CASE(2, kept) OWN_CASE(3, kept)

/* Pairs [first, end): group pair / B, request pair % B. */
INLINE void attend_cached(const CachedAttention *d, int64_t first, int64_t end, const CachedScratch *s)
{
    for (int64_t pair = first, next; pair < end; pair = next) {
        int64_t g = pair / d->requests, from = pair % d->requests, until = from + rows_of_chunk(d->repeat);
        until = until < d->requests ? until : d->requests;
        until = until < from + end - pair ? until : from + end - pair;
        next = pair + until - from;
        if (d->prefix)
            attend_prefix(d, g, from, until, s);
        for (int64_t b = from; b < until; b++) {
            int64_t place = ((b * d->groups + g) * d->capacity + d->places[b]) * d->size;
            int64_t new = (b * d->groups + g) * d->size;
            if (!d->slots) {
                into_cache(d->keys, place, d->k + new, d->size, d->kept);
                into_cache(d->values, place, d->v + new, d->size, d->kept);
            }
            for (int64_t r = 0, count; r < d->repeat; r += count) {
                int64_t parts = (d->repeat - r + QUERIES - 1) / QUERIES, row = (b - from) * d->repeat + r;
                count = (d->repeat - r + parts - 1) / parts; /* as even as can be */
                switch (count + d->kept * QUERIES) {
                    OWN_CASES(KEPT_FLOATS) OWN_CASES(KEPT_HALVES) OWN_CASES(KEPT_BF16)
                }
            }
        }
    }
}

#endif
