/* scaling/measure.h - `effnet scaling --ranks 1,2,4`: what its files share.
 *
 *     scaling/measure.c           options, one run after another      scaling/measure_launch.c    starting, waiting, logs
 *     scaling/measure_read.c      what runs wrote                     scaling/measure_figures.c   throughput, efficiency, a step, bandwidth
 *     scaling/measure_rounds.c    several rounds as one               scaling/measure_report.c    table, JSON, CSV
 *     scaling/measure_check.c     figures, and do results agree?
 *     scaling/measure_predict.c   the same figures by the model, from ranks without sums and sums without ranks that compute */
#ifndef EN_SCALING_MEASURE_H
#define EN_SCALING_MEASURE_H

#include "trainer/account.h"
#include "trainer/bench/comm.h"
#include "trainer/scaling/predict.h"

enum { EN_MOST_COUNTS = 16, EN_MOST_ROUNDS = 50, EN_PATH = 4096 };

/* ---- what runs wrote (scaling/measure_read.c) --------------------------------------------------------------------------- */

typedef struct { int64_t step; double loss, images_per_s, forward_s, backward_s, bn_s, grads_s, update_s; } en_step_line;   /* rank 0's */

typedef struct {
    en_step_line *line; int n;             /* owned; steps after the warm-up                                           */
    double *loss; int n_losses;            /* owned; of all steps from the first on                                    */
    en_account_report account;             /* seconds over all these steps; its least and most are sums of those of the pieces */
} en_run_lines;

/* metrics.jsonl as text; lines of steps up to `warm` count as warm-up.  EN_EDATA with the line: not what `effnet train` writes, a step is missing or
 * stands twice, or there is no account of the steps after `warm`. */
en_status en_run_lines_parse(const char *path, const char *text, int64_t warm, en_run_lines *out);
void      en_run_lines_free(en_run_lines *l);
/* meetings.csv of `effnet train --alone` as text: appends seconds of the steps behind `warm`. */
en_status en_meetings_parse(const char *path, const char *text, int64_t warm, double **seconds, int *n);
/* The sums of `effnet bench comm --json`; nccl: a device's queue does them.  EN_EDATA: it is not that. */
en_status en_measured_sums_parse(const char *path, const char *text, en_measured_sums *out, bool *nccl, int64_t *wrong);
/* What a run of `effnet train` prints at its beginning names its precision. */
bool      en_log_says_bf16(const char *log);
/* A whole text file, malloc'd, 0 behind it.  EN_EIO with path and reason. */
en_status en_text_read(const char *path, char **text);

/* ---- rounds (scaling/measure_rounds.c) ------------------------------------------------------------------------------------ */

/* Steps and account of another run of the same number of ranks behind those of `to`; the losses stay those of the first.  more: emptied. */
en_status en_run_lines_append(en_run_lines *to, en_run_lines *more);
/* Seconds of a step of so many images. */
static inline double en_line_step_s(const en_step_line *l, int64_t images) { return (double)images / l->images_per_s; }
/* Each size in the middle of the rounds. */
void      en_measured_sums_middle(const en_measured_sums *round, int rounds, en_measured_sums *out);

/* ---- a rank count -------------------------------------------------------------------------------------------------------- */

typedef enum { EN_COUNT_PENDING, EN_COUNT_MEASURED, EN_COUNT_FAILED } en_count_state;

typedef struct {
    int     ranks;
    int64_t global_batch, micro_batch, passes;
    en_count_state state;
    char    why[400];                      /* FAILED: in words                                                         */
    en_run_lines lines;                    /* owned                                                                    */
    comm_spread rate, step;                /* images/s of all ranks; seconds                                           */
    double  speedup, efficiency;           /* against the smallest count that was measured                             */
    double  part[EN_COSTS], least[EN_COSTS], most[EN_COSTS];   /* seconds of a step: mean over steps and ranks, ranks  */
    int64_t checked, wrong;                /* losses compared with those of the smallest count, and those that differ  */
    double  apart;                         /* the largest relative difference                                          */
    double *check; int n_check;            /* owned; losses of the short run, where those are compared                 */
    bool    bf16;                          /* the run said so                                                          */
    en_measured_sums *round; int rounds;   /* owned; sums of each round, room for EN_MOST_ROUNDS                       */
    en_measured_sums sums; bool nccl;      /* the middle of them; sums.n_gradients 0: not measured                     */
    int64_t sums_wrong;
    en_run_lines *alone;                   /* owned, one for each rank: the same steps without sums (effnet train --alone); NULL: not measured */
    double  alone_step_s; int alone_rank;  /* the median step of the slowest of them                                   */
    double *met; int n_met;                /* owned; forward and backward of these steps, if they met at each batch norm (trainer/alone.c), n_met 0: not known */
    comm_spread meeting;                   /* of them                                                                  */
    bool    predicted;
    en_scaling_result model;               /* predicted, from medians                                                  */
    double  predicted_p10_s;               /* a step, from the p10                                                     */
} en_count;

/* alone_step_s, alone_rank and meeting from all rounds so far (scaling/measure_rounds.c). */
en_status en_count_alone(en_count *k);

/* How jobs start. */
typedef enum { EN_BY_RUN, EN_BY_MPIRUN, EN_BY_SRUN } en_starter;

typedef struct {
    const en_options *o;                   /* borrowed                                                                 */
    en_count  count[EN_MOST_COUNTS]; int counts;               /* ascending                                            */
    en_count *base;                        /* the smallest that was measured; NULL: none                               */
    int64_t   warm, steps, images;         /* steps: of a run; images: of a rank and step with weak scaling            */
    int       threads, cores;              /* threads 0: the program's choice; cores: of this machine                  */
    bool      one_machine, stopped;
    char      program[EN_PATH], starter[EN_PATH], folder[EN_PATH]; en_starter by;
    bool      apart;                       /* compared is a short run of each count, not the runs that are measured     */
    int64_t   check_images;                /* of a step of it; 0: there is none                                        */
    char      not_compared[200];           /* apart, but there is none: why                                            */
    bool      folder_is_ours;              /* removed at the end                                                       */
    en_model *model;                       /* owned; NULL: it cannot be predicted, for the reason in no_model          */
    char      no_model[400];
} en_study;

/* ---- starting (scaling/measure_launch.c) --------------------------------------------------------------------------------- */

enum { EN_MOST_ARGS = 96 };
typedef struct { char *arg[EN_MOST_ARGS + 1]; int n; bool full; } en_args;       /* owned                              */
void      en_args_add(en_args *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void      en_args_free(en_args *a);

en_status en_find_starter(en_study *s);
int       en_cores_allowed(void);
/* Runs `program args` on so many ranks and waits; stdout goes to `out`, or with the rest to `log`.  A request to stop (Ctrl-C) ends it.
 * EN_EPEER with the last lines of `log`: it ended with another code than 0. */
en_status en_start_ranks(const en_study *s, int ranks, const en_args *args, const char *out, const char *log);
void      en_remove_folder(const char *path);

/* ---- figures and checks (scaling/measure_check.c) ------------------------------------------------------------------------- */

/* rate, step, part, least, most from its lines. */
void en_count_figures(en_count *k);
/* speedup, efficiency and results, of all that was measured; sets base. */
void en_study_compare(en_study *s);
bool en_study_nccl(const en_study *s);                 /* sums were a device's, on any of the counts */
/* Losses that differ by more than rounding makes them in so many steps (tests/test_program_ranks.c); *apart: the largest difference. */
int64_t en_losses_wrong(const double *a, const double *b, int n, double tolerance, double *apart);
enum { EN_COMPARED_STEPS = 20 };
double en_loss_tolerance(const en_study *s);           /* of what is compared                                                      */
/* From the options and rank counts: apart, check_images, not_compared. */
void   en_study_choose_comparison(en_study *s);

/* ---- the model beside it (scaling/measure_predict.c) ------------------------------------------------------------------------ */

en_status en_study_predict(en_study *s);
/* All its ranks meet at every batch norm, on cores of their own, and what that takes was measured. */
bool      en_study_meets(const en_study *s, const en_count *k);

void      en_study_print(const en_study *s);
void      en_study_print_json(const en_study *s);
en_status en_study_write(const en_study *s, const char *folder);      /* scaling.csv, figures       */
en_status en_study_draw(const en_study *s, const char *folder);
const char *en_study_text(const en_study *s, char *text, size_t size);      /* what was measured, in one line             */

en_status en_scaling_measure(const en_options *o);

#endif
