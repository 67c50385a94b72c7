/* Inner loops for AVX2 with FMA and F16C. A tile of 6 rows (int8: 4) by 16 columns stays in registers. */
#include "matrix_products_tiles.h"
#if defined(__x86_64__)
#include <immintrin.h>
#define FOR_AVX2 __attribute__((target("avx2,fma,f16c")))
#define INLINE_AVX2 static inline __attribute__((always_inline, target("avx2,fma,f16c")))

/* See round_block in matrix_products.c. */
FOR_AVX2 int rl_round_block_avx2(const float *x, int eights, float *scale, int8_t *bytes)
{
    const __m256 positive = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)), zero = _mm256_setzero_ps();
    const float top = eights ? TOP_Q8 : TOP;
    __m256 v[4];
    __m256i magnitude[4]; /* as integers these compare like floats, with infinity and NaN above all */
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_loadu_ps(x + i * 8);
        magnitude[i] = _mm256_castps_si256(_mm256_and_ps(v[i], positive));
        if (eights) {
            __m256 above = _mm256_max_ps(v[i], zero), below = _mm256_max_ps(_mm256_sub_ps(zero, v[i]), zero);
            above = _mm256_add_ps(above, _mm256_permute_ps(above, 0xb1));
            below = _mm256_add_ps(below, _mm256_permute_ps(below, 0xb1));
            above = _mm256_add_ps(above, _mm256_permute2f128_ps(above, above, 1));
            below = _mm256_add_ps(below, _mm256_permute2f128_ps(below, below, 1));
            magnitude[i] = _mm256_max_epi32(magnitude[i], _mm256_castps_si256(_mm256_max_ps(above, below)));
        }
    }
    __m256i left = _mm256_max_epi32(magnitude[0], magnitude[1]),
            right = _mm256_max_epi32(magnitude[2], magnitude[3]);
    __m256i most8 = _mm256_max_epi32(left, right);
    __m128i most4 = _mm_max_epi32(_mm256_castsi256_si128(most8), _mm256_extracti128_si256(most8, 1));
    most4 = _mm_max_epi32(most4, _mm_shuffle_epi32(most4, 0x4e));
    most4 = _mm_max_epi32(most4, _mm_shuffle_epi32(most4, 0xb1));
    float most = _mm_cvtss_f32(_mm_castsi128_ps(most4)), inverse = top / most;
    *scale = !(most <= 3.4e38f) ? __builtin_nanf("") : inverse <= 3.4e38f ? most / top : 0;
    if (!(*scale > 0)) {
        _mm256_storeu_si256((__m256i *)bytes, _mm256_setzero_si256());
        return 0;
    }
    const __m256 by = _mm256_set1_ps(inverse);
    __m256i q[4];
    for (int i = 0; i < 4; i++)
        q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], by));
    /* Each half is packed separately: 32-bit word w of the result holds four numbers of q[w % 4]. */
    __m256i all = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    all = _mm256_permutevar8x32_epi32(all, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)bytes, all);
    __m256i four = _mm256_add_epi32(_mm256_add_epi32(q[0], q[1]), _mm256_add_epi32(q[2], q[3]));
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    return _mm_cvtsi128_si32(sum) + _mm_extract_epi32(sum, 1);
}

/* Keeps the order of the statements around it. Otherwise the compiler hoists every row's load and spills the
 * sums. */
#define KEEP(v) __asm__ volatile("" : "+x"(v))

/* `count` rows × 16 columns. `count` is a constant in each copy, so that the loops over rows are unrolled. */
INLINE_AVX2 void tile_f32(TILE_ARGUMENTS)
{
    const float *w = (const float *)panel, *x = p->tiled + row * p->inputs;
    __m256 sum[ROWS_AVX2][2];
    EACH_ROW sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    for (int64_t k = 0; k < p->inputs; k++, w += PANEL, x += count) {
        if (k % BLOCK == 0)
            FETCH_AHEAD(k / BLOCK)
        __m256 w0 = _mm256_loadu_ps(w), w1 = _mm256_loadu_ps(w + 8);
        EACH_ROW {
            __m256 a = _mm256_broadcast_ss(x + r);
            sum[r][0] = _mm256_fmadd_ps(a, w0, sum[r][0]);
            sum[r][1] = _mm256_fmadd_ps(a, w1, sum[r][1]);
        }
    }
    EACH_ROW {
        _mm256_storeu_ps(out + r * stride, sum[r][0]);
        _mm256_storeu_ps(out + r * stride + 8, sum[r][1]);
    }
}

INLINE_AVX2 __m256 halves8(const uint8_t *at)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at));
}

INLINE_AVX2 __m256i bcast(const void *four) /* four bytes, eight times */
{
    int32_t word;
    memcpy(&word, four, sizeof word);
    return _mm256_set1_epi32(word);
}

INLINE_AVX2 void tile_q8(TILE_ARGUMENTS)
{
    const int8_t *q = p->bytes + row * p->blocks * BLOCK;
    const float *scales = p->scale + row * p->blocks;
    const int32_t *starts = p->starts + row * p->blocks;
    const __m256i ones = _mm256_set1_epi16(1);
    __m256 total[ROWS_AVX2_Q8][2];
    EACH_ROW total[r][0] = total[r][1] = _mm256_setzero_ps();
    for (int64_t b = 0; b < p->blocks; b++, panel += QUANT_BYTES[Q8], scales += count, starts += count) {
        FETCH_AHEAD(b)
        __m256i sum[ROWS_AVX2_Q8][2];
        EACH_ROW sum[r][0] = sum[r][1] = _mm256_set1_epi32(starts[r]);
        const __m256i *w = (const __m256i *)(panel + PANEL * 2);
        for (int eight = 0; eight < BLOCK / 8; eight++, w += 4, q += 8 * count) {
            __m256i w0 = _mm256_loadu_si256(w), w1 = _mm256_loadu_si256(w + 1);
            __m256i w2 = _mm256_loadu_si256(w + 2), w3 = _mm256_loadu_si256(w + 3);
            EACH_ROW {
                __m256i a = bcast(q + r * 4), c = bcast(q + (count + r) * 4);
                __m256i left = _mm256_add_epi16(_mm256_maddubs_epi16(w0, a), _mm256_maddubs_epi16(w2, c));
                __m256i right = _mm256_add_epi16(_mm256_maddubs_epi16(w1, a), _mm256_maddubs_epi16(w3, c));
                sum[r][0] = _mm256_add_epi32(sum[r][0], _mm256_madd_epi16(left, ones));
                sum[r][1] = _mm256_add_epi32(sum[r][1], _mm256_madd_epi16(right, ones));
                KEEP(sum[r][0]);
                KEEP(sum[r][1]);
            }
        }
        for (int h = 0; h < 2; h++) {
            __m256 scale = halves8(panel + h * 16);
            EACH_ROW {
                __m256 product = _mm256_cvtepi32_ps(sum[r][h]);
                total[r][h] =
                    _mm256_fmadd_ps(scale, _mm256_mul_ps(product, _mm256_set1_ps(scales[r])), total[r][h]);
            }
        }
    }
    EACH_ROW {
        _mm256_storeu_ps(out + r * stride, total[r][0]);
        _mm256_storeu_ps(out + r * stride + 8, total[r][1]);
    }
}

INLINE_AVX2 __m256 small8(const uint8_t *at) /* bytes from 0 to 255 */
{
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)at)));
}

INLINE_AVX2 __m256 signed8(const uint8_t *at)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)at)));
}

/* int4 and Q4_K. */
INLINE_AVX2 void tile_nibbles(TILE_ARGUMENTS, const int format)
{
    const int8_t *q = p->bytes + row * p->blocks * BLOCK;
    const float *scales = p->scale + row * p->blocks, *sums = p->sums + row * p->blocks;
    const __m256i ones = _mm256_set1_epi16(1), low4 = _mm256_set1_epi8(15);
    __m256 total[ROWS_AVX2][2];
    EACH_ROW total[r][0] = total[r][1] = _mm256_setzero_ps();
    __m256 d[2] = {total[0][0], total[0][0]}, m[2] = {d[0], d[0]}; /* of a group; m negative */
    for (int64_t b = 0; b < p->blocks; b++, panel += QUANT_BYTES[format], scales += count, sums += count) {
        FETCH_AHEAD(b)
        if (format == Q4K && b % GROUP == 0) {
            for (int h = 0; h < 2; h++) {
                d[h] = halves8(panel + h * 16);
                m[h] = _mm256_sub_ps(_mm256_setzero_ps(), halves8(panel + PANEL * 2 + h * 16));
            }
            panel += GROUP_BYTES[Q4K];
        }
        __m256i sum[ROWS_AVX2][2]; /* in 16 bits, which a block's products fit */
        EACH_ROW sum[r][0] = sum[r][1] = _mm256_setzero_si256();
        const __m256i *bytes = (const __m256i *)(panel + SCALE_BYTES[format]);
        for (int run = 0; run < BLOCK / 8; run++, bytes += 2) {
            __m256i both0 = _mm256_loadu_si256(bytes), both1 = _mm256_loadu_si256(bytes + 1);
            _Pragma("GCC unroll 2") for (int high = 0; high < 2; high++, q += 4 * count) {
                __m256i w0 = _mm256_and_si256(high ? _mm256_srli_epi16(both0, 4) : both0, low4);
                __m256i w1 = _mm256_and_si256(high ? _mm256_srli_epi16(both1, 4) : both1, low4);
                EACH_ROW {
                    __m256i a = bcast(q + r * 4);
                    sum[r][0] = _mm256_add_epi16(sum[r][0], _mm256_maddubs_epi16(w0, a));
                    sum[r][1] = _mm256_add_epi16(sum[r][1], _mm256_maddubs_epi16(w1, a));
                    KEEP(sum[r][0]);
                    KEEP(sum[r][1]);
                }
            }
        }
        for (int h = 0; h < 2; h++) {
            __m256 scale, low;
            if (format == Q4) {
                scale = halves8(panel + h * 16);
                low = halves8(panel + PANEL * 2 + h * 16);
            } else {
                scale = _mm256_mul_ps(d[h], small8(panel + h * 8));
                low = _mm256_mul_ps(m[h], small8(panel + PANEL + h * 8));
            }
            EACH_ROW {
                __m256 product = _mm256_cvtepi32_ps(_mm256_madd_epi16(sum[r][h], ones));
                total[r][h] =
                    _mm256_fmadd_ps(scale, _mm256_mul_ps(product, _mm256_set1_ps(scales[r])), total[r][h]);
                total[r][h] = _mm256_fmadd_ps(low, _mm256_set1_ps(sums[r]), total[r][h]);
            }
        }
    }
    EACH_ROW {
        _mm256_storeu_ps(out + r * stride, total[r][0]);
        _mm256_storeu_ps(out + r * stride + 8, total[r][1]);
    }
}

INLINE_AVX2 void tile_q4(TILE_ARGUMENTS) { tile_nibbles(p, panel, row, out, stride, ahead, count, Q4); }
INLINE_AVX2 void tile_q4k(TILE_ARGUMENTS) { tile_nibbles(p, panel, row, out, stride, ahead, count, Q4K); }

/* The numbers of a four inputs of half a block, 0 to 63, from bytes with their low and their high bits. */
INLINE_AVX2 __m256i six_bits(__m256i low, __m256i high, int four)
{
    low = _mm256_and_si256(four % 2 ? _mm256_srli_epi16(low, 4) : low, _mm256_set1_epi8(15));
    high = four < 2 ? _mm256_slli_epi16(high, 4 - four * 2) : _mm256_srli_epi16(high, four * 2 - 4);
    return _mm256_or_si256(low, _mm256_and_si256(high, _mm256_set1_epi8(0x30)));
}

INLINE_AVX2 void tile_q6k(TILE_ARGUMENTS)
{
    const int8_t *q = p->bytes + row * p->blocks * BLOCK;
    const float *scales = p->scale + row * p->blocks;
    const int32_t *starts = p->starts + row * p->blocks * 2;
    const __m256i ones = _mm256_set1_epi16(1);
    __m256 total[ROWS_AVX2][2], d[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()}; /* d: of a group */
    EACH_ROW total[r][0] = total[r][1] = _mm256_setzero_ps();
    for (int64_t b = 0; b < p->blocks; b++, panel += QUANT_BYTES[Q6K], scales += count, starts += count * 2) {
        FETCH_AHEAD(b)
        if (b % GROUP == 0) {
            d[0] = halves8(panel), d[1] = halves8(panel + 16);
            panel += GROUP_BYTES[Q6K];
        }
        for (int half = 0; half < 2; half++) {
            __m256i sum[ROWS_AVX2][2]; /* in 16 bits, see TOP */
            EACH_ROW sum[r][0] = sum[r][1] = _mm256_set1_epi32(starts[r * 2 + half]);
            const __m256i *low = (const __m256i *)(panel + PANEL * 2) + half * 4;
            const __m256i *high = (const __m256i *)(panel + PANEL * 2 + BLOCK * PANEL / 2) + half * 2;
            _Pragma("GCC unroll 4") for (int four = 0; four < 4; four++, q += 4 * count) {
                const __m256i *at = low + four / 2 * 2;
                __m256i w0 = six_bits(_mm256_loadu_si256(at), _mm256_loadu_si256(high), four);
                __m256i w1 = six_bits(_mm256_loadu_si256(at + 1), _mm256_loadu_si256(high + 1), four);
                EACH_ROW {
                    __m256i a = bcast(q + r * 4);
                    sum[r][0] = _mm256_add_epi16(sum[r][0], _mm256_maddubs_epi16(w0, a));
                    sum[r][1] = _mm256_add_epi16(sum[r][1], _mm256_maddubs_epi16(w1, a));
                    KEEP(sum[r][0]);
                    KEEP(sum[r][1]);
                }
            }
            for (int h = 0; h < 2; h++) {
                __m256 scale = _mm256_mul_ps(d[h], signed8(panel + half * PANEL + h * 8));
                EACH_ROW {
                    __m256 product = _mm256_cvtepi32_ps(_mm256_madd_epi16(sum[r][h], ones));
                    total[r][h] = _mm256_fmadd_ps(scale, _mm256_mul_ps(product, _mm256_set1_ps(scales[r])),
                                                  total[r][h]);
                }
            }
        }
    }
    EACH_ROW {
        _mm256_storeu_ps(out + r * stride, total[r][0]);
        _mm256_storeu_ps(out + r * stride + 8, total[r][1]);
    }
}

TILE(FOR_AVX2, rl_tile_f32_avx2, UP_TO_6(tile_f32))
TILE(FOR_AVX2, rl_tile_q8_avx2, UP_TO_4(tile_q8))
TILE(FOR_AVX2, rl_tile_q4_avx2, UP_TO_6(tile_q4))
TILE(FOR_AVX2, rl_tile_q4k_avx2, UP_TO_6(tile_q4k))
TILE(FOR_AVX2, rl_tile_q6k_avx2, UP_TO_6(tile_q6k))
#endif
