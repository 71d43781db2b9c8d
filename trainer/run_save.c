/* run_save.c - a run's state into its checkpoints, and what happens when the disk does not take them.
 *
 * The step waits for a copy in memory; a thread writes it (checkpoint/writer.c).  A write that failed is said as soon as it
 * is known, and tried again with a newer copy after a pause that doubles, however far the next checkpoint may be: a full disk
 * is often made room on within minutes.  Training goes on meanwhile, and the older files stay as they are.  A checkpoint that is
 * due while the one before is still being written waits some seconds for it, and is then put off until it is there: a slow disk
 * makes checkpoints rarer, not steps longer. */
#include "comm/watch.h"
#include "trainer/compare.h"
#include "trainer/run.h"

#include <inttypes.h>
#include <stdio.h>
#include <time.h>

enum { PATIENCE_S = 10, FIRST_PAUSE_S = 5, LONGEST_PAUSE_S = 600, LAST_TRIES = 5 };

static void not_worth_a_run(en_status s)
{
    if (s == EN_OK) return;
    fprintf(stderr, "effnet: metrics: %s\n", en_error_message());
    en_error_clear();
}

/* What came of the write before; waits for it.  keep_best: the best so far is about to be saved, so it stays the mark. */
static void settle(en_run *run, bool keep_best)
{
    en_trainer *t = &run->t;
    const bool best = run->best_being_written >= 0;
    if (en_checkpoint_writer_acquire(run->writer) == EN_OK) {
        if (best) run->best_on_disk = run->best_being_written;
        if (run->failures > 0) fprintf(stderr, "effnet: checkpoints are written again: %s\n", en_checkpoint_writer_last(run->writer));
        run->failures = 0;
    } else {
        double pause = FIRST_PAUSE_S;
        for (int i = 0; i < run->failures && pause < LONGEST_PAUSE_S; i++) pause *= 2;
        if (pause > LONGEST_PAUSE_S) pause = LONGEST_PAUSE_S;
        run->failures++;
        run->try_again_at = en_seconds() + pause;
        fprintf(stderr, "effnet: a checkpoint could not be written, training goes on and tries again in %g s: %s", pause, en_error_text());
        en_error_clear();
        if (best && !keep_best) t->state.best_top1 = run->best_on_disk;      /* what was not kept need not be surpassed; evaluate() shares it */
    }
    run->best_being_written = -1;
    run->written = true;
}

void en_run_look_at_writer(en_run *run)
{
    en_trainer *t = &run->t;
    if (!run->writer) return;
    t->writing = en_checkpoint_writer_busy(run->writer, 0);
    if (!t->writing && !run->written) settle(run, false);
    t->save_again = run->failures > 0 && en_seconds() >= run->try_again_at;
}

/* Only asked where rank 0 was writing at the roll call, so on all ranks or on none. */
en_status en_run_still_writing(en_run *run, bool *busy)
{
    en_comm *c = run->t.comm;
    int8_t still = c->rank == 0 && run->writer && en_checkpoint_writer_busy(run->writer, PATIENCE_S);
    EN_TRY(c->ops->broadcast(c, &still, sizeof still, 0), "asking rank 0 whether it still writes");
    *busy = still;
    return EN_OK;
}

static en_status snapshot(en_run *run)
{
    en_trainer *t = &run->t;
    const struct en_backend_ops *ops = t->be->ops;
    const size_t p = (size_t)t->model->param_elems * sizeof(float), s = (size_t)t->model->stat_elems * sizeof(float);
    en_snapshot *h = &run->snapshot;
    EN_TRY(ops->download(t->be, h->params, t->a.params, p), "snapshot");
    EN_TRY(ops->download(t->be, h->stats, t->a.stats, s), "snapshot");
    for (int k = 0; k < t->optimizer.n_slots; k++) EN_TRY(ops->download(t->be, h->slot[k], t->a.slot[k], p), "snapshot");
    if (t->a.ema) {
        EN_TRY(ops->download(t->be, h->ema_params, t->a.ema, p), "snapshot");
        EN_TRY(ops->download(t->be, h->ema_stats, t->a.ema_stats, s), "snapshot");
    }
    h->state = t->state;
    return EN_OK;
}

static en_status save_on_rank_0(en_run *run, bool best)
{
    en_trainer *t = &run->t;
    const double began = en_seconds();
    if (!run->written) settle(run, best);
    const double free_at = en_seconds();
    EN_TRY(snapshot(run), "saving step %" PRId64, t->state.step);
    EN_TRY(en_compare_ranks(t, &run->snapshot, &run->weights_crc), "saving step %" PRId64 " (nothing was written)", t->state.step);
    run->best_being_written = best ? t->state.best_top1 : -1;
    run->written = false;
    en_checkpoint_writer_begin(run->writer, best);
    const en_checkpoint_record r = { .step = t->state.step, .wait_s = free_at - began, .snapshot_s = en_seconds() - free_at, .best = best };
    if (run->metrics) not_worth_a_run(en_metrics_checkpoint(run->metrics, &r));
    return EN_OK;
}

en_status en_run_save(en_run *run, bool best)
{
    en_trainer *t = &run->t;
    if (!run->dir[0]) return EN_OK;
    en_watch_at(EN_CHECKPOINT, NULL);
    t->agreed = false;                                      /* a rank that fails here by itself ends the job (train.c) */
    if (t->comm->rank == 0) EN_TRY(save_on_rank_0(run, best), "after step %" PRId64, t->state.step);
    else EN_TRY(en_compare_ranks(t, NULL, &run->weights_crc), "saving step %" PRId64 " (nothing was written)", t->state.step);
    run->saved_step = t->state.step;
    run->saved_at = en_seconds();
    run->save_owed = false;
    return EN_OK;
}

/* The snapshot of the last save still lies in memory: what failed is tried again with it, for half a minute. */
en_status en_run_finish_saving(en_run *run)
{
    if (!run->writer || run->written) return EN_OK;
    const bool best = run->best_being_written >= 0;
    double pause = 1;
    for (int tries = 1; ; tries++, pause *= 2) {
        const en_status s = en_checkpoint_writer_wait(run->writer);
        if (s == EN_OK) break;
        if (tries == LAST_TRIES) EN_TRY(s, "writing the checkpoint of step %" PRId64 ", tried %d times; the newest whole one is %s", run->saved_step, tries,
                                        *en_checkpoint_writer_last(run->writer) ? en_checkpoint_writer_last(run->writer) : "that of an earlier start, if any");
        fprintf(stderr, "effnet: the last checkpoint could not be written, trying again in %g s: %s", pause, en_error_text());
        en_error_clear();
        nanosleep(&(struct timespec){ .tv_sec = (time_t)pause }, NULL);
        en_checkpoint_writer_begin(run->writer, best);
    }
    run->written = true;
    return EN_OK;
}
