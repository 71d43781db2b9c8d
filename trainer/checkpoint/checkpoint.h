/* checkpoint/checkpoint.h - a run's state as one HDF5 file, whole or absent.
 *
 * Layout: /model/<timm key>, /ema/<timm key>, /optimizer/<slot>/<timm key>: float32, logical shapes (O,I,kh,kw), so that
 * timm loads /model or /ema as it is.  Attributes of / : every field of en_run_state, every option as text, the model's
 * name, shape and class names, format_version, program_version, and `complete` last.  Each dataset carries an attribute
 * crc32c of its bytes.  Invariants (and where they are tested: tests/test_checkpoint.c):
 *   1. the file is built in memory (core driver), written as NAME.tmp, fsynced, re-opened, verified, renamed, directory
 *      fsynced;
 *   2. a file that bears its final name is whole;
 *   3. the loader takes the newest file that verifies and says which it passed over and why;
 *   4. the last `keep` and best.h5 stay; nothing else is deleted and nothing that is not ours (step-<digits>.h5, *.tmp of
 *      that form). */
#ifndef EN_CHECKPOINT_H
#define EN_CHECKPOINT_H

#include "trainer/model.h"

enum { EN_MAX_SLOTS = 4 };

typedef struct {                             /* what a run is, besides its tensors                                 */
    int64_t step;                            /* optimizer updates done                                             */
    int64_t epoch;                           /* floor(position / samples)                                          */
    int64_t position;                        /* samples consumed: step * global_batch                              */
    int64_t ema_updates;                     /* updates made: steps that were not skipped                          */
    uint64_t seed;
    int64_t global_batch, samples;           /* a resume with other values is refused (the order would change)     */
    int     lanes;                           /* kernels: partition of sums; a resume keeps it for equal bits       */
    int64_t accum;                           /* passes a step: batch norm is over the images of one; 0: not known  */
    int     world_size;                      /* ranks that the sums were over; 0: not known                        */
    bool    evaluation_owed;                 /* one was due after `step` and was not made: a resume begins with it */
    int64_t skipped, skipped_in_row;         /* steps whose loss or gradients were not finite; the last ones of them */
    double  lr_factor;                       /* on the schedule's rate; 1 but for runs that diverged and went back */
    double  best_top1;                       /* -1: none yet                                                       */
    double  seconds;                         /* training time so far                                               */
} en_run_state;

/* Everything that a checkpoint holds, as host arrays in the arenas' physical layout. */
typedef struct {
    const en_model *model;                   /* borrowed                                                           */
    en_run_state state;
    float *params, *ema_params;              /* param_elems each; ema_params NULL: none                            */
    float *stats,  *ema_stats;               /* stat_elems each                                                    */
    int    n_slots; const char *slot_name[EN_MAX_SLOTS]; float *slot[EN_MAX_SLOTS];  /* param_elems each */
    char *const *class_names;                /* model->classes names, or NULL; borrowed                            */
    const char *options;                     /* "name=value\n..." of every option, or NULL; borrowed               */
} en_snapshot;

en_status en_snapshot_alloc(const en_model *m, int n_slots, const char *const *slot_names, bool with_ema, en_snapshot *s);
void      en_snapshot_free(en_snapshot *s);

/* ---- one file ------------------------------------------------------------------------------------------------- */

/* Writes `path` by invariant 1.  EN_EIO with path and errno text (a full disk: names the bytes needed); the .tmp is removed
 * on failure, and an older file of that name is untouched. */
en_status en_checkpoint_write(const char *path, const en_snapshot *s);

typedef struct {                             /* read first: enough to build the model and check the options        */
    en_run_state state;
    char    model[80];                       /* row name, with width, depth, resolution apart                      */
    double  width, depth; int resolution, classes;
    float   dropout, drop_path;
    float   bn_eps, bn_momentum; en_padding padding;   /* what the weights were trained with; 0, EN_PADDING_OWN: the row's own */
    en_normalising normalise; en_eval_crop eval_crop;  /* never 0: files that do not say are older than any choice */
    bool    has_ema; int n_slots;
    char  **class_names;                     /* owned, `classes` of them, or NULL                                  */
    char   *options;                         /* owned, or NULL                                                     */
    char    program_version[32];
} en_checkpoint_info;

/* Verifies the whole file (signature, format version, complete, every CRC) when `verify`.  EN_EDATA with path and reason:
 * not HDF5, truncated, foreign (no format_version), damaged dataset NAME, incomplete. */
en_status en_checkpoint_inspect(const char *path, bool verify, en_checkpoint_info *out);
void      en_checkpoint_info_free(en_checkpoint_info *i);

/* Reads into a snapshot allocated for the same model: EN_EDATA naming the first tensor that is missing or has another
 * shape.  Slots or EMA that the file lacks: EN_EDATA, unless `weights_only`, which reads /model, /ema and statistics. */
en_status en_checkpoint_read(const char *path, en_snapshot *s, bool weights_only);

/* ---- a run's folder ---------------------------------------------------------------------------------------------- */

/* The newest whole step-*.h5 in DIR into path[4096]; path[0] = 0 when there is none at all.  Each file passed over is told
 * through `passed_over` (may be NULL; called with path and reason).  EN_EDATA when files exist but none is whole. */
en_status en_checkpoint_newest(const char *dir, char path[4096], void (*passed_over)(const char *path, const char *why));

/* Removes what retention no longer wants: all but the newest `keep` whole step-*.h5, and stale *.tmp of ours. */
en_status en_checkpoint_prune(const char *dir, int keep);

/* ---- the writer thread --------------------------------------------------------------------------------------------- */

/* Takes snapshots and writes them while training goes on.  One snapshot buffer: begin waits for the write before. */
typedef struct en_checkpoint_writer en_checkpoint_writer;
en_status en_checkpoint_writer_open(const char *dir, int keep, en_snapshot *buffer /* borrowed */, en_checkpoint_writer **out);
/* A write is under way, and still is after this many seconds: acquire would wait. */
bool      en_checkpoint_writer_busy(en_checkpoint_writer *w, double patience_s);
/* Waits until the buffer is free (the previous write has ended); its error, if any, comes back here. */
en_status en_checkpoint_writer_acquire(en_checkpoint_writer *w);
/* The buffer is filled: write DIR/step-XXXXXXXX.h5 (8 digits) in the background, and best.h5 as well when `best`. */
void      en_checkpoint_writer_begin(en_checkpoint_writer *w, bool best);
en_status en_checkpoint_writer_wait(en_checkpoint_writer *w);    /* the write begun last is on disk, or its error */
const char *en_checkpoint_writer_last(const en_checkpoint_writer *w);  /* path of the newest whole file written, or "" */
void      en_checkpoint_writer_close(en_checkpoint_writer *w);   /* waits; NULL is fine */

#endif
