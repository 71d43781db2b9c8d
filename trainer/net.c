/* net.c - the walk over the blocks.
 *
 * Forward, per MBConv block (each arrow a pass, each [=] the all-reduce of synchronised batch norm over bn_comm):
 *     x ─expand▶ y1 [=] ─depthwise▶ y2 [=] ─se+project▶ y3 [=] ─residual▶ o
 * Backward, with g = dloss/do:
 *     g, y3 ▶ sums of bn3 [=] ─se+project▶ dz2 [=] ─depthwise▶ dz1 [=] ─expand▶ dx (+ g over the skip)
 * A fused block has one dense convolution for expand and depthwise together:
 *     x ─convolve▶ y2 [=] ─project▶ y3 [=] ─residual▶ o          or, without expansion,   x ─convolve▶ y2 [=] ─residual▶ o
 * The latter ends in its activation, so that its way back begins with storing dz2 (activation_backward).
 * A block without expansion reads x through `operand`: for the first block that is the stem's raw output with its batch
 * norm on load, for later ones the plain output of the block before; in backward its convolution takes the skip. */
#include "comm/watch.h"
#include "trainer/net_state.h"

#include "data/data.h"

#include <string.h>
#include <time.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- batch norm between the passes --------------------------------------------------------------------------------- */

static en_status sum_over_ranks(en_net *net, en_bn *bn, size_t doubles)
{
    if (alone(&net->cfg)) return EN_OK;                       /* local and total are the same memory */
    const double t0 = now();
    const int at = EN_NET_MARKS + 2 * (net->sums[0] + net->sums[1]);
    const bool marked = net->time_sums && net->cfg.bn_comm->captures && at + 1 < EN_MARKS;
    if (marked) EN_TRY(net->be->ops->mark(net->be, at), "mark");
    EN_TRY(net->cfg.bn_comm->ops->sum_f64(net->cfg.bn_comm, bn->local, bn->total, doubles), "summing batch-norm statistics");
    if (marked) EN_TRY(net->be->ops->mark(net->be, at + 1), "mark");
    net->sums[net->is_backward] += marked;
    net->bn_seconds[net->is_backward] += now() - t0;
    return EN_OK;
}

static en_status settle(en_net *net, en_bn *bn)               /* forward: sums -> scale and shift */
{
    if (!net->cfg.training) return EN_OK;
    EN_TRY(sum_over_ranks(net, bn, (size_t)(2 * bn->c + 1)), "batch norm forward");
    return net->be->ops->bn_finalize(net->be, bn);
}

static en_status settle_backward(en_net *net, en_bn *bn)      /* sums -> dgamma, dbeta and the affine form of dy */
{
    EN_TRY(net->be->ops->bn_backward_local(net->be, bn), "batch norm backward");
    EN_TRY(sum_over_ranks(net, bn, (size_t)(2 * bn->c)), "batch norm backward");
    return net->be->ops->bn_backward_finalize(net->be, bn);
}

en_status en_net_freeze(en_net *net)
{
    en_status (*const freeze)(en_backend *, en_bn *) = net->be->ops->bn_from_running;
    EN_TRY(freeze(net->be, &net->bn_stem), "running statistics of the stem");
    EN_TRY(freeze(net->be, &net->bn_head), "running statistics of the head");
    for (int b = 0; b < net->m->n_blocks; b++) {
        block_state *s = &net->blocks[b];
        if (net->m->blocks[b].expand) EN_TRY(freeze(net->be, &s->bn_expand), "running statistics of block %d", b);
        EN_TRY(freeze(net->be, &s->bn_dw), "running statistics of block %d", b);
        if (net->m->blocks[b].w_project >= 0) EN_TRY(freeze(net->be, &s->bn_project), "running statistics of block %d", b);
    }
    return EN_OK;
}

/* ---- input and noise ---------------------------------------------------------------------------------------------------- */

en_status en_net_stage(en_net *net, int slot, int64_t n, const void *images, const en_targets *targets, const en_now *now_)
{
    const en_model *m = net->m;
    EN_REQUIRE(slot >= 0 && slot < slots_of(&net->cfg), EN_EINVAL, "slot %d of %d", slot, slots_of(&net->cfg));
    EN_REQUIRE(n >= 0 && n <= net->cfg.max_images, EN_EINVAL, "%lld images, planned for %lld", (long long)n, (long long)net->cfg.max_images);
    const en_targets t = targets ? *targets : (en_targets){ 0 };
    EN_REQUIRE(!t.mates == !t.shares, EN_EINVAL, "%s", t.mates ? "mates without shares" : "shares without mates");
    EN_REQUIRE(!t.mates || (t.labels && net->cfg.mixing), EN_EINVAL, "%s", t.labels ? "mixed labels in a net that is not opened for them" : "mates without labels");
    en_net_input_slot *in = &net->slot[slot];
    in->n = n;
    if (now_) *in->now_host = *now_;
    const size_t pixel = net->be->u8 ? 1 : sizeof(float);
    const size_t labels = t.labels ? (size_t)n * sizeof *t.labels : 0, shares = t.labels && net->cfg.mixing ? (size_t)n * sizeof *t.shares : 0;
    const en_copy copies[] = { { in->images, images, images ? (size_t)(n * m->stem.h * m->stem.w * 3) * pixel : 0 },
                               { in->labels, t.labels, labels },
                               { in->mates, t.mates ? t.mates : t.labels, net->cfg.mixing ? labels : 0 },
                               { in->shares, t.shares ? t.shares : net->whole, shares },
                               { in->now, in->now_host, now_ ? sizeof *now_ : 0 } };
    EN_TRY(net->be->ops->stage(net->be, slot, copies, sizeof copies / sizeof *copies), "input of %lld images", (long long)n);
    return EN_OK;
}

en_status en_net_input(en_net *net, int64_t n, const void *images, const en_targets *targets)
{
    const struct en_backend_ops *ops = net->be->ops;
    EN_TRY(ops->stage_done(net->be, 0), "the input before this");
    EN_TRY(en_net_stage(net, 0, n, images, targets, NULL), "input");
    EN_TRY(ops->stage_ready(net->be, 0), "input");
    EN_TRY(ops->stage_wait(net->be, 0), "input");
    return EN_OK;
}

bool en_net_reads_bytes(const en_net *net) { return net->be->u8; }

const en_now *en_net_now(const en_net *net, int slot) { return net->slot[slot].now; }

static const float *drop_of(const en_net *net, int b)
{
    return net->drop && net->m->blocks[b].drop_path > 0 ? net->drop + (int64_t)b * net->in->n : NULL;
}

/* Inverted dropout and stochastic depth: 0, or 1/keep.  One draw an image and block; one a feature. */
static en_status draw_noise(en_net *net)
{
    const en_model *m = net->m;
    const struct en_backend_ops *ops = net->be->ops;
    if (net->drop) EN_TRY(ops->drop_path_masks(net->be, net->in->now, m->n_blocks, net->in->n, net->keep, net->drop), "stochastic depth");
    if (m->dropout > 0) EN_TRY(ops->dropout_mask(net->be, net->in->now, net->in->n, m->head.co_p, m->head.co, 1.f - m->dropout, net->mask), "dropout");
    return EN_OK;
}

static en_pixels pixels_of(const en_net *net)
{
    const en_normalise *by = en_normalise_by(net->cfg.model->normalise);
    return (en_pixels){ .data = net->in->images, .u8 = net->be->u8, .mean = { by->mean[0], by->mean[1], by->mean[2] },
                        .std = { by->std[0], by->std[1], by->std[2] } };
}

/* ---- forward ------------------------------------------------------------------------------------------------------------- */

/* What block b reads: the stem's raw output with its batch norm, or the plain output of the block before. */
static en_operand input_of(const en_net *net, int b)
{
    if (b == 0) return (en_operand){ net->y_stem, &net->bn_stem, net->m->act };
    return (en_operand){ net->blocks[b - 1].o, NULL, EN_ACT_NONE };
}

static en_operand spatial_input(const en_net *net, int b)
{
    if (net->m->blocks[b].expand) return (en_operand){ net->blocks[b].y1, &net->blocks[b].bn_expand, net->m->act };
    return input_of(net, b);
}

/* An evaluation is in its own section all along. */
static void at_forward(const en_net *net, const char *layer)
{
    if (net->cfg.training) en_watch_at(EN_FORWARD, layer);
}

static en_status block_forward(en_net *net, int b, int64_t n)
{
    const struct en_backend_ops *ops = net->be->ops;
    const en_block *k = &net->m->blocks[b];
    block_state *s = &net->blocks[b];
    const en_operand x = input_of(net, b), u1 = spatial_input(net, b), u2 = { s->y2, &s->bn_dw, net->m->act },
                     y3 = { s->y3, &s->bn_project, EN_ACT_NONE };
    const en_conv_geom g = spatial_geom(k, n);
    const bool train = net->cfg.training;
    if (k->expand) {
        EN_REQUIRE(!x.bn, EN_EINVAL, "%s expands a raw tensor", k->name);
        EN_TRY(ops->pointwise_forward(net->be, n * k->h * k->w, k->ci_p, k->mid_p, x.y, s->w_expand, s->y1, train ? &s->bn_expand : NULL), "expand");
        EN_TRY(settle(net, &s->bn_expand), "expand");
    }
    net->be->workspace = s->work_spatial;
    if (en_block_is_depthwise(k)) EN_TRY(ops->depthwise_forward(net->be, &g, &u1, s->w_dw, s->y2, train ? &s->bn_dw : NULL), "depthwise");
    else EN_TRY(ops->conv_forward(net->be, &g, &u1, s->w_dw, s->y2, train ? &s->bn_dw : NULL), "convolution");
    EN_TRY(settle(net, &s->bn_dw), "convolution");
    if (k->w_project >= 0) {
        net->be->workspace = s->work_forward;
        EN_TRY(ops->se_project_forward(net->be, n, k->oh * k->ow, k->mid_p, k->co_p, &u2, k->q > 0 ? &s->se : NULL, s->w_project, s->y3,
                                       train ? &s->bn_project : NULL), "project");
        EN_TRY(settle(net, &s->bn_project), "project");
    }
    EN_TRY(ops->residual_forward(net->be, n, k->oh * k->ow, k->co_p, k->w_project >= 0 ? &y3 : &u2, net->cfg.training ? drop_of(net, b) : NULL,
                                 k->skip ? &x : NULL, s->o), "residual");
    return EN_OK;
}

en_status en_net_forward(en_net *net, int slot)
{
    const struct en_backend_ops *ops = net->be->ops;
    const en_model *m = net->m;
    const bool train = net->cfg.training;
    net->in = &net->slot[slot];
    net->is_backward = false;
    if (net->time_sums) net->sums[0] = net->sums[1] = 0;
    const int64_t n = net->in->n;
    const en_pixels images = pixels_of(net);
    if (train) EN_TRY(draw_noise(net), "drawing masks");
    at_forward(net, "stem");

    const en_conv_geom stem = stem_geom(m, n);
    EN_TRY(ops->stem_forward(net->be, &stem, &images, net->w_stem, net->y_stem, train ? &net->bn_stem : NULL), "stem");
    EN_TRY(settle(net, &net->bn_stem), "stem");
    for (int b = 0; b < m->n_blocks; b++) {
        at_forward(net, m->blocks[b].name);
        EN_TRY(block_forward(net, b, n), "forward of %s", m->blocks[b].name);
    }
    at_forward(net, "head");

    const int64_t hw = m->head.h * m->head.w;
    const en_operand last = input_of(net, m->n_blocks), uh = { net->y_head, &net->bn_head, m->act };
    EN_TRY(ops->pointwise_forward(net->be, n * hw, m->head.ci_p, m->head.co_p, last.y, net->w_head, net->y_head, train ? &net->bn_head : NULL), "head");
    EN_TRY(settle(net, &net->bn_head), "head");
    EN_TRY(ops->pool_forward(net->be, n, hw, m->head.co_p, &uh, train && m->dropout > 0 ? net->mask : NULL, net->pooled), "pooling");
    EN_TRY(ops->dense_forward(net->be, n, m->head.co_p, m->classes_p, net->pooled, net->fc_w, net->fc_b, net->logits), "classifier");
    return EN_OK;
}

en_status en_net_loss(en_net *net, float smoothing, float grad_scale, double *tally)
{
    const en_targets targets = { net->in->labels, net->in->mates, net->in->shares };
    return net->be->ops->softmax_loss(net->be, net->in->n, net->m->classes_p, net->m->classes, net->logits, &targets, smoothing, grad_scale,
                                      grad_scale > 0 ? net->dlogits : NULL, tally);
}

/* ---- backward ------------------------------------------------------------------------------------------------------------- */

/* From g to what the convolution over space reads: dz2, and the sums of its batch norm. */
static en_status narrow_end_backward(en_net *net, int b, const en_operand *u2)
{
    const struct en_backend_ops *ops = net->be->ops;
    const en_block *k = &net->m->blocks[b];
    block_state *s = &net->blocks[b];
    const int64_t n = net->in->n, hw = k->oh * k->ow;
    const float *drop = drop_of(net, b);
    const en_grad dy3 = { .stored = s->g, .drop = drop, .y = s->y3, .bn = &s->bn_project, .hw = hw };
    if (k->w_project < 0) return ops->activation_backward(net->be, n, hw, k->co_p, s->g, drop, u2, s->dz2, &s->bn_dw);
    EN_TRY(ops->residual_backward(net->be, n, hw, k->co_p, s->g, drop, s->y3, &s->bn_project), "residual");
    EN_TRY(settle_backward(net, &s->bn_project), "project");
    net->be->workspace = s->work_project;
    EN_TRY(ops->se_project_backward(net->be, n, hw, k->mid_p, k->co_p, u2, k->q > 0 ? &s->se : NULL, s->w_project, &dy3, s->dz2, s->dw_project,
                                    &s->bn_dw), "project");
    return EN_OK;
}

static en_status block_backward(en_net *net, int b)
{
    const struct en_backend_ops *ops = net->be->ops;
    const en_model *m = net->m;
    const en_block *k = &m->blocks[b];
    block_state *s = &net->blocks[b];
    const int64_t n = net->in->n, hw = k->oh * k->ow;
    const en_operand x = input_of(net, b), u1 = spatial_input(net, b), u2 = { s->y2, &s->bn_dw, m->act };
    const en_conv_geom g = spatial_geom(k, n);
    const en_grad dy2 = { .stored = s->dz2, .gated = net->be->gated && k->w_project >= 0, .act = m->act, .gate = k->q > 0 ? s->se.gate : NULL,
                          .dgate = k->q > 0 ? s->se.dgate : NULL, .y = s->y2, .bn = &s->bn_dw, .hw = hw },
                  dy1 = { .stored = s->dz1, .y = s->y1, .bn = &s->bn_expand, .hw = k->h * k->w };
    const void *skip = k->skip ? s->g : NULL;
    void *dx = b == 0 ? net->dz_stem : net->blocks[b - 1].g;
    en_bn *x_bn = b == 0 ? &net->bn_stem : NULL;

    EN_TRY(narrow_end_backward(net, b, &u2), "the narrow end");
    EN_TRY(settle_backward(net, &s->bn_dw), "convolution");
    net->be->workspace = s->work_back;
    if (k->expand) {
        EN_TRY(ops->depthwise_backward(net->be, &g, &u1, s->w_dw, &dy2, NULL, s->dz1, s->dw_dw, &s->bn_expand), "depthwise");
        EN_TRY(settle_backward(net, &s->bn_expand), "expand");
        net->be->workspace = s->work_expand;
        EN_TRY(ops->pointwise_backward(net->be, n * k->h * k->w, k->ci_p, k->mid_p, x.y, s->w_expand, &dy1, skip, dx, s->dw_expand), "expand");
        return EN_OK;
    }
    if (en_block_is_depthwise(k)) EN_TRY(ops->depthwise_backward(net->be, &g, &u1, s->w_dw, &dy2, skip, dx, s->dw_dw, x_bn), "depthwise");
    else EN_TRY(ops->conv_backward(net->be, &g, &u1, s->w_dw, &dy2, skip, dx, s->dw_dw, x_bn), "convolution");
    if (x_bn) EN_TRY(settle_backward(net, x_bn), "stem");
    return EN_OK;
}

en_status en_net_backward(en_net *net, en_buckets *buckets)
{
    const struct en_backend_ops *ops = net->be->ops;
    const en_model *m = net->m;
    const int64_t n = net->in->n, hw = m->head.h * m->head.w;
    const en_pixels images = pixels_of(net);
    const en_operand last = input_of(net, m->n_blocks), uh = { net->y_head, &net->bn_head, m->act };
    const en_grad dyh = { .dpooled = net->dpooled, .act = m->act, .y = net->y_head, .bn = &net->bn_head, .hw = hw };

    net->is_backward = true;
    en_watch_at(EN_BACKWARD, "head");
    EN_TRY(ops->dense_backward(net->be, n, m->head.co_p, m->classes_p, net->pooled, net->fc_w, net->dlogits, net->dpooled, net->dfc_w, net->dfc_b), "classifier");
    EN_TRY(ops->pool_backward(net->be, n, hw, m->head.co_p, net->dpooled, m->dropout > 0 ? net->mask : NULL, &uh, &net->bn_head), "pooling");
    EN_TRY(settle_backward(net, &net->bn_head), "head");
    net->be->workspace = net->work_head;
    EN_TRY(ops->pointwise_backward(net->be, n * hw, m->head.ci_p, m->head.co_p, last.y, net->w_head, &dyh, NULL, net->blocks[m->n_blocks - 1].g,
                                   net->dw_head), "head");
    if (buckets) EN_TRY(en_buckets_ready(buckets, net->grads_done_head), "gradients of the head");
    for (int b = m->n_blocks - 1; b >= 0; b--) {
        en_watch_at(EN_BACKWARD, m->blocks[b].name);
        EN_TRY(block_backward(net, b), "backward of %s", m->blocks[b].name);
        if (buckets) EN_TRY(en_buckets_ready(buckets, net->blocks[b].grads_done), "gradients of %s", m->blocks[b].name);
    }
    en_watch_at(EN_BACKWARD, "stem");
    const en_conv_geom stem = stem_geom(m, n);
    const en_grad dy0 = { .stored = net->dz_stem, .y = net->y_stem, .bn = &net->bn_stem, .hw = m->stem.oh * m->stem.ow };
    EN_TRY(ops->stem_backward(net->be, &stem, &images, &dy0, net->dw_stem), "stem");
    if (buckets) EN_TRY(en_buckets_ready(buckets, net->grads_done_stem), "gradients of the stem");
    return EN_OK;
}

/* ---- what others read ------------------------------------------------------------------------------------------------ */

en_status en_net_logits(en_net *net, float *host)
{
    const int64_t k = net->m->classes_p, classes = net->m->classes, n = net->in->n;
    EN_TRY(net->be->ops->download(net->be, net->logits_host, net->logits, (size_t)(n * k) * sizeof(float)), "downloading logits");
    for (int64_t i = 0; i < n; i++) memcpy(host + i * classes, net->logits_host + i * k, (size_t)classes * sizeof *host);
    return EN_OK;
}

void en_net_time_sums(en_net *net, bool on) { net->time_sums = on; }

bool en_net_bn_seconds(en_net *net, double *forward, double *backward)
{
    double s[2] = { net->bn_seconds[0], net->bn_seconds[1] };
    const bool queued = !alone(&net->cfg) && net->cfg.bn_comm->captures;
    net->bn_seconds[0] = net->bn_seconds[1] = 0;
    if (queued) s[0] = s[1] = 0;
    for (int i = 0; queued && i < net->sums[0] + net->sums[1]; i++)
        s[i >= net->sums[0]] += net->be->ops->elapsed(net->be, EN_NET_MARKS + 2 * i, EN_NET_MARKS + 2 * i + 1);
    *forward = s[0];
    *backward = s[1];
    return !queued || net->sums[0] + net->sums[1] > 0;
}

en_status en_net_drop(en_net *net, int block, float *host, bool *has)
{
    const float *drop = drop_of(net, block);
    *has = drop;
    return drop ? net->be->ops->download(net->be, host, drop, (size_t)net->in->n * sizeof *host) : EN_OK;
}

en_status en_net_dropout(en_net *net, float *host, bool *has)
{
    *has = net->m->dropout > 0;
    return *has ? net->be->ops->download(net->be, host, net->mask, (size_t)(net->in->n * net->m->head.co_p) * sizeof *host) : EN_OK;
}
