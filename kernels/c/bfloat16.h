/* Vectors of bfloat16, the upper half of float32, and of either type by a flag that is a constant. */
#ifndef REDLITE_BFLOAT16_H
#define REDLITE_BFLOAT16_H
#include "vector.h"

typedef uint16_t Shorts __attribute__((vector_size(LANES * sizeof(uint16_t))));

INLINE Floats from_shorts(Shorts x) { return (Floats)(__builtin_convertvector(x, Bits) << 16); }

/* To nearest, ties to even; NaN stays NaN. */
INLINE Floats rounded(Floats x)
{
    Bits bits = (Bits)x, to_even = bits + 0x7fff + (bits >> 16 & 1);
    Bits nan = (Bits)(x != x);
    return (Floats)(((to_even & ~nan) | (nan & 0x7fc00000)) & 0xffff0000);
}

/* The upper halves; the lower ones must be 0, or be cut off on purpose. */
INLINE Shorts upper_halves(Floats x) { return __builtin_convertvector((Bits)x >> 16, Shorts); }

/* `count` numbers from number `at` on; the lanes behind them are 0. `narrow`: bfloat16, else float32. */
INLINE Floats load_numbers(const void *from, int64_t at, int64_t count, const int narrow)
{
    const float *wide = (const float *)from + at;
    if (!narrow)
        return count >= LANES ? load(wide) : load_some(wide, count, 0.0f);
    Shorts x = {0};
    if (count >= LANES)
        memcpy(&x, (const uint16_t *)from + at, sizeof x);
    else
        memcpy(&x, (const uint16_t *)from + at, (size_t)count * sizeof(uint16_t));
    return from_shorts(x);
}

INLINE void store_shorts(uint16_t *to, int64_t at, Shorts x, int64_t count)
{
    if (count >= LANES)
        memcpy(to + at, &x, sizeof x);
    else
        memcpy(to + at, &x, (size_t)count * sizeof(uint16_t));
}

/* As load_numbers; bfloat16 is rounded to nearest. */
INLINE void store_numbers(void *to, int64_t at, Floats x, int64_t count, const int narrow)
{
    if (narrow)
        store_shorts(to, at, upper_halves(rounded(x)), count);
    else if (count >= LANES)
        store((float *)to + at, x);
    else
        store_some((float *)to + at, x, count);
}

#endif
