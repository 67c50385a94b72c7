/*
 * Inner loops for AVX-512 (F, BW and VNNI). A tile has up to 12 rows by 16 columns, one register a row.
 *
 * Sums have the order of AVX2's, so the results are the same to the last bit: vpdpbusd is pmaddubsw, pmaddwd
 * and paddd in one.
 *
 * Everything else runs as AVX2 on these processors, because it is bound by the caches, not by arithmetic.
 * Processors with AVX-512 but without VNNI use AVX2 for all: they lower their clock for wide multiplications.
 */
#include "matrix_products_tiles.h"
#if defined(__x86_64__)
#include <immintrin.h>
#define FOR_AVX512 __attribute__((target("avx512f,avx512bw,avx512vnni")))
#define INLINE_AVX512 static inline __attribute__((always_inline, target("avx512f,avx512bw,avx512vnni")))

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
    EACH_ROW _mm512_storeu_ps(out + r * PANEL, sum[r]);
}

INLINE_AVX512 __m512 halves16(const uint8_t *at)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)at));
}

INLINE_AVX512 void tile_quantised(TILE_ARGUMENTS, const int four_bits)
{
    const int8_t *q = p->bytes + row * p->blocks * BLOCK;
    const int64_t cells = row * p->blocks;
    const float *scales = p->scale + cells, *sums = p->sums + cells;
    const int32_t *starts = p->starts + cells;
    const __m512i low4 = _mm512_set1_epi8(15);
    __m512 total[ROWS_AVX512];
    EACH_ROW total[r] = _mm512_setzero_ps();
    for (int64_t b = 0; b < p->blocks; b++, scales += count, sums += count, starts += count) {
        FETCH_AHEAD(b)
        __m512i sum[ROWS_AVX512];
        EACH_ROW sum[r] = four_bits ? _mm512_setzero_si512() : _mm512_set1_epi32(starts[r]);
        const uint8_t *w = panel + (four_bits ? PANEL * 4 : PANEL * 2);
        for (int four = 0; four < BLOCK / 4; four++, q += 4 * count) {
            __m512i weights = _mm512_loadu_si512(w + (four_bits ? four / 2 : four) * PANEL * 4);
            if (four_bits)
                weights = _mm512_and_si512(four % 2 ? _mm512_srli_epi16(weights, 4) : weights, low4);
            EACH_ROW {
                int32_t word;
                memcpy(&word, q + r * 4, sizeof word);
                sum[r] = _mm512_dpbusd_epi32(sum[r], weights, _mm512_set1_epi32(word));
            }
        }
        __m512 scale = halves16(panel), low = four_bits ? halves16(panel + PANEL * 2) : scale;
        EACH_ROW {
            __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[r]), _mm512_set1_ps(scales[r]));
            total[r] = _mm512_fmadd_ps(scale, product, total[r]);
            if (four_bits)
                total[r] = _mm512_fmadd_ps(low, _mm512_set1_ps(sums[r]), total[r]);
        }
        panel += QUANT_BYTES[four_bits ? Q4 : Q8];
    }
    EACH_ROW _mm512_storeu_ps(out + r * PANEL, total[r]);
}

INLINE_AVX512 void tile_q8(TILE_ARGUMENTS) { tile_quantised(p, panel, row, out, ahead, count, 0); }
INLINE_AVX512 void tile_q4(TILE_ARGUMENTS) { tile_quantised(p, panel, row, out, ahead, count, 1); }

TILE(FOR_AVX512, rl_tile_f32_avx512, UP_TO_12(tile_f32))
TILE(FOR_AVX512, rl_tile_q8_avx512, UP_TO_12(tile_q8))
TILE(FOR_AVX512, rl_tile_q4_avx512, UP_TO_12(tile_q4))
#endif
