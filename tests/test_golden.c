/* test_golden.c - a training step of B0, of V2-S, of MobileNetV2 and of ResNet-50 against PyTorch's answers in float64
 * (golden/make_golden.py wrote them).
 *
 * First the reference network of oracle_net.c, in double: it must agree to rounding in double.  Then the program's own
 * net, in float, on every instruction set that runs here.
 *
 * The file keeps 16 projections of each tensor on vectors of signs; the mean square of their errors estimates |error|^2,
 * and by less than a tenth of it with probability 2e-6 (make_golden.py).  Errors are taken relative to the tensor's norm,
 * those of gamma and beta to the norm of both (partner(), net_help.h): the betas of B0's projections have the gradient 0.
 *
 * Double tolerance: 3e-8.  The model's eps and momentum are the floats nearest to 1e-3, 0.01 and 0.1, which PyTorch is given
 * exactly: that is 5e-8 of eps, some 1e-9 of the answers, and 1.5e-8 of what momentum takes from the batch.
 *
 * Float tolerance: 1e-4.  PyTorch's own float32 is off by 1e-5 (median), 16 values a channel in the last batch norms
 * amplifying what 80 layers round; its errors are in the file, and a test below says how ours compare.
 *
 * bf16 is held to PyTorch's own: the same step under torch.autocast, whose errors against float64 are in the file too.  The backend
 * that stores bf16 reads images as bytes, so both see images that bytes can mean.  Errors are of the order of the gradients
 * themselves here, a fifth to a third, and a tensor of few values may come out well by luck: so the logits, the norm over all
 * gradients and the median over tensors must be no worse than PyTorch's, and nine tensors of ten. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <hdf5.h>
#include <math.h>
#include <stdlib.h>

#include "net_help.h"

enum { SAMPLES = 32, PROJECTIONS = 16, MOST_IMAGES = 6, CLASSES = 10, SEED = 2024 };

/* A file of answers, the model it is of, the sides of the images, how many and which, and whether its names are timm's. */
typedef struct { int size, n; uint32_t which; } run;
typedef struct { const char *file, *row; run runs[3]; bool timm; } golden;
static const golden b0 = { "b0.h5", "efficientnet_b0", { { 64, 4, 0 }, { 75, 4, 0 } }, true };
static const golden v2s = { "v2s.h5", "efficientnetv2_s", { { 40, 6, 0 } }, false };
static const golden mbv2 = { "mbv2.h5", "mobilenetv2", { { 64, 2, 0 } }, false }, r50 = { "r50.h5", "resnet50", { { 64, 2, 5 } }, true };
static const golden *of;                                        /* that the test at hand is about */

typedef struct { double *norm, *sum, *samples, *projections, *float32, *logits, *loss; } answers_file;

static hid_t file;
static char (*names)[80];
static int n_names;

static double *numbers(const char *path, hsize_t want)
{
    const hid_t d = H5Dopen2(file, path, H5P_DEFAULT), space = H5Dget_space(d);
    const hssize_t n = H5Sget_simple_extent_npoints(space);
    if (d < 0 || n != (hssize_t)want) fail_msg("%s: %d numbers, want %d", path, (int)n, (int)want);
    double *x = malloc((size_t)n * sizeof *x);
    if (H5Dread(d, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, x) < 0) fail_msg("reading %s", path);
    H5Sclose(space);
    H5Dclose(d);
    return x;
}

static answers_file answers_at(const run *at)
{
    answers_file a;
    const struct { const char *name; double **to; hsize_t n; } columns[] = {
        { "norm", &a.norm, (hsize_t)n_names }, { "sum", &a.sum, (hsize_t)n_names }, { "float32", &a.float32, (hsize_t)n_names },
        { "samples", &a.samples, (hsize_t)n_names * SAMPLES }, { "projections", &a.projections, (hsize_t)n_names * PROJECTIONS },
        { "logits", &a.logits, (hsize_t)(at->n * CLASSES) }, { "loss", &a.loss, 1 } };
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++) {
        char path[64];
        snprintf(path, sizeof path, "/r%d/%s", at->size, columns[i].name);
        *columns[i].to = numbers(path, columns[i].n);
    }
    return a;
}

static void answers_free(answers_file *a)
{
    free(a->norm), free(a->sum), free(a->samples), free(a->projections), free(a->float32), free(a->logits), free(a->loss);
}

/* ---- inputs ------------------------------------------------------------------------------------------------------------ */

typedef struct { en_model *m; double **tensors, *images; int32_t labels[MOST_IMAGES]; } inputs;

static void lift(const inputs *in, const en_bn_ref *bn)
{
    for (int64_t c = 0; bn->beta >= 0 && c < bn->c; c++) in->tensors[bn->beta][c] = formula(SEED, (uint32_t)bn->beta, c, 2, 0.1);
}

/* Where a ReLU follows, or a sum and then a ReLU: about 2, so that few activations lie near the bend (make_golden.py says why). */
static void lift_betas(const inputs *in)
{
    const en_model *m = in->m;
    if (!m->pool.kernel) lift(in, &m->stem.bn);                 /* of nine, the largest is hardly ever near it */
    lift(in, &m->head.bn);
    for (int b = 0; b < m->n_blocks; b++) lift(in, &m->blocks[b].bn_expand), lift(in, &m->blocks[b].bn_spatial), lift(in, &m->blocks[b].bn_shortcut);
}

static inputs inputs_make(const run *at, int align, bool bytes)
{
    inputs in = { .m = model_make(of->row, &(en_model_overrides){ .resolution = at->size, .classes = CLASSES }, align) };  /* no dropout, no drop path */
    assert_int_equal(in.m->n_tensors, n_names);
    in.tensors = oracle_tensors(in.m);
    formula_tensors(in.m, SEED, in.tensors);
    if (in.m->act != EN_ACT_SILU) lift_betas(&in);
    in.images = formula_images(SEED, at->n, at->size, bytes, en_normalise_by(in.m->normalise));
    for (int64_t i = 0; at->which && i < (int64_t)at->n * at->size * at->size * 3; i++) in.images[i] = formula(SEED, 65535 - at->which, i, 0, 1.5);
    for (int i = 0; i < at->n; i++) in.labels[i] = i % CLASSES;
    return in;
}

static void inputs_free(inputs *in)
{
    oracle_tensors_free(in->m, in->tensors);
    free(in->images);
    en_model_free(in->m);
}

static void weights_and_names_are_those_of_the_golden_file(void **state)
{
    (void)state;
    inputs in = inputs_make(&of->runs[0], 16, false);
    double *sums = numbers("/weight_sum", (hsize_t)n_names);
    for (int i = 0; i < n_names; i++) {
        if (of->timm) assert_string_equal(in.m->tensors[i].name, names[i]);
        double sum = 0, size = 0;
        for (int64_t e = 0, n = en_tensor_count(&in.m->tensors[i]); e < n; e++) sum += in.tensors[i][e], size += fabs(in.tensors[i][e]);
        if (!(fabs(sum - sums[i]) <= 1e-12 * size)) fail_msg("%s: weights sum to %.12g, golden %.12g", names[i], sum, sums[i]);
    }
    free(sums);
    inputs_free(&in);
}

/* ---- comparison -------------------------------------------------------------------------------------------------------- */

static uint16_t **signs;                                        /* [tensor][element], the same at every resolution */

static void make_signs(const en_model *m)
{
    if (signs) return;
    signs = calloc((size_t)m->n_tensors, sizeof *signs);
    for (int i = 0; i < m->n_tensors; i++) {
        const int64_t n = en_tensor_count(&m->tensors[i]);
        signs[i] = malloc((size_t)n * sizeof **signs);
        for (int64_t e = 0; e < n; e++) signs[i][e] = (uint16_t)formula_signs(SEED, (uint32_t)i, e);
    }
}

typedef struct { double worst, median, ratio; } outcome;         /* ratio: our error / PyTorch float32's, median over tensors */

static int by_size(const void *a, const void *b) { return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b); }

static outcome compare(const en_model *m, const answers_file *want, double *const *got, double tolerance, const char *who)
{
    double *errors = malloc((size_t)n_names * sizeof *errors), *ratios = malloc((size_t)n_names * sizeof *ratios);
    outcome o = { 0 };
    int bad = 0, zeros = 0;
    make_signs(m);
    for (int i = 0; i < n_names; i++) {
        const int64_t n = en_tensor_count(&m->tensors[i]);
        const int other = partner(m, i);
        const double scale = hypot(want->norm[i], other < 0 ? 0 : want->norm[other]);
        double square = 0, sampled = 0;
        for (int p = 0; p < PROJECTIONS; p++) {
            double projection = 0;
            for (int64_t e = 0; e < n; e++) projection += signs[i][e] >> p & 1 ? -got[i][e] : got[i][e];
            square += pow(projection - want->projections[i * PROJECTIONS + p], 2) / PROJECTIONS;
        }
        for (int k = 0; k < SAMPLES; k++)
            sampled = fmax(sampled, fabs(got[i][formula_index(SEED, (uint32_t)i, k, n)] - want->samples[i * SAMPLES + k]));
        errors[i] = fmax(sqrt(square), sampled) / scale;        /* no element is off by more than all of them */
        ratios[i] = sqrt(square) / want->float32[i];
        zeros += want->norm[i] < 1e-9 * scale;
        if (!(errors[i] <= tolerance) && bad++ < 10)
            print_error("  %s: %s is off by %.3g of %.3g (PyTorch's float32: %.3g)\n", who, names[i], errors[i], scale, want->float32[i] / scale);
    }
    qsort(errors, (size_t)n_names, sizeof *errors, by_size);
    qsort(ratios, (size_t)n_names, sizeof *ratios, by_size);
    o = (outcome){ errors[n_names - 1], errors[n_names / 2], ratios[n_names / 2] };
    free(errors), free(ratios);
    if (bad) fail_msg("%s: %d of %d tensors beyond %g", who, bad, n_names, tolerance);
    /* The betas of projections without an activation, and nothing else; of those that a dense convolution reads, its zero padding makes something. */
    for (int b = 0; b < m->n_blocks; b++)
        zeros -= m->blocks[b].w_project >= 0 && !m->blocks[b].act_out && !(b + 1 < m->n_blocks && m->blocks[b + 1].kind == EN_BLOCK_FUSED);
    assert_int_equal(zeros, 0);
    return o;
}

static double norm(const double *x, int64_t n)
{
    double square = 0;
    for (int64_t i = 0; i < n; i++) square += x[i] * x[i];
    return sqrt(square);
}

static double distance(const double *x, const double *y, int64_t n)
{
    double square = 0;
    for (int64_t i = 0; i < n; i++) square += (x[i] - y[i]) * (x[i] - y[i]);
    return sqrt(square);
}

static void compare_loss(const answers_file *want, int n, double loss, const double *logits, double tolerance, const char *who)
{
    const double off = distance(logits, want->logits, n * CLASSES) / norm(want->logits, n * CLASSES);
    if (!(off <= tolerance)) fail_msg("%s: logits are off by %.3g", who, off);
    if (!(fabs(loss - *want->loss) <= tolerance * *want->loss)) fail_msg("%s: loss %.9g, golden %.9g", who, loss, *want->loss);
}

/* ---- the two networks -------------------------------------------------------------------------------------------------- */

static void the_reference_network_is_pytorchs_in_double(void **state)
{
    (void)state;
    for (const run *at = of->runs; at->n; at++) {
        const int size = at->size, n = at->n;
        answers_file want = answers_at(at);
        inputs in = inputs_make(at, 16, false);
        double **got = oracle_tensors(in.m), logits[MOST_IMAGES * CLASSES];
        const double loss = oracle_net(in.m, in.tensors, &(oracle_batch){ .n = n, .images = in.images, .labels = in.labels, .smoothing = 0.1 }, logits, got);
        compare_loss(&want, n, loss, logits, 1e-8, "reference");
        const outcome o = compare(in.m, &want, got, 3e-8, "reference");
        print_message("# %s, %d px, reference in double: worst %.2g, median %.2g\n", of->row, size, o.worst, o.median);
        oracle_tensors_free(in.m, got);
        inputs_free(&in);
        answers_free(&want);
    }
}

static void the_net_is_pytorchs_within_1e_4(void **state)
{
    (void)state;
    for (const run *at = of->runs; at->n; at++) {
        const int size = at->size, n = at->n;
        answers_file want = answers_at(at);
        inputs in = inputs_make(at, net_align, false);
        net_way device = { 0 };
        const char *isa;
        for (int k = 0; (isa = net_device(EN_PRECISION_F32, k, &device)); k++) {
            const net_way way = { .device = device.device, .isa = device.isa, .folds = device.folds, .precision = device.precision, .lanes = 3, .threads = 2, .training = true, .max_images = n, .passes = 1 };
            net_result r = net_run(in.m, &way, in.tensors, n, in.images, in.labels);
            compare_loss(&want, n, r.loss / n, r.logits, 1e-4, isa);
            const outcome o = compare(in.m, &want, r.answers, 1e-4, isa);
            net_result_free(in.m, &r);
            print_message("# %s, %d px, %s: worst %.2g, median %.2g, %.2g of PyTorch's float32 error (median)\n", of->row, size, isa, o.worst, o.median, o.ratio);
            if (o.ratio > 4) fail_msg("%s: errors are %.2g times PyTorch's in float32", isa, o.ratio);
        }
        inputs_free(&in);
        answers_free(&want);
    }
}

/* ---- bfloat16 --------------------------------------------------------------------------------------------------------- */

/* Errors of gradients, or of running statistics: tensor by tensor in units of PyTorch's, and of all together relative to all. */
typedef struct { double median, worst, nearer, ours, pytorch; int at; } narrow_outcome;

static narrow_outcome compare_narrow(const en_model *m, en_arena arena, double *const *want, double *const *got, const double *pytorch)
{
    narrow_outcome o = { 0 };
    double *ratios = malloc((size_t)n_names * sizeof *ratios), size = 0;
    int n = 0;
    for (int i = 0; i < n_names; i++) {
        if (m->tensors[i].arena != arena) continue;
        const int64_t elems = en_tensor_count(&m->tensors[i]);
        const double off = distance(got[i], want[i], elems), is = norm(want[i], elems);
        o.ours += off * off, o.pytorch += pytorch[i] * pytorch[i], size += is * is;
        if (is < 1e-9) continue;                                /* betas of projections: all error */
        ratios[n] = off / pytorch[i];
        if (!(ratios[n] <= o.worst)) o.worst = ratios[n], o.at = i;
        o.nearer += ratios[n] <= 1, n++;
    }
    qsort(ratios, (size_t)n, sizeof *ratios, by_size);
    o.median = ratios[n / 2], o.nearer /= n, o.ours = sqrt(o.ours / size), o.pytorch = sqrt(o.pytorch / size);
    free(ratios);
    return o;
}

static void answers_in_bf16_are_nearer_to_float64_than_pytorchs(void **state)
{
    (void)state;
    for (const run *at = of->runs; at->n; at++) {
        const int size = at->size, n = at->n;
        inputs in = inputs_make(at, net_align, true);
        double **want = oracle_tensors(in.m), logits[MOST_IMAGES * CLASSES];
        const double loss = oracle_net(in.m, in.tensors, &(oracle_batch){ .n = n, .images = in.images, .labels = in.labels, .smoothing = 0.1 }, logits, want);
        char path[32];
#define COLUMN(name, n) (snprintf(path, sizeof path, "/b%d/%s", size, name), numbers(path, (hsize_t)(n)))
        double *norms = COLUMN("norm", n_names), *pytorch = COLUMN("bf16", n_names), *pytorch_logits = COLUMN("bf16_logits", 1);
        answers_file exact = { .logits = COLUMN("logits", n * CLASSES), .loss = COLUMN("loss", 1) };
#undef COLUMN
        compare_loss(&exact, n, loss, logits, 1e-9, "reference, bytes");
        for (int i = 0; i < n_names; i++) {                     /* the reference network saw the images that PyTorch saw */
            const double have = norm(want[i], en_tensor_count(&in.m->tensors[i]));
            if (!(fabs(have - norms[i]) <= 1e-7 * norms[i] + 1e-9)) fail_msg("%s has the norm %.12g, golden %.12g", names[i], have, norms[i]);
        }
        net_way way = { .lanes = 3, .threads = 2, .training = true, .max_images = n, .passes = 1 };
        const char *name;
        for (int k = 0; (name = net_device(EN_PRECISION_BF16, k, &way)); k++) {
            net_result r = net_run(in.m, &way, in.tensors, n, in.images, in.labels);
            const narrow_outcome g = compare_narrow(in.m, EN_ARENA_PARAMS, want, r.answers, pytorch), t = compare_narrow(in.m, EN_ARENA_STATS, want, r.answers, pytorch);
            const double l = distance(r.logits, exact.logits, n * CLASSES) / *pytorch_logits;
            print_message("# %d px, %s: gradients are off by %.3f (PyTorch: %.3f)\n", size, name, g.ours, g.pytorch);
            print_message("#     of PyTorch's error: logits %.2f, gradients %.2f (median), statistics %.2f (median); %.0f %% of the gradients are nearer; "
                          "worst %.2f (%s)\n", l, g.median, t.median, 100 * g.nearer, g.worst, names[g.at]);
            if (!(g.ours <= g.pytorch && g.median <= 1 && t.median <= 1 && l <= 1 && g.nearer >= 0.9)) fail_msg("%d px, %s: further from float64 than PyTorch", size, name);
            assert_true(way.folds[0] == 'a' ? r.folded > 0 : r.folded == 0);
            net_result_free(in.m, &r);
        }
        free(norms), free(pytorch), free(pytorch_logits), free(exact.logits), free(exact.loss);
        oracle_tensors_free(in.m, want);
        inputs_free(&in);
    }
}

static int open_file(void **state)
{
    of = *state;
    char path[512];
    snprintf(path, sizeof path, "%s/%s", EN_GOLDEN_DIR, of->file);
    file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    if (file < 0) return -1;
    const hid_t d = H5Dopen2(file, "/names", H5P_DEFAULT), type = H5Dget_type(d), space = H5Dget_space(d);
    n_names = (int)H5Sget_simple_extent_npoints(space);
    if (H5Tget_size(type) != sizeof *names) return -1;
    names = calloc((size_t)n_names, sizeof *names);
    const herr_t e = H5Dread(d, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, names);
    H5Sclose(space), H5Tclose(type), H5Dclose(d);
    return e < 0 ? -1 : 0;
}

static int close_file(void **state)
{
    (void)state;
    for (int i = 0; signs && i < n_names; i++) free(signs[i]);
    free(signs);
    free(names);
    signs = NULL;
    return H5Fclose(file) < 0 ? -1 : 0;
}

#define OF(golden, test) { .name = #golden ": " #test, .test_func = test, .setup_func = open_file, .teardown_func = close_file, .initial_state = (void *)&golden }

int main(void)
{
    const struct CMUnitTest tests[] = {
        OF(b0, weights_and_names_are_those_of_the_golden_file),
        OF(b0, the_reference_network_is_pytorchs_in_double),
        OF(b0, the_net_is_pytorchs_within_1e_4),
        OF(b0, answers_in_bf16_are_nearer_to_float64_than_pytorchs),
        OF(v2s, weights_and_names_are_those_of_the_golden_file),
        OF(v2s, the_reference_network_is_pytorchs_in_double),
        OF(v2s, the_net_is_pytorchs_within_1e_4),
        OF(mbv2, weights_and_names_are_those_of_the_golden_file),
        OF(mbv2, the_reference_network_is_pytorchs_in_double),
        OF(mbv2, the_net_is_pytorchs_within_1e_4),
        OF(r50, weights_and_names_are_those_of_the_golden_file),
        OF(r50, the_reference_network_is_pytorchs_in_double),
        OF(r50, the_net_is_pytorchs_within_1e_4),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
