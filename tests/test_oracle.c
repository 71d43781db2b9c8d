/* test_oracle.c - who checks the oracle: its gradients against central differences of its own forward functions, and its
 * forward functions against answers worked out by hand.
 *
 * Central difference of f at step h: error h^2/6 |f'''| + eps_double |f| / h.  With h = 1e-5 and values of order 1 both
 * are below 1e-9, so 1e-7 (relative to 1 + |want|) leaves room for third derivatives of some hundreds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "oracle.h"

enum { MAX = 4096 };

static uint64_t seed = 1;
static double uniform(void)                     /* splitmix64, in (-1, 1) */
{
    uint64_t z = seed += 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-52 - 1.0;
}
static void fill(double *x, int64_t n)          { for (int64_t i = 0; i < n; i++) x[i] = uniform(); }
static double dot(const double *a, const double *b, int64_t n) { double s = 0; for (int64_t i = 0; i < n; i++) s += a[i] * b[i]; return s; }

/* f(x) = <weight, forward(x)> is a number; `gradient` claims df/dx. */
typedef double scalar(void *env);
static void gradient_holds(const char *name, scalar *f, void *env, double *x, int64_t n, const double *gradient)
{
    for (int64_t i = 0; i < n; i++) {
        const double h = 1e-5, at = x[i];
        x[i] = at + h;
        const double up = f(env);
        x[i] = at - h;
        const double down = f(env);
        x[i] = at;
        const double want = (up - down) / (2 * h);
        if (!(fabs(gradient[i] - want) <= 1e-7 * (1 + fabs(want))))
            fail_msg("%s: element %d: gradient %.12g, difference quotient %.12g", name, (int)i, gradient[i], want);
    }
}

typedef struct { en_conv_geom g; oracle_bilinear *f; double x[MAX], wt[MAX], y[MAX], weight[MAX]; } conv_env;
static double conv_scalar(void *p)
{
    conv_env *e = p;
    e->f(&e->g, e->x, e->wt, e->y);
    return dot(e->y, e->weight, e->g.n * e->g.oh * e->g.ow * e->g.oc);
}

static void convolution_gradients_are_difference_quotients(void **state)
{
    (void)state;
    static conv_env e;
    static double dx[MAX], dwt[MAX];
    for (int kernel = 1; kernel <= 5; kernel += 2)
        for (int stride = 1; stride <= 2; stride++)
            for (int h = 1; h <= 6; h += h == 1 ? 3 : 1)
                for (int dense = 0; dense < 2; dense++) {
                    e.g = oracle_same(2, h, 5, 3, dense ? 2 : 3, kernel, stride);
                    e.f = dense ? oracle_conv : oracle_depthwise;
                    const int64_t nx = 2 * h * 5 * 3, nw = kernel * kernel * 3 * (dense ? 2 : 1), ny = 2 * e.g.oh * e.g.ow * e.g.oc;
                    fill(e.x, nx), fill(e.wt, nw), fill(e.weight, ny);
                    (dense ? oracle_conv_dx : oracle_depthwise_dx)(&e.g, e.weight, e.wt, dx);
                    (dense ? oracle_conv_dwt : oracle_depthwise_dwt)(&e.g, e.x, e.weight, dwt);
                    gradient_holds("dx", conv_scalar, &e, e.x, nx, dx);
                    gradient_holds("dwt", conv_scalar, &e, e.wt, nw, dwt);
                }
}

/* One image of 4x4 ones, 3x3 ones, stride 2: SAME puts no zeros above, one below, so windows hold 9, 6, 6 and 4 ones. */
static void same_padding_is_lopsided_for_even_sizes(void **state)
{
    (void)state;
    double x[16], wt[9], y[4];
    for (int i = 0; i < 16; i++) x[i] = 1;
    for (int i = 0; i < 9; i++) wt[i] = 1;
    const en_conv_geom g = oracle_same(1, 4, 4, 1, 1, 3, 2);
    oracle_conv(&g, x, wt, y);
    assert_int_equal(g.pad, 0);
    const double want[4] = { 9, 6, 6, 4 };
    assert_memory_equal(y, want, sizeof want);
    assert_int_equal(oracle_same(1, 224, 224, 1, 1, 5, 2).pad, 1);
    assert_int_equal(oracle_same(1, 75, 75, 1, 1, 5, 2).pad, 2);
    assert_int_equal(oracle_same(1, 75, 75, 1, 1, 3, 1).pad, 1);
}

typedef struct { double y[MAX], gamma[8], beta[8], mean[8], var[8], out[MAX], weight[MAX]; } bn_env;
enum { BN_ROWS = 7, BN_C = 3 };
static double bn_scalar(void *p)
{
    bn_env *e = p;
    oracle_bn(BN_ROWS, BN_C, e->y, e->gamma, e->beta, 1e-3, e->mean, e->var, e->out);
    return dot(e->out, e->weight, BN_ROWS * BN_C);
}

static void batch_norm_gradients_are_difference_quotients(void **state)
{
    (void)state;
    static bn_env e;
    double dy[BN_ROWS * BN_C], dgamma[BN_C], dbeta[BN_C];
    fill(e.y, BN_ROWS * BN_C), fill(e.gamma, BN_C), fill(e.beta, BN_C), fill(e.weight, BN_ROWS * BN_C);
    oracle_bn_backward(BN_ROWS, BN_C, e.y, e.gamma, 1e-3, e.weight, dy, dgamma, dbeta);
    gradient_holds("dy", bn_scalar, &e, e.y, BN_ROWS * BN_C, dy);
    gradient_holds("dgamma", bn_scalar, &e, e.gamma, BN_C, dgamma);
    gradient_holds("dbeta", bn_scalar, &e, e.beta, BN_C, dbeta);
    const double two[2] = { 1, 3 }, g = 2, b = 5;                         /* mean 2, biased variance 1 */
    oracle_bn(2, 1, two, &g, &b, 3.0, e.mean, e.var, e.out);
    assert_true(e.mean[0] == 2 && e.var[0] == 1 && fabs(e.out[0] - 4) < 1e-15 && fabs(e.out[1] - 6) < 1e-15);
}

typedef struct { double u[MAX], wr[64], br[8], we[64], be[16], pooled[64], hidden[64], gate[64], out[MAX], weight[MAX]; } se_env;
enum { SE_N = 2, SE_HW = 5, SE_C = 6, SE_Q = 3 };
static double se_scalar(void *p)
{
    se_env *e = p;
    oracle_se(SE_N, SE_HW, SE_C, SE_Q, e->u, e->wr, e->br, e->we, e->be, e->pooled, e->hidden, e->gate, e->out);
    return dot(e->out, e->weight, SE_N * SE_HW * SE_C);
}

static void squeeze_excite_gradients_are_difference_quotients(void **state)
{
    (void)state;
    static se_env e;
    static double du[MAX], dwr[64], dbr[8], dwe[64], dbe[16];
    fill(e.u, SE_N * SE_HW * SE_C), fill(e.wr, SE_Q * SE_C), fill(e.br, SE_Q), fill(e.we, SE_Q * SE_C), fill(e.be, SE_C);
    fill(e.weight, SE_N * SE_HW * SE_C);
    se_scalar(&e);
    oracle_se_backward(SE_N, SE_HW, SE_C, SE_Q, e.u, e.wr, e.we, e.pooled, e.hidden, e.gate, e.weight, du, dwr, dbr, dwe, dbe);
    gradient_holds("du", se_scalar, &e, e.u, SE_N * SE_HW * SE_C, du);
    gradient_holds("dwr", se_scalar, &e, e.wr, SE_Q * SE_C, dwr);
    gradient_holds("dbr", se_scalar, &e, e.br, SE_Q, dbr);
    gradient_holds("dwe", se_scalar, &e, e.we, SE_Q * SE_C, dwe);
    gradient_holds("dbe", se_scalar, &e, e.be, SE_C, dbe);
}

typedef struct { double x[64], wt[64], bias[8], y[64], weight[64], pooled[8]; } dense_env;
static double dense_scalar(void *p) { dense_env *e = p; oracle_dense(3, 5, 4, e->x, e->wt, e->bias, e->y); return dot(e->y, e->weight, 12); }
static double pool_scalar(void *p)  { dense_env *e = p; oracle_pool(2, 3, 4, e->x, e->pooled); return dot(e->pooled, e->weight, 8); }

static void dense_and_pooling_gradients_are_difference_quotients(void **state)
{
    (void)state;
    static dense_env e;
    double dx[64], dwt[64], dbias[8];
    fill(e.x, 24), fill(e.wt, 20), fill(e.bias, 4), fill(e.weight, 12);
    oracle_dense_backward(3, 5, 4, e.x, e.wt, e.weight, dx, dwt, dbias);
    gradient_holds("dx", dense_scalar, &e, e.x, 15, dx);
    gradient_holds("dwt", dense_scalar, &e, e.wt, 20, dwt);
    gradient_holds("dbias", dense_scalar, &e, e.bias, 4, dbias);
    oracle_pool_backward(2, 3, 4, e.weight, dx);
    gradient_holds("pool", pool_scalar, &e, e.x, 24, dx);
}

typedef struct { en_conv_geom g; double x[MAX], y[MAX], weight[MAX]; uint8_t at[MAX]; } max_env;
static double max_scalar(void *p) { max_env *e = p; oracle_max_pool(&e->g, e->x, e->y, e->at); return dot(e->y, e->weight, e->g.n * e->g.oh * e->g.ow * e->g.c); }

/* Random numbers lie far apart compared with a step of 1e-5, so that no step moves the place of a maximum. */
static void max_pool_gradients_are_difference_quotients(void **state)
{
    (void)state;
    static max_env e;
    static double dx[MAX];
    for (int kernel = 2; kernel <= 4; kernel++)
        for (int stride = 1; stride <= 3; stride++) {
            e.g = oracle_same(2, 6, 5, 3, 3, kernel, stride);
            fill(e.x, 180), fill(e.weight, 2 * e.g.oh * e.g.ow * 3);
            max_scalar(&e);
            oracle_max_pool_backward(&e.g, e.at, e.weight, dx);
            gradient_holds("max pool", max_scalar, &e, e.x, 180, dx);
        }
}

/* Windows of 3 x 3 with stride 2 over 3 x 3, a row and a column left out on each side: ties go to the first, a NaN to itself. */
static void max_pools_are_those_worked_out_by_hand(void **state)
{
    (void)state;
    const en_conv_geom g = { .n = 1, .h = 3, .w = 3, .c = 1, .oh = 2, .ow = 2, .oc = 1, .kernel = 3, .stride = 2, .pad = 1 };
    const double x[9] = { -3, -1, 2,  -1, -2, 2,  NAN, 5, NAN }, dy[4] = { 1, 10, 100, 1000 }, want[9] = { 0, 1, 10,  0, 0, 0,  100, 0, 1000 };
    double y[4], dx[9];
    uint8_t at[4];
    oracle_max_pool(&g, x, y, at);
    assert_true(y[0] == -1 && y[1] == 2 && isnan(y[2]) && isnan(y[3]));
    assert_true(at[0] == 5 && at[1] == 4 && at[2] == 4 && at[3] == 4);
    oracle_max_pool_backward(&g, at, dy, dx);
    assert_memory_equal(dx, want, sizeof want);
}

static double loss_scalar(void *p)
{
    double target[7];
    oracle_target(7, 4, 2, 0.7, 0.1, target);
    return oracle_cross_entropy(7, p, target, NULL);
}
static double relu_scalar(void *p)  { return oracle_act(EN_ACT_RELU, *(double *)p); }
static double relu6_scalar(void *p) { return oracle_act(EN_ACT_RELU6, *(double *)p); }
static double silu_scalar(void *p) { return oracle_act(EN_ACT_SILU, *(double *)p); }

static void loss_and_activation_gradients_are_difference_quotients(void **state)
{
    (void)state;
    double logits[7], d[7], target[7];
    fill(logits, 7);
    oracle_target(7, 4, 2, 0.7, 0.1, target);
    oracle_cross_entropy(7, logits, target, d);
    gradient_holds("cross entropy", loss_scalar, logits, logits, 7, d);
    for (double x = -20; x <= 20; x += 0.37) {
        double at = x, want = oracle_dact(EN_ACT_SILU, x);
        gradient_holds("silu", silu_scalar, &at, &at, 1, &want);
    }
    for (double x = -2; x <= 8; x += 0.37) {
        double at = x, relu = oracle_dact(EN_ACT_RELU, x), relu6 = oracle_dact(EN_ACT_RELU6, x);
        gradient_holds("relu", relu_scalar, &at, &at, 1, &relu);
        gradient_holds("relu6", relu6_scalar, &at, &at, 1, &relu6);
    }
    assert_true(oracle_act(EN_ACT_RELU, -3) == 0 && oracle_act(EN_ACT_RELU, 9) == 9 && oracle_act(EN_ACT_RELU6, 9) == 6);
    assert_true(oracle_dact(EN_ACT_RELU, 0) == 0 && oracle_dact(EN_ACT_RELU6, 0) == 0 && oracle_dact(EN_ACT_RELU6, 6) == 0);
    assert_true(oracle_act(EN_ACT_SILU, 0) == 0 && oracle_dact(EN_ACT_SILU, 0) == 0.5);
    const double even[4] = { 0 };                                       /* uniform softmax: log 4 whatever the smoothing */
    oracle_target(4, 1, 3, 0.6, 0.3, target);
    assert_true(fabs(oracle_cross_entropy(4, even, target, NULL) - log(4)) < 1e-15);
}

/* Mixed first, smoothed after: 0.9*0.75 + 0.1/4 = 0.7 and 0.9*0.25 + 0.1/4 = 0.25; a label without a share is not looked at. */
static void targets_are_those_worked_out_by_hand(void **state)
{
    (void)state;
    static const struct { int32_t label, mate; double share, want[4]; } cases[] = {
        { 1, 2, 0.75, { 0.025, 0.7, 0.25, 0.025 } }, { 1, -9, 1, { 0.025, 0.925, 0.025, 0.025 } }, { 99, 3, 0, { 0.025, 0.025, 0.025, 0.925 } },
        { 2, 2, 0.25, { 0.025, 0.025, 0.925, 0.025 } } };
    for (int k = 0; k < 4; k++) {
        double target[4];
        oracle_target(4, cases[k].label, cases[k].mate, cases[k].share, 0.1, target);
        for (int j = 0; j < 4; j++) assert_true(fabs(target[j] - cases[k].want[j]) < 1e-15);
    }
}

/* ms = 1 + (4 - 1)*0.1 = 1.3; mom = 0.5*1 + 0.1*2/sqrt(1.3 + 0.14) = 0.5 + 1/6; w = 1 - 2/3; ema = 1/2 of the way. */
static void rmsprop_takes_the_step_worked_out_by_hand(void **state)
{
    (void)state;
    const en_rmsprop h = { .rho = 0.9f, .momentum = 0.5f, .eps = 0.14f, .weight_decay = 0.5f };
    const en_now now = { .lr = 0.1f, .ema_decay = 0.5f };
    const oracle_state s = oracle_rmsprop(&h, &now, true, 1.5, (oracle_state){ .w = 1, .slot = { 1, 1 }, .ema = 1 });
    assert_true(fabs(s.slot[0] - 1.3) < 1e-6 && fabs(s.slot[1] - 2. / 3) < 1e-6 && fabs(s.w - 1. / 3) < 1e-6 && fabs(s.ema - 2. / 3) < 1e-6);
    const oracle_state t = oracle_rmsprop(&h, &now, false, 2.0, (oracle_state){ .w = 1, .slot = { 1, 1 }, .ema = 1 });
    assert_true(t.slot[0] == s.slot[0] && t.w == s.w);                  /* 1.5 + 0.5*1 and 2.0 are the same gradient */
}

/* g = 1.5 + 0.5*1 = 2; mom = 0.5*2 + 2 = 3; w = 1 - 0.25*3 = 0.25, by Nesterov 1 - 0.25*(2 + 0.5*3) = 0.125. */
static void sgd_takes_the_steps_worked_out_by_hand(void **state)
{
    (void)state;
    const en_now now = { .lr = 0.25f, .ema_decay = 0.5f };
    en_sgd h = { .momentum = 0.5f, .weight_decay = 0.5f };
    oracle_state s = oracle_sgd(&h, &now, true, 1.5, (oracle_state){ .w = 1, .slot = { 2 }, .ema = 1 });
    assert_true(s.slot[0] == 3 && s.w == 0.25 && s.ema == 0.625);
    s = oracle_sgd(&h, &now, false, 1.5, (oracle_state){ .w = 1, .slot = { 2 } });
    assert_true(s.slot[0] == 2.5 && s.w == 0.375);
    h.nesterov = true;
    s = oracle_sgd(&h, &now, true, 1.5, (oracle_state){ .w = 1, .slot = { 2 } });
    assert_true(s.slot[0] == 3 && s.w == 0.125);
}

/* |w| = 5, |grad| = 10: trust = 0.5*5/(10 + 0.5*5) = 0.2, without decay 0.25, 1 where a norm is 0.  g = 0.25*0.2*(3.5 + 0.5*1) = 0.2;
 * mom = 0.5*0.4 + 0.2 = 0.4; w = 1 - 0.4, by Nesterov 1 - (0.2 + 0.5*0.4) = 0.6 as well; from mom = 0: 0.2, 0.8 and 0.7. */
static void lars_takes_the_steps_worked_out_by_hand(void **state)
{
    (void)state;
    const en_now now = { .lr = 0.25f };
    en_lars h = { .momentum = 0.5f, .trust = 0.5f, .weight_decay = 0.5f };
    assert_true(fabs(oracle_trust(&h, true, 5, 10) - 0.2) < 1e-15 && oracle_trust(&h, false, 5, 10) == 0.25);
    assert_true(oracle_trust(&h, true, 0, 10) == 1 && oracle_trust(&h, true, 5, 0) == 1 && oracle_trust(&h, true, 5, NAN) == 1);
    oracle_state s = oracle_lars(&h, &now, true, 0.2, 3.5, (oracle_state){ .w = 1, .slot = { 0.4 } });
    assert_true(fabs(s.slot[0] - 0.4) < 1e-15 && fabs(s.w - 0.6) < 1e-15);
    h.nesterov = true;
    s = oracle_lars(&h, &now, true, 0.2, 3.5, (oracle_state){ .w = 1 });
    assert_true(fabs(s.slot[0] - 0.2) < 1e-15 && fabs(s.w - 0.7) < 1e-15);
    h.eps = 5;
    assert_true(fabs(oracle_trust(&h, false, 5, 5) - 0.25) < 1e-15);
}

/* The first step is one of size lr whatever the gradient, once the bias is corrected: m/(1-b1) = g, v/(1-b2) = g^2.  With decay 0.5
 * of w = 2 it is 0.25*(1 + 1).  The second follows below. */
static void adamw_takes_the_steps_worked_out_by_hand(void **state)
{
    (void)state;
    const en_now now = { .lr = 0.25f };
    const en_adamw h = { .beta1 = 0.5, .beta2 = 0.75, .weight_decay = 0.5f };
    oracle_state s = oracle_adamw(&h, &now, true, 1, 3, (oracle_state){ .w = 2 });
    assert_true(s.slot[0] == 1.5 && s.slot[1] == 2.25 && fabs(s.w - 1.5) < 1e-15);
    s = oracle_adamw(&h, &now, false, 2, -3, s);                       /* m = 0.75 - 1.5 = -0.75, /0.75 = -1; v = 3.9375, /0.4375 = 9 */
    assert_true(s.slot[0] == -0.75 && s.slot[1] == 3.9375 && fabs(s.w - (1.5 + 0.25 / 3)) < 1e-15);
    s = oracle_adamw(&(en_adamw){ .beta1 = 0, .beta2 = 0, .eps = 1 }, &now, false, 7, 3, (oracle_state){ .w = 2 });
    assert_true(fabs(s.w - (2 - 0.25 * 3 / 4)) < 1e-15);                 /* eps is outside the root */
}

static void hits_count_ties_against_the_higher_index(void **state)
{
    (void)state;
    const float z[4] = { 1, 3, 3, 2 }, bad[4] = { 1, NAN, 3, 2 };
    assert_true(oracle_hit(4, z, 1, 1) && !oracle_hit(4, z, 2, 1) && oracle_hit(4, z, 2, 2) && !oracle_hit(4, z, 0, 3) && oracle_hit(4, z, 0, 4));
    assert_false(oracle_hit(4, bad, 2, 4));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(convolution_gradients_are_difference_quotients),
        cmocka_unit_test(same_padding_is_lopsided_for_even_sizes),
        cmocka_unit_test(batch_norm_gradients_are_difference_quotients),
        cmocka_unit_test(squeeze_excite_gradients_are_difference_quotients),
        cmocka_unit_test(dense_and_pooling_gradients_are_difference_quotients),
        cmocka_unit_test(max_pool_gradients_are_difference_quotients),
        cmocka_unit_test(max_pools_are_those_worked_out_by_hand),
        cmocka_unit_test(loss_and_activation_gradients_are_difference_quotients),
        cmocka_unit_test(targets_are_those_worked_out_by_hand),
        cmocka_unit_test(rmsprop_takes_the_step_worked_out_by_hand),
        cmocka_unit_test(sgd_takes_the_steps_worked_out_by_hand),
        cmocka_unit_test(lars_takes_the_steps_worked_out_by_hand),
        cmocka_unit_test(adamw_takes_the_steps_worked_out_by_hand),
        cmocka_unit_test(hits_count_ties_against_the_higher_index),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
