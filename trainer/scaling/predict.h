/* scaling/predict.h - `effnet scaling --predict`: what its files share.
 *
 *     scaling/predict.c   options, the numbers           scaling/advice.c   what would gain
 *     scaling/times.c     passes that were measured      scaling/report.c   table, JSON, CSV; scaling/figures.c */
#ifndef EN_SCALING_PREDICT_H
#define EN_SCALING_PREDICT_H

#include "trainer/commands.h"
#include "trainer/scaling/model.h"

enum { EN_MOST_POINTS = 32, EN_MOST_STEPS = 128, EN_MOST_ADVICE = 16 };

typedef enum { EN_GROUP_ALL, EN_GROUP_NODE, EN_GROUP_RANKS, EN_GROUP_IMAGES } en_group_kind;
typedef struct { en_group_kind kind; int64_t count; } en_group;             /* count: of RANKS or IMAGES            */

/* What a user chooses, and advice varies. */
typedef struct { en_group group; size_t bucket_bytes; int64_t micro_batch; } en_choice;

typedef struct { int ranks, nodes, bn_group; int64_t global_batch, passes, images; double efficiency; en_scaling_result r; } en_point;

typedef struct {
    char what[64];                         /* the option to give: "--micro-batch 64"                               */
    char because[160];
    double gain;                           /* 0.05: 5 % more images/s                                              */
} en_advice;

typedef struct {
    const en_options *o;                   /* borrowed                                                             */
    en_cluster    cluster;
    en_backend   *planner;                 /* owned: knows sizes, computes nothing                                 */
    en_model     *model;                   /* owned                                                                */
    en_pass_times times;                   /* n 0: floors                                                          */
    en_choice     choice;
    double        stretch;                 /* computing over what times or floors say: --gpu-rate; 0: 1            */
    double        memory_bytes;            /* of a rank, for the largest pass; 0: the machine's memory is not known */
    en_point      point[EN_MOST_POINTS + 1]; int points;     /* [0]: one rank                                      */
    en_advice     advice[EN_MOST_ADVICE];    int n_advice;   /* for the last point                                 */
    struct { int64_t images; int busy; en_scaling_step step; } known[EN_MOST_STEPS]; int n_known;   /* owned       */
} en_prediction;

/* The step of `ranks` ranks under a choice; efficiency is left alone. */
en_status en_predict_point(en_prediction *p, const en_choice *choice, int ranks, en_point *out);
/* --gpu-rate, if given: what one rank computes under p->choice takes as long as the rate says, and every step is stretched alike.  Before any
 * point.  EN_EUSAGE: the optimizer alone takes longer. */
en_status en_predict_calibrate(en_prediction *p);
/* "all", "node", "16 GPUs", "128 images" */
const char *en_group_text(const en_group *g, char text[32]);
const char *en_ranks_word(const en_cluster *c);                             /* "GPUs" or "ranks"                    */
/* Bytes that a rank needs for passes of so many images: weights and what belongs to them, activations. */
en_status en_predict_memory(const en_prediction *p, int64_t images, double *bytes);

en_status en_predict_advise(en_prediction *p);

/* --times: what `effnet bench passes --json` printed. */
en_status en_pass_times_read(const char *path, en_pass_times *out);
en_status en_pass_times_parse(const char *path, char *text, size_t bytes, en_pass_times *out);     /* text is changed */
void      en_pass_times_free(en_pass_times *t);

void      en_predict_print(const en_prediction *p);
void      en_predict_print_json(const en_prediction *p);
en_status en_predict_write(const en_prediction *p, const char *folder);     /* predicted.csv, figures               */
en_status en_predict_draw(const en_prediction *p, const char *folder);      /* the figures                          */
const char *en_predict_source(const en_prediction *p, char *text, size_t size);   /* what the numbers come from     */

/* Parts of a step, which add up to it, in the order of the table. */
enum { EN_STEP_PARTS = 8 };
double      en_step_part(const en_scaling_result *r, int i);
const char *en_step_part_name(int i);

en_status en_scaling_predict(const en_options *o);

#endif
