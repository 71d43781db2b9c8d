/* rollcall.h - what the ranks tell each other once a step, in one small sum: 3 + ranks numbers. */
#ifndef EN_ROLLCALL_H
#define EN_ROLLCALL_H

#include "comm/comm.h"

typedef struct {                         /* what this rank answers                                                 */
    bool   stop;                         /* it was asked to stop                                                   */
    bool   writing;                      /* rank 0: a checkpoint is on its way to the disk                         */
    bool   save_again;                   /* rank 0: one did not get there, and now may                             */
    double work_s;                       /* its own time in this step: without that spent waiting for others       */
} en_answer;

typedef struct {                         /* what all of them said, the same on every rank                          */
    bool   stop, writing, save_again;    /* somebody's                                                             */
    int    slowest;                      /* the rank with the most work_s, the lowest of equals                    */
    double straggler_s;                  /* its work_s - the median (of an even number the lower one)              */
} en_roll;

/* Collective.  room: 2 * (3 + world_size) doubles of the caller's. */
enum { EN_ROLL_WORDS = 3 };
en_status en_rollcall(en_comm *c, const en_answer *mine, double *room, en_roll *out);

/* Is one rank slower than the others for long?  Looks at windows of EN_STRAGGLER_WINDOW steps, the first steps apart. */
enum { EN_STRAGGLER_WINDOW = 50, EN_STRAGGLER_SETTLING = 10 };
typedef struct { int64_t steps; int last, said; double step_s, lag_s; int64_t times; bool has_said; } en_straggler_watch;
/* After each step.  True, once for a rank until another one is it: in nine of ten steps of the window `rank` was the slowest, and
 * all waited for it for more than a tenth of the time: `lag_s` a step on average, which took `step_s`. */
bool en_straggler_step(en_straggler_watch *w, const en_roll *roll, double step_s, int *rank, double *lag_s, double *mean_step_s);

#endif
