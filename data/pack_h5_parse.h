/* pack_h5_parse.h - the part of the HDF5 format that packing writes, read without the library; for this folder alone. */
#ifndef EN_DATA_PACK_H5_PARSE_H
#define EN_DATA_PACK_H5_PARSE_H

#include <stdint.h>

#include "kernels/status.h"

typedef struct { const char *path; int fd; int64_t size; } en_h5_file;     /* borrows */

/* An object header: its messages, which point into its chunks. */
enum { EN_H5_MESSAGES = 256, EN_H5_CHUNKS = 16, EN_H5_CHUNK_BYTES = 1 << 20 };
typedef struct { uint8_t type; const uint8_t *at; size_t n; } en_h5_message;
typedef struct { int chunks, messages; uint8_t *chunk[EN_H5_CHUNKS]; en_h5_message message[EN_H5_MESSAGES]; } en_h5_object;    /* owns chunk[] */

/* Where the root group's header is.  EN_EDATA: not HDF5, another kind of it than packing writes, cut off. */
en_status en_h5_root(const en_h5_file *f, int64_t *at);
en_status en_h5_read(const en_h5_file *f, int64_t at, en_h5_object *o);    /* o is empty or {0} before; EN_EDATA: damaged */
en_status en_h5_read_at(const en_h5_file *f, int64_t at, uint8_t *to, size_t n);     /* EN_EDATA: not inside the file */
void      en_h5_free(en_h5_object *o);

/* Integers are little-endian; text is of a fixed length, padded with zeros. */
typedef enum { EN_H5_OTHER, EN_H5_I64, EN_H5_I32, EN_H5_U32, EN_H5_U8, EN_H5_TEXT } en_h5_kind;

/* A dataset's rank (-1: it has none, or is no dataset), extent (of rank 1) and type. */
int        en_h5_shape(const en_h5_object *o, uint64_t *extent);
en_h5_kind en_h5_type(const en_h5_object *o, size_t *elem);
/* false: not stored in one piece in this file.  *at -1: nowhere yet. */
bool       en_h5_place(const en_h5_object *o, int64_t *at, int64_t *bytes);
bool       en_h5_hard_link(const en_h5_object *group, const char *name, int64_t *at);
/* The value of a scalar attribute of that kind, in o: *n bytes, little-endian; NULL. */
const uint8_t *en_h5_attribute(const en_h5_object *o, const char *name, en_h5_kind kind, size_t *n);

uint64_t en_h5_number(const uint8_t *p, int bytes);    /* little-endian */
uint32_t en_h5_checksum(const uint8_t *p, size_t n);   /* what a superblock and the chunks of an object header end in */

#endif
