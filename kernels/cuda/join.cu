/* join.cu - the end of a bottleneck (arXiv:1512.03385), whose activation follows the sum of the two branches, and its way back.  The slope
 * is read off o: neither sum is formed again, and backward reads y and x for the sums of their batch norms alone. */
#include "passes.h"
#include "sweep.h"

struct join { const void *y, *x; void *o; const float *scale, *shift, *drop, *x_scale, *x_shift; en_act out; int64_t hw; };

/* sweep (1, rows, c): o = out(bn(y)*keep[image] + (BN ? bn(x) : x)).  Bytes: y, x, o once.  Two rows are fetched together, 64 bytes in
 * flight a thread.  `o` may be x or y: a thread has read what it overwrites. */
template <typename T, bool BN> static __global__ void __launch_bounds__(SWEEP_BLOCK, sizeof(T) == 2 && !BN ? 3 : 2) join_branches(sweep s, join e)
{
    enum { BATCH = 2 };
    const sweep_place p = place_in(s);
    const T *const y = (const T *)e.y, *const x = (const T *)e.x;
    float a[8], b[8], xa[8], xb[8];
    load8(e.scale + p.channel, a), load8(e.shift + p.channel, b);
    if (BN) load8(e.x_scale + p.channel, xa), load8(e.x_shift + p.channel, xb);
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
                raw_y[k] = fetch8(y + i), raw_x[k] = fetch8(x + i);
                if (e.drop) keep[k] = e.drop[at.image], walk_on(&at, s.stride, e.hw);
            }
        }
#pragma unroll
        for (int k = 0; k < BATCH; k++)
            if (r + k * s.stride < p.end) {
                float v[8], u[8];
                open8(raw_y[k], v), open8(raw_x[k], u);
#pragma unroll
                for (int i = 0; i < 8; i++) v[i] = rectified(e.out, fmaf(fmaf(v[i], a[i], b[i]), keep[k], BN ? fmaf(u[i], xa[i], xb[i]) : u[i]));
                store8((T *)e.o + at_row(s, p, r + k * s.stride), v);
            }
    }
}

struct join_back { const void *g, *o, *y, *x; void *dz; const float *drop, *mean, *x_mean; en_act out; int64_t hw; };

/* sweep (1, rows, c): dz = g*out'(o), stored; of_y[part] = { sum dz*keep, sum dz*keep*(y - mean) }, and where BOTH of_x[part] =
 * { sum dz, sum dz*(x - mean) }.  Bytes: g, o, y, (x) once, dz once.  dz may be g. */
template <typename T, bool BOTH> static __global__ void __launch_bounds__(SWEEP_BLOCK, 2) part_branches(sweep s, join_back e, double *of_y, double *of_x)
{
    constexpr int BATCH = BOTH && sizeof(T) == 4 ? 1 : 2, SUMS = BOTH ? 4 : 2;
    __shared__ __align__(16) float held[SWEEP_SHARED(SUMS)];
    const sweep_place p = place_in(s);
    float about[8], x_about[8], sums[SUMS][8];
    load8(e.mean + p.channel, about);
    if (BOTH) load8(e.x_mean + p.channel, x_about);
#pragma unroll
    for (int k = 0; k < SUMS; k++) fill8(sums[k], 0.f);
    image_walk at = { 0, 0 };
    if (e.drop) at = walk_from(p.first, e.hw);
    for (int64_t r = p.first; r < p.end; r += BATCH * s.stride) {
        raw8<T> raw_g[BATCH] = {}, raw_o[BATCH] = {}, raw_y[BATCH] = {}, raw_x[BATCH] = {};
        float keep[BATCH] = {};
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            keep[k] = 1.f;
            if (r + k * s.stride < p.end) {
                const int64_t i = at_row(s, p, r + k * s.stride);
                raw_g[k] = fetch8((const T *)e.g + i), raw_o[k] = fetch8((const T *)e.o + i), raw_y[k] = fetch8((const T *)e.y + i);
                if (BOTH) raw_x[k] = fetch8((const T *)e.x + i);
                if (e.drop) keep[k] = e.drop[at.image], walk_on(&at, s.stride, e.hw);
            }
        }
#pragma unroll
        for (int k = 0; k < BATCH; k++)
            if (r + k * s.stride < p.end) {
                float dz[8], v[8];
                open8(raw_g[k], dz), open8(raw_o[k], v);
#pragma unroll
                for (int i = 0; i < 8; i++) dz[i] *= rectified_slope(e.out, v[i]);
                store8((T *)e.dz + at_row(s, p, r + k * s.stride), dz);
                open8(raw_y[k], v);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const float kept = dz[i] * keep[k];
                    sums[0][i] += kept;
                    sums[1][i] = fmaf(kept, v[i] - about[i], sums[1][i]);
                }
                if (BOTH) {
                    open8(raw_x[k], v);
#pragma unroll
                    for (int i = 0; i < 8; i++) {
                        sums[SUMS - 2][i] += dz[i];
                        sums[SUMS - 1][i] = fmaf(dz[i], v[i] - x_about[i], sums[SUMS - 1][i]);
                    }
                }
            }
    }
    const int64_t part = p.part * 2 * s.c;
    block_sums<SUMS>(s, sums, held, [&](int k, int64_t channel, double sum) {
        double *const of = k < 2 ? of_y : of_x;
        of[part + k % 2 * s.c + channel] = sum;
    });
}

static en_status check(int64_t c, en_act out)
{
    CU_CHANNELS(c);
    EN_REQUIRE(out == EN_ACT_RELU || out == EN_ACT_RELU6, EN_EINVAL, "activation %d after a sum: there are relu and relu6", (int)out);
    return EN_OK;
}

en_status cuda_join_forward(en_backend *be, int64_t n, int64_t hw, int64_t c, const en_operand *y, const float *drop, const en_operand *x, en_act out, void *o)
{
    EN_TRY(check(c, out), "end of a bottleneck");
    EN_REQUIRE(y->bn, EN_EINVAL, "a bottleneck ends in a batch norm");
    EN_REQUIRE(y->act == EN_ACT_NONE && x->act == EN_ACT_NONE, EN_EINVAL, "the activation of a bottleneck follows the sum");
    if (n * hw == 0) return EN_OK;
    const sweep s = sweep_to_write(engine(be), 1, n * hw, c);
    const cudaStream_t stream = engine(be)->compute;
    const join e = { y->y, x->y, o, y->bn->scale, y->bn->shift, drop, x->bn ? x->bn->scale : NULL, x->bn ? x->bn->shift : NULL, out, hw };
    if (x->bn) BY_TYPE(be, T, (join_branches<T, true><<<sweep_grid(s), SWEEP_BLOCK, 0, stream>>>(s, e)));
    else BY_TYPE(be, T, (join_branches<T, false><<<sweep_grid(s), SWEEP_BLOCK, 0, stream>>>(s, e)));
    CU_LAUNCHED("end of a bottleneck, %lld images of %lld rows, %lld channels", (long long)n, (long long)hw, (long long)c);
    return EN_OK;
}

en_status cuda_join_backward(en_backend *be, int64_t n, int64_t hw, int64_t c, const void *g, const void *o, en_act out, const float *drop, const void *y,
                             en_bn *ybn, const void *x, en_bn *xbn, void *dz)
{
    EN_TRY(check(c, out), "back through the end of a bottleneck");
    EN_REQUIRE(x || !xbn, EN_EINVAL, "sums of a batch norm without its tensor");
    const int64_t rows = n * hw;
    const sweep s = sweep_to_sum(engine(be), 1, rows, c);
    const int64_t parts = rows > 0 ? sweep_parts(s) : 0;
    scratch_carver scratch = carver_of(be);
    double *of_y = scratch.take<double>(parts * 2 * c), *of_x = xbn ? scratch.take<double>(parts * 2 * c) : NULL;
    SCRATCH_FITS(be, scratch);
    const cudaStream_t stream = engine(be)->compute;
    const join_back e = { g, o, y, x, dz, drop, ybn->mean, xbn ? xbn->mean : NULL, out, hw };
    if (rows > 0) {
        if (xbn) BY_TYPE(be, T, (part_branches<T, true><<<sweep_grid(s), SWEEP_BLOCK, 0, stream>>>(s, e, of_y, of_x)));
        else BY_TYPE(be, T, (part_branches<T, false><<<sweep_grid(s), SWEEP_BLOCK, 0, stream>>>(s, e, of_y, of_x)));
        CU_LAUNCHED("back through the end of a bottleneck, %lld images of %lld rows, %lld channels", (long long)n, (long long)hw, (long long)c);
    }
    EN_TRY(collect(be, of_y, parts, 2 * c, ybn->local), "sums of the branch");
    if (xbn) EN_TRY(collect(be, of_x, parts, 2 * c, xbn->local), "sums of the shortcut");
    return EN_OK;
}
