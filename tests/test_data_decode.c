/* Decoding: what must decode does, to the right pixels; what must not is refused by name, in bounded memory and without a
 * crash.  Oracles: the picture that was encoded, and for the hostile set the table that comes with it (EXPECTED.tsv). */
#include "data_help.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <png.h>

#if defined __SANITIZE_ADDRESS__
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

static const char *test_data(void)
{
    const char *named = getenv("EN_SHARED_DATA");
    return named ? named : EN_TEST_DATA;
}

static en_status decode(const char *name, const bytes *b, en_image *img)
{
    en_error_clear();
    return en_image_decode(name, b->at, b->n, 0, img);
}

static void refused(const char *name, const bytes *b, const char *because)
{
    en_image img;
    if (decode(name, b, &img) == EN_OK) fail_msg("%s was decoded", name);
    assert_null(img.rgb);
    if (!strstr(en_error_message(), name) || (because && !strstr(en_error_message(), because)))
        fail_msg("%s: \"%s\" does not say \"%s\"", name, en_error_message(), because ? because : name);
}

static void means(const en_image *img, double mean[3])
{
    mean[0] = mean[1] = mean[2] = 0;
    for (int64_t i = 0; i < img->w * img->h * 3; i++) mean[i % 3] += img->rgb[i];
    for (int d = 0; d < 3; d++) mean[d] /= (double)(img->w * img->h);
}

/* Tolerances of the table's README: 1.5 for JPEG (IDCT and upsampling are not specified bit by bit), 2 for CMYK, 0.1 for PNG
 * (the table is rounded to 0.1). */
static void hostile_set_has_the_expected_outcomes(void **state)
{
    (void)state;
    char path[4096], line[1024];
    snprintf(path, sizeof path, "%s/hostile/EXPECTED.tsv", test_data());
    FILE *table = fopen(path, "r");
    if (!table) {
        print_message("skipped: no %s\n", path);
        skip();
    }
    int files = 0;
    assert_non_null(fgets(line, sizeof line, table));
    while (fgets(line, sizeof line, table)) {
        char *field[8] = { 0 }, *rest = line;
        for (int i = 0; i < 8; i++) field[i] = strsep(&rest, "\t");
        snprintf(path, sizeof path, "%s/hostile/%s", test_data(), field[0]);
        bytes b = slurp(path);
        files++;
        if (strcmp(field[1], "decode") != 0) {
            refused(path, &b, NULL);
            if (getenv("EN_SHOW_MESSAGES")) print_message("%s\n", en_error_message() + strlen(test_data()) + 1);
        } else {
            en_image img;
            if (decode(path, &b, &img) != EN_OK) fail_msg("%s", en_error_message());
            double want[3], mean[3];
            sscanf(field[6], "%lf %lf %lf", &want[0], &want[1], &want[2]);
            means(&img, mean);
            const double tolerance = strcmp(field[2], "PNG") == 0 ? 0.1 : atoi(field[5]) == 4 ? 2 : 1.5;
            if (img.w != atoi(field[3]) || img.h != atoi(field[4]) || img.channels != atoi(field[5]))
                fail_msg("%s: %d x %d x %d", path, (int)img.w, (int)img.h, img.channels);
            for (int d = 0; d < 3; d++)
                if (fabs(mean[d] - want[d]) > tolerance + 1e-9)
                    fail_msg("%s: mean[%d] is %.2f, not %.1f", path, d, mean[d], want[d]);
            en_image_free(&img);
        }
        bytes_free(&b);
    }
    fclose(table);
    assert_true(files > 50);
}

/* ---- pictures made here ---- */

/* JPEG at quality 95 of a smooth picture: quantisation steps of about 1 to 10 levels on coefficients of an orthonormal
 * transform, so a few levels of RMS error at most; a wrong colour space or an inverted one is off by tens. */
static void assert_close(const char *name, const en_image *img, const uint8_t *rgb, int w, int h, bool gray)
{
    if (img->w != w || img->h != h) fail_msg("%s: %d x %d", name, (int)img->w, (int)img->h);
    double sum = 0;
    for (int64_t i = 0; i < (int64_t)w * h * 3; i++) {
        const double want = gray ? rgb[i - i % 3] : rgb[i];    /* the gray encoder takes the first of each three */
        sum += (img->rgb[i] - want) * (img->rgb[i] - want);
    }
    const double rms = sqrt(sum / ((double)w * h * 3));
    if (rms > 6) fail_msg("%s: %.1f levels RMS from the picture that was encoded", name, rms);
}

static void every_kind_of_jpeg_decodes_to_its_picture(void **state)
{
    (void)state;
    static const struct { const char *name; jpeg_kind kind; } cases[] = {
        { "baseline 4:2:0", { .components = 3 } },
        { "4:4:4", { .components = 3, .luma_h = 1, .luma_v = 1 } },
        { "4:2:2", { .components = 3, .luma_h = 2, .luma_v = 1 } },
        { "4:4:0", { .components = 3, .luma_h = 1, .luma_v = 2 } },
        { "4:1:1", { .components = 3, .luma_h = 4, .luma_v = 1 } },
        { "progressive", { .components = 3, .progressive = true } },
        { "arithmetic", { .components = 3, .arithmetic = true } },
        { "stored as RGB", { .components = 3, .rgb = true } },
        { "restart markers", { .components = 3, .restart = 1 } },
        { "gray", { .components = 1 } },
        { "CMYK, Adobe", { .components = 4, .adobe_inverted = true } },
        { "CMYK, plain", { .components = 4 } },
        { "CMYK, progressive", { .components = 4, .adobe_inverted = true, .progressive = true } },
    };
    enum { W = 123, H = 77 };
    uint8_t *rgb = make_picture(W, H, 3);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t gray[W * H * 3];
        const bool is_gray = cases[i].kind.components == 1;
        for (int k = 0; k < W * H * 3; k++) gray[k] = rgb[k - k % 3];
        bytes b = make_jpeg(is_gray ? gray : rgb, W, H, &cases[i].kind);
        en_image img;
        if (decode(cases[i].name, &b, &img) != EN_OK) fail_msg("%s", en_error_message());
        assert_int_equal(img.channels, cases[i].kind.components);
        assert_close(cases[i].name, &img, rgb, W, H, is_gray);
        en_image_free(&img);
        bytes_free(&b);
    }
    free(rgb);
}

static void png_samples_are_exact(void **state)
{
    (void)state;
    enum { W = 5, H = 4 };
    uint8_t rows[H * W * 8];
    for (size_t i = 0; i < sizeof rows; i++) rows[i] = (uint8_t)(i * 37 + 11);
    static const struct { const char *name; int type, depth, channels, bytes; } cases[] = {
        { "rgb8", PNG_COLOR_TYPE_RGB, 8, 3, 3 },       { "rgb16", PNG_COLOR_TYPE_RGB, 16, 3, 6 },
        { "rgba8", PNG_COLOR_TYPE_RGB_ALPHA, 8, 4, 4 }, { "rgba16", PNG_COLOR_TYPE_RGB_ALPHA, 16, 4, 8 },
        { "gray8", PNG_COLOR_TYPE_GRAY, 8, 1, 1 },     { "gray16", PNG_COLOR_TYPE_GRAY, 16, 1, 2 },
        { "gray alpha", PNG_COLOR_TYPE_GRAY_ALPHA, 8, 2, 2 }, { "gray alpha 16", PNG_COLOR_TYPE_GRAY_ALPHA, 16, 2, 4 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int interlace = 0; interlace < 2; interlace++) {
            const int step = cases[i].depth / 8, gray = cases[i].channels < 3;
            bytes b = make_png(rows, (size_t)(W * cases[i].bytes), W, H, cases[i].type, cases[i].depth, interlace);
            en_image img;
            if (decode(cases[i].name, &b, &img) != EN_OK) fail_msg("%s", en_error_message());
            assert_int_equal(img.channels, cases[i].channels);
            for (int p = 0; p < W * H; p++)
                for (int d = 0; d < 3; d++)    /* the high byte of a 16-bit sample comes first */
                    if (img.rgb[3 * p + d] != rows[p * cases[i].bytes + (gray ? 0 : d * step)])
                        fail_msg("%s%s, pixel %d, channel %d", cases[i].name, interlace ? ", interlaced" : "", p, d);
            en_image_free(&img);
            bytes_free(&b);
        }

    const uint8_t bits[2] = { 0xA0, 0x40 };    /* rows 1010 0, 0100 0 */
    bytes b = make_png(bits, 1, 5, 2, PNG_COLOR_TYPE_GRAY, 1, 0);
    en_image img;
    OK(decode("1 bit", &b, &img));
    const uint8_t want[10] = { 255, 0, 255, 0, 0, 0, 255, 0, 0, 0 };
    for (int p = 0; p < 10; p++) assert_int_equal(img.rgb[3 * p], want[p]);
    en_image_free(&img);
    bytes_free(&b);

    const uint8_t index[4] = { 0, 1, 2, 3 };   /* entry 1 is transparent: its colour counts, not what shows through */
    b = make_png(index, 4, 4, 1, PNG_COLOR_TYPE_PALETTE, 8, 0);
    OK(decode("palette", &b, &img));
    const uint8_t colours[12] = { 10, 20, 30, 200, 100, 50, 0, 255, 0, 255, 255, 255 };
    assert_memory_equal(img.rgb, colours, 12);
    assert_int_equal(img.channels, 1);
    en_image_free(&img);
    bytes_free(&b);
}

static void padding_and_trailing_bytes_do_no_harm(void **state)
{
    (void)state;
    uint8_t *rgb = make_picture(64, 48, 1);
    bytes clean = make_jpeg(rgb, 64, 48, &(jpeg_kind){ .components = 3 }), padded = bytes_copy(&clean);
    bytes_insert(&padded, padded.n, "trailing garbage \xff\xd8 and more", 28);
    bytes_insert(&padded, 20, "\0\0\0\0\0", 5);        /* after SOI and the 18 bytes of JFIF's segment */
    bytes_insert(&padded, padded.n - 28 - 2, "\0\0\0\0\0\0\0\0\0\0", 10);      /* between the scan and EOI */
    en_image a, b;
    OK(decode("clean", &clean, &a));
    OK(decode("padded", &padded, &b));
    assert_memory_equal(a.rgb, b.rgb, 64 * 48 * 3);
    en_image_free(&a);
    en_image_free(&b);
    bytes_free(&clean);
    bytes_free(&padded);
    free(rgb);
}

/* Cut anywhere, also by one byte: EOI and IEND belong to a whole file. */
static void a_truncated_file_is_refused_at_every_length(void **state)
{
    (void)state;
    uint8_t *rgb = make_picture(200, 150, 2);
    bytes files[] = {
        make_jpeg(rgb, 200, 150, &(jpeg_kind){ .components = 3 }),
        make_jpeg(rgb, 200, 150, &(jpeg_kind){ .components = 3, .progressive = true }),
        make_jpeg(rgb, 200, 150, &(jpeg_kind){ .components = 4, .adobe_inverted = true }),
        make_png(rgb, 600, 200, 150, PNG_COLOR_TYPE_RGB, 8, 0),
        make_png(rgb, 600, 200, 150, PNG_COLOR_TYPE_RGB, 8, 1),
    };
    for (size_t f = 0; f < sizeof files / sizeof *files; f++) {
        for (double share = 0; share < 1; share += 0.07) {
            bytes cut = { files[f].at, (size_t)(share * (double)files[f].n) }, exact = bytes_copy(&cut);
            refused("cut.jpg", &exact, NULL);
            bytes_free(&exact);
        }
        for (size_t less = 1; less <= 12; less++) {
            bytes cut = { files[f].at, files[f].n - less }, exact = bytes_copy(&cut);
            refused("cut.jpg", &exact, NULL);
            bytes_free(&exact);
        }
        bytes_free(&files[f]);
    }
    free(rgb);
}

/* Nothing to compare with: the claim is no crash, no hang, no overrun (the address sanitizer's build is the real test),
 * and a status that is either success or bad data. */
static void mutated_files_never_crash(void **state)
{
    (void)state;
    uint8_t *rgb = make_picture(90, 70, 4), index[80 * 70];
    for (size_t i = 0; i < sizeof index; i++) index[i] = rgb[i] & 3;
    bytes files[] = {
        make_jpeg(rgb, 90, 70, &(jpeg_kind){ .components = 3, .quality = 60 }),
        make_jpeg(rgb, 90, 70, &(jpeg_kind){ .components = 3, .progressive = true }),
        make_jpeg(rgb, 90, 70, &(jpeg_kind){ .components = 4 }),
        make_jpeg(rgb, 90, 70, &(jpeg_kind){ .components = 3, .arithmetic = true }),
        make_png(rgb, 270, 90, 70, PNG_COLOR_TYPE_RGB, 8, 0), make_png(index, 80, 80, 70, PNG_COLOR_TYPE_PALETTE, 8, 1),
    };
    int decoded = 0, rejected = 0;
    for (size_t f = 0; f < sizeof files / sizeof *files; f++)
        for (unsigned k = 0; k < 200; k++) {
            en_rng rng = en_rng_at(11, EN_RNG_TEST, f, k, 0);
            bytes b = bytes_copy(&files[f]);
            const unsigned edits = 1 + en_rng_below(&rng, 6);
            for (unsigned e = 0; e < edits; e++) {             /* half of the edits in the headers, where they hurt */
                const uint32_t reach = en_rng_u32(&rng) & 1 && b.n > 700 ? 700 : (uint32_t)b.n;
                const uint32_t at = en_rng_below(&rng, reach);
                if (en_rng_u32(&rng) & 1) b.at[at] ^= (uint8_t)(1u << en_rng_below(&rng, 8));
                else b.at[at] = (uint8_t)en_rng_u32(&rng);
            }
            en_image img;
            en_error_clear();
            const en_status status = en_image_decode("mutated", b.at, b.n, 1 << 22, &img);
            if (status != EN_OK && status != EN_EDATA) fail_msg("file %zu, mutation %u: %s", f, k, en_error_message());
            if (status == EN_OK) decoded++;
            else rejected++;
            en_image_free(&img);
            bytes_free(&b);
        }
    for (size_t f = 0; f < sizeof files / sizeof *files; f++) bytes_free(&files[f]);
    free(rgb);
    assert_true(decoded > 50 && rejected > 300);               /* or the mutations say nothing */
}

static void max_pixels_is_the_last_size_allowed(void **state)
{
    (void)state;
    uint8_t *rgb = make_picture(30, 20, 5);
    bytes files[] = { make_jpeg(rgb, 30, 20, &(jpeg_kind){ .components = 3 }),
                      make_png(rgb, 90, 30, 20, PNG_COLOR_TYPE_RGB, 8, 0) };
    for (int f = 0; f < 2; f++) {
        en_image img;
        OK(en_image_decode("x", files[f].at, files[f].n, 600, &img));
        en_image_free(&img);
        assert_int_equal(en_image_decode("x", files[f].at, files[f].n, 599, &img), EN_EDATA);
        assert_non_null(strstr(en_error_message(), "30 x 20"));
        bytes_free(&files[f]);
    }
    free(rgb);
}

static void put_be16(uint8_t *p, unsigned v) { p[0] = (uint8_t)(v >> 8); p[1] = (uint8_t)v; }

/* Sets the size in the frame header of a JPEG. */
static void claim(bytes *b, unsigned w, unsigned h)
{
    for (size_t i = 2; i + 9 < b->n; i += 2 + (size_t)(b->at[i + 2] << 8 | b->at[i + 3])) {
        if (b->at[i] != 0xff) break;
        if (b->at[i + 1] >= 0xc0 && b->at[i + 1] <= 0xc2) {
            put_be16(b->at + i + 5, h);
            put_be16(b->at + i + 7, w);
            return;
        }
    }
    fail_msg("no frame header");
}

/* Sets the size in the header of a PNG, with the CRC that goes with it (ISO 3309, bit by bit). */
static void claim_png(bytes *b, unsigned w, unsigned h)
{
    put_be16(b->at + 16, w >> 16), put_be16(b->at + 18, w & 0xffff);
    put_be16(b->at + 20, h >> 16), put_be16(b->at + 22, h & 0xffff);
    uint32_t crc = 0xffffffff;
    for (int i = 12; i < 29; i++) {
        crc ^= b->at[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    put_be16(b->at + 29, ~crc >> 16), put_be16(b->at + 31, ~crc & 0xffff);
}

static void a_small_file_cannot_take_much_memory(void **state)
{
    (void)state;
    uint8_t *rgb = make_picture(64, 64, 6);
    bytes bombs[5] = { make_jpeg(rgb, 64, 64, &(jpeg_kind){ .components = 3 }),
                       make_jpeg(rgb, 64, 64, &(jpeg_kind){ .components = 3, .progressive = true }),
                       make_jpeg(rgb, 64, 64, &(jpeg_kind){ .components = 3, .progressive = true }), { 0 }, { 0 } };
    claim(&bombs[0], 65500, 65500);
    claim(&bombs[1], 65500, 65500);
    claim(&bombs[2], 13000, 13000);            /* under the limit of pixels; 500 MB of coefficients in a file of 3 kB */
    uint8_t *zeros = calloc(3000, 1);
    bombs[3] = make_png(zeros, 1, 1, 3000, PNG_COLOR_TYPE_GRAY, 8, 1);
    claim_png(&bombs[3], 13000, 13000);        /* 500 MB of RGB */
    char path[4096];
    snprintf(path, sizeof path, "%s/hostile/broken/bomb_30000x30000_1bit.png", test_data());
    if (access(path, R_OK) == 0) bombs[4] = slurp(path);

    const pid_t child = fork();
    if (child == 0) {
        if (!SANITIZED) setrlimit(RLIMIT_AS, &(struct rlimit){ 512l << 20, 512l << 20 });
        struct rusage before, after;
        getrusage(RUSAGE_SELF, &before);
        int wrong = 0;
        for (int i = 0; i < 5; i++) {
            if (!bombs[i].at) continue;
            en_image img;
            if (decode("bomb", &bombs[i], &img) != EN_EDATA || !strstr(en_error_message(), "claims")) wrong |= 1 << i;
        }
        getrusage(RUSAGE_SELF, &after);
        if (after.ru_maxrss - before.ru_maxrss > 64 << 10) wrong |= 64;        /* kB: 64 MB */
        _exit(wrong);
    }
    int status;
    waitpid(child, &status, 0);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    for (int i = 0; i < 5; i++) bytes_free(&bombs[i]);
    free(zeros);
    free(rgb);
}

static void a_file_of_very_many_scans_is_refused(void **state)
{
    (void)state;
    uint8_t *rgb = make_picture(64, 64, 6);
    bytes b = make_jpeg(rgb, 64, 64, &(jpeg_kind){ .components = 3, .many_scans = true });
    refused("scans.jpg", &b, "scans");
    bytes_free(&b);
    free(rgb);
}

static void what_is_no_image_is_described(void **state)
{
    (void)state;
    static const struct { const char *content; size_t n; const char *says; } cases[] = {
        { "", 0, "empty" },                              { "\0\0\0\0\0\0\0\0", 8, "8 zero bytes" },
        { "GIF89a...", 9, "GIF" },                       { "RIFF\1\2\3\4WEBPVP8 ", 16, "WebP" },
        { "<!DOCTYPE html><title>404", 25, "HTML" },     { "hello, world\n", 13, "text" },
        { "\x89PNG\r\n\x1a\n", 8, "truncated" },         { "\xff\xd8", 2, "truncated" },
        { "\1\2\3\4", 4, "01 02 03 04" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const bytes whole = { (uint8_t *)(uintptr_t)cases[i].content, cases[i].n };
        bytes exact = bytes_copy(&whole);
        refused("some/file.jpg", &exact, cases[i].says);
        bytes_free(&exact);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hostile_set_has_the_expected_outcomes),
        cmocka_unit_test(every_kind_of_jpeg_decodes_to_its_picture),
        cmocka_unit_test(png_samples_are_exact),
        cmocka_unit_test(padding_and_trailing_bytes_do_no_harm),
        cmocka_unit_test(a_truncated_file_is_refused_at_every_length),
        cmocka_unit_test(mutated_files_never_crash),
        cmocka_unit_test(max_pixels_is_the_last_size_allowed),
        cmocka_unit_test(a_small_file_cannot_take_much_memory),
        cmocka_unit_test(a_file_of_very_many_scans_is_refused),
        cmocka_unit_test(what_is_no_image_is_described),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
