/* checkpoint/h5.c - the little of HDF5 that is used, the same on 1.10, 1.12 and 1.14: only versioned names, since a
 * distribution may map the plain ones to 1.8's.
 *
 * The format is bounded to HDF5 1.8's (H5F_LIBVER_V18): any program of the last fifteen years reads it, and unlike the
 * default, 1.6's, every piece of its metadata carries a checksum that the library checks before it believes a byte.  A
 * flipped bit in an attribute or in a tensor's shape is thus refused by HDF5, one in a tensor's values by our crc32c. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/checkpoint/internal.h"
#include "trainer/crc32c.h"

static pthread_mutex_t lock;
static pthread_once_t lock_once = PTHREAD_ONCE_INIT;

static void make_lock(void)
{
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&lock, &attr);
    pthread_mutexattr_destroy(&attr);
}

void en_h5_enter(void)
{
    pthread_once(&lock_once, make_lock);
    pthread_mutex_lock(&lock);
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
}

void en_h5_leave(void) { pthread_mutex_unlock(&lock); }

/* ---- files --------------------------------------------------------------------------------------------------------- */

static bool in_creation_order(hid_t group_plist)
{
    return H5Pset_link_creation_order(group_plist, H5P_CRT_ORDER_TRACKED | H5P_CRT_ORDER_INDEXED) >= 0
        && H5Pset_obj_track_times(group_plist, false) >= 0;      /* no clock in the file: equal states give equal bytes */
}

hid_t en_h5_create_image(size_t raw_bytes)
{
    /* HDF5 tells open files apart by name, so each image gets its own, one that no file can have: it looks for it.  The
     * image grows by `increment`: realloc moves pages of that size, not bytes, so a small one costs little. */
    static atomic_uint images;
    char name[64];
    snprintf(name, sizeof name, "/dev/null/effnet-image-%u", atomic_fetch_add(&images, 1));
    size_t increment = raw_bytes / 8;
    if (increment < 256u << 10) increment = 256u << 10;
    if (increment > 64u << 20) increment = 64u << 20;

    hid_t file = -1;
    const hid_t fapl = H5Pcreate(H5P_FILE_ACCESS), fcpl = H5Pcreate(H5P_FILE_CREATE);
    if (fapl >= 0 && fcpl >= 0
        && H5Pset_fapl_core(fapl, increment, false) >= 0
        && H5Pset_libver_bounds(fapl, H5F_LIBVER_V18, H5F_LIBVER_V18) >= 0
        && H5Pset_fclose_degree(fapl, H5F_CLOSE_STRONG) >= 0
        && H5Pset_attr_phase_change(fcpl, 128, 0) >= 0           /* the attributes of / stay together, in its header     */
        && in_creation_order(fcpl))
        file = H5Fcreate(name, H5F_ACC_TRUNC, fcpl, fapl);
    if (fapl >= 0 && file >= 0) H5Pclose(fapl);                  /* after a failure: closing would clear the error       */
    if (fcpl >= 0 && file >= 0) H5Pclose(fcpl);
    return file;
}

hid_t en_h5_open(const char *path)
{
    const hid_t fapl = H5Pcreate(H5P_FILE_ACCESS);
    if (fapl < 0) return -1;
    hid_t file = -1;
    if (H5Pset_fclose_degree(fapl, H5F_CLOSE_STRONG) >= 0
#if H5_VERSION_GE(1, 12, 1) || (H5_VERSION_GE(1, 10, 7) && !H5_VERSION_GE(1, 12, 0))
        && H5Pset_file_locking(fapl, false, true) >= 0
#endif
    )
        file = H5Fopen(path, H5F_ACC_RDONLY, fapl);
    char why[256] = "";
    if (file < 0) snprintf(why, sizeof why, "%s", en_h5_error());
    H5Pclose(fapl);
    if (file < 0) H5Epush2(H5E_DEFAULT, __FILE__, __func__, __LINE__, H5E_ERR_CLS, H5E_FILE, H5E_CANTOPENFILE, "%s", why);
    return file;
}

/* ---- what is in them ----------------------------------------------------------------------------------------------- */

bool en_h5_group(hid_t file, const char *path)
{
    const hid_t gcpl = H5Pcreate(H5P_GROUP_CREATE);
    const hid_t group = gcpl >= 0 && in_creation_order(gcpl) ? H5Gcreate2(file, path, H5P_DEFAULT, gcpl, H5P_DEFAULT) : -1;
    if (group < 0) return false;
    H5Pclose(gcpl);
    return H5Gclose(group) >= 0;
}

static bool attr_in(hid_t object, const char *name, hid_t file_type, hid_t memory_type, hid_t space, const void *value)
{
    const hid_t attr = space >= 0 ? H5Acreate2(object, name, file_type, space, H5P_DEFAULT, H5P_DEFAULT) : -1;
    return attr >= 0 && H5Awrite(attr, memory_type, value) >= 0 && H5Aclose(attr) >= 0 && H5Sclose(space) >= 0;
}

bool en_h5_attr(hid_t object, const char *name, hid_t file_type, hid_t memory_type, const void *value)
{
    return attr_in(object, name, file_type, memory_type, H5Screate(H5S_SCALAR), value);
}

bool en_h5_is_one(hid_t attr, hid_t want, size_t *bytes)
{
    const hid_t space = H5Aget_space(attr), type = space >= 0 ? H5Aget_type(attr) : -1;
    const bool is = type >= 0 && H5Sget_simple_extent_npoints(space) == 1
                 && (want >= 0 ? H5Tequal(type, want) > 0 : H5Tget_class(type) == H5T_STRING && H5Tis_variable_str(type) == 0);
    if (is && bytes) *bytes = H5Tget_size(type);
    if (type >= 0) H5Tclose(type);
    if (space >= 0) H5Sclose(space);
    return is;
}

static hid_t text_type(size_t bytes)
{
    const hid_t type = H5Tcopy(H5T_C_S1);
    return type >= 0 && H5Tset_size(type, bytes ? bytes : 1) >= 0 && H5Tset_strpad(type, H5T_STR_NULLPAD) >= 0
        && H5Tset_cset(type, H5T_CSET_UTF8) >= 0 ? type : -1;
}

bool en_h5_attr_text(hid_t object, const char *name, const char *text)
{
    const hid_t type = text_type(strlen(text));
    return type >= 0 && en_h5_attr(object, name, type, type, text) && H5Tclose(type) >= 0;
}

bool en_h5_dataset(hid_t file, const char *path, hid_t file_type, hid_t memory_type, int ndim, const int64_t *dims,
                   const void *data, bool with_crc)
{
    hsize_t extent[H5S_MAX_RANK];
    uint64_t n = 1;
    for (int d = 0; d < ndim; d++) n *= extent[d] = (hsize_t)dims[d];
    const hid_t space = ndim ? H5Screate_simple(ndim, extent, NULL) : H5Screate(H5S_SCALAR);
    const hid_t dcpl = H5Pcreate(H5P_DATASET_CREATE), lcpl = H5Pcreate(H5P_LINK_CREATE);
    hid_t set = -1;
    if (space >= 0 && dcpl >= 0 && lcpl >= 0
        && H5Pset_layout(dcpl, H5D_CONTIGUOUS) >= 0
        && H5Pset_alloc_time(dcpl, H5D_ALLOC_TIME_EARLY) >= 0
        && H5Pset_fill_time(dcpl, H5D_FILL_TIME_NEVER) >= 0
        && H5Pset_obj_track_times(dcpl, false) >= 0
        && H5Pset_create_intermediate_group(lcpl, 1) >= 0)
        set = H5Dcreate2(file, path, file_type, space, lcpl, dcpl, H5P_DEFAULT);
    if (set < 0 || (n > 0 && H5Dwrite(set, memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) < 0)) return false;
    if (with_crc) {
        const uint32_t crc = en_crc32c(0, data, (size_t)n * H5Tget_size(memory_type));
        if (!en_h5_attr(set, "crc32c", H5T_STD_U32LE, H5T_NATIVE_UINT32, &crc)) return false;
    }
    return H5Dclose(set) >= 0 && H5Sclose(space) >= 0 && H5Pclose(dcpl) >= 0 && H5Pclose(lcpl) >= 0;
}

bool en_h5_strings(hid_t file, const char *path, int64_t n, char *const *strings, bool with_crc)
{
    size_t width = 1;
    for (int64_t i = 0; i < n; i++) {
        const size_t length = strlen(strings[i]);
        if (length > width) width = length;
    }
    char *packed = calloc(n > 0 ? (size_t)n : 1, width);
    if (!packed) {
        H5Eclear2(H5E_DEFAULT);
        H5Epush2(H5E_DEFAULT, __FILE__, __func__, __LINE__, H5E_ERR_CLS, H5E_RESOURCE, H5E_NOSPACE, "no memory for strings");
        return false;
    }
    for (int64_t i = 0; i < n; i++) memcpy(packed + (size_t)i * width, strings[i], strlen(strings[i]));
    const hid_t type = text_type(width);
    const bool ok = type >= 0 && en_h5_dataset(file, path, type, type, 1, &n, packed, with_crc) && H5Tclose(type) >= 0;
    free(packed);
    return ok;
}
