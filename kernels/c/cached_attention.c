/* Attention of a generation step, divided among threads. cached_attention_loops.h says what is computed. */
#include "loops.h"
#include "thread_pool.h"
#include <stdlib.h>

/* Divide one thread's memory. `floats` receives its length; with memory NULL nothing else is done. */
static CachedScratch divide(const CachedAttention *a, float *memory, size_t *floats)
{
    size_t n = a->prefix ? (size_t)padded(rows_of_chunk(a->repeat) * a->repeat) : 0;
    size_t own = (size_t)(QUERIES * padded(a->capacity));
    size_t scores = n * (size_t)padded(a->prefix), shared = n * (size_t)padded(a->size);
    size_t rows = n * sizeof(float *) / sizeof(float);
    int64_t longer = a->prefix > a->size ? a->prefix : a->size;
    size_t rounded = n && a->kept == KEPT_BF16 ? (size_t)rounded_floats((int64_t)n, longer) : 0;
    *floats = rows + own + scores + shared + 2 * n + rounded; /* each a multiple of a panel */
    if (!memory)
        return (CachedScratch){0};
    CachedScratch s = {.rows = (const float **)memory, .own = memory + rows};
    s.scores = s.own + own, s.shared = s.scores + scores, s.largest = s.shared + shared,
    s.sum = s.largest + n, s.rounded = s.sum + n;
    return s;
}

typedef struct {
    const CachedAttention *attention;
    float *memory;
} Work;

static void attend(void *context, int part, int parts)
{
    const Work *w = context;
    int64_t pairs = w->attention->requests * w->attention->groups;
    size_t floats;
    divide(w->attention, NULL, &floats);
    CachedScratch scratch = divide(w->attention, w->memory + (size_t)part * floats, &floats);
    rl_loops()->attend_cached(w->attention, pairs * part / parts, pairs * (part + 1) / parts, &scratch);
}

int rl_cached_attention(const CachedAttention *attention, int threads)
{
    threads = threads < 1 ? 1 : threads > 64 ? 64 : threads;
    if (attention->requests * attention->groups < threads)
        threads = (int)(attention->requests * attention->groups);
    size_t floats;
    divide(attention, NULL, &floats);
    /* Vectors of a whole line of the cache must not straddle two. */
    Work work = {attention, aligned_alloc(64, (size_t)threads * floats * sizeof(float))};
    if (!work.memory)
        return -1;
    rl_parallel(attend, &work, threads);
    free(work.memory);
    return 0;
}
