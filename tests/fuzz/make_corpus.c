/* make_corpus.c - writes the seeds of the corpora: one small file of each kind that a reader must tell apart.
 *
 *     make_fuzz_corpus tests/fuzz/corpus
 *
 * The fuzzer finds neighbours of what it is given; it does not invent an arithmetic-coded CMYK file. */
#include "data_help.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <png.h>

static const char *corpus;

static void put(const char *name, const bytes *b)
{
    put_file(corpus, path_in("decode", name), b->at, b->n);
}

static void put_once(const char *name, bytes b)
{
    put(name, &b);
    bytes_free(&b);
}

/* Where marker 0xff `code` begins, walking segments from SOI; b->n when there is none before the first scan. */
static size_t segment(const bytes *b, int code)
{
    size_t at = 2;
    while (at + 4 < b->n && b->at[at] == 0xff && b->at[at + 1] != code && b->at[at + 1] != 0xda)
        at += 2 + (size_t)(b->at[at + 2] << 8 | b->at[at + 3]);
    return at + 4 < b->n && b->at[at + 1] == code ? at : b->n;
}

static void claim(bytes *b, int frame, int w, int h)
{
    uint8_t *p = b->at + segment(b, frame) + 5;
    p[0] = (uint8_t)(h >> 8), p[1] = (uint8_t)h, p[2] = (uint8_t)(w >> 8), p[3] = (uint8_t)w;
}

static void jpegs(void)
{
    static const struct { const char *name; jpeg_kind kind; } kinds[] = {
        { "420.jpg", { .components = 3 } },
        { "444.jpg", { .components = 3, .luma_h = 1, .luma_v = 1 } },
        { "422.jpg", { .components = 3, .luma_h = 2, .luma_v = 1 } },
        { "440.jpg", { .components = 3, .luma_h = 1, .luma_v = 2 } },
        { "411.jpg", { .components = 3, .luma_h = 4, .luma_v = 1 } },
        { "410.jpg", { .components = 3, .luma_h = 4, .luma_v = 2 } },
        { "rgb.jpg", { .components = 3, .rgb = true } },
        { "gray.jpg", { .components = 1 } },
        { "gray_progressive.jpg", { .components = 1, .progressive = true } },
        { "progressive.jpg", { .components = 3, .progressive = true } },
        { "progressive_restart.jpg", { .components = 3, .progressive = true, .restart = 1 } },
        { "restart.jpg", { .components = 3, .restart = 1 } },
        { "arithmetic.jpg", { .components = 3, .arithmetic = true } },
        { "arithmetic_progressive.jpg", { .components = 3, .arithmetic = true, .progressive = true } },
        { "cmyk.jpg", { .components = 4 } },
        { "cmyk_adobe.jpg", { .components = 4, .adobe_inverted = true } },
        { "cmyk_progressive.jpg", { .components = 4, .adobe_inverted = true, .progressive = true } },
    };
    enum { W = 45, H = 37 };                   /* no multiple of any block: edges are there, and several rows of them */
    uint8_t *rgb = make_picture(W, H, 3);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        jpeg_kind kind = kinds[i].kind;
        kind.quality = 50;
        put_once(kinds[i].name, make_jpeg(rgb, W, H, &kind));
    }

    const jpeg_kind plain = { .components = 3, .quality = 50 }, progressive = { .components = 3, .quality = 50, .progressive = true };
    bytes b = make_jpeg(rgb, W, H, &plain), p = make_jpeg(rgb, W, H, &progressive);
    bytes cut = { b.at, b.n * 2 / 3 }, no_end = { b.at, b.n - 2 }, cut_progressive = { p.at, p.n / 2 };
    put("truncated.jpg", &cut);
    put("no_eoi.jpg", &no_end);
    put("truncated_progressive.jpg", &cut_progressive);

    /* EXIF: little-endian TIFF, one entry, Orientation (0x0112) SHORT 6 */
    static const uint8_t exif[] = "\xff\xe1\x00\x22" "Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0";
    bytes e = bytes_copy(&b);
    bytes_insert(&e, 2, exif, 0x24);
    put_once("exif.jpg", e);
    bytes padded = bytes_copy(&b);
    bytes_insert(&padded, padded.n, "behind the end", 14);
    bytes_insert(&padded, padded.n - 16, "\0\0\0", 3);
    bytes_insert(&padded, 20, "\0\0\0\0\0", 5);
    put_once("padded.jpg", padded);
    bytes flipped = bytes_copy(&b);
    flipped.at[flipped.n / 2] ^= 0x40;
    put_once("flipped_bit.jpg", flipped);
    bytes huge = bytes_copy(&p), wide = bytes_copy(&b);
    claim(&huge, 0xc2, 65500, 65500);
    put_once("claims_65500.jpg", huge);
    claim(&wide, 0xc0, 1020, 1020);            /* within the limit, fewer bits than blocks */
    put_once("claims_1020.jpg", wide);
    bytes lines = bytes_copy(&b);
    claim(&lines, 0xc0, W, 0);                 /* to be told by DNL, which libjpeg does not do */
    put_once("no_height.jpg", lines);
    bytes_free(&b);
    bytes_free(&p);

    /* The coefficients one by one; the 102 first of 190 scans are one too many. */
    bytes scans = make_jpeg(rgb, 8, 8, &(jpeg_kind){ .components = 3, .quality = 10, .many_scans = true });
    size_t at = 2;
    for (int seen = 0; at + 1 < scans.n; at++)
        if (scans.at[at] == 0xff && scans.at[at + 1] == 0xda && ++seen == 103) break;
    scans.at[at + 1] = 0xd9;
    scans.n = at + 2;
    put_once("scans.jpg", scans);
    /* An arithmetic file has no floor of bits: a large claim is decoded from nothing. */
    bytes a = make_jpeg(rgb, 16, 16, &(jpeg_kind){ .components = 3, .quality = 50, .arithmetic = true, .progressive = true });
    claim(&a, 0xca, 700, 700);
    put_once("arithmetic_claim.jpg", a);
    free(rgb);
}

static uint32_t crc_of(const uint8_t *p, size_t n)             /* ISO 3309, bit by bit */
{
    uint32_t crc = 0xffffffff;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    return ~crc;
}

/* The chunk of n bytes of data at `at`, with the right CRC. */
static void sign(bytes *b, size_t at, size_t n)
{
    const uint32_t crc = crc_of(b->at + at + 4, n + 4);
    for (size_t i = 0; i < 4; i++) b->at[at + 8 + n + i] = (uint8_t)(crc >> (24 - 8 * i));
}

static void pngs(void)
{
    enum { W = 13, H = 9 };
    static const struct { const char *name; int type, depth, row; } kinds[] = {
        { "rgb8", PNG_COLOR_TYPE_RGB, 8, 3 * W },          { "rgb16", PNG_COLOR_TYPE_RGB, 16, 6 * W },
        { "rgba8", PNG_COLOR_TYPE_RGB_ALPHA, 8, 4 * W },   { "rgba16", PNG_COLOR_TYPE_RGB_ALPHA, 16, 8 * W },
        { "gray1", PNG_COLOR_TYPE_GRAY, 1, (W + 7) / 8 },  { "gray4", PNG_COLOR_TYPE_GRAY, 4, (W + 1) / 2 },
        { "gray8", PNG_COLOR_TYPE_GRAY, 8, W },            { "gray16", PNG_COLOR_TYPE_GRAY, 16, 2 * W },
        { "gray_alpha", PNG_COLOR_TYPE_GRAY_ALPHA, 8, 2 * W },
    };
    uint8_t *rows = make_picture(W, 3 * H, 5), index[W * H];
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        for (int interlace = 0; interlace < 2; interlace++) {
            char name[64];
            snprintf(name, sizeof name, "%s%s.png", kinds[i].name, interlace ? "_interlaced" : "");
            put_once(name, make_png(rows, (size_t)kinds[i].row, W, H, kinds[i].type, kinds[i].depth, interlace));
        }
    for (int i = 0; i < W * H; i++) index[i] = rows[i] & 3;
    put_once("palette_trns.png", make_png(index, W, W, H, PNG_COLOR_TYPE_PALETTE, 8, 0));
    /* Gray turned into indices of which most have no colour; libpng would not write it. */
    bytes beyond = make_png(rows, W, W, H, PNG_COLOR_TYPE_GRAY, 8, 1);
    beyond.at[25] = PNG_COLOR_TYPE_PALETTE;
    sign(&beyond, 8, 13);
    bytes_insert(&beyond, 33, "\0\0\0\6PLTE\1\2\3\4\5\6\0\0\0\0", 18);
    sign(&beyond, 33, 6);
    put_once("palette_beyond.png", beyond);

    bytes b = make_png(rows, 3 * W, W, H, PNG_COLOR_TYPE_RGB, 8, 0);
    bytes cut = { b.at, b.n * 2 / 3 }, no_end = { b.at, b.n - 12 };
    put("truncated.png", &cut);
    put("no_iend.png", &no_end);
    /* a transparent colour, text, a profile of nonsense and a chunk nobody knows are skipped */
    static const uint8_t chunks[] = "\0\0\0\6tRNS\0\1\0\2\0\3\0\0\0\0" "\0\0\0\5tEXta\0bcd\0\0\0\0" "\0\0\0\4iCCPx\0\0\1\0\0\0\0" "\0\0\0\1eNxTz\0\0\0\0";
    bytes extra = bytes_copy(&b);
    bytes_insert(&extra, 33, chunks, sizeof chunks - 1);       /* their CRCs are wrong, too */
    put_once("chunks_bad_crc.png", extra);
    bytes crc = bytes_copy(&b);
    crc.at[30] ^= 1;                           /* of IHDR, which ends at 33 */
    put_once("bad_crc_header.png", crc);
    bytes damaged = bytes_copy(&b);
    damaged.at[damaged.n / 2] ^= 16;
    put_once("flipped_bit.png", damaged);
    bytes_free(&b);
    free(rows);
}

static void others(void)
{
    static const struct { const char *name, *content; size_t n; } files[] = {
        { "empty", "", 0 },                                    { "html", "<!DOCTYPE html><title>404</title>", 33 },
        { "text", "hello, world\n", 13 },                      { "zeros", "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16 },
        { "gif", "GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;", 35 },
        { "bmp", "BM\x1e\0\0\0\0\0\0\0\x1a\0\0\0\x0c\0\0\0\1\0\1\0\1\0\x18\0\1\2\3\0", 30 },
        { "webp", "RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0/\0\0\0\x10\x07\x10\x11\x11\x88\x88\xfe\x07\0", 34 },
        { "tiff", "II*\0\x08\0\0\0\0\0", 10 },                 { "heic", "\0\0\0\x18" "ftypheic\0\0\0\0", 16 },
        { "gzip", "\x1f\x8b\x08\0", 4 },                       { "appledouble", "\0\5\26\7\0\2\0\0", 8 },
        { "soi", "\xff\xd8", 2 },                              { "png_signature", "\x89PNG\r\n\x1a\n", 8 },
        { "one_byte", "\xff", 1 },
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        const bytes b = { (uint8_t *)(uintptr_t)files[i].content, files[i].n };
        put(files[i].name, &b);
    }
}

/* Changes to a sound packed file, as hostile_h5.c reads them: opcode, column, arguments. */
static void packed(void)
{
    enum { SPLITS, SPLIT_OFFSETS, CLASSES, FILES, OFFSETS, LABELS, CRC32, BYTES };
    enum { VALUE = 0, TEXT = 3, LENGTH = 5, TYPE, LAYOUT, RANK, FORM, CHECK, NUMBER, FORMAT, SIZE, PATCH, OLD };
    enum { ZERO = 0, MINUS_ONE = 2, INT64_MOST = 3, TWO_TO_62 = 10, SMALL = 64, TWO_BYTES = 128 };     /* numbers; SMALL + n is n */
    static const struct { const char *name; uint8_t at[14]; size_t n; } files[] = {
        { "sound", { 0 }, 0 },
        { "label_negative", { VALUE, LABELS, 1, MINUS_ONE }, 4 },       { "label_of_no_class", { VALUE, LABELS, 1, SMALL + 2 }, 4 },
        { "offset_negative", { VALUE, OFFSETS, 1, MINUS_ONE }, 4 },     { "offset_beyond", { VALUE, OFFSETS, 2, TWO_BYTES, 255, 255 }, 6 },
        { "offset_back", { VALUE, OFFSETS, 2, SMALL }, 4 },             { "offset_first", { VALUE, OFFSETS, 0, SMALL + 3 }, 4 },
        { "offset_last", { VALUE, OFFSETS, 5, INT64_MOST }, 4 },        { "sample_crc", { VALUE, CRC32, 2, SMALL + 1 }, 4 },
        { "sample_byte", { VALUE, BYTES, 30, SMALL + 60 }, 4 },         { "part_backwards", { VALUE, SPLIT_OFFSETS, 1, SMALL + 9 }, 4 },
        { "part_negative", { VALUE, SPLIT_OFFSETS, 1, MINUS_ONE }, 4 }, { "part_empty", { VALUE, SPLIT_OFFSETS, 1, SMALL }, 4 },
        { "part_twice", { TEXT, SPLITS, 8, 0, 5, 't', 'r', 'a', 'i', 'n' }, 10 }, { "part_unknown", { TEXT, SPLITS, 0, 0, 1, 'T' }, 6 },
        { "class_order", { TEXT, CLASSES, 0, 0, 1, 'z' }, 6 },          { "class_slash", { TEXT, CLASSES, 0, 0, 1, '/' }, 6 },
        { "class_twice", { TEXT, CLASSES, 3, 0, 3, 'a', 0, 0 }, 8 },    { "class_nameless", { TEXT, CLASSES, 0, 0, 1, 0 }, 6 },
        { "file_nameless", { TEXT, FILES, 12, 0, 1, 0 }, 6 },           { "file_newline", { TEXT, FILES, 14, 0, 1, '\n' }, 6 },
        { "no_samples", { LENGTH, LABELS, ZERO }, 3 },                  { "labels_2_62", { LENGTH, LABELS, TWO_TO_62 }, 3 },
        { "bytes_2_62", { LENGTH, BYTES, TWO_TO_62 }, 3 },              { "offsets_too_few", { LENGTH, OFFSETS, SMALL + 5 }, 3 },
        { "classes_more", { LENGTH, CLASSES, SMALL + 9 }, 3 },          { "three_parts", { LENGTH, SPLITS, SMALL + 3 }, 3 },
        { "labels_int64", { TYPE, LABELS, 6 }, 3 },                     { "labels_big_endian", { TYPE, LABELS, 4 }, 3 },
        { "labels_float", { TYPE, LABELS, 9 }, 3 },                     { "files_wide", { TYPE, FILES, 14, 255, 255 }, 5 },
        { "files_numbers", { TYPE, FILES, 6 }, 3 },                     { "bytes_signed", { TYPE, BYTES, 0 }, 3 },
        { "bytes_late", { LAYOUT, BYTES, 1 }, 3 },                      { "bytes_chunked", { LAYOUT, BYTES, 2 }, 3 },
        { "bytes_compact", { LAYOUT, BYTES, 3 }, 3 },                   { "labels_deflated", { LAYOUT, LABELS, 4 }, 3 },
        { "bytes_external", { LAYOUT, BYTES, 5 }, 3 },                  { "labels_null", { RANK, LABELS, 0 }, 3 },
        { "labels_scalar", { RANK, LABELS, 1 }, 3 },                    { "labels_2d", { RANK, LABELS, 3 }, 3 },
        { "bytes_missing", { FORM, BYTES, 1 }, 3 },                     { "bytes_group", { FORM, BYTES, 2 }, 3 },
        { "bytes_soft_link", { FORM, BYTES, 3, FILES }, 4 },            { "bytes_dangling", { FORM, BYTES, 4 }, 3 },
        { "crc_is_labels", { FORM, CRC32, 5, LABELS }, 4 },             { "bytes_external_link", { FORM, BYTES, 6 }, 3 },
        { "labels_a_type", { FORM, LABELS, 7 }, 3 },                    { "unchecked", { CHECK, OFFSETS, 1 }, 3 },
        { "false_check", { CHECK, OFFSETS, 2 }, 3 },                    { "array_check", { CHECK, OFFSETS, 3 }, 3 },
        { "long_check", { CHECK, OFFSETS, 4 }, 3 },                     { "version_2", { NUMBER, 0, 0, 0, SMALL + 2 }, 5 },
        { "incomplete", { NUMBER, 0, 7, 0, SMALL }, 5 },                { "no_complete", { NUMBER, 0, 7, 255 }, 4 },
        { "no_format", { FORMAT, 0, 0 }, 3 },                           { "cut", { SIZE, 0, 1, 10, 0 }, 5 },
        { "grown", { SIZE, 0, 0, 10, 0 }, 5 },                          { "superblock", { PATCH, 0, 0, 8, 0, 1 }, 6 },
        { "root_elsewhere", { PATCH, 0, 3, 36, 0, TWO_BYTES, 0, 16 }, 8 },  { "root_beyond", { PATCH, 0, 3, 36, 0, TWO_TO_62 }, 6 },
        { "message_long", { PATCH, 0, 1, 80, 0, 255 }, 6 },
        { "old_format", { OLD, 0, 1 }, 3 },                             { "user_block", { OLD, 0, 0 }, 3 },
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) put_file(corpus, path_in("packed", files[i].name), files[i].at, files[i].n);
}

/* Changes to a sound checkpoint, as hostile_checkpoint.c reads them: opcode, object or attribute, arguments. */
static void checkpoints(void)
{
    enum { ROOT, MODEL, EMA, OPTIMIZER, MS, MOM, NAMES, STEM, BN, MEAN, BIAS, EMA_WEIGHT };
    enum { STEP = 1, SEED = 5, WORLD_SIZE = 10, CLASSES = 13, N_SLOTS = 15, DATASETS, SECONDS = 19, MODEL_NAME = 24, OPTIONS = 26 };
    enum { NUMBER = 0, TYPE = 2, NO_ATTRIBUTE, CRC, DATASET, VALUES = 7, LINK = 9, LINKS, SWAP, SIZE };
    enum { ZERO = 0, MINUS_ONE = 2, INT64_MOST = 3, TWO_TO_40 = 9, TWO_TO_62 = 10, SMALL = 64, PAIR = 5, THOUSAND = 6, EIGHT_THOUSAND = 7, NONE = 3 };
    enum { OF_TYPE = 1, OF_LENGTH = 2, OF_RANK = 4, STORED = 8, UNCHECKED = 16 };     /* what is other in a new dataset */
    enum { MISSING = 1, GROUP, SOFT, DANGLING, ALIAS, ELSEWHERE, A_TYPE };
    static const struct { const char *name; uint8_t at[16]; size_t n; } files[] = {
        { "sound", { 0 }, 0 },
        { "step_negative", { NUMBER, STEP, MINUS_ONE }, 3 },             { "world_2_62", { NUMBER, WORLD_SIZE, TWO_TO_62 }, 3 },
        { "classes_2_40", { NUMBER, CLASSES, TWO_TO_40 }, 3 },           { "slots_many", { NUMBER, N_SLOTS, SMALL + 5 }, 3 },
        { "datasets_most", { NUMBER, DATASETS, INT64_MOST }, 3 },        { "seconds_nan", { NUMBER, SECONDS, 0 }, 3 },
        { "model_no_end", { NUMBER, MODEL_NAME, 0, 200, 0 }, 5 },        { "options_empty", { NUMBER, OPTIONS, 1, 0, 0 }, 5 },
        { "step_thousand", { TYPE, STEP, 6, THOUSAND }, 4 },             { "step_null", { TYPE, STEP, 6, NONE }, 4 },
        { "step_vlen_text", { TYPE, STEP, 20, 0 }, 4 },                  { "seed_float", { TYPE, SEED, 10, 0 }, 4 },
        { "seconds_odd_float", { TYPE, SECONDS, 25, 8, 0, 0, 0 }, 7 },   { "model_vlen_text", { TYPE, MODEL_NAME, 20, 0 }, 4 },
        { "model_pair", { TYPE, MODEL_NAME, 19, 0 }, 4 },                { "options_vlen", { TYPE, OPTIONS, 21, EIGHT_THOUSAND }, 4 },
        { "step_missing", { NO_ATTRIBUTE, STEP }, 2 },                   { "crc_many", { CRC, BN, 1, EIGHT_THOUSAND }, 4 },
        { "crc_pair", { CRC, NAMES, 1, PAIR }, 4 },                      { "crc_null", { CRC, BN, 1, NONE }, 4 },
        { "crc_float", { CRC, BN, 0, 10, 0 }, 5 },                       { "crc_vlen_text", { CRC, BN, 0, 20, THOUSAND }, 5 },
        { "bn_double", { DATASET, BN, OF_TYPE, 10 }, 4 },                { "bn_vlen", { DATASET, BN, OF_TYPE, 21 }, 4 },
        { "bn_vlen_text", { DATASET, BN, OF_TYPE, 20 }, 4 },             { "bn_reference", { DATASET, BN, OF_TYPE, 22 }, 4 },
        { "bn_region", { DATASET, BN, OF_TYPE, 23 }, 4 },                { "bn_opaque", { DATASET, BN, OF_TYPE, 18, 9 }, 5 },
        { "bn_pair", { DATASET, BN, OF_TYPE, 19 }, 4 },                  { "bn_2_40", { DATASET, BN, OF_LENGTH, TWO_TO_40 }, 4 },
        { "bn_2_40_chunked", { DATASET, BN, OF_LENGTH | STORED, TWO_TO_40, 2 }, 5 },
        { "bn_empty", { DATASET, BN, OF_LENGTH, ZERO }, 4 },             { "bn_null", { DATASET, BN, OF_RANK, 0 }, 4 },
        { "bn_scalar", { DATASET, BN, OF_RANK, 1 }, 4 },                 { "bn_32d", { DATASET, BN, OF_RANK, 33 }, 4 },
        { "bn_late", { DATASET, BN, STORED, 1 }, 4 },                    { "bn_chunked", { DATASET, BN, STORED, 2 }, 4 },
        { "bn_compact", { DATASET, BN, STORED, 3 }, 4 },                 { "bn_deflated", { DATASET, BN, STORED, 4 }, 4 },
        { "bn_external", { DATASET, BN, STORED, 5 }, 4 },                { "bn_virtual", { DATASET, BN, STORED, 6 }, 4 },
        { "bn_unlimited", { DATASET, BN, STORED, 7 }, 4 },               { "bn_fletcher", { DATASET, BN, STORED, 8 }, 4 },
        { "bn_unchecked", { DATASET, BN, UNCHECKED }, 3 },               { "names_floats", { DATASET, NAMES, 0 }, 3 },
        { "names_wide", { DATASET, NAMES, OF_TYPE, 14, 255, 255 }, 6 },  { "name_newline", { VALUES, NAMES, 0, 1, 1, '\n' }, 6 },
        { "name_empty", { VALUES, NAMES, 0, 1, 1, 0 }, 6 },              { "value_other", { VALUES, STEM, 9, 1, 1, 77 }, 6 },
        { "value_damaged", { VALUES, EMA_WEIGHT, 9, 1, 0, 77 }, 6 },     { "model_missing", { LINK, MODEL, MISSING, 0 }, 4 },
        { "model_soft", { LINK, MODEL + 64, SOFT, 15 }, 4 },             { "model_dangling", { LINK, MODEL, DANGLING, 0 }, 4 },
        { "model_elsewhere", { LINK, MODEL, ELSEWHERE, 0 }, 4 },         { "model_is_ema", { LINK, MODEL, ALIAS, EMA }, 4 },
        { "model_is_root", { LINK, MODEL, ALIAS, ROOT }, 4 },            { "bn_group", { LINK, BN, GROUP, 0 }, 4 },
        { "bn_a_type", { LINK, BN, A_TYPE, 0 }, 4 },                     { "bn_soft", { LINK, BN + 64, SOFT, 15 }, 4 },
        { "bn_elsewhere", { LINK, BN, ELSEWHERE, 0 }, 4 },               { "names_elsewhere", { LINK, NAMES, ELSEWHERE, 0 }, 4 },
        { "names_group", { LINK, NAMES, GROUP, 0 }, 4 },                 { "bn_is_mean", { LINK, BN, ALIAS, MEAN }, 4 },
        { "slot_is_model", { LINK, MS, ALIAS, MODEL }, 4 },              { "slot_is_root", { LINK, MOM, ALIAS, ROOT }, 4 },
        { "root_64_roots", { LINKS, ROOT, 64, 0, 0, ALIAS - GROUP, ROOT, 'r' }, 8 },
        { "model_64_roots", { LINKS, MODEL, 64, 0, 0, ALIAS - GROUP, ROOT, 'r' }, 8 },
        { "optimizer_64_up", { LINKS, OPTIMIZER, 64, 0, 0, ALIAS - GROUP, OPTIMIZER, 'r' }, 8 },
        { "stem_64_times", { LINKS, EMA, 64, 0, 0, ALIAS - GROUP, STEM, 's' }, 8 },
        { "link_newline", { LINKS, ROOT, 0, 3, 0, GROUP - GROUP, 0, '\n' }, 8 },
        { "link_long", { LINKS, MODEL, 0, 144, 1, ALIAS - GROUP, BN, 'l' }, 8 },
        { "bn_is_bias", { SWAP, BN, BIAS }, 3 },                         { "cut", { SIZE, 1, 10, 0 }, 4 },
        { "grown", { SIZE, 0, 10, 0 }, 4 },
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) put_file(corpus, path_in("checkpoint", files[i].name), files[i].at, files[i].n);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
        return 2;
    }
    corpus = argv[1];
    jpegs();
    pngs();
    others();
    packed();
    checkpoints();
    return 0;
}
