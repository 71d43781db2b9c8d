/* test_program_errors.c - bad input gets one clear message and its exit code, on every rank count, without a hang and
 * without loss: 1 failed, 2 wrong usage, 3 refused data or checkpoint, 4 diverged.
 *
 * "One message": the error stream names the value once and the remedy once, whatever the number of ranks. */
#define _GNU_SOURCE
#include "program.h"

#include <errno.h>
#include <math.h>
#include <sys/mount.h>
#include <unistd.h>

#include <hdf5.h>

#define SMALL "--width 0.25 --depth 0.5 --image-size 32 --lr 0.0003 --threads 1"
#define TRAIN "train " SMALL " --global-batch 12 --eval-every 0"

/* 10 classes, 200 and 20 pictures */
static const char *data(void) { return drawn("--train-per-class 20 --val-per-class 2 --synth-size 48"); }

/* The same with the files of `split` that `pattern` names replaced by text. */
static const char *data_with_bad(const char *name, const char *pattern)
{
    const char *dir = at("%s", name);
    shell("cp -r %s %s && for f in %s/%s; do echo 'this is no picture' > $f; done", data(), dir, dir, pattern);
    return dir;
}

/* A run of 6 steps with checkpoints of 2, 4 and 6; each test takes a copy. */
static const char *trained(const char *name)
{
    static const char *made;
    if (!made) {
        run(0, 0, TRAIN " --data %s --run %s --steps 6 --checkpoint-every 2", data(), at("trained"));
        shell("rm -f %s/checkpoints/best.h5", at("trained"));
        made = at("trained");
    }
    shell("cp -r %s %s", made, at("%s", name));
    return at("%s", name);
}

static void intact(const char *dir)
{
    for (int64_t step = 2; step <= 6; step += 2) is_whole(checkpoint_of(dir, step), step);
    size_t n;
    char **files = files_below(dir, &n);
    for (size_t i = 0; i < n; i++)
        if (strstr(files[i], ".tmp")) fail_msg("%s is left behind", files[i]);
}

/* Refused with this code, alone and on two ranks; needle and remedy once each, and nothing else under our name. */
static void refused(int code, const char *needle, const char *remedy, const char *fmt, ...) __attribute__((format(printf, 4, 5)));
static void refused(int code, const char *needle, const char *remedy, const char *fmt, ...)
{
    char command[8192];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(command, sizeof command, fmt, ap);
    va_end(ap);
    for (int ranks = 0; ranks <= 2; ranks += 2) {
        outcome *o = run_how((how){ .ranks = ranks, .seconds = 30 }, "%s", command);
        expect_code(o, code);
        says_once(o, needle);
        says_once(o, remedy);
        const int lines = count(o->err, "effnet: ");
        if (lines != 1) FAIL_RUN(o, "%d messages", lines);
        if (strstr(o->out, "step 1/")) FAIL_RUN(o, "it trained first");
    }
}

/* ---- data ---------------------------------------------------------------------------------------------------------------- */

static void a_missing_dataset(void **state)
{
    (void)state;
    refused(3, at("nothing does not exist"), "name a folder of images", TRAIN " --data %s --run %s", at("nothing"), at("r"));
    refused(2, "which images?", "--data DIR", TRAIN " --run %s", at("r"));
}

static void an_empty_dataset(void **state)
{
    (void)state;
    make_folders(at("empty"));
    make_folders(at("empty-train/train"));
    refused(3, at("empty is empty"), "one folder of images for each class", TRAIN " --data %s --run %s", at("empty"), at("r"));
    refused(3, at("empty-train/train is empty"), "one folder of images for each class", TRAIN " --data %s --run %s", at("empty-train"), at("r"));
}

static void a_class_folder_without_files(void **state)
{
    (void)state;
    shell("cp -r %s %s && mkdir %s/train/zebras", data(), at("hollow"), at("hollow"));
    refused(3, at("hollow/train/zebras holds no files"), "add its images or remove the folder", TRAIN " --data %s --run %s", at("hollow"), at("r"));
}

static void one_class_only(void **state)
{
    (void)state;
    make_folders(at("one/train"));
    shell("cp -r %s/train/noise %s", data(), at("one/train"));
    refused(3, "one class only, 'noise'", "give each class a folder", TRAIN " --data %s --run %s", at("one"), at("r"));
}

static void fewer_images_than_ranks(void **state)
{
    (void)state;
    make_folders(at("two/train/a"));
    make_folders(at("two/train/b"));
    shell("cp %s/train/noise/*00.jpg %s && cp %s/train/dots/*00.jpg %s", data(), at("two/train/a"), data(), at("two/train/b"));
    outcome *o = run(3, 4, "train " SMALL " --steps 1 --data %s --run %s", at("two"), at("r"));
    says_once(o, "has 2 images for 4 ranks");
    says_once(o, "start fewer ranks");
    run(0, 2, "train " SMALL " --steps 1 --data %s --run %s", at("two"), at("r2"));              /* one each is enough */
}

static void ranks_that_see_other_files(void **state)
{
    (void)state;
    char second[4096];
    shell("cp -r %s %s && rm %s/train/noise/*07.jpg", data(), at("partial"), at("partial"));
    snprintf(second, sizeof second, TRAIN " --data %s --run %s", at("partial"), at("r"));
    outcome *o = run_how((how){ .ranks = 2, .second = second }, TRAIN " --data %s --run %s", data(), at("r"));
    expect_code(o, 3);
    says_once(o, "sees other files in");
    says_once(o, "is it the same, complete copy?");
}

/* One that sees no validation images would not come to the evaluation, and the others would wait for it. */
static void ranks_that_see_other_validation_images(void **state)
{
    (void)state;
    static const char *const what[] = { "sees no validation images", "sees other validation files" };
    shell("cp -r %s %s && rm -r %s/val", data(), at("unvalidated"), at("unvalidated"));
    shell("cp -r %s %s && rm `find %s/val -name '*.jpg' | head -n 1`", data(), at("half"), at("half"));
    for (size_t i = 0; i < 2; i++) {
        const char *dir = at("r-val-%zu", i), *other = i ? at("half") : at("unvalidated");
        outcome *o = run_how((how){ .ranks = 2, .second = textf(TRAIN " --data %s --run %s", other, dir) }, TRAIN " --data %s --run %s", data(), dir);
        expect_code(o, 3);
        says_once(o, what[i]);
    }
}

/* ---- bad files among good ones ---------------------------------------------------------------------------------------------- */

static void a_few_bad_files_are_named_and_replaced_alike_on_any_ranks(void **state)
{
    (void)state;
    static const int ranks[] = { 0, 2, 3 };
    const char *dir = data_with_bad("one-bad", "train/rings/*07.jpg");                            /* 1 of 200 */
    const metric *first = NULL;
    for (size_t k = 0; k < 3; k++) {
        size_t n;
        outcome *o = run(0, ranks[k], TRAIN " --data %s --run %s --steps 40", dir, at("one-bad-%d", ranks[k]));
        const int named = count(o->err, "bad file");
        if (named < 1 || named > (ranks[k] ? ranks[k] : 1) || !strstr(o->err, "train/rings/rings_00007.jpg")) FAIL_RUN(o, "the bad file is named %d times", named);
        const metric *m = metrics(at("one-bad-%d", ranks[k]), "train", &n);
        assert_int_equal(n, 40);
        for (size_t i = 0; first && i < n; i++)
            if (!(fabs(m[i].loss - first[i].loss) <= 1e-4 * first[i].loss)) fail_msg("step %zu: loss %s on %d ranks, %s on one", i + 1, m[i].text, ranks[k], first[i].text);
        if (!first) first = m;
    }
}

static void many_bad_files_end_the_run_with_the_list(void **state)
{
    (void)state;
    static const int ranks[] = { 0, 2, 4 };
    const char *dir = data_with_bad("many-bad", "train/*/*07.jpg");                               /* 10 of 200 */
    for (size_t k = 0; k < 3; k++) {
        outcome *o = run(3, ranks[k], TRAIN " --data %s --run %s", dir, at("many-bad-%d", ranks[k]));
        says_once(o, " of 200 files cannot be used, and --max-bad 0.01 allows 2");
        const char *list = strstr(o->err, "cannot be used");
        if (count(list, "_00007.jpg") < 3) FAIL_RUN(o, "no list");
    }
    outcome *o = run(0, 2, TRAIN " --data %s --run %s --steps 40 --max-bad 0.05", dir, at("many-bad-allowed"));
    if (strstr(o->err, "cannot be used")) FAIL_RUN(o, "5 %% are allowed");
}

static void bad_files_among_the_validation_images(void **state)
{
    (void)state;
    const char *dir = data_with_bad("val-bad", "val/[c-n]*/*01.jpg");
    for (int ranks = 0; ranks <= 2; ranks += 2) {
        outcome *o = run_how((how){ .ranks = ranks }, "eval --checkpoint %s --data %s --threads 1", trained(ranks ? "val-2" : "val-0"), dir);
        expect_code(o, 3);
        says_once(o, "--max-bad 0.01 allows 1");
    }
    const char *two = data_with_bad("val-two-bad", "val/checker/*00.jpg");                        /* the first rank's, and the last one's */
    shell("cp %s/val/checker/*00.jpg `ls %s/val/triangles/*01.jpg`", two, two);
    outcome *o = run_how((how){ .ranks = 4 }, "eval --checkpoint %s --data %s --threads 1", trained("val-4"), two);
    expect_code(o, 3);
    says_once(o, "2 of 20 files of");
}

static void an_evaluation_that_fails_loses_no_step(void **state)
{
    (void)state;
    const char *dir = data_with_bad("val-late", "val/[c-n]*/*01.jpg");
    for (int ranks = 0; ranks <= 2; ranks += 2) {
        size_t n;
        const char *r = at("val-late-%d", ranks);
        outcome *o = run(3, ranks, "train " SMALL " --global-batch 10 --steps 12 --eval-every 7 --checkpoint-every 0 --data %s --run %s", dir, r);
        says_once(o, "--max-bad 0.01 allows 1");
        is_whole(checkpoint_of(r, 7), 7);
        run(0, ranks, "train " SMALL " --global-batch 10 --steps 12 --eval-every 7 --checkpoint-every 0 --max-bad 0.5 --data %s --run %s", dir, r);
        const metric *m = metrics(r, "eval", &n);
        assert_int_equal(n, 2);
        assert_int_equal(m[0].step, 7);
    }
}

/* ---- checkpoints -------------------------------------------------------------------------------------------------------------- */

static void other_classes_than_the_checkpoint(void **state)
{
    (void)state;
    shell("cp -r %s %s && mv %s/train/rings %s/train/rungs && mv %s/val/rings %s/val/rungs", data(), at("renamed"), at("renamed"), at("renamed"), at("renamed"), at("renamed"));
    shell("cp -r %s %s && rm -r %s/*/rings", data(), at("fewer"), at("fewer"));
    const char *dir = trained("classes");
    refused(3, "'rings'", "take another --run", TRAIN " --data %s --run %s --steps 8", at("renamed"), dir);
    refused(3, "was trained on 10 classes", "take another --run", TRAIN " --data %s --run %s --steps 8", at("fewer"), dir);
    refused(3, "the class \"rungs\" is not among the 10", "rename the folder or take it out", "eval --checkpoint %s --data %s --threads 1", dir, at("renamed"));
    intact(dir);
    run(0, 0, "eval --checkpoint %s --data %s --threads 1", dir, at("fewer"));                    /* fewer classes are no error */
}

static void another_run_than_the_checkpoint(void **state)
{
    (void)state;
    const char *dir = trained("another");
    shell("cp -r %s %s && rm %s/train/noise/*07.jpg", data(), at("lost-one"), at("lost-one"));
    refused(3, "counts 200 training images", "take another --run", TRAIN " --data %s --run %s --steps 8", at("lost-one"), dir);
    refused(2, "--global-batch 12, now it is 14", "take another --run", "train " SMALL " --global-batch 14 --data %s --run %s --steps 8", data(), dir);
    refused(2, "(width 0.25, depth 0.5)", "take another --run", "train --width 0.5 --depth 0.5 --image-size 32 --threads 1 --global-batch 12 --data %s --run %s", data(), dir);
    refused(2, "was trained at 32 px", "another --run", "train --width 0.25 --depth 0.5 --image-size 64 --threads 1 --global-batch 12 --data %s --run %s", data(), dir);
    refused(2, "was trained with --seed 0", "take another --run", TRAIN " --seed 7 --data %s --run %s", data(), dir);
    intact(dir);
}

static void truncate_to(const char *path, double share)
{
    size_t n;
    read_file(path, &n);
    if (truncate(path, (off_t)((double)n * share)) != 0) fail_msg("%s: %s", path, strerror(errno));
}

static void a_truncated_checkpoint_is_passed_over_and_named(void **state)
{
    (void)state;
    for (int ranks = 0; ranks <= 2; ranks += 2) {
        const char *dir = trained(ranks ? "cut-2" : "cut-0");
        truncate_to(checkpoint_of(dir, 6), 0.5);
        outcome *o = run(0, ranks, TRAIN " --data %s --run %s --steps 7", data(), dir);
        says_once(o, "passing over ");
        if (!strstr(o->err, "step-00000006.h5")) FAIL_RUN(o, "the file is not named");
        if (!strstr(o->out, "going on from step 4")) FAIL_RUN(o, "it does not go on from step 4");
        size_t n;
        const metric *m = metrics(dir, "train", &n);
        assert_int_equal(n, 7);
        for (size_t i = 0; i < n; i++) assert_int_equal(m[i].step, (int64_t)i + 1);
        is_whole(checkpoint_of(dir, 7), 7);
    }
}

static void no_checkpoint_is_whole(void **state)
{
    (void)state;
    const char *dir = trained("cut-all");
    for (int64_t step = 2; step <= 6; step += 2) truncate_to(checkpoint_of(dir, step), 0.9);
    for (int ranks = 0; ranks <= 2; ranks += 2) {
        outcome *o = run(3, ranks, TRAIN " --data %s --run %s --steps 8", data(), dir);
        says_once(o, "none of the 3 checkpoints");
        assert_int_equal(count(o->err, "passing over "), 3);
    }
    refused(3, "none of the 3 checkpoints", "best.h5 may still be whole", "eval --checkpoint %s --data %s --threads 1", dir, data());
}

static void foreign_files_as_checkpoints(void **state)
{
    (void)state;
    const char *foreign = at("foreign.h5"), *text = at("text.h5"), *cut = at("cut.h5"), *empty = at("empty.h5");
    hid_t f = H5Fcreate(foreign, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    H5Gclose(H5Gcreate2(f, "weights", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    H5Fclose(f);
    write_file(text, "no HDF5\n", 8);
    write_file(empty, "", 0);
    copy_file(checkpoint_of(trained("foreign"), 6), cut);
    truncate_to(cut, 0.7);
    const char *const files[] = { foreign, text, cut, empty };
    for (size_t i = 0; i < 4; i++) {
        for (int ranks = 0; ranks <= 2; ranks += 2) {
            outcome *o = run(3, ranks, "eval --checkpoint %s --data %s --threads 1", files[i], data());
            assert_int_equal(count(o->err, "effnet: "), 1);
            if (!strstr(o->err, files[i])) FAIL_RUN(o, "the file is not named");
        }
        outcome *o = run_how((how){ .operand = at("data/val/noise/noise_00000.jpg") }, "predict --checkpoint %s --threads 1", files[i]);
        expect_code(o, 3);
        if (!strstr(o->err, files[i])) FAIL_RUN(o, "the file is not named");
    }
    refused(3, at("nowhere.h5"), "no such checkpoint or run folder", "eval --checkpoint %s --data %s --threads 1", at("nowhere.h5"), data());
    make_folders(at("no-run"));
    refused(3, at("no-run holds no checkpoint"), "step-*.h5", "eval --checkpoint %s --data %s --threads 1", at("no-run"), data());

    /* the same in a run's folder: newer by its name, passed over, left where it is */
    const char *dir = at("foreign");
    copy_file(foreign, checkpoint_of(dir, 9));
    outcome *o = run(0, 0, TRAIN " --data %s --run %s --steps 7", data(), dir);
    says_once(o, "passing over ");
    if (!strstr(o->out, "going on from step 6")) FAIL_RUN(o, "it does not go on from step 6");
    assert_true(exists(checkpoint_of(dir, 9)));
}

/* ---- the disk -------------------------------------------------------------------------------------------------------------------- */

static void a_run_directory_that_cannot_be_written(void **state)
{
    (void)state;
    write_file(at("file"), "", 0);               /* permissions do not bind root, these do */
    refused(1, at("file/run cannot be made: Not a directory"), "choose another --run", TRAIN " --data %s --run %s", data(), at("file/run"));
    refused(1, "/proc/effnet cannot be made", "choose another --run", TRAIN " --data %s --run /proc/effnet/run", data());
}

/* Steps 7 to 12 are trained whatever the disk says; the last checkpoint is missing, so the run has failed; what was there is there. */
static void survives_a_full_disk(const char *dir, const outcome *o, const char *reason)
{
    expect_code(o, 1);
    if (!strstr(o->err, reason)) FAIL_RUN(o, "no '%s'", reason);
    if (!strstr(o->err, "training goes on")) FAIL_RUN(o, "no word about going on");
    says_once(o, "input/output error");
    size_t n;
    const metric *m = metrics(dir, "train", &n);
    if (n != 12) FAIL_RUN(o, "%zu steps instead of 12", n);
    assert_int_equal(m[11].step, 12);
    intact(dir);
    assert_int_equal(newest_checkpoint(dir), 6);
}

static void a_file_limit_while_saving(void **state)
{
    (void)state;
    const char *dir = trained("limited");
    outcome *o = run_how((how){ .file_limit = 1 << 20 }, TRAIN " --data %s --run %s --steps 12 --checkpoint-every 2", data(), dir);
    survives_a_full_disk(dir, o, "File too large");
    run(0, 0, TRAIN " --data %s --run %s --steps 12 --checkpoint-every 2", data(), dir);         /* with room again, on from 6 */
    is_whole(checkpoint_of(dir, 12), 12);
}

/* Weights that stand still: the second evaluation is no better.  Since the first was not kept, the third is the best again. */
static void a_best_that_was_not_written_need_not_be_surpassed(void **state)
{
    (void)state;
    const char *still = "train " SMALL " --global-batch 10 --lr 0 --weight-decay 0 --bn-momentum 1e-9 --eval-every 2 --checkpoint-every 2";
    outcome *o = run_how((how){ .file_limit = 1 << 20 }, "%s --steps 6 --data %s --run %s", still, data(), at("best-1"));
    expect_code(o, 1);
    if (count(o->out, "(best so far)") != 2) FAIL_RUN(o, "%d times the best so far instead of 2", count(o->out, "(best so far)"));
    o = run(0, 0, "%s --steps 6 --data %s --run %s", still, data(), at("best-2"));
    if (count(o->out, "(best so far)") != 1) FAIL_RUN(o, "%d times the best so far instead of 1", count(o->out, "(best so far)"));
}

static void a_full_disk_while_saving(void **state)
{
    (void)state;
    make_folders(at("disk"));
    if (mount("tmpfs", at("disk"), "tmpfs", 0, "size=13m") != 0) {
        print_message("    no right to mount a small file system: %s\n", strerror(errno));
        skip();
    }
    const char *dir = trained("disk/run");                       /* 3 of 3.4 MiB: no room for a fourth */
    outcome *o = run_how((how){ .ranks = 2 }, TRAIN " --data %s --run %s --steps 12 --checkpoint-every 2", data(), dir);
    outcome *still = run_how((how){ 0 }, TRAIN " --data %s --run %s --steps 12 --checkpoint-every 2", data(), dir);
    shell("cp -r %s %s", dir, at("disk-copy"));
    umount2(at("disk"), MNT_DETACH);
    survives_a_full_disk(at("disk-copy"), o, "No space left on device");
    expect_code(still, 1);
}

/* ---- the command line -------------------------------------------------------------------------------------------------------------- */

static void options(void **state)
{
    (void)state;
    refused(2, "--momentum 1.5 is out of range", "use at least 0 and below 1", TRAIN " --data %s --run %s --momentum 1.5", data(), at("r"));
    refused(2, "--global-bach", "did you mean --global-batch?", "train --global-bach 8 --data %s --run %s", data(), at("r"));
    refused(2, "--lr", "fast", "train --lr fast --data %s --run %s", data(), at("r"));
    refused(2, "--run DIR", "where shall checkpoints", TRAIN " --data %s", data());
    refused(2, "efficientnet_b99", "did you mean", "train --model efficientnet_b99 --data %s --run %s", data(), at("r"));
    refused(2, "--decode scaled has no meaning", "leave one of them out", TRAIN " --data %s --run %s --cache memory --decode scaled", data(), at("r"));
    refused(2, "--cache-side is of cached images", "give --cache too", TRAIN " --data %s --run %s --cache-side 64", data(), at("r"));
    refused(2, "which checkpoint?", "--checkpoint FILE.h5", "eval --data %s", data());
}

/* 300 pictures of 36 x 36 are 1.2 MB, and a file may have 400 kB of them. */
static void a_full_cache_is_said_once(void **state)
{
    (void)state;
    char *dir = strdup(at("kept"));
    make_folders(dir);
    outcome *o = run_how((how){ .file_limit = 400000 }, "train " SMALL " --global-batch 30 --steps 25 --data synthetic:300 --cache %s", dir);
    expect_code(o, 0);
    assert_int_equal(count(o->out, "is full: "), 1);
    if (!strstr(o->out, " of 300 pictures are kept")) FAIL_RUN(o, "how many");
    free(dir);
}

/* 75 would make a batch system start it again, from nothing. */
static void a_stop_without_a_folder_is_no_stop_to_go_on_from(void **state)
{
    (void)state;
    for (int ranks = 0; ranks <= 2; ranks += 2) {
        outcome *o = run(1, ranks, "train " SMALL " --global-batch 10 --steps 4 --stop-after 2 --data synthetic:20");
        says_once(o, "stopped on request after step 2 of 4, and nothing was saved");
        assert_int_equal(count(o->err, "effnet: "), 1);
    }
    refused(2, "--run DIR", "where shall checkpoints", TRAIN " --data synthetic-pictures");
}

static void batches(void **state)
{
    (void)state;
    outcome *o = run(2, 2, "train " SMALL " --global-batch 7 --data %s --run %s", data(), at("r"));
    says_once(o, "--global-batch 7 is not a multiple of 2 ranks");
    says_once(o, "give 6 or 8, or --uneven");
    assert_int_equal(count(o->err, "effnet: "), 1);
    o = run(2, 4, "train " SMALL " --global-batch 3 --data %s --run %s", data(), at("r"));
    says_once(o, "--global-batch 3 is less than one image for each of 4 ranks");
    assert_int_equal(count(o->err, "effnet: "), 1);
    refused(2, "--epochs 0.01 of 200 images is less than one step of 12", "give more --epochs", TRAIN " --epochs 0.01 --data %s --run %s", data(), at("r"));
    /* not fewer images a pass, which would be another batch norm: 1 TiB */
    refused(2, "--prefetch 1048576 MiB", "choose a smaller one", TRAIN " --image-size 2048 --prefetch 1048576 --data %s --run %s", data(), at("r"));
    refused(2, "--global-batch 5000 is more than the 200 images", "give fewer", "train " SMALL " --global-batch 5000 --data %s --run %s", data(), at("r"));
}

/* ---- divergence ------------------------------------------------------------------------------------------------------------------------ */

static void a_run_that_diverges(void **state)
{
    (void)state;
    for (int ranks = 0; ranks <= 2; ranks += 2) {
        const char *dir = trained(ranks ? "wild-2" : "wild-0");
        outcome *o = run(4, ranks, "train --width 0.25 --depth 0.5 --image-size 32 --threads 1 --global-batch 12 --data %s --run %s --steps 30 --lr 1e30 "
                                   "--warmup-epochs 0 --checkpoint-every 20", data(), dir);
        says_once(o, "diverged");
        says_once(o, "not finite in 4 steps in a row, up to step ");
        says_once(o, "go on from the newest checkpoint with a smaller --lr");
        says_once(o, "and go on from the one before");
        assert_int_equal(count(o->err, "effnet: "), 1);
        intact(dir);
        assert_int_equal(newest_checkpoint(dir), 6);
        run(0, ranks, TRAIN " --data %s --run %s --steps 8", data(), dir);                       /* as the message says */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_missing_dataset),
        cmocka_unit_test(an_empty_dataset),
        cmocka_unit_test(a_class_folder_without_files),
        cmocka_unit_test(one_class_only),
        cmocka_unit_test(fewer_images_than_ranks),
        cmocka_unit_test(ranks_that_see_other_files),
        cmocka_unit_test(ranks_that_see_other_validation_images),
        cmocka_unit_test(a_few_bad_files_are_named_and_replaced_alike_on_any_ranks),
        cmocka_unit_test(many_bad_files_end_the_run_with_the_list),
        cmocka_unit_test(bad_files_among_the_validation_images),
        cmocka_unit_test(an_evaluation_that_fails_loses_no_step),
        cmocka_unit_test(other_classes_than_the_checkpoint),
        cmocka_unit_test(another_run_than_the_checkpoint),
        cmocka_unit_test(a_truncated_checkpoint_is_passed_over_and_named),
        cmocka_unit_test(no_checkpoint_is_whole),
        cmocka_unit_test(foreign_files_as_checkpoints),
        cmocka_unit_test(a_run_directory_that_cannot_be_written),
        cmocka_unit_test(a_file_limit_while_saving),
        cmocka_unit_test(a_best_that_was_not_written_need_not_be_surpassed),
        cmocka_unit_test(a_full_disk_while_saving),
        cmocka_unit_test(options),
        cmocka_unit_test(a_full_cache_is_said_once),
        cmocka_unit_test(a_stop_without_a_folder_is_no_stop_to_go_on_from),
        cmocka_unit_test(batches),
        cmocka_unit_test(a_run_that_diverges),
    };
    return program_main("program_errors", tests, sizeof tests / sizeof *tests);
}
