#include "trainer/input.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static bool is(const char *a, const char *b) { return strcmp(a, b) == 0; }

en_status en_augment_of(const en_options *o, en_augment *out)
{
    const bool rand = is(o->augment, "randaugment"), none = is(o->augment, "none");
    *out = (en_augment){ .policy = is(o->augment, "autoaugment") ? EN_POLICY_V0 : is(o->augment, "autoaugment-paper") ? EN_POLICY_PAPER
                                 : rand ? EN_POLICY_RAND : EN_POLICY_NONE,
                         .rand_ops = (int)o->rand_ops, .magnitude = o->magnitude, .erase = o->erase, .erase_mean = is(o->erase_fill, "mean"),
                         .mixup = o->mixup, .cutmix = o->cutmix };
    EN_REQUIRE(rand || (!en_option_given(o, "magnitude") && !en_option_given(o, "rand_ops")), EN_EUSAGE,
               "--magnitude and --rand-ops are of --augment randaugment, not of %s", o->augment);
    EN_REQUIRE(o->erase > 0 || !en_option_given(o, "erase_fill"), EN_EUSAGE, "--erase-fill is of erased rectangles; give --erase too, or leave it out");
    EN_REQUIRE(!none || (o->erase <= 0 && o->mixup <= 0 && o->cutmix <= 0), EN_EUSAGE,
               "--augment none leaves pictures as they are: leave --erase, --mixup and --cutmix out, or choose another --augment");
    return EN_OK;
}

en_resize_choice en_resize_of(const en_options *o, const char *earlier)
{
    static const en_resize_choice known[] = { { EN_RESIZE_BICUBIC, "bicubic" }, { EN_RESIZE_BILINEAR, "bilinear" },
                                              { EN_RESIZE_BICUBIC_AA, "bicubic-aa" }, { EN_RESIZE_BILINEAR_AA, "bilinear-aa" } };
    char value[32] = "";
    if (!is(o->resize, "auto")) snprintf(value, sizeof value, "%s", o->resize);
    else if (!earlier || !en_options_text_find(earlier, "resize", value, sizeof value)) value[0] = 0;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (is(known[i].name, value)) return known[i];
    return known[0];
}

en_normalising en_normalise_asked(const en_options *o) { return en_normalise_named(o->normalise); }
en_eval_crop en_eval_crop_asked(const en_options *o) { return en_eval_crop_named(o->eval_crop); }

en_status en_normalise_agrees(const en_options *o, en_normalising theirs, const char *whose)
{
    const en_normalising asked = en_normalise_asked(o);
    EN_REQUIRE(!asked || asked == theirs, EN_EUSAGE, "%s wants pixels as --normalise %s makes them, not %s: leave --normalise out", whose, en_normalise_name(theirs),
               o->normalise);
    return EN_OK;
}

int en_workers_of(const en_options *o, const en_backend *be) { return o->workers > 0 ? (int)o->workers : be->threads; }

uint64_t en_dataset_hash(const en_dataset *ds)
{
    uint64_t h = EN_HASH_START;
    if (!ds) return 0;
    for (int64_t c = 0; c < ds->classes; c++) h = en_hash_text(h, ds->class_names[c]);
    for (int64_t i = 0; i < ds->samples; i++) {
        const char *name = strrchr(ds->files[i], '/');
        h = (en_hash_text(h, name ? name : ds->files[i]) ^ (uint64_t)ds->labels[i]) * 1099511628211u;
    }
    return h;
}

/* ---- the step that waits ------------------------------------------------------------------------------------------------ */

static const double worth_a_word = 0.2;        /* share of the time */

bool en_input_watch_step(en_input_watch *w, const en_step_report *r, int64_t images, int workers, int cores, char text[600])
{
    if (w->said || ++w->steps <= EN_INPUT_SETTLING) return false;
    w->step_s += r->step_s;
    w->data_s += r->data_s;
    w->images += images;
    w->spent.read_s += r->input.read_s;
    w->spent.decode_s += r->input.decode_s;
    w->spent.resize_s += r->input.resize_s;
    w->spent.augment_s += r->input.augment_s;
    w->spent.images += r->input.images;
    if (w->steps < EN_INPUT_SETTLING + EN_INPUT_WINDOW) return false;

    const en_loader_times *s = &w->spent;
    const double waits = w->data_s / w->step_s, made = (double)s->images, one = (s->read_s + s->decode_s + s->resize_s + s->augment_s) / made;
    const double wanted = (double)w->images / (w->step_s - w->data_s);     /* images/s of the step alone */
    const bool say = waits > worth_a_word && made > 0 && one > 0 && wanted > 0;
    if (say) {
        const double needed = ceil(wanted * one * 1.05);
        int n = snprintf(text, 600, "the step waits for images %.0f%% of its time: it could take %.0f images/s a rank, and an image costs a worker %.2f ms (read "
                         "%.2f, decode %.2f, resize %.2f, augment %.2f): that is work for %.0f workers, and there are %d. ", 100 * waits, wanted, 1e3 * one,
                         1e3 * s->read_s / made, 1e3 * s->decode_s / made, 1e3 * s->resize_s / made, 1e3 * s->augment_s / made, needed, workers);
        if (n > 0 && n < 600)
            snprintf(text + n, (size_t)(600 - n), needed <= cores ? "--workers %.0f would do" : "%.0f are more than this rank's cores: smaller files "
                     "(effnet pack --max-side), --cache or --decode scaled make them do with fewer", needed);
    }
    w->said = say;
    *w = (en_input_watch){ .steps = EN_INPUT_SETTLING, .said = say };
    return say;
}
