/* test_program_bench.c - `effnet bench data` and `effnet bench comm`: what they measure is of one piece, what they count is counted, and
 * what cannot be measured is told.
 *
 * How fast is no matter of tests; that rates, parts and cores agree with each other is. */
#define _GNU_SOURCE
#include "program.h"

#include <math.h>

#define SMALL "--image-size 32 --workers 1"

/* 40 pictures of 10 classes to train on, 20 to validate */
static const char *data(void) { return drawn("--train-per-class 4 --val-per-class 2 --synth-size 48"); }

/* The one JSON object on stdout, and nothing else. */
static const char *json_of(const outcome *o)
{
    if (o->out[0] != '{' || strcspn(o->out, "\n") + 1 != strlen(o->out)) FAIL_RUN(o, "more or less than one line of JSON");
    return o->out;
}

/* The object of one way; NULL: it was not measured. */
static const char *way_of(const char *json, const char *way)
{
    const char *ways = strstr(json, "\"ways\":{"), *found = ways ? strstr(ways, textf("\"%s\":{", way)) : NULL;
    return found;
}

static double of_core(const char *json, const char *way)
{
    const char *w = way_of(json, way);
    if (!w) fail_msg("no \"%s\" in: %s", way, json);
    return number_in(w, "images_per_core_s");
}

static void refused(int code, const char *needle, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void refused(int code, const char *needle, const char *fmt, ...)
{
    char arguments[2048];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(arguments, sizeof arguments, fmt, ap);
    va_end(ap);
    says_once(run(code, 0, "%s", arguments), needle);
}

/* ---- figures -------------------------------------------------------------------------------------------------------------- */

static void every_way_has_a_rate_within_its_spread(void **state)
{
    (void)state;
    const char *json = json_of(run(0, 0, "bench data " SMALL " --data %s --augment autoaugment --steps 3 --json", data()));
    static const char *const ways[] = { "cold", "read", "whole", "crop", "augment", "scaled", "cached", "loader" };
    for (size_t k = 0; k < sizeof ways / sizeof *ways; k++) {
        const char *w = way_of(json, ways[k]);
        if (!w) fail_msg("%s is not there: %s", ways[k], json);
        const double median = number_in(w, "images_per_core_s"), least = number_in(w, "images_per_core_s_least"), most = number_in(w, "images_per_core_s_most");
        if (!(0 < least && least <= median && median <= most)) fail_msg("%s: %g %g %g", ways[k], median, least, most);
        if (!(number_in(w, "images_per_s") > 0)) fail_msg("%s: no rate by the clock", ways[k]);
        const double by_time = 1e6 / number_in(w, "cpu_us"), by_bytes = 1e6 * number_in(w, "mb_per_core_s") / number_in(json, "bytes_mean");
        /* printed with two decimals of a microsecond, three of a megabyte a second */
        if (fabs(by_time - median) > 0.01 * median || fabs(by_bytes - median) > 0.01 * median) fail_msg("%s: %g, %g and %g", ways[k], median, by_time, by_bytes);
    }
    assert_int_equal(number_in(json, "rounds"), 3);
    if (of_core(json, "read") <= of_core(json, "loader")) fail_msg("the loader, which reads, is faster than reading: %s", json);
}

/* The parts of the run's time are the loader's time, but for what the loader has saved (then there is no rest). */
static void parts_add_up(void **state)
{
    (void)state;
    const char *json = json_of(run(0, 0, "bench data " SMALL " --data synthetic:64 --augment basic --steps 3 --json")), *parts = strstr(json, "},\"cpu_us\":{");
    if (!parts) fail_msg("no parts: %s", json);
    const double rest = number_in(parts, "rest"), loader = 1e6 / of_core(json, "loader"),
                 all = number_in(parts, "read") + number_in(parts, "decode") + number_in(parts, "resize") + number_in(parts, "augment") + rest;
    if (rest > 0 ? fabs(all - loader) > 0.01 * loader + 0.05 : all < loader - 0.05) fail_msg("%g of %g us: %s", all, loader, json);
    assert_true(number_in(parts, "augment") == 0);
    if (way_of(json, "augment")) fail_msg("nothing is augmented: %s", json);
}

static void cores_are_the_rate_over_the_loaders(void **state)
{
    (void)state;
    const char *json = json_of(run(0, 0, "bench data " SMALL " --data synthetic:64 --decode scaled --steps 1 --rate 12345 --json"));
    const double want = 12345 / of_core(json, "loader");
    if (fabs(number_in(json, "cores_needed") - want) > 0.01 * want + 0.01) fail_msg("%g cores: %s", want, json);
    assert_true(strstr(json, "\"rate_is_floor\":false"));
    if (way_of(json, "scaled")) fail_msg("--decode scaled beside itself: %s", json);
}

/* With four times the pixels a step moves four times the bytes, but for the weights, which 256 images share; and rounding up of odd
 * sides: within 3 %. */
static void the_floor_follows_the_pixels(void **state)
{
    (void)state;
    double rate[2];
    for (int k = 0; k < 2; k++) {
        const char *json = json_of(run(0, 0, "bench data --workers 1 --micro-batch 2 --data synthetic:2 --model b0 --image-size %d --steps 1 --json", 224 << k));
        assert_true(strstr(json, "\"rate_is_floor\":true"));
        rate[k] = number_in(json, "rate");
    }
    if (fabs(rate[0] / rate[1] - 4) > 0.12) fail_msg("%g and %g images/s", rate[0], rate[1]);
    const char *json = json_of(run(0, 0, "bench data --workers 1 --micro-batch 2 --data synthetic:2 --model resnet50 --image-size 64 --steps 1 --json"));
    assert_true(strstr(json, "\"rate\":null,\"rate_is_floor\":false,\"cores_needed\":null,"));     /* whose blocks bench/layers.c does not know */
}

static void the_table_says_what_waits(void **state)
{
    (void)state;
    outcome *o = run(0, 0, "bench data " SMALL " --data synthetic:32 --steps 1 --rate 1e9");
    if (!strstr(o->out, "input-bound above ")) FAIL_RUN(o, "a thousand million images a second, and the input keeps up");
    o = run(0, 0, "bench data " SMALL " --data synthetic:32 --steps 1 --rate 0.001");
    if (!strstr(o->out, "enough for one")) FAIL_RUN(o, "an image in a quarter of an hour, and the input does not keep up");
}

/* ---- what is measured ------------------------------------------------------------------------------------------------------ */

static void images_are_counted_and_bad_ones_left_out(void **state)
{
    (void)state;
    shell("cp -r %s %s && echo 'this is no picture' > $(ls -d %s/train/*/* | head -1)", data(), at("one_bad"), at("one_bad"));
    outcome *o = run(0, 0, "bench data " SMALL " --data %s --steps 1 --json", at("one_bad"));
    const char *json = json_of(o);
    assert_int_equal(number_in(json, "samples"), 40);
    assert_int_equal(number_in(json, "images"), 39);
    assert_int_equal(number_in(json, "bad"), 1);
    says_once(o, "1 file left out that cannot be decoded");
    says_once(o, "text, 19 bytes");
    json = json_of(run(0, 0, "bench data " SMALL " --data %s --split val --micro-batch 7 --steps 1 --json", at("one_bad")));
    assert_int_equal(number_in(json, "samples"), 20);
    assert_int_equal(number_in(json, "images"), 7);
    assert_int_equal(number_in(json, "width_mean"), 48);
}

static void a_packed_file_is_measured_as_its_folder(void **state)
{
    (void)state;
    run(0, 0, "pack %s %s", data(), at("packed.h5"));
    const char *folder = json_of(run(0, 0, "bench data " SMALL " --data %s --steps 1 --json", data())),
               *packed = json_of(run(0, 0, "bench data " SMALL " --data %s --steps 1 --json", at("packed.h5")));
    static const char *const same[] = { "samples", "images", "bad", "bytes_mean", "pixels_mean", "crop_share_mean" };
    for (size_t k = 0; k < sizeof same / sizeof *same; k++)
        if (number_in(folder, same[k]) != number_in(packed, same[k])) fail_msg("%s: %s and %s", same[k], folder, packed);
}

static void every_option_of_a_run_is_taken(void **state)
{
    (void)state;
    static const char *const options[] = { "--augment randaugment --rand-ops 3 --magnitude 15", "--augment autoaugment-paper --erase 0.5", "--augment none",
                                           "--mixup 0.2 --cutmix 1", "--resize bilinear-aa --device cuda --workers 3" };
    for (size_t k = 0; k < sizeof options / sizeof *options; k++)
        json_of(run(0, 0, "bench data " SMALL " %s --data synthetic:20 --steps 1 --json", options[k]));
}

/* Each pass by itself beside another way to compute it; the floors of a training step hang on the same table. */
static void every_pass_of_both_families_is_right(void **state)
{
    (void)state;
    static const struct { const char *model; const char *passes[4]; } nets[] = {
        { "b0", { "expand", "depthwise", "project", "residual" } }, { "v2s", { "convolve", "activation", "project", "depthwise" } } };
    for (size_t k = 0; k < sizeof nets / sizeof *nets; k++) {
        const char *json = json_of(run(0, 0, "bench passes --model %s --width 0.25 --depth 0.3 --image-size 64 --micro-batch 4 --bandwidth 10 --tflops 0.1 --steps 2 --json",
                                       nets[k].model));
        const char *rows = strstr(json, "\"passes\":[");
        assert_int_equal(number_in(json, "wrong"), 0);
        assert_true(rows && number_in(json, "checked") > 100000);
        for (size_t p = 0; p < 4; p++)
            for (int back = 0; back < 2; back++) {
                const char *key = textf("{\"pass\":\"%s\",\"direction\":\"%s\"", nets[k].passes[p], back ? "backward" : "forward");
                if (!strstr(rows, key) && (back || strcmp(nets[k].passes[p], "activation") != 0)) fail_msg("no %s in %s", key, rows);
            }
    }
    refused(1, "are not known one by one", "bench passes --model r50 --image-size 64");
    refused(2, "--steps 1001: a pass is run 1000 times at most", "bench passes --steps 1001");
    const outcome *o = run(0, 0, "bench data --model r50 --image-size 64 --workers 1 --data synthetic:8 --steps 1");
    if (!strstr(o->out, "--rate says what yours trains")) FAIL_RUN(o, "it knows what a GPU does with a ResNet");
}

static void what_cannot_be_measured_is_told(void **state)
{
    (void)state;
    make_folders(at("empty"));
    make_folders(at("no_pictures/a"));
    write_file(at("no_pictures/a/x.jpg"), "text", 4);
    refused(2, "--data: which images?", "bench data");
    refused(2, "effnet bench train, effnet bench passes, effnet bench data, or effnet bench comm", "bench dat --data %s", data());
    refused(2, "--split test: train or val", "bench data --data %s --split test", data());
    refused(3, "is empty", "bench data --data %s", at("empty"));
    refused(3, "none can be decoded", "bench data --data %s", at("no_pictures"));
    refused(3, "does not exist", "bench data --data %s", at("missing"));
    outcome *o = run(2, 2, "bench data --data %s", data());
    says_once(o, "without a launcher");
}

/* ---- sums over ranks --------------------------------------------------------------------------------------------------------- */

#define NARROW "--width 0.25 --depth 0.1"

/* The next row of a kind behind `from`, cut out; NULL: there is none. */
static const char *row_after(const char **from, const char *op)
{
    const char *found = strstr(*from, textf("\"op\":\"%s\",\"bytes\"", op)), *end = found ? strchr(found, '}') : NULL;
    if (!end) return NULL;
    *from = end;
    return textf("%.*s", (int)(end - found), found);
}

/* Each sum of each repetition, and of two before them, was checked on each rank; bandwidths are the bytes by the median. */
static void rows_are_of_one_piece(const char *json, const char *op, int ranks, int expected)
{
    const char *at_row = strstr(json, "\"rows\":["), *row;
    int rows = 0;
    while (at_row && (row = row_after(&at_row, op))) {
        const double bytes = number_in(row, "bytes"), count_ = number_in(row, "count"), sums = 2 + count_ * number_in(row, "series"),
                     elems = bytes / (strcmp(op, "sum_f64") == 0 ? 8 : 4), median = number_in(row, "median_us"), rate = number_in(row, "alg_gb_per_s");
        rows++;
        if (number_in(row, "wrong") != 0 || count_ != 3) fail_msg("%s", row);
        if (strcmp(op, "sum_f32") == 0 ? number_in(row, "checked") <= sums * elems * ranks : number_in(row, "checked") != sums * elems * ranks)
            fail_msg("of %g sums over %d ranks: %s", sums, ranks, row);
        if (!(number_in(row, "p10_us") <= median && median <= number_in(row, "p90_us"))) fail_msg("%s", row);
        /* printed to a nanosecond and to a thousand bytes a second */
        if (median > 1 && fabs(rate - 1e-3 * bytes / median) > 0.002 * rate + 2e-6) fail_msg("%s", row);
        const double on_bus = rate * (strcmp(op, "broadcast") == 0 ? ranks > 1 : 2.0 * (ranks - 1) / ranks);
        if (fabs(number_in(row, "bus_gb_per_s") - on_bus) > 0.001 * on_bus + 2e-6) fail_msg("%s", row);
    }
    if (rows != expected) fail_msg("%d rows of %s, not %d: %s", rows, op, expected, json);
}

static void sums_are_measured_on_1_2_and_3_ranks(void **state)
{
    (void)state;
    for (int ranks = 1; ranks <= 3; ranks++) {
        const char *folder = at("comm-%d", ranks);
        outcome *o = run(0, ranks == 1 ? 0 : ranks, "bench comm " NARROW " --sizes 1m,64k,4k,65536 --steps 3 --json --folder %s", folder);
        const char *json = json_of(o), *batch_norm = strstr(json, "\"batch_norm\":{");
        assert_int_equal(number_in(json, "ranks"), ranks);
        assert_int_equal(number_in(json, "nodes"), 1);
        assert_int_equal(count(json, "\"wrong\":0"), count(json, "\"wrong\":"));
        if (!strstr(json, ranks == 1 ? "\"control\":\"self\"" : "\"control\":\"mpi\"")) FAIL_RUN(o, "the control communicator is not named");
        rows_are_of_one_piece(json, "sum_f32", ranks, 3);              /* 64k and 65536 are one */
        rows_are_of_one_piece(json, "broadcast", ranks, 2);
        assert_int_equal(count(json, "\"op\":\"barrier\""), 1);
        if (!batch_norm) FAIL_RUN(o, "no sums of batch norm");
        const char *at_row = strstr(json, "\"rows\":["), *row;
        double layers = 0, us = 0;
        int norms = 0;
        for (; (row = row_after(&at_row, "sum_f64")); norms++) {
            assert_int_equal(number_in(row, "bytes"), 8 * (2 * number_in(row, "channels") + 1));
            layers += number_in(row, "layers"), us += 2 * number_in(row, "layers") * number_in(row, "median_us");
        }
        rows_are_of_one_piece(json, "sum_f64", ranks, norms);
        assert_true(norms >= 3 && number_in(batch_norm, "sums") == 2 * layers);
        if (fabs(number_in(batch_norm, "control_us") - us) > 1e-3 * us + 0.01 * layers) FAIL_RUN(o, "batch norm takes %g us", us);
        if (ranks > 1 && count(json, "\"alpha_us\":") < 4) FAIL_RUN(o, "medians and p10 of both kinds of sums have no fit");
        if ((strstr(json, "\"cluster\":{\"link_gb_per_s\":") != NULL) != (ranks > 1)) FAIL_RUN(o, "what a cluster file wants");
        if (ranks == 1 && strstr(json, "\"alpha_us\":")) FAIL_RUN(o, "a fit over nothing");
        if (count(read_file(textf("%s/comm.csv", folder), NULL), "\n") != 1 + 3 + norms + 2 + 1) fail_msg("%s/comm.csv has not a line for each row", folder);
        if (exists(textf("%s/comm.svg", folder)) != (ranks > 1)) fail_msg("%s/comm.svg", folder);
        if (ranks > 1 && !strstr(read_file(textf("%s/comm.svg", folder), NULL), "bus bandwidth, GB/s")) fail_msg("%s/comm.svg is no figure of bandwidth", folder);
    }
}

/* The layers of B0 that have a batch norm: 49 (and so 98 sums a step). */
static void tables_say_what_was_summed(void **state)
{
    (void)state;
    outcome *o = run(0, 0, "bench comm --sizes 4k --steps 2");
    if (!strstr(o->out, "one rank alone has nothing to sum")) FAIL_RUN(o, "a sum over one rank passes for a sum");
    o = run(0, 2, "bench comm --sizes 4k,16k --steps 2");
    if (!strstr(o->out, "2 ranks on 1 host (") || !strstr(o->out, "a step of efficientnet_b0 makes 98 of them") || !strstr(o->out, "every element of every sum was checked"))
        FAIL_RUN(o, "the table does not say what was summed");
}

static void sums_that_cannot_be_measured_are_told(void **state)
{
    (void)state;
    static const char *const sizes[] = { "4x", "4k,", ",4k", "0", "-4k", "1e30g", "4kk", "nan" };
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) refused(2, textf("--sizes %s: bytes, with commas between them", sizes[k]), "bench comm --sizes %s", sizes[k]);
    refused(2, "--sizes is of effnet bench comm", "bench train --sizes 4k");
    refused(2, "--folder is of effnet bench comm", "bench passes --folder x");
    refused(2, "--data is of effnet bench data", "bench comm --data synthetic");
    refused(1, "No such file or directory", "bench comm " NARROW " --sizes 4k --steps 1 --folder %s", at("missing/x"));
    outcome *o = run(0, 2, "bench comm " NARROW " --sizes 4k,512g --steps 1");         /* more than a test machine has */
    if (!strstr(o->out, "sizes from 524288 MiB on left out: the rank with the least memory")) FAIL_RUN(o, "what does not fit is not named");
    o = run(1, 2, "bench comm " NARROW " --sizes 4k --steps 1 --folder %s", at("missing/x"));
    says_once(o, "No such file or directory");
    o = run_how((how){ .ranks = 2, .second = "bench comm " NARROW " --sizes 8k --steps 1" }, "bench comm " NARROW " --sizes 4k --steps 1");
    expect_code(o, 2);
    says_once(o, "start all ranks with the same options");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_way_has_a_rate_within_its_spread),
        cmocka_unit_test(parts_add_up),
        cmocka_unit_test(cores_are_the_rate_over_the_loaders),
        cmocka_unit_test(the_floor_follows_the_pixels),
        cmocka_unit_test(the_table_says_what_waits),
        cmocka_unit_test(images_are_counted_and_bad_ones_left_out),
        cmocka_unit_test(a_packed_file_is_measured_as_its_folder),
        cmocka_unit_test(every_option_of_a_run_is_taken),
        cmocka_unit_test(every_pass_of_both_families_is_right),
        cmocka_unit_test(what_cannot_be_measured_is_told),
        cmocka_unit_test(sums_are_measured_on_1_2_and_3_ranks),
        cmocka_unit_test(tables_say_what_was_summed),
        cmocka_unit_test(sums_that_cannot_be_measured_are_told),
    };
    return program_main("program_bench", tests, sizeof tests / sizeof *tests);
}
