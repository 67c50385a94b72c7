/*
 * GGUF blocks decoded into float32: in each function `count` blocks at b become numbers at out. See loops.h.
 *
 * The formats are those of ggml-quants.c (github.com/ggml-org/ggml). redlite/weights/gguf_formats.py defines
 * them in numpy, and the numbers are the same to the last bit. A half times the small integers of a block has
 * at most 24 significant bits, so every product here is exact; the one addition or subtraction rounds as it
 * does there.
 */
#ifndef REDLITE_DEQUANTISE_LOOPS_H
#define REDLITE_DEQUANTISE_LOOPS_H
#include "loops.h"
#include "vector.h"

INLINE float half_at(const uint8_t *at)
{
    uint16_t half;
    memcpy(&half, at, 2);
    return half_to_float(half);
}

INLINE void f32(const uint8_t *b, int64_t count, float *out) { memcpy(out, b, (size_t)count * 4); }

/* half_to_float without branches, so that it runs on vectors. */
INLINE void f16(const uint8_t *b, int64_t count, float *out)
{
    for (int64_t i = 0; i < count; i++) {
        uint16_t half;
        memcpy(&half, b + 2 * i, 2);
        uint32_t magnitude = half & 0x7fff, tiny_bits, sign = (uint32_t)(half & 0x8000) << 16;
        float tiny = (float)(int32_t)magnitude * 0x1p-24f;
        memcpy(&tiny_bits, &tiny, 4);
        uint32_t bits = (magnitude << 13) + (magnitude >= 0x7c00 ? 224u << 23 : 112u << 23);
        bits = sign | (magnitude < 0x400 ? tiny_bits : bits);
        memcpy(out + i, &bits, 4);
    }
}

INLINE void bf16(const uint8_t *b, int64_t count, float *out)
{
    for (int64_t i = 0; i < count; i++) {
        uint16_t upper;
        memcpy(&upper, b + 2 * i, 2);
        uint32_t bits = (uint32_t)upper << 16;
        memcpy(out + i, &bits, 4);
    }
}

INLINE void q8_0(const uint8_t *b, int64_t count, float *out)
{
    for (; count--; b += 34, out += 32) {
        float d = half_at(b);
        for (int i = 0; i < 32; i++)
            out[i] = (float)(int8_t)b[2 + i] * d;
    }
}

INLINE void q4_0(const uint8_t *b, int64_t count, float *out)
{
    for (; count--; b += 18, out += 32) {
        float d = half_at(b);
        for (int i = 0; i < 16; i++) {
            out[i] = (float)((b[2 + i] & 15) - 8) * d;
            out[16 + i] = (float)((b[2 + i] >> 4) - 8) * d;
        }
    }
}

INLINE void q4_1(const uint8_t *b, int64_t count, float *out)
{
    for (; count--; b += 20, out += 32) {
        float d = half_at(b), m = half_at(b + 2);
        for (int i = 0; i < 16; i++) {
            out[i] = (float)(b[4 + i] & 15) * d + m;
            out[16 + i] = (float)(b[4 + i] >> 4) * d + m;
        }
    }
}

INLINE void q5_0(const uint8_t *b, int64_t count, float *out)
{
    for (; count--; b += 22, out += 32) {
        float d = half_at(b);
        uint32_t fifth = (uint32_t)b[2] | (uint32_t)b[3] << 8 | (uint32_t)b[4] << 16 | (uint32_t)b[5] << 24;
        for (int i = 0; i < 16; i++) {
            out[i] = (float)((int)((b[6 + i] & 15) | (fifth >> i & 1) << 4) - 16) * d;
            out[16 + i] = (float)((int)(b[6 + i] >> 4 | (fifth >> (16 + i) & 1) << 4) - 16) * d;
        }
    }
}

INLINE void q2_k(const uint8_t *b, int64_t count, float *out)
{
    for (; count--; b += 84)
        for (int group = 0; group < 16; group++, out += 16) {
            const uint8_t *q = b + 16 + group / 8 * 32 + group % 2 * 16;
            float d = half_at(b + 80) * (float)(b[group] & 15), m = half_at(b + 82) * (float)(b[group] >> 4);
            for (int i = 0; i < 16; i++)
                out[i] = (float)(q[i] >> group / 2 % 4 * 2 & 3) * d - m;
        }
}

INLINE void q3_k(const uint8_t *b, int64_t count, float *out)
{
    for (; count--; b += 110)
        for (int group = 0; group < 16; group++, out += 16) {
            const uint8_t *low = b + 32 + group / 8 * 32 + group % 2 * 16, *third = b + group % 2 * 16;
            int s = b[96 + group % 8] >> group / 8 * 4 & 15, top = b[104 + group % 4] >> group / 4 * 2 & 3;
            float d = half_at(b + 108) * (float)((s | top << 4) - 32);
            for (int i = 0; i < 16; i++)
                out[i] = (float)((low[i] >> group / 2 % 4 * 2 & 3) + (third[i] >> group / 2 & 1) * 4 - 4) * d;
        }
}

/* Q4_K (fifth 0) or Q5_K, which has 32 bytes of fifth bits before the nibbles. */
INLINE void q4_or_q5_k(const uint8_t *b, int64_t count, float *out, const int fifth)
{
    for (; count--; b += fifth ? 176 : 144)
        for (int group = 0; group < 8; group++, out += 32) {
            const uint8_t *q = b + (fifth ? 48 : 16) + group / 2 * 32;
            uint8_t scale, least;
            q4_k_scale(b, group, &scale, &least);
            float d = half_at(b) * (float)scale, m = half_at(b + 2) * (float)least;
            for (int i = 0; i < 32; i++) {
                int high = fifth ? (b[16 + i] >> group & 1) << 4 : 0;
                out[i] = (float)((q[i] >> group % 2 * 4 & 15) | high) * d - m;
            }
        }
}

INLINE void q6_k(const uint8_t *b, int64_t count, float *out)
{
    for (; count--; b += 210)
        for (int half = 0; half < 2; half++)
            for (int quarter = 0; quarter < 4; quarter++, out += 32) {
                const uint8_t *low = b + half * 64 + quarter % 2 * 32, *high = b + 128 + half * 32;
                for (int s = 0; s < 2; s++) {
                    float d = half_at(b + 208) * (float)(int8_t)b[192 + half * 8 + quarter * 2 + s];
                    for (int i = s * 16; i < s * 16 + 16; i++)
                        out[i] =
                            (float)(((low[i] >> quarter / 2 * 4 & 15) | (high[i] >> quarter * 2 & 3) << 4)
                                    - 32)
                            * d;
                }
            }
}

/* The nibbles are numbers of E2M1, here doubled; the first byte is the exponent of their scale, + 128. */
INLINE void mxfp4(const uint8_t *b, int64_t count, float *out)
{
    static const int8_t doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    for (; count--; b += 17, out += 32) {
        uint32_t bits = b[0] > 1 ? (uint32_t)(b[0] - 1) << 23 : 0x200000u << b[0];
        float scale;
        memcpy(&scale, &bits, 4);
        for (int i = 0; i < 16; i++) {
            out[i] = (float)doubled[b[1 + i] & 15] * scale;
            out[16 + i] = (float)doubled[b[1 + i] >> 4] * scale;
        }
    }
}

INLINE void decode_blocks(int kind, const uint8_t *b, int64_t count, float *out)
{
    switch (kind) {
    case G_F32: f32(b, count, out); break;
    case G_F16: f16(b, count, out); break;
    case G_BF16: bf16(b, count, out); break;
    case G_Q4_0: q4_0(b, count, out); break;
    case G_Q4_1: q4_1(b, count, out); break;
    case G_Q5_0: q5_0(b, count, out); break;
    case G_Q8_0: q8_0(b, count, out); break;
    case G_Q2_K: q2_k(b, count, out); break;
    case G_Q3_K: q3_k(b, count, out); break;
    case G_Q4_K: q4_or_q5_k(b, count, out, 0); break;
    case G_Q5_K: q4_or_q5_k(b, count, out, 1); break;
    case G_Q6_K: q6_k(b, count, out); break;
    case G_MXFP4: mxfp4(b, count, out); break;
    }
}

/* The largest magnitude among n numbers, as bits: infinity is 0x7f800000, and every NaN is above. */
INLINE int32_t largest_bits(const float *x, int64_t n)
{
    int32_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t bits;
        memcpy(&bits, x + i, 4);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    return most;
}

INLINE int32_t dequantise(int kind, const uint8_t *b, int64_t count, float *out, int64_t n)
{
    decode_blocks(kind, b, count, out);
    return largest_bits(out, n);
}

#endif
