/* run_stage.c - a run's net and its images, of the stage that the next step is in (stages.h).
 *
 * Weights, their optimizer, averages and the order of images know nothing of stages: the tensors of a network are the same at every
 * size.  What does know the size is opened anew at a border, by all ranks before the same step: the net with its activations, the
 * recordings of the device, whose pointers lie in it, and the loader, whose threads have decoded some batches too many by then.  The
 * step fetches nothing from behind the border (step.c), so nothing of the old size is left.
 *
 * The old stage's memory is given back before the new one's is taken.  The micro-batch is what fits in the largest stage, in all of them:
 * batch norm is over the images of a pass, and a function of the step must not depend on memory.
 *
 * Going back after a divergence (run_diverge.c) may lead into an earlier stage: the same, the other way. */
#include "comm/watch.h"
#include "trainer/commands.h"
#include "trainer/run.h"

#include <inttypes.h>
#include <stdio.h>

static void close_net(en_trainer *t)
{
    en_replay_close(t);
    en_net_close(t->net);
    t->net = NULL;
    if (t->stage_model != t->model) en_model_free(t->stage_model);
    t->stage_model = NULL;
}

en_status en_run_open_net(en_run *run, int64_t step)
{
    en_trainer *t = &run->t;
    close_net(t);
    t->stage = en_stage_at(&t->stages, step);
    const en_stage_values v = en_stage_values_of(&t->stages, t->stage);
    t->stage_end = v.end;
    if (t->stages.count == 1) t->stage_model = t->model;
    else EN_TRY(en_model_resized(t->model, v.size, v.dropout >= 0 ? (float)v.dropout : t->model->dropout, &t->stage_model), "stage %d", t->stage + 1);
    const en_net_config c = en_run_net_config(run, t->stage_model, run->micro_batch);
    EN_TRY(en_net_open(&c, &t->net), "memory for %d px", v.size);
    en_net_bind(t->net, t->a.params, t->a.grads, t->a.stats);
    return EN_OK;
}

/* Scratch grows with what nets announce, and moves when it grows; a recorded step knows where it lay.  So the largest net of the training
 * and that of the evaluation are opened once, before anything is recorded.  That the last stage fits is known then, too. */
en_status en_run_reserve(en_run *run)
{
    const en_trainer *t = &run->t;
    const en_net_config last = en_run_net_config(run, t->model, run->micro_batch);
    en_net *net;
    if (t->stages.count > 1) {
        EN_TRY(en_net_open(&last, &net), "the last stage, %d px", t->model->resolution);
        en_net_close(net);
    }
    if (t->recording && t->val_set) {
        const en_net_config eval = { .be = t->be, .model = run->eval_model, .max_images = en_run_eval_batch(run, run->micro_batch) };
        EN_TRY(en_net_open(&eval, &net), "the evaluation, %d px", run->eval_model->resolution);
        en_net_close(net);
    }
    return EN_OK;
}

en_status en_run_open_stage(en_run *run)
{
    en_trainer *t = &run->t;
    en_watch_images(EN_DATA, NULL);
    en_loader_close(t->loader);
    t->loader = NULL;
    t->piece.fetched = false;                               /* what was fetched ahead is of another step now */
    if (en_stage_at(&t->stages, t->state.step) != t->stage) EN_TRY(en_run_open_net(run, t->state.step), "step %" PRId64, t->state.step + 1);
    EN_TRY(en_run_open_loader(run), "step %" PRId64, t->state.step + 1);
    return EN_OK;
}

en_status en_run_enter_stage(en_run *run, bool *entered)
{
    en_trainer *t = &run->t;
    const int stage = en_stage_at(&t->stages, t->state.step);
    char detail[40];
    *entered = stage != t->stage;
    if (!*entered) return EN_OK;
    snprintf(detail, sizeof detail, "opening stage %d", stage + 1);
    en_watch_at(EN_STARTUP, detail);
    en_status mine = t->be->ops->synchronize(t->be);        /* what travels to a slot reads the loader's memory */
    if (mine == EN_OK) mine = en_run_open_stage(run);
    const en_status s = en_agree(t->comm, mine);
    t->agreed = s != EN_OK && s != EN_EPEER;
    EN_TRY(s, "opening stage %d of %d", stage + 1, t->stages.count);
    return EN_OK;
}
