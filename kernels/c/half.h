/* IEEE half precision (float16), one number at a time. */
#ifndef REDLITE_HALF_H
#define REDLITE_HALF_H
#include <math.h>
#include <stdint.h>
#include <string.h>

#define MOST_HALF 65504.0f

static inline float half_to_float(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, fraction = h & 0x3ff, bits;
    if (exponent == 31)
        bits = sign | 0x7f800000 | fraction << 13;
    else if (exponent)
        bits = sign | (exponent + 112) << 23 | fraction << 13;
    else {
        float tiny = (float)fraction * 0x1p-24f;
        return sign ? -tiny : tiny;
    }
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Rounds to nearest, ties to even; too large numbers become infinity. */
static inline uint16_t float_to_half(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    float magnitude = fabsf(value);
    if (!(magnitude < 65520.0f))
        return (uint16_t)(sign | (magnitude != magnitude ? 0x7e00 : 0x7c00));
    if (magnitude < 0x1p-14f)
        return (uint16_t)(sign | (uint16_t)lrintf(magnitude * 0x1p24f));
    bits &= 0x7fffffff;
    bits += 0xfff + (bits >> 13 & 1);
    return (uint16_t)(sign | (uint16_t)((bits >> 13) - (112 << 10)));
}

#endif
