/* test_bench_comm.c - what `effnet bench comm` makes of times, and that it sees a wrong sum: with a communicator that spoils some.
 *
 * Alone, and by mpirun on 2 and 3 ranks (trainer.cmake), where one rank alone spoils its results. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <stdio.h>

#include <cmocka.h>

#include "trainer/bench/comm.h"

static en_comm *world;

/* ---- figures -------------------------------------------------------------------------------------------------------------- */

static void near_to(double got, double want, double share)
{
    if (!(fabs(got - want) <= share * fabs(want))) fail_msg("%.9g, not %.9g", got, want);
}

static void quantiles_lie_between_their_neighbours(void **state)
{
    (void)state;
    double one[] = { 3 }, odd[] = { 5, 1, 4, 2, 3 }, even[] = { 4, 1, 3, 2 }, eleven[11];
    comm_spread s = comm_spread_of(one, 1);
    assert_true(s.median == 3 && s.p10 == 3 && s.p90 == 3);
    assert_true(comm_spread_of(odd, 5).median == 3);
    assert_true(comm_spread_of(even, 4).median == 2.5);
    for (int k = 0; k < 11; k++) eleven[k] = (double)((k * 7) % 11);                 /* 0 to 10, mixed */
    s = comm_spread_of(eleven, 11);
    near_to(s.p10, 1, 1e-12);
    near_to(s.p90, 9, 1e-12);
    double none = 0;
    assert_true(isnan(comm_spread_of(&none, 0).median));
}

/* nccl-tests, doc/PERFORMANCE.md: all-reduce, busbw = algbw * 2(n-1)/n */
static void bus_bytes_are_those_of_nccl_tests(void **state)
{
    (void)state;
    assert_true(comm_bus_bytes(1e6, 1) == 0);
    assert_true(comm_bus_bytes(1e6, 2) == 1e6);
    assert_true(comm_bus_bytes(1e6, 4) == 1.5e6);
    assert_true(comm_bus_bytes(1e6, 8) == 1.75e6);
}

enum { SIZES = 17 };
static void sizes(double x[SIZES]) { for (int k = 0; k < SIZES; k++) x[k] = ldexp(4096, k); }

/* From a GPU's link to a slow network; without noise it is found to within what the search stops at. */
static void a_known_latency_and_bandwidth_are_found(void **state)
{
    (void)state;
    static const double links[][2] = { { 10e-6, 400e9 }, { 30e-6, 1.2e9 }, { 2e-3, 125e6 }, { 40e-3, 1e6 } };
    double x[SIZES], t[SIZES];
    sizes(x);
    for (size_t l = 0; l < sizeof links / sizeof *links; l++) {
        for (int k = 0; k < SIZES; k++) t[k] = links[l][0] + x[k] / links[l][1];
        const comm_fit f = comm_fit_of(x, t, SIZES);
        assert_int_equal(f.pieces, 1);
        near_to(f.piece[0].alpha_s, links[l][0], 1e-6);
        near_to(f.piece[0].bytes_per_s, links[l][1], 1e-6);
        assert_true(f.piece[0].error < 1e-6);
        near_to(comm_fit_seconds(&f, 12345), links[l][0] + 12345 / links[l][1], 1e-6);
    }
}

/* Times that are off by up to 5 %: so is the fit at most, and alpha and beta of many points less. */
static void noise_moves_the_fit_no_further_than_itself(void **state)
{
    (void)state;
    double x[SIZES], t[SIZES];
    sizes(x);
    for (unsigned seed = 1; seed <= 20; seed++) {
        uint32_t h = seed * 2654435761u;
        for (int k = 0; k < SIZES; k++) {
            h = h * 1664525u + 1013904223u;
            t[k] = (50e-6 + x[k] / 1e9) * (1 + 0.05 * (2 * (h >> 8) / 16777216.0 - 1));
        }
        const comm_fit f = comm_fit_of(x, t, SIZES);
        assert_int_equal(f.pieces, 1);
        near_to(f.piece[0].alpha_s, 50e-6, 0.05);
        near_to(f.piece[0].bytes_per_s, 1e9, 0.05);
        assert_true(f.piece[0].error < 0.1);
    }
}

/* Of a machine that somebody else used for a while: the other times say what the link is. */
static void times_that_are_far_too_long_do_not_move_the_fit(void **state)
{
    (void)state;
    static const int disturbed[] = { 3, 4, 9, 12, 16 };
    double x[SIZES], t[SIZES];
    sizes(x);
    for (int k = 0; k < SIZES; k++) t[k] = 50e-6 + x[k] / 1e9;
    for (size_t i = 0; i < sizeof disturbed / sizeof *disturbed; i++) t[disturbed[i]] *= 3 + (double)i;
    const comm_fit f = comm_fit_of(x, t, SIZES);
    assert_int_equal(f.pieces, 1);
    near_to(f.piece[0].alpha_s, 50e-6, 1e-4);
    near_to(f.piece[0].bytes_per_s, 1e9, 1e-4);
    assert_true(f.piece[0].error > 0.6 && f.piece[0].usual_error < 0.3);
}

/* As MPI sends: at once up to a size, from there on after an answer. */
static void two_regimes_are_told_apart(void **state)
{
    (void)state;
    double x[SIZES], t[SIZES];
    sizes(x);
    for (int k = 0; k < SIZES; k++) t[k] = x[k] <= 65536 ? 2e-3 + x[k] / 1e8 : 6e-3 + x[k] / 2e8;
    const comm_fit f = comm_fit_of(x, t, SIZES);
    assert_int_equal(f.pieces, 2);
    assert_true(f.piece[0].up_to > 65536 && f.piece[0].up_to < 131072 && isinf(f.piece[1].up_to));
    near_to(f.piece[0].alpha_s, 2e-3, 1e-6);
    near_to(f.piece[0].bytes_per_s, 1e8, 1e-4);
    near_to(f.piece[1].alpha_s, 6e-3, 1e-6);
    near_to(f.piece[1].bytes_per_s, 2e8, 1e-6);
    near_to(comm_fit_seconds(&f, 65536), t[4], 1e-6);
    near_to(comm_fit_seconds(&f, 131072), t[5], 1e-6);
}

static void what_the_times_do_not_tell_is_not_made_up(void **state)
{
    (void)state;
    double x[SIZES], t[SIZES];
    sizes(x);
    for (int k = 0; k < SIZES; k++) t[k] = 1e-3;                                      /* the size makes no difference */
    comm_fit f = comm_fit_of(x, t, SIZES);
    near_to(f.piece[0].alpha_s, 1e-3, 1e-4);
    assert_true(isinf(f.piece[0].bytes_per_s));
    for (int k = 0; k < SIZES; k++) t[k] = x[k] / 1e9;                                /* no latency: below a hundredth of the least time */
    f = comm_fit_of(x, t, SIZES);
    assert_true(f.piece[0].alpha_s < 0.01 * t[0]);
    near_to(f.piece[0].bytes_per_s, 1e9, 0.01);
    assert_int_equal(comm_fit_of(x, t, 1).pieces, 0);
    memset(x, 0, sizeof x);                                                           /* one rank: nothing on the bus */
    f = comm_fit_of(x, t, SIZES);
    assert_int_equal(f.pieces, 0);
    assert_true(isnan(comm_fit_seconds(&f, 1)));
}

/* ---- values --------------------------------------------------------------------------------------------------------------- */

enum { N = 1000, AT = 77777 };

static void sums_of_the_values_are_exact_and_known(void **state)
{
    (void)state;
    static const int ranks[] = { 1, 2, 3, 7, 64, 1025, COMM_MOST_RANKS };
    float part[N], up[N], down[N];
    double wide[N], sum[N];
    for (size_t k = 0; k < sizeof ranks / sizeof *ranks; k++) {
        const comm_values v = comm_values_of(ranks[k]);
        memset(up, 0, sizeof up), memset(down, 0, sizeof down), memset(sum, 0, sizeof sum);
        for (int r = 0; r < ranks[k]; r++) {
            comm_fill_f32(&v, r, 5, AT, N, part);
            for (int i = 0; i < N; i++) up[i] += part[i];
            comm_fill_f64(&v, r, 5, AT, N, wide);
            for (int i = 0; i < N; i++) sum[i] += wide[i];
            comm_fill_f32(&v, ranks[k] - 1 - r, 5, AT, N, part);
            for (int i = 0; i < N; i++) down[i] += part[i];
        }
        assert_memory_equal(up, down, sizeof up);
        assert_int_equal(comm_wrong_f32(&v, 5, AT, N, up), 0);
        assert_int_equal(comm_wrong_f64(&v, 5, AT, N, sum), 0);
    }
}

static void every_kind_of_mistake_is_counted(void **state)
{
    (void)state;
    const comm_values v = comm_values_of(3);
    float part[3][N], sum[N];
    for (int r = 0; r < 3; r++) comm_fill_f32(&v, r, 9, 0, N, part[r]);
    for (int i = 0; i < N; i++) sum[i] = part[0][i] + part[1][i] + part[2][i];
    sum[17] += 1, sum[18] = NAN, sum[999] = 0;
    assert_int_equal(comm_wrong_f32(&v, 9, 0, N, sum), 3);
    for (int i = 0; i < N; i++) sum[i] = part[0][i] + part[1][i] + part[1][i];        /* one rank twice in another's place */
    assert_int_equal(comm_wrong_f32(&v, 9, 0, N, sum), N);
    for (int i = 0; i < N; i++) sum[i] = part[0][i] + part[1][i];                     /* a rank is missing */
    assert_int_equal(comm_wrong_f32(&v, 9, 0, N, sum), N);
    for (int i = 0; i < N; i++) sum[i] = part[0][i] + part[1][i] + part[2][i];
    assert_true(comm_wrong_f32(&v, 10, 0, N, sum) > N - 5);                           /* of the repetition before, or */
    assert_true(comm_wrong_f32(&v, 9, 1, N, sum) > N - 5);                            /* at another place: a few may be equal by chance */
}

/* ---- a communicator that spoils what comes out ------------------------------------------------------------------------------ */

static en_comm spoilt;
static const struct en_comm_ops *right_ops;
static struct { en_request *r; float *buf; size_t n; } begun[128];
static int64_t f32_every, f64_every, broadcast_every, calls, planted;

static bool now(int64_t every)
{
    const bool yes = every > 0 && ++calls % every == 0 && world->rank == world->world_size - 1;
    planted += yes;
    return yes;
}

static en_status begin(en_comm *c, float *buf, size_t n, en_request **out)
{
    const en_status s = right_ops->sum_f32_begin(c, buf, n, out);
    int k = 0;
    while (begun[k].r && begun[k].n) k++;
    begun[k].r = *out, begun[k].buf = buf, begun[k].n = n;
    return s;
}
static en_status wait_spoilt(en_comm *c, en_request *r)
{
    const en_status s = right_ops->sum_wait(c, r);
    int k = 0;
    while (begun[k].r != r || !begun[k].n) k++;
    if (now(f32_every)) begun[k].buf[begun[k].n / 2] += 1;
    begun[k].n = 0;
    return s;
}
static en_status small_spoilt(en_comm *c, const double *in, double *out, size_t n)
{
    const en_status s = right_ops->sum_f64(c, in, out, n);
    if (now(f64_every)) out[n - 1] -= 1;
    return s;
}
static en_status broadcast_spoilt(en_comm *c, void *buf, size_t bytes, int root)
{
    const en_status s = right_ops->broadcast(c, buf, bytes, root);
    if (bytes >= 4096 && now(broadcast_every)) *(float *)buf += 1;
    return s;
}

static comm_table measured(comm_work *w)
{
    static const size_t bytes[] = { 4, 4096, 100000 };                                /* 4: one float, which has no parts */
    static const int64_t channels[] = { 8, 500 }, layers[] = { 3, 2 };
    static comm_place place;
    static struct en_comm_ops ops;
    comm_table t;
    if (!right_ops) right_ops = world->ops;
    spoilt = *world;
    ops = *right_ops;
    ops.sum_f32_begin = begin, ops.sum_wait = wait_spoilt, ops.sum_f64 = small_spoilt, ops.broadcast = broadcast_spoilt;
    spoilt.ops = &ops;
    place = (comm_place){ "control", &spoilt, NULL };
    calls = planted = 0;
    w->control = &spoilt, w->places = &place, w->n_places = 1, w->sizes = bytes, w->n_sizes = 3, w->channels = channels, w->layers = layers, w->n_channels = 2;
    const en_status s = comm_measure(w, &t);
    if (s != EN_OK) {
        fputs(en_error_text(), stderr);
        en_comm_abort(world, 1);
    }
    return t;
}

static int64_t planted_anywhere(void)
{
    int64_t all[8] = { 0 }, sum = 0;
    assert_true(world->world_size <= 8);
    if (right_ops->gather(world, &planted, sizeof planted, all, 0) != EN_OK || right_ops->broadcast(world, all, sizeof all, 0) != EN_OK) en_comm_abort(world, 1);
    for (int r = 0; r < world->world_size; r++) sum += all[r];
    return sum;
}

static void a_right_communicator_has_nothing_wrong(void **state)
{
    (void)state;
    f32_every = f64_every = broadcast_every = 0;
    comm_work w = { .repetitions = 3, .row_s = 0.01 };
    comm_table t = measured(&w);
    assert_int_equal(t.wrong, 0);
    assert_int_equal(t.n_rows, 3 + 2 + 2 + 1);
    for (int i = 0; i < t.n_rows; i++) {
        const comm_row *r = &t.rows[i];
        const int64_t sums = (2 + r->count * r->series) * (int64_t)r->elems * world->world_size;
        assert_int_equal(r->count, 3);
        assert_int_equal(r->wrong, 0);
        if (r->op == COMM_SUM_F32 && r->elems >= COMM_PARTS) assert_true(r->checked > sums && !isnan(r->parts_s));
        else assert_int_equal(r->checked, sums);
        if (world->rank == 0) assert_true(r->seconds.p10 >= 0 && r->seconds.p10 <= r->seconds.median && r->seconds.median <= r->seconds.p90);
    }
    comm_table_free(&t);
}

static void each_planted_element_is_counted(void **state)
{
    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        f32_every = kind == 0 ? 5 : 0, f64_every = kind == 1 ? 7 : 0, broadcast_every = kind == 2 ? 2 : 0;
        comm_work w = { .repetitions = 4, .row_s = 0.01 };
        comm_table t = measured(&w);
        int64_t rows = 0;
        for (int i = 0; i < t.n_rows; i++) rows += t.rows[i].wrong;
        assert_true(planted_anywhere() > 0);
        assert_int_equal(rows, t.wrong);
        assert_int_equal(t.wrong, planted_anywhere());
        for (int i = 0; i < t.n_rows; i++)
            if (t.rows[i].op != (kind == 0 ? COMM_SUM_F32 : kind == 1 ? COMM_SUM_F64 : COMM_BROADCAST)) assert_int_equal(t.rows[i].wrong, 0);
        comm_table_free(&t);
    }
}

static void repetitions_fill_the_time_that_they_are_given(void **state)
{
    (void)state;
    f32_every = f64_every = broadcast_every = 0;
    comm_work w = { .row_s = 1e-9 };
    comm_table t = measured(&w);
    for (int i = 0; i < t.n_rows; i++) assert_int_equal(t.rows[i].count, 5);          /* LEAST */
    comm_table_free(&t);
    w.row_s = 0.02;
    w.slow_s = 1e-9;                                                                  /* everything is too slow: the first size alone */
    t = measured(&w);
    int sums = 0;
    for (int i = 0; i < t.n_rows; i++) sums += t.rows[i].op == COMM_SUM_F32;
    assert_int_equal(sums, 1);
    assert_int_equal(t.too_slow, 4096);
    comm_table_free(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(quantiles_lie_between_their_neighbours),
        cmocka_unit_test(bus_bytes_are_those_of_nccl_tests),
        cmocka_unit_test(a_known_latency_and_bandwidth_are_found),
        cmocka_unit_test(noise_moves_the_fit_no_further_than_itself),
        cmocka_unit_test(times_that_are_far_too_long_do_not_move_the_fit),
        cmocka_unit_test(two_regimes_are_told_apart),
        cmocka_unit_test(what_the_times_do_not_tell_is_not_made_up),
        cmocka_unit_test(sums_of_the_values_are_exact_and_known),
        cmocka_unit_test(every_kind_of_mistake_is_counted),
        cmocka_unit_test(a_right_communicator_has_nothing_wrong),
        cmocka_unit_test(each_planted_element_is_counted),
        cmocka_unit_test(repetitions_fill_the_time_that_they_are_given),
    };
    if (en_comm_open(&world) != EN_OK) {
        fputs(en_error_text(), stderr);
        return 1;
    }
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (failed) en_comm_abort(world, 1);
    en_comm_close(world);
    return 0;
}
