/* freeze.h - which layers a run leaves as they are: --freeze LAYER, everything from the stem up to and including that layer.
 *
 * Such a layer is what it is in evaluation: it normalises by its running statistics and drops no paths; its weights, statistics and their
 * averages keep their bits; nothing of it is kept for a way back that ends above it.  Both arenas are laid out from the last tensor to the
 * first (model_tensors.c), so what is trained is the beginning of each. */
#ifndef EN_FREEZE_H
#define EN_FREEZE_H

#include "trainer/model.h"
#include "trainer/optimizer.h"

typedef struct {
    int     layers;                            /* frozen ones: the stem is the first, then each block, then the head's convolution; 0: none */
    int64_t trained_params, trained_stats;     /* elements at the beginning of each arena that are trained      */
    int64_t kept;                              /* parameters that are not, counted as params_trainable counts   */
} en_frozen;

/* "": nothing; "features": all but the classifier; "stem"; "blocks.2", "layer2": up to the end of that stage; "blocks.2.1".  EN_EUSAGE,
 * naming the nearest one. */
en_status en_frozen_of(const en_model *m, const char *name, en_frozen *out);

/* What an optimizer walks, without the frozen part: cut in place. */
void en_frozen_cut(const en_frozen *f, en_segment *segments, int64_t *n);

#endif
