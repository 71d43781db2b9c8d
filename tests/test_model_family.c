/* test_model_family.c - EfficientNetV2, MobileNetV1 and V2, ResNet-50: shapes, names, conventions and layouts that only they have.
 * Their counts are compared in test_model.c, with everybody's. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "trainer/model.h"

static const en_model_overrides own = { .dropout = -1, .drop_path = -1 };

static en_model *build(const char *name, const en_model_overrides *o, int align)
{
    const en_model_row *row;
    en_model *m;
    if (en_model_row_find(name, &row) != EN_OK || en_model_build(row, o, align, &m) != EN_OK) fail_msg("%s", en_error_text());
    return m;
}

/* ---- shapes --------------------------------------------------------------------------------------------------------------- */

/* spec 1.9 (google/automl's effnetv2_configs.py, scaled) and, of the others, their papers' tables */
static void widths_and_repeats_equal_the_tables(void **state)
{
    (void)state;
    static const struct { const char *name; int stem, channels[7], head, repeats[7], blocks; } want[] = {
        { "v2b0",        32, { 16, 32, 48, 96, 112, 192 },        1280, { 1, 2, 2, 3, 5, 8 },          21 },
        { "v2b1",        32, { 16, 32, 48, 96, 112, 192 },        1280, { 2, 3, 3, 4, 6, 9 },          27 },
        { "v2b2",        32, { 16, 32, 56, 104, 120, 208 },       1408, { 2, 3, 3, 4, 6, 10 },         28 },
        { "v2b3",        40, { 16, 40, 56, 112, 136, 232 },       1536, { 2, 3, 3, 5, 7, 12 },         32 },
        { "v2s",         24, { 24, 48, 64, 128, 160, 256 },       1280, { 2, 4, 4, 6, 9, 15 },         40 },
        { "v2m",         24, { 24, 48, 80, 160, 176, 304, 512 },  1280, { 3, 5, 5, 7, 14, 18, 5 },     57 },
        { "v2l",         32, { 32, 64, 96, 192, 224, 384, 640 },  1280, { 4, 7, 7, 10, 19, 25, 7 },    79 },
        { "v2xl",        32, { 32, 64, 96, 192, 256, 512, 640 },  1280, { 4, 8, 8, 16, 24, 32, 8 },   100 },
        { "mobilenetv1", 32, { 64, 128, 256, 512, 1024 },         1024, { 1, 2, 2, 6, 2 },             13 },
        { "mobilenetv2", 32, { 16, 24, 32, 64, 96, 160, 320 },    1280, { 1, 2, 3, 4, 3, 3, 1 },       17 },
        { "resnet50",    64, { 256, 512, 1024, 2048 },            2048, { 3, 4, 6, 3 },                16 } };
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        en_model *m = build(want[i].name, &own, 8);
        int repeats[7] = { 0 };
        assert_int_equal(m->stem.oc, want[i].stem);
        assert_int_equal(m->head.co, want[i].head);
        assert_int_equal(m->n_blocks, want[i].blocks);
        for (int b = 0; b < m->n_blocks; b++) {
            repeats[m->blocks[b].stage]++;
            assert_int_equal(m->blocks[b].co, want[i].channels[m->blocks[b].stage]);
        }
        assert_memory_equal(repeats, want[i].repeats, sizeof repeats);
        en_model_free(m);
    }
}

/* Which convolutions a block of each kind has, how wide they are, what is added and what is activated: the table of model.h. */
static void blocks_are_made_as_their_kinds_say(void **state)
{
    (void)state;
    static const char *const names[] = { "b0", "v2b2", "v2s", "mobilenetv1", "mobilenetv2", "resnet50", "resnet50_v1" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        en_model *m = build(names[i], &own, 16);
        int64_t h = m->pool.oh, c = m->stem.oc;
        for (int b = 0; b < m->n_blocks; b++) {
            const en_block *k = &m->blocks[b];
            const en_stage *st = &m->row->arch->stages[k->stage];
            const int64_t *spatial = m->tensors[k->w_spatial].shape;
            const bool same = k->expand_stride * k->stride == 1 && k->ci == k->co, first = b == 0 || m->blocks[b - 1].stage != k->stage;
            assert_int_equal(k->kind, st->kind);
            assert_int_equal(k->expand_stride * k->stride, first ? st->stride : 1);
            assert_int_equal(k->h, h);
            assert_int_equal(k->ci, c);
            assert_int_equal(k->oh, (h + k->expand_stride * k->stride - 1) / (k->expand_stride * k->stride));
            assert_int_equal(spatial[0], k->mid);
            assert_int_equal(spatial[2], k->kernel);
            assert_int_equal(k->expand, k->w_expand >= 0);
            assert_int_equal(k->w_project >= 0, k->bn_project.gamma >= 0);
            assert_int_equal(k->q > 0, k->w_se_reduce >= 0);
            if (k->q) assert_int_equal(k->q, k->ci / 4);
            switch (k->kind) {
            case EN_BLOCK_MBCONV:
                assert_true(en_block_is_depthwise(k) && spatial[1] == 1 && k->w_project >= 0 && k->mid == st->expand * k->ci);
                assert_true(k->expand == (st->expand != 1) && k->skip == same && k->act_project == EN_ACT_NONE);
                break;
            case EN_BLOCK_DSCONV:
                assert_true(en_block_is_depthwise(k) && spatial[1] == 1 && k->mid == k->ci && !k->expand && !k->skip && k->act_project == m->act);
                break;
            case EN_BLOCK_FUSED:
                assert_true(!en_block_is_depthwise(k) && spatial[1] == k->ci && !k->expand && k->skip == same);
                if (st->expand == 1) assert_true(k->w_project < 0 && k->mid == k->co);
                else assert_true(k->w_project >= 0 && k->mid == st->expand * k->ci);
                break;
            case EN_BLOCK_BOTTLENECK:
                assert_true(spatial[1] == k->mid && k->co == 4 * k->mid && k->expand && k->skip == same && k->act_out == m->act);
                assert_int_equal(k->w_shortcut >= 0, first);
                if (first) assert_true(m->tensors[k->w_shortcut].shape[0] == k->co && m->tensors[k->w_shortcut].shape[1] == k->ci);
                break;
            }
            if (k->kind != EN_BLOCK_BOTTLENECK) assert_true(k->w_shortcut == -1 && k->act_out == EN_ACT_NONE);
            h = k->oh;
            c = k->co;
        }
        assert_int_equal(m->head.h, h);
        en_model_free(m);
    }
}

/* 224 -> 112 by the stem -> 56 by its pool -> 56, 28, 14, 7.  v1.5 strides in the 3x3, v1 in the 1x1 before it. */
static void resnet_strides_where_its_variant_says(void **state)
{
    (void)state;
    for (int v1 = 0; v1 < 2; v1++) {
        en_model *m = build(v1 ? "resnet50_v1" : "resnet50", &own, 16);
        assert_true(m->stem.kernel == 7 && m->stem.pad_h == 3 && m->stem.oh == 112);
        assert_true(m->pool.kernel == 3 && m->pool.stride == 2 && m->pool.pad == 1 && m->pool.oh == 56);
        const en_block *k = &m->blocks[3];
        assert_string_equal(k->name, "layer2.0");
        assert_true(k->h == 56 && k->eh == (v1 ? 28 : 56) && k->oh == 28 && k->expand_stride == (v1 ? 2 : 1) && k->stride == (v1 ? 1 : 2));
        assert_true(m->head.weight == -1 && m->head.bn.gamma == -1 && m->head.h == 7);
        en_model_free(m);
    }
}

/* torch's (k-1)/2 zeros before, and as many outputs as its floor((in + 2p - k)/s) + 1, at even and odd sizes */
static void symmetric_padding_is_pytorchs(void **state)
{
    (void)state;
    for (int side = 32; side < 132; side += 3) {
        en_model_overrides o = own;
        o.resolution = side;
        en_model *m = build("mobilenetv2", &o, 8);
        int64_t h = side;
        assert_int_equal(m->stem.pad_h, 1);
        assert_int_equal(m->stem.oh, (h + 2 - 3) / 2 + 1);
        for (int b = 0; b < m->n_blocks; b++) {
            const en_block *k = &m->blocks[b];
            assert_int_equal(k->pad_h, 1);
            assert_int_equal(k->oh, (k->h + 2 - 3) / k->stride + 1);
        }
        en_model_free(m);
    }
}

/* ---- conventions ----------------------------------------------------------------------------------------------------------- */

static void conventions_are_those_of_the_references(void **state)
{
    (void)state;
    static const struct { const char *name; en_act act; float eps, momentum, dropout, drop_path; bool same, unbiased; int train, eval; } want[] = {
        { "b7",          EN_ACT_SILU,  1e-3f, 0.01f, 0.5f, 0.2f,   true,  false, 600, 600 },
        { "v2s",         EN_ACT_SILU,  1e-3f, 0.1f,  0.2f, 0.2f,   true,  false, 300, 384 },
        { "v2m",         EN_ACT_SILU,  1e-3f, 0.1f,  0.3f, 0.2f,   true,  false, 384, 480 },
        { "v2xl",        EN_ACT_SILU,  1e-3f, 0.1f,  0.4f, 0.2f,   true,  false, 384, 512 },
        { "v2b3",        EN_ACT_SILU,  1e-3f, 0.1f,  0.3f, 0.2f,   true,  false, 240, 300 },
        { "mobilenetv1", EN_ACT_RELU6, 1e-5f, 0.1f,  1e-3f, 0,     false, true,  224, 224 },
        { "mobilenetv2", EN_ACT_RELU6, 1e-5f, 0.1f,  0.2f, 0,      false, true,  224, 224 },
        { "resnet50",    EN_ACT_RELU,  1e-5f, 0.1f,  0,    0,      false, true,  224, 224 } };
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        en_model *m = build(want[i].name, &own, 8);
        assert_true(m->act == want[i].act && m->bn_eps == want[i].eps && m->bn_momentum == want[i].momentum);
        assert_true(m->same_padding == want[i].same && m->bn_unbiased_running == want[i].unbiased);
        assert_true(m->dropout == want[i].dropout && m->drop_path == want[i].drop_path);
        assert_true(m->resolution == want[i].train && m->row->eval_resolution == want[i].eval);
        assert_int_equal(en_model_eval_side(m->row, want[i].train), want[i].eval);
        assert_int_equal(en_model_eval_side(m->row, 64), 64);          /* other images than its authors': the same for both */
        en_model_free(m);
    }
    en_model_overrides o = own;
    o.evaluation = true;
    en_model *m = build("v2s", &o, 8);
    assert_int_equal(m->resolution, 384);
    en_model_free(m);
}

/* Weights of another framework: torchvision pads B0 symmetrically and has epsilon 1e-5. */
static void eps_and_padding_can_be_anothers(void **state)
{
    (void)state;
    en_model_overrides o = own;
    o.bn_eps = 1e-5f;
    o.padding = EN_PADDING_SYMMETRIC;
    en_model *m = build("b0", &o, 8), *same = build("b0", &own, 8);
    assert_true(m->bn_eps == 1e-5f && !m->same_padding && same->same_padding);
    assert_true(m->stem.pad_h == 1 && same->stem.pad_h == 0);
    for (int b = 0; b < m->n_blocks; b++) assert_int_equal(m->blocks[b].pad_h, (m->blocks[b].kernel - 1) / 2);
    assert_int_equal(m->macs, same->macs);
    en_model_free(m);
    en_model_free(same);
    o.padding = EN_PADDING_SAME;
    m = build("resnet50", &o, 8);
    assert_true(m->stem.pad_h == 2 && m->pool.pad == 0);               /* at an even side: spec 1.5 */
    en_model_free(m);
}

static void only_v1s_recipe_decays_biases(void **state)
{
    (void)state;
    static const char *const names[] = { "b0", "v2b0", "mobilenetv2", "resnet50" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        en_model *m = build(names[i], &own, 8);
        int64_t decayed = 0, weights = 0, biases = m->classes;
        for (int t = 0; t < m->n_tensors; t++) {
            const en_tensor *e = &m->tensors[t];
            if (e->arena != EN_ARENA_PARAMS) continue;
            decayed += e->decay ? en_tensor_count(e) : 0;
            weights += e->ndim > 1 ? en_tensor_count(e) : 0;
        }
        for (int b = 0; b < m->n_blocks; b++) biases += m->blocks[b].q ? m->blocks[b].q + m->blocks[b].mid : 0;
        assert_int_equal(decayed, weights + (strcmp(names[i], "v2b0") == 0 ? 0 : biases));
        en_model_free(m);
    }
}

/* p_b = 1 - (1 - S)*b/B wherever something is added: in a ResNet everywhere, under a projected shortcut too. */
static void stochastic_depth_is_where_something_is_added(void **state)
{
    (void)state;
    static const char *const names[] = { "v2b1", "mobilenetv1", "mobilenetv2", "resnet50" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        en_model_overrides o = own;
        o.drop_path = 0.3f;
        en_model *m = build(names[i], &o, 8);
        for (int b = 0; b < m->n_blocks; b++) {
            const en_block *k = &m->blocks[b];
            const bool adds = k->skip || k->w_shortcut >= 0;
            assert_int_equal(adds, strcmp(names[i], "resnet50") == 0 || (k->stride == 1 && k->ci == k->co && k->kind != EN_BLOCK_DSCONV));
            assert_true(fabs(k->drop_path - (adds ? 0.3 * b / m->n_blocks : 0)) < 1e-7);
        }
        en_model_free(m);
    }
}

/* ---- scaling ----------------------------------------------------------------------------------------------------------------- */

static void any_base_scales_by_any_bases_of_phi(void **state)
{
    (void)state;
    en_model_overrides o = own;
    o.phi = 2, o.alpha = 1.3, o.beta = 1.05, o.gamma = 1.1, o.scale = 0.5;
    en_model *m = build("mobilenetv2", &o, 8);
    assert_true(fabs(m->depth - 1.69) < 1e-12 && fabs(m->width - 1.1025) < 1e-12);
    assert_int_equal(m->resolution, 136);                               /* round(112 * 1.21) = round(135.52) */
    assert_int_equal(m->n_blocks, 2 + 4 + 6 + 7 + 6 + 6 + 2);           /* ceil(1.69 r) */
    en_model_free(m);
    o = own;
    o.scale = 1.15;
    m = build("b4", &o, 8);                                             /* 380 * 1.15 is 436.99999999999994 in binary */
    assert_int_equal(m->resolution, 437);
    en_model_free(m);
    o = own;
    o.width = 0.5;
    m = build("mobilenetv2", &o, 8);                                    /* narrower, but not its head: torchvision, timm, Keras */
    assert_true(m->head.co == 1280 && m->stem.oc == 16 && m->blocks[16].co == 160);
    en_model_free(m);
}

/* Every model at small, odd and fractional scales builds, and every window of every layer meets its input. */
static void every_model_builds_at_every_scale(void **state)
{
    (void)state;
    for (int i = 0; en_model_row_at(i); i++)
        for (int k = 0; k < 6; k++) {
            en_model_overrides o = own;
            o.width = (double[]){ 0.1, 0.25, 0.6, 1.3, 2, 0.05 }[k];
            o.depth = (double[]){ 0.1, 2, 0.3, 1.01, 0.5, 3 }[k];
            o.resolution = (int[]){ 32, 33, 47, 64, 97, 224 }[k];
            en_model *m = build(en_model_row_at(i)->name, &o, 16);
            for (int b = 0; b < m->n_blocks; b++) {
                const en_block *e = &m->blocks[b];
                assert_true(e->ci >= 8 && e->mid >= 8 && e->co >= 8 && e->oh >= 1);
                assert_true(e->pad_h < e->kernel && (e->oh - 1) * e->stride - e->pad_h < e->eh);
            }
            en_model_free(m);
        }
}

/* ---- names ------------------------------------------------------------------------------------------------------------------- */

/* How many keys a state dict has, num_batches_tracked counted: timm's for V2, torchvision's for the others (Python:
 * len(torchvision.models.resnet50().state_dict()) is 320, of mobilenet_v2 314). */
static void key_totals_equal_the_references(void **state)
{
    (void)state;
    static const struct { const char *name; int keys; } want[] = { { "v2s", 782 },         { "v2m", 1120 },    { "v2l", 1548 },
                                                                   { "mobilenetv2", 314 }, { "resnet50", 320 } };
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        en_model *m = build(want[i].name, &own, 8);
        int bn = 0;
        for (int t = 0; t < m->n_tensors; t++) bn += strstr(m->tensors[t].name, "running_var") != NULL;
        assert_int_equal(m->n_tensors + bn, want[i].keys);
        en_model_free(m);
    }
}

/* The tensors of one block, in their order, without those of its batch norms. */
static void layers_are_called_as_timm_calls_them(void **state)
{
    (void)state;
    static const struct { const char *model, *block, *keys; } want[] = {
        { "v2s",         "blocks.0.1", "conv bn1" },
        { "v2s",         "blocks.1.0", "conv_exp bn1 conv_pwl bn2" },
        { "v2s",         "blocks.3.5", "conv_pw bn1 conv_dw bn2 se.conv_reduce se.conv_reduce se.conv_expand se.conv_expand conv_pwl bn3" },
        { "mobilenetv1", "blocks.4.1", "conv_dw bn1 conv_pw bn2" },
        { "mobilenetv2", "blocks.0.0", "conv_dw bn1 conv_pw bn2" },
        { "mobilenetv2", "blocks.6.0", "conv_pw bn1 conv_dw bn2 conv_pwl bn3" },
        { "resnet50",    "layer1.0",   "conv1 bn1 conv2 bn2 conv3 bn3 downsample.0 downsample.1" },
        { "resnet50",    "layer4.2",   "conv1 bn1 conv2 bn2 conv3 bn3" } };
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        en_model *m = build(want[i].model, &own, 8);
        char have[256] = "";
        const size_t prefix = strlen(want[i].block);
        for (int t = 0; t < m->n_tensors; t++) {
            const char *name = m->tensors[t].name;
            if (strncmp(name, want[i].block, prefix) != 0 || name[prefix] != '.') continue;
            const char *last = strrchr(name, '.');
            if (m->tensors[t].ndim == 1 && strcmp(last, ".bias") != 0) continue;        /* gamma and the statistics */
            if (*have) strcat(have, " ");
            strncat(have, name + prefix + 1, (size_t)(last - name) - prefix - 1);
        }
        assert_string_equal(have, want[i].keys);
        en_model_free(m);
    }
    static const struct { const char *model, *first, *last; } ends[] = { { "v2s", "conv_stem.weight", "classifier.bias" },
                                                                         { "mobilenetv1", "conv_stem.weight", "classifier.bias" },
                                                                         { "resnet50", "conv1.weight", "fc.bias" } };
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        en_model *m = build(ends[i].model, &own, 8);
        assert_string_equal(m->tensors[0].name, ends[i].first);
        assert_string_equal(m->tensors[1].name, "bn1.weight");
        assert_string_equal(m->tensors[m->n_tensors - 1].name, ends[i].last);
        en_model_free(m);
    }
}

/* All of V2-S, as timm instantiates it; the list lies beside the test data and is no part of the repository. */
static void v2_s_has_timms_keys_and_shapes_in_timms_order(void **state)
{
    (void)state;
    FILE *f = fopen(EN_TEST_DATA "/../spec/tf_efficientnetv2_s_timm_torchvision_keys.csv", "r");
    if (!f) {
        print_message("    no list of keys beside %s\n", EN_TEST_DATA);
        skip();
    }
    en_model *m = build("v2s", &own, 16);
    char line[256], timm[100], torchvision[100], shape[40];
    int i = 0;
    assert_non_null(fgets(line, sizeof line, f));
    while (fgets(line, sizeof line, f)) {
        assert_int_equal(sscanf(line, "%99[^,],%99[^,],%39[^\r\n]", timm, torchvision, shape), 3);
        if (strcmp(shape, "scalar") == 0) continue;
        assert_true(i < m->n_tensors);
        const en_tensor *t = &m->tensors[i++];
        char have[40];
        int n = 0;
        for (int d = 0; d < t->ndim; d++) n += snprintf(have + n, sizeof have - (size_t)n, d ? "x%d" : "%d", (int)t->shape[d]);
        assert_string_equal(t->name, timm);
        assert_string_equal(have, shape);
    }
    fclose(f);
    assert_int_equal(i, m->n_tensors);
    en_model_free(m);
}

/* ---- arenas and initial values -------------------------------------------------------------------------------------------- */

/* No gap and no overlap, from the last tensor to the first; and what is scattered is gathered again, beside zeros only. */
static void tensors_tile_the_arenas_and_come_back(void **state)
{
    (void)state;
    static const char *const names[] = { "v2b0", "mobilenetv1", "mobilenetv2", "resnet50" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        en_model_overrides o = own;
        o.width = 0.25, o.classes = 10;
        en_model *m = build(names[i], &o, 16);
        int64_t end[2] = { 0, 0 }, largest = 0;
        for (int t = m->n_tensors - 1; t >= 0; t--) {
            const en_tensor *e = &m->tensors[t];
            assert_int_equal(e->offset, end[e->arena]);
            end[e->arena] += e->elems;
            if (e->elems > largest) largest = e->elems;
        }
        assert_true(end[EN_ARENA_PARAMS] == m->param_elems && end[EN_ARENA_STATS] == m->stat_elems);
        float *arena = calloc((size_t)m->param_elems, sizeof *arena), *logical = calloc((size_t)largest, sizeof *logical),
              *back = calloc((size_t)largest, sizeof *back);
        for (int t = 0; t < m->n_tensors; t++) {
            const en_tensor *e = &m->tensors[t];
            const int64_t n = en_tensor_count(e);
            int64_t other = 0;
            for (int64_t j = 0; j < n; j++) logical[j] = (float)(j + 1);
            en_tensor_scatter(e, logical, arena);
            en_tensor_gather(e, arena, back);
            assert_memory_equal(logical, back, (size_t)n * sizeof *back);
            for (int64_t j = 0; j < e->elems; j++) other += arena[e->offset + j] != 0;
            assert_int_equal(other, n);
        }
        free(arena);
        free(logical);
        free(back);
        en_model_free(m);
    }
}

/* A dense convolution is the matrix (k*k*I_p, O_p): the rows of a tap beside each other, output channels innermost. */
static void dense_convolutions_lie_as_a_matrix(void **state)
{
    (void)state;
    en_model *m = build("v2s", &own, 32);
    const en_block *k = &m->blocks[2];
    const en_tensor *t = &m->tensors[k->w_spatial];
    assert_string_equal(t->name, "blocks.1.0.conv_exp.weight");
    assert_true(k->ci == 24 && k->ci_p == 32 && k->mid == 96 && k->mid_p == 96);
    assert_int_equal(t->elems, 9 * 32 * 96);
    const int64_t o = 50, i = 23, a = 2, b = 1;
    assert_int_equal(o * t->stride[0] + i * t->stride[1] + a * t->stride[2] + b * t->stride[3], ((a * 3 + b) * 32 + i) * 96 + o);
    en_model_free(m);
}

/* Variance of n normal draws within 5 standard errors, sigma^2*sqrt(2/n), of 2/(k*k*O) (dense: the reference's formula and
 * He's for outputs) or of 2/(k*k) (depthwise); a fixed seed, about 100 tensors: a right generator fails with probability 1e-4. */
static void initial_values_have_their_variance(void **state)
{
    (void)state;
    static const char *const names[] = { "v2b0", "resnet50" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        en_model_overrides o = own;
        o.width = 0.5;
        en_model *m = build(names[i], &o, 8);
        float *params = malloc((size_t)m->param_elems * sizeof *params), *stats = malloc((size_t)m->stat_elems * sizeof *stats);
        float *v = malloc((size_t)m->param_elems * sizeof *v);
        en_model_init(m, 1, params, stats);
        for (int t = 0; t < m->n_tensors; t++) {
            const en_tensor *e = &m->tensors[t];
            if (e->init != EN_INIT_CONV_NORMAL) continue;
            const double n = (double)en_tensor_count(e), fan = strstr(e->name, "conv_dw") ? 1 : (double)e->shape[0];
            const double variance = 2 / ((double)(e->shape[2] * e->shape[3]) * fan);
            double square = 0;
            en_tensor_gather(e, params, v);
            for (int64_t j = 0; j < (int64_t)n; j++) square += (double)v[j] * v[j];
            if (fabs(square / n / variance - 1) > 5 * sqrt(2 / n)) fail_msg("%s: variance %g, want %g over %g draws", e->name, square / n, variance, n);
        }
        free(params);
        free(stats);
        free(v);
        en_model_free(m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(widths_and_repeats_equal_the_tables),
        cmocka_unit_test(blocks_are_made_as_their_kinds_say),
        cmocka_unit_test(resnet_strides_where_its_variant_says),
        cmocka_unit_test(symmetric_padding_is_pytorchs),
        cmocka_unit_test(conventions_are_those_of_the_references),
        cmocka_unit_test(eps_and_padding_can_be_anothers),
        cmocka_unit_test(only_v1s_recipe_decays_biases),
        cmocka_unit_test(stochastic_depth_is_where_something_is_added),
        cmocka_unit_test(any_base_scales_by_any_bases_of_phi),
        cmocka_unit_test(every_model_builds_at_every_scale),
        cmocka_unit_test(key_totals_equal_the_references),
        cmocka_unit_test(layers_are_called_as_timm_calls_them),
        cmocka_unit_test(v2_s_has_timms_keys_and_shapes_in_timms_order),
        cmocka_unit_test(tensors_tile_the_arenas_and_come_back),
        cmocka_unit_test(dense_convolutions_lie_as_a_matrix),
        cmocka_unit_test(initial_values_have_their_variance),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
