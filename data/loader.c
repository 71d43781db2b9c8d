/* loader.c - threads that decode ahead of the step.
 *
 * The unit of work is one image of one batch, or, where images are mixed in pairs, one pair (the essay says image for both).  Batches are numbered from 0 and live in a ring of `ahead` + 1 slots; batch b
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
 * A bad file leaves a note on its image (loader_bad.c), and a stand-in (training) or a hole (evaluation).  Stand-in k of sample s in
 * epoch e is draw (seed, EN_RNG_REPLACE, e, s, k) among the other samples: it depends on no rank and no history.
 *
 * All memory for batches is taken when the loader is opened (an evaluation has no more slots than batches); that ring is also the back-pressure: workers that are `ahead`
 * batches in front wait.  What a worker does to an image is in loader_image.c. */
#include "loader.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STAND_INS = 100, MOST_AHEAD = 4096 };

typedef struct {
    int64_t  batch;                            /* its number                  */
    int64_t  n, first, tasks, remaining;       /* images; their positions begin; images or pairs to make, not finished ones */
    void    *images;                           /* owns (most, size, size, 3) floats, or bytes */
    int32_t *labels;                           /* owns (most)                */
    int32_t *mates;                            /* owns (most), or NULL       */
    float   *shares;                           /* owns (most), or NULL       */
    int64_t *samples;                          /* owns (most); -1: a hole    */
    en_bad_note **notes;                            /* owns (most) lists          */
} slot;

typedef struct {
    en_loader *loader;                         /* borrows */
    pthread_t  thread;
    en_maker   maker;
    _Atomic int64_t at;                        /* the sample it makes, -1: none    */
    _Atomic double  since;                     /* en_loader_clock                  */
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
    int64_t  next_task;                        /* of batch begun - 1 */
    en_loader_times times;
    en_status failed;                          /* sticky */
    char     failure[2048];

    double   wait_s;                           /* from here on: the caller's thread alone */
    en_bad_files bad;
    atomic_uchar *whole;                       /* owns: one bit a sample */
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

/* out = the image at `position` of the stream: of the sample itself, or of a stand-in, or (evaluation) nothing: *used -1.  What was
 * met on the way is noted in *notes. */
static en_status make(worker *w, int64_t position, void *out, en_bad_note **notes, int64_t *used)
{
    const en_loader *l = w->loader;
    const en_loader_config *c = &l->config;
    const int64_t samples = c->dataset->samples;
    int64_t epoch = 0;
    const int64_t wanted = c->training ? en_sampler_at(c->seed, samples, position, &epoch) : position;
    for (uint32_t k = 0; k <= STAND_INS; k++) {
        const int64_t sample = k == 0 ? wanted : stand_in(l, epoch, wanted, k);
        en_error_clear();
        atomic_store_explicit(&w->since, en_loader_clock(), memory_order_relaxed);
        atomic_store_explicit(&w->at, sample, memory_order_release);
        const en_status status = en_make_image(&w->maker, sample, epoch, out);
        atomic_store_explicit(&w->at, -1, memory_order_relaxed);
        *used = sample;
        if (status == EN_OK) return EN_OK;
        if (status != EN_EDATA && status != EN_EIO) return status;         /* not the file's fault */
        char text[2048];
        snprintf(text, sizeof text, "%s", en_error_message());
        EN_TRY(en_bad_note_add(notes, sample, text), "noting a bad file");
        *used = -1;
        if (!c->training) return EN_OK;
        if (samples == 1) break;
    }
    en_error_clear();
    return en_raise(EN_EDATA, __FILE__, __LINE__, __func__, "no stand-in found for %s: %s", c->dataset->files[wanted],
                    samples == 1 ? "it is the only image" : "100 other images cannot be decoded either");
}

static char *image_at(const en_loader *l, const slot *s, int64_t i) { return (char *)s->images + (size_t)i * en_loader_image_bytes(&l->config); }

static en_mix draw_mix(const en_loader_config *c, int64_t position, int64_t pair)
{
    int64_t epoch;
    const int64_t sample = en_sampler_at(c->seed, c->dataset->samples, position, &epoch);     /* its own, also when a stand-in is there */
    return en_mix_draw(&c->augment, c->size, pair, c->seed, (uint64_t)epoch, (uint64_t)sample);
}

/* Positions 2k and 2k+1 of the step, of which the batch in `s` has one or both. */
static en_status fill_pair(worker *w, slot *s, int64_t task)
{
    const en_loader *l = w->loader;
    const en_loader_config *c = &l->config;
    const int64_t begin = s->first / c->shard.global_batch * c->shard.global_batch, pair = (s->first - begin) / 2 + task;
    const int64_t position[2] = { begin + 2 * pair, begin + 2 * pair + 1 };
    int64_t at[2], used[2];
    void *image[2];
    for (int k = 0; k < 2; k++) {
        at[k] = position[k] >= s->first && position[k] < s->first + s->n ? position[k] - s->first : -1;
        image[k] = at[k] >= 0 ? image_at(l, s, at[k]) : w->maker.mate;
    }
    const bool alone = position[1] >= begin + c->shard.global_batch;
    for (int k = 0; k < 2 - alone; k++)
        EN_TRY(make(w, position[k], image[k], &s->notes[at[k] >= 0 ? at[k] : at[!k]], &used[k]), "image of position %" PRId64, position[k]);
    const en_mix mix[2] = { draw_mix(c, position[0], pair), alone ? (en_mix){ 0 } : draw_mix(c, position[1], pair) };
    const double t0 = en_loader_clock();
    if (!alone && c->u8) en_mix_bytes(&mix[0], &mix[1], c->size, image[0], image[1]);
    else if (!alone) en_mix_floats(&mix[0], &mix[1], c->size, image[0], image[1]);
    w->maker.times.augment_s += en_loader_clock() - t0;
    for (int k = 0; k < 2 - alone; k++) {
        if (at[k] < 0) continue;
        s->samples[at[k]] = used[k];
        s->labels[at[k]] = c->dataset->labels[used[k]];
        s->mates[at[k]] = c->dataset->labels[used[alone ? k : !k]];
        s->shares[at[k]] = alone ? 1.f : mix[k].share;
    }
    return EN_OK;
}

static en_status fill(worker *w, slot *s, int64_t task)
{
    const en_loader *l = w->loader;
    if (s->mates) return fill_pair(w, s, task);
    EN_TRY(make(w, s->first + task, image_at(l, s, task), &s->notes[task], &s->samples[task]), "image of position %" PRId64, s->first + task);
    if (s->samples[task] >= 0) s->labels[task] = l->config.dataset->labels[s->samples[task]];
    return EN_OK;
}

/* The image at the same place of the first batch that has no slot yet will be read next: its bytes may travel already. */
static void expect(const en_loader *l, const slot *s, int64_t task)
{
    const en_loader_config *c = &l->config;
    const en_dataset *ds = c->dataset;
    const int64_t b = s->batch + l->slots;
    if (!ds->ops->expect || c->cache || b >= l->total) return;
    int64_t first, n;
    batch_range(l, b, &first, &n);
    const int64_t each = s->mates ? 2 : 1;
    for (int64_t i = task * each; i < (task + 1) * each && i < n; i++)
        ds->ops->expect(ds, c->training ? en_sampler_at(c->seed, ds->samples, first + i, NULL) : first + i);
}

/* Under the mutex.  The next image to make, beginning a batch when the last one is handed out; false: none for now. */
static bool take(en_loader *l, slot **s, int64_t *task)
{
    for (;;) {
        if (l->begun > 0) {
            *s = &l->slot[(l->begun - 1) % l->slots];
            if (l->next_task < (*s)->tasks) { *task = l->next_task++; return true; }
        }
        if (l->begun == l->total || l->begun == l->released + l->slots) return false;
        slot *next = &l->slot[l->begun % l->slots];
        batch_range(l, l->begun, &next->first, &next->n);
        next->batch = l->begun;
        next->tasks = next->n;
        if (next->mates && next->n > 0) {      /* pairs that the positions [at, at + n) of the step touch */
            const int64_t at = next->first % l->config.shard.global_batch;
            next->tasks = (at + next->n - 1) / 2 - at / 2 + 1;
        }
        next->remaining = next->tasks;
        l->begun++;
        l->next_task = 0;
        if (next->n == 0) pthread_cond_signal(&l->full);           /* nothing to wait for */
        else pthread_cond_broadcast(&l->work);
    }
}

static void add_times(en_loader_times *sum, en_loader_times *mine)
{
    sum->read_s += mine->read_s;
    sum->decode_s += mine->decode_s;
    sum->resize_s += mine->resize_s;
    sum->augment_s += mine->augment_s;
    sum->images += mine->images;
    sum->cached += mine->cached;
    *mine = (en_loader_times){ 0 };
}

static void *work(void *argument)
{
    worker *w = argument;
    en_loader *l = w->loader;
    pthread_mutex_lock(&l->mutex);
    while (!l->stop) {
        slot *s;
        int64_t task;
        if (!take(l, &s, &task)) {
            pthread_cond_wait(&l->work, &l->mutex);
            continue;
        }
        pthread_mutex_unlock(&l->mutex);
        expect(l, s, task);
        const en_status status = fill(w, s, task);
        en_maker_stay_modest(&w->maker);
        pthread_mutex_lock(&l->mutex);
        add_times(&l->times, &w->maker.times);
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

/* Moves the images together; how many there are.  s->n stays what workers read under the mutex. */
static int64_t close_holes(const en_loader *l, slot *s)
{
    const size_t image = en_loader_image_bytes(&l->config);
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
        const double start = en_loader_clock();
        while (l->failed == EN_OK && !(l->begun > b && s->remaining == 0)) pthread_cond_wait(&l->full, &l->mutex);
        l->wait_s += en_loader_clock() - start;
    }
    const en_status failed = l->failed;
    pthread_mutex_unlock(&l->mutex);
    EN_REQUIRE(failed == EN_OK, failed, "%s", l->failure);         /* written once, before `failed` was seen */
    if (b >= l->total) return EN_OK;

    const en_status status = en_bad_files_read(&l->bad, s->n, s->notes);
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
                       .bytes = l->config.u8 ? s->images : NULL, .labels = s->labels, .mates = s->mates, .shares = s->shares,
                       .samples = s->samples,
                       .epoch = l->config.training ? s->first / l->config.dataset->samples : 0 };
    l->delivered = b + 1;
    return EN_OK;
}

int64_t en_loader_steps(const en_loader *l)  { return l->config.training ? -1 : l->total; }
double  en_loader_wait_s(const en_loader *l) { return l->wait_s; }

en_loader_times en_loader_spent(en_loader *l)
{
    pthread_mutex_lock(&l->mutex);
    const en_loader_times t = l->times;
    pthread_mutex_unlock(&l->mutex);
    return t;
}

void en_loader_slowest(const en_loader *l, char *words, size_t size)
{
    double first = 0;
    int64_t sample = -1;
    for (int k = 0; k < l->workers; k++) {
        const int64_t at = atomic_load_explicit(&l->worker[k].at, memory_order_acquire);
        const double since = atomic_load_explicit(&l->worker[k].since, memory_order_relaxed);
        if (at >= 0 && (sample < 0 || since < first)) sample = at, first = since;
    }
    if (sample < 0) snprintf(words, size, "%s", "");
    else snprintf(words, size, "at work on %s for %.0f s", l->config.dataset->files[sample], en_loader_clock() - first);
}

static int ahead_of(const en_loader_config *c)
{
    if (c->ahead_bytes == 0) return c->ahead;
    const int64_t most = en_shard_max(&c->shard);
    const size_t fit = c->ahead_bytes / (en_loader_image_bytes(c) * (size_t)(most > 0 ? most : 1));
    return fit < 1 ? 1 : fit > MOST_AHEAD ? MOST_AHEAD : (int)fit;
}

static int64_t batches_of(const en_loader_config *c)           /* training: no end */
{
    return c->training ? INT64_MAX : (c->dataset->samples - 1) / c->shard.global_batch + 1;
}

static int slots_of(const en_loader_config *c)
{
    const int64_t wanted = ahead_of(c) + 1, all = batches_of(c);
    return (int)(wanted < all ? wanted : all);
}

size_t en_loader_bytes(const en_loader_config *c)
{
    return (size_t)slots_of(c) * (size_t)en_shard_max(&c->shard) * en_loader_image_bytes(c) + (size_t)(c->workers > 0 ? c->workers : 1) * en_maker_bytes(c);
}

int64_t en_loader_bad(const en_loader *l, const char *const **files)
{
    if (files) *files = l->bad.files;
    return l->bad.n;
}

/* ---- opening and closing ---- */

static en_status check(const en_loader_config *c)
{
    EN_REQUIRE(c->dataset && c->dataset->samples > 0, EN_EINVAL, "a loader without samples");
    EN_REQUIRE(c->dataset->samples <= UINT32_MAX, EN_EINVAL, "a loader of %" PRId64 " samples; 2^32 - 1 are the limit",
               c->dataset->samples);
    EN_REQUIRE(c->size > 0 && c->size <= 16384, EN_EINVAL, "a loader of %d x %d images", c->size, c->size);
    EN_REQUIRE(c->workers >= 0 && c->workers <= 4096 && (c->ahead_bytes > 0 || (c->ahead >= 1 && c->ahead <= MOST_AHEAD)), EN_EINVAL,
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
    EN_TRY(en_bad_files_open(c, &l->bad), "a loader");
    l->whole = calloc((size_t)c->dataset->samples / 8 + 1, sizeof *l->whole);
    EN_REQUIRE(l->slot && l->worker && l->whole, EN_ENOMEM, "no memory for a loader of %d batches", l->slots);
    const bool pairs = c->training && en_augments_pairs(&c->augment);
    size_t bytes, rounded;
    const size_t most = (size_t)(l->most > 0 ? l->most : 1);
    EN_REQUIRE(!__builtin_mul_overflow(en_loader_image_bytes(c), most, &bytes)
               && !__builtin_add_overflow(bytes, (size_t)63, &rounded),
               EN_ENOMEM, "a batch of %zu images of %d x %d has more bytes than there are addresses", most, c->size, c->size);
    for (int i = 0; i < l->slots; i++) {
        slot *s = &l->slot[i];
        s->images = c->take ? c->take(c->owner, rounded / 64 * 64) : aligned_alloc(64, rounded / 64 * 64);
        s->labels = calloc(most, sizeof *s->labels);
        s->samples = calloc(most, sizeof *s->samples);
        if (pairs) s->mates = calloc(most, sizeof *s->mates), s->shares = calloc(most, sizeof *s->shares);
        s->notes = calloc(most, sizeof *s->notes);
        EN_REQUIRE(s->images && s->labels && s->samples && s->notes && (!pairs || (s->mates && s->shares)), EN_ENOMEM,
                   "no memory for %d batches of %zu images of %d x %d (%.1f GB); lower the micro-batch", l->slots, most,
                   c->size, c->size, (double)bytes * l->slots / 1e9);
    }
    return EN_OK;
}

static en_status start_workers(en_loader *l)
{
    for (int i = 0; i < l->workers; i++) EN_TRY(en_maker_open(&l->config, l->whole, &l->worker[i].maker), "worker %d", i);
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
        atomic_init(&w->at, -1);
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
    l->slots = slots_of(&l->config);
    l->workers = config->workers > 0 ? config->workers : 1;
    l->most = en_shard_max(&l->config.shard);
    l->total = batches_of(&l->config);
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
    for (int i = 0; l->worker && i < l->workers; i++) en_maker_close(&l->worker[i].maker);
    for (int i = 0; l->slot && i < l->slots; i++) {
        slot *s = &l->slot[i];
        for (int64_t k = 0; s->notes && k < l->most; k++) en_bad_note_free(s->notes[k]);
        if (s->images && l->config.give_back) l->config.give_back(l->config.owner, s->images);
        else free(s->images);
        free(s->labels);
        free(s->mates);
        free(s->shares);
        free(s->samples);
        free(s->notes);
    }
    en_bad_files_close(&l->bad);
    free(l->whole);
    free(l->slot);
    free(l->worker);
    free(l);
}
