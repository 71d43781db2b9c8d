/* scaling/measure_predict.c - beside each measured step the one that the model of scaling/model.c says, calibrated by what was measured:
 *
 *     computing       forward and backward of as many ranks, of which each trains by itself (effnet train --alone), as long as they take that wait for
 *                     each other at every batch norm (trainer/alone.c): the median step.  So what ranks of one machine take from each other, cores,
 *                     memory bandwidth, caches, clock, is in it, and what disturbs one and delays all.  The update is the slowest rank's.  How
 *                     computing is spread over the layers is taken from floors, in proportion: that decides when buckets are ready.  Forward and
 *                     backward are the slowest rank's, too, where the passes are a device's, ranks take turns on cores, or --bn-group has them meet
 *                     in groups
 *     else            where ranks were not measured so: the smallest run's medians without its sums.  Those of batch norm are taken out of each line
 *                     as far as it knows them, else by their share in the run's account, which parts forward from backward, too.  A pass of more
 *                     images takes longer as its floor does; ranks whose threads are more than a machine's cores take turns: times
 *                     ranks * threads / cores
 *     sums            the medians of `effnet bench comm` on as many ranks, in proportion between sizes
 *     ranks apart     where meetings are not known: how much steps of that rank differ from the one before, as the jitter of scaling/model.c; what
 *                     changes more slowly is the machine's affair, and is not drawn for each rank and step
 *     the rest        waiting for images and what is unexplained, as there; where that is of several ranks that sum, without the small sums that
 *                     are in there (the roll call, and running statistics in the update), since each prediction adds its own
 *
 * The same once more from the p10 of these, without jitter: steps that nobody disturbed, beside the p10 of the step.  Noise only ever adds, and
 * where these two agree while the medians do not, other programs of the machine are what is between them.
 *
 * So the two halves of a step are measured each without the other, and the model puts them together; nothing of a step that does both goes into
 * its prediction.  What the halves take from each other (TCP and the system need cores, too) is not in it: the error shows it. */
#define _GNU_SOURCE
#include "trainer/bucket_tuner.h"
#include "trainer/scaling/measure.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What a step takes apart from sums over ranks: medians of one rank's lines, of steps of so many passes of so many images, on cores of which each
 * is shared by so many threads. */
typedef struct { double forward_s, backward_s, update_s, rest_s, jitter, turns; int64_t micro_batch, passes; } base_times;

/* A count, and the lines to look at: those of its run, or of a rank by itself. */
typedef struct { const en_count *k; const en_run_lines *l; bool alone; } source;

static en_status median_of(const source *s, double (*of)(const source *, const en_step_line *), comm_spread *out)
{
    double *v = malloc((size_t)s->l->n * sizeof *v);
    EN_REQUIRE(v, EN_ENOMEM, "no memory for %d steps", s->l->n);
    for (int i = 0; i < s->l->n; i++) v[i] = of(s, &s->l->line[i]);
    *out = comm_spread_of(v, s->l->n);
    free(v);
    return EN_OK;
}

static double computing(const source *s, const en_step_line *l)
{
    const en_count *k = s->k;
    const double whole = l->forward_s + l->backward_s, own = k->part[EN_COST_FORWARD] + k->part[EN_COST_BACKWARD];
    if (s->alone) return whole;
    if (isfinite(l->bn_s)) return fmax(0, whole - l->bn_s);
    return whole * own / (own + k->part[EN_COST_BN_FORWARD] + k->part[EN_COST_BN_BACKWARD]);
}

/* The coefficient of variation of what changes from step to step: differences of neighbours have twice the variance, and half of the absolute
 * values of a normal distribution lie below 0.6745 sigma. */
static en_status jitter_of(const source *s, double median, double *out)
{
    const int n = s->l->n;
    double *v = malloc((size_t)n * sizeof *v);
    EN_REQUIRE(v, EN_ENOMEM, "no memory for %d steps", n);
    for (int i = 0; i + 1 < n; i++) v[i] = fabs(computing(s, &s->l->line[i + 1]) - computing(s, &s->l->line[i]));
    *out = n > 1 ? comm_spread_of(v, n - 1).median / 0.6745 / sqrt(2) / median : 0;
    free(v);
    return EN_OK;
}

static double normalising(const source *s, const en_step_line *l) { return l->forward_s + l->backward_s - computing(s, l); }
static double updating(const source *s, const en_step_line *l)    { (void)s; return l->update_s; }
static double exposed(const source *s, const en_step_line *l)     { (void)s; return l->grads_s; }
static double forwards(const source *s, const en_step_line *l)    { (void)s; return l->forward_s / (l->forward_s + l->backward_s); }
static double stepping(const source *s, const en_step_line *l)    { return en_line_step_s(l, s->k->global_batch / s->k->ranks); }

/* As trainer/run_device.c chooses. */
static int group_of(const en_study *s, const en_count *k)
{
    const char *g = s->o->bn_group;
    const int nodes = k->sums.nodes > 0 ? k->sums.nodes : 1;
    if (strcmp(g, "all") == 0) return k->ranks;
    if (strcmp(g, "node") == 0) return k->ranks / nodes;
    const long n = strtol(g, NULL, 10);
    return g[strlen(g) - 1] == 'i' ? (int)fmax(1, (double)n / (double)k->micro_batch) : (int)n;
}

static double turns(const en_study *s, const en_count *k)
{
    const int nodes = k->sums.nodes > 0 ? k->sums.nodes : 1, on_node = (k->ranks + nodes - 1) / nodes;
    const double wanted = (double)on_node * (s->threads > 0 ? s->threads : 1);
    return fmax(1, wanted / s->cores);
}

/* Ranks that take turns on a core are late one after the other, each for a slice of the system's time; those that wait leave it the core. */
bool en_study_meets(const en_study *s, const en_count *k)
{
    return k->n_met > 0 && k->meeting.median > 0 && group_of(s, k) >= k->ranks && turns(s, k) <= 1;
}

/* The ranks that trained each by itself: the slowest of them, and what they would wait for each other. */
static en_status alone_of(const en_study *s, const en_count *k, bool undisturbed, base_times *b)
{
    const source from = { .k = k, .l = &k->alone[k->alone_rank], .alone = true };
    comm_spread all = { 0 }, share = { 0 }, update = { 0 }, step = { 0 };
    EN_TRY(median_of(&from, computing, &all), "ranks without sums");
    EN_TRY(median_of(&from, forwards, &share), "ranks without sums");
    EN_TRY(median_of(&from, updating, &update), "ranks without sums");
    EN_TRY(median_of(&from, stepping, &step), "ranks without sums");
    EN_REQUIRE(all.p10 > 0, EN_ENOTSUP, "%d ranks without sums: what forward and backward take is not known", k->ranks);
    if (undisturbed) all.median = all.p10, update.median = update.p10, step.median = step.p10;
    const double rest = fmax(0, step.median - all.median - update.median);
    const bool meets = en_study_meets(s, k);
    if (meets) all.median = undisturbed ? k->meeting.p10 : k->meeting.median;
    *b = (base_times){ .forward_s = share.median * all.median, .backward_s = (1 - share.median) * all.median, .update_s = update.median, .rest_s = rest,
                       .turns = turns(s, k), .micro_batch = k->micro_batch, .passes = k->passes };
    return undisturbed || meets ? EN_OK : jitter_of(&from, all.median, &b->jitter);
}

static en_status base_of(const en_study *s, const en_cluster *c, bool undisturbed, base_times *b)
{
    const en_count *k = s->base;
    const source from = { .k = k, .l = &k->lines };
    const double own = k->part[EN_COST_FORWARD] + k->part[EN_COST_BACKWARD], share = k->part[EN_COST_FORWARD] / own;
    comm_spread all = { 0 }, bn = { 0 }, update = { 0 }, grads = { 0 };
    EN_TRY(median_of(&from, computing, &all), "the smallest run");
    EN_TRY(median_of(&from, normalising, &bn), "the smallest run");
    EN_TRY(median_of(&from, updating, &update), "the smallest run");
    EN_TRY(median_of(&from, exposed, &grads), "the smallest run");
    const comm_spread step = undisturbed ? (comm_spread){ .median = k->step.p10 } : k->step;
    if (undisturbed) all.median = all.p10, bn.median = bn.p10, update.median = update.p10, grads.median = grads.p10;
    EN_REQUIRE(all.median > 0 && own > 0 && share >= 0 && share <= 1, EN_ENOTSUP,
               "%d rank%s: what forward and backward take is not known apart from sums of batch norm, which are %.3g s of a step of %.3g s", k->ranks,
               k->ranks == 1 ? "" : "s", bn.median, step.median);
    const double rest = step.median - all.median - bn.median - update.median - grads.median;
    const bool known = k->ranks > 1 && en_measured_sums_of(c, k->ranks);
    const en_small_sums small = known ? en_scaling_small_sums((size_t)s->model->stat_elems, c, k->ranks, group_of(s, k)) : (en_small_sums){ 0 };
    *b = (base_times){ .forward_s = share * all.median, .backward_s = (1 - share) * all.median, .update_s = fmax(0, update.median - small.statistics_s),
                       .rest_s = fmax(0, rest - small.roll_call_s), .turns = turns(s, k), .micro_batch = k->micro_batch, .passes = k->passes };
    return undisturbed ? EN_OK : jitter_of(&from, all.median, &b->jitter);
}

static en_status times_of(const en_study *s, const en_cluster *c, const en_count *k, bool undisturbed, base_times *b)
{
    if (k->alone_step_s > 0) return alone_of(s, k, undisturbed, b);
    return s->base->alone_step_s > 0 ? alone_of(s, s->base, undisturbed, b) : base_of(s, c, undisturbed, b);
}

/* The shares that layers have in a step: floors at a processor's or a GPU's bandwidth and rate, of which only the ratio matters here. */
static en_cluster cluster_of(const en_study *s, const en_measured_sums *sums, int n)
{
    const bool nccl = en_study_nccl(s);
    return (en_cluster){ .name = "measured", .comm = nccl ? EN_NET_NCCL : EN_NET_MPI, .precision = nccl ? EN_BF16 : EN_F32, .memory_gb_per_s = nccl ? 4300 : 20,
                         .matrix_tflop_per_s = nccl ? 790 : 0.131, .efficiency = 1, .ranks_per_node = 1, .sums = sums, .n_sums = n };
}

static void stretch(en_scaling_step *s, bool backward, double factor)
{
    double *all = backward ? &s->backward_s : &s->forward_s;
    for (int i = 0; i < s->n_events; i++)
        if (s->event[i].kind == EN_EVENT_PASS && s->event[i].backward == backward) s->event[i].seconds *= factor;
    *all *= factor;
}

/* *known: the sums that it takes were measured. */
static en_status predict(const en_study *s, en_cluster *c, const base_times *b, const en_count *k, en_scaling_result *out, bool *known)
{
    en_scaling_step floor_of_b = { 0 }, step = { 0 };
    en_status status = EN_OK;
    const int group = group_of(s, k);
    *known = false;
    if (k->ranks > 1 && (!en_measured_sums_of(c, k->ranks) || (group > 1 && group < k->ranks && !en_measured_sums_of(c, group)))) return EN_OK;
    c->ranks_per_node = k->sums.nodes > 0 ? ceil((double)k->ranks / k->sums.nodes) : k->ranks;
    c->jitter = b->jitter;
    const double more = turns(s, k) / b->turns, passes = (double)b->passes;
    EN_TRY_OUT(en_scaling_step_of(s->model, b->micro_batch, c, 1, NULL, &floor_of_b), "what is known");
    EN_TRY_OUT(en_scaling_step_of(s->model, k->micro_batch, c, 1, NULL, &step), "%d ranks", k->ranks);
    stretch(&step, false, more * b->forward_s / (passes * floor_of_b.forward_s));
    stretch(&step, true, more * b->backward_s / (passes * floor_of_b.backward_s));
    step.update_s = more * b->update_s;
    const en_scaling_setup setup = { .ranks = k->ranks, .bn_group = group, .passes = k->passes,
                                     .bucket_bytes = en_option_given(s->o, "bucket_mib") ? (size_t)s->o->bucket_mib << 20 : en_buckets_usual(k->nccl, k->sums.nodes) };
    en_scaling_run(&step, c, &setup, out);
    out->data_s += more * b->rest_s * (double)(k->micro_batch * k->passes) / (double)(b->micro_batch * b->passes);
    out->step_s += out->data_s;
    out->images_per_s = (double)k->global_batch / out->step_s;
    *known = isfinite(out->step_s);
out:
    en_scaling_step_free(&floor_of_b);
    en_scaling_step_free(&step);
    return status;
}

en_status en_study_predict(en_study *s)
{
    en_status status = EN_OK;
    base_times b = { 0 }, best = { 0 };
    int n = 0;
    if (!s->model || !s->base) return EN_OK;
    en_measured_sums *sums = calloc(EN_MOST_COUNTS, sizeof *sums);
    EN_REQUIRE(sums, EN_ENOMEM, "no memory for a prediction");
    for (int i = 0; i < s->counts; i++)
        if (s->count[i].sums.n_gradients > 0) sums[n++] = s->count[i].sums;
    en_cluster c = cluster_of(s, sums, n);
    for (int i = 0; i < s->counts; i++) {
        en_count *k = &s->count[i];
        en_scaling_result r = { 0 };
        if (k->state != EN_COUNT_MEASURED) continue;
        EN_TRY_OUT(times_of(s, &c, k, false, &b), "calibrating");
        EN_TRY_OUT(times_of(s, &c, k, true, &best), "calibrating");
        EN_TRY_OUT(predict(s, &c, &b, k, &k->model, &k->predicted), "%d ranks", k->ranks);
        EN_TRY_OUT(predict(s, &c, &best, k, &r, &k->predicted), "%d ranks", k->ranks);
        k->predicted_p10_s = r.step_s;
    }
out:
    free(sums);
    return status;
}
