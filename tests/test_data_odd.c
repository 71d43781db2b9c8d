/* The odd files of ImageNet and of every crawl, from the file system to the pixels: a PNG called .JPEG, CMYK, EXIF, gray; and files
 * that cannot be had: a link to nowhere, no permission, a file that shrinks or fails half way.  Each is decoded as data/README.md
 * says or refused with its name and the reason, in bounded memory and time.
 *
 * Oracles: the ink that was encoded and the formula R = C*K/255, in double; libjpeg's own four channels; the same picture without
 * what makes it odd.  Linked with --wrap=read, so that a file can change between two reads of the same call. */
#define _GNU_SOURCE
#include "data_help.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <jpeglib.h>
#include <png.h>

#if defined __SANITIZE_ADDRESS__
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

static char *dir;

static int setup(void **state)    { (void)state; dir = temp_open(); return 0; }
static int teardown(void **state) { (void)state; temp_close(dir); return 0; }

static en_image decoded(const char *name, const bytes *b)
{
    en_image img;
    en_error_clear();
    if (en_image_decode(name, b->at, b->n, 0, &img) != EN_OK) fail_msg("%s", en_error_message());
    return img;
}

static void assert_same_picture(const char *name, const bytes *odd, const bytes *plain)
{
    en_image a = decoded(name, odd), b = decoded("plain", plain);
    if (a.w != b.w || a.h != b.h || a.channels != b.channels) fail_msg("%s: %d x %d x %d", name, (int)a.w, (int)a.h, a.channels);
    if (memcmp(a.rgb, b.rgb, (size_t)(a.w * a.h * 3)) != 0) fail_msg("%s: other pixels", name);
    en_image_free(&a);
    en_image_free(&b);
}

/* ---- CMYK ---- */

/* 81 patches of 8 x 8 pixels, all combinations of no, half and full ink. */
enum { PATCH = 8, GRID = 9, SIDE = PATCH * GRID };
static int ink_of(int x, int y, int d)
{
    static const int amount[3] = { 0, 128, 255 };
    const int patch = y / PATCH * GRID + x / PATCH, third[4] = { 1, 3, 9, 27 };
    return amount[patch / third[d] % 3];
}

typedef struct { const char *name; bool adobe, ycck, progressive; int tolerance; } cmyk_kind;

/* Quality 100, no subsampling, patches on block borders: each block is its DC coefficient, in steps of 1/8 level. */
static bytes make_cmyk(const cmyk_kind *kind)
{
    struct jpeg_compress_struct c;
    struct jpeg_error_mgr errors;
    unsigned char *at = NULL;
    unsigned long n = 0;
    c.err = jpeg_std_error(&errors);
    jpeg_create_compress(&c);
    jpeg_mem_dest(&c, &at, &n);
    c.image_width = c.image_height = SIDE;
    c.input_components = 4;
    c.in_color_space = JCS_CMYK;
    jpeg_set_defaults(&c);
    jpeg_set_colorspace(&c, kind->ycck ? JCS_YCCK : JCS_CMYK);
    for (int d = 0; d < 4; d++) c.comp_info[d].h_samp_factor = c.comp_info[d].v_samp_factor = 1;
    jpeg_set_quality(&c, 100, TRUE);
    if (kind->progressive) jpeg_simple_progression(&c);
    c.write_Adobe_marker = kind->adobe;
    jpeg_start_compress(&c, TRUE);
    for (int y = 0; y < SIDE; y++) {
        uint8_t row[SIDE * 4];
        for (int x = 0; x < SIDE; x++)
            for (int d = 0; d < 4; d++) row[4 * x + d] = (uint8_t)(kind->adobe ? 255 - ink_of(x, y, d) : ink_of(x, y, d));
        JSAMPROW rows = row;
        jpeg_write_scanlines(&c, &rows, 1);
    }
    jpeg_finish_compress(&c);
    jpeg_destroy_compress(&c);
    return (bytes){ at, n };
}

/* The four channels as stored; owned by the caller. */
static uint8_t *raw_cmyk(const bytes *b)
{
    struct jpeg_decompress_struct d;
    struct jpeg_error_mgr errors;
    d.err = jpeg_std_error(&errors);
    jpeg_create_decompress(&d);
    jpeg_mem_src(&d, b->at, b->n);
    jpeg_read_header(&d, TRUE);
    d.out_color_space = JCS_CMYK;
    jpeg_start_decompress(&d);
    uint8_t *all = malloc((size_t)SIDE * SIDE * 4);
    while (d.output_scanline < d.output_height) {
        JSAMPROW row = all + (size_t)d.output_scanline * SIDE * 4;
        jpeg_read_scanlines(&d, &row, 1);
    }
    jpeg_finish_decompress(&d);
    jpeg_destroy_decompress(&d);
    return all;
}

/* Two claims.  Against libjpeg's channels, exactly: C*K/255 to nearest has no ties, 255 being odd.  Against the ink: a DC coefficient
 * in 1/8 levels and the IDCT's rounding leave each channel within 1 level, and C*K/255 within 2 + 1/2; YCCK adds the rounding of its
 * conversion, (1/2)*(1 + 1.772) levels, there and back: within 3 levels, or 4 + 1/2. */
static void cmyk_is_light_through_colour_and_black(void **state)
{
    (void)state;
    static const cmyk_kind kinds[] = { { "adobe", true, false, false, 3 },          { "adobe, progressive", true, false, true, 3 },
                                       { "adobe, YCCK", true, true, false, 5 },     { "plain", false, false, false, 3 },
                                       { "plain, progressive", false, false, true, 3 } };
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        bytes b = make_cmyk(&kinds[k]);
        en_image img = decoded(kinds[k].name, &b);
        assert_true(img.w == SIDE && img.h == SIDE && img.channels == 4);
        uint8_t *raw = raw_cmyk(&b);
        for (int y = 0; y < SIDE; y++)
            for (int x = 0; x < SIDE; x++)
                for (int d = 0; d < 3; d++) {
                    const int i = y * SIDE + x, got = img.rgb[3 * i + d];
                    const double c = raw[4 * i + d], black = raw[4 * i + 3];
                    const double stored = kinds[k].adobe ? c * black / 255 : (255 - c) * (255 - black) / 255;
                    if (got != (int)floor(stored + 0.5)) fail_msg("%s at (%d,%d,%d): %d, not %.3f", kinds[k].name, x, y, d, got, stored);
                    const double ink = (255.0 - ink_of(x, y, d)) * (255 - ink_of(x, y, 3)) / 255;
                    if (fabs(got - ink) > kinds[k].tolerance)
                        fail_msg("%s at (%d,%d,%d): %d, and the ink says %.1f", kinds[k].name, x, y, d, got, ink);
                }
        free(raw);
        en_image_free(&img);
        bytes_free(&b);
    }
}

/* ---- metadata ---- */

/* An APP1 segment: TIFF in either byte order with Orientation, and another JPEG behind it as the thumbnail of a camera. */
static void insert_exif(bytes *b, bool big, int orientation, const bytes *thumbnail)
{
    uint8_t s[36] = { 0xff, 0xe1, 0, 0, 'E', 'x', 'i', 'f', 0, 0 };
    const uint8_t little_tiff[] = { 'I', 'I', 42, 0, 8, 0, 0, 0, 1, 0, 0x12, 1, 3, 0, 1, 0, 0, 0, (uint8_t)orientation, 0, 0, 0, 0, 0, 0, 0 };
    const uint8_t big_tiff[] = { 'M', 'M', 0, 42, 0, 0, 0, 8, 0, 1, 1, 0x12, 0, 3, 0, 0, 0, 1, 0, (uint8_t)orientation, 0, 0, 0, 0, 0, 0 };
    memcpy(s + 10, big ? big_tiff : little_tiff, 26);
    const size_t n = sizeof s - 2 + (thumbnail ? thumbnail->n : 0);
    assert_true(n < 65536);
    s[2] = (uint8_t)(n >> 8), s[3] = (uint8_t)n;
    if (thumbnail) bytes_insert(b, 2, thumbnail->at, thumbnail->n);
    bytes_insert(b, 2, s, sizeof s);
}

static void exif_changes_nothing(void **state)
{
    (void)state;
    uint8_t *rgb = make_picture(60, 35, 2);
    bytes plain = make_jpeg(rgb, 60, 35, &(jpeg_kind){ .components = 3 }), small = make_jpeg(rgb, 16, 16, &(jpeg_kind){ .components = 1 });
    for (int orientation = 0; orientation <= 9; orientation++)         /* 0 and 9 are illegal, and occur */
        for (int big = 0; big < 2; big++)
            for (int thumbnail = 0; thumbnail < 2; thumbnail++) {
                bytes b = bytes_copy(&plain);
                insert_exif(&b, big, orientation, thumbnail ? &small : NULL);
                char name[64];
                snprintf(name, sizeof name, "orientation %d, %s%s", orientation, big ? "MM" : "II", thumbnail ? ", thumbnail" : "");
                assert_same_picture(name, &b, &plain);
                bytes_free(&b);
            }
    bytes_free(&plain);
    bytes_free(&small);
    free(rgb);
}

/* Megabytes that are no pixels: sixty full APP segments, and comments that inflate to 128 MB if anybody inflates them. */
static bytes of_many_segments(const bytes *jpeg)
{
    enum { FULL = 65535, SEGMENTS = 60 };
    uint8_t *all = calloc(SEGMENTS, FULL + 2);
    for (size_t i = 0; i < SEGMENTS; i++) memcpy(all + i * (FULL + 2), (uint8_t[]){ 0xff, (uint8_t)(0xe1 + i % 13), 0xff, 0xff }, 4);
    bytes b = bytes_copy(jpeg);
    bytes_insert(&b, 2, all, SEGMENTS * (FULL + 2));
    free(all);
    return b;
}

static void put_be32(uint8_t *p, size_t v) { for (int i = 0; i < 4; i++) p[i] = (uint8_t)(v >> (24 - 8 * i)); }

static bytes with_inflating_texts(const bytes *png)
{
    enum { W = 16384, H = 8192 };
    uint8_t *zeros = calloc(1, W);
    bytes big = make_png(zeros, 0, W, H, PNG_COLOR_TYPE_GRAY, 8, 0), stream = { 0 };       /* one row, H times */
    free(zeros);
    for (size_t at = 8; at + 12 < big.n;) {    /* what its IDATs hold is a stream of 128 MB */
        const size_t n = (size_t)big.at[at] << 24 | (size_t)big.at[at + 1] << 16 | (size_t)big.at[at + 2] << 8 | big.at[at + 3];
        if (memcmp(big.at + at + 4, "IDAT", 4) == 0) bytes_insert(&stream, stream.n, big.at + at + 8, n);
        at += n + 12;
    }
    bytes_free(&big);
    static const char *const kinds[] = { "zTXtc\0\0", "iCCPp\0\0", "iTXtc\0\1\0\0\0" };
    static const size_t head[] = { 7, 7, 10 };
    bytes b = bytes_copy(png);
    for (int k = 0; k < 3; k++) {
        bytes chunk = { 0 };
        bytes_insert(&chunk, 0, "\0\0\0\0", 4);
        bytes_insert(&chunk, 4, kinds[k], head[k]);
        bytes_insert(&chunk, chunk.n, stream.at, stream.n);
        put_be32(chunk.at, chunk.n - 8);
        uint32_t crc = 0xffffffff;
        for (size_t i = 4; i < chunk.n; i++) {
            crc ^= chunk.at[i];
            for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
        }
        bytes_insert(&chunk, chunk.n, "\0\0\0\0", 4);
        put_be32(chunk.at + chunk.n - 4, ~crc);
        bytes_insert(&b, 33, chunk.at, chunk.n);       /* behind IHDR */
        bytes_free(&chunk);
    }
    bytes_free(&stream);
    return b;
}

static bytes odd[8];

static int decode_within_limits(void)          /* in a child; which one failed, or 0 */
{
    for (int i = 0; odd[i].at; i += 2) {
        en_image a, b;
        if (en_image_decode("odd", odd[i].at, odd[i].n, 0, &a) != EN_OK || en_image_decode("plain", odd[i + 1].at, odd[i + 1].n, 0, &b) != EN_OK) {
            fprintf(stderr, "%s\n", en_error_message());
            return i + 1;
        }
        if (a.w != b.w || a.h != b.h || memcmp(a.rgb, b.rgb, (size_t)(a.w * a.h * 3)) != 0) return i + 2;
        en_image_free(&a);
        en_image_free(&b);
    }
    return 0;
}

/* What the text bombs hold (128 MB) does not fit into 64 MB; the pictures take kilobytes.  The sanitizer's shadow takes terabytes of
 * addresses, so there the growth of what is resident is looked at instead. */
static void megabytes_of_metadata_cost_neither_memory_nor_time(void **state)
{
    (void)state;
    uint8_t *rgb = make_picture(64, 48, 2);
    odd[1] = make_jpeg(rgb, 64, 48, &(jpeg_kind){ .components = 3 });
    odd[0] = of_many_segments(&odd[1]);
    odd[3] = make_png(rgb, 64 * 3, 64, 48, PNG_COLOR_TYPE_RGB, 8, 0);
    odd[2] = with_inflating_texts(&odd[3]);
    assert_true(odd[2].n > 100000 && odd[0].n > 3900000);
    const pid_t child = fork();
    if (child == 0) {
        struct rusage before, after;
        getrusage(RUSAGE_SELF, &before);
        if (!SANITIZED) setrlimit(RLIMIT_DATA, &(struct rlimit){ 64l << 20, 64l << 20 });
        setrlimit(RLIMIT_CPU, &(struct rlimit){ 20, 20 });
        int wrong = decode_within_limits();
        getrusage(RUSAGE_SELF, &after);
        if (after.ru_maxrss - before.ru_maxrss > 64 << 10) wrong = 99;         /* kB */
        _exit(wrong);
    }
    int status;
    waitpid(child, &status, 0);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) fail_msg("status %x", (unsigned)status);
    for (int i = 0; i < 8; i++) bytes_free(&odd[i]);
    free(rgb);
}

/* Arithmetic coding has no least number of bits: what a marker ends goes on as zeros, without a warning.  An empty sheet of 169 million
 * pixels in 400 bytes would take a gigabyte, so it is refused before; one of 0.2 million is decoded. */
static void an_empty_sheet_takes_no_gigabyte(void **state)
{
    (void)state;
    uint8_t *white = malloc(500 * 375 * 3);
    memset(white, 255, 500 * 375 * 3);
    for (int progressive = 0; progressive < 2; progressive++) {
        bytes b = make_jpeg(white, 500, 375, &(jpeg_kind){ .components = 3, .arithmetic = true, .progressive = progressive });
        en_image img = decoded("sheet", &b);
        for (int64_t i = 0; i < img.w * img.h * 3; i++) assert_true(img.rgb[i] >= 254);        /* the IDCT's rounding */
        en_image_free(&img);
        size_t at = 2;
        while (b.at[at + 1] != 0xc9 && b.at[at + 1] != 0xca) at += 2 + (size_t)(b.at[at + 2] << 8 | b.at[at + 3]);
        b.at[at + 5] = b.at[at + 7] = 13000 >> 8, b.at[at + 6] = b.at[at + 8] = 13000 & 255;
        en_error_clear();
        assert_int_equal(en_image_decode("sheet.jpg", b.at, b.n, 0, &img), EN_EDATA);
        assert_non_null(strstr(en_error_message(), "sheet.jpg is truncated or damaged (it claims 13000 x 13000 pixels"));
        bytes_free(&b);
    }
    free(white);
}

/* ---- through the file system ---- */

/* While `saboteur` is set, every read of this process is preceded by it. */
static int (*saboteur)(int fd);
ssize_t __real_read(int fd, void *buf, size_t n);
ssize_t __wrap_read(int fd, void *buf, size_t n);
ssize_t __wrap_read(int fd, void *buf, size_t n)
{
    if (saboteur) {
        const int error = saboteur(fd);
        if (error) { errno = error; return -1; }
        return __real_read(fd, buf, n < 700 ? n : 700);        /* in pieces, as a file system under load may */
    }
    return __real_read(fd, buf, n);
}

static int reads;
static const char *victim(void) { return path_in(dir, "a/x.JPEG"); }
static int shrinks(int fd)
{
    (void)fd;
    return ++reads == 2 && truncate(victim(), 900) != 0 ? errno : 0;
}
static int grows(int fd)
{
    (void)fd;
    if (++reads != 2) return 0;
    FILE *f = fopen(victim(), "ab");
    return f && fputs("more", f) >= 0 && fclose(f) == 0 ? 0 : errno;
}
static int fails(int fd)    { (void)fd; return ++reads == 2 ? EIO : 0; }
static int stutters(int fd) { (void)fd; return ++reads % 2 ? EINTR : 0; }

static void a_file_that_changes_while_it_is_read(void **state)
{
    (void)state;
    uint8_t *rgb = make_picture(200, 150, 3);
    bytes b = make_jpeg(rgb, 200, 150, &(jpeg_kind){ .components = 3 });
    assert_true(b.n > 2100);                   /* three pieces at least */
    static const struct { const char *what; int (*how)(int fd); en_status status; const char *says; } cases[] = {
        { "shrinks", shrinks, EN_EDATA, "shrank while it was read" }, { "fails", fails, EN_EIO, "Input/output error" },
        { "grows", grows, EN_OK, "" },                                { "stutters", stutters, EN_OK, "" } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        put_file(dir, "a/x.JPEG", b.at, b.n);
        en_dataset *ds;
        OK(en_dataset_open(dir, "train", NULL, &ds));
        uint8_t *buf = NULL;
        size_t capacity = 0, n = 0;
        en_error_clear();
        reads = 0;
        saboteur = cases[i].how;
        const en_status status = ds->ops->read(ds, 0, &buf, &capacity, &n);
        saboteur = NULL;
        if (status != cases[i].status || !strstr(en_error_message(), cases[i].says))
            fail_msg("%s: status %d, \"%s\"", cases[i].what, status, en_error_message());
        assert_true(reads >= 2);               /* or nothing was sabotaged */
        if (status != EN_OK) assert_non_null(strstr(en_error_message(), "a/x.JPEG"));
        else assert_true(n == b.n && memcmp(buf, b.at, n) == 0);       /* as long as it was when it was opened */
        free(buf);
        en_dataset_close(ds);
    }
    bytes_free(&b);
    free(rgb);
}

/* Two gigabytes that take no room on the disk must take none in memory. */
static void a_huge_file_is_refused_before_memory_is_taken(void **state)
{
    (void)state;
    put_file(dir, "a/x.JPEG", "\xff\xd8", 2);
    if (truncate(path_in(dir, "a/x.JPEG"), (off_t)2 << 30) != 0) skip();
    en_dataset *ds;
    OK(en_dataset_open(dir, "train", NULL, &ds));
    uint8_t *buf = NULL;
    size_t capacity = 0, n = 0;
    en_error_clear();
    assert_int_equal(ds->ops->read(ds, 0, &buf, &capacity, &n), EN_EDATA);
    assert_non_null(strstr(en_error_message(), "a/x.JPEG is too large"));
    assert_null(buf);
    en_dataset_close(ds);
}

/* A folder as ImageNet's, with the names of its odd files, through the loader: what is sound arrives, in order, equal to the same
 * picture without its oddity; what is not is named with its reason, and left out of the evaluation. */
enum { SIZE = 32, ELEMS = SIZE * SIZE * 3, SOUND = 5 };
static float  got[SOUND * ELEMS];
static int    n_got;
static void evaluate(void *unused)
{
    (void)unused;
    en_dataset *ds;
    en_loader *l;
    OK(en_dataset_open(dir, "train", NULL, &ds));
    const bool root = geteuid() == 0;          /* who may read everything */
    if (root && seteuid(65534) != 0) fail_msg("seteuid");
    OK(en_loader_open(&(en_loader_config){ .dataset = ds, .shard = { .global_batch = 32, .accum = 1, .rank = 0, .world_size = 1 },
                                           .size = SIZE, .workers = 2, .ahead = 1, .max_bad_fraction = 1,
                                           .normalise = en_imagenet_normalise }, &l));
    en_batch b;
    OK(en_loader_next(l, &b));
    n_got = (int)b.n;
    memcpy(got, b.images, sizeof *got * ELEMS * (size_t)(n_got < SOUND ? n_got : SOUND));
    en_loader_close(l);
    if (root && seteuid(0) != 0) fail_msg("seteuid");
    en_dataset_close(ds);
}

static void a_folder_of_odd_files_through_the_loader(void **state)
{
    (void)state;
    enum { W = 50, H = 40 };
    uint8_t *rgb = make_picture(W, H, 6);
    const jpeg_kind plain_kind = { .components = 3, .quality = 90 };
    bytes jpeg = make_jpeg(rgb, W, H, &plain_kind), png = make_png(rgb, W * 3, W, H, PNG_COLOR_TYPE_RGB, 8, 0),
          cmyk = make_cmyk(&(cmyk_kind){ .adobe = true }), gray = make_jpeg(rgb, W, H, &(jpeg_kind){ .components = 1 }), exif = bytes_copy(&jpeg);
    insert_exif(&exif, true, 6, NULL);
    const bytes *const sound[SOUND] = { &cmyk, &exif, &gray, &png, &jpeg };
    put_file(dir, "n01739381/n01739381_1309.JPEG", cmyk.at, cmyk.n);
    put_file(dir, "n01739381/n01739381_2.JPEG", exif.at, exif.n);
    put_file(dir, "n01739381/n01739381_3.JPEG", gray.at, gray.n);
    put_file(dir, "n02105855/n02105855_2933.JPEG", png.at, png.n);     /* the PNG of that name */
    put_file(dir, "n02105855/n02105855_3.png", jpeg.at, jpeg.n);
    static const struct { const char *file, *says; } bad[] = {
        { "n03000000/empty.JPEG", "is not an image (the file is empty)" },      { "n03000000/half.JPEG", "is truncated" },
        { "n03000000/link.JPEG", "a symbolic link that leads nowhere" },        { "n03000000/locked.JPEG", "Permission denied" },
        { "n03000000/page.JPEG", "is not an image (an HTML or XML page" },      { "n03000000/pipe.JPEG", "is not a regular file" },
        { "n03000000/webp.JPEG", "is a WebP" } };
    put_file(dir, bad[0].file, "", 0);
    put_file(dir, bad[1].file, jpeg.at, jpeg.n / 2);
    if (symlink("../gone.JPEG", path_in(dir, bad[2].file)) != 0) fail_msg("symlink");
    put_file(dir, bad[3].file, jpeg.at, jpeg.n);
    chmod(path_in(dir, bad[3].file), 0);
    put_file(dir, bad[4].file, "<html><body>429 Too Many Requests", 33);
    if (mkfifo(path_in(dir, bad[5].file), 0644) != 0) fail_msg("mkfifo");       /* must not wait for a writer */
    put_file(dir, bad[6].file, "RIFF\1\2\3\4WEBPVP8 ", 16);

    char *text = stderr_of(evaluate, NULL);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char line[4500];
        snprintf(line, sizeof line, "%s", path_in(dir, bad[i].file));
        const char *named = strstr(text, line), *end = named ? strchr(named, '\n') : NULL, *reason = named ? strstr(named, bad[i].says) : NULL;
        if (!reason || (end && reason > end)) fail_msg("%s: no \"%s\" in\n%s", line, bad[i].says, text);
    }
    free(text);
    assert_int_equal(n_got, SOUND);
    for (int i = 0; i < SOUND; i++) {
        float want[ELEMS];
        en_image img = decoded("sound", sound[i]);
        const en_crop crop = en_crop_eval(img.w, img.h, SIZE);
        en_resize_bicubic(&img, &crop, SIZE, &en_imagenet_normalise, want);
        if (memcmp(got + i * ELEMS, want, sizeof want) != 0) fail_msg("image %d differs", i);
        en_image_free(&img);
    }
    assert_memory_equal(got + ELEMS, got + 4 * ELEMS, ELEMS * sizeof *got);     /* with EXIF as without */
    en_image g = decoded("gray", &gray);
    assert_int_equal(g.channels, 1);
    for (int i = 0; i < W * H; i++) assert_true(g.rgb[3 * i] == g.rgb[3 * i + 1] && g.rgb[3 * i] == g.rgb[3 * i + 2]);
    en_image_free(&g);
    en_image p = decoded("png", &png);
    assert_memory_equal(p.rgb, rgb, W * H * 3);
    en_image_free(&p);
    bytes *all[] = { &jpeg, &png, &cmyk, &gray, &exif };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) bytes_free(all[i]);
    free(rgb);
}

#define ON_A_FOLDER(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cmyk_is_light_through_colour_and_black),
        cmocka_unit_test(exif_changes_nothing),
        cmocka_unit_test(megabytes_of_metadata_cost_neither_memory_nor_time),
        cmocka_unit_test(an_empty_sheet_takes_no_gigabyte),
        ON_A_FOLDER(a_file_that_changes_while_it_is_read),
        ON_A_FOLDER(a_huge_file_is_refused_before_memory_is_taken),
        ON_A_FOLDER(a_folder_of_odd_files_through_the_loader),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
