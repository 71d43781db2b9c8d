/* depthwise_backward.cu - both gradients of a depthwise convolution in one walk down the image.
 *
 * For a row of x, data gradient and weight gradient read the same values of dy: with ip = i + pad, jp = j + pad,
 *
 *     du[i,j]    += dy[(ip-a)/s, (jp-b)/s] * wt[a,b]          over the taps with a = ip (mod s), b = jp (mod s)
 *     dwt[a,b]   += dy[(ip-a)/s, (jp-b)/s] * u[i,j]
 *
 * so a block keeps the last R = ceil(k/s) rows of dy in shared memory, formed once from dz, y and the coefficients of the
 * batch norm (and of gate and activation, en_grad.gated), and every value read from there is used for both.  A lane owns
 * two channels of a strip of s*TQ columns; u and act' of its strip, the k*k sums of dwt and the sums of batch norm stay in
 * its registers.  A step m makes the s rows of x from s*m on:
 *
 *     form row m + pad/s + PP of dy -> ring        (PP = pad % s: the parity of the first row and column)
 *     barrier                                      one, because the ring has a row more than is read
 *     rows s*m ... : u, act' from x;  taps;  dx = (du + add) * act', stored;  sums
 *
 * Columns in units of s ("q"): a strip has TQ of them, a tile `wide` strips of each of `images` images (small images lie
 * side by side).  The ring holds, for every group (image) and pair of channels, wide*TQ + R-1 columns: HL to the left of
 * the tile, HL = R-1 - PP - pad/s, and the others to its right.  Everything is zero outside dy.
 *
 * Blocks are persistent and add their dwt in double every SUM_RUN values, so there are few partial sums. */
#include "depthwise.h"

struct backward_shape {
    int n, h, w, oh, ow, c, pad, vecs, strips;
    int wide, images, across, tiles_across, groups_of_images;   /* across: strips of a row; a tile is `wide` of them, or all */
    int rows, row_blocks, pitch, items;                         /* rows: steps of an item; pitch: columns of a ring row      */
};

template <typename T, int K, int S> constexpr int backward_columns = K == 7 ? (S == 1 ? 4 : 2) : S == 1 ? 7 : 4;
template <typename T, int K> constexpr int backward_threads = sizeof(T) == 4 || K == 7 ? 256 : 384;

/* What belongs to a channel, in shared memory: [COEFFICIENTS][MAX_PAIRS] */
enum { COEF_GA, COEF_GB, COEF_GC, COEF_DY_SCALE, COEF_DY_SHIFT, COEF_SCALE, COEF_SHIFT, COEF_MEAN, COEFFICIENTS };

struct backward_pointers {
    const void *x; const float *scale, *shift, *mean, *wt;
    const void *dz, *y; const float *ga, *gb, *gc, *dy_scale, *dy_shift, *gate, *dgate; bool gated, gated_silu;
    const void *add; void *dx; float *weight_partials; double *sum_partials;
};

template <typename T>
EN_DEVICE float2 formed(raw_pair<T> raw_dz, raw_pair<T> raw_y, const float2 *coef, bool gated, float2 gate, float2 dgate, bool silu)
{
    const float2 y = as_pair(raw_y);
    float2 dz = as_pair(raw_dz);
    if (gated) {
        dz = pair_fma(dz, gate, dgate);
        if (silu) {
            const float2 z = pair_fma(y, coef[COEF_DY_SCALE * MAX_PAIRS], coef[COEF_DY_SHIFT * MAX_PAIRS]);
            dz = pair_mul(dz, silu_slope(z, pair_sigmoid<T>(z)));
        }
    }
    return pair_fma(coef[COEF_GA * MAX_PAIRS], dz, pair_fma(coef[COEF_GB * MAX_PAIRS], y, coef[COEF_GC * MAX_PAIRS]));
}

/* sums[k*k][pairs*2] += dw of all strips, in their order; dw = 0.  `room`: [K][threads] pairs. */
template <int K> EN_DEVICE void gather_weights(float2 dw[K][K], double *sums, float2 *room, const lane &me, int strips)
{
    const int threads = (int)blockDim.x;
#pragma unroll
    for (int a = 0; a < K; a++) {
        __syncthreads();
#pragma unroll
        for (int b = 0; b < K; b++) room[b * threads + (int)threadIdx.x] = dw[a][b], dw[a][b] = make_float2(0.f, 0.f);
        __syncthreads();
        for (int i = (int)threadIdx.x; i < K * me.pairs; i += threads) {
            const int b = i / me.pairs, pair = i % me.pairs;
            double *const sum = sums + (int64_t)((a * K + b) * me.pairs + pair) * 2;
            double x = sum[0], y = sum[1];
            for (int s = 0; s < strips; s++) {
                const float2 v = room[b * threads + s * me.pairs + pair];
                x += (double)v.x, y += (double)v.y;
            }
            sum[0] = x, sum[1] = y;
        }
    }
    __syncthreads();
}

/* grid (parts, slices), block vecs*4*strips.  Bytes: x, dz, y, (add) and dx once; of dz and y (R-1)/(wide*TQ) again.
 * Edge: dy and u are zero outside; lanes without a strip form and store nothing, and meet every barrier. */
template <typename T, int K, int S, int PP, int TQ, bool SILU> static __global__ void __launch_bounds__(backward_threads<T, K>, 1)
walk_backward(const backward_pointers of, const backward_shape g)
{
    constexpr int R = (K + S - 1) / S, RS = R + 1, X = S * TQ, D = TQ + R - 1;      /* X columns of x, D of dy */
    extern __shared__ __align__(16) char shared[];
    const int threads = (int)blockDim.x, tid = (int)threadIdx.x;
    const lane me = lane_of(g.vecs, g.strips, g.c);
    const int channel = me.live ? me.channel : 0, B = g.pad / S, HL = R - 1 - PP - B;
    const int group_pairs = me.pairs * g.pitch, ring_row = g.images * group_pairs;
    double *const kept = (double *)shared;                              /* [4][threads] sums of batch norm          */
    double *const weight_sums = kept + 4 * threads;                     /* [k*k][pairs*2]                           */
    float2 *const all_coef = (float2 *)(weight_sums + K * K * me.pairs * 2), *const weights = all_coef + COEFFICIENTS * MAX_PAIRS;
    float2 *const gates = weights + K * K * MAX_PAIRS, *const ring = gates + 2 * threads;    /* [2][threads]; [RS][images][pairs][pitch] */
    const T *const x = (const T *)of.x, *const dz = (const T *)of.dz, *const y = (const T *)of.y, *const add = (const T *)of.add;
    T *const dx = (T *)of.dx;

    for (int i = 0; i < 4; i++) kept[i * threads + tid] = 0;
    for (int i = tid; i < K * K * me.pairs * 2; i += threads) weight_sums[i] = 0;
    const int first_channel = (int)blockIdx.y * me.pairs * 2;
    for (int i = tid; i < (COEFFICIENTS + K * K) * me.pairs; i += threads) {
        const int row = i / me.pairs, pair = i % me.pairs, at = first_channel + pair * 2;
        if (at >= g.c) continue;
        const float *from = row >= COEFFICIENTS ? of.wt + (int64_t)(row - COEFFICIENTS) * g.c : row == COEF_GA ? of.ga : row == COEF_GB ? of.gb :
                            row == COEF_GC ? of.gc : row == COEF_DY_SCALE ? of.dy_scale : row == COEF_DY_SHIFT ? of.dy_shift :
                            row == COEF_SCALE ? of.scale : row == COEF_SHIFT ? of.shift : of.mean;
        all_coef[row * MAX_PAIRS + pair] = load_pair_or(from ? from + at : nullptr, row == COEF_SCALE ? 1.f : 0.f);
    }
    const float2 *const coef = all_coef + me.pair, *const w = weights + me.pair;

    const int place = me.strip < g.strips ? me.strip : 0, group = place / g.wide, column = place % g.wide;
    float2 *const mine = ring + group * group_pairs + me.pair * g.pitch;        /* of this pair, column 0 of the group's ring rows */
    float2 dw[K][K] = {};
    int c = g.c, gathered = 0;
    RECOMPUTED(c);

    for (int item = (int)blockIdx.x; item < g.items; item += (int)gridDim.x) {
        const int tile = item % g.tiles_across, block = item / g.tiles_across % g.row_blocks;
        const int64_t image = (int64_t)(item / g.tiles_across / g.row_blocks) * g.images + group;
        const int strip = tile * g.wide + column, q = strip * TQ;               /* first column, in units of s */
        const bool live = me.live && image < g.n && strip < g.across;
        const int first = block * g.rows, end = min(first + g.rows, (g.h + S - 1) / S);
        if (gathered + g.rows > SUM_RUN / TQ) gather_weights<K>(dw, weight_sums, ring, me, g.strips), gathered = 0;
        gathered += g.rows;
        __syncthreads();                                                        /* the ring is free */
        if (g.tiles_across == 1 && me.live)                                        /* no dy beyond the tile: zeros on both sides */
            for (int e = column; e < R - 1; e += g.wide)
                for (int slot = 0; slot < RS; slot++) mine[slot * ring_row + (e < HL ? e : g.wide * TQ + e)] = make_float2(0.f, 0.f);
        if (of.gated) {
            gates[tid]           = load_pair_or(live && of.gate ? of.gate + image * c + channel : nullptr, 1.f);
            gates[threads + tid] = load_pair_or(live && of.gate ? of.dgate + image * c + channel : nullptr, 0.f);
        }

        /* this strip's columns of dy, one of those beside the tile, and of x, each a row ahead */
        raw_pair<T> next_dz[TQ] = {}, next_y[TQ] = {}, side_dz = {}, side_y = {}, next_x[S][X] = {};
        const bool has_side = me.live && g.tiles_across > 1 && column < R - 1;
        const int side = column < HL ? column : g.wide * TQ + column, side_q = tile * g.wide * TQ - HL + side;       /* ring column; column of dy */
        const bool side_inside = has_side && image < g.n && side_q >= 0 && side_q < g.ow;
        const int64_t dy_pitch = (int64_t)g.ow * c, x_pitch = (int64_t)g.w * c;
        const int64_t dy_at = image * g.oh * dy_pitch + (int64_t)q * c + channel, side_at = image * g.oh * dy_pitch + (int64_t)side_q * c + channel;
        const int64_t x_at = image * g.h * x_pitch + (int64_t)q * S * c + channel;
        const int dy_columns = live ? min(TQ, g.ow - q) : 0, x_columns = live ? min(X, g.w - q * S) : 0;

        int slot = 0;
        for (int m = first - (R - 1) - 1; m < end; m++) {
            const int row = m + B + PP;                                         /* of dy: the one that came with the last step */
            if (m >= first - (R - 1)) {
                slot = slot + 1 == RS ? 0 : slot + 1;
                if (me.live) {                                                  /* without an image too: zeros for the neighbours */
                    float2 *const to = mine + slot * ring_row;
                    const bool inside = row >= 0 && row < g.oh;
                    const float2 gate = gates[tid], dgate = gates[threads + tid];
                    KEEP_IN_SHARED();
#pragma unroll
                    for (int t = 0; t < TQ; t++) {
                        const float2 v = formed<T>(next_dz[t], next_y[t], coef, of.gated, gate, dgate, of.gated_silu);
                        to[HL + column * TQ + t] = inside && t < dy_columns ? v : make_float2(0.f, 0.f);
                    }
                    if (has_side) {
                        const float2 v = formed<T>(side_dz, side_y, coef, of.gated, gate, dgate, of.gated_silu);
                        to[side] = inside && side_inside ? v : make_float2(0.f, 0.f);
                    }
                }
            }
            if (row + 1 >= 0 && row + 1 < g.oh && m + 1 < end) {
#pragma unroll
                for (int t = 0; t < TQ; t++)
                    if (t < dy_columns) {
                        next_dz[t] = load_raw(dz + dy_at + (row + 1) * dy_pitch + (int64_t)t * c);
                        next_y[t]  = load_raw(y + dy_at + (row + 1) * dy_pitch + (int64_t)t * c);
                    }
                if (side_inside) side_dz = load_raw(dz + side_at + (row + 1) * dy_pitch), side_y = load_raw(y + side_at + (row + 1) * dy_pitch);
            }
            if (m >= first) __syncthreads();
            float2 sum = make_float2(0.f, 0.f), sum2 = sum;
#pragma unroll
            for (int ii = 0; ii < S; ii++) {
                const int i = S * m + ii;
                if (m >= first && i < g.h) {
                    const int rp = (ii + PP) % S, newest = PP - (ii + PP) / S, nr = (K - rp + S - 1) / S;
                    float2 u[X], slope[X], du[X];
                    KEEP_IN_SHARED();
#pragma unroll
                    for (int j = 0; j < X; j++) {
                        const float2 z = pair_fma(as_pair(next_x[ii][j]), coef[COEF_SCALE * MAX_PAIRS], coef[COEF_SHIFT * MAX_PAIRS]);
                        u[j] = z, slope[j] = make_float2(1.f, 1.f), du[j] = make_float2(0.f, 0.f);
                        if (SILU) {
                            const float2 s = pair_sigmoid<T>(z);
                            u[j] = pair_mul(z, s), slope[j] = silu_slope(z, s);
                        }
                        if (j >= x_columns) u[j] = make_float2(0.f, 0.f);
                    }
#pragma unroll
                    for (int r = 0; r < nr; r++) {
                        const int a = rp + S * r, age = newest + r, at = slot - age < 0 ? slot - age + RS : slot - age;
                        const float2 *const from = mine + at * ring_row + column * TQ;
                        float2 d[D], taps[K];
                        KEEP_IN_SHARED();
#pragma unroll
                        for (int t = 0; t < D; t++) d[t] = from[t];
#pragma unroll
                        for (int b = 0; b < K; b++) taps[b] = w[(a * K + b) * MAX_PAIRS];
#pragma unroll
                        for (int j = 0; j < X; j++)
#pragma unroll
                            for (int b = (j + PP) % S; b < K; b += S) {
                                const float2 v = d[(j + PP) / S - b / S + R - 1 - PP];
                                du[j]    = pair_fma(v, taps[b], du[j]);
                                dw[a][b] = pair_fma(v, u[j], dw[a][b]);
                            }
                    }
                    const float2 mean = coef[COEF_MEAN * MAX_PAIRS];
                    T *const out = dx + x_at + i * x_pitch;
#pragma unroll
                    for (int j = 0; j < X; j++)
                        if (j < x_columns) {
                            if (add) du[j] = pair_add(du[j], as_pair(load_raw(add + x_at + i * x_pitch + (int64_t)j * c)));
                            const float2 v = store_pair(out + (int64_t)j * c, SILU ? pair_mul(du[j], slope[j]) : du[j]);
                            sum  = pair_add(sum, v);
                            sum2 = pair_fma(v, pair_sub(as_pair(next_x[ii][j]), mean), sum2);
                        }
                }
                const int next = i + S;
                if (next >= S * first && next < g.h && m + 1 < end) {
#pragma unroll
                    for (int j = 0; j < X; j++)
                        if (j < x_columns) next_x[ii][j] = load_raw(x + x_at + next * x_pitch + (int64_t)j * c);
                }
            }
            if (m >= first) {
                double *const to = kept + tid;
                to[0] += (double)sum.x, to[threads] += (double)sum.y, to[2 * threads] += (double)sum2.x, to[3 * threads] += (double)sum2.y;
            }
        }
    }
    gather_weights<K>(dw, weight_sums, ring, me, g.strips);
    for (int i = tid; i < K * K * me.pairs * 2; i += threads) {
        const int tap = i / (me.pairs * 2), at = first_channel + i % (me.pairs * 2);
        if (at < g.c) of.weight_partials[((int64_t)blockIdx.x * K * K + tap) * g.c + at] = (float)weight_sums[i];
    }
    if (of.sum_partials) leave_sums(kept, me, g.strips, g.c, of.sum_partials);
}

/* ---- the pass -------------------------------------------------------------------------------------------------------------- */

/* The tile of `strips` strips, and the shared memory that a block of it takes. */
static void cut_tile(backward_shape *b, int k, int s, int tq, int vecs, int strips)
{
    b->vecs   = vecs;
    b->wide   = strips < b->across ? strips : b->across;
    b->images = strips / b->wide;
    b->strips = b->wide * b->images;
    b->pitch  = (b->wide * tq + (k + s - 1) / s - 1) | 1;       /* odd: the pairs of a warp lie in different banks */
}
static int threads_of(const backward_shape *b) { return (b->strips * b->vecs * 4 + 31) / 32 * 32; }
static size_t shared_of(int k, int s, const backward_shape *b)
{
    const size_t pairs = (size_t)b->vecs * 4, threads = (size_t)threads_of(b), rows = (size_t)((k + s - 1) / s + 1);
    return (4 * threads + (size_t)(k * k) * pairs * 2) * sizeof(double) +
           ((size_t)(COEFFICIENTS + k * k) * MAX_PAIRS + 2 * threads + rows * (size_t)(b->images * b->pitch) * pairs) * sizeof(float2);
}

struct backward_launch { backward_shape shape; dim3 grid; int threads; size_t shared; int64_t parts; };
static backward_launch cut_backward(const cuda_engine *e, const en_conv_geom *g, int tq, int warps)
{
    const int k = g->kernel, s = g->stride, r = (k + s - 1) / s;
    backward_launch l = {};
    backward_shape *b = &l.shape;
    b->n = (int)g->n, b->h = (int)g->h, b->w = (int)g->w, b->oh = (int)g->oh, b->ow = (int)g->ow, b->c = (int)g->c, b->pad = g->pad;
    b->across = (int)ceil_div(max64(ceil_div(g->w, s), g->ow), tq);
    const block_cut cut = cut_block(g->c, warps, e->shared_max + 1024, b->across, r - 1, [=](int vecs, int strips) {
        backward_shape tile = *b;
        cut_tile(&tile, k, s, tq, vecs, strips);
        return shared_of(k, s, &tile);
    });
    cut_tile(b, k, s, tq, cut.vecs, cut.strips);
    b->tiles_across     = (int)ceil_div(b->across, b->wide);
    b->groups_of_images = (int)ceil_div(g->n, b->images);
    const int64_t steps = ceil_div(g->h, s), limit = part_limit((int64_t)e->sms * BACKWARD_BLOCKS, cut.slices), columns = b->groups_of_images * b->tiles_across;
    int64_t best = INT64_MAX;
    for (int64_t blocks = ceil_div(steps, SUM_RUN / tq); blocks == 1 || steps / blocks >= 4 || b->rows == 0; blocks++) {
        const int64_t rows = ceil_div(steps, blocks), items = columns * ceil_div(steps, rows), cost = ceil_div(items, limit) * (rows * 3 + r);
        if (cost < best) best = cost, b->rows = (int)rows;      /* forming a row that leads in costs a third of a step */
        if (blocks > steps) break;
    }
    b->row_blocks = (int)ceil_div(steps, b->rows);
    b->items      = (int)(columns * b->row_blocks);
    l.parts   = even_parts(b->items, limit);
    l.grid    = dim3((unsigned)l.parts, (unsigned)cut.slices);
    l.threads = threads_of(b);
    l.shared  = shared_of(k, s, b);
    return l;
}

template <typename T, int K, int S, int PP> static en_status launch_backward(en_backend *be, const en_conv_geom *g, const backward_pointers *of, bool silu,
                                                                             float *dwt, en_bn *xbn)
{
    cuda_engine *e = engine(be);
    constexpr int TQ = backward_columns<T, K, S>;
    const backward_launch l = cut_backward(e, g, TQ, backward_threads<T, K> / 32);
    const int64_t width = (int64_t)K * K * g->c;
    scratch_carver scratch = carver_of(be);
    backward_pointers p = *of;
    p.weight_partials = scratch.take<float>(l.parts * width);
    p.sum_partials    = xbn ? scratch.take<double>(l.parts * 2 * g->c) : nullptr;
    SCRATCH_FITS(be, scratch);
    auto *kernel = silu ? walk_backward<T, K, S, PP, TQ, true> : walk_backward<T, K, S, PP, TQ, false>;
    EN_REQUIRE(l.shared <= e->shared_max, EN_ENOTSUP, "depthwise backward needs %zu bytes of shared memory, a block may have %zu", l.shared, e->shared_max);
    CU_TRY(cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)l.shared), "shared memory of depthwise backward");
    kernel<<<l.grid, l.threads, l.shared, e->compute>>>(p, l.shape);
    CU_LAUNCHED("depthwise backward");
    EN_TRY(collect_add(be, p.weight_partials, l.parts, width, dwt), "depthwise weight gradient");
    if (xbn) EN_TRY(collect(be, p.sum_partials, l.parts, 2 * g->c, xbn->local), "sums of the depthwise input's gradient");
    return EN_OK;
}

en_status cuda_depthwise_backward(en_backend *be, const en_conv_geom *g, const en_operand *x, const float *wt, const en_grad *dy, const void *add,
                                  void *dx, float *dwt, en_bn *xbn)
{
    EN_TRY(check_depthwise(g, x), "depthwise backward");
    EN_REQUIRE(dy->stored && !dy->drop && dy->bn, EN_EINVAL, "the gradient of a depthwise output is stored, and not dropped");
    EN_REQUIRE(!xbn == !x->bn && (!add || add != dx), EN_EINVAL, "batch norm of x and its sums belong together; dx may not be `add`");
    if (g->n == 0 || !folds(be, FOLD_DEPTHWISE)) return plain_depthwise_backward(be, g, x, wt, dy, add, dx, dwt, xbn);
    const en_bn *bn = x->bn, *dbn = dy->bn;
    const backward_pointers of = { x->y, bn ? bn->scale : nullptr, bn ? bn->shift : nullptr, bn ? bn->mean : nullptr, wt, dy->stored, dy->y, dbn->ga, dbn->gb,
                                   dbn->gc, dbn->scale, dbn->shift, dy->gate, dy->dgate, dy->gated, dy->act == EN_ACT_SILU, add, dx, nullptr, nullptr };
    const bool silu = x->act == EN_ACT_SILU;
#define BACKWARD(K, S, PP)                                                                                             \
    if (g->kernel == K && g->stride == S && g->pad % S == PP)                                                          \
        BY_TYPE(be, T, return (launch_backward<T, K, S, PP>(be, g, &of, silu, dwt, xbn)))
    BACKWARD(3, 1, 0); BACKWARD(3, 2, 0); BACKWARD(3, 2, 1);
    BACKWARD(5, 1, 0); BACKWARD(5, 2, 0); BACKWARD(5, 2, 1);
    BACKWARD(7, 1, 0); BACKWARD(7, 2, 0); BACKWARD(7, 2, 1);
#undef BACKWARD
    return EN_OK;
}

size_t scratch_of_depthwise(const cuda_engine *e, const en_conv_geom *g)
{
    if ((g->kernel != 3 && g->kernel != 5 && g->kernel != 7) || g->c % 8 != 0 || g->oc != g->c) return 0;
    const size_t plain = scratch_of_plain_depthwise(e, g), forward = (size_t)part_channels((int64_t)e->sms * FORWARD_BLOCKS, g->c) * 2 * sizeof(double);
    const size_t backward = (size_t)part_channels((int64_t)e->sms * BACKWARD_BLOCKS, g->c) * ((size_t)(g->kernel * g->kernel) * sizeof(float) + 2 * sizeof(double));
    return (plain > forward ? plain > backward ? plain : backward : forward > backward ? forward : backward) + 512;
}

