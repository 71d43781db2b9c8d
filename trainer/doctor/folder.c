/* doctor/folder.c - the folder that a run would write to, tried out.
 *
 * Each host writes, locks and removes a small file of its own.  With --run and several ranks the hosts then meet over one file of
 * rank 0's, a host's first rank for it (on one host: ranks 0 and 1):
 *
 *     rank 0   makes the file        locks it                       unlocks it
 *     others   wait until they       try to, which must fail        share a lock, which must work
 *              see its content       (once by flock, once by fcntl)
 *
 * A file that does not show is on another file system.  A lock that does not exclude lets two jobs train in one folder
 * (RUN/run.lock, run_open.c).  Whatever is made is removed; a folder that is not there yet is looked for upwards. */
#define _GNU_SOURCE
#include "trainer/doctor/doctor.h"

#include "comm/watch.h"
#include "kernels/host.h"
#include "trainer/trainer.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

static const double shows_within_s = 10, unlocks_within_s = 5;
enum { WRITTEN = 32 << 20, PIECE = 1 << 20 };

static const char *filesystem_name(long magic)
{
    static const struct { long magic; const char *name; } known[] = {
        { 0xEF53, "ext4" },      { 0x58465342, "xfs" },   { 0x9123683E, "btrfs" },  { 0x2FC12FC1, "zfs" },     { 0x01021994, "tmpfs" },
        { 0x794C7630, "overlay" }, { 0x6969, "nfs" },     { 0x0BD00BD0, "lustre" }, { 0x47504653, "gpfs" },    { 0x19830326, "beegfs" },
        { 0x00C36400, "ceph" },  { 0x65735546, "fuse" },  { 0xFF534D42, "cifs" },   { 0x01021997, "9p" },      { 0x61756673, "aufs" } };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].magic == magic) return known[i].name;
    return "";
}

static void pause_ms(long ms) { nanosleep(&(struct timespec){ 0, ms * 1000000 }, NULL); }

static void trouble(en_doctor_facts *f, const char *what)
{
    if (!f->folder_trouble[0]) snprintf(f->folder_trouble, sizeof f->folder_trouble, "%s: %s", what, strerror(errno));
}

/* The deepest folder of `run` that is there */
static void find_folder(const char *run, char out[4096])
{
    struct stat st;
    snprintf(out, 4096, "%s", *run ? run : ".");
    while (stat(out, &st) != 0 && (errno == ENOENT || errno == ENOTDIR)) {
        char *slash = strrchr(out, '/');
        if (slash == out && out[1]) out[1] = 0;
        else if (slash && slash != out) *slash = 0;
        else snprintf(out, 4096, ".");
    }
}

/* ---- this host alone ---------------------------------------------------------------------------------------------------- */

static struct flock whole_file(short type) { return (struct flock){ .l_type = type, .l_whence = SEEK_SET }; }

static void try_alone(const char *folder, en_doctor_facts *f)
{
    char name[4300];
    struct flock lock = whole_file(F_WRLCK);
    snprintf(name, sizeof name, "%s/.effnet-doctor-%s-%ld", folder, f->host, (long)getpid());
    const int fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    const int error = fd < 0 ? errno : en_write_at(fd, "effnet", 6, 0);
    f->writable = error == 0;
    errno = error;
    if (error) trouble(f, fd < 0 ? "making a file" : "writing");
    if (fd < 0) return;
    if (f->writable && fsync(fd) != 0) {
        f->writable = 0;
        trouble(f, "fsync");
    }
    f->flock_works = flock(fd, LOCK_EX | LOCK_NB) == 0;
    if (!f->flock_works) trouble(f, "flock");
    else flock(fd, LOCK_UN);
    f->fcntl_works = fcntl(fd, F_SETLK, &lock) == 0;
    if (!f->fcntl_works) trouble(f, "fcntl lock");
    close(fd);
    unlink(name);
}

/* As checkpoints are written: a file, fsync.  A full disk has said so before, or does here. */
static void measure_writing(const char *folder, en_doctor_facts *f)
{
    char name[4300];
    char *piece = malloc(PIECE);
    int64_t bytes = WRITTEN;
    if (f->disk_free_bytes >= 0 && bytes > f->disk_free_bytes / 4) bytes = f->disk_free_bytes / 4 / PIECE * PIECE;
    if (!piece || bytes == 0) {
        free(piece);
        return;
    }
    for (size_t i = 0; i < PIECE; i++) piece[i] = (char)(i * 2654435761u >> 24);     /* not zeros: some file systems write none */
    snprintf(name, sizeof name, "%s/.effnet-doctor-speed-%ld", folder, (long)getpid());
    const int fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int error = fd < 0 ? errno : 0;
    const double began = en_seconds();
    for (int64_t at = 0; at < bytes && !error; at += PIECE) error = en_write_at(fd, piece, PIECE, at);
    if (!error && fsync(fd) != 0) error = errno;
    const double took = en_seconds() - began;
    if (!error && took > 0) f->write_bytes_per_s = (double)bytes / took;
    if (fd >= 0) {
        close(fd);
        unlink(name);
    }
    errno = error;
    if (error) {
        f->writable = 0;
        trouble(f, "writing");
    }
    free(piece);
}

/* ---- all hosts over one file ------------------------------------------------------------------------------------------------ */

typedef struct { en_comm *c; en_doctor_facts *f; char path[4300]; int fd; bool takes_part; } meeting;

static en_status meet(const meeting *m) { return m->c->ops->barrier(m->c); }

/* The other hosts read what rank 0 wrote: its name. */
static void wait_for_file(meeting *m)
{
    char text[64], want[64];
    snprintf(want, sizeof want, "%s", strrchr(m->path, '/') + 1);
    const double began = en_seconds();
    m->f->shared = 0;
    while (!m->f->shared && en_seconds() - began < shows_within_s) {
        m->fd = open(m->path, O_RDWR | O_CLOEXEC);
        if (m->fd < 0 && (errno == EACCES || errno == EROFS || errno == EPERM)) m->fd = open(m->path, O_RDONLY | O_CLOEXEC);
        const ssize_t n = m->fd < 0 ? -1 : pread(m->fd, text, sizeof text, 0);
        m->f->shared = n == (ssize_t)strlen(want) && memcmp(text, want, (size_t)n) == 0;
        if (m->f->shared) break;
        if (m->fd >= 0) close(m->fd);
        m->fd = -1;
        pause_ms(10);
    }
    if (m->f->shared) m->f->shown_after_s = en_seconds() - began;
}

static bool by_flock(int fd, bool share)
{
    if (flock(fd, (share ? LOCK_SH : LOCK_EX) | LOCK_NB) != 0) return false;
    flock(fd, LOCK_UN);
    return true;
}

static bool by_fcntl(int fd, bool share)
{
    struct flock lock = whole_file(share ? F_RDLCK : F_WRLCK), none = whole_file(F_UNLCK);
    if (fcntl(fd, F_SETLK, &lock) != 0) return false;
    fcntl(fd, F_SETLK, &none);
    return true;
}

/* rank 0 holds the lock while the others try, then not.  *excludes: 0 when somebody else got it, or could not get it afterwards. */
static en_status try_lock(meeting *m, bool fcntl_lock, int *excludes)
{
    bool (*try)(int, bool) = fcntl_lock ? by_fcntl : by_flock;
    struct flock lock = whole_file(F_WRLCK), none = whole_file(F_UNLCK);
    const bool holds = m->c->rank == 0;
    int8_t held = 0;
    if (holds) held = (fcntl_lock ? fcntl(m->fd, F_SETLK, &lock) : flock(m->fd, LOCK_EX | LOCK_NB)) == 0;
    EN_TRY(m->c->ops->broadcast(m->c, &held, sizeof held, 0), "locking a file");
    if (!held) return EN_OK;
    const bool tries = !holds && m->takes_part && m->f->shared == 1 && m->fd >= 0 && (fcntl(m->fd, F_GETFL) & O_ACCMODE) == O_RDWR;
    if (tries) *excludes = !try(m->fd, false);
    EN_TRY(meet(m), "locking a file");
    if (holds && fcntl_lock) fcntl(m->fd, F_SETLK, &none);
    else if (holds) flock(m->fd, LOCK_UN);
    EN_TRY(meet(m), "unlocking a file");
    const double began = en_seconds();
    bool shares = !tries;
    while (!shares && en_seconds() - began < unlocks_within_s) {
        shares = try(m->fd, true);
        if (!shares) pause_ms(10);
    }
    if (!shares) *excludes = 0;
    EN_TRY(meet(m), "unlocking a file");
    return EN_OK;
}

static en_status try_together(en_comm *c, const char *folder, en_doctor_facts *f)
{
    meeting m = { .c = c, .f = f, .fd = -1, .takes_part = c->local_rank == 0 || (c->nodes == 1 && c->rank == 1) };
    char name[64] = "";
    en_status status = EN_OK;
    uint64_t token = 0;
    if (c->rank == 0) {
        if (getrandom(&token, sizeof token, 0) != (ssize_t)sizeof token) token = (uint64_t)(1e9 * en_seconds());
        snprintf(name, sizeof name, ".effnet-doctor-%016llx", (unsigned long long)token);
        snprintf(m.path, sizeof m.path, "%s/%s", folder, name);
        m.fd = open(m.path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (m.fd < 0 || en_write_at(m.fd, name, strlen(name), 0) != 0 || fsync(m.fd) != 0) name[0] = 0;       /* try_alone has said why */
    }
    EN_TRY_OUT(c->ops->broadcast(c, name, sizeof name, 0), "naming a file");
    if (name[0]) {
        snprintf(m.path, sizeof m.path, "%s/%s", folder, name);
        if (c->rank == 0) f->shared = 1, f->shown_after_s = 0;
        else if (m.takes_part) wait_for_file(&m);
        EN_TRY_OUT(meet(&m), "waiting for a file to show everywhere");
        EN_TRY_OUT(try_lock(&m, false, &f->flock_excludes), "flock");
        EN_TRY_OUT(try_lock(&m, true, &f->fcntl_excludes), "fcntl locks");
        if (c->rank != 0 && m.fd >= 0) close(m.fd), m.fd = -1;
        EN_TRY_OUT(meet(&m), "closing a file");                      /* before it is removed: NFS keeps what is open elsewhere */
    }
out:
    if (m.fd >= 0) close(m.fd);
    if (c->rank == 0 && m.path[0]) unlink(m.path);
    return status;
}

/* ---- both ----------------------------------------------------------------------------------------------------------------------- */

en_status en_doctor_folder(en_comm *c, const char *run, en_doctor_facts *f)
{
    struct statvfs v;
    struct statfs s;
    char folder[4096], full[4096];
    en_watch_at(EN_STARTUP, "trying out the folder of --run");
    find_folder(run, folder);
    snprintf(f->folder, sizeof f->folder, "%.*s", (int)sizeof f->folder - 1, realpath(folder, full) ? full : folder);
    if (statvfs(folder, &v) == 0) {
        f->disk_free_bytes = (int64_t)v.f_bavail * (int64_t)v.f_frsize;
        if (v.f_files > 0) f->disk_free_files = (int64_t)v.f_favail;
    }
    if (statfs(folder, &s) == 0) snprintf(f->filesystem, sizeof f->filesystem, "%s", filesystem_name((long)s.f_type));
    if (c->local_rank == 0) try_alone(folder, f);
    if (c->rank == 0 && f->writable == 1) measure_writing(folder, f);
    if (*run && c->world_size > 1) EN_TRY(try_together(c, folder, f), "trying out %s together", folder);
    return EN_OK;
}
