/* One pool of threads, which all kernels share. */
#ifndef REDLITE_THREAD_POOL_H
#define REDLITE_THREAD_POOL_H

/* Run task(context, part, parts) for every part in [0, parts), and return when all have run. The calling
 * thread runs parts too. Calls from several threads take turns. parts below 1 counts as 1. A task must not
 * call rl_parallel. */
void rl_parallel(void (*task)(void *context, int part, int parts), void *context, int parts);

/* The same with more parts than threads, so that a thread that is held up leaves parts to the others. */
void rl_share_out(void (*task)(void *context, int part, int parts), void *context, int parts, int threads);

#endif
