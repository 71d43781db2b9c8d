/* optimizer.h - the table of chunks that the optimizers of optimizer.cu walk (optimizer_table.cu makes it).
 *
 * The parameters lie in flat arenas, so one kernel updates all of them.  What belongs to whom is said by `segments`; on the device they
 * are a table of chunks, one a block, so that a block has nothing to look up.  The table is built the first time that these segments are
 * seen, outside of recordings, and kept: a recorded step finds it where it was.  Tables are told apart by what the segments say, not by
 * where they lie. */
#ifndef EN_CUDA_OPTIMIZER_H
#define EN_CUDA_OPTIMIZER_H

#include "cuda.h"

enum { OPTIMIZER_THREADS = 256, OPTIMIZER_QUADS = 2, OPTIMIZER_CHUNK = OPTIMIZER_THREADS * OPTIMIZER_QUADS * 4 };

/* [at, at + elems) of the arenas, of one segment.  at % 4 == 0, or elems < 4: then no access is wider than an element. */
struct chunk { int64_t at; int elems, segment; bool decay, adapt; };

struct optimizer_table {
    optimizer_table *before;
    en_segment *segments; int64_t n_segments;   /* owns: what it was built from                                             */
    chunk   *chunks; int64_t n_chunks;          /* owns, device; those of a segment lie side by side                        */
    int64_t *first;                             /* owns, device: segment k has the chunks from first[k] to before first[k+1] */
    double  *squares, *weights;                 /* owns, device: of a chunk, sum of grad^2; LARS: sum of w^2                */
    float   *rate;                              /* owns, device: LARS, of a segment                                         */
    float   *factors;                           /* owns, device: AdamW, 1/(1 - beta1^t) and 1/sqrt(1 - beta2^t)             */
};

/* EN_EINVAL: not seen before, and inside a recording. */
en_status table_of(en_backend *be, const en_segment *s, int64_t n, const optimizer_table **out);

#endif
