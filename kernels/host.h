/* host.h - the machine that the program runs on. */
#ifndef EN_HOST_H
#define EN_HOST_H

#include <stdint.h>

int64_t en_memory_available(void);       /* bytes this process may still take (MemAvailable, cgroup), 0: unknown */

#endif
