/* dump.h - tensors for other eyes: `train --dump`, `eval --logits`.
 *
 * One HDF5 file that appears whole or not at all: built in memory (so it needs as much as it holds), written as NAME.tmp,
 * fsynced, renamed.  Paths begin with '/'; groups on the way are made.  Calls may come from any thread, one at a time. */
#ifndef EN_DUMP_H
#define EN_DUMP_H

#include "trainer/model.h"

typedef struct en_dump en_dump;

en_status en_dump_open(const char *path, en_dump **out);     /* EN_EIO when nothing can be written there                */

/* Each writes data (row-major, dims[ndim]) as a dataset; ndim 0: one value.  EN_EINVAL when `path` is there already. */
en_status en_dump_f32(en_dump *d, const char *path, int ndim, const int64_t *dims, const float *data);
en_status en_dump_i32(en_dump *d, const char *path, int ndim, const int64_t *dims, const int32_t *data);
en_status en_dump_i64(en_dump *d, const char *path, int ndim, const int64_t *dims, const int64_t *data);
en_status en_dump_strings(en_dump *d, const char *path, int64_t n, char *const *strings);   /* (n) fixed-length UTF-8    */

/* GROUP/<timm key>, logical shapes, for the tensors of the arenas that are given: `params` alone for gradients and
 * optimizer slots, `stats` too for weights; either may be NULL. */
en_status en_dump_tensors(en_dump *d, const char *group, const en_model *m, const float *params, const float *stats);

en_status en_dump_close(en_dump *d);         /* puts the file in its place; EN_EIO, and nothing there, when anything failed before */
void      en_dump_discard(en_dump *d);       /* no file; NULL is fine                                                    */

#endif
