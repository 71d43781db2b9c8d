/* stages.h - progressive training: what grows while a run goes on (arXiv:2104.00298, algorithm 1).
 *
 * The run is cut into N parts of equal length.  Early ones show small images, weakly augmented: they cost little and are easily
 * learned; later ones show larger images and regularise more.  Stage i = 0 ... N-1 of a run of T steps:
 *
 *     steps       floor(i*T/N) <= step < floor((i+1)*T/N)
 *     side        reference   floor(from + (size - from)*(i+1)/N)         S: 171, 214, 257, 300
 *                 paper       floor(from + (size - from)*i/(N-1))         S: 128, 185, 242, 300
 *     the rest    from + (to - from)*i/(N-1)                              RandAugment's level, S: 5, 6.67, 8.33, 10
 *
 * The rest are the level of RandAugment, alpha of mixup and cutmix, and dropout; the reference leaves dropout alone, the paper does
 * not.  All of it is a function of the step: nothing is kept in checkpoints but the options, which must say the same about the
 * steps that are done (en_stages_difference). */
#ifndef EN_STAGES_H
#define EN_STAGES_H

#include "trainer/options.h"

typedef struct { double from, to; } en_ramp;             /* to < 0: not scheduled */

typedef struct {
    int     count;                                       /* N; 1: nothing grows                                  */
    bool    paper;                                       /* the paper's sides                                    */
    int64_t total_steps;
    int     size_from, size;                             /* size: of the last stage, the model's                 */
    en_ramp magnitude, mixup, cutmix, dropout;
} en_stages;

typedef struct {                                         /* of one stage                                         */
    int64_t first, end;                                  /* first <= step < end                                  */
    int     size;
    double  magnitude, mixup, cutmix, dropout;           /* -1: not scheduled, the options and the model say it  */
} en_stage_values;

int             en_stage_at(const en_stages *s, int64_t step);          /* past the end: the last one            */
en_stage_values en_stage_values_of(const en_stages *s, int stage);

/* Of the options; size and dropout: the model's.  EN_EUSAGE when they contradict each other or the model, or there are fewer steps than
 * stages; the first needs neither model nor steps. */
en_status en_stages_check(const en_options *o);
en_status en_stages_of(const en_options *o, int size, double dropout, int64_t total_steps, en_stages *out);
/* Of a run's options as its checkpoints keep them (NULL, or without them: no stages); whatever they say was a run once. */
en_stages en_stages_recall(const char *options, int size, double dropout, int64_t samples, int64_t global_batch);

/* The first of the steps 0 ... steps-1 on which two schedules do not agree; -1: they agree on all. */
int64_t en_stages_difference(const en_stages *a, const en_stages *b, int64_t steps);

/* "43 px, magnitude 6.67, mixup 0.0667" */
const char *en_stage_text(const en_stage_values *v, char *text, size_t size);
/* The stages as a table, one a line; nothing where there is but one. */
void en_stages_print(const en_stages *s, const char *augment, void *stream /* FILE * */);

#endif
