/* test_kernels_pointwise.c - 1x1 convolutions, forward and backward, with what backward forms on load. */
#include "fixture.h"

static void forward_case(bool exact, int64_t rows, int64_t ci, int64_t co, bool with_bn)
{
    if (!problem(exact, "pointwise forward rows%d ci%d co%d%s", (int)rows, (int)ci, (int)co, with_bn ? "" : " no bn")) return;
    const int64_t cip = phys(ci), cop = phys(co);
    const en_conv_geom g = oracle_rows(rows, cip, cop);
    float *x = random_rows(rows, cip, ci), *wt = random_rows(cip, cop, co);
    memset(wt + ci * cop, 0, (size_t)((cip - ci) * cop) * sizeof *wt);
    const host_bn *h = bn_make(cop, co);
    const bounded y = bilinear(oracle_conv, &g, exactly(x, rows * cip), exactly(wt, cip * cop), rows * cop, ci);

    for (variant *v = first(rows * ci * co); v; v = next(v)) {
        reserve(v, &(en_conv_geom){ .n = 1, .h = rows, .w = 1, .c = cip, .oh = rows, .ow = 1, .oc = cop });
        en_bn bn = bn_up(v, h);
        float *dy = OUT_F(v, rows * cop);
        RUN(v, v->be->ops->pointwise_forward(v->be, rows, cip, cop, UP_F(v, x, rows * cip), UP_F(v, wt, cip * cop), dy, with_bn ? &bn : NULL));
        const float *got = DOWN_F(v, dy, rows * cop);
        check(v, "y", got, y, cop, co);
        if (with_bn) check_forward_sums(v, &bn, h, got, rows);
    }
}

enum { NO_ADD, ADD, ADD_IN_PLACE };

static void backward_case(bool exact, int64_t n, int64_t hw, int64_t ci, int64_t co, int kind, int add)
{
    static const char *const kinds[] = { "", " drop", " pooled" }, *const adds[] = { "", " add", " add in place" };
    if (!problem(exact, "pointwise backward n%d hw%d ci%d co%d%s%s", (int)n, (int)hw, (int)ci, (int)co, kinds[kind], adds[add])) return;
    const int64_t rows = n * hw, cip = phys(ci), cop = phys(co);
    const en_conv_geom g = oracle_rows(rows, cip, cop);
    float *x = random_rows(rows, cip, ci), *wt = random_rows(cip, cop, co), *skip_grad = random_rows(rows, cip, ci), *start = random_rows(cip, cop, co);
    memset(wt + ci * cop, 0, (size_t)((cip - ci) * cop) * sizeof *wt);
    memset(start + ci * cop, 0, (size_t)((cip - ci) * cop) * sizeof *start);
    const host_grad d = grad_make(n, hw, cop, co, kind);
    const bounded dy = grad_dy(&d);
    bounded dx = bilinear(oracle_conv_dx, &g, dy, exactly(wt, cip * cop), rows * cip, co);
    if (add != NO_ADD) dx = accumulated(dx, skip_grad, co);
    const bounded dwt = accumulated(bilinear(oracle_conv_dwt, &g, exactly(x, rows * cip), dy, cip * cop, rows), start, rows);

    for (variant *v = first(2 * rows * ci * co); v; v = next(v)) {
        reserve(v, &(en_conv_geom){ .n = n, .h = hw, .w = 1, .c = cip, .oh = hw, .ow = 1, .oc = cop });
        en_bn bn;
        const en_grad grad = grad_up(v, &d, &bn);
        float *dwt_dev = BOTH_F(v, start, cip * cop), *dx_dev = add == ADD_IN_PLACE ? BOTH_F(v, skip_grad, rows * cip) : OUT_F(v, rows * cip);
        const float *add_dev = add == ADD_IN_PLACE ? dx_dev : add == ADD ? UP_F(v, skip_grad, rows * cip) : NULL;
        RUN(v, v->be->ops->pointwise_backward(v->be, rows, cip, cop, UP_F(v, x, rows * cip), UP_F(v, wt, cip * cop), &grad, add_dev, dx_dev, dwt_dev));
        check(v, "dx", DOWN_F(v, dx_dev, rows * cip), dx, cip, ci);
        check(v, "dwt", DOWN_F(v, dwt_dev, cip * cop), dwt, cop, co);
    }
}

/* The expansions of B0 and B7, and their heads. */
static void forward_is_within_the_rounding_bound_at_the_shapes_of_the_models(void **state)
{
    (void)state;
    for (int k = 0; k < n_mbconv_rows; k++) {
        const mbconv_row *r = &mbconv_rows[k];
        const int64_t rows = r->mid > 1000 ? 25 : 147;
        if (r->expand > 1) forward_case(k % 3 == 0, rows, r->ci, r->mid, true);
    }
    forward_case(false, 50, 320, 1280, true);
    forward_case(false, 25, 640, 2560, true);
    verdict();
}

static void backward_is_within_the_rounding_bound_at_the_shapes_of_the_models(void **state)
{
    (void)state;
    for (int k = 0; k < n_mbconv_rows; k++) {
        const mbconv_row *r = &mbconv_rows[k];
        if (r->expand > 1) backward_case(k % 3 == 0, 3, r->mid > 1000 ? 9 : 42, r->ci, r->mid, PLAIN, k % 3);
    }
    backward_case(false, 3, 16, 320, 1280, POOLED, NO_ADD);
    backward_case(false, 2, 9, 640, 2560, POOLED, NO_ADD);
    verdict();
}

/* Rows and channels that are no multiple of any block: every remainder of a register block is met by 1..34 rows. */
static void forward_handles_every_remainder(void **state)
{
    (void)state;
    static const int rows[] = { 113, 225, 449, 1000 }, channels[][2] = { { 1, 1 }, { 16, 16 }, { 17, 31 }, { 48, 80 }, { 33, 112 }, { 100, 144 }, { 5, 177 } };
    for (size_t c = 0; c < sizeof channels / sizeof *channels; c++) {
        for (int r = 1; r <= 34; r++) forward_case(true, r, channels[c][0], channels[c][1], true);
        for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
            forward_case(false, rows[r], channels[c][0], channels[c][1], true);
            forward_case(true, rows[r], channels[c][0], channels[c][1], false);
        }
    }
    for (int c = 16; c <= 16 * 13; c += 16) forward_case(true, 15, c, 16 * 14 - c, true);
    verdict();
}

static void backward_handles_every_remainder(void **state)
{
    (void)state;
    static const int channels[][2] = { { 1, 1 }, { 16, 16 }, { 17, 31 }, { 48, 80 }, { 33, 112 }, { 5, 177 } };
    for (size_t c = 0; c < sizeof channels / sizeof *channels; c++) {
        for (int hw = 1; hw <= 34; hw++) backward_case(true, 1, hw, channels[c][0], channels[c][1], PLAIN, hw % 3);
        backward_case(true, 3, 75, channels[c][0], channels[c][1], DROP, ADD);
        backward_case(false, 3, 151, channels[c][0], channels[c][1], DROP, ADD_IN_PLACE);
        backward_case(false, 7, 33, channels[c][0], channels[c][1], POOLED, NO_ADD);
        backward_case(false, 9, 1, channels[c][0], channels[c][1], POOLED, ADD);
        backward_case(false, 1, 113, channels[c][0], channels[c][1], DROP, ADD);         /* its only image is dropped */
    }
    for (int c = 16; c <= 16 * 13; c += 16) backward_case(true, 1, 15, c, 16 * 14 - c, PLAIN, NO_ADD);
    verdict();
}

/* y = 100 + noise: the sums are taken about a mean that is near (99.7) or far (0); then the error that the batch
 * statistics inherit is far below what sum(y^2) - mean^2 in float would leave (1e4 * 2^-24 = 6e-4 of sigma^2 = 1/3). */
static void sums_survive_a_mean_far_above_the_deviation(void **state)
{
    (void)state;
    for (int far = 0; far < 2; far++) {
        const int64_t rows = 1000, ci = 16, co = 32;
        if (!problem(false, "pointwise sums about %s mean", far ? "a far" : "a near")) continue;
        float *x = random_rows(rows, ci, ci), *wt = random_rows(ci, co, co);
        for (int64_t r = 0; r < rows; r++) x[r * ci] = 100;
        for (int64_t o = 0; o < co; o++)
            for (int64_t i = 0; i < ci; i++) wt[i * co + o] = i == 0 ? 1 : i == 1 + o % 15 ? 1 : 0;
        host_bn *h = bn_make(co, co);
        for (int64_t o = 0; o < co; o++) h->running_mean[o] = far ? 0.f : 99.7f;
        const en_conv_geom g = oracle_rows(rows, ci, co);
        const bounded want = bilinear(oracle_conv, &g, exactly(x, rows * ci), exactly(wt, ci * co), rows * co, ci);
        for (variant *v = first(rows * ci * co); v; v = next(v)) {
            reserve(v, &(en_conv_geom){ .n = 1, .h = rows, .w = 1, .c = ci, .oh = rows, .ow = 1, .oc = co });
            en_bn bn = bn_up(v, h);
            float *y_dev = OUT_F(v, rows * co);
            RUN(v, v->be->ops->pointwise_forward(v->be, rows, ci, co, UP_F(v, x, rows * ci), UP_F(v, wt, ci * co), y_dev, &bn));
            const float *y = DOWN_F(v, y_dev, rows * co);
            check(v, "y", y, want, co, co);
            check_forward_sums(v, &bn, h, y, rows);
            const double *local = DOWN_D(v, bn.local, 2 * co + 1);
            for (int64_t o = 0; o < co; o++) {                  /* the variance that bn_finalize would see, both ways exact */
                double mean = 0, var = 0;
                for (int64_t r = 0; r < rows; r++) mean += y[r * co + o] / (double)rows;
                for (int64_t r = 0; r < rows; r++) var += (y[r * co + o] - mean) * (y[r * co + o] - mean) / (double)rows;
                const double m = local[o] / (double)rows, got = local[co + o] / (double)rows - m * m;
                if (!far && !(fabs(got - var) <= 1e-5 * var)) failed("variance of channel %d: got %.9g want %.9g", (int)o, got, var);
            }
        }
    }
    verdict();
}

static void an_empty_shard_writes_zero_sums_and_nothing_else(void **state)
{
    (void)state;
    if (problem(true, "pointwise n0")) {
        expect_zeros();
        const host_bn *h = bn_make(48, 40);
        const host_grad d = grad_make(0, 9, 48, 40, PLAIN);
        float *wt = random_rows(16, 48, 40);
        for (variant *v = first(0); v; v = next(v)) {
            en_bn bn = bn_up(v, h), grad_bn;
            const en_grad grad = grad_up(v, &d, &grad_bn);
            float *dwt = BOTH_F(v, wt, 16 * 48);
            RUN(v, v->be->ops->pointwise_forward(v->be, 0, 16, 48, OUT_F(v, 0), UP_F(v, wt, 16 * 48), OUT_F(v, 0), &bn));
            check_forward_sums(v, &bn, h, NULL, 0);
            RUN(v, v->be->ops->pointwise_backward(v->be, 0, 16, 48, OUT_F(v, 0), UP_F(v, wt, 16 * 48), &grad, NULL, OUT_F(v, 0), dwt));
            check_same(v, "dwt", DOWN_F(v, dwt, 16 * 48), wt, 16 * 48 * (int64_t)sizeof *wt);
        }
    }
    verdict();
}

static void channels_off_the_alignment_are_refused_with_nothing_written(void **state)
{
    (void)state;
    if (problem(true, "pointwise off alignment")) {
        const int64_t rows = 5;
        float *x = random_rows(rows, 64, 64), *wt = random_rows(64, 64, 64);
        const host_grad d = grad_make(1, rows, 64, 64, PLAIN);
        const host_bn *h = bn_make(64, 64);
        for (variant *v = first(0); v; v = next(v)) {
            const int64_t odd = 32 + v->be->channel_align / 2;
            if (odd == 32) continue;                            /* this backend takes any number of channels */
            float *y = OUT_F(v, rows * 64), *dx = OUT_F(v, rows * 64), *dwt = OUT_F(v, 64 * 64);
            en_bn grad_bn, bn = bn_up(v, h);
            const en_grad grad = grad_up(v, &d, &grad_bn);
            for (int side = 0; side < 2; side++) {
                const int64_t ci = side ? odd : 32, co = side ? 32 : odd;
                if (v->be->ops->pointwise_forward(v->be, rows, ci, co, UP_F(v, x, rows * 64), UP_F(v, wt, 64 * 64), y, &bn) != EN_EINVAL ||
                    v->be->ops->pointwise_backward(v->be, rows, ci, co, UP_F(v, x, rows * 64), UP_F(v, wt, 64 * 64), &grad, NULL, dx, dwt) != EN_EINVAL)
                    failed("ci %d co %d was taken", (int)ci, (int)co);
            }
            const uint32_t *words[] = { down(v, y, rows * 64 * 4), down(v, dx, rows * 64 * 4), down(v, dwt, rows * 64 * 4), down(v, bn.local, 128 * 8) };
            for (int k = 0; k < 4; k++)
                for (int i = 0; i < 64 * 4; i++)
                    if (words[k][i] != 0xffffffffu) { failed("output %d was written", k); break; }
            en_error_clear();
        }
    }
    verdict();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_is_within_the_rounding_bound_at_the_shapes_of_the_models),
        cmocka_unit_test(backward_is_within_the_rounding_bound_at_the_shapes_of_the_models),
        cmocka_unit_test(forward_handles_every_remainder),
        cmocka_unit_test(backward_handles_every_remainder),
        cmocka_unit_test(sums_survive_a_mean_far_above_the_deviation),
        cmocka_unit_test(an_empty_shard_writes_zero_sums_and_nothing_else),
        cmocka_unit_test(channels_off_the_alignment_are_refused_with_nothing_written),
    };
    return cmocka_run_group_tests(tests, open_variants, close_variants);
}
