/*
 * Writes what every instruction set of a build of the C library computes from the same inputs; test_isa.py
 * compares builds. For each set: its name in 16 bytes, three int32 counts, then as many floats: products;
 * blocks with int8 and int4; everything else.
 */
#include "packed_matrix.h"
#include "sequence_attention.h"
#include "token_nll.h"
#include "training.h"
#include "transformer_block.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *rl_isas(void);
int rl_use(const char *);
size_t rl_packed_bytes(int, int64_t, int64_t);
int rl_nll_statistics(const TokenNLL *, int);
int rl_nll_gradient(const TokenNLL *, int);
void rl_adamw(const AdamW *, int);
void rl_squares(const Squares *, int);
void rl_training(const Training *, int);

static uint32_t state;
static float results[1 << 18];
static int32_t count;

static void *get(size_t bytes)
{
    void *memory = calloc(bytes, 1);
    if (!memory)
        exit(3);
    return memory;
}

static float *random_floats(int64_t n) /* −1 to 1, whole multiples of 2⁻¹⁶; the same on every machine */
{
    float *x = get((size_t)n * sizeof(float));
    for (int64_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        x[i] = (float)(int32_t)(state >> 15) * 0x1p-16f - 1.0f;
    }
    return x;
}

static void put(const float *x, int64_t n)
{
    if (count + n > (int64_t)(sizeof results / sizeof *results))
        exit(4);
    memcpy(results + count, x, (size_t)n * sizeof(float));
    count += (int32_t)n;
}

/* float32, or with `narrow` bfloat16, which cuts the digits off. */
static void *random_numbers(int64_t n, int narrow)
{
    float *x = random_floats(n);
    for (int64_t i = 0; narrow && i < n; i++)
        ((uint16_t *)x)[i] = ((uint16_t *)x)[2 * i + 1]; /* the upper half: the number's place is behind it */
    return x;
}

static void put_numbers(const void *x, int64_t n, int narrow)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = narrow ? (uint32_t)((const uint16_t *)x)[i] << 16 : ((const uint32_t *)x)[i];
        float number;
        memcpy(&number, &bits, sizeof number);
        put(&number, 1);
    }
}

static void *packed(int format, int64_t columns, int64_t inputs)
{
    float *rows = random_floats(columns * inputs);
    void *matrix = get(rl_packed_bytes(format, columns, inputs));
    rl_pack_float(format, matrix, rows, 0, columns, inputs);
    free(rows);
    return matrix;
}

/* Random blocks of Q4_K or Q6_K whose weights are within ±1. */
static void *kept(int format, int64_t columns, int64_t inputs)
{
    const int size = format == Q4K ? 144 : 210;
    int64_t bytes = columns * inputs / 256 * size;
    uint8_t *raw = get((size_t)bytes), *matrix = get(rl_packed_bytes(format, columns, inputs));
    for (int64_t i = 0; i < bytes; i++) {
        state = state * 1664525u + 1013904223u;
        raw[i] = (uint8_t)(state >> 24);
    }
    for (uint8_t *at = raw; at < raw + bytes; at += size) {
        if (format == Q4K)
            at[1] = 0x14, at[3] = 0x20; /* d and m: from 2⁻¹⁰ and 2⁻⁷, less than 1 with s · q and t */
        else
            at[209] = 0x0c; /* from 2⁻¹² */
    }
    rl_pack_gguf(format == Q4K ? G_Q4_K : G_Q6_K, matrix, raw, 0, columns, inputs);
    free(raw);
    return matrix;
}

static void products(void)
{
    /* columns, inputs */
    static const int64_t shapes[][2] = {{1, 1}, {47, 31}, {16, 32}, {31, 64}, {50, 333}};
    static const int64_t kept_shapes[][2] = {{1, 256}, {47, 512}};
    for (int format = 0; format < FORMATS; format++)
        for (int s = 0; format != BF16 && s < (format >= Q4K ? 2 : 5); s++) /* bfloat16's sets differ */
            for (int64_t rows = 1; rows <= 13; rows++) {
                const int64_t *shape = format >= Q4K ? kept_shapes[s] : shapes[s];
                int64_t columns = shape[0], inputs = shape[1];
                void *matrix = format >= Q4K ? kept(format, columns, inputs) : packed(format, columns, inputs);
                float *x = random_floats(rows * inputs), *bias = random_floats(columns),
                      *y = get((size_t)(rows * columns) * sizeof(float));
                if (rl_products(&(Matrix){format, matrix, bias, columns, inputs}, 1, x, &y, rows,
                                1 + (int)(rows % 3)))
                    exit(3);
                put(y, rows * columns);
                free(matrix), free(x), free(bias), free(y);
            }
}

static void block(int format)
{
    enum { ROWS = 7, WIDTH = 36, HEADS = 6, GROUPS = 2, SIZE = 6, WIDE = 77 };
    Matrix m[7];
    const int64_t shapes[7][2] = {{HEADS * SIZE, WIDTH}, {GROUPS * SIZE, WIDTH}, {GROUPS * SIZE, WIDTH},
                                  {WIDTH, HEADS * SIZE}, {WIDE, WIDTH},          {WIDE, WIDTH},
                                  {WIDTH, WIDE}};
    for (int i = 0; i < 7; i++)
        m[i] = (Matrix){format, packed(format, shapes[i][0], shapes[i][1]), NULL, shapes[i][0], shapes[i][1]};
    float *x = random_floats(ROWS * WIDTH), *norm = random_floats(WIDTH), *cos = random_floats(ROWS * SIZE),
          *sin = random_floats(ROWS * SIZE);
    static float q[ROWS * HEADS * SIZE], k[ROWS * GROUPS * SIZE], v[ROWS * GROUPS * SIZE], y[ROWS * WIDTH];
    Block b = {.norms = {norm, NULL, norm, NULL}, .before = m, .after = m + 3, .size = SIZE, .rotated = SIZE,
               .gated = 1, .eps = 1e-5f, .residual = 1.0f};
    const float *rotary[] = {cos, sin, cos, sin};
    if (rl_before_attention(&b, x, rotary, q, k, v, ROWS, 2) || rl_after_attention(&b, x, q, y, ROWS, 2))
        exit(3);
    put(q, ROWS * HEADS * SIZE), put(k, ROWS * GROUPS * SIZE), put(v, ROWS * GROUPS * SIZE),
        put(y, ROWS * WIDTH);
}

static void decode(int64_t size, int64_t prefix)
{
    enum { B = 3, G = 2, R = 5, CAPACITY = 21 };
    const int64_t places[B] = {0, 6, 20}, slots[B] = {1, 1, 0};
    const void *keys[G], *values[G];
    for (int g = 0; g < G && prefix; g++)
        keys[g] = packed(0, prefix, size), values[g] = packed(0, size, prefix);
    float *out = get((size_t)(B * G * R * size) * sizeof(float)), *q = random_floats(B * G * R * size),
          *k = random_floats(B * G * size), *v = random_floats(B * G * size);
    for (int way = 0; way < 4; way++) {
        int half = way & 1;
        void *own[2];
        for (int i = 0; i < 2; i++) {
            own[i] = random_floats(B * G * CAPACITY * size);
            for (int64_t j = 0; half && j < B * G * CAPACITY * size; j++) /* ±0.5 to 1 */
                ((uint16_t *)own[i])[j] = (uint16_t)(0x3800 | (j * 0x9e37 & 0x83ff));
        }
        CachedAttention a = {q, k, v, own[0], own[1],   places, keys, values, out,
                             B, G, R, size,   CAPACITY, prefix, 0,    half,   0.7f, 0, way & 2 ? slots : NULL};
        if (rl_cached_attention(&a, 2))
            exit(3);
        put(out, B * G * R * size);
    }
}

static void sequences(int64_t size, int64_t prefix)
{
    enum { ROWS = 80, G = 2, R = 3 };
    const int64_t offsets[4] = {0, 5, 75, ROWS}, parents[3] = {-1, -1, 0};
    const void *keys[G], *values[G];
    for (int g = 0; g < G && prefix; g++)
        keys[g] = packed(0, prefix, size), values[g] = packed(0, size, prefix);
    float *out = get((size_t)(ROWS * G * R * size) * sizeof(float)), *q = random_floats(ROWS * G * R * size),
          *k = random_floats(ROWS * G * size), *v = random_floats(ROWS * G * size);
    SequenceAttention a = {q, k, v,    offsets, parents, keys, values, out, 3,
                           G, R, size, prefix,  0,       0.7f, 0,    0,      NULL, 0};
    if (rl_sequence_attention(&a, 2))
        exit(3);
    put(out, ROWS * G * R * size);
}

/* With several runs of entries and blocks of rows. */
static void token_nll(void)
{
    enum { ROWS = 530, WIDTH = 19, ENTRIES = 800 };
    static int64_t targets[ROWS];
    static float maximum[ROWS], sum[ROWS], target[ROWS], d_hidden[ROWS * WIDTH], d_weights[ENTRIES * WIDTH];
    float *hidden = random_floats(ROWS * WIDTH), *weights = random_floats(ENTRIES * WIDTH),
          *scale = random_floats(ROWS);
    for (int r = 0; r < ROWS; r++)
        targets[r] = r * 7 % 1000, maximum[r] = -3.4e38f, sum[r] = target[r] = 0;
    for (int i = 0; i < ROWS * WIDTH; i++)
        hidden[i] *= 10;
    memset(d_hidden, 0, sizeof d_hidden);
    TokenNLL t = {.hidden = hidden, .weights = weights, .targets = targets, .maximum = maximum, .sum = sum,
                  .target = target, .scale = scale, .d_hidden = d_hidden, .d_weights = d_weights,
                  .rows = ROWS, .width = WIDTH, .entries = ENTRIES, .entry_stride = WIDTH, .width_stride = 1};
    if (rl_nll_statistics(&t, 2) || rl_nll_gradient(&t, 3))
        exit(3);
    put(maximum, ROWS), put(sum, ROWS), put(target, ROWS), put(d_hidden, ROWS * WIDTH),
        put(d_weights, ENTRIES * WIDTH);
    free(hidden), free(weights), free(scale);
}

static void optimizer(int narrow)
{
    enum { COUNT = 3 * SQUARES + 77, BLOCKS = 4 };
    for (int narrow_gradient = 0; narrow_gradient < 2; narrow_gradient++) {
        void *weight = random_numbers(COUNT, narrow), *mean = random_numbers(COUNT, narrow),
             *square = random_numbers(COUNT, narrow), *gradient = random_numbers(COUNT, narrow_gradient);
        for (int64_t i = 0; i < COUNT; i++) /* squares are not negative */
            ((uint8_t *)square)[narrow ? 2 * i + 1 : 4 * i + 3] &= 0x7f;
        rl_adamw(&(AdamW){weight, mean, square, gradient, COUNT, narrow, narrow_gradient, 0.25f, 0.1f, 0.95f,
                          0.05f, 0.3f, 1e-6f, 0.99f, -3e-3f, {1, 22, 333, 4444}}, 3);
        put_numbers(weight, COUNT, narrow), put_numbers(mean, COUNT, narrow);
        put_numbers(square, COUNT, narrow);
        double sums[BLOCKS];
        rl_squares(&(Squares){gradient, COUNT, narrow_gradient, sums}, 3);
        for (int i = 0; i < BLOCKS && !narrow; i++)
            put(&(float){(float)sums[i]}, 1);
        free(weight), free(mean), free(square), free(gradient);
    }
}

static void training(int narrow)
{
    enum { ROWS = BLOCK_ROWS + 2, HEADS = 2, SIZE = 41, ROTATED = 38 };
    enum { WIDTH = HEADS * SIZE, N = ROWS * WIDTH };
    static float y[N], dx[N], dother[N], scale[ROWS], partial[2 * WIDTH];
    void *x = random_numbers(N, narrow), *other = random_numbers(N, narrow), *dy = random_numbers(N, narrow),
         *cos = random_numbers(ROWS * ROTATED, narrow), *sin = random_numbers(ROWS * ROTATED, narrow);
    Training t = {.narrow = narrow, .x = x, .other = other, .cos = cos, .sin = sin, .dy = dy, .y = y,
                  .dx = dx, .dother = dother, .scale = scale, .partial = partial, .eps = 1e-5f, .rows = ROWS,
                  .width = WIDTH, .heads = HEADS, .rotated = ROTATED};
    memset(partial, 0, sizeof partial);
    for (t.kind = NORM_FORWARD; t.kind <= GATE_BACKWARD; t.kind++) {
        int turns = t.kind == TURN_FORWARD || t.kind == TURN_BACKWARD;
        t.width = turns ? SIZE : WIDTH;
        rl_training(&t, 3);
        if (t.kind == NORM_BACKWARD || t.kind == GATE_BACKWARD)
            put_numbers(dx, N, narrow);
        else
            put_numbers(y, N, narrow);
        if (t.kind == NORM_BACKWARD)
            put(partial, 2 * WIDTH);
        if (t.kind == GATE_BACKWARD)
            put_numbers(dother, N, narrow);
    }
    free(x), free(other), free(dy), free(cos), free(sin);
}

int main(void)
{
    char names[64];
    strcpy(names, rl_isas());
    for (char *name = strtok(names, " "); name; name = strtok(NULL, " ")) {
        char field[16] = {0};
        strncpy(field, name, sizeof field - 1);
        if (rl_use(name))
            return 2;
        state = 1, count = 0;
        products();
        int32_t counts[4] = {count};
        block(1), block(2);
        counts[1] = count - counts[0];
        block(0);
        decode(64, 0), decode(10, 0), decode(16, 37), decode(24, 37), sequences(16, 0), sequences(10, 37);
        token_nll();
        optimizer(0), training(0);
        counts[2] = count - counts[0] - counts[1];
        optimizer(1), training(1);
        counts[3] = count - counts[0] - counts[1] - counts[2];
        fwrite(field, 1, sizeof field, stdout), fwrite(counts, sizeof *counts, 4, stdout),
            fwrite(results, sizeof *results, (size_t)count, stdout);
    }
    return 0;
}
