/* The schedule against the numbers of the reference's own runs, and the memory plan against its one promise: what is alive
 * together does not overlap. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "kernels/cuda/footprint.h"
#include "trainer/net.h"
#include "trainer/schedule.h"

#define near(got, want, tolerance) assert_true(fabs((got) - (want)) <= (tolerance))

static en_schedule reference(double batch)           /* the paper's, on ImageNet */
{
    return (en_schedule){ .kind = EN_LR_EXPONENTIAL, .base = 0.016 * batch / 256, .steps_per_epoch = 1281167 / batch, .warmup_epochs = 5, .decay = 0.97,
                          .decay_epochs = 2.4, .total_steps = (int64_t)(350 * 1281167 / batch) };
}

static void rate_is_the_references(void **state)
{
    (void)state;
    const en_schedule s = reference(2048);
    assert_int_equal(s.total_steps, 218949);                                   /* the reference's train_steps */
    near(en_lr_at(&s, 0), 0, 0);                                /* the very first step has rate 0 */
    near(en_lr_at(&s, 1563), 0.128 * 1563 / 3127, 1e-12);
    near(en_lr_at(&s, 3126), 0.128 * 3126 / 3127, 1e-12);       /* warm-up: 3127 steps */
    near(en_lr_at(&s, 3127), 0.128 * 0.97 * 0.97, 1e-12);       /* the decay's clock was running already */
    near(en_lr_at(&s, 4504), 0.128 * pow(0.97, 2), 1e-12);      /* 3 * 1501.37 = 4504.1 */
    near(en_lr_at(&s, 4505), 0.128 * pow(0.97, 3), 1e-12);
    near(en_lr_at(&s, s.total_steps - 1) / 0.128, 0.01208, 5e-6);   /* 145 decays */
}

static void cosine_ends_at_zero_and_constant_stays(void **state)
{
    (void)state;
    en_schedule s = reference(4096);
    s.kind = EN_LR_COSINE;
    const int64_t w = (int64_t)floor(5 * s.steps_per_epoch), middle = w + (s.total_steps - w) / 2;
    near(en_lr_at(&s, w), 0.256, 1e-12);
    near(en_lr_at(&s, middle), 0.128, 1e-5);
    near(en_lr_at(&s, s.total_steps), 0, 1e-12);
    s.kind = EN_LR_CONSTANT;
    near(en_lr_at(&s, s.total_steps), 0.256, 1e-12);
}

/* B5 on 1024 cores: 65,536 images a step, 0.081 for 256 of them, 43 epochs of warm-up; E = 19.549, W = 840, 6842 steps in all. */
static void polynomial_is_the_references(void **state)
{
    (void)state;
    en_schedule s = reference(65536);
    s.kind = EN_LR_POLYNOMIAL, s.base = 0.081 * 256, s.warmup_epochs = 43, s.power = 2, s.end = 0.1;
    assert_int_equal(s.total_steps, 6842);
    const double top = 0.081 * 256, d = 6842 - 840 + 1;
    near(en_lr_at(&s, 0), 0, 0);
    near(en_lr_at(&s, 839), top * 839 / 840, 1e-12);                            /* warm-up: 840 steps */
    near(en_lr_at(&s, 840), (top - 0.1) * pow(1 - 1 / d, 2) + 0.1, 1e-12);      /* no step has the whole rate ... */
    near(en_lr_at(&s, 841), en_lr_at(&s, 840), 0);                              /* ... and these two the same */
    near(en_lr_at(&s, 840 + 3001), (top - 0.1) * pow(3002 / d, 2) + 0.1, 1e-12);
    near(en_lr_at(&s, 6841), (top - 0.1) * 4 / (d * d) + 0.1, 1e-12);           /* the last one made is two short of D */
    near(en_lr_at(&s, 100000), 0.1, 1e-12);                                     /* and it stays at its end */
    s.power = 1, s.end = 0, s.warmup_epochs = 0, s.base = 1, s.total_steps = 9;   /* a straight line: 1 - tau/10 */
    for (int t = 1; t < 9; t++) near(en_lr_at(&s, t), 1 - t / 10., 1e-12);
    near(en_lr_at(&s, 0), 0.9, 1e-12);
    s.total_steps = 5, s.warmup_epochs = 1;                                     /* all of it is warm-up */
    for (int t = 0; t < 5; t++) near(en_lr_at(&s, t), t / 19., 1e-12);
}

static void average_ramps_up(void **state)
{
    (void)state;
    near(en_ema_decay(0.9999, 1), 2.0 / 11, 1e-15);
    assert_true(en_ema_decay(0.9999, 89900) < 0.9999);
    near(en_ema_decay(0.9999, 89990), 0.9999, 1e-15);           /* reached at about 89,990 */
}

static void spans_fall_once_a_period(void **state)
{
    (void)state;
    const en_span steps = { EN_SPAN_STEPS, 10 }, epochs = { EN_SPAN_EPOCHS, 1 }, minutes = { EN_SPAN_SECONDS, 900 }, never = { EN_SPAN_STEPS, 0 };
    int hits[4] = { 0 };
    for (int64_t s = 0; s <= 1000; s++) {
        hits[0] += en_span_due(&steps, s, 156.25, 0);
        hits[1] += en_span_due(&epochs, s, 156.25, 0);
        hits[2] += en_span_due(&minutes, s, 156.25, s % 100 == 99 ? 900.0 : 899.0);
        hits[3] += en_span_due(&never, s, 156.25, 1e9);
    }
    assert_int_equal(hits[0], 100);
    assert_int_equal(hits[1], 6);                                              /* 1000 / 156.25 = 6.4 */
    assert_int_equal(hits[2], 10);
    assert_int_equal(hits[3], 0);
    assert_true(en_span_due(&epochs, 157, 156.25, 0) && !en_span_due(&epochs, 156, 156.25, 0) && !en_span_due(&epochs, 158, 156.25, 0));
}

/* ---- plan ------------------------------------------------------------------------------------------------------------- */

static void plans_of_all_models_overlap_nowhere(void **state)
{
    (void)state;
    en_backend *be;
    assert_int_equal(en_backend_open("cpu", &(en_backend_config){ .threads = 1 }, &be), EN_OK);
    for (int i = 0; en_model_row_at(i); i++) {
        en_model *m;
        assert_int_equal(en_model_build(en_model_row_at(i), &(en_model_overrides){ .classes = 10 }, be->channel_align, &m), EN_OK);
        size_t sum = 0, bytes[2];
        for (int training = 0; training < 2; training++) {
            en_net_plan p;
            assert_int_equal(en_net_plan_make(&(en_net_config){ .be = be, .model = m, .max_images = 2, .training = training }, &p), EN_OK);
            assert_int_equal(en_plan_check(&p.activations), EN_OK);
            bytes[training] = p.activations.bytes;
            sum = 0;
            size_t busiest = 0;                                                /* what no plan can go below */
            for (int t = 0; t < 3 * m->n_blocks; t++) {
                size_t alive = 0;
                for (int b = 0; b < p.activations.n; b++)
                    if (p.activations.buffer[b].first <= t && t <= p.activations.buffer[b].last) alive += p.activations.buffer[b].bytes;
                busiest = alive > busiest ? alive : busiest;
            }
            for (int b = 0; b < p.activations.n; b++) sum += p.activations.buffer[b].bytes;
            assert_true(p.activations.bytes >= busiest);
            assert_true((double)p.activations.bytes <= 1.15 * (double)busiest);    /* and ours comes within 15 % of it */
            en_net_plan_free(&p);
        }
        assert_true(bytes[1] < sum);                                           /* transients lie in consumed activations */
        assert_true(2 * bytes[0] < bytes[1]);                                  /* evaluation needs less than half */
        en_model_free(m);
    }
    en_backend_close(be);
}

/* Planned without a GPU: B7 at 600 pixels leaves room for 180 images in 141 GB. */
static void b7_fits_a_gpu(void **state)
{
    (void)state;
    const en_model_row *row;
    en_backend *be;
    en_model *m;
    assert_int_equal(en_model_row_find("b7", &row), EN_OK);
    assert_int_equal(en_cuda_plan_open(&(en_backend_config){ .precision = EN_PRECISION_BF16 }, &be), EN_OK);
    assert_int_equal(en_model_build(row, &(en_model_overrides){ .resolution = 600 }, be->channel_align, &m), EN_OK);
    double bytes[2];
    for (int k = 0; k < 2; k++) {
        en_net_plan p;
        assert_int_equal(en_net_plan_make(&(en_net_config){ .be = be, .model = m, .max_images = k ? 180 : 90, .training = true, .slots = be->slots }, &p), EN_OK);
        assert_int_equal(en_plan_check(&p.activations), EN_OK);
        bytes[k] = (double)(p.activations.bytes + p.small_bytes);
        en_net_plan_free(&p);
    }
    print_message("# B7 at 600 px in bf16: %.1f MB an image, %.1f GB for 180\n", (bytes[1] - bytes[0]) / 90 / 1e6, bytes[1] / 1e9);
    assert_true((bytes[1] - bytes[0]) / 90 <= 700e6);
    assert_true(bytes[1] + 5.5 * 4 * (double)m->param_elems <= 0.9 * 141e9);
    en_model_free(m);
    en_backend_close(be);
}

static void an_overlap_is_found(void **state)
{
    (void)state;
    en_plan p = { 0 };
    en_plan_add(&p, 10000, 0, 5, "a");
    en_plan_add(&p, 10000, 5, 6, "b");
    en_plan_add(&p, 10000, 6, 9, "c");
    assert_int_equal(en_plan_place(&p), EN_OK);
    assert_int_equal(p.bytes, 2 * 12288);                                      /* c lies where a lay */
    p.buffer[1].offset = p.buffer[0].offset + 4096;
    assert_int_equal(en_plan_check(&p), EN_EINVAL);
    assert_non_null(strstr(en_error_message(), "b and a are alive together"));
    en_error_clear();
    en_plan_free(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rate_is_the_references), cmocka_unit_test(cosine_ends_at_zero_and_constant_stays),
        cmocka_unit_test(polynomial_is_the_references), cmocka_unit_test(average_ramps_up),
        cmocka_unit_test(spans_fall_once_a_period), cmocka_unit_test(plans_of_all_models_overlap_nowhere), cmocka_unit_test(an_overlap_is_found),
        cmocka_unit_test(b7_fits_a_gpu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
