#include "oracle_net.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Memory of one run: taken piece by piece, freed together. */
typedef struct piece { struct piece *before; double data[]; } piece;
typedef struct { const en_model *m; double *const *tensors, *const *answers; bool frozen; piece *memory; } run;

static double *take(run *r, int64_t n)
{
    piece *p = calloc(1, sizeof *p + (size_t)n * sizeof(double));
    assert(p);
    p->before = r->memory;
    r->memory = p;
    return p->data;
}

/* out[j][i] = in[i][j] */
static double *transposed(run *r, const double *in, int64_t rows, int64_t cols)
{
    double *out = take(r, rows * cols);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) out[j * rows + i] = in[i * cols + j];
    return out;
}

static void put_transposed(double *out, const double *in, int64_t rows, int64_t cols)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) out[j * rows + i] = in[i * cols + j];
}

/* Convolution, batch norm, activation: u = act(bn(y)), y = conv(x). */
typedef struct { en_conv_geom g; bool depthwise; int weight; en_bn_ref bn; en_act act; int64_t rows;
                 const double *x; double *wt, *y, *z, *u; } layer;

/* A checkpoint's (O, I*kh*kw) is (I*kh*kw, O) transposed, with I and the taps in the other order: (O,I,k*k) -> (k*k,I,O). */
static int64_t ours(const layer *l, int64_t o, int64_t i, int64_t tap)
{
    return l->depthwise ? tap * l->g.oc + o : (tap * l->g.c + i) * l->g.oc + o;
}

static void each_weight(const layer *l, double *here, double *there, bool load)
{
    const int64_t ci = l->depthwise ? 1 : l->g.c, taps = (int64_t)l->g.kernel * l->g.kernel;
    for (int64_t o = 0; o < l->g.oc; o++)
        for (int64_t i = 0; i < ci; i++)
            for (int64_t t = 0; t < taps; t++) {
                double *a = here + ours(l, o, i, t), *b = there + (o * ci + i) * taps + t;
                if (load) *a = *b;
                else *b = *a;
            }
}

/* A convolution of the model: its own padding, TensorFlow's SAME or (k-1)/2 zeros on each side. */
static en_conv_geom geometry(const en_model *m, int64_t n, int64_t h, int64_t w, int64_t c, int64_t oc, int kernel, int stride)
{
    en_conv_geom g = oracle_same(n, h, w, c, oc, kernel, stride);
    if (!m->same_padding) g.pad = (kernel - 1) / 2;
    return g;
}

static const double *forward(run *r, layer *l, const double *x)
{
    const en_model *m = r->m;
    const int64_t c = l->g.oc, weights = (int64_t)l->g.kernel * l->g.kernel * (l->depthwise ? 1 : l->g.c) * c;
    l->x = x;
    l->rows = l->g.n * l->g.oh * l->g.ow;
    l->wt = take(r, weights), l->y = take(r, l->rows * c), l->z = take(r, l->rows * c), l->u = take(r, l->rows * c);
    each_weight(l, l->wt, r->tensors[l->weight], true);
    (l->depthwise ? oracle_depthwise : oracle_conv)(&l->g, x, l->wt, l->y);
    double *mean = take(r, c), *var = take(r, c);
    const double *gamma = r->tensors[l->bn.gamma], *beta = r->tensors[l->bn.beta], *old_mean = r->tensors[l->bn.mean], *old_var = r->tensors[l->bn.var];
    if (!r->frozen) oracle_bn(l->rows, c, l->y, gamma, beta, (double)m->bn_eps, mean, var, l->z);
    else
        for (int64_t i = 0; i < l->rows * c; i++)
            l->z[i] = gamma[i % c] * (l->y[i] - old_mean[i % c]) / sqrt(old_var[i % c] + (double)m->bn_eps) + beta[i % c];
    for (int64_t i = 0; i < l->rows * c; i++) l->u[i] = oracle_act(l->act, l->z[i]);
    if (r->answers) {
        const double k = (double)m->bn_momentum, rows = (double)l->rows, unbiased = m->bn_unbiased_running && l->rows > 1 ? rows / (rows - 1) : 1;
        for (int64_t i = 0; i < c; i++) {
            r->answers[l->bn.mean][i] = (1 - k) * old_mean[i] + k * mean[i];
            r->answers[l->bn.var][i] = (1 - k) * old_var[i] + k * var[i] * unbiased;
        }
    }
    return l->u;
}

static double *backward(run *r, layer *l, const double *du)
{
    const en_model *m = r->m;
    const int64_t c = l->g.oc, size = l->rows * c;
    double *dz = take(r, size), *dy = take(r, size), *dx = take(r, l->g.n * l->g.h * l->g.w * l->g.c), *dwt = take(r, (int64_t)l->g.kernel * l->g.kernel * l->g.c * c);
    for (int64_t i = 0; i < size; i++) dz[i] = du[i] * oracle_dact(l->act, l->z[i]);
    oracle_bn_backward(l->rows, c, l->y, r->tensors[l->bn.gamma], (double)m->bn_eps, dz, dy, r->answers[l->bn.gamma], r->answers[l->bn.beta]);
    (l->depthwise ? oracle_depthwise_dwt : oracle_conv_dwt)(&l->g, l->x, dy, dwt);
    (l->depthwise ? oracle_depthwise_dx : oracle_conv_dx)(&l->g, dy, l->wt, dx);
    each_weight(l, dwt, r->answers[l->weight], false);
    return dx;
}

/* One block, as model.h's table has it.  MBConv (arXiv:1905.11946 after arXiv:1801.04381) expands, convolves by depth, gates, projects;
 * MobileNetV1's (arXiv:1704.04861) convolves by depth and projects, with an activation after both; fused (arXiv:2104.00298) convolves
 * densely and projects, or, without expansion, convolves only; a bottleneck (arXiv:1512.03385) narrows, convolves densely, widens, and
 * has an activation after the sum.  Then drop, and add. */
typedef struct { layer expand, dw, project, shortcut; double *we, *pooled, *hidden, *gate, *gated, *sum; const double *drop; } block;

static const double *block_forward(run *r, const en_block *k, block *s, const double *x, int64_t n, const double *drop)
{
    const en_model *m = r->m;
    const int64_t hw = k->oh * k->ow, size = n * hw * k->co;
    const bool depthwise = k->kind == EN_BLOCK_MBCONV || k->kind == EN_BLOCK_DSCONV, bottleneck = k->kind == EN_BLOCK_BOTTLENECK;
    const bool expands = k->w_expand >= 0, projects = k->w_project >= 0, shortcut = k->w_shortcut >= 0;
    s->drop = drop;
    if (expands) s->expand = (layer){ .g = geometry(m, n, k->h, k->w, k->ci, k->mid, 1, k->expand_stride), .weight = k->w_expand, .bn = k->bn_expand, .act = m->act };
    const int64_t h = expands ? s->expand.g.oh : k->h, w = expands ? s->expand.g.ow : k->w;
    s->dw = (layer){ .g = geometry(m, n, h, w, expands || depthwise ? k->mid : k->ci, k->mid, k->kernel, k->stride), .depthwise = depthwise, .weight = k->w_spatial,
                     .bn = k->bn_spatial, .act = m->act };
    if (projects) s->project = (layer){ .g = geometry(m, n, k->oh, k->ow, k->mid, k->co, 1, 1), .weight = k->w_project, .bn = k->bn_project,
                                        .act = k->kind == EN_BLOCK_DSCONV ? m->act : EN_ACT_NONE };
    if (shortcut) s->shortcut = (layer){ .g = geometry(m, n, k->h, k->w, k->ci, k->co, 1, k->expand_stride * k->stride), .weight = k->w_shortcut, .bn = k->bn_shortcut };
    assert(s->dw.g.oh == k->oh && s->dw.g.ow == k->ow && (!shortcut || s->shortcut.g.oh == k->oh));
    const double *u = forward(r, &s->dw, expands ? forward(r, &s->expand, x) : x);
    if (k->q > 0) {
        s->pooled = take(r, n * k->mid), s->hidden = take(r, n * k->q), s->gate = take(r, n * k->mid), s->gated = take(r, n * hw * k->mid);
        s->we = transposed(r, r->tensors[k->w_se_expand], k->mid, k->q);
        oracle_se(n, hw, k->mid, k->q, u, r->tensors[k->w_se_reduce], r->tensors[k->b_se_reduce], s->we, r->tensors[k->b_se_expand],
                  s->pooled, s->hidden, s->gate, s->gated);
        u = s->gated;
    }
    const double *z = projects ? forward(r, &s->project, u) : u, *added = shortcut ? forward(r, &s->shortcut, x) : k->skip ? x : NULL;
    double *o = take(r, size);
    s->sum = take(r, size);
    for (int64_t i = 0; i < size; i++) {
        s->sum[i] = z[i] * (drop ? drop[i / (hw * k->co)] : 1) + (added ? added[i] : 0);
        o[i] = bottleneck ? oracle_act(m->act, s->sum[i]) : s->sum[i];
    }
    return o;
}

static double *block_backward(run *r, const en_block *k, block *s, const double *g, int64_t n)
{
    const int64_t hw = k->oh * k->ow, size = n * hw * k->co;
    double *dsum = take(r, size), *dz = take(r, size);
    for (int64_t i = 0; i < size; i++) {
        dsum[i] = g[i] * (k->kind == EN_BLOCK_BOTTLENECK ? oracle_dact(r->m->act, s->sum[i]) : 1);
        dz[i] = dsum[i] * (s->drop ? s->drop[i / (hw * k->co)] : 1);
    }
    double *du = k->w_project >= 0 ? backward(r, &s->project, dz) : dz;
    if (k->q > 0) {
        double *du_before = take(r, n * hw * k->mid), *dwe = take(r, k->q * k->mid);
        oracle_se_backward(n, hw, k->mid, k->q, s->dw.u, r->tensors[k->w_se_reduce], s->we, s->pooled, s->hidden, s->gate, du, du_before,
                           r->answers[k->w_se_reduce], r->answers[k->b_se_reduce], dwe, r->answers[k->b_se_expand]);
        put_transposed(r->answers[k->w_se_expand], dwe, k->q, k->mid);
        du = du_before;
    }
    double *dx = backward(r, &s->dw, du);
    if (k->w_expand >= 0) dx = backward(r, &s->expand, dx);
    const double *more = k->w_shortcut >= 0 ? backward(r, &s->shortcut, dsum) : k->skip ? dsum : NULL;
    for (int64_t i = 0, in = n * k->h * k->w * k->ci; more && i < in; i++) dx[i] += more[i];
    return dx;
}

double oracle_net(const en_model *m, double *const *tensors, const oracle_batch *b, double *logits, double *const *answers)
{
    run r = { .m = m, .tensors = tensors, .answers = answers, .frozen = b->frozen };
    assert(!answers || !b->frozen);
    const int64_t n = b->n, features = m->head.co, classes = m->classes, hw = m->head.h * m->head.w;
    layer stem = { .g = geometry(m, n, m->resolution, m->resolution, 3, m->stem.oc, m->stem.kernel, m->stem.stride), .weight = m->stem.weight, .bn = m->stem.bn, .act = m->act };
    layer head = { .g = geometry(m, n, m->head.h, m->head.w, m->head.ci, features, 1, 1), .weight = m->head.weight, .bn = m->head.bn, .act = m->act };
    en_conv_geom pool = { 0 };
    uint8_t *at = NULL;                                         /* which of a window is its largest */
    block *blocks = calloc((size_t)m->n_blocks + 1, sizeof *blocks);
    assert(blocks);

    const double *x = forward(&r, &stem, b->images);
    if (m->pool.kernel) {
        pool = geometry(m, n, stem.g.oh, stem.g.ow, stem.g.oc, stem.g.oc, m->pool.kernel, m->pool.stride);
        double *largest = take(&r, n * pool.oh * pool.ow * pool.oc);
        at = (uint8_t *)take(&r, n * pool.oh * pool.ow * pool.oc);
        oracle_max_pool(&pool, x, largest, at);
        x = largest;
    }
    for (int k = 0; k < m->n_blocks; k++) x = block_forward(&r, &m->blocks[k], &blocks[k], x, n, b->drop ? b->drop[k] : NULL);
    const double *u = m->head.weight >= 0 ? forward(&r, &head, x) : x;
    double *pooled = take(&r, n * features), *y = take(&r, n * classes), *dlogits = take(&r, n * classes);
    oracle_pool(n, hw, features, u, pooled);
    for (int64_t i = 0; b->dropout && i < n * features; i++) pooled[i] *= b->dropout[i];
    const double *wt = transposed(&r, tensors[m->head.fc_weight], classes, features);
    oracle_dense(n, features, classes, pooled, wt, tensors[m->head.fc_bias], y);
    double loss = 0, *target = take(&r, classes);
    for (int64_t i = 0; i < n; i++) {
        oracle_target(classes, b->labels[i], b->mates ? b->mates[i] : b->labels[i], b->shares ? (double)b->shares[i] : 1, b->smoothing, target);
        loss += oracle_cross_entropy(classes, y + i * classes, target, dlogits + i * classes) / (double)n;
    }
    if (logits) memcpy(logits, y, (size_t)(n * classes) * sizeof *y);

    if (answers) {
        double *dpooled = take(&r, n * features), *dwt = take(&r, features * classes), *g = take(&r, n * hw * features);
        for (int64_t i = 0; i < n * classes; i++) dlogits[i] /= (double)n;
        oracle_dense_backward(n, features, classes, pooled, wt, dlogits, dpooled, dwt, answers[m->head.fc_bias]);
        put_transposed(answers[m->head.fc_weight], dwt, features, classes);
        for (int64_t i = 0; b->dropout && i < n * features; i++) dpooled[i] *= b->dropout[i];
        oracle_pool_backward(n, hw, features, dpooled, g);
        if (m->head.weight >= 0) g = backward(&r, &head, g);
        for (int k = m->n_blocks - 1; k >= 0; k--) g = block_backward(&r, &m->blocks[k], &blocks[k], g, n);
        if (at) {
            double *dx = take(&r, stem.rows * stem.g.oc);
            oracle_max_pool_backward(&pool, at, g, dx);
            g = dx;
        }
        backward(&r, &stem, g);
    }
    free(blocks);
    while (r.memory) {
        piece *before = r.memory->before;
        free(r.memory);
        r.memory = before;
    }
    return loss;
}

double **oracle_tensors(const en_model *m)
{
    double **t = calloc((size_t)m->n_tensors + 1, sizeof *t);
    assert(t);
    for (int i = 0; i < m->n_tensors; i++) {
        t[i] = calloc((size_t)en_tensor_count(&m->tensors[i]) + 1, sizeof **t);
        assert(t[i]);
    }
    return t;
}

void oracle_tensors_free(const en_model *m, double **t)
{
    for (int i = 0; t && i < m->n_tensors; i++) free(t[i]);
    free(t);
}
