/* model.c - from a row of the table to blocks, tensors and counts.
 *
 * A base network is scaled (arXiv:1905.11946 section 3): widths times `width` and rounded, repeats of a stage times `depth` and
 * rounded up, and the images made larger.  Then the layers are laid one after the other, each adding its tensors and counting
 * its multiply-adds (model_tensors.c), in the order of timm's state dict, which is that of forward. */
#include "trainer/model_build.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { MIN_RESOLUTION = 32, MAX_RESOLUTION = 4096, MAX_CLASSES = 1000000, MAX_BLOCKS = 2048, POOL = 3, POOL_STRIDE = 2 };
static const double MAX_FACTOR = 32, ALPHA = 1.2, BETA = 1.1, GAMMA = 1.15, MAX_BASE = 4;

static const en_bn_ref no_bn = { .gamma = -1, .beta = -1, .mean = -1, .var = -1 };

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
static int64_t physical(const en_model *m, int64_t c) { return round_up(c, m->channel_align); }

/* ---- layers ------------------------------------------------------------------------------------------------------------- */

/* TensorFlow's SAME: enough zeros for ceil(in/stride) outputs, the odd one below and right.  Symmetric: (k-1)/2 each, which
 * for odd k gives as many outputs. */
static int64_t out_side(int64_t in, int stride) { return (in + stride - 1) / stride; }

static int pad_before(int64_t in, int k, int stride, bool same)
{
    if (!same) return (k - 1) / 2;
    const int64_t total = (out_side(in, stride) - 1) * stride + k - in;
    return total > 0 ? (int)(total / 2) : 0;
}

static int64_t scaled(const en_builder *b, int channels)
{
    return en_round_channels(channels, b->m->width, b->arch->ninety_percent_rule);
}

static void build_stem(en_builder *b)
{
    en_model *m = b->m;
    const en_arch *a = b->arch;
    const int k = a->stem_kernel, s = a->stem_stride;
    m->stem.kernel = k;
    m->stem.stride = s;
    m->stem.h = m->stem.w = m->resolution;
    m->stem.oh = m->stem.ow = out_side(m->resolution, s);
    m->stem.pad_h = m->stem.pad_w = pad_before(m->resolution, k, s, m->same_padding);
    m->stem.oc = scaled(b, a->stem_channels);
    m->stem.oc_p = physical(m, m->stem.oc);
    m->stem.weight = en_add_conv(b, (en_key){ "", a->names == EN_NAMES_RESNET ? "conv1" : "conv_stem" }, k, 3, m->stem.oc, 3, m->stem.oc_p,
                                 m->stem.oh * m->stem.ow);
    m->stem.bn = en_add_bn(b, (en_key){ "", "bn1" }, m->stem.oc, m->stem.oc_p);
    m->pool.oh = m->stem.oh;
    m->pool.ow = m->stem.ow;
    if (!a->stem_pool) return;
    m->pool.kernel = POOL;
    m->pool.stride = POOL_STRIDE;
    m->pool.pad = pad_before(m->stem.oh, POOL, POOL_STRIDE, m->same_padding);
    m->pool.oh = m->pool.ow = out_side(m->stem.oh, POOL_STRIDE);
}

/* How the block is made of its stage's row: the table in model.h. */
static void shape_block(const en_builder *b, const en_stage *st, int stride, int64_t ci, int64_t h, int64_t w, en_block *k)
{
    const en_model *m = b->m;
    const int64_t width = scaled(b, st->channels);
    const bool bottleneck = st->kind == EN_BLOCK_BOTTLENECK, first = bottleneck && b->arch->stride_first;
    k->kind = st->kind;
    k->expand = bottleneck || (st->kind == EN_BLOCK_MBCONV && st->expand != 1);
    k->ci = ci;
    k->co = bottleneck ? width * st->expand : width;
    k->mid = bottleneck || (st->kind == EN_BLOCK_FUSED && st->expand == 1) ? width : st->kind == EN_BLOCK_DSCONV ? ci : ci * st->expand;
    k->q = st->se_ratio > 0 ? (int64_t)floor((double)ci * st->se_ratio) : 0;   /* of the block's input, not of mid */
    if (st->se_ratio > 0 && k->q < 1) k->q = 1;
    k->ci_p = physical(m, k->ci);
    k->mid_p = physical(m, k->mid);
    k->co_p = physical(m, k->co);
    k->kernel = st->kernel;
    k->expand_stride = first ? stride : 1;
    k->stride = first ? 1 : stride;
    k->h = h;
    k->w = w;
    k->eh = out_side(h, k->expand_stride);
    k->ew = out_side(w, k->expand_stride);
    k->oh = out_side(k->eh, k->stride);
    k->ow = out_side(k->ew, k->stride);
    k->pad_h = pad_before(k->eh, k->kernel, k->stride, m->same_padding);
    k->pad_w = pad_before(k->ew, k->kernel, k->stride, m->same_padding);
    k->skip = stride == 1 && ci == k->co && st->kind != EN_BLOCK_DSCONV;
    k->drop_path = k->skip || bottleneck ? (float)((double)m->drop_path * k->index / m->n_blocks) : 0;
    k->act_project = st->kind == EN_BLOCK_DSCONV ? m->act : EN_ACT_NONE;
    k->act_out = bottleneck ? m->act : EN_ACT_NONE;
}

/* The block's tensors.  timm counts the batch norms of a block from the first convolution that is there, and calls a
 * depthwise block's projection conv_pw when nothing expands: so conv_pw expands in one block and projects in another. */
static void fill_block(en_builder *b, bool projects, en_block *k)
{
    const bool resnet = b->arch->names == EN_NAMES_RESNET, depthwise = en_block_is_depthwise(k);
    const char *const bn[] = { "bn1", "bn2", "bn3" };
    const int64_t out = k->oh * k->ow;
    int n_bn = 0;
#define KEY(layer) ((en_key){ k->name, layer })
    k->w_expand = k->w_project = k->w_shortcut = k->w_se_reduce = k->b_se_reduce = k->w_se_expand = k->b_se_expand = -1;
    k->bn_expand = k->bn_project = k->bn_shortcut = no_bn;
    if (k->expand) {
        k->w_expand = en_add_conv(b, KEY(resnet ? "conv1" : "conv_pw"), 1, k->ci, k->mid, k->ci_p, k->mid_p, k->eh * k->ew);
        k->bn_expand = en_add_bn(b, KEY(bn[n_bn++]), k->mid, k->mid_p);
    }
    if (depthwise) {
        k->w_spatial = en_add_depthwise(b, KEY("conv_dw"), k->kernel, k->mid, k->mid_p, out);
    } else {
        const int64_t c = k->expand ? k->mid : k->ci, c_p = k->expand ? k->mid_p : k->ci_p;
        k->w_spatial = en_add_conv(b, KEY(resnet ? "conv2" : projects ? "conv_exp" : "conv"), k->kernel, c, k->mid, c_p, k->mid_p, out);
    }
    k->bn_spatial = en_add_bn(b, KEY(bn[n_bn++]), k->mid, k->mid_p);
    if (k->q) {
        k->w_se_reduce = en_add_se_reduce(b, KEY("se.conv_reduce"), k->q, k->mid, k->mid_p);
        k->b_se_reduce = en_add_bias(b, KEY("se.conv_reduce"), k->q, k->q);
        k->w_se_expand = en_add_se_expand(b, KEY("se.conv_expand"), k->q, k->mid, k->mid_p);
        k->b_se_expand = en_add_bias(b, KEY("se.conv_expand"), k->mid, k->mid_p);
    }
    if (projects) {
        const char *name = resnet ? "conv3" : depthwise && !k->expand ? "conv_pw" : "conv_pwl";
        k->w_project = en_add_conv(b, KEY(name), 1, k->mid, k->co, k->mid_p, k->co_p, out);
        k->bn_project = en_add_bn(b, KEY(bn[n_bn]), k->co, k->co_p);
    }
    if (k->kind == EN_BLOCK_BOTTLENECK && !k->skip) {
        k->w_shortcut = en_add_conv(b, KEY("downsample.0"), 1, k->ci, k->co, k->ci_p, k->co_p, out);
        k->bn_shortcut = en_add_bn(b, KEY("downsample.1"), k->co, k->co_p);
    }
#undef KEY
}

static void build_blocks(en_builder *b)
{
    en_model *m = b->m;
    const en_arch *a = b->arch;
    int64_t h = m->pool.oh, w = m->pool.ow, c = m->stem.oc;
    int index = 0;
    for (int s = 0; s < a->n_stages; s++) {
        const en_stage *st = &a->stages[s];
        const int repeats = en_round_repeats(st->repeats, m->depth);
        for (int i = 0; i < repeats; i++, index++) {
            en_block *k = &m->blocks[index];
            if (a->names == EN_NAMES_RESNET) snprintf(k->name, sizeof k->name, "layer%d.%d", s + 1, i);
            else snprintf(k->name, sizeof k->name, "blocks.%d.%d", s, i);
            k->stage = s;
            k->index = index;
            shape_block(b, st, i == 0 ? st->stride : 1, c, h, w, k);
            fill_block(b, !(st->kind == EN_BLOCK_FUSED && st->expand == 1), k);
            h = k->oh;
            w = k->ow;
            c = k->co;
        }
    }
}

static void build_head(en_builder *b)
{
    en_model *m = b->m;
    const en_arch *a = b->arch;
    const en_block *last = &m->blocks[m->n_blocks - 1];
    const char *classifier = a->names == EN_NAMES_RESNET ? "fc" : "classifier";
    m->head.h = last->oh;
    m->head.w = last->ow;
    m->head.ci = m->head.co = last->co;
    m->head.ci_p = m->head.co_p = last->co_p;
    m->head.weight = -1;
    m->head.bn = no_bn;
    if (a->head_channels) {
        const double width = a->head_keeps_width && m->width < 1 ? 1 : m->width;
        m->head.co = en_round_channels(a->head_channels, width, a->ninety_percent_rule);
        m->head.co_p = physical(m, m->head.co);
        m->head.weight = en_add_conv(b, (en_key){ "", "conv_head" }, 1, m->head.ci, m->head.co, m->head.ci_p, m->head.co_p, m->head.h * m->head.w);
        m->head.bn = en_add_bn(b, (en_key){ "", "bn2" }, m->head.co, m->head.co_p);
    }
    m->head.fc_weight = en_add_classifier(b, (en_key){ "", classifier }, m->head.co, m->classes, m->head.co_p, m->classes_p);
    m->head.fc_bias = en_add_bias(b, (en_key){ "", classifier }, m->classes, m->classes_p);
}

/* ---- scaling -------------------------------------------------------------------------------------------------------- */

/* "efficientnet_b0 width 1.2": the row and what differs from it; the resolution is told beside it. */
static void describe_changes(en_model *m)
{
    const en_model_row *row = m->row;
    int n = snprintf(m->name, sizeof m->name, "%s", row->name);
    if (m->width != row->width) n += snprintf(m->name + n, sizeof m->name - (size_t)n, " width %.4g", m->width);
    if (m->depth != row->depth) snprintf(m->name + n, sizeof m->name - (size_t)n, " depth %.4g", m->depth);
}

static en_status check_factors(const en_model_row *row, const en_model_overrides *o)
{
    EN_REQUIRE(o->width == 0 || (o->width > 0 && o->width <= MAX_FACTOR), EN_EUSAGE,
               "--width %g: use a factor above 0 and up to %g, or 0 for the model's own (%g)", o->width, MAX_FACTOR, row->width);
    EN_REQUIRE(o->depth == 0 || (o->depth > 0 && o->depth <= MAX_FACTOR), EN_EUSAGE,
               "--depth %g: use a factor above 0 and up to %g, or 0 for the model's own (%g)", o->depth, MAX_FACTOR, row->depth);
    EN_REQUIRE(o->scale == 0 || (o->scale > 0 && o->scale <= MAX_FACTOR), EN_EUSAGE,
               "--resolution %g: use a factor above 0 and up to %g, or 0 for the model's own size (%d)", o->scale, MAX_FACTOR, row->resolution);
    EN_REQUIRE(o->phi >= 0 && o->phi <= 20, EN_EUSAGE, "--phi %g: use 0 to 20", o->phi);
    const struct { const char *name; double value; } base[] = { { "alpha", o->alpha }, { "beta", o->beta }, { "gamma", o->gamma } };
    for (int i = 0; i < 3; i++)
        EN_REQUIRE(base[i].value == 0 || (base[i].value >= 1 && base[i].value <= MAX_BASE), EN_EUSAGE, "--%s %g: use 1 to %g", base[i].name,
                   base[i].value, MAX_BASE);
    return EN_OK;
}

/* The overrides, checked, and the coefficients that follow from them, into m. */
static en_status scale(en_model *m, const en_model_overrides *o)
{
    const en_model_row *row = m->row;
    const int own = o->evaluation ? row->eval_resolution : row->resolution;
    EN_TRY(check_factors(row, o), "scaling %s", row->name);
    EN_REQUIRE(o->resolution == 0 || (o->resolution >= MIN_RESOLUTION && o->resolution <= MAX_RESOLUTION), EN_EUSAGE,
               "--image-size %d: use %d to %d pixels, or 0 for the model's own (%d)", o->resolution, MIN_RESOLUTION, MAX_RESOLUTION, own);
    EN_REQUIRE(o->classes >= 0 && o->classes <= MAX_CLASSES, EN_EUSAGE, "--classes %d: use 1 to %d, or 0 for 1000", o->classes,
               MAX_CLASSES);
    EN_REQUIRE(o->dropout < 1, EN_EUSAGE, "--dropout %g: use 0 or more and below 1, or -1 for the model's own (%g)",
               (double)o->dropout, (double)row->dropout);
    EN_REQUIRE(o->drop_path < 1, EN_EUSAGE, "--drop-path %g: use 0 or more and below 1, or -1 for the model's own (%g)",
               (double)o->drop_path, (double)row->drop_path);

    const double width = o->width > 0 ? o->width : row->width, depth = o->depth > 0 ? o->depth : row->depth;
    double side = o->resolution > 0 ? o->resolution : own;
    if (o->scale > 0) side = floor(side * o->scale + 1e-6);         /* 380 * 1.15 is 437, whatever binary fractions make of it */
    m->width = o->phi > 0 ? width * pow(o->beta > 0 ? o->beta : BETA, o->phi) : width;
    m->depth = o->phi > 0 ? depth * pow(o->alpha > 0 ? o->alpha : ALPHA, o->phi) : depth;
    if (o->phi > 0) side = round(side * pow(o->gamma > 0 ? o->gamma : GAMMA, o->phi));
    EN_REQUIRE(side >= MIN_RESOLUTION && (o->phi > 0 || side <= MAX_RESOLUTION), EN_EUSAGE,
               "--resolution %g makes images of %.0f pixels; %d to %d are possible", o->scale, side, MIN_RESOLUTION, MAX_RESOLUTION);
    EN_REQUIRE(m->width <= MAX_FACTOR && m->depth <= MAX_FACTOR && side <= MAX_RESOLUTION, EN_EUSAGE,
               "--phi %g makes %s width %.3g, depth %.3g at %.0f pixels; the limits are %g, %g and %d: use a smaller phi", o->phi,
               row->name, m->width, m->depth, side, MAX_FACTOR, MAX_FACTOR, MAX_RESOLUTION);
    m->resolution = (int)side;
    m->classes = o->classes > 0 ? o->classes : 1000;
    m->classes_p = physical(m, m->classes);
    m->dropout = o->dropout >= 0 ? o->dropout : row->dropout;
    m->drop_path = o->drop_path >= 0 ? o->drop_path : row->drop_path;
    describe_changes(m);
    return EN_OK;
}

int en_model_eval_side(const en_model_row *row, int side) { return side == row->resolution ? row->eval_resolution : side; }

/* ---- the whole ------------------------------------------------------------------------------------------------------ */

en_status en_model_build(const en_model_row *row, const en_model_overrides *overrides, int channel_align, en_model **out)
{
    static const en_model_overrides none = { .dropout = -1, .drop_path = -1 };
    const en_model_overrides *o = overrides ? overrides : &none;
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
    m->same_padding = o->padding == EN_PADDING_OWN ? a->same_padding : o->padding == EN_PADDING_SAME;
    m->bn_eps = o->bn_eps > 0 ? o->bn_eps : a->bn_eps;
    m->bn_momentum = o->bn_momentum > 0 ? o->bn_momentum : a->bn_momentum;
    m->normalise = o->normalise ? o->normalise : a->normalise ? a->normalise : EN_NORMALISE_IMAGENET;
    m->eval_crop = o->eval_crop ? o->eval_crop : a->eval_crop ? a->eval_crop : EN_EVAL_CROP_REFERENCE;
    m->bn_unbiased_running = a->bn_unbiased_running;
    EN_TRY_OUT(scale(m, o), "scaling %s", row->name);

    for (int s = 0; s < a->n_stages; s++) m->n_blocks += en_round_repeats(a->stages[s].repeats, m->depth);
    EN_REQUIRE_OUT(m->n_blocks <= MAX_BLOCKS, EN_EUSAGE, "depth %.3g makes %d blocks; the limit is %d", m->depth, m->n_blocks,
                   MAX_BLOCKS);
    m->blocks = calloc((size_t)m->n_blocks, sizeof *m->blocks);
    EN_REQUIRE_OUT(m->blocks, EN_ENOMEM, "no memory for the %d blocks of %s", m->n_blocks, m->name);

    en_builder b = { .m = m, .arch = a };
    build_stem(&b);
    build_blocks(&b);
    build_head(&b);
    EN_REQUIRE_OUT(!b.full, EN_ENOMEM, "no memory for the tensor list of %s", m->name);
    en_lay_out(m);
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
