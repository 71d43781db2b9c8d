/* Decoding a part.  The oracle is the whole: every pixel of a part has to be that of en_image_decode, whatever the file, the part
 * and the files that the same decoder has met before; and what is refused whole has to be refused by its parts, but for
 * damage that a whole decoding notices below them. */
#define _GNU_SOURCE
#include "data_help.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <png.h>

static const char *test_data(void)
{
    const char *named = getenv("EN_SHARED_DATA");
    return named ? named : EN_TEST_DATA;
}

/* ---- files ---- */

typedef struct {
    const char *name;
    J_COLOR_SPACE stored;
    int  h[4], v[4];                           /* sampling factors; 0: 1 */
    bool progressive, arithmetic, scans;       /* scans: one for each component, none of them progressive */
    int  restart_rows, restart_mcus;
} jpeg_case;

static const jpeg_case kinds[] = {
    { .name = "4:4:4", .stored = JCS_YCbCr },
    { .name = "4:2:2", .stored = JCS_YCbCr, .h = { 2, 1, 1 } },
    { .name = "4:2:0", .stored = JCS_YCbCr, .h = { 2, 1, 1 }, .v = { 2, 1, 1 } },
    { .name = "4:4:0", .stored = JCS_YCbCr, .v = { 2, 1, 1 } },
    { .name = "4:1:1", .stored = JCS_YCbCr, .h = { 4, 1, 1 } },
    { .name = "4:1:0", .stored = JCS_YCbCr, .h = { 4, 1, 1 }, .v = { 2, 1, 1 } },
    { .name = "2x4", .stored = JCS_YCbCr, .h = { 2, 1, 1 }, .v = { 4, 1, 1 } },
    { .name = "1x4", .stored = JCS_YCbCr, .v = { 4, 1, 1 } },
    { .name = "3x1", .stored = JCS_YCbCr, .h = { 3, 1, 1 } },
    { .name = "uneven", .stored = JCS_YCbCr, .h = { 2, 1, 2 }, .v = { 2, 2, 1 } },
    { .name = "more chroma than luma", .stored = JCS_YCbCr, .h = { 1, 2, 2 } },
    { .name = "RGB", .stored = JCS_RGB },
    { .name = "gray", .stored = JCS_GRAYSCALE },
    { .name = "gray, 2x2", .stored = JCS_GRAYSCALE, .h = { 2 }, .v = { 2 } },
    { .name = "CMYK", .stored = JCS_CMYK },
    { .name = "YCCK", .stored = JCS_YCCK },
    { .name = "YCCK 4:2:0", .stored = JCS_YCCK, .h = { 2, 1, 1, 2 }, .v = { 2, 1, 1, 2 } },
    { .name = "4:2:0, progressive", .stored = JCS_YCbCr, .h = { 2, 1, 1 }, .v = { 2, 1, 1 }, .progressive = true },
    { .name = "4:4:4, progressive", .stored = JCS_YCbCr, .progressive = true },
    { .name = "4:2:0, arithmetic", .stored = JCS_YCbCr, .h = { 2, 1, 1 }, .v = { 2, 1, 1 }, .arithmetic = true },
    { .name = "4:2:0, three scans", .stored = JCS_YCbCr, .h = { 2, 1, 1 }, .v = { 2, 1, 1 }, .scans = true },
    { .name = "4:2:0, restart every row", .stored = JCS_YCbCr, .h = { 2, 1, 1 }, .v = { 2, 1, 1 }, .restart_rows = 1 },
    { .name = "4:4:4, restart every 3 MCUs", .stored = JCS_YCbCr, .restart_mcus = 3 },
    { .name = "4:2:2, restart every MCU", .stored = JCS_YCbCr, .h = { 2, 1, 1 }, .restart_mcus = 1 },
};
enum { N_KINDS = sizeof kinds / sizeof *kinds };
static const int sizes[][2] = { { 1, 1 }, { 2, 3 }, { 7, 40 }, { 16, 16 }, { 33, 17 }, { 64, 48 }, { 123, 77 }, { 200, 150 }, { 150, 201 } };
enum { N_SIZES = sizeof sizes / sizeof *sizes };

/* Noise of hard colours over blocks and gradients: no sample equals its neighbours. */
static bytes encode(const jpeg_case *kind, int w, int h, unsigned seed)
{
    struct jpeg_compress_struct c;
    struct jpeg_error_mgr errors;
    unsigned char *at = NULL;
    unsigned long n = 0;
    c.err = jpeg_std_error(&errors);           /* exits on an error: a test may */
    jpeg_create_compress(&c);
    jpeg_mem_dest(&c, &at, &n);
    c.image_width = (JDIMENSION)w;
    c.image_height = (JDIMENSION)h;
    const bool inks = kind->stored == JCS_CMYK || kind->stored == JCS_YCCK, gray = kind->stored == JCS_GRAYSCALE;
    c.input_components = inks ? 4 : gray ? 1 : 3;
    c.in_color_space = inks ? JCS_CMYK : gray ? JCS_GRAYSCALE : JCS_RGB;
    jpeg_set_defaults(&c);
    jpeg_set_colorspace(&c, kind->stored);
    jpeg_set_quality(&c, 85, TRUE);
    for (int i = 0; i < c.num_components; i++) {
        c.comp_info[i].h_samp_factor = kind->h[i] ? kind->h[i] : 1;
        c.comp_info[i].v_samp_factor = kind->v[i] ? kind->v[i] : 1;
    }
    if (kind->progressive) jpeg_simple_progression(&c);
    const jpeg_scan_info script[3] = { { 1, { 0 }, 0, 63, 0, 0 }, { 1, { 1 }, 0, 63, 0, 0 }, { 1, { 2 }, 0, 63, 0, 0 } };
    if (kind->scans) { c.scan_info = script; c.num_scans = 3; }
    c.arith_code = kind->arithmetic;
    c.restart_in_rows = kind->restart_rows;
    c.restart_interval = (unsigned)kind->restart_mcus;
    jpeg_start_compress(&c, TRUE);
    uint8_t *row = malloc((size_t)w * 4);
    en_rng rng = en_rng_at(seed, EN_RNG_TEST, 0, 0, 0);
    for (int y = 0; y < h; y++) {
        for (int i = 0; i < w * c.input_components; i++) {
            const int x = i / c.input_components, d = i % c.input_components;
            row[i] = (uint8_t)((x / 9 + y / 7 + d) % 3 * 90 + (int)en_rng_below(&rng, 76));
        }
        JSAMPROW rows = row;
        jpeg_write_scanlines(&c, &rows, 1);
    }
    free(row);
    jpeg_finish_compress(&c);
    jpeg_destroy_compress(&c);
    return (bytes){ at, n };
}

/* ---- parts ---- */

static en_crop choose(const void *context, int64_t w, int64_t h, int channels)
{
    (void)w, (void)h, (void)channels;
    return *(const en_crop *)context;
}

/* Sides and places at random, a third of them touching a border. */
static en_crop random_crop(en_rng *rng, int64_t w, int64_t h)
{
    en_crop c = { .w = 1 + en_rng_below(rng, (uint32_t)w), .h = 1 + en_rng_below(rng, (uint32_t)h) };
    if (en_rng_below(rng, 4) == 0) c.w = 1;
    if (en_rng_below(rng, 4) == 0) c.h = 1;
    c.x = en_rng_below(rng, (uint32_t)(w - c.w + 1));
    c.y = en_rng_below(rng, (uint32_t)(h - c.h + 1));
    const uint32_t border = en_rng_below(rng, 12);
    if (border == 0) c.x = 0;
    if (border == 1) c.x = w - c.w;
    if (border == 2) c.y = 0;
    if (border == 3) c.y = h - c.h;
    c.flip = en_rng_below(rng, 2);
    return c;
}

static void same_pixels(const char *name, const en_image *whole, const en_crop *wanted, const en_image *part, const en_crop *got)
{
    if (got->w != wanted->w || got->h != wanted->h || got->flip != wanted->flip || got->x < 0 || got->y < 0 || got->x + got->w > part->w
        || got->y + got->h > part->h || part->channels != whole->channels)
        fail_msg("%s: %d x %d at (%d, %d) came as %d x %d at (%d, %d) of %d x %d", name, (int)wanted->w, (int)wanted->h, (int)wanted->x,
                 (int)wanted->y, (int)got->w, (int)got->h, (int)got->x, (int)got->y, (int)part->w, (int)part->h);
    assert_true(got->left == 0 && got->top == 0 && got->right == 0 && got->bottom == 0);
    for (int64_t y = 0; y < got->h; y++)
        for (int64_t i = 0; i < got->w * 3; i++) {
            const int a = whole->rgb[((wanted->y + y) * whole->w + wanted->x) * 3 + i], b = part->rgb[((got->y + y) * part->w + got->x) * 3 + i];
            if (a != b)
                fail_msg("%s: the part %d x %d at (%d, %d) differs at (%d, %d): %d, and %d in the whole", name, (int)wanted->w,
                         (int)wanted->h, (int)wanted->x, (int)wanted->y, (int)(i / 3), (int)y, b, a);
        }
}

static void compare(en_decoder *d, const char *name, const bytes *b, int crops, uint64_t seed)
{
    en_image whole, part;
    OK(en_image_decode(name, b->at, b->n, 0, &whole));
    for (int k = 0; k <= crops; k++) {
        en_rng rng = en_rng_at(seed, EN_RNG_TEST, 1, (uint64_t)k, 0);
        const en_crop wanted = k ? random_crop(&rng, whole.w, whole.h) : (en_crop){ .w = whole.w, .h = whole.h };
        en_crop got;
        OK(en_decode_crop(d, name, b->at, b->n, k ? choose : NULL, &wanted, 0, &part, &got));
        same_pixels(name, &whole, &wanted, &part, &got);
    }
    en_image_free(&whole);
}

static void a_part_has_the_pixels_of_the_whole(void **state)
{
    (void)state;
    en_decoder *d;                             /* one for all: nothing of a file may be seen in the next */
    OK(en_decoder_open(0, &d));
    for (size_t s = 0; s < N_SIZES; s++)
        for (size_t k = 0; k < N_KINDS; k++) {
            bytes b = encode(&kinds[k], sizes[s][0], sizes[s][1], (unsigned)(s * N_KINDS + k));
            compare(d, kinds[k].name, &b, 40, s * N_KINDS + k);
            bytes_free(&b);
        }
    uint8_t *rgb = make_picture(90, 70, 1);
    for (int interlace = 0; interlace < 2; interlace++) {
        bytes b = make_png(rgb, 270, 90, 70, PNG_COLOR_TYPE_RGB, 8, interlace);
        compare(d, "PNG", &b, 10, 99);
        bytes_free(&b);
    }
    free(rgb);
    en_decoder_close(d);
}

/* Of three files of ImageNet one, unless EN_ALL_CROPS is set. */
static void the_parts_of_photographs_too(void **state)
{
    (void)state;
    char path[4096];
    snprintf(path, sizeof path, "%s/imagenet-sample", test_data());
    DIR *dir = opendir(path);
    if (!dir) {
        print_message("skipped: no %s\n", path);
        skip();
    }
    en_decoder *d;
    OK(en_decoder_open(0, &d));
    int files = 0, classes = 0;
    for (struct dirent *class; (class = readdir(dir));) {
        if (class->d_name[0] == '.' || (classes++ % 12 && !getenv("EN_ALL_CROPS"))) continue;
        snprintf(path, sizeof path, "%s/imagenet-sample/%s", test_data(), class->d_name);
        DIR *inner = opendir(path);
        for (struct dirent *e; inner && (e = readdir(inner));) {
            if (e->d_name[0] == '.') continue;
            snprintf(path, sizeof path, "%s/imagenet-sample/%s/%s", test_data(), class->d_name, e->d_name);
            bytes b = slurp(path);
            compare(d, path, &b, 6, (uint64_t)files++);
            bytes_free(&b);
        }
        if (inner) closedir(inner);
    }
    closedir(dir);
    en_decoder_close(d);
    print_message("    %d photographs\n", files);
    assert_true(files > 0);
}

/* ---- what is refused ---- */

/* What a whole decoding complains of near the foot of these, a part above need not meet.  Everything else that is refused whole
 * is refused whatever the part. */
static bool may_pass(const char *file)
{
    return strcmp(file, "broken/scan_bit_rot.jpg") == 0 || strcmp(file, "broken/claims_twice_as_tall.jpg") == 0;
}

static void hostile_files_by_parts(void **state)
{
    (void)state;
    char path[4096], line[1024];
    snprintf(path, sizeof path, "%s/hostile/EXPECTED.tsv", test_data());
    FILE *table = fopen(path, "r");
    if (!table) {
        print_message("skipped: no %s\n", path);
        skip();
    }
    en_decoder *d;
    OK(en_decoder_open(0, &d));
    int files = 0, passed = 0;
    assert_non_null(fgets(line, sizeof line, table));
    while (fgets(line, sizeof line, table)) {
        char *rest = line, *file = strsep(&rest, "\t"), *kind = strsep(&rest, "\t");
        snprintf(path, sizeof path, "%s/hostile/%s", test_data(), file);
        bytes b = slurp(path);
        files++;
        if (strcmp(kind, "decode") == 0) {
            compare(d, path, &b, 20, (uint64_t)files);
            bytes_free(&b);
            continue;
        }
        for (int k = 0; k < 10; k++) {         /* one pixel in the corners and in the middle: whatever the claimed size; once more to the end */
            const bool to_the_end = k >= 5;
            static const en_crop corner[5] = { { .w = 1, .h = 1 }, { .x = 1, .w = 1, .h = 1 }, { .y = 1, .w = 1, .h = 1 },
                                               { .x = 2, .y = 2, .w = 1, .h = 1 }, { .x = 1, .y = 3, .w = 1, .h = 1 } };
            en_image part;
            en_crop got;
            en_error_clear();
            en_decoder_to_the_end(d, to_the_end);
            const en_status status = en_decode_crop(d, path, b.at, b.n, choose, &corner[k % 5], 0, &part, &got);
            if (status == EN_OK && may_pass(file) && !to_the_end) { passed++; continue; }
            if (status != EN_EDATA || !strstr(en_error_message(), file))
                fail_msg("%s, part %d: %s", file, k, status == EN_OK ? "decoded" : en_error_message());
            assert_null(part.rgb);
        }
        bytes_free(&b);
    }
    fclose(table);
    en_decoder_close(d);
    print_message("    %d files; %d parts came from above the damage\n", files, passed);
    assert_true(files > 50);
}

/* A file without its end is refused, whatever the part; damage above or in the rows of the part is met; below it is not. */
static void a_truncated_file_is_refused_whatever_the_part(void **state)
{
    (void)state;
    en_decoder *d;
    OK(en_decoder_open(0, &d));
    for (size_t k = 0; k < N_KINDS; k++) {
        bytes b = encode(&kinds[k], 200, 150, (unsigned)k);
        en_image part;
        en_crop got;
        for (int c = 0; c < 4; c++) {
            const en_crop wanted = { .x = c % 2 * 150, .y = c / 2 * 100, .w = 20, .h = 20 };
            for (size_t less = 0; less < b.n; less += less < 8 ? 1 : 97) {
                bytes cut = { b.at, b.n - less }, exact = bytes_copy(&cut);
                const en_status status = en_decode_crop(d, "cut.jpg", exact.at, exact.n, choose, &wanted, 0, &part, &got);
                if (status != (less ? EN_EDATA : EN_OK)) fail_msg("%s less %zu bytes, part %d: status %d", kinds[k].name, less, c, status);
                bytes_free(&exact);
            }
        }
        bytes_insert(&b, b.n, "garbage \xff\xd8\xff\0\xd9", 13);             /* behind the end: nobody's business */
        OK(en_decode_crop(d, "longer.jpg", b.at, b.n, choose, &(en_crop){ .w = 9, .h = 9 }, 0, &part, &got));
        bytes_free(&b);
    }
    en_decoder_close(d);
}

/* What a whole decoding says of a damaged scan, a part that reaches its last row says too, and any part that is read to the end. */
static void damage_that_is_not_below_is_met(void **state)
{
    (void)state;
    en_decoder *d;
    OK(en_decoder_open(0, &d));
    int refused = 0, unseen = 0;
    for (unsigned k = 0; k < 300; k++) {
        bytes b = encode(&kinds[k % N_KINDS], 123, 77, k);
        en_rng rng = en_rng_at(5, EN_RNG_TEST, 2, k, 0);
        for (int e = 0; e < 30; e++) b.at[b.n / 2 + en_rng_below(&rng, (uint32_t)(b.n / 2 - 2))] = (uint8_t)en_rng_u32(&rng);
        en_image whole, part;
        en_crop got;
        const en_status want = en_image_decode("damaged", b.at, b.n, 0, &whole);
        const en_crop low = { .x = 50, .y = 60, .w = 30, .h = 17 }, high = { .x = 50, .w = 30, .h = 8 };
        const en_status at_the_foot = en_decode_crop(d, "damaged", b.at, b.n, choose, &low, 0, &part, &got);
        assert_int_equal(at_the_foot, want);
        if (want == EN_OK) same_pixels("damaged", &whole, &low, &part, &got);
        refused += want != EN_OK;
        unseen += want != EN_OK && en_decode_crop(d, "damaged", b.at, b.n, choose, &high, 0, &part, &got) == EN_OK;
        en_decoder_to_the_end(d, true);        /* then the first rows refuse what the whole refuses, and show what it shows */
        for (int scale_to = 0; scale_to <= 4; scale_to += 4) {
            assert_int_equal(en_decode_crop(d, "damaged", b.at, b.n, choose, &high, scale_to, &part, &got), want);
            if (want == EN_OK && scale_to == 0) same_pixels("damaged", &whole, &high, &part, &got);
        }
        en_decoder_to_the_end(d, false);
        en_image_free(&whole);
        bytes_free(&b);
    }
    print_message("    %d refused whole, %d of them unseen from the first rows\n", refused, unseen);
    assert_true(refused > 50 && unseen > 20 && unseen < refused);
    en_decoder_close(d);
}

/* Removes the marker segment `marker`, all of them. */
static void without(bytes *b, uint8_t marker)
{
    for (size_t i = 2; i + 4 < b->n && b->at[i] == 0xff && b->at[i + 1] != 0xda;) {
        const size_t length = 2 + (size_t)(b->at[i + 2] << 8 | b->at[i + 3]);
        if (b->at[i + 1] != marker) { i += length; continue; }
        memmove(b->at + i, b->at + i + length, b->n - i - length);
        b->n -= length;
    }
}

static void tables_of_the_last_file_are_forgotten(void **state)
{
    (void)state;
    en_decoder *d;
    OK(en_decoder_open(0, &d));
    bytes sound = encode(&kinds[0], 64, 48, 1), other = encode(&kinds[17], 64, 48, 2);       /* progressive: Huffman tables of its own */
    en_image part;
    en_crop got;
    OK(en_decode_crop(d, "sound", sound.at, sound.n, NULL, NULL, 0, &part, &got));
    bytes bare = bytes_copy(&sound);
    without(&bare, 0xdb);
    assert_int_equal(en_decode_crop(d, "no quantisation table", bare.at, bare.n, NULL, NULL, 0, &part, &got), EN_EDATA);
    bytes_free(&bare);

    bare = bytes_copy(&sound);                 /* encoded with the standard tables, which are supplied where none are */
    without(&bare, 0xc4);
    assert_true(bare.n + 400 < sound.n);
    OK(en_decode_crop(d, "other", other.at, other.n, NULL, NULL, 0, &part, &got));
    compare(d, "no Huffman table", &bare, 3, 1);
    bytes_free(&bare);
    bytes_free(&sound);
    bytes_free(&other);
    en_decoder_close(d);
}

static void the_size_is_in_the_header(void **state)
{
    (void)state;
    int64_t w, h;
    int channels;
    for (size_t k = 0; k < N_KINDS; k++) {
        bytes b = encode(&kinds[k], 123, 77, 1);
        bytes head = { b.at, b.n - b.n / 4 };  /* the pixels need not be there */
        OK(en_image_size("a.jpg", head.at, head.n, &w, &h, &channels));
        assert_int_equal(w, 123);
        assert_int_equal(h, 77);
        assert_int_equal(channels, kinds[k].stored == JCS_GRAYSCALE ? 1 : kinds[k].stored == JCS_CMYK || kinds[k].stored == JCS_YCCK ? 4 : 3);
        bytes_free(&b);
    }
    uint8_t gray[48] = { 0 };
    bytes b = make_png(gray, 6, 6, 8, PNG_COLOR_TYPE_GRAY, 8, 0);
    OK(en_image_size("a.png", b.at, b.n, &w, &h, &channels));
    assert_true(w == 6 && h == 8 && channels == 1);
    assert_int_equal(en_image_size("a.png", b.at, 20, &w, &h, &channels), EN_EDATA);
    assert_int_equal(en_image_size("a.txt", (const uint8_t *)"hello", 5, &w, &h, &channels), EN_EDATA);
    bytes_free(&b);
}

static void a_part_that_is_not_inside_is_our_mistake(void **state)
{
    (void)state;
    en_decoder *d;
    OK(en_decoder_open(0, &d));
    bytes b = encode(&kinds[2], 33, 17, 1);
    static const en_crop wrong[] = { { .w = 34, .h = 17 }, { .w = 33, .h = 18 }, { .x = 1, .w = 33, .h = 17 }, { .y = -1, .w = 3, .h = 3 },
                                     { .w = 0, .h = 4 }, { .x = INT64_MAX, .w = 2, .h = 2 } };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        en_image part;
        en_crop got;
        assert_int_equal(en_decode_crop(d, "a.jpg", b.at, b.n, choose, &wrong[i], 0, &part, &got), EN_EINVAL);
    }
    bytes_free(&b);
    en_decoder_close(d);
}

/* ---- scaled ---- */

/* The part as libjpeg's scaled picture holds it: same edges to the fraction, and never fewer pixels than asked for. */
static void a_scaled_part_keeps_its_edges_and_enough_pixels(void **state)
{
    (void)state;
    en_decoder *d;
    OK(en_decoder_open(0, &d));
    int scaled[4] = { 0 };
    for (size_t k = 0; k < N_KINDS; k++) {
        bytes b = encode(&kinds[k], 203, 151, (unsigned)k);
        en_image whole[4];                     /* at 1, 1/2, 1/4, 1/8 */
        for (int e = 0; e < 4; e++) {
            en_image lent;
            en_crop all;
            OK(en_decode_crop(d, kinds[k].name, b.at, b.n, NULL, NULL, 151 >> e, &lent, &all));
            assert_true(lent.w == (203 + (1 << e) - 1) >> e && lent.h == (151 + (1 << e) - 1) >> e);
            assert_true(all.right == (float)(lent.w * (1 << e) - 203) / (float)(1 << e) && all.left == 0);
            whole[e] = lent;
            whole[e].rgb = malloc((size_t)(lent.w * lent.h * 3));
            memcpy(whole[e].rgb, lent.rgb, (size_t)(lent.w * lent.h * 3));
        }
        for (uint64_t n = 0; n < 60; n++) {
            en_rng rng = en_rng_at(3, EN_RNG_TEST, k, n, 0);
            const en_crop wanted = random_crop(&rng, 203, 151);
            const int scale_to = 1 + (int)en_rng_below(&rng, 40);
            const int64_t least = wanted.w < wanted.h ? wanted.w : wanted.h;
            const int e = least >= 8 * scale_to ? 3 : least >= 4 * scale_to ? 2 : least >= 2 * scale_to ? 1 : 0;
            en_image part;
            en_crop got;
            OK(en_decode_crop(d, kinds[k].name, b.at, b.n, choose, &wanted, scale_to, &part, &got));
            scaled[e]++;
            const float f = (float)(1 << e);
            assert_true(((float)got.w - got.left - got.right) * f == (float)wanted.w && ((float)got.h - got.top - got.bottom) * f == (float)wanted.h);
            assert_true(got.left >= 0 && got.left < 1 && got.right >= 0 && got.right < 1 && got.top >= 0 && got.bottom >= 0);
            const int64_t x = wanted.x >> e, y = wanted.y >> e;                 /* of the first pixel that it touches */
            assert_true(((float)x + got.left) * f == (float)wanted.x && ((float)y + got.top) * f == (float)wanted.y);
            for (int64_t r = 0; r < got.h; r++)
                if (memcmp(whole[e].rgb + ((y + r) * whole[e].w + x) * 3, part.rgb + ((got.y + r) * part.w + got.x) * 3, (size_t)got.w * 3) != 0)
                    fail_msg("%s at 1/%d: %d x %d at (%d, %d), row %d", kinds[k].name, 1 << e, (int)wanted.w, (int)wanted.h, (int)wanted.x,
                             (int)wanted.y, (int)r);
        }
        for (int e = 0; e < 4; e++) free(whole[e].rgb);
        bytes_free(&b);
    }
    en_decoder_close(d);
    for (int e = 0; e < 4; e++) assert_true(scaled[e] > 50);
}

/* How far a network's input is from that of an unscaled decoding, in levels, over the photographs of imagenet-sample: each of the
 * training crops that is large enough for 1/2 at 112 pixels, and resized to that.  No mathematics bounds this, pictures do; the limits are
 * a third above what was measured. */
static void a_scaled_photograph_is_near_the_whole_one(void **state)
{
    (void)state;
    static const struct { en_resize_kernel kernel; const char *name; double mean, p99; } limits[] = {
        { EN_RESIZE_BICUBIC, "bicubic", 10, 80 }, { EN_RESIZE_BILINEAR, "bilinear", 6.4, 55 },
        { EN_RESIZE_BICUBIC_AA, "bicubic, antialiased", 1.9, 16 }, { EN_RESIZE_BILINEAR_AA, "bilinear, antialiased", 1.6, 13 },
    };
    enum { S = 112, N = sizeof limits / sizeof *limits };
    char path[4096];
    snprintf(path, sizeof path, "%s/imagenet-sample", test_data());
    DIR *dir = opendir(path);
    if (!dir) {
        print_message("skipped: no %s\n", path);
        skip();
    }
    en_decoder *d;
    OK(en_decoder_open(0, &d));
    static int64_t histogram[N][256];
    static float a[S * S * 3], b[S * S * 3];
    int64_t parts = 0, sample = 0;
    for (struct dirent *class; (class = readdir(dir));) {
        if (class->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/imagenet-sample/%s", test_data(), class->d_name);
        DIR *inner = opendir(path);
        for (struct dirent *e; inner && (e = readdir(inner));) {
            if (e->d_name[0] == '.' || sample++ % 3) continue;
            snprintf(path, sizeof path, "%s/imagenet-sample/%s/%s", test_data(), class->d_name, e->d_name);
            bytes file = slurp(path);
            int64_t w, h;
            int channels;
            OK(en_image_size(path, file.at, file.n, &w, &h, &channels));
            const en_crop wanted = en_crop_train(w, h, channels, S, 1, 0, (uint64_t)sample);
            if (wanted.w >= 2 * S && wanted.h >= 2 * S) {
                parts++;
                for (int k = 0; k < N; k++) {
                    const en_normalise none = { .std = { 1, 1, 1 } };
                    en_image img;
                    en_crop got;
                    OK(en_decode_crop(d, path, file.at, file.n, choose, &wanted, 0, &img, &got));
                    en_resize(&img, &got, limits[k].kernel, S, &none, a);
                    OK(en_decode_crop(d, path, file.at, file.n, choose, &wanted, S, &img, &got));
                    en_resize(&img, &got, limits[k].kernel, S, &none, b);
                    for (int i = 0; i < S * S * 3; i++) {
                        const double difference = fabs((double)(a[i] - b[i]));
                        histogram[k][difference > 255 ? 255 : (int)(difference + 0.5)]++;
                    }
                }
            }
            bytes_free(&file);
        }
        if (inner) closedir(inner);
    }
    closedir(dir);
    en_decoder_close(d);
    assert_true(parts > 20);
    for (int k = 0; k < N; k++) {
        double mean = 0;
        int64_t seen = 0, p99 = -1;
        const int64_t all = parts * S * S * 3;
        for (int level = 0; level < 256; level++) {
            mean += (double)level * (double)histogram[k][level] / (double)all;
            seen += histogram[k][level];
            if (p99 < 0 && (double)seen >= 0.99 * (double)all) p99 = level;
        }
        print_message("    %-22s mean %.2f levels, 99 %% within %d (%d parts)\n", limits[k].name, mean, (int)p99, (int)parts);
        if (mean > limits[k].mean || (double)p99 > limits[k].p99) fail_msg("%s: more than %g and %g", limits[k].name, limits[k].mean, limits[k].p99);
    }
}

/* ---- memory ---- */

/* malloc and its kin, counted: the linker finds these first, in libjpeg, libpng and zlib, too. */
#if !defined __SANITIZE_ADDRESS__ && defined __GLIBC__
#define COUNTED 1
static _Thread_local long allocations;
static _Thread_local size_t largest;
void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);
static void count(size_t n) { allocations++; if (n > largest) largest = n; }
void *malloc(size_t n)                    { count(n); return __libc_malloc(n); }
void *calloc(size_t k, size_t n)          { count(k * n); return __libc_calloc(k, n); }
void *realloc(void *p, size_t n)          { count(n); return __libc_realloc(p, n); }
void *aligned_alloc(size_t a, size_t n)   { count(n); return __libc_memalign(a, n); }
#else
#define COUNTED 0
static long allocations;
static size_t largest;
#endif

static void a_second_picture_allocates_nothing(void **state)
{
    (void)state;
    if (!COUNTED) {
        print_message("skipped: the sanitizer owns malloc\n");
        skip();
    }
    uint8_t *rgb = make_picture(200, 150, 1);
    bytes png = make_png(rgb, 600, 200, 150, PNG_COLOR_TYPE_RGB, 8, 0);
    en_decoder *d;
    OK(en_decoder_open(0, &d));
    for (size_t k = 0; k <= N_KINDS; k++) {
        bytes first = k < N_KINDS ? encode(&kinds[k], 200, 150, 1) : bytes_copy(&png);
        bytes second = k < N_KINDS ? encode(&kinds[k], 200, 150, 2) : bytes_copy(&png);
        const en_crop here = { .x = 40, .y = 10, .w = 40, .h = 70 }, there = { .x = 72, .y = 70, .w = 40, .h = 70 };    /* widened alike */
        en_image img;
        en_crop got;
        OK(en_decode_crop(d, "first", first.at, first.n, choose, &here, 0, &img, &got));
        allocations = 0;
        const en_status status = en_decode_crop(d, "second", second.at, second.n, choose, &there, 0, &img, &got);
        const long taken = allocations;
        assert_int_equal(status, EN_OK);
        /* several scans: libjpeg's array of coefficients for each component, and its lists */
        const bool several = k < N_KINDS && (kinds[k].progressive || kinds[k].scans);
        if (several ? taken > 30 : taken > 0) fail_msg("%s: %ld allocations", k < N_KINDS ? kinds[k].name : "PNG", taken);
        bytes_free(&first);
        bytes_free(&second);
    }
    en_decoder_close(d);
    bytes_free(&png);
    free(rgb);
}

/* A picture of 60000 columns needs megabytes of rows; the next small one finds them gone. */
static void what_a_giant_took_is_given_back(void **state)
{
    (void)state;
    if (!COUNTED) {
        print_message("skipped: the sanitizer owns malloc\n");
        skip();
    }
    bytes giant = encode(&(jpeg_case){ .name = "wide", .stored = JCS_YCbCr, .h = { 2, 1, 1 }, .v = { 2, 1, 1 } }, 60000, 400, 1);
    bytes small = encode(&kinds[2], 64, 48, 1);
    en_decoder *d;
    OK(en_decoder_open(0, &d));
    en_image img;
    en_crop got;
    largest = 0;
    OK(en_decode_crop(d, "giant", giant.at, giant.n, NULL, NULL, 0, &img, &got));
    assert_true(largest >= 60000 * 400 * 3);   /* 72 MB: more than a decoder keeps */
    largest = 0;
    OK(en_decode_crop(d, "small", small.at, small.n, NULL, NULL, 0, &img, &got));
    assert_true(largest >= 64 * 48 * 3 && largest < 1 << 20);      /* a buffer of its own size, so the other one has gone */
    en_decoder_close(d);
    bytes_free(&giant);
    bytes_free(&small);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_part_has_the_pixels_of_the_whole),
        cmocka_unit_test(the_parts_of_photographs_too),
        cmocka_unit_test(hostile_files_by_parts),
        cmocka_unit_test(a_truncated_file_is_refused_whatever_the_part),
        cmocka_unit_test(damage_that_is_not_below_is_met),
        cmocka_unit_test(tables_of_the_last_file_are_forgotten),
        cmocka_unit_test(the_size_is_in_the_header),
        cmocka_unit_test(a_part_that_is_not_inside_is_our_mistake),
        cmocka_unit_test(a_scaled_part_keeps_its_edges_and_enough_pixels),
        cmocka_unit_test(a_scaled_photograph_is_near_the_whole_one),
        cmocka_unit_test(a_second_picture_allocates_nothing),
        cmocka_unit_test(what_a_giant_took_is_given_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
