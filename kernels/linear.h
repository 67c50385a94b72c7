/* Products by packed matrices (linear.c), for the other kernels. */
#ifndef REDLITE_LINEAR_H
#define REDLITE_LINEAR_H
#include <stdint.h>

int rl_linear(int format, const void *packed, const float *x, const float *bias, float *y, int64_t rows, int64_t columns, int64_t inputs, int threads);

#endif
