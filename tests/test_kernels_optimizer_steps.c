/* test_kernels_optimizer_steps.c - runs of many steps of each optimizer: PyTorch's runs in float64 (golden/make_optimizer.py wrote them),
 * random ones against the oracle, steps that do not count in between, and recordings.
 *
 * The oracle must be PyTorch to rounding in double: 24 steps of some ten operations on numbers of order 1 and rates below 1, so 1e-13.
 * The passes must be PyTorch within the bound that optimizer_help.c carries from step to step.  In the end, as a whole, they may be off by
 * no more than twice PyTorch's own float32: both round some ten times a step, and differ in what they multiply first. */
#include "optimizer_help.h"

#include "golden/optimizer.h"

enum { N_GOLDEN = sizeof golden / sizeof *golden };
static const en_segment two_tensors[] = { { 0, DECAYING, true, true }, { DECAYING, ELEMS - DECAYING, false, false } };

/* What make_optimizer.py says of them. */
static float weight(int i)             { return (float)((i * 37 + 11) % 97 - 48) / 64; }
static float gradient(int i, int step) { return (float)((i * 53 + step * 29 + i * step % 13 * 7) % 101 - 50) / 128; }
static en_now now_at(double base, int step) { return (en_now){ .step = step, .lr = (float)(base * (1 + step % 3)), .ema_decay = 0.5f }; }

static host_arenas golden_arenas(const optimizer *o)
{
    float *w = mem_f(ELEMS);
    for (int i = 0; i < ELEMS; i++) w[i] = weight(i);
    return arenas_new(o, w, ELEMS);
}

static float *golden_gradients(int step)
{
    float *g = mem_f(ELEMS);
    for (int i = 0; i < ELEMS; i++) g[i] = gradient(i, step);
    return g;
}

static void near(const char *what, int step, bounded got, const double *want)
{
    for (int i = 0; i < ELEMS; i++)
        if (!(fabs(got.v[i] - want[i]) <= 1e-13 * (1 + fabs(want[i]))))
            failed("%s[%d] after step %d: %.17g want %.17g", what, i, step, got.v[i], want[i]);
}

static void the_oracle_is_pytorch(void **state)
{
    (void)state;
    for (int k = 0; k < N_GOLDEN; k++) {
        const optimizer *o = &golden[k].o;
        if (!problem(false, "oracle %s", o->name)) continue;
        const host_arenas a = golden_arenas(o);
        expected x = expect(&a, ELEMS);
        for (int step = 0, kept = 0; step < STEPS; step++) {
            const en_now now = now_at(golden[k].rate, step);
            expect_step(o, &now, two_tensors, 2, golden_gradients(step), &x);
            if (step + 1 == kept_steps[kept]) near("w", step + 1, x.w, golden[k].w[kept]), kept++;
        }
        for (int s = 0; s < optimizer_slots(o); s++) near("accumulator", STEPS, x.slot[s], golden[k].slot[s]);
    }
    verdict();
}

static double distance(const float *got, const double *want)
{
    double sum = 0;
    for (int i = 0; i < ELEMS; i++) sum += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
    return sqrt(sum);
}

static void runs_are_pytorchs(void **state)
{
    (void)state;
    for (int k = 0; k < N_GOLDEN; k++) {
        const optimizer *o = &golden[k].o;
        if (!problem(false, "%s as PyTorch", o->name)) continue;
        const host_arenas a = golden_arenas(o);
        float *grads[STEPS];
        en_now nows[STEPS];
        expected x = expect(&a, ELEMS);
        bounded want[KEPT];
        for (int step = 0, kept = 0; step < STEPS; step++) {
            grads[step] = golden_gradients(step);
            nows[step] = now_at(golden[k].rate, step);
            expect_step(o, &nows[step], two_tensors, 2, grads[step], &x);
            if (step + 1 != kept_steps[kept]) continue;
            want[kept] = fresh(ELEMS);
            memcpy(want[kept].v, golden[k].w[kept], ELEMS * sizeof(double));
            memcpy(want[kept++].e, x.w.e, ELEMS * sizeof(double));
        }
        for (variant *v = first(0); v; v = next(v)) {
            const device_arenas d = arenas_up(v, o, &a, ELEMS, false, NULL);
            for (int step = 0, kept = 0; step < STEPS; step++) {
                RUN(v, update(v, o, up(v, &nows[step], sizeof *nows), two_tensors, 2, UP_F(v, grads[step], ELEMS), &d));
                if (step + 1 == kept_steps[kept]) check(v, "w", DOWN_F(v, d.w, ELEMS), want[kept], ELEMS, ELEMS), kept++;
            }
            const double off = distance(DOWN_F(v, d.w, ELEMS), golden[k].w[KEPT - 1]);
            if (golden[k].float32 > 0 && !(off <= 2 * golden[k].float32))
                failed("[%s] off by %g, PyTorch's float32 by %g", v->name, off, golden[k].float32);
        }
    }
    verdict();
}

/* Tensors of several pieces and chunks, their ends at odd places; in between, steps that do not count, by the tally and by their gradients
 * in turn: the average, the accumulators and AdamW's correction go on from the one before, as if the step had not been. */
static void runs_with_steps_that_do_not_count_are_the_oracles(void **state)
{
    (void)state;
    enum { RUN_STEPS = 25 };
    const int n = (int)fitting(9000, 100 * RUN_STEPS), odd = n / 3 | 1;
    const en_segment segments[] = { { 0, odd, true, true }, { odd, 5, false, false }, { odd + 5, n - odd - 5, true, true } };
    for (int k = 0; k < n_optimizers; k++) {
        const optimizer *o = &optimizers[k];
        if (!problem(false, "%s %d steps", o->name, RUN_STEPS)) continue;
        const host_arenas a = arenas_new(o, random_floats(n, 1, 1), n);
        float *grads[RUN_STEPS];
        en_now nows[RUN_STEPS];
        double *tally[2] = { mem_d(EN_TALLY), mem_d(EN_TALLY) };
        tally[1][EN_TALLY_FAILED] = 1;
        expected x = expect(&a, n);
        for (int step = 0; step < RUN_STEPS; step++) {
            grads[step] = random_floats(n, 1, 1);
            nows[step] = (en_now){ .step = step, .lr = 0.01f * (float)(1 + step % 4), .ema_decay = 0.75f };
            if (step % 7 != 4) expect_step(o, &nows[step], segments, 3, grads[step], &x);
            else if (step % 2) grads[step][n - 1] = INFINITY;
        }
        for (variant *v = first(0); v; v = next(v)) {
            const device_arenas d = arenas_up(v, o, &a, n, true, NULL);
            for (int step = 0; step < RUN_STEPS; step++) {
                RUN(v, v->be->ops->upload(v->be, d.tally, tally[step % 7 == 4 && step % 2 == 0], EN_TALLY * sizeof(double)));
                RUN(v, update(v, o, up(v, &nows[step], sizeof *nows), segments, 3, UP_F(v, grads[step], n), &d));
            }
            check_arenas(v, o, &d, &x, n, true);
        }
    }
    verdict();
}

/* A recorded update reads its rate, its gradients and the count of updates when it is launched: launches are calls, to the bit. */
static void a_recorded_update_is_made_anew_at_every_launch(void **state)
{
    (void)state;
    enum { N = 5003, LAUNCHES = 4 };
    static const en_segment segments[] = { { 0, 3001, true, true }, { 3001, 2002, false, true } };
    for (int k = 0; k < n_optimizers; k++) {
        const optimizer *o = &optimizers[k];
        if (!problem(false, "%s recorded", o->name)) continue;
        const host_arenas a = arenas_new(o, random_floats(N, 1, 1), N);
        float *grads[LAUNCHES + 1];
        for (int i = 0; i <= LAUNCHES; i++) grads[i] = random_floats(N, 1, 1);
        for (variant *v = first(0); v; v = next(v)) {
            if (!v->be->captures) continue;
            const struct en_backend_ops *ops = v->be->ops;
            const device_arenas live = arenas_up(v, o, &a, N, true, NULL), replayed = arenas_up(v, o, &a, N, true, NULL);
            const device_arenas *const both_ways[] = { &live, &replayed };
            float *grad = BOTH_F(v, grads[LAUNCHES], N);
            en_now *now = both(v, mem(sizeof(en_now)), sizeof(en_now));
            void *graph = NULL;
            for (int way = 0; way < 2; way++) {
                for (int i = -1; i < LAUNCHES; i++) {             /* the first is no launch: the device sees the segments first */
                    const en_now at = { .step = i, .lr = 0.01f * (float)(2 + i), .ema_decay = 0.5f };
                    RUN(v, ops->upload(v->be, grad, grads[i < 0 ? LAUNCHES : i], N * sizeof(float)));
                    RUN(v, ops->upload(v->be, now, &at, sizeof at));
                    if (way == 0 || i < 0) RUN(v, update(v, o, now, segments, 2, grad, both_ways[way]));
                    else RUN(v, ops->graph_launch(v->be, graph));
                    if (way == 1 && i < 0) {
                        RUN_ON(v, ops->capture_begin(v->be));
                        RUN_ON(v, update(v, o, now, segments, 2, grad, &replayed));
                        RUN_ON(v, ops->capture_end(v->be, &graph));
                    }
                }
            }
            ops->graph_free(v->be, graph);
            check_same(v, "w", DOWN_F(v, replayed.w, N), DOWN_F(v, live.w, N), N * (int64_t)sizeof(float));
            check_same(v, "ema", DOWN_F(v, replayed.ema, N), DOWN_F(v, live.ema, N), N * (int64_t)sizeof(float));
            check_same(v, "updates", down(v, replayed.updates, sizeof(int64_t)), down(v, live.updates, sizeof(int64_t)), sizeof(int64_t));
            check_same(v, "tally", DOWN_D(v, replayed.tally, EN_TALLY), DOWN_D(v, live.tally, EN_TALLY), EN_TALLY * (int64_t)sizeof(double));
            if (o->kind == ADAMW && *(const int64_t *)down(v, replayed.updates, sizeof(int64_t)) != LAUNCHES + 1) failed("[%s] updates", v->name);
        }
    }
    verdict();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_oracle_is_pytorch),
        cmocka_unit_test(runs_are_pytorchs),
        cmocka_unit_test(runs_with_steps_that_do_not_count_are_the_oracles),
        cmocka_unit_test(a_recorded_update_is_made_anew_at_every_launch),
    };
    return cmocka_run_group_tests(tests, open_variants, close_variants);
}
