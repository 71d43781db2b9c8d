/* scaling/model.c - the walk over a step's events, with one clock for what computes and one for the queue of sums.
 *
 *     compute ──pass──pass──●─ ─ ─ ─ ─ ─ ─●──pass──pass──pass──●─ ─ ─ ─ ─●──tally──update──▶
 *                           │ batch norm  │       │ bucket     │ wait    │
 *     sums    ──────────────●─────────────●───────●────────────────●─────●────────────▶
 *
 * With comm = nccl all sums of a rank, groups' too, follow one another on one stream in the order of the calls (comm/nccl.c): a bucket
 * begins when its gradients are final and the queue is free, and computing goes on beside it; a sum of batch norm begins when what came
 * before it in the queue is through, and computing waits for it.  What it waits behind a bucket counts as exposed gradients,
 * because without the bucket it would not have waited.
 *
 * With comm = mpi nobody moves a bucket while ranks of one host compute.  Between hosts each call hands the network as much as it will have
 * carried by the next (comm/mpi_gradients.c paces itself so), a chunk for each other rank at most; so no sum of batch norm waits behind
 * gradients.  A chunk that is still on its way then was too large, so a gap carries less by the link's latency, but the least chunk always.
 * What is left when backward ends is exposed.
 *
 * Ranks differ in speed: each step waits for the slowest of n.  Their times are taken as normally distributed about the mean with
 * the coefficient of variation `jitter`, drawn once a rank and step, so that the step waits jitter * computing * E(largest of n).
 *
 * Left out, so that the model errs towards speed: sums take processors and memory bandwidth from the passes beside them; ranks whose
 * speed changes within a step meet at every synchronised batch norm and wait there each time (where it can be measured, trainer/alone.c does);
 * other jobs on the network; errors of routing; the first steps; checkpoints and evaluations. */
#include "trainer/scaling/model.h"

#include "kernels/kernels.h"
#include "trainer/rollcall.h"

#include <math.h>
#include <stdio.h>

#include "comm/comm.h"

typedef struct {
    const en_cluster *c;
    double compute, queue;                   /* the two clocks                                             */
    double left;                             /* mpi: seconds of sums begun and not through                 */
    double chunk, least, way;                /* mpi: seconds of them that a call hands over at most and at least; that a chunk is on its way */
    double handed, gap, moved;               /* mpi: handed over in this gap; its seconds so far; that have come in it */
    bool   apart;                            /* batch norm's groups are sums of others: gaps end with blocks (comm.h, en_buckets_move) */
    size_t cut[EN_BUCKETS_MOST + 1];
    int    buckets, begun;
    en_sum_cost bucket[EN_BUCKETS_MOST];
    double sums_of_gradients;
    en_scaling_result *r;
} walker;

static void wait_for(walker *w, double until)        /* computing stands still */
{
    if (until > w->compute) w->compute = until;
}

static void hand_over(walker *w)                     /* mpi: a gap begins */
{
    w->handed = fmin(w->left, w->chunk);
    w->gap = w->moved = 0;
}

static void flow(walker *w, double seconds)          /* mpi: what was handed over goes on beside a pass */
{
    w->gap += seconds;
    const double moved = fmin(w->handed, fmax(fmin(w->gap, w->least), w->gap - w->way));
    w->left -= moved - w->moved;
    w->moved = moved;
}

static void batch_norm(walker *w, const en_sum_cost *cost)
{
    const double from = w->compute;
    if (cost->seconds <= 0) return;
    if (w->c->comm == EN_NET_NCCL) wait_for(w, w->queue);
    w->r->bn_behind_s += w->compute - from;
    w->r->bn_s += cost->seconds;
    w->r->bn_latency_s += cost->latency;
    w->r->bn_sums++;
    w->queue = w->compute += cost->seconds;
    if (!w->apart) hand_over(w);
}

static void gradients(walker *w, size_t done)
{
    const int begun = w->begun;
    for (; w->begun < w->buckets && w->cut[w->begun + 1] <= done; w->begun++) {
        const double seconds = w->bucket[w->begun].seconds;
        w->queue = fmax(w->queue, w->compute) + seconds;
        w->left += seconds;
    }
    if (w->apart || w->begun > begun) hand_over(w);
}

static void prepare_buckets(walker *w, const en_scaling_step *s, const en_scaling_setup *set)
{
    const en_span_of_ranks all = en_span_of_group(w->c, set->ranks, set->ranks);
    double latency = 0, bytes = 0, seconds = 0;
    w->buckets = set->ranks > 1 ? en_buckets_cut(s->param_elems, set->bucket_bytes, w->cut) : 0;
    for (int i = 0; i < w->buckets; i++) {
        const double size = (double)(w->cut[i + 1] - w->cut[i]) * sizeof(float);
        w->bucket[i] = en_sum_gradients(w->c, all, size);
        latency += w->bucket[i].latency, bytes += size, seconds += w->bucket[i].seconds;
        w->r->grads_between_nodes |= w->bucket[i].between_nodes;
    }
    w->r->buckets = w->buckets;
    w->r->grads_latency_s = latency;
    w->sums_of_gradients = seconds;
    if (bytes > 0 && all.nodes > 1) {
        const double of_a_byte = (seconds - latency) / (2 * bytes / set->ranks);         /* each rank gets 2/n of the bytes */
        w->chunk = of_a_byte * EN_GRADIENT_CHUNK, w->least = of_a_byte * EN_LEAST_CHUNK;
        w->way = en_sum_small(w->c, all, sizeof(double)).seconds;
    }
}

/* What follows the buckets: the tally, on CPUs the roll call too (with GPUs it is beside their work), and the statistics of groups that
 * normalise apart (step.c). */
en_small_sums en_scaling_small_sums(size_t stat_elems, const en_cluster *c, int ranks, int bn_group)
{
    const en_span_of_ranks all = en_span_of_group(c, ranks, ranks);
    en_small_sums s = { .tally_s = en_sum_small(c, all, EN_TALLY_SUMS * sizeof(double)).seconds };
    if (c->comm == EN_NET_MPI) s.roll_call_s = en_sum_small(c, all, (double)(EN_ROLL_WORDS + ranks) * sizeof(double)).seconds;
    if (bn_group < ranks) s.statistics_s = en_sum_gradients(c, all, (double)stat_elems * sizeof(float)).seconds;
    return s;
}

void en_scaling_run(const en_scaling_step *s, const en_cluster *c, const en_scaling_setup *set, en_scaling_result *r)
{
    const en_span_of_ranks sharing = en_span_of_group(c, set->ranks, set->bn_group);
    walker w = { .c = c, .r = r, .apart = set->bn_group < set->ranks };
    *r = (en_scaling_result){ 0 };
    prepare_buckets(&w, s, set);
    for (int64_t pass = 0; pass < set->passes; pass++)
        for (int i = 0; i < s->n_events; i++) {
            const en_event *e = &s->event[i];
            const en_sum_cost cost = e->kind == EN_EVENT_BN ? en_sum_small(c, sharing, (double)e->amount * sizeof(double)) : (en_sum_cost){ 0 };
            if (e->kind == EN_EVENT_BN) batch_norm(&w, &cost);
            else if (e->kind == EN_EVENT_PASS) w.compute += e->seconds, flow(&w, e->seconds);
            else if (pass + 1 == set->passes) gradients(&w, e->amount);
        }
    const double ended = w.compute;
    gradients(&w, s->param_elems);
    wait_for(&w, c->comm == EN_NET_NCCL ? w.queue : w.compute + w.left);
    r->forward_s = (double)set->passes * s->forward_s;
    r->backward_s = (double)set->passes * s->backward_s;
    r->grads_s = r->bn_behind_s + w.compute - ended;
    r->grads_hidden_s = fmax(0, w.sums_of_gradients - r->grads_s);
    const en_small_sums small = en_scaling_small_sums(s->stat_elems, c, set->ranks, set->bn_group);
    r->other_s = small.tally_s + small.roll_call_s + small.statistics_s;
    r->update_s = s->update_s;
    r->straggler_s = c->jitter * (r->forward_s + r->backward_s + r->update_s) * en_expected_largest(set->ranks);
    r->step_s = w.compute + r->other_s + r->update_s + r->straggler_s;
    const double images = (double)set->passes * (double)s->images;
    if (set->data_per_s > 0) r->data_s = fmax(0, images / set->data_per_s - r->step_s);
    r->step_s += r->data_s;
    r->images_per_s = images * set->ranks / r->step_s;
}

/* E = integral of 1 - F^n over the positive numbers, less that of F^n over the negative ones; Simpson's rule, F within 1e-16 of 0 or
 * 1 beyond 9. */
double en_expected_largest(int n)
{
    enum { PARTS = 2000 };
    const double end = 9, h = end / PARTS;
    double sum = 0;
    for (int i = 0; i <= PARTS; i++) {
        const double x = i * h, above = 0.5 * erfc(x / sqrt(2)), weight = i == 0 || i == PARTS ? 1 : i % 2 ? 4 : 2;
        sum += weight * (-expm1(n * log1p(-above)) - pow(above, n));
    }
    return n > 1 ? sum * h / 3 : 0;
}

const char *en_scaling_limit(const en_scaling_result *r, double *share)
{
    const bool late = r->bn_latency_s > r->bn_s / 2;
    double sums = r->grads_s + r->grads_hidden_s;
    const char *grads = r->grads_latency_s > sums / 2                          ? "gradients: latency of the buckets' sums"
                        : r->grads_between_nodes                               ? "gradients: bandwidth between nodes"
                                                                               : "gradients: bandwidth within a node";
    const struct { double s; const char *words; } parts[] = {
        { r->bn_s, late ? "batch norm: latency of its sums" : "batch norm: bandwidth of its sums" },
        { r->grads_s, grads },
        { r->other_s, "small sums after backward" },
        { r->update_s, "the optimizer" },
        { r->straggler_s, "stragglers" },
        { r->data_s, "the input side" },
    };
    enum { PARTS = sizeof parts / sizeof *parts };
    int most = 0;
    double all = 0;
    for (int i = 0; i < PARTS; i++) {
        all += parts[i].s;
        if (parts[i].s > parts[most].s) most = i;
    }
    *share = parts[most].s / r->step_s;
    if (all >= 0.02 * r->step_s) return parts[most].words;
    *share = 1 - all / r->step_s;
    return "nothing: computing is all";
}
