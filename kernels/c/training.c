/* The operations of training alone, divided among threads; their loops are in loops.h. */
#include "training.h"
#include "loops.h"
#include "thread_pool.h"

enum { SHARE = 1 << 14, LINE = 32 }; /* numbers: the fewest worth a thread, and the borders between threads */

static void update(void *context, int part, int parts)
{
    const AdamW *s = context;
    int64_t lines = (s->count + LINE - 1) / LINE, first = lines * part / parts * LINE,
            end = lines * (part + 1) / parts * LINE;
    rl_loops()->adamw(s, first, end < s->count ? end : s->count);
}

/* A step of AdamW. No number depends on how many threads there are. */
void rl_adamw(const AdamW *step, int threads)
{
    int64_t most = step->count / SHARE + 1;
    rl_parallel(update, (void *)step, most < threads ? (int)most : threads);
}

static void add_squares(void *context, int part, int parts)
{
    const Squares *s = context;
    int64_t blocks = (s->count + SQUARES - 1) / SQUARES;
    rl_loops()->squares(s, blocks * part / parts, blocks * (part + 1) / parts);
}

void rl_squares(const Squares *squares, int threads)
{
    int64_t most = squares->count / SHARE + 1;
    rl_parallel(add_squares, (void *)squares, most < threads ? (int)most : threads);
}

static void operate(void *context, int part, int parts)
{
    const Training *s = context;
    int64_t blocks = (s->rows + BLOCK_ROWS - 1) / BLOCK_ROWS, first = blocks * part / parts * BLOCK_ROWS,
            end = blocks * (part + 1) / parts * BLOCK_ROWS;
    rl_loops()->training(s, first, end < s->rows ? end : s->rows);
}

/* One operation over all its rows. No number depends on how many threads there are. */
void rl_training(const Training *operation, int threads)
{
    int64_t blocks = (operation->rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
    rl_parallel(operate, (void *)operation, blocks < threads ? (int)blocks : threads);
}
