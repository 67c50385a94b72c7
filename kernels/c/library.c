/* What kernels/cpu/library.py checks before it calls anything else in this library. */
#include "sequence_attention.h"
#include "token_nll.h"
#include "training.h"
#include "transformer_layers.h"
#include <stddef.h>

#if !defined(RL_SOURCES)
#define RL_SOURCES "unknown" /* compiled by hand: the Python side refuses it */
#endif

/* SHA-256 of the sources that this library was built from; setup.py passes it to the compiler. */
const char *rl_sources(void) { return RL_SOURCES; }

typedef struct {
    const char *name; /* of a struct, or struct.field */
    int64_t bytes;    /* its size, or its offset */
} Layout;

#define SIZE(type) {#type, sizeof(type)}
#define AT(type, a) {#type "." #a, offsetof(type, a)}
#define AT2(type, a, b) AT(type, a), AT(type, b)
#define AT3(type, a, b, c) AT2(type, a, b), AT(type, c)
#define CACHED(a, b, c) AT3(CachedAttention, a, b, c)
#define SEQUENCE(a, b, c) AT3(SequenceAttention, a, b, c)

/* The structs that Python passes; kernels/cpu/structs.py has their twins. */
static const Layout LAYOUTS[] = {
    SIZE(Matrix),
    AT3(Matrix, format, packed, bias),
    AT2(Matrix, columns, inputs),
    SIZE(Block),
    AT3(Block, norms, biases, qk_norms),
    AT3(Block, before, after, size),
    AT3(Block, rotated, qk_norm, act),
    AT3(Block, gated, eps, residual),
    AT(Block, xielu),
    SIZE(Layer),
    AT3(Layer, block, keys, values),
    AT3(Layer, prefix_keys, prefix_values, window),
    AT(Layer, rope),
    SIZE(Shape),
    AT3(Shape, width, heads, groups),
    AT3(Shape, size, capacity, prefix),
    AT3(Shape, kept, scale, cap),
    SIZE(Rows),
    AT3(Rows, rows, places, offsets),
    AT3(Rows, parents, sequences, slot),
    AT(Rows, slots),
    SIZE(CachedAttention),
    CACHED(q, k, v),
    CACHED(keys, values, places),
    CACHED(prefix_keys, prefix_values, out),
    CACHED(requests, groups, repeat),
    CACHED(size, capacity, prefix),
    CACHED(window, kept, scale),
    AT(CachedAttention, cap),
    AT(CachedAttention, slots),
    SIZE(SequenceAttention),
    SEQUENCE(q, k, v),
    AT2(SequenceAttention, offsets, parents),
    SEQUENCE(prefix_keys, prefix_values, out),
    SEQUENCE(sequences, groups, repeat),
    SEQUENCE(size, prefix, window),
    SEQUENCE(scale, cap, count),
    AT2(SequenceAttention, tasks, narrow),
    SIZE(TokenNLL),
    AT3(TokenNLL, hidden, weights, targets),
    AT3(TokenNLL, maximum, sum, target),
    AT3(TokenNLL, scale, d_hidden, d_weights),
    AT3(TokenNLL, rows, width, entries),
    AT3(TokenNLL, entry_stride, width_stride, first),
    AT3(TokenNLL, narrow, narrow_gradient, add),
    SIZE(AdamW),
    AT3(AdamW, weight, mean, square),
    AT3(AdamW, gradient, count, narrow),
    AT3(AdamW, narrow_gradient, scale, take_mean),
    AT3(AdamW, keep_square, take_square, square_bias),
    AT3(AdamW, eps, decay, rate),
    AT(AdamW, seed),
    SIZE(Squares),
    AT2(Squares, x, count),
    AT2(Squares, narrow, sums),
    SIZE(Training),
    AT3(Training, kind, narrow, x),
    AT3(Training, other, cos, sin),
    AT3(Training, dy, y, dx),
    AT3(Training, dother, scale, partial),
    AT3(Training, eps, rows, width),
    AT2(Training, heads, rotated),
};

int rl_layout_count(void) { return (int)(sizeof LAYOUTS / sizeof *LAYOUTS); }

const Layout *rl_layouts(void) { return LAYOUTS; }
