/* host_memory.c - how much memory the host still gives. */
#include "kernels/host.h"

#include <stdio.h>
#include <string.h>

static int64_t number_in(const char *path)
{
    FILE *f = fopen(path, "r");
    long long v = -1;
    if (f && fscanf(f, "%lld", &v) != 1) v = -1;
    if (f) fclose(f);
    return v;
}

/* The number behind `name` on a line of its own. */
static int64_t number_of(const char *path, const char *name)
{
    FILE *f = fopen(path, "r");
    char line[256];
    long long v = -1;
    const size_t n = strlen(name);
    while (f && v < 0 && fgets(line, sizeof line, f))
        if (strncmp(line, name, n) != 0 || sscanf(line + n, "%lld", &v) != 1) v = -1;
    if (f) fclose(f);
    return v;
}

/* What is free on the host, and what is left of the memory limit of our control group (version 2), whichever is less.  What
 * the group holds as a cache of files that nobody uses counts as free: the kernel gives it up before it refuses. */
int64_t en_memory_available(void)
{
    const int64_t kib = number_of("/proc/meminfo", "MemAvailable:");
    int64_t available = kib > 0 ? kib * 1024 : 0;
    char group[512] = "", path[1024], line[256];
    FILE *f = fopen("/proc/self/cgroup", "r");
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, "0::", 3) == 0) snprintf(group, sizeof group, "%s", line + 3), group[strcspn(group, "\n")] = 0;
    if (f) fclose(f);
    snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.max", group);
    const int64_t limit = number_in(path);
    snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.current", group);
    const int64_t used = number_in(path);
    snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.stat", group);
    const int64_t cached = number_of(path, "inactive_file ");
    if (limit <= 0 || used < 0) return available;
    const int64_t left = limit - used + (cached > 0 ? cached : 0);
    return available == 0 || left < available ? left : available;
}
