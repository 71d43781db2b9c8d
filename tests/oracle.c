#include "oracle.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

en_conv_geom oracle_rows(int64_t rows, int64_t ci, int64_t co)
{
    return (en_conv_geom){ .n = 1, .h = rows, .w = 1, .c = ci, .oh = rows, .ow = 1, .oc = co, .kernel = 1, .stride = 1, .pad = 0 };
}

en_conv_geom oracle_same(int64_t n, int64_t h, int64_t w, int64_t c, int64_t oc, int kernel, int stride)
{
    const int64_t oh = (h + stride - 1) / stride, ow = (w + stride - 1) / stride, total = (oh - 1) * stride + kernel - h;
    return (en_conv_geom){ .n = n, .h = h, .w = w, .c = c, .oh = oh, .ow = ow, .oc = oc,
                           .kernel = kernel, .stride = stride, .pad = (int)(total > 0 ? total / 2 : 0) };
}

/* Calls its body for every (image, output pixel, tap) whose input pixel exists: `in` and `out` are pixel numbers. */
#define FOR_EACH_TAP(g, out, tap, in)                                                                                  \
    for (int64_t n_ = 0; n_ < (g)->n; n_++)                                                                            \
        for (int64_t i_ = 0; i_ < (g)->oh; i_++)                                                                       \
            for (int64_t j_ = 0; j_ < (g)->ow; j_++)                                                                   \
                for (int64_t tap = 0, out = (n_ * (g)->oh + i_) * (g)->ow + j_, in; tap < (g)->kernel * (g)->kernel; tap++) \
                    if ((in = pixel(g, n_, i_, j_, tap)) >= 0)

static int64_t pixel(const en_conv_geom *g, int64_t n, int64_t i, int64_t j, int64_t tap)
{
    const int64_t ih = i * g->stride - g->pad + tap / g->kernel, iw = j * g->stride - g->pad + tap % g->kernel;
    return ih < 0 || ih >= g->h || iw < 0 || iw >= g->w ? -1 : (n * g->h + ih) * g->w + iw;
}

static int64_t in_elems(const en_conv_geom *g)  { return g->n * g->h * g->w * g->c; }
static int64_t out_elems(const en_conv_geom *g) { return g->n * g->oh * g->ow * g->oc; }
static void clear(double *x, int64_t n)         { memset(x, 0, (size_t)n * sizeof *x); }

void oracle_conv(const en_conv_geom *g, const double *x, const double *wt, double *y)
{
    clear(y, out_elems(g));
    FOR_EACH_TAP (g, out, tap, in)
        for (int64_t d = 0; d < g->c; d++)
            for (int64_t o = 0; o < g->oc; o++) y[out * g->oc + o] += x[in * g->c + d] * wt[(tap * g->c + d) * g->oc + o];
}

void oracle_conv_dx(const en_conv_geom *g, const double *dy, const double *wt, double *dx)
{
    clear(dx, in_elems(g));
    FOR_EACH_TAP (g, out, tap, in)
        for (int64_t d = 0; d < g->c; d++) {
            const double *a = dy + out * g->oc, *b = wt + (tap * g->c + d) * g->oc;
            double s[4] = { 0 };                                /* four chains: the sum is long and in double anyway */
            int64_t o = 0;
            for (; o + 4 <= g->oc; o += 4)
                for (int l = 0; l < 4; l++) s[l] += a[o + l] * b[o + l];
            for (; o < g->oc; o++) s[0] += a[o] * b[o];
            dx[in * g->c + d] += s[0] + s[1] + s[2] + s[3];
        }
}

void oracle_conv_dwt(const en_conv_geom *g, const double *x, const double *dy, double *dwt)
{
    clear(dwt, (int64_t)g->kernel * g->kernel * g->c * g->oc);
    FOR_EACH_TAP (g, out, tap, in)
        for (int64_t d = 0; d < g->c; d++)
            for (int64_t o = 0; o < g->oc; o++) dwt[(tap * g->c + d) * g->oc + o] += x[in * g->c + d] * dy[out * g->oc + o];
}

void oracle_depthwise(const en_conv_geom *g, const double *x, const double *wt, double *y)
{
    clear(y, out_elems(g));
    FOR_EACH_TAP (g, out, tap, in)
        for (int64_t c = 0; c < g->c; c++) y[out * g->c + c] += x[in * g->c + c] * wt[tap * g->c + c];
}

void oracle_depthwise_dx(const en_conv_geom *g, const double *dy, const double *wt, double *dx)
{
    clear(dx, in_elems(g));
    FOR_EACH_TAP (g, out, tap, in)
        for (int64_t c = 0; c < g->c; c++) dx[in * g->c + c] += dy[out * g->c + c] * wt[tap * g->c + c];
}

void oracle_depthwise_dwt(const en_conv_geom *g, const double *x, const double *dy, double *dwt)
{
    clear(dwt, (int64_t)g->kernel * g->kernel * g->c);
    FOR_EACH_TAP (g, out, tap, in)
        for (int64_t c = 0; c < g->c; c++) dwt[tap * g->c + c] += x[in * g->c + c] * dy[out * g->c + c];
}

double oracle_sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }

double oracle_act(en_act act, double x)
{
    switch (act) {
    case EN_ACT_NONE:  return x;
    case EN_ACT_SILU:  return x * oracle_sigmoid(x);
    case EN_ACT_RELU:  return fmax(x, 0);
    case EN_ACT_RELU6: return fmin(fmax(x, 0), 6);
    }
    return NAN;
}

double oracle_dact(en_act act, double x)
{
    const double s = oracle_sigmoid(x);
    switch (act) {
    case EN_ACT_NONE:  return 1;
    case EN_ACT_SILU:  return s + x * s * (1.0 - s);
    case EN_ACT_RELU:  return x > 0;                            /* 0 where it bends, as PyTorch and TensorFlow have it */
    case EN_ACT_RELU6: return x > 0 && x < 6;
    }
    return NAN;
}

void oracle_bn(int64_t r, int64_t c, const double *y, const double *gamma, const double *beta, double eps,
               double *mean, double *var, double *out)
{
    clear(mean, c);
    clear(var, c);
    for (int64_t i = 0; i < r; i++)
        for (int64_t d = 0; d < c; d++) mean[d] += y[i * c + d] / (double)r;
    for (int64_t i = 0; i < r; i++)
        for (int64_t d = 0; d < c; d++) var[d] += (y[i * c + d] - mean[d]) * (y[i * c + d] - mean[d]) / (double)r;
    for (int64_t i = 0; i < r; i++)
        for (int64_t d = 0; d < c; d++) out[i * c + d] = gamma[d] * (y[i * c + d] - mean[d]) / sqrt(var[d] + eps) + beta[d];
}

void oracle_bn_backward(int64_t r, int64_t c, const double *y, const double *gamma, double eps, const double *dout,
                        double *dy, double *dgamma, double *dbeta)
{
    double *col = malloc((size_t)r * sizeof *col);              /* one channel at a time, as the paper writes it */
    for (int64_t d = 0; d < c; d++) {
        double mean = 0, var = 0, dvar = 0, dmean = 0, sum_centred = 0;
        for (int64_t i = 0; i < r; i++) mean += y[i * c + d] / (double)r;
        for (int64_t i = 0; i < r; i++) col[i] = y[i * c + d] - mean, var += col[i] * col[i] / (double)r;
        dgamma[d] = dbeta[d] = 0;
        for (int64_t i = 0; i < r; i++) {
            const double dxhat = dout[i * c + d] * gamma[d];
            dvar += dxhat * col[i] * -0.5 * pow(var + eps, -1.5);
            dmean += dxhat * -1.0 / sqrt(var + eps);
            sum_centred += -2.0 * col[i] / (double)r;
            dgamma[d] += dout[i * c + d] * col[i] / sqrt(var + eps);
            dbeta[d] += dout[i * c + d];
        }
        dmean += dvar * sum_centred;
        for (int64_t i = 0; i < r; i++)
            dy[i * c + d] = dout[i * c + d] * gamma[d] / sqrt(var + eps) + dvar * 2.0 * col[i] / (double)r + dmean / (double)r;
    }
    free(col);
}

void oracle_se(int64_t n, int64_t hw, int64_t c, int64_t q, const double *u, const double *wr, const double *br,
               const double *we, const double *be, double *pooled, double *hidden, double *gate, double *out)
{
    oracle_pool(n, hw, c, u, pooled);
    for (int64_t b = 0; b < n; b++) {
        for (int64_t k = 0; k < q; k++) {
            hidden[b * q + k] = br[k];
            for (int64_t d = 0; d < c; d++) hidden[b * q + k] += wr[k * c + d] * pooled[b * c + d];
        }
        for (int64_t d = 0; d < c; d++) {
            double z = be[d];
            for (int64_t k = 0; k < q; k++) z += we[k * c + d] * oracle_act(EN_ACT_SILU, hidden[b * q + k]);
            gate[b * c + d] = oracle_sigmoid(z);
        }
        for (int64_t i = b * hw; i < (b + 1) * hw; i++)
            for (int64_t d = 0; d < c; d++) out[i * c + d] = u[i * c + d] * gate[b * c + d];
    }
}

void oracle_se_backward(int64_t n, int64_t hw, int64_t c, int64_t q, const double *u, const double *wr, const double *we,
                        const double *pooled, const double *hidden, const double *gate, const double *dout,
                        double *du, double *dwr, double *dbr, double *dwe, double *dbe)
{
    double *dz = malloc((size_t)c * sizeof *dz);                /* gradient before the sigmoid */
    clear(dwr, q * c);
    clear(dwe, q * c);
    clear(dbr, q);
    clear(dbe, c);
    for (int64_t b = 0; b < n; b++) {
        clear(dz, c);
        for (int64_t i = b * hw; i < (b + 1) * hw; i++)
            for (int64_t d = 0; d < c; d++) {
                dz[d] += dout[i * c + d] * u[i * c + d];
                du[i * c + d] = dout[i * c + d] * gate[b * c + d];
            }
        for (int64_t d = 0; d < c; d++) dbe[d] += dz[d] *= gate[b * c + d] * (1.0 - gate[b * c + d]);
        for (int64_t k = 0; k < q; k++) {
            double dh = 0;
            for (int64_t d = 0; d < c; d++) {
                dwe[k * c + d] += oracle_act(EN_ACT_SILU, hidden[b * q + k]) * dz[d];
                dh += we[k * c + d] * dz[d];
            }
            dh *= oracle_dact(EN_ACT_SILU, hidden[b * q + k]);
            dbr[k] += dh;
            for (int64_t d = 0; d < c; d++) dwr[k * c + d] += dh * pooled[b * c + d];
            for (int64_t i = b * hw; i < (b + 1) * hw; i++)
                for (int64_t d = 0; d < c; d++) du[i * c + d] += dh * wr[k * c + d] / (double)hw;
        }
    }
    free(dz);
}

void oracle_pool(int64_t n, int64_t hw, int64_t c, const double *x, double *pooled)
{
    clear(pooled, n * c);
    for (int64_t i = 0; i < n * hw; i++)
        for (int64_t d = 0; d < c; d++) pooled[i / hw * c + d] += x[i * c + d] / (double)hw;
}

void oracle_pool_backward(int64_t n, int64_t hw, int64_t c, const double *dpooled, double *dx)
{
    for (int64_t i = 0; i < n * hw; i++)
        for (int64_t d = 0; d < c; d++) dx[i * c + d] = dpooled[i / hw * c + d] / (double)hw;
}

void oracle_max_pool(const en_conv_geom *g, const double *x, double *y, uint8_t *at)
{
    for (int64_t i = 0; i < g->n * g->oh * g->ow * g->c; i++) y[i] = -INFINITY, at[i] = UINT8_MAX;
    FOR_EACH_TAP(g, out, tap, in)
        for (int64_t d = 0; d < g->c; d++) {
            const double u = x[in * g->c + d], top = y[out * g->c + d];
            if (at[out * g->c + d] == UINT8_MAX || u > top || (isnan(u) && !isnan(top))) y[out * g->c + d] = u, at[out * g->c + d] = (uint8_t)tap;
        }
}

void oracle_max_pool_backward(const en_conv_geom *g, const uint8_t *at, const double *dy, double *dx)
{
    clear(dx, g->n * g->h * g->w * g->c);
    FOR_EACH_TAP(g, out, tap, in)
        for (int64_t d = 0; d < g->c; d++)
            if (at[out * g->c + d] == tap) dx[in * g->c + d] += dy[out * g->c + d];
}

void oracle_dense(int64_t n, int64_t ci, int64_t k, const double *x, const double *wt, const double *bias, double *y)
{
    for (int64_t b = 0; b < n; b++) {
        memcpy(y + b * k, bias, (size_t)k * sizeof *y);
        for (int64_t i = 0; i < ci; i++)
            for (int64_t j = 0; j < k; j++) y[b * k + j] += x[b * ci + i] * wt[i * k + j];
    }
}

void oracle_dense_backward(int64_t n, int64_t ci, int64_t k, const double *x, const double *wt, const double *dy,
                           double *dx, double *dwt, double *dbias)
{
    clear(dwt, ci * k);
    clear(dbias, k);
    clear(dx, n * ci);
    for (int64_t b = 0; b < n; b++) {
        for (int64_t i = 0; i < ci; i++)
            for (int64_t j = 0; j < k; j++) {
                dx[b * ci + i] += dy[b * k + j] * wt[i * k + j];
                dwt[i * k + j] += x[b * ci + i] * dy[b * k + j];
            }
        for (int64_t j = 0; j < k; j++) dbias[j] += dy[b * k + j];
    }
}

void oracle_target(int64_t classes, int32_t label, int32_t mate, double share, double smoothing, double *target)
{
    for (int64_t j = 0; j < classes; j++) target[j] = 0;
    if (share > 0) target[label] += share;
    if (share < 1) target[mate] += 1.0 - share;
    for (int64_t j = 0; j < classes; j++) target[j] = (1.0 - smoothing) * target[j] + smoothing / (double)classes;
}

double oracle_cross_entropy(int64_t classes, const double *logits, const double *target, double *dlogits)
{
    double top = logits[0], sum = 0, loss = 0;
    for (int64_t j = 1; j < classes; j++) top = fmax(top, logits[j]);
    for (int64_t j = 0; j < classes; j++) sum += exp(logits[j] - top);
    for (int64_t j = 0; j < classes; j++) {
        loss -= target[j] * (logits[j] - top - log(sum));
        if (dlogits) dlogits[j] = exp(logits[j] - top) / sum - target[j];
    }
    return loss;
}

bool oracle_hit(int64_t classes, const float *logits, int32_t label, int at)
{
    int before = 0;
    for (int64_t j = 0; j < classes; j++) {
        if (isnan(logits[j])) return false;
        before += logits[j] > logits[label] || (logits[j] == logits[label] && j < label);
    }
    return before < at;
}

oracle_state oracle_rmsprop(const en_rmsprop *h, const en_now *now, bool decay, double grad, oracle_state s)
{
    const double g = grad + (decay ? (double)h->weight_decay * s.w : 0.0);
    s.slot[0] += (g * g - s.slot[0]) * (1.0 - (double)h->rho);
    s.slot[1] = (double)h->momentum * s.slot[1] + (double)now->lr * g / sqrt(s.slot[0] + (double)h->eps);
    s.w -= s.slot[1];
    s.ema = oracle_ema(s.ema, s.w, (double)now->ema_decay);
    return s;
}

oracle_state oracle_sgd(const en_sgd *h, const en_now *now, bool decay, double grad, oracle_state s)
{
    const double g = grad + (decay ? (double)h->weight_decay * s.w : 0.0);
    s.slot[0] = (double)h->momentum * s.slot[0] + g;
    s.w -= (double)now->lr * (h->nesterov ? g + (double)h->momentum * s.slot[0] : s.slot[0]);
    s.ema = oracle_ema(s.ema, s.w, (double)now->ema_decay);
    return s;
}

double oracle_trust(const en_lars *h, bool decay, double w_norm, double grad_norm)
{
    if (!(w_norm > 0) || !(grad_norm > 0)) return 1.0;
    return (double)h->trust * w_norm / (grad_norm + (decay ? (double)h->weight_decay : 0.0) * w_norm + (double)h->eps);
}

/* The rate goes into the gradient, and TensorFlow's momentum is given a rate of 1. */
oracle_state oracle_lars(const en_lars *h, const en_now *now, bool decay, double trust, double grad, oracle_state s)
{
    const double g = (double)now->lr * trust * (grad + (decay ? (double)h->weight_decay * s.w : 0.0));
    s.slot[0] = (double)h->momentum * s.slot[0] + g;
    s.w -= h->nesterov ? g + (double)h->momentum * s.slot[0] : s.slot[0];
    s.ema = oracle_ema(s.ema, s.w, (double)now->ema_decay);
    return s;
}

/* The paper's algorithm 2, its schedule multiplier and its rate being lr both, as in PyTorch. */
oracle_state oracle_adamw(const en_adamw *h, const en_now *now, bool decay, int64_t t, double grad, oracle_state s)
{
    s.slot[0] = h->beta1 * s.slot[0] + (1 - h->beta1) * grad;
    s.slot[1] = h->beta2 * s.slot[1] + (1 - h->beta2) * grad * grad;
    const double m = s.slot[0] / (1 - pow(h->beta1, (double)t)), v = s.slot[1] / (1 - pow(h->beta2, (double)t));
    s.w -= (double)now->lr * (m / (sqrt(v) + (double)h->eps) + (decay ? (double)h->weight_decay : 0.0) * s.w);
    s.ema = oracle_ema(s.ema, s.w, (double)now->ema_decay);
    return s;
}

double oracle_ema(double shadow, double x, double decay) { return shadow - (1.0 - decay) * (shadow - x); }
