/* net_state.h - what a net consists of, shared by its files: net_open.c plans, takes and binds memory, net.c walks, net_block.c takes each
 * block both ways. */
#ifndef EN_NET_STATE_H
#define EN_NET_STATE_H

#include "trainer/net.h"

/* be->workspace of a block's convolutions, forward and back. */
enum { WORK_EXPAND, WORK_SPATIAL, WORK_PROJECT, WORK_SHORTCUT, BACK_EXPAND, BACK_SPATIAL, BACK_PROJECT, BACK_SHORTCUT, WORKS };

typedef struct {
    en_bn  bn_expand, bn_dw, bn_project, bn_shortcut;
    en_se  se;
    float *w_expand, *w_dw, *w_project, *w_shortcut, *dw_expand, *dw_dw, *dw_project, *dw_shortcut;
    void  *y1, *y2, *y3, *ys, *o, *dz1, *dz2, *g;        /* ys: of the shortcut; g: the gradient of o */
    void  *work[WORKS];
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
    bool   training;                                     /* the layer at hand, forward: not evaluating, not frozen */
    const en_net_input_slot *in;                         /* of the last forward */
    float *whole;                                        /* host (max_images): shares of 1, when mixing; else NULL */
    void  *y_stem, *dz_stem, *y_head, *work_head;
    void  *o_stem, *g_stem;                              /* what block 0 reads and its gradient, where that is no raw tensor; else NULL */
    uint8_t *at_stem;                                    /* where the pool found its largest ones; NULL: no pool, or evaluating */
    float *pooled, *dpooled, *mask, *logits, *dlogits, *logits_host;
    float *keep, *drop;                                  /* stochastic depth: (blocks) and masks (blocks, n); NULL: none */
    block_state *blocks;
    float *params, *grads, *stats;
    size_t grads_done_head, grads_done_stem;
    bool   is_backward, time_sums;                       /* which way the sums go; whether marks stand around them */
    int    sums[2];                                      /* that the last passes put between marks, forward and backward */
    double bn_seconds[2];
    en_gaps *gaps;                                       /* NULL: nobody asks */
};

static inline int slots_of(const en_net_config *c) { return c->slots > 0 ? c->slots : 1; }
/* The stem is layer 0, block b layer 1 + b, the head's convolution the one after the last block. */
static inline bool trains(const en_net_config *c, int layer) { return c->training && layer >= c->frozen; }
static inline bool alone(const en_net_config *c)   { return !c->bn_comm || c->bn_comm->world_size == 1; }

/* Passes that convolve over space read a raw tensor, 1x1 convolutions a plain one: where the first block begins with one of these, or
 * after a pool, what follows the stem is written. */
static inline bool stem_is_raw(const en_model *m)  { return !m->pool.kernel && !m->blocks[0].expand; }
static inline bool has_head(const en_model *m)     { return m->head.weight >= 0; }
static inline bool has_shortcut(const en_block *k) { return k->w_shortcut >= 0; }
static inline bool projects(const en_block *k)     { return k->w_project >= 0; }

static inline en_conv_geom stem_geom(const en_model *m, int64_t n)
{
    return (en_conv_geom){ .n = n, .h = m->stem.h, .w = m->stem.w, .c = 3, .oh = m->stem.oh, .ow = m->stem.ow, .oc = m->stem.oc_p,
                           .kernel = m->stem.kernel, .stride = m->stem.stride, .pad = m->stem.pad_h };
}

static inline en_conv_geom pool_geom(const en_model *m, int64_t n)
{
    return (en_conv_geom){ .n = n, .h = m->stem.oh, .w = m->stem.ow, .c = m->stem.oc_p, .oh = m->pool.oh, .ow = m->pool.ow, .oc = m->stem.oc_p,
                           .kernel = m->pool.kernel, .stride = m->pool.stride, .pad = m->pool.pad };
}

/* A 1x1 convolution: kernel 0, a product of rows, unless it steps over some of them; then a dense one. */
static inline en_conv_geom pw_geom(int64_t n, int64_t h, int64_t w, int64_t ci, int64_t co)
{
    return (en_conv_geom){ .n = n, .h = h, .w = w, .c = ci, .oh = h, .ow = w, .oc = co, .kernel = 0, .stride = 1 };
}

static inline en_conv_geom strided_geom(int64_t n, int64_t h, int64_t w, int64_t ci, int64_t oh, int64_t ow, int64_t co, int stride)
{
    if (stride == 1) return pw_geom(n, h, w, ci, co);
    return (en_conv_geom){ .dense = true, .n = n, .h = h, .w = w, .c = ci, .oh = oh, .ow = ow, .oc = co, .kernel = 1, .stride = stride };
}

static inline en_conv_geom expand_geom(const en_block *k, int64_t n)
{
    return strided_geom(n, k->h, k->w, k->ci_p, k->eh, k->ew, k->mid_p, k->expand_stride);
}

static inline en_conv_geom project_geom(const en_block *k, int64_t n) { return pw_geom(n, k->oh, k->ow, k->mid_p, k->co_p); }

static inline en_conv_geom shortcut_geom(const en_block *k, int64_t n)
{
    return strided_geom(n, k->h, k->w, k->ci_p, k->oh, k->ow, k->co_p, k->expand_stride * k->stride);
}

/* The convolution over space: depthwise, or dense from what the 1x1 before it gave, or from the block's input. */
static inline en_conv_geom spatial_geom(const en_block *k, int64_t n)
{
    return (en_conv_geom){ .dense = !en_block_is_depthwise(k), .n = n, .h = k->eh, .w = k->ew, .c = en_block_is_depthwise(k) || k->expand ? k->mid_p : k->ci_p,
                           .oh = k->oh, .ow = k->ow, .oc = k->mid_p, .kernel = k->kernel, .stride = k->stride, .pad = k->pad_h };
}

/* ---- net.c, for net_block.c and cam_map.c -------------------------------------------------------------------------------------- */

en_status    en_net_settle(en_net *net, en_bn *bn);               /* forward: sums over the ranks -> scale and shift              */
en_status    en_net_settle_backward(en_net *net, en_bn *bn);      /* sums over the ranks -> dgamma, dbeta, the affine form of dy  */
en_operand   en_net_reads(const en_net *net, int b);              /* what block b reads; b = n_blocks: what the head reads        */
en_operand   en_net_averages(const en_net *net);                  /* what the mean before the classifier is over                  */
const float *en_net_drop_of(const en_net *net, int b);            /* (n), or NULL: nothing is dropped                             */

/* ---- net_block.c ------------------------------------------------------------------------------------------------------ */

en_status en_net_block_forward(en_net *net, int b, int64_t n);
en_status en_net_block_backward(en_net *net, int b);              /* from blocks[b].g to the gradient of what the block reads     */

#endif
