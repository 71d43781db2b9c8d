/* resize_plain.c - from the part of a picture that is looked at to the network's input, in one pass over the target: kernels of K
 * neighbours whatever the scale, as TensorFlow has them.
 *
 * c is the place that output index i looks at, in pixels of the part, in float32:
 *
 *     BICUBIC   tensorflow/core/kernels/image/resize_bicubic_op.cc with half_pixel_centers = false.  c = i * (in / out); the four
 *               samples floor(c) - 1 ... floor(c) + 2, clamped to the part.  With t = c - floor(c) rounded to 1/1024 and Keys'
 *               kernel at A = -0.75 the weights are k(1 + t), k(t), k(1 - t), k(2 - t):
 *                   k(x) = (A+2) x^3 - (A+3) x^2 + 1              0 <= x <= 1
 *                   k(x) = A x^3 - 5A x^2 + 8A x - 4A             1 <  x <= 2
 *     BILINEAR  resize_bilinear_op.cc with half_pixel_centers = true.  c = (i + 0.5) * (in / out) - 0.5; the two samples
 *               floor(c) and floor(c) + 1, clamped; weights 1 - t, t.
 *
 * Separable: down the columns first, then along the rows, as the reference does its bicubic.  No antialiasing, no clipping of
 * the overshoot: not what Pillow or PyTorch do, and what the published networks were trained on.
 *
 * A target row is made of K input rows, blended into one row of floats, and is finished before the next one begins.  Nothing is
 * allocated: columns go in strips that fit the stack.  Where a strip jumps over input columns, only those that carry a tap are
 * blended.  The strip borders cannot be seen in the result: sums are taken in the same order whatever the strip.  Nor can the
 * instruction set: this file is compiled once for each, without contraction to fused multiply-adds, and vectorisation
 * reorders no sum here, so all machines make the same bits. */
#include "resize_row.h"

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

/* ---- what is offered ---- */

static void resize(const en_resize_job *job)
{
    switch (job->kernel) {
    case EN_RESIZE_BICUBIC:  plain(job, 4); return;
    case EN_RESIZE_BILINEAR: plain(job, 2); return;
    case EN_RESIZE_BICUBIC_AA: case EN_RESIZE_BILINEAR_AA: PASTE(en_resize_antialiased_, EN_DATA_ISA)(job); return;
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
