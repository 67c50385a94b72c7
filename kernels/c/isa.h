/* Instruction sets: which one the library uses is decided at run time. */
#ifndef REDLITE_ISA_H
#define REDLITE_ISA_H

#if defined(__x86_64__)
enum { PORTABLE, AVX2, AVX512 }; /* AVX2 with FMA and F16C; AVX512 with F, BW and VNNI */
#elif defined(__aarch64__)
enum { PORTABLE, NEON, NEON_DOT }; /* NEON, which every such processor has; dot products of bytes */
#else
enum { PORTABLE };
#endif

/* The set in use: the widest that the processor has, unless rl_use chose another. A wider set includes the
 * narrower. */
int rl_level(void);

#endif
