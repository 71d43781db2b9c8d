/* stall.c - a rank that never arrives is an error, not a wait without end.
 *
 * A rank that dies ends the job (mpirun sees to it).  A rank that hangs, in a file system that does not answer or in a
 * process that was stopped, leaves all others waiting in a sum, and the allocation burns.  One thread in each rank looks on:
 *
 *     in a call for `limit` seconds         this rank waits for another:  says so and ends the job with exit code 5
 *     outside for 9/10 of `limit` seconds   this rank is the one that others may be waiting for: it says that it is, first,
 *                                           so that the log names the machine to look at
 *
 * The calls only count and name themselves; the clock is the thread's.  A rank whose sums run on a device waits outside of any
 * call: it shows now and then that it is alive, and keeps the limit itself (nccl.c).  The thread calls no MPI
 * (MPI_THREAD_FUNNELED): it leaves the process, and the launcher ends the others.  The limit is half an hour, because the first rank may list a large data set
 * on a cold file system while the others wait; EFFNET_STALL_S in the environment is another one, 0 none. */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "comm/internal.h"
#include "comm/watch.h"

enum { DEFAULT_LIMIT_S = 1800 };

static _Atomic(const char *) waiting_in;       /* the call this rank is in, or NULL                       */
static atomic_ulong changes;                   /* counts entries and exits: no change, no progress        */
static atomic_int   sooner_s;                  /* a limit of the call's own, 0: the limit                 */
static struct { pthread_t thread; pthread_mutex_t lock; pthread_cond_t end; bool runs, ending; double limit; char who[96]; } watch =
    { .lock = PTHREAD_MUTEX_INITIALIZER };

/* ---- where the rank is (watch.h) ---------------------------------------------------------------------------------------- */

static struct { en_section section; const char *detail; int64_t step; double waited, entered; en_watch_hook_fn *hook; } place;

const char *en_section_name(en_section s)
{
    static const char *const names[EN_SECTIONS] = { "start-up", "data", "forward", "backward", "update", "device", "checkpoint", "evaluation", "ending",
                                                    "collective" };
    return (unsigned)s < EN_SECTIONS ? names[s] : "?";
}

void en_watch_at(en_section s, const char *detail)
{
    place.section = s;
    place.detail = detail;
    if (place.hook) place.hook(s, detail, place.step);
}

void en_watch_step(int64_t step)               { place.step = step; }
void en_watch_hook(en_watch_hook_fn *hook)     { place.hook = hook; }
double en_watch_waited(void)                   { return place.waited; }

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- calls that wait for other ranks -------------------------------------------------------------------------------------- */

static void enter(const char *call, int within_s)
{
    if (call) {
        place.entered = now_s();
        if (place.hook) place.hook(EN_COLLECTIVE, call, place.step);
    } else if (place.entered > 0) {
        place.waited += now_s() - place.entered;
        place.entered = 0;
    }
    atomic_fetch_add_explicit(&changes, 1, memory_order_relaxed);        /* before the call shows: look_on reads the call first */
    atomic_store_explicit(&sooner_s, within_s, memory_order_relaxed);
    atomic_store_explicit(&waiting_in, call, memory_order_release);
}

void en_stall_enter(const char *call)                      { enter(call, 0); }
void en_stall_enter_for(const char *call, int within_s)    { enter(call, within_s); }
void en_stall_leave(void)                                  { enter(NULL, 0); }
void en_stall_alive(void) { atomic_fetch_add_explicit(&changes, 1, memory_order_relaxed); }

static void *look_on(void *unused)
{
    (void)unused;
    const double pause = watch.limit / 40 < 5 ? watch.limit / 40 : 5;
    struct timespec last, now;
    clock_gettime(CLOCK_MONOTONIC, &last);
    unsigned long seen = atomic_load(&changes);
    bool told = false;
    double since = 0;
    pthread_mutex_lock(&watch.lock);
    while (!watch.ending) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        const char *call = atomic_load_explicit(&waiting_in, memory_order_acquire);
        const unsigned long current = atomic_load_explicit(&changes, memory_order_relaxed);
        const double passed = (double)(now.tv_sec - last.tv_sec) + 1e-9 * (double)(now.tv_nsec - last.tv_nsec);
        since += passed < 2 * pause ? passed : 2 * pause;                /* a job that was suspended did not wait */
        last = now;
        if (current != seen) {
            seen = current;
            since = 0;
            told = false;
        }
        const int sooner = atomic_load_explicit(&sooner_s, memory_order_relaxed);
        const double limit = sooner > 0 && sooner < watch.limit ? sooner : watch.limit;
        if (call && since > limit) {
            fprintf(stderr, "effnet: [%s] %s: for %.0f s in %s, where another rank did not arrive (EFFNET_STALL_S, %g, is the limit)\n",
                    watch.who, en_status_name(EN_EPEER), since, call, limit);
            fflush(stderr);
            _exit(en_status_exit_code(EN_EPEER));
        }
        if (!call && since > 0.9 * watch.limit && !told) {
            fprintf(stderr, "effnet: [%s] has not met the other ranks for %.0f s: if they wait, they wait for this one\n", watch.who, since);
            fflush(stderr);
            told = true;
        }
        struct timespec until = now;
        until.tv_sec += (time_t)pause;
        until.tv_nsec += (long)((pause - (double)(time_t)pause) * 1e9);
        if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
        pthread_cond_timedwait(&watch.end, &watch.lock, &until);
    }
    pthread_mutex_unlock(&watch.lock);
    return NULL;
}

en_status en_stall_limit(double *seconds)
{
    const char *text = getenv("EFFNET_STALL_S");
    char *end;
    *seconds = text && *text ? strtod(text, &end) : DEFAULT_LIMIT_S;
    EN_REQUIRE(!(text && *text) || (*end == '\0' && *seconds >= 0 && *seconds <= 1e9), EN_EUSAGE,
               "EFFNET_STALL_S=%s in the environment is not a number of seconds", text);
    return EN_OK;
}

en_status en_stall_watch(const en_comm *world)
{
    EN_TRY(en_stall_limit(&watch.limit), "watching for ranks that hang");
    if (watch.limit == 0 || world->world_size == 1 || watch.runs) return EN_OK;
    snprintf(watch.who, sizeof watch.who, "rank %d/%d %s", world->rank, world->world_size, world->host);

    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&watch.end, &clock);
    pthread_condattr_destroy(&clock);
    watch.ending = false;
    sigset_t all, before;                      /* signals belong to the thread that trains */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int error = pthread_create(&watch.thread, NULL, look_on, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    EN_REQUIRE(error == 0, EN_ENOMEM, "starting a thread: %s", strerror(error));
    watch.runs = true;
    return EN_OK;
}

void en_stall_end(void)
{
    if (!watch.runs) return;
    pthread_mutex_lock(&watch.lock);
    watch.ending = true;
    pthread_cond_signal(&watch.end);
    pthread_mutex_unlock(&watch.lock);
    pthread_join(watch.thread, NULL);
    pthread_cond_destroy(&watch.end);
    watch.runs = false;
}
