/* test_oracle_net.c - the reference network's gradients against central differences of its own loss.
 *
 * Per tensor one difference along a random direction, which every element enters, and two single elements.  A quotient
 * D(h) is off by h^2/6 f''' + O(h^4): batch norms over three values bend the loss so much that (4 D(h/2) - D(h))/3, which
 * is off by O(h^4), is needed; and they amplify rounding to some 1e-13 of the loss, 1e-8 of a quotient at h = 1e-5.  Asked for
 * is 1e-6 of |gradient| + 0.1.
 *
 * ReLU and the largest of a window bend at points, and where one lies between the arguments of a quotient it is wrong, whatever the
 * gradient: how often falls with h, so nets with these may agree at any of some h down to 1e-7.  A wrong gradient agrees at none. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "net_help.h"

static double loss_at(const en_model *m, double *const *tensors, const oracle_batch *b, int i, const double *direction, double h)
{
    const int64_t n = en_tensor_count(&m->tensors[i]);
    double *here = tensors[i], *moved = malloc((size_t)n * sizeof *moved);
    for (int64_t e = 0; e < n; e++) moved[e] = here[e] + h * direction[e];
    ((double **)(uintptr_t)tensors)[i] = moved;
    const double loss = oracle_net(m, tensors, b, NULL, NULL);
    ((double **)(uintptr_t)tensors)[i] = here;
    free(moved);
    return loss;
}

static void difference_holds(const en_model *m, double **tensors, double **answers, const oracle_batch *b, int i, const double *direction)
{
    static const double steps[] = { 1e-5, 3e-6, 1e-6, 3e-7, 1e-7 };
    double gradient = 0, quotient = 0;
    for (int64_t e = 0, n = en_tensor_count(&m->tensors[i]); e < n; e++) gradient += answers[i][e] * direction[e];
    for (int k = 0; k < (m->act == EN_ACT_SILU ? 1 : 5); k++) {
        quotient = 0;
        for (int half = 0; half < 2; half++) {
            const double h = half ? 0.5 * steps[k] : steps[k];
            const double d = (loss_at(m, tensors, b, i, direction, h) - loss_at(m, tensors, b, i, direction, -h)) / (2 * h);
            quotient += half ? 4 * d / 3 : -d / 3;
        }
        if (fabs(gradient - quotient) <= 1e-6 * (fabs(quotient) + 0.1)) return;
    }
    fail_msg("%s: gradient %.10g, difference quotient %.10g", m->tensors[i].name, gradient, quotient);
}

static void check_model(const char *row, const en_model_overrides *o, bool masks)
{
    en_model *m = model_make(row, o, 16);
    const int64_t n = 3, size = m->resolution;
    double **tensors = oracle_tensors(m), **answers = oracle_tensors(m), **drop = calloc((size_t)m->n_blocks, sizeof *drop);
    double *images = malloc((size_t)(n * size * size * 3) * sizeof *images), *dropout = malloc((size_t)(n * m->head.co) * sizeof *dropout);
    const int32_t labels[3] = { 0, 2, 1 };
    formula_tensors(m, 5, tensors);
    for (int64_t i = 0; i < n * size * size * 3; i++) images[i] = formula(5, 65535, i, 0, 1.5);
    for (int64_t i = 0; i < n * m->head.co; i++) dropout[i] = formula(5, 65534, i, 0, 1) > -0.6 ? 1.25 : 0;
    for (int k = 0; k < m->n_blocks; k++) {
        drop[k] = calloc((size_t)n, sizeof **drop);
        for (int64_t i = 0; i < n; i++) drop[k][i] = (m->blocks[k].skip || m->blocks[k].w_shortcut >= 0) && (i + k) % 3 == 0 ? 0 : 1.1;
    }
    const oracle_batch b = { .n = n, .images = images, .labels = labels, .smoothing = 0.1, .dropout = masks ? dropout : NULL, .drop = masks ? drop : NULL };
    double logits[9];
    const double loss = oracle_net(m, tensors, &b, logits, answers);
    assert_true(isfinite(loss) && loss > 0);
    double mean = 0;                                            /* the loss is that of the logits it reports */
    for (int i = 0; i < 3; i++) {
        double target[3];
        oracle_target(3, labels[i], 0, 1, 0.1, target);
        mean += oracle_cross_entropy(3, logits + 3 * i, target, NULL) / 3;
    }
    assert_true(fabs(mean - loss) < 1e-12);
    for (int i = 0; i < m->n_tensors; i++) {
        if (m->tensors[i].arena != EN_ARENA_PARAMS) continue;
        const int64_t elems = en_tensor_count(&m->tensors[i]);
        double *direction = calloc((size_t)elems, sizeof *direction), norm = 0;
        for (int64_t e = 0; e < elems; e++) norm += pow(direction[e] = formula(7, (uint32_t)i, e, 0, 1), 2);
        for (int64_t e = 0; e < elems; e++) direction[e] /= sqrt(norm);
        difference_holds(m, tensors, answers, &b, i, direction);
        for (int k = 0; k < 2; k++) {
            memset(direction, 0, (size_t)elems * sizeof *direction);
            direction[formula_index(9, (uint32_t)i, k, elems)] = 1;
            difference_holds(m, tensors, answers, &b, i, direction);
        }
        free(direction);
    }
    for (int k = 0; k < m->n_blocks; k++) free(drop[k]);
    free(drop), free(images), free(dropout);
    oracle_tensors_free(m, tensors);
    oracle_tensors_free(m, answers);
    en_model_free(m);
}

/* 0.25 wide, 7 blocks, 32 px: the stem's 8 channels meet the first block's 8, so even that one has a skip. */
static void gradients_of_a_narrow_net_are_difference_quotients(void **state)
{
    (void)state;
    check_model("efficientnet_b0", &(en_model_overrides){ .width = 0.25, .depth = 0.3, .resolution = 32, .classes = 3, .dropout = -1, .drop_path = -1 }, false);
}

/* Two blocks a stage, so most have skips; odd sides; dropout and stochastic depth. */
static void gradients_with_dropout_and_stochastic_depth_are_difference_quotients(void **state)
{
    (void)state;
    check_model("efficientnet_b0", &(en_model_overrides){ .width = 0.2, .depth = 0.5, .resolution = 35, .classes = 3, .dropout = -1, .drop_path = -1 }, true);
}

/* V2-S begins with a fused block without expansion and a skip, then fused ones with it: here one of each stride. */
static void gradients_of_fused_blocks_are_difference_quotients(void **state)
{
    (void)state;
    check_model("efficientnetv2_s", &(en_model_overrides){ .width = 0.34, .depth = 0.13, .resolution = 33, .classes = 3, .dropout = -1, .drop_path = -1 }, true);
}

/* Depthwise blocks that end in an activation, symmetric padding, no convolution before the mean. */
static void gradients_of_mobilenetv1_are_difference_quotients(void **state)
{
    (void)state;
    check_model("mobilenetv1", &(en_model_overrides){ .width = 0.1, .depth = 0.2, .resolution = 35, .classes = 3, .dropout = -1, .drop_path = -1 }, true);
}

static void gradients_of_mobilenetv2_are_difference_quotients(void **state)
{
    (void)state;
    check_model("mobilenetv2", &(en_model_overrides){ .width = 0.1, .depth = 0.4, .resolution = 33, .classes = 3, .dropout = -1, .drop_path = -1 }, true);
}

/* A pool, shortcuts, and skips in the two stages that have two blocks; the stride where torchvision has it and where the paper has it,
 * there with TensorFlow's padding, which is lopsided in pool and stem. */
static void gradients_of_bottlenecks_are_difference_quotients(void **state)
{
    (void)state;
    check_model("resnet50", &(en_model_overrides){ .width = 0.125, .depth = 0.3, .resolution = 35, .classes = 3, .dropout = -1, .drop_path = -1 }, true);
    check_model("resnet50_v1", &(en_model_overrides){ .width = 0.125, .depth = 0.3, .resolution = 32, .classes = 3, .dropout = -1, .drop_path = -1,
                                                      .padding = EN_PADDING_SAME }, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_of_a_narrow_net_are_difference_quotients),
        cmocka_unit_test(gradients_with_dropout_and_stochastic_depth_are_difference_quotients),
        cmocka_unit_test(gradients_of_fused_blocks_are_difference_quotients),
        cmocka_unit_test(gradients_of_mobilenetv1_are_difference_quotients),
        cmocka_unit_test(gradients_of_mobilenetv2_are_difference_quotients),
        cmocka_unit_test(gradients_of_bottlenecks_are_difference_quotients),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
