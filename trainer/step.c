/* step.c - the training step.  Read this file first: it is the program in 60 lines.
 *
 * The loss is the mean over the global batch, so the gradient of each logit is divided by global_batch and ranks *sum*.
 * A rank whose input fails does not leave: it goes on with an empty shard, so that every all-reduce still has all its
 * ranks, and says so in the agreement before the update; then all leave together and nobody waits for anyone. */
#include "trainer/trainer.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static en_batch next_batch(en_trainer *t);
static en_status agree(en_trainer *t, const en_loss_sums *mine, en_step_report *r);
static en_status average_statistics(en_trainer *t);
static en_status optimizer_step(en_trainer *t, en_step_report *r);

en_status en_train_step(en_trainer *t, en_step_report *r)
{
    const int64_t step = t->state.step;
    const struct en_backend_ops *ops = t->be->ops;
    const float grad_scale = 1.f / (float)t->shard.global_batch;
    en_loss_sums sums = { 0 };
    *r = (en_step_report){ .lr = en_lr_at(&t->schedule, step) };
    const double t0 = en_now();

    EN_TRY(ops->zero(t->be, t->a.grads, (size_t)t->model->param_elems * sizeof(float)), "step %" PRId64 ": zero", step);  /* every grads below is += */
    if (t->dump) EN_TRY(en_dump_arenas(t, "/before", t->a.params, t->a.stats),    "step %" PRId64 ": dump", step);
    en_buckets_begin(t->buckets);
    for (int64_t micro = 0; micro < t->shard.accum; micro++) {
        const bool last = micro == t->shard.accum - 1;
        const double t1 = en_now();
        const en_batch batch = next_batch(t);                                                           /* host: (n,size,size,3), labels */
        const en_noise noise = { t->state.seed, step, batch.first - step * t->shard.global_batch };
        const double t2 = en_now();
        EN_TRY(en_net_forward(t->net, batch.n, batch.images, &noise),             "step %" PRId64 ": forward",  step);  /* logits (n, classes)     */
        EN_TRY(en_net_loss(t->net, batch.labels, (float)t->o->label_smoothing, grad_scale, &sums), "step %" PRId64 ": loss", step);
        const double t3 = en_now();
        if (t->dump) EN_TRY(en_dump_batch(t, &batch),                             "step %" PRId64 ": dump",     step);
        EN_TRY(en_net_backward(t->net, last ? t->buckets : NULL),                 "step %" PRId64 ": backward", step);  /* grads +=; a bucket that */
        r->data_s += t2 - t1;                                                                                           /* is full begins its sum  */
        r->forward_s += t3 - t2;
        r->backward_s += en_now() - t3;
    }
    r->bn_comm_s = en_net_bn_seconds(t->net);
    EN_TRY(en_buckets_wait(t->buckets),                                           "step %" PRId64 ": all-reduce", step);
    r->grad_comm_s = en_buckets_exposed_s(t->buckets);
    EN_TRY(agree(t, &sums, r),                                                    "step %" PRId64, step);
    if (t->dump) EN_TRY(en_dump_arenas(t, "/gradients", t->a.grads, NULL),        "step %" PRId64 ": dump", step);
    EN_TRY(average_statistics(t),                                                 "step %" PRId64 ": batch norm", step);
    EN_TRY(optimizer_step(t, r),                                                  "step %" PRId64 ": update", step);

    if (t->dump) EN_TRY(en_dump_finish(t),                                        "step %" PRId64 ": dump", step);

    t->state.step++;
    t->state.position += t->shard.global_batch;
    t->state.epoch = t->state.position / t->state.samples;
    r->step_s = en_now() - t0;
    t->state.seconds += r->step_s;
    return EN_OK;
}

/* ---- the pieces ------------------------------------------------------------------------------------------------------ */

static en_batch next_batch(en_trainer *t)
{
    en_batch batch = { 0 };
    if (t->trouble[0]) return batch;
    if (en_loader_next(t->loader, &batch) == EN_OK) return batch;
    snprintf(t->trouble, sizeof t->trouble, "%s", en_error_message());
    en_error_clear();
    return (en_batch){ 0 };
}

/* One small sum: the step's loss and hits, who failed, who wants to stop. */
static en_status agree(en_trainer *t, const en_loss_sums *mine, en_step_report *r)
{
    enum { LOSS, TOP1, TOP5, IMAGES, STOP, FAILED, N };
    double v[N] = { [LOSS] = mine->loss, [TOP1] = mine->top1, [TOP5] = mine->top5, [IMAGES] = mine->images,
                    [STOP] = en_stop_requested(), [FAILED] = t->trouble[0] != 0 };
    EN_TRY(t->comm->ops->sum_f64(t->comm, v, v, N), "agreeing on the step");
    t->agreed = v[FAILED] > 0 || !isfinite(v[LOSS]);
    if (v[FAILED] > 0)
        return en_agree(t->comm, t->trouble[0] ? en_raise(EN_EDATA, __FILE__, __LINE__, __func__, "%s", t->trouble) : EN_OK);
    r->loss = v[IMAGES] > 0 ? v[LOSS] / v[IMAGES] : 0;
    r->top1 = v[IMAGES] > 0 ? v[TOP1] / v[IMAGES] : 0;
    r->stop = v[STOP] > 0;
    EN_REQUIRE(isfinite(v[LOSS]), EN_EDIVERGED, "the loss is %g at step %" PRId64 " (learning rate %g); the newest checkpoint is from before: go on "
               "from it with a smaller --lr or a longer --warmup-epochs", v[LOSS], t->state.step, r->lr);
    return EN_OK;
}

/* Ranks that normalise apart (--bn-group) keep running statistics apart; the model has one set: their mean, the same on all. */
static en_status average_statistics(en_trainer *t)
{
    if (!t->stats_mean) return EN_OK;
    const int64_t n = t->model->stat_elems;
    en_request *sum;
    EN_TRY(t->be->ops->download(t->be, t->stats_mean, t->a.stats, (size_t)n * sizeof(float)), "running statistics");
    EN_TRY(t->comm->ops->sum_f32_begin(t->comm, t->stats_mean, (size_t)n, &sum), "running statistics");
    EN_TRY(t->comm->ops->sum_wait(t->comm, sum), "running statistics");
    for (int64_t i = 0; i < n; i++) t->stats_mean[i] /= (float)t->comm->world_size;
    EN_TRY(t->be->ops->upload(t->be, t->a.stats, t->stats_mean, (size_t)n * sizeof(float)), "running statistics");
    return EN_OK;
}

static en_status optimizer_step(en_trainer *t, en_step_report *r)
{
    const double t0 = en_now();
    const en_options *o = t->o;
    const double ema = o->ema > 0 ? en_ema_decay(o->ema, t->state.step + 1) : 0;
    const en_rmsprop h = { .lr = (float)r->lr, .rho = (float)o->rho, .momentum = (float)o->momentum, .eps = (float)o->eps,
                           .weight_decay = (float)o->weight_decay, .ema_decay = (float)ema };
    double squares = 0;
    EN_TRY(t->be->ops->rmsprop_update(t->be, &h, t->segments, t->n_segments, t->a.params, t->a.grads, t->a.ms, t->a.mom, t->a.ema, &squares), "rmsprop");
    if (t->a.ema) {
        EN_TRY(t->be->ops->ema_update(t->be, t->model->stat_elems, t->a.stats, t->a.ema_stats, (float)ema), "average of running statistics");
        t->state.ema_updates++;
    }
    r->grad_norm = sqrt(squares);
    r->optimizer_s = en_now() - t0;
    t->agreed = !isfinite(squares);                         /* equal gradients on all ranks: an equal answer */
    EN_REQUIRE(isfinite(squares), EN_EDIVERGED, "the gradients are not finite at step %" PRId64 " (loss %g, learning rate %g); the newest checkpoint is "
               "from before: go on from it with a smaller --lr or a longer --warmup-epochs", t->state.step, r->loss, r->lr);
    return EN_OK;
}
