/* bench/passes.c - `effnet bench passes`: every pass of a model alone: its time, what it moves, how far from the floor, and
 * whether it is right.
 *
 *     floor       what the pass must move (bench/layers.c) at the bandwidth, or its matrix products at their rate, whichever
 *                 takes longer.  Both are measured at the start as the best that the device does with large tensors, or given.
 *     time        between two marks on the device's queue, the median of several runs (--steps: of as many); before each run a sweep over memory
 *                 larger than the caches, so that a pass finds its tensors in memory, as the floor assumes.
 *     wrong       sampled elements that differ from what another way to compute gives: on cuda the same passes in fp32 without
 *                 folds, on cpu another instruction set and other partitions.  Each pass of the two gets the same inputs: what
 *                 the one under test wrote.  On fewer images than the timing, so that the tensors stay small. */
#include "trainer/bench/passes.h"
#include "trainer/commands.h"
#include "trainer/trainer.h"
#include "trainer/sorted.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { DEFAULT_IMAGES = 16, LEAST_RUNS = 5, MOST_RUNS = 20, MOST_ASKED = 1000, CHECKED_ELEMS = 4 << 20, SAMPLES = 1 << 16, MOST_ROWS = 1024 };
static const double LONG_ENOUGH = 0.2;       /* seconds after which the least number of runs is enough */

typedef struct { const char *pass; bool backward; char shape[48]; int count; double us, bytes, flops, floor_us; int64_t checked, wrong; } row;

typedef struct {
    const en_options *o;
    en_backend *be, *reference;
    en_model   *model;
    int64_t     n;
    void       *sweep; size_t sweep_bytes;
    double      bandwidth, rate;             /* bytes and floating-point operations a second */
    bool        measured;
    row        *rows; int n_rows;
} bench;

/* ---- time ----------------------------------------------------------------------------------------------------------------- */

/* Twice the processor's last cache; a device's is about a two-thousandth of its memory, so four times that. */
static size_t sweep_bytes(en_backend *be)
{
    const int64_t memory = be->ops->memory_available(be), cache = sysconf(_SC_LEVEL3_CACHE_SIZE), least = (int64_t)32 << 20;
    if (memory <= 0) return (size_t)(2 * cache > least ? 2 * cache : least);
    return (size_t)(memory / 512);
}

static en_status time_pass(bench *b, bench_side *s, const bench_pass *p, double *seconds)
{
    const struct en_backend_ops *ops = s->be->ops;
    const int asked = (int)b->o->steps, least = asked > 0 ? asked : LEAST_RUNS, most = asked > 0 ? asked : MOST_RUNS;
    double t[MOST_ASKED];
    int runs = 0;
    EN_TRY(p->run(s), "warming up");                            /* and choosing algorithms */
    const double begun = en_seconds();
    while (runs < most && (runs < least || en_seconds() - begun < LONG_ENOUGH)) {
        EN_TRY(ops->zero(s->be, b->sweep, b->sweep_bytes), "emptying caches");
        EN_TRY(ops->mark(s->be, 0), "timing");
        EN_TRY(p->run(s), "timing");
        EN_TRY(ops->mark(s->be, 1), "timing");
        EN_TRY(ops->synchronize(s->be), "timing");
        t[runs++] = ops->elapsed(s->be, 0, 1);
    }
    en_sort(t, (size_t)runs);
    *seconds = en_quantile(t, (size_t)runs, 0.5);
    return EN_OK;
}

/* ---- the floor: what the device does at its best -------------------------------------------------------------------------- */

/* A side without a layer, for the passes below. */
typedef struct { bench_side side; int64_t rows, c; void *x, *y, *w; en_bn bn; } yardstick;

static en_status stream_once(bench_side *s)
{
    const yardstick *k = (const yardstick *)s;
    const en_operand y = { k->x, &k->bn, EN_ACT_NONE };
    return s->be->ops->residual_forward(s->be, 1, k->rows, k->c, &y, NULL, NULL, k->y);
}

static en_status scale_once(bench_side *s)
{
    const yardstick *k = (const yardstick *)s;
    return s->be->ops->scale(s->be, k->rows * k->c * (int64_t)en_dtype_bytes(s->be->dtype) / 4, 1.f, k->x);
}

static en_status multiply_once(bench_side *s)
{
    const yardstick *k = (const yardstick *)s;
    return s->be->ops->pointwise_forward(s->be, k->rows, k->c, k->c, k->x, k->w, k->y, NULL);
}

static void yardstick_close(yardstick *k)
{
    en_backend *be = k->side.be;
    if (k->w) (void)be->ops->keep_weights(be, k->w, 0);
    if (k->w) be->ops->free(be, k->w);
    if (k->x) be->ops->free(be, k->x);
    if (k->y) be->ops->free(be, k->y);
}

/* x and y (rows, c), w (c, c); numbers, not zeros, for which a GPU would need less power and be faster than it is. */
static en_status yardstick_open(yardstick *k, en_backend *be, int64_t rows, int64_t c)
{
    const size_t e = en_dtype_bytes(be->dtype);
    en_status status = EN_OK;
    *k = (yardstick){ .side = { .be = be }, .rows = rows, .c = c };
    EN_TRY_OUT(be->ops->reserve(be, &(en_conv_geom){ .n = 1, .h = rows, .w = 1, .c = c, .oh = rows, .ow = 1, .oc = c, .stride = 1 }), "scratch memory");
    EN_TRY_OUT(be->ops->alloc(be, (size_t)(rows * c) * e, &k->x), "%lld x %lld", (long long)rows, (long long)c);
    EN_TRY_OUT(be->ops->alloc(be, (size_t)(rows * c) * e, &k->y), "%lld x %lld", (long long)rows, (long long)c);
    EN_TRY_OUT(be->ops->alloc(be, (size_t)(c * c) * sizeof(float), &k->w), "%lld x %lld", (long long)c, (long long)c);
    EN_TRY_OUT(bench_draw(be, k->x, BENCH_ACTIVATION, rows * c, 1, 0, 0, 1), "drawing numbers");
    EN_TRY_OUT(bench_draw(be, k->w, BENCH_FLOAT, c * c, 1, 0, 0, 2), "drawing numbers");
    EN_TRY_OUT(be->ops->keep_weights(be, k->w, c * c), "weights");
    k->bn = (en_bn){ .c = c, .scale = k->w, .shift = k->w };
    return EN_OK;
out:
    yardstick_close(k);
    return status;
}

static en_status measure_bandwidth(bench *b)
{
    const bool device = b->be->captures;
    const bench_pass stream = { .run = stream_once }, scale = { .run = scale_once };
    const int64_t rows = device ? 1 << 20 : 1 << 16, c = 256;                           /* 512 MiB of bf16, 64 MiB of floats */
    yardstick k;
    double streamed = INFINITY, scaled = INFINITY;
    EN_TRY(yardstick_open(&k, b->be, rows, c), "memory for a yardstick");
    en_status s = time_pass(b, &k.side, &stream, &streamed);
    if (s == EN_OK) s = time_pass(b, &k.side, &scale, &scaled);
    b->bandwidth = 2 * (double)(rows * c) * (double)en_dtype_bytes(b->be->dtype) / fmin(streamed, scaled);
    yardstick_close(&k);
    return s;
}

static en_status measure_rate(bench *b)
{
    const bool device = b->be->captures;
    const bench_pass multiply = { .run = multiply_once };
    const int64_t rows = device ? 8192 : 2048, c = device ? 4096 : 512;
    yardstick k;
    double seconds = INFINITY;
    EN_TRY(yardstick_open(&k, b->be, rows, c), "memory for a yardstick");
    const en_status s = time_pass(b, &k.side, &multiply, &seconds);
    b->rate = 2 * (double)rows * (double)c * (double)c / seconds;
    yardstick_close(&k);
    return s;
}

static en_status find_floor(bench *b, double bandwidth, double rate)
{
    b->bandwidth = 1e9 * bandwidth;
    b->rate = 1e12 * rate;
    b->measured = bandwidth <= 0 || rate <= 0;
    if (bandwidth <= 0) EN_TRY(measure_bandwidth(b), "measuring bandwidth");
    if (rate <= 0) EN_TRY(measure_rate(b), "measuring matrix products");
    return EN_OK;
}

/* ---- right or wrong ------------------------------------------------------------------------------------------------------- */

static en_status read_tensor(const bench_side *s, int t, double *out)
{
    const int64_t n = s->l->elems[t];
    const bench_number type = s->l->type[t];
    const size_t one = type == BENCH_DOUBLE ? 8 : type == BENCH_FLOAT ? 4 : en_dtype_bytes(s->be->dtype);
    char *raw = malloc((size_t)n * one + 1);
    EN_REQUIRE(raw, EN_ENOMEM, "no memory to compare tensors");
    const en_status status = s->be->ops->download(s->be, raw, s->p[t], (size_t)n * one);
    for (int64_t i = 0; status == EN_OK && i < n; i++) {
        uint16_t half;
        uint32_t w;
        float f;
        if (one == 8) { memcpy(&out[i], raw + 8 * i, 8); continue; }
        if (one == 4) memcpy(&f, raw + 4 * i, 4);
        else memcpy(&half, raw + 2 * i, 2), w = (uint32_t)half << 16, memcpy(&f, &w, 4);
        out[i] = (double)f;
    }
    free(raw);
    return status;
}

/* What the other side wrote; a side that stores floats keeps every bit of it. */
static en_status write_tensor(bench_side *s, int t, const double *in)
{
    const int64_t n = s->l->elems[t];
    if (s->l->type[t] == BENCH_DOUBLE) return s->be->ops->upload(s->be, s->p[t], in, (size_t)n * sizeof *in);
    float *f = malloc((size_t)n * sizeof *f + 1);
    EN_REQUIRE(f, EN_ENOMEM, "no memory to compare tensors");
    for (int64_t i = 0; i < n; i++) f[i] = (float)in[i];
    const en_status status = s->be->ops->upload(s->be, s->p[t], f, (size_t)n * sizeof *f);
    free(f);
    return status;
}

static double slope(en_act act, double z)
{
    const double s = 1 / (1 + exp(-z));
    switch (act) {
    case EN_ACT_NONE:  return 1;
    case EN_ACT_SILU:  return s * (1 + z * (1 - s));
    case EN_ACT_RELU:  return z > 0;
    case EN_ACT_RELU6: return z > 0 && z < 6;
    }
    return 0;
}

/* dz2 as a backend that is `gated` leaves it, ds, becomes dz (kernels.h, en_grad). */
static en_status ungate(const bench_side *s, double *dz)
{
    const bench_layer *l = s->l;
    const int64_t c = l->channels[2], rows = l->elems[Y2] / c, hw = l->n > 0 ? rows / l->n : 1;
    const bool se = l->elems[GATE] > 0;
    double *y = malloc((size_t)l->elems[Y2] * sizeof *y + 1), *gate = calloc((size_t)(l->n * c) + 1, sizeof *gate);
    float *side = malloc((size_t)(13 * c + l->n * c) * sizeof *side);
    en_status status = EN_OK;
    EN_REQUIRE_OUT(y && gate && side, EN_ENOMEM, "no memory to compare tensors");
    EN_TRY_OUT(read_tensor(s, Y2, y), "y2");
    if (se) EN_TRY_OUT(read_tensor(s, GATE, gate), "gate");
    EN_TRY_OUT(s->be->ops->download(s->be, side, s->p[BN2], (size_t)(13 * c) * sizeof *side), "batch norm");
    float *dgate = side + 13 * c;
    memset(dgate, 0, (size_t)(l->n * c) * sizeof *dgate);
    if (se) EN_TRY_OUT(s->be->ops->download(s->be, dgate, s->p[DGATE], (size_t)(l->n * c) * sizeof *dgate), "dgate");
    for (int64_t i = 0; i < rows * c; i++) {
        const int64_t k = i % c, at = i / c / hw * c + k;
        const double z = (double)side[8 * c + k] * y[i] + (double)side[9 * c + k];
        dz[i] = (dz[i] * (se ? gate[at] : 1) + (double)dgate[at]) * slope(l->m->act, z);
    }
out:
    free(y);
    free(gate);
    free(side);
    return status;
}

/* One part of a tensor: off by more than some roundings of the storage type, of the element or of what is usual around it. */
static void count_wrong(const double *got, const double *want, int64_t n, double tolerance, row *r)
{
    double square = 0;
    for (int64_t i = 0; i < n; i++) square += want[i] * want[i];
    const double usual = n > 0 ? sqrt(square / (double)n) : 0;
    for (int64_t i = 0, step = n / SAMPLES | 1; i < n; i += step) {
        r->checked++;
        r->wrong += !(fabs(got[i] - want[i]) <= tolerance * (fabs(want[i]) + usual));
    }
}

static en_status compare(bench_side *s, bench_side *other, int t, row *r)
{
    const int64_t n = s->l->elems[t];
    const double tolerance = s->be->dtype == EN_BF16 ? 0x1p-5 : 1e-4;
    const bool sums = t == SUMS1 || t == SUMS2 || t == SUMS3, form = t == DZ2 && s->be->gated != other->be->gated;
    double *got = malloc((size_t)n * sizeof *got + 1), *want = malloc((size_t)n * sizeof *want + 1);
    en_status status = EN_OK;
    EN_REQUIRE_OUT(got && want, EN_ENOMEM, "no memory to compare tensors");
    EN_TRY_OUT(read_tensor(s, t, got), "reading");
    EN_TRY_OUT(read_tensor(other, t, want), "reading");
    if (form && s->be->gated) EN_TRY_OUT(ungate(s, got), "reading");
    if (form && other->be->gated) EN_TRY_OUT(ungate(other, want), "reading");
    if (sums) {                                                 /* what cancels in them was rounded before */
        count_wrong(got, want, n / 2, 2 * tolerance, r);
        count_wrong(got + n / 2, want + n / 2, n / 2, 2 * tolerance, r);
    } else if (t == TALLY)
        for (int64_t i = 0; i < n; i++) count_wrong(got + i, want + i, 1, tolerance, r);
    else count_wrong(got, want, n, tolerance, r);
    if (!(form && other->be->gated)) EN_TRY_OUT(write_tensor(other, t, got), "handing on");
out:
    free(got);
    free(want);
    return status;
}

static en_status check_layer(bench *b, int index, row *rows)
{
    bench_layer l;
    bench_side s = { 0 }, other = { 0 };
    en_status status = EN_OK;
    const int64_t images = bench_layer_images(b->model, index, CHECKED_ELEMS), n = images < b->n ? images : b->n;
    bench_layer_at(b->model, index, n, b->be->dtype, b->be->u8, CHECKED_ELEMS, &l);
    EN_TRY_OUT(bench_side_open(&s, b->be, &l, (uint64_t)b->o->seed), "preparing");
    EN_TRY_OUT(bench_side_open(&other, b->reference, &l, (uint64_t)b->o->seed), "preparing");
    for (int p = 0; p < l.passes; p++) {
        const bench_pass *pass = &l.pass[p];
        EN_TRY_OUT(pass->run(&s), "%s", pass->name);
        EN_TRY_OUT(pass->run(&other), "%s, the other way", pass->name);
        for (int i = 0; i < BENCH_OUTPUTS && pass->outputs[i] != X; i++) EN_TRY_OUT(compare(&s, &other, pass->outputs[i], &rows[p]), "%s", pass->name);
        EN_TRY_OUT(bench_settle(&s, pass), "%s", pass->name);
        EN_TRY_OUT(bench_settle(&other, pass), "%s", pass->name);
    }
out:
    bench_side_close(&s);
    bench_side_close(&other);
    return status;
}

/* ---- layer by layer ------------------------------------------------------------------------------------------------------- */

static en_status time_layer(bench *b, const bench_layer *l, row *rows)
{
    bench_side s = { 0 };
    en_status status = EN_OK;
    EN_TRY_OUT(bench_side_open(&s, b->be, l, (uint64_t)b->o->seed), "preparing");
    for (int p = 0; p < l->passes; p++) {
        const bench_pass *pass = &l->pass[p];
        double seconds = 0;
        EN_TRY_OUT(time_pass(b, &s, pass, &seconds), "%s", pass->name);
        EN_TRY_OUT(bench_settle(&s, pass), "%s", pass->name);
        rows[p] = (row){ .pass = pass->name, .backward = pass->backward, .count = l->count, .us = 1e6 * seconds, .bytes = pass->bytes, .flops = pass->flops,
                         .floor_us = 1e6 * fmax(pass->bytes / b->bandwidth, pass->flops / b->rate) };
        snprintf(rows[p].shape, sizeof rows[p].shape, "%s", l->shape);
    }
out:
    bench_side_close(&s);
    return status;
}

static en_status all_layers(bench *b)
{
    bench_layer l;
    for (int i = 0; bench_layer_at(b->model, i, b->n, b->be->dtype, b->be->u8, 0, &l); i++) {
        EN_REQUIRE(b->n_rows + BENCH_PASSES <= MOST_ROWS, EN_ENOTSUP, "%s has more than %d passes", b->model->name, MOST_ROWS);
        EN_TRY(time_layer(b, &l, b->rows + b->n_rows), "%s", l.shape);
        EN_TRY(check_layer(b, i, b->rows + b->n_rows), "%s", l.shape);
        b->n_rows += l.passes;
    }
    return EN_OK;
}

static row total_of(const bench *b)
{
    row t = { 0 };
    for (int i = 0; i < b->n_rows; i++) {
        const row *r = &b->rows[i];
        t.us += r->count * r->us, t.floor_us += r->count * r->floor_us, t.bytes += r->count * r->bytes, t.flops += r->count * r->flops;
        t.count += r->count, t.checked += r->checked, t.wrong += r->wrong;
    }
    return t;
}

static double gb_per_s(const row *r) { return r->bytes / r->us * 1e-3; }
static double tflops(const row *r)   { return r->flops / r->us * 1e-6; }

static void print_text(const bench *b)
{
    const row all = total_of(b);
    printf("%s at %d px, %" PRId64 " images, %s (%s), %s; floors from %.0f GB/s and %.3g TFLOP/s%s\n", b->model->name, b->model->resolution, b->n,
           b->be->name, b->be->isa, b->be->dtype == EN_BF16 ? "bf16" : "fp32", b->bandwidth * 1e-9, b->rate * 1e-12, b->measured ? ", measured" : "");
    printf("%-19s %-30s %5s %11s %9s %9s %11s %9s %8s\n", "pass", "of", "times", "us", "GB/s", "TFLOP/s", "floor us", "of floor", "#wrong");
    for (int i = 0; i < b->n_rows; i++) {
        const row *r = &b->rows[i];
        printf("%-10s %-8s %-30s %5d %11.1f %9.1f %9.3f %11.1f %8.1f%% %8" PRId64 "\n", r->pass, r->backward ? "backward" : "", r->shape, r->count, r->us,
               gb_per_s(r), tflops(r), r->floor_us, 100 * r->floor_us / r->us, r->wrong);
    }
    printf("%-19s %-30s %5d %11.1f %9.1f %9.3f %11.1f %8.1f%% %8" PRId64 "\n", "all", "passes x times", all.count, all.us, gb_per_s(&all), tflops(&all),
           all.floor_us, 100 * all.floor_us / all.us, all.wrong);
    printf("us: median, caches emptied before each run.  #wrong: of %" PRId64 " sampled elements.\n", all.checked);
}

static void print_json(const bench *b)
{
    const row all = total_of(b);
    printf("{\"model\":\"%s\",\"resolution\":%d,\"images\":%" PRId64 ",\"device\":\"%s\",\"isa\":\"%s\",\"precision\":\"%s\",\"gb_per_s\":%.1f,"
           "\"tflops\":%.3f,\"measured\":%s,\"us\":%.2f,\"floor_us\":%.2f,\"checked\":%" PRId64 ",\"wrong\":%" PRId64 ",\"passes\":[", b->model->name,
           b->model->resolution, b->n, b->be->name, b->be->isa, b->be->dtype == EN_BF16 ? "bf16" : "fp32", b->bandwidth * 1e-9, b->rate * 1e-12,
           b->measured ? "true" : "false", all.us, all.floor_us, all.checked, all.wrong);
    for (int i = 0; i < b->n_rows; i++) {
        const row *r = &b->rows[i];
        printf("%s{\"pass\":\"%s\",\"direction\":\"%s\",\"shape\":\"%s\",\"count\":%d,\"us\":%.2f,\"bytes\":%.0f,\"flops\":%.0f,\"gb_per_s\":%.2f,"
               "\"tflops\":%.4f,\"floor_us\":%.3f,\"of_floor\":%.4f,\"checked\":%" PRId64 ",\"wrong\":%" PRId64 "}", i ? "," : "", r->pass,
               r->backward ? "backward" : "forward", r->shape, r->count, r->us, r->bytes, r->flops, gb_per_s(r), tflops(r), r->floor_us,
               r->floor_us / r->us, r->checked, r->wrong);
    }
    printf("]}\n");
}

/* Another way to compute the same: what may be wrong with the one should not be wrong with the other. */
static en_status open_reference(bench *b, const en_backend_config *config)
{
    en_backend_config c = *config;
    if (b->be->captures) c.precision = EN_PRECISION_F32, c.folds = "none";
    else c.isa = "generic", c.lanes = b->be->lanes + 1;
    EN_TRY(en_backend_open(b->be->name, &c, &b->reference), "opening %s again, to compare with", b->be->name);
    return EN_OK;
}

en_status en_bench_passes(const en_options *o, en_comm *comm, double bandwidth, double rate)
{
    bench b = { .o = o, .n = o->micro_batch > 0 ? o->micro_batch : DEFAULT_IMAGES };
    const en_backend_config config = en_config_of(o, comm);
    en_status status = EN_OK;
    EN_REQUIRE(comm->world_size == 1, EN_EUSAGE, "passes are measured on one rank: start `effnet bench passes` without a launcher");
    EN_REQUIRE(o->steps <= MOST_ASKED, EN_EUSAGE, "--steps %" PRId64 ": a pass is run %d times at most", o->steps, MOST_ASKED);
    EN_TRY(en_backend_open(o->device, &config, &b.be), "opening --device %s", o->device);
    b.rows = calloc(MOST_ROWS, sizeof *b.rows);
    EN_REQUIRE_OUT(b.rows, EN_ENOMEM, "no memory for a table");
    EN_TRY_OUT(open_reference(&b, &config), "the reference");
    EN_TRY_OUT(en_model_from_options(o, o->classes > 0 ? (int)o->classes : 1000, b.be->channel_align, &b.model), "building --model %s", o->model);
    EN_TRY_OUT(bench_layers_known(b.model), "--model %s", o->model);
    b.sweep_bytes = sweep_bytes(b.be);
    EN_TRY_OUT(b.be->ops->alloc(b.be, b.sweep_bytes, &b.sweep), "memory to empty caches with");
    EN_TRY_OUT(find_floor(&b, bandwidth, rate), "what the device can do");
    EN_TRY_OUT(all_layers(&b), "%s, %" PRId64 " images", b.model->name, b.n);
    if (o->json) print_json(&b);
    else print_text(&b);
    const row all = total_of(&b);
    EN_REQUIRE_OUT(all.wrong == 0, EN_EINVAL, "%" PRId64 " of %" PRId64 " sampled elements are wrong: please report it with the table above", all.wrong,
                   all.checked);
out:
    if (b.sweep) b.be->ops->free(b.be, b.sweep);
    en_backend_close(b.reference);
    en_backend_close(b.be);
    en_model_free(b.model);
    free(b.rows);
    return status;
}
