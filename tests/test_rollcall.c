/* test_rollcall.c - what the ranks tell each other once a step, and when one of them is called slow.
 *
 * Other ranks are played: a communicator whose sum adds what they would have said. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "trainer/rollcall.h"

enum { RANKS = 4 };
static double others[EN_ROLL_WORDS + RANKS];

static en_status play_others(en_comm *c, const double *in, double *out, size_t n)
{
    assert_int_equal(n, EN_ROLL_WORDS + c->world_size);
    for (size_t i = 0; i < n; i++) out[i] = in[i] + others[i];
    return EN_OK;
}

static en_roll roll(int ranks, int rank, en_answer mine, const double *work)
{
    static const struct en_comm_ops ops = { .sum_f64 = play_others };
    en_comm c = { .ops = &ops, .rank = rank, .world_size = ranks };
    double room[2 * (EN_ROLL_WORDS + RANKS)];
    en_roll out;
    memset(room, 0x7f, sizeof room);                             /* what was there before does not count */
    for (int r = 0; r < ranks; r++) others[EN_ROLL_WORDS + r] = r == rank ? 0 : work[r];
    mine.work_s = work[rank];
    assert_int_equal(en_rollcall(&c, &mine, room, &out), EN_OK);
    return out;
}

static void what_one_says_all_hear(void **state)
{
    (void)state;
    const double work[RANKS] = { 0 };
    memset(others, 0, sizeof others);
    en_roll r = roll(4, 1, (en_answer){ 0 }, work);
    assert_true(!r.stop && !r.writing && !r.save_again);
    r = roll(4, 1, (en_answer){ .stop = true }, work);
    assert_true(r.stop && !r.writing && !r.save_again);
    others[1] = 1;
    r = roll(4, 1, (en_answer){ .save_again = true }, work);
    assert_true(!r.stop && r.writing && r.save_again);
    others[0] = 3;
    r = roll(4, 1, (en_answer){ 0 }, work);
    assert_true(r.stop && r.writing && !r.save_again);
}

static void the_slowest_is_held_against_the_median(void **state)
{
    (void)state;
    memset(others, 0, sizeof others);
    static const struct { int ranks; double work[RANKS]; int slowest; double lag; } cases[] = {
        { 1, { 5 }, 0, 0 }, { 2, { 1, 3 }, 1, 2 }, { 2, { 3, 3 }, 0, 0 }, { 3, { 7, 1, 2 }, 0, 5 }, { 4, { 1, 2, 4, 8 }, 3, 6 }, { 4, { 8, 8, 1, 1 }, 0, 7 } };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++)
        for (int rank = 0; rank < cases[k].ranks; rank++) {
            const en_roll r = roll(cases[k].ranks, rank, (en_answer){ 0 }, cases[k].work);
            assert_int_equal(r.slowest, cases[k].slowest);
            assert_true(r.straggler_s == cases[k].lag);
        }
}

/* Feeds `n` steps; counts what is said. */
static int feed(en_straggler_watch *w, int n, int slowest, double lag, int *rank)
{
    int said = 0;
    double lag_s, step_s;
    for (int i = 0; i < n; i++)
        if (en_straggler_step(w, &(en_roll){ .slowest = slowest, .straggler_s = lag }, 1, rank, &lag_s, &step_s)) {
            said++;
            assert_true(lag_s > 0.9 * lag && lag_s < 1.1 * lag && step_s > 0.99 && step_s < 1.01);
        }
    return said;
}

static void a_straggler_is_said_once(void **state)
{
    (void)state;
    enum { W = EN_STRAGGLER_WINDOW, S = EN_STRAGGLER_SETTLING };
    int rank = -1;
    en_straggler_watch w = { 0 };
    assert_int_equal(feed(&w, S + W - 1, 2, 0.3, &rank), 0);     /* not before a whole window, the first steps apart */
    assert_int_equal(feed(&w, 1, 2, 0.3, &rank), 1);
    assert_int_equal(rank, 2);
    assert_int_equal(feed(&w, 5 * W, 2, 0.3, &rank), 0);
    assert_int_equal(feed(&w, W, 3, 0.3, &rank), 1);             /* another one */
    assert_int_equal(rank, 3);

    w = (en_straggler_watch){ 0 };
    assert_int_equal(feed(&w, S + 3 * W, 2, 0.05, &rank), 0);    /* a twentieth of the step is nobody's fault */
    w = (en_straggler_watch){ 0 };
    feed(&w, S, 0, 0.3, &rank);
    for (int i = 0; i < 2 * W; i++) assert_int_equal(feed(&w, 1, i % 3, 0.3, &rank), 0);     /* each of them now and then */
    w = (en_straggler_watch){ 0 };
    feed(&w, S, 0, 0.3, &rank);
    int said = 0;
    for (int i = 0; i < W; i++) said += feed(&w, 1, i % 20 == 7 ? 1 : 0, 0.3, &rank);        /* nineteen of twenty */
    assert_int_equal(said, 1);
    assert_int_equal(rank, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_one_says_all_hear),
        cmocka_unit_test(the_slowest_is_held_against_the_median),
        cmocka_unit_test(a_straggler_is_said_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
