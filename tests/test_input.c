/* What the options mean for the input side, and when a run says that it waits for its images. */
#include "trainer/input.h"

#include <stdio.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static en_status parse(en_options *o, int n, char **words)
{
    bool help;
    return en_options_parse(EN_TRAIN, n, words, 0, o, &help);
}
#define PARSE(o, ...) parse(o, (int)(sizeof (char *[]){ __VA_ARGS__ } / sizeof(char *)), (char *[]){ __VA_ARGS__ })

static void options_become_an_augmentation(void **state)
{
    (void)state;
    en_options o;
    en_augment a;
    static const struct { const char *name; int policy; } policies[] = { { "autoaugment", EN_POLICY_V0 }, { "autoaugment-paper", EN_POLICY_PAPER },
                                                                         { "randaugment", EN_POLICY_RAND }, { "basic", EN_POLICY_NONE }, { "none", EN_POLICY_NONE } };
    for (int i = 0; i < 5; i++) {
        char name[32];
        snprintf(name, sizeof name, "%s", policies[i].name);
        assert_int_equal(PARSE(&o, "--augment", name), EN_OK);
        assert_int_equal(en_augment_of(&o, &a), EN_OK);
        assert_int_equal((int)a.policy, policies[i].policy);
        assert_true(en_augments_pixels(&a) == (policies[i].policy != EN_POLICY_NONE) && !en_augments_pairs(&a));
    }
    assert_int_equal(PARSE(&o, "--augment", "randaugment", "--magnitude", "28", "--rand-ops", "3", "--erase", "0.25", "--erase-fill", "mean", "--mixup", "0.2",
                           "--cutmix", "1"), EN_OK);
    assert_int_equal(en_augment_of(&o, &a), EN_OK);
    assert_true(a.rand_ops == 3 && a.magnitude == 28 && a.erase == 0.25 && a.erase_mean && a.mixup == 0.2 && a.cutmix == 1);
    assert_true(en_augments_pixels(&a) && en_augments_pairs(&a));
}

static void options_that_contradict_are_refused(void **state)
{
    (void)state;
    en_options o;
    en_augment a;
    assert_int_equal(PARSE(&o, "--augment", "autoaugment", "--magnitude", "9"), EN_OK);
    assert_int_equal(en_augment_of(&o, &a), EN_EUSAGE);
    assert_non_null(strstr(en_error_message(), "--augment randaugment"));
    assert_int_equal(PARSE(&o, "--augment", "none", "--mixup", "0.1"), EN_OK);
    assert_int_equal(en_augment_of(&o, &a), EN_EUSAGE);
    en_error_clear();
    assert_int_equal(PARSE(&o, "--erase-fill", "mean"), EN_OK);
    assert_int_equal(en_augment_of(&o, &a), EN_EUSAGE);
    assert_non_null(strstr(en_error_message(), "give --erase too"));
    assert_int_equal(PARSE(&o, "--erase-fill", "mean", "--erase", "0.2"), EN_OK);
    assert_int_equal(en_augment_of(&o, &a), EN_OK);
    assert_int_equal(PARSE(&o, "--augment", "randaugmnt"), EN_EUSAGE);
    en_error_clear();
}

static void resize_is_the_checkpoints_unless_given(void **state)
{
    (void)state;
    en_options o;
    assert_int_equal(PARSE(&o, "--fresh"), EN_OK);
    assert_int_equal((int)en_resize_of(&o, NULL).kernel, EN_RESIZE_BICUBIC);
    assert_int_equal((int)en_resize_of(&o, "seed=0\nresize=bilinear\n").kernel, EN_RESIZE_BILINEAR);
    assert_int_equal((int)en_resize_of(&o, "xresize=bilinear\nresize=auto\n").kernel, EN_RESIZE_BICUBIC);
    assert_string_equal(en_resize_of(&o, "resize=bicubic-aa").name, "bicubic-aa");
    assert_int_equal(PARSE(&o, "--resize", "bilinear-aa"), EN_OK);
    assert_int_equal((int)en_resize_of(&o, "resize=bilinear\n").kernel, EN_RESIZE_BILINEAR_AA);
}

/* Steps of 64 images: 20 ms of work and `wait` ms of waiting; an image costs 2 ms of a worker. */
static int spoken(en_input_watch *w, double wait, int steps, int cores, char text[600])
{
    int times = 0;
    for (int i = 0; i < steps; i++) {
        const en_step_report r = { .step_s = 0.02 + wait / 1e3, .data_s = wait / 1e3,
                                   .input = { .read_s = 0.1e-3 * 64, .decode_s = 1.3e-3 * 64, .resize_s = 0.2e-3 * 64, .augment_s = 0.4e-3 * 64, .images = 64 } };
        times += en_input_watch_step(w, &r, 64, 2, cores, text);
    }
    return times;
}

static void a_step_that_waits_says_so_once_with_what_would_help(void **state)
{
    (void)state;
    char text[600];
    en_input_watch w = { 0 };
    assert_int_equal(spoken(&w, 4, 1000, 16, text), 0);                    /* a sixth of the time */
    assert_int_equal(spoken(&w, 20, 1000, 16, text), 1);
    /* 64 images in 20 ms are 3200/s, 2 ms each: 6.4 workers, 5 % more: 7 */
    assert_non_null(strstr(text, "could take 3200 images/s"));
    assert_non_null(strstr(text, "2.00 ms (read 0.10, decode 1.30, resize 0.20, augment 0.40)"));
    assert_non_null(strstr(text, "7 workers, and there are 2. --workers 7 would do"));
    w = (en_input_watch){ 0 };
    assert_int_equal(spoken(&w, 20, EN_INPUT_SETTLING + EN_INPUT_WINDOW - 1, 4, text), 0);
    assert_int_equal(spoken(&w, 20, 1, 4, text), 1);
    assert_non_null(strstr(text, "more than this rank's cores"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_become_an_augmentation), cmocka_unit_test(options_that_contradict_are_refused),
        cmocka_unit_test(resize_is_the_checkpoints_unless_given),
        cmocka_unit_test(a_step_that_waits_says_so_once_with_what_would_help),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
