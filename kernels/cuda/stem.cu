/* stem.cu - the dense k x k convolution of the image: 3 channels in, so it is no matrix product worth a tensor core.
 *
 * What every network has, k = 3, is tiled: a block takes a rectangle of the output, brings the image below it into shared
 * memory once, as floats, normalised, zeros outside (normalised zeros are not zero, so the rim is masked, not computed),
 * and then
 *
 *     forward    a thread has 8 channels of STEM_RUN neighbouring positions: an image value read once serves up to 3 taps
 *                of 8 channels, a weight read once serves STEM_RUN positions
 *     backward   a thread has 4 channels of all 27 taps and walks over positions; dy is formed on load and read once
 *
 * Blocks are persistent, so that there are few partial sums.  Other kernels (tests, odd models) take the plain kernels at
 * the end of the file, stem_plain_*: one thread per output, everything through the caches. */
#include "passes.h"

enum { STEM_K = 3, STEM_RUN = 8, STEM_ROWS = 2 /* output rows of a tile */, STEM_COLUMNS = 128 /* and columns, at most */,
       STEM_THREADS = 256, STEM_BLOCKS = 4 /* per multiprocessor */, STEM_CHANNELS = 256, PLAIN_THREADS = 128 };

struct stem_shape {
    int n, h, w, oh, ow, oc, stride, pad;
    int columns, rows_of_tiles, columns_of_tiles, tiles, pitch;     /* columns: of a tile; pitch: floats of a staged row */
    float factor[3], offset[3];                                     /* normalised = value*factor + offset                */
};

static stem_shape shape_of(const en_conv_geom *g, const en_pixels *image)
{
    stem_shape s = {};
    s.n = (int)g->n, s.h = (int)g->h, s.w = (int)g->w, s.oh = (int)g->oh, s.ow = (int)g->ow, s.oc = (int)g->oc, s.stride = g->stride, s.pad = g->pad;
    for (int d = 0; d < 3; d++) {
        s.factor[d] = image->u8 ? 1.f / image->std[d] : 1.f;
        s.offset[d] = image->u8 ? -image->mean[d] / image->std[d] : 0.f;
    }
    return s;
}
static void cut_tiles(stem_shape *s, int columns)
{
    s->columns          = columns;
    s->rows_of_tiles    = (int)ceil_div(s->oh, STEM_ROWS);
    s->columns_of_tiles = (int)ceil_div(s->ow, columns);
    s->tiles            = s->n * s->rows_of_tiles * s->columns_of_tiles;
    s->pitch            = (int)ceil_div((columns - 1) * s->stride + STEM_K, 4) * 4;
}
static int staged_rows(int stride) { return (STEM_ROWS - 1) * stride + STEM_K; }

#ifdef EN_DEVICE
struct stem_tile { int image, row, column; };
EN_DEVICE stem_tile tile_of(const stem_shape &s, int tile)
{
    const int column = tile % s.columns_of_tiles, rest = tile / s.columns_of_tiles;
    return { rest / s.rows_of_tiles, rest % s.rows_of_tiles * STEM_ROWS, column * s.columns };
}

template <typename P> EN_DEVICE float normalised(const stem_shape &s, P value, int d)
{
    return fmaf((float)value, d == 0 ? s.factor[0] : d == 1 ? s.factor[1] : s.factor[2], d == 0 ? s.offset[0] : d == 1 ? s.offset[1] : s.offset[2]);
}

/* staged[row][d][column] (PLANAR) or [row][column][d] of the image below a tile; bytes come 4 at a time. */
template <bool PLANAR> EN_DEVICE int staged_at(const stem_shape &s, int row, int column, int d)
{
    return PLANAR ? (row * 3 + d) * s.pitch + column : (row * s.pitch + column) * 3 + d;
}
template <bool PLANAR> EN_DEVICE void stage(const stem_shape &s, const stem_tile &t, const float *image, int rows, float *staged)
{
    const int left = t.column * s.stride - s.pad, top = t.row * s.stride - s.pad, wide = s.pitch * 3;
    for (int i = (int)threadIdx.x; i < rows * wide; i += (int)blockDim.x) {
        const int row = i / wide, column = i % wide / 3, d = i % 3, r = top + row, c = left + column;
        const bool inside = r >= 0 && r < s.h && c >= 0 && c < s.w;
        staged[staged_at<PLANAR>(s, row, column, d)] = inside ? normalised(s, image[(((int64_t)t.image * s.h + r) * s.w + c) * 3 + d], d) : 0.f;
    }
}
template <bool PLANAR> EN_DEVICE void stage(const stem_shape &s, const stem_tile &t, const unsigned char *image, int rows, float *staged)
{
    const int left = t.column * s.stride - s.pad, top = t.row * s.stride - s.pad, wide = s.pitch * 3;
    const int words = wide / 4 + 2;                             /* that touch a row, wherever it starts */
    const int64_t total = (int64_t)s.n * s.h * s.w * 3;
    for (int i = (int)threadIdx.x; i < rows * words; i += (int)blockDim.x) {
        const int row = i / words, r = top + row;
        const int64_t start = (((int64_t)t.image * s.h + r) * s.w + left) * 3;         /* of the row: maybe outside */
        const int64_t at = (start & ~(int64_t)3) + i % words * 4;
        unsigned word = 0;
        if (r >= 0 && r < s.h && at >= 0 && at + 4 <= total) word = *(const unsigned *)(image + at);
        else
            for (int b = 0; b < 4; b++)
                if (r >= 0 && r < s.h && at + b >= 0 && at + b < total) word |= (unsigned)image[at + b] << 8 * b;
        for (int b = 0; b < 4; b++) {
            const int e = (int)(at + b - start);
            if (e < 0 || e >= wide) continue;
            const int column = e / 3, d = e % 3, c = left + column;
            const bool inside = r >= 0 && r < s.h && c >= 0 && c < s.w;
            staged[staged_at<PLANAR>(s, row, column, d)] = inside ? normalised(s, word >> 8 * b & 255u, d) : 0.f;
        }
    }
}

/* grid (parts), block (oc/8 channel groups, fastest) * runs of a tile.  Bytes: the image about once, y once.  Edge: positions
 * beyond the tile or the image are computed and neither stored nor summed; every thread meets every barrier. */
template <typename T, typename P, int S> static __global__ void __launch_bounds__(STEM_THREADS, 2)
stem_tiled_forward(const P *__restrict__ image, const float *__restrict__ wt, T *__restrict__ y, const float *__restrict__ centre_of,
                   double *__restrict__ partials, const stem_shape s)
{
    constexpr int IN = (STEM_RUN - 1) * S + STEM_K, ROWS = (STEM_ROWS - 1) * S + STEM_K;
    extern __shared__ __align__(16) char shared[];
    const int threads = (int)blockDim.x, me = (int)threadIdx.x, groups = s.oc / 8, group = me % groups, run = me / groups;
    const int runs = s.columns / STEM_RUN, lines = threads / groups;            /* runs of a row; threads per channel group */
    double *const kept = (double *)shared;                                      /* [16][threads] */
    float *const weights = (float *)(kept + 16 * threads), *const staged = weights + 27 * s.oc;
    for (int i = 0; i < 16; i++) kept[i * threads + me] = 0;
    for (int i = me; i < 27 * s.oc; i += threads) weights[i] = wt[i];

    for (int tile = (int)blockIdx.x; tile < s.tiles; tile += (int)gridDim.x) {
        const stem_tile t = tile_of(s, tile);
        __syncthreads();
        stage<true>(s, t, image, ROWS, staged);
        __syncthreads();
        const int row = run / runs, column = run % runs * STEM_RUN;
        float acc[STEM_RUN][8] = {};
        if (row < STEM_ROWS) {
#pragma unroll 1
            for (int ad = 0; ad < 9; ad++) {
                const int a = ad / 3, d = ad % 3;
                const float *const in = staged + staged_at<true>(s, row * S + a, column * S, d);
                float v[IN];
#pragma unroll
                for (int i = 0; i < IN; i++) v[i] = in[i];
#pragma unroll
                for (int b = 0; b < STEM_K; b++) {
                    float w[8];
                    load8(weights + ((a * STEM_K + b) * 3 + d) * s.oc + group * 8, w);
#pragma unroll
                    for (int p = 0; p < STEM_RUN; p++)
#pragma unroll
                        for (int e = 0; e < 8; e++) acc[p][e] = fmaf(v[p * S + b], w[e], acc[p][e]);
                }
            }
            const int i = t.row + row, j = t.column + column;
            float centre[8] = {}, sum[8] = {}, sum2[8] = {};
            if (centre_of) load8(centre_of + group * 8, centre);
            T *const out = y + (((int64_t)t.image * s.oh + i) * s.ow + j) * s.oc + group * 8;
#pragma unroll
            for (int p = 0; p < STEM_RUN; p++)
                if (i < s.oh && j + p < s.ow) {
                    store8(out + (int64_t)p * s.oc, acc[p]);
#pragma unroll
                    for (int e = 0; e < 8; e++) {
                        const float v = acc[p][e] - centre[e];
                        sum[e] += v;
                        sum2[e] = fmaf(v, v, sum2[e]);
                    }
                }
#pragma unroll
            for (int e = 0; e < 8; e++) kept[e * threads + me] += (double)sum[e], kept[(8 + e) * threads + me] += (double)sum2[e];
        }
    }
    if (!partials) return;
    __syncthreads();
    for (int i = me; i < 2 * s.oc; i += threads) {
        const int which = i / s.oc, channel = i % s.oc;
        const double *from = kept + (which * 8 + channel % 8) * threads + channel / 8;
        double sum = 0;
        for (int line = 0; line < lines; line++) sum += from[line * groups];
        partials[(int64_t)blockIdx.x * 2 * s.oc + i] = sum;
    }
}

/* sums[27*oc] (double, shared) += what all threads have gathered, lines in order; gathered = 0.  `room`: 3*oc floats a line. */
EN_DEVICE void gather(float gathered[27][4], double *sums, float *room, int quads, int lines, int quad, int line, int oc)
{
#pragma unroll
    for (int first = 0; first < 27; first += 3) {
        __syncthreads();
        if (line < lines)
#pragma unroll
            for (int k = 0; k < 3; k++)
#pragma unroll
                for (int e = 0; e < 4; e++) room[(line * 3 + k) * oc + quad * 4 + e] = gathered[first + k][e], gathered[first + k][e] = 0;
        __syncthreads();
        for (int i = (int)threadIdx.x; i < 3 * oc; i += (int)blockDim.x) {
            double sum = sums[first * oc + i];
            for (int l = 0; l < lines; l++) sum += (double)room[l * 3 * oc + i];
            sums[first * oc + i] = sum;
        }
    }
}

EN_DEVICE void load4(const float *p, float v[4]) { const float4 a = *(const float4 *)p; v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w; }
EN_DEVICE void load4(const bf16 *p, float v[4])
{
    const uint2 a = *(const uint2 *)p;
    v[0] = __uint_as_float(a.x << 16), v[1] = __uint_as_float(a.x & 0xffff0000u), v[2] = __uint_as_float(a.y << 16), v[3] = __uint_as_float(a.y & 0xffff0000u);
}

/* partials[part][27*oc]: grid (parts), block (oc/4 quads of channels, fastest) * lines.  Bytes: dz, y once, the image about once.
 * Edge: positions outside have dy = 0. */
template <typename T, typename P, int S> static __global__ void __launch_bounds__(STEM_THREADS, 1)
stem_tiled_gradient(const P *__restrict__ image, const T *__restrict__ dz, const float *__restrict__ drop, const T *__restrict__ y, const float *__restrict__ ga,
                    const float *__restrict__ gb, const float *__restrict__ gc, float *__restrict__ partials, const stem_shape s)
{
    constexpr int ROWS = (STEM_ROWS - 1) * S + STEM_K;
    extern __shared__ __align__(16) char shared[];
    const int quads = s.oc / 4, lines = (int)blockDim.x / quads, quad = (int)threadIdx.x % quads, line = (int)threadIdx.x / quads, channel = quad * 4;
    double *const sums = (double *)shared;                                      /* [27*oc] */
    float *const room = (float *)(sums + 27 * s.oc), *const staged = room + lines * 3 * s.oc;
    for (int i = (int)threadIdx.x; i < 27 * s.oc; i += (int)blockDim.x) sums[i] = 0;
    float a4[4], b4[4], c4[4], gathered[27][4] = {};
    load4(ga + channel, a4), load4(gb + channel, b4), load4(gc + channel, c4);
    int count = 0;                                                              /* positions in `gathered`, same for all threads */
    const int per_tile = (STEM_ROWS * s.columns + lines - 1) / lines;
    for (int tile = (int)blockIdx.x; tile < s.tiles; tile += (int)gridDim.x) {
        const stem_tile t = tile_of(s, tile);
        if (count + per_tile > SUM_RUN) gather(gathered, sums, room, quads, lines, quad, line, s.oc), count = 0;
        count += per_tile;
        __syncthreads();
        stage<false>(s, t, image, ROWS, staged);
        __syncthreads();
        const float kept = drop ? drop[t.image] : 1.f;
        for (int at = line; line < lines && at < STEM_ROWS * s.columns; at += lines) {
            const int row = at / s.columns, column = at % s.columns, i = t.row + row, j = t.column + column;
            if (i >= s.oh || j >= s.ow) continue;
            float z[4], v[4];
            const int64_t from = (((int64_t)t.image * s.oh + i) * s.ow + j) * s.oc + channel;
            load4(dz + from, z), load4(y + from, v);
#pragma unroll
            for (int e = 0; e < 4; e++) v[e] = fmaf(a4[e], z[e] * kept, fmaf(b4[e], v[e], c4[e]));
#pragma unroll
            for (int a = 0; a < STEM_K; a++) {
                const float *const in = staged + staged_at<false>(s, row * S + a, column * S, 0);
#pragma unroll
                for (int k = 0; k < 9; k++)
#pragma unroll
                    for (int e = 0; e < 4; e++) gathered[a * 9 + k][e] = fmaf(in[k], v[e], gathered[a * 9 + k][e]);
            }
        }
    }
    gather(gathered, sums, room, quads, lines, quad, line, s.oc);
    __syncthreads();
    for (int i = (int)threadIdx.x; i < 27 * s.oc; i += (int)blockDim.x) partials[(int64_t)blockIdx.x * 27 * s.oc + i] = (float)sums[i];
}

/* ---- any kernel --------------------------------------------------------------------------------------------------------------- */

/* grid-stride over positions times oc/8.  Bytes: image and weights through the caches, y once. */
template <typename T, typename P> static __global__ void __launch_bounds__(PLAIN_THREADS, 4)
stem_plain_forward(const P *__restrict__ image, const float *__restrict__ wt, T *__restrict__ y, int k, const stem_shape s)
{
    const int64_t groups = s.oc / 8, total = (int64_t)s.n * s.oh * s.ow * groups;
    for (int64_t v = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; v < total; v += (int64_t)gridDim.x * blockDim.x) {
        const int64_t channel = v % groups * 8, at = v / groups, n = at / ((int64_t)s.oh * s.ow);
        const int top = (int)(at / s.ow % s.oh) * s.stride - s.pad, left = (int)(at % s.ow) * s.stride - s.pad;
        float sum[8] = {};
        for (int tap = 0; tap < k * k; tap++) {
            const int i = top + tap / k, j = left + tap % k;
            if (i < 0 || i >= s.h || j < 0 || j >= s.w) continue;
            for (int d = 0; d < 3; d++) {
                const float u = normalised(s, image[((n * s.h + i) * s.w + j) * 3 + d], d);
                float w[8];
                load8(wt + (int64_t)(tap * 3 + d) * s.oc + channel, w);
#pragma unroll
                for (int e = 0; e < 8; e++) sum[e] = fmaf(u, w[e], sum[e]);
            }
        }
        store8(y + at * s.oc + channel, sum);
    }
}

/* partials[part][k*k*3*oc]: grid (k*k*3*oc/8 / PLAIN_THREADS, parts): a thread is 8 channels of one weight row and walks over the
 * positions of its part. */
template <typename T, typename P> static __global__ void __launch_bounds__(PLAIN_THREADS, 4)
stem_plain_gradient(const P *__restrict__ image, const T *__restrict__ dz, const float *__restrict__ drop, const T *__restrict__ y, const float *__restrict__ ga,
                    const float *__restrict__ gb, const float *__restrict__ gc, float *__restrict__ partials, int k, int64_t per_part, const stem_shape s)
{
    const int64_t groups = s.oc / 8, v = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (v >= groups * k * k * 3) return;                        /* no barrier follows */
    const int64_t channel = v % groups * 8, all = (int64_t)s.n * s.oh * s.ow, first = blockIdx.y * per_part, end = first + per_part < all ? first + per_part : all;
    const int row = (int)(v / groups), d = row % 3, a = row / 3 / k, b = row / 3 % k;
    double sum[8] = {};
    for (int64_t start = first; start < end; start += SUM_RUN) {
        float run[8] = {};
        for (int64_t at = start; at < start + SUM_RUN && at < end; at++) {
            const int64_t n = at / ((int64_t)s.oh * s.ow);
            const int i = (int)(at / s.ow % s.oh) * s.stride - s.pad + a, j = (int)(at % s.ow) * s.stride - s.pad + b;
            if (i < 0 || i >= s.h || j < 0 || j >= s.w) continue;
            const float u = normalised(s, image[((n * s.h + i) * s.w + j) * 3 + d], d), kept = drop ? drop[n] : 1.f;
            for (int e = 0; e < 8; e++) {
                const int64_t from = at * s.oc + channel + e;
                const float dy = fmaf(ga[channel + e], as_float(dz[from]) * kept, fmaf(gb[channel + e], as_float(y[from]), gc[channel + e]));
                run[e] = fmaf(u, dy, run[e]);
            }
        }
        for (int e = 0; e < 8; e++) sum[e] += (double)run[e];
    }
    for (int e = 0; e < 8; e++) partials[((int64_t)blockIdx.y * k * k * 3 + row) * s.oc + channel + e] = (float)sum[e];
}
#endif

/* ---- the passes ---------------------------------------------------------------------------------------------------------------- */

static en_status check_stem(const en_conv_geom *g)
{
    EN_REQUIRE(g->c == 3, EN_EINVAL, "the stem reads 3 channels, not %lld", (long long)g->c);
    CU_CHANNELS(g->oc);
    EN_REQUIRE(g->kernel >= 1 && g->kernel <= 16 && g->stride >= 1 && g->pad >= 0, EN_EINVAL, "stem kernel %d, stride %d, pad %d", g->kernel, g->stride, g->pad);
    EN_REQUIRE(g->n * g->oh * g->ow < INT32_MAX && g->h < 1 << 24 && g->w < 1 << 24, EN_EINVAL, "%lld images of %lld x %lld are too many for one call",
               (long long)g->n, (long long)g->h, (long long)g->w);
    return EN_OK;
}
static bool tiled(const en_conv_geom *g) { return g->kernel == STEM_K && (g->stride == 1 || g->stride == 2) && g->oc <= STEM_CHANNELS; }

static int forward_columns(const en_conv_geom *g)       /* of a tile: as many as the threads of a block can take */
{
    const int64_t runs = STEM_THREADS / (g->oc / 8) / STEM_ROWS;
    return (int)max64(1, min64(min64(runs, STEM_COLUMNS / STEM_RUN), ceil_div(g->ow, STEM_RUN))) * STEM_RUN;
}
static int64_t most_parts(const cuda_engine *e) { return (int64_t)e->sms * STEM_BLOCKS; }

struct stem_plain { int64_t blocks, parts, per_part; };
static stem_plain cut_plain(const cuda_engine *e, const en_conv_geom *g)
{
    const int64_t rows = g->n * g->oh * g->ow, blocks = ceil_div((int64_t)g->kernel * g->kernel * 3 * (g->oc / 8), PLAIN_THREADS);
    const int64_t per_part = max64(16, ceil_div(rows, most_parts(e)));
    return { blocks, ceil_div(rows, per_part), per_part };
}

size_t scratch_of_stem(const cuda_engine *e, const en_conv_geom *g)
{
    if (g->kernel == 0 || g->c != 3) return 0;
    const size_t parts = (size_t)most_parts(e), sums = parts * 2 * (size_t)g->oc * sizeof(double);
    const size_t weights = parts * (size_t)(g->kernel * g->kernel * 3 * g->oc) * sizeof(float);
    return (sums > weights ? sums : weights) + 256;
}

/* Statements for the type of the pixels, as BY_TYPE for that of the activations. */
#define BY_PIXEL(image, P, ...) do { if ((image)->u8) { using P = unsigned char; __VA_ARGS__; } else { using P = float; __VA_ARGS__; } } while (0)

template <typename K> static en_status allow_shared(const cuda_engine *e, K *kernel, size_t bytes)
{
    EN_REQUIRE(bytes <= e->shared_max, EN_ENOTSUP, "the stem needs %zu bytes of shared memory, a block may have %zu", bytes, e->shared_max);
    CU_TRY(cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes), "shared memory of the stem");
    return EN_OK;
}

template <typename T, typename P> static en_status tiled_forward(en_backend *be, const en_conv_geom *g, const en_pixels *image, const float *wt, void *y, en_bn *bn)
{
    cuda_engine *e = engine(be);
    stem_shape s = shape_of(g, image);
    cut_tiles(&s, forward_columns(g));
    const int threads = (int)ceil_div(s.oc / 8 * (s.columns / STEM_RUN) * STEM_ROWS, 32) * 32, most = s.oc / 8 * (threads / (s.oc / 8));
    const int64_t parts = min64(s.tiles, most_parts(e));
    const size_t bytes = (size_t)(16 * threads) * sizeof(double) + (size_t)(27 * s.oc + staged_rows(s.stride) * 3 * s.pitch) * sizeof(float);
    scratch_carver scratch = carver_of(be);
    double *partials = bn ? scratch.take<double>(parts * 2 * s.oc) : nullptr;
    SCRATCH_FITS(be, scratch);
    (void)most;
    auto *kernel = s.stride == 1 ? stem_tiled_forward<T, P, 1> : stem_tiled_forward<T, P, 2>;
    EN_TRY(allow_shared(e, kernel, bytes), "stem forward");
    kernel<<<(unsigned)parts, (unsigned)threads, bytes, e->compute>>>((const P *)image->data, wt, (T *)y, bn ? bn->running_mean : nullptr, partials, s);
    CU_LAUNCHED("stem forward");
    return bn ? collect_rows(be, partials, parts, bn, g->n * g->oh * g->ow) : EN_OK;
}

en_status cuda_stem_forward(en_backend *be, const en_conv_geom *g, const en_pixels *image, const float *wt, void *y, en_bn *bn)
{
    EN_TRY(check_stem(g), "stem forward");
    cuda_engine *e = engine(be);
    const int64_t rows = g->n * g->oh * g->ow;
    if (rows == 0) return bn ? set_rows(be, bn, 0) : EN_OK;
    if (tiled(g)) {
        BY_TYPE(be, T, BY_PIXEL(image, P, return (tiled_forward<T, P>(be, g, image, wt, y, bn))));
    }
    const stem_shape s = shape_of(g, image);
    const unsigned blocks = (unsigned)max64(1, min64(ceil_div(rows * (g->oc / 8), PLAIN_THREADS), (int64_t)e->sms * 64));
    BY_TYPE(be, T, BY_PIXEL(image, P,
            stem_plain_forward<T, P><<<blocks, PLAIN_THREADS, 0, e->compute>>>((const P *)image->data, wt, (T *)y, g->kernel, s)));
    CU_LAUNCHED("stem forward, plain");
    return bn ? sweep_sums(be, rows, g->oc, y, bn) : EN_OK;
}

template <typename T, typename P> static en_status tiled_gradient(en_backend *be, const en_conv_geom *g, const en_pixels *image, const en_grad *dy, float *dwt)
{
    cuda_engine *e = engine(be);
    stem_shape s = shape_of(g, image);
    cut_tiles(&s, (int)min64(STEM_COLUMNS, s.ow));
    const int lines = STEM_THREADS / (s.oc / 4), threads = STEM_THREADS;
    const int64_t parts = min64(s.tiles, most_parts(e)), width = 27 * g->oc;
    const size_t bytes = (size_t)width * sizeof(double) + (size_t)(lines * 3 * s.oc + staged_rows(s.stride) * 3 * s.pitch) * sizeof(float);
    scratch_carver scratch = carver_of(be);
    float *partials = scratch.take<float>(parts * width);
    SCRATCH_FITS(be, scratch);
    auto *kernel = s.stride == 1 ? stem_tiled_gradient<T, P, 1> : stem_tiled_gradient<T, P, 2>;
    EN_TRY(allow_shared(e, kernel, bytes), "stem backward");
    kernel<<<(unsigned)parts, (unsigned)threads, bytes, e->compute>>>((const P *)image->data, (const T *)dy->stored, dy->drop, (const T *)dy->y, dy->bn->ga,
                                                                     dy->bn->gb, dy->bn->gc, partials, s);
    CU_LAUNCHED("stem backward");
    return collect_add(be, partials, parts, width, dwt);
}

en_status cuda_stem_backward(en_backend *be, const en_conv_geom *g, const en_pixels *image, const en_grad *dy, float *dwt)
{
    EN_TRY(check_stem(g), "stem backward");
    EN_REQUIRE(dy->stored && !dy->gated && dy->bn, EN_EINVAL, "the gradient of the stem is stored");
    cuda_engine *e = engine(be);
    const int64_t rows = g->n * g->oh * g->ow, width = (int64_t)g->kernel * g->kernel * 3 * g->oc;
    if (rows == 0) return EN_OK;
    if (tiled(g)) {
        BY_TYPE(be, T, BY_PIXEL(image, P, return (tiled_gradient<T, P>(be, g, image, dy, dwt))));
    }
    const stem_shape s = shape_of(g, image);
    const stem_plain cut = cut_plain(e, g);
    scratch_carver scratch = carver_of(be);
    float *partials = scratch.take<float>(cut.parts * width);
    SCRATCH_FITS(be, scratch);
    const dim3 grid((unsigned)cut.blocks, (unsigned)cut.parts);
    BY_TYPE(be, T, BY_PIXEL(image, P,
            stem_plain_gradient<T, P><<<grid, PLAIN_THREADS, 0, e->compute>>>((const P *)image->data, (const T *)dy->stored, dy->drop, (const T *)dy->y,
                                                                             dy->bn->ga, dy->bn->gb, dy->bn->gc, partials, g->kernel, cut.per_part, s)));
    CU_LAUNCHED("stem backward, plain");
    return collect_add(be, partials, cut.parts, width, dwt);
}
