/* checkpoint/disk.c - from an image in memory to a file that stands.
 *
 * HDF5 is kept away from the disk: through its own file driver a full disk was seen to end the process when it closed its
 * files at exit; a plain write(2) just says ENOSPC. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "kernels/host.h"
#include "trainer/checkpoint/internal.h"

static void folder_of(const char *path, char folder[EN_PATH])
{
    const char *slash = strrchr(path, '/');
    if (!slash) snprintf(folder, EN_PATH, ".");
    else snprintf(folder, EN_PATH, "%.*s", slash == path ? 1 : (int)(slash - path), path);
}

static const char *free_there(const char *path, char text[64])
{
    char folder[EN_PATH];
    struct statvfs fs;
    folder_of(path, folder);
    if (statvfs(folder, &fs) == 0)
        snprintf(text, 64, "%" PRIu64 " are free there", (uint64_t)fs.f_bavail * (uint64_t)fs.f_frsize);
    else snprintf(text, 64, "how many are free is unknown");
    return text;
}

static int sync_fd(int fd)
{
    while (fsync(fd) != 0)
        if (errno != EINTR) return errno;
    return 0;
}

en_status en_h5_save_image(hid_t file, const char *tmp)
{
    /* The core driver's handle is the address of its buffer, so the image is written from where it lies and never exists
     * twice (H5Fget_file_image would copy it).  The end of it is final once everything has been flushed. */
    void **image = NULL;
    const bool flushed = H5Fflush(file, H5F_SCOPE_GLOBAL) >= 0;
    const ssize_t n = flushed ? H5Fget_file_image(file, NULL, 0) : -1;
    EN_REQUIRE(n > 0 && H5Fget_vfd_handle(file, H5P_DEFAULT, (void **)&image) >= 0 && image && *image, EN_EIO,
               "%s cannot be prepared in memory: HDF5 says: %s", tmp, en_h5_error());

    const char *doing = "create";
    int error = 0, fd;
    do fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    while (fd < 0 && errno == EINTR);
    if (fd < 0) error = errno;
    if (!error) doing = "write", error = en_inject_write_error();
    if (!error) error = en_write_at(fd, *image, (size_t)n, 0);
    if (!error) doing = "sync", error = sync_fd(fd);
    if (!error) posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);   /* so that reading it back asks the disk, not the cache  */
    if (fd >= 0 && close(fd) != 0 && errno != EINTR && !error) doing = "close", error = errno;
    if (error) {
        char text[64];
        if (fd >= 0) unlink(tmp);
        if (error == ENOSPC || error == EDQUOT || error == EFBIG)
            return en_raise(EN_EIO, __FILE__, __LINE__, __func__,
                            "cannot %s %s: %s: it needs %zd bytes, %s; make room, or raise the quota or the limit on file size",
                            doing, tmp, strerror(error), n, free_there(tmp, text));
        return en_raise(EN_EIO, __FILE__, __LINE__, __func__, "cannot %s %s: %s", doing, tmp, strerror(error));
    }
    return EN_OK;
}

static en_status sync_folder_of(const char *path)
{
    char folder[EN_PATH];
    folder_of(path, folder);
    const int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    EN_REQUIRE(fd >= 0, EN_EIO, "cannot open the folder %s to sync it: %s", folder, strerror(errno));
    const int error = sync_fd(fd);
    close(fd);
    EN_REQUIRE(!error || error == EINVAL || error == ENOTSUP, EN_EIO,            /* some network file systems have no such call */
               "cannot sync the folder %s: %s", folder, strerror(error));
    return EN_OK;
}

en_status en_file_commit(const char *tmp, const char *path)
{
    if (rename(tmp, path) != 0) {
        const int error = errno;
        unlink(tmp);
        return en_raise(EN_EIO, __FILE__, __LINE__, __func__, "cannot rename %s to %s: %s", tmp, path, strerror(error));
    }
    return sync_folder_of(path);
}

bool en_file_link(const char *from, const char *path)
{
    char tmp[EN_PATH + 8];
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    unlink(tmp);
    if (link(from, tmp) != 0) return false;
    const bool ok = rename(tmp, path) == 0;
    unlink(tmp);                              /* renaming onto another name of the same file does nothing at all         */
    if (!ok) return false;
    const en_status status = sync_folder_of(path);
    if (status != EN_OK) en_error_clear();
    return status == EN_OK;
}
