/* loader.c - threads that decode ahead of the step.
 *
 * The unit of work is one image of one batch.  Batches are numbered from 0 and live in a ring of `ahead` + 1 slots; batch b
 * is in slot b % slots.  Workers take (batch, image) pairs in order from one counter under one mutex, and everything else
 * about an image - which sample, which crop, where its pixels go - is a function of the pair, so which worker takes it
 * cannot be seen in the result.
 *
 *     free ──begin──▶ filling ──last image──▶ full ──en_loader_next──▶ lent ──the next en_loader_next──▶ free
 *
 * Invariants, all under the mutex:
 *   1. released <= delivered <= begun <= released + slots: batches below `released` are free, those in
 *      [released, delivered) are lent (at most one), those below `begun` have been begun.
 *   2. slot(b)->remaining counts images of b that are not finished; only the worker that took an image touches its part.
 *   3. A batch is begun once released + slots exceeds its number, so nothing that is lent is ever written.
 *
 * Bad files.  A worker that meets one hangs a note on the image and goes on with a stand-in (training) or leaves a hole
 * (evaluation).  The notes are read by en_loader_next when the batch is delivered: in batch order, by one thread, so what
 * is printed, counted and refused is the same whatever the workers' timing.  Stand-in k of sample s in epoch e is draw
 * (seed, EN_RNG_REPLACE, e, s, k) among the other samples: it depends on no rank and no history.
 *
 * All memory for batches is taken when the loader is opened.  Each worker keeps a file buffer and a picture buffer that
 * grow to the largest file it has met. */
#include "decode.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { STAND_INS = 100, LISTED = 20, KEEP_BYTES = 64 << 20 };

typedef struct note {                          /* a bad file, met while an image was made */
    struct note *next;
    int64_t      sample;
    char         text[];
} note;

typedef struct {
    int64_t  n, first, remaining;
    void    *images;                           /* owns (most, size, size, 3) floats, or bytes */
    int32_t *labels;                           /* owns (most)                */
    int64_t *samples;                          /* owns (most); -1: a hole    */
    note   **notes;                            /* owns (most) lists          */
} slot;

typedef struct {
    en_loader *loader;                         /* borrows */
    pthread_t  thread;
    uint8_t   *file;                           /* owns    */
    size_t     file_capacity;
    en_image   picture;                        /* owns    */
    size_t     picture_capacity;
    float     *resized;                        /* owns: one image on its way to bytes; NULL without u8 */
} worker;

struct en_loader {
    en_loader_config config;
    int64_t  total;                            /* batches there are; training: no end */
    int64_t  most;                             /* images in the largest batch         */
    int      slots, workers, started;
    slot    *slot;
    worker  *worker;

    pthread_mutex_t mutex;
    pthread_cond_t  work, full;
    bool     synced, stop;                     /* mutex and conditions exist; threads shall end */
    int64_t  released, delivered, begun;
    int64_t  next_image;                       /* of batch begun - 1 */
    en_status failed;                          /* sticky */
    char     failure[2048];

    double   wait_s;                           /* from here on: the caller's thread alone */
    uint8_t *is_bad;                           /* owns: one bit a sample */
    int64_t  bad, bad_room;
    const char **bad_files;                    /* owns the array, borrows the dataset's strings */
    char    *listed[LISTED];                   /* owns */
};

/* ---- what batch b is ---- */

static void batch_range(const en_loader *l, int64_t b, int64_t *first, int64_t *n)
{
    const en_shard *s = &l->config.shard;
    if (l->config.training) {
        en_shard_range(s, l->config.first_step + b / s->accum, b % s->accum, first, n);
        return;
    }
    const int64_t begin = b * s->global_batch, left = l->config.dataset->samples - begin;
    const en_shard step = { .global_batch = left < s->global_batch ? left : s->global_batch, .accum = 1, .rank = s->rank,
                            .world_size = s->world_size };
    en_shard_range(&step, 0, 0, first, n);
    *first += begin;
}

static int64_t stand_in(const en_loader *l, int64_t epoch, int64_t sample, uint32_t k)
{
    en_rng rng = en_rng_at(l->config.seed, EN_RNG_REPLACE, (uint64_t)epoch, (uint64_t)sample, k);
    const int64_t other = en_rng_below(&rng, (uint32_t)(l->config.dataset->samples - 1));
    return other + (other >= sample);
}

/* ---- workers ---- */

static size_t image_bytes(const en_loader_config *c)
{
    return (size_t)c->size * (size_t)c->size * 3 * (c->u8 ? 1 : sizeof(float));
}

static en_status make_image(worker *w, int64_t sample, int64_t epoch, void *out)
{
    const en_loader_config *c = &w->loader->config;
    const en_dataset *ds = c->dataset;
    size_t n = 0;
    EN_TRY(ds->ops->read(ds, sample, &w->file, &w->file_capacity, &n), "reading it");
    EN_TRY(en_decode_into(ds->files[sample], w->file, n, c->max_pixels, &w->picture, &w->picture_capacity), "decoding it");
    const en_image *p = &w->picture;
    const en_crop crop = c->training && !c->center_crop
                       ? en_crop_train(p->w, p->h, p->channels, c->size, c->seed, (uint64_t)epoch, (uint64_t)sample)
                       : en_crop_eval(p->w, p->h, c->size);
    static const en_normalise as_is = { { 0, 0, 0 }, { 1, 1, 1 } };
    en_resize_bicubic(p, &crop, c->size, c->u8 ? &as_is : &c->normalise, c->u8 ? w->resized : out);
    if (c->u8) en_round_pixels(w->resized, image_bytes(c), out);
    return EN_OK;
}

static en_status add_note(note **list, int64_t sample, const char *text)
{
    const size_t n = strlen(text) + 1;
    note *added = malloc(sizeof *added + n);
    EN_REQUIRE(added, EN_ENOMEM, "no memory to report: %s", text);
    added->next = NULL;
    added->sample = sample;
    memcpy(added->text, text, n);
    while (*list) list = &(*list)->next;
    *list = added;
    return EN_OK;
}

/* Image i of the batch in `s`: the sample itself, or a stand-in, or a hole. */
static en_status fill(worker *w, slot *s, int64_t i)
{
    const en_loader *l = w->loader;
    const en_loader_config *c = &l->config;
    const int64_t position = s->first + i, samples = c->dataset->samples;
    int64_t epoch = 0;
    const int64_t wanted = c->training ? en_sampler_at(c->seed, samples, position, &epoch) : position;
    for (uint32_t k = 0; k <= STAND_INS; k++) {
        const int64_t sample = k == 0 ? wanted : stand_in(l, epoch, wanted, k);
        en_error_clear();
        const en_status status = make_image(w, sample, epoch, (char *)s->images + (size_t)i * image_bytes(c));
        if (status == EN_OK) {
            s->labels[i] = c->dataset->labels[sample];
            s->samples[i] = sample;
            return EN_OK;
        }
        if (status != EN_EDATA && status != EN_EIO) return status;         /* not the file's fault */
        char text[2048];
        snprintf(text, sizeof text, "%s", en_error_message());
        EN_TRY(add_note(&s->notes[i], sample, text), "noting a bad file");
        if (!c->training) {
            s->samples[i] = -1;
            return EN_OK;
        }
        if (samples == 1) break;
    }
    en_error_clear();
    return en_raise(EN_EDATA, __FILE__, __LINE__, __func__, "no stand-in found for %s: %s", c->dataset->files[wanted],
                    samples == 1 ? "it is the only image" : "100 other images cannot be decoded either");
}

static void keep_modest(worker *w)             /* one giant picture must not stay with every worker for good */
{
    if (w->picture_capacity > KEEP_BYTES) {
        en_image_free(&w->picture);
        w->picture_capacity = 0;
    }
    if (w->file_capacity > KEEP_BYTES) {
        free(w->file);
        w->file = NULL;
        w->file_capacity = 0;
    }
}

/* Under the mutex.  The next image to make, beginning a batch when the last one is handed out; false: none for now. */
static bool take(en_loader *l, slot **s, int64_t *i)
{
    for (;;) {
        if (l->begun > 0) {
            *s = &l->slot[(l->begun - 1) % l->slots];
            if (l->next_image < (*s)->n) { *i = l->next_image++; return true; }
        }
        if (l->begun == l->total || l->begun == l->released + l->slots) return false;
        slot *next = &l->slot[l->begun % l->slots];
        batch_range(l, l->begun, &next->first, &next->n);
        next->remaining = next->n;
        l->begun++;
        l->next_image = 0;
        if (next->n == 0) pthread_cond_signal(&l->full);           /* nothing to wait for */
        else pthread_cond_broadcast(&l->work);
    }
}

static void *work(void *argument)
{
    worker *w = argument;
    en_loader *l = w->loader;
    pthread_mutex_lock(&l->mutex);
    while (!l->stop) {
        slot *s;
        int64_t i;
        if (!take(l, &s, &i)) {
            pthread_cond_wait(&l->work, &l->mutex);
            continue;
        }
        pthread_mutex_unlock(&l->mutex);
        const en_status status = fill(w, s, i);
        keep_modest(w);
        pthread_mutex_lock(&l->mutex);
        if (status != EN_OK && l->failed == EN_OK) {
            l->failed = status;
            snprintf(l->failure, sizeof l->failure, "%s", en_error_message());
        }
        if (--s->remaining == 0 || status != EN_OK) pthread_cond_signal(&l->full);
    }
    pthread_mutex_unlock(&l->mutex);
    return NULL;
}

/* ---- the caller's side ---- */

static en_status remember_bad(en_loader *l, const note *bad)
{
    uint8_t *byte = &l->is_bad[bad->sample / 8];
    const uint8_t bit = (uint8_t)(1 << bad->sample % 8);
    if (*byte & bit) return EN_OK;
    *byte |= bit;
    if (l->bad == l->bad_room) {
        const int64_t room = l->bad_room ? 2 * l->bad_room : 64;
        const char **grown = realloc(l->bad_files, (size_t)room * sizeof *grown);
        EN_REQUIRE(grown, EN_ENOMEM, "no memory for a list of %" PRId64 " bad files", room);
        l->bad_files = grown;
        l->bad_room = room;
    }
    if (l->bad < LISTED) l->listed[l->bad] = strdup(bad->text);
    l->bad_files[l->bad++] = l->config.dataset->files[bad->sample];
    fprintf(stderr, "rank %d: bad file %s; %s\n", l->config.shard.rank, bad->text,
            l->config.training ? "another image takes its place" : "it is left out");
    return EN_OK;
}

static en_status too_many_bad(const en_loader *l, int64_t allowed)
{
    char text[1900];
    size_t used = 0;
    for (int i = 0; i < LISTED && i < l->bad && used < sizeof text - 1; i++) {
        const int n = snprintf(text + used, sizeof text - used, "\n    %s", l->listed[i] ? l->listed[i] : l->bad_files[i]);
        if (n > 0) used += (size_t)n;
    }
    return en_raise(EN_EDATA, __FILE__, __LINE__, __func__,
                    "%" PRId64 " of %" PRId64 " files cannot be used, and --max-bad %g allows %" PRId64 ":%s%s",
                    l->bad, l->config.dataset->samples, l->config.max_bad_fraction, allowed, text,
                    l->bad > LISTED ? "\n    ..." : "");
}

/* Reads and frees the notes of a delivered batch. */
static en_status read_notes(en_loader *l, slot *s)
{
    en_status status = EN_OK;
    for (int64_t i = 0; i < s->n; i++)
        while (s->notes[i]) {
            note *bad = s->notes[i];
            s->notes[i] = bad->next;
            if (status == EN_OK) status = remember_bad(l, bad);
            free(bad);
        }
    if (status != EN_OK) return status;
    const double share = l->config.max_bad_fraction;
    int64_t allowed = (int64_t)(share * (double)l->config.dataset->samples);
    if (share > 0 && allowed < 1) allowed = 1;
    return l->bad > allowed ? too_many_bad(l, allowed) : EN_OK;
}

/* Moves the images together; how many there are.  s->n stays what workers read under the mutex. */
static int64_t close_holes(const en_loader *l, slot *s)
{
    const size_t image = image_bytes(&l->config);
    int64_t kept = 0;
    for (int64_t i = 0; i < s->n; i++) {
        if (s->samples[i] < 0) continue;
        if (kept < i) {
            memcpy((char *)s->images + (size_t)kept * image, (char *)s->images + (size_t)i * image, image);
            s->labels[kept] = s->labels[i];
            s->samples[kept] = s->samples[i];
        }
        kept++;
    }
    return kept;
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

en_status en_loader_next(en_loader *l, en_batch *out)
{
    EN_REQUIRE(l && out, EN_EINVAL, "the next batch: an argument is NULL");
    *out = (en_batch){ 0 };
    const int64_t b = l->delivered;
    pthread_mutex_lock(&l->mutex);
    l->released = b;                           /* the batch lent last comes back */
    pthread_cond_broadcast(&l->work);
    slot *s = &l->slot[b % l->slots];
    if (b < l->total) {
        const double start = seconds();
        while (l->failed == EN_OK && !(l->begun > b && s->remaining == 0)) pthread_cond_wait(&l->full, &l->mutex);
        l->wait_s += seconds() - start;
    }
    const en_status failed = l->failed;
    pthread_mutex_unlock(&l->mutex);
    EN_REQUIRE(failed == EN_OK, failed, "%s", l->failure);         /* written once, before `failed` was seen */
    if (b >= l->total) return EN_OK;

    const en_status status = read_notes(l, s);
    if (status != EN_OK) {
        pthread_mutex_lock(&l->mutex);
        if (l->failed == EN_OK) {
            l->failed = status;
            snprintf(l->failure, sizeof l->failure, "%s", en_error_message());
        }
        pthread_mutex_unlock(&l->mutex);
        return en_raise(status, __FILE__, __LINE__, __func__, "loading batch %" PRId64, b);
    }
    *out = (en_batch){ .n = close_holes(l, s), .first = s->first, .images = l->config.u8 ? NULL : s->images,
                       .bytes = l->config.u8 ? s->images : NULL, .labels = s->labels, .samples = s->samples,
                       .epoch = l->config.training ? s->first / l->config.dataset->samples : 0 };
    l->delivered = b + 1;
    return EN_OK;
}

int64_t en_loader_steps(const en_loader *l)  { return l->config.training ? -1 : l->total; }
double  en_loader_wait_s(const en_loader *l) { return l->wait_s; }

int64_t en_loader_bad(const en_loader *l, const char *const **files)
{
    if (files) *files = l->bad_files;
    return l->bad;
}

/* ---- opening and closing ---- */

static en_status check(const en_loader_config *c)
{
    EN_REQUIRE(c->dataset && c->dataset->samples > 0, EN_EINVAL, "a loader without samples");
    EN_REQUIRE(c->dataset->samples <= UINT32_MAX, EN_EINVAL, "a loader of %" PRId64 " samples; 2^32 - 1 are the limit",
               c->dataset->samples);
    EN_REQUIRE(c->size > 0 && c->size <= 16384, EN_EINVAL, "a loader of %d x %d images", c->size, c->size);
    EN_REQUIRE(c->workers >= 0 && c->workers <= 4096 && c->ahead >= 1 && c->ahead <= 4096, EN_EINVAL,
               "a loader of %d workers, %d batches ahead", c->workers, c->ahead);
    const en_shard *s = &c->shard;
    EN_REQUIRE(s->global_batch >= 1 && s->world_size >= 1 && s->rank >= 0 && s->rank < s->world_size, EN_EINVAL,
               "a loader of rank %d of %d, %" PRId64 " images a step", s->rank, s->world_size, s->global_batch);
    EN_REQUIRE(!c->training || (s->accum >= 1 && c->first_step >= 0), EN_EINVAL,
               "a loader from step %" PRId64 " with %" PRId64 " micro-steps a step",
               c->first_step, s->accum);
    for (int d = 0; d < 3; d++)
        EN_REQUIRE(c->normalise.std[d] != 0, EN_EINVAL, "a loader that divides by a standard deviation of 0");
    return EN_OK;
}

static en_status take_memory(en_loader *l)
{
    const en_loader_config *c = &l->config;
    l->slot = calloc((size_t)l->slots, sizeof *l->slot);
    l->worker = calloc((size_t)l->workers, sizeof *l->worker);
    l->is_bad = calloc((size_t)c->dataset->samples / 8 + 1, 1);
    EN_REQUIRE(l->slot && l->worker && l->is_bad, EN_ENOMEM, "no memory for a loader of %d batches", l->slots);
    size_t bytes, rounded;
    const size_t most = (size_t)(l->most > 0 ? l->most : 1);
    EN_REQUIRE(!__builtin_mul_overflow(image_bytes(c), most, &bytes)
               && !__builtin_add_overflow(bytes, (size_t)63, &rounded),
               EN_ENOMEM, "a batch of %zu images of %d x %d has more bytes than there are addresses", most, c->size, c->size);
    for (int i = 0; i < l->slots; i++) {
        slot *s = &l->slot[i];
        s->images = c->take ? c->take(c->owner, rounded / 64 * 64) : aligned_alloc(64, rounded / 64 * 64);
        s->labels = calloc(most, sizeof *s->labels);
        s->samples = calloc(most, sizeof *s->samples);
        s->notes = calloc(most, sizeof *s->notes);
        EN_REQUIRE(s->images && s->labels && s->samples && s->notes, EN_ENOMEM,
                   "no memory for %d batches of %zu images of %d x %d (%.1f GB); lower the micro-batch", l->slots, most,
                   c->size, c->size, (double)bytes * l->slots / 1e9);
    }
    return EN_OK;
}

static en_status start_workers(en_loader *l)
{
    for (int i = 0; l->config.u8 && i < l->workers; i++) {
        l->worker[i].resized = malloc(image_bytes(&l->config) * sizeof(float) + sizeof(float));
        EN_REQUIRE(l->worker[i].resized, EN_ENOMEM, "no memory for an image of %d x %d", l->config.size, l->config.size);
    }
    EN_REQUIRE(pthread_mutex_init(&l->mutex, NULL) == 0, EN_ENOMEM, "no memory for a mutex");
    if (pthread_cond_init(&l->work, NULL) != 0) {
        pthread_mutex_destroy(&l->mutex);
        return en_raise(EN_ENOMEM, __FILE__, __LINE__, __func__, "no memory for a condition");
    }
    if (pthread_cond_init(&l->full, NULL) != 0) {
        pthread_cond_destroy(&l->work);
        pthread_mutex_destroy(&l->mutex);
        return en_raise(EN_ENOMEM, __FILE__, __LINE__, __func__, "no memory for a condition");
    }
    l->synced = true;
    sigset_t all, before;                      /* signals are the main thread's business */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = 0;
    while (l->started < l->workers && error == 0) {
        worker *w = &l->worker[l->started];
        w->loader = l;
        error = pthread_create(&w->thread, NULL, work, w);
        if (error == 0) l->started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    EN_REQUIRE(error == 0, EN_EIO, "cannot start worker %d of %d: %s; lower --workers", l->started + 1, l->workers,
               strerror(error));
    return EN_OK;
}

en_status en_loader_open(const en_loader_config *config, en_loader **out)
{
    EN_REQUIRE(config && out, EN_EINVAL, "opening a loader: an argument is NULL");
    *out = NULL;
    EN_TRY(check(config), "opening a loader");
    en_status status = EN_OK;
    en_loader *l = calloc(1, sizeof *l);
    EN_REQUIRE(l, EN_ENOMEM, "no memory for a loader");
    l->config = *config;
    if (!config->training) l->config.shard.accum = 1;
    l->slots = config->ahead + 1;
    l->workers = config->workers > 0 ? config->workers : 1;
    l->most = en_shard_max(&l->config.shard);
    const int64_t samples = config->dataset->samples, batch = config->shard.global_batch;
    l->total = config->training ? INT64_MAX : (samples - 1) / batch + 1;
    EN_TRY_OUT(take_memory(l), "opening a loader");
    EN_TRY_OUT(start_workers(l), "opening a loader");
    *out = l;
    return EN_OK;
out:
    en_loader_close(l);
    return status;
}

void en_loader_close(en_loader *l)
{
    if (!l) return;
    if (l->synced) {
        pthread_mutex_lock(&l->mutex);
        l->stop = true;
        pthread_cond_broadcast(&l->work);
        pthread_mutex_unlock(&l->mutex);
        for (int i = 0; i < l->started; i++) pthread_join(l->worker[i].thread, NULL);
        pthread_cond_destroy(&l->full);
        pthread_cond_destroy(&l->work);
        pthread_mutex_destroy(&l->mutex);
    }
    for (int i = 0; l->worker && i < l->workers; i++) {
        free(l->worker[i].file);
        free(l->worker[i].resized);
        en_image_free(&l->worker[i].picture);
    }
    for (int i = 0; l->slot && i < l->slots; i++) {
        slot *s = &l->slot[i];
        for (int64_t k = 0; s->notes && k < l->most; k++)
            while (s->notes[k]) {
                note *next = s->notes[k]->next;
                free(s->notes[k]);
                s->notes[k] = next;
            }
        if (s->images && l->config.give_back) l->config.give_back(l->config.owner, s->images);
        else free(s->images);
        free(s->labels);
        free(s->samples);
        free(s->notes);
    }
    for (int i = 0; i < LISTED; i++) free(l->listed[i]);
    free(l->slot);
    free(l->worker);
    free(l->is_bad);
    free(l->bad_files);
    free(l);
}
