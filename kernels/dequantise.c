/*
 * Tensors of a file into memory: numbers and GGUF's blocks, as plain numbers or packed for the products of linear.c.
 *
 * Each thread takes a run of the tensor, a panel's rows or a piece at a time: it reads their bytes, decodes them and puts
 * them in place, all in scratch that stays in its cache. The bytes are read, not mapped: no page of the file stays in this
 * process's memory, and a file that shrinks meanwhile is an error, not a dead process. Nothing is read that was not asked
 * for by size, so no content of a file can make this code pass the end of a buffer.
 *
 * The formats are those of ggml-quants.c (github.com/ggml-org/ggml); redlite/weights/gguf_formats.py defines them in numpy, and the
 * numbers are the same to the last bit: a half times the small integers of a block has at most 24 significant bits, so
 * every product here is exact, and the one subtraction or addition rounds as it does there, contracted or not.
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include "redlite.h"
#include "isa.h"
#include "pool.h"
#include "tiles.h"
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

enum { PIECE = 1 << 14, MOST_PARTS = 64 }; /* numbers decoded at a time, a multiple of every block; pool.c's most */
enum { SHORTER = -1, OUT_OF_RANGE = -2, NOT_FINITE = -3, NO_MEMORY = -4 }; /* above 0: errno of a read */
enum { TO_F32 = 0, TO_BF16 = 1, TO_F16 = 2 };

void rl_pack_float(int format, void *packed, const float *rows, int64_t first, int64_t count, int64_t inputs);
void rl_pack_gguf(int kind, void *packed, const uint8_t *raw, int64_t first, int64_t count, int64_t inputs);

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

INLINE float half_at(const uint8_t *at)
{
    uint16_t half;
    memcpy(&half, at, 2);
    return half_to_float(half);
}

/* ---- formats: `count` blocks at b become numbers at out ---- */

INLINE void f32(const uint8_t *b, int64_t count, float *out) { memcpy(out, b, (size_t)count * 4); }

INLINE void f16(const uint8_t *b, int64_t count, float *out) /* half_to_float without branches, for many at a time */
{
    for (int64_t i = 0; i < count; i++) {
        uint16_t half;
        memcpy(&half, b + 2 * i, 2);
        uint32_t magnitude = half & 0x7fff, tiny_bits, sign = (uint32_t)(half & 0x8000) << 16;
        float tiny = (float)(int32_t)magnitude * 0x1p-24f;
        memcpy(&tiny_bits, &tiny, 4);
        uint32_t bits = (magnitude << 13) + (magnitude >= 0x7c00 ? 224u << 23 : 112u << 23);
        bits = sign | (magnitude < 0x400 ? tiny_bits : bits);
        memcpy(out + i, &bits, 4);
    }
}

INLINE void bf16(const uint8_t *b, int64_t count, float *out)
{
    for (int64_t i = 0; i < count; i++) {
        uint16_t upper;
        memcpy(&upper, b + 2 * i, 2);
        uint32_t bits = (uint32_t)upper << 16;
        memcpy(out + i, &bits, 4);
    }
}

INLINE void q8_0(const uint8_t *b, int64_t count, float *out)
{
    for (; count--; b += 34, out += 32) {
        float d = half_at(b);
        for (int i = 0; i < 32; i++)
            out[i] = (float)(int8_t)b[2 + i] * d;
    }
}

INLINE void q4_0(const uint8_t *b, int64_t count, float *out)
{
    for (; count--; b += 18, out += 32) {
        float d = half_at(b);
        for (int i = 0; i < 16; i++) {
            out[i] = (float)((b[2 + i] & 15) - 8) * d;
            out[16 + i] = (float)((b[2 + i] >> 4) - 8) * d;
        }
    }
}

INLINE void q4_1(const uint8_t *b, int64_t count, float *out)
{
    for (; count--; b += 20, out += 32) {
        float d = half_at(b), m = half_at(b + 2);
        for (int i = 0; i < 16; i++) {
            out[i] = (float)(b[4 + i] & 15) * d + m;
            out[16 + i] = (float)(b[4 + i] >> 4) * d + m;
        }
    }
}

INLINE void q5_0(const uint8_t *b, int64_t count, float *out)
{
    for (; count--; b += 22, out += 32) {
        float d = half_at(b);
        uint32_t fifth = (uint32_t)b[2] | (uint32_t)b[3] << 8 | (uint32_t)b[4] << 16 | (uint32_t)b[5] << 24;
        for (int i = 0; i < 16; i++) {
            out[i] = (float)((int)((b[6 + i] & 15) | (fifth >> i & 1) << 4) - 16) * d;
            out[16 + i] = (float)((int)(b[6 + i] >> 4 | (fifth >> (16 + i) & 1) << 4) - 16) * d;
        }
    }
}

INLINE void q4_k(const uint8_t *b, int64_t count, float *out)
{
    for (; count--; b += 144)
        for (int group = 0; group < 8; group++, out += 32) {
            const uint8_t *packed = b + 4 + group % 4, *q = b + 16 + group / 2 * 32; /* 6-bit scales and minima, in two layouts */
            int scale = group < 4 ? packed[0] & 63 : (packed[8] & 15) | packed[0] >> 6 << 4;
            int least = group < 4 ? packed[4] & 63 : packed[8] >> 4 | packed[4] >> 6 << 4;
            float d = half_at(b) * (float)scale, m = half_at(b + 2) * (float)least;
            for (int i = 0; i < 32; i++)
                out[i] = (float)(q[i] >> group % 2 * 4 & 15) * d - m;
        }
}

INLINE void q6_k(const uint8_t *b, int64_t count, float *out)
{
    for (; count--; b += 210)
        for (int half = 0; half < 2; half++)
            for (int quarter = 0; quarter < 4; quarter++, out += 32) {
                const uint8_t *low = b + half * 64 + quarter % 2 * 32, *high = b + 128 + half * 32;
                for (int s = 0; s < 2; s++) {
                    float d = half_at(b + 208) * (float)(int8_t)b[192 + half * 8 + quarter * 2 + s];
                    for (int i = s * 16; i < s * 16 + 16; i++)
                        out[i] = (float)(((low[i] >> quarter / 2 * 4 & 15) | (high[i] >> quarter * 2 & 3) << 4) - 32) * d;
                }
            }
}

enum { G_F32 = 0, G_F16 = 1, G_Q4_0 = 2, G_Q4_1 = 3, G_Q5_0 = 6, G_Q8_0 = 8, G_Q4_K = 12, G_Q6_K = 14, G_BF16 = 30 }; /* GGUF's own numbers */

/* Numbers of a block and its bytes. Returns 0 for a kind that there is none of. */
static int64_t block_of(int kind, int64_t *bytes)
{
    switch (kind) {
    case G_F32: *bytes = 4; return 1;
    case G_F16: case G_BF16: *bytes = 2; return 1;
    case G_Q4_0: *bytes = 18; return 32;
    case G_Q4_1: *bytes = 20; return 32;
    case G_Q5_0: *bytes = 22; return 32;
    case G_Q8_0: *bytes = 34; return 32;
    case G_Q4_K: *bytes = 144; return 256;
    case G_Q6_K: *bytes = 210; return 256;
    default: return 0;
    }
}

INLINE void decode_any(int kind, const uint8_t *b, int64_t count, float *out)
{
    switch (kind) {
    case G_F32: f32(b, count, out); break;
    case G_F16: f16(b, count, out); break;
    case G_BF16: bf16(b, count, out); break;
    case G_Q4_0: q4_0(b, count, out); break;
    case G_Q4_1: q4_1(b, count, out); break;
    case G_Q5_0: q5_0(b, count, out); break;
    case G_Q8_0: q8_0(b, count, out); break;
    case G_Q4_K: q4_k(b, count, out); break;
    case G_Q6_K: q6_k(b, count, out); break;
    }
}

/* The largest magnitude among n numbers, as bits: infinity is 0x7f800000 and every NaN is above. */
INLINE int32_t largest_any(const float *x, int64_t n)
{
    int32_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t bits;
        memcpy(&bits, x + i, 4);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    return most;
}

static int32_t decode_portable(int kind, const uint8_t *b, int64_t count, float *out, int64_t n)
{
    decode_any(kind, b, count, out);
    return largest_any(out, n);
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma,f16c"))) static int32_t decode_avx2(int kind, const uint8_t *b, int64_t count, float *out, int64_t n)
{
    decode_any(kind, b, count, out); /* the same text, for eight lanes */
    return largest_any(out, n);
}
#endif

static int32_t decode(int kind, const uint8_t *b, int64_t count, float *out, int64_t n)
{
#if defined(__x86_64__)
    if (rl_level() >= AVX2)
        return decode_avx2(kind, b, count, out, n);
#endif
    return decode_portable(kind, b, count, out, n);
}

/* ---- the tensor ---- */

typedef struct {
    int descriptor, kind, to;      /* to: of a plain tensor */
    int format, keep;              /* of a packed one; keep: pack_gguf's kind for blocks kept as they are, else 0 */
    int64_t offset, rows, inputs;
    int64_t elements, bytes;       /* of a block */
    const int64_t *order;          /* row r is the file's row order[r]; NULL: the same */
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

/* Numbers [first, first + count) in the file's order, whole blocks, as float32. raw: scratch for a piece. */
static int read_run(const Tensor *t, int64_t first, int64_t count, float *out, uint8_t *raw)
{
    for (int64_t n; count; first += n, out += n, count -= n) {
        n = count < PIECE ? count : PIECE;
        int64_t blocks = n / t->elements;
        int fault = read_at(t, t->offset + first / t->elements * t->bytes, blocks * t->bytes, raw);
        if (fault)
            return fault;
        int32_t most = decode(t->kind, raw, blocks, out, n);
        if (most >= 0x7f800000)
            return NOT_FINITE;
        if (t->to == TO_F16 && most > 0x477fe000) /* 65504 */
            return OUT_OF_RANGE;
        if (t->to == TO_BF16 && most > 0x7f7f0000)
            return OUT_OF_RANGE;
    }
    return 0;
}

static void narrow(int to, const float *from, int64_t n, uint8_t *out) /* to nearest, ties to even; all are in range */
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
            tiny += 0.5f; /* where half's numbers are 2⁻²⁴ apart, so are float's above 0.5: the addition rounds */
            memcpy(&tiny_bits, &tiny, 4);
            half = sign | (magnitude < 0x38800000 ? tiny_bits - 0x3f000000 : ((magnitude + 0xfff + (magnitude >> 13 & 1)) >> 13) - (112u << 10));
        }
        uint16_t value = (uint16_t)half;
        memcpy(out + 2 * i, &value, 2);
    }
}

/* Numbers [from, from + count) of the file become those from `at` of a plain tensor. numbers: scratch for a piece. */
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

static void fill(void *context, int part, int parts) /* a thread's share of a plain tensor */
{
    Tensor *t = context;
    int64_t total = t->order ? t->rows : t->rows * t->inputs / t->elements, unit = t->order ? t->inputs : t->elements;
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

/* Whether the scales (and minima) of blocks are finite numbers. */
static int finite_blocks(int kind, const uint8_t *b, int64_t count, int64_t bytes)
{
    for (; count--; b += bytes)
        if ((b[1] & 0x7c) == 0x7c || (kind == G_Q4_1 && (b[3] & 0x7c) == 0x7c))
            return 0;
    return 1;
}

/* Rows [first, first + count) of the result, as stored (keep) or as float32. */
static int panel_rows(const Tensor *t, int64_t first, int64_t count, uint8_t *raw, float *numbers)
{
    int64_t row_bytes = t->inputs / t->elements * t->bytes, run = t->order ? 1 : count; /* rows that lie together */
    for (int64_t r = 0; r < count; r += run) {
        int64_t from = t->order ? t->order[first + r] : first;
        int fault = t->keep ? read_at(t, t->offset + from * row_bytes, run * row_bytes, raw + r * row_bytes)
                            : read_run(t, from * t->inputs, run * t->inputs, numbers + r * t->inputs, raw);
        if (fault)
            return fault;
    }
    return t->keep && !finite_blocks(t->kind, raw, count * t->inputs / t->elements, t->bytes) ? NOT_FINITE : 0;
}

static void pack(void *context, int part, int parts) /* a thread's share of a packed tensor: whole panels */
{
    Tensor *t = context;
    int64_t panels = (t->rows + PANEL - 1) / PANEL, width = PANEL * t->inputs, piece = t->keep ? width : PIECE;
    float *numbers = malloc((size_t)(piece / t->elements * t->bytes) + (t->keep ? 0 : (size_t)width * sizeof(float)));
    if (!numbers) {
        t->fault[part] = NO_MEMORY;
        return;
    }
    uint8_t *raw = (uint8_t *)numbers + (t->keep ? 0 : (size_t)width * sizeof(float));
    for (int64_t panel = panels * part / parts; panel < panels * (part + 1) / parts && !t->fault[part]; panel++) {
        int64_t first = panel * PANEL, count = t->rows - first < PANEL ? t->rows - first : PANEL;
        if ((t->fault[part] = panel_rows(t, first, count, raw, numbers)))
            break;
        if (t->keep)
            rl_pack_gguf(t->keep, t->out, raw, first, count, t->inputs);
        else
            rl_pack_float(t->format, t->out, numbers, first, count, t->inputs);
    }
    free(numbers);
}

/* The whole tensor by `task`. Returns 0, or the fault of the earliest part that had one. */
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
 * Read a tensor [rows, inputs] that begins at `offset` of an open file into `out`, contiguous: to 0 float32, 1 bfloat16, 2 float16.
 * kind: GGUF's number of the stored type, whose blocks divide a row. order: for each row the file's row, or NULL.
 * Returns 0; or errno of a read; −1: the file ends before the tensor; −2: a number is beyond the range of `to`; −3: NaN or
 * infinity; −4: no memory. Then `out` is filled in part.
 */
RL_EXPORT int rl_read_tensor(int descriptor, int64_t offset, int kind, int64_t rows, int64_t inputs, const int64_t *order, int to, void *out, int threads)
{
    Tensor t = {.descriptor = descriptor, .kind = kind, .to = to, .offset = offset, .rows = rows, .inputs = inputs, .order = order, .out = out};
    return run(&t, fill, threads);
}

/*
 * The same, into a matrix packed for linear.c, whose buffer starts zeroed: its format 0 float32, 1 int8, 2 int4.
 * keep: 0, or what rl_pack_gguf calls this kind, to keep the blocks as they are, of which only the scales are then looked at.
 */
RL_EXPORT int rl_read_packed(int descriptor, int64_t offset, int kind, int64_t rows, int64_t inputs, const int64_t *order, int format, int keep, void *packed,
                             int threads)
{
    Tensor t = {.descriptor = descriptor, .kind = kind, .format = format, .keep = keep, .offset = offset, .rows = rows, .inputs = inputs, .order = order, .out = packed};
    return run(&t, pack, threads);
}
