/* watch_judge.c - whom the ranks wait for, and the line that says so.
 *
 * All ranks make the same calls in the same order (comm.h), and `met` counts them.  When a job hangs, everything stands still, so
 * what is known of each rank is true although it was heard at different times: those in a call wait, and the one they wait for is
 * outside of any, with the lowest count.  Asked in this order:
 *
 *     gone      a line broke, nobody called again, and somebody waits       the process ended, and the launcher did not notice
 *     silent    nothing was heard for the limit                             a stopped process, a lost machine or network
 *     stands    outside of a call for longer than its section may last      that rank: a file system, a device, a loop of ours
 *     network   every rank is in a call, for longer than the limit          nobody computes, and nothing arrives
 *     behind    a call lasts longer than any section may                    the rank with the lowest count, though it gets on
 *
 * Whether gone and silent ranks are only cut off from us, while the job goes on, is seen from the steps: nobody ends a step
 * without them.  A rank that was never heard is not blamed before everything else fails. */
#include "comm/watch_inside.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { GRACE_S = 5, REALLY_WAITS_S = 2 };      /* a launcher that notices a dead rank has ended the job by then; longer than
                                                * a sum takes between ranks that get on                                        */

/* ---- words --------------------------------------------------------------------------------------------------------------- */

typedef struct { char *at; size_t left; } page;

static void put(page *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void put(page *p, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    const int n = vsnprintf(p->at, p->left, fmt, args);
    va_end(args);
    const size_t used = n < 0 ? 0 : (size_t)n < p->left ? (size_t)n : p->left ? p->left - 1 : 0;
    p->at += used;
    p->left -= used;
}

static const char *seconds(double s, char text[32])
{
    snprintf(text, 32, s < 9.95 ? "%.1f s" : "%.0f s", s);
    return text;
}

static void put_step(page *p, int64_t step)
{
    if (step > 0) put(p, " at step %lld", (long long)step);
}

static void put_place(page *p, const en_place *at)
{
    const bool layer = at->section == EN_FORWARD || at->section == EN_BACKWARD;
    put(p, "%s", en_section_name(at->section));
    if (at->detail[0]) put(p, layer ? " of %s" : ", %s", at->detail);
    put_step(p, at->step);
    if (at->more[0]) put(p, ", %s,", at->more);
}

void en_watch_place_words(const en_place *at, char *words, size_t size)
{
    page p = { words, size };
    put_place(&p, at);
}

static void put_rank(page *p, const en_peer *r)
{
    put(p, "rank %d on host %s", r->rank, r->host);
    if (r->pid > 0) put(p, " (process %d)", r->pid);
}

/* "; 3 ranks wait for it in a sum at step 120": those who are not blamed themselves */
static void put_waiting(page *p, const en_peer *peer, int n, const bool *blamed, const en_peer *culprit)
{
    const en_peer *first = NULL;
    int waiting = 0;
    for (int i = 0; i < n; i++) {
        if (blamed[i] || peer[i].state != EN_HEARD || !peer[i].at.waits) continue;
        if (!first) first = &peer[i];
        waiting++;
    }
    if (!waiting) return;
    put(p, "; %d rank%s for it in %s", waiting, waiting == 1 ? " waits" : "s wait", first->at.call);
    if (culprit->at.step != first->at.step) put_step(p, first->at.step);
}

/* Ranks in the same plight: "; so do 7 other ranks" */
static void put_others(page *p, const char *one, const char *many, const en_peer *peer, int n, const bool *blamed, const en_peer *culprit)
{
    int more = 0;
    bool elsewhere = false;
    for (int i = 0; i < n; i++)
        if (blamed[i] && &peer[i] != culprit) more++, elsewhere |= strcmp(peer[i].host, culprit->host) != 0;
    if (more) put(p, "; %s %d other rank%s%s", more == 1 ? one : many, more, more == 1 ? "" : "s", elsewhere ? "" : " of that host");
}

static void put_limit(page *p, const en_watch_rules *r, double limit)
{
    put(p, " (limit %.10g s%s%s)", limit, r->source ? ", " : "", r->source ? r->source : "");
}

static void put_advice(page *p, const en_watch_rules *r, const char *look)
{
    put(p, ". %s%s%s", look, r->advice && *r->advice ? "; " : "", r->advice ? r->advice : "");
}

#define SILENT_ADVICE "Its process is stopped, or its machine or network is lost: look at that machine"

static void put_silent(page *p, const en_watch_rules *r, const en_peer *c, double limit)
{
    char t[32];
    put_rank(p, c);
    put(p, " has been silent for %s", seconds(c->silent_s, t));
    put_limit(p, r, limit);
    put(p, ", last heard in ");
    put_place(p, &c->at);
    if (c->at.waits) put(p, ", waiting in %s", c->at.call);
}

/* ---- judgement ------------------------------------------------------------------------------------------------------------- */

typedef struct { int waiting, known; double longest_wait, shortest_wait; uint64_t furthest; int64_t step; const en_peer *waiter; } view;

static view look(const en_peer *peer, int n)
{
    view v = { .shortest_wait = 1e30 };
    for (int i = 0; i < n; i++) {
        const en_place *at = &peer[i].at;
        if (peer[i].state != EN_HEARD) continue;
        v.known++;
        if (at->met > v.furthest) v.furthest = at->met;
        if (at->step > v.step) v.step = at->step;
        if (!at->waits) continue;
        v.waiting++;
        if (at->since_s < v.shortest_wait) v.shortest_wait = at->since_s;
        if (at->since_s > v.longest_wait || !v.waiter) v.longest_wait = at->since_s, v.waiter = &peer[i];
    }
    return v;
}

/* The shorter of two limits, of which 0 is none */
static double shorter(double a, double b) { return a <= 0 ? b : b <= 0 ? a : a < b ? a : b; }

static double longest(const double *limit_s)
{
    double most = 0;
    for (int s = 0; s < EN_SECTIONS; s++) {
        if (limit_s[s] <= 0) return 0;
        if (limit_s[s] > most) most = limit_s[s];
    }
    return most;
}

/* Of ranks for which `blamed` holds, the one that has met the others least often; NULL: none */
static const en_peer *least(const en_peer *peer, int n, const bool *blamed)
{
    const en_peer *first = NULL;
    for (int i = 0; i < n; i++)
        if (blamed[i] && (!first || peer[i].at.met < first->at.met)) first = &peer[i];
    return first;
}

bool en_watch_judge(const en_watch_rules *r, const en_peer *peer, int n, bool *mark, char *line, size_t size)
{
    const view v = look(peer, n);
    const double *limit = r->limit_s, general = limit[EN_COLLECTIVE], most = longest(limit), grace = shorter(GRACE_S, general);
    page p = { line, size };
    const en_peer *c;
    char t[32];

    for (int i = 0; i < n; i++)
        mark[i] = peer[i].state == EN_GONE && general > 0 && peer[i].silent_s > grace + r->patience_s &&
                  (r->apart || (v.step <= peer[i].step_then + 1 && v.longest_wait >= shorter(REALLY_WAITS_S, grace / 2)));
    if ((c = least(peer, n, mark))) {
        put_rank(&p, c);
        put(&p, " has ended without a word: it was last heard %s ago, in ", seconds(c->silent_s, t));
        put_place(&p, &c->at);
        put_waiting(&p, peer, n, mark, c);
        put_others(&p, "so has", "so have", peer, n, mark, c);
        put_advice(&p, r, "Was it killed, for memory perhaps (dmesg on that host)?");
        return true;
    }

    for (int i = 0; i < n; i++) {
        const double silent = shorter(general, limit[peer[i].at.section]);
        mark[i] = peer[i].state == EN_HEARD && silent > 0 && peer[i].silent_s > silent + r->patience_s && (r->apart || v.step <= peer[i].step_then + 1);
    }
    if ((c = least(peer, n, mark))) {
        put_silent(&p, r, c, shorter(general, limit[c->at.section]));
        put_waiting(&p, peer, n, mark, c);
        put_others(&p, "so has", "so have", peer, n, mark, c);
        put_advice(&p, r, SILENT_ADVICE);
        return true;
    }

    for (int i = 0; i < n; i++)
        mark[i] = r->strict && peer[i].state == EN_HEARD && !peer[i].at.waits && peer[i].at.limit_s > 0 && peer[i].at.since_s > peer[i].at.limit_s;
    if ((c = least(peer, n, mark))) {
        put_rank(&p, c);
        put(&p, " stands in ");
        put_place(&p, &c->at);
        put(&p, " for %s", seconds(c->at.since_s, t));
        put_limit(&p, r, c->at.limit_s);
        put_waiting(&p, peer, n, mark, c);
        put_others(&p, "so does", "so do", peer, n, mark, c);
        put_advice(&p, r, "Look at that machine");
        return true;
    }

    if (v.waiting == n && n > 1 && general > 0 && v.shortest_wait > general + r->patience_s) {
        for (int i = 0; i < n; i++) mark[i] = true;
        c = least(peer, n, mark);
        put(&p, "all %d ranks wait for each other for %s", n, seconds(v.shortest_wait, t));
        put_limit(&p, r, general);
        put(&p, ": ");
        put_rank(&p, c);
        put(&p, " in %s, in ", c->at.call);
        put_place(&p, &c->at);
        if (v.furthest > c->at.met) put(&p, ", while others are %llu calls further", (unsigned long long)(v.furthest - c->at.met));
        put_advice(&p, r, "Nothing arrives: look at the network between the machines");
        return true;
    }

    if (!v.waiter || most <= 0 || v.longest_wait <= most + r->patience_s) return false;
    for (int i = 0; i < n; i++) mark[i] = peer[i].state == EN_HEARD && peer[i].silent_s > 0.5 * v.longest_wait;   /* was still working when we */
    if ((c = least(peer, n, mark))) {                                                                              /* came to wait            */
        put_silent(&p, r, c, most);
        put_waiting(&p, peer, n, mark, c);
        put_others(&p, "so has", "so have", peer, n, mark, c);
        put_advice(&p, r, SILENT_ADVICE);
        return true;
    }
    for (int i = 0; i < n; i++) mark[i] = peer[i].state == EN_HEARD && !peer[i].at.waits;
    if ((c = least(peer, n, mark))) {
        const bool stands = c->at.since_s > 0.5 * v.longest_wait;
        put_rank(&p, c);
        put(&p, stands ? " stands in " : " is too far behind, in ");
        put_place(&p, &c->at);
        if (stands) put(&p, " for %s", seconds(c->at.since_s, t));
        else put(&p, ", the others have waited for %s", seconds(v.longest_wait, t));
        put_limit(&p, r, most);
        put_waiting(&p, peer, n, mark, c);
        put_advice(&p, r, "Look at that machine");
        return true;
    }
    put_rank(&p, v.waiter);
    put(&p, " waits in %s, in ", v.waiter->at.call);
    put_place(&p, &v.waiter->at);
    put(&p, ", for %s", seconds(v.longest_wait, t));
    put_limit(&p, r, most);
    for (int i = 0; i < n; i++) mark[i] = peer[i].state == EN_UNHEARD;
    if ((c = least(peer, n, mark))) {
        put(&p, ", and could not ask ");
        put_rank(&p, c);
        put_others(&p, "nor", "nor", peer, n, mark, c);
    }
    put(&p, ": a rank did not arrive");
    put_advice(&p, r, "Look at the machines and the network between them");
    return true;
}
