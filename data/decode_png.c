/* decode_png.c - PNG through libpng, any colour type and depth, to 8-bit RGB.
 *
 * Pixels of a PNG are protected by a CRC a chunk and a checksum over all, so what is damaged is an error there, not a
 * warning; libpng's warnings are about metadata.  Of that only the palette and transparency are read at all: profiles and
 * texts are skipped unparsed, and gamma is not applied, as every training pipeline we know of takes the samples as stored. */
#include "decode.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <png.h>

struct reader {                                /* changes between setjmp and longjmp: see decode_jpeg.c */
    png_structp          png;
    png_infop            info;
    const en_decode_job *job;
    size_t               at;                   /* bytes read */
    en_status            status;
    char                 reason[192];
    bool                 truncated;
};

static void on_error(png_structp png, png_const_charp message)
{
    struct reader *r = png_get_error_ptr(png);
    snprintf(r->reason, sizeof r->reason, "%s", message);
    png_longjmp(png, 1);
}

static void on_warning(png_structp png, png_const_charp message) { (void)png; (void)message; }

static void on_read(png_structp png, png_bytep out, png_size_t want)
{
    struct reader *r = png_get_io_ptr(png);
    if (want > r->job->n - r->at) {
        r->truncated = true;
        png_error(png, "the file ends early");
    }
    memcpy(out, r->job->bytes + r->at, want);
    r->at += want;
}

/* Pieces of the arena: libpng gives them back one by one, and we all at once. */
static png_voidp on_take(png_structp png, png_alloc_size_t bytes) { return en_arena_take(png_get_mem_ptr(png), bytes); }
static void on_give_back(png_structp png, png_voidp piece) { (void)png; (void)piece; }

static uint32_t big_endian(const uint8_t *p) { return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3]; }

static en_status read_picture(struct reader *r)
{
    const en_decode_job *job = r->job;
    png_set_user_limits(r->png, 0x7fffffff, 0x7fffffff);       /* ours is checked first */
    png_set_keep_unknown_chunks(r->png, PNG_HANDLE_CHUNK_NEVER, NULL, -1);
    png_set_read_fn(r->png, r, on_read);
    png_read_info(r->png, r->info);

    const int64_t w = png_get_image_width(r->png, r->info), h = png_get_image_height(r->png, r->info);
    const int channels = png_get_channels(r->png, r->info);
    EN_TRY(en_decode_claim(job, w, h), "reading its header");
    if (job->header_only) {
        *job->img = (en_image){ .w = w, .h = h, .channels = channels };
        return EN_OK;
    }
    /* deflate: a match of 258 bytes takes at least two bits, so 1032 to 1.  Interlacing only adds padding and filter bytes. */
    const uint64_t stored = (uint64_t)png_get_rowbytes(r->png, r->info) * (uint64_t)h;
    EN_REQUIRE(stored / 1032 <= job->n, EN_EDATA,
               "%s is truncated or damaged (it claims %" PRId64 " x %" PRId64 " pixels, %" PRIu64 " bytes of rows, in %zu bytes)",
               job->name, w, h, stored, job->n);

    EN_TRY(en_decode_choose(job, w, h, channels, job->crop), "choosing what to look at");
    EN_TRY(en_decode_reserve(job, w, h, channels), "reading its header");

    png_set_expand(r->png);                    /* palette to RGB, 1, 2 and 4 bits to 8, tRNS to alpha */
    png_set_strip_16(r->png);                  /* >> 8; Pillow clips instead, and shows white         */
    png_set_gray_to_rgb(r->png);
    png_set_strip_alpha(r->png);
    const int passes = png_set_interlace_handling(r->png);
    png_read_update_info(r->png, r->info);
    EN_REQUIRE(png_get_rowbytes(r->png, r->info) == (size_t)w * 3, EN_EINVAL, "%s: libpng makes rows of %zu bytes, not %zu",
               job->name, png_get_rowbytes(r->png, r->info), (size_t)w * 3);
    for (int pass = 0; pass < passes; pass++)
        for (int64_t y = 0; y < h; y++) png_read_row(r->png, job->img->rgb + (size_t)y * (size_t)w * 3, NULL);
    png_read_end(r->png, NULL);                /* the checksum over all, and IEND */
    return EN_OK;
}

static bool guarded(struct reader *r)
{
    if (setjmp(png_jmpbuf(r->png))) return false;
    r->status = read_picture(r);
    return true;
}

en_status en_decode_png(const en_decode_job *job)
{
    /* IHDR is the first chunk by definition.  Looked at here because libpng says only "Invalid IHDR data". */
    if (job->n >= 24 && memcmp(job->bytes + 12, "IHDR", 4) == 0) {
        const int64_t w = big_endian(job->bytes + 16), h = big_endian(job->bytes + 20);
        EN_REQUIRE(w > 0 && h > 0 && w <= job->max_pixels / h, EN_EDATA,
                   "%s claims %" PRId64 " x %" PRId64 " pixels; the limit is %" PRId64 " (--max-pixels)", job->name, w, h,
                   job->max_pixels);
    }
    struct reader r;
    memset(&r, 0, sizeof r);
    r.job = job;
    r.png = png_create_read_struct_2(PNG_LIBPNG_VER_STRING, &r, on_error, on_warning, job->arena, on_take, on_give_back);
    if (r.png) r.info = png_create_info_struct(r.png);
    if (!r.info) {
        png_destroy_read_struct(&r.png, &r.info, NULL);
        en_arena_reset(job->arena, EN_KEEP_ARENA);
        return en_raise(EN_ENOMEM, __FILE__, __LINE__, __func__, "no memory to read %s", job->name);
    }
    const bool returned = guarded(&r);
    png_destroy_read_struct(&r.png, &r.info, NULL);
    en_arena_reset(job->arena, EN_KEEP_ARENA);
    if (returned) return r.status;
    return en_raise(EN_EDATA, __FILE__, __LINE__, __func__, "%s is %s (PNG: %s, %zu bytes)", job->name,
                    r.truncated ? "truncated" : "damaged", r.reason, job->n);
}
