/* bench/passes.h - the layers of a model as lists of passes, each with what it must move: for `effnet bench passes`.
 *
 * A layer (bench/layers.c) is a block, the stem, the head or the update: its tensors, for n images, and its passes in the
 * order of a step.  A side (bench/side.c) is a backend with memory for one layer.  What a pass must move is each tensor
 * that goes in or comes out, once, in the type in which it is stored; nothing of what a particular way to compute it moves
 * besides. */
#ifndef EN_BENCH_PASSES_H
#define EN_BENCH_PASSES_H

#include "comm/comm.h"
#include "trainer/model.h"
#include "trainer/options.h"

/* Roles of tensors; a layer uses some.  The head computes with the names of an expansion: W1, Y1, BN1. */
enum {
    X, W1, Y1, WD, Y2, WR, BR, WE, BE, POOLED, HIDDEN, GATE, DGATE, W3, Y3, O, G,
    DZ2, DZ1, DX, DW1, DWD, DW3, DWR, DBR, DWE, DBE, MASK, LOGITS, LABELS, DLOGITS, DPOOLED, MS, MOM, EMA, TALLY, NOW,
    BN1, BN2, BN3, SUMS1, SUMS2, SUMS3, FOLD, WORK, BENCH_TENSORS
};
typedef enum { BENCH_ACTIVATION, BENCH_FLOAT, BENCH_DOUBLE, BENCH_BYTE } bench_number;

/* Geometries as `reserve` takes them: expansion, stem or last convolution; the one over space; projection or classifier. */
enum { BENCH_WIDEN, BENCH_SPATIAL, BENCH_NARROW, BENCH_GEOMETRIES };

enum { BENCH_OUTPUTS = 8, BENCH_PASSES = 8 };
typedef struct bench_side bench_side;
typedef struct {
    const char *name;
    bool   backward;
    int    bn;                           /* its sums are those of batch norm 1, 2, 3, settled after it; 0: none     */
    double bytes, flops;                 /* what must move; multiply-adds of matrix products, times 2               */
    int    outputs[BENCH_OUTPUTS];       /* tensors to compare, X ends the list (no pass writes it)                 */
    en_status (*run)(bench_side *s);
} bench_pass;

typedef struct {
    const en_model *m; const en_block *block;       /* borrowed; block NULL: stem, head or update                   */
    char    shape[48];
    int     count;                       /* layers of the model that are equal to this one                          */
    bool    raw;                         /* the block reads the stem's raw output through its batch norm            */
    int64_t n, channels[4];              /* images; channels of BN1, BN2, BN3 at [1], [2], [3]                      */
    en_conv_geom geom[BENCH_GEOMETRIES]; /* n 0: not used                                                           */
    int64_t elems[BENCH_TENSORS];
    bench_number type[BENCH_TENSORS];
    bench_pass pass[BENCH_PASSES]; int passes;
} bench_layer;

struct bench_side { en_backend *be; const bench_layer *l; void *p[BENCH_TENSORS]; en_bn bn[4]; en_segment segment; };

/* Layer `index` of the model for n images stored as `dtype`, u8: images as bytes; false after the last.  Equal blocks are one
 * layer.  most: parameters that the update takes, 0: all. */
bool      bench_layer_at(const en_model *m, int index, int64_t n, en_dtype dtype, bool u8, int64_t most, bench_layer *out);
/* EN_ENOTSUP: blocks or a head that bench/layers.c has no passes for. */
en_status bench_layers_known(const en_model *m);
/* The index of that layer in which block b is counted. */
int       bench_layer_of_block(const en_model *m, int b);
/* Images of which the largest activation of the layer has no more than `elems` elements, 1 at least. */
int64_t   bench_layer_images(const en_model *m, int index, int64_t elems);
/* Uniform numbers, rounded to bf16 whatever their type, the same on every backend. */
en_status bench_draw(en_backend *be, void *p, bench_number type, int64_t elems, float width, float centre, uint64_t seed, int stream);
/* Memory on be, filled by bench_draw. */
en_status bench_side_open(bench_side *s, en_backend *be, const bench_layer *l, uint64_t seed);
void      bench_side_close(bench_side *s);
en_status bench_settle(bench_side *s, const bench_pass *p);         /* batch norm after a pass                        */

/* `effnet bench passes`: bandwidth in GB/s and rate in TFLOP/s that the floors are taken from; 0: measure. */
en_status en_bench_passes(const en_options *o, en_comm *comm, double bandwidth, double rate);

#endif
