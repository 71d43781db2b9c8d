/* model.c - from a row of the table to blocks, tensors and counts.
 *
 * The tensors are added in the order of timm's state dict, which is the order of forward.  Backward finishes gradients in
 * exactly the reverse of it, so the arena of parameters is laid out from the last tensor to the first, and
 * `every gradient of what follows block b is final` is one number: the offset at which block b's tensors begin.
 *
 * Physical layouts, *_p = channels rounded up to channel_align; what exists only for alignment is zero and stays zero:
 *
 *     tensor                timm's shape        in the arena            logical (o,i,a,b) lies at
 *     stem                  (O,3,k,k)           (k,k,3,O_p)             o + O_p*(i + 3*(b + k*a))
 *     pointwise             (O,I,1,1)           (I_p,O_p)               o + O_p*i
 *     depthwise             (C,1,k,k)           (k,k,C_p)               o + C_p*(b + k*a)
 *     SE reduce             (q,C,1,1)           (q,C_p)                 i + C_p*o
 *     SE expand             (C,q,1,1)           (q,C_p)                 o + C_p*i
 *     classifier            (classes,I)         (I_p,classes_p)         o + classes_p*i
 *     vectors               (C)                 (C_p), SE's (q): (q)    o
 */
#include "trainer/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MIN_RESOLUTION = 32, MAX_RESOLUTION = 4096, MAX_CLASSES = 1000000, MAX_BLOCKS = 2048, ELEMS_ALIGN = 16 };
static const double MAX_FACTOR = 32;

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* ---- tensors -------------------------------------------------------------------------------------------------------- */

typedef struct { en_model *m; int capacity; bool full; } builder;   /* full: no memory for another tensor */

/* Adds a tensor in timm's order; `offset` is given out later, by lay_out. */
static int add(builder *b, en_tensor t)
{
    en_model *m = b->m;
    if (b->full) return 0;
    if (m->n_tensors == b->capacity) {
        const int capacity = b->capacity ? 2 * b->capacity : 256;
        en_tensor *grown = realloc(m->tensors, (size_t)capacity * sizeof *grown);
        if (!grown) return b->full = true, 0;
        m->tensors = grown;
        b->capacity = capacity;
    }
    t.elems = round_up(t.elems, ELEMS_ALIGN);
    m->tensors[m->n_tensors] = t;
    if (t.arena == EN_ARENA_PARAMS) m->params_trainable += en_tensor_count(&t);
    else m->params_bn_stats += en_tensor_count(&t);
    return m->n_tensors++;
}

/* "blocks.1.0" and "conv_pw.weight" make timm's key; outside the blocks the prefix is "". */
static void name_it(en_tensor *t, const char *prefix, const char *key)
{
    snprintf(t->name, sizeof t->name, "%s%s%s", prefix, *prefix ? "." : "", key);
}

/* std = sqrt(2 / (k*k*fan)): the reference's conv_kernel_initializer, fan = output channels (depthwise: multiplier 1) */
static float conv_std(int k, int64_t fan) { return (float)sqrt(2.0 / ((double)k * k * (double)fan)); }

static int add_pointwise(builder *b, const char *prefix, const char *key, int64_t ci, int64_t co, int64_t ci_p, int64_t co_p)
{
    en_tensor t = { .ndim = 4, .shape = { co, ci, 1, 1 }, .stride = { 1, co_p, 0, 0 }, .arena = EN_ARENA_PARAMS,
                    .elems = ci_p * co_p, .decay = true, .init = EN_INIT_CONV_NORMAL, .init_scale = conv_std(1, co) };
    name_it(&t, prefix, key);
    return add(b, t);
}

static int add_depthwise(builder *b, const char *prefix, int k, int64_t c, int64_t c_p)
{
    en_tensor t = { .ndim = 4, .shape = { c, 1, k, k }, .stride = { 1, 0, k * c_p, c_p }, .arena = EN_ARENA_PARAMS,
                    .elems = k * k * c_p, .decay = true, .init = EN_INIT_CONV_NORMAL, .init_scale = conv_std(k, 1) };
    name_it(&t, prefix, "conv_dw.weight");
    return add(b, t);
}

static int add_stem(builder *b, int k, int64_t oc, int64_t oc_p)
{
    en_tensor t = { .ndim = 4, .shape = { oc, 3, k, k }, .stride = { 1, oc_p, k * 3 * oc_p, 3 * oc_p },
                    .arena = EN_ARENA_PARAMS, .elems = k * k * 3 * oc_p, .decay = true, .init = EN_INIT_CONV_NORMAL,
                    .init_scale = conv_std(k, oc) };
    name_it(&t, "", "conv_stem.weight");
    return add(b, t);
}

static int add_se_reduce(builder *b, const char *prefix, int64_t q, int64_t c, int64_t c_p)
{
    en_tensor t = { .ndim = 4, .shape = { q, c, 1, 1 }, .stride = { c_p, 1, 0, 0 }, .arena = EN_ARENA_PARAMS,
                    .elems = q * c_p, .decay = true, .init = EN_INIT_CONV_NORMAL, .init_scale = conv_std(1, q) };
    name_it(&t, prefix, "se.conv_reduce.weight");
    return add(b, t);
}

static int add_se_expand(builder *b, const char *prefix, int64_t q, int64_t c, int64_t c_p)
{
    en_tensor t = { .ndim = 4, .shape = { c, q, 1, 1 }, .stride = { 1, c_p, 0, 0 }, .arena = EN_ARENA_PARAMS,
                    .elems = q * c_p, .decay = true, .init = EN_INIT_CONV_NORMAL, .init_scale = conv_std(1, c) };
    name_it(&t, prefix, "se.conv_expand.weight");
    return add(b, t);
}

/* Uniform on +-1/sqrt(classes): the reference scales by fan-out, not fan-in. */
static int add_classifier(builder *b, int64_t ci, int64_t classes, int64_t ci_p, int64_t classes_p)
{
    en_tensor t = { .ndim = 2, .shape = { classes, ci }, .stride = { 1, classes_p }, .arena = EN_ARENA_PARAMS,
                    .elems = ci_p * classes_p, .decay = true, .init = EN_INIT_DENSE_UNIFORM,
                    .init_scale = (float)(1.0 / sqrt((double)classes)) };
    name_it(&t, "", "classifier.weight");
    return add(b, t);
}

static int add_bias(builder *b, const char *prefix, const char *key, int64_t c, int64_t c_p)
{
    en_tensor t = { .ndim = 1, .shape = { c }, .stride = { 1 }, .arena = EN_ARENA_PARAMS, .elems = c_p, .decay = true,
                    .init = EN_INIT_ZERO };
    name_it(&t, prefix, key);
    return add(b, t);
}

static en_bn_ref add_bn(builder *b, const char *prefix, const char *bn, int64_t c, int64_t c_p)
{
    static const struct { const char *key; en_arena arena; en_init init; } part[4] = {
        { "weight",       EN_ARENA_PARAMS, EN_INIT_ONE },   { "bias",        EN_ARENA_PARAMS, EN_INIT_ZERO },
        { "running_mean", EN_ARENA_STATS,  EN_INIT_ZERO },  { "running_var", EN_ARENA_STATS,  EN_INIT_ONE } };
    int index[4];
    for (int i = 0; i < 4; i++) {
        en_tensor t = { .ndim = 1, .shape = { c }, .stride = { 1 }, .arena = part[i].arena, .elems = c_p, .init = part[i].init };
        char key[32];
        snprintf(key, sizeof key, "%s.%s", bn, part[i].key);
        name_it(&t, prefix, key);
        index[i] = add(b, t);
    }
    return (en_bn_ref){ .c = c, .c_phys = c_p, .gamma = index[0], .beta = index[1], .mean = index[2], .var = index[3] };
}

static const en_bn_ref no_bn = { .gamma = -1, .beta = -1, .mean = -1, .var = -1 };

/* ---- layers ------------------------------------------------------------------------------------------------------------- */

/* TensorFlow's SAME: enough zeros for ceil(in/stride) outputs, the odd one below and right.  Symmetric: (k-1)/2 each. */
static int64_t out_side(int64_t in, int stride) { return (in + stride - 1) / stride; }

static int pad_before(int64_t in, int k, int stride, bool same)
{
    if (!same) return (k - 1) / 2;
    const int64_t total = (out_side(in, stride) - 1) * stride + k - in;
    return total > 0 ? (int)(total / 2) : 0;
}

static void build_stem(builder *b, const en_arch *a, int resolution)
{
    en_model *m = b->m;
    const int k = a->stem_kernel, s = a->stem_stride;
    const int64_t oc = en_round_channels(a->stem_channels, m->width, a->ninety_percent_rule);
    m->stem.kernel = k;
    m->stem.stride = s;
    m->stem.h = m->stem.w = resolution;
    m->stem.oh = m->stem.ow = out_side(resolution, s);
    m->stem.pad_h = m->stem.pad_w = pad_before(resolution, k, s, a->same_padding);
    m->stem.oc = oc;
    m->stem.oc_p = round_up(oc, m->channel_align);
    m->stem.weight = add_stem(b, k, oc, m->stem.oc_p);
    m->stem.bn = add_bn(b, "", "bn1", oc, m->stem.oc_p);
    m->macs += m->stem.oh * m->stem.ow * oc * 3 * k * k;
}

/* One MBConv block.  Without expansion timm calls the projection conv_pw and counts its batch norms from there. */
static void build_block(builder *b, const en_arch *a, const en_stage *st, int stride, int64_t ci, int64_t co, int64_t h, int64_t w,
                        en_block *k)
{
    en_model *m = b->m;
    k->kernel = st->kernel;
    k->stride = stride;
    k->h = h;
    k->w = w;
    k->oh = out_side(h, stride);
    k->ow = out_side(w, stride);
    k->pad_h = pad_before(h, st->kernel, stride, a->same_padding);
    k->pad_w = pad_before(w, st->kernel, stride, a->same_padding);
    k->expand = st->expand != 1;
    k->ci = ci;
    k->mid = ci * st->expand;
    k->co = co;
    k->q = st->se_ratio > 0 ? (int64_t)floor((double)ci * st->se_ratio) : 0;   /* of the block's input, not of mid */
    if (st->se_ratio > 0 && k->q < 1) k->q = 1;
    k->ci_p = round_up(k->ci, m->channel_align);
    k->mid_p = round_up(k->mid, m->channel_align);
    k->co_p = round_up(k->co, m->channel_align);
    k->skip = stride == 1 && ci == co;
    k->drop_path = k->skip ? (float)((double)m->drop_path * k->index / m->n_blocks) : 0;

    k->w_expand = k->w_se_reduce = k->b_se_reduce = k->w_se_expand = k->b_se_expand = -1;
    k->bn_expand = no_bn;
    if (k->expand) {
        k->w_expand = add_pointwise(b, k->name, "conv_pw.weight", k->ci, k->mid, k->ci_p, k->mid_p);
        k->bn_expand = add_bn(b, k->name, "bn1", k->mid, k->mid_p);
    }
    k->w_dw = add_depthwise(b, k->name, k->kernel, k->mid, k->mid_p);
    k->bn_dw = add_bn(b, k->name, k->expand ? "bn2" : "bn1", k->mid, k->mid_p);
    if (k->q) {
        k->w_se_reduce = add_se_reduce(b, k->name, k->q, k->mid, k->mid_p);
        k->b_se_reduce = add_bias(b, k->name, "se.conv_reduce.bias", k->q, k->q);
        k->w_se_expand = add_se_expand(b, k->name, k->q, k->mid, k->mid_p);
        k->b_se_expand = add_bias(b, k->name, "se.conv_expand.bias", k->mid, k->mid_p);
    }
    k->w_project = add_pointwise(b, k->name, k->expand ? "conv_pwl.weight" : "conv_pw.weight", k->mid, k->co, k->mid_p, k->co_p);
    k->bn_project = add_bn(b, k->name, k->expand ? "bn3" : "bn2", k->co, k->co_p);

    const int64_t in = h * w, out = k->oh * k->ow;
    m->macs += (k->expand ? in * ci * k->mid : 0) + out * k->mid * k->kernel * k->kernel + 2 * k->mid * k->q + out * k->mid * co;
}

static void build_blocks(builder *b, const en_arch *a)
{
    en_model *m = b->m;
    int64_t h = m->stem.oh, w = m->stem.ow, c = m->stem.oc;
    int index = 0;
    for (int s = 0; s < a->n_stages; s++) {
        const en_stage *st = &a->stages[s];
        const int64_t co = en_round_channels(st->channels, m->width, a->ninety_percent_rule);
        const int repeats = en_round_repeats(st->repeats, m->depth);
        for (int i = 0; i < repeats; i++, index++) {
            en_block *k = &m->blocks[index];
            snprintf(k->name, sizeof k->name, "blocks.%d.%d", s, i);
            k->stage = s;
            k->index = index;
            build_block(b, a, st, i == 0 ? st->stride : 1, c, co, h, w, k);
            h = k->oh;
            w = k->ow;
            c = co;
        }
    }
}

static void build_head(builder *b, const en_arch *a)
{
    en_model *m = b->m;
    const en_block *last = &m->blocks[m->n_blocks - 1];
    m->head.h = last->oh;
    m->head.w = last->ow;
    m->head.ci = last->co;
    m->head.ci_p = last->co_p;
    m->head.co = en_round_channels(a->head_channels, m->width, a->ninety_percent_rule);
    m->head.co_p = round_up(m->head.co, m->channel_align);
    m->head.weight = add_pointwise(b, "", "conv_head.weight", m->head.ci, m->head.co, m->head.ci_p, m->head.co_p);
    m->head.bn = add_bn(b, "", "bn2", m->head.co, m->head.co_p);
    m->head.fc_weight = add_classifier(b, m->head.co, m->classes, m->head.co_p, m->classes_p);
    m->head.fc_bias = add_bias(b, "", "classifier.bias", m->classes, m->classes_p);
    m->macs += m->head.h * m->head.w * m->head.ci * m->head.co + m->head.co * m->classes;
}

/* Parameters from the last tensor to the first, as backward finishes them; statistics as they come. */
static void lay_out(en_model *m)
{
    for (int i = m->n_tensors - 1; i >= 0; i--) {
        en_tensor *t = &m->tensors[i];
        int64_t *end = t->arena == EN_ARENA_PARAMS ? &m->param_elems : &m->stat_elems;
        t->offset = *end;
        *end += t->elems;
    }
}

/* ---- the whole ------------------------------------------------------------------------------------------------------ */

/* "efficientnet_b0 width 1.2": the row and what differs from it; the resolution is told beside it. */
static void describe_changes(en_model *m)
{
    const en_model_row *row = m->row;
    int n = snprintf(m->name, sizeof m->name, "%s", row->name);
    if (m->width != row->width) n += snprintf(m->name + n, sizeof m->name - (size_t)n, " width %.4g", m->width);
    if (m->depth != row->depth) snprintf(m->name + n, sizeof m->name - (size_t)n, " depth %.4g", m->depth);
}

/* The overrides, checked, and the coefficients that follow from them, into m. */
static en_status scale(en_model *m, const en_model_overrides *o)
{
    const en_model_row *row = m->row;
    EN_REQUIRE(o->width == 0 || (o->width > 0 && o->width <= MAX_FACTOR), EN_EUSAGE,
               "--width %g: use a factor above 0 and up to %g, or 0 for the model's own (%g)", o->width, MAX_FACTOR, row->width);
    EN_REQUIRE(o->depth == 0 || (o->depth > 0 && o->depth <= MAX_FACTOR), EN_EUSAGE,
               "--depth %g: use a factor above 0 and up to %g, or 0 for the model's own (%g)", o->depth, MAX_FACTOR, row->depth);
    EN_REQUIRE(o->phi >= 0 && o->phi <= 20, EN_EUSAGE, "--phi %g: use 0 to 20", o->phi);
    EN_REQUIRE(o->resolution == 0 || (o->resolution >= MIN_RESOLUTION && o->resolution <= MAX_RESOLUTION), EN_EUSAGE,
               "--image-size %d: use %d to %d pixels, or 0 for the model's own (%d)", o->resolution, MIN_RESOLUTION,
               MAX_RESOLUTION, row->resolution);
    EN_REQUIRE(o->classes >= 0 && o->classes <= MAX_CLASSES, EN_EUSAGE, "--classes %d: use 1 to %d, or 0 for 1000", o->classes,
               MAX_CLASSES);
    EN_REQUIRE(o->dropout < 1, EN_EUSAGE, "--dropout %g: use 0 or more and below 1, or -1 for the model's own (%g)",
               (double)o->dropout, (double)row->dropout);
    EN_REQUIRE(o->drop_path < 1, EN_EUSAGE, "--drop-path %g: use 0 or more and below 1, or -1 for the model's own (%g)",
               (double)o->drop_path, (double)row->drop_path);

    const double width = o->width > 0 ? o->width : row->width, depth = o->depth > 0 ? o->depth : row->depth;
    const double resolution = o->resolution > 0 ? o->resolution : row->resolution;
    m->width = o->phi > 0 ? width * pow(1.1, o->phi) : width;
    m->depth = o->phi > 0 ? depth * pow(1.2, o->phi) : depth;
    const double side = o->phi > 0 ? round(resolution * pow(1.15, o->phi)) : resolution;
    EN_REQUIRE(m->width <= MAX_FACTOR && m->depth <= MAX_FACTOR && side <= MAX_RESOLUTION, EN_EUSAGE,
               "--phi %g makes %s width %.3g, depth %.3g at %.0f pixels; the limits are %g, %g and %d: use a smaller phi", o->phi,
               row->name, m->width, m->depth, side, MAX_FACTOR, MAX_FACTOR, MAX_RESOLUTION);
    m->resolution = (int)side;
    m->classes = o->classes > 0 ? o->classes : 1000;
    m->dropout = o->dropout >= 0 ? o->dropout : row->dropout;
    m->drop_path = o->drop_path >= 0 ? o->drop_path : row->drop_path;
    describe_changes(m);
    return EN_OK;
}

en_status en_model_build(const en_model_row *row, const en_model_overrides *o, int channel_align, en_model **out)
{
    static const en_model_overrides none = { .dropout = -1, .drop_path = -1 };
    *out = NULL;
    EN_REQUIRE(row && row->arch, EN_EINVAL, "no model row");
    EN_REQUIRE(channel_align >= 1 && channel_align <= 1024, EN_EINVAL, "channels cannot be aligned to %d", channel_align);
    const en_arch *a = row->arch;
    en_status status = EN_OK;

    en_model *m = calloc(1, sizeof *m);
    EN_REQUIRE(m, EN_ENOMEM, "no memory for the model %s", row->name);
    m->row = row;
    m->channel_align = channel_align;
    m->act = a->act;
    m->bn_eps = a->bn_eps;
    m->bn_momentum = a->bn_momentum;
    m->bn_unbiased_running = a->bn_unbiased_running;
    EN_TRY_OUT(scale(m, o ? o : &none), "scaling %s", row->name);
    m->classes_p = round_up(m->classes, channel_align);

    for (int s = 0; s < a->n_stages; s++) m->n_blocks += en_round_repeats(a->stages[s].repeats, m->depth);
    EN_REQUIRE_OUT(m->n_blocks <= MAX_BLOCKS, EN_EUSAGE, "depth %.3g makes %d blocks; the limit is %d", m->depth, m->n_blocks,
                   MAX_BLOCKS);
    m->blocks = calloc((size_t)m->n_blocks, sizeof *m->blocks);
    EN_REQUIRE_OUT(m->blocks, EN_ENOMEM, "no memory for the %d blocks of %s", m->n_blocks, m->name);

    builder b = { .m = m };
    build_stem(&b, a, m->resolution);
    build_blocks(&b, a);
    build_head(&b, a);
    EN_REQUIRE_OUT(!b.full, EN_ENOMEM, "no memory for the tensor list of %s", m->name);
    lay_out(m);
    *out = m;
    m = NULL;
out:
    en_model_free(m);
    return status;
}

void en_model_free(en_model *m)
{
    if (!m) return;
    free(m->tensors);
    free(m->blocks);
    free(m);
}

/* ---- logical <-> physical ----------------------------------------------------------------------------------------- */

int64_t en_tensor_count(const en_tensor *t)
{
    int64_t n = 1;
    for (int d = 0; d < t->ndim; d++) n *= t->shape[d];
    return n;
}

/* Runs `statement` for every logical element: `at` its number, `place` its place in the arena. */
#define FOR_EACH_ELEMENT(t, at, place, statement)                                                                        \
    do {                                                                                                                 \
        const int64_t n1_ = (t)->ndim > 1 ? (t)->shape[1] : 1, n2_ = (t)->ndim > 2 ? (t)->shape[2] : 1,                  \
                      n3_ = (t)->ndim > 3 ? (t)->shape[3] : 1;                                                           \
        int64_t at = 0;                                                                                                  \
        for (int64_t i0_ = 0; i0_ < (t)->shape[0]; i0_++)                                                                \
            for (int64_t i1_ = 0; i1_ < n1_; i1_++)                                                                      \
                for (int64_t i2_ = 0; i2_ < n2_; i2_++)                                                                  \
                    for (int64_t i3_ = 0; i3_ < n3_; i3_++, at++) {                                                      \
                        const int64_t place = (t)->offset + i0_ * (t)->stride[0] + i1_ * (t)->stride[1]                  \
                                            + i2_ * (t)->stride[2] + i3_ * (t)->stride[3];                               \
                        statement;                                                                                       \
                    }                                                                                                    \
    } while (0)

void en_tensor_gather(const en_tensor *t, const float *arena, float *logical)
{
    FOR_EACH_ELEMENT(t, at, place, logical[at] = arena[place]);
}

void en_tensor_scatter(const en_tensor *t, const float *logical, float *arena)
{
    memset(arena + t->offset, 0, (size_t)t->elems * sizeof *arena);
    FOR_EACH_ELEMENT(t, at, place, arena[place] = logical[at]);
}
