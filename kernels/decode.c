/* Attention of a generation step: decode_loops.h says what is computed; here it is divided among threads. */
#include "redlite.h"
#include "decode.h"
#include "decode_loops.h"
#include "isa.h"
#include "pool.h"
#include <stdlib.h>

/* The parts of a thread's memory, which is `floats` long. */
static Scratch parts_of(const Decode *d, float *memory, size_t *floats)
{
    size_t n = d->prefix ? (size_t)whole(run_requests(d) * d->repeat) : 0;
    size_t own = (size_t)(QUERIES * whole(d->capacity)), scores = n * (size_t)whole(d->prefix), shared = n * (size_t)whole(d->size);
    size_t rows = n * sizeof(float *) / sizeof(float);
    *floats = rows + own + scores + shared + 2 * n;
    if (!memory)
        return (Scratch){0};
    Scratch s = {.rows = (const float **)memory, .own = memory + rows};
    s.scores = s.own + own, s.shared = s.scores + scores, s.largest = s.shared + shared, s.sum = s.largest + n;
    return s;
}

#if defined(__x86_64__)
void rl_into_cache_avx2(void *to, int64_t at, const float *from, int64_t count, int half);
void rl_as_cached_avx2(float *x, int64_t count);
void rl_attend_avx2(const Decode *d, int64_t first, int64_t end, const Scratch *s);
#endif
static void attend_portable(const Decode *d, int64_t first, int64_t end, const Scratch *s) { attend(d, first, end, s); }

void rl_into_cache(void *to, int64_t at, const float *from, int64_t count, int half)
{
#if defined(__x86_64__)
    if (rl_level() >= AVX2) {
        rl_into_cache_avx2(to, at, from, count, half);
        return;
    }
#endif
    into_cache(to, at, from, count, half);
}

void rl_as_cached(float *x, int64_t count)
{
#if defined(__x86_64__)
    if (rl_level() >= AVX2) {
        rl_as_cached_avx2(x, count);
        return;
    }
#endif
    as_cached(x, count);
}

typedef struct {
    const Decode *decode;
    float *memory;
    void (*attend)(const Decode *, int64_t, int64_t, const Scratch *);
} Work;

static void share(void *context, int part, int parts)
{
    const Work *w = context;
    int64_t pairs = w->decode->requests * w->decode->groups;
    size_t floats;
    parts_of(w->decode, NULL, &floats);
    Scratch scratch = parts_of(w->decode, w->memory + (size_t)part * floats, &floats);
    w->attend(w->decode, pairs * part / parts, pairs * (part + 1) / parts, &scratch);
}

RL_EXPORT int rl_cached_attention(const float *q, const float *k, const float *v, void *keys, void *values, int half, const int64_t *places,
                                  const void *const *prefix_keys, const void *const *prefix_values, float *out, int64_t requests, int64_t groups,
                                  int64_t repeat, int64_t size, int64_t capacity, int64_t prefix, int64_t window, float scale, int threads)
{
    Decode d = {.q = q, .k = k, .v = v, .keys = keys, .values = values, .half = half, .places = places, .prefix_keys = prefix_keys, .prefix_values = prefix_values,
                .requests = requests, .groups = groups, .repeat = repeat, .size = size, .capacity = capacity, .prefix = prefix, .window = window,
                .scale = scale, .out = out};
    threads = threads < 1 ? 1 : threads > 64 ? 64 : threads;
    if (requests * groups < threads)
        threads = (int)(requests * groups);
    size_t floats;
    parts_of(&d, NULL, &floats);
    Work work = {&d, malloc((size_t)threads * floats * sizeof(float)), attend_portable};
    if (!work.memory)
        return -1;
#if defined(__x86_64__)
    if (rl_level() >= AVX2)
        work.attend = rl_attend_avx2;
#endif
    rl_parallel(share, &work, threads);
    free(work.memory);
    return 0;
}
