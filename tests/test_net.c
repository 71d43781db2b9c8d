/* test_net.c - the program's net (trainer/net.c) against the reference network: loss, logits, every gradient, every running
 * statistic, with dropout and stochastic depth as the net drew them, and in evaluation.
 *
 * Tolerance.  Batch norms over the few values that small images leave in the last stages amplify rounding, some tensors a
 * thousandfold.  How much, the reference itself tells: weights and images are changed by a relative u at random, and errors
 * are counted in units of what that moves the answers by, d_i.
 *     fp32, u = 2^-24.  A net of L passes rounds each tensor on its way a few times; if each rounding does what the one at the
 *     inputs did, L of them do sqrt(L) times as much, and 64 leaves room for sums and for the sigmoid's 4e-6, which is 60u but
 *     confined to the activations.  In the median over tensors 16.
 *     bf16, u = 2^-8, which is what storing rounds by: weights and activations once each, sums are float.  Measured: 0.9 d_i
 *     in the median over tensors, 4 d_i for the worst, of three values.  Twice as much is allowed.
 * Norms are those of a tensor; of gamma and beta together for either (partner(), net_help.h).  Evaluation amplifies
 * nothing: 1e-5, and 4u of bf16. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "net_help.h"
#include "trainer/freeze.h"

enum { MAX_N = 5 };
typedef struct { const char *row; en_model_overrides o; int64_t n; bool mixed; const char *what; } net_case;

/* As small as they may be: batch norms of the last stage are over 12 values and more. */
static const net_case cases[] = {
    { "b0", { .width = 0.25, .depth = 0.3, .resolution = 36, .classes = 3 },                                     4, false, "the first block has a skip" },
    { "b3", { .width = 0.4, .depth = 0.4, .resolution = 43, .classes = 100, .dropout = 0.5f },                   3, true,  "odd sides, other widths" },
    { "b1", { .width = 0.25, .resolution = 40, .classes = 17, .dropout = 0.3f, .drop_path = 0.5f },              5, true,  "dropout, stochastic depth, two blocks in stage 0" },
    { "v2s", { .width = 0.34, .depth = 0.13, .resolution = 35, .classes = 7, .dropout = 0.2f, .drop_path = 0.4f }, 5, false, "fused blocks, the first without expansion" },
    { "v2b0", { .width = 0.25, .depth = 0.51, .resolution = 33, .classes = 6, .drop_path = 0.3f },                 4, true,  "fused blocks with skips" },
    { "mbv1", { .width = 0.2, .depth = 0.3, .resolution = 50, .classes = 9, .dropout = 0.3f },                     5, true,  "blocks that end in an activation, no head" },
    { "mbv2", { .width = 0.2, .depth = 0.4, .resolution = 45, .classes = 8, .dropout = 0.2f, .drop_path = 0.4f },  4, false, "relu6, symmetric padding" },
    { "r50", { .width = 0.125, .depth = 0.3, .resolution = 41, .classes = 12, .dropout = 0.2f, .drop_path = 0.4f }, 4, true,  "bottlenecks, a pool" },
    { "r50v1", { .width = 0.125, .depth = 0.25, .resolution = 34, .classes = 5, .padding = EN_PADDING_SAME },      4, false, "bottlenecks with the stride first, SAME" },
};
enum { N_CASES = sizeof cases / sizeof *cases };

typedef struct { en_model *m; double **tensors, *images; int32_t labels[MAX_N], mates[MAX_N]; float shares[MAX_N]; } inputs;

static inputs inputs_make(const net_case *c)
{
    inputs in = { .m = model_make(c->row, &c->o, net_align) };
    in.tensors = oracle_tensors(in.m);
    formula_tensors(in.m, 31, in.tensors);
    in.images = formula_images(31, MAX_N, in.m->resolution, true, en_normalise_by(in.m->normalise));
    for (int i = 0; i < MAX_N; i++) in.labels[i] = (i * 7 + 1) % in.m->classes, in.mates[i] = (i * 3 + 2) % in.m->classes, in.shares[i] = 0.2f * (float)i;
    return in;
}

static void inputs_free(inputs *in)
{
    oracle_tensors_free(in->m, in->tensors);
    free(in->images);
    en_model_free(in->m);
}

static double off(const double *got, const double *want, int64_t n, double scale)
{
    double square = 0;
    for (int64_t i = 0; i < n; i++) square += (got[i] - want[i]) * (got[i] - want[i]);
    return sqrt(square) / scale;
}

static double norm(const double *x, int64_t n)
{
    double square = 0;
    for (int64_t i = 0; i < n; i++) square += x[i] * x[i];
    return sqrt(square);
}

static double scale_of(const en_model *m, double *const *want, int i)
{
    const int other = partner(m, i);
    return hypot(norm(want[i], en_tensor_count(&m->tensors[i])), other < 0 ? 0 : norm(want[other], en_tensor_count(&m->tensors[i])));
}

/* d_i: the largest change of three perturbations by u, relative, and at least u; after the tensors that of the logits */
static double *amplification(const inputs *in, const oracle_batch *b, double u, double *const *want, const double *logits)
{
    const en_model *m = in->m;
    double **moved = oracle_tensors(m), **got = oracle_tensors(m), *d = calloc((size_t)m->n_tensors + 1, sizeof *d), there[MAX_N * 100];
    const int64_t pixels = b->n * m->resolution * m->resolution * 3;
    double *images = malloc((size_t)pixels * sizeof *images);
    oracle_batch shaken = *b;
    shaken.images = images;
    for (int k = 0; k < 3; k++) {
        for (int i = 0; i < m->n_tensors; i++)
            for (int64_t e = 0, n = en_tensor_count(&m->tensors[i]); e < n; e++)
                moved[i][e] = in->tensors[i][e] * (1 + formula(100 + (uint64_t)k, (uint32_t)i, e, 0, u));
        for (int64_t i = 0; i < pixels; i++) images[i] = in->images[i] * (1 + formula(100 + (uint64_t)k, 65535, i, 0, u));
        oracle_net(m, moved, &shaken, there, got);
        d[m->n_tensors] = fmax(d[m->n_tensors], fmax(u, off(there, logits, b->n * m->classes, norm(logits, b->n * m->classes))));
        for (int i = 0; i < m->n_tensors; i++) d[i] = fmax(d[i], fmax(u, off(got[i], want[i], en_tensor_count(&m->tensors[i]), scale_of(m, want, i))));
    }
    oracle_tensors_free(m, moved);
    oracle_tensors_free(m, got);
    free(images);
    return d;
}

typedef struct { double off, times, median; int at; } outcome;   /* the largest error; in units of d_i the largest, whose, and the median */

static int by_size(const void *a, const void *b) { return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b); }

static outcome compare(const en_model *m, double *const *got, double *const *want, const double *d)
{
    outcome o = { 0 };
    double *times = malloc((size_t)m->n_tensors * sizeof *times);
    for (int i = 0; i < m->n_tensors; i++) {
        const double x = off(got[i], want[i], en_tensor_count(&m->tensors[i]), scale_of(m, want, i));
        times[i] = x / d[i];
        if (!(x <= o.off)) o.off = x;
        if (!(times[i] <= o.times)) o.times = times[i], o.at = i;
    }
    qsort(times, (size_t)m->n_tensors, sizeof *times, by_size);
    o.median = times[m->n_tensors / 2];
    free(times);
    return o;
}

static bool expands(const en_model *m)
{
    bool some = false;
    for (int b = 0; b < m->n_blocks; b++) some |= m->blocks[b].expand;
    return some;
}

/* Dense convolutions in bf16 are what an emulated device takes longest for: of these nets one with fused blocks and one with bottlenecks, and
 * one way to fold, which is about 1x1 convolutions. */
static bool left_out(en_precision precision, const net_case *c, int device, const en_model *m)
{
    bool dense = false;
    for (int b = 0; b < m->n_blocks; b++) dense |= !en_block_is_depthwise(&m->blocks[b]);
    return precision == EN_PRECISION_BF16 && dense && (device > 0 || (strcmp(c->row, "v2s") != 0 && strcmp(c->row, "r50") != 0));
}

static void training_step(en_precision precision, double u, double most, double median)
{
    for (int c = 0; c < N_CASES; c++) {
        inputs in = inputs_make(&cases[c]);
        double **want = oracle_tensors(in.m), *d = NULL, logits[MAX_N * 100], loss = 0;
        outcome all = { 0 };
        net_way way = { .lanes = 3, .threads = 2, .training = true, .max_images = MAX_N, .passes = 1, .now = { .seed = 3, .step = 11, .first = 100 } };
        if (cases[c].mixed) way.mixing = true, way.mates = in.mates, way.shares = in.shares;
        const char *name;
        for (int k = 0; (name = net_device(precision, k, &way)) && !left_out(precision, &cases[c], k, in.m); k++) {
            net_result r = net_run(in.m, &way, in.tensors, cases[c].n, in.images, in.labels);
            const oracle_batch b = { .n = cases[c].n, .images = in.images, .labels = in.labels, .mates = way.mates, .shares = way.shares, .smoothing = 0.1,
                                     .dropout = r.dropout, .drop = r.drop };
            if (cases[c].o.dropout > 0) assert_non_null(r.dropout);
            if (way.folds && (way.folds[0] == 'a' && expands(in.m)) != (r.folded > 0)) fail_msg("%s, %s: %d convolutions folded", cases[c].what, name, r.folded);
            if (!d) loss = oracle_net(in.m, in.tensors, &b, logits, want), d = amplification(&in, &b, u, want, logits);
            const outcome o = compare(in.m, r.answers, want, d);
            const double of = norm(logits, b.n * in.m->classes), l = off(r.logits, logits, b.n * in.m->classes, of);
            if (!(o.times <= most) || !(o.median <= median))
                fail_msg("%s, %s: %s is off by %.3g, %.1f times what %.2g of the inputs does; %.1f (median)", cases[c].what, name, in.m->tensors[o.at].name, o.times * d[o.at],
                         o.times, u, o.median);
            if (!(l <= most * d[in.m->n_tensors])) fail_msg("%s, %s: logits off by %.3g, %.1f times what %.2g of the inputs does", cases[c].what, name, l, l / d[in.m->n_tensors], u);
            if (!(fabs(r.loss / (double)b.n - loss) <= sqrt(2 / (double)b.n) * l * of + 1e-5 * loss))   /* |softmax - target| <= sqrt(2) */
                fail_msg("%s, %s: loss %g want %g", cases[c].what, name, r.loss / (double)b.n, loss);
            all.off = fmax(all.off, o.off), all.times = fmax(all.times, o.times), all.median = fmax(all.median, o.median);
            net_result_free(in.m, &r);
        }
        if (d) print_message("# %s, %d blocks: worst tensor off by %.2g; by %.2g times what %.2g of the inputs does, %.2g (median)\n", cases[c].what, in.m->n_blocks, all.off,
                      all.times, u, all.median);
        free(d);
        oracle_tensors_free(in.m, want);
        inputs_free(&in);
    }
}

static void a_training_step_is_that_of_the_reference(void **state)
{
    (void)state;
    training_step(EN_PRECISION_F32, 0x1p-24, 64, 16);
}

/* Masks are part of the reference's inputs above; here: they are 0 or 1/keep, at about the rate that the model states. */
static void masks_have_the_values_and_rates_of_the_model(void **state)
{
    (void)state;
    inputs in = inputs_make(&cases[2]);
    const en_model *m = in.m;
    int64_t dropped = 0, features = 0;
    double branches = 0, expected = 0, variance = 0;
    for (int step = 0; step < 4; step++) {
        const net_way way = { .lanes = 2, .threads = 2, .training = true, .max_images = MAX_N, .passes = 1, .now = { .seed = 9, .step = step, .first = step } };
        net_result r = net_run(m, &way, in.tensors, MAX_N, in.images, in.labels);
        for (int64_t i = 0; i < MAX_N * m->head.co; i++) {
            if (!(r.dropout[i] == 0 || fabs(r.dropout[i] - 1 / 0.7) < 1e-6)) fail_msg("dropout factor %g", r.dropout[i]);
            dropped += r.dropout[i] == 0, features++;
        }
        for (int k = 0; k < m->n_blocks; k++) {
            const double p = 0.5 * k / m->n_blocks;             /* arXiv:1603.09382: linear in the block's index */
            if (!m->blocks[k].skip || k == 0) { assert_null(r.drop[k]); continue; }
            for (int i = 0; i < MAX_N; i++) {
                if (!(r.drop[k][i] == 0 || fabs(r.drop[k][i] - 1 / (1 - p)) < 1e-6)) fail_msg("block %d: factor %g, keeps %g", k, r.drop[k][i], 1 - p);
                branches += r.drop[k][i] == 0, expected += p, variance += p * (1 - p);
            }
        }
        net_result_free(m, &r);
    }
    assert_true(fabs((double)dropped - 0.3 * (double)features) < 5 * sqrt(0.21 * (double)features));
    assert_true(expected > 50 && fabs(branches - expected) < 5 * sqrt(variance));
    inputs_free(&in);
}

static void evaluation(en_precision precision, double tolerance)
{
    for (int c = 0; c < N_CASES; c++) {
        inputs in = inputs_make(&cases[c]);
        double logits[MAX_N * 100];
        const oracle_batch b = { .n = cases[c].n, .images = in.images, .labels = in.labels, .smoothing = 0.1, .frozen = true };
        const double loss = oracle_net(in.m, in.tensors, &b, logits, NULL);
        net_way way = { .lanes = 3, .threads = 2, .max_images = MAX_N, .passes = 1 };
        const char *name;
        for (int k = 0; (name = net_device(precision, k, &way)) && !(way.folds && k) && !left_out(precision, &cases[c], k, in.m); k++) {       /* nothing folds here */
            net_result r = net_run(in.m, &way, in.tensors, b.n, in.images, in.labels);
            const double l = off(r.logits, logits, b.n * in.m->classes, norm(logits, b.n * in.m->classes));
            if (!(l <= tolerance) || !(fabs(r.loss / (double)b.n - loss) <= tolerance * loss)) fail_msg("%s, %s: logits off by %.3g", cases[c].what, name, l);
            for (int i = 0; i < in.m->n_tensors; i++)           /* evaluation leaves the running statistics alone */
                if (in.m->tensors[i].arena == EN_ARENA_STATS)
                    assert_memory_equal(r.answers[i], in.tensors[i], (size_t)en_tensor_count(&in.m->tensors[i]) * sizeof(double));
            net_result_free(in.m, &r);
        }
        inputs_free(&in);
    }
}

static void evaluation_is_that_of_the_reference(void **state)
{
    (void)state;
    evaluation(EN_PRECISION_F32, 1e-5);
}

static void same_bits(const en_model *m, const net_result *a, const net_result *b, int64_t n, const char *what)
{
    if (memcmp(a->logits, b->logits, (size_t)(n * m->classes) * sizeof(double)) || a->loss != b->loss || a->top1 != b->top1 || a->images != b->images)
        fail_msg("%s: other logits", what);
    for (int i = 0; i < m->n_tensors; i++)
        if (memcmp(a->answers[i], b->answers[i], (size_t)en_tensor_count(&m->tensors[i]) * sizeof(double))) fail_msg("%s: other bits in %s", what, m->tensors[i].name);
}

#ifdef EN_TEST_CUDA
static void a_training_step_in_bf16_is_that_of_the_reference(void **state)
{
    (void)state;
    training_step(EN_PRECISION_BF16, 0x1p-8, 8, 2);
}

static void evaluation_in_bf16_is_that_of_the_reference(void **state)
{
    (void)state;
    evaluation(EN_PRECISION_BF16, 4 * 0x1p-8);
}

static void a_recorded_step_gives_the_bits_of_an_eager_one(void **state)
{
    (void)state;
    for (int precision = EN_PRECISION_F32; precision <= EN_PRECISION_BF16; precision++) {
        inputs in = inputs_make(&cases[6]);
        net_way way = { .training = true, .max_images = MAX_N, .passes = 1, .now = { .seed = 3, .step = 5 }, .mixing = true, .mates = in.mates, .shares = in.shares };
        const char *name;
        for (int k = 0; (name = net_device(precision, k % 2, &way)) && k < 4; k++) {
            way.recorded = false;
            way.frozen = k < 2 ? 0 : 3;                        /* the stem and two blocks */
            net_result eager = net_run(in.m, &way, in.tensors, 4, in.images, in.labels);
            way.recorded = true;
            net_result replayed = net_run(in.m, &way, in.tensors, 4, in.images, in.labels);
            same_bits(in.m, &replayed, &eager, 4, name);
            net_result_free(in.m, &eager);
            net_result_free(in.m, &replayed);
        }
        inputs_free(&in);
    }
}
#else
static void equal_lanes_give_equal_bits_whatever_the_threads(void **state)
{
    (void)state;
    inputs in = inputs_make(&cases[2]);
    net_result one = { 0 };
    for (int threads = 1; threads <= 3; threads++) {
        const net_way way = { .lanes = 4, .threads = threads, .training = true, .max_images = MAX_N, .passes = 1, .now = { .seed = 3 } };
        net_result r = net_run(in.m, &way, in.tensors, 5, in.images, in.labels);
        if (threads == 1) { one = r; continue; }
        same_bits(in.m, &r, &one, 5, "threads");
        net_result_free(in.m, &r);
    }
    net_result_free(in.m, &one);
    inputs_free(&in);
}
#endif

/* A net that is opened for mates reads them of every batch: of hard labels they say nothing new. */
static void hard_labels_give_the_same_bits_in_a_net_for_mixed_ones(void **state)
{
    (void)state;
    inputs in = inputs_make(&cases[0]);
    net_way way = { .training = true, .max_images = MAX_N, .passes = 1 };
    const char *name;
    for (int k = 0; (name = net_device(EN_PRECISION_F32, k, &way)); k++) {
        way.mixing = false;
        net_result hard = net_run(in.m, &way, in.tensors, 4, in.images, in.labels);
        way.mixing = true;
        net_result said = net_run(in.m, &way, in.tensors, 4, in.images, in.labels);
        same_bits(in.m, &said, &hard, 4, name);
        net_result_free(in.m, &hard);
        net_result_free(in.m, &said);
    }
    inputs_free(&in);
}

static void mates_need_a_net_that_is_planned_for_them(void **state)
{
    (void)state;
    inputs in = inputs_make(&cases[0]);
    net_way way = { 0 };
    net_device(EN_PRECISION_F32, 0, &way);
    en_backend *be;
    assert_int_equal(en_backend_open(way.device, &(en_backend_config){ .threads = 1, .folds = way.folds }, &be), EN_OK);
    en_net_config c = { .be = be, .model = in.m, .max_images = MAX_N, .training = true, .slots = 2 };
    en_net_plan without, with;
    assert_int_equal(en_net_plan_make(&c, &without), EN_OK);
    for (int mixing = 0; mixing < 2; mixing++) {
        en_net *net;
        c.mixing = mixing;
        assert_int_equal(en_net_open(&c, &net), EN_OK);
        en_error_clear();
        assert_int_equal(en_net_stage(net, 0, MAX_N, NULL, &(en_targets){ in.labels, in.mates, in.shares }, NULL), mixing ? EN_OK : EN_EINVAL);
        if (!mixing) assert_non_null(strstr(en_error_text(), "mixed labels"));
        assert_int_equal(en_net_stage(net, 0, MAX_N, NULL, &(en_targets){ in.labels, in.mates, NULL }, NULL), EN_EINVAL);
        assert_int_equal(en_net_stage(net, 0, MAX_N, NULL, &(en_targets){ NULL, in.mates, in.shares }, NULL), EN_EINVAL);
        assert_int_equal(be->ops->synchronize(be), EN_OK);
        en_net_close(net);
    }
    assert_int_equal(en_net_plan_make(&c, &with), EN_OK);
    assert_int_equal(with.small_bytes - without.small_bytes, 2 * 2 * 64);       /* two of each slot, rounded up to 64 bytes */
    en_net_plan_free(&without);
    en_net_plan_free(&with);
    en_error_clear();
    en_backend_close(be);
    inputs_free(&in);
}

/* A momentum of 1 makes the running statistics those of a batch.  With them a frozen part gives what an unfrozen one gave for that batch, and
 * what is trained above it has the same gradients; frozen tensors have none, and keep their statistics to the bit.  The statistics are
 * rounded once more, and batch norms amplify that; where the activation has a corner one of few values may change its side. Any other
 * error would be of order 1. */
static void what_is_trained_above_a_frozen_part(void **state)
{
    (void)state;
#ifdef EN_TEST_CUDA
    static const int some[] = { 3, 5, 7 };                     /* fused blocks, no head, a pool */
#else
    static const int some[] = { 1, 3, 4, 5, 6, 7 };            /* odd sides, dropout of the classifier, too */
#endif
    for (size_t c = 0; c < sizeof some / sizeof *some; c++) {
        net_case k = cases[some[c]];
        k.o.bn_momentum = 1;
        k.o.drop_path = 0;
        inputs in = inputs_make(&k);
        const en_model *m = in.m;
        in.m->bn_unbiased_running = false;                     /* as the batch normalised */
        net_way way = { .lanes = 2, .threads = 2, .training = true, .max_images = MAX_N, .passes = 1, .now = { .seed = 3, .step = 5 } };
        const char *name;
        for (int d = 0; (name = net_device(EN_PRECISION_F32, d, &way)) && !(way.folds && d); d++) {     /* folds: one of the ways to run */
            way.frozen = 0;
            net_result whole = net_run(m, &way, in.tensors, k.n, in.images, in.labels);
            for (int i = 0; i < m->n_tensors; i++)
                if (m->tensors[i].arena == EN_ARENA_STATS) memcpy(in.tensors[i], whole.answers[i], (size_t)en_tensor_count(&m->tensors[i]) * sizeof(double));
            const struct { const char *name; int layers; } upto[] = { { "stem", 1 }, { m->blocks[0].name, 2 }, { m->blocks[m->n_blocks / 2].name, 2 + m->n_blocks / 2 },
                                                                      { m->blocks[m->n_blocks - 1].name, (m->head.weight < 0 ? 2 : 1) + m->n_blocks }, { "features", 2 + m->n_blocks } };
            for (size_t f = 0; f < sizeof upto / sizeof *upto; f++) {
                en_frozen frozen;
                assert_int_equal(en_frozen_of(m, upto[f].name, &frozen), EN_OK);
                assert_int_equal(frozen.layers, upto[f].layers);
                way.frozen = frozen.layers;
                net_result r = net_run(m, &way, in.tensors, k.n, in.images, in.labels);
                for (int i = 0; i < m->n_tensors; i++) {
                    const en_tensor *t = &m->tensors[i];
                    const int64_t n = en_tensor_count(t);
                    const bool param = t->arena == EN_ARENA_PARAMS, trained = t->offset < (param ? frozen.trained_params : frozen.trained_stats);
                    if (trained) {
                        const double x = param ? off(r.answers[i], whole.answers[i], n, scale_of(m, whole.answers, i)) : off(r.answers[i], in.tensors[i], n, norm(in.tensors[i], n));
                        if (!(x <= (m->act == EN_ACT_SILU ? 1e-3 : 0.1))) fail_msg("%s, %s, %s: %s is off by %.3g", k.what, name, upto[f].name, t->name, x);
                    } else {
                        for (int64_t e = 0; e < n; e++)
                            if (r.answers[i][e] != (param ? 0 : in.tensors[i][e])) fail_msg("%s, %s, %s: %s[%d] is %g", k.what, name, upto[f].name, t->name, (int)e, r.answers[i][e]);
                    }
                }
                net_result_free(m, &r);
            }
            net_result_free(m, &whole);
        }
        inputs_free(&in);
    }
}

/* Frozen blocks drop no paths, and each layer that is frozen needs no more memory than one that is trained. */
static void a_frozen_part_keeps_nothing(void **state)
{
    (void)state;
    inputs in = inputs_make(&cases[2]);
    const int all = in.m->n_blocks + 2;
    net_way way = { .lanes = 2, .threads = 2, .training = true, .max_images = MAX_N, .passes = 1, .now = { .seed = 9 }, .frozen = 2 + in.m->n_blocks / 2 };
    net_device(EN_PRECISION_F32, 0, &way);
    net_result r = net_run(in.m, &way, in.tensors, MAX_N, in.images, in.labels);
    int dropping = 0;
    for (int b = 0; b < in.m->n_blocks; b++) {
        if (1 + b < way.frozen) assert_null(r.drop[b]);
        dropping += r.drop[b] != NULL;
    }
    assert_true(dropping > 0);
    net_result_free(in.m, &r);
    en_backend *be;
    assert_int_equal(en_backend_open(way.device, &(en_backend_config){ .threads = 1, .folds = way.folds }, &be), EN_OK);
    size_t before = SIZE_MAX, first = 0;
    for (int layers = 0; layers <= all; layers++) {
        en_net_plan plan;
        assert_int_equal(en_net_plan_make(&(en_net_config){ .be = be, .model = in.m, .max_images = MAX_N, .training = true, .frozen = layers }, &plan), EN_OK);
        if (layers == 0) first = plan.activations.bytes;
        if (plan.activations.bytes > before + before / 20) fail_msg("%d layers frozen: %zu bytes, %zu with one less", layers, plan.activations.bytes, before);   /* placed greedily */
        before = plan.activations.bytes;
        en_net_plan_free(&plan);
    }
    assert_true(2 * before < first);
    en_backend_close(be);
    inputs_free(&in);
}

/* Gradients are +=: three micro-batches that happen to be equal give three times one.  Not to the bit: the running
 * statistics about which the sums are taken have moved.  Any error here would be of order 1. */
static void gradients_accumulate_over_passes(void **state)
{
    (void)state;
    inputs in = inputs_make(&cases[0]);
    net_way way = { .lanes = 2, .threads = 2, .training = true, .max_images = MAX_N, .passes = 1 };
    net_result once = net_run(in.m, &way, in.tensors, 4, in.images, in.labels);
    way.passes = 3;
    net_result thrice = net_run(in.m, &way, in.tensors, 4, in.images, in.labels);
    for (int i = 0; i < in.m->n_tensors; i++) {
        const int64_t n = en_tensor_count(&in.m->tensors[i]);
        if (in.m->tensors[i].arena != EN_ARENA_PARAMS) continue;
        const double scale = scale_of(in.m, once.answers, i);
        for (int64_t e = 0; e < n; e++) thrice.answers[i][e] /= 3;
        const double x = off(thrice.answers[i], once.answers[i], n, scale);
        if (!(x <= 1e-3)) fail_msg("%s: three passes are not three times one, by %.3g", in.m->tensors[i].name, x);
    }
    net_result_free(in.m, &once);
    net_result_free(in.m, &thrice);
    inputs_free(&in);
}

static void no_images_mean_no_loss_no_gradient_and_the_old_statistics(void **state)
{
    (void)state;
    inputs in = inputs_make(&cases[1]);
    const net_way way = { .lanes = 3, .threads = 2, .training = true, .max_images = MAX_N, .passes = 1 };
    net_result r = net_run(in.m, &way, in.tensors, 0, in.images, in.labels);
    assert_true(r.loss == 0 && r.images == 0);
    for (int i = 0; i < in.m->n_tensors; i++)
        for (int64_t e = 0, n = en_tensor_count(&in.m->tensors[i]); e < n; e++)
            if (r.answers[i][e] != (in.m->tensors[i].arena == EN_ARENA_PARAMS ? 0 : in.tensors[i][e])) fail_msg("%s: element %d is %g", in.m->tensors[i].name, (int)e, r.answers[i][e]);
    net_result_free(in.m, &r);
    inputs_free(&in);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_training_step_is_that_of_the_reference),
        cmocka_unit_test(evaluation_is_that_of_the_reference),
#ifdef EN_TEST_CUDA
        cmocka_unit_test(a_training_step_in_bf16_is_that_of_the_reference),
        cmocka_unit_test(evaluation_in_bf16_is_that_of_the_reference),
        cmocka_unit_test(a_recorded_step_gives_the_bits_of_an_eager_one),
#else
        cmocka_unit_test(equal_lanes_give_equal_bits_whatever_the_threads),
#endif
        cmocka_unit_test(masks_have_the_values_and_rates_of_the_model),
        cmocka_unit_test(hard_labels_give_the_same_bits_in_a_net_for_mixed_ones),
        cmocka_unit_test(mates_need_a_net_that_is_planned_for_them),
        cmocka_unit_test(what_is_trained_above_a_frozen_part),
        cmocka_unit_test(a_frozen_part_keeps_nothing),
        cmocka_unit_test(gradients_accumulate_over_passes),
        cmocka_unit_test(no_images_mean_no_loss_no_gradient_and_the_old_statistics),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
