/* cam.c - `effnet cam FILE`: the class-activation map of a picture (cam.h), as a picture over it. */
#include "trainer/cam.h"

#include "trainer/commands.h"
#include "trainer/json.h"
#include "trainer/nearest.h"
#include "trainer/single.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <png.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SMALLEST = 224, LARGEST = 1024 };                     /* sides of the picture: as its part of the file has, within these */

typedef struct {                                             /* owns all of its memory */
    int     shown; bool top;                                /* top: the class was not asked for, it is the most probable one  */
    float  *logits, *probability, *features, *weights, *map, *large, bias;
    int     side;
    uint8_t *rgb;                                            /* (side, side, 3) */
} picture;

static void free_picture(picture *p)
{
    void *const all[] = { p->logits, p->probability, p->features, p->weights, p->map, p->large, p->rgb };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

/* --class: a name of the checkpoint's, or a number.  A name wins: classes may be called 0, 1, 2. */
static en_status find_class(const char *typed, const en_weights *w, int *out)
{
    const int classes = w->model->classes;
    en_nearest nearest = { .typed = typed };
    for (int i = 0; w->class_names && i < classes; i++) {
        if (strcmp(w->class_names[i], typed) == 0) {
            *out = i;
            return EN_OK;
        }
        en_nearest_offer(&nearest, w->class_names[i]);
    }
    char *end;
    errno = 0;
    const long n = strtol(typed, &end, 10);
    if (end != typed && !*end) {
        EN_REQUIRE(!errno && n >= 0 && n < classes, EN_EUSAGE, "--class %s: there are classes 0 to %d", typed, classes - 1);
        *out = (int)n;
        return EN_OK;
    }
    const char *best = en_nearest_best(&nearest);
    EN_REQUIRE(!best, EN_EUSAGE, "there is no class '%s'; did you mean '%s'?", typed, best);
    return en_raise(EN_EUSAGE, __FILE__, __LINE__, __func__, "there is no class '%s' among the %d of %s: give its name or its number", typed, classes, w->path);
}

static void most_probable(picture *p, int classes)
{
    if (!p->top) return;
    for (int i = 1; i < classes; i++)
        if (p->logits[i] > p->logits[p->shown]) p->shown = i;
}

/* The class's row of the classifier and its bias, out of the arena on the device. */
static en_status fetch_row(const en_weights *w, picture *p)
{
    const en_model *m = w->model;
    const en_tensor *fc = &m->tensors[m->head.fc_weight], *bias = &m->tensors[m->head.fc_bias];
    float *arena = malloc((size_t)(fc->elems + bias->elems) * sizeof *arena);
    en_status status = EN_OK;
    EN_REQUIRE_OUT(arena, EN_ENOMEM, "no memory for the classifier");
    EN_TRY_OUT(w->be->ops->download(w->be, arena, w->params + fc->offset, (size_t)fc->elems * sizeof *arena), "fetching the classifier");
    EN_TRY_OUT(w->be->ops->download(w->be, arena + fc->elems, w->params + bias->offset, (size_t)bias->elems * sizeof *arena), "fetching the classifier");
    for (int64_t k = 0; k < m->head.co; k++) p->weights[k] = arena[p->shown * fc->stride[0] + k * fc->stride[1]];
    p->bias = arena[fc->elems + p->shown * bias->stride[0]];
out:
    free(arena);
    return status;
}

static en_status look(en_single *s, const en_weights *w, const char *path, picture *p)
{
    const en_model *m = w->model;
    const int64_t hw = m->head.h * m->head.w;
    EN_TRY(en_single_logits(s, path, p->logits), "looking at it");
    const int64_t own = s->crop.w < LARGEST ? s->crop.w : LARGEST;
    p->side = (int)(own > SMALLEST ? own : SMALLEST);
    p->large = malloc((size_t)p->side * (size_t)p->side * sizeof *p->large);
    p->rgb = malloc((size_t)p->side * (size_t)p->side * 3);
    EN_REQUIRE(p->large && p->rgb, EN_ENOMEM, "no memory for a picture of %d pixels a side", p->side);
    en_resize_bytes(&s->image, &s->crop, EN_RESIZE_BICUBIC_AA, p->side, false, p->rgb);
    most_probable(p, m->classes);
    memcpy(p->probability, p->logits, (size_t)m->classes * sizeof *p->logits);
    en_softmax(m->classes, p->probability);
    EN_REQUIRE(isfinite(p->logits[p->shown]), EN_EDIVERGED, "the network's answer is no number: the weights of %s have diverged", w->path);
    EN_TRY(fetch_row(w, p), "the class's weights");
    EN_TRY(en_net_features(s->net, p->features), "its activations");
    en_cam_map(hw, m->head.co, p->features, p->weights, p->map);
    en_cam_enlarge(m->head.h, m->head.w, p->map, p->side, p->large);
    en_cam_paint((int64_t)p->side * p->side, p->large, p->rgb);
    return EN_OK;
}

/* Beside its name first, so that a viewer never finds half of it. */
static en_status write_png(const char *path, const picture *p)
{
    char tmp[4104];
    EN_REQUIRE(strlen(path) < 4096, EN_EUSAGE, "the path %.100s... is too long", path);
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    png_image image = { .version = PNG_IMAGE_VERSION, .width = (png_uint_32)p->side, .height = (png_uint_32)p->side, .format = PNG_FORMAT_RGB };
    FILE *f = fopen(tmp, "wb");
    EN_REQUIRE(f, EN_EIO, "cannot create %s: %s; choose another --out", tmp, strerror(errno));
    errno = 0;
    bool ok = png_image_write_to_stdio(&image, f, 0, p->rgb, 0, NULL);
    int error = errno;
    if (fclose(f) != 0 && ok) ok = false, error = errno;
    if (ok && rename(tmp, path) != 0) ok = false, error = errno;
    png_image_free(&image);
    if (ok) return EN_OK;
    remove(tmp);
    return en_raise(EN_EIO, __FILE__, __LINE__, __func__, "cannot write %s: %s", path, error ? strerror(error) : image.message);
}

static void print_result(const en_options *o, const en_weights *w, const picture *p)
{
    const en_model *m = w->model;
    char number[24];
    snprintf(number, sizeof number, "class %d", p->shown);
    const char *name = w->class_names ? w->class_names[p->shown] : number;
    if (!o->json) {
        printf("%s: '%s', %.2f%%%s; the map is %" PRId64 " x %" PRId64 "\n", o->out, name, 100 * (double)p->probability[p->shown], p->top ? ", the most probable class" : "",
               m->head.h, m->head.w);
        return;
    }
    printf("{\"checkpoint\":"), en_json_print(w->path), printf(",\"file\":"), en_json_print(o->operand[0]), printf(",\"out\":"), en_json_print(o->out);
    printf(",\"class\":"), en_json_print(name);
    printf(",\"index\":%d,\"probability\":%.6f,\"logit\":%.9g,\"bias\":%.9g,\"height\":%" PRId64 ",\"width\":%" PRId64 ",\"map\":[", p->shown,
           (double)p->probability[p->shown], (double)p->logits[p->shown], (double)p->bias, m->head.h, m->head.w);
    for (int64_t i = 0; i < m->head.h * m->head.w; i++) printf(i ? ",%.9g" : "%.9g", (double)p->map[i]);
    printf("]}\n");
}

static en_status cam(const en_options *o, en_weights *w)
{
    const en_model *m = w->model;
    const size_t hw = (size_t)(m->head.h * m->head.w), c = (size_t)m->head.co;
    en_single s = { 0 };
    picture p = { .top = !o->class[0] };
    en_status status = EN_OK;
    if (!p.top) EN_TRY_OUT(find_class(o->class, w, &p.shown), "--class");
    p.logits = malloc((size_t)m->classes * sizeof *p.logits);
    p.probability = malloc((size_t)m->classes * sizeof *p.probability);
    p.features = malloc(hw * c * sizeof *p.features);
    p.weights = malloc(c * sizeof *p.weights);
    p.map = malloc(hw * sizeof *p.map);
    EN_REQUIRE_OUT(p.logits && p.probability && p.features && p.weights && p.map, EN_ENOMEM, "no memory for activations of %zu x %zu", hw, c);
    EN_TRY_OUT(en_single_open(o, w, &s), "looking at %s", o->operand[0]);
    EN_TRY_OUT(look(&s, w, o->operand[0], &p), "looking at %s", o->operand[0]);
    EN_TRY_OUT(write_png(o->out, &p), "--out");
    print_result(o, w, &p);
out:
    en_single_close(&s);
    free_picture(&p);
    return status;
}

en_status en_command_cam(const en_options *o)
{
    en_weights w;
    const en_comm alone = { .world_size = 1, .local_size = 1 };
    EN_TRY(en_weights_open(o, &alone, &w), "--checkpoint %s", o->checkpoint);
    const en_status s = cam(o, &w);
    en_weights_close(&w);
    return s;
}
