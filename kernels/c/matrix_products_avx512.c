/*
 * Inner loops for AVX-512 (F, BW and VNNI). A tile has up to 12 rows by 16 columns, one register a row.
 *
 * Sums have the order of AVX2's, so the results are the same to the last bit: vpdpbusd is pmaddubsw, pmaddwd
 * and paddd in one.
 *
 * Processors with AVX-512 but without VNNI use AVX2 for all: they lower their clock for wide multiplications.
 */
#include "matrix_products_tiles.h"
#if defined(__x86_64__)
#include <immintrin.h>
#define FOR_AVX512 __attribute__((target("avx512f,avx512bw,avx512vnni")))
#define INLINE_AVX512 static inline __attribute__((always_inline, target("avx512f,avx512bw,avx512vnni")))

/* See round_block in matrix_products.c. */
FOR_AVX512 int rl_round_block_avx512(const float *x, int for_int8, float *scale, int8_t *bytes)
{
    const __m512 v[2] = {_mm512_loadu_ps(x), _mm512_loadu_ps(x + 16)}, zero = _mm512_setzero_ps();
    const float top = for_int8 ? TOP_Q8 : TOP;
    __m512i magnitude[2]; /* as integers these compare like floats, with infinity and NaN above all */
    _Pragma("GCC unroll 2") for (int i = 0; i < 2; i++) {
        magnitude[i] = _mm512_and_si512(_mm512_castps_si512(v[i]), _mm512_set1_epi32(0x7fffffff));
        if (!for_int8)
            continue;
        __m512 above = _mm512_max_ps(v[i], zero), below = _mm512_max_ps(_mm512_sub_ps(zero, v[i]), zero);
        above = _mm512_add_ps(above, _mm512_permute_ps(above, 0xb1));
        below = _mm512_add_ps(below, _mm512_permute_ps(below, 0xb1));
        above = _mm512_add_ps(above, _mm512_shuffle_f32x4(above, above, 0xb1));
        below = _mm512_add_ps(below, _mm512_shuffle_f32x4(below, below, 0xb1));
        magnitude[i] = _mm512_max_epi32(magnitude[i], _mm512_castps_si512(_mm512_max_ps(above, below)));
    }
    int32_t bits = _mm512_reduce_max_epi32(_mm512_max_epi32(magnitude[0], magnitude[1]));
    float most;
    memcpy(&most, &bits, sizeof most);
    const float inverse = top / most;
    *scale = !(most <= 3.4e38f) ? __builtin_nanf("") : inverse <= 3.4e38f ? most / top : 0;
    const __m512 by = _mm512_set1_ps(*scale > 0 ? inverse : 0);
    __m512i q[2];
    _Pragma("GCC unroll 2") for (int i = 0; i < 2; i++) {
        q[i] = _mm512_maskz_cvtps_epi32(*scale > 0 ? 0xffff : 0, _mm512_mul_ps(v[i], by));
        _mm_storeu_si128((__m128i *)bytes + i, _mm512_cvtsepi32_epi8(q[i]));
    }
    return _mm512_reduce_add_epi32(_mm512_add_epi32(q[0], q[1]));
}

INLINE_AVX512 void tile_f32(TILE_ARGUMENTS)
{
    const float *w = (const float *)panel, *x = p->tiled + row * p->inputs;
    __m512 sum[ROWS_AVX512];
    EACH_ROW sum[r] = _mm512_setzero_ps();
    for (int64_t k = 0; k < p->inputs; k++, w += PANEL, x += count) {
        if (k % BLOCK == 0)
            FETCH_AHEAD(k / BLOCK)
        __m512 w0 = _mm512_loadu_ps(w);
        EACH_ROW sum[r] = _mm512_fmadd_ps(_mm512_set1_ps(x[r]), w0, sum[r]);
    }
    EACH_ROW _mm512_storeu_ps(out + r * stride, sum[r]);
}

INLINE_AVX512 __m512 halves16(const uint8_t *at)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)at));
}

INLINE_AVX512 __m128i bytes16(const uint8_t *at) { return _mm_loadu_si128((const __m128i *)at); }

/* The numbers of a block's four inputs, for 16 columns. */
INLINE_AVX512 __m512i numbers(const uint8_t *block, int four, const int format)
{
    const uint8_t *w = block + SCALE_BYTES[format];
    if (format == Q8)
        return _mm512_loadu_si512(w + four * PANEL * 4);
    __m512i low = _mm512_loadu_si512(w + four / 2 * PANEL * 4);
    low = _mm512_and_si512(four % 2 ? _mm512_srli_epi16(low, 4) : low, _mm512_set1_epi8(15));
    if (format != Q6K)
        return low;
    __m512i high = _mm512_loadu_si512(w + BLOCK / 8 * PANEL * 4 + four / 4 * PANEL * 4);
    const int shift = 4 - four % 4 * 2;
    high = shift > 0 ? _mm512_slli_epi16(high, shift) : _mm512_srli_epi16(high, -shift);
    return _mm512_or_si512(low, _mm512_and_si512(high, _mm512_set1_epi8(0x30)));
}

INLINE_AVX512 void tile_quantised(TILE_ARGUMENTS, const int format)
{
    const int minima = format == Q4 || format == Q4K, halves = format == Q6K ? 2 : 1;
    const int8_t *q = p->bytes + row * p->blocks * BLOCK;
    const int64_t cells = row * p->blocks;
    const float *scales = p->scale + cells, *sums = p->sums + cells;
    const int32_t *starts = p->starts + cells * halves;
    __m512 total[ROWS_AVX512], d = _mm512_setzero_ps(), m = d; /* d, m: of a group; m negative */
    EACH_ROW total[r] = _mm512_setzero_ps();
    for (int64_t b = 0; b < p->blocks; b++, scales += count, sums += count, starts += count * halves) {
        FETCH_AHEAD(b)
        if (GROUP_BYTES[format] && b % GROUP == 0) {
            d = halves16(panel);
            if (format == Q4K)
                m = _mm512_sub_ps(_mm512_setzero_ps(), halves16(panel + PANEL * 2));
            panel += GROUP_BYTES[format];
        }
        _Pragma("GCC unroll 2") for (int half = 0; half < halves; half++) {
            __m512i sum[ROWS_AVX512];
            EACH_ROW sum[r] = minima ? _mm512_setzero_si512() : _mm512_set1_epi32(starts[r * halves + half]);
            const int fours = BLOCK / 4 / halves;
            _Pragma("GCC unroll 8") for (int four = half * fours; four < (half + 1) * fours; four++) {
                __m512i weights = numbers(panel, four, format);
                EACH_ROW {
                    int32_t word;
                    memcpy(&word, q + r * 4, sizeof word);
                    sum[r] = _mm512_dpbusd_epi32(sum[r], weights, _mm512_set1_epi32(word));
                }
                q += 4 * count;
            }
            __m512 scale, low = d;
            if (!GROUP_BYTES[format])
                scale = halves16(panel);
            else if (format == Q4K)
                scale = _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes16(panel))));
            else
                scale = _mm512_mul_ps(
                    d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes16(panel + half * PANEL))));
            if (format == Q4)
                low = halves16(panel + PANEL * 2);
            if (format == Q4K)
                low = _mm512_mul_ps(m, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes16(panel + PANEL))));
            EACH_ROW {
                __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[r]), _mm512_set1_ps(scales[r]));
                total[r] = _mm512_fmadd_ps(scale, product, total[r]);
                if (minima)
                    total[r] = _mm512_fmadd_ps(low, _mm512_set1_ps(sums[r]), total[r]);
            }
        }
        panel += QUANT_BYTES[format];
    }
    EACH_ROW _mm512_storeu_ps(out + r * stride, total[r]);
}

INLINE_AVX512 void tile_q8(TILE_ARGUMENTS) { tile_quantised(p, panel, row, out, stride, ahead, count, Q8); }
INLINE_AVX512 void tile_q4(TILE_ARGUMENTS) { tile_quantised(p, panel, row, out, stride, ahead, count, Q4); }
INLINE_AVX512 void tile_q4k(TILE_ARGUMENTS) { tile_quantised(p, panel, row, out, stride, ahead, count, Q4K); }
INLINE_AVX512 void tile_q6k(TILE_ARGUMENTS) { tile_quantised(p, panel, row, out, stride, ahead, count, Q6K); }

TILE(FOR_AVX512, rl_tile_f32_avx512, UP_TO_12(tile_f32))
TILE(FOR_AVX512, rl_tile_q8_avx512, UP_TO_12(tile_q8))
TILE(FOR_AVX512, rl_tile_q4_avx512, UP_TO_12(tile_q4))
TILE(FOR_AVX512, rl_tile_q4k_avx512, UP_TO_12(tile_q4k))
TILE(FOR_AVX512, rl_tile_q6k_avx512, UP_TO_12(tile_q6k))
#endif
