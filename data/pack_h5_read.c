/* pack_h5_read.c - the index of a packed file, believed only after it has been checked.
 *
 * What is opened may be cut off, damaged, of another program, or made to do harm.  The order is
 *
 *     superblock by hand ─▶ HDF5 ─▶ kind, type, rank, layout and place of each dataset ─▶ memory ─▶ values ─▶ values against each other
 *
 * The first step reads 48 bytes: only the superblock that packing writes (version 2, no user block, checksummed metadata, an end
 * of file that is the file's) goes on to HDF5, which keeps old formats without checksums away from its parser, and finds a
 * truncated file at once.  A dataset's values must lie inside the file before memory is taken for them, so memory is bounded by the size of
 * the file.  Soft and external links, external and virtual storage are refused: nothing but the named file is ever opened. */
#include "pack_inside.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <hdf5.h>
#include <zlib.h>

static const char signature[8] = "\x89HDF\r\n\x1a\n";
enum { SUPERBLOCK = 48 };

typedef struct { const char *path; int fd; int64_t size; hid_t h5; } opened;

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

static int64_t little_endian(const uint8_t *p)
{
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--) v = v << 8 | p[i];
    return v <= INT64_MAX ? (int64_t)v : -1;
}

static en_status check_superblock(const opened *f)
{
    uint8_t s[SUPERBLOCK];
    const ssize_t got = pread(f->fd, s, sizeof s, 0);
    EN_REQUIRE(got >= 0, EN_EIO, "%s cannot be read (%s)", f->path, strerror(errno));
    EN_REQUIRE(got == SUPERBLOCK && memcmp(s, signature, sizeof signature) == 0, EN_EDATA, "%s is no packed dataset; `effnet pack` makes them",
               f->path);
    EN_REQUIRE((s[8] == 2 || s[8] == 3) && s[9] == 8 && s[10] == 8 && little_endian(s + 12) == 0, EN_EDATA,
               "%s is an HDF5 file, but not as `effnet pack` writes it (superblock version %d); make it with `effnet pack`", f->path, s[8]);
    const int64_t end = little_endian(s + 28);
    EN_REQUIRE(end <= f->size || end < 0, EN_EDATA, "%s is cut off: it has %" PRId64 " bytes of %" PRId64 "; copy it again, or pack again", f->path,
               f->size, end);
    EN_REQUIRE(end == f->size, EN_EDATA, "%s is damaged: it has %" PRId64 " bytes and says %" PRId64 "; copy it again, or pack again", f->path,
               f->size, end);
    return EN_OK;
}

static en_status open_file(const char *path, opened *f)
{
    *f = (opened){ .path = path, .fd = -1, .h5 = -1 };
    f->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    EN_REQUIRE(f->fd >= 0, errno == ENOENT ? EN_EDATA : EN_EIO, "%s cannot be opened (%s)", path, strerror(errno));
    struct stat st, same;
    EN_REQUIRE(fstat(f->fd, &st) == 0 && S_ISREG(st.st_mode), EN_EDATA, "%s is not a regular file", path);
    f->size = st.st_size;
    EN_TRY(check_superblock(f), "opening %s", path);

    /* No locks: on network file systems they are often missing, or held by whoever died. */
    en_pack_h5_quiet();
    const hid_t fapl = H5Pcreate(H5P_FILE_ACCESS);
    EN_REQUIRE(fapl >= 0 && H5Pset_fclose_degree(fapl, H5F_CLOSE_STRONG) >= 0, EN_EIO, "HDF5: %s", en_pack_h5_error());
#if H5_VERSION_GE(1, 12, 1) || (H5_VERSION_GE(1, 10, 7) && !H5_VERSION_GE(1, 12, 0))
    H5Pset_file_locking(fapl, false, true);
#else
    setenv("HDF5_USE_FILE_LOCKING", "FALSE", 0);
#endif
    f->h5 = H5Fopen(path, H5F_ACC_RDONLY, fapl);
    const char *why = f->h5 < 0 ? en_pack_h5_error() : "";
    H5Pclose(fapl);
    EN_REQUIRE(f->h5 >= 0, EN_EDATA, "%s is damaged: HDF5 cannot open it: %s", path, why);
    int *handle = NULL;
    EN_REQUIRE(H5Fget_vfd_handle(f->h5, H5P_DEFAULT, (void **)&handle) >= 0 && handle && fstat(*handle, &same) == 0
               && same.st_dev == st.st_dev && same.st_ino == st.st_ino, EN_EDATA, "%s was replaced while it was opened; try again", path);
    return EN_OK;
}

static void close_file(opened *f)
{
    if (f->h5 >= 0) H5Fclose(f->h5);
    if (f->fd >= 0) close(f->fd);
    f->h5 = f->fd = -1;
}

/* ---- attributes --------------------------------------------------------------------------------------------------------- */

static bool attribute(hid_t object, const char *name, hid_t file_type, hid_t memory_type, void *value)
{
    if (H5Aexists(object, name) <= 0) return false;
    const hid_t attr = H5Aopen(object, name, H5P_DEFAULT), type = attr >= 0 ? H5Aget_type(attr) : -1, space = attr >= 0 ? H5Aget_space(attr) : -1;
    const bool read = type >= 0 && space >= 0 && H5Tequal(type, file_type) > 0 && H5Sget_simple_extent_type(space) == H5S_SCALAR
                   && H5Aread(attr, memory_type, value) >= 0;
    if (type >= 0) H5Tclose(type);
    if (space >= 0) H5Sclose(space);
    if (attr >= 0) H5Aclose(attr);
    return read;
}

static en_status number(const opened *f, const char *name, int64_t *value)
{
    EN_REQUIRE(attribute(f->h5, name, H5T_STD_I64LE, H5T_NATIVE_INT64, value), EN_EDATA, "%s: the attribute %s is missing or no int64", f->path,
               name);
    return EN_OK;
}

static en_status check_format(const opened *f)
{
    char format[sizeof EN_PACK_FORMAT] = "";
    const hid_t type = H5Tcopy(H5T_C_S1);
    const bool ours = type >= 0 && H5Tset_size(type, sizeof format - 1) >= 0 && H5Tset_strpad(type, H5T_STR_NULLPAD) >= 0
                   && H5Tset_cset(type, H5T_CSET_UTF8) >= 0 && attribute(f->h5, "format", type, type, format)
                   && strcmp(format, EN_PACK_FORMAT) == 0;
    if (type >= 0) H5Tclose(type);
    EN_REQUIRE(ours, EN_EDATA, "%s is an HDF5 file, but no packed dataset; `effnet pack` makes them", f->path);
    int64_t version = 0, complete = 0;
    EN_TRY(number(f, "version", &version), "opening %s", f->path);
    EN_REQUIRE(version == EN_PACK_VERSION, EN_EDATA, "%s is of format version %" PRId64 "; this program reads %d: pack again, or use a newer program",
               f->path, version, EN_PACK_VERSION);
    EN_TRY(number(f, "complete", &complete), "opening %s", f->path);
    EN_REQUIRE(complete == 1, EN_EDATA, "%s is not complete; pack again", f->path);
    return EN_OK;
}

/* ---- datasets ----------------------------------------------------------------------------------------------------------- */

typedef struct { hid_t set, type; int64_t n, at; size_t elem; } column;

static bool is_hard_link(hid_t file, const char *name)
{
#if H5_VERSION_GE(1, 12, 0)
    H5L_info2_t info;
    return H5Lget_info2(file, name, &info, H5P_DEFAULT) >= 0 && info.type == H5L_TYPE_HARD;
#else
    H5L_info_t info;
    return H5Lget_info(file, name, &info, H5P_DEFAULT) >= 0 && info.type == H5L_TYPE_HARD;
#endif
}

static bool is_contiguous(hid_t set)
{
    const hid_t plist = H5Dget_create_plist(set);
    const bool yes = plist >= 0 && H5Pget_layout(plist) == H5D_CONTIGUOUS && H5Pget_external_count(plist) == 0;
    if (plist >= 0) H5Pclose(plist);
    return yes;
}

static void column_close(column *c)
{
    if (c->type >= 0) H5Tclose(c->type);
    if (c->set >= 0) H5Dclose(c->set);
    c->type = c->set = -1;
}

/* type < 0: strings of fixed length.  n < 0: any length but 0.  Values are inside the file afterwards; none has been read. */
static en_status look_at(const opened *f, const char *name, hid_t type, int64_t n, column *c)
{
    hsize_t extent = 0;
    EN_REQUIRE(is_hard_link(f->h5, name), EN_EDATA, "%s has no dataset %s", f->path, name);
    c->set = H5Dopen2(f->h5, name, H5P_DEFAULT);
    EN_REQUIRE(c->set >= 0, EN_EDATA, "%s: %s cannot be opened: %s", f->path, name, en_pack_h5_error());
    EN_REQUIRE(is_contiguous(c->set), EN_EDATA, "%s: %s is not stored in one piece inside the file (chunked, compact, external or virtual)", f->path,
               name);
    const hid_t space = H5Dget_space(c->set);
    const bool flat = space >= 0 && H5Sget_simple_extent_ndims(space) == 1 && H5Sget_simple_extent_dims(space, &extent, NULL) == 1;
    if (space >= 0) H5Sclose(space);
    EN_REQUIRE(flat, EN_EDATA, "%s: %s is not one-dimensional", f->path, name);
    EN_REQUIRE(extent >= 1 && extent <= (hsize_t)INT64_MAX, EN_EDATA, "%s: %s is empty", f->path, name);
    c->n = (int64_t)extent;
    EN_REQUIRE(n < 0 || c->n == n, EN_EDATA, "%s: %s has %" PRId64 " values and should have %" PRId64, f->path, name, c->n, n);
    c->type = H5Dget_type(c->set);
    const bool right = c->type >= 0 && (type >= 0 ? H5Tequal(c->type, type) > 0
                     : H5Tget_class(c->type) == H5T_STRING && H5Tis_variable_str(c->type) == 0 && H5Tget_strpad(c->type) == H5T_STR_NULLPAD);
    EN_REQUIRE(right, EN_EDATA, "%s: %s is of another type than packing gives it", f->path, name);
    c->elem = H5Tget_size(c->type);
    const haddr_t at = H5Dget_offset(c->set);
    int64_t bytes;
    EN_REQUIRE(c->elem >= 1 && c->elem <= EN_PACK_NAME && !__builtin_mul_overflow(c->n, (int64_t)c->elem, &bytes) && at != HADDR_UNDEF
               && at <= (haddr_t)f->size && bytes <= f->size - (int64_t)at, EN_EDATA, "%s: %s lies outside the file", f->path, name);
    c->at = (int64_t)at;
    return EN_OK;
}

/* *values (malloc'd, owned by the caller), with their CRC compared. */
static en_status read_column(const opened *f, const char *name, hid_t type, hid_t memory_type, int64_t n, void **values, int64_t *count,
                             size_t *elem)
{
    en_status status = EN_OK;
    column c = { .set = -1, .type = -1 };
    uint32_t crc = 0;
    *values = NULL;
    EN_TRY_OUT(look_at(f, name, type, n, &c), "reading the index of %s", f->path);
    *values = malloc((size_t)c.n * c.elem);
    EN_REQUIRE_OUT(*values, EN_ENOMEM, "no memory for the %" PRId64 " values of %s in %s", c.n, name, f->path);
    EN_REQUIRE_OUT(H5Dread(c.set, memory_type < 0 ? c.type : memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, *values) >= 0, EN_EIO,
                   "%s: %s cannot be read: %s", f->path, name, en_pack_h5_error());
    EN_REQUIRE_OUT(attribute(c.set, "crc32", H5T_STD_U32LE, H5T_NATIVE_UINT32, &crc), EN_EDATA, "%s: %s has no checksum", f->path, name);
    const uint32_t is = (uint32_t)crc32_z(0, *values, (size_t)c.n * c.elem);
    EN_REQUIRE_OUT(is == crc, EN_EDATA, "%s is damaged: the CRC-32 of %s is %08x and should be %08x; copy it again, or pack again", f->path, name, is,
                   crc);
    if (count) *count = c.n;
    if (elem) *elem = c.elem;
out:
    column_close(&c);
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
    EN_TRY_OUT(read_column(f, "/splits", -1, -1, -1, &names, &x->splits, &width), "reading the parts of %s", f->path);
    EN_REQUIRE_OUT(x->splits <= EN_PACK_SPLITS && width == sizeof x->split[0], EN_EDATA, "%s: /splits has %" PRId64 " parts", f->path, x->splits);
    memcpy(x->split, names, (size_t)x->splits * width);
    for (int64_t k = 0; k < x->splits; k++) {
        const char *name = x->split[k];
        const bool known = memchr(name, 0, width) && (strcmp(name, "train") == 0 || strcmp(name, "val") == 0 || (!*name && x->splits == 1));
        EN_REQUIRE_OUT(known && (k == 0 || strcmp(name, x->split[0]) != 0), EN_EDATA, "%s: /splits names other parts than train and val, once each",
                       f->path);
    }
    EN_TRY_OUT(read_column(f, "/split_offsets", H5T_STD_I64LE, H5T_NATIVE_INT64, x->splits + 1, &at, NULL, NULL), "reading the parts of %s", f->path);
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
    column bytes = { .set = -1, .type = -1 };
    EN_TRY(check_format(f), "opening %s", f->path);
    EN_TRY(number(f, "undecodable", &x->bad), "opening %s", f->path);
    EN_TRY(number(f, "shrunk", &x->shrunk), "opening %s", f->path);
    EN_TRY(number(f, "max_side", &x->max_side), "opening %s", f->path);
    EN_TRY(number(f, "quality", &x->quality), "opening %s", f->path);
    EN_TRY(read_splits(f, x), "opening %s", f->path);
    EN_TRY(read_column(f, "/labels", H5T_STD_I32LE, H5T_NATIVE_INT32, -1, &p, &x->n, NULL), "opening %s", f->path);
    x->labels = p;
    EN_REQUIRE(x->n <= UINT32_MAX, EN_EDATA, "%s has %" PRId64 " samples; 2^32 - 1 are the limit", f->path, x->n);
    EN_TRY(read_column(f, "/offsets", H5T_STD_I64LE, H5T_NATIVE_INT64, x->n + 1, &p, NULL, NULL), "opening %s", f->path);
    x->offsets = p;
    EN_TRY(read_column(f, "/crc32", H5T_STD_U32LE, H5T_NATIVE_UINT32, x->n, &p, NULL, NULL), "opening %s", f->path);
    x->crc = p;
    EN_TRY(read_column(f, "/classes", -1, -1, -1, &p, &x->classes, &x->class_width), "opening %s", f->path);
    x->class_names = p;
    EN_REQUIRE(x->classes <= INT32_MAX, EN_EDATA, "%s has %" PRId64 " classes", f->path, x->classes);
    EN_TRY(read_column(f, "/files", -1, -1, x->n, &p, NULL, &x->file_width), "opening %s", f->path);
    x->files = p;
    const en_status status = look_at(f, "/bytes", H5T_STD_U8LE, -1, &bytes);
    column_close(&bytes);
    EN_TRY(status, "opening %s", f->path);
    *bytes_at = bytes.at;
    EN_TRY(check_numbers(f->path, x, bytes.n), "checking the index of %s", f->path);
    EN_TRY(check_names(f->path, x), "checking the index of %s", f->path);
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
        *fd = f.fd;
        f.fd = -1;
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
