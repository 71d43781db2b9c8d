/* bench/bench.c - `effnet bench train`: the training step itself (step.c) on resident data, nothing decoded and nothing saved: what
 * the engine can do.  `effnet bench passes` is in bench/passes.c, `effnet bench data` in bench/data.c, `effnet bench comm` in bench/comm.c. */
#include "trainer/bench/comm.h"
#include "trainer/bench/data.h"
#include "trainer/bench/passes.h"
#include "trainer/commands.h"
#include "trainer/run.h"
#include "trainer/sorted.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEFAULT_IMAGES = 16, DEFAULT_STEPS = 10, WARM = 4, DEFAULT_CLASSES = 1000 };   /* warm: each slot done once and recorded once */

static int64_t peak_memory(void)                   /* bytes of the host, as the kernel counted them */
{
    long long kib = 0;
    char line[256];
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %lld", &kib) == 1) break;
    if (f) fclose(f);
    return kib * 1024;
}

/* A run over made-up pictures that saves nothing, of as many steps as are needed. */
static en_options options_of(const en_options *o, const en_comm *comm, int64_t n, int64_t steps, char data[64])
{
    en_options b = *o;
    snprintf(data, 64, "synthetic:%" PRId64, n * comm->world_size);
    b.data = data;
    b.run = b.val = b.dump = "";
    b.classes = o->classes > 0 ? o->classes : DEFAULT_CLASSES;
    b.global_batch = n * comm->world_size;
    b.micro_batch = n;
    b.steps = WARM + steps;
    b.warmup_epochs = 0;
    b.workers = 1;
    return b;
}

/* The step without its input: the slots keep the images of the warm-up. */
static en_status resident_step(en_trainer *t, int64_t i, en_step_report *r)
{
    const double t0 = en_seconds();
    *r = (en_step_report){ 0 };
    t->piece.slot = (int)(i % t->be->slots);
    EN_TRY(en_replay(t, en_step_work), "on the device");
    EN_TRY(en_step_settle(t, r), "on the device");
    r->step_s = en_seconds() - t0;
    return EN_OK;
}

/* Where sums are queued they are timed apart, so that the steps above are as steps usually are. */
static en_status time_sums(en_trainer *t, en_step_report *mean)
{
    en_step_report r = { 0 };
    if (!t->bn_comm->captures || t->bn_comm->world_size == 1) return EN_OK;
    t->piece.timed = true;
    for (int64_t i = 0; i < 3 * t->be->slots; i++) EN_TRY(resident_step(t, i, &r), "step %" PRId64, i);     /* done, recorded, replayed */
    t->piece.timed = false;
    mean->bn_forward_s = r.bn_forward_s, mean->bn_backward_s = r.bn_backward_s;
    return EN_OK;
}

static void print_json(const en_run *run, const en_step_report *mean, const double *seconds, int64_t steps, int64_t device_bytes)
{
    const en_trainer *t = &run->t;
    const double all = (double)t->shard.global_batch, median = en_quantile(seconds, (size_t)steps, 0.5);
    printf("{\"model\":\"%s\",\"resolution\":%d,\"device\":\"%s\",\"precision\":\"%s\",\"recorded\":%s,\"images_per_s\":%.3f,\"images_per_s_best\":%.3f,"
           "\"step_s\":%.6f,\"forward_s\":%.6f,\"backward_s\":%.6f,\"grad_comm_exposed_s\":%.6f,\"optimizer_s\":%.6f,\"bn_comm_s\":%.6f,"
           "\"peak_memory_bytes\":%" PRId64 ",\"device_memory_bytes\":%" PRId64 ",\"images\":%" PRId64 ",\"ranks\":%d,\"threads\":%d,\"lanes\":%d,"
           "\"isa\":\"%s\",\"steps\":%" PRId64 "}\n", t->model->name, t->model->resolution, t->be->name, t->be->dtype == EN_BF16 ? "bf16" : "fp32",
           t->recording ? "true" : "false", all / median, all / seconds[0], median, mean->forward_s, mean->backward_s, mean->grad_comm_s,
           mean->optimizer_s, mean->bn_forward_s + mean->bn_backward_s, peak_memory(), device_bytes, run->micro_batch, t->comm->world_size, t->be->threads, t->be->lanes,
           t->be->isa, steps);
}

static void print_text(const en_run *run, const en_step_report *mean, const double *seconds, int64_t steps, int64_t device_bytes)
{
    const en_trainer *t = &run->t;
    const double all = (double)t->shard.global_batch, median = en_quantile(seconds, (size_t)steps, 0.5);
    printf("%s at %d px, %" PRId64 " images a rank, %d rank%s, %s (%s), %s", t->model->name, t->model->resolution, run->micro_batch,
           t->comm->world_size, t->comm->world_size == 1 ? "" : "s", t->be->name, t->be->isa, t->be->dtype == EN_BF16 ? "bf16" : "fp32");
    if (run->device_memory > 0) printf("%s\n", t->recording ? ", steps recorded and replayed" : "");
    else printf(", %d thread%s each\n", t->be->threads, t->be->threads == 1 ? "" : "s");
    printf("%.1f images/s (median of %" PRId64 " steps; best %.1f), step %.1f ms: forward %.1f, backward %.1f (batch-norm sums %.1f of both), "
           "gradients still to sum %.1f, update %.1f\n", all / median, steps, all / seconds[0], 1e3 * median, 1e3 * mean->forward_s,
           1e3 * mean->backward_s, 1e3 * (mean->bn_forward_s + mean->bn_backward_s), 1e3 * mean->grad_comm_s, 1e3 * mean->optimizer_s);
    printf("peak memory of rank 0: %.1f MiB", (double)peak_memory() / 0x1p20);
    if (device_bytes > 0) printf(" on the host, %.1f MiB on the device (planned %.1f)", (double)device_bytes / 0x1p20, (double)run->memory_bytes / 0x1p20);
    printf("\n");
}

static en_status bench(const en_options *o, en_comm *comm)
{
    const int64_t n = o->micro_batch > 0 ? o->micro_batch : DEFAULT_IMAGES, steps = o->steps > 0 ? o->steps : DEFAULT_STEPS;
    char data[64];
    const en_options b = options_of(o, comm, n, steps, data);
    en_run run;
    en_step_report r, mean = { 0 };
    en_status status = EN_OK;
    double *seconds = calloc((size_t)steps, sizeof *seconds);
    if (!seconds) en_comm_abort(comm, en_status_exit_code(EN_ENOMEM));
    status = en_run_open(&b, comm, &run);
    if (status != EN_OK) {
        free(seconds);
        return en_raise(status, __FILE__, __LINE__, __func__, "preparing");
    }
    for (int64_t s = 0; s < WARM; s++) EN_TRY_OUT(en_train_step(&run.t, &r), "warming up");
    run.t.piece.timed = false;                                       /* whatever the warm-up fetched ahead */
    for (int64_t s = 0; s < steps; s++) {
        EN_TRY_OUT(resident_step(&run.t, s, &r), "step %" PRId64, s);
        seconds[s] = r.step_s;
        mean.forward_s += r.forward_s / (double)steps, mean.backward_s += r.backward_s / (double)steps, mean.bn_forward_s += r.bn_forward_s / (double)steps;
        mean.bn_backward_s += r.bn_backward_s / (double)steps;
        mean.grad_comm_s += r.grad_comm_s / (double)steps, mean.optimizer_s += r.optimizer_s / (double)steps;
    }
    EN_TRY_OUT(time_sums(&run.t, &mean), "timing the sums");
    if (comm->rank != 0) goto out;
    const int64_t left = run.t.be->ops->memory_available(run.t.be);
    const int64_t used = left > 0 ? run.device_memory - left : 0;                       /* of all ranks that share it */
    en_sort(seconds, (size_t)steps);
    if (o->json) print_json(&run, &mean, seconds, steps, used);
    else print_text(&run, &mean, seconds, steps, used);
out:
    free(seconds);
    if (status != EN_OK && comm->world_size > 1 && !run.t.agreed) {                     /* the others wait in a sum */
        en_report_error(comm, status);
        en_comm_abort(comm, en_status_exit_code(status));
    }
    en_run_close(&run);
    return status;
}

en_status en_command_bench(const en_options *o)
{
    en_comm *comm = NULL;
    const char *what = o->operands == 1 ? o->operand[0] : "";
    const bool passes = strcmp(what, "passes") == 0, data = strcmp(what, "data") == 0, sums = strcmp(what, "comm") == 0;
    EN_REQUIRE(passes || data || sums || strcmp(what, "train") == 0, EN_EUSAGE,
               "which benchmark? effnet bench train, effnet bench passes, effnet bench data, or effnet bench comm");
    static const char *const of_data[] = { "data", "split", "augment", "rand_ops", "magnitude", "erase", "erase_fill", "mixup", "cutmix", "resize", "decode", "rate" };
    for (size_t i = 0; !data && i < sizeof of_data / sizeof *of_data; i++)
        EN_REQUIRE(!en_option_given(o, of_data[i]), EN_EUSAGE, "effnet bench %s works on made-up %s that lie in memory; --%s is of effnet bench data", what,
                   sums ? "numbers" : "images", strcmp(of_data[i], "erase_fill") == 0 ? "erase-fill" : strcmp(of_data[i], "rand_ops") == 0 ? "rand-ops" : of_data[i]);
    EN_REQUIRE(sums || (!*o->sizes && !*o->folder), EN_EUSAGE, "--%s is of effnet bench comm", *o->sizes ? "sizes" : "folder");
    EN_TRY(en_comm_open(&comm), "starting the ranks");
    const en_status s = sums ? en_bench_comm(o, comm) : data ? en_bench_data(o, comm) : passes ? en_bench_passes(o, comm, o->bandwidth, o->tflops)
                      : bench(o, comm);
    if (s != EN_OK) en_report_error(comm, s);
    en_comm_close(comm);
    return s;
}
