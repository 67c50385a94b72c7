/*
 * token_nll: the products around the two passes over logits, whose arithmetic is in token_nll_loops.h.
 *
 * A run of vocabulary entries at a time is packed, multiplied and used, so logits and their gradient stay in
 * the caches. Backward forms G = scale · (q − onehot) of a run once more from the products, and multiplies it
 * with the weights and with the rows.
 *
 * A thread takes rows for the logits and for ∂L/∂hidden, and entries for ∂L/∂weights. Whatever the threads,
 * each number is a sum in one order: logits over the numbers of a slice of the width, and the slices in turn;
 * ∂L/∂hidden over the entries of a run, and the runs; ∂L/∂weights over the rows of a block, and the blocks.
 * With `narrow` G is rounded to bfloat16 for both products, which sum in float32.
 */
#include "token_nll.h"
#include "loops.h"
#include "matrix_products_tiles.h"
#include "thread_pool.h"
#include <stdlib.h>

enum {
    RUN = 384,              /* entries: whole tiles of 6 and of 12; with `narrow` twice as many */
    RUN_FLOATS = 1 << 21,   /* of a run's weights: with a great width it has fewer entries */
    DEPTH = 512,            /* most rows of a block */
    SLICE = 384,            /* most numbers of a slice, alike: a longer sum in float32 would lose digits */
    SPARE = 16,             /* behind each row of logits: a column would else lie in few sets of the cache */
    ROWS_BYTES = 192 << 10, /* of a part's rows: they should stay in the cache */
    LINE = 64
};

/* Products of the rows with a run (`scores`, for a whole slice), of G with a run, and of a run's Gᵀ with a
 * block of rows. Panels are the second factors, packed: each slice's, and each block's, behind the other. */
typedef struct {
    const TokenNLL *t;
    NllPass pass;
    float *d_hidden; /* NULL: not asked for */
    void *d_weights;
    Product scores, hidden, entries;
    int64_t first, run, stride, slices, blocks; /* stride: from one row of logits to the next */
    uint8_t *score_panels, *hidden_panels, *row_panels;
    float *logits, *sums; /* sums: of ∂L/∂weights, before they are rounded */
} Work;

static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to; }

static int64_t panel_size(const Product *p)
{
    return p->format == F32 ? p->inputs * PANEL * (int64_t)sizeof(float)
                            : (int64_t)panel_bytes(p->format, p->blocks);
}

static void set_inputs(Product *p, int64_t inputs) { p->inputs = inputs, p->blocks = up(inputs, BLOCK); }

/* Floats for the tiles of x, with what AMX reads behind the last. */
static int64_t tiled_floats(int64_t rows, int64_t inputs)
{
    return rows * up(inputs, BLOCK) * BLOCK + BF16_GROUP * BLOCK;
}

/* The product of a slice; its panels are in `panels`. */
static Product slice(const Work *w, int64_t number, uint8_t **panels)
{
    Product p = w->scores;
    const int64_t from = number * p.inputs;
    p.x += from, p.tiled += number * tiled_floats(p.rows, p.inputs);
    *panels = w->score_panels + number * up(w->stride - SPARE, PANEL) * panel_size(&p);
    set_inputs(&p, least(p.inputs, w->t->width - from));
    return p;
}

enum { FROM_FLOATS, FROM_BF16, TO_BF16 }; /* float32 to float32; bfloat16 to bfloat16, out of float32 too */

static inline __attribute__((always_inline)) void pack_columns(
    const void *from, const int kind, int64_t columns, int64_t column_stride, int64_t input_stride,
    int64_t inputs, void *to)
{
    for (int64_t k = 0; k < inputs; k++)
        for (int64_t j = 0; j < columns; j++) {
            const int64_t at = j * column_stride + k * input_stride;
            uint32_t bits; /* of float32; a bfloat16 number is its upper half */
            if (kind == FROM_FLOATS)
                ((float *)to)[k * PANEL + j] = ((const float *)from)[at];
            else if (kind == FROM_BF16)
                ((uint16_t *)to)[bf16_at(j, k)] = ((const uint16_t *)from)[at];
            else {
                memcpy(&bits, (const float *)from + at, sizeof bits);
                ((uint16_t *)to)[bf16_at(j, k)] = (uint16_t)(bits >> 16);
            }
        }
}

/* Pack up to 16 columns: number k of column j is from[j · column_stride + k · input_stride], and 0 beyond. */
static void pack_panel(const Product *p, const void *from, int narrow, int64_t columns, int64_t column_stride,
                       int64_t input_stride, int64_t inputs, uint8_t *to)
{
    if (columns < PANEL || inputs < p->inputs || p->inputs % BLOCK)
        memset(to, 0, (size_t)panel_size(p));
    columns = columns < PANEL ? columns : PANEL;
    inputs = inputs < p->inputs ? inputs : p->inputs;
#define PACK(kind)                                                                    \
    if (column_stride == 1 && columns == PANEL)                                       \
        pack_columns(from, kind, PANEL, 1, input_stride, inputs, to);                 \
    else                                                                              \
        pack_columns(from, kind, columns, column_stride, input_stride, inputs, to);
    if (p->format == F32) {
        PACK(FROM_FLOATS)
    } else if (narrow) {
        PACK(FROM_BF16)
    } else {
        PACK(TO_BF16)
    }
}

/* A run's weights, as the factor of the rows and as that of G. */
static void pack_run(void *context, int part, int parts)
{
    const Work *w = context;
    const TokenNLL *t = w->t;
    const int64_t columns = up(w->run, PANEL), of_scores = w->slices * columns;
    const int64_t all = of_scores + (w->d_hidden ? up(t->width, PANEL) : 0), size = t->narrow ? 2 : 4;
    const uint8_t *weights = (const uint8_t *)t->weights + w->first * t->entry_stride * size;
    for (int64_t i = all * part / parts; i < all * (part + 1) / parts; i++)
        if (i < of_scores) {
            uint8_t *to;
            Product p = slice(w, i / columns, &to);
            const int64_t column = i % columns * PANEL, input = i / columns * w->scores.inputs;
            const void *from = weights + (column * t->entry_stride + input * t->width_stride) * size;
            pack_panel(&p, from, t->narrow, w->run - column, t->entry_stride, t->width_stride, p.inputs,
                       to + i % columns * panel_size(&p));
        } else {
            const int64_t column = (i - of_scores) * PANEL;
            pack_panel(&w->hidden, weights + column * t->width_stride * size, t->narrow, t->width - column,
                       t->width_stride, t->entry_stride, w->run,
                       w->hidden_panels + (i - of_scores) * panel_size(&w->hidden));
        }
}

/* The rows as the other factor of ∂L/∂weights, block by block. */
static void pack_rows(void *context, int part, int parts)
{
    const Work *w = context;
    const TokenNLL *t = w->t;
    const int64_t panels = up(t->width, PANEL), depth = w->entries.inputs, all = w->blocks * panels;
    for (int64_t i = all * part / parts; i < all * (part + 1) / parts; i++) {
        const int64_t row = i / panels * depth, column = i % panels * PANEL;
        pack_panel(&w->entries, t->hidden + row * t->width + column, 0, t->width - column, 1, t->width,
                   t->rows - row, w->row_panels + i * panel_size(&w->entries));
    }
}

static void lay_out_rows(void *context, int part, int parts)
{
    const Work *w = context;
    for (int64_t number = 0; number < w->slices; number++) {
        uint8_t *panels;
        Product p = slice(w, number, &panels);
        rl_lay_out(&p, p.tiles * part / parts, p.tiles * (part + 1) / parts);
    }
}

/* y [rows of the tiles, columns] = x · panels, or with `add` it is added to. y's rows are `stride` apart. */
static void multiply(const Product *given, const uint8_t *panels, int64_t columns, int64_t first,
                     int64_t last, float *y, int64_t stride, int add)
{
    Product p = *given;
    const int64_t size = panel_size(&p), visits = (last - first) * p.blocks;
    float out[MOST_ROWS * PANEL];
    p.share = up(up(size, LINE), visits) * LINE;
    for (int64_t column = 0; column < columns; column += PANEL, panels += size) {
        const int64_t width = columns - column < PANEL ? columns - column : PANEL;
        for (int64_t tile = first; tile < last; tile++) {
            const int64_t row = first_row(&p, tile);
            const int count = (int)(first_row(&p, tile + 1) - row);
            const uint8_t *ahead = panels + size + (tile - first) * p.blocks * p.share;
            p.tile(&p, panels, row, count, out, PANEL, column + PANEL < columns ? ahead : NULL);
            for (int r = 0; r < count; r++) {
                float *to = y + (row + r) * stride + column;
                const float *from = out + r * PANEL;
                if (width < PANEL)
                    for (int64_t j = 0; j < width; j++)
                        to[j] = add ? to[j] + from[j] : from[j];
                else if (add) /* a constant size: vectors, and no call */
                    for (int64_t j = 0; j < PANEL; j++)
                        to[j] += from[j];
                else
                    memcpy(to, from, PANEL * sizeof(float));
            }
        }
    }
}

/* A run's logits of some rows, a pass over them, and their part of ∂L/∂hidden. */
static void score(void *context, int part, int parts)
{
    const Work *w = context;
    const TokenNLL *t = w->t;
    const int64_t first = w->scores.tiles * part / parts, last = w->scores.tiles * (part + 1) / parts;
    LogitTile tile = {w->logits,  w->stride, w->run,    t->first + w->first, t->targets,
                      t->maximum, t->sum,    t->target, t->scale};
    rl_begin_tiles(&w->scores);
    for (int64_t number = 0; number < w->slices; number++) {
        uint8_t *panels;
        Product p = slice(w, number, &panels);
        multiply(&p, panels, w->run, first, last, w->logits, w->stride, number > 0);
    }
    rl_loops()->nll(&tile, w->pass, first_row(&w->scores, first), first_row(&w->scores, last));
    if (w->d_hidden) {
        rl_lay_out(&w->hidden, first, last);
        multiply(&w->hidden, w->hidden_panels, t->width, first, last, w->d_hidden, t->width, 1);
    }
    rl_end_tiles(&w->scores);
}

/* ∂L/∂weights of some entries of a run, over all rows. */
static void weigh(void *context, int part, int parts)
{
    const Work *w = context;
    const TokenNLL *t = w->t;
    Product p = w->entries;
    const int64_t first = p.tiles * part / parts, last = p.tiles * (part + 1) / parts;
    const int64_t row = first_row(&p, first), count = first_row(&p, last) - row;
    float *y = t->narrow_gradient ? w->sums : (float *)w->d_weights + w->first * t->width;
    rl_begin_tiles(&p);
    for (int64_t block = 0; block < w->blocks; block++) {
        p.x = w->logits + block * p.inputs * w->stride;
        rl_lay_out(&p, first, last);
        multiply(&p, w->row_panels + block * up(t->width, PANEL) * panel_size(&p), t->width, first, last, y,
                 t->width, block > 0 || t->add);
    }
    rl_end_tiles(&p);
    if (t->narrow_gradient)
        round_to_bf16(y + row * t->width, count * t->width,
                      (uint16_t *)w->d_weights + (w->first + row) * t->width);
}

/* Memory for all that a run needs, cut up for it; NULL if there is none. */
static float *memory_for(Work *w)
{
    const TokenNLL *t = w->t;
    const int64_t run = w->run, width = t->width, panels = up(width, PANEL), depth = w->entries.inputs;
    const int hidden = w->d_hidden != NULL, weights = w->d_weights != NULL;
    struct {
        void *to; /* a pointer */
        int64_t floats;
    } parts[] = {
        {&w->scores.tiled, w->slices * tiled_floats(t->rows, w->scores.inputs)},
        {&w->score_panels, w->slices * up(run, PANEL) * panel_size(&w->scores) / 4},
        {&w->logits, (weights ? w->blocks * depth : t->rows) * w->stride},
        {&w->hidden.tiled, hidden * tiled_floats(t->rows, run)},
        {&w->hidden_panels, hidden * panels * panel_size(&w->hidden) / 4},
        {&w->entries.tiled, weights * tiled_floats(run, depth)},
        {&w->row_panels, weights * w->blocks * panels * panel_size(&w->entries) / 4},
        {&w->sums, weights && t->narrow_gradient ? run * width : 0},
    };
    enum { PARTS_OF_MEMORY = sizeof parts / sizeof *parts };
    int64_t lines = 0;
    for (int i = 0; i < PARTS_OF_MEMORY; i++)
        lines += up(parts[i].floats * 4, LINE);
    uint8_t *memory = aligned_alloc(LINE, (size_t)(lines * LINE)), *at = memory;
    for (int i = 0; memory && i < PARTS_OF_MEMORY; at += up(parts[i++].floats * 4, LINE) * LINE)
        memcpy(parts[i].to, &at, sizeof at);
    if (memory && weights) /* rows that fill up the last block */
        memset(w->logits + t->rows * w->stride, 0,
               (size_t)((w->blocks * depth - t->rows) * w->stride) * sizeof(float));
    return (float *)memory;
}

static int run_all(const TokenNLL *t, NllPass pass, int threads)
{
    if (!t->rows || !t->entries)
        return 0;
    const int64_t fits = most(RUN_FLOATS / t->width / PANEL * PANEL, PANEL);
    const int64_t twice = t->narrow ? 2 : 1, run = least(t->entries, least(fits, RUN * twice));
    Work w = {.t = t, .pass = pass, .run = run, .stride = run + SPARE};
    w.slices = up(t->width, SLICE * twice), w.blocks = up(t->rows, DEPTH);
    if (pass == GRADIENT)
        w.d_hidden = t->d_hidden, w.d_weights = t->d_weights;
    w.scores = w.hidden = w.entries = (Product){.format = t->narrow ? BF16 : F32};
    set_inputs(&w.scores, up(up(t->width, w.slices), BLOCK) * BLOCK), set_inputs(&w.hidden, run);
    set_inputs(&w.entries, up(up(t->rows, w.blocks), BLOCK) * BLOCK);
    float *memory = memory_for(&w);
    if (!memory)
        return -1;
    w.scores.rows = w.hidden.rows = t->rows, w.scores.x = t->hidden, w.hidden.x = w.logits;
    w.scores.row_stride = t->width, w.scores.input_stride = w.hidden.input_stride = w.entries.row_stride = 1;
    w.hidden.row_stride = w.entries.input_stride = w.stride;
    rl_choose(&w.scores), w.scores.tiles = most(w.scores.tiles, least(t->rows, threads));
    rl_choose(&w.hidden), w.hidden.tiles = w.scores.tiles;
    const int64_t tile_bytes = w.scores.most * w.slices * rl_tile_row_bytes(&w.scores);
    const int64_t shares = up(up(w.scores.tiles, most(ROWS_BYTES / tile_bytes, 1)), threads) * threads;
    rl_share_out(lay_out_rows, &w, threads, threads);
    if (w.d_weights)
        rl_share_out(pack_rows, &w, (int)(w.blocks * up(t->width, PANEL)), threads);
    for (w.first = 0; w.first < t->entries; w.first += run) {
        w.run = least(run, t->entries - w.first);
        set_inputs(&w.hidden, w.run);
        rl_share_out(pack_run, &w, (int)up(w.run, PANEL), threads);
        rl_share_out(score, &w, (int)least(shares, w.scores.tiles), threads);
        if (!w.d_weights)
            continue;
        w.entries.rows = w.run;
        rl_choose(&w.entries);
        rl_share_out(weigh, &w, (int)up(w.entries.tiles, 2), threads);
    }
    free(memory);
    return 0;
}

/* Add these entries to the statistics of the rows, which start with maximum −FLT_MAX and sum 0; where a row's
 * target is among them, `target` receives its logit. Returns 0, or −1 if memory runs out. */
int rl_nll_statistics(const TokenNLL *t, int threads)
{
    return run_all(t, STATISTICS, threads < 1 ? 1 : threads);
}

/* These entries' part of ∂L/∂hidden, and their ∂L/∂weights. The statistics are those of all entries. */
int rl_nll_gradient(const TokenNLL *t, int threads)
{
    return run_all(t, GRADIENT, threads < 1 ? 1 : threads);
}
