/* test_program_cuda.c - the real program with --device cuda, where there is no GPU: the plugin is the CUDA backend and the NCCL
 * communicator over tests/cudaemu.
 *
 * On the processor and on cuda in fp32 a step is the same sums in another order.  As in test_program_ranks, --lr 0.0003 keeps
 * such differences at rounding over some dozens of steps. */
#include "program.h"

#include <math.h>

#define SMALL "train --augment basic --width 0.25 --depth 0.1 --image-size 32 --global-batch 8 --lr 0.0003 --threads 1 --checkpoint-every 0"

static const char *data(void) { return drawn("--train-per-class 8 --val-per-class 2 --synth-classes 3 --synth-size 40"); }

static void gpus(int n) { setenv("CUDAEMU_DEVICES", textf("%d", n), 1); }

static int with_a_gpu(void **state)
{
    (void)state;
    setenv("EFFNET_CUDA_PLUGIN", EN_CUDA_EMU, 1);
    gpus(1);
    return 0;
}

static void losses_agree(const char *a, const char *b, size_t steps, double tolerance)
{
    size_t n, m;
    const metric *x = metrics(a, "train", &n), *y = metrics(b, "train", &m);
    double most = 0;
    assert_int_equal(n, steps);
    assert_int_equal(m, steps);
    for (size_t i = 0; i < n; i++) {
        const double d = fabs(x[i].loss - y[i].loss) / fabs(y[i].loss);
        if (!(d <= tolerance)) fail_msg("step %zu: loss %s of %s against %s of %s: %.1e apart", i + 1, x[i].text, a, y[i].text, b, d);
        most = d > most ? d : most;
    }
    print_message("    losses: largest relative difference %.1e\n", most);
}

static const char *on_cpu(void)
{
    static const char *dir;
    if (!dir) {
        run(0, 0, SMALL " --device cpu --steps 50 --data %s --run %s", data(), at("cpu"));
        dir = at("cpu");
    }
    return dir;
}

static outcome *train(int ranks, const char *dir, const char *more)
{
    outcome *o = run_how((how){ .ranks = ranks, .seconds = 400 }, SMALL " --device cuda --precision fp32 --data %s --run %s %s", data(), dir, more);
    expect_code(o, 0);
    return o;
}

/* ---- the same training ---------------------------------------------------------------------------------------------------- */

static void fifty_steps_are_those_of_the_processor(void **state)
{
    (void)state;
    const outcome *o = train(0, at("cuda"), "--steps 50");
    if (!strstr(o->out, "steps recorded and replayed")) FAIL_RUN(o, "the step was not recorded");
    losses_agree(at("cuda"), on_cpu(), 50, 1e-3);
}

static void accumulated_and_masked_steps_are_those_of_the_processor(void **state)
{
    (void)state;
    static const char *const more = "--steps 6 --micro-batch 3 --drop-path 0.5 --dropout 0.5 --eval-every 3";
    run(0, 0, SMALL " --device cpu --data %s --run %s %s", data(), at("cpu-accum"), more);
    train(0, at("cuda-accum"), more);
    losses_agree(at("cuda-accum"), at("cpu-accum"), 6, 1e-3);
    size_t n, m;
    const metric *x = metrics(at("cuda-accum"), "eval", &n), *y = metrics(at("cpu-accum"), "eval", &m);
    assert_true(n == m && n == 2);
    for (size_t i = 0; i < n; i++) assert_true(fabs(x[i].loss - y[i].loss) <= 1e-3 * y[i].loss && x[i].images == y[i].images);
}

/* Two labels an image, in a recorded step: mates and shares travel with each batch.  A rank that has one half of a pair makes both. */
static void augmented_and_mixed_steps_are_those_of_the_processor(void **state)
{
    (void)state;
    static const char *const more = "--steps 6 --augment autoaugment --erase 0.3 --mixup 0.4 --cutmix 1";
    run(0, 0, SMALL " --device cpu --data %s --run %s %s", data(), at("cpu-mixed"), more);
    gpus(1);
    train(0, at("cuda-mixed"), more);
    losses_agree(at("cuda-mixed"), at("cpu-mixed"), 6, 1e-3);
    gpus(2);
    train(2, at("cuda-mixed-2"), more);
    gpus(1);
    losses_agree(at("cuda-mixed-2"), at("cuda-mixed"), 6, 1e-4);
}

/* A pool and shortcuts; activations at the end of blocks and no head: in recorded steps. */
static void other_bases_step_as_on_the_processor(void **state)
{
    (void)state;
    static const char *const bases[] = { "r50 --width 0.125 --depth 0.25 --drop-path 0.2", "mbv1 --width 0.25 --depth 0.2" };
    for (int k = 0; k < 2; k++) {
        const char *more = textf("--steps 6 --model %s", bases[k]), *there = at("cuda-base-%d", k), *here = at("cpu-base-%d", k);
        run(0, 0, SMALL " --device cpu --data %s --run %s %s", data(), here, more);
        train(0, there, more);
        losses_agree(there, here, 6, 1e-3);
    }
}

/* Rates at which each learns as slowly as RMSProp does with its 0.0003.  AdamW is stopped between: the count of updates is the file's, and
 * the step recorded anew. */
static void every_optimizer_steps_as_on_the_processor(void **state)
{
    (void)state;
    static const char *const ways[] = { "sgd --nesterov --lr 0.003", "lars --lr 0.1 --weight-decay 0.001", "adamw --lr 0.001 --weight-decay 0.01" };
    for (int k = 0; k < 3; k++) {
        const char *more = textf("--steps 8 --warmup-epochs 0 --optimizer %s", ways[k]), *there = at("cuda-optimizer-%d", k), *here = at("cpu-optimizer-%d", k);
        run(0, 0, SMALL " --device cpu --data %s --run %s %s", data(), here, more);
        train(0, there, more);
        losses_agree(there, here, 8, 1e-3);
    }
    const char *halves = at("cuda-optimizer-halves"), *more = textf("--steps 8 --warmup-epochs 0 --optimizer %s", ways[2]);
    make_folders(halves);
    shell("cp -r %s/algorithms %s", at("cuda-optimizer-2"), halves);           /* the same products, or AdamW makes of their rounding what it likes */
    run(75, 0, SMALL " --device cuda --precision fp32 --data %s --run %s %s --stop-after 4", data(), halves, more);
    train(0, halves, more);
    same_bits(checkpoint_of(halves, 8), checkpoint_of(at("cuda-optimizer-2"), 8));
}

/* Marks around the sums of batch norm stand in a recording of their own; in the other steps nobody knows what they took. */
static void the_ninth_step_times_its_sums(const char *dir)
{
    char *text = read_file(textf("%s/metrics.jsonl", dir), NULL), *rest;
    int steps = 0;
    for (char *l = strtok_r(text, "\n", &rest); l; l = strtok_r(NULL, "\n", &rest)) {
        if (strstr(l, "\"kind\":\"train\"")) {
            const bool known = !strstr(l, "\"bn_comm_s\":null");
            steps++;
            if (known != (steps == 9)) fail_msg("%s", l);
            if (known) assert_true(number_in(l, "bn_comm_s") > 0 && number_in(l, "bn_comm_s") < number_in(l, "forward_s") + number_in(l, "backward_s"));
        } else if (strstr(l, "\"kind\":\"account\"")) {
            assert_true(number_in(l, "bn_forward_s") > 0 && number_in(l, "bn_backward_s") > 0);
        }
    }
    assert_int_equal(steps, 10);
}

/* 37, 42 and 48 px, four steps each, recorded anew in each stage; evaluated at 64 px in between, by a net that wants more scratch than any
 * of them.  Stopped within a stage and at a border it is the run that was not. */
static void stages_are_those_of_the_processor(void **state)
{
    (void)state;
    static const char *const more = "--steps 12 --image-size 48 --size-from 32 --stages 3 --augment randaugment --mixup 0.4 --dropout-from 0.1 --eval-size 64 --eval-every 3";
    run(0, 0, SMALL " --device cpu --data %s --run %s %s", data(), at("cpu-stages"), more);
    gpus(1);
    const outcome *o = train(0, at("cuda-stages"), more);
    if (!strstr(o->out, "steps recorded and replayed") || !strstr(o->out, "stage 3 of 3 begins with step 9: 48 px")) FAIL_RUN(o, "not recorded, or no stages");
    losses_agree(at("cuda-stages"), at("cpu-stages"), 12, 1e-3);
    const char *parts = at("cuda-stages-parts");
    make_folders(parts);
    shell("cp -r %s/algorithms %s", at("cuda-stages"), parts);
    for (int stop = 6; stop <= 8; stop += 2) run(75, 0, SMALL " --device cuda --precision fp32 --data %s --run %s %s --stop-after %d", data(), parts, more, stop);
    train(0, parts, more);
    same_bits(checkpoint_of(parts, 12), checkpoint_of(at("cuda-stages"), 12));
    gpus(2);
    train(2, at("cuda-stages-2"), more);
    gpus(1);
    losses_agree(at("cuda-stages-2"), at("cuda-stages"), 12, 1e-4);
}

static void two_gpus_train_as_one(void **state)
{
    (void)state;
    train(0, at("one"), "--steps 10");
    gpus(2);
    const outcome *o = train(2, at("two"), "--steps 10");
    if (!strstr(o->out, "sums by nccl, steps recorded")) FAIL_RUN(o, "not by NCCL, or not recorded");
    losses_agree(at("two"), at("one"), 10, 1e-4);
    the_ninth_step_times_its_sums(at("two"));
    char worst[160];
    const double d = largest_deviation(checkpoint_of(at("two"), 10), checkpoint_of(at("one"), 10), "/model", worst);
    print_message("    weights and statistics: %.1e (%s)\n", d, worst);
    if (!(d <= 1e-4)) fail_msg("%s: %.1e apart", worst, d);
    train(2, at("uneven"), "--steps 4 --global-batch 9 --uneven");
    gpus(1);
    train(0, at("uneven-1"), "--steps 4 --global-batch 9");
    losses_agree(at("uneven"), at("uneven-1"), 4, 1e-4);
}

static void ranks_that_share_a_gpu_sum_through_the_host(void **state)
{
    (void)state;
    gpus(1);
    outcome *o = run_how((how){ .ranks = 2, .seconds = 120 }, SMALL " --device cuda --precision fp32 --comm nccl --steps 2 --data %s --run %s", data(), at("shared-nccl"));
    expect_code(o, 2);
    says_once(o, "--comm mpi");
    train(2, at("shared"), "--steps 10 --comm mpi");
    losses_agree(at("shared"), at("one"), 10, 1e-4);
    o = train(2, at("shared-auto"), "--steps 2");
    if (!strstr(o->out, "sums by mpi")) FAIL_RUN(o, "auto does not say that MPI sums");
}

/* NCCL's sums and those through the host, each beside the control communicator's, in memory of the device. */
static void sums_over_gpus_are_measured(void **state)
{
    (void)state;
    static const char *const ways[] = { "nccl", "mpi" };
    gpus(2);
    for (int k = 0; k < 2; k++) {
        outcome *o = run(0, 2, "bench comm --width 0.25 --depth 0.1 --device cuda --comm %s --sizes 4k,64k --steps 2 --json", ways[k]);
        const char *of_tensor = textf("\"role\":\"tensor\",\"comm\":\"%s\",\"op\":\"sum_f", ways[k]);
        const int rows = count(o->out, textf("%s32\",\"bytes\"", of_tensor)), norms = count(o->out, textf("%s64\",\"bytes\"", of_tensor));
        if (rows != 2 || norms < 3 || count(o->out, "\"wrong\":0") != count(o->out, "\"wrong\":")) FAIL_RUN(o, "not all is measured, or not all is right");
        /* a recorded step queues its sums: NCCL's have that time too */
        if (count(o->out, "\"queued_us\":") - count(o->out, "\"queued_us\":null") - (k == 0) * (rows + norms) != 0 || (k == 0) != (strstr(o->out, "tensor_queued_us") != NULL))
            FAIL_RUN(o, "sums that are queued, and those that are not");
    }
    gpus(1);
}

/* ---- checkpoints ------------------------------------------------------------------------------------------------------------ */

static void a_checkpoint_of_one_device_goes_on_on_the_other(void **state)
{
    (void)state;
    run(75, 0, SMALL " --device cpu --steps 50 --stop-after 6 --data %s --run %s", data(), at("there"));
    run(75, 0, SMALL " --device cuda --precision fp32 --steps 50 --stop-after 12 --data %s --run %s", data(), at("there"));
    run(75, 0, SMALL " --device cpu --steps 50 --stop-after 18 --data %s --run %s", data(), at("there"));
    size_t n, m;
    const metric *x = metrics(at("there"), "train", &n), *y = metrics(on_cpu(), "train", &m);
    assert_int_equal(n, 18);
    for (size_t i = 0; i < n; i++)
        if (!(fabs(x[i].loss - y[i].loss) <= 1e-3 * y[i].loss)) fail_msg("step %zu: loss %s against %s", i + 1, x[i].text, y[i].text);
}

/* Both with the same algorithms for their matrix products: those are measured once a run, and kept with it. */
static void a_run_that_goes_on_has_the_bits_of_one_that_did_not_stop(void **state)
{
    (void)state;
    static const char *const bits[] = { "fp32", "bf16" };
    for (int k = 0; k < 2; k++) {
        const char *whole = at("whole-%s", bits[k]), *parts = at("parts-%s", bits[k]);
        run(0, 0, SMALL " --device cuda --precision %s --steps 7 --data %s --run %s", bits[k], data(), whole);
        make_folders(parts);
        shell("cp -r %s/algorithms %s", whole, parts);
        run(75, 0, SMALL " --device cuda --precision %s --steps 7 --stop-after 4 --data %s --run %s", bits[k], data(), parts);
        run(0, 0, SMALL " --device cuda --precision %s --steps 7 --data %s --run %s", bits[k], data(), parts);
        same_bits(checkpoint_of(whole, 7), checkpoint_of(parts, 7));
    }
}

/* In the recorded step, with the next images under way already: nothing of it stays, and going back finds the slots and the bf16 copies
 * of the weights in order.  One GPU, and two that sum by NCCL, where the NaN is one rank's alone. */
static void steps_that_are_not_finite_are_skipped_and_gone_back_from(void **state)
{
    (void)state;
    static const char *const bits[] = { "fp32", "bf16" };
    for (int k = 0; k < 2; k++) {
        const int ranks = k ? 2 : 0;
        gpus(k + 1);
        const char *same = textf(SMALL " --device cuda --precision %s --steps 9 --warmup-epochs 0 --data %s", bits[k], data());
        const char *skip = at("skip-%s", bits[k]), *back = at("back-%s", bits[k]), *by_hand = at("by-hand-%s", bits[k]);
        outcome *o = run(0, ranks, "%s --checkpoint-every 1 --keep 9 --run %s --inject nan@%d:4,nan@0:6", same, skip, k);
        if (count(o->out, " is skipped: the ") != 2) FAIL_RUN(o, "not two steps were skipped");
        same_bits(checkpoint_of(skip, 3), checkpoint_of(skip, 4));
        same_bits(checkpoint_of(skip, 5), checkpoint_of(skip, 6));
        run(75, ranks, "%s --run %s --stop-after 3", same, back);
        shell("cp -r %s %s", back, by_hand);
        o = run(0, ranks, "%s --run %s --max-skipped 1 --on-divergence back --inject nan@%d:5,nan@0:6", same, back, k);
        if (!strstr(o->out, "diverged at step 6: back to the checkpoint of step 3, with 0.5 of the rate")) FAIL_RUN(o, "it did not go back");
        run(0, ranks, "%s --lr 0.00015 --run %s", same, by_hand);
        char worst[160];                       /* a second start may choose other algorithms for its products: not always the same bits */
        const double d = largest_deviation(checkpoint_of(back, 9), checkpoint_of(by_hand, 9), "/model", worst);
        print_message("    %s, %d GPU%s: gone back against gone on with half the rate, %.1e apart (%s)\n", bits[k], k + 1, k ? "s" : "", d, worst);
        assert_true(d <= (k ? 1e-2 : 1e-4));
    }
    gpus(1);
}

/* ---- bf16, evaluation, prediction --------------------------------------------------------------------------------------------- */

static void bf16_learns_evaluates_and_predicts(void **state)
{
    (void)state;
    outcome *o = run(0, 0, SMALL " --device cuda --lr 0.02 --ema 0 --bn-momentum 0.3 --steps 30 --data %s --run %s", data(), at("bf16"));
    if (!strstr(o->out, "bf16")) FAIL_RUN(o, "auto does not mean bf16 on cuda");
    size_t n;
    const metric *x = metrics(at("bf16"), "train", &n);
    assert_int_equal(n, 30);
    if (!(x[29].loss < 0.8 * x[0].loss)) fail_msg("the loss went from %s to %s", x[0].text, x[29].text);
    o = run(0, 0, "eval --device cuda --checkpoint %s --data %s/train --json", at("bf16"), data());
    const double there = number_in(o->out, "loss");
    o = run(0, 0, "eval --device cpu --checkpoint %s --data %s/train --json", at("bf16"), data());
    const double here = number_in(o->out, "loss");
    print_message("    loss of the same weights: cuda bf16 %.5f, cpu fp32 %.5f\n", there, here);
    /* Each activation is off by up to 2^-9 and the net is some 30 roundings deep, trained for 30 steps at a high rate: 1 to 4 % were seen.
     * Other weights, statistics or normalisation than the checkpoint's leave the loss at an untrained net's 2.3.  How exact bf16 is,
     * test_cuda_golden and test_cuda_net ask. */
    assert_true(fabs(there - here) <= 0.1 * here);
    size_t files;
    char **file = files_below(at("data/val"), &files);
    run(0, 0, "predict --device cuda --checkpoint %s %s", at("bf16"), file[0]);
}

/* ---- no GPU, wrong GPU ------------------------------------------------------------------------------------------------------ */

static void without_a_gpu_cuda_fails_with_the_reason_and_auto_trains_on_the_processor(void **state)
{
    (void)state;
    gpus(0);
    outcome *o = run(1, 0, SMALL " --device cuda --steps 2 --data %s --run %s", data(), at("none"));
    says_once(o, "no NVIDIA driver on this machine");
    o = run(1, 2, SMALL " --device cuda --steps 2 --data %s --run %s", data(), at("none"));
    says_once(o, "no NVIDIA driver on this machine");
    o = run(0, 0, SMALL " --steps 2 --data %s --run %s", data(), at("none"));
    if (!strstr(o->out, "--device auto: no NVIDIA driver on this machine")) FAIL_RUN(o, "auto does not say why it took the processor");
    o = run(1, 0, SMALL " --device cpu --precision bf16 --steps 2 --data %s --run %s", data(), at("none-bf16"));
    says_once(o, "--device cuda");
    gpus(1);
    o = run(0, 0, SMALL " --steps 2 --data %s --run %s", data(), at("auto"));
    if (!strstr(o->out, "--device auto: every rank has a GPU")) FAIL_RUN(o, "auto does not say that it took the GPU");
    setenv("EFFNET_CUDA_PLUGIN", at("nowhere.so"), 1);
    o = run(1, 0, SMALL " --device cuda --steps 2 --data %s --run %s", data(), at("none"));
    says_once(o, "nowhere.so, which is not there");
    write_file(at("noise.so"), "no library", 10);
    setenv("EFFNET_CUDA_PLUGIN", at("noise.so"), 1);
    run(1, 0, SMALL " --device cuda --steps 2 --data %s --run %s", data(), at("none"));
    run(0, 0, SMALL " --steps 2 --data %s --run %s", data(), at("none-2"));
}

static void too_little_memory_says_so(void **state)
{
    (void)state;
    setenv("CUDAEMU_MEM_MB", "64", 1);
    outcome *o = run(1, 0, SMALL " --device cuda --micro-batch 8 --image-size 224 --width 1 --steps 2 --data %s --run %s", data(), at("small"));
    says_once(o, "--micro-batch");
    unsetenv("CUDAEMU_MEM_MB");
}

int main(void)
{
#define TEST(t) cmocka_unit_test_setup(t, with_a_gpu)
    const struct CMUnitTest tests[] = {
        TEST(without_a_gpu_cuda_fails_with_the_reason_and_auto_trains_on_the_processor),
        TEST(fifty_steps_are_those_of_the_processor),
        TEST(accumulated_and_masked_steps_are_those_of_the_processor),
        TEST(augmented_and_mixed_steps_are_those_of_the_processor),
        TEST(other_bases_step_as_on_the_processor), TEST(every_optimizer_steps_as_on_the_processor),
        TEST(stages_are_those_of_the_processor),
        TEST(two_gpus_train_as_one),
        TEST(ranks_that_share_a_gpu_sum_through_the_host),
        TEST(sums_over_gpus_are_measured),
        TEST(a_checkpoint_of_one_device_goes_on_on_the_other),
        TEST(a_run_that_goes_on_has_the_bits_of_one_that_did_not_stop),
        TEST(steps_that_are_not_finite_are_skipped_and_gone_back_from),
        TEST(bf16_learns_evaluates_and_predicts),
        TEST(too_little_memory_says_so),
    };
    return program_main("cuda", tests, sizeof tests / sizeof *tests);
}
