/* run_device.c - on what a run computes and how its ranks add up: the same kind of device on all, kernels that round alike,
 * and a communicator for what lies in its memory. */
#include "trainer/run.h"

#include "trainer/commands.h"

#include "kernels/plugin.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- which device ------------------------------------------------------------------------------------------------------ */

/* auto takes GPUs where every rank has one: half of a job on processors would only be waited for. */
static en_status choose_device(en_run *run, const char **name)
{
    const en_options *o = run->t.o;
    en_comm *c = run->t.comm;
    *name = "cpu";
    if (strcmp(o->device, "cpu") == 0) return EN_OK;
    const char *missing = en_cuda_missing();
    const bool asked = strcmp(o->device, "cuda") == 0;
    EN_TRY(en_agree(c, asked && missing ? en_raise(EN_ENOTSUP, __FILE__, __LINE__, __func__, "--device cuda: %s", missing) : EN_OK), "choosing the device");
    double without = missing != NULL;
    EN_TRY(c->ops->sum_f64(c, &without, &without, 1), "choosing the device");
    if (without == 0) *name = "cuda";
    if (asked) return EN_OK;
    if (without == 0) snprintf(run->device_why, sizeof run->device_why, "--device auto: every rank has a GPU");
    else if (missing) snprintf(run->device_why, sizeof run->device_why, "--device auto: %s", missing);
    else snprintf(run->device_why, sizeof run->device_why, "--device auto: %d of %d ranks have no GPU", (int)without, c->world_size);
    return EN_OK;
}

/* One program on all ranks, or their kernels need not be the same ones: another architecture lists other names. */
static en_status check_same_kernels(en_comm *c)
{
    uint64_t mine = EN_HASH_START, first;
    const char *name;
    for (int i = 0; (name = en_backend_isa(i, NULL)); i++) mine = en_hash_text(mine, name);
    first = mine;
    EN_TRY(c->ops->broadcast(c, &first, sizeof first, 0), "comparing instruction sets");
    EN_REQUIRE(first == mine, EN_ENOTSUP, "host %s has another kind of processor than rank 0, or another build of this program: the ranks would not "
               "compute the same bits; start it on machines of one kind", c->host);
    return EN_OK;
}

/* Every rank updates its own copy of the weights, so all must round alike: the fastest instruction set that all have.
 * EN_ISA of a rank narrows its choice to one; where no set is common then, everyone has asked for his own. */
static en_status agree_on_isa(en_run *run)
{
    enum { MOST = 16 };
    en_comm *c = run->t.comm;
    const char *forced = getenv("EN_ISA"), *name;
    double have[MOST] = { 0 };
    bool runs;
    for (int i = 0; i < MOST && (name = en_backend_isa(i, &runs)); i++) have[i] = runs && (!forced || !*forced || strcmp(forced, name) == 0);
    EN_TRY(c->ops->sum_f64(c, have, have, MOST), "agreeing on the instruction set");
    int faster = -1;
    for (int i = 0; i < MOST && (name = en_backend_isa(i, NULL)); i++) {
        if ((int)have[i] == c->world_size) {
            run->isa = name;
            if (faster >= 0)
                snprintf(run->narrowed, sizeof run->narrowed, "%s on all ranks: %d of %d cannot run %s", name, c->world_size - (int)have[faster],
                         c->world_size, en_backend_isa(faster, NULL));
            break;
        }
        if (have[i] > 0 && faster < 0) faster = i;
    }
    return EN_OK;
}

static en_status open_device(en_run *run, const char *name, const en_checkpoint_info *resumed)
{
    en_trainer *t = &run->t;
    const en_options *o = t->o;
    en_backend_config config = en_config_of(o, t->comm);
    if (config.lanes == 0 && resumed) config.lanes = resumed->state.lanes;
    config.isa = run->isa;
    EN_TRY(en_backend_open(name, &config, &t->be), "opening --device %s", name);
    const int classes = o->classes > 0 ? (int)o->classes : (int)t->train_set->classes;                   /* bench: more than its data has */
    EN_TRY(en_model_from_options(o, classes, t->be->channel_align, &t->model), "building --model %s", o->model);
    EN_TRY(en_run_take_variant(run, &t->model), "building --model %s", o->model);
    EN_TRY(en_frozen_of(t->model, o->freeze, &t->frozen), "--freeze %s", o->freeze);
    EN_TRY(en_eval_model_from_options(o, t->model, &run->eval_model), "--eval-size %lld", (long long)o->eval_size);
    return EN_OK;
}

/* Which algorithm computes a product is measured, and a stopwatch does not say the same twice: RUN/algorithms/ keeps the
 * choices of each rank, so that a run that goes on computes the same bits.  A file that cannot be kept costs that, not the run. */
static en_status keep_choices(en_run *run)
{
    const en_trainer *t = &run->t;
    en_cuda_keep_choices_fn *keep;
    char path[4200];
    if (!run->dir[0] || strcmp(t->be->name, "cuda") != 0) return EN_OK;
    *(void **)&keep = en_cuda_symbol("en_cuda_keep_choices");
    snprintf(path, sizeof path, "%s/algorithms", run->dir);
    if (mkdir(path, 0777) != 0 && errno != EEXIST) return EN_OK;
    snprintf(path, sizeof path, "%s/algorithms/rank-%05d.txt", run->dir, t->comm->rank);
    if (keep && keep(t->be, path) != EN_OK) {
        fprintf(stderr, "effnet: %s; a resume may differ in the last bits\n", en_error_message());
        en_error_clear();
    }
    return EN_OK;
}

/* ---- sums over its memory ------------------------------------------------------------------------------------------------ */

/* --bn-group: all, node, a number of consecutive ranks, or as many of them as have so many images together in a pass, at least one
 * (the reference's distributed batch norm). */
static en_status choose_bn_group(en_run *run)
{
    en_trainer *t = &run->t;
    const char *g = t->o->bn_group;
    const int64_t world = t->comm->world_size;
    if (strcmp(g, "all") == 0 || world == 1) return EN_OK;
    int64_t k = strcmp(g, "node") == 0 ? 0 : strtoll(g, NULL, 10);
    if (g[strlen(g) - 1] == 'i') {
        k = k * world * t->shard.accum / t->shard.global_batch;
        k = k < 1 ? 1 : k > world ? world : k;
    }
    EN_REQUIRE(k <= world, EN_EUSAGE, "--bn-group %s is more than the %d ranks there are", g, t->comm->world_size);
    if (k == world) return EN_OK;
    t->bn_comm = NULL;
    EN_TRY(t->tensors->ops->split(t->tensors, k ? t->comm->rank / (int)k : t->comm->node, &t->bn_comm), "--bn-group %s", g);
    return EN_OK;
}

en_status en_run_open_bn_group(en_run *run)
{
    en_trainer *t = &run->t;
    EN_TRY(en_agree(t->comm, choose_bn_group(run)), "batch-norm groups");
    t->recording = t->be->captures && t->tensors->captures && t->bn_comm->captures;
    return EN_OK;
}

/* The memory of a device is for the ranks that share it. */
static en_status share_device(en_run *run)
{
    typedef struct { char device[64]; int node; } seat;
    en_trainer *t = &run->t;
    const int world = t->comm->world_size;
    int64_t left = t->be->ops->memory_available(t->be);
    seat mine = { .node = t->comm->node }, *all = malloc((size_t)world * sizeof *all);
    if (!all) en_comm_abort(t->comm, en_status_exit_code(EN_ENOMEM));
    memcpy(mine.device, t->be->device, sizeof mine.device);
    en_status s = t->comm->ops->gather(t->comm, &mine, sizeof mine, all, 0);
    if (s == EN_OK) s = t->comm->ops->broadcast(t->comm, all, (size_t)world * sizeof *all, 0);
    int sharing = 0;
    for (int r = 0; s == EN_OK && r < world; r++) sharing += all[r].node == mine.node && memcmp(all[r].device, mine.device, sizeof mine.device) == 0;
    free(all);
    EN_TRY(s, "comparing devices");
    run->device_memory = left / (sharing > 0 ? sharing : 1);
    return EN_OK;
}

en_status en_run_open_device(en_run *run, const en_checkpoint_info *resumed)
{
    en_trainer *t = &run->t;
    const char *name;
    EN_TRY(choose_device(run, &name), "choosing the device");
    EN_TRY(en_agree(t->comm, check_same_kernels(t->comm)), "comparing kernels");
    EN_TRY(en_agree(t->comm, agree_on_isa(run)), "comparing kernels");
    EN_TRY(en_agree(t->comm, open_device(run, name, resumed)), "opening it");
    EN_TRY(en_agree(t->comm, keep_choices(run)), "remembering algorithms");
    EN_TRY(en_agree(t->comm, en_comm_tensor_open(t->comm, t->be, t->o->comm, &t->tensors)), "joining the devices");
    t->bn_comm = t->tensors;                               /* until the batch is known: en_run_open_bn_group */
    EN_TRY(en_agree(t->comm, share_device(run)), "its memory");
    return EN_OK;
}

void en_run_close_device(en_run *run)
{
    en_trainer *t = &run->t;
    if (t->bn_comm && t->bn_comm != t->tensors) t->bn_comm->ops->close(t->bn_comm);
    en_comm_tensor_close(t->comm, t->tensors);
    en_backend_close(t->be);
}
