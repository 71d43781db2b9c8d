/* export.c - `effnet export`: the weights of a checkpoint as a safetensors file, under timm's or torchvision's names.
 *
 * What a reader must know beside the tensors stands in the file's texts: the network and its size, batch norm's constants and the
 * padding (trainer/exchange.h), how pictures become pixels, and the classes in the order of the classifier's rows. */
#include "trainer/commands.h"
#include "trainer/exchange.h"
#include "trainer/json.h"
#include "trainer/trainer.h"

#include "data/image.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_TEXTS = 20, NUMBER = 48 };

typedef struct {
    en_safetensors_text row[MOST_TEXTS];
    size_t n;
    char   number[MOST_TEXTS][NUMBER];
} text_list;

static void put(text_list *l, const char *key, const char *value) { l->row[l->n++] = (en_safetensors_text){ key, value }; }

/* Reads back to the same bits. */
static void put_number(text_list *l, const char *key, const char *format, double value)
{
    snprintf(l->number[l->n], NUMBER, format, value);
    put(l, key, l->number[l->n]);
}

static void put_three(text_list *l, const char *key, const float v[3])
{
    snprintf(l->number[l->n], NUMBER, "[%.6g, %.6g, %.6g]", (double)v[0] / 255, (double)v[1] / 255, (double)v[2] / 255);
    put(l, key, l->number[l->n]);
}

/* ["cat","dog"]: malloc'd */
static char *names_text(char *const *names, int n)
{
    char *text = NULL, c[EN_JSON_CHAR];
    size_t bytes;
    FILE *f = open_memstream(&text, &bytes);
    if (!f) return NULL;
    for (int i = 0; i < n; i++) {
        fputs(i ? ",\"" : "[\"", f);
        for (const char *p = names[i]; *p; p++) fputs(en_json_char(*p, c), f);
        fputc('"', f);
    }
    fputc(']', f);
    if (fclose(f) == 0) return text;
    free(text);
    return NULL;
}

typedef struct { const en_model *model; const float *params, *stats; } source;

static void values_of(const void *context, size_t i, float *out)
{
    const source *s = context;
    const en_tensor *t = &s->model->tensors[i];
    en_tensor_gather(t, t->arena == EN_ARENA_PARAMS ? s->params : s->stats, out);
}

static en_status write_file(const en_options *o, const char *to, const en_checkpoint_info *info, const en_model *m, const source *from, bool ema,
                            en_keys keys, const char *names, uint64_t *bytes)
{
    text_list l = { 0 };
    char (*key)[EN_KEY_SIZE] = calloc((size_t)m->n_tensors, sizeof *key), resize[24] = "bicubic", program[48];
    en_safetensor_row *rows = calloc((size_t)m->n_tensors, sizeof *rows);
    en_status status = EN_OK;
    EN_REQUIRE_OUT(key && rows, EN_ENOMEM, "no memory for the names of %d tensors", m->n_tensors);
    for (int i = 0; i < m->n_tensors; i++) {
        EN_TRY_OUT(en_key_of(m, i, keys, key[i]), "--to %s", o->to);
        rows[i] = (en_safetensor_row){ key[i], m->tensors[i].ndim, m->tensors[i].shape };
    }
    if (info->options) en_options_text_find(info->options, "resize", resize, sizeof resize);
    snprintf(program, sizeof program, "effnet " EN_VERSION);
    put(&l, "format", "pt");                                 /* PyTorch's layout: some loaders ask for it */
    put(&l, "program", program);
    put(&l, "model", m->row->name);
    put_number(&l, "width", "%.17g", m->width);
    put_number(&l, "depth", "%.17g", m->depth);
    put_number(&l, "resolution", "%.0f", info->resolution);
    put_number(&l, "classes", "%.0f", m->classes);
    if (names) put(&l, "class_names", names);
    put(&l, "names", en_keys_name(keys));
    put(&l, "weights", ema ? "ema" : "raw");
    put_number(&l, "step", "%.0f", (double)info->state.step);
    put_number(&l, "bn_eps", "%.9g", (double)m->bn_eps);
    put_number(&l, "bn_momentum", "%.9g", (double)m->bn_momentum);
    put(&l, "padding", m->same_padding ? "tf_same" : "symmetric");
    put_three(&l, "mean", en_normalise_by(m->normalise)->mean);
    put_three(&l, "std", en_normalise_by(m->normalise)->std);
    put(&l, "eval_crop", en_eval_crop_name(m->eval_crop));
    put(&l, "resize", resize);
    EN_TRY_OUT(en_safetensors_write(to, l.n, l.row, (size_t)m->n_tensors, rows, values_of, from, bytes), "writing %s", to);
out:
    free(rows);
    free(key);
    return status;
}

/* torchvision's network of that name evaluates with its own padding and eps, which are not these weights'. */
static void warn(const en_model *m, en_keys keys)
{
    const en_variant theirs = en_variant_of(m->row, keys);
    const en_padding ours = m->same_padding ? EN_PADDING_SAME : EN_PADDING_SYMMETRIC;
    if (theirs.padding != ours)
        printf("note: these weights want %s padding; %s's %s pads %s: change its convolutions, or accuracy is lost silently\n",
               m->same_padding ? "TensorFlow's SAME" : "symmetric", en_keys_name(keys), m->row->name, m->same_padding ? "symmetrically" : "as TensorFlow does");
    if (theirs.bn_eps < m->bn_eps || theirs.bn_eps > m->bn_eps)
        printf("note: these weights want a batch-norm eps of %g; %s's %s has %g: set it\n", (double)m->bn_eps, en_keys_name(keys), m->row->name, (double)theirs.bn_eps);
    const en_normalise *pixels = en_normalise_by(m->normalise);
    if (theirs.normalise != m->normalise)
        printf("note: these weights want pixels with mean %.4g and deviation %.4g of 255 (red); %s's %s has others: set them\n", (double)pixels->mean[0],
               (double)pixels->std[0], en_keys_name(keys), m->row->name);
}

static en_status export_weights(const en_options *o, const char *path, const en_checkpoint_info *info)
{
    const char *to = o->operand[1];
    const en_keys keys = strcmp(o->to, "torchvision") == 0 ? EN_KEYS_TORCHVISION : EN_KEYS_TIMM;
    const en_model_row *row;
    en_model *m = NULL;
    en_snapshot s = { 0 };
    char *names = NULL;
    uint64_t bytes = 0;
    en_status status = EN_OK;
    const bool asked = strcmp(o->weights, "ema") == 0, ema = asked && info->has_ema;
    EN_REQUIRE(ema || !asked || !en_option_given(o, "weights"), EN_EDATA, "%s has no averaged weights: --weights raw", path);
    EN_TRY_OUT(en_model_row_find(info->model, &row), "the checkpoint's model");
    const en_model_overrides as_trained = { .width = info->width, .depth = info->depth, .resolution = info->resolution, .classes = info->classes,
                                            .dropout = info->dropout, .drop_path = info->drop_path,
                                            .bn_eps = info->bn_eps, .bn_momentum = info->bn_momentum, .padding = info->padding,
                                            .normalise = info->normalise, .eval_crop = info->eval_crop };
    EN_TRY_OUT(en_model_build(row, &as_trained, 1, &m), "opening %s", path);
    EN_TRY_OUT(en_snapshot_alloc(m, 0, NULL, info->has_ema, &s), "memory for the weights");
    EN_TRY_OUT(en_checkpoint_read(path, &s, true), "reading %s", path);
    if (info->class_names) EN_REQUIRE_OUT((names = names_text(info->class_names, m->classes)), EN_ENOMEM, "no memory for %d class names", m->classes);
    const source from = { m, ema ? s.ema_params : s.params, ema ? s.ema_stats : s.stats };
    EN_TRY_OUT(write_file(o, to, info, m, &from, ema, keys, names, &bytes), "exporting %s", path);
    printf("%s: %s of %s, step %" PRId64 ", %s weights, %s's names: %d tensors, %.1f MB\n", to, m->name, path, info->state.step, ema ? "ema" : "raw",
           en_keys_name(keys), m->n_tensors, (double)bytes / 1e6);
    warn(m, keys);
out:
    free(names);
    en_snapshot_free(&s);
    en_model_free(m);
    return status;
}

en_status en_command_export(const en_options *o)
{
    char path[4096];
    en_checkpoint_info info = { 0 };
    EN_TRY(en_checkpoint_resolve(o->operand[0], path), "exporting");
    EN_REQUIRE(access(o->operand[1], F_OK) != 0, EN_EUSAGE, "%s is there already: take another name, or remove it", o->operand[1]);
    EN_TRY(en_checkpoint_inspect(path, true, &info), "opening %s", path);
    const en_status s = export_weights(o, path, &info);
    en_checkpoint_info_free(&info);
    return s;
}
