/* pack.h - an image folder as one HDF5 file, and back as a dataset.
 *
 *     /bytes (uint8, contiguous)  the files one after the other       /offsets (int64, n+1)   /labels (int32, n)   /crc32 (uint32, n)
 *     /files, /classes            names                               /splits, /split_offsets (int64, k+1)
 *
 * HDF5 is asked where /bytes lies in the file; from then on any thread of any rank reads with pread. */
#ifndef EN_DATA_PACK_H
#define EN_DATA_PACK_H

#include "data/dataset.h"

typedef struct {
    const char *source, *target;               /* folder; file that must not be there yet                         */
    const char *split;                         /* "": all there are                                               */
    int64_t max_side;                          /* > 0: images whose longer side is longer are shrunk and encoded anew */
    int     quality, workers;                  /* of those JPEGs; threads                                         */
    int64_t max_pixels;
    double  max_bad;                           /* more than this share of undecodable files ends the packing      */
    bool    quiet;                             /* no progress on stderr                                           */
} en_pack_config;

typedef struct { int64_t samples, classes, bad, shrunk, bytes_in, bytes_out; double seconds; } en_pack_report;

/* EN_EUSAGE: target is there, or options contradict; EN_EDATA: the folder; EN_EIO: disk full, ...  Whatever happens, `target` is
 * either not there or whole. */
en_status en_pack(const en_pack_config *c, en_pack_report *report);
/* Every byte against its CRC-32, offsets, labels and names against each other.  EN_EDATA names the first damaged samples. */
en_status en_pack_verify(const char *path, int workers, bool quiet, en_pack_report *report);

bool      en_is_packed(const char *path);      /* a regular file that begins as HDF5 does */
/* As en_dataset_open; ->read checks the CRC-32 and answers EN_EDATA with sample and file name. */
en_status en_packed_open(const char *path, const char *split, const en_dataset *classes_like, en_dataset **out);

#endif
