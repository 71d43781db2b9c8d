#define _GNU_SOURCE
#include "data_help.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jpeglib.h>
#include <png.h>

void bytes_free(bytes *b) { free(b->at); *b = (bytes){ 0 }; }

bytes bytes_copy(const bytes *b)
{
    bytes c = { malloc(b->n ? b->n : 1), b->n };
    memcpy(c.at, b->at, b->n);
    return c;
}

void bytes_insert(bytes *b, size_t at, const void *what, size_t n)
{
    b->at = realloc(b->at, b->n + n);
    memmove(b->at + at + n, b->at + at, b->n - at);
    memcpy(b->at + at, what, n);
    b->n += n;
}

bytes slurp(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("%s: %s", path, strerror(errno));
    fseek(f, 0, SEEK_END);
    bytes b = { 0 };
    b.n = (size_t)ftell(f);
    b.at = malloc(b.n ? b.n : 1);
    rewind(f);
    if (fread(b.at, 1, b.n, f) != b.n) fail_msg("%s", path);
    fclose(f);
    return b;
}

uint8_t *make_picture(int w, int h, unsigned seed)
{
    uint8_t *rgb = malloc((size_t)w * (size_t)h * 3), *p = rgb;
    const double a = 0.02 + 0.01 * (seed % 7), b = 0.03 + 0.007 * (seed % 5);
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++) {
            const int box = (x / 40 + y / 30 + (int)seed) % 3 == 0 ? 40 : 0;
            *p++ = (uint8_t)(128 + 80 * sin(a * x + seed) + (box >> 1));
            *p++ = (uint8_t)(110 + 60 * cos(b * y) + box);
            *p++ = (uint8_t)(100 + 70 * sin(a * x + b * y));
        }
    return rgb;
}

bytes make_jpeg(const uint8_t *rgb, int w, int h, const jpeg_kind *kind)
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
    c.input_components = kind->components;
    c.in_color_space = kind->components == 1 ? JCS_GRAYSCALE : kind->components == 3 ? JCS_RGB : JCS_CMYK;
    jpeg_set_defaults(&c);
    if (kind->rgb) jpeg_set_colorspace(&c, JCS_RGB);
    jpeg_set_quality(&c, kind->quality ? kind->quality : 95, TRUE);
    if (kind->luma_h) { c.comp_info[0].h_samp_factor = kind->luma_h; c.comp_info[0].v_samp_factor = kind->luma_v; }
    if (kind->progressive) jpeg_simple_progression(&c);
    jpeg_scan_info script[256];
    if (kind->many_scans) {                    /* each coefficient of each component by itself: legal, and 190 scans */
        int s = 0;
        script[s++] = (jpeg_scan_info){ 3, { 0, 1, 2 }, 0, 0, 0, 0 };
        for (int k = 1; k < 64; k++)
            for (int d = 0; d < 3; d++) script[s++] = (jpeg_scan_info){ 1, { d }, k, k, 0, 0 };
        c.scan_info = script;
        c.num_scans = s;
    }
    c.arith_code = kind->arithmetic;
    c.restart_in_rows = kind->restart;
    c.write_Adobe_marker = kind->components == 4 && kind->adobe_inverted;
    jpeg_start_compress(&c, TRUE);
    uint8_t *row = malloc((size_t)w * 4);
    for (int y = 0; y < h; y++) {
        const uint8_t *from = rgb + (size_t)y * (size_t)w * 3;
        for (int x = 0; x < w; x++)
            for (int d = 0; d < kind->components; d++) {
                const uint8_t value = d < 3 ? from[3 * x + d] : 255;       /* CMYK with K = 0: inverted, that is RGB and 255 */
                row[kind->components * x + d] = kind->components == 4 && !kind->adobe_inverted ? (uint8_t)(255 - value) : value;
            }
        JSAMPROW rows = row;
        jpeg_write_scanlines(&c, &rows, 1);
    }
    free(row);
    jpeg_finish_compress(&c);
    jpeg_destroy_compress(&c);
    return (bytes){ at, n };
}

static void png_append(png_structp png, png_bytep from, png_size_t n)
{
    bytes *b = png_get_io_ptr(png);
    bytes_insert(b, b->n, from, n);
}

bytes make_png(const uint8_t *rows, size_t row_bytes, int w, int h, int colour_type, int depth, int interlace)
{
    bytes b = { 0 };
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
    png_infop info = png_create_info_struct(png);
    if (setjmp(png_jmpbuf(png))) abort();
    png_set_write_fn(png, &b, png_append, NULL);
    png_set_IHDR(png, info, (png_uint_32)w, (png_uint_32)h, depth, colour_type, interlace, PNG_COMPRESSION_TYPE_DEFAULT,
                 PNG_FILTER_TYPE_DEFAULT);
    if (colour_type == PNG_COLOR_TYPE_PALETTE) {
        const png_color colours[4] = { { 10, 20, 30 }, { 200, 100, 50 }, { 0, 255, 0 }, { 255, 255, 255 } };
        const png_byte alpha[2] = { 255, 0 };
        png_set_PLTE(png, info, colours, 4);
        png_set_tRNS(png, info, alpha, 2, NULL);
    }
    png_write_info(png, info);
    png_bytep *pointers = malloc((size_t)h * sizeof *pointers);
    for (int y = 0; y < h; y++) pointers[y] = (png_bytep)(uintptr_t)(rows + (size_t)y * row_bytes);
    png_write_image(png, pointers);
    png_write_end(png, NULL);
    free(pointers);
    png_destroy_write_struct(&png, &info);
    return b;
}

char *temp_open(void)
{
    const char *base = getenv("TMPDIR");
    char *dir = NULL;
    if (asprintf(&dir, "%s/effnet-test-XXXXXX", base ? base : "/tmp") < 0 || !mkdtemp(dir))
        fail_msg("mkdtemp: %s", strerror(errno));
    chmod(dir, 0755);
    return dir;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

void temp_close(char *dir)
{
    nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    free(dir);
}

const char *path_in(const char *dir, const char *name)
{
    static char path[4][4096];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[turn], "%s/%s", dir, name);
    return path[turn];
}

static void make_parents(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(path, 0755);
        *slash = '/';
    }
}

void put_file(const char *dir, const char *name, const void *what, size_t n)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    make_parents(path);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(what, 1, n, f) != n || fclose(f) != 0) fail_msg("writing %s: %s", path, strerror(errno));
}

void put_folder(const char *dir, const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s/", dir, name);
    make_parents(path);
}

char *stderr_of(void (*f)(void *), void *argument)
{
    fflush(stderr);
    FILE *file = tmpfile();
    const int saved = dup(STDERR_FILENO);
    dup2(fileno(file), STDERR_FILENO);
    f(argument);
    fflush(stderr);
    dup2(saved, STDERR_FILENO);
    close(saved);
    const long n = (fseek(file, 0, SEEK_END), ftell(file));
    rewind(file);
    char *text = calloc((size_t)n + 1, 1);
    if (fread(text, 1, (size_t)n, file) != (size_t)n) text[0] = '\0';
    fclose(file);
    return text;
}

void fail_with_trace(const char *what)
{
    print_error("%s:\n%s", what, en_error_text());
    fail();
    abort();
}
