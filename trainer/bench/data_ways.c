/* bench/data_ways.c - the ways of `effnet bench data` (bench/data.h), each with its clocks.
 *
 * On one thread a way is timed by that thread's CPU time, of a piece of images at once; parts of a way image by image.
 *
 * The loader runs over the same images, through a dataset of their own on top of the real one.  Its clocks start when a batch is
 * handed over and stop some batches later; how far the workers are ahead at either moment is left to chance, so images are counted
 * where they are read, not where they are delivered.  Its batches lie in memory that is kept from round to round. */
#include "trainer/bench/data_ways.h"
#include "trainer/trainer.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const double window_s = 0.2;            /* of the loader, at least: a process's CPU time lags by a tick for each thread that runs */

/* ---- clocks --------------------------------------------------------------------------------------------------------------- */

static double seconds_of(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double cpu_s(void) { return seconds_of(CLOCK_THREAD_CPUTIME_ID); }

/* ---- one image ------------------------------------------------------------------------------------------------------------ */

typedef struct { data_bench *b; uint64_t epoch, sample; } looked;

static en_crop choose(const void *context, int64_t w, int64_t h, int channels)
{
    const looked *l = context;
    data_bench *b = l->b;
    const int size = b->r->size;
    const en_crop c = strcmp(b->o->augment, "none") == 0 ? en_crop_eval(w, h, size)
                                                         : en_crop_train(w, h, channels, size, (uint64_t)b->o->seed, l->epoch, l->sample);
    b->share += (double)(c.w * c.h) / (double)(w * h);
    b->crops++;
    return c;
}

/* The crop as an image of the run, with what a run that augments does to it, or without; CPU seconds += part_s. */
static void finish(data_bench *b, const en_image *img, const en_crop *crop, bool augment, uint64_t epoch, uint64_t sample, double *part_s)
{
    const size_t n = (size_t)b->r->size * (size_t)b->r->size * 3;
    const double begun = cpu_s();
    if (!augment && !b->r->bytes_out) {
        en_resize(img, crop, b->kernel, b->r->size, en_normalise_by(b->model->normalise), b->floats);
        part_s[PART_RESIZE] += cpu_s() - begun;
        return;
    }
    en_resize_bytes(img, crop, b->kernel, b->r->size, augment, b->pixels);
    const double resized = cpu_s();
    if (augment) en_augment_pixels(&b->augment, b->r->size, (uint64_t)b->o->seed, epoch, sample, b->pixels, b->spare);
    if (augment && !b->r->bytes_out) en_normalise_bytes(b->pixels, n, en_normalise_by(b->model->normalise), b->floats);
    part_s[PART_RESIZE] += resized - begun;
    part_s[PART_AUGMENT] += cpu_s() - resized;
}

static en_status decode_and_finish(data_bench *b, const data_file *f, int64_t i, int scale_to, bool augment, uint64_t epoch, double *part_s)
{
    const looked l = { b, epoch, (uint64_t)b->index[i] };
    const double begun = cpu_s();
    en_image img;
    en_crop crop;
    EN_TRY(en_decode_crop(b->decoder, b->view.files[i], f->bytes, f->n, choose, &l, scale_to, &img, &crop), "decoding a crop");
    part_s[PART_DECODE] += cpu_s() - begun;
    finish(b, &img, &crop, augment, epoch, l.sample, part_s);
    return EN_OK;
}

static en_status take_from_cache(data_bench *b, const data_file *f, int64_t i, bool augment, uint64_t epoch, double *part_s)
{
    const looked l = { b, epoch, (uint64_t)b->index[i] };
    const en_image *kept_image = &f->shrunk;
    memcpy(b->copy.rgb, kept_image->rgb, (size_t)(kept_image->w * kept_image->h) * 3);
    const en_image img = { .w = kept_image->w, .h = kept_image->h, .rgb = b->copy.rgb, .channels = kept_image->channels };
    const en_crop crop = choose(&l, img.w, img.h, img.channels);
    finish(b, &img, &crop, augment, epoch, l.sample, part_s);
    return EN_OK;
}

static en_status one_image(data_bench *b, data_way way, data_file *f, int64_t i, uint64_t epoch, double *part_s)
{
    const bool augments = b->r->measured[DATA_AUGMENT];
    const int scale_to = strcmp(b->o->decode, "scaled") == 0 ? b->r->size : 0;
    double aside[DATA_PARTS] = { 0 };
    en_image img;
    en_crop crop;
    switch (way) {
    case DATA_COLD:
    case DATA_READ: return b->ds->ops->read(b->ds, b->index[i], &f->bytes, &f->capacity, &f->n);
    case DATA_WHOLE: return en_decode_crop(b->decoder, b->view.files[i], f->bytes, f->n, NULL, NULL, 0, &img, &crop);
    case DATA_CROP: return decode_and_finish(b, f, i, scale_to, false, epoch, augments ? aside : part_s);
    case DATA_AUGMENT: return decode_and_finish(b, f, i, scale_to, true, epoch, part_s);
    case DATA_SCALED: return decode_and_finish(b, f, i, b->r->size, augments, epoch, aside);
    case DATA_CACHED: return take_from_cache(b, f, i, augments, epoch, aside);
    default: return EN_EINVAL;
    }
}

/* What a cache would hold of the file; not timed. */
static en_status shrink(data_bench *b, data_file *f, int64_t i)
{
    en_image img;
    en_crop all;
    EN_TRY(en_decode_crop(b->decoder, b->view.files[i], f->bytes, f->n, NULL, NULL, 0, &img, &all), "decoding");
    EN_TRY(en_shrink(&img, b->cache_side, &f->shrunk, &f->shrunk_capacity), "shrinking %s", b->view.files[i]);
    if (f->shrunk_capacity > b->copy_capacity) {
        uint8_t *grown = realloc(b->copy.rgb, f->shrunk_capacity);
        EN_REQUIRE(grown, EN_ENOMEM, "no memory for a picture of %" PRId64 " x %" PRId64, f->shrunk.w, f->shrunk.h);
        b->copy.rgb = grown;
        b->copy_capacity = f->shrunk_capacity;
    }
    return EN_OK;
}

/* Their pages leave the page cache, where they are not being written.  A packed dataset is one file. */
static void forget_pages(const data_bench *b, int64_t first, int64_t n)
{
    struct stat st;
    const bool packed = stat(b->ds->source, &st) == 0 && S_ISREG(st.st_mode);
    for (int64_t i = 0; i < (packed ? 1 : n); i++) {
        const int fd = open(packed ? b->ds->source : b->view.files[first + i], O_RDONLY | O_CLOEXEC);
        if (fd < 0) continue;
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        close(fd);
    }
}

en_status data_run_piece(data_bench *b, int64_t first, int64_t n, uint64_t epoch, data_round *r)
{
    for (int way = 0; way < DATA_LOADER; way++) {
        if (!b->r->measured[way]) continue;
        for (int64_t i = 0; way == DATA_CACHED && i < n; i++) EN_TRY(shrink(b, &b->piece[i], first + i), "filling a cache");
        if (way == DATA_COLD) forget_pages(b, first, n);
        const double cpu = cpu_s(), clock = en_seconds();
        for (int64_t i = 0; way == DATA_COLD && b->ds->ops->expect && i < n; i++) b->ds->ops->expect(b->ds, b->index[first + i]);   /* as the loader */
        for (int64_t i = 0; i < n; i++) EN_TRY(one_image(b, (data_way)way, &b->piece[i], first + i, epoch, r->part_s), "%s", b->view.files[first + i]);
        data_tally *t = &r->way[way];
        t->cpu_s += cpu_s() - cpu;
        t->clock_s += en_seconds() - clock;
        t->images += n;
    }
    return EN_OK;
}

/* ---- the loader ----------------------------------------------------------------------------------------------------------- */

static en_status view_read(const en_dataset *view, int64_t i, uint8_t **buf, size_t *capacity, size_t *n)
{
    data_bench *b = view->impl;
    b->begun++;
    return b->ds->ops->read(b->ds, b->index[i], buf, capacity, n);
}

static void view_expect(const en_dataset *view, int64_t i)
{
    const data_bench *b = view->impl;
    if (b->ds->ops->expect) b->ds->ops->expect(b->ds, b->index[i]);
}

const struct en_dataset_ops data_view_ops = { .read = view_read, .expect = view_expect };

static void *take_kept(void *owner, size_t bytes)
{
    data_bench *b = owner;
    for (int k = 0; k < DATA_KEPT; k++) {
        data_kept *m = &b->kept[k];
        if (m->lent || (m->p && m->bytes != bytes)) continue;
        if (!m->p) {
            *m = (data_kept){ .p = aligned_alloc(64, (bytes + 63) / 64 * 64), .bytes = bytes };
            if (m->p) memset(m->p, 0, bytes);  /* a run has long had its memory: no page of it is new */
        }
        m->lent = m->p != NULL;
        return m->p;
    }
    return NULL;
}

static void give_kept(void *owner, void *p)
{
    data_bench *b = owner;
    for (int k = 0; k < DATA_KEPT; k++)
        if (b->kept[k].p == p) b->kept[k].lent = false;
}

en_status data_run_loader(data_bench *b, data_tally *t)
{
    const int64_t batches = b->r->images / b->r->batch > DATA_AHEAD + 2 ? b->r->images / b->r->batch : DATA_AHEAD + 2;       /* more than can be ready */
    const en_loader_config c = { .dataset = &b->view, .shard = { .global_batch = b->r->batch, .accum = 1, .world_size = 1 }, .size = b->r->size,
                                 .workers = b->r->workers, .ahead = DATA_AHEAD, .seed = (uint64_t)b->o->seed, .training = true, .normalise = *en_normalise_by(b->model->normalise),
                                 .kernel = b->kernel, .augment = b->augment, .scaled = strcmp(b->o->decode, "scaled") == 0,
                                 .first_step = b->step, .max_bad_fraction = 1, .max_pixels = b->o->max_pixels,
                                 .center_crop = strcmp(b->o->augment, "none") == 0, .u8 = b->r->bytes_out,
                                 .take = take_kept, .give_back = give_kept, .owner = b };
    en_loader *l = NULL;
    en_batch batch;
    EN_TRY(en_loader_open(&c, &l), "starting the loader");
    en_status status = EN_OK;
    EN_TRY_OUT(en_loader_next(l, &batch), "warming up");
    const double cpu = seconds_of(CLOCK_PROCESS_CPUTIME_ID), clock = en_seconds();
    const int64_t begun = b->begun;
    int64_t k = 0;
    for (; k < batches || en_seconds() - clock < window_s; k++) EN_TRY_OUT(en_loader_next(l, &batch), "batch %" PRId64, k);
    *t = (data_tally){ seconds_of(CLOCK_PROCESS_CPUTIME_ID) - cpu, en_seconds() - clock, b->begun - begun };
    b->step += k + 1;
out:
    en_loader_close(l);
    return status;
}
