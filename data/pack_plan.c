/* pack_plan.c - what will be packed, before anything is: parts, names, labels and sizes, in the order of the folder's dataset. */
#include "pack_inside.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static int by_bytes(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* The classes of all parts together, each once; the strings are borrowed. */
static en_status all_classes(const en_packing *p, char ***out, int64_t *n)
{
    int64_t room = 0;
    for (int k = 0; k < p->x.splits; k++) room += p->set[k]->classes;
    char **all = malloc((size_t)room * sizeof *all);
    EN_REQUIRE(all, EN_ENOMEM, "no memory for %" PRId64 " class names", room);
    int64_t used = 0, kept = 0;
    for (int k = 0; k < p->x.splits; k++)
        for (int64_t c = 0; c < p->set[k]->classes; c++) all[used++] = p->set[k]->class_names[c];
    qsort(all, (size_t)used, sizeof *all, by_bytes);
    for (int64_t i = 0; i < used; i++)
        if (i == 0 || strcmp(all[i], all[kept - 1]) != 0) all[kept++] = all[i];
    *out = all;
    *n = kept;
    return EN_OK;
}

/* names[i] + skip side by side, each `width` bytes, padded with zeros */
static en_status fixed_width(char *const *names, int64_t n, size_t skip, char **out, size_t *width)
{
    *width = 1;
    for (int64_t i = 0; i < n; i++) {
        const size_t length = strlen(names[i] + skip);
        if (length > *width) *width = length;
    }
    EN_REQUIRE(*width <= EN_PACK_NAME, EN_EDATA, "a file name has %zu bytes; %d are the limit", *width, EN_PACK_NAME);
    *out = calloc(*width, (size_t)(n > 0 ? n : 1));
    EN_REQUIRE(*out, EN_ENOMEM, "no memory for %" PRId64 " names of %zu bytes", n, *width);
    for (int64_t i = 0; i < n; i++) {
        const char *name = names[i] + skip;
        memcpy(*out + (size_t)i * *width, name, strlen(name));
    }
    return EN_OK;
}

static en_status open_parts(en_packing *p)
{
    const en_pack_config *c = p->c;
    bool has[EN_PACK_SPLITS];
    static const char *const name[EN_PACK_SPLITS] = { "train", "val" };
    EN_TRY(en_folder_splits(c->source, &has[0], &has[1]), "looking at %s", c->source);
    EN_REQUIRE(!*c->split || has[0] || has[1], EN_EUSAGE, "%s is not divided into train/ and val/; leave --split out", c->source);
    for (int k = 0; k < EN_PACK_SPLITS; k++) {
        if (*c->split ? strcmp(c->split, name[k]) != 0 : !has[k] && (k > 0 || has[1])) continue;
        EN_TRY(en_dataset_open(c->source, name[k], NULL, &p->set[p->x.splits]), "listing %s", c->source);
        if (has[0] || has[1]) strcpy(p->x.split[p->x.splits], name[k]);
        p->x.split_at[p->x.splits + 1] = p->x.n += p->set[p->x.splits]->samples;
        p->x.splits++;
    }
    return EN_OK;
}

static en_status fill_index(en_packing *p)
{
    en_pack_index *x = &p->x;
    const size_t n = (size_t)x->n, source = strlen(p->c->source);
    en_status status = EN_OK;
    char **class = NULL;
    int32_t *label = NULL;
    EN_REQUIRE(x->n <= UINT32_MAX, EN_EDATA, "%s has %" PRId64 " files; 2^32 - 1 are the limit", p->c->source, x->n);
    p->path = malloc(n * sizeof *p->path);
    p->size = calloc(n, sizeof *p->size);
    p->flags = calloc(n, 1);
    x->labels = calloc(n, sizeof *x->labels);
    x->crc = calloc(n, sizeof *x->crc);
    x->offsets = calloc(n + 1, sizeof *x->offsets);
    EN_REQUIRE(p->path && p->size && p->flags && x->labels && x->crc && x->offsets, EN_ENOMEM, "no memory for an index of %zu files", n);
    EN_TRY(all_classes(p, &class, &x->classes), "listing the classes of %s", p->c->source);
    label = malloc((size_t)x->classes * sizeof *label);
    EN_REQUIRE_OUT(label, EN_ENOMEM, "no memory for %" PRId64 " classes", x->classes);
    for (int k = 0; k < x->splits; k++) {
        const en_dataset *ds = p->set[k];
        memcpy(p->path + x->split_at[k], ds->files, (size_t)ds->samples * sizeof *p->path);
        for (int64_t c = 0, at = 0; c < ds->classes; c++) {        /* both in byte order */
            while (strcmp(class[at], ds->class_names[c]) != 0) at++;
            label[c] = (int32_t)at;
        }
        for (int64_t i = 0; i < ds->samples; i++) x->labels[x->split_at[k] + i] = label[ds->labels[i]];
    }
    EN_TRY_OUT(fixed_width(class, x->classes, 0, &x->class_names, &x->class_width), "listing the classes of %s", p->c->source);
    EN_TRY_OUT(fixed_width(p->path, x->n, source + (p->c->source[source - 1] != '/'), &x->files, &x->file_width), "listing the files of %s",
               p->c->source);
out:
    free(class);
    free(label);
    return status;
}

/* ---- sizes and times, by many threads: on a network file system each answer takes a while -------------------------------- */

typedef struct { en_packing *p; struct stat partial; atomic_llong next; uint64_t *stamp; } looking;
enum { AT_ONCE = 64 };

static uint64_t mix(uint64_t h, uint64_t v) { return (h ^ v) * 1099511628211u; }

static en_status look(void *context, int worker, const atomic_bool *stop)
{
    looking *l = context;
    (void)worker;
    while (!atomic_load(stop)) {
        const int64_t first = atomic_fetch_add(&l->next, AT_ONCE);
        if (first >= l->p->x.n) break;
        for (int64_t i = first; i < first + AT_ONCE && i < l->p->x.n; i++) {
            struct stat st;
            EN_REQUIRE(stat(l->p->path[i], &st) == 0, EN_EIO, "%s cannot be looked at (%s)", l->p->path[i], strerror(errno));
            EN_REQUIRE(st.st_dev != l->partial.st_dev || st.st_ino != l->partial.st_ino, EN_EUSAGE,
                       "%s would lie among the images that it is made of; name a file in another folder", l->p->c->target);
            EN_REQUIRE(S_ISREG(st.st_mode), EN_EDATA, "%s is not a regular file; take it out of the folder", l->p->path[i]);
            EN_REQUIRE(st.st_size <= en_pack_sample_bytes, EN_EDATA, "%s is too large for an image (%" PRId64 " bytes; the limit is 1 GiB)",
                       l->p->path[i], (int64_t)st.st_size);
            l->p->size[i] = st.st_size;
            l->stamp[i] = mix(mix(14695981039346656037u, (uint64_t)st.st_mtim.tv_sec), (uint64_t)st.st_mtim.tv_nsec);
        }
    }
    return EN_OK;
}

static uint64_t digest_of(const en_packing *p, const uint64_t *stamp)
{
    const en_pack_config *c = p->c;
    const en_pack_index *x = &p->x;
    const int64_t numbers[] = { EN_PACK_VERSION, x->n, x->classes, x->splits, c->max_side, c->quality, c->max_pixels, (int64_t)x->file_width };
    uint64_t h = 14695981039346656037u;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) h = mix(h, (uint64_t)numbers[i]);
    for (size_t i = 0; i < (size_t)x->classes * x->class_width; i++) h = mix(h, (uint8_t)x->class_names[i]);
    for (size_t i = 0; i < (size_t)x->n * x->file_width; i++) h = mix(h, (uint8_t)x->files[i]);
    for (int k = 0; k < x->splits; k++) h = mix(mix(h, (uint64_t)x->split_at[k]), (uint8_t)x->split[k][0]);
    for (int64_t i = 0; i < x->n; i++) h = mix(mix(mix(h, (uint64_t)p->size[i]), stamp[i]), (uint64_t)x->labels[i]);
    return h;
}

en_status en_pack_plan(const en_pack_config *c, int workers, const en_partial *partial, en_packing *p)
{
    *p = (en_packing){ .c = c, .partial = *partial };
    EN_TRY(open_parts(p), "planning");
    EN_TRY(fill_index(p), "planning");
    p->x.source = c->source;
    p->x.max_side = c->max_side;
    p->x.quality = c->max_side > 0 ? c->quality : 0;
    looking l = { .p = p, .stamp = calloc((size_t)p->x.n, sizeof *l.stamp) };
    EN_REQUIRE(l.stamp, EN_ENOMEM, "no memory for %" PRId64 " times", p->x.n);
    if (fstat(partial->fd, &l.partial) != 0) l.partial = (struct stat){ 0 };
    const en_status status = en_crew_run(&(en_crew){ .workers = workers, .work = look, .context = &l });
    for (int64_t i = 0; i < p->x.n; i++) p->total_bytes += p->size[i];
    if (status == EN_OK) p->digest = digest_of(p, l.stamp);
    free(l.stamp);
    return status;
}

void en_packing_free(en_packing *p)
{
    en_partial_close(&p->partial);
    en_pack_index_free(&p->x);
    for (int k = 0; k < EN_PACK_SPLITS; k++) en_dataset_close(p->set[k]);
    free(p->path);
    free(p->size);
    free(p->flags);
}
