/* The loader: the same batches whatever the number of workers, ranks and resumes; bad files; the end of an evaluation; and
 * ends at awkward moments.  Oracle of a batch: the functions of data.h called one after the other, without threads. */
#include "data_stream.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SIZE = STREAM_SIZE, ELEMS = SIZE * SIZE * 3, IMAGE = ELEMS * sizeof(float), CLASSES = 5, PER_CLASS = 7 };       /* 35 good files */

static char       *dir;
static en_dataset *good, *spoilt;              /* spoilt: the same files and four bad ones, 39 in all */

static int setup(void **state)
{
    (void)state;
    dir = temp_open();
    char good_dir[4096], bad_dir[4096];
    snprintf(good_dir, sizeof good_dir, "%s/good", dir);
    snprintf(bad_dir, sizeof bad_dir, "%s/bad", dir);
    OK(en_synth_write(good_dir, CLASSES, PER_CLASS, 0, 40, 1));
    OK(en_synth_write(bad_dir, CLASSES, PER_CLASS, 0, 40, 1));
    put_file(bad_dir, "train/circles/aaa.jpg", "not an image", 12);
    put_file(bad_dir, "train/circles/zzz.jpg", "", 0);
    put_file(bad_dir, "train/gradients/m.jpg", "\xff\xd8\xff\xe0", 4);
    if (symlink("nowhere", path_in(bad_dir, "train/dots/link.jpg")) != 0) fail_msg("symlink");
    OK(en_dataset_open(good_dir, "train", NULL, &good));
    OK(en_dataset_open(bad_dir, "train", NULL, &spoilt));
    assert_int_equal(good->samples, CLASSES * PER_CLASS);
    assert_int_equal(spoilt->samples, CLASSES * PER_CLASS + 4);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    en_dataset_close(good);
    en_dataset_close(spoilt);
    temp_close(dir);
    return 0;
}

/* Positions [0, n) of the training stream without a loader; bad files replaced by the documented rule. */
static stream straight(const en_dataset *ds, uint64_t seed, int64_t n)
{
    stream s = { 0 };
    for (int64_t p = 0; p < n; p++) {
        int64_t epoch;
        const int64_t wanted = en_sampler_at(seed, ds->samples, p, &epoch);
        int64_t sample = wanted;
        en_image img;
        for (uint32_t k = 1; !stream_decodes(ds, sample, &img); k++) {
            en_rng rng = en_rng_at(seed, EN_RNG_REPLACE, (uint64_t)epoch, (uint64_t)wanted, k);
            sample = en_rng_below(&rng, (uint32_t)(ds->samples - 1));
            if (sample >= wanted) sample++;
        }
        float pixels[ELEMS];
        const en_crop crop = en_crop_train(img.w, img.h, img.channels, SIZE, seed, (uint64_t)epoch, (uint64_t)sample);
        en_resize_bicubic(&img, &crop, SIZE, &en_imagenet_normalise, pixels);
        en_image_free(&img);
        stream_add(&s, SIZE, &(en_batch){ .n = 1, .samples = &sample, .labels = &ds->labels[sample], .images = pixels });
    }
    return s;
}

static void batches_are_the_same_for_any_workers_and_ranks(void **state)
{
    (void)state;
    const en_dataset *sets[] = { good, spoilt };
    for (int d = 0; d < 2; d++) {
        stream want = straight(sets[d], 17, 12 * 10);          /* 10 steps of 12: three epochs and more */
        for (int workers = 1; workers <= 5; workers++)
            for (int world = 1; world <= 4; world++) {
                const int64_t accum = 1 + workers % 3;
                stream got = stream_run(stream_config(sets[d], true, 12, accum, workers), world, 10 * accum);
                char what[80];
                snprintf(what, sizeof what, "set %d, %d workers, %d ranks, accum %d", d, workers, world, (int)accum);
                stream_same(&got, &want, what);
                stream_free(&got);
            }
        stream_free(&want);
    }
}

static void a_batch_that_does_not_divide_is_shared_all_the_same(void **state)
{
    (void)state;
    stream want = straight(good, 17, 7 * 6);
    for (int world = 1; world <= 8; world++) {                 /* with 8 ranks, some have nothing to do */
        stream got = stream_run(stream_config(good, true, 7, 2, 2), world, 12);
        stream_same(&got, &want, "7 images a step");
        stream_free(&got);
    }
    stream_free(&want);
}

static void a_batch_says_where_it_is(void **state)
{
    (void)state;
    en_loader *l;
    const en_loader_config c = stream_config(good, true, 10, 2, 2);
    OK(en_loader_open(&c, &l));
    for (int64_t b = 0; b < 20; b++) {
        en_batch batch;
        OK(en_loader_next(l, &batch));
        assert_true(batch.n == 5 && batch.first == 5 * b && batch.epoch == 5 * b / good->samples);
        for (int i = 0; i < 5; i++) assert_int_equal(batch.labels[i], good->labels[batch.samples[i]]);
    }
    assert_int_equal(en_loader_steps(l), -1);
    assert_true(en_loader_wait_s(l) >= 0);
    en_loader_close(l);
}

static void a_resumed_run_goes_on_where_it_was(void **state)
{
    (void)state;
    en_loader_config c = stream_config(spoilt, true, 12, 2, 3);
    stream whole = stream_run(c, 1, 24);
    for (int64_t at = 1; at < 12; at += 3) {
        c.first_step = at;
        stream rest = stream_run(c, 1, 24 - 2 * at);
        const stream tail = { .n = whole.n - 12 * at, .samples = whole.samples + 12 * at, .labels = whole.labels + 12 * at,
                              .images = whole.images + 12 * at * IMAGE, .image_bytes = IMAGE };
        stream_same(&rest, &tail, "resumed");
        stream_free(&rest);
    }
    stream_free(&whole);
}

static void evaluation_takes_every_image_once(void **state)
{
    (void)state;
    for (int d = 0; d < 2; d++) {
        const en_dataset *ds = d ? spoilt : good;
        stream want = { 0 };
        for (int64_t i = 0; i < ds->samples; i++) {
            en_image img;
            if (!stream_decodes(ds, i, &img)) continue;
            float pixels[ELEMS];
            const en_crop crop = en_crop_eval(img.w, img.h, SIZE);
            en_resize_bicubic(&img, &crop, SIZE, &en_imagenet_normalise, pixels);
            en_image_free(&img);
            stream_add(&want, SIZE, &(en_batch){ .n = 1, .samples = &i, .labels = &ds->labels[i], .images = pixels });
        }
        assert_int_equal(want.n, 35);
        for (int64_t batch = 1; batch <= 50; batch += 7)
            for (int world = 1; world <= 5; world++) {
                const en_loader_config c = stream_config(ds, false, batch, 1, 1 + world % 3);
                const int64_t steps = (ds->samples + batch - 1) / batch;
                stream got = stream_run(c, world, steps + 2);         /* two more calls find nothing */
                stream_same(&got, &want, "evaluation");
                stream_free(&got);
                en_loader *l;
                OK(en_loader_open(&c, &l));
                assert_int_equal(en_loader_steps(l), steps);
                en_loader_close(l);
            }
        stream_free(&want);
    }
}

static void center_crop_trains_on_the_evaluation_crop(void **state)
{
    (void)state;
    en_loader_config c = stream_config(good, true, 35, 1, 2);
    c.center_crop = true;
    stream train = stream_run(c, 1, 1), eval = stream_run(stream_config(good, false, 35, 1, 2), 1, 1);
    for (int64_t i = 0; i < 35; i++) assert_memory_equal(train.images + i * IMAGE, eval.images + train.samples[i] * IMAGE, IMAGE);
    stream_free(&train);
    stream_free(&eval);
}

/* ---- bad files ---- */

static void count_bad(void *workers)
{
    en_loader_config c = stream_config(spoilt, true, 13, 1, *(int *)workers);
    c.shard.rank = 0;
    en_loader *l;
    OK(en_loader_open(&c, &l));
    for (int i = 0; i < 12; i++) {             /* four epochs: each bad file is met four times */
        en_batch b;
        OK(en_loader_next(l, &b));
    }
    const char *const *files;
    assert_int_equal(en_loader_bad(l, &files), 4);
    for (int i = 0; i < 4; i++) assert_true(strstr(files[i], "aaa.jpg") || strstr(files[i], "zzz.jpg")
                                            || strstr(files[i], "/m.jpg") || strstr(files[i], "link.jpg"));
    en_loader_close(l);
}

static void a_bad_file_is_named_once_and_in_the_same_order(void **state)
{
    (void)state;
    char *first = NULL;
    for (int workers = 1; workers <= 4; workers++) {
        char *text = stderr_of(count_bad, &workers);
        int lines = 0;
        for (const char *p = text; (p = strstr(p, "rank 0: bad file ")); p++) lines++;
        assert_int_equal(lines, 4);
        assert_non_null(strstr(text, "aaa.jpg is not an image (text, 12 bytes)"));
        assert_non_null(strstr(text, "leads nowhere"));
        if (first) assert_string_equal(text, first);
        if (first) free(text);
        else first = text;
    }
    free(first);
}

static en_status until_refused(const en_loader_config *c, int calls)
{
    en_loader *l;
    OK(en_loader_open(c, &l));
    en_status status = EN_OK;
    en_batch b;
    en_error_clear();
    for (int i = 0; i < calls && status == EN_OK; i++) status = en_loader_next(l, &b);
    if (status != EN_OK) {
        char text[2048];
        snprintf(text, sizeof text, "%s", en_error_message());
        en_error_clear();
        assert_int_equal(en_loader_next(l, &b), status);       /* it stays so */
        assert_int_equal(b.n, 0);
        assert_non_null(strstr(text, ".jpg"));
    }
    en_loader_close(l);
    return status;
}

static void too_many_bad_files_end_the_run(void **state)
{
    (void)state;
    en_loader_config c = stream_config(spoilt, true, 13, 1, 2);    /* 39 files, 4 of them bad */
    static const struct { double share; en_status status; } cases[] = {
        { 0, EN_EDATA }, { 0.01, EN_EDATA }, { 0.1, EN_EDATA }, { 0.11, EN_OK }, { 1, EN_OK } };
    for (int training = 0; training < 2; training++)
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            c.training = training;
            c.max_bad_fraction = cases[i].share;
            assert_int_equal(until_refused(&c, 3), cases[i].status);
        }
    en_loader_config clean = stream_config(good, true, 13, 1, 2);
    clean.max_bad_fraction = 0;
    assert_int_equal(until_refused(&clean, 6), EN_OK);
}

static void one_bad_file_is_allowed_when_any_is(void **state)
{
    (void)state;
    put_file(dir, "one/a/1.jpg", "bad", 3);
    bytes png;
    uint8_t *rgb = make_picture(8, 8, 1);
    png = make_png(rgb, 24, 8, 8, 2, 8, 0);
    put_file(dir, "one/a/2.png", png.at, png.n);
    put_file(dir, "one/a/3.png", png.at, png.n);
    put_file(dir, "none/a/1.jpg", "bad", 3);
    put_file(dir, "none/a/2.jpg", "bad", 3);
    bytes_free(&png);
    free(rgb);
    en_dataset *one, *none;
    OK(en_dataset_open(path_in(dir, "one"), "train", NULL, &one));
    OK(en_dataset_open(path_in(dir, "none"), "train", NULL, &none));
    en_loader_config c = stream_config(one, true, 3, 1, 1);
    c.max_bad_fraction = 0.01;
    assert_int_equal(until_refused(&c, 5), EN_OK);
    c.dataset = none;
    c.max_bad_fraction = 1;                    /* all may be bad, but then there is nothing to put in their place */
    assert_int_equal(until_refused(&c, 5), EN_EDATA);
    en_dataset_close(one);
    en_dataset_close(none);
}

/* ---- a dataset that fails in ways files do not ---- */

static en_status read_or_fail(const en_dataset *ds, int64_t i, uint8_t **buf, size_t *capacity, size_t *n)
{
    if (i == 20) return en_raise(EN_ENOMEM, __FILE__, __LINE__, __func__, "out of it at 20");
    return good->ops->read(ds, i, buf, capacity, n);
}

static void other_errors_reach_the_caller(void **state)
{
    (void)state;
    const struct en_dataset_ops ops = { .read = read_or_fail };
    en_dataset failing = *good;
    failing.ops = &ops;
    const en_loader_config c = stream_config(&failing, false, 8, 1, 3);
    en_loader *l;
    OK(en_loader_open(&c, &l));
    en_batch b;
    en_status status = EN_OK;
    for (int i = 0; i < 5 && status == EN_OK; i++) {
        en_error_clear();
        status = en_loader_next(l, &b);
    }
    assert_int_equal(status, EN_ENOMEM);
    assert_non_null(strstr(en_error_message(), "out of it at 20"));
    en_loader_close(l);
}

/* A file system that does not answer for sample 20, until the test lets it */
static atomic_int held;                        /* 0: let go, 1: hold it, 2: held */

static en_status read_or_hang(const en_dataset *ds, int64_t i, uint8_t **buf, size_t *capacity, size_t *n)
{
    if (i == 20 && held) for (held = 2; held; usleep(1000)) continue;
    return good->ops->read(ds, i, buf, capacity, n);
}

static void a_file_that_is_waited_for_has_a_name(void **state)
{
    (void)state;
    const struct en_dataset_ops ops = { .read = read_or_hang };
    en_dataset hanging = *good;
    char words[600];
    hanging.ops = &ops;
    held = 1;
    const en_loader_config c = stream_config(&hanging, false, 32, 1, 3);
    en_loader *l;
    OK(en_loader_open(&c, &l));
    for (int i = 0; i < 30000; i++, usleep(1000)) {                /* the other workers run out of work: it is the one that is left */
        en_loader_slowest(l, words, sizeof words);
        if (held == 2 && strstr(words, good->files[20])) break;
    }
    assert_non_null(strstr(words, "at work on "));
    assert_non_null(strstr(words, good->files[20]));
    held = 0;
    en_batch b;
    OK(en_loader_next(l, &b));
    en_loader_close(l);
}

static void it_may_be_closed_at_any_time(void **state)
{
    (void)state;
    for (int workers = 1; workers <= 4; workers++)
        for (int calls = 0; calls < 6; calls++)
            for (int d = 0; d < 2; d++) {
                en_loader_config c = stream_config(d ? spoilt : good, calls % 2, 11, 1, workers);
                c.ahead = 1 + calls;
                en_loader *l;
                OK(en_loader_open(&c, &l));
                for (int i = 0; i < calls; i++) {
                    en_batch b;
                    OK(en_loader_next(l, &b));
                }
                if (calls == 3) usleep(1000);
                en_loader_close(l);
            }
    en_loader_close(NULL);
}

static void silly_configurations_are_refused(void **state)
{
    (void)state;
    en_loader *l;
    en_loader_config c = stream_config(good, true, 8, 1, 1);
    c.ahead = 0;
    assert_int_equal(en_loader_open(&c, &l), EN_EINVAL);
    c = stream_config(good, true, 8, 1, 1);
    c.shard.rank = 1;
    assert_int_equal(en_loader_open(&c, &l), EN_EINVAL);
    c = stream_config(good, true, 8, 1, 1);
    c.normalise.std[1] = 0;
    assert_int_equal(en_loader_open(&c, &l), EN_EINVAL);
#if !defined __SANITIZE_ADDRESS__ && !defined __SANITIZE_THREAD__      /* these end the program instead of returning NULL */
    c = stream_config(good, true, (int64_t)1 << 50, 1, 1);
    assert_int_equal(en_loader_open(&c, &l), EN_ENOMEM);
#endif
    assert_null(l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(batches_are_the_same_for_any_workers_and_ranks),
        cmocka_unit_test(a_batch_that_does_not_divide_is_shared_all_the_same),
        cmocka_unit_test(a_batch_says_where_it_is),
        cmocka_unit_test(a_resumed_run_goes_on_where_it_was),
        cmocka_unit_test(evaluation_takes_every_image_once),
        cmocka_unit_test(center_crop_trains_on_the_evaluation_crop),
        cmocka_unit_test(a_bad_file_is_named_once_and_in_the_same_order),
        cmocka_unit_test(too_many_bad_files_end_the_run),
        cmocka_unit_test(one_bad_file_is_allowed_when_any_is),
        cmocka_unit_test(other_errors_reach_the_caller),
        cmocka_unit_test(a_file_that_is_waited_for_has_a_name),
        cmocka_unit_test(it_may_be_closed_at_any_time),
        cmocka_unit_test(silly_configurations_are_refused),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
