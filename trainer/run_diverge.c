/* run_diverge.c - when loss or gradients stop being numbers.
 *
 * One such step is an accident: it is skipped (step.c), said and counted, and training goes on with the next images.  More than
 * --max-skipped in a row are not: the weights themselves have gone where no gradient leads back from.  Then the run ends with 4,
 * or, --on-divergence back, goes to the newest checkpoint and tries again with a lower rate, --back-lr times the one of
 * before.  The factor is part of the state: checkpoints written from here on keep it.  A run that is killed between going back and
 * its next checkpoint goes on from the same file with the old factor, diverges once more and goes back once more: the same
 * weights in the end.
 *
 * Every rank sees the same numbers (the tally is the same on all), so nothing needs to be agreed on. */
#include "trainer/run.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { MOST_TIMES_BACK = 3 };
static const double SMALLEST_FACTOR = 1e-3;

#define ADVICE "go on from the newest checkpoint with a smaller --lr or a longer --warmup-epochs"

static en_status read_back(en_run *run, bool *found)
{
    en_trainer *t = &run->t;
    char path[4096] = "";
    en_checkpoint_info info = { 0 };
    *found = false;
    if (run->dir[0]) {
        const en_status s = en_run_find_checkpoint(run, found, &info, path);
        en_checkpoint_info_free(&info);
        EN_TRY(s, "going back");
    }
    if (*found) {
        EN_TRY(en_run_load_checkpoint(run, path), "going back to %s", path);
        t->state.lanes = t->be->lanes;
        t->state.accum = t->shard.accum;
        t->state.world_size = t->comm->world_size;
        return EN_OK;
    }
    const en_run_state s = t->state;
    t->state = (en_run_state){ .seed = s.seed, .global_batch = s.global_batch, .samples = s.samples, .lanes = s.lanes, .accum = s.accum,
                               .world_size = s.world_size, .best_top1 = -1 };
    EN_TRY(en_run_begin(run), "going back to the beginning");
    return EN_OK;
}

static en_status open_again(en_run *run)
{
    en_trainer *t = &run->t;
    EN_TRY(en_run_open_stage(run), "going back");
    if (!run->metrics) return EN_OK;
    en_metrics_close(run->metrics);
    run->metrics = NULL;
    EN_TRY(en_metrics_open(run->dir[0] ? run->dir : t->o->metrics, t->state.step, &run->metrics), "metrics");
    return EN_OK;
}

static en_status go_back(en_run *run)
{
    en_trainer *t = &run->t;
    const double factor = t->state.lr_factor * t->o->back_lr;
    bool found;
    t->agreed = false;
    if (t->comm->rank == 0 && en_run_finish_saving(run) != EN_OK) {          /* the file before that one will do */
        fprintf(stderr, "effnet: %s", en_error_text());
        en_error_clear();
    }
    EN_TRY(t->be->ops->synchronize(t->be), "going back");                    /* what travels to a slot reads the loader's memory */
    EN_TRY(read_back(run, &found), "after step %" PRId64, t->state.step);
    t->state.lr_factor = factor;
    t->state.skipped_in_row = 0;
    EN_TRY(en_agree(t->comm, open_again(run)), "going back to step %" PRId64, t->state.step);
    run->saved_step = found ? t->state.step : -1;
    run->save_owed = false;
    return EN_OK;
}

en_status en_run_after_skip(en_run *run, bool *back)
{
    en_trainer *t = &run->t;
    const en_options *o = t->o;
    const int64_t step = t->state.step;
    *back = false;
    if (t->state.skipped_in_row <= o->max_skipped) return EN_OK;
    t->agreed = true;
    EN_REQUIRE(strcmp(o->on_divergence, "back") == 0, EN_EDIVERGED, "loss or gradients were not finite in %" PRId64 " step%s in a row, up to step %" PRId64
               " (--max-skipped %" PRId64 "): " ADVICE ", or let --on-divergence back do that", t->state.skipped_in_row,
               t->state.skipped_in_row == 1 ? "" : "s", step, o->max_skipped);
    if (step > run->back_from) run->times_back = 0;
    EN_REQUIRE(run->times_back < MOST_TIMES_BACK, EN_EDIVERGED, "went back %d times, at last with %g of the rate, and never came past step %" PRId64 ": "
               ADVICE, run->times_back, t->state.lr_factor, run->back_from);
    EN_REQUIRE(t->state.lr_factor * o->back_lr >= SMALLEST_FACTOR, EN_EDIVERGED, "diverged at step %" PRId64 " with %g of the rate already: " ADVICE, step,
               t->state.lr_factor);
    run->times_back++;
    if (step > run->back_from) run->back_from = step;
    EN_TRY(go_back(run), "diverged at step %" PRId64, step);
    *back = true;
    return EN_OK;
}
