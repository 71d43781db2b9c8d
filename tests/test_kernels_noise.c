/* test_kernels_noise.c - the masks of dropout and stochastic depth, and what a rank has to say.
 *
 * A mask is a function of counters (kernels/rng.h), so there is no tolerance: every backend writes the bits that the
 * definition in kernels.h names, drawn here from en_rng_at one value at a time. */
#include "fixture.h"

static en_now now_make(uint64_t seed, int64_t step, int64_t first_image)
{
    return (en_now){ .seed = seed, .step = step, .first = first_image, .lr = 0.1f, .ema_decay = 0.9f };
}

static float drawn(const en_now *now, en_rng_purpose purpose, int64_t image, int64_t layer, int64_t skip)
{
    en_rng r = en_rng_at(now->seed, purpose, (uint64_t)now->step, (uint64_t)(now->first + image), (uint32_t)layer);
    while (skip--) (void)en_rng_u32(&r);
    return en_rng_uniform(&r);
}

static void check_bits(const variant *v, const char *what, const float *got, const float *want, int64_t n, int64_t width)
{
    for (int64_t i = 0; i < n; i++)
        if (memcmp(got + i, want + i, sizeof *got)) {
            failed("[%s] %s at (%d,%d): got %.9g want %.9g", v->name, what, (int)(i / width), (int)(i % width), (double)got[i], (double)want[i]);
            return;
        }
}

/* Of n draws a fraction `keep` is kept, within five standard deviations and the two that rare events may add. */
static void check_share(const char *what, const float *mask, int64_t n, float keep)
{
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++) kept += mask[i] != 0;
    if (fabs((double)kept - (double)n * (double)keep) > 2 + 5 * sqrt((double)n * (double)keep * (1 - (double)keep)))
        failed("%s: %d of %d kept at %g", what, (int)kept, (int)n, (double)keep);
}

static void drop_path_case(en_now now, const float *keep, int64_t layers, int64_t n)
{
    if (!problem(false, "drop path layers%d n%d seed%llx step%lld first%lld", (int)layers, (int)n, (unsigned long long)now.seed, (long long)now.step,
                 (long long)now.first)) return;
    float *want = mem_f(layers * n);
    for (int64_t l = 0; l < layers; l++) {
        for (int64_t i = 0; i < n; i++)
            want[l * n + i] = keep[l] < 1 ? drawn(&now, EN_RNG_DROP_PATH, i, l, 0) < keep[l] ? 1 / keep[l] : 0.f : 1.f;
        if (n >= 100) check_share("drop path", want + l * n, n, keep[l]);
    }
    for (variant *v = first(layers * n); v; v = next(v)) {
        float *mask = OUT_F(v, layers * n);
        RUN(v, v->be->ops->drop_path_masks(v->be, up(v, &now, sizeof now), layers, n, UP_F(v, keep, layers), mask));
        check_bits(v, "mask", DOWN_F(v, mask, layers * n), want, layers * n, n);
    }
}

static void dropout_case(en_now now, float keep, int64_t n, int64_t c)
{
    if (!problem(false, "dropout keep%g n%d c%d seed%llx step%lld first%lld", (double)keep, (int)n, (int)c, (unsigned long long)now.seed, (long long)now.step,
                 (long long)now.first)) return;
    const int64_t cp = phys(c);
    float *want = mem_f(n * cp);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < c; j++) want[i * cp + j] = drawn(&now, EN_RNG_DROPOUT, i, 0, j) < keep ? 1 / keep : 0.f;
    if (n * c >= 100 && c == cp) check_share("dropout", want, n * c, keep);
    for (variant *v = first(n * cp); v; v = next(v)) {
        float *mask = OUT_F(v, n * cp);
        RUN(v, v->be->ops->dropout_mask(v->be, up(v, &now, sizeof now), n, cp, c, keep, mask));
        check_bits(v, "mask", DOWN_F(v, mask, n * cp), want, n * cp, cp);
    }
}

/* 40 bits of place, 32 of step, 64 of seed: the high halves count too. */
static const struct { uint64_t seed; int64_t step, first; } places[] = {
    { 0, 0, 0 }, { 1, 0, 0 }, { 0xfedcba9876543210ull, 17, 4096 }, { 42, 4000000000, 3 }, { 42, 7, ((int64_t)1 << 33) + 5 }, { 42, 7, ((int64_t)1 << 32) - 3 } };
enum { PLACES = sizeof places / sizeof *places };

static void stochastic_depth_is_the_stated_draw_to_the_bit(void **state)
{
    (void)state;
    static const float keep[] = { 1.f, 0.8f, 0.5f, 0.999f, 0.1f, 0x1p-24f, 0.9875f };
    for (int k = 0; k < PLACES; k++) {
        const en_now now = now_make(places[k].seed, places[k].step, places[k].first);
        drop_path_case(now, keep, 7, (int[]){ 1, 5, 113 }[k % 3]);
        drop_path_case(now, keep + 1, 1, 300);
    }
    drop_path_case(now_make(1, 2, 3), keep, 7, 0);
    drop_path_case(now_make(1, 2, 3), keep, 0, 5);
    verdict();
}

static void dropout_is_the_stated_draw_to_the_bit(void **state)
{
    (void)state;
    for (int k = 0; k < PLACES; k++) {
        const en_now now = now_make(places[k].seed, places[k].step, places[k].first);
        dropout_case(now, (float[]){ 0.8f, 0.5f, 0.3f }[k % 3], 1 + k, (int[]){ 1280, 48, 8, 17, 1, 257 }[k]);
    }
    dropout_case(now_make(9, 9, 9), 1.f, 2, 64);                /* nothing dropped, nothing scaled */
    dropout_case(now_make(9, 9, 9), 0.8f, 0, 64);
    verdict();
}

/* The place in the global batch decides, not the pass in which an image comes. */
static void a_batch_in_pieces_has_the_masks_of_the_whole(void **state)
{
    (void)state;
    enum { N = 11, C = 32, LAYERS = 3, CUT = 4 };
    static const float keep[LAYERS] = { 0.9f, 0.5f, 0.2f };
    if (problem(false, "pieces"))
        for (variant *v = first(N * C); v; v = next(v)) {
            const en_now whole = now_make(5, 6, 70), rest = now_make(5, 6, 70 + CUT);
            const en_now *whole_dev = up(v, &whole, sizeof whole), *rest_dev = up(v, &rest, sizeof rest);
            const float *keep_dev = UP_F(v, keep, LAYERS);
            float *all = OUT_F(v, N * C), *some = OUT_F(v, (N - CUT) * C), *paths = OUT_F(v, LAYERS * N), *part = OUT_F(v, LAYERS * (N - CUT));
            RUN(v, v->be->ops->dropout_mask(v->be, whole_dev, N, C, C, 0.6f, all));
            RUN(v, v->be->ops->dropout_mask(v->be, rest_dev, N - CUT, C, C, 0.6f, some));
            check_bits(v, "dropout", DOWN_F(v, some, (N - CUT) * C), DOWN_F(v, all, N * C) + CUT * C, (N - CUT) * C, C);
            RUN(v, v->be->ops->drop_path_masks(v->be, whole_dev, LAYERS, N, keep_dev, paths));
            RUN(v, v->be->ops->drop_path_masks(v->be, rest_dev, LAYERS, N - CUT, keep_dev, part));
            const float *p = DOWN_F(v, paths, LAYERS * N), *q = DOWN_F(v, part, LAYERS * (N - CUT));
            for (int l = 0; l < LAYERS; l++) check_bits(v, "drop path", q + l * (N - CUT), p + l * N + CUT, N - CUT, N - CUT);
        }
    verdict();
}

static void a_failed_input_is_added_to_the_tally_and_nothing_else(void **state)
{
    (void)state;
    if (problem(false, "note"))
        for (variant *v = first(0); v; v = next(v)) {
            double tally[EN_TALLY];
            for (int i = 0; i < EN_TALLY; i++) tally[i] = 10.5 + i;
            double *dev = both(v, tally, sizeof tally);
            en_now now[2] = { now_make(1, 2, 3), now_make(1, 2, 3) };
            now[1].failed = 1;
            for (int fails = 0; fails < 2; fails++) {
                RUN(v, v->be->ops->note(v->be, up(v, &now[fails], sizeof *now), dev));
                tally[EN_TALLY_FAILED] += fails;
                check_same(v, "tally", DOWN_D(v, dev, EN_TALLY), tally, sizeof tally);
            }
        }
    verdict();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stochastic_depth_is_the_stated_draw_to_the_bit),
        cmocka_unit_test(dropout_is_the_stated_draw_to_the_bit),
        cmocka_unit_test(a_batch_in_pieces_has_the_masks_of_the_whole),
        cmocka_unit_test(a_failed_input_is_added_to_the_tally_and_nothing_else),
    };
    return cmocka_run_group_tests(tests, open_variants, close_variants);
}
