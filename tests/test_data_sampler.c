/* The order of the samples and its division among ranks. */
#include "data_help.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void an_epoch_is_a_permutation(void **state)
{
    (void)state;
    static const int64_t sizes[] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 16, 17, 31, 33, 100, 1000, 1023, 1024, 1025, 4097, 5000 };
    for (size_t n = 0; n < sizeof sizes / sizeof *sizes; n++) {
        const int64_t N = sizes[n];
        uint8_t *seen = malloc((size_t)N);
        for (int64_t e = 0; e < 4; e++) {
            memset(seen, 0, (size_t)N);
            for (int64_t i = 0; i < N; i++) {
                int64_t epoch = -1;
                const int64_t s = en_sampler_at(42, N, e * N + i, &epoch);
                assert_int_equal(epoch, e);
                assert_true(s >= 0 && s < N && !seen[s]);
                seen[s] = 1;
            }
        }
        free(seen);
    }
}

/* Two unrelated permutations of N agree in about one place; in 12 or more with probability 1/12! */
static void epochs_and_seeds_differ(void **state)
{
    (void)state;
    enum { N = 1000 };
    for (int64_t other = 1; other < 20; other++) {
        int same_epoch = 0, same_seed = 0, fixed = 0, follow = 0;
        for (int64_t i = 0; i < N; i++) {
            const int64_t s = en_sampler_at(1, N, i, NULL);
            same_epoch += s == en_sampler_at(1, N, other * N + i, NULL);
            same_seed += s == en_sampler_at(1 + (uint64_t)other, N, i, NULL);
            fixed += en_sampler_at((uint64_t)other, N, i, NULL) == i;
            follow += i > 0 && s == en_sampler_at(1, N, i - 1, NULL) + 1;
        }
        assert_true(same_epoch < 12 && same_seed < 12 && fixed < 12 && follow < 12);
    }
}

/* Every sample is as likely at every position: N^2 counts over E epochs; (N-1)^2 degrees of freedom, 6 sigma. */
static void every_place_is_equally_likely(void **state)
{
    (void)state;
    static const int sizes[] = { 3, 5, 10, 13, 24 };
    enum { E = 4000 };
    for (size_t n = 0; n < sizeof sizes / sizeof *sizes; n++) {
        const int N = sizes[n];
        int count[24][24] = { { 0 } };
        for (int e = 0; e < E; e++)
            for (int i = 0; i < N; i++) count[i][en_sampler_at(3, N, (int64_t)e * N + i, NULL)]++;
        double chi = 0;
        const double expected = (double)E / N, freedom = (N - 1.0) * (N - 1.0);
        for (int i = 0; i < N; i++)
            for (int s = 0; s < N; s++) chi += (count[i][s] - expected) * (count[i][s] - expected) / expected;
        if (chi > freedom + 6 * sqrt(2 * freedom)) fail_msg("N = %d: chi-square %.1f of %.0f", N, chi, freedom);
    }
}

/* Neighbours in the file order (same class, usually) are not neighbours in the epoch more often than by chance, and which
 * pairs follow each other is uniform: for N = 8, 56 ordered pairs. */
static void every_successor_is_equally_likely(void **state)
{
    (void)state;
    enum { N = 8, E = 8000 };
    int count[N][N] = { { 0 } };
    for (int e = 0; e < E; e++)
        for (int i = 0; i + 1 < N; i++)
            count[en_sampler_at(9, N, (int64_t)e * N + i, NULL)][en_sampler_at(9, N, (int64_t)e * N + i + 1, NULL)]++;
    double chi = 0;
    const double expected = (double)E * (N - 1) / (N * (N - 1));
    for (int a = 0; a < N; a++)
        for (int b = 0; b < N; b++)
            if (a != b) chi += (count[a][b] - expected) * (count[a][b] - expected) / expected;
    const double freedom = N * (N - 1) - 1;
    if (chi > freedom + 6 * sqrt(2 * freedom)) fail_msg("chi-square %.1f of %.0f", chi, freedom);
}

static void shards_of_a_step_are_its_positions_in_order(void **state)
{
    (void)state;
    static const int64_t batches[] = { 1, 2, 7, 8, 60, 64, 100, 4096 };
    for (size_t n = 0; n < sizeof batches / sizeof *batches; n++)
        for (int64_t accum = 1; accum <= 5; accum++)
            for (int world = 1; world <= 9; world++) {
                const int64_t step = 13;
                int64_t next = step * batches[n], most = 0;
                for (int64_t micro = 0; micro < accum; micro++)
                    for (int rank = 0; rank < world; rank++) {
                        const en_shard s = { .global_batch = batches[n], .accum = accum, .rank = rank, .world_size = world };
                        int64_t first, count;
                        en_shard_range(&s, step, micro, &first, &count);
                        assert_true(first == next && count >= 0);
                        next += count;
                        if (count > most) most = count;
                        if (batches[n] % (accum * world) == 0) {
                            const int64_t b = batches[n] / (accum * world);
                            assert_true(count == b && first == ((step * accum + micro) * world + rank) * b);
                        }
                    }
                assert_int_equal(next, (step + 1) * batches[n]);
                const en_shard any = { .global_batch = batches[n], .accum = accum, .rank = 0, .world_size = world };
                assert_int_equal(most, en_shard_max(&any));
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_epoch_is_a_permutation),
        cmocka_unit_test(epochs_and_seeds_differ),
        cmocka_unit_test(every_place_is_equally_likely),
        cmocka_unit_test(every_successor_is_equally_likely),
        cmocka_unit_test(shards_of_a_step_are_its_positions_in_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
