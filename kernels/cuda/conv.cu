/* conv.cu - dense k x k convolutions as matrix products whose left operand is gathered, never unfolded in memory.
 *
 * A block makes 128 positions x 64 channels of its output.  It walks over taps and, in each, over the channels of the source, DEPTH
 * at a time: the rows that the tap names for these positions (zeros outside the image) and the weights of the tap go to shared
 * memory, cp.async, STAGES deep, and from there to tensor cores (bf16, mma.h) or fused multiply-adds (f32).
 *
 *     forward    y[i,j]  = sum over a, b of u[i*s-p+a, j*s-p+b] wt[a,b]
 *     backward   du[i,j] = sum over a = i+p, b = j+p (mod s) of dy[(i+p-a)/s, (j+p-b)/s] wt[a,b]^T
 *
 * Both are `conv_walk`: a grid of positions, where each goes and where its taps begin.  With stride 2 backward takes a launch for
 * each parity of (i+p, j+p), so that no tap is multiplied that is not there.  What is read is a plain tensor: u = act(bn(x)) and dy
 * are formed in the workspace before (norm.cu); what backward adds and its slope are applied as it stores.  Sums of batch norm are
 * sweeps over what was stored.
 *
 *     dwt[a,b] += u^T dy over all positions: a block has a tap, 64 x 64 channels and a part of the rows, as in tall.cu. */
#include "mma.h"
#include "passes.h"
#include "tall.cuh"

#include <cuda_pipeline.h>

namespace {

enum { THREADS = 256, TM = 128, TN = 64, STAGES = 4, TW = 64, WEIGHT_ROWS_MOST = 16384, WEIGHT_ROWS_LEAST = 256 };

struct conv_walk {
    int64_t positions;                                        /* n*rows*columns                                       */
    int rows, columns;                                        /* of one image                                         */
    int out_h, out_w, out_step, out_i, out_j;                 /* position (i, j) goes to (i*step + out_i, ...)        */
    int src_h, src_w, src_step, src_i, src_j, src_sign;       /* its tap (r, t) reads (i*step + src_i + sign*r, ...)  */
    int nr, nt, a0, b0, tap_step, kernel;                     /* with the weights of a = a0 + step*r, b = b0 + step*t */
    int ci, co;                                               /* channels of source and output                        */
};

template <typename T> struct conv_store { T *out; const T *add, *raw; const float *scale, *shift; en_act act; };

template <typename T, bool BACK> struct product_tile {
    static constexpr int per = 16 / sizeof(T), depth = 4 * per;            /* 32 channels a stage in bf16, 16 in f32  */
    static constexpr int sa = depth + per;                                 /* elements between rows: no bank twice    */
    static constexpr int sb = BACK ? sa : TN + per, b_rows = BACK ? TN : depth;
    static constexpr int stage = TM * sa + b_rows * sb;
    static constexpr size_t bytes = (size_t)STAGES * stage * sizeof(T);
};

/* The products of one stage.  bf16: a warp has 32 positions x 32 channels. */
template <typename T, bool BACK> struct product;
template <bool BACK> struct product<bf16, BACK> {
    using shape = product_tile<bf16, BACK>;
    float acc[2][4][4];
    int i0, j0, lane;

    EN_DEVICE_MEMBER void begin()
    {
        const int warp = (int)threadIdx.x / 32;
        lane = (int)threadIdx.x % 32, i0 = warp / 2 * 32, j0 = warp % 2 * 32;
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int n = 0; n < 4; n++)
#pragma unroll
                for (int q = 0; q < 4; q++) acc[m][n][q] = 0.f;
    }
    EN_DEVICE_MEMBER void stage(const bf16 *a, const bf16 *b)
    {
#pragma unroll
        for (int k = 0; k < shape::depth; k += 16) {
            unsigned right[4][2];
#pragma unroll
            for (int p = 0; p < 2; p++) {
                unsigned r[4];
                if (BACK) load_matrices(r, b + (j0 + 16 * p + lane / 16 * 8 + lane % 8) * shape::sb + k + lane / 8 % 2 * 8);
                else load_matrices_transposed(r, b + (k + lane / 8 % 2 * 8 + lane % 8) * shape::sb + j0 + 16 * p + lane / 16 * 8);
                right[2 * p][0] = r[0], right[2 * p][1] = r[1], right[2 * p + 1][0] = r[2], right[2 * p + 1][1] = r[3];
            }
#pragma unroll
            for (int m = 0; m < 2; m++) {
                unsigned left[4];
                load_matrices(left, a + (i0 + 16 * m + lane % 16) * shape::sa + k + lane / 16 * 8);
#pragma unroll
                for (int n = 0; n < 4; n++) multiply_add(acc[m][n], left, right[n]);
            }
        }
    }
    /* row(i) once for each of this thread's positions, then pair(j, two neighbouring channels) */
    template <typename R, typename P> EN_DEVICE_MEMBER void end(R row, P pair)
    {
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                if (row(i0 + 16 * m + 8 * h + lane / 4)) {
#pragma unroll
                    for (int n = 0; n < 4; n++) pair(j0 + 8 * n + lane % 4 * 2, acc[m][n][2 * h], acc[m][n][2 * h + 1]);
                }
    }
};
/* f32: a thread has 8 positions, 16 apart, x 4 channels. */
template <bool BACK> struct product<float, BACK> {
    using shape = product_tile<float, BACK>;
    float acc[8][4];
    int i0, j0;

    EN_DEVICE_MEMBER void begin()
    {
        i0 = (int)threadIdx.x / 16, j0 = (int)threadIdx.x % 16 * 4;
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) acc[i][j] = 0.f;
    }
    EN_DEVICE_MEMBER void stage(const float *a, const float *b)
    {
#pragma unroll 4
        for (int k = 0; k < shape::depth; k++) {
            float right[4];
#pragma unroll
            for (int j = 0; j < 4; j++) right[j] = BACK ? b[(j0 + j) * shape::sb + k] : b[k * shape::sb + j0 + j];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const float left = a[(i0 + 16 * i) * shape::sa + k];
#pragma unroll
                for (int j = 0; j < 4; j++) acc[i][j] = fmaf(left, right[j], acc[i][j]);
            }
        }
    }
    template <typename R, typename P> EN_DEVICE_MEMBER void end(R row, P pair)
    {
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (row(i0 + 16 * i)) pair(j0, acc[i][0], acc[i][1]), pair(j0 + 2, acc[i][2], acc[i][3]);
    }
};

EN_DEVICE void load2(const float *p, float *a, float *b) { const float2 v = *(const float2 *)p; *a = v.x, *b = v.y; }
EN_DEVICE void load2(const bf16 *p, float *a, float *b)
{
    const unsigned w = *(const unsigned *)p;
    *a = __uint_as_float(w << 16), *b = __uint_as_float(w & 0xffff0000u);
}
EN_DEVICE void store2(float *p, float a, float b) { *(float2 *)p = make_float2(a, b); }
EN_DEVICE void store2(bf16 *p, float a, float b)
{
    const __nv_bfloat162 h = __floats2bfloat162_rn(a, b);
    *(__nv_bfloat162 *)p = h;
}

} // namespace

/* grid (positions / 128, channels of the output / 64), block 256.  Bytes: the source kernel^2 / step^2 times through L2, about once
 * from DRAM where a block's rows stay there; the weights once a block; the output once.  Edge: positions and channels beyond the
 * end are zeros in shared memory and not stored; nobody leaves before the last barrier. */
template <typename T, bool BACK>
static __global__ void __launch_bounds__(THREADS, 2) conv_product(const T *__restrict__ src, const T *__restrict__ wt, conv_walk g, conv_store<T> to)
{
    using shape = product_tile<T, BACK>;
    extern __shared__ __align__(16) unsigned char shared[];
    T *const ring = (T *)shared;
    const int64_t first = (int64_t)blockIdx.x * TM;
    const int n0 = (int)blockIdx.y * TN, tid = (int)threadIdx.x;
    enum { ROWS_EACH = TM * 4 / THREADS };                    /* rows of the source that a thread copies, 16 bytes of each */
    int at_i[ROWS_EACH], at_j[ROWS_EACH];
    int64_t image[ROWS_EACH];
#pragma unroll
    for (int q = 0; q < ROWS_EACH; q++) {
        const int64_t position = first + q * (THREADS / 4) + tid / 4;
        const bool there = position < g.positions;
        const int64_t row = there ? position / g.columns : 0;
        image[q] = row / g.rows * g.src_h;
        at_i[q] = there ? (int)(row % g.rows) * g.src_step + g.src_i : -(1 << 24);
        at_j[q] = (int)(position - row * g.columns) * g.src_step + g.src_j;
    }
    const int pieces = (g.ci + shape::depth - 1) / shape::depth, stages = g.nr * g.nt * pieces;
    int tap_r = 0, tap_t = 0, piece = 0;                      /* of the next load */
    const auto load = [&](int k) {
        if (k < stages) {
            T *const a = ring + k % STAGES * shape::stage, *const b = a + TM * shape::sa;
            const int c0 = piece * shape::depth, c = c0 + tid % 4 * shape::per;
#pragma unroll
            for (int q = 0; q < ROWS_EACH; q++) {
                const int i = at_i[q] + g.src_sign * tap_r, j = at_j[q] + g.src_sign * tap_t;
                const bool there = i >= 0 && i < g.src_h && j >= 0 && j < g.src_w && c < g.ci;
                __pipeline_memcpy_async(a + (q * (THREADS / 4) + tid / 4) * shape::sa + tid % 4 * shape::per,
                                        src + (there ? ((image[q] + i) * g.src_w + j) * g.ci + c : 0), 16, there ? 0 : 16);
            }
            const T *const w = wt + (int64_t)((g.a0 + g.tap_step * tap_r) * g.kernel + g.b0 + g.tap_step * tap_t) * g.ci * g.co;
            if (BACK) {
                const int n = tid / 4;
                const bool there = n0 + n < g.co && c < g.ci;
                __pipeline_memcpy_async(b + n * shape::sb + tid % 4 * shape::per, w + (there ? (int64_t)(n0 + n) * g.ci + c : 0), 16, there ? 0 : 16);
            } else {
                constexpr int chunks = TN / shape::per;
                const int r = tid / chunks, n = tid % chunks * shape::per;
                const bool there = c0 + r < g.ci && n0 + n < g.co;
                __pipeline_memcpy_async(b + r * shape::sb + n, w + (there ? (int64_t)(c0 + r) * g.co + n0 + n : 0), 16, there ? 0 : 16);
            }
            if (++piece == pieces) {
                piece = 0;
                if (++tap_t == g.nt) tap_t = 0, tap_r++;
            }
        }
        __pipeline_commit();
    };
    product<T, BACK> mine;
    mine.begin();
    for (int k = 0; k < STAGES - 1; k++) load(k);
    for (int k = 0; k < stages; k++) {
        __pipeline_wait_prior(STAGES - 2);
        __syncthreads();
        load(k + STAGES - 1);                                 /* into what everybody has left behind */
        const T *now = ring + k % STAGES * shape::stage;
        mine.stage(now, now + TM * shape::sa);
    }
    int64_t at = 0;
    mine.end(
        [&](int m) {
            const int64_t position = first + m, row = position / g.columns;
            if (position >= g.positions) return false;
            at = ((row / g.rows * g.out_h + row % g.rows * g.out_step + g.out_i) * g.out_w + (position - row * g.columns) * g.out_step + g.out_j) * g.co;
            return true;
        },
        [&](int j, float v0, float v1) {
            const int c = n0 + j;
            if (c >= g.co) return;
            if (to.add) {
                float a0, a1;
                load2(to.add + at + c, &a0, &a1);
                v0 += a0, v1 += a1;
            }
            if (to.scale) {
                float x0, x1;
                load2(to.raw + at + c, &x0, &x1);
                v0 *= act_slope<T>(to.act, fmaf(to.scale[c], x0, to.shift[c]));
                v1 *= act_slope<T>(to.act, fmaf(to.scale[c + 1], x1, to.shift[c + 1]));
            }
            store2(to.out + at + c, v0, v1);
        });
}

template <typename T, bool BACK>
static en_status launch_product(en_backend *be, const void *src, const void *wt, const conv_walk *g, const conv_store<T> *to)
{
    using shape = product_tile<T, BACK>;
    CU_TRY(cudaFuncSetAttribute(conv_product<T, BACK>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shape::bytes), "shared memory of a convolution");
    conv_product<T, BACK><<<dim3((unsigned)ceil_div(g->positions, TM), (unsigned)ceil_div(g->co, TN)), THREADS, shape::bytes, engine(be)->compute>>>(
        (const T *)src, (const T *)wt, *g, *to);
    CU_LAUNCHED("convolution of %lld positions, %d -> %d channels", (long long)g->positions, g->ci, g->co);
    return EN_OK;
}

/* ---- weight gradient ---------------------------------------------------------------------------------------------------- */

namespace {

struct weight_walk { int64_t rows, each; int h, w, oh, ow, kernel, stride, pad, ci, co, tiles_i, tiles_j; };

template <typename T> struct weight_tile {
    static constexpr int per = 16 / sizeof(T), chunks = TW / per, steps = THREADS / chunks;     /* 32 rows a stage in bf16, 16 in f32 */
    static constexpr int pitch = TW + per, stage = 2 * steps * pitch;
    static constexpr size_t bytes = (size_t)STAGES * stage * sizeof(T);
};

/* bf16: a warp has 16 x 32 channels; f32: a thread has 4 x 4. */
template <typename T> struct weight_product;
template <> struct weight_product<bf16> {
    using shape = weight_tile<bf16>;
    float acc[4][4];
    int i0, j0, lane;

    EN_DEVICE_MEMBER void begin()
    {
        const int warp = (int)threadIdx.x / 32;
        lane = (int)threadIdx.x % 32, i0 = warp / 2 * 16, j0 = warp % 2 * 32;
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int q = 0; q < 4; q++) acc[n][q] = 0.f;
    }
    EN_DEVICE_MEMBER void stage(const bf16 *x, const bf16 *y)
    {
#pragma unroll
        for (int k = 0; k < shape::steps; k += 16) {
            unsigned left[4];
            load_matrices_transposed(left, x + (k + lane / 16 * 8 + lane % 8) * shape::pitch + i0 + lane / 8 % 2 * 8);
#pragma unroll
            for (int p = 0; p < 2; p++) {
                unsigned r[4];
                load_matrices_transposed(r, y + (k + lane / 8 % 2 * 8 + lane % 8) * shape::pitch + j0 + 16 * p + lane / 16 * 8);
                const unsigned one[2] = { r[0], r[1] }, other[2] = { r[2], r[3] };
                multiply_add(acc[2 * p], left, one);
                multiply_add(acc[2 * p + 1], left, other);
            }
        }
    }
    template <typename F> EN_DEVICE_MEMBER void end(F pair)
    {
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int n = 0; n < 4; n++) pair(i0 + 8 * h + lane / 4, j0 + 8 * n + lane % 4 * 2, acc[n][2 * h], acc[n][2 * h + 1]);
    }
};
template <> struct weight_product<float> {
    using shape = weight_tile<float>;
    float acc[4][4];
    int i0, j0;

    EN_DEVICE_MEMBER void begin()
    {
        i0 = (int)threadIdx.x / 16 * 4, j0 = (int)threadIdx.x % 16 * 4;
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) acc[i][j] = 0.f;
    }
    EN_DEVICE_MEMBER void stage(const float *x, const float *y)
    {
#pragma unroll 4
        for (int k = 0; k < shape::steps; k++) {
            const float4 l = *(const float4 *)(x + k * shape::pitch + i0), r = *(const float4 *)(y + k * shape::pitch + j0);
            const float left[4] = { l.x, l.y, l.z, l.w }, right[4] = { r.x, r.y, r.z, r.w };
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) acc[i][j] = fmaf(left[i], right[j], acc[i][j]);
        }
    }
    template <typename F> EN_DEVICE_MEMBER void end(F pair)
    {
#pragma unroll
        for (int i = 0; i < 4; i++) pair(i0 + i, j0, acc[i][0], acc[i][1]), pair(i0 + i, j0 + 2, acc[i][2], acc[i][3]);
    }
};

} // namespace

/* grid (taps x tiles of 64 x 64 channels, parts), block 256: partials[part][tap][ci][co] =.  Bytes: u and dy once a tap and tile,
 * from L2 where the tiles of a part run side by side.  Edge: as conv_product; rows outside the image are zeros. */
template <typename T>
static __global__ void __launch_bounds__(THREADS, 2) conv_weights(const T *__restrict__ u, const T *__restrict__ dy, weight_walk g, float *__restrict__ partials)
{
    using shape = weight_tile<T>;
    extern __shared__ __align__(16) unsigned char shared[];
    T *const ring = (T *)shared;
    const int tile_j = (int)blockIdx.x % g.tiles_j, tile_i = (int)blockIdx.x / g.tiles_j % g.tiles_i, tap = (int)blockIdx.x / g.tiles_j / g.tiles_i;
    const int ci0 = tile_i * TW, co0 = tile_j * TW, tid = (int)threadIdx.x, r = tid / shape::chunks, c = tid % shape::chunks * shape::per;
    const int64_t first = (int64_t)blockIdx.y * g.each, end = first + g.each < g.rows ? first + g.each : g.rows;
    const int stages = (int)((end - first + shape::steps - 1) / shape::steps), di = tap / g.kernel - g.pad, dj = tap % g.kernel - g.pad;
    int64_t row = first + r, image = row / ((int64_t)g.oh * g.ow) * g.h;      /* of the next load */
    int i = (int)(row / g.ow % g.oh), j = (int)(row % g.ow);
    const auto load = [&](int k) {
        if (k < stages) {
            T *const x = ring + k % STAGES * shape::stage + r * shape::pitch + c, *const y = x + shape::steps * shape::pitch;
            const int in_i = i * g.stride + di, in_j = j * g.stride + dj;
            const bool there = row < end, inside = there && in_i >= 0 && in_i < g.h && in_j >= 0 && in_j < g.w && ci0 + c < g.ci;
            const bool wanted = there && co0 + c < g.co;
            __pipeline_memcpy_async(x, u + (inside ? ((image + in_i) * g.w + in_j) * g.ci + ci0 + c : 0), 16, inside ? 0 : 16);
            __pipeline_memcpy_async(y, dy + (wanted ? row * g.co + co0 + c : 0), 16, wanted ? 0 : 16);
            row += shape::steps;
            for (j += shape::steps; j >= g.ow; j -= g.ow)
                if (++i == g.oh) i = 0, image += g.h;
        }
        __pipeline_commit();
    };
    weight_product<T> mine;
    mine.begin();
    for (int k = 0; k < STAGES - 1; k++) load(k);
    for (int k = 0; k < stages; k++) {
        __pipeline_wait_prior(STAGES - 2);
        __syncthreads();
        load(k + STAGES - 1);
        const T *now = ring + k % STAGES * shape::stage;
        mine.stage(now, now + shape::steps * shape::pitch);
    }
    float *const out = partials + ((int64_t)blockIdx.y * g.kernel * g.kernel + tap) * g.ci * g.co;
    mine.end([&](int m, int n, float v0, float v1) {
        if (ci0 + m < g.ci && co0 + n < g.co) store2(out + (int64_t)(ci0 + m) * g.co + co0 + n, v0, v1);
    });
}

namespace {
struct weight_cut { int64_t tiles, parts, each, width; };
struct add_weight {
    float *out;
    __device__ void operator()(int64_t i, double sum) const { out[i] += (float)sum; }
};
} // namespace

static weight_cut cut_weights(const cuda_engine *e, const en_conv_geom *g)
{
    const int64_t rows = g->n * g->oh * g->ow, taps = (int64_t)g->kernel * g->kernel;
    weight_cut c = { taps * ceil_div(g->c, TW) * ceil_div(g->oc, TW), 0, 0, taps * g->c * g->oc };
    if (rows <= 0) return c;
    c.parts = max64(ceil_div(rows, WEIGHT_ROWS_MOST), min64(ceil_div(2 * e->sms, c.tiles), ceil_div(rows, WEIGHT_ROWS_LEAST)));
    c.each = ceil_div(ceil_div(rows, c.parts), 32) * 32;
    return c;
}

/* ---- the passes ------------------------------------------------------------------------------------------------------------ */

static en_status check(const en_conv_geom *g, const en_operand *x)
{
    CU_CHANNELS(g->c);
    CU_CHANNELS(g->oc);
    EN_REQUIRE(g->kernel >= 1 && g->kernel <= 7 && g->kernel % 2 == 1, EN_EINVAL, "convolution kernel %d: there are 1, 3, 5 and 7", g->kernel);
    EN_REQUIRE(g->stride == 1 || g->stride == 2, EN_EINVAL, "convolution stride %d: there are 1 and 2", g->stride);
    EN_REQUIRE(g->pad >= 0 && g->pad < g->kernel, EN_EINVAL, "convolution pad %d", g->pad);
    EN_REQUIRE((g->oh - 1) * g->stride - g->pad < g->h && (g->ow - 1) * g->stride - g->pad < g->w, EN_EINVAL, "a window misses the image");
    EN_REQUIRE(g->h < 1 << 20 && g->w < 1 << 20 && g->oh < 1 << 20 && g->ow < 1 << 20 && g->c < 1 << 20 && g->oc < 1 << 20, EN_EINVAL,
               "%lld x %lld x %lld is too large", (long long)g->h, (long long)g->w, (long long)g->c);
    EN_REQUIRE(x->bn || x->act == EN_ACT_NONE, EN_EINVAL, "an activation without batch norm");
    return EN_OK;
}

size_t scratch_of_conv(const cuda_engine *e, const en_conv_geom *g)
{
    if (!g->dense) return 0;
    const weight_cut c = cut_weights(e, g);
    scratch_carver s = {};
    s.take<float>(max64(c.parts, ceil_div(2 * e->sms, c.tiles)) * c.width);    /* fewer rows are never cut into more parts */
    return s.used;
}

/* u as a plain tensor: x itself, or formed at the start of the workspace */
static en_status input_of(en_backend *be, const en_conv_geom *g, const en_operand *x, const void **u)
{
    *u = x->y;
    if (!x->bn) return EN_OK;
    EN_REQUIRE(be->workspace, EN_EINVAL, "a convolution of act(bn(x)) needs a workspace");
    *u = be->workspace;
    return form_operand(be, x, NULL, g->n * g->h * g->w, g->h * g->w, g->c, be->workspace);
}

en_status cuda_conv_forward(en_backend *be, const en_conv_geom *g, const en_operand *x, const float *wt, void *y, en_bn *bn)
{
    EN_TRY(check(g, x), "convolution forward");
    const int64_t rows = g->n * g->oh * g->ow;
    if (rows == 0) return bn ? set_rows(be, bn, 0) : EN_OK;
    const void *w = NULL, *u = NULL;
    EN_TRY(weights_for_gemm(be, wt, g->kernel * g->kernel * g->c * g->oc, &w), "weights");
    EN_TRY(input_of(be, g, x, &u), "input of a convolution");
    const conv_walk walk = { rows, (int)g->oh, (int)g->ow, (int)g->oh, (int)g->ow, 1, 0, 0, (int)g->h, (int)g->w, g->stride, -g->pad, -g->pad, 1,
                             g->kernel, g->kernel, 0, 0, 1, g->kernel, (int)g->c, (int)g->oc };
    BY_TYPE(be, T, { const conv_store<T> to = { (T *)y, nullptr, nullptr, nullptr, nullptr, EN_ACT_NONE };
                     EN_TRY((launch_product<T, false>(be, u, w, &walk, &to)), "convolution forward"); });
    return bn ? sweep_sums(be, rows, g->oc, y, bn) : EN_OK;
}

/* dx = (conv^T(dy) + add) * act', a launch for each parity */
static en_status data_gradient(en_backend *be, const en_conv_geom *g, const en_operand *x, const void *w, const void *dy, const void *add, void *dx)
{
    const int s = g->stride, k = g->kernel, p = g->pad;
    for (int rp = 0; rp < s; rp++)
        for (int cp = 0; cp < s; cp++) {
            const int i0 = ((rp - p) % s + s) % s, j0 = ((cp - p) % s + s) % s;
            const int64_t rows = ceil_div(g->h - i0, s), columns = ceil_div(g->w - j0, s);
            if (rows <= 0 || columns <= 0) continue;
            const conv_walk walk = { g->n * rows * columns, (int)rows, (int)columns, (int)g->h, (int)g->w, s, i0, j0, (int)g->oh, (int)g->ow, 1,
                                     (i0 + p - rp) / s, (j0 + p - cp) / s, -1, (k - rp + s - 1) / s, (k - cp + s - 1) / s, rp, cp, s, k, (int)g->oc, (int)g->c };
            BY_TYPE(be, T, { const conv_store<T> to = { (T *)dx, (const T *)add, (const T *)x->y, x->bn ? x->bn->scale : nullptr,
                                                        x->bn ? x->bn->shift : nullptr, x->act };
                             EN_TRY((launch_product<T, true>(be, dy, w, &walk, &to)), "data gradient"); });
        }
    return EN_OK;
}

static en_status weight_sums(en_backend *be, const en_conv_geom *g, const void *u, const void *dy, float *dwt)
{
    const weight_cut cut = cut_weights(engine(be), g);
    scratch_carver scratch = carver_of(be);
    float *partials = scratch.take<float>(cut.parts * cut.width);
    SCRATCH_FITS(be, scratch);
    EN_REQUIRE(cut.parts <= 65535, EN_EINVAL, "a weight gradient over %lld positions", (long long)(g->n * g->oh * g->ow));
    const weight_walk walk = { g->n * g->oh * g->ow, cut.each, (int)g->h, (int)g->w, (int)g->oh, (int)g->ow, g->kernel, g->stride, g->pad, (int)g->c, (int)g->oc,
                               (int)ceil_div(g->c, TW), (int)ceil_div(g->oc, TW) };
    BY_TYPE(be, T, {
        CU_TRY(cudaFuncSetAttribute(conv_weights<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)weight_tile<T>::bytes), "shared memory");
        conv_weights<T><<<dim3((unsigned)cut.tiles, (unsigned)cut.parts), THREADS, weight_tile<T>::bytes, engine(be)->compute>>>((const T *)u, (const T *)dy,
                                                                                                                           walk, partials);
    });
    CU_LAUNCHED("weight gradient of a convolution");
    return collect_with(be, partials, cut.parts, cut.width, add_weight{ dwt });
}

en_status cuda_conv_backward(en_backend *be, const en_conv_geom *g, const en_operand *x, const float *wt, const en_grad *dy, const void *add,
                             void *dx, float *dwt, en_bn *xbn)
{
    EN_TRY(check(g, x), "convolution backward");
    EN_REQUIRE(!xbn == !x->bn, EN_EINVAL, "batch norm of x and its sums belong together");
    const int64_t rows = g->n * g->oh * g->ow;
    if (rows > 0) {
        EN_REQUIRE(be->workspace, EN_EINVAL, "the gradient of a convolution needs a workspace");
        const void *w = NULL, *u = NULL;
        void *const d = (char *)be->workspace + en_cuda_conv_dy(be->dtype, g);
        EN_TRY(weights_for_gemm(be, wt, g->kernel * g->kernel * g->c * g->oc, &w), "weights");
        EN_TRY(input_of(be, g, x, &u), "input of a convolution");
        EN_TRY(form_gradient(be, dy, rows, g->oc, d), "gradient of a convolution");
        EN_TRY(weight_sums(be, g, u, d, dwt), "weight gradient");
        EN_TRY(data_gradient(be, g, x, w, d, add, dx), "convolution backward");
    }
    return xbn ? cuda_residual_backward(be, g->n, g->h * g->w, g->c, dx, nullptr, x->y, xbn) : EN_OK;
}
