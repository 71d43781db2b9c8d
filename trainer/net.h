/* net.h - a built model on a device: forward and backward over its blocks, as passes (kernels.h).
 *
 * The net owns activations, statistics of the batch and scratch; parameters, their gradients and running statistics are
 * arenas of the caller (en_model's layout), bound before use, so that the same net evaluates raw or averaged weights. */
#ifndef EN_NET_H
#define EN_NET_H

#include "comm/comm.h"
#include "trainer/model.h"
#include "trainer/plan.h"

typedef struct en_net en_net;

typedef struct {
    en_backend     *be;          /* borrowed                                                                         */
    const en_model *model;       /* borrowed; its channel_align is the backend's                                     */
    en_comm        *bn_comm;     /* borrowed: the ranks that share batch statistics, over device memory; NULL: alone */
    int64_t         max_images;  /* n of every call is 0..max_images                                                 */
    bool            training;    /* false: forward with running statistics only, in a fraction of the memory         */
    float           bn_momentum; /* 0: the model's                                                                   */
    int             frozen;      /* training: so many layers from the stem on are as in evaluation (freeze.h)        */
    int             slots;       /* of input; 0: 1.  More let the next input travel while a pass computes            */
    bool            mixing;      /* an image may show two labels (en_targets.mates): memory for them                 */
} en_net_config;

/* The memory plan of en_net_open: activations as placed, and the rest in bytes. */
typedef struct { en_plan activations; size_t small_bytes; } en_net_plan;
en_status en_net_plan_make(const en_net_config *c, en_net_plan *out);
void      en_net_plan_free(en_net_plan *p);

en_status en_net_open(const en_net_config *c, en_net **out);
void      en_net_close(en_net *net);                     /* NULL is fine */

/* grads may be NULL when only evaluating. */
void en_net_bind(en_net *net, float *params, float *grads, float *stats);

/* Queues the input of a pass into a slot: images (n, size, size, 3), normalised floats, or bytes where be->u8; targets, host memory
 * of n each, NULL when there is no loss (images NULL: what the slot holds; labels NULL likewise); now, NULL when not training.  Images
 * and what targets points to stay borrowed until be->ops->stage_wait(slot); the pass must lie between be->ops->stage_ready(slot) and
 * stage_done(slot).  A net that is opened for mixing reads mates and shares of every batch, so that a recorded step serves them all:
 * of hard labels, those that mean the same.
 * EN_EINVAL: mates in a net that was not opened for them, one of mates and shares without the other. */
en_status en_net_stage(en_net *net, int slot, int64_t n, const void *images, const en_targets *targets, const en_now *now);
/* The same for a caller without steps: into slot 0, and the host may change the memory at once. */
en_status en_net_input(en_net *net, int64_t n, const void *images, const en_targets *targets);
bool      en_net_reads_bytes(const en_net *net);
const en_now *en_net_now(const en_net *net, int slot);   /* in device memory */

/* The slot's images -> logits.  training: batch statistics over bn_comm, running ones updated; every rank of bn_comm calls it,
 * also with n == 0.  Otherwise running statistics (en_net_freeze first).  Loss and backward are those of the last forward. */
en_status en_net_forward(en_net *net, int slot);
/* Takes scale and shift of every batch norm from the bound running statistics: once after binding, before evaluating. */
en_status en_net_freeze(en_net *net);

/* Loss over the n images of the last forward: tally (device) += ; with grad_scale > 0 also the gradient of the logits. */
en_status en_net_loss(en_net *net, float smoothing, float grad_scale, double *tally);

/* grads += for the last forward and loss.  When `buckets` is set, tells it after each block what is final. */
en_status en_net_backward(en_net *net, en_buckets *buckets);

en_status en_net_logits(en_net *net, float *host);       /* (n, classes) of the last forward, without padding        */

/* What the sums of batch norm took, forward and backward.  Where sums block (bn_comm->captures is false) it is what the host waited
 * for them since the last call.  Where they are queued it is read off marks on the queue, EN_NET_MARKS and up, that the last passes
 * set because en_net_time_sums said so before; what was recorded with marks sets them in every replay.  false: not known. */
enum { EN_NET_MARKS = 16 };
void      en_net_time_sums(en_net *net, bool on);
bool      en_net_bn_seconds(en_net *net, double *forward, double *backward);

/* From here on each pass appends to `gaps` (borrowed; NULL: no more) what lies between its sums of batch norm: the seconds from its beginning
 * to the first, from one to the next, and from the last to the end of backward.  For a net whose bn_comm is of one rank, which has no sums to
 * wait for, on a backend that computes while it is called. */
typedef struct { double *s; int64_t n, room; double since; } en_gaps;          /* s: malloc'd as it grows, the caller's to free */
void      en_net_keep_gaps(en_net *net, en_gaps *gaps);

/* For tests: the masks of the last training forward.  drop (n) of a block; dropout (n, features physical).  *has false: there
 * are none of this kind. */
en_status en_net_drop(en_net *net, int block, float *host, bool *has);
en_status en_net_dropout(en_net *net, float *host, bool *has);

#endif
