/* decode.h - the inside of en_image_decode, for this folder alone. */
#ifndef EN_DATA_DECODE_H
#define EN_DATA_DECODE_H

#include "data.h"

/* As en_image_decode, but img->rgb is kept and grown from call to call: *capacity bytes are owned by it, 0 at first.
 * img->rgb stays valid memory (or NULL) after a failure; the picture in it does not. */
en_status en_decode_into(const char *name, const uint8_t *bytes, size_t n, int64_t max_pixels, en_image *img, size_t *capacity);

/* What the two formats share. */
typedef struct {
    const char    *name;                       /* for messages; borrowed, as everything here */
    const uint8_t *bytes;
    size_t         n;
    int64_t        max_pixels;
    en_image      *img;
    size_t        *capacity;
} en_decode_job;

/* Sets img->w, h, channels and makes room for w*h*3 bytes, after the check against max_pixels. */
en_status en_decode_reserve(const en_decode_job *job, int64_t w, int64_t h, int channels);

en_status en_decode_jpeg(const en_decode_job *job);
en_status en_decode_png(const en_decode_job *job);

#endif
