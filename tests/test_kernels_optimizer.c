/* test_kernels_optimizer.c - one step of each optimizer, with the moving average in the same sweep, and the moving average alone.
 * Runs of many steps: test_kernels_optimizer_steps.c. */
#include "optimizer_help.h"

#include <float.h>

static void optimizer_case(const optimizer *o, const en_now *now, const en_segment *segments, int n_segments, const host_arenas *a, int64_t elems,
                           bool ema)
{
    expected want = expect(a, elems);
    expect_step(o, now, segments, n_segments, a->grad, &want);
    for (variant *v = first(0); v; v = next(v)) {
        const device_arenas d = arenas_up(v, o, a, elems, ema, NULL);
        RUN(v, update(v, o, up(v, now, sizeof *now), segments, n_segments, UP_F(v, a->grad, elems), &d));
        check_arenas(v, o, &d, &want, elems, ema);
    }
}

static const en_now usual = { .lr = 0.016f, .ema_decay = 0.9999f };

static void updates_are_the_sources_within_the_rounding_bound(void **state)
{
    (void)state;
    static const int elems[] = { 1, 7, 16, 17, 113, 1000, 4099, 70000 };
    for (int k = 0; k < n_optimizers; k++)
        for (int e = 0; e < 8; e++) {
            const optimizer *o = &optimizers[k];
            const bool ema = (e + k) % 2;
            const en_segment all = { .elems = elems[e], .decay = true, .adapt = true };
            if (!affordable(10 * elems[e]) || !problem(false, "%s elems%d%s", o->name, elems[e], ema ? " ema" : "")) continue;
            const host_arenas a = arenas_make(o, elems[e]);
            optimizer_case(o, &usual, &all, 1, &a, elems[e], ema);
        }
    for (int k = 0; k < n_optimizers; k++) {
        const en_segment all = { .elems = 513, .decay = true, .adapt = true };
        if (problem(false, "%s large rate", optimizers[k].name)) {
            const host_arenas a = arenas_make(&optimizers[k], 513);
            optimizer_case(&optimizers[k], &(en_now){ .lr = 0.5f, .ema_decay = 0.5f }, &all, 1, &a, 513, true);
        }
        if (problem(false, "%s lr 0", optimizers[k].name)) {    /* the first step of a warm-up */
            const host_arenas a = arenas_make(&optimizers[k], 513);
            optimizer_case(&optimizers[k], &(en_now){ .ema_decay = 0.9999f }, &all, 1, &a, 513, true);
        }
    }
    verdict();
}

/* Segments decay or not, adapt or not, leave gaps that belong to others (bounds of 0 there: untouched), and may be empty.  The decay is
 * large enough that a wrong one shows, and tensors differ in size so that their norms do. */
static void segments_are_updated_and_nothing_between_them(void **state)
{
    (void)state;
    static const en_segment segments[] = { { 16, 33, true, true },    { 64, 16, false, false }, { 96, 0, true, true },  { 96, 1, false, true },
                                           { 112, 700, true, false }, { 816, 160, false, true }, { 977, 22, true, true } };
    for (int k = 0; k < n_optimizers; k++) {
        optimizer o = optimizers[k];
        *(o.kind == RMSPROP ? &o.rmsprop.weight_decay : o.kind == SGD ? &o.sgd.weight_decay : o.kind == LARS ? &o.lars.weight_decay
                                                                                                           : &o.adamw.weight_decay) = 0.5f;
        if (problem(false, "%s segments", o.name)) {
            const host_arenas a = arenas_make(&o, 1000);
            optimizer_case(&o, &usual, segments, 7, &a, 1000, true);
        }
        if (problem(false, "%s no segments", o.name)) {
            const host_arenas a = arenas_make(&o, 64);
            optimizer_case(&o, &usual, segments, 0, &a, 64, true);
        }
    }
    verdict();
}

/* A backend that remembers segments tells them apart by all that they say. */
static void the_same_extents_with_other_flags_are_other_segments(void **state)
{
    (void)state;
    for (int k = 0; k < 4 * n_optimizers; k++) {
        const optimizer *o = &optimizers[k / 4];
        const en_segment all = { .elems = 611, .decay = k & 1, .adapt = k & 2 };
        if (!problem(false, "%s%s%s", o->name, all.decay ? " decays" : "", all.adapt ? " adapts" : "")) continue;
        const host_arenas a = arenas_make(o, 611);
        optimizer_case(o, &(en_now){ .lr = 0.5f }, &all, 1, &a, 611, false);
    }
    verdict();
}

/* A tensor of zeros, or one without a gradient, has no ratio: its rate is lr.  One tensor's norms are no other's. */
static void lars_takes_the_plain_rate_where_a_norm_is_zero(void **state)
{
    (void)state;
    enum { EACH = 3000 };
    static const en_segment segments[] = { { 0, EACH, true, true }, { EACH, EACH, true, true }, { 2 * EACH, EACH, true, true } };
    for (int k = 0; k < n_optimizers; k++) {
        const optimizer *o = &optimizers[k];
        if (o->kind != LARS || !problem(false, "%s zero norms", o->name)) continue;
        const host_arenas a = arenas_make(o, 3 * EACH);
        memset(a.w, 0, EACH * sizeof(float));
        memset(a.grad + 2 * EACH, 0, EACH * sizeof(float));
        optimizer_case(o, &usual, segments, 3, &a, 3 * EACH, true);
    }
    verdict();
}

static void a_poisoned_gradient_shows_in_the_sum_of_squares(void **state)
{
    (void)state;
    static const float poison[] = { NAN, INFINITY, -INFINITY };
    static const en_segment all = { .elems = 1000, .decay = true, .adapt = true };
    for (int k = 0; k < n_optimizers; k++)
        for (int p = 0; p < 4; p++) {
            const optimizer *o = &optimizers[k];
            const bool large = p == 3;                          /* 1e15 squared is a float; a sum of 1000 of them too */
            if (!problem(false, "%s %s %g", o->name, large ? "large but finite" : "poison", large ? 1e15 : (double)poison[p])) continue;
            const host_arenas a = arenas_make(o, 1000);
            for (int i = 0; large && i < 1000; i++) a.grad[i] = 1e15f;
            if (!large) a.grad[333 * (k % 4)] = poison[p];
            for (variant *v = first(0); v; v = next(v)) {
                const device_arenas d = arenas_up(v, o, &a, 1000, true, NULL);
                RUN(v, update(v, o, up(v, &usual, sizeof usual), &all, 1, UP_F(v, a.grad, 1000), &d));
                const double got = DOWN_D(v, d.tally, EN_TALLY)[EN_TALLY_GRAD_SQUARE];
                if (large ? !(fabs(got - 1e33) <= 1e-4 * 1e33) : isfinite(got)) failed("[%s] the sum of squares is %g", v->name, got);
            }
        }
    verdict();
}

/* A rank that failed, a loss or a gradient that is not a number: weights, accumulators, averages and the count of updates keep their bits; the sum of
 * squares is taken all the same. */
static void a_step_that_does_not_count_changes_nothing(void **state)
{
    (void)state;
    static const struct { const char *name; double loss, failed; float poison; bool counts; } cases[] = {
        { "failed", 1, 1, 0, false }, { "failed on three ranks", 1, 3, 0, false }, { "loss nan", NAN, 0, 0, false },
        { "loss infinite", INFINITY, 0, 0, false }, { "loss -infinite", -INFINITY, 0, 0, false }, { "gradient nan", 1, 0, NAN, false },
        { "gradient infinite", 1, 0, INFINITY, false }, { "loss large", 1e300, 0, 0, true } };
    enum { ELEMS = 1000, CASES = sizeof cases / sizeof *cases };
    static const en_segment all = { .elems = ELEMS, .decay = true, .adapt = true };
    for (int k = 0; k < CASES * n_optimizers; k++) {
        const optimizer *o = &optimizers[k / CASES];
        const float poison = cases[k % CASES].poison;
        const bool counts = cases[k % CASES].counts;
        if (!problem(false, "%s %s", o->name, cases[k % CASES].name)) continue;
        const host_arenas a = arenas_make(o, ELEMS);
        if (poison != 0) a.grad[ELEMS - 1 - k] = poison;          /* far from where the sweep begins */
        double squares = 0, *before = mem_d(EN_TALLY);
        for (int i = 0; i < ELEMS; i++) squares += (double)a.grad[i] * (double)a.grad[i];
        before[EN_TALLY_LOSS] = cases[k % CASES].loss, before[EN_TALLY_FAILED] = cases[k % CASES].failed;
        for (variant *v = first(0); v; v = next(v)) {
            const device_arenas d = arenas_up(v, o, &a, ELEMS, true, before);
            const float *const host[] = { a.w, a.ema, a.slot[0], a.slot[1] }, *const dev[] = { d.w, d.ema, d.slot[0], d.slot[1] };
            const en_now *now = up(v, &usual, sizeof usual);
            RUN(v, update(v, o, now, &all, 1, UP_F(v, a.grad, ELEMS), &d));
            for (int i = 0; i < 2 + optimizer_slots(o); i++) {
                const bool same = !memcmp(DOWN_F(v, dev[i], ELEMS), host[i], ELEMS * sizeof(float));
                if (same == counts) failed("[%s] array %d %s", v->name, i, same ? "did not change" : "changed");
            }
            if (*(const int64_t *)down(v, d.updates, sizeof(int64_t)) != (counts && o->kind == ADAMW)) failed("[%s] the count of updates", v->name);
            const double got = DOWN_D(v, d.tally, EN_TALLY)[EN_TALLY_GRAD_SQUARE];
            if (poison != 0 ? isfinite(got) : !(fabs(got - squares) <= rounding((double)ELEMS + 2) * squares))
                failed("[%s] sum of squares %.9g want %.9g", v->name, got, squares);
            float *shadow = BOTH_F(v, a.ema, ELEMS);
            RUN(v, v->be->ops->ema_update(v->be, now, ELEMS, UP_F(v, a.grad, ELEMS), shadow, d.tally));
            if (!memcmp(DOWN_F(v, shadow, ELEMS), a.ema, ELEMS * sizeof(float)) == counts) failed("[%s] the average of the others", v->name);
        }
    }
    verdict();
}

/* What an optimizer cannot do without is asked for, in words, and nothing is written. */
static void a_missing_accumulator_is_an_error(void **state)
{
    (void)state;
    static const en_segment all = { .elems = 16, .decay = true };
    for (int k = 0; k < n_optimizers; k++) {
        const optimizer *o = &optimizers[k];
        if (!problem(false, "%s without accumulators", o->name)) continue;
        const host_arenas a = arenas_make(o, 16);
        for (variant *v = first(0); v; v = next(v)) {
            device_arenas d = arenas_up(v, o, &a, 16, false, NULL);
            d.slot[0] = NULL;
            const bool needs = optimizer_slots(o) > 0;
            const en_status s = update(v, o, up(v, &usual, sizeof usual), &all, 1, UP_F(v, a.grad, 16), &d);
            if ((s == EN_EINVAL) != needs || (s != EN_OK) != needs || (*en_error_text() != 0) != needs) failed("[%s] status %d", v->name, (int)s);
            en_error_clear();
            if (v->be->ops->synchronize(v->be) != EN_OK) failed("[%s] %s", v->name, en_error_text());
            if (needs && memcmp(DOWN_F(v, d.w, 16), a.w, 16 * sizeof(float))) failed("[%s] the weights changed", v->name);
        }
    }
    if (problem(false, "nesterov without momentum"))
        for (variant *v = first(0); v; v = next(v)) {
            const optimizer o = { "sgd", SGD, .sgd = { .nesterov = true } };
            const host_arenas a = arenas_make(&o, 16);
            const device_arenas d = arenas_up(v, &o, &a, 16, false, NULL);
            if (update(v, &o, up(v, &usual, sizeof usual), &all, 1, UP_F(v, a.grad, 16), &d) != EN_EINVAL) failed("[%s] it is no error", v->name);
            en_error_clear();
        }
    verdict();
}

/* Weights that the backend keeps in another type as well: what a pass computes with them follows every update. */
static void kept_weights_follow_the_optimizer(void **state)
{
    (void)state;
    const int64_t c = 16, rows = 5, elems = c * c;
    static const optimizer steps[] = { { "rmsprop", RMSPROP, .rmsprop = { .rho = 1 } }, { "sgd", SGD, .sgd = { 0 } } };
    const en_segment all = { .elems = elems };
    const en_now now = { .lr = 2, .ema_decay = 0.5f };           /* w - 2*grad: small integers still */
    const en_conv_geom rg = { .n = 1, .h = rows, .w = 1, .c = c, .oh = rows, .ow = 1, .oc = c };
    for (int k = 0; k < 2; k++) {
        if (!problem(true, "%s kept weights", steps[k].name)) continue;
        host_arenas a = arenas_make(&steps[k], elems);
        for (int64_t i = 0; k == 0 && i < elems; i++) a.slot[0][i] = 1, a.slot[1][i] = 0;
        float *x = mem_f(rows * c);
        for (int64_t r = 0; r < rows; r++) x[r * c + r] = 1;     /* y is rows of the weights */
        for (variant *v = first(0); v; v = next(v)) {
            const device_arenas d = arenas_up(v, &steps[k], &a, elems, false, NULL);
            reserve(v, &rg);
            const void *x_dev = up_a(v, x, rows * c);
            RUN(v, v->be->ops->keep_weights(v->be, d.w, elems));
            for (int round = 0; round < 3; round++) {
                if (round == 1) RUN(v, update(v, &steps[k], up(v, &now, sizeof now), &all, 1, UP_F(v, a.grad, elems), &d));
                if (round == 2) RUN(v, v->be->ops->upload(v->be, d.w, a.grad, (size_t)elems * sizeof(float)));
                void *y_dev = out_a(v, rows * c);
                RUN(v, v->be->ops->pointwise_forward(v->be, rows, c, c, x_dev, d.w, y_dev, NULL));
                const float *y = down_a(v, y_dev, rows * c);
                for (int64_t i = 0; i < rows * c; i++) {
                    const float want = round == 0 ? a.w[i] : round == 1 ? a.w[i] - 2 * a.grad[i] : a.grad[i];
                    if (y[i] != want) {
                        failed("[%s] %s: y[%d] is %g, want %g", v->name, (const char *[]){ "at first", "updated", "uploaded" }[round], (int)i,
                               (double)y[i], (double)want);
                        break;
                    }
                }
            }
            RUN(v, v->be->ops->keep_weights(v->be, d.w, 0));
        }
    }
    verdict();
}

static void the_moving_average_is_within_the_rounding_bound(void **state)
{
    (void)state;
    static const int elems[] = { 0, 1, 15, 16, 225, 5000 };
    static const float decays[] = { 0.9999f, 0.1f, 0.5f };
    for (int k = 0; k < 6; k++)
        for (int d = 0; d < 3; d++) {
            if (!problem(false, "ema elems%d decay%g", elems[k], (double)decays[d])) continue;
            const int64_t n = elems[k];
            const en_now now = { .ema_decay = decays[d] };
            float *x = random_floats(n, 1, 1), *shadow = random_floats(n, 1, 1);
            bounded want = exactly(shadow, n);
            for (int64_t i = 0; i < n; i++) {
                want.v[i] = oracle_ema(shadow[i], x[i], (double)decays[d]);
                want.e[i] = UNIT * fabs(want.v[i]) + 4 * UNIT * (1 - (double)decays[d]) * (fabs((double)x[i]) + fabs((double)shadow[i]));
            }
            for (variant *v = first(0); v; v = next(v)) {
                float *s = BOTH_F(v, shadow, n);
                RUN(v, v->be->ops->ema_update(v->be, up(v, &now, sizeof now), n, UP_F(v, x, n), s, UP_D(v, mem_d(EN_TALLY), EN_TALLY)));
                check(v, "shadow", DOWN_F(v, s, n), want, n ? n : 1, n);
            }
        }
    verdict();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(updates_are_the_sources_within_the_rounding_bound),
        cmocka_unit_test(segments_are_updated_and_nothing_between_them),
        cmocka_unit_test(the_same_extents_with_other_flags_are_other_segments),
        cmocka_unit_test(lars_takes_the_plain_rate_where_a_norm_is_zero),
        cmocka_unit_test(a_poisoned_gradient_shows_in_the_sum_of_squares),
        cmocka_unit_test(a_step_that_does_not_count_changes_nothing),
        cmocka_unit_test(a_missing_accumulator_is_an_error),
        cmocka_unit_test(kept_weights_follow_the_optimizer),
        cmocka_unit_test(the_moving_average_is_within_the_rounding_bound),
    };
    return cmocka_run_group_tests(tests, open_variants, close_variants);
}
