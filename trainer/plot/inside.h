/* plot/inside.h - between the files that draw a figure (plot/plot.h): axes, text, the sheet of paper, the legend. */
#ifndef EN_PLOT_INSIDE_H
#define EN_PLOT_INSIDE_H

#include "trainer/plot/plot.h"

#include <stdio.h>

enum { EN_PLOT_TICKS = 24, EN_PLOT_TICK_TEXT = 32, EN_PLOT_COLOURS = 8, EN_PLOT_FONT = 12, EN_PLOT_TITLE_FONT = 16 };

/* From values to pixels: at(lo) = from, at(hi) = to.  lo and hi are ticks, the first and the last. */
typedef struct {
    en_plot_scale scale;
    double lo, hi, step;                                    /* step: between ticks, of a linear axis */
    double from, to;
    double tick[EN_PLOT_TICKS]; int n_ticks;
} en_plot_axis;

bool   en_plot_drawable(en_plot_scale scale, double v);     /* finite (and above 0 on a logarithmic axis): else a gap               */
void   en_plot_range(en_plot_scale scale, double v, double *min, double *max);   /* widens it to hold v; begins as +inf, -inf       */
void   en_plot_axis_choose(en_plot_axis *a, en_plot_scale scale, double min, double max, int about);   /* about so many ticks       */
double en_plot_at(const en_plot_axis *a, double v);
double en_plot_widest_tick(const en_plot_axis *a);          /* in pixels                                                            */
void   en_plot_tick_text(const en_plot_axis *a, double v, char out[EN_PLOT_TICK_TEXT]);

/* A line of the legend: the mark of series `colour` and its name.  square: a part of bars. */
typedef struct { const char *name; int colour; en_plot_style style; bool square; } en_plot_key;

typedef struct {
    const char *title, *x_title, *y_title, *note;           /* borrowed                                                             */
    const en_plot_key *key; int n_keys;                     /* borrowed                                                             */
    double room_ticks, room_left, room_below;               /* for the numbers beside the axis; for all that is left of it; below   */
    double width, height, left, right, top, bottom;         /* set by begin: of the whole; edges of the area of the values          */
    char *path, *tmp;                                       /* owns                                                                 */
    FILE *f;                                                /* owns                                                                 */
} en_plot_sheet;

void        en_plot_layout(en_plot_sheet *s);               /* width ... bottom out of what stands before them                      */
en_status   en_plot_begin(en_plot_sheet *s, const char *path);   /* opens the file; draws titles, note and legend                   */
en_status   en_plot_end(en_plot_sheet *s);                  /* the file gets its name, or goes; frees                               */
void        en_plot_text(FILE *f, const char *text);        /* escaped; what XML cannot hold (control bytes, no UTF-8) as U+FFFD    */
void        en_plot_put(FILE *f, const char *text, double x, double y, const char *anchor, const char *more);   /* more: attributes     */
double      en_plot_text_width(const char *text, double font);   /* at most about; which font shows it is not known here            */
const char *en_plot_colour(int series);
void        en_plot_mark(FILE *f, double x, double y, int series);   /* a point, left open: close it with /> or a title and </circle> */
void        en_plot_y_axis(const en_plot_sheet *s, const en_plot_axis *y);

#endif
