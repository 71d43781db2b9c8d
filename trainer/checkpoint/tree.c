/* checkpoint/tree.c - what a file holds besides attributes: four links in the root, groups of tensors, datasets.
 *
 *     /model/<key>   /ema/<key>   /optimizer/<slot>/<key>   /class_names
 *
 * HDF5 files are graphs.  A link may lead back up, to another file, to the same dataset a million times; a dataset may keep its
 * values in other files, or claim 2^60 of them and have none.  What is written here is a tree of hard links, each dataset in one
 * piece, and nothing else is read: so no other file is opened, the work is bounded by the number of links, the bytes that are
 * read by the file's, and the buffer by its longest dataset. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/checkpoint/internal.h"
#include "trainer/crc32c.h"

/* ---- datasets ------------------------------------------------------------------------------------------------------- */

static bool read_crc(hid_t set, uint32_t *crc)
{
    const hid_t attr = H5Aexists(set, "crc32c") > 0 ? H5Aopen(set, "crc32c", H5P_DEFAULT) : -1;
    const bool ok = attr >= 0 && en_h5_is_one(attr, H5T_STD_U32LE, NULL) && H5Aread(attr, H5T_NATIVE_UINT32, crc) >= 0;
    if (attr >= 0) H5Aclose(attr);
    return ok;
}

/* In one piece of this file: asked before the extent, for which HDF5 opens the sources of a virtual dataset. */
static bool plainly_stored(hid_t set)
{
    const hid_t dcpl = H5Dget_create_plist(set);
    const bool plain = dcpl >= 0 && H5Pget_layout(dcpl) == H5D_CONTIGUOUS && H5Pget_external_count(dcpl) == 0;
    if (dcpl >= 0) H5Pclose(dcpl);
    return plain;
}

/* Values that are bytes of the file, and nothing that points elsewhere. */
static bool plain_type(hid_t type)
{
    const H5T_class_t class = H5Tget_class(type);
    return class == H5T_FLOAT || class == H5T_INTEGER || (class == H5T_STRING && H5Tis_variable_str(type) == 0);
}

en_status en_reader_open(en_reader *r, const char *path, en_shape *s)
{
    *s = (en_shape){ .set = H5Dopen2(r->file, path, H5P_DEFAULT), .type = -1, .ndim = -1 };
    const bool plain = s->set >= 0 && plainly_stored(s->set);
    const hid_t space = plain ? H5Dget_space(s->set) : -1;
    if (space >= 0) s->type = H5Dget_type(s->set);
    if (space >= 0) s->ndim = H5Sget_simple_extent_dims(space, s->dims, NULL);
    const hssize_t points = space >= 0 ? H5Sget_simple_extent_npoints(space) : -1;
    const size_t element = s->type >= 0 ? H5Tget_size(s->type) : 0;
    en_status status = EN_EDATA;
    if (s->set < 0 || (plain && (s->ndim < 0 || points < 0 || element == 0)))
        en_reader_refuse(r, EN_EDATA, EN_FILE_BROKEN, "is damaged: dataset %s: HDF5 says: %s" EN_OLDER, path, en_h5_error());
    else if (!read_crc(s->set, &s->crc))
        en_reader_refuse(r, EN_EDATA, EN_FILE_BROKEN, "is damaged: dataset %s has no crc32c" EN_OLDER, path);
    else if (!plain || !plain_type(s->type) || (uint64_t)points > r->bytes / element || H5Dget_storage_size(s->set) != (hsize_t)points * element)
        en_reader_refuse(r, EN_EDATA, EN_FILE_BROKEN, "is damaged: dataset %s is not stored as effnet stores it "
                         "(rewritten by another program?)" EN_OLDER, path);
    else {
        s->bytes = (size_t)points * element;
        status = EN_OK;
    }
    if (space >= 0) H5Sclose(space);
    if (status != EN_OK) en_shape_close(s);
    return status;
}

void en_shape_close(en_shape *s)
{
    if (s->type >= 0) H5Tclose(s->type);
    if (s->set >= 0) H5Dclose(s->set);
    s->set = s->type = -1;
}

en_status en_reader_load(en_reader *r, const char *path, const en_shape *s)
{
    if (s->bytes > r->capacity) {
        free(r->buffer);
        r->buffer = malloc(s->bytes);
        r->capacity = r->buffer ? s->bytes : 0;
    }
    if (s->bytes > r->capacity)
        return en_reader_refuse(r, EN_ENOMEM, EN_FILE_UNREADABLE, "cannot be read: no memory for %s (%zu bytes)", path, s->bytes);
    if (s->bytes > 0 && H5Dread(s->set, s->type, H5S_ALL, H5S_ALL, H5P_DEFAULT, r->buffer) < 0)
        EN_BROKEN("is damaged: dataset %s cannot be read: HDF5 says: %s" EN_OLDER, path, en_h5_error());
    if (en_crc32c(0, r->buffer, s->bytes) != s->crc)
        EN_BROKEN("is damaged: dataset %s does not hash to its crc32c" EN_OLDER, path);
    return EN_OK;
}

static en_status verify_dataset(en_reader *r, const char *path)
{
    en_shape s;
    EN_PASS_ON(en_reader_open(r, path, &s));
    r->verified += s.bytes;                                    /* each is at most the file's length: no overflow           */
    const bool fits = r->verified <= r->bytes;
    const en_status status = fits ? en_reader_load(r, path, &s) : EN_OK;
    en_shape_close(&s);
    if (!fits) EN_BROKEN("is damaged: its datasets, up to %s, are longer than the file: some are linked more than once" EN_OLDER, path);
    r->datasets += status == EN_OK;
    return status;
}

/* ---- links ---------------------------------------------------------------------------------------------------------- */

#if H5_VERSION_GE(1, 12, 0)
typedef H5L_info2_t link_info;
#define each_link H5Literate2
#else
typedef H5L_info_t link_info;
#define each_link H5Literate
#endif

typedef struct { en_reader *r; const char *path; bool verify; en_status status; } visit;
typedef herr_t (*link_visitor)(hid_t group, const char *name, const link_info *link, void *arg);

static herr_t visit_root(hid_t group, const char *name, const link_info *link, void *arg);
static herr_t visit_slot(hid_t group, const char *name, const link_info *link, void *arg);
static herr_t visit_tensor(hid_t group, const char *name, const link_info *link, void *arg);

/* Every link of the group, with H5Literate: asking for them one by one sorts them all each time. */
static en_status walk(en_reader *r, const char *path, bool verify, hsize_t most, link_visitor visitor)
{
    H5G_info_t info;
    visit v = { .r = r, .path = path, .verify = verify };
    hsize_t at = 0;
    const hid_t group = H5Gopen2(r->file, path, H5P_DEFAULT);
    if (group < 0 || H5Gget_info(group, &info) < 0)
        v.status = en_reader_refuse(r, EN_EDATA, EN_FILE_BROKEN, "is damaged: %s: HDF5 says: %s" EN_OLDER, path, en_h5_error());
    else if (info.nlinks > most)
        v.status = en_reader_refuse(r, EN_EDATA, EN_FILE_BROKEN, "is damaged: %" PRIu64 " links in %s, where effnet makes at most %" PRIu64 EN_OLDER,
                                    (uint64_t)info.nlinks, path, (uint64_t)most);
    else if (each_link(group, H5_INDEX_NAME, H5_ITER_NATIVE, &at, visitor, &v) < 0 && v.status == EN_OK)
        v.status = en_reader_refuse(r, EN_EDATA, EN_FILE_BROKEN, "is damaged: the links of %s: HDF5 says: %s" EN_OLDER, path, en_h5_error());
    if (group >= 0) H5Gclose(group);
    return v.status;
}

/* The path of a link that is a hard one with a name of bearable length. */
static bool child_path(visit *v, const char *name, const link_info *link, size_t size, char *path)
{
    const int n = snprintf(path, size, "%s/%s", v->path[1] ? v->path : "", name);
    if (n >= (int)size)
        v->status = en_reader_refuse(v->r, EN_EDATA, EN_FILE_BROKEN, "is damaged: %s has a link with a name of %zu bytes" EN_OLDER, v->path, strlen(name));
    else if (link->type != H5L_TYPE_HARD)
        v->status = en_reader_refuse(v->r, EN_EDATA, EN_FILE_BROKEN, "is damaged: %s is a %s, which effnet does not make" EN_OLDER, path,
                                     link->type == H5L_TYPE_SOFT ? "soft link" : link->type == H5L_TYPE_EXTERNAL ? "link to another file"
                                                                                                          : "link of an unknown kind");
    return v->status == EN_OK;
}

static herr_t visit_tensor(hid_t group, const char *name, const link_info *link, void *arg)
{
    (void)group;
    visit *v = arg;
    char path[384];
    if (child_path(v, name, link, sizeof path, path) && v->verify) v->status = verify_dataset(v->r, path);
    return v->status != EN_OK;
}

static herr_t visit_slot(hid_t group, const char *name, const link_info *link, void *arg)
{
    (void)group;
    visit *v = arg;
    char path[256];
    if (child_path(v, name, link, sizeof path, path)) v->status = walk(v->r, path, v->verify, UINT64_MAX, visit_tensor);
    return v->status != EN_OK;
}

static herr_t visit_root(hid_t group, const char *name, const link_info *link, void *arg)
{
    (void)group;
    visit *v = arg;
    char path[128];
    if (!child_path(v, name, link, sizeof path, path)) return 1;
    if (!strcmp(name, "model") || !strcmp(name, "ema")) v->status = walk(v->r, path, v->verify, UINT64_MAX, visit_tensor);
    else if (!strcmp(name, "optimizer")) v->status = walk(v->r, path, v->verify, EN_MAX_SLOTS, visit_slot);
    else if (strcmp(name, "class_names"))
        v->status = en_reader_refuse(v->r, EN_EDATA, EN_FILE_BROKEN, "is damaged: it has %s, which effnet does not write" EN_OLDER, path);
    else if (v->verify) v->status = verify_dataset(v->r, path);
    return v->status != EN_OK;
}

en_status en_reader_tree(en_reader *r, bool verify) { return walk(r, "/", verify, UINT64_MAX, visit_root); }
