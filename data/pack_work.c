/* pack_work.c - many threads make the samples, and they come to lie in the file in order.
 *
 * How long a shrunk picture will be is not known before it is made, so a sample's place is known once all before it are
 * made.  A worker takes the next sample, makes it (read, decode to see whether it can be, shrink), and puts it on a ring.  Whoever puts the
 * oldest one there gives it its place, and then the one after it if that is ready, ... and writes them:
 *
 *     written ... │ low: being made │ ready │ being made │ ready │ ... next │ not begun         next <= low + ring
 *
 * The file is thus the same for any number of workers, it needs no second pass and no spool, and a killed packing leaves a prefix that the
 * next one goes on from.  The oldest sample is always in some worker's hands, so nobody waits for ever.  Waiting samples are bounded in
 * number by the ring and in bytes by MAX_HELD: a folder of 1 GiB files does not fill the memory.
 *
 * A file that cannot be decoded is packed as it is: order and labels stay those of the folder, and training treats it as it treats it
 * there.  It is named, and too many of them end the packing.  A file that cannot be read is another matter: its bytes are
 * unknown, and the packing ends. */
#include "pack_inside.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <zlib.h>

static const int64_t max_held = (int64_t)256 << 20;

typedef struct { uint8_t *bytes; size_t n; uint32_t crc; uint8_t flags; bool ready; char *complaint; } item;    /* owns */

typedef struct {
    en_packing *p;
    pthread_mutex_t mutex;
    pthread_cond_t  changed;
    bool     failed;
    item    *ring;                             /* owns (room) */
    int64_t  room, next, low, held;
    int64_t  first, written, written_in, bad_in[EN_PACK_SPLITS];   /* written: samples; written_in: bytes of their files */
    en_pack_complaints *bad;
    en_pack_progress progress;
} packer;

void en_pack_complaints_free(en_pack_complaints *l)
{
    for (int i = 0; i < l->listed; i++) free(l->text[i]);
    *l = (en_pack_complaints){ 0 };
}

/* ---- one sample ------------------------------------------------------------------------------------------------------------ */

static en_status decode(const en_packing *p, en_decoder *d, int64_t i, const uint8_t *bytes, size_t n, en_image *img)
{
    en_crop whole;
    return en_decode_crop(d, p->path[i], bytes, n, NULL, NULL, 0, img, &whole);
}

static en_status check_and_shrink(const en_packing *p, en_decoder *d, int64_t i, item *it)
{
    const en_pack_config *c = p->c;
    en_image img;
    const en_status status = decode(p, d, i, it->bytes, it->n, &img);
    if (status == EN_EDATA) {
        it->flags = EN_PACK_BAD;
        it->complaint = strdup(en_error_message());
        en_error_clear();
        return EN_OK;
    }
    EN_TRY(status, "decoding %s", p->path[i]);
    if (c->max_side == 0 || (img.w <= c->max_side && img.h <= c->max_side)) return EN_OK;
    uint8_t *jpeg = NULL;
    size_t n = 0;
    EN_TRY(en_pack_shrink(&img, c->max_side, c->quality, &jpeg, &n), "shrinking %s", p->path[i]);
    free(it->bytes);
    it->bytes = jpeg;
    it->n = n;
    it->flags = EN_PACK_SHRUNK;
    return EN_OK;
}

static en_status make(const en_packing *p, en_decoder *d, int64_t i, item *it)
{
    size_t capacity = 0;
    EN_TRY(en_file_read(p->path[i], &it->bytes, &capacity, &it->n), "packing");
    EN_REQUIRE((int64_t)it->n == p->size[i], EN_EDATA,
               "%s changed while it was packed (from %" PRId64 " bytes to %zu); start again when nobody writes to the folder", p->path[i],
               p->size[i], it->n);
    EN_TRY(check_and_shrink(p, d, i, it), "packing");
    it->crc = (uint32_t)crc32_z(0, it->bytes ? it->bytes : (const uint8_t *)"", it->n);
    it->ready = true;
    return EN_OK;
}

static void item_free(item *it)
{
    free(it->bytes);
    free(it->complaint);
    *it = (item){ 0 };
}

/* ---- bad files -------------------------------------------------------------------------------------------------------------- */

static int part_of(const en_packing *p, int64_t i) { return p->x.splits > 1 && i >= p->x.split_at[1]; }

static en_status too_many(const packer *k, int part, int64_t allowed)
{
    const en_packing *p = k->p;
    char text[1700] = "";
    size_t used = 0;
    for (int i = 0; i < k->bad->listed && used < sizeof text - 1; i++) {
        const int n = snprintf(text + used, sizeof text - used, "\n    %s", k->bad->text[i] ? k->bad->text[i] : "?");
        if (n > 0) used += (size_t)n;
    }
    return en_raise(EN_EDATA, __FILE__, __LINE__, __func__,
                    "%" PRId64 " of %" PRId64 " files of %s%s%s cannot be decoded, and --max-bad %g allows %" PRId64 ":%s%s", k->bad_in[part],
                    p->set[part]->samples, p->c->source, *p->x.split[part] ? "/" : "", p->x.split[part], p->c->max_bad, allowed, text,
                    k->bad->bad > EN_PACK_LISTED ? "\n    ..." : "");
}

/* Under the mutex, in the order of the samples.  `complaint` is taken. */
static en_status count_bad(packer *k, int64_t i, char *complaint)
{
    en_pack_complaints *l = k->bad;
    if (l->listed < EN_PACK_LISTED) l->text[l->listed++] = complaint;
    else free(complaint);
    l->bad++;
    const int part = part_of(k->p, i);
    k->bad_in[part]++;
    int64_t allowed = (int64_t)(k->p->c->max_bad * (double)k->p->set[part]->samples);
    if (k->p->c->max_bad > 0 && allowed < 1) allowed = 1;          /* as training has it */
    return k->bad_in[part] > allowed ? too_many(k, part, allowed) : EN_OK;
}

/* ---- the ring --------------------------------------------------------------------------------------------------------------- */

/* Under the mutex, which is let go while bytes are written. */
static en_status write_ready(packer *k)
{
    en_packing *p = k->p;
    en_pack_index *x = &p->x;
    for (;;) {
        item *slot = &k->ring[k->low % k->room];
        if (k->failed || !slot->ready) return EN_OK;
        item it = *slot;
        *slot = (item){ 0 };
        const int64_t i = k->low++;
        x->offsets[i + 1] = x->offsets[i] + (int64_t)it.n;
        x->crc[i] = it.crc;
        p->flags[i] = it.flags;
        k->held -= (int64_t)it.n;
        en_status status = EN_OK;
        if (it.flags & EN_PACK_BAD) status = count_bad(k, i, it.complaint);
        it.complaint = NULL;
        pthread_cond_broadcast(&k->changed);
        pthread_mutex_unlock(&k->mutex);
        if (status == EN_OK) status = en_partial_write(&p->partial, it.bytes, it.n, x->offsets[i]);
        if (status == EN_OK) status = en_partial_note(&p->partial, x, p->flags, i);
        item_free(&it);
        pthread_mutex_lock(&k->mutex);
        k->written++;
        k->written_in += p->size[i];
        if (status != EN_OK) return status;
    }
}

static en_status work(void *context, int worker, const atomic_bool *stop)
{
    packer *k = context;
    (void)worker, (void)stop;
    en_decoder *d = NULL;
    en_status status = en_decoder_open(k->p->c->max_pixels, &d);
    pthread_mutex_lock(&k->mutex);
    if (status != EN_OK) k->failed = true;
    while (!k->failed) {
        if (k->next >= k->p->x.n) break;
        if (k->next >= k->low + k->room || k->held > max_held) {
            pthread_cond_wait(&k->changed, &k->mutex);
            continue;
        }
        const int64_t i = k->next++;
        pthread_mutex_unlock(&k->mutex);
        item it = { 0 };
        status = make(k->p, d, i, &it);
        pthread_mutex_lock(&k->mutex);
        if (status != EN_OK) item_free(&it);
        else {
            k->ring[i % k->room] = it;
            k->held += (int64_t)it.n;
            status = write_ready(k);
        }
        if (status != EN_OK) k->failed = true;
    }
    pthread_cond_broadcast(&k->changed);
    pthread_mutex_unlock(&k->mutex);
    en_decoder_close(d);
    return status;
}

static void tick(void *context)
{
    packer *k = context;
    pthread_mutex_lock(&k->mutex);
    const int64_t written = k->first + k->written, bytes = k->written_in, bad = k->bad->bad;
    pthread_mutex_unlock(&k->mutex);
    en_pack_progress_show(&k->progress, written, bytes, bad);
}

/* ---- what an earlier process has done ----------------------------------------------------------------------------------------- */

typedef struct { en_packing *p; char **complaint; atomic_llong next, good; } comparing;   /* good: all below are whole */

static en_status compare(void *context, int worker, const atomic_bool *stop)
{
    comparing *m = context;
    const en_packing *p = m->p;
    const en_pack_index *x = &p->x;
    uint8_t *buf = NULL;
    size_t capacity = 0;
    en_decoder *d = NULL;
    en_status status = en_decoder_open(p->c->max_pixels, &d);
    (void)worker;
    while (status == EN_OK && !atomic_load(stop)) {
        const int64_t i = atomic_fetch_add(&m->next, 1);
        if (i >= atomic_load(&m->good)) break;
        const en_pack_place place = { .fd = p->partial.fd, .at = p->partial.bytes_at + x->offsets[i], .n = x->offsets[i + 1] - x->offsets[i],
                                      .sample = i, .crc = x->crc[i], .path = p->partial.path, .label = NULL };
        status = en_pack_read(&place, &buf, &capacity);
        if (status == EN_EDATA || status == EN_EIO) {                /* from here on it is made anew */
            long long good = atomic_load(&m->good);
            while (i < good && !atomic_compare_exchange_weak(&m->good, &good, i)) continue;
            status = EN_OK;
        } else if (status == EN_OK && p->flags[i] & EN_PACK_BAD) {   /* why it is bad was not kept */
            en_image img;
            if (decode(p, d, i, buf, (size_t)place.n, &img) != EN_OK) m->complaint[i] = strdup(en_error_message());
        }
        en_error_clear();
    }
    free(buf);
    en_decoder_close(d);
    return status;
}

static en_status keep_what_is_whole(packer *k, int workers, int64_t done)
{
    en_packing *p = k->p;
    comparing m = { .p = p, .good = done, .complaint = calloc((size_t)done + 1, sizeof *m.complaint) };
    EN_REQUIRE(m.complaint, EN_ENOMEM, "no memory to compare %" PRId64 " samples", done);
    en_status status = en_crew_run(&(en_crew){ .workers = workers, .work = compare, .context = &m });
    const int64_t good = atomic_load(&m.good);
    for (int64_t i = 0; i < done; i++) {
        if (i < good && status == EN_OK) {
            k->written_in += p->size[i];
            if (p->flags[i] & EN_PACK_BAD) {
                status = count_bad(k, i, m.complaint[i]);
                m.complaint[i] = NULL;
            }
        }
        free(m.complaint[i]);
    }
    free(m.complaint);
    k->first = k->low = k->next = good;
    if (status == EN_OK && !p->c->quiet)
        fprintf(stderr, "%s: %" PRId64 " of %" PRId64 " files were packed before and are whole; going on from there\n", p->partial.path, good,
                p->x.n);
    return status;
}

en_status en_pack_work(en_packing *p, int workers, int64_t done, en_pack_complaints *bad, int64_t *bytes_in)
{
    packer k = { .p = p, .room = 4 * (int64_t)workers, .bad = bad };
    en_status status = EN_OK;
    k.ring = calloc((size_t)k.room, sizeof *k.ring);
    EN_REQUIRE(k.ring, EN_ENOMEM, "no memory for %d workers", workers);
    pthread_mutex_init(&k.mutex, NULL);
    pthread_cond_init(&k.changed, NULL);
    if (done > 0) EN_TRY_OUT(keep_what_is_whole(&k, workers, done), "going on with %s", p->partial.path);
    en_pack_progress_open(&k.progress, "packing", p->c->quiet, p->x.n, p->total_bytes);
    k.progress.first = k.first;
    k.progress.first_bytes = k.written_in;
    status = en_crew_run(&(en_crew){ .workers = workers, .work = work, .tick = tick, .context = &k });
    en_pack_progress_close(&k.progress);
    *bytes_in = k.written_in;
out:
    for (int64_t i = 0; i < k.room; i++) item_free(&k.ring[i]);
    free(k.ring);
    pthread_cond_destroy(&k.changed);
    pthread_mutex_destroy(&k.mutex);
    return status;
}
