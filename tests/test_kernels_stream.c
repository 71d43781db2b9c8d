/* test_kernels_stream.c - tensors above STREAM_MIB are written past the caches (simd.h, st_stream).  The same pass on one image
 * at a time stays below it: each element and, with one lane, each sum must have the same bits, or nearly so for the sums. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

enum { N = 3, H = 120, W = 120, C = 64, CO = 64 };          /* 10.5 MiB together, 3.5 MiB an image */

static float *filled(int64_t n, uint32_t stream)
{
    float *p = aligned_alloc(64, (size_t)(n + 16) / 16 * 64);
    en_rng r = en_rng_at(7, EN_RNG_TEST, 0, stream, 0);
    for (int64_t i = 0; p && i < n; i++) p[i] = 2 * en_rng_uniform(&r) - 1;
    assert_non_null(p);
    return p;
}

typedef struct { float *vector[9]; en_bn bn; } layer;

static void layer_init(layer *l, double *local)
{
    for (int i = 0; i < 9; i++) l->vector[i] = filled(C, 100 + (uint32_t)i);
    l->bn = (en_bn){ .c = C, .eps = 1e-3f, .gamma = l->vector[0], .beta = l->vector[1], .running_mean = l->vector[2], .mean = l->vector[3],
                     .rstd = l->vector[4], .scale = l->vector[5], .shift = l->vector[6], .ga = l->vector[7], .gb = l->vector[8], .gc = l->vector[1],
                     .local = local };
}

static void layer_free(layer *l) { for (int i = 0; i < 9; i++) free(l->vector[i]); }

static void same(const float *together, const float *apart, const double *sums, const double *added, int64_t elems)
{
    assert_memory_equal(together, apart, (size_t)elems * sizeof(float));
    for (int i = 0; i < 2 * C; i++)                          /* other blocks, so other float roundings: 112 terms each */
        if (fabs(sums[i] - added[i]) > 1e-5 * (double)(N * H * W)) fail_msg("sum %d: %.9g together, %.9g apart", i, sums[i], added[i]);
}

static void streamed_tensors_have_the_same_bits(void **state)
{
    (void)state;
    const int64_t image = (int64_t)H * W * C, all = N * image;
    float *x = filled(all, 1), *wt = filled(C * CO, 2), *dw = filled(9 * C, 3), *dz = filled(all, 4);
    float *y[2] = { filled(all, 5), filled(all, 6) }, *gw[2] = { filled(9 * C, 7), filled(9 * C, 7) };
    bool runs;
    for (int k = 0; en_backend_isa(k, &runs); k++) {
        if (!runs) continue;
        en_backend *be;
        double local[2 * C + 1], added[2 * C + 1];
        layer l;
        assert_int_equal(en_backend_open("cpu", &(en_backend_config){ .threads = 1, .isa = en_backend_isa(k, NULL) }, &be), EN_OK);
        layer_init(&l, local);
        en_conv_geom g = { .n = N, .h = H, .w = W, .c = C, .oh = H, .ow = W, .oc = C, .kernel = 3, .stride = 1, .pad = 1 }, p = g;
        p.kernel = 0;
        assert_int_equal(be->ops->reserve(be, &g), EN_OK);
        assert_int_equal(be->ops->reserve(be, &p), EN_OK);
        const en_operand u = { x, &l.bn, EN_ACT_SILU };

        for (int pass = 0; pass < 3; pass++) {
            memset(added, 0, sizeof added);
            double whole[2 * C + 1];
            for (int apart = 0; apart < 2; apart++)
                for (int i = 0; i < (apart ? N : 1); i++) {
                    const int64_t at = i * image;
                    const en_operand ui = { x + at, u.bn, u.act };
                    const en_grad dy = { .stored = dz + at, .y = x + at, .bn = &l.bn, .hw = H * W };
                    g.n = apart ? 1 : N;
                    en_status s = pass == 0 ? be->ops->pointwise_forward(be, g.n * H * W, C, CO, x + at, wt, y[apart] + at, &l.bn)
                                : pass == 1 ? be->ops->depthwise_forward(be, &g, &ui, dw, y[apart] + at, &l.bn)
                                            : be->ops->depthwise_backward(be, &g, &ui, dw, &dy, NULL, y[apart] + at, gw[apart], &l.bn);
                    assert_int_equal(s, EN_OK);
                    if (!apart) memcpy(whole, local, sizeof whole);
                    for (int c = 0; apart && c < 2 * C; c++) added[c] += local[c];
                }
            same(y[0], y[1], whole, added, all);
        }
        layer_free(&l);
        en_backend_close(be);
    }
    free(x), free(wt), free(dw), free(dz), free(y[0]), free(y[1]), free(gw[0]), free(gw[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(streamed_tensors_have_the_same_bits) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
