/*
 * Arithmetic on eight floats at a time, written once. loops_portable.c compiles it for any processor, which
 * on ARM means NEON; loops_avx2.c compiles it for AVX2. On 64-bit ARM it is four floats, because the
 * compiler's code for a vector of two registers is slow there.
 */
#ifndef REDLITE_VECTOR_H
#define REDLITE_VECTOR_H
#include "half.h"
#include <stdint.h>
#include <string.h>
#if defined(REDLITE_F16C)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline, unused))

#if defined(__aarch64__)
enum { LANES = 4 };
#else
enum { LANES = 8 };
#endif
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

/* LANES float16 numbers. With F16C (REDLITE_F16C) and on ARM the processor converts them. */
INLINE Floats load_halves(const uint16_t *from)
{
#if defined(REDLITE_F16C)
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
    x = choose(x > all(MOST_HALF), all(MOST_HALF), choose(x < all(-MOST_HALF), all(-MOST_HALF), x));
#if defined(REDLITE_F16C)
    _mm_storeu_si128((__m128i *)to, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
    vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)x)));
#else
    for (int i = 0; i < LANES; i++)
        to[i] = float_to_half(x[i]);
#endif
}

/* The first `count` floats; the other lanes are `rest`. */
INLINE Floats load_some(const float *from, int64_t count, float rest)
{
    float lanes[LANES];
    for (int i = 0; i < LANES; i++)
        lanes[i] = i < count ? from[i] : rest;
    return load(lanes);
}

INLINE void store_some(float *to, Floats x, int64_t count)
{
    for (int i = 0; i < count; i++)
        to[i] = x[i];
}

/* Picks lanes of two vectors by number: 0 to LANES − 1 are a's, those from LANES on are b's. */
#if defined(__clang__)
#define LANES_OF(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define LANES_OF(a, b, ...) __builtin_shuffle(a, b, (Ints){__VA_ARGS__})
#endif

#if defined(__aarch64__)
INLINE Floats in_pairs(Floats a, Floats b) { return LANES_OF(a, b, 0, 2, 4, 6) + LANES_OF(a, b, 1, 3, 5, 7); }

INLINE float total(Floats x)
{
    x += LANES_OF(x, x, 2, 3, 0, 1);
    return x[0] + x[1];
}

INLINE void totals(const Floats x[4], float sums[4])
{
    store(sums, in_pairs(in_pairs(x[0], x[1]), in_pairs(x[2], x[3])));
}

INLINE float greatest(Floats x) /* without NaN */
{
    Floats other = LANES_OF(x, x, 2, 3, 0, 1);
    x = choose(other > x, other, x);
    return x[1] > x[0] ? x[1] : x[0];
}
#else
INLINE Floats in_pairs(Floats a, Floats b)
{
    return LANES_OF(a, b, 0, 2, 8, 10, 4, 6, 12, 14) + LANES_OF(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
}

INLINE float total(Floats x)
{
    x += LANES_OF(x, x, 4, 5, 6, 7, 0, 1, 2, 3);
    x += LANES_OF(x, x, 2, 3, 0, 1, 6, 7, 4, 5);
    return x[0] + x[1];
}

/* The sum of each of four vectors, each added up in the same order. */
INLINE void totals(const Floats x[4], float sums[4])
{
    Floats halves = in_pairs(in_pairs(x[0], x[1]), in_pairs(x[2], x[3]));
    halves += LANES_OF(halves, halves, 4, 5, 6, 7, 0, 1, 2, 3);
    memcpy(sums, &halves, 4 * sizeof(float));
}

INLINE float greatest(Floats x) /* without NaN */
{
    Floats other = LANES_OF(x, x, 4, 5, 6, 7, 0, 1, 2, 3);
    x = choose(other > x, other, x);
    other = LANES_OF(x, x, 2, 3, 0, 1, 6, 7, 4, 5);
    x = choose(other > x, other, x);
    return x[1] > x[0] ? x[1] : x[0];
}
#endif

/* e^x for x up to 88, within 2 units in the last place. It is 0 below −87.3, where float32 loses digits; NaN
 * stays NaN. e^x = 2^n · e^r, with n = x / ln 2 rounded and |r| ≤ ln 2 / 2. e^r is its series to r⁷ / 7!; the
 * rest is below 6e-9. */
INLINE Floats exponential(Floats x)
{
    const Floats to_integer = all(0x1.8p23f); /* adding this leaves no bits for a fraction */
    Ints vanishes = x < all(-87.3f);
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
    Bits exponent = ((Bits)shifted - (Bits)to_integer) << 23; /* meaningless where x vanishes */
    Floats scaled = (Floats)((Bits)e + exponent);
    return choose(x == x, choose(vanishes, (Floats){0}, scaled), x);
}

#endif
