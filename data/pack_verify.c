/* pack_verify.c - every byte of a packed file against a checksum.
 *
 * Opening does the index: HDF5's own checksums for its metadata, a CRC-32 for each array, and the arrays against each other.  What is left are
 * the images, read in file order by all threads, since that is what disks like. */
#include "pack_inside.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct {
    const char *path;
    en_pack_index x;
    int      fd;
    int64_t  bytes_at, *damaged;               /* damaged: owns, the first EN_PACK_LISTED in order */
    int      listed;
    pthread_mutex_t mutex;
    int64_t  bad;
    atomic_llong next, done, done_bytes;
    en_pack_progress progress;
} verifier;

static void note(verifier *v, int64_t i)
{
    pthread_mutex_lock(&v->mutex);
    v->bad++;
    int at = v->listed;
    while (at > 0 && v->damaged[at - 1] > i) at--;
    if (at < EN_PACK_LISTED) {
        const int last = v->listed < EN_PACK_LISTED ? v->listed++ : EN_PACK_LISTED - 1;
        memmove(v->damaged + at + 1, v->damaged + at, (size_t)(last - at) * sizeof *v->damaged);
        v->damaged[at] = i;
    }
    pthread_mutex_unlock(&v->mutex);
}

static en_status work(void *context, int worker, const atomic_bool *stop)
{
    verifier *v = context;
    const en_pack_index *x = &v->x;
    uint8_t *buf = NULL;
    size_t capacity = 0;
    en_status status = EN_OK;
    (void)worker;
    while (!atomic_load(stop)) {
        const int64_t i = atomic_fetch_add(&v->next, 1);
        if (i >= x->n) break;
        const en_pack_place place = { .fd = v->fd, .at = v->bytes_at + x->offsets[i], .n = x->offsets[i + 1] - x->offsets[i], .sample = i,
                                      .crc = x->crc[i], .path = v->path, .label = NULL };
        status = en_pack_read(&place, &buf, &capacity);
        if (status != EN_OK && status != EN_EDATA && status != EN_EIO) break;
        if (status != EN_OK) note(v, i);
        status = EN_OK;
        en_error_clear();
        atomic_fetch_add(&v->done, 1);
        atomic_fetch_add(&v->done_bytes, place.n);
    }
    free(buf);
    return status;
}

static void tick(void *context)
{
    verifier *v = context;
    pthread_mutex_lock(&v->mutex);
    const int64_t bad = v->bad;
    pthread_mutex_unlock(&v->mutex);
    en_pack_progress_show(&v->progress, atomic_load(&v->done), atomic_load(&v->done_bytes), bad);
}

static en_status damaged(const verifier *v)
{
    const en_pack_index *x = &v->x;
    char text[1700] = "";
    size_t used = 0;
    for (int k = 0; k < v->listed && used < sizeof text - 1; k++) {
        const int64_t i = v->damaged[k];
        const int n = snprintf(text + used, sizeof text - used, "\n    sample %" PRId64 ", %.*s", i, (int)x->file_width,
                               x->files + (size_t)i * x->file_width);
        if (n > 0) used += (size_t)n;
    }
    return en_raise(EN_EDATA, __FILE__, __LINE__, __func__,
                    "%s is damaged: %" PRId64 " of %" PRId64 " samples are not what was packed; copy it again, or pack again:%s%s", v->path,
                    v->bad, x->n, text, v->bad > v->listed ? "\n    ..." : "");
}

en_status en_pack_verify(const char *path, int workers, bool quiet, en_pack_report *report)
{
    const double began = en_pack_seconds();
    int64_t list[EN_PACK_LISTED + 1];
    verifier v = { .path = path, .fd = -1, .damaged = list };
    en_pack_report r = { 0 };
    EN_REQUIRE(path && report, EN_EINVAL, "verifying: an argument is NULL");
    EN_REQUIRE(access(path, F_OK) == 0 || errno != ENOENT, EN_EDATA, "%s does not exist; name a file that `effnet pack` made", path);
    EN_REQUIRE(faccessat(AT_FDCWD, path, R_OK, AT_EACCESS) == 0, EN_EDATA, "%s cannot be read: %s", path, strerror(errno));
    EN_REQUIRE(en_is_packed(path), EN_EDATA, "%s is no packed dataset; `effnet pack` makes them", path);
    EN_TRY(en_pack_h5_read(path, &v.x, &v.fd, &v.bytes_at), "verifying %s", path);
    pthread_mutex_init(&v.mutex, NULL);
    posix_fadvise(v.fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    en_pack_progress_open(&v.progress, "verifying", quiet, v.x.n, v.x.offsets[v.x.n]);
    en_status status = en_crew_run(&(en_crew){ .workers = en_crew_size(workers), .work = work, .tick = tick, .context = &v });
    en_pack_progress_close(&v.progress);
    struct stat st;
    r = (en_pack_report){ .samples = v.x.n, .classes = v.x.classes, .bad = v.x.bad, .shrunk = v.x.shrunk, .bytes_in = v.x.offsets[v.x.n],
                          .bytes_out = fstat(v.fd, &st) == 0 ? st.st_size : 0, .damaged = v.bad, .seconds = en_pack_seconds() - began };
    if (status == EN_OK && v.bad > 0) status = damaged(&v);
    *report = r;
    close(v.fd);
    pthread_mutex_destroy(&v.mutex);
    en_pack_index_free(&v.x);
    return status;
}
