/* scaling/model.h - one training step on a machine that is not there: how long, and where the time goes.
 *
 * Functions of their arguments alone: no device, no MPI, no clock, no randomness.  A step is a list of events in the order in which
 * net.c queues them (en_scaling_step), a machine is a handful of constants (scaling/cluster.h); en_scaling_run walks the one on the
 * other.  scaling/model.c says how, and what it leaves out. */
#ifndef EN_SCALING_MODEL_H
#define EN_SCALING_MODEL_H

#include "trainer/model.h"
#include "trainer/scaling/cluster.h"

/* ---- sums over ranks (scaling/sums.c) ------------------------------------------------------------------------------- */

/* Ranks that sum: `ranks` of them, on `nodes` nodes. */
typedef struct { int ranks, nodes; } en_span_of_ranks;

/* Of `ranks` ranks, ranks_per_node to a node, groups of `group` consecutive ones: the group that lies on most nodes.  group >= ranks: all. */
en_span_of_ranks en_span_of_group(const en_cluster *c, int ranks, int group);

typedef struct {
    double seconds;                    /* latency + what the bytes take                                             */
    double latency;                    /* what an empty sum would take by the same way                              */
    bool   between_nodes;              /* the network sets the bandwidth, not the links within a node               */
    const char *way;                   /* "tree LL", "ring Simple", "two rounds", ...                               */
} en_sum_cost;

/* A sum of `bytes` on every rank, out of one rank's memory into all: NCCL's all-reduce; with comm = mpi the two rounds of
 * comm/mpi_gradients.c, or what comm/mpi.c does with small ones. */
en_sum_cost en_sum_gradients(const en_cluster *c, en_span_of_ranks who, double bytes);
en_sum_cost en_sum_small(const en_cluster *c, en_span_of_ranks who, double bytes);

/* Sums that were measured over so many ranks, sizes ascending; between two of them in proportion, beyond the largest at its bandwidth. */
enum { EN_MOST_SUMS = 64 };
typedef struct { double bytes, seconds; } en_measured_sum;
typedef struct en_measured_sums {
    int ranks, nodes;
    int n_gradients, n_small;
    en_measured_sum gradients[EN_MOST_SUMS], small[EN_MOST_SUMS];
} en_measured_sums;
double en_measured_seconds(const en_measured_sum *sum, int n, double bytes);
/* Those over `ranks` of a cluster's; NULL: none are known. */
const en_measured_sums *en_measured_sums_of(const en_cluster *c, int ranks);

/* ---- a step as events (scaling/events.c) ------------------------------------------------------------------------------ */

typedef enum { EN_EVENT_PASS, EN_EVENT_BN, EN_EVENT_GRADIENTS } en_event_kind;

typedef struct {
    en_event_kind kind;
    bool   backward;
    double seconds;                    /* PASS: what it computes, overhead included                                 */
    size_t amount;                     /* BN: doubles to sum; GRADIENTS: elements of the arena that are final       */
} en_event;

typedef struct {
    en_event *event; int n_events;     /* owned; one pass over `images` images, forward, loss, backward             */
    int64_t  images;
    size_t   param_elems, stat_elems;
    double   forward_s, backward_s;    /* sums over the passes                                                      */
    double   update_s;                 /* once a step                                                               */
    double   memory_gb_per_s;          /* that the floors were taken from                                           */
} en_scaling_step;

/* Measured passes: seconds of a pass of the layer in which it is counted (bench/passes.h), for `images` images. */
typedef struct { char shape[48], pass[16]; bool backward; double us; } en_pass_time;
typedef struct { char model[80], device[16]; int resolution; int64_t images; en_pass_time *pass; int n; } en_pass_times;   /* pass: owned */

/* The passes of m for `images` images on one rank of c, of which `busy` compute on the node at the same time.
 * times NULL: from floors (bytes over bandwidth or products over rate, whichever is longer, over c->efficiency, plus pass_us);
 * else every pass as measured, in proportion to the images.  EN_EUSAGE: a pass is not in `times`; EN_ENOTSUP: a model whose
 * blocks bench/layers.c does not know. */
en_status en_scaling_step_of(const en_model *m, int64_t images, const en_cluster *c, int busy, const en_pass_times *times, en_scaling_step *out);
void      en_scaling_step_free(en_scaling_step *s);                         /* NULL members are fine */
/* Multiplies what is computed, forward and backward, by a factor. */
void      en_scaling_step_stretch(en_scaling_step *s, double factor);

/* ---- the walk (scaling/model.c) ------------------------------------------------------------------------------------- */

typedef struct {
    int    ranks;
    int    bn_group;                   /* ranks that share statistics; >= ranks: all; 1: each its own               */
    int64_t passes;                    /* a step, of step->images images each                                       */
    size_t bucket_bytes;
    double data_per_s;                 /* images/s that the input side of a rank gives; 0: never waits              */
} en_scaling_setup;

/* Seconds of a step; all but bn_behind and what ends in _hidden add up to step_s. */
typedef struct {
    double step_s, forward_s, backward_s;
    double bn_s;                       /* sums of batch norm, each by itself                                        */
    double bn_behind_s;                /* they waited behind a bucket on the one queue: part of grads_s             */
    double grads_s;                    /* gradients' sums that nothing hid                                          */
    double grads_hidden_s;             /* and those that computing hid                                              */
    double other_s;                    /* the tally; statistics of groups                                           */
    double update_s, straggler_s, data_s;
    double bn_latency_s, grads_latency_s;                  /* parts of bn_s, and of all sums of gradients           */
    int    buckets, bn_sums;
    bool   grads_between_nodes;        /* what bounds the buckets' bandwidth                                        */
    double images_per_s;               /* of all ranks                                                              */
} en_scaling_result;

/* What follows the buckets of a step.  statistics: running ones of groups that normalise apart, 0 where all normalise together. */
typedef struct { double tally_s, roll_call_s, statistics_s; } en_small_sums;
en_small_sums en_scaling_small_sums(size_t stat_elems, const en_cluster *c, int ranks, int bn_group);

void en_scaling_run(const en_scaling_step *s, const en_cluster *c, const en_scaling_setup *w, en_scaling_result *out);

/* The expected largest of n numbers drawn from the standard normal distribution: 0, 0.5642, 0.8463, ... */
double en_expected_largest(int n);

/* What holds the step back: the largest part of it that is not forward or backward, in words; "nothing: ..." where all such
 * parts together are below 2 %.  share: of the step. */
const char *en_scaling_limit(const en_scaling_result *r, double *share);

#endif
