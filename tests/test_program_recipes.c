/* test_program_recipes.c - --recipe from outside: what a run says of it, what its files keep of it, and how it goes on. */
#include "program.h"

#include "trainer/checkpoint/checkpoint.h"
#include "trainer/options.h"

#define SMALL "--width 0.25 --depth 0.5 --image-size 32 --threads 1 --eval-every 0"

static const char *data(void) { return drawn("--train-per-class 4 --val-per-class 1 --synth-size 48"); }

static const char *base(void)
{
    static const char *made;
    if (!made) {
        run(0, 0, "train " SMALL " --global-batch 20 --augment basic --steps 2 --data %s --run %s", data(), at("base"));
        made = at("base");
    }
    return made;
}

static void says(const outcome *o, const char *text)
{
    if (!strstr(o->out, text)) FAIL_RUN(o, "it does not say '%s'", text);
}

/* The option text of a checkpoint has this line. */
static void keeps(const char *checkpoint, const char *name, const char *value)
{
    en_checkpoint_info info;
    char found[80] = "";
    assert_int_equal(en_checkpoint_inspect(checkpoint, true, &info), EN_OK);
    if (!en_options_text_find(info.options, name, found, sizeof found) || strcmp(found, value) != 0) fail_msg("%s has %s=%s, not %s", checkpoint, name, found, value);
    en_checkpoint_info_free(&info);
}

/* Stopped and continued by the same command, to the bit; a command without the recipe, or with other settings of it, is refused. */
static void a_recipe_goes_through_a_checkpoint(void **state)
{
    (void)state;
    const char *fine = textf("train " SMALL " --recipe finetune --global-batch 20 --steps 6 --warmup-epochs 0.5 --data %s --init %s", data(), base());
    run(0, 0, "%s --run %s", fine, at("whole"));
    outcome *o = run(75, 0, "%s --run %s --stop-after 3", fine, at("parts"));
    says(o, "  recipe      finetune: global-batch 20 (given), optimizer rmsprop, lr 0.0005, lr-schedule cosine, warmup-epochs");
    says(o, "(given), steps 6 (given), weight-decay 0,");
    o = run(0, 0, "%s --run %s", fine, at("parts"));
    if (strstr(o->out, "changed")) FAIL_RUN(o, "the same command changes nothing");
    same_bits(checkpoint_of(at("whole"), 6), checkpoint_of(at("parts"), 6));

    static const char *const kept[][2] = { { "recipe", "finetune" }, { "lr", "0.0005" }, { "weight-decay", "0" }, { "ema", "0.9996" }, { "erase", "1" }, { "steps", "6" } };
    const char *text = read_file(at("parts/run.txt"), NULL);
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) {
        keeps(checkpoint_of(at("parts"), 6), kept[i][0], kept[i][1]);
        if (count(text, textf("\n%s=%s\n", kept[i][0], kept[i][1])) != 2) fail_msg("run.txt has not twice %s=%s:\n%s", kept[i][0], kept[i][1], text);
    }
    assert_int_equal(count(text, "  recipe      finetune: "), 2);

    o = run(2, 0, "train " SMALL " --global-batch 20 --steps 8 --data %s --run %s", data(), at("parts"));
    says_once(o, "was trained with --recipe finetune, now there is none: give the same");
    o = run(2, 0, "train " SMALL " --recipe finetune --global-batch 20 --steps 8 --data %s --run %s", data(), at("parts"));
    says_once(o, "was trained with --warmup-epochs 0.5, and --recipe finetune sets it to 1: give --warmup-epochs 0.5 to go on as it began");
    o = run(0, 0, "train " SMALL " --recipe finetune --global-batch 20 --steps 7 --warmup-epochs 0.5 --label-smoothing 0 --data %s --run %s", data(), at("parts"));
    says(o, "  changed     steps 6 -> 7, label-smoothing 0.1 -> 0\n");        /* said, because it was asked for; --init is not needed any more */
}

static void a_recipe_says_what_it_wants(void **state)
{
    (void)state;
    says_once(run(2, 0, "train " SMALL " --recipe finetune --global-batch 20 --data %s --run %s", data(), at("none")), "--init FILE");
    says_once(run(2, 0, "train --recipe supercomputer --data %s --run %s", data(), at("none")), "--global-batch: give it");
    says_once(run(2, 0, "train --recipe efficientnetv3 --data synthetic"), "did you mean efficientnetv2?");
    outcome *o = run(0, 0, "help recipes");
    says(o, "--lr-end             0.1");
    says(run(0, 0, "help"), "`effnet help recipes`");
    says_once(run(2, 0, "help recipe"), "did you mean `effnet help recipes`?");
    o = run(0, 0, "train " SMALL " --recipe supercomputer --global-batch 64 --lr 16 --epochs 60 --steps 1 --data synthetic");
    says(o, "supercomputer: optimizer lars, momentum 0.9, trust 0.001, weight-decay 1e-05, lr 16 (given), lr-schedule");
}

/* 16 images on 4 ranks: two ranks have 8 of them together. */
static void a_group_of_images_is_as_many_ranks(void **state)
{
    (void)state;
    static const char *const groups[] = { "2", "8i", "11i" };
    for (int i = 0; i < 3; i++) {
        outcome *o = run(0, 4, "train " SMALL " --global-batch 16 --steps 2 --bn-group %s --data %s --run %s", groups[i], data(), at("group%d", i));
        says(o, "batch norm over 2 ranks");
        if (i > 0) same_bits(checkpoint_of(at("group0"), 2), checkpoint_of(at("group%d", i), 2));
    }
    says(run(0, 2, "train " SMALL " --global-batch 16 --steps 1 --bn-group 128i --data synthetic"), "batch norm over 2 ranks");
    says(run(0, 2, "train " SMALL " --global-batch 16 --steps 1 --bn-group 3i --data synthetic"), "batch norm over 1 rank\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_recipe_goes_through_a_checkpoint), cmocka_unit_test(a_recipe_says_what_it_wants), cmocka_unit_test(a_group_of_images_is_as_many_ranks),
    };
    return program_main("program_recipes", tests, sizeof tests / sizeof *tests);
}
