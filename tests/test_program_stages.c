/* test_program_stages.c - progressive training from outside: four stages of three steps, 40, 48, 56 and 64 px.
 *
 * 40 images in steps of 10: an epoch is four steps, so that borders of stages and of epochs do not fall together. */
#include "program.h"

#include <math.h>

#define MODEL  "train --model v2b0 --width 0.25 --depth 0.3 --image-size 64 --global-batch 10 --lr 0.0003 --threads 1 --eval-every 5 "
#define STAGES "--stages 4 --size-from 32 --augment randaugment --mixup 0.2 --cutmix 1 --dropout-from 0.05 "
#define TRAIN  MODEL STAGES "--steps 12 "

static const char *data(void) { return drawn("--train-per-class 8 --val-per-class 4 --synth-classes 5 --synth-size 72"); }

static void same_losses(const char *a, const char *b, const char *kind, size_t lines)
{
    size_t n, m;
    const metric *x = metrics(a, kind, &n), *y = metrics(b, kind, &m);
    if (n != lines || m != lines) fail_msg("%zu and %zu lines of kind %s instead of %zu", n, m, kind, lines);
    for (size_t i = 0; i < n; i++)
        if (x[i].step != y[i].step || strcmp(x[i].text, y[i].text) != 0)
            fail_msg("step %" PRId64 ": loss %s in %s; step %" PRId64 ": %s in %s", x[i].step, x[i].text, a, y[i].step, y[i].text, b);
}

/* The run that nobody interrupts, made once. */
static const char *whole(int ranks)
{
    static const char *made[3];
    if (!made[ranks]) {
        made[ranks] = at("whole-%d", ranks);
        run(0, ranks, TRAIN "--data %s --run %s", data(), made[ranks]);
    }
    return made[ranks];
}

static void is_the_whole_run(const char *dir, int ranks)
{
    same_bits(checkpoint_of(dir, 12), checkpoint_of(whole(ranks), 12));
    same_losses(dir, whole(ranks), "train", 12);
    same_losses(dir, whole(ranks), "eval", 3);                      /* after steps 5, 10 and 12 */
}

/* ---- going on ------------------------------------------------------------------------------------------------------------ */

/* Stopped within each stage and at each border. */
static void resumed_in_each_stage_and_at_each_border(int ranks)
{
    const char *dir = at("resumed-%d", ranks);
    static const int stops[] = { 2, 3, 4, 6, 8, 9, 11 };
    for (size_t i = 0; i < sizeof stops / sizeof *stops; i++) {
        const outcome *o = run(75, ranks, TRAIN "--data %s --run %s --stop-after %d", data(), dir, stops[i]);
        if (i > 0 && !strstr(o->out, textf(", going on from step %d, in stage %d of 4\n", stops[i - 1], stops[i - 1] / 3 + 1))) FAIL_RUN(o, "it does not say where it goes on");
        if (strstr(o->out, "begins with step")) FAIL_RUN(o, "no border lies between steps %d and %d, both included", i ? stops[i - 1] + 1 : 1, stops[i]);
    }
    run(0, ranks, TRAIN "--data %s --run %s", data(), dir);
    is_the_whole_run(dir, ranks);
}

static void goes_on_on_one_rank(void **state)  { (void)state; resumed_in_each_stage_and_at_each_border(0); }
static void goes_on_on_two_ranks(void **state) { (void)state; resumed_in_each_stage_and_at_each_border(2); }

static void a_signal_at_a_border(void **state)
{
    (void)state;
    const char *dir = at("signal");
    run(75, 2, TRAIN "--checkpoint-every 0 --data %s --run %s --inject usr1@1:3,term@0:9", data(), dir);
    assert_int_equal(newest_checkpoint(dir), 3);
    run(75, 2, TRAIN "--checkpoint-every 0 --data %s --run %s --inject usr1@1:3,term@0:9", data(), dir);
    assert_int_equal(newest_checkpoint(dir), 9);
    run(0, 2, TRAIN "--data %s --run %s", data(), dir);
    is_the_whole_run(dir, 2);
}

/* Back over a border: the newest checkpoint is an earlier stage's. */
static void a_kill_behind_a_border(void **state)
{
    (void)state;
    const char *dir = at("kill");
    run(75, 0, TRAIN "--data %s --run %s --stop-after 4", data(), dir);
    outcome *o = run_how((how){ 0 }, TRAIN "--checkpoint-every 0 --data %s --run %s --inject kill@0:8", data(), dir);
    if (o->code == 0 || !strstr(o->out, "stage 3 of 4 begins with step 7: 56 px")) FAIL_RUN(o, "it was not killed behind the border");
    assert_in_range(newest_checkpoint(dir), 4, 5);                  /* the evaluation after step 5 was the best so far, and is saved if time allows */
    run(0, 0, TRAIN "--checkpoint-every 0 --data %s --run %s --inject kill@0:8", data(), dir);
    is_the_whole_run(dir, 0);
}

static void a_divergence_goes_back_over_a_border(void **state)
{
    (void)state;
    const char *dir = at("back"), *by_hand = at("by-hand");
    outcome *o = run(0, 2, TRAIN "--warmup-epochs 0 --checkpoint-every 5 --max-skipped 1 --on-divergence back --data %s --run %s --inject nan@0:7,nan@1:8", data(), dir);
    if (!strstr(o->out, "diverged at step 8: back to the checkpoint of step 5")) FAIL_RUN(o, "it does not say so");
    assert_int_equal(count(o->out, "stage 3 of 4 begins with step 7: 56 px"), 2);
    run(75, 2, TRAIN "--warmup-epochs 0 --data %s --run %s --stop-after 5", data(), by_hand);
    run(0, 2, TRAIN "--warmup-epochs 0 --lr 0.00015 --data %s --run %s", data(), by_hand);
    same_bits(checkpoint_of(dir, 12), checkpoint_of(by_hand, 12));
    same_losses(dir, by_hand, "train", 12);
}

static void decoded_pictures_are_kept_over_borders(void **state)
{
    (void)state;
    const char *straight = at("cache-whole"), *dir = at("cache");
    outcome *o = run(0, 0, TRAIN "--cache memory --data %s --run %s", data(), straight);
    if (!strstr(o->out, "shorter side at most 73)")) FAIL_RUN(o, "not for the largest stage: 64 * 8 / 7");
    run(75, 0, TRAIN "--cache memory --data %s --run %s --stop-after 4", data(), dir);
    run(0, 0, TRAIN "--cache memory --data %s --run %s", data(), dir);
    same_bits(checkpoint_of(dir, 12), checkpoint_of(straight, 12));
}

/* ---- ranks ------------------------------------------------------------------------------------------------------------------ */

/* The same images, sizes and masks: equal but for rounding.  The bound is test_program_ranks.c's, with its reason; another size, level
 * or pair on one of them shows in the second digit. */
static void two_ranks_train_as_one(void **state)
{
    (void)state;
    size_t n, m;
    const metric *x = metrics(whole(2), "train", &n), *y = metrics(whole(0), "train", &m);
    assert_true(n == 12 && m == 12);
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        const double d = fabs(x[i].loss - y[i].loss) / y[i].loss;
        if (!(d <= 1e-4)) fail_msg("step %zu: loss %s on two ranks, %s on one", i + 1, x[i].text, y[i].text);
        most = d > most ? d : most;
    }
    print_message("    losses %.1e apart\n", most);
}

/* Passes a step are those of the largest stage in all of them, and a checkpoint moves between numbers of ranks in any stage. */
static void accumulates_and_moves(void **state)
{
    (void)state;
    const char *one = at("accumulates"), *moves = at("moves");
    size_t n, m;
    run(0, 0, TRAIN "--micro-batch 5 --data %s --run %s", data(), one);
    outcome *o = run(75, 0, TRAIN "--micro-batch 5 --data %s --run %s --stop-after 4", data(), moves);
    if (!strstr(o->out, "= 5 a pass x 2 accumulated x 1 rank")) FAIL_RUN(o, "not as asked for");
    o = run(75, 2, TRAIN "--data %s --run %s --stop-after 8", data(), moves);
    if (!strstr(o->out, "= 3 a pass x 2 accumulated x 2 ranks")) FAIL_RUN(o, "another number of passes");
    run(0, 0, TRAIN "--data %s --run %s", data(), moves);
    const metric *x = metrics(moves, "train", &n), *y = metrics(one, "train", &m);
    assert_true(n == 12 && m == 12);
    for (size_t i = 0; i < n; i++)
        if (!(fabs(x[i].loss - y[i].loss) <= 1e-4 * y[i].loss)) fail_msg("step %zu: loss %s, %s on one rank", i + 1, x[i].text, y[i].text);
}

/* ---- what is said ------------------------------------------------------------------------------------------------------------ */

static void metrics_and_terminal_say_the_stage(void **state)
{
    (void)state;
    static const int sides[] = { 40, 48, 56, 64 };
    char *text = read_file(textf("%s/metrics.jsonl", whole(0)), NULL);
    int step = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        if (strstr(line, "\"kind\":\"account\"")) assert_true(number_in(line, "stage_s") > 0);
        if (!strstr(line, "\"kind\":\"train\"")) continue;
        const double i = step / 3;
        assert_int_equal((int)number_in(line, "image_size"), sides[step / 3]);
        assert_true(fabs(number_in(line, "magnitude") - (5 + 5 * i / 3)) < 1e-6);
        assert_true(fabs(number_in(line, "mixup") - 0.2 * i / 3) < 1e-6);
        assert_true(fabs(number_in(line, "cutmix") - i / 3) < 1e-6);
        assert_true(fabs(number_in(line, "dropout") - (0.05 + 0.15 * i / 3)) < 1e-6);
        step++;
    }
    assert_int_equal(step, 12);
    const char *header = read_file(textf("%s/run.txt", whole(0)), NULL);
    assert_non_null(strstr(header, "stages      1 of 4: steps 1 to 3            40 px, magnitude 5, mixup 0, cutmix 0, dropout 0.05\n"));
    assert_non_null(strstr(header, "4 of 4: steps 10 to 12          64 px, magnitude 10, mixup 0.2, cutmix 1, dropout 0.2\n"));
    outcome *o = run(0, 0, MODEL "--stages 2 --size-from 40 --steps 2 --data %s --run %s --dump %s", data(), at("plain"), at("step.h5"));
    if (!strstr(o->out, "autoaugment has no magnitude that could grow")) FAIL_RUN(o, "it does not say so");
    assert_non_null(strstr(read_file(at("plain/metrics.jsonl"), NULL), "\"image_size\":52}"));
    size_t n;
    const tensor *t = tensors(at("step.h5"), "/batch", &n);
    assert_true(n == 1 && t[0].n == 10 * 52 * 52 * 3);              /* the first stage's */
}

/* ---- what would change the past is refused ------------------------------------------------------------------------------------- */

static void other_stages_are_refused(void **state)
{
    (void)state;
    const char *dir = at("past");
    run(75, 0, TRAIN "--data %s --run %s --stop-after 3", data(), dir);
    run(75, 0, MODEL STAGES "--steps 16 --data %s --run %s --stop-after 4", data(), dir);       /* stage 1 would have been longer: no step of it was another */
    run(75, 0, MODEL STAGES "--steps 16 --data %s --run %s --stop-after 6", data(), dir);
    static const char *const others[] = { STAGES "--steps 12", "--steps 16", STAGES "--steps 16 --stages 2", STAGES "--steps 16 --stage-ramp paper",
                                          STAGES "--steps 16 --magnitude 9", STAGES "--steps 16 --dropout 0.3" };
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        outcome *o = run(2, i == 0 ? 2 : 0, MODEL "%s --data %s --run %s", others[i], data(), dir);
        says_once(o, " was trained in other stages: step ");
    }
    outcome *o = run(2, 0, MODEL STAGES "--steps 12 --data %s --run %s", data(), dir);
    says_once(o, "step 4 was 40 px, magnitude 5, mixup 0, cutmix 0, dropout 0.05 (4 stages of 16 steps), and is 48 px, magnitude 6.67, mixup 0.0667, cutmix 0.333, "
              "dropout 0.1 by the options now (4 of 12)");
    o = run(2, 2, MODEL "--stages 4 --steps 12 --data %s --run %s", data(), at("never"));
    says_once(o, "--size-from 128 is above the size that images grow to, 64 px");
    o = run(2, 0, MODEL "--size-from 32 --steps 12 --data %s --run %s", data(), at("never"));
    says_once(o, "--size-from is of training in stages");
}

/* ---- a checkpoint of an early stage in use --------------------------------------------------------------------------------------- */

/* It evaluates as the run does, at the size of the model's evaluation: the run's own figure, not one of 40 px. */
static void an_early_checkpoint_is_a_checkpoint(void **state)
{
    (void)state;
    const char *dir = at("early"), *file;
    run(75, 0, TRAIN "--eval-every 2 --data %s --run %s --stop-after 3", data(), dir);
    size_t n;
    const metric *m = metrics(dir, "eval", &n);
    assert_int_equal(n, 1);
    outcome *o = run(0, 0, "eval --checkpoint %s/checkpoints/best.h5 --data %s", dir, data());
    if (!strstr(o->out, "64 px")) FAIL_RUN(o, "not at the size of the model's evaluation");
    o = run(0, 0, "eval --checkpoint %s/checkpoints/best.h5 --data %s --json", dir, data());
    assert_true(fabs(number_in(o->out, "loss") - m[0].loss) <= 1e-5);
    file = checkpoint_of(dir, 3);
    size_t files;
    char **pictures = files_below(textf("%s/val", data()), &files);
    assert_true(files > 0);
    run(0, 0, "predict --checkpoint %s %s", file, pictures[0]);
    run(0, 0, "export %s %s", file, at("early.safetensors"));
    run(0, 0, MODEL "--steps 1 --init %s --data %s --run %s", file, data(), at("from-early"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(goes_on_on_one_rank),
        cmocka_unit_test(goes_on_on_two_ranks),
        cmocka_unit_test(a_signal_at_a_border),
        cmocka_unit_test(a_kill_behind_a_border),
        cmocka_unit_test(a_divergence_goes_back_over_a_border),
        cmocka_unit_test(decoded_pictures_are_kept_over_borders),
        cmocka_unit_test(two_ranks_train_as_one),
        cmocka_unit_test(accumulates_and_moves),
        cmocka_unit_test(metrics_and_terminal_say_the_stage),
        cmocka_unit_test(other_stages_are_refused),
        cmocka_unit_test(an_early_checkpoint_is_a_checkpoint),
    };
    return program_main("program_stages", tests, sizeof tests / sizeof *tests);
}
