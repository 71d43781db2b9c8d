/* plot/plot.c - draws figures (plot/plot.h): points, lines and their labels.
 *
 * A label goes to the first place beside its point where it covers no label, no point and no edge: eight directions, then the same
 * further away with a line to the point.  Where nothing is free it is left out; resting on a point shows it in every browser. */
#include "trainer/plot/inside.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct { double x0, y0, x1, y1; } box;

typedef struct {
    const en_plot *p;
    en_plot_sheet sheet;
    en_plot_axis x, y;
    box *taken; int n_taken;                                 /* owns: points first, then labels */
} drawing;

static bool drawn(const en_plot *p, const en_plot_series *s, int i) { return en_plot_drawable(p->x_scale, s->x[i]) && en_plot_drawable(p->y_scale, s->y[i]); }
static bool has_points(const en_plot_series *s) { return s->style == EN_PLOT_POINTS || s->style == EN_PLOT_LINE_POINTS; }

/* Whether there is a value to draw. */
static bool choose_axes(drawing *d)
{
    const en_plot *p = d->p;
    double min_x = INFINITY, max_x = -INFINITY, min_y = INFINITY, max_y = -INFINITY;
    for (int k = 0; k < p->n_series; k++)
        for (int i = 0; i < p->series[k].n; i++) {
            const en_plot_series *s = &p->series[k];
            if (!drawn(p, s, i)) continue;
            en_plot_range(p->x_scale, s->x[i], &min_x, &max_x);
            en_plot_range(p->y_scale, s->y[i], &min_y, &max_y);
            if (s->low) en_plot_range(p->y_scale, s->low[i], &min_y, &max_y);
            if (s->high) en_plot_range(p->y_scale, s->high[i], &min_y, &max_y);
        }
    if (p->y_from_zero && min_y <= max_y) en_plot_range(p->y_scale, 0, &min_y, &max_y);
    en_plot_axis_choose(&d->x, p->x_scale, min_x, max_x, 9);
    en_plot_axis_choose(&d->y, p->y_scale, min_y, max_y, 7);
    return min_y <= max_y;
}

static void x_axis(const drawing *d)
{
    const en_plot_sheet *s = &d->sheet;
    for (int i = 0; i < d->x.n_ticks; i++) {
        char text[EN_PLOT_TICK_TEXT];
        en_plot_tick_text(&d->x, d->x.tick[i], text);
        const double at = en_plot_at(&d->x, d->x.tick[i]);
        fprintf(s->f, "<path d=\"M%.2f %.2fV%.2f\" stroke=\"#ddd\"/>\n", at, s->top, s->bottom);
        en_plot_put(s->f, text, at, s->bottom + 16, "middle", "");
    }
    fprintf(s->f, "<path d=\"M%.2f %.2fV%.2fH%.2f\" fill=\"none\" stroke=\"#222\"/>\n", s->left, s->top, s->bottom, s->right);
}

/* One stretch a gap leaves; a lone value between two gaps would not show as a line, so it is a point. */
static void lines(const drawing *d, const en_plot_series *s, int colour)
{
    FILE *f = d->sheet.f;
    for (int i = 0, end; i < s->n; i = end) {
        end = i + 1;
        if (!drawn(d->p, s, i)) continue;
        while (end < s->n && drawn(d->p, s, end)) end++;
        if (end - i == 1) {
            if (has_points(s)) continue;
            en_plot_mark(f, en_plot_at(&d->x, s->x[i]), en_plot_at(&d->y, s->y[i]), colour), fputs("/>\n", f);
            continue;
        }
        fprintf(f, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\"%s points=\"", en_plot_colour(colour), s->style == EN_PLOT_DASHED ? " stroke-dasharray=\"6 4\"" : "");
        for (int k = i; k < end; k++) fprintf(f, "%s%.2f,%.2f", k > i ? " " : "", en_plot_at(&d->x, s->x[k]), en_plot_at(&d->y, s->y[k]));
        fputs("\"/>\n", f);
    }
}

static void whiskers(const drawing *d, const en_plot_series *s, int colour)
{
    for (int i = 0; s->low && s->high && i < s->n; i++) {
        if (!drawn(d->p, s, i) || !en_plot_drawable(d->p->y_scale, s->low[i]) || !en_plot_drawable(d->p->y_scale, s->high[i])) continue;
        const double x = en_plot_at(&d->x, s->x[i]), low = en_plot_at(&d->y, s->low[i]), high = en_plot_at(&d->y, s->high[i]);
        fprintf(d->sheet.f, "<path class=\"whisker\" d=\"M%.2f %.2fh8m-4 0V%.2fm-4 0h8\" fill=\"none\" stroke=\"%s\"/>\n", x - 4, low, high, en_plot_colour(colour));
    }
}

static void points(drawing *d, const en_plot_series *s, int colour)
{
    FILE *f = d->sheet.f;
    for (int i = 0; i < s->n; i++) {
        if (!drawn(d->p, s, i)) continue;
        const double x = en_plot_at(&d->x, s->x[i]), y = en_plot_at(&d->y, s->y[i]);
        d->taken[d->n_taken++] = (box){ x - 5, y - 5, x + 5, y + 5 };
        en_plot_mark(f, x, y, colour);
        fputs("><title>", f);
        if (s->name) en_plot_text(f, s->name), fputs(": ", f);
        if (s->label && s->label[i]) en_plot_text(f, s->label[i]), fputs(": ", f);
        fprintf(f, "%.6g, %.6g</title></circle>\n", s->x[i], s->y[i]);
    }
}

static bool is_free(const drawing *d, box b)
{
    const en_plot_sheet *s = &d->sheet;
    bool good = b.x0 >= s->left + 2 && b.x1 <= s->right + 10 && b.y0 >= s->top - 4 && b.y1 <= s->bottom - 2;
    for (int i = 0; good && i < d->n_taken; i++) {
        const box *t = &d->taken[i];
        good = b.x1 <= t->x0 || b.x0 >= t->x1 || b.y1 <= t->y0 || b.y0 >= t->y1;
    }
    return good;
}

static void label(drawing *d, const char *text, double x, double y, int colour)
{
    static const struct { int x, y; } way[] = { { 1, 0 }, { 0, -1 }, { -1, 0 }, { 0, 1 }, { 1, -1 }, { -1, -1 }, { 1, 1 }, { -1, 1 } };
    static const double far[] = { 8, 18, 32, 50 };
    const double w = en_plot_text_width(text, EN_PLOT_FONT), h = EN_PLOT_FONT;
    for (size_t ring = 0; ring < sizeof far / sizeof *far; ring++)
        for (size_t k = 0; k < sizeof way / sizeof *way; k++) {
            const double to_x = x + way[k].x * far[ring], to_y = y + way[k].y * far[ring];        /* where text and line meet */
            const double left = to_x - (way[k].x == 0 ? w / 2 : way[k].x < 0 ? w : 0), top = to_y - (way[k].y == 0 ? h / 2 : way[k].y < 0 ? h : 0);
            const box b = { left, top, left + w, top + h };
            if (!is_free(d, b)) continue;
            d->taken[d->n_taken++] = b;
            if (ring) fprintf(d->sheet.f, "<path d=\"M%.2f %.2fL%.2f %.2f\" stroke=\"%s\" stroke-width=\"0.7\"/>\n", x, y, to_x, to_y, en_plot_colour(colour));
            en_plot_put(d->sheet.f, text, to_x, top + h - 2, way[k].x == 0 ? "middle" : way[k].x < 0 ? "end" : "start", "");
            return;
        }
}

static void draw(drawing *d, bool empty)
{
    const en_plot *p = d->p;
    const en_plot_sheet *sheet = &d->sheet;
    en_plot_y_axis(&d->sheet, &d->y);
    x_axis(d);
    if (empty) en_plot_put(sheet->f, "no values", (sheet->left + sheet->right) / 2, (sheet->top + sheet->bottom) / 2, "middle", "");
    for (int k = 0; k < p->n_series; k++) {
        if (p->series[k].style != EN_PLOT_POINTS) lines(d, &p->series[k], k);
        whiskers(d, &p->series[k], k);
    }
    for (int k = 0; k < p->n_series; k++)
        if (has_points(&p->series[k])) points(d, &p->series[k], k);
    for (int k = 0; k < p->n_series; k++) {
        const en_plot_series *s = &p->series[k];
        for (int i = 0; s->label && i < s->n; i++)
            if (s->label[i] && s->label[i][0] && drawn(p, s, i)) label(d, s->label[i], en_plot_at(&d->x, s->x[i]), en_plot_at(&d->y, s->y[i]), k);
    }
}

en_status en_plot_write(const char *path, const en_plot *p)
{
    drawing d = { .p = p, .sheet = { .title = p->title, .x_title = p->x_title, .y_title = p->y_title, .note = p->note, .room_below = 24 } };
    size_t marks = 1;
    for (int k = 0; k < p->n_series; k++) marks += 2 * (size_t)p->series[k].n;               /* a point and a label each */
    en_plot_key *key = calloc((size_t)p->n_series + 1, sizeof *key);
    d.taken = malloc(marks * sizeof *d.taken);
    en_status status = EN_OK;
    EN_REQUIRE_OUT(key && d.taken, EN_ENOMEM, "no memory for %s", path);
    for (int k = 0; k < p->n_series; k++)
        if (p->series[k].name) key[d.sheet.n_keys++] = (en_plot_key){ .name = p->series[k].name, .colour = k, .style = p->series[k].style };
    d.sheet.key = key;
    const bool any = choose_axes(&d);
    d.sheet.room_ticks = en_plot_widest_tick(&d.y) + 6;
    en_plot_layout(&d.sheet);
    d.x.from = d.sheet.left, d.x.to = d.sheet.right, d.y.from = d.sheet.bottom, d.y.to = d.sheet.top;
    EN_TRY_OUT(en_plot_begin(&d.sheet, path), "drawing %s", path);
    draw(&d, !any);
    EN_TRY_OUT(en_plot_end(&d.sheet), "drawing %s", path);
out:
    free(key);
    free(d.taken);
    return status;
}
