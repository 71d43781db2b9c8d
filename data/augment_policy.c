/* augment_policy.c - which operations a picture gets: AutoAugment's tables, RandAugment, random erasing.
 *
 * A sub-policy is drawn, then each of its two operations happens with its own probability.  A level of 0...10 becomes an argument as
 * in the reference's autoaugment.py; where a direction makes sense the sign is a coin's.  What may surprise:
 *
 *   - v0, the table of the EfficientNet reference, is not the ImageNet table of the AutoAugment paper (arXiv:1805.09501), whatever
 *     the reference's comment says.  EN_POLICY_PAPER is that one.
 *   - Translations are in pixels, whatever the size: TranslateY at level 9 is 225 pixels, and pushes a picture of 224 out altogether.
 *     The reference does so to 3.2 % of its pictures, and so do we.  From 226 pixels on something is left.
 *   - Posterize keeps 0.4 L bits in v0 and in RandAugment, so it weakens as the level grows; the paper's table means 4 + 0.4 L.
 *   - RandAugment (arXiv:1909.13719) always applies what it drew: the reference draws a probability, too, and forgets about it.
 *
 * Every draw of a picture is made, in the same order, whether or not it is needed: nothing depends on what came before. */
#include "augment.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "image.h"
#include "kernels/rng.h"

typedef struct { en_op op; float probability; double level; } step;

#define OP(name, probability, level) { EN_OP_##name, probability, level }

/* policy_v0() of the reference */
static const step v0[25][2] = {
    { OP(EQUALIZE,  .8f, 1), OP(SHEAR_Y,   .8f, 4) },      { OP(COLOR,    .4f, 9), OP(EQUALIZE,     .6f, 3)  },
    { OP(COLOR,     .4f, 1), OP(ROTATE,    .6f, 8) },      { OP(SOLARIZE, .8f, 3), OP(EQUALIZE,     .4f, 7)  },
    { OP(SOLARIZE,  .4f, 2), OP(SOLARIZE,  .6f, 2) },      { OP(COLOR,    .2f, 0), OP(EQUALIZE,     .8f, 8)  },
    { OP(EQUALIZE,  .4f, 8), OP(SOLARIZE_ADD, .8f, 3) },   { OP(SHEAR_X,  .2f, 9), OP(ROTATE,       .6f, 8)  },
    { OP(COLOR,     .6f, 1), OP(EQUALIZE,   1,  2) },      { OP(INVERT,   .4f, 9), OP(ROTATE,       .6f, 0)  },
    { OP(EQUALIZE,   1,  9), OP(SHEAR_Y,   .6f, 3) },      { OP(COLOR,    .4f, 7), OP(EQUALIZE,     .6f, 0)  },
    { OP(POSTERIZE, .4f, 6), OP(AUTOCONTRAST, .4f, 7) },   { OP(SOLARIZE, .6f, 8), OP(COLOR,        .6f, 9)  },
    { OP(SOLARIZE,  .2f, 4), OP(ROTATE,    .8f, 9) },      { OP(ROTATE,    1,  7), OP(TRANSLATE_Y,  .8f, 9)  },
    { OP(SHEAR_X,    0,  0), OP(SOLARIZE,  .8f, 4) },      { OP(SHEAR_Y,  .8f, 0), OP(COLOR,        .6f, 4)  },
    { OP(COLOR,      1,  0), OP(ROTATE,    .6f, 2) },      { OP(EQUALIZE, .8f, 4), OP(EQUALIZE,      0,  8)  },
    { OP(EQUALIZE,   1,  4), OP(AUTOCONTRAST, .6f, 2) },   { OP(SHEAR_Y,  .4f, 7), OP(SOLARIZE_ADD, .6f, 7)  },
    { OP(POSTERIZE, .8f, 2), OP(SOLARIZE,  .6f, 10) },     { OP(SOLARIZE, .6f, 8), OP(EQUALIZE,     .6f, 1)  },
    { OP(COLOR,     .8f, 6), OP(ROTATE,    .4f, 5) },
};

/* arXiv:1805.09501, table 9 (ImageNet) */
static const step paper[25][2] = {
    { OP(POSTERIZE, .4f, 8), OP(ROTATE,   .6f, 9) },       { OP(SOLARIZE,  .6f, 5), OP(AUTOCONTRAST, .6f, 5) },
    { OP(EQUALIZE,  .8f, 8), OP(EQUALIZE, .6f, 3) },       { OP(POSTERIZE, .6f, 7), OP(POSTERIZE,    .6f, 6) },
    { OP(EQUALIZE,  .4f, 7), OP(SOLARIZE, .2f, 4) },       { OP(EQUALIZE,  .4f, 4), OP(ROTATE,       .8f, 8) },
    { OP(SOLARIZE,  .6f, 3), OP(EQUALIZE, .6f, 7) },       { OP(POSTERIZE, .8f, 5), OP(EQUALIZE,      1,  2) },
    { OP(ROTATE,    .2f, 3), OP(SOLARIZE, .6f, 8) },       { OP(EQUALIZE,  .6f, 8), OP(POSTERIZE,    .4f, 6) },
    { OP(ROTATE,    .8f, 8), OP(COLOR,    .4f, 0) },       { OP(ROTATE,    .4f, 9), OP(EQUALIZE,     .6f, 2) },
    { OP(EQUALIZE,   0,  7), OP(EQUALIZE, .8f, 8) },       { OP(INVERT,    .6f, 4), OP(EQUALIZE,      1,  8) },
    { OP(COLOR,     .6f, 4), OP(CONTRAST,  1,  8) },       { OP(ROTATE,    .8f, 8), OP(COLOR,         1,  2) },
    { OP(COLOR,     .8f, 8), OP(SOLARIZE, .8f, 7) },       { OP(SHARPNESS, .4f, 7), OP(INVERT,       .6f, 8) },
    { OP(SHEAR_X,   .6f, 5), OP(EQUALIZE,  1,  9) },       { OP(COLOR,     .4f, 0), OP(EQUALIZE,     .6f, 3) },
    { OP(EQUALIZE,  .4f, 7), OP(SOLARIZE, .2f, 4) },       { OP(SOLARIZE,  .6f, 5), OP(AUTOCONTRAST, .6f, 5) },
    { OP(INVERT,    .6f, 4), OP(EQUALIZE,  1,  8) },       { OP(COLOR,     .6f, 4), OP(CONTRAST,      1,  8) },
    { OP(EQUALIZE,  .8f, 8), OP(EQUALIZE, .6f, 3) },
};

/* what differs between the policies about a level */
typedef struct { double translate, cutout; int posterize; } scales;      /* at level 10; bits at level 0 */

static double argument_of(en_op op, double level, const scales *s)
{
    switch (op) {
    case EN_OP_ROTATE:       return level / 10 * 30;
    case EN_OP_SHEAR_X:
    case EN_OP_SHEAR_Y:      return level / 10 * 0.3;
    case EN_OP_TRANSLATE_X:
    case EN_OP_TRANSLATE_Y:  return level / 10 * s->translate;
    case EN_OP_COLOR:
    case EN_OP_CONTRAST:
    case EN_OP_BRIGHTNESS:
    case EN_OP_SHARPNESS:    return level / 10 * 1.8 + 0.1;
    case EN_OP_POSTERIZE:    return fmin(s->posterize + trunc(level / 10 * 4), 8);
    case EN_OP_SOLARIZE:     return fmin(trunc(level / 10 * 256), 256);
    case EN_OP_SOLARIZE_ADD: return trunc(level / 10 * 110);
    case EN_OP_CUTOUT:       return trunc(level / 10 * s->cutout);
    case EN_OP_AUTOCONTRAST:
    case EN_OP_EQUALIZE:
    case EN_OP_INVERT:
    case EN_OPS:             break;
    }
    return 0;
}

static bool has_sign(en_op op) { return op == EN_OP_ROTATE || (op >= EN_OP_SHEAR_X && op <= EN_OP_TRANSLATE_Y); }

enum { POLICY_LAYER, ERASE_LAYER };            /* streams of EN_RNG_AUGMENT */

int en_policy_draw(const en_augment *a, int size, uint64_t seed, uint64_t epoch, uint64_t sample, en_op_call call[EN_POLICY_OPS])
{
    if (a->policy == EN_POLICY_NONE) return 0;
    const bool rand = a->policy == EN_POLICY_RAND;
    const scales s = { .translate = rand ? 100 : 250, .cutout = rand ? 40 : 100, .posterize = a->policy == EN_POLICY_PAPER ? 4 : 0 };
    const int steps = rand ? a->rand_ops : 2;
    assert(steps <= EN_POLICY_OPS);

    en_rng rng = en_rng_at(seed, EN_RNG_AUGMENT, epoch, sample, POLICY_LAYER);
    const step *sub = rand ? NULL : (a->policy == EN_POLICY_PAPER ? paper : v0)[en_rng_below(&rng, 25)];
    int calls = 0;
    for (int i = 0; i < steps; i++) {
        const en_op any = (en_op)en_rng_below(&rng, EN_OPS);
        const step now = sub ? sub[i] : (step){ any, 1, a->magnitude };
        const bool happens = en_rng_uniform(&rng) < now.probability;
        const bool minus = en_rng_u32(&rng) >> 31;
        const int64_t cx = en_rng_below(&rng, (uint32_t)size), cy = en_rng_below(&rng, (uint32_t)size);
        if (!happens) continue;
        const double argument = argument_of(now.op, now.level, &s);
        call[calls++] = (en_op_call){ .op = now.op, .argument = minus && has_sign(now.op) ? -argument : argument, .cx = cx, .cy = cy };
    }
    return calls;
}

/* ---- random erasing ----------------------------------------------------------------------------------------------------- */

enum { QUANTILES = 4096 };

/* table[i] = the (i+1/2)/4096 quantile of N(mean, std), rounded and clipped: what a value rounded to a byte takes of a normal draw, the
 * probability of each level to within 1/4096 */
static void normal_bytes(double mean, double std, uint8_t table[QUANTILES])
{
    int i = 0;
    for (int level = 0; level < 255; level++) {
        const double up_to = 0.5 * erfc(-(level + 0.5 - mean) / std * 0.70710678118654752440);
        for (const int end = (int)lrint(QUANTILES * up_to); i < end; i++) table[i] = (uint8_t)level;
    }
    memset(table + i, 255, (size_t)(QUANTILES - i));
}

typedef struct { int x, y, w, h; } rectangle;

static void fill_with_mean(const rectangle *r, int size, uint8_t *rgb)
{
    for (int y = r->y; y < r->y + r->h; y++)
        for (int x = r->x; x < r->x + r->w; x++)
            for (int c = 0; c < 3; c++) rgb[((size_t)y * (size_t)size + (size_t)x) * 3 + (size_t)c] = (uint8_t)lrintf(en_imagenet_normalise.mean[c]);
}

static void fill_with_noise(const rectangle *r, int size, en_rng *rng, uint8_t *rgb)
{
    uint8_t table[3][QUANTILES];
    for (int c = 0; c < 3; c++) normal_bytes((double)en_imagenet_normalise.mean[c], (double)en_imagenet_normalise.std[c], table[c]);
    for (int y = r->y; y < r->y + r->h; y++) {
        uint8_t *p = rgb + ((size_t)y * (size_t)size + (size_t)r->x) * 3;
        for (int x = 0; x < r->w; x++, p += 3) {
            const uint32_t two = en_rng_u32(rng), one = en_rng_u32(rng);    /* 12 bits of each half */
            p[0] = table[0][two >> 20];
            p[1] = table[1][two >> 4 & 0xfff];
            p[2] = table[2][one >> 20];
        }
    }
}

static void erase(const en_augment *a, int size, uint64_t seed, uint64_t epoch, uint64_t sample, uint8_t *rgb)
{
    en_rng rng = en_rng_at(seed, EN_RNG_AUGMENT, epoch, sample, ERASE_LAYER);
    if (!((double)en_rng_uniform(&rng) < a->erase)) return;
    for (int attempt = 0; attempt < 10; attempt++) {
        const double share = 0.02 + (1 / 3.0 - 0.02) * (double)en_rng_uniform(&rng), area = share * size * size;
        const double aspect = exp(log(0.3) * (1 - 2 * (double)en_rng_uniform(&rng)));
        rectangle r = { .w = (int)lrint(sqrt(area / aspect)), .h = (int)lrint(sqrt(area * aspect)) };
        if (r.w >= size || r.h >= size) continue;
        r.x = (int)en_rng_below(&rng, (uint32_t)(size - r.w + 1));
        r.y = (int)en_rng_below(&rng, (uint32_t)(size - r.h + 1));
        if (a->erase_mean) fill_with_mean(&r, size, rgb);
        else fill_with_noise(&r, size, &rng, rgb);
        return;
    }
}

/* ---- */

bool en_augments_pixels(const en_augment *a) { return a->policy != EN_POLICY_NONE || a->erase > 0; }

void en_augment_pixels(const en_augment *a, int size, uint64_t seed, uint64_t epoch, uint64_t sample, uint8_t *rgb, uint8_t *spare)
{
    en_op_call call[EN_POLICY_OPS];
    const int calls = en_policy_draw(a, size, seed, epoch, sample, call);
    for (int i = 0; i < calls; i++) en_op_apply(call[i].op, call[i].argument, call[i].cx, call[i].cy, size, size, rgb, spare);
    if (a->erase > 0) erase(a, size, seed, epoch, sample, rgb);
}
