/* run_input.c - the input side of a run: the loader as the options ask for it, and the pictures that a host keeps. */
#define _GNU_SOURCE
#include "trainer/run.h"

#include "trainer/input.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

static void *take_images(void *owner, size_t bytes)
{
    en_backend *be = owner;
    void *p = NULL;
    if (be->ops->host_alloc(be, bytes, &p) != EN_OK) en_error_clear();             /* the loader says what it has no memory for */
    return p;
}

static void give_images_back(void *owner, void *p) { ((en_backend *)owner)->ops->host_free(owner, p); }

/* ---- the cache: one a host ------------------------------------------------------------------------------------------- */

/* 224 px is cropped out of 256, as in evaluation; a larger picture keeps detail for small crops.  Of the largest stage. */
static int64_t cache_side(const en_run *run)
{
    return run->t.o->cache_side > 0 ? run->t.o->cache_side : (int64_t)run->t.model->resolution * 8 / 7;
}

static en_status plan_cache(en_run *run)
{
    en_trainer *t = &run->t;
    int64_t bytes = 0, room = 0;
    EN_TRY(en_cache_plan(t->train_set, t->o->cache, cache_side(run), &bytes, &room), "--cache %s", t->o->cache);
    const bool memory = en_cache_in_memory(t->o->cache);
    if (t->comm->rank == 0)
        printf("cache       %s%s: about %.4g GB on each host (%" PRId64 " pictures, shorter side at most %" PRId64 "), and %.4g GB may be taken there\n",
               t->o->cache, memory && strcmp(t->o->cache, "memory") != 0 ? " (memory)" : "", (double)bytes / 1e9, t->train_set->samples, cache_side(run),
               (double)room / 1e9);
    EN_REQUIRE((double)bytes <= 0.9 * (double)room, EN_EUSAGE, "--cache %s would take about %.4g GB on host %s, and %.4g GB may be taken there: choose a "
               "smaller --cache-side%s, or leave --cache out", t->o->cache, (double)bytes / 1e9, t->comm->host, (double)room / 1e9,
               memory ? ", a folder on a local disk" : "");
    if (memory) run->cache_bytes = bytes;
    return EN_OK;
}

en_status en_run_open_cache(en_run *run)
{
    en_trainer *t = &run->t;
    en_comm *c = t->comm;
    if (!t->o->cache[0]) return EN_OK;
    uint64_t token = 0;
    en_status mine = plan_cache(run);
    if (mine == EN_OK && c->rank == 0 && getrandom(&token, sizeof token, 0) != (ssize_t)sizeof token) token = (uint64_t)(1e9 * en_seconds());
    EN_TRY(en_agree(c, mine), "planning the cache");
    EN_TRY(c->ops->broadcast(c, &token, sizeof token, 0), "naming the cache");
    const en_cache_config config = { .place = t->o->cache, .side = cache_side(run), .samples = t->train_set->samples,
                                     .token = en_hash_text(token, c->host) };       /* hosts may see one folder: each has its own file */
    EN_TRY(en_agree(c, en_cache_open(&config, &run->cache)), "opening the cache");
    en_cache_unlink(run->cache);
    return EN_OK;
}

/* ---- the loader -------------------------------------------------------------------------------------------------------- */

en_status en_run_open_loader(en_run *run)
{
    en_trainer *t = &run->t;
    const en_options *o = t->o;
    en_loader_config c = { .dataset = t->train_set, .shard = t->shard, .size = t->stage_model->resolution,
                           .workers = en_workers_of(o, t->be),
                           .ahead = EN_BATCHES_AHEAD, .ahead_bytes = (size_t)o->prefetch << 20, .seed = t->state.seed, .training = true,
                           .center_crop = strcmp(o->augment, "none") == 0, .normalise = *en_normalise_by(t->model->normalise),
                           .eval_crop = t->model->eval_crop, .v2_crop = strcmp(o->train_crop, "v2") == 0, .kernel = run->resize.kernel,
                           .scaled = strcmp(o->decode, "scaled") == 0, .cache = run->cache, .cache_side = cache_side(run),
                           .first_step = t->state.step, .max_bad_fraction = o->max_bad, .max_pixels = o->max_pixels, .u8 = t->be->u8,
                           .take = take_images, .give_back = give_images_back, .owner = t->be };
    EN_TRY(en_augment_of(o, &c.augment), "augmentation");
    const en_stage_values stage = en_stage_values_of(&t->stages, t->stage);
    if (stage.magnitude >= 0) c.augment.magnitude = stage.magnitude;
    if (stage.mixup >= 0) c.augment.mixup = stage.mixup;
    if (stage.cutmix >= 0) c.augment.cutmix = stage.cutmix;
    EN_TRY(en_loader_open(&c, &t->loader), "starting the loader");
    en_watch_images(EN_DATA, t->loader);
    return EN_OK;
}
