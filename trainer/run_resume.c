/* run_resume.c - a run's state out of its checkpoints into memory.
 *
 * Rank 0 alone reads and writes (run_save.c); the state is replicated, so the others receive it by broadcast. */
#include "trainer/recipes.h"
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

/* Accumulators mean what their optimizer says, so another cannot go on with them. */
static en_status check_same_optimizer(const en_optimizer *p, const en_checkpoint_info *i, const char *path)
{
    char earlier[24] = "";
    if (!i->options || !en_options_text_find(i->options, "optimizer", earlier, sizeof earlier)) snprintf(earlier, sizeof earlier, "rmsprop");
    EN_REQUIRE(strcmp(earlier, p->name) == 0, EN_EUSAGE, "%s was trained with --optimizer %s, now it is %s: give the same, or take another --run", path,
               earlier, p->name);
    EN_REQUIRE(i->n_slots == p->n_slots, EN_EUSAGE, "%s holds %d accumulators of %s, --momentum as it is now wants %d: give the same as then, or take another "
               "--run", path, i->n_slots, p->name, p->n_slots);
    return EN_OK;
}

/* A frozen layer's accumulators and averages stand still; one that thaws would begin with them. */
static en_status check_same_layers(const char *now, const en_checkpoint_info *i, const char *path)
{
    char then[80] = "";
    if (i->options && !en_options_text_find(i->options, "freeze", then, sizeof then)) then[0] = 0;
    EN_REQUIRE(strcmp(then, now) == 0, EN_EUSAGE, "%s was trained with %s%s, now there is %s%s: give the same, or begin another run with --init", path,
               *then ? "--freeze " : "no --freeze", then, *now ? "--freeze " : "none", now);
    return EN_OK;
}

/* Stages to come may be other ones; those that are behind are as they were. */
static en_status check_same_stages(const en_stages *now, const en_checkpoint_info *i, const char *path)
{
    const en_stages then = en_stages_recall(i->options, i->resolution, i->dropout, i->state.samples, i->state.global_batch);
    const int64_t step = en_stages_difference(&then, now, i->state.step);
    if (step < 0) return EN_OK;
    const en_stage_values was = en_stage_values_of(&then, en_stage_at(&then, step)), is = en_stage_values_of(now, en_stage_at(now, step));
    char before[160], after[160];
    EN_REQUIRE(false, EN_EUSAGE, "%s was trained in other stages: step %" PRId64 " was %s (%d stage%s of %" PRId64 " steps), and is %s by the options now (%d of %" PRId64
               "): give the same --stages, their sizes and values, and --epochs or --steps, or take another --run", path, step + 1,
               en_stage_text(&was, before, sizeof before), then.count, then.count == 1 ? "" : "s", then.total_steps, en_stage_text(&is, after, sizeof after), now->count,
               now->total_steps);
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
    EN_TRY(en_recipe_check_same(t->o, i->options, path), "going on");
    EN_TRY(check_same_layers(t->o->freeze, i, path), "going on");
    EN_TRY(check_same_optimizer(&t->optimizer, i, path), "going on");
    EN_TRY(check_same_stages(&t->stages, i, path), "going on");
    EN_REQUIRE(i->has_ema == (t->o->ema > 0), EN_EUSAGE, "%s was trained %s --ema: go on as it began, or take another --run", path, i->has_ema ? "with" : "without");
    return EN_OK;
}

static en_status read_snapshot(en_run *run, const char *path)
{
    en_checkpoint_info info = { 0 };
    EN_TRY(en_checkpoint_inspect(path, false, &info), "reading %s", path);
    en_status s = check_same_run(run, &info, path);
    free(run->changed_said);                            /* going back reads a checkpoint once more */
    run->changed_said = NULL;
    if (s == EN_OK && info.options && run->options_text) run->changed_said = en_options_text_changes(info.options, run->options_text);
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
    for (int k = 0; k < t->optimizer.n_slots; k++) EN_TRY_OUT(share(run, h->slot[k], t->a.slot[k], p, bounce), "%s", t->optimizer.slot_name[k]);
    EN_TRY_OUT(t->be->ops->upload(t->be, t->updates, &t->state.ema_updates, sizeof *t->updates), "the count of updates");
    EN_TRY_OUT(share(run, h->ema_params, t->a.ema, p, bounce), "averaged parameters");
    EN_TRY_OUT(share(run, h->stats, t->a.stats, s, bounce), "running statistics");
    EN_TRY_OUT(share(run, h->ema_stats, t->a.ema_stats, s, bounce), "averaged statistics");
out:
    free(bounce);
    return status;
}
