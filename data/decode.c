/* decode.c - from bytes to 8-bit RGB, or a message that says why not.
 *
 * Image folders are full of files that are not what their names say: PNGs called .JPEG (ImageNet has one), HTML pages saved
 * by a crawler, downloads that stopped half way.  So the format is told from the content, and everything that is neither
 * JPEG nor PNG is described, because "is a WebP file" can be acted upon and "cannot decode" cannot.
 *
 * What comes in is hostile until shown otherwise.  The order of every decoder here is therefore
 *
 *     header ─▶ claimed size against max_pixels ─▶ claimed size against the bytes that are there ─▶ memory ─▶ pixels
 *
 * The third step is sound, not a guess: a Huffman-coded JPEG spends at least one bit on each 8x8 block, and deflate packs
 * at most 1032 bytes into one, so a file that claims more than that cannot be whole.  (Of arithmetic coding, which has no
 * such bound, less than a sixteenth of a bit a block is refused, though it could be an empty sheet.)  It keeps the memory taken within a
 * constant factor of the file's size. */
#include "decode.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool starts(const uint8_t *bytes, size_t n, const char *magic, size_t length)
{
    return n >= length && memcmp(bytes, magic, length) == 0;
}
#define STARTS(magic) starts(bytes, n, magic, sizeof magic - 1)

/* The name of a format that is an image's or a container's, though none that is read here; NULL. */
static const char *foreign(const uint8_t *bytes, size_t n)
{
    if (STARTS("GIF87a") || STARTS("GIF89a"))                           return "a GIF";
    if (STARTS("BM") && n > 26)                                         return "a BMP";
    if (STARTS("RIFF") && n >= 12 && memcmp(bytes + 8, "WEBP", 4) == 0) return "a WebP";
    if (STARTS("II*\0") || STARTS("MM\0*"))                             return "a TIFF";
    if (n >= 12 && memcmp(bytes + 4, "ftyp", 4) == 0)                   return "an MP4, HEIC or AVIF";
    if (STARTS("\0\0\0\14jP  ") || STARTS("\xff\x4f\xff\x51"))          return "a JPEG 2000";
    return NULL;
}

/* Says in words what a file that is no image holds. */
static void describe(const uint8_t *bytes, size_t n, char *text, size_t room)
{
    if (n == 0)                               { snprintf(text, room, "the file is empty"); return; }
    if (STARTS("\0\5\26\7"))                  { snprintf(text, room, "macOS metadata (AppleDouble)"); return; }
    if (STARTS("\x1f\x8b") || STARTS("PK\3\4")) { snprintf(text, room, "a compressed archive"); return; }

    size_t zeros = 0, printable = 0;
    const size_t looked = n < 4096 ? n : 4096;
    for (size_t i = 0; i < n && bytes[i] == 0; i++) zeros++;
    for (size_t i = 0; i < looked; i++) printable += (bytes[i] >= 32 && bytes[i] < 127) || (bytes[i] >= '\t' && bytes[i] <= '\r');
    if (zeros == n) { snprintf(text, room, "%zu zero bytes", n); return; }
    if (printable == looked && n > 1) {
        size_t first = 0;
        while (first < looked && bytes[first] <= 32) first++;
        snprintf(text, room, first < looked && bytes[first] == '<' ? "an HTML or XML page, %zu bytes" : "text, %zu bytes", n);
        return;
    }
    int used = snprintf(text, room, "%zu bytes that begin", n);
    for (size_t i = 0; i < 8 && i < n && used > 0 && (size_t)used < room; i++)
        used += snprintf(text + used, room - (size_t)used, " %02x", bytes[i]);
}

en_status en_decode_claim(const en_decode_job *job, int64_t w, int64_t h)
{
    EN_REQUIRE(w > 0 && h > 0, EN_EDATA, "%s claims %" PRId64 " x %" PRId64 " pixels", job->name, w, h);
    EN_REQUIRE(w <= job->max_pixels / h, EN_EDATA,
               "%s claims %" PRId64 " x %" PRId64 " pixels (%" PRId64 " M), more than the limit of %" PRId64 " (--max-pixels)",
               job->name, w, h, w * h / 1000000, job->max_pixels);
    return EN_OK;
}

en_status en_decode_choose(const en_decode_job *job, int64_t w, int64_t h, int channels, en_crop *crop)
{
    *crop = job->choose ? job->choose(job->context, w, h, channels) : (en_crop){ .w = w, .h = h };
    EN_REQUIRE(crop->x >= 0 && crop->y >= 0 && crop->w > 0 && crop->h > 0 && crop->w <= w && crop->h <= h && crop->x <= w - crop->w
               && crop->y <= h - crop->h, EN_EINVAL,
               "a crop of %" PRId64 " x %" PRId64 " at (%" PRId64 ", %" PRId64 ") is not inside the %" PRId64 " x %" PRId64 " pixels of %s",
               crop->w, crop->h, crop->x, crop->y, w, h, job->name);
    return EN_OK;
}

en_status en_decode_reserve(const en_decode_job *job, int64_t w, int64_t h, int channels)
{
    size_t bytes;
    EN_REQUIRE(!__builtin_mul_overflow((size_t)w * 3, (size_t)h, &bytes), EN_EDATA, "%s claims %" PRId64 " x %" PRId64 " pixels",
               job->name, w, h);
    if (bytes > *job->capacity) {
        const size_t room = *job->capacity > 0 && bytes < EN_KEEP_PIXELS / 2 ? bytes + bytes / 4 : bytes;  /* a stream of parts: grow seldom */
        free(job->img->rgb);                   /* not realloc: there is nothing in it worth copying */
        *job->capacity = 0;
        job->img->rgb = malloc(room);
        EN_REQUIRE(job->img->rgb, EN_ENOMEM, "no memory for the %" PRId64 " x %" PRId64 " pixels of %s", w, h, job->name);
        *job->capacity = room;
    }
    job->img->w = w;
    job->img->h = h;
    job->img->channels = channels;
    return EN_OK;
}

en_status en_decode(const en_decode_job *job)
{
    const uint8_t *bytes = job->bytes;
    const size_t n = job->n;
    if (STARTS("\xff\xd8"))  return en_decode_jpeg(job);
    if (STARTS("\x89PNG"))   return en_decode_png(job);
    const char *format = foreign(bytes, n);
    EN_REQUIRE(!format, EN_EDATA, "%s is %s; JPEG and PNG are read", job->name, format);
    char what[128];
    describe(bytes, n, what, sizeof what);
    return en_raise(EN_EDATA, __FILE__, __LINE__, __func__, "%s is not an image (%s)", job->name, what);
}
