/* plot/bars.c - stacked bars (plot/plot.h).  Names that do not fit beneath their bars are turned. */
#include "trainer/plot/inside.h"

#include <math.h>
#include <stdlib.h>

static const double TURN = 0.7;                             /* radians */

static double part(const en_plot_bars *p, int b, int k)
{
    const double v = p->value[(size_t)k * (size_t)p->n_bars + (size_t)b];
    return en_plot_drawable(EN_PLOT_LINEAR, v) && v > 0 ? v : 0;
}

static void draw_bars(const en_plot_bars *p, const en_plot_sheet *s, const en_plot_axis *y, bool turn)
{
    const double slot = (s->right - s->left) / fmax(1, p->n_bars), width = fmin(0.7 * slot, 90);
    en_plot_y_axis(s, y);
    for (int b = 0; b < p->n_bars; b++) {
        const double middle = s->left + (b + 0.5) * slot;
        double sum = 0;
        for (int k = 0; k < p->n_parts; k++) {
            const double v = part(p, b, k), low = en_plot_at(y, sum), high = en_plot_at(y, sum + v);
            sum += v;
            if (v == 0) continue;
            fprintf(s->f, "<rect class=\"part\" x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" fill=\"%s\"><title>", middle - width / 2, high, width, low - high, en_plot_colour(k));
            en_plot_text(s->f, p->bar[b]), fputs(", ", s->f), en_plot_text(s->f, p->part[k]);
            fprintf(s->f, ": %.6g</title></rect>\n", v);
        }
        char total[EN_PLOT_TICK_TEXT], turned[80] = "";
        snprintf(total, sizeof total, "%.3g", sum);
        if (en_plot_text_width(total, EN_PLOT_FONT) < slot) en_plot_put(s->f, total, middle, en_plot_at(y, sum) - 5, "middle", "");
        if (turn) snprintf(turned, sizeof turned, " transform=\"rotate(%.1f %.2f %.2f)\"", -TURN * 180 / M_PI, middle + 4, s->bottom + 14);
        en_plot_put(s->f, p->bar[b], turn ? middle + 4 : middle, s->bottom + (turn ? 14 : 16), turn ? "end" : "middle", turned);
    }
    fprintf(s->f, "<path d=\"M%.2f %.2fV%.2fH%.2f\" fill=\"none\" stroke=\"#222\"/>\n", s->left, s->top, s->bottom, s->right);
}

en_status en_plot_bars_write(const char *path, const en_plot_bars *p)
{
    en_plot_sheet s = { .title = p->title, .x_title = p->x_title, .y_title = p->y_title, .note = p->note, .n_keys = p->n_parts };
    en_plot_axis y;
    double highest = 0, widest = 0;
    for (int b = 0; b < p->n_bars; b++) {
        double sum = 0;
        for (int k = 0; k < p->n_parts; k++) sum += part(p, b, k);
        highest = fmax(highest, sum);
        widest = fmax(widest, en_plot_text_width(p->bar[b], EN_PLOT_FONT));
    }
    en_plot_key *key = calloc((size_t)p->n_parts + 1, sizeof *key);
    en_status status = EN_OK;
    EN_REQUIRE_OUT(key, EN_ENOMEM, "no memory for %s", path);
    for (int k = 0; k < p->n_parts; k++) key[p->n_parts - 1 - k] = (en_plot_key){ .name = p->part[k], .colour = k, .square = true };   /* as they lie on each other */
    s.key = key;
    en_plot_axis_choose(&y, EN_PLOT_LINEAR, 0, highest > 0 ? highest : 1, 7);
    s.room_ticks = en_plot_widest_tick(&y) + 6;
    en_plot_layout(&s);
    const double slot = (s.right - s.left) / fmax(1, p->n_bars);
    const bool turn = widest + 6 > slot;
    s.room_below = turn ? 24 + sin(TURN) * widest : 24;
    for (int b = 0; turn && b < p->n_bars; b++) s.room_left = fmax(s.room_left, cos(TURN) * en_plot_text_width(p->bar[b], EN_PLOT_FONT) - (b + 0.5) * slot);
    en_plot_layout(&s);
    y.from = s.bottom, y.to = s.top;
    EN_TRY_OUT(en_plot_begin(&s, path), "drawing %s", path);
    draw_bars(p, &s, &y, turn);
    EN_TRY_OUT(en_plot_end(&s), "drawing %s", path);
out:
    free(key);
    return status;
}
