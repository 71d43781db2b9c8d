/* weights.h - a checkpoint opened for use: model, device and the weights to evaluate with (`eval`, `predict`). */
#ifndef EN_WEIGHTS_H
#define EN_WEIGHTS_H

#include "trainer/trainer.h"

typedef struct {
    en_backend *be;
    en_model   *model;
    float *params, *stats;               /* device arenas                                       */
    char **class_names;                  /* model->classes names; NULL when the file has none   */
    int64_t step;
    bool   ema;                          /* averaged weights were asked for and are there       */
    char   path[4096];
    en_checkpoint_info info;
} en_weights;

/* o->checkpoint, o->eval_weights, o->eval_size, o->device, o->threads.  Not collective. */
en_status en_weights_open(const en_options *o, const en_comm *c, en_weights *w);
void      en_weights_close(en_weights *w);

#endif
