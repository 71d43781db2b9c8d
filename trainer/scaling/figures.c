/* scaling/figures.c - a prediction as figures: throughput beside the straight line, and where a step's time goes. */
#include "trainer/scaling/predict.h"

#include "trainer/plot/plot.h"

#include <stdio.h>

static en_status draw_throughput(const en_prediction *p, const char *note, const char *path)
{
    double ranks[EN_MOST_POINTS + 1], got[EN_MOST_POINTS + 1], ideal[EN_MOST_POINTS + 1];
    char title[160];
    for (int i = 0; i < p->points; i++)
        ranks[i] = p->point[i].ranks, got[i] = p->point[i].r.images_per_s, ideal[i] = p->point[0].r.images_per_s * p->point[i].ranks;
    snprintf(title, sizeof title, "%s at %d px, predicted", p->model->name, p->model->resolution);
    const en_plot_series series[] = { { .name = "predicted", .style = EN_PLOT_LINE_POINTS, .x = ranks, .y = got, .n = p->points },
                                      { .name = "linear", .style = EN_PLOT_DASHED, .x = ranks, .y = ideal, .n = p->points } };
    const en_plot plot = { .title = title, .x_title = en_ranks_word(&p->cluster), .y_title = "images/s", .note = note, .x_scale = EN_PLOT_LOG2,
                           .y_scale = EN_PLOT_LOG10, .series = series, .n_series = 2 };
    return en_plot_write(path, &plot);
}

static en_status draw_step(const en_prediction *p, const char *note, const char *path)
{
    char names[EN_MOST_POINTS + 1][16], title[160];
    const char *bars[EN_MOST_POINTS + 1], *stack[EN_STEP_PARTS];
    double value[EN_STEP_PARTS * (EN_MOST_POINTS + 1)];
    for (int i = 0; i < p->points; i++) {
        snprintf(names[i], sizeof names[i], "%d", p->point[i].ranks);
        bars[i] = names[i];
        for (int j = 0; j < EN_STEP_PARTS; j++) value[j * p->points + i] = 1e3 * en_step_part(&p->point[i].r, j);
    }
    for (int j = 0; j < EN_STEP_PARTS; j++) stack[j] = en_step_part_name(j);
    snprintf(title, sizeof title, "%s at %d px: a step, predicted", p->model->name, p->model->resolution);
    const en_plot_bars plot = { .title = title, .x_title = en_ranks_word(&p->cluster), .y_title = "ms", .note = note, .bar = bars, .n_bars = p->points,
                                .part = stack,
                                .n_parts = EN_STEP_PARTS, .value = value };
    return en_plot_bars_write(path, &plot);
}

en_status en_predict_draw(const en_prediction *p, const char *folder)
{
    char path[4096], text[400], note[560];
    snprintf(note, sizeof note, "Predicted from %s; %s", en_predict_source(p, text, sizeof text), p->cluster.name);
    snprintf(path, sizeof path, "%s/predicted-throughput.svg", folder);
    EN_TRY(draw_throughput(p, note, path), "a figure");
    snprintf(path, sizeof path, "%s/predicted-step.svg", folder);
    EN_TRY(draw_step(p, note, path), "a figure");
    return EN_OK;
}
