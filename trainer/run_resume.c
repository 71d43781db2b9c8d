/* run_resume.c - a run's state between memory and its checkpoints.
 *
 * Rank 0 alone reads and writes; the state is replicated, so the others receive it by broadcast and prove by a hash of
 * their weights, at every save, that they still hold the same bits. */
#include "comm/watch.h"
#include "trainer/crc32c.h"
#include "trainer/run.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void passed_over(const char *path, const char *why) { fprintf(stderr, "effnet: passing over %s: %s\n", path, why); }

static en_status inspect(en_run *run, en_checkpoint_info *info, char path[4096])
{
    char dir[4096];
    snprintf(dir, sizeof dir, "%s/checkpoints", run->dir);
    path[0] = 0;
    EN_TRY(en_checkpoint_newest(dir, path, passed_over), "looking for a checkpoint in %s", dir);
    if (path[0]) EN_TRY(en_checkpoint_inspect(path, false, info), "going on from %s", path);   /* newest() verified it */
    return EN_OK;
}

en_status en_run_find_checkpoint(en_run *run, bool *found, en_checkpoint_info *info, char path[4096])
{
    en_comm *c = run->t.comm;
    en_status mine = EN_OK;
    *found = false;
    if (c->rank == 0 && run->dir[0]) mine = inspect(run, info, path);
    EN_TRY(en_agree(c, mine), "looking for a checkpoint");
    EN_TRY(c->ops->broadcast(c, path, 4096, 0), "sharing the checkpoint's name");
    if (!path[0]) return EN_OK;
    *found = true;
    EN_TRY(c->ops->broadcast(c, &info->state, sizeof info->state, 0), "sharing the run's state");
    return EN_OK;
}

/* The checkpoint must be of this run: what would change the order of images or the meaning of a weight is refused. */
static en_status check_same_run(const en_run *run, const en_checkpoint_info *i, const char *path)
{
    const en_trainer *t = &run->t;
    EN_REQUIRE(strcmp(i->model, t->model->row->name) == 0 && i->width == t->model->width && i->depth == t->model->depth, EN_EUSAGE,
               "%s holds %s (width %g, depth %g), the options ask for %s (width %g, depth %g): take another --run, or the same --model", path,
               i->model, i->width, i->depth, t->model->row->name, t->model->width, t->model->depth);
    EN_REQUIRE(i->classes == t->model->classes, EN_EDATA, "%s was trained on %d classes, %s has %d: take another --run", path, i->classes,
               t->train_set->source, t->model->classes);
    for (int k = 0; i->class_names && k < i->classes; k++)
        EN_REQUIRE(strcmp(i->class_names[k], t->train_set->class_names[k]) == 0, EN_EDATA, "class %d is '%s' in %s and '%s' in %s: take another --run", k,
                   i->class_names[k], path, t->train_set->class_names[k], t->train_set->source);
    EN_REQUIRE(i->resolution == t->model->resolution, EN_EUSAGE, "%s was trained at %d px, now %d px are asked for: --image-size %d, or another --run", path,
               i->resolution, t->model->resolution, i->resolution);
    EN_REQUIRE(i->state.samples == t->train_set->samples, EN_EDATA, "%s counts %" PRId64 " training images, %s has %" PRId64 ": the order of images would "
               "change; restore the dataset or take another --run", path, i->state.samples, t->train_set->source, t->train_set->samples);
    EN_REQUIRE(i->state.global_batch == t->shard.global_batch, EN_EUSAGE, "%s was trained with --global-batch %" PRId64 ", now it is %" PRId64
               ": give the same, or take another --run", path, i->state.global_batch, t->shard.global_batch);
    EN_REQUIRE(!en_option_given(t->o, "seed") || (uint64_t)t->o->seed == i->state.seed, EN_EUSAGE, "%s was trained with --seed %" PRIu64
               ", now it is %" PRId64 ": leave it out, or take another --run", path, i->state.seed, t->o->seed);
    EN_REQUIRE(i->has_ema == (t->o->ema > 0), EN_EUSAGE, "%s was trained %s --ema: go on as it began, or take another --run", path, i->has_ema ? "with" : "without");
    return EN_OK;
}

static en_status read_snapshot(en_run *run, const char *path)
{
    en_checkpoint_info info = { 0 };
    EN_TRY(en_checkpoint_inspect(path, false, &info), "reading %s", path);
    en_status s = check_same_run(run, &info, path);
    en_checkpoint_info_free(&info);
    EN_TRY(s, "going on from %s", path);
    EN_TRY(en_checkpoint_read(path, &run->snapshot, false), "going on from %s", path);
    return EN_OK;
}

/* One arena: rank 0 has it on the host, all ranks end with it on the device. */
static en_status share(en_run *run, float *host, float *device, int64_t elems, float *bounce)
{
    en_comm *c = run->t.comm;
    if (!device) return EN_OK;
    float *from = c->rank == 0 ? host : bounce;
    EN_TRY(c->ops->broadcast(c, from, (size_t)elems * sizeof(float), 0), "sharing the weights");
    EN_TRY(run->t.be->ops->upload(run->t.be, device, from, (size_t)elems * sizeof(float)), "loading the weights");
    return EN_OK;
}

en_status en_run_load_checkpoint(en_run *run, const char *path)
{
    en_trainer *t = &run->t;
    const int64_t p = t->model->param_elems, s = t->model->stat_elems;
    en_snapshot *h = &run->snapshot;
    EN_TRY(en_agree(t->comm, t->comm->rank == 0 ? read_snapshot(run, path) : EN_OK), "going on from a checkpoint");
    if (t->comm->rank == 0) t->state = h->state;
    EN_TRY(t->comm->ops->broadcast(t->comm, &t->state, sizeof t->state, 0), "sharing the run's state");
    float *bounce = t->comm->rank == 0 ? NULL : malloc((size_t)(p > s ? p : s) * sizeof *bounce);
    en_status status = EN_OK;
    EN_TRY_OUT(en_agree(t->comm, bounce || t->comm->rank == 0 ? EN_OK : en_raise(EN_ENOMEM, __FILE__, __LINE__, __func__, "no memory to receive the weights")),
               "sharing the weights");
    EN_TRY_OUT(share(run, h->params, t->a.params, p, bounce), "parameters");
    EN_TRY_OUT(share(run, h->slot[0], t->a.ms, p, bounce), "mean squares");
    EN_TRY_OUT(share(run, h->slot[1], t->a.mom, p, bounce), "momentum");
    EN_TRY_OUT(share(run, h->ema_params, t->a.ema, p, bounce), "averaged parameters");
    EN_TRY_OUT(share(run, h->stats, t->a.stats, s, bounce), "running statistics");
    EN_TRY_OUT(share(run, h->ema_stats, t->a.ema_stats, s, bounce), "averaged statistics");
out:
    free(bounce);
    return status;
}

/* ---- saving ---------------------------------------------------------------------------------------------------------- */

/* Every rank holds the same bits, or a machine computes wrongly: better to stop than to save one of two truths. */
static en_status check_equal_weights(en_run *run, float *host_params, float *host_stats)
{
    en_trainer *t = &run->t;
    en_comm *c = t->comm;
    uint64_t mine = (uint64_t)en_crc32c(0, host_params, (size_t)t->model->param_elems * sizeof(float)) << 32 |
                    en_crc32c(0, host_stats, (size_t)t->model->stat_elems * sizeof(float));
    uint64_t *all = c->rank == 0 ? malloc((size_t)c->world_size * sizeof *all) : NULL;
    EN_REQUIRE(all || c->rank != 0, EN_ENOMEM, "no memory to compare the weights of %d ranks", c->world_size);
    EN_TRY(c->ops->gather(c, &mine, sizeof mine, all, 0), "comparing weights");
    int odd = -1;
    for (int r = 0; c->rank == 0 && r < c->world_size; r++)
        if (all[r] != all[0]) odd = r;
    free(all);
    EN_TRY(c->ops->broadcast(c, &odd, sizeof odd, 0), "comparing weights");
    run->weights_crc = mine;
    t->agreed = odd >= 0;
    EN_REQUIRE(odd < 0, EN_EPEER, "rank %d holds other weights than rank 0 after step %" PRId64 ": its machine or network computes wrongly; the checkpoint "
               "was not written", odd, t->state.step);
    return EN_OK;
}

en_status en_run_save(en_run *run, bool best)
{
    en_trainer *t = &run->t;
    const struct en_backend_ops *ops = t->be->ops;
    const size_t p = (size_t)t->model->param_elems * sizeof(float), s = (size_t)t->model->stat_elems * sizeof(float);
    if (!run->dir[0]) return EN_OK;
    t->agreed = false;                                      /* a rank that fails here by itself ends the job (train.c) */
    en_watch_at(EN_CHECKPOINT, NULL);
    const double began = en_seconds();
    double free_at = began;
    en_snapshot *h = &run->snapshot;
    if (t->comm->rank == 0) {
        if (en_checkpoint_writer_acquire(run->writer) != EN_OK) {                     /* the write before this one */
            fprintf(stderr, "effnet: a checkpoint could not be written, training goes on: %s", en_error_text());
            en_error_clear();
            if (!best) t->state.best_top1 = run->best_on_disk;     /* what was not kept need not be surpassed; evaluate() shares it */
        } else if (run->best_being_written >= 0) run->best_on_disk = run->best_being_written;
        run->best_being_written = best ? t->state.best_top1 : -1;
        free_at = en_seconds();
        EN_TRY(ops->download(t->be, h->params, t->a.params, p), "snapshot");
        EN_TRY(ops->download(t->be, h->stats, t->a.stats, s), "snapshot");
        EN_TRY(ops->download(t->be, h->slot[0], t->a.ms, p), "snapshot");
        EN_TRY(ops->download(t->be, h->slot[1], t->a.mom, p), "snapshot");
        if (t->a.ema) {
            EN_TRY(ops->download(t->be, h->ema_params, t->a.ema, p), "snapshot");
            EN_TRY(ops->download(t->be, h->ema_stats, t->a.ema_stats, s), "snapshot");
        }
        h->state = t->state;
        EN_TRY(check_equal_weights(run, h->params, h->stats), "saving step %" PRId64, t->state.step);
        en_checkpoint_writer_begin(run->writer, best);
        const en_checkpoint_record r = { .step = t->state.step, .wait_s = free_at - began, .snapshot_s = en_seconds() - free_at, .best = best };
        if (run->metrics && en_metrics_checkpoint(run->metrics, &r) != EN_OK) {        /* not worth a run */
            fprintf(stderr, "effnet: metrics: %s\n", en_error_message());
            en_error_clear();
        }
    } else {
        float *copy = malloc(p + s);
        EN_REQUIRE(copy, EN_ENOMEM, "no memory to compare weights");
        en_status status = ops->download(t->be, copy, t->a.params, p);
        if (status == EN_OK) status = ops->download(t->be, copy + t->model->param_elems, t->a.stats, s);
        if (status == EN_OK) status = check_equal_weights(run, copy, copy + t->model->param_elems);
        free(copy);
        EN_TRY(status, "saving step %" PRId64, t->state.step);
    }
    run->saved_step = t->state.step;
    run->saved_at = en_seconds();
    return EN_OK;
}
