/* optimizer.cu - the optimizers, with the moving average and the bf16 copy of the weights, in one sweep.
 *
 * What they share is `update_kernel`; what an optimizer does to one parameter is its rule, a struct that a thread carries.  The chunks
 * that it walks are those of optimizer.h.  Bytes a parameter, with the average and the bf16 copy: RMSProp and AdamW 42, SGD 34 (26 without
 * momentum), LARS 38.
 *
 * Before it go the norms: the sum of squared gradients, in double, since the square of a finite float may be infinite, says whether the
 * step counts; every block of the sweep asks the tally.  These are 4 bytes a parameter (LARS 8), in the figures above. */
#include "optimizer.h"
#include "passes.h"

enum { THREADS = OPTIMIZER_THREADS, QUADS = OPTIMIZER_QUADS, KEPT = sizeof(cuda_engine::kept) / sizeof(weight_copy) };

/* Weights from `first` on (elements of the arena) have a bf16 copy; elems 0: none. */
struct kept_ranges { struct { int64_t first, elems; bf16 *copy; } of[KEPT]; };

EN_DEVICE bool step_counts(const double *tally) { return !(tally[EN_TALLY_FAILED] > 0) && isfinite(tally[EN_TALLY_LOSS]) && isfinite(tally[EN_TALLY_GRAD_SQUARE]); }

/* ---- the rules: one parameter, in the order that kernels.h states --------------------------------------------------------- */

/* SLOTS: accumulators.  begin: once a block and thread, before the parameters. */
struct rmsprop_rule {
    enum { SLOTS = 2 };
    float rho, momentum, eps, weight_decay;
    float lr, decay;
    EN_DEVICE_MEMBER void begin(const chunk &me, const en_now *now) { lr = now->lr, decay = me.decay ? weight_decay : 0.f; }
    EN_DEVICE_MEMBER void step(float grad, float &w, float &ms, float &mom) const
    {
        const float g = fmaf(decay, w, grad);
        ms = fmaf(fmaf(g, g, -ms), 1.f - rho, ms);
        mom = fmaf(momentum, mom, lr * g / sqrtf(ms + eps));
        w -= mom;
    }
};

template <int N> struct sgd_rule {
    enum { SLOTS = N };
    float momentum, weight_decay; bool nesterov;
    float lr, decay;
    EN_DEVICE_MEMBER void begin(const chunk &me, const en_now *now) { lr = now->lr, decay = me.decay ? weight_decay : 0.f; }
    EN_DEVICE_MEMBER void step(float grad, float &w, float &mom, float &) const
    {
        const float g = fmaf(decay, w, grad);
        if (N == 0) {
            w = fmaf(-lr, g, w);
            return;
        }
        mom = fmaf(momentum, mom, g);
        w = fmaf(-lr, nesterov ? fmaf(momentum, mom, g) : mom, w);
    }
};

struct lars_rule {
    enum { SLOTS = 1 };
    float momentum, weight_decay; bool nesterov; const float *rates;
    float rate, decay;
    EN_DEVICE_MEMBER void begin(const chunk &me, const en_now *) { rate = rates[me.segment], decay = me.decay ? weight_decay : 0.f; }
    EN_DEVICE_MEMBER void step(float grad, float &w, float &mom, float &) const
    {
        const float g = rate * fmaf(decay, w, grad);
        mom = fmaf(momentum, mom, g);
        w -= nesterov ? fmaf(momentum, mom, g) : mom;
    }
};

struct adamw_rule {
    enum { SLOTS = 2 };
    float keep1, keep2, eps, weight_decay; const float *factors;
    float rate, root, shrink;
    EN_DEVICE_MEMBER void begin(const chunk &me, const en_now *now)
    {
        rate = factors[0], root = factors[1];
        shrink = me.decay ? now->lr * weight_decay : 0.f;
    }
    EN_DEVICE_MEMBER void step(float grad, float &w, float &m, float &v) const
    {
        m = fmaf(grad - m, keep1, m);
        v = fmaf(fmaf(grad, grad, -v), keep2, v);
        w = fmaf(-shrink, w, w) - rate * m / fmaf(sqrtf(v), root, eps);
    }
};

/* ---- the sweep ------------------------------------------------------------------------------------------------------------ */

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

/* The sum over the block, in thread 0.  cell: THREADS / 32 doubles of shared memory, not in use. */
EN_DEVICE double block_sum(double x, double *cell)
{
#pragma unroll
    for (int by = 16; by > 0; by /= 2) x += __shfl_xor_sync(0xffffffffu, x, by);
    if (threadIdx.x % 32 == 0) cell[threadIdx.x / 32] = x;
    __syncthreads();
    for (int k = 1; threadIdx.x == 0 && k < THREADS / 32; k++) x += cell[k];
    return x;
}

EN_DEVICE double square_of(float4 v)
{
    const double x = v.x, y = v.y, z = v.z, t = v.w;
    return x * x + y * y + z * z + t * t;
}

/* grid n_chunks: a chunk a block, QUADS * 5 loads of 16 bytes in flight a thread.  Bytes of RMSProp: 20 read and 18 written a
 * parameter, none where the step does not count.  The last elems % 4 of a chunk go one by one. */
template <class RULE, bool EMA> static __global__ void __launch_bounds__(THREADS, 3)
update_kernel(const chunk *__restrict__ chunks, RULE rule, const en_now *now, const double *__restrict__ tally, kept_ranges kept,
              float *__restrict__ w_, const float *__restrict__ grad_, float *__restrict__ first_, float *__restrict__ second_,
              float *__restrict__ ema_)
{
    enum { FIRST = RULE::SLOTS > 0, SECOND = RULE::SLOTS > 1 };
    const chunk me = chunks[blockIdx.x];
    const float step = 1.f - now->ema_decay;
    if (!step_counts(tally)) return;
    float *w = w_ + me.at, *first = FIRST ? first_ + me.at : nullptr, *second = SECOND ? second_ + me.at : nullptr;
    float *ema = EMA ? ema_ + me.at : nullptr;
    const float *grad = grad_ + me.at;
    float4 g4[QUADS], w4[QUADS], a4[QUADS], b4[QUADS], e4[QUADS];
    rule.begin(me, now);
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
        const int i = (q * THREADS + (int)threadIdx.x) * 4;
        if (i + 4 > me.elems) continue;
        g4[q] = *(const float4 *)(grad + i);
        w4[q] = *(const float4 *)(w + i);
        if (FIRST) a4[q] = *(const float4 *)(first + i);
        if (SECOND) b4[q] = *(const float4 *)(second + i);
        if (EMA) e4[q] = *(const float4 *)(ema + i);
    }
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
        const int i = (q * THREADS + (int)threadIdx.x) * 4;
        if (i + 4 > me.elems) continue;
        rule.step(g4[q].x, w4[q].x, a4[q].x, b4[q].x);
        rule.step(g4[q].y, w4[q].y, a4[q].y, b4[q].y);
        rule.step(g4[q].z, w4[q].z, a4[q].z, b4[q].z);
        rule.step(g4[q].w, w4[q].w, a4[q].w, b4[q].w);
        *(float4 *)(w + i) = w4[q];
        if (FIRST) *(float4 *)(first + i) = a4[q];
        if (SECOND) *(float4 *)(second + i) = b4[q];
        if (EMA) {
            e4[q].x = fmaf(-step, e4[q].x - w4[q].x, e4[q].x), e4[q].y = fmaf(-step, e4[q].y - w4[q].y, e4[q].y);
            e4[q].z = fmaf(-step, e4[q].z - w4[q].z, e4[q].z), e4[q].w = fmaf(-step, e4[q].w - w4[q].w, e4[q].w);
            *(float4 *)(ema + i) = e4[q];
        }
        keep_copy4(kept, me.at + i, w4[q]);
    }
    const int rest = me.elems & ~3;
    if ((int)threadIdx.x < me.elems - rest) {
        const int i = rest + (int)threadIdx.x;
        float wi = w[i], ai = FIRST ? first[i] : 0.f, bi = SECOND ? second[i] : 0.f;
        rule.step(grad[i], wi, ai, bi);
        w[i] = wi;
        if (FIRST) first[i] = ai;
        if (SECOND) second[i] = bi;
        if (EMA) ema[i] = fmaf(-step, ema[i] - wi, ema[i]);
        keep_copy(kept, me.at + i, wi);
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

/* ---- norms, before the sweep ---------------------------------------------------------------------------------------------- */

/* grid n_chunks.  squares[chunk] = sum of grad^2; ADAPT: weights[chunk] = sum of w^2 where the segment adapts.
 * Bytes: 4 read a parameter, 8 where it adapts. */
template <bool ADAPT> static __global__ void __launch_bounds__(THREADS)
norms_kernel(const chunk *__restrict__ chunks, const float *__restrict__ w_, const float *__restrict__ grad_,
             double *__restrict__ squares, double *__restrict__ weights)
{
    __shared__ double cell[2][THREADS / 32];
    const chunk me = chunks[blockIdx.x];
    const bool both = ADAPT && me.adapt;
    const float *w = w_ + me.at, *grad = grad_ + me.at;
    double of_grad = 0, of_w = 0;
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
        const int i = (q * THREADS + (int)threadIdx.x) * 4;
        if (i + 4 > me.elems) continue;
        of_grad += square_of(*(const float4 *)(grad + i));
        if (both) of_w += square_of(*(const float4 *)(w + i));
    }
    const int rest = me.elems & ~3;
    if ((int)threadIdx.x < me.elems - rest) {
        const int i = rest + (int)threadIdx.x;
        of_grad += (double)grad[i] * grad[i];
        if (both) of_w += (double)w[i] * w[i];
    }
    of_grad = block_sum(of_grad, cell[0]);
    if (ADAPT) of_w = block_sum(of_w, cell[1]);
    if (threadIdx.x == 0) {
        squares[blockIdx.x] = of_grad;
        if (ADAPT) weights[blockIdx.x] = of_w;
    }
}

/* grid n_segments: thread t adds the segment's chunks t, t + THREADS, ..., then the threads add up.  rate[segment] =. */
static __global__ void __launch_bounds__(THREADS)
rates_kernel(const chunk *__restrict__ chunks, const int64_t *__restrict__ first, const double *__restrict__ squares,
             const double *__restrict__ weights, const en_now *now, float trust, float eps, float weight_decay, float *__restrict__ rate)
{
    __shared__ double cell[2][THREADS / 32];
    const int64_t from = first[blockIdx.x], to = first[blockIdx.x + 1];
    const bool adapts = from < to && chunks[from].adapt, decays = from < to && chunks[from].decay;
    double of_grad = 0, of_w = 0;
    for (int64_t i = from + threadIdx.x; adapts && i < to; i += THREADS) of_grad += squares[i], of_w += weights[i];
    of_grad = block_sum(of_grad, cell[0]);
    of_w = block_sum(of_w, cell[1]);
    if (threadIdx.x != 0) return;
    const double wn = sqrt(of_w), gn = sqrt(of_grad);
    double r = now->lr;
    if (wn > 0 && gn > 0) r *= (double)trust * wn / (gn + (decays ? (double)weight_decay : 0) * wn + (double)eps);
    rate[blockIdx.x] = (float)r;
}

/* ---- AdamW: the correction of its bias, before the sweep ------------------------------------------------------------------ */

/* grid 1, one thread: a power in double is too much for every thread of the sweep.  factors = { lr/(1 - beta1^t), 1/sqrt(1 - beta2^t) } */
static __global__ void __launch_bounds__(32)
factors_kernel(const en_now *now, const double *__restrict__ tally, double beta1, double beta2, int64_t *updates, float *factors)
{
    if (threadIdx.x != 0) return;
    const int64_t t = *updates + 1;
    factors[0] = (float)((double)now->lr / (1 - pow(beta1, (double)t)));
    factors[1] = (float)(1 / sqrt(1 - pow(beta2, (double)t)));
    if (step_counts(tally)) *updates = t;
}

/* ---- running statistics --------------------------------------------------------------------------------------------------- */

/* grid ceil(elems / THREADS): one element a thread; the running statistics are some hundred thousand floats. */
static __global__ void __launch_bounds__(THREADS)
ema_kernel(const en_now *now, int64_t elems, const float *__restrict__ x, float *__restrict__ shadow, const double *__restrict__ tally)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= elems || !step_counts(tally)) return;
    shadow[i] = fmaf(-(1.f - now->ema_decay), shadow[i] - x[i], shadow[i]);
}

/* ---- the passes ------------------------------------------------------------------------------------------------------------ */

static en_status check_arenas(const float *w, const float *grad, const float *first, const float *second, const float *ema)
{
    EN_REQUIRE(((uintptr_t)w | (uintptr_t)grad | (uintptr_t)first | (uintptr_t)second | (uintptr_t)ema) % 16 == 0, EN_EINVAL,
               "an arena does not begin at 16 bytes");
    return EN_OK;
}

/* tally[GRAD_SQUARE] =: what every optimizer does first.  ADAPT: also t->weights. */
template <bool ADAPT>
static en_status queue_norms(en_backend *be, const optimizer_table *t, const float *w, const float *grad, double *tally)
{
    cuda_engine *e = engine(be);
    if (t->n_chunks > 0) {
        norms_kernel<ADAPT><<<(unsigned)t->n_chunks, THREADS, 0, e->compute>>>(t->chunks, w, grad, t->squares, t->weights);
        CU_LAUNCHED("norms of %lld chunks", (long long)t->n_chunks);
    }
    squares_kernel<<<1, 1024, 0, e->compute>>>(t->n_chunks, t->squares, tally);
    CU_LAUNCHED("sum of squares");
    return EN_OK;
}

template <class RULE>
static en_status queue_update(en_backend *be, const optimizer_table *t, const RULE &rule, const en_now *now, float *w, const float *grad, float *first,
    float *second, float *ema, const double *tally)
{
    cuda_engine *e = engine(be);
    kept_ranges kept = {};
    for (int k = 0; k < KEPT; k++)
        if (e->kept[k].copy) kept.of[k] = { ((intptr_t)e->kept[k].w - (intptr_t)w) / (intptr_t)sizeof *w, e->kept[k].elems, e->kept[k].copy };
    if (t->n_chunks > 0) {
        const unsigned blocks = (unsigned)t->n_chunks;
        if (ema)
            update_kernel<RULE, true><<<blocks, THREADS, 0, e->compute>>>(t->chunks, rule, now, tally, kept, w, grad, first, second, ema);
        else
            update_kernel<RULE, false><<<blocks, THREADS, 0, e->compute>>>(t->chunks, rule, now, tally, kept, w, grad, first, second, nullptr);
        CU_LAUNCHED("update in %lld chunks", (long long)t->n_chunks);
    }
    return EN_OK;
}

en_status cuda_rmsprop_update(en_backend *be, const en_rmsprop *h, const en_now *now, const en_segment *segments, int64_t n_segments, float *w,
    const float *grad, float *ms, float *mom, float *ema, double *tally)
{
    const optimizer_table *t = nullptr;
    EN_REQUIRE(ms && mom, EN_EINVAL, "RMSProp without its accumulators");
    EN_TRY(check_arenas(w, grad, ms, mom, ema), "RMSProp");
    EN_TRY(table_of(be, segments, n_segments, &t), "the optimizer's table");
    EN_TRY(queue_norms<false>(be, t, w, grad, tally), "RMSProp");
    const rmsprop_rule rule = { h->rho, h->momentum, h->eps, h->weight_decay, 0, 0 };
    return queue_update(be, t, rule, now, w, grad, ms, mom, ema, tally);
}

en_status cuda_sgd_update(en_backend *be, const en_sgd *h, const en_now *now, const en_segment *segments, int64_t n_segments, float *w,
    const float *grad, float *mom, float *ema, double *tally)
{
    const optimizer_table *t = nullptr;
    EN_REQUIRE(mom || h->momentum == 0, EN_EINVAL, "SGD with momentum %g without its accumulator", (double)h->momentum);
    EN_REQUIRE(h->momentum != 0 || !h->nesterov, EN_EINVAL, "Nesterov's momentum without a momentum");
    EN_TRY(check_arenas(w, grad, mom, nullptr, ema), "SGD");
    EN_TRY(table_of(be, segments, n_segments, &t), "the optimizer's table");
    EN_TRY(queue_norms<false>(be, t, w, grad, tally), "SGD");
    if (h->momentum == 0) {
        const sgd_rule<0> rule = { 0, h->weight_decay, false, 0, 0 };
        return queue_update(be, t, rule, now, w, grad, nullptr, nullptr, ema, tally);
    }
    const sgd_rule<1> rule = { h->momentum, h->weight_decay, h->nesterov, 0, 0 };
    return queue_update(be, t, rule, now, w, grad, mom, nullptr, ema, tally);
}

en_status cuda_lars_update(en_backend *be, const en_lars *h, const en_now *now, const en_segment *segments, int64_t n_segments, float *w,
    const float *grad, float *mom, float *ema, double *tally)
{
    cuda_engine *e = engine(be);
    const optimizer_table *t = nullptr;
    EN_REQUIRE(mom, EN_EINVAL, "LARS without its accumulator");
    EN_TRY(check_arenas(w, grad, mom, nullptr, ema), "LARS");
    EN_TRY(table_of(be, segments, n_segments, &t), "the optimizer's table");
    EN_TRY(queue_norms<true>(be, t, w, grad, tally), "LARS");
    if (t->n_chunks > 0) {
        rates_kernel<<<(unsigned)n_segments, THREADS, 0, e->compute>>>(t->chunks, t->first, t->squares, t->weights, now, h->trust, h->eps,
                                                                       h->weight_decay, t->rate);
        CU_LAUNCHED("rates of %lld tensors", (long long)n_segments);
    }
    const lars_rule rule = { h->momentum, h->weight_decay, h->nesterov, t->rate, 0, 0 };
    return queue_update(be, t, rule, now, w, grad, mom, nullptr, ema, tally);
}

en_status cuda_adamw_update(en_backend *be, const en_adamw *h, const en_now *now, const en_segment *segments, int64_t n_segments, float *w,
    const float *grad, float *m, float *v, float *ema, int64_t *updates, double *tally)
{
    const optimizer_table *t = nullptr;
    EN_REQUIRE(m && v && updates, EN_EINVAL, "AdamW without its accumulators or its count of updates");
    EN_TRY(check_arenas(w, grad, m, v, ema), "AdamW");
    EN_TRY(table_of(be, segments, n_segments, &t), "the optimizer's table");
    EN_TRY(queue_norms<false>(be, t, w, grad, tally), "AdamW");
    factors_kernel<<<1, 32, 0, engine(be)->compute>>>(now, tally, h->beta1, h->beta2, updates, t->factors);
    CU_LAUNCHED("bias correction");
    const adamw_rule rule = { (float)(1 - h->beta1), (float)(1 - h->beta2), h->eps, h->weight_decay, t->factors, 0, 0, 0 };
    return queue_update(be, t, rule, now, w, grad, m, v, ema, tally);
}

en_status cuda_ema_update(en_backend *be, const en_now *now, int64_t elems, const float *x, float *shadow, const double *tally)
{
    if (elems == 0) return EN_OK;
    ema_kernel<<<(unsigned)ceil_div(elems, THREADS), THREADS, 0, engine(be)->compute>>>(now, elems, x, shadow, tally);
    CU_LAUNCHED("moving average of %lld", (long long)elems);
    return EN_OK;
}
