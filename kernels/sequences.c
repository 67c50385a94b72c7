/* Attention of packed sequences: sequences_loops.h says what is computed; here it is divided among threads. */
#include "redlite.h"
#include "isa.h"
#include "pool.h"
#include "sequences.h"
#include "sequences_loops.h"
#include <stdatomic.h>
#include <stdlib.h>

/* The parts of a thread's memory, which is `floats` long. */
static Room parts_of(const Sequences *d, float *memory, size_t *floats)
{
    size_t queries = (size_t)(chunk_rows(d) * d->repeat), size = (size_t)d->size, rounded = (size_t)whole(d->size), all = (size_t)(TASK_ROWS * d->repeat);
    size_t pointers = queries * sizeof(float *) / sizeof(float);
    *floats = pointers + queries * (BLOCK_KEYS + rounded + 2) + BLOCK_KEYS * (size + rounded) + 2 * all;
    *floats += *floats % 2; /* so that the next thread's pointers are aligned */
    if (!memory)
        return (Room){0};
    Room r = {.rows = (const float **)memory, .scores = memory + pointers};
    r.part = r.scores + queries * BLOCK_KEYS, r.keep = r.part + queries * rounded, r.more = r.keep + queries;
    r.keys = r.more + queries, r.values = r.keys + BLOCK_KEYS * size, r.largest = r.values + BLOCK_KEYS * rounded, r.sum = r.largest + all;
    return r;
}

#if defined(__x86_64__)
void rl_attend_task_avx2(const Sequences *d, int64_t task, const Room *room);
#endif
static void attend_task_portable(const Sequences *d, int64_t task, const Room *room) { attend_task(d, task, room); }

typedef struct {
    const Sequences *sequences;
    float *memory;
    void (*attend)(const Sequences *, int64_t, const Room *);
    atomic_llong next; /* task that nobody has claimed: they differ in size */
} Work;

static void share(void *context, int part, int parts)
{
    Work *w = context;
    (void)parts;
    size_t floats;
    parts_of(w->sequences, NULL, &floats);
    Room room = parts_of(w->sequences, w->memory + (size_t)part * floats, &floats);
    for (int64_t task; (task = atomic_fetch_add(&w->next, 1)) < w->sequences->count * w->sequences->groups;)
        w->attend(w->sequences, task, &room);
}

RL_EXPORT int rl_sequence_attention(const float *q, const float *k, const float *v, const int64_t *offsets, const int64_t *parents, int64_t sequences,
                          const void *const *prefix_keys, const void *const *prefix_values, float *out, int64_t groups, int64_t repeat, int64_t size,
                          int64_t prefix, int64_t window, float scale, int threads)
{
    int64_t count = 0;
    for (int64_t b = 0; b < sequences; b++)
        count += (offsets[b + 1] - offsets[b] + TASK_ROWS - 1) / TASK_ROWS;
    if (!count)
        return 0;
    int64_t *runs = malloc((size_t)count * 2 * sizeof(int64_t)), n = 0;
    Sequences d = {.q = q, .k = k, .v = v, .offsets = offsets, .parents = parents, .runs = runs, .prefix_keys = prefix_keys, .prefix_values = prefix_values,
                   .count = count, .groups = groups, .repeat = repeat, .size = size, .prefix = prefix, .window = window, .scale = scale, .out = out};
    threads = threads < 1 ? 1 : threads > 64 ? 64 : threads;
    size_t floats;
    parts_of(&d, NULL, &floats);
    Work work = {.sequences = &d, .memory = malloc((size_t)threads * floats * sizeof(float)), .attend = attend_task_portable};
    if (runs && work.memory) {
        for (int64_t b = 0; b < sequences; b++)
            for (int64_t row = offsets[b]; row < offsets[b + 1]; row += TASK_ROWS, n++)
                runs[2 * n] = b, runs[2 * n + 1] = row;
#if defined(__x86_64__)
        if (rl_level() >= AVX2)
            work.attend = rl_attend_task_avx2;
#endif
        rl_parallel(share, &work, threads);
    }
    int failed = !runs || !work.memory;
    free(runs);
    free(work.memory);
    return failed ? -1 : 0;
}
