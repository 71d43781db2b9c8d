/* loader_image.c - one picture from its file to its place in a batch.
 *
 *     read ─▶ decode the crop ─▶ resize, flip ──────────────────────────────────▶ normalised floats        basic
 *                                        └──▶ bytes ─▶ policy, erasing ─▶ bytes ─▶ normalised floats        with augmentation
 *
 * A device that normalises on load (u8) takes the bytes.  With a cache the first half is  read ─▶ decode ─▶ shrink ─▶ keep, done
 * once, and the crop is taken out of what was kept.
 *
 * Bad or not must not depend on the crop, or on who has met the file before: so every loader decodes a file to its end the first time,
 * and again while it finds it bad; from then on it stops below the crop.  Files that were decoded when they were packed need not be.
 *
 * Rounding to bytes: the reference clips and truncates before it augments, so that is done where a policy runs, on every device
 * alike; without one its pixels stay floats on the CPU, and are rounded to nearest for a device that wants bytes. */
#include "loader.h"

#include <stdlib.h>
#include <time.h>

enum { KEEP_BYTES = 64 << 20 };

double en_loader_clock(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

size_t en_loader_image_bytes(const en_loader_config *c)
{
    return (size_t)c->size * (size_t)c->size * 3 * (c->u8 ? 1 : sizeof(float));
}

en_status en_maker_open(const en_loader_config *config, atomic_uchar *whole, en_maker *m)
{
    *m = (en_maker){ .config = config, .whole = whole };
    const size_t bytes = (size_t)config->size * (size_t)config->size * 3;
    EN_TRY(en_decoder_open(config->max_pixels, &m->decoder), "a decoder for a worker");
    if (en_augments_pixels(&config->augment)) {
        m->bytes = malloc(bytes);
        m->spare = malloc(bytes);
        EN_REQUIRE(m->bytes && m->spare, EN_ENOMEM, "no memory for images of %d x %d", config->size, config->size);
    }
    if (en_augments_pairs(&config->augment)) {
        m->mate = malloc(en_loader_image_bytes(config));
        EN_REQUIRE(m->mate, EN_ENOMEM, "no memory for images of %d x %d", config->size, config->size);
    }
    return EN_OK;
}

size_t en_maker_bytes(const en_loader_config *c)
{
    const size_t bytes = (size_t)c->size * (size_t)c->size * 3;
    return (en_augments_pixels(&c->augment) ? 2 * bytes : 0) + (en_augments_pairs(&c->augment) ? en_loader_image_bytes(c) : 0);
}

void en_maker_close(en_maker *m)
{
    en_decoder_close(m->decoder);
    free(m->file);
    en_image_free(&m->kept);
    free(m->bytes);
    free(m->spare);
    free(m->mate);
    *m = (en_maker){ 0 };
}

void en_maker_stay_modest(en_maker *m)
{
    if (m->kept_capacity > KEEP_BYTES) {
        en_image_free(&m->kept);
        m->kept_capacity = 0;
    }
    if (m->file_capacity > KEEP_BYTES) {
        free(m->file);
        m->file = NULL;
        m->file_capacity = 0;
    }
}

/* ---- which part of a picture is looked at ---- */

typedef struct { const en_loader_config *config; uint64_t epoch, sample; } glance;

static en_crop choose(const void *context, int64_t w, int64_t h, int channels)
{
    const glance *g = context;
    const en_loader_config *c = g->config;
    if (!c->training || c->center_crop) return en_crop_evaluated(c->eval_crop, w, h, c->size);
    if (c->v2_crop) return en_crop_train_v2(w, h, c->seed, g->epoch, g->sample);
    return en_crop_train(w, h, channels, c->size, c->seed, g->epoch, g->sample);
}

static en_status read_file(en_maker *m, int64_t sample, size_t *n)
{
    const en_dataset *ds = m->config->dataset;
    const double t0 = en_loader_clock();
    const en_status s = ds->ops->read(ds, sample, &m->file, &m->file_capacity, n);
    m->times.read_s += en_loader_clock() - t0;
    EN_TRY(s, "reading it");
    return EN_OK;
}

/* *img holds *crop: out of the file, or out of what is kept of it. */
static en_status see(en_maker *m, const glance *g, en_image *img, en_crop *crop)
{
    const en_loader_config *c = m->config;
    const int64_t sample = (int64_t)g->sample;
    size_t n = 0;
    if (!c->cache) {
        EN_TRY(read_file(m, sample, &n), "reading it");
        const double t0 = en_loader_clock();
        const unsigned char bit = (unsigned char)(1 << sample % 8);
        const bool known = c->dataset->whole || (atomic_load_explicit(&m->whole[sample / 8], memory_order_relaxed) & bit);
        en_decoder_to_the_end(m->decoder, !known);
        const en_status s = en_decode_crop(m->decoder, c->dataset->files[sample], m->file, n, choose, g, c->scaled ? c->size : 0, img, crop);
        if (s == EN_OK && !known) atomic_fetch_or_explicit(&m->whole[sample / 8], bit, memory_order_relaxed);
        m->times.decode_s += en_loader_clock() - t0;
        EN_TRY(s, "decoding it");
        return EN_OK;
    }
    const double t0 = en_loader_clock();
    const bool hit = en_cache_get(c->cache, sample, &m->kept, &m->kept_capacity);
    m->times.read_s += en_loader_clock() - t0;
    m->times.cached += hit;
    if (!hit) {
        EN_TRY(read_file(m, sample, &n), "reading it");
        const double t1 = en_loader_clock();
        en_image whole;
        en_crop all;
        en_status s = en_decode_crop(m->decoder, c->dataset->files[sample], m->file, n, NULL, NULL, 0, &whole, &all);
        if (s == EN_OK) s = en_shrink(&whole, c->cache_side, &m->kept, &m->kept_capacity);
        if (s == EN_OK) en_cache_put(c->cache, sample, &m->kept);
        m->times.decode_s += en_loader_clock() - t1;
        EN_TRY(s, "decoding it");
    }
    *img = m->kept;                            /* borrowed */
    *crop = choose(g, img->w, img->h, img->channels);
    return EN_OK;
}

en_status en_make_image(en_maker *m, int64_t sample, int64_t epoch, void *out)
{
    const en_loader_config *c = m->config;
    const glance g = { c, (uint64_t)epoch, (uint64_t)sample };
    en_image img;
    en_crop crop;
    EN_TRY(see(m, &g, &img, &crop), "making image %lld", (long long)sample);

    const double t0 = en_loader_clock();
    const bool augmented = c->training && en_augments_pixels(&c->augment);
    uint8_t *bytes = c->u8 ? out : m->bytes;
    if (augmented || c->u8) en_resize_bytes(&img, &crop, c->kernel, c->size, augmented, bytes);
    else en_resize(&img, &crop, c->kernel, c->size, &c->normalise, out);
    const double t1 = en_loader_clock();
    m->times.resize_s += t1 - t0;
    m->times.images++;
    if (!augmented) return EN_OK;
    en_augment_pixels(&c->augment, c->size, c->seed, (uint64_t)epoch, (uint64_t)sample, bytes, m->spare);
    if (!c->u8) en_normalise_bytes(bytes, (size_t)c->size * (size_t)c->size * 3, &c->normalise, out);
    m->times.augment_s += en_loader_clock() - t1;
    return EN_OK;
}
