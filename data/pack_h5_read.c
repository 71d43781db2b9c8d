/* pack_h5_read.c - the index of a packed file, believed only after it has been checked.
 *
 * What is opened may be cut off, damaged, of another program, or made to do harm.  The order is
 *
 *     superblock ─▶ object headers ─▶ kind, type, rank, layout and place of each dataset ─▶ memory ─▶ values ─▶ values against each other
 *
 * The HDF5 library writes these files but does not read them: pack_h5_parse.c says why and does.  A dataset's values must lie inside the
 * file before memory is taken for them, so memory is bounded by the size of the file.  Only hard links are followed and only storage in
 * one piece is taken: nothing but the named file is ever opened. */
#include "pack_inside.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <zlib.h>

#include "pack_h5_parse.h"

static const char signature[8] = "\x89HDF\r\n\x1a\n";

typedef struct { en_h5_file file; en_h5_object root; } opened;

bool en_is_packed(const char *path)
{
    char head[sizeof signature];
    struct stat st;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) return false;
    const bool yes = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && pread(fd, head, sizeof head, 0) == (ssize_t)sizeof head
                  && memcmp(head, signature, sizeof head) == 0;
    close(fd);
    return yes;
}

static en_status open_file(const char *path, opened *f)
{
    *f = (opened){ .file = { .path = path, .fd = -1 } };
    f->file.fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    EN_REQUIRE(f->file.fd >= 0, errno == ENOENT ? EN_EDATA : EN_EIO, "%s cannot be opened (%s)", path, strerror(errno));
    struct stat st;
    EN_REQUIRE(fstat(f->file.fd, &st) == 0 && S_ISREG(st.st_mode), EN_EDATA, "%s is not a regular file", path);
    f->file.size = st.st_size;
    int64_t at;
    EN_TRY(en_h5_root(&f->file, &at), "opening %s", path);
    EN_TRY(en_h5_read(&f->file, at, &f->root), "opening %s", path);
    return EN_OK;
}

static void close_file(opened *f)
{
    if (f->file.fd >= 0) close(f->file.fd);
    f->file.fd = -1;
    en_h5_free(&f->root);
}

/* ---- attributes --------------------------------------------------------------------------------------------------------- */

static en_status number(const opened *f, const char *name, int64_t *value)
{
    size_t n;
    const uint8_t *p = en_h5_attribute(&f->root, name, EN_H5_I64, &n);
    EN_REQUIRE(p, EN_EDATA, "%s: the attribute %s is missing or no int64", f->file.path, name);
    *value = (int64_t)en_h5_number(p, 8);
    return EN_OK;
}

static en_status check_format(const opened *f)
{
    size_t n;
    const uint8_t *format = en_h5_attribute(&f->root, "format", EN_H5_TEXT, &n);
    EN_REQUIRE(format && n == strlen(EN_PACK_FORMAT) && memcmp(format, EN_PACK_FORMAT, n) == 0, EN_EDATA,
               "%s is an HDF5 file, but no packed dataset; `effnet pack` makes them", f->file.path);
    int64_t version = 0, complete = 0;
    EN_TRY(number(f, "version", &version), "opening %s", f->file.path);
    EN_REQUIRE(version == EN_PACK_VERSION, EN_EDATA, "%s is of format version %" PRId64 "; this program reads %d: pack again, or use a newer program",
               f->file.path, version, EN_PACK_VERSION);
    EN_TRY(number(f, "complete", &complete), "opening %s", f->file.path);
    EN_REQUIRE(complete == 1, EN_EDATA, "%s is not complete; pack again", f->file.path);
    return EN_OK;
}

/* ---- datasets ----------------------------------------------------------------------------------------------------------- */

typedef struct { en_h5_object set; int64_t n, at; size_t elem; } column;       /* owns set */

/* n < 0: any length but 0.  Values are inside the file afterwards; none has been read. */
static en_status look_at(const opened *f, const char *name, en_h5_kind kind, int64_t n, column *c)
{
    const char *path = f->file.path;
    int64_t header, place, bytes;
    uint64_t extent;
    EN_REQUIRE(en_h5_hard_link(&f->root, name, &header), EN_EDATA, "%s has no dataset /%s", path, name);
    EN_TRY(en_h5_read(&f->file, header, &c->set), "looking at /%s", name);
    const int rank = en_h5_shape(&c->set, &extent);
    const bool contiguous = en_h5_place(&c->set, &place, &bytes);
    EN_REQUIRE(rank >= 0 || contiguous, EN_EDATA, "%s: /%s cannot be opened: it is no dataset with values", path, name);
    EN_REQUIRE(contiguous, EN_EDATA, "%s: /%s is not stored in one piece inside the file (chunked, compact, external or virtual)", path, name);
    EN_REQUIRE(rank == 1, EN_EDATA, "%s: /%s is not one-dimensional", path, name);
    EN_REQUIRE(extent >= 1 && extent <= (uint64_t)INT64_MAX, EN_EDATA, "%s: /%s is empty", path, name);
    c->n = (int64_t)extent;
    EN_REQUIRE(n < 0 || c->n == n, EN_EDATA, "%s: /%s has %" PRId64 " values and should have %" PRId64, path, name, c->n, n);
    EN_REQUIRE(en_h5_type(&c->set, &c->elem) == kind, EN_EDATA, "%s: /%s is of another type than packing gives it", path, name);
    int64_t all;
    EN_REQUIRE(c->elem >= 1 && c->elem <= EN_PACK_NAME && !__builtin_mul_overflow(c->n, (int64_t)c->elem, &all) && all == bytes && place >= 0
               && place <= f->file.size && bytes <= f->file.size - place, EN_EDATA, "%s: /%s lies outside the file", path, name);
    c->at = place;
    return EN_OK;
}

/* *values (malloc'd, owned by the caller), with their CRC compared. */
static en_status read_column(const opened *f, const char *name, en_h5_kind kind, int64_t n, void **values, int64_t *count, size_t *elem)
{
    en_status status = EN_OK;
    column c = { .n = 0 };
    size_t width;
    *values = NULL;
    EN_TRY_OUT(look_at(f, name, kind, n, &c), "reading the index of %s", f->file.path);
    *values = malloc((size_t)c.n * c.elem);
    EN_REQUIRE_OUT(*values, EN_ENOMEM, "no memory for the %" PRId64 " values of /%s in %s", c.n, name, f->file.path);
    EN_TRY_OUT(en_h5_read_at(&f->file, c.at, *values, (size_t)c.n * c.elem), "reading the index of %s", f->file.path);
    const uint8_t *sum = en_h5_attribute(&c.set, "crc32", EN_H5_U32, &width);
    EN_REQUIRE_OUT(sum, EN_EDATA, "%s: /%s has no checksum", f->file.path, name);
    const uint32_t crc = (uint32_t)en_h5_number(sum, 4), is = (uint32_t)crc32_z(0, *values, (size_t)c.n * c.elem);
    EN_REQUIRE_OUT(is == crc, EN_EDATA, "%s is damaged: the CRC-32 of /%s is %08x and should be %08x; copy it again, or pack again", f->file.path,
                   name, is, crc);
    if (count) *count = c.n;
    if (elem) *elem = c.elem;
out:
    en_h5_free(&c.set);
    if (status != EN_OK) {
        free(*values);
        *values = NULL;
    }
    return status;
}

/* ---- the index ------------------------------------------------------------------------------------------------------------ */

static en_status read_splits(const opened *f, en_pack_index *x)
{
    en_status status = EN_OK;
    void *names = NULL, *at = NULL;
    size_t width = 0;
    EN_TRY_OUT(read_column(f, "splits", EN_H5_TEXT, -1, &names, &x->splits, &width), "reading the parts of %s", f->file.path);
    EN_REQUIRE_OUT(x->splits <= EN_PACK_SPLITS && width == sizeof x->split[0], EN_EDATA, "%s: /splits has %" PRId64 " parts", f->file.path,
                   x->splits);
    memcpy(x->split, names, (size_t)x->splits * width);
    for (int64_t k = 0; k < x->splits; k++) {
        const char *name = x->split[k];
        const bool known = memchr(name, 0, width) && (strcmp(name, "train") == 0 || strcmp(name, "val") == 0 || (!*name && x->splits == 1));
        EN_REQUIRE_OUT(known && (k == 0 || strcmp(name, x->split[0]) != 0), EN_EDATA, "%s: /splits names other parts than train and val, once each",
                       f->file.path);
    }
    EN_TRY_OUT(read_column(f, "split_offsets", EN_H5_I64, x->splits + 1, &at, NULL, NULL), "reading the parts of %s", f->file.path);
    memcpy(x->split_at, at, (size_t)(x->splits + 1) * sizeof *x->split_at);
out:
    free(names);
    free(at);
    return status;
}

static en_status check_names(const char *path, const en_pack_index *x)
{
    for (int64_t c = 0; c < x->classes; c++) {
        const char *name = x->class_names + (size_t)c * x->class_width;
        EN_REQUIRE(*name && !memchr(name, '/', x->class_width), EN_EDATA, "%s: class %" PRId64 " has no usable name", path, c);
        EN_REQUIRE(c == 0 || strncmp(name - x->class_width, name, x->class_width) < 0, EN_EDATA, "%s: the classes are not in byte order", path);
    }
    for (int64_t i = 0; i < x->n; i++) EN_REQUIRE(x->files[(size_t)i * x->file_width], EN_EDATA, "%s: sample %" PRId64 " has no name", path, i);
    return EN_OK;
}

static en_status check_numbers(const char *path, const en_pack_index *x, int64_t bytes)
{
    EN_REQUIRE(x->split_at[0] == 0 && x->split_at[x->splits] == x->n, EN_EDATA, "%s: the parts do not cover the samples", path);
    for (int64_t k = 0; k < x->splits; k++)
        EN_REQUIRE(x->split_at[k] < x->split_at[k + 1], EN_EDATA, "%s: part %" PRId64 " has no samples", path, k);
    EN_REQUIRE(x->offsets[0] == 0 && x->offsets[x->n] == bytes, EN_EDATA, "%s: /offsets do not cover /bytes", path);
    for (int64_t i = 0; i < x->n; i++) {
        const int64_t a = x->offsets[i], b = x->offsets[i + 1];
        EN_REQUIRE(a <= b && b <= bytes && b - a <= en_pack_sample_bytes, EN_EDATA,
                   "%s: sample %" PRId64 " is from byte %" PRId64 " to %" PRId64 " of %" PRId64, path, i, a, b, bytes);
        EN_REQUIRE(x->labels[i] >= 0 && x->labels[i] < x->classes, EN_EDATA, "%s: sample %" PRId64 " is of class %d of %" PRId64, path, i,
                   x->labels[i], x->classes);
    }
    return EN_OK;
}

static en_status read_index(const opened *f, en_pack_index *x, int64_t *bytes_at)
{
    void *p = NULL;
    column bytes = { .n = 0 };
    EN_TRY(check_format(f), "opening %s", f->file.path);
    EN_TRY(number(f, "undecodable", &x->bad), "opening %s", f->file.path);
    EN_TRY(number(f, "shrunk", &x->shrunk), "opening %s", f->file.path);
    EN_TRY(number(f, "max_side", &x->max_side), "opening %s", f->file.path);
    EN_TRY(number(f, "quality", &x->quality), "opening %s", f->file.path);
    EN_TRY(read_splits(f, x), "opening %s", f->file.path);
    EN_TRY(read_column(f, "labels", EN_H5_I32, -1, &p, &x->n, NULL), "opening %s", f->file.path);
    x->labels = p;
    EN_REQUIRE(x->n <= UINT32_MAX, EN_EDATA, "%s has %" PRId64 " samples; 2^32 - 1 are the limit", f->file.path, x->n);
    EN_TRY(read_column(f, "offsets", EN_H5_I64, x->n + 1, &p, NULL, NULL), "opening %s", f->file.path);
    x->offsets = p;
    EN_TRY(read_column(f, "crc32", EN_H5_U32, x->n, &p, NULL, NULL), "opening %s", f->file.path);
    x->crc = p;
    EN_TRY(read_column(f, "classes", EN_H5_TEXT, -1, &p, &x->classes, &x->class_width), "opening %s", f->file.path);
    x->class_names = p;
    EN_REQUIRE(x->classes <= INT32_MAX, EN_EDATA, "%s has %" PRId64 " classes", f->file.path, x->classes);
    EN_TRY(read_column(f, "files", EN_H5_TEXT, x->n, &p, NULL, &x->file_width), "opening %s", f->file.path);
    x->files = p;
    const en_status status = look_at(f, "bytes", EN_H5_U8, -1, &bytes);
    en_h5_free(&bytes.set);
    EN_TRY(status, "opening %s", f->file.path);
    *bytes_at = bytes.at;
    EN_TRY(check_numbers(f->file.path, x, bytes.n), "checking the index of %s", f->file.path);
    EN_TRY(check_names(f->file.path, x), "checking the index of %s", f->file.path);
    return EN_OK;
}

en_status en_pack_h5_read(const char *path, en_pack_index *x, int *fd, int64_t *bytes_at)
{
    opened f;
    *x = (en_pack_index){ 0 };
    en_status status = open_file(path, &f);
    if (status == EN_OK) status = read_index(&f, x, bytes_at);
    if (status != EN_OK) en_pack_index_free(x);
    else {
        *fd = f.file.fd;
        f.file.fd = -1;
    }
    close_file(&f);
    return status;
}

en_status en_pack_h5_splits(const char *path, en_pack_index *x)
{
    opened f;
    *x = (en_pack_index){ 0 };
    en_status status = open_file(path, &f);
    if (status == EN_OK) status = check_format(&f);
    if (status == EN_OK) status = read_splits(&f, x);
    close_file(&f);
    return status;
}
