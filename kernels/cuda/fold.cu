/* fold.cu - batch norm of an expansion y = x W without a sweep over y, which is six times as wide as x.
 *
 * FOLD_GRAM.  y is linear in x, so its statistics are those of x, seen through W.  Over this rank's M rows
 *
 *     m = mean of x     Cov = x^T x / M - m m^T     P = Cov W     mean(y)_j = (m W)_j     var(y)_j = sum_i W_ij P_ij
 *
 * and the sums that the all-reduce wants, about the shift s, are  M (mW - s)  and  M (var + (mW - s)^2).  x^T x is one product over x
 * (tall.cu).  Cov is centred in double and handed to the tensor cores in two halves, Cov = high + low, so that P has
 * the precision of float.  W is what the product that made y has read: rounded, in bf16 mode.
 *
 * FOLD_EXPAND.  dy = ga dz + gb y + gc per channel, with the group's ga, gb, gc, and y = x W again:
 *
 *     dx  = dy W^T  = dz (W diag ga)^T + x H + k (+ add)      H = (W diag gb) W^T     k = (gc + gb mW) W^T - m H
 *     dwt += x^T dy = (x^T dz) diag ga + M P diag gb + (M m)(gb mW + gc)^T
 *
 * so dy1 is neither formed nor stored.  Both lines hold for this rank's rows whatever the group's sums were, with this
 * rank's m and P.  k is written about m because H is rounded: (x - m) H makes of that a small error, x H + gc W^T would not.
 * In bf16 mode the bias k enters in two halves too, one with each product of dx: rounded once it would shift whole channels.
 *
 * Cost: a handful of small kernels and 2 ci^2 co operations whatever the batch, against sweeps of rows*co.  fold_pays weighs them. */
#include "fold.h"
#include "tall.cuh"

/* ---- memory ------------------------------------------------------------------------------------------------------------------- */

namespace {

struct forward_scratch { double *gram; void *high, *low; float *partials; };
struct backward_scratch { void *scaled, *shifted, *h, *bias; float *partials; };

void *take_stored(scratch_carver *s, const cuda_engine *e, int64_t n) { return s->take<char>(n * (int64_t)en_dtype_bytes(e->dtype)); }

forward_scratch take_forward(scratch_carver *s, const cuda_engine *e, int64_t ci, const tall_shape &gram)
{
    forward_scratch f;
    f.gram = s->take<double>(gram.width);
    f.high = take_stored(s, e, ci * ci);
    f.low = e->dtype == EN_BF16 ? take_stored(s, e, ci * ci) : NULL;
    f.partials = s->take<float>(tall_floats(gram));
    return f;
}

/* x^T dz: in parts, or where ci is too wide for them as one product of the library */
bool in_parts(int64_t ci) { return ci <= 128; }

backward_scratch take_backward(scratch_carver *s, const cuda_engine *e, int64_t ci, int64_t co, const tall_shape &gradient)
{
    backward_scratch b;
    b.scaled = take_stored(s, e, ci * co);
    b.shifted = take_stored(s, e, ci * co);
    b.h = take_stored(s, e, ci * ci);
    b.bias = take_stored(s, e, 2 * ci);
    b.partials = s->take<float>(in_parts(ci) ? tall_floats(gradient) : ci * co);
    return b;
}

} // namespace

size_t fold_scratch(const cuda_engine *e, int64_t rows, int64_t ci, int64_t co)
{
    scratch_carver forward = {}, backward = {};
    if (!fold_pays(e, rows, ci, co)) return 0;
    take_forward(&forward, e, ci, tall_shape_of(e, rows, ci, ci, true));
    take_backward(&backward, e, ci, co, tall_shape_of(e, rows, ci, co, false));
    return forward.used > backward.used ? forward.used : backward.used;
}

/* ---- forward ------------------------------------------------------------------------------------------------------------------ */

namespace {
struct keep_sum {
    double *out;
    __device__ void operator()(int64_t i, double sum) const { out[i] = sum; }
};
} // namespace

EN_DEVICE void split(double v, bf16 *high, bf16 *low)
{
    *high = __float2bfloat16_rn((float)v);
    *low = __float2bfloat16_rn((float)(v - (double)__bfloat162float(*high)));
}
EN_DEVICE void split(double v, float *high, float *) { *high = (float)v; }

/* gram: x^T x (ci, ci), then the column sums of x.  Covariance in halves (=), mean (=).
 * grid (ci*ci/256), block 256; 8 bytes read and 4 written a value; no edge beyond the last block's. */
template <typename T> static __global__ void __launch_bounds__(256)
covariance(const double *gram, double per_row, int64_t ci, T *high, T *low, float *mean)
{
    const int64_t at = (int64_t)blockIdx.x * 256 + threadIdx.x;
    if (at >= ci * ci) return;
    const double *sums = gram + ci * ci, mi = sums[at / ci] * per_row, mj = sums[at % ci] * per_row;
    split(gram[at] * per_row - mi * mj, high + at, low + at);
    if (at < ci) mean[at] = (float)mj;
}

/* image = m W; with `local`: the batch-norm sums of y.  grid (co/32), block (32, 16): x walks channels, y the rows of W and P;
 * 6 or 8 bytes a weight, once.  Edge: threads past co load nothing but stay for the barrier. */
template <typename T> static __global__ void __launch_bounds__(512)
image_and_sums(const T *w, fold_kept kept, int64_t ci, int64_t co, double rows, const float *running_mean, double *local)
{
    __shared__ double means[16][33], vars[16][33];
    const int64_t j = (int64_t)blockIdx.x * 32 + threadIdx.x;
    double mean = 0, var = 0;
    if (j < co) {
#pragma unroll 4
        for (int64_t i = threadIdx.y; i < ci; i += 16) {
            const double wij = (double)as_float(w[i * co + j]);
            mean += wij * (double)kept.mean[i];
            var += wij * (double)kept.product[i * co + j];
        }
    }
    means[threadIdx.y][threadIdx.x] = mean;
    vars[threadIdx.y][threadIdx.x] = var;
    __syncthreads();
    if (threadIdx.y == 0 && j < co) {
        for (int q = 1; q < 16; q++) mean += means[q][threadIdx.x], var += vars[q][threadIdx.x];
        kept.image[j] = (float)mean;
        if (local) {
            const double off = mean - (double)running_mean[j];
            local[j] = rows * off;
            local[co + j] = rows * ((var > 0 ? var : 0) + off * off);
            if (j == 0) local[2 * co] = rows;
        }
    }
}

static gemm_call product_of(en_backend *be, int64_t m, int64_t n, int64_t k, const void *a, const void *b, void *d)
{
    gemm_call g = {};
    g.m = m, g.n = n, g.k = k, g.a = a, g.b = b, g.d = d;
    g.a_type = g.b_type = g.d_type = be->dtype;
    return g;
}

en_status fold_forward(en_backend *be, int64_t rows, int64_t ci, int64_t co, const void *x, const void *w, en_bn *bn, bool sums)
{
    const cuda_engine *e = engine(be);
    const fold_kept kept = fold_kept_in(bn->fold, ci, co);
    const tall_shape gram = tall_shape_of(e, rows, ci, ci, true);
    scratch_carver carver = carver_of(be);
    const forward_scratch s = take_forward(&carver, e, ci, gram);
    SCRATCH_FITS(be, carver);

    EN_TRY(tall_product(be, gram, x, x, s.partials), "x^T x");
    EN_TRY(collect_with(be, s.partials, gram.parts, gram.width, keep_sum{ s.gram }), "x^T x");
    BY_TYPE(be, T, covariance<T><<<(unsigned)ceil_div(ci * ci, 256), 256, 0, e->compute>>>(s.gram, 1 / (double)rows, ci, (T *)s.high, (T *)s.low,
                                                                                           kept.mean));
    CU_LAUNCHED("covariance of %lld channels", (long long)ci);

    gemm_call p = product_of(be, ci, co, ci, s.high, w, kept.product);
    p.d_type = EN_F32;
    EN_TRY(gemm(be, &p), "covariance times weights");
    if (s.low) {
        p.a = s.low, p.beta = 1.f;
        EN_TRY(gemm(be, &p), "covariance times weights");
    }
    BY_TYPE(be, T, image_and_sums<T><<<(unsigned)ceil_div(co, 32), dim3(32, 16), 0, e->compute>>>((const T *)w, kept, ci, co, (double)rows,
                                                                                                bn->running_mean, sums ? bn->local : NULL));
    CU_LAUNCHED("batch-norm sums of %lld channels", (long long)co);
    return EN_OK;
}

/* ---- backward ----------------------------------------------------------------------------------------------------------------- */

/* scaled = W diag ga, shifted = W diag gb.  grid (ci*co/256), block 256; 2 or 4 bytes read and twice that written. */
template <typename T> static __global__ void __launch_bounds__(256)
scale_columns(const T *w, const float *ga, const float *gb, int64_t values, int64_t co, T *scaled, T *shifted)
{
    const int64_t at = (int64_t)blockIdx.x * 256 + threadIdx.x;
    if (at >= values) return;
    const float v = as_float(w[at]);
    scaled[at] = as_stored<T>(v * ga[at % co]);
    shifted[at] = as_stored<T>(v * gb[at % co]);
}

/* bias = k in two halves (ci each; float: the first alone).  grid (ci), block 128: a block owns one i, row i of W and column i of H. */
template <typename T> static __global__ void __launch_bounds__(128)
bias_of_dx(const T *w, const T *h, const float *gb, const float *gc, fold_kept kept, int64_t ci, int64_t co, T *bias)
{
    __shared__ double lanes[128];
    const int64_t i = blockIdx.x;
    double k = 0;
    for (int64_t j = threadIdx.x; j < co; j += 128) k += ((double)gc[j] + (double)gb[j] * (double)kept.image[j]) * (double)as_float(w[i * co + j]);
    for (int64_t q = threadIdx.x; q < ci; q += 128) k -= (double)kept.mean[q] * (double)as_float(h[q * ci + i]);
    lanes[threadIdx.x] = k;
    __syncthreads();
    for (unsigned reach = 64; reach; reach /= 2) {
        if (threadIdx.x < reach) lanes[threadIdx.x] += lanes[threadIdx.x + reach];
        __syncthreads();
    }
    if (threadIdx.x == 0) split(lanes[0], bias + i, bias + ci + i);
}

namespace {
/* dwt[i,j] += (x^T dz)[i,j] ga[j] + M (P[i,j] gb[j] + m[i] (gb[j] mW[j] + gc[j])) */
struct add_folded {
    float *dwt;
    const float *ga, *gb, *gc;
    fold_kept kept;
    double rows;
    int64_t co;
    __device__ void operator()(int64_t at, double sum) const
    {
        const int64_t i = at / co, j = at % co;
        const double b = (double)gb[j];
        const double constant = (double)kept.product[at] * b + (double)kept.mean[i] * (b * (double)kept.image[j] + (double)gc[j]);
        dwt[at] += (float)(sum * (double)ga[j] + rows * constant);
    }
};
} // namespace

en_status fold_backward(en_backend *be, int64_t rows, int64_t ci, int64_t co, const void *x, const void *w, const en_grad *dy, const void *add,
                        void *dx, float *dwt)
{
    const cuda_engine *e = engine(be);
    const en_bn *bn = dy->bn;
    const fold_kept kept = fold_kept_in(bn->fold, ci, co);
    const tall_shape gradient = tall_shape_of(e, rows, ci, co, false);
    scratch_carver carver = carver_of(be);
    const backward_scratch s = take_backward(&carver, e, ci, co, gradient);
    SCRATCH_FITS(be, carver);

    /* the weight gradient first: dz and x are then in L2 for dx, if they fit */
    if (in_parts(ci)) EN_TRY(tall_product(be, gradient, x, dy->stored, s.partials), "x^T dz");
    else {
        gemm_call g = product_of(be, ci, co, rows, x, dy->stored, s.partials);
        g.ta = true, g.d_type = EN_F32;
        EN_TRY(gemm(be, &g), "x^T dz");
    }
    const add_folded then = { dwt, bn->ga, bn->gb, bn->gc, kept, (double)rows, co };
    EN_TRY(collect_with(be, s.partials, in_parts(ci) ? gradient.parts : 1, ci * co, then), "weight gradient");

    BY_TYPE(be, T, scale_columns<T><<<(unsigned)ceil_div(ci * co, 256), 256, 0, e->compute>>>((const T *)w, bn->ga, bn->gb, ci * co, co, (T *)s.scaled,
                                                                                            (T *)s.shifted));
    CU_LAUNCHED("scaling %lld columns", (long long)co);
    gemm_call h = product_of(be, ci, ci, co, s.shifted, w, s.h);
    h.tb = true;
    EN_TRY(gemm(be, &h), "weights times weights");
    BY_TYPE(be, T, bias_of_dx<T><<<(unsigned)ci, 128, 0, e->compute>>>((const T *)w, (const T *)s.h, bn->gb, bn->gc, kept, ci, co, (T *)s.bias));
    CU_LAUNCHED("bias of %lld channels", (long long)ci);

    gemm_call first = product_of(be, rows, ci, ci, x, s.h, dx);
    first.c = add, first.beta = add ? 1.f : 0.f, first.bias = s.bias;
    EN_TRY(gemm(be, &first), "x H");
    gemm_call second = product_of(be, rows, ci, co, dy->stored, s.scaled, dx);
    second.tb = true, second.beta = 1.f;
    if (be->dtype == EN_BF16) second.bias = (const bf16 *)s.bias + ci;
    EN_TRY(gemm(be, &second), "1x1 convolution, backward");
    return EN_OK;
}
