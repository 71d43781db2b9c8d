/* bench/side.c - a backend with memory for one layer, filled with numbers that training would meet: activations of variance 1,
 * weights that keep it, batch norms near the identity. */
#include "trainer/bench/passes.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static size_t number_bytes(const en_backend *be, bench_number t)
{
    return t == BENCH_ACTIVATION ? en_dtype_bytes(be->dtype) : t == BENCH_FLOAT ? 4 : t == BENCH_DOUBLE ? 8 : 1;
}

static uint32_t bits_of(float x) { uint32_t w; memcpy(&w, &x, sizeof w); return w; }
static float rounded(float x)                                 /* to a bf16 number, ties to even */
{
    const uint32_t w = (bits_of(x) + 0x7fff + (bits_of(x) >> 16 & 1)) & 0xffff0000u;
    memcpy(&x, &w, sizeof x);
    return x;
}

/* Half-width and centre of the uniform numbers of a tensor that no pass writes first:
 * activations of variance 1, weights that keep it. */
static bool spread_of(const bench_layer *l, int t, float *width, float *centre)
{
    const en_block *k = l->block;
    const int64_t ci = k ? k->ci_p : t == W3 ? l->m->head.co_p : l->m->head.ci_p;
    *centre = 0, *width = 1.7f;
    switch (t) {
    case X: case G: case DZ1: return true;
    case MASK: *width = 0.25f, *centre = 1; return true;       /* any numbers near 1 serve for time and for right or wrong */
    case W1: *width = 1.7f / sqrtf(l->elems[X] == 0 ? 1000.f : l->type[X] == BENCH_ACTIVATION ? (float)ci : 27.f); return true;
    case WD: *width = 1.7f / (float)k->kernel / (l->geom[BENCH_SPATIAL].dense ? sqrtf((float)ci) : 1.f); return true;
    case W3: *width = 1.7f / sqrtf((float)(k ? k->mid_p : ci)); return true;
    case WR: *width = 1.7f / sqrtf((float)k->mid_p); return true;
    case WE: *width = 1.7f / sqrtf((float)k->q); return true;
    case BR: case BE: *width = 0.1f; return true;
    case DW1: *width = 0.1f; return l->elems[X] == 0;          /* the gradient that the update reads */
    case MS: *width = 0.5f, *centre = 0.75f; return true;
    case MOM: *width = 0.01f; return true;
    case EMA: *width = 0.05f; return true;
    default: return false;
    }
}

enum { PERIOD = 1000003 };                                    /* a prime: no image begins like another */

en_status bench_draw(en_backend *be, void *p, bench_number type, int64_t elems, float width, float centre, uint64_t seed, int stream)
{
    const size_t one = number_bytes(be, type);
    const int64_t some = elems < PERIOD ? elems : PERIOD;
    unsigned char *host = malloc((size_t)some * one + 1);
    EN_REQUIRE(host, EN_ENOMEM, "no memory to draw tensors");
    en_rng r = en_rng_at(seed, EN_RNG_SYNTH, 0, (uint64_t)stream, 1);
    for (int64_t i = 0; i < some; i++) {
        const float u = en_rng_uniform(&r), v = rounded(centre + width * (2 * u - 1));
        const uint16_t half = (uint16_t)(bits_of(v) >> 16);
        if (type == BENCH_BYTE) host[i] = (unsigned char)(256 * u);
        else if (one == 2) memcpy(host + 2 * i, &half, 2);
        else memcpy(host + 4 * i, &v, 4);
    }
    en_status status = EN_OK;
    for (int64_t i = 0; i < elems && status == EN_OK; i += some)
        status = be->ops->upload(be, (char *)p + (size_t)i * one, host, (size_t)(elems - i < some ? elems - i : some) * one);
    free(host);
    return status;
}

/* gamma near 1, beta and the running mean near 0, running variance 1; the rest is computed. */
static en_status fill_bn(bench_side *s, int i, uint64_t seed)
{
    const int64_t c = s->l->channels[i];
    float *host = calloc((size_t)(6 * c), sizeof *host);
    EN_REQUIRE(host, EN_ENOMEM, "no memory to draw tensors");
    en_rng r = en_rng_at(seed, EN_RNG_SYNTH, 0, (uint64_t)(BN1 + i), 2);
    for (int64_t j = 0; j < c; j++) {
        host[j] = 0.9f + 0.2f * en_rng_uniform(&r);
        host[c + j] = 0.2f * en_rng_uniform(&r) - 0.1f;
        host[4 * c + j] = 0.2f * en_rng_uniform(&r) - 0.1f;
        host[5 * c + j] = 1.f;
    }
    const en_status status = s->be->ops->upload(s->be, s->p[BN1 + i - 1], host, (size_t)(6 * c) * sizeof *host);
    free(host);
    float *p = s->p[BN1 + i - 1];
    double *sums = s->p[SUMS1 + i - 1];
    s->bn[i] = (en_bn){ .c = c, .eps = s->l->m->bn_eps, .momentum = 0,                  /* running statistics stay, however often it runs */
                        .gamma = p, .beta = p + c, .dgamma = p + 2 * c, .dbeta = p + 3 * c, .running_mean = p + 4 * c, .running_var = p + 5 * c,
                        .mean = p + 6 * c, .rstd = p + 7 * c, .scale = p + 8 * c, .shift = p + 9 * c, .ga = p + 10 * c, .gb = p + 11 * c, .gc = p + 12 * c,
                        .local = sums, .total = sums, .fold = i == 1 ? s->p[FOLD] : NULL };
    return status;
}

static en_status fill_few(bench_side *s, uint64_t seed)       /* labels, and what changes from step to step */
{
    const en_now now = { .seed = seed, .lr = 1e-3f, .ema_decay = 0.999f };
    if (s->p[NOW]) EN_TRY(s->be->ops->upload(s->be, s->p[NOW], &now, sizeof now), "uploading");
    if (!s->p[LABELS]) return EN_OK;
    int32_t *labels = malloc((size_t)s->l->n * sizeof *labels + 1);
    EN_REQUIRE(labels, EN_ENOMEM, "no memory for labels");
    en_rng r = en_rng_at(seed, EN_RNG_SYNTH, 0, LABELS, 1);
    for (int64_t i = 0; i < s->l->n; i++) labels[i] = (int32_t)en_rng_below(&r, (uint32_t)s->l->m->classes);
    const en_status status = s->be->ops->upload(s->be, s->p[LABELS], labels, (size_t)s->l->n * sizeof *labels);
    free(labels);
    return status;
}

static en_status reserve(bench_side *s, size_t *workspace)
{
    const bench_layer *l = s->l;
    const en_work of_block[] = { EN_WORK_POINTWISE_BACKWARD, l->geom[BENCH_SPATIAL].dense ? EN_WORK_CONV : EN_WORK_DEPTHWISE_BACKWARD, EN_WORK_PROJECT };
    const bool head = !l->block && l->geom[BENCH_NARROW].n > 0;
    *workspace = 0;
    for (int i = 0; i < BENCH_GEOMETRIES; i++) {
        const en_conv_geom *g = &l->geom[i];
        if (g->n == 0) continue;
        EN_TRY(s->be->ops->reserve(s->be, g), "scratch memory");
        if (!l->block && !(head && i == BENCH_WIDEN)) continue;
        const size_t bytes = s->be->ops->workspace_bytes(s->be, head ? EN_WORK_POOLED_BACKWARD : of_block[i], g);
        if (bytes > *workspace) *workspace = bytes;
    }
    return EN_OK;
}

en_status bench_side_open(bench_side *s, en_backend *be, const bench_layer *l, uint64_t seed)
{
    *s = (bench_side){ .be = be, .l = l, .segment = { .elems = l->elems[W1], .decay = true } };
    size_t bytes[BENCH_TENSORS] = { 0 };
    for (int t = 0; t < BENCH_TENSORS; t++) bytes[t] = (size_t)l->elems[t] * number_bytes(be, l->type[t]);
    EN_TRY(reserve(s, &bytes[WORK]), "%s", l->shape);
    if (l->elems[GATE] && be->gated) bytes[DGATE] = bytes[GATE];
    if (l->block && l->block->expand) {
        const en_conv_geom *g = &l->geom[BENCH_WIDEN];
        bytes[FOLD] = (size_t)be->ops->fold_floats(be, g->n * g->h * g->w, g->c, g->oc) * sizeof(float);
    }
    for (int t = 0; t < BENCH_TENSORS; t++)
        if (bytes[t]) EN_TRY(be->ops->alloc(be, bytes[t], &s->p[t]), "%s: memory for %lld images", l->shape, (long long)l->n);
    be->workspace = s->p[WORK];
    for (int t = 0; t < BN1; t++) {
        float width, centre;
        if (s->p[t] && spread_of(l, t, &width, &centre)) EN_TRY(bench_draw(be, s->p[t], l->type[t], l->elems[t], width, centre, seed, t), "%s", l->shape);
    }
    for (int i = 1; i <= 3; i++)
        if (l->channels[i]) EN_TRY(fill_bn(s, i, seed), "%s", l->shape);
    EN_TRY(fill_few(s, seed), "%s", l->shape);
    if (l->raw) EN_TRY(be->ops->bn_from_running(be, &s->bn[1]), "batch norm of the stem");
    if (s->p[W1]) EN_TRY(be->ops->keep_weights(be, s->p[W1], l->elems[W1]), "weights");
    if (s->p[W3]) EN_TRY(be->ops->keep_weights(be, s->p[W3], l->elems[W3]), "weights");
    return be->ops->synchronize(be);
}

void bench_side_close(bench_side *s)
{
    if (!s->be) return;
    if (s->p[W1]) (void)s->be->ops->keep_weights(s->be, s->p[W1], 0);
    if (s->p[W3]) (void)s->be->ops->keep_weights(s->be, s->p[W3], 0);
    for (int t = 0; t < BENCH_TENSORS; t++)
        if (s->p[t]) s->be->ops->free(s->be, s->p[t]);
    s->be->workspace = NULL;
    *s = (bench_side){ 0 };
}

en_status bench_settle(bench_side *s, const bench_pass *p)
{
    const struct en_backend_ops *ops = s->be->ops;
    if (!p->bn) return EN_OK;
    if (!p->backward) return ops->bn_finalize(s->be, &s->bn[p->bn]);
    EN_TRY(ops->bn_backward_local(s->be, &s->bn[p->bn]), "batch norm");
    return ops->bn_backward_finalize(s->be, &s->bn[p->bn]);
}
