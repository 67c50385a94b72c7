/* redlite's C kernels: portable C11, wider instruction sets chosen at run time. Loaded by ctypes from kernels/native.py. */
#ifndef REDLITE_H
#define REDLITE_H
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define RL_EXPORT __attribute__((visibility("default")))
#else
#define RL_EXPORT
#endif

#endif
