/* test_program_ranks.c - the same training on any number of ranks.
 *
 * Equal global batches are equal steps, but for the order in which float sums are taken.  At the default rate that would
 * show nothing: early training is chaotic, and a difference of one rounding grows about threefold a step, to the size of the
 * loss within 20 steps.  It still grows at --lr 0.001 (to 8e-5 on these images); at --lr 0.0003 it stays rounding: measured
 * 7e-6 over 20 steps of B0, while the loss falls from 5.7 to 3.6.  So the bound of 1e-4 is far from rounding, and far below
 * what a wrong sum does: batch norm over one rank's images instead of all changes the first loss by more than 1e-2
 * (batch_norm_groups). */
#include "program.h"

#include "kernels/kernels.h"

#include <math.h>

#define B0    "train --image-size 64 --global-batch 32 --lr 0.0003 --steps 20 --threads 1 --checkpoint-every 0"
#define SMALL "train --width 0.25 --depth 0.5 --image-size 32 --lr 0.001 --threads 1 --checkpoint-every 0"

enum { STEPS = 20 };
static const double TOLERANCE = 1e-4;

/* 200 pictures: 20 steps of 32 cross three epochs */
static const char *data(void) { return drawn("--train-per-class 20 --val-per-class 0 --synth-size 64"); }

static void losses_agree(const char *a, const char *b, size_t steps)
{
    size_t n, m;
    const metric *x = metrics(a, "train", &n), *y = metrics(b, "train", &m);
    double most = 0;
    assert_int_equal(n, steps);
    assert_int_equal(m, steps);
    for (size_t i = 0; i < n; i++) {
        const double d = fabs(x[i].loss - y[i].loss) / fabs(y[i].loss);
        assert_int_equal(x[i].step, (int64_t)i + 1);
        if (!(d <= TOLERANCE)) fail_msg("step %zu: loss %s of %s against %s of %s: %.1e apart", i + 1, x[i].text, a, y[i].text, b, d);
        most = d > most ? d : most;
    }
    print_message("    losses: largest relative difference %.1e\n", most);
}

/* Weights and running statistics: measured 3e-6. */
static void states_agree(const char *a, const char *b, int64_t step)
{
    char worst[160];
    const double d = largest_deviation(checkpoint_of(a, step), checkpoint_of(b, step), "/model", worst);
    print_message("    weights and statistics: %.1e (%s)\n", d, worst);
    if (!(d <= TOLERANCE)) fail_msg("%s: %.1e apart in %s and %s", worst, d, a, b);
}

/* ---- B0 -------------------------------------------------------------------------------------------------------------- */

static const char *one_rank(void)
{
    static const char *dir;
    if (!dir) {
        run(0, 0, B0 " --data %s --run %s", data(), at("b0-1"));
        dir = at("b0-1");
    }
    return dir;
}

static void on(int ranks, const char *more)
{
    const char *dir = at("b0-%d", ranks), *reference = one_rank();
    outcome *o = run_how((how){ .ranks = ranks, .seconds = 120 }, B0 " --data %s --run %s %s", data(), dir, more);
    expect_code(o, 0);
    losses_agree(dir, reference, STEPS);
    states_agree(dir, reference, STEPS);
}

static void two_ranks_train_as_one(void **state)  { (void)state; on(2, ""); }
static void four_ranks_train_as_one(void **state) { (void)state; on(4, ""); }

static void three_ranks_with_uneven_shards_train_as_one(void **state)      /* 10, 11 and 11 images */
{
    (void)state;
    on(3, "--uneven");
}

/* Every second has a cause, on every rank, in steps of several passes too: what marks do not explain is little. */
static void time_is_accounted_for(const char *dir, int ranks)
{
    static const char *const keys[] = { "data_s", "forward_s", "bn_forward_s", "backward_s", "bn_backward_s", "grad_comm_exposed_s", "optimizer_s",
                                        "checkpoint_s", "evaluation_s", "stage_s", "other_s" };
    const char *text = read_file(textf("%s/metrics.jsonl", dir), NULL), *line = strstr(text, "{\"kind\":\"account\"");
    if (!line) fail_msg("%s has no account", dir);
    const double wall = number_in(line, "wall_s"), other = number_in(line, "other_s");
    double sum = 0;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const double mean = number_in(line, keys[i]), least = number_in(line, textf("%s_least", keys[i])), most = number_in(line, textf("%s_most", keys[i]));
        assert_true(least <= mean * (1 + 1e-6) + 1e-6 && mean <= most * (1 + 1e-6) + 1e-6);
        sum += mean;
    }
    print_message("    %.1f s on %d ranks: %.2f %% unexplained\n", wall, ranks, 100 * other / wall);
    assert_true((int)number_in(line, "ranks") == ranks && (int)number_in(line, "steps") == STEPS);
    assert_true(sum > 0.98 * wall && sum < 1.02 * wall);
    assert_true(other > -0.02 * wall && other < 0.2 * wall);            /* a pass that is forgotten is a third */
    assert_true((number_in(line, "bn_forward_s") > 0) == (ranks > 1) && (number_in(line, "bn_backward_s") > 0) == (ranks > 1));
}

static void accumulation_is_the_same_on_any_number_of_ranks(void **state)
{
    (void)state;                                 /* batch norm is over 16 images now: another run than the ones above */
    const char *one = at("accum-1"), *two = at("accum-2"), *four = at("accum-4");
    outcome *o = run(0, 0, B0 " --data %s --run %s --micro-batch 16", data(), one);
    if (!strstr(o->out, "= 16 a pass x 2 accumulated x 1 rank")) FAIL_RUN(o, "no accumulation");
    run(0, 2, B0 " --data %s --run %s --micro-batch 8", data(), two);
    o = run(0, 4, B0 " --data %s --run %s --micro-batch 4", data(), four);
    if (!strstr(o->out, "= 4 a pass x 2 accumulated x 4 ranks")) FAIL_RUN(o, "no accumulation");
    time_is_accounted_for(one, 1);
    time_is_accounted_for(two, 2);
    losses_agree(two, one, STEPS);
    losses_agree(four, one, STEPS);
    states_agree(two, one, STEPS);
    states_agree(four, one, STEPS);
}

/* ---- small ----------------------------------------------------------------------------------------------------------- */

static void self_and_one_mpi_rank_are_the_same_bits(void **state)
{
    (void)state;
    run(0, 0, SMALL " --data %s --run %s --global-batch 8 --steps 5", data(), at("self"));
    run(0, 1, SMALL " --data %s --run %s --global-batch 8 --steps 5", data(), at("mpi"));
    same_bits(checkpoint_of(at("self"), 5), checkpoint_of(at("mpi"), 5));
}

static void a_shard_may_have_one_image(void **state)
{
    (void)state;
    run(0, 0, SMALL " --data %s --run %s --global-batch 5 --steps 10", data(), at("few-1"));
    run(0, 4, SMALL " --data %s --run %s --global-batch 5 --steps 10 --uneven", data(), at("few-4"));   /* 1, 1, 1, 2 */
    losses_agree(at("few-4"), at("few-1"), 10);
}

static void batch_norm_groups(void **state)
{
    (void)state;
    static const char *const groups[] = { "all", "node", "2", "1" };
    size_t n, m;
    run(0, 4, SMALL " --data %s --run %s --global-batch 16 --steps 5", data(), at("bn-default"));
    const metric *reference = metrics(at("bn-default"), "train", &m);
    assert_int_equal(m, 5);
    for (size_t g = 0; g < sizeof groups / sizeof *groups; g++) {
        const bool together = g < 2;             /* one host: its ranks are all ranks */
        run(0, 4, SMALL " --data %s --run %s --global-batch 16 --steps 5 --bn-group %s", data(), at("bn-%s", groups[g]), groups[g]);
        const metric *x = metrics(at("bn-%s", groups[g]), "train", &n);
        assert_int_equal(n, 5);
        for (size_t i = 0; i < n; i++) {
            if (!isfinite(x[i].loss)) fail_msg("--bn-group %s: loss %s at step %zu", groups[g], x[i].text, i + 1);
            if (together && strcmp(x[i].text, reference[i].text) != 0) fail_msg("--bn-group %s: %s instead of %s", groups[g], x[i].text, reference[i].text);
        }
        if (!together && !(fabs(x[0].loss - reference[0].loss) > 1e-2 * reference[0].loss))
            fail_msg("--bn-group %s has the first loss of all ranks together, %s", groups[g], x[0].text);
        is_whole(checkpoint_of(at("bn-%s", groups[g]), 5), 5);
    }
    run(2, 2, SMALL " --data %s --run %s --global-batch 16 --steps 5 --bn-group 3", data(), at("bn-3"));
}

/* One rank's processor is older than the other's: both compute as the older one can, or their weights would part. */
static void ranks_of_different_processors_compute_alike(void **state)
{
    (void)state;
    const char *fastest = NULL, *slowest = NULL, *name;
    bool runs;
    for (int i = 0; (name = en_backend_isa(i, &runs)); i++)
        if (runs) slowest = name, fastest = fastest ? fastest : name;
    if (fastest == slowest) skip();
    const char *command = textf(SMALL " --data %s --run %s --global-batch 8 --steps 3", data(), at("mixed"));
    outcome *o = run_how((how){ .ranks = 2, .second = command, .env = { "A=1", textf("EN_ISA=%s", slowest) } }, "%s", command);
    expect_code(o, 0);
    if (!strstr(o->out, textf("%s on all ranks: 1 of 2 cannot run %s", slowest, fastest))) FAIL_RUN(o, "it does not say so");
    is_whole(checkpoint_of(at("mixed"), 3), 3);
}

/* Every save compares a hash of the weights of all ranks, so each run above has shown them equal.  That the comparison can
 * fail: two ranks that round differently, each told by EN_ISA to insist, as a machine that computes wrongly would be. */
static void a_rank_with_other_weights_is_found_before_they_are_saved(void **state)
{
    (void)state;
    bool runs = false;
    const char *name;
    for (int i = 0; (name = en_backend_isa(i, &runs)) && strcmp(name, "avx2") != 0; i++) continue;
    if (!name || !runs) skip();                  /* no second instruction set that rounds otherwise (fused multiply-add) */
    const char *dir = at("odd"), *command = textf(SMALL " --data %s --run %s --global-batch 8 --steps 4 --warmup-epochs 0", data(), dir);
    outcome *o = run_how((how){ .ranks = 2, .second = command, .env = { "EN_ISA=avx2", "EN_ISA=generic" } }, "%s", command);
    expect_code(o, 5);
    says_once(o, "rank 1 on host ");
    says_once(o, "hold different parameters after step 4: the machine or the network of one of them computes wrongly");
    assert_int_equal(newest_checkpoint(dir), -1);
}

/* Two ranks that train each by itself are one rank, twice, to the last digit of every loss; one that cannot go on ends the other. */
static void alone_each_rank_is_one_rank(void **state)
{
    (void)state;
    const char *dir = at("alone"), *one = at("alone-one"), *broken = at("alone-broken");
    char path[2][4200];
    size_t n, m;
    shell("mkdir -p %s %s && touch %s/rank-1", one, broken, broken);
    run(0, 0, SMALL " --data %s --global-batch 8 --steps 5 --metrics %s", data(), one);
    run(0, 2, SMALL " --alone --data %s --global-batch 8 --steps 5 --metrics %s", data(), dir);
    const metric *x = metrics(one, "train", &n);
    assert_int_equal(n, 5);
    for (int rank = 0; rank < 2; rank++) {
        snprintf(path[rank], sizeof path[rank], "%s/rank-%d", dir, rank);
        const metric *y = metrics(path[rank], "train", &m);
        assert_int_equal(m, 5);
        for (size_t i = 0; i < n; i++)
            if (x[i].loss != y[i].loss) fail_msg("rank %d, step %zu: loss %.9g by itself, %.9g as one of two", rank, i + 1, x[i].loss, y[i].loss);
    }
    /* what lies between the sums of one rank is its forward and backward, all of it; waiting for another one makes no step shorter */
    const outcome *o = run(0, 0, "train --image-size 64 --threads 1 --alone --global-batch 8 --steps 4 --data %s --metrics %s", data(), at("alone-gaps"));
    const char *line = read_file(textf("%s/rank-0/metrics.jsonl", at("alone-gaps")), NULL), *row = read_file(textf("%s/meetings.csv", at("alone-gaps")), NULL);
    if (!strstr(o->out, "at each of 98 sums (medians of 4 steps)")) FAIL_RUN(o, "B0 normalises 49 times each way");
    assert_int_equal(count(row, "\n"), 1 + 4);
    for (size_t i = 0; i < 4; i++, line++) {
        line = strstr(line, "{\"kind\":\"train\"");
        row = strchr(row, '\n') + 1;
        const double passes = number_in(line, "forward_s") + number_in(line, "backward_s"), gaps = strtod(strchr(row, ',') + 1, NULL);
        if (!(gaps > 0.9 * passes && gaps < passes + 1e-3)) fail_msg("step %zu: %g s between sums, forward and backward are %g", i + 1, gaps, passes);
    }
    o = run(0, 0, "train --image-size 64 --threads 1 --alone --global-batch 8 --micro-batch 4 --freeze blocks.2 --steps 2 --data %s --metrics %s", data(), at("alone-frozen"));
    if (!strstr(o->out, "at each of 136 sums")) FAIL_RUN(o, "34 layers behind blocks.2 normalise, each way, in two passes");
    o = run(2, 2, SMALL " --alone --data %s --global-batch 8 --steps 5 --run %s", data(), at("alone-run"));
    says_once(o, "leave --run out");
    o = run(2, 2, SMALL " --alone --data %s --cache memory --global-batch 8 --steps 5", data());
    says_once(o, "once for each of 2 ranks");
    job *j = start((how){ .ranks = 2, .seconds = 60 }, SMALL " --alone --data %s --global-batch 8 --steps 100000 --metrics %s", data(), broken);
    o = finish(j);
    if (o->code == 0 || !strstr(o->err, "alone-broken/rank-1") || !strstr(o->err, "choose another --metrics")) FAIL_RUN(o, "nothing is said of a folder that cannot be made");
}

static void ranks_with_other_options_are_refused(void **state)
{
    (void)state;
    const char *command = textf(SMALL " --data %s --run %s --global-batch 8 --steps 2", data(), at("unlike"));
    outcome *o = run_how((how){ .ranks = 2, .second = textf("%s --label-smoothing 0.2", command) }, "%s", command);
    expect_code(o, 2);
    says_once(o, "was started with --label-smoothing=0.2, rank 0 with --label-smoothing=0.1");
    assert_false(is_folder(at("unlike")));
    shell("cp -r %s %s", data(), at("elsewhere"));                /* a host may keep its copy in another place */
    o = run_how((how){ .ranks = 2, .second = textf(SMALL " --data %s --run %s --global-batch 8 --steps 2 --workers 2", at("elsewhere"), at("unlike")) }, "%s", command);
    expect_code(o, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_ranks_train_as_one),
        cmocka_unit_test(four_ranks_train_as_one),
        cmocka_unit_test(three_ranks_with_uneven_shards_train_as_one),
        cmocka_unit_test(accumulation_is_the_same_on_any_number_of_ranks),
        cmocka_unit_test(self_and_one_mpi_rank_are_the_same_bits),
        cmocka_unit_test(a_shard_may_have_one_image),
        cmocka_unit_test(batch_norm_groups),
        cmocka_unit_test(ranks_of_different_processors_compute_alike),
        cmocka_unit_test(alone_each_rank_is_one_rank),
        cmocka_unit_test(ranks_with_other_options_are_refused),
        cmocka_unit_test(a_rank_with_other_weights_is_found_before_they_are_saved),
    };
    return program_main("program_ranks", tests, sizeof tests / sizeof *tests);
}
