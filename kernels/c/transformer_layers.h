/* Layers of a packed model: the arguments of rl_layers (transformer_layers.c). */
#ifndef REDLITE_TRANSFORMER_LAYERS_H
#define REDLITE_TRANSFORMER_LAYERS_H
#include "transformer_block.h"

/* D width, H heads, G key/value heads, K head size, S cache capacity, P prefix, T rows, B sequences. */
typedef struct {
    Block block;
    void *keys, *values;                                   /* [slots, G, S, K], used where rows are kept */
    const void *const *prefix_keys, *const *prefix_values; /* G packed matrices each, used if P > 0 */
    int64_t window;                                        /* 0: none */
    int64_t rope;                                          /* which of the rotary tables */
} Layer;

typedef struct {
    int64_t width, heads, groups, size, capacity, prefix; /* D, H, G, K, S, P */
    int64_t kept;                                         /* by caches: see CachedAttention */
    float scale, cap;                                     /* of the attention's scores; cap 0: none */
} Shape;

/* The rows of a call: either new tokens, or whole sequences. New tokens are one of each request or, with
 * slots, several in turn of some. Either way each gets the same numbers. */
typedef struct {
    int64_t rows;                     /* T */
    const int64_t *places;            /* new tokens: [T], see CachedAttention. Sequences: NULL */
    const int64_t *offsets, *parents; /* sequences: see SequenceAttention */
    int64_t sequences;                /* B */
    int64_t slot;                     /* the first sequence's slot of the cache; −1: nothing is kept */
    const int64_t *slots;             /* new tokens: [T], the slot of each; NULL: row i has slot i */
} Rows;

/* Run `count` layers: x [T, D] becomes the last one's output. rotary: for each table cos and sin [T, R] of
 * queries, then of keys. Returns 0, or −1 if memory runs out. */
int rl_layers(const Layer *layers, int64_t count, const Shape *shape, const Rows *rows, float *x,
              const float *const *rotary, int threads);

#endif
