/* The loops of loops.h for AVX-512 (F, BW, DQ and VL): 16 floats at a time, in twice as many registers. */
#include "loops.h"
#if defined(__x86_64__)
#define REDLITE_AVX512
#include <immintrin.h>
#include <math.h>
#if defined(REDLITE_EMULATED) /* a test has the instructions as functions */
#elif defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
#endif
#include "cached_attention_loops.h"
#include "dequantise_loops.h"
#include "elementwise_loops.h"
#include "optimizer_loops.h"
#include "sequence_attention_loops.h"
#include "token_nll_loops.h"
#include "training_loops.h"
#include "unpack_loops.h"

extern const Loops rl_loops_avx512;
const Loops rl_loops_avx512 = LOOPS;
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
