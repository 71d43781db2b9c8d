/* test_comm_nccl_failure.c - sums between GPUs that cannot be: what each rank learns, and that nobody waits for ever.
 *
 *     test_comm_nccl_failure shared KIND     all ranks on one GPU: nccl is refused by name, auto takes mpi and says why
 *     test_comm_nccl_failure missing TEXT    NCCL will not do: the reason contains TEXT (built with EN_TEST_NCCL_VERSION, this
 *                                            program is all the NCCL there is, of the version in the environment)
 *     test_comm_nccl_failure absent          the last rank never comes to the start
 *     test_comm_nccl_failure away            the last rank stays away from a sum
 *     test_comm_nccl_failure replay          the last rank stays away from a recorded step
 *     test_comm_nccl_failure broken          NCCL reports an error in the middle (the harness plays it)
 *     test_comm_nccl_failure stillborn KIND  NCCL reports an error at the first sum (likewise): nccl fails, auto takes mpi
 *
 * Where one rank is lost, the others check what they were told and end the job with exit code 5. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "comm/internal.h"
#include "cuda_queue.h"

static en_comm    *control, *tensor;
static en_backend *be;

#ifdef EN_TEST_NCCL_VERSION
int ncclGetVersion(int *version);
int ncclGetVersion(int *version) { return *version = atoi(getenv("EN_TEST_NCCL_VERSION")), 0; }
#endif

static _Noreturn void fail(const char *what, int line)
{
    fprintf(stderr, "FAILED on rank %d, line %d: %s\n%s", control->rank, line, what, en_error_text());
    en_comm_abort(control, 1);
}
#define check(cond) do { if (!(cond)) fail(#cond, __LINE__); } while (0)
#define must(call) check((call) == EN_OK)
#define told(text) check(strstr(en_error_text(), (text)))

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double limit_s(void)
{
    return en_watch_limit_here();
}

static void *some_memory(void)
{
    const double ones[64] = { 1, 1, 1, 1 };
    void *p;
    must(be->ops->alloc(be, sizeof ones, &p));
    must(be->ops->upload(be, p, ones, sizeof ones));
    return p;
}

static int shared(const char *kind)
{
    const en_status s = en_comm_tensor_open(control, be, kind, &tensor);
    if (strcmp(kind, "nccl") == 0) {
        check(s == EN_EUSAGE && !tensor);
        told("ranks 0 and 1 share GPU 0000:");
        told("--comm mpi");
        return 0;
    }
    must(s);
    check(strcmp(tensor->name, "mpi") == 0 && !tensor->captures && strstr(tensor->why, "ranks 0 and 1 share GPU"));
    double *d = some_memory(), got;
    must(tensor->ops->sum_f64(tensor, d, d, 1));
    must(be->ops->download(be, &got, d, sizeof got));
    check(got == control->world_size);
    en_comm_tensor_close(control, tensor);
    be->ops->free(be, d);
    return 0;
}

static int missing(const char *text)
{
    check(en_comm_tensor_open(control, be, "nccl", &tensor) == EN_ENOTSUP && !tensor);
    told(text);
    en_error_clear();
    must(en_comm_tensor_open(control, be, "auto", &tensor));
    check(strcmp(tensor->name, "mpi") == 0 && strstr(tensor->why, text));
    en_comm_tensor_close(control, tensor);
    return 0;
}

static _Noreturn void stay_away(void)
{
    sleep(120);
    fail("the others did not end the job", __LINE__);
}

static bool last(void) { return control->rank == control->world_size - 1; }

static en_status broadcast_and_go(en_comm *c, void *buf, size_t bytes, int root)
{
    must(control->ops->broadcast(control, buf, bytes, root));
    (void)c;
    stay_away();
}

static int absent(void)
{
    const struct en_waits waits = { en_watch_enter_for, en_watch_leave, en_watch_alive, en_watch_limit_here, en_watch_where };
    en_comm leaving = *control;
    struct en_comm_ops ops = *control->ops;
    ops.broadcast = broadcast_and_go;          /* the last rank learns where to meet, and does not come */
    leaving.ops = &ops;
    if (last()) (void)en_nccl_open(&leaving, be, &waits, &tensor);
    const double from = now_s();
    const en_status s = en_nccl_open(control, be, &waits, &tensor);
    check(s == EN_EPEER && !tensor && !be->watch);
    check(now_s() - from < limit_s());         /* before watch.c ends the process without a word from us */
    told("did not arrive");
    sleep(1);                                  /* the others check too */
    en_comm_abort(control, 5);
}

/* The host waits and is told; from then on nothing works, and nothing hangs. */
static _Noreturn void survive(double *d, const char *first, const char *second)
{
    const double from = now_s();
    double seen[64];
    const en_status s = be->ops->download(be, seen, d, sizeof seen);
    const double took = now_s() - from;
    check(s == EN_EPEER);
    check(took < 2 * limit_s() + 2);
    told(first);
    told(second);
    fprintf(stderr, "rank %d learned after %.2f s: %s", control->rank, took, en_error_text());
    en_error_clear();
    en_request *r;
    en_comm *part;
    check(tensor->ops->sum_f64(tensor, d, d, 1) == EN_EPEER);
    check(tensor->ops->sum_f32_begin(tensor, (float *)(void *)d, 1, &r) == EN_EPEER);
    check(tensor->ops->progress(tensor) == EN_EPEER);
    check(tensor->ops->split(tensor, 0, &part) == EN_EPEER);
    told("in flight");
    en_error_clear();
    double got[2];
    be->watch = NULL;
    must(be->ops->download(be, got, d, sizeof got));                 /* the device is free again */
    be->ops->free(be, d);
    en_comm_tensor_close(control, tensor);     /* alone: the others need not come */
    sleep(1);
    en_comm_abort(control, 5);
}

static int away(bool replay)
{
    must(en_comm_tensor_open(control, be, "nccl", &tensor));
    double *d = some_memory();
    void *graph = NULL;
    must(tensor->ops->sum_f64(tensor, d, d, 4));
    if (replay) {
        must(be->ops->capture_begin(be));
        must(tensor->ops->sum_f64(tensor, d, d, 4));
        must(be->ops->capture_end(be, &graph));
        must(be->ops->graph_launch(be, graph));
    }
    must(be->ops->synchronize(be));
    must(control->ops->barrier(control));
    if (last()) stay_away();
    if (replay) must(be->ops->graph_launch(be, graph));
    else must(tensor->ops->sum_f64(tensor, d, d, 3));
    survive(d, "did not arrive", replay ? "in flight: a recorded step" : "in flight: a sum of 3 values");
}

static int broken(void)
{
    must(en_comm_tensor_open(control, be, "nccl", &tensor));
    double *d = some_memory();
    must(control->ops->barrier(control));
    en_status s = EN_OK;
    for (int i = 0; i < 100 && s == EN_OK; i++) {                    /* the harness breaks one of these */
        s = tensor->ops->sum_f64(tensor, d, d, 3);
        if (s == EN_OK) s = be->ops->synchronize(be);
    }
    check(s == EN_EPEER);
    told("rank");
    fprintf(stderr, "rank %d was told: %s", control->rank, en_error_text());
    en_error_clear();
    check(tensor->ops->sum_f64(tensor, d, d, 1) == EN_EPEER);
    en_comm_tensor_close(control, tensor);
    be->ops->free(be, d);
    sleep(1);
    en_comm_abort(control, 5);
}

static int stillborn(const char *kind)
{
    const en_status s = en_comm_tensor_open(control, be, kind, &tensor);
    check(!be->watch);
    if (strcmp(kind, "nccl") == 0) {
        check(s == EN_EPEER && !tensor);
        told("in flight");
        return 0;
    }
    must(s);
    check(strcmp(tensor->name, "mpi") == 0 && strstr(tensor->why, "in flight"));
    double *d = some_memory(), got;
    must(tensor->ops->sum_f64(tensor, d, d, 1));
    must(be->ops->download(be, &got, d, sizeof got));
    check(got == control->world_size);
    en_comm_tensor_close(control, tensor);
    be->ops->free(be, d);
    return 0;
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    if (en_comm_open(&control) != EN_OK || cuda_queue_open(control->local_rank, &be) != EN_OK) {
        fprintf(stderr, "%s", en_error_text());
        return 1;
    }
    int code = 1;
    if (strcmp(mode, "shared") == 0 && argc > 2) code = shared(argv[2]);
    else if (strcmp(mode, "missing") == 0 && argc > 2) code = missing(argv[2]);
    else if (strcmp(mode, "absent") == 0) code = absent();
    else if (strcmp(mode, "away") == 0) code = away(false);
    else if (strcmp(mode, "replay") == 0) code = away(true);
    else if (strcmp(mode, "broken") == 0) code = broken();
    else if (strcmp(mode, "stillborn") == 0 && argc > 2) code = stillborn(argv[2]);
    else fprintf(stderr, "unknown mode\n");
    cuda_queue_close(be);
    en_comm_close(control);
    return code;
}
