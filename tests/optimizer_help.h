/* optimizer_help.h - the optimizers as one kind of thing: settings, the oracle's run with an error bound, arenas on a device.
 *
 * Bounds follow the handful of operations per parameter one by one, first order, and take along what was wrong before, so that they hold
 * over many steps.  Each rounding is UNIT of a result; a constant that the program holds as a float is another one of its term. */
#ifndef EN_TESTS_OPTIMIZER_HELP_H
#define EN_TESTS_OPTIMIZER_HELP_H

#include "fixture.h"

typedef struct {
    const char *name;
    enum { RMSPROP, SGD, LARS, ADAMW } kind;
    union { en_rmsprop rmsprop; en_sgd sgd; en_lars lars; en_adamw adamw; };
} optimizer;
int optimizer_slots(const optimizer *o);                       /* accumulators that it needs                         */

/* The paper's settings or the source's, and each way to go: none is left out. */
extern const optimizer optimizers[];
extern const int n_optimizers;

typedef struct { float *w, *grad, *slot[2], *ema; } host_arenas;               /* of the problem's memory                  */
host_arenas arenas_make(const optimizer *o, int64_t elems);                    /* random; mean squares above 0             */
host_arenas arenas_new(const optimizer *o, const float *w, int64_t elems);     /* as a run begins                          */

/* What a float computation must have come to, by the oracle. */
typedef struct { bounded w, slot[2], ema; int64_t updates; double squares; int64_t summed; } expected;
expected expect(const host_arenas *a, int64_t elems);
/* One step that counts.  squares, summed (=): of this step. */
void     expect_step(const optimizer *o, const en_now *now, const en_segment *segments, int n_segments, const float *grad, expected *x);

typedef struct { float *w, *slot[2], *ema; int64_t *updates; double *tally; } device_arenas;
device_arenas arenas_up(variant *v, const optimizer *o, const host_arenas *a, int64_t elems, bool ema, const double *tally /* NULL: zeros */);
en_status     update(variant *v, const optimizer *o, const en_now *now, const en_segment *segments, int64_t n_segments, const float *grad,
                     const device_arenas *d);                  /* the pass; now and grad on the device               */
/* w, accumulators, average, count and sum of squares are the expected ones. */
void          check_arenas(variant *v, const optimizer *o, const device_arenas *d, const expected *x, int64_t elems, bool ema);

#endif
