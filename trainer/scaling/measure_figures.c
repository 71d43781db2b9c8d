/* scaling/measure_figures.c - a study as figures: throughput beside the straight line and the prediction, efficiency, where a step's time
 * goes, and what sums over ranks get out of the links (nccl-tests' bus bandwidth). */
#define _GNU_SOURCE
#include "trainer/scaling/measure.h"

#include "trainer/plot/plot.h"

#include <math.h>
#include <stdio.h>

typedef struct {
    double ranks[EN_MOST_COUNTS], rate[EN_MOST_COUNTS], low[EN_MOST_COUNTS], high[EN_MOST_COUNTS], ideal[EN_MOST_COUNTS], model[EN_MOST_COUNTS];
    double percent[EN_MOST_COUNTS], percent_model[EN_MOST_COUNTS], all[EN_MOST_COUNTS];
    int n;
} points;

static void take(const en_study *s, points *p)
{
    const en_count *base = s->base;
    p->n = 0;
    for (int i = 0; i < s->counts; i++) {
        const en_count *k = &s->count[i];
        if (k->state != EN_COUNT_MEASURED) continue;
        const double share = (double)k->ranks / base->ranks;
        p->ranks[p->n] = k->ranks, p->rate[p->n] = k->rate.median, p->low[p->n] = k->rate.p10, p->high[p->n] = k->rate.p90;
        p->ideal[p->n] = base->rate.median * share;
        p->model[p->n] = k->predicted ? (double)k->global_batch / k->model.step_s : NAN;
        p->percent[p->n] = 100 * k->efficiency, p->percent_model[p->n] = 100 * p->model[p->n] / p->ideal[p->n];
        p->all[p->n++] = 100;
    }
}

static en_status draw_throughput(const points *p, const char *title, const char *note, const char *path)
{
    const en_plot_series series[] = { { .name = "measured, p10 to p90", .style = EN_PLOT_LINE_POINTS, .x = p->ranks, .y = p->rate, .low = p->low, .high = p->high, .n = p->n },
                                      { .name = "linear", .style = EN_PLOT_DASHED, .x = p->ranks, .y = p->ideal, .n = p->n },
                                      { .name = "predicted", .style = EN_PLOT_LINE_POINTS, .x = p->ranks, .y = p->model, .n = p->n } };
    const en_plot plot = { .title = title, .x_title = "ranks", .y_title = "images/s", .note = note, .x_scale = EN_PLOT_LOG2, .y_scale = EN_PLOT_LOG10, .series = series,
                           .n_series = 3 };
    return en_plot_write(path, &plot);
}

static en_status draw_efficiency(const points *p, const char *title, const char *note, const char *path)
{
    const en_plot_series series[] = { { .name = "measured", .style = EN_PLOT_LINE_POINTS, .x = p->ranks, .y = p->percent, .n = p->n },
                                      { .name = "linear", .style = EN_PLOT_DASHED, .x = p->ranks, .y = p->all, .n = p->n },
                                      { .name = "predicted", .style = EN_PLOT_LINE_POINTS, .x = p->ranks, .y = p->percent_model, .n = p->n } };
    const en_plot plot = { .title = title, .x_title = "ranks", .y_title = "% of linear", .note = note, .x_scale = EN_PLOT_LOG2, .y_from_zero = true, .series = series,
                           .n_series = 3 };
    return en_plot_write(path, &plot);
}

static en_status draw_step(const en_study *s, const char *title, const char *note, const char *path)
{
    char names[EN_MOST_COUNTS][16];
    const char *bars[EN_MOST_COUNTS];
    double value[EN_COSTS * EN_MOST_COUNTS];
    int n = 0, at = 0;
    for (int i = 0; i < s->counts; i++) n += s->count[i].state == EN_COUNT_MEASURED;
    for (int i = 0; i < s->counts; i++) {
        const en_count *k = &s->count[i];
        if (k->state != EN_COUNT_MEASURED) continue;
        snprintf(names[at], sizeof names[at], "%d", k->ranks);
        bars[at] = names[at];
        for (int j = 0; j < EN_COSTS; j++) value[j * n + at] = 1e3 * k->part[j];
        at++;
    }
    const en_plot_bars plot = { .title = title, .x_title = "ranks", .y_title = "ms", .note = note, .bar = bars, .n_bars = n, .part = en_cost_name, .n_parts = EN_COSTS,
                                .value = value };
    return en_plot_bars_write(path, &plot);
}

static en_status draw_sums(const en_study *s, const char *note, const char *path)
{
    double x[EN_MOST_COUNTS][EN_MOST_SUMS], y[EN_MOST_COUNTS][EN_MOST_SUMS];
    char names[EN_MOST_COUNTS][24];
    en_plot_series series[EN_MOST_COUNTS];
    int n = 0;
    for (int i = 0; i < s->counts; i++) {
        const en_measured_sums *m = &s->count[i].sums;
        if (m->n_gradients == 0) continue;
        for (int j = 0; j < m->n_gradients; j++) x[n][j] = m->gradients[j].bytes, y[n][j] = 1e-9 * comm_bus_bytes(x[n][j], m->ranks) / m->gradients[j].seconds;
        snprintf(names[n], sizeof names[n], "%d ranks", m->ranks);
        series[n] = (en_plot_series){ .name = names[n], .style = EN_PLOT_LINE_POINTS, .x = x[n], .y = y[n], .n = m->n_gradients };
        n++;
    }
    if (n == 0) return EN_OK;
    const en_plot plot = { .title = "Sums of gradients over ranks", .x_title = "bytes", .y_title = "bus GB/s", .note = note, .x_scale = EN_PLOT_LOG2, .y_scale = EN_PLOT_LOG10,
                           .series = series, .n_series = n };
    return en_plot_write(path, &plot);
}

en_status en_study_draw(const en_study *s, const char *folder)
{
    char path[EN_PATH + 64], title[400], note[160];
    points p;
    take(s, &p);
    en_study_text(s, title, sizeof title);
    snprintf(note, sizeof note, "effnet scaling: %lld steps each after %lld; medians", (long long)s->steps, (long long)s->warm);
    snprintf(path, sizeof path, "%s/scaling-throughput.svg", folder);
    EN_TRY(draw_throughput(&p, title, note, path), "a figure");
    snprintf(path, sizeof path, "%s/scaling-efficiency.svg", folder);
    EN_TRY(draw_efficiency(&p, title, note, path), "a figure");
    snprintf(path, sizeof path, "%s/scaling-step.svg", folder);
    EN_TRY(draw_step(s, title, "means over steps and ranks", path), "a figure");
    snprintf(path, sizeof path, "%s/scaling-comm.svg", folder);
    return draw_sums(s, "bus bandwidth = bytes * 2(n-1)/n / time, as nccl-tests counts it", path);
}
