/* The instruction sets that this processor has and the library has code for, and the one in use. */
#define _GNU_SOURCE
#include "isa.h"
#include <stdatomic.h>
#include <string.h>
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#if defined(__x86_64__)
static const char *const NAMES[] = {"portable", "avx2", "avx512-vnni", "avx512-bf16", "amx-bf16"};
static const char *const LISTS[] = {"portable", "avx2 portable", "avx512-vnni avx2 portable",
                                    "avx512-bf16 avx512-vnni avx2 portable",
                                    "amx-bf16 avx512-bf16 avx512-vnni avx2 portable"};
#elif defined(__aarch64__)
static const char *const NAMES[] = {"portable", "neon", "neon-dotprod"};
static const char *const LISTS[] = {"portable", "neon portable", "neon-dotprod neon portable"};
#else
static const char *const NAMES[] = {"portable"};
static const char *const LISTS[] = {"portable"};
#endif

static atomic_int in_use = -1; /* −1: not yet known */

#if defined(__x86_64__)
/* AVX512, or what more the processor has. Tiles are a large state, for which Linux wants to be asked. */
static int with_bf16(void)
{
#if defined(RL_BF16_COMPILER)
    enum { ASK_FOR_STATE = 0x1023, TILE_DATA = 18 }; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
    unsigned a = 0, b, c, d = 0;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & 1u << 5))
        return AVX512;
#if defined(__linux__)
    __get_cpuid_count(7, 0, &a, &b, &c, &d);
    if (d & 1u << 22 && d & 1u << 24 && !syscall(SYS_arch_prctl, ASK_FOR_STATE, TILE_DATA))
        return AMX;
#endif
    return AVX512_BF16;
#else
    return AVX512;
#endif
}
#endif

static int widest(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init(); /* it also knows whether the operating system saves the registers */
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")))
        return PORTABLE;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
        && __builtin_cpu_supports("avx512vnni"))
        return with_bf16();
    return AVX2;
#elif defined(__aarch64__) && defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP ? NEON_DOT : NEON;
#elif defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
    return NEON_DOT; /* the compiler may assume it, as on Apple's processors */
#elif defined(__aarch64__)
    return NEON;
#else
    return PORTABLE;
#endif
}

int rl_level(void)
{
    int level = atomic_load_explicit(&in_use, memory_order_relaxed);
    if (level < 0)
        atomic_store_explicit(&in_use, level = widest(), memory_order_relaxed);
    return level;
}

/* The name of the instruction set in use. */
const char *rl_isa(void) { return NAMES[rl_level()]; }

/* The names of all that can be used here, widest first, separated by spaces. */
const char *rl_isas(void) { return LISTS[widest()]; }

/* Use the set called `name` from now on, in every thread. Returns 0, or −1 if the processor has none of that
 * name. */
int rl_use(const char *name)
{
    for (int level = widest(); level >= 0; level--)
        if (strcmp(NAMES[level], name) == 0) {
            atomic_store_explicit(&in_use, level, memory_order_relaxed);
            return 0;
        }
    return -1;
}
