/* test_kernels_join.c - the end of a bottleneck, whose activation follows the sum: o = out(bn(y)*drop + bn(x)), and the way back. */
#include "fixture.h"

static const char *const outs[] = { [EN_ACT_RELU] = " relu", [EN_ACT_RELU6] = " relu6" };

/* as drawn, times a power of two that takes sums across 6 (integers get there by themselves) */
static host_operand operand_far(int64_t rows, int64_t c, int64_t logical, bool with_bn)
{
    host_operand x = operand_make(rows, c, logical, with_bn, EN_ACT_NONE);
    for (int64_t i = 0; !is_exact() && i < rows * c; i++) x.y[i] *= 4;
    return x;
}

enum { APART, OVER_Y, OVER_X, PLACES };
static const char *const places[] = { "", " over y", " over x" };

static void forward_case(bool exact, int64_t n, int64_t hw, int64_t c, bool with_drop, bool with_bn, en_act act, int place)
{
    if (!problem(exact, "join forward n%dhw%dc%d%s%s%s%s", (int)n, (int)hw, (int)c, with_drop ? " drop" : "", with_bn ? " bn" : "", outs[act], places[place])) return;
    if (!affordable(4 * n * hw * phys(c))) return;
    const int64_t cp = phys(c), rows = n * hw, size = rows * cp;
    const host_operand y = operand_far(rows, cp, c, true), x = operand_far(rows, cp, c, with_bn);
    const float *drop = drops(n, with_drop);
    const bounded o = stored(activated(act, plus(dropped(operand_raw(&y), drop, n, hw, cp), operand_raw(&x))));
    for (variant *v = first(4 * size); v; v = next(v)) {
        en_bn y_bn, x_bn;
        en_operand y_up = operand_up(v, &y, &y_bn), x_up = operand_up(v, &x, &x_bn);
        void *o_dev = place == OVER_Y ? both_a(v, y.y, size) : place == OVER_X ? both_a(v, x.y, size) : out_a(v, size);
        if (place == OVER_Y) y_up.y = o_dev;
        if (place == OVER_X) x_up.y = o_dev;
        RUN(v, v->be->ops->join_forward(v->be, n, hw, cp, &y_up, UP_F(v, drop, n), &x_up, act, o_dev));
        check(v, "o", down_a(v, o_dev, size), o, cp, c);
    }
}

/* ResNet-50's widths beside odd ones */
static void forward_is_within_the_rounding_bound(void **state)
{
    (void)state;
    static const int hw[] = { 1, 13, 113, 225 };
    for (int with = 0; with < 8; with++)
        for (int k = 0; k < 4; k++)
            for (int exact = 0; exact < 2; exact++)
                forward_case(exact, k % 2 ? 1 : 5, hw[k], (int[]){ 24, 16, 100, 8 }[(k + with) % 4], with & 1, with & 2, with & 4 ? EN_ACT_RELU6 : EN_ACT_RELU,
                             (k + with) % PLACES);
    static const int widths[] = { 256, 512, 1024, 2048 };
    for (int k = 0; k < 4; k++) forward_case(k % 2, 3, 49, widths[k], k % 2, k / 2, EN_ACT_RELU, APART);
    verdict();
}

/* What o may be: zeros and sixes among others, and the numbers beside them. */
static float *outputs(int64_t n, en_act act)
{
    static const float edges[] = { 0, 6, 0x1p-126f, 5.96875f, -0.f };
    float *o = mem_f(n);
    for (int64_t i = 0; i < n; i++) {
        o[i] = below(4) ? (float)oracle_act(act, 8 * uniform()) : edges[below(5)];
        if (is_exact() && o[i] < 1) o[i] = 0;
    }
    return storable(o, n);
}

static void backward_case(bool exact, int64_t n, int64_t hw, int64_t c, bool with_drop, bool with_bn, bool in_place, en_act act)
{
    if (!problem(exact, "join backward n%dhw%dc%d%s%s%s%s", (int)n, (int)hw, (int)c, with_drop ? " drop" : "", with_bn ? " bn" : "", in_place ? " in place" : "",
                 outs[act])) return;
    if (!affordable(8 * n * hw * phys(c))) return;
    if ((with_drop && n == 1) || act == EN_ACT_RELU6) expect_zeros();
    const int64_t cp = phys(c), rows = n * hw, size = rows * cp, bytes = size * (int64_t)sizeof(float);
    const host_operand y = operand_make(rows, cp, c, true, EN_ACT_NONE), x = operand_make(rows, cp, c, true, EN_ACT_NONE);
    const float *g = random_rows(rows, cp, c), *o = outputs(size, act), *drop = drops(n, with_drop);
    const bounded dz = exactly(g, size);                       /* g or nothing: no rounding in either type */
    for (int64_t i = 0; i < size; i++) dz.v[i] *= oracle_dact(act, o[i]);
    for (variant *v = first(8 * size); v; v = next(v)) {
        reserve(v, &(en_conv_geom){ .n = n, .h = hw, .w = 1, .c = cp, .oh = hw, .ow = 1, .oc = cp });
        en_bn y_bn, x_bn;
        const en_operand y_up = operand_up(v, &y, &y_bn), x_up = operand_up(v, &x, &x_bn);
        void *g_dev = both_a(v, g, size), *dz_dev = in_place ? g_dev : out_a(v, size);
        RUN(v, v->be->ops->join_backward(v->be, n, hw, cp, g_dev, up_a(v, o, size), act, UP_F(v, drop, n), y_up.y, &y_bn,
                                         with_bn ? x_up.y : NULL, with_bn ? &x_bn : NULL, dz_dev));
        check(v, "dz", down_a(v, dz_dev, size), dz, cp, c);
        check_backward_sums(v, &y_bn, y.bn, dropped(dz, drop, n, hw, cp), y.y, rows);
        if (with_bn) check_backward_sums(v, &x_bn, x.bn, dz, x.y, rows);
        if (!in_place) check_same(v, "g", down_a(v, g_dev, size), g, bytes);
    }
}

static void backward_stores_dz_and_leaves_the_sums_of_both_batch_norms(void **state)
{
    (void)state;
    static const int hw[] = { 1, 2, 13, 113, 225, 1000 };
    for (int k = 0; k < 6; k++)
        for (int with = 0; with < 16; with++)
            for (int exact = 0; exact < (k < 4 ? 2 : 1); exact++)
                backward_case(exact, (int[]){ 1, 4, 7 }[(k + with) % 3], hw[k], (int[]){ 8, 24, 100 }[k % 3], with & 1, with & 2, with & 4, with & 8 ? EN_ACT_RELU6 : EN_ACT_RELU);
    static const int widths[] = { 256, 512, 1024, 2048 };
    for (int k = 0; k < 4; k++) backward_case(k % 2, 3, 49, widths[k], k % 2, k / 2, false, EN_ACT_RELU);
    verdict();
}

/* A diverged run must show: NaN stays NaN on the way there; a gradient that is NaN stays one where the slope is 1, and so does it in the sums. */
static void what_is_not_finite_is_passed_on(void **state)
{
    (void)state;
    static const float y_in[16] = { NAN, 0, INFINITY, -INFINITY, 1, 2 }, x_in[16] = { 0, NAN, 1, 1, INFINITY, -INFINITY };
    for (en_act act = EN_ACT_RELU; act <= EN_ACT_RELU6; act++) {
        if (!problem(false, "join extremes%s", outs[act])) continue;
        host_operand y = operand_make(1, 16, 16, true, EN_ACT_NONE), x = operand_make(1, 16, 16, false, EN_ACT_NONE);
        for (int64_t i = 0; i < 16; i++) y.y[i] = y_in[i], x.y[i] = x_in[i], y.bn->scale[i] = 1, y.bn->shift[i] = 0;
        const float top = act == EN_ACT_RELU6 ? 6.f : INFINITY;
        float *g = mem_f(16), *o_in = mem_f(16);
        for (int64_t i = 0; i < 16; i++) g[i] = i ? 1 : NAN, o_in[i] = 1;
        for (variant *v = first(0); v; v = next(v)) {
            reserve(v, &(en_conv_geom){ .n = 1, .h = 1, .w = 1, .c = 16, .oh = 1, .ow = 1, .oc = 16 });
            en_bn y_bn, x_bn;
            const en_operand y_up = operand_up(v, &y, &y_bn), x_up = operand_up(v, &x, &x_bn);
            void *o_dev = out_a(v, 16), *dz_dev = out_a(v, 16);
            RUN(v, v->be->ops->join_forward(v->be, 1, 1, 16, &y_up, NULL, &x_up, act, o_dev));
            const float *o = down_a(v, o_dev, 16);
            if (!isnan(o[0]) || !isnan(o[1])) failed("[%s] a NaN became %g, %g", v->name, (double)o[0], (double)o[1]);
            if (!(o[2] >= top && o[2] <= top) || !(o[4] >= top && o[4] <= top)) failed("[%s] infinity became %g, %g", v->name, (double)o[2], (double)o[4]);
            for (int i = 3; i < 16; i += i == 3 ? 2 : 1)
                if (fabsf(o[i]) > 0) failed("[%s] %g where nothing is left", v->name, (double)o[i]);
            RUN(v, v->be->ops->join_backward(v->be, 1, 1, 16, up_a(v, g, 16), up_a(v, o_in, 16), act, NULL, x_up.y, &y_bn, NULL, NULL, dz_dev));
            const float *dz = down_a(v, dz_dev, 16);
            const double *sums = DOWN_D(v, y_bn.local, 32);
            if (!isnan(dz[0]) || !isnan(sums[0]) || !isnan(sums[16])) failed("[%s] the gradient's NaN became %g, %g, %g", v->name, (double)dz[0], sums[0], sums[16]);
        }
    }
    verdict();
}

static void an_empty_shard_writes_zero_sums_and_nothing_else(void **state)
{
    (void)state;
    if (problem(true, "join n0")) {
        expect_zeros();
        const host_operand y = operand_make(0, 32, 24, true, EN_ACT_NONE), x = operand_make(0, 32, 24, true, EN_ACT_NONE);
        for (variant *v = first(0); v; v = next(v)) {
            reserve(v, &(en_conv_geom){ .n = 0, .h = 9, .w = 1, .c = 32, .oh = 9, .ow = 1, .oc = 32 });
            en_bn y_bn, x_bn;
            const en_operand y_up = operand_up(v, &y, &y_bn), x_up = operand_up(v, &x, &x_bn);
            RUN(v, v->be->ops->join_forward(v->be, 0, 9, 32, &y_up, OUT_F(v, 0), &x_up, EN_ACT_RELU, out_a(v, 0)));
            RUN(v, v->be->ops->join_backward(v->be, 0, 9, 32, out_a(v, 0), out_a(v, 0), EN_ACT_RELU, NULL, y_up.y, &y_bn, x_up.y, &x_bn, out_a(v, 0)));
            check_backward_sums(v, &y_bn, y.bn, exactly(NULL, 0), NULL, 0);
            check_backward_sums(v, &x_bn, x.bn, exactly(NULL, 0), NULL, 0);
        }
    }
    verdict();
}

static void what_the_table_does_not_offer_is_refused_and_nothing_is_written(void **state)
{
    (void)state;
    static const struct { const char *what; int64_t c; en_act y_act, x_act, out; bool no_y_bn, no_x; bool forward, backward; } wrong[] = {
        { "no act", 16, EN_ACT_NONE, EN_ACT_NONE, EN_ACT_NONE, false, false, true, true },
        { "silu",   16, EN_ACT_NONE, EN_ACT_NONE, EN_ACT_SILU, false, false, true, true },
        { "12 channels", 12, EN_ACT_NONE, EN_ACT_NONE, EN_ACT_RELU, false, false, true, true },
        { "y without bn", 16, EN_ACT_NONE, EN_ACT_NONE, EN_ACT_RELU, true, false, true, false },
        { "an activation of y", 16, EN_ACT_RELU, EN_ACT_NONE, EN_ACT_RELU, false, false, true, false },
        { "an activation of x", 16, EN_ACT_NONE, EN_ACT_RELU, EN_ACT_RELU, false, false, true, false },
        { "sums without x", 16, EN_ACT_NONE, EN_ACT_NONE, EN_ACT_RELU, false, true, false, true } };
    for (size_t k = 0; k < sizeof wrong / sizeof *wrong; k++) {
        if (!problem(false, "join refuses %s", wrong[k].what)) continue;
        const int64_t c = wrong[k].c, size = 4 * c;
        const host_operand y = operand_make(4, c, c, true, wrong[k].y_act), x = operand_make(4, c, c, true, wrong[k].x_act);
        const float *g = random_rows(4, c, c);
        for (variant *v = first(0); v; v = next(v)) {
            reserve(v, &(en_conv_geom){ .n = 1, .h = 4, .w = 1, .c = 16, .oh = 4, .ow = 1, .oc = 16 });
            en_bn y_bn, x_bn;
            en_operand y_up = operand_up(v, &y, &y_bn);
            const en_operand x_up = operand_up(v, &x, &x_bn);
            if (wrong[k].no_y_bn) y_up.bn = NULL;
            void *o = out_a(v, size), *dz = out_a(v, size);
            const void *g_dev = up_a(v, g, size);
            if (wrong[k].forward && v->be->ops->join_forward(v->be, 1, 4, c, &y_up, NULL, &x_up, wrong[k].out, o) != EN_EINVAL) failed("[%s] forward not refused", v->name);
            if (wrong[k].backward && v->be->ops->join_backward(v->be, 1, 4, c, g_dev, g_dev, wrong[k].out, NULL, y_up.y, &y_bn,
                                                               wrong[k].no_x ? NULL : x_up.y, &x_bn, dz) != EN_EINVAL) failed("[%s] backward not refused", v->name);
            const float *o_got = down_a(v, o, size), *dz_got = down_a(v, dz, size);
            const double *y_sums = DOWN_D(v, y_bn.local, 2 * c), *x_sums = DOWN_D(v, x_bn.local, 2 * c);
            for (int64_t i = 0; i < size; i++) if (!isnan(o_got[i]) || !isnan(dz_got[i])) { failed("[%s] refused, yet written", v->name); break; }
            for (int64_t i = 0; i < 2 * c; i++) if (!isnan(y_sums[i]) || !isnan(x_sums[i])) { failed("[%s] refused, yet summed", v->name); break; }
            en_error_clear();
        }
    }
    verdict();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_is_within_the_rounding_bound),
        cmocka_unit_test(backward_stores_dz_and_leaves_the_sums_of_both_batch_norms),
        cmocka_unit_test(what_is_not_finite_is_passed_on),
        cmocka_unit_test(an_empty_shard_writes_zero_sums_and_nothing_else),
        cmocka_unit_test(what_the_table_does_not_offer_is_refused_and_nothing_is_written),
    };
    return cmocka_run_group_tests(tests, open_variants, close_variants);
}
