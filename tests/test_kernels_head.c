/* test_kernels_head.c - pooling, the dense layer and the loss, forward and backward. */
#include "fixture.h"

static float *masks(int64_t n, int64_t c, bool wanted)           /* inverted dropout: 0 or 1/(1-0.2) */
{
    float *mask = wanted ? mem_f(n * c) : NULL;
    for (int64_t i = 0; wanted && i < n * c; i++) mask[i] = below(5) ? 1.25f : 0.f;
    return mask;
}

static void pool_case(int64_t n, int64_t hw, int64_t c, bool with_mask, en_act act)
{
    if (!problem(false, "pool n%dhw%dc%d%s%s", (int)n, (int)hw, (int)c, with_mask ? " mask" : "", (const char *[]){ " no act", "", " relu", " relu6" }[act]) ||
        !affordable(10 * n * hw * phys(c))) return;
    const int64_t cp = phys(c), rows = n * hw;
    const host_operand x = operand_make(rows, cp, c, true, act);
    const float *mask = masks(n, cp, with_mask);
    float *g = random_floats(n, cp, c);
    bounded pooled = pooled_rows(operand_value(&x), n, hw, cp), dpooled = exactly(g, n * cp);
    if (mask) pooled = times(pooled, exactly(mask, n * cp)), dpooled = times(dpooled, exactly(mask, n * cp));
    const bounded per_row = fresh(n * cp);                      /* dz = dpooled/hw * act' */
    for (int64_t i = 0; i < n * cp; i++) per_row.v[i] = dpooled.v[i] / (double)hw, per_row.e[i] = dpooled.e[i] / (double)hw + 2 * UNIT * fabs(per_row.v[i]);
    const bounded dz = scaled_rows(operand_slope(&x), hw, cp, per_row);
    for (variant *v = first(10 * rows * cp); v; v = next(v)) {
        reserve(v, &(en_conv_geom){ .n = n, .h = hw, .w = 1, .c = cp, .oh = hw, .ow = 1, .oc = ALIGN });
        en_bn bn;
        const en_operand operand = operand_up(v, &x, &bn);
        float *pooled_dev = OUT_F(v, n * cp), *g_dev = BOTH_F(v, g, n * cp);
        RUN(v, v->be->ops->pool_forward(v->be, n, hw, cp, &operand, UP_F(v, mask, n * cp), pooled_dev));
        check(v, "pooled", DOWN_F(v, pooled_dev, n * cp), pooled, cp, c);
        RUN(v, v->be->ops->pool_backward(v->be, n, hw, cp, g_dev, UP_F(v, mask, n * cp), &operand, &bn));
        check(v, "dpooled", DOWN_F(v, g_dev, n * cp), dpooled, cp, c);
        check_backward_sums(v, &bn, x.bn, dz, x.y, rows);
    }
}

static void pooling_is_within_the_propagated_bound(void **state)
{
    (void)state;
    static const int hw[] = { 1, 4, 9, 49, 113, 361 };
    for (int k = 0; k < 6; k++)
        for (int mask = 0; mask < 2; mask++) {
            pool_case(1 + k % 4, hw[k], 1280, mask, EN_ACT_SILU);
            pool_case(5, hw[k], (int[]){ 8, 16, 24 }[k % 3], mask, k % 2 ? EN_ACT_NONE : k % 4 ? EN_ACT_RELU : EN_ACT_SILU);
        }
    pool_case(2, 9, 2560, true, EN_ACT_SILU);
    verdict();
}

static void dense_case(bool exact, int64_t n, int64_t ci, int64_t k)
{
    if (!problem(exact, "dense n%d ci%d k%d", (int)n, (int)ci, (int)k) || !affordable(3 * n * ci * k)) return;
    const int64_t cp = phys(ci), kp = phys(k);
    const en_conv_geom g = oracle_rows(n, cp, kp), bias_g = oracle_rows(n, 1, kp);
    float *x = random_floats(n, cp, ci), *wt = random_floats(cp, kp, k), *bias = random_floats(1, kp, k), *dlogits = random_floats(n, kp, k);
    float *start = random_floats(cp, kp, k), *bias_start = random_floats(1, kp, k), *wide = mem_f(n * kp), *ones = mem_f(n);
    for (int64_t i = ci * kp; i < cp * kp; i++) wt[i] = start[i] = 0;
    for (int64_t i = 0; i < n * kp; i++) wide[i] = bias[i % kp], ones[i / kp] = 1;
    const bounded d = exactly(dlogits, n * kp), w = exactly(wt, cp * kp);
    const bounded logits = accumulated(bilinear(oracle_conv, &g, exactly(x, n * cp), w, n * kp, ci), wide, ci);
    const bounded dx = bilinear(oracle_conv_dx, &g, d, w, n * cp, k);
    const bounded dwt = accumulated(bilinear(oracle_conv_dwt, &g, exactly(x, n * cp), d, cp * kp, n), start, n);
    const bounded dbias = accumulated(bilinear(oracle_conv_dwt, &bias_g, exactly(ones, n), d, kp, n), bias_start, n);
    for (variant *v = first(3 * n * ci * k); v; v = next(v)) {
        reserve(v, &(en_conv_geom){ .n = n, .h = 1, .w = 1, .c = cp, .oh = 1, .ow = 1, .oc = kp });
        float *y_dev = OUT_F(v, n * kp), *dx_dev = OUT_F(v, n * cp), *dwt_dev = BOTH_F(v, start, cp * kp), *dbias_dev = BOTH_F(v, bias_start, kp);
        const float *x_dev = UP_F(v, x, n * cp), *wt_dev = UP_F(v, wt, cp * kp);
        RUN(v, v->be->ops->dense_forward(v->be, n, cp, kp, x_dev, wt_dev, UP_F(v, bias, kp), y_dev));
        check(v, "logits", DOWN_F(v, y_dev, n * kp), logits, kp, k);
        RUN(v, v->be->ops->dense_backward(v->be, n, cp, kp, x_dev, wt_dev, UP_F(v, dlogits, n * kp), dx_dev, dwt_dev, dbias_dev));
        check(v, "dx", DOWN_F(v, dx_dev, n * cp), dx, cp, ci);
        check(v, "dwt", DOWN_F(v, dwt_dev, cp * kp), dwt, kp, k);
        check(v, "dbias", DOWN_F(v, dbias_dev, kp), dbias, kp, k);
    }
}

static void the_dense_layer_is_within_the_rounding_bound(void **state)
{
    (void)state;
    dense_case(false, 3, 1280, 1000);
    dense_case(true, 2, 2560, 1000);
    static const int n[] = { 1, 2, 5, 13, 15, 33, 113 };
    for (int k = 0; k < 7; k++)
        for (int exact = 0; exact < 2; exact++) {
            dense_case(exact, n[k], (int[]){ 320, 48, 17 }[k % 3], (int[]){ 10, 2, 100, 1 }[k % 4]);
            dense_case(exact, n[k], 64, 3);
        }
    verdict();
}

typedef struct { int32_t *labels, *mates; float *shares; } host_targets;      /* mates and shares NULL: hard labels */

/* Drawn for n images; mixed: the shares that matter, then any.  A label or mate without a share is none. */
static host_targets targets_make(int64_t n, int64_t classes, bool are_mixed)
{
    static const float edges[] = { 0.5f, 0, 1, 0x1.fffffep-2f, 0x1p-149f, 0x1.fffffep-1f };
    host_targets t = { .labels = mem((size_t)(n + 1) * sizeof *t.labels) };
    for (int64_t i = 0; i < n; i++) t.labels[i] = below((int)classes);
    if (!are_mixed) return t;
    t.mates = mem((size_t)(n + 1) * sizeof *t.mates);
    t.shares = mem_f(n + 1);
    for (int64_t i = 0; i < n; i++) {
        t.shares[i] = i < 6 ? edges[i] : (float)below(1 << 24) * 0x1p-24f;
        t.mates[i] = i % 8 == 7 ? t.labels[i] : below((int)classes);
        if (t.shares[i] <= 0) t.labels[i] = INT32_MAX;
        if (t.shares[i] >= 1) t.mates[i] = -1;
    }
    return t;
}

static en_targets targets_up(variant *v, const host_targets *t, int64_t n)
{
    return (en_targets){ up(v, t->labels, n * (int64_t)sizeof *t->labels), up(v, t->mates, n * (int64_t)sizeof *t->mates), UP_F(v, t->shares, n) };
}

/* softmax: z - top is off by u*|z - top|, exp by that much more and by its own error (allowed: SIGMOID_ERROR), the sum by
 * gamma_k; the loss adds u*|z - top| and the error of the logarithm, which is that of the sum. */
static void loss_case(int64_t n, int64_t k, int64_t classes, double spread, float smoothing, bool are_mixed)
{
    if (!problem(false, "loss n%d k%d classes%d spread%g smoothing%g%s", (int)n, (int)k, (int)classes, spread, (double)smoothing, are_mixed ? " mixed" : "")) return;
    const float grad_scale = 0.125f;
    float *logits = random_floats(n, k, k);                       /* the padding holds numbers too: it must not count */
    const host_targets t = targets_make(n, classes, are_mixed);
    const bounded dlogits = fresh(n * k);
    double want[EN_TALLY] = { 0 };
    double loss_bound = 0;
    for (int64_t b = 0; b < n; b++) {
        for (int64_t j = 0; j < k; j++) logits[b * k + j] = j < classes ? (float)(spread * logits[b * k + j]) : 1e3f;
        double *z = mem_d(classes), *target = mem_d(classes), top = -INFINITY, far = 0;
        const double share = t.shares ? (double)t.shares[b] : 1;
        const int32_t heavier = share < 0.5 ? t.mates[b] : t.labels[b];
        oracle_target(classes, t.labels[b], t.mates ? t.mates[b] : -1, share, smoothing, target);
        for (int64_t j = 0; j < classes; j++) z[j] = logits[b * k + j], top = fmax(top, z[j]);
        for (int64_t j = 0; j < classes; j++) far = fmax(far, top - z[j]);
        want[EN_TALLY_LOSS] += oracle_cross_entropy(classes, z, target, dlogits.v + b * k);
        want[EN_TALLY_TOP1] += oracle_hit(classes, logits + b * k, heavier, 1);
        want[EN_TALLY_TOP5] += oracle_hit(classes, logits + b * k, heavier, 5);
        want[EN_TALLY_IMAGES] += 1;
        const double relative = SIGMOID_ERROR + rounding((double)classes) + UNIT * 4;
        loss_bound += 2 * relative + 4 * UNIT * far;
        for (int64_t j = 0; j < classes; j++) {
            const double p = dlogits.v[b * k + j] + target[j];
            dlogits.e[b * k + j] = (p * (2 * relative + 2 * UNIT * far) + 3 * UNIT * (p + target[j])) * (double)grad_scale;
            dlogits.v[b * k + j] *= (double)grad_scale;
        }
    }
    if (classes == 1) expect_zeros();
    for (variant *v = first(100 * n * k); v; v = next(v)) {
        for (int training = 0; training < 2; training++) {
            double before[EN_TALLY];
            for (int i = 0; i < EN_TALLY; i++) before[i] = i + 1;                       /* += */
            double *tally = both(v, before, sizeof before);
            float *d_dev = OUT_F(v, n * k);
            const en_targets targets = targets_up(v, &t, n);
            RUN(v, v->be->ops->softmax_loss(v->be, n, k, classes, UP_F(v, logits, n * k), &targets, smoothing, grad_scale, training ? d_dev : NULL, tally));
            if (training) check(v, "dlogits", DOWN_F(v, d_dev, n * k), dlogits, k, classes);
            const double *got = DOWN_D(v, tally, EN_TALLY);
            if (!(fabs(got[EN_TALLY_LOSS] - 1 - want[EN_TALLY_LOSS]) <= loss_bound))
                failed("[%s] loss %.9g want %.9g bound %.3g", v->name, got[EN_TALLY_LOSS] - 1, want[EN_TALLY_LOSS], loss_bound);
            for (int i = EN_TALLY_LOSS + 1; i < EN_TALLY; i++)
                if (got[i] - before[i] != want[i]) failed("[%s] tally[%d] %g want %g", v->name, i, got[i] - before[i], want[i]);
        }
    }
}

static void the_loss_is_within_the_propagated_bound(void **state)
{
    (void)state;
    for (int are_mixed = 0; are_mixed < 2; are_mixed++) {
        loss_case(5, 1008, 1000, 4, 0.1f, are_mixed);
        loss_case(33, 16, 10, 2, 0.1f, are_mixed);
        loss_case(13, 16, 3, 1, 0.f, are_mixed);
        loss_case(1, 16, 16, 1, 0.1f, are_mixed);
        loss_case(7, 32, 17, 30, 0.1f, are_mixed);              /* confident: some probabilities underflow nothing */
        loss_case(7, 112, 101, 300, 0.1f, are_mixed);           /* exp of -600 */
        loss_case(3, 16, 1, 1, 0.1f, are_mixed);
        loss_case(0, 16, 10, 1, 0.1f, are_mixed);
    }
    verdict();
}

/* The same targets said in other ways give the same bits: a mate that is the label, a share of 1, a share of 0 and the rest. */
static void hard_labels_give_the_same_bits_however_they_are_said(void **state)
{
    (void)state;
    enum { N = 9, K = 32, CLASSES = 21, WAYS = 4 };
    for (int s = 0; s < 2; s++) {
        if (!problem(false, "hard labels, smoothing %g", s * 0.1)) continue;
        const float *logits = random_floats(N, K, CLASSES);
        host_targets t[WAYS] = { targets_make(N, CLASSES, false), targets_make(N, CLASSES, true), targets_make(N, CLASSES, true), targets_make(N, CLASSES, true) };
        for (int i = 0; i < N; i++) {
            const int32_t label = t[0].labels[i];
            t[1].labels[i] = t[1].mates[i] = label;             /* any share of two that are the same */
            t[2].labels[i] = label, t[2].shares[i] = 1, t[2].mates[i] = i % 2 ? INT32_MIN : (label + 1) % CLASSES;
            t[3].mates[i] = label, t[3].shares[i] = 0, t[3].labels[i] = i % 2 ? INT32_MAX : (label + 1) % CLASSES;
        }
        for (variant *v = first(0); v; v = next(v)) {
            const float *d[WAYS];
            const double *tally[WAYS];
            for (int w = 0; w < WAYS; w++) {
                double *tally_dev = both(v, mem_d(EN_TALLY), EN_TALLY * sizeof(double));
                float *d_dev = OUT_F(v, N * K);
                const en_targets targets = targets_up(v, &t[w], N);
                RUN(v, v->be->ops->softmax_loss(v->be, N, K, CLASSES, UP_F(v, logits, N * K), &targets, (float)(s * 0.1), 0.5f, d_dev, tally_dev));
                d[w] = DOWN_F(v, d_dev, N * K), tally[w] = DOWN_D(v, tally_dev, EN_TALLY);
                check_same(v, "dlogits", d[w], d[0], N * K * (int64_t)sizeof **d);
                check_same(v, "tally", tally[w], tally[0], EN_TALLY * (int64_t)sizeof **tally);
            }
        }
    }
    verdict();
}

typedef struct { float z[8]; int32_t label; int top1, top5; } hit_case;

static void hits_count_ties_against_the_higher_index_and_nan_as_a_miss(void **state)
{
    (void)state;
    static const hit_case cases[] = {
        { { 0, 0, 0, 0, 0, 0, 0, 0 }, 0, 1, 1 }, { { 0, 0, 0, 0, 0, 0, 0, 0 }, 1, 0, 1 }, { { 0, 0, 0, 0, 0, 0, 0, 0 }, 4, 0, 1 },
        { { 0, 0, 0, 0, 0, 0, 0, 0 }, 5, 0, 0 }, { { 1, 2, 3, 4, 5, 6, 7, 8 }, 7, 1, 1 }, { { 1, 2, 3, 4, 5, 6, 7, 8 }, 3, 0, 1 },
        { { 1, 2, 3, 4, 5, 6, 7, 8 }, 2, 0, 0 }, { { 9, 9, 1, 1, 1, 1, 1, 1 }, 1, 0, 1 }, { { 1, 2, NAN, 4, 5, 6, 7, 8 }, 7, 0, 0 },
        { { 1, 2, 3, 4, 5, 6, 7, NAN }, 7, 0, 0 }, { { -INFINITY, 2, 3, 4, 5, 6, 7, 8 }, 7, 1, 1 } };
    if (problem(false, "hits"))
        for (variant *v = first(0); v; v = next(v))
            for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
                float *row = mem_f(16);
                for (int j = 0; j < 16; j++) row[j] = j < 8 ? cases[k].z[j] : 1e9f;
                double *tally = both(v, mem_d(EN_TALLY), EN_TALLY * sizeof(double));
                const en_targets targets = { .labels = up(v, &cases[k].label, 4) };
                RUN(v, v->be->ops->softmax_loss(v->be, 1, 16, 8, UP_F(v, row, 16), &targets, 0.1f, 1.f, NULL, tally));
                const double *got = DOWN_D(v, tally, EN_TALLY);
                if (got[EN_TALLY_TOP1] != cases[k].top1 || got[EN_TALLY_TOP5] != cases[k].top5)
                    failed("[%s] case %d: top1 %g top5 %g want %d %d", v->name, (int)k, got[EN_TALLY_TOP1], got[EN_TALLY_TOP5], cases[k].top1, cases[k].top5);
                bool nan = false;
                for (int j = 0; j < 8; j++) nan |= isnan(cases[k].z[j]);
                if (nan && isfinite(got[EN_TALLY_LOSS])) failed("[%s] case %d: a NaN logit gave the loss %g", v->name, (int)k, got[EN_TALLY_LOSS]);
            }
    verdict();
}

/* Labels are not known to the host when the pass is queued: one that is out of range shows in the loss. */
static void a_label_out_of_range_makes_the_loss_nan_and_hits_nothing(void **state)
{
    (void)state;
    static const struct { int32_t label, mate; float share; } wrong[] = {               /* share -2: hard labels */
        { -1, 0, -2 }, { 10, 0, -2 }, { 15, 0, -2 }, { INT32_MIN, 0, -2 }, { INT32_MAX, 0, -2 }, { 10, 3, 1 }, { -1, 3, 0x1p-149f }, { 3, 10, 0 },
        { 3, INT32_MIN, 0x1.fffffep-1f }, { 3, 4, -0x1p-149f }, { 3, 4, 0x1.000002p0f }, { 3, 4, NAN }, { 3, 4, INFINITY } };
    for (size_t k = 0; k < sizeof wrong / sizeof *wrong; k++) {
        if (!problem(false, "label %d, mate %d of 10, share %g", (int)wrong[k].label, (int)wrong[k].mate, (double)wrong[k].share)) continue;
        float *logits = random_floats(3, 16, 10);
        host_targets t = targets_make(3, 10, wrong[k].share != -2);
        t.labels[0] = 2, t.labels[1] = wrong[k].label, t.labels[2] = 7;
        if (t.mates) t.mates[0] = t.mates[2] = 1, t.mates[1] = wrong[k].mate, t.shares[0] = t.shares[2] = 0.75f, t.shares[1] = wrong[k].share;
        for (variant *v = first(0); v; v = next(v)) {
            double *tally = both(v, mem_d(EN_TALLY), EN_TALLY * sizeof(double));
            const en_targets targets = targets_up(v, &t, 3);
            RUN(v, v->be->ops->softmax_loss(v->be, 3, 16, 10, UP_F(v, logits, 3 * 16), &targets, 0.1f, 1.f, OUT_F(v, 3 * 16), tally));
            const double *got = DOWN_D(v, tally, EN_TALLY);
            const int top1 = oracle_hit(10, logits, 2, 1) + oracle_hit(10, logits + 32, 7, 1), top5 = oracle_hit(10, logits, 2, 5) + oracle_hit(10, logits + 32, 7, 5);
            if (!isnan(got[EN_TALLY_LOSS]) || got[EN_TALLY_IMAGES] != 3 || got[EN_TALLY_TOP1] != top1 || got[EN_TALLY_TOP5] != top5)
                failed("[%s] loss %g, %g images, top1 %g want %d, top5 %g want %d", v->name, got[EN_TALLY_LOSS], got[EN_TALLY_IMAGES], got[EN_TALLY_TOP1], top1,
                       got[EN_TALLY_TOP5], top5);
        }
    }
    verdict();
}

static void mates_without_shares_are_refused(void **state)
{
    (void)state;
    if (problem(false, "half of the targets")) {
        expect_zeros();
        const host_targets t = targets_make(2, 10, true);
        for (variant *v = first(0); v; v = next(v)) {
            double *tally = both(v, mem_d(EN_TALLY), EN_TALLY * sizeof(double));
            const en_targets whole = targets_up(v, &t, 2);
            for (int k = 0; k < 2; k++) {
                const en_targets half = { whole.labels, k ? NULL : whole.mates, k ? whole.shares : NULL };
                if (v->be->ops->softmax_loss(v->be, 2, 16, 10, UP_F(v, mem_f(32), 32), &half, 0.1f, 1, NULL, tally) != EN_EINVAL) failed("[%s] not refused", v->name);
                en_error_clear();
            }
        }
    }
    verdict();
}

static void an_empty_shard_writes_zero_sums_and_nothing_else(void **state)
{
    (void)state;
    if (problem(true, "head n0")) {
        expect_zeros();
        const host_operand x = operand_make(0, 64, 64, true, EN_ACT_SILU);
        float *wt = random_rows(64, 16, 10), *bias = random_rows(1, 16, 10);
        for (variant *v = first(0); v; v = next(v)) {
            en_bn bn;
            const en_operand operand = operand_up(v, &x, &bn);
            float *dwt = BOTH_F(v, wt, 64 * 16), *dbias = BOTH_F(v, bias, 16);
            double *tally = both(v, mem_d(EN_TALLY), EN_TALLY * sizeof(double));
            RUN(v, v->be->ops->pool_forward(v->be, 0, 49, 64, &operand, NULL, OUT_F(v, 0)));
            RUN(v, v->be->ops->dense_forward(v->be, 0, 64, 16, OUT_F(v, 0), UP_F(v, wt, 64 * 16), UP_F(v, bias, 16), OUT_F(v, 0)));
            RUN(v, v->be->ops->softmax_loss(v->be, 0, 16, 10, OUT_F(v, 0), &(en_targets){ .labels = out(v, 0) }, 0.1f, 1, OUT_F(v, 0), tally));
            RUN(v, v->be->ops->dense_backward(v->be, 0, 64, 16, OUT_F(v, 0), UP_F(v, wt, 64 * 16), OUT_F(v, 0), OUT_F(v, 0), dwt, dbias));
            RUN(v, v->be->ops->pool_backward(v->be, 0, 49, 64, OUT_F(v, 0), NULL, &operand, &bn));
            check_backward_sums(v, &bn, x.bn, exactly(NULL, 0), NULL, 0);
            check_same(v, "dwt", DOWN_F(v, dwt, 64 * 16), wt, 64 * 16 * (int64_t)sizeof *wt);
            check_same(v, "dbias", DOWN_F(v, dbias, 16), bias, 16 * (int64_t)sizeof *bias);
            const double *got = DOWN_D(v, tally, EN_TALLY);
            if (got[EN_TALLY_LOSS] != 0 || got[EN_TALLY_IMAGES] != 0) failed("the loss of nothing is %g over %g images", got[EN_TALLY_LOSS], got[EN_TALLY_IMAGES]);
        }
    }
    verdict();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pooling_is_within_the_propagated_bound),
        cmocka_unit_test(the_dense_layer_is_within_the_rounding_bound),
        cmocka_unit_test(the_loss_is_within_the_propagated_bound),
        cmocka_unit_test(hard_labels_give_the_same_bits_however_they_are_said),
        cmocka_unit_test(hits_count_ties_against_the_higher_index_and_nan_as_a_miss),
        cmocka_unit_test(a_label_out_of_range_makes_the_loss_nan_and_hits_nothing),
        cmocka_unit_test(mates_without_shares_are_refused),
        cmocka_unit_test(an_empty_shard_writes_zero_sums_and_nothing_else),
    };
    return cmocka_run_group_tests(tests, open_variants, close_variants);
}
