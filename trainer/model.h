/* model.h - a network as data: rows of a paper's table, scaled, become a list of blocks and a list of tensors.
 *
 * Nothing here touches a device.  en_model_build turns (row, coefficients, resolution, classes) into
 *   - blocks with their shapes, which trainer/net.c walks,
 *   - tensors with timm's names and logical shapes, their place in the flat arenas and the way their logical elements lie
 *     there, which the initialiser, the checkpoint and `describe` read.
 * Two arenas: parameters (trained; their gradients and optimizer slots have the same layout), in the order in which
 * backward finishes their gradients, and batch-norm statistics (running_mean, running_var). */
#ifndef EN_MODEL_H
#define EN_MODEL_H

#include "data/image.h"
#include "kernels/kernels.h"

/* ---- the tables (arch_tables.c) --------------------------------------------------------------------------------- */

/* Every block has one convolution over space, k x k, with a 1x1 before it, after it, both or neither, each followed by its
 * batch norm; a is the network's activation, s the block's stride:
 *
 *     kind         expand, 1x1         spatial, k x k                gate     project, 1x1       what the block gives
 *     MBCONV       ci -> e*ci, a       depthwise e*ci, s, a          SE       e*ci -> co         + x
 *       e = 1      -                   depthwise ci, s, a            SE       ci -> co           + x
 *     DSCONV       -                   depthwise ci, s, a            -        ci -> co, a
 *     FUSED        -                   dense ci -> e*ci, s, a        -        e*ci -> co         + x
 *       e = 1      -                   dense ci -> co, s, a          -        -                  + x
 *     BOTTLENECK   ci -> c, a          dense c -> c, s, a            -        c -> co = e*c      a(... + x or shortcut(x))
 *
 * x is added where its shape is the block's output's (stride 1, ci = co), with stochastic depth on the branch.  A bottleneck
 * whose x has another shape adds shortcut(x) instead, a 1x1 convolution of the block's stride with a batch norm.
 *
 * MBCONV   arXiv:1801.04381 (MobileNetV2, e = 6, relu6, no SE); with SE and silu arXiv:1905.11946 (EfficientNet)
 * DSCONV   arXiv:1704.04861 (MobileNetV1)        FUSED   arXiv:2104.00298 (EfficientNetV2)
 * BOTTLENECK   arXiv:1512.03385 (ResNet); its stage's channels are c, the narrow ones */
typedef enum { EN_BLOCK_MBCONV, EN_BLOCK_DSCONV, EN_BLOCK_FUSED, EN_BLOCK_BOTTLENECK } en_block_kind;

typedef struct { en_block_kind kind; int kernel, stride, expand, channels, repeats; double se_ratio; } en_stage;

typedef enum { EN_NAMES_EFFICIENTNET, EN_NAMES_RESNET } en_names;   /* how timm calls the tensors */

typedef struct {                         /* a base network: everything before scaling                              */
    const char *name;
    int stem_channels, stem_kernel, stem_stride;
    bool stem_pool;                      /* a max pool, 3x3 of stride 2, follows the stem                          */
    int head_channels;                   /* 0: no convolution before the mean                                      */
    bool head_keeps_width;               /* a width below 1 does not narrow the head                               */
    const en_stage *stages; int n_stages;
    en_act act;
    en_names names;
    bool   ninety_percent_rule;          /* rounding down by more than 10 % goes one step up                       */
    bool   same_padding;                 /* TensorFlow SAME; false: symmetric, (k-1)/2 on each side                */
    bool   stride_first;                 /* bottleneck: the first 1x1 has the stride, not the k x k                */
    bool   decay_biases;                 /* weight decay applies to biases too; never to batch norm                */
    float  bn_eps, bn_momentum;          /* momentum in PyTorch's sense: 1 - TensorFlow's                          */
    bool   bn_unbiased_running;
    en_normalising normalise;            /* of pixels; 0: ImageNet's                                               */
    en_eval_crop   eval_crop;            /* 0: the reference's of V1                                               */
} en_arch;

typedef struct {                         /* a released model: a base network and its coefficients                  */
    const char *name, *alias;            /* "efficientnet_b0", "b0"                                                */
    const en_arch *arch;
    double width, depth;
    int    resolution, eval_resolution;  /* of training and of evaluation: V2 is trained on smaller images         */
    float  dropout, drop_path;
} en_model_row;

/* The row called `name` or `alias`; an unknown name is EN_EUSAGE and names the nearest one. */
en_status en_model_row_find(const char *name, const en_model_row **out);
const en_model_row *en_model_row_at(int i);  /* NULL after the last */

/* The side at which a model that was trained at `side` pixels is evaluated unless somebody says otherwise: the row's own when
 * it was trained at the row's own, else the side of training. */
int en_model_eval_side(const en_model_row *row, int side);

/* Rounds c*width to a multiple of 8 as the references do (spec 1.3); ceil(depth*repeats). */
int en_round_channels(double c, double width, bool ninety_percent_rule);
int en_round_repeats(int repeats, double depth);

/* ---- a built model ------------------------------------------------------------------------------------------------ */

typedef enum { EN_ARENA_PARAMS, EN_ARENA_STATS } en_arena;
typedef enum { EN_INIT_CONV_NORMAL, EN_INIT_DENSE_UNIFORM, EN_INIT_ZERO, EN_INIT_ONE } en_init;

/* One named tensor.  Logical element (i0,i1,i2,i3) of `shape` (row-major: O,I,kh,kw for a convolution, C,1,k,k depthwise,
 * classes,features for the classifier, C for vectors) lies at  arena[offset + sum_d i_d * stride[d]].
 * `elems` floats from `offset` belong to the tensor, padding included; offsets are multiples of 16. */
typedef struct {
    char     name[80];                   /* timm's key: "blocks.1.0.conv_pw.weight", "layer1.0.conv1.weight"       */
    int      ndim;
    int64_t  shape[4], stride[4];
    en_arena arena;
    int64_t  offset, elems;
    bool     decay;                      /* weight decay applies                                                   */
    en_init  init;
    float    init_scale;                 /* std of the normal, half-width of the uniform                           */
} en_tensor;

int64_t en_tensor_count(const en_tensor *t);                                    /* logical elements                 */
void en_tensor_gather(const en_tensor *t, const float *arena, float *logical);  /* arena -> row-major logical       */
void en_tensor_scatter(const en_tensor *t, const float *logical, float *arena); /* the reverse; padding := 0        */

typedef struct { int64_t c, c_phys; int gamma, beta, mean, var; } en_bn_ref;    /* indices into tensors            */

typedef struct {                         /* one block; channels: logical, *_p physical                             */
    char    name[32];                    /* "blocks.1.0"                                                           */
    en_block_kind kind;
    int     stage, index;                /* index: b of the drop-path formula, over all blocks                     */
    int     kernel, stride, pad_h, pad_w;/* of the convolution over space                                          */
    int     expand_stride;               /* of the 1x1 before it; the block's stride is the product                */
    int64_t h, w, oh, ow;                /* of the block's input and output; the expansion's output is             */
    int64_t eh, ew;                      /* (eh, ew), which is (h, w) unless expand_stride says otherwise          */
    int64_t ci, mid, co, q;              /* q 0: no squeeze-and-excitation; without a projection mid = co          */
    int64_t ci_p, mid_p, co_p;
    bool    expand, skip;                /* skip: x itself is added                                                */
    en_act  act_project, act_out;        /* after the projection's batch norm; after the sum.  Else: en_model.act  */
    float   drop_path;                   /* 1 - p_b; 0 where nothing is added                                      */
    int     w_expand, w_spatial, w_project, w_shortcut;          /* indices into tensors; -1 without               */
    int     w_se_reduce, b_se_reduce, w_se_expand, b_se_expand;  /* -1 without                                     */
    en_bn_ref bn_expand, bn_spatial, bn_project, bn_shortcut;    /* gamma -1 without                               */
} en_block;

static inline bool en_block_is_depthwise(const en_block *k) { return k->kind == EN_BLOCK_MBCONV || k->kind == EN_BLOCK_DSCONV; }

typedef struct {
    char    name[80];                    /* the row's name, plus what was changed: "efficientnet_b0 width 1.2"     */
    const en_model_row *row;
    double  width, depth;
    int     resolution, classes, channel_align;
    int64_t classes_p;
    en_act  act;
    bool    same_padding;
    float   bn_eps, bn_momentum; bool bn_unbiased_running;
    en_normalising normalise; en_eval_crop eval_crop;            /* never 0                                        */
    float   dropout, drop_path;
    struct { int kernel, stride, pad_h, pad_w; int64_t h, w, oh, ow, oc, oc_p; int weight; en_bn_ref bn; } stem;
    struct { int kernel, stride, pad; int64_t oh, ow; } pool;    /* the largest of k x k, after the stem; kernel 0: none */
    en_block *blocks; int n_blocks;      /* owned                                                                  */
    struct { int64_t h, w, ci, co, ci_p, co_p; int weight; en_bn_ref bn; int fc_weight, fc_bias; } head;
                                         /* weight -1, bn.gamma -1: no convolution before the mean, co = ci        */
    en_tensor *tensors; int n_tensors;   /* owned; in timm's state-dict order (num_batches_tracked left out)       */
    int64_t param_elems, stat_elems;     /* sizes of the arenas in floats, padding included                        */
    int64_t params_trainable, params_bn_stats, macs;   /* logical, as spec section 2 counts                        */
} en_model;

/* Overrides: 0 (or negative for dropout, drop_path) means "the row's own".  `resolution` is a side in pixels, `scale` a factor:
 * floor(scale * the row's own).  phi > 0 multiplies depth by alpha^phi, width by beta^phi and resolution by gamma^phi
 * (arXiv:1905.11946 eq. 3; 0: its 1.2, 1.1, 1.15) on top of that, resolution rounded.  eps, momentum and padding are
 * those of the framework that weights come from, where they are not the row's. */
typedef enum { EN_PADDING_OWN, EN_PADDING_SAME, EN_PADDING_SYMMETRIC } en_padding;
typedef struct {
    double width, depth, phi, alpha, beta, gamma, scale;
    int    resolution, classes;
    float  dropout, drop_path, bn_eps, bn_momentum;
    en_padding padding;
    en_normalising normalise;
    en_eval_crop eval_crop;
    bool   evaluation;                   /* the row's own resolution is that of evaluation                         */
} en_model_overrides;

/* EN_EUSAGE with the option, value and range when an override makes no sense (width <= 0, resolution < 32, ...). */
en_status en_model_build(const en_model_row *row, const en_model_overrides *o, int channel_align, en_model **out);
void      en_model_free(en_model *m);        /* NULL is fine */

/* Initialisers of spec 1.8 into host copies of the arenas; a function of (seed, tensor, element). */
void en_model_init(const en_model *m, uint64_t seed, float *params, float *stats);

#endif
