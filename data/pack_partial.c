/* pack_partial.c - the file while it is being made: TARGET.partial.
 *
 *     0          64                           bytes_at
 *     | head     | one record a sample ...    | images, one after the other ...      while packing
 *     | HDF5's superblock, index, names       | images                               afterwards, then renamed
 *
 * The journal lies where the index will be: an index entry is never smaller than a record, so there is room, and the unfinished file does
 * not begin as HDF5 does - whoever renames it by hand has nothing that opens.
 *
 * Going on after a kill, or a crash of the machine: the head's digest is over names, sizes and times of all files and over the
 * options, so a journal of another plan is thrown away with its bytes.  Records are believed as far as each has its own checksum and the
 * bytes that it tells of have the recorded CRC-32 - the caller compares them - so it does not matter which of both the disk had kept.
 *
 * One packer at a time: flock on the partial file, which the kernel drops however the process ends.  Between opening and locking, the
 * former owner may have renamed the file to its target; so what is locked must still be what has the name. */
#define _GNU_SOURCE
#include "pack_inside.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include <zlib.h>

#include "kernels/host.h"

typedef struct { char magic[16]; uint64_t digest; int64_t n, bytes_at; char pad[24]; } head;    /* 64 bytes */
typedef struct { uint32_t crc, n, flags, check; } record;                                       /* 16 bytes; check: over the others and the number */
static const char magic[16] = "effnet pack 1\n";

static bool is_there(const char *path) { struct stat st; return lstat(path, &st) == 0; }

static en_status refuse_target(const char *target)
{
    return en_raise(EN_EUSAGE, __FILE__, __LINE__, __func__, "%s is there already and is not overwritten; name another file, or remove it", target);
}

en_status en_partial_open(const char *target, en_partial *p)
{
    *p = (en_partial){ .fd = -1, .target = target };
    EN_REQUIRE(target && *target, EN_EUSAGE, "which file to make? effnet pack DIR FILE.h5");
    EN_REQUIRE(strlen(target) < EN_PACK_NAME, EN_EUSAGE, "the path of the file has %zu bytes; %d are the limit", strlen(target), EN_PACK_NAME - 1);
    snprintf(p->path, sizeof p->path, "%s.partial", target);
    for (;;) {
        struct stat mine, named;
        if (is_there(target)) return refuse_target(target);
        p->fd = open(p->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
        EN_REQUIRE(p->fd >= 0, EN_EIO, "%s cannot be written: %s; choose another place", p->path, strerror(errno));
        const int locked = flock(p->fd, LOCK_EX | LOCK_NB);          /* a file system without locks is no reason to refuse */
        const int error = locked == 0 ? 0 : errno;
        if (error == EWOULDBLOCK) {
            en_partial_close(p);
            return en_raise(EN_EUSAGE, __FILE__, __LINE__, __func__,
                            "another process is packing into %s; wait for it, or choose another file", target);
        }
        const bool known = fstat(p->fd, &mine) == 0;
        if (known && !S_ISREG(mine.st_mode)) {
            en_partial_close(p);
            return en_raise(EN_EUSAGE, __FILE__, __LINE__, __func__, "%s is in the way and is not a regular file; remove it", p->path);
        }
        if (known && stat(p->path, &named) == 0 && mine.st_dev == named.st_dev && mine.st_ino == named.st_ino) break;
        en_partial_close(p);
    }
    if (is_there(target)) {
        en_partial_close(p);
        return refuse_target(target);
    }
    return EN_OK;
}

void en_partial_close(en_partial *p)
{
    if (p->fd >= 0) close(p->fd);
    p->fd = -1;
}

/* ---- writing ---------------------------------------------------------------------------------------------------------------- */

static bool free_there(const en_partial *p, double *bytes)
{
    struct statvfs fs;
    if (fstatvfs(p->fd, &fs) != 0) return false;
    *bytes = (double)fs.f_bavail * (double)fs.f_frsize;
    return true;
}

static en_status cannot(const en_partial *p, const char *what, int error)
{
    char room[64] = "";
    double bytes;
    if (free_there(p, &bytes)) snprintf(room, sizeof room, " (%.4g GB are free there)", bytes / 1e9);
    const bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
    return en_raise(EN_EIO, __FILE__, __LINE__, __func__, "%s cannot be %s: %s%s%s", p->path, what, strerror(error), full ? room : "",
                    full ? "; make room, or raise the quota or the limit on file size, and start the same command again: it goes on from there" : "");
}

en_status en_partial_room(const en_partial *p, int64_t bytes)
{
    struct stat st;
    double room;
    if (!free_there(p, &room) || fstat(p->fd, &st) != 0) return EN_OK;
    const double more = (double)bytes - 512.0 * (double)st.st_blocks;
    EN_REQUIRE(more <= room, EN_EIO, "%s needs %.4g GB more, and %.4g GB are free there; make room, choose another place, or pack smaller pictures "
               "(--max-side)", p->target, more / 1e9, room / 1e9);
    return EN_OK;
}

en_status en_partial_write(const en_partial *p, const void *bytes, size_t n, int64_t at)
{
    const int error = en_write_at(p->fd, bytes, n, p->bytes_at + at);
    return error ? cannot(p, "written", error) : EN_OK;
}

static uint32_t check_of(const record *r, int64_t i)
{
    const uint32_t words[4] = { r->crc, r->n, r->flags, (uint32_t)i };
    return (uint32_t)crc32(0x65666e65, (const unsigned char *)words, sizeof words);
}

en_status en_partial_note(const en_partial *p, const en_pack_index *x, const uint8_t *flags, int64_t i)
{
    record r = { .crc = x->crc[i], .n = (uint32_t)(x->offsets[i + 1] - x->offsets[i]), .flags = flags[i] };
    r.check = check_of(&r, i);
    const int error = en_write_at(p->fd, &r, sizeof r, (int64_t)sizeof(head) + i * (int64_t)sizeof r);
    return error ? cannot(p, "written", error) : EN_OK;
}

/* ---- going on ---------------------------------------------------------------------------------------------------------------- */

static bool read_all(int fd, void *to, size_t n, int64_t at)
{
    for (size_t have = 0; have < n;) {
        const ssize_t got = pread(fd, (char *)to + have, n - have, (off_t)at + (off_t)have);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return false;
        have += (size_t)got;
    }
    return true;
}

en_status en_partial_resume(en_partial *p, uint64_t digest, int64_t bytes_at, en_pack_index *x, uint8_t *flags, int64_t *done)
{
    head want = { .digest = digest, .n = x->n, .bytes_at = bytes_at }, is;
    struct stat st;
    memcpy(want.magic, magic, sizeof magic);
    p->bytes_at = bytes_at;
    *done = 0;
    EN_REQUIRE((int64_t)sizeof want + x->n * (int64_t)sizeof(record) <= bytes_at, EN_EINVAL,
               "the journal of %" PRId64 " samples needs more than %" PRId64 " bytes", x->n, bytes_at);
    const bool same = read_all(p->fd, &is, sizeof is, 0) && memcmp(&is, &want, sizeof is) == 0 && fstat(p->fd, &st) == 0;
    if (!same) {
        int error = ftruncate(p->fd, 0) == 0 ? 0 : errno;
        if (!error) error = en_write_at(p->fd, &want, sizeof want, 0);
        return error ? cannot(p, "written", error) : EN_OK;
    }
    for (int64_t i = 0; i < x->n; i++) {
        record r;
        if (!read_all(p->fd, &r, sizeof r, (int64_t)sizeof(head) + i * (int64_t)sizeof r) || r.check != check_of(&r, i)
            || x->offsets[i] + r.n > st.st_size - bytes_at) break;
        x->offsets[i + 1] = x->offsets[i] + r.n;
        x->crc[i] = r.crc;
        flags[i] = (uint8_t)r.flags;
        *done = i + 1;
    }
    return EN_OK;
}

/* ---- finishing ---------------------------------------------------------------------------------------------------------------- */

static int sync_fd(int fd)
{
    while (fsync(fd) != 0)
        if (errno != EINTR) return errno;
    return 0;
}

static int sync_folder_of(const char *path)
{
    char folder[EN_PACK_NAME];
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash) slash[slash == folder] = '\0';
    const int fd = open(slash ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return errno;
    const int error = sync_fd(fd);
    close(fd);
    return error == EINVAL || error == ENOTSUP ? 0 : error;         /* some network file systems have no such call */
}

/* Gives the file its name without replacing another one; 0 or an errno.  Not every file system has the flag, nor hard links. */
static int take_name(const char *partial, const char *target)
{
    if (renameat2(AT_FDCWD, partial, AT_FDCWD, target, RENAME_NOREPLACE) == 0) return 0;
    if (errno != EINVAL && errno != ENOSYS && errno != ENOTSUP) return errno;
    if (link(partial, target) == 0) return unlink(partial) == 0 ? 0 : errno;
    if (errno == EEXIST) return EEXIST;
    if (is_there(target)) return EEXIST;
    return rename(partial, target) == 0 ? 0 : errno;
}

en_status en_partial_finish(en_partial *p, const uint8_t *image, int64_t bytes)
{
    const char *what = "written";
    int error = en_write_at(p->fd, image, (size_t)p->bytes_at, 0);
    if (!error && ftruncate(p->fd, (off_t)(p->bytes_at + bytes)) != 0) error = errno;
    if (!error) what = "synced", error = sync_fd(p->fd);
    if (error) return cannot(p, what, error);
    error = take_name(p->path, p->target);
    if (error == EEXIST) return refuse_target(p->target);
    EN_REQUIRE(!error, EN_EIO, "%s cannot be renamed to %s: %s", p->path, p->target, strerror(error));
    error = sync_folder_of(p->target);
    EN_REQUIRE(!error, EN_EIO, "the folder of %s cannot be synced: %s", p->target, strerror(error));
    en_partial_close(p);
    return EN_OK;
}
