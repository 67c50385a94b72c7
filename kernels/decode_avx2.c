/* The loops of decode_loops.h compiled for AVX2 with FMA. */
#include "tiles.h"
#if defined(__x86_64__)
#include <math.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#include "decode_loops.h"

void rl_attend_avx2(const Decode *d, int64_t first, int64_t end, const Scratch *s) { attend(d, first, end, s); }

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
