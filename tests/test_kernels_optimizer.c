/* test_kernels_optimizer.c - RMSProp with its moving average, and the moving average alone.
 *
 * Per element a handful of operations: the bound follows them one by one (below), first order. */
#include "fixture.h"

#include <float.h>

typedef struct { float *w, *grad, *ms, *mom, *ema; } arena;

static arena arena_make(int64_t elems)
{
    arena a = { random_floats(elems, 1, 1), random_floats(elems, 1, 1), random_floats(elems, 1, 1), random_floats(elems, 1, 1), random_floats(elems, 1, 1) };
    for (int64_t i = 0; i < elems; i++) a.ms[i] = 0.001f + fabsf(a.ms[i]), a.mom[i] *= 0.1f;
    return a;
}

static void optimizer_case(const en_rmsprop *h, const en_now *now, const en_segment *segments, int n_segments, int64_t elems, bool ema)
{
    const arena a = arena_make(elems);
    bounded w = exactly(a.w, elems), ms = exactly(a.ms, elems), mom = exactly(a.mom, elems), avg = exactly(a.ema, elems);
    double squares = 0;
    int64_t covered = 0;
    for (int s = 0; s < n_segments; s++)
        for (int64_t i = segments[s].offset; i < segments[s].offset + segments[s].elems; i++) {
            const oracle_slot next_slot = oracle_rmsprop(h, now, segments[s].decay, a.grad[i], (oracle_slot){ a.w[i], a.ms[i], a.mom[i], a.ema[i] });
            const double decay = segments[s].decay ? (double)h->weight_decay * fabs((double)a.w[i]) : 0, g = fabs((double)a.grad[i]) + decay;
            const double eg = 2 * UNIT * g, step = (double)now->lr * g / sqrt(next_slot.ms + (double)h->eps);
            ms.v[i] = next_slot.ms, mom.v[i] = next_slot.mom, w.v[i] = next_slot.w, avg.v[i] = next_slot.ema;
            ms.e[i] = 2 * g * eg * (1 - (double)h->rho) + 4 * UNIT * (g * g + (double)a.ms[i]);
            mom.e[i] = step * (0.5 * ms.e[i] / (next_slot.ms + (double)h->eps) + 8 * UNIT) + 3 * UNIT * fabs((double)a.mom[i]);
            w.e[i] = mom.e[i] + UNIT * fabs(next_slot.w);
            avg.e[i] = 2 * w.e[i] * (1 - (double)now->ema_decay) + UNIT * fabs(next_slot.ema) + 4 * UNIT * (1 - (double)now->ema_decay) * (fabs((double)a.ema[i]) + fabs(next_slot.w));
            squares += (double)a.grad[i] * (double)a.grad[i];
            covered++;
        }
    for (variant *v = first(0); v; v = next(v)) {
        float *w_dev = BOTH_F(v, a.w, elems), *ms_dev = BOTH_F(v, a.ms, elems), *mom_dev = BOTH_F(v, a.mom, elems), *ema_dev = ema ? BOTH_F(v, a.ema, elems) : NULL;
        double *tally = both(v, mem_d(EN_TALLY), EN_TALLY * sizeof(double));
        RUN(v, v->be->ops->rmsprop_update(v->be, h, up(v, now, sizeof *now), segments, n_segments, w_dev, UP_F(v, a.grad, elems), ms_dev, mom_dev, ema_dev, tally));
        check(v, "w", DOWN_F(v, w_dev, elems), w, elems, elems);
        check(v, "ms", DOWN_F(v, ms_dev, elems), ms, elems, elems);
        check(v, "mom", DOWN_F(v, mom_dev, elems), mom, elems, elems);
        if (ema) check(v, "ema", DOWN_F(v, ema_dev, elems), avg, elems, elems);
        const double *sums = DOWN_D(v, tally, EN_TALLY), got = sums[EN_TALLY_GRAD_SQUARE];
        if (!(fabs(got - squares) <= rounding((double)covered + 2) * squares)) failed("[%s] sum of squares %.9g want %.9g", v->name, got, squares);
        for (int i = 0; i < EN_TALLY_SUMS; i++) if (sums[i] != 0) failed("[%s] tally[%d] became %g", v->name, i, sums[i]);
    }
}

static const en_rmsprop reference = { .rho = 0.9f, .momentum = 0.9f, .eps = 1e-3f, .weight_decay = 1e-5f };
static const en_now usual = { .lr = 0.016f, .ema_decay = 0.9999f };

static void updates_are_tensorflows_within_the_rounding_bound(void **state)
{
    (void)state;
    static const int elems[] = { 1, 7, 16, 17, 113, 1000, 4099, 70000 };
    for (int k = 0; k < 8; k++)
        for (int ema = 0; ema < 2; ema++)
            if (problem(false, "rmsprop elems%d%s", elems[k], ema ? " ema" : ""))
                optimizer_case(&reference, &usual, &(en_segment){ .offset = 0, .elems = elems[k], .decay = true }, 1, elems[k], ema);
    const en_rmsprop heavy = { .rho = 0.5f, .momentum = 0.3f, .eps = 0.1f, .weight_decay = 0.1f };
    if (problem(false, "rmsprop heavy")) optimizer_case(&heavy, &(en_now){ .lr = 0.5f, .ema_decay = 0.5f }, &(en_segment){ .elems = 513, .decay = true }, 1, 513, true);
    if (problem(false, "rmsprop lr 0"))                         /* the first step of a warm-up */
        optimizer_case(&reference, &(en_now){ .ema_decay = 0.9999f }, &(en_segment){ .elems = 513, .decay = true }, 1, 513, true);
    verdict();
}

/* Segments decay or not, leave gaps that belong to others (bounds of 0 there: untouched), and may be empty. */
static void segments_are_updated_and_nothing_between_them(void **state)
{
    (void)state;
    const en_segment segments[] = { { 16, 33, true }, { 64, 16, false }, { 96, 0, true }, { 96, 1, false }, { 112, 700, true }, { 816, 160, false } };
    en_rmsprop h = reference;
    h.weight_decay = 0.5f;                                      /* large enough that a wrong `decay` shows */
    if (problem(false, "rmsprop segments")) optimizer_case(&h, &usual, segments, 6, 1000, true);
    if (problem(false, "rmsprop no segments")) optimizer_case(&h, &usual, segments, 0, 64, true);
    verdict();
}

static void a_poisoned_gradient_shows_in_the_sum_of_squares(void **state)
{
    (void)state;
    static const float poison[] = { NAN, INFINITY, -INFINITY };
    for (int k = 0; k < 3; k++)
        for (int at = 0; at < 1000; at += 333) {
            if (!problem(false, "rmsprop poison %g at %d", (double)poison[k], at)) continue;
            const arena a = arena_make(1000);
            a.grad[at] = poison[k];
            for (variant *v = first(0); v; v = next(v)) {
                double *tally = both(v, mem_d(EN_TALLY), EN_TALLY * sizeof(double));
                RUN(v, v->be->ops->rmsprop_update(v->be, &reference, up(v, &usual, sizeof usual), &(en_segment){ .elems = 1000, .decay = true }, 1, BOTH_F(v, a.w, 1000), UP_F(v, a.grad, 1000),
                                                  BOTH_F(v, a.ms, 1000), BOTH_F(v, a.mom, 1000), BOTH_F(v, a.ema, 1000), tally));
                const double got = DOWN_D(v, tally, EN_TALLY)[EN_TALLY_GRAD_SQUARE];
                if (isfinite(got)) failed("[%s] the sum of squares is %g", v->name, got);
            }
        }
    if (problem(false, "rmsprop large but finite")) {           /* 1e15 squared is a float; a sum of 1000 of them too */
        const arena a = arena_make(1000);
        for (int i = 0; i < 1000; i++) a.grad[i] = 1e15f;
        for (variant *v = first(0); v; v = next(v)) {
            double *tally = both(v, mem_d(EN_TALLY), EN_TALLY * sizeof(double));
            RUN(v, v->be->ops->rmsprop_update(v->be, &reference, up(v, &usual, sizeof usual), &(en_segment){ .elems = 1000, .decay = true }, 1, BOTH_F(v, a.w, 1000), UP_F(v, a.grad, 1000),
                                              BOTH_F(v, a.ms, 1000), BOTH_F(v, a.mom, 1000), NULL, tally));
            const double got = DOWN_D(v, tally, EN_TALLY)[EN_TALLY_GRAD_SQUARE];
            if (!(fabs(got - 1e33) <= 1e-4 * 1e33)) failed("[%s] the sum of squares is %g", v->name, got);
        }
    }
    verdict();
}

/* A rank that failed, or a loss that is not a number: weights, accumulators and averages keep their bits; the sum of
 * squares is taken all the same. */
static void a_step_that_does_not_count_changes_nothing(void **state)
{
    (void)state;
    static const struct { const char *name; double loss, failed; bool counts; } cases[] = {
        { "failed", 1, 1, false }, { "failed on three ranks", 1, 3, false }, { "loss nan", NAN, 0, false }, { "loss infinite", INFINITY, 0, false },
        { "loss -infinite", -INFINITY, 0, false }, { "loss large", 1e300, 0, true } };
    const int64_t elems = 1000;
    for (int k = 0; k < 6; k++) {
        if (!problem(false, "rmsprop %s", cases[k].name)) continue;
        const arena a = arena_make(elems);
        double squares = 0, *before = mem_d(EN_TALLY);
        for (int i = 0; i < elems; i++) squares += (double)a.grad[i] * (double)a.grad[i];
        before[EN_TALLY_LOSS] = cases[k].loss, before[EN_TALLY_FAILED] = cases[k].failed;
        for (variant *v = first(0); v; v = next(v)) {
            float *const host[] = { a.w, a.ms, a.mom, a.ema, a.grad }, *dev[5];
            for (int i = 0; i < 5; i++) dev[i] = BOTH_F(v, host[i], elems);
            double *tally = both(v, before, EN_TALLY * sizeof(double));
            const en_now *now = up(v, &usual, sizeof usual);
            RUN(v, v->be->ops->rmsprop_update(v->be, &reference, now, &(en_segment){ .elems = elems, .decay = true }, 1, dev[0], dev[4], dev[1], dev[2], dev[3], tally));
            for (int i = 0; i < 4; i++) {
                const bool same = !memcmp(DOWN_F(v, dev[i], elems), host[i], (size_t)elems * sizeof(float));
                if (same == cases[k].counts) failed("[%s] array %d %s", v->name, i, same ? "did not change" : "changed");
            }
            const double got = DOWN_D(v, tally, EN_TALLY)[EN_TALLY_GRAD_SQUARE];
            if (!(fabs(got - squares) <= rounding((double)elems + 2) * squares)) failed("[%s] sum of squares %.9g want %.9g", v->name, got, squares);
            float *shadow = BOTH_F(v, a.ema, elems);
            RUN(v, v->be->ops->ema_update(v->be, now, elems, dev[4], shadow, tally));
            if (!memcmp(DOWN_F(v, shadow, elems), a.ema, (size_t)elems * sizeof(float)) == cases[k].counts) failed("[%s] the average of the others", v->name);
        }
    }
    verdict();
}

/* Weights that the backend keeps in another type as well: what a pass computes with them follows every update. */
static void kept_weights_follow_the_optimizer(void **state)
{
    (void)state;
    if (problem(true, "rmsprop kept weights")) {
        const int64_t c = 16, rows = 5, elems = c * c;
        arena a = arena_make(elems);
        for (int64_t i = 0; i < elems; i++) a.ms[i] = 1, a.mom[i] = 0;
        float *x = mem_f(rows * c);
        for (int64_t r = 0; r < rows; r++) x[r * c + r] = 1;     /* y is rows of the weights */
        const en_rmsprop h = { .rho = 1, .momentum = 0, .eps = 0, .weight_decay = 0 };
        const en_now now = { .lr = 2, .ema_decay = 0.5f };       /* w - 2*grad: small integers still */
        const en_conv_geom rg = { .n = 1, .h = rows, .w = 1, .c = c, .oh = rows, .ow = 1, .oc = c };
        for (variant *v = first(0); v; v = next(v)) {
            float *dev[5], *const host[] = { a.w, a.grad, a.ms, a.mom };
            for (int i = 0; i < 4; i++) dev[i] = BOTH_F(v, host[i], elems);
            reserve(v, &rg);
            double *tally = both(v, mem_d(EN_TALLY), EN_TALLY * sizeof(double));
            const void *x_dev = up_a(v, x, rows * c);
            RUN(v, v->be->ops->keep_weights(v->be, dev[0], elems));
            for (int round = 0; round < 3; round++) {
                if (round == 1)
                    RUN(v, v->be->ops->rmsprop_update(v->be, &h, up(v, &now, sizeof now), &(en_segment){ .elems = elems }, 1, dev[0], dev[1], dev[2], dev[3], NULL, tally));
                if (round == 2) RUN(v, v->be->ops->upload(v->be, dev[0], a.grad, (size_t)elems * sizeof(float)));
                void *y_dev = out_a(v, rows * c);
                RUN(v, v->be->ops->pointwise_forward(v->be, rows, c, c, x_dev, dev[0], y_dev, NULL));
                const float *y = down_a(v, y_dev, rows * c);
                for (int64_t i = 0; i < rows * c; i++) {
                    const float want = round == 0 ? a.w[i] : round == 1 ? a.w[i] - 2 * a.grad[i] : a.grad[i];
                    if (y[i] != want) { failed("[%s] %s: y[%d] is %g, want %g", v->name, (const char *[]){ "at first", "updated", "uploaded" }[round], (int)i, (double)y[i], (double)want); break; }
                }
            }
            RUN(v, v->be->ops->keep_weights(v->be, dev[0], 0));
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
        cmocka_unit_test(updates_are_tensorflows_within_the_rounding_bound),
        cmocka_unit_test(segments_are_updated_and_nothing_between_them),
        cmocka_unit_test(a_poisoned_gradient_shows_in_the_sum_of_squares),
        cmocka_unit_test(a_step_that_does_not_count_changes_nothing),
        cmocka_unit_test(kept_weights_follow_the_optimizer),
        cmocka_unit_test(the_moving_average_is_within_the_rounding_bound),
    };
    return cmocka_run_group_tests(tests, open_variants, close_variants);
}
