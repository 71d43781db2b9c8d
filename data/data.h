/* data.h - from files to batches, the same batches on any number of ranks, threads and resumes.
 *
 *     file bytes ─▶ decode ─▶ crop, flip, resize ─▶ normalise ─▶ batch       (order: sampler)
 *
 * Which images form step t, in which order, and how each is cropped and flipped are functions of (seed, epoch, sample):
 * nothing here has a state that a checkpoint would have to keep.  This folder knows no MPI: rank and world_size are two
 * integers; and no models: an image is n, size, size, 3 floats. */
#ifndef EN_DATA_H
#define EN_DATA_H

#include <stdint.h>

#include "kernels/rng.h"
#include "kernels/status.h"

/* The bytes of a regular file as they are now, into *buf (grown with realloc, *capacity follows; owned by the caller).  1 GiB
 * at most.  EN_EDATA, EN_EIO: the file's fault, with its path. */
en_status en_file_read(const char *path, uint8_t **buf, size_t *capacity, size_t *n);

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

typedef struct { int64_t x, y, w, h; bool flip; bool whole; } en_crop; /* whole: the sampler gave up, see en_crop_train */

/* The reference's training crop (tensorflow sample_distorted_bounding_box, spec 4.1): aspect U[3/4,4/3), area [0.08,1],
 * ten attempts, effective minimum 10 % of the area; then the evaluation crop when the result is the whole image of a
 * 3-channel file; flip with probability 1/2.  A function of (seed, epoch, sample) through EN_RNG_CROP. */
en_crop en_crop_train(int64_t w, int64_t h, int channels, int size, uint64_t seed, uint64_t epoch, uint64_t sample);
/* The published evaluation crop (spec 4.4): centre square of side floor(size/(size+32) * min(w,h)). */
en_crop en_crop_eval(int64_t w, int64_t h, int size);

typedef struct { float mean[3], std[3]; } en_normalise;
extern const en_normalise en_imagenet_normalise;   /* mean 255*(.485,.456,.406), std 255*(.229,.224,.225) */

/* Resizes the crop to size x size as TF1's legacy resize_bicubic does (spec 4.2: A = -0.75, no half-pixel shift, no
 * antialias, 1/1024 table), flips, normalises: out[i,j,d] = (value - mean[d]) / std[d], float (size,size,3), not clipped. */
void en_resize_bicubic(const en_image *img, const en_crop *crop, int size, const en_normalise *norm, float *out);
/* out = n values of an image that was resized with mean 0 and std 1, rounded to nearest (ties to even) and clipped to 0..255; out may
 * be the memory of value */
void en_round_pixels(const float *value, size_t n, uint8_t *out);

/* ---- datasets: a table ----------------------------------------------------------------------------------------- */

typedef struct en_dataset en_dataset;
struct en_dataset_ops {
    /* The original bytes of sample i into *buf (grown with realloc, *capacity follows), *n set.  Any thread. */
    en_status (*read)(const en_dataset *ds, int64_t i, uint8_t **buf, size_t *capacity, size_t *n);
    void      (*close)(en_dataset *ds);
};
struct en_dataset {
    const struct en_dataset_ops *ops;
    char      source[4096];                    /* what the user named                                             */
    int64_t   samples, classes;
    char    **class_names;                     /* owned, byte order of names, as ImageFolder                      */
    char    **files;                           /* owned, (samples) path as a user would open it; never NULL       */
    int32_t  *labels;                          /* owned, (samples)                                                */
    void     *impl;
};

/* Opens an image folder: DIR/<class>/..., nested folders belong to their top folder's class; hidden files, hidden
 * folders and files without content of an image are kept out only by name (.*, Thumbs.db): what a file *is* shows when
 * it is decoded.  When DIR has train/ and/or val/ (or validation/), `split` picks one: "train" or "val".
 * `classes_like` (may be NULL) fixes names and order: a class it lacks is EN_EDATA; one it has and DIR lacks is fine.
 * "synthetic" or "synthetic:N" is N (1024) made-up pictures of 10 classes without files, for benchmarks and first tries.
 * EN_EDATA, each with path and remedy: missing, empty, no class folders, a class folder without files, split missing. */
en_status en_dataset_open(const char *path, const char *split, const en_dataset *classes_like, en_dataset **out);
void      en_dataset_close(en_dataset *ds);    /* NULL is fine */

/* Writes DIR/train/<class>/NAME.jpg and DIR/val/...: drawn shapes and textures, `classes` <= 10, deterministic in seed.
 * EN_EUSAGE when DIR exists and is not empty. */
en_status en_synth_write(const char *dir, int classes, int train_per_class, int val_per_class, int size, uint64_t seed);

/* ---- order -------------------------------------------------------------------------------------------------------- */

/* The sample at `position` of the endless training stream: epoch = position / samples, and within it a pseudorandom
 * permutation of 0..samples-1 that is a pure function of (seed, epoch) - a cycle-walking Feistel network (Black and
 * Rogaway 2002) over Philox; O(1) memory.  Every sample exactly once per epoch. */
int64_t en_sampler_at(uint64_t seed, int64_t samples, int64_t position, int64_t *epoch);

/* The positions of one micro-step on one rank.  A step is global_batch consecutive positions; micro-step k of `accum` is
 * a contiguous part of it, and rank r's shard a contiguous part of that: [n*r/world, n*(r+1)/world) of its n positions.
 * When everything divides this is  ((step*accum + micro)*world_size + rank)*micro_batch + i. */
typedef struct { int64_t global_batch, accum; int rank, world_size; } en_shard;
void    en_shard_range(const en_shard *s, int64_t step, int64_t micro, int64_t *first, int64_t *count);
int64_t en_shard_images(const en_shard *s, int64_t micro);      /* of a micro-step, on all ranks together */
int64_t en_shard_max(const en_shard *s);       /* the largest count over ranks and micro-steps: the micro-batch to plan for */

/* ---- loader ------------------------------------------------------------------------------------------------------- */

typedef struct {
    int64_t  n;                                /* images; may be 0                                                */
    int64_t  first;                            /* position of image 0 in the stream (training), or sample index   */
    float   *images;                           /* (n, size, size, 3) normalised, borrowed until the next call; or  */
    uint8_t *bytes;                            /* the same as bytes (en_loader_config.u8); the other one is NULL   */
    int32_t *labels;                           /* (n)                                                             */
    int64_t *samples;                          /* (n) index in the dataset of what was really used                */
    int64_t  epoch;                            /* of image 0                                                      */
} en_batch;

typedef struct {
    const en_dataset *dataset;                 /* borrowed                                                        */
    en_shard  shard;
    int       size, workers, ahead;            /* ahead: batches decoded in advance (>= 1); workers 0: 1          */
    uint64_t  seed;
    bool      training;                        /* crop, flip, shuffle; else evaluation crop in file order         */
    en_normalise normalise;
    int64_t   first_step;                      /* training: where to begin (resume)                               */
    double    max_bad_fraction;                /* 0.01: more distinct bad files than this share ends the run      */
    int64_t   max_pixels;                      /* 0: EN_MAX_PIXELS                                                */
    bool      center_crop;                     /* training: the evaluation crop, no flip (--augment none)         */
    bool      u8;                              /* bytes: the resized value, rounded to nearest and clipped, for a  */
                                               /* device that normalises on load                                  */
    void   *(*take)(void *owner, size_t bytes);       /* memory for images (NULL: aligned_alloc), where an upload  */
    void    (*give_back)(void *owner, void *p);       /* wants memory of its own; called by the opening thread     */
    void     *owner;
} en_loader_config;

typedef struct en_loader en_loader;

/* Starts `workers` threads that decode ahead of the step.
 * Training: batch number b (0, 1, ...) is micro-step b % accum of step first_step + b / accum.
 * Evaluation: the dataset in file order, cut into steps of global_batch samples, each step's positions shared out over
 * the ranks by en_shard_range (accum 1); the last step is short; every sample exactly once over all ranks.
 * A file that cannot be decoded is named on stderr once ("rank 0: bad file ..."), counted, and in training replaced by
 * another sample of the same epoch, chosen by EN_RNG_REPLACE, so that every rank count sees the same replacement; in
 * evaluation it is left out (n shrinks) and counted.  More than max_bad_fraction of the samples bad (at least 1 allowed
 * when the fraction is positive): en_loader_next returns EN_EDATA with the list (first 20) and the count.  A loader counts
 * what its own rank has met, in the order of delivery, against all samples of the dataset. */
en_status en_loader_open(const en_loader_config *config, en_loader **out);
en_status en_loader_next(en_loader *l, en_batch *out);      /* evaluation: n == 0 for ever after en_loader_steps calls */
int64_t   en_loader_steps(const en_loader *l);              /* evaluation: calls that every rank makes; training: -1 */
double    en_loader_wait_s(const en_loader *l);             /* seconds en_loader_next has waited in all              */
int64_t   en_loader_bad(const en_loader *l, const char *const **files); /* distinct bad files met here so far       */
void      en_loader_close(en_loader *l);                    /* stops the threads; NULL is fine                       */

#endif
