/* test_kernels_batchnorm.c - what happens between the passes: batch statistics, running statistics, the coefficients of
 * the gradient; and a whole batch-norm layer, forward and backward, against the textbook.
 *
 * The sums are doubles, so all of this can be right to the last float but one: bounds are a few u of each term. */
#include "fixture.h"

typedef struct { host_bn *h; double *total; float *dgamma, *dbeta; } layer;

static en_bn layer_up(variant *v, const layer *l)
{
    const int64_t c = l->h->c;
    en_bn bn = bn_up(v, l->h);
    bn.running_mean = BOTH_F(v, l->h->running_mean, c);
    bn.running_var = BOTH_F(v, l->h->running_var, c);
    float **written[] = { &bn.mean, &bn.rstd, &bn.scale, &bn.shift, &bn.ga, &bn.gb, &bn.gc };
    for (size_t k = 0; k < sizeof written / sizeof *written; k++) *written[k] = OUT_F(v, c);
    if (l->dgamma) bn.dgamma = BOTH_F(v, l->dgamma, c), bn.dbeta = BOTH_F(v, l->dbeta, c);
    bn.total = both(v, l->total, (2 * c + 1) * (int64_t)sizeof(double));
    bn.local = both(v, l->total, (2 * c + 1) * (int64_t)sizeof(double));
    return bn;
}

/* expect[i] within `ulps` roundings of the magnitudes that went into it */
static void expect(bounded *b, int64_t i, double value, double magnitude) { b->v[i] = value; b->e[i] = 4 * UNIT * magnitude; }

typedef struct { bounded mean, rstd, scale, shift, running_mean, running_var; } statistics;

static statistics statistics_of(const host_bn *h, const double *mean, const double *var, const double *kept_var)
{
    const int64_t c = h->c;
    statistics s = { fresh(c), fresh(c), fresh(c), fresh(c), fresh(c), fresh(c) };
    const double m = (double)h->momentum;
    for (int64_t i = 0; i < c; i++) {
        const double rstd = 1 / sqrt(var[i] + (double)h->eps), scale = h->gamma[i] * rstd, rm = h->running_mean[i], rv = h->running_var[i];
        expect(&s.mean, i, mean[i], fabs(mean[i]));
        expect(&s.rstd, i, rstd, rstd);
        expect(&s.scale, i, scale, fabs(scale));
        expect(&s.shift, i, h->beta[i] - mean[i] * scale, fabs((double)h->beta[i]) + fabs(mean[i] * scale));
        expect(&s.running_mean, i, kept_var ? (1 - m) * rm + m * mean[i] : rm, kept_var ? fabs(rm) + fabs(m * mean[i]) : 0);
        expect(&s.running_var, i, kept_var ? (1 - m) * rv + m * kept_var[i] : rv, kept_var ? rv + m * kept_var[i] : 0);
    }
    return s;
}

static void check_statistics(variant *v, const en_bn *bn, const statistics *s, int64_t logical)
{
    const int64_t c = bn->c;
    check(v, "mean", DOWN_F(v, bn->mean, c), s->mean, c, logical);
    check(v, "rstd", DOWN_F(v, bn->rstd, c), s->rstd, c, logical);
    check(v, "scale", DOWN_F(v, bn->scale, c), s->scale, c, logical);
    check(v, "shift", DOWN_F(v, bn->shift, c), s->shift, c, logical);
    check(v, "running mean", DOWN_F(v, bn->running_mean, c), s->running_mean, c, logical);
    check(v, "running var", DOWN_F(v, bn->running_var, c), s->running_var, c, logical);
}

/* Sums in double about s = running_mean; the layer's mean is 100 times its deviation, s near it or 0. */
static void finalize_case(int64_t rows, int64_t logical, double level, bool far, bool unbiased)
{
    if (!problem(false, "bn finalize rows%d c%d level%g%s%s", (int)rows, (int)logical, level, far ? " far" : "", unbiased ? " unbiased" : "")) return;
    if (level == 0 && rows == 1) expect_zeros();
    const int64_t c = phys(logical);
    layer l = { .h = bn_make(c, logical), .total = mem_d(2 * c + 1) };
    l.h->unbiased = unbiased;
    double *mean = mem_d(c), *var = mem_d(c), *kept = mem_d(c);
    float *y = random_floats(rows, c, logical);
    for (int64_t i = 0; i < logical; i++) l.h->running_mean[i] = far ? 0.f : (float)(level + 0.3 * l.h->running_mean[i]);
    for (int64_t i = 0; i < rows * c; i++) {
        if (i % c < logical) y[i] += (float)level;
        mean[i % c] += y[i] / (double)rows;
    }
    for (int64_t i = 0; i < rows * c; i++) {
        const double t = (double)y[i] - l.h->running_mean[i % c];
        var[i % c] += (y[i] - mean[i % c]) * (y[i] - mean[i % c]) / (double)rows;
        l.total[i % c] += t;
        l.total[c + i % c] += t * t;
    }
    l.total[2 * c] = (double)rows;
    for (int64_t i = 0; i < c; i++) kept[i] = unbiased && rows > 1 ? var[i] * (double)rows / (double)(rows - 1) : var[i];
    const statistics want = statistics_of(l.h, mean, var, kept);
    for (variant *v = first(0); v; v = next(v)) {
        en_bn bn = layer_up(v, &l);
        RUN(v, v->be->ops->bn_finalize(v->be, &bn));
        check_statistics(v, &bn, &want, logical);
    }
}

static void finalize_gives_the_statistics_of_the_batch(void **state)
{
    (void)state;
    static const int channels[] = { 16, 24, 1, 1280, 100 };
    for (int k = 0; k < 5; k++)
        for (int far = 0; far < 2; far++)
            for (int unbiased = 0; unbiased < 2; unbiased++) {
                finalize_case(113, channels[k], 0, far, unbiased);
                finalize_case(1000, channels[k], 100, far, unbiased);
                finalize_case(2, channels[k], 1, far, unbiased);
            }
    finalize_case(1, 24, 3, false, false);                      /* a variance of exactly 0 */
    verdict();
}

/* A constant channel: S2/r - (S1/r)^2 may come out a little below 0; rstd must still be 1/sqrt(eps). */
static void a_constant_channel_has_variance_zero_and_not_less(void **state)
{
    (void)state;
    if (problem(false, "bn constant channel")) {
        const int64_t c = 16, rows = 7;
        layer l = { .h = bn_make(c, c), .total = mem_d(2 * c + 1) };
        l.h->eps = 1e-12f;                                      /* below the rounding of S2/r - (S1/r)^2 about 1000 */
        for (int64_t i = 0; i < c; i++) {
            l.h->running_mean[i] = 0;
            const double at = 1000 + uniform();
            for (int r = 0; r < rows; r++) l.total[i] += at, l.total[c + i] += at * at;
        }
        l.total[2 * c] = (double)rows;
        for (variant *v = first(0); v; v = next(v)) {
            en_bn bn = layer_up(v, &l);
            RUN(v, v->be->ops->bn_finalize(v->be, &bn));
            const float *rstd = DOWN_F(v, bn.rstd, c), *rv = DOWN_F(v, bn.running_var, c);
            for (int64_t i = 0; i < c; i++)
                if (!(rstd[i] > 0 && rstd[i] <= 1.0001e6f && rv[i] >= 0)) failed("[%s] channel %d: rstd %g running var %g", v->name, (int)i, (double)rstd[i], (double)rv[i]);
        }
    }
    verdict();
}

static void evaluation_and_an_empty_group_take_the_running_statistics(void **state)
{
    (void)state;
    for (int empty = 0; empty < 2; empty++) {
        if (!problem(false, "bn from running%s", empty ? ": empty group" : "")) continue;
        const int64_t c = 48, logical = 40;
        layer l = { .h = bn_make(c, logical), .total = mem_d(2 * c + 1) };
        double *mean = mem_d(c), *var = mem_d(c);
        for (int64_t i = 0; i < c; i++) mean[i] = l.h->running_mean[i], var[i] = l.h->running_var[i];
        const statistics want = statistics_of(l.h, mean, var, NULL);
        for (variant *v = first(0); v; v = next(v)) {
            en_bn bn = layer_up(v, &l);
            if (empty) RUN(v, v->be->ops->bn_finalize(v->be, &bn));
            else RUN(v, v->be->ops->bn_from_running(v->be, &bn));
            check_statistics(v, &bn, &want, logical);
        }
    }
    verdict();
}

static void backward_coefficients_follow_their_formulas(void **state)
{
    (void)state;
    for (int64_t logical = 16; logical <= 1280; logical *= 5) {
        if (!problem(false, "bn backward c%d", (int)logical)) continue;
        const int64_t c = phys(logical);
        layer l = { .h = bn_make(c, logical), .total = mem_d(2 * c + 1), .dgamma = random_floats(1, c, logical), .dbeta = random_floats(1, c, logical) };
        for (int64_t i = 0; i < 2 * c; i++) l.total[i] = i % c < logical ? 30 * uniform() : 0;
        l.total[2 * c] = 100;                                   /* rows, as forward left them */
        bounded dgamma = fresh(c), dbeta = fresh(c), ga = fresh(c), gb = fresh(c), gc = fresh(c);
        const double r = l.total[2 * c];
        for (int64_t i = 0; i < c; i++) {
            const double rstd = l.h->rstd[i], s1 = l.total[i], s2 = rstd * l.total[c + i], a = (double)l.h->gamma[i] * rstd, b = -a * rstd * s2 / r;
            expect(&dbeta, i, l.dbeta[i] + s1, fabs(l.dbeta[i]) + fabs(s1));
            expect(&dgamma, i, l.dgamma[i] + s2, fabs(l.dgamma[i]) + fabs(s2));
            expect(&ga, i, a, fabs(a));
            expect(&gb, i, b, fabs(b));
            expect(&gc, i, -a * s1 / r - b * l.h->mean[i], fabs(a * s1 / r) + fabs(b * l.h->mean[i]));
        }
        for (variant *v = first(0); v; v = next(v)) {
            en_bn bn = layer_up(v, &l);
            bn.mean = (float *)UP_F(v, l.h->mean, c), bn.rstd = (float *)UP_F(v, l.h->rstd, c);
            RUN(v, v->be->ops->bn_backward_local(v->be, &bn));
            RUN(v, v->be->ops->bn_backward_finalize(v->be, &bn));
            check(v, "dgamma", DOWN_F(v, bn.dgamma, c), dgamma, c, logical);
            check(v, "dbeta", DOWN_F(v, bn.dbeta, c), dbeta, c, logical);
            check(v, "ga", DOWN_F(v, bn.ga, c), ga, c, logical);
            check(v, "gb", DOWN_F(v, bn.gb, c), gb, c, logical);
            check(v, "gc", DOWN_F(v, bn.gc, c), gc, c, logical);
        }
    }
    verdict();
}

/* All of it strung together as a step does, against algorithm 1 of the paper and its chain rule: a pointwise pass leaves
 * y and its sums; bn_finalize; residual_forward applies bn(y); residual_backward leaves the sums of dz; dgamma, dbeta;
 * pointwise_backward with an identity matrix gives back dy itself.  The two-rank case feeds the sums of two halves.
 * Bounds: each float coefficient is within 4u of exact (above), and so is each product: 16u of the magnitudes, where the
 * batch statistics carry the rounding of the float sums, gamma_rows relative to the deviations. */
static void a_whole_layer_is_the_textbooks(void **state)
{
    (void)state;
    for (int ranks = 1; ranks <= 2; ranks++)
        for (int far = 0; far < 2; far++) {
            const int64_t rows = 98, c = 32, half = rows / ranks, size = rows * c;
            if (!problem(false, "bn layer ranks%d%s", ranks, far ? " mean 100" : "")) continue;
            float *y = random_rows(rows, c, c), *g = random_rows(rows, c, c), *identity = mem_f(c * c), *zeros = mem_f(c * c), *zero_c = mem_f(c);
            for (int64_t i = 0; i < c; i++) identity[i * c + i] = 1;
            if (far) for (int64_t i = 0; i < size; i++) y[i] += 100;
            storable(y, size);
            host_bn *h = bn_make(c, c);
            if (far) for (int64_t i = 0; i < c; i++) h->running_mean[i] += 100;
            double *gamma = mem_d(c), *beta = mem_d(c), *mean = mem_d(c), *var = mem_d(c), *o = mem_d(size), *dy = mem_d(size), *dgamma = mem_d(c), *dbeta = mem_d(c);
            const bounded yd = exactly(y, size), gd = exactly(g, size);
            for (int64_t i = 0; i < c; i++) gamma[i] = h->gamma[i], beta[i] = h->beta[i];
            oracle_bn(rows, c, yd.v, gamma, beta, (double)h->eps, mean, var, o);
            oracle_bn_backward(rows, c, yd.v, gamma, (double)h->eps, gd.v, dy, dgamma, dbeta);
            bounded want_o = fresh(size), want_dy = fresh(size), want_dgamma = fresh(c), want_dbeta = fresh(c);
            want_o.v = o, want_dy.v = dy, want_dgamma.v = dgamma, want_dbeta.v = dbeta;
            const double relative = rounding((double)rows) + 16 * UNIT;
            for (int64_t i = 0; i < size; i++) {
                const int64_t k = i % c;
                const double rstd = 1 / sqrt(var[k] + (double)h->eps), xhat = fabs(y[i] - mean[k]) * rstd, big = (fabs((double)y[i]) + fabs(mean[k])) * rstd;
                want_o.e[i] = fabs(gamma[k]) * (relative * (xhat + 2) + 4 * UNIT * big) + 4 * UNIT * fabs(beta[k]);
                const double s2 = fabs(dgamma[k]) / (double)rows;
                want_dy.e[i] = fabs(gamma[k]) * rstd * (relative * (fabs((double)g[i]) + 1 + 2 * xhat) + 8 * UNIT * s2 * big);
                want_dgamma.e[k] += relative * fabs((double)g[i]) * (xhat + 1);
                want_dbeta.e[k] += relative * fabs((double)g[i]);
            }
            want_o = stored(want_o);
            want_dy = stored(stored(want_dy));                  /* before and after the identity */
            const en_conv_geom rg = { .n = 1, .h = rows, .w = 1, .c = c, .oh = rows, .ow = 1, .oc = c };
            for (variant *v = first(0); v; v = next(v)) {
                reserve(v, &rg);
                workspace(v, EN_WORK_POINTWISE_BACKWARD, &rg);
                layer l = { .h = h, .total = mem_d(2 * c + 1), .dgamma = zero_c, .dbeta = zero_c };
                en_bn bn = layer_up(v, &l);
                void *y_dev = out_a(v, size), *o_dev = out_a(v, size), *dy_dev = out_a(v, size);
                const void *x_dev = up_a(v, y, size), *g_dev = up_a(v, g, size);
                const float *w_dev = UP_F(v, identity, c * c);
                float *dw = BOTH_F(v, zeros, c * c);
                double *total = mem_d(2 * c + 1);
                for (int rank = 0; rank < ranks; rank++) {      /* each rank's shard leaves its sums; the caller adds them */
                    RUN(v, v->be->ops->pointwise_forward(v->be, half, c, c, row_a(v, x_dev, rank * half * c), w_dev,
                                                         (void *)row_a(v, y_dev, rank * half * c), &bn));
                    const double *local = DOWN_D(v, bn.local, 2 * c + 1);
                    for (int64_t i = 0; i <= 2 * c; i++) total[i] += local[i];
                }
                RUN(v, v->be->ops->upload(v->be, bn.total, total, (size_t)(2 * c + 1) * sizeof *total));
                RUN(v, v->be->ops->bn_finalize(v->be, &bn));
                const en_operand operand = { .y = y_dev, .bn = &bn, .act = EN_ACT_NONE };
                RUN(v, v->be->ops->residual_forward(v->be, 1, rows, c, &operand, NULL, NULL, o_dev));
                check(v, "o", down_a(v, o_dev, size), want_o, c, c);
                memset(total, 0, (size_t)(2 * c) * sizeof *total);
                for (int rank = 0; rank < ranks; rank++) {
                    RUN(v, v->be->ops->residual_backward(v->be, 1, half, c, row_a(v, g_dev, rank * half * c), NULL, row_a(v, y_dev, rank * half * c), &bn));
                    RUN(v, v->be->ops->bn_backward_local(v->be, &bn));
                    const double *local = DOWN_D(v, bn.local, 2 * c);
                    for (int64_t i = 0; i < 2 * c; i++) total[i] += local[i];
                }
                RUN(v, v->be->ops->upload(v->be, bn.total, total, (size_t)(2 * c) * sizeof *total));
                RUN(v, v->be->ops->bn_backward_finalize(v->be, &bn));
                const en_grad grad = { .stored = g_dev, .y = y_dev, .bn = &bn, .hw = rows };
                RUN(v, v->be->ops->pointwise_backward(v->be, rows, c, c, x_dev, w_dev, &grad, NULL, dy_dev, dw));
                check(v, "dy", down_a(v, dy_dev, size), want_dy, c, c);
                check(v, "dgamma", DOWN_F(v, bn.dgamma, c), want_dgamma, c, c);
                check(v, "dbeta", DOWN_F(v, bn.dbeta, c), want_dbeta, c, c);
            }
        }
    verdict();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finalize_gives_the_statistics_of_the_batch),
        cmocka_unit_test(a_constant_channel_has_variance_zero_and_not_less),
        cmocka_unit_test(evaluation_and_an_empty_group_take_the_running_statistics),
        cmocka_unit_test(backward_coefficients_follow_their_formulas),
        cmocka_unit_test(a_whole_layer_is_the_textbooks),
    };
    return cmocka_run_group_tests(tests, open_variants, close_variants);
}
