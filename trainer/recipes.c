/* recipes.c - what each recipe sets, and where that comes from.
 *
 * main.py is tensorflow/tpu's official/efficientnet, effnetv2_configs.py and hparams.py are google/automl's efficientnetv2.  Where papers
 * and code disagree the row says so; where neither says anything the choice is ours, and the row says that.  --lr is for 256 images, so a
 * rate that a paper gives for its own batch stands here divided by batch / 256. */
#include "trainer/recipes.h"
#include "trainer/model.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct { const char *name, *summary; } recipes[] = {
    { "efficientnet",   "EfficientNet on ImageNet (arXiv:1905.11946, section 5.2). These are the defaults, written out: a run with it is a run without it. Any "
                        "--global-batch; the paper's is 4096, the rate follows it" },
    { "efficientnetv2", "EfficientNetV2 on ImageNet (arXiv:2104.00298, sections 4 and 5.1), as its code trains it, for --model v2s to v2xl and v2b0 to v2b3. Any "
                        "--global-batch; the paper's is 4096. Biases are not decayed, by the models' own rows" },
    { "supercomputer",  "EfficientNet with global batches of 16384 to 65536 (arXiv:2011.00071). Wants --global-batch, which decides the rate. "
                        "Rates and warm-up are its table 2 as remembered, not copied: compare them before a long run" },
    { "finetune",       "From the weights of --init to another dataset (arXiv:2104.00298, section 5.3; the first paper only cites others for it)" },
};

#define V2_LARGE "v2s v2m v2l v2xl"
#define V2_SMALL "v2b0 v2b1 v2b2 v2b3"
#define E "efficientnet"
#define V "efficientnetv2"
#define S "supercomputer"
#define F "finetune"

/*   recipe  when   option  value  unless   source */
static const en_recipe_row rows[] = {
    { E, "", "optimizer", "rmsprop", "", "section 5.2; TensorFlow's form, accumulators begin at 1 (main.py)" },
    { E, "", "rho", "0.9", "", "section 5.2: decay 0.9" },
    { E, "", "momentum", "0.9", "", "section 5.2" },
    { E, "", "lr", "0.016", "", "main.py, for 256 images; section 5.2: 0.256, which is that for 4096" },
    { E, "", "lr_schedule", "exponential", "", "section 5.2; in steps, not shifted by the warm-up (main.py)" },
    { E, "", "lr_decay", "0.97", "", "section 5.2" },
    { E, "", "lr_decay_epochs", "2.4", "", "section 5.2" },
    { E, "", "warmup_epochs", "5", "", "main.py" },
    { E, "", "epochs", "350", "steps", "main.py: 218,949 steps of 2048" },
    { E, "", "weight_decay", "1e-5", "", "section 5.2; on all but batch norm (main.py)" },
    { E, "", "label_smoothing", "0.1", "", "main.py" },
    { E, "", "dropout", "-1", "", "the model's own: 0.2 for B0 to 0.5 for B7 (section 5.2)" },
    { E, "", "drop_path", "-1", "", "the model's own: survival probability 0.8 (section 5.2)" },
    { E, "", "ema", "0.9999", "", "main.py" },
    { E, "", "bn_momentum", "0", "", "the model's own: 0.01 (section 5.2: momentum 0.99)" },
    { E, "", "bn_group", "all", "", "our choice; main.py: none up to 8 replicas, then groups of 8 or an eighth of them" },
    { E, "", "augment", "autoaugment", "", "section 5.2; the policy is the one of main.py, v0 (with randaugment: --magnitude 17 for B5, 28 for B7)" },
    { E, "", "resize", "bicubic", "", "preprocessing.py" },

    { V, "", "optimizer", "rmsprop", "", "section 5.1, hparams.py" },
    { V, "", "rho", "0.9", "", "section 5.1: decay 0.9" },
    { V, "", "momentum", "0.9", "", "section 5.1" },
    { V, "", "lr", "0.016", "", "hparams.py, for 256 images; section 5.1: 0.256, which is that for 4096" },
    { V, "", "lr_schedule", "exponential", "", "section 5.1, hparams.py" },
    { V, "", "lr_decay", "0.97", "", "section 5.1" },
    { V, "", "lr_decay_epochs", "2.4", "", "section 5.1" },
    { V, "", "warmup_epochs", "5", "", "hparams.py" },
    { V, "", "epochs", "350", "steps", "section 5.1" },
    { V, "", "weight_decay", "1e-5", "", "section 5.1, hparams.py" },
    { V, "", "label_smoothing", "0.1", "", "hparams.py" },
    { V, "", "drop_path", "-1", "", "the model's own: survival probability 0.8 (section 5.1)" },
    { V, "", "dropout", "-1", "", "the model's own (effnetv2_configs.py)" },
    { V, "", "ema", "0.9999", "", "section 5.1" },
    { V, "", "bn_momentum", "0.1", "", "hparams.py: 0.9 in TensorFlow's sense; section 5.1 says 0.99" },
    { V, "", "bn_group", "all", "", "our choice; the code: groups of at most 8 replicas" },
    { V, "", "stages", "4", "", "section 5.1: 4 stages of about 87 epochs" },
    { V, "", "size_from", "128", "", "section 5.1, table 6; the last stage has the model's size" },
    { V, "", "stage_ramp", "reference", "", "main.py: the first stage is above 128 already; the paper's algorithm 1 begins with it" },
    { V, "", "dropout_from", "-1", "", "the code: the same in all stages; table 6: from 0.1" },
    { V, V2_LARGE, "magnitude_from", "5", "", "main.py, table 6" },
    { V, "v2m v2l v2xl", "mix_from", "0", "", "main.py, table 6" },
    { V, V2_LARGE, "augment", "randaugment", "", "section 5.1, effnetv2_configs.py" },
    { V, V2_LARGE, "rand_ops", "2", "", "autoaugment.py" },
    { V, "v2s", "magnitude", "10", "", "effnetv2_configs.py; the paper's table 6 ends at 15" },
    { V, "v2m", "magnitude", "15", "", "effnetv2_configs.py; the paper's table 6 ends at 20" },
    { V, "v2l v2xl", "magnitude", "20", "", "effnetv2_configs.py; the paper's table 6 ends at 25" },
    { V, "v2m", "mixup", "0.2", "augment none", "effnetv2_configs.py, table 6" },
    { V, "v2m", "cutmix", "0.2", "augment none", "effnetv2_configs.py; the paper has no cutmix" },
    { V, "v2l v2xl", "mixup", "0.5", "augment none", "effnetv2_configs.py, table 6" },
    { V, "v2l v2xl", "cutmix", "0.5", "augment none", "effnetv2_configs.py; the paper has no cutmix" },
    { V, V2_SMALL, "augment", "autoaugment", "", "effnetv2_configs.py: the first paper's pipeline" },
    { V, "", "normalise", "auto", "", "the model's own: (v - 128) / 128 for S to XL (preprocessing.py), the first paper's for B0 to B3" },
    { V, V2_LARGE, "train_crop", "v2", "", "preprocessing.py" },
    { V, "", "eval_crop", "auto", "", "the model's own: all of the picture for S to XL from 320 px (preprocessing.py)" },
    { V, V2_LARGE, "resize", "bilinear", "", "preprocessing.py: TensorFlow 2's, not antialiased" },
    { V, V2_SMALL, "resize", "bicubic", "", "preprocess_legacy.py: the first paper's pipeline" },

    { S, "", "optimizer", "lars", "", "the paper" },
    { S, "", "momentum", "0.9", "", "lars_optimizer.py" },
    { S, "", "trust", "0.001", "", "lars_optimizer.py" },
    { S, "", "weight_decay", "1e-5", "", "main.py: lars_weight_decay. Counted once here; the reference's loss adds 1e-5 more unless its own flag is 0" },
    { S, "", "lr", "0.236", "", "table 2, for 256 images: 15.1 for 16384. Below that batch the same, which is our choice" },
    { S, "batch>=24576", "lr", "0.118", "", "table 2: 15.1 for 32768. That it begins at 24576 is our choice" },
    { S, "batch>=49152", "lr", "0.081", "", "table 2: 20.7 for 65536. That it begins at 49152 is our choice" },
    { S, "", "lr_schedule", "polynomial", "", "the paper, main.py" },
    { S, "", "lr_power", "2", "", "main.py" },
    { S, "", "lr_end", "0.1", "", "main.py" },
    { S, "", "warmup_epochs", "50", "", "table 2" },
    { S, "batch>=49152", "warmup_epochs", "43", "", "table 2" },
    { S, "", "epochs", "350", "steps", "the paper" },
    { S, "", "bn_group", "128i", "", "main.py: as many neighbours as have 128 images together" },
    { S, "", "label_smoothing", "0.1", "", "main.py" },
    { S, "", "ema", "0.9999", "", "main.py" },
    { S, "", "augment", "autoaugment", "", "main.py" },
    { S, "", "resize", "bicubic", "", "preprocessing.py" },

    { F, "", "global_batch", "512", "", "section 5.3" },
    { F, "", "optimizer", "rmsprop", "", "section 5.3: as for ImageNet" },
    { F, "", "lr", "0.0005", "", "section 5.3: 0.001 for 512 images" },
    { F, "", "lr_schedule", "cosine", "", "section 5.3; the code's run from 21,841 to 1000 classes: constant" },
    { F, "", "warmup_epochs", "1", "", "our choice: neither says" },
    { F, "", "steps", "10000", "epochs", "section 5.3; the code: 15 epochs, 10,000 steps at least" },
    { F, "", "weight_decay", "0", "", "section 5.3" },
    { F, "", "ema", "0.9996", "", "the code; 0.9999 would remember most of 10,000 steps" },
    { F, "", "augment", "basic", "", "section 5.3: a simple cutout in place of a policy" },
    { F, "", "erase", "1", "augment none", "section 5.3: cutout, every picture; erased rectangles stand for it, as our choice (area 2 % to 33 %; the code: a square of a quarter)" },
    { F, "", "erase_fill", "noise", "", "the code: random values" },
    { F, "", "normalise", "auto", "", "as the weights were trained" },
    { F, "", "label_smoothing", "0.1", "", "as for ImageNet" },
};
#undef E
#undef V
#undef S
#undef F
#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

const en_recipe_row *en_recipe_row_at(int i) { return i >= 0 && i < COUNT(rows) ? &rows[i] : NULL; }
const char *en_recipe_at(int i) { return i >= 0 && i < COUNT(recipes) ? recipes[i].name : NULL; }

/* ---- which rows ------------------------------------------------------------------------------------------------------ */

static bool is(const char *a, const char *b) { return strcmp(a, b) == 0; }

/* Does the list of words, parted by blanks, have this one? */
static bool has_word(const char *list, const char *word)
{
    const size_t n = strlen(word);
    for (const char *at = list; (at = strstr(at, word)); at += n)
        if ((at == list || at[-1] == ' ') && (at[n] == ' ' || !at[n])) return true;
    return false;
}

/* "steps": that was given; "augment none": that has this value */
static bool holds(const char *unless, const en_options *o)
{
    char option[40], value[256];
    const size_t n = strcspn(unless, " ");
    snprintf(option, sizeof option, "%.*s", (int)n, unless);
    if (!unless[n]) return *unless && en_option_given(o, option);
    return en_option_text(o, option, value, sizeof value) && is(value, unless + n + 1);
}

static bool fits(const en_recipe_row *r, const en_options *o, const en_model_row *model)
{
    static const char batch[] = "batch>=";
    if (!is(r->recipe, o->recipe) || holds(r->unless, o)) return false;
    if (strncmp(r->when, batch, sizeof batch - 1) == 0) return o->global_batch >= strtoll(r->when + sizeof batch - 1, NULL, 10);
    return !*r->when || has_word(r->when, model->alias);
}

/* The rows that count, in the table's order: `chosen` gets 1 for them. */
static en_status choose(const en_options *o, bool chosen[COUNT(rows)])
{
    const en_model_row *model;
    EN_TRY(en_model_row_find(o->model, &model), "--recipe %s", o->recipe);
    for (int i = 0; i < COUNT(rows); i++) {
        chosen[i] = fits(&rows[i], o, model);
        for (int k = 0; chosen[i] && k < i; k++)
            if (chosen[k] && is(rows[k].option, rows[i].option)) chosen[k] = false;
    }
    return EN_OK;
}

en_status en_recipe_apply(en_options *o)
{
    bool chosen[COUNT(rows)];
    if (!*o->recipe) return EN_OK;
    EN_REQUIRE(!is(o->recipe, "supercomputer") || o->global_batch > 0 || en_option_given(o, "lr"), EN_EUSAGE, "--recipe supercomputer takes the rate from "
               "--global-batch: give it (the paper's: 16384, 32768 and 65536), or --lr");
    EN_TRY(choose(o, chosen), "reading the recipe");
    for (int i = 0; i < COUNT(rows); i++)
        if (chosen[i] && !en_option_given(o, rows[i].option)) EN_TRY(en_option_set(o, rows[i].option, rows[i].value), "--recipe %s", o->recipe);
    return EN_OK;
}

/* ---- in words -------------------------------------------------------------------------------------------------------- */

/* lr_schedule: lr-schedule */
static const char *spelt(const char *field, char out[40])
{
    snprintf(out, 40, "%s", field);
    for (char *c = out; *c; c++)
        if (*c == '_') *c = '-';
    return out;
}

void en_recipe_say(const en_options *o, int indent, void *stream)
{
    bool chosen[COUNT(rows)];
    char *text = NULL, value[256], name[40];
    size_t bytes = 0;
    if (!*o->recipe || choose(o, chosen) != EN_OK) return;             /* it has been applied, so the model is known */
    FILE *f = open_memstream(&text, &bytes);
    if (!f) return;
    fprintf(f, "%s: ", o->recipe);
    const char *glue = "";
    for (int i = 0; i < COUNT(rows); i++) {
        if (!chosen[i] || !en_option_text(o, rows[i].option, value, sizeof value)) continue;
        fprintf(f, "%s%s %s%s", glue, spelt(rows[i].option, name), value, en_option_given(o, rows[i].option) ? " (given)" : "");
        glue = ", ";
    }
    if (fclose(f) == 0) en_print_wrapped(stream, text, indent);
    free(text);
}

void en_recipes_help(void *stream)
{
    FILE *f = stream;
    char name[48], source[400];
    fprintf(f, "usage: effnet train --recipe NAME [--option value]...\n\nA recipe sets the options below where they are not given themselves.\n");
    for (int k = 0; k < COUNT(recipes); k++) {
        fprintf(f, "\n%s\n  ", recipes[k].name);
        en_print_wrapped(f, recipes[k].summary, 2);
        fprintf(f, "  %-20s %-12s %-19s from\n", "option", "value", "for");
        for (int i = 0; i < COUNT(rows); i++) {
            const en_recipe_row *r = &rows[i];
            if (!is(r->recipe, recipes[k].name)) continue;
            char option[40];
            snprintf(name, sizeof name, "--%s", spelt(r->option, option));
            snprintf(source, sizeof source, "%s%s%s", r->source, *r->unless ? "; not with --" : "", r->unless);
            fprintf(f, "  %-20s %-12s %-19s ", name, r->value, r->when);
            en_print_wrapped(f, source, 56);
        }
    }
}

/* ---- going on -------------------------------------------------------------------------------------------------------- */

en_status en_recipe_check_same(const en_options *now, const char *then, const char *path)
{
    bool chosen[COUNT(rows)];
    char before[256] = "", value[256], name[40];
    if (then && !en_options_text_find(then, "recipe", before, sizeof before)) before[0] = 0;
    EN_REQUIRE(is(before, now->recipe), EN_EUSAGE, "%s was trained with %s%s, now there is %s%s: give the same (the same command goes on), or take another --run",
               path, *before ? "--recipe " : "no --recipe", before, *now->recipe ? "--recipe " : "none", now->recipe);
    if (!*before) return EN_OK;
    EN_TRY(choose(now, chosen), "reading the recipe");
    for (int i = 0; i < COUNT(rows); i++) {
        if (!chosen[i] || en_option_given(now, rows[i].option) || !en_option_text(now, rows[i].option, value, sizeof value)) continue;
        spelt(rows[i].option, name);
        if (!en_options_text_find(then, name, before, sizeof before)) continue;
        EN_REQUIRE(is(before, value), EN_EUSAGE, "%s was trained with --%s %s, and --recipe %s sets it to %s: give --%s %s to go on as it began, or --%s %s to change it",
                   path, name, before, now->recipe, value, name, before, name, value);
    }
    return EN_OK;
}
