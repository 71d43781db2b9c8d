/* maxpool.c - the largest of a window of an image, and the way back to where it stood.
 *
 * Forward goes over rows of the output, VW channels at a time.  u = act(bn(x)) is formed again for each window that holds it, 2.25
 * times at 3x3 with stride 2: the neighbours are still in L1, and what u costs hides behind the memory.  Beside the largest value
 * stands its place in the window, a byte a value, so that backward compares no floats and needs neither u nor y.
 *
 * Backward gathers: a position of the image asks the windows that hold it, in their order, whether it is their largest.  So nothing is
 * added across lanes, dx is written once, and the sums of its batch norm come from the same sweep. */
#include "passes.h"

INLINE vi   all_of(int i)                { return i - (vi){ 0 }; }
INLINE vf   choose(vi m, vf yes, vf no)  { return (vf)((m & (vi)yes) | (~m & (vi)no)); }

static en_status check(const en_conv_geom *g, const en_operand *x)
{
    CPU_ALIGNED(g->c);
    EN_REQUIRE(g->c == g->oc, EN_EINVAL, "a pool of %lld channels makes %lld", (long long)g->c, (long long)g->oc);
    EN_REQUIRE(g->kernel >= 2 && g->kernel <= 7, EN_EINVAL, "max pool of %d x %d: there are 2 to 7", g->kernel, g->kernel);
    EN_REQUIRE(g->stride >= 1, EN_EINVAL, "max pool stride %d", g->stride);
    EN_REQUIRE(g->pad >= 0 && g->pad < g->kernel, EN_EINVAL, "max pool pad %d", g->pad);
    EN_REQUIRE((g->oh - 1) * g->stride - g->pad < g->h && (g->ow - 1) * g->stride - g->pad < g->w, EN_EINVAL, "a window misses the image");
    EN_REQUIRE(x->bn || x->act == EN_ACT_NONE, EN_EINVAL, "an activation without batch norm");
    return EN_OK;
}

/* ---- forward -------------------------------------------------------------------------------------------------------- */

/* The taps of a window that begins at `at` which are inside an image of `size` rows or columns. */
static cpu_range inside(int64_t at, int64_t k, int64_t size) { return (cpu_range){ max64(0, -at), min64(k, size - at) }; }

/* One window, all channels: corner is tap (0,0), be it inside of the image or not; rows of the image are `row` floats.  out, and place (NULL:
 * not wanted) take the answer.  Inlined with known taps where no border is near. */
INLINE void window(const en_operand *x, const float *corner, int64_t row, int64_t c, int k, cpu_range a, cpu_range b, float *out, uint8_t *place)
{
    for (int64_t i = 0; i < c; i += VW) {
        const vf scale = x->bn ? ld(x->bn->scale + i) : splat(1.f), shift = x->bn ? ld(x->bn->shift + i) : splat(0.f);
        vf top = splat(-__builtin_inff());
        vi at = all_of((int)(a.first * k + b.first));
        UNROLL
        for (int64_t p = a.first; p < a.last; p++)
            UNROLL
            for (int64_t q = b.first; q < b.last; q++) {
                vf u = ld(corner + p * row + q * c + i);
                if (x->bn) u = activate(u, scale, shift, x->act);
                const vi larger = ~(u <= top) & (top == top);             /* a NaN is, and nothing is larger than it */
                top = choose(larger, u, top);
                at = (larger & all_of((int)(p * k + q))) | (~larger & at);
            }
        st(out + i, top);
        if (place) st_u8(place + i, at);
    }
}

/* A row of output, whose window begins at row i0 of the image at src. */
INLINE void forward_row(const en_conv_geom *g, int k, const en_operand *x, const float *src, int64_t i0, float *out, uint8_t *place)
{
    const int64_t c = g->c, row = g->w * c;
    const cpu_range a = inside(i0, k, g->h);
    for (int64_t j = 0; j < g->ow; j++, out += c) {
        const int64_t j0 = j * g->stride - g->pad;
        const cpu_range b = inside(j0, k, g->w);
        const float *corner = src + i0 * row + j0 * c;
        if (a.last - a.first == k && b.last - b.first == k) window(x, corner, row, c, k, (cpu_range){ 0, k }, (cpu_range){ 0, k }, out, place);
        else window(x, corner, row, c, k, a, b, out, place);
        if (place) place += c;
    }
}

en_status cpu_max_pool_forward(en_backend *be, const en_conv_geom *g, const en_operand *x, void *y, uint8_t *at)
{
    EN_TRY(check(g, x), "max pool forward");
    FOR_EACH_LANE(be, l) {
        const cpu_range r = lane_range(g->n * g->oh, l, be->lanes);
        for (int64_t q = r.first; q < r.last; q++) {
            const int64_t i0 = q % g->oh * g->stride - g->pad, to = q * g->ow * g->c;
            const float *src = (const float *)x->y + q / g->oh * g->h * g->w * g->c;
            if (g->kernel == 3) forward_row(g, 3, x, src, i0, (float *)y + to, at ? at + to : NULL);
            else if (g->kernel == 2) forward_row(g, 2, x, src, i0, (float *)y + to, at ? at + to : NULL);
            else forward_row(g, g->kernel, x, src, i0, (float *)y + to, at ? at + to : NULL);
        }
    }
    return EN_OK;
}

/* ---- backward ------------------------------------------------------------------------------------------------------- */

enum { MAX_K = 7, BLOCK = 64 };      /* positions that are summed in float, then double */

/* The windows, of `count` along one direction, that hold position i. */
static cpu_range holding(const en_conv_geom *g, int64_t i, int64_t count)
{
    const int64_t before = i + g->pad - g->kernel;                        /* windows that begin here have just ended */
    return (cpu_range){ before < 0 ? 0 : before / g->stride + 1, min64(count, (i + g->pad) / g->stride + 1) };
}

/* The windows that hold a position: where their output is, and which of their places the position is. */
typedef struct { int count; struct { int64_t from; int32_t place; } of[MAX_K * MAX_K]; } windows;

static void find_windows(const en_conv_geom *g, int64_t i, int64_t j, windows *w)
{
    const cpu_range above = holding(g, i, g->oh), beside = holding(g, j, g->ow);
    w->count = 0;
    for (int64_t p = above.first; p < above.last; p++)
        for (int64_t q = beside.first; q < beside.last; q++) {
            w->of[w->count].from = (p * g->ow + q) * g->c;
            w->of[w->count++].place = (int32_t)((i + g->pad - p * g->stride) * g->kernel + j + g->pad - q * g->stride);
        }
}

/* All channels of one position that `taps` windows hold; s0, s1 += {dx, dx*(x-mean)} where there is a batch norm. */
INLINE void backward_position(const windows *w, int taps, int64_t c, const en_operand *x, const float *raw, const uint8_t *at, const float *dy, float *dx,
                              const en_bn *xbn, float *s0, float *s1)
{
    const float *const scale = xbn ? x->bn->scale : NULL, *const shift = xbn ? x->bn->shift : NULL, *const mean = xbn ? xbn->mean : NULL;
    const en_act act = x->act;
    for (int64_t d = 0; d < c; d += VW) {
        vf sum = { 0 }, u;
        UNROLL
        for (int t = 0; t < taps; t++) sum += (vf)((ld_u8(at + w->of[t].from + d) == all_of(w->of[t].place)) & (vi)ld(dy + w->of[t].from + d));
        if (xbn) {
            const vf v = ld(raw + d);
            if (act != EN_ACT_NONE) sum *= act_slope(v * ld(scale + d) + ld(shift + d), &u, act);
            st(s0 + d, ld(s0 + d) + sum);
            st(s1 + d, ld(s1 + d) + sum * (v - ld(mean + d)));
        }
        st(dx + d, sum);
    }
}

/* Positions [j0, j1) of row i of one image, at whose beginning all pointers are; stats += {sum dx, sum dx*(x-mean)}. */
static void backward_block(const en_conv_geom *g, const en_operand *x, const float *raw, const uint8_t *at, const float *dy, int64_t i, int64_t j0,
                           int64_t j1, float *dx, const en_bn *xbn, double *stats)
{
    const int64_t c = g->c;
    float *const s0 = row_sums(stats, c), *const s1 = s0 + c;
    memset(s0, 0, (size_t)(2 * c) * sizeof *s0);
    for (int64_t j = j0; j < j1; j++) {
        windows w;
        find_windows(g, i, j, &w);
        const int64_t to = (i * g->w + j) * c;
        const float *from = xbn ? raw + to : NULL;
        if (w.count == 1) backward_position(&w, 1, c, x, from, at, dy, dx + to, xbn, s0, s1);
        else if (w.count == 2) backward_position(&w, 2, c, x, from, at, dy, dx + to, xbn, s0, s1);
        else if (w.count == 4) backward_position(&w, 4, c, x, from, at, dy, dx + to, xbn, s0, s1);
        else backward_position(&w, w.count, c, x, from, at, dy, dx + to, xbn, s0, s1);
    }
    for (int64_t d = 0; xbn && d < 2 * c; d += VW) add_f64(stats + d, ld(s0 + d));
}

en_status cpu_max_pool_backward(en_backend *be, const en_conv_geom *g, const en_operand *x, const uint8_t *at, const void *dy, void *dx, en_bn *xbn)
{
    EN_TRY(check(g, x), "max pool backward");
    EN_REQUIRE(!xbn == !x->bn, EN_EINVAL, "batch norm of x and its sums belong together");
    CPU_FITS(be, stats, 6 * g->c);
    FOR_EACH_LANE(be, l) {
        double *stats = engine(be)->lane[l].stats;
        memset(stats, 0, (size_t)(2 * g->c) * sizeof *stats);
        const cpu_range r = lane_range(g->n * g->h, l, be->lanes);
        for (int64_t q = r.first; q < r.last; q++) {
            const int64_t image = q / g->h, to = image * g->h * g->w * g->c, from = image * g->oh * g->ow * g->c;
            for (int64_t j = 0; j < g->w; j += BLOCK)
                backward_block(g, x, x->bn ? (const float *)x->y + to : NULL, at + from, (const float *)dy + from, q % g->h, j, min64(j + BLOCK, g->w),
                               (float *)dx + to, xbn, stats);
        }
    }
    collect_stats(be, xbn);
    return EN_OK;
}
