/* decode.h - the inside of decoding, for this folder alone. */
#ifndef EN_DATA_DECODE_H
#define EN_DATA_DECODE_H

#include "arena.h"
#include "data.h"

typedef struct en_jpeg en_jpeg;                /* libjpeg's reader, kept from file to file */

/* What a decoder keeps, and one file that it is asked for.  Borrows everything. */
typedef struct {
    const char     *name;                      /* for messages                                          */
    const uint8_t  *bytes;
    size_t          n;
    int64_t         max_pixels;
    en_choose_crop *choose;                    /* NULL: all                                             */
    const void     *context;
    int             scale_to;
    bool            to_the_end;                /* damage below the crop is looked for                       */
    bool            header_only;               /* img->w, h, channels are set, and nothing else is done */
    en_jpeg        *jpeg;
    en_arena       *arena;                     /* empty before and after                                */
    en_image       *img;                       /* = */
    size_t         *capacity;                  /* of img->rgb                                           */
    en_crop        *crop;                      /* =, in img */
} en_decode_job;

/* Is it an image of 1 to max_pixels pixels? */
en_status en_decode_claim(const en_decode_job *job, int64_t w, int64_t h);
/* What of a w x h picture is wanted (=): choose, and a check that it is inside. */
en_status en_decode_choose(const en_decode_job *job, int64_t w, int64_t h, int channels, en_crop *crop);
/* Sets img->w, h, channels and makes room for w*h*3 bytes. */
en_status en_decode_reserve(const en_decode_job *job, int64_t w, int64_t h, int channels);
en_status en_decode(const en_decode_job *job);

enum { EN_KEEP_ARENA = 16 << 20, EN_KEEP_PIXELS = 64 << 20 };  /* bytes that a decoder keeps from one picture to the next */

en_status en_jpeg_open(en_arena *arena, en_jpeg **out);        /* borrows arena */
void      en_jpeg_close(en_jpeg *jpeg);                        /* NULL is fine  */
en_status en_decode_jpeg(const en_decode_job *job);
en_status en_decode_png(const en_decode_job *job);

#endif
