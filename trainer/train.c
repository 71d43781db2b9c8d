/* train.c - `effnet train`: the loop around the step.  After each step: is an evaluation due, a checkpoint, the end?
 *
 * All ranks walk through this loop together.  What depends on a clock or a signal is decided by one sum or by rank 0, so
 * that no rank evaluates while another trains. */
#include "comm/watch.h"
#include "trainer/commands.h"
#include "trainer/doctor.h"
#include "trainer/progress.h"

#include "revision.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
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

/* A line of metrics is not worth a run: said, and forgotten. */
static void complain(en_progress *p)
{
    en_progress_say(p, "metrics: %s", en_error_message());
    en_error_clear();
}

static en_status evaluate(en_run *run, en_progress *p, bool *best)
{
    en_trainer *t = &run->t;
    const bool ema = t->a.ema && strcmp(t->o->eval_weights, "ema") == 0;
    en_eval_result r;
    const en_eval_config c = { .comm = t->comm, .be = t->be, .model = run->eval_model, .params = ema ? t->a.ema : t->a.params,
                               .stats = ema ? t->a.ema_stats : t->a.stats, .dataset = t->val_set,
                               .batch = en_run_eval_batch(run, run->micro_batch),
                               .workers = en_workers_of(t->o, t->be), .max_bad = t->o->max_bad,
                               .max_pixels = t->o->max_pixels, .prefetch = t->o->prefetch, .kernel = run->resize.kernel };
    en_watch_at(EN_EVALUATION, NULL);
    const en_status s = en_evaluate(&c, &r);
    t->agreed = s != EN_OK && s != EN_EPEER;               /* the ranks agreed on it, unless the agreement itself failed */
    EN_TRY(s, "evaluating after step %" PRId64, t->state.step);
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
    if (run->metrics && en_metrics_eval(run->metrics, &record) != EN_OK) complain(p);
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
                                .backward_s = r->backward_s, .bn_comm_s = r->bn_comm_s, .grad_comm_exposed_s = r->grad_comm_s,
                                .optimizer_s = r->optimizer_s, .grad_norm = r->grad_norm,
                                .read_s = r->input.read_s, .decode_s = r->input.decode_s, .resize_s = r->input.resize_s,
                                .augment_s = r->input.augment_s, .rss_bytes = en_memory_held() };
    if (run->metrics && en_metrics_train(run->metrics, &m) != EN_OK) complain(p);
}

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

/* The last checkpoint must be on disk before we say so. */
static en_status finish_saving(en_run *run)
{
    if (!run->writer) return EN_OK;
    EN_TRY(en_checkpoint_writer_wait(run->writer), "writing the checkpoint of step %" PRId64, run->saved_step);
    return EN_OK;
}

/* An evaluation that fails (files, memory) ends the run, but not the work since the last save. */
static en_status evaluate_or_save(en_run *run, en_progress *p, bool *best)
{
    en_trainer *t = &run->t;
    char why[4096];
    const en_status s = evaluate(run, p, best);
    t->state.evaluation_owed = s != EN_OK;
    if (s == EN_OK || !t->agreed) return s;
    int n = snprintf(why, sizeof why, "%s", en_error_text());
    if (n >= (int)sizeof why) n = sizeof why - 1;
    if (n > 0 && why[n - 1] == '\n') why[n - 1] = 0;
    en_error_clear();
    EN_TRY(en_run_save(run, false), "saving after an evaluation that failed (%s)", why);
    t->agreed = true;
    return en_raise(s, __FILE__, __LINE__, __func__, "%s", why);
}

static en_status loop(en_run *run, en_progress *p, bool *stopped)
{
    en_trainer *t = &run->t;
    const bool root = t->comm->rank == 0;
    bool best = false;
    en_input_watch watch = { 0 };
    en_loader_times input = { 0 };
    if (t->val_set && t->state.evaluation_owed) {          /* the request to stop came first */
        EN_TRY(evaluate(run, p, &best), "after step %" PRId64, t->state.step);
        t->state.evaluation_owed = false;
        EN_TRY(en_run_save(run, best), "after step %" PRId64, t->state.step);
    }
    while (t->state.step < t->schedule.total_steps) {
        en_step_report r;
        bool eval, save, stop;
        EN_TRY(en_train_step(t, &r), "training");
        if (root) {
            account_input(t->loader, &input, &r);
            en_progress_step(p, run, &r);
            record_step(run, p, &r);
            look_at_input(run, p, &watch, &r);
            look_at_cache(run, p);
        }
        const bool end = t->state.step >= t->schedule.total_steps;
        EN_TRY(stop_due(run, &stop), "after step %" PRId64, t->state.step);
        *stopped = !end && (r.stop || stop);
        EN_TRY(due(run, &t->o->eval_every, run->evaluated_at, &eval), "after step %" PRId64, t->state.step);
        EN_TRY(due(run, &t->o->checkpoint_every, run->saved_at, &save), "after step %" PRId64, t->state.step);
        best = false;
        t->state.evaluation_owed = t->val_set && (eval || end);
        if (t->state.evaluation_owed && !*stopped) EN_TRY(evaluate_or_save(run, p, &best), "after step %" PRId64, t->state.step);
        if (save || best || end || *stopped) EN_TRY(en_run_save(run, best), "after step %" PRId64, t->state.step);
        if (*stopped) break;
    }
    return EN_OK;
}

enum { HOST_BYTES = sizeof ((en_comm *)0)->host };

/* "node1 x 4, node2 x 4" */
static void write_hosts(FILE *f, const char (*host)[HOST_BYTES], int n)
{
    const char *glue = "";
    for (int r = 0; r < n; r++) {
        int before = 0, all = 0;
        for (int q = 0; q < n; q++)
            if (strcmp(host[q], host[r]) == 0) all++, before += q < r;
        if (before) continue;
        fprintf(f, "%s%s x %d", glue, host[r], all);
        glue = ", ";
    }
}

/* RUN/run.txt: what was asked for, of which program and where, once more at each start. */
static void write_run_txt(const en_run *run, FILE *f, const char (*host)[HOST_BYTES])
{
    char mpi[EN_DOCTOR_MPI], hdf5[EN_DOCTOR_HDF5];
    en_library_versions(mpi, hdf5);
    if (run->resumed) fprintf(f, "\n");
    en_print_header(run, f);
    fprintf(f, "  program     effnet %s%s; %s, HDF5 %s\n  hosts       ", EN_VERSION, *EN_REVISION ? " (" EN_REVISION ")" : "", mpi, hdf5);
    write_hosts(f, host, run->t.comm->world_size);
    fprintf(f, "\n%s", run->options_text ? run->options_text : "");
}

static en_status begin(const en_run *run, const char (*host)[HOST_BYTES])
{
    en_print_header(run, stdout);
    if (!run->dir[0]) return EN_OK;
    char path[4200];
    snprintf(path, sizeof path, "%s/run.txt", run->dir);
    FILE *f = fopen(path, run->resumed ? "a" : "w");
    EN_REQUIRE(f, EN_EIO, "%s cannot be written: %s", path, strerror(errno));
    write_run_txt(run, f, host);
    EN_REQUIRE(fclose(f) == 0, EN_EIO, "%s cannot be written: %s", path, strerror(errno));
    return EN_OK;
}

static en_status begin_all(const en_run *run)
{
    en_comm *c = run->t.comm;
    char (*host)[HOST_BYTES] = c->rank == 0 ? malloc((size_t)c->world_size * sizeof *host) : NULL;
    EN_TRY(en_agree(c, host || c->rank ? EN_OK : en_raise(EN_ENOMEM, __FILE__, __LINE__, __func__, "no memory for %d names", c->world_size)), "starting");
    en_status s = c->ops->gather(c, c->host, sizeof c->host, host, 0);
    if (s == EN_OK) s = en_agree(c, c->rank == 0 ? begin(run, (const char (*)[HOST_BYTES])host) : EN_OK);
    free(host);
    return s;
}

static en_status train(const en_options *o, en_comm *comm)
{
    en_run run;
    en_progress progress = { 0 };
    bool stopped = false;
    en_status status = EN_OK;
    EN_TRY(en_run_open(o, comm, &run), "starting");
    en_trainer *t = &run.t;
    const bool root = comm->rank == 0;
    EN_TRY_OUT(begin_all(&run), "starting");
    if (root) en_progress_open(&progress, &run);
    const int64_t began = t->state.step;
    if (t->dump && run.resumed) en_progress_say(&progress, "--dump holds step %" PRId64 ", the first of this start", began + 1);
    if (t->state.step >= t->schedule.total_steps && root)
        en_progress_say(&progress, "all %" PRId64 " steps are done already; --epochs or --steps would add more", t->schedule.total_steps);

    status = loop(&run, &progress, &stopped);
    en_watch_at(EN_ENDING, NULL);
    if (root) en_progress_close(&progress);
    if (status != EN_OK && !t->agreed && comm->world_size > 1) {           /* the others cannot know: nobody waits for us */
        en_report_error(comm, status);
        en_comm_abort(comm, en_status_exit_code(status));
    }
    const en_status saved = root ? finish_saving(&run) : EN_OK;
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
    if (root && run.dir[0] && t->state.step == began)
        printf("nothing was trained: %s is at step %" PRId64 "\n", run.dir, t->state.step);
    else if (root && run.dir[0])
        printf("%s after step %" PRId64 " of %" PRId64 ": %s\n", stopped ? "stopped on request" : "done", t->state.step, t->schedule.total_steps,
               en_checkpoint_writer_last(run.writer));
    if (root && run.weights_crc)
        printf("weights %016" PRIx64 " (CRC-32C of parameters and of running statistics), the same on %d rank%s\n", run.weights_crc, comm->world_size,
               comm->world_size == 1 ? "" : "s");
    if (root && stopped) printf("the same command goes on from there\n");
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
    const en_status s = train(o, comm);
    if (s != EN_OK && s != EN_ESTOPPED) en_report_error(comm, s);
    en_comm_close(comm);
    return s;
}
