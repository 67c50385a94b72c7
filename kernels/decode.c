/*
 * Attention while generating: one new query a request, over a prefix that all requests share and over the
 * request's own cache, to which its new key and value are added first.
 *
 * The prefix is two products for all requests at once: scores = q Kᵀ and p V with K and Vᵀ packed (linear.c), a head
 * group after the other. The caches follow one (request, group) after the other. The two parts meet by their
 * largest scores and sums, as parts of one softmax do (arXiv 2402.05099, section 3.1); all of it in float32.
 */
#include "redlite.h"
#include "isa.h"
#include "linear.h"
#include "pool.h"
#include "vector.h"
#include <math.h>
#include <stdlib.h>

enum { QUERIES = 4, KEYS = 4 }; /* a tile of scores: up to 4 queries by 4 keys */

/* Shapes: B requests, G groups, R queries a group, K head size (a multiple of LANES or padded by the loops), S capacity, P prefix. */
typedef struct {
    const float *q, *k, *v;         /* [B, G·R, K], [B, G, K] */
    float *keys, *values;           /* [slots, G, S, K] */
    const int64_t *places;          /* [B]: where the new key goes; the keys before it are the cache */
    int64_t requests, groups, repeat, size, capacity, prefix, window; /* window 0: none */
    float scale;
    float *scores;                  /* prefix: [B·R, P] of one group, then of its exponentials */
    float *rows;                    /* prefix: [B·R, K] scaled queries of one group */
    float *shared, *largest, *sum;  /* prefix: [G, B·R, K] Σ e^(s − largest) v, [G, B·R], [G, B·R] */
    float *own;                     /* a thread's scores [R, S] */
    float *out;                     /* [B, G·R, K] */
    int64_t group;
} Decode;

/* scores[i, j] = a_i · b_j for `queries` ≤ 4 rows of q and 4 keys (or fewer: the last is repeated by the caller's clamp). */
INLINE void dot_tile(const float *q, int64_t q_stride, const float *const *keys, int64_t size, int queries, float result[QUERIES][KEYS])
{
    Floats sum[QUERIES][KEYS] = {{{0}}};
    int64_t j = 0;
    for (; j + LANES <= size; j += LANES) {
        Floats b[KEYS];
        for (int n = 0; n < KEYS; n++)
            b[n] = load(keys[n] + j);
        for (int m = 0; m < queries; m++) {
            Floats a = load(q + m * q_stride + j);
            for (int n = 0; n < KEYS; n++)
                sum[m][n] += a * b[n];
        }
    }
    if (j < size)
        for (int m = 0; m < queries; m++)
            for (int n = 0; n < KEYS; n++)
                sum[m][n] += load_some(q + m * q_stride + j, size - j, 0.0f) * load_some(keys[n] + j, size - j, 0.0f);
    for (int m = 0; m < queries; m++)
        for (int n = 0; n < KEYS; n++)
            result[m][n] = total(sum[m][n]);
}

/* scores → e^(scores − largest) in place; their sum. */
INLINE float exponentials(float *scores, int64_t count, float *largest)
{
    Floats top = all(-INFINITY), sum = {0};
    int64_t j = 0;
    for (; j + LANES <= count; j += LANES) {
        Floats s = load(scores + j);
        top = choose(s > top, s, top);
    }
    Floats rest = load_some(scores + j, count - j, -INFINITY);
    top = choose(rest > top, rest, top);
    float m = top[0];
    for (int i = 1; i < LANES; i++)
        m = top[i] > m ? top[i] : m;
    for (j = 0; j + LANES <= count; j += LANES) {
        Floats e = exponential(load(scores + j) - m);
        store(scores + j, e);
        sum += e;
    }
    if (j < count) {
        Floats e = exponential(rest - m); /* the places behind the last are e^−∞ = 0 */
        store_some(scores + j, e, count - j);
        sum += e;
    }
    *largest = m;
    return total(sum);
}

/* out[m] = Σ_s p[m, s] v[s] for one run of LANES columns (or fewer). */
INLINE void weigh(const float *p, int64_t p_stride, const float *v, int64_t count, int64_t size, int64_t column, int queries, Floats out[QUERIES])
{
    for (int m = 0; m < queries; m++)
        out[m] = (Floats){0};
    int64_t width = size - column < LANES ? size - column : LANES;
    for (int64_t s = 0; s < count; s++) {
        Floats x = width == LANES ? load(v + s * size + column) : load_some(v + s * size + column, width, 0.0f);
        for (int m = 0; m < queries; m++)
            out[m] += all(p[m * p_stride + s]) * x;
    }
}

/* The prefix's softmax for rows [first, end) of a group. */
INLINE void soften(const Decode *d, int64_t first, int64_t end)
{
    int64_t rows = d->requests * d->repeat;
    for (int64_t r = first; r < end; r++)
        d->sum[d->group * rows + r] = exponentials(d->scores + r * d->prefix, d->prefix, d->largest + d->group * rows + r);
}

/* Request b, group g: add the new key and value, attend to the cache, join the prefix's part. */
INLINE void attend(const Decode *d, int64_t b, int64_t g, float *scores)
{
    int64_t size = d->size, place = d->places[b], heads = d->groups * d->repeat;
    float *keys = d->keys + (b * d->groups + g) * d->capacity * size, *values = d->values + (b * d->groups + g) * d->capacity * size;
    memcpy(keys + place * size, d->k + (b * d->groups + g) * size, (size_t)size * sizeof(float));
    memcpy(values + place * size, d->v + (b * d->groups + g) * size, (size_t)size * sizeof(float));
    int64_t start = d->window && place + 1 > d->window ? place + 1 - d->window : 0, count = place + 1 - start;
    for (int64_t r = 0; r < d->repeat; r += QUERIES) {
        int queries = (int)(d->repeat - r < QUERIES ? d->repeat - r : QUERIES);
        const float *q = d->q + (b * heads + g * d->repeat + r) * size;
        float tile[QUERIES][KEYS], largest[QUERIES], sum[QUERIES];
        for (int64_t s = 0; s < count; s += KEYS) {
            const float *four[KEYS];
            for (int n = 0; n < KEYS; n++)
                four[n] = keys + (start + (s + n < count ? s + n : count - 1)) * size;
            dot_tile(q, size, four, size, queries, tile);
            for (int m = 0; m < queries; m++)
                for (int n = 0; n < KEYS && s + n < count; n++)
                    scores[m * d->capacity + s + n] = tile[m][n] * d->scale;
        }
        for (int m = 0; m < queries; m++)
            sum[m] = exponentials(scores + m * d->capacity, count, largest + m);
        for (int64_t column = 0; column < size; column += LANES) {
            Floats result[QUERIES];
            weigh(scores, d->capacity, values + start * size, count, size, column, queries, result);
            int64_t width = size - column < LANES ? size - column : LANES;
            for (int m = 0; m < queries; m++) {
                float mine = 1.0f, theirs = 0.0f, whole = sum[m];
                Floats value = result[m];
                if (d->prefix) {
                    int64_t row = g * d->requests * d->repeat + b * d->repeat + r + m;
                    float top = largest[m] > d->largest[row] ? largest[m] : d->largest[row];
                    mine = expf(largest[m] - top), theirs = expf(d->largest[row] - top);
                    whole = mine * sum[m] + theirs * d->sum[row];
                    value = all(mine) * value + all(theirs) * load_some(d->shared + row * size + column, width, 0.0f);
                }
                store_some(d->out + (b * heads + g * d->repeat + r + m) * size + column, value * all(1.0f / whole), width);
            }
        }
    }
}

INLINE void attend_some(const Decode *d, int64_t first, int64_t end, float *scores)
{
    for (int64_t i = first; i < end; i++)
        attend(d, i / d->groups, i % d->groups, scores);
}

static void soften_portable(const Decode *d, int64_t first, int64_t end) { soften(d, first, end); }
static void attend_portable(const Decode *d, int64_t first, int64_t end, float *scores) { attend_some(d, first, end, scores); }
#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static void soften_avx2(const Decode *d, int64_t first, int64_t end) { soften(d, first, end); }
__attribute__((target("avx2,fma"))) static void attend_avx2(const Decode *d, int64_t first, int64_t end, float *scores) { attend_some(d, first, end, scores); }
#endif

typedef struct {
    const Decode *decode;
    void (*soften)(const Decode *, int64_t, int64_t);
    void (*attend)(const Decode *, int64_t, int64_t, float *);
} Work;

static void share_rows(void *context, int part, int parts)
{
    const Work *w = context;
    int64_t rows = w->decode->requests * w->decode->repeat;
    w->soften(w->decode, rows * part / parts, rows * (part + 1) / parts);
}

static void share_requests(void *context, int part, int parts)
{
    const Work *w = context;
    int64_t pairs = w->decode->requests * w->decode->groups;
    w->attend(w->decode, pairs * part / parts, pairs * (part + 1) / parts, w->decode->own + (int64_t)part * QUERIES * w->decode->capacity);
}

/* The prefix's part for every group: d->shared, d->largest, d->sum. prefix_keys and prefix_values: a packed [P, K] and [K, P] matrix a group. */
static int attend_prefix(Decode *d, Work *work, const void *const *prefix_keys, const void *const *prefix_values, int threads)
{
    int64_t rows = d->requests * d->repeat, heads = d->groups * d->repeat;
    for (d->group = 0; d->group < d->groups; d->group++) {
        for (int64_t b = 0; b < d->requests; b++)
            for (int64_t i = 0; i < d->repeat * d->size; i++)
                d->rows[b * d->repeat * d->size + i] = d->q[(b * heads + d->group * d->repeat) * d->size + i] * d->scale;
        if (rl_linear(0, prefix_keys[d->group], d->rows, NULL, d->scores, rows, d->prefix, d->size, threads))
            return -1;
        rl_parallel(share_rows, work, rows * d->prefix < 1 << 14 ? 1 : threads);
        if (rl_linear(0, prefix_values[d->group], d->scores, NULL, d->shared + d->group * rows * d->size, rows, d->size, d->prefix, threads))
            return -1;
    }
    return 0;
}

/* See the head of the file. q [B, G·R, K], k and v [B, G, K], keys and values [≥ B, G, S, K], places [B] below S, out [B, G·R, K];
 * prefix_keys, prefix_values: G pointers each, read where prefix > 0; window 0: none (and none with a prefix). Returns 0, or −1 for want of memory. */
RL_EXPORT int rl_cached_attention(const float *q, const float *k, const float *v, float *keys, float *values, const int64_t *places,
                                  const void *const *prefix_keys, const void *const *prefix_values, float *out, int64_t requests, int64_t groups,
                                  int64_t repeat, int64_t size, int64_t capacity, int64_t prefix, int64_t window, float scale, int threads)
{
    int64_t rows = requests * repeat;
    threads = threads < 1 ? 1 : threads > 64 ? 64 : threads;
    if (requests * groups < threads)
        threads = (int)(requests * groups);
    size_t own = (size_t)(threads * QUERIES * capacity), extra = prefix ? (size_t)(rows * prefix + rows * size + groups * rows * (size + 2)) : 0;
    float *scratch = malloc((own + extra) * sizeof(float));
    if (!scratch)
        return -1;
    Decode d = {.q = q, .k = k, .v = v, .keys = keys, .values = values, .places = places, .requests = requests, .groups = groups, .repeat = repeat,
                .size = size, .capacity = capacity, .prefix = prefix, .window = window, .scale = scale, .own = scratch, .out = out};
    d.scores = scratch + own, d.rows = d.scores + rows * prefix, d.shared = d.rows + rows * size;
    d.largest = d.shared + groups * rows * size, d.sum = d.largest + groups * rows;
    Work work = {&d, soften_portable, attend_portable};
#if defined(__x86_64__)
    if (rl_level() >= AVX2)
        work.soften = soften_avx2, work.attend = attend_avx2;
#endif
    int failed = prefix ? attend_prefix(&d, &work, prefix_keys, prefix_values, threads) : 0;
    if (!failed)
        rl_parallel(share_requests, &work, threads);
    free(scratch);
    return failed;
}
