/* net.c - the walk over a network: stem, blocks (net_block.c), head, and back.
 *
 *     image ─stem▶ y [=] ( ─pool▶ o ) ─▶ block 0 ▶ ... ▶ block B-1 ( ─head▶ y [=] ) ─mean▶ pooled ─dense▶ logits
 *
 * Each arrow is a pass, each [=] the all-reduce of synchronised batch norm over bn_comm.  The first block reads the stem's raw output,
 * its batch norm and activation on load; where a pool stands between, or the block begins with a 1x1 convolution, which reads no raw
 * tensor, it reads what that pool, or a pass that applies the two, wrote.  Without a head convolution the mean is over the last block's
 * output.
 *
 * Back the same way: mean and head leave the gradient of the last block's output, each block that of the one before it, and the
 * first one dz of the stem, or the gradient of what it read, which the way back through the pool turns into dz. */
#include "comm/watch.h"
#include "trainer/net_state.h"

#include "data/data.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static en_status end_gap(en_net *net)
{
    en_gaps *g = net->gaps;
    if (!g) return EN_OK;
    const double t = now();
    if (g->n == g->room) {
        double *more = realloc(g->s, (size_t)(2 * g->room + 1024) * sizeof *more);
        EN_REQUIRE(more, EN_ENOMEM, "no memory for the times of passes");
        g->s = more;
        g->room = 2 * g->room + 1024;
    }
    g->s[g->n++] = t - g->since;
    g->since = t;
    return EN_OK;
}

/* ---- batch norm between the passes --------------------------------------------------------------------------------- */

static en_status sum_over_ranks(en_net *net, en_bn *bn, size_t doubles)
{
    if (alone(&net->cfg)) return end_gap(net);                /* local and total are the same memory */
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

en_status en_net_settle(en_net *net, en_bn *bn)
{
    if (!net->training) return EN_OK;
    EN_TRY(sum_over_ranks(net, bn, (size_t)(2 * bn->c + 1)), "batch norm forward");
    return net->be->ops->bn_finalize(net->be, bn);
}

en_status en_net_settle_backward(en_net *net, en_bn *bn)
{
    EN_TRY(net->be->ops->bn_backward_local(net->be, bn), "batch norm backward");
    EN_TRY(sum_over_ranks(net, bn, (size_t)(2 * bn->c)), "batch norm backward");
    return net->be->ops->bn_backward_finalize(net->be, bn);
}

static en_status freeze_layers(en_net *net, int layers)
{
    en_status (*const freeze)(en_backend *, en_bn *) = net->be->ops->bn_from_running;
    if (layers > 0) EN_TRY(freeze(net->be, &net->bn_stem), "running statistics of the stem");
    if (layers > net->m->n_blocks + 1 && has_head(net->m)) EN_TRY(freeze(net->be, &net->bn_head), "running statistics of the head");
    for (int b = 0; b < net->m->n_blocks && layers > 1 + b; b++) {
        const en_block *k = &net->m->blocks[b];
        block_state *s = &net->blocks[b];
        if (k->expand) EN_TRY(freeze(net->be, &s->bn_expand), "running statistics of %s", k->name);
        EN_TRY(freeze(net->be, &s->bn_dw), "running statistics of %s", k->name);
        if (projects(k)) EN_TRY(freeze(net->be, &s->bn_project), "running statistics of %s", k->name);
        if (has_shortcut(k)) EN_TRY(freeze(net->be, &s->bn_shortcut), "running statistics of %s", k->name);
    }
    return EN_OK;
}

en_status en_net_freeze(en_net *net) { return freeze_layers(net, net->m->n_blocks + 2); }

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

const float *en_net_drop_of(const en_net *net, int b)
{
    return net->drop && trains(&net->cfg, 1 + b) && net->m->blocks[b].drop_path > 0 ? net->drop + (int64_t)b * net->in->n : NULL;
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

en_operand en_net_reads(const en_net *net, int b)
{
    if (b > 0) return (en_operand){ net->blocks[b - 1].o, NULL, EN_ACT_NONE };
    if (net->o_stem) return (en_operand){ net->o_stem, NULL, EN_ACT_NONE };
    return (en_operand){ net->y_stem, &net->bn_stem, net->m->act };
}

en_operand en_net_averages(const en_net *net)
{
    if (has_head(net->m)) return (en_operand){ net->y_head, &net->bn_head, net->m->act };
    return en_net_reads(net, net->m->n_blocks);
}

/* An evaluation is in its own section all along. */
static void at_forward(const en_net *net, const char *layer)
{
    if (net->cfg.training) en_watch_at(EN_FORWARD, layer);
}

static en_status stem_forward(en_net *net, int64_t n)
{
    const struct en_backend_ops *ops = net->be->ops;
    const en_model *m = net->m;
    const en_pixels images = pixels_of(net);
    const en_operand y = { net->y_stem, &net->bn_stem, m->act };
    const en_conv_geom g = stem_geom(m, n), pool = pool_geom(m, n);
    EN_TRY(ops->stem_forward(net->be, &g, &images, net->w_stem, net->y_stem, net->training ? &net->bn_stem : NULL), "convolution");
    EN_TRY(en_net_settle(net, &net->bn_stem), "convolution");
    if (m->pool.kernel) EN_TRY(ops->max_pool_forward(net->be, &pool, &y, net->o_stem, net->at_stem), "pooling");
    else if (net->o_stem) EN_TRY(ops->residual_forward(net->be, n, m->stem.oh * m->stem.ow, m->stem.oc_p, &y, NULL, NULL, net->o_stem), "activation");
    return EN_OK;
}

static en_status head_forward(en_net *net, int64_t n)
{
    const struct en_backend_ops *ops = net->be->ops;
    const en_model *m = net->m;
    const bool train = net->cfg.training;
    const int64_t hw = m->head.h * m->head.w;
    const en_operand last = en_net_reads(net, m->n_blocks), u = en_net_averages(net);
    if (has_head(m)) {
        EN_TRY(ops->pointwise_forward(net->be, n * hw, m->head.ci_p, m->head.co_p, last.y, net->w_head, net->y_head, net->training ? &net->bn_head : NULL), "convolution");
        EN_TRY(en_net_settle(net, &net->bn_head), "convolution");
    }
    EN_TRY(ops->pool_forward(net->be, n, hw, m->head.co_p, &u, train && m->dropout > 0 ? net->mask : NULL, net->pooled), "mean");
    return ops->dense_forward(net->be, n, m->head.co_p, m->classes_p, net->pooled, net->fc_w, net->fc_b, net->logits);
}

en_status en_net_forward(en_net *net, int slot)
{
    const en_model *m = net->m;
    net->in = &net->slot[slot];
    net->is_backward = false;
    if (net->gaps) net->gaps->since = now();
    if (net->time_sums) net->sums[0] = net->sums[1] = 0;
    const int64_t n = net->in->n;
    if (net->cfg.training) EN_TRY(draw_noise(net), "drawing masks");
    if (net->cfg.training) EN_TRY(freeze_layers(net, net->cfg.frozen), "frozen layers");   /* their weights may have come anew */
    at_forward(net, "stem");
    net->training = trains(&net->cfg, 0);
    EN_TRY(stem_forward(net, n), "forward of the stem");
    for (int b = 0; b < m->n_blocks; b++) {
        at_forward(net, m->blocks[b].name);
        net->training = trains(&net->cfg, 1 + b);
        EN_TRY(en_net_block_forward(net, b, n), "forward of %s", m->blocks[b].name);
    }
    at_forward(net, "head");
    net->training = trains(&net->cfg, 1 + m->n_blocks);
    EN_TRY(head_forward(net, n), "forward of the head");
    return EN_OK;
}

en_status en_net_loss(en_net *net, float smoothing, float grad_scale, double *tally)
{
    const en_targets targets = { net->in->labels, net->in->mates, net->in->shares };
    return net->be->ops->softmax_loss(net->be, net->in->n, net->m->classes_p, net->m->classes, net->logits, &targets, smoothing, grad_scale,
                                      grad_scale > 0 ? net->dlogits : NULL, tally);
}

/* ---- backward ------------------------------------------------------------------------------------------------------------- */

/* To the gradient of the last block's output. */
static en_status head_backward(en_net *net)
{
    const struct en_backend_ops *ops = net->be->ops;
    const en_model *m = net->m;
    const int64_t n = net->in->n, hw = m->head.h * m->head.w;
    const float *mask = m->dropout > 0 ? net->mask : NULL;
    const en_operand last = en_net_reads(net, m->n_blocks), u = en_net_averages(net);
    const en_grad dy = { .dpooled = net->dpooled, .act = m->act, .y = net->y_head, .bn = &net->bn_head, .hw = hw };
    void *g = net->blocks[m->n_blocks - 1].g;
    EN_TRY(ops->dense_backward(net->be, n, m->head.co_p, m->classes_p, net->pooled, net->fc_w, net->dlogits, net->dpooled, net->dfc_w, net->dfc_b), "classifier");
    if (!trains(&net->cfg, 1 + m->n_blocks)) return EN_OK;
    if (!has_head(m)) return ops->mean_backward(net->be, n, hw, m->head.co_p, net->dpooled, mask, g);
    EN_TRY(ops->pool_backward(net->be, n, hw, m->head.co_p, net->dpooled, mask, &u, &net->bn_head), "mean");
    EN_TRY(en_net_settle_backward(net, &net->bn_head), "convolution");
    net->be->workspace = net->work_head;
    return ops->pointwise_backward(net->be, n * hw, m->head.ci_p, m->head.co_p, last.y, net->w_head, &dy, NULL, g, net->dw_head);
}

/* The first block left dz of the stem and its sums, or the gradient of what it read. */
static en_status stem_backward(en_net *net)
{
    const struct en_backend_ops *ops = net->be->ops;
    const en_model *m = net->m;
    const int64_t n = net->in->n, hw = m->stem.oh * m->stem.ow;
    const en_pixels images = pixels_of(net);
    const en_operand y = { net->y_stem, &net->bn_stem, m->act };
    const en_conv_geom g = stem_geom(m, n), pool = pool_geom(m, n);
    const en_grad dy = { .stored = net->dz_stem, .y = net->y_stem, .bn = &net->bn_stem, .hw = hw };
    if (m->pool.kernel) EN_TRY(ops->max_pool_backward(net->be, &pool, &y, net->at_stem, net->g_stem, net->dz_stem, &net->bn_stem), "pooling");
    else if (net->g_stem) EN_TRY(ops->activation_backward(net->be, n, hw, m->stem.oc_p, net->g_stem, NULL, &y, net->dz_stem, &net->bn_stem), "activation");
    EN_TRY(en_net_settle_backward(net, &net->bn_stem), "convolution");
    return ops->stem_backward(net->be, &g, &images, &dy, net->dw_stem);
}

static en_status final_up_to(const en_net *net, en_buckets *buckets, size_t elems)
{
    if (!buckets) return EN_OK;
    EN_TRY(en_buckets_ready(buckets, elems), "beginning sums");
    return en_buckets_move(buckets, net->cfg.bn_comm);
}

static en_status backward(en_net *net, en_buckets *buckets)
{
    const en_model *m = net->m;
    en_watch_at(EN_BACKWARD, "head");
    EN_TRY(head_backward(net), "backward of the head");
    if (!trains(&net->cfg, 1 + m->n_blocks)) return EN_OK;
    EN_TRY(final_up_to(net, buckets, net->grads_done_head), "gradients of the head");
    for (int b = m->n_blocks - 1; b >= 0 && trains(&net->cfg, 1 + b); b--) {
        en_watch_at(EN_BACKWARD, m->blocks[b].name);
        EN_TRY(en_net_block_backward(net, b), "backward of %s", m->blocks[b].name);
        EN_TRY(final_up_to(net, buckets, net->blocks[b].grads_done), "gradients of %s", m->blocks[b].name);
    }
    if (!trains(&net->cfg, 0)) return EN_OK;
    en_watch_at(EN_BACKWARD, "stem");
    EN_TRY(stem_backward(net), "backward of the stem");
    EN_TRY(final_up_to(net, buckets, net->grads_done_stem), "gradients of the stem");
    return EN_OK;
}

en_status en_net_backward(en_net *net, en_buckets *buckets)
{
    net->is_backward = true;
    EN_TRY(backward(net, buckets), "backward");
    return end_gap(net);
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
void en_net_keep_gaps(en_net *net, en_gaps *gaps) { net->gaps = gaps; }

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
    const float *drop = en_net_drop_of(net, block);
    *has = drop;
    return drop ? net->be->ops->download(net->be, host, drop, (size_t)net->in->n * sizeof *host) : EN_OK;
}

en_status en_net_dropout(en_net *net, float *host, bool *has)
{
    *has = net->m->dropout > 0;
    return *has ? net->be->ops->download(net->be, host, net->mask, (size_t)(net->in->n * net->m->head.co_p) * sizeof *host) : EN_OK;
}
