/* bench_gemm - the block kernels of kernels/cpu/gemm.c beside a BLAS on the blocks that the passes give them: 112 rows, all
 * pointwise layers of B0, operands in L2, one thread.  Interleaved A, B, A, B; medians.  Not a test: it asserts nothing
 * but that both agree.
 *
 *     cmake -DEN_BENCH_BLAS=ON ... && OPENBLAS_NUM_THREADS=1 build/tests/bench_gemm */
#include <cblas.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/cpu/gemm_symbols.h"

enum { ROWS = 112, ROUNDS = 9 };
static const struct { int k, n, layers; } layer[] = {             /* k -> n of one direction; how often in B0 */
    { 16, 96, 1 }, { 24, 144, 2 }, { 40, 240, 2 }, { 80, 480, 4 }, { 112, 672, 3 }, { 192, 1152, 4 }, { 96, 32, 1 }, { 240, 48, 2 },
    { 480, 80, 2 }, { 480, 112, 1 }, { 672, 112, 2 }, { 672, 192, 1 }, { 1152, 192, 3 }, { 1152, 320, 1 }, { 320, 1280, 1 } };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b) { return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b); }

static float *vector(size_t n)
{
    float *p = aligned_alloc(64, (n * sizeof *p + 4096) / 64 * 64);
    if (!p) abort();
    for (size_t i = 0; i < n; i++) p[i] = (float)(i * 2654435761u >> 8 & 255) / 128.f - 1.f;
    return p;
}

int main(void)
{
    en_backend *be;
    if (en_backend_open("cpu", &(en_backend_config){ .threads = 1 }, &be) != EN_OK) return 1;
    const gemm_symbols *g = gemm_symbols_of(be->isa);
    printf("# %s, one thread, GF/s, median of %d; ratio = ours / BLAS\n%5s %5s  %9s %9s %6s  %9s %9s %6s\n", be->isa, ROUNDS, "k", "n", "forward",
           "BLAS", "ratio", "wgrad", "BLAS", "ratio");
    double total[4] = { 0 };
    for (size_t q = 0; q < sizeof layer / sizeof *layer; q++) {
        const int k = (layer[q].k + 15) / 16 * 16, n = (layer[q].n + 15) / 16 * 16, repeat = 1 + 40000000 / (ROWS * k * n);
        float *a = vector((size_t)ROWS * (size_t)k), *b = vector((size_t)k * (size_t)n), *packed = vector((size_t)k * (size_t)n),
              *c = vector((size_t)ROWS * (size_t)n), *d = vector((size_t)ROWS * (size_t)n), *w = vector((size_t)k * (size_t)n);
        double t[4][ROUNDS];
        g->pack(be, k, n, b, false, packed);
        for (int r = 0; r < ROUNDS; r++) {
            double t0 = now();
            for (int i = 0; i < repeat; i++) g->block(ROWS, n, k, a, k, packed, c, n, NULL);
            t[0][r] = (now() - t0) / repeat;
            t0 = now();
            for (int i = 0; i < repeat; i++) cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, ROWS, n, k, 1, a, k, b, n, 0, d, n);
            t[1][r] = (now() - t0) / repeat;
            t0 = now();
            for (int i = 0; i < repeat; i++) g->wgrad(ROWS, k, n, a, k, c, n, w);
            t[2][r] = (now() - t0) / repeat;
            t0 = now();
            for (int i = 0; i < repeat; i++) cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, k, n, ROWS, 1, a, k, c, n, 1, w, n);
            t[3][r] = (now() - t0) / repeat;
        }
        for (int i = 0; i < ROWS * n; i++)
            if (fabsf(c[i] - d[i]) > 1e-4f * (float)k) { printf("k %d n %d: element %d is %g, BLAS says %g\n", k, n, i, c[i], d[i]); return 1; }
        const double gflop = 2e-9 * ROWS * k * n;
        for (int i = 0; i < 4; i++) {
            qsort(t[i], ROUNDS, sizeof(double), by_value);
            total[i] += layer[q].layers * t[i][ROUNDS / 2];
        }
        printf("%5d %5d  %9.1f %9.1f %6.2f  %9.1f %9.1f %6.2f\n", k, n, gflop / t[0][ROUNDS / 2], gflop / t[1][ROUNDS / 2], t[1][ROUNDS / 2] / t[0][ROUNDS / 2],
               gflop / t[2][ROUNDS / 2], gflop / t[3][ROUNDS / 2], t[3][ROUNDS / 2] / t[2][ROUNDS / 2]);
        free(a); free(b); free(packed); free(c); free(d); free(w);
    }
    printf("all layers, time: forward %.2f of BLAS's, weight gradient %.2f\n", total[0] / total[1], total[2] / total[3]);
    en_backend_close(be);
    return 0;
}
