/* test_data_view.c - what is looked at and what pixels become where EfficientNetV2 differs from the first networks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "data/data.h"

static void names_are_read_back(void **state)
{
    (void)state;
    for (int i = 1; i < EN_NORMALISES; i++) assert_int_equal(en_normalise_named(en_normalise_name((en_normalising)i)), i);
    for (int i = 1; i < EN_EVAL_CROPS; i++) assert_int_equal(en_eval_crop_named(en_eval_crop_name((en_eval_crop)i)), i);
    static const char *const others[] = { "", "auto", "Half", "refer", "referenc", "references", "imagenet " };
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        assert_true(en_normalise_named(others[i]) == EN_NORMALISE_OWN && en_eval_crop_named(others[i]) == EN_EVAL_CROP_OWN);
    assert_memory_equal(en_normalise_by(EN_NORMALISE_IMAGENET), &en_imagenet_normalise, sizeof en_imagenet_normalise);
    assert_memory_equal(en_normalise_by(EN_NORMALISE_OWN), &en_imagenet_normalise, sizeof en_imagenet_normalise);
}

/* (v - 128) / 128 is exact in float; (v - 127.5) / 127.5 is [-1, 1]. */
static void bytes_become_numbers(void **state)
{
    (void)state;
    uint8_t v[768];
    float half[768], unit[768];
    for (int i = 0; i < 768; i++) v[i] = (uint8_t)(i / 3);
    en_normalise_bytes(v, 768, en_normalise_by(EN_NORMALISE_HALF), half);
    en_normalise_bytes(v, 768, en_normalise_by(EN_NORMALISE_UNIT), unit);
    for (int i = 0; i < 768; i++) {
        assert_true(half[i] == (float)(v[i] - 128) / 128);
        assert_true(unit[i] == ((float)v[i] - 127.5f) / 127.5f);
    }
    assert_true(unit[0] == -1 && unit[767] == 1);
}

/* The middle is rounded down by V2's code and up by the first one's; from 320 px V2 looks at all of the picture, whatever its shape. */
static void evaluation_looks_at_the_middle_or_at_all(void **state)
{
    (void)state;
    static const struct { en_eval_crop how; int64_t w, h; int size; int64_t x, y, side_w, side_h; } want[] = {
        { EN_EVAL_CROP_REFERENCE, 500, 375, 224, 86, 24, 328, 328 }, { EN_EVAL_CROP_OWN, 500, 375, 224, 86, 24, 328, 328 },
        { EN_EVAL_CROP_V2, 500, 375, 224, 86, 23, 328, 328 },        { EN_EVAL_CROP_V2, 500, 375, 319, 80, 17, 340, 340 },
        { EN_EVAL_CROP_V2, 500, 375, 320, 0, 0, 500, 375 },          { EN_EVAL_CROP_V2, 33, 500, 384, 0, 0, 33, 500 },
        { EN_EVAL_CROP_NONE, 500, 375, 32, 0, 0, 500, 375 },         { EN_EVAL_CROP_REFERENCE, 500, 375, 384, 77, 15, 346, 346 } };
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        const en_crop c = en_crop_evaluated(want[i].how, want[i].w, want[i].h, want[i].size);
        if (c.x != want[i].x || c.y != want[i].y || c.w != want[i].side_w || c.h != want[i].side_h || c.flip)
            fail_msg("%s at %d px of %d x %d: %d x %d at %d, %d", en_eval_crop_name(want[i].how), want[i].size, (int)want[i].w, (int)want[i].h, (int)c.w, (int)c.h, (int)c.x, (int)c.y);
    }
}

/* 5 % of the area at least, where the first sampler has 10 %; smaller crops do occur; a failure is the whole picture. */
static void v2_crops_are_smaller_at_the_least(void **state)
{
    (void)state;
    const int64_t w = 640, h = 480;
    enum { N = 20000 };
    int small = 0, whole = 0, flipped = 0;
    double share = 0;
    for (uint64_t k = 0; k < N; k++) {
        const en_crop c = en_crop_train_v2(w, h, 5, k / 100, k), again = en_crop_train_v2(w, h, 5, k / 100, k);
        const double area = (double)(c.w * c.h) / (double)(w * h), aspect = (double)c.w / (double)c.h;
        assert_memory_equal(&c, &again, sizeof c);
        assert_true(c.x >= 0 && c.y >= 0 && c.w > 0 && c.h > 0 && c.x + c.w <= w && c.y + c.h <= h);
        if (!c.whole && (area < 0.05 || area > 1 || aspect < 0.74 || aspect > 1.34)) fail_msg("%d x %d of %d x %d", (int)c.w, (int)c.h, (int)w, (int)h);
        small += area < 0.10;
        whole += c.whole;
        flipped += c.flip;
        share += area / N;
    }
    /* The height is uniform between sqrt(.05/a) and sqrt(1/a) of it: the mean area is about a third, a tenth of the crops is below 10 %. */
    assert_true(small > N / 20 && small < N / 5 && whole < N / 50 && share > 0.3 && share < 0.45);
    assert_true(flipped > N / 2 - 4 * 71 && flipped < N / 2 + 4 * 71);             /* four standard deviations of 20,000 coins */
    const en_crop thin = en_crop_train_v2(3000, 4, 1, 0, 0);                        /* no such aspect fits 5 % of it */
    assert_true(thin.whole && thin.w == 3000 && thin.h == 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_are_read_back), cmocka_unit_test(bytes_become_numbers), cmocka_unit_test(evaluation_looks_at_the_middle_or_at_all),
        cmocka_unit_test(v2_crops_are_smaller_at_the_least),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
