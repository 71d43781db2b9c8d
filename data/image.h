/* image.h - one picture: bytes to pixels, the part that is looked at, the size the network wants. */
#ifndef EN_DATA_IMAGE_H
#define EN_DATA_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/status.h"

/* ---- decode ---------------------------------------------------------------------------------------------------- */

typedef struct { int64_t w, h; uint8_t *rgb; int channels; } en_image;  /* rgb (h,w,3) owned; channels as stored: 1..4 */

/* Decodes JPEG (libjpeg-turbo: baseline, progressive, grayscale, CMYK/YCCK, any sampling) or PNG (any type and depth),
 * told apart by content, to 8-bit RGB.  Alpha is dropped, 16-bit samples are shifted right by 8, gray is replicated,
 * Adobe CMYK is taken as inverted, EXIF orientation is NOT applied (as torchvision's ImageFolder and the reference do).
 * EN_EDATA with a message that names `name` and the reason: not an image, damaged, truncated (a decoder's warning counts
 * as damage: the picture is wrong), an unsupported kind, or more pixels than max_pixels, which is checked before memory
 * is taken.  The image is freed by en_image_free. */
en_status en_image_decode(const char *name, const uint8_t *bytes, size_t n, int64_t max_pixels, en_image *out);
void      en_image_free(en_image *img);
enum { EN_MAX_PIXELS = 178956970 };            /* the default limit: Pillow's, 0.25 G pixels / 1.4 */

/* ---- crop, flip, resize ------------------------------------------------------------------------------------------ */

typedef struct {
    int64_t x, y, w, h;
    bool flip, whole;                          /* whole: the sampler gave up, see en_crop_train                        */
    float left, top, right, bottom;            /* fractions of the border pixels that do not belong to it; 0 but where */
} en_crop;                                     /* a picture was decoded at a part of its size                          */

/* The reference's training crop (tensorflow sample_distorted_bounding_box, spec 4.1): aspect U[3/4,4/3), area [0.08,1],
 * ten attempts, effective minimum 10 % of the area; then the evaluation crop when the result is the whole image of a
 * 3-channel file; flip with probability 1/2.  A function of (seed, epoch, sample) through EN_RNG_CROP. */
en_crop en_crop_train(int64_t w, int64_t h, int channels, int size, uint64_t seed, uint64_t epoch, uint64_t sample);
/* EfficientNetV2's (its preprocessing.py): area [0.05,1] of which any part may be covered, a hundred attempts, and the whole picture as it
 * is when they fail or it is what they found. */
en_crop en_crop_train_v2(int64_t w, int64_t h, uint64_t seed, uint64_t epoch, uint64_t sample);
/* The published evaluation crop (spec 4.4): centre square of side floor(size/(size+32) * min(w,h)). */
en_crop en_crop_eval(int64_t w, int64_t h, int size);

/* What is looked at in evaluation.  The first is no choice: 0, where a row or a file does not say. */
typedef enum {
    EN_EVAL_CROP_OWN,
    EN_EVAL_CROP_REFERENCE,                    /* en_crop_eval                                                             */
    EN_EVAL_CROP_NONE,                         /* the whole picture, made square by the resize                             */
    EN_EVAL_CROP_V2,                           /* V2's code: below 320 px the first (its centre rounded down), then the second */
    EN_EVAL_CROPS
} en_eval_crop;
en_crop     en_crop_evaluated(en_eval_crop how, int64_t w, int64_t h, int size);
const char *en_eval_crop_name(en_eval_crop how);               /* "reference", "none", "v2" */
en_eval_crop en_eval_crop_named(const char *name);             /* EN_EVAL_CROP_OWN: no such name */

/* ---- decoding a part: what a worker does -------------------------------------------------------------------------- */

/* Of one thread: all memory that decoding takes, kept from image to image (the decoder's own, too), so that a steady state
 * allocates nothing. */
typedef struct en_decoder en_decoder;
en_status en_decoder_open(int64_t max_pixels, en_decoder **out);    /* max_pixels 0: EN_MAX_PIXELS */
void      en_decoder_close(en_decoder *d);                          /* NULL is fine */
/* From now on (not at first) a file is read to its end, below the crop without making pixels of it: what is refused does not depend on the
 * crop.  Flipped bits seldom show where they are: a Huffman decoder goes on, and finds at the end that data is left or missing.  Once a
 * file is known to be whole there is nothing to be found. */
void      en_decoder_to_the_end(en_decoder *d, bool on);

/* What to look at in a picture of w x h pixels, channels as stored. */
typedef en_crop en_choose_crop(const void *context, int64_t w, int64_t h, int channels);

/* Decodes the part of an image that `choose` wants (NULL: all of it), with the refusals of en_image_decode.  *crop is that part in
 * the coordinates of *out, which is borrowed from d until its next call and holds at least the part.  A JPEG is decoded only in
 * the rows and columns of the crop; its pixels are, bit for bit, those of a whole decoding.
 * scale_to > 0: a JPEG may besides be decoded at 1/2, 1/4 or 1/8 of its size, as long as the crop keeps scale_to pixels a
 * side: another picture.  Over ImageNet's, at 1/2 and 1/4 and resized, its values are 1.4 levels off on average and 99 % within 12
 * with an antialiased kernel, 7.5 and 60 with the reference's, which does not expect a smoothed picture (test_data_crop_decode.c).
 * A crop whose edges fall inside a scaled pixel has its fractions set.
 * Damage that libjpeg would complain of only below the crop goes unseen, but a file without an end is refused whatever the crop; see en_decoder_to_the_end. */
en_status en_decode_crop(en_decoder *d, const char *name, const uint8_t *bytes, size_t n, en_choose_crop *choose, const void *context,
                         int scale_to, en_image *out, en_crop *crop);
/* Only the header: what the file claims.  EN_EDATA as above. */
en_status en_image_size(const char *name, const uint8_t *bytes, size_t n, int64_t *w, int64_t *h, int *channels);
/* Shrinks a whole picture, antialiased, so that its shorter side has `side` pixels; left as it is when it is not longer.  out->rgb is
 * grown with realloc, *capacity follows. */
en_status en_shrink(const en_image *img, int64_t side, en_image *out, size_t *capacity);

typedef struct { float mean[3], std[3]; } en_normalise;
extern const en_normalise en_imagenet_normalise;   /* mean 255*(.485,.456,.406), std 255*(.229,.224,.225) */

/* How pixels become numbers; 0 is no choice, as above. */
typedef enum {
    EN_NORMALISE_OWN,
    EN_NORMALISE_IMAGENET,
    EN_NORMALISE_HALF,                         /* (v - 128) / 128: EfficientNetV2 S to XL in their authors' code           */
    EN_NORMALISE_UNIT,                         /* (v - 127.5) / 127.5: "mean 0.5, std 0.5" of timm and torchvision         */
    EN_NORMALISES
} en_normalising;
const en_normalise *en_normalise_by(en_normalising how);       /* of 0: ImageNet's */
const char *en_normalise_name(en_normalising how);             /* "imagenet", "half", "unit" */
en_normalising en_normalise_named(const char *name);           /* EN_NORMALISE_OWN: no such name */

/* Resizes the crop to size x size as TF1's legacy resize_bicubic does (spec 4.2: A = -0.75, no half-pixel shift, no
 * antialias, 1/1024 table), flips, normalises: out[i,j,d] = (value - mean[d]) / std[d], float (size,size,3), not clipped. */
void en_resize_bicubic(const en_image *img, const en_crop *crop, int size, const en_normalise *norm, float *out);
/* What maps the crop to size x size.  AA: the kernel is widened when shrinking, as Pillow and torchvision do (antialiasing);
 * the others look at 4 (2) input pixels a side whatever the scale. */
typedef enum {
    EN_RESIZE_BICUBIC,                         /* TF1 legacy resize_bicubic: the V1 reference (spec 4.2)                   */
    EN_RESIZE_BILINEAR,                        /* TF2 resize_bilinear, half-pixel centres, no antialias: V2 (spec 4.6)     */
    EN_RESIZE_BICUBIC_AA,                      /* Pillow's BICUBIC (a = -0.5), as timm and torchvision evaluate            */
    EN_RESIZE_BILINEAR_AA                      /* Pillow's BILINEAR                                                        */
} en_resize_kernel;
/* out[i,j,d] = (value - mean[d]) / std[d], float (size,size,3), not clipped; flipped when the crop says so. */
void en_resize(const en_image *img, const en_crop *crop, en_resize_kernel kernel, int size, const en_normalise *norm, float *out);
/* The same as bytes (size,size,3): clipped to 0..255, then rounded to nearest, or truncated as the reference does before it augments. */
void en_resize_bytes(const en_image *img, const en_crop *crop, en_resize_kernel kernel, int size, bool truncate, uint8_t *out);
/* out[i] = (in[i] - mean[i % 3]) / std[i % 3], n values */
void en_normalise_bytes(const uint8_t *in, size_t n, const en_normalise *norm, float *out);

#endif
