/* bench/layers.c - the layers of a model as tensors and passes, called as net.c calls them.
 *
 * Bytes are those of the pass table (kernels.h), each tensor once: a projection with squeeze-and-excitation must read y2 twice,
 * since the gate waits for the whole image, an expansion need not read y1 on its way back (its gradient can be written
 * with x alone).  Weights are read in the type of the activations and their gradients are floats read and written. */
#include "trainer/bench/passes.h"

#include "data/data.h"
#include "trainer/net_state.h"

#include <inttypes.h>
#include <stdio.h>

/* ---- the passes ------------------------------------------------------------------------------------------------------- */

static en_pixels pixels(bench_side *s)
{
    const en_normalise *by = en_normalise_by(s->l->m->normalise);
    return (en_pixels){ .data = s->p[X], .u8 = s->l->type[X] == BENCH_BYTE, .mean = { by->mean[0], by->mean[1], by->mean[2] },
                        .std = { by->std[0], by->std[1], by->std[2] } };
}

static en_operand input(bench_side *s)                        /* of a block */
{
    return s->l->raw ? (en_operand){ s->p[X], &s->bn[1], s->l->m->act } : (en_operand){ s->p[X], NULL, EN_ACT_NONE };
}

static en_operand spatial_input(bench_side *s) { return s->l->block->expand ? (en_operand){ s->p[Y1], &s->bn[1], s->l->m->act } : input(s); }

static en_se squeeze(bench_side *s)
{
    void **p = s->p;
    return (en_se){ .q = s->l->block->q, .wr = p[WR], .br = p[BR], .we = p[WE], .be = p[BE], .dwr = p[DWR], .dbr = p[DBR], .dwe = p[DWE], .dbe = p[DBE],
                    .pooled = p[POOLED], .hidden = p[HIDDEN], .gate = p[GATE], .dgate = p[DGATE] };
}

static en_status stem(bench_side *s)
{
    const en_conv_geom g = s->l->geom[BENCH_WIDEN];
    const en_pixels x = pixels(s);
    return s->be->ops->stem_forward(s->be, &g, &x, s->p[W1], s->p[Y1], &s->bn[1]);
}

static en_status stem_back(bench_side *s)
{
    const en_conv_geom g = s->l->geom[BENCH_WIDEN];
    const en_pixels x = pixels(s);
    const en_grad dy = { .stored = s->p[DZ1], .y = s->p[Y1], .bn = &s->bn[1], .hw = g.oh * g.ow };
    return s->be->ops->stem_backward(s->be, &g, &x, &dy, s->p[DW1]);
}

static en_status expand(bench_side *s)
{
    const en_conv_geom g = s->l->geom[BENCH_WIDEN];
    return s->be->ops->pointwise_forward(s->be, g.n * g.h * g.w, g.c, g.oc, s->p[X], s->p[W1], s->p[Y1], &s->bn[1]);
}

static en_status expand_back(bench_side *s)
{
    const en_conv_geom g = s->l->geom[BENCH_WIDEN];
    const en_grad stored = { .stored = s->p[DZ1], .y = s->p[Y1], .bn = &s->bn[1], .hw = g.h * g.w },
                  pooled = { .dpooled = s->p[DPOOLED], .act = s->l->m->act, .y = s->p[Y1], .bn = &s->bn[1], .hw = g.h * g.w };
    return s->be->ops->pointwise_backward(s->be, g.n * g.h * g.w, g.c, g.oc, s->p[X], s->p[W1], s->l->block ? &stored : &pooled,
                                          s->l->block && s->l->block->skip ? s->p[G] : NULL, s->p[DX], s->p[DW1]);
}

static en_status depthwise(bench_side *s)
{
    const en_conv_geom g = s->l->geom[BENCH_SPATIAL];
    const en_operand x = spatial_input(s);
    return s->be->ops->depthwise_forward(s->be, &g, &x, s->p[WD], s->p[Y2], &s->bn[2]);
}

static en_status convolve(bench_side *s)
{
    const en_conv_geom g = s->l->geom[BENCH_SPATIAL];
    const en_operand x = spatial_input(s);
    return s->be->ops->conv_forward(s->be, &g, &x, s->p[WD], s->p[Y2], &s->bn[2]);
}

static en_status spatial_back(bench_side *s)
{
    const en_block *k = s->l->block;
    const en_conv_geom g = s->l->geom[BENCH_SPATIAL];
    const en_operand x = spatial_input(s);
    const void *add = !k->expand && k->skip ? s->p[G] : NULL;
    void *dx = s->p[k->expand ? DZ1 : DX];
    en_bn *x_bn = x.bn ? &s->bn[1] : NULL;
    const en_grad dy = { .stored = s->p[DZ2], .gated = s->be->gated && projects(k), .act = s->l->m->act, .gate = k->q > 0 ? s->p[GATE] : NULL,
                         .dgate = k->q > 0 ? s->p[DGATE] : NULL, .y = s->p[Y2], .bn = &s->bn[2], .hw = k->oh * k->ow };
    if (g.dense) return s->be->ops->conv_backward(s->be, &g, &x, s->p[WD], &dy, add, dx, s->p[DWD], x_bn);
    return s->be->ops->depthwise_backward(s->be, &g, &x, s->p[WD], &dy, add, dx, s->p[DWD], x_bn);
}

static en_status project(bench_side *s)
{
    const en_conv_geom g = s->l->geom[BENCH_NARROW];
    const en_operand u = { s->p[Y2], &s->bn[2], s->l->m->act };
    const en_se se = squeeze(s);
    return s->be->ops->se_project_forward(s->be, g.n, g.h * g.w, g.c, g.oc, &u, se.q > 0 ? &se : NULL, s->p[W3], s->p[Y3], &s->bn[3]);
}

static en_status project_back(bench_side *s)
{
    const en_conv_geom g = s->l->geom[BENCH_NARROW];
    const en_operand u = { s->p[Y2], &s->bn[2], s->l->m->act };
    const en_se se = squeeze(s);
    const en_grad dy = { .stored = s->p[G], .y = s->p[Y3], .bn = &s->bn[3], .hw = g.h * g.w };
    return s->be->ops->se_project_backward(s->be, g.n, g.h * g.w, g.c, g.oc, &u, se.q > 0 ? &se : NULL, s->p[W3], &dy, s->p[DZ2], s->p[DW3], &s->bn[2]);
}

static en_status residual(bench_side *s)
{
    const en_block *k = s->l->block;
    const en_operand y2 = { s->p[Y2], &s->bn[2], s->l->m->act }, y3 = { s->p[Y3], &s->bn[3], EN_ACT_NONE }, x = input(s);
    return s->be->ops->residual_forward(s->be, s->l->n, k->oh * k->ow, k->co_p, projects(k) ? &y3 : &y2, NULL, k->skip ? &x : NULL, s->p[O]);
}

static en_status activation_back(bench_side *s)
{
    const en_block *k = s->l->block;
    const en_operand y = { s->p[Y2], &s->bn[2], s->l->m->act };
    return s->be->ops->activation_backward(s->be, s->l->n, k->oh * k->ow, k->co_p, s->p[G], NULL, &y, s->p[DZ2], &s->bn[2]);
}

static en_status residual_back(bench_side *s)
{
    const en_conv_geom g = s->l->geom[BENCH_NARROW];
    return s->be->ops->residual_backward(s->be, g.n, g.h * g.w, g.oc, s->p[G], NULL, s->p[Y3], &s->bn[3]);
}

static en_status pool(bench_side *s)
{
    const en_conv_geom g = s->l->geom[BENCH_WIDEN];
    const en_operand x = { s->p[Y1], &s->bn[1], s->l->m->act };
    return s->be->ops->pool_forward(s->be, g.n, g.h * g.w, g.oc, &x, s->p[MASK], s->p[POOLED]);
}

static en_status pool_back(bench_side *s)
{
    const en_conv_geom g = s->l->geom[BENCH_WIDEN];
    const en_operand x = { s->p[Y1], &s->bn[1], s->l->m->act };
    return s->be->ops->pool_backward(s->be, g.n, g.h * g.w, g.oc, s->p[DPOOLED], s->p[MASK], &x, &s->bn[1]);
}

static en_status dense(bench_side *s)
{
    return s->be->ops->dense_forward(s->be, s->l->n, s->l->m->head.co_p, s->l->m->classes_p, s->p[POOLED], s->p[W3], s->p[BR], s->p[LOGITS]);
}

static en_status dense_back(bench_side *s)
{
    return s->be->ops->dense_backward(s->be, s->l->n, s->l->m->head.co_p, s->l->m->classes_p, s->p[POOLED], s->p[W3], s->p[DLOGITS], s->p[DPOOLED],
                                      s->p[DW3], s->p[DBR]);
}

static en_status loss(bench_side *s)
{
    const en_model *m = s->l->m;
    const en_targets targets = { .labels = s->p[LABELS] };
    return s->be->ops->softmax_loss(s->be, s->l->n, m->classes_p, m->classes, s->p[LOGITS], &targets, 0.1f, 1.f, s->p[DLOGITS], s->p[TALLY]);
}

static en_status update(bench_side *s)
{
    const en_rmsprop h = { .rho = 0.9f, .momentum = 0.9f, .eps = 1e-3f, .weight_decay = 1e-5f };
    return s->be->ops->rmsprop_update(s->be, &h, s->p[NOW], &s->segment, 1, s->p[W1], s->p[DW1], s->p[MS], s->p[MOM], s->p[EMA], s->p[TALLY]);
}

/* ---- the layers --------------------------------------------------------------------------------------------------------- */

static void add_bn(bench_layer *l, int i, int64_t c)
{
    l->channels[i] = c;
    l->elems[BN1 + i - 1] = 13 * c;
    l->elems[SUMS1 + i - 1] = 2 * c + 1;
}

#define ADD(...) l->pass[l->passes++] = (bench_pass){ __VA_ARGS__ }

/* A fused block: one dense convolution in place of expansion and depthwise one, and none after it where it does not widen (arXiv:2104.00298). */
static void make_fused(bench_layer *l, double e)
{
    const en_block *k = l->block;
    const en_conv_geom g = l->geom[BENCH_SPATIAL] = spatial_geom(k, l->n);
    const int64_t in = l->n * k->h * k->w, out = l->n * k->oh * k->ow, ci = k->ci_p, mid = k->mid_p, co = k->co_p;
    const bool narrow = projects(k);
    int64_t *el = l->elems;
    el[X] = el[DX] = in * ci, el[Y2] = el[DZ2] = out * mid, el[O] = el[G] = out * co, el[WD] = el[DWD] = (int64_t)g.kernel * g.kernel * g.c * mid;
    if (l->raw) add_bn(l, 1, ci);
    add_bn(l, 2, mid);
    if (narrow) l->geom[BENCH_NARROW] = project_geom(k, l->n), el[Y3] = out * co, el[W3] = el[DW3] = mid * co, add_bn(l, 3, co);
    if (narrow) snprintf(l->shape, sizeof l->shape, "%" PRId64 "x%" PRId64 " %" PRId64 ">%" PRId64 ">%" PRId64 " fused k%d s%d", k->h, k->w, ci, mid, co, k->kernel, k->stride);
    else snprintf(l->shape, sizeof l->shape, "%" PRId64 "x%" PRId64 " %" PRId64 ">%" PRId64 " fused k%d s%d", k->h, k->w, ci, co, k->kernel, k->stride);

    const double x = (double)el[X], y = (double)el[Y2], o = (double)el[O], wd = (double)el[WD], w3 = (double)el[W3], skip = k->skip ? x : 0;
    const double flops = 2 * (double)out * wd;
    ADD("convolve", false, 2, e * (x + y + wd), flops, { Y2, SUMS2 }, convolve);
    if (narrow) ADD("project", false, 3, e * (y + o + w3), 2 * y * (double)co, { Y3, SUMS3 }, project);
    ADD("residual", false, 0, e * (2 * o + skip), 0, { O }, residual);
    if (narrow) {
        ADD("residual", true, 3, e * 2 * o, 0, { SUMS3 }, residual_back);
        ADD("project", true, 2, e * (2 * y + 2 * o + w3) + 8 * w3, 4 * y * (double)co, { DZ2, SUMS2, DW3 }, project_back);
    } else ADD("activation", true, 2, e * 3 * o, 0, { DZ2, SUMS2 }, activation_back);
    const double back = e * (2 * x + 2 * y + skip + wd) + 8 * wd;
    if (l->raw) ADD("convolve", true, 0, back, 2 * flops, { DX, SUMS1, DWD }, spatial_back);
    else ADD("convolve", true, 0, back, 2 * flops, { DX, DWD }, spatial_back);
}

static void make_block(bench_layer *l, double e)
{
    const en_block *k = l->block;
    const int64_t n = l->n, in = n * k->h * k->w, out = n * k->oh * k->ow, ci = k->ci_p, mid = k->mid_p, co = k->co_p, q = k->q;
    int64_t *el = l->elems;
    if (k->expand) l->geom[BENCH_WIDEN] = pw_geom(n, k->h, k->w, ci, mid);
    l->geom[BENCH_SPATIAL] = spatial_geom(k, n);
    l->geom[BENCH_NARROW] = pw_geom(n, k->oh, k->ow, mid, co);
    el[X] = in * ci, el[Y2] = el[DZ2] = out * mid, el[Y3] = el[O] = el[G] = out * co, el[DX] = in * ci;
    el[WD] = el[DWD] = (int64_t)k->kernel * k->kernel * mid, el[W3] = el[DW3] = mid * co;
    if (k->expand) el[Y1] = el[DZ1] = in * mid, el[W1] = el[DW1] = ci * mid;
    if (q > 0) {
        el[WR] = el[DWR] = el[WE] = el[DWE] = q * mid, el[BR] = el[DBR] = q, el[BE] = el[DBE] = mid;
        el[POOLED] = el[GATE] = n * mid, el[HIDDEN] = n * q;
    }
    if (k->expand || l->raw) add_bn(l, 1, mid);
    add_bn(l, 2, mid);
    add_bn(l, 3, co);
    snprintf(l->shape, sizeof l->shape, "%" PRId64 "x%" PRId64 " %" PRId64 ">%" PRId64 ">%" PRId64 " k%d s%d", k->h, k->w, ci, mid, co, k->kernel, k->stride);

    const double x = (double)el[X], e1 = (double)(in * mid), e2 = (double)el[Y2], o = (double)el[Y3];
    const double w1 = (double)el[W1], w3 = (double)el[W3], wd = (double)el[WD], se = (double)(2 * q * mid);
    if (k->expand) ADD("expand", false, 1, e * (x + e1 + w1), 2 * x * (double)mid, { Y1, SUMS1 }, expand);
    ADD("depthwise", false, 2, e * (e1 + e2) + 4 * wd, 0, { Y2, SUMS2 }, depthwise);
    if (q > 0) ADD("project", false, 3, e * (2 * e2 + o + w3) + 4 * se, 2 * e2 * (double)co, { Y3, SUMS3, POOLED, HIDDEN, GATE }, project);
    else ADD("project", false, 3, e * (e2 + o + w3), 2 * e2 * (double)co, { Y3, SUMS3 }, project);
    ADD("residual", false, 0, e * (k->skip ? 3 : 2) * o, 0, { O }, residual);
    ADD("residual", true, 3, e * 2 * o, 0, { SUMS3 }, residual_back);
    if (q > 0) ADD("project", true, 2, e * (2 * e2 + 2 * o + w3) + 8 * w3 + 12 * se, 4 * e2 * (double)co, { DZ2, SUMS2, DW3, DWR, DBR, DWE, DBE }, project_back);
    else ADD("project", true, 2, e * (2 * e2 + 2 * o + w3) + 8 * w3, 4 * e2 * (double)co, { DZ2, SUMS2, DW3 }, project_back);
    const double skip = k->skip ? x : 0;
    if (k->expand) {
        ADD("depthwise", true, 1, e * (2 * e1 + 2 * e2) + 12 * wd, 0, { DZ1, SUMS1, DWD }, spatial_back);
        ADD("expand", true, 0, e * (e1 + 2 * x + skip + w1) + 8 * w1, 4 * x * (double)mid, { DX, DW1 }, expand_back);
    } else if (l->raw) ADD("depthwise", true, 0, e * (2 * e1 + 2 * e2 + skip) + 12 * wd, 0, { DX, SUMS1, DWD }, spatial_back);
    else ADD("depthwise", true, 0, e * (2 * e1 + 2 * e2 + skip) + 12 * wd, 0, { DX, DWD }, spatial_back);
}

static void make_stem(bench_layer *l, double e, bool u8)
{
    const en_conv_geom g = l->geom[BENCH_WIDEN] = stem_geom(l->m, l->n);
    int64_t *el = l->elems;
    el[X] = g.n * g.h * g.w * 3, el[Y1] = el[DZ1] = g.n * g.oh * g.ow * g.oc, el[W1] = el[DW1] = (int64_t)g.kernel * g.kernel * 3 * g.oc;
    l->type[X] = u8 ? BENCH_BYTE : BENCH_FLOAT;
    add_bn(l, 1, g.oc);
    snprintf(l->shape, sizeof l->shape, "%" PRId64 "x%" PRId64 " 3>%" PRId64 " k%d s%d", g.h, g.w, g.oc, g.kernel, g.stride);
    const double image = (double)el[X] * (u8 ? 1 : 4), y = (double)el[Y1], w = (double)el[W1], flops = 2 * y * (double)(g.kernel * g.kernel * 3);
    ADD("stem", false, 1, image + e * y + 4 * w, flops, { Y1, SUMS1 }, stem);
    ADD("stem", true, 0, image + e * 2 * y + 8 * w, flops, { DW1 }, stem_back);
}

static void make_head(bench_layer *l, double e)
{
    const en_model *m = l->m;
    const en_conv_geom g = l->geom[BENCH_WIDEN] = pw_geom(l->n, m->head.h, m->head.w, m->head.ci_p, m->head.co_p);
    l->geom[BENCH_NARROW] = pw_geom(l->n, 1, 1, m->head.co_p, m->classes_p);
    const int64_t n = g.n, rows = n * g.h * g.w, c = g.oc, k = m->classes_p;
    int64_t *el = l->elems;
    el[X] = el[DX] = rows * g.c, el[Y1] = rows * c, el[W1] = el[DW1] = g.c * c, el[POOLED] = el[DPOOLED] = el[MASK] = n * c;
    el[W3] = el[DW3] = c * k, el[BR] = el[DBR] = k, el[LOGITS] = el[DLOGITS] = n * k, el[LABELS] = n * 4, el[TALLY] = EN_TALLY;
    l->type[LABELS] = BENCH_BYTE;
    add_bn(l, 1, c);
    snprintf(l->shape, sizeof l->shape, "%" PRId64 "x%" PRId64 " %" PRId64 ">%" PRId64 ">%d", g.h, g.w, g.c, c, m->classes);
    const double x = (double)el[X], y = (double)el[Y1], w = (double)el[W1], p = (double)el[POOLED], w3 = (double)el[W3], z = (double)el[LOGITS];
    ADD("head", false, 1, e * (x + y + w), 2 * x * (double)c, { Y1, SUMS1 }, expand);
    ADD("pool", false, 0, e * y + 8 * p, 0, { POOLED }, pool);
    ADD("dense", false, 0, 4 * (p + w3 + z), 2 * p * (double)k, { LOGITS }, dense);
    ADD("loss", false, 0, 8 * z, 0, { DLOGITS, TALLY }, loss);
    ADD("dense", true, 0, 4 * (2 * p + z + 3 * w3), 4 * p * (double)k, { DPOOLED, DW3, DBR }, dense_back);
    ADD("pool", true, 1, e * y + 12 * p, 0, { DPOOLED, SUMS1 }, pool_back);
    ADD("head", true, 0, e * (y + 2 * x + w) + 8 * w, 4 * x * (double)c, { DX, DW1 }, expand_back);
}

static void make_update(bench_layer *l, double e, int64_t most)
{
    const int64_t elems = most > 0 && most < l->m->param_elems ? most : l->m->param_elems;
    int64_t *el = l->elems;
    el[W1] = el[DW1] = el[MS] = el[MOM] = el[EMA] = elems, el[TALLY] = EN_TALLY, el[NOW] = sizeof(en_now);
    l->type[NOW] = BENCH_BYTE;
    snprintf(l->shape, sizeof l->shape, "%" PRId64 " parameters", elems);
    ADD("update", false, 0, (36 + (e < 4 ? e : 0)) * (double)elems, 0, { W1, MS, MOM, EMA, TALLY }, update);
}
#undef ADD

static bool same_block(const en_model *m, int a, int b)
{
    const en_block *x = &m->blocks[a], *y = &m->blocks[b];
    return (a == 0) == (b == 0) && x->kind == y->kind && x->kernel == y->kernel && x->stride == y->stride && x->h == y->h && x->w == y->w && x->ci_p == y->ci_p &&
           x->mid_p == y->mid_p && x->co_p == y->co_p && x->q == y->q && x->expand == y->expand && x->skip == y->skip;
}

/* The block of which `index` counts the first ones of a kind; -1: there are fewer. */
static int first_block(const en_model *m, int index)
{
    for (int b = 0; b < m->n_blocks; b++) {
        int before = 0;
        for (int a = 0; a < b && !before; a++) before = same_block(m, a, b);
        if (!before && index-- == 0) return b;
    }
    return -1;
}

int bench_layer_of_block(const en_model *m, int b)
{
    int index = 0;
    while (!same_block(m, first_block(m, index), b)) index++;
    return 1 + index;
}

static int kinds(const en_model *m)
{
    int k = 0;
    while (first_block(m, k) >= 0) k++;
    return k;
}

bool bench_layer_at(const en_model *m, int index, int64_t n, en_dtype dtype, bool u8, int64_t most, bench_layer *l)
{
    const int blocks = kinds(m);
    if (index > blocks + 2) return false;
    const double e = (double)en_dtype_bytes(dtype);
    *l = (bench_layer){ .m = m, .count = 1, .n = n };
    for (int t = 0; t < BENCH_TENSORS; t++) l->type[t] = BENCH_FLOAT;
    static const int activations[] = { X, Y1, Y2, Y3, O, G, DZ2, DZ1, DX };
    for (size_t i = 0; i < sizeof activations / sizeof *activations; i++) l->type[activations[i]] = BENCH_ACTIVATION;
    l->type[SUMS1] = l->type[SUMS2] = l->type[SUMS3] = l->type[TALLY] = BENCH_DOUBLE;
    if (index == 0) make_stem(l, e, u8);
    else if (index == blocks + 1) make_head(l, e);
    else if (index == blocks + 2) make_update(l, e, most);
    else {
        const int b = first_block(m, index - 1);
        l->block = &m->blocks[b];
        l->raw = b == 0 && !l->block->expand;
        l->count = 0;
        for (int a = b; a < m->n_blocks; a++) l->count += same_block(m, a, b);
        if (l->block->kind == EN_BLOCK_FUSED) make_fused(l, e);
        else make_block(l, e);
    }
    return true;
}

en_status bench_layers_known(const en_model *m)
{
    bool known = has_head(m) && !m->pool.kernel;
    for (int i = 0; i < m->n_blocks; i++) known &= m->blocks[i].kind == EN_BLOCK_MBCONV || m->blocks[i].kind == EN_BLOCK_FUSED;
    EN_REQUIRE(known, EN_ENOTSUP, "the passes of %s are not known one by one: those of EfficientNet V1 and V2 are, and of MobileNetV2; `effnet bench train` and `effnet scaling"
               " --ranks` measure all", m->name);
    return EN_OK;
}

int64_t bench_layer_images(const en_model *m, int index, int64_t elems)
{
    bench_layer l;
    int64_t largest = 1;
    if (bench_layer_at(m, index, 1, EN_F32, false, 1, &l))
        for (int t = 0; t < BENCH_TENSORS; t++)
            if (l.type[t] == BENCH_ACTIVATION && l.elems[t] > largest) largest = l.elems[t];
    return elems > largest ? elems / largest : 1;
}
