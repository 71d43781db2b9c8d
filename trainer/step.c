/* step.c - the training step.  Read this file first: it is the program in 60 lines.
 *
 * The loss is the mean over the global batch, so the gradient of each logit is divided by global_batch and ranks *sum*.
 * What a micro-step does is queued by en_step_work, which never waits: a device that can records it once and replays it from then
 * on, while the host fetches the next images.  What changes from step to step travels with them (en_now), and the step's
 * results come back in one small tally.
 *
 * A rank whose input fails does not leave: it goes on with whatever lies in its slot, so that every sum over ranks still has
 * all its ranks, and says so in the tally, which keeps the update from being made; then all leave together and nobody waits. */
#include "comm/watch.h"
#include "trainer/inject.h"
#include "trainer/trainer.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { BEGUN, FORWARD, BACKWARD, SUMMED, UPDATED };                     /* marks on the device's way */

static en_status fetch(en_trainer *t, int64_t step, int64_t micro, en_step_report *r);
static en_status agree_to_stop(en_trainer *t, en_step_report *r);

en_status en_train_step(en_trainer *t, en_step_report *r)
{
    const int64_t step = t->state.step, accum = t->shard.accum;
    *r = (en_step_report){ .lr = en_lr_at(&t->schedule, step) };
    const double t0 = en_seconds();
    en_watch_step(step + 1);
    EN_TRY(en_inject_step_begins(t),                          "step %" PRId64, step);                /* faults on purpose, in the tests' build         */
    if (t->dump) EN_TRY(en_dump_arenas(t, "/before", t->a.params, t->a.stats), "step %" PRId64 ": dump", step);
    for (int64_t micro = 0; micro < accum; micro++) {
        EN_TRY(fetch(t, step, micro, r),                      "step %" PRId64 ": input", step);  /* images, labels, now: on their way to a slot */
        EN_TRY(en_replay(t, en_step_work),                            "step %" PRId64, step);            /* forward, loss, backward; after the last: sums, update */
        if (t->be->slots > 1 && !t->dump)                                                       /* the device is at work: fetch what comes next  */
            EN_TRY(micro + 1 < accum ? fetch(t, step, micro + 1, r) : fetch(t, step + 1, 0, r), "step %" PRId64 ": input", step);
    }
    EN_TRY(en_inject_step_queued(t),                          "step %" PRId64, step);
    EN_TRY(agree_to_stop(t, r),                               "step %" PRId64, step);
    EN_TRY(en_step_settle(t, r),                                      "step %" PRId64, step);            /* waits: loss, hits, norm of the gradient */
    if (t->dump) EN_TRY(en_dump_finish(t),                    "step %" PRId64 ": dump", step);

    t->state.step++;
    t->state.position += t->shard.global_batch;
    t->state.epoch = t->state.position / t->state.samples;
    r->step_s = en_seconds() - t0;
    t->state.seconds += r->step_s;
    return EN_OK;
}

/* Everything here is queued; pointers and sizes are those of the piece, numbers that change lie in its slot's `now`. */
en_status en_step_work(en_trainer *t, const en_piece *p)
{
    const struct en_backend_ops *ops = t->be->ops;
    en_backend *be = t->be;
    const en_options *o = t->o;
    const en_rmsprop h = { .rho = (float)o->rho, .momentum = (float)o->momentum, .eps = (float)o->eps, .weight_decay = (float)o->weight_decay };
    const en_now *now = en_net_now(t->net, p->slot);

    if (p->first) {
        EN_TRY(ops->zero(be, t->a.grads, (size_t)t->model->param_elems * sizeof(float)), "zero");            /* every grads below is += */
        EN_TRY(ops->zero(be, t->tally, EN_TALLY * sizeof(double)), "zero");
        en_buckets_begin(t->buckets);
    }
    EN_TRY(ops->mark(be, BEGUN), "mark");
    EN_TRY(ops->note(be, now, t->tally), "note");
    EN_TRY(en_net_forward(t->net, p->slot), "forward");                                                       /* logits (n, classes)     */
    EN_TRY(en_net_loss(t->net, (float)o->label_smoothing, 1.f / (float)t->shard.global_batch, t->tally), "loss");
    EN_TRY(ops->mark(be, FORWARD), "mark");
    if (t->dump) EN_TRY(en_dump_batch(t, &t->batch), "dump");
    EN_TRY(en_net_backward(t->net, p->last ? t->buckets : NULL), "backward");                                 /* grads +=; a bucket that */
    EN_TRY(ops->mark(be, BACKWARD), "mark");                                                                  /* is full begins its sum  */
    if (!p->last) return EN_OK;

    en_watch_at(EN_UPDATE, NULL);
    EN_TRY(en_buckets_wait(t->buckets), "all-reduce");
    EN_TRY(t->tensors->ops->sum_f64(t->tensors, t->tally, t->tally, EN_TALLY_SUMS), "summing the tally");
    EN_TRY(ops->mark(be, SUMMED), "mark");
    if (t->dump) EN_TRY(en_dump_arenas(t, "/gradients", t->a.grads, NULL), "dump");
    if (t->bn_comm != t->tensors) {         /* ranks that normalise apart keep statistics apart; the model has their mean */
        en_request *sum;
        EN_TRY(t->tensors->ops->sum_f32_begin(t->tensors, t->a.stats, (size_t)t->model->stat_elems, &sum), "running statistics");
        EN_TRY(t->tensors->ops->sum_wait(t->tensors, sum), "running statistics");
        EN_TRY(ops->scale(be, t->model->stat_elems, 1.f / (float)t->tensors->world_size, t->a.stats), "running statistics");
    }
    EN_TRY(ops->rmsprop_update(be, &h, now, t->segments, t->n_segments, t->a.params, t->a.grads, t->a.ms, t->a.mom, t->a.ema, t->tally), "rmsprop");
    if (t->a.ema) EN_TRY(ops->ema_update(be, now, t->model->stat_elems, t->a.stats, t->a.ema_stats, t->tally), "average of running statistics");
    EN_TRY(ops->mark(be, UPDATED), "mark");
    return EN_OK;
}

/* ---- the pieces ------------------------------------------------------------------------------------------------------ */

/* The images of (step, micro) into the next slot; nothing to do when they were fetched ahead. */
static en_status fetch(en_trainer *t, int64_t step, int64_t micro, en_step_report *r)
{
    en_piece *p = &t->piece;
    if (step >= t->schedule.total_steps || (p->fetched && p->step == step && p->micro == micro)) return EN_OK;
    const double t0 = en_seconds();
    en_watch_at(EN_DATA, NULL);
    if (p->slot >= 0) EN_TRY(t->be->ops->stage_wait(t->be, p->slot), "the input before this");     /* the loader takes its memory back */
    int64_t first, n;
    en_shard_range(&t->shard, step, micro, &first, &n);
    t->batch = (en_batch){ 0 };
    const en_status s = t->trouble[0] ? EN_OK : en_loader_next(t->loader, &t->batch);
    if (s != EN_OK) {
        t->trouble_status = s;
        snprintf(t->trouble, sizeof t->trouble, "%s", en_error_message());
        en_error_clear();
        t->batch = (en_batch){ 0 };                                    /* the work is done on what lies in the slot, and not counted */
    }
    *p = (en_piece){ .fetched = true, .step = step, .micro = micro, .slot = (p->slot + 1) % t->be->slots, .first = micro == 0,
                     .last = micro == t->shard.accum - 1, .all = en_shard_images(&t->shard, micro) };
    const en_now now = { .seed = t->state.seed, .step = step, .first = first - step * t->shard.global_batch, .failed = t->trouble[0] != 0,
                         .lr = (float)en_lr_at(&t->schedule, step), .ema_decay = t->a.ema ? (float)en_ema_decay(t->o->ema, step + 1) : 0.f };
    const void *images = t->be->u8 ? (const void *)t->batch.bytes : t->batch.images;
    const en_targets targets = { t->batch.labels, t->batch.mates, t->batch.shares };
    EN_TRY(en_net_stage(t->net, p->slot, n, images, &targets, &now), "staging");
    r->data_s += en_seconds() - t0;
    return EN_OK;
}

static en_status agree_to_stop(en_trainer *t, en_step_report *r)
{
    double stop = en_stop_requested();
    EN_TRY(t->comm->ops->sum_f64(t->comm, &stop, &stop, 1), "agreeing on the step");
    r->stop = stop > 0;
    return EN_OK;
}

/* What the step came to: the same tally on all ranks, so the same verdict. */
en_status en_step_settle(en_trainer *t, en_step_report *r)
{
    double v[EN_TALLY];
    en_watch_at(EN_DEVICE, NULL);
    EN_TRY(t->be->ops->download(t->be, v, t->tally, sizeof v), "waiting for the step");
    const double micros = (double)t->shard.accum;                      /* the marks are those of the last of them */
    r->forward_s = micros * t->be->ops->elapsed(t->be, BEGUN, FORWARD);
    r->backward_s = micros * t->be->ops->elapsed(t->be, FORWARD, BACKWARD);
    r->grad_comm_s = t->be->ops->elapsed(t->be, BACKWARD, SUMMED);
    r->optimizer_s = t->be->ops->elapsed(t->be, SUMMED, UPDATED);
    r->bn_comm_s = en_net_bn_seconds(t->net);

    t->agreed = v[EN_TALLY_FAILED] > 0 || !isfinite(v[EN_TALLY_LOSS]) || !isfinite(v[EN_TALLY_GRAD_SQUARE]);
    if (v[EN_TALLY_FAILED] > 0)
        return en_agree(t->comm, t->trouble[0] ? en_raise(t->trouble_status, __FILE__, __LINE__, __func__, "%s", t->trouble) : EN_OK);
    const double images = v[EN_TALLY_IMAGES];
    r->loss = images > 0 ? v[EN_TALLY_LOSS] / images : 0;
    r->top1 = images > 0 ? v[EN_TALLY_TOP1] / images : 0;
    r->grad_norm = sqrt(v[EN_TALLY_GRAD_SQUARE]);
    EN_REQUIRE(isfinite(r->loss), EN_EDIVERGED, "the loss is %g at step %" PRId64 " (learning rate %g); the newest checkpoint is from before: go on "
               "from it with a smaller --lr or a longer --warmup-epochs", r->loss, t->state.step, r->lr);
    EN_REQUIRE(isfinite(r->grad_norm), EN_EDIVERGED, "the gradients are not finite at step %" PRId64 " (loss %g, learning rate %g); the newest "
               "checkpoint is from before: go on from it with a smaller --lr or a longer --warmup-epochs", t->state.step, r->loss, r->lr);
    if (t->a.ema) t->state.ema_updates++;
    return EN_OK;
}
