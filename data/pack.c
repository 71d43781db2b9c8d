/* pack.c - a folder becomes a file: plan, lock, make or go on, finish.
 *
 *     listed ──▶ TARGET.partial locked ──▶ samples in order, journal ──▶ index over the journal ──▶ synced ──▶ named TARGET
 *                        ▲                          │
 *                        └── the same command ◀── killed, disk full, too many bad files
 *
 * TARGET is there only when it is whole. */
#include "pack_inside.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static en_status check(const en_pack_config *c)
{
    struct stat st;
    EN_REQUIRE(c->source && *c->source && c->target && *c->target && c->split, EN_EINVAL, "packing: an argument is missing");
    EN_REQUIRE(!*c->split || strcmp(c->split, "train") == 0 || strcmp(c->split, "val") == 0, EN_EUSAGE, "--split %s: it is train or val", c->split);
    EN_REQUIRE(c->max_side == 0 || (c->max_side >= 1 && c->max_side <= 65500), EN_EUSAGE, "--max-side %" PRId64 ": it is 1 to 65500", c->max_side);
    EN_REQUIRE(c->max_side == 0 || (c->quality >= 1 && c->quality <= 100), EN_EUSAGE, "--quality %d: it is 1 to 100", c->quality);
    EN_REQUIRE(c->workers >= 0 && c->workers <= 4096, EN_EUSAGE, "--workers %d: it is 0 to 4096", c->workers);
    EN_REQUIRE(stat(c->source, &st) == 0, errno == ENOENT ? EN_EDATA : EN_EIO, "%s cannot be packed (%s); name a folder of images", c->source,
               strerror(errno));
    EN_REQUIRE(S_ISDIR(st.st_mode), EN_EDATA, "%s is not a folder; name a folder of images", c->source);
    return EN_OK;
}

/* The index of the plan, with nothing done yet, is as long as the finished one: it tells where the images will lie. */
static en_status open_partial(en_packing *p, int64_t *done)
{
    int64_t bytes_at = 0;
    uint8_t *image = NULL;
    EN_TRY(en_pack_h5_build(&p->x, &image, &bytes_at), "planning the file");
    free(image);
    EN_TRY(en_partial_resume(&p->partial, p->digest, bytes_at, &p->x, p->flags, done), "packing into %s", p->c->target);
    if (p->c->max_side == 0) EN_TRY(en_partial_room(&p->partial, bytes_at + p->total_bytes), "packing into %s", p->c->target);
    return EN_OK;
}

static en_status finish(en_packing *p, en_pack_report *r)
{
    en_pack_index *x = &p->x;
    int64_t bytes_at = 0;
    uint8_t *image = NULL;
    const int64_t bytes = x->offsets[x->n];
    EN_REQUIRE(bytes > 0, EN_EDATA, "all %" PRId64 " files of %s are empty", x->n, p->c->source);
    for (int64_t i = 0; i < x->n; i++) x->shrunk += (p->flags[i] & EN_PACK_SHRUNK) != 0;
    for (int64_t i = 0; i < x->n; i++) x->bad += (p->flags[i] & EN_PACK_BAD) != 0;
    EN_TRY(en_pack_h5_build(x, &image, &bytes_at), "writing the index");
    en_status status = EN_OK;
    EN_REQUIRE_OUT(bytes_at == p->partial.bytes_at, EN_EINVAL, "HDF5 put /bytes at %" PRId64 ", not at %" PRId64, bytes_at, p->partial.bytes_at);
    EN_TRY_OUT(en_partial_finish(&p->partial, image, bytes), "finishing %s", p->c->target);
    r->samples = x->n;
    r->classes = x->classes;
    r->bad = x->bad;
    r->shrunk = x->shrunk;
    r->bytes_out = bytes_at + bytes;
out:
    free(image);
    return status;
}

en_status en_pack(const en_pack_config *c, en_pack_report *report)
{
    const double began = en_pack_seconds();
    const int workers = en_crew_size(c->workers);
    en_packing p;
    en_pack_complaints bad = { 0 };
    en_pack_report r = { 0 };
    en_status status = EN_OK;
    int64_t done = 0;
    EN_TRY(check(c), "packing");
    en_partial partial;
    EN_TRY(en_partial_open(c->target, &partial), "packing %s", c->source);         /* before the folder is listed, which may take minutes */
    EN_TRY_OUT(en_pack_plan(c, workers, &partial, &p), "packing %s", c->source);
    EN_TRY_OUT(open_partial(&p, &done), "packing %s", c->source);
    EN_TRY_OUT(en_pack_work(&p, workers, done, &bad, &r.bytes_in), "packing %s", c->source);
    EN_TRY_OUT(finish(&p, &r), "packing %s", c->source);
    for (int i = 0; i < bad.listed && !c->quiet; i++) fprintf(stderr, "bad file %s; it is packed as it is\n", bad.text[i] ? bad.text[i] : "");
    if (bad.bad > bad.listed && !c->quiet) fprintf(stderr, "... and %" PRId64 " more\n", bad.bad - bad.listed);
    r.seconds = en_pack_seconds() - began;
    *report = r;
out:
    if (status != EN_OK && p.partial.fd >= 0) {
        struct stat st;                        /* no image in it yet: leave nothing behind */
        if (fstat(p.partial.fd, &st) == 0 && st.st_size <= p.partial.bytes_at) unlink(p.partial.path);
    }
    en_pack_complaints_free(&bad);
    en_packing_free(&p);
    return status;
}
