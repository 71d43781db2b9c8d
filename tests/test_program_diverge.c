/* test_program_diverge.c - steps whose loss or gradients are not finite, ranks that hold other bits, disks that fill up.
 *
 * 200 images in steps of 10, as in test_program_launch.c; the faults come from --inject. */
#include "program.h"

#include "trainer/checkpoint/checkpoint.h"

#define TRAIN "train --width 0.25 --depth 0.5 --image-size 32 --global-batch 10 --lr 0.001 --threads 1 --eval-every 0"

static const char *data(void) { return drawn("--train-per-class 20 --val-per-class 2 --synth-size 48"); }

static int64_t attribute(const char *path, const char *name)
{
    en_checkpoint_info info;
    assert_int_equal(en_checkpoint_inspect(path, true, &info), EN_OK);
    const int64_t v = strcmp(name, "skipped") == 0 ? info.state.skipped : strcmp(name, "in a row") == 0 ? info.state.skipped_in_row : info.state.ema_updates;
    en_checkpoint_info_free(&info);
    return v;
}

/* The step before the NaN, the step itself, and one behind it: weights, optimizer, averages and running statistics of the skipped step
 * are those of before, bit for bit, on all ranks (each save compares them). */
static void skips(int ranks, const char *fault, const char *what)
{
    const char *dir = at("skip-%d-%zu", ranks, strlen(fault));
    outcome *o = run(0, ranks, TRAIN " --steps 9 --checkpoint-every 1 --keep 9 --data %s --run %s --inject %s", data(), dir, fault);
    if (count(o->out, " is skipped: ") != 1 || !strstr(o->out, what)) FAIL_RUN(o, "it does not say once '%s'", what);
    same_bits(checkpoint_of(dir, 4), checkpoint_of(dir, 5));
    assert_int_equal(attribute(checkpoint_of(dir, 4), "ema"), 4);
    assert_int_equal(attribute(checkpoint_of(dir, 5), "ema"), 4);
    assert_int_equal(attribute(checkpoint_of(dir, 5), "skipped"), 1);
    assert_int_equal(attribute(checkpoint_of(dir, 5), "in a row"), 1);
    assert_int_equal(attribute(checkpoint_of(dir, 9), "skipped"), 1);
    assert_int_equal(attribute(checkpoint_of(dir, 9), "in a row"), 0);
    assert_int_equal(attribute(checkpoint_of(dir, 9), "ema"), 8);
    char worst[160];
    if (!(largest_deviation(checkpoint_of(dir, 6), checkpoint_of(dir, 5), "/model", worst) > 0)) FAIL_RUN(o, "nothing was learned after the skipped step");
    if (!(largest_deviation(checkpoint_of(dir, 9), checkpoint_of(dir, 5), "/model", worst) < 10)) FAIL_RUN(o, "%s is not what it was", worst);
    if (count(read_file(textf("%s/metrics.jsonl", dir), NULL), "\"skipped\":1") != 1) FAIL_RUN(o, "metrics do not say so");
}

static void a_loss_that_is_nan_is_skipped(void **state)
{
    (void)state;
    skips(0, "nan@0:5", "step 5 is skipped: the loss is not finite");
    skips(2, "nan@1:5", "step 5 is skipped: the loss is not finite");
}

static void a_gradient_that_is_nan_is_skipped(void **state)
{
    (void)state;
    skips(0, "nan@0:5:backward", "step 5 is skipped: the gradients are not finite");
    skips(2, "nan@1:5:backward", "step 5 is skipped: the gradients are not finite");
}

/* Two in a row are one too many for --max-skipped 1. */
static void too_many_in_a_row(void **state)
{
    (void)state;
    const char *dir = at("too-many");
    outcome *o = run(4, 2, TRAIN " --steps 12 --checkpoint-every 4 --max-skipped 1 --data %s --run %s --inject nan@0:6,nan@1:7", data(), dir);
    says_once(o, "not finite in 2 steps in a row, up to step 7 (--max-skipped 1)");
    assert_int_equal(newest_checkpoint(dir), 4);
    run(0, 2, TRAIN " --steps 12 --max-skipped 1 --data %s --run %s --inject nan@0:6,nan@1:7", data(), dir);      /* each came once */
    const char *apart = at("apart");                                                                               /* not in a row */
    run(0, 2, TRAIN " --steps 12 --max-skipped 1 --data %s --run %s --inject nan@0:6,nan@1:8", data(), apart);
}

/* Back to step 4 with half the rate: from there on it is the run that goes on from step 4 with half the rate. */
static void goes_back_with_a_lower_rate(void **state)
{
    (void)state;
    for (int ranks = 0; ranks <= 2; ranks += 2) {
        const char *dir = at("back-%d", ranks), *by_hand = at("by-hand-%d", ranks);
        outcome *o = run(0, ranks, TRAIN " --warmup-epochs 0 --steps 12 --checkpoint-every 4 --keep 9 --max-skipped 1 --on-divergence back --data %s --run %s "
                         "--inject nan@0:6,nan@0:7", data(), dir);
        if (!strstr(o->out, "diverged at step 7: back to the checkpoint of step 4, with 0.5 of the rate")) FAIL_RUN(o, "it does not say so");
        run(75, ranks, TRAIN " --warmup-epochs 0 --steps 12 --data %s --run %s --stop-after 4", data(), by_hand);
        run(0, ranks, TRAIN " --warmup-epochs 0 --steps 12 --lr 0.0005 --data %s --run %s", data(), by_hand);
        same_bits(checkpoint_of(dir, 12), checkpoint_of(by_hand, 12));
        size_t n;
        const metric *m = metrics(dir, "train", &n);
        assert_int_equal(n, 12);
        for (size_t i = 0; i < n; i++) assert_int_equal(m[i].step, (int64_t)i + 1);
        if (count(read_file(textf("%s/metrics.jsonl", dir), NULL), "{\"kind\":\"back\",\"step\":4,\"from_step\":7,\"lr_factor\":0.5}\n") != 1)
            FAIL_RUN(o, "metrics do not say so");
        o = run(0, ranks, TRAIN " --warmup-epochs 0 --steps 14 --data %s --run %s --log-every 0", data(), dir);              /* the factor is in the checkpoint */
        if (!strstr(o->out, "lr 1.95e-05")) FAIL_RUN(o, "the rate is not 0.001 * 10/256 * 0.5");
    }
}

/* Nothing to go back to but the beginning; and a rate that never helps ends with 4. */
static void goes_back_to_the_beginning(void **state)
{
    (void)state;
    const char *dir = at("beginning"), *half = at("half");
    run(0, 0, TRAIN " --warmup-epochs 0 --steps 12 --checkpoint-every 0 --max-skipped 0 --on-divergence back --data %s --run %s --inject nan@0:3", data(), dir);
    run(0, 0, TRAIN " --warmup-epochs 0 --steps 12 --checkpoint-every 0 --lr 0.0005 --data %s --run %s", data(), half);
    same_bits(checkpoint_of(dir, 12), checkpoint_of(half, 12));
    outcome *o = run(4, 0, "train --width 0.25 --depth 0.5 --image-size 32 --global-batch 10 --threads 1 --warmup-epochs 0 --steps 12 --lr 1e30 "
                     "--on-divergence back --data %s --run %s", data(), at("hopeless"));
    says_once(o, "went back 3 times, at last with 0.125 of the rate, and never came past step 5");
}

/* ---- ranks that hold other bits ------------------------------------------------------------------------------------------ */

static void a_flipped_bit_is_found(void **state)
{
    (void)state;
    const char *dir = at("flip");
    outcome *o = run(5, 3, TRAIN " --uneven --steps 30 --checkpoint-every 4 --compare-every 3 --data %s --run %s --inject flip@2:8", data(), dir);
    says_once(o, "rank 2 on host ");
    says_once(o, "than 2 of the 3 ranks after step 8");           /* the checkpoint of step 8 would have held it */
    assert_int_equal(newest_checkpoint(dir), 4);
    dir = at("flip-between");
    o = run(5, 3, TRAIN " --uneven --steps 30 --checkpoint-every 20 --compare-every 3 --data %s --run %s --inject flip@1:8", data(), dir);
    says_once(o, "rank 1 on host ");
    says_once(o, "than 2 of the 3 ranks after step 9");
    run(0, 3, TRAIN " --uneven --steps 30 --checkpoint-every 20 --compare-every 3 --data %s --run %s --inject flip@1:8", data(), dir);
}

/* ---- disks ------------------------------------------------------------------------------------------------------------------ */

/* Two writes find the disk full: training goes on, and it is tried again, at the latest at the end. */
static void a_full_disk_is_tried_again(void **state)
{
    (void)state;
    for (int ranks = 0; ranks <= 2; ranks += 2) {
        const char *dir = at("full-%d", ranks), *whole = at("not-full-%d", ranks);
        run(75, ranks, TRAIN " --steps 12 --data %s --run %s --stop-after 4", data(), dir);
        outcome *o = run(0, ranks, TRAIN " --steps 12 --checkpoint-every 4 --keep 9 --data %s --run %s --inject enospc=2@0:5", data(), dir);
        if (count(o->err, "a checkpoint could not be written, training goes on and tries again in ") + count(o->err, "the last checkpoint could not be written, trying again in 1 s") != 2)
            FAIL_RUN(o, "it does not say twice that the disk is full");
        if (!strstr(o->err, "No space left on device")) FAIL_RUN(o, "it does not say why");
        is_whole(checkpoint_of(dir, 4), 4);
        is_whole(checkpoint_of(dir, 12), 12);
        assert_false(exists(checkpoint_of(dir, 8)));
        run(0, ranks, TRAIN " --steps 12 --data %s --run %s", data(), whole);
        same_bits(checkpoint_of(dir, 12), checkpoint_of(whole, 12));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_loss_that_is_nan_is_skipped),
        cmocka_unit_test(a_gradient_that_is_nan_is_skipped),
        cmocka_unit_test(too_many_in_a_row),
        cmocka_unit_test(goes_back_with_a_lower_rate),
        cmocka_unit_test(goes_back_to_the_beginning),
        cmocka_unit_test(a_flipped_bit_is_found),
        cmocka_unit_test(a_full_disk_is_tried_again),
    };
    return program_main("program_diverge", tests, sizeof tests / sizeof *tests);
}
