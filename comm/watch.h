/* watch.h - where this rank is in its work, so that a job which hangs can say which rank on which host hangs, and where.
 *
 * A rank names the section that it enters and, where there is one, a detail: a layer's name, a kind of file.  Naming costs two
 * stores.  While a rank stands in a call that meets the other ranks (comm.h's collectives, from their entry to their return) it is
 * in EN_COLLECTIVE, without being told; afterwards in the section of before.  What is made of it: watch.c. */
#ifndef EN_WATCH_H
#define EN_WATCH_H

#include <stdint.h>

#include "kernels/status.h"

typedef enum {
    EN_STARTUP,                                /* until the first step: listing images, MPI, NCCL, memory, a cache     */
    EN_DATA,                                   /* the step waits for images                                            */
    EN_FORWARD, EN_BACKWARD,                   /* detail: the block                                                    */
    EN_UPDATE,                                 /* optimizer, averages                                                  */
    EN_DEVICE,                                 /* the host waits for what it queued on a device                        */
    EN_CHECKPOINT,                             /* snapshot, comparing weights, waiting for the writer                  */
    EN_EVALUATION,
    EN_ENDING,                                 /* the last file, leaving MPI                                           */
    EN_COLLECTIVE,
    EN_SECTIONS
} en_section;

const char *en_section_name(en_section s);     /* "start-up", "data", "forward", ...                                   */

/* This rank enters `s`.  detail: NULL, or a text that outlives the section (borrowed).  By the thread that owns the communicator. */
void en_watch_at(en_section s, const char *detail);
/* The optimizer step that is being made, counted as in state.step + 1; 0: none. */
void en_watch_step(int64_t step);

/* Seconds that this rank has spent in EN_COLLECTIVE since it began: a step's own work is its time less the growth of this. */
double en_watch_waited(void);

/* For faults on purpose (trainer/inject.h): called at each en_watch_at and at each entry of a collective, NULL: nobody. */
typedef void en_watch_hook_fn(en_section s, const char *detail, int64_t step);
void en_watch_hook(en_watch_hook_fn *hook);

#endif
