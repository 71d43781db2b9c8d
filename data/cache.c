/* cache.c - a file of pictures that all ranks of a host fill and read together.
 *
 *     page 0            header: which run, how much is taken
 *     then              index: one entry for each sample of the dataset, 24 bytes
 *     from the next     pixels, (h,w,3) of one picture after the other, in the order in which they were put
 *     page on
 *
 * Header and index are mapped by everybody and taken in full when the file is made (posix_fallocate), so that touching them cannot
 * fail later, when the place is full.  Pixels are written with pwrite and read with pread: a place that has no room says so there, in
 * a return value, and a picture that is not whole is not seen by anybody, by this order:
 *
 *     put   entry FREE ─compare-and-swap▶ CLAIMED, take a piece of the file, write it, release-store ▶ WHOLE
 *     get   acquire-load of the entry; WHOLE: read the piece.  Anything else is a miss: nobody ever waits
 *
 * One claim wins, so a sample that two threads have decoded at once is written once.  A process that dies between the two leaves a
 * sample that is decoded anew each time it is wanted, and a hole in the file; nothing else is wrong.
 *
 * The file's name is how the ranks of one run find each other.  It goes when all of them have (en_cache_unlink); the kernel keeps the
 * file for those who hold it and takes it back after the last, whatever ends them.  A run that dies before that leaves a name behind.
 * So everybody holds a shared lock (flock) on the file for as long as it is open, and whoever opens a cache removes the names in that
 * folder that are ours and that nobody holds.  One who has opened a file but not locked it yet may lose its name that way: it sees
 * that the file has no name left, and begins again.
 *
 * A network's file system is refused: an open file that loses its name there keeps another (.nfs...), which a run that dies leaves
 * behind, and the pictures would come over the wire that the cache is there to spare.
 *
 * How much is taken is settled when the file is made: what is free in the place but for 5 %, of a disk 16 GiB at most, because
 * others meet a full one, too - in /dev/shm that would be MPI and NCCL, which do not survive it.  Of memory, a quarter of what
 * the host still gives stays free as well. */
#define _GNU_SOURCE
#include "data/cache.h"

#include "kernels/host.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { PAGE = 4096, LOOKED_AT = 256, TRIES = 1000 };
enum { FREE, CLAIMED, WHOLE };
#define PREFIX "effnet-cache-"
#define MAGIC  "effnet cache 1\n"

typedef struct {
    char     magic[16];                        /* last to be written */
    int64_t  side, samples;
    uint64_t token;
    int64_t  limit;                            /* the file does not grow beyond     */
    _Atomic int64_t end;                       /* of what has been taken            */
    _Atomic int64_t bytes, pictures;           /* of what is whole                  */
    _Atomic int32_t full;
} header;
typedef struct { _Atomic int32_t state; int32_t w, h, channels; int64_t offset; } entry;
static_assert(sizeof(header) <= PAGE && sizeof(entry) == 24, "the layout of the file");
static_assert(ATOMIC_INT_LOCK_FREE == 2 && ATOMIC_LONG_LOCK_FREE == 2, "processes share what is atomic, but no locks");

struct en_cache {
    int     fd;
    bool    named;                             /* the name may still be there                    */
    size_t  mapped;
    header *head;                              /* owns the mapping: header and index             */
    entry  *entries;                           /* (samples), in it                               */
    int64_t samples, limit;                    /* limit: the smaller of head's and this process' */
    char    path[4096 + 64];
};

static int64_t index_end(int64_t samples) { return (PAGE + samples * (int64_t)sizeof(entry) + PAGE - 1) / PAGE * PAGE; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- the place ------------------------------------------------------------------------------------------------------ */

static const char *folder_named(const char *place) { return strcmp(place, "memory") == 0 ? "/dev/shm" : place; }

/* Also a folder may be: /tmp often is a tmpfs. */
bool en_cache_in_memory(const char *place)
{
    struct statfs s;
    return strcmp(place, "memory") == 0 || (statfs(place, &s) == 0 && ((uint32_t)s.f_type == 0x01021994 /* tmpfs */ || (uint32_t)s.f_type == 0x858458F6 /* ramfs */));
}

static bool over_a_network(const char *folder)
{
    static const uint32_t kinds[] = { 0x6969 /* NFS */, 0x517B /* SMB */, 0xFF534D42 /* CIFS */, 0xFE534D42 /* SMB2 */, 0x0BD00BD0 /* Lustre */,
                                      0x47504653 /* GPFS */, 0x19830326 /* BeeGFS */, 0x00C36400 /* Ceph */, 0x20030528 /* PVFS2 */, 0x5346414F /* AFS */,
                                      0xAAD7AAEA /* PanFS */ };
    struct statfs s;
    if (statfs(folder, &s) != 0) return false;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if ((uint32_t)s.f_type == kinds[i]) return true;
    return false;
}

static en_status folder_of(const char *place, const char **folder)
{
    struct stat st;
    const char *or_memory = strcmp(place, "memory") == 0 ? "" : ", or memory";
    *folder = folder_named(place);
    EN_REQUIRE(strlen(*folder) < 4096, EN_EUSAGE, "the path %.100s... is too long for a cache", place);
    EN_REQUIRE(stat(*folder, &st) == 0 && S_ISDIR(st.st_mode), EN_EUSAGE, "no cache in %s: %s; name a folder on a local disk%s", *folder,
               stat(*folder, &st) == 0 ? "it is not a folder" : strerror(errno), or_memory);
    EN_REQUIRE(access(*folder, W_OK | X_OK) == 0, EN_EUSAGE, "no cache in %s: %s; name a folder on a local disk that may be written%s", *folder,
               strerror(errno), or_memory);
    EN_REQUIRE(!over_a_network(*folder), EN_EUSAGE, "no cache in %s: it lies on a network's file system; name a folder on a local disk, or memory", *folder);
    return EN_OK;
}

static int64_t room_of(const char *place, const char *folder)
{
    const bool in_memory = en_cache_in_memory(place);
    int64_t room = INT64_MAX;
    struct statvfs v;
    if (statvfs(folder, &v) == 0 && v.f_blocks > 0) {                  /* no blocks: a tmpfs without a limit */
        const int64_t all = (int64_t)v.f_blocks * (int64_t)v.f_frsize, kept = in_memory ? all / 20 : least(all / 20, (int64_t)16 << 30);
        room = (int64_t)v.f_bavail * (int64_t)v.f_frsize - kept;
    }
    const int64_t memory = in_memory ? en_memory_available() : 0;
    if (memory > 0) room = least(room, memory - memory / 4);
    return room > 0 ? room : 0;
}

/* What a file of this process may hold: beyond, writing would not fail but end the program (SIGXFSZ). */
static int64_t file_limit(void)
{
    struct rlimit r;
    return getrlimit(RLIMIT_FSIZE, &r) == 0 && r.rlim_cur != RLIM_INFINITY && r.rlim_cur < (rlim_t)INT64_MAX ? (int64_t)r.rlim_cur : INT64_MAX;
}

/* ---- how much will it be? ---------------------------------------------------------------------------------------------- */

/* The size of what en_shrink leaves */
static int64_t shrunk_bytes(int64_t w, int64_t h, int64_t side)
{
    const int64_t shorter = least(w, h);
    if (shorter <= side) return 3 * w * h;
    return 3 * (int64_t)((double)w * (double)side / (double)shorter + 0.5) * (int64_t)((double)h * (double)side / (double)shorter + 0.5);
}

en_status en_cache_plan(const en_dataset *ds, const char *place, int64_t side, int64_t *bytes, int64_t *room)
{
    const char *folder;
    EN_TRY(folder_of(place, &folder), "planning the cache");
    uint8_t *file = NULL;
    size_t capacity = 0, n = 0;
    const int64_t looked = least(ds->samples, LOOKED_AT);
    double sum = 0;
    for (int64_t k = 0; k < looked; k++) {
        const int64_t i = (int64_t)((double)k * (double)ds->samples / (double)looked);
        int64_t w, h;
        int channels;
        if (ds->ops->read(ds, i, &file, &capacity, &n) == EN_OK && en_image_size(ds->files[i], file, n, &w, &h, &channels) == EN_OK)
            sum += (double)shrunk_bytes(w, h, side);
        else en_error_clear();                                         /* a bad file is reported when it is its turn */
    }
    free(file);
    *bytes = index_end(ds->samples) + (looked > 0 ? (int64_t)(sum / (double)looked * (double)ds->samples) : 0);
    *room = room_of(place, folder);
    return EN_OK;
}

/* ---- the file ------------------------------------------------------------------------------------------------------------ */

static int flock_patiently(int fd, int how)
{
    int r;
    do r = flock(fd, how); while (r != 0 && errno == EINTR);
    return r;
}

/* Names that a run left which did not live to remove them: ours, and nobody holds them. */
static void sweep(const char *folder)
{
    DIR *dir = opendir(folder);
    for (struct dirent *d; dir && (d = readdir(dir)); ) {
        struct stat st;
        if (strncmp(d->d_name, PREFIX, strlen(PREFIX)) != 0) continue;
        const int fd = openat(dirfd(dir), d->d_name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        if (fd < 0) continue;
        const bool ours = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_uid == geteuid() && flock(fd, LOCK_EX | LOCK_NB) == 0;
        if (ours && fstat(fd, &st) == 0 && st.st_nlink > 0) unlinkat(dirfd(dir), d->d_name, 0);        /* without one, the name is a new file's already */
        close(fd);
    }
    if (dir) closedir(dir);
}

/* Opens or makes the file, and holds it against `sweep`. */
static en_status hold(en_cache *c, const char *folder)
{
    for (int k = 0; k < TRIES; k++) {
        struct stat st;
        c->fd = open(c->path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
        EN_REQUIRE(c->fd >= 0, EN_EIO, "cannot make a cache in %s: %s; name a folder on another disk", folder, strerror(errno));
        EN_REQUIRE(flock_patiently(c->fd, LOCK_SH) == 0, EN_EIO, "cannot lock a cache in %s: %s; name a folder on another disk", folder, strerror(errno));
        EN_REQUIRE(fstat(c->fd, &st) == 0, EN_EIO, "cannot look at %s: %s", c->path, strerror(errno));
        EN_REQUIRE(S_ISREG(st.st_mode) && st.st_uid == geteuid(), EN_EIO, "%s is somebody else's; name another folder", c->path);
        c->named = true;
        if (st.st_nlink > 0) return EN_OK;
        close(c->fd);
        c->fd = -1;
    }
    return en_raise(EN_EIO, __FILE__, __LINE__, __func__, "%s vanishes as often as it is made", c->path);
}

static en_status take_index(en_cache *c, const char *folder)
{
    EN_REQUIRE(index_end(c->samples) <= file_limit(), EN_EIO, "a cache of %" PRId64 " pictures begins with an index of %" PRId64 " bytes, and a file may have %" PRId64
               " here (ulimit -f)", c->samples, index_end(c->samples), file_limit());
    int e;
    do e = posix_fallocate(c->fd, 0, index_end(c->samples)); while (e == EINTR);
    EN_REQUIRE(e == 0, EN_EIO, "no room for a cache in %s: its index alone has %" PRId64 " bytes: %s; name another folder", folder, index_end(c->samples), strerror(e));
    return EN_OK;
}

static en_status map(en_cache *c)
{
    c->mapped = (size_t)index_end(c->samples);
    void *p = mmap(NULL, c->mapped, PROT_READ | PROT_WRITE, MAP_SHARED, c->fd, 0);
    EN_REQUIRE(p != MAP_FAILED, EN_ENOMEM, "cannot map %s: %s", c->path, strerror(errno));
    c->head = p;
    c->entries = (entry *)((char *)p + PAGE);
    return EN_OK;
}

/* Under the lock of the first to come: makes the file what it should be, or finds that somebody did. */
static en_status begin(en_cache *c, const en_cache_config *config, const char *folder)
{
    header there = { 0 };
    const bool made = pread(c->fd, &there, sizeof there, 0) == (ssize_t)sizeof there && memcmp(there.magic, MAGIC, sizeof there.magic) == 0;
    const bool alike = there.side == config->side && there.samples == config->samples && there.token == config->token;
    c->named = !made || alike;                                         /* else it is not ours to remove */
    EN_REQUIRE(!made || alike, EN_EUSAGE,
               "%s holds %" PRId64 " pictures of side %" PRId64 ", want %" PRId64 " of side %" PRId64 ": the ranks of this host were not started alike", c->path,
               there.samples, there.side, config->samples, config->side);
    const int64_t room = room_of(config->place, folder), before = index_end(c->samples);
    if (!made) EN_TRY(take_index(c, folder), "making a cache");
    EN_TRY(map(c), "making a cache");
    if (made) return EN_OK;
    c->head->side = config->side;
    c->head->samples = config->samples;
    c->head->token = config->token;
    c->head->limit = room > before ? room : before;
    atomic_store(&c->head->end, before);
    memcpy(c->head->magic, MAGIC, sizeof c->head->magic);
    return EN_OK;
}

en_status en_cache_open(const en_cache_config *config, en_cache **out)
{
    en_status status = EN_OK;
    const char *folder;
    *out = NULL;
    EN_REQUIRE(config->samples >= 0 && config->samples < INT64_MAX / 64 && config->side > 0, EN_EINVAL, "a cache of %" PRId64 " pictures of side %" PRId64,
               config->samples, config->side);
    EN_TRY(folder_of(config->place, &folder), "opening the cache");
    en_cache *c = calloc(1, sizeof *c);
    EN_REQUIRE(c, EN_ENOMEM, "no memory for a cache");
    c->fd = -1;
    c->samples = config->samples;
    snprintf(c->path, sizeof c->path, "%s/" PREFIX "%016" PRIx64, folder, config->token);
    sweep(folder);
    EN_TRY_OUT(hold(c, folder), "opening the cache");
    struct flock first = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1 };
    int r;
    do r = fcntl(c->fd, F_OFD_SETLKW, &first); while (r != 0 && errno == EINTR);
    EN_REQUIRE_OUT(r == 0, EN_EIO, "cannot lock a cache in %s: %s; name a folder on another disk", folder, strerror(errno));
    status = begin(c, config, folder);
    first.l_type = F_UNLCK;
    fcntl(c->fd, F_OFD_SETLK, &first);
    EN_TRY_OUT(status, "opening the cache");
    c->limit = least(c->head->limit, file_limit());
    *out = c;
    return EN_OK;
out:
    en_cache_close(c);
    return status;
}

void en_cache_unlink(en_cache *c)
{
    struct stat named, held;
    if (c->named && lstat(c->path, &named) == 0 && fstat(c->fd, &held) == 0 && named.st_ino == held.st_ino && named.st_dev == held.st_dev) unlink(c->path);
    c->named = false;
}

void en_cache_close(en_cache *c)
{
    if (!c) return;
    if (c->fd >= 0) en_cache_unlink(c);
    if (c->head) munmap(c->head, c->mapped);
    if (c->fd >= 0) close(c->fd);
    free(c);
}

/* ---- put and get ------------------------------------------------------------------------------------------------------- */

/* A piece of the file, or -1 when there is no room for it. */
static int64_t take(en_cache *c, int64_t bytes)
{
    int64_t at = atomic_load_explicit(&c->head->end, memory_order_relaxed);
    do if (bytes > c->limit - at) return -1;
    while (!atomic_compare_exchange_weak_explicit(&c->head->end, &at, at + bytes, memory_order_relaxed, memory_order_relaxed));
    return at;
}

static bool write_all(int fd, const uint8_t *from, int64_t n, int64_t at)
{
    for (int64_t done = 0; done < n; ) {
        const ssize_t r = pwrite(fd, from + done, (size_t)(n - done), at + done);
        if (r == 0 || (r < 0 && errno != EINTR)) return false;
        if (r > 0) done += r;
    }
    return true;
}

static bool read_all(int fd, uint8_t *to, int64_t n, int64_t at)
{
    for (int64_t done = 0; done < n; ) {
        const ssize_t r = pread(fd, to + done, (size_t)(n - done), at + done);
        if (r == 0 || (r < 0 && errno != EINTR)) return false;
        if (r > 0) done += r;
    }
    return true;
}

void en_cache_put(en_cache *c, int64_t sample, const en_image *img)
{
    if (sample < 0 || sample >= c->samples || img->w <= 0 || img->h <= 0 || img->w > INT32_MAX || img->h > INT32_MAX || img->w > INT64_MAX / 3 / img->h) return;
    entry *e = &c->entries[sample];
    int32_t was = FREE;
    if (en_cache_full(c) || !atomic_compare_exchange_strong_explicit(&e->state, &was, CLAIMED, memory_order_relaxed, memory_order_relaxed)) return;
    const int64_t bytes = img->w * img->h * 3, at = take(c, bytes);
    if (at < 0 || !write_all(c->fd, img->rgb, bytes, at)) {
        if (at >= 0) fallocate(c->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, bytes);      /* what was written of it, given back */
        atomic_store_explicit(&c->head->full, 1, memory_order_relaxed);
        atomic_store_explicit(&e->state, FREE, memory_order_relaxed);
        return;
    }
    e->w = (int32_t)img->w, e->h = (int32_t)img->h, e->channels = img->channels, e->offset = at;
    atomic_store_explicit(&e->state, WHOLE, memory_order_release);
    atomic_fetch_add_explicit(&c->head->bytes, bytes, memory_order_relaxed);
    atomic_fetch_add_explicit(&c->head->pictures, 1, memory_order_relaxed);
}

bool en_cache_get(en_cache *c, int64_t sample, en_image *img, size_t *capacity)
{
    if (sample < 0 || sample >= c->samples) return false;
    const entry *e = &c->entries[sample];
    if (atomic_load_explicit(&e->state, memory_order_acquire) != WHOLE) return false;
    const int64_t bytes = (int64_t)e->w * e->h * 3;
    if (*capacity < (size_t)bytes) {
        uint8_t *grown = realloc(img->rgb, (size_t)bytes);
        if (!grown) return false;
        img->rgb = grown;
        *capacity = (size_t)bytes;
    }
    img->w = e->w, img->h = e->h, img->channels = e->channels;
    return read_all(c->fd, img->rgb, bytes, e->offset);
}

bool en_cache_full(const en_cache *c) { return atomic_load_explicit(&c->head->full, memory_order_relaxed); }

int64_t en_cache_bytes(const en_cache *c, int64_t *pictures)
{
    *pictures = atomic_load_explicit(&c->head->pictures, memory_order_relaxed);
    return atomic_load_explicit(&c->head->bytes, memory_order_relaxed);
}
