/* account.h - where the time of a run goes: every second of the loop is put down to one cause, on every rank.
 *
 * A step's wall time is what its device was busy with, between marks on its queue (forward, backward, sums that were waited for,
 * update), and the rest, in which the device was idle: waiting for images as far as the host waited for them, else OTHER (the roll
 * call, launching, the tally's way back).  Between steps stand evaluations, checkpoints, the opening of a stage (run_stage.c), and
 * OTHER again.  So the causes add up to the wall time by construction, and OTHER is what nobody can explain: the smaller the better.
 *
 * Sums of batch norm are parts of forward and backward.  Where they are queued on a device, they stand between marks in one of
 * EN_TIMED_EVERY steps only, in a recording of its own, so that all other steps run as if nobody measured; their share in those
 * steps is taken for all. */
#ifndef EN_ACCOUNT_H
#define EN_ACCOUNT_H

#include "trainer/trainer.h"

typedef enum { EN_COST_DATA, EN_COST_FORWARD, EN_COST_BN_FORWARD, EN_COST_BACKWARD, EN_COST_BN_BACKWARD, EN_COST_GRADIENTS,
               EN_COST_UPDATE, EN_COST_CHECKPOINT, EN_COST_EVALUATION, EN_COST_STAGE, EN_COST_OTHER, EN_COSTS } en_cost;
extern const char *const en_cost_key[EN_COSTS];    /* "data_s", ...: in metrics.jsonl           */
extern const char *const en_cost_name[EN_COSTS];   /* "waiting for images", ...: for people     */

typedef struct {                         /* of one rank, over some steps; doubles only, so that it travels as it is    */
    double steps, wall_s;
    double s[EN_COSTS];                  /* EN_COST_OTHER, and the parts of batch norm, are worked out by en_account_close */
    double timed_forward_s, timed_backward_s, bn_forward_s, bn_backward_s;     /* in steps where they are known        */
} en_account;

/* A step that was done, or skipped. */
void en_account_step(en_account *a, const en_step_report *r);
/* Seconds between steps, and of the whole loop. */
void en_account_spent(en_account *a, en_cost cost, double seconds);
void en_account_wall(en_account *a, double seconds);
/* Takes the sums of batch norm out of forward and backward, and gives OTHER what is left of the wall time (negative where marks
 * and clock disagree).  Once, before reading. */
void en_account_close(en_account *a);

enum { EN_ACCOUNT_EVERY = 100 };         /* steps between two reports */
typedef struct { double mean, low, high; } en_spread;                          /* over the ranks, seconds in all        */
typedef struct { int64_t steps; int ranks; en_spread wall, of[EN_COSTS]; } en_account_report;

/* Collective.  Closes every rank's account and gathers them: *out on rank 0.  EN_ENOMEM, on rank 0's word to all. */
en_status en_account_gather(en_comm *c, const en_account *mine, en_account_report *out);

/* "forward 41.2 % (12.1 to 13.0 s), ...", the largest first, what is below 0.05 % left out; for the end of a run. */
void en_account_text(const en_account_report *r, char *out, size_t size);

#endif
