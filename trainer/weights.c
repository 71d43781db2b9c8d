#include "trainer/weights.h"

#include "trainer/commands.h"
#include "trainer/input.h"

#include <stdlib.h>
#include <string.h>

/* The model as the checkpoint describes it, at the size asked for. */
static en_status model_of(const en_options *o, const en_checkpoint_info *i, int channel_align, en_model **out)
{
    const en_model_row *row;
    EN_TRY(en_model_row_find(i->model, &row), "the checkpoint's model");
    const en_model_overrides as_trained = { .width = i->width, .depth = i->depth, .resolution = o->eval_size > 0 ? (int)o->eval_size : en_model_eval_side(row, i->resolution),
                                            .classes = i->classes, .dropout = i->dropout, .drop_path = i->drop_path,
                                            .bn_eps = i->bn_eps, .bn_momentum = i->bn_momentum, .padding = i->padding, .normalise = i->normalise,
                                            .eval_crop = en_eval_crop_asked(o) ? en_eval_crop_asked(o) : i->eval_crop };
    EN_TRY(en_normalise_agrees(o, i->normalise, "the checkpoint"), "the checkpoint's pixels");
    return en_model_build(row, &as_trained, channel_align, out);
}

en_status en_weights_open(const en_options *o, const en_comm *c, en_weights *w)
{
    *w = (en_weights){ 0 };
    en_snapshot s = { 0 };
    en_status status = EN_OK;
    const en_backend_config config = en_config_of(o, c);
    EN_TRY_OUT(en_checkpoint_resolve(o->checkpoint, w->path), "--checkpoint");
    EN_TRY_OUT(en_checkpoint_inspect(w->path, true, &w->info), "opening %s", w->path);
    EN_TRY_OUT(en_backend_open(o->device, &config, &w->be), "opening --device %s", o->device);
    EN_TRY_OUT(model_of(o, &w->info, w->be->channel_align, &w->model), "opening %s", w->path);
    w->ema = strcmp(o->eval_weights, "ema") == 0 && w->info.has_ema;
    w->step = w->info.state.step;
    w->class_names = w->info.class_names;
    EN_TRY_OUT(en_snapshot_alloc(w->model, 0, NULL, w->info.has_ema, &s), "memory for the weights");
    EN_TRY_OUT(en_checkpoint_read(w->path, &s, true), "reading %s", w->path);
    const size_t p = (size_t)w->model->param_elems * sizeof(float), q = (size_t)w->model->stat_elems * sizeof(float);
    void *params = NULL, *stats = NULL;
    EN_TRY_OUT(w->be->ops->alloc(w->be, p, &params), "memory for the weights");
    w->params = params;
    EN_TRY_OUT(w->be->ops->alloc(w->be, q, &stats), "memory for the weights");
    w->stats = stats;
    EN_TRY_OUT(w->be->ops->upload(w->be, params, w->ema ? s.ema_params : s.params, p), "loading the weights");
    EN_TRY_OUT(w->be->ops->upload(w->be, stats, w->ema ? s.ema_stats : s.stats, q), "loading the weights");
out:
    en_snapshot_free(&s);
    if (status != EN_OK) en_weights_close(w);
    return status;
}

void en_weights_close(en_weights *w)
{
    if (w->params) w->be->ops->free(w->be, w->params);
    if (w->stats) w->be->ops->free(w->be, w->stats);
    en_model_free(w->model);
    en_backend_close(w->be);
    en_checkpoint_info_free(&w->info);
    *w = (en_weights){ 0 };
}
