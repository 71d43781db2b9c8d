/* test_options.c - the command line: what is understood, what is refused, and that a refusal says value and remedy. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "trainer/nearest.h"
#include "trainer/optimizer.h"
#include "trainer/options.h"

enum { ALL = EN_TRAIN | EN_EVAL | EN_PREDICT | EN_DESCRIBE | EN_SYNTH | EN_DOCTOR | EN_BENCH | EN_PACK | EN_EXPORT | EN_IMPORT | EN_CAM | EN_SEARCH | EN_SCALING };

/* Parses words, ended by NULL, into *o (static storage for argv: operands are borrowed from it). */
static en_status parse(int command, en_options *o, const char *const *words)
{
    static char *argv[32];
    int argc = 0;
    bool help;
    while (words[argc]) {
        argv[argc] = (char *)words[argc];
        argc++;
    }
    en_error_clear();
    return en_options_parse(command, argc, argv, 0, o, &help);
}
#define PARSE(command, o, ...) parse(command, o, (const char *const[]){ __VA_ARGS__, NULL })

static void defaults_are_the_papers(void **state)
{
    (void)state;
    en_options o;
    assert_int_equal(parse(EN_TRAIN, &o, (const char *const[]){ NULL }), EN_OK);
    assert_string_equal(o.model, "efficientnet_b0");
    assert_true(o.epochs == 350 && o.lr == 0.016 && o.lr_decay == 0.97 && o.lr_decay_epochs == 2.4 && o.warmup_epochs == 5);
    assert_true(o.momentum == 0.9 && o.rho == 0.9 && o.weight_decay == 1e-5 && o.ema == 0.9999);
    en_optimizer p;
    assert_int_equal(en_optimizer_of(&o, &p), EN_OK);
    assert_true(p.kind == EN_RMSPROP && p.n_slots == 2 && p.rmsprop.rho == 0.9f && p.rmsprop.momentum == 0.9f && p.rmsprop.eps == 1e-3f);
    assert_true(o.label_smoothing == 0.1 && o.dropout == -1 && o.drop_path == -1);
    assert_string_equal(o.data, "");
    assert_false(o.fresh);
    assert_true(o.checkpoint_every.unit == EN_SPAN_EPOCHS && o.checkpoint_every.count == 1);
    assert_int_equal(o.max_pixels, 178956970);
    assert_int_equal(o.operands, 0);
    assert_false(en_option_given(&o, "lr"));
}

static void values_follow_or_are_joined_and_given_is_remembered(void **state)
{
    (void)state;
    en_options o;
    assert_int_equal(PARSE(EN_TRAIN, &o, "--global-batch", "256", "--lr=0.5", "--fresh", "--dropout", "-1", "--data", "a=b",
                           "--run=", "--log_every", "2.5", "--seed", "9223372036854775807", "--bn-group", "4"), EN_OK);
    assert_int_equal(o.global_batch, 256);
    assert_true(o.lr == 0.5 && o.fresh && o.dropout == -1 && o.log_every == 2.5);
    assert_string_equal(o.data, "a=b");
    assert_string_equal(o.run, "");
    assert_string_equal(o.bn_group, "4");
    assert_int_equal(o.seed, INT64_MAX);
    assert_true(en_option_given(&o, "global_batch") && en_option_given(&o, "fresh") && en_option_given(&o, "run"));
    assert_true(en_option_given(&o, "seed") && !en_option_given(&o, "epochs") && !en_option_given(&o, "nonsense"));
}

static void spans_are_steps_epochs_or_time(void **state)
{
    (void)state;
    static const struct { const char *text; int unit; double count; } good[] = {
        { "100", EN_SPAN_STEPS, 100 }, { "2e", EN_SPAN_EPOCHS, 2 },     { "0.5e", EN_SPAN_EPOCHS, 0.5 },
        { "15m", EN_SPAN_SECONDS, 900 }, { "0", EN_SPAN_STEPS, 0 },     { "1e3", EN_SPAN_STEPS, 1000 },
        { "90s", EN_SPAN_SECONDS, 90 }, { "3h50m", EN_SPAN_SECONDS, 13800 }, { "1h30m20s", EN_SPAN_SECONDS, 5420 }, { "1h20s", EN_SPAN_SECONDS, 3620 },
        { "1.5h", EN_SPAN_SECONDS, 5400 }, { "1h0.5m", EN_SPAN_SECONDS, 3630 }, { "0s", EN_SPAN_SECONDS, 0 }, { ".5s", EN_SPAN_SECONDS, 0.5 } };
    static const char *const bad[] = { "", "e", "1.5", "-1", "2 e", "2ee", "nan", "inf", "0x10", "1e30", "h", "m15", "15M", "1.5h20m",
                                        "20s1h", "1h2h", "15ms", "-15m", "1h-5m", "1e2m", "3:50", "1h30", "1d", "15m ", "5min", "9007199254740993s" };
    en_options o;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(PARSE(EN_TRAIN, &o, "--eval-every", good[i].text), EN_OK);
        assert_int_equal((int)o.eval_every.unit, good[i].unit);
        assert_true(o.eval_every.count == good[i].count);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (PARSE(EN_TRAIN, &o, "--eval-every", bad[i]) != EN_EUSAGE) fail_msg("'%s' was taken", bad[i]);
        assert_non_null(strstr(en_error_message(), "epochs"));
        assert_non_null(strstr(en_error_message(), "3h50m"));
    }
}

/* run.txt and the checkpoint keep spans as text; the same bits come back. */
static void spans_are_written_as_they_are_read(void **state)
{
    (void)state;
    static const struct { const char *text, *written; } spans[] = {
        { "3h50m", "3h50m" },   { "90s", "1m30s" }, { "1h30m20s", "1h30m20s" }, { "230m", "3h50m" }, { "1.5h", "1h30m" }, { "25h", "25h" },
        { "0m", "0s" },         { "0.1s", "0.1s" }, { "1h0.1s", "3600.1s" },    { "0.001m", "0.06s" }, { "100", "100" },  { "0.5e", "0.5e" },
        { "1000000e", "1000000e" }, { "1e300e", "1e+300e" }, { "9007199254740991", "9007199254740991" } };
    for (size_t i = 0; i < sizeof spans / sizeof *spans; i++) {
        char text[48];
        en_span s, again;
        assert_true(en_span_read(spans[i].text, &s));
        en_span_write(&s, text, sizeof text);
        assert_string_equal(text, spans[i].written);
        assert_true(en_span_read(text, &again) && again.unit == s.unit && again.count == s.count);
    }
    for (double x = 1.0 / 3; x < 1e9; x *= 7.3) {              /* any fraction of a second */
        char text[48];
        en_span s = { EN_SPAN_SECONDS, x }, again;
        en_span_write(&s, text, sizeof text);
        if (!en_span_read(text, &again) || again.count != x) fail_msg("%.17g was written '%s'", x, text);
    }
}

static void spans_miswritten_are_told_the_nearest_form(void **state)
{
    (void)state;
    static const struct { const char *text, *meant; } spans[] = {
        { "3:50", "3h50m" },    { "3:50:20", "3h50m20s" }, { "1h30", "1h30m" },   { "15min", "15m" },   { "15 minutes", "15m" }, { "90 sec", "1m30s" },
        { "1d", "24h" },        { "1d12h", "36h" },        { "20s1h", "1h20s" },  { "1.5h20m", "1h50m" }, { "2 e", "2e" },      { "2epochs", "2e" },
        { "2E", "2e" },         { "15M", "15m" },          { "3H50M", "3h50m" },  { "100 steps", "100" }, { "1.5", "2" },       { "-15m", "15m" },
        { "15ms", NULL },       { "2ee", NULL },           { "1e2h", NULL },      { "soon", NULL },     { "", NULL },            { "1:2:3:4", NULL } };
    for (size_t i = 0; i < sizeof spans / sizeof *spans; i++) {
        char expected[80];
        en_options o;
        assert_int_equal(PARSE(EN_TRAIN, &o, "--stop-after", spans[i].text), EN_EUSAGE);
        snprintf(expected, sizeof expected, "--stop-after '%s': did you mean %s?", spans[i].text, spans[i].meant ? spans[i].meant : "");
        if (spans[i].meant ? !strstr(en_error_message(), expected) : !!strstr(en_error_message(), "did you mean"))
            fail_msg("'%s': \"%s\"", spans[i].text, en_error_message());
    }
}

static void operands_are_kept_in_order(void **state)
{
    (void)state;
    en_options o;
    assert_int_equal(PARSE(EN_PREDICT, &o, "a.jpg", "--top", "3", "b.jpg", "--", "--c.jpg", "-"), EN_OK);
    assert_int_equal(o.operands, 4);
    assert_string_equal(o.operand[0], "a.jpg");
    assert_string_equal(o.operand[1], "b.jpg");
    assert_string_equal(o.operand[2], "--c.jpg");
    assert_string_equal(o.operand[3], "-");
    assert_int_equal(o.top, 3);
}

static void help_is_asked_for_anywhere(void **state)
{
    (void)state;
    static const char *const asked[] = { "--help", "-h" };
    for (int i = 0; i < 2; i++) {
        char *argv[] = { (char *)"effnet", (char *)"predict", (char *)asked[i], (char *)"--never-reached" };
        en_options o;
        bool help = false;
        assert_int_equal(en_options_parse(EN_PREDICT, 4, argv, 2, &o, &help), EN_OK);
        assert_true(help);
    }
}

/* Each refusal is one line, exit code 2, and says what the user needs to put it right. */
static void refusals_say_value_and_remedy(void **state)
{
    (void)state;
    static const struct { int command; const char *words[4], *says[3]; } bad[] = {
        { EN_TRAIN, { "--global-bacth", "8" },    { "--global-bacth", "did you mean --global-batch?" } },
        { EN_TRAIN, { "--glob=8" },               { "did you mean --global-batch?" } },
        { EN_TRAIN, { "--zzzzzzzzzzzzzzz" },      { "--zzzzzzzzzzzzzzz", "effnet help train" } },
        { EN_EVAL, { "--epochs", "3" },           { "--epochs", "train", "effnet help eval" } },
        { EN_TRAIN, { "--top", "3" },             { "but of: predict" } },
        { EN_TRAIN, { "--lr" },                   { "--lr needs a value", "per 256" } },
        { EN_TRAIN, { "--run", "--fresh" },       { "--run needs a value", "--fresh follows", "--run=--fresh" } },
        { EN_TRAIN, { "--fresh=yes" },            { "--fresh takes no value", "yes" } },
        { EN_TRAIN, { "--lr", "fast" },           { "--lr 'fast'", "not a number" } },
        { EN_TRAIN, { "--lr", "nan" },            { "not a number" } },
        { EN_TRAIN, { "--lr", "-0.1" },           { "--lr -0.1", "0 or more" } },
        { EN_TRAIN, { "--steps", "12.5" },        { "--steps 12.5", "whole number" } },
        { EN_TRAIN, { "--steps", "10x" },         { "--steps '10x'", "not a number" } },
        { EN_TRAIN, { "--steps", "" },            { "not a number" } },
        { EN_TRAIN, { "--steps", "99999999999999999999" }, { "whole number" } },
        { EN_TRAIN, { "--label-smoothing", "1" }, { "--label-smoothing 1", "at least 0 and below 1" } },
        { EN_TRAIN, { "--dropout", "-0.5" },      { "--dropout -0.5", "-1, or at least 0 and below 1" } },
        { EN_TRAIN, { "--lr-decay", "0" },        { "above 0 and at most 1" } },
        { EN_TRAIN, { "--epochs", "0" },          { "--epochs 0", "above 0" } },
        { EN_TRAIN, { "--image-size", "16" },     { "--image-size 16", "0, or 32 to 4096" } },
        { EN_TRAIN, { "--keep", "0" },            { "--keep 0", "1 to 1000000" } },
        { EN_TRAIN, { "--keep", "4294967297" },   { "out of range" } },
        { EN_TRAIN, { "--bn-group", "0" },        { "--bn-group '0'", "all, node, 1 or more, or a number with i behind it" } },
        { EN_TRAIN, { "--bn-group", "2.5" },      { "--bn-group '2.5'" } },
        { EN_TRAIN, { "--bn-group", "1e1" },      { "--bn-group '1e1'" } },
        { EN_TRAIN, { "--bn-group", "+2" },       { "--bn-group '+2'" } },
        { EN_TRAIN, { "--recipe", "x" },          { "--recipe 'x'", "use efficientnet, " } },
        { EN_TRAIN, { "--bn-group", "nodes" },    { "did you mean node?" } },
        { EN_TRAIN, { "--lr-schedule", "cosin" }, { "did you mean cosine?", "exponential, cosine, constant or polynomial" } },
        { EN_TRAIN, { "--device", "abacus" },     { "--device 'abacus'", "cuda or cpu" } },
        { EN_EVAL, { "--eval-weights", "best" },  { "ema or raw" } },
        { EN_SYNTH, { "d", "--synth-classes", "11" }, { "2 to 10" } },
        { EN_TRAIN, { "images" },                 { "'images'", "options begin with --" } },
        { EN_TRAIN, { "-b", "8" },                { "-b" } },
        { EN_SYNTH, { NULL },                     { "missing", "effnet synth DIR" } },
        { EN_PREDICT, { "--top", "3" },           { "FILE..." } },
        { EN_SYNTH, { "a", "b" },                 { "too many", "'b'" } } };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        en_options o;
        const char *first = bad[i].words[0] ? bad[i].words[0] : "(nothing)";
        if (parse(bad[i].command, &o, bad[i].words) != EN_EUSAGE) fail_msg("%s was taken", first);
        for (int k = 0; k < 3 && bad[i].says[k]; k++)
            if (!strstr(en_error_message(), bad[i].says[k]))
                fail_msg("%s: \"%s\" does not say \"%s\"", first, en_error_message(), bad[i].says[k]);
        assert_null(strchr(en_error_message(), '\n'));
    }
}

/* What en_options_text writes is read back to the same values, bit for bit, by the parser itself. */
static void text_reads_back_to_the_same_options(void **state)
{
    (void)state;
    en_options o, again;
    assert_int_equal(PARSE(EN_TRAIN, &o, "--lr", "0.1234567890123456789", "--eval-every", "0.3e", "--checkpoint-every", "15m",
                           "--seed", "1234567890123456789", "--weight-decay", "3e-7", "--data", "/d/train"), EN_OK);
    char *text = en_options_text(&o);
    assert_non_null(strstr(text, "global-batch=0\n"));
    assert_non_null(strstr(text, "checkpoint-every=15m\n"));
    assert_null(strstr(text, "top="));                             /* another command's */
    char *argv[128], *rest = text;
    int argc = 0;
    for (char *line; (line = strsep(&rest, "\n")) && *line;) {
        const size_t size = strlen(line) + 3;
        char *arg = malloc(size);
        assert_non_null(arg);
        snprintf(arg, size, "--%s", line);
        char *equals = strchr(arg, '=');
        const bool flag = strncmp(arg, "--fresh", 7) == 0 || strncmp(arg, "--uneven", 8) == 0 || strncmp(arg, "--alone", 7) == 0 || strncmp(arg, "--nesterov", 10) == 0;
        if (flag) assert_string_equal(equals, "=0");
        if (flag) free(arg);
        else argv[argc++] = arg;
    }
    bool help;
    if (en_options_parse(EN_TRAIN, argc, argv, 0, &again, &help) != EN_OK) fail_msg("%s", en_error_text());
    char *text_again = en_options_text(&again);
    free(text);
    text = en_options_text(&o);
    assert_string_equal(text, text_again);
    assert_true(again.lr == o.lr && again.seed == o.seed && again.weight_decay == o.weight_decay);
    free(text);
    free(text_again);
    for (int i = 0; i < argc; i++) free(argv[i]);
}

static void help_lists_every_option_once_and_fits_the_screen(void **state)
{
    (void)state;
    for (int command = 1; command & ALL; command <<= 1) {
        char *text = NULL;
        size_t bytes = 0;
        FILE *f = open_memstream(&text, &bytes);
        en_options_help(command, f);
        fclose(f);
        assert_non_null(strstr(text, en_command_name(command)));
#define LISTED(field, type, default_, commands, ...)                                                                       \
        {                                                                                                                  \
            char name[40] = "  --" #field " ";                                                                             \
            for (char *c = name; *c; c++) if (*c == '_') *c = '-';                                                         \
            const char *at = strstr(text, name);                                                                           \
            if (!at != !((commands) & command)) fail_msg("help %s: %s", en_command_name(command), name);                   \
            if (at) assert_null(strstr(at + 1, name));                                                                     \
        }
        EN_OPTIONS(LISTED)
#undef LISTED
        for (const char *line = text; *line; line += strcspn(line, "\n") + 1) assert_true(strcspn(line, "\n") <= 120);
        free(text);
    }
    assert_null(en_command_name(0));
    assert_null(en_command_name(ALL + 1));
}

/* Defaults lie within their own limits: each is fed back as text. */
static void every_default_is_a_legal_value(void **state)
{
    (void)state;
    for (int command = 1; command & ALL; command <<= 1) {
        en_options o;
        const char *const two[] = { "x", "y", NULL }, *const *one = two + 1, *const *nothing = two + 2;
        const bool takes_two = command & (EN_EXPORT | EN_IMPORT);
        assert_int_equal(parse(command, &o, takes_two ? two : command & (EN_SYNTH | EN_PREDICT | EN_BENCH | EN_PACK | EN_CAM) ? one : nothing), EN_OK);
        char *text = en_options_text(&o), *rest = text;
        for (char *line; (line = strsep(&rest, "\n")) && *line;) {
            char arg[256];
            snprintf(arg, sizeof arg, "--%s", line);
            en_options again;
            const en_status s = parse(command, &again, (const char *const[]){ arg, "x", takes_two ? "y" : NULL, NULL });
            if (s != EN_OK && !strstr(en_error_message(), "takes no value") && !strstr(en_error_message(), "takes options only"))
                fail_msg("%s: %s", arg, en_error_message());
        }
        free(text);
    }
}

static void edit_distance_is_damerau(void **state)
{
    (void)state;
    assert_int_equal(en_edit_distance("train", "train"), 0);
    assert_int_equal(en_edit_distance("trian", "train"), 1);
    assert_int_equal(en_edit_distance("Micro-Batch", "micro_batch"), 0);
    assert_int_equal(en_edit_distance("kitten", "sitting"), 3);
    assert_int_equal(en_edit_distance("", "abc"), 3);
    en_nearest n = { .typed = "trin" };
    en_nearest_offer(&n, "synth");
    en_nearest_offer(&n, "train");
    assert_string_equal(en_nearest_best(&n), "train");
    n = (en_nearest){ .typed = "xyzzy" };
    en_nearest_offer(&n, "train");
    assert_null(en_nearest_best(&n));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_the_papers),
        cmocka_unit_test(values_follow_or_are_joined_and_given_is_remembered),
        cmocka_unit_test(spans_are_steps_epochs_or_time),
        cmocka_unit_test(spans_are_written_as_they_are_read),
        cmocka_unit_test(spans_miswritten_are_told_the_nearest_form),
        cmocka_unit_test(operands_are_kept_in_order),
        cmocka_unit_test(help_is_asked_for_anywhere),
        cmocka_unit_test(refusals_say_value_and_remedy),
        cmocka_unit_test(text_reads_back_to_the_same_options),
        cmocka_unit_test(help_lists_every_option_once_and_fits_the_screen),
        cmocka_unit_test(every_default_is_a_legal_value),
        cmocka_unit_test(edit_distance_is_damerau),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
