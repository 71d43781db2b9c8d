/* test_program_freeze.c - --freeze from outside: what stands still keeps its bits, whatever the ranks do; the rest trains and goes on. */
#include "program.h"

#define SMALL "--width 0.25 --depth 0.5 --image-size 32 --threads 1 --eval-every 0 --warmup-epochs 0 --augment basic"

static const char *data(void) { return drawn("--train-per-class 4 --val-per-class 1 --synth-size 48"); }

/* Weights whose averages differ from them, and statistics that are no longer 0 and 1. */
static const char *base(void)
{
    static const char *made;
    if (!made) {
        run(0, 0, "train " SMALL " --global-batch 20 --ema 0.9 --bn-momentum 0.1 --steps 6 --data %s --run %s", data(), at("base"));
        made = checkpoint_of(at("base"), 6);
    }
    return made;
}

/* Frozen: the stem, conv_stem and bn1, and blocks.0 to blocks.2 */
static bool is_frozen(const char *path, bool features)
{
    const char *name = strrchr(path, '/') + 1;
    if (features) return strncmp(name, "classifier", 10) != 0;
    return strncmp(name, "conv_stem", 9) == 0 || strncmp(name, "bn1", 3) == 0 || strncmp(name, "blocks.0", 8) == 0 || strncmp(name, "blocks.1", 8) == 0 ||
           strncmp(name, "blocks.2", 8) == 0;
}

/* Frozen tensors of `group` are those of the base's averages; the others are not. */
static void keeps(const char *checkpoint, const char *group, bool features)
{
    size_t n, m;
    int kept = 0, moved = 0;
    const tensor *a = tensors(base(), "/ema", &m), *b = tensors(checkpoint, group, &n);
    assert_int_equal(n, m);
    for (size_t i = 0; i < n; i++) {
        const bool same = a[i].n == b[i].n && memcmp(a[i].v, b[i].v, a[i].n * sizeof(float)) == 0;
        if (is_frozen(b[i].name, features) && !same) fail_msg("%s of %s has moved", b[i].name, checkpoint);
        kept += same;
        moved += !same;
    }
    if (kept < (features ? 100 : 40) || moved < (features ? 2 : 50)) fail_msg("%s of %s: %d tensors stand still, %d have moved", group, checkpoint, kept, moved);
}

/* Accumulators of frozen layers are as they began. */
static void has_not_begun(const char *checkpoint, const char *group, float begin)
{
    size_t n;
    const tensor *t = tensors(checkpoint, group, &n);
    int still = 0;
    for (size_t i = 0; i < n; i++)
        for (size_t e = 0; is_frozen(t[i].name, false) && e < t[i].n; e++, still++)
            if (t[i].v[e] != begin) fail_msg("%s of %s has %g", t[i].name, checkpoint, (double)t[i].v[e]);
    assert_true(still > 1000);
}

static void what_is_frozen_keeps_its_bits(void **state)
{
    (void)state;
    static const struct { const char *options; int ranks; const char *slots[2]; } ways[] = {
        { "--freeze blocks.2", 0, { "ms", "mom" } },           { "--freeze blocks.2 --bn-group 1", 3, { "ms", "mom" } },      /* a third is no number of two bits */
        { "--freeze blocks.2.0 --optimizer lars --lr 20", 2, { NULL, "momentum" } } };
    for (int i = 0; i < 3; i++) {
        const char *dir = at("kept%d", i);
        outcome *o = run(0, ways[i].ranks, "train " SMALL " --global-batch 12 --weight-decay 0.01 --ema 0.5 --steps 10 --data %s --run %s --init %s %s", data(), dir, base(),
                         ways[i].options);
        if (!strstr(o->out, "  frozen      blocks.2")) FAIL_RUN(o, "the header does not say it");
        keeps(checkpoint_of(dir, 10), "/model", false);
        keeps(checkpoint_of(dir, 10), "/ema", false);
        if (ways[i].slots[0]) has_not_begun(checkpoint_of(dir, 10), textf("/optimizer/%s", ways[i].slots[0]), 1);
        has_not_begun(checkpoint_of(dir, 10), textf("/optimizer/%s", ways[i].slots[1]), 0);
    }
    outcome *o = run(0, 2, "train " SMALL " --global-batch 12 --steps 10 --ema 0.5 --data %s --run %s --init %s --freeze features", data(), at("features"), base());
    if (!strstr(o->out, "  frozen      features: 0.")) FAIL_RUN(o, "the header does not say it");
    keeps(checkpoint_of(at("features"), 10), "/model", true);
    keeps(checkpoint_of(at("features"), 10), "/ema", true);
}

/* Two ranks train as one, and a run that was stopped as one that was not. */
static void a_run_with_frozen_layers_goes_on(void **state)
{
    (void)state;
    const char *command = textf("train " SMALL " --global-batch 12 --steps 8 --data %s --init %s --freeze blocks.1 --drop-path 0.3 --ema 0.5", data(), base());
    run(0, 2, "%s --run %s", command, at("whole"));
    run(75, 2, "%s --run %s --stop-after 3", command, at("parts"));
    says_once(run(2, 0, "train " SMALL " --global-batch 12 --steps 8 --ema 0.5 --data %s --run %s", data(), at("parts")),
              "was trained with --freeze blocks.1, now there is none: give the same, or begin another run with --init");
    says_once(run(2, 0, "train " SMALL " --global-batch 12 --steps 8 --ema 0.5 --data %s --run %s --freeze stem", data(), at("parts")), "now there is --freeze stem");
    run(0, 2, "%s --run %s", command, at("parts"));
    same_bits(checkpoint_of(at("whole"), 8), checkpoint_of(at("parts"), 8));
    run(0, 0, "%s --run %s", command, at("one"));
    char worst[160];
    const double apart = largest_deviation(checkpoint_of(at("one"), 8), checkpoint_of(at("whole"), 8), "/model", worst);
    if (!(apart < 1e-3)) fail_msg("%s: one rank and two are %g apart", worst, apart);
    says_once(run(2, 0, "train " SMALL " --data %s --run %s --freeze block.1", data(), at("none")), "has no layer 'block.1'; did you mean blocks.1?");
    says_once(run(2, 0, "describe b0 --freeze stem"), "give --memory too");
    outcome *o = run(0, 0, "describe b0 --memory --freeze features");
    if (strstr(o->out, "blocks.0.0 dz2")) FAIL_RUN(o, "a way back is planned");
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(what_is_frozen_keeps_its_bits), cmocka_unit_test(a_run_with_frozen_layers_goes_on) };
    return program_main("program_freeze", tests, sizeof tests / sizeof *tests);
}
