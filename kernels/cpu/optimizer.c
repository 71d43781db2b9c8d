/* optimizer.c - RMSProp in TensorFlow's form with the moving average of the weights in the same sweep: each of the five
 * arenas is read, and four are written, once a step.  Plain loops; the compiler vectorises them. */
#include "passes.h"

#include <math.h>

/* What a step may change the weights by: a rank that failed, a loss that is not a number, leave them as they are. */
static bool step_counts(const double *tally) { return !(tally[EN_TALLY_FAILED] > 0) && isfinite(tally[EN_TALLY_LOSS]); }

en_status cpu_rmsprop_update(en_backend *be, const en_rmsprop *h, const en_now *now, const en_segment *segments, int64_t n_segments, float *w_,
                             const float *grad_, float *ms_, float *mom_, float *ema_, double *tally)
{
    enum { CHUNK = 4096 };                   /* elements that stay in L1 between the loops below */
    const float lr = now->lr, keep = 1.f - h->rho, momentum = h->momentum, eps = h->eps, step = 1.f - now->ema_decay;
    const bool counts = step_counts(tally);
    FOR_EACH_LANE(be, l) {
        double squares = 0;
        for (int64_t k = 0; k < n_segments; k++) {
            const float decay = segments[k].decay ? h->weight_decay : 0.f;
            const cpu_range chunks = lane_range((segments[k].elems + CHUNK - 1) / CHUNK, l, be->lanes);
            for (int64_t c = chunks.first; c < chunks.last; c++) {
                const int64_t at = segments[k].offset + c * CHUNK, n = min64(CHUNK, segments[k].elems - c * CHUNK);
                float *restrict w = w_ + at, *restrict ms = ms_ + at, *restrict mom = mom_ + at;
                const float *restrict grad = grad_ + at;
                for (int64_t i = 0; i < n && counts; i++) {
                    const float g = grad[i] + decay * w[i];
                    const float m = ms[i] + (g * g - ms[i]) * keep;
                    const float v = momentum * mom[i] + lr * g / sqrtf(m + eps);
                    ms[i] = m;
                    mom[i] = v;
                    w[i] -= v;
                }
                vd q = { 0 };                /* a scalar sum would not be vectorised: its order is its meaning */
                int64_t j = 0;
                for (; j + VW <= n; j += VW) {
                    const vd g = __builtin_convertvector(ld(grad + j), vd);
                    q += g * g;
                }
                for (; j < n; j++) squares += (double)grad[j] * grad[j];
                for (int i = 0; i < VW; i++) squares += q[i];
                if (ema_ && counts) {
                    float *restrict ema = ema_ + at;
                    for (int64_t i = 0; i < n; i++) ema[i] -= step * (ema[i] - w[i]);
                }
            }
        }
        engine(be)->lane[l].stats[0] = squares;
    }
    double sum = 0;
    for (int l = 0; l < be->lanes; l++) sum += engine(be)->lane[l].stats[0];
    tally[EN_TALLY_GRAD_SQUARE] = sum;
    return EN_OK;
}

en_status cpu_ema_update(en_backend *be, const en_now *now, int64_t elems, const float *x, float *shadow, const double *tally)
{
    (void)be;
    const float step = 1.f - now->ema_decay;
    if (!step_counts(tally)) return EN_OK;
    for (int64_t i = 0; i < elems; i++) shadow[i] -= step * (shadow[i] - x[i]);
    return EN_OK;
}
