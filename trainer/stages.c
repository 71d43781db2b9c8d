#include "trainer/stages.h"

#include "trainer/schedule.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 64 };                                      /* stages, as the option's limits say; a file may say anything */

/* ---- functions of the step ------------------------------------------------------------------------------------------------ */

static int64_t end_of(const en_stages *s, int i) { return (int64_t)(((__int128)i + 1) * s->total_steps / s->count); }

int en_stage_at(const en_stages *s, int64_t step)
{
    int i = 0;
    while (i + 1 < s->count && step >= end_of(s, i)) i++;
    return i;
}

static int side_of(const en_stages *s, int i)
{
    const int64_t grows = (int64_t)s->size - s->size_from, n = s->count;
    return n <= 1 ? s->size : (int)(s->size_from + (s->paper ? grows * i / (n - 1) : grows * (i + 1) / n));
}

static double value_of(const en_stages *s, const en_ramp *r, int i)
{
    if (r->to < 0 || s->count <= 1) return -1;
    return i + 1 == s->count ? r->to : r->from + (r->to - r->from) * i / (s->count - 1);
}

en_stage_values en_stage_values_of(const en_stages *s, int i)
{
    return (en_stage_values){ .first = i > 0 ? end_of(s, i - 1) : 0, .end = i + 1 < s->count ? end_of(s, i) : s->total_steps, .size = side_of(s, i),
                              .magnitude = value_of(s, &s->magnitude, i), .mixup = value_of(s, &s->mixup, i), .cutmix = value_of(s, &s->cutmix, i),
                              .dropout = value_of(s, &s->dropout, i) };
}

static bool alike(const en_stage_values *a, const en_stage_values *b)
{
    return a->size == b->size && a->magnitude == b->magnitude && a->mixup == b->mixup && a->cutmix == b->cutmix && a->dropout == b->dropout;
}

int64_t en_stages_difference(const en_stages *a, const en_stages *b, int64_t steps)
{
    for (int64_t step = 0; step < steps; ) {
        const int i = en_stage_at(a, step), j = en_stage_at(b, step);
        const en_stage_values x = en_stage_values_of(a, i), y = en_stage_values_of(b, j);
        if (!alike(&x, &y)) return step;
        const int64_t end_x = i + 1 < a->count ? x.end : steps, end_y = j + 1 < b->count ? y.end : steps;      /* the last one has no end here */
        step = end_x < end_y ? end_x : end_y;
    }
    return -1;
}

/* ---- from options ------------------------------------------------------------------------------------------------------------ */

static bool has_magnitude(const char *augment) { return strcmp(augment, "randaugment") == 0; }

en_status en_stages_check(const en_options *o)
{
    static const char *const of_stages[][2] = { { "size_from", "--size-from" }, { "stage_ramp", "--stage-ramp" }, { "magnitude_from", "--magnitude-from" },
                                                { "mix_from", "--mix-from" }, { "dropout_from", "--dropout-from" } };
    for (size_t i = 0; o->stages <= 1 && i < sizeof of_stages / sizeof *of_stages; i++)
        EN_REQUIRE(!en_option_given(o, of_stages[i][0]), EN_EUSAGE, "%s is of training in stages: give --stages too, or leave it out", of_stages[i][1]);
    if (o->stages <= 1) return EN_OK;
    const bool magnitude = en_option_given(o, "magnitude_from"), mix = en_option_given(o, "mix_from");
    EN_REQUIRE(!magnitude || has_magnitude(o->augment), EN_EUSAGE, "--magnitude-from is of --augment randaugment, not of %s", o->augment);
    EN_REQUIRE(!magnitude || o->magnitude_from <= o->magnitude, EN_EUSAGE, "--magnitude-from %g is above --magnitude %g, which it grows to: give a smaller one",
               o->magnitude_from, o->magnitude);
    EN_REQUIRE(!mix || o->mixup > 0 || o->cutmix > 0, EN_EUSAGE, "--mix-from is where --mixup and --cutmix begin: give one of them too, or leave it out");
    EN_REQUIRE(o->mixup <= 0 || o->mix_from <= o->mixup, EN_EUSAGE, "--mix-from %g is above --mixup %g, which it grows to: give a smaller one", o->mix_from, o->mixup);
    EN_REQUIRE(o->cutmix <= 0 || o->mix_from <= o->cutmix, EN_EUSAGE, "--mix-from %g is above --cutmix %g, which it grows to: give a smaller one", o->mix_from,
               o->cutmix);
    return EN_OK;
}

/* The level begins at 5, as the reference's, or at --magnitude where that is less. */
static en_stages stages_of(const en_options *o, int size, double dropout, int64_t total_steps)
{
    const en_ramp none = { .to = -1 };
    const double level = o->magnitude_from < o->magnitude ? o->magnitude_from : o->magnitude;
    return (en_stages){ .count = o->stages < 1 ? 1 : o->stages > MOST ? MOST : (int)o->stages, .paper = strcmp(o->stage_ramp, "paper") == 0, .total_steps = total_steps,
                        .size_from = (int)o->size_from, .size = size, .magnitude = has_magnitude(o->augment) ? (en_ramp){ level, o->magnitude } : none,
                        .mixup = o->mixup > 0 ? (en_ramp){ o->mix_from, o->mixup } : none,
                        .cutmix = o->cutmix > 0 ? (en_ramp){ o->mix_from, o->cutmix } : none,
                        .dropout = o->dropout_from >= 0 ? (en_ramp){ o->dropout_from, dropout } : none };
}

en_status en_stages_of(const en_options *o, int size, double dropout, int64_t total_steps, en_stages *out)
{
    *out = stages_of(o, size, dropout, total_steps);
    if (out->count == 1) return EN_OK;
    EN_REQUIRE(out->count <= total_steps, EN_EUSAGE, "--stages %d of %" PRId64 " steps: give fewer stages, or more --epochs", out->count, total_steps);
    EN_REQUIRE(out->size_from <= size, EN_EUSAGE, "--size-from %d is above the size that images grow to, %d px: give a smaller one, or a larger --image-size",
               out->size_from, size);
    EN_REQUIRE(o->dropout_from <= dropout, EN_EUSAGE, "--dropout-from %g is above the dropout that it grows to, %g: give a smaller one, or a larger --dropout",
               o->dropout_from, dropout);
    return EN_OK;
}

static double number_of(const char *options, const char *name, double otherwise)
{
    char value[40];
    return en_options_text_find(options, name, value, sizeof value) ? strtod(value, NULL) : otherwise;
}

static int64_t integer_of(const char *options, const char *name, int64_t otherwise)
{
    char value[40];
    return en_options_text_find(options, name, value, sizeof value) ? strtoll(value, NULL, 10) : otherwise;
}

en_stages en_stages_recall(const char *options, int size, double dropout, int64_t samples, int64_t global_batch)
{
    const char *text = options ? options : "";
    char ramp[24] = "", augment[40] = "";
    en_options_text_find(text, "stage-ramp", ramp, sizeof ramp);
    en_options_text_find(text, "augment", augment, sizeof augment);
    const en_options o = { .stages = integer_of(text, "stages", 1), .stage_ramp = ramp, .augment = augment, .size_from = integer_of(text, "size-from", 0),
                           .magnitude_from = number_of(text, "magnitude-from", 0), .magnitude = number_of(text, "magnitude", 0),
                           .mix_from = number_of(text, "mix-from", 0), .mixup = number_of(text, "mixup", 0), .cutmix = number_of(text, "cutmix", 0),
                           .dropout_from = number_of(text, "dropout-from", -1) };
    return stages_of(&o, size, dropout, en_total_steps(integer_of(text, "steps", 0), number_of(text, "epochs", 0), samples, global_batch));
}

/* ---- in words ---------------------------------------------------------------------------------------------------------------- */

const char *en_stage_text(const en_stage_values *v, char *text, size_t size)
{
    const struct { const char *name; double value; } rest[] = { { "magnitude", v->magnitude }, { "mixup", v->mixup }, { "cutmix", v->cutmix }, { "dropout", v->dropout } };
    size_t n = (size_t)snprintf(text, size, "%d px", v->size);
    for (size_t i = 0; i < sizeof rest / sizeof *rest && n < size; i++)
        if (rest[i].value >= 0) n += (size_t)snprintf(text + n, size - n, ", %s %.3g", rest[i].name, rest[i].value);
    return text;
}

void en_stages_print(const en_stages *s, const char *augment, void *stream)
{
    FILE *f = stream;
    char text[160], steps[48];
    for (int i = 0; s->count > 1 && i < s->count; i++) {
        const en_stage_values v = en_stage_values_of(s, i);
        snprintf(steps, sizeof steps, "%" PRId64 " to %" PRId64, v.first + 1, v.end);
        fprintf(f, "  %-11s %d of %d: steps %-17s %s\n", i ? "" : "stages", i + 1, s->count, steps, en_stage_text(&v, text, sizeof text));
    }
    if (s->count > 1 && s->magnitude.to < 0 && strcmp(augment, "none") != 0 && strcmp(augment, "basic") != 0)
        fprintf(f, "              %s has no magnitude that could grow: it is the same in all stages\n", augment);
}
