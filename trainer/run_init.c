/* run_init.c - how a run's weights begin: drawn, or brought from a file (--init), and what comes with such weights.
 *
 * Fine-tuning begins with the weights of a checkpoint (its averaged ones, where it has them) or of a safetensors file.  The network must be
 * the same; the classifier is taken over when the classes are the same in the same order, and drawn anew otherwise.  The optimizer
 * begins as always, and the average with the weights as they are.
 *
 * Weights want the padding and the batch-norm constants that they were trained with (exchange.h), so the run's networks are built with
 * those, and its checkpoints name them: a run that goes on takes them from there, and the file of --init is not needed any more.
 *
 * Rank 0 reads; the others receive. */
#include "trainer/commands.h"
#include "trainer/exchange.h"
#include "trainer/run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- the file ------------------------------------------------------------------------------------------------------------ */

static bool is_checkpoint(const char *path)
{
    char head[8] = "";
    struct stat st;
    if (stat(path, &st) != 0) return false;
    if (S_ISDIR(st.st_mode)) return true;
    FILE *f = S_ISREG(st.st_mode) ? fopen(path, "rb") : NULL;
    const bool is = f && fread(head, 1, sizeof head, f) == sizeof head && memcmp(head, "\x89HDF\r\n\x1a\n", 8) == 0;
    if (f) fclose(f);
    return is;
}

static en_status read_checkpoint(const char *argument, en_brought *b)
{
    char path[4096];
    en_checkpoint_info i = { 0 };
    const en_model_row *row;
    en_status status = EN_OK;
    *b = (en_brought){ 0 };
    EN_TRY_OUT(en_checkpoint_resolve(argument, path), "--init");
    EN_TRY_OUT(en_checkpoint_inspect(path, true, &i), "opening %s", path);
    EN_TRY_OUT(en_model_row_find(i.model, &row), "the checkpoint's model");
    const en_model_overrides o = { .width = i.width, .depth = i.depth, .resolution = i.resolution, .classes = i.classes, .dropout = i.dropout, .drop_path = i.drop_path,
                                   .bn_eps = i.bn_eps, .bn_momentum = i.bn_momentum, .padding = i.padding, .normalise = i.normalise,
                                   .eval_crop = i.eval_crop };
    EN_TRY_OUT(en_model_build(row, &o, 1, &b->model), "opening %s", path);
    EN_TRY_OUT(en_snapshot_alloc(b->model, 0, NULL, i.has_ema, &b->weights), "reading %s", path);
    EN_TRY_OUT(en_checkpoint_read(path, &b->weights, true), "reading %s", path);
    b->class_names = i.class_names;
    i.class_names = NULL;
out:
    en_checkpoint_info_free(&i);
    if (status != EN_OK) en_brought_free(b);
    return status;
}

/* The file, and whether it is of the network that the options ask for. */
static en_status read_file(const en_run *run, en_brought *b)
{
    const en_options *o = run->t.o;
    en_model *m = NULL;
    en_status status = EN_OK;
    *b = (en_brought){ 0 };
    EN_TRY_OUT(en_model_from_options(o, (int)run->t.train_set->classes, 1, &m), "building --model %s", o->model);
    const en_foreign known = { .model = m->row->name, .width = m->width, .depth = m->depth };
    if (is_checkpoint(o->init)) EN_TRY_OUT(read_checkpoint(o->init, b), "--init %s", o->init);
    else EN_TRY_OUT(en_brought_read(o->init, &known, b), "--init %s", o->init);
    EN_REQUIRE_OUT(b->model->row == m->row && b->model->width == m->width && b->model->depth == m->depth, EN_EUSAGE,
                   "--init %s holds %s (width %g, depth %g), the options ask for %s (width %g, depth %g): give the same --model, --width and --depth", o->init,
                   b->model->row->name, b->model->width, b->model->depth, m->row->name, m->width, m->depth);
out:
    en_model_free(m);
    if (status != EN_OK) en_brought_free(b);
    return status;
}

/* ---- what the network must be built with --------------------------------------------------------------------------------- */

static en_status variant_of_file(const en_run *run, en_variant *v)
{
    en_brought b;
    EN_TRY(read_file(run, &b), "starting");
    *v = (en_variant){ b.model->bn_eps, b.model->bn_momentum, b.model->same_padding ? EN_PADDING_SAME : EN_PADDING_SYMMETRIC, b.model->normalise,
                       b.model->eval_crop };
    en_brought_free(&b);
    return EN_OK;
}

en_status en_run_choose_variant(en_run *run, const en_checkpoint_info *info)
{
    en_comm *c = run->t.comm;
    en_variant v = { 0 };
    en_status mine = EN_OK;
    if (c->rank == 0 && run->resumed) v = (en_variant){ info->bn_eps, info->bn_momentum, info->padding, info->normalise, info->eval_crop };
    else if (c->rank == 0 && run->t.o->init[0]) mine = variant_of_file(run, &v);
    if (mine == EN_OK && v.normalise) mine = en_normalise_agrees(run->t.o, v.normalise, run->resumed ? "the checkpoint" : "--init");
    if (!v.normalise) v.normalise = en_normalise_asked(run->t.o);
    if (!v.eval_crop || en_eval_crop_asked(run->t.o)) v.eval_crop = en_eval_crop_asked(run->t.o);
    EN_TRY(en_agree(c, mine), "--init");
    EN_TRY(c->ops->broadcast(c, &v, sizeof v, 0), "sharing the variant of the network");
    run->bn_eps = v.bn_eps;
    run->bn_momentum = v.bn_momentum;
    run->padding = v.padding;
    run->normalise = v.normalise;
    run->eval_crop = v.eval_crop;
    return EN_OK;
}

en_status en_run_take_variant(const en_run *run, en_model **model)
{
    const en_model *m = *model;
    const en_model_overrides o = { .width = m->width, .depth = m->depth, .resolution = m->resolution, .classes = m->classes, .dropout = m->dropout,
                                   .drop_path = m->drop_path, .bn_eps = run->bn_eps, .bn_momentum = run->bn_momentum, .padding = run->padding,
                                   .normalise = run->normalise, .eval_crop = run->eval_crop };
    en_model *made;
    EN_TRY(en_model_build(m->row, &o, m->channel_align, &made), "building %s as its weights want it", m->name);
    en_model_free(*model);
    *model = made;
    return EN_OK;
}

/* ---- weights ------------------------------------------------------------------------------------------------------------- */

static bool same_classes(const en_run *run, const en_brought *b)
{
    const en_dataset *d = run->t.train_set;
    if (b->model->classes != run->t.model->classes) return false;
    for (int i = 0; b->class_names && i < b->model->classes; i++)
        if (i >= d->classes || strcmp(b->class_names[i], d->class_names[i]) != 0) return false;
    return true;
}

/* For the header: what was taken over, and what comes with it where it is not the network's own. */
static void say(en_run *run, const en_brought *b, bool head, bool averaged)
{
    const en_model *m = run->t.model;
    const en_arch *own = m->row->arch;
    char classes[80] = "", variant[120] = "";
    if (!head && b->model->classes != m->classes) snprintf(classes, sizeof classes, ", which is new: %d classes instead of %d", m->classes, b->model->classes);
    else if (!head) snprintf(classes, sizeof classes, ", which is new: %d other classes", m->classes);
    if (m->same_padding != own->same_padding || m->bn_eps < own->bn_eps || m->bn_eps > own->bn_eps)
        snprintf(variant, sizeof variant, "; they want %s padding and a batch-norm eps of %g", m->same_padding ? "TensorFlow's SAME" : "symmetric", (double)m->bn_eps);
    snprintf(run->init_said, sizeof run->init_said, "%.2500s, %s, %s%s%s", run->t.o->init, averaged ? "averaged weights" : "weights",
             head ? "with the classifier" : "without the classifier", classes, variant);
}

/* Into the arenas as they were drawn; what the file does not have stays. */
static en_status overlay(en_run *run, const en_brought *b, float *params, float *stats)
{
    const en_model *m = run->t.model, *from = b->model;
    const bool head = same_classes(run, b), averaged = b->weights.ema_params != NULL;
    int64_t largest = 1;
    EN_REQUIRE(m->n_tensors == from->n_tensors, EN_EINVAL, "%d tensors and %d", m->n_tensors, from->n_tensors);
    for (int i = 0; i < m->n_tensors; i++)
        if (en_tensor_count(&from->tensors[i]) > largest) largest = en_tensor_count(&from->tensors[i]);
    float *logical = malloc((size_t)largest * sizeof *logical);
    EN_REQUIRE(logical, EN_ENOMEM, "no memory for the largest tensor");
    for (int i = 0; i < m->n_tensors; i++) {
        if (!head && (i == m->head.fc_weight || i == m->head.fc_bias)) continue;
        const en_tensor *t = &m->tensors[i], *s = &from->tensors[i];
        const bool is_param = t->arena == EN_ARENA_PARAMS;
        en_tensor_gather(s, is_param ? (averaged ? b->weights.ema_params : b->weights.params) : averaged ? b->weights.ema_stats : b->weights.stats, logical);
        en_tensor_scatter(t, logical, is_param ? params : stats);
    }
    free(logical);
    say(run, b, head, averaged);
    return EN_OK;
}

static en_status brought_arenas(en_run *run, float *params, float *stats)
{
    en_brought b;
    EN_TRY(read_file(run, &b), "starting");
    en_model_init(run->t.model, run->t.state.seed, params, stats);
    const en_status s = overlay(run, &b, params, stats);
    en_brought_free(&b);
    return s;
}

static en_status upload(en_trainer *t, float *device, const float *host, int64_t elems)
{
    if (!device) return EN_OK;
    return t->be->ops->upload(t->be, device, host, (size_t)elems * sizeof *host);
}

en_status en_run_begin(en_run *run)
{
    en_trainer *t = &run->t;
    en_comm *c = t->comm;
    const int64_t p = t->model->param_elems, s = t->model->stat_elems;
    EN_TRY(en_agree(c, en_run_start_fresh(t)), "initialising");
    if (!t->o->init[0]) return EN_OK;

    float *params = malloc((size_t)p * sizeof *params), *stats = malloc((size_t)s * sizeof *stats);
    en_status status = EN_OK, mine = params && stats ? EN_OK : en_raise(EN_ENOMEM, __FILE__, __LINE__, __func__, "no memory for the weights of --init");
    if (mine == EN_OK && c->rank == 0) mine = brought_arenas(run, params, stats);
    EN_TRY_OUT(en_agree(c, mine), "--init");
    EN_TRY_OUT(c->ops->broadcast(c, params, (size_t)p * sizeof *params, 0), "sharing the weights");
    EN_TRY_OUT(c->ops->broadcast(c, stats, (size_t)s * sizeof *stats, 0), "sharing the weights");
    EN_TRY_OUT(upload(t, t->a.params, params, p), "loading the weights");
    EN_TRY_OUT(upload(t, t->a.stats, stats, s), "loading the weights");
    EN_TRY_OUT(upload(t, t->a.ema, params, p), "loading the weights");
    EN_TRY_OUT(upload(t, t->a.ema_stats, stats, s), "loading the weights");
out:
    free(params);
    free(stats);
    return status;
}
