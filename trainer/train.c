/* train.c - `effnet train`: the loop around the step.  After each step: is an evaluation due, a checkpoint, the end?
 *
 * All ranks walk through this loop together.  What depends on a clock or a signal is decided by one sum or by rank 0, so
 * that no rank evaluates while another trains. */
#include "comm/watch.h"
#include "trainer/commands.h"
#include "trainer/compare.h"
#include "trainer/progress.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* A span of time is read off rank 0's clock; the others ask it. */
static en_status due(en_run *run, const en_span *span, double since, bool *out)
{
    en_trainer *t = &run->t;
    *out = en_span_due(span, t->state.step, t->schedule.steps_per_epoch, en_seconds() - since);
    if (span->unit != EN_SPAN_SECONDS || span->count <= 0) return EN_OK;
    int8_t flag = *out;
    EN_TRY(t->comm->ops->broadcast(t->comm, &flag, sizeof flag, 0), "asking rank 0 for the time");
    *out = flag;
    return EN_OK;
}

/* --stop-after: once, at its step or its epoch, or when its time is over.  What a start finds behind it does not stop it: the
 * same command goes on. */
static en_status stop_due(en_run *run, bool *out)
{
    en_trainer *t = &run->t;
    const en_span *after = &t->o->stop_after;
    const double step = (double)t->state.step, at = after->unit == EN_SPAN_EPOCHS ? after->count * t->schedule.steps_per_epoch : after->count;
    *out = after->count > 0 && step >= at && step - 1 < at;
    if (after->unit == EN_SPAN_SECONDS) EN_TRY(due(run, after, en_program_began(), out), "is it time to stop");
    return EN_OK;
}

/* A line of metrics is not worth a run: said once, until lines are written again. */
static void note(en_run *run, en_progress *p, en_status s)
{
    if (s != EN_OK && !run->metrics_fail) en_progress_say(p, "metrics: %s; training goes on without these lines", en_error_message());
    run->metrics_fail = s != EN_OK;
    if (s != EN_OK) en_error_clear();
}

/* *stopped: a request to stop came first. */
static en_status evaluate(en_run *run, en_progress *p, bool *best, bool *stopped)
{
    en_trainer *t = &run->t;
    *best = false;
    const bool ema = t->a.ema && strcmp(t->o->eval_weights, "ema") == 0;
    en_eval_result r;
    const en_eval_config c = { .comm = t->comm, .be = t->be, .model = run->eval_model, .params = ema ? t->a.ema : t->a.params,
                               .stats = ema ? t->a.ema_stats : t->a.stats, .dataset = t->val_set,
                               .batch = en_run_eval_batch(run, run->micro_batch),
                               .workers = en_workers_of(t->o, t->be), .max_bad = t->o->max_bad,
                               .max_pixels = t->o->max_pixels, .stoppable = true, .prefetch = t->o->prefetch, .kernel = run->resize.kernel };
    en_watch_at(EN_EVALUATION, NULL);
    const en_status s = en_evaluate(&c, &r);
    t->agreed = s != EN_OK && s != EN_EPEER;               /* the ranks agreed on it, unless the agreement itself failed */
    EN_TRY(s, "evaluating after step %" PRId64, t->state.step);
    *stopped = r.stopped;
    if (r.stopped) return EN_OK;
    if (run->part) run->part->eval = r, run->part->evaluated = true;
    EN_TRY(t->comm->ops->broadcast(t->comm, &t->state.best_top1, sizeof t->state.best_top1, 0), "sharing the best so far");   /* of best.h5 */
    *best = r.top1 > t->state.best_top1;
    if (*best) t->state.best_top1 = r.top1;
    run->evaluated_at = en_seconds();
    if (t->comm->rank != 0) return EN_OK;
    const double epoch = (double)t->state.position / (double)t->state.samples;
    en_progress_say(p, "evaluation after epoch %.2f (step %" PRId64 ", %s weights): top-1 %.2f%%  top-5 %.2f%%  loss %.4f  %" PRId64 " images in %.1f s%s",
                    epoch, t->state.step, ema ? "ema" : "raw", 100 * r.top1, 100 * r.top5, r.loss, r.images, r.seconds, *best ? "  (best so far)" : "");
    const en_eval_record record = { .step = t->state.step, .epoch = epoch, .top1 = r.top1, .top5 = r.top5, .loss = r.loss, .images = r.images,
                                    .weights = ema ? "ema" : "raw" };
    if (run->metrics) note(run, p, en_metrics_eval(run->metrics, &record));
    return EN_OK;
}

/* What the loader's threads did since the step before: more seconds than the step took where several decode. */
static void account_input(en_loader *l, en_loader_times *before, en_step_report *r)
{
    const en_loader_times now = en_loader_spent(l);
    r->input = (en_loader_times){ now.read_s - before->read_s, now.decode_s - before->decode_s, now.resize_s - before->resize_s,
                                  now.augment_s - before->augment_s, now.images - before->images, now.cached - before->cached };
    *before = now;
}

static void record_step(en_run *run, en_progress *p, const en_step_report *r)
{
    const en_trainer *t = &run->t;
    const en_train_record m = { .step = t->state.step, .epoch = (double)t->state.position / (double)t->state.samples, .loss = r->loss, .lr = r->lr,
                                .images_per_s = (double)t->shard.global_batch / r->step_s, .data_s = r->data_s, .forward_s = r->forward_s,
                                .backward_s = r->backward_s, .bn_comm_s = r->bn_known ? r->bn_forward_s + r->bn_backward_s : NAN, .grad_comm_exposed_s = r->grad_comm_s,
                                .optimizer_s = r->optimizer_s, .grad_norm = r->grad_norm,
                                .read_s = r->input.read_s, .decode_s = r->input.decode_s, .resize_s = r->input.resize_s,
                                .augment_s = r->input.augment_s, .rss_bytes = en_memory_held(), .skipped = r->skipped,
                                .straggler_s = r->roll.straggler_s, .slowest_rank = r->roll.slowest,
                                .stage = en_stage_values_of(&t->stages, t->stage) };
    if (run->metrics) note(run, p, en_metrics_train(run->metrics, &m));
}

typedef struct { en_input_watch input; en_straggler_watch straggler; en_loader_times spent; } watches;

/* Where a device computes and cores decode, a step that waits is a matter of cores; on the CPU they are the same cores. */
static void look_at_input(const en_run *run, en_progress *p, en_input_watch *w, const en_step_report *r)
{
    const en_trainer *t = &run->t;
    char text[600];
    if (run->device_memory > 0 && en_input_watch_step(w, r, t->shard.global_batch / t->comm->world_size, en_workers_of(t->o, t->be), t->be->threads, text))
        en_progress_say(p, "%s", text);
}

static void look_at_cache(en_run *run, en_progress *p)
{
    if (!run->cache || run->cache_full || !en_cache_full(run->cache)) return;
    int64_t pictures;
    const int64_t bytes = en_cache_bytes(run->cache, &pictures);
    run->cache_full = true;
    en_progress_say(p, "--cache %s is full: %" PRId64 " of %" PRId64 " pictures are kept (%.4g GB), the others are decoded in every epoch", run->t.o->cache,
                    pictures, run->t.train_set->samples, (double)bytes / 1e9);
}

/* Among processes that compute in step, the slowest one is everybody's speed. */
static void look_at_stragglers(const en_run *run, en_progress *p, en_straggler_watch *w, const en_step_report *r)
{
    int rank;
    double lag, step;
    if (run->t.comm->world_size > 1 && en_straggler_step(w, &r->roll, r->step_s, &rank, &lag, &step))
        en_progress_say(p, "rank %d on host %s is slower than the others: they wait %.3g s of each step (%.3g s) for it; is its machine busy, throttled, or its "
                        "disk slow?", rank, run->hosts ? run->hosts[rank] : "?", lag, step);
}

static void say_skipped(const en_run *run, en_progress *p, const en_step_report *r)
{
    const en_run_state *s = &run->t.state;
    en_progress_say(p, "step %" PRId64 " is skipped: %s not finite (loss %g, gradient norm %g, rate %g); %" PRId64 " in a row, %" PRId64 " in all", s->step,
                    isfinite(r->loss) ? "the gradients are" : "the loss is", r->loss, r->grad_norm, r->lr, s->skipped_in_row, s->skipped);
}

static en_status skipped(en_run *run, en_progress *p, bool *back)
{
    en_trainer *t = &run->t;
    const int64_t from = t->state.step;
    EN_TRY(en_run_after_skip(run, back), "after step %" PRId64, from);
    if (!*back || t->comm->rank != 0) return EN_OK;
    en_progress_say(p, "diverged at step %" PRId64 ": back to %s %" PRId64 ", with %g of the rate", from, run->saved_step >= 0 ? "the checkpoint of step" : "step",
                    t->state.step, t->state.lr_factor);
    if (run->metrics) note(run, p, en_metrics_back(run->metrics, t->state.step, from, t->state.lr_factor));
    return EN_OK;
}

/* An evaluation that fails (files, memory) ends the run, but not the work since the last save. */
static en_status evaluate_or_save(en_run *run, en_progress *p, bool *best, bool *stopped)
{
    en_trainer *t = &run->t;
    char why[4096];
    const en_status s = evaluate(run, p, best, stopped);
    t->state.evaluation_owed = s != EN_OK || *stopped;
    if (s == EN_OK || !t->agreed) return s;
    int n = snprintf(why, sizeof why, "%s", en_error_text());
    if (n >= (int)sizeof why) n = sizeof why - 1;
    if (n > 0 && why[n - 1] == '\n') why[n - 1] = 0;
    en_error_clear();
    EN_TRY(en_run_save(run, false), "saving after an evaluation that failed (%s)", why);
    t->agreed = true;
    return en_raise(s, __FILE__, __LINE__, __func__, "%s", why);
}

/* What rank 0 makes of a step; `back`, when the run has left it again. */
static void tell(en_run *run, en_progress *p, watches *w, en_step_report *r)
{
    en_trainer *t = &run->t;
    account_input(t->loader, &w->spent, r);
    en_progress_step(p, run, r);
    record_step(run, p, r);
    if (r->skipped) say_skipped(run, p, r);
    look_at_input(run, p, &w->input, r);
    look_at_cache(run, p);
    look_at_stragglers(run, p, &w->straggler, r);
}

static en_status save(en_run *run, bool best)
{
    const double began = en_seconds();
    EN_TRY(en_run_save(run, best), "after step %" PRId64, run->t.state.step);
    en_account_spent(&run->account, EN_COST_CHECKPOINT, en_seconds() - began);
    return EN_OK;
}

/* Every EN_ACCOUNT_EVERY steps, and at the end, the ranks put together where their time went. */
static en_status settle_account(en_run *run, en_progress *p)
{
    en_trainer *t = &run->t;
    en_account_report r;
    if (run->account.steps == 0) return EN_OK;
    EN_TRY(en_account_gather(t->comm, &run->account, &r), "after step %" PRId64, t->state.step);
    run->account = (en_account){ 0 };
    if (t->comm->rank != 0) return EN_OK;
    run->spent = r;
    if (run->metrics) note(run, p, en_metrics_account(run->metrics, t->state.step, &r));
    return EN_OK;
}

/* What this run is a part of may have something to do, and say that it is enough. */
static en_status look_up(en_run *run)
{
    en_trainer *t = &run->t;
    bool enough = false;
    if (!run->part) return EN_OK;
    EN_TRY(run->part->look(run->part->context, run, &enough), "looking up from step %" PRId64, t->state.step);
    if (!run->part->may_end) return EN_OK;
    int8_t flag = enough;
    EN_TRY(t->comm->ops->broadcast(t->comm, &flag, sizeof flag, 0), "asking rank 0 whether it is enough");
    if (flag) t->schedule.total_steps = t->state.step;
    return EN_OK;
}

/* --buckets auto: the sizes one after another, then the best. */
static en_status try_buckets(en_run *run, en_progress *p, const en_step_report *r)
{
    en_trainer *t = &run->t;
    en_bucket_tuner *u = &run->tuner;
    double seconds[EN_TUNER_SIZES] = { 0 };
    const en_tuner_word word = u->sizes > 0 ? en_tuner_step(u, r->step_s) : EN_TUNER_SAME;
    if (word == EN_TUNER_SAME) return EN_OK;
    if (word == EN_TUNER_CHOOSE) {
        EN_TRY(t->comm->ops->sum_f64(t->comm, u->seconds, seconds, (size_t)u->sizes), "choosing a bucket size");
        u->at = en_tuner_best(u, seconds);
    }
    en_buckets_recut(t->buckets, u->bytes[u->at]);
    en_replay_close(t);                                        /* recorded steps know the old cuts */
    if (word == EN_TUNER_NEXT) return EN_OK;
    if (t->comm->rank == 0)
        en_progress_say(p, "gradient buckets of at most %zu MiB, %d of them: %.4g ms a step, %.4g ms with 25 MiB (--buckets auto, the best of %d sizes)", u->bytes[u->at] >> 20,
                        en_buckets_count(t->buckets), 1e3 * seconds[u->at] / t->comm->world_size, 1e3 * seconds[0] / t->comm->world_size, u->sizes);
    u->sizes = 0;
    return EN_OK;
}

/* After a step that was made, or skipped: an evaluation, a checkpoint, the end? */
static en_status between_steps(en_run *run, en_progress *p, const en_step_report *r, bool *stopped)
{
    en_trainer *t = &run->t;
    if (run->part) run->part->steps_s += r->step_s;
    EN_TRY(look_up(run), "after step %" PRId64, t->state.step);
    const bool end = t->state.step >= t->schedule.total_steps;
    bool eval, due_to_save, stop, compare, best = false;
    EN_TRY(stop_due(run, &stop), "is it time to stop");
    *stopped = !end && (r->roll.stop || stop);
    EN_TRY(due(run, &t->o->eval_every, run->evaluated_at, &eval), "is an evaluation due");
    EN_TRY(due(run, &t->o->checkpoint_every, run->saved_at, &due_to_save), "is a checkpoint due");
    EN_TRY(due(run, &t->o->compare_every, run->compared_at, &compare), "is it time to compare");
    t->state.evaluation_owed = t->val_set && (eval || end);
    if (t->state.evaluation_owed && !*stopped) {
        bool asked = false;
        const double began = en_seconds();
        EN_TRY(evaluate_or_save(run, p, &best, &asked), "evaluation");
        en_account_spent(&run->account, EN_COST_EVALUATION, en_seconds() - began);
        *stopped |= asked;                                 /* after the last step, too: the same command makes the evaluation */
    }
    const bool now = best || end || *stopped;
    bool busy = r->roll.writing;
    if (due_to_save && busy && !now) EN_TRY(en_run_still_writing(run, &busy), "is a checkpoint being written");
    run->save_owed |= due_to_save || (r->roll.save_again && run->dir[0]);
    if (now || (run->save_owed && !busy)) EN_TRY(save(run, best), "saving");
    else if (compare && t->comm->world_size > 1) {
        en_watch_at(EN_CHECKPOINT, "comparing");
        EN_TRY(en_compare_ranks(t, NULL, &run->weights_crc), "comparing the ranks");
        run->compared_at = en_seconds();
    }
    return EN_OK;
}

/* An evaluation that the start before this one owes: the request to stop came first. */
static en_status make_up(en_run *run, en_progress *p, bool *stopped)
{
    en_trainer *t = &run->t;
    bool best;
    if (!t->val_set || !t->state.evaluation_owed) return EN_OK;
    EN_TRY(evaluate(run, p, &best, stopped), "the evaluation that was put off");
    t->state.evaluation_owed = *stopped;
    if (!*stopped) EN_TRY(en_run_save(run, best), "saving");
    return EN_OK;
}

/* The step to come may be the first of another stage. */
static en_status enter_stage(en_run *run, en_progress *p, watches *w)
{
    en_trainer *t = &run->t;
    bool entered;
    char text[160];
    const double began = en_seconds();
    EN_TRY(en_run_enter_stage(run, &entered), "entering a stage");
    if (!entered) return EN_OK;
    w->spent = (en_loader_times){ 0 };                     /* a new loader */
    en_account_spent(&run->account, EN_COST_STAGE, en_seconds() - began);
    const en_stage_values v = en_stage_values_of(&t->stages, t->stage);
    if (t->comm->rank == 0)
        en_progress_say(p, "stage %d of %d begins with step %" PRId64 ": %s", t->stage + 1, t->stages.count, t->state.step + 1, en_stage_text(&v, text, sizeof text));
    return EN_OK;
}

static en_status loop(en_run *run, en_progress *p, bool *stopped)
{
    en_trainer *t = &run->t;
    const bool root = t->comm->rank == 0;
    watches w = { .spent = { 0 } };
    EN_TRY(make_up(run, p, stopped), "after step %" PRId64, t->state.step);
    EN_TRY(look_up(run), "after step %" PRId64, t->state.step);
    while (!*stopped && t->state.step < t->schedule.total_steps) {
        en_step_report r;
        bool back = false;
        const double began = en_seconds();
        if (root) en_run_look_at_writer(run);
        EN_TRY(enter_stage(run, p, &w), "after step %" PRId64, t->state.step);
        EN_TRY(en_train_step(t, &r), "training");
        en_watch_at(EN_OUTPUT, NULL);
        if (root) tell(run, p, &w, &r);
        if (r.skipped) EN_TRY(skipped(run, p, &back), "training");
        else EN_TRY(try_buckets(run, p, &r), "after step %" PRId64, t->state.step);
        if (back) w.spent = (en_loader_times){ 0 };        /* a new loader */
        else EN_TRY(between_steps(run, p, &r, stopped), "after step %" PRId64, t->state.step);
        en_account_step(&run->account, &r);
        en_account_wall(&run->account, en_seconds() - began);
        if (run->account.steps == EN_ACCOUNT_EVERY || t->state.step == t->o->account_after) EN_TRY(settle_account(run, p), "after step %" PRId64, t->state.step);
    }
    EN_TRY(settle_account(run, p), "after step %" PRId64, t->state.step);
    bool best;
    if (run->part && t->val_set && !run->part->evaluated && !*stopped) EN_TRY(evaluate(run, p, &best, stopped), "evaluation");
    if (run->part && !run->weights_crc) EN_TRY(en_compare_ranks(t, NULL, &run->weights_crc), "comparing the ranks");
    return EN_OK;
}

en_status en_train(const en_options *o, en_comm *comm, en_training *part)
{
    en_run run;
    en_progress progress = { 0 };
    bool stopped = false;
    en_status status = EN_OK;
    EN_TRY(en_run_open(o, comm, &run), "starting");
    en_trainer *t = &run.t;
    const bool root = comm->rank == 0;
    run.part = part;
    EN_TRY_OUT(en_run_announce(&run), "starting");
    if (root) en_progress_open(&progress, &run);
    const int64_t began = t->state.step;
    if (t->dump && run.resumed) en_progress_say(&progress, "--dump holds step %" PRId64 ", the first of this start", began + 1);
    if (t->state.step >= t->schedule.total_steps && root)
        en_progress_say(&progress, "all %" PRId64 " steps are done already; --epochs or --steps would add more", t->schedule.total_steps);

    status = loop(&run, &progress, &stopped);
    if (part) part->step = t->state.step;
    en_watch_at(EN_ENDING, NULL);
    if (root) en_progress_close(&progress);
    if (status != EN_OK && !t->agreed && comm->world_size > 1) {           /* the others cannot know: nobody waits for us */
        en_report_error(comm, status);
        en_comm_abort(comm, en_status_exit_code(status));
    }
    const en_status saved = root ? en_run_finish_saving(&run) : EN_OK;
    if ((status == EN_EDIVERGED || status == EN_EPEER) && !root) en_report_hush();   /* every rank knows; one tells */
    if (status == EN_EDIVERGED && run.dir[0])              /* weights can be ruined some steps before they are infinite */
        en_raise(status, __FILE__, __LINE__, __func__, "training; if it diverges from the newest checkpoint again, at any rate, that one was ruined "
                 "already: take it out of %s/checkpoints and go on from the one before", run.dir);
    EN_TRY_OUT(status, "training");
    EN_TRY_OUT(en_agree(comm, saved), "saving");
    if (stopped && !run.dir[0]) {                                           /* 75 promises that the same command goes on */
        if (!root) en_report_hush();
        EN_REQUIRE_OUT(false, EN_ENOTSUP, "going on without --run: stopped on request after step %" PRId64 " of %" PRId64 ", and nothing was saved",
                       t->state.step, t->schedule.total_steps);
    }
    char spent[1200];
    en_account_text(&run.spent, spent, sizeof spent);
    if (root && run.spent.steps > 0) printf("where the time of the last %" PRId64 " steps went: %s\n", run.spent.steps, spent);
    if (root && run.dir[0] && t->state.step == began)
        printf("nothing was trained: %s is at step %" PRId64 "\n", run.dir, t->state.step);
    else if (root && run.dir[0])
        printf("%s after step %" PRId64 " of %" PRId64 ": %s\n", stopped ? "stopped on request" : "done", t->state.step, t->schedule.total_steps,
               en_checkpoint_writer_last(run.writer));
    if (root && run.weights_crc)
        printf("weights %016" PRIx64 " (CRC-32C of parameters and of running statistics), the same on %d rank%s\n", run.weights_crc, comm->world_size,
               comm->world_size == 1 ? "" : "s");
    if (root && stopped) printf("the same command goes on from there\n");
    if (part) part->weights_crc = run.weights_crc;
    if (stopped) status = EN_ESTOPPED;
out:
    en_run_close(&run);
    return status;
}

en_status en_command_train(const en_options *o)
{
    en_comm *comm = NULL;
    EN_TRY(en_watch_as_asked(o, o->run[0] ? "the same command goes on from the newest checkpoint" : NULL), "starting");
    EN_TRY(en_comm_open(&comm), "starting the ranks");
    en_stop_on_signals();
    const en_status s = o->alone ? en_train_alone(o, comm) : en_train(o, comm, NULL);
    if (s != EN_OK && s != EN_ESTOPPED) en_report_error(comm, s);
    en_comm_close(comm);
    return s;
}
