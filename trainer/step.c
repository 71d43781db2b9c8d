/* step.c - the training step.  Read this file first: it is the program in 60 lines.
 *
 * The loss is the mean over the global batch, so the gradient of each logit is divided by global_batch and ranks *sum*.
 * What a micro-step does is queued by en_step_work, which never waits: a device that can records it once and replays it from then
 * on, while the host fetches the next images.  What changes from step to step travels with them (en_now), and the step's
 * results come back in one small tally.
 *
 * A rank whose input fails does not leave: it goes on with whatever lies in its slot, so that every sum over ranks still has
 * all its ranks, and says so in the tally, which keeps the update from being made; then all leave together and nobody waits.
 * A loss or a gradient that is not finite keeps the update from being made likewise: the step is skipped on all ranks, since
 * the tally is the same on all, and what the forward pass did to the running statistics is taken back. */
#include "comm/watch.h"
#include "trainer/inject.h"
#include "trainer/trainer.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { BEGUN, FORWARD, BACKWARD, SUMMED, UPDATED };                     /* marks on the device's way */

static double rate_at(const en_trainer *t, int64_t step);
static en_status fetch(en_trainer *t, int64_t step, int64_t micro, en_step_report *r);
static en_status call_roll(en_trainer *t, en_step_report *r, double began, double waited);
static void read_marks(const en_trainer *t, en_step_report *r, double pieces);

en_status en_train_step(en_trainer *t, en_step_report *r)
{
    const int64_t step = t->state.step, accum = t->shard.accum;
    *r = (en_step_report){ .lr = rate_at(t, step) };
    const double t0 = en_seconds(), waited = en_watch_waited();
    en_watch_step(step + 1);
    EN_TRY(en_inject_step_begins(t),                          "step %" PRId64, step);                /* faults on purpose, in the tests' build         */
    if (t->dump) EN_TRY(en_dump_arenas(t, "/before", t->a.params, t->a.stats), "step %" PRId64 ": dump", step);
    for (int64_t micro = 0; micro < accum; micro++) {
        EN_TRY(fetch(t, step, micro, r),                      "step %" PRId64 ": input", step);  /* images, labels, now: on their way to a slot */
        EN_TRY(en_replay(t, en_step_work),                            "step %" PRId64, step);            /* forward, loss, backward; after the last: sums, update */
        if (!t->be->captures && micro + 1 < accum) read_marks(t, r, 1);      /* a processor is through, and its marks are of this piece alone      */
        if (t->be->slots > 1 && !t->dump)                                                       /* the device is at work: fetch what comes next  */
            EN_TRY(micro + 1 < accum ? fetch(t, step, micro + 1, r) : fetch(t, step + 1, 0, r), "step %" PRId64 ": input", step);
    }
    EN_TRY(call_roll(t, r, t0, waited),                       "step %" PRId64, step);
    EN_TRY(en_step_settle(t, r),                                      "step %" PRId64, step);            /* waits: loss, hits, norm of the gradient */
    EN_TRY(en_inject_step_ended(t),                           "step %" PRId64, step);
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
    const en_now *now = en_net_now(t->net, p->slot);

    if (p->first) {
        EN_TRY(ops->zero(be, t->a.grads, (size_t)t->frozen.trained_params * sizeof(float)), "zero");         /* every grads below is += */
        EN_TRY(ops->zero(be, t->tally, EN_TALLY * sizeof(double)), "zero");
        EN_TRY(ops->copy(be, t->a.stats_before, t->a.stats, (size_t)t->model->stat_elems * sizeof(float)), "keeping the statistics");
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
    const int64_t stats = t->frozen.trained_stats;
    if (t->bn_comm != t->tensors && stats > 0) {     /* ranks that normalise apart keep statistics apart; the model has their mean */
        en_request *sum;
        EN_TRY(t->tensors->ops->sum_f32_begin(t->tensors, t->a.stats, (size_t)stats, &sum), "running statistics");
        EN_TRY(t->tensors->ops->sum_wait(t->tensors, sum), "running statistics");
        EN_TRY(ops->scale(be, stats, 1.f / (float)t->tensors->world_size, t->a.stats), "running statistics");
    }
    const en_optimizer_arenas arenas = { t->a.params, t->a.grads, { t->a.slot[0], t->a.slot[1] }, t->a.ema, t->updates, t->tally };
    EN_TRY(en_optimizer_update(&t->optimizer, be, now, t->segments, t->n_segments, &arenas), "%s", t->optimizer.name);
    if (t->a.ema && stats > 0) EN_TRY(ops->ema_update(be, now, stats, t->a.stats, t->a.ema_stats, t->tally), "average of running statistics");
    EN_TRY(ops->mark(be, UPDATED), "mark");
    return EN_OK;
}

/* ---- the pieces ------------------------------------------------------------------------------------------------------ */

/* The schedule's, lowered by what the run has been through (run_diverge.c). */
static double rate_at(const en_trainer *t, int64_t step) { return en_lr_at(&t->schedule, step) * t->state.lr_factor; }

/* The images of (step, micro) into the next slot; nothing to do when they were fetched ahead.  Those behind the end of a stage have
 * another size, so the net and the loader of that stage fetch them (run_stage.c). */
static en_status fetch(en_trainer *t, int64_t step, int64_t micro, en_step_report *r)
{
    en_piece *p = &t->piece;
    if (step >= t->stage_end || (p->fetched && p->step == step && p->micro == micro)) return EN_OK;
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
    p->timed = t->bn_comm->captures && t->bn_comm->world_size > 1 && (step == 4 || step % EN_TIMED_EVERY == 8);     /* the first is never recorded */
    const en_now now = { .seed = t->state.seed, .step = step, .first = first - step * t->shard.global_batch, .failed = t->trouble[0] != 0,
                         .lr = (float)rate_at(t, step), .ema_decay = t->a.ema ? (float)en_ema_decay(t->o->ema, step + 1) : 0.f };
    const void *images = t->be->u8 ? (const void *)t->batch.bytes : t->batch.images;
    const en_targets targets = { t->batch.labels, t->batch.mates, t->batch.shares };
    EN_TRY(en_net_stage(t->net, p->slot, n, images, &targets, &now), "staging");
    r->data_s += en_seconds() - t0;
    return EN_OK;
}

static en_status call_roll(en_trainer *t, en_step_report *r, double began, double waited)
{
    const double work = en_seconds() - began - (en_watch_waited() - waited);
    const en_answer mine = { .stop = en_stop_requested(), .writing = t->writing, .save_again = t->save_again, .work_s = work > 0 ? work : 0 };
    EN_TRY(en_rollcall(t->comm, &mine, t->roll_room, &r->roll), "agreeing on the step");
    return EN_OK;
}

/* What the step came to: the same tally on all ranks, so the same verdict. */
en_status en_step_settle(en_trainer *t, en_step_report *r)
{
    double v[EN_TALLY];
    en_watch_at(EN_DEVICE, NULL);
    EN_TRY(t->be->ops->download(t->be, v, t->tally, sizeof v), "waiting for the step");
    const double pieces = t->be->captures ? (double)t->shard.accum : 1;        /* marks of a device are those of the last of them */
    read_marks(t, r, pieces);
    const double begun = t->be->captures ? 0 : en_buckets_begun_s(t->buckets);       /* lies between the marks of backward */
    r->backward_s -= begun;
    r->grad_comm_s = begun + t->be->ops->elapsed(t->be, BACKWARD, SUMMED);
    r->optimizer_s = t->be->ops->elapsed(t->be, SUMMED, UPDATED);
    r->bn_known = en_net_bn_seconds(t->net, &r->bn_forward_s, &r->bn_backward_s) && (!t->bn_comm->captures || t->sums_timed || t->bn_comm->world_size == 1);
    if (t->bn_comm->captures) r->bn_forward_s *= pieces, r->bn_backward_s *= pieces;

    t->agreed = v[EN_TALLY_FAILED] > 0;
    if (v[EN_TALLY_FAILED] > 0)
        return en_agree(t->comm, t->trouble[0] ? en_raise(t->trouble_status, __FILE__, __LINE__, __func__, "%s", t->trouble) : EN_OK);
    const double images = v[EN_TALLY_IMAGES];
    r->loss = images > 0 ? v[EN_TALLY_LOSS] / images : 0;
    r->top1 = images > 0 ? v[EN_TALLY_TOP1] / images : 0;
    r->grad_norm = sqrt(v[EN_TALLY_GRAD_SQUARE]);
    r->skipped = !isfinite(r->loss) || !isfinite(r->grad_norm);
    if (r->skipped) {
        t->state.skipped++;
        t->state.skipped_in_row++;
        EN_TRY(t->be->ops->copy(t->be, t->a.stats, t->a.stats_before, (size_t)t->model->stat_elems * sizeof(float)), "taking the statistics back");
        return EN_OK;
    }
    t->state.skipped_in_row = 0;
    t->state.ema_updates++;
    return EN_OK;
}

static void read_marks(const en_trainer *t, en_step_report *r, double pieces)
{
    r->forward_s += pieces * t->be->ops->elapsed(t->be, BEGUN, FORWARD);
    r->backward_s += pieces * t->be->ops->elapsed(t->be, FORWARD, BACKWARD);
}
