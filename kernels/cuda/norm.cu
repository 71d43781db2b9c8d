/* norm.cu - batch norm between the passes (arXiv:1502.03167, algorithms 1 and 2), and what is formed on load as a tensor.
 *
 * The choices that must agree everywhere are those of the other backend (kernels/cpu/norm.c): eps inside the root, the biased
 * variance for the batch, sums about s = running_mean in double: mean = s + S1/r, var = S2/r - (S1/r)^2.  The number of rows r
 * arrives in device memory with the sums, total[2c], because it is the group's and no host knows it in time; backward reads it
 * there again. */
#include "passes.h"
#include "sweep.h"

enum { NORM_BLOCK = 128 };

/* ---- statistics: a thread has a channel; grid ceil(c/128), a few hundred bytes a channel ----------------------------------- */

EN_DEVICE void affine(const en_bn &bn, int64_t c, double mean, double var)
{
    const double rstd = 1 / sqrt(var + (double)bn.eps), scale = bn.gamma[c] * rstd;
    bn.mean[c]  = (float)mean;
    bn.rstd[c]  = (float)rstd;
    bn.scale[c] = (float)scale;
    bn.shift[c] = (float)(bn.beta[c] - mean * scale);
}

static __global__ void __launch_bounds__(NORM_BLOCK) from_running(en_bn bn)
{
    const int64_t c = (int64_t)blockIdx.x * NORM_BLOCK + threadIdx.x;
    if (c < bn.c) affine(bn, c, bn.running_mean[c], bn.running_var[c]);
}

static __global__ void __launch_bounds__(NORM_BLOCK) finalize(en_bn bn)
{
    const int64_t c = (int64_t)blockIdx.x * NORM_BLOCK + threadIdx.x;
    if (c >= bn.c) return;                                     /* no barrier follows */
    const double r = bn.total[2 * bn.c], momentum = bn.momentum, rm = bn.running_mean[c], rv = bn.running_var[c];
    if (r < 1) {                                                /* an empty group */
        affine(bn, c, rm, rv);
        return;
    }
    const double d = bn.total[c] / r, mean = rm + d, raw = bn.total[bn.c + c] / r - d * d;
    const double var = raw < 0 ? 0 : raw;                       /* NaN stays NaN: a diverged run must show */
    affine(bn, c, mean, var);
    const double kept = bn.unbiased_running && r > 1 ? var * (r / (r - 1)) : var;
    bn.running_mean[c] = (float)((1 - momentum) * rm + momentum * mean);
    bn.running_var[c]  = (float)((1 - momentum) * rv + momentum * kept);
}

static __global__ void __launch_bounds__(NORM_BLOCK) backward_local(en_bn bn)
{
    const int64_t c = (int64_t)blockIdx.x * NORM_BLOCK + threadIdx.x;
    if (c >= bn.c) return;
    bn.dbeta[c]  += (float)bn.local[c];
    bn.dgamma[c] += (float)((double)bn.rstd[c] * bn.local[bn.c + c]);
}

static __global__ void __launch_bounds__(NORM_BLOCK) backward_finalize(en_bn bn)
{
    const int64_t c = (int64_t)blockIdx.x * NORM_BLOCK + threadIdx.x;
    if (c >= bn.c) return;
    const double rows = bn.total[2 * bn.c], r = rows > 0 ? rows : 1;
    const double rstd = bn.rstd[c], ga = bn.gamma[c] * rstd, s2 = rstd * bn.total[bn.c + c], gb = -ga * rstd * s2 / r;
    bn.ga[c] = (float)ga;
    bn.gb[c] = (float)gb;
    bn.gc[c] = (float)(-ga * bn.total[c] / r - gb * (double)bn.mean[c]);
}

#define PER_CHANNEL(kernel)                                                                                            \
    do { kernel<<<(unsigned)ceil_div(bn->c, NORM_BLOCK), NORM_BLOCK, 0, engine(be)->compute>>>(*bn);                       \
         CU_LAUNCHED(#kernel " of %lld channels", (long long)bn->c);                                                   \
         return EN_OK; } while (0)

en_status cuda_bn_from_running(en_backend *be, en_bn *bn)      { PER_CHANNEL(from_running); }
en_status cuda_bn_finalize(en_backend *be, en_bn *bn)          { PER_CHANNEL(finalize); }
en_status cuda_bn_backward_local(en_backend *be, en_bn *bn)    { PER_CHANNEL(backward_local); }
en_status cuda_bn_backward_finalize(en_backend *be, en_bn *bn) { PER_CHANNEL(backward_finalize); }

/* ---- the gradient of a raw tensor as a tensor -------------------------------------------------------------------------------- */

enum grad_form { STORED, POOLED, GATED };
struct grad_source { const void *stored, *y; const float *drop, *dpooled, *gate, *dgate, *scale, *shift, *ga, *gb, *gc; en_act act; int64_t hw; };

/* sweep, by image unless STORED: out = dy by en_grad's formula.  Bytes: stored, y and out once.  `out` may be `stored`: a thread
 * has read what it overwrites, and nobody else reads it. */
template <typename T, grad_form FORM>
static __global__ void __launch_bounds__(SWEEP_BLOCK, FORM == STORED && sizeof(T) == 2 ? 3 : 2) form_dy(sweep s, grad_source d, T *out)
{
    enum { BATCH = 2 };
    const sweep_place p = place_in(s);
    const int64_t of_image = p.image * s.c + p.channel;
    const float inv_hw = 1.f / (float)d.hw;
    float ga[8], gb[8], gc[8], scale[8], shift[8], times[8], plus[8];
    load8(d.ga + p.channel, ga), load8(d.gb + p.channel, gb), load8(d.gc + p.channel, gc);
    if (FORM != STORED) load8(d.scale + p.channel, scale), load8(d.shift + p.channel, shift);
    if (FORM == POOLED) {
        load8(d.dpooled + of_image, plus);
#pragma unroll
        for (int i = 0; i < 8; i++) plus[i] *= inv_hw;
    }
    if (FORM == GATED) {
        fill8(times, 1.f), fill8(plus, 0.f);
        if (d.gate) load8(d.gate + of_image, times), load8(d.dgate + of_image, plus);
    }
    image_walk at = { 0, 0 };
    if (FORM == STORED && d.drop) at = walk_from(p.first, d.hw);
    for (int64_t r = p.first; r < p.end; r += BATCH * s.stride) {
        raw8<T> raw_y[BATCH], raw_z[BATCH];
        float keep[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            keep[k] = 1.f;
            if (r + k * s.stride < p.end) {
                const int64_t i = at_row(s, p, r + k * s.stride);
                raw_y[k] = fetch8((const T *)d.y + i);
                if (FORM != POOLED) raw_z[k] = fetch8((const T *)d.stored + i);
                if (FORM == STORED && d.drop) keep[k] = d.drop[at.image], walk_on(&at, s.stride, d.hw);
            }
        }
#pragma unroll
        for (int k = 0; k < BATCH; k++)
            if (r + k * s.stride < p.end) {
                float y[8], dz[8], dy[8];
                open8(raw_y[k], y);
                if (FORM != POOLED) open8(raw_z[k], dz);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    float z = FORM == POOLED ? plus[i] : FORM == GATED ? fmaf(dz[i], times[i], plus[i]) : dz[i] * keep[k];
                    if (FORM != STORED) z *= act_slope<T>(d.act, fmaf(y[i], scale[i], shift[i]));
                    dy[i] = fmaf(ga[i], z, fmaf(gb[i], y[i], gc[i]));
                }
                store8(out + at_row(s, p, r + k * s.stride), dy);
            }
    }
}

en_status form_gradient(en_backend *be, const en_grad *d, int64_t rows, int64_t c, void *out)
{
    CU_CHANNELS(c);
    EN_REQUIRE(d->bn && d->hw > 0 && rows % d->hw == 0, EN_EINVAL, "a gradient of %lld rows in images of %lld", (long long)rows, (long long)d->hw);
    if (rows == 0) return EN_OK;
    const bool by_image = !d->stored || d->gated;
    const sweep s = sweep_to_write(engine(be), by_image ? rows / d->hw : 1, by_image ? d->hw : rows, c);
    const grad_source g = { d->stored, d->y, d->drop, d->dpooled, d->gate, d->dgate, d->bn->scale, d->bn->shift, d->bn->ga, d->bn->gb, d->bn->gc,
                            d->act, d->hw };
    const unsigned grid = sweep_grid(s);
    const cudaStream_t stream = engine(be)->compute;
    if (!d->stored)    BY_TYPE(be, T, (form_dy<T, POOLED><<<grid, SWEEP_BLOCK, 0, stream>>>(s, g, (T *)out)));
    else if (d->gated) BY_TYPE(be, T, (form_dy<T, GATED><<<grid, SWEEP_BLOCK, 0, stream>>>(s, g, (T *)out)));
    else               BY_TYPE(be, T, (form_dy<T, STORED><<<grid, SWEEP_BLOCK, 0, stream>>>(s, g, (T *)out)));
    CU_LAUNCHED("gradient of %lld rows of %lld channels", (long long)rows, (long long)c);
    return EN_OK;
}

/* ---- an operand as a tensor ---------------------------------------------------------------------------------------------------- */

/* sweep, by image where there is a gate: out = act(bn(y)) * gate.  Bytes: y and out once. */
template <typename T> static __global__ void __launch_bounds__(SWEEP_BLOCK, 3)
    form_u(sweep s, const T *y, const float *scale, const float *shift, en_act act, const float *gate, T *out)
{
    enum { BATCH = sizeof(T) == 2 ? 4 : 2 };
    const sweep_place p = place_in(s);
    float a[8], b[8], g[8];
    fill8(a, 1.f), fill8(b, 0.f), fill8(g, 1.f);
    if (scale) load8(scale + p.channel, a), load8(shift + p.channel, b);
    if (gate) load8(gate + p.image * s.c + p.channel, g);
    for (int64_t r = p.first; r < p.end; r += BATCH * s.stride) {
        raw8<T> raw[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; k++)
            if (r + k * s.stride < p.end) raw[k] = fetch8(y + at_row(s, p, r + k * s.stride));
#pragma unroll
        for (int k = 0; k < BATCH; k++)
            if (r + k * s.stride < p.end) {
                float v[8];
                open8(raw[k], v);
#pragma unroll
                for (int i = 0; i < 8; i++) v[i] = act_value<T>(act, fmaf(v[i], a[i], b[i])) * g[i];
                store8(out + at_row(s, p, r + k * s.stride), v);
            }
    }
}

en_status form_operand(en_backend *be, const en_operand *x, const float *gate, int64_t rows, int64_t hw, int64_t c, void *out)
{
    CU_CHANNELS(c);
    EN_REQUIRE(!gate || (hw > 0 && rows % hw == 0), EN_EINVAL, "%lld rows in images of %lld", (long long)rows, (long long)hw);
    if (rows == 0) return EN_OK;
    const sweep s = sweep_to_write(engine(be), gate ? rows / hw : 1, gate ? hw : rows, c);
    const float *scale = x->bn ? x->bn->scale : NULL, *shift = x->bn ? x->bn->shift : NULL;
    BY_TYPE(be, T, (form_u<T><<<sweep_grid(s), SWEEP_BLOCK, 0, engine(be)->compute>>>(s, (const T *)x->y, scale, shift, x->act, gate, (T *)out)));
    CU_LAUNCHED("operand of %lld rows of %lld channels", (long long)rows, (long long)c);
    return EN_OK;
}
