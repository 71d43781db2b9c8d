/* test_account.c - every second has one cause: made-up steps whose causes are known, and ranks that are played. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "trainer/account.h"

#define NEAR(a, b) assert_true((a) - (b) < 1e-12 && (b) - (a) < 1e-12)

static double sum(const en_account *a)
{
    double s = 0;
    for (int i = 0; i < EN_COSTS; i++) s += a->s[i];
    return s;
}

/* A processor: nothing is fetched ahead, so all that the host waited for images was idle time. */
static void causes_add_up_to_the_wall_time(void **state)
{
    (void)state;
    const en_step_report r = { .forward_s = 2, .backward_s = 4, .bn_forward_s = 0.5, .bn_backward_s = 1, .bn_known = true, .grad_comm_s = 0.25, .optimizer_s = 0.5,
                               .data_s = 1, .step_s = 8 };
    en_account a = { 0 };
    en_account_step(&a, &r);
    en_account_step(&a, &r);
    en_account_spent(&a, EN_COST_CHECKPOINT, 3);
    en_account_spent(&a, EN_COST_EVALUATION, 5);
    en_account_spent(&a, EN_COST_STAGE, 0.75);
    en_account_wall(&a, 10);
    en_account_wall(&a, 15);
    en_account_close(&a);
    NEAR(sum(&a), 25);
    const double expected[EN_COSTS] = { 2, 3, 1, 6, 2, 0.5, 1, 3, 5, 0.75, 0.75 };
    for (int i = 0; i < EN_COSTS; i++) NEAR(a.s[i], expected[i]);
}

/* A device: the next images are fetched while it works, and only what it stood idle for counts. */
static void images_fetched_beside_the_work_cost_nothing(void **state)
{
    (void)state;
    en_account a = { 0 };
    en_account_step(&a, &(en_step_report){ .forward_s = 2, .backward_s = 4, .data_s = 5, .step_s = 6.5 });
    NEAR(a.s[EN_COST_DATA], 0.5);
    en_account_step(&a, &(en_step_report){ .forward_s = 2, .backward_s = 4, .data_s = 5, .step_s = 5 });      /* marks and clock disagree */
    NEAR(a.s[EN_COST_DATA], 0.5);
    en_account_wall(&a, 11.5);
    en_account_close(&a);
    NEAR(sum(&a), 11.5);
    NEAR(a.s[EN_COST_OTHER], -1);
}

/* Sums that are timed in one step of many: their share there is everybody's, of steps with other images too. */
static void sums_timed_now_and_then_stand_for_all(void **state)
{
    (void)state;
    en_account a = { 0 };
    for (int i = 0; i < 9; i++) en_account_step(&a, &(en_step_report){ .forward_s = 1, .backward_s = 2, .step_s = 3 });
    en_account_step(&a, &(en_step_report){ .forward_s = 2, .backward_s = 4, .bn_forward_s = 0.5, .bn_backward_s = 0.25, .bn_known = true, .step_s = 6 });
    en_account_wall(&a, 33);
    en_account_close(&a);
    NEAR(a.s[EN_COST_BN_FORWARD], 11 * 0.25);
    NEAR(a.s[EN_COST_FORWARD], 11 * 0.75);
    NEAR(a.s[EN_COST_BN_BACKWARD], 22 * 0.0625);
    NEAR(sum(&a), 33);
    en_account none = { 0 };                                              /* never timed: no share */
    en_account_step(&none, &(en_step_report){ .forward_s = 1, .step_s = 1 });
    en_account_close(&none);
    NEAR(none.s[EN_COST_FORWARD], 1);
    NEAR(none.s[EN_COST_BN_FORWARD], 0);
}

enum { RANKS = 3 };
static en_status play_gather(en_comm *c, const void *in, size_t bytes, void *out, int root)
{
    assert_int_equal(root, 0);
    for (int r = 0; r < c->world_size; r++) {
        en_account a;
        assert_int_equal(bytes, sizeof a);
        memcpy(&a, in, bytes);
        a.s[EN_COST_FORWARD] *= r + 1;                                    /* rank 2 is three times as long about it */
        a.wall_s += r;
        memcpy((char *)out + (size_t)r * bytes, &a, bytes);
    }
    return EN_OK;
}
static en_status play_sum(en_comm *c, const double *in, double *out, size_t n)
{
    (void)c;
    memmove(out, in, n * sizeof *out);
    return EN_OK;
}

static void the_spread_is_over_ranks(void **state)
{
    (void)state;
    static const struct en_comm_ops ops = { .gather = play_gather, .sum_f64 = play_sum };
    en_comm c = { .ops = &ops, .world_size = RANKS };
    en_account a = { 0 };
    en_account_report r;
    en_account_step(&a, &(en_step_report){ .forward_s = 2, .step_s = 10 });
    en_account_wall(&a, 10);
    assert_int_equal(en_account_gather(&c, &a, &r), EN_OK);
    assert_int_equal(r.steps, 1);
    assert_int_equal(r.ranks, RANKS);
    NEAR(r.of[EN_COST_FORWARD].mean, 4);
    NEAR(r.of[EN_COST_FORWARD].low, 2);
    NEAR(r.of[EN_COST_FORWARD].high, 6);
    NEAR(r.wall.mean, 11);
    NEAR(r.of[EN_COST_OTHER].mean, 8);
    char text[200];
    en_account_text(&r, text, sizeof text);
    assert_string_equal(text, "other 72.7% (8 to 8 s), forward 36.4% (2 to 6 s)");
    en_account_text(&r, text, 20);                                        /* cut, not overrun */
    assert_string_equal(text, "other 72.7% (8 to 8");
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(causes_add_up_to_the_wall_time), cmocka_unit_test(images_fetched_beside_the_work_cost_nothing),
                                        cmocka_unit_test(sums_timed_now_and_then_stand_for_all), cmocka_unit_test(the_spread_is_over_ranks) };
    return cmocka_run_group_tests_name("account", tests, NULL, NULL);
}
