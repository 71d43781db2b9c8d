/* packed.c - a packed file as a dataset.
 *
 * Where the bytes lie is looked up once (pack_h5_read.c); from then on a sample is one pread at a known place, from any
 * thread of any rank, without a lock and without a shared position.  Every rank opens the file itself, read-only: nothing is written,
 * nothing is locked, and a part of the samples is a range of the index, so splits and ranks need no copies.
 *
 * Classes are those of the folder: a part that is opened by itself has the classes that occur in it, in byte order, as its
 * folder would have them, and `classes_like` renumbers them. */
#include "pack_inside.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <zlib.h>

typedef struct {
    int       fd;
    int64_t   bytes_at, first;                 /* first: of this part in the file */
    int64_t  *offsets;                         /* owns (samples + 1)              */
    uint32_t *crc;                             /* owns (samples)                  */
    char     *names;                           /* owns what files[] point to      */
} packed;

en_status en_pack_read(const en_pack_place *p, uint8_t **buf, size_t *capacity)
{
    char name[EN_PACK_NAME + 64];
    if (p->label) snprintf(name, sizeof name, "%s", p->label);
    else snprintf(name, sizeof name, "sample %" PRId64 " of %s", p->sample, p->path);
    if ((size_t)p->n > *capacity) {
        uint8_t *grown = realloc(*buf, (size_t)p->n);
        EN_REQUIRE(grown, EN_ENOMEM, "no memory for the %" PRId64 " bytes of %s", p->n, name);
        *buf = grown;
        *capacity = (size_t)p->n;
    }
    for (int64_t have = 0; have < p->n;) {
        const ssize_t got = pread(p->fd, *buf + have, (size_t)(p->n - have), (off_t)(p->at + have));
        if (got < 0 && errno == EINTR) continue;
        EN_REQUIRE(got >= 0, EN_EIO, "%s cannot be read (%s)", name, strerror(errno));
        EN_REQUIRE(got > 0, EN_EDATA, "%s is no longer there: the file became shorter", name);
        have += got;
    }
    const uint32_t is = (uint32_t)crc32_z(0, *buf ? *buf : (const uint8_t *)"", (size_t)p->n);
    EN_REQUIRE(is == p->crc, EN_EDATA, "%s (sample %" PRId64 ") is damaged: its CRC-32 is %08x and should be %08x", name, p->sample, is, p->crc);
    return EN_OK;
}

static en_status packed_read(const en_dataset *ds, int64_t i, uint8_t **buf, size_t *capacity, size_t *n)
{
    const packed *p = ds->impl;
    EN_REQUIRE(i >= 0 && i < ds->samples, EN_EINVAL, "sample %" PRId64 " of %" PRId64, i, ds->samples);
    const en_pack_place place = { .fd = p->fd, .at = p->bytes_at + p->offsets[i], .n = p->offsets[i + 1] - p->offsets[i],
                                  .sample = p->first + i, .crc = p->crc[i], .path = ds->source, .label = ds->files[i] };
    EN_TRY(en_pack_read(&place, buf, capacity), "reading %s", ds->source);
    *n = (size_t)place.n;
    return EN_OK;
}

static void packed_expect(const en_dataset *ds, int64_t i)
{
    const packed *p = ds->impl;
    if (i >= 0 && i < ds->samples)
        posix_fadvise(p->fd, (off_t)(p->bytes_at + p->offsets[i]), (off_t)(p->offsets[i + 1] - p->offsets[i]), POSIX_FADV_WILLNEED);
}

static void packed_close(en_dataset *ds)
{
    packed *p = ds->impl;
    if (p) {
        if (p->fd >= 0) close(p->fd);
        free(p->offsets);
        free(p->crc);
        free(p->names);
    }
    free(p);
    for (int64_t c = 0; ds->class_names && c < ds->classes; c++) free(ds->class_names[c]);
    free(ds->class_names);
    free(ds->files);
    free(ds->labels);
}

static const struct en_dataset_ops packed_ops = { .read = packed_read, .close = packed_close, .expect = packed_expect };

/* ds->class_names and the label of each class of the file: those that occur in samples [first, first + n). */
static en_status take_classes(en_dataset *ds, const en_pack_index *x, int64_t first, const en_dataset *like, int64_t *label)
{
    char name[EN_PACK_NAME + 1] = "";
    for (int64_t c = 0; c < x->classes; c++) label[c] = -1;
    for (int64_t i = 0; i < ds->samples; i++) label[x->labels[first + i]] = 0;
    if (like) EN_TRY(en_class_names_copy(ds, like), "copying the class names");
    else {
        ds->class_names = calloc((size_t)x->classes, sizeof *ds->class_names);
        EN_REQUIRE(ds->class_names, EN_ENOMEM, "no memory for %" PRId64 " class names", x->classes);
    }
    for (int64_t c = 0; c < x->classes; c++) {
        if (label[c] < 0) continue;
        snprintf(name, sizeof name, "%.*s", (int)x->class_width, x->class_names + (size_t)c * x->class_width);
        EN_TRY(en_class_label(ds->source, name, "pack the data without it, or name data of the same classes", ds->classes, like, &label[c]),
               "opening the images");
        if (like) continue;
        ds->class_names[ds->classes] = strdup(name);
        EN_REQUIRE(ds->class_names[ds->classes], EN_ENOMEM, "no memory for the class names");
        ds->classes++;
    }
    return EN_OK;
}

/* ds->files[i] = "FILE.h5:train/class/name.jpg" */
static en_status take_names(en_dataset *ds, packed *p, const en_pack_index *x)
{
    const size_t prefix = strlen(ds->source) + 1;
    size_t bytes = 0;
    for (int64_t i = 0; i < ds->samples; i++)
        bytes += prefix + strnlen(x->files + (size_t)(p->first + i) * x->file_width, x->file_width) + 1;
    ds->files = calloc((size_t)ds->samples, sizeof *ds->files);
    p->names = malloc(bytes);
    EN_REQUIRE(ds->files && p->names, EN_ENOMEM, "no memory for %" PRId64 " file names", ds->samples);
    char *to = p->names;
    for (int64_t i = 0; i < ds->samples; i++) {
        const char *name = x->files + (size_t)(p->first + i) * x->file_width;
        const size_t n = strnlen(name, x->file_width);
        ds->files[i] = to;
        memcpy(to, ds->source, prefix - 1);
        to[prefix - 1] = ':';
        memcpy(to + prefix, name, n);
        to[prefix + n] = '\0';
        to += prefix + n + 1;
    }
    return EN_OK;
}

static en_status take_samples(en_dataset *ds, packed *p, const en_pack_index *x, const int64_t *label)
{
    EN_REQUIRE(ds->samples >= 1 && ds->samples <= UINT32_MAX, EN_EINVAL, "a part of %" PRId64 " samples", ds->samples);
    const size_t n = (size_t)ds->samples;
    p->offsets = malloc((n + 1) * sizeof *p->offsets);
    p->crc = malloc(n * sizeof *p->crc);
    ds->labels = malloc(n * sizeof *ds->labels);
    EN_REQUIRE(p->offsets && p->crc && ds->labels, EN_ENOMEM, "no memory for an index of %zu samples", n);
    memcpy(p->offsets, x->offsets + p->first, (n + 1) * sizeof *p->offsets);
    memcpy(p->crc, x->crc + p->first, n * sizeof *p->crc);
    for (size_t i = 0; i < n; i++) ds->labels[i] = (int32_t)label[x->labels[p->first + (int64_t)i]];
    return EN_OK;
}

static en_status find_split(const char *path, const en_pack_index *x, const char *split, int64_t *k)
{
    for (*k = 0; *k < x->splits; ++*k)
        if (!x->split[*k][0] || strcmp(x->split[*k], split) == 0) return EN_OK;
    return en_raise(EN_EDATA, __FILE__, __LINE__, __func__, "%s has a %s part but no %s part; pack a folder that has both, or name another "
                    "dataset for it", path, x->split[0], split);
}

en_status en_packed_open(const char *path, const char *split, const en_dataset *classes_like, en_dataset **out)
{
    en_status status = EN_OK;
    en_pack_index x = { 0 };
    int64_t k = 0, bytes_at = 0, *label = NULL;
    int fd = -1;
    packed *p = NULL;
    en_dataset *ds = NULL;
    EN_REQUIRE(path && split && out, EN_EINVAL, "opening a packed file: an argument is NULL");
    *out = NULL;
    EN_REQUIRE(strlen(path) < sizeof ds->source, EN_EDATA, "the path of the dataset has %zu bytes; %zu are the limit", strlen(path),
               sizeof ds->source - 1);
    EN_TRY_OUT(en_pack_h5_read(path, &x, &fd, &bytes_at), "opening %s for %s", path, split);
    EN_TRY_OUT(find_split(path, &x, split, &k), "opening %s for %s", path, split);
    p = calloc(1, sizeof *p);
    ds = calloc(1, sizeof *ds);
    label = calloc((size_t)x.classes, sizeof *label);
    EN_REQUIRE_OUT(p && ds && label, EN_ENOMEM, "no memory for a dataset");
    *p = (packed){ .fd = fd, .bytes_at = bytes_at, .first = x.split_at[k] };
    posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);   /* no readahead of neighbours, which come when their turn is; expect() asks for what does */
    fd = -1;
    ds->ops = &packed_ops;
    ds->impl = p;
    ds->whole = x.bad == 0;
    p = NULL;
    strcpy(ds->source, path);
    ds->samples = x.split_at[k + 1] - x.split_at[k];
    EN_TRY_OUT(take_classes(ds, &x, x.split_at[k], classes_like, label), "opening %s for %s", path, split);
    EN_TRY_OUT(take_samples(ds, ds->impl, &x, label), "opening %s for %s", path, split);
    EN_TRY_OUT(take_names(ds, ds->impl, &x), "opening %s for %s", path, split);
    *out = ds;
    ds = NULL;
out:
    if (fd >= 0) close(fd);
    free(p);
    free(label);
    en_dataset_close(ds);
    en_pack_index_free(&x);
    return status;
}

bool en_packed_has(const char *path, const char *split)
{
    en_pack_index x;
    bool found = false;
    const en_status status = en_pack_h5_splits(path, &x);
    for (int64_t k = 0; status == EN_OK && k < x.splits; k++) found |= strcmp(x.split[k], split) == 0;
    if (status != EN_OK) en_error_clear();     /* opening it will say so */
    en_pack_index_free(&x);
    return found;
}
