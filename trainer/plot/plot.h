/* plot/plot.h - figures as SVG, drawn from numbers: points and lines over two axes, or stacked bars.
 *
 * A figure is a text file that every browser shows and that scales; nothing but this file is needed to draw it.  Axes carry round
 * ticks (1, 2 or 5 times a power of ten; powers of two where the values are rank counts), the legend names each series, colours are
 * those of Okabe and Ito (2008), which remain distinct to colour-blind readers.  Resting on a point or a bar shows its numbers. */
#ifndef EN_PLOT_H
#define EN_PLOT_H

#include "kernels/status.h"

typedef enum { EN_PLOT_POINTS, EN_PLOT_LINE, EN_PLOT_LINE_POINTS, EN_PLOT_DASHED } en_plot_style;

typedef struct {                         /* all borrowed                                                              */
    const char   *name;                  /* in the legend; NULL: not there                                            */
    en_plot_style style;
    const double *x, *y; int n;          /* a value that is not finite, or not above 0 on a log axis, leaves a gap    */
    const double *low, *high;            /* NULL, or whiskers beside y (p10 and p90)                                  */
    const char *const *label;            /* NULL, or a word beside each point that has room for it; points only       */
} en_plot_series;

typedef enum { EN_PLOT_LINEAR, EN_PLOT_LOG2, EN_PLOT_LOG10 } en_plot_scale;

typedef struct {                         /* any text may be NULL                                                      */
    const char *title, *x_title, *y_title, *note;   /* note: below, where the figures come from */
    en_plot_scale x_scale, y_scale;
    bool y_from_zero;                    /* on a linear axis                                                          */
    const en_plot_series *series; int n_series;
} en_plot;

/* Stacked bars: bar b is the sum over parts p of value[p*n_bars + b]; what is not above 0 is left out. */
typedef struct {
    const char *title, *x_title, *y_title, *note;
    const char *const *bar; int n_bars;
    const char *const *part; int n_parts;
    const double *value;
} en_plot_bars;

/* Writes the file anew, whole or not at all (a temporary name, then rename).  EN_EIO with path and reason.  Texts are escaped. */
en_status en_plot_write(const char *path, const en_plot *p);
en_status en_plot_bars_write(const char *path, const en_plot_bars *p);

#endif
