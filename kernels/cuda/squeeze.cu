/* squeeze.cu - squeeze-and-excitation's small layers, forward and backward, on (n, c) and (n, q) floats.
 *
 *     pooled = sums/hw    hidden = wr pooled + br    gate = sigmoid(we^T silu(hidden) + be)              wr, we (q, c)
 *     dpre = dgate*gate*(1-gate)    dhid = silu'(hidden)*(we dpre)    dp = wr^T dhid
 *     dwr += dhid pooled^T    dbr += dhid    dwe += silu(hidden) dpre^T    dbe += dpre                    (sums over images)
 *
 * Back and forth are the same two products: rows of a (q, c) matrix with a vector of c, and its columns with one of q.  A block
 * takes 8 images, so that a weight is read n/8 times and not n times (they are megabytes in the wide blocks of B7). */
#include "squeeze.h"

enum { CHUNK = 512, COLUMN_BLOCK = 128, HIDDEN_CHUNK = 64, OUTER_CHANNELS = 32, OUTER_LANES = 8 };

struct squeeze_job {
    int64_t n, c, q, padded;                /* padded: q up to a multiple of 8, the row of dhid and acted */
    const float *sums; int64_t kinds;
    float inv_hw;
    en_se se;
    squeeze_scratch work;
    float *dp; double *norm;
};

/* grid (ceil(n/8), ceil(q/8)), block 256: a warp has one hidden value of 8 images, its lanes the channels, 4 at a time.
 * Forward from sums over wr to hidden, backward from dgate over we to dhid.  The blocks of the first 8 hidden values also
 * store what they made of the input (pooled, dpre).  Bytes: q*c weights n/8 times, n*c sums q/8 times, from L2. */
template <bool BACK> static __global__ void __launch_bounds__(256) along_rows(squeeze_job k)
{
    __shared__ __align__(16) float in[SQUEEZE_IMAGES][CHUNK];
    const int lane = (int)threadIdx.x % 32;
    const int64_t image0 = (int64_t)blockIdx.x * SQUEEZE_IMAGES, j = (int64_t)blockIdx.y * SQUEEZE_HIDDEN + threadIdx.x / 32;
    const float *row = (BACK ? k.se.we : k.se.wr) + j * k.c;
    float sum[SQUEEZE_IMAGES];
#pragma unroll
    for (int m = 0; m < SQUEEZE_IMAGES; m++) sum[m] = 0;
    for (int64_t c0 = 0; c0 < k.c; c0 += CHUNK) {
#pragma unroll
        for (int at = (int)threadIdx.x; at < SQUEEZE_IMAGES * CHUNK / 4; at += 256) {
            const int m = at / (CHUNK / 4), i = at % (CHUNK / 4) * 4;
            const int64_t image = image0 + m, place = image * k.c + c0 + i;
            float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
            if (image < k.n && c0 + i < k.c) {
                v = *(const float4 *)(k.sums + image * k.kinds * k.c + c0 + i);
                if (BACK) {
                    const float4 g = *(const float4 *)(k.se.gate + place);
                    v = make_float4(v.x * g.x * (1.f - g.x), v.y * g.y * (1.f - g.y), v.z * g.z * (1.f - g.z), v.w * g.w * (1.f - g.w));
                } else v = make_float4(v.x * k.inv_hw, v.y * k.inv_hw, v.z * k.inv_hw, v.w * k.inv_hw);
                if (blockIdx.y == 0) *(float4 *)((BACK ? k.work.dpre : k.se.pooled) + place) = v;
            }
            *(float4 *)&in[m][i] = v;
        }
        __syncthreads();
#pragma unroll
        for (int step = 0; step < CHUNK; step += 128) {
            const int i = step + lane * 4;
            float4 w = make_float4(0.f, 0.f, 0.f, 0.f);
            if (j < k.q && c0 + i < k.c) w = *(const float4 *)(row + c0 + i);
#pragma unroll
            for (int m = 0; m < SQUEEZE_IMAGES; m++) {
                const float4 v = *(const float4 *)&in[m][i];
                sum[m] = fmaf(v.x, w.x, fmaf(v.y, w.y, fmaf(v.z, w.z, fmaf(v.w, w.w, sum[m]))));
            }
        }
        __syncthreads();
    }
    float mine = 0;                                            /* lane m keeps image m */
#pragma unroll
    for (int m = 0; m < SQUEEZE_IMAGES; m++) {
#pragma unroll
        for (int o = 16; o > 0; o /= 2) sum[m] += __shfl_xor_sync(0xffffffffu, sum[m], o);
        if (lane == m) mine = sum[m];
    }
    const int64_t image = image0 + lane;
    if (lane >= SQUEEZE_IMAGES || image >= k.n) return;
    if (!BACK) {
        if (j < k.q) k.se.hidden[image * k.q + j] = mine + k.se.br[j];
        return;
    }
    float dhid = 0, acted = 0;                                 /* zeros beyond q */
    if (j < k.q) {
        const float h = k.se.hidden[image * k.q + j], s = sigmoid<float>(h);
        acted = h * s;
        dhid = mine * fmaf(acted, 1.f - s, s);
    }
    k.work.dhid[image * k.padded + j] = dhid;
    k.work.acted[image * k.padded + j] = acted;
}

/* grid (ceil(c/128), ceil(n/8)), block 128: a thread has one channel of 8 images.  Forward from hidden over we to the gate,
 * backward from dhid over wr to dp and, with norm, the group's share of the batch-norm sums.  Bytes: q*c weights n/8 times;
 * backward four sums of each image and channel. */
template <bool BACK> static __global__ void __launch_bounds__(COLUMN_BLOCK, 6) along_columns(squeeze_job k)
{
    __shared__ __align__(16) float in[HIDDEN_CHUNK][SQUEEZE_IMAGES];
    const int64_t c = (int64_t)blockIdx.x * COLUMN_BLOCK + threadIdx.x, image0 = (int64_t)blockIdx.y * SQUEEZE_IMAGES;
    const bool works = c < k.c;
    const float *column = (BACK ? k.se.wr : k.se.we) + c;
    float sum[SQUEEZE_IMAGES];
#pragma unroll
    for (int m = 0; m < SQUEEZE_IMAGES; m++) sum[m] = 0;
    for (int64_t j0 = 0; j0 < k.q; j0 += HIDDEN_CHUNK) {
        for (int at = (int)threadIdx.x; at < HIDDEN_CHUNK * SQUEEZE_IMAGES; at += COLUMN_BLOCK) {
            const int m = at / HIDDEN_CHUNK, j = at % HIDDEN_CHUNK;
            const int64_t image = image0 + m;
            float v = 0;
            if (image < k.n && j0 + j < k.q) {
                if (BACK) v = k.work.dhid[image * k.padded + j0 + j];
                else v = act_value<float>(EN_ACT_SILU, k.se.hidden[image * k.q + j0 + j]);
            }
            in[j][m] = v;
        }
        __syncthreads();
        const int some = k.q - j0 < HIDDEN_CHUNK ? (int)(k.q - j0) : HIDDEN_CHUNK;
        if (works) {
#pragma unroll 8
            for (int j = 0; j < some; j++) {
                const float w = column[(j0 + j) * k.c];
#pragma unroll
                for (int m = 0; m < SQUEEZE_IMAGES; m++) sum[m] = fmaf(in[j][m], w, sum[m]);
            }
        }
        __syncthreads();
    }
    if (!works) return;
    double s1 = 0, s2 = 0;
#pragma unroll
    for (int m = 0; m < SQUEEZE_IMAGES; m++) {
        const int64_t image = image0 + m;
        if (image >= k.n) continue;
        if (!BACK) {
            k.se.gate[image * k.c + c] = sigmoid<float>(sum[m] + k.se.be[c]);
            continue;
        }
        const float dp = sum[m] * k.inv_hw;
        if (k.q > 0) k.dp[image * k.c + c] = dp;
        if (k.norm) {
            const float *q = k.sums + image * FIVE_SUMS * k.c + c;
            const double g = k.se.gate ? k.se.gate[image * k.c + c] : 1.f;
            s1 += g * q[Q_DS_SLOPE * k.c] + (double)dp * q[Q_SLOPE * k.c];
            s2 += g * q[Q_DS_SLOPE_Y * k.c] + (double)dp * q[Q_SLOPE_Y * k.c];
        }
    }
    if (BACK && k.norm) {
        double *const out = k.norm + (int64_t)blockIdx.y * 2 * k.c;
        out[c] = s1;
        out[k.c + c] = s2;
    }
}

/* grid (ceil(c/32), ceil(q/8)), block (32, 8): a thread has one channel and 8 hidden values, and every 8th image, up to 256
 * of them in float; the 8 are then summed in double, in order.  Bytes: pooled and dpre q/8 times, from L2. */
static __global__ void __launch_bounds__(OUTER_CHANNELS *OUTER_LANES) outer_products(squeeze_job k)
{
    enum { R = 0, E = SQUEEZE_HIDDEN, BE = 2 * SQUEEZE_HIDDEN, BR, KINDS };
    __shared__ float held[OUTER_LANES][KINDS][OUTER_CHANNELS];
    const int x = (int)threadIdx.x, y = (int)threadIdx.y;
    const int64_t c = (int64_t)blockIdx.x * OUTER_CHANNELS + x, j0 = (int64_t)blockIdx.y * SQUEEZE_HIDDEN;
    const bool works = c < k.c;
    for (int64_t m0 = 0; m0 < k.n; m0 += OUTER_LANES * SUM_RUN) {
        const int64_t end = m0 + OUTER_LANES * SUM_RUN < k.n ? m0 + OUTER_LANES * SUM_RUN : k.n;
        float r[SQUEEZE_HIDDEN], e[SQUEEZE_HIDDEN], be = 0, br = 0;
#pragma unroll
        for (int i = 0; i < SQUEEZE_HIDDEN; i++) r[i] = e[i] = 0;
#pragma unroll 4
        for (int64_t m = m0 + y; m < end; m += OUTER_LANES) {
            float dhid[8], acted[8];
            load8(k.work.dhid + m * k.padded + j0, dhid), load8(k.work.acted + m * k.padded + j0, acted);
            const float pooled = works ? k.se.pooled[m * k.c + c] : 0.f, dpre = works ? k.work.dpre[m * k.c + c] : 0.f;
#pragma unroll
            for (int i = 0; i < SQUEEZE_HIDDEN; i++) r[i] = fmaf(dhid[i], pooled, r[i]), e[i] = fmaf(acted[i], dpre, e[i]);
            be += dpre;
            br += k.work.dhid[m * k.padded + j0 + x % SQUEEZE_HIDDEN];
        }
#pragma unroll
        for (int i = 0; i < SQUEEZE_HIDDEN; i++) held[y][R + i][x] = r[i], held[y][E + i][x] = e[i];
        held[y][BE][x] = be;
        held[y][BR][x] = br;
        __syncthreads();
        for (int kind = y; kind < KINDS; kind += OUTER_LANES) {
            double sum = 0;
#pragma unroll
            for (int i = 0; i < OUTER_LANES; i++) sum += held[i][kind][x];
            const int64_t j = j0 + kind % SQUEEZE_HIDDEN;
            if (kind < BE && works && j < k.q) {
                float *const d = (kind < E ? k.se.dwr : k.se.dwe) + j * k.c + c;
                *d = (float)(*d + sum);
            }
            if (kind == BE && works && blockIdx.y == 0) k.se.dbe[c] = (float)(k.se.dbe[c] + sum);
            if (kind == BR && x < SQUEEZE_HIDDEN && j0 + x < k.q && blockIdx.x == 0) k.se.dbr[j0 + x] = (float)(k.se.dbr[j0 + x] + sum);
        }
        __syncthreads();
    }
}

static squeeze_job job_of(const en_se *se, int64_t n, int64_t hw, int64_t c)
{
    squeeze_job k = {};
    k.n = n, k.c = c;
    k.q = se ? se->q : 0;
    k.padded = ceil_div(k.q, SQUEEZE_HIDDEN) * SQUEEZE_HIDDEN;
    k.inv_hw = 1.f / (float)hw;
    if (se) k.se = *se;
    return k;
}
static dim3 row_grid(const squeeze_job &k)    { return dim3((unsigned)squeeze_groups(k.n), (unsigned)(k.padded / SQUEEZE_HIDDEN)); }
static dim3 column_grid(const squeeze_job &k) { return dim3((unsigned)ceil_div(k.c, COLUMN_BLOCK), (unsigned)squeeze_groups(k.n)); }

en_status squeeze_forward(en_backend *be, const en_se *se, int64_t n, int64_t hw, int64_t c, const float *sums)
{
    EN_REQUIRE(se->q > 0, EN_EINVAL, "squeezed to %lld channels", (long long)se->q);
    squeeze_job k = job_of(se, n, hw, c);
    k.sums = sums, k.kinds = 1;
    const cudaStream_t stream = engine(be)->compute;
    along_rows<false><<<row_grid(k), 256, 0, stream>>>(k);
    along_columns<false><<<column_grid(k), COLUMN_BLOCK, 0, stream>>>(k);
    CU_LAUNCHED("squeeze-and-excitation of %lld images, %lld to %lld channels", (long long)n, (long long)c, (long long)se->q);
    return EN_OK;
}

en_status squeeze_backward(en_backend *be, const en_se *se, int64_t n, int64_t hw, int64_t c, const float *sums, int64_t kinds,
                           const squeeze_scratch *scratch, float *dp, double *norm)
{
    EN_REQUIRE(!se || se->q > 0, EN_EINVAL, "squeezed to %lld channels", (long long)se->q);
    EN_REQUIRE(!norm || kinds == FIVE_SUMS, EN_EINVAL, "sums of batch norm from %lld sums", (long long)kinds);
    squeeze_job k = job_of(se, n, hw, c);
    k.sums = sums, k.kinds = kinds, k.work = *scratch, k.dp = dp, k.norm = norm;
    const cudaStream_t stream = engine(be)->compute;
    if (se) along_rows<true><<<row_grid(k), 256, 0, stream>>>(k);
    along_columns<true><<<column_grid(k), COLUMN_BLOCK, 0, stream>>>(k);
    if (se)
        outer_products<<<dim3((unsigned)ceil_div(c, OUTER_CHANNELS), (unsigned)(k.padded / SQUEEZE_HIDDEN)), dim3(OUTER_CHANNELS, OUTER_LANES), 0,
                         stream>>>(k);
    CU_LAUNCHED("squeeze-and-excitation of %lld images, backward, %lld channels", (long long)n, (long long)c);
    return EN_OK;
}
