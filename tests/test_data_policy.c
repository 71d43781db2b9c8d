/* test_data_policy.c - which operations a picture gets, how often, with which arguments; random erasing.
 *
 * The tables are written here a second time, as text with the arguments instead of the levels.  A sub-policy (a, p) (b, q) leaves four
 * outcomes - nothing, a, b, a and b - and some outcomes come from several sub-policies; the frequency of every one over N draws is
 * compared with its probability P.  Bound: 6 standard deviations of the binomial distribution, sqrt(P (1-P) N), and 6 draws more, which
 * is what a rare outcome's Poisson tail needs: with some 100 outcomes a wrong alarm has a probability below 1e-5 - and the draws are the
 * same in every run. */
#include "data_help.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "data/augment.h"
#include "data/image.h"
#include "kernels/rng.h"

typedef struct { const char *name; double probability, argument; } entry;

/* the reference's policy_v0 */
static const entry v0[25][2] = {
    { { "Equalize", .8, 0 }, { "ShearY", .8, .12 } },       { { "Color", .4, 1.72 }, { "Equalize", .6, 0 } },
    { { "Color", .4, .28 }, { "Rotate", .6, 24 } },         { { "Solarize", .8, 76 }, { "Equalize", .4, 0 } },
    { { "Solarize", .4, 51 }, { "Solarize", .6, 51 } },     { { "Color", .2, .1 }, { "Equalize", .8, 0 } },
    { { "Equalize", .4, 0 }, { "SolarizeAdd", .8, 33 } },   { { "ShearX", .2, .27 }, { "Rotate", .6, 24 } },
    { { "Color", .6, .28 }, { "Equalize", 1, 0 } },         { { "Invert", .4, 0 }, { "Rotate", .6, 0 } },
    { { "Equalize", 1, 0 }, { "ShearY", .6, .09 } },        { { "Color", .4, 1.36 }, { "Equalize", .6, 0 } },
    { { "Posterize", .4, 2 }, { "AutoContrast", .4, 0 } },  { { "Solarize", .6, 204 }, { "Color", .6, 1.72 } },
    { { "Solarize", .2, 102 }, { "Rotate", .8, 27 } },      { { "Rotate", 1, 21 }, { "TranslateY", .8, 225 } },
    { { "ShearX", 0, 0 }, { "Solarize", .8, 102 } },        { { "ShearY", .8, 0 }, { "Color", .6, .82 } },
    { { "Color", 1, .1 }, { "Rotate", .6, 6 } },            { { "Equalize", .8, 0 }, { "Equalize", 0, 0 } },
    { { "Equalize", 1, 0 }, { "AutoContrast", .6, 0 } },    { { "ShearY", .4, .21 }, { "SolarizeAdd", .6, 77 } },
    { { "Posterize", .8, 0 }, { "Solarize", .6, 256 } },    { { "Solarize", .6, 204 }, { "Equalize", .6, 0 } },
    { { "Color", .8, 1.18 }, { "Rotate", .4, 15 } },
};

/* the paper's table, each line once; `times` says how often it occurs */
static const struct { entry pair[2]; int times; } paper[20] = {
    { { { "Posterize", .4, 7 }, { "Rotate", .6, 27 } }, 1 },       { { { "Solarize", .6, 128 }, { "AutoContrast", .6, 0 } }, 2 },
    { { { "Equalize", .8, 0 }, { "Equalize", .6, 0 } }, 2 },       { { { "Posterize", .6, 6 }, { "Posterize", .6, 6 } }, 1 },
    { { { "Equalize", .4, 0 }, { "Solarize", .2, 102 } }, 2 },     { { { "Equalize", .4, 0 }, { "Rotate", .8, 24 } }, 1 },
    { { { "Solarize", .6, 76 }, { "Equalize", .6, 0 } }, 1 },      { { { "Posterize", .8, 6 }, { "Equalize", 1, 0 } }, 1 },
    { { { "Rotate", .2, 9 }, { "Solarize", .6, 204 } }, 1 },       { { { "Equalize", .6, 0 }, { "Posterize", .4, 6 } }, 1 },
    { { { "Rotate", .8, 24 }, { "Color", .4, .1 } }, 1 },          { { { "Rotate", .4, 27 }, { "Equalize", .6, 0 } }, 1 },
    { { { "Equalize", 0, 0 }, { "Equalize", .8, 0 } }, 1 },        { { { "Invert", .6, 0 }, { "Equalize", 1, 0 } }, 2 },
    { { { "Color", .6, .82 }, { "Contrast", 1, 1.54 } }, 2 },      { { { "Rotate", .8, 24 }, { "Color", 1, .46 } }, 1 },
    { { { "Color", .8, 1.54 }, { "Solarize", .8, 179 } }, 1 },     { { { "Sharpness", .4, 1.36 }, { "Invert", .6, 0 } }, 1 },
    { { { "ShearX", .6, .15 }, { "Equalize", 1, 0 } }, 1 },        { { { "Color", .4, .1 }, { "Equalize", .6, 0 } }, 1 },
};

/* ---- frequencies --------------------------------------------------------------------------------------------------------- */

enum { MAX_OUTCOMES = 200, DRAWS = 200000, SIZE = 224 };

typedef struct { char name[80]; double probability; int64_t seen; } outcome;
typedef struct { outcome at[MAX_OUTCOMES]; int n; } outcomes;

static outcome *outcome_named(outcomes *o, const char *name)
{
    for (int i = 0; i < o->n; i++)
        if (strcmp(o->at[i].name, name) == 0) return &o->at[i];
    assert_true(o->n < MAX_OUTCOMES);
    snprintf(o->at[o->n].name, sizeof o->at[o->n].name, "%s", name);
    return &o->at[o->n++];
}

static void add_name(char name[80], const char *op, double argument)
{
    const size_t n = strlen(name);
    snprintf(name + n, 80 - n, "%s %.6g, ", op, fabs(argument));
}

static void expect_pair(outcomes *o, const entry pair[2], double weight)
{
    for (int both = 0; both < 4; both++) {
        char name[80] = "";
        double p = weight;
        for (int k = 0; k < 2; k++) {
            const bool happens = both >> k & 1;
            p *= happens ? pair[k].probability : 1 - pair[k].probability;
            if (happens) add_name(name, pair[k].name, pair[k].argument);
        }
        if (p > 0) outcome_named(o, name)->probability += p;
    }
}

static void within_deviation(const char *what, int64_t seen, double probability, int64_t n)
{
    const double want = probability * (double)n, sigma = sqrt(want * (1 - probability));
    if (fabs((double)seen - want) > 6 * sigma + 6) fail_msg("%s: %d of %d, not %.0f +- %.0f", what, (int)seen, (int)n, want, sigma);
}

static void frequencies_are(const en_augment *a, outcomes *o)
{
    int64_t signs = 0, minus = 0;
    double cx = 0, cy = 0, calls = 0;
    for (uint64_t s = 0; s < DRAWS; s++) {
        en_op_call call[EN_POLICY_OPS];
        const int n = en_policy_draw(a, SIZE, 5, 3, s, call);
        char name[80] = "";
        for (int i = 0; i < n; i++) {
            add_name(name, en_op_name(call[i].op), call[i].argument);
            const char *op = en_op_name(call[i].op);
            const bool may = strncmp(op, "Shear", 5) == 0 || strncmp(op, "Translate", 9) == 0 || strcmp(op, "Rotate") == 0;
            if (may && call[i].argument != 0) {
                signs++;
                minus += call[i].argument < 0;
            }
            assert_true(may || call[i].argument >= 0);
            assert_true(call[i].cx >= 0 && call[i].cx < SIZE && call[i].cy >= 0 && call[i].cy < SIZE);
            cx += (double)call[i].cx;
            cy += (double)call[i].cy;
            calls++;
        }
        outcome_named(o, name)->seen++;
    }
    double sum = 0;
    for (int i = 0; i < o->n; i++) {
        within_deviation(o->at[i].name, o->at[i].seen, o->at[i].probability, DRAWS);
        sum += o->at[i].probability;
    }
    assert_true(fabs(sum - 1) < 1e-9);
    within_deviation("negative arguments", minus, .5, signs);
    /* uniform on 0...S-1: mean (S-1)/2, deviation about S/sqrt(12) */
    const double bound = 6 * SIZE / sqrt(12 * calls);
    assert_true(fabs(cx / calls - (SIZE - 1) / 2.0) < bound && fabs(cy / calls - (SIZE - 1) / 2.0) < bound);
}

static void v0_is_the_references_table(void **state)
{
    (void)state;
    outcomes *o = calloc(1, sizeof *o);
    for (int i = 0; i < 25; i++) expect_pair(o, v0[i], 1 / 25.0);
    frequencies_are(&(en_augment){ .policy = EN_POLICY_V0 }, o);
    free(o);
}

static void paper_is_the_papers_table(void **state)
{
    (void)state;
    outcomes *o = calloc(1, sizeof *o);
    for (int i = 0; i < 20; i++) expect_pair(o, paper[i].pair, paper[i].times / 25.0);
    frequencies_are(&(en_augment){ .policy = EN_POLICY_PAPER }, o);
    free(o);
}

/* ---- RandAugment ------------------------------------------------------------------------------------------------------------- */

/* arguments by magnitude: the published table, with bits clamped to 8 and thresholds to 256 */
static void rand_augment_has_the_published_arguments(void **state)
{
    (void)state;
    static const struct { double magnitude, rotate, shear, translate, enhance, bits, threshold, addend, half; } rows[] = {
        { 5, 15, .15, 50, 1, 2, 128, 55, 20 },        { 10, 30, .3, 100, 1.9, 4, 256, 110, 40 },   { 15, 45, .45, 150, 2.8, 6, 256, 165, 60 },
        { 17, 51, .51, 170, 3.16, 6, 256, 187, 68 },  { 20, 60, .6, 200, 3.7, 8, 256, 220, 80 },   { 28, 84, .84, 280, 5.14, 8, 256, 308, 112 } };
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        const double want[EN_OPS] = { 0, 0, 0, rows[r].rotate, rows[r].bits, rows[r].threshold, rows[r].enhance, rows[r].enhance, rows[r].enhance,
            rows[r].enhance, rows[r].shear, rows[r].shear, rows[r].translate, rows[r].translate, rows[r].half, rows[r].addend };
        const en_augment a = { .policy = EN_POLICY_RAND, .rand_ops = 3, .magnitude = rows[r].magnitude };
        int64_t seen[3][EN_OPS] = { { 0 } };
        enum { N = 20000 };
        for (uint64_t s = 0; s < N; s++) {
            en_op_call call[EN_POLICY_OPS];
            assert_int_equal(en_policy_draw(&a, SIZE, 1, 0, s, call), 3);      /* always applied */
            for (int i = 0; i < 3; i++) {
                seen[i][call[i].op]++;
                if (fabs(fabs(call[i].argument) - want[call[i].op]) > 1e-9)
                    fail_msg("%s at magnitude %g: %.9g", en_op_name(call[i].op), a.magnitude, call[i].argument);
            }
        }
        for (int i = 0; i < 3; i++)
            for (int op = 0; op < EN_OPS; op++) within_deviation(en_op_name((en_op)op), seen[i][op], 1 / 16.0, N);
    }
}

/* ---- functions of (seed, epoch, sample) ------------------------------------------------------------------------------------------ */

static void a_picture_depends_on_seed_epoch_and_sample_alone(void **state)
{
    (void)state;
    enum { S = 48, N = S * S * 3 };
    const en_augment a = { .policy = EN_POLICY_V0, .erase = 1 };
    uint8_t *picture = make_picture(S, S, 1), *first = malloc(N), *again = malloc(N), *spare = malloc(N);
    const uint64_t key[3] = { 7, 2, 1234 };
    memcpy(first, picture, N);
    memset(spare, 0, N);
    en_augment_pixels(&a, S, key[0], key[1], key[2], first, spare);
    for (int other = 0; other < 40; other++) {                         /* pictures in between change nothing */
        uint64_t k[3] = { key[0], key[1], key[2] };
        k[other % 3] += 1 + (uint64_t)other / 3;
        memcpy(again, picture, N);
        en_augment_pixels(&a, S, k[0], k[1], k[2], again, spare);
        assert_memory_not_equal(first, again, N);                       /* noise over 2 % at least */
    }
    memcpy(again, picture, N);
    memset(spare, 255, N);
    en_augment_pixels(&a, S, key[0], key[1], key[2], again, spare);
    assert_memory_equal(first, again, N);
    free(picture);
    free(first);
    free(again);
    free(spare);
}

static void nothing_asked_for_is_nothing_done(void **state)
{
    (void)state;
    const en_augment none = { .rand_ops = 2, .magnitude = 10 };
    assert_false(en_augments_pixels(&none) || en_augments_pairs(&none));
    assert_true(en_augments_pixels(&(en_augment){ .erase = .1 }) && en_augments_pixels(&(en_augment){ .policy = EN_POLICY_RAND }));
    uint8_t *picture = make_picture(20, 20, 1), *copy = make_picture(20, 20, 1), *spare = malloc(1200);
    for (uint64_t s = 0; s < 50; s++) en_augment_pixels(&none, 20, 1, 0, s, copy, spare);
    assert_memory_equal(picture, copy, 1200);
    free(picture);
    free(copy);
    free(spare);
}

static void every_policy_takes_a_single_pixel(void **state)
{
    (void)state;
    for (int policy = EN_POLICY_NONE; policy <= EN_POLICY_RAND; policy++)
        for (int size = 1; size <= 3; size++)
            for (uint64_t s = 0; s < 300; s++) {
                uint8_t *rgb = make_picture(size, size, 1), *spare = malloc((size_t)(size * size) * 3);      /* exact, for the sanitizer */
                const en_augment a = { .policy = policy, .rand_ops = EN_POLICY_OPS, .magnitude = 28, .erase = 1 };
                en_augment_pixels(&a, size, 1, 0, s, rgb, spare);
                free(rgb);
                free(spare);
            }
}

/* ---- erasing --------------------------------------------------------------------------------------------------------------------- */

typedef struct { int x0, y0, x1, y1, changed; } box;

static box changed_in(const uint8_t *rgb, const uint8_t *was, int size)
{
    box b = { size, size, 0, 0, 0 };
    for (int y = 0; y < size; y++)
        for (int x = 0; x < size; x++)
            if (memcmp(rgb + (y * size + x) * 3, was + (y * size + x) * 3, 3) != 0) {
                b.x0 = x < b.x0 ? x : b.x0;
                b.y0 = y < b.y0 ? y : b.y0;
                b.x1 = x + 1 > b.x1 ? x + 1 : b.x1;
                b.y1 = y + 1 > b.y1 ? y + 1 : b.y1;
                b.changed++;
            }
    return b;
}

/* With the mean colour the rectangle is seen exactly.  Its sides were rounded, so its area may leave [.02, 1/3] by half a row and half a
 * column.  Mean area: (.02 + 1/3)/2 = .1767, less at most .0007 for attempts that did not fit (areas above .3, an eleventh, at aspects
 * beyond 1/area, a twentieth of them); deviation of a draw .0905. */
static void erasing_is_a_rectangle_of_the_stated_area(void **state)
{
    (void)state;
    enum { S = 96, RUNS = 3000 };
    const en_augment a = { .erase = .5, .erase_mean = true };
    uint8_t *was = calloc(S * S, 3), *rgb = malloc(S * S * 3), *spare = malloc(S * S * 3);
    int erased = 0, tall = 0;
    double sum = 0, cx = 0, cy = 0, skew = 0;
    for (uint64_t s = 0; s < RUNS; s++) {
        memcpy(rgb, was, S * S * 3);
        en_augment_pixels(&a, S, 11, 0, s, rgb, spare);
        const box b = changed_in(rgb, was, S);
        if (b.changed == 0) continue;
        const int w = b.x1 - b.x0, h = b.y1 - b.y0;
        assert_int_equal(b.changed, w * h);
        const uint8_t *p = rgb + (b.y0 * S + b.x0) * 3;
        assert_true(p[0] == 124 && p[1] == 116 && p[2] == 104);         /* 123.675, 116.28, 103.53 */
        const double slack = (w + h) / 2.0 + 0.25;
        assert_true(w * h >= .02 * S * S - slack && w * h <= S * S / 3.0 + slack);
        assert_true((w + .5) / (h - .5) >= .3 && (h + .5) / (w - .5) >= .3 && w < S && h < S);
        erased++;
        tall += h > w;
        skew += fabs(log((double)h / w));
        sum += (double)(w * h) / (S * S);
        cx += (b.x0 + w / 2.0) / S;
        cy += (b.y0 + h / 2.0) / S;
    }
    within_deviation("erased pictures", erased, .5, RUNS);
    const double mean = sum / erased, bound = 6 * .0905 / sqrt(erased);
    assert_true(mean > .1767 - .0007 - bound && mean < .1767 + bound);
    /* |log aspect| is uniform on 0...-log .3: mean .602, deviation .348; .01 for rounded sides and refused attempts */
    assert_true(fabs(skew / erased + log(.3) / 2) < 6 * .348 / sqrt(erased) + .01);
    within_deviation("tall rectangles", tall, .5, erased - erased / 50);        /* squares are neither: less than 1 in 50 */
    assert_true(fabs(cx / erased - .5) < 6 * .3 / sqrt(erased) && fabs(cy / erased - .5) < 6 * .3 / sqrt(erased));
    free(was);
    free(rgb);
    free(spare);
}

/* Noise is N(mean, std), rounded, clipped to 0...255.  Mean and deviation of that are sums over the levels; the table of 4096 quantiles
 * shifts each level's probability by 1/4096 at most, the mean by less than 255/4096/2 = .03 as errors do not add up along it. */
static void erasing_noise_has_the_pictures_mean_and_deviation(void **state)
{
    (void)state;
    enum { S = 64, RUNS = 300 };
    const en_augment a = { .erase = 1 };
    uint8_t *was = calloc(S * S, 3), *rgb = malloc(S * S * 3), *spare = malloc(S * S * 3);
    double n = 0, sum[3] = { 0 }, square[3] = { 0 }, neighbours = 0, pairs = 0;
    for (uint64_t s = 0; s < RUNS; s++) {
        memcpy(rgb, was, S * S * 3);
        en_augment_pixels(&a, S, 12, 0, s, rgb, spare);
        const box b = changed_in(rgb, was, S);
        for (int y = b.y0; y < b.y1; y++)
            for (int x = b.x0; x < b.x1; x++) {
                const uint8_t *p = rgb + (y * S + x) * 3;
                for (int c = 0; c < 3; c++) {
                    sum[c] += p[c];
                    square[c] += p[c] * p[c];
                }
                neighbours += (p[0] - 124.) * (p[1] - 117.) / 55 / 55;
                pairs++;
                n++;
            }
    }
    for (int c = 0; c < 3; c++) {
        const double mu = (double)en_imagenet_normalise.mean[c], sd = (double)en_imagenet_normalise.std[c];
        double mean = 0, second = 0, below = 0;
        for (int level = 0; level < 256; level++) {
            const double upto = level == 255 ? 1 : .5 * (1 + erf((level + .5 - mu) / sd / sqrt(2)));
            mean += level * (upto - below);
            second += level * level * (upto - below);
            below = upto;
        }
        const double deviation = sqrt(second - mean * mean), got = sum[c] / n, got_deviation = sqrt(square[c] / n - got * got);
        if (!(fabs(got - mean) < 6 * deviation / sqrt(n) + .03 && fabs(got_deviation - deviation) < 6 * deviation / sqrt(2 * n) + .03))
            fail_msg("channel %d: mean %.2f, deviation %.2f, not %.2f, %.2f", c, got, got_deviation, mean, deviation);
    }
    assert_true(fabs(neighbours / pairs) < 6 / sqrt(pairs) + .001);     /* channels are independent */
    free(was);
    free(rgb);
    free(spare);
}

/* They have streams of their own: switching a policy on moves no rectangle. */
static void erasing_does_not_depend_on_the_policy(void **state)
{
    (void)state;
    enum { S = 40 };
    uint8_t *was = calloc(S * S, 3), *alone = malloc(S * S * 3), *both = malloc(S * S * 3), *spare = malloc(S * S * 3);
    for (uint64_t s = 0; s < 100; s++) {
        memcpy(alone, was, S * S * 3);
        memcpy(both, was, S * S * 3);
        en_augment_pixels(&(en_augment){ .erase = 1 }, S, 1, 0, s, alone, spare);
        en_augment_pixels(&(en_augment){ .policy = EN_POLICY_V0, .erase = 1 }, S, 1, 0, s, both, spare);
        const box b = changed_in(alone, was, S);
        for (int y = b.y0; y < b.y1; y++) assert_memory_equal(alone + (y * S + b.x0) * 3, both + (y * S + b.x0) * 3, (size_t)(b.x1 - b.x0) * 3);
    }
    free(was);
    free(alone);
    free(both);
    free(spare);
}

/* ---- information, no claim ------------------------------------------------------------------------------------------------------- */

static void policies_are_timed(void **state)
{
    (void)state;
    static const struct { const char *name; en_augment a; } what[] = {
        { "AutoAugment v0", { .policy = EN_POLICY_V0 } }, { "the paper's", { .policy = EN_POLICY_PAPER } },
        { "RandAugment(2, 10)", { .policy = EN_POLICY_RAND, .rand_ops = 2, .magnitude = 10 } }, { "erasing, noise", { .erase = 1 } } };
    static const int sizes[] = { 224, 600 };
    for (int k = 0; k < 2; k++) {
        const int size = sizes[k], runs = 224 * 1000 / size;
        const size_t n = (size_t)size * (size_t)size * 3;
        uint8_t *picture = make_picture(size, size, 1), *rgb = malloc(n), *spare = malloc(n);
        for (size_t i = 0; i < sizeof what / sizeof *what; i++) {
            double seconds = 0;
            for (int r = 0; r < runs; r++) {
                struct timespec from, to;
                memcpy(rgb, picture, n);
                clock_gettime(CLOCK_THREAD_CPUTIME_ID, &from);
                en_augment_pixels(&what[i].a, size, 1, 0, (uint64_t)r, rgb, spare);
                clock_gettime(CLOCK_THREAD_CPUTIME_ID, &to);
                seconds += (double)(to.tv_sec - from.tv_sec) + 1e-9 * (double)(to.tv_nsec - from.tv_nsec);
            }
            print_message("%-18s %6.1f us a picture of %d x %d\n", what[i].name, seconds / runs * 1e6, size, size);
        }
        free(picture);
        free(rgb);
        free(spare);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(v0_is_the_references_table),
        cmocka_unit_test(paper_is_the_papers_table),
        cmocka_unit_test(rand_augment_has_the_published_arguments),
        cmocka_unit_test(a_picture_depends_on_seed_epoch_and_sample_alone),
        cmocka_unit_test(nothing_asked_for_is_nothing_done),
        cmocka_unit_test(every_policy_takes_a_single_pixel),
        cmocka_unit_test(erasing_is_a_rectangle_of_the_stated_area),
        cmocka_unit_test(erasing_noise_has_the_pictures_mean_and_deviation),
        cmocka_unit_test(erasing_does_not_depend_on_the_policy),
        cmocka_unit_test(policies_are_timed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
