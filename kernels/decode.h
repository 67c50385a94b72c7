/* Attention of a generation step (decode.c), for the other kernels. */
#ifndef REDLITE_DECODE_H
#define REDLITE_DECODE_H
#include <stdint.h>

/* `count` floats into a cache of floats, or of halves, from its number `at` on. */
void rl_into_cache(void *to, int64_t at, const float *from, int64_t count, int half);

int rl_cached_attention(const float *q, const float *k, const float *v, void *keys, void *values, int half, const int64_t *places, const void *const *prefix_keys,
                        const void *const *prefix_values, float *out, int64_t requests, int64_t groups, int64_t repeat, int64_t size, int64_t capacity,
                        int64_t prefix, int64_t window, float scale, int threads);

#endif
