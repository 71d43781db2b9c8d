/* data.h - from files to batches, the same batches on any number of ranks, threads and resumes.
 *
 *     file bytes ─▶ decode the crop ─▶ resize, flip ─▶ augment ─▶ normalise ─▶ mix pairs ─▶ batch       (order: sampler)
 *
 * Which images form step t, in which order, and what is done to each are functions of (seed, epoch, sample):
 * nothing here has a state that a checkpoint would have to keep.  This folder knows no MPI: rank and world_size are two
 * integers; and no models: an image is n, size, size, 3 floats. */
#ifndef EN_DATA_H
#define EN_DATA_H

#include <stdint.h>

#include "data/augment.h"
#include "data/cache.h"
#include "data/dataset.h"
#include "data/image.h"
#include "kernels/rng.h"
#include "kernels/status.h"

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
    int32_t *mates;                            /* (n) the second label of images that are mixed of two, and        */
    float   *shares;                           /* (n) how much of the first there is, 0..1; both NULL: hard labels */
} en_batch;

typedef struct {
    const en_dataset *dataset;                 /* borrowed                                                        */
    en_shard  shard;
    int       size, workers, ahead;            /* ahead: batches decoded in advance (>= 1); workers 0: 1          */
    size_t    ahead_bytes;                     /* > 0: instead, as many as fit into this, at least one            */
    uint64_t  seed;
    bool      training;                        /* crop, flip, shuffle; else evaluation crop in file order         */
    en_normalise normalise;
    en_eval_crop eval_crop;                    /* evaluation, and center_crop; 0: the reference's                 */
    bool      v2_crop;                         /* training: en_crop_train_v2                                      */
    en_resize_kernel kernel;
    en_augment augment;                        /* training                                                        */
    bool      scaled;                          /* JPEGs may be decoded at 1/2, 1/4, 1/8 (en_decode_crop)          */
    en_cache *cache;                           /* borrowed; NULL: none.  Its samples are the dataset's            */
    int64_t   cache_side;                      /* and this its side                                               */
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

typedef struct { double read_s, decode_s, resize_s, augment_s; int64_t images, cached; } en_loader_times;   /* seconds of all workers together; */
                                               /* augment_s: policy, erasing and mixing; cached: found in the cache */
typedef struct en_loader en_loader;

/* Starts `workers` threads that decode ahead of the step.
 * Training: batch number b (0, 1, ...) is micro-step b % accum of step first_step + b / accum.
 * With mixup or cutmix, positions 2k and 2k+1 of a step are a pair and each takes from the other: a rank that has but one of them makes
 * both.  So the mixing, too, is the same on any number of ranks.  The last of an odd global batch stays as it is (share 1).
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
en_loader_times en_loader_spent(en_loader *l);              /* since it was opened                                    */
/* "at work on /d/cat.jpg for 31 s": the image that a worker has had for longest, "" when none has one.  By any thread. */
void      en_loader_slowest(const en_loader *l, char *words, size_t size);
size_t    en_loader_bytes(const en_loader_config *c);       /* what its batches take, and its workers for pictures in the making */
int64_t   en_loader_bad(const en_loader *l, const char *const **files); /* distinct bad files met here so far       */
void      en_loader_close(en_loader *l);                    /* stops the threads; NULL is fine                       */

#endif
