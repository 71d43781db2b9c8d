/* hostile_checkpoint.c - the list of changes to a checkpoint.
 *
 * A change is an opcode, the object it is for, and its arguments, all read byte by byte. */
#define _GNU_SOURCE
#include "hostile_checkpoint.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hostile_h5.h"
#include "trainer/crc32c.h"

static const char *const objects[] = {
    "/", "/model", "/ema", "/optimizer", "/optimizer/ms", "/optimizer/mom", "/class_names", "/model/conv_stem.weight", "/model/bn1.weight",
    "/model/bn1.running_mean", "/model/classifier.bias", "/ema/classifier.weight", "/ema/bn1.running_var", "/optimizer/ms/bn1.weight",
    "/optimizer/mom/classifier.weight", "/nothing" };
enum { OBJECTS = sizeof objects / sizeof *objects };

static const char *const attributes[] = {                      /* in the root; the first are numbers, then doubles, then text */
    "format_version", "step", "epoch", "position", "ema_updates", "seed", "global_batch", "samples", "lanes", "accum", "world_size",
    "evaluation_owed", "resolution", "classes", "has_ema", "n_slots", "datasets", "complete", "best_top1", "seconds", "width", "depth", "dropout",
    "drop_path", "model", "program_version", "options" };
enum { ATTRIBUTES = sizeof attributes / sizeof *attributes, FIRST_DOUBLE = 18, FIRST_TEXT = 24 };

static hid_t take_space(hostile_input *in, size_t *n)
{
    static const size_t lengths[] = { 1, 1, 1, 0, 0, 2, 1000, 8000 };
    const unsigned k = (unsigned)hostile_take(in, 1) % 8;
    *n = lengths[k];
    return k < 3 ? H5Screate(H5S_SCALAR) : k == 3 ? H5Screate(H5S_NULL) : H5Screate_simple(1, &(hsize_t){ *n }, NULL);
}

/* An attribute of any type and length; its bytes are the input's. */
static void put_attribute(hostile_input *in, hid_t object, const char *name, hid_t type)
{
    size_t n;
    const hid_t space = take_space(in, &n);
    const size_t bytes = n * H5Tget_size(type);
    if (H5Aexists(object, name) > 0) H5Adelete(object, name);
    if (H5Tis_variable_str(type) > 0) {
        const char **texts = malloc((n ? n : 1) * sizeof *texts);
        for (size_t i = 0; i < n; i++) texts[i] = "10";
        hostile_attribute(object, name, type, space, texts);
        free(texts);
    } else if (H5Tdetect_class(type, H5T_VLEN) > 0 || H5Tget_class(type) == H5T_ARRAY) {
        const hid_t a = H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT);      /* never written */
        if (a >= 0) H5Aclose(a);
    } else if (bytes <= 1 << 20) {
        uint8_t *values = calloc(bytes + 1, 1);
        for (size_t i = 0; i < bytes && in->at < in->end && i < 40; i++) values[i] = (uint8_t)hostile_take(in, 1);
        hostile_attribute(object, name, type, space, values);
        free(values);
    }
    H5Sclose(space);
}

static void put_number(hostile_input *in, hid_t root, unsigned k)
{
    static const double edges[] = { NAN, INFINITY, -INFINITY, -1, -0.5, 0, 1, 1e300, -1e300, 5e-324 };
    const hid_t scalar = H5Screate(H5S_SCALAR);
    if (H5Aexists(root, attributes[k]) > 0) H5Adelete(root, attributes[k]);
    if (k < FIRST_DOUBLE) {
        const uint64_t v = hostile_number(in);
        hostile_attribute(root, attributes[k], strcmp(attributes[k], "seed") ? H5T_STD_I64LE : H5T_STD_U64LE, scalar, &v);
    } else if (k < FIRST_TEXT) {
        const unsigned how = (unsigned)hostile_take(in, 1);
        const uint64_t bits = hostile_take(in, 8);
        double v = edges[how % (sizeof edges / sizeof *edges)];
        if (how >= 128) memcpy(&v, &bits, 8);
        hostile_attribute(root, attributes[k], H5T_IEEE_F64LE, scalar, &v);
    } else {
        static char text[4096];
        const unsigned pad = (unsigned)hostile_take(in, 1) % 3, n = (unsigned)hostile_take(in, 2) % sizeof text;
        memset(text, 'x', sizeof text);                        /* NULLTERM too without a zero: HDF5 writes it as it is */
        for (unsigned i = 0; i < n && in->at < in->end; i++) text[i] = (char)hostile_take(in, 1);
        hostile_attribute(root, attributes[k], hostile_text_type(n ? n : 1, (H5T_str_t)pad), scalar, text);
    }
    H5Sclose(scalar);
}

static void put_crc(hid_t set, uint32_t crc)
{
    const hid_t scalar = H5Screate(H5S_SCALAR);
    if (H5Aexists(set, "crc32c") > 0) H5Adelete(set, "crc32c");
    hostile_attribute(set, "crc32c", H5T_STD_U32LE, scalar, &crc);
    H5Sclose(scalar);
}

static void new_dataset(hostile_input *in, hid_t file, const char *name)
{
    static uint8_t values[HOSTILE_ROOM];
    hostile_data d = { .type = H5T_IEEE_F32LE, .elem = 4, .n = 6, .rank = 1, .values = values };
    const unsigned what = (unsigned)hostile_take(in, 1);
    if (what & 1) d.type = hostile_type(in, HOSTILE_TYPES);
    if (what & 2) d.n = hostile_number(in);
    if (what & 4) d.rank = (int)(hostile_take(in, 1) % 34) - 1;
    if (what & 8) d.stored = (hostile_layout)(hostile_take(in, 1) % HOSTILE_LAYOUTS);
    if (d.type < 0) return;
    d.elem = H5Tget_size(d.type);
    H5Ldelete(file, name, H5P_DEFAULT);
    size_t bytes = 0;
    const hid_t set = hostile_dataset(file, name, &d, &bytes);
    if (set < 0) return;
    if (!(what & 16)) put_crc(set, en_crc32c(0, values, bytes));
    H5Dclose(set);
}

/* Other values, and the checksum that goes with them, or not. */
static void new_values(hostile_input *in, hid_t file, const char *name)
{
    const hid_t object = H5Oopen(file, name, H5P_DEFAULT);
    if (object < 0) return;
    const hid_t type = H5Iget_type(object) == H5I_DATASET ? H5Dget_type(object) : -1, space = type >= 0 ? H5Dget_space(object) : -1;
    const hssize_t points = space >= 0 ? H5Sget_simple_extent_npoints(space) : -1;
    static uint8_t values[HOSTILE_ROOM];
    const size_t at = (size_t)hostile_take(in, 1), n = (size_t)hostile_take(in, 1) % 32;
    const bool right = hostile_take(in, 1) & 1;
    const H5T_class_t class = type >= 0 ? H5Tget_class(type) : H5T_NO_CLASS;
    const bool plain = class == H5T_INTEGER || class == H5T_FLOAT || (class == H5T_STRING && H5Tis_variable_str(type) == 0);
    if (plain && points > 0 && (uint64_t)points <= HOSTILE_ROOM / H5Tget_size(type)
        && H5Dread(object, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0) {
        const size_t bytes = (size_t)points * H5Tget_size(type);
        for (size_t i = 0; i < n; i++) values[(at + i) % bytes] = (uint8_t)hostile_take(in, 1);
        H5Dwrite(object, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values);
        if (right) put_crc(object, en_crc32c(0, values, bytes));
    }
    if (space >= 0) H5Sclose(space);
    if (type >= 0) H5Tclose(type);
    H5Oclose(object);
}

/* Links in a group, some of them many: to its ancestors, to a neighbour, nowhere, or elsewhere. */
static void new_links(hostile_input *in, hid_t file, const char *group)
{
    const unsigned many = (unsigned)hostile_take(in, 1) % 65, length = 1 + (unsigned)hostile_take(in, 2) % 400;
    const hostile_form form = HOSTILE_GROUP + hostile_take(in, 1) % (HOSTILE_FORMS - HOSTILE_GROUP);
    const char *other = objects[hostile_take(in, 1) % OBJECTS];
    const char filler = (char)hostile_take(in, 1);
    char name[512];
    for (unsigned k = 0; k <= many; k++) {
        const int n = snprintf(name, sizeof name, "%s/%u", group[1] ? group : "", k);
        memset(name + n, filler == '/' || !filler ? 'n' : filler, length);
        name[n + (k ? 0 : (int)length)] = '\0';
        hostile_link(file, name, form, other);
    }
}

typedef struct { int64_t cut, grow; struct { uint32_t at; uint8_t n; uint64_t with; } patch[16]; int patches; } behind;   /* HDF5's back */

static void change(hostile_input *in, hid_t file, hid_t root, behind *b)
{
    const unsigned op = (unsigned)hostile_take(in, 1) % 14;
    const uint64_t which = hostile_take(in, 1);
    const char *name = objects[which % OBJECTS];
    switch (op) {
    case 0: case 1: put_number(in, root, (unsigned)(which % ATTRIBUTES)); break;
    case 2: {
        const hid_t type = hostile_type(in, HOSTILE_TYPES);
        if (type >= 0) put_attribute(in, root, attributes[which % ATTRIBUTES], type);
        break;
    }
    case 3: H5Adelete(root, attributes[which % ATTRIBUTES]); break;
    case 4: {
        const hid_t object = H5Oopen(file, name, H5P_DEFAULT), type = hostile_take(in, 1) & 1 ? H5T_STD_U32LE : hostile_type(in, HOSTILE_TYPES);
        if (object >= 0 && type >= 0) put_attribute(in, object, "crc32c", type);
        if (object >= 0) H5Oclose(object);
        break;
    }
    case 5: case 6: new_dataset(in, file, name); break;
    case 7: case 8: new_values(in, file, name); break;
    case 9: {
        const hostile_form form = hostile_take(in, 1) % HOSTILE_FORMS;
        const char *other = objects[hostile_take(in, 1) % OBJECTS];
        if (form == HOSTILE_ALIAS && !strcmp(name, other)) break;
        const bool missing = strcmp(name, "/nothing") == 0;
        if (which & 64 && !missing) H5Lmove(file, name, file, "/nothing", H5P_DEFAULT, H5P_DEFAULT);      /* still there, elsewhere */
        else H5Ldelete(file, name, H5P_DEFAULT);
        hostile_link(file, name, form, other);
        break;
    }
    case 10: new_links(in, file, name); break;
    case 11: {                                                 /* one object in another's place */
        const char *other = objects[hostile_take(in, 1) % OBJECTS];
        H5Ldelete(file, name, H5P_DEFAULT);
        H5Lmove(file, other, file, name, H5P_DEFAULT, H5P_DEFAULT);
        break;
    }
    case 12: if (which & 1) b->cut = (int64_t)hostile_take(in, 2); else b->grow = (int64_t)hostile_take(in, 2); break;
    default:
        if (b->patches < 16) {
            const unsigned how = (unsigned)hostile_take(in, 1);
            b->patch[b->patches].n = how & 2 ? 8 : 1;
            b->patch[b->patches].at = (uint32_t)hostile_take(in, 2);
            b->patch[b->patches++].with = how & 2 ? hostile_number(in) : hostile_take(in, 1);
        }
        break;
    }
}

void hostile_checkpoint(const uint8_t *data, size_t size, const char *path, bool raw)
{
    hostile_input in = { data, data + size };
    behind b = { 0 };
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    const hid_t fapl = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_fclose_degree(fapl, H5F_CLOSE_STRONG);
    H5Pset_libver_bounds(fapl, H5F_LIBVER_V18, H5F_LIBVER_LATEST);                 /* what 1.8 cannot say: virtual datasets */
    const hid_t file = H5Fopen(path, H5F_ACC_RDWR, fapl), root = file >= 0 ? H5Gopen2(file, "/", H5P_DEFAULT) : -1;
    for (int changes = 0; root >= 0 && in.at < in.end && changes < 32; changes++) change(&in, file, root, &b);
    if (root >= 0) H5Gclose(root);
    if (file >= 0) H5Fclose(file);
    H5Pclose(fapl);
    hostile_types_close();

    const int fd = open(path, O_RDWR | O_CLOEXEC);
    const off_t end = fd >= 0 ? lseek(fd, 0, SEEK_END) : 0;
    for (int k = 0; raw && k < b.patches && end > 0; k++) (void)!pwrite(fd, &b.patch[k].with, b.patch[k].n, (off_t)b.patch[k].at % end);
    if (raw && end > 0 && b.patches) hostile_seal(fd, (size_t)end);
    if (end > 0 && (b.cut || b.grow)) (void)!ftruncate(fd, b.cut < end ? end - b.cut + b.grow : 0);
    if (fd >= 0) close(fd);
}
