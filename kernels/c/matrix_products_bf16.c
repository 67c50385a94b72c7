/*
 * Products with bfloat16 weights: how x is laid out, and the inner loops.
 *
 * Everywhere x is rounded to bfloat16 (to nearest, ties to even), and products of bfloat16 numbers, which are
 * exact in float32, are summed in float32. The instruction sets differ in the order of the sums alone:
 *   portable, avx2  one sum, over the inputs in order; portable rounds each product's addition twice
 *   avx512-bf16     two sums, over the even and the odd pairs of inputs (vdpbf16ps), added at the end; in
 *                   attention one sum, over the pairs in order
 *   amx-bf16        32 inputs at a time, each as tdpbf16ps sums it, added to one sum in order
 * The last two take numbers below 2⁻¹²⁶ for 0. No order depends on the rows, so a row's result does not.
 */
#include "isa.h"
#include "matrix_products_tiles.h"

#if defined(__x86_64__) && defined(RL_BF16_COMPILER)
#include <immintrin.h>
#define FOR_BF16 __attribute__((target("avx512f,avx512bw,avx512bf16")))
#define INLINE_BF16 static inline __attribute__((always_inline, target("avx512f,avx512bw,avx512bf16")))

/* Round up to a block of numbers; those missing are 0. */
FOR_BF16 static void round_block_avx512(const float *x, int64_t n, uint16_t *out)
{
    const uint32_t given = n < BLOCK ? (1u << n) - 1 : 0xffffffff;
    __m512bh both = _mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps((__mmask16)(given >> 16), x + 16),
                                        _mm512_maskz_loadu_ps((__mmask16)given, x));
    memcpy(out, &both, sizeof both);
}
#endif

/* Round up to a block of numbers; those missing are 0. */
static void round_block(const Product *p, const float *x, int64_t n, uint16_t *out)
{
#if defined(__x86_64__) && defined(RL_BF16_COMPILER)
    if (p->layout != BF16_FLOATS) {
        round_block_avx512(x, n, out);
        return;
    }
#endif
    (void)p;
    memset(out, 0, BLOCK * sizeof *out);
    round_to_bf16(x, n, out);
}

/* Lay out the `count` rows of a tile, from `row` on. Inputs are padded with zeros to whole blocks. */
void rl_lay_out_bf16(const Product *p, int64_t row, int count)
{
    const int64_t padded = p->blocks * BLOCK;
    float gathered[BLOCK];
    uint16_t block[BLOCK];
    for (int64_t b = 0; b < p->blocks; b++) {
        const int64_t left = p->inputs - b * BLOCK, n = left < BLOCK ? left : BLOCK;
        for (int r = 0; r < count; r++) { /* rows within: they may be neighbours in memory */
            const float *x = p->x + (row + r) * p->row_stride + b * BLOCK * p->input_stride;
            if (p->input_stride != 1) {
                for (int64_t k = 0; k < n; k++)
                    gathered[k] = x[k * p->input_stride];
                x = gathered;
            }
            float *floats = p->tiled + row * padded + r;
            uint16_t *tiled = (uint16_t *)p->tiled, *whole = tiled + (row + r) * (padded + BLOCK);
            int first = r / BF16_GROUP * BF16_GROUP;
            int64_t group = count - first < BF16_GROUP ? count - first : BF16_GROUP;
            uint16_t *runs = tiled + (row + first) * padded + (r - first) * BLOCK;
            round_block(p, x, n, p->layout == BF16_ROWS ? whole + b * BLOCK : block);
            if (p->layout == BF16_RUNS)
                memcpy(runs + b * group * BLOCK, block, sizeof block);
            else if (p->layout == BF16_FLOATS)
                for (int k = 0; k < BLOCK; k++)
                    floats[(b * BLOCK + k) * count] = bf16_to_float(block[k]);
        }
    }
}

#if defined(__x86_64__)
#include <immintrin.h>
#define FOR_AVX2 __attribute__((target("avx2,fma")))
#define INLINE_AVX2 static inline __attribute__((always_inline, target("avx2,fma")))

INLINE_AVX2 void tile_avx2(TILE_ARGUMENTS)
{
    const float *x = p->tiled + row * p->blocks * BLOCK;
    const __m256i upper = _mm256_set1_epi32((int32_t)0xffff0000);
    __m256 sum[ROWS_AVX2][2];
    EACH_ROW sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    for (int64_t b = 0; b < p->blocks; b++) {
        FETCH_AHEAD(b)
        for (int pair = 0; pair < BLOCK / 2; pair++, panel += PANEL * 4, x += 2 * count) {
            __m256i both0 = _mm256_loadu_si256((const __m256i *)panel),
                    both1 = _mm256_loadu_si256((const __m256i *)panel + 1);
            _Pragma("GCC unroll 2") for (int odd = 0; odd < 2; odd++) {
                __m256i w0 = odd ? _mm256_and_si256(both0, upper) : _mm256_slli_epi32(both0, 16),
                        w1 = odd ? _mm256_and_si256(both1, upper) : _mm256_slli_epi32(both1, 16);
                EACH_ROW {
                    __m256 a = _mm256_broadcast_ss(x + odd * count + r);
                    sum[r][0] = _mm256_fmadd_ps(a, _mm256_castsi256_ps(w0), sum[r][0]);
                    sum[r][1] = _mm256_fmadd_ps(a, _mm256_castsi256_ps(w1), sum[r][1]);
                }
            }
        }
    }
    EACH_ROW {
        _mm256_storeu_ps(out + r * stride, sum[r][0]);
        _mm256_storeu_ps(out + r * stride + 8, sum[r][1]);
    }
}
TILE(FOR_AVX2, rl_tile_bf16_avx2, UP_TO_6(tile_avx2))

#if defined(RL_BF16_COMPILER)
INLINE_BF16 void tile_avx512(TILE_ARGUMENTS)
{
    const int64_t x_apart = (p->blocks + 1) * BLOCK * 2; /* bytes */
    const uint8_t *x = (const uint8_t *)p->tiled + row * x_apart;
    const uint8_t *three[4] = {x, x + 3 * x_apart, x + 6 * x_apart, x + 9 * x_apart}; /* rows 0, 3, 6 and 9 */
    __m512 even[ROWS_AVX512], odd[ROWS_AVX512];
    EACH_ROW even[r] = odd[r] = _mm512_setzero_ps();
    for (int64_t b = 0; b < p->blocks; b++) {
        FETCH_AHEAD(b)
        for (int pair = 0; pair < BLOCK / 2; pair += 2, panel += PANEL * 8) {
            __m512bh w0 = (__m512bh)_mm512_loadu_si512(panel),
                     w1 = (__m512bh)_mm512_loadu_si512(panel + PANEL * 4);
            EACH_ROW {
                const uint8_t *from = three[r / 3] + r % 3 * x_apart;
                int32_t word[2];
                memcpy(word, from, 4); /* read one by one: each goes from memory to all lanes */
                memcpy(word + 1, from + 4, 4);
                even[r] = _mm512_dpbf16_ps(even[r], (__m512bh)_mm512_set1_epi32(word[0]), w0);
                odd[r] = _mm512_dpbf16_ps(odd[r], (__m512bh)_mm512_set1_epi32(word[1]), w1);
            }
            _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) three[i] += sizeof(int32_t[2]);
        }
    }
    EACH_ROW _mm512_storeu_ps(out + r * stride, _mm512_add_ps(even[r], odd[r]));
}
TILE(FOR_BF16, rl_tile_bf16_avx512, UP_TO_12(tile_avx512))

/* out[count][panels · PANEL] = scale · x · panels. The rows of x are x_apart bytes apart, the panels `apart`,
 * and the rows of out `stride` numbers. */
INLINE_BF16 void rows_avx512(const uint8_t *x, int64_t x_apart, const uint8_t *panel, int64_t apart,
                             int64_t blocks, float scale, float *out, int64_t stride, const int count,
                             const int panels)
{
    const uint8_t *three[4]; /* rows 0, 3, 6 and 9: the others' addresses need no registers */
    __m512 sum[ROWS_AVX512][2];
    _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) three[i] = x + 3 * i * x_apart;
    EACH_ROW sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    for (int64_t four = 0; four < blocks * BLOCK / 8; four++, panel += PANEL * 16) {
        _Pragma("GCC unroll 4") for (int pair = 0; pair < 4; pair++) {
            __m512bh w[2];
            _Pragma("GCC unroll 2") for (int n = 0; n < panels; n++)
                w[n] = (__m512bh)_mm512_loadu_si512(panel + n * apart + pair * PANEL * 4);
            EACH_ROW {
                int32_t word;
                memcpy(&word, three[r / 3] + r % 3 * x_apart + pair * 4, sizeof word);
                _Pragma("GCC unroll 2") for (int n = 0; n < panels; n++)
                    sum[r][n] = _mm512_dpbf16_ps(sum[r][n], (__m512bh)_mm512_set1_epi32(word), w[n]);
            }
        }
        _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) three[i] += 16;
    }
    EACH_ROW _Pragma("GCC unroll 2") for (int n = 0; n < panels; n++)
        _mm512_storeu_ps(out + r * stride + n * PANEL, _mm512_mul_ps(sum[r][n], _mm512_set1_ps(scale)));
}

#define ROWS(n) \
    case n: rows_avx512(x, x_apart, panel, apart, blocks, scale, out, stride, n, panels); break;
#define ROWS_FUNCTION(name, number_of_panels)                                                                \
    FOR_BF16 static void name(const uint8_t *x, int64_t x_apart, const uint8_t *panel, int64_t apart,        \
                              int64_t blocks, float scale, float *out, int64_t stride, int count)            \
    {                                                                                                        \
        const int panels = number_of_panels;                                                                 \
        switch (count) {                                                                                     \
            ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6)                                                  \
            ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)                                               \
        }                                                                                                    \
    }
ROWS_FUNCTION(one_panel, 1)
ROWS_FUNCTION(two_panels, 2)

FOR_BF16 void rl_multiply_bf16(const float *const *x, const uint16_t *matrix, int64_t rows, int64_t inputs,
                               int64_t columns, int64_t apart, float scale, float *out, uint16_t *room)
{
    const int64_t blocks = (inputs + BLOCK - 1) / BLOCK, x_apart = (blocks + 1) * BLOCK * 2,
                  stride = (columns + PANEL - 1) / PANEL * PANEL;
    for (int64_t m = 0; m < rows; m++)
        for (int64_t b = 0; b < blocks; b++)
            round_block_avx512(x[m] + b * BLOCK, inputs - b * BLOCK, room + (m * (blocks + 1) + b) * BLOCK);
    for (int64_t column = 0; column < columns; column += 2 * PANEL)
        for (int64_t row = 0; row < rows; row += ROWS_AVX512) {
            const uint8_t *from = (const uint8_t *)room + row * x_apart,
                          *panel = (const uint8_t *)(matrix + column / PANEL * apart);
            const int count = rows - row < ROWS_AVX512 ? (int)(rows - row) : ROWS_AVX512;
            (stride - column < 2 * PANEL ? one_panel : two_panels)(
                from, x_apart, panel, 2 * apart, blocks, scale, out + row * stride + column, stride, count);
        }
}

/*
 * AMX: tile registers 0 to 3 hold the sums of up to four groups of 16 rows, 4 the weights of 32 inputs, 5 to
 * 7 those inputs of x. Sixteen rows of x are read even where a group has fewer: the others' sums come to
 * nothing. Loads go before the products that need them: one right before its product stalls.
 */
#define FOR_AMX __attribute__((target("amx-tile,amx-bf16")))

FOR_AMX void rl_amx_begin(void)
{
    static const struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } tiles = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&tiles);
}

FOR_AMX void rl_amx_end(void) { _tile_release(); }

FOR_AMX void rl_tile_bf16_amx(const Product *p, const uint8_t *panel, int64_t row, int count, float *out,
                              int64_t stride, const uint8_t *ahead)
{
    const int64_t blocks = p->blocks, group = BF16_GROUP * blocks * BLOCK * 2;
    const uint8_t *x = (const uint8_t *)p->tiled + row * blocks * BLOCK * 2;
    const int last = count % BF16_GROUP ? count % BF16_GROUP : BF16_GROUP; /* rows of the last group */
    const int64_t few = last * BLOCK * 2, all = BF16_GROUP * BLOCK * 2;     /* bytes of a group's block */
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
#define WEIGHTS(b) _tile_loadd(4, panel + (b) * 1024, 64)
    switch ((count + BF16_GROUP - 1) / BF16_GROUP) {
    case 1:
        for (int64_t b = 0; b < blocks; b += 2) {
            FETCH_AHEAD(b)
            WEIGHTS(b);
            _tile_loadd(5, x + b * few, 64);
            if (b + 1 < blocks) {
                _tile_loadd(6, panel + (b + 1) * 1024, 64);
                _tile_loadd(7, x + (b + 1) * few, 64);
                _tile_dpbf16ps(0, 5, 4);
                _tile_dpbf16ps(0, 7, 6);
            } else
                _tile_dpbf16ps(0, 5, 4);
        }
        break;
    case 2:
        for (int64_t b = 0; b < blocks; b++) {
            FETCH_AHEAD(b)
            WEIGHTS(b);
            _tile_loadd(5, x + b * all, 64);
            _tile_loadd(6, x + group + b * few, 64);
            _tile_dpbf16ps(0, 5, 4);
            _tile_dpbf16ps(1, 6, 4);
        }
        break;
    case 3:
        for (int64_t b = 0; b < blocks; b++) {
            FETCH_AHEAD(b)
            WEIGHTS(b);
            _tile_loadd(5, x + b * all, 64);
            _tile_loadd(6, x + group + b * all, 64);
            _tile_loadd(7, x + 2 * group + b * few, 64);
            _tile_dpbf16ps(0, 5, 4);
            _tile_dpbf16ps(1, 6, 4);
            _tile_dpbf16ps(2, 7, 4);
        }
        break;
    default:
        for (int64_t b = 0; b < blocks; b++) {
            FETCH_AHEAD(b)
            WEIGHTS(b);
            _tile_loadd(5, x + b * all, 64);
            _tile_loadd(6, x + group + b * all, 64);
            _tile_loadd(7, x + 2 * group + b * all, 64);
            _tile_dpbf16ps(0, 5, 4);
            _tile_dpbf16ps(1, 6, 4);
            _tile_dpbf16ps(2, 7, 4);
            _tile_loadd(5, x + 3 * group + b * few, 64);
            _tile_dpbf16ps(3, 5, 4);
        }
    }
    const int64_t apart = stride * (int64_t)sizeof(float);
    _tile_stored(0, out, apart);
    if (count > BF16_GROUP)
        _tile_stored(1, out + BF16_GROUP * stride, apart);
    if (count > 2 * BF16_GROUP)
        _tile_stored(2, out + 2 * BF16_GROUP * stride, apart);
    if (count > 3 * BF16_GROUP)
        _tile_stored(3, out + 3 * BF16_GROUP * stride, apart);
}
#endif
#endif
