/* net.c - the walk over the blocks.
 *
 * Forward, per MBConv block (each arrow a pass, each [=] the all-reduce of synchronised batch norm over bn_comm):
 *     x ─expand▶ y1 [=] ─depthwise▶ y2 [=] ─se+project▶ y3 [=] ─residual▶ o
 * Backward, with g = dloss/do:
 *     g, y3 ▶ sums of bn3 [=] ─se+project▶ dz2 [=] ─depthwise▶ dz1 [=] ─expand▶ dx (+ g over the skip)
 * A block without expansion reads x through `operand`: for the first block that is the stem's raw output with its batch
 * norm on load, for later ones the plain output of the block before; in backward its depthwise pass takes the skip. */
#include "trainer/net.h"

#include "data/data.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct {
    en_bn  bn_expand, bn_dw, bn_project;
    en_se  se;
    float *w_expand, *w_dw, *w_project, *dw_expand, *dw_dw, *dw_project;
    void  *y1, *y2, *y3, *o, *dz1, *dz2, *g;             /* g: the gradient of o */
    void  *work_forward, *work_project, *work_depthwise, *work_expand;   /* be->workspace of this block's passes */
    size_t grads_done;                                   /* elements of the arena that are final after this block */
} block_state;

enum { MAX_SLOTS = 4 };
typedef struct { int64_t n; void *images; int32_t *labels; en_now *now, *now_host; } input;

struct en_net {
    en_net_config  cfg;
    const en_model *m;
    en_backend     *be;
    void  *activations, *small;
    en_bn  bn_stem, bn_head;
    float *w_stem, *dw_stem, *w_head, *dw_head, *fc_w, *fc_b, *dfc_w, *dfc_b;
    input  slot[MAX_SLOTS];
    const input *in;                                     /* of the last forward */
    void  *y_stem, *dz_stem, *y_head, *work_head;
    float *pooled, *dpooled, *mask, *logits, *dlogits, *logits_host;
    float *keep, *drop;                                  /* stochastic depth: (blocks) and masks (blocks, n); NULL: none */
    block_state *blocks;
    float *params, *grads, *stats;
    size_t grads_done_head, grads_done_stem;
    double bn_seconds;
};

static int slots_of(const en_net_config *c) { return c->slots > 0 ? c->slots : 1; }
static bool alone(const en_net_config *c)   { return !c->bn_comm || c->bn_comm->world_size == 1; }

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- memory ------------------------------------------------------------------------------------------------------- */

/* Indices of the buffers of a plan: the four of stem and head, then block b's at base[b] + field. */
enum { Y_STEM, Y_HEAD, DZ_STEM, WORK_HEAD, FIRST_BLOCK };
enum { Y1, Y2, Y3, O, DZ1, DZ2, G, WORK_FORWARD, WORK_PROJECT, WORK_DEPTHWISE, WORK_EXPAND, PER_BLOCK };

static size_t tensor_bytes(const en_net_config *c, int64_t h, int64_t w, int64_t channels)
{
    return (size_t)c->max_images * (size_t)h * (size_t)w * (size_t)channels * en_dtype_bytes(c->be->dtype);
}

static en_conv_geom stem_geom(const en_model *m, int64_t n)
{
    return (en_conv_geom){ .n = n, .h = m->stem.h, .w = m->stem.w, .c = 3, .oh = m->stem.oh, .ow = m->stem.ow, .oc = m->stem.oc_p,
                           .kernel = m->stem.kernel, .stride = m->stem.stride, .pad = m->stem.pad_h };
}

static en_conv_geom dw_geom(const en_block *k, int64_t n)
{
    return (en_conv_geom){ .n = n, .h = k->h, .w = k->w, .c = k->mid_p, .oh = k->oh, .ow = k->ow, .oc = k->mid_p, .kernel = k->kernel,
                           .stride = k->stride, .pad = k->pad_h };
}

static en_conv_geom pw_geom(int64_t n, int64_t h, int64_t w, int64_t ci, int64_t co)
{
    return (en_conv_geom){ .n = n, .h = h, .w = w, .c = ci, .oh = h, .ow = w, .oc = co, .kernel = 0, .stride = 1 };
}

static size_t work_bytes(const en_net_config *c, en_work kind, en_conv_geom g) { return c->be->ops->workspace_bytes(c->be, kind, &g); }

/* Times, three a block each way: stem 0, block b from 1+3b, head H = 1+3B; back: head H+1, then block b, from the last one:
 * project t, depthwise t+1, expand t+2; the stem at the end. */
static en_status plan_activations(const en_net_config *c, en_plan *p)
{
    const en_model *m = c->model;
    const int B = m->n_blocks, head = 1 + 3 * B, back_head = head + 1, back_stem = back_head + 1 + 3 * B;
    const int64_t n = c->max_images;
    const bool train = c->training;
    const size_t stem = tensor_bytes(c, m->stem.oh, m->stem.ow, m->stem.oc_p);
    en_plan_add(p, stem, 0, train ? back_stem : 3, "y stem");
    en_plan_add(p, tensor_bytes(c, m->head.h, m->head.w, m->head.co_p), head, train ? back_head : head, "y head");
    en_plan_add(p, train ? stem : 0, back_stem - 2, back_stem, "dz stem");
    en_plan_add(p, train ? work_bytes(c, EN_WORK_POOLED_BACKWARD, pw_geom(n, m->head.h, m->head.w, m->head.ci_p, m->head.co_p)) : 0, back_head, back_head,
                "work head");
    for (int b = 0; b < B; b++) {
        const en_block *k = &m->blocks[b];
        const int fwd = 1 + 3 * b, bwd = back_head + 1 + 3 * (B - 1 - b), end = bwd + 2;
        const size_t in = tensor_bytes(c, k->h, k->w, k->mid_p), mid = tensor_bytes(c, k->oh, k->ow, k->mid_p),
                     out = tensor_bytes(c, k->oh, k->ow, k->co_p);
        const en_conv_geom expand = pw_geom(n, k->h, k->w, k->ci_p, k->mid_p), project = pw_geom(n, k->oh, k->ow, k->mid_p, k->co_p), dw = dw_geom(k, n);
        en_plan_add(p, k->expand ? in : 0, fwd, train ? end : fwd + 1, "%s y1", k->name);
        en_plan_add(p, mid, fwd + 1, train ? bwd + 1 : fwd + 2, "%s y2", k->name);
        en_plan_add(p, out, fwd + 2, train ? bwd : fwd + 2, "%s y3", k->name);
        en_plan_add(p, out, fwd + 2, train ? bwd - 1 : fwd + 5, "%s o", k->name);           /* read by the next block, both ways */
        en_plan_add(p, train && k->expand ? in : 0, bwd + 1, end, "%s dz1", k->name);
        en_plan_add(p, train ? mid : 0, bwd, bwd + 1, "%s dz2", k->name);
        en_plan_add(p, train ? out : 0, b == B - 1 ? back_head : bwd - 2, k->skip ? end : bwd, "%s g", k->name);
        en_plan_add(p, work_bytes(c, EN_WORK_PROJECT, project), fwd + 2, fwd + 2, "%s work", k->name);
        en_plan_add(p, train ? work_bytes(c, EN_WORK_PROJECT, project) : 0, bwd, bwd, "%s work project", k->name);
        en_plan_add(p, train ? work_bytes(c, EN_WORK_DEPTHWISE_BACKWARD, dw) : 0, bwd + 1, bwd + 1, "%s work depthwise", k->name);
        en_plan_add(p, train && k->expand ? work_bytes(c, EN_WORK_POINTWISE_BACKWARD, expand) : 0, end, end, "%s work expand", k->name);
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

static void carve_small(en_net *net, carver *c)
{
    const en_model *m = net->m;
    const size_t n = (size_t)net->cfg.max_images;
    const bool train = net->cfg.training, one = alone(&net->cfg);
    for (int i = 0; i < slots_of(&net->cfg); i++) {
        net->slot[i].images = carve(c, n * (size_t)m->stem.h * (size_t)m->stem.w * 3 * (net->cfg.be->u8 ? 1 : sizeof(float)));
        net->slot[i].labels = carve(c, n * sizeof(int32_t));
        net->slot[i].now = carve(c, sizeof(en_now));
    }
    carve_bn(c, &net->bn_stem, m->stem.oc_p, one);
    carve_bn(c, &net->bn_head, m->head.co_p, one);
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
            const int64_t fold = train ? net->cfg.be->ops->fold_floats(net->cfg.be, (int64_t)n * k->h * k->w, k->ci_p, k->mid_p) : 0;
            s->bn_expand.fold = fold > 0 ? carve(c, (size_t)fold * sizeof(float)) : NULL;
        }
        carve_bn(c, &s->bn_dw, k->mid_p, one);
        carve_bn(c, &s->bn_project, k->co_p, one);
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
    en_conv_geom g = stem_geom(m, n);
    EN_TRY(net->be->ops->reserve(net->be, &g), "scratch of the stem");
    for (int b = 0; b < m->n_blocks; b++) {
        const en_block *k = &m->blocks[b];
        if (k->expand) {
            g = pw_geom(n, k->h, k->w, k->ci_p, k->mid_p);
            EN_TRY(net->be->ops->reserve(net->be, &g), "scratch of %s", k->name);
        }
        g = dw_geom(k, n);
        EN_TRY(net->be->ops->reserve(net->be, &g), "scratch of %s", k->name);
        g = pw_geom(n, k->oh, k->ow, k->mid_p, k->co_p);
        EN_TRY(net->be->ops->reserve(net->be, &g), "scratch of %s", k->name);
    }
    g = pw_geom(n, m->head.h, m->head.w, m->head.ci_p, m->head.co_p);
    EN_TRY(net->be->ops->reserve(net->be, &g), "scratch of the head");
    g = pw_geom(n, 1, 1, m->head.co_p, m->classes_p);
    EN_TRY(net->be->ops->reserve(net->be, &g), "scratch of the classifier");
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

    EN_TRY_OUT(en_net_plan_make(c, &plan), "planning memory");
    EN_TRY_OUT(reserve_all(net), "taking scratch memory");
    EN_TRY_OUT(net->be->ops->alloc(net->be, plan.activations.bytes, &net->activations), "activations of %lld images", (long long)c->max_images);
    EN_TRY_OUT(net->be->ops->alloc(net->be, plan.small_bytes, &net->small), "statistics and small tensors");
    carver carved = { .base = net->small };
    carve_small(net, &carved);
    const en_plan_buffer *buf = plan.activations.buffer;
#define AT(i) (buf[i].bytes ? (char *)net->activations + buf[i].offset : NULL)
    net->y_stem = AT(Y_STEM);
    net->y_head = AT(Y_HEAD);
    net->dz_stem = AT(DZ_STEM);
    net->work_head = AT(WORK_HEAD);
    for (int b = 0; b < net->m->n_blocks; b++) {
        block_state *s = &net->blocks[b];
        const int at = FIRST_BLOCK + b * PER_BLOCK;
        s->y1 = AT(at + Y1), s->y2 = AT(at + Y2), s->y3 = AT(at + Y3), s->o = AT(at + O);
        s->dz1 = AT(at + DZ1), s->dz2 = AT(at + DZ2), s->g = AT(at + G);
        s->work_forward = AT(at + WORK_FORWARD), s->work_project = AT(at + WORK_PROJECT);
        s->work_depthwise = AT(at + WORK_DEPTHWISE), s->work_expand = AT(at + WORK_EXPAND);
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
    bind_bn(net, &net->bn_head, &m->head.bn);
    net->grads_done_head = end_of(net, m->head.weight);        /* the arena is laid out from the last tensor to the first */
    net->grads_done_stem = (size_t)m->param_elems;
    for (int b = 0; b < m->n_blocks; b++) {
        const en_block *k = &m->blocks[b];
        block_state *s = &net->blocks[b];
        if (k->expand) bind_bn(net, &s->bn_expand, &k->bn_expand);
        bind_bn(net, &s->bn_dw, &k->bn_dw);
        bind_bn(net, &s->bn_project, &k->bn_project);
        s->w_expand = param(net, k->w_expand);
        s->dw_expand = grad(net, k->w_expand);
        s->w_dw = param(net, k->w_dw);
        s->dw_dw = grad(net, k->w_dw);
        s->w_project = param(net, k->w_project);
        s->dw_project = grad(net, k->w_project);
        s->se.wr = param(net, k->w_se_reduce), s->se.br = param(net, k->b_se_reduce);
        s->se.we = param(net, k->w_se_expand), s->se.be = param(net, k->b_se_expand);
        s->se.dwr = grad(net, k->w_se_reduce), s->se.dbr = grad(net, k->b_se_reduce);
        s->se.dwe = grad(net, k->w_se_expand), s->se.dbe = grad(net, k->b_se_expand);
        s->grads_done = end_of(net, k->expand ? k->w_expand : k->w_dw);
    }
}

/* ---- batch norm between the passes --------------------------------------------------------------------------------- */

static en_status sum_over_ranks(en_net *net, en_bn *bn, size_t doubles)
{
    if (alone(&net->cfg)) return EN_OK;                       /* local and total are the same memory */
    const double t0 = now();
    EN_TRY(net->cfg.bn_comm->ops->sum_f64(net->cfg.bn_comm, bn->local, bn->total, doubles), "summing batch-norm statistics");
    net->bn_seconds += now() - t0;
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
        EN_TRY(freeze(net->be, &s->bn_project), "running statistics of block %d", b);
    }
    return EN_OK;
}

/* ---- input and noise ---------------------------------------------------------------------------------------------------- */

en_status en_net_stage(en_net *net, int slot, int64_t n, const void *images, const int32_t *labels, const en_now *now_)
{
    const en_model *m = net->m;
    EN_REQUIRE(slot >= 0 && slot < slots_of(&net->cfg), EN_EINVAL, "slot %d of %d", slot, slots_of(&net->cfg));
    EN_REQUIRE(n >= 0 && n <= net->cfg.max_images, EN_EINVAL, "%lld images, planned for %lld", (long long)n, (long long)net->cfg.max_images);
    input *in = &net->slot[slot];
    in->n = n;
    if (now_) *in->now_host = *now_;
    const size_t pixel = net->be->u8 ? 1 : sizeof(float);
    const en_copy copies[] = { { in->images, images, images ? (size_t)(n * m->stem.h * m->stem.w * 3) * pixel : 0 },
                               { in->labels, labels, labels ? (size_t)n * sizeof *labels : 0 },
                               { in->now, in->now_host, now_ ? sizeof *now_ : 0 } };
    EN_TRY(net->be->ops->stage(net->be, slot, copies, 3), "input of %lld images", (long long)n);
    return EN_OK;
}

en_status en_net_input(en_net *net, int64_t n, const void *images, const int32_t *labels)
{
    const struct en_backend_ops *ops = net->be->ops;
    EN_TRY(ops->stage_done(net->be, 0), "the input before this");
    EN_TRY(en_net_stage(net, 0, n, images, labels, NULL), "input");
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
    const en_normalise *by = &en_imagenet_normalise;
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

static en_operand depthwise_input(const en_net *net, int b)
{
    if (net->m->blocks[b].expand) return (en_operand){ net->blocks[b].y1, &net->blocks[b].bn_expand, net->m->act };
    return input_of(net, b);
}

static en_status block_forward(en_net *net, int b, int64_t n)
{
    const struct en_backend_ops *ops = net->be->ops;
    const en_block *k = &net->m->blocks[b];
    block_state *s = &net->blocks[b];
    const en_operand x = input_of(net, b), u1 = depthwise_input(net, b), u2 = { s->y2, &s->bn_dw, net->m->act },
                     y3 = { s->y3, &s->bn_project, EN_ACT_NONE };
    const en_conv_geom g = dw_geom(k, n);
    const bool train = net->cfg.training;
    if (k->expand) {
        EN_REQUIRE(!x.bn, EN_EINVAL, "%s expands a raw tensor", k->name);
        EN_TRY(ops->pointwise_forward(net->be, n * k->h * k->w, k->ci_p, k->mid_p, x.y, s->w_expand, s->y1, train ? &s->bn_expand : NULL), "expand");
        EN_TRY(settle(net, &s->bn_expand), "expand");
    }
    EN_TRY(ops->depthwise_forward(net->be, &g, &u1, s->w_dw, s->y2, train ? &s->bn_dw : NULL), "depthwise");
    EN_TRY(settle(net, &s->bn_dw), "depthwise");
    net->be->workspace = s->work_forward;
    EN_TRY(ops->se_project_forward(net->be, n, k->oh * k->ow, k->mid_p, k->co_p, &u2, k->q > 0 ? &s->se : NULL, s->w_project, s->y3,
                                   train ? &s->bn_project : NULL), "project");
    EN_TRY(settle(net, &s->bn_project), "project");
    EN_TRY(ops->residual_forward(net->be, n, k->oh * k->ow, k->co_p, &y3, net->cfg.training ? drop_of(net, b) : NULL, k->skip ? &x : NULL, s->o),
           "residual");
    return EN_OK;
}

en_status en_net_forward(en_net *net, int slot)
{
    const struct en_backend_ops *ops = net->be->ops;
    const en_model *m = net->m;
    const bool train = net->cfg.training;
    net->in = &net->slot[slot];
    const int64_t n = net->in->n;
    const en_pixels images = pixels_of(net);
    if (train) EN_TRY(draw_noise(net), "drawing masks");

    const en_conv_geom stem = stem_geom(m, n);
    EN_TRY(ops->stem_forward(net->be, &stem, &images, net->w_stem, net->y_stem, train ? &net->bn_stem : NULL), "stem");
    EN_TRY(settle(net, &net->bn_stem), "stem");
    for (int b = 0; b < m->n_blocks; b++) EN_TRY(block_forward(net, b, n), "forward of %s", m->blocks[b].name);

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
    return net->be->ops->softmax_loss(net->be, net->in->n, net->m->classes_p, net->m->classes, net->logits, net->in->labels, smoothing, grad_scale,
                                      grad_scale > 0 ? net->dlogits : NULL, tally);
}

/* ---- backward ------------------------------------------------------------------------------------------------------------- */

static en_status block_backward(en_net *net, int b)
{
    const struct en_backend_ops *ops = net->be->ops;
    const en_model *m = net->m;
    const en_block *k = &m->blocks[b];
    block_state *s = &net->blocks[b];
    const int64_t n = net->in->n, hw = k->oh * k->ow;
    const float *drop = drop_of(net, b);
    const en_operand x = input_of(net, b), u1 = depthwise_input(net, b), u2 = { s->y2, &s->bn_dw, net->m->act };
    const en_conv_geom g = dw_geom(k, n);
    const en_grad dy3 = { .stored = s->g, .drop = drop, .y = s->y3, .bn = &s->bn_project, .hw = hw },
                  dy2 = { .stored = s->dz2, .gated = net->be->gated, .act = m->act, .gate = k->q > 0 ? s->se.gate : NULL,
                          .dgate = k->q > 0 ? s->se.dgate : NULL, .y = s->y2, .bn = &s->bn_dw, .hw = hw },
                  dy1 = { .stored = s->dz1, .y = s->y1, .bn = &s->bn_expand, .hw = k->h * k->w };
    const void *skip = k->skip ? s->g : NULL;
    void *dx = b == 0 ? net->dz_stem : net->blocks[b - 1].g;
    en_bn *x_bn = b == 0 ? &net->bn_stem : NULL;

    EN_TRY(ops->residual_backward(net->be, n, hw, k->co_p, s->g, drop, s->y3, &s->bn_project), "residual");
    EN_TRY(settle_backward(net, &s->bn_project), "project");
    net->be->workspace = s->work_project;
    EN_TRY(ops->se_project_backward(net->be, n, hw, k->mid_p, k->co_p, &u2, k->q > 0 ? &s->se : NULL, s->w_project, &dy3, s->dz2, s->dw_project,
                                    &s->bn_dw), "project");
    EN_TRY(settle_backward(net, &s->bn_dw), "depthwise");
    net->be->workspace = s->work_depthwise;
    if (k->expand) {
        EN_TRY(ops->depthwise_backward(net->be, &g, &u1, s->w_dw, &dy2, NULL, s->dz1, s->dw_dw, &s->bn_expand), "depthwise");
        EN_TRY(settle_backward(net, &s->bn_expand), "expand");
        net->be->workspace = s->work_expand;
        EN_TRY(ops->pointwise_backward(net->be, n * k->h * k->w, k->ci_p, k->mid_p, x.y, s->w_expand, &dy1, skip, dx, s->dw_expand), "expand");
    } else {
        EN_TRY(ops->depthwise_backward(net->be, &g, &u1, s->w_dw, &dy2, skip, dx, s->dw_dw, x_bn), "depthwise");
        if (x_bn) EN_TRY(settle_backward(net, x_bn), "stem");
    }
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

    EN_TRY(ops->dense_backward(net->be, n, m->head.co_p, m->classes_p, net->pooled, net->fc_w, net->dlogits, net->dpooled, net->dfc_w, net->dfc_b), "classifier");
    EN_TRY(ops->pool_backward(net->be, n, hw, m->head.co_p, net->dpooled, m->dropout > 0 ? net->mask : NULL, &uh, &net->bn_head), "pooling");
    EN_TRY(settle_backward(net, &net->bn_head), "head");
    net->be->workspace = net->work_head;
    EN_TRY(ops->pointwise_backward(net->be, n * hw, m->head.ci_p, m->head.co_p, last.y, net->w_head, &dyh, NULL, net->blocks[m->n_blocks - 1].g,
                                   net->dw_head), "head");
    if (buckets) EN_TRY(en_buckets_ready(buckets, net->grads_done_head), "gradients of the head");
    for (int b = m->n_blocks - 1; b >= 0; b--) {
        EN_TRY(block_backward(net, b), "backward of %s", m->blocks[b].name);
        if (buckets) EN_TRY(en_buckets_ready(buckets, net->blocks[b].grads_done), "gradients of %s", m->blocks[b].name);
    }
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

double en_net_bn_seconds(en_net *net)
{
    const double s = net->bn_seconds;
    net->bn_seconds = 0;
    return s;
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
