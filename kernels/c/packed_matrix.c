/* Matrices packed from float32 or from GGUF blocks, and their rows unpacked. packed_matrix.h gives the
 * layout. */
#include "packed_matrix.h"
#include "loops.h"
#include "thread_pool.h"
#include <math.h>

/* Bytes that a packed [columns, inputs] matrix takes. */
size_t rl_packed_bytes(int format, int64_t columns, int64_t inputs)
{
    size_t panels = (size_t)(columns + PANEL - 1) / PANEL;
    if (format == F32)
        return panels * (size_t)inputs * PANEL * sizeof(float);
    return panels * panel_bytes(format, (inputs + BLOCK - 1) / BLOCK);
}

static void put_scale(uint8_t *at, int64_t column, float scale)
{
    uint16_t half = float_to_half(scale);
    memcpy(at + column % PANEL * 2, &half, 2);
}

static void put_int8(uint8_t *at, int64_t column, const int8_t *q)
{
    for (int k = 0; k < BLOCK; k += 4) {
        uint8_t four[4];
        for (int i = 0; i < 4; i++)
            four[i] = (uint8_t)(q[k + i] + 128);
        memcpy(at + byte_of(Q8, column, k), four, 4);
    }
}

/* q: of 4 bits, or Q6_K's of 6 */
static void put_nibbles(int format, uint8_t *at, int64_t column, const uint8_t *q)
{
    uint8_t four[4];
    for (int k = 0; k < BLOCK; k += 8) {
        for (int i = 0; i < 4; i++)
            four[i] = (uint8_t)((q[k + i] & 15) | q[k + 4 + i] << 4);
        memcpy(at + byte_of(format, column, k), four, 4);
    }
    for (int k = 0; format == Q6K && k < BLOCK; k += 16) {
        for (int i = 0; i < 4; i++)
            four[i] = (uint8_t)(q[k + i] >> 4 | q[k + 4 + i] >> 4 << 2 | q[k + 8 + i] >> 4 << 4
                                | q[k + 12 + i] >> 4 << 6);
        memcpy(at + high_byte_of(column, k), four, 4);
    }
}

/* x rounded to a whole number from low to high; NaN gives low. */
static inline int within(float x, float low, float high)
{
    return (int)lrintf(x > low ? x < high ? x : high : low);
}

/* Quantising: int8 has scale = largest magnitude / 127; int4 has scale = (largest − smallest) / 15 and
 * minimum = smallest. Scales and minima are float16. */
void rl_pack_float(int format, void *packed, const float *rows, int64_t first, int64_t count, int64_t inputs)
{
    int64_t blocks = (inputs + BLOCK - 1) / BLOCK;
    for (int64_t r = 0; r < count; r++) {
        const float *w = rows + r * inputs;
        int64_t column = first + r;
        if (format == F32) {
            float *panel =
                (float *)packed + (size_t)(column / PANEL) * (size_t)inputs * PANEL + column % PANEL;
            for (int64_t k = 0; k < inputs; k++)
                panel[k * PANEL] = w[k];
            continue;
        }
        if (format == BF16) {
            uint16_t *panel = (uint16_t *)block_at(packed, format, blocks, column, 0), bits;
            for (int64_t k = 0; k < inputs; k++) {
                round_to_bf16(w + k, 1, &bits);
                panel[bf16_at(column, k)] = bits;
            }
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
            float exact = format == Q8 ? (-low > high ? -low : high) / 127 : (high - low) / 15;
            float scale = half_to_float(float_to_half(exact));
            float inverse = scale > 0 ? 1 / scale : 0;
            put_scale(at, column, scale);
            if (format == Q8) {
                int8_t q[BLOCK] = {0};
                for (int k = 0; k < n; k++)
                    q[k] = (int8_t)within(v[k] * inverse, -127, 127);
                put_int8(at, column, q);
            } else {
                uint8_t q[BLOCK] = {0};
                low = half_to_float(float_to_half(low));
                put_scale(at + PANEL * 2, column, low);
                for (int k = 0; k < n; k++)
                    q[k] = (uint8_t)within((v[k] - low) * inverse, 0, 15);
                put_nibbles(Q4, at, column, q);
            }
        }
    }
}

/* Eight blocks of a column from 256 numbers of Q4_K: d, m, 12 bytes of scales and minima, 128 of nibbles. */
static void pack_q4_k(uint8_t *group, int64_t column, const uint8_t *raw)
{
    uint8_t *at = group + GROUP_BYTES[Q4K], q[BLOCK];
    for (int i = 0; i < 2; i++)
        memcpy(group + i * PANEL * 2 + column % PANEL * 2, raw + i * 2, 2);
    for (int b = 0; b < GROUP; b++, at += QUANT_BYTES[Q4K]) {
        q4_k_scale(raw, b, at + column % PANEL, at + PANEL + column % PANEL);
        for (int k = 0; k < BLOCK; k++)
            q[k] = raw[16 + b / 2 * BLOCK + k] >> b % 2 * 4 & 15;
        put_nibbles(Q4K, at, column, q);
    }
}

/* Of Q6_K: 128 bytes of nibbles, 64 of bit pairs, 16 scales, d. */
static void pack_q6_k(uint8_t *group, int64_t column, const uint8_t *raw)
{
    uint8_t *at = group + GROUP_BYTES[Q6K], q[BLOCK];
    memcpy(group + column % PANEL * 2, raw + 208, 2);
    for (int b = 0; b < GROUP; b++, at += QUANT_BYTES[Q6K]) {
        const uint8_t *low = raw + b / 4 * 64 + b % 2 * 32, *high = raw + 128 + b / 4 * 32;
        for (int half = 0; half < 2; half++)
            at[half * PANEL + column % PANEL] = raw[192 + b * 2 + half];
        for (int k = 0; k < BLOCK; k++)
            q[k] = (uint8_t)((low[k] >> b % 4 / 2 * 4 & 15) | (high[k] >> b % 4 * 2 & 3) << 4);
        put_nibbles(Q6K, at, column, q);
    }
}

void rl_pack_gguf(int kind, void *packed, const uint8_t *raw, int64_t first, int64_t count, int64_t inputs)
{
    int64_t blocks = inputs / BLOCK;
    if (kind == G_Q4_K || kind == G_Q6_K) {
        int size = kind == G_Q4_K ? 144 : 210, kept = kind == G_Q4_K ? Q4K : Q6K;
        void (*pack)(uint8_t *, int64_t, const uint8_t *) = kind == G_Q4_K ? pack_q4_k : pack_q6_k;
        for (int64_t column = first; column < first + count; column++)
            for (int64_t b = 0; b < blocks; b += GROUP, raw += size)
                pack(group_at(packed, kept, blocks, column, b), column, raw);
        return;
    }
    int format = kind == G_Q8_0 ? Q8 : Q4;
    for (int64_t column = first; column < first + count; column++)
        for (int64_t b = 0; b < blocks; b++) {
            uint8_t *at = block_at(packed, format, blocks, column, b);
            memcpy(at + column % PANEL * 2, raw, 2);
            if (kind == G_Q8_0) {
                put_int8(at, column, (const int8_t *)raw + 2);
                raw += 34;
                continue;
            }
            if (kind == G_Q4_1)
                memcpy(at + PANEL * 2 + column % PANEL * 2, raw + 2, 2);
            else {
                uint16_t half;
                memcpy(&half, raw, 2);
                put_scale(at + PANEL * 2, column, -8 * half_to_float(half));
            }
            const uint8_t *nibbles = raw + (kind == G_Q4_1 ? 4 : 2);
            uint8_t q[BLOCK];
            for (int k = 0; k < BLOCK / 2; k++) {
                q[k] = nibbles[k] & 15;
                q[k + BLOCK / 2] = nibbles[k] >> 4;
            }
            put_nibbles(Q4, at, column, q);
            raw += kind == G_Q4_1 ? 20 : 18;
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
    if (format == BF16) {
        const uint16_t *panel = (const uint16_t *)block_at(packed, format, blocks, column, 0);
        for (int64_t k = 0; k < inputs; k++)
            out[k] = bf16_to_float(panel[bf16_at(column, k)]);
        return;
    }
    const int zero = format == Q8 ? 128 : format == Q6K ? 32 : 0; /* the stored number that means 0 */
    for (int64_t b = 0; b < blocks; b++) {
        const uint8_t *at = block_at(packed, format, blocks, column, b),
                      *group = group_at(packed, format, blocks, column, b);
        float plus = minimum_of(format, group, at, lane);
        for (int k = 0; k < BLOCK && b * BLOCK + k < inputs; k++) {
            float by = scale_of(format, group, at, lane, k / 16);
            out[b * BLOCK + k] = by * (float)(number_of(format, at, lane, k) - zero) + plus;
        }
    }
}

/* Rows `ids` of a packed matrix as float32 [count, inputs], for an embedding. */
void rl_unpack_rows(int format, const void *packed, const int64_t *ids, int64_t count, int64_t inputs,
                    float *out)
{
    for (int64_t i = 0; i < count; i++)
        unpack_row(format, packed, ids[i], inputs, out + i * inputs);
}

typedef struct {
    int format;
    const uint8_t *panels;
    int64_t count, inputs, bytes; /* bytes: of a panel */
    float *out;
} Unpacking;

static void unpack_share(void *context, int part, int parts)
{
    const Unpacking *u = context;
    for (int64_t i = u->count * part / parts; i < u->count * (part + 1) / parts; i++)
        rl_loops()->unpack_panel(u->format, u->panels + i * u->bytes, u->inputs, u->out + i * PANEL,
                                 u->count * PANEL);
}

/* Panels [first, first + count) of a quantised matrix as float32 [inputs, 16 · count]: the transpose of their
 * rows, in which every store is a run of numbers. */
void rl_unpack_panels(int format, const void *packed, int64_t first, int64_t count, int64_t inputs,
                      float *out, int threads)
{
    int64_t bytes = (int64_t)panel_bytes(format, (inputs + BLOCK - 1) / BLOCK);
    Unpacking u = {format, (const uint8_t *)packed + first * bytes, count, inputs, bytes, out};
    rl_parallel(unpack_share, &u, count < threads ? (int)count : threads);
}
