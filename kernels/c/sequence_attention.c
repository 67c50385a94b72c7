/* Attention of packed sequences, divided among threads. sequence_attention_loops.h says what is computed. */
#include "loops.h"
#include "thread_pool.h"
#include <stdatomic.h>
#include <stdlib.h>

enum { ALIGNED = 64 / sizeof(float) }; /* vectors of a whole line of the cache must not straddle two */

static float *get(size_t floats) { return aligned_alloc(64, (floats + ALIGNED) / ALIGNED * 64); }

/* Divide one thread's memory. `floats` receives its length; with memory NULL nothing else is done. */
static SequenceScratch divide(const SequenceAttention *a, float *memory, size_t *floats)
{
    size_t queries = (size_t)padded(rows_of_chunk(a->repeat) * a->repeat);
    size_t all = (size_t)padded(TASK_ROWS * a->repeat), rounded = (size_t)padded(a->size);
    size_t pointers = queries * sizeof(float *) / sizeof(float);
    *floats = pointers + queries * (BLOCK_KEYS + rounded + 2) + 2 * all;
    if (!memory)
        return (SequenceScratch){0};
    SequenceScratch s = {.rows = (const float **)memory, .scores = memory + pointers};
    s.part = s.scores + queries * BLOCK_KEYS, s.keep = s.part + queries * rounded, s.more = s.keep + queries;
    s.largest = s.more + queries, s.sum = s.largest + all;
    return s;
}

typedef struct {
    const SequenceAttention *attention;
    float *memory, *keys, *values;
    const int64_t *places; /* see SequenceScratch */
    atomic_llong packed, next; /* the first sequence and group, and the first task, that no thread has
                                  claimed: they differ in size */
} Work;

/* Pack a block of keys and values of group g: rows [first, first + count). */
static void pack_block(const SequenceAttention *d, int64_t g, int64_t first, int64_t count, float *keys,
                       float *values)
{
    const int64_t size = d->size, step = d->groups * size;
    const float *k = d->k + first * step + g * size, *v = d->v + first * step + g * size;
    for (int64_t s = 0; s < padded(count); s++) {
        float *to = keys + s / PANEL * PANEL * size + s % PANEL;
        for (int64_t j = 0; j < size; j++)
            to[j * PANEL] = s < count ? k[s * step + j] : 0.0f;
    }
    for (int64_t column = 0; column < size; column += PANEL)
        for (int64_t s = 0; s < count; s++) {
            float *to = values + column * count + s * PANEL;
            for (int64_t j = 0; j < PANEL; j++)
                to[j] = column + j < size ? v[s * step + column + j] : 0.0f;
        }
}

static void pack(void *context, int part, int parts)
{
    Work *w = context;
    const SequenceAttention *d = w->attention;
    (void)part, (void)parts;
    for (int64_t claimed; (claimed = atomic_fetch_add(&w->packed, 1)) < d->sequences * d->groups;) {
        const int64_t g = claimed / d->sequences, b = claimed % d->sequences;
        const int64_t place = g * w->places[d->sequences] + w->places[b];
        for (int64_t start = d->offsets[b], s = 0; s < d->offsets[b + 1] - start; s += BLOCK_KEYS) {
            int64_t left = d->offsets[b + 1] - start - s;
            pack_block(d, g, start + s, left < BLOCK_KEYS ? left : BLOCK_KEYS,
                       w->keys + (place + s) * d->size, w->values + (place + s) * padded(d->size));
        }
    }
}

static void attend(void *context, int part, int parts)
{
    Work *w = context;
    (void)parts;
    size_t floats;
    divide(w->attention, NULL, &floats);
    SequenceScratch scratch = divide(w->attention, w->memory + (size_t)part * floats, &floats);
    scratch.keys = w->keys, scratch.values = w->values, scratch.places = w->places;
    for (int64_t task; (task = atomic_fetch_add(&w->next, 1)) < w->attention->count * w->attention->groups;)
        rl_loops()->attend_sequence(w->attention, task, &scratch);
}

int rl_sequence_attention(const SequenceAttention *attention, int threads)
{
    SequenceAttention a = *attention;
    int64_t rows = 0, n = 0;
    for (int64_t b = 0; b < a.sequences; b++) {
        a.count += (a.offsets[b + 1] - a.offsets[b] + TASK_ROWS - 1) / TASK_ROWS;
        rows += padded(a.offsets[b + 1] - a.offsets[b]);
    }
    if (!a.count)
        return 0;
    threads = threads < 1 ? 1 : threads > 64 ? 64 : threads;
    size_t floats, kept = (size_t)(a.groups * rows);
    divide(&a, NULL, &floats);
    int64_t *tasks = malloc((size_t)(a.count * 2 + a.sequences + 1) * sizeof(int64_t)),
            *places = tasks + a.count * 2;
    Work work = {.attention = &a, .memory = get((size_t)threads * floats), .places = places,
                 .keys = get(kept * (size_t)a.size), .values = get(kept * (size_t)padded(a.size))};
    int failed = !tasks || !work.memory || !work.keys || !work.values;
    if (!failed) {
        places[0] = 0;
        for (int64_t b = 0; b < a.sequences; b++) {
            for (int64_t row = a.offsets[b]; row < a.offsets[b + 1]; row += TASK_ROWS, n++)
                tasks[2 * n] = b, tasks[2 * n + 1] = row;
            places[b + 1] = places[b] + padded(a.offsets[b + 1] - a.offsets[b]);
        }
        a.tasks = tasks;
        rl_parallel(pack, &work, threads);
        rl_parallel(attend, &work, threads);
    }
    free(tasks);
    free(work.memory), free(work.keys), free(work.values);
    return failed ? -1 : 0;
}
