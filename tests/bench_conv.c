/* bench_conv - the dense convolution beside a 1x1 convolution of as many multiply-adds, k*k*c -> oc over the rows of y: what the
 * same products cost once x is unfolded already.  One thread, interleaved A, B, A, B; medians and the spread of the ratio.  Not a
 * test: it asserts nothing.
 *
 *     cmake --build build --target bench_conv && build/tests/bench_conv [rounds]        (EN_ISA=avx2 names a build) */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "kernels/kernels.h"

enum { MOST = 101 };
static const struct { int64_t n, h, c, oc; int kernel, stride; bool plain; } shapes[] = {
    { 1, 150, 24, 24, 3, 1, true }, { 1, 150, 24, 96, 3, 2, true }, { 1, 150, 24, 96, 3, 1, true }, { 1, 75, 48, 192, 3, 1, true }, { 2, 38, 64, 256, 3, 1, true },
    { 2, 56, 64, 64, 3, 1, false }, { 4, 28, 128, 128, 3, 1, false }, { 8, 14, 256, 256, 3, 1, false }, { 8, 7, 512, 512, 3, 1, false },
    { 4, 28, 256, 256, 3, 2, false }, { 1, 56, 256, 512, 1, 2, true } };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b) { return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b); }
static double quantile(const double *v, int n, double q)
{
    double sorted[MOST];
    for (int i = 0; i < n; i++) sorted[i] = v[i];
    qsort(sorted, (size_t)n, sizeof *sorted, by_value);
    return sorted[(int)(q * (n - 1) + 0.5)];
}

static en_backend *be;
static void *numbers(int64_t n, bool doubles)
{
    void *p;
    if (be->ops->alloc(be, (size_t)n * (doubles ? 8 : 4), &p) != EN_OK) abort();
    for (int64_t i = 0; i < n && !doubles; i++) ((float *)p)[i] = (float)((uint64_t)i * 2654435761u >> 8 & 255) / 128.f - 1.f;
    return p;
}
static float *ones(int64_t n)
{
    float *p = numbers(n, false);
    for (int64_t i = 0; i < n; i++) p[i] = 1.f;
    return p;
}
static en_bn bn_of(int64_t c)
{
    return (en_bn){ .c = c, .eps = 1e-3f, .momentum = 0.1f, .gamma = ones(c), .beta = ones(c), .running_mean = numbers(c, false), .running_var = ones(c),
                    .local = numbers(2 * c + 1, true), .mean = numbers(c, false), .rstd = ones(c), .scale = ones(c), .shift = numbers(c, false), .ga = ones(c), .gb = numbers(c, false),
                    .gc = numbers(c, false) };
}
#define MUST(call) do { if ((call) != EN_OK) { fprintf(stderr, "%s", en_error_text()); exit(1); } } while (0)
#define TIMED(into, call) do { const double t_ = now(); MUST(call); (into) = now() - t_; } while (0)

int main(int argc, char **argv)
{
    const int rounds = argc > 1 && atoi(argv[1]) > 0 && atoi(argv[1]) <= MOST ? atoi(argv[1]) : 9;
    MUST(en_backend_open("cpu", &(en_backend_config){ .threads = 1 }, &be));
    printf("# %s, one thread, GFLOP/s of 2*rows*k*k*c*oc (backward twice that), median of %d; ratio = conv / pointwise, median (quartiles) of pairs\n", be->isa, rounds);
    printf("%-28s  %8s %9s  %-18s  %8s %9s  %s\n", "forward: shape", "conv", "pointwise", "ratio", "backward", "pointwise", "ratio");
    for (size_t q = 0; q < sizeof shapes / sizeof *shapes; q++) {
        const int64_t k = shapes[q].kernel, s = shapes[q].stride, oh = (shapes[q].h + s - 1) / s, pad = ((oh - 1) * s + k - shapes[q].h) / 2;
        const en_conv_geom g = { .n = shapes[q].n, .h = shapes[q].h, .w = shapes[q].h, .c = (shapes[q].c + 15) / 16 * 16, .oh = oh, .ow = oh, .oc = shapes[q].oc,
                                 .kernel = (int)k, .stride = (int)s, .pad = (int)(pad > 0 ? pad : 0), .dense = true };
        const int64_t rows = g.n * oh * oh, ci = k * k * g.c, oc = (g.oc + 15) / 16 * 16;
        en_conv_geom geom = g;
        geom.oc = oc;
        MUST(be->ops->reserve(be, &geom));
        MUST(be->ops->reserve(be, &(en_conv_geom){ .n = 1, .h = rows, .w = 1, .c = ci, .oh = rows, .ow = 1, .oc = oc, .stride = 1 }));
        en_bn x_bn = bn_of(g.c), y_bn = bn_of(oc);
        const int64_t nx = g.n * g.h * g.w * g.c;
        const en_operand x = { .y = numbers(nx, false), .bn = shapes[q].plain ? NULL : &x_bn, .act = shapes[q].plain ? EN_ACT_NONE : EN_ACT_RELU };
        float *wide = numbers(rows * ci, false), *wt = numbers(ci * oc, false), *y = numbers(rows * oc, false), *dz = numbers(rows * oc, false);
        float *dx = numbers(nx, false), *dwide = numbers(rows * ci, false), *dwt = numbers(ci * oc, false);
        const en_grad dy = { .stored = dz, .y = y, .bn = &y_bn, .hw = oh * oh };
        double t[6][MOST];
        for (int r = -1; r < rounds; r++) {
            double once[4];
            TIMED(once[0], be->ops->conv_forward(be, &geom, &x, wt, y, &y_bn));
            TIMED(once[1], be->ops->pointwise_forward(be, rows, ci, oc, wide, wt, y, &y_bn));
            TIMED(once[2], be->ops->conv_backward(be, &geom, &x, wt, &dy, NULL, dx, dwt, x.bn ? &x_bn : NULL));
            TIMED(once[3], be->ops->pointwise_backward(be, rows, ci, oc, wide, wt, &dy, NULL, dwide, dwt));
            for (int i = 0; i < 4 && r >= 0; i++) t[i][r] = once[i];
            if (r >= 0) t[4][r] = once[1] / once[0], t[5][r] = once[3] / once[2];
        }
        const double gflop = 2e-9 * (double)rows * (double)ci * (double)oc;
        char name[64], ratio[2][64];
        snprintf(name, sizeof name, "%lldx %lld->%lld k%d s%d at %lld%s", (long long)g.n, (long long)g.c, (long long)oc, g.kernel, g.stride, (long long)g.h, x.bn ? " relu" : "");
        for (int i = 0; i < 2; i++)
            snprintf(ratio[i], sizeof ratio[i], "%.2f (%.2f %.2f)", quantile(t[4 + i], rounds, 0.5), quantile(t[4 + i], rounds, 0.25), quantile(t[4 + i], rounds, 0.75));
        printf("%-28s  %8.1f %9.1f  %-18s  %8.1f %9.1f  %s\n", name, gflop / quantile(t[0], rounds, 0.5), gflop / quantile(t[1], rounds, 0.5), ratio[0],
               2 * gflop / quantile(t[2], rounds, 0.5), 2 * gflop / quantile(t[3], rounds, 0.5), ratio[1]);
        fflush(stdout);
        be->ops->free(be, wide), be->ops->free(be, dwide), be->ops->free(be, y), be->ops->free(be, dz), be->ops->free(be, dx), be->ops->free(be, dwt), be->ops->free(be, wt);
    }
    en_backend_close(be);
    return 0;
}
