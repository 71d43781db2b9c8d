/* test_freeze.c - which tensors --freeze leaves alone: by name, in the arenas, in what the optimizer walks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "trainer/freeze.h"

static en_model *make(const char *name)
{
    const en_model_row *row;
    en_model *m;
    assert_int_equal(en_model_row_find(name, &row), EN_OK);
    assert_int_equal(en_model_build(row, &(en_model_overrides){ .dropout = -1, .drop_path = -1 }, 16, &m), EN_OK);
    return m;
}

/* The last tensor that a name freezes, by the checkpoint's own names: all before it in their order are frozen too, all behind are not. */
static const struct { const char *model, *freeze, *last; int layers; } cases[] = {
    { "b0", "stem", "bn1.running_var", 1 },                                    { "b0", "blocks.0", "blocks.0.0.bn2.running_var", 2 },
    { "b0", "blocks.2", "blocks.2.1.bn3.running_var", 6 },                     { "b0", "blocks.2.0", "blocks.2.0.bn3.running_var", 5 },
    { "b0", "blocks.6", "blocks.6.0.bn3.running_var", 17 },                    { "b0", "features", "bn2.running_var", 18 },
    { "v2s", "blocks.0", "blocks.0.1.bn1.running_var", 3 },                    { "v2s", "blocks.1.0", "blocks.1.0.bn2.running_var", 4 },
    { "b4", "blocks.1", "blocks.1.3.bn3.running_var", 7 },                     { "resnet50", "layer1", "layer1.2.bn3.running_var", 4 },
    { "resnet50", "layer2.0", "layer2.0.downsample.1.running_var", 5 },        { "resnet50", "layer4", "layer4.2.bn3.running_var", 18 },
    { "resnet50", "features", "layer4.2.bn3.running_var", 18 },                { "mobilenetv2", "blocks.6", "blocks.6.0.bn3.running_var", 18 },
};

static void a_name_freezes_up_to_the_end_of_its_layer(void **state)
{
    (void)state;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        en_model *m = make(cases[c].model);
        en_frozen f;
        if (en_frozen_of(m, cases[c].freeze, &f) != EN_OK) fail_msg("%s: %s", cases[c].model, en_error_message());
        if (f.layers != cases[c].layers) fail_msg("%s --freeze %s: %d layers, not %d", cases[c].model, cases[c].freeze, f.layers, cases[c].layers);
        bool behind = false;
        int64_t kept = 0;
        for (int i = 0; i < m->n_tensors; i++) {
            const en_tensor *t = &m->tensors[i];
            const int64_t end = t->arena == EN_ARENA_PARAMS ? f.trained_params : f.trained_stats;
            const bool trained = t->offset < end;
            if (trained && t->offset + t->elems > end) fail_msg("%s is trained by half", t->name);
            if (trained != behind) fail_msg("%s --freeze %s: %s is %strained", cases[c].model, cases[c].freeze, t->name, trained ? "" : "not ");
            if (!trained && t->arena == EN_ARENA_PARAMS) kept += en_tensor_count(t);
            behind |= strcmp(t->name, cases[c].last) == 0;
        }
        assert_true(behind && kept == f.kept && kept > 0);
        en_model_free(m);
    }
}

static void nothing_is_frozen_without_a_name_and_unknown_ones_are_refused(void **state)
{
    (void)state;
    static const struct { const char *model, *freeze, *says; } bad[] = {
        { "b0", "block.2", "did you mean blocks.2?" },       { "b0", "blocks.7", "did you mean blocks." }, { "b0", "featurs", "did you mean features?" },
        { "b0", "layer2", "there are stem, blocks.0.0 to blocks.6.0, their stages (as blocks.6), and features" }, { "b0", "blocks.2.", "did you mean blocks.2" },
        { "resnet50", "layer5", "did you mean layer" },      { "b0", "blocks.1.2", "did you mean blocks.1" }, { "b0", "blocks", NULL } };
    en_model *b0 = make("b0");
    en_frozen f;
    assert_int_equal(en_frozen_of(b0, "", &f), EN_OK);
    assert_true(f.layers == 0 && f.trained_params == b0->param_elems && f.trained_stats == b0->stat_elems && f.kept == 0);
    en_model_free(b0);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        en_model *m = make(bad[i].model);
        en_error_clear();
        const en_status s = en_frozen_of(m, bad[i].freeze, &f);
        if (!bad[i].says) assert_true(s == EN_OK && f.layers == m->n_blocks + 1);       /* all blocks: as it says */
        else if (s != EN_EUSAGE || !strstr(en_error_message(), bad[i].says)) fail_msg("%s: \"%s\"", bad[i].freeze, en_error_message());
        en_model_free(m);
    }
    en_error_clear();
}

/* Every element of a trained tensor, and of no other, with the decay that it had. */
static void the_optimizer_walks_what_is_trained(void **state)
{
    (void)state;
    static const en_optimizer kinds[] = { { .kind = EN_RMSPROP }, { .kind = EN_LARS } };
    static const char *const freezes[] = { "", "stem", "blocks.2", "blocks.4.1", "features" };
    en_model *m = make("b0");
    for (int k = 0; k < 2; k++)
        for (size_t i = 0; i < sizeof freezes / sizeof *freezes; i++) {
            en_frozen f;
            en_segment *all, *s;
            int64_t n_all, n;
            assert_int_equal(en_frozen_of(m, freezes[i], &f), EN_OK);
            assert_int_equal(en_optimizer_segments(&kinds[k], m, &all, &n_all), EN_OK);
            assert_int_equal(en_optimizer_segments(&kinds[k], m, &s, &n), EN_OK);
            en_frozen_cut(&f, s, &n);
            uint8_t *want = calloc((size_t)m->param_elems, 1), *got = calloc((size_t)m->param_elems, 1);
            for (int64_t j = 0; j < n_all; j++)
                for (int64_t e = all[j].offset; e < all[j].offset + all[j].elems && e < f.trained_params; e++) want[e] = (uint8_t)(1 + all[j].decay + 2 * all[j].adapt);
            for (int64_t j = 0; j < n; j++)
                for (int64_t e = s[j].offset; e < s[j].offset + s[j].elems; e++) got[e] = (uint8_t)(1 + s[j].decay + 2 * s[j].adapt);
            assert_memory_equal(want, got, (size_t)m->param_elems);
            assert_true(n > 0);
            free(want); free(got); free(all); free(s);
        }
    en_model_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_name_freezes_up_to_the_end_of_its_layer), cmocka_unit_test(nothing_is_frozen_without_a_name_and_unknown_ones_are_refused),
        cmocka_unit_test(the_optimizer_walks_what_is_trained),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
