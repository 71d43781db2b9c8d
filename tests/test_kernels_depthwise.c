/* test_kernels_depthwise.c - depthwise convolutions of act(bn(x)), forward and backward. */
#include "fixture.h"

typedef struct { int64_t n, h, w, c; int kernel, stride; bool bn; en_act act; bool add; } shape;

static bool named(const char *pass, const shape *s, bool exact, const en_conv_geom *g)
{
    return problem(exact, "depthwise %s n%dh%dw%dc%dk%ds%dp%doh%dow%d%s%s%s", pass, (int)s->n, (int)s->h, (int)s->w, (int)s->c, s->kernel, s->stride,
                   g->pad, (int)g->oh, (int)g->ow,
                   s->bn ? "" : " no bn", (const char *[]){ " no act", "", " relu", " relu6" }[s->act], s->add ? " add" : "");
}

static void forward_case(shape s, bool exact, const en_conv_geom *geom)
{
    if (exact && s.act == EN_ACT_SILU) s.act = EN_ACT_NONE;
    const int64_t cp = phys(s.c);
    const en_conv_geom g = geom ? *geom : oracle_same(s.n, s.h, s.w, cp, cp, s.kernel, s.stride);
    if (!named("forward", &s, exact, &g) || !affordable(s.kernel * s.kernel * s.n * g.oh * g.ow * cp)) return;
    const int64_t taps = (int64_t)s.kernel * s.kernel, nx = s.n * s.h * s.w * cp, ny = s.n * g.oh * g.ow * cp;
    const host_operand x = operand_make(s.n * s.h * s.w, cp, s.c, s.bn, s.act);
    float *wt = random_rows(taps, cp, s.c);
    const host_bn *h = bn_make(cp, s.c);
    if (geom) expect_zeros();                                   /* windows that meet little or nothing of the image */
    const bounded y = stored(bilinear(oracle_depthwise, &g, operand_value(&x), exactly(wt, taps * cp), ny, taps));
    for (variant *v = first(taps * ny + nx); v; v = next(v)) {
        reserve(v, &g);
        en_bn x_bn, bn = bn_up(v, h);
        const en_operand operand = operand_up(v, &x, &x_bn);
        void *y_dev = out_a(v, ny);
        RUN(v, v->be->ops->depthwise_forward(v->be, &g, &operand, UP_F(v, wt, taps * cp), y_dev, &bn));
        const float *got = down_a(v, y_dev, ny);
        check(v, "y", got, y, cp, s.c);
        check_forward_sums(v, &bn, h, got, s.n * g.oh * g.ow);
        void *again = out_a(v, ny);                             /* evaluation wants no sums */
        RUN(v, v->be->ops->depthwise_forward(v->be, &g, &operand, UP_F(v, wt, taps * cp), again, NULL));
        check(v, "y without sums", down_a(v, again, ny), y, cp, s.c);
    }
}

static void backward_of_kind(shape s, bool exact, const en_conv_geom *geom, int kind)
{
    if (exact && s.act == EN_ACT_SILU) s.act = EN_ACT_NONE;
    const int64_t cp = phys(s.c);
    const en_conv_geom g = geom ? *geom : oracle_same(s.n, s.h, s.w, cp, cp, s.kernel, s.stride);
    if (!named(kind == GATED ? "gated backward" : kind == UNGATED ? "ungated backward" : "backward", &s, exact, &g) || !affordable(2 * s.kernel * s.kernel * s.n * g.oh * g.ow * cp)) return;
    const int64_t taps = (int64_t)s.kernel * s.kernel, nx = s.n * s.h * s.w * cp;
    const host_operand x = operand_make(s.n * s.h * s.w, cp, s.c, s.bn, s.act);
    float *wt = random_rows(taps, cp, s.c), *start = random_rows(taps, cp, s.c), *skip_grad = random_rows(s.n * s.h * s.w, cp, s.c);
    const host_grad d = grad_make(s.n, g.oh * g.ow, cp, s.c, kind);
    if (geom) expect_zeros();
    const bounded dy = stored(grad_dy(&d));
    const bounded dwt = accumulated(bilinear(oracle_depthwise_dwt, &g, operand_value(&x), dy, taps * cp, s.n * g.oh * g.ow), start, s.n * g.oh * g.ow);
    bounded dx = bilinear(oracle_depthwise_dx, &g, dy, exactly(wt, taps * cp), nx, taps);
    if (s.add) dx = accumulated(dx, skip_grad, taps);
    if (s.act != EN_ACT_NONE) dx = times(dx, operand_slope(&x));
    dx = stored(dx);
    for (variant *v = first(2 * taps * s.n * g.oh * g.ow * cp + nx); v; v = next(v)) {
        if (kind >= GATED && !v->be->gated) continue;
        reserve(v, &g);
        workspace(v, EN_WORK_DEPTHWISE_BACKWARD, &g);
        en_bn x_bn = { 0 }, grad_bn;
        const en_operand operand = operand_up(v, &x, &x_bn);
        const en_grad grad = grad_up(v, &d, &grad_bn);
        void *dx_dev = out_a(v, nx);
        float *dwt_dev = BOTH_F(v, start, taps * cp);
        RUN(v, v->be->ops->depthwise_backward(v->be, &g, &operand, UP_F(v, wt, taps * cp), &grad, s.add ? up_a(v, skip_grad, nx) : NULL,
                                              dx_dev, dwt_dev, s.bn ? &x_bn : NULL));
        const float *got = down_a(v, dx_dev, nx);
        check(v, "dx", got, dx, cp, s.c);
        check(v, "dwt", DOWN_F(v, dwt_dev, taps * cp), dwt, cp, s.c);
        if (s.bn) check_backward_sums(v, &x_bn, x.bn, exactly(got, nx), x.y, s.n * s.h * s.w);
    }
}

/* The gradient as it comes to most passes; and as se_project_backward leaves it on a backend that is gated. */
static void backward_case(shape s, bool exact, const en_conv_geom *geom)
{
    backward_of_kind(s, exact, geom, PLAIN);
    for (int kind = GATED; kind <= UNGATED && some_gated(); kind++) backward_of_kind(s, exact, geom, kind);
}

/* Every depthwise row of B0 and B7, with sides of 5..12; stage 0 reads the stem or, in its later blocks, a plain tensor
 * whose gradient also comes from the skip. */
static void each_case(void (*run)(shape, bool, const en_conv_geom *))
{
    for (int k = 0; k < n_mbconv_rows; k++) {
        const mbconv_row *r = &mbconv_rows[k];
        const int64_t pixel = 2 * r->kernel * r->kernel * r->mid, h = fitting(r->mid > 1000 ? 5 + k % 3 : 5 + k % 8, 8 * pixel);
        run((shape){ .n = fitting(r->mid > 1000 ? 1 : 2, h * h * pixel), .h = h, .w = h, .c = r->mid, .kernel = r->kernel, .stride = r->stride, .bn = true, .act = EN_ACT_SILU },
            k % 2, NULL);
        if (r->expand == 1)
            run((shape){ .n = 2, .h = 9, .w = 9, .c = r->mid, .kernel = r->kernel, .stride = r->stride, .add = true }, k % 2, NULL);
    }
}

static void forward_is_within_the_rounding_bound_at_the_shapes_of_the_models(void **state)  { (void)state; each_case(forward_case); verdict(); }
static void backward_is_within_the_rounding_bound_at_the_shapes_of_the_models(void **state) { (void)state; each_case(backward_case); verdict(); }

/* Sides of 1, 2, 3: kernels larger than the image; odd and even sides with stride 2, where SAME is lopsided; h != w. */
static void each_odd_case(void (*run)(shape, bool, const en_conv_geom *))
{
    static const int sides[][2] = { { 1, 1 }, { 1, 2 }, { 2, 1 }, { 2, 2 }, { 3, 3 }, { 3, 1 }, { 1, 9 }, { 4, 7 }, { 7, 4 }, { 8, 8 }, { 13, 5 }, { 6, 21 }, { 17, 18 } };
    for (int kernel = 3; kernel <= 7; kernel += 2)
        for (int stride = 1; stride <= 2; stride++)
            for (size_t k = 0; k < sizeof sides / sizeof *sides; k++) {
                const shape s = { .n = k % 4 ? 1 : 3, .h = sides[k][0], .w = sides[k][1], .c = (int[]){ 16, 8, 40, 24 }[k % 4], .kernel = kernel,
                                  .stride = stride, .bn = k % 3 != 1, .act = k % 3 == 1 || k % 5 == 4 ? EN_ACT_NONE : k % 4 == 2 ? EN_ACT_RELU : k % 4 == 3 ? EN_ACT_RELU6 : EN_ACT_SILU, .add = k % 3 == 1 };
                run(s, false, NULL);
                run(s, true, NULL);
            }
}

static void forward_handles_odd_shapes(void **state)  { (void)state; each_odd_case(forward_case); verdict(); }
static void backward_handles_odd_shapes(void **state) { (void)state; each_odd_case(backward_case); verdict(); }

/* Rows of more columns, and more rows, than one block takes; more of them than there are blocks; channels that are no multiple
 * of what a block takes. */
static void each_large_case(void (*run)(shape, bool, const en_conv_geom *))
{
    static const struct { int64_t n, h, w, c; } sizes[] = { { 1, 3, 131, 16 }, { 2, 2, 250, 8 }, { 7, 90, 5, 8 }, { 1, 40, 3, 16 }, { 9, 7, 7, 104 }, { 33, 2, 3, 8 } };
    for (int kernel = 3; kernel <= 7; kernel += 2)
        for (int stride = 1; stride <= 2; stride++)
            for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
                const shape s = { .n = sizes[k].n, .h = sizes[k].h, .w = sizes[k].w, .c = sizes[k].c, .kernel = kernel, .stride = stride, .bn = true,
                                  .act = EN_ACT_SILU, .add = k % 2 };
                run(s, k % 2, NULL);
                run(s, !(k % 2), NULL);
            }
}

static void forward_cuts_large_images(void **state)  { (void)state; each_large_case(forward_case); verdict(); }
static void backward_cuts_large_images(void **state) { (void)state; each_large_case(backward_case); verdict(); }

/* pad, oh and ow are the caller's: symmetric padding, none, and more zeros below than above. */
static void each_padding(void (*run)(shape, bool, const en_conv_geom *))
{
    for (int kernel = 3; kernel <= 7; kernel += 2)
        for (int stride = 1; stride <= 2; stride++)
            for (int pad = 0; pad < kernel; pad++)
                for (int below_too = 0; below_too < 2; below_too++) {
                    const int64_t h = 8, w = 9, c = 32, extra = below_too ? kernel - 1 : 0;
                    const en_conv_geom g = { .n = 2, .h = h, .w = w, .c = c, .oc = c, .kernel = kernel, .stride = stride, .pad = pad,
                                             .oh = (h + pad + extra - kernel) / stride + 1, .ow = (w + pad + extra - kernel) / stride + 1 };
                    const shape s = { .n = 2, .h = h, .w = w, .c = c, .kernel = kernel, .stride = stride, .bn = true, .act = EN_ACT_SILU };
                    run(s, true, &g);
                    run(s, false, &g);
                }
}

static void forward_takes_any_padding(void **state)  { (void)state; each_padding(forward_case); verdict(); }
static void backward_takes_any_padding(void **state) { (void)state; each_padding(backward_case); verdict(); }

/* x = 100 + noise, its mean 100 or 0: sum dx*(y-mean) must not be sum dx*y - mean*sum dx. */
static void sums_survive_a_mean_far_above_the_deviation(void **state)
{
    (void)state;
    if (problem(false, "depthwise sums about a far mean")) {
        const int64_t n = 2, side = 12, c = 32, nx = n * side * side * c;
        const en_conv_geom g = oracle_same(n, side, side, c, c, 3, 1);
        host_operand x = operand_make(n * side * side, c, c, true, EN_ACT_SILU);
        for (int64_t i = 0; i < nx; i++) x.y[i] += 100;
        storable(x.y, nx);
        for (int64_t i = 0; i < c; i++) x.bn->mean[i] += 100, x.bn->running_mean[i] += 100, x.bn->scale[i] = 1, x.bn->shift[i] -= 100;
        float *wt = random_rows(9, c, c), *start = random_rows(9, c, c);
        host_bn *h = bn_make(c, c);
        const host_grad d = grad_make(n, side * side, c, c, PLAIN);
        for (variant *v = first(2 * 9 * nx); v; v = next(v)) {
            reserve(v, &g);
            workspace(v, EN_WORK_DEPTHWISE_BACKWARD, &g);
            en_bn x_bn, grad_bn, bn = bn_up(v, h);
            const en_operand operand = operand_up(v, &x, &x_bn);
            const en_grad grad = grad_up(v, &d, &grad_bn);
            void *dx_dev = out_a(v, nx), *y_dev = out_a(v, nx);
            RUN(v, v->be->ops->depthwise_forward(v->be, &g, &operand, UP_F(v, wt, 9 * c), y_dev, &bn));
            check_forward_sums(v, &bn, h, down_a(v, y_dev, nx), n * side * side);
            RUN(v, v->be->ops->depthwise_backward(v->be, &g, &operand, UP_F(v, wt, 9 * c), &grad, NULL, dx_dev, BOTH_F(v, start, 9 * c), &x_bn));
            check_backward_sums(v, &x_bn, x.bn, exactly(down_a(v, dx_dev, nx), nx), x.y, n * side * side);
        }
    }
    verdict();
}

static void an_empty_shard_writes_zero_sums_and_nothing_else(void **state)
{
    (void)state;
    if (problem(true, "depthwise n0")) {
        expect_zeros();
        const int64_t c = 48;
        const en_conv_geom g = oracle_same(0, 7, 7, c, c, 5, 2);
        const host_operand x = operand_make(0, c, 40, true, EN_ACT_SILU);
        const host_bn *h = bn_make(c, 40);
        const host_grad d = grad_make(0, 16, c, 40, PLAIN);
        float *wt = random_rows(25, c, 40);
        for (variant *v = first(0); v; v = next(v)) {
            en_bn x_bn, grad_bn, bn = bn_up(v, h);
            const en_operand operand = operand_up(v, &x, &x_bn);
            const en_grad grad = grad_up(v, &d, &grad_bn);
            float *dwt = BOTH_F(v, wt, 25 * c);
            RUN(v, v->be->ops->depthwise_forward(v->be, &g, &operand, UP_F(v, wt, 25 * c), out_a(v, 0), &bn));
            check_forward_sums(v, &bn, h, NULL, 0);
            RUN(v, v->be->ops->depthwise_backward(v->be, &g, &operand, UP_F(v, wt, 25 * c), &grad, NULL, out_a(v, 0), dwt, &x_bn));
            check_backward_sums(v, &x_bn, x.bn, exactly(NULL, 0), NULL, 0);
            check_same(v, "dwt", DOWN_F(v, dwt, 25 * c), wt, 25 * c * (int64_t)sizeof *wt);
        }
    }
    verdict();
}

/* The table allows an activation without batch norm and a dropped or pooled gradient here, which no network has: a
 * backend computes them or says EN_EINVAL with nothing written. */
static void combinations_that_no_network_has_are_refused_or_right(void **state)
{
    (void)state;
    const int64_t n = 2, c = 16, nx = n * 25 * c;
    for (int kind = PLAIN; kind <= POOLED; kind++) {
        if (!problem(false, "depthwise %s", (const char *[]){ "act without bn", "drop", "pooled" }[kind])) continue;
        const en_conv_geom g = oracle_same(n, 5, 5, c, c, 3, 1);
        const host_operand x = operand_make(n * 25, c, c, kind != PLAIN, EN_ACT_SILU);
        const host_grad d = grad_make(n, 25, c, c, kind);
        const host_bn *h = bn_make(c, c);
        float *wt = random_rows(9, c, c);
        const bounded y = stored(bilinear(oracle_depthwise, &g, operand_value(&x), exactly(wt, 9 * c), nx, 9)), dy = stored(grad_dy(&d));
        const bounded dx = stored(times(bilinear(oracle_depthwise_dx, &g, dy, exactly(wt, 9 * c), nx, 9), operand_slope(&x)));
        const bounded dwt = accumulated(bilinear(oracle_depthwise_dwt, &g, operand_value(&x), dy, 9 * c, n * 25), wt, n * 25);
        for (variant *v = first(nx); v; v = next(v)) {
            reserve(v, &g);
            workspace(v, EN_WORK_DEPTHWISE_BACKWARD, &g);
            en_bn x_bn = { 0 }, grad_bn, bn = bn_up(v, h);
            const en_operand operand = operand_up(v, &x, &x_bn);
            const en_grad grad = grad_up(v, &d, &grad_bn);
            void *y_dev = out_a(v, nx), *dx_dev = out_a(v, nx);
            float *dwt_dev = BOTH_F(v, wt, 9 * c);
            const float *wt_dev = UP_F(v, wt, 9 * c);
            const en_status f = v->be->ops->depthwise_forward(v->be, &g, &operand, wt_dev, y_dev, &bn);
            const en_status b = v->be->ops->depthwise_backward(v->be, &g, &operand, wt_dev, &grad, NULL, dx_dev, dwt_dev, x.bn ? &x_bn : NULL);
            const float *y_got = down_a(v, y_dev, nx), *dx_got = down_a(v, dx_dev, nx), *dwt_got = DOWN_F(v, dwt_dev, 9 * c);
            if (f == EN_OK) check(v, "y", y_got, y, c, c);
            if (b == EN_OK) check(v, "dx", dx_got, dx, c, c), check(v, "dwt", dwt_got, dwt, c, c);
            if ((f != EN_OK && f != EN_EINVAL) || (b != EN_OK && b != EN_EINVAL)) failed("neither done nor refused: %s", en_error_text());
            for (int64_t i = 0; i < nx; i++)
                if ((f != EN_OK && !isnan(y_got[i])) || (b != EN_OK && !isnan(dx_got[i]))) { failed("refused, yet written"); break; }
            if (b != EN_OK) check_same(v, "dwt", dwt_got, wt, 9 * c * (int64_t)sizeof *wt);
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
        cmocka_unit_test(forward_handles_odd_shapes),
        cmocka_unit_test(backward_handles_odd_shapes),
        cmocka_unit_test(forward_cuts_large_images),
        cmocka_unit_test(backward_cuts_large_images),
        cmocka_unit_test(forward_takes_any_padding),
        cmocka_unit_test(backward_takes_any_padding),
        cmocka_unit_test(sums_survive_a_mean_far_above_the_deviation),
        cmocka_unit_test(an_empty_shard_writes_zero_sums_and_nothing_else),
        cmocka_unit_test(combinations_that_no_network_has_are_refused_or_right),
    };
    return cmocka_run_group_tests(tests, open_variants, close_variants);
}
