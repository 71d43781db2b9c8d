/* bench/data.c - `effnet bench data`: how fast a core turns files into training images, and how many cores a GPU needs.
 *
 * The same images go several ways (bench/data.h).  A round takes them in pieces of a few and sends each piece down every way in
 * turn, so that what the machine does besides falls on all ways alike; figures are medians over rounds.  Machines are shared: a
 * rate "of a core" counts the CPU time of the thread, and the one by the clock stands beside it.
 *
 * Images are the first of the sampler's permutation, so that a few stand for all; all are read and decoded once before, which
 * brings them into the page cache and sorts out what cannot be decoded.  Crops and operations are those of epoch = round.
 *
 * The rate to feed is given, or a bound: the floor of a training step (bench/layers.c) on an H200, which no step can beat. */
#define _GNU_SOURCE                            /* sched_getaffinity */
#include "trainer/bench/data_ways.h"
#include "trainer/bench/passes.h"
#include "trainer/commands.h"
#include "trainer/input.h"
#include "trainer/trainer.h"
#include "trainer/sorted.h"

#include <inttypes.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { DEFAULT_IMAGES = 256, LEAST_IMAGES = 16, DEFAULT_BATCH = 64, LEAST_ROUNDS = 5, MOST_ROUNDS = 1000, MOST_BAD = 1000 };
static const double long_enough_s = 10, looked_s = 2;           /* rounds by default; the look before them          */
static const size_t batch_bytes = (size_t)64 << 20;             /* larger images come in smaller batches            */

/* What an H200 reaches with large tensors: a copy, and a product of bf16 matrices (kernels/cuda/README.md). */
const double en_h200_bytes_per_s = 4.3e12, en_h200_flops_per_s = 790e12;

/* ---- which images --------------------------------------------------------------------------------------------------------- */

static en_status look_at(data_bench *b, int64_t sample)
{
    data_result *r = b->r;
    data_file *f = &b->piece[0];
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
static en_status pick_images(data_bench *b)
{
    data_result *r = b->r;
    const bool given = b->o->micro_batch > 0;
    const int64_t asked = given ? b->o->micro_batch : DEFAULT_IMAGES, wanted = asked < r->samples ? asked : r->samples;
    char reason[512] = "";
    b->index = calloc((size_t)wanted, sizeof *b->index);
    b->view = (en_dataset){ .ops = &data_view_ops, .classes = b->ds->classes, .class_names = b->ds->class_names, .impl = b,
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
    const int64_t fits = (int64_t)(batch_bytes / image), most = fits < DEFAULT_BATCH ? fits : DEFAULT_BATCH, few = (r->images + DATA_AHEAD + 1) / (DATA_AHEAD + 2);
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

static en_status prepare(data_bench *b, en_comm *comm)
{
    const en_options *o = b->o;
    data_result *r = b->r;
    enum { ALIGN = 8 };                                          /* of cuda's channels */
    EN_TRY(en_model_from_options(o, o->classes > 0 ? (int)o->classes : 1000, ALIGN, &b->model), "building --model %s", o->model);
    r->model = b->model->name;
    r->size = b->model->resolution;
    r->floor = o->rate <= 0;
    r->rate = !r->floor ? o->rate : bench_layers_known(b->model) == EN_OK ? floor_images_per_s(b->model) : 0;
    en_error_clear();
    b->cache_side = (int64_t)r->size * 8 / 7;                    /* as --cache-side 0 */
    r->cores = usable_cores();
    r->workers = o->workers > 0 ? (int)o->workers : en_threads_of(o, comm);
    r->bytes_out = strcmp(o->device, "cuda") == 0;
    const en_resize_choice resize = en_resize_of(o, NULL);
    r->kernel = resize.name;
    b->kernel = resize.kernel;
    EN_TRY(en_augment_of(o, &b->augment), "the options of augmentation");
    for (int way = 0; way < DATA_WAYS; way++) r->measured[way] = true;
    r->measured[DATA_COLD] = strncmp(o->data, "synthetic", 9) != 0;
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

static en_status all_rounds(data_bench *b)
{
    const int64_t wanted = b->o->steps;
    const double begun = en_seconds();
    int64_t room = 0;
    for (int64_t k = 0; wanted > 0 ? k < wanted : k < MOST_ROUNDS && (k < LEAST_ROUNDS || en_seconds() - begun < long_enough_s); k++) {
        if (k == room) {
            room = room > 0 ? 2 * room : 16;
            data_round *grown = realloc(b->round, (size_t)room * sizeof *grown);
            EN_REQUIRE(grown, EN_ENOMEM, "no memory for %" PRId64 " rounds", room);
            b->round = grown;
        }
        data_round *r = &b->round[k];
        *r = (data_round){ 0 };
        for (int64_t i = 0; i < b->r->images; i += DATA_PIECE)
            EN_TRY(data_run_piece(b, i, b->r->images - i < DATA_PIECE ? b->r->images - i : DATA_PIECE, (uint64_t)k, r), "round %" PRId64, k);
        EN_TRY(data_run_loader(b, &r->way[DATA_LOADER]), "round %" PRId64, k);
        b->r->rounds = (int)(k + 1);
    }
    return EN_OK;
}

static data_range range_of(double *v, int n)                     /* sorts v */
{
    en_sort(v, (size_t)n);
    return (data_range){ .median = en_quantile(v, (size_t)n, 0.5), .least = v[0], .most = v[n - 1] };
}

static en_status sum_up(data_bench *b)
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

static void close_bench(data_bench *b)
{
    en_model_free(b->model);
    en_dataset_close(b->ds);
    en_decoder_close(b->decoder);
    for (int i = 0; i < DATA_PIECE; i++) {
        free(b->piece[i].bytes);
        free(b->piece[i].shrunk.rgb);
    }
    for (int k = 0; k < DATA_KEPT; k++) free(b->kept[k].p);
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
    data_bench b = { .o = o, .r = &r };
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
