/* The loops of loops.h for any processor, and the choice between the tables. */
#include "cached_attention_loops.h"
#include "dequantise_loops.h"
#include "elementwise_loops.h"
#include "isa.h"
#include "optimizer_loops.h"
#include "sequence_attention_loops.h"
#include "token_nll_loops.h"
#include "training_loops.h"
#include "unpack_loops.h"

static const Loops portable = LOOPS;
#if defined(__x86_64__)
extern const Loops rl_loops_avx2, rl_loops_avx512;
#endif

const Loops *rl_loops(void)
{
#if defined(__x86_64__)
    if (rl_level() >= AVX512)
        return &rl_loops_avx512;
    if (rl_level() >= AVX2)
        return &rl_loops_avx2;
#endif
    return &portable;
}
