/* test_program_exchange.c - weights out of a run and into one: export, import, and what is refused.  What torchvision says to the same
 * weights is peer/exchange_torchvision.py's. */
#include "program.h"

#include <math.h>

#define SMALL "--width 0.25 --depth 0.5 --image-size 32 --threads 1 --augment basic"

static const char *data(void)
{
    static const char *made;
    if (!made) {
        run(0, 0, "synth %s --train-per-class 6 --val-per-class 2 --synth-size 48", at("data"));
        made = at("data");
    }
    return made;
}

/* Averaged and raw weights that differ. */
static const char *trained(void)
{
    static const char *made;
    if (!made) {
        run(0, 0, "train " SMALL " --global-batch 20 --warmup-epochs 1 --ema 0.9 --steps 20 --checkpoint-every 0 --resize bilinear --data %s --run %s", data(), at("run"));
        made = at("run");
    }
    return made;
}

/* Group `a` of one file and `b` of another: the same tensors, bit by bit. */
static void same_weights(const char *file_a, const char *a, const char *file_b, const char *b)
{
    size_t n, m;
    const tensor *x = tensors(file_a, a, &n), *y = tensors(file_b, b, &m);
    if (n != m || n < 100) fail_msg("%zu tensors in %s of %s, %zu in %s of %s", n, a, file_a, m, b, file_b);
    for (size_t i = 0; i < n; i++) {
        if (strcmp(strrchr(x[i].name, '/'), strrchr(y[i].name, '/'))) fail_msg("%s instead of %s", y[i].name, x[i].name);
        if (x[i].n != y[i].n || memcmp(x[i].v, y[i].v, x[i].n * sizeof(float))) fail_msg("%s is not %s", y[i].name, x[i].name);
    }
}

static void export_and_import_keep_every_bit(void **state)
{
    (void)state;
    static const struct { const char *to, *weights, *group; } cases[] = {
        { "timm", "ema", "/ema" }, { "torchvision", "ema", "/ema" }, { "torchvision", "raw", "/model" }, { "safetensors", "raw", "/model" } };
    const char *newest = checkpoint_of(trained(), 20);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *file = at("%zu.safetensors", i), *back = at("%zu.h5", i);
        outcome *o = run(0, 0, "export %s %s --to %s --weights %s", newest, file, cases[i].to, cases[i].weights);
        if (!strstr(o->out, cases[i].weights)) FAIL_RUN(o, "it does not say which weights");
        if ((strstr(o->out, "note:") != NULL) != (strcmp(cases[i].to, "torchvision") == 0)) FAIL_RUN(o, "padding and eps are torchvision's trouble, and only its");
        run(0, 0, "import %s %s", file, back);
        same_weights(newest, cases[i].group, back, "/model");
        is_whole(back, 0);
        const char *a = run(0, 0, "eval --checkpoint %s --data %s --threads 1 --json --eval-weights %s", newest, data(), cases[i].weights)->out,
                   *b = run(0, 0, "eval --checkpoint %s --data %s --threads 1 --json", back, data())->out;
        if (number_in(a, "loss") != number_in(b, "loss") || number_in(a, "top1") != number_in(b, "top1")) fail_msg("%s evaluates to %s, and before to %s", back, b, a);
    }
    size_t n, m;
    const char *first = read_file(at("2.safetensors"), &n);
    run(0, 0, "export %s %s --to torchvision", at("2.h5"), at("again.safetensors"));
    const char *again = read_file(at("again.safetensors"), &m);
    if (!strstr(first + 8, "\"weights\":\"raw\"") || !strstr(again + 8, "\"padding\":\"tf_same\"") || !strstr(again + 8, "\"resize\":\"bilinear\"")) fail_msg("%.900s", again + 8);
    /* the values follow the headers, which differ in the step */
    const char *va = strstr(first + 8, "]}}"), *vb = strstr(again + 8, "]}}");
    assert_true(va && vb);
    const size_t values = n - (size_t)(*(const uint64_t *)(const void *)first) - 8;
    assert_int_equal(values, m - (size_t)(*(const uint64_t *)(const void *)again) - 8);
    assert_memory_equal(first + n - values, again + m - values, values);
}

static void what_is_there_stays(void **state)
{
    (void)state;
    const char *file = at("kept.safetensors");
    run(0, 0, "export %s %s", trained(), file);
    says_once(run(2, 0, "export %s %s", trained(), file), "kept.safetensors is there already");
    says_once(run(2, 0, "import %s %s", file, file), "kept.safetensors is there already");
    size_t n;
    read_file(file, &n);
    outcome *o = run_how((how){ .file_limit = (int64_t)n / 2 }, "export %s %s", trained(), at("cut.safetensors"));
    expect_code(o, 1);
    says_once(o, "File too large");
    assert_false(exists(at("cut.safetensors")) || exists(at("cut.safetensors.tmp")));
}

/* A copy of a file with the first `from` in its header become `to`, of the same length. */
static const char *changed(const char *file, const char *from, const char *to)
{
    size_t n;
    char *bytes = read_file(file, &n), *p = strstr(bytes + 8, from);
    if (!p || strlen(from) != strlen(to)) fail_msg("%s cannot become %s in %s", from, to, file);
    memcpy(p, to, strlen(to));
    const char *out = at("changed.safetensors");
    write_file(out, bytes, n);
    return out;
}

static void what_does_not_fit_is_named(void **state)
{
    (void)state;
    const char *t = at("fit.safetensors"), *v = at("fit-tv.safetensors"), *out = at("not.h5");
    run(0, 0, "export %s %s --to timm", trained(), t);
    run(0, 0, "export %s %s --to torchvision", trained(), v);
    says_once(run(2, 0, "import %s %s --model b1", t, out), "says it is efficientnet_b0, and --model says b1");
    says_once(run(3, 0, "import %s %s --width 0.5", t, out), "of another shape (conv_stem.weight (8,3,3,3) instead of (16,3,3,3)");
    says_once(run(3, 0, "import %s %s --from timm", v, out), "by timm's names: of its tensors, 197 are missing (conv_stem.weight");
    says_once(run(3, 0, "import %s %s", changed(t, "blocks.1.0.conv_pw.weight", "blocks.1.0.conv_px.weight"), out),
              "1 is missing (blocks.1.0.conv_pw.weight); 1 is left over (blocks.1.0.conv_px.weight)");
    says_once(run(3, 0, "import %s %s", changed(t, "\"dtype\":\"F32\"", "\"dtype\":\"I32\""), out), "conv_stem.weight is I32; F32, F16 and BF16 are read");
    says_once(run(1, 0, "import %s %s", changed(t, "\"tf_same\"", "\"tf_samx\""), out), "wants the padding 'tf_samx', and this program has tf_same and symmetric");
    says_once(run(1, 0, "import %s %s", changed(t, "0.485", "0.500"), out), "wants pixels with mean [0.500");
    says_once(run(3, 0, "import %s %s", changed(t, "\"bn_eps\":\"0", "\"bn_eps\":\"x"), out), "says bn_eps is 'x");
    says_once(run(3, 0, "import %s %s", changed(t, "\\\"noise\\\"", "\\\"noi\\\"\\\""), out), "class names are not a list of the 10 names");
    says_once(run(2, 0, "import %s %s", changed(t, "\"model\":", "\"mudel\":"), out), "does not say which network it is: --model NAME");
    says_once(run(2, 0, "import %s %s --from keras", t, out), "--from");
    says_once(run(3, 0, "import %s %s", at("absent.safetensors"), out), "cannot be opened");
    says_once(run(3, 0, "export %s %s", at("absent.h5"), at("not.safetensors")), "no such checkpoint");
    shell("head -c 5000 %s > %s", t, at("short.safetensors"));
    says_once(run(3, 0, "import %s %s", at("short.safetensors"), out), "cut short");
    assert_false(exists(out) || exists(at("not.h5.tmp")) || exists(at("not.safetensors")));
}

/* Not a word of the program that wrote it: as from another one. */
static const char *foreign(const char *file)
{
    size_t n;
    char *bytes = read_file(file, &n), *end = strstr(bytes + 8, "},");
    memset(bytes + 9, ' ', (size_t)(end + 2 - bytes - 9));
    const char *out = at("foreign.safetensors");
    write_file(out, bytes, n);
    return out;
}

static void variants_are_carried(void **state)
{
    (void)state;
    const char *v = at("variant.safetensors");
    run(0, 0, "export %s %s --to torchvision", trained(), v);
    const char *f = foreign(v), *as = "--model b0 --width 0.25 --depth 0.5 --image-size 32";
    outcome *o = run(0, 0, "import %s %s %s --class-names %s", f, at("theirs.h5"), as, data());
    if (!strstr(o->out, "symmetric padding, batch-norm eps 1e-05, momentum 0.1, pixels imagenet, resize bicubic-aa")) FAIL_RUN(o, "not torchvision's variant");
    o = run(0, 0, "import %s %s %s --class-names %s --padding tf_same --bn-eps 0.001 --bn-momentum 0.01 --resize bilinear", f, at("ours.h5"), as, data());
    if (!strstr(o->out, "TensorFlow's SAME padding, batch-norm eps 0.001, momentum 0.01, pixels imagenet, resize bilinear")) FAIL_RUN(o, "not as asked");
    const char *want = run(0, 0, "eval --checkpoint %s --data %s --threads 1 --json", trained(), data())->out,
               *same = run(0, 0, "eval --checkpoint %s --data %s --threads 1 --json", at("ours.h5"), data())->out,
               *other = run(0, 0, "eval --checkpoint %s --data %s --threads 1 --json", at("theirs.h5"), data())->out;
    if (number_in(want, "loss") != number_in(same, "loss")) fail_msg("%s instead of %s", same, want);
    if (number_in(want, "loss") == number_in(other, "loss")) fail_msg("another padding and eps evaluate alike: %s", other);
    run(0, 0, "export %s %s", at("theirs.h5"), at("theirs.safetensors"));
    const char *header = read_file(at("theirs.safetensors"), NULL) + 8;
    if (!strstr(header, "\"padding\":\"symmetric\"") || !strstr(header, "\"bn_momentum\":\"0.1")) fail_msg("%.900s", header);

    o = run(0, 0, "import %s %s %s", f, at("nameless.h5"), as);
    if (!strstr(o->out, "without names")) FAIL_RUN(o, "it does not say that names are missing");
    says_once(run(3, 0, "eval --checkpoint %s --data %s --threads 1", at("nameless.h5"), data()), "does not name its classes");
}

static void classes_are_named_by_a_text(void **state)
{
    (void)state;
    const char *v = at("named.safetensors");
    run(0, 0, "export %s %s --to torchvision", trained(), v);
    shell("printf 'a\\r\\nb b\\nc\\nd\\ne\\nf\\ng\\nh\\ni\\nj' > %s; printf 'a\\nb\\n' > %s; printf 'a\\n\\nb\\n' > %s", at("ten"), at("two"), at("gap"));
    says_once(run(3, 0, "import %s %s --class-names %s", v, at("n.h5"), at("two")), "has 2 lines, and the classifier has 10 classes");
    says_once(run(3, 0, "import %s %s --class-names %s", v, at("n.h5"), at("gap")), "line 2 is empty");
    run(0, 0, "import %s %s --class-names %s", v, at("n.h5"), at("ten"));
    outcome *o = run(0, 0, "predict --checkpoint %s --threads 1 --top 10 %s/val/noise/noise_00000.jpg", at("n.h5"), data());
    if (!strstr(o->out, "%  a\n") || !strstr(o->out, "%  b b\n")) FAIL_RUN(o, "other names");
}

/* ---- cam ------------------------------------------------------------------------------------------------------------------ */

/* The numbers of "map" in a JSON text */
static size_t map_in(const char *json, double *map, size_t most)
{
    const char *p = strstr(json, "\"map\":[");
    size_t n = 0;
    assert_non_null(p);
    for (p += 6; *p && *p != ']' && n < most; p = strpbrk(p, ",]")) map[n++] = strtod(p + 1, (char **)&p);
    return n;
}

static void maps_average_to_their_logit(void **state)
{
    (void)state;
    static const char *const classes[] = { "noise", "3", "9", NULL };
    const char *file = textf("%s/val/rings/rings_00001.jpg", data()), *predicted = run(0, 0, "predict --checkpoint %s --threads 1 --eval-size 96 --top 1 --json %s", trained(), file)->out;
    double other = 0;
    for (int k = 0; k < 4; k++) {
        const char *json = run(0, 0, "cam %s --checkpoint %s --threads 1 --eval-size 96 --out %s --json%s%s", file, trained(), at("cam%d.png", k), classes[k] ? " --class " : "",
                               classes[k] ? classes[k] : "")->out;
        double map[64], sum = 0, size = 0;
        const size_t n = map_in(json, map, 64);
        assert_int_equal(n, 9);
        assert_int_equal(number_in(json, "height"), 3);
        for (size_t i = 0; i < n; i++) sum += map[i], size += fabs(map[i]);
        const double logit = number_in(json, "logit"), from_map = sum / (double)n + number_in(json, "bias");
        /* 160 products and 9 places, summed in float32 on the one side: 2^-24 each of the size of the terms, and their number for safety */
        if (!(fabs(logit - from_map) <= 2e-5 * (size / (double)n + fabs(logit)))) fail_msg("the map gives %.9g, the logit is %.9g: %s", from_map, logit, json);
        if (k > 0 && logit == other) fail_msg("two classes have one logit: %s", json);
        other = logit;
        size_t bytes;
        const char *png = read_file(at("cam%d.png", k), &bytes);
        assert_true(bytes > 1000 && memcmp(png, "\x89PNG\r\n\x1a\n", 8) == 0);
        if (classes[k]) continue;
        assert_int_equal(number_in(json, "index"), number_in(predicted, "index"));
        if (fabs(number_in(json, "probability") - number_in(predicted, "probability")) > 2e-6) fail_msg("%s instead of %s", json, predicted);
    }
    says_once(run(2, 0, "cam %s --checkpoint %s --threads 1 --class noice --out %s", file, trained(), at("no.png")), "there is no class 'noice'; did you mean 'noise'?");
    says_once(run(2, 0, "cam %s --checkpoint %s --threads 1 --class 10 --out %s", file, trained(), at("no.png")), "there are classes 0 to 9");
    says_once(run(2, 0, "cam %s --checkpoint %s --threads 1 --class -1 --out %s", file, trained(), at("no.png")), "there are classes 0 to 9");
    says_once(run(1, 0, "cam %s --checkpoint %s --threads 1 --out %s", file, trained(), at("absent/no.png")), "cannot create");
    says_once(run(3, 0, "cam %s --checkpoint %s --threads 1 --out %s", at("run/run.txt"), trained(), at("no.png")), "run.txt is not an image");
    assert_false(exists(at("no.png")) || exists(at("no.png.tmp")));
}

/* ---- train --init ----------------------------------------------------------------------------------------------------------- */

/* One step at a rate of 0 changes no weight, only running statistics. */
#define TUNE SMALL " --global-batch 20 --warmup-epochs 0 --lr 0 --ema 0.9 --checkpoint-every 0 --eval-every 0"

/* Are the trained tensors of /model what `group` of the other file has?  The classifier too, when `head`; else it must differ. */
static void began_with(const char *run_dir, const char *file, const char *group, bool head)
{
    size_t n, m;
    const tensor *x = tensors(checkpoint_of(run_dir, 1), "/model", &n), *y = tensors(file, group, &m);
    assert_int_equal(n, m);
    for (size_t i = 0; i < n; i++) {
        const bool classifier = strstr(x[i].name, "classifier.") != NULL, same = x[i].n == y[i].n && memcmp(x[i].v, y[i].v, x[i].n * sizeof(float)) == 0;
        if (!strstr(x[i].name, "running_") && same != (head || !classifier)) fail_msg("%s %s that of %s", x[i].name, same ? "is" : "is not", file);
    }
}

static void a_training_begins_with_weights(void **state)
{
    (void)state;
    trained();
    const char *st = at("init.safetensors"), *best = at("run/checkpoints/best.h5");                      /* what a run's folder stands for */
    run(0, 0, "export %s %s --to torchvision --weights raw", trained(), st);
    outcome *o = run(0, 2, "train " TUNE " --steps 1 --data %s --run %s --init %s", data(), at("tuned"), trained());       /* two ranks: both receive them */
    if (!strstr(o->out, "begins with") || !strstr(o->out, "averaged weights, with the classifier\n")) FAIL_RUN(o, "it does not say with what it begins");
    began_with(at("tuned"), best, "/ema", true);
    run(0, 0, "train " TUNE " --steps 1 --data %s --run %s --init %s", data(), at("tuned-st"), st);
    began_with(at("tuned-st"), best, "/model", true);

    run(0, 0, "synth %s --train-per-class 6 --val-per-class 2 --synth-size 48 --synth-classes 4", at("four"));
    o = run(0, 0, "train " TUNE " --steps 1 --data %s --run %s --init %s", at("four"), at("tuned-four"), best);
    if (!strstr(o->out, "without the classifier, which is new: 4 classes instead of 10\n")) FAIL_RUN(o, "it does not say that the classifier is new");
    began_with(at("tuned-four"), best, "/ema", false);
    shell("cp -r %s %s && mv %s/train/noise %s/train/snow && mv %s/val/noise %s/val/snow", data(), at("other"), at("other"), at("other"), at("other"), at("other"));
    o = run(0, 0, "train " TUNE " --steps 1 --data %s --run %s --init %s", at("other"), at("tuned-other"), best);
    if (!strstr(o->out, "which is new: 10 other classes\n")) FAIL_RUN(o, "it does not say that the classifier is new");
    began_with(at("tuned-other"), best, "/ema", false);

    says_once(run(2, 2, "train " TUNE " --steps 1 --model b1 --data %s --run %s --init %s", data(), at("no"), best), "holds efficientnet_b0 (width 0.25, depth 0.5), the options ask for efficientnet_b1");
    says_once(run(2, 0, "train " TUNE " --steps 1 --model b1 --data %s --run %s --init %s", data(), at("no"), st), "says it is efficientnet_b0");
    says_once(run(3, 0, "train " TUNE " --steps 1 --data %s --run %s --init %s", data(), at("no"), at("absent")), "cannot be opened");
}

/* What comes with the weights stays with them: in training, in its checkpoints, and when a run goes on without the file. */
static void a_variant_stays_with_its_weights(void **state)
{
    (void)state;
    const char *st = at("begin.safetensors"), *theirs = at("begin.h5");
    run(0, 0, "export %s %s --to torchvision", trained(), st);
    run(0, 0, "import %s %s --model b0 --width 0.25 --depth 0.5 --image-size 32", foreign(st), theirs);
    outcome *o = run(0, 2, "train " TUNE " --steps 1 --data %s --run %s --init %s", data(), at("sym"), theirs);
    if (!strstr(o->out, "they want symmetric padding and a batch-norm eps of 1e-05")) FAIL_RUN(o, "it does not say which padding");
    shell("rm %s", theirs);
    run(0, 2, "train " TUNE " --steps 2 --data %s --run %s --init %s", data(), at("sym"), theirs);
    run(0, 0, "export %s %s", checkpoint_of(at("sym"), 2), at("sym.safetensors"));
    const char *header = read_file(at("sym.safetensors"), NULL) + 8;
    if (!strstr(header, "\"padding\":\"symmetric\"") || !strstr(header, "\"bn_eps\":\"9.9999") || !strstr(header, "\"step\":\"2\"")) fail_msg("%.900s", header);
    size_t n;
    const metric *during = metrics(at("sym"), "eval", &n);
    const char *after = run(0, 0, "eval --checkpoint %s --data %s --threads 1 --json", checkpoint_of(at("sym"), 2), data())->out;
    assert_true(n > 0);
    if (!(fabs(during[n - 1].loss - number_in(after, "loss")) <= 1e-5 * during[n - 1].loss)) fail_msg("training saw %s, eval %s", during[n - 1].text, after);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(export_and_import_keep_every_bit), cmocka_unit_test(what_is_there_stays), cmocka_unit_test(what_does_not_fit_is_named),
        cmocka_unit_test(variants_are_carried), cmocka_unit_test(classes_are_named_by_a_text),
        cmocka_unit_test(maps_average_to_their_logit), cmocka_unit_test(a_training_begins_with_weights),
        cmocka_unit_test(a_variant_stays_with_its_weights),
    };
    return program_main("program_exchange", tests, sizeof tests / sizeof *tests);
}
