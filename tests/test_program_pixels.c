/* test_program_pixels.c - what pixels become and which part of a picture is evaluated, from training to prediction and to other programs:
 * EfficientNetV2 S to XL have their own, and a checkpoint says with which it was trained. */
#include "program.h"

#include <math.h>

#define MODEL "--model v2s --width 0.34 --depth 0.13 "
#define SMALL MODEL "--image-size 32 --threads 1 --device cpu "

static const char *data(void)
{
    static const char *made;
    if (!made) made = drawn("--train-per-class 3 --val-per-class 1 --synth-size 48 --synth-classes 4");
    return made;
}

static const char *trained(void)
{
    static const char *made;
    if (!made) {
        outcome *o = run(0, 0, "train " SMALL "--global-batch 12 --ema 0.5 --steps 4 --warmup-epochs 0 --data %s --run %s", data(), at("run"));
        if (!strstr(o->out, "; bicubic, (v - 128) / 128; ")) FAIL_RUN(o, "the header does not say what pixels become");
        made = at("run");
    }
    return made;
}

/* The largest distance of the dumped pixels v*scale + centre from integers: augmented pictures are bytes before they are normalised. */
static double off_integers(const char *dump, double scale, double centre, double *low, double *high)
{
    size_t n;
    const tensor *t = tensors(dump, "/batch", &n);
    double worst = 0;
    *low = INFINITY, *high = -INFINITY;
    for (size_t i = 0; i < n; i++) {
        if (!strstr(t[i].name, "images")) continue;
        for (size_t k = 0; k < t[i].n; k++) {
            const double v = (double)t[i].v[k] * scale + centre;
            worst = fmax(worst, fabs(v - rint(v)));
            *low = fmin(*low, v), *high = fmax(*high, v);
        }
        return worst;
    }
    fail_msg("%s has no /batch/images", dump);
    return 0;
}

static void training_feeds_the_models_own_pixels(void **state)
{
    (void)state;
    static const struct { const char *options; double scale; } ways[] = { { SMALL, 128 }, { SMALL "--normalise unit", 127.5 },
                                                                          { "--width 0.25 --depth 0.5 --image-size 32 --normalise half", 128 } };
    for (int i = 0; i < 3; i++) {
        double low, high;
        run(0, 0, "train %s --global-batch 8 --steps 1 --data %s --run %s --dump %s", ways[i].options, data(), at("fed%d", i), at("fed%d.h5", i));
        const double worst = off_integers(at("fed%d.h5", i), ways[i].scale, ways[i].scale, &low, &high);
        if (worst > 1e-4 || low < -1e-4 || high > 255.0001 || high - low < 100) fail_msg("%s: %g off integers, from %g to %g", ways[i].options, worst, low, high);
    }
    double low, high;
    run(0, 0, "train " SMALL "--normalise imagenet --global-batch 8 --steps 1 --data %s --run %s --dump %s", data(), at("fed9"), at("fed9.h5"));
    assert_true(off_integers(at("fed9.h5"), 128, 128, &low, &high) > 0.2);       /* the same check sees other pixels */
}

static void a_checkpoint_says_which(void **state)
{
    (void)state;
    run(0, 0, "train " SMALL "--global-batch 12 --ema 0.5 --steps 5 --warmup-epochs 0 --data %s --run %s", data(), trained());
    says_once(run(2, 0, "train " SMALL "--normalise imagenet --global-batch 12 --ema 0.5 --steps 6 --warmup-epochs 0 --data %s --run %s", data(), trained()),
              "the checkpoint wants pixels as --normalise half makes them, not imagenet: leave --normalise out");
    says_once(run(2, 0, "eval --checkpoint %s --data %s --normalise unit", trained(), data()), "as --normalise half makes them, not unit");
    says_once(run(2, 0, "predict --checkpoint %s %s/val/noise/noise_00000.jpg --normalise imagenet", trained(), data()), "not imagenet");
    says_once(run(2, 0, "train " SMALL "--normalise imagenet --global-batch 12 --steps 1 --data %s --run %s --init %s", data(), at("fine"), trained()),
              "--init wants pixels as --normalise half makes them");
    outcome *o = run(0, 0, "train " SMALL "--global-batch 12 --steps 1 --data %s --run %s --init %s", data(), at("fine"), trained());
    if (!strstr(o->out, "(v - 128) / 128")) FAIL_RUN(o, "fine-tuning feeds other pixels");
    /* weights trained with others carry them along, though the network's own are half */
    run(0, 0, "train " SMALL "--normalise imagenet --global-batch 12 --steps 1 --data %s --run %s", data(), at("other"));
    o = run(0, 0, "train " SMALL "--global-batch 12 --steps 1 --data %s --run %s --init %s", data(), at("fine2"), at("other"));
    if (strstr(o->out, "128) / 128")) FAIL_RUN(o, "fine-tuning feeds other pixels than the weights were trained with");
}

/* One class's logit of the first picture, as eval, predict and cam see it. */
static double loss(const char *checkpoint, const char *options)
{
    return number_in(run(0, 0, "eval --checkpoint %s --data %s --threads 1 --device cpu --json %s", checkpoint, data(), options)->out, "loss");
}

static void evaluation_looks_at_what_it_is_told(void **state)
{
    (void)state;
    const char *c = trained();
    /* below 320 px the middle, whose side (29 of 48 at 50 px) and so its corner, (48 - 29) / 2, V2's code rounds otherwise; from there all */
    const double small = loss(c, "--eval-size 50"), large = loss(c, "--eval-size 320");
    assert_true(small == loss(c, "--eval-size 50 --eval-crop v2") && small != loss(c, "--eval-size 50 --eval-crop none"));
    assert_true(small != loss(c, "--eval-size 50 --eval-crop reference"));
    assert_true(large == loss(c, "--eval-size 320 --eval-crop none") && large != loss(c, "--eval-size 320 --eval-crop reference"));

    /* predict and cam see the same numbers: the probabilities of all pictures give the loss */
    double total = 0;
    static const char *const classes[] = { "blobs", "checker", "circles", "gradient", "noise", "rings", "stripes", "waves", "dots", "grid", "triangles", "squares", "crosses" };
    int pictures = 0;
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++) {
        const char *file = textf("%s/val/%s/%s_00000.jpg", data(), classes[i], classes[i]);
        if (!exists(file)) continue;
        const char *json = run(0, 0, "predict --checkpoint %s --threads 1 --device cpu --json --top 10 --eval-size 320 %s", c, file)->out;
        const char *own = strstr(json, textf("\"class\":\"%s\"", classes[i]));
        assert_non_null(own);
        total -= log(number_in(own, "probability"));
        const char *map = run(0, 0, "cam %s --checkpoint %s --threads 1 --device cpu --json --eval-size 320 --class %s --out %s", file, c, classes[i], at("cam.png"))->out;
        assert_true(fabs(number_in(map, "probability") - number_in(own, "probability")) < 2e-6);
        pictures++;
    }
    assert_int_equal(pictures, 4);
    if (!(fabs(total / pictures - large) < 1e-4)) fail_msg("predict's loss is %g, eval's %g", total / pictures, large);     /* six digits of each are printed */
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

static void other_programs_are_told(void **state)
{
    (void)state;
    const char *file = at("half.safetensors");
    outcome *o = run(0, 0, "export %s %s", trained(), file);
    if (!strstr(o->out, "note: these weights want pixels with mean 128 and deviation 128 of 255 (red); timm's efficientnetv2_s has others")) FAIL_RUN(o, "no note");
    const char *header = read_file(file, NULL) + 8;
    if (!strstr(header, "\"mean\":\"[0.501961, 0.501961, 0.501961]\"") || !strstr(header, "\"eval_crop\":\"v2\"")) fail_msg("%.1200s", header);
    o = run(0, 0, "import %s %s", file, at("half.h5"));
    if (!strstr(o->out, "pixels half,")) FAIL_RUN(o, "other pixels");
    assert_true(loss(at("half.h5"), "") == loss(trained(), "") && loss(at("half.h5"), "--eval-size 320") == loss(trained(), "--eval-size 320"));
    says_once(run(2, 0, "import %s %s --normalise unit", file, at("not.h5")), "wants pixels as --normalise half makes them, not unit");
    says_once(run(1, 0, "import %s %s", changed(file, "\"v2\"", "\"v9\""), at("not.h5")), "wants the evaluation crop 'v9'");

    /* the same weights under the other scale: near, and not the same */
    const char *same_length = changed(file, "[0.501961, 0.501961, 0.501961]", "[0.500000, 0.500000, 0.500000]");
    says_once(run(1, 0, "import %s %s", same_length, at("not.h5")), "wants pixels with mean [0.500000, 0.500000, 0.500000] and std [0.501961");
    char *bytes = read_file(same_length, NULL);
    assert_non_null(strstr(bytes + 8, "\"std\":\"[0.501961"));
    copy_file(same_length, at("mean.safetensors"));
    o = run(0, 0, "import %s %s", changed(at("mean.safetensors"), "[0.501961, 0.501961, 0.501961]", "[0.500000, 0.500000, 0.500000]"), at("unit.h5"));
    if (!strstr(o->out, "pixels unit,")) FAIL_RUN(o, "other pixels");
    const double apart = fabs(loss(at("unit.h5"), "") - loss(trained(), ""));
    assert_true(apart > 0 && apart < 0.1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(training_feeds_the_models_own_pixels), cmocka_unit_test(a_checkpoint_says_which), cmocka_unit_test(evaluation_looks_at_what_it_is_told),
        cmocka_unit_test(other_programs_are_told),
    };
    return program_main("program_pixels", tests, sizeof tests / sizeof *tests);
}
