/* head.c - pooling, the classifier and the loss: small tensors, plain loops.  Each image, column or weight row is computed
 * whole by one thread in a fixed order, so nothing here depends on lanes or threads. */
#include "gemm.h"
#include "passes.h"

#include <math.h>

en_status cpu_pool_forward(en_backend *be, int64_t n, int64_t hw, int64_t c, const en_operand *x, const float *mask, float *pooled)
{
    CPU_ALIGNED(c);
#pragma omp parallel for num_threads(be->threads) schedule(static) if (be->threads > 1)
    for (int64_t m = 0; m < n; m++)
        for (int64_t i = 0; i < c; i += VW) {
            vf s = { 0 };
            for (int64_t r = 0; r < hw; r++) {
                const vf v = ld((const float *)x->y + (m * hw + r) * c + i);
                s += x->bn ? activate(v, ld(x->bn->scale + i), ld(x->bn->shift + i), x->act) : v;
            }
            s *= 1.f / (float)hw;
            if (mask) s *= ld(mask + m * c + i);
            st(pooled + m * c + i, s);
        }
    return EN_OK;
}

en_status cpu_pool_backward(en_backend *be, int64_t n, int64_t hw, int64_t c, float *dpooled, const float *mask, const en_operand *x, en_bn *bn)
{
    CPU_ALIGNED(c);
    CPU_FITS(be, stats, 2 * c);
    const float inv_hw = 1.f / (float)hw;
    FOR_EACH_LANE(be, l) {
        double *stats = engine(be)->lane[l].stats;
        memset(stats, 0, (size_t)(2 * c) * sizeof *stats);
        const cpu_range range = lane_range(n, l, be->lanes);
        for (int64_t m = range.first; m < range.last; m++)
            for (int64_t i = 0; i < c; i += VW) {
                vf d = ld(dpooled + m * c + i);
                if (mask) st(dpooled + m * c + i, d *= ld(mask + m * c + i));
                const vf a = ld(bn->scale + i), b = ld(bn->shift + i), mean = ld(bn->mean + i);
                vf s0 = { 0 }, s1 = { 0 };
                for (int64_t r = 0; r < hw; r++) {
                    const vf v = ld((const float *)x->y + (m * hw + r) * c + i);
                    vf dz = d * inv_hw, u;
                    if (x->act != EN_ACT_NONE) dz *= act_slope(v * a + b, &u, x->act);
                    s0 += dz;
                    s1 += dz * (v - mean);
                }
                add_f64(stats + i, s0);
                add_f64(stats + c + i, s1);
            }
    }
    collect_stats(be, bn);
    return EN_OK;
}

en_status cpu_mean_backward(en_backend *be, int64_t n, int64_t hw, int64_t c, const float *dpooled, const float *mask, void *dx)
{
    CPU_ALIGNED(c);
    const float inv_hw = 1.f / (float)hw;
    FOR_EACH_LANE(be, l) {
        const cpu_range r = lane_range(n * hw, l, be->lanes);
        for (int64_t row = r.first; row < r.last; row++) {
            const int64_t m = row / hw * c;
            for (int64_t i = 0; i < c; i += VW) {
                const vf d = ld(dpooled + m + i) * inv_hw;
                st((float *)dx + row * c + i, mask ? d * ld(mask + m + i) : d);
            }
        }
    }
    return EN_OK;
}

en_status cpu_dense_forward(en_backend *be, int64_t n, int64_t ci, int64_t k, const float *x, const float *wt, const float *bias, float *logits)
{
    CPU_ALIGNED(ci);
    CPU_ALIGNED(k);
    enum { IMAGES = 8 };
#pragma omp parallel for num_threads(be->threads) schedule(static) if (be->threads > 1)
    for (int64_t j = 0; j < k; j += VW)
        for (int64_t m = 0; m < n; m += IMAGES) {
            const int64_t some = min64(IMAGES, n - m);
            vf acc[IMAGES];
            for (int64_t q = 0; q < some; q++) acc[q] = ld(bias + j);
            for (int64_t i = 0; i < ci; i++) {
                const vf w = ld(wt + i * k + j);
                for (int64_t q = 0; q < some; q++) acc[q] += x[(m + q) * ci + i] * w;
            }
            for (int64_t q = 0; q < some; q++) st(logits + (m + q) * k + j, acc[q]);
        }
    return EN_OK;
}

en_status cpu_dense_backward(en_backend *be, int64_t n, int64_t ci, int64_t k, const float *x, const float *wt, const float *dlogits, float *dx,
                         float *dwt, float *dbias)
{
    CPU_ALIGNED(ci);
    CPU_ALIGNED(k);
#pragma omp parallel for num_threads(be->threads) schedule(static) if (be->threads > 1)
    for (int64_t i = 0; i < ci; i++) {                       /* one row of weights: read once, its gradient written once */
        for (int64_t m = 0; m < n; m++) {
            vf s = { 0 };
            const float xi = x[m * ci + i];
            for (int64_t j = 0; j < k; j += VW) {
                const vf d = ld(dlogits + m * k + j);
                s += d * ld(wt + i * k + j);
                st(dwt + i * k + j, ld(dwt + i * k + j) + xi * d);
            }
            dx[m * ci + i] = hsum(s);
        }
    }
    for (int64_t m = 0; m < n; m++)
        for (int64_t j = 0; j < k; j += VW) st(dbias + j, ld(dbias + j) + ld(dlogits + m * k + j));
    return EN_OK;
}

/* Larger logits than the label's, ties going to the lower index.  A NaN anywhere: the label is nowhere, also among few classes. */
static int64_t place_of(const float *row, int64_t classes, int32_t label)
{
    int64_t larger = 0;
    for (int64_t j = 0; j < classes; j++) {
        if (isnan(row[j])) return INT64_MAX;
        larger += row[j] > row[label] || (row[j] == row[label] && j < label);
    }
    return larger;
}

/* Two labels and what each counts; share + rest is 1 in double, whatever the share.  !known: they are no target. */
typedef struct { int32_t label, mate, heavier; double share, rest; bool known; } mixed;

static mixed mixed_at(const en_targets *targets, int64_t m, int64_t classes)
{
    mixed t = { .label = targets->labels[m], .share = 1 };
    t.mate = targets->mates ? targets->mates[m] : t.label;
    if (targets->shares) t.share = (double)targets->shares[m];
    t.rest = 1 - t.share;
    t.heavier = t.share >= 0.5 ? t.label : t.mate;
    t.known = t.share >= 0 && t.share <= 1 && (t.share <= 0 || (t.label >= 0 && t.label < classes)) && (t.rest <= 0 || (t.mate >= 0 && t.mate < classes));
    return t;
}

static double weight_of(const mixed *t, int64_t j) { return (j == t->label ? t->share : 0) + (j == t->mate ? t->rest : 0); }

en_status cpu_softmax_loss(en_backend *be, int64_t n, int64_t k, int64_t classes, const float *logits, const en_targets *targets, float smoothing,
                       float grad_scale, float *dlogits, double *tally)
{
    (void)be;
    EN_REQUIRE(classes > 0 && classes <= k, EN_EINVAL, "%lld classes in %lld columns", (long long)classes, (long long)k);
    EN_REQUIRE(!targets->mates == !targets->shares, EN_EINVAL, "%s", targets->mates ? "mates without shares" : "shares without mates");
    const double spread = (double)smoothing / (double)classes, certain = 1 - (double)smoothing;
    for (int64_t m = 0; m < n; m++) {
        const float *row = logits + m * k;
        const mixed t = mixed_at(targets, m, classes);
        double top = row[0], total = 0, loss = t.known ? 0 : NAN;
        for (int64_t j = 1; j < classes; j++)
            if (row[j] > top) top = row[j];
        for (int64_t j = 0; j < classes; j++) total += exp(row[j] - top);
        const double log_total = top + log(total);
        for (int64_t j = 0; j < classes; j++) {
            const double target = spread + certain * weight_of(&t, j), log_p = row[j] - log_total;
            loss -= target * log_p;
            if (dlogits) dlogits[m * k + j] = (float)((exp(log_p) - target) * grad_scale);
        }
        if (dlogits) memset(dlogits + m * k + classes, 0, (size_t)(k - classes) * sizeof *dlogits);
        const int64_t place = t.known ? place_of(row, classes, t.heavier) : INT64_MAX;
        tally[EN_TALLY_LOSS] += loss;
        tally[EN_TALLY_TOP1] += place < 1;
        tally[EN_TALLY_TOP5] += place < 5;
        tally[EN_TALLY_IMAGES] += 1;
    }
    return EN_OK;
}
