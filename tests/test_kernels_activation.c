/* test_kernels_activation.c - a block that ends in an activation: o = act(bn(y)) * drop + x, and the way back through it. */
#include "fixture.h"

static const char *const acts[] = { [EN_ACT_NONE] = "no act ", [EN_ACT_SILU] = "", [EN_ACT_RELU] = "relu ", [EN_ACT_RELU6] = "relu6 " };

/* Integers stay integers under ReLU, not under SiLU. */
static en_act as_exact(bool exact, en_act act) { return exact && act == EN_ACT_SILU ? EN_ACT_NONE : act; }

/* as drawn, but across 6 where that bends (integers get there by themselves) */
static host_operand operand_of(int64_t rows, int64_t c, int64_t logical, en_act act)
{
    host_operand y = operand_make(rows, c, logical, true, act);
    for (int64_t i = 0; act == EN_ACT_RELU6 && !is_exact() && i < rows * c; i++) y.y[i] *= 8;
    return y;
}

static void forward_case(bool exact, int64_t n, int64_t hw, int64_t c, bool with_drop, bool with_skip, en_act act)
{
    act = as_exact(exact, act);
    if (!problem(exact, "activation forward %sn%dhw%dc%d%s%s", acts[act], (int)n, (int)hw, (int)c, with_drop ? " drop" : "", with_skip ? " skip" : "")) return;
    if (!affordable(4 * n * hw * phys(c))) return;
    if (!with_skip && ((with_drop && n == 1) || act >= EN_ACT_RELU)) expect_zeros();
    const int64_t cp = phys(c), rows = n * hw, size = rows * cp;
    const host_operand y = operand_of(rows, cp, c, act), x = operand_make(rows, cp, c, false, EN_ACT_NONE);
    const float *drop = drops(n, with_drop);
    bounded o = dropped(operand_value(&y), drop, n, hw, cp);
    if (with_skip) o = plus(o, operand_value(&x));
    o = stored(o);
    for (variant *v = first(4 * size); v; v = next(v)) {
        en_bn y_bn, x_bn;
        const en_operand y_up = operand_up(v, &y, &y_bn), x_up = operand_up(v, &x, &x_bn);
        void *o_dev = out_a(v, size);
        RUN(v, v->be->ops->residual_forward(v->be, n, hw, cp, &y_up, UP_F(v, drop, n), with_skip ? &x_up : NULL, o_dev));
        check(v, "o", down_a(v, o_dev, size), o, cp, c);
    }
}

static void forward_is_within_the_rounding_bound(void **state)
{
    (void)state;
    static const int hw[] = { 1, 13, 113, 225 };
    for (int with = 0; with < 4; with++)
        for (int k = 0; k < 4; k++)
            for (int exact = 0; exact < 2; exact++)
                for (en_act act = EN_ACT_SILU; act <= EN_ACT_RELU6; act++)             /* ReLU: MobileNet, which has no skip */
                    forward_case(exact, k % 2 ? 1 : 4, hw[k], (int[]){ 24, 16, 100, 8 }[(k + with) % 4], with & 1, with & 2, act);
    verdict();
}

static void backward_case(bool exact, int64_t n, int64_t hw, int64_t c, bool with_drop, bool in_place, en_act act)
{
    act = as_exact(exact, act);
    if (!problem(exact, "activation backward %sn%dhw%dc%d%s%s", acts[act], (int)n, (int)hw, (int)c, with_drop ? " drop" : "", in_place ? " in place" : "")) return;
    if (!affordable(6 * n * hw * phys(c))) return;
    if ((with_drop && n == 1) || act >= EN_ACT_RELU) expect_zeros();
    const int64_t cp = phys(c), rows = n * hw, size = rows * cp;
    const host_operand y = operand_of(rows, cp, c, act);
    float *g = storable(random_rows(rows, cp, c), size);
    const float *drop = drops(n, with_drop);
    bounded dz = dropped(exactly(g, size), drop, n, hw, cp);
    if (act != EN_ACT_NONE) dz = times(dz, operand_slope(&y));
    const bounded want = stored(dz);
    for (variant *v = first(6 * size); v; v = next(v)) {
        reserve(v, &(en_conv_geom){ .n = n, .h = hw, .w = 1, .c = cp, .oh = hw, .ow = 1, .oc = cp });
        en_bn bn;
        const en_operand y_up = operand_up(v, &y, &bn);
        void *g_dev = both_a(v, g, size), *dz_dev = in_place ? g_dev : out_a(v, size);
        RUN(v, v->be->ops->activation_backward(v->be, n, hw, cp, g_dev, UP_F(v, drop, n), &y_up, dz_dev, &bn));
        const float *got = down_a(v, dz_dev, size);
        check(v, "dz", got, want, cp, c);
        check_backward_sums(v, &bn, y.bn, exactly(got, size), y.y, rows);           /* of dz as stored */
        if (!in_place) check_same(v, "g", down_a(v, g_dev, size), g, size * (int64_t)sizeof *g);
    }
}

static void backward_stores_dz_and_leaves_its_sums(void **state)
{
    (void)state;
    static const int hw[] = { 1, 2, 13, 113, 225, 1000 };
    for (int k = 0; k < 6; k++)
        for (int with = 0; with < 4; with++)
            for (int exact = 0; exact < 2; exact++)
                for (en_act act = EN_ACT_SILU; act <= (k < 5 ? EN_ACT_RELU6 : EN_ACT_SILU); act++)
                    backward_case(exact, (int[]){ 1, 4, 7 }[(k + with) % 3], hw[k], (int[]){ 8, 24, 100 }[k % 3], with & 1, with & 2, act);
    verdict();
}

static void an_empty_shard_leaves_zero_sums(void **state)
{
    (void)state;
    if (problem(false, "activation backward of no image")) {
        expect_zeros();
        const host_operand y = operand_make(0, 32, 32, true, EN_ACT_SILU);
        for (variant *v = first(0); v; v = next(v)) {
            en_bn bn;
            const en_operand y_up = operand_up(v, &y, &bn);
            RUN(v, v->be->ops->activation_backward(v->be, 0, 9, 32, out_a(v, 0), NULL, &y_up, out_a(v, 0), &bn));
            check_backward_sums(v, &bn, y.bn, exactly(NULL, 0), NULL, 0);
        }
    }
    verdict();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_is_within_the_rounding_bound),
        cmocka_unit_test(backward_stores_dz_and_leaves_its_sums),
        cmocka_unit_test(an_empty_shard_leaves_zero_sums),
    };
    return cmocka_run_group_tests(tests, open_variants, close_variants);
}
