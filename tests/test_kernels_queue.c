/* test_kernels_queue.c - what a backend promises about order: input that travels beside the compute, recordings, marks,
 * memory.  The numbers are small integers, so every sum is exact: what is wrong here is late, early or twice. */
#include "fixture.h"

#include <stdlib.h>

enum { C = 16, ROWS = 12, SIZE = ROWS * C };

static void *device(variant *v, size_t bytes)
{
    void *p = NULL;
    RUN(v, v->be->ops->alloc(v->be, bytes, &p));
    return p;
}

/* Steps through the slots as a run does: while the device works at one, the host fills the next.  What step k adds to its
 * own accumulator must be what was staged for it, however late the copies run. */
static void a_slot_holds_what_was_staged_until_its_passes_are_done(void **state)
{
    (void)state;
    enum { STEPS = 9, N = 3000 };
    if (problem(true, "slots"))
        for (variant *v = first(0); v; v = next(v)) {
            const struct en_backend_ops *ops = v->be->ops;
            const int slots = v->be->slots;
            if (slots < 1) { failed("[%s] %d slots", v->name, slots); continue; }
            float **values = mem((size_t)slots * sizeof *values), **there = mem((size_t)slots * sizeof *there), *sums[STEPS];
            en_now **nows = mem((size_t)slots * sizeof *nows), **nows_there = mem((size_t)slots * sizeof *nows_there);
            const double *tally = UP_D(v, mem_d(EN_TALLY), EN_TALLY);
            for (int s = 0; s < slots; s++) {
                RUN(v, ops->host_alloc(v->be, N * sizeof(float), (void **)&values[s]));
                RUN(v, ops->host_alloc(v->be, sizeof(en_now), (void **)&nows[s]));
                there[s] = device(v, N * sizeof(float));
                nows_there[s] = device(v, sizeof(en_now));
            }
            for (int k = 0; k < STEPS; k++) sums[k] = BOTH_F(v, mem_f(N), N);
            for (int k = 0; k < STEPS; k++) {
                const int s = k % slots;
                if (k >= slots) RUN_ON(v, ops->stage_wait(v->be, s));
                for (int i = 0; i < N; i++) values[s][i] = (float)(k * 1000 + i % 97);
                *nows[s] = (en_now){ .step = k, .ema_decay = 0 };       /* shadow -= 1*(shadow - x) */
                const en_copy copies[] = { { there[s], values[s], N * sizeof(float) }, { NULL, NULL, 0 }, { nows_there[s], nows[s], sizeof(en_now) } };
                RUN_ON(v, ops->stage(v->be, s, copies, 3));
                RUN_ON(v, ops->stage_ready(v->be, s));
                RUN_ON(v, ops->ema_update(v->be, nows_there[s], N, there[s], sums[k], tally));
                RUN_ON(v, ops->stage_done(v->be, s));
            }
            for (int k = 0; k < STEPS; k++) {
                const float *got = DOWN_F(v, sums[k], N);
                for (int i = 0; i < N; i++)
                    if (got[i] != (float)(k * 1000 + i % 97)) { failed("[%s] step %d has %g at %d", v->name, k, (double)got[i], i); break; }
            }
            for (int s = 0; s < slots; s++) {
                ops->free(v->be, there[s]), ops->free(v->be, nows_there[s]);
                ops->host_free(v->be, values[s]), ops->host_free(v->be, nows[s]);
            }
        }
    verdict();
}

/* Memory comes zeroed, and the zeros come before whatever is done with it: be it staged into beside the compute. */
static void zeros_of_new_memory_never_fall_on_what_came_after(void **state)
{
    (void)state;
    enum { N = 5000 };
    if (problem(true, "staged into new memory"))
        for (variant *v = first(0); v; v = next(v)) {
            float *host = NULL;
            RUN(v, v->be->ops->host_alloc(v->be, N * sizeof(float), (void **)&host));
            for (int i = 0; host && i < N; i++) host[i] = (float)i;
            for (int round = 0; round < 32; round++) {
                void *p = NULL;
                if (v->be->ops->alloc(v->be, N * sizeof(float), &p) != EN_OK) failed("[%s] alloc: %s", v->name, en_error_text());
                const en_copy copy = { p, host, N * sizeof(float) };
                RUN_ON(v, v->be->ops->stage(v->be, 0, &copy, 1));
                RUN_ON(v, v->be->ops->stage_ready(v->be, 0));
                RUN_ON(v, v->be->ops->stage_done(v->be, 0));
                if (memcmp(DOWN_F(v, p, N), host, N * sizeof(float))) failed("[%s] what was staged into new memory is gone", v->name);
                v->be->ops->free(v->be, p);
            }
            v->be->ops->host_free(v->be, host);
        }
    verdict();
}

typedef struct { const void *x, *g; void *y, *dx; float *wt, *dwt; en_bn *bn; en_grad grad; double *tally; const en_now *now; } layer;

static en_status run_layer(variant *v, const layer *l)
{
    const struct en_backend_ops *ops = v->be->ops;
    EN_TRY(ops->zero(v->be, l->bn->local, (2 * C + 1) * sizeof(double)), "zero");
    EN_TRY(ops->pointwise_forward(v->be, ROWS, C, C, l->x, l->wt, l->y, l->bn), "forward");
    EN_TRY(ops->pointwise_backward(v->be, ROWS, C, C, l->x, l->wt, &l->grad, NULL, l->dx, l->dwt), "backward");
    EN_TRY(ops->note(v->be, l->now, l->tally), "note");
    return EN_OK;
}

static layer layer_up(variant *v, const host_grad *d, en_bn *bn, en_bn *grad_bn, const float *x, const float *wt, const float *start)
{
    const en_conv_geom g = { .n = 1, .h = ROWS, .w = 1, .c = C, .oh = ROWS, .ow = 1, .oc = C };
    static const en_now now = { .failed = 1 };
    reserve(v, &g);
    workspace(v, EN_WORK_POINTWISE_BACKWARD, &g);
    *bn = bn_up(v, d->of.bn);
    return (layer){ .x = both_a(v, x, SIZE), .y = out_a(v, SIZE), .dx = out_a(v, SIZE), .wt = BOTH_F(v, wt, C * C), .dwt = BOTH_F(v, start, C * C), .bn = bn,
                    .grad = grad_up(v, d, grad_bn), .tally = both(v, mem_d(EN_TALLY), EN_TALLY * sizeof(double)), .now = up(v, &now, sizeof now) };
}

/* A recording does nothing until it is launched; then the same as the calls, with what memory holds by then, every time. */
static void a_recording_repeats_the_calls_with_what_memory_holds(void **state)
{
    (void)state;
    if (problem(true, "recording")) {
        float *x[3], *wt = random_rows(C, C, C), *start = random_rows(C, C, C);
        for (int k = 0; k < 3; k++) x[k] = random_rows(ROWS, C, C);
        const host_grad d = grad_make(1, ROWS, C, C, PLAIN);
        for (variant *v = first(0); v; v = next(v)) {
            en_bn bn, grad_bn, live_bn, live_grad_bn;
            void *graph = NULL;
            if (!v->be->captures) {
                if (v->be->ops->capture_begin(v->be) == EN_OK) failed("[%s] begins a recording that it says it cannot make", v->name);
                en_error_clear();
                continue;
            }
            const layer l = layer_up(v, &d, &bn, &grad_bn, x[0], wt, start), live = layer_up(v, &d, &live_bn, &live_grad_bn, x[0], wt, start);
            RUN(v, run_layer(v, &live));                        /* what a backend prepares at first sight of a shape */
            RUN_ON(v, v->be->ops->capture_begin(v->be));
            RUN_ON(v, v->be->ops->mark(v->be, 0));
            RUN_ON(v, run_layer(v, &l));
            RUN_ON(v, v->be->ops->mark(v->be, 1));
            RUN_ON(v, v->be->ops->capture_end(v->be, &graph));
            RUN(v, v->be->ops->synchronize(v->be));
            check_same(v, "an output, by the recording alone: it", DOWN_F(v, l.dwt, C * C), start, C * C * (int64_t)sizeof(float));
            if (!isnan(down_a(v, l.y, SIZE)[0])) failed("[%s] the recording ran before its launch", v->name);
            for (int k = 0; k < 3; k++) {
                if (k) {                                        /* other input, at the same place */
                    const void *narrow = up_a(v, x[k], SIZE);
                    const size_t bytes = SIZE * en_dtype_bytes(v->be->dtype);
                    const void *host = down(v, narrow, (int64_t)bytes);
                    RUN(v, v->be->ops->upload(v->be, (void *)l.x, host, bytes));
                    RUN(v, v->be->ops->upload(v->be, (void *)live.x, host, bytes));
                    RUN(v, run_layer(v, &live));
                }
                RUN(v, v->be->ops->graph_launch(v->be, graph));
                check_same(v, "y of the launch", down_a(v, l.y, SIZE), down_a(v, live.y, SIZE), SIZE * (int64_t)sizeof(float));
                check_same(v, "dx of the launch", down_a(v, l.dx, SIZE), down_a(v, live.dx, SIZE), SIZE * (int64_t)sizeof(float));
                check_same(v, "dwt of the launch", DOWN_F(v, l.dwt, C * C), DOWN_F(v, live.dwt, C * C), C * C * (int64_t)sizeof(float));
                check_same(v, "sums of the launch", DOWN_D(v, bn.local, 2 * C + 1), DOWN_D(v, live_bn.local, 2 * C + 1), (2 * C + 1) * (int64_t)sizeof(double));
                if (DOWN_D(v, l.tally, EN_TALLY)[EN_TALLY_FAILED] != k + 1) failed("[%s] %g notes after %d launches", v->name, DOWN_D(v, l.tally, EN_TALLY)[EN_TALLY_FAILED], k + 1);
                const double took = v->be->ops->elapsed(v->be, 0, 1);
                if (!(took >= 0 && took < 600)) failed("[%s] a launch took %g s", v->name, took);
            }
            v->be->ops->graph_free(v->be, graph);
        }
    }
    verdict();
}

static void marks_stand_in_the_order_of_the_queue(void **state)
{
    (void)state;
    if (problem(true, "marks"))
        for (variant *v = first(0); v; v = next(v)) {
            void *p = device(v, 1 << 20);
            for (int i = 0; i < EN_MARKS; i++) {
                RUN_ON(v, v->be->ops->mark(v->be, i));
                RUN_ON(v, v->be->ops->zero(v->be, p, 1 << 20));
            }
            RUN(v, v->be->ops->synchronize(v->be));
            for (int i = 1; i < EN_MARKS; i++) {
                const double step = v->be->ops->elapsed(v->be, i - 1, i), back = v->be->ops->elapsed(v->be, i, i - 1), all = v->be->ops->elapsed(v->be, 0, i);
                if (!(step >= 0 && back <= 0 && all >= step && all < 600)) failed("[%s] mark %d: %g s, back %g s, from the first %g s", v->name, i, step, back, all);
            }
            v->be->ops->free(v->be, p);
        }
    verdict();
}

static void scaling_multiplies_each_value_once(void **state)
{
    (void)state;
    static const int elems[] = { 0, 1, 31, 1000, 70001 };
    for (int k = 0; k < 5; k++) {
        if (!problem(true, "scale elems%d", elems[k])) continue;
        const int64_t n = elems[k];
        float *x = random_floats(n, 1, 1);
        for (variant *v = first(0); v; v = next(v)) {
            float *dev = BOTH_F(v, x, n);
            RUN(v, v->be->ops->scale(v->be, n, 0.25f, dev));
            const float *got = DOWN_F(v, dev, n);
            for (int64_t i = 0; i < n; i++)
                if (got[i] != 0.25f * x[i]) { failed("[%s] x[%d] is %g, was %g", v->name, (int)i, (double)got[i], (double)x[i]); break; }
        }
    }
    verdict();
}

/* More than any device has: an error with the numbers in it, and a backend that goes on. */
static void memory_that_is_not_there_is_an_error_and_nothing_else(void **state)
{
    (void)state;
    if (problem(true, "no memory"))
        for (variant *v = first(0); v; v = next(v)) {
#ifdef __SANITIZE_ADDRESS__
            if (!strcmp(v->be->name, "cpu")) continue;          /* its malloc ends the process rather than to say no */
#endif
            void *p = v;
            en_error_clear();
            const en_status s = v->be->ops->alloc(v->be, (size_t)1 << 46, &p);
            if (s != EN_ENOMEM || p || !*en_error_text()) failed("[%s] 64 TiB: status %d, %p, '%s'", v->name, (int)s, p, en_error_text());
            en_error_clear();
            if (v->be->ops->memory_available(v->be) < 0) failed("[%s] less than no memory", v->name);
            float *small = OUT_F(v, 16);
            RUN(v, v->be->ops->zero(v->be, small, 16 * sizeof(float)));
            if (DOWN_F(v, small, 16)[15] != 0) failed("[%s] no zero after the error", v->name);
        }
    verdict();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_slot_holds_what_was_staged_until_its_passes_are_done),
        cmocka_unit_test(zeros_of_new_memory_never_fall_on_what_came_after),
        cmocka_unit_test(a_recording_repeats_the_calls_with_what_memory_holds),
        cmocka_unit_test(marks_stand_in_the_order_of_the_queue),
        cmocka_unit_test(scaling_multiplies_each_value_once),
        cmocka_unit_test(memory_that_is_not_there_is_an_error_and_nothing_else),
    };
    return cmocka_run_group_tests(tests, open_variants, close_variants);
}
