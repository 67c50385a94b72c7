/* Attention of packed sequences (sequences.c), for the other kernels. */
#ifndef REDLITE_SEQUENCES_H
#define REDLITE_SEQUENCES_H
#include <stdint.h>

/* q, out [T, G·R, K], k and v [T, G, K] of `sequences` packed end to end, where offsets [B + 1] says; parents [B], the sequence each one follows, or −1, or
 * NULL where none does. prefix_keys, prefix_values: G packed matrices each, read where prefix > 0; window 0: none. Returns 0, or −1 for want of memory. */
int rl_sequence_attention(const float *q, const float *k, const float *v, const int64_t *offsets, const int64_t *parents, int64_t sequences,
                          const void *const *prefix_keys, const void *const *prefix_values, float *out, int64_t groups, int64_t repeat, int64_t size,
                          int64_t prefix, int64_t window, float scale, int threads);

#endif
