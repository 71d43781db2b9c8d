/* hostile_h5.c - the list of changes, and the file that comes out.
 *
 * A change is an opcode, the object it is for, and its arguments, all read byte by byte; where the input ends, zeros follow. */
#define _GNU_SOURCE
#include "hostile_h5.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <hdf5.h>
#include <zlib.h>

#include "data/pack_h5_parse.h"
#include "data/pack_inside.h"

enum { SPLITS, SPLIT_OFFSETS, CLASSES, FILES, OFFSETS, LABELS, CRC32, BYTES, COLUMNS };
enum { N = HOSTILE_SAMPLES, ROOM = 1 << 16 };  /* ROOM: bytes a column can have values for */

typedef enum { AS_DATASET, MISSING, A_GROUP, A_SOFT_LINK, A_DANGLING_LINK, AN_ALIAS, AN_EXTERNAL_LINK, A_TYPE, FORMS } form;
typedef enum { CONTIGUOUS, LATE, CHUNKED, COMPACT, DEFLATED, EXTERNAL, LAYOUTS } layout;
typedef enum { CHECKED, UNCHECKED, FALSE_CHECK, ARRAY_CHECK, LONG_CHECK, CHECKS } check;

typedef struct {
    const char *name;
    hid_t    type;                             /* of the library, or remembered */
    size_t   elem;
    int      rank;                             /* 1; 0 scalar, -1 null, 2 to 4 */
    uint64_t n;
    uint8_t *values;                           /* owns ROOM bytes, zeros behind what is set */
    form     as;
    layout   stored;
    check    crc;
    int      other;                            /* column that a link leads to */
} column;

typedef struct { const char *name; int64_t value; bool missing; int kind; } attr;         /* kind: 0 int64, else a type of the table */
enum { NUMBERS = 8 };

typedef struct {
    const uint8_t *at, *end;
    column c[COLUMNS];
    attr   number[NUMBERS];
    char   format[32];
    bool   no_format, old, user_block, sealed;         /* sealed: checksums follow the patches */
    int64_t cut, grow;                         /* bytes taken from the end, added to it */
    struct { uint32_t at; uint8_t n, with[8]; } patch[16];
    int    patches;
} plan;

static uint64_t take(plan *p, int bytes)
{
    uint64_t v = 0;
    for (int i = 0; i < bytes; i++) v |= (uint64_t)(p->at < p->end ? *p->at++ : 0) << 8 * i;
    return v;
}

/* A number that is likely to hurt. */
static uint64_t take_number(plan *p)
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

static hid_t text_type(size_t width, H5T_str_t pad)
{
    const hid_t type = remember(H5Tcopy(H5T_C_S1));
    H5Tset_size(type, width);
    H5Tset_strpad(type, pad);
    H5Tset_cset(type, H5T_CSET_UTF8);
    return type;
}

static hid_t type_of(plan *p)
{
    switch (take(p, 1) % 20) {
    case 0: return H5T_STD_I8LE;    case 1: return H5T_STD_U8LE;    case 2: return H5T_STD_I16BE;   case 3: return H5T_STD_I32LE;
    case 4: return H5T_STD_I32BE;   case 5: return H5T_STD_U32LE;   case 6: return H5T_STD_I64LE;   case 7: return H5T_STD_I64BE;
    case 8: return H5T_STD_U64LE;   case 9: return H5T_IEEE_F32LE;  case 10: return H5T_IEEE_F64LE; case 11: return H5T_STD_B64LE;
    case 12: return text_type(1, H5T_STR_NULLPAD);
    case 13: return text_type(8, H5T_STR_NULLPAD);
    case 14: return text_type(1 + take(p, 2) % 5000, H5T_STR_NULLPAD);
    case 15: return text_type(8, H5T_STR_SPACEPAD);
    case 16: return text_type(1 + take(p, 1), H5T_STR_NULLTERM);
    case 17: return remember(H5Tarray_create2(H5T_STD_I32LE, 1, &(hsize_t){ 1 + take(p, 1) % 16 }));
    case 18: return remember(H5Tcreate(H5T_OPAQUE, 1 + take(p, 1)));
    default: {
        const hid_t pair = remember(H5Tcreate(H5T_COMPOUND, 16));
        H5Tinsert(pair, "a", 0, H5T_STD_I64LE);
        H5Tinsert(pair, "b", 8, H5T_STD_I64LE);
        return pair;
    }
    }
}

static void set(column *c, uint64_t i, const void *value, size_t n)
{
    if (i < ROOM && c->elem && i * c->elem + n <= ROOM) memcpy(c->values + i * c->elem, value, n);
}

/* ---- the sound file: parts train (3 samples) and val (2), classes a and b ---- */

static void plan_sound(plan *p)
{
    static const struct { const char *name; size_t elem; uint64_t n; } columns[COLUMNS] = {
        { "/splits", 8, 2 }, { "/split_offsets", 8, 3 }, { "/classes", 3, 2 }, { "/files", 12, N }, { "/offsets", 8, N + 1 }, { "/labels", 4, N },
        { "/crc32", 4, N }, { "/bytes", 1, HOSTILE_BYTES } };
    const hid_t types[COLUMNS] = { -1, H5T_STD_I64LE, -1, -1, H5T_STD_I64LE, H5T_STD_I32LE, H5T_STD_U32LE, H5T_STD_U8LE };
    for (int k = 0; k < COLUMNS; k++) {
        p->c[k] = (column){ .name = columns[k].name, .elem = columns[k].elem, .n = columns[k].n, .rank = 1, .values = calloc(1, ROOM) };
        p->c[k].type = types[k] >= 0 ? types[k] : text_type(columns[k].elem, H5T_STR_NULLPAD);
    }
    static const char *const numbers[NUMBERS] = { "version", "samples", "class_count", "undecodable", "shrunk", "max_side", "quality", "complete" };
    for (int k = 0; k < NUMBERS; k++) p->number[k] = (attr){ .name = numbers[k] };
    p->number[0].value = EN_PACK_VERSION, p->number[1].value = N, p->number[2].value = 2, p->number[7].value = 1;
    snprintf(p->format, sizeof p->format, "%s", EN_PACK_FORMAT);

    set(&p->c[SPLITS], 0, "train", 5);
    set(&p->c[SPLITS], 1, "val", 3);
    set(&p->c[CLASSES], 0, "a", 1);
    set(&p->c[CLASSES], 1, "bcd", 3);          /* no zero behind it */
    for (int64_t k = 0; k < 3; k++) set(&p->c[SPLIT_OFFSETS], (uint64_t)k, &(int64_t){ k == 0 ? 0 : k == 1 ? 3 : N }, 8);
    int64_t at = 0;
    for (int i = 0; i < N; i++) {
        char name[13];
        snprintf(name, sizeof name, "train/a/%d.jp", i);
        set(&p->c[FILES], (uint64_t)i, name, 12);
        set(&p->c[LABELS], (uint64_t)i, &(int32_t){ i % 2 }, 4);
        set(&p->c[OFFSETS], (uint64_t)i, &at, 8);
        memset(p->c[BYTES].values + at, i, (size_t)(10 + i));
        set(&p->c[CRC32], (uint64_t)i, &(uint32_t){ (uint32_t)crc32_z(0, p->c[BYTES].values + at, (size_t)(10 + i)) }, 4);
        at += 10 + i;
    }
    set(&p->c[OFFSETS], N, &at, 8);
}

/* ---- changes ---- */

static void change(plan *p)
{
    const unsigned op = (unsigned)take(p, 1) % 16;
    column *c = &p->c[take(p, 1) % COLUMNS];
    switch (op) {
    case 0: case 1: case 2: {                  /* a value */
        const uint64_t i = take(p, 1), v = take_number(p);
        set(c, i, &v, c->elem < 8 ? c->elem : 8);
        break;
    }
    case 3: case 4: {                          /* some bytes of values: names, above all */
        const uint64_t at = take(p, 2) % 256, n = take(p, 1) % 32;
        for (uint64_t i = 0; i < n; i++) c->values[at + i] = (uint8_t)take(p, 1);
        break;
    }
    case 5: c->n = take_number(p); break;
    case 6: {
        const hid_t type = type_of(p);
        if (type >= 0) c->type = type, c->elem = H5Tget_size(type);
        break;
    }
    case 7: c->stored = (layout)(take(p, 1) % LAYOUTS); break;
    case 8: c->rank = (int)(take(p, 1) % 6) - 1; break;
    case 9: c->as = (form)(take(p, 1) % FORMS); c->other = (int)(take(p, 1) % COLUMNS); break;
    case 10: c->crc = (check)(take(p, 1) % CHECKS); break;
    case 11: {
        attr *a = &p->number[take(p, 1) % NUMBERS];
        const unsigned how = (unsigned)take(p, 1);
        a->missing = how == 255;
        a->kind = how > 200 && how < 255 ? (int)how : 0;
        a->value = (int64_t)take_number(p);
        break;
    }
    case 12: {
        const unsigned how = (unsigned)take(p, 1);
        p->no_format = how == 0;
        if (how) for (size_t i = 0; i < how % sizeof p->format; i++) p->format[i] = (char)take(p, 1);
        p->format[sizeof p->format - 1] = '\0';
        break;
    }
    case 13: if (take(p, 1) & 1) p->cut = (int64_t)(take(p, 2)); else p->grow = (int64_t)(take(p, 2)); break;
    case 14:                                   /* a byte, or a number of 8, anywhere */
        if (p->patches < 16) {
            const unsigned how = (unsigned)take(p, 1);
            p->sealed |= how & 1;
            p->patch[p->patches].n = how & 2 ? 8 : 1;
            p->patch[p->patches].at = (uint32_t)take(p, 2);
            const uint64_t with = how & 2 ? take_number(p) : take(p, 1);
            memcpy(p->patch[p->patches++].with, &with, 8);
        }
        break;
    default: if (take(p, 1) & 1) p->old = true; else p->user_block = true; break;
    }
}

/* ---- writing: a call that fails leaves something out, which is one more way to be wrong ---- */

static void attribute(hid_t object, const char *name, hid_t type, hid_t space, const void *value)
{
    const hid_t a = H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    if (a < 0) return;
    H5Awrite(a, type, value);
    H5Aclose(a);
}

static void write_dataset(hid_t file, const column *c)
{
    hsize_t extent[4] = { c->n, 1, 1, 1 }, chunk[4] = { c->n > 0 && c->n < ROOM ? c->n : 1, 1, 1, 1 };    /* one chunk, or none is written */
    const bool held = c->rank == 0 || (c->n < ROOM && c->n * c->elem <= ROOM);           /* or it can only be claimed */
    const layout stored = held ? c->stored : c->stored == CHUNKED ? CHUNKED : LATE;
    const hid_t space = c->rank < 0 ? H5Screate(H5S_NULL) : c->rank == 0 ? H5Screate(H5S_SCALAR) : H5Screate_simple(c->rank, extent, NULL);
    const hid_t plist = H5Pcreate(H5P_DATASET_CREATE), scalar = H5Screate(H5S_SCALAR);
    H5Pset_fill_time(plist, H5D_FILL_TIME_NEVER);
    if (stored == CONTIGUOUS) H5Pset_alloc_time(plist, H5D_ALLOC_TIME_EARLY);
    if (stored == CHUNKED || stored == DEFLATED) H5Pset_chunk(plist, c->rank > 0 ? c->rank : 1, chunk);
    if (stored == DEFLATED) H5Pset_deflate(plist, 1);
    if (stored == COMPACT) H5Pset_layout(plist, H5D_COMPACT);
    if (stored == EXTERNAL) H5Pset_external(plist, "/dev/zero", 0, H5F_UNLIMITED);
    const hid_t d = space >= 0 ? H5Dcreate2(file, c->name, c->type, space, H5P_DEFAULT, plist, H5P_DEFAULT) : -1;
    if (d >= 0) {
        if (held && stored != LATE && stored != EXTERNAL && c->rank >= 0) H5Dwrite(d, c->type, H5S_ALL, H5S_ALL, H5P_DEFAULT, c->values);
        const size_t n = c->rank == 0 ? c->elem : held ? (size_t)c->n * c->elem : 0;
        const uint32_t crc = (uint32_t)crc32_z(0, c->values, n) + (c->crc == FALSE_CHECK);
        const uint64_t longer[2] = { crc, crc };
        if (c->crc == CHECKED || c->crc == FALSE_CHECK) attribute(d, "crc32", H5T_STD_U32LE, scalar, &crc);
        if (c->crc == LONG_CHECK) attribute(d, "crc32", H5T_STD_U64LE, scalar, longer);
        if (c->crc == ARRAY_CHECK) {
            const hid_t two = H5Screate_simple(1, &(hsize_t){ 2 }, NULL);
            attribute(d, "crc32", H5T_STD_U32LE, two, longer);
            H5Sclose(two);
        }
        H5Dclose(d);
    }
    H5Sclose(scalar);
    H5Pclose(plist);
    if (space >= 0) H5Sclose(space);
}

static void write_column(hid_t file, const plan *p, const column *c)
{
    hid_t object = -1;
    switch (c->as) {
    case MISSING: break;
    case A_GROUP: object = H5Gcreate2(file, c->name, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT); break;
    case A_SOFT_LINK: H5Lcreate_soft(p->c[c->other].name, file, c->name, H5P_DEFAULT, H5P_DEFAULT); break;
    case A_DANGLING_LINK: H5Lcreate_soft("/nowhere", file, c->name, H5P_DEFAULT, H5P_DEFAULT); break;
    case AN_ALIAS: H5Lcreate_hard(file, p->c[c->other].name, file, c->name, H5P_DEFAULT, H5P_DEFAULT); break;
    case AN_EXTERNAL_LINK: H5Lcreate_external("/dev/zero", "/x", file, c->name, H5P_DEFAULT, H5P_DEFAULT); break;
    case A_TYPE:
        object = H5Tcopy(H5T_STD_I32LE);
        H5Tcommit2(file, c->name, object, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
        break;
    default: write_dataset(file, c); break;
    }
    if (object >= 0) H5Oclose(object);
}

static void write_attributes(hid_t file, const plan *p)
{
    const hid_t scalar = H5Screate(H5S_SCALAR), two = H5Screate_simple(1, &(hsize_t){ 2 }, NULL);
    if (!p->no_format) attribute(file, "format", text_type(strlen(p->format) ? strlen(p->format) : 1, H5T_STR_NULLPAD), scalar, p->format);
    attribute(file, "source", text_type(1, H5T_STR_NULLPAD), scalar, "s");
    for (int k = 0; k < NUMBERS; k++) {
        const attr *a = &p->number[k];
        const int64_t values[8] = { a->value, a->value };
        if (a->missing) continue;
        if (a->kind == 0) attribute(file, a->name, H5T_STD_I64LE, scalar, values);
        else if (a->kind % 4 == 0) attribute(file, a->name, H5T_STD_I64LE, two, values);
        else if (a->kind % 4 == 1) attribute(file, a->name, H5T_STD_I32LE, scalar, values);
        else if (a->kind % 4 == 2) attribute(file, a->name, H5T_STD_I64BE, scalar, values);
        else attribute(file, a->name, text_type(64, H5T_STR_NULLPAD), scalar, values);
    }
    H5Sclose(scalar);
    H5Sclose(two);
}

static bool write_plan(const plan *p, const char *path)
{
    const hid_t fapl = H5Pcreate(H5P_FILE_ACCESS), fcpl = H5Pcreate(H5P_FILE_CREATE);
    if (!p->old) H5Pset_libver_bounds(fapl, H5F_LIBVER_V18, H5F_LIBVER_V18);
    if (p->user_block) H5Pset_userblock(fcpl, 512);
    H5Pset_attr_phase_change(fcpl, 64, 0);     /* attributes and links in the root's header, as packing has them */
    H5Pset_link_phase_change(fcpl, 64, 0);
    H5Pset_fclose_degree(fapl, H5F_CLOSE_STRONG);
    const hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, fcpl, fapl);
    H5Pclose(fapl);
    H5Pclose(fcpl);
    if (file < 0) return false;
    write_attributes(file, p);
    for (int k = 0; k < COLUMNS; k++) if (p->c[k].as != AN_ALIAS) write_column(file, p, &p->c[k]);
    for (int k = 0; k < COLUMNS; k++) if (p->c[k].as == AN_ALIAS) write_column(file, p, &p->c[k]);
    return H5Fclose(file) >= 0;
}

/* Makes the checksums of HDF5 right again, of the superblock and of each object header. */
static void seal(int fd, size_t size)
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

bool hostile_h5(const uint8_t *data, size_t size, int fd, const char *path, bool *sound)
{
    plan p = { .at = data, .end = data + size };
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    plan_sound(&p);
    for (int changes = 0; p.at < p.end && changes < 32; changes++) change(&p);
    *sound = size == 0;
    const bool written = write_plan(&p, path);
    for (int k = 0; k < COLUMNS; k++) free(p.c[k].values);
    while (n_made > 0) H5Tclose(made[--n_made]);
    const off_t end = lseek(fd, 0, SEEK_END);
    for (int k = 0; k < p.patches && end > 0; k++) {
        const off_t at = (off_t)p.patch[k].at % end;
        (void)!pwrite(fd, p.patch[k].with, p.patch[k].n, at);
    }
    if (end > 0 && p.sealed) seal(fd, (size_t)end);
    if (end > 0 && (p.cut || p.grow)) (void)!ftruncate(fd, p.cut < end ? end - p.cut + p.grow : 0);
    return written;
}
