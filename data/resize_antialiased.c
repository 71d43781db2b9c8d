/* resize_antialiased.c - from the part of a picture that is looked at to the target as Pillow's Resample.c does it: the kernel grows
 * with the scale, so that every pixel counts when a picture shrinks.
 *
 * Output index i looks at c = (i + 0.5) * (in / out); with f = max(in / out, 1) all samples within reach * f of c weigh
 * k((j + 0.5 - c) / f), divided by their sum; k is Keys' kernel at A = -0.5 (reach 2) or a triangle (reach 1).
 *
 * Along the rows first, then down the columns, and what comes between is clipped to 0..255, because Pillow keeps bytes there:
 * beside hard edges the overshoot is cut twice.  Pillow rounds there too, and we do not: half a level, at most 1.3 times that
 * after the second pass, so the rounded results differ by one level at most.
 *
 * One pass, and no picture in between: each input row is resized once.  When that enlarges the picture, the last eight such
 * rows are kept (an output row needs five at most), and when it shrinks it, the sums of the output rows that have begun are (an
 * input row belongs to at most six: windows of 4 f + 1 rows, f apart).  Strips, stack and instruction sets: see resize_plain.c. */
#include "resize_row.h"

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

void PASTE(en_resize_antialiased_, EN_DATA_ISA)(const en_resize_job *job)
{
    pattern normal;
    make_pattern(job->norm, &normal);
    across a;
    a.x = make_axis(job->kernel, job->left, job->span_w, job->out_w, job->w);
    memset(a.pixels, 0, sizeof a.pixels);      /* what is read behind a row weighs nothing, but has to be a number */
    const axis y = make_axis(job->kernel, job->top, job->span_h, job->out_h, job->h);
    const int64_t at_once = strip_columns(&a.x, &a.far);
    float ring[RING][STRIP * 3 + BEHIND] = { { 0 } }, line[STRIP * 3 + BEHIND] = { 0 };
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
