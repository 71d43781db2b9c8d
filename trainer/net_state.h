/* net_state.h - what a net consists of, shared by its two files: net_open.c plans, takes and binds memory, net.c walks. */
#ifndef EN_NET_STATE_H
#define EN_NET_STATE_H

#include "trainer/net.h"

typedef struct {
    en_bn  bn_expand, bn_dw, bn_project;
    en_se  se;
    float *w_expand, *w_dw, *w_project, *dw_expand, *dw_dw, *dw_project;
    void  *y1, *y2, *y3, *o, *dz1, *dz2, *g;             /* g: the gradient of o */
    void  *work_spatial, *work_forward, *work_project, *work_back, *work_expand;   /* be->workspace of this block's passes */
    size_t grads_done;                                   /* elements of the arena that are final after this block */
} block_state;

enum { MAX_SLOTS = 4 };
typedef struct { int64_t n; void *images; int32_t *labels, *mates; float *shares; en_now *now, *now_host; } en_net_input_slot;

struct en_net {
    en_net_config  cfg;
    const en_model *m;
    en_backend     *be;
    void  *activations, *small;
    en_bn  bn_stem, bn_head;
    float *w_stem, *dw_stem, *w_head, *dw_head, *fc_w, *fc_b, *dfc_w, *dfc_b;
    en_net_input_slot slot[MAX_SLOTS];
    const en_net_input_slot *in;                         /* of the last forward */
    float *whole;                                        /* host (max_images): shares of 1, when mixing; else NULL */
    void  *y_stem, *dz_stem, *y_head, *work_head;
    float *pooled, *dpooled, *mask, *logits, *dlogits, *logits_host;
    float *keep, *drop;                                  /* stochastic depth: (blocks) and masks (blocks, n); NULL: none */
    block_state *blocks;
    float *params, *grads, *stats;
    size_t grads_done_head, grads_done_stem;
    bool   is_backward, time_sums;                       /* which way the sums go; whether marks stand around them */
    int    sums[2];                                      /* that the last passes put between marks, forward and backward */
    double bn_seconds[2];
};

static inline int slots_of(const en_net_config *c) { return c->slots > 0 ? c->slots : 1; }
static inline bool alone(const en_net_config *c)   { return !c->bn_comm || c->bn_comm->world_size == 1; }

static inline en_conv_geom stem_geom(const en_model *m, int64_t n)
{
    return (en_conv_geom){ .n = n, .h = m->stem.h, .w = m->stem.w, .c = 3, .oh = m->stem.oh, .ow = m->stem.ow, .oc = m->stem.oc_p,
                           .kernel = m->stem.kernel, .stride = m->stem.stride, .pad = m->stem.pad_h };
}

/* The convolution over space: depthwise, or dense from the block's input. */
static inline en_conv_geom spatial_geom(const en_block *k, int64_t n)
{
    const bool depthwise = en_block_is_depthwise(k);
    return (en_conv_geom){ .dense = !depthwise, .n = n, .h = k->h, .w = k->w, .c = depthwise ? k->mid_p : k->ci_p, .oh = k->oh, .ow = k->ow, .oc = k->mid_p, .kernel = k->kernel,
                           .stride = k->stride, .pad = k->pad_h };
}

static inline en_conv_geom pw_geom(int64_t n, int64_t h, int64_t w, int64_t ci, int64_t co)
{
    return (en_conv_geom){ .n = n, .h = h, .w = w, .c = ci, .oh = h, .ow = w, .oc = co, .kernel = 0, .stride = 1 };
}

#endif
