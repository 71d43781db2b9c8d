/* norm.c - batch norm between the passes, and the narrow end of a block (arXiv:1502.03167, algorithms 1 and 2).
 *
 * Four choices that must agree everywhere, in both directions:
 *   1. eps is added to var, inside the root, and comes from one field: en_bn.eps.
 *   2. The batch uses the biased var (the backward formula assumes it).
 *   3. running = (1 - momentum)*running + momentum*batch.
 *   4. The sums are over the whole group: every rank computes the same mean and var from the same bits.
 * The sums arrive in double about s = running_mean:  mean = s + S1/r,  var = S2/r - (S1/r)^2, where S1/r is small. */
#include "passes.h"

#include <math.h>

static void affine(en_bn *bn, int64_t c, double mean, double var)
{
    const double rstd = 1 / sqrt(var + (double)bn->eps), scale = bn->gamma[c] * rstd;
    bn->mean[c] = (float)mean;
    bn->rstd[c] = (float)rstd;
    bn->scale[c] = (float)scale;
    bn->shift[c] = (float)(bn->beta[c] - mean * scale);
}

en_status cpu_bn_from_running(en_backend *be, en_bn *bn)
{
    (void)be;
    for (int64_t c = 0; c < bn->c; c++) affine(bn, c, bn->running_mean[c], bn->running_var[c]);
    return EN_OK;
}

en_status cpu_bn_finalize(en_backend *be, en_bn *bn)
{
    const double r = bn->total[2 * bn->c], momentum = bn->momentum;
    if (r < 1) return cpu_bn_from_running(be, bn);
    for (int64_t c = 0; c < bn->c; c++) {
        const double d = bn->total[c] / r, mean = bn->running_mean[c] + d;
        double var = bn->total[bn->c + c] / r - d * d;
        if (var < 0) var = 0;
        affine(bn, c, mean, var);
        const double kept = bn->unbiased_running && r > 1 ? var * (r / (r - 1)) : var;
        bn->running_mean[c] = (float)((1 - momentum) * bn->running_mean[c] + momentum * mean);
        bn->running_var[c] = (float)((1 - momentum) * bn->running_var[c] + momentum * kept);
    }
    return EN_OK;
}

en_status cpu_bn_backward_local(en_backend *be, en_bn *bn)
{
    (void)be;
    for (int64_t c = 0; c < bn->c; c++) {
        bn->dbeta[c] += (float)bn->local[c];
        bn->dgamma[c] += (float)(bn->rstd[c] * bn->local[bn->c + c]);
    }
    return EN_OK;
}

en_status cpu_bn_backward_finalize(en_backend *be, en_bn *bn)
{
    (void)be;
    const double r = bn->total[2 * bn->c] > 0 ? bn->total[2 * bn->c] : 1;
    for (int64_t c = 0; c < bn->c; c++) {
        const double rstd = bn->rstd[c], ga = bn->gamma[c] * rstd, s2 = rstd * bn->total[bn->c + c];
        const double gb = -ga * rstd * s2 / r;
        bn->ga[c] = (float)ga;
        bn->gb[c] = (float)gb;
        bn->gc[c] = (float)(-ga * bn->total[c] / r - gb * bn->mean[c]);
    }
    return EN_OK;
}

/* ---- the gradient of a raw tensor, formed on load ---------------------------------------------------------------- */

void form_gradient(const en_grad *dy, int64_t row, int64_t rows, int64_t c, float *out)
{
    const en_bn *bn = dy->bn;
    const float *y = (const float *)dy->y + row * c;
    if (dy->stored) {
        const float *dz = (const float *)dy->stored + row * c;
        for (int64_t r = 0; r < rows; r++, y += c, dz += c, out += c) {
            const vf keep = splat(dy->drop ? dy->drop[(row + r) / dy->hw] : 1.f);
            for (int64_t i = 0; i < c; i += VW)
                st(out + i, ld(dz + i) * (ld(bn->ga + i) * keep) + (ld(y + i) * ld(bn->gb + i) + ld(bn->gc + i)));
        }
        return;
    }
    const float inv_hw = 1.f / (float)dy->hw;
    for (int64_t r = 0; r < rows; r++, y += c, out += c) {
        const float *dp = dy->dpooled + (row + r) / dy->hw * c;
        for (int64_t i = 0; i < c; i += VW) {
            const vf v = ld(y + i);
            vf dz = ld(dp + i) * inv_hw;
            if (dy->act != EN_ACT_NONE) {
                vf u;
                dz *= act_slope(v * ld(bn->scale + i) + ld(bn->shift + i), &u, dy->act);
            }
            st(out + i, dz * ld(bn->ga + i) + (v * ld(bn->gb + i) + ld(bn->gc + i)));
        }
    }
}

/* ---- the end of a block ------------------------------------------------------------------------------------------- */

en_status cpu_residual_forward(en_backend *be, int64_t n, int64_t hw, int64_t c, const en_operand *y, const float *drop, const en_operand *x,
                           void *o)
{
    CPU_ALIGNED(c);
    EN_REQUIRE(y->bn && (!x || x->bn || x->act == EN_ACT_NONE), EN_EINVAL, "a block ends in a batch norm; an activation without one is not read");
    FOR_EACH_LANE(be, l) {
        const cpu_range r = lane_range(n * hw, l, be->lanes);
        for (int64_t i = r.first; i < r.last; i++) {
            const float *yr = (const float *)y->y + i * c, *xr = x ? (const float *)x->y + i * c : NULL;
            float *out = (float *)o + i * c;
            const vf keep = splat(drop ? drop[i / hw] : 1.f);
            for (int64_t j = 0; j < c; j += VW) {
                vf v = activate(ld(yr + j), ld(y->bn->scale + j), ld(y->bn->shift + j), y->act) * keep;
                if (x) v += x->bn ? activate(ld(xr + j), ld(x->bn->scale + j), ld(x->bn->shift + j), x->act) : ld(xr + j);
                st(out + j, v);
            }
        }
    }
    return EN_OK;
}

enum { ROWS = 64 };                  /* summed in float, then in double */

/* bn->local = {sum dz, sum dz*(y-mean)};  dz = g*keep, or, where there is a place for it, g*keep*act'(bn(y)), which is stored.  Inlined into
 * either, so that neither pays for the other. */
INLINE void sum_dz(en_backend *be, int64_t n, int64_t hw, int64_t c, const float *g, const float *drop, const float *y, const en_bn *of, en_act act,
                   float *dz, en_bn *bn)
{
    FOR_EACH_LANE(be, l) {
        double *stats = engine(be)->lane[l].stats;
        float *const s0 = row_sums(stats, c), *const s1 = s0 + c;
        memset(stats, 0, (size_t)(2 * c) * sizeof *stats);
        const cpu_range r = lane_range(n * hw, l, be->lanes);
        for (int64_t i0 = r.first; i0 < r.last; i0 += ROWS) {
            memset(s0, 0, (size_t)(2 * c) * sizeof *s0);
            for (int64_t i = i0; i < min64(i0 + ROWS, r.last); i++) {
                const vf keep = splat(drop ? drop[i / hw] : 1.f);
                for (int64_t j = 0; j < c; j += VW) {
                    const vf v = ld(y + i * c + j);
                    vf d = ld(g + i * c + j) * keep, u;
                    if (dz) {
                        d *= act_slope(v * ld(of->scale + j) + ld(of->shift + j), &u, act);
                        st(dz + i * c + j, d);
                    }
                    st(s0 + j, ld(s0 + j) + d);
                    st(s1 + j, ld(s1 + j) + d * (v - ld(bn->mean + j)));
                }
            }
            for (int64_t j = 0; j < 2 * c; j += VW) add_f64(stats + j, ld(s0 + j));
        }
    }
    collect_stats(be, bn);
}

en_status cpu_residual_backward(en_backend *be, int64_t n, int64_t hw, int64_t c, const void *g, const float *drop, const void *y, en_bn *bn)
{
    CPU_ALIGNED(c);
    CPU_FITS(be, stats, 6 * c);
    sum_dz(be, n, hw, c, g, drop, y, NULL, EN_ACT_NONE, NULL, bn);
    return EN_OK;
}

en_status cpu_activation_backward(en_backend *be, int64_t n, int64_t hw, int64_t c, const void *g, const float *drop, const en_operand *y, void *dz,
                                  en_bn *bn)
{
    CPU_ALIGNED(c);
    CPU_FITS(be, stats, 6 * c);
    EN_REQUIRE(y->bn, EN_EINVAL, "an activation without batch norm is not gone back through");
    sum_dz(be, n, hw, c, g, drop, y->y, y->bn, y->act, dz, bn);
    return EN_OK;
}

/* ---- the end of a bottleneck: the activation follows the sum ---------------------------------------------------------- */

en_status cpu_join_forward(en_backend *be, int64_t n, int64_t hw, int64_t c, const en_operand *y, const float *drop, const en_operand *x, en_act out,
                           void *o)
{
    CPU_ALIGNED(c);
    EN_REQUIRE(y->bn, EN_EINVAL, "a bottleneck ends in a batch norm");
    EN_REQUIRE(y->act == EN_ACT_NONE && x->act == EN_ACT_NONE, EN_EINVAL, "the activation of a bottleneck follows the sum");
    EN_REQUIRE(out == EN_ACT_RELU || out == EN_ACT_RELU6, EN_EINVAL, "activation %d after a sum: there are relu and relu6", (int)out);
    const float most = out == EN_ACT_RELU6 ? 6.f : __builtin_inff();
    FOR_EACH_LANE(be, l) {
        const cpu_range r = lane_range(n * hw, l, be->lanes);
        for (int64_t i = r.first; i < r.last; i++) {
            const float *yr = (const float *)y->y + i * c, *xr = (const float *)x->y + i * c;
            float *to = (float *)o + i * c;
            const vf keep = splat(drop ? drop[i / hw] : 1.f);
            for (int64_t j = 0; j < c; j += VW) {
                vf v = ld(xr + j);
                if (x->bn) v = v * ld(x->bn->scale + j) + ld(x->bn->shift + j);
                v += (ld(yr + j) * ld(y->bn->scale + j) + ld(y->bn->shift + j)) * keep;
                st(to + j, clamp(v, 0.f, most));
            }
        }
    }
    return EN_OK;
}

/* A row of join_backward; both: x has a batch norm too. */
INLINE void join_row(int64_t c, const float *g, const float *o, en_act out, vf keep, const float *y, const float *y_mean, bool both, const float *x,
                     const float *x_mean, float *dz, float *sums)
{
    float *const y0 = sums, *const y1 = y0 + c, *const x0 = y1 + c, *const x1 = x0 + c;
    for (int64_t j = 0; j < c; j += VW) {
        const vf d = ld(g + j) * step(ld(o + j), out == EN_ACT_RELU6), kept = d * keep;
        st(dz + j, d);
        st(y0 + j, ld(y0 + j) + kept);
        st(y1 + j, ld(y1 + j) + kept * (ld(y + j) - ld(y_mean + j)));
        if (both) st(x0 + j, ld(x0 + j) + d), st(x1 + j, ld(x1 + j) + d * (ld(x + j) - ld(x_mean + j)));
    }
}
en_status cpu_join_backward(en_backend *be, int64_t n, int64_t hw, int64_t c, const void *g, const void *o, en_act out, const float *drop, const void *y,
                            en_bn *ybn, const void *x, en_bn *xbn, void *dz)
{
    CPU_ALIGNED(c);
    EN_REQUIRE(out == EN_ACT_RELU || out == EN_ACT_RELU6, EN_EINVAL, "activation %d after a sum: there are relu and relu6", (int)out);
    EN_REQUIRE(x || !xbn, EN_EINVAL, "sums of a batch norm without its tensor");
    CPU_FITS(be, stats, 6 * c);
    FOR_EACH_LANE(be, l) {
        double *stats = engine(be)->lane[l].stats;
        const int64_t sums = xbn ? 4 * c : 2 * c;
        float *const row = row_sums(stats, c);
        memset(stats, 0, (size_t)sums * sizeof *stats);
        const cpu_range r = lane_range(n * hw, l, be->lanes);
        for (int64_t i0 = r.first; i0 < r.last; i0 += ROWS) {
            memset(row, 0, (size_t)sums * sizeof *row);
            for (int64_t i = i0; i < min64(i0 + ROWS, r.last); i++) {
                const float *gr = (const float *)g + i * c, *or = (const float *)o + i * c, *yr = (const float *)y + i * c;
                const vf keep = splat(drop ? drop[i / hw] : 1.f);
                if (xbn) join_row(c, gr, or, out, keep, yr, ybn->mean, true, (const float *)x + i * c, xbn->mean, (float *)dz + i * c, row);
                else join_row(c, gr, or, out, keep, yr, ybn->mean, false, NULL, NULL, (float *)dz + i * c, row);
            }
            for (int64_t j = 0; j < sums; j += VW) add_f64(stats + j, ld(row + j));
        }
    }
    collect_stats(be, ybn);
    collect_stats_at(be, xbn, 2 * c);
    return EN_OK;
}
