/* plot/sheet.c - the sheet that a figure is drawn on: the file, the text in it, titles, note, legend.
 *
 *     title
 *     y  +-----------------+  - series
 *        |     values      |  - legend
 *        +-----------------+
 *                x
 *     note
 *
 * The area of the values has one size; the sheet grows with the words around it.  Titles and the note break where a line is full. */
#include "trainer/plot/inside.h"

#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { AREA_W = 560, AREA_H = 340, LINE = 17, MARGIN = 14, KEY = 34, NOTE_FONT = 11 };

const char *en_plot_colour(int series)
{
    static const char *const colours[EN_PLOT_COLOURS] = { "#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9", "#cc79a7", "#000000", "#f0e442" };
    return colours[series % EN_PLOT_COLOURS];
}

/* Bytes of the UTF-8 character at t that XML may hold, or 0. */
static int character(const unsigned char *t)
{
    if (t[0] < 0x80) return t[0] >= 0x20 || t[0] == '\t' || t[0] == '\n' ? 1 : 0;
    const int bytes = t[0] >= 0xf0 ? 4 : t[0] >= 0xe0 ? 3 : 2;
    uint32_t code = t[0] & (0xffu >> (bytes + 1));
    for (int i = 1; i < bytes; i++) {
        if ((t[i] & 0xc0) != 0x80) return 0;                 /* the 0 at the end as well */
        code = code << 6 | (t[i] & 0x3fu);
    }
    static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
    const bool none = t[0] < 0xc2 || t[0] > 0xf4 || code < least[bytes] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000) || (code & 0xfffe) == 0xfffe;
    return none ? 0 : bytes;
}

static void escaped(FILE *f, const char *text, size_t n)
{
    for (const char *end = text + n; text < end;) {
        const int bytes = character((const unsigned char *)text);
        if (bytes == 0) fputs("\xef\xbf\xbd", f);
        else if (*text == '&') fputs("&amp;", f);
        else if (*text == '<') fputs("&lt;", f);
        else if (*text == '>') fputs("&gt;", f);
        else if (*text == '"') fputs("&quot;", f);
        else fwrite(text, 1, (size_t)bytes, f);
        text += bytes ? bytes : 1;
    }
}

void en_plot_text(FILE *f, const char *text) { escaped(f, text, strlen(text)); }

static double width_of(const char *text, size_t n, double font)
{
    double em = 0;
    for (size_t i = 0; i < n; i++) {
        const unsigned char c = (unsigned char)text[i];
        if ((c & 0xc0) == 0x80) continue;                    /* within a character */
        em += c >= 0xe3 ? 1 : strchr("iljtfI.,:;|'!()[] -/", c) ? 0.38 : strchr("mwMW@%", c) ? 0.95 : (c >= 'A' && c <= 'Z') || c >= 0x80 ? 0.7 : 0.62;
    }
    return em * font;
}

double en_plot_text_width(const char *text, double font) { return width_of(text, strlen(text), font); }

/* Bytes of `text` that fill one line, and those of the space after them. */
static size_t line_of(const char *text, double font, double width, size_t *space)
{
    size_t end = 0;
    *space = 0;
    if (width_of(text, strlen(text), font) <= width) return strlen(text);
    for (size_t i = 0; text[i]; i++)
        if (text[i] == ' ' && (end == 0 || width_of(text, i, font) <= width)) end = i, *space = 1;
    return *space ? end : strlen(text);
}

static int lines(const char *text, double font, double width)
{
    int n = 0;
    size_t space = 0;
    if (!text) return 0;
    do text += line_of(text, font, width, &space), text += space, n++; while (*text);
    return n;
}

static void put_lines(FILE *f, const char *text, double x, double y, double font, double width, const char *attributes)
{
    size_t space = 0;
    if (!text) return;
    for (; *text; text += space, y += font + 4) {
        const size_t n = line_of(text, font, width, &space);
        fprintf(f, "<text x=\"%.2f\" y=\"%.2f\" font-size=\"%.0f\" %s>", x, y, font, attributes);
        escaped(f, text, n);
        fputs("</text>\n", f);
        text += n;
    }
}

void en_plot_put(FILE *f, const char *text, double x, double y, const char *anchor, const char *more)
{
    fprintf(f, "<text x=\"%.2f\" y=\"%.2f\" text-anchor=\"%s\"%s>", x, y, anchor, more);
    en_plot_text(f, text);
    fputs("</text>\n", f);
}

void en_plot_layout(en_plot_sheet *s)
{
    double widest = 0;
    for (int i = 0; i < s->n_keys; i++) widest = fmax(widest, en_plot_text_width(s->key[i].name, EN_PLOT_FONT));
    s->left = MARGIN + fmax(s->room_left, s->room_ticks + (s->y_title ? LINE + 4 : 0));
    s->right = s->left + AREA_W;
    s->width = s->right + MARGIN + (s->n_keys ? KEY + 8 + widest : 14);
    const double across = s->width - 2 * MARGIN;
    s->top = MARGIN + 14 + lines(s->title, EN_PLOT_TITLE_FONT, across) * (EN_PLOT_TITLE_FONT + 4);
    s->bottom = s->top + fmax(AREA_H, s->n_keys * LINE);
    s->height = s->bottom + s->room_below + (s->x_title ? LINE + 4 : 0) + lines(s->note, NOTE_FONT, across) * (NOTE_FONT + 4) + (s->note ? 10 : 0) + MARGIN;
}

void en_plot_mark(FILE *f, double x, double y, int series)
{
    const bool hollow = series / EN_PLOT_COLOURS % 2;        /* beyond the colours there are, circles are open */
    fprintf(f, "<circle cx=\"%.2f\" cy=\"%.2f\" r=\"4\" stroke=\"%s\" fill=\"%s\"", x, y, en_plot_colour(series), hollow ? "#fff" : en_plot_colour(series));
}

static void legend(const en_plot_sheet *s)
{
    for (int i = 0; i < s->n_keys; i++) {
        const en_plot_key *k = &s->key[i];
        const double x = s->right + MARGIN, y = s->top + 6 + i * LINE;
        if (k->square) fprintf(s->f, "<rect x=\"%.2f\" y=\"%.2f\" width=\"12\" height=\"12\" fill=\"%s\"/>\n", x + 8, y - 6, en_plot_colour(k->colour));
        else if (k->style != EN_PLOT_POINTS)
            fprintf(s->f, "<path class=\"key\" d=\"M%.2f %.2fh%d\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\"%s/>\n", x, y, KEY - 8, en_plot_colour(k->colour),
                    k->style == EN_PLOT_DASHED ? " stroke-dasharray=\"6 4\"" : "");
        if (!k->square && (k->style == EN_PLOT_POINTS || k->style == EN_PLOT_LINE_POINTS)) en_plot_mark(s->f, x + (KEY - 8) / 2.0, y, k->colour), fputs(" class=\"key\"/>\n", s->f);
        en_plot_put(s->f, k->name, x + KEY, y + 4, "start", "");
    }
}

en_status en_plot_begin(en_plot_sheet *s, const char *path)
{
    const size_t room = strlen(path) + sizeof ".tmp";
    s->path = strdup(path), s->tmp = malloc(room);
    if (s->tmp) snprintf(s->tmp, room, "%s.tmp", path);
    if (s->path && s->tmp) s->f = fopen(s->tmp, "w");
    if (!s->f) {
        const en_status status = en_raise(EN_EIO, __FILE__, __LINE__, __func__, "cannot create %s.tmp: %s", path, strerror(errno));
        free(s->path), free(s->tmp);
        return status;
    }
    const double across = s->width - 2 * MARGIN, x_title = s->bottom + s->room_below + LINE;
    fprintf(s->f, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" width=\"%.0f\" height=\"%.0f\" "
                  "font-family=\"Helvetica, Arial, sans-serif\" font-size=\"%d\" fill=\"#222\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
            s->width, s->height, s->width, s->height, EN_PLOT_FONT);
    put_lines(s->f, s->title, MARGIN, MARGIN + EN_PLOT_TITLE_FONT, EN_PLOT_TITLE_FONT, across, "font-weight=\"bold\"");
    if (s->x_title) en_plot_put(s->f, s->x_title, (s->left + s->right) / 2, x_title, "middle", "");
    if (s->y_title) {
        char turned[96];
        const double x = s->left - s->room_ticks - 8, y = (s->top + s->bottom) / 2;
        snprintf(turned, sizeof turned, " transform=\"rotate(-90 %.2f %.2f)\"", x, y);
        en_plot_put(s->f, s->y_title, x, y, "middle", turned);
    }
    put_lines(s->f, s->note, MARGIN, s->bottom + s->room_below + (s->x_title ? LINE + 4 : 0) + 10 + NOTE_FONT, NOTE_FONT, across, "fill=\"#666\"");
    legend(s);
    return EN_OK;
}

void en_plot_y_axis(const en_plot_sheet *s, const en_plot_axis *y)
{
    for (int i = 0; i < y->n_ticks; i++) {
        char text[EN_PLOT_TICK_TEXT];
        en_plot_tick_text(y, y->tick[i], text);
        const double at = en_plot_at(y, y->tick[i]);
        fprintf(s->f, "<path d=\"M%.2f %.2fH%.2f\" stroke=\"#ddd\"/>\n", s->left, at, s->right);
        en_plot_put(s->f, text, s->left - 6, at + 4, "end", "");
    }
}

en_status en_plot_end(en_plot_sheet *s)
{
    fputs("</svg>\n", s->f);
    errno = 0;
    bool ok = !ferror(s->f);
    int error = ok ? 0 : EIO;
    if (fclose(s->f) != 0) ok = false, error = errno;
    if (ok && rename(s->tmp, s->path) != 0) ok = false, error = errno;
    en_status status = EN_OK;
    if (!ok) {
        remove(s->tmp);
        status = en_raise(EN_EIO, __FILE__, __LINE__, __func__, "cannot write %s: %s", s->path, strerror(error));
    }
    free(s->path), free(s->tmp);
    s->f = NULL;
    return status;
}
