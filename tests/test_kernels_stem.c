/* test_kernels_stem.c - the dense convolution of the image, forward and backward. */
#include "fixture.h"

/* An image as a pass gets it, and what its pixels are: floats, or (v - mean)/std of bytes.  A backend may compute that as
 * v*(1/std) - mean/std: a few roundings of either term. */
typedef struct { en_pixels pixels; const void *host; int64_t bytes; bounded value; } host_image;

static host_image image_make(int64_t n, bool u8)
{
    host_image m = { .value = fresh(n), .bytes = u8 ? n : n * (int64_t)sizeof(float) };
    if (!u8) {
        m.host = random_floats(n, 1, 1);
        m.value = exactly(m.host, n);
        return m;
    }
    m.pixels = is_exact() ? (en_pixels){ .u8 = true, .mean = { 128, 127, 129 }, .std = { 1, 1, 1 } }
                          : (en_pixels){ .u8 = true, .mean = { 123.675f, 116.28f, 103.53f }, .std = { 58.395f, 57.12f, 57.375f } };
    uint8_t *bytes = mem((size_t)n + 1);
    for (int64_t i = 0; i < n; i++) {
        const double mean = m.pixels.mean[i % 3], std = m.pixels.std[i % 3];
        bytes[i] = (uint8_t)(is_exact() ? mean + uniform() : below(256));
        m.value.v[i] = (bytes[i] - mean) / std;
        m.value.e[i] = is_exact() ? 0 : 3 * UNIT * (bytes[i] + mean) / std;
    }
    m.host = bytes;
    return m;
}

static en_pixels image_up(variant *v, const host_image *m)
{
    en_pixels pixels = m->pixels;
    pixels.data = up(v, m->host, m->bytes);
    return pixels;
}

static void stem_case_of(bool exact, en_conv_geom g, int64_t oc, int kind, bool u8)
{
    if (!problem(exact, "stem n%dh%dw%d oc%d k%ds%dp%d%s%s", (int)g.n, (int)g.h, (int)g.w, (int)oc, g.kernel, g.stride, g.pad, kind == DROP ? " drop" : "", u8 ? " u8" : "") ||
        !affordable(2 * g.kernel * g.kernel * 3 * g.n * g.oh * g.ow * g.oc)) return;
    const int64_t taps = (int64_t)g.kernel * g.kernel, nx = g.n * g.h * g.w * 3, nw = taps * 3 * g.oc, out_rows = g.n * g.oh * g.ow, ny = out_rows * g.oc;
    const host_image image = image_make(nx, u8);
    float *wt = random_floats(taps * 3, g.oc, oc), *start = random_rows(taps * 3, g.oc, oc);
    const host_bn *h = bn_make(g.oc, oc);
    const host_grad d = grad_make(g.n, g.oh * g.ow, g.oc, oc, kind);
    const bounded y = stored(bilinear(oracle_conv, &g, image.value, exactly(wt, nw), ny, taps * 3));
    const bounded dwt = accumulated(bilinear(oracle_conv_dwt, &g, image.value, stored(grad_dy(&d)), nw, out_rows), start, out_rows);
    for (variant *v = first(2 * taps * 3 * ny); v; v = next(v)) {
        reserve(v, &g);
        const en_pixels pixels = image_up(v, &image);
        for (int with_bn = 0; with_bn < 2; with_bn++) {
            en_bn bn = bn_up(v, h);
            void *y_dev = out_a(v, ny);
            RUN(v, v->be->ops->stem_forward(v->be, &g, &pixels, UP_F(v, wt, nw), y_dev, with_bn ? &bn : NULL));
            const float *got = down_a(v, y_dev, ny);
            check(v, "y", got, y, g.oc, oc);
            if (with_bn) check_forward_sums(v, &bn, h, got, out_rows);
        }
        en_bn grad_bn;
        const en_grad grad = grad_up(v, &d, &grad_bn);
        float *dwt_dev = BOTH_F(v, start, nw);
        RUN(v, v->be->ops->stem_backward(v->be, &g, &pixels, &grad, dwt_dev));
        check(v, "dwt", DOWN_F(v, dwt_dev, nw), dwt, g.oc, oc);
    }
}

static void stem_case(bool exact, en_conv_geom g, int64_t oc, int kind)
{
    stem_case_of(exact, g, oc, kind, false);
    stem_case_of(exact, g, oc, kind, true);
}

/* 32 to 72 channels: B0, B3, B4, B6, B7, B8; 10 is what a narrow model has. */
static void the_stems_of_the_models_are_within_the_rounding_bound(void **state)
{
    (void)state;
    static const int channels[] = { 32, 40, 48, 56, 64, 72, 136, 10 };
    for (size_t k = 0; k < sizeof channels / sizeof *channels; k++) {
        stem_case(k % 2, oracle_same(2, 20 + (int64_t)k, 20 + (int64_t)k, 3, phys(channels[k]), 3, 2), channels[k], k % 2 ? DROP : PLAIN);
        stem_case(!(k % 2), oracle_same(1, 13, 24, 3, phys(channels[k]), 3, 2), channels[k], PLAIN);
    }
    stem_case(false, oracle_same(3, 75, 75, 3, 32, 3, 2), 32, PLAIN);
    /* as PyTorch pads: ResNet's 7 x 7 to 64 channels, MobileNet's 3 x 3 to 32 */
    for (int exact = 0; exact < 2; exact++) {
        stem_case(exact, (en_conv_geom){ .n = 1, .h = 9, .w = 10, .c = 3, .oh = 5, .ow = 5, .oc = phys(64), .kernel = 7, .stride = 2, .pad = 3 }, 64, exact ? DROP : PLAIN);
        stem_case(exact, (en_conv_geom){ .n = 2, .h = 10, .w = 9, .c = 3, .oh = 5, .ow = 5, .oc = phys(32), .kernel = 3, .stride = 2, .pad = 1 }, 32, PLAIN);
    }
    stem_case(false, (en_conv_geom){ .n = 3, .h = 56, .w = 55, .c = 3, .oh = 28, .ow = 28, .oc = phys(64), .kernel = 7, .stride = 2, .pad = 3 }, 64, PLAIN);
    verdict();
}

static void odd_images_and_kernels_are_handled(void **state)
{
    (void)state;
    static const int sides[][2] = { { 1, 1 }, { 1, 5 }, { 2, 2 }, { 3, 2 }, { 9, 4 }, { 4, 9 }, { 12, 35 } };
    for (int kernel = 1; kernel <= 7; kernel += 2)
        for (int stride = 1; stride <= 2; stride++)
            for (size_t k = 0; k < sizeof sides / sizeof *sides; k++)
                for (int exact = 0; exact < 2; exact++) stem_case(exact, oracle_same(k % 2 ? 3 : 1, sides[k][0], sides[k][1], 3, 32, kernel, stride), 24, PLAIN);
    en_conv_geom none = { .n = 2, .h = 9, .w = 8, .c = 3, .oh = 4, .ow = 3, .oc = 16, .kernel = 3, .stride = 2, .pad = 0 };
    stem_case(true, none, 16, PLAIN);
    none.pad = 2, none.oh = 6, none.ow = 5;
    stem_case(true, none, 16, PLAIN);
    verdict();
}

static void an_empty_shard_writes_zero_sums_and_nothing_else(void **state)
{
    (void)state;
    if (problem(true, "stem n0")) {
        expect_zeros();
        const en_conv_geom g = oracle_same(0, 9, 9, 3, 32, 3, 2);
        const host_bn *h = bn_make(32, 32);
        const host_grad d = grad_make(0, 25, 32, 32, PLAIN);
        float *wt = random_rows(27, 32, 32);
        for (variant *v = first(0); v; v = next(v)) {
            en_bn grad_bn, bn = bn_up(v, h);
            const en_grad grad = grad_up(v, &d, &grad_bn);
            float *dwt = BOTH_F(v, wt, 27 * 32);
            RUN(v, v->be->ops->stem_forward(v->be, &g, &(en_pixels){ .data = OUT_F(v, 0) }, UP_F(v, wt, 27 * 32), out_a(v, 0), &bn));
            check_forward_sums(v, &bn, h, NULL, 0);
            RUN(v, v->be->ops->stem_backward(v->be, &g, &(en_pixels){ .data = OUT_F(v, 0) }, &grad, dwt));
            check_same(v, "dwt", DOWN_F(v, dwt, 27 * 32), wt, 27 * 32 * (int64_t)sizeof *wt);
        }
    }
    verdict();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_stems_of_the_models_are_within_the_rounding_bound),
        cmocka_unit_test(odd_images_and_kernels_are_handled),
        cmocka_unit_test(an_empty_shard_writes_zero_sums_and_nothing_else),
    };
    return cmocka_run_group_tests(tests, open_variants, close_variants);
}
