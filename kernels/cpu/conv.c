/* conv.c - dense k x k convolutions, forward and backward, as products of blocks that are never unfolded.
 *
 * A lane walks down its rows of output, about BLOCK_ROWS positions at a time.  The rows of x that they read stand in a *slab*,
 * activated (batch norm and activation are paid once an element) and with their zero padding, so that a window never looks for
 * borders.  In a row of the slab the k columns of a window are neighbours in memory, k*c floats, and the next window begins
 * s*c floats on: the unfolded matrix of im2col is there already, as overlapping rows,
 *
 *     A[j][(a, b, d)] = slab[row i*s + a][(j*s + b)*c + d]           k runs of k*c floats; lda = s*c
 *
 * and the register tiles of gemm.c walk over it (gemm_walk).  wt (k,k,c,oc) is B (k*k*c, oc) as it lies in memory.
 *
 * Backward keeps two slabs, of u = act(bn(x)) and of dy.
 *     dwt[a] (k*c, oc) += A_a^T dy      with A_a the run of row a: no unfolding here either
 *     du[i,j] = sum over a = i+p, b = j+p (mod s) of dy[(i+p-a)/s, (j+p-b)/s] wt[a,b]^T
 * For each parity rp of i+p and cp of j+p the second is a convolution of stride 1 with ceil((k-rp)/s) x ceil((k-cp)/s) taps over
 * the slab of dy, whose result goes to every s-th row and column; its weights are packed apart, taps in falling order.  A sweep
 * over the rows that are done, still in the cache, makes dz of du where x has a batch norm.
 *
 * Rows belong to the lane that makes the row of output (i+p)/s, counted on below y where x is larger than what y reads.  What
 * two blocks share of a slab is moved, not formed again. */
#include "conv.h"
#include "gemm.h"
#include "passes.h"

static en_status check(en_backend *be, const en_conv_geom *g, const en_operand *x)
{
    CPU_ALIGNED(g->c);
    CPU_ALIGNED(g->oc);
    EN_REQUIRE(g->kernel >= 1 && g->kernel <= 7 && g->kernel % 2 == 1, EN_EINVAL, "convolution kernel %d: there are 1, 3, 5 and 7", g->kernel);
    EN_REQUIRE(g->stride == 1 || g->stride == 2, EN_EINVAL, "convolution stride %d: there are 1 and 2", g->stride);
    EN_REQUIRE(g->pad >= 0 && g->pad < g->kernel, EN_EINVAL, "convolution pad %d", g->pad);
    EN_REQUIRE((g->oh - 1) * g->stride - g->pad < g->h && (g->ow - 1) * g->stride - g->pad < g->w, EN_EINVAL, "a window misses the image");
    EN_REQUIRE(x->bn || x->act == EN_ACT_NONE, EN_EINVAL, "an activation without batch norm");
    CPU_FITS(be, stats, 2 * max64(g->c, g->oc));
    CPU_FITS(be, packed, g->kernel * g->kernel * g->c * g->oc);
    return EN_OK;
}

/* ---- slabs ---------------------------------------------------------------------------------------------------------- */

/* Rows [first, first + have) of `image`, `pitch` floats each; rows may lie outside of the image, where all is zero. */
typedef struct { float *at; int64_t pitch, image, first, have; } slab;

/* Moves the slab on to rows [first, first + need) of an image and returns how many of them it holds already. */
static int64_t advance(slab *s, int64_t image, int64_t first, int64_t need)
{
    int64_t kept = 0;
    if (s->image == image && first >= s->first) kept = max64(0, min64(s->first + s->have - first, need));
    if (kept > 0 && first > s->first) memmove(s->at, s->at + (first - s->first) * s->pitch, (size_t)(kept * s->pitch) * sizeof *s->at);
    s->image = image, s->first = first, s->have = need;
    return kept;
}

/* out (positions, c) = act(bn(src)) */
static void activate_row(const en_operand *x, const float *src, int64_t positions, int64_t c, float *out)
{
    if (!x->bn) { memcpy(out, src, (size_t)(positions * c) * sizeof *out); return; }
    for (int64_t i = 0; i < positions; i++, src += c, out += c)
        for (int64_t d = 0; d < c; d += VW) st(out + d, activate(ld(src + d), ld(x->bn->scale + d), ld(x->bn->shift + d), x->act));
}

static void fill_input(slab *s, const en_conv_geom *g, const en_operand *x, int64_t image, int64_t first, int64_t need)
{
    for (int64_t r = advance(s, image, first, need); r < need; r++) {
        float *row = s->at + r * s->pitch + g->pad * g->c;
        if (first + r < 0 || first + r >= g->h) memset(row, 0, (size_t)(g->w * g->c) * sizeof *row);
        else activate_row(x, (const float *)x->y + (image * g->h + first + r) * g->w * g->c, g->w, g->c, row);
    }
}

/* dy's row begins `left` positions into a row of the slab. */
static void fill_gradient(slab *s, const en_conv_geom *g, const en_grad *dy, int64_t left, int64_t image, int64_t first, int64_t need)
{
    for (int64_t r = advance(s, image, first, need); r < need; r++) {
        float *row = s->at + r * s->pitch + left * g->oc;
        if (first + r < 0 || first + r >= g->oh) memset(row, 0, (size_t)(g->ow * g->oc) * sizeof *row);
        else form_gradient(dy, (image * g->oh + first + r) * g->ow, g->ow, g->oc, row);
    }
}

/* ---- forward -------------------------------------------------------------------------------------------------------- */

en_status cpu_conv_forward(en_backend *be, const en_conv_geom *g, const en_operand *x, const float *wt, void *y, en_bn *bn)
{
    EN_TRY(check(be, g, x), "convolution forward");
    const conv_cut cut = cut_conv(g);
    const int64_t k = g->kernel, s = g->stride, pitch = cut.u_width * g->c, row_floats = g->ow * g->oc;
    CPU_FITS(be, rows, conv_u_floats(&cut, g));
    cpu_engine *e = engine(be);
    if (g->n > 0) ISA(pack)(be, k * k * g->c, g->oc, wt, false, e->packed);
    FOR_EACH_LANE(be, l) {
        struct cpu_lane *me = &e->lane[l];
        memset(me->stats, 0, (size_t)(2 * g->oc) * sizeof(double));
        const gemm_epilogue sums = { .shift = bn ? bn->running_mean : NULL, .stats = bn ? me->stats : NULL,
                                     .stream = outlives_caches(y, g->n * g->oh * row_floats) };
        const cpu_range range = lane_range(g->n * g->oh, l, be->lanes);
        slab u = { .at = me->rows, .pitch = pitch, .image = -1 };
        if (range.first < range.last) memset(me->rows, 0, (size_t)conv_u_floats(&cut, g) * sizeof(float));
        for (int64_t q = range.first, rows; q < range.last; q += rows) {
            const int64_t image = q / g->oh, i = q % g->oh;
            rows = min64(min64(cut.rows, g->oh - i), range.last - q);
            fill_input(&u, g, x, image, i * s - g->pad, (rows - 1) * s + k);
            const gemm_walk walk = { .k = k * g->c, .segments = k, .a_segment = pitch, .outer = rows, .a_outer = s * pitch, .c_outer = row_floats };
            ISA(gemm_walk_block)(&walk, g->ow, g->oc, u.at, s * g->c, e->packed, (float *)y + q * row_floats, g->oc, &sums);
        }
    }
    collect_stats(be, bn);
    if (bn) bn->local[2 * g->oc] = (double)(g->n * g->oh * g->ow);
    return EN_OK;
}

/* ---- backward ------------------------------------------------------------------------------------------------------- */

INLINE int64_t taps(int64_t k, int64_t parity, int64_t s) { return (k - parity + s - 1) / s; }

/* The weights of each pair of parities behind each other: (taps of a falling, taps of b falling, oc) rows of c columns.
 * begin[rp][cp]: where they begin. */
static void pack_backward(en_backend *be, const en_conv_geom *g, const float *wt, float *packed, int64_t begin[2][2])
{
    const int64_t k = g->kernel, s = g->stride;
    int64_t at = 0;
    for (int64_t rp = 0; rp < s; rp++)
        for (int64_t cp = 0; cp < s; cp++) {
            const int64_t nr = taps(k, rp, s), nt = taps(k, cp, s);
            begin[rp][cp] = at;
            for (int64_t r = 0; r < nr; r++)
                for (int64_t t = 0; t < nt; t++) {
                    const int64_t a = rp + s * (nr - 1 - r), b = cp + s * (nt - 1 - t);
                    ISA(pack_rows)(be, g->oc, g->c, wt + (a * k + b) * g->c * g->oc, true, (r * nt + t) * g->oc, nr * nt * g->oc, packed + at);
                }
            at += nr * nt * g->oc * g->c;
        }
}

/* dx = dx * act'(bn(raw)) over some positions; stats += {sum dx, sum dx*(raw - mean)} */
static void finish(const en_operand *x, const en_bn *xbn, int64_t positions, int64_t c, const float *raw, float *dx, double *stats)
{
    for (int64_t r0 = 0; r0 < positions; r0 += 64)              /* 64 rows in float, then double */
        for (int64_t i = 0; i < c; i += VW) {
            const vf a = ld(x->bn->scale + i), b = ld(x->bn->shift + i), mean = ld(xbn->mean + i);
            vf s0 = { 0 }, s1 = { 0 }, u;
            for (int64_t r = r0; r < min64(r0 + 64, positions); r++) {
                const vf v = ld(raw + r * c + i), dz = ld(dx + r * c + i) * act_slope(v * a + b, &u, x->act);
                st(dx + r * c + i, dz);
                s0 += dz;
                s1 += dz * (v - mean);
            }
            add_f64(stats + i, s0);
            add_f64(stats + c + i, s1);
        }
}

/* dx = conv^T(dy) (+ add) for the rows whose (i+p)/s lies in [o0, o1); dy's slab begins at row o0 - (ring-1) */
static void data_gradient(const en_conv_geom *g, const conv_cut *cut, const slab *d, int64_t image, int64_t o0, int64_t o1, const float *packed,
                          int64_t begin[2][2], const float *add, float *dx)
{
    const int64_t k = g->kernel, s = g->stride, p = g->pad, left = cut->ring - 1;
    for (int64_t rp = 0; rp < s; rp++) {
        const int64_t nr = taps(k, rp, s);                                              /* i = o*s + rp - p, within the image */
        const int64_t from = max64(o0, (p - rp + s - 1) / s), to = min64(o1, (g->h - 1 - rp + p) / s + 1);
        if (from >= to || g->h - 1 - rp + p < 0) continue;
        for (int64_t cp = 0; cp < s; cp++) {
            const int64_t nt = taps(k, cp, s), j0 = ((cp - p) % s + s) % s, at = (j0 + p - cp) / s + left - (nt - 1);
            if (j0 >= g->w) continue;
            const int64_t offset = ((image * g->h + from * s + rp - p) * g->w + j0) * g->c;
            const gemm_walk walk = { .k = nt * g->oc, .segments = nr, .a_segment = d->pitch, .outer = to - from, .a_outer = d->pitch,
                                     .c_outer = s * g->w * g->c };
            const gemm_epilogue plus = { .add = add ? add + offset : NULL, .ldadd = s * g->c };
            const float *a = nr > 0 && nt > 0 ? d->at + (from - o0 + left - (nr - 1)) * d->pitch + at * g->oc : d->at;
            ISA(gemm_walk_block)(&walk, (g->w - j0 + s - 1) / s, g->c, a, g->oc, packed + begin[rp][cp], dx + offset, s * g->c, &plus);
        }
    }
}

en_status cpu_conv_backward(en_backend *be, const en_conv_geom *g, const en_operand *x, const float *wt, const en_grad *dy, const void *add,
                            void *dx, float *dwt, en_bn *xbn)
{
    EN_TRY(check(be, g, x), "convolution backward");
    EN_REQUIRE(!dy->gated, EN_EINVAL, "the gradient of a convolution is not gated on this backend");
    EN_REQUIRE(!xbn == !x->bn, EN_EINVAL, "batch norm of x and its sums belong together");
    const conv_cut cut = cut_conv(g);
    const int64_t k = g->kernel, s = g->stride, left = cut.ring - 1, u_floats = conv_u_floats(&cut, g), d_floats = conv_d_floats(&cut, g);
    const int64_t weights = k * k * g->c * g->oc;
    CPU_FITS(be, rows, u_floats + d_floats);
    CPU_FITS(be, wgrad, weights);
    cpu_engine *e = engine(be);
    int64_t begin[2][2];
    if (g->n > 0) pack_backward(be, g, wt, e->packed, begin);
    FOR_EACH_LANE(be, l) {
        struct cpu_lane *me = &e->lane[l];
        memset(me->stats, 0, (size_t)(2 * g->c) * sizeof(double));
        memset(me->wgrad, 0, (size_t)weights * sizeof(float));
        const cpu_range range = lane_range(g->n * cut.all, l, be->lanes);
        slab u = { .at = me->rows, .pitch = cut.u_width * g->c, .image = -1 };
        slab d = { .at = me->rows + u_floats, .pitch = cut.d_width * g->oc, .image = -1 };
        if (range.first < range.last) memset(me->rows, 0, (size_t)(u_floats + d_floats) * sizeof(float));
        for (int64_t q = range.first, rows; q < range.last; q += rows) {
            const int64_t image = q / cut.all, o0 = q % cut.all;
            rows = min64(min64(cut.rows, cut.all - o0), range.last - q);
            fill_gradient(&d, g, dy, left, image, o0 - left, rows + left);
            const int64_t made = min64(o0 + rows, g->oh) - o0;                          /* those that are rows of y */
            if (made > 0) {
                fill_input(&u, g, x, image, o0 * s - g->pad, (made - 1) * s + k);
                for (int64_t a = 0; a < k; a++)
                    ISA(gemm_walk_wgrad)(made, s * u.pitch, d.pitch, g->ow, k * g->c, g->oc, u.at + a * u.pitch, s * g->c,
                                         d.at + left * (d.pitch + g->oc), g->oc, me->wgrad + a * k * g->c * g->oc);
            }
            data_gradient(g, &cut, &d, image, o0, o0 + rows, e->packed, begin, add, dx);
            const int64_t from = max64(0, o0 * s - g->pad), to = min64(g->h, (o0 + rows) * s - g->pad), at = (image * g->h + from) * g->w * g->c;
            if (xbn && to > from) finish(x, xbn, (to - from) * g->w, g->c, (const float *)x->y + at, (float *)dx + at, me->stats);
        }
    }
    collect_stats(be, xbn);
    if (g->n > 0) ISA(collect_wgrad)(be, weights, dwt);
    return EN_OK;
}
