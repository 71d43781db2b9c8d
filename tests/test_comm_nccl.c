/* test_comm_nccl.c - sums between GPUs: comm/nccl.c as it is, over tests/cudaemu (NCCL by MPI), by mpirun on 1 to 4 ranks.
 *
 * What can go wrong when nothing waits is order.  So around each sum the queue itself brings the values, takes the sums away,
 * and spoils the place where they were; the harness runs the queues late and in random order (CUDAEMU_STREAMS), and keeps host
 * code from touching device memory (CUDAEMU_PROTECT). */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "comm/comm.h"
#include "cuda_queue.h"

static en_comm    *control, *tensor;
static en_backend *be;

static void must(en_status s)
{
    if (s != EN_OK) {                          /* the other ranks would wait for this one: end them all */
        fprintf(stderr, "[rank %d/%d] %s: %s", control->rank, control->world_size, en_status_name(s), en_error_text());
        en_comm_abort(control, 1);
    }
}
#define check(cond)                                                                                                    \
    do { if (!(cond)) { fprintf(stderr, "[rank %d/%d] %s:%d: %s\n%s", control->rank, control->world_size, __FILE__, __LINE__, #cond, \
                                en_error_text());                                                                      \
                        en_comm_abort(control, 1); } } while (0)
#define cu(call) check((call) == cudaSuccess)

static void *on_device(const void *host, size_t bytes)
{
    void *p;
    must(be->ops->alloc(be, bytes, &p));
    if (host && bytes) must(be->ops->upload(be, p, host, bytes));
    return p;
}
static void copy(void *to, const void *from, size_t bytes)
{
    cu(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, cuda_queue_stream(be)));
}
static void spoil(void *p, size_t bytes) { cu(cudaMemsetAsync(p, 0x7e, bytes, cuda_queue_stream(be))); }

static float any_float(uint64_t key)
{
    en_rng r = en_rng_at(1, EN_RNG_TEST, 0, key, 0);
    const int32_t mantissa = (int32_t)en_rng_u32(&r);
    const int down = (int)en_rng_below(&r, 20);
    return (float)mantissa / 2147483648.f / (float)(1 << down);
}

static void check_same_on_all_ranks(const void *data, size_t bytes)
{
    uint64_t h = 0xcbf29ce484222325u, all[16] = { 0 };
    for (size_t i = 0; i < bytes; i++) h = (h ^ ((const unsigned char *)data)[i]) * 0x100000001b3u;
    must(tensor->ops->gather(tensor, &h, sizeof h, all, 0));         /* host memory: by control */
    for (int p = 0; control->rank == 0 && p < control->world_size; p++) check(all[p] == h);
}

/* ---------------------------------------------------------------------------------------------------------------------- */

static void it_is_nccl_with_controls_places(void **state)
{
    (void)state;
    check(strcmp(tensor->name, "nccl") == 0 && tensor->captures && !tensor->why[0] && tensor->control == control);
    check(tensor->rank == control->rank && tensor->world_size == control->world_size && tensor->local_rank == control->local_rank);
    int flag = control->rank == 0 ? 7 : 0;
    must(tensor->ops->broadcast(tensor, &flag, sizeof flag, 0));
    must(tensor->ops->barrier(tensor));
    must(tensor->ops->progress(tensor));
    check(flag == 7 && be->watch);
}

static void sums_see_what_was_queued_before_and_are_seen_behind(void **state)
{
    (void)state;
    const size_t sizes[] = { 1, 3, 64, 1001, 100003 };
    const double ranks = control->world_size;
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        const size_t n = sizes[k], bytes = n * sizeof(double), fbytes = n * sizeof(float);
        double *host = malloc(bytes);
        float *fhost = malloc(fbytes);
        for (size_t i = 0; i < n; i++) fhost[i] = (float)(host[i] = (double)(i % 1000 + 7 * (size_t)control->rank));
        double *src = on_device(host, bytes), *buf = on_device(NULL, bytes), *sum = on_device(NULL, bytes), *got = on_device(NULL, 2 * bytes);
        float *fsrc = on_device(fhost, fbytes), *fbuf = on_device(NULL, fbytes), *fgot = on_device(NULL, fbytes);
        en_request *r;
        copy(buf, src, bytes);
        copy(fbuf, fsrc, fbytes);
        must(tensor->ops->sum_f32_begin(tensor, fbuf, n, &r));
        must(tensor->ops->sum_f64(tensor, buf, sum, n));             /* while the other is in flight */
        copy(got, sum, bytes);
        must(tensor->ops->sum_f64(tensor, buf, buf, n));
        copy(got + n, buf, bytes);
        spoil(buf, bytes);
        spoil(sum, bytes);
        spoil(fsrc, fbytes);
        must(tensor->ops->sum_wait(tensor, r));
        copy(fgot, fbuf, fbytes);
        spoil(fbuf, fbytes);
        for (int half = 0; half < 2; half++) {
            must(be->ops->download(be, host, got + (size_t)half * n, bytes));
            for (size_t i = 0; i < n; i++) check(host[i] == ranks * (double)(i % 1000) + 7 * ranks * (ranks - 1) / 2);
        }
        must(be->ops->download(be, fhost, fgot, fbytes));
        for (size_t i = 0; i < n; i++) check(fhost[i] == host[i]);
        void *all[] = { src, buf, sum, got, fsrc, fbuf, fgot };
        for (size_t i = 0; i < sizeof all / sizeof *all; i++) be->ops->free(be, all[i]);
        free(host);
        free(fhost);
    }
    must(tensor->ops->sum_f64(tensor, NULL, NULL, 0));
}

static void sums_have_the_same_bits_on_all_ranks(void **state)
{
    (void)state;
    const size_t n = 30011;
    float *host = malloc(n * sizeof *host);
    double *hostd = malloc(n * sizeof *hostd);
    en_request *r;
    for (size_t i = 0; i < n; i++) hostd[i] = host[i] = any_float(i * 64 + (size_t)control->rank);
    float *f = on_device(host, n * sizeof *host);
    double *d = on_device(hostd, n * sizeof *hostd);
    must(tensor->ops->sum_f32_begin(tensor, f, n, &r));
    must(tensor->ops->sum_wait(tensor, r));
    must(tensor->ops->sum_f64(tensor, d, d, n));
    must(be->ops->download(be, host, f, n * sizeof *host));
    must(be->ops->download(be, hostd, d, n * sizeof *hostd));
    check_same_on_all_ranks(host, n * sizeof *host);
    check_same_on_all_ranks(hostd, n * sizeof *hostd);
    for (size_t i = 0; i < n; i += 97) {
        double want = 0;
        for (int p = 0; p < control->world_size; p++) want += any_float(i * 64 + (size_t)p);
        check(host[i] - want < 1e-6 && want - host[i] < 1e-6 && hostd[i] - want < 1e-12 && want - hostd[i] < 1e-12);
    }
    be->ops->free(be, f); be->ops->free(be, d);
    free(host); free(hostd);
}

static void many_sums_are_queued_without_waiting(void **state)
{
    (void)state;
    enum { SUMS = 300, FLYING = 40 };          /* beyond the sums that nccl.c lets the host be ahead */
    const double ranks = control->world_size, one = 1;
    double *d = on_device(NULL, 2 * sizeof *d), *unit = on_device(&one, sizeof one), got[2];
    for (int i = 0; i < SUMS; i++) {           /* d[0] = ranks * unit, again and again: a sum that came late would be missed */
        copy(d, unit, sizeof *d);
        must(tensor->ops->sum_f64(tensor, d, d + 1, 1));
        copy(d, d + 1, sizeof *d);
        must(tensor->ops->sum_f64(tensor, d, d, 1));
    }
    must(be->ops->download(be, got, d, sizeof got));
    check(got[0] == ranks * ranks && got[1] == ranks);

    float *f[FLYING], host[1000];
    en_request *r[FLYING], *more;
    for (int round = 0; round < 4; round++) {
        for (int k = 0; k < FLYING; k++) {
            const size_t n = k % 7 == 0 ? 0 : (size_t)k * 23 + 1;
            for (size_t i = 0; i < n; i++) host[i] = (float)(k + round + (int)(i % 10) + control->rank);
            f[k] = on_device(host, n * sizeof *host);
            must(tensor->ops->sum_f32_begin(tensor, f[k], n, &r[k]));
        }
        for (int k = 0; k < FLYING; k++) {
            const int at = (k * (control->rank % 2 ? 7 : 11) + round) % FLYING;                  /* in any order, each rank its own */
            const size_t n = at % 7 == 0 ? 0 : (size_t)at * 23 + 1;
            must(tensor->ops->sum_wait(tensor, r[at]));
            if (n) must(be->ops->download(be, host, f[at], n * sizeof *host));
            for (size_t i = 0; i < n; i++) check(host[i] == ranks * (at + round + (int)(i % 10)) + ranks * (ranks - 1) / 2);
        }
        for (int k = 0; k < FLYING; k++) be->ops->free(be, f[k]);
    }
    check(tensor->ops->sum_wait(tensor, r[0]) == EN_EINVAL);
    en_error_clear();
    en_request *all[128];
    for (int k = 0; k < 128; k++) must(tensor->ops->sum_f32_begin(tensor, (float *)(void *)d, 1, &all[k]));
    check(tensor->ops->sum_f32_begin(tensor, (float *)(void *)d, 1, &more) == EN_EINVAL);
    en_error_clear();
    for (int k = 0; k < 128; k++) must(tensor->ops->sum_wait(tensor, all[k]));
    be->ops->free(be, d); be->ops->free(be, unit);
}

/* One step: statistics of a group between two passes, a bucket beside them, a tally at the end. */
typedef struct { double *in, *stats, *out; float *gin, *grads, *gout; size_t n; en_comm *bn; } step;

static void queue_step(const step *s)
{
    en_request *r;
    copy(s->grads, s->gin, s->n * sizeof *s->grads);
    must(tensor->ops->sum_f32_begin(tensor, s->grads, s->n, &r));
    copy(s->stats, s->in, s->n * sizeof *s->stats);
    must(s->bn->ops->sum_f64(s->bn, s->stats, s->stats, s->n));
    must(tensor->ops->sum_f64(tensor, s->stats, s->out, s->n));      /* of what the group summed */
    spoil(s->stats, s->n * sizeof *s->stats);
    must(tensor->ops->sum_wait(tensor, r));
    copy(s->gout, s->grads, s->n * sizeof *s->grads);
    spoil(s->grads, s->n * sizeof *s->grads);
}

static void set_step(const step *s, int round)
{
    double *d = malloc(s->n * sizeof *d);
    float *f = malloc(s->n * sizeof *f);
    for (size_t i = 0; i < s->n; i++) f[i] = (float)(d[i] = (double)(i % 100 + 10 * (size_t)round + (size_t)control->rank));
    must(be->ops->upload(be, s->in, d, s->n * sizeof *d));
    must(be->ops->upload(be, s->gin, f, s->n * sizeof *f));
    free(d); free(f);
}

static void check_step(const step *s, int round)
{
    const double ranks = control->world_size, groups = ranks / s->bn->world_size;
    double *d = malloc(s->n * sizeof *d);
    float *f = malloc(s->n * sizeof *f);
    must(be->ops->download(be, d, s->out, s->n * sizeof *d));
    must(be->ops->download(be, f, s->gout, s->n * sizeof *f));
    for (size_t i = 0; i < s->n; i++) {
        const double want = ranks * (double)(i % 100 + 10 * (size_t)round) + ranks * (ranks - 1) / 2;
        check(f[i] == want && d[i] == want * ranks / groups);        /* each rank adds its group's sum once more */
    }
    free(d); free(f);
}

static void a_recorded_step_sums_again_and_again(void **state)
{
    (void)state;
    const int world = control->world_size;
    for (int size = 1; size <= world; size++) {
        if (world % size) continue;
        step s = { .n = 3001, .bn = tensor };
        if (size < world) must(tensor->ops->split(tensor, control->rank / size, &s.bn));
        check(s.bn->world_size == size);
        s.in = on_device(NULL, s.n * sizeof *s.in), s.stats = on_device(NULL, s.n * sizeof *s.in), s.out = on_device(NULL, s.n * sizeof *s.in);
        s.gin = on_device(NULL, s.n * sizeof *s.gin), s.grads = on_device(NULL, s.n * sizeof *s.gin), s.gout = on_device(NULL, s.n * sizeof *s.gin);
        set_step(&s, 0);
        queue_step(&s);
        check_step(&s, 0);
        void *graph;
        must(be->ops->capture_begin(be));
        queue_step(&s);
        must(be->ops->capture_end(be, &graph));
        for (int round = 1; round < 5; round++) {
            set_step(&s, round);
            must(be->ops->graph_launch(be, graph));
            if (round == 3) {                  /* two in a row, and a step that is not recorded between */
                must(be->ops->graph_launch(be, graph));
                queue_step(&s);
                must(be->ops->graph_launch(be, graph));
            }
            check_step(&s, round);
        }
        must(be->ops->synchronize(be));
        be->ops->graph_free(be, graph);
        void *all[] = { s.in, s.stats, s.out, s.gin, s.grads, s.gout };
        for (size_t i = 0; i < sizeof all / sizeof *all; i++) be->ops->free(be, all[i]);
        if (s.bn != tensor) en_comm_tensor_close(control, s.bn);
    }
}

static void groups_by_color_come_and_go(void **state)
{
    (void)state;
    for (int round = 0; round < 3; round++)
        for (int groups = 1; groups <= 3; groups++) {
            en_comm *part, *half;
            must(tensor->ops->split(tensor, control->rank % groups, &part));
            int size = 0;
            double want = 0, mine = control->rank, got;
            for (int p = control->rank % groups; p < control->world_size; p += groups, size++) want += p;
            check(part->world_size == size && part->rank == control->rank / groups && strcmp(part->name, "nccl") == 0 && part->captures);
            double *d = on_device(&mine, sizeof mine), *e = on_device(NULL, sizeof mine);
            must(part->ops->sum_f64(part, d, e, 1));
            must(be->ops->download(be, &got, e, sizeof got));
            check(got == want);
            must(part->ops->split(part, part->rank / 2, &half));     /* groups of a group; ones with one rank among them */
            must(half->ops->sum_f64(half, e, e, 1));
            must(be->ops->download(be, &got, e, sizeof got));
            check(got == want * half->world_size);
            float one = 1, gotf;
            en_request *r, *q;
            float *f = on_device(&one, sizeof one), *g = on_device(&one, sizeof one);
            must(part->ops->sum_f32_begin(part, f, 1, &r));          /* a group's and the world's in flight together */
            must(tensor->ops->sum_f32_begin(tensor, g, 1, &q));
            must(tensor->ops->sum_wait(tensor, q));
            must(part->ops->sum_wait(part, r));
            must(be->ops->download(be, &gotf, f, sizeof gotf));
            check(gotf == (float)size);
            must(be->ops->download(be, &gotf, g, sizeof gotf));
            check(gotf == (float)control->world_size);
            en_comm_tensor_close(control, half);
            en_comm_tensor_close(control, part);
            void *all[] = { d, e, f, g };
            for (int i = 0; i < 4; i++) be->ops->free(be, all[i]);
        }
}

static void buckets_are_queued_as_backward_goes(void **state)
{
    (void)state;
    const size_t n = 600000;
    const double ranks = control->world_size;
    float *host = malloc(n * sizeof *host);
    float *src = on_device(NULL, n * sizeof *host), *grads = on_device(NULL, n * sizeof *host), *got = on_device(NULL, n * sizeof *host);
    en_buckets *b;
    must(en_buckets_open(tensor, grads, n, 1 << 20, &b));
    for (int round = 0; round < 2; round++) {
        for (size_t i = 0; i < n; i++) host[i] = (float)(i % 509 + (size_t)control->rank + (size_t)round);
        must(be->ops->upload(be, src, host, n * sizeof *host));
        en_buckets_begin(b);
        for (size_t done = 0, next; done < n; done = next) {         /* "backward" writes from left to right */
            next = done + 90001 < n ? done + 90001 : n;
            copy(grads + done, src + done, (next - done) * sizeof *host);
            must(en_buckets_ready(b, next));
        }
        must(en_buckets_wait(b));
        copy(got, grads, n * sizeof *host);
        spoil(grads, n * sizeof *host);
        check(en_buckets_exposed_s(b) == 0);
        must(be->ops->download(be, host, got, n * sizeof *host));
        for (size_t i = 0; i < n; i++) check(host[i] == ranks * (double)(i % 509 + (size_t)round) + ranks * (ranks - 1) / 2);
    }
    en_buckets_close(b);
    be->ops->free(be, src); be->ops->free(be, grads); be->ops->free(be, got);
    free(host);
}

int main(void)
{
    if (en_comm_open(&control) != EN_OK || cuda_queue_open(control->local_rank, &be) != EN_OK) {
        fprintf(stderr, "%s", en_error_text());
        return 1;
    }
    must(en_comm_tensor_open(control, be, "nccl", &tensor));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_is_nccl_with_controls_places),
        cmocka_unit_test(sums_see_what_was_queued_before_and_are_seen_behind),
        cmocka_unit_test(sums_have_the_same_bits_on_all_ranks),
        cmocka_unit_test(many_sums_are_queued_without_waiting),
        cmocka_unit_test(a_recorded_step_sums_again_and_again),
        cmocka_unit_test(groups_by_color_come_and_go),
        cmocka_unit_test(buckets_are_queued_as_backward_goes),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    en_comm_tensor_close(control, tensor);
    tensor = NULL;
    if (be->watch) return 1;
    cuda_queue_close(be);
    en_comm_close(control);
    return failed != 0;
}
