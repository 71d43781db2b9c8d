/* resize_row.h - rows of floats: what the plain and the antialiased kernels do alike.  Included by files that are compiled once
 * for each instruction set (EN_DATA_ISA); vectors are as wide as that has them, and no sum depends on how wide that is. */
#ifndef EN_DATA_RESIZE_ROW_H
#define EN_DATA_RESIZE_ROW_H

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
    BEHIND = 64,                               /* floats behind a row: read and written, unused */
    BLOCK = 64,                                /* elements of a loop without a rest             */
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

void PASTE(en_resize_antialiased_, EN_DATA_ISA)(const en_resize_job *job);      /* resize_antialiased.c, for resize_plain.c */

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

#endif
