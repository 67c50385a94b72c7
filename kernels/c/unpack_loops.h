/*
 * Panels of quantised matrices unpacked into float32, a column of weights beside the next. See loops.h.
 *
 * packed_matrix.c's unpack_row defines the numbers, one at a time; these are the same to the last bit. A
 * product scale · number has at most 24 significant bits, so it is exact, and the one addition rounds as it
 * does there.
 */
#ifndef REDLITE_UNPACK_LOOPS_H
#define REDLITE_UNPACK_LOOPS_H
#include "loops.h"
#include "packed_matrix.h"
#include "vector.h"

/* 64 bytes of a block: of each column a word, its weights of four inputs, or of two fours by nibbles. */
typedef struct {
    uint32_t of[PANEL];
} Words;

INLINE Words words_at(const uint8_t *at)
{
    Words words;
    memcpy(&words, at, sizeof words);
    return words;
}

/* out[j] = scale[j] · (the low bits of words[j] >> shift, less zero) + minimum[j] */
INLINE void put_row(const Words *words, int shift, uint32_t mask, int zero, const float *scale,
                    const float *minimum, float *out)
{
    for (int j = 0; j < PANEL; j++)
        out[j] = scale[j] * (float)((int32_t)(words->of[j] >> shift & mask) - zero) + minimum[j];
}

/* Inputs first to first + 3 of a block, in the order of their bytes. */
INLINE void unpack_four(const int format, const uint8_t *block, int first, int count, const float *scale,
                        const float *minimum, float *out, int64_t stride)
{
    Words words = words_at(block + byte_of(format, 0, first));
    const int nibble = format == Q8 ? 0 : shift_of(first);
    if (format == Q6K) {
        Words high = words_at(block + high_byte_of(0, first));
        for (int j = 0; j < PANEL; j++)
            words.of[j] = (words.of[j] >> nibble & 0x0f0f0f0f)
                          | (high.of[j] >> high_shift_of(first) & 0x03030303) << 4;
        for (int i = 0; i < count; i++)
            put_row(&words, 8 * i, 63, 32, scale, minimum, out + i * stride);
        return;
    }
    for (int i = 0; i < count; i++)
        put_row(&words, 8 * i + nibble, format == Q8 ? 255 : 15, format == Q8 ? 128 : 0, scale, minimum,
                out + i * stride);
}

/* A panel [inputs][16] into out[k · stride + column]. */
INLINE void unpack_blocks(const int format, const uint8_t *panel, int64_t inputs, float *out, int64_t stride)
{
    int64_t blocks = (inputs + BLOCK - 1) / BLOCK;
    for (int64_t b = 0; b < blocks; b++) {
        const uint8_t *group = group_at(panel, format, blocks, 0, b),
                      *block = block_at(panel, format, blocks, 0, b);
        float scale[2][PANEL], minimum[PANEL];
        for (int j = 0; j < PANEL; j++) {
            scale[0][j] = scale_of(format, group, block, j, 0);
            scale[1][j] = format == Q6K ? scale_of(format, group, block, j, 1) : scale[0][j];
            minimum[j] = minimum_of(format, group, block, j);
        }
        int64_t left = inputs - b * BLOCK;
        for (int k = 0; k < BLOCK && k < left; k += 4)
            unpack_four(format, block, k, left - k < 4 ? (int)(left - k) : 4, scale[k / 16], minimum,
                        out + (b * BLOCK + k) * stride, stride);
    }
}

INLINE void unpack_panel(int format, const uint8_t *panel, int64_t inputs, float *out, int64_t stride)
{
    switch (format) {
    case Q8: unpack_blocks(Q8, panel, inputs, out, stride); break;
    case Q4: unpack_blocks(Q4, panel, inputs, out, stride); break;
    case Q4K: unpack_blocks(Q4K, panel, inputs, out, stride); break;
    case Q6K: unpack_blocks(Q6K, panel, inputs, out, stride); break;
    }
}

#endif
