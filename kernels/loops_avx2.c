/* The loops that are written on vector.h, compiled for AVX2 with FMA and F16C. */
#include "tiles.h"
#if defined(__x86_64__)
#define REDLITE_F16C
#include <immintrin.h>
#include <math.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#include "block_loops.h"
#include "sequences_loops.h"

void rl_run_step_avx2(const Step *s, int64_t first, int64_t end) { run_step(s, first, end); }
void rl_into_cache_avx2(void *to, int64_t at, const float *from, int64_t count, int half) { into_cache(to, at, from, count, half); }
void rl_as_cached_avx2(float *x, int64_t count) { as_cached(x, count); }
void rl_attend_avx2(const Decode *d, int64_t first, int64_t end, const Scratch *s) { attend(d, first, end, s); }
void rl_attend_task_avx2(const Sequences *d, int64_t task, const Room *room) { attend_task(d, task, room); }

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
