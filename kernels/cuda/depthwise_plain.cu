/* depthwise_plain.cu - the depthwise convolution as it is defined, one thread per position and 8 channels.
 *
 * These are the twins that the walking kernels (depthwise_forward.cu, depthwise_backward.cu) are compared with: they keep
 * nothing between positions, read the image k*k times through the caches, and backward needs dy as a tensor
 * (be->workspace).  Sums of batch norm are sweeps of their own. */
#include "depthwise.h"

enum { PLAIN_THREADS = 128, PLAIN_BLOCKS = 16 /* of the weight gradient, per multiprocessor */ };

en_status check_depthwise(const en_conv_geom *g, const en_operand *x)
{
    CU_CHANNELS(g->c);
    EN_REQUIRE(g->kernel == 3 || g->kernel == 5 || g->kernel == 7, EN_EINVAL, "depthwise kernel %d: there are 3, 5 and 7", g->kernel);
    EN_REQUIRE(g->stride == 1 || g->stride == 2, EN_EINVAL, "depthwise stride %d: there are 1 and 2", g->stride);
    EN_REQUIRE(g->pad >= 0 && g->pad < g->kernel && g->oc == g->c, EN_EINVAL, "depthwise pad %d, %lld -> %lld channels", g->pad,
               (long long)g->c, (long long)g->oc);
    EN_REQUIRE((g->oh - 1) * g->stride - g->pad < g->h && (g->ow - 1) * g->stride - g->pad < g->w, EN_EINVAL, "a window misses the image");
    EN_REQUIRE(g->h < 1 << 24 && g->w < 1 << 24 && g->oh < 1 << 24 && g->ow < 1 << 24 && g->c < 1 << 20, EN_EINVAL, "%lld x %lld x %lld is too large",
               (long long)g->h, (long long)g->w, (long long)g->c);
    EN_REQUIRE(x->bn || x->act == EN_ACT_NONE, EN_EINVAL, "an activation without batch norm");
    return EN_OK;
}

/* u = act(bn(x)) of 8 channels; scale NULL: no batch norm */
template <typename T> EN_DEVICE void activated8(const T *x, const float *scale, const float *shift, int64_t c, en_act act, float u[8])
{
    float s[8], t[8];
    load8(x, u);
    if (!scale) return;
    load8(scale + c, s), load8(shift + c, t);
#pragma unroll
    for (int i = 0; i < 8; i++) u[i] = act_value<T>(act, fmaf(s[i], u[i], t[i]));
}

/* grid-stride over n*oh*ow*c/8 vectors.  Bytes: x k*k/s^2 times (caches), y once.  Edge: taps outside are left out. */
template <typename T> static __global__ void __launch_bounds__(PLAIN_THREADS, 4)
plain_forward(const T *__restrict__ x, const float *__restrict__ scale, const float *__restrict__ shift, en_act act, const float *__restrict__ wt,
              T *__restrict__ y, en_conv_geom g)
{
    const int64_t vecs = g.c / 8, total = g.n * g.oh * g.ow * vecs;
    for (int64_t v = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; v < total; v += (int64_t)gridDim.x * blockDim.x) {
        const int64_t c = v % vecs * 8, row = v / vecs, n = row / (g.oh * g.ow), i = row / g.ow % g.oh * g.stride - g.pad, j = row % g.ow * g.stride - g.pad;
        float sum[8] = { 0 };
        for (int a = 0; a < g.kernel; a++)
            for (int b = 0; b < g.kernel; b++) {
                if (i + a < 0 || i + a >= g.h || j + b < 0 || j + b >= g.w) continue;
                float u[8], w[8];
                activated8(x + ((n * g.h + i + a) * g.w + j + b) * g.c + c, scale, shift, c, act, u);
                load8(wt + (a * g.kernel + b) * g.c + c, w);
#pragma unroll
                for (int e = 0; e < 8; e++) sum[e] = fmaf(u[e], w[e], sum[e]);
            }
        store8(y + row * g.c + c, sum);
    }
}

/* dx = (conv^T(dy) + add) * act'(bn(x)): grid-stride over n*h*w*c/8 vectors.  Bytes: dy k*k/s^2 times (caches), x, add, dx once. */
template <typename T> static __global__ void __launch_bounds__(PLAIN_THREADS, 4)
plain_data_gradient(const T *__restrict__ dy, const float *__restrict__ wt, const T *__restrict__ add, const T *__restrict__ x,
                    const float *__restrict__ scale, const float *__restrict__ shift, en_act act, T *__restrict__ dx, en_conv_geom g)
{
    const int64_t vecs = g.c / 8, total = g.n * g.h * g.w * vecs;
    for (int64_t v = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; v < total; v += (int64_t)gridDim.x * blockDim.x) {
        const int64_t c = v % vecs * 8, row = v / vecs, n = row / (g.h * g.w), i = row / g.w % g.h + g.pad, j = row % g.w + g.pad;
        float sum[8] = { 0 };
        for (int a = 0; a < g.kernel; a++)
            for (int b = 0; b < g.kernel; b++) {
                if (i < a || j < b || (i - a) % g.stride || (j - b) % g.stride) continue;
                const int64_t oi = (i - a) / g.stride, oj = (j - b) / g.stride;
                if (oi >= g.oh || oj >= g.ow) continue;
                float d[8], w[8];
                load8(dy + ((n * g.oh + oi) * g.ow + oj) * g.c + c, d);
                load8(wt + (a * g.kernel + b) * g.c + c, w);
#pragma unroll
                for (int e = 0; e < 8; e++) sum[e] = fmaf(d[e], w[e], sum[e]);
            }
        float extra[8] = { 0 }, raw[8], s[8], t[8];
        if (add) load8(add + row * g.c + c, extra);
#pragma unroll
        for (int e = 0; e < 8; e++) sum[e] += extra[e];
        if (scale) {
            load8(x + row * g.c + c, raw), load8(scale + c, s), load8(shift + c, t);
#pragma unroll
            for (int e = 0; e < 8; e++) sum[e] *= act_slope<T>(act, fmaf(s[e], raw[e], t[e]));
        }
        store8(dx + row * g.c + c, sum);
    }
}

/* partials[part][k*k*c]: a thread is one tap and 8 channels and walks over the output positions of its part; grid
 * (k*k*c/8 / PLAIN_THREADS, parts).  Bytes: x and dy k*k times (caches).  Edge: threads beyond the taps leave; no barrier. */
template <typename T> static __global__ void __launch_bounds__(PLAIN_THREADS, 4)
plain_weight_gradient(const T *__restrict__ x, const float *__restrict__ scale, const float *__restrict__ shift, en_act act,
                      const T *__restrict__ dy, float *__restrict__ partials, int64_t rows_per_part, en_conv_geom g)
{
    const int64_t vecs = g.c / 8, v = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (v >= vecs * g.kernel * g.kernel) return;
    const int64_t c = v % vecs * 8, tap = v / vecs, a = tap / g.kernel, b = tap % g.kernel;
    const int64_t first = blockIdx.y * rows_per_part, rows = g.n * g.oh * g.ow;
    const int64_t end = first + rows_per_part < rows ? first + rows_per_part : rows;
    double sum[8] = { 0 };
    for (int64_t start = first; start < end; start += SUM_RUN) {
        float run[8] = { 0 };
        const int64_t stop = start + SUM_RUN < end ? start + SUM_RUN : end;
        for (int64_t row = start; row < stop; row++) {
            const int64_t n = row / (g.oh * g.ow), i = row / g.ow % g.oh * g.stride - g.pad + a, j = row % g.ow * g.stride - g.pad + b;
            if (i < 0 || i >= g.h || j < 0 || j >= g.w) continue;
            float u[8], d[8];
            activated8(x + ((n * g.h + i) * g.w + j) * g.c + c, scale, shift, c, act, u);
            load8(dy + row * g.c + c, d);
#pragma unroll
            for (int e = 0; e < 8; e++) run[e] = fmaf(u[e], d[e], run[e]);
        }
#pragma unroll
        for (int e = 0; e < 8; e++) sum[e] += (double)run[e];
    }
    float out[8];
#pragma unroll
    for (int e = 0; e < 8; e++) out[e] = (float)sum[e];
    store8(partials + (blockIdx.y * g.kernel * g.kernel + tap) * g.c + c, out);
}

/* ---- the passes ------------------------------------------------------------------------------------------------------------ */

static unsigned blocks_for(const cuda_engine *e, int64_t vectors) { return (unsigned)max64(1, min64(ceil_div(vectors, PLAIN_THREADS), (int64_t)e->sms * 64)); }

struct plain_parts { int64_t tap_blocks, parts, rows; };
static plain_parts cut_plain(const cuda_engine *e, const en_conv_geom *g)
{
    const int64_t rows = g->n * g->oh * g->ow, tap_blocks = ceil_div((int64_t)g->kernel * g->kernel * (g->c / 8), PLAIN_THREADS);
    const int64_t most = max64(1, min64(e->sms * PLAIN_BLOCKS / tap_blocks, 65535)), per_part = max64(16, ceil_div(rows, most));
    return { tap_blocks, ceil_div(rows, per_part), per_part };
}

size_t scratch_of_plain_depthwise(const cuda_engine *e, const en_conv_geom *g)
{
    if (g->kernel == 0 || g->c % 8 != 0) return 0;                 /* a pointwise pass, the stem */
    const int64_t width = (int64_t)g->kernel * g->kernel * g->c, tap_blocks = ceil_div(width / 8, PLAIN_THREADS);
    return (size_t)(max64(1, min64(e->sms * PLAIN_BLOCKS / tap_blocks, 65535)) * width) * sizeof(float) + 256;
}

en_status plain_depthwise_forward(en_backend *be, const en_conv_geom *g, const en_operand *x, const float *wt, void *y, en_bn *bn)
{
    cuda_engine *e = engine(be);
    const int64_t rows = g->n * g->oh * g->ow;
    if (rows > 0) {
        BY_TYPE(be, T, plain_forward<T><<<blocks_for(e, rows * (g->c / 8)), PLAIN_THREADS, 0, e->compute>>>((const T *)x->y, x->bn ? x->bn->scale : nullptr,
                                        x->bn ? x->bn->shift : nullptr, x->act, wt, (T *)y, *g));
        CU_LAUNCHED("depthwise forward, plain");
    }
    if (bn) EN_TRY(sweep_sums(be, rows, g->c, y, bn), "sums of the depthwise output");
    return EN_OK;
}

en_status plain_depthwise_backward(en_backend *be, const en_conv_geom *g, const en_operand *x, const float *wt, const en_grad *dy,
                                   const void *add, void *dx, float *dwt, en_bn *xbn)
{
    cuda_engine *e = engine(be);
    const int64_t rows = g->n * g->oh * g->ow, x_rows = g->n * g->h * g->w, width = (int64_t)g->kernel * g->kernel * g->c;
    const float *scale = x->bn ? x->bn->scale : nullptr, *shift = x->bn ? x->bn->shift : nullptr;
    if (rows > 0) {
        EN_REQUIRE(be->workspace, EN_EINVAL, "the unfolded depthwise backward needs a workspace");
        const plain_parts cut = cut_plain(e, g);
        scratch_carver scratch = carver_of(be);
        float *partials = scratch.take<float>(cut.parts * width);
        SCRATCH_FITS(be, scratch);
        void *d = be->workspace;
        EN_TRY(form_gradient(be, dy, rows, g->c, d), "gradient of the depthwise output");
        BY_TYPE(be, T, plain_data_gradient<T><<<blocks_for(e, x_rows * (g->c / 8)), PLAIN_THREADS, 0, e->compute>>>((const T *)d, wt, (const T *)add,
                                        (const T *)x->y, scale, shift, x->act, (T *)dx, *g));
        CU_LAUNCHED("depthwise data gradient, plain");
        const dim3 grid((unsigned)cut.tap_blocks, (unsigned)cut.parts);
        BY_TYPE(be, T, plain_weight_gradient<T><<<grid, PLAIN_THREADS, 0, e->compute>>>((const T *)x->y, scale, shift, x->act, (const T *)d, partials,
                                        cut.rows, *g));
        CU_LAUNCHED("depthwise weight gradient, plain");
        EN_TRY(collect_add(be, partials, cut.parts, width, dwt), "depthwise weight gradient");
    }
    if (xbn) EN_TRY(cuda_residual_backward(be, g->n, g->h * g->w, g->c, dx, nullptr, x->y, xbn), "sums of the depthwise input's gradient");
    return EN_OK;
}
