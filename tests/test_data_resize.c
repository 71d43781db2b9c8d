/* Crop and resize.  Oracle of the resize: the formula of resize.c's head in double, four by four taps at once, with the
 * coordinate in float32 as the formula has it.  Oracles of the crop: the seven steps of TensorFlow's sampler written down a
 * second time (the same draws must give the same crop), and the distribution of a simulation in double with another
 * generator (which shares neither the arithmetic nor the random numbers). */
#include "data_help.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- resize ---- */

static double keys(double x)
{
    const double a = -0.75;
    x = fabs(x);
    if (x <= 1) return (a + 2) * x * x * x - (a + 3) * x * x + 1;
    if (x < 2) return a * x * x * x - 5 * a * x * x + 8 * a * x - 4 * a;
    return 0;
}

static void oracle_taps(int64_t i, int64_t in, int64_t out, double weight[4], int64_t at[4])
{
    const float c = (float)i * ((float)in / (float)out);
    const double floor_c = floor((double)c), t = rint(((double)c - floor_c) * 1024) / 1024;
    for (int k = -1; k <= 2; k++) {
        const double index = floor_c + k;
        weight[k + 1] = keys(t - k);
        at[k + 1] = (int64_t)(index < 0 ? 0 : index > (double)(in - 1) ? (double)(in - 1) : index);
    }
}

static void resize_is_within_the_rounding_bound(void **state)
{
    (void)state;
    static const struct { int w, h; en_crop crop; int size; } cases[] = {
        { 1, 1, { 0, 0, 1, 1, false, false }, 8 },           { 5, 3, { 0, 0, 5, 3, false, false }, 7 },
        { 37, 53, { 2, 3, 30, 41, true, false }, 32 },       { 400, 300, { 17, 5, 350, 260, false, false }, 224 },
        { 400, 300, { 0, 0, 400, 300, true, false }, 224 },  { 64, 64, { 0, 0, 64, 64, false, false }, 64 },
        { 3000, 4, { 0, 0, 3000, 4, true, false }, 16 },     { 2000, 60, { 100, 10, 1700, 50, true, false }, 300 },
        { 6000, 20, { 1, 1, 5990, 18, false, false }, 300 }, { 90, 2000, { 3, 1, 80, 1900, true, false }, 257 },
        { 1400, 30, { 0, 0, 1400, 30, false, false }, 256 }, { 300, 300, { 299, 299, 1, 1, false, false }, 5 },
    };
    for (size_t n = 0; n < sizeof cases / sizeof *cases; n++) {
        const int S = cases[n].size, w = cases[n].w;
        const en_crop *crop = &cases[n].crop;
        uint8_t *rgb = malloc((size_t)w * (size_t)cases[n].h * 3);
        en_rng rng = en_rng_at(1, EN_RNG_TEST, 0, n, 0);
        for (int64_t i = 0; i < (int64_t)w * cases[n].h * 3; i++) rgb[i] = (uint8_t)en_rng_u32(&rng);
        const en_image img = { .w = w, .h = cases[n].h, .rgb = rgb, .channels = 3 };
        float *out = malloc((size_t)S * (size_t)S * 3 * sizeof *out);
        en_resize_bicubic(&img, crop, S, &en_imagenet_normalise, out);
        for (int64_t i = 0; i < S; i++)
            for (int64_t j = 0; j < S; j++) {
                double wy[4], wx[4];
                int64_t y[4], x[4];
                oracle_taps(i, crop->h, S, wy, y);
                oracle_taps(crop->flip ? S - 1 - j : j, crop->w, S, wx, x);
                for (int d = 0; d < 3; d++) {
                    double sum = 0, magnitude = 0;
                    for (int a = 0; a < 4; a++)
                        for (int b = 0; b < 4; b++) {
                            const double term = wy[a] * wx[b] * rgb[((crop->y + y[a]) * w + crop->x + x[b]) * 3 + d];
                            sum += term;
                            magnitude += fabs(term);
                        }
                    const double mean = (double)en_imagenet_normalise.mean[d], std = (double)en_imagenet_normalise.std[d];
                    const double want = (sum - mean) / std, got = (double)out[(i * S + j) * 3 + d];
                    /* each term: two rounded weights (2 u each: computed in float from exact t), two products, six sums */
                    const double u = 0x1p-24;
                    const double bound = (14 * u * magnitude + u * fabs(sum - mean)) / std * 1.01 + 2 * u * fabs(want) + 1e-12;
                    if (!(fabs(got - want) <= bound))
                        fail_msg("case %zu (%d x %d to %d) at (%d, %d, %d): %.9g, not %.9g +- %.2g", n, w, cases[n].h, S, (int)i,
                                 (int)j, d, got, want, bound);
                }
            }
        free(out);
        free(rgb);
    }
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
