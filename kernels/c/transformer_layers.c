/*
 * Layers of a packed model in one call. Each is the half of the block before its attention, the attention,
 * and the half after it; no Python runs in between.
 */
#include "loops.h"
#include "thread_pool.h"
#include "transformer_layers.h"
#include <stdlib.h>
#include <string.h>

typedef struct {
    const Layer *layer;
    const Shape *shape;
    const Rows *rows;
    float *k, *v;
} Keep;

/* Put the keys and values of sequences into their caches. If those are float16, round k and v too: the
 * sequences must attend to the same numbers as later steps. Attention itself rounds them to bfloat16. */
static void keep(void *context, int part, int parts)
{
    const Keep *w = context;
    const Shape *s = w->shape;
    const Rows *r = w->rows;
    const Loops *loops = rl_loops();
    const int64_t narrow = s->groups * s->size, first = r->rows * part / parts,
                  end = r->rows * (part + 1) / parts;
    if (s->kept == KEPT_HALVES) {
        loops->round_to_half(w->k + first * narrow, (end - first) * narrow);
        loops->round_to_half(w->v + first * narrow, (end - first) * narrow);
    }
    for (int64_t b = 0; b < r->sequences; b++) {
        const int64_t start = r->offsets[b], last = r->offsets[b + 1] < end ? r->offsets[b + 1] : end;
        for (int64_t row = start > first ? start : first; row < last; row++)
            for (int64_t g = 0; g < s->groups; g++) {
                int64_t to = (((r->slot + b) * s->groups + g) * s->capacity + row - start) * s->size;
                int64_t from = row * narrow + g * s->size;
                loops->into_cache(w->layer->keys, to, w->k + from, s->size, (int)s->kept);
                loops->into_cache(w->layer->values, to, w->v + from, s->size, (int)s->kept);
            }
    }
}

/* Put the keys and values of new tokens, which may be several of one slot, into their caches. */
static void keep_new(void *context, int part, int parts)
{
    const Keep *w = context;
    const Shape *s = w->shape;
    const Rows *r = w->rows;
    const int64_t end = r->rows * (part + 1) / parts;
    for (int64_t row = r->rows * part / parts; row < end; row++)
        for (int64_t g = 0; g < s->groups; g++) {
            int64_t to = ((r->slots[row] * s->groups + g) * s->capacity + r->places[row]) * s->size;
            int64_t from = (row * s->groups + g) * s->size;
            rl_loops()->into_cache(w->layer->keys, to, w->k + from, s->size, (int)s->kept);
            rl_loops()->into_cache(w->layer->values, to, w->v + from, s->size, (int)s->kept);
        }
}

static int attention(const Layer *l, const Shape *s, const Rows *r, const float *q, float *k, float *v,
                     float *out, int threads)
{
    int64_t repeat = s->heads / s->groups;
    if (r->places) {
        CachedAttention step = {
            q, k, v, l->keys, l->values, r->places, l->prefix_keys, l->prefix_values, out, r->rows, s->groups,
            repeat, s->size, s->capacity, s->prefix, l->window, (int32_t)s->kept, s->scale, s->cap, r->slots};
        if (r->slots)
            rl_parallel(keep_new, &(Keep){l, s, r, k, v}, threads);
        return rl_cached_attention(&step, threads);
    }
    if (r->slot >= 0)
        rl_parallel(keep, &(Keep){l, s, r, k, v}, threads);
    SequenceAttention whole = {q,
                               k,
                               v,
                               r->offsets,
                               r->parents,
                               l->prefix_keys,
                               l->prefix_values,
                               out,
                               r->sequences,
                               s->groups,
                               repeat,
                               s->size,
                               s->prefix,
                               l->window,
                               s->scale,
                               s->cap,
                               0,
                               NULL,
                               s->kept == KEPT_BF16};
    return rl_sequence_attention(&whole, threads);
}

int rl_layers(const Layer *layers, int64_t count, const Shape *shape, const Rows *r, float *x,
              const float *const *rotary, int threads)
{
    const int64_t rows = r->rows, wide = shape->heads * shape->size, narrow = shape->groups * shape->size;
    float *scratch = malloc((size_t)(rows * (2 * wide + 2 * narrow + shape->width)) * sizeof(float));
    if (!scratch)
        return -1;
    float *q = scratch, *attended = q + rows * wide, *k = attended + rows * wide, *v = k + rows * narrow;
    float *in = x, *out = v + rows * narrow;
    int failed = 0;
    for (const Layer *l = layers; l < layers + count && !failed; l++) {
        failed = rl_before_attention(&l->block, in, rotary + 4 * l->rope, q, k, v, rows, threads)
            || attention(l, shape, r, q, k, v, attended, threads)
            || rl_after_attention(&l->block, in, attended, out, rows, threads);
        float *other = in;
        in = out, out = other;
    }
    if (in != x)
        memcpy(x, in, (size_t)(rows * shape->width) * sizeof(float));
    free(scratch);
    return failed ? -1 : 0;
}
