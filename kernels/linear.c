/*
 * y = x Wᵀ for weights packed once: float32, int8 (Q8_0) and int4 (Q4_0, Q4_1), for one row as for many.
 *
 * Layout. Output columns go in panels of 16. A float32 panel is [K][16]. A quantised panel is a run of
 * blocks of 32 inputs: 16 scales (IEEE half), for int4 16 minima (half), then the weights in pairs of
 * inputs: int8 [16 pairs][16 columns][2]; int4 [4][16 columns][2] 16-bit words of which nibble t of word v
 * belongs to pair 4v + t. Bits a weight: 32, 8.5 and 5 (Q4_0 is stored as Q4_1 with minimum −8 · scale).
 *
 * Quantised products are exact integers: a row of x becomes int16 with one scale (15 bits, so that the
 * rounding of x is far below that of the weights), a block's 32 products are summed in int32 (at most
 * 32 · 127 · 32767 < 2³¹), and y += scale_w · sum (+ minimum · sum of x) in float32.
 *
 * Every output is summed over the inputs in one fixed order whatever the number of rows, so a row's result
 * does not depend, to the last bit, on what it is batched with.
 */
#include "redlite.h"
#include "linear.h"
#include "pool.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define INLINE_AVX2 static inline __attribute__((always_inline, target("avx2,fma,f16c")))
#endif

enum { PANEL = 16, BLOCK = 32, TILE = 6, X_BLOCK_BYTES = 192 * 1024 };
enum { F32 = 0, Q8 = 1, Q4 = 2 };

static const size_t QUANT_BYTES[3] = {0, PANEL * 2 + BLOCK * PANEL, PANEL * 4 + BLOCK * PANEL / 2}; /* a block of a panel */

/* Bytes that a packed [columns, inputs] matrix takes. */
RL_EXPORT size_t rl_packed_bytes(int format, int64_t columns, int64_t inputs)
{
    size_t panels = (size_t)(columns + PANEL - 1) / PANEL;
    if (format == F32)
        return panels * (size_t)inputs * PANEL * sizeof(float);
    return panels * (size_t)((inputs + BLOCK - 1) / BLOCK) * QUANT_BYTES[format];
}

/* ---- IEEE half, for scales ---- */

static float half_to_float(uint16_t h)
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

static uint16_t float_to_half(float value) /* round to nearest, ties to even; too large becomes infinity */
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

/* ---- packing ---- */

static uint8_t *block_at(void *packed, int format, int64_t blocks, int64_t column, int64_t block)
{
    return (uint8_t *)packed + ((size_t)(column / PANEL) * (size_t)blocks + (size_t)block) * QUANT_BYTES[format];
}

static void put_scale(uint8_t *at, int64_t column, float scale)
{
    uint16_t half = float_to_half(scale);
    memcpy(at + column % PANEL * 2, &half, 2);
}

static void put_int8(uint8_t *at, int64_t column, const int8_t *q)
{
    for (int k = 0; k < BLOCK; k++)
        at[PANEL * 2 + k / 2 * PANEL * 2 + column % PANEL * 2 + k % 2] = (uint8_t)q[k];
}

static void put_int4(uint8_t *at, int64_t column, const uint8_t *q) /* q: 0 to 15 */
{
    for (int k = 0; k < BLOCK; k++) {
        int pair = k / 2, word = (pair / 4 * PANEL + (int)(column % PANEL)) * 2 + k % 2, nibble = pair % 4;
        at[PANEL * 4 + word * 2 + nibble / 2] |= (uint8_t)(q[k] << nibble % 2 * 4);
    }
}

/* Pack rows [first, first + count) of a float32 matrix [columns, inputs], given as rows [count, inputs]; `packed` starts zeroed.
 * Quantising: int8 scale = largest / 127; int4 scale = (largest − smallest) / 15 with that minimum. Scales are halves. */
RL_EXPORT void rl_pack_float(int format, void *packed, const float *rows, int64_t first, int64_t count, int64_t inputs)
{
    int64_t blocks = (inputs + BLOCK - 1) / BLOCK;
    for (int64_t r = 0; r < count; r++) {
        const float *w = rows + r * inputs;
        int64_t column = first + r;
        if (format == F32) {
            float *panel = (float *)packed + (size_t)(column / PANEL) * (size_t)inputs * PANEL + column % PANEL;
            for (int64_t k = 0; k < inputs; k++)
                panel[k * PANEL] = w[k];
            continue;
        }
        for (int64_t b = 0; b < blocks; b++) {
            int n = (int)(inputs - b * BLOCK < BLOCK ? inputs - b * BLOCK : BLOCK);
            const float *v = w + b * BLOCK;
            uint8_t *at = block_at(packed, format, blocks, column, b);
            float low = v[0], high = v[0];
            for (int k = 1; k < n; k++) {
                low = v[k] < low ? v[k] : low;
                high = v[k] > high ? v[k] : high;
            }
            float scale = half_to_float(float_to_half(format == Q8 ? fmaxf(-low, high) / 127 : (high - low) / 15));
            float inverse = scale > 0 ? 1 / scale : 0;
            put_scale(at, column, scale);
            if (format == Q8) {
                int8_t q[BLOCK] = {0};
                for (int k = 0; k < n; k++)
                    q[k] = (int8_t)fmaxf(-127, fminf(127, rintf(v[k] * inverse)));
                put_int8(at, column, q);
            } else {
                uint8_t q[BLOCK] = {0};
                low = half_to_float(float_to_half(low));
                put_scale(at + PANEL * 2, column, low);
                for (int k = 0; k < n; k++)
                    q[k] = (uint8_t)fmaxf(0, fminf(15, rintf((v[k] - low) * inverse)));
                put_int4(at, column, q);
            }
        }
    }
}

/* Pack rows of GGUF blocks as they are: kind 80 is Q8_0 (into Q8), 40 is Q4_0 and 41 is Q4_1 (into Q4). */
RL_EXPORT void rl_pack_gguf(int kind, void *packed, const uint8_t *raw, int64_t first, int64_t count, int64_t inputs)
{
    int64_t blocks = inputs / BLOCK;
    int format = kind == 80 ? Q8 : Q4;
    for (int64_t column = first; column < first + count; column++)
        for (int64_t b = 0; b < blocks; b++) {
            uint8_t *at = block_at(packed, format, blocks, column, b);
            memcpy(at + column % PANEL * 2, raw, 2);
            if (kind == 80) {
                put_int8(at, column, (const int8_t *)raw + 2);
                raw += 34;
                continue;
            }
            if (kind == 41)
                memcpy(at + PANEL * 2 + column % PANEL * 2, raw + 2, 2);
            else {
                uint16_t half;
                memcpy(&half, raw, 2);
                put_scale(at + PANEL * 2, column, -8 * half_to_float(half));
            }
            const uint8_t *nibbles = raw + (kind == 41 ? 4 : 2);
            uint8_t q[BLOCK];
            for (int k = 0; k < BLOCK / 2; k++) {
                q[k] = nibbles[k] & 15;
                q[k + BLOCK / 2] = nibbles[k] >> 4;
            }
            put_int4(at, column, q);
            raw += kind == 41 ? 20 : 18;
        }
}

static void unpack_row(int format, const void *packed, int64_t column, int64_t inputs, float *out)
{
    int64_t blocks = (inputs + BLOCK - 1) / BLOCK;
    int lane = (int)(column % PANEL);
    if (format == F32) {
        const float *panel = (const float *)packed + (size_t)(column / PANEL) * (size_t)inputs * PANEL + lane;
        for (int64_t k = 0; k < inputs; k++)
            out[k] = panel[k * PANEL];
        return;
    }
    for (int64_t b = 0; b < blocks; b++) {
        const uint8_t *at = block_at((void *)packed, format, blocks, column, b);
        uint16_t scale, low = 0;
        memcpy(&scale, at + lane * 2, 2);
        if (format == Q4)
            memcpy(&low, at + PANEL * 2 + lane * 2, 2);
        float by = half_to_float(scale), plus = half_to_float(low);
        for (int k = 0; k < BLOCK && b * BLOCK + k < inputs; k++) {
            int pair = k / 2, word = (pair / 4 * PANEL + lane) * 2 + k % 2, nibble = pair % 4;
            int q = format == Q8 ? (int8_t)at[PANEL * 2 + (pair * PANEL + lane) * 2 + k % 2] : at[PANEL * 4 + word * 2 + nibble / 2] >> nibble % 2 * 4 & 15;
            out[b * BLOCK + k] = by * (float)q + plus;
        }
    }
}

/* Rows `ids` of a packed matrix as float32 [count, inputs]: what an embedding looks up. */
RL_EXPORT void rl_unpack_rows(int format, const void *packed, const int64_t *ids, int64_t count, int64_t inputs, float *out)
{
    for (int64_t i = 0; i < count; i++)
        unpack_row(format, packed, ids[i], inputs, out + i * inputs);
}

/* ---- products ---- */

/*
 * Rows of x go in tiles of up to 6, as even as can be, and each tile is laid out in the order of use: float32
 * [inputs][rows of the tile], or int16 [pairs of inputs][rows][2] with one scale a row and, for int4, each
 * block's sum [blocks][rows] in float.
 */
typedef struct {
    int format, avx2;
    const void *packed;
    const float *x, *bias;      /* [rows, inputs], [columns] or NULL */
    float *y;                   /* [rows, columns] */
    int64_t rows, columns, inputs, blocks, tiles;
    float *tiled;               /* x in tiles (float32) */
    int16_t *quantised;         /* x in tiles (int16) */
    float *scale, *sums;        /* [rows]; [rows, blocks] in tiles */
} Product;

static int64_t first_row(const Product *p, int64_t tile) { return p->rows * tile / p->tiles; }

#if defined(__x86_64__)
AVX2 static void quantise_row_avx2(const float *x, int64_t n, float inverse, int16_t *out)
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

AVX2 static float largest_avx2(const float *x, int64_t n) /* NaN where there is one */
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
#endif

static float largest_portable(const float *x, int64_t n)
{
    float most = 0;
    for (int64_t k = 0; k < n; k++) {
        float magnitude = fabsf(x[k]);
        most = magnitude > most || magnitude != magnitude ? magnitude : most;
        if (most != most)
            break;
    }
    return most;
}

/* One row in int16 with its scale; a row with NaN or infinity gets the scale NaN. `line` is scratch of blocks · 32. */
static void quantise_row(const Product *p, int64_t tile, int64_t r, int count, int16_t *line)
{
    int64_t row = first_row(p, tile) + r, width = p->blocks * BLOCK;
    const float *x = p->x + row * p->inputs;
    float largest;
#if defined(__x86_64__)
    if (p->avx2)
        largest = largest_avx2(x, p->inputs);
    else
#endif
        largest = largest_portable(x, p->inputs);
    int finite = largest <= 3.4e38f;
    float inverse = finite && largest > 0 ? 32767.0f / largest : 0;
    p->scale[row] = finite ? largest / 32767.0f : NAN;
    memset(line, 0, sizeof(int16_t) * (size_t)width);
    if (inverse > 0 && inverse <= 3.4e38f) {
#if defined(__x86_64__)
        if (p->avx2)
            quantise_row_avx2(x, p->inputs, inverse, line);
        else
#endif
            for (int64_t k = 0; k < p->inputs; k++)
                line[k] = (int16_t)lrintf(x[k] * inverse);
    } else if (finite)
        p->scale[row] = 0; /* every input is 0, or so small that its scale has no inverse */
    int16_t *out = p->quantised + first_row(p, tile) * width + r * 2;
    for (int64_t pair = 0; pair < width / 2; pair++)
        memcpy(out + pair * count * 2, line + pair * 2, 4);
    if (p->format == Q4)
        for (int64_t b = 0; b < p->blocks; b++) {
            int32_t sum = 0;
            for (int k = 0; k < BLOCK; k++)
                sum += line[b * BLOCK + k];
            p->sums[first_row(p, tile) * p->blocks + b * count + r] = p->scale[row] * (float)sum;
        }
}

static void lay_out(void *context, int part, int parts)
{
    const Product *p = context;
    int16_t *line = p->format == F32 ? NULL : p->quantised + p->rows * p->blocks * BLOCK + (int64_t)part * p->blocks * BLOCK;
    for (int64_t tile = p->tiles * part / parts; tile < p->tiles * (part + 1) / parts; tile++) {
        int64_t row = first_row(p, tile);
        int count = (int)(first_row(p, tile + 1) - row);
        for (int r = 0; r < count; r++) {
            if (p->format != F32) {
                quantise_row(p, tile, r, count, line);
                continue;
            }
            const float *x = p->x + (row + r) * p->inputs;
            float *out = p->tiled + row * p->inputs + r;
            for (int64_t k = 0; k < p->inputs; k++)
                out[k * count] = x[k];
        }
    }
}

static void tile_portable(const Product *p, int64_t row, int count, int64_t column, float *out)
{
    memset(out, 0, sizeof(float) * PANEL * (size_t)count);
    if (p->format == F32) {
        const float *w = (const float *)p->packed + (size_t)column * (size_t)p->inputs, *x = p->tiled + row * p->inputs;
        for (int64_t k = 0; k < p->inputs; k++)
            for (int r = 0; r < count; r++)
                for (int j = 0; j < PANEL; j++)
                    out[r * PANEL + j] += x[k * count + r] * w[k * PANEL + j];
        return;
    }
    const int16_t *q = p->quantised + row * p->blocks * BLOCK;
    for (int64_t b = 0; b < p->blocks; b++) {
        const uint8_t *at = block_at((void *)p->packed, p->format, p->blocks, column, b);
        uint16_t halves[PANEL * 2];
        memcpy(halves, at, p->format == Q8 ? PANEL * 2 : PANEL * 4);
        for (int r = 0; r < count; r++) {
            int32_t sum[PANEL] = {0};
            for (int k = 0; k < BLOCK; k++)
                for (int j = 0; j < PANEL; j++) {
                    int pair = k / 2, word = (pair / 4 * PANEL + j) * 2 + k % 2, nibble = pair % 4;
                    int w = p->format == Q8 ? (int8_t)at[PANEL * 2 + (pair * PANEL + j) * 2 + k % 2]
                                            : at[PANEL * 4 + word * 2 + nibble / 2] >> nibble % 2 * 4 & 15;
                    sum[j] += w * q[((b * BLOCK / 2 + pair) * count + r) * 2 + k % 2];
                }
            for (int j = 0; j < PANEL; j++) {
                out[r * PANEL + j] += half_to_float(halves[j]) * p->scale[row + r] * (float)sum[j];
                if (p->format == Q4)
                    out[r * PANEL + j] += half_to_float(halves[PANEL + j]) * p->sums[row * p->blocks + b * count + r];
            }
        }
    }
}

#if defined(__x86_64__)
/* Fixes the order of the statements around it: left alone, the compiler hoists every row's load and spills the sums. */
#define KEEP(v) __asm__ volatile("" : "+x"(v))
#define ROWS _Pragma("GCC unroll 8") for (int r = 0; r < count; r++)

/* `count` rows × 16 columns in registers; `count` is a constant in each copy, and the loops over it are unrolled. */
INLINE_AVX2 void tile_f32(const Product *p, int64_t row, int64_t column, float *out, const int count)
{
    const float *w = (const float *)p->packed + (size_t)column * (size_t)p->inputs, *x = p->tiled + row * p->inputs;
    __m256 sum[TILE][2];
    ROWS sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    for (int64_t k = 0; k < p->inputs; k++, w += PANEL, x += count) {
        __m256 w0 = _mm256_loadu_ps(w), w1 = _mm256_loadu_ps(w + 8);
        ROWS {
            __m256 a = _mm256_broadcast_ss(x + r);
            sum[r][0] = _mm256_fmadd_ps(a, w0, sum[r][0]);
            sum[r][1] = _mm256_fmadd_ps(a, w1, sum[r][1]);
        }
    }
    ROWS {
        _mm256_storeu_ps(out + r * PANEL, sum[r][0]);
        _mm256_storeu_ps(out + r * PANEL + 8, sum[r][1]);
    }
}

INLINE_AVX2 __m256 halves8(const uint8_t *at) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at)); }

INLINE_AVX2 void tile_quantised(const Product *p, int64_t row, int64_t column, float *out, const int count, const int four)
{
    const uint8_t *at = block_at((void *)p->packed, p->format, p->blocks, column, 0);
    const int16_t *q = p->quantised + row * p->blocks * BLOCK;
    const float *sums = p->sums + row * p->blocks;
    const __m256i low4 = _mm256_set1_epi16(15);
    __m256 total[TILE][2];
    ROWS total[r][0] = total[r][1] = _mm256_setzero_ps();
    for (int64_t b = 0; b < p->blocks; b++, at += QUANT_BYTES[four ? Q4 : Q8], sums += count) {
        __m256i sum[TILE][2];
        ROWS sum[r][0] = sum[r][1] = _mm256_setzero_si256();
        _Pragma("GCC unroll 4") for (int pair = 0; pair < BLOCK / 2; pair++, q += 2 * count) {
            __m256i w0, w1;
            if (four) {
                const __m256i *words = (const __m256i *)(at + PANEL * 4) + pair / 4 * 2;
                w0 = _mm256_and_si256(_mm256_srli_epi16(_mm256_loadu_si256(words), pair % 4 * 4), low4);
                w1 = _mm256_and_si256(_mm256_srli_epi16(_mm256_loadu_si256(words + 1), pair % 4 * 4), low4);
            } else {
                const __m128i *bytes = (const __m128i *)(at + PANEL * 2) + pair * 2;
                w0 = _mm256_cvtepi8_epi16(_mm_loadu_si128(bytes));
                w1 = _mm256_cvtepi8_epi16(_mm_loadu_si128(bytes + 1));
            }
            ROWS {
                int32_t two;
                memcpy(&two, q + r * 2, sizeof two);
                __m256i a = _mm256_set1_epi32(two);
                sum[r][0] = _mm256_add_epi32(sum[r][0], _mm256_madd_epi16(w0, a));
                sum[r][1] = _mm256_add_epi32(sum[r][1], _mm256_madd_epi16(w1, a));
                if (count > 2) {
                    KEEP(sum[r][0]);
                    KEEP(sum[r][1]);
                }
            }
        }
        for (int h = 0; h < 2; h++) {
            __m256 scale = halves8(at + h * 16), low = four ? halves8(at + PANEL * 2 + h * 16) : scale;
            ROWS {
                total[r][h] = _mm256_fmadd_ps(scale, _mm256_mul_ps(_mm256_cvtepi32_ps(sum[r][h]), _mm256_set1_ps(p->scale[row + r])), total[r][h]);
                if (four)
                    total[r][h] = _mm256_fmadd_ps(low, _mm256_set1_ps(sums[r]), total[r][h]);
            }
        }
    }
    ROWS {
        _mm256_storeu_ps(out + r * PANEL, total[r][0]);
        _mm256_storeu_ps(out + r * PANEL + 8, total[r][1]);
    }
}

INLINE_AVX2 void tile_q8(const Product *p, int64_t row, int64_t column, float *out, const int count) { tile_quantised(p, row, column, out, count, 0); }
INLINE_AVX2 void tile_q4(const Product *p, int64_t row, int64_t column, float *out, const int count) { tile_quantised(p, row, column, out, count, 1); }

#define BY_COUNT(name)                                                                                                 \
    AVX2 static void name##_any(const Product *p, int64_t row, int count, int64_t column, float *out)                  \
    {                                                                                                                  \
        switch (count) {                                                                                               \
        case 1: name(p, row, column, out, 1); break;                                                                   \
        case 2: name(p, row, column, out, 2); break;                                                                   \
        case 3: name(p, row, column, out, 3); break;                                                                   \
        case 4: name(p, row, column, out, 4); break;                                                                   \
        case 5: name(p, row, column, out, 5); break;                                                                   \
        default: name(p, row, column, out, 6); break;                                                                  \
        }                                                                                                              \
    }
BY_COUNT(tile_f32)
BY_COUNT(tile_q8)
BY_COUNT(tile_q4)
#endif

/* A thread's share: a run of panels, for one run of tiles after the other, so that the tiles stay in the cache. */
static void multiply(void *context, int part, int parts)
{
    const Product *p = context;
    int64_t panels = (p->columns + PANEL - 1) / PANEL, start = panels * part / parts, end = panels * (part + 1) / parts;
    int64_t tile_bytes = TILE * (p->format == F32 ? p->inputs * 4 : p->blocks * BLOCK * 2);
    int64_t step = X_BLOCK_BYTES / tile_bytes > 0 ? X_BLOCK_BYTES / tile_bytes : 1;
    void (*run)(const Product *, int64_t, int, int64_t, float *) = tile_portable;
#if defined(__x86_64__)
    if (p->avx2)
        run = p->format == F32 ? tile_f32_any : p->format == Q8 ? tile_q8_any : tile_q4_any;
#endif
    float out[TILE * PANEL];
    for (int64_t first = 0; first < p->tiles; first += step)
        for (int64_t panel = start; panel < end; panel++)
            for (int64_t tile = first; tile < first + step && tile < p->tiles; tile++) {
                int64_t row = first_row(p, tile), column = panel * PANEL;
                int count = (int)(first_row(p, tile + 1) - row), width = (int)(p->columns - column < PANEL ? p->columns - column : PANEL);
                run(p, row, count, column, out);
                for (int r = 0; r < count; r++)
                    for (int j = 0; j < width; j++)
                        p->y[(row + r) * p->columns + column + j] = out[r * PANEL + j] + (p->bias ? p->bias[column + j] : 0.0f);
            }
}

/* y[rows, columns] = x[rows, inputs] · packedᵀ (+ bias[columns], or NULL). `portable` forbids wider instruction sets.
 * Returns 0, or −1 where memory for the tiles of x is not to be had. */
RL_EXPORT int rl_linear(int format, const void *packed, const float *x, const float *bias, float *y, int64_t rows, int64_t columns, int64_t inputs, int portable, int threads)
{
    if (rows == 0)
        return 0;
    Product p = {.format = format, .packed = packed, .x = x, .bias = bias, .y = y, .rows = rows, .columns = columns, .inputs = inputs,
                 .blocks = (inputs + BLOCK - 1) / BLOCK, .tiles = (rows + TILE - 1) / TILE};
    p.avx2 = !portable && strcmp(rl_isa(), "avx2") == 0;
    void *scratch = NULL;
    threads = threads < 1 ? 1 : threads > 64 ? 64 : threads;
    int helpers = p.tiles < threads ? (int)p.tiles : threads;
    if (format == F32 && rows == 1)
        p.tiled = (float *)x;
    else {
        size_t cells = (size_t)(rows * p.blocks), bytes = format == F32 ? (size_t)(rows * inputs) * sizeof(float)
            : (cells + (size_t)(helpers * p.blocks)) * BLOCK * sizeof(int16_t) + ((size_t)rows + cells) * sizeof(float);
        scratch = malloc(bytes);
        if (!scratch)
            return -1;
        p.tiled = scratch;
        p.scale = scratch, p.sums = p.scale + rows;
        p.quantised = (int16_t *)(p.sums + cells);
        rl_parallel(lay_out, &p, helpers);
    }
    rl_parallel(multiply, &p, threads);
    free(scratch);
    return 0;
}
