#define _GNU_SOURCE
#include "trainer/bucket_tuner.h"
#include "trainer/run.h"

#include "kernels/host.h"
#include "trainer/commands.h"
#include "trainer/inject.h"
#include "trainer/input.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { DEFAULT_BATCH_PER_RANK = 32 };

/* ---- the run's folder ------------------------------------------------------------------------------------------------ */

en_status en_make_folder(const char *path, const char *option)
{
    char part[4096];
    snprintf(part, sizeof part, "%s", path);
    for (char *p = part + 1; ; p++) {                      /* mkdir -p */
        const char c = *p;
        if (c && c != '/') continue;
        *p = 0;
        EN_REQUIRE(mkdir(part, 0777) == 0 || errno == EEXIST, EN_EIO, "%s cannot be made: %s; choose another %s", part, strerror(errno), option);
        *p = c;
        if (!c) break;
    }
    EN_REQUIRE(access(path, W_OK | X_OK) == 0, EN_EIO, "%s cannot be written to: %s; choose another %s", path, strerror(errno), option);
    return EN_OK;
}

/* A job that was killed may leave a rank that has not heard of it yet, for some seconds: its successor waits for it. */
bool en_take_lock(int lock_fd, const char *dir)
{
    const double patience_s = 10, until = en_seconds() + patience_s;
    for (bool told = false; flock(lock_fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK; told = true) {
        if (!told) fprintf(stderr, "effnet: another job is in %s; waiting %g s for it to end\n", dir, patience_s);
        if (en_seconds() > until) return false;
        nanosleep(&(struct timespec){ .tv_nsec = 100000000 }, NULL);
    }
    return true;
}

/* RUN/run.lock keeps a second job out of the same folder.  A file system without locks is no reason to refuse. */
static en_status open_folder(en_run *run)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/checkpoints", run->dir);
    EN_TRY(en_make_folder(run->dir, "--run"), "the run's folder");
    EN_TRY(en_make_folder(path, "--run"), "the run's folder");
    snprintf(path, sizeof path, "%s/run.lock", run->dir);
    run->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    EN_REQUIRE(run->lock_fd >= 0, EN_EIO, "%s cannot be written: %s; choose another --run", path, strerror(errno));
    EN_REQUIRE(en_take_lock(run->lock_fd, run->dir), EN_EUSAGE,
               "another job is training in %s; choose another --run, or wait for it", run->dir);
    return EN_OK;
}

/* ---- data -------------------------------------------------------------------------------------------------------------- */

static en_status open_data(en_run *run)
{
    en_trainer *t = &run->t;
    const en_options *o = t->o;
    EN_REQUIRE(o->data[0], EN_EUSAGE, "which images? --data DIR (DIR/train/<class>/..., DIR/val/<class>/...), or --data synthetic");
    en_watch_at(EN_STARTUP, "listing the training images");
    EN_TRY(en_dataset_open(o->data, "train", NULL, &t->train_set), "opening the training images");
    EN_REQUIRE(t->train_set->classes >= 2, EN_EDATA, "%s has one class only, '%s': there is nothing to tell apart; give each class a folder "
               "of its own", t->train_set->source, t->train_set->class_names[0]);
    EN_REQUIRE(t->train_set->samples >= t->comm->world_size, EN_EDATA, "%s has %" PRId64 " images for %d ranks; start fewer ranks", t->train_set->source,
               t->train_set->samples, t->comm->world_size);
    en_watch_at(EN_STARTUP, "listing the validation images");
    if (!o->metrics[0] && (o->val[0] || en_dataset_has(o->data, "val")))          /* one that is measured alone evaluates nothing */
        EN_TRY(en_dataset_open(o->val[0] ? o->val : o->data, "val", t->train_set, &t->val_set), "opening the validation images");
    return EN_OK;
}

/* Every rank scanned the folders itself.  If one saw other files, its images would not be the others'; if one saw no
 * validation images, the others would wait for it in the first evaluation. */
static en_status check_same_data(en_run *run)
{
    en_trainer *t = &run->t;
    const en_dataset *val = t->val_set;
    const uint64_t mine[2] = { en_dataset_hash(t->train_set), en_dataset_hash(val) };
    uint64_t first[2] = { mine[0], mine[1] };
    EN_TRY(t->comm->ops->broadcast(t->comm, first, sizeof first, 0), "comparing datasets");
    EN_REQUIRE(first[0] == mine[0], EN_EDATA, "host %s sees other files in %s than rank 0 (%" PRId64 " here): is it the same, complete copy?", t->comm->host,
               t->train_set->source, t->train_set->samples);
    EN_REQUIRE(!first[1] == !mine[1], EN_EDATA, "host %s sees %svalidation images and rank 0 sees %s: is it the same, complete copy of %s?", t->comm->host,
               val ? "" : "no ", val ? "none" : "some", t->train_set->source);
    EN_REQUIRE(first[1] == mine[1], EN_EDATA, "host %s sees other validation files in %s than rank 0 (%" PRId64 " here): is it the same, complete copy?",
               t->comm->host, val->source, val->samples);
    return EN_OK;
}

/* ---- batch: global = sum over micro-steps and ranks --------------------------------------------------------------------- */

int64_t en_run_eval_batch(const en_run *run, int64_t micro_batch)
{
    const en_options *o = run->t.o;
    return en_eval_batch(run->t.val_set, run->t.comm, o->eval_batch > 0 ? o->eval_batch : micro_batch);
}

/* Weights and what belongs to them.  On the host, rank 0 holds two copies more while it writes a checkpoint (the snapshot and
 * the file's image). */
static size_t state_bytes(const en_run *run)
{
    const en_model *m = run->t.model;
    const size_t copies = 2 + (size_t)run->t.optimizer.n_slots + (run->t.o->ema > 0), stats = run->t.o->ema > 0 ? 3 : 2, p = (size_t)m->param_elems, s = (size_t)m->stat_elems;
    const size_t one = copies * p + stats * s, saving = !run->dir[0] ? 0 : run->t.comm->rank == 0 ? 2 * (one - p) : 0;
    if (run->device_memory > 0) return one * sizeof(float) + (run->t.be->dtype == EN_F32 ? 0 : p * en_dtype_bytes(run->t.be->dtype));
    return (one + saving) * sizeof(float);
}

en_net_config en_run_net_config(const en_run *run, const en_model *m, int64_t images)
{
    return (en_net_config){ .be = run->t.be, .model = m, .bn_comm = run->t.bn_comm, .max_images = images, .training = true,
                            .bn_momentum = (float)run->t.o->bn_momentum, .frozen = run->t.frozen.layers, .slots = run->t.be->slots,
                            .mixing = run->t.o->mixup > 0 || run->t.o->cutmix > 0 };
}

static en_status net_bytes(const en_net_config *c, size_t *bytes)
{
    en_net_plan plan;
    EN_TRY(en_net_plan_make(c, &plan), "planning for %" PRId64 " images", c->max_images);
    *bytes += plan.activations.bytes + plan.small_bytes;
    en_net_plan_free(&plan);
    return EN_OK;
}

/* Batches of the training and of the evaluation, on the host */
static size_t input_bytes(const en_run *run, int64_t images, int64_t prefetch)
{
    const en_trainer *t = &run->t;
    en_loader_config c = { .dataset = t->train_set, .training = true, .size = t->model->resolution, .u8 = t->be->u8, .ahead = EN_BATCHES_AHEAD,
                           .ahead_bytes = (size_t)prefetch << 20, .workers = en_workers_of(t->o, t->be),
                           .shard = { .global_batch = images * t->comm->world_size, .accum = 1, .world_size = t->comm->world_size } };
    if (en_augment_of(t->o, &c.augment) != EN_OK) en_error_clear();              /* check_options has had it */
    const size_t bytes = en_loader_bytes(&c);
    if (!t->val_set) return bytes;
    c.augment = (en_augment){ 0 };
    c.dataset = t->val_set;
    c.training = false;
    c.size = run->eval_model->resolution;
    c.shard.global_batch = en_run_eval_batch(run, images) * t->comm->world_size;
    return bytes + en_loader_bytes(&c);
}

static en_status bytes_for(const en_run *run, int64_t images, int64_t prefetch, size_t *bytes)
{
    const en_net_config c = en_run_net_config(run, run->t.model, images);         /* of the last stage: the largest */
    *bytes = state_bytes(run) + run->t.be->scratch_bytes;
    if (run->device_memory <= 0) *bytes += input_bytes(run, images, prefetch);
    EN_TRY(net_bytes(&c, bytes), "the training");
    if (!run->t.val_set) return EN_OK;
    const en_net_config e = { .be = run->t.be, .model = run->eval_model, .max_images = en_run_eval_batch(run, images) };
    EN_TRY(net_bytes(&e, bytes), "the evaluation");
    return EN_OK;
}

/* This rank's share of what the host still gives.  0: not known */
static int64_t host_memory(const en_run *run)
{
    const int64_t free_now = en_memory_available();
    return free_now > 0 ? (free_now > run->cache_bytes ? free_now - run->cache_bytes : 1) / run->t.comm->local_size : 0;
}

int64_t en_default_batch(int64_t ranks, int64_t samples)
{
    const int64_t global = DEFAULT_BATCH_PER_RANK * ranks;
    return global <= samples ? global : samples / ranks * ranks;
}

/* A run that goes on keeps its number of passes a step, whatever memory is free today: batch norm is over the images of a
 * pass, so another number would be another run.  For the same reason --prefetch has no say in it: two batches are reckoned with. */
static en_status choose_batch(en_run *run)
{
    en_trainer *t = &run->t;
    const en_options *o = t->o;
    const int64_t world = t->comm->world_size, samples = t->train_set->samples;
    const int64_t global = o->global_batch > 0 ? o->global_batch : en_default_batch(world, samples);
    EN_REQUIRE(global >= world, EN_EUSAGE, "--global-batch %" PRId64 " is less than one image for each of %" PRId64 " ranks", global, world);
    EN_REQUIRE(global % world == 0 || o->uneven, EN_EUSAGE, "--global-batch %" PRId64 " is not a multiple of %" PRId64 " ranks: give %" PRId64 " or %" PRId64
               ", or --uneven for shards that differ by one image", global, world, global / world * world, (global / world + 1) * world);
    EN_REQUIRE(global <= samples, EN_EUSAGE, "--global-batch %" PRId64 " is more than the %" PRId64 " images of %s: give fewer", global, samples,
               t->train_set->source);

    const int64_t per_rank = (global + world - 1) / world, available = run->device_memory > 0 ? run->device_memory : host_memory(run);
    int64_t first = o->micro_batch > 0 ? (per_rank + o->micro_batch - 1) / o->micro_batch : run->accum_before;
    if (first > per_rank) first = per_rank;
    for (int64_t accum = first > 0 ? first : 1; ; accum++) {
        const int64_t micro = (per_rank + accum - 1) / accum;
        EN_TRY(bytes_for(run, micro, 0, &run->memory_bytes), "choosing the micro-batch");
        const bool fits = available == 0 || (double)run->memory_bytes <= 0.9 * (double)available;
        if (!fits && o->micro_batch == 0 && micro > 1) continue;
        EN_REQUIRE(fits, EN_ENOMEM, "a pass of %" PRId64 " image%s needs %.1f GiB a rank, %.1f GiB are free%s", micro, micro == 1 ? "" : "s",
                   (double)run->memory_bytes / 0x1p30, (double)available / 0x1p30,
                   o->micro_batch > 0 ? ": choose a smaller --micro-batch" : ": choose a smaller --image-size or --model, or fewer ranks on this host");
        t->shard = (en_shard){ .global_batch = global, .accum = accum, .rank = t->comm->rank, .world_size = (int)world };
        break;
    }
    return EN_OK;
}

/* Ranks with less memory decide for all. */
static en_status agree_on_batch(en_run *run)
{
    en_trainer *t = &run->t;
    double *accum = calloc((size_t)t->comm->world_size, sizeof *accum);
    EN_TRY(en_agree(t->comm, accum ? EN_OK : en_raise(EN_ENOMEM, __FILE__, __LINE__, __func__, "no memory")), "agreeing on the micro-batch");
    accum[t->comm->rank] = (double)t->shard.accum;
    const en_status s = t->comm->ops->sum_f64(t->comm, accum, accum, (size_t)t->comm->world_size);
    for (int r = 0; r < t->comm->world_size; r++)
        if ((int64_t)accum[r] > t->shard.accum) t->shard.accum = (int64_t)accum[r];
    free(accum);
    EN_TRY(s, "agreeing on the micro-batch");
    run->micro_batch = en_shard_max(&t->shard);
    EN_TRY(bytes_for(run, run->micro_batch, t->o->prefetch, &run->memory_bytes), "planning memory");
    return EN_OK;
}

static en_status check_prefetch(const en_run *run)
{
    const int64_t prefetch = run->t.o->prefetch, available = host_memory(run);
    const double needed = run->device_memory > 0 ? (double)input_bytes(run, run->micro_batch, prefetch) : (double)run->memory_bytes;
    EN_REQUIRE(prefetch == 0 || available == 0 || needed <= 0.9 * (double)available, EN_EUSAGE, "--prefetch %" PRId64 " MiB%s: %.1f GiB of host memory a "
               "rank in all, and %.1f GiB are free on host %s: choose a smaller one", prefetch, run->t.val_set ? ", in training and in evaluation" : "",
               needed / 0x1p30, (double)available / 0x1p30, run->t.comm->host);
    return EN_OK;
}

/* ---- model, arenas -------------------------------------------------------------------------------------------------------- */

static en_status take_arenas(en_trainer *t)
{
    const size_t p = (size_t)t->model->param_elems * sizeof(float), s = (size_t)t->model->stat_elems * sizeof(float);
    const bool ema = t->o->ema > 0;
    struct { float **arena; size_t bytes; } want[] = { { &t->a.params, p }, { &t->a.grads, p },
                                                       { &t->a.slot[0], t->optimizer.n_slots > 0 ? p : 0 }, { &t->a.slot[1], t->optimizer.n_slots > 1 ? p : 0 },
                                                       { &t->a.stats, s }, { &t->a.stats_before, s }, { &t->a.ema, ema ? p : 0 }, { &t->a.ema_stats, ema ? s : 0 } };
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        void *out = NULL;
        if (want[i].bytes) EN_TRY(t->be->ops->alloc(t->be, want[i].bytes, &out), "weights and their optimizer");
        *want[i].arena = out;
    }
    void *tally = NULL;
    t->roll_room = calloc(2 * (size_t)(EN_ROLL_WORDS + t->comm->world_size), sizeof *t->roll_room);
    EN_REQUIRE(t->roll_room, EN_ENOMEM, "no memory for %d ranks", t->comm->world_size);
    EN_TRY(t->be->ops->alloc(t->be, EN_TALLY * sizeof(double), &tally), "the tally");
    t->tally = tally;
    void *updates = NULL;
    EN_TRY(t->be->ops->alloc(t->be, sizeof *t->updates, &updates), "the count of updates");
    t->updates = updates;
    EN_TRY(t->be->ops->keep_weights(t->be, t->a.params, t->model->param_elems), "weights in the storage type");
    return EN_OK;
}

/* From scratch: initialisers; accumulators as their optimizer begins, averages at the initial weights, no update made. */
en_status en_run_start_fresh(en_trainer *t)
{
    const int64_t p = t->model->param_elems, s = t->model->stat_elems;
    float *host = malloc((size_t)p * sizeof *host), *stats = malloc((size_t)s * sizeof *stats);
    en_status status = EN_OK;
    EN_REQUIRE_OUT(host && stats, EN_ENOMEM, "no memory to initialise %" PRId64 " parameters", p);
    en_model_init(t->model, t->state.seed, host, stats);
    EN_TRY_OUT(t->be->ops->upload(t->be, t->a.params, host, (size_t)p * sizeof *host), "initialising");
    EN_TRY_OUT(t->be->ops->upload(t->be, t->a.stats, stats, (size_t)s * sizeof *stats), "initialising");
    if (t->a.ema) {
        EN_TRY_OUT(t->be->ops->upload(t->be, t->a.ema, host, (size_t)p * sizeof *host), "initialising");
        EN_TRY_OUT(t->be->ops->upload(t->be, t->a.ema_stats, stats, (size_t)s * sizeof *stats), "initialising");
    }
    for (int k = 0; k < t->optimizer.n_slots; k++) {
        for (int64_t i = 0; i < p; i++) host[i] = t->optimizer.slot_start[k];
        EN_TRY_OUT(t->be->ops->upload(t->be, t->a.slot[k], host, (size_t)p * sizeof *host), "initialising");
    }
    EN_TRY_OUT(t->be->ops->zero(t->be, t->updates, sizeof *t->updates), "initialising");
out:
    free(host);
    free(stats);
    return status;
}

/* ---- all of it ------------------------------------------------------------------------------------------------------------ */

static en_lr_kind kind_of(const char *name)
{
    return strcmp(name, "cosine") == 0 ? EN_LR_COSINE : strcmp(name, "constant") == 0 ? EN_LR_CONSTANT
                                      : strcmp(name, "polynomial") == 0 ? EN_LR_POLYNOMIAL : EN_LR_EXPONENTIAL;
}

static en_status make_schedule(en_trainer *t)
{
    const en_options *o = t->o;
    const double epoch = (double)t->train_set->samples / (double)t->shard.global_batch;
    t->schedule = (en_schedule){ .kind = kind_of(o->lr_schedule), .base = o->lr * (double)t->shard.global_batch / 256, .steps_per_epoch = epoch, .warmup_epochs = o->warmup_epochs,
                                 .decay = o->lr_decay, .decay_epochs = o->lr_decay_epochs, .power = o->lr_power, .end = o->lr_end,
                                 .total_steps = en_total_steps(o->steps, o->epochs, t->train_set->samples, t->shard.global_batch) };
    EN_REQUIRE(t->schedule.total_steps >= 1, EN_EUSAGE, "--epochs %g of %" PRId64 " images is less than one step of %" PRId64 ": give more --epochs, or a "
               "smaller --global-batch", o->epochs, t->train_set->samples, t->shard.global_batch);
    EN_REQUIRE(t->schedule.kind == EN_LR_POLYNOMIAL || !(en_option_given(o, "lr_power") || en_option_given(o, "lr_end")), EN_EUSAGE, "--lr-power and --lr-end "
               "are of --lr-schedule polynomial: leave them out, or choose that");
    EN_REQUIRE(t->schedule.kind != EN_LR_POLYNOMIAL || o->lr_end <= t->schedule.base, EN_EUSAGE, "--lr-end %g is above the rate that it comes down from, %g "
               "for %" PRId64 " images a step: give a smaller one, or a larger --lr", o->lr_end, t->schedule.base, t->shard.global_batch);
    EN_TRY(en_stages_of(o, t->model->resolution, t->model->dropout, t->schedule.total_steps, &t->stages), "--stages");
    return EN_OK;
}

static en_status open_writer(en_run *run)
{
    en_trainer *t = &run->t;
    char dir[4096];
    snprintf(dir, sizeof dir, "%s/checkpoints", run->dir);
    EN_TRY(en_snapshot_alloc(t->model, t->optimizer.n_slots, t->optimizer.slot_name, t->o->ema > 0, &run->snapshot), "memory for snapshots");
    en_options as_it_runs = *t->o;                          /* the seed is the checkpoint's, unless it stands on the command line */
    as_it_runs.seed = (int64_t)t->state.seed;
    as_it_runs.resize = run->resize.name;
    run->options_text = en_options_text(&as_it_runs);
    run->snapshot.class_names = t->train_set->class_names;
    run->snapshot.options = run->options_text;
    EN_TRY(en_checkpoint_writer_open(dir, (int)t->o->keep, &run->snapshot, &run->writer), "starting the checkpoint writer");
    return EN_OK;
}

static en_status open_net(en_run *run, int64_t step)
{
    en_trainer *t = &run->t;
    EN_TRY(take_arenas(t), "taking memory");
    EN_TRY(en_run_reserve(run), "taking memory");
    EN_TRY(en_run_open_net(run, step), "taking memory");
    EN_TRY(en_optimizer_segments(&t->optimizer, t->model, &t->segments, &t->n_segments), "the optimizer");
    en_frozen_cut(&t->frozen, t->segments, &t->n_segments);
    EN_TRY(t->be->ops->zero(t->be, t->a.grads, (size_t)t->model->param_elems * sizeof(float)), "gradients");      /* those of frozen layers stay so */
    const size_t usual = en_buckets_usual(t->tensors->captures, t->comm->nodes);
    size_t bucket_bytes = usual;
    bool tries = false;
    if (en_option_given(t->o, "buckets")) EN_TRY(en_buckets_asked(t->o->buckets, &bucket_bytes, &tries), "gradient buckets");
    EN_TRY(en_buckets_open(t->tensors, t->a.grads, (size_t)t->frozen.trained_params, bucket_bytes, &t->buckets), "gradient buckets");
    if (tries && t->comm->world_size > 1) en_tuner_open(&run->tuner, (size_t)t->frozen.trained_params, usual, t->recording ? 2 * t->be->slots : 1);
    if (run->dir[0] && t->comm->rank == 0) EN_TRY(open_writer(run), "checkpoints");
    EN_TRY(bytes_for(run, run->micro_batch, t->o->prefetch, &run->memory_bytes), "planning memory");       /* with the scratch that the net took */
    return EN_OK;
}

static en_status open_loader(en_run *run)
{
    en_trainer *t = &run->t;
    EN_TRY(en_run_open_loader(run), "starting the loader");
    const char *folder = run->dir[0] ? run->dir : t->o->metrics;
    if (folder[0] && t->comm->rank == 0) EN_TRY(en_metrics_open(folder, run->resumed ? t->state.step : -1, &run->metrics), "metrics");
    if (t->o->dump[0] && t->comm->rank == 0) EN_TRY(en_dump_open(t->o->dump, &t->dump), "--dump");
    return EN_OK;
}

static en_status check_options(const en_options *o, const en_comm *comm)
{
    const bool made_up = strcmp(o->data, "synthetic") == 0 || strncmp(o->data, "synthetic:", 10) == 0;
    en_augment augment;
    EN_TRY(en_augment_of(o, &augment), "augmentation");
    EN_TRY(en_stages_check(o), "stages");
    EN_REQUIRE(o->cache[0] || !en_option_given(o, "cache_side"), EN_EUSAGE, "--cache-side is of cached images; give --cache too, or leave it out");
    EN_REQUIRE(!o->cache[0] || strcmp(o->decode, "scaled") != 0, EN_EUSAGE, "--cache keeps whole pictures, so --decode scaled has no meaning with it; leave "
               "one of them out");
    EN_REQUIRE(!o->run[0] || !o->metrics[0], EN_EUSAGE, "--metrics is for a run that saves nothing; --run has its own, so leave one of them out");
    EN_REQUIRE(o->run[0] || o->metrics[0] || made_up, EN_EUSAGE, "--run DIR: where shall checkpoints and metrics go?");
    EN_REQUIRE(strlen(o->run) < 3900, EN_EUSAGE, "--run is longer than a path can be");
    EN_REQUIRE(!o->dump[0] || comm->world_size == 1, EN_EUSAGE, "--dump compares with another framework: run it on one rank");
    EN_TRY(en_inject_open(o, comm), "checking the options");
    return EN_OK;
}

/* Rank 0 alone has read the checkpoint's options. */
static en_status choose_resize(en_run *run, const en_checkpoint_info *info)
{
    en_comm *c = run->t.comm;
    char earlier[40] = "";
    if (c->rank == 0 && info->options) {
        char value[24];
        if (en_options_text_find(info->options, "resize", value, sizeof value)) snprintf(earlier, sizeof earlier, "resize=%s\n", value);
    }
    EN_TRY(c->ops->broadcast(c, earlier, sizeof earlier, 0), "sharing the checkpoint's resize");
    run->resize = en_resize_of(run->t.o, earlier);
    return EN_OK;
}

static en_status check_beginning(const en_run *run, const char *path)
{
    const en_options *o = run->t.o;
    EN_REQUIRE(!run->resumed || !o->fresh, EN_EUSAGE, "--fresh, but %s is there: take another --run, or leave --fresh out to go on from it", path);
    EN_REQUIRE(run->resumed || o->init[0] || strcmp(o->recipe, "finetune") != 0, EN_EUSAGE, "--recipe finetune begins with trained weights: --init FILE (a "
               "checkpoint, a run or safetensors)");
    return EN_OK;
}

en_status en_run_open(const en_options *o, en_comm *comm, en_run *run)
{
    en_trainer *t = &run->t;
    en_status status = EN_OK;
    en_checkpoint_info info = { 0 };
    char path[4096] = "";
    *run = (en_run){ .lock_fd = -1, .saved_step = -1, .written = true };
    t->o = o;
    t->comm = comm;
    t->piece.slot = -1;
    snprintf(run->dir, sizeof run->dir, "%s", o->run);

    EN_TRY_OUT(en_agree(comm, check_options(o, comm)), "checking the options");
    EN_TRY_OUT(en_agree(comm, en_optimizer_of(o, &t->optimizer)), "checking the options");
    EN_TRY_OUT(en_check_same_options(comm, o), "comparing the options of the ranks");
    EN_TRY_OUT(en_agree(comm, run->dir[0] && comm->rank == 0 ? open_folder(run) : EN_OK), "opening the run's folder");
    EN_TRY_OUT(en_agree(comm, open_data(run)), "opening the images");
    en_watch_at(EN_STARTUP, NULL);
    EN_TRY_OUT(en_agree(comm, check_same_data(run)), "comparing the images that the ranks see");
    EN_TRY_OUT(en_run_find_checkpoint(run, &run->resumed, &info, path), "looking for a checkpoint");
    EN_TRY_OUT(en_agree(comm, choose_resize(run, &info)), "choosing the resize");
    EN_TRY_OUT(en_agree(comm, check_beginning(run, path)), "looking for a checkpoint");
    run->accum_before = info.state.accum;
    run->world_before = info.state.world_size;
    EN_TRY_OUT(en_run_choose_variant(run, &info), "--init");
    EN_TRY_OUT(en_run_open_device(run, run->resumed ? &info : NULL), "opening the device");
    EN_TRY_OUT(en_run_open_cache(run), "opening the cache");
    EN_TRY_OUT(en_agree(comm, choose_batch(run)), "choosing the batch");
    EN_TRY_OUT(en_agree(comm, agree_on_batch(run)), "choosing the batch");
    EN_TRY_OUT(en_run_open_bn_group(run), "choosing the ranks that share batch norm");
    EN_TRY_OUT(en_agree(comm, check_prefetch(run)), "choosing the batch");
    EN_REQUIRE_OUT(!o->dump[0] || t->shard.accum == 1, EN_EUSAGE, "--dump without accumulation: choose a smaller --global-batch");
    EN_TRY_OUT(en_agree(comm, make_schedule(t)), "choosing the number of steps");
    EN_REQUIRE_OUT(!o->dump[0] || !run->resumed || info.state.step < t->schedule.total_steps, EN_EUSAGE,
                   "--dump writes a step, but all %" PRId64 " of %s are done: take another --run, or more --steps", t->schedule.total_steps, run->dir);
    t->state = (en_run_state){ .seed = run->resumed ? info.state.seed : (uint64_t)o->seed, .global_batch = t->shard.global_batch, .samples = t->train_set->samples, .lanes = t->be->lanes,
                               .best_top1 = -1, .lr_factor = 1 };
    EN_TRY_OUT(en_agree(comm, open_net(run, run->resumed ? info.state.step : 0)), "taking memory");
    if (run->resumed) EN_TRY_OUT(en_agree(comm, en_run_load_checkpoint(run, path)), "going on from a checkpoint");
    else EN_TRY_OUT(en_run_begin(run), "initialising");
    t->state.lanes = t->be->lanes;
    t->state.accum = t->shard.accum;
    t->state.world_size = comm->world_size;
    EN_TRY_OUT(en_agree(comm, open_loader(run)), "starting the loader");
    run->best_on_disk = t->state.best_top1;
    run->best_being_written = -1;
    run->saved_at = run->evaluated_at = run->compared_at = en_seconds();
    if (run->resumed) run->saved_step = t->state.step;
out:
    en_checkpoint_info_free(&info);
    if (status != EN_OK) en_run_close(run);
    return status;
}

void en_run_close(en_run *run)
{
    en_trainer *t = &run->t;
    if (t->be) t->be->ops->synchronize(t->be);                                   /* nobody takes memory from a pass */
    en_watch_images(EN_DATA, NULL);
    en_loader_close(t->loader);
    en_cache_close(run->cache);
    en_checkpoint_writer_close(run->writer);
    en_snapshot_free(&run->snapshot);
    en_metrics_close(run->metrics);
    en_dump_discard(t->dump);
    if (t->be) en_replay_close(t);
    en_buckets_close(t->buckets);
    en_net_close(t->net);
    if (t->a.params) t->be->ops->keep_weights(t->be, t->a.params, 0);
    void *arenas[] = { t->a.params, t->a.grads, t->a.slot[0], t->a.slot[1], t->a.ema, t->a.stats, t->a.stats_before, t->a.ema_stats, t->tally,
                       t->updates };
    for (size_t i = 0; i < sizeof arenas / sizeof *arenas; i++)
        if (arenas[i]) t->be->ops->free(t->be, arenas[i]);
    free(t->segments);
    free(t->roll_room);
    free(run->hosts);
    if (t->stage_model != t->model) en_model_free(t->stage_model);
    en_model_free(t->model);
    en_model_free(run->eval_model);
    en_run_close_device(run);
    en_dataset_close(t->train_set);
    en_dataset_close(t->val_set);
    if (run->lock_fd >= 0) close(run->lock_fd);
    free(run->options_text);
    free(run->changed_said);
    *run = (en_run){ .lock_fd = -1 };
}
