#define _GNU_SOURCE
#include "host.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

int en_write_at(int fd, const void *from, size_t n, int64_t at)
{
    const char *bytes = from;
    sigset_t xfsz, before;
    sigemptyset(&xfsz);
    sigaddset(&xfsz, SIGXFSZ);
    pthread_sigmask(SIG_BLOCK, &xfsz, &before);
    int error = 0;
    while (n > 0 && !error) {
        const ssize_t done = pwrite(fd, bytes, n < (64u << 20) ? n : 64u << 20, (off_t)at);
        if (done > 0) bytes += done, n -= (size_t)done, at += done;
        else if (done == 0) error = ENOSPC;
        else if (errno != EINTR) error = errno;
    }
    if (error == EFBIG && !sigismember(&before, SIGXFSZ)) sigtimedwait(&xfsz, NULL, &(struct timespec){ 0, 0 });
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}
