/*
 * Loops that are written once, on vectors (vector.h), and compiled three times: loops_portable.c for any
 * processor, loops_avx2.c for AVX2 with FMA and F16C, loops_avx512.c for AVX-512. Each is a table of
 * functions; rl_loops() gives the table of the instruction set in use. All sum in one order; AVX2 and AVX-512
 * give the same bits, and the portable loops, which round products before they add them, others.
 *
 * They are compiled as whole files because GCC takes a vector apart in a function whose target lacks it,
 * before that function is inlined into one that has it.
 */
#ifndef REDLITE_LOOPS_H
#define REDLITE_LOOPS_H
#include "sequence_attention.h"
#include "training.h"

/* Activations; XIELU has four parameters. */
enum Act { SILU, GELU_TANH, RELU2, XIELU };

/* An operation between a transformer block's products, over rows of `width` numbers. ROTATE works in y. */
typedef struct {
    enum { NORM, ROTATE, ACTIVATE, ADD } kind;
    const float *x, *other; /* NORM: x and the weight; ADD: two inputs; ACTIVATE: x, and a factor or NULL */
    const float *bias;      /* NORM: of LayerNorm; NULL: RMSNorm */
    const float *cos, *sin; /* ROTATE: [rows, R] */
    const float *xielu;     /* ACTIVATE: p, n, beta, eps */
    float *y;
    float eps, factor; /* ADD: x + factor · other */
    int act;
    int64_t width, heads, rotated; /* ROTATE: K, heads of y's rows, R */
} Elementwise;

/* Rows of logits of vocabulary entries first, first + 1, …; row r's target may lie in another tile. See
 * token_nll.h for what belongs to each row. */
typedef struct {
    float *logits; /* [rows, columns]; rows lie `stride` apart */
    int64_t stride, columns, first;
    const int64_t *targets;
    float *maximum, *sum, *target; /* maximum and sum: over the tiles so far */
    const float *scale;
} LogitTile;

typedef enum { STATISTICS, GRADIENT } NllPass;

typedef struct {
    void (*elementwise)(const Elementwise *operation, int64_t first_row, int64_t end_row);
    /* Put `count` numbers into a cache from number `at` on: see CachedAttention's `kept`. */
    void (*into_cache)(void *cache, int64_t at, const float *from, int64_t count, int kept);
    void (*round_to_half)(float *x, int64_t count); /* in place: what a float16 cache would hold */
    void (*attend_cached)(const CachedAttention *a, int64_t first_pair, int64_t end_pair,
                          const CachedScratch *scratch);
    void (*attend_sequence)(const SequenceAttention *a, int64_t task, const SequenceScratch *scratch);
    void (*nll)(const LogitTile *tile, NllPass pass, int64_t first_row, int64_t end_row);
    /* Decode `count` GGUF blocks into n numbers. Returns the bits of the largest magnitude among them. */
    int32_t (*dequantise)(int kind, const uint8_t *blocks, int64_t count, float *out, int64_t n);
    /* Unpack a panel of a quantised matrix: weight k of column j goes to out[k · stride + j]. */
    void (*unpack_panel)(int format, const uint8_t *panel, int64_t inputs, float *out, int64_t stride);
    void (*adamw)(const AdamW *step, int64_t first, int64_t end); /* of numbers first to end − 1 */
    void (*squares)(const Squares *squares, int64_t first_block, int64_t end_block);
    void (*training)(const Training *operation, int64_t first_row, int64_t end_row);
} Loops;

#define LOOPS                                                                                                \
    {run_elementwise, into_cache, round_to_half, attend_cached, attend_sequence, run_nll, dequantise,        \
     unpack_panel, run_adamw, run_squares, run_training}

const Loops *rl_loops(void);

#endif
