/*
 * The inner loops of linear.c for AVX-512 (F, BW and VNNI): tiles of up to 12 rows by 16 columns, one register a row.
 *
 * The sums are those of AVX2 in the same order, so the results are the same to the last bit: vpdpwssd is pmaddwd and paddd in
 * one. vpdpbusd, for bytes, would halve x to 8 bits or take two products, and more work on the weights, for the same count.
 *
 * What is not here runs as AVX2 on these processors: rows of x are quantised, normed, rotated and gated, caches and logits read, at the
 * speed of the caches. Processors with AVX-512 but no VNNI use AVX2 altogether: they lower their clock for the wide multiplies.
 */
#include "tiles.h"
#if defined(__x86_64__)
#include <immintrin.h>
#define FOR_AVX512 __attribute__((target("avx512f,avx512bw,avx512vnni")))
#define INLINE_AVX512 static inline __attribute__((always_inline, target("avx512f,avx512bw,avx512vnni")))

INLINE_AVX512 void tile_f32(const Product *p, int64_t row, int64_t column, float *out, const int count)
{
    const float *w = (const float *)p->packed + (size_t)column * (size_t)p->inputs, *x = p->tiled + row * p->inputs;
    __m512 sum[ROWS_AVX512];
    EACH_ROW sum[r] = _mm512_setzero_ps();
    for (int64_t k = 0; k < p->inputs; k++, w += PANEL, x += count) {
        __m512 w0 = _mm512_loadu_ps(w);
        EACH_ROW sum[r] = _mm512_fmadd_ps(_mm512_set1_ps(x[r]), w0, sum[r]);
    }
    EACH_ROW _mm512_storeu_ps(out + r * PANEL, sum[r]);
}

INLINE_AVX512 __m512 halves16(const uint8_t *at) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)at)); }

INLINE_AVX512 void tile_quantised(const Product *p, int64_t row, int64_t column, float *out, const int count, const int four)
{
    const uint8_t *at = block_at(p->packed, p->format, p->blocks, column, 0);
    const int16_t *q = p->quantised + row * p->blocks * BLOCK;
    const float *sums = p->sums + row * p->blocks;
    const __m512i low4 = _mm512_set1_epi32(0x000f000f);
    __m512 total[ROWS_AVX512];
    EACH_ROW total[r] = _mm512_setzero_ps();
    for (int64_t b = 0; b < p->blocks; b++, at += QUANT_BYTES[four ? Q4 : Q8], sums += count) {
        __m512i sum[ROWS_AVX512];
        EACH_ROW sum[r] = _mm512_setzero_si512();
        for (int run = 0; run < 4; run++) { /* of four pairs of inputs */
            __m512i words = four ? _mm512_loadu_si512(at + PANEL * 4 + run * 64) : low4;
            _Pragma("GCC unroll 4") for (int pair = 0; pair < 4; pair++, q += 2 * count) {
                __m512i w = four ? _mm512_and_si512(_mm512_srli_epi16(words, pair * 4), low4)
                                 : _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(at + PANEL * 2 + run * 128 + pair * 32)));
                EACH_ROW {
                    int32_t two;
                    memcpy(&two, q + r * 2, sizeof two);
                    sum[r] = _mm512_dpwssd_epi32(sum[r], w, _mm512_set1_epi32(two));
                }
            }
        }
        __m512 scale = halves16(at), low = four ? halves16(at + PANEL * 2) : scale;
        EACH_ROW {
            total[r] = _mm512_fmadd_ps(scale, _mm512_mul_ps(_mm512_cvtepi32_ps(sum[r]), _mm512_set1_ps(p->scale[row + r])), total[r]);
            if (four)
                total[r] = _mm512_fmadd_ps(low, _mm512_set1_ps(sums[r]), total[r]);
        }
    }
    EACH_ROW _mm512_storeu_ps(out + r * PANEL, total[r]);
}

INLINE_AVX512 void tile_q8(const Product *p, int64_t row, int64_t column, float *out, const int count) { tile_quantised(p, row, column, out, count, 0); }
INLINE_AVX512 void tile_q4(const Product *p, int64_t row, int64_t column, float *out, const int count) { tile_quantised(p, row, column, out, count, 1); }

#define BY_COUNT(name)                                                                                                 \
    FOR_AVX512 void rl_##name##_avx512(const Product *p, int64_t row, int count, int64_t column, float *out)           \
    {                                                                                                                  \
        switch (count) {                                                                                               \
            COPY(name, 1) COPY(name, 2) COPY(name, 3) COPY(name, 4) COPY(name, 5) COPY(name, 6)                        \
            COPY(name, 7) COPY(name, 8) COPY(name, 9) COPY(name, 10) COPY(name, 11) COPY(name, 12)                     \
        }                                                                                                              \
    }
BY_COUNT(tile_f32)
BY_COUNT(tile_q8)
BY_COUNT(tile_q4)
#endif
