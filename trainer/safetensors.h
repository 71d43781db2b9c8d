/* safetensors.h - named tensors in a file, the format of huggingface/safetensors: without code in it, unlike pickle.
 *
 *     8 bytes      n, little-endian
 *     n bytes      JSON: {"__metadata__": {"key": "text", ...},
 *                         "NAME": {"dtype": "F32", "shape": [32, 3, 3, 3], "data_offsets": [begin, end]}, ...}
 *     the rest     the values, little-endian, row-major; offsets count from here
 *
 * As the format's own library does, the reader wants every byte of the rest to belong to exactly one tensor, in any order.  What it
 * reads was written by anybody: nothing is believed before it has been compared with the file's length, and whoever refuses says
 * which tensor and why. */
#ifndef EN_SAFETENSORS_H
#define EN_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/status.h"

enum { EN_SAFETENSORS_DIMS = 8, EN_SAFETENSORS_HEADER = 100000000 };    /* the longest header: the library's limit, too   */

typedef struct {
    const char *name;                            /* borrowed from the file; no control characters                          */
    const char *dtype;                           /* "F32"; lives as long as the program                                    */
    int      ndim;
    int64_t  shape[EN_SAFETENSORS_DIMS], count;  /* count: of its values                                                   */
    uint64_t begin, end;                         /* bytes, from the end of the header                                      */
} en_safetensor;

typedef struct { const char *key, *value; } en_safetensors_text;

typedef struct {
    char     path[4096];
    int      fd;
    uint64_t first;                              /* byte of the file at which the values begin                             */
    char    *header;                             /* owned; names and texts lie in it                                       */
    en_safetensor *tensors; size_t n;            /* owned, by name                                                         */
    en_safetensors_text *texts; size_t n_texts;  /* owned: __metadata__, in the file's order                               */
} en_safetensors;

/* EN_EDATA with path and reason; EN_EIO when the operating system refuses. */
en_status en_safetensors_open(const char *path, en_safetensors **out);
void      en_safetensors_close(en_safetensors *f);                       /* NULL is fine */
const en_safetensor *en_safetensors_find(const en_safetensors *f, const char *name);    /* NULL: there is none */
const char *en_safetensors_text_of(const en_safetensors *f, const char *key);           /* NULL: there is none */
/* t->count floats: F32 as they are, F16 and BF16 widened, which is exact.  EN_EDATA for other types, and for values that are not finite. */
en_status en_safetensors_read(const en_safetensors *f, const en_safetensor *t, float *out);

/* ---- writing (safetensors_write.c) ------------------------------------------------------------------------------------ */

typedef struct { const char *name; int ndim; const int64_t *shape; } en_safetensor_row;    /* borrowed; F32 */

/* Gives the values of row i; called in order, once each. */
typedef void en_safetensors_values(const void *context, size_t i, float *out);

/* Written as PATH.tmp, fsynced, renamed: it appears whole or not at all.  *bytes (may be NULL): its length. */
en_status en_safetensors_write(const char *path, size_t n_texts, const en_safetensors_text *texts, size_t n, const en_safetensor_row *rows,
                               en_safetensors_values *values, const void *context, uint64_t *bytes);

#endif
