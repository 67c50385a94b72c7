/* Attention of packed sequences: its arguments, and what sequence_attention.c shares with its loops. */
#ifndef REDLITE_SEQUENCE_ATTENTION_H
#define REDLITE_SEQUENCE_ATTENTION_H
#include "cached_attention.h"

enum { TASK_ROWS = 64, BLOCK_KEYS = 512 };

/* Shapes: T rows, B sequences, N tasks a group, G groups, R queries a group, K head size, P prefix. */
typedef struct {
    const float *q, *k, *v;                                /* [T, G·R, K], [T, G, K], [T, G, K] */
    const int64_t *offsets;                                /* [B + 1]: where each sequence's rows begin */
    const int64_t *parents;                                /* [B] what each follows, or −1; NULL: all −1 */
    const void *const *prefix_keys, *const *prefix_values; /* G packed matrices each: [P, K], [K, P] */
    float *out;                                            /* [T, G·R, K] */
    int64_t sequences, groups, repeat, size, prefix;       /* B, G, R, K, P */
    int64_t window;                                        /* 0: none. It bounds a sequence's own rows only */
    float scale, cap;                                      /* of the scores; cap 0: none */
    int64_t count;                                         /* N; the caller leaves this and `tasks` zero */
    const int64_t *tasks;                                  /* [N, 2] a sequence, and the task's first row */
    int64_t narrow; /* 1: keys and values are rounded to bfloat16, the prefix's are already; see multiply */
} SequenceAttention;

/* Returns 0, or −1 if memory runs out. See sequence_attention_loops.h. */
int rl_sequence_attention(const SequenceAttention *attention, int threads);

/* One thread's memory. C is the number of queries that meet a block at once; x̂ is x rounded up to whole
 * panels. */
typedef struct {
    const float **rows;   /* [C] pointers to the queries, later to their exponentials */
    float *scores;        /* [C, BLOCK_KEYS] */
    float *part;          /* [C, K̂] Σ e^(score − largest) · value, over one block */
    float *keep, *more;   /* [C] factors of the sums so far, and of the block's sums */
    float *largest, *sum; /* [TASK_ROWS · R] of each query, so far */
    float *rounded;       /* what a bfloat16 product rounds; see rounded_floats */
    /* Of all threads: the rows of each sequence, packed block by block, G times. Narrow: bfloat16. */
    const char *keys, *values; /* [G, N, K], [G, N, K̂], where N is the rows of all, each rounded up */
    const int64_t *places;      /* [B + 1]: where each sequence's begin; then N */
} SequenceScratch;

#endif
