/* test_data_augment.c - the operations on pixels, against golden/augment.h5 (make_augment.py wrote it) and against their formula.
 *
 * The golden file has the reference's pixels, transcribed in numpy, and Pillow's.  The former must come out bit for bit: the formulas
 * are float32 operations in a stated order.  The latter too, but for what the table `pillow_differs` allows and explains.  Of the first
 * picture every pixel is compared, of the others a CRC-32. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <hdf5.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "data/augment.h"
#include "kernels/rng.h"

enum { MAX_PICTURES = 8, MAX_CASES = 256, GUARD = 16 };

static struct {
    int pictures, cases;
    int32_t size[MAX_PICTURES][2], op[MAX_CASES], has_pillow[MAX_CASES];
    double argument[MAX_CASES];
    uint32_t picture_crc[MAX_PICTURES], *crc;  /* crc (cases, pictures) */
    uint8_t *reference, *pillow;               /* (cases, h, w, 3) of the first picture; pillow xor reference */
} golden;

static void *read_array(hid_t file, const char *name, hid_t type, size_t width, size_t *count)
{
    const hid_t d = H5Dopen2(file, name, H5P_DEFAULT), space = H5Dget_space(d);
    if (d < 0) fail_msg("%s is not in the golden file", name);
    *count = (size_t)H5Sget_simple_extent_npoints(space);
    void *x = malloc(*count * width);
    if (H5Dread(d, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, x) < 0) fail_msg("reading %s", name);
    H5Sclose(space);
    H5Dclose(d);
    return x;
}

static void read_into(hid_t file, const char *name, hid_t type, size_t width, void *out, size_t capacity, size_t *count)
{
    void *x = read_array(file, name, type, width, count);
    assert_true(*count <= capacity);
    memcpy(out, x, *count * width);
    free(x);
}

static int open_golden(void **state)
{
    (void)state;
    const hid_t file = H5Fopen(EN_GOLDEN_DIR "/augment.h5", H5F_ACC_RDONLY, H5P_DEFAULT);
    if (file < 0) return -1;
    size_t n, cases;
    read_into(file, "size", H5T_NATIVE_INT32, 4, golden.size, MAX_PICTURES * 2, &n);
    golden.pictures = (int)n / 2;
    read_into(file, "op", H5T_NATIVE_INT32, 4, golden.op, MAX_CASES, &cases);
    golden.cases = (int)cases;
    read_into(file, "argument", H5T_NATIVE_DOUBLE, 8, golden.argument, MAX_CASES, &n);
    assert_int_equal(n, cases);
    read_into(file, "has_pillow", H5T_NATIVE_INT32, 4, golden.has_pillow, MAX_CASES, &n);
    assert_int_equal(n, cases);
    read_into(file, "picture_crc", H5T_NATIVE_UINT32, 4, golden.picture_crc, MAX_PICTURES, &n);
    assert_int_equal(n, golden.pictures);
    golden.crc = read_array(file, "crc", H5T_NATIVE_UINT32, 4, &n);
    assert_int_equal(n, cases * (size_t)golden.pictures);
    const size_t values = cases * (size_t)golden.size[0][0] * (size_t)golden.size[0][1] * 3;
    golden.reference = read_array(file, "reference", H5T_NATIVE_UINT8, 1, &n);
    assert_int_equal(n, values);
    golden.pillow = read_array(file, "pillow", H5T_NATIVE_UINT8, 1, &n);
    assert_int_equal(n, values);
    H5Fclose(file);
    return 0;
}

static int close_golden(void **state)
{
    (void)state;
    free(golden.crc);
    free(golden.reference);
    free(golden.pillow);
    return 0;
}

/* ---- pictures ------------------------------------------------------------------------------------------------------------ */

/* picture() of make_augment.py: (h, w, 3); owned by the caller */
static uint8_t *formula_picture(int w, int h)
{
    uint8_t *rgb = malloc((size_t)w * (size_t)h * 3), *p = rgb;
    for (uint32_t y = 0; y < (uint32_t)h; y++)
        for (uint32_t x = 0; x < (uint32_t)w; x++)
            for (uint32_t c = 0; c < 3; c++) {
                uint32_t n = x * 73856093u ^ y * 19349663u ^ (c + 1) * 83492791u;
                n = (n ^ n >> 13) * 0x5bd1e995u;
                n ^= n >> 15;
                *p++ = (uint8_t)(c == 0 ? (n & 63) + x * 160 / (uint32_t)w + ((x / 8 + y / 8) % 2 == 0 ? 30 : 0)
                                 : c == 1 ? 40 + y * 100 / (uint32_t)h + (n & 31) : n & 255);
            }
    return rgb;
}

static uint32_t crc32_of(const uint8_t *p, size_t n)   /* IEEE 802.3, as zlib has it */
{
    uint32_t crc = ~0u;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int k = 0; k < 8; k++) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    return ~crc;
}

/* The operation on a copy, owned by the caller; nothing behind the picture or the spare memory may change.  Cutout's centre is that
 * of make_augment.py. */
static uint8_t *applied(en_op op, double argument, int w, int h, const uint8_t *rgb)
{
    const size_t n = (size_t)w * (size_t)h * 3;
    uint8_t *out = malloc(n + GUARD), *spare = malloc(n + GUARD);
    memcpy(out, rgb, n);
    memset(out + n, 0xa5, GUARD);
    memset(spare, 0xa5, n + GUARD);
    en_op_apply(op, argument, w / 3, h - 1, w, h, out, spare);
    for (int i = 0; i < GUARD; i++) assert_true(out[n + (size_t)i] == 0xa5 && spare[n + (size_t)i] == 0xa5);
    free(spare);
    return out;
}

/* ---- golden -------------------------------------------------------------------------------------------------------------- */

static void pixels_are_the_references(void **state)
{
    (void)state;
    assert_true(golden.cases >= 90 && golden.pictures >= 6);
    for (int i = 0; i < golden.pictures; i++) {
        const int w = golden.size[i][0], h = golden.size[i][1];
        const size_t n = (size_t)w * (size_t)h * 3;
        uint8_t *rgb = formula_picture(w, h);
        assert_int_equal(crc32_of(rgb, n), golden.picture_crc[i]);      /* the same input as the script had */
        for (int k = 0; k < golden.cases; k++) {
            const en_op op = (en_op)golden.op[k];
            uint8_t *got = applied(op, golden.argument[k], w, h, rgb);
            if (i == 0)
                for (size_t j = 0; j < n; j++)
                    if (got[j] != golden.reference[(size_t)k * n + j])
                        fail_msg("%s %g: value %zu is %d, not %d", en_op_name(op), golden.argument[k], j, got[j],
                                 golden.reference[(size_t)k * n + j]);
            if (crc32_of(got, n) != golden.crc[k * golden.pictures + i])
                fail_msg("%s %g of the %d x %d picture has another CRC", en_op_name(op), golden.argument[k], w, h);
            free(got);
        }
        free(rgb);
    }
}

/* How far the reference is from Pillow on the picture of 33 x 27, and why.  What is not here is equal. */
static const struct { en_op op; double argument; int pixels, levels; } pillow_differs[] = {
    { EN_OP_AUTOCONTRAST, 0, 18, 1 },          /* the table in float32 instead of double: values that were whole numbers    */
    { EN_OP_ROTATE, 30, 5, 255 },              /* coordinates in float32: 5 lie within rounding of a half                    */
    { EN_OP_TRANSLATE_X, -7.5, 27, 255 },      /* halves: away from zero there, up in Pillow; -1/2 is outside of the picture */
    { EN_OP_TRANSLATE_Y, -7.5, 33, 255 },
};

static void pixels_are_pillows_but_for_stated_differences(void **state)
{
    (void)state;
    const int w = golden.size[0][0], h = golden.size[0][1];
    const size_t n = (size_t)w * (size_t)h * 3;
    uint8_t *rgb = formula_picture(w, h);
    int compared = 0;
    for (int k = 0; k < golden.cases; k++) {
        if (!golden.has_pillow[k]) continue;
        const en_op op = (en_op)golden.op[k];
        int pixels = 0, levels = 0, may_pixels = 0, may_levels = 0;
        for (size_t j = 0; j < sizeof pillow_differs / sizeof *pillow_differs; j++)
            if (pillow_differs[j].op == op && fabs(pillow_differs[j].argument - golden.argument[k]) < 1e-9) {
                may_pixels = pillow_differs[j].pixels;
                may_levels = pillow_differs[j].levels;
            }
        uint8_t *got = applied(op, golden.argument[k], w, h, rgb);
        for (size_t j = 0; j < n; j += 3) {
            bool differs = false;
            for (size_t c = 0; c < 3; c++) {
                const int theirs = golden.pillow[(size_t)k * n + j + c] ^ golden.reference[(size_t)k * n + j + c], d = abs(got[j + c] - theirs);
                differs |= d > 0;
                if (d > levels) levels = d;
            }
            pixels += differs;
        }
        if (pixels > may_pixels || levels > may_levels)
            fail_msg("%s %g: %d pixels differ from Pillow's, by up to %d levels", en_op_name(op), golden.argument[k], pixels, levels);
        compared++;
        free(got);
    }
    assert_true(compared >= 90);
    free(rgb);
}

/* ---- formulas ---------------------------------------------------------------------------------------------------------- */

/* The general formula, pixel by pixel, for transforms and sizes that the golden file has not: rows that are copied as a whole and rows
 * that are gathered must agree with it. */
static void geometry_is_the_formula(void **state)
{
    (void)state;
    static const en_op ops[] = { EN_OP_ROTATE, EN_OP_SHEAR_X, EN_OP_SHEAR_Y, EN_OP_TRANSLATE_X, EN_OP_TRANSLATE_Y };
    static const float most[] = { 90, 1, 1, 40, 40 };
    en_rng rng = en_rng_at(1, EN_RNG_TEST, 0, 0, 0);
    for (int n = 0; n < 400; n++) {
        const int w = 1 + (int)en_rng_below(&rng, n % 20 ? 40 : 600), h = 1 + (int)en_rng_below(&rng, 40), k = n % 5;
        float f = (2 * en_rng_uniform(&rng) - 1) * most[k];
        if (n % 3 == 0) f = roundf(f * 8) / 8;                          /* many halves */
        if (n % 7 == 0) f = copysignf(0x1.fffffep-2f, f);               /* the float below one: 1/2 added to it would be 1 */
        float a[6] = { 1, 0, 0, 0, 1, 0 };
        if (k == 0) {
            const float angle = f * (float)(3.14159265358979323846 / 180), r = (float)(w - 1), b = (float)(h - 1);
            const float c = (float)cos((double)angle), s = (float)sin((double)angle);
            const float rotation[6] = { c, -s, (r - (c * r - s * b)) / 2, s, c, (b - (s * r + c * b)) / 2 };
            memcpy(a, rotation, sizeof a);
        } else a[(const int[]){ 0, 1, 3, 2, 5 }[k]] = f;

        uint8_t *rgb = formula_picture(w, h), *got = applied(ops[k], (double)f, w, h, rgb);
        for (int y = 0; y < h; y++)
            for (int x = 0; x < w; x++) {
                const float u = a[0] * (float)x + a[1] * (float)y, v = a[3] * (float)x + a[4] * (float)y;
                const float xs = roundf(u + a[2]), ys = roundf(v + a[5]);
                const bool inside = xs >= 0 && xs < (float)w && ys >= 0 && ys < (float)h;
                for (int c = 0; c < 3; c++) {
                    const int want = inside ? rgb[((int)ys * w + (int)xs) * 3 + c] : 128;
                    if (got[(y * w + x) * 3 + c] != want)
                        fail_msg("%s %.9g of %d x %d at (%d, %d): %d, not %d", en_op_name(ops[k]), (double)f, w, h, x, y,
                                 got[(y * w + x) * 3 + c], want);
                }
            }
        free(rgb);
        free(got);
    }
}

static void assert_same(en_op op, double argument, double as, int w, int h)
{
    uint8_t *rgb = formula_picture(w, h), *a = applied(op, argument, w, h, rgb);
    uint8_t *b = isnan(as) ? NULL : applied(op, as, w, h, rgb);
    if (memcmp(a, b ? b : rgb, (size_t)w * (size_t)h * 3) != 0)
        fail_msg("%s %g of %d x %d is not that of %g", en_op_name(op), argument, w, h, as);
    free(rgb);
    free(a);
    free(b);
}

static void neutral_arguments_change_nothing(void **state)
{
    (void)state;
    static const struct { en_op op; double argument; } neutral[] = {
        { EN_OP_ROTATE, 0 }, { EN_OP_SHEAR_X, 0 }, { EN_OP_SHEAR_Y, -0.0 }, { EN_OP_TRANSLATE_X, 0 }, { EN_OP_TRANSLATE_Y, -0.0 },
        { EN_OP_POSTERIZE, 8 }, { EN_OP_SOLARIZE, 256 }, { EN_OP_COLOR, 1 }, { EN_OP_CONTRAST, 1 }, { EN_OP_BRIGHTNESS, 1 },
        { EN_OP_SHARPNESS, 1 }, { EN_OP_CUTOUT, 0 },
        { EN_OP_SOLARIZE_ADD, 0 } };
    static const int sizes[][2] = { { 1, 1 }, { 2, 3 }, { 40, 31 } };
    for (size_t i = 0; i < sizeof neutral / sizeof *neutral; i++)
        for (size_t s = 0; s < 3; s++) assert_same(neutral[i].op, neutral[i].argument, NAN, sizes[s][0], sizes[s][1]);
}

static void arguments_beyond_their_range_are_clamped(void **state)
{
    (void)state;
    assert_same(EN_OP_POSTERIZE, 11, 8, 40, 31);
    assert_same(EN_OP_POSTERIZE, -1, 0, 40, 31);
    assert_same(EN_OP_SOLARIZE, 716, 256, 40, 31);
    assert_same(EN_OP_SOLARIZE, -5, 0, 40, 31);
    assert_same(EN_OP_SOLARIZE_ADD, 1e6, 255, 40, 31);
    assert_same(EN_OP_TRANSLATE_X, 1e9, 40, 40, 31);
    assert_same(EN_OP_TRANSLATE_Y, -1e9, 31, 40, 31);
}

/* by hand, from the formulas */
static void oddities_of_the_reference_are_kept(void **state)
{
    (void)state;
    uint8_t *flat = malloc(224 * 224 * 3);
    memset(flat, 100, 224 * 224 * 3);
    static const struct { en_op op; double argument; int want; } cases[] = {
        { EN_OP_CONTRAST, 0, 196 },            /* 224*224/256, not the mean 100  */
        { EN_OP_CONTRAST, .5, 148 },
        { EN_OP_POSTERIZE, 0, 0 },             /* 100 < 128: the top bit is 0     */
        { EN_OP_TRANSLATE_Y, 225, 128 },       /* all of it outside               */
        { EN_OP_EQUALIZE, 0, 100 },            /* one level: step 0, no change    */
        { EN_OP_AUTOCONTRAST, 0, 100 },
        { EN_OP_SOLARIZE_ADD, 77, 177 },
        { EN_OP_BRIGHTNESS, 1.18, 117 },       /* 118 - rounding: 1.18f is less than 1.18 */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t *got = applied(cases[i].op, cases[i].argument, 224, 224, flat);
        for (int j = 0; j < 224 * 224 * 3; j += 1001)
            if (got[j] != cases[i].want)
                fail_msg("%s %g: 100 became %d, not %d", en_op_name(cases[i].op), cases[i].argument, got[j], cases[i].want);
        free(got);
    }
    free(flat);

    /* three of the 47 colours whose grey depends on the order of its sum: red + green first */
    static const uint8_t colours[3][4] = { { 5, 49, 41, 34 }, { 103, 143, 158, 133 }, { 168, 199, 207, 191 } };
    for (int i = 0; i < 3; i++) {
        uint8_t *grey = applied(EN_OP_COLOR, 0, 1, 1, colours[i]);
        assert_true(grey[0] == colours[i][3] && grey[1] == grey[0] && grey[2] == grey[0]);
        free(grey);
    }
    assert_string_equal(en_op_name(EN_OP_SOLARIZE_ADD), "SolarizeAdd");
    assert_string_equal(en_op_name(EN_OP_AUTOCONTRAST), "AutoContrast");
}

/* Information, no claim: time of each operation. */
static void operations_are_timed(void **state)
{
    (void)state;
    static const double argument[EN_OPS] = { 0, 0, 0, 24, 4, 102, 1.72, 1.72, 1.72, 1.72, .27, .27, 50, 50, 40, 33 };
    enum { S = 224, RUNS = 20 };
    uint8_t *rgb = formula_picture(S, S), *work = malloc(S * S * 3), *spare = malloc(S * S * 3);
    for (int op = 0; op < EN_OPS; op++) {
        double best = 1;
        for (int i = 0; i < RUNS; i++) {
            struct timespec from, to;
            memcpy(work, rgb, S * S * 3);
            clock_gettime(CLOCK_MONOTONIC, &from);
            en_op_apply((en_op)op, argument[op], S / 2, S / 2, S, S, work, spare);
            clock_gettime(CLOCK_MONOTONIC, &to);
            best = fmin(best, (double)(to.tv_sec - from.tv_sec) + 1e-9 * (double)(to.tv_nsec - from.tv_nsec));
        }
        print_message("%-12s %6.1f us at %d x %d\n", en_op_name((en_op)op), best * 1e6, S, S);
    }
    free(rgb);
    free(work);
    free(spare);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pixels_are_the_references),
        cmocka_unit_test(pixels_are_pillows_but_for_stated_differences),
        cmocka_unit_test(geometry_is_the_formula),
        cmocka_unit_test(neutral_arguments_change_nothing),
        cmocka_unit_test(arguments_beyond_their_range_are_clamped),
        cmocka_unit_test(oddities_of_the_reference_are_kept),
        cmocka_unit_test(operations_are_timed),
    };
    return cmocka_run_group_tests(tests, open_golden, close_golden);
}
