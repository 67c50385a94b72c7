/*
 * A pool of threads that sleep between calls.
 *
 * Workers spin for some microseconds after a task, since one operation follows another closely during
 * decoding, and then sleep on a condition, so that they never hold a core that torch's own threads want.
 * Where no thread can be made, the caller runs every part itself. A forked child starts with no workers.
 */
#define _GNU_SOURCE
#include "pool.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

enum { MOST = 64, SPINS = 4000 };

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;   /* held by the caller for a whole call */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;   /* guards sleeping and waking */
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static int workers;                                        /* alive, numbered from 1 */
static atomic_uint round_number;                           /* changes when a task is there */
static atomic_int unfinished;                              /* workers still to report on this round */
static void (*current_task)(void *, int, int);
static void *current_context;
static int current_parts;

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void *work(void *argument)
{
    int number = (int)(intptr_t)argument >> 8;
    unsigned seen = (unsigned)(intptr_t)argument & 0xff; /* the round at birth, in its last 8 bits */
    for (;;) {
        int spins = 0;
        while ((atomic_load_explicit(&round_number, memory_order_acquire) & 0xff) == seen) {
            if (++spins < SPINS) {
                relax();
                continue;
            }
            pthread_mutex_lock(&lock);
            while ((atomic_load_explicit(&round_number, memory_order_acquire) & 0xff) == seen)
                pthread_cond_wait(&wake, &lock);
            pthread_mutex_unlock(&lock);
        }
        seen = atomic_load_explicit(&round_number, memory_order_acquire) & 0xff;
        if (number < current_parts)
            current_task(current_context, number, current_parts);
        atomic_fetch_sub_explicit(&unfinished, 1, memory_order_release);
    }
    return NULL;
}

static void after_fork(void) /* in the child: the workers are gone, and no lock is held */
{
    pthread_mutex_init(&turn, NULL);
    pthread_mutex_init(&lock, NULL);
    pthread_cond_init(&wake, NULL);
    workers = 0;
    atomic_store(&unfinished, 0);
}

static void hire(int wanted)
{
    static int registered;
    if (!registered)
        registered = !pthread_atfork(NULL, NULL, after_fork);
    while (registered && workers < wanted) {
        pthread_t thread;
        unsigned seen = atomic_load(&round_number) & 0xff;
        if (pthread_create(&thread, NULL, work, (void *)((intptr_t)(workers + 1) << 8 | (intptr_t)seen)))
            return;
        pthread_detach(thread);
        workers++;
    }
}

void rl_parallel(void (*task)(void *, int, int), void *context, int parts)
{
    parts = parts < 1 ? 1 : parts > MOST ? MOST : parts;
    if (parts == 1) {
        task(context, 0, 1);
        return;
    }
    pthread_mutex_lock(&turn);
    hire(parts - 1);
    int helped = workers < parts - 1 ? workers : parts - 1;
    current_task = task, current_context = context, current_parts = parts;
    atomic_store_explicit(&unfinished, workers, memory_order_relaxed);
    pthread_mutex_lock(&lock);
    atomic_fetch_add_explicit(&round_number, 1, memory_order_release);
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&lock);
    task(context, 0, parts);
    for (int part = helped + 1; part < parts; part++) /* no thread was to be had for these */
        task(context, part, parts);
    while (atomic_load_explicit(&unfinished, memory_order_acquire))
        relax();
    pthread_mutex_unlock(&turn);
}
