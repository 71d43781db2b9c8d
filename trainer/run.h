/* run.h - opening and closing a training run: from options to an en_trainer that step.c can move (run_open.c,
 * run_resume.c), and what the loop in train.c does between steps. */
#ifndef EN_RUN_H
#define EN_RUN_H

#include "trainer/bucket_tuner.h"
#include "trainer/input.h"
#include "trainer/metrics.h"
#include "trainer/trainer.h"

/* A run that is a part of something larger (search/desk.c). */
typedef struct en_run en_run;
typedef struct {
    void *context;                           /* borrowed                                                                */
    /* On all ranks, before the first step and after each.  *enough, on rank 0: the run ends here, with what ends a run. */
    en_status (*look)(void *context, const en_run *run, bool *enough);
    bool  may_end;                           /* it may say so                                                           */
    double steps_s;                          /* of the steps that this start has made                                   */
    en_eval_result eval; bool evaluated;     /* out: the last evaluation, if there was one; the end always has one      */
    int64_t step; uint64_t weights_crc;      /* out: where it ended, or failed; CRC-32C of the last save, 0: none                  */
} en_training;

struct en_run {
    en_trainer t;
    en_training *part;                       /* NULL: of nothing; borrowed                                              */
    char   dir[4000];                        /* --run, "" when nothing is saved                                     */
    int    lock_fd;                          /* RUN/run.lock, rank 0; -1: none                                      */
    en_snapshot snapshot;                    /* rank 0 only, as the rest below                                      */
    en_checkpoint_writer *writer;
    en_metrics *metrics;
    en_account  account;                     /* of this rank, since the last report                                */
    en_account_report spent;                 /* the last one, rank 0; steps 0: none yet                            */
    en_bucket_tuner tuner;                   /* all ranks; sizes 0: there is nothing to try                             */
    double best_on_disk;                     /* top-1 of best.h5, -1: none                                          */
    bool   written;                          /* no write is under way whose end has not been looked at                  */
    int    failures; double try_again_at;    /* writes that failed in a row; when the next is due                       */
    bool   metrics_fail;                     /* and that has been said                                              */
    double compared_at;                      /* seconds, as saved_at                                                */
    bool   save_owed;                        /* a checkpoint was due while the writer was busy: all ranks               */
    int    times_back; int64_t back_from;    /* went back in a row without getting past this step                       */
    char   (*hosts)[64];                     /* of all ranks, by rank                                                    */
    double best_being_written;               /* of the write under way, when it is to become best.h5; else -1       */
    double saved_at, evaluated_at;           /* seconds (en_seconds), for spans in minutes                              */
    int64_t saved_step;                      /* state.step of the newest checkpoint, -1: none                       */
    uint64_t weights_crc;                    /* of parameters and running statistics at the last save: equal on all ranks */
    bool   resumed;
    const char *isa; char narrowed[128];     /* what all ranks' processors run, NULL: EN_ISA's; why not a faster one, or ""  */
    char   device_why[600];                  /* why this device, when auto chose it                                 */
    int64_t device_memory;                   /* that this rank may take of a device with memory of its own; 0: it has none */
    float   bn_eps, bn_momentum; en_padding padding;   /* of the weights that it begins with; 0, EN_PADDING_OWN: the network's own */
    en_normalising normalise; en_eval_crop eval_crop;   /* and these, or as the options say; 0: the network's own */
    char    init_said[3200];                 /* what --init gave, for the header, rank 0; "": nothing               */
    char   *changed_said;                    /* owned: settings that are not the checkpoint's, rank 0; NULL: none   */
    int64_t accum_before; int world_before;  /* of the checkpoint that the run goes on from; 0: not known           */
    int64_t micro_batch;                     /* images of one pass on the fullest rank                              */
    en_model *eval_model;                    /* owned; of --eval-size, with the tensors of t.model                  */
    size_t  memory_bytes;                    /* of this rank at its fullest: it evaluates while rank 0 writes a checkpoint */
    char   *options_text;
    en_resize_choice resize;                 /* of this run, its evaluations and its checkpoints                    */
    en_cache *cache;                         /* NULL: none                                                          */
    int64_t cache_bytes;                     /* that it will take of the host's memory                              */
    bool    cache_full;                      /* and that has been said                                              */
};

/* train.c: from options to the end of the run.  EN_ESTOPPED: stopped on request, and saved.  Collective; a failure that the ranks do not
 * know of alike ends the job. */
en_status en_train(const en_options *o, en_comm *comm, en_training *part /* NULL: of nothing */);

/* alone.c: each rank by itself (--alone).  Collective. */
en_status en_train_alone(const en_options *o, en_comm *world);
/* out (steps) = sum over gaps of the longest of the ranks': gaps (ranks, steps, a_step). */
void      en_put_together(const double *gaps, int ranks, int64_t steps, int64_t a_step, double *out);

/* run_open.c: a folder and those above it, EN_EIO names `option` to choose another; whether this process alone works in `dir` now (it waits some seconds for one that ends). */
en_status en_make_folder(const char *path, const char *option);
bool      en_take_lock(int lock_fd, const char *dir);

/* run_open.c: --global-batch where it is not given. */
int64_t   en_default_batch(int64_t ranks, int64_t samples);

/* Everything up to the first step.  Collective: all ranks return the same kind of answer, and a rank that failed itself
 * holds the reason.  On failure the run is closed already. */
en_status en_run_open(const en_options *o, en_comm *comm, en_run *run);
void      en_run_close(en_run *run);
/* run_device.c: run->t.be, tensors, model and run->eval_model; then, with the batch, bn_comm.  Collective, agreed. */
en_status en_run_open_device(en_run *run, const en_checkpoint_info *resumed /* NULL: none */);
en_status en_run_open_bn_group(en_run *run);
void      en_run_close_device(en_run *run);
int64_t   en_run_eval_batch(const en_run *run, int64_t micro_batch);   /* images of one pass of the evaluation            */

en_net_config en_run_net_config(const en_run *run, const en_model *m, int64_t images);   /* a net to train m with         */

/* run_stage.c: net and loader of the stage that a step is in. */
en_status en_run_reserve(en_run *run);                  /* the scratch of every net that the run will have       */
en_status en_run_open_net(en_run *run, int64_t step);   /* and t.stage_model, after closing what there was       */
en_status en_run_open_stage(en_run *run);               /* the loader anew from state.step; the net where that is of another stage */
/* Before a step: *entered, where it is the first of another stage; net and loader are its own now.  Collective, agreed. */
en_status en_run_enter_stage(en_run *run, bool *entered);

/* run_input.c: --cache (collective, agreed; says what it takes first), and the training loader. */
en_status en_run_open_cache(en_run *run);
en_status en_run_open_loader(en_run *run);

/* run_resume.c: finds the newest whole checkpoint in DIR/checkpoints on rank 0; state and arenas go to all ranks.
 * *found false: there is none, nothing was changed.  EN_EDATA, EN_EUSAGE when it belongs to another run than the options
 * describe (model, classes, dataset, batch, seed). */
en_status en_run_find_checkpoint(en_run *run, bool *found, en_checkpoint_info *info, char path[4096]);
en_status en_run_load_checkpoint(en_run *run, const char *path);
/* run_save.c: hands the state to the writer thread (rank 0); all ranks check that their bits are equal first (EN_EPEER). */
en_status en_run_save(en_run *run, bool best);
/* Rank 0, before each step: what came of the write before, and what it answers to the roll call. */
void      en_run_look_at_writer(en_run *run);
/* A checkpoint is due, and rank 0 writes another one (en_roll.writing): does it still after some seconds?  Collective. */
en_status en_run_still_writing(en_run *run, bool *busy);
/* Rank 0: the last checkpoint is on disk, or its error after some tries. */
en_status en_run_finish_saving(en_run *run);

/* run_text.c: the header, to the terminal and to RUN/run.txt; gathers run->hosts.  Collective. */
en_status en_run_announce(en_run *run);

/* run_diverge.c: after a step that was skipped.  *back: the run stands at an earlier checkpoint now, or at its beginning, with a
 * lower rate.  EN_EDIVERGED, on all ranks: too many were skipped, and there is no going back, or it did not help. */
en_status en_run_after_skip(en_run *run, bool *back);
/* run_init.c: padding and batch-norm constants, of the checkpoint that is gone on from or of --init, on all ranks; a model with them;
 * weights, averages and optimizer as the run begins, drawn or from --init.  Collective, agreed, all but the second. */
en_status en_run_choose_variant(en_run *run, const en_checkpoint_info *info);
en_status en_run_take_variant(const en_run *run, en_model **model);
en_status en_run_begin(en_run *run);
en_status en_run_start_fresh(en_trainer *t);            /* run_open.c: weights as initialised, averages and accumulators as they begin */

#endif
