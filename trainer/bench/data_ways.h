/* bench/data_ways.h - one image down one way, timed: the inside of `effnet bench data`, for bench_data*.c alone. */
#ifndef EN_BENCH_DATA_WAYS_H
#define EN_BENCH_DATA_WAYS_H

#include "data/data.h"
#include "trainer/bench/data.h"
#include "trainer/model.h"

enum { DATA_PIECE = 16, DATA_AHEAD = 2, DATA_KEPT = 16 };        /* files in memory; batches ahead; pieces of memory   */

typedef struct { double cpu_s, clock_s; int64_t images; } data_tally;
typedef struct { data_tally way[DATA_WAYS]; double part_s[DATA_PARTS]; } data_round;     /* part_s: CPU seconds in all      */
typedef struct { uint8_t *bytes; size_t capacity, n; en_image shrunk; size_t shrunk_capacity; } data_file;
typedef struct { void *p; size_t bytes; bool lent; } data_kept;

typedef struct {
    const en_options *o;                       /* borrowed                                                          */
    data_result  *r;                           /* borrowed                                                          */
    en_model     *model;                       /* owns                                                              */
    en_dataset   *ds;                          /* owns                                                              */
    en_dataset    view;                        /* the measured images alone, as a dataset: for the loader            */
    int64_t      *index;                       /* owns (images): which of ds they are                                */
    en_augment    augment;
    en_resize_kernel kernel;
    int64_t       cache_side;
    en_decoder   *decoder;                     /* owns                                                              */
    float        *floats;                      /* owns: an image on its way                                         */
    uint8_t      *pixels, *spare;              /* own the same in bytes                                             */
    en_image      copy; size_t copy_capacity;  /* owns: what comes out of a cache                                    */
    data_file     piece[DATA_PIECE];           /* owns                                                              */
    data_kept     kept[DATA_KEPT];             /* owns: the loader's batches                                         */
    _Atomic int64_t begun;                     /* images that the loader's workers have read                         */
    int64_t       step;                        /* where the loader goes on in the next round                         */
    data_round   *round;                       /* owns (room)                                                       */
    double        crops, share;                /* crops so far, and the sum of their shares                          */
} data_bench;

extern const struct en_dataset_ops data_view_ops;                /* of data_bench.view, whose impl is the data_bench   */

/* Images [first, first + n), n <= DATA_PIECE, down every way of one thread; all files are read before the next way begins.  *r += */
en_status data_run_piece(data_bench *b, int64_t first, int64_t n, uint64_t epoch, data_round *r);
/* The measured images through a loader, opened and closed.  *t = */
en_status data_run_loader(data_bench *b, data_tally *t);

#endif
