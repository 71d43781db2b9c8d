/* crop.c - which part of a picture is looked at: the distorted bounding box of the reference, and its evaluation crop.
 *
 * The training crop is TensorFlow's sample_distorted_bounding_box with one box, the whole image (EfficientNet's
 * preprocessing.py gives min_object_covered 0.1, aspect [3/4, 4/3], area [0.08, 1], 10 attempts).  It differs from
 * torchvision's RandomResizedCrop in three ways that a reader who knows that one will take for slips:
 *
 *   1. The aspect ratio is uniform, not log-uniform, and the *height* is uniform between what the area bounds allow, so
 *      small areas are likelier than under a uniform area.
 *   2. An offset is drawn from [0, H - h): the last position is never taken.
 *   3. The crop must cover 10 % of the object, and the object is the whole image: of area [0.08, 1] only [0.10, 1] is left.
 *
 * EfficientNetV2 keeps the sampler with other numbers, and a failure is the whole picture, resized.
 *
 * Arithmetic is float32 with round half to even where the reference has it, because near a bound one bit decides whether
 * an attempt fails, and with it all that is drawn afterwards. */
#include "data.h"

#include <math.h>
#include <string.h>

typedef struct { float area_min, covered_min; int attempts; } rules;
static const float aspect_min = 3.0f / 4.0f, aspect_max = 4.0f / 3.0f, area_max = 1.0f;
static const rules v1 = { 0.08f, 0.1f, 10 }, v2 = { 0.05f, 0, 100 };

static bool attempt(const rules *r, int64_t w, int64_t h, en_rng *rng, en_crop *crop)
{
    const float aspect = en_rng_uniform(rng) * (aspect_max - aspect_min) + aspect_min;   /* width over height */
    const float min_area = r->area_min * (float)w * (float)h, max_area = area_max * (float)w * (float)h;

    int64_t ch = lrintf(sqrtf(min_area / aspect)), tallest = lrintf(sqrtf(max_area / aspect));
    if (lrintf((float)tallest * aspect) > w) {
        /* the tallest crop whose rounded width still fits; the reference mixes in a double here (the literal 0.5) */
        tallest = (int64_t)(((double)w + 0.5 - (double)1e-7f) / (double)aspect);
        if (lrintf((float)tallest * aspect) > w) tallest--;
    }
    if (tallest > h) tallest = h;
    if (ch >= tallest) ch = tallest;
    else ch += en_rng_below(rng, (uint32_t)(tallest - ch + 1));

    int64_t cw = lrintf((float)ch * aspect);
    float area = (float)(cw * ch);
    if (area < min_area) {                     /* rounding may have left the bounds by one row */
        ch++;
        cw = lrintf((float)ch * aspect);
        area = (float)(cw * ch);
    }
    if (area > max_area) {
        ch--;
        cw = lrintf((float)ch * aspect);
        area = (float)(cw * ch);
    }
    if (area < min_area || area > max_area || cw > w || ch > h || cw <= 0 || ch <= 0) return false;

    crop->y = ch < h ? en_rng_below(rng, (uint32_t)(h - ch)) : 0;
    crop->x = cw < w ? en_rng_below(rng, (uint32_t)(w - cw)) : 0;
    crop->w = cw;
    crop->h = ch;
    return area / (float)(w * h) >= r->covered_min;
}

static en_crop sample_box(const rules *r, int64_t w, int64_t h, en_rng *rng)
{
    en_crop crop = { 0 };
    bool found = false;
    for (int i = 0; i < r->attempts && !found; i++) found = attempt(r, w, h, rng, &crop);
    return found ? crop : (en_crop){ .w = w, .h = h };
}

en_crop en_crop_train(int64_t w, int64_t h, int channels, int size, uint64_t seed, uint64_t epoch, uint64_t sample)
{
    en_rng rng = en_rng_at(seed, EN_RNG_CROP, epoch, sample, 0);
    en_crop crop = sample_box(&v1, w, h, &rng);

    /* The reference compares the shapes (h, w, channels) before and after: equal means that the sampler gave up.  A gray
     * file's header says one channel and its decoded image has three, so it is never equal and is resized whole. */
    crop.whole = crop.w == w && crop.h == h;
    if (crop.whole && channels == 3) {
        crop = en_crop_eval(w, h, size);
        crop.whole = true;
    }
    crop.flip = en_rng_u32(&rng) >> 31;
    return crop;
}

en_crop en_crop_train_v2(int64_t w, int64_t h, uint64_t seed, uint64_t epoch, uint64_t sample)
{
    en_rng rng = en_rng_at(seed, EN_RNG_CROP, epoch, sample, 0);
    en_crop crop = sample_box(&v2, w, h, &rng);
    crop.whole = crop.w == w && crop.h == h;
    crop.flip = en_rng_u32(&rng) >> 31;
    return crop;
}

/* preprocessing.py before November 2021, the version behind the published numbers: CROP_PADDING = 32. */
en_crop en_crop_eval(int64_t w, int64_t h, int size)
{
    const float share = (float)(size / (size + 32.0));
    int64_t side = (int64_t)(share * (float)(w < h ? w : h));
    if (side < 1) side = 1;                    /* one pixel at least, of a 1-pixel image */
    return (en_crop){ .x = (w - side + 1) / 2, .y = (h - side + 1) / 2, .w = side, .h = side };
}

static const char *const evaluated[EN_EVAL_CROPS] = { "", "reference", "none", "v2" };
const char *en_eval_crop_name(en_eval_crop how) { return evaluated[how]; }
en_eval_crop en_eval_crop_named(const char *name)
{
    int i = EN_EVAL_CROPS - 1;
    while (i > 0 && strcmp(evaluated[i], name) != 0) i--;
    return (en_eval_crop)i;
}

en_crop en_crop_evaluated(en_eval_crop how, int64_t w, int64_t h, int size)
{
    const int v2_looks_at_all_from = 320;
    if (how == EN_EVAL_CROP_NONE || (how == EN_EVAL_CROP_V2 && size >= v2_looks_at_all_from)) return (en_crop){ .w = w, .h = h };
    en_crop crop = en_crop_eval(w, h, size);
    if (how == EN_EVAL_CROP_V2) crop.x = (w - crop.w) / 2, crop.y = (h - crop.h) / 2;
    return crop;
}
