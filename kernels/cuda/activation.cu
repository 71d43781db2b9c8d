/* activation.cu - back through an activation that ends a block: what its batch norm and its convolution read is stored. */
#include "passes.h"
#include "sweep.h"

enum { BATCH = 2 };             /* rows fetched together: 64 bytes in flight a thread */

struct way_back { const void *g, *y; void *dz; const float *drop, *scale, *shift, *mean; en_act act; int64_t hw; };

/* sweep (1, rows, c): dz = g*keep[image]*act'(bn(y)); partials[part] = { sum dz, sum dz*(y - mean) }, of dz as stored.  Bytes: g and y
 * read once, dz written once.  dz may be g: a thread has read what it overwrites. */
template <typename T> static __global__ void __launch_bounds__(SWEEP_BLOCK, 2) through_activation(sweep s, way_back e, double *partials)
{
    __shared__ __align__(16) float held[SWEEP_SHARED(2)];
    const sweep_place p = place_in(s);
    float a[8], b[8], about[8], sums[2][8];
    load8(e.scale + p.channel, a), load8(e.shift + p.channel, b), load8(e.mean + p.channel, about);
    fill8(sums[0], 0.f), fill8(sums[1], 0.f);
    image_walk at = { 0, 0 };
    if (e.drop) at = walk_from(p.first, e.hw);
    for (int64_t r = p.first; r < p.end; r += BATCH * s.stride) {
        raw8<T> raw_g[BATCH], raw_y[BATCH];
        float keep[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            keep[k] = 1.f;
            if (r + k * s.stride < p.end) {
                const int64_t i = at_row(s, p, r + k * s.stride);
                raw_g[k] = fetch8((const T *)e.g + i), raw_y[k] = fetch8((const T *)e.y + i);
                if (e.drop) keep[k] = e.drop[at.image], walk_on(&at, s.stride, e.hw);
            }
        }
#pragma unroll
        for (int k = 0; k < BATCH; k++)
            if (r + k * s.stride < p.end) {
                float dz[8], v[8];
                open8(raw_g[k], dz), open8(raw_y[k], v);
#pragma unroll
                for (int i = 0; i < 8; i++) dz[i] *= keep[k] * act_slope<T>(e.act, fmaf(v[i], a[i], b[i]));
                store8((T *)e.dz + at_row(s, p, r + k * s.stride), dz);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    sums[0][i] += dz[i];
                    sums[1][i] = fmaf(dz[i], v[i] - about[i], sums[1][i]);
                }
            }
    }
    double *const out = partials + p.part * 2 * s.c;
    block_sums<2>(s, sums, held, [&](int k, int64_t channel, double sum) { out[k * s.c + channel] = sum; });
}

en_status cuda_activation_backward(en_backend *be, int64_t n, int64_t hw, int64_t c, const void *g, const float *drop, const en_operand *y, void *dz,
                                   en_bn *bn)
{
    CU_CHANNELS(c);
    EN_REQUIRE(y->bn, EN_EINVAL, "an activation without batch norm is not gone back through");
    if (n * hw == 0) return collect(be, NULL, 0, 2 * c, bn->local);
    const sweep s = sweep_to_sum(engine(be), 1, n * hw, c);
    scratch_carver scratch = carver_of(be);
    double *partials = scratch.take<double>(sweep_parts(s) * 2 * c);
    SCRATCH_FITS(be, scratch);
    const way_back e = { g, y->y, dz, drop, y->bn->scale, y->bn->shift, bn->mean, y->act, hw };
    BY_TYPE(be, T, (through_activation<T><<<sweep_grid(s), SWEEP_BLOCK, 0, engine(be)->compute>>>(s, e, partials)));
    CU_LAUNCHED("back through an activation, %lld images of %lld rows, %lld channels", (long long)n, (long long)hw, (long long)c);
    return collect(be, partials, sweep_parts(s), 2 * c, bn->local);
}
