/* bench/data.h - what `effnet bench data` measures (bench/data.c) and prints (bench/data_report.c). */
#ifndef EN_BENCH_DATA_H
#define EN_BENCH_DATA_H

#include "comm/comm.h"
#include "trainer/options.h"

/* Ways that an image goes while it is timed, in the order of the table.  All but the last on one thread, of bytes in memory. */
typedef enum {
    DATA_COLD,                           /* the file's bytes, from the disk: the page cache was told to forget them */
    DATA_READ,                           /* the file's bytes, from the page cache                                   */
    DATA_WHOLE,                          /* decoding all of it                                                      */
    DATA_CROP,                           /* decoding the crop, resize, flip, normalisation                          */
    DATA_AUGMENT,                        /* the same with the run's augmentation of pixels                          */
    DATA_SCALED,                         /* the run with --decode scaled, where it decodes exactly                  */
    DATA_CACHED,                         /* the run with --cache: nothing is decoded                                */
    DATA_LOADER,                         /* the run: reading, the above, mixing, batches, threads                   */
    DATA_WAYS
} data_way;

/* What an image's time in the loader is made of. */
typedef enum { PART_READ, PART_DECODE, PART_RESIZE, PART_AUGMENT, PART_REST, DATA_PARTS } data_part;

typedef struct { double median, least, most; } data_range;            /* over rounds */

typedef struct {
    const en_options *o;                 /* borrowed                                                                */
    const char *split, *kernel, *model;  /* borrowed                                                                */
    int     size, workers, cores, rounds;
    int64_t samples, images, bad, batch; /* of the dataset; measured; undecodable among those that were looked at    */
    bool    bytes_out;                   /* the batch is bytes, for a device that normalises                        */
    double  bytes, width, height, pixels, looked_at;                   /* means; looked_at: the crop's share of a picture */
    bool    measured[DATA_WAYS];
    data_range core[DATA_WAYS], clock[DATA_WAYS];                      /* images a second of CPU time, and of time   */
    double  part_s[DATA_PARTS];          /* CPU seconds an image, medians over rounds                               */
    double  rate; bool floor;            /* images/s to feed; floor: the most that an H200 could ask for             */
} data_result;

/* A training step's floor on one H200, in images/s: each pass at its memory traffic or its matrix products, whichever takes longer. */
extern const double en_h200_bytes_per_s, en_h200_flops_per_s;
enum { EN_H200_IMAGES = 256 };           /* a step, over which weights and their update are shared out               */

double data_cores_needed(const data_result *r, double per_core);       /* of the kind measured; not rounded         */
void   data_print_text(const data_result *r);
void   data_print_json(const data_result *r);

en_status en_bench_data(const en_options *o, en_comm *comm);           /* `effnet bench data`                       */

#endif
