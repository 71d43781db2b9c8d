/* pack_inside.h - the inside of packing and of reading what was packed, for this folder alone. */
#ifndef EN_DATA_PACK_INSIDE_H
#define EN_DATA_PACK_INSIDE_H

#include <stdatomic.h>

#include "folder.h"
#include "image.h"
#include "pack.h"

/* ---- the index: what a packed file holds beside the bytes ------------------------------------------------------------- */

#define EN_PACK_FORMAT "effnet packed images"
enum { EN_PACK_VERSION = 1, EN_PACK_SPLITS = 2, EN_PACK_NAME = 4096 };
static const int64_t en_pack_sample_bytes = (int64_t)1 << 30;       /* the largest file, as en_file_read has it */

typedef struct {
    int64_t   n, classes, splits;
    char     *files, *class_names;             /* own (n, file_width), (classes, class_width): padded with zeros, not terminated */
    size_t    file_width, class_width;
    char      split[EN_PACK_SPLITS][8];        /* "train", "val"; or "" alone: a folder without parts            */
    int64_t   split_at[EN_PACK_SPLITS + 1];    /* samples [split_at[k], split_at[k+1]) are part k                 */
    int64_t  *offsets;                         /* owns (n+1); offsets[0] is 0, offsets[n] the length of /bytes    */
    int32_t  *labels;                          /* owns (n)                                                        */
    uint32_t *crc;                             /* owns (n)                                                        */
    int64_t   bad, shrunk, max_side, quality;  /* attributes                                                      */
    const char *source;                        /* borrows                                                         */
} en_pack_index;

void en_pack_index_free(en_pack_index *x);

/* pack_h5.c.  Builds the HDF5 file in memory up to the images: *image (malloc'd, owned by the caller) has *bytes_at bytes, which depends
 * on names and numbers of samples alone; /bytes follows, and nothing after it. */
en_status en_pack_h5_build(const en_pack_index *x, uint8_t **image, int64_t *bytes_at);
/* pack_h5_read.c.  Opens a packed file and checks it against itself; *fd (owned by the caller) reads it from then on.  EN_EDATA with reason. */
en_status en_pack_h5_read(const char *path, en_pack_index *x, int *fd, int64_t *bytes_at);
/* The names of the parts alone. */
en_status en_pack_h5_splits(const char *path, en_pack_index *x);

/* Bytes of sample i, with their CRC-32 compared: EN_EDATA names `label` (NULL: file and sample), EN_EIO. */
typedef struct { int fd; int64_t at, n, sample; uint32_t crc; const char *path, *label; } en_pack_place;
en_status en_pack_read(const en_pack_place *p, uint8_t **buf, size_t *capacity);

/* ---- threads ---------------------------------------------------------------------------------------------------------- */

/* Runs `work` on `workers` threads until each has returned; calls `tick` now and then meanwhile.  The first failure is raised again
 * here, and sets *stop for the others. */
typedef struct {
    int       workers;
    en_status (*work)(void *context, int worker, const atomic_bool *stop);
    void      (*tick)(void *context);          /* may be NULL */
    void      *context;
} en_crew;
en_status en_crew_run(const en_crew *c);
int       en_crew_size(int wanted);            /* 0: the processors that this process may use */

/* Progress on stderr: a live line on a terminal, else one every 10 s.  What is left is reckoned from bytes. */
typedef struct {
    const char *doing;                         /* "packing", "verifying" */
    bool    live, drawn, quiet;
    double  began, last;
    int64_t total, total_bytes, first, first_bytes;      /* first: what was done before this process began */
} en_pack_progress;
void   en_pack_progress_open(en_pack_progress *p, const char *doing, bool quiet, int64_t total, int64_t total_bytes);
void   en_pack_progress_show(en_pack_progress *p, int64_t done, int64_t done_bytes, int64_t bad);
void   en_pack_progress_close(en_pack_progress *p);
double en_pack_seconds(void);

/* ---- the unfinished file (pack_partial.c) ------------------------------------------------------------------------------- */

enum { EN_PACK_BAD = 1, EN_PACK_SHRUNK = 2 };
typedef struct { int fd; char path[EN_PACK_NAME + 16]; const char *target; int64_t bytes_at; } en_partial;   /* fd -1: none */

/* Opens target.partial and locks it.  EN_EUSAGE: target is there, or somebody else packs into it. */
en_status en_partial_open(const char *target, en_partial *p);
/* How many samples its journal tells of when it is of the same plan (`digest`): lengths into offsets, CRCs, flags; not yet compared
 * with the bytes.  Otherwise 0, and the file is empty but for a new journal's head. */
en_status en_partial_resume(en_partial *p, uint64_t digest, int64_t bytes_at, en_pack_index *x, uint8_t *flags, int64_t *done);
/* Whether `bytes` in all have room where the file is, as far as the file system tells.  EN_EIO: with what is needed and what is free. */
en_status en_partial_room(const en_partial *p, int64_t bytes);
en_status en_partial_write(const en_partial *p, const void *bytes, size_t n, int64_t at);       /* any thread */
en_status en_partial_note(const en_partial *p, const en_pack_index *x, const uint8_t *flags, int64_t i);  /* sample i is written */
/* Overwrites the journal with the HDF5 file's front, bytes_at long, cuts the file behind `bytes` of images, syncs, renames without
 * replacing. */
en_status en_partial_finish(en_partial *p, const uint8_t *image, int64_t bytes);
void      en_partial_close(en_partial *p);     /* lets go; what is written stays */

/* ---- packing: what it will do (pack_plan.c), and doing it (pack_work.c) ---------------------------------------------------- */

typedef struct {
    const en_pack_config *c;                   /* borrows */
    en_dataset *set[EN_PACK_SPLITS];           /* owns: the parts of the folder                                */
    en_pack_index x;                           /* everything but offsets, CRCs and counts, which come by and by */
    char    **path;                            /* owns the array, borrows the sets' strings                    */
    int64_t  *size;                            /* owns: of the files, when they were listed                    */
    int64_t   total_bytes;                     /* their sum                                                    */
    uint64_t  digest;                          /* of names, sizes, times, options                              */
    uint8_t  *flags;                           /* owns: EN_PACK_BAD, EN_PACK_SHRUNK                            */
    en_partial partial;
} en_packing;

/* Takes `partial`, also when it fails.  EN_EUSAGE: the file lies among the images it is made of. */
en_status en_pack_plan(const en_pack_config *c, int workers, const en_partial *partial, en_packing *p);
void      en_packing_free(en_packing *p);

enum { EN_PACK_LISTED = 20 };
typedef struct { int64_t bad; int listed; char *text[EN_PACK_LISTED]; } en_pack_complaints;  /* of the first in order; owns */
void      en_pack_complaints_free(en_pack_complaints *l);
/* Reads, checks, shrinks and writes samples [done, n), comparing what was done before with its CRCs. */
en_status en_pack_work(en_packing *p, int workers, int64_t done, en_pack_complaints *bad, int64_t *bytes_in);

/* ---- smaller pictures (pack_shrink.c) ------------------------------------------------------------------------------------ */

/* A JPEG, 4:2:0 or gray, of the picture with its longer side max_side, into *buf (malloc'd, owned by the caller); antialiased. */
en_status en_pack_shrink(const en_image *img, int64_t max_side, int quality, uint8_t **buf, size_t *n);

#endif
