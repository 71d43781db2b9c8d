/* depthwise_forward.cu - the depthwise convolution, walking down the image.
 *
 * A lane owns two channels of a strip of TW output columns and walks down the rows.  An input row is read once, batch norm
 * and silu are applied once to each of its (TW-1)*s + k columns, and then it is scattered: into the output row it
 * completes and into the M = (k-1)/s rows below, whose partial sums wait in registers.  A step, for k = 3, s = 1:
 *
 *      input row r      o o o o o o o o o                       pending[0] + row*wt[2]  -> output row, stored
 *                        \ | / ...                              pending[1] + row*wt[1]  -> pending[0]
 *      output rows        x x x x x x x    (TW = 7)                          row*wt[0]  -> pending[1]
 *
 * so each activated value is used k*k/s^2 times straight from a register; there is no shared memory to fill and no
 * barrier.  What neighbouring strips share, k - s columns, is read twice (L1) and activated twice: (TW*s + k - s)/(TW*s).
 * The next row is on its way while this one is computed: a register is loaded anew as soon as its value is used.
 *
 * Strips are numbered over (image, block of rows, column strip); a block of threads takes `strips` neighbouring ones, of
 * several images where images are small.  Zeros outside the image are zeros after batch norm and activation: masked. */
#include "depthwise.h"

enum { FLUSH_ROWS = 32 };       /* rows of a strip between two flushes: TW*32 <= SUM_RUN values in a float         */

/* A forward problem as its kernel sees it.  Strips: ((image * blocks + block) * across + column strip). */
struct forward_shape { int h, w, oh, ow, c, pad, vecs, strips, across, blocks, rows, total, groups; };

/* Registers per lane: weights 2*k*k, pending rows 2*TW*(M+1), the row on its way.  The block limit follows. */
template <typename T, int K> constexpr int forward_threads = sizeof(T) == 4 ? 256 : K == 3 ? 512 : 384;
template <int K> constexpr int forward_columns = K == 7 ? 4 : 7;

/* The next row of a strip: the columns in `mask`. */
template <typename T, int P> EN_DEVICE void fetch_row(const T *row, int c, unsigned mask, raw_pair<T> raw[P])
{
#pragma unroll
    for (int p = 0; p < P; p++)
        if (mask >> p & 1) raw[p] = load_raw(row + (int64_t)p * c);
}

/* Within the bounds that ReLU, ReLU6 or no activation sets; a NaN stays one.  A select, because a branch costs registers here. */
EN_DEVICE float between(float z, float2 bounds) { return z < bounds.x ? bounds.x : z > bounds.y ? bounds.y : z; }

template <typename T, bool SILU> EN_DEVICE float2 activated(raw_pair<T> raw, float2 scale, float2 shift, float2 bounds)
{
    const float2 z = pair_fma(as_pair(raw), scale, shift);
    return SILU ? pair_mul(z, pair_sigmoid<T>(z)) : make_float2(between(z.x, bounds), between(z.y, bounds));
}

/* The q-th input row of a step, in `raw`, joins the rows that wait for it; the first of a step also moves them up, so that
 * moving costs nothing: pending[j] = pending[j+1] + ...  In its place comes `next`, as far as `next_mask` goes.  WHOLE: all
 * columns are inside.  `w`: this lane's weights in shared memory. */
template <typename T, int K, int S, int TW, bool SILU, bool WHOLE>
EN_DEVICE void scatter_row(raw_pair<T> raw[], const T *next, int c, unsigned mask, unsigned next_mask, float2 scale, float2 shift, float2 bounds, const float2 *w,
                           int q, float2 pending[][TW])
{
    constexpr int P = (TW - 1) * S + K, M = (K - 1) / S;
    float2 u[P];
#pragma unroll
    for (int p = 0; p < P; p++) {
        u[p] = activated<T, SILU>(raw[p], scale, shift, bounds);
        if (!WHOLE && !(mask >> p & 1)) u[p] = make_float2(0.f, 0.f);
    }
    if (!WHOLE) fetch_row<T, P>(next, c, next_mask, raw);
    else if (next_mask) fetch_row<T, P>(next, c, ~0u, raw);
#pragma unroll
    for (int j = 0; j <= M; j++) {
        const int a = K - S + q - j * S;
        KEEP_IN_SHARED();
#pragma unroll
        for (int t = 0; t < TW; t++)
            if (q == 0) pending[j][t] = j < M ? pending[j + 1][t] : make_float2(0.f, 0.f);
        if (a < 0) continue;
#pragma unroll
        for (int b = 0; b < K; b++) {
            const float2 tap = w[(a * K + b) * MAX_PAIRS];
#pragma unroll
            for (int t = 0; t < TW; t++) pending[j][t] = pair_fma(u[t * S + b], tap, pending[j][t]);
        }
    }
}

template <typename T> EN_DEVICE void take_output(T *out, float2 v, float2 centre, float2 *sum, float2 *sum2)
{
    const float2 d = pair_sub(store_pair(out, v), centre);
    *sum  = pair_add(*sum, d);
    *sum2 = pair_fma(d, d, *sum2);
}

/* grid (parts, slices), block vecs*4*strips.  Bytes: x (TW*s + k - s)/(TW*s) times, once of them from memory, y once.
 * Edge: columns and rows outside are zeros; lanes without a strip load and store nothing and take part in the barriers. */
template <typename T, int K, int S, int TW, bool SILU> static __global__ void __launch_bounds__(forward_threads<T, K>, 1)
walk_forward(const T *__restrict__ x, const float *__restrict__ scale_of, const float *__restrict__ shift_of, float2 bounds, const float *__restrict__ wt,
             T *__restrict__ y, const float *__restrict__ centre_of, double *__restrict__ partials, const forward_shape g)
{
    constexpr int P = (TW - 1) * S + K, M = (K - 1) / S;
    extern __shared__ __align__(16) char shared[];
    float2 *const weights = (float2 *)shared;                   /* [k*k][MAX_PAIRS] */
    double *const kept = (double *)(weights + K * K * MAX_PAIRS);       /* [4][threads]: sums of this thread */
    const int threads = (int)blockDim.x;
    const lane me = lane_of(g.vecs, g.strips, g.c);
    for (int i = 0; i < 4; i++) kept[i * threads + (int)threadIdx.x] = 0;

    const int channel = me.live ? me.channel : 0;
    for (int k = me.strip; me.strip < g.strips && k < K * K; k += g.strips) weights[k * MAX_PAIRS + me.pair] = load_pair(wt + (int64_t)k * g.c + channel);
    __syncthreads();
    const float2 *const w = weights + me.pair;
    const float2 scale = load_pair_or(scale_of ? scale_of + channel : nullptr, 1.f), shift = load_pair_or(shift_of ? shift_of + channel : nullptr, 0.f);
    const float2 centre = load_pair_or(centre_of ? centre_of + channel : nullptr, 0.f);

    int c = g.c;
    RECOMPUTED(c);
    const int64_t pitch = (int64_t)g.w * c, out_pitch = (int64_t)g.ow * c;
    for (int group = (int)blockIdx.x; group < g.groups; group += (int)gridDim.x) {
        const int strip = group * g.strips + me.strip;
        if (!me.live || strip >= g.total) continue;             /* no barrier in this loop */
        const int column = strip % g.across * TW, block = strip / g.across % g.blocks, image = strip / g.across / g.blocks;
        const int first = block * g.rows, end = min(first + g.rows, g.oh), columns = min(TW, g.ow - column), left = column * S - g.pad;
        unsigned mask = 0;
#pragma unroll
        for (int p = 0; p < P; p++) mask |= (unsigned)(left + p >= 0 && left + p < g.w) << p;
        const bool whole = mask == (1u << P) - 1;

        /* Output row i is completed by the s input rows up to i*s - pad + k - 1; the walk starts early enough for row
         * `first`, but not with rows above the image. */
        int i = min(first, max(first - M, -((K - 1 - g.pad) / S)));
        int r = i * S - g.pad + K - S;                          /* the input row in `raw` */
        const T *row = x + ((int64_t)image * g.h + r) * pitch + (int64_t)left * c + channel;
        T *out = y + ((int64_t)image * g.oh + first) * out_pitch + (int64_t)column * c + channel;
        float2 pending[M + 1][TW] = {};
        raw_pair<T> raw[P] = {};
        fetch_row<T, P>(row, c, r >= 0 && r < g.h ? mask : 0, raw);
        float2 sum = make_float2(0.f, 0.f), sum2 = sum;
        for (; i < end; i++) {
            const bool fast = whole && r >= 0 && r + S <= g.h;
            const bool last = i + 1 == end;
#pragma unroll
            for (int q = 0; q < S; q++, r++) {
                row += pitch;
                const unsigned next = r + 1 >= 0 && r + 1 < g.h && !(q + 1 == S && last) ? mask : 0;
                if (fast) scatter_row<T, K, S, TW, SILU, true>(raw, row, c, mask, next, scale, shift, bounds, w, q, pending);
                else scatter_row<T, K, S, TW, SILU, false>(raw, row, c, r >= 0 && r < g.h ? mask : 0, next, scale, shift, bounds, w, q, pending);
            }
            if (i < first) continue;
            if (columns == TW) {
#pragma unroll
                for (int t = 0; t < TW; t++) take_output(out + (int64_t)t * c, pending[0][t], centre, &sum, &sum2);
            } else {
#pragma unroll
                for (int t = 0; t < TW; t++)
                    if (t < columns) take_output(out + (int64_t)t * c, pending[0][t], centre, &sum, &sum2);
            }
            out += out_pitch;
            if ((i - first) % FLUSH_ROWS == FLUSH_ROWS - 1 || last) {
                double *const mine = kept + (int)threadIdx.x;
                mine[0] += (double)sum.x, mine[threads] += (double)sum.y, mine[2 * threads] += (double)sum2.x, mine[3 * threads] += (double)sum2.y;
                sum = sum2 = make_float2(0.f, 0.f);
            }
        }
    }
    if (partials) leave_sums(kept, me, g.strips, g.c, partials);
}

/* ---- the pass -------------------------------------------------------------------------------------------------------------- */

struct forward_launch { forward_shape shape; int slices, threads; size_t shared; int64_t parts; };
static forward_launch cut_forward(const cuda_engine *e, const en_conv_geom *g)
{
    const int k = g->kernel, bf16_threads = k == 3 ? forward_threads<bf16, 3> : forward_threads<bf16, 5>;
    const int warps = (e->dtype == EN_F32 ? forward_threads<float, 3> : bf16_threads) / 32, tw = k == 7 ? forward_columns<7> : forward_columns<3>;
    const int64_t across = ceil_div(g->ow, tw), limit = max64(1, (int64_t)e->sms * FORWARD_CHANNELS / g->c), lead = (k - 1) / g->stride;
    const double row_slots = 2. * tw * k * k + 24. * ((tw - 1) * g->stride + k) * g->stride + 14. * tw;
    const auto shared_of = [k](int vecs, int strips) {
        return (size_t)(k * k) * MAX_PAIRS * sizeof(float2) + (size_t)(vecs * strips * 4 + 31) / 32 * 128 * sizeof(double);
    };
    const auto judge = [=](block_cut *cut) {
        double best = -1;
        for (int64_t blocks = 1; blocks == 1 || g->oh / blocks >= 4; blocks = more_blocks(blocks)) {
            const int64_t rows = ceil_div(g->oh, blocks), groups = ceil_div(g->n * across * ceil_div(g->oh, rows), cut->strips);
            const int64_t each = ceil_div(groups, limit), parts = ceil_div(groups, each);
            const double slots = slots_of(parts * cut->slices, e->sms, cut->resident, cut->warps, (double)each * (double)(rows + lead) * row_slots + 400) +
                                 slots_of_partials((double)(parts * 2 * g->c) * sizeof(double));
            if (best < 0 || slots < best) best = slots, cut->rows = (int)rows, cut->parts = parts;
        }
        return best;
    };
    const block_cut cut = best_cut(g->c, warps, e->shared_max + 1024, shared_of, judge);
    forward_launch l = {};
    l.shape = { (int)g->h, (int)g->w, (int)g->oh, (int)g->ow, (int)g->c, g->pad, cut.vecs, cut.strips, (int)across, (int)ceil_div(g->oh, cut.rows), cut.rows, 0, 0 };
    l.shape.total  = (int)(g->n * across * l.shape.blocks);
    l.shape.groups = (int)ceil_div(l.shape.total, cut.strips);
    l.parts   = cut.parts;
    l.slices  = cut.slices;
    l.threads = cut.warps * 32;
    l.shared  = shared_of(cut.vecs, cut.strips);
    return l;
}

template <typename T, int K, int S> static en_status launch_forward(cuda_engine *e, const forward_launch *l, const en_operand *x, const float *wt, void *y,
                                                                    const en_bn *bn, double *partials)
{
    const float2 bounds = make_float2(x->act == EN_ACT_NONE ? -INFINITY : 0.f, x->act == EN_ACT_RELU6 ? 6.f : INFINITY);
    auto *kernel = x->act == EN_ACT_SILU ? walk_forward<T, K, S, forward_columns<K>, true> : walk_forward<T, K, S, forward_columns<K>, false>;
    kernel<<<dim3((unsigned)l->parts, (unsigned)l->slices), l->threads, l->shared, e->compute>>>((const T *)x->y, x->bn ? x->bn->scale : nullptr, x->bn ? x->bn->shift : nullptr, bounds, wt, (T *)y,
                                                           bn ? bn->running_mean : nullptr, partials, l->shape);
    CU_LAUNCHED("depthwise forward");
    return EN_OK;
}

en_status cuda_depthwise_forward(en_backend *be, const en_conv_geom *g, const en_operand *x, const float *wt, void *y, en_bn *bn)
{
    EN_TRY(check_depthwise(g, x), "depthwise forward");
    if (!folds(be, FOLD_ROWS)) return plain_depthwise_forward(be, g, x, wt, y, bn);
    cuda_engine *e = engine(be);
    const int64_t rows = g->n * g->oh * g->ow;
    if (rows == 0) return bn ? set_rows(be, bn, 0) : EN_OK;
    static cut_memory<forward_launch> memory;
    const forward_launch l = *memory.find(e, g, 0, [=] { return cut_forward(e, g); });
    scratch_carver scratch = carver_of(be);
    double *partials = bn ? scratch.take<double>(l.parts * 2 * g->c) : nullptr;
    SCRATCH_FITS(be, scratch);
#define FORWARD(K, S) \
    if (g->kernel == K && g->stride == S) BY_TYPE(be, T, EN_TRY((launch_forward<T, K, S>(e, &l, x, wt, y, bn, partials)), "depthwise %dx%d", K, K))
    FORWARD(3, 1); FORWARD(3, 2); FORWARD(5, 1); FORWARD(5, 2); FORWARD(7, 1); FORWARD(7, 2);
#undef FORWARD
    return bn ? collect_rows(be, partials, l.parts, bn, rows) : EN_OK;
}
