/* tall.cu - x^T y where both have very many rows and few columns: weight gradients and Gram matrices.
 *
 * The output is a few thousand numbers, the inputs hundreds of megabytes: rows are cut into parts, a block takes one part and
 * one tile of the output, keeps the tile in registers and streams its rows through shared memory, so that each input is read
 * from DRAM once (tiles of one part stand next to each other in the grid and share their rows in L2).
 *
 *     rows r of x, y ──cp.async, STAGES deep──▶ shared: x[r][TI], y[r][TJ] ──▶ registers: sum_r x[r][i] y[r][j]
 *
 * bf16: tensor cores (mma.h), which want both operands transposed: ldmatrix does that on the way.  f32: fused multiply-adds.
 * A part has at most ROWS_AT_MOST rows: sums of tensor cores are truncated, not rounded, and a relative 2^-24 a step must
 * not pile up over millions of rows.  Parts are added in double, in order (tall.cuh): same shape, same bits.
 *
 * Which side is the narrow one is the caller's choice; with `sums` the column sums of x come along (a product with ones). */
#include "mma.h"
#include "tall.cuh"

#include <cuda_pipeline.h>

namespace {

enum { TJ = 128, ROWS_AT_MOST = 4096, ROWS_AT_LEAST = 256, OWN_AT_MOST = 128 };

/* TI columns of x; TI*4 threads for the narrow tile, 256 for the others. */
template <typename T, int TI> struct tile {
    static constexpr int threads = TI == 32 ? 128 : 256;
    static constexpr int steps = (TI == 32 ? 64 : 32) / (sizeof(T) == 4 ? 2 : 1);      /* rows of a stage */
    static constexpr int pad = 16 / sizeof(T), si = TI + pad, sj = TJ + pad;           /* elements between rows: no bank twice */
    static constexpr int stages = TI == 32 ? 3 : 4, stage = steps * (si + sj);
    static constexpr size_t bytes = (size_t)stages * stage * sizeof(T);
    static constexpr int per_sm = TI == 32 ? 3 : TI == 128 && sizeof(T) == 4 ? 1 : 2;  /* f32, 128: 64 sums a thread, no spills */
};

/* Rows [row, row + steps) of columns [c0, c0 + width) into shared memory; rows from `end` on are zero, columns beyond `width` are
 * left as they are: what they hold reaches only outputs that nobody keeps. */
template <typename T, int COLS, int STRIDE, int STEPS, int THREADS>
EN_DEVICE void load_rows(T *to, const T *from, int64_t c, int64_t c0, int width, int64_t row, int64_t end)
{
    constexpr int per = 16 / sizeof(T), chunks = COLS / per;
#pragma unroll
    for (int k = 0; k < STEPS * chunks / THREADS; k++) {
        const int at = k * THREADS + (int)threadIdx.x, r = at / chunks, q = at % chunks * per;
        const bool there = row + r < end;
        if (q < width) __pipeline_memcpy_async(to + r * STRIDE + q, from + (there ? (row + r) * c : 0) + c0 + q, 16, there ? 0 : 16);
    }
}

/* The products of one stage: bf16, a warp owns `blocks` x 4 tiles of 16 x 8. */
template <int TI> struct tensor_tile {
    using shape = tile<bf16, TI>;
    static constexpr int blocks = TI / (shape::threads / 128) / 16;
    float acc[blocks][4][4], ones[blocks][4];
    int i0, j0, lane;

    EN_DEVICE_MEMBER void begin()
    {
        const int warp = (int)threadIdx.x / 32;
        lane = (int)threadIdx.x % 32, i0 = warp / 4 * (16 * blocks), j0 = warp % 4 * 32;
#pragma unroll
        for (int a = 0; a < blocks; a++)
#pragma unroll
            for (int q = 0; q < 4; q++) {
                ones[a][q] = 0.f;
#pragma unroll
                for (int b = 0; b < 4; b++) acc[a][b][q] = 0.f;
            }
    }
    template <bool SUMS> EN_DEVICE_MEMBER void stage(const bf16 *x, const bf16 *y, int wi, int wj)
    {
        const unsigned one[2] = { 0x3f803f80u, 0x3f803f80u };
        if (i0 >= wi || (j0 >= wj && !(SUMS && j0 == 0))) return;              /* a whole warp, and no barrier inside */
#pragma unroll
        for (int k = 0; k < shape::steps; k += 16) {
            unsigned b[4][2];
#pragma unroll
            for (int p = 0; p < 2; p++) {
                unsigned r[4];
                load_matrices_transposed(r, y + (k + lane / 8 % 2 * 8 + lane % 8) * shape::sj + j0 + 16 * p + lane / 16 * 8);
                b[2 * p][0] = r[0], b[2 * p][1] = r[1], b[2 * p + 1][0] = r[2], b[2 * p + 1][1] = r[3];
            }
#pragma unroll
            for (int m = 0; m < blocks; m++) {
                if (i0 + 16 * m >= wi) break;
                unsigned a[4];
                load_matrices_transposed(a, x + (k + lane / 16 * 8 + lane % 8) * shape::si + i0 + 16 * m + lane / 8 % 2 * 8);
#pragma unroll
                for (int n = 0; n < 4; n++)
                    if (j0 + 8 * n < wj) multiply_add(acc[m][n], a, b[n]);
                if (SUMS && j0 == 0) multiply_add(ones[m], a, one);
            }
        }
    }
    /* then(i, j, two neighbours of a row); sum(i, column sum) */
    template <bool SUMS, typename F, typename G> EN_DEVICE_MEMBER void end(F then, G sum)
    {
#pragma unroll
        for (int m = 0; m < blocks; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int i = i0 + 16 * m + 8 * h + lane / 4;
#pragma unroll
                for (int n = 0; n < 4; n++) then(i, j0 + 8 * n + lane % 4 * 2, acc[m][n][2 * h], acc[m][n][2 * h + 1]);
                if (SUMS && j0 == 0 && lane % 4 == 0) sum(i, ones[m][2 * h]);
            }
    }
};

/* f32: a thread owns `own` rows times 2 x 4 columns, 64 columns apart. */
template <int TI> struct float_tile {
    using shape = tile<float, TI>;
    static constexpr int own = TI * TJ / shape::threads / 8;
    float acc[own][8], ones[own];
    int i0, j0;

    EN_DEVICE_MEMBER void begin()
    {
        i0 = (int)threadIdx.x / 16 * own, j0 = (int)threadIdx.x % 16 * 4;
#pragma unroll
        for (int i = 0; i < own; i++) {
            ones[i] = 0.f;
#pragma unroll
            for (int j = 0; j < 8; j++) acc[i][j] = 0.f;
        }
    }
    template <bool SUMS> EN_DEVICE_MEMBER void stage(const float *x, const float *y, int wi, int wj)
    {
        if (i0 >= wi || (j0 >= wj && !(SUMS && j0 == 0))) return;
#pragma unroll 4
        for (int k = 0; k < shape::steps; k++) {
            float a[own], b[8];
#pragma unroll
            for (int i = 0; i < own; i += 4) {
                const float4 v = *(const float4 *)(x + k * shape::si + i0 + i);
                a[i] = v.x, a[i + 1] = v.y, a[i + 2] = v.z, a[i + 3] = v.w;
            }
            const float4 l = *(const float4 *)(y + k * shape::sj + j0), r = *(const float4 *)(y + k * shape::sj + j0 + 64);
            b[0] = l.x, b[1] = l.y, b[2] = l.z, b[3] = l.w, b[4] = r.x, b[5] = r.y, b[6] = r.z, b[7] = r.w;
#pragma unroll
            for (int i = 0; i < own; i++) {
#pragma unroll
                for (int j = 0; j < 8; j++) acc[i][j] = fmaf(a[i], b[j], acc[i][j]);
                if (SUMS) ones[i] += a[i];
            }
        }
    }
    template <bool SUMS, typename F, typename G> EN_DEVICE_MEMBER void end(F then, G sum)
    {
#pragma unroll
        for (int i = 0; i < own; i++) {
#pragma unroll
            for (int j = 0; j < 8; j += 2) then(i0 + i, j0 + j % 4 + j / 4 * 64, acc[i][j], acc[i][j + 1]);
            if (SUMS && j0 == 0) sum(i0 + i, ones[i]);
        }
    }
};
template <typename T, int TI> struct tile_of { using type = tensor_tile<TI>; };
template <int TI> struct tile_of<float, TI> { using type = float_tile<TI>; };

} // namespace

/* grid (tiles of the output, parts), block 128 (TI 32) or 256: tiles of a part run side by side.  Bytes: x and y once from
 * DRAM, parts*width*4 written; in flight STAGES-1 stages of 7 to 20 KB a block, 2 to 3 blocks an SM.  Edge: the last tile of
 * either side and the last rows are narrower; nobody leaves before the last barrier. */
template <typename T, int TI, bool SUMS>
static __global__ void __launch_bounds__(tile<T, TI>::threads, tile<T, TI>::per_sm)
tall(const T *__restrict__ x, const T *__restrict__ y, tall_shape s, int tiles_j, int wide_i, int wide_j, float *partials)
{
    using shape = tile<T, TI>;
    extern __shared__ __align__(16) unsigned char shared[];
    T *ring = (T *)shared;
    const int64_t ci0 = (int64_t)(blockIdx.x / (unsigned)tiles_j) * wide_i, cj0 = (int64_t)(blockIdx.x % (unsigned)tiles_j) * wide_j;
    const int wi = s.ci - ci0 < wide_i ? (int)(s.ci - ci0) : wide_i, wj = s.co - cj0 < wide_j ? (int)(s.co - cj0) : wide_j;
    const int64_t first = (int64_t)blockIdx.y * s.each, end = first + s.each < s.rows ? first + s.each : s.rows;
    const int stages = (int)((end - first + shape::steps - 1) / shape::steps);
    const auto load = [&](int k) {
        if (k < stages) {
            T *to = ring + k % shape::stages * shape::stage;
            load_rows<T, TI, shape::si, shape::steps, shape::threads>(to, x, s.ci, ci0, wi, first + (int64_t)k * shape::steps, end);
            load_rows<T, TJ, shape::sj, shape::steps, shape::threads>(to + shape::steps * shape::si, y, s.co, cj0, wj,
                                                                      first + (int64_t)k * shape::steps, end);
        }
        __pipeline_commit();
    };
    typename tile_of<T, TI>::type mine;
    mine.begin();
    for (int k = 0; k < shape::stages - 1; k++) load(k);
    for (int k = 0; k < stages; k++) {
        __pipeline_wait_prior(shape::stages - 2);
        __syncthreads();
        load(k + shape::stages - 1);                                   /* into what everybody has left behind */
        const T *now = ring + k % shape::stages * shape::stage;
        mine.template stage<SUMS>(now, now + shape::steps * shape::si, wi, wj);
    }
    float *out = partials + (int64_t)blockIdx.y * s.width;
    mine.template end<SUMS>(
        [&](int i, int j, float a, float b) {
            if (i < wi && j < wj) *(float2 *)(out + (ci0 + i) * s.co + cj0 + j) = make_float2(a, b);
        },
        [&](int i, float sum) {
            if (i < wi && cj0 == 0) out[s.ci * s.co + ci0 + i] = sum;
        });
}

/* Columns in equal tiles of at most `most`, a multiple of 8. */
static int tile_width(int64_t c, int most)
{
    const int64_t tiles = ceil_div(c, most);
    return (int)(ceil_div(ceil_div(c, tiles), 8) * 8);
}

tall_shape tall_shape_of(const cuda_engine *e, int64_t rows, int64_t ci, int64_t co, bool sums)
{
    tall_shape s = {};
    s.rows = rows, s.ci = ci, s.co = co, s.sums = sums, s.width = ci * co + (sums ? ci : 0);
    if (rows <= 0) return s;
    const int64_t tiles = ceil_div(ci, 128) * ceil_div(co, TJ);
    s.parts = max64(ceil_div(rows, ROWS_AT_MOST), min64(ceil_div(2 * e->sms, tiles), ceil_div(rows, ROWS_AT_LEAST)));
    s.each = ceil_div(ceil_div(rows, s.parts), 64) * 64;               /* never more parts than were counted */
    return s;
}

template <typename T, int TI, bool SUMS>
static en_status launch(en_backend *be, const tall_shape &s, const void *x, const void *y, float *partials)
{
    using shape = tile<T, TI>;
    const int wide_i = tile_width(s.ci, TI), wide_j = tile_width(s.co, TJ);
    const int64_t tiles_j = ceil_div(s.co, wide_j), tiles = ceil_div(s.ci, wide_i) * tiles_j;
    CU_TRY(cudaFuncSetAttribute(tall<T, TI, SUMS>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shape::bytes), "shared memory of x^T y");
    tall<T, TI, SUMS><<<dim3((unsigned)tiles, (unsigned)s.parts), shape::threads, shape::bytes, engine(be)->compute>>>(
        (const T *)x, (const T *)y, s, (int)tiles_j, wide_i, wide_j, partials);
    CU_LAUNCHED("x^T y of (%lld,%lld) and (%lld,%lld)", (long long)s.rows, (long long)s.ci, (long long)s.rows, (long long)s.co);
    return EN_OK;
}

template <typename T, bool SUMS> static en_status launch_by_width(en_backend *be, const tall_shape &s, const void *x, const void *y, float *partials)
{
    const int wide = tile_width(s.ci, 128);
    return wide <= 32 ? launch<T, 32, SUMS>(be, s, x, y, partials)
         : wide <= 64 ? launch<T, 64, SUMS>(be, s, x, y, partials) : launch<T, 128, SUMS>(be, s, x, y, partials);
}

en_status tall_product(en_backend *be, const tall_shape &s, const void *x, const void *y, float *partials)
{
    EN_REQUIRE(s.rows > 0 && s.parts <= 65535, EN_EINVAL, "x^T y over %lld rows", (long long)s.rows);
    BY_TYPE(be, T, return s.sums ? launch_by_width<T, true>(be, s, x, y, partials) : launch_by_width<T, false>(be, s, x, y, partials));
    return EN_OK;
}

/* ---- weight gradients ------------------------------------------------------------------------------------------------------- */

namespace {
struct add_to {
    float *out;
    __device__ void operator()(int64_t i, double sum) const { out[i] += (float)sum; }
};
struct add_transposed {                          /* parts hold (co, ci), out is (ci, co) */
    float *out;
    int64_t ci, co;
    __device__ void operator()(int64_t i, double sum) const { out[i % ci * co + i / ci] += (float)sum; }
};
} // namespace

bool weight_gradient_by_parts(int64_t ci, int64_t co) { return min64(ci, co) <= OWN_AT_MOST; }

size_t weight_gradient_scratch(const cuda_engine *e, int64_t rows, int64_t ci, int64_t co)
{
    scratch_carver s = {};
    if (weight_gradient_by_parts(ci, co)) s.take<float>(tall_floats(tall_shape_of(e, rows, min64(ci, co), max64(ci, co), false)));
    return s.used;
}

en_status weight_gradient(en_backend *be, scratch_carver *scratch, int64_t rows, int64_t ci, int64_t co, const void *x, const void *dy, float *dwt)
{
    if (rows <= 0) return EN_OK;
    if (!weight_gradient_by_parts(ci, co)) {
        gemm_call g = {};
        g.ta = true, g.m = ci, g.n = co, g.k = rows, g.a = x, g.b = dy, g.d = dwt, g.beta = 1.f;
        g.a_type = g.b_type = be->dtype, g.d_type = EN_F32;
        return gemm(be, &g);
    }
    const tall_shape s = ci <= co ? tall_shape_of(engine(be), rows, ci, co, false) : tall_shape_of(engine(be), rows, co, ci, false);
    float *partials = scratch->take<float>(tall_floats(s));
    SCRATCH_FITS(be, *scratch);
    EN_TRY(tall_product(be, s, ci <= co ? x : dy, ci <= co ? dy : x, partials), "weight gradient");
    return ci <= co ? collect_with(be, partials, s.parts, s.width, add_to{ dwt })
                    : collect_with(be, partials, s.parts, s.width, add_transposed{ dwt, ci, co });
}
