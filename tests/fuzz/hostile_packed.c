/* hostile_packed.c - the list of changes to a packed file, and the file that comes out.
 *
 * A change is an opcode, the object it is for, and its arguments, all read byte by byte; where the input ends, zeros follow. */
#define _GNU_SOURCE
#include "hostile_packed.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <zlib.h>

#include "data/pack_h5_parse.h"
#include "data/pack_inside.h"
#include "hostile_h5.h"

enum { SPLITS, SPLIT_OFFSETS, CLASSES, FILES, OFFSETS, LABELS, CRC32, BYTES, COLUMNS };
enum { N = HOSTILE_SAMPLES, ROOM = HOSTILE_ROOM };

typedef enum { CHECKED, UNCHECKED, FALSE_CHECK, ARRAY_CHECK, LONG_CHECK, CHECKS } check;

typedef struct {
    const char *name;
    hostile_data d;                            /* owns its values: ROOM bytes, zeros behind what is set */
    hostile_form as;
    check    crc;
    int      other;                            /* column that a link leads to */
} column;

typedef struct { const char *name; int64_t value; bool missing; int kind; } attr;         /* kind: 0 int64, else a type of the table */
enum { NUMBERS = 8 };

typedef struct {
    hostile_input in;
    column c[COLUMNS];
    attr   number[NUMBERS];
    char   format[32];
    bool   no_format, old, user_block, sealed;         /* sealed: checksums follow the patches */
    int64_t cut, grow;                         /* bytes taken from the end, added to it */
    struct { uint32_t at; uint8_t n, with[8]; } patch[16];
    int    patches;
} plan;

static uint64_t take(plan *p, int bytes) { return hostile_take(&p->in, bytes); }
static uint64_t take_number(plan *p) { return hostile_number(&p->in); }

static void set(column *c, uint64_t i, const void *value, size_t n)
{
    if (i < ROOM && c->d.elem && i * c->d.elem + n <= ROOM) memcpy(c->d.values + i * c->d.elem, value, n);
}

/* ---- the sound file: parts train (3 samples) and val (2), classes a and b ---- */

static void plan_sound(plan *p)
{
    static const struct { const char *name; size_t elem; uint64_t n; } columns[COLUMNS] = {
        { "/splits", 8, 2 }, { "/split_offsets", 8, 3 }, { "/classes", 3, 2 }, { "/files", 12, N }, { "/offsets", 8, N + 1 }, { "/labels", 4, N },
        { "/crc32", 4, N }, { "/bytes", 1, HOSTILE_BYTES } };
    const hid_t types[COLUMNS] = { -1, H5T_STD_I64LE, -1, -1, H5T_STD_I64LE, H5T_STD_I32LE, H5T_STD_U32LE, H5T_STD_U8LE };
    for (int k = 0; k < COLUMNS; k++) {
        p->c[k] = (column){ .name = columns[k].name, .d = { .elem = columns[k].elem, .n = columns[k].n, .rank = 1, .values = calloc(1, ROOM) } };
        p->c[k].d.type = types[k] >= 0 ? types[k] : hostile_text_type(columns[k].elem, H5T_STR_NULLPAD);
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
        memset(p->c[BYTES].d.values + at, i, (size_t)(10 + i));
        set(&p->c[CRC32], (uint64_t)i, &(uint32_t){ (uint32_t)crc32_z(0, p->c[BYTES].d.values + at, (size_t)(10 + i)) }, 4);
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
        set(c, i, &v, c->d.elem < 8 ? c->d.elem : 8);
        break;
    }
    case 3: case 4: {                          /* some bytes of values: names, above all */
        const uint64_t at = take(p, 2) % 256, n = take(p, 1) % 32;
        for (uint64_t i = 0; i < n; i++) c->d.values[at + i] = (uint8_t)take(p, 1);
        break;
    }
    case 5: c->d.n = take_number(p); break;
    case 6: {
        const hid_t type = hostile_type(&p->in, HOSTILE_TYPES_OLD);
        if (type >= 0) c->d.type = type, c->d.elem = H5Tget_size(type);
        break;
    }
    case 7: c->d.stored = (hostile_layout)(take(p, 1) % HOSTILE_LAYOUTS_OLD); break;
    case 8: c->d.rank = (int)(take(p, 1) % 6) - 1; break;
    case 9: c->as = (hostile_form)(take(p, 1) % HOSTILE_FORMS); c->other = (int)(take(p, 1) % COLUMNS); break;
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

static void write_dataset(hid_t file, const column *c)
{
    size_t n;
    const hid_t d = hostile_dataset(file, c->name, &c->d, &n);
    if (d < 0) return;
    const hid_t scalar = H5Screate(H5S_SCALAR);
    const uint32_t crc = (uint32_t)crc32_z(0, c->d.values, n) + (c->crc == FALSE_CHECK);
    const uint64_t longer[2] = { crc, crc };
    if (c->crc == CHECKED || c->crc == FALSE_CHECK) hostile_attribute(d, "crc32", H5T_STD_U32LE, scalar, &crc);
    if (c->crc == LONG_CHECK) hostile_attribute(d, "crc32", H5T_STD_U64LE, scalar, longer);
    if (c->crc == ARRAY_CHECK) {
        const hid_t two = H5Screate_simple(1, &(hsize_t){ 2 }, NULL);
        hostile_attribute(d, "crc32", H5T_STD_U32LE, two, longer);
        H5Sclose(two);
    }
    H5Dclose(d);
    H5Sclose(scalar);
}

static void write_column(hid_t file, const plan *p, const column *c)
{
    if (c->as == HOSTILE_DATASET) write_dataset(file, c);
    else hostile_link(file, c->name, c->as, p->c[c->other].name);
}

static void write_attributes(hid_t file, const plan *p)
{
    const hid_t scalar = H5Screate(H5S_SCALAR), two = H5Screate_simple(1, &(hsize_t){ 2 }, NULL);
    if (!p->no_format) hostile_attribute(file, "format", hostile_text_type(strlen(p->format) ? strlen(p->format) : 1, H5T_STR_NULLPAD), scalar, p->format);
    hostile_attribute(file, "source", hostile_text_type(1, H5T_STR_NULLPAD), scalar, "s");
    for (int k = 0; k < NUMBERS; k++) {
        const attr *a = &p->number[k];
        const int64_t values[8] = { a->value, a->value };
        if (a->missing) continue;
        if (a->kind == 0) hostile_attribute(file, a->name, H5T_STD_I64LE, scalar, values);
        else if (a->kind % 4 == 0) hostile_attribute(file, a->name, H5T_STD_I64LE, two, values);
        else if (a->kind % 4 == 1) hostile_attribute(file, a->name, H5T_STD_I32LE, scalar, values);
        else if (a->kind % 4 == 2) hostile_attribute(file, a->name, H5T_STD_I64BE, scalar, values);
        else hostile_attribute(file, a->name, hostile_text_type(64, H5T_STR_NULLPAD), scalar, values);
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
    for (int k = 0; k < COLUMNS; k++) if (p->c[k].as != HOSTILE_ALIAS) write_column(file, p, &p->c[k]);
    for (int k = 0; k < COLUMNS; k++) if (p->c[k].as == HOSTILE_ALIAS) write_column(file, p, &p->c[k]);
    return H5Fclose(file) >= 0;
}

bool hostile_packed(const uint8_t *data, size_t size, int fd, const char *path, bool *sound)
{
    plan p = { .in = { data, data + size } };
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    plan_sound(&p);
    for (int changes = 0; p.in.at < p.in.end && changes < 32; changes++) change(&p);
    *sound = size == 0;
    const bool written = write_plan(&p, path);
    for (int k = 0; k < COLUMNS; k++) free(p.c[k].d.values);
    hostile_types_close();
    const off_t end = lseek(fd, 0, SEEK_END);
    for (int k = 0; k < p.patches && end > 0; k++) {
        const off_t at = (off_t)p.patch[k].at % end;
        (void)!pwrite(fd, p.patch[k].with, p.patch[k].n, at);
    }
    if (end > 0 && p.sealed) hostile_seal(fd, (size_t)end);
    if (end > 0 && (p.cut || p.grow)) (void)!ftruncate(fd, p.cut < end ? end - p.cut + p.grow : 0);
    return written;
}
