/* project.c - squeeze-and-excitation and the projection of an MBConv block, in one pass over the depthwise output.
 *
 * A lane takes a few whole images at a time (so that 7x7 layers still make full GEMM blocks).  Forward: the first sweep
 * over y2 pools u = silu(bn(y2)); the two small layers give the gate; the second sweep, which finds an image of B0 still in
 * L2, forms u*gate a block of rows at a time and multiplies.  u itself never goes to memory: computing silu twice costs
 * less than storing it once where an image does not fit a cache (one 600 px image of B7 is 26 MB here).
 *
 * Backward: the first sweep forms dy, multiplies it back to ds = dy*wt^T (parked where dz will stand), and from the same
 * block accumulates dwt and dgate = sum_hw ds*u.  Back through the gate,
 *     dpre = dgate*gate*(1-gate)     dhid = silu'(hidden) * (we dpre)     dp = wr^T dhid     (sums over c, c, q)
 * and the second sweep turns ds into dz = (ds*gate + dp/hw)*act' and leaves the sums of its batch norm.  The small layers'
 * weight gradients follow from dpre and dhid of all images afterwards, parallel over the squeezed channels. */
#include "gemm.h"
#include "passes.h"

#include <math.h>

/* images that a lane takes at once: at least two GEMM blocks of rows */
static int64_t group_of(int64_t hw) { return max64(1, (2 * BLOCK_ROWS + hw - 1) / hw); }

static float sigmoid1(float z) { return 1.f / (1.f + expf(-z)); }

static en_status check(en_backend *be, int64_t ci, int64_t co, const en_operand *x)
{
    CPU_ALIGNED(ci);
    CPU_ALIGNED(co);
    EN_REQUIRE(x->bn, EN_EINVAL, "the input of a projection is a raw tensor with its batch norm");
    CPU_FITS(be, packed, ci * co);
    CPU_FITS(be, block, BLOCK_ROWS * max64(ci, co));
    CPU_FITS(be, stats, 2 * max64(ci, co));
    return EN_OK;
}

/* pooled[c] = mean over hw rows of act(bn(y)) */
static void pool_image(const float *y, int64_t hw, int64_t c, const en_operand *x, float *pooled)
{
    const float inv = 1.f / (float)hw;
    memset(pooled, 0, (size_t)c * sizeof *pooled);
    for (int64_t r0 = 0; r0 < hw; r0 += 16)                  /* 16 rows in a register, then memory: pairwise in spirit */
        for (int64_t i = 0; i < c; i += VW) {
            const vf a = ld(x->bn->scale + i), b = ld(x->bn->shift + i);
            vf s = { 0 };
            for (int64_t r = r0; r < min64(r0 + 16, hw); r++) s += activate(ld(y + r * c + i), a, b, x->act);
            st(pooled + i, ld(pooled + i) + s);
        }
    for (int64_t i = 0; i < c; i += VW) st(pooled + i, ld(pooled + i) * inv);
}

/* pooled (c) -> hidden (q), gate (c) of one image */
static void excite(const en_se *se, int64_t c, const float *pooled, float *hidden, float *gate)
{
    memcpy(gate, se->be, (size_t)c * sizeof *gate);
    for (int64_t j = 0; j < se->q; j++) {
        vf s = { 0 };
        for (int64_t i = 0; i < c; i += VW) s += ld(pooled + i) * ld(se->wr + j * c + i);
        hidden[j] = hsum(s) + se->br[j];
        const float h = hidden[j] * sigmoid1(hidden[j]);
        for (int64_t i = 0; i < c; i += VW) st(gate + i, ld(gate + i) + h * ld(se->we + j * c + i));
    }
    for (int64_t i = 0; i < c; i += VW) st(gate + i, sigmoid(ld(gate + i)));
}

en_status cpu_se_project_forward(en_backend *be, int64_t n, int64_t hw, int64_t ci, int64_t co, const en_operand *x, const en_se *se,
                             const float *wt, void *y, en_bn *bn)
{
    EN_TRY(check(be, ci, co, x), "projection forward");
    cpu_engine *e = engine(be);
    if (n > 0) ISA(pack)(be, ci, co, wt, false, e->packed);
    FOR_EACH_LANE(be, l) {
        struct cpu_lane *me = &e->lane[l];
        memset(me->stats, 0, (size_t)(2 * co) * sizeof(double));
        const gemm_epilogue sums = { .shift = bn ? bn->running_mean : NULL, .stats = bn ? me->stats : NULL,
                                     .stream = outlives_caches(y, n * hw * co) };
        const cpu_range range = lane_range(n, l, be->lanes);
        for (int64_t n0 = range.first, images; n0 < range.last; n0 += images) {
            images = min64(group_of(hw), range.last - n0);
            if (se)
                for (int64_t m = n0; m < n0 + images; m++) {
                    pool_image((const float *)x->y + m * hw * ci, hw, ci, x, se->pooled + m * ci);
                    excite(se, ci, se->pooled + m * ci, se->hidden + m * se->q, se->gate + m * ci);
                }
            for (int64_t r0 = n0 * hw, rows; r0 < (n0 + images) * hw; r0 += rows) {
                rows = min64(BLOCK_ROWS, (n0 + images) * hw - r0);
                for (int64_t r = r0; r < r0 + rows; r++) {
                    const float *src = (const float *)x->y + r * ci, *gate = se ? se->gate + r / hw * ci : NULL;
                    float *u = me->block_a + (r - r0) * ci;
                    for (int64_t i = 0; i < ci; i += VW) {
                        vf v = activate(ld(src + i), ld(x->bn->scale + i), ld(x->bn->shift + i), x->act);
                        if (gate) v *= ld(gate + i);
                        st(u + i, v);
                    }
                }
                ISA(gemm_block)(rows, co, ci, me->block_a, ci, e->packed, (float *)y + r0 * co, co, &sums);
            }
        }
    }
    collect_stats(be, bn);
    if (bn) bn->local[2 * co] = (double)(n * hw);
    return EN_OK;
}

/* ---- backward ----------------------------------------------------------------------------------------------------- */

/* Back through the gate of one image.  dgate (c): in: the gradient of the gate; out: dpre.  dhid (q), dp (c): =. */
static void excite_backward(const en_se *se, int64_t c, int64_t image, float *dgate, float *dhid, float *dp)
{
    const float *gate = se->gate + image * c, *hidden = se->hidden + image * se->q;
    for (int64_t i = 0; i < c; i += VW) {
        const vf g = ld(gate + i);
        st(dgate + i, ld(dgate + i) * g * (1.f - g));
    }
    memset(dp, 0, (size_t)c * sizeof *dp);
    for (int64_t j = 0; j < se->q; j++) {
        vf s = { 0 };
        for (int64_t i = 0; i < c; i += VW) s += ld(dgate + i) * ld(se->we + j * c + i);
        const float sg = sigmoid1(hidden[j]), slope = sg + hidden[j] * sg * (1.f - sg);
        dhid[j] = hsum(s) * slope;
        for (int64_t i = 0; i < c; i += VW) st(dp + i, ld(dp + i) + dhid[j] * ld(se->wr + j * c + i));
    }
}

/* The small layers' weight gradients from all images: dpre (n, c), dhid (n, q); images in order. */
static void excite_weights(en_backend *be, const en_se *se, int64_t n, int64_t c, const float *dpre, const float *dhid)
{
#pragma omp parallel for num_threads(be->threads) schedule(static) if (be->threads > 1)
    for (int64_t j = 0; j < se->q; j++) {
        float db = 0;
        for (int64_t m = 0; m < n; m++) db += dhid[m * se->q + j];
        se->dbr[j] += db;
        for (int64_t i = 0; i < c; i += VW) {
            vf r = { 0 }, e = { 0 };
            for (int64_t m = 0; m < n; m++) {
                const float hid = se->hidden[m * se->q + j], h = hid * sigmoid1(hid);
                r += dhid[m * se->q + j] * ld(se->pooled + m * c + i);
                e += h * ld(dpre + m * c + i);
            }
            st(se->dwr + j * c + i, ld(se->dwr + j * c + i) + r);
            st(se->dwe + j * c + i, ld(se->dwe + j * c + i) + e);
        }
    }
    for (int64_t i = 0; i < c; i += VW) {
        vf s = { 0 };
        for (int64_t m = 0; m < n; m++) s += ld(dpre + m * c + i);
        st(se->dbe + i, ld(se->dbe + i) + s);
    }
}

/* rows [r0, r0 + rows) of one image: from ds and y, block_b = u*gate, dgate += sum ds*u */
static void gate_rows(const en_operand *x, const float *gate, const float *ds, int64_t r0, int64_t rows, int64_t c, float *ug, float *dgate)
{
    const float *y = (const float *)x->y + r0 * c;
    for (int64_t i = 0; i < c; i += VW) {
        const vf a = ld(x->bn->scale + i), b = ld(x->bn->shift + i), g = gate ? ld(gate + i) : splat(1.f);
        vf s = { 0 };
        for (int64_t r = 0; r < rows; r++) {
            const vf u = activate(ld(y + r * c + i), a, b, x->act);
            s += u * ld(ds + r * c + i);
            st(ug + r * c + i, u * g);
        }
        if (gate) st(dgate + i, ld(dgate + i) + s);
    }
}

/* One image: dz = (ds*gate + dp/hw) * act', in place of ds; stats += {sum dz, sum dz*(y - mean)} */
static void finish_image(const en_operand *x, const en_bn *xbn, const float *gate, const float *dp, int64_t image, int64_t hw, int64_t c,
                         float *dz, double *stats)
{
    const float *y = (const float *)x->y + image * hw * c;
    const float inv_hw = 1.f / (float)hw;
    dz += image * hw * c;
    for (int64_t r0 = 0; r0 < hw; r0 += 16)
        for (int64_t i = 0; i < c; i += VW) {
            const vf a = ld(x->bn->scale + i), b = ld(x->bn->shift + i), mean = ld(xbn->mean + i);
            const vf g = gate ? ld(gate + i) : splat(1.f), d = gate ? ld(dp + i) * inv_hw : (vf){ 0 };
            vf s0 = { 0 }, s1 = { 0 };
            for (int64_t r = r0; r < min64(r0 + 16, hw); r++) {
                const vf v = ld(y + r * c + i);
                vf z = ld(dz + r * c + i) * g + d, u;
                if (x->act != EN_ACT_NONE) z *= act_slope(v * a + b, &u, x->act);
                st(dz + r * c + i, z);
                s0 += z;
                s1 += z * (v - mean);
            }
            add_f64(stats + i, s0);
            add_f64(stats + c + i, s1);
        }
}

en_status cpu_se_project_backward(en_backend *be, int64_t n, int64_t hw, int64_t ci, int64_t co, const en_operand *x, const en_se *se,
                              const float *wt, const en_grad *dy, void *dz, float *dwt, en_bn *xbn)
{
    EN_TRY(check(be, ci, co, x), "projection backward");
    CPU_FITS(be, wgrad, ci * co);
    if (se) CPU_FITS(be, image, 2 * n * ci);
    cpu_engine *e = engine(be);
    float *const dpre = e->per_image, *const dhid = e->per_image + n * ci;
    if (n > 0) ISA(pack)(be, co, ci, wt, true, e->packed);
    FOR_EACH_LANE(be, l) {
        struct cpu_lane *me = &e->lane[l];
        memset(me->stats, 0, (size_t)(2 * ci) * sizeof(double));
        memset(me->wgrad, 0, (size_t)(ci * co) * sizeof(float));
        const cpu_range range = lane_range(n, l, be->lanes);
        for (int64_t n0 = range.first, images; n0 < range.last; n0 += images) {
            images = min64(group_of(hw), range.last - n0);
            if (se) memset(dpre + n0 * ci, 0, (size_t)(images * ci) * sizeof(float));
            for (int64_t r0 = n0 * hw, rows; r0 < (n0 + images) * hw; r0 += rows) {
                rows = min64(BLOCK_ROWS, (n0 + images) * hw - r0);
                float *ds = (float *)dz + r0 * ci;
                form_gradient(dy, r0, rows, co, me->block_a);
                ISA(gemm_block)(rows, ci, co, me->block_a, co, e->packed, ds, ci, NULL);
                for (int64_t r = r0, some; r < r0 + rows; r += some) {           /* the part of the block in one image */
                    const int64_t m = r / hw;
                    some = min64((m + 1) * hw, r0 + rows) - r;
                    gate_rows(x, se ? se->gate + m * ci : NULL, ds + (r - r0) * ci, r, some, ci, me->block_b + (r - r0) * ci, dpre + m * ci);
                }
                ISA(gemm_wgrad)(rows, ci, co, me->block_b, ci, me->block_a, co, me->wgrad);
            }
            for (int64_t m = n0; m < n0 + images; m++) {
                float *dp = me->block_b;
                if (se) excite_backward(se, ci, m, dpre + m * ci, dhid + m * se->q, dp);
                finish_image(x, xbn, se ? se->gate + m * ci : NULL, dp, m, hw, ci, dz, me->stats);
            }
        }
    }
    collect_stats(be, xbn);
    if (n > 0) {
        ISA(collect_wgrad)(be, ci * co, dwt);
        if (se) excite_weights(be, se, n, ci, dpre, dhid);
    }
    return EN_OK;
}
