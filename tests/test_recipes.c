/* test_recipes.c - the rows of --recipe: every one can be set, what was given stays, and what a run goes on with is what it began with. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "trainer/input.h"
#include "trainer/optimizer.h"
#include "trainer/recipes.h"
#include "trainer/stages.h"

static en_status parse(int command, en_options *o, const char *const *words)
{
    static char *argv[32];
    int argc = 0;
    bool help;
    for (; words[argc]; argc++) argv[argc] = (char *)words[argc];
    en_error_clear();
    return en_options_parse(command, argc, argv, 0, o, &help);
}
#define PARSE(o, ...) parse(EN_TRAIN, o, (const char *const[]){ __VA_ARGS__, NULL })

static char *text_of(const en_options *o)
{
    char *text = en_options_text(o);
    assert_non_null(text);
    return text;
}

/* A row that names no option, or a value that the option does not take, would be found by whoever uses that recipe. */
static void every_row_can_be_set(void **state)
{
    (void)state;
    const en_recipe_row *r;
    int of[8] = { 0 };
    for (int i = 0; (r = en_recipe_row_at(i)); i++) {
        en_options o;
        char value[64];
        assert_int_equal(PARSE(&o, "--seed", "1"), EN_OK);
        if (en_option_set(&o, r->option, r->value) != EN_OK) fail_msg("%s: %s", r->recipe, en_error_message());
        assert_true(en_option_text(&o, r->option, value, sizeof value));
        assert_false(en_option_given(&o, r->option));
        if (!*r->source) fail_msg("%s: --%s comes from nowhere", r->recipe, r->option);
        int k = 0;
        while (en_recipe_at(k) && strcmp(en_recipe_at(k), r->recipe) != 0) k++;
        assert_non_null(en_recipe_at(k));
        of[k]++;
    }
    for (int k = 0; en_recipe_at(k); k++) {
        en_options o;
        if (of[k] < 8) fail_msg("%s sets %d options", en_recipe_at(k), of[k]);
        if (PARSE(&o, "--global-batch", "512", "--recipe", en_recipe_at(k)) != EN_OK) fail_msg("%s", en_error_message());   /* the option knows all names */
    }
    en_options o;
    assert_int_equal(PARSE(&o, "--seed", "1"), EN_OK);
    assert_int_equal(en_option_set(&o, "learning_rate", "1"), EN_EINVAL);
    assert_int_equal(PARSE(&o, "--recipe", "fine-tun"), EN_EUSAGE);
    assert_non_null(strstr(en_error_message(), "did you mean finetune?"));
    en_error_clear();
}

static void the_papers_recipe_is_the_defaults(void **state)
{
    (void)state;
    en_options plain, named;
    assert_int_equal(PARSE(&plain, "--model", "b4"), EN_OK);
    assert_int_equal(PARSE(&named, "--model", "b4", "--recipe", "efficientnet"), EN_OK);
    char *a = text_of(&plain), *b = text_of(&named), *changes = en_options_text_changes(a, b);
    assert_string_equal(changes, "recipe - -> efficientnet, resize auto -> bicubic");       /* auto without a checkpoint: bicubic */
    free(changes);
    free(a);
    free(b);
}

static void what_was_given_stays(void **state)
{
    (void)state;
    en_options o;
    assert_int_equal(PARSE(&o, "--lr", "0.25", "--recipe", "finetune", "--ema=0", "--epochs", "3"), EN_OK);
    assert_true(o.lr == 0.25 && o.ema == 0 && o.epochs == 3 && o.weight_decay == 0 && o.erase == 1);
    assert_int_equal(o.steps, 0);                              /* --epochs says how long: the recipe's steps do not */
    assert_int_equal(o.global_batch, 512);
    assert_string_equal(o.lr_schedule, "cosine");
    assert_true(en_option_given(&o, "lr") && !en_option_given(&o, "weight_decay"));
    assert_int_equal(PARSE(&o, "--recipe", "finetune"), EN_OK);
    assert_int_equal(o.steps, 10000);
    assert_true(o.lr == 0.0005);                               /* 0.001 for 512 images */

    en_augment a;
    assert_int_equal(PARSE(&o, "--recipe", "finetune", "--augment", "none"), EN_OK);
    assert_int_equal(en_augment_of(&o, &a), EN_OK);            /* nothing is erased then */
    assert_int_equal(PARSE(&o, "--recipe", "efficientnetv2", "--model", "v2m", "--augment", "none"), EN_OK);
    assert_int_equal(en_augment_of(&o, &a), EN_OK);
    assert_int_equal(PARSE(&o, "--recipe", "efficientnetv2", "--model", "v2m", "--augment", "basic"), EN_OK);
    assert_int_equal(en_augment_of(&o, &a), EN_OK);
    assert_true(a.mixup == 0.2 && a.policy == EN_POLICY_NONE);
    en_optimizer p;
    for (int k = 0; en_recipe_at(k); k++) {                    /* and another optimizer is no contradiction to the recipe's settings of its own */
        assert_int_equal(PARSE(&o, "--global-batch", "16384", "--recipe", en_recipe_at(k), "--optimizer", "adamw"), EN_OK);
        assert_int_equal(en_optimizer_of(&o, &p), EN_OK);
    }
}

static void rows_depend_on_the_model(void **state)
{
    (void)state;
    static const struct { const char *model, *augment, *resize; double magnitude, mixup, cutmix; } models[] = {
        { "v2s", "randaugment", "bilinear", 10, 0, 0 },                { "efficientnetv2_m", "randaugment", "bilinear", 15, 0.2, 0.2 },
        { "efficientnetv2-l", "randaugment", "bilinear", 20, 0.5, 0.5 }, { "v2xl", "randaugment", "bilinear", 20, 0.5, 0.5 },
        { "v2b0", "autoaugment", "bicubic", 10, 0, 0 },                { "v2b3", "autoaugment", "bicubic", 10, 0, 0 } };
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        en_options o;
        assert_int_equal(PARSE(&o, "--recipe", "efficientnetv2", "--model", models[i].model), EN_OK);
        assert_string_equal(o.augment, models[i].augment);
        assert_string_equal(o.resize, models[i].resize);
        assert_true(o.magnitude == models[i].magnitude && o.mixup == models[i].mixup && o.cutmix == models[i].cutmix && o.bn_momentum == 0.1);
        assert_true(o.stages == 4 && o.size_from == 128 && o.magnitude_from == 5 && o.mix_from == 0);
        assert_string_equal(o.stage_ramp, "reference");
        assert_int_equal(en_stages_check(&o), EN_OK);
    }
    en_options o;
    assert_int_equal(PARSE(&o, "--recipe", "efficientnetv2", "--model", "v2z"), EN_EUSAGE);
    assert_non_null(strstr(en_error_text(), "there is no model `v2z`"));
    en_error_clear();
}

/* The rates of the paper, for the whole batch: 15.1, 15.1 and 20.7. */
static void rates_depend_on_the_batch(void **state)
{
    (void)state;
    static const struct { const char *batch; double lr, warmup; } batches[] = {
        { "4096", 0.236, 50 }, { "16384", 0.236, 50 }, { "24575", 0.236, 50 }, { "24576", 0.118, 50 }, { "32768", 0.118, 50 }, { "49151", 0.118, 50 },
        { "49152", 0.081, 43 }, { "65536", 0.081, 43 } };
    en_options o;
    for (size_t i = 0; i < sizeof batches / sizeof *batches; i++) {
        assert_int_equal(PARSE(&o, "--recipe", "supercomputer", "--global-batch", batches[i].batch), EN_OK);
        assert_true(o.lr == batches[i].lr && o.warmup_epochs == batches[i].warmup && o.lr_end == 0.1);
        assert_string_equal(o.optimizer, "lars");
        assert_string_equal(o.bn_group, "128i");
    }
    assert_int_equal(PARSE(&o, "--recipe", "supercomputer"), EN_EUSAGE);
    assert_non_null(strstr(en_error_text(), "--global-batch: give it"));
    en_error_clear();
    assert_int_equal(PARSE(&o, "--recipe", "supercomputer", "--lr", "0.1"), EN_OK);
}

static char *said(const en_options *o)
{
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    assert_non_null(f);
    en_recipe_say(o, 14, f);
    assert_int_equal(fclose(f), 0);
    return text;
}

static void the_header_says_what_is_the_recipes(void **state)
{
    (void)state;
    en_options o;
    assert_int_equal(PARSE(&o, "--recipe", "finetune", "--lr", "0.25"), EN_OK);
    char *text = said(&o);
    assert_true(strncmp(text, "finetune: global-batch 512, optimizer rmsprop, lr 0.25 (given), lr-schedule cosine,", 80) == 0);
    assert_non_null(strstr(text, "weight-decay 0,"));
    assert_null(strstr(text, "magnitude"));
    for (const char *line = text; *line; line += strcspn(line, "\n") + 1) assert_true(strcspn(line, "\n") <= 118);
    assert_int_equal(text[strlen(text) - 1], '\n');
    free(text);
    assert_int_equal(PARSE(&o, "--lr", "0.25"), EN_OK);
    text = said(&o);
    assert_string_equal(text, "");
    free(text);
}

static void help_lists_every_row(void **state)
{
    (void)state;
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    assert_non_null(f);
    en_recipes_help(f);
    assert_int_equal(fclose(f), 0);
    const en_recipe_row *r;
    int rows = 0, lines = 0;
    for (; (r = en_recipe_row_at(rows)); rows++) {
        char begin[80];
        snprintf(begin, sizeof begin, "  --%s", r->option);
        for (char *c = begin; *c; c++) if (*c == '_') *c = '-';
        if (!strstr(text, begin)) fail_msg("--%s of %s is not told", r->option, r->recipe);
    }
    for (const char *line = text; line; line = strchr(line, '\n'), line += line != NULL) lines += strncmp(line, "  --", 4) == 0;
    assert_int_equal(lines, rows);
    for (int k = 0; en_recipe_at(k); k++) assert_non_null(strstr(text, en_recipe_at(k)));
    free(text);
}

static void a_run_goes_on_with_the_recipe_it_began_with(void **state)
{
    (void)state;
    en_options then, now;
    assert_int_equal(PARSE(&then, "--recipe", "finetune", "--lr", "0.25"), EN_OK);
    char *began = text_of(&then);
    assert_int_equal(en_recipe_check_same(&then, began, "x.h5"), EN_OK);

    assert_int_equal(PARSE(&now, "--seed", "0"), EN_OK);
    assert_int_equal(en_recipe_check_same(&now, began, "x.h5"), EN_EUSAGE);
    assert_non_null(strstr(en_error_message(), "x.h5 was trained with --recipe finetune, now there is none: give the same"));
    assert_int_equal(PARSE(&now, "--recipe", "efficientnet"), EN_OK);
    assert_int_equal(en_recipe_check_same(&now, began, "x.h5"), EN_EUSAGE);
    assert_non_null(strstr(en_error_message(), "now there is --recipe efficientnet"));
    assert_int_equal(PARSE(&now, "--recipe", "finetune"), EN_OK);                  /* the rate was given then */
    assert_int_equal(en_recipe_check_same(&now, began, "x.h5"), EN_EUSAGE);
    assert_non_null(strstr(en_error_message(), "x.h5 was trained with --lr 0.25, and --recipe finetune sets it to 0.0005: give --lr 0.25 to go on as it began"));
    assert_int_equal(PARSE(&now, "--recipe", "finetune", "--lr", "0.125"), EN_OK); /* and who gives another one now means it */
    assert_int_equal(en_recipe_check_same(&now, began, "x.h5"), EN_OK);
    char *goes_on = text_of(&now), *changes = en_options_text_changes(began, goes_on);
    assert_string_equal(changes, "lr 0.25 -> 0.125");
    assert_null(en_options_text_changes(began, began));
    free(changes);
    free(goes_on);

    assert_int_equal(PARSE(&now, "--seed", "0"), EN_OK);
    assert_int_equal(en_recipe_check_same(&now, "lr=1\n", "old.h5"), EN_OK);       /* of a program without recipes, or without options */
    assert_int_equal(en_recipe_check_same(&now, NULL, "old.h5"), EN_OK);
    assert_int_equal(PARSE(&now, "--recipe", "efficientnet"), EN_OK);
    assert_int_equal(en_recipe_check_same(&now, "lr=1\n", "old.h5"), EN_EUSAGE);
    assert_non_null(strstr(en_error_message(), "old.h5 was trained with no --recipe, now there is --recipe efficientnet"));
    en_error_clear();
    free(began);
}

static void a_group_may_be_counted_in_images(void **state)
{
    (void)state;
    static const char *const good[] = { "128i", "1i", "1", "all", "node" }, *const bad[] = { "0i", "i", "128 i", "-1i", "1.5i", "128j", "128ii", "1e2i", "allx" };
    en_options o;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) assert_int_equal(PARSE(&o, "--bn-group", good[i]), EN_OK);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (PARSE(&o, "--bn-group", bad[i]) != EN_EUSAGE) fail_msg("'%s' was taken", bad[i]);
        assert_non_null(strstr(en_error_message(), strcmp(bad[i], "allx") ? "all, node, 1 or more, or a number with i behind it" : "did you mean all?"));
    }
    en_error_clear();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_row_can_be_set),          cmocka_unit_test(the_papers_recipe_is_the_defaults), cmocka_unit_test(what_was_given_stays),
        cmocka_unit_test(rows_depend_on_the_model),      cmocka_unit_test(rates_depend_on_the_batch),         cmocka_unit_test(the_header_says_what_is_the_recipes),
        cmocka_unit_test(help_lists_every_row),          cmocka_unit_test(a_run_goes_on_with_the_recipe_it_began_with),
        cmocka_unit_test(a_group_may_be_counted_in_images),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
