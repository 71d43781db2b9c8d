/* exchange_names.c - one network, two libraries: how they call its tensors, and what they train it with.
 *
 * The names in model.h are timm's.  torchvision numbers what stands one after the other, and begins anew within a block:
 *
 *                        timm                              torchvision
 *     stem               conv_stem, bn1                    features.0.0, .1
 *     stage S, block i   blocks.S.i                        features.(S+1).i.block
 *                        its layers, in their order:       .0, .1, ...: (each convolution .0, its batch norm .1)
 *                        se.conv_reduce, se.conv_expand    .k.fc1, .k.fc2
 *     head               conv_head, bn2                    features.(stages+1).0, .1
 *     classifier         classifier                        classifier.1
 *
 * MobileNetV2 is numbered in another way (features.b+1.conv, and the projection without a pair of its own); of ResNet both have
 * the same names. */
#include "trainer/exchange.h"

#include <stdio.h>
#include <string.h>

const char *en_keys_name(en_keys keys) { return keys == EN_KEYS_TIMM ? "timm" : "torchvision"; }

static bool starts(const char *text, const char *with) { return strncmp(text, with, strlen(with)) == 0; }
static bool is_mobilenetv2(const en_model *m) { return starts(m->row->name, "mobilenetv2"); }

/* ---- names -------------------------------------------------------------------------------------------------------------- */

/* Where tensor t stands in its block: the number of its layer, counted over expand, spatial, SE, project, and what it is there. */
typedef enum { CONV, NORM, SE_REDUCE, SE_EXPAND } part;

static bool of_norm(const en_bn_ref *n, int t) { return n->gamma >= 0 && (t == n->gamma || t == n->beta || t == n->mean || t == n->var); }

static bool find_in_block(const en_block *k, int t, int *layer, part *what)
{
    *layer = 0;
    if (k->w_expand >= 0) {
        *what = t == k->w_expand ? CONV : NORM;
        if (t == k->w_expand || of_norm(&k->bn_expand, t)) return true;
        ++*layer;
    }
    *what = t == k->w_spatial ? CONV : NORM;
    if (t == k->w_spatial || of_norm(&k->bn_spatial, t)) return true;
    ++*layer;
    if (k->w_se_reduce >= 0) {
        *what = t == k->w_se_reduce || t == k->b_se_reduce ? SE_REDUCE : SE_EXPAND;
        if (*what == SE_REDUCE || t == k->w_se_expand || t == k->b_se_expand) return true;
        ++*layer;
    }
    *what = t == k->w_project ? CONV : NORM;
    return k->w_project >= 0 && (t == k->w_project || of_norm(&k->bn_project, t));
}

static const char *last_word(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot ? dot + 1 : name;
}

static int stages_of(const en_model *m) { return m->blocks[m->n_blocks - 1].stage + 1; }

static void torchvision_key(const en_model *m, int i, char key[EN_KEY_SIZE])
{
    const char *word = last_word(m->tensors[i].name);
    const bool mobile = is_mobilenetv2(m);
    const int head = mobile ? m->n_blocks + 1 : stages_of(m) + 1;
    if (i == m->stem.weight) snprintf(key, EN_KEY_SIZE, "features.0.0.%s", word);
    else if (of_norm(&m->stem.bn, i)) snprintf(key, EN_KEY_SIZE, "features.0.1.%s", word);
    else if (i == m->head.weight) snprintf(key, EN_KEY_SIZE, "features.%d.0.%s", head, word);
    else if (of_norm(&m->head.bn, i)) snprintf(key, EN_KEY_SIZE, "features.%d.1.%s", head, word);
    else if (i == m->head.fc_weight || i == m->head.fc_bias) snprintf(key, EN_KEY_SIZE, "classifier.1.%s", word);
    for (int b = 0, first = 0; b < m->n_blocks; b++) {
        const en_block *k = &m->blocks[b];
        if (b == 0 || k->stage != m->blocks[b - 1].stage) first = b;
        int layer;
        part what;
        if (!find_in_block(k, i, &layer, &what)) continue;
        const bool projects = i == k->w_project || of_norm(&k->bn_project, i);
        if (mobile && projects) snprintf(key, EN_KEY_SIZE, "features.%d.conv.%d.%s", b + 1, layer + (what == NORM), word);
        else if (mobile) snprintf(key, EN_KEY_SIZE, "features.%d.conv.%d.%d.%s", b + 1, layer, what, word);
        else if (what >= SE_REDUCE) snprintf(key, EN_KEY_SIZE, "features.%d.%d.block.%d.fc%d.%s", k->stage + 1, b - first, layer, what - SE_REDUCE + 1, word);
        else snprintf(key, EN_KEY_SIZE, "features.%d.%d.block.%d.%d.%s", k->stage + 1, b - first, layer, what, word);
        return;
    }
}

en_status en_key_of(const en_model *m, int i, en_keys keys, char key[EN_KEY_SIZE])
{
    const bool resnet = starts(m->row->name, "resnet");
    EN_REQUIRE(keys == EN_KEYS_TIMM || resnet || starts(m->row->name, "efficientnet") || is_mobilenetv2(m), EN_ENOTSUP,
               "torchvision has no %s: take timm's names", m->row->name);
    if (keys == EN_KEYS_TIMM || resnet) snprintf(key, EN_KEY_SIZE, "%s", m->tensors[i].name);
    else torchvision_key(m, i, key);
    return EN_OK;
}

/* ---- what they train it with --------------------------------------------------------------------------------------------- */

en_variant en_variant_of(const en_model_row *row, en_keys keys)
{
    const en_arch *a = row->arch;
    const bool small = starts(row->name, "efficientnet_b") && row->name[14] <= '4', v2 = starts(row->name, "efficientnetv2");
    en_variant v = { a->bn_eps, a->bn_momentum, a->same_padding ? EN_PADDING_SAME : EN_PADDING_SYMMETRIC, EN_NORMALISE_IMAGENET, EN_EVAL_CROP_OWN };
    if (keys == EN_KEYS_TIMM && a->normalise == EN_NORMALISE_HALF) v.normalise = EN_NORMALISE_UNIT;
    if (keys == EN_KEYS_TIMM || !a->same_padding) return v;
    if (strcmp(row->name, "efficientnetv2_l") == 0) v.normalise = EN_NORMALISE_UNIT;
    v.padding = EN_PADDING_SYMMETRIC;
    v.bn_eps = small ? 1e-5f : 1e-3f;
    v.bn_momentum = small || v2 ? 0.1f : 0.01f;
    return v;
}
