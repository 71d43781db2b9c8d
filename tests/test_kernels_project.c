/* test_kernels_project.c - squeeze-and-excitation with the projection, forward and backward.
 *
 * The gate passes through pooling, two small matrices, silu and the sigmoid; its bound is the sum of what each step does to
 * the one before (fixture.h).  Backward goes the same way back.  A backend that is be->gated leaves ds and what the gate's
 * gradient adds to each row, instead of dz. */
#include "fixture.h"

typedef struct { int64_t n, hw, ci, co, q; en_act act; int kind; } shape;
typedef struct { float *wr, *br, *we, *be, *dwr, *dbr, *dwe, *dbe, *pooled, *hidden, *gate; } host_se;

static bool named(const char *pass, const shape *s, bool exact)
{
    return problem(exact, "project %s n%dhw%d ci%d co%d q%d%s%s", pass, (int)s->n, (int)s->hw, (int)s->ci, (int)s->co, (int)s->q,
                   (const char *[]){ " no act", "", " relu", " relu6" }[s->act], s->kind == DROP ? " drop" : "");
}

/* Weights of a size that keeps the gate away from its flat ends: sums of c terms of size 1/sqrt(c). */
static host_se se_make(const shape *s, int64_t cp)
{
    host_se e = { .wr = random_floats(s->q, cp, s->ci), .br = random_floats(1, s->q, s->q), .we = random_floats(s->q, cp, s->ci), .be = random_floats(1, cp, s->ci),
                  .dwr = random_rows(s->q, cp, s->ci), .dbr = random_rows(1, s->q, s->q), .dwe = random_rows(s->q, cp, s->ci), .dbe = random_rows(1, cp, s->ci) };
    for (int64_t i = 0; i < s->q * cp; i++) e.wr[i] *= (float)(1 / sqrt((double)s->ci)), e.we[i] *= (float)(1.5 / sqrt((double)s->q));
    return e;
}

static en_se se_up(variant *v, const shape *s, int64_t cp, const host_se *e, bool backward)
{
    return (en_se){ .q = s->q, .wr = UP_F(v, e->wr, s->q * cp), .br = UP_F(v, e->br, s->q), .we = UP_F(v, e->we, s->q * cp), .be = UP_F(v, e->be, cp),
                    .dwr = BOTH_F(v, e->dwr, s->q * cp), .dbr = BOTH_F(v, e->dbr, s->q), .dwe = BOTH_F(v, e->dwe, s->q * cp), .dbe = BOTH_F(v, e->dbe, cp),
                    .pooled = backward ? BOTH_F(v, e->pooled, s->n * cp) : OUT_F(v, s->n * cp),
                    .hidden = backward ? BOTH_F(v, e->hidden, s->n * s->q) : OUT_F(v, s->n * s->q),
                    .gate = backward ? BOTH_F(v, e->gate, s->n * cp) : OUT_F(v, s->n * cp), .dgate = OUT_F(v, s->n * cp) };
}

typedef struct { bounded pooled, hidden, gate; } gates;

/* (n,c) x (q,c)^T -> (n,q) and (n,q) x (q,c) -> (n,c) are the two halves of one geometry. */
static gates squeeze(const shape *s, int64_t cp, const host_se *e, bounded u)
{
    const en_conv_geom g = oracle_rows(s->n, s->q, cp);
    gates k = { .pooled = pooled_rows(u, s->n, s->hw, cp) };
    float *br = mem_f(s->n * s->q), *be = mem_f(s->n * cp);
    for (int64_t b = 0; b < s->n; b++) {
        memcpy(br + b * s->q, e->br, (size_t)s->q * sizeof *br);
        memcpy(be + b * cp, e->be, (size_t)cp * sizeof *be);
    }
    k.hidden = accumulated(bilinear(oracle_conv_dx, &g, k.pooled, exactly(e->wr, s->q * cp), s->n * s->q, s->ci), br, s->ci);
    k.gate = sigmoid(accumulated(bilinear(oracle_conv, &g, activated(EN_ACT_SILU, k.hidden), exactly(e->we, s->q * cp), s->n * cp, s->q), be, s->q));
    return k;
}

static float *rounded(bounded x)
{
    float *f = mem_f(x.n);
    for (int64_t i = 0; i < x.n; i++) f[i] = (float)x.v[i];
    return f;
}

static void forward_case(shape s, bool exact)
{
    if (exact) s.act = EN_ACT_NONE, s.q = 0;
    if (!named("forward", &s, exact) || !affordable(s.n * s.hw * s.ci * s.co)) return;
    const int64_t cip = phys(s.ci), cop = phys(s.co), rows = s.n * s.hw;
    const en_conv_geom g = oracle_rows(rows, cip, cop);
    const host_operand x = operand_make(rows, cip, s.ci, true, s.act);
    float *wt = random_rows(cip, cop, s.co);
    memset(wt + s.ci * cop, 0, (size_t)((cip - s.ci) * cop) * sizeof *wt);
    const host_bn *h = bn_make(cop, s.co);
    const host_se e = s.q ? se_make(&s, cip) : (host_se){ 0 };
    const bounded u = operand_value(&x);
    const gates k = s.q ? squeeze(&s, cip, &e, u) : (gates){ 0 };
    const bounded y = stored(bilinear(oracle_conv, &g, stored(s.q ? scaled_rows(u, s.hw, cip, k.gate) : u), exactly(wt, cip * cop), rows * cop, s.ci));
    for (variant *v = first(rows * s.ci * s.co); v; v = next(v)) {
        const en_conv_geom rg = { .n = s.n, .h = s.hw, .w = 1, .c = cip, .oh = s.hw, .ow = 1, .oc = cop };
        reserve(v, &rg);
        workspace(v, EN_WORK_PROJECT, &rg);
        en_bn x_bn, bn = bn_up(v, h);
        const en_operand operand = operand_up(v, &x, &x_bn);
        const en_se se = s.q ? se_up(v, &s, cip, &e, false) : (en_se){ 0 };
        void *y_dev = out_a(v, rows * cop);
        RUN(v, v->be->ops->se_project_forward(v->be, s.n, s.hw, cip, cop, &operand, s.q ? &se : NULL, UP_F(v, wt, cip * cop), y_dev, &bn));
        if (s.q) {
            check(v, "pooled", DOWN_F(v, se.pooled, s.n * cip), k.pooled, cip, s.ci);
            check(v, "hidden", DOWN_F(v, se.hidden, s.n * s.q), k.hidden, s.q, s.q);
            check(v, "gate", DOWN_F(v, se.gate, s.n * cip), k.gate, cip, s.ci);
        }
        const float *got = down_a(v, y_dev, rows * cop);
        check(v, "y", got, y, cop, s.co);
        check_forward_sums(v, &bn, h, got, rows);
        void *again = out_a(v, rows * cop);                     /* evaluation wants no sums */
        RUN(v, v->be->ops->se_project_forward(v->be, s.n, s.hw, cip, cop, &operand, s.q ? &se : NULL, UP_F(v, wt, cip * cop), again, NULL));
        check(v, "y without sums", down_a(v, again, rows * cop), y, cop, s.co);
    }
}

static bounded times_slope(bounded x, const float *at)
{
    return times(x, slope(EN_ACT_SILU, exactly(at, x.n)));
}

static void backward_case(shape s, bool exact)
{
    if (exact) s.act = EN_ACT_NONE, s.q = 0;
    if (!named("backward", &s, exact) || !affordable(2 * s.n * s.hw * s.ci * s.co)) return;
    const int64_t cip = phys(s.ci), cop = phys(s.co), rows = s.n * s.hw;
    const en_conv_geom g = oracle_rows(rows, cip, cop), per_image = oracle_rows(s.n, s.q, cip);
    const host_operand x = operand_make(rows, cip, s.ci, true, s.act);
    const host_grad d = grad_make(s.n, s.hw, cop, s.co, s.kind);
    float *wt = random_rows(cip, cop, s.co), *start = random_rows(cip, cop, s.co);
    memset(wt + s.ci * cop, 0, (size_t)((cip - s.ci) * cop) * sizeof *wt);
    memset(start + s.ci * cop, 0, (size_t)((cip - s.ci) * cop) * sizeof *start);
    host_se e = s.q ? se_make(&s, cip) : (host_se){ 0 };
    const bounded u = operand_value(&x), dy = stored(grad_dy(&d));

    /* through the projection */
    const bounded ds = stored(bilinear(oracle_conv_dx, &g, dy, exactly(wt, cip * cop), rows * cip, s.co));
    bounded gated = u, du = ds, dgate = { 0 }, dwr = { 0 }, dbr = { 0 }, dwe = { 0 }, dbe = { 0 };
    if (s.q) {                                                  /* what forward kept, rounded to what a float holds */
        const gates k = squeeze(&s, cip, &e, u);
        e.pooled = rounded(k.pooled), e.hidden = rounded(k.hidden), e.gate = rounded(k.gate);
        const bounded gate = exactly(e.gate, s.n * cip);
        gated = scaled_rows(u, s.hw, cip, gate);
        /* through the gate: sums over the rows of an image, then sigmoid' = gate*(1-gate) */
        bounded dz = pooled_rows(times(ds, u), s.n, s.hw, cip);
        for (int64_t i = 0; i < dz.n; i++) {
            const double slope_here = gate.v[i] * (1 - gate.v[i]) * (double)s.hw;     /* pooled_rows took the mean */
            dz.v[i] *= slope_here;
            dz.x[i] *= slope_here, dz.s[i] *= slope_here, dz.q[i] *= slope_here;
            dz.e[i] = dz.e[i] * slope_here + 3 * UNIT * fabs(dz.v[i]);
        }
        const bounded act = activated(EN_ACT_SILU, exactly(e.hidden, s.n * s.q));
        dwe = accumulated(bilinear(oracle_conv_dwt, &per_image, act, dz, s.q * cip, s.n), e.dwe, s.n);
        const bounded dh = times_slope(bilinear(oracle_conv_dx, &per_image, dz, exactly(e.we, s.q * cip), s.n * s.q, s.ci), e.hidden);
        dwr = accumulated(bilinear(oracle_conv_dwt, &per_image, dh, exactly(e.pooled, s.n * cip), s.q * cip, s.n), e.dwr, s.n);
        float *ones = mem_f(s.n);
        for (int64_t b = 0; b < s.n; b++) ones[b] = 1;
        const en_conv_geom bias_q = oracle_rows(s.n, 1, s.q), bias_c = oracle_rows(s.n, 1, cip);
        dbr = accumulated(bilinear(oracle_conv_dwt, &bias_q, exactly(ones, s.n), dh, s.q, s.n), e.dbr, s.n);
        dbe = accumulated(bilinear(oracle_conv_dwt, &bias_c, exactly(ones, s.n), dz, cip, s.n), e.dbe, s.n);
        /* dp/hw reaches every row of the image */
        dgate = bilinear(oracle_conv, &per_image, dh, exactly(e.wr, s.q * cip), s.n * cip, s.q);
        for (int64_t i = 0; i < dgate.n; i++) {
            dgate.v[i] /= (double)s.hw;
            dgate.x[i] /= (double)s.hw, dgate.s[i] /= (double)s.hw, dgate.q[i] /= (double)s.hw;
            dgate.e[i] = dgate.e[i] / (double)s.hw + 2 * UNIT * fabs(dgate.v[i]);
        }
        du = plus(scaled_rows(ds, s.hw, cip, gate), spread_rows(dgate, s.hw, cip));
    }
    const bounded slope_here = operand_slope(&x), dz = stored(s.act == EN_ACT_NONE ? du : times(du, slope_here));
    const bounded dwt = accumulated(bilinear(oracle_conv_dwt, &g, stored(gated), dy, cip * cop, rows), start, rows);

    for (variant *v = first(2 * rows * s.ci * s.co); v; v = next(v)) {
        const en_conv_geom rg = { .n = s.n, .h = s.hw, .w = 1, .c = cip, .oh = s.hw, .ow = 1, .oc = cop };
        reserve(v, &rg);
        workspace(v, EN_WORK_PROJECT, &rg);
        en_bn x_bn, grad_bn;
        const en_operand operand = operand_up(v, &x, &x_bn);
        const en_grad grad = grad_up(v, &d, &grad_bn);
        const en_se se = s.q ? se_up(v, &s, cip, &e, true) : (en_se){ 0 };
        void *dz_dev = out_a(v, rows * cip);
        float *dwt_dev = BOTH_F(v, start, cip * cop);
        RUN(v, v->be->ops->se_project_backward(v->be, s.n, s.hw, cip, cop, &operand, s.q ? &se : NULL, UP_F(v, wt, cip * cop), &grad, dz_dev, dwt_dev, &x_bn));
        const float *got = down_a(v, dz_dev, rows * cip);
        check(v, v->be->gated ? "ds" : "dz", got, v->be->gated ? ds : dz, cip, s.ci);
        check(v, "dwt", DOWN_F(v, dwt_dev, cip * cop), dwt, cop, s.co);
        bounded summed = exactly(got, rows * cip);              /* dz as its reader has it */
        if (v->be->gated) {
            if (s.q) {
                const float *dgate_got = DOWN_F(v, se.dgate, s.n * cip);
                check(v, "dgate", dgate_got, dgate, cip, s.ci);
                summed = plus(scaled_rows(summed, s.hw, cip, exactly(e.gate, s.n * cip)), spread_rows(exactly(dgate_got, s.n * cip), s.hw, cip));
            }
            if (s.act != EN_ACT_NONE) summed = times(summed, slope_here);
        }
        check_backward_sums(v, &x_bn, x.bn, summed, x.y, rows);
        if (s.q) {
            check(v, "dwr", DOWN_F(v, se.dwr, s.q * cip), dwr, cip, s.ci);
            check(v, "dbr", DOWN_F(v, se.dbr, s.q), dbr, s.q, s.q);
            check(v, "dwe", DOWN_F(v, se.dwe, s.q * cip), dwe, cip, s.ci);
            check(v, "dbe", DOWN_F(v, se.dbe, cip), dbe, cip, s.ci);
        }
    }
}

static void each_model_case(void (*run)(shape, bool))
{
    for (int k = 0; k < n_mbconv_rows; k++) {
        const mbconv_row *r = &mbconv_rows[k];
        const int64_t side = r->mid > 2000 ? 3 : r->mid > 600 ? 4 : 5 + k % 4, n = r->mid > 2000 ? 2 : 3;
        run((shape){ .n = n, .hw = fitting(side * side, 2 * n * r->mid * r->co), .ci = r->mid, .co = r->co, .q = r->q, .act = EN_ACT_SILU, .kind = k % 2 ? DROP : PLAIN }, false);
    }
}

static void forward_is_within_the_propagated_bound_at_the_shapes_of_the_models(void **state)  { (void)state; each_model_case(forward_case); verdict(); }
static void backward_is_within_the_propagated_bound_at_the_shapes_of_the_models(void **state) { (void)state; each_model_case(backward_case); verdict(); }

/* Images of one row, of more rows than a block, of any remainder; odd channels; q of 1; more images than lanes. */
static void each_odd_case(void (*run)(shape, bool))
{
    static const int hw[] = { 1, 2, 4, 13, 15, 49, 113, 225, 300 }, channels[][3] = { { 1, 1, 1 }, { 16, 16, 1 }, { 33, 112, 3 }, { 100, 24, 7 }, { 144, 40, 6 } };
    for (size_t c = 0; c < sizeof channels / sizeof *channels; c++)
        for (size_t k = 0; k < sizeof hw / sizeof *hw; k++) {
            const shape s = { .n = (int[]){ 1, 3, 2, 7 }[(k + c) % 4], .hw = hw[k], .ci = channels[c][0], .co = channels[c][1], .q = channels[c][2],
                              .act = k % 4 == 3 ? EN_ACT_NONE : k % 4 == 2 ? EN_ACT_RELU6 : EN_ACT_SILU, .kind = (k + c) % 4 && (k + c) % 3 ? DROP : PLAIN };
            run(s, false);
            run(s, true);
        }
    run((shape){ .n = 2, .hw = 49, .ci = 96, .co = 24, .q = 0, .act = EN_ACT_SILU }, false);       /* no squeeze-and-excitation */
    run((shape){ .n = 2, .hw = 49, .ci = 96, .co = 24, .q = 0, .act = EN_ACT_RELU }, false);
    run((shape){ .n = 2, .hw = 49, .ci = 96, .co = 24, .q = 0, .act = EN_ACT_RELU6, .kind = DROP }, false);        /* MobileNetV2 */
    run((shape){ .n = 3, .hw = 16, .ci = 32, .co = 64, .q = 0, .act = EN_ACT_RELU }, false);                        /* MobileNet: wider */
    run((shape){ .n = 1, .hw = 49, .ci = 96, .co = 24, .q = 4, .act = EN_ACT_SILU, .kind = DROP }, false);   /* the only image is dropped */
    /* more images than the small layers take at once */
    for (int n = 8; n <= 17; n += 3) run((shape){ .n = n, .hw = 5, .ci = 40, .co = 24, .q = 9, .act = EN_ACT_SILU, .kind = DROP }, false);
    run((shape){ .n = 9, .hw = 150, .ci = 16, .co = 16, .q = 11, .act = EN_ACT_SILU, .kind = DROP }, false);
    run((shape){ .n = 19, .hw = 2, .ci = 520, .co = 8, .q = 70, .act = EN_ACT_SILU, .kind = DROP }, false);
    run((shape){ .n = 9, .hw = 20, .ci = 40, .co = 24, .q = 0, .act = EN_ACT_SILU }, false);
    for (int rows = 1; rows <= 34; rows++) run((shape){ .n = 1, .hw = rows, .ci = 48, .co = 80 }, true);
}

static void forward_handles_odd_shapes(void **state)  { (void)state; each_odd_case(forward_case); verdict(); }
static void backward_handles_odd_shapes(void **state) { (void)state; each_odd_case(backward_case); verdict(); }

static void an_empty_shard_writes_zero_sums_and_nothing_else(void **state)
{
    (void)state;
    const shape s = { .n = 0, .hw = 9, .ci = 40, .co = 24, .q = 3, .act = EN_ACT_SILU };
    if (problem(true, "project n0")) {
        expect_zeros();
        const int64_t cip = 48, cop = 32;
        const host_operand x = operand_make(0, cip, s.ci, true, s.act);
        const host_bn *h = bn_make(cop, s.co);
        const host_grad d = grad_make(0, s.hw, cop, s.co, PLAIN);
        host_se e = se_make(&s, cip);
        e.pooled = e.hidden = e.gate = mem_f(1);
        float *wt = random_rows(cip, cop, s.co);
        for (variant *v = first(0); v; v = next(v)) {
            en_bn x_bn, grad_bn, bn = bn_up(v, h);
            const en_operand operand = operand_up(v, &x, &x_bn);
            const en_grad grad = grad_up(v, &d, &grad_bn);
            const en_se se = se_up(v, &s, cip, &e, true);
            float *dwt = BOTH_F(v, wt, cip * cop);
            RUN(v, v->be->ops->se_project_forward(v->be, 0, s.hw, cip, cop, &operand, &se, UP_F(v, wt, cip * cop), out_a(v, 0), &bn));
            check_forward_sums(v, &bn, h, NULL, 0);
            RUN(v, v->be->ops->se_project_backward(v->be, 0, s.hw, cip, cop, &operand, &se, UP_F(v, wt, cip * cop), &grad, out_a(v, 0), dwt, &x_bn));
            check_backward_sums(v, &x_bn, x.bn, exactly(NULL, 0), NULL, 0);
            check_same(v, "dwt", DOWN_F(v, dwt, cip * cop), wt, cip * cop * (int64_t)sizeof *wt);
            check_same(v, "dwr", DOWN_F(v, se.dwr, s.q * cip), e.dwr, s.q * cip * (int64_t)sizeof(float));
            check_same(v, "dbe", DOWN_F(v, se.dbe, cip), e.dbe, cip * (int64_t)sizeof(float));
        }
    }
    verdict();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_is_within_the_propagated_bound_at_the_shapes_of_the_models),
        cmocka_unit_test(backward_is_within_the_propagated_bound_at_the_shapes_of_the_models),
        cmocka_unit_test(forward_handles_odd_shapes),
        cmocka_unit_test(backward_handles_odd_shapes),
        cmocka_unit_test(an_empty_shard_writes_zero_sums_and_nothing_else),
    };
    return cmocka_run_group_tests(tests, open_variants, close_variants);
}
