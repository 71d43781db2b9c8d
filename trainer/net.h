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
    en_comm        *bn_comm;     /* borrowed: the ranks that share batch statistics; NULL when !training             */
    int64_t         max_images;  /* n of every call is 0..max_images                                                 */
    bool            training;    /* false: forward with running statistics only, in a fraction of the memory         */
    float           bn_momentum; /* 0: the model's                                                                   */
} en_net_config;

/* The memory plan of en_net_open: activations as placed, and the rest in bytes. */
typedef struct { en_plan activations; size_t small_bytes; } en_net_plan;
en_status en_net_plan_make(const en_net_config *c, en_net_plan *out);
void      en_net_plan_free(en_net_plan *p);

en_status en_net_open(const en_net_config *c, en_net **out);
void      en_net_close(en_net *net);                     /* NULL is fine */

/* grads may be NULL when only evaluating. */
void en_net_bind(en_net *net, float *params, float *grads, float *stats);

/* What is random in a step: dropout and stochastic depth of images first..first+n-1 of the global batch. */
typedef struct { uint64_t seed; int64_t step, first; } en_noise;

/* Host images (n, size, size, 3), normalised -> logits.  training: batch statistics over bn_comm, running ones updated;
 * every rank of bn_comm calls it, also with n == 0.  Otherwise running statistics (en_net_freeze first). */
en_status en_net_forward(en_net *net, int64_t n, const float *images, const en_noise *noise);
/* Takes scale and shift of every batch norm from the bound running statistics: once after binding, before evaluating. */
en_status en_net_freeze(en_net *net);

/* Loss over the n images of the last forward: sums += ; with grad_scale > 0 also the gradient of the logits. */
en_status en_net_loss(en_net *net, const int32_t *labels, float smoothing, float grad_scale, en_loss_sums *sums);

/* grads += for the last forward and loss.  When `buckets` is set, tells it after each block what is final. */
en_status en_net_backward(en_net *net, en_buckets *buckets);

en_status en_net_logits(en_net *net, float *host);       /* (n, classes) of the last forward, without padding        */

/* Seconds spent in all-reduces of batch norm since the last call. */
double    en_net_bn_seconds(en_net *net);

/* For tests: the masks of the last training forward, as host arrays.  drop (n) of a block: NULL when it has none;
 * dropout (n, features physical): NULL when the rate is 0. */
const float *en_net_drop(const en_net *net, int block);
const float *en_net_dropout(const en_net *net);

#endif
