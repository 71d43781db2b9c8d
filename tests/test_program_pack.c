/* test_program_pack.c - `effnet pack` from outside: a packed file trains and evaluates as its folder does, and whatever goes wrong ends with
 * one message, its exit code, and nothing under the target's name. */
#define _GNU_SOURCE
#include "program.h"

#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define SMALL "--width 0.25 --depth 0.5 --image-size 32 --lr 0.0003 --threads 1"
#define TRAIN "train " SMALL " --global-batch 12 --steps 6 --eval-every 3 --checkpoint-every 6"

/* 10 classes, 200 and 20 pictures */
static const char *data(void) { return drawn("--train-per-class 20 --val-per-class 2 --synth-size 48"); }

static const char *packed(void)
{
    static const char *made;
    if (!made) {
        run(0, 0, "pack %s %s", data(), at("data.h5"));
        made = at("data.h5");
    }
    return made;
}

static void refused(int code, const char *needle, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void refused(int code, const char *needle, const char *fmt, ...)
{
    char command[8192];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(command, sizeof command, fmt, ap);
    va_end(ap);
    outcome *o = run_how((how){ .ranks = 0 }, "%s", command);
    expect_code(o, code);
    says_once(o, needle);
    if (count(o->err, "effnet: ") != 1) FAIL_RUN(o, "not one message");
}

static void a_packed_file_trains_as_its_folder(void **state)
{
    (void)state;
    for (int ranks = 0; ranks <= 2; ranks += 2) {
        const char *from_folder = at("r-folder-%d", ranks), *from_file = at("r-file-%d", ranks);
        run(0, ranks, TRAIN " --data %s --run %s", data(), from_folder);
        outcome *o = run(0, ranks, TRAIN " --data %s --run %s", packed(), from_file);
        if (!strstr(o->out, "200 training images, 20 validation images")) FAIL_RUN(o, "the header");
        static const char *const kinds[] = { "train", "eval" };
        for (size_t k = 0; k < 2; k++) {
            size_t n, m;
            const metric *a = metrics(from_folder, kinds[k], &n), *b = metrics(from_file, kinds[k], &m);
            assert_int_equal(n, k ? 2 : 6);
            assert_int_equal(m, n);
            for (size_t i = 0; i < n; i++) assert_string_equal(a[i].text, b[i].text);       /* the loss to its last digit */
        }
    }
}

static void a_packed_file_evaluates_as_its_folder(void **state)
{
    (void)state;
    if (!exists(at("r-folder-0"))) run(0, 0, TRAIN " --data %s --run %s", data(), at("r-folder-0"));
    const char *how_to = "eval --threads 1 --json --checkpoint";
    outcome *a = run(0, 0, "%s %s --data %s", how_to, at("r-folder-0"), data());
    outcome *b = run(0, 2, "%s %s --data %s", how_to, at("r-folder-0"), packed());
    assert_true(number_in(a->out, "images") == 20 && number_in(b->out, "images") == 20);
    assert_true(number_in(a->out, "top1") == number_in(b->out, "top1"));
    run(0, 0, "pack %s %s --split val", data(), at("val.h5"));
    outcome *v = run(0, 0, "%s %s --data %s", how_to, at("r-folder-0"), at("val.h5"));
    assert_true(number_in(a->out, "loss") == number_in(v->out, "loss"));
    refused(3, "no train part", TRAIN " --data %s --run %s", at("val.h5"), at("r-none"));
    run(0, 0, "pack %s %s --split train", data(), at("train.h5"));
    outcome *t = run(0, 0, TRAIN " --data %s --run %s", at("train.h5"), at("r-no-val"));
    if (!strstr(t->out, "no validation images")) FAIL_RUN(t, "the header");
    run(0, 0, TRAIN " --data %s --val %s --run %s", at("train.h5"), at("val.h5"), at("r-both"));
}

static void a_damaged_image_is_named_and_replaced(void **state)
{
    (void)state;
    size_t n, m;
    copy_file(packed(), at("hurt.h5"));
    char *file = read_file(at("hurt.h5"), &n), *image = read_file(at("data/train/rings/rings_00007.jpg"), &m), *where = memmem(file, n, image, m);
    assert_non_null(where);
    where[m / 2] ^= 16;
    write_file(at("hurt.h5"), file, n);
    outcome *o = run(0, 0, "train " SMALL " --global-batch 20 --steps 20 --eval-every 0 --data %s --run %s", at("hurt.h5"), at("r-hurt"));
    says_once(o, "hurt.h5:train/rings/rings_00007.jpg");
    says_once(o, "is damaged: its CRC-32 is");
    says_once(o, "another image takes its place");
    o = run(3, 0, "pack --verify %s", at("hurt.h5"));
    says_once(o, "1 of 220 samples");
    says_once(o, "train/rings/rings_00007.jpg");
    o = run(3, 0, "pack --json --verify %s", at("hurt.h5"));
    assert_true(number_in(o->out, "damaged") == 1 && number_in(o->out, "samples") == 220);
    run(0, 0, "pack --verify %s", packed());
}

static void one_object_on_stdout(void **state)
{
    (void)state;
    outcome *o = run(0, 2, "pack %s %s --json --workers 2", data(), at("json.h5"));          /* one process, whatever mpirun starts */
    assert_true(count(o->out, "{") == 1 && o->out[0] == '{' && o->out[strlen(o->out) - 1] == '\n' && count(o->out, "\n") == 1);
    struct stat st;
    assert_int_equal(stat(at("json.h5"), &st), 0);
    assert_true(number_in(o->out, "samples") == 220 && number_in(o->out, "classes") == 10 && number_in(o->out, "bad") == 0
                && number_in(o->out, "bytes_out") == (double)st.st_size);
    o = run(0, 0, "pack --verify %s --json", at("json.h5"));
    assert_true(number_in(o->out, "samples") == 220 && number_in(o->out, "damaged") == 0);
    o = run(0, 0, "pack %s %s --max-side 32 --quality 80 --json", data(), at("small.h5"));
    assert_true(number_in(o->out, "shrunk") == 220 && number_in(o->out, "bytes_out") < (double)st.st_size);
    run(0, 0, TRAIN " --data %s --run %s", at("small.h5"), at("r-small"));
}

static void wrong_usage_is_said(void **state)
{
    (void)state;
    refused(2, "which file to make?", "pack %s", data());
    refused(2, "something is missing", "pack");
    refused(2, "--verify takes one file", "pack --verify %s %s", packed(), packed());
    refused(2, "one argument too many", "pack %s %s %s", data(), at("a.h5"), at("b.h5"));
    refused(2, "did you mean --max-side?", "pack --max-sides 100 %s %s", data(), at("a.h5"));
    refused(2, "give --max-side too", "pack --quality 90 %s %s", data(), at("a.h5"));
    refused(2, "--max-side has no meaning", "pack --verify --max-side 100 %s", packed());
    refused(2, "it is train or val", "pack --split test %s %s", data(), at("a.h5"));
    refused(2, "is there already", "pack %s %s", data(), packed());
    refused(3, "name a folder of images", "pack %s %s", at("nowhere"), at("a.h5"));
    refused(3, "does not exist", "pack --verify %s", at("nowhere.h5"));
    refused(3, "no packed dataset", "pack --verify %s", at("data/train/rings/rings_00007.jpg"));
    refused(1, "choose another place", "pack %s %s", data(), at("no/such/a.h5"));
    assert_false(exists(at("a.h5")) || exists(at("a.h5.partial")));
}

static void too_many_bad_files_end_it(void **state)
{
    (void)state;
    shell("cp -r %s %s && for f in %s/train/*/*07.jpg; do echo text > $f; done", data(), at("bad"), at("bad"));       /* 10 of 200 */
    outcome *o = run(3, 0, "pack %s %s", at("bad"), at("bad.h5"));
    says_once(o, "3 of 200 files of");
    says_once(o, "--max-bad 0.01 allows 2");
    assert_false(exists(at("bad.h5")));
    o = run(0, 0, "pack %s %s --max-bad 0.05", at("bad"), at("bad.h5"));
    says_once(o, "going on from there");
    if (count(o->err, "bad file ") != 10 || !strstr(o->out, "10 cannot be decoded")) FAIL_RUN(o, "the report");
}

/* A limit on the file's size, and a disk of 256 kB (where one may be mounted): said, code 1, and the program does not crash as it ends. */
static void a_full_disk(void **state)
{
    (void)state;
    outcome *o = run_how((how){ .file_limit = 200000 }, "pack %s %s", data(), at("full.h5"));
    expect_code(o, 1);
    says_once(o, "make room");
    assert_false(exists(at("full.h5")));
    run(0, 0, "pack %s %s", data(), at("full.h5"));

    make_folders(at("disk"));
    if (mount("none", at("disk"), "tmpfs", 0, "size=256k") != 0) return;
    o = run_how((how){ 0 }, "pack %s %s", data(), at("disk/a.h5"));
    const bool a_left = exists(at("disk/a.h5")) || exists(at("disk/a.h5.partial"));
    outcome *shrunk = run_how((how){ 0 }, "pack --max-side 40 --quality 100 %s %s", data(), at("disk/b.h5"));      /* nobody knows how much before */
    const bool b_there = exists(at("disk/b.h5"));
    umount2(at("disk"), MNT_DETACH);
    expect_code(o, 1);
    says_once(o, "make room, choose another place");
    if (a_left) FAIL_RUN(o, "something is left");
    expect_code(shrunk, 1);
    says_once(shrunk, "No space left on device");
    assert_false(b_there);
}

static void killed_and_started_again(void **state)
{
    (void)state;
    run(0, 0, "synth %s --train-per-class 150 --val-per-class 5 --synth-size 128", at("much"));
    run(0, 0, "pack %s %s", at("much"), at("much.h5"));
    for (int k = 1; k <= 4; k++) {
        job *j = start((how){ 0 }, "pack --workers %d %s %s", 1 + k % 2, at("much"), at("again.h5"));
        struct stat st;
        while (running(j) && (stat(at("again.h5.partial"), &st) != 0 || st.st_size < k * 2000000)) pause_s(0.001);
        send(j, k == 4 ? SIGINT : SIGKILL);
        finish(j);
        if (exists(at("again.h5"))) break;     /* it was faster */
    }
    if (!exists(at("again.h5"))) {
        outcome *o = run(0, 0, "pack %s %s", at("much"), at("again.h5"));
        says_once(o, "going on from there");
    }
    shell("cmp %s %s", at("much.h5"), at("again.h5"));
    assert_false(exists(at("again.h5.partial")));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_packed_file_trains_as_its_folder),
        cmocka_unit_test(a_packed_file_evaluates_as_its_folder),
        cmocka_unit_test(a_damaged_image_is_named_and_replaced),
        cmocka_unit_test(one_object_on_stdout),
        cmocka_unit_test(wrong_usage_is_said),
        cmocka_unit_test(too_many_bad_files_end_it),
        cmocka_unit_test(a_full_disk),
        cmocka_unit_test(killed_and_started_again),
    };
    return program_main("program_pack", tests, sizeof tests / sizeof *tests);
}
