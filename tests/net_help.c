#include "net_help.h"

#include "data/data.h"

#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <setjmp.h>

#include <cmocka.h>
#include <string.h>

en_model *model_make(const char *row, const en_model_overrides *o, int align)
{
    const en_model_row *r;
    en_model *m = NULL;
    en_error_clear();
    if (en_model_row_find(row, &r) != EN_OK || en_model_build(r, o, align, &m) != EN_OK) fail_msg("%s", en_error_text());
    return m;
}

static uint32_t word(uint64_t seed, uint64_t when, uint32_t layer, int64_t e)
{
    en_rng r = en_rng_at(seed, EN_RNG_TEST, when, (uint64_t)(e / 4), layer);
    for (int i = 0; i < e % 4; i++) en_rng_u32(&r);
    return en_rng_u32(&r);
}

double formula(uint64_t seed, uint32_t layer, int64_t e, double a, double b)
{
    const double s = 2.0 * ((double)(word(seed, 0, layer, e) >> 8) * 0x1p-24) - 1.0;
    return (double)(float)(a + b * s);
}

double *formula_images(uint64_t seed, int64_t n, int size, bool bytes, const en_normalise *norm)
{
    const int64_t values = n * size * size * 3;
    double *images = malloc((size_t)(values + 1) * sizeof *images);
    for (int64_t i = 0; i < values; i++) {
        const double mean = (double)norm->mean[i % 3], std = (double)norm->std[i % 3], v = formula(seed, 65535, i, 0, 1.5);
        images[i] = bytes ? (double)(float)((fmin(fmax(rint(v * std + mean), 0), 255) - mean) / std) : v;
    }
    return images;
}

static bool ends(const char *name, const char *with)
{
    const size_t n = strlen(name), w = strlen(with);
    return n >= w && strcmp(name + n - w, with) == 0;
}

void formula_tensors(const en_model *m, uint64_t seed, double *const *tensors)
{
    for (int i = 0; i < m->n_tensors; i++) {
        const en_tensor *t = &m->tensors[i];
        const bool gamma = t->ndim == 1 && ends(t->name, ".weight"), var = ends(t->name, ".running_var");
        double a = gamma || var ? 1 : 0, b = gamma || var ? 0.2 : 0.1;
        if (t->ndim == 2) b = 1.0 / sqrt((double)t->shape[0]);
        if (t->ndim == 4) b = sqrt(6.0 / (double)(t->shape[2] * t->shape[3] * (ends(t->name, "conv_dw.weight") ? 1 : t->shape[0])));
        for (int64_t e = 0, n = en_tensor_count(t); e < n; e++) tensors[i][e] = formula(seed, (uint32_t)i, e, a, b);
    }
}

uint32_t formula_signs(uint64_t seed, uint32_t layer, int64_t e) { return word(seed, 1, layer, e) & 0xffff; }

int64_t formula_index(uint64_t seed, uint32_t layer, int64_t k, int64_t elems)
{
    return (int64_t)((uint64_t)word(seed, 2, layer, k) * (uint64_t)elems >> 32);
}

void to_arenas(const en_model *m, double *const *tensors, float *params, float *stats)
{
    for (int i = 0; i < m->n_tensors; i++) {
        const en_tensor *t = &m->tensors[i];
        const int64_t n = en_tensor_count(t);
        float *logical = malloc((size_t)n * sizeof *logical);
        for (int64_t e = 0; e < n; e++) logical[e] = (float)tensors[i][e];
        en_tensor_scatter(t, logical, t->arena == EN_ARENA_PARAMS ? params : stats);
        free(logical);
    }
}

void from_arenas(const en_model *m, const float *params, const float *stats, double *const *tensors)
{
    for (int i = 0; i < m->n_tensors; i++) {
        const en_tensor *t = &m->tensors[i];
        const int64_t n = en_tensor_count(t);
        float *logical = malloc((size_t)n * sizeof *logical);
        en_tensor_gather(t, t->arena == EN_ARENA_PARAMS ? params : stats, logical);
        for (int64_t e = 0; e < n; e++) tensors[i][e] = logical[e];
        free(logical);
    }
}

int partner(const en_model *m, int tensor)
{
    if (tensor < 0) return -1;
    for (int k = -1; k < m->n_blocks; k++) {
        const en_block *b = k < 0 ? NULL : &m->blocks[k];
        const en_bn_ref *const all[] = { b ? &b->bn_expand : &m->stem.bn, b ? &b->bn_spatial : &m->head.bn, b ? &b->bn_project : NULL, b ? &b->bn_shortcut : NULL };
        for (int j = 0; j < 4 && all[j]; j++)                    /* -1 where a network has no such batch norm */
            if (all[j]->gamma == tensor || all[j]->beta == tensor) return all[j]->gamma == tensor ? all[j]->beta : all[j]->gamma;
    }
    return -1;
}

#define OK(call) do { en_error_clear(); if ((call) != EN_OK) fail_msg("%s: %s", #call, en_error_text()); } while (0)

#ifdef EN_TEST_CUDA
const int net_align = 8;
const char *net_device(en_precision precision, int k, net_way *way)
{
    static const char *const folds[] = { "all", "none" }, *const names[2][2] = { { "cuda fp32, folds", "cuda fp32, no folds" }, { "cuda bf16, folds", "cuda bf16, no folds" } };
    if (k >= 2) return NULL;
    setenv("EN_FOLD_LEAST", "0", 0);                        /* small images fold too */
    setenv("EN_GEMM_TUNE", "0", 0);                         /* no stopwatch: memory that lies otherwise is another choice, and may be other bits */
    way->device = "cuda", way->folds = folds[k], way->precision = precision;
    return names[precision == EN_PRECISION_BF16][k];
}
#else
const int net_align = 16;
const char *net_device(en_precision precision, int k, net_way *way)
{
    bool runs;
    for (int i = 0; precision == EN_PRECISION_F32 && en_backend_isa(i, &runs); i++) {
        if (!runs || k-- > 0) continue;
        way->device = "cpu", way->isa = en_backend_isa(i, &runs), way->precision = precision;
        return way->isa;
    }
    return NULL;
}
#endif

/* ---- the program's net -------------------------------------------------------------------------------------------------- */

typedef struct { en_backend *be; en_net *net; size_t params, stats; void *params_dev, *grads_dev, *stats_dev, *tally; } device_net;

static void *on_device(en_backend *be, size_t bytes)
{
    void *p;
    OK(be->ops->alloc(be, bytes, &p));
    return p;
}

/* The state before the first pass */
static void begin(const device_net *d, const float *stats)
{
    OK(d->be->ops->zero(d->be, d->grads_dev, d->params * sizeof(float)));
    OK(d->be->ops->upload(d->be, d->stats_dev, stats, d->stats * sizeof(float)));
}

static void stage(const device_net *d, int64_t n, const void *images, const en_targets *targets, const en_now *now)
{
    OK(d->be->ops->stage_done(d->be, 0));
    OK(d->be->ops->stage_wait(d->be, 0));
    OK(en_net_stage(d->net, 0, n, images, targets, now));
    OK(d->be->ops->stage_ready(d->be, 0));
}

static void pass(const device_net *d, const net_way *way, int64_t n)
{
    OK(d->be->ops->zero(d->be, d->tally, EN_TALLY * sizeof(double)));
    OK(en_net_forward(d->net, 0));
    OK(en_net_loss(d->net, 0.1f, way->training && n ? 1.f / (float)n : way->training, d->tally));
    if (way->training) OK(en_net_backward(d->net, NULL));
}

static void passes(const device_net *d, const net_way *way, int64_t n, const void *images, const int32_t *labels, const float *stats)
{
    const struct en_backend_ops *ops = d->be->ops;
    const en_targets hard = { .labels = labels }, targets = { labels, way->mates, way->shares };
    en_now now = way->now;
    void *graph = NULL;
    if (way->recorded) now.step++;
    for (int i = 0; i < (way->recorded ? 2 : way->passes); i++) {               /* the first eager, the second recorded, its replay the third */
        stage(d, n, images, way->recorded ? &hard : &targets, &now);
        if (i > 0 && way->recorded) OK(ops->capture_begin(d->be));
        pass(d, way, n);
    }
    if (!way->recorded) return;
    OK(ops->capture_end(d->be, &graph));
    for (int i = 0; i < 2; i++) {
        begin(d, stats);
        stage(d, n, images, i ? &targets : &hard, i ? &way->now : &now);
        OK(ops->graph_launch(d->be, graph));
    }
    OK(ops->synchronize(d->be));
    ops->graph_free(d->be, graph);
}

/* Bytes that mean these images: where the backend reads bytes, a test's images are what bytes can mean (formula_images). */
static uint8_t *bytes_of(const double *images, size_t values, const en_normalise *norm)
{
    uint8_t *bytes = calloc(values + 1, 1);
    for (size_t i = 0; i < values; i++) {
        const double v = images[i] * (double)norm->std[i % 3] + (double)norm->mean[i % 3];
        if (!(fabs(v - rint(v)) < 1e-3 && v > -1 && v < 256)) fail_msg("%g is not what a byte can mean", images[i]);
        bytes[i] = (uint8_t)lrint(v);
    }
    return bytes;
}

static void read_masks(en_net *net, const en_model *m, int64_t n, net_result *r)
{
    bool has;
    float *mask = calloc((size_t)(n * m->head.co_p + 1), sizeof *mask);
    OK(en_net_dropout(net, mask, &has));
    if (has) {
        r->dropout = calloc((size_t)(n * m->head.co + 1), sizeof *r->dropout);
        for (int64_t i = 0; i < n * m->head.co; i++) r->dropout[i] = (double)mask[i / m->head.co * m->head.co_p + i % m->head.co];
    }
    r->drop = calloc((size_t)m->n_blocks + 1, sizeof *r->drop);
    for (int k = 0; k < m->n_blocks; k++) {
        OK(en_net_drop(net, k, mask, &has));
        if (!has) continue;
        r->drop[k] = calloc((size_t)n + 1, sizeof **r->drop);
        for (int64_t i = 0; i < n; i++) r->drop[k][i] = (double)mask[i];
    }
    free(mask);
}

static int count_folds(en_backend *be, const en_model *m, int64_t n)
{
    int folds = 0;
    for (int k = 0; k < m->n_blocks; k++) {
        const en_block *b = &m->blocks[k];
        folds += b->expand && be->ops->fold_floats(be, n * b->h * b->w, b->ci_p, b->mid_p) > 0;
    }
    return folds;
}

net_result net_run(const en_model *m, const net_way *way, double *const *tensors, int64_t n, const double *images, const int32_t *labels)
{
    net_result r = { .logits = calloc((size_t)(n * m->classes + 1), sizeof(double)), .answers = oracle_tensors(m) };
    net_way first = *way;
    if (!way->device) net_device(EN_PRECISION_F32, 0, &first);
    device_net d = { .params = (size_t)m->param_elems, .stats = (size_t)m->stat_elems };
    en_comm *comm = NULL;
    OK(en_backend_open(first.device, &(en_backend_config){ .threads = way->threads, .lanes = way->lanes, .isa = first.isa, .folds = first.folds,
                                                           .precision = first.precision }, &d.be));
    en_backend *be = d.be;
    OK(en_comm_open(&comm));
    OK(en_net_open(&(en_net_config){ .be = be, .model = m, .bn_comm = comm, .max_images = way->max_images, .training = way->training, .mixing = way->mixing, .frozen = way->frozen }, &d.net));

    const size_t values = (size_t)(n * m->resolution * m->resolution * 3);
    float *params = calloc(d.params, sizeof *params), *stats = calloc(d.stats, sizeof *stats), *floats = calloc(values + 1, sizeof *floats);
    uint8_t *bytes = be->u8 ? bytes_of(images, values, en_normalise_by(m->normalise)) : NULL;
    for (size_t i = 0; i < values; i++) floats[i] = (float)images[i];
    to_arenas(m, tensors, params, stats);
    d.params_dev = on_device(be, d.params * sizeof(float)), d.grads_dev = on_device(be, d.params * sizeof(float));
    d.stats_dev = on_device(be, d.stats * sizeof(float)), d.tally = on_device(be, EN_TALLY * sizeof(double));
    OK(be->ops->upload(be, d.params_dev, params, d.params * sizeof(float)));
    begin(&d, stats);
    en_net_bind(d.net, d.params_dev, d.grads_dev, d.stats_dev);
    if (!way->training) OK(en_net_freeze(d.net));
    passes(&d, &first, n, bytes ? (const void *)bytes : floats, labels, stats);

    double sums[EN_TALLY];
    OK(be->ops->download(be, sums, d.tally, sizeof sums));
    r.loss = sums[EN_TALLY_LOSS], r.top1 = sums[EN_TALLY_TOP1], r.images = sums[EN_TALLY_IMAGES];
    r.folded = count_folds(be, m, n);
    float *logits = calloc((size_t)(n * m->classes + 1), sizeof *logits);
    OK(en_net_logits(d.net, logits));
    for (int64_t i = 0; i < n * m->classes; i++) r.logits[i] = (double)logits[i];
    OK(be->ops->download(be, params, d.grads_dev, d.params * sizeof(float)));
    OK(be->ops->download(be, stats, d.stats_dev, d.stats * sizeof(float)));
    from_arenas(m, params, stats, r.answers);
    if (way->training) read_masks(d.net, m, n, &r);

    be->ops->free(be, d.tally), be->ops->free(be, d.params_dev), be->ops->free(be, d.grads_dev), be->ops->free(be, d.stats_dev);
    free(params), free(stats), free(floats), free(bytes), free(logits);
    en_net_close(d.net);
    en_comm_close(comm);
    en_backend_close(be);
    return r;
}

void net_result_free(const en_model *m, net_result *r)
{
    for (int k = 0; r->drop && k < m->n_blocks; k++) free(r->drop[k]);
    free(r->drop), free(r->dropout), free(r->logits);
    oracle_tensors_free(m, r->answers);
    *r = (net_result){ 0 };
}
