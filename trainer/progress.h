/* progress.h - what a person at the terminal sees of a run; rank 0 alone prints. */
#ifndef EN_PROGRESS_H
#define EN_PROGRESS_H

#include "trainer/run.h"

typedef struct {
    bool   live;                 /* one line, redrawn; else a plain line every log_every seconds          */
    bool   drawn;                /* a live line stands on the terminal                                    */
    double log_every, began, last;
    int64_t began_step;
    double loss, top1, images_per_s, data_share;    /* smoothed over about the last 20 steps              */
    int64_t shown;
} en_progress;

void en_print_header(const en_run *run, void *stream);       /* what the run will do: model, batch, memory, steps */
void en_progress_open(en_progress *p, const en_run *run);
void en_progress_step(en_progress *p, const en_run *run, const en_step_report *r);
void en_progress_say(en_progress *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));   /* a line of its own */
void en_progress_close(en_progress *p);

#endif
