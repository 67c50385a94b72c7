/*
 * Arithmetic on vectors of floats, written once. loops_portable.c compiles it for any processor, which on ARM
 * means NEON; loops_avx2.c and loops_avx512.c compile it for AVX2 and AVX-512. A vector is one register: 16
 * floats with AVX-512, four on 64-bit ARM, where the compiler's code for two registers is slow, else eight.
 *
 * Long sums have SUM_LANES partial sums whatever LANES is: number i goes to partial sum i % SUM_LANES, and
 * `total` adds those in one order. Dot products have DOT_LANES. So the sets differ in no sum's order.
 */
#ifndef REDLITE_VECTOR_H
#define REDLITE_VECTOR_H
#include "half.h"
#include <stdint.h>
#include <string.h>
#if defined(REDLITE_AVX2)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline, unused))

#if defined(REDLITE_AVX512)
enum { LANES = 16, DOT_LANES = 8 };
#elif defined(__aarch64__)
enum { LANES = 4, DOT_LANES = 4 };
#else
enum { LANES = 8, DOT_LANES = 8 };
#endif
enum { SUM_LANES = 16, PARTS = SUM_LANES / LANES, DOTS = LANES / DOT_LANES };
/* For each register i of a run of SUM_LANES. */
#define EACH_PART _Pragma("GCC unroll 4") for (int i = 0; i < PARTS; i++)

typedef float Floats __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(LANES * sizeof(int32_t))));
typedef uint32_t Bits __attribute__((vector_size(LANES * sizeof(uint32_t)))); /* may overflow */

INLINE Floats load(const float *from)
{
    Floats x;
    memcpy(&x, from, sizeof x);
    return x;
}

INLINE void store(float *to, Floats x) { memcpy(to, &x, sizeof x); }

INLINE Floats all(float x) { return x - (Floats){0}; }

INLINE Floats choose(Ints condition, Floats yes, Floats no) /* each lane's condition: all bits set, or none */
{
    return (Floats)((condition & (Ints)yes) | (~condition & (Ints)no));
}

/* a > b ? a : b and a < b ? a : b; where one is NaN, b. */
#if defined(REDLITE_AVX512)
INLINE Floats larger_of(Floats a, Floats b) { return (Floats)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE Floats smaller_of(Floats a, Floats b) { return (Floats)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(REDLITE_AVX2)
INLINE Floats larger_of(Floats a, Floats b) { return (Floats)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE Floats smaller_of(Floats a, Floats b) { return (Floats)_mm256_min_ps((__m256)a, (__m256)b); }
#else
INLINE Floats larger_of(Floats a, Floats b) { return choose(a > b, a, b); }
INLINE Floats smaller_of(Floats a, Floats b) { return choose(a < b, a, b); }
#endif

INLINE Floats square_root(Floats x) /* correctly rounded */
{
#if defined(REDLITE_AVX512)
    return (Floats)_mm512_sqrt_ps((__m512)x);
#elif defined(REDLITE_AVX2)
    return (Floats)_mm256_sqrt_ps((__m256)x);
#elif defined(__aarch64__)
    return (Floats)vsqrtq_f32((float32x4_t)x);
#else
    for (int i = 0; i < LANES; i++)
        x[i] = sqrtf(x[i]);
    return x;
#endif
}

/* LANES float16 numbers. With F16C and on ARM the processor converts them. */
INLINE Floats load_halves(const uint16_t *from)
{
#if defined(REDLITE_AVX512)
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
#elif defined(REDLITE_AVX2)
    return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
#elif defined(__aarch64__)
    return (Floats)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
#else
    Floats x;
    for (int i = 0; i < LANES; i++)
        x[i] = half_to_float(from[i]);
    return x;
#endif
}

/* Rounds to nearest, ties to even. Too large numbers become the largest one; NaN stays NaN. */
INLINE void store_halves(uint16_t *to, Floats x)
{
    x = smaller_of(all(MOST_HALF), larger_of(all(-MOST_HALF), x));
#if defined(REDLITE_AVX512)
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(REDLITE_AVX2)
    _mm_storeu_si128((__m128i *)to, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
    vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)x)));
#else
    for (int i = 0; i < LANES; i++)
        to[i] = float_to_half(x[i]);
#endif
}

#if defined(REDLITE_AVX512)
INLINE __mmask16 first_lanes(int64_t count)
{
    return (__mmask16)(count <= 0 ? 0 : count >= LANES ? 0xffff : (1 << count) - 1);
}

INLINE Floats load_some(const float *from, int64_t count, float rest)
{
    return (Floats)_mm512_mask_loadu_ps(_mm512_set1_ps(rest), first_lanes(count), from);
}

INLINE Floats load_some_halves(const uint16_t *from, int64_t count)
{
    return (Floats)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(count), from));
}

INLINE void store_some(float *to, Floats x, int64_t count)
{
    _mm512_mask_storeu_ps(to, first_lanes(count), (__m512)x);
}
#else
#define RARE static __attribute__((noinline, unused)) /* in line they would make up most of the library */

/* The first `count` floats, of up to LANES; the other lanes are `rest`. */
RARE Floats load_some(const float *from, int64_t count, float rest)
{
    float lanes[LANES];
    for (int i = 0; i < LANES; i++)
        lanes[i] = i < count ? from[i] : rest;
    return load(lanes);
}

/* The first `count` float16 numbers; the other lanes are 0. */
RARE Floats load_some_halves(const uint16_t *from, int64_t count)
{
    float lanes[LANES] = {0};
    for (int i = 0; i < LANES && i < count; i++)
        lanes[i] = half_to_float(from[i]);
    return load(lanes);
}

/* The first `count` lanes, of up to LANES. */
RARE void store_some(float *to, Floats x, int64_t count)
{
    for (int i = 0; i < LANES && i < count; i++)
        to[i] = x[i];
}
#endif

/* Picks lanes of two vectors by number: 0 to LANES − 1 are a's, those from LANES on are b's. */
#if defined(__clang__)
#define LANES_OF(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define LANES_OF(a, b, ...) __builtin_shuffle(a, b, (Ints){__VA_ARGS__})
#endif

#if defined(REDLITE_AVX512)
/* Lanes i and i ^ 8, i ^ 4 or i ^ 2 change places. */
#define SWAP8(x) LANES_OF(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
#define SWAP4(x) LANES_OF(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)
#define SWAP2(x) LANES_OF(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)

INLINE Floats in_pairs(Floats a, Floats b)
{
    return LANES_OF(a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30)
        + LANES_OF(a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31);
}
#elif defined(__aarch64__)
#define SWAP2(x) LANES_OF(x, x, 2, 3, 0, 1)

INLINE Floats in_pairs(Floats a, Floats b) { return LANES_OF(a, b, 0, 2, 4, 6) + LANES_OF(a, b, 1, 3, 5, 7); }
#else
#define SWAP4(x) LANES_OF(x, x, 4, 5, 6, 7, 0, 1, 2, 3)
#define SWAP2(x) LANES_OF(x, x, 2, 3, 0, 1, 6, 7, 4, 5)

INLINE Floats in_pairs(Floats a, Floats b)
{
    return LANES_OF(a, b, 0, 2, 8, 10, 4, 6, 12, 14) + LANES_OF(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
}
#endif

/* The sum of SUM_LANES partial sums: 8 apart, then 4, 2 and 1. */
INLINE float total(const Floats x[PARTS])
{
#if defined(REDLITE_AVX512)
    Floats sum = x[0] + SWAP8(x[0]);
    sum += SWAP4(sum);
#elif defined(__aarch64__)
    Floats sum = (x[0] + x[2]) + (x[1] + x[3]);
#else
    Floats sum = x[0] + x[1];
    sum += SWAP4(sum);
#endif
    sum += SWAP2(sum);
    return sum[0] + sum[1];
}

/* The sum of each of four vectors of DOT_LANES, each added up in the same order; then, with DOTS 2, of the
 * four in the upper halves. */
INLINE void totals(const Floats x[4], float sums[4 * DOTS])
{
    Floats halves = in_pairs(in_pairs(x[0], x[1]), in_pairs(x[2], x[3]));
#if !defined(__aarch64__)
    halves += SWAP4(halves);
#endif
    memcpy(sums, &halves, 4 * sizeof(float));
#if defined(REDLITE_AVX512)
    memcpy(sums + 4, (const char *)&halves + DOT_LANES * sizeof(float), 4 * sizeof(float));
#endif
}

INLINE float greatest(Floats x) /* without NaN */
{
#if defined(REDLITE_AVX512)
    x = larger_of(SWAP8(x), x);
#endif
#if !defined(__aarch64__)
    x = larger_of(SWAP4(x), x);
#endif
    x = larger_of(SWAP2(x), x);
    return x[1] > x[0] ? x[1] : x[0];
}

/* e^x for x up to 88, within 2 units in the last place. It is 0 below −87.3, where float32 loses digits; NaN
 * stays NaN. e^x = 2^n · e^r, with n = x / ln 2 rounded and |r| ≤ ln 2 / 2. e^r is its series to r⁷ / 7!; the
 * rest is below 6e-9. */
INLINE Floats exponential(Floats x)
{
    const Floats to_integer = all(0x1.8p23f); /* adding this leaves no bits for a fraction */
    Floats shifted = x * all(0x1.715476p0f) + to_integer; /* 1 / ln 2 */
    Floats n = shifted - to_integer;
    Floats r = x - n * all(0x1.62e4p-1f);  /* ln 2 in two parts: n times the first is exact */
    r = r - n * all(0x1.7f7d1cp-20f);
    Floats e = r * all(1.0f / 5040) + all(1.0f / 720);
    e = e * r + all(1.0f / 120);
    e = e * r + all(1.0f / 24);
    e = e * r + all(1.0f / 6);
    e = e * r + all(0.5f);
    e = e * r + all(1.0f);
    e = e * r + all(1.0f);
#if defined(REDLITE_AVX512)
    __mmask16 stays = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-87.3f), _CMP_NLT_UQ);
    return (Floats)_mm512_maskz_scalef_ps(stays, (__m512)e, (__m512)n);
#else
    Floats power = (Floats)(((Bits)shifted << 23) + (Bits)all(1.0f)); /* meaningless where x vanishes */
    return choose(x < all(-87.3f), (Floats){0}, e * power);
#endif
}

#endif
