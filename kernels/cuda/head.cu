/* head.cu - pooling and the classifier.
 *
 * Pooling reads the widest raw tensor of the network once in each direction and leaves (n, c) floats or 2c sums.  A block
 * takes a slice of 128 channels: 16 threads read 256 contiguous bytes of a row in bf16, the groups of 16 share the rows
 * out, with 64 bytes a thread in flight.  Sums are float over a run of rows, then double in shared memory, where each
 * thread owns its cells; the groups are added in order.
 *
 * The classifier is three float products (gemm.cu) and a column sum. */
#include "passes.h"
#include "sweep.h"

enum { LANES = 16, SLICE = 8 * LANES, MAX_GROUPS = 16, POOL_THREADS = LANES * MAX_GROUPS,
       PARTS = 64,              /* of the images in pool_backward: a constant, so the bits do not depend on the device */
       LOSS_ROWS = 4096 };      /* rows of the loss that always fit: 96 KiB                                            */

size_t scratch_of_loss(int64_t n);      /* loss.cu */

/* Rows that a thread loads before it uses the first. */
template <typename T> constexpr int rows_ahead = 8 / sizeof(T);

/* Threads for hw rows: all rows of a small image are in flight at once; an even number of groups, so that warps are full. */
template <typename T> static unsigned pool_threads(int64_t hw)
{
    const int64_t groups = min64(ceil_div(hw, rows_ahead<T>), MAX_GROUPS);
    return (unsigned)(groups + groups % 2) * LANES;
}

template <bool BN> EN_DEVICE void affine8(const float *scale, const float *shift, int64_t i, float a[8], float b[8])
{
    if (BN) { load8(scale + i, a); load8(shift + i, b); }
}

EN_DEVICE void spread4(float4 p, float v[4]) { v[0] = p.x, v[1] = p.y, v[2] = p.z, v[3] = p.w; }

/* grid n * ceil(c/SLICE): one image and slice a block; block pool_threads.  Bytes: x once, pooled once.  Lanes beyond c
 * only meet at the barrier; rows beyond hw read the last row again and count for nothing. */
template <typename T, bool BN> static __global__ void __launch_bounds__(POOL_THREADS, 3)
pool_forward_kernel(int64_t hw, int64_t c, const T *__restrict__ y, const float *__restrict__ scale, const float *__restrict__ shift, en_act act,
                    const float *__restrict__ mask, float *__restrict__ pooled)
{
    __shared__ double sums[8][POOL_THREADS];
    const unsigned slices = (unsigned)((c + SLICE - 1) / SLICE), lane = threadIdx.x % LANES, group = threadIdx.x / LANES, groups = blockDim.x / LANES;
    const int64_t m = blockIdx.x / slices, first = (int64_t)(blockIdx.x % slices) * SLICE, i = first + lane * 8;
#pragma unroll
    for (int j = 0; j < 8; j++) sums[j][threadIdx.x] = 0;
    if (i < c) {
        const T *p = y + m * hw * c + i;
        float a[8], b[8], s[8] = { 0 };
        affine8<BN>(scale, shift, i, a, b);
        int run = 0;
        for (int64_t r = group; r < hw; r += rows_ahead<T> * groups) {
            float v[rows_ahead<T>][8];
#pragma unroll
            for (int q = 0; q < rows_ahead<T>; q++) load8(p + min(r + q * groups, hw - 1) * c, v[q]);
#pragma unroll
            for (int q = 0; q < rows_ahead<T>; q++) {
                const bool counts = r + q * groups < hw;
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    const float u = BN ? act_value<T>(act, fmaf(v[q][j], a[j], b[j])) : v[q][j];
                    s[j] += counts ? u : 0.f;
                }
            }
            run += rows_ahead<T>;
            if (run < SUM_RUN && r + rows_ahead<T> * groups < hw) continue;
#pragma unroll
            for (int j = 0; j < 8; j++) sums[j][threadIdx.x] += s[j], s[j] = 0.f;
            run = 0;
        }
    }
    __syncthreads();
    for (unsigned t = threadIdx.x; t < SLICE && first + t < c; t += blockDim.x) {
        double sum = 0;
        for (unsigned g = 0; g < groups; g++) sum += sums[t % 8][g * LANES + t / 8];
        const int64_t at = m * c + first + t;
        const float mean = (float)(sum / (double)hw);
        pooled[at] = mask ? mean * mask[at] : mean;
    }
}

/* grid parts * ceil(c/SLICE): a run of images and a slice a block; block pool_threads.  Bytes: y once; dpooled twice
 * and written once.  dz = dpooled/hw * act'(bn(y)).  partials[part][2c] =.  Groups share dpooled, so it takes its mask
 * for good only after all of them have passed the barrier. */
template <typename T> static __global__ void __launch_bounds__(POOL_THREADS, 2)
pool_backward_kernel(int64_t n, int64_t hw, int64_t c, int64_t parts, float *dpooled, const float *__restrict__ mask, const T *__restrict__ y,
                     const float *__restrict__ scale, const float *__restrict__ shift, const float *__restrict__ mean, en_act act,
                     double *__restrict__ partials)
{
    __shared__ double sums[16][POOL_THREADS];
    __shared__ float4 affine[3][SLICE / 4];             /* scale, shift, mean: 24 registers a thread would be too many */
    const unsigned slices = (unsigned)((c + SLICE - 1) / SLICE), lane = threadIdx.x % LANES, group = threadIdx.x / LANES, groups = blockDim.x / LANES;
    const int64_t part = blockIdx.x / slices, first = (int64_t)(blockIdx.x % slices) * SLICE, i = first + lane * 8;
    const int64_t m0 = n * part / parts, m1 = n * (part + 1) / parts;
    const float inv_hw = 1.f / (float)hw;
#pragma unroll
    for (int j = 0; j < 16; j++) sums[j][threadIdx.x] = 0;
    for (unsigned t = threadIdx.x; t < SLICE / 4 && first + 4 * t < c; t += blockDim.x) {
        affine[0][t] = *(const float4 *)(scale + first + 4 * t);
        affine[1][t] = *(const float4 *)(shift + first + 4 * t);
        affine[2][t] = *(const float4 *)(mean + first + 4 * t);
    }
    __syncthreads();
    if (i < c) {
        float s0[8] = { 0 }, s1[8] = { 0 };
        int run = 0;
        for (int64_t m = m0; m < m1; m++) {
            const T *p = y + m * hw * c + i;
            float d[8];
            load8((const float *)dpooled + m * c + i, d);
            if (mask) {
                float k[8];
                load8(mask + m * c + i, k);
#pragma unroll
                for (int j = 0; j < 8; j++) d[j] *= k[j];
            }
#pragma unroll
            for (int j = 0; j < 8; j++) d[j] *= inv_hw;
            for (int64_t r = group; r < hw; r += rows_ahead<T> * groups) {
                float v[rows_ahead<T>][8];
#pragma unroll
                for (int q = 0; q < rows_ahead<T>; q++) load8(p + min(r + q * groups, hw - 1) * c, v[q]);
#pragma unroll
                for (int half = 0; half < 8; half += 4) {
                    float a[4], b[4], centre[4];
                    spread4(affine[0][lane * 2 + half / 4], a);
                    spread4(affine[1][lane * 2 + half / 4], b);
                    spread4(affine[2][lane * 2 + half / 4], centre);
#pragma unroll
                    for (int q = 0; q < rows_ahead<T>; q++) {
                        const bool counts = r + q * groups < hw;
#pragma unroll
                        for (int j = 0; j < 4; j++) {
                            const float x = v[q][half + j], dz = counts ? d[half + j] * act_slope<T>(act, fmaf(x, a[j], b[j])) : 0.f;
                            s0[half + j] += dz;
                            s1[half + j] = fmaf(dz, x - centre[j], s1[half + j]);
                        }
                    }
                }
                run += rows_ahead<T>;
                if (run < SUM_RUN) continue;
#pragma unroll
                for (int j = 0; j < 8; j++) sums[j][threadIdx.x] += s0[j], sums[8 + j][threadIdx.x] += s1[j], s0[j] = s1[j] = 0.f;
                run = 0;
            }
        }
#pragma unroll
        for (int j = 0; j < 8; j++) sums[j][threadIdx.x] += s0[j], sums[8 + j][threadIdx.x] += s1[j];
    }
    __syncthreads();
    for (unsigned t = threadIdx.x; t < 2 * SLICE; t += blockDim.x) {
        const unsigned which = t / SLICE, k = t % SLICE;
        if (first + k >= c) continue;
        double sum = 0;
        for (unsigned g = 0; g < groups; g++) sum += sums[which * 8 + k % 8][g * LANES + k / 8];
        partials[part * 2 * c + which * c + first + k] = sum;
    }
    if (mask)
        for (int64_t m = m0; m < m1; m++)
            for (unsigned t = threadIdx.x; t < SLICE && first + t < c; t += blockDim.x) dpooled[m * c + first + t] *= mask[m * c + first + t];
}

/* sweep (n, hw, c): dx = dpooled[image] * (mask ? mask[image] : 1) / hw in each row.  Bytes: dx once; the two are small. */
template <typename T> static __global__ void __launch_bounds__(SWEEP_BLOCK) spread_mean(sweep s, const float *dpooled, const float *mask, T *dx)
{
    const sweep_place p = place_in(s);
    const float inv_hw = 1.f / (float)s.hw;
    float d[8], k[8];
    load8(dpooled + p.image * s.c + p.channel, d);
    if (mask) load8(mask + p.image * s.c + p.channel, k);
#pragma unroll
    for (int j = 0; j < 8; j++) d[j] = mask ? d[j] * inv_hw * k[j] : d[j] * inv_hw;
    for (int64_t r = p.first; r < p.end; r += s.stride) store8(dx + at_row(s, p, r), d);
}

/* grid ceil(k/32), block (32, 32): 32 columns a block, warp w adds rows w, w + 32, ..., then the warps are added in order.
 * dbias +=.  Bytes: dlogits once. */
static __global__ void __launch_bounds__(1024) bias_kernel(int64_t n, int64_t k, const float *__restrict__ dlogits, float *dbias)
{
    __shared__ double sums[32][32];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t j = (int64_t)blockIdx.x * 32 + lane;
    double sum = 0;
    if (j < k) {
#pragma unroll 8
        for (int64_t m = warp; m < n; m += 32) sum += (double)dlogits[m * k + j];
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && j < k) {
        for (int w = 1; w < 32; w++) sum += sums[w][lane];
        dbias[j] += (float)sum;
    }
}

size_t scratch_of_head(const cuda_engine *, const en_conv_geom *g)
{
    scratch_carver s = { nullptr, 0 };
    s.take<double>(min64(g->n, PARTS) * 2 * max64(g->c, g->oc));
    const size_t loss = scratch_of_loss(max64(g->n, LOSS_ROWS));
    return s.used > loss ? s.used : loss;
}

en_status cuda_pool_forward(en_backend *be, int64_t n, int64_t hw, int64_t c, const en_operand *x, const float *mask, float *pooled)
{
    CU_CHANNELS(c);
    EN_REQUIRE(hw > 0 && (x->bn || x->act == EN_ACT_NONE), EN_EINVAL, "%lld rows an image; an activation without batch norm is not read", (long long)hw);
    if (n == 0) return EN_OK;
    const unsigned blocks = (unsigned)(n * ceil_div(c, SLICE));
    const en_bn *bn = x->bn;
    cudaStream_t stream = engine(be)->compute;
    BY_TYPE(be, T,
        if (bn) pool_forward_kernel<T, true><<<blocks, pool_threads<T>(hw), 0, stream>>>(hw, c, (const T *)x->y, bn->scale, bn->shift, x->act, mask, pooled);
        else pool_forward_kernel<T, false><<<blocks, pool_threads<T>(hw), 0, stream>>>(hw, c, (const T *)x->y, nullptr, nullptr, EN_ACT_NONE, mask, pooled));
    CU_LAUNCHED("pooling %lld images of %lld rows, %lld channels", (long long)n, (long long)hw, (long long)c);
    return EN_OK;
}

en_status cuda_pool_backward(en_backend *be, int64_t n, int64_t hw, int64_t c, float *dpooled, const float *mask, const en_operand *x, en_bn *bn)
{
    CU_CHANNELS(c);
    EN_REQUIRE(hw > 0, EN_EINVAL, "images without rows");
    cudaStream_t stream = engine(be)->compute;
    if (n == 0) {
        CU_TRY(cudaMemsetAsync(bn->local, 0, (size_t)(2 * c) * sizeof(double), stream), "sums of no images");
        return EN_OK;
    }
    const int64_t parts = min64(n, PARTS);
    scratch_carver s = carver_of(be);
    double *partials = s.take<double>(parts * 2 * c);
    SCRATCH_FITS(be, s);
    BY_TYPE(be, T,
        pool_backward_kernel<T><<<(unsigned)(parts * ceil_div(c, SLICE)), pool_threads<T>(hw), 0, stream>>>(n, hw, c, parts, dpooled, mask,
            (const T *)x->y, bn->scale, bn->shift, bn->mean, x->act, partials));
    CU_LAUNCHED("back through the pooling of %lld images of %lld rows, %lld channels", (long long)n, (long long)hw, (long long)c);
    return collect(be, partials, parts, 2 * c, bn->local);
}

en_status cuda_mean_backward(en_backend *be, int64_t n, int64_t hw, int64_t c, const float *dpooled, const float *mask, void *dx)
{
    CU_CHANNELS(c);
    if (n * hw == 0) return EN_OK;
    const sweep s = sweep_to_write(engine(be), n, hw, c);
    BY_TYPE(be, T, (spread_mean<T><<<sweep_grid(s), SWEEP_BLOCK, 0, engine(be)->compute>>>(s, dpooled, mask, (T *)dx)));
    CU_LAUNCHED("the gradient of %lld means over %lld rows, %lld channels", (long long)n, (long long)hw, (long long)c);
    return EN_OK;
}

/* Float throughout, also where activations are bf16: three products of a few GFLOP, and logits decide the loss. */
static gemm_call product(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const float *a, const float *b, float *d, float beta, const float *bias)
{
    gemm_call g = {};
    g.ta = ta, g.tb = tb, g.m = m, g.n = n, g.k = k, g.a = a, g.b = b, g.d = d, g.beta = beta, g.bias = bias;
    g.a_type = g.b_type = g.d_type = EN_F32;
    return g;
}

en_status cuda_dense_forward(en_backend *be, int64_t n, int64_t ci, int64_t k, const float *x, const float *wt, const float *bias, float *logits)
{
    CU_CHANNELS(ci);
    CU_CHANNELS(k);
    if (n == 0) return EN_OK;
    const gemm_call y = product(false, false, n, k, ci, x, wt, logits, 0, bias);
    EN_TRY(gemm(be, &y), "logits");
    return EN_OK;
}

en_status cuda_dense_backward(en_backend *be, int64_t n, int64_t ci, int64_t k, const float *x, const float *wt, const float *dlogits, float *dx,
    float *dwt, float *dbias)
{
    CU_CHANNELS(ci);
    CU_CHANNELS(k);
    if (n == 0) return EN_OK;
    const gemm_call back = product(false, true, n, ci, k, dlogits, wt, dx, 0, nullptr), weights = product(true, false, ci, k, n, x, dlogits, dwt, 1, nullptr);
    EN_TRY(gemm(be, &back), "gradient of the classifier's input");
    EN_TRY(gemm(be, &weights), "gradient of the classifier's weights");
    bias_kernel<<<(unsigned)ceil_div(k, 32), 1024, 0, engine(be)->compute>>>(n, k, dlogits, dbias);
    CU_LAUNCHED("gradient of %lld biases", (long long)k);
    return EN_OK;
}
