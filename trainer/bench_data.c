/* bench_data.c - `effnet bench data`: how fast a core turns files into training images, and how many cores a GPU needs.
 *
 * The same images go several ways (bench_data.h).  A round takes them in pieces of a few and sends each piece down every way in
 * turn, so that what the machine does besides falls on all ways alike; figures are medians over rounds.  Machines are shared: a
 * rate "of a core" counts the CPU time of the thread, and the one by the clock stands beside it.
 *
 * Images are the first of the sampler's permutation, so that a few stand for all; all are read and decoded once before, which
 * brings them into the page cache and sorts out what cannot be decoded.  Crops and operations are those of epoch = round.
 *
 * The loader runs over the same images, through a dataset of their own on top of the real one.  Its clocks start when a batch is
 * handed over and stop some batches later; how far the workers are ahead at either moment is left to chance, so images are counted
 * where they are read, not where they are delivered.  Its batches lie in memory that is kept from round to round.
 *
 * The rate to feed is given, or a bound: the floor of a training step (bench_layers.c) on an H200, which no step can beat. */
#define _GNU_SOURCE                            /* sched_getaffinity */
#include "trainer/bench_data.h"
#include "trainer/bench_passes.h"
#include "trainer/commands.h"
#include "trainer/input.h"
#include "trainer/trainer.h"

#include "data/data.h"

#include <inttypes.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { DEFAULT_IMAGES = 256, LEAST_IMAGES = 16, PIECE = 16, DEFAULT_BATCH = 64, LEAST_ROUNDS = 5, MOST_ROUNDS = 1000, MOST_BAD = 1000, AHEAD = 2, KEPT = 16 };
static const double long_enough_s = 10, looked_s = 2;           /* rounds by default; the look before them          */
static const double window_s = 0.2;            /* of the loader, at least: a process's CPU time lags by a tick for each thread that runs */
static const size_t batch_bytes = (size_t)64 << 20;             /* larger images come in smaller batches            */

/* What an H200 reaches with large tensors: a copy, and a product of bf16 matrices (kernels/cuda/README.md). */
const double en_h200_bytes_per_s = 4.3e12, en_h200_flops_per_s = 790e12;

typedef struct { double cpu_s, clock_s; int64_t images; } tally;
typedef struct { tally way[DATA_WAYS]; double part_s[DATA_PARTS]; } round_of;       /* part_s: CPU seconds in all      */
typedef struct { uint8_t *bytes; size_t capacity, n; en_image shrunk; size_t shrunk_capacity; } file;
typedef struct { void *p; size_t bytes; bool lent; } kept;

typedef struct {
    const en_options *o;
    data_result  *r;
    en_model     *model;                       /* owns                                                              */
    en_dataset   *ds;                          /* owns                                                              */
    en_dataset    view;                        /* the measured images alone, as a dataset: for the loader            */
    int64_t      *index;                       /* owns (images): which of ds they are                                */
    en_augment    augment;
    en_resize_kernel kernel;
    int64_t       cache_side;
    en_decoder   *decoder;
    float        *floats;                      /* owns: an image on its way, each                                    */
    uint8_t      *pixels, *spare;
    en_image      copy; size_t copy_capacity;  /* owns: what comes out of a cache                                    */
    file          piece[PIECE];                /* owns                                                              */
    kept          kept[KEPT];                  /* owns: the loader's batches                                         */
    _Atomic int64_t begun;                     /* images that the loader's workers have read                         */
    int64_t       step;                        /* where the loader goes on in the next round                         */
    round_of     *round;                       /* owns (room)                                                       */
    double        crops, share;                /* crops so far, and the sum of their shares                          */
} bench;

/* ---- clocks --------------------------------------------------------------------------------------------------------------- */

static double seconds_of(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double cpu_s(void) { return seconds_of(CLOCK_THREAD_CPUTIME_ID); }

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* ---- one image ------------------------------------------------------------------------------------------------------------ */

typedef struct { bench *b; uint64_t epoch, sample; } looked;

static en_crop choose(const void *context, int64_t w, int64_t h, int channels)
{
    const looked *l = context;
    bench *b = l->b;
    const int size = b->r->size;
    const en_crop c = strcmp(b->o->augment, "none") == 0 ? en_crop_eval(w, h, size)
                                                         : en_crop_train(w, h, channels, size, (uint64_t)b->o->seed, l->epoch, l->sample);
    b->share += (double)(c.w * c.h) / (double)(w * h);
    b->crops++;
    return c;
}

/* The crop as an image of the run, with what a run that augments does to it, or without; CPU seconds += part_s. */
static void finish(bench *b, const en_image *img, const en_crop *crop, bool augment, uint64_t epoch, uint64_t sample, double *part_s)
{
    const size_t n = (size_t)b->r->size * (size_t)b->r->size * 3;
    const double begun = cpu_s();
    if (!augment && !b->r->bytes_out) {
        en_resize(img, crop, b->kernel, b->r->size, &en_imagenet_normalise, b->floats);
        part_s[PART_RESIZE] += cpu_s() - begun;
        return;
    }
    en_resize_bytes(img, crop, b->kernel, b->r->size, augment, b->pixels);
    const double resized = cpu_s();
    if (augment) en_augment_pixels(&b->augment, b->r->size, (uint64_t)b->o->seed, epoch, sample, b->pixels, b->spare);
    if (augment && !b->r->bytes_out) en_normalise_bytes(b->pixels, n, &en_imagenet_normalise, b->floats);
    part_s[PART_RESIZE] += resized - begun;
    part_s[PART_AUGMENT] += cpu_s() - resized;
}

static en_status decode_and_finish(bench *b, const file *f, int64_t i, int scale_to, bool augment, uint64_t epoch, double *part_s)
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

static en_status take_from_cache(bench *b, const file *f, int64_t i, bool augment, uint64_t epoch, double *part_s)
{
    const looked l = { b, epoch, (uint64_t)b->index[i] };
    const en_image *kept_image = &f->shrunk;
    memcpy(b->copy.rgb, kept_image->rgb, (size_t)(kept_image->w * kept_image->h) * 3);
    const en_image img = { .w = kept_image->w, .h = kept_image->h, .rgb = b->copy.rgb, .channels = kept_image->channels };
    const en_crop crop = choose(&l, img.w, img.h, img.channels);
    finish(b, &img, &crop, augment, epoch, l.sample, part_s);
    return EN_OK;
}

static en_status one_image(bench *b, data_way way, file *f, int64_t i, uint64_t epoch, double *part_s)
{
    const bool augments = b->r->measured[DATA_AUGMENT];
    const int scale_to = strcmp(b->o->decode, "scaled") == 0 ? b->r->size : 0;
    double aside[DATA_PARTS] = { 0 };
    en_image img;
    en_crop crop;
    switch (way) {
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
static en_status shrink(bench *b, file *f, int64_t i)
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

/* Images [first, first + n) down every way of one thread; all files are read before the next way begins. */
static en_status run_piece(bench *b, int64_t first, int64_t n, uint64_t epoch, round_of *r)
{
    for (int way = 0; way < DATA_LOADER; way++) {
        if (!b->r->measured[way]) continue;
        for (int64_t i = 0; way == DATA_CACHED && i < n; i++) EN_TRY(shrink(b, &b->piece[i], first + i), "filling a cache");
        const double cpu = cpu_s(), clock = en_seconds();
        for (int64_t i = 0; i < n; i++) EN_TRY(one_image(b, (data_way)way, &b->piece[i], first + i, epoch, r->part_s), "%s", b->view.files[first + i]);
        tally *t = &r->way[way];
        t->cpu_s += cpu_s() - cpu;
        t->clock_s += en_seconds() - clock;
        t->images += n;
    }
    return EN_OK;
}

/* ---- the loader ----------------------------------------------------------------------------------------------------------- */

static en_status view_read(const en_dataset *view, int64_t i, uint8_t **buf, size_t *capacity, size_t *n)
{
    bench *b = view->impl;
    b->begun++;
    return b->ds->ops->read(b->ds, b->index[i], buf, capacity, n);
}

static void view_expect(const en_dataset *view, int64_t i)
{
    const bench *b = view->impl;
    if (b->ds->ops->expect) b->ds->ops->expect(b->ds, b->index[i]);
}

static const struct en_dataset_ops view_ops = { .read = view_read, .expect = view_expect };

static void *take_kept(void *owner, size_t bytes)
{
    bench *b = owner;
    for (int k = 0; k < KEPT; k++) {
        kept *m = &b->kept[k];
        if (m->lent || (m->p && m->bytes != bytes)) continue;
        if (!m->p) {
            *m = (kept){ .p = aligned_alloc(64, (bytes + 63) / 64 * 64), .bytes = bytes };
            if (m->p) memset(m->p, 0, bytes);  /* a run has long had its memory: no page of it is new */
        }
        m->lent = m->p != NULL;
        return m->p;
    }
    return NULL;
}

static void give_kept(void *owner, void *p)
{
    bench *b = owner;
    for (int k = 0; k < KEPT; k++)
        if (b->kept[k].p == p) b->kept[k].lent = false;
}

static en_status run_loader(bench *b, tally *t)
{
    const int64_t batches = b->r->images / b->r->batch > AHEAD + 2 ? b->r->images / b->r->batch : AHEAD + 2;       /* more than can be ready */
    const en_loader_config c = { .dataset = &b->view, .shard = { .global_batch = b->r->batch, .accum = 1, .world_size = 1 }, .size = b->r->size,
                                 .workers = b->r->workers, .ahead = AHEAD, .seed = (uint64_t)b->o->seed, .training = true, .normalise = en_imagenet_normalise,
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
    *t = (tally){ seconds_of(CLOCK_PROCESS_CPUTIME_ID) - cpu, en_seconds() - clock, b->begun - begun };
    b->step += k + 1;
out:
    en_loader_close(l);
    return status;
}

/* ---- which images --------------------------------------------------------------------------------------------------------- */

static en_status look_at(bench *b, int64_t sample)
{
    data_result *r = b->r;
    file *f = &b->piece[0];
    en_image img;
    en_crop all;
    EN_TRY(b->ds->ops->read(b->ds, sample, &f->bytes, &f->capacity, &f->n), "reading it");
    EN_TRY(en_decode_crop(b->decoder, b->ds->files[sample], f->bytes, f->n, NULL, NULL, 0, &img, &all), "decoding it");
    b->view.files[r->images] = b->ds->files[sample];
    b->view.labels[r->images] = b->ds->labels[sample];
    b->index[r->images++] = sample;
    r->bytes += (double)f->n, r->width += (double)img.w, r->height += (double)img.h, r->pixels += (double)(img.w * img.h);
    return EN_OK;
}

/* As many as --micro-batch says, else as many as can be looked at in a while. */
static en_status pick_images(bench *b)
{
    data_result *r = b->r;
    const bool given = b->o->micro_batch > 0;
    const int64_t asked = given ? b->o->micro_batch : DEFAULT_IMAGES, wanted = asked < r->samples ? asked : r->samples;
    char reason[512] = "";
    b->index = calloc((size_t)wanted, sizeof *b->index);
    b->view = (en_dataset){ .ops = &view_ops, .classes = b->ds->classes, .class_names = b->ds->class_names, .impl = b,
                            .whole = true };       /* as after the first epoch, which decodes each file to its end */
    b->view.files = calloc((size_t)wanted, sizeof *b->view.files);
    b->view.labels = calloc((size_t)wanted, sizeof *b->view.labels);
    EN_REQUIRE(b->index && b->view.files && b->view.labels, EN_ENOMEM, "no memory for a list of %" PRId64 " images", wanted);
    snprintf(b->view.source, sizeof b->view.source, "%s", b->ds->source);
    const double begun = en_seconds();
    for (int64_t p = 0, epoch; p < r->samples && r->images < wanted && r->bad < MOST_BAD; p++) {
        if (!given && r->images >= LEAST_IMAGES && en_seconds() - begun > looked_s) break;
        const en_status s = look_at(b, en_sampler_at((uint64_t)b->o->seed, r->samples, p, &epoch));
        if (s != EN_EDATA && s != EN_EIO) { if (s != EN_OK) return s; continue; }
        if (r->bad++ == 0) snprintf(reason, sizeof reason, "%s", en_error_message());
        en_error_clear();
    }
    EN_REQUIRE(r->images > 0, EN_EDATA, "%s: of the %" PRId64 " files looked at none can be decoded; the first: %s", b->ds->source, r->bad, reason);
    if (r->bad > 0) fprintf(stderr, "bench data: %" PRId64 " file%s left out that cannot be decoded; the first: %s\n", r->bad, r->bad == 1 ? "" : "s", reason);
    const double n = (double)r->images;
    r->bytes /= n, r->width /= n, r->height /= n, r->pixels /= n;
    b->view.samples = r->images;
    const size_t image = (size_t)r->size * (size_t)r->size * 3 * (r->bytes_out ? 1 : sizeof(float));
    const int64_t fits = (int64_t)(batch_bytes / image), most = fits < DEFAULT_BATCH ? fits : DEFAULT_BATCH, few = (r->images + AHEAD + 1) / (AHEAD + 2);
    r->batch = (most < few ? most : few) & ~(int64_t)1;         /* mates are neighbours */
    if (r->batch < 2) r->batch = r->images > 1 ? 2 : 1;
    return EN_OK;
}

/* ---- the rate to feed ------------------------------------------------------------------------------------------------------ */

static double floor_images_per_s(const en_model *m)
{
    bench_layer l;
    double seconds = 0;
    for (int i = 0; bench_layer_at(m, i, EN_H200_IMAGES, EN_BF16, true, 0, &l); i++)
        for (int p = 0; p < l.passes; p++)
            seconds += l.count * fmax(l.pass[p].bytes / en_h200_bytes_per_s, l.pass[p].flops / en_h200_flops_per_s);
    return EN_H200_IMAGES / seconds;
}

double data_cores_needed(const data_result *r, double per_core) { return per_core > 0 ? r->rate / per_core : INFINITY; }

/* ---- all of it ------------------------------------------------------------------------------------------------------------- */

static int usable_cores(void)
{
    cpu_set_t set;
    const int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : (int)sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? n : 1;
}

static en_status prepare(bench *b, en_comm *comm)
{
    const en_options *o = b->o;
    data_result *r = b->r;
    enum { ALIGN = 8 };                                          /* of cuda's channels */
    EN_TRY(en_model_from_options(o, o->classes > 0 ? (int)o->classes : 1000, ALIGN, &b->model), "building --model %s", o->model);
    r->model = b->model->name;
    r->size = b->model->resolution;
    r->floor = o->rate <= 0;
    r->rate = r->floor ? floor_images_per_s(b->model) : o->rate;
    b->cache_side = (int64_t)r->size * 8 / 7;                    /* as --cache-side 0 */
    r->cores = usable_cores();
    r->workers = o->workers > 0 ? (int)o->workers : en_threads_of(o, comm);
    r->bytes_out = strcmp(o->device, "cuda") == 0;
    const en_resize_choice resize = en_resize_of(o, NULL);
    r->kernel = resize.name;
    b->kernel = resize.kernel;
    EN_TRY(en_augment_of(o, &b->augment), "the options of augmentation");
    for (int way = 0; way < DATA_WAYS; way++) r->measured[way] = true;
    r->measured[DATA_AUGMENT] = en_augments_pixels(&b->augment);
    r->measured[DATA_SCALED] = strcmp(o->decode, "exact") == 0;

    EN_TRY(en_dataset_open(o->data, r->split, NULL, &b->ds), "opening --data");
    r->samples = b->ds->samples;
    const size_t n = (size_t)r->size * (size_t)r->size * 3;
    b->floats = malloc((n + 1) * sizeof *b->floats);
    b->pixels = malloc(n);
    b->spare = malloc(n);
    EN_REQUIRE(b->floats && b->pixels && b->spare, EN_ENOMEM, "no memory for an image of %d x %d", r->size, r->size);
    EN_TRY(en_decoder_open(o->max_pixels, &b->decoder), "preparing to decode");
    return pick_images(b);
}

static en_status all_rounds(bench *b)
{
    const int64_t wanted = b->o->steps;
    const double begun = en_seconds();
    int64_t room = 0;
    for (int64_t k = 0; wanted > 0 ? k < wanted : k < MOST_ROUNDS && (k < LEAST_ROUNDS || en_seconds() - begun < long_enough_s); k++) {
        if (k == room) {
            room = room > 0 ? 2 * room : 16;
            round_of *grown = realloc(b->round, (size_t)room * sizeof *grown);
            EN_REQUIRE(grown, EN_ENOMEM, "no memory for %" PRId64 " rounds", room);
            b->round = grown;
        }
        round_of *r = &b->round[k];
        *r = (round_of){ 0 };
        for (int64_t i = 0; i < b->r->images; i += PIECE)
            EN_TRY(run_piece(b, i, b->r->images - i < PIECE ? b->r->images - i : PIECE, (uint64_t)k, r), "round %" PRId64, k);
        EN_TRY(run_loader(b, &r->way[DATA_LOADER]), "round %" PRId64, k);
        b->r->rounds = (int)(k + 1);
    }
    return EN_OK;
}

static data_range range_of(double *v, int n)                     /* sorts v */
{
    qsort(v, (size_t)n, sizeof *v, by_value);
    return (data_range){ .median = n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2, .least = v[0], .most = v[n - 1] };
}

static en_status sum_up(bench *b)
{
    data_result *r = b->r;
    double *v = calloc((size_t)r->rounds, sizeof *v);
    EN_REQUIRE(v, EN_ENOMEM, "no memory for %d rounds", r->rounds);
    for (int way = 0; way < DATA_WAYS; way++) {
        if (!r->measured[way]) continue;
        for (int k = 0; k < r->rounds; k++) v[k] = (double)b->round[k].way[way].images / b->round[k].way[way].cpu_s;
        r->core[way] = range_of(v, r->rounds);
        for (int k = 0; k < r->rounds; k++) v[k] = (double)b->round[k].way[way].images / b->round[k].way[way].clock_s;
        r->clock[way] = range_of(v, r->rounds);
    }
    r->part_s[PART_READ] = 1 / r->core[DATA_READ].median;
    double rest = 1 / r->core[DATA_LOADER].median - r->part_s[PART_READ];
    for (int part = PART_DECODE; part < PART_REST; part++) {
        for (int k = 0; k < r->rounds; k++) v[k] = b->round[k].part_s[part] / (double)r->images;
        r->part_s[part] = range_of(v, r->rounds).median;
        rest -= r->part_s[part];
    }
    r->part_s[PART_REST] = rest > 0 ? rest : 0;                  /* medians of different runs: a little rest may come out negative */
    r->looked_at = b->share / b->crops;
    free(v);
    return EN_OK;
}

static void close_bench(bench *b)
{
    en_model_free(b->model);
    en_dataset_close(b->ds);
    en_decoder_close(b->decoder);
    for (int i = 0; i < PIECE; i++) {
        free(b->piece[i].bytes);
        free(b->piece[i].shrunk.rgb);
    }
    for (int k = 0; k < KEPT; k++) free(b->kept[k].p);
    free(b->copy.rgb);
    free(b->view.files);
    free(b->view.labels);
    free(b->index);
    free(b->floats);
    free(b->pixels);
    free(b->spare);
    free(b->round);
}

en_status en_bench_data(const en_options *o, en_comm *comm)
{
    const char *split = *o->split ? o->split : "train";
    if (comm->rank > 0) en_report_hush();                        /* rank 0 says it */
    EN_REQUIRE(comm->world_size == 1, EN_EUSAGE, "a core is measured on one rank: start `effnet bench data` without a launcher");
    EN_REQUIRE(*o->data, EN_EUSAGE, "--data: which images? a folder, a packed FILE.h5, or synthetic");
    EN_REQUIRE(strcmp(split, "train") == 0 || strcmp(split, "val") == 0, EN_EUSAGE, "--split %s: train or val", split);
    data_result r = { .o = o, .split = split };
    bench b = { .o = o, .r = &r };
    en_status status = EN_OK;
    EN_TRY_OUT(prepare(&b, comm), "preparing");
    EN_TRY_OUT(all_rounds(&b), "measuring");
    EN_TRY_OUT(sum_up(&b), "summing up");
    if (o->json) data_print_json(&r);
    else data_print_text(&r);
out:
    close_bench(&b);
    return status;
}
