/* fuzz_decode.c - any bytes as an image file.
 *
 * Promises, whatever the bytes: a picture or EN_EDATA, never another status; a refusal names the file and leaves nothing behind; a
 * picture has the claimed size, within max_pixels.  Time and memory are bounded by the driver. */
#include "fuzz.h"

#include <string.h>

#include "data/image.h"

enum { MAX_PIXELS = 1 << 20 };

static const char NAME[] = "folder/hostile.jpg";

static void refused(en_status status)
{
    PROMISE(status == EN_EDATA, "status %d: %s", status, en_error_text());
    PROMISE(strstr(en_error_message(), NAME), "\"%s\" does not name the file", en_error_message());
    en_error_clear();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    en_image whole;
    en_error_clear();
    const en_status status = en_image_decode(NAME, data, size, MAX_PIXELS, &whole);
    if (status != EN_OK) {
        refused(status);
        PROMISE(!whole.rgb, "a refused file has pixels");
        return 0;
    }
    PROMISE(whole.w > 0 && whole.h > 0 && whole.w <= MAX_PIXELS / whole.h, "%d x %d", (int)whole.w, (int)whole.h);
    PROMISE(whole.channels >= 1 && whole.channels <= 4 && whole.rgb, "%d channels", whole.channels);
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
