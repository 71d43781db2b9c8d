/* test_kernels_pool.c - the largest of a window, there and back; the mean over an image of a plain tensor, there and back. */
#include "fixture.h"

static const char *const acts[] = { [EN_ACT_NONE] = " no act", [EN_ACT_SILU] = " silu", [EN_ACT_RELU] = " relu", [EN_ACT_RELU6] = " relu6" };

static bool named(const char *pass, bool exact, const en_conv_geom *g, int64_t c, bool bn, en_act act)
{
    return problem(exact, "max pool %s n%dh%dw%dc%dk%ds%dp%doh%dow%d%s%s", pass, (int)g->n, (int)g->h, (int)g->w, (int)c, g->kernel, g->stride, g->pad,
                   (int)g->oh, (int)g->ow, bn ? "" : " plain", acts[act]);
}

static bounded largest(const en_conv_geom *g, bounded u, uint8_t *at)
{
    const int64_t k = g->kernel, ny = g->n * g->oh * g->ow * g->c;
    bounded y = fresh(ny);
    oracle_max_pool(g, u.v, y.v, at);
    for (int64_t q = 0; q < ny; q++) {                          /* the largest is off by no more than any of them is */
        const int64_t d = q % g->c, pixel = q / g->c, image = pixel / (g->oh * g->ow), i0 = pixel / g->ow % g->oh * g->stride - g->pad;
        const int64_t j0 = pixel % g->ow * g->stride - g->pad;
        for (int64_t i = i0; i < i0 + k; i++)
            for (int64_t j = j0; j < j0 + k; j++) {
                const int64_t from = ((image * g->h + i) * g->w + j) * g->c + d;
                if (i >= 0 && i < g->h && j >= 0 && j < g->w) y.e[q] = fmax(y.e[q], u.e[from]), y.x[q] = fmax(y.x[q], u.x[from]);
            }
    }
    return y;
}

/* The value at the place that the pass names is as large as the largest, as far as the errors of both tell; -INFINITY: no such place. */
static double named_value(const en_conv_geom *g, bounded u, int64_t q, int tap)
{
    const int64_t pixel = q / g->c, i = pixel / g->ow % g->oh * g->stride - g->pad + tap / g->kernel, j = pixel % g->ow * g->stride - g->pad + tap % g->kernel;
    if (tap >= g->kernel * g->kernel || i < 0 || i >= g->h || j < 0 || j >= g->w) return -INFINITY;
    const int64_t from = ((pixel / (g->oh * g->ow) * g->h + i) * g->w + j) * g->c + q % g->c;
    return u.v[from] + u.e[from] + u.x[from];
}

static void forward_case(bool exact, en_conv_geom g, int64_t c, bool bn, en_act act)
{
    if (exact && act == EN_ACT_SILU) act = EN_ACT_RELU;
    const int64_t nx = g.n * g.h * g.w, ny = g.n * g.oh * g.ow * g.c, work = ny * g.kernel * g.kernel;
    if (!named("forward", exact, &g, c, bn, act) || !affordable(work)) return;
    const host_operand x = operand_make(nx, g.c, c, bn, act);
    uint8_t *at = mem((size_t)ny);
    const bounded u = operand_value(&x), top = largest(&g, u, at), y = stored(top);
    const bool known = exact || !bn;                            /* nothing is rounded before the comparison: ties are ties */
    for (variant *v = first(work); v; v = next(v)) {
        en_bn x_bn;
        const en_operand x_up = operand_up(v, &x, &x_bn);
        void *y_dev = out_a(v, ny), *at_dev = out(v, ny), *alone = out_a(v, ny);
        RUN(v, v->be->ops->max_pool_forward(v->be, &g, &x_up, y_dev, at_dev));
        const float *got = down_a(v, y_dev, ny);
        check(v, "y", got, y, g.c, c);
        const uint8_t *places = down(v, at_dev, ny);
        if (known) check_same(v, "places", places, at, ny);
        for (int64_t q = 0; !known && q < ny; q++)
            if (!(named_value(&g, u, q, places[q]) >= top.v[q] - top.e[q] - top.x[q])) {
                failed("[%s] element %d: place %d, where the largest is at %d", v->name, (int)q, places[q], at[q]);
                break;
            }
        RUN(v, v->be->ops->max_pool_forward(v->be, &g, &x_up, alone, NULL));               /* evaluation wants no places */
        check_same(v, "y without places", down_a(v, alone, ny), got, ny * (int64_t)sizeof *got);
    }
}

/* A place inside the image for each window: where the largest stands, or any, for backward must ask nothing else. */
static uint8_t *places_of(const en_conv_geom *g, const host_operand *x)
{
    const int64_t ny = g->n * g->oh * g->ow * g->c;
    uint8_t *at = mem((size_t)ny);
    oracle_max_pool(g, operand_value(x).v, mem_d(ny), at);
    const bounded u = fresh(g->n * g->h * g->w * g->c);
    for (int64_t q = 0; q < ny; q++) {
        const int tap = below(g->kernel * g->kernel);
        if (!isinf(named_value(g, u, q, tap))) at[q] = (uint8_t)tap;
    }
    return at;
}

static void backward_case(bool exact, en_conv_geom g, int64_t c, bool bn, en_act act)
{
    if (exact && act == EN_ACT_SILU) act = EN_ACT_RELU;
    const int64_t rows = g.n * g.h * g.w, nx = rows * g.c, ny = g.n * g.oh * g.ow * g.c, most = (g.kernel + g.stride - 1) / g.stride;
    if (!named("backward", exact, &g, c, bn, act) || !affordable(nx * (most * most + 2))) return;
    expect_zeros();                                             /* most positions are the largest of no window */
    const host_operand x = operand_make(rows, g.c, c, bn, act);
    const uint8_t *at = places_of(&g, &x);
    const float *dy = random_rows(g.n * g.oh * g.ow, g.c, c);
    bounded dx = fresh(nx), magnitude = fresh(ny);
    for (int64_t i = 0; i < ny; i++) magnitude.v[i] = fabsf(dy[i]);
    oracle_max_pool_backward(&g, at, exactly(dy, ny).v, dx.v);
    oracle_max_pool_backward(&g, at, magnitude.v, dx.e);
    for (int64_t i = 0; i < nx; i++) dx.e[i] *= rounding((double)(most * most - 1));
    if (act != EN_ACT_NONE) dx = times(dx, operand_slope(&x));
    dx = stored(dx);
    for (variant *v = first(nx * (most * most + 2)); v; v = next(v)) {
        reserve(v, &(en_conv_geom){ .n = g.n, .h = g.h, .w = g.w, .c = g.c, .oh = g.h, .ow = g.w, .oc = g.c });
        en_bn x_bn = { 0 };
        const en_operand x_up = operand_up(v, &x, &x_bn);
        void *dx_dev = out_a(v, nx);
        RUN(v, v->be->ops->max_pool_backward(v->be, &g, &x_up, up(v, at, ny), up_a(v, dy, ny), dx_dev, bn ? &x_bn : NULL));
        const float *got = down_a(v, dx_dev, nx);
        check(v, "dx", got, dx, g.c, c);
        if (bn) check_backward_sums(v, &x_bn, x.bn, exactly(got, nx), x.y, rows);          /* of dx as stored */
    }
}

static en_conv_geom pool_of(int64_t n, int64_t h, int64_t w, int64_t c, int kernel, int stride, int pad, int below_too)
{
    return (en_conv_geom){ .n = n, .h = h, .w = w, .c = phys(c), .oc = phys(c), .kernel = kernel, .stride = stride, .pad = pad,
                           .oh = (h + pad + below_too - kernel) / stride + 1, .ow = (w + pad + below_too - kernel) / stride + 1 };
}

/* ResNet's 3 x 3 with stride 2 and a row of padding on each side, as PyTorch places it and as TensorFlow does; then 2 to 7, strides up
 * to beyond the kernel, each padding above with none or all below, images that are smaller than the window, odd and even sides. */
static void each_case(void (*run)(bool, en_conv_geom, int64_t, bool, en_act))
{
    static const en_act turns[] = { EN_ACT_RELU, EN_ACT_NONE, EN_ACT_SILU, EN_ACT_RELU6 };
    for (int exact = 0; exact < 2; exact++) {
        run(exact, pool_of(2, 16, 16, 64, 3, 2, 1, 1), 64, true, EN_ACT_RELU);
        run(exact, pool_of(1, 56, 55, 64, 3, 2, 1, 1), 64, true, EN_ACT_RELU);
        run(exact, oracle_same(2, 16, 17, phys(64), phys(64), 3, 2), 64, true, EN_ACT_RELU);
        run(exact, pool_of(1, 9, 131, 24, 3, 2, 1, 1), 24, false, EN_ACT_NONE);             /* rows longer than a block of sums */
    }
    int turn = 0;
    for (int kernel = 2; kernel <= 7; kernel++)
        for (int stride = 1; stride <= kernel + 1; stride += stride == 3 ? kernel - 2 > 1 ? kernel - 2 : 1 : 1)
            for (int pad = 0; pad < kernel; pad += kernel > 3 ? 2 : 1)
                for (int below_too = 0; below_too < kernel; below_too += kernel - 1, turn++)
                    run(turn % 2, pool_of(1 + turn % 3, 8 + turn % 2, 9 - turn % 3, 16, kernel, stride, pad, below_too), (int[]){ 16, 10, 3 }[turn % 3], turn % 5 > 0,
                        turn % 5 ? turns[turn % 4] : EN_ACT_NONE);
    static const int sides[][2] = { { 1, 1 }, { 2, 1 }, { 1, 7 }, { 2, 2 }, { 3, 5 }, { 40, 3 } };
    for (size_t k = 0; k < sizeof sides / sizeof *sides; k++)
        for (int kernel = 2; kernel <= 7; kernel += kernel == 3 ? 4 : 1, turn++)
            run(turn % 2, oracle_same(3, sides[k][0], sides[k][1], phys(24), phys(24), kernel, 2), 24, turn % 3, turn % 3 ? turns[turn % 4] : EN_ACT_NONE);
}

static void forward_takes_the_first_of_the_largest(void **state)                 { (void)state; each_case(forward_case); verdict(); }
static void backward_goes_where_the_largest_stood_and_leaves_its_sums(void **state) { (void)state; each_case(backward_case); verdict(); }

/* There and back as one: over integers of -3 to 3 most windows hold a tie, of which the first alone gets the gradient. */
static void the_way_back_is_the_adjoint_of_the_way_there(void **state)
{
    (void)state;
    for (int kernel = 2; kernel <= 3; kernel++) {
        if (!problem(true, "max pool there and back k%d", kernel)) continue;
        expect_zeros();
        const int64_t c = 16;
        const en_conv_geom g = pool_of(2, 7, 9, c, kernel, 2, 1, kernel - 2);
        const int64_t rows = g.n * g.h * g.w, nx = rows * c, ny = g.n * g.oh * g.ow * c;
        const host_operand x = operand_make(rows, c, c, false, EN_ACT_NONE);
        const float *dy = random_rows(ny / c, c, c);
        uint8_t *at = mem((size_t)ny);
        bounded dx = fresh(nx);
        oracle_max_pool(&g, operand_value(&x).v, mem_d(ny), at);
        oracle_max_pool_backward(&g, at, exactly(dy, ny).v, dx.v);
        for (variant *v = first(0); v; v = next(v)) {
            en_bn unused;
            const en_operand x_up = operand_up(v, &x, &unused);
            uint8_t *at_dev = out(v, ny);
            void *dx_dev = out_a(v, nx);
            RUN(v, v->be->ops->max_pool_forward(v->be, &g, &x_up, out_a(v, ny), at_dev));
            RUN(v, v->be->ops->max_pool_backward(v->be, &g, &x_up, at_dev, up_a(v, dy, ny), dx_dev, NULL));
            check(v, "dx", down_a(v, dx_dev, nx), stored(dx), c, c);
        }
    }
    verdict();
}

/* A diverged run must show: a NaN is the largest of its window, the first of them; among infinities the comparison is as ever. */
static void what_is_not_finite_is_passed_on(void **state)
{
    (void)state;
    static const float in[][4] = { { 1, NAN, 2, 3 }, { NAN, 1, NAN, INFINITY }, { -INFINITY, -INFINITY, -INFINITY, -INFINITY }, { 1, INFINITY, INFINITY, NAN },
                                   { -INFINITY, -1, 0, -0.f }, { -0.f, 0, -INFINITY, -1 }, { INFINITY, 1, 2, 3 }, { 1, 2, 3, NAN } };
    static const uint8_t want[] = { 1, 0, 0, 3, 2, 0, 0, 3 };
    if (problem(false, "max pool extremes")) {
        const int64_t c = 16;
        const en_conv_geom g = pool_of(1, 2, 2, c, 2, 2, 0, 0);
        host_operand x = operand_make(4, c, c, false, EN_ACT_NONE);
        for (int64_t i = 0; i < 4 * c; i++) x.y[i] = in[i % c % 8][i / c];
        for (variant *v = first(0); v; v = next(v)) {
            en_bn unused;
            const en_operand x_up = operand_up(v, &x, &unused);
            void *y_dev = out_a(v, c), *at_dev = out(v, c);
            RUN(v, v->be->ops->max_pool_forward(v->be, &g, &x_up, y_dev, at_dev));
            const float *y = down_a(v, y_dev, c);
            const uint8_t *at = down(v, at_dev, c);
            for (int64_t i = 0; i < c; i++) {
                const float should = in[i % 8][want[i % 8]];
                if (at[i] != want[i % 8] || !(isnan(should) ? isnan(y[i]) : y[i] <= should && y[i] >= should))
                    failed("[%s] channel %d: %g at %d", v->name, (int)i, (double)y[i], at[i]);
            }
        }
    }
    verdict();
}

/* pooled = mean(x)*mask of a plain tensor; dx = dpooled*mask/hw */
static void mean_case(bool exact, int64_t n, int64_t hw, int64_t c, bool with_mask)
{
    if (!problem(exact, "mean n%dhw%dc%d%s", (int)n, (int)hw, (int)c, with_mask ? " mask" : "") || !affordable(4 * n * hw * phys(c))) return;
    const int64_t cp = phys(c), rows = n * hw;
    const host_operand x = operand_make(rows, cp, c, false, EN_ACT_NONE);
    const float *g = random_floats(n, cp, c);
    float *mask = with_mask ? mem_f(n * cp) : NULL;
    for (int64_t i = 0; with_mask && i < n * cp; i++) mask[i] = below(5) ? exact ? 2.f : 1.25f : 0.f;
    bounded pooled = pooled_rows(operand_value(&x), n, hw, cp), per_row = exactly(g, n * cp);
    if (mask) pooled = times(pooled, exactly(mask, n * cp)), per_row = times(per_row, exactly(mask, n * cp));
    for (int64_t i = 0; i < n * cp; i++) per_row.v[i] /= (double)hw, per_row.e[i] = per_row.e[i] / (double)hw + 2 * UNIT * fabs(per_row.v[i]);
    const bounded dx = stored(spread_rows(per_row, hw, cp));
    for (variant *v = first(4 * rows * cp); v; v = next(v)) {
        en_bn unused;
        const en_operand x_up = operand_up(v, &x, &unused);
        float *pooled_dev = OUT_F(v, n * cp);
        const float *mask_dev = UP_F(v, mask, n * cp);
        void *dx_dev = out_a(v, rows * cp);
        RUN(v, v->be->ops->pool_forward(v->be, n, hw, cp, &x_up, mask_dev, pooled_dev));
        check(v, "pooled", DOWN_F(v, pooled_dev, n * cp), pooled, cp, c);
        RUN(v, v->be->ops->mean_backward(v->be, n, hw, cp, UP_F(v, g, n * cp), mask_dev, dx_dev));
        check(v, "dx", down_a(v, dx_dev, rows * cp), dx, cp, c);
    }
}

static void the_mean_of_a_plain_tensor_is_within_the_rounding_bound_there_and_back(void **state)
{
    (void)state;
    static const int hw[] = { 1, 4, 9, 49, 113, 361 };
    for (int k = 0; k < 6; k++)
        for (int mask = 0; mask < 2; mask++) {
            mean_case(false, 1 + k % 4, hw[k], 2048, mask);
            mean_case(false, 5, hw[k], (int[]){ 8, 16, 24 }[k % 3], mask);
        }
    for (int k = 0; k < 4; k++) mean_case(true, 3, 1 << 2 * k, 100, k % 2);           /* shares of powers of two */
    verdict();
}

static void an_empty_shard_writes_zero_sums_and_nothing_else(void **state)
{
    (void)state;
    if (problem(true, "pools n0")) {
        expect_zeros();
        const en_conv_geom g = { .n = 0, .h = 9, .w = 9, .c = 32, .oc = 32, .oh = 5, .ow = 5, .kernel = 3, .stride = 2, .pad = 1 };
        const host_operand x = operand_make(0, 32, 24, true, EN_ACT_RELU);
        for (variant *v = first(0); v; v = next(v)) {
            reserve(v, &(en_conv_geom){ .n = 0, .h = 9, .w = 9, .c = 32, .oh = 9, .ow = 9, .oc = 32 });
            en_bn x_bn;
            const en_operand x_up = operand_up(v, &x, &x_bn);
            RUN(v, v->be->ops->max_pool_forward(v->be, &g, &x_up, out_a(v, 0), out(v, 0)));
            RUN(v, v->be->ops->max_pool_backward(v->be, &g, &x_up, out(v, 0), out_a(v, 0), out_a(v, 0), &x_bn));
            check_backward_sums(v, &x_bn, x.bn, exactly(NULL, 0), NULL, 0);
            RUN(v, v->be->ops->mean_backward(v->be, 0, 9, 32, OUT_F(v, 0), OUT_F(v, 0), out_a(v, 0)));
        }
    }
    verdict();
}

static void what_the_table_does_not_offer_is_refused_and_nothing_is_written(void **state)
{
    (void)state;
    static const struct { const char *what; int kernel, stride, pad; int64_t oh, c, oc; bool act, no_bn; } wrong[] = {
        { "kernel 1", 1, 1, 0, 5, 16, 16, false, false }, { "kernel 8", 8, 1, 4, 5, 16, 16, false, false }, { "stride 0", 3, 0, 1, 5, 16, 16, false, false },
        { "pad 3", 3, 1, 3, 5, 16, 16, false, false }, { "pad -1", 3, 1, -1, 3, 16, 16, false, false }, { "a window that misses", 3, 1, 1, 9, 16, 16, false, false },
        { "12 channels", 3, 1, 1, 5, 12, 12, false, false }, { "other channels", 3, 1, 1, 5, 16, 32, false, false }, { "act without bn", 3, 1, 1, 5, 16, 16, true, true } };
    for (size_t k = 0; k < sizeof wrong / sizeof *wrong; k++) {
        if (!problem(false, "max pool refuses %s", wrong[k].what)) continue;
        const int64_t c = wrong[k].c, oh = wrong[k].oh, nx = 25 * c, ny = oh * oh * wrong[k].oc;
        const en_conv_geom g = { .n = 1, .h = 5, .w = 5, .c = c, .oh = oh, .ow = oh, .oc = wrong[k].oc, .kernel = wrong[k].kernel, .stride = wrong[k].stride,
                                 .pad = wrong[k].pad };
        const host_operand x = operand_make(25, c, c, true, wrong[k].act ? EN_ACT_RELU : EN_ACT_NONE);
        const float *dy = random_rows(ny / wrong[k].oc, wrong[k].oc, wrong[k].oc);
        uint8_t *at = mem((size_t)ny);
        for (variant *v = first(0); v; v = next(v)) {
            reserve(v, &(en_conv_geom){ .n = 1, .h = 5, .w = 5, .c = 16, .oh = 5, .ow = 5, .oc = 16 });
            en_bn x_bn;
            en_operand x_up = operand_up(v, &x, &x_bn);
            if (wrong[k].no_bn) x_up.bn = NULL;
            void *y = out_a(v, ny), *at_dev = out(v, ny), *dx = out_a(v, nx);
            const en_status f = v->be->ops->max_pool_forward(v->be, &g, &x_up, y, at_dev);
            const en_status b = v->be->ops->max_pool_backward(v->be, &g, &x_up, up(v, at, ny), up_a(v, dy, ny), dx, wrong[k].no_bn ? NULL : &x_bn);
            if (f != EN_EINVAL || b != EN_EINVAL) failed("[%s] not refused", v->name);
            const float *y_got = down_a(v, y, ny), *dx_got = down_a(v, dx, nx);
            const uint8_t *at_got = down(v, at_dev, ny);
            const double *sums = DOWN_D(v, x_bn.local, 2 * c);
            for (int64_t i = 0; i < ny; i++) if (!isnan(y_got[i]) || at_got[i] != UINT8_MAX) { failed("[%s] y or at is written", v->name); break; }
            for (int64_t i = 0; i < nx; i++) if (!isnan(dx_got[i])) { failed("[%s] dx is written", v->name); break; }
            for (int64_t i = 0; i < 2 * c; i++) if (!isnan(sums[i])) { failed("[%s] the sums are written", v->name); break; }
            en_error_clear();
        }
    }
    if (problem(false, "mean refuses 12 channels"))
        for (variant *v = first(0); v; v = next(v)) {
            void *dx = out_a(v, 48);
            if (v->be->ops->mean_backward(v->be, 1, 4, 12, OUT_F(v, 12), NULL, dx) != EN_EINVAL) failed("[%s] not refused", v->name);
            const float *got = down_a(v, dx, 48);
            for (int i = 0; i < 48; i++) if (!isnan(got[i])) { failed("[%s] dx is written", v->name); break; }
            en_error_clear();
        }
    verdict();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_takes_the_first_of_the_largest),
        cmocka_unit_test(backward_goes_where_the_largest_stood_and_leaves_its_sums),
        cmocka_unit_test(the_way_back_is_the_adjoint_of_the_way_there),
        cmocka_unit_test(what_is_not_finite_is_passed_on),
        cmocka_unit_test(the_mean_of_a_plain_tensor_is_within_the_rounding_bound_there_and_back),
        cmocka_unit_test(an_empty_shard_writes_zero_sums_and_nothing_else),
        cmocka_unit_test(what_the_table_does_not_offer_is_refused_and_nothing_is_written),
    };
    return cmocka_run_group_tests(tests, open_variants, close_variants);
}
