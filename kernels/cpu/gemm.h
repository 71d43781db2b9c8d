/* gemm.h - products of blocks that sit in L2, called from inside a lane.
 *
 * Forward and data gradient:  C (m, n) = A (m, k) * B (k, n), B packed once per pass into panels of NR = 2*VW columns, A
 * and C plain NHWC rows: no copy of an activation is ever made.  A register tile is MR x NR; MR fills the register file
 * (14 with AVX-512, 6 with 16 registers).  Weight gradient: D (k, n) += X (m, k)^T * Y (m, n), both read in place.
 * tests/bench_gemm.c holds both beside a BLAS on these very blocks: within L2 a library gains nothing. */
#ifndef EN_CPU_GEMM_H
#define EN_CPU_GEMM_H

#include "cpu.h"
#include "simd.h"

/* Packs B (k, n) for gemm_block; from `w` (k, n) row-major, or from its transpose w (n, k) when `transposed`.
 * n a multiple of 16; out holds k*n floats.  Runs on all lanes' threads. */
void ISA(pack)(en_backend *be, int64_t k, int64_t n, const float *w, bool transposed, float *out);
/* The same for k rows, from row k0 on, of a B that has `total` rows. */
void ISA(pack_rows)(en_backend *be, int64_t k, int64_t n, const float *w, bool transposed, int64_t k0, int64_t total, float *out);

typedef struct {
    const float *shift;        /* about which the sums are taken: n floats                        */
    double *stats;             /* n sums, then n sums of squares: += ; NULL: no sums              */
    const float *add;          /* C = A*B + add, rows of ldadd floats; NULL: none; may be C       */
    int64_t ldadd;
    bool stream;               /* with sums only: C goes past the caches; C's rows are 64-byte aligned */
} gemm_epilogue;

/* C (m, n), rows of ldc floats, = A*B and then the epilogue.  m <= BLOCK_ROWS or more; k any. */
void ISA(gemm_block)(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *packed, float *c, int64_t ldc,
                     const gemm_epilogue *e);

/* A convolution's rows as they lie in a slab of the image: A's row is `segments` runs of k floats, a_segment apart (rows of the
 * slab); m rows make one row of output, and `outer` of those follow each other, a_outer floats apart in A, c_outer in C (and in
 * what is added).  Rows of A may overlap: a window shares columns with its neighbour. */
typedef struct { int64_t k, segments, a_segment, outer, a_outer, c_outer; } gemm_walk;

/* gemm_block over such rows; `packed` has segments*k rows, segment after segment.  No segments: A*B is 0. */
void ISA(gemm_walk_block)(const gemm_walk *walk, int64_t m, int64_t n, const float *a, int64_t lda, const float *packed, float *c, int64_t ldc,
                          const gemm_epilogue *e);

/* D (k, n) += X^T Y over m rows; k a multiple of 8, n of 16; D's rows are n floats. */
void ISA(gemm_wgrad)(int64_t m, int64_t k, int64_t n, const float *x, int64_t ldx, const float *y, int64_t ldy, float *d);

/* The same over `outer` times m rows, x_outer and y_outer floats apart. */
void ISA(gemm_walk_wgrad)(int64_t outer, int64_t x_outer, int64_t y_outer, int64_t m, int64_t k, int64_t n, const float *x, int64_t ldx,
                          const float *y, int64_t ldy, float *d);

/* dst[i] += sum over lanes of lane.wgrad[i], in lane order; parallel over i */
void ISA(collect_wgrad)(en_backend *be, int64_t elems, float *dst);

#endif
