/*
 * Tensors of a file into memory: plain numbers and GGUF blocks, as plain numbers or packed for matrix
 * products.
 *
 * Each thread takes a run of the tensor, one piece or panel at a time. It reads the bytes, decodes them and
 * puts them in place, all in scratch memory that stays in its cache. The bytes are read, not mapped. So no
 * page of the file stays in this process's memory, and a file that shrinks meanwhile is an error, not a dead
 * process. Reads are bounded by the sizes asked for, so no content of a file can make this code pass the end
 * of a buffer.
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include "loops.h"
#include "thread_pool.h"
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

enum { PIECE = 1 << 14 };  /* numbers decoded at a time, a multiple of every block */
enum { MOST_PARTS = 64 };  /* as MOST of thread_pool.c */
enum { SHORTER = -1, OUT_OF_RANGE = -2, NOT_FINITE = -3, NO_MEMORY = -4 }; /* above 0: errno */
enum { TO_F32 = 0, TO_BF16 = 1, TO_F16 = 2 };

/* Returns the numbers in a block of a kind, or 0 for an unknown kind; `bytes` receives its size. */
static int64_t block_of(int kind, int64_t *bytes)
{
    switch (kind) {
    case G_F32: *bytes = 4; return 1;
    case G_F16: case G_BF16: *bytes = 2; return 1;
    case G_Q4_0: *bytes = 18; return 32;
    case G_Q4_1: *bytes = 20; return 32;
    case G_Q5_0: *bytes = 22; return 32;
    case G_Q8_0: *bytes = 34; return 32;
    case G_Q2_K: *bytes = 84; return 256;
    case G_Q3_K: *bytes = 110; return 256;
    case G_Q4_K: *bytes = 144; return 256;
    case G_Q5_K: *bytes = 176; return 256;
    case G_Q6_K: *bytes = 210; return 256;
    case G_MXFP4: *bytes = 17; return 32;
    default: return 0;
    }
}

typedef struct {
    int descriptor, kind;
    int to;                  /* of a plain tensor: its dtype */
    int format, keep;        /* of a packed one; keep: the blocks are kept as they are */
    int64_t offset, rows, inputs;
    int64_t elements, bytes; /* of a block */
    const int64_t *order;    /* row r is the file's row order[r]; NULL: the same row */
    uint8_t *out;
    int fault[MOST_PARTS];
} Tensor;

static int read_at(const Tensor *t, int64_t at, int64_t count, uint8_t *into)
{
    while (count) {
        ssize_t got = pread(t->descriptor, into, (size_t)count, (off_t)at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 ? errno : SHORTER;
        into += got, at += got, count -= got;
    }
    return 0;
}

/* Read numbers [first, first + count) of the file, whole blocks, as float32. raw: scratch for a piece. */
static int read_run(const Tensor *t, int64_t first, int64_t count, float *out, uint8_t *raw)
{
    for (int64_t n; count; first += n, out += n, count -= n) {
        n = count < PIECE ? count : PIECE;
        int64_t blocks = n / t->elements;
        int fault = read_at(t, t->offset + first / t->elements * t->bytes, blocks * t->bytes, raw);
        if (fault)
            return fault;
        int32_t most = rl_loops()->dequantise(t->kind, raw, blocks, out, n);
        if (most >= 0x7f800000)
            return NOT_FINITE;
        if (t->to == TO_F16 && most > 0x477fe000) /* 65504 */
            return OUT_OF_RANGE;
        if (t->to == TO_BF16 && most > 0x7f7f0000)
            return OUT_OF_RANGE;
    }
    return 0;
}

/* To bfloat16 or float16; rounds to nearest, ties to even. All numbers are in range. */
static void narrow(int to, const float *from, int64_t n, uint8_t *out)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits, tiny_bits;
        memcpy(&bits, from + i, 4);
        uint32_t magnitude = bits & 0x7fffffff, sign = bits >> 16 & 0x8000, half;
        if (to == TO_BF16)
            half = sign | (magnitude + 0x7fff + (magnitude >> 16 & 1)) >> 16;
        else {
            float tiny;
            memcpy(&tiny, &magnitude, 4);
            tiny += 0.5f; /* rounds: from 0.5 on float32 numbers are 2⁻²⁴ apart, as tiny float16 ones */
            memcpy(&tiny_bits, &tiny, 4);
            uint32_t normal = ((magnitude + 0xfff + (magnitude >> 13 & 1)) >> 13) - (112u << 10);
            half = sign | (magnitude < 0x38800000 ? tiny_bits - 0x3f000000 : normal);
        }
        uint16_t value = (uint16_t)half;
        memcpy(out + 2 * i, &value, 2);
    }
}

/* Read numbers [from, from + count) of the file into a plain tensor, from its number `at` on. raw, numbers:
 * scratch. */
static int fill_run(const Tensor *t, int64_t from, int64_t count, int64_t at, uint8_t *raw, float *numbers)
{
    if (t->to == TO_F32)
        return read_run(t, from, count, (float *)(void *)t->out + at, raw);
    for (int64_t n; count; from += n, at += n, count -= n) {
        n = count < PIECE ? count : PIECE;
        int fault = read_run(t, from, n, numbers, raw);
        if (fault)
            return fault;
        narrow(t->to, numbers, n, t->out + 2 * at);
    }
    return 0;
}

/* A thread's share of a plain tensor. */
static void fill(void *context, int part, int parts)
{
    Tensor *t = context;
    int64_t unit = t->order ? t->inputs : t->elements, total = t->rows * t->inputs / unit;
    int64_t start = total * part / parts, end = total * (part + 1) / parts;
    uint8_t *raw = malloc((size_t)(PIECE / t->elements * t->bytes) + PIECE * sizeof(float));
    if (!raw) {
        t->fault[part] = NO_MEMORY;
        return;
    }
    float *numbers = (float *)(void *)raw;
    uint8_t *bytes = raw + PIECE * sizeof(float);
    if (!t->order)
        t->fault[part] = fill_run(t, start * unit, (end - start) * unit, start * unit, bytes, numbers);
    for (int64_t r = start; t->order && r < end && !t->fault[part]; r++)
        t->fault[part] = fill_run(t, t->order[r] * unit, unit, r * unit, bytes, numbers);
    free(raw);
}

/* Whether the scales and minima of blocks are finite. */
static int finite_blocks(int kind, const uint8_t *b, int64_t count, int64_t bytes)
{
    const int two = kind == G_Q4_1 || kind == G_Q4_K; /* the minimum's half follows the scale's */
    for (; count--; b += bytes)
        if ((b[kind == G_Q6_K ? 209 : 1] & 0x7c) == 0x7c || (two && (b[3] & 0x7c) == 0x7c))
            return 0;
    return 1;
}

/* Read rows [first, first + count) of the result, as stored (keep) or as float32. */
static int panel_rows(const Tensor *t, int64_t first, int64_t count, uint8_t *raw, float *numbers)
{
    int64_t row_bytes = t->inputs / t->elements * t->bytes, run = t->order ? 1 : count; /* neighbours */
    for (int64_t r = 0; r < count; r += run) {
        int64_t from = t->order ? t->order[first + r] : first;
        int fault = t->keep ? read_at(t, t->offset + from * row_bytes, run * row_bytes, raw + r * row_bytes)
                            : read_run(t, from * t->inputs, run * t->inputs, numbers + r * t->inputs, raw);
        if (fault)
            return fault;
    }
    return t->keep && !finite_blocks(t->kind, raw, count * t->inputs / t->elements, t->bytes) ? NOT_FINITE
                                                                                              : 0;
}

/* A thread's share of a packed tensor: whole panels. */
static void pack(void *context, int part, int parts)
{
    Tensor *t = context;
    int64_t panels = (t->rows + PANEL - 1) / PANEL, width = PANEL * t->inputs;
    size_t raw_bytes = (size_t)((t->keep ? width : PIECE) / t->elements * t->bytes);
    size_t decoded = t->keep ? 0 : (size_t)width * sizeof(float);
    float *numbers = malloc(decoded + raw_bytes);
    if (!numbers) {
        t->fault[part] = NO_MEMORY;
        return;
    }
    uint8_t *raw = (uint8_t *)numbers + decoded;
    int64_t end = panels * (part + 1) / parts;
    for (int64_t panel = panels * part / parts; panel < end && !t->fault[part]; panel++) {
        int64_t first = panel * PANEL, count = t->rows - first < PANEL ? t->rows - first : PANEL;
        if ((t->fault[part] = panel_rows(t, first, count, raw, numbers)))
            break;
        if (t->keep)
            rl_pack_gguf(t->kind, t->out, raw, first, count, t->inputs);
        else
            rl_pack_float(t->format, t->out, numbers, first, count, t->inputs);
    }
    free(numbers);
}

/* Run `task` over the whole tensor. Returns 0, or the fault of the earliest part that had one. */
static int run(Tensor *t, void (*task)(void *, int, int), int threads)
{
    t->elements = block_of(t->kind, &t->bytes);
    if (!t->elements || t->inputs % t->elements)
        return EINVAL;
    if (!t->rows || !t->inputs)
        return 0;
    threads = threads < 1 ? 1 : threads > MOST_PARTS ? MOST_PARTS : threads;
    rl_parallel(task, t, threads);
    for (int part = 0; part < threads; part++)
        if (t->fault[part])
            return t->fault[part];
    return 0;
}

/*
 * Read a tensor [rows, inputs], which begins at `offset` of an open file, into `out`, contiguous.
 *   kind   GGUF's number of the stored type, whose blocks must divide a row
 *   order  for each row the file's row, or NULL
 *   to     0 float32, 1 bfloat16, 2 float16
 * Returns 0; the errno of a read; −1: the file ends before the tensor; −2: a number is outside the range of
 * `to`; −3: NaN or infinity; −4: no memory. After a fault `out` is filled in part.
 */
int rl_read_tensor(int descriptor, int64_t offset, int kind, int64_t rows, int64_t inputs,
                   const int64_t *order, int to, void *out, int threads)
{
    Tensor t = {.descriptor = descriptor, .offset = offset, .kind = kind, .rows = rows, .inputs = inputs};
    t.order = order, t.to = to, t.out = out;
    return run(&t, fill, threads);
}

/* The same into a packed matrix, whose buffer starts zeroed. format: that of a Matrix. keep: the
 * blocks are kept as they are (Q8_0 as int8; Q4_0 and Q4_1 as int4; Q4_K as 4, Q6_K as 5); then only their
 * scales and minima are checked. */
int rl_read_packed(int descriptor, int64_t offset, int kind, int64_t rows, int64_t inputs,
                   const int64_t *order, int format, int keep, void *packed, int threads)
{
    Tensor t = {.descriptor = descriptor, .offset = offset, .kind = kind, .rows = rows, .inputs = inputs};
    t.order = order, t.format = format, t.keep = keep, t.out = packed;
    t.to = format == BF16 ? TO_BF16 : TO_F32;
    return run(&t, pack, threads);
}
