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

#include "kernels/kernels.h"

/* ---- the tables (arch_tables.c) --------------------------------------------------------------------------------- */

typedef enum { EN_BLOCK_MBCONV } en_block_kind;

typedef struct { en_block_kind kind; int kernel, stride, expand, channels, repeats; double se_ratio; } en_stage;

typedef struct {                         /* a base network: everything before scaling                              */
    const char *name;
    int stem_channels, stem_kernel, stem_stride, head_channels;
    const en_stage *stages; int n_stages;
    en_act act;
    bool   ninety_percent_rule;          /* rounding down by more than 10 % goes one step up (V1)                  */
    bool   same_padding;                 /* TensorFlow SAME                                                        */
    float  bn_eps, bn_momentum;          /* momentum in PyTorch's sense: 1 - TensorFlow's                          */
    bool   bn_unbiased_running;
} en_arch;

typedef struct {                         /* a released model: a base network and its coefficients                  */
    const char *name, *alias;            /* "efficientnet_b0", "b0"                                                */
    const en_arch *arch;
    double width, depth;
    int    resolution;
    float  dropout, drop_path;
} en_model_row;

/* The row called `name` or `alias`; an unknown name is EN_EUSAGE and names the nearest one. */
en_status en_model_row_find(const char *name, const en_model_row **out);
const en_model_row *en_model_row_at(int i);  /* NULL after the last */

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
    char     name[80];                   /* timm's key: "blocks.1.0.conv_pw.weight"                                */
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

typedef struct {                         /* one MBConv block; channels: logical, *_p physical                      */
    char    name[32];                    /* "blocks.1.0"                                                           */
    int     stage, index;                /* index: b of the drop-path formula, over all blocks                     */
    int     kernel, stride, pad_h, pad_w;
    int64_t h, w, oh, ow;
    int64_t ci, mid, co, q;              /* q 0: no squeeze-and-excitation                                         */
    int64_t ci_p, mid_p, co_p;
    bool    expand, skip;
    float   drop_path;                   /* 1 - p_b; 0 where there is no skip                                      */
    int     w_expand, w_dw, w_project;   /* indices into tensors; w_expand -1 without expansion                    */
    int     w_se_reduce, b_se_reduce, w_se_expand, b_se_expand;  /* -1 without                                     */
    en_bn_ref bn_expand, bn_dw, bn_project;                      /* bn_expand.gamma -1 without                     */
} en_block;

typedef struct {
    char    name[80];                    /* the row's name, plus what was changed: "efficientnet_b0 width 1.2"     */
    const en_model_row *row;
    double  width, depth;
    int     resolution, classes, channel_align;
    int64_t classes_p;
    en_act  act;
    float   bn_eps, bn_momentum; bool bn_unbiased_running;
    float   dropout, drop_path;
    struct { int kernel, stride, pad_h, pad_w; int64_t h, w, oh, ow, oc, oc_p; int weight; en_bn_ref bn; } stem;
    en_block *blocks; int n_blocks;      /* owned                                                                  */
    struct { int64_t h, w, ci, co, ci_p, co_p; int weight; en_bn_ref bn; int fc_weight, fc_bias; } head;
    en_tensor *tensors; int n_tensors;   /* owned; in timm's state-dict order (num_batches_tracked left out)       */
    int64_t param_elems, stat_elems;     /* sizes of the arenas in floats, padding included                        */
    int64_t params_trainable, params_bn_stats, macs;   /* logical, as spec section 2 counts                        */
} en_model;

/* Overrides: 0 (or negative for dropout, drop_path) means "the row's own".  phi > 0 multiplies depth by 1.2^phi, width by
 * 1.1^phi and resolution by 1.15^phi (arXiv:1905.11946 eq. 3) on top of the row's coefficients, resolution rounded. */
typedef struct { double width, depth, phi; int resolution, classes; float dropout, drop_path; } en_model_overrides;

/* EN_EUSAGE with the option, value and range when an override makes no sense (width <= 0, resolution < 32, ...). */
en_status en_model_build(const en_model_row *row, const en_model_overrides *o, int channel_align, en_model **out);
void      en_model_free(en_model *m);        /* NULL is fine */

/* Initialisers of spec 1.8 into host copies of the arenas; a function of (seed, tensor, element). */
void en_model_init(const en_model *m, uint64_t seed, float *params, float *stats);

#endif
