/* optimizer.cu - RMSProp in TensorFlow's form, the moving average and the bf16 copy of the weights, in one sweep.
 *
 * The parameters lie in flat arenas, so one kernel updates all of them: 38 bytes a parameter.  What belongs to whom is
 * said by `segments`; on the device they are a table of chunks, one a block, so that a block has nothing to look up.  The
 * table is built the first time that these segments are seen, outside of recordings, and kept: a recorded step finds it
 * where it was.  Tables are told apart by what the segments say, not by where they lie.
 *
 * Every block asks the tally whether the step counts; the sum of squares is taken in any case, in double, since the square
 * of a finite float may be infinite. */
#include "passes.h"

#include <stdlib.h>
#include <string.h>

enum { THREADS = 256, QUADS = 2, CHUNK = THREADS * QUADS * 4, KEPT = sizeof(cuda_engine::kept) / sizeof(weight_copy) };

/* [at, at + elems) of the arenas.  at % 4 == 0, or elems < 4: then no access is wider than an element. */
struct chunk { int64_t at; int elems, decay; };

struct optimizer_table {
    optimizer_table *before;
    en_segment *segments; int64_t n_segments;   /* owns: what it was built from            */
    chunk  *chunks; int64_t n_chunks;           /* owns, device                            */
    double *squares;                            /* owns, device: a partial sum for a chunk */
};

/* Weights from `first` on (elements of the arena) have a bf16 copy; elems 0: none. */
struct kept_ranges { struct { int64_t first, elems; bf16 *copy; } of[KEPT]; };

struct rates { float rho, momentum, eps, weight_decay; };

EN_DEVICE bool step_counts(const double *tally) { return !(tally[EN_TALLY_FAILED] > 0) && isfinite(tally[EN_TALLY_LOSS]); }

/* One parameter, in the order that kernels.h states. */
template <bool EMA>
EN_DEVICE void update(const rates &h, float decay, float lr, float step, float grad, float &w, float &ms, float &mom, float &ema)
{
    const float g = fmaf(decay, w, grad);
    ms = fmaf(fmaf(g, g, -ms), 1.f - h.rho, ms);
    mom = fmaf(h.momentum, mom, lr * g / sqrtf(ms + h.eps));
    w -= mom;
    if (EMA) ema = fmaf(-step, ema - w, ema);
}

EN_DEVICE void keep_copy(const kept_ranges &kept, int64_t at, float w)
{
#pragma unroll
    for (int k = 0; k < KEPT; k++)
        if (at >= kept.of[k].first && at < kept.of[k].first + kept.of[k].elems) kept.of[k].copy[at - kept.of[k].first] = __float2bfloat16_rn(w);
}

EN_DEVICE void keep_copy4(const kept_ranges &kept, int64_t at, float4 w)
{
    const __nv_bfloat162 low = __floats2bfloat162_rn(w.x, w.y), high = __floats2bfloat162_rn(w.z, w.w);
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
        const int64_t i = at - kept.of[k].first, elems = kept.of[k].elems;
        if (i <= -4 || i >= elems) continue;
        if (i >= 0 && i + 4 <= elems && i % 4 == 0) {
            *(uint2 *)(kept.of[k].copy + i) = make_uint2(*(const unsigned *)&low, *(const unsigned *)&high);
            continue;
        }
        const float v[4] = { w.x, w.y, w.z, w.w };
#pragma unroll
        for (int q = 0; q < 4; q++)
            if (i + q >= 0 && i + q < elems) kept.of[k].copy[i + q] = __float2bfloat16_rn(v[q]);
    }
}

/* grid n_chunks: a chunk a block, QUADS * 5 loads of 16 bytes in flight a thread.  Bytes: 20 read and 18 written a
 * parameter, 4 and 0 where the step does not count.  The last elems % 4 of a chunk go one by one.  squares[chunk] =. */
template <bool EMA> static __global__ void __launch_bounds__(THREADS, 3)
update_kernel(const chunk *__restrict__ chunks, rates h, const en_now *now, const double *__restrict__ tally, kept_ranges kept, float *__restrict__ w_,
              const float *__restrict__ grad_, float *__restrict__ ms_, float *__restrict__ mom_, float *__restrict__ ema_, double *__restrict__ squares)
{
    __shared__ double cell[THREADS / 32];
    const chunk me = chunks[blockIdx.x];
    const float decay = me.decay ? h.weight_decay : 0.f, lr = now->lr, step = 1.f - now->ema_decay;
    const bool counts = step_counts(tally);
    float *w = w_ + me.at, *ms = ms_ + me.at, *mom = mom_ + me.at, *ema = EMA ? ema_ + me.at : nullptr;
    const float *grad = grad_ + me.at;
    double square = 0;
    float4 g4[QUADS], w4[QUADS], s4[QUADS], m4[QUADS], e4[QUADS];
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
        const int i = (q * THREADS + (int)threadIdx.x) * 4;
        if (i + 4 > me.elems) continue;
        g4[q] = *(const float4 *)(grad + i);
        if (!counts) continue;
        w4[q] = *(const float4 *)(w + i), s4[q] = *(const float4 *)(ms + i), m4[q] = *(const float4 *)(mom + i);
        if (EMA) e4[q] = *(const float4 *)(ema + i);
    }
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
        const int i = (q * THREADS + (int)threadIdx.x) * 4;
        if (i + 4 > me.elems) continue;
        const double x = g4[q].x, y = g4[q].y, z = g4[q].z, t = g4[q].w;
        square += x * x + y * y + z * z + t * t;
        if (!counts) continue;
        update<EMA>(h, decay, lr, step, g4[q].x, w4[q].x, s4[q].x, m4[q].x, e4[q].x);
        update<EMA>(h, decay, lr, step, g4[q].y, w4[q].y, s4[q].y, m4[q].y, e4[q].y);
        update<EMA>(h, decay, lr, step, g4[q].z, w4[q].z, s4[q].z, m4[q].z, e4[q].z);
        update<EMA>(h, decay, lr, step, g4[q].w, w4[q].w, s4[q].w, m4[q].w, e4[q].w);
        *(float4 *)(w + i) = w4[q], *(float4 *)(ms + i) = s4[q], *(float4 *)(mom + i) = m4[q];
        if (EMA) *(float4 *)(ema + i) = e4[q];
        keep_copy4(kept, me.at + i, w4[q]);
    }
    const int rest = me.elems & ~3;
    if ((int)threadIdx.x < me.elems - rest) {
        const int i = rest + (int)threadIdx.x;
        const float g = grad[i];
        square += (double)g * g;
        if (counts) {
            float wi = w[i], si = ms[i], mi = mom[i], ei = EMA ? ema[i] : 0.f;
            update<EMA>(h, decay, lr, step, g, wi, si, mi, ei);
            w[i] = wi, ms[i] = si, mom[i] = mi;
            if (EMA) ema[i] = ei;
            keep_copy(kept, me.at + i, wi);
        }
    }
#pragma unroll
    for (int by = 16; by > 0; by /= 2) square += __shfl_xor_sync(0xffffffffu, square, by);
    if (threadIdx.x % 32 == 0) cell[threadIdx.x / 32] = square;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int k = 1; k < THREADS / 32; k++) square += cell[k];
        squares[blockIdx.x] = square;
    }
}

/* grid 1: thread t adds chunks t, t + 1024, ..., then the threads add up as a tree. */
static __global__ void __launch_bounds__(1024) squares_kernel(int64_t n, const double *__restrict__ squares, double *tally)
{
    __shared__ double cell[32];
    double sum = 0;
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < n; i += 1024) sum += squares[i];
#pragma unroll
    for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, by);
    if (threadIdx.x % 32 == 0) cell[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < 32) {
        sum = cell[threadIdx.x];
#pragma unroll
        for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, by);
        if (threadIdx.x == 0) tally[EN_TALLY_GRAD_SQUARE] = sum;
    }
}

/* grid ceil(elems / THREADS): one element a thread; the running statistics are some hundred thousand floats. */
static __global__ void __launch_bounds__(THREADS)
ema_kernel(const en_now *now, int64_t elems, const float *__restrict__ x, float *__restrict__ shadow, const double *__restrict__ tally)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= elems || !step_counts(tally)) return;
    shadow[i] = fmaf(-(1.f - now->ema_decay), shadow[i] - x[i], shadow[i]);
}

/* ---- the table ------------------------------------------------------------------------------------------------------------ */

static bool same_segments(const optimizer_table *t, const en_segment *s, int64_t n)
{
    if (t->n_segments != n) return false;
    for (int64_t k = 0; k < n; k++)
        if (t->segments[k].offset != s[k].offset || t->segments[k].elems != s[k].elems || t->segments[k].decay != s[k].decay) return false;
    return true;
}

/* Counts the chunks of the segments, and writes them where `out` is not NULL. */
static int64_t cut(const en_segment *s, int64_t n, chunk *out)
{
    int64_t count = 0;
    for (int64_t k = 0; k < n; k++)
        for (int64_t at = s[k].offset, end = at + s[k].elems, size; at < end; at += size, count++) {
            size = at % 4 ? min64(4 - at % 4, end - at) : min64(CHUNK, end - at);       /* up to where 16 bytes are aligned */
            if (out) out[count] = { at, (int)size, s[k].decay };
        }
    return count;
}

static void free_table(optimizer_table *t)
{
    if (!t) return;
    if (t->chunks) cudaFree(t->chunks);
    if (t->squares) cudaFree(t->squares);
    free(t->segments);
    free(t);
}

static en_status fill_table(cuda_engine *e, optimizer_table *t, const en_segment *s, int64_t n)
{
    t->n_segments = n;
    t->n_chunks = cut(s, n, nullptr);
    t->segments = (en_segment *)malloc((size_t)(n + 1) * sizeof *s);
    chunk *host = (chunk *)malloc((size_t)(t->n_chunks + 1) * sizeof *host);
    cudaError_t error = cudaErrorMemoryAllocation;
    if (t->segments && host) {
        if (n) memcpy(t->segments, s, (size_t)n * sizeof *s);
        cut(s, n, host);
        error = cudaMalloc((void **)&t->chunks, (size_t)(t->n_chunks + 1) * sizeof *host);
        if (error == cudaSuccess) error = cudaMalloc((void **)&t->squares, (size_t)(t->n_chunks + 1) * sizeof(double));
        if (error == cudaSuccess) error = cudaMemcpyAsync(t->chunks, host, (size_t)t->n_chunks * sizeof *host, cudaMemcpyHostToDevice, e->compute);
        if (error == cudaSuccess) error = cudaStreamSynchronize(e->compute);
    }
    free(host);
    CU_TRY(error, "a table of %lld chunks", (long long)t->n_chunks);
    return EN_OK;
}

static en_status table_of(en_backend *be, const en_segment *s, int64_t n, const optimizer_table **out)
{
    cuda_engine *e = engine(be);
    for (optimizer_table *t = e->chunks; t; t = t->before)
        if (same_segments(t, s, n)) return *out = t, EN_OK;
    cudaStreamCaptureStatus recording = cudaStreamCaptureStatusNone;
    CU_TRY(cudaStreamIsCapturing(e->compute, &recording), "asking the stream");
    EN_REQUIRE(recording == cudaStreamCaptureStatusNone, EN_EINVAL, "segments seen for the first time inside a recording: update once before it");
    optimizer_table *t = (optimizer_table *)calloc(1, sizeof *t);
    EN_REQUIRE(t, EN_ENOMEM, "no memory for a table");
    const en_status status = fill_table(e, t, s, n);
    if (status != EN_OK) return free_table(t), status;
    t->before = e->chunks;
    *out = e->chunks = t;
    return EN_OK;
}

void optimizer_close(cuda_engine *e)
{
    while (e->chunks) {
        optimizer_table *t = e->chunks;
        e->chunks = t->before;
        free_table(t);
    }
}

/* Sums of squares lie with the table: their number is the arena's, which no geometry tells. */
size_t scratch_of_optimizer(const cuda_engine *) { return 0; }

/* ---- the passes ------------------------------------------------------------------------------------------------------------ */

en_status cuda_rmsprop_update(en_backend *be, const en_rmsprop *h, const en_now *now, const en_segment *segments, int64_t n_segments, float *w,
    const float *grad, float *ms, float *mom, float *ema, double *tally)
{
    cuda_engine *e = engine(be);
    EN_REQUIRE(((uintptr_t)w | (uintptr_t)grad | (uintptr_t)ms | (uintptr_t)mom | (uintptr_t)ema) % 16 == 0, EN_EINVAL, "an arena does not begin at 16 bytes");
    const optimizer_table *t = nullptr;
    EN_TRY(table_of(be, segments, n_segments, &t), "the optimizer's table");
    kept_ranges kept = {};
    for (int k = 0; k < KEPT; k++)
        if (e->kept[k].copy) kept.of[k] = { ((intptr_t)e->kept[k].w - (intptr_t)w) / (intptr_t)sizeof *w, e->kept[k].elems, e->kept[k].copy };
    const rates r = { h->rho, h->momentum, h->eps, h->weight_decay };
    if (t->n_chunks > 0) {
        const unsigned blocks = (unsigned)t->n_chunks;
        if (ema) update_kernel<true><<<blocks, THREADS, 0, e->compute>>>(t->chunks, r, now, tally, kept, w, grad, ms, mom, ema, t->squares);
        else update_kernel<false><<<blocks, THREADS, 0, e->compute>>>(t->chunks, r, now, tally, kept, w, grad, ms, mom, nullptr, t->squares);
        CU_LAUNCHED("update in %lld chunks", (long long)t->n_chunks);
    }
    squares_kernel<<<1, 1024, 0, e->compute>>>(t->n_chunks, t->squares, tally);
    CU_LAUNCHED("sum of squares");
    return EN_OK;
}

en_status cuda_ema_update(en_backend *be, const en_now *now, int64_t elems, const float *x, float *shadow, const double *tally)
{
    if (elems == 0) return EN_OK;
    ema_kernel<<<(unsigned)ceil_div(elems, THREADS), THREADS, 0, engine(be)->compute>>>(now, elems, x, shadow, tally);
    CU_LAUNCHED("moving average of %lld", (long long)elems);
    return EN_OK;
}
