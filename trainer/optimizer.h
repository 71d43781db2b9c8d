/* optimizer.h - the optimizers by name: what --optimizer means, what each keeps beside the weights, and its step.
 *
 *     name      accumulators (slots of a checkpoint), and what they start at      eps      weight decay
 *     rmsprop   ms 1, mom 0                        TensorFlow's names             0.001    coupled
 *     sgd       momentum_buffer 0; none for --momentum 0        PyTorch's         -        coupled
 *     lars      momentum 0                         TensorFlow's                   0        coupled, of tensors that adapt alone
 *     adamw     exp_avg 0, exp_avg_sq 0            PyTorch's                      1e-8     decoupled
 *
 * Formulas and sources stand in kernels.h.  An accumulator bears the name that its source gives it, because one means another thing than
 * the next: SGD's momentum_buffer has no learning rate in it, LARS's momentum has. */
#ifndef EN_OPTIMIZER_H
#define EN_OPTIMIZER_H

#include "kernels/kernels.h"
#include "trainer/model.h"
#include "trainer/options.h"

enum { EN_OPTIMIZER_SLOTS = 2 };                 /* accumulators at most */

typedef struct {
    enum { EN_RMSPROP, EN_SGD, EN_LARS, EN_ADAMW } kind;
    const char *name;
    int         n_slots;
    const char *slot_name[EN_OPTIMIZER_SLOTS];
    float       slot_start[EN_OPTIMIZER_SLOTS];
    union { en_rmsprop rmsprop; en_sgd sgd; en_lars lars; en_adamw adamw; };
} en_optimizer;

/* EN_EUSAGE: an option on the command line that this optimizer does not look at, or one that it cannot go with. */
en_status en_optimizer_of(const en_options *o, en_optimizer *out);

/* What the passes walk, in the order of the arena; malloc'd.  Tensors of equal flags that lie side by side are one segment, but for those
 * that adapt.  LARS: a tensor adapts, and decays, unless it is of a batch norm or a bias. */
en_status en_optimizer_segments(const en_optimizer *p, const en_model *m, en_segment **out, int64_t *n);

/* One update, queued.  slot: n_slots arenas; updates: device, AdamW's count. */
typedef struct { float *w; const float *grad; float *slot[EN_OPTIMIZER_SLOTS], *ema; int64_t *updates; double *tally; } en_optimizer_arenas;
en_status en_optimizer_update(const en_optimizer *p, en_backend *be, const en_now *now, const en_segment *segments, int64_t n_segments,
                              const en_optimizer_arenas *a);

/* "sgd, momentum 0.9 (Nesterov), weight decay 1e-05" */
const char *en_optimizer_text(const en_optimizer *p, char *text, size_t size);

#endif
