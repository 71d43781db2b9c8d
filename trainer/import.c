/* import.c - `effnet import`: a safetensors file becomes a checkpoint that eval, predict, cam and train --init take. */
#include "trainer/commands.h"
#include "trainer/exchange.h"
#include "trainer/input.h"

#include "data/dataset.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- --class-names ------------------------------------------------------------------------------------------------------ */

/* A file of text, a name a line. */
static en_status names_from_text(const char *path, int classes, char ***out)
{
    uint8_t *bytes = NULL;
    size_t capacity = 0, n = 0, at = 0;
    char **names = calloc((size_t)classes, sizeof *names);
    int have = 0;
    en_status status = EN_OK;
    EN_REQUIRE_OUT(names, EN_ENOMEM, "no memory for %d class names", classes);
    EN_TRY_OUT(en_file_read(path, &bytes, &capacity, &n), "--class-names");
    EN_REQUIRE_OUT(!memchr(bytes, 0, n), EN_EDATA, "%s is not a text: it has a 0 in it", path);
    while (at < n) {
        size_t end = at;
        while (end < n && bytes[end] != '\n') end++;
        const size_t length = end > at && bytes[end - 1] == '\r' ? end - at - 1 : end - at;
        EN_REQUIRE_OUT(length > 0, EN_EDATA, "%s: line %d is empty", path, have + 1);
        EN_REQUIRE_OUT(have < classes, EN_EDATA, "%s has more than %d lines, and the classifier has %d classes", path, classes, classes);
        EN_REQUIRE_OUT((names[have] = strndup((const char *)bytes + at, length)), EN_ENOMEM, "no memory for %d class names", classes);
        have++;
        at = end + 1;
    }
    EN_REQUIRE_OUT(have == classes, EN_EDATA, "%s has %d lines, and the classifier has %d classes", path, have, classes);
    *out = names;
    names = NULL;
out:
    for (int i = 0; names && i < have; i++) free(names[i]);
    free(names);
    free(bytes);
    return status;
}

/* The classes of a dataset: their order is that of the labels that weights are trained with, here and in PyTorch. */
static en_status names_from_dataset(const char *path, int classes, char ***out)
{
    en_dataset *d = NULL;
    char **names = NULL;
    en_status status = EN_OK;
    EN_TRY_OUT(en_dataset_open(path, "val", NULL, &d), "--class-names");
    EN_REQUIRE_OUT(d->classes == classes, EN_EDATA, "%s has %" PRId64 " classes, and the classifier has %d", path, d->classes, classes);
    names = calloc((size_t)classes, sizeof *names);
    bool ok = names != NULL;
    for (int i = 0; ok && i < classes; i++) ok = (names[i] = strdup(d->class_names[i]));
    EN_REQUIRE_OUT(ok, EN_ENOMEM, "no memory for %d class names", classes);
    *out = names;
    names = NULL;
out:
    for (int i = 0; names && i < classes; i++) free(names[i]);
    free(names);
    en_dataset_close(d);
    return status;
}

static en_status name_classes(const en_options *o, en_brought *b)
{
    struct stat st;
    char **names = NULL;
    const char *path = o->class_names;
    const size_t n = strlen(path);
    if (!n) return EN_OK;
    const bool images = (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) || (n > 3 && strcmp(path + n - 3, ".h5") == 0);
    if (images) EN_TRY(names_from_dataset(path, b->model->classes, &names), "naming the classes");
    else EN_TRY(names_from_text(path, b->model->classes, &names), "naming the classes");
    for (int i = 0; b->class_names && i < b->model->classes; i++) free(b->class_names[i]);
    free(b->class_names);
    b->class_names = names;
    return EN_OK;
}

/* ---- the checkpoint ------------------------------------------------------------------------------------------------------- */

static en_foreign known_of(const en_options *o)
{
    return (en_foreign){ .model = en_option_given(o, "model") ? o->model : NULL, .width = o->width, .depth = o->depth, .resolution = (int)o->image_size,
                         .from = strcmp(o->from, "auto") == 0 ? NULL : o->from,
                         .variant = { (float)o->bn_eps, (float)o->bn_momentum, strcmp(o->padding, "auto") == 0 ? EN_PADDING_OWN
                                                                                : strcmp(o->padding, "tf_same") == 0 ? EN_PADDING_SAME : EN_PADDING_SYMMETRIC,
                                      en_normalise_asked(o), en_eval_crop_asked(o) } };
}

/* Pictures are resized as the weights' makers did: what the file says; else, for both libraries, as Pillow does. */
static const char *resize_of(const en_options *o, const en_brought *b)
{
    char earlier[64] = "resize=bicubic-aa\n";
    if (b->resize) snprintf(earlier, sizeof earlier, "resize=%.40s\n", b->resize);
    return en_resize_of(o, earlier).name;
}

static en_status import_weights(const en_options *o, en_brought *b)
{
    const char *from = o->operand[0], *to = o->operand[1];
    const en_model *m = b->model;
    char options[64];
    EN_TRY(name_classes(o, b), "--class-names %s", o->class_names);
    snprintf(options, sizeof options, "resize=%s\n", resize_of(o, b));
    b->weights.class_names = b->class_names;
    b->weights.options = options;
    b->weights.state = (en_run_state){ .best_top1 = -1, .lr_factor = 1 };
    const en_status s = en_checkpoint_write(to, &b->weights);
    b->weights.options = NULL;
    EN_TRY(s, "importing %s", from);
    printf("%s: %s of %s, by %s's names: %d classes%s, %d px, %s padding, batch-norm eps %g, momentum %g, pixels %s, resize %s\n", to, m->name, from,
           en_keys_name(b->keys), m->classes, b->class_names ? "" : " without names", m->resolution, m->same_padding ? "TensorFlow's SAME" : "symmetric",
           (double)m->bn_eps, (double)m->bn_momentum, en_normalise_name(m->normalise), resize_of(o, b));
    if (!b->class_names) printf("note: `effnet eval` wants names of classes: --class-names DATA, the folder that it shall evaluate on, or a text with a name a line\n");
    return EN_OK;
}

en_status en_command_import(const en_options *o)
{
    en_brought b = { 0 };
    const en_foreign known = known_of(o);
    EN_REQUIRE(access(o->operand[1], F_OK) != 0, EN_EUSAGE, "%s is there already: take another name, or remove it", o->operand[1]);
    EN_TRY(en_brought_read(o->operand[0], &known, &b), "importing %s", o->operand[0]);
    const en_status s = import_weights(o, &b);
    en_brought_free(&b);
    return s;
}
