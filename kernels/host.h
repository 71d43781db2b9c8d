/* host.h - the machine that the program runs on. */
#ifndef EN_HOST_H
#define EN_HOST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

int64_t en_memory_available(void);       /* bytes this process may still take (MemAvailable, cgroup), 0: unknown */

/* Can the builds of that name (CMake's en_isa, en_data_isa) run here?  By feature bits, never by a processor's name: virtual machines
 * mask the name and keep the bits. */
bool en_runs_avx512(void);
bool en_runs_avx2(void);
bool en_runs_sse4(void);

/* n bytes at `at` of fd, until all are written; 0 or an errno.  A process over its file-size limit is sent SIGXFSZ, which would end it:
 * held back here, so that it is one more errno (EFBIG). */
int en_write_at(int fd, const void *bytes, size_t n, int64_t at);

#endif
