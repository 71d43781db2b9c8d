/* watch.c - a rank that never arrives is an error, not a wait without end.
 *
 * A rank that dies ends the job, where the launcher sees to it.  A rank that hangs, in a file system that does not answer or in a
 * process that was stopped, leaves all others waiting in a sum, and the allocation burns.  One thread in each rank looks on:
 *
 *     thread that trains       at(section), step, enter(call), leave            a few stores each; `changes` counts them
 *            │
 *     thread that looks on     nothing changed for so long: how long is it?      once a turn; the clock is its own
 *            │
 *     rank 0's thread          hears where everybody stands, and tells where rank 0 stands (watch_line.c); asks after each turn
 *                              whom the others wait for (watch_judge.c); if that lasts too long it says so, tells all, and leaves
 *     the others' threads      judge only when they do not hear rank 0, with what they know: of rank 0, and of themselves
 *
 * A thread leaves the process with _exit(5), because it may not call MPI (MPI_THREAD_FUNNELED); the launcher ends the others, or
 * they have been told.  So that one speaks and not all, those who miss rank 0 speak in turn: rank 1, one rank of each host, the rest.
 *
 * Limits are en_watch_keep's; without it, EFFNET_STALL_S or half an hour, and then a rank is only asked where it stands when another
 * waited for it that long: a program that names no sections may compute as long as it likes.
 *
 * Time is counted in turns, each no longer than it should have been: a job that was suspended did not wait. */
#include "comm/watch_inside.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "comm/internal.h"

enum { DEFAULT_LIMIT_S = 1800, WORDS = EN_WATCH_DETAIL / sizeof(uint64_t) };

/* ---- where the rank is ------------------------------------------------------------------------------------------------------
 * Written by the thread that trains, read by the one that looks on.  What is read is only used when it did not change for long, so
 * a text that is half the old and half the new one is never shown. */

static struct {
    atomic_int            section, sooner_s;   /* sooner_s: a limit of the call's own, 0: none */
    _Atomic int64_t       step;
    _Atomic(const char *) call;                /* NULL: in none; a literal                     */
    _Atomic uint64_t      detail[WORDS];
    atomic_ulong          changes, met;
    atomic_bool           device_sums;         /* whoever waits for its device waits for ranks */
    atomic_bool           apart;               /* the ranks do not all meet                  */
    double waited, entered;                    /* from here on: the training thread's alone    */
    en_watch_hook_fn *hook;
} place;

const char *en_section_name(en_section s)
{
    static const char *const names[EN_SECTIONS] = { "start-up", "data", "forward", "backward", "update", "device", "checkpoint", "evaluation", "output", "ending",
                                                    "collective" };
    return (unsigned)s < EN_SECTIONS ? names[s] : "?";
}

static void moved(void) { atomic_fetch_add_explicit(&place.changes, 1, memory_order_relaxed); }

static void keep_detail(const char *text)
{
    uint64_t words[WORDS] = { 0 };
    const size_t n = text ? strlen(text) : 0, most = EN_WATCH_DETAIL - 1;
    if (n > 0) memcpy(words, n > most ? text + n - most : text, n > most ? most : n);
    for (size_t i = 0; i < WORDS; i++) atomic_store_explicit(&place.detail[i], words[i], memory_order_relaxed);
}

static void read_detail(char text[EN_WATCH_DETAIL])
{
    for (size_t i = 0; i < WORDS; i++) {
        const uint64_t word = atomic_load_explicit(&place.detail[i], memory_order_relaxed);
        memcpy(text + i * sizeof word, &word, sizeof word);
    }
    text[EN_WATCH_DETAIL - 1] = 0;
}

void en_watch_at(en_section s, const char *detail)
{
    atomic_store_explicit(&place.section, (int)s, memory_order_relaxed);
    keep_detail(detail);
    moved();
    if (place.hook) place.hook(s, detail, atomic_load_explicit(&place.step, memory_order_relaxed));
}

void en_watch_step(int64_t step)               { atomic_store_explicit(&place.step, step, memory_order_relaxed); }
void en_watch_hook(en_watch_hook_fn *hook)     { place.hook = hook; }
void en_watch_apart(void)                      { atomic_store_explicit(&place.apart, true, memory_order_relaxed); }
double en_watch_waited(void)                   { return place.waited; }
void en_watch_alive(void)                      { moved(); }
void en_watch_device_sums(bool on)             { atomic_store_explicit(&place.device_sums, on, memory_order_relaxed); }

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void en_watch_enter_for(const char *call, int within_s)
{
    if (place.hook) place.hook(EN_COLLECTIVE, call, atomic_load_explicit(&place.step, memory_order_relaxed));
    place.entered = now_s();
    atomic_fetch_add_explicit(&place.met, 1, memory_order_relaxed);
    moved();                                   /* before the call shows: who looks on reads the call first */
    atomic_store_explicit(&place.sooner_s, within_s, memory_order_relaxed);
    atomic_store_explicit(&place.call, call, memory_order_release);
}

void en_watch_enter(const char *call) { en_watch_enter_for(call, 0); }

void en_watch_leave(void)
{
    place.waited += now_s() - place.entered;
    moved();
    atomic_store_explicit(&place.call, NULL, memory_order_release);
}

/* ---- limits ------------------------------------------------------------------------------------------------------------------ */

static struct { double s[EN_SECTIONS]; bool given, asked; const char *advice, *option, *source; } limits;

void en_watch_keep(const en_watch_limits *l)
{
    memcpy(limits.s, l->limit_s, sizeof limits.s);
    limits.given = true;
    limits.asked = l->asked;
    limits.advice = l->advice;
    limits.option = l->option;
}

static en_status find_limits(void)
{
    const char *text = getenv("EFFNET_STALL_S");
    const bool set = text && *text;
    char *end = NULL;
    limits.source = limits.option;
    if (limits.asked || (limits.given && !set)) return EN_OK;
    limits.source = "EFFNET_STALL_S";
    const double s = set ? strtod(text, &end) : DEFAULT_LIMIT_S;
    EN_REQUIRE(!set || (*end == '\0' && s >= 0 && s <= 1e9), EN_EUSAGE, "EFFNET_STALL_S=%s in the environment is not a number of seconds", text);
    for (int i = 0; i < EN_SECTIONS; i++) limits.s[i] = s;
    return EN_OK;
}

void en_watch_where(char *words, size_t size)
{
    en_place p = { .section = (en_section)atomic_load_explicit(&place.section, memory_order_relaxed),
                   .step = atomic_load_explicit(&place.step, memory_order_relaxed) };
    read_detail(p.detail);
    en_watch_place_words(&p, words, size);
}

double en_watch_limit_here(void)
{
    if (find_limits() != EN_OK) en_error_clear();
    const double s = limits.s[atomic_load_explicit(&place.section, memory_order_relaxed)];
    return limits.given && s > 0 ? 1.25 * s + 1 : s;                       /* whoever can say more speaks first */
}

/* ---- the thread --------------------------------------------------------------------------------------------------------------- */

static struct {
    pthread_t        thread;
    pthread_mutex_t  lock;
    pthread_cond_t   wake;
    bool             runs, ending, leaving;    /* under the lock; leaving: the others need not hear of this rank any more */
    double           turn_s;
    en_watch_hub    *hub;                      /* owns; rank 0's   */
    en_watch_line   *line;                     /* owns; the others' */
    en_peer         *peer;                     /* owns; rank 0: all, itself first; others: rank 0 and this one */
    bool            *mark;
    int              peers;
    en_peer         *me;                       /* of those         */
    double           patience_s;
    struct { en_watch_about_fn *fn; void *context; } about[EN_SECTIONS];      /* under the lock */
} watch = { .lock = PTHREAD_MUTEX_INITIALIZER };

void en_watch_about(en_section s, en_watch_about_fn *about, void *context)
{
    pthread_mutex_lock(&watch.lock);
    watch.about[s].fn = about;
    watch.about[s].context = context;
    pthread_mutex_unlock(&watch.lock);
}

/* Where this rank stands now, and since when; under the lock */
static void look(en_place *p, unsigned long *seen, double passed_s)
{
    const char *call = atomic_load_explicit(&place.call, memory_order_acquire);
    const unsigned long changes = atomic_load_explicit(&place.changes, memory_order_relaxed);
    const int section = atomic_load_explicit(&place.section, memory_order_relaxed), sooner = atomic_load_explicit(&place.sooner_s, memory_order_relaxed);
    const bool device = !call && section == EN_DEVICE && atomic_load_explicit(&place.device_sums, memory_order_relaxed);
    const double since = changes == *seen ? p->since_s + passed_s : 0;
    *seen = changes;
    *p = (en_place){ .met = atomic_load_explicit(&place.met, memory_order_relaxed), .step = atomic_load_explicit(&place.step, memory_order_relaxed),
                     .since_s = since, .section = (en_section)section, .waits = (call && !sooner) || device };
    p->limit_s = call ? 0 : limits.s[section];
    snprintf(p->call, sizeof p->call, "%s", call ? call : device ? "sums on the device" : "");
    read_detail(p->detail);
    if (watch.about[section].fn && !p->waits && p->limit_s > 0 && since > 0.5 * p->limit_s)
        watch.about[section].fn(watch.about[section].context, p->more, sizeof p->more);
}

/* One piece, whatever the training thread is doing with stderr; a reader who does not read must not keep us. */
static void say(const char *line)
{
    struct pollfd err = { .fd = STDERR_FILENO, .events = POLLOUT };
    char text[1200];
    const int n = snprintf(text, sizeof text, "effnet: %s\n", line);
    if (n > 0 && poll(&err, 1, 1000) == 1 && write(STDERR_FILENO, text, (size_t)n < sizeof text ? (size_t)n : sizeof text - 1) < 0) return;
}

static _Noreturn void end_job(const char *line)
{
    if (line) say(line);
    if (watch.hub) en_watch_hub_end_job(watch.hub);
    if (watch.line) en_watch_line_end_job(watch.line);
    _exit(en_status_exit_code(EN_EPEER));
}

/* A call with a limit of its own, which is nobody's but this rank's. */
static void end_overdue(const en_peer *me)
{
    const char *call = atomic_load_explicit(&place.call, memory_order_acquire);
    const int sooner = atomic_load_explicit(&place.sooner_s, memory_order_relaxed);
    char line[300];
    if (!call || sooner <= 0 || me->at.since_s <= sooner) return;
    snprintf(line, sizeof line, "rank %d on host %s (process %d) is not through with %s after %.0f s (limit %d s)", me->rank, me->host, me->pid, call,
             me->at.since_s, sooner);
    end_job(line);
}

/* Not silent: what was said may be on its way */
static bool is_heard(const en_peer *p) { return p->silent_s < 3 * watch.turn_s + 1; }

static void remember_steps(void)
{
    int64_t furthest = 0;
    for (int i = 0; i < watch.peers; i++)
        if (watch.peer[i].at.step > furthest) furthest = watch.peer[i].at.step;
    for (int i = 0; i < watch.peers; i++)
        if (is_heard(&watch.peer[i])) watch.peer[i].step_then = furthest;
}

static void judge(const en_peer *peer, int n)
{
    char line[1000], where[400];
    const en_watch_rules rules = { .limit_s = limits.s, .strict = limits.given, .patience_s = watch.patience_s, .advice = limits.advice,
                                   .source = limits.source, .apart = atomic_load_explicit(&place.apart, memory_order_relaxed) };
    if (!en_watch_judge(&rules, peer, n, watch.mark, line, sizeof line)) return;
    if (watch.line && watch.peer[0].state == EN_UNHEARD) {
        en_watch_line_words(watch.line, where, sizeof where);
        const size_t used = strlen(line);
        snprintf(line + used, sizeof line - used, " (no line to rank 0 at %s: a firewall?)", where);
    }
    end_job(line);
}

static void take_turn(unsigned long *seen, double passed_s)
{
    en_peer *me = watch.me;
    pthread_mutex_lock(&watch.lock);
    look(&me->at, seen, passed_s);
    const bool leaving = watch.leaving;
    pthread_mutex_unlock(&watch.lock);
    if (leaving && (watch.hub || watch.line)) {
        en_watch_hub_close(watch.hub);
        en_watch_line_close(watch.line);
        watch.hub = NULL;
        watch.line = NULL;
    }
    end_overdue(me);
    if (watch.hub && en_watch_hub_turn(watch.hub, passed_s, &me->at, watch.peer)) end_job(NULL);
    if (watch.line && en_watch_line_turn(watch.line, passed_s, &me->at, &watch.peer[0])) end_job(NULL);
    remember_steps();
    if (leaving) judge(me, 1);
    else if (!(watch.line && watch.peer[0].state == EN_HEARD && is_heard(&watch.peer[0]))) judge(watch.peer, watch.peers);      /* else rank 0 judges, for all */
}

/* At first turns follow one another quickly, so that all lines are there when the first rank may hang. */
static double pause_of(double began)
{
    bool settled = true;
    for (int i = 0; i < watch.peers; i++) settled &= watch.peer[i].state != EN_UNHEARD;
    const double early = 0.1 * (now_s() - began), pause = watch.line && en_watch_line_busy(watch.line) ? 0.1 * watch.turn_s : watch.turn_s;
    return settled || early > pause ? pause : early > 0.01 ? early : 0.01;
}

static void *look_on(void *unused)
{
    (void)unused;
    const double began = now_s();
    double last = began;
    unsigned long seen = atomic_load(&place.changes);
    pthread_mutex_lock(&watch.lock);
    while (!watch.ending) {
        pthread_mutex_unlock(&watch.lock);
        const double now = now_s(), passed = now - last;
        last = now;
        take_turn(&seen, passed < 2 * watch.turn_s ? passed : 2 * watch.turn_s);
        const double until = now_s() + pause_of(began);
        const struct timespec t = { (time_t)until, (long)((until - (double)(time_t)until) * 1e9) };
        pthread_mutex_lock(&watch.lock);
        if (!watch.ending) pthread_cond_timedwait(&watch.wake, &watch.lock, &t);
    }
    pthread_mutex_unlock(&watch.lock);
    return NULL;
}

/* ---- beginning and end ------------------------------------------------------------------------------------------------------- */

typedef struct { int32_t pid; char host[EN_WATCH_HOST]; } card;

/* Rank 0 learns who is who, the others where to find it.  All ranks take part, whatever their limits. */
static en_status introduce(en_comm *world, en_watch_invitation *to, en_watch_hub **hub, card *all, card *root)
{
    card mine = { .pid = (int32_t)getpid() };
    *to = (en_watch_invitation){ 0 };
    snprintf(mine.host, sizeof mine.host, "%s", world->host);
    if (world->rank == 0 && world->world_size > 1 && en_watch_hub_open(world->world_size, to, hub) != EN_OK) en_error_clear();     /* each then looks on for itself */
    *root = mine;
    EN_TRY(world->ops->gather(world, &mine, sizeof mine, all, 0), "learning who is who");
    EN_TRY(world->ops->broadcast(world, root, sizeof *root, 0), "learning who is who");
    EN_TRY(world->ops->broadcast(world, to, sizeof *to, 0), "learning where rank 0 listens");
    return EN_OK;
}

static double shortest_limit(void)
{
    double least = 0;
    for (int i = 0; i < EN_SECTIONS; i++)
        if (limits.s[i] > 0 && (least == 0 || limits.s[i] < least)) least = limits.s[i];
    return least;
}

static void name_peer(en_peer *p, int rank, const card *c)
{
    *p = (en_peer){ .rank = rank, .pid = c->pid };
    snprintf(p->host, sizeof p->host, "%s", c->host);
}

static en_status start_thread(void)
{
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&watch.wake, &clock);
    pthread_condattr_destroy(&clock);
    watch.ending = watch.leaving = false;
    sigset_t every, before;                    /* signals belong to the thread that trains */
    sigfillset(&every);
    pthread_sigmask(SIG_SETMASK, &every, &before);
    const int error = pthread_create(&watch.thread, NULL, look_on, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    EN_REQUIRE(error == 0, EN_ENOMEM, "starting a thread: %s", strerror(error));
    watch.runs = true;
    return EN_OK;
}

static void drop(void)
{
    en_watch_hub_close(watch.hub);
    en_watch_line_close(watch.line);
    free(watch.peer);
    free(watch.mark);
    watch.hub = NULL, watch.line = NULL, watch.peer = NULL, watch.mark = NULL, watch.me = NULL;
}

en_status en_watch_open(en_comm *world)
{
    const int ranks = world->world_size;
    const bool root = world->rank == 0;
    if (watch.runs) return EN_OK;
    en_watch_invitation to;
    card first, *all = root ? calloc((size_t)ranks, sizeof *all) : NULL;
    EN_REQUIRE(all || !root, EN_ENOMEM, "no memory to watch %d ranks", ranks);
    en_status status = introduce(world, &to, &watch.hub, all, &first);
    if (status == EN_OK) status = find_limits();
    const double least = shortest_limit();
    if (status != EN_OK || least == 0 || (ranks == 1 && !limits.given)) goto out;

    watch.peers = root ? ranks : 2;
    watch.peer = calloc((size_t)watch.peers, sizeof *watch.peer);
    watch.mark = calloc((size_t)watch.peers, sizeof *watch.mark);
    EN_REQUIRE_OUT(watch.peer && watch.mark, EN_ENOMEM, "no memory to watch %d ranks", ranks);
    for (int r = 0; root && r < ranks; r++) name_peer(&watch.peer[r], r, &all[r]);
    watch.me = &watch.peer[root ? 0 : 1];
    name_peer(watch.me, world->rank, &(card){ (int32_t)getpid(), "" });
    snprintf(watch.me->host, sizeof watch.me->host, "%s", world->host);
    watch.me->state = EN_HEARD;
    if (!root) {
        name_peer(&watch.peer[0], 0, &first);
        EN_TRY_OUT(en_watch_line_open(&to, world->rank, (int)getpid(), world->node == 0, &watch.line), "watching the ranks");
    }
    watch.turn_s = least / 20 < 1 ? least / 20 : 1;
    if (ranks > 512 * watch.turn_s && ranks / 512 < least / 20) watch.turn_s = ranks / 512;       /* rank 0 speaks with all of them */
    const double pace = least / 10 < 2 ? least / 10 : 2;
    watch.patience_s = world->rank <= 1 ? 0 : pace * (world->local_rank == 0 ? world->node < 3 ? world->node : 3 : 4);
    EN_TRY_OUT(start_thread(), "watching the ranks");
out:
    free(all);
    if (!watch.runs) drop();
    return status;
}

void en_watch_part(void)
{
    if (!watch.runs) return;
    pthread_mutex_lock(&watch.lock);
    watch.leaving = true;
    pthread_cond_signal(&watch.wake);
    pthread_mutex_unlock(&watch.lock);
}

void en_watch_close(void)
{
    if (!watch.runs) return;
    pthread_mutex_lock(&watch.lock);
    watch.ending = true;
    pthread_cond_signal(&watch.wake);
    pthread_mutex_unlock(&watch.lock);
    pthread_join(watch.thread, NULL);
    pthread_cond_destroy(&watch.wake);
    watch.runs = false;
    drop();
}
