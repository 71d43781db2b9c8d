/* test_data_mix.c - mixup and cutmix: the draws against the moments of the Beta distribution, the pixels against the formula in double. */
#include "data_help.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "data/augment.h"
#include "kernels/rng.h"

enum { DRAWS = 40000 };
static const double alphas[] = { .067, .2, .5, 1, 5 };

/* ---- draws -------------------------------------------------------------------------------------------------------------------- */

static void within(const char *what, double alpha, double got, double want, double deviation)
{
    if (!(fabs(got - want) <= 6 * deviation / sqrt(DRAWS))) fail_msg("%s at alpha %g: %.5f, not %.5f (%.5f)", what, alpha, got, want, deviation);
}

/* share = max(l, 1-l), so (share - 1/2)^2 = (l - 1/2)^2, whose mean is Beta's variance 1/(4(2a+1)) and whose own second moment is
 * 3/(16(2a+1)(2a+3)).  Bound: 6 deviations of the mean. */
static void mixup_shares_have_betas_moments(void **state)
{
    (void)state;
    for (size_t k = 0; k < sizeof alphas / sizeof *alphas; k++) {
        const double a = alphas[k], second = 1 / (4 * (2 * a + 1)), fourth = 3 / (16 * (2 * a + 1) * (2 * a + 3));
        const en_augment mix = { .mixup = a };
        double sum = 0, sum_of_squares = 0;
        for (uint64_t s = 0; s < DRAWS; s++) {
            const en_mix m = en_mix_draw(&mix, 224, (int64_t)s % 7, 3, 1, s);
            assert_true(!m.cut && m.share >= .5f && m.share <= 1);
            const double d = ((double)m.share - .5) * ((double)m.share - .5);
            sum += d;
            sum_of_squares += d * d;
        }
        within("variance", a, sum / DRAWS, second, sqrt(fourth - second * second));
        within("fourth moment", a, sum_of_squares / DRAWS, fourth, .0625 / 2);  /* d^2 lies in [0, 1/16] */
    }
}

/* With u = 1 - l ~ Beta(a, a), the square's side is sqrt(u) of the picture's.  About a uniform centre the part of a side s that is
 * inside is s - s^2/4 in the mean, so the mean of the area is E[(sqrt(u) - u/4)^2] = E[u] - E[u^1.5]/2 + E[u^2]/16, where
 * E[u^k] = B(a+k, a)/B(a, a).  A side meets neither of its borders with probability 1 - s, so in one direction at least the square is
 * whole with probability 1 - s^2, in the mean 1 - E[u] = 1/2.  Sides are whole pixels of 8192: 3/8192 is added. */
static double beta_moment(double a, double k) { return exp(lgamma(a + k) + lgamma(2 * a) - lgamma(2 * a + k) - lgamma(a)); }

static void cutmix_areas_have_betas_moments(void **state)
{
    (void)state;
    enum { S = 8192 };
    for (size_t k = 0; k < sizeof alphas / sizeof *alphas; k++) {
        const double a = alphas[k], area = .5 - beta_moment(a, 1.5) / 2 + beta_moment(a, 2) / 16;
        const en_augment mix = { .cutmix = a };
        double taken = 0, whole = 0, x = 0;
        for (uint64_t s = 0; s < DRAWS; s++) {
            const en_mix m = en_mix_draw(&mix, S, (int64_t)s % 7, 3, 1, s);
            assert_true(m.cut && m.x0 >= 0 && m.y0 >= 0 && m.x1 <= S && m.y1 <= S && m.x0 <= m.x1 && m.y0 <= m.y1);
            assert_true(m.share == (float)(1 - (double)((m.x1 - m.x0) * (m.y1 - m.y0)) / ((double)S * S)));  /* exact: S is a power of two */
            taken += 1 - (double)m.share;
            whole += (m.x0 > 0 && m.x1 < S) || (m.y0 > 0 && m.y1 < S);
            x += (double)(m.x0 + m.x1) / (2.0 * S);
        }
        within("area", a, taken / DRAWS, area, .5 + 3. / S * sqrt(DRAWS) / 6);
        within("whole squares", a, whole / DRAWS, .5, .5 + 3. / S * sqrt(DRAWS) / 6);
        within("centre", a, x / DRAWS, .5, .3);
    }
}

static void the_share_is_the_part_of_the_area_that_stays(void **state)
{
    (void)state;
    for (int size = 1; size < 40; size++)
        for (uint64_t s = 0; s < 100; s++) {
            const en_mix m = en_mix_draw(&(en_augment){ .cutmix = 1 }, size, 0, 1, 0, s);
            int64_t stays = 0;
            for (int y = 0; y < size; y++)
                for (int x = 0; x < size; x++) stays += !(x >= m.x0 && x < m.x1 && y >= m.y0 && y < m.y1);
            assert_true(m.share == (float)((double)stays / (size * size)));
        }
}

static void draws_depend_on_seed_epoch_and_sample_alone(void **state)
{
    (void)state;
    const en_augment a = { .mixup = .8, .cutmix = 1 };
    for (int64_t pair = 0; pair < 2; pair++) {
        const en_mix m = en_mix_draw(&a, 224, pair, 7, 2, 1234), again = en_mix_draw(&a, 224, pair + 2, 7, 2, 1234);
        assert_true(m.share == again.share && m.x0 == again.x0 && m.y0 == again.y0 && m.x1 == again.x1 && m.y1 == again.y1 && m.cut == again.cut);
        assert_int_equal(m.cut, pair);                                  /* even pairs are mixed, odd ones cut */
        for (uint64_t d = 1; d < 20; d++) {
            assert_true(en_mix_draw(&a, 224, pair, 7 + d, 2, 1234).share != m.share);
            assert_true(en_mix_draw(&a, 224, pair, 7, 2 + d, 1234).share != m.share);
            assert_true(en_mix_draw(&a, 224, pair, 7, 2, 1234 + d).share != m.share);
        }
    }
    const en_mix none = en_mix_draw(&(en_augment){ .erase = 1 }, 224, 1, 7, 2, 1234);
    assert_true(none.share == 1 && !none.cut);
    assert_true(en_mix_draw(&(en_augment){ .cutmix = 1 }, 224, 0, 1, 0, 0).cut && !en_mix_draw(&(en_augment){ .mixup = 1 }, 224, 1, 1, 0, 0).cut);
    assert_true(en_augments_pairs(&(en_augment){ .mixup = .1 }) && en_augments_pairs(&(en_augment){ .cutmix = .1 }));
}

/* Beta(a, a) tends to a coin for small a, where gamma draws underflow, and to 1/2 for large a. */
static void extreme_alphas_are_drawn(void **state)
{
    (void)state;
    for (uint64_t s = 0; s < 2000; s++) {
        const float coin = en_mix_draw(&(en_augment){ .mixup = 1e-4 }, 224, 0, 1, 0, s).share;
        const float half = en_mix_draw(&(en_augment){ .mixup = 1e6 }, 224, 0, 1, 0, s).share;
        assert_true(coin >= .5f && coin <= 1 && half >= .5f && half < .505f);
        const en_mix m = en_mix_draw(&(en_augment){ .cutmix = 1e-4 }, 224, 0, 1, 0, s);
        assert_true(m.share >= 0 && m.share <= 1);
    }
}

/* ---- pixels ------------------------------------------------------------------------------------------------------------------- */

typedef struct { int n; float *a, *b; uint8_t *ba, *bb; } pair;

static pair make_pair(int size)
{
    const pair p = { .n = size * size * 3, .a = malloc((size_t)(size * size) * 12), .b = malloc((size_t)(size * size) * 12),
                     .ba = make_picture(size, size, 1), .bb = make_picture(size, size, 2) };
    en_rng rng = en_rng_at(1, EN_RNG_TEST, 0, 0, 0);
    for (int i = 0; i < p.n; i++) {
        p.a[i] = 5 * en_rng_uniform(&rng) - 2.5f;
        p.b[i] = 5 * en_rng_uniform(&rng) - 2.5f;
    }
    return p;
}

static void free_pair(pair *p) { free(p->a), free(p->b), free(p->ba), free(p->bb); }

/* own share of a pixel: 0 or 1 where cut */
static double own(const en_mix *m, int size, int i)
{
    const int x = i / 3 % size, y = i / 3 / size;
    if (!m->cut) return (double)m->share;
    return x >= m->x0 && x < m->x1 && y >= m->y0 && y < m->y1 ? 0 : 1;
}

/* Floats: two products and their sum, each rounded once (1 - share is exact).  Bytes: the same with 1/2 added, then truncated, so the
 * nearest but for what three roundings below 2^8 move.  Cut pixels are exact. */
static void mixed_as_in_double(const char *what, const en_mix *m, int size, int i, double x, double y, double got, bool rounded)
{
    const double s = own(m, size, i), want = s * x + (1 - s) * y, u = 0x1p-24;
    const double bound = m->cut ? 0 : rounded ? .5 + 4 * 256 * u : u * (fabs(s * x) + fabs((1 - s) * y) + fabs(want)) * (1 + 4 * u);
    if (!(fabs(got - want) <= bound)) fail_msg("%s, size %d, value %d: %.9g, not %.9g +- %.2g", what, size, i, got, want, bound);
}

static void pairs_are_mixed_as_the_formula_says(void **state)
{
    (void)state;
    static const int sizes[] = { 1, 2, 7, 33, 96 };
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++)
        for (uint64_t s = 0; s < 60; s++) {
            const int size = sizes[k];
            const en_augment a = { .mixup = .4, .cutmix = 1 };
            const en_mix one = en_mix_draw(&a, size, (int64_t)s, 1, 0, 2 * s), two = en_mix_draw(&a, size, (int64_t)s, 1, 0, 2 * s + 1);
            pair was = make_pair(size), now = make_pair(size);
            en_mix_floats(&one, &two, size, now.a, now.b);
            en_mix_bytes(&one, &two, size, now.ba, now.bb);
            for (int i = 0; i < was.n; i++) {
                mixed_as_in_double("floats, first", &one, size, i, (double)was.a[i], (double)was.b[i], (double)now.a[i], false);
                mixed_as_in_double("floats, second", &two, size, i, (double)was.b[i], (double)was.a[i], (double)now.b[i], false);
                mixed_as_in_double("bytes, first", &one, size, i, was.ba[i], was.bb[i], now.ba[i], true);
                mixed_as_in_double("bytes, second", &two, size, i, was.bb[i], was.ba[i], now.bb[i], true);
            }
            free_pair(&was);
            free_pair(&now);
        }
}

static void mixing_equal_pictures_changes_no_byte(void **state)
{
    (void)state;
    enum { S = 64 };
    uint8_t *a = make_picture(S, S, 3), *b = make_picture(S, S, 3), *was = make_picture(S, S, 3);
    for (uint64_t s = 0; s < 100; s++) {
        const en_augment both = { .mixup = .4, .cutmix = 1 };
        const en_mix one = en_mix_draw(&both, S, (int64_t)s, 1, 0, 2 * s), two = en_mix_draw(&both, S, (int64_t)s, 1, 0, 2 * s + 1);
        en_mix_bytes(&one, &two, S, a, b);
        assert_memory_equal(a, was, S * S * 3);
        assert_memory_equal(b, was, S * S * 3);
    }
    free(a);
    free(b);
    free(was);
}

/* ---- information, no claim ------------------------------------------------------------------------------------------------------- */

static void mixing_is_timed(void **state)
{
    (void)state;
    enum { S = 224, RUNS = 200 };
    pair p = make_pair(S);
    for (int kind = 0; kind < 4; kind++) {
        const en_augment a = { .mixup = kind % 2 ? 0 : .2, .cutmix = kind % 2 ? 1 : 0 };
        double seconds = 0;
        for (uint64_t s = 0; s < RUNS; s++) {
            struct timespec from, to;
            clock_gettime(CLOCK_THREAD_CPUTIME_ID, &from);
            const en_mix one = en_mix_draw(&a, S, 0, 1, 0, 2 * s), two = en_mix_draw(&a, S, 0, 1, 0, 2 * s + 1);
            if (kind < 2) en_mix_floats(&one, &two, S, p.a, p.b);
            else en_mix_bytes(&one, &two, S, p.ba, p.bb);
            clock_gettime(CLOCK_THREAD_CPUTIME_ID, &to);
            seconds += (double)(to.tv_sec - from.tv_sec) + 1e-9 * (double)(to.tv_nsec - from.tv_nsec);
        }
        print_message("%s of %s: %.1f us a picture of %d x %d\n", kind % 2 ? "cutmix" : "mixup", kind < 2 ? "floats" : "bytes",
                      seconds / RUNS / 2 * 1e6, S, S);
    }
    free_pair(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mixup_shares_have_betas_moments),
        cmocka_unit_test(cutmix_areas_have_betas_moments),
        cmocka_unit_test(the_share_is_the_part_of_the_area_that_stays),
        cmocka_unit_test(draws_depend_on_seed_epoch_and_sample_alone),
        cmocka_unit_test(extreme_alphas_are_drawn),
        cmocka_unit_test(pairs_are_mixed_as_the_formula_says),
        cmocka_unit_test(mixing_equal_pictures_changes_no_byte),
        cmocka_unit_test(mixing_is_timed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
