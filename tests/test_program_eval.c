/* test_program_eval.c - every validation image exactly once, on any number of ranks and in batches of any size. */
#define _GNU_SOURCE
#include "program.h"

#include <math.h>

#include <hdf5.h>

#include "trainer/crc32c.h"

#define SMALL "--width 0.25 --depth 0.5 --image-size 32 --threads 1 --augment basic"

/* 200 pictures to train on; 61 to validate, in classes of unequal size, which no number of ranks or batch divides */
static const char *data(void)
{
    static const char *made;
    if (!made) {
        run(0, 0, "synth %s --train-per-class 20 --val-per-class 7 --synth-size 48", at("data"));
        shell("rm %s/val/noise/*0[1-5].jpg %s/val/dots/*0[0-3].jpg", at("data"), at("data"));
        made = at("data");
    }
    return made;
}

enum { IMAGES = 61, CLASSES = 10 };

/* Trained far enough that its answers differ from image to image. */
static const char *trained(void)
{
    static const char *made;
    if (!made) {
        run(0, 0, "train " SMALL " --global-batch 20 --lr 0.016 --bn-momentum 0.1 --warmup-epochs 1 --ema 0.9 --steps 200 --eval-every 100 --checkpoint-every 0 --data %s --run %s", data(), at("run"));
        made = checkpoint_of(at("run"), 200);
    }
    return made;
}

/* The one JSON object on stdout, and nothing else. */
static const char *json_of(const outcome *o)
{
    if (o->out[0] != '{' || strcspn(o->out, "\n") + 1 != strlen(o->out)) FAIL_RUN(o, "more or less than one line of JSON");
    return o->out;
}

static void the_same_on_any_number_of_ranks(void **state)
{
    (void)state;
    static const struct { int ranks, batch; } cases[] = { { 0, 32 }, { 0, 1 }, { 1, 7 }, { 2, 8 }, { 3, 8 }, { 4, 32 } };
    const char *first = NULL;
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        const char *json = json_of(run(0, cases[k].ranks, "eval --checkpoint %s --data %s --threads 1 --eval-batch %d --json", trained(), data(), cases[k].batch));
        assert_int_equal(number_in(json, "images"), IMAGES);
        if (!first) first = json;
        if (number_in(json, "top1") != number_in(first, "top1") || number_in(json, "top5") != number_in(first, "top5")
            || !(fabs(number_in(json, "loss") - number_in(first, "loss")) <= 1e-5 * number_in(first, "loss")))
            fail_msg("%d ranks, batches of %d: %s instead of %s", cases[k].ranks, cases[k].batch, json, first);
    }
    print_message("    %s", first);
    if (number_in(first, "top1") <= 0.15) fail_msg("too little was learnt for a comparison: %s", first);
}

/* ---- --logits ------------------------------------------------------------------------------------------------------------ */

typedef struct { size_t n; float *logits; int32_t *labels; char (*files)[512]; } logits_file;

static hid_t dataset(hid_t f, const char *name, size_t want)
{
    hid_t d = H5Dopen2(f, name, H5P_DEFAULT), s = H5Dget_space(d);
    if (d < 0 || H5Sget_simple_extent_npoints(s) != (hssize_t)want) fail_msg("%s has not %zu elements", name, want);
    H5Sclose(s);
    return d;
}

static logits_file read_logits(const char *path, size_t n)
{
    logits_file l = { .n = n, .logits = malloc(n * CLASSES * sizeof(float)), .labels = malloc(n * sizeof(int32_t)), .files = calloc(n, 512) };
    hid_t f = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT), d = dataset(f, "/logits", n * CLASSES), type;
    assert_true(H5Dread(d, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, l.logits) >= 0);
    H5Dclose(d);
    d = dataset(f, "/labels", n);
    assert_true(H5Dread(d, H5T_NATIVE_INT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, l.labels) >= 0);
    H5Dclose(d);
    d = dataset(f, "/files", n);
    type = H5Dget_type(d);
    const size_t length = H5Tget_size(type);
    assert_false(H5Tis_variable_str(type));
    char *text = malloc(n * length);
    assert_true(H5Dread(d, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, text) >= 0);
    for (size_t i = 0; i < n; i++) snprintf(l.files[i], 512, "%.*s", (int)length, text + i * length);
    free(text);
    H5Tclose(type);
    H5Dclose(d);
    H5Fclose(f);
    return l;
}

static void free_logits(logits_file *l)
{
    free(l->logits);
    free(l->labels);
    free(l->files);
}

static void logits_hold_every_file_once(void **state)
{
    (void)state;
    static const char *const names[CLASSES] = { "checker", "circles", "crosses", "dots", "gradients", "noise", "rings", "squares", "stripes", "triangles" };
    for (int ranks = 1; ranks <= 3; ranks++) {
        const char *path = at("logits-%d.h5", ranks);
        const char *json = json_of(run(0, ranks, "eval --checkpoint %s --data %s --threads 1 --eval-batch 8 --json --logits %s", trained(), data(), path));
        logits_file l = read_logits(path, IMAGES);
        size_t n;
        char **files = files_below(at("data/val"), &n);
        assert_int_equal(n, IMAGES);
        int right1 = 0, right5 = 0;
        double loss = 0;
        for (size_t i = 0; i < IMAGES; i++) {
            if (strcmp(l.files[i], files[i]) != 0) fail_msg("file %zu is %s instead of %s", i, l.files[i], files[i]);   /* sorted on both sides */
            if (!strstr(l.files[i], names[l.labels[i]])) fail_msg("%s is labelled %s", l.files[i], names[l.labels[i]]);
            const float *z = l.logits + i * CLASSES, mine = z[l.labels[i]];
            int above = 0;
            double sum = 0;
            for (int c = 0; c < CLASSES; c++) above += z[c] > mine, sum += exp((double)z[c]);
            right1 += above < 1;
            right5 += above < 5;
            loss += log(sum) - mine;
        }
        free_logits(&l);
        if (fabs(number_in(json, "top1") - (double)right1 / IMAGES) > 1e-6 || fabs(number_in(json, "top5") - (double)right5 / IMAGES) > 1e-6
            || fabs(number_in(json, "loss") - loss / IMAGES) > 1e-5)
            fail_msg("from the logits: top-1 %d, top-5 %d of %d, loss %.6f; it said %s", right1, right5, IMAGES, loss / IMAGES, json);
    }
}

/* ---- which weights ----------------------------------------------------------------------------------------------------------- */

static void averaged_and_raw_weights_are_what_training_evaluated(void **state)
{
    (void)state;
    size_t n, m;
    const char *ema = json_of(run(0, 0, "eval --checkpoint %s --data %s --threads 1 --json", trained(), data()));
    const metric *e = metrics(at("run"), "eval", &n);
    assert_int_equal(n, 2);
    assert_int_equal(e[1].step, 200);
    assert_int_equal(e[1].images, IMAGES);
    if (fabs(e[1].loss - number_in(ema, "loss")) > 1e-5 * e[1].loss || fabs(e[1].top1 - number_in(ema, "top1")) > 1e-6) fail_msg("training saw loss %s, eval %s", e[1].text, ema);

    const char *raw = json_of(run(0, 0, "eval --checkpoint %s --data %s --threads 1 --json --eval-weights raw", trained(), data()));
    run(0, 0, "train " SMALL " --global-batch 20 --lr 0.016 --bn-momentum 0.1 --warmup-epochs 1 --ema 0.9 --steps 200 --eval-every 100 --checkpoint-every 0 --eval-weights raw --data %s --run %s", data(), at("run-raw"));
    same_bits(checkpoint_of(at("run-raw"), 200), trained());      /* what is evaluated changes nothing */
    const metric *r = metrics(at("run-raw"), "eval", &m);
    assert_int_equal(m, 2);
    if (fabs(r[1].loss - number_in(raw, "loss")) > 1e-5 * r[1].loss) fail_msg("training saw loss %s, eval %s", r[1].text, raw);
    if (fabs(number_in(raw, "loss") - number_in(ema, "loss")) < 1e-3) fail_msg("raw %s is ema %s", raw, ema);
}

static void a_run_is_named_by_its_folder_too(void **state)
{
    (void)state;
    trained();
    const char *by_file = json_of(run(0, 0, "eval --checkpoint %s --data %s --threads 1 --json", at("run/checkpoints/best.h5"), data()));
    const char *by_run = json_of(run(0, 0, "eval --checkpoint %s --data %s --threads 1 --json", at("run"), data()));
    assert_string_equal(by_run, by_file);
}

static void a_bad_file_is_left_out_and_counted(void **state)
{
    (void)state;
    shell("cp -r %s %s && echo x > %s/val/rings/rings_00003.jpg", data(), at("one-bad"), at("one-bad"));
    for (int ranks = 0; ranks <= 3; ranks += 3) {
        outcome *o = run(0, ranks, "eval --checkpoint %s --data %s --threads 1 --json --logits %s", trained(), at("one-bad"), at("one-bad.h5"));
        assert_int_equal(number_in(json_of(o), "images"), IMAGES - 1);
        says_once(o, "val/rings/rings_00003.jpg");
        logits_file l = read_logits(at("one-bad.h5"), IMAGES - 1);
        for (size_t i = 0; i < l.n; i++)
            if (strstr(l.files[i], "rings_00003.jpg")) fail_msg("%s is among the logits", l.files[i]);
        free_logits(&l);
    }
}

static void more_ranks_than_images(void **state)
{
    (void)state;
    make_folders(at("few/val"));
    shell("cp -r %s/val/noise %s && rm %s/noise/*06.jpg", data(), at("few/val"), at("few/val"));        /* 1 image */
    for (int ranks = 0; ranks <= 3; ranks += 3)
        assert_int_equal(number_in(json_of(run(0, ranks, "eval --checkpoint %s --data %s --threads 1 --json", trained(), at("few/val"))), "images"), 1);
}

static void predict_reads_files_as_training_does(void **state)
{
    (void)state;
    shell("truncate -s 2G %s && mkfifo %s", at("large.jpg"), at("pipe.jpg"));
    outcome *o = run(3, 0, "predict --checkpoint %s --threads 1 --json %s %s %s", trained(), at("large.jpg"), at("pipe.jpg"), at("absent.jpg"));
    says_once(o, "large.jpg is too large for an image");
    says_once(o, "pipe.jpg is not a regular file");
    says_once(o, "absent.jpg cannot be opened");
    assert_int_equal(number_in(o->out, "refused"), 3);
    shell("rm %s", at("pipe.jpg"));
}

/* The header's figure is the run at its fullest: it evaluates while a checkpoint is written.  0.15 GiB more are libraries (0.06)
 * and pictures being decoded. */
static void memory_is_what_the_header_says(void **state)
{
    (void)state;
    if (SANITIZED) skip();
    outcome *o = run(0, 0, "train --image-size 96 --global-batch 16 --threads 1 --steps 4 --checkpoint-every 2 --eval-every 2 --data %s --run %s", data(), at("memory"));
    const char *gib = strstr(o->out, " GiB a rank");
    while (gib && gib > o->out && gib[-1] != ' ') gib--;
    const double says = gib ? atof(gib) : 0, took = (double)o->max_rss_kib / 0x1p20;
    print_message("    %.2f GiB planned, %.2f taken\n", says, took);
    if (!(took <= says + 0.15)) FAIL_RUN(o, "%.2f GiB taken, %.2f planned", took, says);
    if (!(took >= 0.7 * says)) FAIL_RUN(o, "%.2f GiB taken, %.2f planned", took, says);
}

/* The classifier's bias becomes NaN, and its checksum the new one. */
static void ruin(const char *path, const char *dataset)
{
    float bias[3] = { NAN, NAN, NAN };
    const uint32_t crc = en_crc32c(0, bias, sizeof bias);
    const hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT), set = H5Dopen2(file, dataset, H5P_DEFAULT);
    const hid_t attr = H5Aopen(set, "crc32c", H5P_DEFAULT);
    assert_true(H5Dwrite(set, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, bias) >= 0 && H5Awrite(attr, H5T_NATIVE_UINT32, &crc) >= 0);
    H5Aclose(attr);
    H5Dclose(set);
    assert_true(H5Fclose(file) >= 0);
}

static void what_is_no_number_hits_nothing_and_is_null(void **state)
{
    (void)state;
    run(0, 0, "synth %s --synth-classes 3 --train-per-class 4 --val-per-class 2 --synth-size 32", at("three"));
    run(0, 0, "train " SMALL " --global-batch 4 --steps 1 --data %s --run %s", at("three"), at("ruined"));
    const char *path = checkpoint_of(at("ruined"), 1);
    ruin(path, "/ema/classifier.bias");
    const char *json = json_of(run(0, 0, "eval --checkpoint %s --data %s --threads 1 --json", path, at("three")));
    if (!strstr(json, "\"top1\":0.000000,\"top5\":0.000000,\"loss\":null,\"images\":6,\"weights\":\"ema\"")) fail_msg("%s", json);
    json = json_of(run(0, 0, "eval --checkpoint %s --data %s --threads 1 --json --eval-weights raw", path, at("three")));
    if (!isfinite(number_in(json, "loss")) || !strstr(json, "\"weights\":\"raw\"")) fail_msg("%s", json);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_on_any_number_of_ranks),
        cmocka_unit_test(logits_hold_every_file_once),
        cmocka_unit_test(averaged_and_raw_weights_are_what_training_evaluated),
        cmocka_unit_test(a_run_is_named_by_its_folder_too),
        cmocka_unit_test(a_bad_file_is_left_out_and_counted),
        cmocka_unit_test(more_ranks_than_images),
        cmocka_unit_test(predict_reads_files_as_training_does),
        cmocka_unit_test(memory_is_what_the_header_says),
        cmocka_unit_test(what_is_no_number_hits_nothing_and_is_null),
    };
    return program_main("program_eval", tests, sizeof tests / sizeof *tests);
}
