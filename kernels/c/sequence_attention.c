/* Attention of packed sequences, divided among threads. sequence_attention_loops.h says what is computed. */
#include "loops.h"
#include "thread_pool.h"
#include <stdatomic.h>
#include <stdlib.h>

/* Divide one thread's memory. `floats` receives its length; with memory NULL nothing else is done. */
static SequenceScratch divide(const SequenceAttention *a, float *memory, size_t *floats)
{
    size_t queries = (size_t)(rows_of_chunk(a->repeat) * a->repeat), all = (size_t)(TASK_ROWS * a->repeat);
    size_t size = (size_t)a->size, rounded = (size_t)padded(a->size);
    size_t pointers = queries * sizeof(float *) / sizeof(float);
    *floats = pointers + queries * (BLOCK_KEYS + rounded + 2) + BLOCK_KEYS * (size + rounded) + 2 * all;
    *floats += *floats % 2; /* so that the next thread's pointers are aligned */
    if (!memory)
        return (SequenceScratch){0};
    SequenceScratch s = {.rows = (const float **)memory, .scores = memory + pointers};
    s.part = s.scores + queries * BLOCK_KEYS, s.keep = s.part + queries * rounded, s.more = s.keep + queries;
    s.keys = s.more + queries, s.values = s.keys + BLOCK_KEYS * size;
    s.largest = s.values + BLOCK_KEYS * rounded, s.sum = s.largest + all;
    return s;
}

typedef struct {
    const SequenceAttention *attention;
    float *memory;
    atomic_llong next; /* the first task that no thread has claimed: tasks differ in size */
} Work;

static void attend(void *context, int part, int parts)
{
    Work *w = context;
    (void)parts;
    size_t floats;
    divide(w->attention, NULL, &floats);
    SequenceScratch scratch = divide(w->attention, w->memory + (size_t)part * floats, &floats);
    for (int64_t task; (task = atomic_fetch_add(&w->next, 1)) < w->attention->count * w->attention->groups;)
        rl_loops()->attend_sequence(w->attention, task, &scratch);
}

int rl_sequence_attention(const SequenceAttention *attention, int threads)
{
    SequenceAttention a = *attention;
    for (int64_t b = 0; b < a.sequences; b++)
        a.count += (a.offsets[b + 1] - a.offsets[b] + TASK_ROWS - 1) / TASK_ROWS;
    if (!a.count)
        return 0;
    threads = threads < 1 ? 1 : threads > 64 ? 64 : threads;
    size_t floats;
    divide(&a, NULL, &floats);
    int64_t *tasks = malloc((size_t)a.count * 2 * sizeof(int64_t)), n = 0;
    Work work = {.attention = &a, .memory = malloc((size_t)threads * floats * sizeof(float))};
    int failed = !tasks || !work.memory;
    if (!failed) {
        for (int64_t b = 0; b < a.sequences; b++)
            for (int64_t row = a.offsets[b]; row < a.offsets[b + 1]; row += TASK_ROWS, n++)
                tasks[2 * n] = b, tasks[2 * n + 1] = row;
        a.tasks = tasks;
        rl_parallel(attend, &work, threads);
    }
    free(tasks);
    free(work.memory);
    return failed ? -1 : 0;
}
