/*
 * Attention of packed sequences: prompts, and what is scored. A row of a sequence sees a prefix that all
 * sequences share, then all rows of the sequence's parent if it has one, then its own sequence up to itself.
 *
 * A task is a run of rows of one sequence, for one group of heads. Keys come in blocks, which are packed
 * before the first task runs. Each block gives a partial softmax; partials are merged with a running maximum
 * and sum (kernels/README.md, "Attention"), in float32; narrow products round what they multiply.
 *
 * Blocks, and the order of every sum, depend on the prefix and a row's own sequence alone. So its result does
 * not depend on what runs beside it, as long as later rows are finite: they are multiplied by 0. See loops.h
 * for how this file is compiled.
 */
#ifndef REDLITE_SEQUENCE_ATTENTION_LOOPS_H
#define REDLITE_SEQUENCE_ATTENTION_LOOPS_H
#include "cached_attention_loops.h"

/* A block of `count` keys: panels of keys, and panels of values that are `stride` numbers apart. `first` is
 * the row of the first key: rows see the keys up to their own, within the window. −1: every row sees all. */
typedef struct {
    const char *keys, *values;
    int64_t stride, count, first;
} KeyBlock;

/* A task: rows [first, end) for group g. */
typedef struct {
    int64_t g, first, end;
} Task;

/* The place in q and out of group g's i-th query from row `first` on. */
INLINE int64_t query(const SequenceAttention *d, int64_t g, int64_t first, int64_t i)
{
    return (((first + i / d->repeat) * d->groups + g) * d->repeat + i % d->repeat) * d->size;
}

/* The block of a sequence's rows [first, first + count), which lies `behind` rows behind its start. */
INLINE KeyBlock packed_block(const SequenceAttention *d, int64_t g, int64_t b, int64_t behind,
                             const SequenceScratch *room)
{
    const int64_t left = d->offsets[b + 1] - d->offsets[b] - behind,
                  count = left < BLOCK_KEYS ? left : BLOCK_KEYS,
                  place = g * room->places[d->sequences] + room->places[b] + behind;
    const int narrow = (int)d->narrow;
    return (KeyBlock){room->keys + bytes_of(place * inputs_of(d->size, narrow), narrow),
                      room->values + bytes_of(place * padded(d->size), narrow),
                      .stride = inputs_of(count, narrow) * PANEL, .count = count, .first = -1};
}

/* Turn a query's scores of the first `seen` keys into exponentials, 0 for keys that its row does not see. i:
 * the query in the task, c: in the chunk. Sets the factors `keep` and `more` that merge the block with the
 * sums so far. */
INLINE void merge_scores(const SequenceAttention *d, const KeyBlock *b, int64_t row, int64_t seen,
                         float *scores, int64_t i, int64_t c, const SequenceScratch *room)
{
    int64_t until = seen, from = 0, stride = padded(seen);
    float *largest = room->largest + i, *sum = room->sum + i, *keep = room->keep + c, *more = room->more + c;
    if (b->first >= 0) {
        until = row + 1 - b->first < seen ? row + 1 - b->first : seen;
        from = d->window && row + 1 - d->window > b->first ? row + 1 - d->window - b->first : 0;
    }
    *keep = 1.0f, *more = 0.0f;
    if (until <= from) { /* the row sees no key of this block */
        memset(scores, 0, (size_t)stride * sizeof(float));
        return;
    }
    if (d->cap > 0)
        cap_scores(scores, seen, d->cap);
    for (int64_t j = 0; j < from; j++)
        scores[j] = -INFINITY;
    for (int64_t j = until; j < stride; j++)
        scores[j] = -INFINITY;
    float here, total_here = exponentials(scores, stride, &here), top = here > *largest ? here : *largest;
    *keep = expf(*largest - top), *more = expf(here - top);
    *sum = *keep * *sum + *more * total_here;
    *largest = top;
}

/* Add a block to the results of rows [first, end) of a task. */
INLINE void add_chunk(const SequenceAttention *d, const Task *t, int64_t first, int64_t end,
                      const KeyBlock *b, const SequenceScratch *room)
{
    const int narrow = (int)d->narrow;
    const int64_t size = d->size, repeat = d->repeat;
    const int64_t queries = (end - first) * repeat, done = (first - t->first) * repeat;
    const int64_t seen = b->first >= 0 && end - b->first < b->count ? end - b->first : b->count;
    const int64_t stride = padded(seen);
    if (seen <= 0)
        return;
    for (int64_t i = 0; i < queries; i++)
        room->rows[i] = d->q + query(d, t->g, first, i);
    multiply(room->rows, b->keys, queries, size, seen, inputs_of(size, narrow) * PANEL, d->scale,
             room->scores, narrow, room->rounded);
    for (int64_t i = 0; i < queries; i++) {
        room->rows[i] = room->scores + i * stride;
        merge_scores(d, b, first + i / repeat, seen, room->scores + i * stride, done + i, i, room);
    }
    multiply(room->rows, b->values, queries, seen, size, b->stride, 1.0f, room->part, narrow, room->rounded);
    for (int64_t i = 0; i < queries; i++) {
        float *out = d->out + query(d, t->g, first, i), *part = room->part + i * padded(size);
        int64_t j = 0;
        for (; j + LANES <= size; j += LANES)
            store(out + j, load(out + j) * all(room->keep[i]) + load(part + j) * all(room->more[i]));
        if (j < size)
            store_some(out + j, load_some(out + j, size - j, 0.0f) * all(room->keep[i])
                           + load(part + j) * all(room->more[i]), size - j);
    }
}

INLINE void add_block(const SequenceAttention *d, const Task *t, const KeyBlock *b,
                      const SequenceScratch *room)
{
    for (int64_t first = t->first, end; first < t->end; first = end) {
        end = first + rows_of_chunk(d->repeat);
        end = end < t->end ? end : t->end;
        add_chunk(d, t, first, end, b, room);
    }
}

INLINE void attend_sequence(const SequenceAttention *d, int64_t task, const SequenceScratch *room)
{
    const int narrow = (int)d->narrow;
    /* Backwards, since the later rows of a long sequence see the most keys: the longest tasks should start
     * first. */
    const int64_t *run = d->tasks + 2 * (d->count - 1 - task % d->count);
    const int64_t size = d->size, repeat = d->repeat, start = d->offsets[run[0]],
                  end = d->offsets[run[0] + 1];
    const int64_t parent = d->parents ? d->parents[run[0]] : -1;
    const Task t = {task / d->count, run[1], run[1] + TASK_ROWS < end ? run[1] + TASK_ROWS : end};
    const int64_t queries = (t.end - t.first) * repeat;
    for (int64_t i = 0; i < queries; i++) {
        memset(d->out + query(d, t.g, t.first, i), 0, (size_t)size * sizeof(float));
        room->largest[i] = -INFINITY, room->sum[i] = 0.0f;
    }
    for (int64_t s = 0; s < d->prefix; s += BLOCK_KEYS) {
        const char *keys = d->prefix_keys[t.g], *values = d->prefix_values[t.g];
        KeyBlock b = {keys + bytes_of(s * inputs_of(size, narrow), narrow),
                      values + bytes_of(s * PANEL, narrow), inputs_of(d->prefix, narrow) * PANEL,
                      d->prefix - s < BLOCK_KEYS ? d->prefix - s : BLOCK_KEYS, .first = -1};
        add_block(d, &t, &b, room);
    }
    for (int64_t s = 0; parent >= 0 && s < d->offsets[parent + 1] - d->offsets[parent]; s += BLOCK_KEYS) {
        KeyBlock b = packed_block(d, t.g, parent, s, room);
        add_block(d, &t, &b, room);
    }
    for (int64_t s = start; s < t.end; s += BLOCK_KEYS) {
        KeyBlock b = packed_block(d, t.g, run[0], s - start, room);
        if (d->window && s + b.count + d->window <= t.first + 1) /* behind every row's window */
            continue;
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
