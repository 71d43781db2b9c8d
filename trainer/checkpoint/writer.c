/* checkpoint/writer.c - a thread that writes snapshots while training goes on.
 *
 *              acquire                 begin                       (thread)
 *     free ──────────────▶ filled by ──────────▶ begun ──────────▶ writing ──────────▶ free
 *      ▲                   the caller                                                    │
 *      └─────────────────────────────────────────────────────────────────────────────────┘
 *
 * Only free and the caller's filling are the caller's time to touch the buffer, only begun and writing the thread's: one
 * of them owns it at any moment, handed over under the lock.  A write that fails leaves its error for the next acquire or
 * wait, once; the buffer is free again and the files of before are there, so training may go on. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "trainer/checkpoint/internal.h"

struct en_checkpoint_writer {
    char         dir[EN_PATH];
    int          keep;
    en_snapshot *buffer;                     /* borrowed                                                             */
    pthread_t    thread;
    pthread_mutex_t lock;
    pthread_cond_t  changed;
    bool      busy, begun, best, stop;       /* under lock; busy: begun or writing                                   */
    en_status status;                        /* of the last write, until somebody has been told                      */
    char      error[4096];
    char      last[EN_PATH];                 /* the newest whole file                                                */
    char      last_shown[EN_PATH];           /* the copy that the caller reads                                       */
};

static en_status write_best(const char *step_path, const char *best_path, const en_snapshot *s)
{
    if (en_file_link(step_path, best_path)) return EN_OK;    /* the same file under a second name: no bytes            */
    return en_checkpoint_write(best_path, s);                /* a file system without such names                       */
}

static en_status write_one(en_checkpoint_writer *w, bool best)
{
    char path[EN_PATH], best_path[EN_PATH];
    EN_REQUIRE(snprintf(path, sizeof path, "%s/step-%08" PRId64 ".h5", w->dir, w->buffer->state.step) < EN_PATH - 16
            && snprintf(best_path, sizeof best_path, "%s/best.h5", w->dir) < EN_PATH, EN_EUSAGE, "the path %.100s... is too long", w->dir);
    EN_TRY(en_checkpoint_write(path, w->buffer), "saving in the background");
    pthread_mutex_lock(&w->lock);
    memcpy(w->last, path, sizeof path);
    pthread_mutex_unlock(&w->lock);
    if (best) EN_TRY(write_best(path, best_path, w->buffer), "saving the best so far");
    return en_checkpoint_prune(w->dir, w->keep);
}

/* Where all cores train, the file can wait and the step cannot.  Linux keeps a nice value for each thread. */
static void give_way(void)
{
    enum { NICE = 10 };
    (void)setpriority(PRIO_PROCESS, (id_t)gettid(), NICE);
}

static void *write_when_begun(void *arg)
{
    en_checkpoint_writer *w = arg;
    give_way();
    pthread_mutex_lock(&w->lock);
    for (;;) {
        while (!w->begun && !w->stop) pthread_cond_wait(&w->changed, &w->lock);
        if (!w->begun) break;
        const bool best = w->best;
        w->begun = false;
        pthread_mutex_unlock(&w->lock);
        en_error_clear();
        const en_status status = write_one(w, best);
        pthread_mutex_lock(&w->lock);
        if (status != EN_OK) {
            w->status = status;
            snprintf(w->error, sizeof w->error, "%s", en_error_text());
        }
        w->busy = false;
        pthread_cond_broadcast(&w->changed);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* A folder that cannot be written to is better known now than after the first epoch. */
static en_status prepare_folder(const char *dir)
{
    EN_REQUIRE(mkdir(dir, 0777) == 0 || errno == EEXIST, EN_EIO, "cannot make the folder for checkpoints %s: %s", dir, strerror(errno));
    char probe[EN_PATH + 32];
    snprintf(probe, sizeof probe, "%s/step-0.h5.tmp", dir);
    const int fd = open(probe, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    EN_REQUIRE(fd >= 0, EN_EIO, "cannot write to the folder for checkpoints %s: %s", dir, strerror(errno));
    close(fd);
    unlink(probe);
    return EN_OK;
}

en_status en_checkpoint_writer_open(const char *dir, int keep, en_snapshot *buffer, en_checkpoint_writer **out)
{
    *out = NULL;
    EN_REQUIRE(strlen(dir) + 300 < EN_PATH, EN_EUSAGE, "the path %.100s... is too long (%d characters fit)", dir, EN_PATH - 301);
    EN_TRY(prepare_folder(dir), "preparing to save checkpoints");
    EN_TRY(en_checkpoint_prune(dir, keep), "preparing to save checkpoints");    /* leftovers of a run that was killed  */
    en_checkpoint_writer *w = calloc(1, sizeof *w);
    EN_REQUIRE(w, EN_ENOMEM, "no memory for the writer of checkpoints");
    snprintf(w->dir, sizeof w->dir, "%s", dir);
    w->keep = keep;
    w->buffer = buffer;
    pthread_mutex_init(&w->lock, NULL);
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&w->changed, &clock);
    pthread_condattr_destroy(&clock);
    sigset_t all, before;                                    /* signals are for the thread that trains                 */
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    const int error = pthread_create(&w->thread, NULL, write_when_begun, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) {
        pthread_cond_destroy(&w->changed);
        pthread_mutex_destroy(&w->lock);
        free(w);
        return en_raise(EN_EIO, __FILE__, __LINE__, __func__, "cannot start the thread that writes checkpoints: %s", strerror(error));
    }
    *out = w;
    return EN_OK;
}

/* Waits until the thread has let go of the buffer and hands on its error, once. */
static en_status settle(en_checkpoint_writer *w)
{
    pthread_mutex_lock(&w->lock);
    while (w->busy) pthread_cond_wait(&w->changed, &w->lock);
    const en_status status = w->status;
    char error[sizeof w->error];
    if (status != EN_OK) snprintf(error, sizeof error, "%s", w->error);
    w->status = EN_OK;
    pthread_mutex_unlock(&w->lock);
    if (status == EN_OK) return EN_OK;
    const size_t n = strlen(error);
    if (n > 0 && error[n - 1] == '\n') error[n - 1] = '\0';
    return en_raise(status, __FILE__, __LINE__, __func__, "%s", error);
}

en_status en_checkpoint_writer_acquire(en_checkpoint_writer *w) { return settle(w); }
en_status en_checkpoint_writer_wait(en_checkpoint_writer *w)    { return settle(w); }

void en_checkpoint_writer_begin(en_checkpoint_writer *w, bool best)
{
    pthread_mutex_lock(&w->lock);
    while (w->busy) pthread_cond_wait(&w->changed, &w->lock);   /* only when the caller has not acquired               */
    w->busy = w->begun = true;
    w->best = best;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

bool en_checkpoint_writer_busy(en_checkpoint_writer *w, double patience_s)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    const double nanoseconds = (double)until.tv_nsec + 1e9 * patience_s;
    until.tv_sec += (time_t)(nanoseconds / 1e9);
    until.tv_nsec = (long)(nanoseconds - 1e9 * floor(nanoseconds / 1e9));
    pthread_mutex_lock(&w->lock);
    while (w->busy && patience_s > 0)
        if (pthread_cond_timedwait(&w->changed, &w->lock, &until) != 0) break;
    const bool busy = w->busy;
    pthread_mutex_unlock(&w->lock);
    return busy;
}

const char *en_checkpoint_writer_last(const en_checkpoint_writer *w)
{
    en_checkpoint_writer *own = (en_checkpoint_writer *)w;   /* the lock and the copy are not part of what it means    */
    pthread_mutex_lock(&own->lock);
    memcpy(own->last_shown, own->last, sizeof own->last);
    pthread_mutex_unlock(&own->lock);
    return own->last_shown;
}

void en_checkpoint_writer_close(en_checkpoint_writer *w)
{
    if (!w) return;
    pthread_mutex_lock(&w->lock);
    w->stop = true;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    pthread_join(w->thread, NULL);
    if (w->status != EN_OK) fprintf(stderr, "the last checkpoint was not written: %s", w->error);   /* nobody has asked */
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    free(w);
}
