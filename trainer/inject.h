/* inject.h - faults on purpose: `effnet train --inject kill@1:20` shows, in a test, what a job does when a rank dies.
 *
 *     --inject KIND[=AMOUNT]@RANK:STEP[:SECTION][,...]
 *
 *     kill     SIGKILL to itself                          stall    the thread that trains sleeps for ever, the others go on
 *     freeze   SIGSTOP to itself: no thread goes on        term, usr1   that signal to itself
 *     slow     from STEP on a step's own work takes twice as long; slow=3: three times; slow=0.5s: that much longer
 *     nan      one weight of the first layer is NaN during STEP; with SECTION backward, of the last layer and after the loss is known
 *     flip     one bit of one parameter is another from STEP on
 *     enospc   the next write of a checkpoint from STEP on finds a full disk; enospc=3: the next three; enospc=2.5s: for so long
 *
 * STEP counts from 1, as the metrics do.  Without SECTION (one of comm/watch.h's names) a fault comes when STEP begins; with it,
 * the first time from STEP on that the rank enters that section; STEP 0 is the start-up.  Each fault comes once in a run's folder: it leaves
 * a line in RUN/injected.txt first (the fault, seconds since 1970, section, step), so that the same command goes on when it
 * is started again.  To have it twice, write it twice.
 *
 * Only a build with EN_FAULTS (CMake: as EN_TESTS) has any of this; in the others these functions do nothing. */
#ifndef EN_INJECT_H
#define EN_INJECT_H

#include "trainer/trainer.h"

#ifdef EN_FAULTS
/* Reads --inject, leaves out what has come already, and waits for the rest.  EN_EUSAGE. */
en_status en_inject_open(const en_options *o, const en_comm *comm);
en_status en_inject_step_begins(en_trainer *t);
/* The step is over on the device: what was changed for it alone is put back.  Not earlier: an upload waits for the device, whose sums wait
 * for the other ranks, which on the emulated device get on only while their hosts do. */
en_status en_inject_step_ended(en_trainer *t);
#else
static inline en_status en_inject_open(const en_options *o, const en_comm *comm) { (void)o, (void)comm; return EN_OK; }
static inline en_status en_inject_step_begins(en_trainer *t) { (void)t; return EN_OK; }
static inline en_status en_inject_step_ended(en_trainer *t) { (void)t; return EN_OK; }
#endif

#endif
