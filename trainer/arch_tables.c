/* arch_tables.c - the networks, as the papers print them.
 *
 * A network is two rows: its base (stages before scaling) and its coefficients (how wide, deep and large).  Building it
 * is trainer/model.c's; adding one is adding rows here.
 *
 * EfficientNet: arXiv:1905.11946, table 1 (base) and the reference's efficientnet_builder.py (coefficients). */
#include "trainer/model.h"
#include "trainer/nearest.h"

#include <math.h>
#include <string.h>

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

/*                                                    block          k  s  e  channels  repeats  se   */
static const en_stage efficientnet_stages[] = { { EN_BLOCK_MBCONV,   3, 1, 1,    16,       1,   0.25 },
                                                { EN_BLOCK_MBCONV,   3, 2, 6,    24,       2,   0.25 },
                                                { EN_BLOCK_MBCONV,   5, 2, 6,    40,       2,   0.25 },
                                                { EN_BLOCK_MBCONV,   3, 2, 6,    80,       3,   0.25 },
                                                { EN_BLOCK_MBCONV,   5, 1, 6,   112,       3,   0.25 },
                                                { EN_BLOCK_MBCONV,   5, 2, 6,   192,       4,   0.25 },
                                                { EN_BLOCK_MBCONV,   3, 1, 6,   320,       1,   0.25 } };

/* Momentum 0.99 in TensorFlow's sense; running_var takes the biased variance, as the reference's TPU path does. */
static const en_arch efficientnet = {
    .name = "efficientnet",
    .stem_channels = 32, .stem_kernel = 3, .stem_stride = 2, .head_channels = 1280,
    .stages = efficientnet_stages, .n_stages = COUNT(efficientnet_stages),
    .act = EN_ACT_SILU, .ninety_percent_rule = true, .same_padding = true,
    .bn_eps = 1e-3f, .bn_momentum = 0.01f, .bn_unbiased_running = false,
};

/*                                         name             alias   base         width depth  res  dropout drop path */
static const en_model_row rows[] = { { "efficientnet_b0", "b0", &efficientnet,   1.0, 1.0,  224,   0.2f,   0.2f },
                                     { "efficientnet_b1", "b1", &efficientnet,   1.0, 1.1,  240,   0.2f,   0.2f },
                                     { "efficientnet_b2", "b2", &efficientnet,   1.1, 1.2,  260,   0.3f,   0.2f },
                                     { "efficientnet_b3", "b3", &efficientnet,   1.2, 1.4,  300,   0.3f,   0.2f },
                                     { "efficientnet_b4", "b4", &efficientnet,   1.4, 1.8,  380,   0.4f,   0.2f },
                                     { "efficientnet_b5", "b5", &efficientnet,   1.6, 2.2,  456,   0.4f,   0.2f },
                                     { "efficientnet_b6", "b6", &efficientnet,   1.8, 2.6,  528,   0.5f,   0.2f },
                                     { "efficientnet_b7", "b7", &efficientnet,   2.0, 3.1,  600,   0.5f,   0.2f },
                                     { "efficientnet_b8", "b8", &efficientnet,   2.2, 3.6,  672,   0.5f,   0.2f },
                                     { "efficientnet_l2", "l2", &efficientnet,   4.3, 5.3,  800,   0.5f,   0.2f } };

const en_model_row *en_model_row_at(int i) { return i >= 0 && i < COUNT(rows) ? &rows[i] : NULL; }

en_status en_model_row_find(const char *name, const en_model_row **out)
{
    *out = NULL;
    en_nearest nearest = { .typed = name };
    for (int i = 0; i < COUNT(rows); i++) {                   /* distance 0: equal but for case, '-' and '_' */
        if (en_edit_distance(name, rows[i].name) == 0 || en_edit_distance(name, rows[i].alias) == 0) *out = &rows[i];
        en_nearest_offer(&nearest, rows[i].name);
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
