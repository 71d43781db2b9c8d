/* Crop and resize.  Oracles of the resize: the formulas of resize_plain.c and resize_antialiased.c in double, over all input pixels, with the
 * coordinates in float32 where the formulas have them so; and Pillow.  Oracles of the crop: the seven steps of TensorFlow's sampler written down a
 * second time (the same draws must give the same crop), and the distribution of a simulation in double with another
 * generator (which shares neither the arithmetic nor the random numbers). */
#include "data/resize.h"
#include "data_help.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- resize ---- */

static double keys(double a, double x)
{
    x = fabs(x);
    if (x <= 1) return (a + 2) * x * x * x - (a + 3) * x * x + 1;
    if (x < 2) return a * x * x * x - 5 * a * x * x + 8 * a * x - 4 * a;
    return 0;
}

static int64_t inside(double index, int64_t n) { return (int64_t)(index < 0 ? 0 : index > (double)(n - 1) ? (double)(n - 1) : index); }

/* weight (n) = what each input sample adds to output i of `out`; coordinates of the plain kernels in float32, as the references
 * have them, all else in double.  How many are not zero. */
static int oracle_weights(en_resize_kernel kernel, int64_t i, int64_t n, int64_t out, float offset, float span, double *weight)
{
    for (int64_t k = 0; k < n; k++) weight[k] = 0;
    const float scale = span / (float)out;
    if (kernel == EN_RESIZE_BICUBIC) {
        const float c = offset + (float)i * scale;
        const double floor_c = floor((double)c), t = rint(((double)c - floor_c) * 1024) / 1024;
        for (int k = -1; k <= 2; k++) weight[inside(floor_c + k, n)] += keys(-0.75, t - k);
        return 4;
    }
    if (kernel == EN_RESIZE_BILINEAR) {
        const float c = offset + ((float)i + 0.5f) * scale - 0.5f;
        const double floor_c = floor((double)c), t = (double)c - floor_c;
        weight[inside(floor_c, n)] += 1 - t;
        weight[inside(floor_c + 1, n)] += t;
        return 2;
    }
    const double wide = (double)span / (double)out, f = wide > 1 ? wide : 1, c = (double)offset + ((double)i + 0.5) * wide;
    double sum = 0;
    int taps = 0;
    for (int64_t k = 0; k < n; k++) {          /* Pillow looks at those whose centre is nearer than reach, rounded to a pixel */
        const double x = ((double)k + 0.5 - c) / f, reach = (kernel == EN_RESIZE_BICUBIC_AA ? 2 : 1) * f;
        if (k < (int64_t)(c - reach + 0.5) || k >= (int64_t)(c + reach + 0.5)) continue;
        weight[k] = kernel == EN_RESIZE_BICUBIC_AA ? keys(-0.5, x) : fabs(x) < 1 ? 1 - fabs(x) : 0;
        sum += weight[k];
        taps++;
    }
    for (int64_t k = 0; k < n; k++) weight[k] /= sum;
    return taps;
}

typedef struct { int w, h; en_crop crop; int size; } resize_case;
static const resize_case resizes[] = {
    { 1, 1, { .x = 0, .y = 0, .w = 1, .h = 1 }, 8 },           { 5, 3, { .x = 0, .y = 0, .w = 5, .h = 3 }, 7 },
    { 37, 53, { .x = 2, .y = 3, .w = 30, .h = 41, .flip = true }, 32 },       { 400, 300, { .x = 17, .y = 5, .w = 350, .h = 260 }, 224 },
    { 400, 300, { .x = 0, .y = 0, .w = 400, .h = 300, .flip = true }, 224 },  { 64, 64, { .x = 0, .y = 0, .w = 64, .h = 64 }, 64 },
    { 3000, 4, { .x = 0, .y = 0, .w = 3000, .h = 4, .flip = true }, 16 },
    { 2000, 60, { .x = 100, .y = 10, .w = 1700, .h = 50, .flip = true }, 300 },
    { 6000, 20, { .x = 1, .y = 1, .w = 5990, .h = 18 }, 300 }, { 90, 2000, { .x = 3, .y = 1, .w = 80, .h = 1900, .flip = true }, 257 },
    { 1400, 30, { .x = 0, .y = 0, .w = 1400, .h = 30 }, 256 }, { 300, 300, { .x = 299, .y = 299, .w = 1, .h = 1 }, 5 },
    /* parts whose borders lie inside a pixel; strips cut short by their weights; one column wider than a strip may be */
    { 60, 50, { .x = 4, .y = 6, .w = 41, .h = 33, .left = 0.25f, .right = 0.5f, .top = 0.75f, .bottom = 0.125f }, 24 },
    { 60, 50, { .x = 4, .y = 6, .w = 41, .h = 33, .left = 0.25f, .right = 0.5f, .top = 0.75f, .flip = true }, 90 },
    { 9000, 6, { .w = 9000, .h = 6 }, 100 },                   { 9000, 3, { .x = 1, .w = 8999, .h = 3, .flip = true }, 4 },
};
enum { N_CASES = sizeof resizes / sizeof *resizes };
static const en_resize_kernel kernels[] = { EN_RESIZE_BICUBIC, EN_RESIZE_BILINEAR, EN_RESIZE_BICUBIC_AA, EN_RESIZE_BILINEAR_AA };
enum { N_KERNELS = sizeof kernels / sizeof *kernels };

/* The first cases are as old as the trainer, and so are their random pictures. */
static en_image random_image(size_t n)
{
    const size_t room = (size_t)resizes[n].w * (size_t)resizes[n].h * 3;
    en_image img = { .w = resizes[n].w, .h = resizes[n].h, .rgb = malloc(room), .channels = 3 };
    en_rng rng = en_rng_at(1, EN_RNG_TEST, 0, n, 0);
    for (size_t i = 0; i < room; i++) img.rgb[i] = (uint8_t)en_rng_u32(&rng);
    return img;
}

/* Separable in double: `middle` (h, size) along the rows, clipped for the antialiased kernels as Pillow's bytes are, then down.
 * The plain kernels go down first; without clipping that is the same in exact arithmetic. */
static void resize_is_within_the_rounding_bound(void **state)
{
    (void)state;
    for (size_t n = 0; n < N_CASES; n++)
        for (int which = 0; which < N_KERNELS; which++) {
            const en_resize_kernel kernel = kernels[which];
            const int S = resizes[n].size;
            const en_crop *crop = &resizes[n].crop;
            const bool clip = kernel >= EN_RESIZE_BICUBIC_AA;
            en_image img = random_image(n);
            float *out = malloc((size_t)S * (size_t)S * 3 * sizeof *out);
            en_resize(&img, crop, kernel, S, &en_imagenet_normalise, out);
            double *wx = malloc((size_t)crop->w * sizeof *wx), *wy = malloc((size_t)crop->h * sizeof *wy);
            double *middle = malloc((size_t)crop->h * (size_t)S * 3 * sizeof *middle), most_x = 0;
            int taps_x = 0;
            for (int64_t j = 0; j < S; j++) {
                const float span = (float)crop->w - crop->left - crop->right;
                const int taps = oracle_weights(kernel, crop->flip ? S - 1 - j : j, crop->w, S, crop->left, span, wx);
                double magnitude = 0;
                for (int64_t k = 0; k < crop->w; k++) magnitude += fabs(wx[k]);
                most_x = fmax(most_x, magnitude);
                if (taps > taps_x) taps_x = taps;
                for (int64_t y = 0; y < crop->h; y++)
                    for (int d = 0; d < 3; d++) {
                        const uint8_t *row = img.rgb + ((crop->y + y) * img.w + crop->x) * 3 + d;
                        double sum = 0;
                        for (int64_t k = 0; k < crop->w; k++)
                            if (wx[k] != 0) sum += wx[k] * row[3 * k];
                        middle[(y * S + j) * 3 + d] = clip ? fmin(fmax(sum, 0), 255) : sum;
                    }
            }
            for (int64_t i = 0; i < S; i++) {
                const int taps_y = oracle_weights(kernel, i, crop->h, S, crop->top, (float)crop->h - crop->top - crop->bottom, wy);
                double magnitude = 0;
                for (int64_t k = 0; k < crop->h; k++) magnitude += fabs(wy[k]);
                for (int64_t j = 0; j < S * 3; j++) {
                    double sum = 0;
                    for (int64_t k = 0; k < crop->h; k++)
                        if (wy[k] != 0) sum += wy[k] * middle[k * S * 3 + j];
                    const double mean = (double)en_imagenet_normalise.mean[j % 3], std = (double)en_imagenet_normalise.std[j % 3];
                    const double want = (sum - mean) / std, got = (double)out[i * S * 3 + j];
                    /* a term: two rounded weights (2 u each: the quotient or the float they come from, and the rounding), two
                     * products and as many sums as there are taps; each relative to at most 255 * sum |wy| * sum |wx|.  The
                     * bilinear coordinate is a float: 1 - t is rounded, which the 2 u cover. */
                    const double u = 0x1p-24;
                    const double terms = (6 + taps_x + taps_y) * u * 255 * most_x * magnitude;
                    const double bound = (terms + u * fabs(sum - mean)) / std * 1.01 + 2 * u * fabs(want);
                    if (!(fabs(got - want) <= bound))
                        fail_msg("case %zu (%d x %d to %d), kernel %d, at (%d, %d, %d): %.9g, not %.9g +- %.2g", n, img.w > 0 ? (int)img.w : 0,
                                 (int)img.h, S, (int)kernel, (int)i, (int)(j / 3), (int)(j % 3), got, want, bound);
                }
            }
            free(middle);
            free(wx);
            free(wy);
            free(out);
            free(img.rgb);
        }
}

/* FNV-1a of what the first version of this function made, before there were other kernels and other builds.  A function of
 * integers and of correctly rounded operations alone, so the same everywhere. */
static void the_references_kernel_has_kept_its_bits(void **state)
{
    (void)state;
    static const uint64_t want[] = { 0x24c6f50dd0570583, 0x7bd8f2068ed57682, 0xb4dffa9e8da04131, 0x7a32d3e8eed93b49, 0xd8808ae8820e55ed,
                                     0x78d4f21dd29be19c, 0x8c2778dbc89a1456, 0xe8f818d8a31b0b53, 0x2fb12940d316b1ae, 0x0b095c491eb45e67,
                                     0x9ffa76b5eab5bde7, 0x20ec25f54f279fc7 };
    for (size_t n = 0; n < sizeof want / sizeof *want; n++) {
        const size_t room = (size_t)resizes[n].size * (size_t)resizes[n].size * 3 * sizeof(float);
        en_image img = random_image(n);
        uint8_t *out = malloc(room);
        en_resize_bicubic(&img, &resizes[n].crop, resizes[n].size, &en_imagenet_normalise, (float *)out);
        uint64_t hash = 1469598103934665603u;
        for (size_t i = 0; i < room; i++) hash = (hash ^ out[i]) * 1099511628211u;
        if (hash != want[n]) fail_msg("case %zu: %016" PRIx64 ", not %016" PRIx64, n, hash, want[n]);
        free(out);
        free(img.rgb);
    }
}

static void all_builds_make_the_same_bits(void **state)
{
    (void)state;
    int builds = 0;
    for (const en_resize_build *build; (build = en_resize_builds(builds)); builds++) {
        for (size_t n = 0; n < N_CASES; n++)
            for (int which = 0; which < N_KERNELS; which++) {
            const en_resize_kernel kernel = kernels[which];
                const size_t values = (size_t)resizes[n].size * (size_t)resizes[n].size * 3;
                en_image img = random_image(n);
                float *floats[2] = { malloc(values * 4), malloc(values * 4) };
                uint8_t *whole[2] = { malloc(values), malloc(values) };
                en_resize(&img, &resizes[n].crop, kernel, resizes[n].size, &en_imagenet_normalise, floats[0]);
                en_resize_bytes(&img, &resizes[n].crop, kernel, resizes[n].size, n % 2, whole[0]);
                en_resize_job job = en_resize_job_of(&img, &resizes[n].crop, kernel, resizes[n].size, resizes[n].size);
                job.norm = &en_imagenet_normalise;
                job.floats = floats[1];
                build->resize(&job);
                job.norm = &(en_normalise){ .std = { 1, 1, 1 } };
                job.floats = NULL;
                job.bytes = whole[1];
                job.truncate = n % 2;
                build->resize(&job);
                if (memcmp(floats[0], floats[1], values * 4) || memcmp(whole[0], whole[1], values))
                    fail_msg("%s: case %zu, kernel %d", build->name, n, kernel);
                const size_t some = values - n % 7;
                en_normalise_bytes(whole[0], some, &en_imagenet_normalise, floats[0]);
                build->normalise(whole[0], some, &en_imagenet_normalise, floats[1]);
                assert_memory_equal(floats[0], floats[1], some * 4);
                for (size_t i = 0; i < some; i++)
                    assert_true(floats[0][i] == ((float)whole[0][i] - en_imagenet_normalise.mean[i % 3]) / en_imagenet_normalise.std[i % 3]);
                for (int k = 0; k < 2; k++) free(floats[k]), free(whole[k]);
                free(img.rgb);
            }
    }
    print_message("    %d builds\n", builds);
    assert_true(builds >= 1);
}

/* Bytes are the floats, clipped, then rounded to the nearest (ties to even) or cut off. */
static void bytes_are_the_floats_rounded(void **state)
{
    (void)state;
    for (size_t n = 0; n < N_CASES; n++)
        for (int which = 0; which < N_KERNELS; which++) {
            const en_resize_kernel kernel = kernels[which];
            const size_t values = (size_t)resizes[n].size * (size_t)resizes[n].size * 3;
            en_image img = random_image(n);
            float *floats = malloc(values * 4);
            uint8_t *rounded = malloc(values), *cut = malloc(values);
            en_resize(&img, &resizes[n].crop, kernel, resizes[n].size, &(en_normalise){ .std = { 1, 1, 1 } }, floats);
            en_resize_bytes(&img, &resizes[n].crop, kernel, resizes[n].size, false, rounded);
            en_resize_bytes(&img, &resizes[n].crop, kernel, resizes[n].size, true, cut);
            for (size_t i = 0; i < values; i++) {
                const float v = fminf(fmaxf(floats[i], 0), 255);
                assert_int_equal(rounded[i], (int)rintf(v));
                assert_int_equal(cut[i], (int)v);
            }
            free(rounded);
            free(cut);
            free(floats);
            free(img.rgb);
        }
}

/* golden/make_resize.py: the same picture, cases and order.  Pillow rounds between its two passes: half a level, times the 1.3
 * that |weights| of the second pass add up to at most, is less than one, and both results are rounded: one level. */
static void antialiased_kernels_are_pillows(void **state)
{
    (void)state;
    enum { W = 120, H = 90 };
    static const struct { int x, y, w, h, side; } parts[] = { { 0, 0, 120, 90, 24 }, { 7, 5, 100, 81, 40 }, { 11, 3, 40, 31, 56 },
                                                              { 90, 60, 30, 30, 30 }, { 3, 20, 110, 9, 33 } };
    FILE *f = fopen(EN_GOLDEN_DIR "/resize_pillow.bin", "rb");
    assert_non_null(f);
    uint8_t rgb[W * H * 3], want[56 * 56 * 3], got[56 * 56 * 3];
    uint32_t lcg = 1;
    for (int y = 0; y < H; y++)
        for (int x = 0; x < W; x++)
            for (int d = 0; d < 3; d++) {
                lcg = lcg * 1664525 + 1013904223;
                rgb[(y * W + x) * 3 + d] = (uint8_t)(((x / 10 + y / 8 + d) % 2 ? 200 : 0) + (int)((lcg >> 24) * 56 / 256));
            }
    const en_image img = { .w = W, .h = H, .rgb = rgb, .channels = 3 };
    int differ = 0, values = 0;
    for (int k = 0; k < 2; k++)
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
            const en_crop crop = { .x = parts[i].x, .y = parts[i].y, .w = parts[i].w, .h = parts[i].h };
            const size_t n = (size_t)parts[i].side * (size_t)parts[i].side * 3;
            assert_int_equal(fread(want, 1, n, f), n);
            en_resize_bytes(&img, &crop, k ? EN_RESIZE_BILINEAR_AA : EN_RESIZE_BICUBIC_AA, parts[i].side, false, got);
            for (size_t j = 0; j < n; j++, values++) {
                differ += want[j] != got[j];
                if (abs(want[j] - got[j]) > 1) fail_msg("kernel %d, part %zu, value %zu: %d, and Pillow's is %d", k, i, j, got[j], want[j]);
            }
        }
    en_image small = { 0 };
    size_t capacity = 0;
    OK(en_shrink(&img, 24, &small, &capacity));
    assert_true(small.w == 32 && small.h == 24 && small.channels == 3 && capacity >= 32 * 24 * 3);
    assert_int_equal(fread(want, 1, 32 * 24 * 3, f), 32 * 24 * 3);
    for (int j = 0; j < 32 * 24 * 3; j++)
        if (abs(want[j] - small.rgb[j]) > 1) fail_msg("shrunk, value %d: %d, and Pillow's is %d", j, small.rgb[j], want[j]);
    assert_int_equal(fgetc(f), EOF);
    fclose(f);
    OK(en_shrink(&img, 90, &small, &capacity));            /* not longer: as it is */
    assert_true(small.w == W && small.h == H);
    assert_memory_equal(small.rgb, rgb, sizeof rgb);
    print_message("    %d of %d values are off by one\n", differ, values);
    assert_true(differ < values / 5);
    en_image_free(&small);
}

static void the_same_size_changes_nothing(void **state)
{
    (void)state;
    uint8_t *rgb = make_picture(70, 60, 1);
    const en_image img = { .w = 70, .h = 60, .rgb = rgb, .channels = 3 };
    const en_normalise none = { .mean = { 0 }, .std = { 1, 1, 1 } };
    float out[48 * 48 * 3];
    en_resize_bicubic(&img, &(en_crop){ .x = 3, .y = 5, .w = 48, .h = 48 }, 48, &none, out);
    for (int i = 0; i < 48; i++)
        for (int j = 0; j < 48 * 3; j++) assert_true(out[i * 144 + j] == (float)rgb[((5 + i) * 70 + 3) * 3 + j]);
    free(rgb);
}

static void pixels_outside_the_crop_do_not_matter(void **state)
{
    (void)state;
    uint8_t *a = make_picture(50, 40, 1), *b = make_picture(50, 40, 2);
    for (int y = 7; y < 7 + 21; y++) memcpy(b + (y * 50 + 9) * 3, a + (y * 50 + 9) * 3, 33 * 3);
    const en_crop crop = { .x = 9, .y = 7, .w = 33, .h = 21, .flip = true };
    float out[2][64 * 64 * 3];
    en_resize_bicubic(&(en_image){ .w = 50, .h = 40, .rgb = a }, &crop, 64, &en_imagenet_normalise, out[0]);
    en_resize_bicubic(&(en_image){ .w = 50, .h = 40, .rgb = b }, &crop, 64, &en_imagenet_normalise, out[1]);
    assert_memory_equal(out[0], out[1], sizeof out[0]);
    free(a);
    free(b);
}

static void flipping_mirrors_every_bit_and_overshoot_stays(void **state)
{
    (void)state;
    uint8_t *rgb = make_picture(120, 90, 2);
    for (int i = 0; i < 90 * 120 * 3; i++) rgb[i] = (i / 3 % 120) / 10 % 2 ? 255 : 0;      /* hard edges overshoot */
    const en_image img = { .w = 120, .h = 90, .rgb = rgb };
    enum { S = 300 };
    float *a = malloc(S * S * 3 * sizeof *a), *b = malloc(S * S * 3 * sizeof *b);
    const en_normalise none = { .mean = { 0 }, .std = { 1, 1, 1 } };
    en_resize_bicubic(&img, &(en_crop){ .w = 120, .h = 90 }, S, &none, a);
    en_resize_bicubic(&img, &(en_crop){ .w = 120, .h = 90, .flip = true }, S, &none, b);
    float least = 0, most = 0;
    for (int i = 0; i < S; i++)
        for (int j = 0; j < S; j++)
            for (int d = 0; d < 3; d++) {
                const float v = a[(i * S + j) * 3 + d];
                assert_true(v == b[(i * S + S - 1 - j) * 3 + d]);
                if (v < least) least = v;
                if (v > most) most = v;
            }
    assert_true(least < -5 && most > 260);
    free(a);
    free(b);
    free(rgb);
}

/* ---- crop ---- */

/* Section "training crop" of the reference, step by step; float32 where it has float32. */
static en_crop crop_again(int64_t W, int64_t H, int channels, int size, uint64_t seed, uint64_t epoch, uint64_t sample)
{
    en_rng rng = en_rng_at(seed, EN_RNG_CROP, epoch, sample, 0);
    en_crop c = { .w = W, .h = H };
    for (int tries = 0; tries < 10; tries++) {
        const float lo = 0.75f, hi = 4.0f / 3.0f, a = lo + en_rng_uniform(&rng) * (hi - lo);               /* 1 */
        const float Amin = 0.08f * (float)W * (float)H, Amax = (float)W * (float)H;                         /* 2 */
        long h_lo = lrintf(sqrtf(Amin / a)), h_hi = lrintf(sqrtf(Amax / a));
        if (lrintf((float)h_hi * a) > W) {                                                                  /* 3 */
            h_hi = (long)floor(((double)W + 0.5 - (double)1e-7f) / (double)a);
            if (lrintf((float)h_hi * a) > W) h_hi -= 1;
        }
        h_hi = h_hi < H ? h_hi : H;
        h_lo = h_lo < h_hi ? h_lo : h_hi;
        long h = h_lo;                                                                                      /* 4 */
        if (h_lo < h_hi) h += en_rng_below(&rng, (uint32_t)(h_hi - h_lo + 1));
        long w = lrintf((float)h * a);
        if ((float)(w * h) < Amin) { h += 1; w = lrintf((float)h * a); }                                    /* 5 */
        if ((float)(w * h) > Amax) { h -= 1; w = lrintf((float)h * a); }
        if ((float)(w * h) < Amin || (float)(w * h) > Amax || w > W || h > H || w <= 0 || h <= 0) continue;
        const int64_t y = h < H ? en_rng_below(&rng, (uint32_t)(H - h)) : 0,
        x = w < W ? en_rng_below(&rng, (uint32_t)(W - w)) : 0;  /* 6 */
        if ((float)(w * h) / (float)(W * H) < 0.1f) continue;                                               /* 7 */
        c = (en_crop){ .x = x, .y = y, .w = w, .h = h };
        break;
    }
    if (c.w == W && c.h == H) {
        if (channels == 3) c = en_crop_eval(W, H, size);
        c.whole = true;
    }
    c.flip = en_rng_u32(&rng) >= 0x80000000u;
    return c;
}

static const struct { int w, h; } sizes[] = { { 500, 375 }, { 375, 500 }, { 1, 1 }, { 1, 600 }, { 3000, 4 }, { 17, 17 },
                                              { 37, 53 }, { 2, 3 }, { 4000, 3000 }, { 64, 64 } };

static void crops_are_the_references_and_inside_the_image(void **state)
{
    (void)state;
    for (size_t n = 0; n < sizeof sizes / sizeof *sizes; n++)
        for (uint64_t k = 0; k < 2000; k++) {
            const int64_t W = sizes[n].w, H = sizes[n].h;
            const int channels = k % 5 == 0 ? 1 : 3;
            const en_crop c = en_crop_train(W, H, channels, 224, 7, k / 100, k),
            again = crop_again(W, H, channels, 224, 7, k / 100, k);
            if (c.x != again.x || c.y != again.y || c.w != again.w || c.h != again.h || c.flip != again.flip
                || c.whole != again.whole)
                fail_msg("%d x %d, draw %d: (%d %d %d %d), not (%d %d %d %d)", (int)W, (int)H, (int)k, (int)c.x, (int)c.y,
                         (int)c.w, (int)c.h,
                         (int)again.x, (int)again.y, (int)again.w, (int)again.h);
            assert_true(c.w > 0 && c.h > 0 && c.x >= 0 && c.y >= 0 && c.x + c.w <= W && c.y + c.h <= H);
            if (c.whole) continue;
            assert_true((double)(c.w * c.h) >= 0.0999 * (double)(W * H));                  /* ten per cent, not eight */
            assert_true(c.h == H || c.y < H - c.h);                                        /* never the last offset */
            assert_true(c.w == W || c.x < W - c.w);
            if (c.h > 60) assert_true((double)c.w / (double)c.h > 0.74 && (double)c.w / (double)c.h < 1.35);
        }
}

/* One crop of a large image: uniform aspect, height uniform between the bounds, accepted from 10 % on. */
static void simulate(double W, double H, double *area, double *aspect)
{
    for (;;) {
        const double a = 0.75 + drand48() * (4.0 / 3 - 0.75);
        const double lo = sqrt(0.08 * W * H / a);
        double hi = sqrt(W * H / a);
        if (hi * a > W) hi = W / a;
        if (hi > H) hi = H;
        const double h = lo + drand48() * (hi - lo);
        *area = h * h * a / (W * H);
        *aspect = a;
        if (*area >= 0.1) return;
    }
}

/* Chi-square of two samples in BINS bins; 6 sigma above its mean for fixed seeds is a failure of the code, not of chance. */
static void crops_are_distributed_as_the_reference(void **state)
{
    (void)state;
    enum { BINS = 20, DRAWS = 40000 };
    srand48(5);
    double area[2][BINS] = { { 0 } }, aspect[2][BINS] = { { 0 } }, place[BINS] = { 0 };
    int flips = 0, placed = 0;
    for (uint64_t k = 0; k < DRAWS; k++) {
        const en_crop c = en_crop_train(2000, 1500, 3, 224, 99, 3, k);
        assert_false(c.whole);
        double s_area, s_aspect;
        simulate(2000, 1500, &s_area, &s_aspect);
        const double values[2] = { (double)(c.w * c.h) / 3e6, s_area }, ratios[2] = { (double)c.w / (double)c.h, s_aspect };
        for (int i = 0; i < 2; i++) {
            const int by_area = (int)((values[i] - 0.1) / 0.9 * BINS),
            by_aspect = (int)((ratios[i] - 0.75) / (4.0 / 3 - 0.75) * BINS);
            area[i][by_area < 0 ? 0 : by_area >= BINS ? BINS - 1 : by_area]++;
            aspect[i][by_aspect < 0 ? 0 : by_aspect >= BINS ? BINS - 1 : by_aspect]++;
        }
        if (2000 - c.w >= 400) {               /* the offset, as a share of its range: uniform */
            place[(int)((double)c.x * BINS / (double)(2000 - c.w))]++;
            placed++;
        }
        flips += c.flip;
    }
    double chi_area = 0, chi_aspect = 0, chi_place = 0;
    for (int b = 0; b < BINS; b++) {
        chi_area += (area[0][b] - area[1][b]) * (area[0][b] - area[1][b]) / (area[0][b] + area[1][b] + 1e-9);
        chi_aspect += (aspect[0][b] - aspect[1][b]) * (aspect[0][b] - aspect[1][b]) / (aspect[0][b] + aspect[1][b] + 1e-9);
        const double expected = (double)placed / BINS;
        chi_place += (place[b] - expected) * (place[b] - expected) / expected;
    }
    const double limit = (BINS - 1) + 6 * sqrt(2.0 * (BINS - 1));
    if (chi_area > limit || chi_aspect > limit || chi_place > limit)
        fail_msg("chi-square of area %.1f, aspect %.1f, offset %.1f; limit %.1f", chi_area, chi_aspect, chi_place, limit);
    assert_true(abs(flips - DRAWS / 2) < 5 * sqrt(DRAWS) / 2);
}

static void a_whole_image_is_cropped_as_for_evaluation_unless_gray(void **state)
{
    (void)state;
    const en_crop eval = en_crop_eval(3000, 4, 224), colour = en_crop_train(3000, 4, 3, 224, 1, 0, 0),
    gray = en_crop_train(3000, 4, 1, 224, 1, 0, 0);
    assert_true(colour.whole && colour.x == eval.x && colour.y == eval.y && colour.w == eval.w && colour.h == eval.h);
    assert_true(gray.whole && gray.x == 0 && gray.y == 0 && gray.w == 3000 && gray.h == 4);
}

/* side = floor(S/(S+32) min(H, W)); offsets (H - side + 1) div 2: by hand */
static void evaluation_crops_have_the_published_numbers(void **state)
{
    (void)state;
    static const struct { int w, h, size, x, y, side; } cases[] = {
        { 500, 375, 224, 86, 24, 328 }, { 375, 500, 224, 24, 86, 328 }, { 256, 256, 224, 16, 16, 224 },
        { 500, 375, 600, 72, 10, 356 },
        { 1, 1, 224, 0, 0, 1 },         { 1, 600, 224, 0, 300, 1 },     { 17, 17, 224, 2, 2, 14 },
        { 640, 480, 300, 104, 24, 433 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const en_crop c = en_crop_eval(cases[i].w, cases[i].h, cases[i].size);
        if (c.x != cases[i].x || c.y != cases[i].y || c.w != cases[i].side || c.h != cases[i].side || c.flip)
            fail_msg("%d x %d at %d: (%d, %d) %d x %d", cases[i].w, cases[i].h, cases[i].size, (int)c.x, (int)c.y, (int)c.w,
                     (int)c.h);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(resize_is_within_the_rounding_bound),
        cmocka_unit_test(the_references_kernel_has_kept_its_bits),
        cmocka_unit_test(all_builds_make_the_same_bits),
        cmocka_unit_test(bytes_are_the_floats_rounded),
        cmocka_unit_test(antialiased_kernels_are_pillows),
        cmocka_unit_test(the_same_size_changes_nothing),
        cmocka_unit_test(pixels_outside_the_crop_do_not_matter),
        cmocka_unit_test(flipping_mirrors_every_bit_and_overshoot_stays),
        cmocka_unit_test(crops_are_the_references_and_inside_the_image),
        cmocka_unit_test(crops_are_distributed_as_the_reference),
        cmocka_unit_test(a_whole_image_is_cropped_as_for_evaluation_unless_gray),
        cmocka_unit_test(evaluation_crops_have_the_published_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
