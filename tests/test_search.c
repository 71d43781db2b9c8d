/* test_search.c - the candidates of a search, their ranking, and what is read back of them. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "trainer/search/search.h"

#define OK(call) do { if ((call) != EN_OK) fail_msg("%s", en_error_text()); } while (0)

static char folder[64];

static en_options options(const char *first, ...) __attribute__((sentinel));
static en_options options(const char *first, ...)
{
    char *argv[32] = { (char *)"effnet", (char *)"search" };
    int n = 2;
    va_list args;
    va_start(args, first);
    for (const char *a = first; a; a = va_arg(args, const char *)) argv[n++] = (char *)a;
    va_end(args);
    en_options o;
    bool help;
    OK(en_options_parse(EN_SEARCH, n, argv, 2, &o, &help));
    return o;
}

static void refused(en_status s, const char *words)
{
    assert_int_equal(s, EN_EUSAGE);
    if (!strstr(en_error_text(), words)) fail_msg("'%s' is not in: %s", words, en_error_text());
    en_error_clear();
}

/* ---- grid ----------------------------------------------------------------------------------------------------------------- */

static void lists_are_numbers_and_ranges(void **state)
{
    (void)state;
    static const struct { const char *text; int n; double value[6]; } cases[] = {
        { "1", 1, { 1 } }, { "1.2,1,1.1", 3, { 1, 1.1, 1.2 } }, { "1:1.2:0.05", 5, { 1, 1.05, 1.1, 1.15, 1.2 } }, { "1:1.21:0.1,2,1.1", 4, { 1, 1.1, 1.2, 2 } },
        { "4", 1, { 4 } }, { "1.1:1.1:1", 1, { 1.1 } },
    };
    double v[EN_GRID_VALUES];
    int n;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        OK(en_grid_values("alphas", cases[i].text, v, &n));
        assert_int_equal(n, cases[i].n);
        for (int k = 0; k < n; k++) assert_true(v[k] == cases[i].value[k]);              /* 1.15, not 1.1500000000000001 */
    }
    OK(en_grid_values("alphas", "1:1.4:0.05", v, &n));
    assert_int_equal(n, 9);
    static const struct { const char *text, *words; } wrong[] = {
        { "", "give numbers" }, { "1,", "give numbers" }, { "1;2", "give numbers" }, { "x", "give numbers" }, { "nan", "give numbers" }, { "1:2", "FROM:TO:STEP" },
        { "1:2:0.5:3", "FROM:TO:STEP" }, { "1:2:0", "upwards" }, { "2:1:0.1", "upwards" }, { "1:2:-1", "upwards" }, { "0.9", "1 to 4" }, { "1,5", "1 to 4" },
        { "1:5:1", "1 to 4" }, { "1:4:1e-9", "larger step" }, { "1:1:1e-12", "larger step" }, { "1:1:1e-300", "larger step" }, { "1:2:0.01,1:2:0.005", "larger step" }, { "1e999", "give numbers" },
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) refused(en_grid_values("betas", wrong[i].text, v, &n), wrong[i].words);
}

/* Every point within the tolerance and no other; the paper's own is among them. */
static void candidates_are_those_near_two(void **state)
{
    (void)state;
    const en_options o = options("--tolerance", "0.1", NULL);
    en_grid g;
    OK(en_grid_make(&o, &g));
    assert_int_equal(g.grid, 729);
    int expected = 0, papers = 0;
    for (int a = 0; a < 9; a++)
        for (int b = 0; b < 9; b++)
            for (int c = 0; c < 9; c++) {
                const double alpha = (100 + 5 * a) / 100.0, beta = (100 + 5 * b) / 100.0, gamma = (100 + 5 * c) / 100.0, product = alpha * beta * beta * gamma * gamma;
                if (fabs(product - 2) > 0.1) continue;
                const en_candidate *at = &g.c[expected++];
                assert_true(at->alpha == alpha && at->beta == beta && at->gamma == gamma && fabs(at->product - product) < 1e-12);
                papers += alpha == 1.2 && beta == 1.1 && gamma == 1.15;
            }
    assert_int_equal(g.n, expected);
    assert_int_equal(papers, 1);
    for (int i = 1; i < g.n; i++)
        for (int k = 0; k < i; k++) assert_string_not_equal(g.c[i].name, g.c[k].name);
    en_grid_free(&g);
}

static void nonsense_is_refused_with_what_would_help(void **state)
{
    (void)state;
    en_grid g;
    en_options o = options("--alphas", "1", "--betas", "1", "--gammas", "1,1.1", NULL);
    refused(en_grid_make(&o, &g), "none of 2 points of the grid has a product alpha * beta^2 * gamma^2 within 0.1 of 2; the nearest is 1.21, of alpha 1, beta 1, gamma 1.1");
    o = options("--alphas", "1:2:0.01", "--betas", "1:2:0.01", "--gammas", "1:2:0.01", NULL);
    refused(en_grid_make(&o, &g), "candidates are within --tolerance 0.1 of 2, more than the 1000");
    o = options("--alphas", "1", "--betas", "1", "--gammas", "1.4142136", "--tolerance", "0", NULL);
    refused(en_grid_make(&o, &g), "the nearest is 2,");                                     /* to six digits it is 2.000001 */
    o = options("--alphas", "2", "--betas", "1", "--gammas", "1", "--tolerance", "0", NULL);
    OK(en_grid_make(&o, &g));
    assert_int_equal(g.n, 1);
    en_grid_free(&g);
}

/* What a candidate is: the base with its three factors, trained for the budget. */
static void a_candidate_is_the_base_with_its_factors(void **state)
{
    (void)state;
    en_options o = options("--alphas", "1.2", "--betas", "1.1", "--gammas", "1.15", "--budget", "300", "--run", "R", "--lr", "0.5", NULL);
    en_grid g;
    OK(en_grid_make(&o, &g));
    OK(en_grid_measure(&o, 10, &g));
    assert_string_equal(g.c[0].name, "a1.2-b1.1-g1.15");
    assert_int_equal(g.c[0].side, 258);                                                     /* 1.15 * 224, rounded */
    const en_options t = en_candidate_options(&o, &g.c[0], "R/x");
    assert_int_equal(t.command, EN_TRAIN);
    assert_true(t.phi == 1 && t.alpha == 1.2 && t.beta == 1.1 && t.gamma == 1.15 && t.steps == 300 && t.lr == 0.5);
    assert_string_equal(t.run, "R/x");
    en_grid_free(&g);
    o = options("--alphas", "2", "--betas", "1", "--gammas", "1", "--budget", "2.5e", NULL);
    OK(en_grid_make(&o, &g));
    const en_options e = en_candidate_options(&o, &g.c[0], "R/x");
    assert_true(e.epochs == 2.5 && e.steps == 0);
    en_grid_free(&g);
    o = options("--alphas", "2", "--betas", "1", "--gammas", "1", "--budget", "90m", NULL);
    OK(en_grid_make(&o, &g));
    assert_true(en_candidate_options(&o, &g.c[0], "R/x").steps >= 1000000000000);           /* the time ends it, not the 350 epochs of a run */
    en_grid_free(&g);
    o = options("--model", "mobilenetv3", NULL);
    OK(en_grid_make(&o, &g));
    refused(en_grid_measure(&o, 10, &g), "no candidate can be trained");
    en_grid_free(&g);
}

/* ---- ranking ---------------------------------------------------------------------------------------------------------------- */

static void by_accuracy_then_by_cost(void **state)
{
    (void)state;
    en_candidate c[] = {
        { .macs = 5, .result = { .outcome = EN_FAILED } },
        { .macs = 9, .result = { .outcome = EN_DONE, .top1 = 0.5, .top5 = 0.9 } },
        { .macs = 1, .result = { .outcome = EN_OPEN } },
        { .macs = 8, .result = { .outcome = EN_DONE, .top1 = 0.5, .top5 = 0.9 } },
        { .macs = 7, .result = { .outcome = EN_DONE, .top1 = 0.5, .top5 = 0.8 } },
        { .macs = 8, .result = { .outcome = EN_DONE, .top1 = 0.5, .top5 = 0.9 } },
        { .macs = 99, .result = { .outcome = EN_DONE, .top1 = 0.6, .top5 = 0.7 } },
    };
    const en_grid g = { .c = c, .n = 7 };
    int order[7];
    en_search_rank(&g, order);
    static const int want[] = { 6, 3, 5, 1, 4, 2, 0 };
    assert_memory_equal(order, want, sizeof want);
}

static char *slurp(const char *path)
{
    static char text[1 << 16];
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    fclose(f);
    return text;
}

static const char *in(const char *name)
{
    static char path[4][128];
    static int next;
    char *p = path[next++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", folder, name);
    return p;
}

static void the_files_say_what_the_table_says(void **state)
{
    (void)state;
    en_candidate c[] = {
        { .name = "a1-b1-g1.4", .alpha = 1, .beta = 1, .gamma = 1.4, .product = 1.96, .side = 45, .params = 2000, .macs = 5000000,
          .result = { .outcome = EN_DONE, .step = 40, .top1 = 0.25, .top5 = 0.75, .loss = 2.5, .images_per_s = 100, .seconds = 4, .weights = 0xabc } },
        { .name = "a2-b1-g1", .alpha = 2, .beta = 1, .gamma = 1, .product = 2, .side = 32, .params = 3000, .macs = 6000000,
          .result = { .outcome = EN_FAILED, .reason = "the loss is \"nan\", <not> finite" } },
    };
    const en_grid g = { .c = c, .n = 2, .grid = 12 };
    en_options o = options("--run", folder, "--budget", "40", NULL);
    OK(en_search_write(&o, &g));
    char *text = slurp(in("search.csv"));
    assert_non_null(strstr(text, "\n1,1,1,1.4,1.96,2000,5000000,45,done,0.25,0.75,2.5,40,100,4,0000000000000abc,\n"));
    assert_non_null(strstr(text, "\n,2,1,1,2,3000,6000000,32,failed,,,,,,,,\"the loss is \"\"nan\"\", <not> finite\"\n"));
    text = slurp(in("search.json"));
    assert_non_null(strstr(text, "\"rank\": 1, \"alpha\": 1, \"beta\": 1, \"gamma\": 1.4,"));
    assert_non_null(strstr(text, "\"reason\": \"the loss is \\\"nan\\\", <not> finite\""));
    text = slurp(in("search.svg"));
    assert_non_null(strstr(text, "1 \xc2\xb7 1 \xc2\xb7 1.4: 5, 25</title>"));
    if (system("python3 -c 'import json' > /dev/null 2>&1") == 0) {
        char command[256];
        snprintf(command, sizeof command, "python3 -c 'import json, sys; assert len(json.load(open(sys.argv[1]))[\"candidates\"]) == 2' %s", in("search.json"));
        assert_int_equal(system(command), 0);
    }
    en_options nowhere = options("--run", "no/such/folder", "--budget", "40", NULL);
    assert_int_equal(en_search_write(&nowhere, &g), EN_EIO);
    en_error_clear();
}

/* ---- read back -------------------------------------------------------------------------------------------------------------- */

static void put(const char *name, const char *text)
{
    FILE *f = fopen(in(name), "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static void results_come_back_to_the_bit(void **state)
{
    (void)state;
    const en_result results[] = {
        { .outcome = EN_DONE, .step = 400, .top1 = 1.0 / 3, .top5 = 0.7, .loss = 1e-300, .images_per_s = 123.456, .seconds = 1e5, .weights = UINT64_MAX },
        { .outcome = EN_DONE, .step = 1, .top1 = 0, .top5 = 1, .loss = INFINITY },
        { .outcome = EN_FAILED, .step = 7, .reason = "\"quoted\" \\ \n\x01 caf\xc3\xa9" },
    };
    for (size_t i = 0; i < sizeof results / sizeof *results; i++) {
        char why[300];
        en_candidate c = { .name = "a2-b1-g1", .result = results[i] }, back = { .name = "a2-b1-g1" };
        OK(en_result_write(folder, &c));
        en_result_read(folder, &back, why);
        assert_string_equal(why, "");
        const en_result *a = &results[i], *b = &back.result;
        assert_true(a->outcome == b->outcome && a->step == b->step && a->top1 == b->top1 && a->top5 == b->top5 && a->seconds == b->seconds && a->images_per_s == b->images_per_s);
        assert_true(a->weights == b->weights && (isinf(a->loss) ? isnan(b->loss) : a->loss == b->loss));
        assert_string_equal(a->reason, b->reason);
    }
    assert_int_equal(en_result_write("no/such/folder", &(en_candidate){ .name = "x" }), EN_EIO);
    en_error_clear();
}

#define GOOD "{\"candidate\":\"a2-b1-g1\",\"outcome\":\"done\",\"step\":4,\"top1\":0.5,\"top5\":0.5,\"loss\":1,\"images_per_s\":9,\"seconds\":9,\"weights\":\"0123456789abcdef\",\"reason\":\"\"}"

/* Passed over and said, never believed, never a crash: the candidate is open again. */
static void damaged_results_are_passed_over(void **state)
{
    (void)state;
    static const struct { const char *from, *to; } change[] = {
        { "a2-b1-g1", "a1-b1-g2" },   { "done", "won" },        { "\"step\":4", "\"step\":-4" }, { "\"step\":4", "\"step\":0" },      { ":0.5", ":1.5" },
        { ":0.5", ":nan" },           { ":0.5", ":0x1" },       { ":0.5", ":null" },             { ":0.5", ":\"0.5\"" },              { "\"top1\":0.5", "\"top1\":0.9" },
        { "0123456789abcdef", "xyz" }, { ",\"reason\":\"\"", "" }, { "\"loss\"", "\"top1\"" },   { "\"loss\"", "\"other\"" },         { "}", "}}" },
        { "}", "} x" },               { "\"step\":4", "\"step\":99999999999999999999" },         { "\"reason\":\"\"", "\"reason\":\"\\u0000\"" },
    };
    char why[300], text[1024];
    en_candidate c = { .name = "a2-b1-g1" };
    put("result.json", GOOD);
    en_result_read(folder, &c, why);
    assert_true(c.result.outcome == EN_DONE && !why[0]);
    for (size_t i = 0; i < sizeof change / sizeof *change; i++) {
        const char *at = strstr(GOOD, change[i].from);
        snprintf(text, sizeof text, "%.*s%s%s", (int)(at - GOOD), GOOD, change[i].to, at + strlen(change[i].from));
        put("result.json", text);
        c.result = (en_result){ 0 };
        en_result_read(folder, &c, why);
        if (c.result.outcome != EN_OPEN || c.result.top1 != 0 || !strstr(why, "is passed over") || !strstr(why, "checkpoints")) fail_msg("%s: %s", text, why);
    }
    for (size_t n = 0; n < strlen(GOOD); n++) {              /* torn anywhere */
        snprintf(text, sizeof text, "%.*s", (int)n, GOOD);
        put("result.json", text);
        en_result_read(folder, &c, why);
        assert_true(c.result.outcome == EN_OPEN && why[0]);
    }
    uint32_t random = 1;
    for (int round = 0; round < 3000; round++) {             /* one byte is another: believed only when it still is a result */
        snprintf(text, sizeof text, "%s", GOOD);
        random = random * 1664525 + 1013904223;
        text[(random >> 8) % strlen(GOOD)] = (char)(random >> 24 ? random >> 24 : 1);
        put("result.json", text);
        c.result = (en_result){ 0 };
        en_result_read(folder, &c, why);
        assert_true((c.result.outcome == EN_OPEN) == (why[0] != 0));
        assert_true(c.result.top1 >= 0 && c.result.top1 <= 1);
    }
    FILE *f = fopen(in("result.json"), "w");                 /* much too large */
    for (int i = 0; i < 20000; i++) fputs("{\"a\":", f);
    fclose(f);
    c.result = (en_result){ 0 };
    en_result_read(folder, &c, why);
    assert_true(c.result.outcome == EN_OPEN && strstr(why, "too large"));
    remove(in("result.json"));
    en_result_read(folder, &c, why);
    assert_true(c.result.outcome == EN_OPEN && !why[0]);     /* nothing there is nothing to say */
}

static void options_must_be_those_of_the_first_start(void **state)
{
    (void)state;
    remove(in("search.txt"));
    en_options o = options("--run", folder, "--budget", "40", "--global-batch", "24", NULL);
    assert_int_equal(en_search_recall(folder, "global-batch"), 0);
    OK(en_search_keep_options(&o));
    assert_int_equal(en_search_recall(folder, "global-batch"), 24);
    put("search.txt", "damaged");
    OK(en_search_keep_options(&o));                          /* nothing has been trained with it, so it binds nobody */
    o = options("--run", folder, "--budget", "41", "--global-batch", "25", NULL);
    OK(en_search_keep_options(&o));
    assert_int_equal(en_search_recall(folder, "global-batch"), 25);
    assert_int_equal(mkdir(in("a1-b1-g1.4"), 0777), 0);
    assert_int_equal(mkdir(in("a1-b1-g1.4/checkpoints"), 0777), 0);
    put("a1-b1-g1.4/checkpoints/step-00000004.h5.tmp", "");
    assert_false(en_search_begun(folder));
    o = options("--run", folder, "--budget", "40", "--global-batch", "24", NULL);
    OK(en_search_keep_options(&o));
    put("a1-b1-g1.4/checkpoints/step-00000004.h5", "");
    assert_true(en_search_begun(folder));
    remove(in("a1-b1-g1.4/checkpoints/step-00000004.h5"));
    put("a1-b1-g1.4/result.json", "");
    assert_true(en_search_begun(folder));
    OK(en_search_keep_options(&o));
    o = options("--run", folder, "--budget", "40", "--global-batch", "24", "--alphas", "1,2", "--tolerance", "0.5", "--threads", "3", "--candidate-ranks", "2", "--data", "elsewhere",
                NULL);
    OK(en_search_keep_options(&o));                          /* a wider grid, another machine */
    o = options("--run", folder, "--budget", "41", "--global-batch", "24", NULL);
    refused(en_search_keep_options(&o), "begun with --budget 40, now it is 41: give the same, or take another --run");
    o = options("--run", folder, "--budget", "40", "--global-batch", "24", "--lr", "0.5", NULL);
    refused(en_search_keep_options(&o), "--lr 0.016, now it is 0.5");
    o = options("--run", folder, "--budget", "40", "--global-batch", "24", NULL);
    static const char *const damaged[] = { "", "budget", "\xff\xfe=1\n", "model=efficientnet_b0\nbudget=40\n" };
    for (size_t i = 0; i < sizeof damaged / sizeof *damaged; i++) {
        put("search.txt", damaged[i]);
        assert_int_equal(en_search_keep_options(&o), EN_EDATA);
        assert_non_null(strstr(en_error_text(), "remove it to go on with what lies there"));
        en_error_clear();
    }
    remove(in("search.txt"));
    OK(en_search_keep_options(&o));
}

/* Steps of 10 images at 100, 200 and 50 images/s: 0.35 s, the median is 100. */
static void the_pace_is_read_from_the_metrics(void **state)
{
    (void)state;
    double seconds, rate;
    remove(in("metrics.jsonl"));
    en_search_pace(folder, 99, 10, &seconds, &rate);
    assert_true(seconds == 0 && rate == 0);
    put("metrics.jsonl", "{\"kind\":\"train\",\"step\":1,\"loss\":null,\"images_per_s\":100,\"data_s\":0}\n{\"kind\":\"eval\",\"step\":1,\"images_per_s\":7}\nrubbish\n"
        "{\"kind\":\"train\",\"step\":2,\"images_per_s\":200}\n{\"kind\":\"train\",\"step\":3,\"images_per_s\":50}\n{\"kind\":\"train\",\"step\":4,\"images_per_s\":null}\n"
        "{\"kind\":\"train\",\"step\":5,\"images_per_s\":1e-300}\n{\"kind\":\"train\",\"step\":9,\"ima");
    en_search_pace(folder, 4, 10, &seconds, &rate);
    assert_true(fabs(seconds - 0.35) < 1e-12 && rate == 100);
    en_search_pace(folder, 2, 10, &seconds, &rate);
    assert_true(fabs(seconds - 0.15) < 1e-12);
}

static int open_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "test_search-XXXXXX");
    return mkdtemp(folder) ? 0 : 1;
}

static int close_folder(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lists_are_numbers_and_ranges),
        cmocka_unit_test(candidates_are_those_near_two),
        cmocka_unit_test(nonsense_is_refused_with_what_would_help),
        cmocka_unit_test(a_candidate_is_the_base_with_its_factors),
        cmocka_unit_test(by_accuracy_then_by_cost),
        cmocka_unit_test(the_files_say_what_the_table_says),
        cmocka_unit_test(results_come_back_to_the_bit),
        cmocka_unit_test(damaged_results_are_passed_over),
        cmocka_unit_test(options_must_be_those_of_the_first_start),
        cmocka_unit_test(the_pace_is_read_from_the_metrics),
    };
    return cmocka_run_group_tests_name("search", tests, open_folder, close_folder);
}
