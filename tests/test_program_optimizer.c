/* test_program_optimizer.c - --optimizer from outside: the step that it makes, what a checkpoint holds of it, resumes, refusals.
 *
 * 200 images in steps of 10, as in test_program_resume.c. */
#include "program.h"

#include "oracle.h"
#include "trainer/checkpoint/checkpoint.h"

#include <math.h>

#define TRAIN "train --width 0.25 --depth 0.5 --image-size 32 --global-batch 10 --threads 1 --eval-every 0"

static const char *data(void) { return drawn("--train-per-class 20 --val-per-class 2 --synth-size 48"); }

static const struct { const char *options, *slots[2]; } ways[] = {
    { "--optimizer rmsprop --lr 0.001", { "ms", "mom" } },
    { "--optimizer sgd --lr 0.5 --nesterov", { "momentum_buffer" } },
    { "--optimizer sgd --lr 0.5 --momentum 0", { NULL } },
    { "--optimizer lars --lr 50 --lr-schedule polynomial --lr-end 0.1", { "momentum" } },
    { "--optimizer adamw --lr 0.03 --weight-decay 0.05", { "exp_avg", "exp_avg_sq" } },
};
enum { WAYS = sizeof ways / sizeof *ways };

/* ---- the step ----------------------------------------------------------------------------------------------------------- */

static bool ends(const char *name, const char *end) { return strlen(name) >= strlen(end) && strcmp(name + strlen(name) - strlen(end), end) == 0; }

static double norm(const tensor *x)
{
    double sum = 0;
    for (size_t i = 0; i < x->n; i++) sum += (double)x->v[i] * (double)x->v[i];
    return sqrt(sum);
}

typedef oracle_state step_fn(const en_now *now, bool decay, double trust, double grad, oracle_state s);
static const en_lars lars = { .momentum = 0.9f, .trust = 0.25f, .weight_decay = 0.5f };
static oracle_state lars_step(const en_now *now, bool decay, double trust, double grad, oracle_state s)
{
    return oracle_lars(&lars, now, decay, trust, grad, s);
}
static oracle_state adamw_step(const en_now *now, bool decay, double trust, double grad, oracle_state s)
{
    (void)trust;
    return oracle_adamw(&(en_adamw){ .beta1 = 0.5, .beta2 = 0.75, .eps = 0.125f, .weight_decay = 0.5f }, now, decay, 1, grad, s);
}
static oracle_state sgd_step(const en_now *now, bool decay, double trust, double grad, oracle_state s)
{
    (void)trust;
    return oracle_sgd(&(en_sgd){ .momentum = 0.5f, .nesterov = true, .weight_decay = 0.5f }, now, decay, grad, s);
}

/* The first step of a run, tensor by tensor, from the weights and gradients that it saw; some ten roundings of numbers of the size of the
 * weight and of what is added to it.  A batch norm's parameters, .weight and .bias of one dimension beside running statistics, never decay;
 * other biases do but with LARS, which leaves alone whatever has one dimension: here told by its name, in the program by its shape. */
static void a_step_is(const char *options, double rate, bool is_lars, step_fn *step)
{
    const char *dump = at("%s.h5", is_lars ? "lars" : strstr(options, "sgd") ? "sgd" : "adamw");
    outcome *o = run(0, 0, TRAIN " %s --lr-schedule constant --warmup-epochs 0 --steps 1 --data %s --run %s.run --dump %s", options, data(), dump, dump);
    size_t n, m, k;
    const tensor *before = tensors(dump, "/before", &n), *grads = tensors(dump, "/gradients", &m), *after = tensors(dump, "/after", &k);
    const en_now now = { .lr = (float)rate };
    int seen[3] = { 0 };
    assert_true(n == k && m > 0 && m < n);
    const size_t b = strlen("/before"), d = strlen("/gradients"), a = strlen("/after");      /* names begin with the group */
    for (size_t i = 0, g = 0; g < m; i++) {
        assert_true(i < n && strcmp(before[i].name + b, after[i].name + a) == 0);
        if (strcmp(before[i].name + b, grads[g].name + d) != 0) continue;                    /* a running statistic */
        const char *name = before[i].name;
        const bool bn = strstr(name, "bn"), bias = !bn && ends(name, ".bias"), decay = is_lars ? !bn && !bias : !bn;
        seen[bn ? 0 : bias ? 1 : 2]++;
        const double trust = is_lars && decay ? oracle_trust(&lars, true, norm(&before[i]), norm(&grads[g])) : 1;
        for (size_t j = 0; j < before[i].n; j++) {
            const double w = (double)before[i].v[j], want = step(&now, decay, trust, (double)grads[g].v[j], (oracle_state){ .w = w }).w;
            if (!(fabs((double)after[i].v[j] - want) <= 0x1p-20 * (fabs(w) + fabs(want - w)) + 1e-12))
                FAIL_RUN(o, "%s[%zu] was %.9g, gradient %.9g, is %.9g instead of %.9g", name, j, w, (double)grads[g].v[j], (double)after[i].v[j], want);
        }
        g++;
    }
    assert_true(seen[0] > 10 && seen[1] > 5 && seen[2] > 10);
}

static void the_first_step_is_the_oracles(void **state)
{
    (void)state;
    a_step_is("--optimizer sgd --lr 6.4 --momentum 0.5 --nesterov --weight-decay 0.5", 0.25, false, sgd_step);
    a_step_is("--optimizer lars --lr 12.8 --trust 0.25 --weight-decay 0.5", 0.5, true, lars_step);
    a_step_is("--optimizer adamw --lr 0.4 --beta1 0.5 --beta2 0.75 --eps 0.125 --weight-decay 0.5", 0.015625, false, adamw_step);
}

/* ---- checkpoints -------------------------------------------------------------------------------------------------------- */

static void same_groups(const char *a, const char *b, const char *const *groups)
{
    for (; *groups; groups++) {
        size_t n, m;
        const tensor *x = tensors(a, *groups, &n), *y = tensors(b, *groups, &m);
        assert_int_equal(n, m);
        for (size_t i = 0; i < n; i++)
            if (x[i].n != y[i].n || memcmp(x[i].v, y[i].v, x[i].n * sizeof(float)) != 0) fail_msg("%s differs between %s and %s", x[i].name, a, b);
    }
}

/* 8 = 4 + 4, on as many ranks; a checkpoint holds what the optimizer keeps, under its names, and nothing else. */
static void a_resumed_run_is_the_run_that_was_not_stopped(void **state)
{
    (void)state;
    for (int k = 0; k < WAYS; k++)
        for (int ranks = 0; ranks <= 2; ranks += 2) {
            const char *whole = at("whole-%d-%d", k, ranks), *halves = at("halves-%d-%d", k, ranks);
            run(0, ranks, TRAIN " %s --steps 8 --data %s --run %s", ways[k].options, data(), whole);
            run(75, ranks, TRAIN " %s --steps 8 --data %s --run %s --stop-after 4", ways[k].options, data(), halves);
            outcome *o = run(0, ranks, TRAIN " %s --steps 8 --data %s --run %s", ways[k].options, data(), halves);
            if (!strstr(o->out, "going on from step 4")) FAIL_RUN(o, "it does not say where it goes on");
            same_groups(checkpoint_of(halves, 8), checkpoint_of(whole, 8), (const char *[]){ "/model", "/ema", ways[k].slots[0] ? "/optimizer" : NULL, NULL });
            size_t model, n, all = 0;
            tensors(checkpoint_of(whole, 8), "/model", &model);
            for (int s = 0; s < 2 && ways[k].slots[s]; s++) {
                const tensor *t = tensors(checkpoint_of(whole, 8), textf("/optimizer/%s", ways[k].slots[s]), &n);
                double size = 0;
                for (size_t i = 0; i < n; i++) size += norm(&t[i]);
                if (!(n > 10 && n < model && size > 0)) FAIL_RUN(o, "%zu tensors in %s, of norm %g", n, ways[k].slots[s], size);
                all += n;
            }
            en_checkpoint_info info;
            assert_int_equal(en_checkpoint_inspect(checkpoint_of(whole, 8), true, &info), EN_OK);
            assert_int_equal(info.n_slots, (ways[k].slots[0] != NULL) + (ways[k].slots[1] != NULL));
            assert_int_equal(info.state.ema_updates, 8);
            en_checkpoint_info_free(&info);
            if (all == 0) continue;
            tensors(checkpoint_of(whole, 8), "/optimizer", &n);
            assert_int_equal(n, all);
        }
}

/* AdamW's correction counts what the run had done before: without moving averages too. */
static void the_count_of_updates_does_not_hang_on_the_average(void **state)
{
    (void)state;
    const char *whole = at("no-ema"), *halves = at("no-ema-halves");
    run(0, 0, TRAIN " %s --ema 0 --steps 6 --data %s --run %s", ways[4].options, data(), whole);
    run(75, 0, TRAIN " %s --ema 0 --steps 6 --data %s --run %s --stop-after 3", ways[4].options, data(), halves);
    run(0, 0, TRAIN " %s --ema 0 --steps 6 --data %s --run %s", ways[4].options, data(), halves);
    same_groups(checkpoint_of(halves, 6), checkpoint_of(whole, 6), (const char *[]){ "/model", "/optimizer", NULL });
}

/* Nor on steps that were skipped: what the device has counted on its own is what a resumed run is given from the file. */
static void a_skipped_step_is_not_counted(void **state)
{
    (void)state;
#ifdef EN_FAULTS
    for (int loss = 0; loss < 2; loss++) {
        const char *whole = at("skipped-%d", loss), *halves = at("skipped-halves-%d", loss), *fault = loss ? "nan@0:3" : "nan@0:3:backward";
        run(0, 0, TRAIN " %s --steps 8 --data %s --run %s --inject %s", ways[4].options, data(), whole, fault);
        run(75, 0, TRAIN " %s --steps 8 --data %s --run %s --stop-after 5 --inject %s", ways[4].options, data(), halves, fault);
        run(0, 0, TRAIN " %s --steps 8 --data %s --run %s", ways[4].options, data(), halves);
        same_bits(checkpoint_of(halves, 8), checkpoint_of(whole, 8));
        en_checkpoint_info info;
        assert_int_equal(en_checkpoint_inspect(checkpoint_of(whole, 8), true, &info), EN_OK);
        assert_int_equal(info.state.ema_updates, 7);
        en_checkpoint_info_free(&info);
    }
#else
    skip();
#endif
}

/* ---- refusals ------------------------------------------------------------------------------------------------------------- */

static void another_optimizer_does_not_go_on(void **state)
{
    (void)state;
    const char *dir = at("first");
    run(75, 0, TRAIN " --optimizer sgd --lr 0.5 --steps 9 --data %s --run %s --stop-after 2", data(), dir);
    outcome *o = run(2, 0, TRAIN " --optimizer lars --lr 0.5 --steps 9 --data %s --run %s", data(), dir);
    says_once(o, "was trained with --optimizer sgd, now it is lars");
    o = run(2, 2, TRAIN " --lr 0.5 --steps 9 --data %s --run %s", data(), dir);
    says_once(o, "was trained with --optimizer sgd, now it is rmsprop");
    o = run(2, 0, TRAIN " --optimizer sgd --momentum 0 --lr 0.5 --steps 9 --data %s --run %s", data(), dir);
    says_once(o, "holds 1 accumulators of sgd, --momentum as it is now wants 0");
    run(75, 0, TRAIN " --optimizer sgd --nesterov --lr 0.5 --steps 9 --data %s --run %s --stop-after 3", data(), dir);   /* a setting may change */
    assert_int_equal(newest_checkpoint(dir), 3);
}

static void options_of_another_optimizer_are_refused(void **state)
{
    (void)state;
    static const struct { const char *options, *says; } cases[] = {
        { "--beta1 0.5", "--beta1 is of adamw, not of --optimizer rmsprop" },
        { "--optimizer adamw --momentum 0.5", "--momentum is of rmsprop, sgd and lars, not of --optimizer adamw" },
        { "--optimizer sgd --eps 0.1", "--eps is of rmsprop, lars and adamw, not of --optimizer sgd" },
        { "--nesterov", "--nesterov is of sgd and lars, not of --optimizer rmsprop" },
        { "--optimizer sgd --nesterov --momentum 0", "--nesterov wants a --momentum above 0" },
        { "--optimizer adamw --eps 0", "--eps 0 with --optimizer adamw divides by 0" },
        { "--optimizer adam", "did you mean adamw?" },
        { "--lr-end 0.1", "--lr-power and --lr-end are of --lr-schedule polynomial" },
        { "--lr-schedule polynomial --lr-end 9", "--lr-end 9 is above the rate that it comes down from" },
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        outcome *o = run(2, 0, TRAIN " --steps 1 --data %s --run %s %s", data(), at("refused"), cases[k].options);
        says_once(o, cases[k].says);
    }
}

static void the_header_says_which(void **state)
{
    (void)state;
    outcome *o = run(0, 0, TRAIN " --optimizer lars --nesterov --lr 1 --steps 1 --data %s --run %s", data(), at("header"));
    if (!strstr(o->out, "  optimizer   lars, trust 0.001, momentum 0.9 (Nesterov), eps 0, weight decay 1e-05\n")) FAIL_RUN(o, "it does not say so");
    if (!strstr(read_file(textf("%s/run.txt", at("header")), NULL), "\noptimizer=lars\n")) FAIL_RUN(o, "run.txt does not keep it");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_step_is_the_oracles),
        cmocka_unit_test(a_resumed_run_is_the_run_that_was_not_stopped),
        cmocka_unit_test(the_count_of_updates_does_not_hang_on_the_average),
        cmocka_unit_test(a_skipped_step_is_not_counted),
        cmocka_unit_test(another_optimizer_does_not_go_on),
        cmocka_unit_test(options_of_another_optimizer_are_refused),
        cmocka_unit_test(the_header_says_which),
    };
    return program_main("program_optimizer", tests, sizeof tests / sizeof *tests);
}
