/* bucket_tuner.h - how large gradient buckets are best, tried in the first steps of a run (--buckets auto).
 *
 * Large buckets waste no time in latency, small ones begin earlier and leave less to wait for when backward ends; what is best depends on
 * network, model and ranks.  So each of a few sizes is used for some steps, which train like any other: a bucket is a piece of one arena,
 * its sum is taken element by element.  comm/mpi_gradients.c adds each element in the order of the ranks wherever it is cut, so that the bits are
 * the same with every size.  NCCL's order depends on where an element lies in its message: there the size that the clock picks may round
 * otherwise, as it may with another number of ranks.
 *
 * A size's time is the least of its steps on each rank, added over ranks: noise only ever adds.  One sum makes all ranks choose alike. */
#ifndef EN_BUCKET_TUNER_H
#define EN_BUCKET_TUNER_H

#include "kernels/status.h"

/* The size without being asked: 25 MiB; 4 where sums go between hosts by MPI, where a large bucket is full too late to hide much of: two nodes of B0, whose
 * gradients are 20 MiB, waited less for sums over each of four links (comm/README.md).   queued: sums are a device's */
size_t en_buckets_usual(bool queued, int nodes);

enum { EN_TUNER_SIZES = 6, EN_TUNER_COUNTED = 3 };

typedef struct {
    int    sizes; size_t bytes[EN_TUNER_SIZES];    /* each cuts the arena otherwise; sizes 0: there is nothing to try    */
    double seconds[EN_TUNER_SIZES];                /* least of the steps that count, on this rank                        */
    int    at, step, passed_over;                  /* the size at hand, its steps, and how many of them do not count     */
} en_bucket_tuner;

typedef enum { EN_TUNER_SAME, EN_TUNER_NEXT, EN_TUNER_CHOOSE } en_tuner_word;

/* For an arena of `elems` gradients.  usual: the bytes to begin with.  passed_over: steps after a new cut that are slower than later
 * ones (a step is done once and recorded once before it is replayed). */
void          en_tuner_open(en_bucket_tuner *t, size_t elems, size_t usual, int passed_over);
/* A step was made.  NEXT: the next one with buckets of bytes[at]; CHOOSE: all were tried. */
en_tuner_word en_tuner_step(en_bucket_tuner *t, double seconds);
/* The size with the least seconds, summed over the ranks; the larger one of equals. */
int           en_tuner_best(const en_bucket_tuner *t, const double seconds[EN_TUNER_SIZES]);

/* --buckets: *bytes, or *tries and *bytes as it was.  EN_EUSAGE, in words. */
en_status     en_buckets_asked(const char *text, size_t *bytes, bool *tries);

#endif
