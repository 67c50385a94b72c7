/* Instruction sets: which one the library uses is decided at run time. */
#ifndef REDLITE_ISA_H
#define REDLITE_ISA_H

#if defined(__x86_64__)
/* AVX2 with FMA and F16C; AVX512 with F, BW, DQ, VL and VNNI; AVX512_BF16 with it too; AMX with its tiles. */
enum { PORTABLE, AVX2, AVX512, AVX512_BF16, AMX };
#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11
#define RL_BF16_COMPILER /* it knows the instructions of the last two */
#endif
#elif defined(__aarch64__)
enum { PORTABLE, NEON, NEON_DOT }; /* NEON, which every such processor has; dot products of bytes */
#else
enum { PORTABLE };
#endif

/* The set in use: the widest that the processor has, unless rl_use chose another. A wider set includes the
 * narrower. */
int rl_level(void);

#endif
