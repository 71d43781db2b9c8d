/* Stages as functions of the step, against the reference's own table (spec 4.6): sides, levels, alphas, ends. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/schedule.h"
#include "trainer/stages.h"

/* 107,336 steps: 350 epochs of 1,256,144 images, 4096 a step. */
static en_stages stages(int size, double magnitude, double alpha)
{
    const en_ramp none = { .to = -1 };
    return (en_stages){ .count = 4, .total_steps = en_total_steps(0, 350, 1256144, 4096), .size_from = 128, .size = size,
                        .magnitude = magnitude > 0 ? (en_ramp){ 5, magnitude } : none, .mixup = alpha > 0 ? (en_ramp){ 0, alpha } : none,
                        .cutmix = alpha > 0 ? (en_ramp){ 0, alpha } : none, .dropout = none };
}

static void near_to(double got, double want) { if (!(fabs(got - want) <= 1e-12)) fail_msg("%.17g instead of %.17g", got, want); }

static void sides_levels_and_alphas_are_the_references(void **state)
{
    (void)state;
    static const struct { const char *name; int size, sides[4]; double magnitude, alpha; } table[] = {
        { "S", 300, { 171, 214, 257, 300 }, 10, 0 },     { "M", 384, { 192, 256, 320, 384 }, 15, 0.2 },
        { "L, XL", 384, { 192, 256, 320, 384 }, 20, 0.5 }, { "B0, B1", 192, { 144, 160, 176, 192 }, 0, 0 },
        { "B2", 208, { 148, 168, 188, 208 }, 0, 0 },     { "B3", 240, { 156, 184, 212, 240 }, 0, 0 } };
    for (size_t k = 0; k < sizeof table / sizeof *table; k++) {
        const en_stages s = stages(table[k].size, table[k].magnitude, table[k].alpha);
        for (int i = 0; i < 4; i++) {
            const en_stage_values v = en_stage_values_of(&s, i);
            if (v.size != table[k].sides[i]) fail_msg("%s, stage %d: %d px instead of %d", table[k].name, i, v.size, table[k].sides[i]);
            near_to(v.magnitude, table[k].magnitude > 0 ? 5 + (table[k].magnitude - 5) * i / 3 : -1);
            near_to(v.mixup, table[k].alpha > 0 ? table[k].alpha * i / 3 : -1);
            near_to(v.cutmix, v.mixup);
            near_to(v.dropout, -1);
        }
    }
    char text[160];
    const en_stages m = stages(384, 15, 0.2);
    const en_stage_values v = en_stage_values_of(&m, 1);
    assert_string_equal(en_stage_text(&v, text, sizeof text), "256 px, magnitude 8.33, mixup 0.0667, cutmix 0.0667");
}

static void ends_are_the_references(void **state)
{
    (void)state;
    static const int64_t ends[] = { 26834, 53668, 80502, 107336 };
    const en_stages s = stages(300, 10, 0);
    assert_int_equal(s.total_steps, 107336);
    for (int i = 0; i < 4; i++) {
        const en_stage_values v = en_stage_values_of(&s, i);
        assert_int_equal(v.first, i ? ends[i - 1] : 0);
        assert_int_equal(v.end, ends[i]);
        assert_int_equal(en_stage_at(&s, v.first), i);
        assert_int_equal(en_stage_at(&s, v.end - 1), i);
    }
    assert_int_equal(en_stage_at(&s, 107336), 3);
    assert_int_equal(en_stage_at(&s, INT64_MAX), 3);
}

/* Every step is in one stage, also where the parts are not equal, and no stage is empty while there are steps enough. */
static void stages_cover_the_run(void **state)
{
    (void)state;
    for (int64_t total = 1; total < 40; total++)
        for (int count = 1; count <= total && count <= 9; count++) {
            en_stages s = stages(300, 10, 0);
            s.total_steps = total, s.count = count;
            int64_t step = 0;
            for (int i = 0; i < count; i++) {
                const en_stage_values v = en_stage_values_of(&s, i);
                assert_int_equal(v.first, step);
                assert_true(v.end > v.first);
                assert_int_equal(v.end, (i + 1) * total / count);
                for (; step < v.end; step++) assert_int_equal(en_stage_at(&s, step), i);
            }
            assert_int_equal(step, total);
        }
}

static void the_papers_ramp_begins_where_it_is_told(void **state)
{
    (void)state;
    static const int sides[] = { 128, 185, 242, 300 };                 /* 128 + 172*i/3 */
    en_stages s = stages(300, 15, 0);
    s.paper = true;
    s.dropout = (en_ramp){ 0.1, 0.3 };                                  /* the paper's M */
    for (int i = 0; i < 4; i++) {
        const en_stage_values v = en_stage_values_of(&s, i);
        assert_int_equal(v.size, sides[i]);
        near_to(v.dropout, 0.1 + 0.2 * i / 3);
    }
    near_to(en_stage_values_of(&s, 3).dropout, 0.3);
}

static void one_stage_changes_nothing(void **state)
{
    (void)state;
    en_stages s = stages(300, 10, 0.2);
    s.count = 1;
    const en_stage_values v = en_stage_values_of(&s, 0);
    assert_int_equal(v.size, 300);
    assert_int_equal(v.first, 0);
    assert_int_equal(v.end, 107336);
    near_to(v.magnitude, -1);
    near_to(v.mixup, -1);
    near_to(v.cutmix, -1);
    near_to(v.dropout, -1);
}

/* ---- what has been done must not be another thing afterwards --------------------------------------------------------------- */

static en_options parse(const char *text)
{
    static char words[8][400];
    static char *argv[8][40];
    static int next;
    const int k = next++ % 8;
    int argc = 0;
    bool help;
    en_options o;
    snprintf(words[k], sizeof words[k], "effnet train %s", text);
    for (char *w = strtok(words[k], " "); w; w = strtok(NULL, " ")) argv[k][argc++] = w;
    assert_int_equal(en_options_parse(EN_TRAIN, argc, argv[k], 2, &o, &help), EN_OK);
    return o;
}

static en_stages made(const char *text, int64_t total)
{
    const en_options o = parse(text);
    en_stages s;
    assert_int_equal(en_stages_check(&o), EN_OK);
    assert_int_equal(en_stages_of(&o, 64, 0.2, total, &s), EN_OK);
    return s;
}

/* 200 images, 10 a step */
static en_stages recalled(const char *text)
{
    const en_options o = parse(text);
    char *options = en_options_text(&o);
    const en_stages s = en_stages_recall(options, 64, 0.2, 200, 10);
    free(options);
    return s;
}

#define FOUR "--stages 4 --size-from 32 --augment randaugment --mixup 0.2 --dropout-from 0.1 "
static void a_checkpoint_says_the_same_stages(void **state)
{
    (void)state;
    static const char *const ways[] = { FOUR "--steps 40", FOUR "--epochs 2 --magnitude 9 --magnitude-from 3 --mix-from 0.1 --stage-ramp paper", "--steps 40" };
    for (size_t k = 0; k < sizeof ways / sizeof *ways; k++) {
        const en_stages a = made(ways[k], 40), b = recalled(ways[k]);
        assert_int_equal(en_stages_difference(&a, &b, 40), -1);
        assert_int_equal(en_stages_difference(&a, &b, 4000), -1);
    }
    const en_stages none = en_stages_recall(NULL, 64, 0.2, 200, 10), old = made("--steps 40", 40);
    assert_int_equal(none.count, 1);
    assert_int_equal(en_stages_difference(&none, &old, 40), -1);
}

static void the_first_step_that_differs_is_found(void **state)
{
    (void)state;
    const en_stages s = recalled(FOUR "--steps 40");                     /* 40, 48, 56, 64 px until 10, 20, 30, 40 */
    const struct { const char *options; int64_t total, first; } cases[] = {
        { FOUR, 40, -1 }, { FOUR, 44, 10 }, { FOUR, 36, 9 }, { FOUR "--stages 2", 40, 0 }, { FOUR "--size-from 40", 40, 0 }, { FOUR "--magnitude 11", 40, 10 },
        { FOUR "--mixup 0.3", 40, 10 }, { FOUR "--mix-from 0.1", 40, 0 }, { FOUR "--dropout-from 0", 40, 0 }, { FOUR "--stage-ramp paper", 40, 0 }, { "", 40, 0 },
        { FOUR "--cutmix 1", 40, 0 }, { FOUR "--augment basic", 40, 0 } };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        const en_stages now = made(cases[k].options, cases[k].total);
        const int64_t at = en_stages_difference(&s, &now, 40), before = cases[k].first < 0 ? 40 : cases[k].first;
        if (at != cases[k].first) fail_msg("%s of %lld: differs at step %lld, not %lld", cases[k].options, (long long)cases[k].total, (long long)at, (long long)cases[k].first);
        assert_int_equal(en_stages_difference(&now, &s, 40), cases[k].first);
        assert_int_equal(en_stages_difference(&s, &now, before), -1);
    }
}

/* ---- options that contradict each other --------------------------------------------------------------------------------------- */

static void refused(const char *options, const char *says)
{
    const en_options o = parse(options);
    en_stages s;
    en_status got = en_stages_check(&o);
    if (got == EN_OK) got = en_stages_of(&o, 64, 0.2, 40, &s);
    if (got != EN_EUSAGE || !strstr(en_error_message(), says)) fail_msg("%s: %d, '%s'", options, got, en_error_message());
    en_error_clear();
}

static void contradictions_are_refused(void **state)
{
    (void)state;
    refused("--size-from 32", "--size-from is of training in stages: give --stages too");
    refused("--magnitude-from 2 --augment randaugment", "--magnitude-from is of training in stages");
    refused("--stages 4", "--size-from 128 is above the size that images grow to, 64 px");
    refused("--stages 41 --size-from 32", "--stages 41 of 40 steps");
    refused("--stages 4 --size-from 32 --magnitude-from 2", "--magnitude-from is of --augment randaugment, not of autoaugment");
    refused("--stages 4 --size-from 32 --augment randaugment --magnitude-from 11", "--magnitude-from 11 is above --magnitude 10");
    refused("--stages 4 --size-from 32 --mix-from 0.1", "give one of them too");
    refused("--stages 4 --size-from 32 --mixup 0.2 --mix-from 0.3", "--mix-from 0.3 is above --mixup 0.2");
    refused("--stages 4 --size-from 32 --mixup 0.4 --cutmix 0.2 --mix-from 0.3", "--mix-from 0.3 is above --cutmix 0.2");
    refused("--stages 4 --size-from 32 --dropout-from 0.3", "--dropout-from 0.3 is above the dropout that it grows to, 0.2");
    const en_stages low = made("--stages 4 --size-from 32 --augment randaugment --magnitude 3", 40);       /* the default, 5, gives way */
    near_to(en_stage_values_of(&low, 0).magnitude, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sides_levels_and_alphas_are_the_references), cmocka_unit_test(ends_are_the_references), cmocka_unit_test(stages_cover_the_run),
        cmocka_unit_test(the_papers_ramp_begins_where_it_is_told),    cmocka_unit_test(one_stage_changes_nothing),
        cmocka_unit_test(a_checkpoint_says_the_same_stages),          cmocka_unit_test(the_first_step_that_differs_is_found),
        cmocka_unit_test(contradictions_are_refused),
    };
    return cmocka_run_group_tests_name("stages", tests, NULL, NULL);
}
