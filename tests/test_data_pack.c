/* Packing: the file holds what the folder holds, in its order; it is there only when it is whole, whatever happens meanwhile; damage to
 * any byte is found; and a hostile file is refused with a reason.  Oracle of the reader: the folder's dataset. */
#define _GNU_SOURCE
#include "data_help.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <hdf5.h>
#include <zlib.h>

#include "data/pack.h"

enum { SIZE = 24, ELEMS = SIZE * SIZE * 3 };

static char *dir;

/* HDF5 1.10 itself leaks a little when it meets a damaged header.  What it is asked to open and is not asked to close is ours, and counted. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) { return "leak:libhdf5"; }

static int setup(void **state) { (void)state; dir = temp_open(); return 0; }

static int teardown(void **state)
{
    (void)state;
    const ssize_t n = H5Fget_obj_count((hid_t)H5F_OBJ_ALL, H5F_OBJ_ALL);
    if (n != 0) fail_msg("%zd HDF5 files, datasets, attributes ... are still open", n);
    temp_close(dir);
    return 0;
}

static const char *in_dir(const char *name)    /* static, 32 in turn */
{
    static char path[32][4096];
    static int turn;
    turn = (turn + 1) % 32;
    snprintf(path[turn], sizeof path[turn], "%s/%s", dir, name);
    return path[turn];
}

/* DIR/<name>: `classes` classes, 7 and 3 pictures each */
static const char *shapes(const char *name, int classes)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    OK(en_synth_write(path, classes, 7, 3, 40, 1));
    return in_dir(name);
}

static en_pack_config config_of(const char *source, const char *target)
{
    return (en_pack_config){ .source = source, .target = target, .split = "", .workers = 2, .quality = 95, .max_bad = 0.01, .quiet = true };
}

static en_pack_report packed(const char *source, const char *target)
{
    const en_pack_config c = config_of(source, target);
    en_pack_report r = { 0 };
    OK(en_pack(&c, &r));
    return r;
}

static void pack_fails(const en_pack_config *c, en_status code, const char *says)
{
    en_pack_report r;
    en_error_clear();
    const en_status s = en_pack(c, &r);
    if (s != code || !strstr(en_error_message(), says)) fail_msg("%s, \"%s\"; and not \"%s\"", en_status_name(s), en_error_message(), says);
}

static bool there(const char *path) { struct stat st; return lstat(path, &st) == 0; }

static bytes slurp(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("%s: %s", path, strerror(errno));
    fseek(f, 0, SEEK_END);
    bytes b = { 0 };
    b.n = (size_t)ftell(f);
    b.at = malloc(b.n + 1);
    rewind(f);
    if (fread(b.at, 1, b.n, f) != b.n) fail_msg("%s", path);
    fclose(f);
    return b;
}

static void assert_equal_files(const char *a, const char *b)
{
    bytes x = slurp(a), y = slurp(b);
    if (x.n != y.n || memcmp(x.at, y.at, x.n) != 0) fail_msg("%s and %s differ", a, b);
    bytes_free(&x);
    bytes_free(&y);
}

static en_dataset *opened(const char *path, const char *split, const en_dataset *like)
{
    en_dataset *ds = NULL;
    OK(en_dataset_open(path, split, like, &ds));
    return ds;
}

/* ---- the same as the folder -------------------------------------------------------------------------------------------------- */

static void assert_same_dataset(const en_dataset *folder, const en_dataset *file)
{
    uint8_t *a = NULL, *b = NULL;
    size_t room_a = 0, room_b = 0, n, m;
    assert_int_equal(folder->samples, file->samples);
    assert_int_equal(folder->classes, file->classes);
    for (int64_t c = 0; c < folder->classes; c++) assert_string_equal(folder->class_names[c], file->class_names[c]);
    for (int64_t i = 0; i < folder->samples; i++) {
        assert_int_equal(folder->labels[i], file->labels[i]);
        OK(folder->ops->read(folder, i, &a, &room_a, &n));
        OK(file->ops->read(file, i, &b, &room_b, &m));
        if (n != m || (n && memcmp(a, b, n) != 0)) fail_msg("%s and %s differ", folder->files[i], file->files[i]);
        char name[8192];
        snprintf(name, sizeof name, "%s:%s", file->source, folder->files[i] + strlen(folder->source) + 1);
        assert_string_equal(file->files[i], name);
        if (file->ops->expect) file->ops->expect(file, i);
    }
    free(a);
    free(b);
}

static void same(const char *folder, const char *file, const char *split, bool like_train)
{
    en_dataset *la = NULL, *lb = NULL;
    if (like_train) {
        la = opened(folder, "train", NULL);
        lb = opened(file, "train", NULL);
    }
    en_dataset *a = opened(folder, split, la), *b = opened(file, split, lb);
    assert_same_dataset(a, b);
    en_dataset_close(a);
    en_dataset_close(b);
    en_dataset_close(la);
    en_dataset_close(lb);
}

static void a_packed_file_is_the_folder(void **state)
{
    (void)state;
    shapes("two", 5);
    const en_pack_report r = packed(in_dir("two"), in_dir("two.h5"));
    assert_true(r.samples == 50 && r.classes == 5 && r.bad == 0 && r.shrunk == 0);
    struct stat st;
    assert_true(stat(in_dir("two.h5"), &st) == 0 && st.st_size == r.bytes_out && !there(in_dir("two.h5.partial")));
    same(in_dir("two"), in_dir("two.h5"), "train", false);
    same(in_dir("two"), in_dir("two.h5"), "val", false);
    same(in_dir("two"), in_dir("two.h5"), "val", true);
    en_pack_report v;
    OK(en_pack_verify(in_dir("two.h5"), 2, true, &v));
    assert_true(v.samples == 50 && v.damaged == 0 && v.bytes_out == st.st_size);
}

static void every_kind_of_folder_is_read_alike(void **state)
{
    (void)state;
    shapes("two", 4);
    /* no parts: DIR/<class> */
    char flat[4096];
    snprintf(flat, sizeof flat, "%s/two/train", dir);
    packed(flat, in_dir("flat.h5"));
    same(flat, in_dir("flat.h5"), "train", false);
    same(flat, in_dir("flat.h5"), "val", false);
    assert_false(en_dataset_has(in_dir("flat.h5"), "val") || en_dataset_has(flat, "val"));
    assert_false(en_dataset_has(in_dir("flat.h5"), "train") || en_dataset_has(flat, "train"));
    /* one part of two */
    en_pack_config c = config_of(in_dir("two"), in_dir("val.h5"));
    en_pack_report r;
    c.split = "val";
    OK(en_pack(&c, &r));
    same(in_dir("two"), in_dir("val.h5"), "val", false);
    assert_true(en_dataset_has(in_dir("val.h5"), "val") && !en_dataset_has(in_dir("val.h5"), "train"));
    assert_true(en_dataset_has(in_dir("two"), "val") && en_dataset_has(in_dir("two"), "train") && !en_dataset_has(in_dir("nowhere"), "val"));
    en_dataset *ds = NULL;
    assert_int_equal(en_dataset_open(in_dir("val.h5"), "train", NULL, &ds), EN_EDATA);
    assert_non_null(strstr(en_error_message(), "no train part"));
    /* "validation", alone and beside train; and a slash at the end of the name */
    char from[4096], to[4096];
    snprintf(from, sizeof from, "%s/two/val", dir);
    snprintf(to, sizeof to, "%s/two/validation", dir);
    assert_int_equal(rename(from, to), 0);
    snprintf(from, sizeof from, "%s/two/", dir);
    packed(from, in_dir("long.h5"));
    en_dataset *a = opened(in_dir("two"), "val", NULL), *b = opened(in_dir("long.h5"), "val", NULL);
    assert_same_dataset(a, b);
    assert_true(en_dataset_has(in_dir("long.h5"), "val") && en_dataset_has(in_dir("two"), "val"));
    en_dataset_close(a);
    en_dataset_close(b);
    /* --split of a folder that has no parts */
    c = config_of(flat, in_dir("no.h5"));
    c.split = "val";
    pack_fails(&c, EN_EUSAGE, "leave --split out");
    assert_false(there(in_dir("no.h5")) || there(in_dir("no.h5.partial")));
}

static void classes_of_one_part_alone_are_as_in_the_folder(void **state)
{
    (void)state;
    static const char *const files[] = { "train/b/1.jpg", "train/d/2.jpg", "train/e/3.jpg", "val/a/4.jpg", "val/d/5.jpg", "val/f/6.jpg" };
    for (size_t i = 0; i < 6; i++) put_file(dir, files[i], files[i], strlen(files[i]));
    en_pack_config c = config_of(dir, in_dir("x.h5"));
    en_pack_report r;
    c.max_bad = 1;
    OK(en_pack(&c, &r));
    assert_true(r.bad == 6 && r.classes == 5);
    same(dir, in_dir("x.h5"), "train", false);
    same(dir, in_dir("x.h5"), "val", false);
    en_dataset *train = opened(in_dir("x.h5"), "train", NULL), *val = NULL;
    assert_int_equal(en_dataset_open(in_dir("x.h5"), "val", train, &val), EN_EDATA);         /* as the folder */
    assert_non_null(strstr(en_error_message(), "the class \"a\" is not among the 3 of"));
    en_dataset_close(train);
}

static void odd_names_and_empty_files(void **state)
{
    (void)state;
    static const char *const names[] = { "a b/x y.jpg", "a b/'quote\".jpg", "a b/new\nline.jpg", "a b/\xff\xfe.jpg", "\xc3\xa4/deep/er/-dash.jpg",
                                         "\xc3\xa4/%s%n.jpg", "\xc3\xa4/zero.jpg", "z:y/:.jpg", "a b/[*].jpg" };
    uint8_t *rgb = make_picture(20, 16, 1);
    bytes jpeg = make_jpeg(rgb, 20, 16, &(jpeg_kind){ .components = 3 });
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) put_file(dir, names[i], jpeg.at, strstr(names[i], "zero") ? 0 : jpeg.n - i);
    en_pack_config c = config_of(dir, in_dir("x.h5"));
    en_pack_report r;
    c.max_bad = 1;
    OK(en_pack(&c, &r));
    assert_int_equal(r.samples, 9);
    assert_true(r.bad >= 8);                   /* all but the first are cut off */
    same(dir, in_dir("x.h5"), "train", false);
    free(rgb);
    bytes_free(&jpeg);
}

/* HDF5 keeps attributes in the root's header, which is continued elsewhere when it is full; /bytes must come last all the same. */
static void names_of_any_length_leave_the_images_at_the_end(void **state)
{
    (void)state;
    put_file(dir, "d/c/1.jpg", "123", 3);
    for (size_t n = 0; n < 1500; n += n < 300 ? 7 : 97) {
        char source[4096] = "";
        snprintf(source, sizeof source, "%s/d", dir);
        for (size_t k = strlen(source); k + 2 < strlen(dir) + 2 + n; k += 2) strcpy(source + k, "/.");
        en_pack_config c = config_of(source, in_dir("x.h5"));
        en_pack_report r;
        c.max_bad = 1;
        OK(en_pack(&c, &r));
        OK(en_pack_verify(in_dir("x.h5"), 1, true, &r));
        bytes b = slurp(in_dir("x.h5"));
        assert_memory_equal(b.at + b.n - 3, "123", 3);
        bytes_free(&b);
        unlink(in_dir("x.h5"));
    }
}

/* ---- through the loader --------------------------------------------------------------------------------------------------------- */

static en_loader_config loading(const en_dataset *ds, bool training, bool u8)
{
    return (en_loader_config){ .dataset = ds, .shard = { .global_batch = 14, .accum = 1, .rank = 0, .world_size = 1 }, .size = SIZE, .workers = 2,
                               .ahead = 2, .seed = 17, .training = training, .normalise = en_imagenet_normalise, .max_bad_fraction = 0.5, .u8 = u8 };
}

static void compare_batches(const en_dataset *folder, const en_dataset *file, bool training, bool u8, int world)
{
    const size_t pixel = u8 ? 1 : sizeof(float);
    const int64_t steps = training ? 5 : (folder->samples + 13) / 14;        /* training: 70 images, two epochs */
    int *seen = calloc((size_t)folder->samples, sizeof *seen);
    for (int r = 0; r < world; r++) {
        en_loader *l[2];
        for (int k = 0; k < 2; k++) {
            en_loader_config c = loading(k ? file : folder, training, u8);
            c.shard.rank = r;
            c.shard.world_size = world;
            OK(en_loader_open(&c, &l[k]));
        }
        for (int64_t s = 0; s < steps; s++) {
            en_batch a, b;
            OK(en_loader_next(l[0], &a));
            OK(en_loader_next(l[1], &b));
            assert_true(a.n == b.n && a.first == b.first && a.epoch == b.epoch);
            if (a.n == 0) continue;
            assert_memory_equal(a.labels, b.labels, (size_t)a.n * sizeof *a.labels);
            assert_memory_equal(a.samples, b.samples, (size_t)a.n * sizeof *a.samples);
            assert_memory_equal(u8 ? (void *)a.bytes : (void *)a.images, u8 ? (void *)b.bytes : (void *)b.images, (size_t)a.n * ELEMS * pixel);
            for (int64_t i = 0; i < b.n; i++) seen[b.samples[i]]++;
        }
        for (int k = 0; k < 2; k++) en_loader_close(l[k]);
    }
    for (int64_t i = 0; i < folder->samples; i++) assert_int_equal(seen[i], training ? 2 : 1);       /* each sample once an epoch */
    free(seen);
}

static void folder_and_file_give_equal_batches_on_any_ranks(void **state)
{
    (void)state;
    static const int worlds[] = { 1, 2, 4, 7 };
    shapes("two", 5);
    packed(in_dir("two"), in_dir("two.h5"));
    en_dataset *train[2] = { opened(in_dir("two"), "train", NULL), opened(in_dir("two.h5"), "train", NULL) };
    en_dataset *val[2] = { opened(in_dir("two"), "val", train[0]), opened(in_dir("two.h5"), "val", train[1]) };
    assert_int_equal(train[0]->samples, 35);
    for (size_t w = 0; w < 4; w++)
        for (int u8 = 0; u8 < 2; u8++) {
            compare_batches(train[0], train[1], true, u8, worlds[w]);
            compare_batches(val[0], val[1], false, u8, worlds[w]);
        }
    for (int k = 0; k < 2; k++) {
        en_dataset_close(train[k]);
        en_dataset_close(val[k]);
    }
}

/* Flips a bit in the middle of sample i of `split`. */
static void damage(const char *path, const char *split, int64_t i, char name[4096])
{
    en_dataset *ds = opened(path, split, NULL);
    uint8_t *buf = NULL;
    size_t room = 0, n;
    OK(ds->ops->read(ds, i, &buf, &room, &n));
    bytes b = slurp(path);
    uint8_t *at = memmem(b.at, b.n, buf, n);
    assert_non_null(at);
    at[n / 2] ^= 4;
    put_file("", path, b.at, b.n);
    snprintf(name, 4096, "%s", ds->files[i]);
    bytes_free(&b);
    free(buf);
    en_dataset_close(ds);
}

static void train_on(void *argument)
{
    en_dataset *ds = opened(argument, "train", NULL);
    const en_loader_config c = loading(ds, true, false);
    en_loader *l;
    OK(en_loader_open(&c, &l));
    int64_t of_it = 0;
    for (int s = 0; s < 5; s++) {
        en_batch b;
        OK(en_loader_next(l, &b));
        assert_int_equal(b.n, 14);             /* another takes its place */
        for (int64_t i = 0; i < b.n; i++) of_it += b.samples[i] == 9;
    }
    const char *const *files;
    assert_int_equal(en_loader_bad(l, &files), 1);
    assert_string_equal(files[0], ds->files[9]);
    assert_int_equal(of_it, 0);
    en_loader_close(l);
    en_dataset_close(ds);
}

static void a_flipped_bit_is_found_and_in_training_replaced(void **state)
{
    (void)state;
    char name[4096], other[4096], path[4096];
    shapes("two", 5);
    snprintf(path, sizeof path, "%s/two.h5", dir);
    packed(in_dir("two"), path);
    damage(path, "train", 9, name);
    char *said = stderr_of(train_on, path);
    if (!strstr(said, name) || !strstr(said, "CRC-32") || !strstr(said, "another image takes its place")) fail_msg("%s", said);
    free(said);
    damage(path, "val", 2, other);
    en_pack_report r;
    assert_int_equal(en_pack_verify(path, 3, true, &r), EN_EDATA);
    assert_int_equal(r.damaged, 2);
    const char *message = en_error_message();
    if (!strstr(message, "2 of 50 samples") || !strstr(message, strchr(name, ':') + 1) || !strstr(message, strchr(other, ':') + 1)) fail_msg("%s", message);
}

/* ---- bad files --------------------------------------------------------------------------------------------------------------------- */

static void pack_loudly(void *argument)
{
    en_pack_report r;
    en_pack_config c = *(const en_pack_config *)argument;
    c.quiet = false;
    OK(en_pack(&c, &r));
    assert_int_equal(r.bad, 2);
}

static void bad_files_are_named_counted_and_packed(void **state)
{
    (void)state;
    char source[4096], target[4096];
    snprintf(source, sizeof source, "%s/two", dir);
    snprintf(target, sizeof target, "%s/two.h5", dir);
    shapes("two", 5);
    put_file(source, "train/circles/aaa.jpg", "this is no picture", 18);
    put_file(source, "train/dots/m.jpg", "", 0);
    en_pack_config c = config_of(source, target);
    pack_fails(&c, EN_EDATA, "2 of 37 files of");
    const char *said = en_error_message();
    if (!strstr(said, "--max-bad 0.01 allows 1") || !strstr(said, "circles/aaa.jpg is not an image") || !strstr(said, "dots/m.jpg")) fail_msg("%s", said);
    assert_false(there(target));
    assert_true(there(in_dir("two.h5.partial")));
    c.max_bad = 0.06;                          /* 2 of 37 */
    for (int again = 0; again < 2; again++) {  /* going on from the first attempt, and from the beginning */
        char *text = stderr_of(pack_loudly, &c);
        if (!strstr(text, "bad file") || !strstr(text, "circles/aaa.jpg is not an image") || !strstr(text, "dots/m.jpg")
            || !strstr(text, "packed as it is") || (strstr(text, "going on from there") == NULL) != again) fail_msg("%s", text);
        free(text);
        same(source, target, "train", false);
        if (!again) assert_int_equal(rename(target, in_dir("first.h5")), 0);
    }
    assert_equal_files(target, in_dir("first.h5"));
}

static void a_file_that_cannot_be_read_ends_it(void **state)
{
    (void)state;
    char source[4096];
    snprintf(source, sizeof source, "%s/two", dir);
    shapes("two", 5);
    assert_int_equal(symlink("nowhere", path_in(source, "train/dots/link.jpg")), 0);
    const en_pack_config c = config_of(source, in_dir("x.h5"));
    pack_fails(&c, EN_EIO, "train/dots/link.jpg");
    unlink(path_in(source, "train/dots/link.jpg"));
    assert_int_equal(mkfifo(path_in(source, "train/dots/pipe.jpg"), 0600), 0);
    pack_fails(&c, EN_EDATA, "train/dots/pipe.jpg is not a regular file");
    unlink(path_in(source, "train/dots/pipe.jpg"));
    if (geteuid() != 0) {
        chmod(path_in(source, "train/dots/dots_00000.jpg"), 0);
        pack_fails(&c, EN_EIO, "dots_00000.jpg cannot be opened");
    }
    assert_false(there(in_dir("x.h5")));
}

static void what_cannot_be_packed_is_said(void **state)
{
    (void)state;
    shapes("two", 3);
    en_pack_config c = config_of(in_dir("nowhere"), in_dir("x.h5"));
    pack_fails(&c, EN_EDATA, "No such file");
    put_file(dir, "file", "1", 1);
    c.source = in_dir("file");
    pack_fails(&c, EN_EDATA, "not a folder");
    c.source = in_dir("two");
    c.target = in_dir("no/such/place.h5");
    pack_fails(&c, EN_EIO, "choose another place");
    c.target = in_dir("x.h5");
    c.split = "test";
    pack_fails(&c, EN_EUSAGE, "train or val");
    put_folder(dir, "two/train/empty");
    c.split = "";
    pack_fails(&c, EN_EDATA, "holds no files");
    assert_false(there(in_dir("x.h5")) || there(in_dir("x.h5.partial")));
    en_pack_report r;
    en_error_clear();
    assert_int_equal(en_pack_verify(in_dir("nowhere.h5"), 1, true, &r), EN_EDATA);
    assert_non_null(strstr(en_error_message(), "does not exist"));
    en_error_clear();
    assert_int_equal(en_pack_verify(in_dir("file"), 1, true, &r), EN_EDATA);
    assert_non_null(strstr(en_error_message(), "no packed dataset"));
}

/* ---- whole or not there -------------------------------------------------------------------------------------------------------------- */

static void nothing_is_overwritten(void **state)
{
    (void)state;
    shapes("two", 3);
    put_file(dir, "x.h5", "mine", 4);
    en_pack_config c = config_of(in_dir("two"), in_dir("x.h5"));
    pack_fails(&c, EN_EUSAGE, "is there already");
    bytes b = slurp(in_dir("x.h5"));
    assert_true(b.n == 4 && !there(in_dir("x.h5.partial")));
    bytes_free(&b);
    unlink(in_dir("x.h5"));
    assert_int_equal(symlink("nowhere", in_dir("x.h5")), 0);             /* a link that leads nowhere is there, too */
    pack_fails(&c, EN_EUSAGE, "is there already");
}

static pid_t pack_in_child(const en_pack_config *c)
{
    const pid_t pid = fork();
    if (pid == 0) {
        en_pack_report r;
        const en_status s = en_pack(c, &r);
        _exit(en_status_exit_code(s));
    }
    return pid;
}

static int exit_of(pid_t pid)
{
    int status;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void one_packer_at_a_time(void **state)
{
    (void)state;
    shapes("two", 5);
    char source[4096], target[4096];
    snprintf(source, sizeof source, "%s/two", dir);
    snprintf(target, sizeof target, "%s/x.h5", dir);
    const en_pack_config c = config_of(source, target);
    const int fd = open(in_dir("x.h5.partial"), O_RDWR | O_CREAT, 0666);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    pack_fails(&c, EN_EUSAGE, "another process is packing into");
    close(fd);
    for (int round = 0; round < 10; round++) {               /* one of them makes it, the others are refused */
        pid_t pid[3];
        int made = 0;
        for (int i = 0; i < 3; i++) pid[i] = pack_in_child(&c);
        for (int i = 0; i < 3; i++) {
            const int code = exit_of(pid[i]);
            if (code != 0 && code != 2) fail_msg("exit code %d", code);
            made += code == 0;
        }
        assert_int_equal(made, 1);
        en_pack_report r;
        OK(en_pack_verify(target, 1, true, &r));
        assert_false(there(in_dir("x.h5.partial")));
        unlink(target);
    }
}

static void a_killed_packing_goes_on_and_ends_alike(void **state)
{
    (void)state;
    char source[4096], target[4096], partial[4200];
    snprintf(source, sizeof source, "%s/two", dir);
    snprintf(target, sizeof target, "%s/x.h5", dir);
    snprintf(partial, sizeof partial, "%s.partial", target);
    OK(en_synth_write(source, 10, 40, 4, 64, 1));
    packed(source, in_dir("whole.h5"));
    struct stat whole, st;
    stat(in_dir("whole.h5"), &whole);
    int killed = 0, went_on = 0;
    for (int point = 0; point <= 10; point++) {
        for (int attempt = 0; attempt < 3; attempt++) {      /* killed up to three times at this point, then left alone */
            en_pack_config c = config_of(source, target);
            c.workers = 1 + point % 3;
            const pid_t pid = pack_in_child(&c);
            int status;
            while (waitpid(pid, &status, WNOHANG) == 0) {
                if (stat(partial, &st) != 0 || st.st_size < whole.st_size * point / 10) continue;
                kill(pid, SIGKILL);
                waitpid(pid, &status, 0);
                break;
            }
            if (!WIFSIGNALED(status)) break;
            killed++;
            en_dataset *ds = NULL;
            if (!there(target)) assert_int_equal(en_dataset_open(target, "train", NULL, &ds), EN_EDATA);
            if (there(partial)) {
                assert_int_equal(en_dataset_open(partial, "train", NULL, &ds) == EN_OK, en_is_packed(partial));
                en_dataset_close(ds);
            }
        }
        went_on += !there(target);
        if (!there(target)) packed(source, target);
        assert_equal_files(target, in_dir("whole.h5"));
        assert_false(there(partial));
        unlink(target);
    }
    if (killed < 5 || went_on < 5) fail_msg("%d killed, %d gone on with", killed, went_on);
}

static void stop_at_a_bad_file(const char *source, const char *target)
{
    en_pack_config c = config_of(source, target);
    c.max_bad = 0;
    pack_fails(&c, EN_EDATA, "cannot be decoded");
}

/* What an earlier attempt left is used only as far as it is what the folder would give now. */
static void what_is_gone_on_with_is_checked(void **state)
{
    (void)state;
    char source[4096], target[4096], partial[4200];
    snprintf(source, sizeof source, "%s/two", dir);
    snprintf(target, sizeof target, "%s/x.h5", dir);
    snprintf(partial, sizeof partial, "%s.partial", target);
    shapes("two", 5);
    put_file(source, "train/gradients/zzz.jpg", "text", 4);      /* sample 21 and more before are written, then it stops */
    en_pack_config c = config_of(source, target);
    en_pack_report r;
    c.max_bad = 0.1;
    c.target = in_dir("want.h5");
    OK(en_pack(&c, &r));
    c.target = target;
    for (int kind = 0; kind < 5; kind++) {
        stop_at_a_bad_file(source, target);
        bytes b = slurp(partial);
        switch (kind) {
        case 0: b.at[b.n - b.n / 3] ^= 1; break;                 /* an image */
        case 1: b.n -= b.n / 2; break;                           /* cut off among the images */
        case 2: b.at[64 + 16 * 3] ^= 1; break;                   /* the journal */
        case 3: b.n = 70; break;                                 /* cut off in it */
        case 4: memset(b.at + b.n / 2, 0, b.n / 2); break;       /* blocks that never reached the disk */
        }
        put_file("", partial, b.at, b.n);
        bytes_free(&b);
        OK(en_pack(&c, &r));
        assert_equal_files(target, in_dir("want.h5"));
        unlink(target);
    }
    stop_at_a_bad_file(source, target);                          /* the folder changes: another picture of the same length and name */
    bytes b = slurp(path_in(source, "train/circles/circles_00000.jpg"));
    b.at[b.n / 2] ^= 1;
    put_file(source, "train/circles/circles_00000.jpg", b.at, b.n);
    struct timespec times[2] = { { 1, 0 }, { 1, 0 } };
    utimensat(AT_FDCWD, path_in(source, "train/circles/circles_00000.jpg"), times, 0);
    OK(en_pack(&c, &r));
    same(source, target, "train", false);
    bytes_free(&b);
}

static void a_full_disk_is_said_and_can_be_gone_on_from(void **state)
{
    (void)state;
    char source[4096], target[4096], text[4096];
    snprintf(source, sizeof source, "%s/two", dir);
    snprintf(target, sizeof target, "%s/x.h5", dir);
    shapes("two", 5);
    packed(source, in_dir("whole.h5"));
    struct stat whole;
    stat(in_dir("whole.h5"), &whole);
    const en_pack_config c = config_of(source, target);
    for (int tenth = 0; tenth < 10; tenth++) {
        const pid_t pid = fork();
        if (pid == 0) {
            const rlim_t most = (rlim_t)(whole.st_size * tenth / 10);
            setrlimit(RLIMIT_FSIZE, &(struct rlimit){ most, most });
            en_pack_report r;
            const en_status s = en_pack(&c, &r);
            exit(s == EN_EIO && strstr(en_error_message(), "File too large") && strstr(en_error_message(), "make room") ? 77 : 1);    /* with HDF5's atexit */
        }
        assert_int_equal(exit_of(pid), 77);
        assert_false(there(target));
        if (tenth % 3 == 0) continue;          /* and on with less than there was, and with all */
        snprintf(text, sizeof text, "%s", in_dir("x.h5"));
        packed(source, text);
        assert_equal_files(text, in_dir("whole.h5"));
        unlink(text);
    }
}

/* ---- damage -------------------------------------------------------------------------------------------------------------------------- */

static en_status open_and_verify(const char *path)
{
    en_pack_report r;
    en_dataset *ds = NULL;
    en_error_clear();
    const en_status o = en_dataset_open(path, "train", NULL, &ds), v = en_pack_verify(path, 1, true, &r);
    en_dataset_close(ds);
    if (o != EN_OK && v == EN_OK) fail_msg("opening says %s, verifying nothing", en_status_name(o));
    return v;
}

/* Two files in two classes: small, so that each byte can have its turn. */
static bytes small_file(void)
{
    put_file(dir, "d/cat/1.jpg", "meow", 4);
    put_file(dir, "d/dog/2.jpg", "wuff!", 5);
    en_pack_config c = config_of(in_dir("d"), in_dir("small.h5"));
    en_pack_report r;
    c.max_bad = 1;
    OK(en_pack(&c, &r));
    return slurp(in_dir("small.h5"));
}

static void no_byte_is_without_a_checksum(void **state)
{
    (void)state;
    bytes b = small_file();
    int unseen = 0;
    char list[512] = "";
    const int fd = open(in_dir("small.h5"), O_RDWR);
    for (size_t i = 0; i < b.n; i++)
        for (int bit = 0; bit < 8; bit += 7) {
            const uint8_t flipped = (uint8_t)(b.at[i] ^ (1 << bit));
            assert_int_equal(pwrite(fd, &flipped, 1, (off_t)i), 1);
            const en_status s = open_and_verify(in_dir("small.h5"));
            if (s == EN_OK && strlen(list) < 480) snprintf(list + strlen(list), 32, " %zu", i);
            unseen += s == EN_OK;
            if (s != EN_OK && s != EN_EDATA) fail_msg("byte %zu: %s: %s", i, en_status_name(s), en_error_text());
            assert_int_equal(pwrite(fd, &b.at[i], 1, (off_t)i), 1);
        }
    close(fd);
    if (unseen) fail_msg("%d of %zu flipped bits were not seen, in bytes%s", unseen, 2 * b.n, list);
    bytes_free(&b);
}

static void a_file_of_another_length_is_refused(void **state)
{
    (void)state;
    bytes b = small_file();
    for (size_t n = 0; n < b.n; n++) {
        assert_int_equal(truncate(in_dir("small.h5"), (off_t)n), 0);
        if (open_and_verify(in_dir("small.h5")) != EN_EDATA) fail_msg("%zu of %zu bytes", n, b.n);
        if (n > 48 && !strstr(en_error_message(), "cut off")) fail_msg("%s", en_error_message());
        put_file("", in_dir("small.h5"), b.at, b.n);
    }
    bytes_insert(&b, b.n, "x", 1);
    put_file("", in_dir("small.h5"), b.at, b.n);
    assert_int_equal(open_and_verify(in_dir("small.h5")), EN_EDATA);
    bytes_free(&b);
}

/* ---- files made to do harm --------------------------------------------------------------------------------------------------------------- */

static hid_t edit(void)
{
    const hid_t fapl = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_libver_bounds(fapl, H5F_LIBVER_V18, H5F_LIBVER_V18);
    const hid_t file = H5Fopen(in_dir("small.h5"), H5F_ACC_RDWR, fapl);
    H5Pclose(fapl);
    assert_true(file >= 0);
    return file;
}

/* Replaces a dataset by one with these values and the right checksum. */
static void replace(hid_t file, const char *name, hid_t type, int ndim, hsize_t n, const void *values, hid_t plist)
{
    const hsize_t extent[2] = { n, 1 };
    H5Ldelete(file, name, H5P_DEFAULT);
    const hid_t space = H5Screate_simple(ndim, extent, NULL), set = H5Dcreate2(file, name, type, space, H5P_DEFAULT, plist, H5P_DEFAULT);
    assert_true(set >= 0);
    if (values) {
        const uint32_t crc = (uint32_t)crc32(0, values, (uInt)(n * H5Tget_size(type)));
        const hid_t scalar = H5Screate(H5S_SCALAR), attr = H5Acreate2(set, "crc32", H5T_STD_U32LE, scalar, H5P_DEFAULT, H5P_DEFAULT);
        assert_true(H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0 && H5Awrite(attr, H5T_NATIVE_UINT32, &crc) >= 0);
        H5Aclose(attr);
        H5Sclose(scalar);
    }
    H5Dclose(set);
    H5Sclose(space);
}

static void says(const char *what, const char *needle)
{
    en_dataset *ds = NULL;
    en_error_clear();
    const en_status s = en_dataset_open(in_dir("small.h5"), "train", NULL, &ds);
    if (s != EN_EDATA || !strstr(en_error_message(), needle)) fail_msg("%s: %s: \"%s\", not \"%s\"", what, en_status_name(s), en_error_message(), needle);
    assert_null(ds);
}

typedef void change(hid_t file);
static void no_labels(hid_t f)      { H5Ldelete(f, "/labels", H5P_DEFAULT); }
static void no_bytes(hid_t f)       { H5Ldelete(f, "/bytes", H5P_DEFAULT); }
static void wrong_type(hid_t f)     { replace(f, "/labels", H5T_STD_I64LE, 1, 2, (int64_t[]){ 0, 1 }, H5P_DEFAULT); }
static void wrong_order(hid_t f)    { replace(f, "/labels", H5T_STD_I32BE, 1, 2, (int32_t[]){ 0, 1 }, H5P_DEFAULT); }
static void wrong_rank(hid_t f)     { replace(f, "/labels", H5T_STD_I32LE, 2, 2, (int32_t[]){ 0, 1 }, H5P_DEFAULT); }
static void wrong_length(hid_t f)   { replace(f, "/offsets", H5T_STD_I64LE, 1, 2, (int64_t[]){ 0, 9 }, H5P_DEFAULT); }
static void label_below(hid_t f)    { replace(f, "/labels", H5T_STD_I32LE, 1, 2, (int32_t[]){ 0, -1 }, H5P_DEFAULT); }
static void label_above(hid_t f)    { replace(f, "/labels", H5T_STD_I32LE, 1, 2, (int32_t[]){ 0, 2 }, H5P_DEFAULT); }
static void descending(hid_t f)     { replace(f, "/offsets", H5T_STD_I64LE, 1, 3, (int64_t[]){ 0, 12, 9 }, H5P_DEFAULT); }
static void negative(hid_t f)       { replace(f, "/offsets", H5T_STD_I64LE, 1, 3, (int64_t[]){ 0, INT64_MIN, 9 }, H5P_DEFAULT); }
static void beyond(hid_t f)         { replace(f, "/offsets", H5T_STD_I64LE, 1, 3, (int64_t[]){ 0, 4, INT64_MAX }, H5P_DEFAULT); }
static void from_one(hid_t f)       { replace(f, "/offsets", H5T_STD_I64LE, 1, 3, (int64_t[]){ 1, 4, 9 }, H5P_DEFAULT); }
static void uncovered(hid_t f)      { replace(f, "/split_offsets", H5T_STD_I64LE, 1, 2, (int64_t[]){ 0, 1 }, H5P_DEFAULT); }
static void split_beyond(hid_t f)   { replace(f, "/split_offsets", H5T_STD_I64LE, 1, 2, (int64_t[]){ 0, 1 << 30 }, H5P_DEFAULT); }
static void texts(hid_t f, const char *name, hsize_t n, size_t width, const char *values, H5T_str_t pad)
{
    const hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, width);
    H5Tset_strpad(type, pad);
    replace(f, name, type, 1, n, values, H5P_DEFAULT);
    H5Tclose(type);
}
static void no_class_name(hid_t f)  { texts(f, "/classes", 2, 3, "\0\0\0dog", H5T_STR_NULLPAD); }
static void unsorted(hid_t f)       { texts(f, "/classes", 2, 3, "dogcat", H5T_STR_NULLPAD); }
static void twice(hid_t f)          { texts(f, "/classes", 2, 3, "catcat", H5T_STR_NULLPAD); }
static void a_path(hid_t f)         { texts(f, "/classes", 2, 3, "../dog", H5T_STR_NULLPAD); }
static void no_file_name(hid_t f)   { texts(f, "/files", 2, 3, "a\0\0\0\0\0", H5T_STR_NULLPAD); }
static void padded(hid_t f)         { texts(f, "/files", 2, 3, "a  b  ", H5T_STR_SPACEPAD); }
static void wide(hid_t f)           { char *v = calloc(2, 70000); v[0] = v[70000] = 'a'; texts(f, "/files", 2, 70000, v, H5T_STR_NULLPAD); free(v); }
static void unknown_split(hid_t f)  { texts(f, "/splits", 1, 8, "test\0\0\0", H5T_STR_NULLPAD); }
static void endless_split(hid_t f)  { texts(f, "/splits", 1, 8, "trainval", H5T_STR_NULLPAD); }
static void many_splits(hid_t f)    { char v[800] = "train"; texts(f, "/splits", 100, 8, v, H5T_STR_NULLPAD); }
static void variable(hid_t f)
{
    const hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, H5T_VARIABLE);
    const hsize_t n = 2;
    H5Ldelete(f, "/files", H5P_DEFAULT);
    const hid_t space = H5Screate_simple(1, &n, NULL), set = H5Dcreate2(f, "/files", type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    const char *v[] = { "a", "b" };
    H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, v);
    H5Dclose(set);
    H5Sclose(space);
    H5Tclose(type);
}
static void chunked(hid_t f)
{
    const hid_t plist = H5Pcreate(H5P_DATASET_CREATE);
    const hsize_t chunk = 9;
    H5Pset_chunk(plist, 1, &chunk);
    replace(f, "/bytes", H5T_STD_U8LE, 1, 9, "meowwuff!", plist);
    H5Pclose(plist);
}
static void compact(hid_t f)
{
    const hid_t plist = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_layout(plist, H5D_COMPACT);
    replace(f, "/bytes", H5T_STD_U8LE, 1, 9, "meowwuff!", plist);
    H5Pclose(plist);
}
static void external(hid_t f)
{
    const hid_t plist = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_external(plist, "/etc/passwd", 0, 9);
    replace(f, "/bytes", H5T_STD_U8LE, 1, 9, NULL, plist);
    H5Pclose(plist);
}
static void huge(hid_t f)                                          /* 2^60 values that were never allocated */
{
    const hid_t plist = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_alloc_time(plist, H5D_ALLOC_TIME_LATE);
    replace(f, "/labels", H5T_STD_I32LE, 1, (hsize_t)1 << 60, NULL, plist);
    H5Pclose(plist);
}
static void soft(hid_t f)           { H5Lmove(f, "/labels", f, "/other", H5P_DEFAULT, H5P_DEFAULT); H5Lcreate_soft("/other", f, "/labels", H5P_DEFAULT, H5P_DEFAULT); }
static void elsewhere(hid_t f)      { H5Ldelete(f, "/labels", H5P_DEFAULT); H5Lcreate_external("/etc/passwd", "/labels", f, "/labels", H5P_DEFAULT, H5P_DEFAULT); }
static void a_group(hid_t f)        { H5Ldelete(f, "/labels", H5P_DEFAULT); H5Gclose(H5Gcreate2(f, "/labels", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT)); }
static void no_format(hid_t f)      { H5Adelete(f, "format"); }
static void number(hid_t f, const char *name, int64_t v)
{
    const hid_t attr = H5Aopen(f, name, H5P_DEFAULT);
    H5Awrite(attr, H5T_NATIVE_INT64, &v);
    H5Aclose(attr);
}
static void newer(hid_t f)          { number(f, "version", 2); }
static void incomplete(hid_t f)     { number(f, "complete", 0); }
static void no_sum(hid_t f)
{
    const hid_t set = H5Dopen2(f, "/labels", H5P_DEFAULT);
    H5Adelete(set, "crc32");
    H5Dclose(set);
}

static void hostile_files_are_refused_with_a_reason(void **state)
{
    (void)state;
    static const struct { change *by; const char *name, *says; } cases[] = {
        { no_labels, "no_labels", "has no dataset /labels" }, { no_bytes, "no_bytes", "has no dataset /bytes" },
        { wrong_type, "wrong_type", "/labels is of another type" }, { wrong_order, "wrong_order", "/labels is of another type" },
        { wrong_rank, "wrong_rank", "/labels is not one-dimensional" }, { wrong_length, "wrong_length", "/offsets has 2 values and should have 3" },
        { label_below, "label_below", "sample 1 is of class -1 of 2" }, { label_above, "label_above", "sample 1 is of class 2 of 2" },
        { descending, "descending", "sample 0 is from byte 0 to 12 of 9" }, { negative, "negative", "sample 0 is from byte 0 to -" },
        { beyond, "beyond", "do not cover /bytes" }, { from_one, "from_one", "do not cover /bytes" },
        { uncovered, "uncovered", "do not cover the samples" }, { split_beyond, "split_beyond", "do not cover the samples" },
        { no_class_name, "no_class_name", "class 0 has no usable name" }, { unsorted, "unsorted", "not in byte order" },
        { twice, "twice", "not in byte order" }, { a_path, "a_path", "class 0 has no usable name" },
        { no_file_name, "no_file_name", "sample 1 has no name" }, { padded, "padded", "/files is of another type" },
        { wide, "wide", "/files lies outside" }, { unknown_split, "unknown_split", "other parts than" },
        { endless_split, "endless_split", "other parts than" }, { many_splits, "many_splits", "/splits has 100 parts" },
        { variable, "variable", "/files is of another type" }, { chunked, "chunked", "/bytes is not stored in one piece" },
        { compact, "compact", "/bytes is not stored in one piece" }, { external, "external", "/bytes is not stored in one piece" },
        { huge, "huge", "/labels lies outside the file" }, { soft, "soft", "has no dataset /labels" },
        { elsewhere, "elsewhere", "has no dataset /labels" }, { a_group, "a_group", "/labels cannot be opened" },
        { no_format, "no_format", "no packed dataset" }, { newer, "newer", "format version 2" }, { incomplete, "incomplete", "not complete" },
        { no_sum, "no_sum", "/labels has no checksum" } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        unlink(in_dir("small.h5"));
        bytes b = small_file();
        bytes_free(&b);
        const hid_t file = edit();
        cases[i].by(file);
        assert_true(H5Fclose(file) >= 0);
        says(cases[i].name, cases[i].says);
    }
    unlink(in_dir("small.h5"));                                    /* another program's file, in the oldest format */
    const hid_t old = H5Fcreate(in_dir("small.h5"), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    H5Fclose(old);
    says("old", "not as `effnet pack` writes it");
}

static void open_small(void *argument)
{
    en_dataset *ds = NULL;
    (void)argument;
    if (en_dataset_open(in_dir("small.h5"), "train", NULL, &ds) == EN_OK) fail();
}

static void hdf5_prints_nothing_by_itself(void **state)
{
    (void)state;
    bytes b = small_file();
    b.at[60] ^= 1;
    put_file("", in_dir("small.h5"), b.at, b.n);
    H5Eset_auto2(H5E_DEFAULT, (H5E_auto2_t)H5Eprint2, stderr);
    char *said = stderr_of(open_small, NULL);
    assert_string_equal(said, "");
    free(said);
    bytes_free(&b);
}

/* ---- smaller pictures ----------------------------------------------------------------------------------------------------------------------- */

static void decode_sample(const en_dataset *ds, int64_t i, en_image *img)
{
    uint8_t *buf = NULL;
    size_t room = 0, n;
    OK(ds->ops->read(ds, i, &buf, &room, &n));
    OK(en_image_decode(ds->files[i], buf, n, 0, img));
    free(buf);
}

/* The mean over the area that each pixel of ow x oh covers, in doubles. */
static double area_mean(const en_image *img, int64_t ow, int64_t oh, int64_t x, int64_t y, int d)
{
    const double sx = (double)img->w / (double)ow, sy = (double)img->h / (double)oh;
    double sum = 0;
    for (int64_t j = (int64_t)floor((double)y * sy); j < img->h && (double)j < (double)(y + 1) * sy; j++)
        for (int64_t i = (int64_t)floor((double)x * sx); i < img->w && (double)i < (double)(x + 1) * sx; i++) {
            const double wx = fmin((double)i + 1, (double)(x + 1) * sx) - fmax((double)i, (double)x * sx);
            const double wy = fmin((double)j + 1, (double)(y + 1) * sy) - fmax((double)j, (double)y * sy);
            sum += fmax(wx, 0) * fmax(wy, 0) * img->rgb[(j * img->w + i) * 3 + d];
        }
    return sum / (sx * sy);
}

static void max_side_shrinks_what_is_longer_and_nothing_else(void **state)
{
    (void)state;
    static const struct { const char *name; int w, h, components; } pictures[] = { { "d/a/1.jpg", 200, 90, 3 }, { "d/a/2.jpg", 61, 199, 1 },
        { "d/b/3.jpg", 64, 64, 3 }, { "d/b/4.jpg", 65, 7, 3 }, { "d/b/5.jpg", 30, 20, 1 }, { "d/b/6.jpg", 400, 2, 3 } };
    char source[4096], target[4096];
    snprintf(source, sizeof source, "%s/d", dir);
    snprintf(target, sizeof target, "%s/x.h5", dir);
    for (size_t i = 0; i < 6; i++) {
        uint8_t *rgb = make_picture(pictures[i].w, pictures[i].h, (unsigned)i);
        bytes jpeg = make_jpeg(rgb, pictures[i].w, pictures[i].h, &(jpeg_kind){ .components = pictures[i].components, .quality = 95 });
        put_file(dir, pictures[i].name, jpeg.at, jpeg.n);
        bytes_free(&jpeg);
        free(rgb);
    }
    en_pack_config c = config_of(source, target);
    en_pack_report r;
    c.max_side = 64;
    c.quality = 100;
    OK(en_pack(&c, &r));
    assert_int_equal(r.shrunk, 4);
    en_dataset *a = opened(source, "train", NULL), *b = opened(target, "train", NULL);
    for (int64_t i = 0; i < 6; i++) {
        en_image before, after;
        decode_sample(a, i, &before);
        decode_sample(b, i, &after);
        assert_int_equal(before.channels, after.channels);
        if (before.w <= 64 && before.h <= 64) {
            assert_true(before.w == after.w && before.h == after.h);
            assert_memory_equal(before.rgb, after.rgb, (size_t)(before.w * before.h * 3));
        } else {
            assert_int_equal(after.w > after.h ? after.w : after.h, 64);
            const double scale = 64.0 / (double)(before.w > before.h ? before.w : before.h);
            assert_true(fabs((double)after.w - fmax(1, scale * (double)before.w)) <= 0.5 && fabs((double)after.h - fmax(1, scale * (double)before.h)) <= 0.5);
            /* The brightness: colour is stored at half the resolution.  Quality 100 rounds each coefficient to a whole number, and colours to
             * whole levels: about half a level each; bicubic and mean differ at the few edges alone.  A picture that is off by one pixel, or flipped, is off by more than 3. */
            static const double luma[3] = { 0.299, 0.587, 0.114 };
            double sum = 0;
            for (int64_t y = 0; y < after.h; y++)
                for (int64_t x = 0; x < after.w; x++) {
                    double off = 0;
                    for (int d = 0; d < 3; d++) off += luma[d] * (area_mean(&before, after.w, after.h, x, y, d) - after.rgb[(y * after.w + x) * 3 + d]);
                    sum += fabs(off);
                }
            const double mean = sum / (double)(after.w * after.h);
            if (mean > 1) fail_msg("%s: off by %.2f levels on average", b->files[i], mean);
        }
        en_image_free(&before);
        en_image_free(&after);
    }
    en_dataset_close(a);
    en_dataset_close(b);
    c.workers = 1;
    c.target = in_dir("one.h5");
    OK(en_pack(&c, &r));
    assert_equal_files(target, in_dir("one.h5"));
}

static void the_file_is_the_same_for_any_number_of_workers(void **state)
{
    (void)state;
    char source[4096], first[4096], target[4096];
    snprintf(source, sizeof source, "%s/two", dir);
    snprintf(first, sizeof first, "%s/1.h5", dir);
    shapes("two", 10);
    for (int64_t side = 0; side <= 24; side += 24)
        for (int workers = 1; workers <= 7; workers += 2) {
            en_pack_config c = config_of(source, first);
            en_pack_report r;
            snprintf(target, sizeof target, "%s/%d.h5", dir, workers);
            c.target = target;
            c.workers = workers;
            c.max_side = side;
            OK(en_pack(&c, &r));
            assert_int_equal(r.shrunk, side ? 100 : 0);
            if (workers > 1) {
                assert_equal_files(first, target);
                unlink(target);
            } else if (side) {
                en_pack_report v;
                OK(en_pack_verify(target, 2, true, &v));
                assert_true(v.shrunk == 100);
            }
            if (workers == 7) unlink(first);
        }
}

/* ---- photographs ------------------------------------------------------------------------------------------------------------------------------ */

static void photographs(void **state)
{
    (void)state;
    const char *source = EN_TEST_DATA "/imagenet-sample";
    if (!there(source)) skip();
    packed(source, in_dir("x.h5"));
    en_dataset *a = opened(source, "train", NULL), *b = opened(in_dir("x.h5"), "train", NULL);
    assert_same_dataset(a, b);
    en_dataset_close(a);
    en_dataset_close(b);
}

#define IN_A_FOLDER(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_A_FOLDER(a_packed_file_is_the_folder),
        IN_A_FOLDER(every_kind_of_folder_is_read_alike),
        IN_A_FOLDER(classes_of_one_part_alone_are_as_in_the_folder),
        IN_A_FOLDER(odd_names_and_empty_files),
        IN_A_FOLDER(names_of_any_length_leave_the_images_at_the_end),
        IN_A_FOLDER(folder_and_file_give_equal_batches_on_any_ranks),
        IN_A_FOLDER(a_flipped_bit_is_found_and_in_training_replaced),
        IN_A_FOLDER(bad_files_are_named_counted_and_packed),
        IN_A_FOLDER(a_file_that_cannot_be_read_ends_it),
        IN_A_FOLDER(what_cannot_be_packed_is_said),
        IN_A_FOLDER(nothing_is_overwritten),
        IN_A_FOLDER(one_packer_at_a_time),
        IN_A_FOLDER(a_killed_packing_goes_on_and_ends_alike),
        IN_A_FOLDER(what_is_gone_on_with_is_checked),
        IN_A_FOLDER(a_full_disk_is_said_and_can_be_gone_on_from),
        IN_A_FOLDER(no_byte_is_without_a_checksum),
        IN_A_FOLDER(a_file_of_another_length_is_refused),
        IN_A_FOLDER(hostile_files_are_refused_with_a_reason),
        IN_A_FOLDER(hdf5_prints_nothing_by_itself),
        IN_A_FOLDER(max_side_shrinks_what_is_longer_and_nothing_else),
        IN_A_FOLDER(the_file_is_the_same_for_any_number_of_workers),
        IN_A_FOLDER(photographs),
    };
    return cmocka_run_group_tests_name("pack", tests, NULL, NULL);
}
