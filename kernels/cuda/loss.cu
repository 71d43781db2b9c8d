/* loss.cu - softmax cross-entropy with mixed and smoothed labels, and what is counted of it.
 *
 * A few megabytes at most, so exactness is free: everything is double, in the formula and the places of infinities and
 * NaNs that the CPU has.  One block a row leaves four doubles in scratch; a second kernel of one block adds them to the
 * tally, row by row in a fixed order. */
#include "passes.h"

enum { ROW_THREADS = 256, ROW_WARPS = ROW_THREADS / 32, TALLY_THREADS = 256, COUNTED = 3 };   /* loss, top-1, top-5 */

/* Over the block, the same value in every thread; `cell` is shared memory of one value per warp, free before and after. */
template <typename V, typename F> EN_DEVICE V over_block(V v, V *cell, F combine)
{
#pragma unroll
    for (int step = 16; step > 0; step /= 2) v = combine(v, __shfl_xor_sync(0xffffffffu, v, step));
    if (threadIdx.x % 32 == 0) cell[threadIdx.x / 32] = v;
    __syncthreads();
    v = cell[0];
#pragma unroll
    for (int w = 1; w < ROW_WARPS; w++) v = combine(v, cell[w]);
    __syncthreads();
    return v;
}

/* grid n, one block a row.  Bytes: the row once from DRAM (again from L1), dlogits once.  Nobody leaves before a barrier;
 * threads beyond `classes` carry neutral elements.  counted (n, COUNTED) =; dlogits NULL: not wanted. */
static __global__ void __launch_bounds__(ROW_THREADS, 3)
row_kernel(int k, int classes, const float *__restrict__ logits, const en_targets targets, float smoothing, float grad_scale,
           float *__restrict__ dlogits, double *__restrict__ counted)
{
    __shared__ double cell[ROW_WARPS];
    __shared__ int    count[ROW_WARPS];
    const int64_t m = blockIdx.x;
    const float *row = logits + m * k;
    const int32_t label = targets.labels[m], mate = targets.mates ? targets.mates[m] : label;
    const double share = targets.shares ? (double)targets.shares[m] : 1, rest = 1 - share;               /* share + rest is 1, whatever the share */
    const int32_t heavier = share >= 0.5 ? label : mate;
    const bool known = share >= 0 && share <= 1 && (share <= 0 || (label >= 0 && label < classes)) && (rest <= 0 || (mate >= 0 && mate < classes));
    const float mine = known ? row[heavier] : 0.f;

    float largest = -INFINITY;                          /* passes NaNs by: they reach the loss through the sum below */
    int before = 0, nan = 0;
    for (int j = threadIdx.x; j < classes; j += ROW_THREADS) {
        const float z = row[j];
        if (z > largest) largest = z;
        nan |= z != z;
        before += z > mine || (z == mine && j < heavier);
    }
    const double top = over_block((double)largest, cell, [](double a, double b) { return a > b ? a : b; });
    before = over_block(before, count, [](int a, int b) { return a + b; });
    nan = over_block(nan, count, [](int a, int b) { return a | b; });

    double total = 0;
    for (int j = threadIdx.x; j < classes; j += ROW_THREADS) total += exp((double)row[j] - top);
    const double log_total = top + log(over_block(total, cell, [](double a, double b) { return a + b; }));

    const double spread = (double)smoothing / (double)classes, certain = 1 - (double)smoothing;
    double loss = 0;
    for (int j = threadIdx.x; j < classes; j += ROW_THREADS) {
        const double target = spread + certain * ((j == label ? share : 0) + (j == mate ? rest : 0)), log_p = (double)row[j] - log_total;
        loss -= target * log_p;
        if (dlogits) dlogits[m * k + j] = (float)((exp(log_p) - target) * (double)grad_scale);
    }
    if (dlogits)
        for (int j = classes + threadIdx.x; j < k; j += ROW_THREADS) dlogits[m * k + j] = 0.f;
    loss = over_block(loss, cell, [](double a, double b) { return a + b; });
    if (threadIdx.x == 0) {
        const bool placed = known && !nan;
        counted[m * COUNTED + 0] = known ? loss : (double)NAN;
        counted[m * COUNTED + 1] = placed && before < 1;
        counted[m * COUNTED + 2] = placed && before < 5;
    }
}

/* grid 1: thread t adds rows t, t + TALLY_THREADS, ..., then the threads add up as a tree. */
static __global__ void __launch_bounds__(TALLY_THREADS) tally_kernel(int64_t n, const double *__restrict__ counted, double *tally)
{
    __shared__ double cell[ROW_WARPS];
    double sum[COUNTED] = { 0, 0, 0 };
    for (int64_t m = threadIdx.x; m < n; m += TALLY_THREADS)
#pragma unroll
        for (int i = 0; i < COUNTED; i++) sum[i] += counted[m * COUNTED + i];
#pragma unroll
    for (int i = 0; i < COUNTED; i++) sum[i] = over_block(sum[i], cell, [](double a, double b) { return a + b; });
    if (threadIdx.x == 0) {
        tally[EN_TALLY_LOSS] += sum[0];
        tally[EN_TALLY_TOP1] += sum[1];
        tally[EN_TALLY_TOP5] += sum[2];
        tally[EN_TALLY_IMAGES] += (double)n;
    }
}

size_t scratch_of_loss(int64_t n)
{
    scratch_carver s = { nullptr, 0 };
    s.take<double>(n * COUNTED);
    return s.used;
}

en_status cuda_softmax_loss(en_backend *be, int64_t n, int64_t k, int64_t classes, const float *logits, const en_targets *targets, float smoothing,
    float grad_scale, float *dlogits, double *tally)
{
    EN_REQUIRE(classes > 0 && classes <= k && k < INT32_MAX, EN_EINVAL, "%lld classes in %lld columns", (long long)classes, (long long)k);
    EN_REQUIRE(!targets->mates == !targets->shares, EN_EINVAL, "%s", targets->mates ? "mates without shares" : "shares without mates");
    if (n == 0) return EN_OK;
    scratch_carver s = carver_of(be);
    double *counted = s.take<double>(n * COUNTED);
    SCRATCH_FITS(be, s);
    row_kernel<<<(unsigned)n, ROW_THREADS, 0, engine(be)->compute>>>((int)k, (int)classes, logits, *targets, smoothing, grad_scale, dlogits, counted);
    CU_LAUNCHED("loss of %lld rows", (long long)n);
    tally_kernel<<<1, TALLY_THREADS, 0, engine(be)->compute>>>(n, counted, tally);
    CU_LAUNCHED("tally of %lld rows", (long long)n);
    return EN_OK;
}
