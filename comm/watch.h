/* watch.h - where this rank is in its work, so that a job which hangs can say which rank on which host hangs, and where.
 *
 * A rank names the section that it enters and, where there is one, a detail: a layer's name, a kind of file.  Naming costs a
 * few stores.  While a rank stands in a call that meets the other ranks (comm.h's collectives, from their entry to their return) it
 * is in EN_COLLECTIVE, without being told; afterwards in the section of before.
 *
 * What is made of it: a thread in each rank looks on, the ranks' threads tell each other (watch.c), and when one stands for longer
 * than its section may last, is silent or gone, the job ends with exit code 5 and one line on stderr:
 *
 *     effnet: rank 3 on host node2 (process 711) stands in forward of blocks.3 at step 120 for 31 s (limit 30 s); 3 ranks wait for it ...
 *
 * watch_judge.c has the lines, and when which of them is said. */
#ifndef EN_WATCH_H
#define EN_WATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/status.h"

typedef enum {
    EN_STARTUP,                                /* until the first step: listing images, MPI, NCCL, memory, a cache     */
    EN_DATA,                                   /* the step waits for images                                            */
    EN_FORWARD, EN_BACKWARD,                   /* detail: the block                                                    */
    EN_UPDATE,                                 /* optimizer, averages                                                  */
    EN_DEVICE,                                 /* the host waits for what it queued on a device                        */
    EN_CHECKPOINT,                             /* snapshot, comparing weights, waiting for the writer                  */
    EN_EVALUATION,                             /* entered anew for each batch                                          */
    EN_OUTPUT,                                 /* metrics, progress lines                                              */
    EN_ENDING,                                 /* the last file, leaving MPI                                           */
    EN_COLLECTIVE,
    EN_SECTIONS
} en_section;

const char *en_section_name(en_section s);     /* "start-up", "data", "forward", ...                                   */

/* This rank enters `s`, anew where it was there before.  detail: NULL, or a text, copied (its last 63 bytes).  By the thread that
 * owns the communicator. */
void en_watch_at(en_section s, const char *detail);
/* The optimizer step that is being made, counted as in state.step + 1; 0: none. */
void en_watch_step(int64_t step);

/* Seconds that this rank has spent in EN_COLLECTIVE since it began: a step's own work is its time less the growth of this.  By
 * the thread that owns the communicator. */
double en_watch_waited(void);

/* How long a rank may stand in each section without entering another (or the same anew); 0: as long as it likes.  [EN_COLLECTIVE]:
 * how long all ranks may wait for each other, and how long a rank may be silent.  A rank that waits in one call for longer than
 * the longest of them ends the job too, also when the one it waits for gets on: that one is too far behind.
 * Before en_comm_open.  Without it all are EFFNET_STALL_S or half an hour, and a rank is asked where it stands only when another has
 * waited for it that long. */
typedef struct {
    double      limit_s[EN_SECTIONS];
    bool        asked;                         /* somebody asked for them; if not, EFFNET_STALL_S (seconds, in the environment) goes first */
    const char *option;                        /* that sets them, for messages; NULL: none does; borrowed, as is               */
    const char *advice;                        /* what to do next: the end of the message, or NULL                             */
} en_watch_limits;
void en_watch_keep(const en_watch_limits *l);

/* From here on ranks may be in groups that do not meet (comm.h's split): that one makes steps says nothing about a rank that is silent.
 * All ranks call it. */
void en_watch_apart(void);

/* More about `s`, asked for by another thread when this one stands there for long.  Writes words such as "reading /d/cat.jpg", or
 * nothing.  about NULL: no more; when that has returned, `context` is not used any more. */
typedef void en_watch_about_fn(void *context, char *words, size_t size);
void en_watch_about(en_section s, en_watch_about_fn *about, void *context);

/* For faults on purpose (trainer/inject.h): called at each en_watch_at and at each entry of a collective, NULL: nobody. */
typedef void en_watch_hook_fn(en_section s, const char *detail, int64_t step);
void en_watch_hook(en_watch_hook_fn *hook);

#endif
