/* shrink.c - a whole picture made smaller, for caches and for packing: Pillow's antialiased bicubic, to bytes. */
#include "resize.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

en_status en_shrink(const en_image *img, int64_t side, en_image *out, size_t *capacity)
{
    EN_REQUIRE(img && out && capacity && img->rgb && out->rgb != img->rgb, EN_EINVAL, "shrinking: an argument is NULL, or in and out are one");
    EN_REQUIRE(side > 0 && img->w > 0 && img->h > 0, EN_EINVAL, "shrinking %" PRId64 " x %" PRId64 " pixels to a side of %" PRId64,
               img->w, img->h, side);
    const int64_t shorter = img->w < img->h ? img->w : img->h;
    const double scale = shorter > side ? (double)side / (double)shorter : 1;
    const int64_t w = (int64_t)((double)img->w * scale + 0.5), h = (int64_t)((double)img->h * scale + 0.5);
    const size_t bytes = (size_t)w * (size_t)h * 3;
    if (bytes > *capacity) {
        uint8_t *grown = realloc(out->rgb, bytes);
        EN_REQUIRE(grown, EN_ENOMEM, "no memory for a picture of %" PRId64 " x %" PRId64 " pixels", w, h);
        out->rgb = grown;
        *capacity = bytes;
    }
    out->w = w;
    out->h = h;
    out->channels = img->channels;
    if (shorter <= side) {
        memcpy(out->rgb, img->rgb, bytes);
        return EN_OK;
    }
    en_resize_job job = en_resize_job_of(img, &(en_crop){ .w = img->w, .h = img->h }, EN_RESIZE_BICUBIC_AA, w, h);
    job.bytes = out->rgb;
    en_resize_run(&job);
    return EN_OK;
}
