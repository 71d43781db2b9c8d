/* depthwise.c - depthwise convolutions, forward and backward, one row of the image at a time.
 *
 * A lane walks down its rows (flat over images and rows).  Rows are kept activated - batch norm and silu are paid once an
 * element - in a ring of as many rows as the kernel is high, blocked by vector: [channel block][position][VW], so that the
 * inner loop reads contiguous memory and keeps its k*k weights in registers.  A row carries its zero padding with it, and
 * a row outside the image is one row of zeros: the inner loop knows no borders.
 *
 * All three products are one correlation of nr rows with nt taps each:
 *
 *     out[x] = sum_{r<nr, t<nt} row_r[x*s + t] * wr[r][t]
 *
 * forward: nr = nt = k.  Data gradient: du[i,j] = sum over (a,b) with a = i+pad (mod s), b = j+pad (mod s) of
 * dy[(i+pad-a)/s, (j+pad-b)/s]*wt[a,b]: for each row parity rp and column parity cp a stride-1 correlation of
 * ceil((k-rp)/s) rows with ceil((k-cp)/s) taps, written every s-th column; s = 1 is the case of one parity.
 * The weight gradient takes the same activated row against the same ring of dy rows:
 *     dwt[a,b] += sum_j u[j*s + b]*dy_a[j]      where dy_a is the row (i+pad-a)/s.
 * In all, e and dz_d are read once and dz_e is written once. */
#include "gemm.h"
#include "passes.h"

enum { MAX_K = 7 };

INLINE int taps(int k, int parity, int s) { return (k - parity + s - 1) / s; }

/* ---- one correlation ------------------------------------------------------------------------------------------------ */

typedef struct {                     /* one vector of channels of one row; pointers already at that vector          */
    const float *row[MAX_K];         /* blocked: position x at row + x*VW                                           */
    float *out; int64_t stride;      /* NHWC: output x at out + x*stride                                            */
    const float *raw, *add;          /* NHWC beside out: the raw tensor, and what is added (or NULL)                */
    const float *slope; int64_t slope_stride;   /* blocked: act' of the element, at slope + x*slope_stride          */
    vf centre;                       /* about which the sums are taken: running mean forward, mean backward         */
    double *sum0, *sum1;
    bool stream;                     /* `out` goes past the caches: only where a vector is a whole cache line       */
} corr_io;

enum { FORWARD, BACKWARD, BACKWARD_PLAIN };

INLINE void finish(int mode, const corr_io *io, int64_t x, vf v, vf *s0, vf *s1)
{
    if (mode == FORWARD) {
        if (VW == 16 && io->stream) st_stream(io->out + x * io->stride, v);
        else st(io->out + x * io->stride, v);
        v -= io->centre;
        *s0 += v;
        *s1 += v * v;
        return;
    }
    if (io->add) v += ld(io->add + x * io->stride);
    if (mode == BACKWARD) {
        v *= ld(io->slope + x * io->slope_stride);
        *s0 += v;
        *s1 += v * (ld(io->raw + x * io->stride) - io->centre);
    }
    if (VW == 16 && io->stream) st_stream(io->out + x * io->stride, v);
    else st(io->out + x * io->stride, v);
}

INLINE void correlate(int nr, int nt, int s, int nx, int mode, int64_t count, const vf wr[MAX_K][MAX_K], const corr_io *io)
{
    vf s0 = { 0 }, s1 = { 0 };
    int64_t x = 0;
    for (; x + nx <= count; x += nx) {
        vf acc[8];
        UNROLL for (int j = 0; j < nx; j++) acc[j] = (vf){ 0 };
        UNROLL for (int r = 0; r < nr; r++) {
            const float *p = io->row[r] + x * s * VW;
            UNROLL for (int i = 0; i < (nx - 1) * s + nt; i++) {
                const vf v = ld(p + i * VW);
                UNROLL for (int j = 0; j < nx; j++)
                    if (i - j * s >= 0 && i - j * s < nt) acc[j] += v * wr[r][i - j * s];
            }
        }
        UNROLL for (int j = 0; j < nx; j++) finish(mode, io, x + j, acc[j], &s0, &s1);
    }
    for (; x < count; x++) {
        vf acc = { 0 };
        UNROLL for (int r = 0; r < nr; r++)
            UNROLL for (int t = 0; t < nt; t++) acc += ld(io->row[r] + (x * s + t) * VW) * wr[r][t];
        finish(mode, io, x, acc, &s0, &s1);
    }
    if (mode != BACKWARD_PLAIN) {
        add_f64(io->sum0, s0);
        add_f64(io->sum1, s1);
    }
}

/* wt[a*k + b] of this vector of channels -> registers; forward in order, backward tap t is b = cp + s*(nt-1-t) */
typedef void corr_fn(int64_t count, const float *wt, int64_t c, int k, int s, int rp, int cp, const corr_io *io);
#define CORR_FORWARD(k_, s_, nx)                                                                                        \
    static __attribute__((noinline)) void forward_##k_##_##s_(int64_t count, const float *wt, int64_t c, const corr_io *io) \
    {                                                                                                                   \
        vf wr[MAX_K][MAX_K];                                                                                            \
        UNROLL for (int a = 0; a < k_; a++) UNROLL for (int b = 0; b < k_; b++) wr[a][b] = ld(wt + (a * k_ + b) * c);    \
        correlate(k_, k_, s_, nx, FORWARD, count, wr, io);                                                              \
    }
CORR_FORWARD(3, 1, 4) CORR_FORWARD(3, 2, 4) CORR_FORWARD(5, 1, 4) CORR_FORWARD(5, 2, 2) CORR_FORWARD(7, 1, 2) CORR_FORWARD(7, 2, 2)

#define CORR_BACKWARD(nr, nt, mode)                                                                                     \
    static __attribute__((noinline)) void backward_##nr##_##nt##_##mode(int64_t count, const float *wt, int64_t c, int k, int s, \
                                                                        int rp, int cp, const corr_io *io)              \
    {                                                                                                                   \
        vf wr[MAX_K][MAX_K];                                                                                            \
        UNROLL for (int r = 0; r < nr; r++)                                                                             \
            UNROLL for (int t = 0; t < nt; t++) wr[r][t] = ld(wt + ((rp + s * r) * k + cp + s * (nt - 1 - t)) * c);      \
        correlate(nr, nt, 1, 4, mode, count, wr, io);                                                                   \
    }
#define CORR_BACKWARDS(nr, nt) CORR_BACKWARD(nr, nt, 1) CORR_BACKWARD(nr, nt, 2)
CORR_BACKWARDS(1, 1) CORR_BACKWARDS(1, 2) CORR_BACKWARDS(2, 1) CORR_BACKWARDS(2, 2) CORR_BACKWARDS(2, 3) CORR_BACKWARDS(3, 2)
CORR_BACKWARDS(3, 3) CORR_BACKWARDS(3, 4) CORR_BACKWARDS(4, 3) CORR_BACKWARDS(4, 4) CORR_BACKWARDS(5, 5) CORR_BACKWARDS(7, 7)
#define B(nr, nt) [nr][nt] = { backward_##nr##_##nt##_1, backward_##nr##_##nt##_2 }
static corr_fn *const backward_fn[MAX_K + 1][MAX_K + 1][2] = { B(1, 1), B(1, 2), B(2, 1), B(2, 2), B(2, 3), B(3, 2), B(3, 3), B(3, 4),
                                                               B(4, 3), B(4, 4), B(5, 5), B(7, 7) };

/* ---- one row of the weight gradient ------------------------------------------------------------------------------- */

/* dwt[a_r*k + b] += sum_{j<count} u[j*s + b]*dy_r[j] for nr rows of dy; u and dy blocked */
INLINE void wgrad_rows(int k, int s, int nr, int64_t count, const float *u, const float *const *dy, const int *a, float *dwt, int64_t c)
{
    vf acc[MAX_K][MAX_K];
    UNROLL for (int r = 0; r < nr; r++) UNROLL for (int b = 0; b < k; b++) acc[r][b] = ld(dwt + (a[r] * k + b) * c);
    for (int64_t j = 0; j < count; j++) {
        vf x[MAX_K];
        UNROLL for (int b = 0; b < k; b++) x[b] = ld(u + (j * s + b) * VW);
        UNROLL for (int r = 0; r < nr; r++) {
            const vf d = ld(dy[r] + j * VW);
            UNROLL for (int b = 0; b < k; b++) acc[r][b] += x[b] * d;
        }
    }
    UNROLL for (int r = 0; r < nr; r++) UNROLL for (int b = 0; b < k; b++) st(dwt + (a[r] * k + b) * c, acc[r][b]);
}

#define WGRAD(k, s, nr)                                                                                                 \
    static __attribute__((noinline)) void wgrad_##k##_##s##_##nr(int64_t count, const float *u, const float *const *dy, const int *a, \
                                                                 float *dwt, int64_t c)                                 \
    { wgrad_rows(k, s, nr, count, u, dy, a, dwt, c); }
typedef void wgrad_fn(int64_t, const float *, const float *const *, const int *, float *, int64_t);
#if defined(__AVX512F__) || defined(__aarch64__)            /* as many rows at once as 32 or 16 registers hold */
enum { WROWS_3 = 3, WROWS_5 = 5, WROWS_7 = 3 };
WGRAD(5, 1, 3) WGRAD(5, 1, 4) WGRAD(5, 1, 5) WGRAD(5, 2, 3) WGRAD(7, 1, 2) WGRAD(7, 1, 3) WGRAD(7, 2, 2) WGRAD(7, 2, 3)
#define W5_1 { 0, wgrad_5_1_1, wgrad_5_1_2, wgrad_5_1_3, wgrad_5_1_4, wgrad_5_1_5 }
#define W5_2 { 0, wgrad_5_2_1, wgrad_5_2_2, wgrad_5_2_3 }
#define W7_1 { 0, wgrad_7_1_1, wgrad_7_1_2, wgrad_7_1_3 }
#define W7_2 { 0, wgrad_7_2_1, wgrad_7_2_2, wgrad_7_2_3 }
#else
enum { WROWS_3 = 3, WROWS_5 = 2, WROWS_7 = 1 };
#define W5_1 { 0, wgrad_5_1_1, wgrad_5_1_2 }
#define W5_2 { 0, wgrad_5_2_1, wgrad_5_2_2 }
#define W7_1 { 0, wgrad_7_1_1 }
#define W7_2 { 0, wgrad_7_2_1 }
#endif
WGRAD(3, 1, 1) WGRAD(3, 1, 2) WGRAD(3, 1, 3) WGRAD(3, 2, 1) WGRAD(3, 2, 2) WGRAD(5, 1, 1) WGRAD(5, 1, 2) WGRAD(5, 2, 1) WGRAD(5, 2, 2)
WGRAD(7, 1, 1) WGRAD(7, 2, 1)
static wgrad_fn *const wgrad_table[3][2][6] = { { { 0, wgrad_3_1_1, wgrad_3_1_2, wgrad_3_1_3 }, { 0, wgrad_3_2_1, wgrad_3_2_2 } },
                                                { W5_1, W5_2 }, { W7_1, W7_2 } };
static const int wgrad_rows_max[3] = { WROWS_3, WROWS_5, WROWS_7 };

/* ---- rows into the ring -------------------------------------------------------------------------------------------- */

/* blocked[cb][at + x] = act(bn(src[x])) for w positions of c channels; slope (blocked, width slope_w) = act' or NULL */
static void fill_activated(const float *src, int64_t w, int64_t c, const en_operand *x, float *blocked, int64_t width, int64_t at, float *slope)
{
    for (int64_t i = 0; i < w; i++)
        for (int64_t cb = 0; cb < c; cb += VW) {
            vf v = ld(src + i * c + cb);
            vf d = splat(1.f);
            if (x->bn) {
                v = v * ld(x->bn->scale + cb) + ld(x->bn->shift + cb);
                if (slope) d = act_slope(v, &v, x->act);
                else v = act_of(v, x->act);
            }
            st(blocked + cb * width + (at + i) * VW, v);
            if (slope) st(slope + cb * w + i * VW, d);
        }
}

static void fill_gradient(const en_grad *dy, int64_t row, int64_t w, int64_t c, float *blocked, int64_t width, int64_t at)
{
    const float *dz = (const float *)dy->stored + row * w * c, *y = (const float *)dy->y + row * w * c;
    for (int64_t i = 0; i < w; i++)
        for (int64_t cb = 0; cb < c; cb += VW)
            st(blocked + cb * width + (at + i) * VW,
               ld(dz + i * c + cb) * ld(dy->bn->ga + cb) + (ld(y + i * c + cb) * ld(dy->bn->gb + cb) + ld(dy->bn->gc + cb)));
}

/* ---- the passes ----------------------------------------------------------------------------------------------------- */

static en_status check(en_backend *be, const en_conv_geom *g, const en_operand *x)
{
    CPU_ALIGNED(g->c);
    EN_REQUIRE(g->kernel == 3 || g->kernel == 5 || g->kernel == 7, EN_EINVAL, "depthwise kernel %d: there are 3, 5 and 7", g->kernel);
    EN_REQUIRE(g->stride == 1 || g->stride == 2, EN_EINVAL, "depthwise stride %d: there are 1 and 2", g->stride);
    EN_REQUIRE(g->pad >= 0 && g->pad < g->kernel && g->oc == g->c, EN_EINVAL, "depthwise pad %d, %lld -> %lld channels", g->pad,
               (long long)g->c, (long long)g->oc);
    EN_REQUIRE((g->oh - 1) * g->stride - g->pad < g->h && (g->ow - 1) * g->stride - g->pad < g->w, EN_EINVAL, "a window misses the image");
    EN_REQUIRE(x->bn || x->act == EN_ACT_NONE, EN_EINVAL, "an activation without batch norm");
    CPU_FITS(be, stats, 2 * g->c);
    return EN_OK;
}

static int64_t padded_width(const en_conv_geom *g)      /* of an activated row */
{
    return max64((g->ow - 1) * g->stride + g->kernel, g->pad + g->w);
}

en_status cpu_depthwise_forward(en_backend *be, const en_conv_geom *g, const en_operand *x, const float *wt, void *y, en_bn *bn)
{
    EN_TRY(check(be, g, x), "depthwise forward");
    const int k = g->kernel, s = g->stride;
    const int64_t c = g->c, width = padded_width(g), row_elems = width * c;
    CPU_FITS(be, rows, (k + 1) * row_elems);
    const bool stream = outlives_caches(y, g->n * g->oh * g->ow * c);
    void (*const run)(int64_t, const float *, int64_t, const corr_io *) =
        k == 3 ? (s == 1 ? forward_3_1 : forward_3_2) : k == 5 ? (s == 1 ? forward_5_1 : forward_5_2) : (s == 1 ? forward_7_1 : forward_7_2);
    FOR_EACH_LANE(be, l) {
        struct cpu_lane *me = &engine(be)->lane[l];
        memset(me->stats, 0, (size_t)(2 * c) * sizeof(double));
        const cpu_range range = lane_range(g->n * g->oh, l, be->lanes);
        if (range.first < range.last) memset(me->rows, 0, (size_t)((k + 1) * row_elems) * sizeof(float));
        const float *zero_row = me->rows + k * row_elems;
        int64_t have = 0;                               /* rows [.., have) of this image are, or were, in the ring */
        for (int64_t q = range.first; q < range.last; q++) {
            const int64_t n = q / g->oh, i0 = q % g->oh * s - g->pad, from = max64(i0, 0), to = min64(i0 + k, g->h);
            if (q == range.first || i0 == -g->pad || have < from) have = from;
            for (; have < to; have++)
                fill_activated((const float *)x->y + (n * g->h + have) * g->w * c, g->w, c, x, me->rows + have % k * row_elems, width, g->pad,
                               NULL);
            for (int64_t cb = 0; cb < c; cb += VW) {
                corr_io io = { .stream = stream, .out = (float *)y + q * g->ow * c + cb, .stride = c, .sum0 = me->stats + cb, .sum1 = me->stats + c + cb,
                               .centre = bn ? ld(bn->running_mean + cb) : (vf){ 0 } };
                for (int a = 0; a < k; a++)
                    io.row[a] = (i0 + a >= from && i0 + a < to ? me->rows + (i0 + a) % k * row_elems : zero_row) + cb * width;
                run(g->ow, wt + cb, c, &io);
            }
        }
        if (stream) stream_fence();
    }
    collect_stats(be, bn);
    if (bn) bn->local[2 * c] = (double)(g->n * g->oh * g->ow);
    return EN_OK;
}

en_status cpu_depthwise_backward(en_backend *be, const en_conv_geom *g, const en_operand *x, const float *wt, const en_grad *dy, const void *add,
                             void *dx, float *dwt, en_bn *xbn)
{
    EN_TRY(check(be, g, x), "depthwise backward");
    EN_REQUIRE(dy->stored && !dy->drop && !dy->gated, EN_EINVAL, "the gradient of a depthwise output is stored");
    EN_REQUIRE(!xbn == !x->bn && (!add || add != dx), EN_EINVAL, "batch norm of x and its sums belong together; dx may not be `add`");
    const int k = g->kernel, s = g->stride, ring = (k + s - 1) / s, left = k - 1, ki = (k - 3) / 2;
    const int64_t c = g->c, uw = padded_width(g), dw = max64((g->w - 1 + g->pad) / s, g->ow - 1) + 1 + left;
    const int64_t d_elems = dw * c, u_elems = uw * c;
    CPU_FITS(be, rows, (ring + 1) * d_elems + u_elems + g->w * c);
    CPU_FITS(be, wgrad, k * k * c);
    const bool stream = outlives_caches(dx, g->n * g->h * g->w * c);
    FOR_EACH_LANE(be, l) {
        struct cpu_lane *me = &engine(be)->lane[l];
        float *const zero_row = me->rows + ring * d_elems, *const u = zero_row + d_elems, *const slope = u + u_elems;
        memset(me->stats, 0, (size_t)(2 * c) * sizeof(double));
        memset(me->wgrad, 0, (size_t)(k * k * c) * sizeof(float));
        const cpu_range range = lane_range(g->n * g->h, l, be->lanes);
        if (range.first < range.last) memset(me->rows, 0, (size_t)((ring + 1) * d_elems + u_elems) * sizeof(float));
        int64_t have = 0;
        for (int64_t q = range.first; q < range.last; q++) {
            const int64_t n = q / g->h, i = q % g->h;
            const int rp = (int)((i + g->pad) % s), nr = taps(k, rp, s);
            const int64_t top = (i + g->pad - rp) / s, from = max64(top - nr + 1, 0), to = min64(top + 1, g->oh);
            if (q == range.first || i == 0 || have < from) have = from;
            for (; have < to; have++)
                fill_gradient(dy, n * g->oh + have, g->ow, c, me->rows + have % ring * d_elems, dw, left);
            const float *src = (const float *)x->y + q * g->w * c;
            fill_activated(src, g->w, c, x, u, uw, g->pad, x->bn ? slope : NULL);

            for (int64_t cb = 0; cb < c; cb += VW) {
                corr_io io = { .stream = stream, .stride = s * c, .sum0 = me->stats + cb, .sum1 = me->stats + c + cb, .slope_stride = s * VW,
                               .centre = xbn ? ld(xbn->mean + cb) : (vf){ 0 } };
                const float *row[MAX_K], *valid[MAX_K];
                int a[MAX_K], rows = 0;
                for (int r = 0; r < nr; r++) {
                    const bool inside = top - r >= 0 && top - r < g->oh;
                    row[r] = (inside ? me->rows + (top - r) % ring * d_elems : zero_row) + cb * dw;
                    if (inside) valid[rows] = row[r] + left * VW, a[rows++] = rp + s * r;
                }
                for (int r = 0; r < rows; r += wgrad_rows_max[ki]) {
                    const int some = rows - r < wgrad_rows_max[ki] ? rows - r : wgrad_rows_max[ki];
                    wgrad_table[ki][s - 1][some](g->ow, u + cb * uw, valid + r, a + r, me->wgrad + cb, c);
                }
                for (int cp = 0; cp < s; cp++) {
                    const int nt = taps(k, cp, s);
                    const int64_t j0 = ((cp - g->pad) % s + s) % s, at = (j0 + g->pad - cp) / s + left - (nt - 1);
                    if (j0 >= g->w) continue;
                    for (int r = 0; r < nr; r++) io.row[r] = row[r] + at * VW;
                    io.out = (float *)dx + q * g->w * c + j0 * c + cb;
                    io.raw = src + j0 * c + cb;
                    io.add = add ? (const float *)add + q * g->w * c + j0 * c + cb : NULL;
                    io.slope = slope + cb * g->w + j0 * VW;
                    backward_fn[nr][nt][x->bn ? 0 : 1]((g->w - j0 + s - 1) / s, wt + cb, c, k, s, rp, cp, &io);
                }
            }
        }
        if (stream) stream_fence();
    }
    collect_stats(be, xbn);
    if (g->n > 0) ISA(collect_wgrad)(be, k * k * c, dwt);
    return EN_OK;
}
