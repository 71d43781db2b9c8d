/* search/desk.c - who trains which candidate, and what became of it.
 *
 *     rank 0's desk      the list of candidates that are open, largest first; gives the next one to a group that is free
 *     a group            its ranks train one candidate as `effnet train` would, on a communicator of their own
 *
 * Work is handed out, not shared out beforehand: a candidate that resumes, diverges or has more layers takes another time than its
 * multiply-adds tell, and a group that is done early would stand idle.  The desk has no rank to itself: rank 0 trains as well, and looks
 * at its letters between two steps (comm/mail.h), so a free group waits for one step of rank 0's, at most for an evaluation.  Groups meet in
 * no collective from their split to the end of the search.
 *
 *     desk ──WORK candidate──▶ each rank of a group          group's first rank ──BEGUN, RESULT, STOPPED──▶ desk
 *     desk ──STOP──▶ all ranks  (one was asked to stop)       a rank without work ──STOP──▶ desk
 *     desk ──END──▶ all ranks   (no group trains any more)
 *
 * The largest first, because the last ones to be handed out decide how long groups wait for each other at the end.
 *
 * A candidate that diverges or does not fit in memory has failed, which is an outcome like others.  Anything else that goes wrong (a
 * disk, the images, another rank) would go wrong with all candidates: it ends the job, and the same command goes on.
 *
 * What a candidate's training prints goes to log.txt in its folder: standard output is turned there meanwhile. */
#include "trainer/search/search.h"

#include "comm/watch.h"
#include "trainer/commands.h"
#include "trainer/run.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef enum { WORK, BEGUN, RESULT, STOPPED, STOP, END } kind;

typedef struct { kind kind; int candidate; int64_t step; en_result result; } letter;
_Static_assert(sizeof(letter) <= EN_LETTER_BYTES, "a result fits into a letter");

enum { REASON = sizeof ((en_result *)0)->reason };

typedef struct {
    en_search *s;
    en_mail *mail;                           /* owns                                                                    */
    int      work;                           /* candidate that was given to this rank, -1: none                         */
    bool     ended, stopped;                 /* the search has; before all candidates had an outcome                    */
    bool     asked;                          /* this rank told the desk to stop                                         */
    /* the desk, on rank 0 */
    int     *queue, queued, next;            /* owns: open candidates, in the order in which they are given out         */
    int     *busy;                           /* owns: candidate of each group, -1: none                                 */
    bool     stopping, told;
    int      known;                          /* candidates with an outcome                                              */
    /* the candidate under way */
    en_training *part;                       /* borrowed                                                                */
    double   spent_before;                   /* seconds of its steps in earlier starts, on the group's first rank       */
    int64_t  begun_at;                       /* step, -1: not yet                                                       */
} desk;

static int group_of(const desk *d, int rank) { return rank / d->s->group_ranks; }

static void say(const desk *d, int candidate, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void say(const desk *d, int candidate, const char *fmt, ...)
{
    va_list args;
    FILE *f = d->s->out;
    fprintf(f, "[%d/%d] %s ", d->known, d->s->grid->n, d->s->grid->c[candidate].name);
    va_start(args, fmt);
    vfprintf(f, fmt, args);
    va_end(args);
    fputc('\n', f);
    fflush(f);
}

/* ---- the desk --------------------------------------------------------------------------------------------------------------- */

static en_status send(desk *d, int to, kind k, int candidate)
{
    const letter l = { .kind = k, .candidate = candidate };
    return en_mail_send(d->mail, to, &l, offsetof(letter, result));
}

static en_status send_all(desk *d, kind k, int candidate)
{
    for (int r = 0; r < d->s->world->world_size; r++) EN_TRY(send(d, r, k, candidate), "a letter to rank %d", r);
    return EN_OK;
}

static void say_begun(const desk *d, int group, const letter *l)
{
    const int first = group * d->s->group_ranks, last = first + d->s->group_ranks - 1;
    char ranks[40], step[40] = "begins";
    snprintf(ranks, sizeof ranks, first == last ? "rank %d" : "ranks %d to %d", first, last);
    if (l->step > 0) snprintf(step, sizeof step, "goes on from step %" PRId64, l->step);
    say(d, l->candidate, "%s on %s", step, ranks);
}

static en_status take_result(desk *d, const letter *l)
{
    en_candidate *c = &d->s->grid->c[l->candidate];
    c->result = l->result;
    d->known++;
    if (c->result.outcome == EN_DONE) say(d, l->candidate, "top-1 %.2f%%  top-5 %.2f%%  after step %" PRId64 ", %.0f images/s", 100 * c->result.top1, 100 * c->result.top5,
                                          c->result.step, c->result.images_per_s);
    else say(d, l->candidate, "failed: %s", c->result.reason);
    if (en_search_write(d->s->o, d->s->grid) != EN_OK) {     /* the candidates' own folders have it all */
        fprintf(stderr, "effnet: %s; the search goes on\n", en_error_message());
        en_error_clear();
    }
    return EN_OK;
}

static en_status at_desk(desk *d, const letter *l, int from)
{
    const int group = group_of(d, from);
    switch (l->kind) {
    case BEGUN:   say_begun(d, group, l); break;
    case RESULT:  d->busy[group] = -1; EN_TRY(take_result(d, l), "a result of rank %d", from); break;
    case STOPPED: d->busy[group] = -1, d->stopping = true; say(d, l->candidate, "is saved after step %" PRId64, l->step); break;
    case STOP:    d->stopping = true; break;
    default:      break;
    }
    return EN_OK;
}

static en_status hand_out(desk *d)
{
    bool working = false;
    d->stopping |= en_stop_requested() && !d->ended;
    if (d->stopping && !d->told) EN_TRY(send_all(d, STOP, -1), "stopping");
    d->told = d->stopping;
    for (int g = 0; g < d->s->groups; g++) {
        if (d->busy[g] < 0 && !d->stopping && d->next < d->queued) {
            d->busy[g] = d->queue[d->next++];
            for (int r = 0; r < d->s->group_ranks; r++) EN_TRY(send(d, g * d->s->group_ranks + r, WORK, d->busy[g]), "handing out work");
        }
        working |= d->busy[g] >= 0;
    }
    if (!working && !d->ended) {
        d->ended = true;
        EN_TRY(send_all(d, END, d->next < d->queued || d->known < d->s->grid->n ? 1 : 0), "ending the search");
    }
    return EN_OK;
}

/* Every rank's letters, between two steps or while it waits. */
static en_status read_letters(desk *d)
{
    letter l;
    size_t bytes;
    int from;
    const bool is_desk = d->s->world->rank == 0;
    const en_span *after = &d->s->o->stop_after;
    if (after->count > 0 && en_seconds() - en_program_began() >= after->count) en_stop_request();
    if (en_stop_requested() && !d->asked) {
        d->asked = true;
        EN_TRY(send(d, 0, STOP, -1), "telling the desk to stop");
    }
    if (is_desk && !d->ended) EN_TRY(hand_out(d), "handing out work");
    for (;;) {
        EN_TRY(en_mail_take(d->mail, &l, &bytes, &from), "letters");
        if (from < 0) break;
        if (from == 0 && l.kind == WORK) d->work = l.candidate;
        else if (from == 0 && l.kind == END) d->ended = true, d->stopped = l.candidate == 1, d->work = -2;
        else if (l.kind == STOP && !(is_desk && from != 0)) en_stop_request(), d->asked = true, d->stopping |= is_desk;     /* no need to tell a desk that may be closed */
        else if (is_desk) EN_TRY(at_desk(d, &l, from), "at the desk");
    }
    if (is_desk && !d->ended) EN_TRY(hand_out(d), "handing out work");
    return EN_OK;
}

/* ---- one candidate ------------------------------------------------------------------------------------------------------------ */

static en_status look(void *context, const en_run *run, bool *enough)
{
    desk *d = context;
    const en_trainer *t = &run->t;
    const bool root = t->comm->rank == 0;
    if (d->begun_at < 0) {
        const letter l = { .kind = BEGUN, .candidate = d->work, .step = t->state.step };
        double rate;
        d->begun_at = t->state.step;
        if (root) en_search_pace(run->dir, t->state.step, t->shard.global_batch, &d->spent_before, &rate);
        if (root) EN_TRY(en_mail_send(d->mail, 0, &l, sizeof l), "telling the desk");
    }
    EN_TRY(read_letters(d), "between two steps");
    const en_span *budget = &d->s->o->budget;
    *enough = budget->unit == EN_SPAN_SECONDS && t->state.step > 0 && d->spent_before + d->part->steps_s >= budget->count;
    return EN_OK;
}

/* The words of the rank that failed itself; the others were told to be silent. */
static en_status share_reason(desk *d, char reason[REASON])
{
    en_comm *c = d->s->group;
    char (*all)[REASON] = c->rank == 0 ? calloc((size_t)c->world_size, REASON) : NULL, mine[REASON] = "";
    if (!en_report_unhush()) snprintf(mine, sizeof mine, "%.390s", en_error_message());
    en_error_clear();
    EN_TRY(en_agree(c, all || c->rank > 0 ? EN_OK : en_raise(EN_ENOMEM, __FILE__, __LINE__, __func__, "no memory for %d reasons", c->world_size)), "why it failed");
    const en_status s = c->ops->gather(c, mine, REASON, all, 0);
    for (int r = c->rank == 0 ? c->world_size - 1 : -1; r >= 0; r--)
        if (all[r][0]) snprintf(reason, REASON, "%.*s", REASON - 1, all[r]);
    free(all);
    EN_TRY(s, "why it failed");
    return EN_OK;
}

/* Standard output into the candidate's log; *before gives it back. */
static en_status turn_output(const char *folder, int *before)
{
    char path[4200];
    snprintf(path, sizeof path, "%s/log.txt", folder);
    EN_TRY(en_make_folder(folder, "--run"), "the candidate's folder");
    fflush(stdout);
    const int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    EN_REQUIRE(fd >= 0, EN_EIO, "cannot write %s: %s", path, strerror(errno));
    *before = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
    const bool turned = *before >= 0 && dup2(fd, STDOUT_FILENO) >= 0;
    close(fd);
    EN_REQUIRE(turned, EN_EIO, "standard output cannot be turned to %s: %s", path, strerror(errno));
    return EN_OK;
}

static void turn_back(int before)
{
    fflush(stdout);
    clearerr(stdout);                                        /* a full disk under the log is none of the terminal's */
    if (before >= 0) dup2(before, STDOUT_FILENO), close(before);
}

/* Not EN_ENOTSUP: a driver that is missing, or fails, does so for all candidates. */
static bool is_its_own(en_status s) { return s == EN_EDIVERGED || s == EN_ENOMEM; }

static en_status settle(desk *d, int index, const char *folder, en_status s, const en_training *part, const en_options *o)
{
    letter l = { .kind = s == EN_ESTOPPED ? STOPPED : RESULT, .candidate = index, .step = part->step };
    en_candidate c = d->s->grid->c[index];
    c.result = (en_result){ .outcome = s == EN_OK ? EN_DONE : EN_FAILED, .step = part->step, .top1 = part->eval.top1, .top5 = part->eval.top5, .loss = part->eval.loss,
                            .weights = part->weights_crc };
    if (s != EN_OK && s != EN_ESTOPPED) {
        char reason[REASON] = "";
        EN_TRY(share_reason(d, reason), "after %s", c.name);
        snprintf(c.result.reason, sizeof c.result.reason, "%s", reason[0] ? reason : en_status_name(s));
    }
    if (d->s->group->rank > 0) return EN_OK;
    en_search_pace(folder, INT64_MAX, o->global_batch, &c.result.seconds, &c.result.images_per_s);
    l.result = c.result;
    if (l.kind == RESULT) EN_TRY(en_result_write(folder, &c), "keeping the result of %s", c.name);
    EN_TRY(en_mail_send(d->mail, 0, &l, sizeof l), "telling the desk");
    return EN_OK;
}

/* Trains the candidate that was given to this rank; EN_OK also when that failed, or was stopped. */
static en_status train(desk *d)
{
    const int index = d->work;
    const en_candidate *c = &d->s->grid->c[index];
    const bool root = d->s->group->rank == 0;
    char folder[4096];
    int before = -1;
    snprintf(folder, sizeof folder, "%s/%s", d->s->o->run, c->name);
    const en_options o = en_candidate_options(d->s->o, c, folder);
    en_training part = { .context = d, .look = look, .may_end = o.budget.unit == EN_SPAN_SECONDS };
    d->begun_at = -1;
    d->part = &part;
    EN_TRY(en_agree(d->s->group, root ? turn_output(folder, &before) : EN_OK), "training %s", c->name);
    const en_status s = en_train(&o, d->s->group, &part);
    if (root) turn_back(before);
    en_watch_step(0);
    if (s != EN_OK && s != EN_ESTOPPED && !is_its_own(s)) EN_TRY(s, "training %s", c->name);
    d->part = NULL;
    EN_TRY(settle(d, index, folder, s, &part, &o), "after %s", c->name);
    return EN_OK;
}

/* ---- all of it ------------------------------------------------------------------------------------------------------------------- */

static en_status open_desk(desk *d)
{
    const en_grid *g = d->s->grid;
    d->queue = calloc((size_t)g->n, sizeof *d->queue);
    d->busy = calloc((size_t)d->s->groups, sizeof *d->busy);
    EN_REQUIRE(d->queue && d->busy, EN_ENOMEM, "no memory for %d candidates", g->n);
    for (int i = 0; i < d->s->groups; i++) d->busy[i] = -1;
    for (int i = 0; i < g->n; i++) {
        if (g->c[i].result.outcome != EN_OPEN) {
            d->known++;
            continue;
        }
        int at = d->queued++;
        for (; at > 0 && g->c[d->queue[at - 1]].macs < g->c[i].macs; at--) d->queue[at] = d->queue[at - 1];
        d->queue[at] = i;
    }
    return EN_OK;
}

/* A rank without work is not hanging: it enters its section anew at each turn. */
static en_status wait_for_work(desk *d)
{
    while (d->work == -1) {
        en_watch_at(EN_OUTPUT, "waiting for a candidate");
        EN_TRY(read_letters(d), "waiting for a candidate");
        if (d->work == -1) nanosleep(&(struct timespec){ .tv_nsec = 5000000 }, NULL);
    }
    return EN_OK;
}

en_status en_search_work(en_search *s)
{
    desk d = { .s = s, .work = -1 };
    en_watch_apart();
    en_status status = en_mail_open(s->world, &d.mail);
    if (status == EN_OK && s->world->rank == 0) status = open_desk(&d);
    EN_TRY_OUT(en_agree(s->world, status), "opening the search");
    for (;;) {
        EN_TRY_OUT(wait_for_work(&d), "rank %d", s->world->rank);
        if (d.ended) break;
        EN_TRY_OUT(train(&d), "rank %d", s->world->rank);
        d.work = -1;
    }
    if (d.stopped) status = EN_ESTOPPED;
out:
    if (status == EN_OK || status == EN_ESTOPPED) en_mail_close(d.mail);
    free(d.queue);
    free(d.busy);
    return status;
}
