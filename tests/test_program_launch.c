/* test_program_launch.c - time limits and restarts: what launch/ promises about runs that are cut short.
 *
 * 200 images in steps of 10, as in test_program_resume.c.  Ranks are killed by their ids, from outside. */
#define _GNU_SOURCE
#include "program.h"

#include <signal.h>
#include <sys/wait.h>

#define TRAIN "train --width 0.25 --depth 0.5 --image-size 32 --global-batch 10 --lr 0.001 --threads 1"

static const char *data(void) { return drawn("--train-per-class 20 --val-per-class 2 --synth-size 48"); }

/* ---- --stop-after ---------------------------------------------------------------------------------------------------- */

/* The step that is under way when the time is over is the last one; a slow machine has started within it all the same. */
static void stops_by_the_clock(int ranks)
{
    const char *dir = at("clock-%d", ranks);
    const double limit = SANITIZED ? 10 : 2;
    outcome *o = run(75, ranks, TRAIN " --steps 1000000 --checkpoint-every 0 --eval-every 0 --data %s --run %s --stop-after %gs", data(), dir, limit);
    const int64_t step = newest_checkpoint(dir);
    size_t n;
    const metric *m = metrics(dir, "train", &n);
    if (!strstr(o->out, textf("\n  stop        at the first step that ends %gs after the start (", limit))) FAIL_RUN(o, "the header does not say so");
    if (!strstr(o->out, "stopped on request after step ")) FAIL_RUN(o, "it does not say that it stopped");
    assert_true(n > 0);
    assert_int_equal(m[n - 1].step, step);
    is_whole(checkpoint_of(dir, step), step);
    /* the clock is main's, o->seconds has also mpirun's own beginning and end, and the checkpoint */
    if (o->seconds < limit || o->seconds > limit + (SANITIZED ? 60 : 15)) FAIL_RUN(o, "%.2f s instead of %g", o->seconds, limit);
    print_message("    %d rank%s: %.2f s from start to exit with %g s asked for, %" PRId64 " steps\n", ranks, ranks == 1 ? "" : "s", o->seconds, limit, step);
}

static void by_the_clock(void **state)              { (void)state; stops_by_the_clock(0); }
static void by_the_clock_on_two_ranks(void **state) { (void)state; stops_by_the_clock(2); }

/* What a launcher says about the job's beginning counts: the time is over before the first step, which is still made. */
static void the_job_began_before_the_program(void **state)
{
    (void)state;
    const char *dir = at("long-ago");
    setenv("EFFNET_STARTED_AT", "1000000000.5", 1);
    outcome *o = run(75, 0, TRAIN " --steps 1000 --data %s --run %s --stop-after 3h50m", data(), dir);
    unsetenv("EFFNET_STARTED_AT");
    if (!strstr(o->out, "3h50m after the start")) FAIL_RUN(o, "the header does not say so");
    assert_int_equal(newest_checkpoint(dir), 1);
}

static void by_the_epoch(void **state)
{
    (void)state;
    const char *dir = at("epochs");
    outcome *o = run(75, 0, TRAIN " --steps 60 --eval-every 0 --data %s --run %s --stop-after 1.32e", data(), dir);       /* 26.4 steps */
    if (!strstr(o->out, "stop        after epoch 1.32: checkpoint, exit code 75")) FAIL_RUN(o, "the header does not say so");
    assert_int_equal(newest_checkpoint(dir), 27);
    run(0, 0, TRAIN " --steps 60 --eval-every 0 --data %s --run %s --stop-after 1.32e", data(), dir);                     /* behind it: goes on */
    assert_int_equal(newest_checkpoint(dir), 60);
}

/* ---- --restarts ------------------------------------------------------------------------------------------------------ */

static bool kill_a_rank(job *j)
{
    int children[16], ranks[16];
    const int n = ranks_of(j, children, 16);                     /* launch/run's: mpirun, and awk for its messages */
    for (int i = 0; i < n; i++)
        if (children_of(children[i], ranks, 16) == 2) return kill(ranks[1], SIGKILL) == 0;
    return false;
}

/* Two kills on the way, each after a newer checkpoint: one command, and in the end the bits of the run that nobody killed. */
static void killed_ranks_are_started_again(void **state)
{
    (void)state;
    const char *dir = at("again"), *whole = at("again-not");
    enum { STEPS = 400 };
    job *j = start((how){ .ranks = 2, .script = "--restarts 1 --restart-pause 0", .seconds = 180 },
                   TRAIN " --steps %d --checkpoint-every 5 --eval-every 0 --data %s --run %s", STEPS, data(), dir);
    int killed = 0;
    for (int64_t from = 0; killed < 2 && running(j); pause_s(0.005)) {
        const int64_t newest = newest_checkpoint(dir);
        if (newest < from + 40 || !kill_a_rank(j)) continue;
        killed++;
        from = newest + 20;
    }
    outcome *o = finish(j);
    expect_code(o, 0);
    assert_int_equal(killed, 2);
    if (count(o->err, "run: ended with 137 (killed: out of memory?), newest checkpoint: step ") != 2) FAIL_RUN(o, "it does not say twice why");
    if (count(o->err, "starting again in 0 s (1 of at most 1 without a newer one)") != 2) FAIL_RUN(o, "it does not say twice that it starts again");
    if (count(o->out, "going on from step ") != 2) FAIL_RUN(o, "the program did not go on twice");
    outcome *w = run(0, 2, TRAIN " --steps %d --checkpoint-every 0 --eval-every 0 --data %s --run %s", STEPS, data(), whole);
    same_bits(checkpoint_of(dir, STEPS), checkpoint_of(whole, STEPS));
    const char *mine = strstr(o->out, "\nweights "), *theirs = strstr(w->out, "\nweights ");
    assert_true(mine && theirs && strncmp(mine, theirs, 25) == 0);                       /* "\nweights " and 16 digits */
    size_t n;
    const metric *m = metrics(dir, "train", &n);
    assert_int_equal(n, STEPS);
    for (size_t i = 0; i < n; i++) assert_int_equal(m[i].step, (int64_t)i + 1);
    print_message("    killed twice, weights %.16s as without\n", mine + 9);
}

/* A stand-in for mpirun on PATH: what launch/run does with an exit code needs no training. */
static void fake_mpirun(const char *body)
{
    make_folders(at("bin"));
    const char *text = textf("#!/bin/sh\necho start >> %s\n%s\n", at("starts"), body), *path = at("bin/mpirun");
    write_file(path, text, strlen(text));
    shell("chmod +x %s; rm -rf %s %s", path, at("starts"), at("fake"));
    make_folders(at("fake/checkpoints"));
}

static int starts(void)
{
    return exists(at("starts")) ? count(read_file(at("starts"), NULL), "start\n") : 0;
}

static job *start_fake(const char *script)
{
    const char *before = textf("%s", getenv("PATH"));
    setenv("PATH", textf("%s:%s", at("bin"), before), 1);
    job *j = start((how){ .ranks = 2, .script = script }, "train --run %s", at("fake"));
    setenv("PATH", before, 1);
    return j;
}

static outcome *run_fake(int code, int n_starts, const char *script, const char *body)
{
    fake_mpirun(body);
    outcome *o = finish(start_fake(script));
    expect_code(o, code);
    if (starts() != n_starts) FAIL_RUN(o, "%d starts instead of %d", starts(), n_starts);
    return o;
}

static void restarts_end_without_progress(void **state)
{
    (void)state;
    outcome *o = run_fake(137, 4, "--restarts 3 --restart-pause 0", "exit 137");
    says_once(o, "no checkpoint yet; giving up: 3 restarts in a row without a newer one");
    says_once(o, "(3 of at most 3 without a newer one)");
    o = run_fake(205, 3, "--restarts 2 --restart-pause 0", textf("touch %s", at("fake/checkpoints/step-00000007.h5\nexit 205")));
    says_once(o, "ended with 205 (lost a node), newest checkpoint: step 7; starting again in 0 s (2 of at most 2");
    /* progress begins the count anew: a checkpoint at each of the first five starts, then none */
    o = run_fake(5, 7, "--restarts 2 --restart-pause 0",
                 textf("n=$(wc -l < %s); if [ $n -le 5 ]; then touch %s/checkpoints/step-0000000$n.h5; fi; exit 5", at("starts"), at("fake")));
    says_once(o, "newest checkpoint: step 5; giving up: 2 restarts in a row");
    assert_int_equal(count(o->err, "(1 of at most 2"), 5);
    /* pauses double: 1 and 2 seconds */
    o = run_fake(139, 3, "--restarts 2 --restart-pause 1", "exit 139");
    if (o->seconds < 3) FAIL_RUN(o, "%.1f s: the pauses are too short", o->seconds);
    says_once(o, "starting again in 1 s");
    says_once(o, "starting again in 2 s");
}

static void some_ends_are_ends(void **state)
{
    (void)state;
    static const int final[] = { 0, 2, 3, 4, 126, 127, 130 };
    for (size_t i = 0; i < sizeof final / sizeof *final; i++) run_fake(final[i], 1, "--restarts 3 --restart-pause 0", textf("exit %d", final[i]));
    run_fake(1, 1, "--restarts 3 --restart-pause 0", "exit 1");                       /* a command that never worked */
    run_fake(1, 4, "--restarts 3 --restart-pause 0", textf("touch %s; exit 1", at("fake/checkpoints/step-00000002.h5")));
    run_fake(0, 3, "--restarts 3 --restart-pause 0", textf("[ $(wc -l < %s) = 3 ] && exit 0; exit 75", at("starts")));
    run_fake(137, 1, "--restarts 0", "exit 137");
    run_fake(137, 1, "--per-node 2", "exit 137");
}

/* 75 because --stop-after asked for it is what was asked for. */
static void stop_after_is_not_started_again(void **state)
{
    (void)state;
    outcome *o = run_how((how){ .ranks = 2, .script = "--restarts 3 --restart-pause 0" }, TRAIN " --steps 1000 --data %s --run %s --stop-after 3",
                         data(), at("asked"));
    expect_code(o, 75);
    assert_int_equal(newest_checkpoint(at("asked")), 3);
    assert_null(strstr(o->err, "starting again"));
}

static void a_signal_ends_restarts(void **state)
{
    (void)state;
    static const int signals[] = { SIGTERM, SIGINT, SIGUSR1 };
    for (size_t i = 0; i < 3; i++) {                                                  /* while it runs: a real one */
        const char *dir = at("signalled-%zu", i);
        job *j = start((how){ .ranks = 2, .script = "--restarts 3 --restart-pause 0" },
                       TRAIN " --steps 1000000 --checkpoint-every 0 --eval-every 0 --data %s --run %s", data(), dir);
        wait_for_lines(j, textf("%s/metrics.jsonl", dir), 3);
        send(j, signals[i]);
        outcome *o = finish(j);
        expect_code(o, 75);
        assert_null(strstr(o->err, "starting again"));
    }
    fake_mpirun("exit 137");                                                          /* in the pause, without a checkpoint and with one */
    for (int step = 0; step < 2; step++) {
        if (step) shell("touch %s; rm %s", at("fake/checkpoints/step-00000003.h5"), at("starts"));
        job *j = start_fake("--restarts 3 --restart-pause 60");
        for (int i = 0; i < 400 && starts() == 0; i++) pause_s(0.01);
        pause_s(0.5);
        send(j, SIGTERM);
        outcome *o = finish(j);
        expect_code(o, step ? 75 : 137);
        if (o->seconds > 30) FAIL_RUN(o, "it slept on");
        says_once(o, "asked to stop before the next start");
        assert_int_equal(starts(), 1);
    }
}

static void wrong_options_are_refused(void **state)
{
    (void)state;
    static const struct { const char *script, *says; } wrong[] = {
        { "--restarts", "--restarts '-n'" },        { "--restarts -1", "0 or more" },     { "--restarts=many", "0 or more" },
        { "--bind socket", "none, core or numa" },  { "--per-node 0", "1 or more" },      { "--restart-pause soon", "whole seconds" },
        { "--bind core --per-node 99999", "cores on this machine" }, { "--map-by node --restarts 2", "stands before all other arguments" } };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        fake_mpirun("exit 0");
        outcome *o = finish(start_fake(wrong[i].script));
        expect_code(o, 2);
        says_once(o, wrong[i].says);
        assert_int_equal(starts(), 0);
    }
}

/* ---- slurm.sbatch ---------------------------------------------------------------------------------------------------- */

/* Runs the script as Slurm would, with stand-ins for mpirun, srun and scontrol that note their call and then do `body`; `send`
 * (a signal's name or "") goes to the script alone once they run.  The exit code; slurm/log and slurm/calls hold the rest. */
static int sbatch(const char *environment, const char *body, const char *sent, const char *arguments)
{
    static const char *const names[] = { "mpirun", "srun", "scontrol" };
    const char *dir = at("slurm");
    make_folders(at("slurm/bin"));
    for (size_t i = 0; i < 3; i++) {
        const char *text = textf("#!/bin/bash\necho \"%s $*\" >> %s/calls\n%s\n", names[i], dir, i < 2 ? body : "");
        write_file(at("slurm/bin/%s", names[i]), text, strlen(text));
    }
    shell("chmod +x %s/bin/*; ln -sfn $(dirname %s) %s/launch; rm -f %s/calls", dir, EN_RUN_SCRIPT, dir, dir);
    const char *script = textf("cd /; export PATH=%s/bin:$PATH SLURM_JOB_ID=77 SLURM_SUBMIT_DIR=%s SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2 %s\n"
                               "bash %s/launch/slurm.sbatch %s >%s/log 2>&1 & job=$!\n"
                               "if [ '%s' ]; then while [ ! -e %s/calls ]; do sleep 0.02; done; sleep 0.3; kill -%s $job; fi\nwait $job\n",
                               dir, dir, environment, dir, arguments, dir, sent, dir, *sent ? sent : "0");
    write_file(at("slurm/job"), script, strlen(script));
    const int status = system(textf("timeout 60 bash %s", at("slurm/job")));
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static bool called(const char *what) { return exists(at("slurm/calls")) && strstr(read_file(at("slurm/calls"), NULL), what); }
static bool logged(const char *what) { return strstr(read_file(at("slurm/log"), NULL), what) != NULL; }

static void slurm_requeues_what_is_worth_it(void **state)
{
    (void)state;
    static const struct { int code; bool requeued; } ends[] = { { 0, false }, { 2, false }, { 3, false }, { 4, false }, { 1, false },
                                                                { 75, true }, { 5, true },  { 137, true }, { 139, true } };
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        shell("rm -rf %s", at("slurm/runs"));
        assert_int_equal(sbatch("EFFNET_LAUNCH=srun", textf("exit %d", ends[i].code), "", "--data x"), ends[i].code);
        if (!called("srun --mpi=pmix") || !called("build/effnet train --run runs/77 --data x")) fail_msg("srun was not called so");
        if (called("scontrol requeue 77") != ends[i].requeued) fail_msg("code %d: %srequeued", ends[i].code, ends[i].requeued ? "not " : "");
    }
    assert_int_equal(sbatch("EFFNET_PROGRAM=/bin/true", "exit 75", "", "--stop-after 3h --run runs/b"), 75);
    if (!called("mpirun --map-by ppr:2:node:OVERSUBSCRIBE --bind-to none") || !called("-n 2 /bin/true train --stop-after 3h --run runs/b")) fail_msg("mpirun was not called so");
    if (!called("scontrol requeue 77")) fail_msg("75 by --stop-after was not requeued");
    assert_int_equal(sbatch("EFFNET_LAUNCH=flux", "exit 0", "", ""), 2);
}

static void slurm_signals_mean_what_the_script_says(void **state)
{
    (void)state;
    static const char *const forms[] = { "EFFNET_LAUNCH=srun", "EFFNET_LAUNCH=mpirun" };
    const char *waits = "trap 'exit 75' USR1; for i in $(seq 500); do sleep 0.02; done; exit 9";
    for (int k = 0; k < 2; k++) {
        assert_int_equal(sbatch(forms[k], waits, "USR1", "--data x"), 75);
        assert_true(called("scontrol requeue 77") && logged("back into the queue"));
        assert_int_equal(sbatch(forms[k], waits, "TERM", "--data x"), 75);
        assert_true(!called("scontrol") && logged("not back into the queue"));
    }
}

static void slurm_requeues_end_without_progress(void **state)
{
    (void)state;
    const char *step = at("slurm/runs/77/checkpoints/step-00000010.h5");
    shell("rm -rf %s", at("slurm/runs"));
    for (int k = 0; k <= 5; k++) {                                   /* Slurm's own requeues (a lost node) count as well: nothing is written at the end */
        const int code = sbatch(textf("EFFNET_LAUNCH=srun EFFNET_REQUEUES=2 SLURM_RESTART_COUNT=%d", k), "exit 137", "", "");
        if (k == 1) {                                                /* progress before the second requeue */
            make_folders(at("slurm/runs/77/checkpoints"));
            write_file(step, "", 0);
        }
        const bool tried = k < 5;                                    /* 0; 1; progress 2; 3, 4 without; the limit is 2 */
        if (code != (tried ? 137 : 1) || called("srun") != tried || called("scontrol") != tried) fail_msg("start %d: code %d", k, code);
    }
    assert_true(logged("2 requeues in a row brought no checkpoint newer than step 10"));
    assert_int_equal(sbatch("EFFNET_LAUNCH=srun EFFNET_REQUEUES=2", "exit 137", "", ""), 137);          /* sbatch anew: a new count */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(by_the_clock),
        cmocka_unit_test(by_the_clock_on_two_ranks),
        cmocka_unit_test(the_job_began_before_the_program),
        cmocka_unit_test(by_the_epoch),
        cmocka_unit_test(killed_ranks_are_started_again),
        cmocka_unit_test(restarts_end_without_progress),
        cmocka_unit_test(some_ends_are_ends),
        cmocka_unit_test(stop_after_is_not_started_again),
        cmocka_unit_test(a_signal_ends_restarts),
        cmocka_unit_test(wrong_options_are_refused),
        cmocka_unit_test(slurm_requeues_what_is_worth_it),
        cmocka_unit_test(slurm_signals_mean_what_the_script_says),
        cmocka_unit_test(slurm_requeues_end_without_progress),
    };
    return program_main("program_launch", tests, sizeof tests / sizeof *tests);
}
