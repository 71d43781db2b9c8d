/* pack_crew.c - threads that share out work, and the line that says how far they are. */
#define _GNU_SOURCE
#include "pack_inside.h"

#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct {
    const en_crew  *crew;
    pthread_mutex_t mutex;
    pthread_cond_t  ended;
    int             next, running;             /* next: worker's number */
    atomic_bool     stop;
    en_status       failed;
    char            failure[2048];
} shared;

static void *run(void *argument)
{
    shared *s = argument;
    pthread_mutex_lock(&s->mutex);
    const int worker = s->next++;
    pthread_mutex_unlock(&s->mutex);
    en_error_clear();
    const en_status status = s->crew->work(s->crew->context, worker, &s->stop);
    pthread_mutex_lock(&s->mutex);
    if (status != EN_OK && s->failed == EN_OK) {
        s->failed = status;
        snprintf(s->failure, sizeof s->failure, "%s", en_error_message());
    }
    if (status != EN_OK) atomic_store(&s->stop, true);
    s->running--;
    pthread_cond_signal(&s->ended);
    pthread_mutex_unlock(&s->mutex);
    return NULL;
}

int en_crew_size(int wanted)
{
    cpu_set_t set;
    if (wanted > 0) return wanted;
    const int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : (int)sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? n : 1;
}

static void wait_for_all(shared *s)
{
    pthread_mutex_lock(&s->mutex);
    while (s->running > 0) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 200000000;
        if (until.tv_nsec >= 1000000000) { until.tv_nsec -= 1000000000; until.tv_sec++; }
        pthread_cond_timedwait(&s->ended, &s->mutex, &until);
        pthread_mutex_unlock(&s->mutex);
        if (s->crew->tick) s->crew->tick(s->crew->context);
        pthread_mutex_lock(&s->mutex);
    }
    pthread_mutex_unlock(&s->mutex);
}

en_status en_crew_run(const en_crew *c)
{
    const int n = c->workers > 0 ? c->workers : 1;
    shared s = { .crew = c };
    pthread_t *thread = calloc((size_t)n, sizeof *thread);
    EN_REQUIRE(thread, EN_ENOMEM, "no memory for %d threads", n);
    pthread_mutex_init(&s.mutex, NULL);
    pthread_cond_init(&s.ended, NULL);
    sigset_t all, before;                      /* signals are the main thread's business */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int started = 0, error = 0;
    while (started < n && error == 0) {
        pthread_mutex_lock(&s.mutex);
        s.running++;
        pthread_mutex_unlock(&s.mutex);
        error = pthread_create(&thread[started], NULL, run, &s);
        if (error == 0) started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) {
        pthread_mutex_lock(&s.mutex);
        s.running--;
        pthread_mutex_unlock(&s.mutex);
        if (started == 0) atomic_store(&s.stop, true);
    }
    wait_for_all(&s);                          /* fewer threads than wanted do the work all the same */
    for (int i = 0; i < started; i++) pthread_join(thread[i], NULL);
    pthread_cond_destroy(&s.ended);
    pthread_mutex_destroy(&s.mutex);
    free(thread);
    EN_REQUIRE(started > 0, EN_EIO, "cannot start a thread: %s", strerror(error));
    EN_REQUIRE(s.failed == EN_OK, s.failed, "%s", s.failure);
    return EN_OK;
}

/* ---- progress ------------------------------------------------------------------------------------------------------------- */

double en_pack_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void en_pack_progress_open(en_pack_progress *p, const char *doing, bool quiet, int64_t total, int64_t total_bytes)
{
    const double now = en_pack_seconds();
    const char *live = getenv("EFFNET_LIVE");   /* as for the line of training: launchers know better what is a terminal */
    *p = (en_pack_progress){ .doing = doing, .quiet = quiet, .began = now, .last = now, .total = total, .total_bytes = total_bytes,
                             .live = live && *live ? strcmp(live, "0") != 0 : isatty(STDERR_FILENO) == 1 };
}

void en_pack_progress_show(en_pack_progress *p, int64_t done, int64_t done_bytes, int64_t bad)
{
    const double now = en_pack_seconds();
    if (p->quiet || now - p->last < (p->live ? 0.25 : 10)) return;
    const double seconds = now - p->began, files = (double)(done - p->first) / seconds, bytes = (double)(done_bytes - p->first_bytes) / seconds;
    const double left = bytes > 0 ? (double)(p->total_bytes - done_bytes) / bytes : 0;
    const int64_t eta = left < 1e9 ? (int64_t)(left + 0.5) : 0;
    fprintf(stderr, "%s%s %" PRId64 " of %" PRId64 " files, %.2f of %.2f GB, %.0f files/s, %.0f MB/s, %" PRId64 " bad, ", p->live ? "\r\033[K" : "",
            p->doing, done, p->total, (double)done_bytes / 1e9, (double)p->total_bytes / 1e9, files, bytes / 1e6, bad);
    fprintf(stderr, "%02" PRId64 ":%02" PRId64 ":%02" PRId64 " left%s", eta / 3600, eta / 60 % 60, eta % 60, p->live ? "" : "\n");
    fflush(stderr);
    p->drawn = p->live;
    p->last = now;
}

void en_pack_progress_close(en_pack_progress *p)
{
    if (p->drawn) fprintf(stderr, "\r\033[K");
    p->drawn = false;
}
