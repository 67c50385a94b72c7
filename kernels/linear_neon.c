/*
 * The inner loops of linear.c for 64-bit ARM: NEON, which all of them have, and the dot products of bytes (sdot, udot) of ARMv8.2.
 * Tiles of 16 columns by up to 6 rows, 4 or 3: as many as keep their sums in registers. Integer sums are exact and the float32
 * ones in AVX2's order, so both give what AVX2 gives, to the last bit.
 *
 * What is not here is written on the compiler's vectors (vector.h), and so compiled to NEON as it stands.
 */
#include "tiles.h"
#if defined(__aarch64__)
#include <arm_neon.h>
#define INLINE_NEON static inline __attribute__((always_inline))
#define FOR_DOT __attribute__((target("arch=armv8.2-a+dotprod")))
#define INLINE_DOT static inline __attribute__((always_inline, target("arch=armv8.2-a+dotprod")))
#define EACH_QUARTER _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) /* of the 16 columns */

INLINE_NEON void tile_f32(const Product *p, int64_t row, int64_t column, float *out, const int count)
{
    const float *w = (const float *)p->packed + (size_t)column * (size_t)p->inputs, *x = p->tiled + row * p->inputs;
    float32x4_t sum[ROWS_NEON][4];
    EACH_ROW EACH_QUARTER sum[r][i] = vdupq_n_f32(0);
    for (int64_t k = 0; k < p->inputs; k++, w += PANEL, x += count) {
        float32x4_t four[4];
        EACH_QUARTER four[i] = vld1q_f32(w + i * 4);
        EACH_ROW {
            float32x4_t a = vld1q_dup_f32(x + r);
            EACH_QUARTER sum[r][i] = vfmaq_f32(sum[r][i], a, four[i]);
        }
    }
    EACH_ROW EACH_QUARTER vst1q_f32(out + r * PANEL + i * 4, sum[r][i]);
}

INLINE_NEON float32x4_t halves4(const uint8_t *at) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(at))); }

/* A row's total after a block, for a quarter of the columns: += scale · (sum · scale of the row) (+ minimum · sums). */
INLINE_NEON float32x4_t add_block(float32x4_t total, const uint8_t *at, int i, int32x4_t sum, float scale, float sums, const int four)
{
    total = vfmaq_f32(total, halves4(at + i * 8), vmulq_n_f32(vcvtq_f32_s32(sum), scale));
    return four ? vfmaq_n_f32(total, halves4(at + PANEL * 2 + i * 8), sums) : total;
}

/* The weights of inputs 2 pair and 2 pair + 1, as [2 inputs][2 halves of the columns][8 columns]. */
INLINE_NEON void load_pair(const uint8_t *at, int pair, int16x8_t w[2][2], const int four)
{
    if (four) {
        const int16x8_t shift = vdupq_n_s16((int16_t)(-4 * (pair % 4)));
        for (int half = 0; half < 2; half++) {
            uint16x8x2_t words = vld2q_u16((const uint16_t *)(at + PANEL * 4 + pair / 4 * 64 + half * 32));
            for (int k = 0; k < 2; k++)
                w[k][half] = vreinterpretq_s16_u16(vandq_u16(vshlq_u16(words.val[k], shift), vdupq_n_u16(15)));
        }
    } else {
        int8x16x2_t bytes = vld2q_s8((const int8_t *)at + PANEL * 2 + pair * 32);
        for (int k = 0; k < 2; k++) {
            w[k][0] = vmovl_s8(vget_low_s8(bytes.val[k]));
            w[k][1] = vmovl_high_s8(bytes.val[k]);
        }
    }
}

INLINE_NEON void tile_quantised(const Product *p, int64_t row, int64_t column, float *out, const int count, const int four)
{
    const uint8_t *at = block_at(p->packed, p->format, p->blocks, column, 0);
    const int16_t *q = p->quantised + row * p->blocks * BLOCK;
    const float *sums = p->sums + row * p->blocks;
    float32x4_t total[ROWS_NEON_INT][4];
    EACH_ROW EACH_QUARTER total[r][i] = vdupq_n_f32(0);
    for (int64_t b = 0; b < p->blocks; b++, at += QUANT_BYTES[four ? Q4 : Q8], sums += count) {
        int32x4_t sum[ROWS_NEON_INT][4];
        EACH_ROW EACH_QUARTER sum[r][i] = vdupq_n_s32(0);
        for (int pair = 0; pair < BLOCK / 2; pair++, q += 2 * count) {
            int16x8_t w[2][2];
            load_pair(at, pair, w, four);
            EACH_ROW for (int k = 0; k < 2; k++)
                for (int half = 0; half < 2; half++) {
                    sum[r][half * 2] = vmlal_n_s16(sum[r][half * 2], vget_low_s16(w[k][half]), q[r * 2 + k]);
                    sum[r][half * 2 + 1] = vmlal_high_n_s16(sum[r][half * 2 + 1], w[k][half], q[r * 2 + k]);
                }
        }
        EACH_ROW EACH_QUARTER total[r][i] = add_block(total[r][i], at, i, sum[r][i], p->scale[row + r], four ? sums[r] : 0, four);
    }
    EACH_ROW EACH_QUARTER vst1q_f32(out + r * PANEL + i * 4, total[r][i]);
}

/* The weights of four inputs (tiles.h says which), four columns in each register. */
INLINE_DOT void load_fours(const uint8_t *at, int run, int8x16_t w[4], const int four)
{
    if (four) {
        EACH_QUARTER {
            uint8x16_t bytes = vld1q_u8(at + PANEL * 4 + run / 2 * 64 + i * 16);
            w[i] = vreinterpretq_s8_u8(run % 2 ? vshrq_n_u8(bytes, 4) : vandq_u8(bytes, vdupq_n_u8(15)));
        }
    } else {
        const int8_t *pair = (const int8_t *)at + PANEL * 2 + (run / 2 * 4 + run % 2) * 32; /* the first, and the one two on */
        for (int half = 0; half < 2; half++) {
            int8x16_t a = vld1q_s8(pair + half * 16), b = vld1q_s8(pair + 64 + half * 16);
            w[half * 2] = vzip1q_s8(a, b);
            w[half * 2 + 1] = vzip2q_s8(a, b);
        }
    }
}

/* x = 256 · high + low. Σ high · w is a dot product of signed bytes; low and int4 weights are unsigned; for int8 it is
 * Σ low · w = Σ low · (w + 128) − 128 Σ low, and the sum starts from the last. */
INLINE_DOT void tile_dot(const Product *p, int64_t row, int64_t column, float *out, const int count, const int four)
{
    const uint8_t *at = block_at(p->packed, p->format, p->blocks, column, 0);
    const uint8_t *q = (const uint8_t *)(p->quantised + row * p->blocks * BLOCK);
    const float *sums = p->sums + row * p->blocks;
    const uint8x16_t offset = vdupq_n_u8(four ? 0 : 128);
    float32x4_t total[ROWS_DOT][4];
    EACH_ROW EACH_QUARTER total[r][i] = vdupq_n_f32(0);
    for (int64_t b = 0; b < p->blocks; b++, at += QUANT_BYTES[four ? Q4 : Q8], sums += count) {
        int32x4_t high[ROWS_DOT][4];
        uint32x4_t low[ROWS_DOT][4]; /* modulo 2³²: what it starts from may be negative */
        EACH_ROW EACH_QUARTER {
            high[r][i] = vdupq_n_s32(0);
            low[r][i] = vreinterpretq_u32_s32(vdupq_n_s32(four ? 0 : (int32_t)sums[r]));
        }
        _Pragma("GCC unroll 2") for (int run = 0; run < BLOCK / 4; run++, q += 8 * count) {
            int8x16_t w[4];
            load_fours(at, run, w, four);
            EACH_ROW {
                uint8x8_t x = vld1_u8(q + r * 8);
                EACH_QUARTER {
                    uint8x16_t u = veorq_u8(vreinterpretq_u8_s8(w[i]), offset);
                    high[r][i] = vdotq_lane_s32(high[r][i], w[i], vreinterpret_s8_u8(x), 0);
                    low[r][i] = vdotq_lane_u32(low[r][i], u, x, 1);
                }
            }
        }
        EACH_ROW EACH_QUARTER {
            int32x4_t sum = vreinterpretq_s32_u32(vaddq_u32(vshlq_n_u32(vreinterpretq_u32_s32(high[r][i]), 8), low[r][i]));
            total[r][i] = add_block(total[r][i], at, i, sum, p->scale[row + r], four ? sums[r] : 0, four);
        }
    }
    EACH_ROW EACH_QUARTER vst1q_f32(out + r * PANEL + i * 4, total[r][i]);
}

INLINE_NEON void tile_q8(const Product *p, int64_t row, int64_t column, float *out, const int count) { tile_quantised(p, row, column, out, count, 0); }
INLINE_NEON void tile_q4(const Product *p, int64_t row, int64_t column, float *out, const int count) { tile_quantised(p, row, column, out, count, 1); }

INLINE_DOT void dot_q8(const Product *p, int64_t row, int64_t column, float *out, const int count) { tile_dot(p, row, column, out, count, 0); }
INLINE_DOT void dot_q4(const Product *p, int64_t row, int64_t column, float *out, const int count) { tile_dot(p, row, column, out, count, 1); }

void rl_tile_f32_neon(const Product *p, int64_t row, int count, int64_t column, float *out)
{
    switch (count) { COPY(tile_f32, 1) COPY(tile_f32, 2) COPY(tile_f32, 3) COPY(tile_f32, 4) COPY(tile_f32, 5) COPY(tile_f32, 6) }
}

void rl_tile_q8_neon(const Product *p, int64_t row, int count, int64_t column, float *out)
{
    switch (count) { COPY(tile_q8, 1) COPY(tile_q8, 2) COPY(tile_q8, 3) COPY(tile_q8, 4) }
}

void rl_tile_q4_neon(const Product *p, int64_t row, int count, int64_t column, float *out)
{
    switch (count) { COPY(tile_q4, 1) COPY(tile_q4, 2) COPY(tile_q4, 3) COPY(tile_q4, 4) }
}

FOR_DOT void rl_tile_q8_dot(const Product *p, int64_t row, int count, int64_t column, float *out)
{
    switch (count) { COPY(dot_q8, 1) COPY(dot_q8, 2) COPY(dot_q8, 3) }
}

FOR_DOT void rl_tile_q4_dot(const Product *p, int64_t row, int count, int64_t column, float *out)
{
    switch (count) { COPY(dot_q4, 1) COPY(dot_q4, 2) COPY(dot_q4, 3) }
}
#endif
