/* loader.h - the inside of the loader, for this folder alone: what a worker thread keeps, and how it makes one picture. */
#ifndef EN_DATA_LOADER_H
#define EN_DATA_LOADER_H

#include "data.h"

#include <stdatomic.h>

/* A worker's kitchen.  Everything is taken when it is opened or grows to the largest file met. */
typedef struct {
    const en_loader_config *config;            /* borrows                                                 */
    en_decoder *decoder;                       /* owns                                                    */
    atomic_uchar *whole;                       /* borrows: the workers' common bits, one a sample: decoded to its end before */
    uint8_t    *file;                          /* owns: the bytes of a file                               */
    size_t      file_capacity;
    en_image    kept;                          /* owns: a shrunk picture, of the cache or on its way there */
    size_t      kept_capacity;
    uint8_t    *bytes, *spare;                 /* own one image each; NULL where no bytes are wanted      */
    void       *mate;                          /* owns one image as the batch stores it: the other half of a pair that another rank has */
    en_loader_times times;
} en_maker;

size_t    en_maker_bytes(const en_loader_config *c);      /* what it takes for pictures in the making; files and decoders come on top */
en_status en_maker_open(const en_loader_config *config, atomic_uchar *whole, en_maker *m);
void      en_maker_close(en_maker *m);         /* a maker of zeros is fine */

/* out (size,size,3), floats or bytes as the config says = the picture of `sample` in `epoch`, augmented, not mixed.
 * EN_EDATA, EN_EIO: the file's fault; anything else is not. */
en_status en_make_image(en_maker *m, int64_t sample, int64_t epoch, void *out);

/* A giant picture must not keep its memory in every worker for good. */
void      en_maker_stay_modest(en_maker *m);

/* ---- files that cannot be used (loader_bad.c) ---------------------------------------------------------------------- */

typedef struct en_bad_note en_bad_note;        /* a list: what was met while an image was made */
en_status en_bad_note_add(en_bad_note **list, int64_t sample, const char *text);   /* at its end */
void      en_bad_note_free(en_bad_note *list);

enum { EN_BAD_LISTED = 20 };
typedef struct {
    const en_loader_config *config;            /* borrows                                            */
    uint8_t    *is_bad;                        /* owns: one bit a sample                             */
    int64_t     n, room;                       /* distinct ones so far                               */
    const char **files;                        /* owns the array (room), borrows the dataset's names */
    char       *listed[EN_BAD_LISTED];         /* owns: the first messages                           */
} en_bad_files;

en_status en_bad_files_open(const en_loader_config *config, en_bad_files *b);
void      en_bad_files_close(en_bad_files *b);
/* Tells on stderr what is new, counts it and frees the notes of a delivered batch.  EN_EDATA with the list: more than --max-bad. */
en_status en_bad_files_read(en_bad_files *b, int64_t images, en_bad_note **notes);

size_t    en_loader_image_bytes(const en_loader_config *c);
double    en_loader_clock(void);

#endif
