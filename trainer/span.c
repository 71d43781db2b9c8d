#include "trainer/span.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct { char letter; double seconds; } clock_units[] = { { 'h', 3600 }, { 'm', 60 }, { 's', 1 } };
enum { CLOCK_UNITS = sizeof clock_units / sizeof *clock_units };

/* Digits and at most one dot, as in a length of time: no sign, no exponent, no blank.  NULL: something else stands there. */
static const char *read_plain(const char *text, double *out)
{
    const size_t whole = strspn(text, "0123456789"), dot = text[whole] == '.', part = dot ? strspn(text + whole + 1, "0123456789") : 0;
    if (whole + part == 0 || whole + part > 40) return NULL;
    *out = strtod(text, NULL);
    return text + whole + dot + part;
}

/* "1h30m20s".  The sum is taken in this order by writer and reader alike. */
static bool read_clock(const char *text, double *seconds)
{
    bool fraction = false;
    *seconds = 0;
    for (int k = 0; *text; k++) {
        double n;
        const char *end = read_plain(text, &n);
        if (!end || fraction) return false;
        while (k < CLOCK_UNITS && *end != clock_units[k].letter) k++;
        if (k == CLOCK_UNITS) return false;
        fraction = n != floor(n);
        *seconds += n * clock_units[k].seconds;
        text = end + 1;
    }
    return *seconds < 0x1p53;
}

bool en_span_read(const char *text, en_span *out)
{
    char *end;
    const size_t n = strlen(text);
    double count;
    if (n > 0 && strchr("hms", text[n - 1])) {
        if (!read_clock(text, &count)) return false;
        *out = (en_span){ EN_SPAN_SECONDS, count };
        return true;
    }
    count = strtod(text, &end);                        /* ("2e" is no number to it: it stops at the e) */
    if (end == text || !isfinite(count) || strpbrk(text, "xX \t\n")) return false;
    if (strcmp(end, "e") == 0) {
        *out = (en_span){ EN_SPAN_EPOCHS, count };
        return true;
    }
    if (*end || count != floor(count) || !(fabs(count) < 0x1p53)) return false;
    *out = (en_span){ EN_SPAN_STEPS, count };
    return true;
}

/* The shortest decimal that reads back to the same bits */
static void write_count(double v, char *out, size_t size)
{
    char text[40] = "";
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if (strtod(text, NULL) == v) break;
    }
    snprintf(out, size, "%s", text);
}

void en_span_write(const en_span *s, char *out, size_t size)
{
    double left = s->count;
    if (s->unit == EN_SPAN_STEPS) {
        snprintf(out, size, "%.0f", s->count);
    } else if (s->unit == EN_SPAN_EPOCHS) {
        if (s->count == floor(s->count) && fabs(s->count) < 1e15) snprintf(out, size, "%.0fe", s->count);
        else {
            write_count(s->count, out, size - 1);
            strcat(out, "e");
        }
    } else if (left != floor(left)) {                  /* as one number of seconds: a sum of parts would round */
        char text[400] = "";
        for (int places = 1; places <= 20; places++) {
            snprintf(text, sizeof text, "%.*fs", places, left);
            if (strtod(text, NULL) == left) break;
        }
        snprintf(out, size, "%s", text);
    } else {
        size_t n = 0;
        out[0] = 0;
        for (int k = 0; k < CLOCK_UNITS && n + 24 < size; k++) {
            const double whole = floor(left / clock_units[k].seconds);
            left -= whole * clock_units[k].seconds;
            if (whole > 0 || (k == CLOCK_UNITS - 1 && n == 0)) n += (size_t)snprintf(out + n, size - n, "%.0f%c", whole, clock_units[k].letter);
        }
    }
}

/* ---- what was meant ----------------------------------------------------------------------------------------------------- */

/* The unit that a word begins like: 'd' 'h' 'm' 's' of a clock, 'e' epochs, 'n' steps; 0: no such word. */
static char unit_of(const char *word, size_t n)
{
    static const struct { const char *word; char unit; } words[] = {
        { "seconds", 's' }, { "secs", 's' }, { "minutes", 'm' }, { "mins", 'm' }, { "hours", 'h' }, { "hrs", 'h' }, { "days", 'd' },
        { "epochs", 'e' }, { "steps", 'n' }, { "iterations", 'n' } };
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (n > 0 && n <= strlen(words[i].word) && strncmp(word, words[i].word, n) == 0) return words[i].unit;
    return 0;
}

/* "3:50", "3:50:20": hours and minutes, as batch systems have them */
static bool guess_colons(const char *text, double *seconds)
{
    int h, m, s = 0, end = 0;
    if (sscanf(text, "%d:%d%n:%d%n", &h, &m, &end, &s, &end) < 2 || text[end] || h < 0 || m < 0 || s < 0) return false;
    *seconds = 3600.0 * h + 60.0 * m + s;
    return true;
}

bool en_span_guess(const char *text, char *out, size_t size)
{
    char clean[64], last = 0;
    size_t n = 0;
    for (; *text && n + 1 < sizeof clean; text++)
        if (!isspace((unsigned char)*text) && !(n == 0 && strchr("+-", *text))) clean[n++] = (char)tolower((unsigned char)*text);
    clean[n] = 0;
    en_span s = { EN_SPAN_STEPS, 0 };
    if (guess_colons(clean, &s.count)) {
        s.unit = EN_SPAN_SECONDS;
        en_span_write(&s, out, size);
        return true;
    }
    for (const char *p = clean; *p;) {
        double v;
        const char *end = read_plain(p, &v);
        if (!end) return false;
        const size_t word = strcspn(end, "0123456789.");
        char unit = unit_of(end, word);
        if (word == 0) unit = last == 'h' ? 'm' : last == 'm' ? 's' : last == 0 ? 'n' : 0;       /* "1h30" */
        const bool clock_unit = unit && strchr("dhms", unit);
        if (!unit || (last && !(clock_unit && strchr("dhms", last)))) return false;
        if (clock_unit) s.unit = EN_SPAN_SECONDS;
        else s.unit = unit == 'e' ? EN_SPAN_EPOCHS : EN_SPAN_STEPS;
        s.count += v * (unit == 'd' ? 86400 : unit == 'h' ? 3600 : unit == 'm' ? 60 : 1);
        if (unit == 'n') s.count = ceil(s.count);
        last = unit;
        p = end + word;
    }
    if (!last) return false;
    en_span_write(&s, out, size);
    return true;
}
