/* A packed file holds what its folder holds, in its order, and gives the same batches; --max-side makes smaller what is larger.  Oracle: the
 * folder's dataset. */
#define _GNU_SOURCE
#include "pack_help.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SIZE = 24, ELEMS = SIZE * SIZE * 3 };

static void a_packed_file_is_the_folder(void **state)
{
    (void)state;
    shapes("two", 5);
    const en_pack_report r = packed(in_dir("two"), in_dir("two.h5"));
    assert_true(r.samples == 50 && r.classes == 5 && r.bad == 0 && r.shrunk == 0);
    struct stat st;
    assert_true(stat(in_dir("two.h5"), &st) == 0 && st.st_size == r.bytes_out && !there(in_dir("two.h5.partial")));
    assert_same(in_dir("two"), in_dir("two.h5"), "train", false);
    assert_same(in_dir("two"), in_dir("two.h5"), "val", false);
    assert_same(in_dir("two"), in_dir("two.h5"), "val", true);
    en_pack_report v;
    OK(en_pack_verify(in_dir("two.h5"), 2, true, &v));
    assert_true(v.samples == 50 && v.damaged == 0 && v.bytes_out == st.st_size);
}

/* Locks are missing on many network file systems, and whoever holds one may have died. */
static void a_locked_file_is_read_all_the_same(void **state)
{
    (void)state;
    shapes("two", 3);
    packed(in_dir("two"), in_dir("two.h5"));
    assert_int_equal(chmod(in_dir("two.h5"), 0444), 0);
    const int fd = open(in_dir("two.h5"), O_RDONLY);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    assert_same(in_dir("two"), in_dir("two.h5"), "train", false);
    close(fd);
}

static void every_kind_of_folder_is_read_alike(void **state)
{
    (void)state;
    shapes("two", 4);
    /* no parts: DIR/<class> */
    char flat[4096];
    snprintf(flat, sizeof flat, "%s/two/train", dir);
    packed(flat, in_dir("flat.h5"));
    assert_same(flat, in_dir("flat.h5"), "train", false);
    assert_same(flat, in_dir("flat.h5"), "val", false);
    assert_false(en_dataset_has(in_dir("flat.h5"), "val") || en_dataset_has(flat, "val"));
    assert_false(en_dataset_has(in_dir("flat.h5"), "train") || en_dataset_has(flat, "train"));
    /* one part of two */
    en_pack_config c = config_of(in_dir("two"), in_dir("val.h5"));
    en_pack_report r;
    c.split = "val";
    OK(en_pack(&c, &r));
    assert_same(in_dir("two"), in_dir("val.h5"), "val", false);
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
    assert_same(dir, in_dir("x.h5"), "train", false);
    assert_same(dir, in_dir("x.h5"), "val", false);
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
    assert_same(dir, in_dir("x.h5"), "train", false);
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
    if (!strstr(message, "2 of 50 samples") || !strstr(message, strchr(name, ':') + 1) || !strstr(message, strchr(other, ':') + 1))
        fail_msg("%s", message);
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
            assert_true(fabs((double)after.w - fmax(1, scale * (double)before.w)) <= 0.5);
            assert_true(fabs((double)after.h - fmax(1, scale * (double)before.h)) <= 0.5);
            /* The brightness: colour is stored at half the resolution.  Quality 100 rounds each coefficient to a whole number, and colours to
             * whole levels: about half a level each; bicubic and mean differ at the few edges alone.  A picture that is off by one pixel, or
             * flipped, is off by more than 3. */
            static const double luma[3] = { 0.299, 0.587, 0.114 };
            double sum = 0;
            for (int64_t y = 0; y < after.h; y++)
                for (int64_t x = 0; x < after.w; x++) {
                    double off = 0;
                    for (int d = 0; d < 3; d++)
                        off += luma[d] * (area_mean(&before, after.w, after.h, x, y, d) - after.rgb[(y * after.w + x) * 3 + d]);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_A_FOLDER(a_packed_file_is_the_folder),
        IN_A_FOLDER(a_locked_file_is_read_all_the_same),
        IN_A_FOLDER(every_kind_of_folder_is_read_alike),
        IN_A_FOLDER(classes_of_one_part_alone_are_as_in_the_folder),
        IN_A_FOLDER(odd_names_and_empty_files),
        IN_A_FOLDER(names_of_any_length_leave_the_images_at_the_end),
        IN_A_FOLDER(folder_and_file_give_equal_batches_on_any_ranks),
        IN_A_FOLDER(a_flipped_bit_is_found_and_in_training_replaced),
        IN_A_FOLDER(max_side_shrinks_what_is_longer_and_nothing_else),
        IN_A_FOLDER(the_file_is_the_same_for_any_number_of_workers),
        IN_A_FOLDER(photographs),
    };
    return cmocka_run_group_tests_name("pack", tests, NULL, NULL);
}
