/*
 * A generation step through all layers of a packed model in one call: of each layer the half of the block before its
 * attention, the attention, and the half after it (block.c, decode.c), with nothing of Python between them.
 */
#include "redlite.h"
#include "block.h"
#include "decode.h"
#include <stdlib.h>
#include <string.h>

/* A layer's part of the arguments. */
typedef struct {
    const float *norm_before, *norm_after;                 /* [D], [D] */
    const Matrix *before, *after;                          /* matrices q, k, v; matrices o, gate, up, down */
    float *keys, *values;                                  /* [slots, G, S, K] */
    const void *const *prefix_keys, *const *prefix_values; /* G packed matrices each, read where there is a prefix */
    int64_t window;                                        /* 0: none */
} Layer;

/* B requests, D width, H heads, G groups, K head size, S capacity, P prefix. */
typedef struct {
    int64_t layers, width, heads, groups, size, capacity, prefix;
    float eps, scale;
} Shape;

/* x [B, D] becomes the last layer's output; cos and sin [B, K], places [B] as in decode.c. Returns 0, or −1 for want of memory. */
RL_EXPORT int rl_step(const Layer *layers, const Shape *shape, float *x, const float *cos, const float *sin, const int64_t *places, int64_t requests, int threads)
{
    const int64_t wide = shape->heads * shape->size, narrow = shape->groups * shape->size;
    float *scratch = malloc((size_t)requests * (size_t)(2 * wide + 2 * narrow + shape->width) * sizeof(float));
    if (!scratch)
        return -1;
    float *q = scratch, *attended = q + requests * wide, *k = attended + requests * wide, *v = k + requests * narrow, *y = v + requests * narrow;
    float *in = x, *out = y;
    int failed = 0;
    for (const Layer *l = layers; l < layers + shape->layers && !failed; l++) {
        failed = rl_before_attention(in, l->norm_before, shape->eps, l->before, cos, sin, q, k, v, requests, shape->size, threads)
            || rl_cached_attention(q, k, v, l->keys, l->values, places, l->prefix_keys, l->prefix_values, attended, requests, shape->groups,
                                   shape->heads / shape->groups, shape->size, shape->capacity, shape->prefix, l->window, shape->scale, threads)
            || rl_after_attention(in, attended, l->norm_after, shape->eps, l->after, out, requests, threads);
        float *other = in;
        in = out, out = other;
    }
    if (in != x)
        memcpy(x, in, (size_t)(requests * shape->width) * sizeof(float));
    free(scratch);
    return failed ? -1 : 0;
}
