/*
 * Inner loops for 64-bit ARM: NEON, which every such processor has, and the dot products of bytes (sdot) of
 * ARMv8.2.
 *
 * A tile has 16 columns and up to 6 rows, or 4: as many as keep their sums in registers. Integer sums are
 * exact, and the float32 ones have AVX2's order. So both give what AVX2 gives, to the last bit.
 *
 * Everything else is written on the compiler's vectors (vector.h), which the compiler turns into NEON.
 */
#include "matrix_products_tiles.h"
#if defined(__aarch64__)
#include <arm_neon.h>
#define INLINE_NEON static inline __attribute__((always_inline))
#define FOR_DOT __attribute__((target("arch=armv8.2-a+dotprod")))
#define INLINE_DOT static inline __attribute__((always_inline, target("arch=armv8.2-a+dotprod")))
#define EACH_QUARTER _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) /* of the 16 columns */

INLINE_NEON void tile_f32(TILE_ARGUMENTS)
{
    const float *w = (const float *)panel, *x = p->tiled + row * p->inputs;
    float32x4_t sum[ROWS_NEON][4];
    EACH_ROW EACH_QUARTER sum[r][i] = vdupq_n_f32(0);
    for (int64_t k = 0; k < p->inputs; k++, w += PANEL, x += count) {
        if (k % BLOCK == 0)
            FETCH_AHEAD(k / BLOCK)
        float32x4_t four[4];
        EACH_QUARTER four[i] = vld1q_f32(w + i * 4);
        EACH_ROW {
            float32x4_t a = vld1q_dup_f32(x + r);
            EACH_QUARTER sum[r][i] = vfmaq_f32(sum[r][i], a, four[i]);
        }
    }
    EACH_ROW EACH_QUARTER vst1q_f32(out + r * stride + i * 4, sum[r][i]);
}

INLINE_NEON float32x4_t halves4(const uint8_t *at) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(at))); }

INLINE_NEON float32x4_t small4(const uint8_t *at) /* bytes from 0 to 255 */
{
    float four[4] = {at[0], at[1], at[2], at[3]};
    return vld1q_f32(four);
}

INLINE_NEON float32x4_t signed4(const uint8_t *at)
{
    float four[4] = {(int8_t)at[0], (int8_t)at[1], (int8_t)at[2], (int8_t)at[3]};
    return vld1q_f32(four);
}

/* The weights of four inputs, as signed bytes, for a quarter of the columns. int8's are stored + 128, Q6_K's
 * + 32. */
INLINE_NEON int8x16_t weights(const uint8_t *panel, int four, int i, const int format)
{
    const uint8_t *w = panel + SCALE_BYTES[format] + i * 16;
    if (format == Q8)
        return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(w + four * PANEL * 4), vdupq_n_u8(128)));
    uint8x16_t both = vld1q_u8(w + four / 2 * PANEL * 4);
    uint8x16_t low = four % 2 ? vshrq_n_u8(both, 4) : vandq_u8(both, vdupq_n_u8(15));
    if (format != Q6K)
        return vreinterpretq_s8_u8(low);
    uint8x16_t high = vld1q_u8(w + BLOCK / 8 * PANEL * 4 + four / 4 * PANEL * 4);
    high = vshlq_u8(high, vdupq_n_s8((int8_t)(4 - four % 4 * 2)));
    uint8x16_t six = vorrq_u8(low, vandq_u8(high, vdupq_n_u8(0x30)));
    return vsubq_s8(vreinterpretq_s8_u8(six), vdupq_n_s8(32));
}

/* The scales of half a block, or of all of it, for a quarter of the columns, and its minima. */
INLINE_NEON float32x4_t scales4(const uint8_t *group, const uint8_t *panel, int half, int i, const int format)
{
    if (!GROUP_BYTES[format])
        return halves4(panel + i * 8);
    const uint8_t *s = panel + half * PANEL + i * 4;
    return vmulq_f32(halves4(group + i * 8), format == Q4K ? small4(s) : signed4(s));
}

INLINE_NEON float32x4_t minima4(const uint8_t *group, const uint8_t *panel, int i, const int format)
{
    if (format == Q4)
        return halves4(panel + PANEL * 2 + i * 8);
    return vnegq_f32(vmulq_f32(halves4(group + PANEL * 2 + i * 8), small4(panel + PANEL + i * 4)));
}

INLINE_NEON int8x16_t bcast(const int8_t *four) /* four bytes, four times */
{
    int32_t word;
    memcpy(&word, four, sizeof word);
    return vreinterpretq_s8_s32(vdupq_n_s32(word));
}

/* sum + w · a, where four bytes side by side add to one number. Each product is below 2¹⁴, so two fit in 16
 * bits. */
INLINE_NEON int32x4_t plain_dot(int32x4_t sum, int8x16_t w, int8x16_t a)
{
    return vpadalq_s16(sum, vpaddq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(a)), vmull_high_s8(w, a)));
}

INLINE_DOT int32x4_t dot(int32x4_t sum, int8x16_t w, int8x16_t a) { return vdotq_s32(sum, w, a); }

/* The body of every quantised tile, for up to `most` rows. It is a macro because a function for plain NEON
 * may not call one for dot products: `product` is plain_dot or dot. */
#define QUANTISED(most, product)                                                                     \
    const int8_t *q = p->bytes + row * p->blocks * BLOCK;                                            \
    const float *scales = p->scale + row * p->blocks, *sums = p->sums + row * p->blocks;             \
    const int halves = format == Q6K ? 2 : 1, fours = BLOCK / 4 / halves;                            \
    const uint8_t *group = panel;                                                                    \
    float32x4_t total[most][4];                                                                      \
    EACH_ROW EACH_QUARTER total[r][i] = vdupq_n_f32(0);                                              \
    for (int64_t b = 0; b < p->blocks; b++, scales += count, sums += count) {                        \
        FETCH_AHEAD(b)                                                                               \
        if (b % GROUP == 0)                                                                          \
            group = panel, panel += GROUP_BYTES[format];                                             \
        for (int half = 0; half < halves; half++) {                                                  \
            int32x4_t sum[most][4];                                                                  \
            EACH_ROW EACH_QUARTER sum[r][i] = vdupq_n_s32(0);                                        \
            for (int four = half * fours; four < (half + 1) * fours; four++, q += 4 * count) {       \
                int8x16_t w[4];                                                                      \
                EACH_QUARTER w[i] = weights(panel, four, i, format);                                 \
                EACH_ROW {                                                                           \
                    int8x16_t a = bcast(q + r * 4);                                                  \
                    EACH_QUARTER sum[r][i] = product(sum[r][i], w[i], a);                            \
                }                                                                                    \
            }                                                                                        \
            EACH_ROW EACH_QUARTER {                                                                  \
                float32x4_t scaled = vmulq_n_f32(vcvtq_f32_s32(sum[r][i]), scales[r]);               \
                total[r][i] = vfmaq_f32(total[r][i], scales4(group, panel, half, i, format), scaled);\
                if (format == Q4 || format == Q4K)                                                   \
                    total[r][i] = vfmaq_n_f32(total[r][i], minima4(group, panel, i, format), sums[r]); \
            }                                                                                        \
        }                                                                                            \
        panel += QUANT_BYTES[format];                                                                \
    }                                                                                                \
    EACH_ROW EACH_QUARTER vst1q_f32(out + r * stride + i * 4, total[r][i]);

INLINE_NEON void tile_plain(TILE_ARGUMENTS, const int format) { QUANTISED(ROWS_NEON_INT, plain_dot) }
INLINE_DOT void tile_dot(TILE_ARGUMENTS, const int format) { QUANTISED(ROWS_NEON, dot) }

INLINE_NEON void tile_q8(TILE_ARGUMENTS) { tile_plain(p, panel, row, out, stride, ahead, count, Q8); }
INLINE_NEON void tile_q4(TILE_ARGUMENTS) { tile_plain(p, panel, row, out, stride, ahead, count, Q4); }
INLINE_NEON void tile_q4k(TILE_ARGUMENTS) { tile_plain(p, panel, row, out, stride, ahead, count, Q4K); }
INLINE_NEON void tile_q6k(TILE_ARGUMENTS) { tile_plain(p, panel, row, out, stride, ahead, count, Q6K); }
INLINE_DOT void dot_q8(TILE_ARGUMENTS) { tile_dot(p, panel, row, out, stride, ahead, count, Q8); }
INLINE_DOT void dot_q4(TILE_ARGUMENTS) { tile_dot(p, panel, row, out, stride, ahead, count, Q4); }
INLINE_DOT void dot_q4k(TILE_ARGUMENTS) { tile_dot(p, panel, row, out, stride, ahead, count, Q4K); }
INLINE_DOT void dot_q6k(TILE_ARGUMENTS) { tile_dot(p, panel, row, out, stride, ahead, count, Q6K); }

TILE(, rl_tile_f32_neon, UP_TO_6(tile_f32))
TILE(, rl_tile_q8_neon, UP_TO_4(tile_q8))
TILE(, rl_tile_q4_neon, UP_TO_4(tile_q4))
TILE(, rl_tile_q4k_neon, UP_TO_4(tile_q4k))
TILE(, rl_tile_q6k_neon, UP_TO_4(tile_q6k))
TILE(FOR_DOT, rl_tile_q8_dot, UP_TO_6(dot_q8))
TILE(FOR_DOT, rl_tile_q4_dot, UP_TO_6(dot_q4))
TILE(FOR_DOT, rl_tile_q4k_dot, UP_TO_6(dot_q4k))
TILE(FOR_DOT, rl_tile_q6k_dot, UP_TO_6(dot_q6k))
#endif
