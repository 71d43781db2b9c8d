/* trainer.h - a training run in memory: what step.c moves forward and train.c opens, saves and closes. */
#ifndef EN_TRAINER_H
#define EN_TRAINER_H

#include "comm/comm.h"
#include "data/data.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/dump.h"
#include "trainer/freeze.h"
#include "trainer/net.h"
#include "trainer/optimizer.h"
#include "trainer/options.h"
#include "trainer/rollcall.h"
#include "trainer/schedule.h"
#include "trainer/stages.h"

typedef struct {                         /* device arenas in en_model's layout; all owned by the trainer           */
    float *params, *grads, *ema;              /* param_elems each; ema NULL without averaging                      */
    float *slot[EN_OPTIMIZER_SLOTS];          /* the optimizer's accumulators; NULL: it has none                   */
    float *stats, *ema_stats;                 /* stat_elems each                                                   */
    float *stats_before;                      /* of the step at hand, to take it back: stat_elems                  */
} en_arenas;

typedef struct en_trainer en_trainer;

/* The images of one micro-step, in a slot of the net. */
typedef struct { bool fetched, first, last, timed; int64_t step, micro, all; int slot; } en_piece;   /* all: images on all ranks together;
                                                                                timed: its sums stand between marks */

/* One way that a piece can look, the same on all ranks, and the recording of its work. */
typedef struct { int64_t all; int slot; bool first, last, timed; int64_t seen; void *graph; } en_recording;
enum { EN_RECORDINGS = 16, EN_TIMED_EVERY = 64 };
typedef en_status en_work_fn(en_trainer *t, const en_piece *p);

struct en_trainer {
    const en_options *o;                 /* borrowed                                                               */
    en_comm    *comm;                    /* the ranks: host memory                                                 */
    en_comm    *tensors, *bn_comm;       /* sums over device memory; bn_comm may be tensors itself                 */
    en_backend *be;
    en_model   *model;                   /* as it is when training ends                                            */
    en_model   *stage_model;             /* the same at the size and the dropout of the stage at hand; may be model itself */
    en_net     *net;                     /* of stage_model                                                         */
    en_dataset *train_set, *val_set;     /* val_set NULL: no evaluation                                            */
    en_loader  *loader;
    en_arenas   a;
    double     *tally;                   /* device: EN_TALLY                                                       */
    int64_t    *updates;                 /* device: state.ema_updates, counted by the optimizer that wants it      */
    bool        recording;               /* the device records the step                                            */
    en_recording recordings[EN_RECORDINGS];
    en_piece    piece;                   /* fetched last                                                           */
    bool        sums_timed;              /* the piece done last was timed, and done as steps usually are            */
    en_batch    batch;                   /* its images, borrowed from the loader                                   */
    en_optimizer optimizer;
    en_segment *segments; int64_t n_segments;   /* what it walks                                                   */
    en_frozen   frozen;                  /* --freeze                                                               */
    en_buckets *buckets;
    en_schedule schedule;
    en_stages   stages;
    int         stage;                   /* the one that net and loader are of                                     */
    int64_t     stage_end;               /* the first step behind it                                               */
    en_run_state state;
    en_shard    shard;
    en_dump    *dump;                    /* NULL but for the first step of a run with --dump                       */
    en_status   trouble_status;                /* of `trouble`                                                      */
    char        trouble[2048];           /* this rank's own error in this step, told after the agreement           */
    bool        writing, save_again;     /* rank 0's answers to the roll call (run_save.c)                         */
    double     *roll_room;               /* of en_rollcall                                                         */
    bool        agreed;                  /* the error at hand is known to all ranks: they leave together           */
};

typedef struct {                         /* of one step, over all ranks; seconds of this rank                      */
    double loss, top1, lr, grad_norm;
    double data_s, forward_s, backward_s, grad_comm_s, optimizer_s, step_s;
    double bn_forward_s, bn_backward_s;  /* parts of forward_s and backward_s, where bn_known                      */
    bool   bn_known;                     /* on a device that queues its sums in one of EN_TIMED_EVERY steps only    */
    en_loader_times input;               /* seconds of the loader's threads since the step before, filled in by train.c */
    bool   skipped;                      /* loss or gradients are not finite: weights, averages and statistics are as before */
    en_roll roll;
} en_step_report;

/* One optimizer step, or one that was skipped.  EN_OK; EN_EDATA: some rank's input failed (told by that rank); on an error the
 * weights are those before the step.  All ranks return at the same step. */
en_status en_train_step(en_trainer *t, en_step_report *r);

/* Its two halves on the device: what is queued for a piece, and the wait for what the step came to. */
en_status en_step_work(en_trainer *t, const en_piece *p);
en_status en_step_settle(en_trainer *t, en_step_report *r);
/* Does `work` for t->piece on the device (replay.c): queued, not done. */
en_status en_replay(en_trainer *t, en_work_fn *work);
void      en_replay_close(en_trainer *t);                /* forgets all recordings: before the net goes         */

/* --dump (step_dump.c): tensors of the first step, to hold beside another framework's. */
en_status en_dump_batch(en_trainer *t, const en_batch *batch);        /* /batch/images, /batch/labels, /logits, /loss       */
en_status en_dump_arenas(en_trainer *t, const char *group, const float *params, const float *stats);   /* stats may be NULL  */
en_status en_dump_finish(en_trainer *t);                              /* /after, and the file is there                     */

/* ---- requests to stop (signals.c) ---------------------------------------------------------------------------------- */
void en_stop_on_signals(void);           /* SIGUSR1, SIGTERM, SIGINT ask for a save and an end; a second SIGINT ends at once */
bool en_stop_requested(void);
void en_stop_request(void);                  /* as a signal would */

/* ---- evaluation (evaluate.c) --------------------------------------------------------------------------------------- */
typedef struct { double loss, top1, top5; int64_t images, bad; double seconds; bool stopped; } en_eval_result;

typedef struct {
    en_comm *comm; en_backend *be; const en_model *model;
    float *params, *stats;               /* device arenas                                                          */
    const en_dataset *dataset;
    int64_t batch; int workers;          /* batch: at most, see en_eval_batch                                      */
    int64_t prefetch;                    /* MiB, as --prefetch                                                     */
    en_resize_kernel kernel;
    double max_bad; int64_t max_pixels;
    bool stoppable;                      /* a request to stop on any rank ends it: result.stopped, and no other member means anything */
    bool want_logits; en_dump *logits;   /* all ranks say so; rank 0 has the file: /logits, /labels, /files        */
} en_eval_config;

/* Every image of the dataset exactly once over all ranks; results are equal on all ranks, and so is an error, but for EN_EPEER:
 * then a sum over the ranks failed, and the others may know nothing of it. */
en_status en_evaluate(const en_eval_config *c, en_eval_result *out);

/* Images of one pass: `wanted`, or a rank's share of the dataset when that is less. */
int64_t en_eval_batch(const en_dataset *dataset, const en_comm *comm, int64_t wanted);

/* ---- shared by the commands (setup.c) --------------------------------------------------------------------------- */
double en_seconds(void);                     /* monotonic seconds */
/* When main began, on that clock; or, where a launcher says when the job did (EFFNET_STARTED_AT, seconds since 1970), then. */
double en_program_began(void);
/* Threads for this rank: what the option says, else OMP_NUM_THREADS, else this host's usable cores / its ranks, at least 1. */
en_backend_config en_config_of(const en_options *o, const en_comm *c);    /* --threads, --lanes, --precision */
int en_threads_of(const en_options *o, const en_comm *c);
/* All ranks learn whether any failed: each returns the status of the lowest rank that did, EN_OK when none did; that rank
 * alone keeps its message, so it is printed once.  EN_EPEER also when the agreement itself failed, whatever the rank's own
 * status was: the others may not know.  Every rank calls it at the same place. */
en_status en_agree(en_comm *c, en_status mine);
/* All ranks were started alike: EN_EUSAGE names the host and the first option that differs from rank 0's.  Folders may lie
 * elsewhere on each host, and threads differ with it. */
en_status en_check_same_options(en_comm *c, const en_options *o);
/* A checkpoint argument (file, or a run's folder: its best.h5, else the newest whole one) -> path. */
en_status en_checkpoint_resolve(const char *argument, char path[4096]);
/* FNV-1a over a text, its end included: h of the text before, or EN_HASH_START. */
#define EN_HASH_START 1469598103934665603u
uint64_t en_hash_text(uint64_t h, const char *p);
int64_t en_memory_held(void);            /* bytes of this process that are in memory now (resident set), 0: unknown */

#endif
