/* One pool of threads for all kernels. */
#ifndef REDLITE_POOL_H
#define REDLITE_POOL_H

/* Run task(context, part, parts) for every part in [0, parts) and return when all have run, the caller's own thread among those that run them.
 * Calls from several threads take turns; parts below 1 counts as 1. A task must not call rl_parallel. */
void rl_parallel(void (*task)(void *context, int part, int parts), void *context, int parts);

#endif
