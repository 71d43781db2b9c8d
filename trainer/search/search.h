/* search/search.h - step 1 of compound scaling (arXiv:1905.11946, section 3.3): which depth, width and resolution make the best of twice the
 * multiply-adds?
 *
 *     search/grid.c     which candidates there are: alpha * beta^2 * gamma^2 within a tolerance of 2
 *     search/search.c          the command: options, folder, groups of ranks
 *     search/desk.c     who trains which candidate, and what became of it
 *     search/state.c    what is kept: RUN/search.txt, RUN/<candidate>/result.json
 *     search/report.c   the ranking as table, CSV, JSON and figure
 */
#ifndef EN_SEARCH_H
#define EN_SEARCH_H

#include "comm/mail.h"
#include "trainer/model.h"
#include "trainer/options.h"

/* ---- candidates ------------------------------------------------------------------------------------------------------ */

typedef enum { EN_OPEN, EN_DONE, EN_FAILED } en_outcome;

typedef struct {
    en_outcome outcome;
    int64_t  step;                           /* where its training ended                                               */
    double   top1, top5, loss;               /* fractions of 1; of the last evaluation                                 */
    double   images_per_s, seconds;          /* the median step's; in all steps together                               */
    uint64_t weights;                        /* CRC-32C of parameters and of running statistics, as `effnet train` prints it */
    char     reason[400];                    /* of a failure                                                           */
} en_result;

typedef struct {
    double  alpha, beta, gamma, product;
    char    name[48];                        /* "a1.2-b1.1-g1.15", its folder                                          */
    int     side;                            /* of its training images                                                 */
    int64_t params, macs;                    /* trainable; of one training image                                       */
    en_result result;
} en_candidate;

typedef struct { en_candidate *c; int n; int64_t grid; } en_grid;        /* c: owns; grid: points looked at             */

/* "1,1.1,1.2", "1:1.4:0.05" or both: ascending, each once, to six digits.  EN_EUSAGE names the option. */
enum { EN_GRID_VALUES = 256 };
en_status en_grid_values(const char *option, const char *text, double value[EN_GRID_VALUES], int *n);
/* The candidates, ascending by alpha, beta, gamma.  EN_EUSAGE: none (the nearest one is named), or too many. */
en_status en_grid_make(const en_options *o, en_grid *g);
/* side, params, macs; a network that cannot be built or trained has failed. */
en_status en_grid_measure(const en_options *o, int classes, en_grid *g);
void      en_grid_free(en_grid *g);
/* The options that train this candidate: those of `effnet train`.  run: its folder, borrowed; "" for none. */
en_options en_candidate_options(const en_options *o, const en_candidate *c, const char *run);

/* ---- what is kept (search/state.c) ------------------------------------------------------------------------------------- */

/* Some candidate's folder, of this grid or another, has a checkpoint or a result. */
bool      en_search_begun(const char *run);
/* RUN/search.txt is made, or, once the search has begun, compared: EN_EUSAGE names the first option that is not as it was.  Rank 0. */
en_status en_search_keep_options(const en_options *o);
/* The number behind `name` in RUN/search.txt, or 0. */
int64_t   en_search_recall(const char *run, const char *name);
en_status en_result_write(const char *folder, const en_candidate *c);
/* Of FOLDER/result.json; what is not there, is damaged or of another candidate leaves the candidate open, and the latter two are said in
 * `why` ("" else): its checkpoints tell the rest. */
void      en_result_read(const char *folder, en_candidate *c, char why[300]);
/* Out of FOLDER/metrics.jsonl, steps up to `step`: how long they took, and the median's images/s; zeros where there is none. */
void      en_search_pace(const char *folder, int64_t step, int64_t global_batch, double *seconds, double *images_per_s);

/* ---- the report (search/report.c) ---------------------------------------------------------------------------------------- */

/* Done ones by top-1, top-5, fewer multiply-adds, and in the grid's order; open ones; those that failed.  order: n indices. */
void      en_search_rank(const en_grid *g, int *order);
void      en_search_print(const en_options *o, const en_grid *g, void *stream /* FILE * */);
void      en_search_print_json(const en_options *o, const en_grid *g, void *stream);
void      en_search_list(const en_options *o, const en_grid *g);                 /* --list */
/* RUN/search.json, search.csv, search.svg */
en_status en_search_write(const en_options *o, const en_grid *g);

/* ---- who trains what (search/desk.c) --------------------------------------------------------------------------------------- */

typedef struct {
    const en_options *o;
    en_comm *world, *group;                  /* borrowed; group NULL: this rank is left over                            */
    int      groups, group_ranks;
    en_grid *grid;                           /* the results are rank 0's                                                */
    void    *out;                            /* FILE *, rank 0: a line an event                                          */
} en_search;

/* Until every candidate has an outcome or a stop was asked for: EN_ESTOPPED, on all ranks.  A failure that is not a candidate's own ends
 * the job. */
en_status en_search_work(en_search *s);

#endif
