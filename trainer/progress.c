#define _GNU_SOURCE
#include "trainer/progress.h"
#include "trainer/recipes.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *span_text(const en_span *s, char buf[64])
{
    char count[48];
    if (s->count <= 0) return "at the end";
    en_span_write(s, count, sizeof count);
    if (s->unit == EN_SPAN_SECONDS) snprintf(buf, 64, "every %s", count);
    else snprintf(buf, 64, "every %g %s%s", s->count, s->unit == EN_SPAN_STEPS ? "step" : "epoch", s->count == 1 ? "" : "s");
    return buf;
}

/* What is done to the images, and by how many threads. */
static void print_input(const en_run *run, FILE *f)
{
    const en_options *o = run->t.o;
    const int workers = en_workers_of(o, run->t.be);
    const char *grows = run->t.stages.count > 1 ? "up to " : "";
    fprintf(f, "  input       %s", o->augment);
    if (strcmp(o->augment, "randaugment") == 0) fprintf(f, " (%" PRId64 " at %s%g)", o->rand_ops, grows, o->magnitude);
    if (o->erase > 0) fprintf(f, ", %g erased (%s)", o->erase, o->erase_fill);
    if (o->mixup > 0) fprintf(f, ", mixup %s%g", grows, o->mixup);
    if (o->cutmix > 0) fprintf(f, ", cutmix %s%g", grows, o->cutmix);
    if (strcmp(o->train_crop, "v2") == 0) fprintf(f, ", crops of 5 to 100 %%");
    if (strcmp(o->decode, "scaled") == 0) fprintf(f, ", JPEGs decoded at scale");
    const en_normalising pixels = run->t.model->normalise;
    fprintf(f, "; %s%s; %d thread%s decode%s ahead of the step%s\n", run->resize.name, pixels == EN_NORMALISE_HALF ? ", (v - 128) / 128" : pixels == EN_NORMALISE_UNIT ? ", (v - 127.5) / 127.5" : "", workers, workers == 1 ? "" : "s", workers == 1 ? "s" : "",
            run->cache ? ", pictures are kept" : "");
}

static void print_stop(const en_span *after, FILE *f)
{
    char text[48];
    if (after->count <= 0) return;
    en_span_write(after, text, sizeof text);
    if (after->unit == EN_SPAN_SECONDS) fprintf(f, "  stop        at the first step that ends %s after the start (%.1f s ago)", text, en_seconds() - en_program_began());
    else fprintf(f, "  stop        after %s %g", after->unit == EN_SPAN_STEPS ? "step" : "epoch", after->count);
    fprintf(f, ": checkpoint, exit code 75\n");
}

void en_print_header(const en_run *run, void *stream)
{
    FILE *f = stream;
    const en_trainer *t = &run->t;
    const en_model *m = t->model;
    char save[64], eval[64], optimizer[160];
    fprintf(f, "%s, %d px: %.2f M parameters, %.3f G multiply-adds an image, %d classes\n", m->name, m->resolution, (double)m->params_trainable / 1e6,
            (double)m->macs / 1e9, m->classes);
    fprintf(f, "  data        %s: %" PRId64 " training images", t->train_set->source, t->train_set->samples);
    if (t->val_set) fprintf(f, ", %" PRId64 " validation images from %s", t->val_set->samples, t->val_set->source);
    else fprintf(f, ", no validation images");
    fprintf(f, "\n  batch       %" PRId64 " images a step = %" PRId64 " a pass x %" PRId64 " accumulated x %d rank%s%s\n", t->shard.global_batch, run->micro_batch,
            t->shard.accum, t->comm->world_size, t->comm->world_size == 1 ? "" : "s",
            run->micro_batch * t->shard.accum * t->comm->world_size == t->shard.global_batch ? "" : " (uneven)");
    if (run->part && run->part->may_end) fprintf(f, "  steps       until its time is spent (%.2f an epoch)%s", t->schedule.steps_per_epoch, run->resumed ? "" : "\n");
    else fprintf(f, "  steps       %" PRId64 " (%.2f an epoch, %.1f epochs)%s", t->schedule.total_steps, t->schedule.steps_per_epoch,
                 (double)t->schedule.total_steps / t->schedule.steps_per_epoch, run->resumed ? "" : "\n");
    if (run->resumed) fprintf(f, ", going on from step %" PRId64, t->state.step);
    if (run->resumed && t->stages.count > 1) fprintf(f, ", in stage %d of %d", t->stage + 1, t->stages.count);
    if (run->resumed) fprintf(f, "\n");
    if (*t->o->recipe) fprintf(f, "  recipe      ");
    en_recipe_say(t->o, 14, f);
    if (run->init_said[0]) fprintf(f, "  begins with %s\n", run->init_said);
    if (t->frozen.layers > 0)
        fprintf(f, "  frozen      %s: %.2f M of %.2f M parameters keep their values\n", t->o->freeze, (double)t->frozen.kept / 1e6, (double)m->params_trainable / 1e6);
    if (run->changed_said) fprintf(f, "  changed     "), en_print_wrapped(f, run->changed_said, 14);
    const bool accum_differs = run->accum_before > 0 && run->accum_before != t->shard.accum;
    if (accum_differs || (run->world_before > 0 && run->world_before != t->comm->world_size))
        fprintf(f, "  note        the checkpoint is from %" PRId64 " accumulated x %d rank%s: from here on %s\n", run->accum_before, run->world_before,
                run->world_before == 1 ? "" : "s", accum_differs ? "batch norm is over another number of images" : "sums are rounded differently");
    print_input(run, f);
    en_stages_print(&t->stages, t->o->augment, f);
    fprintf(f, "  optimizer   %s\n", en_optimizer_text(&t->optimizer, optimizer, sizeof optimizer));
    fprintf(f, "  rate        %g (%s), warm-up %g epochs; batch norm over %d rank%s\n", t->schedule.base, t->o->lr_schedule, t->o->warmup_epochs,
            t->bn_comm->world_size, t->bn_comm->world_size == 1 ? "" : "s");
    fprintf(f, "  device      %s (%s), %s", t->be->name, t->be->isa, t->be->dtype == EN_BF16 ? "bf16" : "fp32");
    if (run->device_memory > 0) fprintf(f, ", sums by %s, steps %s", t->tensors->name, t->recording ? "recorded and replayed" : "not recorded");
    else fprintf(f, ", %d thread%s a rank, %d lane%s", t->be->threads, t->be->threads == 1 ? "" : "s", t->be->lanes, t->be->lanes == 1 ? "" : "s");
    fprintf(f, "; %.2f GiB a rank; %d host%s\n", (double)run->memory_bytes / 0x1p30, t->comm->nodes, t->comm->nodes == 1 ? "" : "s");
    if (run->device_why[0]) fprintf(f, "  because     %s\n", run->device_why);
    if (t->tensors->why[0]) fprintf(f, "  note        %s\n", t->tensors->why);
    if (run->narrowed[0]) fprintf(f, "  note        %s\n", run->narrowed);
    if (run->dir[0]) fprintf(f, "  run         %s: checkpoint %s, evaluation %s\n", run->dir, span_text(&t->o->checkpoint_every, save),
                             t->val_set ? span_text(&t->o->eval_every, eval) : "never");
    else fprintf(f, "  run         nothing is saved (no --run)\n");
    print_stop(&t->o->stop_after, f);
    fflush(f);
}

/* mpirun gives rank 0 a terminal of its own whatever its output goes to, so under it only launch/run knows: EFFNET_LIVE. */
static bool terminal(const en_run *run)
{
    const char *live = getenv("EFFNET_LIVE");
    return live && *live ? strcmp(live, "0") != 0 : run->t.comm->world_size == 1 && strcmp(run->t.comm->name, "self") == 0 && isatty(STDOUT_FILENO);
}

void en_progress_open(en_progress *p, const en_run *run)
{
    *p = (en_progress){ .live = terminal(run), .log_every = run->t.o->log_every, .began = en_seconds(), .last = en_seconds(),
                        .began_step = run->t.state.step };
}

static void hours(double s, char out[32])
{
    if (!isfinite(s) || s < 0) s = 0;
    const int64_t n = (int64_t)(s + 0.5);
    if (n >= 86400) snprintf(out, 32, "%" PRId64 "d %02" PRId64 ":%02" PRId64, n / 86400, n / 3600 % 24, n / 60 % 60);
    else snprintf(out, 32, "%02" PRId64 ":%02" PRId64 ":%02" PRId64, n / 3600, n / 60 % 60, n % 60);
}

void en_progress_step(en_progress *p, const en_run *run, const en_step_report *r)
{
    const en_trainer *t = &run->t;
    const double w = p->shown == 0 ? 1 : 0.1, rate = (double)t->shard.global_batch / r->step_s;
    if (isfinite(r->loss)) p->loss += w * (r->loss - p->loss);
    p->top1 += w * (r->top1 - p->top1);
    p->images_per_s += w * (rate - p->images_per_s);
    p->data_share += w * (r->data_s / r->step_s - p->data_share);
    const double now = en_seconds();
    const bool last = t->state.step >= t->schedule.total_steps;
    if (p->shown++ > 0 && !last && now - p->last < (p->live ? 0.2 : p->log_every)) return;
    p->last = now;

    char line[256], eta[32], bar[21];
    if (run->part && run->part->may_end) {                 /* of an end by time, neither the step nor the epoch is known */
        snprintf(line, sizeof line, "epoch %.2f step %" PRId64 "  loss %.4f  top-1 %4.1f%%  lr %.2e  %.1f img/s  data wait %2.0f%%",
                 (double)t->state.position / (double)t->state.samples, t->state.step, p->loss, 100 * p->top1, r->lr, p->images_per_s, 100 * p->data_share);
        printf(p->live ? "\r%s\033[K" : "%s\n", line);
        p->drawn = p->live;
        fflush(stdout);
        return;
    }
    const double share = (double)t->state.step / (double)t->schedule.total_steps;
    const double per_step = (now - p->began) / (double)(t->state.step - p->began_step);
    hours((double)(t->schedule.total_steps - t->state.step) * per_step, eta);
    for (int i = 0; i < 20; i++) bar[i] = i < (int)(share * 20) ? '=' : i == (int)(share * 20) ? '>' : ' ';
    bar[20] = 0;
    snprintf(line, sizeof line, "epoch %.2f/%.2f [%s] step %" PRId64 "/%" PRId64 "  loss %.4f  top-1 %4.1f%%  lr %.2e  %.1f img/s  data wait %2.0f%%  ETA %s",
             (double)t->state.position / (double)t->state.samples, (double)t->schedule.total_steps / t->schedule.steps_per_epoch, bar, t->state.step,
             t->schedule.total_steps, p->loss, 100 * p->top1, r->lr, p->images_per_s, 100 * p->data_share, eta);
    printf(p->live ? "\r%s\033[K" : "%s\n", line);
    p->drawn = p->live;
    fflush(stdout);
}

void en_progress_say(en_progress *p, const char *fmt, ...)
{
    va_list ap;
    if (p->drawn) printf("\r\033[K");
    p->drawn = false;
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    printf("\n");
    fflush(stdout);
}

void en_progress_close(en_progress *p)
{
    if (p->drawn) printf("\n");
    p->drawn = false;
    fflush(stdout);
}
