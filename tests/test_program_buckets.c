/* test_program_buckets.c - the size of gradient buckets changes no bit over MPI: each element is added in the order of the ranks, wherever the
 * arena is cut.  B0 has 16 MB of gradients with ten classes: 17 buckets of 1 MiB, 5 of 4, 3 of 25. */
#include "program.h"

#define B0 "train --image-size 32 --global-batch 6 --lr 0.001 --threads 1 --data synthetic:24 --cache memory --checkpoint-every 0"

static const char *trained(int ranks, const char *buckets, int steps)
{
    const char *dir = at("%d-%s-%d", ranks, buckets, steps);
    const outcome *o = run_how((how){ .ranks = ranks, .seconds = 200 }, B0 " --steps %d --buckets %s --run %s", steps, buckets, dir);
    expect_code(o, 0);
    const int said = count(o->out, "gradient buckets of at most");
    if (said != (ranks > 1 && strcmp(buckets, "auto") == 0)) FAIL_RUN(o, "what was chosen is said %d times", said);
    return checkpoint_of(dir, steps);
}

static void every_size_gives_the_same_bits(void **state)
{
    (void)state;
    for (int ranks = 2; ranks <= 3; ranks++) {
        const char *usual = trained(ranks, "25", 3);
        same_bits(trained(ranks, "1", 3), usual);
        if (ranks == 2) same_bits(trained(ranks, "0", 3), usual);              /* one, after backward */
        if (ranks == 2) same_bits(trained(ranks, "4", 3), usual);
    }
}

/* Four sizes cut these gradients differently, each is tried for four steps: 16 of 18 steps. */
static void trying_sizes_gives_the_same_bits(void **state)
{
    (void)state;
    same_bits(trained(2, "auto", 18), trained(2, "25", 18));
    same_bits(trained(1, "auto", 3), trained(1, "25", 3));
}

static void other_words_are_refused(void **state)
{
    (void)state;
    run(2, 0, B0 " --steps 1 --buckets none");
    run(2, 0, B0 " --steps 1 --buckets 5000");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(other_words_are_refused),
        cmocka_unit_test(every_size_gives_the_same_bits),
        cmocka_unit_test(trying_sizes_gives_the_same_bits),
    };
    return program_main("program_buckets", tests, sizeof tests / sizeof *tests);
}
