/*
 * Attention of packed sequences: prompts, and what is scored. The rows of a sequence see a prefix that all sequences share, then
 * all rows of its parent, another sequence, where it has one, then its own rows up to themselves.
 *
 * A task is a run of rows of one sequence, for one group of heads. Keys come in blocks; those of the sequences are packed
 * by each task, as the prefix's are already. The parts of a softmax that the blocks are meet by their largest scores and sums
 * (kernels/README.md, "Attention"), in float32. Blocks and the order of every sum depend on the prefix and a row's own sequence alone, so its
 * result does not depend on what runs beside it (of finite numbers; those of later rows are multiplied by 0).
 *
 * sequences.c compiles this file for any processor and loops_avx2.c for AVX2, as decode_loops.h says.
 */
#ifndef REDLITE_SEQUENCES_LOOPS_H
#define REDLITE_SEQUENCES_LOOPS_H
#include "decode_loops.h"

enum { TASK_ROWS = 64, BLOCK_KEYS = 512 };

/* Shapes: T rows, B sequences, N runs, G groups, R queries a group, K head size, P prefix; [x̂] is x rounded up to whole panels. */
typedef struct {
    const float *q, *k, *v;         /* [T, G·R, K], [T, G, K] */
    const int64_t *offsets;         /* [B + 1]: where each sequence's rows begin */
    const int64_t *parents;         /* [B], −1 where there is none; NULL: none has one */
    const int64_t *runs;            /* [N, 2]: a sequence, and the first of up to TASK_ROWS rows of it */
    const void *const *prefix_keys, *const *prefix_values; /* G float32 matrices each, packed: [P, K] and [K, P] */
    int64_t count, groups, repeat, size, prefix, window;   /* count: N; window 0: none. It bounds the own rows alone */
    float scale;
    float *out;                     /* [T, G·R, K] */
} Sequences;

/* A thread's memory. C: the queries that meet a block at once. */
typedef struct {
    const float **rows;    /* [C] where each query, then its exponentials, lie */
    float *scores;         /* [C, BLOCK_KEYS] */
    float *part;           /* [C, K̂] Σ e^(s − largest) v of a block */
    float *keep, *more;    /* [C] what the sums so far, and the block's, are multiplied by */
    float *keys, *values;  /* [BLOCK_KEYS, K], [K̂, BLOCK_KEYS]: a block, packed */
    float *largest, *sum;  /* [TASK_ROWS · R] of each query, so far */
} Room;

/* A block of `count` keys: panels of keys, and panels of values that are `stride` floats apart. `first`: the row of the first key, which
 * rows from there on see, and within the window; −1: every row sees all of them. */
typedef struct {
    const float *keys, *values;
    int64_t stride, count, first;
} Block;

/* A task: rows [first, end) for group g. */
typedef struct {
    int64_t g, first, end;
} Task;

/* Where the i-th query of group g from row `first` on lies in q and out, counted in floats. */
INLINE int64_t query(const Sequences *d, int64_t g, int64_t first, int64_t i)
{
    return (((first + i / d->repeat) * d->groups + g) * d->repeat + i % d->repeat) * d->size;
}

INLINE int64_t chunk_rows(const Sequences *d) { return d->repeat < CHUNK_QUERIES ? CHUNK_QUERIES / d->repeat : 1; }

/* The keys and values of rows [first, first + count). */
INLINE Block packed_rows(const Sequences *d, int64_t g, int64_t first, int64_t count, const Room *room)
{
    const int64_t size = d->size, step = d->groups * size;
    const float *k = d->k + first * step + g * size, *v = d->v + first * step + g * size;
    for (int64_t s = 0; s < whole(count); s++) {
        float *to = room->keys + s / PANEL * PANEL * size + s % PANEL;
        for (int64_t j = 0; j < size; j++)
            to[j * PANEL] = s < count ? k[s * step + j] : 0.0f;
    }
    for (int64_t column = 0; column < size; column += PANEL)
        for (int64_t s = 0; s < count; s++) {
            float *to = room->values + column * count + s * PANEL;
            for (int64_t j = 0; j < PANEL; j++)
                to[j] = column + j < size ? v[s * step + column + j] : 0.0f;
        }
    return (Block){.keys = room->keys, .values = room->values, .stride = count * PANEL, .count = count, .first = -1};
}

/* scores of `seen` keys → exponentials, those that row does not see 0; what they and the sums so far are multiplied by to meet. */
INLINE void join(const Sequences *d, const Block *b, int64_t row, int64_t seen, float *scores, float *largest, float *sum, float *keep, float *more)
{
    int64_t until = seen, from = 0, stride = whole(seen);
    if (b->first >= 0) {
        until = row + 1 - b->first < seen ? row + 1 - b->first : seen;
        from = d->window && row + 1 - d->window > b->first ? row + 1 - d->window - b->first : 0;
    }
    *keep = 1.0f, *more = 0.0f;
    if (until <= from) { /* nothing */
        memset(scores, 0, (size_t)stride * sizeof(float));
        return;
    }
    for (int64_t j = 0; j < from; j++)
        scores[j] = -INFINITY;
    for (int64_t j = until; j < stride; j++)
        scores[j] = -INFINITY;
    float here, total_here = exponentials(scores, stride, &here), top = here > *largest ? here : *largest;
    *keep = expf(*largest - top), *more = expf(here - top);
    *sum = *keep * *sum + *more * total_here;
    *largest = top;
}

/* A block for the rows [first, end) of a task. */
INLINE void add_chunk(const Sequences *d, const Task *t, int64_t first, int64_t end, const Block *b, const Room *room)
{
    const int64_t size = d->size, repeat = d->repeat, queries = (end - first) * repeat, done = (first - t->first) * repeat;
    const int64_t seen = b->first >= 0 && end - b->first < b->count ? end - b->first : b->count, stride = whole(seen);
    if (seen <= 0)
        return;
    for (int64_t i = 0; i < queries; i++)
        room->rows[i] = d->q + query(d, t->g, first, i);
    multiply(room->rows, b->keys, queries, size, seen, size * PANEL, d->scale, room->scores);
    for (int64_t i = 0; i < queries; i++) {
        room->rows[i] = room->scores + i * stride;
        join(d, b, first + i / repeat, seen, room->scores + i * stride, room->largest + done + i, room->sum + done + i, room->keep + i, room->more + i);
    }
    multiply(room->rows, b->values, queries, seen, size, b->stride, 1.0f, room->part);
    for (int64_t i = 0; i < queries; i++) {
        float *out = d->out + query(d, t->g, first, i), *part = room->part + i * whole(size);
        int64_t j = 0;
        for (; j + LANES <= size; j += LANES)
            store(out + j, load(out + j) * all(room->keep[i]) + load(part + j) * all(room->more[i]));
        for (; j < size; j++)
            out[j] = out[j] * room->keep[i] + part[j] * room->more[i];
    }
}

INLINE void add_block(const Sequences *d, const Task *t, const Block *b, const Room *room)
{
    for (int64_t first = t->first, end; first < t->end; first = end) {
        end = first + chunk_rows(d) < t->end ? first + chunk_rows(d) : t->end;
        add_chunk(d, t, first, end, b, room);
    }
}

INLINE void attend_task(const Sequences *d, int64_t task, const Room *room)
{
    const int64_t *run = d->runs + 2 * (d->count - 1 - task % d->count); /* the later rows of a long sequence, with the most keys, come first */
    const int64_t size = d->size, repeat = d->repeat, start = d->offsets[run[0]], end = d->offsets[run[0] + 1], parent = d->parents ? d->parents[run[0]] : -1;
    const Task t = {task / d->count, run[1], run[1] + TASK_ROWS < end ? run[1] + TASK_ROWS : end};
    const int64_t queries = (t.end - t.first) * repeat;
    for (int64_t i = 0; i < queries; i++) {
        memset(d->out + query(d, t.g, t.first, i), 0, (size_t)size * sizeof(float));
        room->largest[i] = -INFINITY, room->sum[i] = 0.0f;
    }
    for (int64_t s = 0; s < d->prefix; s += BLOCK_KEYS) {
        const float *keys = d->prefix_keys[t.g], *values = d->prefix_values[t.g];
        Block b = {.keys = keys + s * size, .values = values + s * PANEL, .stride = d->prefix * PANEL, .count = d->prefix - s < BLOCK_KEYS ? d->prefix - s : BLOCK_KEYS, .first = -1};
        add_block(d, &t, &b, room);
    }
    for (int64_t s = parent < 0 ? 0 : d->offsets[parent], last = parent < 0 ? 0 : d->offsets[parent + 1]; s < last; s += BLOCK_KEYS) {
        Block b = packed_rows(d, t.g, s, last - s < BLOCK_KEYS ? last - s : BLOCK_KEYS, room);
        add_block(d, &t, &b, room);
    }
    for (int64_t s = start; s < t.end; s += BLOCK_KEYS) {
        int64_t count = t.end - s < BLOCK_KEYS ? t.end - s : BLOCK_KEYS;
        if (d->window && s + count + d->window <= t.first + 1) /* behind every row's window */
            continue;
        Block b = packed_rows(d, t.g, s, count, room);
        b.first = s;
        add_block(d, &t, &b, room);
    }
    for (int64_t i = 0; i < queries; i++) {
        float *out = d->out + query(d, t.g, t.first, i);
        for (int64_t j = 0; j < size; j++)
            out[j] /= room->sum[i];
    }
}

#endif
