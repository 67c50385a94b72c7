/* Attention of a generation step: its arguments, and what cached_attention.c shares with its loops. */
#ifndef REDLITE_CACHED_ATTENTION_H
#define REDLITE_CACHED_ATTENTION_H
#include "packed_matrix.h"

/* The numbers that a cache holds. With KEPT_BF16 a prefix's matrices are bfloat16, and their products round
 * queries and exponentials to it. */
enum { KEPT_FLOATS, KEPT_HALVES, KEPT_BF16 };

/* Shapes: B requests, G groups, R queries a group, K head size, S capacity, P prefix. */
typedef struct {
    const float *q, *k, *v;                                /* [B, G·R, K], [B, G, K], [B, G, K] */
    void *keys, *values;                                   /* [B or more, G, S, K], see `kept` */
    const int64_t *places;                                 /* [B]: where the new key goes, below S */
    const void *const *prefix_keys, *const *prefix_values; /* G packed matrices each: [P, K], [K, P] */
    float *out;                                            /* [B, G·R, K] */
    int64_t requests, groups, repeat, size, capacity, prefix; /* B, G, R, K, S, P */
    int64_t window;                                        /* 0: none. With a prefix it must be 0 */
    int32_t kept;                                          /* KEPT_FLOATS, KEPT_HALVES or KEPT_BF16 */
    float scale, cap;                                      /* of the scores; cap 0: none */
    /* [B]: the slot of each request, whose keys and values are in the cache already, up to its place. NULL:
     * request b has slot b, and its new key and value are put there first. */
    const int64_t *slots;
} CachedAttention;

/* Returns 0, or −1 if memory runs out. See cached_attention_loops.h. */
int rl_cached_attention(const CachedAttention *attention, int threads);

enum { QUERIES = 3 };        /* own cache: this many queries meet a key at once */
enum { CHUNK_QUERIES = 48 }; /* prefix: about this many queries meet a panel while the nearest cache has it */

/* One thread's memory. N is the number of queries of a run; x̂ is x rounded up to whole panels. */
typedef struct {
    const float **rows;   /* [N] pointers to the queries, later to their exponentials */
    float *own;           /* [QUERIES, Ŝ] scores over a request's own cache, later their exponentials */
    float *scores;        /* [N, P̂] the same over the prefix */
    float *shared;        /* [N, K̂] Σ e^(score − largest) · value, over the prefix */
    float *largest, *sum; /* [N], [N] of the prefix's scores and exponentials */
    float *rounded;       /* what a bfloat16 product rounds; see rounded_floats */
} CachedScratch;

static inline int64_t padded(int64_t count) { return (count + PANEL - 1) / PANEL * PANEL; }

/* Inputs of a packed matrix: bfloat16 has whole blocks of them. */
static inline int64_t inputs_of(int64_t count, int narrow)
{
    return narrow ? (count + BLOCK - 1) / BLOCK * BLOCK : count;
}

/* Bytes of so many packed numbers. */
static inline int64_t bytes_of(int64_t count, int narrow) { return count * (narrow ? 2 : 4); }

/* The room, in floats, that a bfloat16 product wants for rows of so many inputs, and for two panels. */
static inline int64_t rounded_floats(int64_t rows, int64_t inputs)
{
    return rows * (inputs_of(inputs, 1) + PANEL) + 2 * PANEL * inputs_of(inputs, 1);
}

/* How many rows with `repeat` queries each are one chunk of queries. */
static inline int64_t rows_of_chunk(int64_t repeat)
{
    return repeat < CHUNK_QUERIES ? CHUNK_QUERIES / repeat : 1;
}

#endif
