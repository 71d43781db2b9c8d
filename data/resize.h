/* resize.h - the inside of en_resize, for this folder alone: one job, and the builds that can do it. */
#ifndef EN_DATA_RESIZE_H
#define EN_DATA_RESIZE_H

#include <stdbool.h>

#include "data/image.h"

enum { EN_BICUBIC_TABLE = 1024 };
typedef struct { float near[EN_BICUBIC_TABLE + 1], far[EN_BICUBIC_TABLE + 1]; } en_bicubic_table;   /* k(t), k(1 + t) at t = i/1024 */

typedef struct {                               /* borrows all it points to */
    const uint8_t *origin;                     /* first pixel of the part that is looked at */
    int64_t  stride, w, h;                     /* bytes from row to row; pixels of the part */
    float    left, top, span_w, span_h;        /* what is stretched over the target, in pixels of the part: all of it, but for fractions */
    int64_t  out_w, out_h;
    bool     flip, truncate;
    en_resize_kernel kernel;
    const en_bicubic_table *table;
    const en_normalise *norm;
    float   *floats;                           /* (out_h, out_w, 3) normalised; or, where this is NULL, */
    uint8_t *bytes;                            /* the same clipped and rounded, or truncated            */
} en_resize_job;

/* resize_plain.c and resize_antialiased.c, compiled for one instruction set; the bits of the result are the same in all. */
typedef struct {
    const char *name;
    void (*resize)(const en_resize_job *job);
    void (*normalise)(const uint8_t *in, size_t n, const en_normalise *norm, float *out);
} en_resize_build;
extern const en_resize_build en_resize_generic, en_resize_avx2, en_resize_avx512;

const en_resize_build *en_resize_builds(int index);                 /* those that run here, fastest first; NULL behind the last */
en_resize_job en_resize_job_of(const en_image *img, const en_crop *crop, en_resize_kernel kernel, int64_t out_w, int64_t out_h);
void en_resize_run(const en_resize_job *job);                       /* by the fastest */

#endif
