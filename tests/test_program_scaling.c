/* test_program_scaling.c - `effnet scaling --ranks` from outside: it starts runs of a tiny model, and what it prints, writes and says of what
 * fails agree.  Nothing is asked of how fast anything is. */
#include "program.h"

#include <math.h>
#include <signal.h>

#define TINY "scaling --width 0.25 --depth 0.5 --image-size 32 --steps 6 --warm-steps 2 --sizes 4k,64k,1m"

static double of_point(const char *json, int ranks, const char *key)
{
    const char *point = strstr(json, textf("{\"ranks\":%d,", ranks));
    if (!point) fail_msg("no %d ranks in %s", ranks, json);
    return number_in(point, key);
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void table_json_and_figures_agree(void **state)
{
    (void)state;
    const char *folder = at("figures"), *dir = at("study");
    const outcome *o = run(0, 0, TINY " --ranks 2,1 --strong --global-batch 8 --json --folder %s --run %s", folder, dir);
    if (strncmp(o->out, "{\"measured\":", 12) != 0 || strcmp(o->out + strlen(o->out) - 3, "]}\n") != 0) FAIL_RUN(o, "it prints more than an object");
    const double one = of_point(o->out, 1, "images_per_s"), two = of_point(o->out, 2, "images_per_s");
    assert_true(one > 0 && two > 0);
    assert_true(fabs(of_point(o->out, 2, "speedup") - two / one) <= 1e-6 * two / one);
    assert_true(fabs(of_point(o->out, 2, "efficiency") - two / one / 2) <= 1e-6 * two / one);
    assert_int_equal(of_point(o->out, 2, "checked"), 8);                       /* warm-up and all */
    assert_int_equal(of_point(o->out, 2, "wrong"), 0);
    assert_true(of_point(o->out, 1, "predicted_step_s") > 0 && of_point(o->out, 2, "predicted_step_s") > 0);
    assert_true(of_point(o->out, 2, "alone_step_s") > 0 && strstr(strstr(o->out, "{\"ranks\":1,"), "\"alone_step_s\":null"));
    for (int rank = 0; rank < 2; rank++) {                                     /* the images of a rank, and nothing summed */
        const char *lines = read_file(textf("%s/alone-2/rank-%d/metrics.jsonl", dir, rank), NULL);
        assert_int_equal(count(lines, "\"kind\":\"train\""), 8);
        assert_true(number_in(lines, "bn_comm_s") == 0 && number_in(strstr(lines, "\"kind\":\"account\""), "ranks") == 1);
    }
    const char *met = read_file(textf("%s/alone-2/meetings.csv", dir), NULL);
    double behind_warm_up[6];
    assert_int_equal(count(met, "\n"), 1 + 8);
    for (int i = -2; i < 6; i++) {
        met = strchr(met, '\n') + 1;
        if (i >= 0) behind_warm_up[i] = strtod(strchr(met, ',') + 1, NULL);
    }
    qsort(behind_warm_up, 6, sizeof *behind_warm_up, ascending);
    const double median = (behind_warm_up[2] + behind_warm_up[3]) / 2;
    if (!(fabs(of_point(o->out, 2, "alone_met_s") - median) <= 1e-6 * median)) fail_msg("alone_met_s %g, the runs say %g", of_point(o->out, 2, "alone_met_s"), median);
    if (!strstr(read_file(textf("%s/alone-2/log", dir), NULL), "4 images a step = 4 a pass x 1 accumulated x 1 rank")) FAIL_RUN(o, "other images than a rank's");
    assert_true(of_point(o->out, 1, "images_per_s_p10") <= one && one <= of_point(o->out, 1, "images_per_s_p90"));

    static const char *const keys[] = { "data_s", "forward_s", "bn_forward_s", "backward_s", "bn_backward_s", "grad_comm_exposed_s", "optimizer_s", "checkpoint_s",
                                        "evaluation_s", "other_s" };
    for (int ranks = 1; ranks <= 2; ranks++) {                                 /* the parts are those of the run's own account of steps 3 to 8 */
        const char *account = read_file(textf("%s/run-%d/metrics.jsonl", dir, ranks), NULL);
        for (const char *next; (next = strstr(account + 1, "{\"kind\":\"account\"")); account = next) continue;
        assert_int_equal(number_in(account, "steps"), 6);
        for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
            const double part = number_in(account, keys[i]) / 6, got = of_point(o->out, ranks, keys[i]);
            if (!(fabs(got - part) <= 1e-6 * fabs(part) + 1e-12)) fail_msg("%s of %d ranks: %g, the account says %g", keys[i], ranks, got, part);
        }
    }
    const char *csv = read_file(textf("%s/scaling.csv", folder), NULL), *row = strstr(csv, "\n2,");
    double images = 0;
    assert_int_equal(count(csv, "\n"), 4);
    if (!row || sscanf(row, "\n2,%*d,%*d,%*d,%*d,%lf", &images) != 1 || fabs(images - two) > 1e-6 * two) fail_msg("%s says other than %g images/s", csv, two);
    static const char *const figures[] = { "throughput", "efficiency", "step", "comm" };
    for (size_t i = 0; i < sizeof figures / sizeof *figures; i++)
        if (!strstr(read_file(textf("%s/scaling-%s.svg", folder, figures[i]), NULL), "</svg>")) fail_msg("no figure of %s", figures[i]);
    size_t n;
    char **left = files_below(dir, &n);
    for (size_t i = 0; i < n; i++)
        if (strstr(left[i], ".h5")) fail_msg("%s was saved", left[i]);
}

/* One rank normalises over 8 images, two over 4 each: other trainings.  Compared are 4 steps that normalise over all. */
static void groups_are_measured_and_not_compared(void **state)
{
    (void)state;
    const char *dir = at("groups");
    const outcome *o = run(0, 0, TINY " --ranks 1,2 --strong --global-batch 8 --bn-group 1 --threads 1 --json --run %s", dir);
    assert_int_equal(of_point(o->out, 2, "checked"), 4);
    assert_int_equal(of_point(o->out, 2, "wrong"), 0);
    if (!strstr(read_file(textf("%s/run-2/log", dir), NULL), "batch norm over 1 rank\n")) FAIL_RUN(o, "what was measured has other groups");
    if (!strstr(read_file(textf("%s/check-2/log", dir), NULL), "batch norm over 2 ranks\n")) FAIL_RUN(o, "what was compared has groups");
}

/* Two rounds of three steps: six in all, from two runs each, whose logs stand apart. */
static void rounds_take_turns(void **state)
{
    (void)state;
    const char *dir = at("rounds");
    const outcome *o = run(0, 0, TINY " --ranks 1,2 --rounds 2 --micro-batch 2 --threads 1 --json --run %s", dir);
    for (int ranks = 1; ranks <= 2; ranks++) {
        assert_int_equal(of_point(o->out, ranks, "steps"), 6);
        assert_true(of_point(o->out, ranks, "predicted_step_s") > 0);
        assert_int_equal(count(read_file(textf("%s/run-round2-%d/metrics.jsonl", dir, ranks), NULL), "\"kind\":\"train\""), 5);
    }
    assert_true(exists(textf("%s/alone-round2-2/rank-1/metrics.jsonl", dir)) && !exists(textf("%s/alone-1", dir)));
    assert_true(exists(textf("%s/comm-round2-2.json", dir)) && exists(textf("%s/check-2/log", dir)) && !exists(textf("%s/check-round2-2/log", dir)));
    const char *order[] = { "1 rank: round 1 of 2: 3 steps", "2 ranks: round 1 of 2", "1 rank: round 2 of 2", "2 ranks: round 2 of 2" }, *at_ = o->err;
    for (size_t i = 0; i < sizeof order / sizeof *order; i++)
        if (!(at_ = strstr(at_, order[i]))) FAIL_RUN(o, "no '%s' in its place", order[i]);
}

/* A launcher that has no room for two ranks.  One rank is measured all the same, on the host of a hostfile, and the log is kept. */
static void a_rank_count_that_cannot_start_is_said(void **state)
{
    (void)state;
    const char *hosts = at("hosts"), *line = "localhost slots=2\n", *dir = at("slots"), *launcher = at("launcher");
    const char *script = textf("#!/bin/sh\nif [ $2 = 2 ]; then echo 'not enough slots' >&2; exit 9; fi\nexec '%s' \"$@\"\n", EN_RUN_SCRIPT);
    write_file(hosts, line, strlen(line));
    write_file(launcher, script, strlen(script));
    shell("chmod +x %s", launcher);
    setenv("EFFNET_LAUNCH", launcher, 1);
    const outcome *o = run(1, 0, TINY " --ranks 1,2 --micro-batch 2 --threads 1 --hosts %s --run %s", hosts, dir);
    setenv("EFFNET_LAUNCH", EN_RUN_SCRIPT, 1);
    if (!strstr(o->out, "\n     1      1        2 ") || !strstr(o->out, "\n     2        failed\n")) FAIL_RUN(o, "no table");
    if (!strstr(o->err, "2 ranks, the run: ") || !strstr(o->err, "ended with 9; the last it said:\nnot enough slots")) FAIL_RUN(o, "it does not say what the launcher said");
    assert_true(exists(textf("%s/run-2/log", dir)));
}

static void it_ends_when_asked_and_keeps_what_it_has(void **state)
{
    (void)state;
    const char *dir = at("ended");
    job *j = start((how){ .ranks = 0, .seconds = 100 }, TINY " --ranks 1,2 --micro-batch 2 --steps 1000000 --run %s", dir);
    wait_for_lines(j, textf("%s/run-1/metrics.jsonl", dir), 5);
    send(j, SIGINT);
    const outcome *o = finish(j);                                              /* and no process is left */
    expect_code(o, 1);
    says_once(o, "stopped on request; nothing was measured");
}

static void wrong_options_are_refused(void **state)
{
    (void)state;
    static const struct { const char *options, *says; } wrong[] = {
        { "--ranks 1,,2", "use whole numbers" }, { "--ranks 0", "use whole numbers" }, { "--ranks 2,2", "stands there twice" }, { "--ranks 1 --predict", "choose one" },
        { "", "say --ranks" }, { "--ranks 1,2 --strong", "how many?" }, { "--ranks 1,2 --global-batch 4", "is for --strong" },
        { "--ranks 1,3 --strong --global-batch 16", "not shared out evenly over 3 ranks" }, { "--ranks 1 --weak --strong --global-batch 4", "choose one" },
        { "--ranks 1 --hosts /nowhere/hosts", "cannot be read" } };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        const outcome *o = run(2, 0, "scaling %s", wrong[i].options);
        if (!strstr(o->err, wrong[i].says)) FAIL_RUN(o, "'%s' is not said", wrong[i].says);
    }
}

int main(void)
{
    setenv("EFFNET_LAUNCH", EN_RUN_SCRIPT, 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_options_are_refused),
        cmocka_unit_test(table_json_and_figures_agree),
        cmocka_unit_test(groups_are_measured_and_not_compared),
        cmocka_unit_test(rounds_take_turns),
        cmocka_unit_test(a_rank_count_that_cannot_start_is_said),
        cmocka_unit_test(it_ends_when_asked_and_keeps_what_it_has),
    };
    return program_main("program_scaling", tests, sizeof tests / sizeof *tests);
}
