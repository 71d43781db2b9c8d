/* test_comm.c - what every communicator promises: run alone (self) and by mpirun on 1, 2, 3 and 4 ranks (comm.cmake).
 *
 * Inputs are small integers, so that every sum is exact in any order and the oracle is a closed formula; where rounding
 * matters (the same bits on every rank) inputs are arbitrary and the ranks' results are compared by hash. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <stdio.h>

#include <cmocka.h>

#include "comm/comm.h"
#include "comm/mpi_inside.h"

static en_comm *comm;

static void must(en_status s)
{
    if (s != EN_OK) {                          /* the other ranks would wait for this one: end them all */
        fprintf(stderr, "[rank %d/%d] %s: %s", comm->rank, comm->world_size, en_status_name(s), en_error_text());
        en_comm_abort(comm, 1);
    }
}
#define check(cond)                                                                                                    \
    do { if (!(cond)) { fprintf(stderr, "[rank %d/%d] %s:%d: %s\n", comm->rank, comm->world_size, __FILE__, __LINE__, #cond); \
                        en_comm_abort(comm, 1); } } while (0)

static uint64_t hash(const void *data, size_t bytes)                 /* FNV-1a */
{
    const unsigned char *p = data;
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < bytes; i++) h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}

static void check_same_on_all_ranks(const void *data, size_t bytes)
{
    const uint64_t mine = hash(data, bytes);
    uint64_t *all = calloc((size_t)comm->world_size, sizeof *all);
    must(comm->ops->gather(comm, &mine, sizeof mine, all, 0));
    if (comm->rank == 0)
        for (int p = 0; p < comm->world_size; p++) check(all[p] == mine);
    free(all);
}

static float any_float(uint64_t key)           /* in (-1, 1), all exponents: sums round, and in another order differently */
{
    en_rng r = en_rng_at(1, EN_RNG_TEST, 0, key, 0);
    const int32_t mantissa = (int32_t)en_rng_u32(&r);
    return ldexpf((float)mantissa, -31 - (int)en_rng_below(&r, 20));
}

/* ------------------------------------------------------------------------------------------------------------------ */

static void ranks_know_their_places(void **state)
{
    (void)state;
    check(comm->rank >= 0 && comm->rank < comm->world_size);
    check(comm->local_rank >= 0 && comm->local_rank < comm->local_size && comm->local_size <= comm->world_size);
    check(comm->node >= 0 && comm->node < comm->nodes);
    check(comm->host[0]);
    const char *expected = getenv("EN_TEST_RANKS");
    if (expected) check(comm->world_size == atoi(expected));
    check(strcmp(comm->name, expected && atoi(expected) ? "mpi" : "self") == 0);
    double sums[2] = { comm->local_rank == 0, comm->rank };          /* leaders; ranks are 0..P-1 */
    must(comm->ops->sum_f64(comm, sums, sums, 2));
    check(sums[0] == comm->nodes && sums[1] == comm->world_size * (comm->world_size - 1) / 2.0);
}

static void sums_of_integers_are_exact(void **state)
{
    (void)state;
    const size_t sizes[] = { 0, 1, 2, 3, 15, 16, 17, 63, 64, 65, 1000, 4095, 1 << 14, 100003, 1 << 20, (1 << 20) + 7 };
    const double ranks = comm->world_size;
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        const size_t n = sizes[k];
        float *f = malloc(n * sizeof *f + 1);
        double *d = malloc(n * sizeof *d + 1), *e = malloc(n * sizeof *e + 1);
        for (size_t i = 0; i < n; i++) f[i] = (float)(i % 1000 + 7 * (size_t)comm->rank), d[i] = f[i];
        en_request *r;
        must(comm->ops->sum_f32_begin(comm, f, n, &r));
        must(comm->ops->sum_f64(comm, d, e, n));                     /* between begin and wait */
        must(comm->ops->sum_f64(comm, d, d, n));                     /* in == out              */
        must(comm->ops->sum_wait(comm, r));
        for (size_t i = 0; i < n; i++) {
            const double want = ranks * (double)(i % 1000) + 7 * ranks * (ranks - 1) / 2;
            check(f[i] == want && d[i] == want && e[i] == want);
        }
        free(f); free(d); free(e);
    }
}

static void sums_have_the_same_bits_on_all_ranks(void **state)
{
    (void)state;
    const size_t most = 5 << 20;               /* 20 MiB of float; beyond one exchange piece below */
    float *f = malloc(most * sizeof *f);
    double *d = malloc(most * sizeof *d);
    for (size_t n = 1; n <= most; n = n * 3 + 1) {
        for (size_t i = 0; i < n; i++) d[i] = f[i] = any_float(i * 64 + (size_t)comm->rank);
        en_request *r;
        must(comm->ops->sum_f32_begin(comm, f, n, &r));
        must(comm->ops->sum_wait(comm, r));
        must(comm->ops->sum_f64(comm, d, d, n));
        for (size_t i = 0; i < n; i += n / 97 + 1) {                 /* the contract: added in rank order */
            float want = any_float(i * 64);
            for (int p = 1; p < comm->world_size; p++) want += any_float(i * 64 + (size_t)p);
            check(f[i] == want);
        }
        check_same_on_all_ranks(f, n * sizeof *f);
        check_same_on_all_ranks(d, n * sizeof *d);
    }
    free(f); free(d);
}

/* Up to 4 ranks and 8000 values it is the ranks' own; before and after those, MPI's. */
static void small_sums_are_added_in_rank_order(void **state)
{
    (void)state;
    const size_t sizes[] = { 1, 33, 2561, 7999, 8000, 8001 };
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes && comm->world_size <= 4; k++)
        for (int again = 0; again < 3; again++) {
            const size_t n = sizes[k];
            double *d = malloc(n * sizeof *d), *e = malloc(n * sizeof *e), most = 0;
            for (size_t i = 0; i < n; i++) d[i] = any_float((i + 10000 * (size_t)again) * 64 + (size_t)comm->rank) / 3.0;
            must(comm->ops->sum_f64(comm, d, e, n));
            must(comm->ops->sum_f64(comm, d, d, n));
            check(memcmp(d, e, n * sizeof *d) == 0);                 /* in place or not */
            for (size_t i = 0; i < n; i++) {
                double want = any_float((i + 10000 * (size_t)again) * 64) / 3.0;
                for (int p = 1; p < comm->world_size; p++) want += any_float((i + 10000 * (size_t)again) * 64 + (size_t)p) / 3.0;
                most = fmax(most, fabs(d[i] - want));
                if (n <= 8000) check(d[i] == want);
            }
            check(most <= 4 * 3 * 0x1p-53);                          /* in another order: 3 additions of 4 values below 1/3 */
            check_same_on_all_ranks(d, n * sizeof *d);
            free(d); free(e);
        }
}

static void a_sum_longer_than_one_piece_is_whole(void **state)
{
    (void)state;
    const size_t n = (2 << 23) + 12345;        /* two pieces of mpi.c and a rest */
    float *f = malloc(n * sizeof *f);
    for (size_t i = 0; i < n; i++) f[i] = (float)(i % 4096) + (float)comm->rank;
    en_request *r;
    must(comm->ops->sum_f32_begin(comm, f, n, &r));
    must(comm->ops->sum_wait(comm, r));
    const double ranks = comm->world_size;
    for (size_t i = 0; i < n; i++) check(f[i] == ranks * (double)(i % 4096) + ranks * (ranks - 1) / 2);
    free(f);
}

static void many_sums_fly_at_once_and_land_in_any_order(void **state)
{
    (void)state;
    enum { SUMS = 40 };
    const double ranks = comm->world_size;
    float *f[SUMS];
    en_request *r[SUMS];
    size_t n[SUMS];
    for (int round = 0; round < 5; round++) {  /* rounds pass the end of the ring of requests */
        for (int k = 0; k < SUMS; k++) {
            n[k] = k % 7 == 0 ? 0 : (size_t)k * 1237 % 9001 + 1;
            f[k] = malloc(n[k] * sizeof **f + 1);
            for (size_t i = 0; i < n[k]; i++) f[k][i] = (float)(k + (int)(i % 10) + comm->rank);
            must(comm->ops->sum_f32_begin(comm, f[k], n[k], &r[k]));
        }
        for (int i = 0; i < 100 * comm->rank; i++) must(comm->ops->progress(comm));   /* ranks need not progress alike */
        for (int k = 0; k < SUMS; k++) {       /* a permutation, another one on each rank: waiting is not collective */
            const int at = (k * (comm->rank % 2 ? 7 : 11) + round + comm->rank) % SUMS;
            must(comm->ops->sum_wait(comm, r[at]));
            for (size_t i = 0; i < n[at]; i++)
                check(f[at][i] == ranks * (at + (int)(i % 10)) + ranks * (ranks - 1) / 2);
        }
        for (int k = 0; k < SUMS; k++) free(f[k]);
    }
}

static void draw(float *f, size_t n, uint32_t seed)
{
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        f[i] = (float)(int32_t)seed * 0x1p-31f;
    }
}

/* Between hosts slices go in chunks between small sums (mpi_gradients.c).  Whatever the chunks and the calls between them, the bits are those of slices
 * that are sent whole; small sums beside them are right, and what is still to come when somebody waits comes. */
static void paced_sums_have_the_bits_of_others(void **state)
{
    (void)state;
    if (strcmp(comm->name, "mpi") != 0) skip();
    const size_t sizes[] = { 1, 40, 100000, 700001, (size_t)9 << 20 };       /* the last one is of two pieces */
    enum { SUMS = sizeof sizes / sizeof *sizes };
    for (int calls = 0; calls <= 700; calls += calls < 3 ? 1 : 697) {        /* none, so few that most is left, more than there are gaps */
        float *paced[SUMS], *whole[SUMS];
        en_request *r[SUMS];
        for (int way = 0; way < 2; way++) {
            en_comm_pace_mpi(comm, way == 0);
            for (int k = 0; k < SUMS; k++) {
                float *f = (way == 0 ? paced : whole)[k] = malloc(sizes[k] * sizeof *f);
                draw(f, sizes[k], (uint32_t)(1000 * k + comm->rank));
                must(comm->ops->sum_f32_begin(comm, f, sizes[k], &r[k]));
            }
            for (int i = 0; i < calls; i++) {
                double x = comm->rank + i;
                for (int j = 0; j < comm->rank; j++) must(comm->ops->progress(comm));      /* ranks need not progress alike */
                must(comm->ops->sum_f64(comm, &x, &x, 1));
                check(x == comm->world_size * (double)i + comm->world_size * (comm->world_size - 1) / 2.);
            }
            for (int k = 0; k < SUMS; k++) must(comm->ops->sum_wait(comm, r[(k + comm->rank) % SUMS]));
        }
        for (int k = 0; k < SUMS; k++) {
            check(memcmp(paced[k], whole[k], sizes[k] * sizeof(float)) == 0);
            free(paced[k]);
            free(whole[k]);
        }
    }
    en_comm_pace_mpi(comm, comm->nodes > 1);
}

/* What came late at one rank was too large at another: they learn together, and have learned as soon as the next sum begins. */
static void all_ranks_have_the_same_pace(void **state)
{
    (void)state;
    enum { N = 700001, STEPS = 4, CALLS = 20 };
    if (strcmp(comm->name, "mpi") != 0 || comm->world_size == 1) skip();
    const mpi_impl *m = comm->impl;
    size_t before[EN_MPI_GAPS], after[EN_MPI_GAPS], *all = malloc(sizeof after * (size_t)comm->world_size);
    float *f = calloc(N, sizeof *f), one = 1;
    en_request *r;
    for (int g = 0; g < EN_MPI_GAPS; g++) before[g] = m->pace[g].chunk;
    en_comm_pace_mpi(comm, true);
    for (int step = 0; step < STEPS; step++) {
        must(comm->ops->sum_f32_begin(comm, f, N, &r));
        for (int i = 0; i < CALLS; i++) {
            double x = 1;
            for (volatile int k = 0; k < 200000 * comm->rank; k++) continue;       /* who is late finds all there, who is early may not */
            must(comm->ops->sum_f64(comm, &x, &x, 1));
        }
        must(comm->ops->sum_wait(comm, r));
    }
    must(comm->ops->sum_f32_begin(comm, &one, 1, &r));
    must(comm->ops->sum_wait(comm, r));
    for (int g = 0; g < EN_MPI_GAPS; g++) after[g] = m->pace[g].chunk;
    check(memcmp(before, after, sizeof after) != 0);
    must(comm->ops->gather(comm, after, sizeof after, all, 0));
    for (int p = 0; comm->rank == 0 && p < comm->world_size; p++) check(memcmp(all + EN_MPI_GAPS * p, after, sizeof after) == 0);
    en_comm_pace_mpi(comm, comm->nodes > 1);
    free(all);
    free(f);
}

static void too_many_sums_are_refused(void **state)
{
    (void)state;
    if (strcmp(comm->name, "self") == 0) skip();                     /* self has no limit */
    enum { MANY = 200 };
    float f[MANY];
    en_request *r[MANY];
    int begun = 0;
    en_status s = EN_OK;
    for (; begun < MANY && s == EN_OK; begun++) {
        f[begun] = 1;
        s = comm->ops->sum_f32_begin(comm, &f[begun], 1, &r[begun]);
    }
    check(s == EN_EINVAL && begun == 129);
    en_error_clear();
    for (int k = 0; k < begun - 1; k++) {
        must(comm->ops->sum_wait(comm, r[k]));
        check(f[k] == comm->world_size);
    }
    check(comm->ops->sum_wait(comm, r[0]) == EN_EINVAL);             /* waited for already */
    en_error_clear();
}

static void broadcast_and_gather_carry_blocks_in_rank_order(void **state)
{
    (void)state;
    const size_t sizes[] = { 0, 1, 5, 1000, 1 << 20 };
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++)
        for (int root = 0; root < comm->world_size; root++) {
            const size_t n = sizes[k], ranks = (size_t)comm->world_size;
            unsigned char *buf = malloc(n + 1), *all = malloc(n * ranks + 1);
            memset(buf, comm->rank == root ? 100 + root : 0, n);
            must(comm->ops->broadcast(comm, buf, n, root));
            for (size_t i = 0; i < n; i++) check(buf[i] == 100 + root);
            memset(buf, 1 + comm->rank, n);
            must(comm->ops->gather(comm, buf, n, comm->rank == root ? all : NULL, root));
            for (size_t i = 0; comm->rank == root && i < n * ranks; i++) check(all[i] == 1 + i / n);
            free(buf); free(all);
        }
    char byte = 0;
    check(comm->ops->broadcast(comm, &byte, 1, comm->world_size) == EN_EINVAL);
    check(comm->ops->gather(comm, &byte, 1, &byte, -1) == EN_EINVAL);
    en_error_clear();
    must(comm->ops->barrier(comm));
}

static void split_keeps_rank_order_within_a_color(void **state)
{
    (void)state;
    for (int groups = 1; groups <= 3; groups++) {
        en_comm *part;
        must(comm->ops->split(comm, comm->rank % groups, &part));
        int size = 0;
        double want = 0;
        for (int p = comm->rank % groups; p < comm->world_size; p += groups, size++) want += p;
        check(part->world_size == size && part->rank == comm->rank / groups);
        double sum = comm->rank;
        must(part->ops->sum_f64(part, &sum, &sum, 1));
        check(sum == want);
        float f[33];
        en_request *r, *mine;
        for (int i = 0; i < 33; i++) f[i] = (float)(comm->rank + i);
        must(part->ops->sum_f32_begin(part, f, 33, &r));             /* a group's sum and the world's may both be in flight */
        float g = 1;
        must(comm->ops->sum_f32_begin(comm, &g, 1, &mine));
        must(part->ops->sum_wait(part, r));
        must(comm->ops->sum_wait(comm, mine));
        for (int i = 0; i < 33; i++) check(f[i] == (float)(want + size * i));
        check(g == comm->world_size);
        en_comm_close(part);
    }
}

static void buckets_sum_everything_however_backward_reports_it(void **state)
{
    (void)state;
    const size_t arenas[] = { 0, 1, 15, 100, 262144, 262145, 600000, 1300001 };
    const size_t bucket_bytes[] = { 0, 64, 4096, 1 << 20, 3 << 20, 25 << 20 };
    const double ranks = comm->world_size;
    for (size_t a = 0; a < sizeof arenas / sizeof *arenas; a++)
        for (size_t k = 0; k < sizeof bucket_bytes / sizeof *bucket_bytes; k++) {
            const size_t n = arenas[a];
            float *grads = malloc(n * sizeof *grads + 1);
            en_buckets *b;
            must(en_buckets_open(comm, n ? grads : NULL, n, bucket_bytes[k], &b));
            for (int step = 0; step < 3; step++) {
                for (size_t i = 0; i < n; i++) grads[i] = (float)(i % 509 + (size_t)comm->rank + (size_t)step);
                en_buckets_begin(b);
                /* step 0: nothing reported before the wait; 1: uneven strides; 2: all at once.  Reports are each rank's own. */
                for (size_t done = 0; step == 1 && done < n; done += 1 + (done * 7 + (size_t)comm->rank * 991) % 50021) {
                    must(en_buckets_ready(b, done));
                    must(comm->ops->progress(comm));
                }
                if (step == 2) must(en_buckets_ready(b, n));
                must(en_buckets_wait(b));
                check(en_buckets_exposed_s(b) >= 0);
                for (size_t i = 0; i < n; i++)
                    check(grads[i] == ranks * (double)(i % 509 + (size_t)step) + ranks * (ranks - 1) / 2);
            }
            check(en_buckets_ready(b, n + 1) == EN_EINVAL);
            en_error_clear();
            en_buckets_close(b);
            free(grads);
        }
}

static void unready_gradients_are_left_alone(void **state)
{
    (void)state;                               /* a bucket begins when it is complete, not before: the rest may still change */
    const size_t n = 1 << 20;
    float *grads = malloc(n * sizeof *grads);
    en_buckets *b;
    must(en_buckets_open(comm, grads, n, 1 << 20, &b));
    for (size_t i = 0; i < n; i++) grads[i] = 1;
    en_buckets_begin(b);
    must(en_buckets_ready(b, n / 2 + 1000));
    for (size_t i = n / 2 + 1000; i < n; i++) grads[i] = 2;          /* backward writes on */
    must(en_buckets_wait(b));
    for (size_t i = 0; i < n; i++) check(grads[i] == (i < n / 2 + 1000 ? 1.f : 2.f) * (float)comm->world_size);
    en_buckets_close(b);
    free(grads);
}

/* What MPI is told before it begins, but for what somebody has said already. */
static void settings_of_others_stay(void **state)
{
    (void)state;
    if (strcmp(comm->name, "mpi") != 0) skip();
    assert_string_equal(getenv("OMPI_MCA_btl_tcp_flags"), "send,inplace");
    assert_string_equal(getenv("OMPI_MCA_btl_tcp_eager_limit"), "262144");
    assert_null(getenv("OMPI_MCA_btl_tcp_rndv_eager_limit"));
}

int main(void)
{
    setenv("OMPI_MCA_btl_tcp_eager_limit", "262144", 1);
    if (en_comm_open(&comm) != EN_OK) {
        fprintf(stderr, "%s", en_error_text());
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_know_their_places),
        cmocka_unit_test(settings_of_others_stay),
        cmocka_unit_test(sums_of_integers_are_exact),
        cmocka_unit_test(sums_have_the_same_bits_on_all_ranks),
        cmocka_unit_test(small_sums_are_added_in_rank_order),
        cmocka_unit_test(a_sum_longer_than_one_piece_is_whole),
        cmocka_unit_test(many_sums_fly_at_once_and_land_in_any_order),
        cmocka_unit_test(paced_sums_have_the_bits_of_others),
        cmocka_unit_test(all_ranks_have_the_same_pace),
        cmocka_unit_test(too_many_sums_are_refused),
        cmocka_unit_test(broadcast_and_gather_carry_blocks_in_rank_order),
        cmocka_unit_test(split_keeps_rank_order_within_a_color),
        cmocka_unit_test(buckets_sum_everything_however_backward_reports_it),
        cmocka_unit_test(unready_gradients_are_left_alone),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    en_comm_close(comm);
    return failed != 0;
}
