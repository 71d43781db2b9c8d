/* checkpoint/internal.h - HDF5 and the disk, as the checkpoint and dump files of this folder use them.
 *
 * Two rules of HDF5 that shape this page:
 *   - not every build of it is thread-safe, and the writer thread works beside the training thread: each use stands
 *     between en_h5_enter and en_h5_leave, one lock for the process;
 *   - it prints its error stack by itself, per thread: en_h5_enter switches that off, en_h5_error says it in one line. */
#ifndef EN_CHECKPOINT_INTERNAL_H
#define EN_CHECKPOINT_INTERNAL_H

#include <hdf5.h>
#include <sys/stat.h>

#include "data/h5_error.h"
#include "trainer/checkpoint/checkpoint.h"

#ifndef EN_VERSION
#define EN_VERSION "0.1.0"
#endif

enum { EN_FORMAT_VERSION = 1, EN_PATH = 4096, EN_WHY = 1024 };

/* ---- HDF5 (checkpoint/h5.c) --------------------------------------------------------------------------------------- */

void        en_h5_enter(void);                /* nests                                                                   */
void        en_h5_leave(void);

hid_t en_h5_create_image(size_t raw_bytes);   /* a new file in memory that never touches the disk by itself; < 0: failed */
hid_t en_h5_open(const char *path);           /* read-only, without locks (NFS and Lustre often have none); < 0: failed  */

/* Each adds one thing; false: failed, ask en_h5_error.  `path` may name groups that are not there yet. */
bool en_h5_group(hid_t file, const char *path);        /* children are listed in the order in which they were made       */
bool en_h5_attr(hid_t object, const char *name, hid_t file_type, hid_t memory_type, const void *value);
bool en_h5_attr_text(hid_t object, const char *name, const char *text);
bool en_h5_dataset(hid_t file, const char *path, hid_t file_type, hid_t memory_type, int ndim, const int64_t *dims,
                   const void *data, bool with_crc);   /* with_crc: attribute crc32c of the bytes, the types being equal */
/* Does the attribute hold one value of the type `want`, or, when that is < 0, one text of a fixed length?  *bytes (may be NULL): its size. */
bool en_h5_is_one(hid_t attr, hid_t want, size_t *bytes);
bool en_h5_strings(hid_t file, const char *path, int64_t n, char *const *strings, bool with_crc);  /* (n) fixed length   */

/* ---- the disk (checkpoint/disk.c) ---------------------------------------------------------------------------------- */

/* Writes the image to `tmp` and fsyncs it; on failure `tmp` is gone.  EN_EIO, with what is needed and what is free. */
en_status en_h5_save_image(hid_t file, const char *tmp);
/* The errno that a write is to fail with now, 0: none; by the thread that writes.  inject.c has it, in builds with EN_FAULTS. */
#ifdef EN_FAULTS
int en_inject_write_error(void);
#else
static inline int en_inject_write_error(void) { return 0; }
#endif
/* Renames tmp to path and fsyncs the folder: afterwards the name stands, also if the machine goes down. */
en_status en_file_commit(const char *tmp, const char *path);
/* The same for a file that exists already: `path` becomes a second name of `from`.  False: this file system cannot. */
bool      en_file_link(const char *from, const char *path);

/* ---- reading (checkpoint/inspect.c, checkpoint/tree.c) -------------------------------------------------------------------------------- */

typedef enum {
    EN_FILE_WHOLE,
    EN_FILE_ABSENT,
    EN_FILE_FOREIGN,                          /* readable, and none of ours: never to be deleted                         */
    EN_FILE_NEWER,                            /* ours, of a format that this program does not know                       */
    EN_FILE_BROKEN,                           /* truncated, damaged, incomplete                                          */
    EN_FILE_UNREADABLE                        /* the operating system said no                                            */
} en_file_kind;

typedef struct {
    hid_t    file, root;                      /* -1: not open                                                            */
    uint64_t bytes;                           /* of the file: nothing in it can be larger                                */
    void    *buffer; size_t capacity;         /* owned; the dataset read last                                            */
    int64_t  datasets;                        /* verified so far                                                         */
    uint64_t verified;                        /* their bytes                                                             */
    en_file_kind kind;
    char    *why;                             /* [EN_WHY], borrowed: what follows the path in a sentence                 */
} en_reader;

typedef struct { hid_t set, type; int ndim; hsize_t dims[H5S_MAX_RANK]; size_t bytes; uint32_t crc; } en_shape;    /* a dataset */

/* Opens, and reads what is not a tensor; the caller closes the reader, whatever comes back. */
en_status en_reader_begin(en_reader *r, const char *path, bool verify, en_checkpoint_info *out);
/* Are the links those of a checkpoint?  With `verify` each dataset is read, too. */
en_status en_reader_tree(en_reader *r, bool verify);
/* A dataset: its shape, which has been believed only as far as the file is long; then, into r->buffer, its bytes as they stand in
 * the file, checked against its crc32c.  The caller closes what was opened without an error. */
en_status en_reader_open(en_reader *r, const char *path, en_shape *s);
en_status en_reader_load(en_reader *r, const char *path, const en_shape *s);
void      en_shape_close(en_shape *s);
void      en_reader_close(en_reader *r);
en_status en_reader_refuse(en_reader *r, en_status code, en_file_kind kind, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

#define EN_OLDER "; go on from an older one"
#define EN_BROKEN(...) return en_reader_refuse(r, EN_EDATA, EN_FILE_BROKEN, __VA_ARGS__)
#define EN_PASS_ON(call) do { const en_status s_ = (call); if (s_ != EN_OK) return s_; } while (0)

/* en_checkpoint_inspect without raising: `why` becomes what follows the path in a sentence ("is truncated: ..."). */
en_status en_checkpoint_look(const char *path, bool verify, en_checkpoint_info *out, en_file_kind *kind, char why[EN_WHY]);

/* ---- the folder (checkpoint/dir.c) --------------------------------------------------------------------------------- */

/* Files that this process has verified itself, by device, inode, size and time: prune reads them no second time. */
void en_checkpoint_remember(const struct stat *st);
bool en_checkpoint_remembers(const struct stat *st);

#endif
