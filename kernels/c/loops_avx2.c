/* The loops of loops.h for AVX2 with FMA and F16C. */
#include "loops.h"
#if defined(__x86_64__)
#define REDLITE_AVX2
#include <immintrin.h>
#include <math.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#include "cached_attention_loops.h"
#include "dequantise_loops.h"
#include "elementwise_loops.h"
#include "optimizer_loops.h"
#include "sequence_attention_loops.h"
#include "token_nll_loops.h"
#include "training_loops.h"
#include "unpack_loops.h"

extern const Loops rl_loops_avx2;
const Loops rl_loops_avx2 = LOOPS;
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
