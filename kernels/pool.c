/* Answers how many processors this process may use, and names the instruction set that the kernels chose. */
#define _GNU_SOURCE
#include "redlite.h"
#include <unistd.h>

/* The widest instruction set that the kernels will use on this processor: "avx2", "neon" or "portable". */
RL_EXPORT const char *rl_isa(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return "avx2";
#elif defined(__aarch64__)
    return "neon";
#endif
    return "portable";
}
