/* test_plot.c - figures: every one is XML, and what is drawn lies where the numbers beside the axes say that it lies. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "trainer/plot/inside.h"

#define OK(call) do { if ((call) != EN_OK) fail_msg("%s", en_error_text()); } while (0)

static char folder[64];

static const char *path(const char *name)
{
    static char texts[4][128];
    static int next;
    char *text = texts[next++ % 4];
    snprintf(text, sizeof texts[0], "%s/%s", folder, name);
    return text;
}

static char *slurp(const char *name)
{
    static char text[1 << 20];
    FILE *f = fopen(path(name), "r");
    assert_non_null(f);
    const size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = 0;
    return text;
}

/* Balanced tags, quoted attributes, no entity but the four that are written, no byte that XML 1.0 leaves out. */
static void assert_xml(const char *text)
{
    char open[16][16];
    int depth = 0, elements = 0;
    assert_memory_equal(text, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n", 39);
    for (const char *t = text + 38; *t; t++) {
        assert_true((unsigned char)*t >= 0x20 || *t == '\n' || *t == '\t');
        if (*t == '&') assert_true(!strncmp(t, "&amp;", 5) || !strncmp(t, "&lt;", 4) || !strncmp(t, "&gt;", 4) || !strncmp(t, "&quot;", 6));
        assert_true(*t != '>');                              /* those of tags are passed over below */
        if (*t != '<') continue;
        char name[16];
        const bool closes = t[1] == '/';
        assert_int_equal(sscanf(t + 1 + closes, "%15[a-z]", name), 1);
        bool quoted = false;
        for (t++; *t && (quoted || *t != '>'); t++) {
            if (*t == '"') quoted = !quoted;
            assert_true(*t != '<');
        }
        assert_true(*t == '>');
        elements++;
        if (closes) assert_true(depth > 0 && strcmp(open[--depth], name) == 0);
        else if (t[-1] != '/') {
            assert_true(depth < 16);
            strcpy(open[depth++], name);
        }
    }
    assert_int_equal(depth, 0);
    assert_true(elements > 5);
}

/* The same by somebody else, where there is somebody. */
static void assert_xml_by_python(const char *name)
{
    char command[512];
    if (system("python3 -c 'import xml.dom.minidom' > /dev/null 2>&1") != 0) return;
    snprintf(command, sizeof command, "python3 -c 'import sys, xml.dom.minidom as m; m.parse(sys.argv[1])' %s", path(name));
    assert_int_equal(system(command), 0);
}

static char *drawn(const en_plot *p)
{
    OK(en_plot_write(path("figure.svg"), p));
    char *text = slurp("figure.svg");
    assert_xml(text);
    assert_true(access(path("figure.svg.tmp"), F_OK) != 0);
    return text;
}

static int count(const char *text, const char *what)
{
    int n = 0;
    for (; (text = strstr(text, what)); text++) n++;
    return n;
}

/* The numbers beside an axis and where they stand: x's are in the middle of a tick, y's end beside theirs. */
static int numbers(const char *text, bool of_x, double *at, double *value)
{
    int n = 0;
    for (const char *t = text; (t = strstr(t, "<text x=")); t++) {
        double x, y, v;
        char anchor[16], ending[8] = "";
        if (sscanf(t, "<text x=\"%lf\" y=\"%lf\" text-anchor=\"%15[a-z]\">%lf%7[^<]", &x, &y, anchor, &v, ending) < 4) continue;
        if (strcmp(anchor, of_x ? "middle" : "end") != 0) continue;
        at[n] = of_x ? x : y - 4, value[n++] = v * (ending[0] == 'k' ? 1e3 : ending[0] == 'M' ? 1e6 : ending[0] == 'G' ? 1e9 : ending[0] == 'K' ? 1024 : 1);
    }
    return n;
}

static double read_off(const double *at, const double *value, int n, double where, en_plot_scale scale)
{
    const double part = (where - at[0]) / (at[n - 1] - at[0]);
    return scale == EN_PLOT_LINEAR ? value[0] + part * (value[n - 1] - value[0]) : value[0] * pow(value[n - 1] / value[0], part);
}

static void assert_points_are_read_off(en_plot_scale x_scale, en_plot_scale y_scale, const double *x, const double *y, int n)
{
    const en_plot_series s = { .style = EN_PLOT_POINTS, .x = x, .y = y, .n = n };
    const char *text = drawn(&(en_plot){ .title = "points", .x_scale = x_scale, .y_scale = y_scale, .series = &s, .n_series = 1 });
    double at[2][64], value[2][64];
    const int ticks[2] = { numbers(text, true, at[0], value[0]), numbers(text, false, at[1], value[1]) };
    assert_in_range(ticks[0], 2, 13), assert_in_range(ticks[1], 2, 13);
    int i = 0;
    for (const char *t = text; (t = strstr(t, "<circle")); t++, i++) {
        double place[2];
        assert_int_equal(sscanf(t, "<circle cx=\"%lf\" cy=\"%lf\"", &place[0], &place[1]), 2);
        while (i < n && !(en_plot_drawable(x_scale, x[i]) && en_plot_drawable(y_scale, y[i]))) i++;
        assert_true(i < n);
        for (int k = 0; k < 2; k++) {                        /* places have two digits behind the point, so a hundredth of a pixel at either end */
            const double *a = at[k], *v = value[k], want = k ? y[i] : x[i];
            const en_plot_scale scale = k ? y_scale : x_scale;
            const double low = read_off(a, v, ticks[k], place[k] - 0.03, scale), high = read_off(a, v, ticks[k], place[k] + 0.03, scale);
            if (want < fmin(low, high) || want > fmax(low, high)) fail_msg("point %d: %g is drawn at %g to %g", i, want, low, high);
        }
    }
    while (i < n && !(en_plot_drawable(x_scale, x[i]) && en_plot_drawable(y_scale, y[i]))) i++;
    assert_int_equal(i, n);
}

static void points_lie_where_the_axes_say(void **state)
{
    (void)state;
    const double x[] = { 386e6, 1012.5e6, 700e6, 1.8e9 }, y[] = { 61.25, 64.5, 58.125, 99 }, small[] = { 1e-7, 3e-7, 2.5e-7, 0.9e-7 };
    const double ranks[] = { 1, 2, 4, 1024 }, times[] = { 0.003, 17, 4.4, 250 }, mixed[] = { -3, 0, 7, NAN };
    assert_points_are_read_off(EN_PLOT_LINEAR, EN_PLOT_LINEAR, x, y, 4);
    assert_points_are_read_off(EN_PLOT_LINEAR, EN_PLOT_LINEAR, small, mixed, 4);
    assert_points_are_read_off(EN_PLOT_LOG2, EN_PLOT_LOG10, ranks, times, 4);
    assert_points_are_read_off(EN_PLOT_LOG10, EN_PLOT_LOG2, times, ranks, 4);
    assert_points_are_read_off(EN_PLOT_LOG10, EN_PLOT_LINEAR, x, small, 4);
}

static void odd_values_leave_a_figure(void **state)
{
    (void)state;
    const double one[] = { 5 }, equal[] = { 3, 3, 3 }, zeros[] = { 0, 0, 0 }, log[] = { 0, -4, 8, 8 }, x[] = { 1, 2, 3, 4 }, near[] = { 1e15, 1e15 + 0.125, 1e15 };
    const double wild[] = { INFINITY, -INFINITY, NAN, 1e308 }, far[] = { 1e-190, 1e190, 1, 2 };
    assert_points_are_read_off(EN_PLOT_LINEAR, EN_PLOT_LINEAR, one, one, 1);
    assert_points_are_read_off(EN_PLOT_LOG2, EN_PLOT_LOG10, one, one, 1);
    assert_points_are_read_off(EN_PLOT_LOG2, EN_PLOT_LOG10, x, x, 1);                        /* 1 and 1: on a tick of both */
    assert_points_are_read_off(EN_PLOT_LINEAR, EN_PLOT_LINEAR, equal, zeros, 3);
    assert_points_are_read_off(EN_PLOT_LINEAR, EN_PLOT_LOG2, x, log, 4);
    assert_points_are_read_off(EN_PLOT_LINEAR, EN_PLOT_LOG10, x, log, 2);                    /* nothing above zero */
    assert_non_null(strstr(slurp("figure.svg"), "no values"));
    assert_points_are_read_off(EN_PLOT_LINEAR, EN_PLOT_LINEAR, x, wild, 4);
    assert_non_null(strstr(slurp("figure.svg"), "no values"));
    const en_plot_series s = { .style = EN_PLOT_LINE_POINTS, .x = far, .y = far, .n = 4 }, close = { .style = EN_PLOT_LINE_POINTS, .x = x, .y = near, .n = 3 };
    drawn(&(en_plot){ .x_scale = EN_PLOT_LOG10, .y_scale = EN_PLOT_LOG2, .series = &s, .n_series = 1 });
    drawn(&(en_plot){ .series = &s, .n_series = 1 });
    drawn(&(en_plot){ .series = &close, .n_series = 1 });
    drawn(&(en_plot){ .y_from_zero = true });
}

static void a_gap_parts_a_line(void **state)
{
    (void)state;
    const double x[] = { 1, 2, 3, 4, 5, 6, 7, 8 }, y[] = { 1, 2, NAN, 4, INFINITY, 6, 7, 8 };
    en_plot_series s = { .name = "one", .style = EN_PLOT_LINE, .x = x, .y = y, .n = 8 };
    const char *text = drawn(&(en_plot){ .title = "gaps", .series = &s, .n_series = 1 });
    assert_int_equal(count(text, "<polyline"), 2);           /* 1 2 and 6 7 8 */
    assert_int_equal(count(text, "<circle"), 1);             /* 4, alone between two gaps */
    assert_int_equal(count(text, "class=\"key\""), 1);
    s.style = EN_PLOT_LINE_POINTS;
    text = drawn(&(en_plot){ .title = "gaps", .series = &s, .n_series = 1 });
    assert_int_equal(count(text, "<title>"), 6);
    const double low[] = { 0, 1, 1, 3, 4, NAN, 6, 7 }, high[] = { 2, 3, 4, 5, 6, 7, 8, 20 };
    s.low = low, s.high = high;
    text = drawn(&(en_plot){ .title = "gaps", .series = &s, .n_series = 1 });
    assert_int_equal(count(text, "class=\"whisker\""), 5);   /* not the two gaps, not the one without an end */
    assert_non_null(strstr(text, ">20</text>"));             /* the axis reaches to their ends */
}

static void ticks_are_round(void **state)
{
    (void)state;
    static const struct { en_plot_scale scale; double min, max, lo, second, hi; } cases[] = {
        { EN_PLOT_LINEAR, 0, 100, 0, 20, 100 },        { EN_PLOT_LINEAR, 61.3, 66.4, 61, 62, 67 },      { EN_PLOT_LINEAR, -0.3, 0.31, -0.3, -0.2, 0.4 },
        { EN_PLOT_LINEAR, 0, 0.3, 0, 0.05, 0.3 },      { EN_PLOT_LINEAR, 7, 7, 6.2, 6.4, 7.8 },         { EN_PLOT_LINEAR, 0, 0, 0, 0.2, 1 },
        { EN_PLOT_LOG2, 1, 8, 1, 2, 8 },               { EN_PLOT_LOG2, 3, 5, 2, 4, 8 },                 { EN_PLOT_LOG2, 4, 4, 2, 4, 8 },
        { EN_PLOT_LOG2, 1, 4096, 1, 4, 4096 },         { EN_PLOT_LOG10, 3, 4.5, 2, 5, 5 },              { EN_PLOT_LOG10, 1, 1000, 1, 2, 1000 },
        { EN_PLOT_LOG10, 0.5, 20000, 0.1, 1, 100000 }, { EN_PLOT_LOG10, 10, 10, 5, 10, 20 },            { EN_PLOT_LOG10, 1e-9, 1e9, 1e-9, 1e-6, 1e9 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        en_plot_axis a;
        en_plot_axis_choose(&a, cases[i].scale, cases[i].min, cases[i].max, 7);
        const double got[] = { a.lo, a.tick[1], a.hi }, want[] = { cases[i].lo, cases[i].second, cases[i].hi };
        for (int k = 0; k < 3; k++)
            if (fabs(got[k] - want[k]) > 1e-9 * fabs(want[k]) + 1e-12) fail_msg("%g to %g: tick %d is %g, not %g", cases[i].min, cases[i].max, k, got[k], want[k]);
    }
}

static void numbers_are_written_short(void **state)
{
    (void)state;
    static const struct { en_plot_scale scale; double max, v; const char *want; } cases[] = {
        { EN_PLOT_LINEAR, 5000, 2000, "2000" },   { EN_PLOT_LINEAR, 50000, 20000, "20k" }, { EN_PLOT_LINEAR, 50000, 0, "0" },    { EN_PLOT_LINEAR, 1, 0.4, "0.4" },
        { EN_PLOT_LINEAR, 2.5e9, 5e8, "0.5G" },   { EN_PLOT_LINEAR, 6e-6, 2e-6, "2e-06" }, { EN_PLOT_LOG2, 4096, 1024, "1024" }, { EN_PLOT_LOG2, 1 << 20, 65536, "64Ki" },
        { EN_PLOT_LOG10, 1e6, 1000, "1000" },     { EN_PLOT_LOG10, 1e6, 1e6, "1M" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        en_plot_axis a;
        char text[EN_PLOT_TICK_TEXT];
        en_plot_axis_choose(&a, cases[i].scale, cases[i].scale == EN_PLOT_LINEAR ? 0 : 1, cases[i].max, 7);
        en_plot_tick_text(&a, cases[i].v, text);
        assert_string_equal(text, cases[i].want);
    }
}

/* Labels of crowded points: none over another, none outside the sheet; what found no room still is in its point's title. */
static void labels_keep_apart(void **state)
{
    (void)state;
    enum { N = 40 };
    double x[N], y[N];
    char text[N][16];
    const char *label[N];
    for (int i = 0; i < N; i++) {
        x[i] = i % 2 ? i * 3 : 50 + i * 0.05, y[i] = i % 2 ? sin(i) : 0.3 + i * 1e-3;
        snprintf(text[i], sizeof text[i], "label-%d", i);
        label[i] = text[i];
    }
    const en_plot_series s = { .name = "crowd", .style = EN_PLOT_POINTS, .x = x, .y = y, .n = N, .label = label };
    const char *figure = drawn(&(en_plot){ .title = "crowd", .series = &s, .n_series = 1 });
    double width, height, box[N][4];
    assert_int_equal(sscanf(strstr(figure, "viewBox"), "viewBox=\"0 0 %lf %lf\"", &width, &height), 2);
    int n = 0;
    for (const char *t = figure; (t = strstr(t, "<text x=")); t++) {
        char anchor[16], name[16];
        double at_x, at_y;
        if (sscanf(t, "<text x=\"%lf\" y=\"%lf\" text-anchor=\"%15[a-z]\">%15[a-z0-9-]<", &at_x, &at_y, anchor, name) != 4 || strncmp(name, "label-", 6) != 0) continue;
        const double w = en_plot_text_width(name, EN_PLOT_FONT), left = anchor[0] == 's' ? at_x : anchor[0] == 'e' ? at_x - w : at_x - w / 2;
        const double own[] = { left, at_y - 10, left + w, at_y + 2 };
        assert_true(own[0] > 0 && own[1] > 0 && own[2] < width && own[3] < height);
        for (int k = 0; k < n; k++)                          /* a hundredth for what was rounded */
            if (own[0] < box[k][2] - 0.02 && box[k][0] < own[2] - 0.02 && own[1] < box[k][3] - 0.02 && box[k][1] < own[3] - 0.02) fail_msg("%s covers another", name);
        memcpy(box[n++], own, sizeof own);
    }
    assert_in_range(n, N / 2, N);
    for (int i = 0; i < N; i++) {
        char in_title[32];
        snprintf(in_title, sizeof in_title, ": %s: ", label[i]);
        assert_non_null(strstr(figure, in_title));
    }
}

static void hostile_words_stay_words(void **state)
{
    (void)state;
    const double v[] = { 1, 2, 3 };
    const char *label[] = { "</text><script>", "caf\xe9 latin1", "\xed\xa0\x80 \xef\xbf\xbf \xf5\x80\x80\x80 cut \xe2\x82" };
    const en_plot_series s = { .name = "a < b & \"c\" \x01\x1b[1m", .style = EN_PLOT_LINE_POINTS, .x = v, .y = v, .n = 3, .label = label };
    const char *text = drawn(&(en_plot){ .title = "\xce\xb1\xc2\xb7\xce\xb2\xc2\xb2 -- ]]>", .x_title = "", .y_title = "<y>", .note = "  two  blanks ", .series = &s, .n_series = 1 });
    assert_null(strstr(text, "<script"));
    assert_non_null(strstr(text, "a &lt; b &amp; &quot;c&quot; \xef\xbf\xbd\xef\xbf\xbd[1m"));
    assert_non_null(strstr(text, "\xce\xb1\xc2\xb7\xce\xb2\xc2\xb2 -- ]]&gt;"));
    assert_non_null(strstr(text, "caf\xef\xbf\xbd latin1"));
    assert_xml_by_python("figure.svg");
}

static void long_titles_and_notes_are_broken_into_lines(void **state)
{
    (void)state;
    char note[2048] = "";
    for (int i = 0; i < 100; i++) snprintf(note + strlen(note), 32, "word%d ", i);
    const char *text = drawn(&(en_plot){ .title = note, .note = note, .y_from_zero = true });
    double width;
    assert_int_equal(sscanf(strstr(text, "viewBox"), "viewBox=\"0 0 %lf", &width), 1);
    assert_int_equal(count(text, "word57 "), 2);
    for (const char *t = text; (t = strstr(t, ">word")); t++) {
        char line[512];
        assert_int_equal(sscanf(t, ">%511[^<]", line), 1);
        assert_true(en_plot_text_width(line, 11) < width);
    }
}

static void bars_are_as_high_as_their_values(void **state)
{
    (void)state;
    static const char *const bar[] = { "1 rank", "2 ranks", "a name that does not fit beneath its bar <4>" }, *const part[] = { "forward & back", "wait" };
    static const double value[] = { 10, 20, 30, 5, 0, NAN };
    OK(en_plot_bars_write(path("bars.svg"), &(en_plot_bars){ .title = "step", .y_title = "ms", .bar = bar, .n_bars = 3, .part = part, .n_parts = 2, .value = value }));
    const char *text = slurp("bars.svg");
    assert_xml(text);
    assert_xml_by_python("bars.svg");
    double at[32], tick[32], top[4], high[4];
    const int ticks = numbers(text, false, at, tick);
    assert_in_range(ticks, 3, 9);
    const double pixels = (at[0] - at[ticks - 1]) / (tick[ticks - 1] - tick[0]);
    int n = 0;
    for (const char *t = text; (t = strstr(t, "<rect class=\"part\"")); t++, n++)
        assert_int_equal(sscanf(t, "<rect class=\"part\" x=\"%*f\" y=\"%lf\" width=\"%*f\" height=\"%lf\"", &top[n], &high[n]), 2);
    assert_int_equal(n, 4);                                  /* neither the zero nor what is no number */
    const double want[] = { 10, 5, 20, 30 };
    for (int i = 0; i < n; i++) assert_true(fabs(high[i] / pixels - want[i]) < 0.02 / pixels);
    assert_true(fabs(top[1] + high[1] - top[0]) < 0.02);     /* wait stands on forward */
    assert_non_null(strstr(text, ">15</text>"));             /* their sum above the bar */
    OK(en_plot_bars_write(path("bars.svg"), &(en_plot_bars){ .title = "none" }));
    assert_xml(slurp("bars.svg"));
}

static void a_file_is_whole_or_as_it_was(void **state)
{
    (void)state;
    const en_plot p = { .title = "new" };
    FILE *f = fopen(path("kept.svg"), "w");
    fputs("before", f), fclose(f);
    struct rlimit was, little;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
    little = was, little.rlim_cur = 100;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &little), 0);
    const en_status status = en_plot_write(path("kept.svg"), &p);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
    assert_int_equal(status, EN_EIO);
    assert_non_null(strstr(en_error_text(), "kept.svg: File too large"));
    assert_string_equal(slurp("kept.svg"), "before");
    assert_true(access(path("kept.svg.tmp"), F_OK) != 0);
    OK(en_plot_write(path("kept.svg"), &p));
    assert_xml(slurp("kept.svg"));
    en_error_clear();
    assert_int_equal(en_plot_write(path("nowhere/figure.svg"), &p), EN_EIO);
    assert_non_null(strstr(en_error_text(), "nowhere/figure.svg.tmp: No such file"));
    assert_int_equal(mkdir(path("folder.svg"), 0777), 0);
    FILE *within = fopen(path("folder.svg/x"), "w");
    fclose(within);
    en_error_clear();
    assert_int_equal(en_plot_bars_write(path("folder.svg"), &(en_plot_bars){ .title = "x" }), EN_EIO);
    assert_non_null(strstr(en_error_text(), "folder.svg"));
    assert_true(access(path("folder.svg.tmp"), F_OK) != 0);
    en_error_clear();
}

static int open_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "test_plot-XXXXXX");
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
        cmocka_unit_test(ticks_are_round),
        cmocka_unit_test(numbers_are_written_short),
        cmocka_unit_test(points_lie_where_the_axes_say),
        cmocka_unit_test(odd_values_leave_a_figure),
        cmocka_unit_test(a_gap_parts_a_line),
        cmocka_unit_test(labels_keep_apart),
        cmocka_unit_test(hostile_words_stay_words),
        cmocka_unit_test(long_titles_and_notes_are_broken_into_lines),
        cmocka_unit_test(bars_are_as_high_as_their_values),
        cmocka_unit_test(a_file_is_whole_or_as_it_was),
    };
    return cmocka_run_group_tests_name("plot", tests, open_folder, close_folder);
}
