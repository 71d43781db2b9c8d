/* net_block.c - one block, both ways (model.h says which kinds there are).
 *
 * Forward; each arrow is a pass, each [=] the all-reduce of synchronised batch norm:
 *     MBCONV       x ─expand▶ y1 [=] ─depthwise▶ y2 [=] ─se+project▶ y3 [=] ─residual▶ o
 *     DSCONV                       x ─depthwise▶ y2 [=] ─project▶ y3 [=] ─residual, without x, with its activation▶ o
 *     FUSED                         x ─convolve▶ y2 [=] ─project▶ y3 [=] ─residual▶ o      without expansion:  y2 [=] ─residual▶ o
 *     BOTTLENECK   x ─expand▶ y1 [=] ─convolve▶ y2 [=] ─project▶ y3 [=] ─join▶ o           beside it:  x ─shortcut▶ ys [=]
 * Backward, with g = dloss/do:
 *     g, y3 ▶ sums of bn3 [=] ─se+project▶ dz2 [=] ─depthwise▶ dz1 [=] ─expand▶ dx (+ g over the skip)
 * Where an activation ends the block, the way back begins with storing what it leaves of g, in its place: join_backward does so for
 * the branch, the skip and the shortcut, activation_backward for DSCONV, and for a fused block without expansion, there into dz2.
 * Two convolutions of a bottleneck may give dx: the shortcut writes it, the expansion adds to it.
 *
 * A convolution that reads x in a block without expansion does so through an operand: for the first block that may be the stem's raw
 * output, its batch norm on load, and dx then is dz of that; the skip's share goes in before the activation's slope. */
#include "trainer/net_state.h"

/* ---- 1x1 convolutions of plain tensors -------------------------------------------------------------------------------- */

static en_status narrow_forward(en_net *net, const en_conv_geom *g, const void *x, const float *wt, void *y, en_bn *bn, void *workspace)
{
    const en_operand plain = { x, NULL, EN_ACT_NONE };
    en_bn *sums = net->training ? bn : NULL;
    net->be->workspace = workspace;
    if (g->kernel) EN_TRY(net->be->ops->conv_forward(net->be, g, &plain, wt, y, sums), "convolution");
    else EN_TRY(net->be->ops->pointwise_forward(net->be, g->n * g->h * g->w, g->c, g->oc, x, wt, y, sums), "convolution");
    return en_net_settle(net, bn);
}

/* dx = the gradient of x, and `add` where that is not NULL; it may be dx itself */
static en_status narrow_backward(en_net *net, const en_conv_geom *g, const void *x, const float *wt, const en_grad *dy, const void *add, void *dx, float *dwt,
                                 void *workspace)
{
    const en_operand plain = { x, NULL, EN_ACT_NONE };
    net->be->workspace = workspace;
    if (g->kernel) return net->be->ops->conv_backward(net->be, g, &plain, wt, dy, add, dx, dwt, NULL);
    return net->be->ops->pointwise_backward(net->be, g->n * g->h * g->w, g->c, g->oc, x, wt, dy, add, dx, dwt);
}

/* ---- forward ------------------------------------------------------------------------------------------------------------ */

static en_operand spatial_input(const en_net *net, int b)
{
    if (net->m->blocks[b].expand) return (en_operand){ net->blocks[b].y1, &net->blocks[b].bn_expand, net->m->act };
    return en_net_reads(net, b);
}

/* What the block gives: the branch, that is y3, or y2 where nothing projects, and x or its shortcut. */
static en_status end_forward(en_net *net, int b, int64_t n)
{
    const struct en_backend_ops *ops = net->be->ops;
    const en_block *k = &net->m->blocks[b];
    block_state *s = &net->blocks[b];
    const int64_t hw = k->oh * k->ow;
    const en_operand x = en_net_reads(net, b), shortcut = { s->ys, &s->bn_shortcut, EN_ACT_NONE }, y2 = { s->y2, &s->bn_dw, net->m->act },
                     y3 = { s->y3, &s->bn_project, k->act_project };
    const float *drop = net->training ? en_net_drop_of(net, b) : NULL;
    if (k->act_out) return ops->join_forward(net->be, n, hw, k->co_p, &y3, drop, has_shortcut(k) ? &shortcut : &x, k->act_out, s->o);
    return ops->residual_forward(net->be, n, hw, k->co_p, projects(k) ? &y3 : &y2, drop, k->skip ? &x : NULL, s->o);
}

en_status en_net_block_forward(en_net *net, int b, int64_t n)
{
    const struct en_backend_ops *ops = net->be->ops;
    const en_block *k = &net->m->blocks[b];
    block_state *s = &net->blocks[b];
    const en_operand x = en_net_reads(net, b), u1 = spatial_input(net, b), u2 = { s->y2, &s->bn_dw, net->m->act };
    const en_conv_geom expand = expand_geom(k, n), spatial = spatial_geom(k, n), shortcut = shortcut_geom(k, n);
    const bool train = net->training;
    if (k->expand) EN_TRY(narrow_forward(net, &expand, x.y, s->w_expand, s->y1, &s->bn_expand, s->work[WORK_EXPAND]), "expand");
    net->be->workspace = s->work[WORK_SPATIAL];
    if (en_block_is_depthwise(k)) EN_TRY(ops->depthwise_forward(net->be, &spatial, &u1, s->w_dw, s->y2, train ? &s->bn_dw : NULL), "depthwise");
    else EN_TRY(ops->conv_forward(net->be, &spatial, &u1, s->w_dw, s->y2, train ? &s->bn_dw : NULL), "convolution");
    EN_TRY(en_net_settle(net, &s->bn_dw), "convolution");
    if (projects(k)) {
        net->be->workspace = s->work[WORK_PROJECT];
        EN_TRY(ops->se_project_forward(net->be, n, k->oh * k->ow, k->mid_p, k->co_p, &u2, k->q > 0 ? &s->se : NULL, s->w_project, s->y3,
                                       train ? &s->bn_project : NULL), "project");
        EN_TRY(en_net_settle(net, &s->bn_project), "project");
    }
    if (has_shortcut(k)) EN_TRY(narrow_forward(net, &shortcut, x.y, s->w_shortcut, s->ys, &s->bn_shortcut, s->work[WORK_SHORTCUT]), "shortcut");
    EN_TRY(end_forward(net, b, n), "end");
    return EN_OK;
}

/* ---- backward ----------------------------------------------------------------------------------------------------------- */

/* From g to the sums of the branch's last batch norm, and of the shortcut's; g becomes what an activation at the end leaves of it. */
static en_status end_backward(en_net *net, int b)
{
    const struct en_backend_ops *ops = net->be->ops;
    const en_block *k = &net->m->blocks[b];
    block_state *s = &net->blocks[b];
    const int64_t n = net->in->n, hw = k->oh * k->ow;
    const float *drop = en_net_drop_of(net, b);
    const en_operand y2 = { s->y2, &s->bn_dw, net->m->act }, y3 = { s->y3, &s->bn_project, k->act_project };
    if (!projects(k)) return ops->activation_backward(net->be, n, hw, k->co_p, s->g, drop, &y2, s->dz2, &s->bn_dw);
    if (k->act_out)
        EN_TRY(ops->join_backward(net->be, n, hw, k->co_p, s->g, s->o, k->act_out, drop, s->y3, &s->bn_project, s->ys, has_shortcut(k) ? &s->bn_shortcut : NULL, s->g),
               "join");
    else if (k->act_project) EN_TRY(ops->activation_backward(net->be, n, hw, k->co_p, s->g, drop, &y3, s->g, &s->bn_project), "activation");
    else EN_TRY(ops->residual_backward(net->be, n, hw, k->co_p, s->g, drop, s->y3, &s->bn_project), "residual");
    EN_TRY(en_net_settle_backward(net, &s->bn_project), "project");
    if (has_shortcut(k)) EN_TRY(en_net_settle_backward(net, &s->bn_shortcut), "shortcut");
    return EN_OK;
}

/* From there to dz2, the gradient at the end of the convolution over space, and its sums. */
static en_status project_backward(en_net *net, int b)
{
    const en_block *k = &net->m->blocks[b];
    block_state *s = &net->blocks[b];
    const int64_t hw = k->oh * k->ow;
    const en_operand u2 = { s->y2, &s->bn_dw, net->m->act };
    const en_grad dy3 = { .stored = s->g, .drop = k->act_project ? NULL : en_net_drop_of(net, b), .y = s->y3, .bn = &s->bn_project, .hw = hw };
    if (!projects(k)) return EN_OK;
    net->be->workspace = s->work[BACK_PROJECT];
    return net->be->ops->se_project_backward(net->be, net->in->n, hw, k->mid_p, k->co_p, &u2, k->q > 0 ? &s->se : NULL, s->w_project, &dy3, s->dz2, s->dw_project,
                                             &s->bn_dw);
}

static en_status spatial_backward(en_net *net, int b, const void *add, void *dx, en_bn *x_bn)
{
    const struct en_backend_ops *ops = net->be->ops;
    const en_block *k = &net->m->blocks[b];
    block_state *s = &net->blocks[b];
    const en_conv_geom g = spatial_geom(k, net->in->n);
    const en_operand u1 = spatial_input(net, b);
    const en_grad dy2 = { .stored = s->dz2, .gated = net->be->gated && projects(k), .act = net->m->act, .gate = k->q > 0 ? s->se.gate : NULL,
                          .dgate = k->q > 0 ? s->se.dgate : NULL, .y = s->y2, .bn = &s->bn_dw, .hw = k->oh * k->ow };
    net->be->workspace = s->work[BACK_SPATIAL];
    if (en_block_is_depthwise(k)) return ops->depthwise_backward(net->be, &g, &u1, s->w_dw, &dy2, add, dx, s->dw_dw, x_bn);
    return ops->conv_backward(net->be, &g, &u1, s->w_dw, &dy2, add, dx, s->dw_dw, x_bn);
}

en_status en_net_block_backward(en_net *net, int b)
{
    const en_block *k = &net->m->blocks[b];
    block_state *s = &net->blocks[b];
    const int64_t n = net->in->n;
    const en_operand x = en_net_reads(net, b);
    const en_conv_geom expand = expand_geom(k, n), shortcut = shortcut_geom(k, n);
    const en_grad dy1 = { .stored = s->dz1, .y = s->y1, .bn = &s->bn_expand, .hw = k->eh * k->ew },
                  dys = { .stored = s->g, .y = s->ys, .bn = &s->bn_shortcut, .hw = k->oh * k->ow };
    const void *add = k->skip ? s->g : NULL;
    void *dx = b > 0 ? net->blocks[b - 1].g : x.bn ? net->dz_stem : net->g_stem;

    EN_TRY(end_backward(net, b), "end");
    EN_TRY(project_backward(net, b), "project");
    EN_TRY(en_net_settle_backward(net, &s->bn_dw), "convolution");
    if (!k->expand) return spatial_backward(net, b, add, dx, x.bn ? &net->bn_stem : NULL);
    EN_TRY(spatial_backward(net, b, NULL, s->dz1, &s->bn_expand), "convolution");
    EN_TRY(en_net_settle_backward(net, &s->bn_expand), "expand");
    if (has_shortcut(k)) {
        EN_TRY(narrow_backward(net, &shortcut, x.y, s->w_shortcut, &dys, NULL, dx, s->dw_shortcut, s->work[BACK_SHORTCUT]), "shortcut");
        add = dx;
    }
    EN_TRY(narrow_backward(net, &expand, x.y, s->w_expand, &dy1, add, dx, s->dw_expand, s->work[BACK_EXPAND]), "expand");
    return EN_OK;
}
