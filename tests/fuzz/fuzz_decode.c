/* fuzz_decode.c - any bytes as an image file, whole and in part.
 *
 * Promises, whatever the bytes: a picture or EN_EDATA, never another status; a refusal names the file and leaves nothing behind; a
 * picture has the claimed size, within max_pixels.  A part is, bit for bit, that of the whole, from a decoder that has seen all inputs
 * before; at a smaller scale it is at least as large as was asked for.  What is decoded can be resized and shrunk by every kernel.
 * Time and memory are bounded by the driver.
 *
 * Part, scale and kernel follow from a hash of the bytes, so that an input that is a file can be looked at as one. */
#include "fuzz.h"

#include <string.h>

#include "data/image.h"

enum { MAX_PIXELS = 1 << 20, SMALL = 1 << 14 };                /* SMALL: pixels of what is resized, too */

static const char NAME[] = "folder/hostile.jpg";

static void refused(en_status status)
{
    PROMISE(status == EN_EDATA, "status %d: %s", status, en_error_text());
    PROMISE(strstr(en_error_message(), NAME), "\"%s\" does not name the file", en_error_message());
    en_error_clear();
}

static uint64_t hash_of(const uint8_t *data, size_t size)      /* FNV-1a */
{
    uint64_t h = 0xcbf29ce484222325;
    for (size_t i = 0; i < size; i++) h = (h ^ data[i]) * 0x100000001b3;
    return h;
}

static int64_t below(uint64_t *h, int64_t n)
{
    *h = *h * 6364136223846793005 + 1442695040888963407;
    return (int64_t)(*h >> 33) % n;
}

static en_crop some_part(const void *hash, int64_t w, int64_t h, int channels)
{
    uint64_t r = *(const uint64_t *)hash;
    const bool flip = below(&r, 2);
    switch (below(&r, 5)) {
    case 0: return (en_crop){ .w = w, .h = h, .flip = flip };
    case 1: return en_crop_train(w, h, channels, 32, r, 0, 0);
    case 2: return en_crop_eval(w, h, 32);
    case 3: return (en_crop){ .x = below(&r, w), .y = below(&r, h), .w = 1, .h = 1, .flip = flip };
    default: {
        const int64_t x = below(&r, w), y = below(&r, h);
        return (en_crop){ .x = x, .y = y, .w = 1 + below(&r, w - x), .h = 1 + below(&r, h - y), .flip = flip };
    }
    }
}

static void check_inside(const en_crop *c, const en_image *img)
{
    PROMISE(c->x >= 0 && c->y >= 0 && c->w > 0 && c->h > 0 && c->w <= img->w - c->x && c->h <= img->h - c->y,
            "%d+%d, %d+%d of %d x %d", (int)c->x, (int)c->w, (int)c->y, (int)c->h, (int)img->w, (int)img->h);
}

static void check_part(en_decoder *d, const uint8_t *data, size_t size, uint64_t hash, const en_image *whole)
{
    en_image img;
    en_crop got;
    const en_status status = en_decode_crop(d, NAME, data, size, some_part, &hash, 0, &img, &got);
    if (status != EN_OK) {
        PROMISE(!whole->rgb, "the whole is decoded, a part is not: %s", en_error_text());
        refused(status);
        return;
    }
    check_inside(&got, &img);
    if (!whole->rgb) return;                   /* damage below the part */
    const en_crop want = some_part(&hash, whole->w, whole->h, whole->channels);
    PROMISE(got.w == want.w && got.h == want.h && got.flip == want.flip && img.channels == whole->channels, "another part");
    for (int64_t y = 0; y < want.h; y++)
        PROMISE(memcmp(img.rgb + ((got.y + y) * img.w + got.x) * 3, whole->rgb + ((want.y + y) * whole->w + want.x) * 3, (size_t)want.w * 3) == 0,
                "row %d of %d+%d, %d+%d of %d x %d differs", (int)y, (int)want.x, (int)want.w, (int)want.y, (int)want.h, (int)whole->w,
                (int)whole->h);
}

static void check_scaled(en_decoder *d, const uint8_t *data, size_t size, uint64_t hash, const en_image *whole)
{
    const int scale_to = (int)below(&hash, 3) == 0 ? 1 : 1 + (int)below(&hash, 40);
    en_image img;
    en_crop got;
    const en_status status = en_decode_crop(d, NAME, data, size, some_part, &hash, scale_to, &img, &got);
    if (status != EN_OK) {
        PROMISE(!whole->rgb, "the whole is decoded, a scaled part is not: %s", en_error_text());
        refused(status);
        return;
    }
    check_inside(&got, &img);
    if (!whole->rgb) return;
    const en_crop want = some_part(&hash, whole->w, whole->h, whole->channels);
    PROMISE((got.w >= scale_to || got.w == want.w) && (got.h >= scale_to || got.h == want.h), "%d x %d of %d x %d, and %d were asked for",
            (int)got.w, (int)got.h, (int)want.w, (int)want.h, scale_to);
    PROMISE(img.w * img.h <= whole->w * whole->h, "scaling made it larger");

    static const en_normalise plain = { { 0, 0, 0 }, { 1, 1, 1 } };
    static float out[40 * 40 * 3];
    static uint8_t bytes[40 * 40 * 3];
    if (img.w * img.h > SMALL) return;
    const en_resize_kernel kernel = (en_resize_kernel)below(&hash, EN_RESIZE_BILINEAR_AA + 1);
    const int side = 1 + (int)below(&hash, 40);
    en_resize(&img, &got, kernel, side, &plain, out);
    for (int i = 0; i < side * side * 3; i++)  /* bicubic weights are within [-0.25, 1.25] in each direction: twice the range is ample */
        PROMISE(out[i] > -512 && out[i] < 768, "%g", (double)out[i]);
    en_resize_bytes(&img, &got, kernel, side, below(&hash, 2), bytes);
}

static void check_shrunk(const en_image *whole, uint64_t hash)
{
    static en_image out;
    static size_t capacity;
    const int64_t side = 1 + below(&hash, 50);
    const en_status status = en_shrink(whole, side, &out, &capacity);
    PROMISE(status == EN_OK, "shrinking: %s", en_error_text());
    const int64_t is = whole->w < whole->h ? whole->w : whole->h, now = out.w < out.h ? out.w : out.h;
    PROMISE(now == (is < side ? is : side) && out.w > 0 && out.h > 0, "%d x %d", (int)out.w, (int)out.h);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static en_decoder *d;
    const uint64_t hash = hash_of(data, size);
    en_image whole, again;
    en_crop crop;
    int64_t w, h;
    int channels;
    en_error_clear();
    if (!d) PROMISE(en_decoder_open(MAX_PIXELS, &d) == EN_OK, "%s", en_error_text());
    const en_status status = en_image_decode(NAME, data, size, MAX_PIXELS, &whole);
    if (status != EN_OK) {
        refused(status);
        PROMISE(!whole.rgb, "a refused file has pixels");
    } else {
        PROMISE(whole.w > 0 && whole.h > 0 && whole.w <= MAX_PIXELS / whole.h, "%d x %d", (int)whole.w, (int)whole.h);
        PROMISE(whole.channels >= 1 && whole.channels <= 4 && whole.rgb, "%d channels", whole.channels);
    }
    const en_status header = en_image_size(NAME, data, size, &w, &h, &channels);
    PROMISE(header == EN_OK || !whole.rgb, "the size of a sound file: %s", en_error_text());
    if (header != EN_OK) refused(header);
    else PROMISE(!whole.rgb || (w == whole.w && h == whole.h && channels == whole.channels), "%d x %d x %d", (int)w, (int)h, channels);

    const en_status same = en_decode_crop(d, NAME, data, size, NULL, NULL, 0, &again, &crop);
    PROMISE(same == status, "status %d, then %d: %s", status, same, en_error_text());
    if (whole.rgb) PROMISE(again.w == whole.w && again.h == whole.h && memcmp(again.rgb, whole.rgb, (size_t)(whole.w * whole.h * 3)) == 0,
                           "decoded twice, and not the same");
    en_error_clear();
    check_part(d, data, size, hash, &whole);
    check_scaled(d, data, size, hash, &whole);
    if (whole.rgb && whole.w * whole.h <= SMALL) check_shrunk(&whole, hash);
    en_image_free(&whole);
    return 0;
}

/* ---- mutation --------------------------------------------------------------------------------------------------------- */

/* A PNG's chunks carry CRCs, so that hardly any mutation would get behind them: half of the time they are set right again. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size) __attribute__((weak));
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed);

static uint32_t big_endian(const uint8_t *p) { return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3]; }

static uint32_t crc_of(const uint8_t *p, size_t n)
{
    uint32_t crc = 0xffffffff;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    return ~crc;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed)
{
    size = LLVMFuzzerMutate(data, size, max_size);
    if (seed & 1 || size < 8 || memcmp(data, "\x89PNG\r\n\x1a\n", 8) != 0) return size;
    for (size_t at = 8, n; at + 12 <= size; at += 12 + n) {    /* length, type, data, CRC of type and data */
        n = big_endian(data + at);
        if (n > size - at - 12) break;
        const uint32_t crc = crc_of(data + at + 4, n + 4);
        for (size_t i = 0; i < 4; i++) data[at + 8 + n + i] = (uint8_t)(crc >> (24 - 8 * i));
    }
    return size;
}
