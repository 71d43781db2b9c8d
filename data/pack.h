/* pack.h - an image folder as one HDF5 file, and back as a dataset.
 *
 *     /bytes (uint8, contiguous)  the files one after the other       /offsets (int64, n+1)   /labels (int32, n)   /crc32 (uint32, n)
 *     /files, /classes            names, fixed length                 /splits, /split_offsets (int64, k+1)
 *
 * Reading looks once where /bytes lies in the file; from then on any thread of any rank reads with pread.  Samples stand in the order of the
 * folder's dataset, train before val; labels count the classes of both parts together; a folder without parts is one part, "".
 *
 * HDF5 is called by the calling thread alone, while files are opened and finished.  Where its library is not thread-safe, nobody else may be
 * in it meanwhile. */
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

/* bad: files that cannot be decoded, packed all the same; damaged: samples that are not what was packed; bytes_in: of the files */
typedef struct { int64_t samples, classes, bad, shrunk, damaged, bytes_in, bytes_out; double seconds; } en_pack_report;

/* EN_EUSAGE: target is there, somebody else packs into it, or options contradict; EN_EDATA: the folder, a file that changes meanwhile, too
 * many bad ones; EN_EIO: a file that cannot be read, a full disk, ...  Whatever happens, `target` is either not there or whole, the same for
 * any number of workers.  What was done stays in target.partial, and the same call goes on from there. */
en_status en_pack(const en_pack_config *c, en_pack_report *report);
/* Every byte against its CRC-32, offsets, labels and names against each other.  EN_EDATA names the first damaged samples; *report is
 * filled in all the same. */
en_status en_pack_verify(const char *path, int workers, bool quiet, en_pack_report *report);

bool      en_is_packed(const char *path);      /* a regular file that begins as HDF5 does */
/* As en_dataset_open; ->read checks the CRC-32 and answers EN_EDATA with sample and file name. */
en_status en_packed_open(const char *path, const char *split, const en_dataset *classes_like, en_dataset **out);
bool      en_packed_has(const char *path, const char *split);       /* false also when it cannot be read */

#endif
