/* test_comm_tensor.c - sums of device memory through the host, and who gets which communicator: by mpirun on 1 to 4 ranks.
 *
 * The device is a pretended one: memory that faults when anything but upload and download touches it.  NCCL is pretended
 * too: this program exports the three functions of nccl.c (found as the plugin's are), and decides what they answer.  The
 * real nccl.c runs in test_comm_nccl.c. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "comm/internal.h"

static en_comm *control;

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

/* ---- a device whose memory is not the host's -------------------------------------------------------------------------- */

static int transfers;

static size_t mapped(size_t bytes) { return (bytes + 4096 + 4095) / 4096 * 4096; }

static en_status far_alloc(en_backend *be, size_t bytes, void **out)
{
    (void)be;
    char *p = mmap(NULL, mapped(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(p != MAP_FAILED);
    *(size_t *)(void *)p = mapped(bytes);
    *out = p + 64;
    check(mprotect(p, mapped(bytes), PROT_NONE) == 0);
    return EN_OK;
}

static void far_free(en_backend *be, void *p)
{
    (void)be;
    char *page = (char *)p - 64;
    check(mprotect(page, 4096, PROT_READ) == 0);
    munmap(page, *(size_t *)(void *)page);
}

static void reach(const void *p, size_t bytes, int protection)
{
    const uintptr_t first = (uintptr_t)p / 4096 * 4096, last = ((uintptr_t)p + bytes + 4095) / 4096 * 4096;
    check(mprotect((void *)first, last - first, protection) == 0);
}

static en_status far_upload(en_backend *be, void *dst, const void *host, size_t bytes)
{
    (void)be;
    transfers++;
    reach(dst, bytes, PROT_READ | PROT_WRITE);
    memcpy(dst, host, bytes);
    reach(dst, bytes, PROT_NONE);
    return EN_OK;
}

static en_status far_download(en_backend *be, void *host, const void *src, size_t bytes)
{
    (void)be;
    transfers++;
    reach(src, bytes, PROT_READ);
    memcpy(host, src, bytes);
    reach(src, bytes, PROT_NONE);
    return EN_OK;
}

static en_status far_host_alloc(en_backend *be, size_t bytes, void **out) { (void)be; *out = malloc(bytes + 1); return *out ? EN_OK : EN_ENOMEM; }
static void      far_host_free(en_backend *be, void *p) { (void)be; free(p); }

static const struct en_backend_ops far_ops = { .alloc = far_alloc, .free = far_free, .upload = far_upload, .download = far_download,
                                               .host_alloc = far_host_alloc, .host_free = far_host_free };
static en_backend far = { .name = "far", .ops = &far_ops };

static void *on_device(const void *host, size_t bytes)
{
    void *p;
    must(far.ops->alloc(&far, bytes, &p));
    if (bytes) must(far.ops->upload(&far, p, host, bytes));
    return p;
}

static float any_float(uint64_t key)           /* in (-1, 1), all exponents: another order of additions would round differently */
{
    en_rng r = en_rng_at(1, EN_RNG_TEST, 0, key, 0);
    const int32_t mantissa = (int32_t)en_rng_u32(&r);
    const int down = (int)en_rng_below(&r, 20);
    return (float)mantissa / 2147483648.f / (float)(1 << down);
}

/* ---- sums through the host ---------------------------------------------------------------------------------------------- */

static const size_t sizes[] = { 0, 1, 2, 63, 1000, 4097, 100003, 1 << 20 };
enum { SIZES = sizeof sizes / sizeof *sizes };

static void sums_through_the_host_have_the_bits_of_controls(void **state)
{
    (void)state;
    en_comm *tensor;
    must(en_comm_open_staged(control, false, &far, &tensor));
    check(tensor->rank == control->rank && tensor->world_size == control->world_size && tensor->node == control->node);
    check(!tensor->captures && tensor->control == control);
    for (int round = 0; round < 2; round++)
        for (int k = 0; k < SIZES; k++) {
            const size_t n = sizes[k];
            float *f = malloc(n * sizeof *f + 1), *got = malloc(n * sizeof *got + 1);
            double *d = malloc(n * sizeof *d + 1), *gotd = malloc(n * sizeof *gotd + 1);
            for (size_t i = 0; i < n; i++) d[i] = f[i] = any_float(i * 64 + (size_t)control->rank);
            float *fd = on_device(f, n * sizeof *f);
            double *dd = on_device(d, n * sizeof *d), *ed = on_device(d, n * sizeof *d);
            en_request *r, *q;
            must(tensor->ops->sum_f32_begin(tensor, fd, n, &r));
            must(control->ops->sum_f32_begin(control, f, n, &q));
            must(tensor->ops->sum_f64(tensor, dd, ed, n));           /* between begin and wait */
            must(tensor->ops->sum_f64(tensor, dd, dd, n));           /* in == out              */
            must(control->ops->sum_f64(control, d, d, n));
            must(tensor->ops->progress(tensor));
            must(control->ops->sum_wait(control, q));
            must(tensor->ops->sum_wait(tensor, r));
            if (n) {
                must(far.ops->download(&far, got, fd, n * sizeof *got));
                check(memcmp(got, f, n * sizeof *f) == 0);
                must(far.ops->download(&far, gotd, ed, n * sizeof *gotd));
                check(memcmp(gotd, d, n * sizeof *d) == 0);
                must(far.ops->download(&far, gotd, dd, n * sizeof *gotd));
                check(memcmp(gotd, d, n * sizeof *d) == 0);
            }
            far.ops->free(&far, fd); far.ops->free(&far, dd); far.ops->free(&far, ed);
            free(f); free(got); free(d); free(gotd);
        }
    en_comm_tensor_close(control, tensor);
}

static void many_sums_through_the_host_fly_at_once(void **state)
{
    (void)state;
    enum { SUMS = 40 };
    en_comm *tensor;
    float *f[SUMS], host[1 << 14];
    en_request *r[SUMS], *more;
    size_t n[SUMS];
    const double ranks = control->world_size;
    must(en_comm_open_staged(control, false, &far, &tensor));
    for (int round = 0; round < 5; round++) {
        for (int k = 0; k < SUMS; k++) {
            n[k] = k % 7 == 0 ? 0 : (size_t)(k + round) * 1237 % 9001 + 1;           /* buffers serve sums of other sizes */
            for (size_t i = 0; i < n[k]; i++) host[i] = (float)(k + (int)(i % 10) + control->rank);
            f[k] = on_device(host, n[k] * sizeof *host);
            must(tensor->ops->sum_f32_begin(tensor, f[k], n[k], &r[k]));
        }
        for (int k = 0; k < SUMS; k++) {       /* a permutation, another one on each rank: waiting is not collective */
            const int at = (k * (control->rank % 2 ? 7 : 11) + round + control->rank) % SUMS;
            must(tensor->ops->sum_wait(tensor, r[at]));
            check(tensor->ops->sum_wait(tensor, r[at]) == EN_EINVAL);
            en_error_clear();
            if (n[at]) must(far.ops->download(&far, host, f[at], n[at] * sizeof *host));
            for (size_t i = 0; i < n[at]; i++) check(host[i] == ranks * (at + (int)(i % 10)) + ranks * (ranks - 1) / 2);
        }
        for (int k = 0; k < SUMS; k++) far.ops->free(&far, f[k]);
    }
    f[0] = on_device(host, sizeof *host);
    for (int k = 0; k < EN_SUMS_IN_FLIGHT; k++) must(tensor->ops->sum_f32_begin(tensor, f[0], 1, &more));
    check(tensor->ops->sum_f32_begin(tensor, f[0], 1, &more) == EN_EINVAL);
    en_error_clear();
    en_comm_tensor_close(control, tensor);     /* which lets them finish: they borrow its memory */
    far.ops->free(&far, f[0]);
}

static void host_memory_goes_by_control_and_groups_by_color(void **state)
{
    (void)state;
    en_comm *tensor;
    must(en_comm_open_staged(control, false, &far, &tensor));
    int all[8] = { 0 }, flag = control->rank == 0 ? 7 : 0;
    must(tensor->ops->broadcast(tensor, &flag, sizeof flag, 0));
    check(flag == 7);
    must(tensor->ops->gather(tensor, &control->rank, sizeof *all, all, 0));
    for (int p = 0; control->rank == 0 && p < control->world_size; p++) check(all[p] == p);
    must(tensor->ops->barrier(tensor));
    for (int groups = 1; groups <= 3; groups++) {
        en_comm *part;
        must(tensor->ops->split(tensor, control->rank % groups, &part));
        int size = 0;
        double want = 0, mine = control->rank, got;
        for (int p = control->rank % groups; p < control->world_size; p += groups, size++) want += p;
        check(part->world_size == size && part->rank == control->rank / groups);
        double *d = on_device(&mine, sizeof mine), *e = on_device(&mine, sizeof mine);
        must(part->ops->sum_f64(part, d, e, 1));
        must(far.ops->download(&far, &got, e, sizeof got));
        check(got == want);
        en_comm_tensor_close(control, part);
        far.ops->free(&far, d); far.ops->free(&far, e);
    }
    en_comm_tensor_close(control, tensor);
}

static void buckets_over_the_device_are_sums(void **state)
{
    (void)state;
    const size_t n = 600000;
    const double ranks = control->world_size;
    float *host = malloc(n * sizeof *host);
    en_comm *tensor;
    en_buckets *b;
    must(en_comm_open_staged(control, false, &far, &tensor));
    float *grads = on_device(host, n * sizeof *host);
    must(en_buckets_open(tensor, grads, n, 1 << 20, &b));
    for (int step = 0; step < 3; step++) {
        for (size_t i = 0; i < n; i++) host[i] = (float)(i % 509 + (size_t)control->rank + (size_t)step);
        must(far.ops->upload(&far, grads, host, n * sizeof *host));
        en_buckets_begin(b);
        for (size_t done = 0; step == 1 && done < n; done += 50021) must(en_buckets_ready(b, done));
        must(en_buckets_wait(b));
        must(far.ops->download(&far, host, grads, n * sizeof *host));
        for (size_t i = 0; i < n; i++) check(host[i] == ranks * (double)(i % 509 + (size_t)step) + ranks * (ranks - 1) / 2);
    }
    en_buckets_close(b);
    en_comm_tensor_close(control, tensor);
    far.ops->free(&far, grads);
    free(host);
}

/* ---- who gets which ----------------------------------------------------------------------------------------------------- */

static struct { bool works; int fails_on, opened, given_up; } nccl;  /* what the pretended NCCL answers, and what it was asked */

bool en_nccl_probe(char *why, size_t size)
{
    if (!nccl.works) snprintf(why, size, "no NCCL on rank %d", control->rank);
    return nccl.works;
}

en_status en_nccl_open(en_comm *c, en_backend *be, const struct en_waits *w, en_comm **out)
{
    check(w->enter && w->leave && w->alive && w->limit_s);
    nccl.opened++;
    *out = NULL;
    EN_REQUIRE(c->rank != nccl.fails_on, EN_EPEER, "rank %d does not start", c->rank);
    EN_TRY(en_comm_open_staged(c, false, be, out), "pretending");
    (*out)->name = "nccl";
    return EN_OK;
}

void en_nccl_give_up(en_comm *c)
{
    nccl.given_up++;
    c->ops->close(c);
}

static en_status open_tensor(const char *kind, en_comm **out)
{
    nccl.opened = nccl.given_up = 0;
    en_error_clear();
    return en_comm_tensor_open(control, &far, kind, out);
}

static void a_backend_in_host_memory_gets_control(void **state)
{
    (void)state;
    en_comm *tensor;
    const char *kinds[] = { "auto", "mpi", "nccl" };
    far.device[0] = 0;
    for (int k = 0; k < 3; k++) {
        must(open_tensor(kinds[k], &tensor));
        check(tensor == control);
        en_comm_tensor_close(control, tensor);
    }
    check(open_tensor("gloo", &tensor) == EN_EUSAGE && strstr(en_error_text(), "gloo") && !tensor);
    en_error_clear();
    must(control->ops->barrier(control));      /* still open */
}

static void one_rank_alone_touches_nothing(void **state)
{
    (void)state;
    en_comm *tensor, *part;
    en_request *r;
    double v[2] = { 3, 4 }, got[2];
    if (control->world_size > 1) skip();
    strcpy(far.device, "0000:01:00.0");
    nccl.works = true;
    nccl.fails_on = -1;
    must(open_tensor("auto", &tensor));
    check(strcmp(tensor->name, "self") == 0 && tensor->captures && nccl.opened == 0 && !tensor->why[0]);
    double *d = on_device(v, sizeof v), *e = on_device(v, sizeof v);
    const int before = transfers;
    must(tensor->ops->sum_f64(tensor, d, d, 2));
    must(tensor->ops->sum_f32_begin(tensor, (float *)(void *)d, 4, &r));
    must(tensor->ops->sum_wait(tensor, r));
    must(tensor->ops->split(tensor, 0, &part));
    must(part->ops->sum_f64(part, d, d, 2));
    must(part->ops->progress(part));
    check(transfers == before);
    v[0] = 5;
    must(far.ops->upload(&far, d, v, sizeof v));
    must(part->ops->sum_f64(part, d, e, 2));
    must(far.ops->download(&far, got, e, sizeof got));
    check(got[0] == 5 && got[1] == 4);
    en_comm_tensor_close(control, part);
    en_comm_tensor_close(control, tensor);
    must(open_tensor("nccl", &tensor));        /* who asks for it by name gets it */
    check(strcmp(tensor->name, "nccl") == 0 && nccl.opened == 1);
    en_comm_tensor_close(control, tensor);
    far.ops->free(&far, d); far.ops->free(&far, e);
}

static void check_one_reason(const en_comm *tensor, const char *words)           /* the same on all ranks */
{
    char first[sizeof tensor->why];
    memcpy(first, tensor->why, sizeof first);
    must(control->ops->broadcast(control, first, sizeof first, 0));
    check(strcmp(first, tensor->why) == 0 && strstr(tensor->why, words));
}

static void all_ranks_choose_alike(void **state)
{
    (void)state;
    en_comm *tensor;
    const int last = control->world_size - 1;
    if (last == 0) skip();
    snprintf(far.device, sizeof far.device, "0000:%02d:00.0", control->rank);
    nccl.works = true;
    nccl.fails_on = -1;
    must(open_tensor("auto", &tensor));
    check(strcmp(tensor->name, "nccl") == 0 && nccl.opened == 1 && !tensor->why[0]);
    en_comm_tensor_close(control, tensor);
    must(open_tensor("mpi", &tensor));
    check(strcmp(tensor->name, "mpi") == 0 && nccl.opened == 0 && !tensor->why[0]);
    en_comm_tensor_close(control, tensor);

    nccl.works = control->rank != last;        /* one rank has no NCCL */
    must(open_tensor("auto", &tensor));
    check(strcmp(tensor->name, "mpi") == 0 && nccl.opened == 0);
    check_one_reason(tensor, "no NCCL on rank");
    en_comm_tensor_close(control, tensor);
    check(open_tensor("nccl", &tensor) == EN_ENOTSUP && !tensor && strstr(en_error_text(), "no NCCL on rank"));

    nccl.works = true;                         /* the last two share a GPU */
    if (control->rank == last) snprintf(far.device, sizeof far.device, "0000:%02d:00.0", last - 1);
    must(open_tensor("auto", &tensor));
    check(strcmp(tensor->name, "mpi") == 0 && nccl.opened == 0);
    check_one_reason(tensor, "share GPU");
    en_comm_tensor_close(control, tensor);
    char want[128];
    snprintf(want, sizeof want, "ranks %d and %d share GPU 0000:%02d:00.0", last - 1, last, last - 1);
    check(open_tensor("nccl", &tensor) == EN_EUSAGE && strstr(en_error_text(), want) && strstr(en_error_text(), "--comm mpi"));
    if (control->rank == last) control->node++;                                  /* on another host that is another GPU */
    must(open_tensor("nccl", &tensor));
    en_comm_tensor_close(control, tensor);
    if (control->rank == last) control->node--;
    snprintf(far.device, sizeof far.device, "0000:%02d:00.0", control->rank);

    nccl.fails_on = last;                      /* NCCL does not start on one rank */
    must(open_tensor("auto", &tensor));
    check(strcmp(tensor->name, "mpi") == 0 && nccl.opened == 1 && nccl.given_up == (control->rank != last));
    check_one_reason(tensor, "does not start");
    en_comm_tensor_close(control, tensor);
    check(open_tensor("nccl", &tensor) == EN_EPEER && !tensor && strstr(en_error_text(), "does not start"));
    check(nccl.given_up == (control->rank != last));
    en_error_clear();
}

int main(void)
{
    if (en_comm_open(&control) != EN_OK) {
        fprintf(stderr, "%s", en_error_text());
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_through_the_host_have_the_bits_of_controls),
        cmocka_unit_test(many_sums_through_the_host_fly_at_once),
        cmocka_unit_test(host_memory_goes_by_control_and_groups_by_color),
        cmocka_unit_test(buckets_over_the_device_are_sums),
        cmocka_unit_test(a_backend_in_host_memory_gets_control),
        cmocka_unit_test(one_rank_alone_touches_nothing),
        cmocka_unit_test(all_ranks_choose_alike),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    en_comm_close(control);
    return failed != 0;
}
