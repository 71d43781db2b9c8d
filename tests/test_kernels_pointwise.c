/* test_kernels_pointwise.c - 1x1 convolutions, forward and backward, with what backward forms on load. */
#include "fixture.h"

#include <stdlib.h>

/* |x| |wt|, (rows, co) */
static double *magnitude_of(const float *x, const float *wt, int64_t rows, int64_t ci, int64_t co)
{
    const en_conv_geom g = oracle_rows(rows, ci, co);
    double *ax = mem_d(rows * ci), *aw = mem_d(ci * co), *y = mem_d(rows * co);
    for (int64_t i = 0; i < rows * ci; i++) ax[i] = fabs((double)x[i]);
    for (int64_t i = 0; i < ci * co; i++) aw[i] = fabs((double)wt[i]);
    oracle_conv(&g, ax, aw, y);
    return y;
}

/* Batch norm's sums of the y that was stored, as everywhere; but the fold `gram` takes them from x^T x and the weights:
 * then they are those of y before it was rounded, and each product of two elements of y was summed as |x|^2 |wt|^2. */
static bounded sums_of(const variant *v, const host_bn *h, const float *y, const double *magnitude, int64_t rows, int64_t ci)
{
    bounded want = forward_sums(h, y, rows);
    if (!v->gram) return want;
    const int64_t c = h->c;
    const double gamma = rounding((double)rows) + rounding(2 * (double)ci), u = bf16(v) ? STORED_UNIT : UNIT;
    for (int64_t i = 0; i < rows * c; i++) {
        const int64_t k = i % c;
        const double s = h->running_mean[k], a = magnitude[i] + fabs(s), off = u * fabs((double)y[i]), off2 = 2 * fabs((double)y[i] - s) * off;
        want.e[k] += gamma * a;
        want.e[c + k] += gamma * a * a + off * off;
        want.s[k] += off, want.q[k] = hypot(want.q[k], off);
        want.s[c + k] += off2, want.q[c + k] = hypot(want.q[c + k], off2);
    }
    for (int64_t i = 0; i < 2 * c && !bf16(v); i++) want.e[i] += want.s[i];
    want.inexact = true;
    return want;
}

enum { NO_BN, WITH_BN, ALL_BITS };                              /* all bits: operands that are no bf16 numbers */

static void forward_case(bool exact, int64_t rows, int64_t ci, int64_t co, int with_bn)
{
    static const char *const kinds[] = { " no bn", "", " all bits" };
    if (!problem(exact, "pointwise forward rows%d ci%d co%d%s", (int)rows, (int)ci, (int)co, kinds[with_bn]) || !affordable(rows * ci * co)) return;
    if (with_bn == ALL_BITS) floats_only();
    const int64_t cip = phys(ci), cop = phys(co);
    const en_conv_geom g = oracle_rows(rows, cip, cop);
    float *x = random_rows(rows, cip, ci), *wt = random_rows(cip, cop, co);
    memset(wt + ci * cop, 0, (size_t)((cip - ci) * cop) * sizeof *wt);
    const host_bn *h = bn_make(cop, co);
    const bounded y = stored(bilinear(oracle_conv, &g, exactly(x, rows * cip), exactly(wt, cip * cop), rows * cop, ci));

    for (variant *v = first(rows * ci * co); v; v = next(v)) {
        reserve(v, &(en_conv_geom){ .n = 1, .h = rows, .w = 1, .c = cip, .oh = rows, .ow = 1, .oc = cop });
        en_bn bn = bn_up(v, h);
        void *dy = out_a(v, rows * cop);
        RUN(v, v->be->ops->pointwise_forward(v->be, rows, cip, cop, up_a(v, x, rows * cip), UP_F(v, wt, cip * cop), dy, with_bn ? &bn : NULL));
        const float *got = down_a(v, dy, rows * cop);
        check(v, "y", got, y, cop, co);
        if (with_bn) check_forward_sums(v, &bn, h, got, rows);
    }
}

enum { NO_ADD, ADD, ADD_IN_PLACE };

static void backward_case(bool exact, int64_t n, int64_t hw, int64_t ci, int64_t co, int kind, int add)
{
    static const char *const kinds[] = { "", " drop", " pooled" }, *const adds[] = { "", " add", " add in place" };
    if (!problem(exact, "pointwise backward n%d hw%d ci%d co%d%s%s", (int)n, (int)hw, (int)ci, (int)co, kinds[kind], adds[add]) || !affordable(2 * n * hw * ci * co)) return;
    const int64_t rows = n * hw, cip = phys(ci), cop = phys(co);
    const en_conv_geom g = oracle_rows(rows, cip, cop);
    float *x = random_rows(rows, cip, ci), *wt = random_rows(cip, cop, co), *skip_grad = random_rows(rows, cip, ci), *start = random_rows(cip, cop, co);
    memset(wt + ci * cop, 0, (size_t)((cip - ci) * cop) * sizeof *wt);
    memset(start + ci * cop, 0, (size_t)((cip - ci) * cop) * sizeof *start);
    const host_grad d = grad_make(n, hw, cop, co, kind);
    const bounded dy = stored(grad_dy(&d));
    bounded dx = bilinear(oracle_conv_dx, &g, dy, exactly(wt, cip * cop), rows * cip, co);
    if (add != NO_ADD) dx = accumulated(dx, skip_grad, co);
    dx = stored(dx);
    const bounded dwt = accumulated(bilinear(oracle_conv_dwt, &g, exactly(x, rows * cip), dy, cip * cop, rows), start, rows);

    for (variant *v = first(2 * rows * ci * co); v; v = next(v)) {
        const en_conv_geom rg = { .n = n, .h = hw, .w = 1, .c = cip, .oh = hw, .ow = 1, .oc = cop };
        reserve(v, &rg);
        workspace(v, EN_WORK_POOLED_BACKWARD, &rg);            /* that of a gradient without bn->fold */
        en_bn bn;
        const en_grad grad = grad_up(v, &d, &bn);
        float *dwt_dev = BOTH_F(v, start, cip * cop);
        void *dx_dev = add == ADD_IN_PLACE ? both_a(v, skip_grad, rows * cip) : out_a(v, rows * cip);
        const void *add_dev = add == ADD_IN_PLACE ? dx_dev : add == ADD ? up_a(v, skip_grad, rows * cip) : NULL;
        RUN(v, v->be->ops->pointwise_backward(v->be, rows, cip, cop, up_a(v, x, rows * cip), UP_F(v, wt, cip * cop), &grad, add_dev, dx_dev, dwt_dev));
        check(v, "dx", down_a(v, dx_dev, rows * cip), dx, cip, ci);
        check(v, "dwt", DOWN_F(v, dwt_dev, cip * cop), dwt, cop, co);
    }
}

/* The expansions of B0 and B7, and their heads. */
static void forward_is_within_the_rounding_bound_at_the_shapes_of_the_models(void **state)
{
    (void)state;
    for (int k = 0; k < n_mbconv_rows; k++) {
        const mbconv_row *r = &mbconv_rows[k];
        const int64_t rows = fitting(r->mid > 1000 ? 25 : 147, r->ci * r->mid);
        if (r->expand > 1) forward_case(k % 3 == 0, rows, r->ci, r->mid, WITH_BN);
    }
    forward_case(false, 50, 320, 1280, WITH_BN);
    forward_case(false, 25, 640, 2560, WITH_BN);
    verdict();
}

static void backward_is_within_the_rounding_bound_at_the_shapes_of_the_models(void **state)
{
    (void)state;
    for (int k = 0; k < n_mbconv_rows; k++) {
        const mbconv_row *r = &mbconv_rows[k];
        if (r->expand > 1) backward_case(k % 3 == 0, 3, fitting(r->mid > 1000 ? 9 : 42, 6 * r->ci * r->mid), r->ci, r->mid, PLAIN, k % 3);
    }
    backward_case(false, 3, 16, 320, 1280, POOLED, NO_ADD);
    backward_case(false, 2, 9, 640, 2560, POOLED, NO_ADD);
    verdict();
}

/* Forward and backward of one expansion, as a step runs them: y is what forward wrote, and forward may leave in bn->fold
 * what backward then uses in place of y.  With a, b, c for ga, gb, gc that fold computes
 *
 *     dx = dz (wt a)^T + x H + k (+ add)    H = (wt b) wt^T    k = c wt^T    (wt a), (wt b), H rounded to the storage type,
 *     dwt = (x^T dz) a + (x^T x wt) b + (sum x) c^T                          one of the two products of dx stored between
 *
 * where y's place is taken by sums of |x| |wt|, which is what the roundings of float are relative to. */
typedef struct { bounded dx, dwt; } gradients;

static gradients folded(const host_bn *bn, const float *x, const float *wt, const float *dz, const float *add, const float *start, int64_t rows, int64_t ci, int64_t co)
{
    const en_conv_geom g = oracle_rows(rows, ci, co), square = oracle_rows(ci, ci, co), through = oracle_rows(rows, ci, ci);
    bounded wa = exactly(wt, ci * co), wb = fresh(ci * co), dz_b = exactly(dz, rows * co), x_b = exactly(x, rows * ci);
    double *dy = mem_d(rows * co), *k = mem_d(ci), *y = mem_d(rows * co), *w = mem_d(ci * co);
    const double *magnitude = magnitude_of(x, wt, rows, ci, co);
    double *all = mem_d(rows * co), *ax = mem_d(rows * ci), *aw = mem_d(ci * co), *e = mem_d(rows * ci);
    for (int64_t i = 0; i < ci * co; i++) {
        w[i] = wt[i];
        aw[i] = fabs(w[i]);
        wa.v[i] = w[i] * bn->ga[i % co];
        wb.v[i] = w[i] * bn->gb[i % co];
        k[i / co] += w[i] * bn->gc[i % co];
    }
    for (int64_t i = 0; i < rows * ci; i++) ax[i] = fabs((double)x[i]);
    const bounded h = stored(bilinear(oracle_conv_dx, &square, stored(wb), exactly(wt, ci * co), ci * ci, co));
    oracle_conv(&g, x_b.v, w, y);
    for (int64_t i = 0; i < rows * co; i++) {
        dy[i] = bn->ga[i % co] * (double)dz[i] + bn->gb[i % co] * y[i] + bn->gc[i % co];
        all[i] = fabs(bn->ga[i % co] * (double)dz[i]) + fabs(bn->gb[i % co] * magnitude[i]) + fabs((double)bn->gc[i % co]);
    }
    const bounded left = bilinear(oracle_conv_dx, &g, dz_b, stored(wa), rows * ci, co), right = bilinear(oracle_conv, &through, x_b, h, rows * ci, ci);
    gradients f = { fresh(rows * ci), fresh(ci * co) };
    const double gamma = rounding((double)co) + rounding((double)ci) + rounding(8);
    oracle_conv_dx(&g, all, aw, e);
    for (int64_t i = 0; i < rows * ci; i++) {
        f.dx.v[i] = left.v[i] + right.v[i] + k[i % ci];
        f.dx.e[i] = gamma * e[i];
        carry(&f.dx, i, left, i, 1), carry(&f.dx, i, right, i, 1);
        const double between = STORED_UNIT * (fmax(fabs(left.v[i]), fabs(right.v[i] + k[i % ci])) + (add ? fabs((double)add[i]) : 0));
        f.dx.s[i] += between, f.dx.q[i] += between;
    }
    if (add) f.dx = accumulated(f.dx, add, co);
    f.dx = stored(f.dx);
    const double gamma_w = rounding((double)rows) + rounding((double)ci) + rounding(8);
    oracle_conv_dwt(&g, x_b.v, dy, f.dwt.v);
    oracle_conv_dwt(&g, ax, all, f.dwt.e);
    for (int64_t i = 0; i < ci * co; i++) f.dwt.e[i] *= gamma_w;
    f.dwt = accumulated(f.dwt, start, rows);
    return f;
}

static void expansion_case(int64_t rows, int64_t ci, int64_t co, int add)
{
    if (!problem(false, "pointwise expansion rows%d ci%d co%d%s", (int)rows, (int)ci, (int)co, add ? " add" : "") || !affordable(3 * rows * ci * co)) return;
    const int64_t cip = phys(ci), cop = phys(co);
    const en_conv_geom g = oracle_rows(rows, cip, cop), rg = { .n = 1, .h = rows, .w = 1, .c = cip, .oh = rows, .ow = 1, .oc = cop };
    float *x = random_rows(rows, cip, ci), *wt = random_rows(cip, cop, co), *skip_grad = random_rows(rows, cip, ci), *start = random_rows(cip, cop, co);
    memset(wt + ci * cop, 0, (size_t)((cip - ci) * cop) * sizeof *wt);
    memset(start + ci * cop, 0, (size_t)((cip - ci) * cop) * sizeof *start);
    host_grad d = grad_make(1, rows, cop, co, PLAIN);
    const bounded y = stored(bilinear(oracle_conv, &g, exactly(x, rows * cip), exactly(wt, cip * cop), rows * cop, ci));
    bounded dy = fresh(rows * cop);
    for (int64_t i = 0; i < rows * cop; i++) {
        const host_bn *bn = d.of.bn;
        const double a = (double)bn->ga[i % cop] * d.stored[i], b = bn->gb[i % cop] * y.v[i], c = bn->gc[i % cop];
        dy.v[i] = a + b + c;
        dy.e[i] = fabs((double)bn->gb[i % cop]) * y.e[i] + rounding(3) * (fabs(a) + fabs(b) + fabs(c));
        carry(&dy, i, y, i, bn->gb[i % cop]);
    }
    dy = stored(dy);
    bounded dx = bilinear(oracle_conv_dx, &g, dy, exactly(wt, cip * cop), rows * cip, co);
    if (add) dx = accumulated(dx, skip_grad, co);
    dx = stored(dx);
    const bounded dwt = accumulated(bilinear(oracle_conv_dwt, &g, exactly(x, rows * cip), dy, cip * cop, rows), start, rows);
    const gradients f = folded(d.of.bn, x, wt, d.stored, add ? skip_grad : NULL, start, rows, cip, cop);
    const double *magnitude = magnitude_of(x, wt, rows, cip, cop);
    for (variant *v = first(3 * rows * ci * co); v; v = next(v)) {
        reserve(v, &rg);
        workspace(v, EN_WORK_POINTWISE_BACKWARD, &rg);
        en_bn bn = bn_up(v, d.of.bn);
        const int64_t fold = v->be->ops->fold_floats(v->be, rows, cip, cop);
        if (fold) bn.fold = OUT_F(v, fold);
        void *y_dev = out_a(v, rows * cop), *dx_dev = add == ADD_IN_PLACE ? both_a(v, skip_grad, rows * cip) : out_a(v, rows * cip);
        const void *x_dev = up_a(v, x, rows * cip), *add_dev = add == ADD_IN_PLACE ? dx_dev : add == ADD ? up_a(v, skip_grad, rows * cip) : NULL;
        const float *wt_dev = UP_F(v, wt, cip * cop);
        float *dwt_dev = BOTH_F(v, start, cip * cop);
        RUN(v, v->be->ops->pointwise_forward(v->be, rows, cip, cop, x_dev, wt_dev, y_dev, &bn));
        const float *got = down_a(v, y_dev, rows * cop);
        check(v, "y", got, y, cop, co);
        check_sums(v, "bn->local", DOWN_D(v, bn.local, 2 * cop + 1), sums_of(v, d.of.bn, got, magnitude, rows, cip), cop, co);
        const en_grad grad = { .stored = up_a(v, d.stored, rows * cop), .y = y_dev, .bn = &bn, .hw = rows };
        RUN(v, v->be->ops->pointwise_backward(v->be, rows, cip, cop, x_dev, wt_dev, &grad, add_dev, dx_dev, dwt_dev));
        check(v, "dx", down_a(v, dx_dev, rows * cip), fold ? either(dx, f.dx) : dx, cip, ci);
        check(v, "dwt", DOWN_F(v, dwt_dev, cip * cop), fold ? either(dwt, f.dwt) : dwt, cop, co);
    }
}

/* Many rows, so that the folds pay; and few, where a backend may do without. */
static void an_expansion_there_and_back_is_within_the_bound_of_its_fold(void **state)
{
    (void)state;
    static const int channels[][2] = { { 16, 96 }, { 24, 144 }, { 40, 240 }, { 8, 48 }, { 13, 77 }, { 32, 32 }, { 80, 480 }, { 112, 672 } };
    for (int k = 0; k < 8; k++) {
        const int64_t ci = channels[k][0], co = channels[k][1];
        expansion_case(fitting(600, 3 * ci * co), ci, co, k % 3);
        expansion_case(fitting(257, 3 * ci * co), ci, co, (k + 1) % 3);
        expansion_case(3, ci, co, (k + 2) % 3);
    }
    expansion_case(4500, 8, 8, ADD);                            /* more rows than one part of x^T x takes */
    verdict();
}

/* The last batch of an epoch is smaller than what was planned for, and may be too small to fold: the workspace suffices. */
static void a_smaller_batch_than_planned_needs_no_more_workspace(void **state)
{
    (void)state;
    const int64_t ci = 64, co = 96, most = 400;
    for (int64_t rows = 100; rows <= 106; rows += 3) {          /* ci*ci/40 = 102 rows fold no more */
        if (!problem(false, "pointwise smaller batch rows%d", (int)rows) || !affordable(3 * rows * ci * co)) continue;
        const en_conv_geom planned = { .n = most, .h = 1, .w = 1, .c = ci, .oh = 1, .ow = 1, .oc = co };
        float *x = random_rows(rows, ci, ci), *wt = random_rows(ci, co, co), *start = random_rows(ci, co, co);
        const host_grad d = grad_make(1, rows, co, co, PLAIN);
        const gradients f = folded(d.of.bn, x, wt, d.stored, NULL, start, rows, ci, co);
        for (variant *v = first(3 * rows * ci * co); v; v = next(v)) {
            reserve(v, &planned);
            workspace(v, EN_WORK_POINTWISE_BACKWARD, &planned);
            en_bn bn = bn_up(v, d.of.bn);
            const int64_t fold = v->be->ops->fold_floats(v->be, most, ci, co);
            if (fold) bn.fold = OUT_F(v, fold);
            const void *x_dev = up_a(v, x, rows * ci);
            const float *wt_dev = UP_F(v, wt, ci * co);
            void *y_dev = out_a(v, rows * co), *dx_dev = out_a(v, rows * ci);
            float *dwt_dev = BOTH_F(v, start, ci * co);
            RUN(v, v->be->ops->pointwise_forward(v->be, rows, ci, co, x_dev, wt_dev, y_dev, &bn));
            const en_grad grad = { .stored = up_a(v, d.stored, rows * co), .y = y_dev, .bn = &bn, .hw = rows };
            RUN(v, v->be->ops->pointwise_backward(v->be, rows, ci, co, x_dev, wt_dev, &grad, NULL, dx_dev, dwt_dev));
            if (bf16(v)) continue;                              /* its bounds: an_expansion_there_and_back */
            check(v, "dx", down_a(v, dx_dev, rows * ci), f.dx, ci, ci);
            check(v, "dwt", DOWN_F(v, dwt_dev, ci * co), f.dwt, co, co);
        }
    }
    verdict();
}

/* x = 10 + noise: x^T x is 300 times its covariance.  The variance of y = x wt keeps 5e-3 even where tensor cores cut off each of
 * 4096/16 sums instead of rounding it, 2^-24 * 256 / 2 of (mean/deviation)^2 of y, which is kept below 500 here. */
static void a_fold_survives_inputs_far_above_their_deviation(void **state)
{
    (void)state;
    const int64_t rows = 700, ci = 16, co = 32;
    if (problem(false, "pointwise expansion of x far from 0") && affordable(3 * rows * ci * co)) {
        float *x = random_rows(rows, ci, ci), *wt = random_rows(ci, co, co);
        for (int64_t i = 0; i < rows * ci; i++) x[i] += 10;
        storable(x, rows * ci);
        for (int64_t o = 0; o < co; o++) wt[o] = 1.5f, wt[co + o] = -1.5f;     /* enough deviation in every channel */
        const host_bn *h = bn_make(co, co);
        const en_conv_geom g = oracle_rows(rows, ci, co);
        const bounded y = bilinear(oracle_conv, &g, exactly(x, rows * ci), exactly(wt, ci * co), rows * co, ci);
        for (variant *v = first(3 * rows * ci * co); v; v = next(v)) {
            const int64_t fold = v->be->ops->fold_floats(v->be, rows, ci, co);
            if (!fold || !v->gram) continue;
            reserve(v, &(en_conv_geom){ .n = 1, .h = rows, .w = 1, .c = ci, .oh = rows, .ow = 1, .oc = co });
            en_bn bn = bn_up(v, h);
            bn.fold = OUT_F(v, fold);
            RUN(v, v->be->ops->pointwise_forward(v->be, rows, ci, co, up_a(v, x, rows * ci), UP_F(v, wt, ci * co), out_a(v, rows * co), &bn));
            const double *local = DOWN_D(v, bn.local, 2 * co + 1);
            for (int64_t o = 0; o < co; o++) {
                double mean = 0, var = 0;
                for (int64_t r = 0; r < rows; r++) mean += y.v[r * co + o] / (double)rows;
                for (int64_t r = 0; r < rows; r++) var += (y.v[r * co + o] - mean) * (y.v[r * co + o] - mean) / (double)rows;
                const double m = local[o] / (double)rows, got = local[co + o] / (double)rows - m * m, at = m + h->running_mean[o];
                if (mean * mean > 500 * var) continue;
                if (!(fabs(got - var) <= 5e-3 * var)) failed("[%s] variance of channel %d: got %.9g want %.9g", v->name, (int)o, got, var);
                if (!(fabs(at - mean) <= 1e-5 * (10 * (double)ci))) failed("[%s] mean of channel %d: got %.9g want %.9g", v->name, (int)o, at, mean);
            }
        }
    }
    verdict();
}

/* Rows and channels that are no multiple of any block: every remainder of a register block is met by 1..34 rows. */
static void forward_handles_every_remainder(void **state)
{
    (void)state;
    static const int rows[] = { 113, 225, 449, 1000 }, channels[][2] = { { 1, 1 }, { 16, 16 }, { 17, 31 }, { 48, 80 }, { 33, 112 }, { 100, 144 }, { 5, 177 } };
    for (size_t c = 0; c < sizeof channels / sizeof *channels; c++) {
        for (int r = 1; r <= 34; r++) forward_case(true, r, channels[c][0], channels[c][1], WITH_BN);
        for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
            forward_case(false, rows[r], channels[c][0], channels[c][1], WITH_BN);
            forward_case(true, rows[r], channels[c][0], channels[c][1], NO_BN);
        }
    }
    for (int c = 16; c <= 16 * 13; c += 16) forward_case(true, 15, c, 16 * 14 - c, WITH_BN), forward_case(false, 15, c, 16 * 14 - c, ALL_BITS);
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
        const bounded want = stored(bilinear(oracle_conv, &g, exactly(x, rows * ci), exactly(wt, ci * co), rows * co, ci));
        for (variant *v = first(rows * ci * co); v; v = next(v)) {
            reserve(v, &(en_conv_geom){ .n = 1, .h = rows, .w = 1, .c = ci, .oh = rows, .ow = 1, .oc = co });
            en_bn bn = bn_up(v, h);
            void *y_dev = out_a(v, rows * co);
            RUN(v, v->be->ops->pointwise_forward(v->be, rows, ci, co, up_a(v, x, rows * ci), UP_F(v, wt, ci * co), y_dev, &bn));
            const float *y = down_a(v, y_dev, rows * co);
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
            RUN(v, v->be->ops->pointwise_forward(v->be, 0, 16, 48, out_a(v, 0), UP_F(v, wt, 16 * 48), out_a(v, 0), &bn));
            check_forward_sums(v, &bn, h, NULL, 0);
            RUN(v, v->be->ops->pointwise_backward(v->be, 0, 16, 48, out_a(v, 0), UP_F(v, wt, 16 * 48), &grad, NULL, out_a(v, 0), dwt));
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
            void *y = out_a(v, rows * 64), *dx = out_a(v, rows * 64);
            float *dwt = OUT_F(v, 64 * 64);
            en_bn grad_bn, bn = bn_up(v, h);
            const en_grad grad = grad_up(v, &d, &grad_bn);
            for (int side = 0; side < 2; side++) {
                const int64_t ci = side ? odd : 32, co = side ? 32 : odd;
                if (v->be->ops->pointwise_forward(v->be, rows, ci, co, up_a(v, x, rows * 64), UP_F(v, wt, 64 * 64), y, &bn) != EN_EINVAL ||
                    v->be->ops->pointwise_backward(v->be, rows, ci, co, up_a(v, x, rows * 64), UP_F(v, wt, 64 * 64), &grad, NULL, dx, dwt) != EN_EINVAL)
                    failed("ci %d co %d was taken", (int)ci, (int)co);
            }
            const uint32_t *words[] = { down(v, y, rows * 64 * 2), down(v, dx, rows * 64 * 2), down(v, dwt, rows * 64 * 2), down(v, bn.local, 128 * 8) };
            for (int k = 0; k < 4; k++)
                for (int i = 0; i < 64 * 2; i++)
                    if (words[k][i] != 0xffffffffu) { failed("output %d was written", k); break; }
            en_error_clear();
        }
    }
    verdict();
}

int main(void)
{
    setenv("EN_FOLD_LEAST", "0", 1);                          /* small problems fold, too */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_is_within_the_rounding_bound_at_the_shapes_of_the_models),
        cmocka_unit_test(backward_is_within_the_rounding_bound_at_the_shapes_of_the_models),
        cmocka_unit_test(an_expansion_there_and_back_is_within_the_bound_of_its_fold),
        cmocka_unit_test(a_smaller_batch_than_planned_needs_no_more_workspace),
        cmocka_unit_test(a_fold_survives_inputs_far_above_their_deviation),
        cmocka_unit_test(forward_handles_every_remainder),
        cmocka_unit_test(backward_handles_every_remainder),
        cmocka_unit_test(sums_survive_a_mean_far_above_the_deviation),
        cmocka_unit_test(an_empty_shard_writes_zero_sums_and_nothing_else),
        cmocka_unit_test(channels_off_the_alignment_are_refused_with_nothing_written),
    };
    return cmocka_run_group_tests(tests, open_variants, close_variants);
}
