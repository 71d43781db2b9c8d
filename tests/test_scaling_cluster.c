/* test_scaling_cluster.c - cluster files: those that are shipped can be read, hostile ones are refused with place and remedy. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/scaling/cluster.h"

static const char whole[] =
    "# a machine\n"
    "comm = mpi\nprecision=fp32   # of activations\r\n"
    "  ranks_per_node\t= 4\nmemory_gb_per_s = 10\nmatrix_tflop_per_s = 1e-1\nefficiency = 1\npass_us = 0\njitter = .5\n"
    "link_gb_per_s = 5\nnics_per_node = 1\nnic_gb_per_s = 1.25\nnic_efficiency = 0.9\nlink_us = 3\nnic_us = 30";

static void a_file_says_what_it_says(void **state)
{
    (void)state;
    en_cluster c;
    assert_int_equal(en_cluster_parse("some/where/four-cores.txt", whole, strlen(whole), &c), EN_OK);
    assert_string_equal(c.name, "four-cores");
    assert_int_equal(c.comm, EN_NET_MPI);
    assert_int_equal(c.precision, EN_F32);
    assert_true(c.ranks_per_node == 4 && c.memory_gb_per_s == 10 && c.matrix_tflop_per_s == 0.1 && c.jitter == 0.5 && c.nic_us == 30);
    assert_true(c.memory_gb == 0 && c.cores_per_node == 0);               /* may be missing */
}

static void every_shipped_file_can_be_read(void **state)
{
    (void)state;
    glob_t found;
    assert_int_equal(glob(EN_CLUSTERS "/*.txt", 0, NULL, &found), 0);
    assert_true(found.gl_pathc >= 4);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        en_cluster c;
        if (en_cluster_read(found.gl_pathv[i], &c) != EN_OK) fail_msg("%s", en_error_message());
        assert_true(c.ranks_per_node >= 1);
    }
    globfree(&found);
}

/* `whole` with one line more, or another in place of one that begins alike. */
static en_status parse_with(const char *line, const char *in_place_of)
{
    char text[2048], *at;
    en_cluster c;
    snprintf(text, sizeof text, "%s", whole);
    if (in_place_of && (at = strstr(text, in_place_of))) memset(at, '#', 1);                 /* the rest of its line is a comment */
    strncat(text, "\n", sizeof text - strlen(text) - 1);
    strncat(text, line, sizeof text - strlen(text) - 1);
    return en_cluster_parse("f.txt", text, strlen(text), &c);
}

static void a_wrong_line_is_refused_with_its_place_and_a_remedy(void **state)
{
    (void)state;
    static const struct { const char *line, *in_place_of, *says; } cases[] = {
        { "memory_gb_per_sec = 4", NULL, "f.txt:16: there is no key 'memory_gb_per_sec'; did you mean memory_gb_per_s?" },
        { "zzzzzzzzzzzzzzzzzz = 1", NULL, "launch/clusters/h200-ndr.txt has them all" },
        { "jitter = 0.1", NULL, "f.txt:16: jitter stands in line 9 already" },
        { "jitter = -0.1", "jitter", "f.txt:16: jitter = -0.1 is out of range; use [0,1]" },
        { "jitter = nan", "jitter", "a number is wanted" },
        { "jitter = inf", "jitter", "a number is wanted" },
        { "jitter = 0x1", "jitter", "a number is wanted" },
        { "jitter =", "jitter", "a number is wanted" },
        { "jitter = 0.1 0.2", "jitter", "nothing after it" },
        { "jitter = 0.1 s", "jitter", "nothing after it" },
        { "pass_us = 1e999", "pass_us", "a number is wanted" },
        { "link_gb_per_s = 0", "link_gb", "out of range; use (0,1000000]" },
        { "ranks_per_node = 2.5", "ranks_per", "use a whole number" },
        { "ranks_per_node = 1000000000000", "ranks_per", "out of range" },
        { "comm = ncc", "comm", "comm = 'ncc': use nccl|mpi" },
        { "comm = bf16", "comm", "use nccl|mpi" },
        { "precision = mpi", "precision", "use bf16|fp32" },
        { "comm = nccl", "comm", "base_tree_us is missing" },
        { "base_tree_us = 1 2", NULL, "three numbers are wanted" },
        { "base_tree_us = 1 2 3 4", NULL, "nothing after them" },
        { "just words", NULL, "f.txt:16: 'just words' is not `key = value`" },
        { "= 4", NULL, "there is no key ''" },
        { "# nothing", "nic_us", "f.txt: nic_us is missing: a message's way between nodes; add `nic_us = ...`" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        en_error_clear();
        assert_int_equal(parse_with(cases[i].line, cases[i].in_place_of), EN_EUSAGE);
        if (!strstr(en_error_message(), cases[i].says)) fail_msg("%s: %s; wanted: %s", cases[i].line, en_error_message(), cases[i].says);
    }
    en_error_clear();
}

static void what_is_no_text_is_refused(void **state)
{
    (void)state;
    enum { LARGE = 1 << 20 };
    en_cluster c;
    char *large = malloc(LARGE);
    assert_non_null(large);
    memset(large, '#', LARGE);
    assert_int_equal(en_cluster_parse("large", large, LARGE, &c), EN_EUSAGE);
    memset(large, 'a', LARGE);
    assert_int_equal(en_cluster_parse("long line", large, 60000, &c), EN_EUSAGE);
    assert_int_equal(en_cluster_parse("zeros", "comm = mpi\0\n", 12, &c), EN_EUSAGE);
    assert_int_equal(en_cluster_parse("empty", "", 0, &c), EN_EUSAGE);
    assert_int_equal(en_cluster_read(EN_CLUSTERS, &c), EN_EIO);                              /* a folder */
    assert_int_equal(en_cluster_read(EN_CLUSTERS "/none.txt", &c), EN_EIO);
    free(large);
    for (size_t n = 0; n < strlen(whole); n++) {                                             /* whatever is cut off: an answer */
        const en_status s = en_cluster_parse("cut", whole, n, &c);
        assert_true(s == EN_OK || s == EN_EUSAGE);
    }
    en_error_clear();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_says_what_it_says),
        cmocka_unit_test(every_shipped_file_can_be_read),
        cmocka_unit_test(a_wrong_line_is_refused_with_its_place_and_a_remedy),
        cmocka_unit_test(what_is_no_text_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
