/* test_kernels_optimizer.c - RMSProp with its moving average, and the moving average alone.
 *
 * Per element a handful of operations: the bound follows them one by one (below), first order. */
#include "fixture.h"

#include <float.h>

typedef struct { float *w, *grad, *ms, *mom, *ema; } arena;

static arena arena_make(int64_t elems)
{
    arena a = { random_rows(elems, 1, 1), random_rows(elems, 1, 1), random_rows(elems, 1, 1), random_rows(elems, 1, 1), random_rows(elems, 1, 1) };
    for (int64_t i = 0; i < elems; i++) a.ms[i] = 0.001f + fabsf(a.ms[i]), a.mom[i] *= 0.1f;
    return a;
}

static void optimizer_case(const en_rmsprop *h, const en_segment *segments, int n_segments, int64_t elems, bool ema)
{
    const arena a = arena_make(elems);
    bounded w = exactly(a.w, elems), ms = exactly(a.ms, elems), mom = exactly(a.mom, elems), avg = exactly(a.ema, elems);
    double squares = 0;
    int64_t covered = 0;
    for (int s = 0; s < n_segments; s++)
        for (int64_t i = segments[s].offset; i < segments[s].offset + segments[s].elems; i++) {
            const oracle_slot next_slot = oracle_rmsprop(h, segments[s].decay, a.grad[i], (oracle_slot){ a.w[i], a.ms[i], a.mom[i], a.ema[i] });
            const double decay = segments[s].decay ? (double)h->weight_decay * fabs((double)a.w[i]) : 0, g = fabs((double)a.grad[i]) + decay;
            const double eg = 2 * UNIT * g, step = (double)h->lr * g / sqrt(next_slot.ms + (double)h->eps);
            ms.v[i] = next_slot.ms, mom.v[i] = next_slot.mom, w.v[i] = next_slot.w, avg.v[i] = next_slot.ema;
            ms.e[i] = 2 * g * eg * (1 - (double)h->rho) + 4 * UNIT * (g * g + (double)a.ms[i]);
            mom.e[i] = step * (0.5 * ms.e[i] / (next_slot.ms + (double)h->eps) + 8 * UNIT) + 3 * UNIT * fabs((double)a.mom[i]);
            w.e[i] = mom.e[i] + UNIT * fabs(next_slot.w);
            avg.e[i] = 2 * w.e[i] * (1 - (double)h->ema_decay) + UNIT * fabs(next_slot.ema) + 4 * UNIT * (1 - (double)h->ema_decay) * (fabs((double)a.ema[i]) + fabs(next_slot.w));
            squares += (double)a.grad[i] * (double)a.grad[i];
            covered++;
        }
    for (variant *v = first(0); v; v = next(v)) {
        float *w_dev = BOTH_F(v, a.w, elems), *ms_dev = BOTH_F(v, a.ms, elems), *mom_dev = BOTH_F(v, a.mom, elems), *ema_dev = ema ? BOTH_F(v, a.ema, elems) : NULL;
        double got = NAN;
        RUN(v, v->be->ops->rmsprop_update(v->be, h, segments, n_segments, w_dev, UP_F(v, a.grad, elems), ms_dev, mom_dev, ema_dev, &got));
        check(v, "w", DOWN_F(v, w_dev, elems), w, elems, elems);
        check(v, "ms", DOWN_F(v, ms_dev, elems), ms, elems, elems);
        check(v, "mom", DOWN_F(v, mom_dev, elems), mom, elems, elems);
        if (ema) check(v, "ema", DOWN_F(v, ema_dev, elems), avg, elems, elems);
        if (!(fabs(got - squares) <= rounding((double)covered + 2) * squares)) failed("[%s] sum of squares %.9g want %.9g", v->isa, got, squares);
        double *joined = mem_d(1);                              /* the sum too must not depend on the threads */
        *joined = got;
        double *dev = both(v, joined, 8);
        down(v, dev, 8);
    }
}

static const en_rmsprop reference = { .lr = 0.016f, .rho = 0.9f, .momentum = 0.9f, .eps = 1e-3f, .weight_decay = 1e-5f, .ema_decay = 0.9999f };

static void updates_are_tensorflows_within_the_rounding_bound(void **state)
{
    (void)state;
    static const int elems[] = { 1, 7, 16, 17, 113, 1000, 4099, 70000 };
    for (int k = 0; k < 8; k++)
        for (int ema = 0; ema < 2; ema++)
            if (problem(false, "rmsprop elems%d%s", elems[k], ema ? " ema" : ""))
                optimizer_case(&reference, &(en_segment){ .offset = 0, .elems = elems[k], .decay = true }, 1, elems[k], ema);
    const en_rmsprop heavy = { .lr = 0.5f, .rho = 0.5f, .momentum = 0.3f, .eps = 0.1f, .weight_decay = 0.1f, .ema_decay = 0.5f };
    if (problem(false, "rmsprop heavy")) optimizer_case(&heavy, &(en_segment){ .elems = 513, .decay = true }, 1, 513, true);
    if (problem(false, "rmsprop lr 0")) {                       /* the first step of a warm-up */
        en_rmsprop h = reference;
        h.lr = 0;
        optimizer_case(&h, &(en_segment){ .elems = 513, .decay = true }, 1, 513, true);
    }
    verdict();
}

/* Segments decay or not, leave gaps that belong to others (bounds of 0 there: untouched), and may be empty. */
static void segments_are_updated_and_nothing_between_them(void **state)
{
    (void)state;
    const en_segment segments[] = { { 16, 33, true }, { 64, 16, false }, { 96, 0, true }, { 96, 1, false }, { 112, 700, true }, { 816, 160, false } };
    en_rmsprop h = reference;
    h.weight_decay = 0.5f;                                      /* large enough that a wrong `decay` shows */
    if (problem(false, "rmsprop segments")) optimizer_case(&h, segments, 6, 1000, true);
    if (problem(false, "rmsprop no segments")) optimizer_case(&h, segments, 0, 64, true);
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
                double got = 0;
                RUN(v, v->be->ops->rmsprop_update(v->be, &reference, &(en_segment){ .elems = 1000, .decay = true }, 1, BOTH_F(v, a.w, 1000), UP_F(v, a.grad, 1000),
                                                  BOTH_F(v, a.ms, 1000), BOTH_F(v, a.mom, 1000), BOTH_F(v, a.ema, 1000), &got));
                if (isfinite(got)) failed("[%s] the sum of squares is %g", v->isa, got);
            }
        }
    if (problem(false, "rmsprop large but finite")) {           /* 1e15 squared is a float; a sum of 1000 of them too */
        const arena a = arena_make(1000);
        for (int i = 0; i < 1000; i++) a.grad[i] = 1e15f;
        for (variant *v = first(0); v; v = next(v)) {
            double got = 0;
            RUN(v, v->be->ops->rmsprop_update(v->be, &reference, &(en_segment){ .elems = 1000, .decay = true }, 1, BOTH_F(v, a.w, 1000), UP_F(v, a.grad, 1000),
                                              BOTH_F(v, a.ms, 1000), BOTH_F(v, a.mom, 1000), NULL, &got));
            if (!(fabs(got - 1e33) <= 1e-4 * 1e33)) failed("[%s] the sum of squares is %g", v->isa, got);
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
            float *x = random_rows(n, 1, 1), *shadow = random_rows(n, 1, 1);
            bounded want = exactly(shadow, n);
            for (int64_t i = 0; i < n; i++) {
                want.v[i] = oracle_ema(shadow[i], x[i], (double)decays[d]);
                want.e[i] = UNIT * fabs(want.v[i]) + 4 * UNIT * (1 - (double)decays[d]) * (fabs((double)x[i]) + fabs((double)shadow[i]));
            }
            for (variant *v = first(0); v; v = next(v)) {
                float *s = BOTH_F(v, shadow, n);
                RUN(v, v->be->ops->ema_update(v->be, n, UP_F(v, x, n), s, decays[d]));
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
        cmocka_unit_test(the_moving_average_is_within_the_rounding_bound),
    };
    return cmocka_run_group_tests(tests, open_variants, close_variants);
}
