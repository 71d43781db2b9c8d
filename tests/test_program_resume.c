/* test_program_resume.c - a run that is stopped, killed and started again is the run that was not.
 *
 * 200 images in steps of 10: 20 steps an epoch, so step 50 is the middle of one.  Dropout, stochastic depth, crops, flips,
 * averaging and evaluation are on, as they are by default. */
#define _GNU_SOURCE
#include "program.h"

#include <math.h>
#include <signal.h>

#define TRAIN "train --width 0.25 --depth 0.5 --image-size 32 --global-batch 10 --lr 0.001"

static const char *data(void) { return drawn("--train-per-class 20 --val-per-class 2 --synth-size 48"); }

static void same_losses(const char *a, const char *b, size_t steps, const char *kind)
{
    size_t n, m;
    const metric *x = metrics(a, kind, &n), *y = metrics(b, kind, &m);
    if (n != m || (steps && n != steps)) fail_msg("%zu and %zu lines of kind %s instead of %zu in %s and %s", n, m, kind, steps, a, b);
    for (size_t i = 0; i < n; i++)
        if (x[i].step != y[i].step || strcmp(x[i].text, y[i].text) != 0)
            fail_msg("step %" PRId64 ": loss %s in %s; step %" PRId64 ": %s in %s", x[i].step, x[i].text, a, y[i].step, y[i].text, b);
}

/* ---- 100 = 50 + 50 ---------------------------------------------------------------------------------------------------- */

static void hundred_steps_are_fifty_and_fifty(int ranks)
{
    const char *whole = at("whole-%d", ranks), *halves = at("halves-%d", ranks);
    run(0, ranks, TRAIN " --threads 1 --steps 100 --data %s --run %s", data(), whole);
    outcome *o = run(75, ranks, TRAIN " --threads 1 --steps 100 --data %s --run %s --stop-after 50", data(), halves);
    if (!strstr(o->out, "stopped on request after step 50 of 100")) FAIL_RUN(o, "it does not say that it stopped");
    is_whole(checkpoint_of(halves, 50), 50);
    assert_int_equal(newest_checkpoint(halves), 50);
    o = run(0, ranks, TRAIN " --threads 1 --steps 100 --data %s --run %s --stop-after 50", data(), halves);   /* the same command */
    if (!strstr(o->out, "going on from step 50")) FAIL_RUN(o, "it does not say where it goes on");
    same_bits(checkpoint_of(halves, 100), checkpoint_of(whole, 100));
    same_losses(halves, whole, 100, "train");
    same_losses(halves, whole, 0, "eval");
}

static void on_one_rank_without_mpi(void **state) { (void)state; hundred_steps_are_fifty_and_fifty(0); }
static void on_two_ranks(void **state)            { (void)state; hundred_steps_are_fifty_and_fifty(2); }

/* The networks that the paper scales beside its own: two ranks, stopped between, are two ranks that were not, to the bit; one rank is
 * them but for the order of sums, which in 6 steps of a small rate stays below 1e-3. */
static void other_bases_learn_and_resume(void **state)
{
    (void)state;
    static const char *const bases[] = { "mbv1 --width 0.25 --depth 0.2", "mbv2 --width 0.25 --depth 0.3 --drop-path 0.2", "r50 --width 0.125 --depth 0.3 --drop-path 0.2" };
    for (int k = 0; k < 3; k++) {
        const char *one = at("base-%d-one", k), *whole = at("base-%d", k), *halves = at("base-%d-halves", k);
        const char *train = textf("train --model %s --image-size 32 --global-batch 10 --lr 0.0003 --threads 1 --steps 6 --augment basic --data %s", bases[k], data());
        run(0, 0, "%s --run %s", train, one);
        run(0, 2, "%s --run %s", train, whole);
        run(75, 2, "%s --run %s --stop-after 3", train, halves);
        run(0, 2, "%s --run %s", train, halves);
        same_bits(checkpoint_of(halves, 6), checkpoint_of(whole, 6));
        same_losses(halves, whole, 6, "train");
        size_t n, m;
        const metric *x = metrics(one, "train", &n), *y = metrics(whole, "train", &m);
        assert_true(n == 6 && m == 6);
        for (size_t i = 0; i < n; i++)
            if (!(fabs(x[i].loss - y[i].loss) <= 1e-3 * x[i].loss)) fail_msg("%s, step %zu: loss %s on one rank, %s on two", bases[k], i + 1, x[i].text, y[i].text);
    }
}

static void a_run_that_is_done_does_nothing_more(void **state)
{
    (void)state;
    const char *dir = at("done");
    size_t n;
    run(0, 0, TRAIN " --threads 1 --steps 5 --data %s --run %s", data(), dir);
    const char *before = read_file(checkpoint_of(dir, 5), &n);
    outcome *o = run(0, 0, TRAIN " --threads 1 --steps 5 --data %s --run %s", data(), dir);
    if (!strstr(o->out, "all 5 steps are done already")) FAIL_RUN(o, "it does not say so");
    size_t m;
    const char *after = read_file(checkpoint_of(dir, 5), &m);
    assert_true(n == m && memcmp(before, after, n) == 0);
    o = run(0, 0, TRAIN " --threads 1 --steps 3 --data %s --run %s", data(), dir);
    if (!strstr(o->out, "nothing was trained") || !strstr(o->out, "is at step 5") || strstr(o->out, "step 5 of 3")) FAIL_RUN(o, "it does not say where it is");
    o = run(2, 0, TRAIN " --threads 1 --steps 5 --data %s --run %s --dump %s", data(), dir, at("none.h5"));
    says_once(o, "--dump writes a step, but all 5 of");
    assert_false(exists(at("none.h5")));
    metrics(dir, "train", &n);
    assert_int_equal(n, 5);
}

static void other_threads_with_the_same_lanes_are_the_same_bits(void **state)
{
    (void)state;
    const char *whole = at("lanes-1"), *halves = at("lanes-2");
    run(0, 0, TRAIN " --lanes 2 --threads 1 --steps 30 --data %s --run %s", data(), whole);
    run(75, 0, TRAIN " --lanes 2 --threads 2 --steps 30 --stop-after 13 --data %s --run %s", data(), halves);
    run(0, 0, TRAIN " --threads 1 --steps 30 --data %s --run %s", data(), halves);       /* lanes as the checkpoint says */
    same_bits(checkpoint_of(halves, 30), checkpoint_of(whole, 30));
    same_losses(halves, whole, 30, "train");
}

static void the_seed_is_the_runs(void **state)
{
    (void)state;
    const char *dir = at("seed");
    run(0, 0, TRAIN " --threads 1 --steps 2 --seed 7 --data %s --run %s", data(), dir);
    run(0, 0, TRAIN " --threads 1 --steps 4 --data %s --run %s", data(), dir);
    const char *text = read_file(textf("%s/run.txt", dir), NULL);
    assert_int_equal(count(text, "\nseed=7\n"), 2);
    assert_int_equal(count(text, "HDF5 1."), 2);
    assert_int_equal(count(text, "\n  hosts  "), 2);
    outcome *o = run(0, 0, TRAIN " --threads 1 --steps 5 --data %s --run %s --dump %s", data(), dir, at("step.h5"));
    if (!strstr(o->out, "--dump holds step 5")) FAIL_RUN(o, "it does not say which step");
}

/* 20 steps an epoch: a request to stop at step 40 comes when an evaluation is due.  It is made first thing afterwards. */
static void a_stop_does_not_lose_the_evaluation(void **state)
{
    (void)state;
    size_t n;
    const char *whole = at("owed-0"), *halves = at("owed-1");
    run(0, 0, TRAIN " --threads 1 --steps 60 --data %s --run %s", data(), whole);
    run(75, 2, TRAIN " --threads 1 --steps 60 --stop-after 40 --data %s --run %s-2", data(), halves);
    run(75, 0, TRAIN " --threads 1 --steps 60 --stop-after 40 --data %s --run %s", data(), halves);
    metrics(halves, "eval", &n);
    assert_int_equal(n, 1);
    run(0, 0, TRAIN " --threads 1 --steps 60 --data %s --run %s", data(), halves);
    run(0, 2, TRAIN " --threads 1 --steps 60 --data %s --run %s-2", data(), halves);
    same_losses(halves, whole, 3, "eval");
    metrics(textf("%s-2", halves), "eval", &n);
    assert_int_equal(n, 3);
    same_bits(at("owed-0/checkpoints/best.h5"), at("owed-1/checkpoints/best.h5"));
    same_bits(checkpoint_of(halves, 60), checkpoint_of(whole, 60));
}

/* The request comes while an evaluation is under way, which may take longer than a batch system waits: it is given up, and
 * made by the next start, after the same step and with the same result. */
static void a_stop_ends_an_evaluation(void **state)
{
    (void)state;
    for (int ranks = 0; ranks <= 2; ranks += 2) {
        const char *dir = at("evaluating-%d", ranks), *whole = at("evaluating-not-%d", ranks);
        const char *same = TRAIN " --threads 1 --steps 12 --eval-every 5 --eval-batch 2 --checkpoint-every 0";
        run(0, ranks, "%s --data %s --run %s", same, data(), whole);
        outcome *o = run(75, ranks, "%s --data %s --run %s --inject %s@%d:5:evaluation", same, data(), dir, ranks ? "usr1" : "term", ranks ? 1 : 0);
        if (strstr(o->out, "evaluation after epoch")) FAIL_RUN(o, "the evaluation was made to its end");
        assert_int_equal(newest_checkpoint(dir), 5);
        run(0, ranks, "%s --data %s --run %s", same, data(), dir);
        same_losses(dir, whole, 3, "eval");                        /* after steps 5, 10, 12 */
        same_bits(checkpoint_of(dir, 12), checkpoint_of(whole, 12));
    }
}

/* What fits into memory may be another number tomorrow: the checkpoint's counts. */
static void accumulation_is_kept_without_asking(void **state)
{
    (void)state;
    const char *whole = at("accum-1"), *halves = at("accum-2");
    run(0, 0, TRAIN " --threads 1 --steps 30 --micro-batch 5 --data %s --run %s", data(), whole);
    run(75, 0, TRAIN " --threads 1 --steps 30 --micro-batch 5 --stop-after 13 --data %s --run %s", data(), halves);
    outcome *o = run(75, 0, TRAIN " --threads 1 --steps 30 --stop-after 20 --data %s --run %s", data(), halves);
    if (!strstr(o->out, "= 5 a pass x 2 accumulated x 1 rank") || strstr(o->out, "note  ")) FAIL_RUN(o, "another accumulation than before");
    run(0, 0, TRAIN " --threads 1 --steps 30 --data %s --run %s", data(), halves);
    same_bits(checkpoint_of(halves, 30), checkpoint_of(whole, 30));
    same_losses(halves, whole, 30, "train");
    o = run(75, 2, TRAIN " --threads 1 --steps 40 --stop-after 31 --data %s --run %s", data(), halves);
    if (!strstr(o->out, "is from 2 accumulated x 1 rank: from here on sums are rounded differently")) FAIL_RUN(o, "it does not say what differs");
    o = run(75, 0, TRAIN " --threads 1 --steps 40 --stop-after 32 --micro-batch 10 --data %s --run %s", data(), halves);
    if (!strstr(o->out, "is from 2 accumulated x 2 ranks: from here on batch norm is over another number of images")) FAIL_RUN(o, "it does not say what differs");
}

/* The same images in the same steps: equal but for rounding (see test_program_ranks.c for the bound); another order of
 * images would show in the first loss. */
static void other_ranks_see_the_same_images(void **state)
{
    (void)state;
    static const int first[] = { 0, 0, 2, 4 }, then[] = { 2, 3, 4, 2 };
    size_t n, m;
    const char *whole = at("moved-0");
    run(0, 0, "train --width 0.25 --depth 0.5 --image-size 32 --global-batch 12 --lr 0.0003 --threads 1 --steps 40 --data %s --run %s", data(), whole);
    const metric *y = metrics(whole, "train", &m);
    for (size_t k = 0; k < sizeof then / sizeof *then; k++) {
        const char *dir = at("moved-%d-%d", first[k], then[k]);
        const char *same = "train --width 0.25 --depth 0.5 --image-size 32 --global-batch 12 --lr 0.0003 --threads 1 --steps 40";
        run(75, first[k], "%s --data %s --run %s --stop-after 21", same, data(), dir);
        run(75, then[k], "%s --data %s --run %s --stop-after 30", same, data(), dir);
        run(0, first[k], "%s --data %s --run %s", same, data(), dir);
        const metric *x = metrics(dir, "train", &n);
        assert_int_equal(n, m);
        double most = 0;
        for (size_t i = 0; i < n; i++) {
            const double d = fabs(x[i].loss - y[i].loss) / y[i].loss;
            if (x[i].step != (int64_t)i + 1 || !(d <= 1e-4)) fail_msg("step %zu on %d ranks: loss %s instead of %s", i + 1, then[k], x[i].text, y[i].text);
            most = d > most ? d : most;
        }
        print_message("    %d, %d, %d ranks: losses %.1e apart\n", first[k] ? first[k] : 1, then[k], first[k] ? first[k] : 1, most);
    }
}

/* ---- signals ----------------------------------------------------------------------------------------------------------- */

static void stops_on(int sig, how h)
{
    const int ranks = h.ranks;
    const char *dir = at("signal-%d-%d-%d", sig, ranks, h.by_script), *lines = textf("%s/metrics.jsonl", dir);
    job *j = start(h, TRAIN " --threads 1 --steps 1000000 --checkpoint-every 0 --eval-every 0 --data %s --run %s",
                   data(), dir);
    wait_for_lines(j, lines, 5);
    send(j, sig);
    outcome *o = finish(j);
    /* mpirun passes SIGUSR1 on.  SIGTERM and SIGINT are for itself: it ends the ranks in order and leaves with 1; launch/run
     * sends SIGUSR1 instead. */
    if (ranks == 0 || sig == SIGUSR1 || h.by_script) expect_code(o, 75);
    else if (o->code == 0) FAIL_RUN(o, "exit code 0 of a run that was stopped");
    if (!strstr(o->out, "stopped on request after step ") || !strstr(o->out, "the same command goes on")) FAIL_RUN(o, "it does not say that it stopped");
    size_t n;
    const metric *m = metrics(dir, "train", &n);
    const int64_t step = newest_checkpoint(dir);
    assert_true(n > 0);
    assert_int_equal(m[n - 1].step, step);                       /* nothing that was done is lost */
    is_whole(checkpoint_of(dir, step), step);
    o = run(75, ranks, TRAIN " --threads 1 --steps 1000000 --checkpoint-every 0 --eval-every 0 --data %s --run %s --stop-after %" PRId64, data(), dir, step + 2);
    m = metrics(dir, "train", &n);
    for (size_t i = 0; i < n; i++) assert_int_equal(m[i].step, (int64_t)i + 1);
    assert_int_equal(n, step + 2);
}

static void usr1_alone(void **state)  { (void)state; stops_on(SIGUSR1, (how){ 0 }); }
static void term_alone(void **state)  { (void)state; stops_on(SIGTERM, (how){ 0 }); }
static void int_alone(void **state)   { (void)state; stops_on(SIGINT,  (how){ 0 }); }
static void usr1_on_two(void **state) { (void)state; stops_on(SIGUSR1, (how){ .ranks = 2 }); }
static void term_on_two(void **state) { (void)state; stops_on(SIGTERM, (how){ .ranks = 2, .patient = true }); }
static void int_on_two(void **state)  { (void)state; stops_on(SIGINT,  (how){ .ranks = 2, .patient = true }); }
static void term_by_launch_run(void **state) { (void)state; stops_on(SIGTERM, (how){ .ranks = 2, .by_script = true }); }
static void int_by_launch_run(void **state)  { (void)state; stops_on(SIGINT,  (how){ .ranks = 2, .by_script = true }); }

/* Before the first step, a request to stop is not lost, and not answered with a death. */
static void a_signal_at_once(void **state)
{
    (void)state;
    const char *dir = at("early");
    int stopped = 0;
    for (int i = 0; i < 8; i++) {
        job *j = start((how){ 0 }, TRAIN " --threads 1 --steps 1000000 --checkpoint-every 0 --eval-every 0 --data %s --run %s", data(), dir);
        pause_s(0.01 * i);
        send(j, SIGUSR1);
        outcome *o = finish(j);
        if (o->code == 128 + SIGUSR1) continue;                  /* before main had begun: nobody has heard it yet */
        expect_code(o, 75);
        is_whole(checkpoint_of(dir, newest_checkpoint(dir)), newest_checkpoint(dir));
        stopped++;
    }
    print_message("    %d of 8 were heard\n", stopped);
}

/* ---- kills --------------------------------------------------------------------------------------------------------------- */

static int kills(void)                           /* the issue asks for 50; sanitizers make each of them slow */
{
    const char *wanted = getenv("EN_TEST_KILLS");
    return wanted ? atoi(wanted) : SANITIZED ? 12 : 50;
}

static double random_share(void)                 /* [0, 1), the same on every machine */
{
    static uint64_t x = 88172645463325252u;
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    return (double)(x >> 11) * 0x1p-53;
}

typedef struct { const char *dir; int64_t finished; int passed_over, during_save; } victim;

/* What bears its final name when the process is dead is whole, and nothing that was finished before is gone. */
static void nothing_finished_is_lost(victim *v, const outcome *o, int64_t seen)
{
    const int64_t newest = newest_checkpoint(v->dir);
    if (newest < v->finished || newest < seen)
        FAIL_RUN(o, "step %" PRId64 " was on disk before the kill, %" PRId64 " is the newest after it", seen > v->finished ? seen : v->finished, newest);
    if (newest >= 0) is_whole(checkpoint_of(v->dir, newest), newest);
    v->passed_over += count(o->err, "passing over ");
    v->finished = newest;
    size_t n;
    char **files = files_below(v->dir, &n);
    for (size_t i = 0; i < n; i++) v->during_save += strstr(files[i], ".tmp") != NULL;
}

/* One life: it begins where the newest checkpoint says, is watched for a random while, and killed.  The while is counted
 * from the start, or, for most lives, from the first checkpoint of its own: a slow machine would see none otherwise. */
static void live_and_die(victim *v, int ranks)
{
    job *j = start((how){ .ranks = ranks }, TRAIN " --threads 1 --steps 1000000 --checkpoint-every 1 --eval-every 0 --data %s --run %s", data(), v->dir);
    const bool young = random_share() < 0.3;
    const double lasts = random_share() * (young ? 0.5 : 0.2) * (SANITIZED ? 4 : 1);
    double end = now_s() + (young ? lasts : 30);
    int64_t seen = -1;
    while (now_s() < end && running(j)) {
        pause_s(0.002);
        const int64_t newest = newest_checkpoint(v->dir);
        if (newest < seen || newest < v->finished) {
            send(j, SIGKILL);
            FAIL_RUN(finish(j), "the newest checkpoint went from step %" PRId64 " to %" PRId64, seen, newest);
        }
        if (!young && seen <= v->finished && newest > v->finished) end = now_s() + lasts;
        seen = newest;
    }
    if (!running(j)) FAIL_RUN(finish(j), "it ended by itself");
    int pids[8];
    const int n = ranks ? ranks_of(j, pids, 8) : 0, whom = (int)(random_share() * (n + 1));
    const int64_t before = newest_checkpoint(v->dir);
    if (whom < n) kill(pids[whom], SIGKILL);     /* one rank of several: mpirun ends the others */
    else send(j, SIGKILL);                       /* mpirun itself, or the only process */
    outcome *o = finish(j);                      /* hangs or leaves ranks behind: a failure */
    if (o->code == 0 || o->code == 75) FAIL_RUN(o, "code %d of a run that was killed", o->code);
    nothing_finished_is_lost(v, o, before > seen ? before : seen);
}

static void kills_lose_nothing(int ranks, int times)
{
    victim v = { .dir = at("killed-%d", ranks), .finished = -1 };
    for (int i = 0; i < times; i++) live_and_die(&v, ranks);
    print_message("    %d kills, %" PRId64 " steps on disk, %d in the middle of a save\n", times, v.finished, v.during_save);
    if (v.passed_over) fail_msg("%d files with a final name were not whole", v.passed_over);
    if (v.finished < times / 2) fail_msg("%d lives brought only %" PRId64 " steps: nothing was tried", times, v.finished);

    const int64_t end = v.finished + 3;          /* the last life may end; it is the run that nobody killed */
    run(0, ranks, TRAIN " --threads 1 --steps %" PRId64 " --checkpoint-every 1 --eval-every 0 --data %s --run %s", end, data(), v.dir);
    run(0, ranks, TRAIN " --threads 1 --steps %" PRId64 " --checkpoint-every 0 --eval-every 0 --data %s --run %s-not", end, data(), v.dir);
    same_bits(checkpoint_of(v.dir, end), checkpoint_of(at("killed-%d-not", ranks), end));
    same_losses(v.dir, at("killed-%d-not", ranks), (size_t)end, "train");
}

static void kills_of_one_process(void **state)  { (void)state; kills_lose_nothing(0, kills()); }
static void kills_of_ranks_or_mpirun(void **state) { (void)state; kills_lose_nothing(2, (kills() + 4) / 5); }

/* ---- two masters --------------------------------------------------------------------------------------------------------- */

static void fresh_refuses_a_run_with_a_checkpoint(void **state)
{
    (void)state;
    const char *dir = at("fresh");
    run(0, 0, TRAIN " --threads 1 --steps 2 --data %s --run %s --fresh", data(), dir);
    for (int ranks = 0; ranks <= 2; ranks += 2) {
        outcome *o = run(2, ranks, TRAIN " --threads 1 --steps 4 --data %s --run %s --fresh", data(), dir);
        says_once(o, "--fresh, but ");
        says_once(o, "step-00000002.h5");
        says_once(o, "take another --run");
    }
    assert_int_equal(newest_checkpoint(dir), 2);
}

static void a_second_job_is_refused(void **state)
{
    (void)state;
    const char *dir = at("twice");
    job *first = start((how){ 0 }, TRAIN " --threads 1 --steps 1000000 --checkpoint-every 0 --eval-every 0 --data %s --run %s", data(), dir);
    wait_for_lines(first, at("twice/metrics.jsonl"), 2);
    for (int ranks = 0; ranks <= 2; ranks += 2) {
        outcome *o = run(2, ranks, TRAIN " --threads 1 --steps 4 --data %s --run %s", data(), dir);
        says_once(o, "another job is training in");
        says_once(o, "choose another --run");
    }
    send(first, SIGTERM);
    outcome *o = finish(first);
    expect_code(o, 75);
    size_t n;
    const metric *m = metrics(dir, "train", &n);                 /* the second has not touched its file */
    for (size_t i = 0; i < n; i++) assert_int_equal(m[i].step, (int64_t)i + 1);
}

/* As after a restart, when a rank of the job before has not yet heard that it is over. */
static void a_job_waits_for_one_that_is_ending(void **state)
{
    (void)state;
    const char *dir = at("ending");
    job *first = start((how){ 0 }, TRAIN " --threads 1 --steps 1000000 --checkpoint-every 0 --eval-every 0 --data %s --run %s", data(), dir);
    wait_for_lines(first, at("ending/metrics.jsonl"), 2);
    job *second = start((how){ 0 }, TRAIN " --threads 1 --steps 4 --data %s --run %s", data(), dir);
    pause_s(1);
    send(first, SIGTERM);
    expect_code(finish(first), 75);
    outcome *o = finish(second);
    expect_code(o, 0);
    says_once(o, "waiting 10 s for it to end");
    if (!strstr(o->out, "going on from step ")) FAIL_RUN(o, "it does not go on from the other's checkpoint");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(on_one_rank_without_mpi),
        cmocka_unit_test(on_two_ranks),
        cmocka_unit_test(other_bases_learn_and_resume),
        cmocka_unit_test(a_run_that_is_done_does_nothing_more),
        cmocka_unit_test(other_threads_with_the_same_lanes_are_the_same_bits),
        cmocka_unit_test(the_seed_is_the_runs),
        cmocka_unit_test(a_stop_does_not_lose_the_evaluation),
        cmocka_unit_test(a_stop_ends_an_evaluation),
        cmocka_unit_test(accumulation_is_kept_without_asking),
        cmocka_unit_test(other_ranks_see_the_same_images),
        cmocka_unit_test(usr1_alone),
        cmocka_unit_test(term_alone),
        cmocka_unit_test(int_alone),
        cmocka_unit_test(usr1_on_two),
        cmocka_unit_test(term_on_two),
        cmocka_unit_test(int_on_two),
        cmocka_unit_test(term_by_launch_run),
        cmocka_unit_test(int_by_launch_run),
        cmocka_unit_test(a_signal_at_once),
        cmocka_unit_test(kills_of_one_process),
        cmocka_unit_test(kills_of_ranks_or_mpirun),
        cmocka_unit_test(fresh_refuses_a_run_with_a_checkpoint),
        cmocka_unit_test(a_second_job_is_refused),
        cmocka_unit_test(a_job_waits_for_one_that_is_ending),
    };
    return program_main("program_resume", tests, sizeof tests / sizeof *tests);
}
