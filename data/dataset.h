/* dataset.h - where pictures come from: a table of operations over image folders, packed files and drawn pictures. */
#ifndef EN_DATA_DATASET_H
#define EN_DATA_DATASET_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/status.h"

/* The bytes of a regular file as they are now, into *buf (grown with realloc, *capacity follows; owned by the caller).  1 GiB
 * at most.  EN_EDATA, EN_EIO: the file's fault, with its path. */
en_status en_file_read(const char *path, uint8_t **buf, size_t *capacity, size_t *n);

/* ---- datasets: a table ----------------------------------------------------------------------------------------- */

typedef struct en_dataset en_dataset;
struct en_dataset_ops {
    /* The original bytes of sample i into *buf (grown with realloc, *capacity follows), *n set.  Any thread. */
    en_status (*read)(const en_dataset *ds, int64_t i, uint8_t **buf, size_t *capacity, size_t *n);
    void      (*close)(en_dataset *ds);
    /* Sample i will be read soon: the file system may fetch it.  May be NULL; never fails. */
    void      (*expect)(const en_dataset *ds, int64_t i);
};
struct en_dataset {
    const struct en_dataset_ops *ops;
    char      source[4096];                    /* what the user named                                             */
    int64_t   samples, classes;
    char    **class_names;                     /* owned, byte order of names, as ImageFolder                      */
    char    **files;                           /* owned, (samples) path as a user would open it; never NULL       */
    int32_t  *labels;                          /* owned, (samples)                                                */
    bool      whole;                           /* each file was once decoded to its end, and read() finds out if it changes */
    void     *impl;
};

/* Opens an image folder: DIR/<class>/..., nested folders belong to their top folder's class; hidden files, hidden
 * folders and files without content of an image are kept out only by name (.*, Thumbs.db): what a file *is* shows when
 * it is decoded.  When DIR has train/ and/or val/ (or validation/), `split` picks one: "train" or "val".
 * `classes_like` (may be NULL) fixes names and order: a class it lacks is EN_EDATA; one it has and DIR lacks is fine.
 * A file is a packed dataset (pack.h), with the same splits, classes and order as the folder it was made of.
 * "synthetic" or "synthetic:N" is N (1024) made-up pictures of 10 classes without files, for benchmarks and first tries.
 * EN_EDATA, each with path and remedy: missing, empty, no class folders, a class folder without files, split missing. */
en_status en_dataset_open(const char *path, const char *split, const en_dataset *classes_like, en_dataset **out);
/* Whether `path` (folder or packed file) has a part called `split`; "val" is also "validation". */
bool      en_dataset_has(const char *path, const char *split);
void      en_dataset_close(en_dataset *ds);    /* NULL is fine */

/* Writes DIR/train/<class>/NAME.jpg and DIR/val/...: drawn shapes and textures, `classes` <= 10, deterministic in seed.
 * EN_EUSAGE when DIR exists and is not empty. */
en_status en_synth_write(const char *dir, int classes, int train_per_class, int val_per_class, int size, uint64_t seed);

#endif
