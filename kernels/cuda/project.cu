/* project.cu - squeeze-and-excitation and the projection of an MBConv block.
 *
 * Forward: a sweep over y2 pools u = act(bn(y2)) by image; the small layers give the gate (squeeze.cu); a second sweep leaves
 * z2 = u*gate in the workspace for the GEMM y3 = z2 W; a last one takes the sums of y3.
 *
 * Backward: dy3 is formed in the workspace, ds = dy3 W^T by GEMM where dz will stand.  The gradient dp of the pooled value is known
 * only after the small layers, and dz = (ds*gate + dp/hw)*f' needs it, with f' = act'(bn(y2)); but all that is wanted of dz is
 * linear in dp.  So (FOLD_FIVE_SUM) one sweep over ds and y2 takes five sums by image and channel,
 *
 *     q0 = sum ds*u   q1 = sum ds*f'   q2 = sum f'   q3 = sum ds*f'*(y2-mean)   q4 = sum f'*(y2-mean)
 *     dgate = q0      sum dz = sum over images of gate*q1 + dp/hw*q2      sum dz*(y2-mean) = ... gate*q3 + dp/hw*q4
 *
 * and writes z2 again for the weight gradient z2^T dy3; dz is formed by who reads it (en_grad.gated).  Unfolded, a sweep takes dgate,
 * and after the small layers another one forms dz and sums it: ds and y2 are read twice, ds is written twice. */
#include "passes.h"
#include "squeeze.h"
#include "sweep.h"

/* ---- sweeps by image ------------------------------------------------------------------------------------------------------- */

/* partials[image, part][c] = sum of act(bn(y)).  Bytes: y once.  64 bytes in flight a thread. */
template <typename T> static __global__ void __launch_bounds__(SWEEP_BLOCK, sizeof(T) == 2 ? 4 : 3)
    pool_rows(sweep s, const T *__restrict__ y, const float *scale, const float *shift, en_act act, float *partials)
{
    enum { BATCH = sizeof(T) == 2 ? 4 : 2 };
    __shared__ __align__(16) float held[SWEEP_SHARED(1)];
    const sweep_place p = place_in(s);
    float a[8], b[8], sums[1][8];
    load8(scale + p.channel, a), load8(shift + p.channel, b);
    fill8(sums[0], 0.f);
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
                for (int i = 0; i < 8; i++) sums[0][i] += act_value<T>(act, fmaf(v[i], a[i], b[i]));
            }
    }
    float *const out = partials + (p.image * s.parts + p.part) * s.c;
    block_sums<1>(s, sums, held, [&](int, int64_t channel, double sum) { out[channel] = (float)sum; });
}

/* What the backward sweeps read of bn(y2), and the gate (n, c), or NULL: 1 */
struct unit { const float *scale, *shift, *mean, *gate; en_act act; };

/* z2 = u*gate and partials[image, part][kind][c]: all FIVE_SUMS (squeeze.h), or the first alone.  Bytes: y, ds, z2 once.
 * Registers hold 4 parameters and up to 5 sums of 8 channels, so two blocks fill an SM; a thread has 64 bytes in flight.  SILU: known
 * when it is compiled, because the choice among activations costs registers that are not there. */
template <typename T, bool FIVE, bool SILU> static __global__ void __launch_bounds__(SWEEP_BLOCK, 2)
    sum_gradient(sweep s, unit x, const T *__restrict__ y, const T *__restrict__ ds, T *__restrict__ z2, float *partials)
{
    enum { BATCH = sizeof(T) == 2 ? 2 : 1, KINDS = FIVE ? (int)FIVE_SUMS : 1 };
    __shared__ __align__(16) float held[SWEEP_SHARED(KINDS)];
    const sweep_place p = place_in(s);
    float a[8], b[8], mean[8], gate[8], sums[KINDS][8];
    load8(x.scale + p.channel, a), load8(x.shift + p.channel, b);
    if (FIVE) load8(x.mean + p.channel, mean);
    fill8(gate, 1.f);
    if (x.gate) load8(x.gate + p.image * s.c + p.channel, gate);
#pragma unroll
    for (int k = 0; k < KINDS; k++) fill8(sums[k], 0.f);
    for (int64_t r = p.first; r < p.end; r += BATCH * s.stride) {
        raw8<T> raw_y[BATCH], raw_d[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; k++)
            if (r + k * s.stride < p.end) {
                const int64_t i = at_row(s, p, r + k * s.stride);
                raw_y[k] = fetch8(y + i), raw_d[k] = fetch8(ds + i);
            }
#pragma unroll
        for (int k = 0; k < BATCH; k++)
            if (r + k * s.stride < p.end) {
                float v[8], d[8], z[8];
                open8(raw_y[k], v), open8(raw_d[k], d);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    float u, slope;
                    act_both<T>(SILU ? EN_ACT_SILU : x.act, fmaf(v[i], a[i], b[i]), &u, &slope);
                    z[i] = u * gate[i];
                    sums[Q_DGATE][i] = fmaf(d[i], u, sums[Q_DGATE][i]);
                    if constexpr (FIVE) {
                        const float dz = d[i] * slope, from_mean = v[i] - mean[i];
                        sums[Q_DS_SLOPE][i] += dz;
                        sums[Q_SLOPE][i] += slope;
                        sums[Q_DS_SLOPE_Y][i] = fmaf(dz, from_mean, sums[Q_DS_SLOPE_Y][i]);
                        sums[Q_SLOPE_Y][i] = fmaf(slope, from_mean, sums[Q_SLOPE_Y][i]);
                    }
                }
                store8(z2 + at_row(s, p, r + k * s.stride), z);
            }
    }
    float *const out = partials + (p.image * s.parts + p.part) * KINDS * s.c;
    block_sums<KINDS>(s, sums, held, [&](int k, int64_t channel, double sum) { out[k * s.c + channel] = (float)sum; });
}

template <bool FIVE> static void sum_gradients(en_backend *be, const sweep &s, const unit &x, const void *y, const void *ds, void *z2, float *partials)
{
    const unsigned grid = sweep_grid(s);
    const cudaStream_t stream = engine(be)->compute;
    if (x.act == EN_ACT_SILU) BY_TYPE(be, T, (sum_gradient<T, FIVE, true><<<grid, SWEEP_BLOCK, 0, stream>>>(s, x, (const T *)y, (const T *)ds, (T *)z2, partials)));
    else BY_TYPE(be, T, (sum_gradient<T, FIVE, false><<<grid, SWEEP_BLOCK, 0, stream>>>(s, x, (const T *)y, (const T *)ds, (T *)z2, partials)));
}

/* dz = (ds*gate + dp)*act'(bn(y)) in place of ds, and partials[image, part] = { sum dz, sum dz*(y-mean) }; dp (n, c), NULL: 0.
 * Bytes: y and ds once, dz once. */
template <typename T> static __global__ void __launch_bounds__(SWEEP_BLOCK, 2)
    finish_gradient(sweep s, unit x, const T *__restrict__ y, const float *dp, T *dz, double *partials)
{
    enum { BATCH = sizeof(T) == 2 ? 2 : 1 };
    __shared__ __align__(16) float held[SWEEP_SHARED(2)];
    const sweep_place p = place_in(s);
    float a[8], b[8], mean[8], gate[8], plus[8], sums[2][8];
    load8(x.scale + p.channel, a), load8(x.shift + p.channel, b), load8(x.mean + p.channel, mean);
    fill8(gate, 1.f), fill8(plus, 0.f), fill8(sums[0], 0.f), fill8(sums[1], 0.f);
    if (x.gate) load8(x.gate + p.image * s.c + p.channel, gate), load8(dp + p.image * s.c + p.channel, plus);
    for (int64_t r = p.first; r < p.end; r += BATCH * s.stride) {
        raw8<T> raw_y[BATCH], raw_d[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; k++)
            if (r + k * s.stride < p.end) {
                const int64_t i = at_row(s, p, r + k * s.stride);
                raw_y[k] = fetch8(y + i), raw_d[k] = fetch8(dz + i);
            }
#pragma unroll
        for (int k = 0; k < BATCH; k++)
            if (r + k * s.stride < p.end) {
                float v[8], d[8];
                open8(raw_y[k], v), open8(raw_d[k], d);
#pragma unroll
                for (int i = 0; i < 8; i++) d[i] = fmaf(d[i], gate[i], plus[i]) * act_slope<T>(x.act, fmaf(v[i], a[i], b[i]));
                store8(dz + at_row(s, p, r + k * s.stride), d);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    sums[0][i] += d[i];
                    sums[1][i] = fmaf(d[i], v[i] - mean[i], sums[1][i]);
                }
            }
    }
    double *const out = partials + (p.image * s.parts + p.part) * 2 * s.c;
    block_sums<2>(s, sums, held, [&](int k, int64_t channel, double sum) { out[k * s.c + channel] = sum; });
}

/* ---- scratch and workspace ----------------------------------------------------------------------------------------------------- */

struct project_scratch { float *partials, *by_image; double *norm; squeeze_scratch squeeze; };

/* kinds sums a channel of `parts` parts of n images, joined by image when there are more parts than images */
static project_scratch take_scratch(scratch_carver *k, int64_t n, int64_t parts, int64_t c, int64_t q, int64_t kinds)
{
    project_scratch s;
    s.partials = k->take<float>(parts * kinds * c);
    s.by_image = k->take<float>(parts > n ? n * kinds * c : 0);
    s.norm     = k->take<double>((kinds == FIVE_SUMS ? squeeze_groups(n) : parts) * 2 * c);
    s.squeeze  = take_squeeze(k, n, c, q);
    return s;
}

size_t scratch_of_project(const cuda_engine *e, const en_conv_geom *g)
{
    if (g->kernel != 0 || g->c % 8 != 0) return 0;
    scratch_carver k = { NULL, 0 };                            /* q is not known here, but it never exceeds the channels */
    take_scratch(&k, g->n, parts_to_sum_most(e, g->n, g->h * g->w, g->c), g->c, g->c, (e->folds & FOLD_FIVE_SUM) ? (int)FIVE_SUMS : 1);
    return k.used;
}

/* z2 (rows, ci), then dy3 (rows, co); footprint.h says how much that is */
struct project_tensors { char *z2, *dy3; };
static project_tensors tensors_in(void *base, en_dtype type, int64_t rows, int64_t ci)
{
    return { (char *)base, (char *)base + en_cuda_project_dy(type, rows, ci) };
}

/* The sums by image: partials themselves when each image is one part, else joined. */
static en_status by_image(en_backend *be, const sweep &s, const project_scratch &scratch, int64_t kinds, const float **out)
{
    *out = s.parts > 1 ? scratch.by_image : scratch.partials;
    return s.parts > 1 ? collect_each(be, scratch.partials, s.images, s.parts, kinds * s.c, scratch.by_image) : EN_OK;
}

static en_status check(en_backend *be, int64_t n, int64_t hw, int64_t ci, int64_t co, const en_operand *x)
{
    CU_CHANNELS(ci);
    CU_CHANNELS(co);
    EN_REQUIRE(x->bn, EN_EINVAL, "the input of a projection is a raw tensor with its batch norm");
    EN_REQUIRE(n * hw == 0 || be->workspace, EN_EINVAL, "a projection works in be->workspace");
    return EN_OK;
}

/* ---- the passes ------------------------------------------------------------------------------------------------------------------ */

static en_status gate_of(en_backend *be, int64_t n, int64_t hw, int64_t c, const en_operand *x, const en_se *se)
{
    const sweep s = sweep_to_sum(engine(be), n, hw, c);
    scratch_carver k = carver_of(be);
    const project_scratch scratch = { k.take<float>(sweep_parts(s) * c), k.take<float>(s.parts > 1 ? n * c : 0), NULL, {} };
    SCRATCH_FITS(be, k);
    BY_TYPE(be, T, (pool_rows<T><<<sweep_grid(s), SWEEP_BLOCK, 0, engine(be)->compute>>>(s, (const T *)x->y, x->bn->scale, x->bn->shift, x->act,
                                                                                         scratch.partials)));
    CU_LAUNCHED("pooling %lld images of %lld rows, %lld channels", (long long)n, (long long)hw, (long long)c);
    const float *sums = NULL;
    EN_TRY(by_image(be, s, scratch, 1, &sums), "pooling");
    EN_TRY(squeeze_forward(be, se, n, hw, c, sums), "gate");
    return EN_OK;
}

en_status cuda_se_project_forward(en_backend *be, int64_t n, int64_t hw, int64_t ci, int64_t co, const en_operand *x, const en_se *se,
                                  const float *wt, void *y, en_bn *bn)
{
    EN_TRY(check(be, n, hw, ci, co, x), "projection forward");
    const int64_t rows = n * hw;
    if (rows == 0) return bn ? set_rows(be, bn, 0) : EN_OK;
    const project_tensors work = tensors_in(be->workspace, be->dtype, rows, ci);
    const void *w = NULL;
    if (se) EN_TRY(gate_of(be, n, hw, ci, x, se), "projection forward");
    EN_TRY(form_operand(be, x, se ? se->gate : NULL, rows, hw, ci, work.z2), "projection forward");
    EN_TRY(weights_for_gemm(be, wt, ci * co, &w), "projection forward");
    const gemm_call product = { .m = rows, .n = co, .k = ci, .a = work.z2, .b = w, .d = y, .a_type = be->dtype, .b_type = be->dtype, .d_type = be->dtype };
    EN_TRY(gemm(be, &product), "projection forward");
    if (bn) EN_TRY(sweep_sums(be, rows, co, y, bn), "projection forward");
    return EN_OK;
}

/* From ds and y2: z2, the gradients of the small layers, and either what dz is formed from, or dz itself; and the sums of dz. */
static en_status back_through_gate(en_backend *be, int64_t n, int64_t hw, int64_t c, const en_operand *x, const en_se *se, void *z2, void *dz,
                                   en_bn *xbn)
{
    const sweep s = sweep_to_sum(engine(be), n, hw, c);
    const bool five = folds(be, FOLD_FIVE_SUM);
    const int64_t kinds = five ? (int)FIVE_SUMS : 1, groups = squeeze_groups(n);
    const unsigned grid = sweep_grid(s);
    const cudaStream_t stream = engine(be)->compute;
    const unit of = { x->bn->scale, x->bn->shift, xbn->mean, se ? se->gate : NULL, x->act };
    scratch_carver k = carver_of(be);
    const project_scratch scratch = take_scratch(&k, n, sweep_parts(s), c, se ? se->q : 0, kinds);
    const float *sums = NULL;
    SCRATCH_FITS(be, k);
    if (five) {
        EN_REQUIRE(!se || se->dgate, EN_EINVAL, "no room for the gradient of the gate");
        sum_gradients<true>(be, s, of, x->y, dz, z2, scratch.partials);
        CU_LAUNCHED("five sums of %lld images of %lld rows, %lld channels", (long long)n, (long long)hw, (long long)c);
        EN_TRY(by_image(be, s, scratch, kinds, &sums), "five sums");
        double *const norm = groups == 1 ? xbn->local : scratch.norm;
        EN_TRY(squeeze_backward(be, se, n, hw, c, sums, kinds, &scratch.squeeze, se ? se->dgate : NULL, norm), "gate");
        if (groups > 1) EN_TRY(collect(be, norm, groups, 2 * c, xbn->local), "five sums");
        return EN_OK;
    }
    if (se) {
        sum_gradients<false>(be, s, of, x->y, dz, z2, scratch.partials);
        CU_LAUNCHED("gate's gradient of %lld images of %lld rows, %lld channels", (long long)n, (long long)hw, (long long)c);
        EN_TRY(by_image(be, s, scratch, kinds, &sums), "gate");
        EN_TRY(squeeze_backward(be, se, n, hw, c, sums, kinds, &scratch.squeeze, scratch.squeeze.dp, NULL), "gate");
    } else EN_TRY(form_operand(be, x, NULL, n * hw, hw, c, z2), "operand");
    BY_TYPE(be, T, (finish_gradient<T><<<grid, SWEEP_BLOCK, 0, stream>>>(s, of, (const T *)x->y, scratch.squeeze.dp, (T *)dz, scratch.norm)));
    CU_LAUNCHED("gradient of %lld images of %lld rows, %lld channels", (long long)n, (long long)hw, (long long)c);
    return collect(be, scratch.norm, sweep_parts(s), 2 * c, xbn->local);
}

en_status cuda_se_project_backward(en_backend *be, int64_t n, int64_t hw, int64_t ci, int64_t co, const en_operand *x, const en_se *se,
                                   const float *wt, const en_grad *dy, void *dz, float *dwt, en_bn *xbn)
{
    EN_TRY(check(be, n, hw, ci, co, x), "projection backward");
    const int64_t rows = n * hw;
    if (rows == 0) return collect(be, NULL, 0, 2 * ci, xbn->local);
    const en_dtype type = be->dtype;
    const project_tensors work = tensors_in(be->workspace, type, rows, ci);
    const void *w = NULL;
    EN_TRY(form_gradient(be, dy, rows, co, work.dy3), "projection backward");
    EN_TRY(weights_for_gemm(be, wt, ci * co, &w), "projection backward");
    const gemm_call back = { .tb = true, .m = rows, .n = ci, .k = co, .a = work.dy3, .b = w, .d = dz, .a_type = type, .b_type = type, .d_type = type };
    EN_TRY(gemm(be, &back), "projection backward");
    EN_TRY(back_through_gate(be, n, hw, ci, x, se, work.z2, dz, xbn), "projection backward");
    const gemm_call weights = { .ta = true, .m = ci, .n = co, .k = rows, .a = work.z2, .b = work.dy3, .d = dwt, .a_type = type, .b_type = type,
                                .d_type = EN_F32, .beta = 1 };
    EN_TRY(gemm(be, &weights), "projection backward");
    return EN_OK;
}
