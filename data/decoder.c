/* decoder.c - a decoder for each thread: the memory that decoding takes, kept from picture to picture.
 *
 *     pixels    one buffer, grown to the largest part that was asked for; lent to the caller until the next call
 *     arena     what libjpeg and libpng take while they work on a file (decode_jpeg.c says how), empty between the files
 *     jpeg      libjpeg's reader
 *
 * In a steady state nothing is allocated.  What one giant picture has made it take is given back before the next one. */
#include "decode.h"

#include <stdlib.h>

struct en_decoder {
    int64_t   max_pixels;
    bool      to_the_end;
    en_image  img;                             /* owns */
    size_t    capacity;                        /* of img.rgb */
    en_arena  arena;                           /* owns */
    en_jpeg  *jpeg;                            /* owns */
};

static en_decode_job job_of(en_decoder *d, const char *name, const uint8_t *bytes, size_t n, en_crop *crop)
{
    return (en_decode_job){ .name = name, .bytes = bytes, .n = n, .max_pixels = d->max_pixels, .jpeg = d->jpeg, .arena = &d->arena,
                            .img = &d->img, .capacity = &d->capacity, .crop = crop };
}

/* With memory of the caller's own. */
static en_status begin(en_decoder *d, int64_t max_pixels)
{
    *d = (en_decoder){ .max_pixels = max_pixels > 0 ? max_pixels : EN_MAX_PIXELS };
    return en_jpeg_open(&d->arena, &d->jpeg);
}

static void end(en_decoder *d)
{
    en_jpeg_close(d->jpeg);
    en_arena_free(&d->arena);
    en_image_free(&d->img);
}

en_status en_decoder_open(int64_t max_pixels, en_decoder **out)
{
    EN_REQUIRE(out, EN_EINVAL, "opening a decoder: an argument is NULL");
    *out = NULL;
    en_decoder *d = malloc(sizeof *d);
    EN_REQUIRE(d, EN_ENOMEM, "no memory for a decoder");
    const en_status status = begin(d, max_pixels);
    if (status == EN_OK) *out = d;
    else free(d);
    return status;
}

void en_decoder_close(en_decoder *d)
{
    if (!d) return;
    end(d);
    free(d);
}

void en_decoder_to_the_end(en_decoder *d, bool on) { d->to_the_end = on; }

en_status en_decode_crop(en_decoder *d, const char *name, const uint8_t *bytes, size_t n, en_choose_crop *choose, const void *context,
                         int scale_to, en_image *out, en_crop *crop)
{
    EN_REQUIRE(d && name && out && crop && (bytes || n == 0), EN_EINVAL, "decoding: an argument is NULL");
    *out = (en_image){ 0 };
    *crop = (en_crop){ 0 };
    if (d->capacity > EN_KEEP_PIXELS) {
        en_image_free(&d->img);
        d->capacity = 0;
    }
    en_decode_job job = job_of(d, name, bytes, n, crop);
    job.choose = choose;
    job.context = context;
    job.scale_to = scale_to;
    job.to_the_end = d->to_the_end;
    const en_status status = en_decode(&job);
    if (status == EN_OK) *out = d->img;
    return status;
}

en_status en_image_size(const char *name, const uint8_t *bytes, size_t n, int64_t *w, int64_t *h, int *channels)
{
    EN_REQUIRE(name && w && h && channels && (bytes || n == 0), EN_EINVAL, "the size of an image: an argument is NULL");
    *w = *h = *channels = 0;
    en_decoder d;
    EN_TRY(begin(&d, INT64_MAX), "opening a decoder");
    en_crop crop;
    en_decode_job job = job_of(&d, name, bytes, n, &crop);
    job.header_only = true;
    const en_status status = en_decode(&job);
    if (status == EN_OK) {
        *w = d.img.w;
        *h = d.img.h;
        *channels = d.img.channels;
    }
    end(&d);
    return status;
}

en_status en_image_decode(const char *name, const uint8_t *bytes, size_t n, int64_t max_pixels, en_image *out)
{
    EN_REQUIRE(name && out && (bytes || n == 0), EN_EINVAL, "decoding: an argument is NULL");
    *out = (en_image){ 0 };
    en_decoder d;
    EN_TRY(begin(&d, max_pixels), "opening a decoder");
    en_crop crop;
    const en_decode_job job = job_of(&d, name, bytes, n, &crop);
    const en_status status = en_decode(&job);
    if (status == EN_OK) {
        *out = d.img;
        d.img = (en_image){ 0 };
    }
    end(&d);
    return status;
}

void en_image_free(en_image *img)
{
    if (!img) return;
    free(img->rgb);
    *img = (en_image){ 0 };
}
