/* mix.c - mixup and cutmix of pairs.
 *
 * The reference pairs a picture with the one at the mirrored place of its batch and draws for each picture of its own, so both members
 * of a pair take from the other, in different shares.  Mixup's share is the larger of l and 1 - l: a picture keeps most of itself.
 * Cutmix takes a square of side floor(sqrt(1 - l) * size) about a uniform pixel, halved by integer division and clipped at the border,
 * so its area is not the (1 - l) it was drawn from; the share that goes to the label is that of the pixels that stayed.  (The
 * reference averages the shares of the whole batch and gives each label this mean.)
 *
 * l ~ Beta(alpha, alpha) = G1/(G1 + G2) with two gamma draws (Marsaglia and Tsang, "A simple method for generating gamma variables",
 * TOMS 26, 2000).  Below alpha = 1, G(alpha) = G(alpha+1) U^(1/alpha), which is zero in floating point for small alpha; so logarithms
 * are drawn, and l = 1/(1 + exp(log G2 - log G1)). */
#include "augment.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/rng.h"

bool en_augments_pairs(const en_augment *a) { return a->mixup > 0 || a->cutmix > 0; }

static double open_uniform(en_rng *rng) { return ((double)en_rng_u32(rng) + 0.5) * 0x1p-32; }      /* never 0 or 1 */

static double log_gamma_draw(en_rng *rng, double alpha)
{
    const double boost = alpha < 1 ? log(open_uniform(rng)) / alpha : 0;
    const double d = (alpha < 1 ? alpha + 1 : alpha) - 1 / 3.0, c = 1 / sqrt(9 * d);
    for (;;) {
        const double x = (double)en_rng_normal(rng), cube_root = 1 + c * x, v = cube_root * cube_root * cube_root;
        if (v > 0 && log(open_uniform(rng)) < 0.5 * x * x + d - d * v + d * log(v)) return log(d * v) + boost;
    }
}

static double beta_draw(en_rng *rng, double alpha)
{
    const double one = log_gamma_draw(rng, alpha), two = log_gamma_draw(rng, alpha);
    return 1 / (1 + exp(two - one));
}

en_mix en_mix_draw(const en_augment *a, int size, int64_t pair, uint64_t seed, uint64_t epoch, uint64_t sample)
{
    if (!en_augments_pairs(a)) return (en_mix){ .share = 1 };
    en_rng rng = en_rng_at(seed, EN_RNG_MIX, epoch, sample, 0);
    const bool cut = a->cutmix > 0 && (!(a->mixup > 0) || pair % 2 != 0);
    const double l = beta_draw(&rng, cut ? a->cutmix : a->mixup);
    if (!cut) return (en_mix){ .share = (float)fmax(l, 1 - l) };

    const int64_t half = (int64_t)(sqrt(1 - l) * size) / 2;
    const int64_t x = en_rng_below(&rng, (uint32_t)size), y = en_rng_below(&rng, (uint32_t)size);
    en_mix m = { .cut = true, .x0 = x > half ? x - half : 0, .y0 = y > half ? y - half : 0,
                 .x1 = x + half < size ? x + half : size, .y1 = y + half < size ? y + half : size };
    const double all = (double)size * size;
    m.share = (float)((all - (double)((m.x1 - m.x0) * (m.y1 - m.y0))) / all);
    return m;
}

/* ---- mixup ---- */

static void mix_floats(float keep_a, float keep_b, int64_t n, float *restrict a, float *restrict b)
{
    const float take_a = 1 - keep_a, take_b = 1 - keep_b;      /* exact: shares are at least 1/2 */
    for (int64_t i = 0; i < n; i++) {
        const float x = a[i], y = b[i];
        a[i] = keep_a * x + take_a * y;
        b[i] = keep_b * y + take_b * x;
    }
}

static void mix_bytes(float keep_a, float keep_b, int64_t n, uint8_t *restrict a, uint8_t *restrict b)
{
    const float take_a = 1 - keep_a, take_b = 1 - keep_b;
    for (int64_t i = 0; i < n; i++) {
        const float x = a[i], y = b[i];
        a[i] = (uint8_t)(int)(keep_a * x + take_a * y + 0.5f);
        b[i] = (uint8_t)(int)(keep_b * y + take_b * x + 0.5f);
    }
}

/* ---- cutmix: pixels move as bytes, whatever they mean ---- */

static void swap(size_t n, unsigned char *a, unsigned char *b)
{
    unsigned char held[1024];
    for (size_t k; n > 0; n -= k, a += k, b += k) {
        k = n < sizeof held ? n : sizeof held;
        memcpy(held, a, k);
        memcpy(a, b, k);
        memcpy(b, held, k);
    }
}

static void cut(const en_mix *mix_a, const en_mix *mix_b, int64_t size, size_t pixel, void *a, void *b)
{
    for (int64_t y = 0; y < size; y++) {
        /* in this row a takes [from[0], to[0]), b takes [from[1], to[1]); between two neighbouring edges nothing changes */
        const bool in_a = y >= mix_a->y0 && y < mix_a->y1, in_b = y >= mix_b->y0 && y < mix_b->y1;
        const int64_t from[2] = { in_a ? mix_a->x0 : 0, in_b ? mix_b->x0 : 0 }, to[2] = { in_a ? mix_a->x1 : 0, in_b ? mix_b->x1 : 0 };
        int64_t edge[4] = { from[0], to[0], from[1], to[1] };
        for (int i = 1; i < 4; i++)
            for (int j = i; j > 0 && edge[j] < edge[j - 1]; j--) {
                const int64_t e = edge[j];
                edge[j] = edge[j - 1];
                edge[j - 1] = e;
            }
        for (int i = 0; i < 3; i++) {
            const bool a_takes = edge[i] >= from[0] && edge[i] < to[0], b_takes = edge[i] >= from[1] && edge[i] < to[1];
            const size_t n = (size_t)(edge[i + 1] - edge[i]) * pixel, at = (size_t)(y * size + edge[i]) * pixel;
            unsigned char *p = (unsigned char *)a + at, *q = (unsigned char *)b + at;
            if (a_takes && b_takes) swap(n, p, q);
            else if (a_takes) memcpy(p, q, n);
            else if (b_takes) memcpy(q, p, n);
        }
    }
}

void en_mix_floats(const en_mix *mix_a, const en_mix *mix_b, int size, float *a, float *b)
{
    assert(mix_a->cut == mix_b->cut);          /* they are a pair */
    if (mix_a->cut) cut(mix_a, mix_b, size, 3 * sizeof *a, a, b);
    else mix_floats(mix_a->share, mix_b->share, (int64_t)size * size * 3, a, b);
}

void en_mix_bytes(const en_mix *mix_a, const en_mix *mix_b, int size, uint8_t *a, uint8_t *b)
{
    assert(mix_a->cut == mix_b->cut);
    if (mix_a->cut) cut(mix_a, mix_b, size, 3, a, b);
    else mix_bytes(mix_a->share, mix_b->share, (int64_t)size * size * 3, a, b);
}
