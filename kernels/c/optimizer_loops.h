/* A step of AdamW in one pass over a tensor; `reference.adamw` in reference.py defines it. See loops.h. */
#ifndef REDLITE_OPTIMIZER_LOOPS_H
#define REDLITE_OPTIMIZER_LOOPS_H
#include "bfloat16.h"
#include "loops.h"

/* 32 random bits a lane from a lane's number and two seeds. The rounds are those of lowbias32, by C. Wellons
 * (public domain): every bit of the input changes about half of the output's. */
INLINE Bits random_bits(Bits number, uint32_t seed, uint32_t other)
{
    Bits x = number + seed;
    x ^= x >> 16;
    x *= 0x7feb352d;
    x ^= x >> 15;
    x += other; /* so that another seed is another sequence, and not the same one from elsewhere */
    x *= 0x846ca68b;
    x ^= x >> 16;
    x *= 0x7feb352d;
    x ^= x >> 15;
    return x;
}

/* To bfloat16: up with the probability that makes the expected value x. `noise` has 16 random bits a lane. */
INLINE void store_by_chance(void *to, int64_t at, Floats x, Bits noise, int64_t count)
{
    store_shorts(to, at, upper_halves((Floats)((Bits)x + noise)), count);
}

INLINE void adamw_lanes(const AdamW *s, int64_t i, int64_t count, Bits lane, const int narrow,
                        const int narrow_gradient)
{
    Floats g = load_numbers(s->gradient, i, count, narrow_gradient) * all(s->scale);
    Floats mean = load_numbers(s->mean, i, count, narrow), w = load_numbers(s->weight, i, count, narrow);
    Floats square = load_numbers(s->square, i, count, narrow) * all(s->keep_square);
    mean += all(s->take_mean) * (g - mean);
    square += all(s->take_square) * g * g;
    Floats bottom = square_root(square / all(s->square_bias)) + all(s->eps);
    w = w * all(s->decay) + all(s->rate) * mean / bottom;
    if (!narrow) {
        store_numbers(s->mean, i, mean, count, 0);
        store_numbers(s->square, i, square, count, 0);
        store_numbers(s->weight, i, w, count, 0);
        return;
    }
    Bits number = lane + (uint32_t)i;
    Bits two = random_bits(number, s->seed[0], s->seed[1]), one = random_bits(number, s->seed[2], s->seed[3]);
    store_by_chance(s->mean, i, mean, two & 0xffff, count);
    store_by_chance(s->square, i, square, two >> 16, count);
    store_by_chance(s->weight, i, w, one & 0xffff, count);
}

INLINE void adamw_run(const AdamW *s, int64_t first, int64_t end, const int narrow, const int narrow_gradient)
{
    Bits lane;
    for (int i = 0; i < LANES; i++)
        lane[i] = (uint32_t)i;
    int64_t i = first;
    for (; i + LANES <= end; i += LANES)
        adamw_lanes(s, i, LANES, lane, narrow, narrow_gradient);
    if (i < end)
        adamw_lanes(s, i, end - i, lane, narrow, narrow_gradient);
}

INLINE void run_adamw(const AdamW *s, int64_t first, int64_t end)
{
    if (s->narrow && s->narrow_gradient)
        adamw_run(s, first, end, 1, 1);
    else if (s->narrow)
        adamw_run(s, first, end, 1, 0);
    else if (s->narrow_gradient)
        adamw_run(s, first, end, 0, 1);
    else
        adamw_run(s, first, end, 0, 0);
}

INLINE void run_squares(const Squares *s, int64_t first, int64_t end)
{
    for (int64_t block = first; block < end; block++) {
        Floats sum[PARTS] = {{0}};
        int64_t from = block * SQUARES, to = from + SQUARES < s->count ? from + SQUARES : s->count;
        for (int64_t i = from; i < to; i += LANES) {
            Floats x = s->narrow ? load_numbers(s->x, i, to - i, 1) : load_numbers(s->x, i, to - i, 0);
            sum[i / LANES % PARTS] += x * x;
        }
        s->sums[block] = total(sum);
    }
}

#endif
