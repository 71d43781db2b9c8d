/* test_program_watch.c - a job that hangs ends with 5 within its limit, and one line names the rank that all wait for.
 *
 * Ranks are stopped and killed from outside, at an instant that is anybody's, or hang at a place that is agreed (--inject).  The
 * limits are of seconds; a busy machine makes ends later, never earlier, so only lower bounds of times are held to, and upper ones
 * of a kind that tell a limit from none at all.  The times are printed. */
#include "program.h"

#include <signal.h>

#define SMALL "train --width 0.25 --depth 0.5 --image-size 32 --global-batch 12 --lr 0.001 --threads 1 --workers 1 --checkpoint-every 0 "

static const char *data(void) { return drawn("--train-per-class 10 --val-per-class 2 --synth-size 32"); }

/* Lines of ours that a watch wrote: each begins with the rank that is blamed. */
static int blames(const outcome *o)
{
    return count(o->err, "effnet: rank ") + count(o->err, "effnet: all ");
}

static void one_line(const outcome *o, const char *needle)
{
    if (blames(o) != 1) FAIL_RUN(o, "%d lines blame a rank", blames(o));
    if (!strstr(o->err, needle)) FAIL_RUN(o, "it does not say: %s", needle);
}

/* ---- processes that stop, and that die ------------------------------------------------------------------------------------------- */

static job *under_way(how h, const char *name, const char *more, int *pids)
{
    job *j = start(h, SMALL "--data %s --run %s --epochs 100000 %s", data(), at("%s", name), more);
    wait_for_lines(j, at("%s/metrics.jsonl", name), 3);
    const int n = ranks_of(j, pids, 16);
    if (n != h.ranks) {
        send(j, SIGKILL);
        FAIL_RUN(finish(j), "%d processes for %d ranks", n, h.ranks);
    }
    return j;
}

static outcome *struck(int ranks, int whom, double limit)
{
    int pids[16];
    const char *name = textf("stop-%d-of-%d", whom, ranks);
    job *j = under_way((how){ .ranks = ranks, .seconds = 120 }, name, textf("--stall-timeout %gs,startup=10m", limit), pids);
    kill(pids[whom], SIGSTOP);
    const double then = now_s();
    outcome *o = finish(j);
    const double took = now_s() - then;
    expect_code(o, 5);
    one_line(o, textf("effnet: rank %d on host ", whom));
    one_line(o, textf("(process %d) has been silent for ", pids[whom]));
    one_line(o, textf("(limit %g s, --stall-timeout), last heard in ", limit));
    one_line(o, "wait");
    one_line(o, "; the same command goes on from the newest checkpoint\n");
    if (took < limit - 1) FAIL_RUN(o, "%.2f s after it was stopped, and the limit is %g s", took, limit);    /* a turn was on its way */
    print_message("    rank %d of %d stopped, limit %g s: the job had ended %.2f s later\n", whom, ranks, limit, took);
    return o;
}

static void a_stopped_rank_is_named(void **state)
{
    (void)state;
    struck(2, 1, 4);
    struck(3, 2, 4);
}

static void a_stopped_rank_0_is_named_by_another(void **state)
{
    (void)state;
    struck(2, 0, 4);
    struck(3, 0, 4);
}

/* For a rank that is killed mpirun ends the job, and nobody has anything to say; where the launcher lets the others live, they do. */
static void a_killed_rank_is_named_where_the_launcher_is_silent(void **state)
{
    (void)state;
    int pids[16];
    setenv("OMPI_MCA_orte_enable_recovery", "1", 1);
    job *j = under_way((how){ .ranks = 3, .seconds = 120 }, "killed", "--stall-timeout 60s", pids);
    kill(pids[1], SIGKILL);
    const double then = now_s();
    outcome *o = finish(j);
    unsetenv("OMPI_MCA_orte_enable_recovery");
    if (o->code == 137 && blames(o) == 0) skip();                /* this Open MPI knows no such setting */
    const double took = now_s() - then;
    one_line(o, textf("effnet: rank 1 on host "));
    one_line(o, textf("(process %d) has ended without a word: it was last heard ", pids[1]));
    one_line(o, "2 ranks wait for it in ");
    if (took > 40) FAIL_RUN(o, "it took %.1f s: as long as for a rank that is silent", took);
    print_message("    rank 1 of 3 killed, limit 60 s: the job had ended %.2f s later\n", took);
}

static void a_launcher_that_ends_the_job_has_the_word(void **state)
{
    (void)state;
    int pids[16];
    job *j = under_way((how){ .ranks = 3, .seconds = 120 }, "killed-plainly", "--stall-timeout 60s", pids);
    kill(pids[2], SIGKILL);
    outcome *o = finish(j);
    expect_code(o, 137);
    if (blames(o)) FAIL_RUN(o, "a rank is blamed");
}

/* All ranks stop, as on Ctrl-Z, for longer than the limit, and go on. */
static void a_job_that_was_suspended_did_not_wait(void **state)
{
    (void)state;
    int pids[16];
    how h = { .ranks = 3, .seconds = 120 };
    job *j = under_way(h, "suspended", "--stall-timeout 3s,startup=10m", pids);
    for (int i = 0; i < 3; i++) kill(pids[i], SIGSTOP);
    pause_s(7);
    for (int i = 0; i < 3; i++) kill(pids[i], SIGCONT);
    size_t n;
    metrics(at("suspended"), "train", &n);
    wait_for_lines(j, at("suspended/metrics.jsonl"), (int)n + 40);
    pause_s(4);                                                  /* longer than the limit, once more */
    kill(pids[0], SIGUSR1);
    outcome *o = finish(j);
    expect_code(o, 75);
    if (blames(o)) FAIL_RUN(o, "a rank is blamed");
}

/* ---- hanging at a place ------------------------------------------------------------------------------------------------------------ */

static outcome *hangs(int ranks, const char *name, const char *fault, const char *limits, const char *more)
{
    outcome *o = run_how((how){ .ranks = ranks, .seconds = 120 }, SMALL "--data %s --run %s --steps 30 --inject %s %s%s %s", data(), at("%s", name), fault,
                         *limits ? "--stall-timeout " : "", limits, more);
    expect_code(o, 5);
    return o;
}

static void a_rank_that_hangs_is_named_with_layer_and_step(void **state)
{
    (void)state;
    outcome *o = hangs(3, "forward", "stall@2:12:forward", "10m,forward=3s", "");
    one_line(o, "effnet: rank 2 on host ");
    one_line(o, ") stands in forward of stem at step 12 for 3.");
    one_line(o, "(limit 3 s, --stall-timeout); 2 ranks wait for it in a sum. Look at that machine");
    if (o->seconds > 60) FAIL_RUN(o, "%.0f s: that was another limit", o->seconds);
    o = hangs(2, "root", "stall@0:5:update", "3s,startup=10m", "");
    one_line(o, ") stands in update at step 5 for 3.");
    one_line(o, "1 rank waits for it in ");
    one_line(o, "effnet: rank 0 on host ");
}

static void a_rank_alone_is_watched_too(void **state)
{
    (void)state;
    outcome *o = hangs(0, "alone", "stall@0:4:data", "3s,startup=10m", "");
    one_line(o, "effnet: rank 0 on host ");
    one_line(o, ") stands in data at step 4 for 3.");
}

/* The others wait for rank 0's checkpoint for longer than they would for anything else. */
static void a_longer_limit_of_a_section_is_the_waiters_too(void **state)
{
    (void)state;
    outcome *o = hangs(2, "checkpoint", "stall@0:6:checkpoint", "2s,startup=10m,checkpoint=9s", "--checkpoint-every 6");
    one_line(o, ") stands in checkpoint");
    one_line(o, "(limit 9 s, --stall-timeout); 1 rank waits for it in ");
    if (o->seconds < 9) FAIL_RUN(o, "after %.1f s", o->seconds);
}

static void an_evaluation_is_watched_by_the_batch(void **state)
{
    (void)state;
    outcome *o = hangs(2, "evaluation", "stall@1:6:evaluation", "3s,startup=10m", "--eval-every 6");
    one_line(o, ") stands in evaluation at step 6 for 3.");
}

static void the_environment_has_a_say_where_the_option_is_not_given(void **state)
{
    (void)state;
    setenv("EFFNET_STALL_S", "8", 1);
    outcome *o = hangs(2, "environment", "stall@1:3:data", "", "");
    one_line(o, "(limit 8 s, EFFNET_STALL_S)");
    setenv("EFFNET_STALL_S", "600", 1);
    o = hangs(2, "both", "stall@1:3:data", "3s,startup=10m", "");
    unsetenv("EFFNET_STALL_S");
    one_line(o, "(limit 3 s, --stall-timeout)");
}

/* ---- the option, and quiet ---------------------------------------------------------------------------------------------------------- */

static void refused(const char *value, const char *needle)
{
    outcome *o = run(2, 0, SMALL "--data synthetic --run %s --stall-timeout %s", at("refused"), value);
    if (!strstr(o->err, needle)) FAIL_RUN(o, "it does not say: %s", needle);
    if (count(o->err, "\n") != 1) FAIL_RUN(o, "that is more than a line");
}

static void mistakes_in_the_option_are_answered(void **state)
{
    (void)state;
    refused("10", "--stall-timeout '10': did you mean 10s?");
    refused("10min", "--stall-timeout '10min': did you mean 10m?");
    refused("2e", "--stall-timeout '2e': use a time (30s, 10m, 1h30m; 0 for no limit)");
    refused("-3s", "--stall-timeout '-3s'");
    refused("10m,strtup=30m", "there is no section 'strtup'; did you mean startup?");
    refused("10m,sleep=30m", "there is no section 'sleep'; there are startup, data, forward, ");
    refused("10m,data=soon", "--stall-timeout 'soon': use a time");
    refused("10m,data=1m,data=2m", "--stall-timeout names data twice");
    refused("data=1m", "begins with the time for all sections that are not named: 10m,data=1m");
    refused("10m,20m", "'20m' is for which section? The time for all stands first");
    refused("10m,", "use a time and, after commas, times of single sections: 10m,startup=30m");
    outcome *o = run(2, 0, "eval --checkpoint x --data y --stall-timeout 5");
    if (!strstr(o->err, "did you mean 5s?")) FAIL_RUN(o, "eval takes it otherwise");
}

static void ends_of_other_kinds_are_quiet(void **state)
{
    (void)state;
    outcome *o = run_how((how){ .ranks = 3 }, SMALL "--data %s --run %s --steps 8 --stall-timeout 20s,start-up=5m", data(), at("quiet"));
    expect_code(o, 0);
    if (blames(o)) FAIL_RUN(o, "a rank is blamed");
    o = run_how((how){ .ranks = 3 }, SMALL "--data %s --run %s --steps 20 --stall-timeout 0", data(), at("quiet"));
    expect_code(o, 0);
    if (blames(o)) FAIL_RUN(o, "a rank is blamed");
    o = run_how((how){ .ranks = 3 }, SMALL "--data %s --run %s --stall-timeout 20s", at("nowhere"), at("quiet-3"));
    expect_code(o, 3);
    if (blames(o)) FAIL_RUN(o, "a rank is blamed");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stopped_rank_is_named),
        cmocka_unit_test(a_stopped_rank_0_is_named_by_another),
        cmocka_unit_test(a_killed_rank_is_named_where_the_launcher_is_silent),
        cmocka_unit_test(a_launcher_that_ends_the_job_has_the_word),
        cmocka_unit_test(a_job_that_was_suspended_did_not_wait),
        cmocka_unit_test(a_rank_that_hangs_is_named_with_layer_and_step),
        cmocka_unit_test(a_rank_alone_is_watched_too),
        cmocka_unit_test(a_longer_limit_of_a_section_is_the_waiters_too),
        cmocka_unit_test(an_evaluation_is_watched_by_the_batch),
        cmocka_unit_test(the_environment_has_a_say_where_the_option_is_not_given),
        cmocka_unit_test(mistakes_in_the_option_are_answered),
        cmocka_unit_test(ends_of_other_kinds_are_quiet),
    };
    return program_main("watch", tests, sizeof tests / sizeof *tests);
}
