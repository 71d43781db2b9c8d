/* resize_pass.c - from the part of a picture that is looked at to the network's input, in one pass over the target.
 *
 * Two families of kernels, both separable, with c the place that an output index looks at, in pixels of the part:
 *
 *   Plain: K neighbours whatever the scale.
 *     BICUBIC   tensorflow/core/kernels/image/resize_bicubic_op.cc with half_pixel_centers = false.  c = i * (in / out), in
 *               float32; the four samples floor(c) - 1 ... floor(c) + 2, clamped to the part.  With t = c - floor(c) rounded
 *               to 1/1024 and Keys' kernel at A = -0.75 the weights are k(1 + t), k(t), k(1 - t), k(2 - t):
 *                   k(x) = (A+2) x^3 - (A+3) x^2 + 1              0 <= x <= 1
 *                   k(x) = A x^3 - 5A x^2 + 8A x - 4A             1 <  x <= 2
 *     BILINEAR  resize_bilinear_op.cc with half_pixel_centers = true.  c = (i + 0.5) * (in / out) - 0.5, in float32; the two
 *               samples floor(c) and floor(c) + 1, clamped; weights 1 - t, t.
 *     Down the columns first, then along the rows, as the reference does its bicubic.  No antialiasing, no clipping of the
 *     overshoot: not what Pillow or PyTorch do, and what the published networks were trained on.
 *
 *   Antialiased: Pillow's Resample.c.  c = (i + 0.5) * (in / out); with f = max(in / out, 1) all samples within reach * f of
 *     c weigh k((j + 0.5 - c) / f), divided by their sum; k is Keys' kernel at A = -0.5 (reach 2) or a triangle (reach 1).
 *     Along the rows first, then down the columns, and what comes between is clipped to 0..255, because Pillow keeps bytes
 *     there: beside hard edges the overshoot is cut twice.  Pillow rounds there too, and we do not: half a level, at most
 *     1.3 times that after the second pass, so the rounded results differ by one level at most.
 *
 * One pass: a target row is finished before the next one begins, and no intermediate picture is kept.  Plain kernels blend
 * K input rows into one row of floats and take it from there.  Antialiased ones resize each input row once; when that
 * enlarges the picture, the last eight such rows are kept (an output row needs five at most), and when it shrinks it, the
 * sums of the output rows that have begun are (an input row belongs to at most five).
 *
 * Nothing is allocated: columns go in strips that fit the stack.  A plain kernel that jumps over input columns blends only
 * those that carry a tap.  The strip borders cannot be seen in the result: sums are taken in the same order whatever the
 * strip.  Nor can the instruction set: this file is compiled once for each (EN_DATA_ISA), without contraction to fused
 * multiply-adds, and vectorisation reorders no sum here, so all machines make the same bits. */
#include "resize.h"

#include <math.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#define PASTE_(a, b) a##b
#define PASTE(a, b)  PASTE_(a, b)
#define INLINE static inline __attribute__((always_inline))

enum {
    STRIP = 256,                               /* output columns at a time, at most             */
    SPAN = 4 * STRIP + 16,                     /* input columns below them                      */
    WEIGHTS = 64 * STRIP,                      /* of a strip, repeated for the lanes            */
    RING = 8,                                  /* rows in flight; a power of two, more than 6   */
    BEHIND = 64,                               /* floats that may be read or written behind a row */
    BLOCK = 64,
};

/* body for i = 0 ... n - 1, in blocks of a length that the compiler knows, the last one overlapping its predecessor: no slow rest.
 * For bodies that may be done twice. */
#define EACH(i, n, body)                                                                                 \
    do {                                                                                                 \
        int64_t b_ = 0;                                                                                  \
        for (; b_ + BLOCK <= (n); b_ += BLOCK) for (int64_t i = b_; i < b_ + BLOCK; i++) { body; }       \
        if (b_ == (n)) break;                                                                            \
        if (b_ > 0) for (int64_t i = (n) - BLOCK; i < (n); i++) { body; }                                \
        else        for (int64_t i = 0; i < (n); i++) { body; }                                          \
    } while (0)

INLINE int64_t clamp(int64_t i, int64_t n)  { return i < 0 ? 0 : i >= n ? n - 1 : i; }

/* ---- the last step of a row ---- */

typedef struct { float mean[STRIP * 3], std[STRIP * 3]; } pattern;  /* as often as a strip is long: plain loops vectorise */

static void make_pattern(const en_normalise *norm, pattern *p)
{
    for (int i = 0; i < STRIP * 3; i++) {
        p->mean[i] = norm->mean[i % 3];
        p->std[i] = norm->std[i % 3];
    }
}

/* v in 0..255 to the nearest integer, ties to even: adding 1.5 * 2^23 leaves no bits for the fraction */
INLINE uint8_t nearest(float v)
{
    const float big = v + 0x1.8p23f;
    uint32_t bits;
    memcpy(&bits, &big, sizeof bits);
    return (uint8_t)bits;
}

INLINE float clipped(float v) { v = v < 0.0f ? 0.0f : v; return v > 255.0f ? 255.0f : v; }

/* Row i of the target, columns strip ... strip + columns - 1 (=) */
static void finish(const en_resize_job *job, const pattern *p, const float *restrict line, int64_t i, int64_t strip, int64_t columns)
{
    const int64_t n = columns * 3, at = (i * job->out_w + strip) * 3;
    if (job->floats) {
        float *restrict out = job->floats + at;
        EACH(k, n, out[k] = (line[k] - p->mean[k]) / p->std[k]);
        return;
    }
    uint8_t *restrict out = job->bytes + at;
    if (job->truncate) EACH(k, n, out[k] = (uint8_t)clipped(line[k]));
    else EACH(k, n, out[k] = nearest(clipped(line[k])));
}

/* ---- along a row ----
 *
 * An output pixel is a sum of pixels of three floats at places that follow no regular pattern.  GROUP of them are summed at once:
 * tap k of each is brought into the lanes of one vector and multiplied by a vector of weights.  Bringing them there takes a
 * 16-byte load a pixel, whose fourth float belongs to the neighbour and is thrown away, or, where a vector holds five pixels,
 * one permutation of the 32 floats that the taps of five neighbours usually lie within. */

typedef float f32x4 __attribute__((vector_size(16)));
INLINE f32x4 load4(const float *p)          { f32x4 v; memcpy(&v, p, sizeof v); return v; }
INLINE void  store4(float *p, f32x4 v)      { memcpy(p, &v, sizeof v); }

#if defined(__AVX512F__)
enum { GROUP = 5, LANES = 16, PIXEL = 3 };     /* PIXEL: lanes from one pixel to the next */
#elif defined(__AVX2__)
enum { GROUP = 2, LANES = 8, PIXEL = 4 };
#else
enum { GROUP = 1, LANES = 4, PIXEL = 4 };
#endif
typedef float   vec __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t places __attribute__((vector_size(LANES * sizeof(int32_t))));

typedef struct {
    places  place;                             /* AVX-512: of each lane, from `base` on                  */
    int32_t at[GROUP];                         /* of the first taps, in floats                           */
    int32_t base, taps;                        /* the least of `at`; the most taps, others weigh nothing */
    int32_t weights;                           /* where in comb.weight, (taps, LANES)                    */
    bool    near, close;                       /* AVX-512: a tap of all is within 32 floats; all taps are */
} group;

typedef struct {
    int64_t groups;
    group   group[(STRIP + GROUP - 1) / GROUP];
    float   weight[WEIGHTS + BEHIND] __attribute__((aligned(64)));
} comb;

/* Output j of `columns` sums taps[j] neighbouring pixels from float at[j] on.  The weights are 0 until they are set. */
static void make_comb(comb *c, int64_t columns, const int32_t *at, const int32_t *taps)
{
    c->groups = (columns + GROUP - 1) / GROUP;
    int32_t used = 0;
    for (int64_t g = 0; g < c->groups; g++) {
        group *q = &c->group[g];
        *q = (group){ .base = INT32_MAX, .weights = used };
        int32_t last = 0;
        for (int p = 0; p < GROUP; p++) {
            const int64_t j = g * GROUP + p < columns ? g * GROUP + p : columns - 1;
            q->at[p] = at[j];
            if (at[j] < q->base) q->base = at[j];
            if (at[j] > last) last = at[j];
            if (taps[j] > q->taps) q->taps = taps[j];
        }
        q->near = last - q->base + 3 <= 2 * LANES;
        q->close = last - q->base + 3 * q->taps <= 2 * LANES;
        for (int p = 0; q->near && p < GROUP; p++)
            for (int d = 0; d < 3; d++) q->place[p * PIXEL + d] = q->at[p] - q->base + d;
        used += q->taps * LANES;
    }
    memset(c->weight, 0, (size_t)used * sizeof *c->weight);
}

static void set_weight(comb *c, int64_t j, int64_t k, float weight)
{
    float *lane = c->weight + c->group[j / GROUP].weights + k * LANES + j % GROUP * PIXEL;
    for (int d = 0; d < 3; d++) lane[d] = weight;
}

INLINE vec load(const float *p) { vec v; memcpy(&v, p, sizeof v); return v; }
#if defined(__AVX512F__)
INLINE vec pick(vec low, vec high, places from) { return (vec)_mm512_permutex2var_ps((__m512)low, (__m512i)from, (__m512)high); }
#endif

/* Tap 0 of a group from p on: `p` is moved on by the caller. */
INLINE vec fetch(const group *q, const float *p)
{
#if defined(__AVX512F__)
    return pick(load(p + q->base), load(p + q->base + LANES), q->place);
#elif defined(__AVX2__)
    return __builtin_shufflevector(load4(p + q->at[0]), load4(p + q->at[1]), 0, 1, 2, 3, 4, 5, 6, 7);
#else
    return load4(p + q->at[0]);
#endif
}

INLINE void put(float *line, vec v)            /* what lies behind the last pixel is overwritten by the next group */
{
#if defined(__AVX2__) && !defined(__AVX512F__)
    store4(line, __builtin_shufflevector(v, v, 0, 1, 2, 3));
    store4(line + 3, __builtin_shufflevector(v, v, 4, 5, 6, 7));
#else
    memcpy(line, &v, sizeof v);
#endif
}

/* line = the sums; K: taps of all, or 0 where they differ */
INLINE void comb_row(const comb *c, const int K, const float *pixels, float *line)
{
    for (int64_t g = 0; g < c->groups; g++, line += GROUP * 3) {
        const group *q = &c->group[g];
        const float *weight = c->weight + q->weights;
        const int taps = K ? K : q->taps;
        if (GROUP == 5 && !q->near) {
            for (int p = 0; p < GROUP; p++) {
                f32x4 sum = load4(pixels + q->at[p]) * weight[p * PIXEL];
                for (int k = 1; k < taps; k++) sum += load4(pixels + q->at[p] + 3 * k) * weight[k * LANES + p * PIXEL];
                store4(line + 3 * p, sum);
            }
            continue;
        }
#if defined(__AVX512F__)
        if (K && q->close) {                   /* loaded once */
            const vec low = load(pixels + q->base), high = load(pixels + q->base + LANES);
            vec sum = pick(low, high, q->place) * load(weight);
            for (int k = 1; k < K; k++) sum += pick(low, high, q->place + 3 * k) * load(weight + k * LANES);
            put(line, sum);
            continue;
        }
#endif
        vec sum = fetch(q, pixels) * load(weight);
        for (int k = 1; k < taps; k++) sum += fetch(q, pixels + 3 * k) * load(weight + k * LANES);
        put(line, sum);
    }
}

/* ---- plain kernels ---- */

typedef struct { float weight[4]; int64_t first; } taps;       /* of `first` and its K - 1 successors, before clamping */

INLINE taps taps_at(const en_resize_job *job, const int K, int64_t i, float offset, float scale, int64_t n)
{
    taps t;
    if (K == 4) {
        const float c = offset + (float)i * scale, floor_c = floorf(c);
        const int at = (int)rintf((c - floor_c) * EN_BICUBIC_TABLE);
        const en_bicubic_table *k = job->table;
        t = (taps){ { k->far[at], k->near[at], k->near[EN_BICUBIC_TABLE - at], k->far[EN_BICUBIC_TABLE - at] }, (int64_t)floor_c - 1 };
    } else {
        const float c = offset + ((float)i + 0.5f) * scale - 0.5f, floor_c = floorf(c), x = c - floor_c;
        t = (taps){ { 1.0f - x, x }, (int64_t)floor_c };
    }
    if (t.first > n - 1) t.first = n - 1;
    return t;
}

/* column[i] = sum_k weight[k] * row[k][i], n values */
INLINE void blend(const int K, const uint8_t *const row[4], const float weight[4], int64_t n, float *restrict column)
{
    const uint8_t *restrict r0 = row[0], *restrict r1 = row[1], *restrict r2 = row[K - 2], *restrict r3 = row[K - 1];
    const float w0 = weight[0], w1 = weight[1], w2 = weight[K - 2], w3 = weight[K - 1];
    if (K == 4) EACH(i, n, column[i] = (float)r0[i] * w0 + (float)r1[i] * w1 + (float)r2[i] * w2 + (float)r3[i] * w3);
    else EACH(i, n, column[i] = (float)r0[i] * w0 + (float)r1[i] * w1);
}

/* The pixels from ... to of the blended row, those outside the part repeating its first or last. */
INLINE void blend_span(const int K, const uint8_t *const row[4], const float weight[4], int64_t w, int64_t from, int64_t to, float *column)
{
    const int64_t begin = from < 0 ? 0 : from, end = to >= w ? w - 1 : to;
    const uint8_t *here[4];
    for (int k = 0; k < K; k++) here[k] = row[k] + begin * 3;
    float *at = column + (begin - from) * 3;
    blend(K, here, weight, (end - begin + 1) * 3, at);
    for (float *p = at - 3; p >= column; p -= 3) memcpy(p, at, 3 * sizeof *p);
    at += (end - begin) * 3;
    for (int64_t k = 1; k <= to - end; k++) memcpy(at + 3 * k, at, 3 * sizeof *at);
}

INLINE void plain(const en_resize_job *job, const int K)
{
    const float scale_x = job->span_w / (float)job->out_w, scale_y = job->span_h / (float)job->out_h;
    pattern normal;
    make_pattern(job->norm, &normal);
    float column[SPAN * 3 + BEHIND] = { 0 }, line[STRIP * 3 + BEHIND], weight[STRIP][4];
    int32_t at[STRIP], count[STRIP];
    int64_t first[STRIP];                      /* tap of output column strip + j, mirrored when flipped */
    comb across;

    for (int64_t strip = 0; strip < job->out_w; strip += STRIP) {
        const int64_t columns = job->out_w - strip < STRIP ? job->out_w - strip : STRIP;
        int64_t low = INT64_MAX, high = INT64_MIN;
        for (int64_t j = 0; j < columns; j++) {
            const taps t = taps_at(job, K, job->flip ? job->out_w - 1 - (strip + j) : strip + j, job->left, scale_x, job->w);
            memcpy(weight[j], t.weight, sizeof weight[j]);
            first[j] = t.first;
            if (t.first < low) low = t.first;
            if (t.first + K - 1 > high) high = t.first + K - 1;
        }
        const bool dense = high - low + 1 <= SPAN;             /* all columns below the strip, or K for each of its own */
        for (int64_t j = 0; j < columns; j++) {
            at[j] = (int32_t)(dense ? first[j] - low : j * K) * 3;
            count[j] = K;
        }
        make_comb(&across, columns, at, count);
        for (int64_t j = 0; j < columns; j++)
            for (int k = 0; k < K; k++) set_weight(&across, j, k, weight[j][k]);

        for (int64_t i = 0; i < job->out_h; i++) {
            const taps down = taps_at(job, K, i, job->top, scale_y, job->h);
            const uint8_t *row[4];
            for (int k = 0; k < K; k++) row[k] = job->origin + clamp(down.first + k, job->h) * job->stride;
            if (dense) blend_span(K, row, down.weight, job->w, low, high, column);
            else for (int64_t j = 0; j < columns; j++) blend_span(K, row, down.weight, job->w, first[j], first[j] + K - 1, column + at[j]);
            comb_row(&across, K, column, line);
            finish(job, &normal, line, i, strip, columns);
        }
    }
}

/* ---- antialiased kernels ---- */

static double cubic(double x)
{
    const double a = -0.5;
    x = fabs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}
static double triangle(double x) { x = fabs(x); return x < 1 ? 1 - x : 0; }
static double kernel_at(en_resize_kernel k, double x) { return k == EN_RESIZE_BICUBIC_AA ? cubic(x) : triangle(x); }

typedef struct { en_resize_kernel kernel; double start, scale, widen, reach; int64_t n; } axis;
typedef struct { int64_t first, end; double centre, share; } window;   /* input pixels first ... end - 1; share: 1 / sum of weights */

static axis make_axis(en_resize_kernel kernel, float start, float span, int64_t out, int64_t n)
{
    const double scale = (double)span / (double)out, widen = scale > 1 ? scale : 1;
    return (axis){ kernel, (double)start, scale, widen, (kernel == EN_RESIZE_BICUBIC_AA ? 2 : 1) * widen, n };
}

static double raw_weight(const axis *a, const window *v, int64_t i) { return kernel_at(a->kernel, ((double)i - v->centre + 0.5) / a->widen); }
static float weight_of(const axis *a, const window *v, int64_t i)   { return (float)(raw_weight(a, v, i) * v->share); }

static window window_at(const axis *a, int64_t i)
{
    window v = { .centre = a->start + ((double)i + 0.5) * a->scale };
    v.first = (int64_t)(v.centre - a->reach + 0.5);
    if (v.first < 0) v.first = 0;
    if (v.first > a->n - 1) v.first = a->n - 1;
    v.end = (int64_t)(v.centre + a->reach + 0.5);
    if (v.end > a->n) v.end = a->n;
    if (v.end <= v.first) v.end = v.first + 1;
    double sum = 0;
    for (int64_t k = v.first; k < v.end; k++) sum += raw_weight(a, &v, k);
    v.share = 1 / sum;
    return v;
}

typedef struct {                               /* a strip: what each of its columns takes from an input row */
    axis    x;
    int64_t low, span;                         /* input columns low ... low + span - 1 */
    int64_t columns;
    bool    far;                               /* one column spans more than fits: weights are made as they are used */
    window  window[STRIP];
    comb    comb;
    float   pixels[SPAN * 3 + BEHIND];
} across;

static void make_across(const en_resize_job *job, int64_t strip, int64_t columns, across *a)
{
    a->columns = columns;
    int64_t high = 0;
    a->low = INT64_MAX;
    for (int64_t j = 0; j < columns; j++) {
        const window *v = &a->window[j];
        a->window[j] = window_at(&a->x, job->flip ? job->out_w - 1 - (strip + j) : strip + j);
        if (v->first < a->low) a->low = v->first;
        if (v->end > high) high = v->end;
    }
    a->span = high - a->low;
    if (a->far) return;
    int32_t at[STRIP], count[STRIP];
    for (int64_t j = 0; j < columns; j++) {
        at[j] = (int32_t)(a->window[j].first - a->low) * 3;
        count[j] = (int32_t)(a->window[j].end - a->window[j].first);
    }
    make_comb(&a->comb, columns, at, count);
    for (int64_t j = 0; j < columns; j++)
        for (int64_t k = 0; k < count[j]; k++) set_weight(&a->comb, j, k, weight_of(&a->x, &a->window[j], a->window[j].first + k));
}

/* line (columns, 3) = one input row, resized and clipped */
static void resize_row(across *a, const uint8_t *restrict row, float *restrict line)
{
    if (a->far) {
        for (int64_t j = 0; j < a->columns; j++) {
            float sum[3] = { 0 };
            for (int64_t k = a->window[j].first; k < a->window[j].end; k++) {
                const float weight = weight_of(&a->x, &a->window[j], k);
                for (int d = 0; d < 3; d++) sum[d] += (float)row[3 * k + d] * weight;
            }
            memcpy(line + 3 * j, sum, sizeof sum);
        }
    } else {
        const uint8_t *restrict from = row + a->low * 3;
        float *restrict pixels = a->pixels;
        EACH(k, a->span * 3, pixels[k] = (float)from[k]);
        comb_row(&a->comb, 0, pixels, line);
    }
    EACH(k, a->columns * 3, line[k] = clipped(line[k]));
}

/* How many columns at once: weights and input columns have to fit. */
static int64_t strip_columns(const axis *x, bool *far)
{
    const double most = 2 * x->reach + 2;      /* taps of a column, rounded up generously */
    *far = most > SPAN || most * 2 * LANES > WEIGHTS;
    if (*far) return STRIP;
    int64_t columns = (int64_t)(WEIGHTS / (4 * most)) - GROUP;             /* 4: LANES / GROUP at most */
    const int64_t by_span = (int64_t)((SPAN - most) / x->scale) + 1;
    if (columns > by_span) columns = by_span;
    return columns < 1 ? 1 : columns > STRIP ? STRIP : columns;
}

/* sum += weight * in, or = for the first */
static void add_row(float *restrict sum, const float *restrict in, float weight, int64_t n, bool first)
{
    const int64_t blocks = (n + BLOCK - 1) / BLOCK * BLOCK;    /* there is room behind a row */
    if (first) for (int64_t b = 0; b < blocks; b += BLOCK) for (int64_t k = b; k < b + BLOCK; k++) sum[k] = in[k] * weight;
    else       for (int64_t b = 0; b < blocks; b += BLOCK) for (int64_t k = b; k < b + BLOCK; k++) sum[k] += in[k] * weight;
}

static void antialiased(const en_resize_job *job)
{
    pattern normal;
    make_pattern(job->norm, &normal);
    across a;
    a.x = make_axis(job->kernel, job->left, job->span_w, job->out_w, job->w);
    memset(a.pixels, 0, sizeof a.pixels);      /* what is read behind a row weighs nothing, but has to be a number */
    const axis y = make_axis(job->kernel, job->top, job->span_h, job->out_h, job->h);
    const int64_t at_once = strip_columns(&a.x, &a.far);
    float ring[RING][STRIP * 3 + BEHIND], line[STRIP * 3 + BEHIND];
    for (int64_t strip = 0; strip < job->out_w; strip += at_once) {
        const int64_t columns = job->out_w - strip < at_once ? job->out_w - strip : at_once;
        make_across(job, strip, columns, &a);
        if (y.scale <= 1) {                    /* ring: input rows, resized */
            int64_t have = 0;
            for (int64_t i = 0; i < job->out_h; i++) {
                const window v = window_at(&y, i);
                for (have = have > v.first ? have : v.first; have < v.end; have++)
                    resize_row(&a, job->origin + have * job->stride, ring[have % RING]);
                for (int64_t r = v.first; r < v.end; r++)
                    add_row(line, ring[r % RING], weight_of(&y, &v, r), columns * 3, r == v.first);
                finish(job, &normal, line, i, strip, columns);
            }
        } else {                               /* ring: output rows from `done` on that have begun */
            window open[RING];
            int64_t done = 0, begun = 0;
            window next = window_at(&y, 0);
            for (int64_t r = next.first; r < job->h && done < job->out_h; r++) {
                for (; begun < job->out_h && next.first <= r; begun++) {
                    open[begun % RING] = next;
                    if (begun + 1 < job->out_h) next = window_at(&y, begun + 1);
                }
                resize_row(&a, job->origin + r * job->stride, line);
                for (int64_t i = done; i < begun; i++) {
                    const window *v = &open[i % RING];
                    add_row(ring[i % RING], line, weight_of(&y, v, r), columns * 3, r == v->first);
                    if (r < v->end - 1) continue;
                    finish(job, &normal, ring[i % RING], i, strip, columns);
                    done = i + 1;
                }
            }
        }
    }
}

/* ---- what is offered ---- */

static void resize(const en_resize_job *job)
{
    switch (job->kernel) {
    case EN_RESIZE_BICUBIC:  plain(job, 4); return;
    case EN_RESIZE_BILINEAR: plain(job, 2); return;
    case EN_RESIZE_BICUBIC_AA: case EN_RESIZE_BILINEAR_AA: antialiased(job); return;
    }
}

static void normalise(const uint8_t *restrict in, size_t n, const en_normalise *norm, float *restrict out)
{
    pattern p;
    make_pattern(norm, &p);
    for (size_t at = 0; at < n; at += STRIP * 3) {
        const size_t some = n - at < STRIP * 3 ? n - at : STRIP * 3;
        const uint8_t *restrict from = in + at;
        float *restrict to = out + at;
        EACH(k, (int64_t)some, to[k] = ((float)from[k] - p.mean[k]) / p.std[k]);
    }
}

#define NAME(text) #text
#define NAME_OF(isa) NAME(isa)
const en_resize_build PASTE(en_resize_, EN_DATA_ISA) = { NAME_OF(EN_DATA_ISA), resize, normalise };
