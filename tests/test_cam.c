/* test_cam.c - class-activation maps: the sums, the enlarging, the colours. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>

#include "trainer/cam.h"

static void the_map_is_the_classifier_at_every_place(void **state)
{
    (void)state;
    static const float features[2 * 3] = { 1, 2, 3, 4, 5, -6 }, weights[3] = { 2, -1, 0.5f };
    float map[2];
    en_cam_map(2, 3, features, weights, map);                    /* small integers and halves: exact */
    assert_true(map[0] == 1.5f && map[1] == 0.f);
}

/* A plane a + b*y + c*x over the centres of the cells is the same plane over the pixels between the outermost centres, and level beyond. */
static void enlarging_keeps_planes(void **state)
{
    (void)state;
    enum { H = 3, W = 5, SIDE = 60 };
    float map[H * W], out[SIDE * SIDE];
    for (int y = 0; y < H; y++)
        for (int x = 0; x < W; x++) map[y * W + x] = (float)(1 + 2 * y - 3 * x);
    en_cam_enlarge(H, W, map, SIDE, out);
    for (int i = 0; i < SIDE; i++)
        for (int j = 0; j < SIDE; j++) {
            const double y = fmin(fmax((i + 0.5) * H / SIDE - 0.5, 0), H - 1), x = fmin(fmax((j + 0.5) * W / SIDE - 0.5, 0), W - 1);
            if (!(fabs(out[i * SIDE + j] - (1 + 2 * y - 3 * x)) < 1e-5))      /* four roundings of values below 16: 4e-6 at most */
                fail_msg("pixel %d,%d is %g instead of %g", i, j, (double)out[i * SIDE + j], 1 + 2 * y - 3 * x);
        }
}

static void cells_of_whole_pixels_stay(void **state)
{
    (void)state;
    static const float map[4] = { 1, -2, 3, 7 };
    float out[4], all[9];
    en_cam_enlarge(2, 2, map, 2, out);
    assert_memory_equal(out, map, sizeof map);
    en_cam_enlarge(1, 1, map, 3, all);                           /* one cell is everywhere */
    for (int i = 0; i < 9; i++) assert_true(all[i] == 1.f);
}

static void colours_run_from_blue_to_red(void **state)
{
    (void)state;
    static const float map[5] = { -1, 0, 1, 2, 3 };
    static const uint8_t want[5][3] = { { 0, 0, 64 }, { 0, 128, 128 }, { 0, 128, 0 }, { 128, 128, 0 }, { 128, 0, 0 } };
    uint8_t rgb[15] = { 0 }, bright[3] = { 255, 255, 255 };
    en_cam_paint(5, map, rgb);
    assert_memory_equal(rgb, want, sizeof rgb);
    en_cam_paint(1, map, bright);                                /* no smallest and largest: half white, half the colour of the smallest */
    static const uint8_t half[3] = { 128, 128, 191 };
    assert_memory_equal(bright, half, sizeof bright);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_map_is_the_classifier_at_every_place), cmocka_unit_test(enlarging_keeps_planes), cmocka_unit_test(cells_of_whole_pixels_stay),
        cmocka_unit_test(colours_run_from_blue_to_red),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
