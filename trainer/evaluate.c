/* evaluate.c - every image once, on any number of ranks: the loader deals the dataset out, each rank sums over its share,
 * and the sums are added once at the end.  Running statistics only, so no rank waits for another in between. */
#include "comm/watch.h"
#include "trainer/input.h"
#include "trainer/trainer.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

typedef struct { int64_t n, capacity; float *logits; int64_t *samples; } kept;       /* this rank's logits, when asked for */

static en_status keep(kept *k, en_net *net, const en_batch *b, int64_t classes)
{
    if (k->n + b->n > k->capacity) {
        k->capacity = 2 * (k->n + b->n);
        float *l = realloc(k->logits, (size_t)(k->capacity * classes) * sizeof *l);
        if (l) k->logits = l;
        int64_t *s = realloc(k->samples, (size_t)k->capacity * sizeof *s);
        if (s) k->samples = s;
        EN_REQUIRE(l && s, EN_ENOMEM, "no memory for the logits of %lld images", (long long)k->capacity);
    }
    EN_TRY(en_net_logits(net, k->logits + k->n * classes), "logits");
    memcpy(k->samples + k->n, b->samples, (size_t)b->n * sizeof *b->samples);
    k->n += b->n;
    return EN_OK;
}

/* Rank 0, from `most` rows of every rank: sample index in two floats, then logits. */
static en_status sort_and_write(const en_eval_config *c, const float *all, size_t most, const double *counts)
{
    const int64_t classes = c->model->classes, samples = c->dataset->samples;
    const size_t row = (size_t)classes + 2;
    en_status status = EN_OK;
    float *sorted = malloc((size_t)(samples * classes) * sizeof *sorted);
    const float **place = calloc((size_t)samples + 1, sizeof *place);
    int32_t *labels = malloc((size_t)samples * sizeof *labels);
    char **files = malloc((size_t)samples * sizeof *files);
    EN_REQUIRE_OUT(sorted && place && labels && files, EN_ENOMEM, "no memory for logits");
    for (int r = 0; r < c->comm->world_size; r++)
        for (int64_t i = 0; i < (int64_t)counts[r]; i++) {
            const float *at = all + ((size_t)r * most + (size_t)i) * row;
            int64_t sample;
            memcpy(&sample, at, sizeof sample);
            place[sample] = at + 2;
        }
    int64_t n = 0;                                                         /* images that could not be decoded have no row */
    for (int64_t i = 0; i < samples; i++) {
        if (!place[i]) continue;
        memcpy(sorted + n * classes, place[i], (size_t)classes * sizeof *sorted);
        labels[n] = c->dataset->labels[i];
        files[n++] = c->dataset->files[i];
    }
    const int64_t dims[] = { n, classes };
    EN_TRY_OUT(en_dump_f32(c->logits, "/logits", 2, dims, sorted), "writing logits");
    EN_TRY_OUT(en_dump_i32(c->logits, "/labels", 1, dims, labels), "writing labels");
    EN_TRY_OUT(en_dump_strings(c->logits, "/files", n, files), "writing file names");
out:
    free(sorted); free(place); free(labels); free(files);
    return status;
}

static en_status enough(en_comm *c, bool memory)                           /* all ranks have it, or all leave */
{
    return en_agree(c, memory ? EN_OK : en_raise(EN_ENOMEM, __FILE__, __LINE__, __func__, "no memory for logits"));
}

/* Rank 0 writes everybody's logits in the dataset's order.  All ranks return the same. */
static en_status write_logits(const en_eval_config *c, const kept *mine)
{
    en_comm *comm = c->comm;
    const int64_t classes = c->model->classes;
    const size_t row = (size_t)classes + 2;
    double most = (double)mine->n, *counts = calloc((size_t)comm->world_size, sizeof *counts);
    float *block = NULL, *all = NULL;
    en_status status = EN_OK;
    EN_TRY_OUT(enough(comm, counts), "counting logits");
    counts[comm->rank] = most;
    EN_TRY_OUT(comm->ops->sum_f64(comm, counts, counts, (size_t)comm->world_size), "counting logits");
    for (int r = 0; r < comm->world_size; r++) most = counts[r] > most ? counts[r] : most;
    const size_t bytes = (size_t)most * row * sizeof(float);
    block = calloc(1, bytes + 1);
    if (comm->rank == 0) all = malloc(bytes * (size_t)comm->world_size + 1);
    EN_TRY_OUT(enough(comm, block && (all || comm->rank)), "gathering logits");
    for (int64_t i = 0; i < mine->n; i++) {
        memcpy(block + (size_t)i * row, &mine->samples[i], sizeof(int64_t));
        memcpy(block + (size_t)i * row + 2, mine->logits + i * classes, (size_t)classes * sizeof(float));
    }
    EN_TRY_OUT(comm->ops->gather(comm, block, bytes, all, 0), "gathering logits");
    EN_TRY_OUT(en_agree(comm, comm->rank == 0 ? sort_and_write(c, all, (size_t)most, counts) : EN_OK), "writing logits");
out:
    free(counts); free(block); free(all);
    return status;
}

/* A loader knows what its own rank met; the limit is for the dataset. */
static en_status check_bad(const en_eval_config *c, int64_t bad)
{
    const int64_t samples = c->dataset->samples;
    int64_t allowed = (int64_t)(c->max_bad * (double)samples);
    if (allowed < 1 && c->max_bad > 0) allowed = 1;
    EN_REQUIRE(bad <= allowed, EN_EDATA, "%" PRId64 " of %" PRId64 " files of %s cannot be used, and --max-bad %g allows %" PRId64 "; they are named above", bad,
               samples, c->dataset->source, c->max_bad, allowed);
    return EN_OK;
}

int64_t en_eval_batch(const en_dataset *dataset, const en_comm *comm, int64_t wanted)
{
    const int64_t share = (dataset->samples + comm->world_size - 1) / comm->world_size;
    return wanted < share ? wanted : share > 0 ? share : 1;
}

en_status en_evaluate(const en_eval_config *c, en_eval_result *out)
{
    en_comm *comm = c->comm;
    en_net *net = NULL;
    en_loader *loader = NULL;
    kept k = { 0 };
    en_status status = EN_OK;
    void *tally = NULL;
    double sums[EN_TALLY] = { 0 };
    const double t0 = en_seconds();
    const int64_t batch = en_eval_batch(c->dataset, comm, c->batch);
    const en_shard shard = { .global_batch = batch * comm->world_size, .accum = 1, .rank = comm->rank, .world_size = comm->world_size };
    const en_net_config net_config = { .be = c->be, .model = c->model, .max_images = batch };
    const en_loader_config loader_config = { .dataset = c->dataset, .shard = shard, .size = c->model->resolution, .workers = c->workers,
                                             .ahead = EN_BATCHES_AHEAD, .ahead_bytes = (size_t)c->prefetch << 20, .normalise = *en_normalise_by(c->model->normalise), .eval_crop = c->model->eval_crop,
                                             .kernel = c->kernel, .max_bad_fraction = c->max_bad,
                                             .max_pixels = c->max_pixels, .u8 = c->be->u8 };
    *out = (en_eval_result){ 0 };
    status = en_net_open(&net_config, &net);
    if (status == EN_OK) status = en_loader_open(&loader_config, &loader);
    if (status == EN_OK) {
        en_net_bind(net, c->params, NULL, c->stats);
        status = en_net_freeze(net);
    }
    if (status == EN_OK) status = c->be->ops->alloc(c->be, sizeof sums, &tally);
    en_watch_images(EN_EVALUATION, loader);
    const int64_t steps = (c->dataset->samples + shard.global_batch - 1) / shard.global_batch;        /* on all ranks, also where no loader opened */
    for (int64_t b = 0; b < steps && (status == EN_OK || c->stoppable); b++) {
        en_batch in;
        en_watch_at(EN_EVALUATION, NULL);      /* anew: an evaluation may take hours, a batch may not */
        if (c->stoppable) {                                             /* a rank that failed goes on asking until all know */
            const en_status mine = status;                              /* EN_TRY_OUT takes `status` for itself */
            double asked[2] = { en_stop_requested(), mine != EN_OK };
            EN_TRY_OUT(comm->ops->sum_f64(comm, asked, asked, 2), "evaluating %s", c->dataset->source);
            status = mine;
            out->stopped = asked[0] > 0 && asked[1] == 0;
            if (asked[0] > 0 || asked[1] > 0) break;
        }
        status = en_loader_next(loader, &in);
        if (status == EN_OK) status = en_net_input(net, in.n, c->be->u8 ? (const void *)in.bytes : in.images, &(en_targets){ .labels = in.labels });
        if (status == EN_OK) status = en_net_forward(net, 0);
        if (status == EN_OK) status = en_net_loss(net, 0, 0, tally);
        if (status == EN_OK && c->want_logits) status = keep(&k, net, &in, c->model->classes);
    }
    if (status == EN_OK) status = c->be->ops->download(c->be, sums, tally, sizeof sums);
    EN_TRY_OUT(en_agree(comm, status), "evaluating %s", c->dataset->source);
    if (out->stopped) goto out;
    double v[5] = { sums[EN_TALLY_LOSS], sums[EN_TALLY_TOP1], sums[EN_TALLY_TOP5], sums[EN_TALLY_IMAGES], (double)en_loader_bad(loader, NULL) };
    EN_TRY_OUT(comm->ops->sum_f64(comm, v, v, 5), "adding up the evaluation");
    EN_TRY_OUT(en_agree(comm, check_bad(c, (int64_t)v[4])), "evaluating %s", c->dataset->source);
    EN_REQUIRE_OUT(v[3] > 0, EN_EDATA, "%s: no image could be decoded", c->dataset->source);
    if (c->want_logits) EN_TRY_OUT(write_logits(c, &k), "writing logits");
    *out = (en_eval_result){ .loss = v[0] / v[3], .top1 = v[1] / v[3], .top5 = v[2] / v[3], .images = (int64_t)v[3], .bad = (int64_t)v[4],
                             .seconds = en_seconds() - t0 };
out:
    if (tally) c->be->ops->free(c->be, tally);
    en_watch_images(EN_EVALUATION, NULL);
    en_loader_close(loader);
    en_net_close(net);
    free(k.logits);
    free(k.samples);
    return status;
}
