/* doctor/findings.c - the list of findings.  What many hosts have in common is one line with their names. */
#include "trainer/doctor/doctor.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool en_findings_open(en_findings *w, int ranks)
{
    memset(w, 0, sizeof *w);
    w->ranks = ranks;
    return (w->whose = calloc((size_t)EN_FINDINGS * (size_t)ranks, 1)) != NULL;
}

void en_findings_close(en_findings *w) { free(w->whose); }

/* Which item has this text, else a new one; -1: there is no room. */
static int place(en_findings *w, const char *text, bool must)
{
    for (int i = 0; i < w->n; i++)
        if (strcmp(w->item[i].text, text) == 0 && w->item[i].must == must) return i;
    w->musts += must;
    if (w->n == EN_FINDINGS) {
        w->left_out++;
        return -1;
    }
    snprintf(w->item[w->n].text, sizeof w->item[0].text, "%s", text);
    w->item[w->n].must = must;
    return w->n++;
}

void en_find(en_findings *w, bool must, const char *fmt, ...)
{
    char text[sizeof w->item[0].text];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    place(w, text, must);
}

void en_find_on(en_findings *w, int rank, bool must, const char *fmt, ...)
{
    char text[sizeof w->item[0].text];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    const int i = place(w, text, must);
    if (i >= 0) w->whose[(size_t)i * (size_t)w->ranks + (size_t)rank] = w->item[i].of_hosts = true;
}

void en_finding_text(const en_doctor_job *j, const en_findings *w, int i, char out[EN_FINDING])
{
    static const en_doctor_row hosts = { .what = "" };
    char who[240] = "";
    int *class_of = malloc((size_t)j->ranks * sizeof *class_of);
    for (int r = 0; class_of && r < j->ranks; r++) class_of[r] = w->whose[(size_t)i * (size_t)w->ranks + (size_t)r] ? 0 : -1;
    if (class_of && w->item[i].of_hosts) en_doctor_who(j, &hosts, class_of, 0, who, sizeof who);
    snprintf(out, EN_FINDING, "%s%s%s", who, *who ? ": " : "", w->item[i].text);
    free(class_of);
}
