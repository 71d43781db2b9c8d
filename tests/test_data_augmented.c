/* Augmented and mixed batches: what the loader makes of a picture's functions.  The operations have a test of their own
 * (test_data_augment); here the question is whether each picture gets exactly its own, once, wherever it is made. */
#include "data_stream.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SIZE = STREAM_SIZE, ELEMS = SIZE * SIZE * 3, CLASSES = 5, PER_CLASS = 7 };

static char       *dir;
static en_dataset *good, *spoilt;

static int setup(void **state)
{
    (void)state;
    dir = temp_open();
    char path[2][4096];
    for (int i = 0; i < 2; i++) {
        snprintf(path[i], sizeof path[i], "%s/%d", dir, i);
        OK(en_synth_write(path[i], CLASSES, PER_CLASS, 0, 40, 1));
    }
    put_file(path[1], "train/circles/aaa.jpg", "not an image", 12);
    put_file(path[1], "train/dots/zzz.jpg", "", 0);
    OK(en_dataset_open(path[0], "train", NULL, &good));
    OK(en_dataset_open(path[1], "train", NULL, &spoilt));
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

static const en_augment kinds[] = {
    { .policy = EN_POLICY_V0 }, { .policy = EN_POLICY_PAPER }, { .policy = EN_POLICY_RAND, .rand_ops = 2, .magnitude = 17, .erase = 0.5 },
    { .erase = 1, .erase_mean = true }, { .mixup = 0.2 }, { .cutmix = 1 }, { .policy = EN_POLICY_V0, .mixup = 0.5, .cutmix = 0.5 },
};
enum { KINDS = sizeof kinds / sizeof *kinds };

/* One picture before it is mixed, made by hand.  A picture that cannot be decoded is replaced by the documented rule. */
static void picture(const en_loader_config *c, int64_t position, uint8_t *as_bytes, float *floats, int64_t *used)
{
    const en_dataset *ds = c->dataset;
    int64_t epoch;
    const int64_t wanted = en_sampler_at(c->seed, ds->samples, position, &epoch);
    int64_t sample = wanted;
    en_image img;
    for (uint32_t k = 1; !stream_decodes(ds, sample, &img); k++) {
        en_rng rng = en_rng_at(c->seed, EN_RNG_REPLACE, (uint64_t)epoch, (uint64_t)wanted, k);
        sample = en_rng_below(&rng, (uint32_t)(ds->samples - 1));
        if (sample >= wanted) sample++;
    }
    const en_crop crop = en_crop_train(img.w, img.h, img.channels, SIZE, c->seed, (uint64_t)epoch, (uint64_t)sample);
    const bool augmented = en_augments_pixels(&c->augment);
    en_resize_bytes(&img, &crop, c->kernel, SIZE, augmented, as_bytes);
    if (augmented) {
        uint8_t spare[ELEMS];
        en_augment_pixels(&c->augment, SIZE, c->seed, (uint64_t)epoch, (uint64_t)sample, as_bytes, spare);
        en_normalise_bytes(as_bytes, ELEMS, &c->normalise, floats);
    } else {
        en_resize(&img, &crop, c->kernel, SIZE, &c->normalise, floats);
    }
    en_image_free(&img);
    *used = sample;
}

/* The first `steps` steps without a loader. */
static stream straight(const en_loader_config *c, int64_t steps)
{
    stream s = { 0 };
    const int64_t batch = c->shard.global_batch;
    const bool pairs = en_augments_pairs(&c->augment);
    for (int64_t p = 0; p < steps * batch; p++) {
        uint8_t as_bytes[2][ELEMS];
        float floats[2][ELEMS];
        int64_t used[2];
        const int64_t place = p % batch, other = (place ^ 1) < batch ? p - place + (place ^ 1) : p;
        picture(c, p, as_bytes[0], floats[0], &used[0]);
        float share = 1;
        int32_t mate = c->dataset->labels[used[0]];
        if (pairs && other != p) {
            int64_t epoch[2];
            const int64_t mine = en_sampler_at(c->seed, c->dataset->samples, p, &epoch[0]), its = en_sampler_at(c->seed, c->dataset->samples, other, &epoch[1]);
            picture(c, other, as_bytes[1], floats[1], &used[1]);
            const en_mix a = en_mix_draw(&c->augment, SIZE, place / 2, c->seed, (uint64_t)epoch[0], (uint64_t)mine),
                         b = en_mix_draw(&c->augment, SIZE, place / 2, c->seed, (uint64_t)epoch[1], (uint64_t)its);
            en_mix_bytes(&a, &b, SIZE, as_bytes[0], as_bytes[1]);
            en_mix_floats(&a, &b, SIZE, floats[0], floats[1]);
            share = a.share;
            mate = c->dataset->labels[used[1]];
        }
        stream_add(&s, SIZE, &(en_batch){ .n = 1, .samples = &used[0], .labels = &c->dataset->labels[used[0]], .mates = &mate, .shares = &share,
                                          .images = c->u8 ? NULL : floats[0], .bytes = c->u8 ? as_bytes[0] : NULL });
    }
    return s;
}

static void each_picture_gets_its_own_on_any_number_of_ranks_and_threads(void **state)
{
    (void)state;
    static const int worlds[] = { 1, 2, 4, 7 };
    for (int k = 0; k < KINDS; k++)
        for (int u8 = 0; u8 < 2; u8++) {
            en_loader_config c = stream_config(k % 2 ? spoilt : good, true, 14 + (k == 6), 1, 1);       /* 15: one without a mate */
            c.augment = kinds[k];
            c.u8 = u8;
            c.kernel = k % 4;
            stream want = straight(&c, 6);                     /* two epochs and more */
            for (int w = 0; w < 4; w++) {
                c.workers = 1 + (w + k) % 4;
                c.shard.accum = 1 + (w + u8) % 3;
                stream got = stream_run(c, worlds[w], 6 * c.shard.accum);
                char what[80];
                snprintf(what, sizeof what, "kind %d, u8 %d, %d ranks, accum %d", k, u8, worlds[w], (int)c.shard.accum);
                stream_same(&got, &want, what);
                stream_free(&got);
            }
            stream_free(&want);
        }
}

static void a_resumed_run_mixes_the_same_pairs(void **state)
{
    (void)state;
    en_loader_config c = stream_config(good, true, 10, 1, 3);
    c.augment = kinds[6];
    stream want = straight(&c, 8);
    for (int64_t at = 1; at < 8; at += 2) {
        c.first_step = at;
        stream rest = stream_run(c, 3, 8 - at);
        const stream tail = { .n = want.n - 10 * at, .samples = want.samples + 10 * at, .labels = want.labels + 10 * at, .mates = want.mates + 10 * at,
                              .shares = want.shares + 10 * at, .images = want.images + (size_t)(10 * at) * want.image_bytes, .image_bytes = want.image_bytes };
        stream_same(&rest, &tail, "resumed on three ranks");
        stream_free(&rest);
    }
    stream_free(&want);
}

static void mixing_takes_from_another_picture(void **state)    /* guards against pairs of a picture with itself */
{
    (void)state;
    en_loader_config c = stream_config(good, true, 16, 1, 2);
    c.augment = (en_augment){ .mixup = 1 };
    stream s = stream_run(c, 1, 10);
    int64_t others = 0;
    double sum = 0;
    for (int64_t i = 0; i < s.n; i++) {
        assert_true(s.shares[i] >= 0.5f && s.shares[i] <= 1);
        assert_int_equal(s.mates[i], s.labels[i ^ 1]);
        others += s.samples[i] != s.samples[i ^ 1];
        sum += s.shares[i];
    }
    assert_true(others > s.n * 9 / 10);
    assert_true(sum / (double)s.n > 0.68 && sum / (double)s.n < 0.82);     /* max(l, 1-l), l uniform: mean 3/4, deviation of the mean of 160 is 0.011 */
    stream_free(&s);
}

static void evaluation_is_not_augmented(void **state)
{
    (void)state;
    en_loader_config c = stream_config(good, false, 9, 1, 2);
    stream plain = stream_run(c, 1, 4);
    c.augment = kinds[6];
    stream asked = stream_run(c, 1, 4);
    stream_same(&asked, &plain, "evaluation");
    stream_free(&plain);
    stream_free(&asked);
}

static void bytes_ahead_are_batches_ahead(void **state)
{
    (void)state;
    en_loader_config c = stream_config(good, true, 10, 1, 2);
    const size_t batch = 10 * ELEMS * sizeof(float);
    assert_int_equal(en_loader_bytes(&c), 3 * batch);          /* two ahead, one lent */
    stream want = stream_run(c, 1, 12);
    for (size_t n = 1; n < 9; n += 3) {
        c.ahead_bytes = n * batch + batch / 2;
        assert_int_equal(en_loader_bytes(&c), (n + 1) * batch);
        stream got = stream_run(c, 1, 12);
        stream_same(&got, &want, "bytes ahead");
        stream_free(&got);
    }
    c.ahead_bytes = 1;                                         /* less than a batch: one all the same */
    assert_int_equal(en_loader_bytes(&c), 2 * batch);
    stream_free(&want);

    c = stream_config(good, false, 10, 1, 2);                  /* an evaluation has an end: no more than its batches */
    want = stream_run(c, 1, 4);
    c.ahead_bytes = 1000 * batch;
    assert_int_equal(en_loader_bytes(&c), ((good->samples - 1) / 10 + 1) * batch);
    stream got = stream_run(c, 1, 4);
    stream_same(&got, &want, "an evaluation");
    stream_free(&got);
    stream_free(&want);
}

static void time_is_told_apart(void **state)
{
    (void)state;
    en_loader_config c = stream_config(good, true, 35, 1, 2);
    c.augment = kinds[0];
    en_loader *l;
    en_batch b;
    OK(en_loader_open(&c, &l));
    OK(en_loader_next(l, &b));
    const en_loader_times t = en_loader_spent(l);
    assert_true(t.images >= 35 && t.cached == 0);
    assert_true(t.read_s > 0 && t.decode_s > 0 && t.resize_s > 0 && t.augment_s > 0);
    en_loader_close(l);
}

static void a_cache_changes_nothing_but_the_time(void **state)
{
    (void)state;
    en_loader_config c = stream_config(spoilt, true, 12, 1, 3);
    c.cache_side = 32;                                         /* pictures have 40 */
    c.augment = kinds[0];
    const en_cache_config cold = { .place = dir, .side = 32, .samples = spoilt->samples, .token = 1 }, warm = { .place = dir, .side = 32,
                                   .samples = spoilt->samples, .token = 2 };
    OK(en_cache_open(&cold, &c.cache));
    en_cache_unlink(c.cache);
    stream want = stream_run(c, 1, 12);                        /* four epochs: decoded, then cached */
    en_cache_close(c.cache);
    OK(en_cache_open(&warm, &c.cache));
    en_cache_unlink(c.cache);
    for (int turn = 0; turn < 2; turn++) {                     /* shared by three ranks; the second time everything is there */
        stream got = stream_run(c, 3, 12);
        stream_same(&got, &want, "cached");
        stream_free(&got);
    }
    int64_t pictures;
    assert_true(en_cache_bytes(c.cache, &pictures) > 0 && !en_cache_full(c.cache));
    assert_int_equal(pictures, CLASSES * PER_CLASS);           /* each once, none of the bad ones */
    en_loader *l;
    en_batch b;
    OK(en_loader_open(&c, &l));
    for (int i = 0; i < 3; i++) OK(en_loader_next(l, &b));
    const en_loader_times t = en_loader_spent(l);
    assert_true(t.cached == t.images);
    en_loader_close(l);
    en_cache_close(c.cache);
    stream_free(&want);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_picture_gets_its_own_on_any_number_of_ranks_and_threads),
        cmocka_unit_test(a_resumed_run_mixes_the_same_pairs),
        cmocka_unit_test(mixing_takes_from_another_picture),
        cmocka_unit_test(evaluation_is_not_augmented),
        cmocka_unit_test(bytes_ahead_are_batches_ahead),
        cmocka_unit_test(time_is_told_apart),
        cmocka_unit_test(a_cache_changes_nothing_but_the_time),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
