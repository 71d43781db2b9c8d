/* plot/axis.c - the axes of a figure: which range, which ticks, what is written beside them.
 *
 * An axis begins and ends on a tick, so that every value lies between two of them:
 *     linear   1, 2 or 5 times a power of ten, as many as asked for or a few less
 *     log10    1, 2 and 5 times powers of ten; over more than three decades the powers alone, then each 2nd, 3rd, ...
 *     log2     powers of two; where they are many each 2nd, 3rd, ... */
#include "trainer/plot/inside.h"

#include <math.h>

bool en_plot_drawable(en_plot_scale scale, double v)
{
    return fabs(v) < 1e200 && (scale == EN_PLOT_LINEAR || v > 1e-200);       /* false for NaN */
}

void en_plot_range(en_plot_scale scale, double v, double *min, double *max)
{
    if (!en_plot_drawable(scale, v)) return;
    if (v < *min) *min = v;
    if (v > *max) *max = v;
}

static double round_step(double least)                      /* the smallest of 1, 2, 5 times a power of ten that is not below */
{
    const double power = pow(10, floor(log10(least))), in_power = least / power;
    return power * (in_power <= 1 + 1e-9 ? 1 : in_power <= 2 + 1e-9 ? 2 : in_power <= 5 + 1e-9 ? 5 : 10);
}

static void add_tick(en_plot_axis *a, double v)
{
    if (a->n_ticks < EN_PLOT_TICKS) a->tick[a->n_ticks++] = v;
}

static void linear(en_plot_axis *a, double min, double max, int about)
{
    const double largest = fmax(fabs(min), fabs(max));
    if (largest < 1e-200) min = 0, max = 1;
    else if (max - min <= 1e-9 * largest) min -= 0.1 * largest, max += 0.1 * largest;      /* equal values: room on both sides */
    a->step = round_step((max - min) / about);
    const double first = floor(min / a->step + 1e-9), last = ceil(max / a->step - 1e-9);
    for (double i = first; i <= last; i++) add_tick(a, i * a->step + 0.0);
}

/* The k-th round number of a decade on a log10 axis: ..., 0.5, 1, 2, 5, 10, ... for every = 0, else powers of 10^every. */
static double round_log10(int k, int every)
{
    if (every > 0) return pow(10, k * every);
    const int decade = (int)floor(k / 3.0);
    static const double in_decade[] = { 1, 2, 5 };
    return in_decade[k - 3 * decade] * pow(10, decade);
}

static double round_number(en_plot_scale scale, int k, int every) { return scale == EN_PLOT_LOG2 ? ldexp(1, k * every) : round_log10(k, every); }

static void logarithmic(en_plot_axis *a, double min, double max, int about)
{
    const double span = a->scale == EN_PLOT_LOG2 ? log2(max) - log2(min) : log10(max) - log10(min);
    int every = a->scale == EN_PLOT_LOG2 ? 1 : span > 3 ? 1 : 0;
    if (every) every = (int)fmax(1, ceil(span / about));
    const double unit = every ? every * (a->scale == EN_PLOT_LOG2 ? 1 : log2(10)) : log2(10) / 3;
    int first = (int)floor(log2(min) / unit) + 2, last = (int)ceil(log2(max) / unit) - 2;
    while (round_number(a->scale, first, every) > min * (1 + 1e-9)) first--;
    while (round_number(a->scale, last, every) < max * (1 - 1e-9)) last++;
    if (last <= first) first--, last++;                      /* one value, and it is a tick: room on both sides */
    for (int k = first; k <= last; k++) add_tick(a, round_number(a->scale, k, every));
}

void en_plot_axis_choose(en_plot_axis *a, en_plot_scale scale, double min, double max, int about)
{
    if (!(min <= max)) min = scale == EN_PLOT_LINEAR ? 0 : 1, max = scale == EN_PLOT_LINEAR ? 1 : 10;   /* nothing to draw */
    *a = (en_plot_axis){ .scale = scale };
    if (scale == EN_PLOT_LINEAR) linear(a, min, max, about);
    else logarithmic(a, min, max, about);
    a->lo = a->tick[0], a->hi = a->tick[a->n_ticks - 1];
}

double en_plot_at(const en_plot_axis *a, double v)
{
    const double along = a->scale == EN_PLOT_LINEAR ? (v - a->lo) / (a->hi - a->lo) : (log(v) - log(a->lo)) / (log(a->hi) - log(a->lo));
    return a->from + along * (a->to - a->from);
}

/* 25000 as 25k, one letter for all ticks of a linear axis.  On a log2 axis 1024 is a number and 65536 is 64Ki. */
void en_plot_tick_text(const en_plot_axis *a, double v, char out[EN_PLOT_TICK_TEXT])
{
    const double largest = a->scale == EN_PLOT_LINEAR ? fmax(fabs(a->lo), fabs(a->hi)) : v;
    const bool twos = a->scale == EN_PLOT_LOG2;
    static const char *const letters[] = { "", "k", "M", "G", "T" }, *const two_letters[] = { "", "Ki", "Mi", "Gi", "Ti" };
    const double thousand = twos ? 1024 : 1000;
    int letter = 0;
    double unit = 1;
    while (letter < 4 && largest >= unit * (letter == 0 ? 10 * thousand : thousand)) letter++, unit *= thousand;
    if (v == 0) letter = 0;
    const char *ending = (twos ? two_letters : letters)[letter];
    if (a->scale != EN_PLOT_LINEAR || largest < 1e-4 || largest >= 1e16) {
        snprintf(out, EN_PLOT_TICK_TEXT, "%.6g%s", v / unit, ending);
        return;
    }
    const double places = ceil(-log10(a->step / unit) - 1e-9);
    snprintf(out, EN_PLOT_TICK_TEXT, "%.*f%s", places < 0 ? 0 : places > 9 ? 9 : (int)places, v / unit, ending);
}

double en_plot_widest_tick(const en_plot_axis *a)
{
    double widest = 0;
    for (int i = 0; i < a->n_ticks; i++) {
        char text[EN_PLOT_TICK_TEXT];
        en_plot_tick_text(a, a->tick[i], text);
        widest = fmax(widest, en_plot_text_width(text, EN_PLOT_FONT));
    }
    return widest;
}
