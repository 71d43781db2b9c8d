/* metrics.h - RUN/metrics.jsonl: one JSON object a line, appended while training goes on.
 *
 * Invariants (tests/test_metrics.c): a line is one write(2) on a file opened O_APPEND, so a reader who follows the file sees
 * whole lines; a run that was killed leaves at most one torn line, which the next open drops; a run that goes on from step S
 * leaves no line of a later step behind, so each step stands there once.  Every line is JSON: what is no number is null. */
#ifndef EN_METRICS_H
#define EN_METRICS_H

#include <stdint.h>

#include "kernels/status.h"
#include "trainer/account.h"
#include "trainer/stages.h"

typedef struct {
    int64_t step;                            /* optimizer updates done, this one included: the first is 1              */
    double  epoch;                           /* position / samples                                                     */
    double  loss, lr, images_per_s;
    double  data_s, forward_s, backward_s, bn_comm_s, grad_comm_exposed_s, optimizer_s;   /* of this step               */
    double  grad_norm;
    double  read_s, decode_s, resize_s, augment_s;       /* of the threads that decode ahead, together, since the step before; */
                                             /* data_s is what the step waited for them                                */
    int64_t rss_bytes;                       /* memory that this process holds now, as the kernel counts it            */
    bool    skipped;                         /* loss or gradients were not finite: nothing was updated                  */
    double  straggler_s; int slowest_rank;   /* own work of the slowest rank - the median's: what the others wait for   */
    en_stage_values stage;                   /* size, and what is scheduled                                             */
} en_train_record;

typedef struct {
    int64_t step;                            /* optimizer updates done                                                 */
    double  epoch;
    double  top1, top5;                      /* fractions of 1                                                         */
    double  loss;
    int64_t images;
    const char *weights;                     /* "ema" or "raw"                                                         */
} en_eval_record;

typedef struct {                             /* what saving kept the step from: the file itself is written meanwhile    */
    int64_t step;                            /* optimizer updates done                                                 */
    double  wait_s;                          /* for the write before this one to end                                   */
    double  snapshot_s;                      /* for the copy, and for all ranks to compare their weights               */
    bool    best;
} en_checkpoint_record;

typedef struct en_metrics en_metrics;

/* Opens RUN_DIR/metrics.jsonl and drops what a run that goes on from `resume_step` will write again: the torn last line
 * and lines of later steps (by way of metrics.jsonl.tmp and a rename, so never half).  resume_step -1: from scratch, no
 * line of ours stays.  Lines without a step are kept as they are. */
en_status en_metrics_open(const char *run_dir, int64_t resume_step, en_metrics **out);

/* Each appends a line.  EN_EIO with path and reason; a line that went in half (a full disk) is taken back. */
en_status en_metrics_train(en_metrics *m, const en_train_record *r);
en_status en_metrics_eval(en_metrics *m, const en_eval_record *r);
/* The run went back from `from` to `step`, and goes on with lr_factor times the schedule's rate. */
en_status en_metrics_back(en_metrics *m, int64_t step, int64_t from, double lr_factor);
en_status en_metrics_checkpoint(en_metrics *m, const en_checkpoint_record *r);
/* Where the time of the r->steps steps up to `step` went: each cause's mean, least and most over the ranks, seconds in all. */
en_status en_metrics_account(en_metrics *m, int64_t step, const en_account_report *r);

void      en_metrics_close(en_metrics *m);   /* NULL is fine */

#endif
