/* compare.h - do all ranks hold the same bits? */
#ifndef EN_COMPARE_H
#define EN_COMPARE_H

#include "trainer/trainer.h"

/* Compares CRC-32C of every arena (parameters, running statistics, optimizer, averages) over the ranks, collectively.  `host`: the
 * same arenas where the caller has them on the host already (rank 0's snapshot), NULL: they are downloaded piece by piece.
 * *weights_crc (=): that of parameters in the upper half, of running statistics in the lower.
 * EN_EPEER, on all ranks: names the rank that differs from the most, and its host; t->agreed says so. */
en_status en_compare_ranks(en_trainer *t, const en_snapshot *host, uint64_t *weights_crc);

#endif
