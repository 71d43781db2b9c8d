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
    const en_bn_ref *ref[2] = { &m->stem.bn, &m->head.bn };
    for (int k = -1; k < m->n_blocks; k++) {
        const en_bn_ref *of_block[3] = { k < 0 ? ref[0] : &m->blocks[k].bn_dw, k < 0 ? ref[1] : &m->blocks[k].bn_project,
                                         k < 0 || !m->blocks[k].expand ? ref[0] : &m->blocks[k].bn_expand };
        for (int j = 0; j < 3; j++)
            if (of_block[j]->gamma == tensor || of_block[j]->beta == tensor) return of_block[j]->gamma == tensor ? of_block[j]->beta : of_block[j]->gamma;
    }
    return -1;
}

#define OK(call) do { en_error_clear(); if ((call) != EN_OK) fail_msg("%s: %s", #call, en_error_text()); } while (0)

#ifdef EN_TEST_CUDA
const int net_align = 8;
const char *net_device(int k, net_way *way)
{
    static const char *const folds[] = { "all", "none" };
    if (k >= 2) return NULL;
    way->device = "cuda", way->folds = folds[k], way->precision = EN_PRECISION_F32;
    return k == 0 ? "cuda fp32, folds" : "cuda fp32, no folds";
}
#else
const int net_align = 16;
const char *net_device(int k, net_way *way)
{
    bool runs;
    for (int i = 0; en_backend_isa(i, &runs); i++) {
        if (!runs || k-- > 0) continue;
        way->device = "cpu", way->isa = en_backend_isa(i, &runs);
        return way->isa;
    }
    return NULL;
}
#endif

net_result net_run(const en_model *m, const net_way *way, double *const *tensors, int64_t n, const double *images, const int32_t *labels)
{
    net_result r = { .logits = calloc((size_t)(n * m->classes + 1), sizeof(double)), .answers = oracle_tensors(m) };
    en_backend *be = NULL;
    en_comm *comm = NULL;
    en_net *net = NULL;
    net_way first = { 0 };
    if (!way->device) net_device(0, &first);
    const net_way *on = way->device ? way : &first;
    OK(en_backend_open(on->device, &(en_backend_config){ .threads = way->threads, .lanes = way->lanes, .isa = on->isa, .folds = on->folds,
                                                         .precision = on->precision }, &be));
    OK(en_comm_open(&comm));
    OK(en_net_open(&(en_net_config){ .be = be, .model = m, .bn_comm = comm, .max_images = way->max_images, .training = way->training }, &net));

    const size_t p = (size_t)m->param_elems, s = (size_t)m->stat_elems, pixels = (size_t)(n * m->resolution * m->resolution * 3);
    float *params = calloc(p, sizeof *params), *stats = calloc(s, sizeof *stats), *floats = calloc(pixels + 1, sizeof *floats);
    void *params_dev, *grads_dev, *stats_dev;
    to_arenas(m, tensors, params, stats);
    uint8_t *bytes = calloc(pixels + 1, 1);
    for (size_t i = 0; i < pixels; i++) floats[i] = (float)images[i];
    for (size_t i = 0; i < pixels; i++)                     /* where the backend reads bytes, images are multiples that bytes can say */
        bytes[i] = (uint8_t)lrint(fmin(255, fmax(0, images[i] * (double)en_imagenet_normalise.std[i % 3] + (double)en_imagenet_normalise.mean[i % 3])));
    OK(be->ops->alloc(be, p * sizeof(float), &params_dev));
    OK(be->ops->alloc(be, p * sizeof(float), &grads_dev));
    OK(be->ops->alloc(be, s * sizeof(float), &stats_dev));
    OK(be->ops->upload(be, params_dev, params, p * sizeof(float)));
    OK(be->ops->upload(be, stats_dev, stats, s * sizeof(float)));
    en_net_bind(net, params_dev, grads_dev, stats_dev);
    if (!way->training) OK(en_net_freeze(net));

    double sums[EN_TALLY] = { 0 };
    void *tally;
    OK(be->ops->alloc(be, sizeof sums, &tally));
    for (int pass = 0; pass < way->passes; pass++) {
        OK(be->ops->zero(be, tally, sizeof sums));
        OK(be->ops->stage_done(be, 0));
        OK(en_net_stage(net, 0, n, be->u8 ? (const void *)bytes : floats, labels, &way->now));
        OK(be->ops->stage_ready(be, 0));
        OK(en_net_forward(net, 0));
        OK(en_net_loss(net, 0.1f, way->training && n ? 1.f / (float)n : way->training, tally));
        if (way->training) OK(en_net_backward(net, NULL));
    }
    OK(be->ops->download(be, sums, tally, sizeof sums));
    r.loss = sums[EN_TALLY_LOSS], r.top1 = sums[EN_TALLY_TOP1], r.images = sums[EN_TALLY_IMAGES];
    float *logits = calloc((size_t)(n * m->classes + 1), sizeof *logits);
    OK(en_net_logits(net, logits));
    for (int64_t i = 0; i < n * m->classes; i++) r.logits[i] = (double)logits[i];
    free(logits);
    OK(be->ops->download(be, params, grads_dev, p * sizeof(float)));
    OK(be->ops->download(be, stats, stats_dev, s * sizeof(float)));
    from_arenas(m, params, stats, r.answers);

    if (way->training) {
        bool has;
        float *mask = calloc((size_t)(n * m->head.co_p + 1), sizeof *mask);
        OK(en_net_dropout(net, mask, &has));
        if (has) {
            r.dropout = calloc((size_t)(n * m->head.co + 1), sizeof *r.dropout);
            for (int64_t i = 0; i < n * m->head.co; i++) r.dropout[i] = (double)mask[i / m->head.co * m->head.co_p + i % m->head.co];
        }
        r.drop = calloc((size_t)m->n_blocks + 1, sizeof *r.drop);
        for (int k = 0; k < m->n_blocks; k++) {
            OK(en_net_drop(net, k, mask, &has));
            if (!has) continue;
            r.drop[k] = calloc((size_t)n + 1, sizeof **r.drop);
            for (int64_t i = 0; i < n; i++) r.drop[k][i] = (double)mask[i];
        }
        free(mask);
    }
    be->ops->free(be, tally), free(bytes);
    be->ops->free(be, params_dev), be->ops->free(be, grads_dev), be->ops->free(be, stats_dev);
    free(params), free(stats), free(floats);
    en_net_close(net);
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
