/* maxpool.cu - the largest of a window of an image, and the way back to where it stood.
 *
 * Both are sweeps over positions, 8 channels a thread: of the output on the way there, where a thread reads its window through L1 and
 * L2 (DRAM gives x about once), of the image on the way back, where it asks the windows that hold its position, in their order,
 * whether it is their largest.  So nothing is scattered, no atomics are needed, and the sums of batch norm come from the same sweep.
 * The place of the largest is a byte a value: backward compares integers, and reads dy and bytes in place of y and u. */
#include "passes.h"
#include "sweep.h"

struct pool { const void *x; void *out; uint8_t *at; const float *scale, *shift; en_act act; int k, stride, pad, h, w, oh, ow; };
struct pool_back { const void *x, *dy; void *dx; const uint8_t *at; const float *scale, *shift, *mean; en_act act; int k, stride, pad, h, w, oh, ow; };

/* Where a row of a sweep lies in its image, h x w positions; one division, then additions. */
struct position { int64_t image; int i, j; };
EN_DEVICE position position_of(int64_t row, int h, int w)
{
    const int64_t line = row / w;
    return { line / h, (int)(line % h), (int)(row % w) };
}
EN_DEVICE void move_on(position *p, int rows, int h, int w)
{
    for (p->j += rows; p->j >= w; p->j -= w)
        if (++p->i == h) p->i = 0, p->image++;
}

EN_DEVICE void keep_larger(float u, int place, float *top, int *at)
{
    if (u <= *top || *top != *top) return;                      /* a NaN is larger than all, and nothing is larger than it */
    *top = u, *at = place;
}

/* sweep (1, n*oh*ow, c); K: the kernel, 0: e.k.  Bytes: x about once, out once, at once.  Edge: a tap outside of the image is left out;
 * the first that is inside is the place of a window that holds -infinity alone. */
template <typename T, int K, bool BN> static __global__ void __launch_bounds__(SWEEP_BLOCK, sizeof(T) == 2 ? 3 : 2) largest_of_windows(sweep s, pool e)
{
    const sweep_place p = place_in(s);
    const T *const x = (const T *)e.x;
    const int k = K ? K : e.k;
    float a[8], b[8];
    if (BN) load8(e.scale + p.channel, a), load8(e.shift + p.channel, b);
    position at = position_of(p.first, e.oh, e.ow);
    for (int64_t r = p.first; r < p.end; r += s.stride, move_on(&at, s.stride, e.oh, e.ow)) {
        const int i0 = at.i * e.stride - e.pad, j0 = at.j * e.stride - e.pad;
        const T *const image = x + at.image * e.h * e.w * s.c + p.channel;
        float top[8];
        int place[8];
        fill8(top, -INFINITY);
#pragma unroll
        for (int q = 0; q < 8; q++) place[q] = (i0 < 0 ? -i0 * k : 0) + (j0 < 0 ? -j0 : 0);
#pragma unroll
        for (int v = 0; v < k; v++) {
            if (i0 + v < 0 || i0 + v >= e.h) continue;
            const T *const row = image + ((int64_t)(i0 + v) * e.w + j0) * s.c;
            raw8<T> raw[K ? K : 1];
            if (K) {
#pragma unroll
                for (int t = 0; t < K; t++)
                    if (j0 + t >= 0 && j0 + t < e.w) raw[t] = fetch8(row + t * s.c);
            }
#pragma unroll
            for (int t = 0; t < k; t++) {
                if (j0 + t < 0 || j0 + t >= e.w) continue;
                if (!K) raw[0] = fetch8(row + t * s.c);
                float u[8];
                open8(raw[K ? t : 0], u);
#pragma unroll
                for (int q = 0; q < 8; q++) keep_larger(BN ? act_value<T>(e.act, fmaf(u[q], a[q], b[q])) : u[q], v * k + t, &top[q], &place[q]);
            }
        }
        const int64_t to = at_row(s, p, r);
        store8((T *)e.out + to, top);
        if (e.at) {
            unsigned low = 0, high = 0;
#pragma unroll
            for (int q = 0; q < 4; q++) low |= (unsigned)place[q] << 8 * q, high |= (unsigned)place[4 + q] << 8 * q;
            *(uint2 *)(e.at + to) = make_uint2(low, high);
        }
    }
}

/* The first window, of those along one direction, that holds position i, and the first that does not any more. */
EN_DEVICE int first_holding(int i, int k, int stride, int pad) { return i + pad < k ? 0 : (i + pad - k) / stride + 1; }
EN_DEVICE int after_holding(int i, int stride, int pad, int windows)
{
    const int last = (i + pad) / stride + 1;
    return last < windows ? last : windows;
}

/* dy and places of one window: sum += dy where the place is `place` */
template <typename T> EN_DEVICE void add_window(const raw8<T> &dy, uint2 at, int place, float sum[8])
{
    float v[8];
    open8(dy, v);
#pragma unroll
    for (int q = 0; q < 8; q++)
        if (((q < 4 ? at.x : at.y) >> 8 * (q % 4) & 255u) == (unsigned)place) sum[q] += v[q];
}

/* sweep (1, n*h*w, c); MOST: windows that hold a position along one direction at most, 0: any number.  dx (=) and partials[part] =
 * { sum dx, sum dx*(x - mean) }, of dx as stored, where BN.  Bytes: dx once, x once (BN), dy and places about once. */
template <typename T, int MOST, bool BN> static __global__ void __launch_bounds__(SWEEP_BLOCK, sizeof(T) == 2 && !BN ? 3 : 2)
    back_to_the_largest(sweep s, pool_back e, double *partials)
{
    __shared__ __align__(16) float held[BN ? SWEEP_SHARED(2) : 1];
    const sweep_place p = place_in(s);
    const T *const dy = (const T *)e.dy;
    float a[8], b[8], about[8], sums[2][8];
    if (BN) load8(e.scale + p.channel, a), load8(e.shift + p.channel, b), load8(e.mean + p.channel, about);
    fill8(sums[0], 0.f), fill8(sums[1], 0.f);
    position at = position_of(p.first, e.h, e.w);
    for (int64_t r = p.first; r < p.end; r += s.stride, move_on(&at, s.stride, e.h, e.w)) {
        const int64_t to = at_row(s, p, r), image = at.image * e.oh * e.ow;
        const int v0 = first_holding(at.i, e.k, e.stride, e.pad), v1 = after_holding(at.i, e.stride, e.pad, e.oh);
        const int t0 = first_holding(at.j, e.k, e.stride, e.pad), t1 = after_holding(at.j, e.stride, e.pad, e.ow);
        const int corner = (at.i + e.pad) * e.k + at.j + e.pad;                 /* its place in a window that begins at the image's padding */
        raw8<T> raw;
        float dz[8];
        if (BN) raw = fetch8((const T *)e.x + to);
        fill8(dz, 0.f);
        if (MOST) {
            raw8<T> some[MOST * MOST + !MOST];
            uint2 places[MOST * MOST + !MOST];
#pragma unroll
            for (int q = 0; q < MOST * MOST; q++) {
                const int v = v0 + q / (MOST + !MOST), t = t0 + q % (MOST + !MOST);
                if (v < v1 && t < t1) {
                    const int64_t from = (image + (int64_t)v * e.ow + t) * s.c + p.channel;
                    some[q] = fetch8(dy + from), places[q] = *(const uint2 *)(e.at + from);
                }
            }
#pragma unroll
            for (int q = 0; q < MOST * MOST; q++) {
                const int v = v0 + q / (MOST + !MOST), t = t0 + q % (MOST + !MOST);
                if (v < v1 && t < t1) add_window<T>(some[q], places[q], corner - e.stride * (v * e.k + t), dz);
            }
        } else {
            for (int v = v0; v < v1; v++)
                for (int t = t0; t < t1; t++) {
                    const int64_t from = (image + (int64_t)v * e.ow + t) * s.c + p.channel;
                    add_window<T>(fetch8(dy + from), *(const uint2 *)(e.at + from), corner - e.stride * (v * e.k + t), dz);
                }
        }
        float v[8];
        if (BN) {
            open8(raw, v);
#pragma unroll
            for (int q = 0; q < 8; q++) dz[q] *= act_slope<T>(e.act, fmaf(v[q], a[q], b[q]));
        }
        store8((T *)e.dx + to, dz);
        if (BN) {
#pragma unroll
            for (int q = 0; q < 8; q++) {
                sums[0][q] += dz[q];
                sums[1][q] = fmaf(dz[q], v[q] - about[q], sums[1][q]);
            }
        }
    }
    if (BN) {
        double *const out = partials + p.part * 2 * s.c;
        block_sums<2>(s, sums, held, [&](int k, int64_t channel, double sum) { out[k * s.c + channel] = sum; });
    }
}

static en_status check(const en_conv_geom *g, const en_operand *x)
{
    CU_CHANNELS(g->c);
    EN_REQUIRE(g->c == g->oc, EN_EINVAL, "a pool of %lld channels makes %lld", (long long)g->c, (long long)g->oc);
    EN_REQUIRE(g->kernel >= 2 && g->kernel <= 7, EN_EINVAL, "max pool of %d x %d: there are 2 to 7", g->kernel, g->kernel);
    EN_REQUIRE(g->stride >= 1, EN_EINVAL, "max pool stride %d", g->stride);
    EN_REQUIRE(g->pad >= 0 && g->pad < g->kernel, EN_EINVAL, "max pool pad %d", g->pad);
    EN_REQUIRE((g->oh - 1) * g->stride - g->pad < g->h && (g->ow - 1) * g->stride - g->pad < g->w, EN_EINVAL, "a window misses the image");
    EN_REQUIRE(x->bn || x->act == EN_ACT_NONE, EN_EINVAL, "an activation without batch norm");
    return EN_OK;
}

en_status cuda_max_pool_forward(en_backend *be, const en_conv_geom *g, const en_operand *x, void *y, uint8_t *at)
{
    EN_TRY(check(g, x), "max pool forward");
    const int64_t rows = g->n * g->oh * g->ow;
    if (rows == 0) return EN_OK;
    const sweep s = sweep_to_write(engine(be), 1, rows, g->c);
    const cudaStream_t stream = engine(be)->compute;
    const en_bn *bn = x->bn;
    const pool e = { x->y, y, at, bn ? bn->scale : NULL, bn ? bn->shift : NULL, x->act, g->kernel, g->stride, g->pad, (int)g->h, (int)g->w, (int)g->oh, (int)g->ow };
    if (g->kernel == 3 && bn) BY_TYPE(be, T, (largest_of_windows<T, 3, true><<<sweep_grid(s), SWEEP_BLOCK, 0, stream>>>(s, e)));
    else if (g->kernel == 3) BY_TYPE(be, T, (largest_of_windows<T, 3, false><<<sweep_grid(s), SWEEP_BLOCK, 0, stream>>>(s, e)));
    else if (bn) BY_TYPE(be, T, (largest_of_windows<T, 0, true><<<sweep_grid(s), SWEEP_BLOCK, 0, stream>>>(s, e)));
    else BY_TYPE(be, T, (largest_of_windows<T, 0, false><<<sweep_grid(s), SWEEP_BLOCK, 0, stream>>>(s, e)));
    CU_LAUNCHED("max pool, %lld images of %lld x %lld x %lld", (long long)g->n, (long long)g->h, (long long)g->w, (long long)g->c);
    return EN_OK;
}

en_status cuda_max_pool_backward(en_backend *be, const en_conv_geom *g, const en_operand *x, const uint8_t *at, const void *dy, void *dx, en_bn *xbn)
{
    EN_TRY(check(g, x), "max pool backward");
    EN_REQUIRE(!xbn == !x->bn, EN_EINVAL, "batch norm of x and its sums belong together");
    const int64_t rows = g->n * g->h * g->w;
    if (rows == 0) return xbn ? collect(be, NULL, 0, 2 * g->c, xbn->local) : EN_OK;
    const sweep s = xbn ? sweep_to_sum(engine(be), 1, rows, g->c) : sweep_to_write(engine(be), 1, rows, g->c);
    const cudaStream_t stream = engine(be)->compute;
    const pool_back e = { x->y, dy, dx, at, xbn ? x->bn->scale : NULL, xbn ? x->bn->shift : NULL, xbn ? xbn->mean : NULL, x->act,
                          g->kernel, g->stride, g->pad, (int)g->h, (int)g->w, (int)g->oh, (int)g->ow };
    scratch_carver scratch = carver_of(be);
    double *partials = xbn ? scratch.take<double>(sweep_parts(s) * 2 * g->c) : NULL;
    SCRATCH_FITS(be, scratch);
    const bool few = g->kernel > g->stride && g->kernel <= 2 * g->stride;
    if (few && xbn) BY_TYPE(be, T, (back_to_the_largest<T, 2, true><<<sweep_grid(s), SWEEP_BLOCK, 0, stream>>>(s, e, partials)));
    else if (few) BY_TYPE(be, T, (back_to_the_largest<T, 2, false><<<sweep_grid(s), SWEEP_BLOCK, 0, stream>>>(s, e, partials)));
    else if (xbn) BY_TYPE(be, T, (back_to_the_largest<T, 0, true><<<sweep_grid(s), SWEEP_BLOCK, 0, stream>>>(s, e, partials)));
    else BY_TYPE(be, T, (back_to_the_largest<T, 0, false><<<sweep_grid(s), SWEEP_BLOCK, 0, stream>>>(s, e, partials)));
    CU_LAUNCHED("back through a max pool, %lld images of %lld x %lld x %lld", (long long)g->n, (long long)g->h, (long long)g->w, (long long)g->c);
    return xbn ? collect(be, partials, sweep_parts(s), 2 * g->c, xbn->local) : EN_OK;
}
