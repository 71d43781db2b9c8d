/* depthwise_backward.cu - both gradients of a depthwise convolution in one walk down the image.
 *
 * For a row of x, data gradient and weight gradient read the same values of dy: with ip = i + pad, jp = j + pad,
 *
 *     du[i,j]    += dy[(ip-a)/s, (jp-b)/s] * wt[a,b]          over the taps with a = ip (mod s), b = jp (mod s)
 *     dwt[a,b]   += dy[(ip-a)/s, (jp-b)/s] * u[i,j]
 *
 * so a block keeps the last R = ceil(k/s) rows of dy in shared memory, formed once from dz, y and the coefficients of the
 * batch norm (and of gate and activation, en_grad.gated), and every value read from there is used for both.  A lane owns
 * two channels of a strip of s*TQ columns; its u, du and k*k sums of dwt stay in registers, its act' in shared memory.
 * A step m makes the s rows of x from s*m on:
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

template <typename T, int K, int S> constexpr int backward_columns = K == 7 ? (S == 1 ? 4 : 2) : S == 1 ? 7 : K == 5 ? 3 : 4;
/* Threads of a multiprocessor, which is what the registers of this kernel allow. */
template <typename T, int K, bool SILU> constexpr int backward_threads = sizeof(T) == 4 || K == 7 || (K == 5 && !SILU) ? 256 : 384;

enum { NOWHERE = INT32_MIN };

/* What belongs to a channel, in shared memory: [COEFFICIENTS][MAX_PAIRS] */
enum { COEF_GA, COEF_GB, COEF_GC, COEF_DY_SCALE, COEF_DY_SHIFT, COEF_SCALE, COEF_SHIFT, COEF_MEAN, COEFFICIENTS };

struct backward_pointers {
    const void *x; const float *scale, *shift, *mean, *wt;
    const void *dz, *y; const float *ga, *gb, *gc, *dy_scale, *dy_shift, *gate, *dgate; int how; en_act act;
    const void *add; void *dx; float *weight_partials; double *sum_partials;
};

/* How dz comes: as it is stored, or times gate plus dgate, and times the slope of the activation. */
enum { STORED, GATED, GATED_SILU, GATED_RELU, GATED_RELU6 };
static int how_of(const en_grad *dy)
{
    if (!dy->gated) return STORED;
    return dy->act == EN_ACT_SILU ? GATED_SILU : dy->act == EN_ACT_RELU ? GATED_RELU : dy->act == EN_ACT_RELU6 ? GATED_RELU6 : GATED;
}

EN_DEVICE float2 rectified_pair(en_act act, float2 z)        { return make_float2(rectified(act, z.x), rectified(act, z.y)); }
EN_DEVICE float2 rectified_slope_pair(en_act act, float2 z)  { return make_float2(rectified_slope(act, z.x), rectified_slope(act, z.y)); }

template <typename T, int HOW> EN_DEVICE float2 formed(raw_pair<T> raw_dz, raw_pair<T> raw_y, const float2 *coef, float2 gate, float2 dgate)
{
    const float2 y = as_pair(raw_y);
    float2 dz = as_pair(raw_dz);
    if (HOW != STORED) dz = pair_fma(dz, gate, dgate);
    if (HOW == GATED_SILU) {
        const float2 z = pair_fma(y, coef[COEF_DY_SCALE * MAX_PAIRS], coef[COEF_DY_SHIFT * MAX_PAIRS]);
        dz = pair_mul(dz, silu_slope(z, pair_sigmoid<T>(z)));
    }
    if (HOW == GATED_RELU || HOW == GATED_RELU6) {
        const float2 z = pair_fma(y, coef[COEF_DY_SCALE * MAX_PAIRS], coef[COEF_DY_SHIFT * MAX_PAIRS]);
        dz = pair_mul(dz, rectified_slope_pair(HOW == GATED_RELU ? EN_ACT_RELU : EN_ACT_RELU6, z));
    }
    return pair_fma(coef[COEF_GA * MAX_PAIRS], dz, pair_fma(coef[COEF_GB * MAX_PAIRS], y, coef[COEF_GC * MAX_PAIRS]));
}

/* COUNT columns of dy into the ring; zeros from column `inside` on. */
template <typename T, int HOW, int COUNT>
EN_DEVICE void form_columns(const raw_pair<T> dz[COUNT], const raw_pair<T> y[COUNT], const float2 *coef, float2 gate, float2 dgate, int inside, float2 *to)
{
    if (inside >= COUNT) {
#pragma unroll
        for (int t = 0; t < COUNT; t++) to[t] = formed<T, HOW>(dz[t], y[t], coef, gate, dgate);
        return;
    }
#pragma unroll
    for (int t = 0; t < COUNT; t++) {
        const float2 v = formed<T, HOW>(dz[t], y[t], coef, gate, dgate);
        to[t] = t < inside ? v : make_float2(0.f, 0.f);
    }
}
template <typename T, int COUNT>
EN_DEVICE void form_columns(int how, const raw_pair<T> dz[COUNT], const raw_pair<T> y[COUNT], const float2 *coef, float2 gate, float2 dgate, int inside, float2 *to)
{
    if (how == GATED_SILU) form_columns<T, GATED_SILU, COUNT>(dz, y, coef, gate, dgate, inside, to);
    else if (how == STORED) form_columns<T, STORED, COUNT>(dz, y, coef, gate, dgate, inside, to);
    else if (how == GATED_RELU) form_columns<T, GATED_RELU, COUNT>(dz, y, coef, gate, dgate, inside, to);
    else if (how == GATED_RELU6) form_columns<T, GATED_RELU6, COUNT>(dz, y, coef, gate, dgate, inside, to);
    else form_columns<T, GATED, COUNT>(dz, y, coef, gate, dgate, inside, to);
}

/* COUNT columns of a row, those before `inside` */
template <typename T, int COUNT> EN_DEVICE void fetch_columns(const T *from, int c, int inside, raw_pair<T> raw[COUNT])
{
    if (inside >= COUNT) {
#pragma unroll
        for (int t = 0; t < COUNT; t++) raw[t] = load_raw(from + (int64_t)t * c);
        return;
    }
#pragma unroll
    for (int t = 0; t < COUNT; t++)
        if (t < inside) raw[t] = load_raw(from + (int64_t)t * c);
}

/* One element of dx: stored, and summed as stored. */
template <typename T> EN_DEVICE void take_gradient(T *out, float2 v, raw_pair<T> x, float2 mean, float2 *sum, float2 *sum2)
{
    v = store_pair(out, v);
    *sum  = pair_add(*sum, v);
    *sum2 = pair_fma(v, pair_sub(as_pair(x), mean), *sum2);
}

/* sums[k*k][pairs*2] += dw of all strips, in their order; dw = 0.  `room`: [K][lanes] pairs, which a ring holds. */
template <int K> EN_DEVICE void gather_weights(float2 dw[K][K], double *sums, float2 *room, const lane &me, int strips)
{
    const int threads = (int)blockDim.x, lanes = strips * me.pairs, tid = (int)threadIdx.x;
#pragma unroll
    for (int a = 0; a < K; a++) {
        __syncthreads();
#pragma unroll
        for (int b = 0; b < K; b++) {
            if (tid < lanes) room[b * lanes + tid] = dw[a][b];
            dw[a][b] = make_float2(0.f, 0.f);
        }
        __syncthreads();
#pragma unroll 1
        for (int i = tid; i < K * me.pairs; i += threads) {
            const int b = i / me.pairs, pair = i % me.pairs;
            double *const sum = sums + (int64_t)((a * K + b) * me.pairs + pair) * 2;
            double x = sum[0], y = sum[1];
#pragma unroll 1
            for (int s = 0; s < strips; s++) {
                const float2 v = room[b * lanes + s * me.pairs + pair];
                x += (double)v.x, y += (double)v.y;
            }
            sum[0] = x, sum[1] = y;
        }
    }
    __syncthreads();
}

/* grid (parts, slices), block vecs*4*strips.  Bytes: x, dz, y, (add) and dx once; of dz and y (R-1)/(wide*TQ) again.
 * Edge: dy and u are zero outside; lanes without a strip form and store nothing, and meet every barrier. */
template <typename T, int K, int S, int PP, int TQ, bool SILU> static __global__ void __launch_bounds__(backward_threads<T, K, SILU>, 1)
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
    float2 *const gates = weights + K * K * MAX_PAIRS, *const slopes = gates + 2 * threads;      /* [2][threads]; [threads][X|1] */
    float2 *const ring = slopes + threads * (X | 1), *const slope = slopes + tid * (X | 1);       /* [RS][images][pairs][pitch]   */
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
        if (of.how != STORED) {
            gates[tid]           = load_pair_or(me.live && image < g.n && of.gate ? of.gate + image * c + channel : nullptr, 1.f);
            gates[threads + tid] = load_pair_or(me.live && image < g.n && of.gate ? of.dgate + image * c + channel : nullptr, 0.f);
        }

        /* this strip's columns of dy, one of those beside the tile, and of x, each a row ahead */
        raw_pair<T> next_dz[TQ] = {}, next_y[TQ] = {}, side_dz = {}, side_y = {}, next_x[S][X] = {};
        const int dy_columns = live ? min(TQ, g.ow - q) : 0, x_columns = live ? min(X, g.w - q * S) : 0;
        int side = -1, side_step = NOWHERE;             /* the ring's column of what lies beside; where it is from dy's column q */
        if (me.live && g.tiles_across > 1 && column < R - 1) {
            side = column < HL ? column : g.wide * TQ + column;
            const int side_q = tile * g.wide * TQ - HL + side;
            if (image < g.n && side_q >= 0 && side_q < g.ow) side_step = (side_q - q) * c;
        }

        /* A step is led by one that only fetches, and R-1 that only form.  dy_at: the row of dy to fetch; x_at: that of x to fetch */
        int slot = 0;
        const int ahead = g.pad / S + PP + 1;                                   /* row of dy to fetch - m */
        int64_t dy_at = ((image * g.oh + first - R + ahead) * g.ow + q) * c + channel, x_at = ((image * g.h + (int64_t)S * first) * g.w + (int64_t)S * q) * c + channel;
        for (int m = first - R; m < end; m++, dy_at += (int64_t)g.ow * c) {
            const int row = m + ahead;
            RECOMPUTED(c);
            if (m > first - R) {
                slot = slot + 1 == RS ? 0 : slot + 1;
                if (me.live) {                                                  /* without an image too: zeros for the neighbours */
                    float2 *const to = mine + slot * ring_row;
                    const int inside = row > 0 && row <= g.oh ? dy_columns : 0;
                    const float2 gate = gates[tid], dgate = gates[threads + tid];
                    KEEP_IN_SHARED();
                    form_columns<T, TQ>(of.how, next_dz, next_y, coef, gate, dgate, inside, to + HL + column * TQ);
                    if (side >= 0) form_columns<T, 1>(of.how, &side_dz, &side_y, coef, gate, dgate, side_step != NOWHERE && row > 0 && row <= g.oh, to + side);
                }
            }
            if (row >= 0 && row < g.oh && m + 1 < end) {
                const T *const dz_row = dz + dy_at, *const y_row = y + dy_at;
                fetch_columns<T, TQ>(dz_row, c, dy_columns, next_dz);
                fetch_columns<T, TQ>(y_row, c, dy_columns, next_y);
                if (side_step != NOWHERE) side_dz = load_raw(dz_row + side_step), side_y = load_raw(y_row + side_step);
            }
            if (m >= first) __syncthreads();
            float2 sum = make_float2(0.f, 0.f), sum2 = sum;
#pragma unroll
            for (int ii = 0; ii < S; ii++) {
                const int i = S * m + ii;                                       /* the row of x in next_x[ii] */
                if (m >= first && i < g.h) {
                    const int rp = (ii + PP) % S, newest = PP - (ii + PP) / S, nr = (K - rp + S - 1) / S;
                    float2 u[X], du[X];
                    KEEP_IN_SHARED();
#pragma unroll
                    for (int j = 0; j < X; j++) {
                        const float2 z = pair_fma(as_pair(next_x[ii][j]), coef[COEF_SCALE * MAX_PAIRS], coef[COEF_SHIFT * MAX_PAIRS]);
                        u[j] = z, du[j] = make_float2(0.f, 0.f);
                        if (SILU) {
                            const float2 s = pair_sigmoid<T>(z);
                            u[j] = pair_mul(z, s), slope[j] = silu_slope(z, s);
                        } else if (of.act != EN_ACT_NONE) u[j] = rectified_pair(of.act, z), slope[j] = rectified_slope_pair(of.act, z);
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
                    const int64_t at = x_at - (int64_t)(S - ii) * g.w * c;      /* x_at is a step ahead */
                    T *const out = dx + at;
                    KEEP_IN_SHARED();
                    const float2 mean = coef[COEF_MEAN * MAX_PAIRS];
                    const bool bends = SILU || of.act != EN_ACT_NONE;
                    if (add)
#pragma unroll
                        for (int j = 0; j < X; j++)
                            if (j < x_columns) du[j] = pair_add(du[j], as_pair(load_raw(add + at + (int64_t)j * c)));
                    if (x_columns == X) {
#pragma unroll
                        for (int j = 0; j < X; j++)
                            take_gradient(out + (int64_t)j * c, bends ? pair_mul(du[j], slope[j]) : du[j], next_x[ii][j], mean, &sum, &sum2);
                    } else {
#pragma unroll
                        for (int j = 0; j < X; j++)
                            if (j < x_columns) take_gradient(out + (int64_t)j * c, bends ? pair_mul(du[j], slope[j]) : du[j], next_x[ii][j], mean, &sum, &sum2);
                    }
                }
                if (m + 1 >= first && i + S < g.h && m + 1 < end) fetch_columns<T, X>(x + x_at + (int64_t)ii * g.w * c, c, x_columns, next_x[ii]);
            }
            if (m + 1 >= first) x_at += (int64_t)S * g.w * c;
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
static size_t shared_of(int k, int s, int tq, const backward_shape *b)
{
    const size_t pairs = (size_t)b->vecs * 4, threads = (size_t)threads_of(b), rows = (size_t)((k + s - 1) / s + 1);
    return (4 * threads + (size_t)(k * k) * pairs * 2) * sizeof(double) +
           ((size_t)(COEFFICIENTS + k * k) * MAX_PAIRS + (2 + (size_t)(s * tq | 1)) * threads + rows * (size_t)(b->images * b->pitch) * pairs) * sizeof(float2);
}

struct backward_launch { backward_shape shape; int slices, threads; size_t shared; int64_t parts; };
static backward_launch cut_backward(const cuda_engine *e, const en_conv_geom *g, int tq, int warps)
{
    const int k = g->kernel, s = g->stride, r = (k + s - 1) / s;
    const int64_t steps = ceil_div(g->h, s), limit = max64(1, (int64_t)e->sms * BACKWARD_CHANNELS / g->c);
    backward_launch l = {};
    backward_shape *b = &l.shape;
    b->n = (int)g->n, b->h = (int)g->h, b->w = (int)g->w, b->oh = (int)g->oh, b->ow = (int)g->ow, b->c = (int)g->c, b->pad = g->pad;
    b->across = (int)ceil_div(max64(ceil_div(g->w, s), g->ow), tq);
    const double form_slots = 48. * tq, taps_slots = 4. * k * k * tq + 36. * s * s * tq, gather_slots = 16. * k * k;
    const auto tile_of = [=](int vecs, int strips) {
        backward_shape tile = *b;
        cut_tile(&tile, k, s, tq, vecs, strips);
        return tile;
    };
    const auto judge = [=](block_cut *cut) {
        const backward_shape tile = tile_of(cut->vecs, cut->strips);
        if (tile.strips < cut->strips) return -1.;                              /* a smaller cut is the same */
        if (tile.wide < tile.across && tile.wide < r - 1) return -1.;           /* what lies beside a tile is formed by its strips */
        const int64_t columns = ceil_div(g->n, tile.images) * ceil_div(tile.across, tile.wide);
        const double side_slots = tile.wide < tile.across ? 48. * (r - 1) / tile.wide : 0.;
        double best = -1;
        for (int64_t blocks = ceil_div(steps, SUM_RUN / tq), first = blocks; blocks == first || steps / blocks >= 4; blocks = more_blocks(blocks)) {
            const int64_t rows = ceil_div(steps, blocks), items = columns * ceil_div(steps, rows);
            const double item_slots = (double)(rows + r - 1) * (form_slots + side_slots) + (double)rows * taps_slots + 200;
            for (int64_t each = ceil_div(items, limit), tries = 0; tries < 6 && each <= items; each = more_blocks(each), tries++) {
                const int64_t parts = ceil_div(items, each);
                const double gathers = ceil((double)(each * rows) / (SUM_RUN / tq));
                const double slots = slots_of(parts * cut->slices, e->sms, cut->resident, cut->warps, (double)each * item_slots + gathers * gather_slots + 800) +
                                     slots_of_partials((double)(parts * g->c) * (k * k * sizeof(float) + 2 * sizeof(double)));
                if (best < 0 || slots < best) best = slots, cut->rows = (int)rows, cut->parts = parts;
            }
        }
        return best * (cut->resident == 1 ? 1.1 : 1.);                          /* nobody works while a block waits at its barrier */
    };
    const block_cut cut = best_cut(g->c, warps, e->shared_max + 1024, [=](int vecs, int strips) {
        const backward_shape tile = tile_of(vecs, strips);
        return shared_of(k, s, tq, &tile);
    }, judge);
    cut_tile(b, k, s, tq, cut.vecs, cut.strips);
    b->rows             = cut.rows;
    b->tiles_across     = (int)ceil_div(b->across, b->wide);
    b->groups_of_images = (int)ceil_div(g->n, b->images);
    b->row_blocks       = (int)ceil_div(steps, b->rows);
    b->items            = b->groups_of_images * b->tiles_across * b->row_blocks;
    l.parts   = cut.parts;
    l.slices  = cut.slices;
    l.threads = threads_of(b);
    l.shared  = shared_of(k, s, tq, b);
    return l;
}

template <typename T, int K, int S, int PP> static en_status launch_backward(en_backend *be, const en_conv_geom *g, const backward_pointers *of, bool silu,
                                                                             float *dwt, en_bn *xbn)
{
    cuda_engine *e = engine(be);
    constexpr int TQ = backward_columns<T, K, S>;
    static cut_memory<backward_launch> memory;
    const int threads = silu ? backward_threads<T, K, true> : backward_threads<T, K, false>;
    const backward_launch l = *memory.find(e, g, silu, [=] { return cut_backward(e, g, TQ, threads / 32); });
    const int64_t width = (int64_t)K * K * g->c;
    scratch_carver scratch = carver_of(be);
    backward_pointers p = *of;
    p.weight_partials = scratch.take<float>(l.parts * width);
    p.sum_partials    = xbn ? scratch.take<double>(l.parts * 2 * g->c) : nullptr;
    SCRATCH_FITS(be, scratch);
    auto *kernel = silu ? walk_backward<T, K, S, PP, TQ, true> : walk_backward<T, K, S, PP, TQ, false>;
    EN_REQUIRE(l.shared <= e->shared_max, EN_ENOTSUP, "depthwise backward needs %zu bytes of shared memory, a block may have %zu", l.shared, e->shared_max);
    CU_TRY(cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)l.shared), "shared memory of depthwise backward");
    kernel<<<dim3((unsigned)l.parts, (unsigned)l.slices), l.threads, l.shared, e->compute>>>(p, l.shape);
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
                                   dbn->gc, dbn->scale, dbn->shift, dy->gate, dy->dgate, how_of(dy), x->act, add, dx, nullptr, nullptr };
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
    const size_t plain = scratch_of_plain_depthwise(e, g), forward = (size_t)max64(g->c, (int64_t)e->sms * FORWARD_CHANNELS) * 2 * sizeof(double);
    const size_t backward = (size_t)max64(g->c, (int64_t)e->sms * BACKWARD_CHANNELS) * ((size_t)(g->kernel * g->kernel) * sizeof(float) + 2 * sizeof(double));
    return (plain > forward ? plain > backward ? plain : backward : forward > backward ? forward : backward) + 512;
}

