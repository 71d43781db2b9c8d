/* squeeze.h - the two small layers of squeeze-and-excitation (arXiv:1709.01507) between the sweeps of project.cu. */
#ifndef EN_CUDA_SQUEEZE_H
#define EN_CUDA_SQUEEZE_H

#include "cuda.h"

enum { SQUEEZE_IMAGES = 8, SQUEEZE_HIDDEN = 8 };       /* what a block takes of either */

/* What the backward sweep leaves of an image and channel.  With f' = act'(bn(y)), ds the gradient of u*gate:
 *     Q_DGATE sum ds*u    Q_DS_SLOPE sum ds*f'    Q_SLOPE sum f'    Q_DS_SLOPE_Y sum ds*f'*(y-mean)    Q_SLOPE_Y sum f'*(y-mean) */
enum { Q_DGATE, Q_DS_SLOPE, Q_SLOPE, Q_DS_SLOPE_Y, Q_SLOPE_Y, FIVE_SUMS };

/* What backward works in: dpre, dp (n, c); dhid, acted (n, q up to a multiple of 8) */
struct squeeze_scratch { float *dpre, *dp, *dhid, *acted; };
static inline int64_t squeeze_groups(int64_t n) { return ceil_div(n, SQUEEZE_IMAGES); }
static inline squeeze_scratch take_squeeze(scratch_carver *k, int64_t n, int64_t c, int64_t q)
{
    const int64_t hidden = n * ceil_div(q, SQUEEZE_HIDDEN) * SQUEEZE_HIDDEN;
    return { k->take<float>(n * c), k->take<float>(n * c), k->take<float>(hidden), k->take<float>(hidden) };
}

/* sums (n, c) = sum_hw u   ->   se->pooled, hidden, gate */
en_status squeeze_forward(en_backend *be, const en_se *se, int64_t n, int64_t hw, int64_t c, const float *sums);
/* sums (n, kinds, c), the first kind sum_hw ds*u   ->   dp (n, c) = gradient of the mean / hw;  se's gradients +=.
 * norm (NULL: not wanted; kinds is FIVE_SUMS then) (squeeze_groups(n), 2c): over a group's images, with g the gate,
 *     sum dz = g*q1 + dp*q2      sum dz*(y-mean) = g*q3 + dp*q4       se NULL: g = 1, dp = 0, and nothing else is done */
en_status squeeze_backward(en_backend *be, const en_se *se, int64_t n, int64_t hw, int64_t c, const float *sums, int64_t kinds,
                           const squeeze_scratch *scratch, float *dp, double *norm);

#endif
