/* hostile_h5.c - numbers, types, datasets and links that are likely to hurt, all of them written by HDF5. */
#define _GNU_SOURCE
#include "hostile_h5.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "data/pack_h5_parse.h"

/* ---- the input ---- */

uint64_t hostile_take(hostile_input *p, int bytes)
{
    uint64_t v = 0;
    for (int i = 0; i < bytes; i++) v |= (uint64_t)(p->at < p->end ? *p->at++ : 0) << 8 * i;
    return v;
}

#define take hostile_take

/* A number that is likely to hurt. */
uint64_t hostile_number(hostile_input *p)
{
    static const int64_t edges[] = { 0, 1, -1, INT64_MAX, INT64_MIN, INT32_MAX, INT32_MIN, UINT32_MAX, 1ll << 32, 1ll << 40, 1ll << 62, 4095, 4096, 4097 };
    const unsigned kind = (unsigned)take(p, 1);
    if (kind < 64) return (uint64_t)edges[kind % (sizeof edges / sizeof *edges)];
    if (kind < 128) return kind - 64;
    return take(p, kind < 192 ? 2 : kind < 224 ? 4 : 8);
}

/* Types that are made here, until the file is written. */
static hid_t made[128];
static int   n_made;
static hid_t remember(hid_t type)
{
    if (n_made < (int)(sizeof made / sizeof *made)) made[n_made++] = type;
    return type;
}

hid_t hostile_text_type(size_t width, H5T_str_t pad)
{
    const hid_t type = remember(H5Tcopy(H5T_C_S1));
    H5Tset_size(type, width);
    H5Tset_strpad(type, pad);
    H5Tset_cset(type, H5T_CSET_UTF8);
    return type;
}

hid_t hostile_type(hostile_input *p, unsigned kinds)
{
    switch (take(p, 1) % kinds) {
    case 0: return H5T_STD_I8LE;    case 1: return H5T_STD_U8LE;    case 2: return H5T_STD_I16BE;   case 3: return H5T_STD_I32LE;
    case 4: return H5T_STD_I32BE;   case 5: return H5T_STD_U32LE;   case 6: return H5T_STD_I64LE;   case 7: return H5T_STD_I64BE;
    case 8: return H5T_STD_U64LE;   case 9: return H5T_IEEE_F32LE;  case 10: return H5T_IEEE_F64LE; case 11: return H5T_STD_B64LE;
    case 12: return hostile_text_type(1, H5T_STR_NULLPAD);
    case 13: return hostile_text_type(8, H5T_STR_NULLPAD);
    case 14: return hostile_text_type(1 + take(p, 2) % 5000, H5T_STR_NULLPAD);
    case 15: return hostile_text_type(8, H5T_STR_SPACEPAD);
    case 16: return hostile_text_type(1 + take(p, 1), H5T_STR_NULLTERM);
    case 17: return remember(H5Tarray_create2(H5T_STD_I32LE, 1, &(hsize_t){ 1 + take(p, 1) % 16 }));
    case 18: return remember(H5Tcreate(H5T_OPAQUE, 1 + take(p, 1)));
    case 19: {
        const hid_t pair = remember(H5Tcreate(H5T_COMPOUND, 16));
        H5Tinsert(pair, "a", 0, H5T_STD_I64LE);
        H5Tinsert(pair, "b", 8, H5T_STD_I64LE);
        return pair;
    }
    case 20: return hostile_text_type(H5T_VARIABLE, H5T_STR_NULLTERM);
    case 21: return remember(H5Tvlen_create(H5T_STD_I32LE));
    case 22: return H5T_STD_REF_OBJ;
    case 23: return H5T_STD_REF_DSETREG;
    case 24: {
        const hid_t names = remember(H5Tenum_create(H5T_STD_I64LE));
        H5Tenum_insert(names, "one", &(int64_t){ 1 });
        return names;
    }
    case 25: {                                 /* a float that no machine has */
        const hid_t odd = remember(H5Tcopy(H5T_IEEE_F64LE));
        H5Tset_size(odd, 8 + take(p, 1) % 9);
        H5Tset_fields(odd, 63, 52 - take(p, 1) % 4, 11, 0, 50 - take(p, 1) % 40);
        return odd;
    }
    case 26: {
        const hid_t odd = remember(H5Tcopy(take(p, 1) & 1 ? H5T_STD_I64LE : H5T_STD_U64BE));
        H5Tset_size(odd, 1 + take(p, 1) % 64);
        H5Tset_precision(odd, 1 + take(p, 1) % 64);
        return odd;
    }
    default: return remember(H5Tarray_create2(hostile_text_type(H5T_VARIABLE, H5T_STR_NULLTERM), 1, &(hsize_t){ 1 + take(p, 1) % 4 }));
    }
}

void hostile_types_close(void) { while (n_made > 0) H5Tclose(made[--n_made]); }

/* ---- writing: a call that fails leaves something out, which is one more way to be wrong ---- */

void hostile_attribute(hid_t object, const char *name, hid_t type, hid_t space, const void *value)
{
    const hid_t a = H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    if (a < 0) return;
    H5Awrite(a, type, value);
    H5Aclose(a);
}

hid_t hostile_dataset(hid_t file, const char *name, const hostile_data *c, size_t *bytes)
{
    hsize_t extent[32], chunk[32], most[32];
    for (int d = 0; d < 32; d++) extent[d] = chunk[d] = most[d] = 1;
    extent[0] = most[0] = c->n;
    chunk[0] = c->n > 0 && c->n < HOSTILE_ROOM ? c->n : 1;     /* one chunk, or none is written */
    if (c->stored == UNLIMITED) most[0] = H5S_UNLIMITED;
    const bool held = c->rank == 0 || (c->n < HOSTILE_ROOM && c->n * c->elem <= HOSTILE_ROOM);       /* or it can only be claimed */
    const hostile_layout stored = held ? c->stored : c->stored == CHUNKED || c->stored == UNLIMITED || c->stored == VIRTUAL ? c->stored : LATE;
    const hid_t space = c->rank < 0 ? H5Screate(H5S_NULL) : c->rank == 0 ? H5Screate(H5S_SCALAR) : H5Screate_simple(c->rank, extent, most);
    const hid_t plist = H5Pcreate(H5P_DATASET_CREATE);
    const bool filled = H5Tdetect_class(c->type, H5T_VLEN) > 0 || H5Tis_variable_str(c->type) > 0;      /* HDF5 wants pointers filled */
    if (!filled) H5Pset_fill_time(plist, H5D_FILL_TIME_NEVER);
    if (stored == CONTIGUOUS) H5Pset_alloc_time(plist, H5D_ALLOC_TIME_EARLY);
    if (stored == CHUNKED || stored == DEFLATED || stored == UNLIMITED || stored == FLETCHER) H5Pset_chunk(plist, c->rank > 0 ? c->rank : 1, chunk);
    if (stored == DEFLATED) H5Pset_deflate(plist, 1);
    if (stored == FLETCHER) H5Pset_fletcher32(plist);
    if (stored == COMPACT) H5Pset_layout(plist, H5D_COMPACT);
    if (stored == EXTERNAL) H5Pset_external(plist, "/dev/zero", 0, H5F_UNLIMITED);
    if (stored == VIRTUAL && space >= 0) H5Pset_virtual(plist, space, "/dev/zero", "/x", space);
    const hid_t d = space >= 0 ? H5Dcreate2(file, name, c->type, space, H5P_DEFAULT, plist, H5P_DEFAULT) : -1;
    const bool plain = H5Tdetect_class(c->type, H5T_VLEN) <= 0 && H5Tdetect_class(c->type, H5T_STRING) <= 0;
    const bool text = H5Tget_class(c->type) == H5T_STRING && H5Tis_variable_str(c->type) == 0;
    if (d >= 0 && held && (plain || text) && stored != LATE && stored != EXTERNAL && stored != VIRTUAL && c->rank >= 0)
        H5Dwrite(d, c->type, H5S_ALL, H5S_ALL, H5P_DEFAULT, c->values);
    *bytes = c->rank == 0 ? c->elem : held ? (size_t)c->n * c->elem : 0;
    H5Pclose(plist);
    if (space >= 0) H5Sclose(space);
    return d;
}

void hostile_link(hid_t file, const char *name, hostile_form as, const char *other)
{
    hid_t object = -1;
    switch (as) {
    case HOSTILE_GROUP: object = H5Gcreate2(file, name, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT); break;
    case HOSTILE_SOFT: H5Lcreate_soft(other, file, name, H5P_DEFAULT, H5P_DEFAULT); break;
    case HOSTILE_DANGLING: H5Lcreate_soft("/nowhere", file, name, H5P_DEFAULT, H5P_DEFAULT); break;
    case HOSTILE_ALIAS: H5Lcreate_hard(file, other, file, name, H5P_DEFAULT, H5P_DEFAULT); break;
    case HOSTILE_ELSEWHERE: H5Lcreate_external("/dev/zero", "/x", file, name, H5P_DEFAULT, H5P_DEFAULT); break;
    case HOSTILE_A_TYPE:
        object = H5Tcopy(H5T_STD_I32LE);
        H5Tcommit2(file, name, object, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
        break;
    default: break;
    }
    if (object >= 0) H5Oclose(object);
}

/* Makes the checksums of HDF5 right again, of the superblock and of each object header. */
void hostile_seal(int fd, size_t size)
{
    uint8_t *b = malloc(size);
    if (b && size > 48 && pread(fd, b, size, 0) == (ssize_t)size) {
        uint32_t sum = en_h5_checksum(b, 44);
        memcpy(b + 44, &sum, 4);
        for (size_t at = 48; at + 40 < size; at++) {
            if (memcmp(b + at, "OHDR\2", 5) != 0) continue;
            const int width = 1 << (b[at + 5] & 3);
            const size_t head = 6u + (b[at + 5] & 32 ? 16 : 0) + (b[at + 5] & 16 ? 4 : 0) + (size_t)width;
            const uint64_t n = en_h5_number(b + at + head - (size_t)width, width);
            if (n > size || head + n + 4 > size - at) continue;
            sum = en_h5_checksum(b + at, head + (size_t)n);
            memcpy(b + at + head + n, &sum, 4);
        }
        (void)!pwrite(fd, b, size, 0);
    }
    free(b);
}

/* ---- the file ---- */

static char written[96];
static void remove_it(void) { unlink(written); }

/* Not a memfd: HDF5 looks for the real path behind /proc/self/fd, and there is none. */
int hostile_file(char *path, size_t size)
{
    if (!*written) {
        snprintf(written, sizeof written, "%s/effnet-fuzz-%ld.h5", hostile_folder(), (long)getpid());
        atexit(remove_it);
    }
    snprintf(path, size, "%s", written);
    return open(written, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
}

const char *hostile_folder(void) { return access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp"; }

int64_t hostile_open_objects(void) { return H5Fget_obj_count((hid_t)H5F_OBJ_ALL, H5F_OBJ_ALL); }

/* HDF5's own leaks after errors are not ours to mend; an object of it that stays open is. */
const char *__lsan_default_suppressions(void), *__lsan_default_options(void);
const char *__lsan_default_options(void) { return "print_suppressions=0"; }
const char *__lsan_default_suppressions(void) { return "leak:libhdf5\n"; }
