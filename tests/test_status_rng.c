/* test_status_rng.c - the two contracts under everything: how functions fail, and where random numbers come from. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "kernels/rng.h"
#include "kernels/status.h"

/* ---- status --------------------------------------------------------------------------------------------------------- */

static en_status innermost(int code) { EN_REQUIRE(code == EN_OK, (en_status)code, "%s is not an image (%d zero bytes)", "7.jpg", 4096); return EN_OK; }
static en_status middle(int code)    { EN_TRY(innermost(code), "decoding sample %d", 7); return EN_OK; }

static en_status owner(int code, bool *closed)
{
    en_status status = EN_OK;
    EN_TRY_OUT(middle(code), "opening the training split");
    EN_REQUIRE_OUT(code == EN_OK, EN_EINVAL, "unreachable");
out:
    *closed = true;
    return status;
}

static void a_success_leaves_no_trace(void **state)
{
    (void)state;
    bool closed = false;
    en_error_clear();
    assert_int_equal(owner(EN_OK, &closed), EN_OK);
    assert_true(closed);
    assert_string_equal(en_error_text(), "");
    assert_string_equal(en_error_message(), "");
}

static void every_frame_adds_one_line_and_keeps_the_code(void **state)
{
    (void)state;
    bool closed = false;
    en_error_clear();
    assert_int_equal(owner(EN_EDATA, &closed), EN_EDATA);
    assert_true(closed);
    assert_string_equal(en_error_message(), "7.jpg is not an image (4096 zero bytes)");

    /* innermost first; message, file without its folder, line, function; later frames start with "while" */
    char text[4096], *line, *rest = text;
    snprintf(text, sizeof text, "%s", en_error_text());
    static const char *const says[] = { "7.jpg is not an image (4096 zero bytes) (test_status_rng.c:", "    while decoding sample 7 (test_status_rng.c:",
                                        "    while opening the training split (test_status_rng.c:" };
    static const char *const where[] = { " innermost)", " middle)", " owner)" };
    for (int i = 0; i < 3; i++) {
        line = strsep(&rest, "\n");
        assert_non_null(line);
        assert_memory_equal(line, says[i], strlen(says[i]));
        assert_string_equal(line + strlen(line) - strlen(where[i]), where[i]);
    }
    assert_string_equal(rest, "");
    en_error_clear();
    assert_string_equal(en_error_text(), "");
}

static void a_trace_that_is_too_long_keeps_its_innermost_frames(void **state)
{
    (void)state;
    char longest[3000];
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    en_error_clear();
    en_raise(EN_EIO, "a.c", 1, "f", "the cause");
    for (int i = 0; i < 100; i++) assert_int_equal(en_raise(EN_EIO, "b.c", 2, "g", "%s", longest), EN_EIO);
    assert_memory_equal(en_error_text(), "the cause (a.c:1 f)\n", 20);
    assert_string_equal(en_error_message(), "the cause");
    assert_true(strlen(en_error_text()) < 8192);
    en_error_clear();
}

static void *raise_elsewhere(void *arg)
{
    en_raise(EN_EIO, "worker.c", 3, "work", "the worker's own trouble");
    *(bool *)arg = strstr(en_error_text(), "worker's own") != NULL;
    return NULL;
}

static void each_thread_has_its_own_trace(void **state)
{
    (void)state;
    bool seen = false;
    pthread_t t;
    en_error_clear();
    assert_int_equal(pthread_create(&t, NULL, raise_elsewhere, &seen), 0);
    pthread_join(t, NULL);
    assert_true(seen);
    assert_string_equal(en_error_text(), "");
}

static void codes_have_names_and_the_documented_exit_codes(void **state)
{
    (void)state;
    static const struct { en_status s; int exit_code; } table[] = {
        { EN_OK, 0 }, { EN_EINVAL, 1 }, { EN_ENOMEM, 1 }, { EN_EIO, 1 }, { EN_ENOTSUP, 1 }, { EN_EUSAGE, 2 },
        { EN_EDATA, 3 }, { EN_EDIVERGED, 4 }, { EN_EPEER, 5 }, { EN_ESTOPPED, 75 } };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        assert_int_equal(en_status_exit_code(table[i].s), table[i].exit_code);
        assert_true(strlen(en_status_name(table[i].s)) > 1);
        for (size_t j = 0; j < i; j++) assert_string_not_equal(en_status_name(table[i].s), en_status_name(table[j].s));
    }
    assert_non_null(en_status_name((en_status)999));
    assert_non_null(en_status_name((en_status)-1));
    assert_int_not_equal(en_status_exit_code((en_status)999), 0);
}

/* ---- randomness ----------------------------------------------------------------------------------------------------- */

/* Random123 1.14, tests/kat_vectors: "philox4x32 10". */
static void philox_gives_the_published_answers(void **state)
{
    (void)state;
    static const struct { uint32_t counter[4], key[2], out[4]; } kat[] = {
        { { 0, 0, 0, 0 }, { 0, 0 }, { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 } },
        { { 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff }, { 0xffffffff, 0xffffffff }, { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd } },
        { { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344 }, { 0xa4093822, 0x299f31d0 }, { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 } } };
    for (size_t i = 0; i < 3; i++) {
        uint32_t out[4];
        en_philox(kat[i].counter, kat[i].key, out);
        assert_memory_equal(out, kat[i].out, sizeof out);
    }
}

/* The counter's layout is part of every checkpoint's meaning: block, sample, (sample high, purpose, layer), when. */
static void a_stream_is_the_blocks_of_its_documented_counter(void **state)
{
    (void)state;
    const uint64_t seed = 0x0123456789abcdefull, sample = 0xabdeadbeefull;
    en_rng r = en_rng_at(seed, EN_RNG_DROP_PATH, 77, sample, 0x1234);
    const uint32_t key[2] = { 0x89abcdef, 0x01234567 };
    for (uint32_t block = 0; block < 5; block++) {
        const uint32_t counter[4] = { block, 0xdeadbeef, 0xabu << 24 | (uint32_t)EN_RNG_DROP_PATH << 16 | 0x1234, 77 };
        uint32_t out[4];
        en_philox(counter, key, out);
        for (int i = 0; i < 4; i++) assert_int_equal(en_rng_u32(&r), out[i]);
    }
}

static void every_coordinate_changes_the_stream(void **state)
{
    (void)state;
    en_rng base = en_rng_at(1, EN_RNG_CROP, 2, 3, 4);
    const uint32_t first = en_rng_u32(&base);
    en_rng others[] = { en_rng_at(2, EN_RNG_CROP, 2, 3, 4), en_rng_at(1ull << 32 | 1, EN_RNG_CROP, 2, 3, 4), en_rng_at(1, EN_RNG_ORDER, 2, 3, 4),
                        en_rng_at(1, EN_RNG_CROP, 3, 3, 4), en_rng_at(1, EN_RNG_CROP, 2, 4, 4), en_rng_at(1, EN_RNG_CROP, 2, 3 + (1ull << 32), 4),
                        en_rng_at(1, EN_RNG_CROP, 2, 3, 5) };
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) assert_int_not_equal(en_rng_u32(&others[i]), first);
}

/* 64 cells, N = 2^18 draws: Pearson's chi^2 with 63 degrees of freedom has mean 63, deviation sqrt(126) = 11.2;
 * 63 + 6*11.2 = 130 is passed by chance about once in 1e6 seeds, and the seed is fixed. */
enum { DRAWS = 1 << 18, CELLS = 64 };
static double chi_square(const int *count)
{
    double chi = 0, want = (double)DRAWS / CELLS;
    for (int i = 0; i < CELLS; i++) chi += (count[i] - want) * (count[i] - want) / want;
    return chi;
}

static void uniform_is_uniform_on_the_half_open_interval(void **state)
{
    (void)state;
    int count[CELLS] = { 0 }, pairs[CELLS] = { 0 };
    en_rng r = en_rng_at(11, EN_RNG_TEST, 0, 0, 0);
    double sum = 0;
    for (int i = 0, last = 0; i < DRAWS; i++) {
        const float x = en_rng_uniform(&r);
        assert_true(x >= 0.f && x < 1.f);
        assert_true(x * 0x1p24f == (float)(uint32_t)(x * 0x1p24f));                 /* 24 bits exactly */
        count[(int)(x * CELLS)]++;
        pairs[last * 8 + (int)(x * 8)]++;                                           /* neighbours are independent */
        last = (int)(x * 8);
        sum += x;
    }
    assert_true(chi_square(count) < 130);
    assert_true(chi_square(pairs) < 130);
    assert_true(fabs(sum / DRAWS - 0.5) < 5 * sqrt(1.0 / 12 / DRAWS));              /* five deviations of a mean */
}

/* n = 3*2^30: word*n >> 32 alone would give the first of every three values twice as often (2 of 4 words). */
static void below_is_unbiased_even_where_a_modulus_would_not_be(void **state)
{
    (void)state;
    en_rng r = en_rng_at(12, EN_RNG_TEST, 0, 0, 0);
    int residue[3] = { 0 }, count[CELLS] = { 0 };
    for (int i = 0; i < DRAWS; i++) {
        const uint32_t x = en_rng_below(&r, 3u << 30);
        assert_true(x < 3u << 30);
        residue[x % 3]++;
        count[en_rng_below(&r, CELLS)]++;
    }
    for (int k = 0; k < 3; k++) assert_true(fabs(residue[k] - DRAWS / 3.0) < 5 * sqrt(DRAWS * 2.0 / 9));
    assert_true(chi_square(count) < 130);
    for (int i = 0; i < 100; i++) assert_int_equal(en_rng_below(&r, 1), 0);
    bool seen[7] = { false };
    for (int i = 0; i < 1000; i++) seen[en_rng_below(&r, 7)] = true;
    for (int k = 0; k < 7; k++) assert_true(seen[k]);
}

/* Moments of N(0,1): E x = 0, E x^2 = 1, E x^3 = 0, E x^4 = 3, with variances 1, 2, 15, 96 of the summands; and the
 * distribution function at three points. */
static void normal_has_the_moments_and_tails_of_a_normal(void **state)
{
    (void)state;
    en_rng r = en_rng_at(13, EN_RNG_TEST, 0, 0, 0);
    double m[5] = { 0 }, below[3] = { 0 }, lag = 0, last = 0;
    static const double at[3] = { -2, 0, 1 }, want[3] = { 0.022750, 0.5, 0.841345 };
    for (int i = 0; i < DRAWS; i++) {
        const double x = en_rng_normal(&r);
        assert_true(isfinite(x));
        for (int k = 1; k <= 4; k++) m[k] += pow(x, k) / DRAWS;
        for (int k = 0; k < 3; k++) below[k] += (x < at[k]) / (double)DRAWS;
        lag += x * last / DRAWS;
        last = x;
    }
    const double five = 5 / sqrt(DRAWS);
    assert_true(fabs(m[1]) < five && fabs(m[2] - 1) < five * sqrt(2) && fabs(m[3]) < five * sqrt(15) && fabs(m[4] - 3) < five * sqrt(96));
    assert_true(fabs(lag) < five);
    for (int k = 0; k < 3; k++) assert_true(fabs(below[k] - want[k]) < five * 0.5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_success_leaves_no_trace),
        cmocka_unit_test(every_frame_adds_one_line_and_keeps_the_code),
        cmocka_unit_test(a_trace_that_is_too_long_keeps_its_innermost_frames),
        cmocka_unit_test(each_thread_has_its_own_trace),
        cmocka_unit_test(codes_have_names_and_the_documented_exit_codes),
        cmocka_unit_test(philox_gives_the_published_answers),
        cmocka_unit_test(a_stream_is_the_blocks_of_its_documented_counter),
        cmocka_unit_test(every_coordinate_changes_the_stream),
        cmocka_unit_test(uniform_is_uniform_on_the_half_open_interval),
        cmocka_unit_test(below_is_unbiased_even_where_a_modulus_would_not_be),
        cmocka_unit_test(normal_has_the_moments_and_tails_of_a_normal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
