/*
 * A pool of threads that sleep between calls.
 *
 * Workers and the caller claim the parts of a task one by one. So a worker that is asleep, or not scheduled,
 * costs nothing: the caller takes the next part.
 *
 * After a task, workers spin for some microseconds, because the operations of a generation step follow each
 * other closely. Then they sleep, so that they hold no core that torch's own threads want. If no thread can
 * be made, the caller runs every part itself. A forked child starts with no workers.
 */
#define _GNU_SOURCE
#include "thread_pool.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

enum { MOST = 64, MOST_PARTS = 0xffff, SPINS = 4000 };

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;   /* held by the caller during a whole call */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;   /* guards sleeping and waking */
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static int workers;                                        /* how many exist */
static atomic_int sleeping;                                /* how many of them wait, or are about to */
static _Atomic uint64_t offer;                             /* call << 32 | parts << 16 | next part */
static atomic_int finished;                                /* parts of this call */
static void (*current_task)(void *, int, int);             /* these two change while no part runs */
static void *current_context;

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Claim a part and run it. Returns 0 if none is left. `offer` holds the call's number, so no part of an old
 * call is run. */
static int run_one(void)
{
    uint64_t seen = atomic_load(&offer);
    do {
        if ((seen & 0xffff) >= (seen >> 16 & 0xffff))
            return 0;
    } while (!atomic_compare_exchange_weak(&offer, &seen, seen + 1));
    current_task(current_context, (int)(seen & 0xffff), (int)(seen >> 16 & 0xffff));
    atomic_fetch_add_explicit(&finished, 1, memory_order_release);
    return 1;
}

static int offered(void)
{
    uint64_t seen = atomic_load(&offer);
    return (seen & 0xffff) < (seen >> 16 & 0xffff);
}

static void *work(void *argument)
{
    (void)argument;
    for (;;) {
        for (int spins = 0; spins < SPINS; spins = run_one() ? 0 : spins + 1)
            relax();
        pthread_mutex_lock(&lock);
        atomic_fetch_add(&sleeping, 1); /* first; then look at the offer: a caller offers, then looks */
        while (!offered())
            pthread_cond_wait(&wake, &lock);
        atomic_fetch_sub(&sleeping, 1);
        pthread_mutex_unlock(&lock);
    }
    return NULL;
}

static void after_fork(void) /* in the child: the workers are gone, and no lock is held */
{
    pthread_mutex_init(&turn, NULL);
    pthread_mutex_init(&lock, NULL);
    pthread_cond_init(&wake, NULL);
    workers = 0;
    atomic_store(&sleeping, 0);
    atomic_store(&offer, 0);
}

static void hire(int wanted)
{
    static int registered;
    if (!registered)
        registered = !pthread_atfork(NULL, NULL, after_fork);
    while (registered && workers < wanted) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, work, NULL))
            return;
        pthread_detach(thread);
        workers++;
    }
}

void rl_parallel(void (*task)(void *, int, int), void *context, int parts)
{
    parts = parts > MOST ? MOST : parts;
    rl_share_out(task, context, parts, parts);
}

void rl_share_out(void (*task)(void *, int, int), void *context, int parts, int threads)
{
    parts = parts < 1 ? 1 : parts > MOST_PARTS ? MOST_PARTS : parts;
    threads = threads > MOST ? MOST : threads;
    if (parts == 1 || threads < 2) {
        for (int part = 0; part < parts; part++)
            task(context, part, parts);
        return;
    }
    pthread_mutex_lock(&turn);
    hire((threads < parts ? threads : parts) - 1);
    current_task = task, current_context = context;
    atomic_store_explicit(&finished, 0, memory_order_relaxed);
    atomic_store(&offer, ((atomic_load(&offer) >> 32) + 1) << 32 | (uint64_t)parts << 16);
    if (atomic_load(&sleeping)) {
        pthread_mutex_lock(&lock);
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&lock);
    }
    while (run_one())
        ;
    for (int spins = 0; atomic_load_explicit(&finished, memory_order_acquire) < parts; spins++)
        if (spins < SPINS)
            relax();
        else
            sched_yield(); /* let the worker have the core */
    pthread_mutex_unlock(&turn);
}
