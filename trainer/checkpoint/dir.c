/* checkpoint/dir.c - a run's folder: which file is newest, which may go.
 *
 * Ours are step-<digits>.h5 and best.h5, and those names with .tmp behind; a number in a name orders files, not a clock,
 * which a restored backup or another machine would turn round.  Nothing else in the folder is looked at. */
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "trainer/checkpoint/internal.h"

/* ---- names --------------------------------------------------------------------------------------------------------- */

/* The step of step-<digits>.h5 followed by `tail`, or -1. */
static int64_t step_in(const char *name, const char *tail)
{
    if (strncmp(name, "step-", 5)) return -1;
    const char *digits = name + 5;
    const size_t n = strspn(digits, "0123456789");
    if (n == 0 || n > 18 || strncmp(digits + n, ".h5", 3) || strcmp(digits + n + 3, tail)) return -1;
    return strtoll(digits, NULL, 10);
}

typedef struct { int64_t step; char *name; } numbered;
typedef struct { numbered *file; size_t n, capacity; char **tmp; size_t n_tmp, tmp_capacity; } listing;

static void free_listing(listing *l)
{
    for (size_t i = 0; i < l->n; i++) free(l->file[i].name);
    for (size_t i = 0; i < l->n_tmp; i++) free(l->tmp[i]);
    free(l->file);
    free(l->tmp);
    *l = (listing){ 0 };
}

static bool grow(void **array, size_t n, size_t *capacity, size_t element)
{
    if (n < *capacity) return true;
    const size_t more = *capacity ? 2 * *capacity : 64;
    void *grown = realloc(*array, more * element);
    if (!grown) return false;
    *array = grown;
    *capacity = more;
    return true;
}

static int newest_first(const void *a, const void *b)
{
    const numbered *x = a, *y = b;
    if (x->step != y->step) return x->step < y->step ? 1 : -1;
    return strcmp(x->name, y->name);                        /* step-8.h5 beside step-00000008.h5                        */
}

static bool list_entry(listing *l, const char *name)
{
    const int64_t step = step_in(name, "");
    if (step >= 0) {
        if (!grow((void **)&l->file, l->n, &l->capacity, sizeof *l->file)) return false;
        char *copy = strdup(name);
        if (copy) l->file[l->n++] = (numbered){ step, copy };
        return copy;
    }
    if (step_in(name, ".tmp") < 0 && strcmp(name, "best.h5.tmp")) return true;
    if (!grow((void **)&l->tmp, l->n_tmp, &l->tmp_capacity, sizeof *l->tmp)) return false;
    return (l->tmp[l->n_tmp] = strdup(name)) && ++l->n_tmp;
}

/* What is ours in `dir`, newest first; nothing when there is no such folder. */
static en_status list(const char *dir, listing *l)
{
    *l = (listing){ 0 };
    EN_REQUIRE(strlen(dir) + 300 < EN_PATH, EN_EUSAGE, "the path %.100s... is too long (%d characters fit)", dir, EN_PATH - 301);
    DIR *d = opendir(dir);
    if (!d && errno == ENOENT) return EN_OK;
    EN_REQUIRE(d, EN_EIO, "cannot read the folder of checkpoints %s: %s", dir, strerror(errno));
    bool ok = true;
    int error = 0;
    while (ok) {
        errno = 0;
        const struct dirent *e = readdir(d);
        if (!e) {
            error = errno;
            break;
        }
        ok = list_entry(l, e->d_name);
    }
    closedir(d);
    if (ok && !error) {
        if (l->n > 1) qsort(l->file, l->n, sizeof *l->file, newest_first);
        return EN_OK;
    }
    free_listing(l);
    return error ? en_raise(EN_EIO, __FILE__, __LINE__, __func__, "cannot read the folder of checkpoints %s: %s", dir, strerror(error))
                 : en_raise(EN_ENOMEM, __FILE__, __LINE__, __func__, "no memory to list %s", dir);
}

static void join(char path[EN_PATH], const char *dir, const char *name)
{
    if (snprintf(path, EN_PATH, "%s/%s", dir, name) >= EN_PATH) path[0] = '\0';   /* list() has left room for it     */
}

/* ---- the newest ---------------------------------------------------------------------------------------------------- */

en_status en_checkpoint_newest(const char *dir, char path[4096], void (*passed_over)(const char *path, const char *why))
{
    listing l;
    path[0] = '\0';
    EN_TRY(list(dir, &l), "looking for the newest checkpoint");
    en_status status = EN_OK;
    char newest_why[EN_WHY] = "";
    size_t i;
    for (i = 0; i < l.n; i++) {
        en_checkpoint_info info;
        en_file_kind kind;
        char why[EN_WHY];
        join(path, dir, l.file[i].name);
        status = en_checkpoint_look(path, true, &info, &kind, why);
        if (status == EN_OK) {
            struct stat st;
            if (stat(path, &st) == 0) en_checkpoint_remember(&st);
            en_checkpoint_info_free(&info);
            break;
        }
        if (i == 0 || status == EN_ENOMEM) memcpy(newest_why, why, sizeof why);
        if (status == EN_ENOMEM) break;                      /* it may well be whole: an older one would be the wrong one */
        if (passed_over) passed_over(path, why);
    }
    const size_t n = l.n;
    if (n > 0 && i == n) {
        join(path, dir, l.file[0].name);
        status = en_raise(EN_EDATA, __FILE__, __LINE__, __func__,
                          "none of the %zu checkpoints in %s is whole: the newest, %s, %s (nothing was changed; best.h5 may still be whole)", n, dir, l.file[0].name, newest_why);
    } else if (status == EN_ENOMEM)
        en_raise(status, __FILE__, __LINE__, __func__, "the checkpoint %s %s", path, newest_why);
    if (status != EN_OK) path[0] = '\0';
    free_listing(&l);
    return status;
}

/* ---- files known to be whole --------------------------------------------------------------------------------------- */

typedef struct { dev_t dev; ino_t ino; off_t size; struct timespec mtime; } identity;
static identity known[64];
static size_t n_known, next_known;                           /* a ring: the oldest makes room                            */
static pthread_mutex_t known_lock = PTHREAD_MUTEX_INITIALIZER;

static bool same(const identity *k, const struct stat *st)
{
    return k->dev == st->st_dev && k->ino == st->st_ino && k->size == st->st_size
        && k->mtime.tv_sec == st->st_mtim.tv_sec && k->mtime.tv_nsec == st->st_mtim.tv_nsec;
}

void en_checkpoint_remember(const struct stat *st)
{
    const size_t capacity = sizeof known / sizeof *known;
    pthread_mutex_lock(&known_lock);
    known[next_known] = (identity){ st->st_dev, st->st_ino, st->st_size, st->st_mtim };
    next_known = (next_known + 1) % capacity;
    if (n_known < capacity) n_known++;
    pthread_mutex_unlock(&known_lock);
}

bool en_checkpoint_remembers(const struct stat *st)
{
    bool found = false;
    pthread_mutex_lock(&known_lock);
    for (size_t i = 0; i < n_known && !found; i++) found = same(&known[i], st);
    pthread_mutex_unlock(&known_lock);
    return found;
}

static en_file_kind kind_of(const char *path)
{
    struct stat st;
    if (stat(path, &st) == 0 && S_ISREG(st.st_mode) && en_checkpoint_remembers(&st)) return EN_FILE_WHOLE;
    en_checkpoint_info info;
    en_file_kind kind;
    char why[EN_WHY];
    if (en_checkpoint_look(path, true, &info, &kind, why) != EN_OK) return kind;
    en_checkpoint_info_free(&info);
    if (stat(path, &st) == 0) en_checkpoint_remember(&st);
    return EN_FILE_WHOLE;
}

/* ---- retention ------------------------------------------------------------------------------------------------------ */

/* What is newer than the oldest kept stays, whatever it is: it does not count, and somebody may want to see what happened.
 * What is older goes if it is whole, or ours and broken; what is not readable or another program's stays. */
en_status en_checkpoint_prune(const char *dir, int keep)
{
    EN_REQUIRE(keep >= 1, EN_EUSAGE, "--keep %d: at least 1 checkpoint must stay", keep);
    listing l;
    EN_TRY(list(dir, &l), "removing old checkpoints");
    en_status status = EN_OK;
    char path[EN_PATH];
    for (size_t i = 0; i < l.n_tmp; i++) {
        join(path, dir, l.tmp[i]);
        EN_REQUIRE_OUT(unlink(path) == 0 || errno == ENOENT || errno == EISDIR, EN_EIO,
                       "cannot remove the leftover %s: %s", path, strerror(errno));
    }
    int whole = 0;
    for (size_t i = 0; l.n > (size_t)keep && i < l.n; i++) {
        join(path, dir, l.file[i].name);
        const en_file_kind kind = kind_of(path);
        if (whole < keep) whole += kind == EN_FILE_WHOLE;
        else if (kind == EN_FILE_WHOLE || kind == EN_FILE_BROKEN)
            EN_REQUIRE_OUT(unlink(path) == 0 || errno == ENOENT, EN_EIO, "cannot remove the old checkpoint %s: %s", path, strerror(errno));
    }
out:
    free_listing(&l);
    return status;
}
