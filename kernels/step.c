/*
 * Layers of a packed model in one call: of each layer the half of the block before its attention, the attention, and
 * the half after it (block.c, decode.c, sequences.c), with nothing of Python between them.
 */
#include "redlite.h"
#include "block.h"
#include "decode.h"
#include "pool.h"
#include "sequences.h"
#include <stdlib.h>
#include <string.h>

/* A layer's part of the arguments. */
typedef struct {
    const float *norm_before, *norm_after;                 /* [D], [D] */
    const Matrix *before, *after;                          /* matrices q, k, v; matrices o, gate, up, down */
    void *keys, *values;                                   /* [slots, G, S, K], read where rows are kept */
    const void *const *prefix_keys, *const *prefix_values; /* G packed matrices each, read where there is a prefix */
    int64_t window;                                        /* 0: none */
} Layer;

/* D width, H heads, G groups, K head size, S capacity, P prefix. */
typedef struct {
    int64_t width, heads, groups, size, capacity, prefix, half; /* half: whether caches are halves */
    float eps, scale;
} Shape;

/* The rows [T] of a call: a new row for each of T requests, or whole sequences. */
typedef struct {
    int64_t rows;
    const int64_t *places;            /* [T] as in decode.c; NULL: sequences */
    const int64_t *offsets, *parents; /* as in sequences.h */
    int64_t sequences, slot;          /* slot: the cache of the first sequence; −1: their keys are not kept */
} Rows;

typedef struct {
    const Layer *layer;
    const Shape *shape;
    const Rows *rows;
    float *k, *v;
} Keep;

/* Keys and values of sequences into their caches; where those are halves, the sequences too attend to what the caches hold. */
static void keep(void *context, int part, int parts)
{
    const Keep *w = context;
    const Shape *s = w->shape;
    const int64_t narrow = s->groups * s->size, first = w->rows->rows * part / parts, end = w->rows->rows * (part + 1) / parts;
    if (s->half) {
        rl_as_cached(w->k + first * narrow, (end - first) * narrow);
        rl_as_cached(w->v + first * narrow, (end - first) * narrow);
    }
    for (int64_t b = 0; b < w->rows->sequences; b++) {
        const int64_t start = w->rows->offsets[b], last = w->rows->offsets[b + 1] < end ? w->rows->offsets[b + 1] : end;
        for (int64_t row = start > first ? start : first; row < last; row++)
            for (int64_t g = 0; g < s->groups; g++) {
                int64_t to = (((w->rows->slot + b) * s->groups + g) * s->capacity + row - start) * s->size, from = row * narrow + g * s->size;
                rl_into_cache(w->layer->keys, to, w->k + from, s->size, (int)s->half);
                rl_into_cache(w->layer->values, to, w->v + from, s->size, (int)s->half);
            }
    }
}

static int attention(const Layer *l, const Shape *s, const Rows *r, const float *q, float *k, float *v, float *out, int threads)
{
    int64_t repeat = s->heads / s->groups;
    if (r->places)
        return rl_cached_attention(q, k, v, l->keys, l->values, (int)s->half, r->places, l->prefix_keys, l->prefix_values, out, r->rows, s->groups, repeat, s->size,
                                   s->capacity, s->prefix, l->window, s->scale, threads);
    if (r->slot >= 0)
        rl_parallel(keep, &(Keep){l, s, r, k, v}, threads);
    return rl_sequence_attention(q, k, v, r->offsets, r->parents, r->sequences, l->prefix_keys, l->prefix_values, out, s->groups, repeat, s->size,
                                 s->prefix, l->window, s->scale, threads);
}

static int run(const Layer *layers, int64_t count, const Shape *shape, const Rows *r, float *x, const float *cos, const float *sin, int threads)
{
    const int64_t rows = r->rows, wide = shape->heads * shape->size, narrow = shape->groups * shape->size;
    float *scratch = malloc((size_t)rows * (size_t)(2 * wide + 2 * narrow + shape->width) * sizeof(float));
    if (!scratch)
        return -1;
    float *q = scratch, *attended = q + rows * wide, *k = attended + rows * wide, *v = k + rows * narrow, *y = v + rows * narrow;
    float *in = x, *out = y;
    int failed = 0;
    for (const Layer *l = layers; l < layers + count && !failed; l++) {
        failed = rl_before_attention(in, l->norm_before, shape->eps, l->before, cos, sin, q, k, v, rows, shape->size, threads)
            || attention(l, shape, r, q, k, v, attended, threads) || rl_after_attention(in, attended, l->norm_after, shape->eps, l->after, out, rows, threads);
        float *other = in;
        in = out, out = other;
    }
    if (in != x)
        memcpy(x, in, (size_t)(rows * shape->width) * sizeof(float));
    free(scratch);
    return failed ? -1 : 0;
}

/* A generation step through `count` layers: x [B, D] becomes the last one's output; cos and sin [B, K], places [B] as in decode.c. Returns 0, or −1 for want of memory. */
RL_EXPORT int rl_step(const Layer *layers, int64_t count, const Shape *shape, float *x, const float *cos, const float *sin, const int64_t *places, int64_t requests, int threads)
{
    return run(layers, count, shape, &(Rows){.rows = requests, .places = places}, x, cos, sin, threads);
}

/* Packed sequences through `count` layers: x [T, D] becomes the last one's output; cos and sin [T, K], offsets and parents as in sequences.h. From slot `slot` on, a sequence
 * each, their keys and values are kept; −1: they are not. Returns 0, or −1 for want of memory. */
RL_EXPORT int rl_sequences(const Layer *layers, int64_t count, const Shape *shape, float *x, const float *cos, const float *sin, const int64_t *offsets, const int64_t *parents,
                           int64_t sequences, int64_t slot, int threads)
{
    return run(layers, count, shape, &(Rows){.rows = offsets[sequences], .offsets = offsets, .parents = parents, .sequences = sequences, .slot = slot}, x, cos, sin, threads);
}
