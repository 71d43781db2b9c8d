/* test_program_search.c - `effnet search` from outside: side by side is one by one, stopped and killed is uninterrupted, and what fails
 * is an outcome.
 *
 * Three candidates of a tiny base, 60 pictures in steps of 10.  A candidate has a rank of its own, so its bits do not depend on how many
 * others are trained beside it. */
#include "program.h"

#include <signal.h>

#define SEARCH "search --width 0.25 --depth 0.5 --image-size 32 --global-batch 10 --lr 0.001 --threads 1 --lanes 1 --eval-every 0 --checkpoint-every 4 " \
               "--alphas 1,1.4,2 --betas 1,1.4 --gammas 1,1.4"
enum { CANDIDATES = 3, STEPS = 14 };
static const char *const names[CANDIDATES] = { "a1-b1-g1.4", "a1-b1.4-g1", "a2-b1-g1" };

static const char *data(void) { return drawn("--train-per-class 20 --val-per-class 4 --synth-size 48 --synth-classes 3"); }

/* The search that nobody disturbed, on one rank. */
static const char *undisturbed(void)
{
    const char *dir = at("undisturbed");
    if (exists(at("undisturbed/search.csv"))) return dir;
    outcome *o = run(0, 0, SEARCH " --budget %d --data %s --run %s", STEPS, data(), dir);
    if (!strstr(o->out, "side by side 1 group of 1 rank") || !strstr(o->out, "[3/3] ") || !strstr(o->out, "\nThe best: --alpha ")) FAIL_RUN(o, "it does not say what it did");
    return dir;
}

/* What of search.csv does not depend on speed. */
static char *ranking(const char *dir)
{
    char *text = read_file(textf("%s/search.csv", dir), NULL), *out = calloc(1, strlen(text) + 1);
    for (const char *line = text; *line; line += strcspn(line, "\n") + 1) {
        int column = 0;
        for (const char *p = line; *p && *p != '\n'; p++) {
            column += *p == ',';
            if (column != 13 && column != 14) strncat(out, p, 1);
        }
        strcat(out, "\n");
    }
    return out;
}

static void same_search(const char *a, const char *b)
{
    for (int i = 0; i < CANDIDATES; i++) same_bits(checkpoint_of(textf("%s/%s", a, names[i]), STEPS), checkpoint_of(textf("%s/%s", b, names[i]), STEPS));
    char *x = ranking(a), *y = ranking(b);
    assert_string_equal(x, y);
    assert_int_equal(count(x, ",done,"), CANDIDATES);
    free(x), free(y);
}

static void side_by_side_is_one_by_one(void **state)
{
    (void)state;
    const char *dir = at("side by side");
    outcome *o = run_how((how){ .ranks = 2, .operand = textf("--run=%s", dir) }, SEARCH " --budget %d --data %s", STEPS, data());
    expect_code(o, 0);
    if (!strstr(o->out, "2 groups of 1 rank") || !strstr(o->out, " begins on rank 1")) FAIL_RUN(o, "the second rank had no work");
    same_search(dir, undisturbed());
    const char *before = read_file(textf("%s/search.csv", dir), NULL);
    o = run_how((how){ .ranks = 3, .operand = textf("--run=%s", dir) }, SEARCH " --budget %d --data %s", STEPS, data());      /* nothing is left to do */
    expect_code(o, 0);
    if (!strstr(o->out, "3 known already") || strstr(o->out, "begins") || strstr(o->out, "goes on")) FAIL_RUN(o, "it trains what is known");
    assert_string_equal(read_file(textf("%s/search.csv", dir), NULL), before);
    char *json = read_file(textf("%s/search.json", dir), NULL);
    o = run_how((how){ .operand = textf("--run=%s", dir) }, SEARCH " --budget %d --data %s --json", STEPS, data());
    expect_code(o, 0);
    assert_string_equal(o->out, json);                       /* and nothing else on standard output */
}

static void a_candidate_on_two_ranks_and_one_left_over(void **state)
{
    (void)state;
    const char *dir = at("pairs");
    outcome *o = run(0, 3, SEARCH " --candidate-ranks 2 --budget 2 --data %s --run %s", data(), dir);
    if (!strstr(o->out, "1 group of 2 ranks; 1 rank is left over") || !strstr(o->out, "begins on ranks 0 to 1")) FAIL_RUN(o, "it does not say who trains");
    char *text = ranking(dir);
    assert_int_equal(count(text, ",done,"), CANDIDATES);
    free(text);
    o = run(2, 2, SEARCH " --candidate-ranks 3 --budget 2 --data %s --run %s", data(), dir);
    says_once(o, "--candidate-ranks 3, but there are 2 ranks");
}

static int steps_made(const char *dir)
{
    int n = 0;
    for (int i = 0; i < CANDIDATES; i++) {
        const void *mark = remembered();
        const char *path = textf("%s/%s/metrics.jsonl", dir, names[i]);
        if (exists(path)) n += count(read_file(path, NULL), "{\"kind\":\"train\"");
        forget_since(mark);
    }
    return n;
}

/* Until candidates have got on by some steps. */
static void wait_until_trained(job *j, const char *dir, int steps)
{
    const int before = steps_made(dir);
    while (running(j) && steps_made(dir) < before + steps) pause_s(0.01);
}

/* A budget of time: what was spent before a stop counts, so the same command does not begin anew. */
static void time_is_a_budget_too(void **state)
{
    (void)state;
    const char *dir = at("by time"), *args = " --alphas 2 --betas 1 --gammas 1 --checkpoint-every 50 --budget 1s";
    job *j = start((how){ .ranks = 1, .patient = true, .operand = textf("--run=%s", dir) }, SEARCH "%s --data %s", args, data());
    wait_until_trained(j, dir, 2);
    send(j, SIGUSR1);
    const outcome *o = finish(j);
    if (o->code != 0) expect_code(o, 75);
    o = run_how((how){ .operand = textf("--run=%s", dir) }, SEARCH "%s --data %s", args, data());
    expect_code(o, 0);
    if (!strstr(o->out, "depends on the machine, so the ranking does, too")) FAIL_RUN(o, "it does not say what that means");
    const char *json = read_file(textf("%s/search.json", dir), NULL);
    const double seconds = number_in(json, "seconds"), step = number_in(json, "step");
    const char *log = read_file(textf("%s/%s/log.txt", dir, names[2]), NULL);
    if (!strstr(log, "until its time is spent (6.00 an epoch)") || strstr(log, "ETA")) FAIL_RUN(o, "the log knows an end: %s", log);
    size_t n;
    metrics(textf("%s/%s", dir, names[2]), "train", &n);
    if (!(seconds >= 0.999 && step == (double)n)) FAIL_RUN(o, "%g s and %g steps, of which %zu are in the metrics", seconds, step, n);
}

static void stopped_is_uninterrupted(void **state)
{
    (void)state;
    const char *dir = at("stopped");
    for (int ranks = 2; ranks >= 1; ranks--) {               /* and on with another number of them */
        job *j = start((how){ .ranks = ranks, .patient = true }, SEARCH " --budget %d --data %s --run %s", STEPS, data(), dir);
        wait_until_trained(j, dir, 6);
        int pids[8];
        if (ranks == 2 && ranks_of(j, pids, 8) == 2) kill(pids[1], SIGUSR1);                /* one that is asked stops all */
        else send(j, SIGUSR1);
        outcome *o = finish(j);
        if (o->code == 0) break;                             /* it was done before the signal came */
        expect_code(o, 75);
        if (!strstr(o->out, "; the same command goes on")) FAIL_RUN(o, "it does not say how to go on");
    }
    run(0, 0, SEARCH " --budget %d --data %s --run %s", STEPS, data(), dir);
    same_search(dir, undisturbed());
    dir = at("in time");
    outcome *o = run_how((how){ .ranks = 2, .patient = true, .operand = textf("--run=%s", dir) }, SEARCH " --budget 100000 --stop-after 2s --json --data %s", data());
    expect_code(o, 75);
    if (o->out[0] != '{' || count(o->out, "\"outcome\": \"open\"") != CANDIDATES) FAIL_RUN(o, "it does not print what is known");
}

static void killed_is_uninterrupted(void **state)
{
    (void)state;
    const char *dir = at("killed");
    int pids[8];
    job *j = start((how){ .ranks = 2 }, SEARCH " --budget %d --data %s --run %s", STEPS, data(), dir);
    wait_until_trained(j, dir, 6);
    const int n = ranks_of(j, pids, 8);
    for (int i = 0; i < n; i++) kill(pids[i], SIGKILL);
    finish(j);
    run(0, 2, SEARCH " --budget %d --data %s --run %s", STEPS, data(), dir);
    same_search(dir, undisturbed());
    char *before = ranking(dir);
    write_file(textf("%s/%s/result.json", dir, names[0]), "{\"candidate\":", 13);            /* results are lost or torn: the checkpoints have it all */
    shell("rm %s/%s/result.json", dir, names[1]);
    outcome *o = run(0, 0, SEARCH " --budget %d --data %s --run %s", STEPS, data(), dir);
    says_once(o, "result.json is passed over");
    if (!strstr(o->out, textf("%s goes on from step %d", names[0], STEPS)) || strstr(o->out, "begins")) FAIL_RUN(o, "it trains again");
    char *after = ranking(dir);
    assert_string_equal(before, after);
    free(before), free(after);
}

#ifdef EN_FAULTS
/* A fault that comes in one candidate has come already in the others. */
static void spare_all_but(const char *which, const char *dir, const char *fault)
{
    for (int i = 0; i < CANDIDATES; i++) {
        const char *line = textf("%s 0.000000 data 3\n", fault);
        make_folders(textf("%s/%s", dir, names[i]));
        if (strcmp(names[i], which) != 0) shell("printf '%%s' '%s' >> %s/%s/injected.txt", line, dir, names[i]);
    }
}

/* A candidate diverges; the others are trained, it is last, and it is not tried again. */
static void one_that_diverges_is_last(void **state)
{
    (void)state;
    const char *dir = at("diverges");
    spare_all_but(names[0], dir, "nan@0:3");
    for (int again = 0; again < 2; again++) {
        outcome *o = run(0, 2, SEARCH " --max-skipped 0 --inject nan@0:3 --budget %d --data %s --run %s", STEPS, data(), dir);
        if (!again && !strstr(o->out, textf("%s failed: ", names[0]))) FAIL_RUN(o, "it does not say that one failed");
        if (again && !strstr(o->out, "3 known already")) FAIL_RUN(o, "it tries again");
        if (!strstr(o->out, "not finite in 1 step")) FAIL_RUN(o, "it does not say why");
    }
    if (!(number_in(read_file(textf("%s/%s/result.json", dir, names[0]), NULL), "step") >= 2)) fail_msg("it does not say after how many steps");
    char *text = ranking(dir), *failed = strstr(text, ",failed,");
    assert_non_null(failed);
    assert_int_equal(count(text, ",done,"), 2);
    assert_null(strstr(failed, ",done,"));
    free(text);
    for (int i = 1; i < CANDIDATES; i++) same_bits(checkpoint_of(textf("%s/%s", dir, names[i]), STEPS), checkpoint_of(textf("%s/%s", undisturbed(), names[i]), STEPS));
}

/* By launch/run; what it counts as progress are the steps of all candidates' newest checkpoints together. */
static void launch_run_starts_it_again(void **state)
{
    (void)state;
    const char *dir = at("again");
    spare_all_but(names[2], dir, "kill@0:6");
    spare_all_but(names[0], dir, "kill@0:11");
    outcome *o = run_how((how){ .ranks = 2, .script = "--restarts 2 --restart-pause 0", .operand = textf("--run=%s", dir) },
                         SEARCH " --inject kill@0:6,kill@0:11 --budget %d --data %s", STEPS, data());
    expect_code(o, 0);
    same_search(dir, undisturbed());
    shell("bash -c '. %s; test $(newest_step \"$1\") -eq %d' x %s", textf("%.*s/restart.sh", (int)(strrchr(EN_RUN_SCRIPT, '/') - EN_RUN_SCRIPT), EN_RUN_SCRIPT), CANDIDATES * STEPS, dir);
}

/* No other rank waits for it, and all others make steps: still it is found, and named.  The second candidate is rank 1's. */
static void a_rank_that_hangs_ends_the_search(void **state)
{
    (void)state;
    static const struct { const char *fault, *words; } cases[] = { { "stall@0:5", " stands in " }, { "freeze@0:5", " has been silent for " } };
    for (int i = 0; i < 2; i++) {
        const char *dir = at("hangs-%d", i);
        spare_all_but(names[2], dir, cases[i].fault);
        outcome *o = run(5, 2, SEARCH " --inject %s --stall-timeout 3s --budget 100000 --data %s --run %s", cases[i].fault, data(), dir);
        says_once(o, "effnet: rank 1 on host ");
        says_once(o, cases[i].words);
    }
}
#endif

/* A device that is missing is missing for all: no candidate has failed, so none is passed over when there is one. */
static void what_no_candidate_can_have_ends_the_search(void **state)
{
    (void)state;
    const char *dir = at("no device");
    setenv("CUDA_VISIBLE_DEVICES", "", 1);
    outcome *o = run_how((how){ .operand = textf("--run=%s", dir) }, SEARCH " --device cuda --budget 2 --data %s", data());
    unsetenv("CUDA_VISIBLE_DEVICES");
    if (o->code == 0 || strstr(o->out, "failed: ")) FAIL_RUN(o, "it blames the candidates");
    for (int i = 0; i < CANDIDATES; i++) assert_false(exists(textf("%s/%s/result.json", dir, names[i])));
}

#define ONE " --alphas 2 --betas 1 --gammas 1 --budget 1"

/* 32 images a rank, or all there are; and options that were refused do not stand in the way of better ones. */
static void the_default_batch_fits_the_images(void **state)
{
    (void)state;
    const char *dir = at("defaults");
    outcome *o = run_how((how){ .operand = textf("--run=%s", dir) }, SEARCH ONE " --model b99 --data %s", data());
    expect_code(o, 2);
    assert_false(exists(textf("%s/search.txt", dir)));
    o = run(0, 2, SEARCH ONE " --recipe efficientnetv2 --augment basic --global-batch 0 --candidate-ranks 2 --data %s --run %s", data(), dir);
    if (!strstr(o->out, "60 images a step") || !strstr(o->out, "efficientnetv2, trained without its stages")) FAIL_RUN(o, "it does not say what it trains");
}

static void side_by_side_there_is_no_cache(void **state)
{
    (void)state;
    outcome *o = run(2, 2, SEARCH ONE " --cache memory --data %s --run %s", data(), at("cached"));
    says_once(o, "--cache keeps the images once for each candidate under way");
    run(0, 2, SEARCH ONE " --cache memory --candidate-ranks 2 --data %s --run %s", data(), at("cached"));
}

static void a_full_disk_under_the_output_is_no_success(void **state)
{
    (void)state;
    shell("'%s' " SEARCH ONE " --data %s --run %s > /dev/full 2> %s; test $? -ne 0", EN_PROGRAM, data(), at("full"), at("full.txt"));
    assert_non_null(strstr(read_file(at("full.txt"), NULL), "standard output cannot be written"));
    assert_true(exists(at("full/search.csv")));
}

static void nonsense_is_refused(void **state)
{
    (void)state;
    static const struct { const char *options, *words; int code; } cases[] = {
        { "--budget 10 --data DATA", "--run DIR", 2 },
        { "--data DATA --run RUN", "--budget: for how long", 2 },
        { "--budget 10 --run RUN", "which images?", 2 },
        { "--budget 10 --data DATA/train --run RUN", "has no validation images, and candidates are ranked by them", 3 },
        { "--budget 10 --data DATA --run RUN --tolerance 0", "--tolerance", 2 },
        { "--budget 10s --data DATA --run RUN --lr-schedule cosine", "which a --budget of time does not know", 2 },
        { "--budget 10 --data DATA --run RUN --stop-after 5", "give a time", 2 },
        { "--budget 10 --data DATA --run RUN --recipe finetune", "--recipe finetune begins with the weights of another network", 2 },
        { "--budget 10 --data DATA --run RUN --steps 5", "--steps is no option of `effnet search`", 2 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[512] = "", *p = text;
        for (const char *c = cases[i].options; *c; ) {
            const char *with = strncmp(c, "DATA", 4) == 0 ? data() : strncmp(c, "RUN", 3) == 0 ? at("nonsense") : NULL;
            if (with) p += sprintf(p, "%s", with), c += *c == 'D' ? 4 : 3;
            else *p++ = *c++;
        }
        outcome *o = run(cases[i].code, 0, SEARCH "%s %s", strstr(cases[i].options, "tolerance") ? " --alphas 1.3 --gammas 1" : "", text);
        says_once(o, cases[i].words);
    }
    const char *dir = undisturbed();
    outcome *o = run(2, 0, SEARCH " --budget 15 --data %s --run %s", data(), dir);
    says_once(o, textf("begun with --budget %d, now it is 15", STEPS));
    o = run(0, 0, SEARCH " --list");
    if (!strstr(o->out, "3 candidates of a grid of 12")) FAIL_RUN(o, "it does not list them");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(side_by_side_is_one_by_one),
        cmocka_unit_test(a_candidate_on_two_ranks_and_one_left_over),
        cmocka_unit_test(time_is_a_budget_too),
        cmocka_unit_test(stopped_is_uninterrupted),
        cmocka_unit_test(killed_is_uninterrupted),
#ifdef EN_FAULTS
        cmocka_unit_test(one_that_diverges_is_last),
        cmocka_unit_test(launch_run_starts_it_again),
        cmocka_unit_test(a_rank_that_hangs_ends_the_search),
#endif
        cmocka_unit_test(what_no_candidate_can_have_ends_the_search),
        cmocka_unit_test(the_default_batch_fits_the_images),
        cmocka_unit_test(side_by_side_there_is_no_cache),
        cmocka_unit_test(a_full_disk_under_the_output_is_no_success),
        cmocka_unit_test(nonsense_is_refused),
    };
    return program_main("search", tests, sizeof tests / sizeof *tests);
}
