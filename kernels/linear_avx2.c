/* The inner loops of linear.c for AVX2 with FMA and F16C: tiles of up to 6 rows by 16 columns, in registers. */
#include "tiles.h"
#if defined(__x86_64__)
#include <immintrin.h>
#define FOR_AVX2 __attribute__((target("avx2,fma,f16c")))
#define INLINE_AVX2 static inline __attribute__((always_inline, target("avx2,fma,f16c")))

FOR_AVX2 void rl_quantise_avx2(const float *x, int64_t n, float inverse, int16_t *out)
{
    const __m256 by = _mm256_set1_ps(inverse);
    int64_t k = 0;
    for (; k + 16 <= n; k += 16) {
        __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + k), by));
        __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + k + 8), by));
        _mm256_storeu_si256((__m256i *)(out + k), _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8));
    }
    for (; k < n; k++)
        out[k] = (int16_t)_mm_cvtss_si32(_mm_set_ss(x[k] * inverse));
}

FOR_AVX2 float rl_largest_avx2(const float *x, int64_t n) /* NaN where there is one */
{
    const __m256 positive = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256i most = _mm256_setzero_si256(); /* as integers, magnitudes order as floats do, with NaN above all */
    int64_t k = 0;
    for (; k + 8 <= n; k += 8)
        most = _mm256_max_epi32(most, _mm256_castps_si256(_mm256_and_ps(_mm256_loadu_ps(x + k), positive)));
    int32_t lanes[8], tail;
    _mm256_storeu_si256((__m256i *)lanes, most);
    for (int i = 1; i < 8; i++)
        lanes[0] = lanes[i] > lanes[0] ? lanes[i] : lanes[0];
    for (; k < n; k++) {
        memcpy(&tail, x + k, 4);
        tail &= 0x7fffffff;
        lanes[0] = tail > lanes[0] ? tail : lanes[0];
    }
    float value;
    memcpy(&value, lanes, 4);
    return value;
}

/* Fixes the order of the statements around it: left alone, the compiler hoists every row's load and spills the sums. */
#define KEEP(v) __asm__ volatile("" : "+x"(v))

/* `count` rows × 16 columns in registers; `count` is a constant in each copy, and the loops over it are unrolled. */
INLINE_AVX2 void tile_f32(const Product *p, int64_t row, int64_t column, float *out, const int count)
{
    const float *w = (const float *)p->packed + (size_t)column * (size_t)p->inputs, *x = p->tiled + row * p->inputs;
    __m256 sum[ROWS_AVX2][2];
    EACH_ROW sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    for (int64_t k = 0; k < p->inputs; k++, w += PANEL, x += count) {
        __m256 w0 = _mm256_loadu_ps(w), w1 = _mm256_loadu_ps(w + 8);
        EACH_ROW {
            __m256 a = _mm256_broadcast_ss(x + r);
            sum[r][0] = _mm256_fmadd_ps(a, w0, sum[r][0]);
            sum[r][1] = _mm256_fmadd_ps(a, w1, sum[r][1]);
        }
    }
    EACH_ROW {
        _mm256_storeu_ps(out + r * PANEL, sum[r][0]);
        _mm256_storeu_ps(out + r * PANEL + 8, sum[r][1]);
    }
}

INLINE_AVX2 __m256 halves8(const uint8_t *at) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at)); }

INLINE_AVX2 __m256i nibbles(__m256i words, const int which) /* nibble `which` of each 16-bit word */
{
    __m256i shifted = which ? _mm256_srli_epi16(words, which * 4) : words;
    return which == 3 ? shifted : _mm256_and_si256(shifted, _mm256_set1_epi16(15));
}

INLINE_AVX2 void tile_quantised(const Product *p, int64_t row, int64_t column, float *out, const int count, const int four)
{
    const uint8_t *at = block_at(p->packed, p->format, p->blocks, column, 0);
    const int16_t *q = p->quantised + row * p->blocks * BLOCK;
    const float *sums = p->sums + row * p->blocks;
    __m256 total[ROWS_AVX2][2];
    EACH_ROW total[r][0] = total[r][1] = _mm256_setzero_ps();
    for (int64_t b = 0; b < p->blocks; b++, at += QUANT_BYTES[four ? Q4 : Q8], sums += count) {
        __m256i sum[ROWS_AVX2][2];
        EACH_ROW sum[r][0] = sum[r][1] = _mm256_setzero_si256();
        for (int run = 0; run < 4; run++) { /* of four pairs of inputs */
            const __m256i *words = (const __m256i *)(at + PANEL * 4) + run * 2;
            const __m128i *bytes = (const __m128i *)(at + PANEL * 2) + run * 8;
            __m256i words0 = _mm256_setzero_si256(), words1 = words0;
            if (four)
                words0 = _mm256_loadu_si256(words), words1 = _mm256_loadu_si256(words + 1);
            _Pragma("GCC unroll 4") for (int pair = 0; pair < 4; pair++, q += 2 * count) {
                __m256i w0, w1;
                if (four) {
                    w0 = nibbles(words0, pair);
                    w1 = nibbles(words1, pair);
                } else {
                    w0 = _mm256_cvtepi8_epi16(_mm_loadu_si128(bytes + pair * 2));
                    w1 = _mm256_cvtepi8_epi16(_mm_loadu_si128(bytes + pair * 2 + 1));
                }
                EACH_ROW {
                    int32_t two;
                    memcpy(&two, q + r * 2, sizeof two);
                    __m256i a = _mm256_set1_epi32(two);
                    sum[r][0] = _mm256_add_epi32(sum[r][0], _mm256_madd_epi16(w0, a));
                    sum[r][1] = _mm256_add_epi32(sum[r][1], _mm256_madd_epi16(w1, a));
                    KEEP(sum[r][0]);
                    KEEP(sum[r][1]);
                }
            }
        }
        for (int h = 0; h < 2; h++) {
            __m256 scale = halves8(at + h * 16), low = four ? halves8(at + PANEL * 2 + h * 16) : scale;
            EACH_ROW {
                total[r][h] = _mm256_fmadd_ps(scale, _mm256_mul_ps(_mm256_cvtepi32_ps(sum[r][h]), _mm256_set1_ps(p->scale[row + r])), total[r][h]);
                if (four)
                    total[r][h] = _mm256_fmadd_ps(low, _mm256_set1_ps(sums[r]), total[r][h]);
            }
        }
    }
    EACH_ROW {
        _mm256_storeu_ps(out + r * PANEL, total[r][0]);
        _mm256_storeu_ps(out + r * PANEL + 8, total[r][1]);
    }
}

INLINE_AVX2 void tile_q8(const Product *p, int64_t row, int64_t column, float *out, const int count) { tile_quantised(p, row, column, out, count, 0); }
INLINE_AVX2 void tile_q4(const Product *p, int64_t row, int64_t column, float *out, const int count) { tile_quantised(p, row, column, out, count, 1); }

#define BY_COUNT(name)                                                                                                 \
    FOR_AVX2 void rl_##name##_avx2(const Product *p, int64_t row, int count, int64_t column, float *out)               \
    {                                                                                                                  \
        switch (count) { COPY(name, 1) COPY(name, 2) COPY(name, 3) COPY(name, 4) COPY(name, 5) COPY(name, 6) }         \
    }
BY_COUNT(tile_f32)
BY_COUNT(tile_q8)
BY_COUNT(tile_q4)
#endif
