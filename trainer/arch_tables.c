/* arch_tables.c - the networks, as the papers print them.
 *
 * A network is two rows: its base (stages before scaling) and its coefficients (how wide, deep and large).  Building it
 * is trainer/model.c's; adding one is adding rows here.
 *
 *     EfficientNet     arXiv:1905.11946, table 1 (base), and the reference's efficientnet_builder.py (coefficients)
 *     EfficientNetV2   arXiv:2104.00298, table 4, and google/automl's effnetv2_configs.py
 *     MobileNetV1      arXiv:1704.04861, table 1      MobileNetV2   arXiv:1801.04381, table 2
 *     ResNet-50        arXiv:1512.03385, table 1
 *
 * References differ in what looks like detail, so it is columns: how widths are rounded, which side of the image gets the odd
 * row of zeros, epsilon and momentum of batch norm.  The EfficientNets follow their authors' TensorFlow, as timm's tf_* models
 * do; the other three, of which the first paper's table 3 needs shapes only, follow PyTorch (torchvision, timm). */
#include "trainer/model.h"
#include "trainer/nearest.h"

#include <math.h>
#include <string.h>

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))
#define STAGES(s) .stages = s, .n_stages = COUNT(s)
#define MBCONV     EN_BLOCK_MBCONV
#define DSCONV     EN_BLOCK_DSCONV
#define FUSED      EN_BLOCK_FUSED
#define BOTTLENECK EN_BLOCK_BOTTLENECK

/* ---- EfficientNet ----------------------------------------------------------------------------------------------------- */

/*                                                    block  k  s  e  channels  repeats  se   */
static const en_stage efficientnet_stages[] = { { MBCONV,    3, 1, 1,    16,       1,   0.25 },
                                                { MBCONV,    3, 2, 6,    24,       2,   0.25 },
                                                { MBCONV,    5, 2, 6,    40,       2,   0.25 },
                                                { MBCONV,    3, 2, 6,    80,       3,   0.25 },
                                                { MBCONV,    5, 1, 6,   112,       3,   0.25 },
                                                { MBCONV,    5, 2, 6,   192,       4,   0.25 },
                                                { MBCONV,    3, 1, 6,   320,       1,   0.25 } };

/* Momentum 0.99 in TensorFlow's sense; running_var takes the biased variance, as the reference's TPU path does. */
static const en_arch efficientnet = {
    .name = "efficientnet",
    .stem_channels = 32, .stem_kernel = 3, .stem_stride = 2, .head_channels = 1280, STAGES(efficientnet_stages),
    .act = EN_ACT_SILU, .ninety_percent_rule = true, .same_padding = true, .decay_biases = true,
    .bn_eps = 1e-3f, .bn_momentum = 0.01f, .bn_unbiased_running = false,
};

/* ---- EfficientNetV2 --------------------------------------------------------------------------------------------------- */

static const en_stage v2_b_stages[] = { { FUSED,  3, 1, 1,  16,  1, 0 },    { FUSED,  3, 2, 4,  32, 2, 0 },    { FUSED,  3, 2, 4,  48, 2, 0 },
                                        { MBCONV, 3, 2, 4,  96,  3, 0.25 }, { MBCONV, 3, 1, 6, 112, 5, 0.25 }, { MBCONV, 3, 2, 6, 192, 8, 0.25 } };

static const en_stage v2_s_stages[] = { { FUSED,  3, 1, 1,  24,  2, 0 },    { FUSED,  3, 2, 4,  48, 4, 0 },    { FUSED,  3, 2, 4,  64,  4, 0 },
                                        { MBCONV, 3, 2, 4, 128,  6, 0.25 }, { MBCONV, 3, 1, 6, 160, 9, 0.25 }, { MBCONV, 3, 2, 6, 256, 15, 0.25 } };

static const en_stage v2_m_stages[] = { { FUSED,  3, 1, 1,  24,  3, 0 },    { FUSED,  3, 2, 4,  48,  5, 0 },    { FUSED,  3, 2, 4,  80,  5, 0 },
                                        { MBCONV, 3, 2, 4, 160,  7, 0.25 }, { MBCONV, 3, 1, 6, 176, 14, 0.25 }, { MBCONV, 3, 2, 6, 304, 18, 0.25 },
                                        { MBCONV, 3, 1, 6, 512,  5, 0.25 } };

static const en_stage v2_l_stages[] = { { FUSED,  3, 1, 1,  32,  4, 0 },    { FUSED,  3, 2, 4,  64,  7, 0 },    { FUSED,  3, 2, 4,  96,  7, 0 },
                                        { MBCONV, 3, 2, 4, 192, 10, 0.25 }, { MBCONV, 3, 1, 6, 224, 19, 0.25 }, { MBCONV, 3, 2, 6, 384, 25, 0.25 },
                                        { MBCONV, 3, 1, 6, 640,  7, 0.25 } };

static const en_stage v2_xl_stages[] = { { FUSED,  3, 1, 1,  32,  4, 0 },    { FUSED,  3, 2, 4,  64,  8, 0 },    { FUSED,  3, 2, 4,  96,  8, 0 },
                                         { MBCONV, 3, 2, 4, 192, 16, 0.25 }, { MBCONV, 3, 1, 6, 256, 24, 0.25 }, { MBCONV, 3, 2, 6, 512, 32, 0.25 },
                                         { MBCONV, 3, 1, 6, 640,  8, 0.25 } };

/* Momentum 0.9 in TensorFlow's sense, as the reference's code has it (the paper says 0.99).  No 90 % rule: 16 channels times
 * 1.2 stay 16 in V2-B3.  Biases are spared by weight decay.  S to XL have pixels and an evaluation crop of their own; B0 to B3 are fed as
 * the first EfficientNets are. */
#define V2(name_, stem_, stages_)                                                                                         \
    .name = name_, .stem_channels = stem_, .stem_kernel = 3, .stem_stride = 2, .head_channels = 1280, STAGES(stages_),  \
    .act = EN_ACT_SILU, .same_padding = true, .bn_eps = 1e-3f, .bn_momentum = 0.1f
#define V2_LARGE(name_, stem_, stages_) { V2(name_, stem_, stages_), .normalise = EN_NORMALISE_HALF, .eval_crop = EN_EVAL_CROP_V2 }
static const en_arch v2_b = { V2("efficientnetv2_b", 32, v2_b_stages) }, v2_s = V2_LARGE("efficientnetv2_s", 24, v2_s_stages),
                     v2_m = V2_LARGE("efficientnetv2_m", 24, v2_m_stages), v2_l = V2_LARGE("efficientnetv2_l", 32, v2_l_stages),
                     v2_xl = V2_LARGE("efficientnetv2_xl", 32, v2_xl_stages);

/* ---- the networks that the paper scales beside its own ------------------------------------------------------------------- */

static const en_stage mobilenetv1_stages[] = { { DSCONV, 3, 1, 1,  64, 1, 0 }, { DSCONV, 3, 2, 1,  128, 2, 0 }, { DSCONV, 3, 2, 1, 256, 2, 0 },
                                               { DSCONV, 3, 2, 1, 512, 6, 0 }, { DSCONV, 3, 2, 1, 1024, 2, 0 } };

static const en_stage mobilenetv2_stages[] = { { MBCONV, 3, 1, 1, 16, 1, 0 }, { MBCONV, 3, 2, 6,  24, 2, 0 }, { MBCONV, 3, 2, 6,  32, 3, 0 },
                                               { MBCONV, 3, 2, 6, 64, 4, 0 }, { MBCONV, 3, 1, 6,  96, 3, 0 }, { MBCONV, 3, 2, 6, 160, 3, 0 },
                                               { MBCONV, 3, 1, 6, 320, 1, 0 } };

static const en_stage resnet50_stages[] = { { BOTTLENECK, 3, 1, 4,  64, 3, 0 }, { BOTTLENECK, 3, 2, 4, 128, 4, 0 },
                                            { BOTTLENECK, 3, 2, 4, 256, 6, 0 }, { BOTTLENECK, 3, 2, 4, 512, 3, 0 } };

#define TORCH .ninety_percent_rule = true, .decay_biases = true, .bn_eps = 1e-5f, .bn_momentum = 0.1f, .bn_unbiased_running = true

static const en_arch mobilenetv1 = {
    .name = "mobilenetv1", .stem_channels = 32, .stem_kernel = 3, .stem_stride = 2, STAGES(mobilenetv1_stages), .act = EN_ACT_RELU6, TORCH };

static const en_arch mobilenetv2 = {
    .name = "mobilenetv2", .stem_channels = 32, .stem_kernel = 3, .stem_stride = 2, .head_channels = 1280, .head_keeps_width = true,
    STAGES(mobilenetv2_stages), .act = EN_ACT_RELU6, TORCH };

/* The stride of a stage sits on the 3x3 (torchvision; "v1.5") or, in the paper and in Keras, on the 1x1 before it (v1). */
#define RESNET50 .stem_channels = 64, .stem_kernel = 7, .stem_stride = 2, .stem_pool = true, STAGES(resnet50_stages), \
                 .act = EN_ACT_RELU, .names = EN_NAMES_RESNET, TORCH
static const en_arch resnet50 = { .name = "resnet50", RESNET50 }, resnet50_v1 = { .name = "resnet50_v1", .stride_first = true, RESNET50 };

/* ---- coefficients -------------------------------------------------------------------------------------------------------- */

/* Dropout of MobileNetV1 is Keras', of MobileNetV2 torchvision's; neither they nor ResNet-50 drop paths. */
/*                                         name              alias     base        width depth train eval dropout drop path */
static const en_model_row rows[] = { { "efficientnet_b0",   "b0",     &efficientnet, 1.0, 1.0,  224,  224,  0.2f,   0.2f },
                                     { "efficientnet_b1",   "b1",     &efficientnet, 1.0, 1.1,  240,  240,  0.2f,   0.2f },
                                     { "efficientnet_b2",   "b2",     &efficientnet, 1.1, 1.2,  260,  260,  0.3f,   0.2f },
                                     { "efficientnet_b3",   "b3",     &efficientnet, 1.2, 1.4,  300,  300,  0.3f,   0.2f },
                                     { "efficientnet_b4",   "b4",     &efficientnet, 1.4, 1.8,  380,  380,  0.4f,   0.2f },
                                     { "efficientnet_b5",   "b5",     &efficientnet, 1.6, 2.2,  456,  456,  0.4f,   0.2f },
                                     { "efficientnet_b6",   "b6",     &efficientnet, 1.8, 2.6,  528,  528,  0.5f,   0.2f },
                                     { "efficientnet_b7",   "b7",     &efficientnet, 2.0, 3.1,  600,  600,  0.5f,   0.2f },
                                     { "efficientnet_b8",   "b8",     &efficientnet, 2.2, 3.6,  672,  672,  0.5f,   0.2f },
                                     { "efficientnet_l2",   "l2",     &efficientnet, 4.3, 5.3,  800,  800,  0.5f,   0.2f },
                                     { "efficientnetv2_s",  "v2s",    &v2_s,         1.0, 1.0,  300,  384,  0.2f,   0.2f },
                                     { "efficientnetv2_m",  "v2m",    &v2_m,         1.0, 1.0,  384,  480,  0.3f,   0.2f },
                                     { "efficientnetv2_l",  "v2l",    &v2_l,         1.0, 1.0,  384,  480,  0.4f,   0.2f },
                                     { "efficientnetv2_xl", "v2xl",   &v2_xl,        1.0, 1.0,  384,  512,  0.4f,   0.2f },
                                     { "efficientnetv2_b0", "v2b0",   &v2_b,         1.0, 1.0,  192,  224,  0.2f,   0.2f },
                                     { "efficientnetv2_b1", "v2b1",   &v2_b,         1.0, 1.1,  192,  240,  0.2f,   0.2f },
                                     { "efficientnetv2_b2", "v2b2",   &v2_b,         1.1, 1.2,  208,  260,  0.3f,   0.2f },
                                     { "efficientnetv2_b3", "v2b3",   &v2_b,         1.2, 1.4,  240,  300,  0.3f,   0.2f },
                                     { "mobilenetv1",       "mbv1",   &mobilenetv1,  1.0, 1.0,  224,  224,  0.001f, 0.0f },
                                     { "mobilenetv2",       "mbv2",   &mobilenetv2,  1.0, 1.0,  224,  224,  0.2f,   0.0f },
                                     { "resnet50",          "r50",    &resnet50,     1.0, 1.0,  224,  224,  0.0f,   0.0f },
                                     { "resnet50_v1",       "r50v1",  &resnet50_v1,  1.0, 1.0,  224,  224,  0.0f,   0.0f } };

const en_model_row *en_model_row_at(int i) { return i >= 0 && i < COUNT(rows) ? &rows[i] : NULL; }

en_status en_model_row_find(const char *name, const en_model_row **out)
{
    *out = NULL;
    en_nearest nearest = { .typed = name };
    for (int i = 0; i < COUNT(rows); i++) {                   /* distance 0: equal but for case, '-' and '_' */
        if (en_edit_distance(name, rows[i].name) == 0 || en_edit_distance(name, rows[i].alias) == 0) *out = &rows[i];
        en_nearest_offer(&nearest, rows[i].name);
        if (strlen(name) > 2) en_nearest_offer(&nearest, rows[i].alias);       /* b9 is as near to b0 as to b8 */
    }
    const char *best = en_nearest_best(&nearest);
    EN_REQUIRE(*out || !best, EN_EUSAGE, "there is no model `%s`; did you mean %s? (`effnet describe --list` shows all)", name, best);
    EN_REQUIRE(*out, EN_EUSAGE, "there is no model `%s`; `effnet describe --list` shows all, %s to %s", name, rows[0].name,
               rows[COUNT(rows) - 1].name);
    return EN_OK;
}

/* The references' rounding (efficientnet_model.py round_filters), in double: single precision can flip the floor. */
int en_round_channels(double c, double width, bool ninety_percent_rule)
{
    const double x = c * width;
    int n = (int)floor((x + 4) / 8) * 8;
    if (n < 8) n = 8;
    if (ninety_percent_rule && n < 0.9 * x) n += 8;
    return n;
}

int en_round_repeats(int repeats, double depth) { return (int)ceil(depth * repeats); }
