/* gemm_symbols.h - the block kernels of each instruction-set build by name, for the tests and benchmarks alone. */
#ifndef EN_CPU_GEMM_SYMBOLS_H
#define EN_CPU_GEMM_SYMBOLS_H

#include <string.h>

#include "kernels/kernels.h"

typedef struct {
    const char *isa;
    void (*pack)(en_backend *, int64_t k, int64_t n, const float *, bool, float *);
    void (*block)(int64_t m, int64_t n, int64_t k, const float *, int64_t, const float *, float *, int64_t, const void *epilogue);
    void (*wgrad)(int64_t m, int64_t k, int64_t n, const float *, int64_t, const float *, int64_t, float *);
} gemm_symbols;

#define GEMM_OF(isa)                                                                                                    \
    void pack_##isa(en_backend *, int64_t, int64_t, const float *, bool, float *);                                      \
    void gemm_block_##isa(int64_t, int64_t, int64_t, const float *, int64_t, const float *, float *, int64_t, const void *); \
    void gemm_wgrad_##isa(int64_t, int64_t, int64_t, const float *, int64_t, const float *, int64_t, float *);
#define GEMM_ROW(isa) { #isa, pack_##isa, gemm_block_##isa, gemm_wgrad_##isa }
GEMM_OF(generic)
#if defined(__x86_64__)
GEMM_OF(sse4) GEMM_OF(avx2) GEMM_OF(avx512)
#endif

static inline const gemm_symbols *gemm_symbols_of(const char *isa)
{
    static const gemm_symbols table[] = {
        GEMM_ROW(generic),
#if defined(__x86_64__)
        GEMM_ROW(sse4), GEMM_ROW(avx2), GEMM_ROW(avx512),
#endif
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (strcmp(table[i].isa, isa) == 0) return &table[i];
    return NULL;
}

#endif
