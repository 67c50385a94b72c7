/* Attention of packed sequences, divided among threads. sequence_attention_loops.h says what is computed. */
#include "loops.h"
#include "thread_pool.h"
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* Vectors of a whole line of the cache must not straddle two. */
static void *get(size_t bytes) { return aligned_alloc(64, (bytes / 64 + 1) * 64); }

/* The rows of a sequence, rounded up as its packed keys and values need. */
static int64_t packed_rows(const SequenceAttention *a, int64_t b)
{
    return inputs_of(padded(a->offsets[b + 1] - a->offsets[b]), (int)a->narrow);
}

/* Divide one thread's memory. `floats` receives its length; with memory NULL nothing else is done. */
static SequenceScratch divide(const SequenceAttention *a, float *memory, size_t *floats)
{
    size_t queries = (size_t)padded(rows_of_chunk(a->repeat) * a->repeat);
    size_t all = (size_t)padded(TASK_ROWS * a->repeat), rounded = (size_t)padded(a->size);
    size_t pointers = queries * sizeof(float *) / sizeof(float);
    int64_t longer = a->size > BLOCK_KEYS ? a->size : BLOCK_KEYS;
    size_t narrow = a->narrow ? (size_t)rounded_floats((int64_t)queries, longer) : 0;
    *floats = pointers + queries * (BLOCK_KEYS + rounded + 2) + 2 * all + narrow;
    if (!memory)
        return (SequenceScratch){0};
    SequenceScratch s = {.rows = (const float **)memory, .scores = memory + pointers};
    s.part = s.scores + queries * BLOCK_KEYS, s.keep = s.part + queries * rounded, s.more = s.keep + queries;
    s.largest = s.more + queries, s.sum = s.largest + all, s.rounded = s.sum + all;
    return s;
}

typedef struct {
    const SequenceAttention *attention;
    float *memory;
    char *keys, *values;
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

/* The same, rounded to bfloat16. Inputs go in whole blocks, of which those that are missing are 0. */
static void pack_narrow(const SequenceAttention *d, int64_t g, int64_t first, int64_t count, uint16_t *keys,
                        uint16_t *values)
{
    const int64_t size = d->size, step = d->groups * size, inputs = inputs_of(size, 1),
                  rows = inputs_of(count, 1);
    const float *k = d->k + first * step + g * size, *v = d->v + first * step + g * size;
    for (int64_t s = 0; s < rows; s++)
        for (int64_t j = 0; j < size; j += BLOCK) {
            const int64_t left = s < count ? size - j : 0, n = left < BLOCK ? left : BLOCK;
            uint16_t of_key[BLOCK] = {0}, of_value[BLOCK] = {0};
            round_to_bf16(k + s * step + j, n, of_key);
            round_to_bf16(v + s * step + j, n, of_value);
            uint16_t *key = keys + s / PANEL * PANEL * inputs, *value = values + bf16_at(0, s);
            for (int64_t i = 0; i < BLOCK; i += 2)
                memcpy(key + bf16_at(s, j + i), of_key + i, 2 * sizeof *key);
            for (int64_t i = 0; i < BLOCK && j + i < padded(size); i++)
                value[(j + i) / PANEL * PANEL * rows + bf16_at(j + i, 0)] = of_value[i];
        }
}

static void pack(void *context, int part, int parts)
{
    Work *w = context;
    const SequenceAttention *d = w->attention;
    const int narrow = (int)d->narrow;
    (void)part, (void)parts;
    for (int64_t claimed; (claimed = atomic_fetch_add(&w->packed, 1)) < d->sequences * d->groups;) {
        const int64_t g = claimed / d->sequences, b = claimed % d->sequences;
        const int64_t place = g * w->places[d->sequences] + w->places[b];
        for (int64_t start = d->offsets[b], s = 0; s < d->offsets[b + 1] - start; s += BLOCK_KEYS) {
            int64_t left = d->offsets[b + 1] - start - s, count = left < BLOCK_KEYS ? left : BLOCK_KEYS;
            void *keys = w->keys + bytes_of((place + s) * inputs_of(d->size, narrow), narrow),
                 *values = w->values + bytes_of((place + s) * padded(d->size), narrow);
            if (narrow)
                pack_narrow(d, g, start + s, count, keys, values);
            else
                pack_block(d, g, start + s, count, keys, values);
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
        rows += packed_rows(&a, b);
    }
    if (!a.count)
        return 0;
    threads = threads < 1 ? 1 : threads > 64 ? 64 : threads;
    const int narrow = (int)a.narrow;
    size_t floats;
    divide(&a, NULL, &floats);
    int64_t *tasks = malloc((size_t)(a.count * 2 + a.sequences + 1) * sizeof(int64_t)),
            *places = tasks + a.count * 2;
    Work work = {
        .attention = &a, .memory = get((size_t)threads * floats * sizeof(float)), .places = places,
        .keys = get((size_t)bytes_of(a.groups * rows * inputs_of(a.size, narrow), narrow)),
        .values = get((size_t)bytes_of(a.groups * rows * padded(a.size), narrow))};
    int failed = !tasks || !work.memory || !work.keys || !work.values;
    if (!failed) {
        places[0] = 0;
        for (int64_t b = 0; b < a.sequences; b++) {
            for (int64_t row = a.offsets[b]; row < a.offsets[b + 1]; row += TASK_ROWS, n++)
                tasks[2 * n] = b, tasks[2 * n + 1] = row;
            places[b + 1] = places[b] + packed_rows(&a, b);
        }
        a.tasks = tasks;
        rl_parallel(pack, &work, threads);
        rl_parallel(attend, &work, threads);
    }
    free(tasks);
    free(work.memory), free(work.keys), free(work.values);
    return failed ? -1 : 0;
}
