/* schedule.h - everything that is a function of the step: learning rate, moving-average decay, when a span is due. */
#ifndef EN_SCHEDULE_H
#define EN_SCHEDULE_H

#include "trainer/options.h"

typedef enum { EN_LR_EXPONENTIAL, EN_LR_COSINE, EN_LR_CONSTANT, EN_LR_POLYNOMIAL } en_lr_kind;

typedef struct {
    en_lr_kind kind;
    double base;                 /* already scaled: lr * global_batch / 256                                     */
    double steps_per_epoch;      /* E = samples / global_batch, a real number                                   */
    double warmup_epochs, decay, decay_epochs;
    double power, end;           /* polynomial: 2 and 0.1 in the reference; end is a rate, not scaled with the batch */
    int64_t total_steps;
} en_schedule;

/* The reference's schedule (spec 3.2).  W = floor(warmup_epochs * E);  step < W: base*step/W;  then
 *     exponential  base * decay^floor(step / (decay_epochs*E))    (the clock is not shifted by the warm-up)
 *     cosine       base * (1 + cos(pi * (step-W)/(total-W))) / 2        constant  base
 *     polynomial   (base - end) * (1 - tau/D)^power + end    with D = total - W + 1 and tau = min(max(step - W, 1), D)
 * The last is the reference's "poly", which goes with LARS (spec 3.6): two steps short of its end at the last step, and flat over the first two
 * behind the warm-up. */
double en_lr_at(const en_schedule *s, int64_t step);

/* What --steps says, else the whole steps in --epochs. */
int64_t en_total_steps(int64_t steps, double epochs, int64_t samples, int64_t global_batch);

/* TensorFlow's ramp: min(decay, (1+n)/(10+n)), n = updates done including this one. */
double en_ema_decay(double decay, int64_t n);

/* Whether something every `span` is due after `step` steps are done; `seconds` since it was last done.  Epoch spans fall
 * on the first step at or past each multiple. */
bool en_span_due(const en_span *span, int64_t step, double steps_per_epoch, double seconds);

#endif
