/* residual.cu - the end of a block: batch norm, stochastic depth (arXiv:1603.09382), the skip; and its way back, which only
 * sums: the gradient of the sum is the gradient of each summand, and whoever reads it scales it on load (en_grad.drop).  Where the branch
 * ends in an activation, what comes back through it is stored. */
#include "passes.h"
#include "sweep.h"

enum { BATCH = 2 };             /* rows fetched together: 64 bytes in flight a thread */
enum skip_kind { NO_SKIP, SKIP, SKIP_BN };

struct block_end { const void *y, *x; void *o; const float *scale, *shift, *drop, *x_scale, *x_shift; en_act x_act, y_act; int64_t hw; };

/* sweep (1, rows, c): o = act(bn(y))*keep[image] + (skip ? act(bn(x)) : 0).  Bytes: y, x, o once.  `o` may be x or y: a thread has
 * read what it overwrites. */
template <typename T, skip_kind KIND>
static __global__ void __launch_bounds__(SWEEP_BLOCK, sizeof(T) == 2 && KIND != SKIP_BN ? 3 : 2) end_block(sweep s, block_end e)
{
    const sweep_place p = place_in(s);
    const T *const y = (const T *)e.y, *const x = (const T *)e.x;
    float a[8], b[8], xa[8], xb[8];
    load8(e.scale + p.channel, a), load8(e.shift + p.channel, b);
    if (KIND == SKIP_BN) load8(e.x_scale + p.channel, xa), load8(e.x_shift + p.channel, xb);
    image_walk at = { 0, 0 };
    if (e.drop) at = walk_from(p.first, e.hw);
    for (int64_t r = p.first; r < p.end; r += BATCH * s.stride) {
        raw8<T> raw_y[BATCH], raw_x[BATCH];
        float keep[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            keep[k] = 1.f;
            if (r + k * s.stride < p.end) {
                const int64_t i = at_row(s, p, r + k * s.stride);
                raw_y[k] = fetch8(y + i);
                if (KIND != NO_SKIP) raw_x[k] = fetch8(x + i);
                if (e.drop) keep[k] = e.drop[at.image], walk_on(&at, s.stride, e.hw);
            }
        }
#pragma unroll
        for (int k = 0; k < BATCH; k++)
            if (r + k * s.stride < p.end) {
                float v[8], u[8];
                open8(raw_y[k], v);
                if (KIND != NO_SKIP) open8(raw_x[k], u);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    v[i] = act_value<T>(e.y_act, fmaf(v[i], a[i], b[i])) * keep[k];
                    if (KIND == SKIP) v[i] += u[i];
                    if (KIND == SKIP_BN) v[i] += act_value<T>(e.x_act, fmaf(u[i], xa[i], xb[i]));
                }
                store8((T *)e.o + at_row(s, p, r + k * s.stride), v);
            }
    }
}

en_status cuda_residual_forward(en_backend *be, int64_t n, int64_t hw, int64_t c, const en_operand *y, const float *drop, const en_operand *x, void *o)
{
    CU_CHANNELS(c);
    EN_REQUIRE(y->bn && (!x || x->bn || x->act == EN_ACT_NONE), EN_EINVAL, "a block ends in a batch norm; an activation without one is not read");
    if (n * hw == 0) return EN_OK;
    const sweep s = sweep_to_write(engine(be), 1, n * hw, c);
    const unsigned grid = sweep_grid(s);
    const cudaStream_t stream = engine(be)->compute;
    const en_bn *x_bn = x ? x->bn : NULL;
    const block_end e = { y->y, x ? x->y : NULL, o, y->bn->scale, y->bn->shift, drop, x_bn ? x_bn->scale : NULL, x_bn ? x_bn->shift : NULL,
                          x ? x->act : EN_ACT_NONE, y->act, hw };
    if (!x) BY_TYPE(be, T, (end_block<T, NO_SKIP><<<grid, SWEEP_BLOCK, 0, stream>>>(s, e)));
    else if (!x_bn) BY_TYPE(be, T, (end_block<T, SKIP><<<grid, SWEEP_BLOCK, 0, stream>>>(s, e)));
    else BY_TYPE(be, T, (end_block<T, SKIP_BN><<<grid, SWEEP_BLOCK, 0, stream>>>(s, e)));
    CU_LAUNCHED("end of a block, %lld images of %lld rows, %lld channels", (long long)n, (long long)hw, (long long)c);
    return EN_OK;
}

struct way_back { const void *g, *y; void *dz; const float *drop, *scale, *shift, *mean; en_act act; int64_t hw; };

/* sweep (1, rows, c): partials[part] = { sum dz, sum dz*(y - mean) } with dz = g*keep[image]; THROUGH: dz = g*keep[image]*act'(bn(y)), stored,
 * and the sums are of what was stored.  Bytes: g and y read once; THROUGH: dz written once.  dz may be g: a thread has read what it
 * overwrites. */
template <typename T, bool THROUGH> static __global__ void __launch_bounds__(SWEEP_BLOCK, sizeof(T) == 2 && !THROUGH ? 3 : 2)
    sum_dz(sweep s, way_back e, double *partials)
{
    __shared__ __align__(16) float held[SWEEP_SHARED(2)];
    const sweep_place p = place_in(s);
    float a[8], b[8], about[8], sums[2][8];
    load8(e.mean + p.channel, about);
    if (THROUGH) load8(e.scale + p.channel, a), load8(e.shift + p.channel, b);
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
                for (int i = 0; i < 8; i++) dz[i] *= THROUGH ? keep[k] * act_slope<T>(e.act, fmaf(v[i], a[i], b[i])) : keep[k];
                if (THROUGH) store8((T *)e.dz + at_row(s, p, r + k * s.stride), dz);
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

template <bool THROUGH> static en_status queue_sums(en_backend *be, int64_t n, int64_t hw, int64_t c, const way_back &e, en_bn *bn)
{
    CU_CHANNELS(c);
    if (n * hw == 0) return collect(be, NULL, 0, 2 * c, bn->local);
    const sweep s = sweep_to_sum(engine(be), 1, n * hw, c);
    scratch_carver scratch = carver_of(be);
    double *partials = scratch.take<double>(sweep_parts(s) * 2 * c);
    SCRATCH_FITS(be, scratch);
    BY_TYPE(be, T, (sum_dz<T, THROUGH><<<sweep_grid(s), SWEEP_BLOCK, 0, engine(be)->compute>>>(s, e, partials)));
    CU_LAUNCHED("sums of a gradient, %lld images of %lld rows, %lld channels", (long long)n, (long long)hw, (long long)c);
    return collect(be, partials, sweep_parts(s), 2 * c, bn->local);
}

en_status cuda_residual_backward(en_backend *be, int64_t n, int64_t hw, int64_t c, const void *g, const float *drop, const void *y, en_bn *bn)
{
    return queue_sums<false>(be, n, hw, c, { g, y, NULL, drop, NULL, NULL, bn->mean, EN_ACT_NONE, hw }, bn);
}

en_status cuda_activation_backward(en_backend *be, int64_t n, int64_t hw, int64_t c, const void *g, const float *drop, const en_operand *y, void *dz,
                                   en_bn *bn)
{
    EN_REQUIRE(y->bn, EN_EINVAL, "an activation without batch norm is not gone back through");
    return queue_sums<true>(be, n, hw, c, { g, y->y, dz, drop, y->bn->scale, y->bn->shift, bn->mean, y->act, hw }, bn);
}
