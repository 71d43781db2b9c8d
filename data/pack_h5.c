/* pack_h5.c - the HDF5 side of writing: the file as HDF5 wants it, with a hole where the images are.
 *
 * HDF5 never touches the disk.  Through its own file driver a full disk was seen to end the process when it closed its files at
 * exit, and H5Dwrite takes one thread at a time.  So the library builds the file in memory (the core driver), where /bytes is allocated at
 * the end and never written: the memory ends where it begins.  That memory goes to the disk with plain writes, and the images go behind
 * it from any thread.  The driver frees its memory when the file is closed, and only then is everything in it (a flush would first extend it
 * to the length of the file), so it is taken over in the callback that is asked to free it.
 *
 * /bytes is made last, and both allocators that gather small pieces are off, so its place follows from names and counts
 * and not from how long it is: it is known before the first image is read, even when all sizes are still to come.
 *
 * The format is bounded to HDF5 1.8's (H5F_LIBVER_V18), in which every piece of metadata has a checksum that the library
 * checks; each index dataset carries the CRC-32 of its values; each image has its own in /crc32.  No byte is without one.  Without
 * time stamps, the same folder gives the same file. */
#include "pack_inside.h"
#include "h5_error.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <hdf5.h>
#include <zlib.h>

void en_pack_index_free(en_pack_index *x)
{
    free(x->files);
    free(x->class_names);
    free(x->offsets);
    free(x->labels);
    free(x->crc);
    *x = (en_pack_index){ 0 };
}

static hid_t text_type(size_t width)
{
    const hid_t type = H5Tcopy(H5T_C_S1);
    return type >= 0 && H5Tset_size(type, width) >= 0 && H5Tset_strpad(type, H5T_STR_NULLPAD) >= 0
        && H5Tset_cset(type, H5T_CSET_UTF8) >= 0 ? type : -1;
}

static bool attribute(hid_t object, const char *name, hid_t file_type, hid_t memory_type, const void *value)
{
    const hid_t space = H5Screate(H5S_SCALAR);
    const hid_t attr = space >= 0 ? H5Acreate2(object, name, file_type, space, H5P_DEFAULT, H5P_DEFAULT) : -1;
    return attr >= 0 && H5Awrite(attr, memory_type, value) >= 0 && H5Aclose(attr) >= 0 && H5Sclose(space) >= 0;
}

static bool number(hid_t file, const char *name, int64_t value)
{
    return attribute(file, name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
}

static bool text(hid_t file, const char *name, const char *value)
{
    const hid_t type = text_type(*value ? strlen(value) : 1);
    return type >= 0 && attribute(file, name, type, type, value) && H5Tclose(type) >= 0;
}

/* values NULL: room that is never written; *at where it is in the file */
static bool dataset(hid_t file, const char *name, hid_t file_type, hid_t memory_type, int64_t n, const void *values, haddr_t *at)
{
    const hsize_t extent = (hsize_t)n;
    const hid_t space = H5Screate_simple(1, &extent, NULL), plist = H5Pcreate(H5P_DATASET_CREATE);
    hid_t set = -1;
    if (space >= 0 && plist >= 0
        && H5Pset_layout(plist, H5D_CONTIGUOUS) >= 0
        && H5Pset_alloc_time(plist, H5D_ALLOC_TIME_EARLY) >= 0
        && H5Pset_fill_time(plist, H5D_FILL_TIME_NEVER) >= 0
        && H5Pset_obj_track_times(plist, false) >= 0)
        set = H5Dcreate2(file, name, file_type, space, H5P_DEFAULT, plist, H5P_DEFAULT);
    if (set < 0) return false;
    if (values) {
        /* the CRC is over the values as they lie in the file: little-endian, like every machine this runs on */
        const uint32_t crc = (uint32_t)crc32_z(0, values, (size_t)n * H5Tget_size(memory_type));
        if (H5Dwrite(set, memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) < 0
            || !attribute(set, "crc32", H5T_STD_U32LE, H5T_NATIVE_UINT32, &crc)) return false;
    }
    if (at) *at = H5Dget_offset(set);
    return H5Dclose(set) >= 0 && H5Sclose(space) >= 0 && H5Pclose(plist) >= 0;
}

static bool strings(hid_t file, const char *name, size_t width, int64_t n, const char *values)
{
    const hid_t type = text_type(width);
    return type >= 0 && dataset(file, name, type, type, n, values, NULL) && H5Tclose(type) >= 0;
}

/* The link to /bytes is written after /bytes has got its place.  It must find room in the root's header, or the header is
 * continued behind /bytes: room that a longer message leaves when it is taken away. */
static bool leave_room(hid_t file)
{
    return text(file, "room", "................................................................................") && H5Adelete(file, "room") >= 0;
}

static bool fill(hid_t file, const en_pack_index *x, haddr_t *bytes_at)
{
    char splits[EN_PACK_SPLITS][8] = { { 0 } };
    memcpy(splits, x->split, sizeof splits);
    return text(file, "format", EN_PACK_FORMAT)
        && number(file, "version", EN_PACK_VERSION)
        && number(file, "samples", x->n)
        && number(file, "class_count", x->classes)
        && number(file, "undecodable", x->bad)
        && number(file, "shrunk", x->shrunk)
        && number(file, "max_side", x->max_side)
        && number(file, "quality", x->quality)
        && text(file, "source", x->source)
        && number(file, "complete", 1)
        && strings(file, "/splits", sizeof splits[0], x->splits, splits[0])
        && dataset(file, "/split_offsets", H5T_STD_I64LE, H5T_NATIVE_INT64, x->splits + 1, x->split_at, NULL)
        && strings(file, "/classes", x->class_width, x->classes, x->class_names)
        && strings(file, "/files", x->file_width, x->n, x->files)
        && dataset(file, "/offsets", H5T_STD_I64LE, H5T_NATIVE_INT64, x->n + 1, x->offsets, NULL)
        && dataset(file, "/labels", H5T_STD_I32LE, H5T_NATIVE_INT32, x->n, x->labels, NULL)
        && dataset(file, "/crc32", H5T_STD_U32LE, H5T_NATIVE_UINT32, x->n, x->crc, NULL)
        && leave_room(file)
        && dataset(file, "/bytes", H5T_STD_U8LE, H5T_NATIVE_UINT8, x->offsets[x->n] > 0 ? x->offsets[x->n] : 1, NULL, bytes_at);
}

/* ---- memory that outlives the file ---------------------------------------------------------------------------------------- */

typedef struct { void *at; size_t n, most; } taken;      /* most: HDF5 gets no more, whatever it wants to put behind /bytes */

static void *take_malloc(size_t n, H5FD_file_image_op_t op, void *udata)
{
    (void)op, (void)udata;
    return malloc(n);
}

static void *take_realloc(void *p, size_t n, H5FD_file_image_op_t op, void *udata)
{
    taken *t = udata;
    (void)op;
    if (n > t->most) return NULL;
    void *grown = realloc(p, n);
    if (grown) t->n = n;
    return grown;
}

static herr_t take_free(void *p, H5FD_file_image_op_t op, void *udata)
{
    taken *t = udata;
    if (op == H5FD_FILE_IMAGE_OP_FILE_CLOSE) t->at = p;
    else free(p);
    return 0;
}

static void *same_udata(void *udata) { return udata; }
static herr_t keep_udata(void *udata) { (void)udata; return 0; }

static hid_t create(taken *t)
{
    enum { INCREMENT = 1 << 16 };
    H5FD_file_image_callbacks_t callbacks = { .image_malloc = take_malloc, .image_realloc = take_realloc, .image_free = take_free,
                                              .udata_copy = same_udata, .udata_free = keep_udata, .udata = t };
    const hid_t fapl = H5Pcreate(H5P_FILE_ACCESS), fcpl = H5Pcreate(H5P_FILE_CREATE);
    hid_t file = -1;
    if (fapl >= 0 && fcpl >= 0
        && H5Pset_fapl_core(fapl, INCREMENT, false) >= 0
        && H5Pset_file_image_callbacks(fapl, &callbacks) >= 0
        && H5Pset_libver_bounds(fapl, H5F_LIBVER_V18, H5F_LIBVER_V18) >= 0
        && H5Pset_fclose_degree(fapl, H5F_CLOSE_STRONG) >= 0
        && H5Pset_meta_block_size(fapl, 0) >= 0                      /* every piece is allocated by itself, one after the other */
        && H5Pset_small_data_block_size(fapl, 0) >= 0
        && H5Pset_attr_phase_change(fcpl, 64, 0) >= 0                /* attributes and links stay in the root's header */
        && H5Pset_link_phase_change(fcpl, 64, 0) >= 0
        && H5Pset_obj_track_times(fcpl, false) >= 0)
        file = H5Fcreate("/dev/null/effnet-pack", H5F_ACC_TRUNC, fcpl, fapl);    /* a name that no file can have */
    if (file < 0) return -1;                                         /* closing would clear the error */
    H5Pclose(fapl);
    H5Pclose(fcpl);
    return file;
}

en_status en_pack_h5_build(const en_pack_index *x, uint8_t **image, int64_t *bytes_at)
{
    en_status status = EN_OK;
    haddr_t at = HADDR_UNDEF;
    taken t = { .most = (size_t)x->n * (x->file_width + 16) + (size_t)x->classes * x->class_width + (16u << 20) };
    *image = NULL;
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);     /* this thread's HDF5 keeps its error stack to itself */
    hid_t file = create(&t);
    EN_REQUIRE_OUT(file >= 0 && fill(file, x, &at), EN_EIO, "HDF5 cannot build the index of %" PRId64 " samples in memory: %s", x->n,
                   en_h5_error());
    const bool closed = H5Fclose(file) >= 0;
    file = -1;
    EN_REQUIRE_OUT(closed && t.at, EN_EIO, "HDF5 cannot finish the index in memory: %s", en_h5_error());
    const haddr_t bytes = x->offsets[x->n] > 0 ? (haddr_t)x->offsets[x->n] : 1;
    uint64_t end = 0;                          /* as the superblock has it */
    if (t.n >= 36) memcpy(&end, (const char *)t.at + 28, sizeof end);
    EN_REQUIRE_OUT(at != HADDR_UNDEF && at <= t.n && end == at + bytes, EN_EIO, "HDF5 did not put /bytes at the end of the file");
    *bytes_at = (int64_t)at;
    *image = t.at;
    t.at = NULL;
out:
    if (file >= 0) H5Fclose(file);
    free(t.at);
    return status;
}
