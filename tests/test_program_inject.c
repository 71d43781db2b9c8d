/* test_program_inject.c - faults on purpose (trainer/inject.h): each kind does what it says, once in a run's folder, and
 * mistakes in the option are told.  What a job makes of faults is the matter of tests/faults. */
#define _GNU_SOURCE
#include "program.h"

#include <math.h>
#include <signal.h>

#define TRAIN "train --width 0.25 --depth 0.5 --image-size 32 --global-batch 10 --lr 0.001 --threads 1 --eval-every 0"

static const char *data(void) { return drawn("--train-per-class 20 --val-per-class 2 --synth-size 48"); }

static const char *injected(const char *dir)
{
    const char *path = textf("%s/injected.txt", dir);
    return exists(path) ? read_file(path, NULL) : "";
}

static void mistakes_are_told(void **state)
{
    (void)state;
    static const struct { const char *inject, *says; } wrong[] = {
        { "kil@0:1", "did you mean kill?" },          { "fire@0:1", "use kill, stall" },                  { "kill", "Write kill@RANK:STEP" },
        { "kill@0", "kill@0:20" },                    { "kill@0:", "two whole numbers" },                 { "kill@-1:3", "two whole numbers" },
        { "kill@0:3x", "stands nothing, or :SECTION" }, { "kill=3@0:4", "takes no amount: write kill@0:4" }, { "kill@1:3", "there is no rank 1; this run has 1" },
        { "kill@0:3:foo", "use start-up, data" },     { "kill@0:0", "step 0 is the start-up" },           { "kill@0:3:start-up", "write step 0" },
        { "slow=1@0:3", "a factor above 1" },         { "slow=2@0:3:data", "takes no section" },          { "enospc=1.5@0:3", "a number of writes" },
        { "nan@0:3:update", "no section but backward" }, { "kill@0:1,flop@0:2", "did you mean flip?" } };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        outcome *o = run(2, 0, TRAIN " --steps 3 --data %s --run %s --inject %s", data(), at("mistakes"), wrong[i].inject);
        says_once(o, wrong[i].says);
        assert_string_equal(injected(at("mistakes")), "");
    }
    outcome *o = run(2, 2, TRAIN " --steps 3 --data %s --run %s --inject enospc@1:2", data(), at("mistakes"));
    says_once(o, "rank 0 writes the checkpoints");
}

/* The same command three times: it dies twice, as the option says, and goes on from the checkpoint of before each time. */
static void a_fault_comes_once_in_a_folder(void **state)
{
    (void)state;
    const char *dir = at("once"), *command = textf(TRAIN " --steps 12 --checkpoint-every 2 --data %s --run %s --inject kill@0:5,kill@0:8:forward", data(), dir);
    run(137, 0, "%s", command);
    assert_int_equal(count(injected(dir), "\n"), 1);
    assert_int_equal(strncmp(injected(dir), "kill@0:5 ", 9), 0);
    run(137, 0, "%s", command);
    assert_int_equal(count(injected(dir), "\nkill@0:8:forward "), 1);
    outcome *o = run(0, 0, "%s", command);
    if (!strstr(o->out, "going on from step ")) FAIL_RUN(o, "it did not go on");
    assert_int_equal(count(injected(dir), "\n"), 2);
    run(0, 0, TRAIN " --steps 12 --checkpoint-every 0 --data %s --run %s-not", data(), dir);
    same_bits(checkpoint_of(dir, 12), checkpoint_of(at("once-not"), 12));
}

/* Written twice, it comes twice: the second time when the first start has died of it. */
static void and_twice_when_it_is_written_twice(void **state)
{
    (void)state;
    const char *command = textf(TRAIN " --steps 4 --checkpoint-every 1 --data %s --run %s --inject kill@0:3,kill@0:3", data(), at("twice"));
    run(137, 0, "%s", command);
    run(137, 0, "%s", command);
    run(0, 0, "%s", command);
}

static void sections_are_met(void **state)
{
    (void)state;
    static const char *const sections[] = { "0:start-up", "3:data", "3:forward", "3:backward", "3:update", "3:device", "3:checkpoint", "3:evaluation", "1:ending" };
    for (size_t i = 0; i < sizeof sections / sizeof *sections; i++) {
        const char *dir = at("section-%zu", i), *spec = textf("kill@0:%s", sections[i]);
        run(137, 0, TRAIN " --steps 5 --checkpoint-every 4 --eval-every 4 --data %s --run %s --inject %s", data(), dir, spec);
        if (strncmp(injected(dir), spec, strlen(spec)) != 0 || !strstr(injected(dir), textf(" %s ", strchr(sections[i], ':') + 1)))
            fail_msg("%s left '%s'", spec, injected(dir));
    }
    run(137, 2, TRAIN " --steps 5 --data %s --run %s --inject kill@1:3:collective", data(), at("section-2"));
}

static void signals_stop_the_run(void **state)
{
    (void)state;
    static const char *const kinds[] = { "term", "usr1" };
    for (size_t i = 0; i < 2; i++) {
        const char *dir = at("signal-%zu", i);
        run(75, 0, TRAIN " --steps 1000 --checkpoint-every 0 --data %s --run %s --inject %s@0:4:backward", data(), dir, kinds[i]);
        is_whole(checkpoint_of(dir, 4), 4);
    }
}

static void nobody_comes_back_from_stall_and_freeze(void **state)
{
    (void)state;
    static const char *const kinds[] = { "stall", "freeze" };
    for (size_t i = 0; i < 2; i++) {
        outcome *o = run(5, 2, TRAIN " --steps 6 --stall-timeout %s --data %s --run %s --inject %s@1:3", SANITIZED ? "20s" : "4s", data(), at("stays-%zu", i),
                         kinds[i]);
        says_once(o, textf("--inject %s@1:3: now", kinds[i]));
    }
}

/* A disk that is full for one write: the run goes on, ends well, and its last checkpoint has the same bits. */
static void a_full_disk_is_said(void **state)
{
    (void)state;
    const char *dir = at("full");
    outcome *o = run(0, 0, TRAIN " --steps 12 --checkpoint-every 3 --data %s --run %s --inject enospc@0:5", data(), dir);
    if (!strstr(o->err, "No space left on device")) FAIL_RUN(o, "it does not say that the disk is full");
    run(0, 0, TRAIN " --steps 12 --checkpoint-every 0 --data %s --run %s-not", data(), dir);
    same_bits(checkpoint_of(dir, 12), checkpoint_of(at("full-not"), 12));
}

/* The bit is in no checkpoint, and whose it was is said. */
static void a_flipped_bit_is_found(void **state)
{
    (void)state;
    const char *dir = at("flip"), *command = textf(TRAIN " --steps 8 --checkpoint-every 3 --data %s --run %s --inject flip@1:5", data(), dir);
    outcome *o = run(5, 2, "%s", command);
    if (!strstr(o->err, "rank 1 ")) FAIL_RUN(o, "it does not name rank 1");
    assert_int_equal(newest_checkpoint(dir), 3);
    run(0, 2, "%s", command);
    run(0, 2, TRAIN " --steps 8 --checkpoint-every 0 --data %s --run %s-not", data(), dir);
    same_bits(checkpoint_of(dir, 8), checkpoint_of(at("flip-not"), 8));
}

static double median_wait(const char *dir, int64_t from, int64_t to)
{
    size_t n;
    double v[64];
    int m = 0;
    char *rest, *text = read_file(textf("%s/metrics.jsonl", dir), &n);
    for (char *l = strtok_r(text, "\n", &rest); l; l = strtok_r(NULL, "\n", &rest)) {
        const int64_t step = (int64_t)number_in(l, "step");
        if (strstr(l, "\"kind\":\"train\"") && step >= from && step <= to && m < 64) v[m++] = 10 / number_in(l, "images_per_s");
    }
    for (int i = 1; i < m; i++)
        for (int k = i; k > 0 && v[k] < v[k - 1]; k--) {
            const double x = v[k];
            v[k] = v[k - 1];
            v[k - 1] = x;
        }
    return m ? v[m / 2] : 0;
}

static void slow_steps_take_longer(void **state)
{
    (void)state;
    const char *dir = at("slow");
    run(0, 2, TRAIN " --steps 12 --data %s --run %s --inject slow=0.3s@1:7", data(), dir);
    const double before = median_wait(dir, 2, 6), after = median_wait(dir, 7, 12);
    if (after < 0.3) fail_msg("%.3f s a step before, %.3f s from then on: not 0.3 s more", before, after);      /* a sleep is never shorter */
    run(0, 2, TRAIN " --steps 12 --data %s --run %s --inject slow@1:7", data(), at("slow-2"));
    run(0, 2, TRAIN " --steps 12 --data %s --run %s", data(), at("slow-not"));
    same_bits(checkpoint_of(dir, 12), checkpoint_of(at("slow-not"), 12));
    same_bits(checkpoint_of(at("slow-2"), 12), checkpoint_of(at("slow-not"), 12));
}

/* In the forward pass, and in the gradients alone: on one rank, for one step; all ranks know. */
static void not_a_number_is_noticed(void **state)
{
    (void)state;
    static const char *const faults[] = { "nan@1:5", "nan@1:5:backward" };
    for (size_t i = 0; i < 2; i++) {
        outcome *o = run(0, 2, TRAIN " --steps 8 --checkpoint-every 3 --data %s --run %s --inject %s", data(), at("nan-%zu", i), faults[i]);
        says_once(o, textf("--inject %s: now", faults[i]));
        if (!strstr(o->out, textf("step 5 is skipped: %s not finite", i ? "the gradients are" : "the loss is"))) FAIL_RUN(o, "it does not say what is not finite");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mistakes_are_told),
        cmocka_unit_test(a_fault_comes_once_in_a_folder),
        cmocka_unit_test(and_twice_when_it_is_written_twice),
        cmocka_unit_test(sections_are_met),
        cmocka_unit_test(signals_stop_the_run),
        cmocka_unit_test(nobody_comes_back_from_stall_and_freeze),
        cmocka_unit_test(a_full_disk_is_said),
        cmocka_unit_test(a_flipped_bit_is_found),
        cmocka_unit_test(slow_steps_take_longer),
        cmocka_unit_test(not_a_number_is_noticed),
    };
    return program_main("program_inject", tests, sizeof tests / sizeof *tests);
}
