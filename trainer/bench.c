/* bench.c - `effnet bench train`: the step on resident data, nothing decoded and nothing saved: what the engine can do. */
#include "trainer/commands.h"
#include "trainer/trainer.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEFAULT_IMAGES = 16, DEFAULT_STEPS = 10, WARM = 2 };

static int64_t peak_memory(void)                   /* bytes, as the kernel counted them */
{
    long long kib = 0;
    char line[256];
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %lld", &kib) == 1) break;
    if (f) fclose(f);
    return kib * 1024;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

typedef struct { double step, forward, backward, optimizer, bn_comm; } times;

/* The state of a run without its files: everything step.c needs but the loader. */
typedef struct {
    en_backend *be; en_model *model; en_net *net; en_buckets *buckets;
    float *arena[7];                               /* params, grads, ms, mom, ema, stats, ema_stats */
    float *images; int32_t *labels;
    en_segment segment[1];
} bench;

static en_status open_bench(const en_options *o, en_comm *comm, int64_t n, bench *b)
{
    const en_backend_config config = { .threads = en_threads_of(o, comm), .lanes = (int)o->lanes };
    EN_TRY(en_backend_open(o->device, &config, &b->be), "opening --device %s", o->device);
    EN_TRY(en_model_from_options(o, 0, b->be->channel_align, &b->model), "building --model %s", o->model);
    const en_model *m = b->model;
    for (int i = 0; i < 7; i++) {
        void *p;
        EN_TRY(b->be->ops->alloc(b->be, (size_t)(i < 5 ? m->param_elems : m->stat_elems) * sizeof(float), &p), "taking memory");
        b->arena[i] = p;
    }
    const en_net_config nc = { .be = b->be, .model = m, .bn_comm = comm, .max_images = n, .training = true };
    EN_TRY(en_net_open(&nc, &b->net), "taking memory");
    en_net_bind(b->net, b->arena[0], b->arena[1], b->arena[5]);
    EN_TRY(en_buckets_open(comm, b->arena[1], (size_t)m->param_elems, (size_t)25 << 20, &b->buckets), "gradient buckets");

    const size_t pixels = (size_t)n * (size_t)m->resolution * (size_t)m->resolution * 3;
    float *host = malloc((size_t)(m->param_elems + m->stat_elems) * sizeof *host);
    b->images = malloc(pixels * sizeof *b->images);
    b->labels = malloc((size_t)n * sizeof *b->labels);
    if (!b->images || !b->labels) {
        free(host);
        host = NULL;
    }
    EN_REQUIRE(host, EN_ENOMEM, "no memory for %" PRId64 " images", n);
    en_model_init(m, (uint64_t)o->seed, host, host + m->param_elems);
    en_status s = b->be->ops->upload(b->be, b->arena[0], host, (size_t)m->param_elems * sizeof *host);
    if (s == EN_OK) s = b->be->ops->upload(b->be, b->arena[5], host + m->param_elems, (size_t)m->stat_elems * sizeof *host);
    for (int64_t i = 0; i < m->param_elems; i++) host[i] = 1.f;
    if (s == EN_OK) s = b->be->ops->upload(b->be, b->arena[2], host, (size_t)m->param_elems * sizeof *host);
    free(host);
    EN_TRY(s, "initialising");
    en_rng r = en_rng_at((uint64_t)o->seed, EN_RNG_SYNTH, 0, (uint64_t)comm->rank, 0);
    for (size_t i = 0; i < pixels; i++) b->images[i] = 4.f * en_rng_uniform(&r) - 2.f;
    for (int64_t i = 0; i < n; i++) b->labels[i] = (int32_t)en_rng_below(&r, (uint32_t)m->classes);
    b->segment[0] = (en_segment){ 0, m->param_elems, true };
    return EN_OK;
}

static void close_bench(bench *b)
{
    en_buckets_close(b->buckets);
    en_net_close(b->net);
    for (int i = 0; i < 7; i++)
        if (b->arena[i]) b->be->ops->free(b->be, b->arena[i]);
    en_model_free(b->model);
    en_backend_close(b->be);
    free(b->images);
    free(b->labels);
}

static en_status one_step(bench *b, en_comm *comm, int64_t n, int64_t step, times *t)
{
    const en_noise noise = { 0, step, comm->rank * n };
    const en_rmsprop h = { .lr = 1e-3f, .rho = .9f, .momentum = .9f, .eps = 1e-3f, .weight_decay = 1e-5f, .ema_decay = .999f };
    en_loss_sums sums = { 0 };
    double squares;
    const double t0 = en_now();
    EN_TRY(b->be->ops->zero(b->be, b->arena[1], (size_t)b->model->param_elems * sizeof(float)), "zero");
    en_buckets_begin(b->buckets);
    EN_TRY(en_net_forward(b->net, n, b->images, &noise), "forward");
    EN_TRY(en_net_loss(b->net, b->labels, 0.1f, 1.f / (float)(n * comm->world_size), &sums), "loss");
    const double t1 = en_now();
    EN_TRY(en_net_backward(b->net, b->buckets), "backward");
    EN_TRY(en_buckets_wait(b->buckets), "all-reduce");
    const double t2 = en_now();
    EN_TRY(b->be->ops->rmsprop_update(b->be, &h, b->segment, 1, b->arena[0], b->arena[1], b->arena[2], b->arena[3], b->arena[4], &squares), "update");
    EN_TRY(b->be->ops->ema_update(b->be, b->model->stat_elems, b->arena[5], b->arena[6], .999f), "update");
    EN_TRY(b->be->ops->synchronize(b->be), "update");
    const double t3 = en_now();
    *t = (times){ t3 - t0, t1 - t0, t2 - t1, t3 - t2, en_net_bn_seconds(b->net) };
    return EN_OK;
}

static en_status run(const en_options *o, en_comm *comm)
{
    const int64_t n = o->micro_batch > 0 ? o->micro_batch : DEFAULT_IMAGES, steps = o->steps > 0 ? o->steps : DEFAULT_STEPS;
    bench b = { 0 };
    en_status status = EN_OK;
    times sum = { 0 };
    double *seconds = calloc((size_t)steps, sizeof *seconds);
    EN_TRY_OUT(en_check_same_options(comm, o), "comparing the options of the ranks");
    EN_TRY_OUT(en_agree(comm, seconds ? open_bench(o, comm, n, &b) : en_raise(EN_ENOMEM, __FILE__, __LINE__, __func__, "no memory for %" PRId64 " steps", steps)),
               "preparing");
    for (int64_t s = -WARM; s < steps; s++) {
        times t = { 0 };
        const en_status failed = one_step(&b, comm, n, s + WARM, &t);
        if (failed != EN_OK && comm->world_size > 1) {      /* the others cannot know: nobody waits for us */
            en_report_error(comm, failed);
            en_comm_abort(comm, en_status_exit_code(failed));
        }
        EN_TRY_OUT(failed, "step %" PRId64, s + WARM);
        if (s < 0) continue;
        seconds[s] = t.step;
        sum.forward += t.forward, sum.backward += t.backward, sum.optimizer += t.optimizer, sum.bn_comm += t.bn_comm, sum.step += t.step;
    }
    if (comm->rank != 0) goto out;
    qsort(seconds, (size_t)steps, sizeof *seconds, by_value);
    const double all = (double)(n * comm->world_size), median = seconds[steps / 2], k = (double)steps;
    if (o->json)
        printf("{\"model\":\"%s\",\"resolution\":%d,\"images_per_s\":%.3f,\"images_per_s_best\":%.3f,\"step_s\":%.6f,\"forward_s\":%.6f,\"backward_s\":%.6f,"
               "\"optimizer_s\":%.6f,\"bn_comm_s\":%.6f,\"peak_memory_bytes\":%" PRId64 ",\"images\":%" PRId64 ",\"ranks\":%d,\"threads\":%d,\"lanes\":%d,"
               "\"isa\":\"%s\",\"steps\":%" PRId64 "}\n", b.model->name, b.model->resolution, all / median, all / seconds[0], median, sum.forward / k,
               sum.backward / k, sum.optimizer / k, sum.bn_comm / k, peak_memory(), n, comm->world_size, b.be->threads, b.be->lanes, b.be->isa, steps);
    else {
        printf("%s at %d px, %" PRId64 " images a rank, %d rank%s, %d thread%s each (%s), fp32\n", b.model->name, b.model->resolution, n, comm->world_size,
               comm->world_size == 1 ? "" : "s", b.be->threads, b.be->threads == 1 ? "" : "s", b.be->isa);
        printf("%.1f images/s (median of %" PRId64 " steps; best %.1f), step %.1f ms: forward %.1f, backward %.1f (batch-norm sums %.1f of both), update %.1f\n",
               all / median, steps, all / seconds[0], 1e3 * median, 1e3 * sum.forward / k, 1e3 * sum.backward / k, 1e3 * sum.bn_comm / k,
               1e3 * sum.optimizer / k);
        printf("peak memory of rank 0: %.1f MiB\n", (double)peak_memory() / 0x1p20);
    }
out:
    free(seconds);
    close_bench(&b);
    return status;
}

en_status en_command_bench(const en_options *o)
{
    en_comm *comm = NULL;
    EN_REQUIRE(o->operands == 1 && strcmp(o->operand[0], "train") == 0, EN_EUSAGE, "which benchmark? effnet bench train");
    EN_TRY(en_comm_open(&comm), "starting the ranks");
    const en_status s = run(o, comm);
    if (s != EN_OK) en_report_error(comm, s);
    en_comm_close(comm);
    return s;
}
