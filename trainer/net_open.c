/* net_open.c - a net's memory: which tensors live when, one arena for them all, and the pointers into it and into the arenas of
 * weights.  Every buffer is known before the first step. */
#include "trainer/net_state.h"

#include <stdlib.h>
#include <string.h>

/* ---- memory ------------------------------------------------------------------------------------------------------- */

/* Indices of the buffers of a plan: those of stem and head, then block b's at FIRST_BLOCK + b*PER_BLOCK + field. */
enum { Y_STEM, O_STEM, AT_STEM, DZ_STEM, G_STEM, Y_HEAD, WORK_HEAD, FIRST_BLOCK };
enum { Y1, Y2, Y3, YS, O, DZ1, DZ2, G, FIRST_WORK, PER_BLOCK = FIRST_WORK + WORKS };

static size_t tensor_bytes(const en_net_config *c, int64_t h, int64_t w, int64_t channels)
{
    return (size_t)c->max_images * (size_t)h * (size_t)w * (size_t)channels * en_dtype_bytes(c->be->dtype);
}

static size_t work_bytes(const en_net_config *c, en_work kind, en_conv_geom g) { return c->be->ops->workspace_bytes(c->be, kind, &g); }

/* Of a 1x1 convolution, which is a product of rows (kernel 0) or a dense one. */
static size_t narrow_work(const en_net_config *c, bool exists, bool back, en_conv_geom g)
{
    if (!exists || (!g.kernel && !back)) return 0;
    return work_bytes(c, g.kernel ? EN_WORK_CONV : EN_WORK_POINTWISE_BACKWARD, g);
}

/* Times, three a block each way: stem 0, block b from 1+3b, head H = 1+3B; back: head H+1, then block b, from the last one:
 * project t, convolution over space t+1, shortcut and expand t+2; the stem at the end. */
static void plan_ends(const en_net_config *c, en_plan *p, int head, int back_head, int back_stem)
{
    const en_model *m = c->model;
    const bool raw = stem_is_raw(m), train = trains(c, 0), read_back = trains(c, 1), head_trains = trains(c, m->n_blocks + 1);   /* read_back: by block 0 */
    const size_t stem = tensor_bytes(c, m->stem.oh, m->stem.ow, m->stem.oc_p), o = raw ? 0 : tensor_bytes(c, m->pool.oh, m->pool.ow, m->stem.oc_p);
    const en_conv_geom last = pw_geom(c->max_images, m->head.h, m->head.w, m->head.ci_p, m->head.co_p);
    en_plan_add(p, stem, 0, train ? back_stem : !raw ? 0 : read_back ? back_stem - 1 : 3, "y stem");
    en_plan_add(p, o, 0, read_back ? back_stem - 1 : 3, "o stem");
    en_plan_add(p, train && m->pool.kernel ? o / en_dtype_bytes(c->be->dtype) : 0, 0, back_stem, "places of the pool");
    en_plan_add(p, train || (read_back && raw) ? stem : 0, raw ? back_stem - 2 : back_stem, back_stem, "dz stem");
    en_plan_add(p, read_back ? o : 0, back_stem - 2, back_stem, "g stem");
    en_plan_add(p, has_head(m) ? tensor_bytes(c, m->head.h, m->head.w, m->head.co_p) : 0, head, head_trains ? back_head : head, "y head");
    en_plan_add(p, head_trains && has_head(m) ? work_bytes(c, EN_WORK_POOLED_BACKWARD, last) : 0, back_head, back_head, "work head");
}

/* above: what reads the block's output is trained, so that it is kept for its way back, which gives the output's gradient.  Where the
 * block itself is frozen nobody reads that. */
static void plan_block(const en_net_config *c, en_plan *p, const en_block *k, int fwd, int bwd, int g_from, bool train, bool above)
{
    const int64_t n = c->max_images;
    const int end = bwd + 2;
    const bool depthwise = en_block_is_depthwise(k);
    const size_t wide = tensor_bytes(c, k->eh, k->ew, k->mid_p), mid = tensor_bytes(c, k->oh, k->ow, k->mid_p), out = tensor_bytes(c, k->oh, k->ow, k->co_p);
    const en_conv_geom expand = expand_geom(k, n), project = project_geom(k, n), spatial = spatial_geom(k, n), shortcut = shortcut_geom(k, n);
    const size_t work_project = projects(k) ? work_bytes(c, EN_WORK_PROJECT, project) : 0;
    en_plan_add(p, k->expand ? wide : 0, fwd, train ? end : fwd + 1, "%s y1", k->name);
    en_plan_add(p, mid, fwd + 1, train ? bwd + 1 : fwd + 2, "%s y2", k->name);
    en_plan_add(p, projects(k) ? out : 0, fwd + 2, train ? bwd : fwd + 2, "%s y3", k->name);
    en_plan_add(p, has_shortcut(k) ? out : 0, fwd + 2, train ? end : fwd + 2, "%s y shortcut", k->name);
    const int o_read = train && k->act_out ? bwd : bwd - 1;   /* by the next block both ways, and by the slope of the block's own end */
    en_plan_add(p, out, fwd + 2, above ? o_read : fwd + 5, "%s o", k->name);
    en_plan_add(p, train && k->expand ? wide : 0, bwd + 1, end, "%s dz1", k->name);
    en_plan_add(p, train ? mid : 0, bwd, bwd + 1, "%s dz2", k->name);
    en_plan_add(p, above ? out : 0, g_from, !train ? bwd - 1 : k->skip || has_shortcut(k) ? end : bwd, "%s g", k->name);
    en_plan_add(p, narrow_work(c, k->expand, false, expand), fwd, fwd, "%s work expand", k->name);
    en_plan_add(p, depthwise ? 0 : work_bytes(c, EN_WORK_CONV, spatial), fwd + 1, fwd + 1, "%s work convolution", k->name);
    en_plan_add(p, work_project, fwd + 2, fwd + 2, "%s work", k->name);
    en_plan_add(p, narrow_work(c, has_shortcut(k), false, shortcut), fwd + 2, fwd + 2, "%s work shortcut", k->name);
    en_plan_add(p, train ? narrow_work(c, k->expand, true, expand) : 0, end, end, "%s back expand", k->name);
    en_plan_add(p, train ? work_bytes(c, depthwise ? EN_WORK_DEPTHWISE_BACKWARD : EN_WORK_CONV, spatial) : 0, bwd + 1, bwd + 1, "%s back convolution", k->name);
    en_plan_add(p, train ? work_project : 0, bwd, bwd, "%s back project", k->name);
    en_plan_add(p, train ? narrow_work(c, has_shortcut(k), true, shortcut) : 0, end, end, "%s back shortcut", k->name);
}

static en_status plan_activations(const en_net_config *c, en_plan *p)
{
    const int B = c->model->n_blocks, head = 1 + 3 * B, back_head = head + 1, back_stem = back_head + 1 + 3 * B;
    plan_ends(c, p, head, back_head, back_stem);
    for (int b = 0; b < B; b++) {
        const int bwd = back_head + 1 + 3 * (B - 1 - b);
        plan_block(c, p, &c->model->blocks[b], 1 + 3 * b, bwd, b == B - 1 ? back_head : bwd - 2, trains(c, 1 + b), trains(c, 2 + b));
    }
    return en_plan_place(p);
}

/* Hands out pieces of the small arena; with base NULL it only counts. */
typedef struct { char *base; size_t used; } carver;
static void *carve(carver *c, size_t bytes)
{
    void *p = c->base ? c->base + c->used : NULL;
    c->used += (bytes + 63) / 64 * 64;
    return p;
}

static void carve_bn(carver *c, en_bn *bn, int64_t channels, bool is_alone)
{
    const size_t f = (size_t)channels * sizeof(float), d = (size_t)(2 * channels + 1) * sizeof(double);
    bn->local = carve(c, d);
    bn->total = is_alone ? bn->local : carve(c, d);
    float **vector[] = { &bn->mean, &bn->rstd, &bn->scale, &bn->shift, &bn->ga, &bn->gb, &bn->gc };
    for (size_t i = 0; i < sizeof vector / sizeof *vector; i++) *vector[i] = carve(c, f);
}

/* Of a 1x1 convolution without a stride.  Wherever the backend wants it: the workspace of the way back counts on it. */
static void carve_fold(carver *c, const en_net *net, int layer, en_bn *bn, en_conv_geom g)
{
    const bool may = trains(&net->cfg, layer) && !g.kernel;
    const int64_t fold = may ? net->cfg.be->ops->fold_floats(net->cfg.be, g.n * g.h * g.w, g.c, g.oc) : 0;
    bn->fold = fold > 0 ? carve(c, (size_t)fold * sizeof(float)) : NULL;
}

static void carve_small(en_net *net, carver *c)
{
    const en_model *m = net->m;
    const size_t n = (size_t)net->cfg.max_images;
    const bool train = net->cfg.training, one = alone(&net->cfg);
    for (int i = 0; i < slots_of(&net->cfg); i++) {
        net->slot[i].images = carve(c, n * (size_t)m->stem.h * (size_t)m->stem.w * 3 * (net->cfg.be->u8 ? 1 : sizeof(float)));
        net->slot[i].labels = carve(c, n * sizeof(int32_t));
        net->slot[i].mates = net->cfg.mixing ? carve(c, n * sizeof(int32_t)) : NULL;
        net->slot[i].shares = net->cfg.mixing ? carve(c, n * sizeof(float)) : NULL;
        net->slot[i].now = carve(c, sizeof(en_now));
    }
    carve_bn(c, &net->bn_stem, m->stem.oc_p, one);
    if (has_head(m)) carve_bn(c, &net->bn_head, m->head.co_p, one);
    net->pooled = carve(c, n * (size_t)m->head.co_p * sizeof(float));
    net->dpooled = carve(c, n * (size_t)m->head.co_p * sizeof(float));
    net->mask = carve(c, n * (size_t)m->head.co_p * sizeof(float));
    net->logits = carve(c, n * (size_t)m->classes_p * sizeof(float));
    net->dlogits = carve(c, n * (size_t)m->classes_p * sizeof(float));
    bool drops = false;
    for (int b = 0; b < m->n_blocks; b++) {
        const en_block *k = &m->blocks[b];
        block_state *s = &net->blocks[b];
        drops |= train && k->drop_path > 0;
        if (k->expand) {
            carve_bn(c, &s->bn_expand, k->mid_p, one);
            carve_fold(c, net, 1 + b, &s->bn_expand, expand_geom(k, (int64_t)n));
        }
        carve_bn(c, &s->bn_dw, k->mid_p, one);
        if (projects(k)) carve_bn(c, &s->bn_project, k->co_p, one);
        if (has_shortcut(k)) {
            carve_bn(c, &s->bn_shortcut, k->co_p, one);
            carve_fold(c, net, 1 + b, &s->bn_shortcut, shortcut_geom(k, (int64_t)n));
        }
        if (k->q > 0) {
            s->se.q = k->q;
            s->se.pooled = carve(c, n * (size_t)k->mid_p * sizeof(float));
            s->se.hidden = carve(c, n * (size_t)k->q * sizeof(float));
            s->se.gate = carve(c, n * (size_t)k->mid_p * sizeof(float));
            s->se.dgate = train && net->cfg.be->gated ? carve(c, n * (size_t)k->mid_p * sizeof(float)) : NULL;
        }
    }
    net->keep = drops ? carve(c, (size_t)m->n_blocks * sizeof(float)) : NULL;
    net->drop = drops ? carve(c, (size_t)m->n_blocks * n * sizeof(float)) : NULL;
}

en_status en_net_plan_make(const en_net_config *c, en_net_plan *out)
{
    *out = (en_net_plan){ 0 };
    block_state *blocks = calloc((size_t)c->model->n_blocks + 1, sizeof *blocks);
    EN_REQUIRE(blocks, EN_ENOMEM, "no memory for %d blocks", c->model->n_blocks);
    en_net shape = { .cfg = *c, .m = c->model, .blocks = blocks };
    carver count = { 0 };
    carve_small(&shape, &count);
    out->small_bytes = count.used;
    free(blocks);
    EN_TRY(plan_activations(c, &out->activations), "planning %s for %lld images", c->model->name, (long long)c->max_images);
    return EN_OK;
}

void en_net_plan_free(en_net_plan *p) { en_plan_free(&p->activations); }

static en_status reserve_all(en_net *net)
{
    const en_model *m = net->m;
    const int64_t n = net->cfg.max_images;
    const struct en_backend_ops *ops = net->be->ops;
    en_conv_geom g = stem_geom(m, n);
    EN_TRY(ops->reserve(net->be, &g), "scratch of the stem");
    for (int b = 0; b < m->n_blocks; b++) {
        const en_block *k = &m->blocks[b];
        const struct { bool exists; en_conv_geom g; } all[] = { { k->expand, expand_geom(k, n) }, { true, spatial_geom(k, n) }, { projects(k), project_geom(k, n) },
                                                                { has_shortcut(k), shortcut_geom(k, n) } };
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            if (all[i].exists) EN_TRY(ops->reserve(net->be, &all[i].g), "scratch of %s", k->name);
    }
    g = pw_geom(n, m->head.h, m->head.w, m->head.ci_p, m->head.co_p);
    if (has_head(m)) EN_TRY(ops->reserve(net->be, &g), "scratch of the head");
    g = pw_geom(n, 1, 1, m->head.co_p, m->classes_p);
    EN_TRY(ops->reserve(net->be, &g), "scratch of the classifier");
    return EN_OK;
}

/* How often each block keeps an image: constants, in device memory. */
static en_status upload_keep(en_net *net)
{
    const int B = net->m->n_blocks;
    if (!net->keep) return EN_OK;
    float *keep = malloc((size_t)B * sizeof *keep);
    EN_REQUIRE(keep, EN_ENOMEM, "no memory for %d blocks", B);
    for (int b = 0; b < B; b++) keep[b] = 1.f - net->m->blocks[b].drop_path;
    const en_status s = net->be->ops->upload(net->be, net->keep, keep, (size_t)B * sizeof *keep);
    free(keep);
    return s;
}

en_status en_net_open(const en_net_config *c, en_net **out)
{
    en_status status = EN_OK;
    en_net_plan plan = { 0 };
    *out = NULL;
    EN_REQUIRE(c->model->channel_align == c->be->channel_align, EN_EINVAL, "model built for %d channels, backend wants %d",
               c->model->channel_align, c->be->channel_align);
    EN_REQUIRE(c->model->stem.pad_h == c->model->stem.pad_w, EN_EINVAL, "images are square");
    en_net *net = calloc(1, sizeof *net);
    EN_REQUIRE(net, EN_ENOMEM, "no memory for a net");
    net->cfg = *c;
    net->m = c->model;
    net->be = c->be;
    const size_t n = (size_t)c->max_images;
    net->blocks = calloc((size_t)net->m->n_blocks + 1, sizeof *net->blocks);
    net->logits_host = malloc((n * (size_t)net->m->classes_p + 1) * sizeof(float));
    EN_REQUIRE_OUT(net->blocks && net->logits_host, EN_ENOMEM, "no memory for a net");
    EN_REQUIRE_OUT(slots_of(c) <= MAX_SLOTS, EN_EINVAL, "%d slots of input", c->slots);
    for (int i = 0; i < slots_of(c); i++) {
        void *p = NULL;
        EN_TRY_OUT(net->be->ops->host_alloc(net->be, sizeof(en_now), &p), "memory for a net");
        net->slot[i].now_host = p;
    }
    if (c->mixing) {
        void *p = NULL;
        EN_TRY_OUT(net->be->ops->host_alloc(net->be, n * sizeof(float), &p), "memory for a net");
        net->whole = p;
        for (size_t i = 0; i < n; i++) net->whole[i] = 1;
    }

    EN_TRY_OUT(en_net_plan_make(c, &plan), "planning memory");
    EN_TRY_OUT(reserve_all(net), "taking scratch memory");
    EN_TRY_OUT(net->be->ops->alloc(net->be, plan.activations.bytes, &net->activations), "activations of %lld images", (long long)c->max_images);
    EN_TRY_OUT(net->be->ops->alloc(net->be, plan.small_bytes, &net->small), "statistics and small tensors");
    carver carved = { .base = net->small };
    carve_small(net, &carved);
    const en_plan_buffer *buf = plan.activations.buffer;
#define AT(i) (buf[i].bytes ? (char *)net->activations + buf[i].offset : NULL)
    net->y_stem = AT(Y_STEM), net->o_stem = AT(O_STEM), net->at_stem = (uint8_t *)AT(AT_STEM);
    net->dz_stem = AT(DZ_STEM), net->g_stem = AT(G_STEM);
    net->y_head = AT(Y_HEAD), net->work_head = AT(WORK_HEAD);
    for (int b = 0; b < net->m->n_blocks; b++) {
        block_state *s = &net->blocks[b];
        const int at = FIRST_BLOCK + b * PER_BLOCK;
        s->y1 = AT(at + Y1), s->y2 = AT(at + Y2), s->y3 = AT(at + Y3), s->ys = AT(at + YS), s->o = AT(at + O);
        s->dz1 = AT(at + DZ1), s->dz2 = AT(at + DZ2), s->g = AT(at + G);
        for (int i = 0; i < WORKS; i++) s->work[i] = AT(at + FIRST_WORK + i);
    }
#undef AT
    EN_TRY_OUT(upload_keep(net), "stochastic depth");
    en_net_plan_free(&plan);
    *out = net;
    return EN_OK;
out:
    en_net_plan_free(&plan);
    en_net_close(net);
    return status;
}

void en_net_close(en_net *net)
{
    if (!net) return;
    if (net->activations) net->be->ops->free(net->be, net->activations);
    if (net->small) net->be->ops->free(net->be, net->small);
    for (int i = 0; i < MAX_SLOTS; i++)
        if (net->slot[i].now_host) net->be->ops->host_free(net->be, net->slot[i].now_host);
    if (net->whole) net->be->ops->host_free(net->be, net->whole);
    free(net->blocks);
    free(net->logits_host);
    free(net);
}

/* ---- binding arenas --------------------------------------------------------------------------------------------------- */

static float *param(const en_net *net, int i) { return i < 0 ? NULL : net->params + net->m->tensors[i].offset; }
static float *grad(const en_net *net, int i)  { return i < 0 || !net->grads ? NULL : net->grads + net->m->tensors[i].offset; }
static float *stat(const en_net *net, int i)  { return i < 0 ? NULL : net->stats + net->m->tensors[i].offset; }

static void bind_bn(const en_net *net, en_bn *bn, const en_bn_ref *r)
{
    bn->c = r->c_phys;
    bn->eps = net->m->bn_eps;
    bn->momentum = net->cfg.bn_momentum > 0 ? net->cfg.bn_momentum : net->m->bn_momentum;
    bn->unbiased_running = net->m->bn_unbiased_running;
    bn->gamma = param(net, r->gamma);
    bn->beta = param(net, r->beta);
    bn->dgamma = grad(net, r->gamma);
    bn->dbeta = grad(net, r->beta);
    bn->running_mean = stat(net, r->mean);
    bn->running_var = stat(net, r->var);
}

static size_t end_of(const en_net *net, int i) { return (size_t)(net->m->tensors[i].offset + net->m->tensors[i].elems); }

void en_net_bind(en_net *net, float *params, float *grads, float *stats)
{
    const en_model *m = net->m;
    net->params = params;
    net->grads = grads;
    net->stats = stats;
    net->w_stem = param(net, m->stem.weight);
    net->dw_stem = grad(net, m->stem.weight);
    net->w_head = param(net, m->head.weight);
    net->dw_head = grad(net, m->head.weight);
    net->fc_w = param(net, m->head.fc_weight);
    net->fc_b = param(net, m->head.fc_bias);
    net->dfc_w = grad(net, m->head.fc_weight);
    net->dfc_b = grad(net, m->head.fc_bias);
    bind_bn(net, &net->bn_stem, &m->stem.bn);
    if (has_head(m)) bind_bn(net, &net->bn_head, &m->head.bn);
    net->grads_done_head = end_of(net, has_head(m) ? m->head.weight : m->head.fc_weight);   /* the arena is laid out from the last tensor to the first */
    net->grads_done_stem = (size_t)m->param_elems;
    for (int b = 0; b < m->n_blocks; b++) {
        const en_block *k = &m->blocks[b];
        block_state *s = &net->blocks[b];
        if (k->expand) bind_bn(net, &s->bn_expand, &k->bn_expand);
        bind_bn(net, &s->bn_dw, &k->bn_spatial);
        if (projects(k)) bind_bn(net, &s->bn_project, &k->bn_project);
        if (has_shortcut(k)) bind_bn(net, &s->bn_shortcut, &k->bn_shortcut);
        s->w_expand = param(net, k->w_expand);
        s->dw_expand = grad(net, k->w_expand);
        s->w_dw = param(net, k->w_spatial);
        s->dw_dw = grad(net, k->w_spatial);
        s->w_project = param(net, k->w_project);
        s->dw_project = grad(net, k->w_project);
        s->w_shortcut = param(net, k->w_shortcut);
        s->dw_shortcut = grad(net, k->w_shortcut);
        s->se.wr = param(net, k->w_se_reduce), s->se.br = param(net, k->b_se_reduce);
        s->se.we = param(net, k->w_se_expand), s->se.be = param(net, k->b_se_expand);
        s->se.dwr = grad(net, k->w_se_reduce), s->se.dbr = grad(net, k->b_se_reduce);
        s->se.dwe = grad(net, k->w_se_expand), s->se.dbe = grad(net, k->b_se_expand);
        s->grads_done = end_of(net, k->expand ? k->w_expand : k->w_spatial);
    }
}
