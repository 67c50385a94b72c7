/* Attention of a generation step (decode.c), for the other kernels. */
#ifndef REDLITE_DECODE_H
#define REDLITE_DECODE_H
#include <stdint.h>

/* `count` floats into a cache of floats, or of halves, from its number `at` on. Halves are rounded to nearest; what is too large becomes the largest. */
void rl_into_cache(void *to, int64_t at, const float *from, int64_t count, int half);

/* Floats rounded in place to what a cache of halves would hold. */
void rl_as_cached(float *x, int64_t count);

/* See decode_loops.h. q [B, G·R, K], k and v [B, G, K], keys and values [≥ B, G, S, K] floats, or halves, places [B] below S, out [B, G·R, K];
 * prefix_keys, prefix_values: G pointers each, read where prefix > 0; window 0: none (and none with a prefix). Returns 0, or −1 for want of memory. */
int rl_cached_attention(const float *q, const float *k, const float *v, void *keys, void *values, int half, const int64_t *places, const void *const *prefix_keys,
                        const void *const *prefix_values, float *out, int64_t requests, int64_t groups, int64_t repeat, int64_t size, int64_t capacity,
                        int64_t prefix, int64_t window, float scale, int threads);

#endif
