/* test_model.c - built models against published integers and timm's keys, and the promises that model.h makes to the
 * passes, the optimizer and the checkpoint. */
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
    assert_int_equal(en_model_row_find(name, &row), EN_OK);
    if (en_model_build(row, o, align, &m) != EN_OK) fail_msg("%s", en_error_text());
    return m;
}

static FILE *golden(const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", EN_GOLDEN_DIR, name);
    FILE *f = fopen(path, "r");
    if (!f) fail_msg("cannot open %s", path);
    return f;
}

/* ---- counts --------------------------------------------------------------------------------------------------------- */

/* "efficientnet-b0-d1.4-w1.2-r1.3": a model and overrides.  ResNet-50 in the table bears the number of its variant. */
static const char *parse_case(char *name, int resolution, en_model_overrides *o)
{
    static const char v1[] = "resnet50-v1", v1_5[] = "resnet50-v1.5";
    const bool first = strcmp(name, v1) == 0, second = strncmp(name, v1_5, strlen(v1_5)) == 0;
    *o = own;
    char *part = name + (first ? strlen(v1) : second ? strlen(v1_5) : strncmp(name, "efficientnet", 12) == 0 ? strcspn(name, "-") + 1 : 0);
    for (part = strchr(part, '-'); part;) {
        char *next = strchr(part + 1, '-');
        *part = '\0';
        if (part[1] == 'd') o->depth = atof(part + 2);
        if (part[1] == 'w') o->width = atof(part + 2);
        if (part[1] == 'r') o->scale = atof(part + 2);
        part = next;
    }
    if (o->scale == 0) o->resolution = resolution;
    return first ? "resnet50_v1" : second ? "resnet50" : name;
}

static void counts_equal_the_published_integers(void **state)
{
    (void)state;
    FILE *f = golden("model_counts.csv");
    char line[256], text[64];
    int cases = 0;
    assert_non_null(fgets(line, sizeof line, f));
    while (fgets(line, sizeof line, f)) {
        int resolution;
        long long params, stats, macs;
        assert_int_equal(sscanf(line, "%63[^,],%d,%lld,%lld,%lld", text, &resolution, &params, &stats, &macs), 5);
        en_model_overrides o;
        const char *name = parse_case(text, resolution, &o);
        for (int align = 1; align <= 16; align *= 16) {             /* what is counted does not depend on padding */
            en_model *m = build(name, &o, align);
            if (m->params_trainable != params || m->params_bn_stats != stats || m->macs != macs || m->resolution != resolution)
                fail_msg("%s at %d px, want %d: params %lld, want %lld; stats %lld, want %lld; macs %lld, want %lld", m->name, m->resolution, resolution,
                         (long long)m->params_trainable, params, (long long)m->params_bn_stats, stats, (long long)m->macs, macs);
            en_model_free(m);
        }
        cases++;
    }
    fclose(f);
    assert_int_equal(cases, 46);                                    /* V1 and L2, V2 at both sizes, table 3 and figure 8 */
}

/* spec 1.3: channels of stem, stages and head, repeats, batch norms */
static void widths_and_repeats_equal_the_table(void **state)
{
    (void)state;
    static const struct { const char *name; int stem, channels[7], head, repeats[7], blocks, bn; } want[] = {
        { "b0", 32,  { 16, 24, 40, 80, 112, 192, 320 },     1280, { 1, 2, 2, 3, 3, 4, 1 },      16, 49 },
        { "b1", 32,  { 16, 24, 40, 80, 112, 192, 320 },     1280, { 2, 3, 3, 4, 4, 5, 2 },      23, 69 },
        { "b2", 32,  { 16, 24, 48, 88, 120, 208, 352 },     1408, { 2, 3, 3, 4, 4, 5, 2 },      23, 69 },
        { "b3", 40,  { 24, 32, 48, 96, 136, 232, 384 },     1536, { 2, 3, 3, 5, 5, 6, 2 },      26, 78 },
        { "b4", 48,  { 24, 32, 56, 112, 160, 272, 448 },    1792, { 2, 4, 4, 6, 6, 8, 2 },      32, 96 },
        { "b5", 48,  { 24, 40, 64, 128, 176, 304, 512 },    2048, { 3, 5, 5, 7, 7, 9, 3 },      39, 116 },
        { "b6", 56,  { 32, 40, 72, 144, 200, 344, 576 },    2304, { 3, 6, 6, 8, 8, 11, 3 },     45, 134 },
        { "b7", 64,  { 32, 48, 80, 160, 224, 384, 640 },    2560, { 4, 7, 7, 10, 10, 13, 4 },   55, 163 },
        { "b8", 72,  { 32, 56, 88, 176, 248, 424, 704 },    2816, { 4, 8, 8, 11, 11, 15, 4 },   61, 181 },
        { "l2", 136, { 72, 104, 176, 344, 480, 824, 1376 }, 5504, { 6, 11, 11, 16, 16, 22, 6 }, 88, 260 } };
    for (size_t k = 0; k < sizeof want / sizeof *want; k++) {
        en_model *m = build(want[k].name, &own, 8);
        int repeats[7] = { 0 }, bn = 2;
        assert_int_equal(m->stem.oc, want[k].stem);
        assert_int_equal(m->head.co, want[k].head);
        assert_int_equal(m->n_blocks, want[k].blocks);
        for (int b = 0; b < m->n_blocks; b++) {
            repeats[m->blocks[b].stage]++;
            bn += m->blocks[b].expand ? 3 : 2;
            assert_int_equal(m->blocks[b].co, want[k].channels[m->blocks[b].stage]);
        }
        assert_memory_equal(repeats, want[k].repeats, sizeof repeats);
        assert_int_equal(bn, want[k].bn);
        en_model_free(m);
    }
}

/* 16 channels at width 1.2 are 19.2: the one width of a released model that the 90 % rule decides */
static void rounding_follows_the_ninety_percent_rule(void **state)
{
    (void)state;
    assert_int_equal(en_round_channels(16, 1.2, true), 24);
    assert_int_equal(en_round_channels(16, 1.2, false), 16);
    assert_int_equal(en_round_channels(3, 1.0, true), 8);
    assert_int_equal(en_round_repeats(1, 1.1), 2);
    assert_int_equal(en_round_repeats(4, 1.0), 4);
}

static void phi_multiplies_depth_width_and_resolution(void **state)
{
    (void)state;
    en_model_overrides o = own;
    o.phi = 1;
    en_model *m = build("efficientnet_b0", &o, 8);
    assert_true(fabs(m->width - 1.1) < 1e-12);
    assert_true(fabs(m->depth - 1.2) < 1e-12);
    assert_int_equal(m->resolution, 258);                           /* 224 * 1.15 = 257.6 */
    assert_string_equal(m->name, "efficientnet_b0 width 1.1 depth 1.2");
    en_model_free(m);
    o.phi = 2;
    o.width = 2;
    o.resolution = 100;
    m = build("b3", &o, 8);
    assert_true(fabs(m->width - 2 * 1.21) < 1e-12);
    assert_true(fabs(m->depth - 1.4 * 1.44) < 1e-12);
    assert_int_equal(m->resolution, 132);                           /* 132.25 */
    en_model_free(m);
}

/* ---- names ------------------------------------------------------------------------------------------------------------ */

static void b0_has_timms_keys_and_shapes_in_timms_order(void **state)
{
    (void)state;
    FILE *f = golden("timm_b0_keys.csv");
    en_model *m = build("efficientnet_b0", &own, 16);
    char line[256];
    int i = 0;
    assert_non_null(fgets(line, sizeof line, f));
    while (fgets(line, sizeof line, f)) {
        if (strstr(line, "num_batches_tracked")) continue;
        assert_true(i < m->n_tensors);
        const en_tensor *t = &m->tensors[i++];
        char have[256];
        int n = snprintf(have, sizeof have, "%s,", t->name);
        for (int d = 0; d < t->ndim; d++) n += snprintf(have + n, sizeof have - (size_t)n, d ? "x%d" : "%d", (int)t->shape[d]);
        line[strcspn(line, "\r\n")] = '\0';
        assert_string_equal(have, line);
    }
    assert_int_equal(i, m->n_tensors);
    fclose(f);
    en_model_free(m);
}

static void key_totals_equal_timms(void **state)
{
    (void)state;
    static const struct { const char *name; int keys; } want[] = { { "b0", 360 }, { "b1", 508 }, { "b2", 508 }, { "b3", 574 },
                                                                   { "b4", 706 }, { "b5", 854 }, { "b6", 986 }, { "b7", 1200 } };
    for (size_t k = 0; k < sizeof want / sizeof *want; k++) {
        en_model *m = build(want[k].name, &own, 8);
        int bn = 0;
        for (int i = 0; i < m->n_tensors; i++) bn += strstr(m->tensors[i].name, "running_var") != NULL;
        assert_int_equal(m->n_tensors + bn, want[k].keys);          /* timm has num_batches_tracked besides */
        en_model_free(m);
    }
}

/* Of every index in a block or head: it names the tensor that it says, with the shape that it implies. */
static void indices_name_their_tensors(void **state)
{
    (void)state;
    en_model *m = build("b1", &own, 16);
    const struct { int index; const char *suffix; } outside[] = {
        { m->stem.weight, "conv_stem.weight" }, { m->stem.bn.gamma, "bn1.weight" },   { m->stem.bn.var, "bn1.running_var" },
        { m->head.weight, "conv_head.weight" }, { m->head.bn.beta, "bn2.bias" },      { m->head.bn.mean, "bn2.running_mean" },
        { m->head.fc_bias, "classifier.bias" }, { m->head.fc_weight, "classifier.weight" } };
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++)
        assert_string_equal(m->tensors[outside[i].index].name, outside[i].suffix);
    for (int b = 0; b < m->n_blocks; b++) {
        const en_block *k = &m->blocks[b];
        const bool e = k->expand;
        assert_int_equal(e, k->stage != 0);
        assert_int_equal(k->mid, e ? 6 * k->ci : k->ci);
        const struct { int index; const char *key; int64_t d0, d1; } want[] = {
            { k->w_expand, "conv_pw.weight", k->mid, k->ci },
            { k->bn_expand.gamma, "bn1.weight", k->mid, 0 },
            { k->w_spatial, "conv_dw.weight", k->mid, 1 },
            { k->bn_spatial.gamma, e ? "bn2.weight" : "bn1.weight", k->mid, 0 },
            { k->bn_spatial.beta, e ? "bn2.bias" : "bn1.bias", k->mid, 0 },
            { k->w_se_reduce, "se.conv_reduce.weight", k->q, k->mid },
            { k->b_se_reduce, "se.conv_reduce.bias", k->q, 0 },
            { k->w_se_expand, "se.conv_expand.weight", k->mid, k->q },
            { k->b_se_expand, "se.conv_expand.bias", k->mid, 0 },
            { k->w_project, e ? "conv_pwl.weight" : "conv_pw.weight", k->co, k->mid },
            { k->bn_project.mean, e ? "bn3.running_mean" : "bn2.running_mean", k->co, 0 } };
        for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
            if (!e && i < 2) {
                assert_int_equal(want[i].index, -1);
                continue;
            }
            char name[80];
            snprintf(name, sizeof name, "%s.%s", k->name, want[i].key);
            const en_tensor *t = &m->tensors[want[i].index];
            assert_string_equal(t->name, name);
            assert_int_equal(t->shape[0], want[i].d0);
            if (want[i].d1) assert_int_equal(t->shape[1], want[i].d1);
        }
    }
    en_model_free(m);
}

static void names_take_dashes_aliases_and_any_case_and_suggest(void **state)
{
    (void)state;
    const en_model_row *row;
    assert_int_equal(en_model_row_find("EfficientNet-B3", &row), EN_OK);
    assert_string_equal(row->name, "efficientnet_b3");
    assert_int_equal(en_model_row_find("l2", &row), EN_OK);
    assert_string_equal(row->name, "efficientnet_l2");
    assert_int_equal(en_model_row_find("eficientnet_b7", &row), EN_EUSAGE);
    assert_null(row);
    assert_non_null(strstr(en_error_message(), "did you mean efficientnet_b7?"));
    en_error_clear();
    assert_int_equal(en_model_row_find("vgg16", &row), EN_EUSAGE);
    assert_null(strstr(en_error_message(), "did you mean"));
    en_error_clear();
}

/* ---- shapes --------------------------------------------------------------------------------------------------------------- */

/* spec 1.5: sides after the stem and the stages with stride 2, and the zeros before */
static void same_padding_equals_the_table(void **state)
{
    (void)state;
    static const struct { const char *name; int side[5], before[5]; } want[] = {
        { "b0", { 112, 56, 28, 14, 7 },    { 0, 0, 1, 0, 1 } }, { "b1", { 120, 60, 30, 15, 8 },    { 0, 0, 1, 0, 2 } },
        { "b2", { 130, 65, 33, 17, 9 },    { 0, 0, 2, 1, 2 } }, { "b3", { 150, 75, 38, 19, 10 },   { 0, 0, 2, 0, 2 } },
        { "b4", { 190, 95, 48, 24, 12 },   { 0, 0, 2, 0, 1 } }, { "b5", { 228, 114, 57, 29, 15 },  { 0, 0, 1, 1, 2 } },
        { "b6", { 264, 132, 66, 33, 17 },  { 0, 0, 1, 0, 2 } }, { "b7", { 300, 150, 75, 38, 19 },  { 0, 0, 1, 1, 1 } },
        { "b8", { 336, 168, 84, 42, 21 },  { 0, 0, 1, 0, 1 } }, { "l2", { 400, 200, 100, 50, 25 }, { 0, 0, 1, 0, 1 } } };
    for (size_t k = 0; k < sizeof want / sizeof *want; k++) {
        en_model *m = build(want[k].name, &own, 8);
        int at = 0;
        assert_int_equal(m->stem.oh, want[k].side[at]);
        assert_int_equal(m->stem.pad_h, want[k].before[at]);
        int64_t side = m->stem.oh;
        for (int b = 0; b < m->n_blocks; b++) {
            const en_block *e = &m->blocks[b];
            assert_int_equal(e->h, side);
            assert_int_equal(e->pad_h, e->pad_w);
            if (e->stride == 2) {
                at++;
                assert_int_equal(e->oh, want[k].side[at]);
                assert_int_equal(e->pad_h, want[k].before[at]);
            } else {
                assert_int_equal(e->oh, e->h);
                assert_int_equal(e->pad_h, (e->kernel - 1) / 2);
            }
            side = e->oh;
        }
        assert_int_equal(at, 4);
        assert_int_equal(m->head.h, want[k].side[4]);
        en_model_free(m);
    }
}

/* Every output window of every layer meets the image, at any resolution, odd and tiny ones included. */
static void every_resolution_builds_and_every_window_meets_its_input(void **state)
{
    (void)state;
    for (int side = 32; side <= 320; side++) {
        en_model_overrides o = own;
        o.resolution = side;
        en_model *m = build("b0", &o, 8);
        assert_true(m->head.h >= 1);
        for (int b = 0; b < m->n_blocks; b++) {
            const en_block *k = &m->blocks[b];
            assert_true(k->pad_h < k->kernel && (k->oh - 1) * k->stride - k->pad_h < k->h);
        }
        en_model_free(m);
    }
}

/* spec 2.1, last column; 0 where there is no skip */
static void drop_path_rises_over_all_blocks(void **state)
{
    (void)state;
    en_model *m = build("b0", &own, 8);
    for (int b = 0; b < m->n_blocks; b++) {
        const en_block *k = &m->blocks[b];
        assert_int_equal(k->skip, k->stride == 1 && k->ci == k->co);
        assert_true(fabs(k->drop_path - (k->skip ? 0.0125 * b : 0)) < 1e-7);
    }
    assert_true(m->blocks[14].skip && !m->blocks[15].skip);
    en_model_free(m);
    m = build("b7", &own, 8);                                       /* stage 0 repeats: its later blocks skip */
    assert_true(!m->blocks[0].skip && m->blocks[1].skip && m->blocks[3].skip && !m->blocks[4].skip);
    assert_true(fabs(m->blocks[3].drop_path - 0.2 * 3 / 55) < 1e-7);
    en_model_free(m);
}

/* ---- arenas ---------------------------------------------------------------------------------------------------------------- */

static void offsets_tile_the_arenas_in_the_order_of_backward(void **state)
{
    (void)state;
    for (int align = 1; align <= 32; align *= 2) {
        en_model *m = build("b1", &own, align);
        int64_t end[2] = { 0, 0 };
        for (int i = m->n_tensors - 1; i >= 0; i--) {               /* timm's order backwards: no gap, no overlap */
            const en_tensor *t = &m->tensors[i];
            assert_int_equal(t->offset, end[t->arena]);
            assert_int_equal(t->offset % 16, 0);
            assert_true(t->elems >= en_tensor_count(t));
            end[t->arena] += t->elems;
        }
        assert_int_equal(end[EN_ARENA_PARAMS], m->param_elems);
        assert_int_equal(end[EN_ARENA_STATS], m->stat_elems);

        const en_tensor *t = m->tensors;
        assert_int_equal(t[m->head.fc_bias].offset, 0);
        assert_true(t[m->head.fc_bias].offset < t[m->head.fc_weight].offset);
        assert_true(t[m->head.fc_weight].offset < t[m->head.bn.beta].offset);
        assert_true(t[m->head.bn.gamma].offset < t[m->head.weight].offset);
        int64_t before = t[m->head.weight].offset;
        for (int b = m->n_blocks - 1; b >= 0; b--) {
            const en_block *k = &m->blocks[b];
            const int order[] = { k->bn_project.beta, k->bn_project.gamma, k->w_project, k->b_se_expand, k->w_se_expand,
                                  k->b_se_reduce, k->w_se_reduce, k->bn_spatial.beta, k->bn_spatial.gamma, k->w_spatial,
                                  k->bn_expand.beta, k->bn_expand.gamma, k->w_expand };
            for (size_t i = 0; i < (k->expand ? 13u : 10u); i++) {
                assert_true(t[order[i]].offset > before);
                before = t[order[i]].offset;
            }
        }
        assert_true(t[m->stem.bn.beta].offset > before);
        assert_int_equal(t[m->stem.weight].offset + t[m->stem.weight].elems, m->param_elems);
        en_model_free(m);
    }
}

static void decay_spares_batch_norm_alone(void **state)
{
    (void)state;
    en_model *m = build("b0", &own, 8);
    int64_t decayed = 0;
    for (int i = 0; i < m->n_tensors; i++) {
        const en_tensor *t = &m->tensors[i];
        if (t->arena == EN_ARENA_PARAMS && t->decay) decayed += en_tensor_count(t);
    }
    assert_int_equal(decayed, 5246532);                             /* spec section 2, note 4 */
    en_model_free(m);
}

/* Where the passes expect element (o,i,a,b): the formulas of kernels.h, written out once more. */
static void strides_say_what_the_passes_read(void **state)
{
    (void)state;
    en_model *m = build("b0", &own, 16);
    const en_block *k = &m->blocks[1];
    const struct { int index; int64_t place[4], want; } probe[] = {
        { m->stem.weight, { 7, 2, 1, 0 }, ((1 * 3 + 0) * 3 + 2) * m->stem.oc_p + 7 },
        { k->w_expand, { 5, 3, 0, 0 }, 3 * k->mid_p + 5 },
        { k->w_spatial, { 9, 0, 2, 1 }, (2 * 3 + 1) * k->mid_p + 9 },
        { k->w_se_reduce, { 2, 11, 0, 0 }, 2 * k->mid_p + 11 },
        { k->w_se_expand, { 11, 2, 0, 0 }, 2 * k->mid_p + 11 },
        { k->w_project, { 4, 90, 0, 0 }, 90 * k->co_p + 4 },
        { m->head.fc_weight, { 999, 17, 0, 0 }, 17 * m->classes_p + 999 } };
    assert_int_equal(k->co_p, 32);                                  /* 24 channels */
    assert_int_equal(m->classes_p, 1008);
    for (size_t p = 0; p < sizeof probe / sizeof *probe; p++) {
        const en_tensor *t = &m->tensors[probe[p].index];
        int64_t place = 0;
        for (int d = 0; d < t->ndim; d++) place += probe[p].place[d] * t->stride[d];
        assert_int_equal(place, probe[p].want);
    }
    en_model_free(m);
}

static void gather_undoes_scatter_and_padding_is_zero(void **state)
{
    (void)state;
    en_model_overrides o = own;
    o.classes = 10;
    en_model *m = build("b0", &o, 16);
    float *arena = malloc((size_t)m->param_elems * sizeof *arena);
    float *logical = malloc((size_t)m->param_elems * sizeof *logical), *back = malloc((size_t)m->param_elems * sizeof *back);
    for (int i = 0; i < m->n_tensors; i++) {
        const en_tensor *t = &m->tensors[i];
        const int64_t n = en_tensor_count(t);
        for (int64_t e = 0; e < m->param_elems; e++) arena[e] = -1;
        for (int64_t e = 0; e < n; e++) logical[e] = (float)(e + 1);
        en_tensor_scatter(t, logical, arena);
        en_tensor_gather(t, arena, back);
        assert_memory_equal(logical, back, (size_t)n * sizeof *back);
        int64_t inside = 0, zeros = 0;
        for (int64_t e = 0; e < t->elems; e++) {
            inside += arena[t->offset + e] > 0;
            zeros += arena[t->offset + e] == 0;
        }
        assert_int_equal(inside, n);
        assert_int_equal(inside + zeros, t->elems);
        if (t->offset > 0) assert_true(arena[t->offset - 1] == -1); /* neighbours are left alone */
        if (t->arena == EN_ARENA_PARAMS && t->offset + t->elems < m->param_elems) assert_true(arena[t->offset + t->elems] == -1);
    }
    free(arena);
    free(logical);
    free(back);
    en_model_free(m);
}

/* ---- initialisers -------------------------------------------------------------------------------------------------------- */

typedef struct { en_model *m; float *params, *stats; } drawn;

static drawn draw(const char *name, int align, uint64_t seed)
{
    drawn d = { .m = build(name, &own, align) };
    d.params = malloc((size_t)d.m->param_elems * sizeof *d.params);
    d.stats = malloc((size_t)d.m->stat_elems * sizeof *d.stats);
    memset(d.params, 0xff, (size_t)d.m->param_elems * sizeof *d.params);
    memset(d.stats, 0xff, (size_t)d.m->stat_elems * sizeof *d.stats);
    en_model_init(d.m, seed, d.params, d.stats);
    return d;
}

static void discard(drawn d)
{
    en_model_free(d.m);
    free(d.params);
    free(d.stats);
}

static float *gathered(const drawn *d, int i)
{
    const en_tensor *t = &d->m->tensors[i];
    float *v = malloc((size_t)en_tensor_count(t) * sizeof *v);
    en_tensor_gather(t, t->arena == EN_ARENA_PARAMS ? d->params : d->stats, v);
    return v;
}

/* Mean and variance of n draws lie within 5 standard errors of the definition: sigma/sqrt(n) for the mean;
 * sigma^2*sqrt(2/n) for a normal's variance, sigma^2*sqrt(0.8/n) for a uniform's (kurtosis 1.8).  About 130 tensors and a
 * fixed seed: a right generator fails with probability 1e-4, once and for all. */
static void initial_values_have_the_moments_of_their_distributions(void **state)
{
    (void)state;
    drawn d = draw("b0", 8, 1);
    for (int i = 0; i < d.m->n_tensors; i++) {
        const en_tensor *t = &d.m->tensors[i];
        const double n = (double)en_tensor_count(t);
        float *v = gathered(&d, i);
        double sum = 0, square = 0, largest = 0;
        for (int64_t e = 0; e < (int64_t)n; e++) {
            sum += v[e];
            square += (double)v[e] * v[e];
            if (fabs(v[e]) > largest) largest = fabs(v[e]);
        }
        double sigma = 0, spread = 0;
        if (t->init == EN_INIT_CONV_NORMAL) {
            const double fan = strstr(t->name, "conv_dw") ? 1 : (double)t->shape[0];
            sigma = sqrt(2 / ((double)(t->shape[2] * t->shape[3]) * fan));
            spread = 2;
            assert_true(largest < 7 * sigma);
        } else if (t->init == EN_INIT_DENSE_UNIFORM) {
            sigma = 1 / sqrt(1000) / sqrt(3);
            spread = 0.8;
            assert_true(largest <= 0.0316228f && largest > 0.03162);
        } else {
            const double want = strstr(t->name, "running_var") || (strstr(t->name, "bn") && strstr(t->name, ".weight"));
            for (int64_t e = 0; e < (int64_t)n; e++) assert_true(v[e] == want);
        }
        if (sigma > 0 && (fabs(sum / n) > 5 * sigma / sqrt(n) || fabs(square / n / (sigma * sigma) - 1) > 5 * sqrt(spread / n)))
            fail_msg("%s: mean %g, variance %g, want 0 and %g over %g draws", t->name, sum / n, square / n, sigma * sigma, n);
        free(v);
    }
    discard(d);
}

static void initial_values_do_not_depend_on_the_layout(void **state)
{
    (void)state;
    drawn a = draw("b0", 1, 42), b = draw("b0", 16, 42), other = draw("b0", 16, 43);
    for (int i = 0; i < a.m->n_tensors; i++) {
        float *x = gathered(&a, i), *y = gathered(&b, i), *z = gathered(&other, i);
        const size_t bytes = (size_t)en_tensor_count(&a.m->tensors[i]) * sizeof *x;
        assert_memory_equal(x, y, bytes);
        if (a.m->tensors[i].init == EN_INIT_CONV_NORMAL) assert_true(memcmp(y, z, bytes) != 0);
        free(x);
        free(y);
        free(z);
    }
    double logical = 0, physical = 0;                               /* padding holds zeros */
    for (int64_t e = 0; e < a.m->param_elems; e++) logical += fabs(a.params[e]);
    for (int64_t e = 0; e < b.m->param_elems; e++) physical += fabs(b.params[e]);
    assert_true(fabs(logical / physical - 1) < 1e-9);
    discard(a);
    discard(b);
    discard(other);
}

/* ---- refusals -------------------------------------------------------------------------------------------------------------- */

static void refuses_overrides_that_make_no_sense_and_says_which(void **state)
{
    (void)state;
    static const struct { en_model_overrides o; const char *says; } bad[] = {
        { { .width = -1 }, "--width -1" },           { { .width = NAN }, "--width" },
        { { .depth = 1e9 }, "--depth 1e+09" },       { { .resolution = 31 }, "--image-size 31" },
        { { .resolution = -5 }, "--image-size -5" }, { { .resolution = 5000 }, "32 to 4096" },
        { { .classes = -1 }, "--classes -1" },       { { .dropout = 1 }, "--dropout 1" },
        { { .drop_path = 1.5f }, "--drop-path 1.5" },{ { .phi = -1 }, "--phi -1" },
        { { .phi = 20 }, "smaller phi" },            { { .dropout = NAN }, "--dropout" },
        { { .scale = -1 }, "--resolution -1" },      { { .scale = 30 }, "6720 pixels" },
        { { .scale = 0.1 }, "22 pixels" },           { { .phi = 1, .beta = 0.5 }, "--beta 0.5: use 1 to 4" } };
    const en_model_row *row = en_model_row_at(0);
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
        en_model *m = (en_model *)&m;
        assert_int_equal(en_model_build(row, &bad[k].o, 8, &m), EN_EUSAGE);
        assert_null(m);
        if (!strstr(en_error_message(), bad[k].says)) fail_msg("\"%s\" does not say \"%s\"", en_error_message(), bad[k].says);
        en_error_clear();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counts_equal_the_published_integers),
        cmocka_unit_test(widths_and_repeats_equal_the_table),
        cmocka_unit_test(rounding_follows_the_ninety_percent_rule),
        cmocka_unit_test(phi_multiplies_depth_width_and_resolution),
        cmocka_unit_test(b0_has_timms_keys_and_shapes_in_timms_order),
        cmocka_unit_test(key_totals_equal_timms),
        cmocka_unit_test(indices_name_their_tensors),
        cmocka_unit_test(names_take_dashes_aliases_and_any_case_and_suggest),
        cmocka_unit_test(same_padding_equals_the_table),
        cmocka_unit_test(every_resolution_builds_and_every_window_meets_its_input),
        cmocka_unit_test(drop_path_rises_over_all_blocks),
        cmocka_unit_test(offsets_tile_the_arenas_in_the_order_of_backward),
        cmocka_unit_test(decay_spares_batch_norm_alone),
        cmocka_unit_test(strides_say_what_the_passes_read),
        cmocka_unit_test(gather_undoes_scatter_and_padding_is_zero),
        cmocka_unit_test(initial_values_have_the_moments_of_their_distributions),
        cmocka_unit_test(initial_values_do_not_depend_on_the_layout),
        cmocka_unit_test(refuses_overrides_that_make_no_sense_and_says_which),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
