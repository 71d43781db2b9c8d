/* hostile_h5.h - what the hostile files have in common: bytes of the input become numbers, types, datasets and links that HDF5 itself
 * finds nothing wrong with, and writes with all its checksums. */
#ifndef EN_TESTS_FUZZ_HOSTILE_H5_H
#define EN_TESTS_FUZZ_HOSTILE_H5_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <hdf5.h>

typedef struct { const uint8_t *at, *end; } hostile_input;     /* where it ends, zeros follow */

uint64_t hostile_take(hostile_input *in, int bytes);
uint64_t hostile_number(hostile_input *in);                    /* one that is likely to hurt */

/* A type, until hostile_types_close.  The first kinds are those that the corpus of packed files was found with. */
enum { HOSTILE_TYPES_OLD = 20, HOSTILE_TYPES = 28 };
hid_t hostile_type(hostile_input *in, unsigned kinds);
hid_t hostile_text_type(size_t width, H5T_str_t pad);
void  hostile_types_close(void);

void hostile_attribute(hid_t object, const char *name, hid_t type, hid_t space, const void *value);

typedef enum { CONTIGUOUS, LATE, CHUNKED, COMPACT, DEFLATED, EXTERNAL, VIRTUAL, UNLIMITED, FLETCHER } hostile_layout;
enum { HOSTILE_LAYOUTS_OLD = 6, HOSTILE_LAYOUTS = 9, HOSTILE_ROOM = 1 << 16 };      /* ROOM: bytes that a dataset can have values for */

typedef struct {
    hid_t    type;                             /* of the library, or remembered */
    size_t   elem;
    int      rank;                             /* 1; 0 scalar, -1 null, 2 to 32 */
    uint64_t n;
    uint8_t *values;                           /* HOSTILE_ROOM bytes */
    hostile_layout stored;
} hostile_data;

/* Creates and writes it; *bytes: of `values` that it has.  The caller closes it.  < 0: HDF5 did not want to. */
hid_t hostile_dataset(hid_t file, const char *name, const hostile_data *d, size_t *bytes);

typedef enum { HOSTILE_DATASET, HOSTILE_MISSING, HOSTILE_GROUP, HOSTILE_SOFT, HOSTILE_DANGLING, HOSTILE_ALIAS, HOSTILE_ELSEWHERE, HOSTILE_A_TYPE,
               HOSTILE_FORMS } hostile_form;
void hostile_link(hid_t file, const char *name, hostile_form as, const char *other);   /* in place of a dataset */

/* Makes the checksums of HDF5 right again, of the superblock and of each object header. */
void hostile_seal(int fd, size_t size);

int     hostile_file(char *path, size_t size); /* a new empty file, its name in path; removed when the program ends */
const char *hostile_folder(void);              /* for files: of memory, if there is one */
int64_t hostile_open_objects(void);            /* of HDF5 */

#endif
