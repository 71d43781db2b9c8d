/* doctor/machine.c - reads the machine: /proc, /sys, control groups, limits.  Nothing here fails; it finds out or not. */
#define _GNU_SOURCE                            /* sched_getaffinity, CPU_ISSET */
#include "trainer/doctor/doctor.h"

#include <dirent.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

/* The first line of a file without its newline; false when it cannot be read. */
static bool first_line(const char *path, char *out, size_t size)
{
    FILE *f = fopen(path, "r");
    const bool ok = f && fgets(out, (int)size, f);
    if (f) fclose(f);
    if (ok) out[strcspn(out, "\n")] = '\0';
    return ok;
}

/* "Name:   value" of a file such as /proc/meminfo */
static bool field_of(const char *path, const char *name, char *out, size_t size)
{
    char line[512];
    FILE *f = fopen(path, "r");
    bool found = false;
    const size_t n = strlen(name);
    while (f && !found && fgets(line, sizeof line, f)) {
        if (strncmp(line, name, n) != 0) continue;
        const char *value = line + n + strspn(line + n, " \t");
        if (*value != ':') continue;
        value += 1 + strspn(value + 1, " \t");
        snprintf(out, size, "%.*s", (int)strcspn(value, "\n"), value);
        found = true;
    }
    if (f) fclose(f);
    return found;
}

static int64_t kib_of(const char *name)
{
    char text[64];
    return field_of("/proc/meminfo", name, text, sizeof text) ? strtoll(text, NULL, 10) * 1024 : EN_UNKNOWN;
}

static int int_at(const char *path)
{
    char text[64];
    return first_line(path, text, sizeof text) ? atoi(text) : EN_UNKNOWN;
}

/* ---- processors ------------------------------------------------------------------------------------------------------ */

static void probe_processors(en_doctor_facts *f)
{
    char path[128];
    struct utsname machine;
    if (!field_of("/proc/cpuinfo", "model name", f->cpu, sizeof f->cpu) && uname(&machine) == 0)
        snprintf(f->cpu, sizeof f->cpu, "%s", machine.machine);
    f->processors = (int)sysconf(_SC_NPROCESSORS_ONLN);
    char governor[24] = "", driver[24] = "";
    if (first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", governor, sizeof governor)
        && first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_driver", driver, sizeof driver))
        snprintf(f->governor, sizeof f->governor, "%s (%s)", governor, driver);

    static int core[EN_DOCTOR_CPUS];           /* package and core in one number, of the cores met so far */
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return;
    f->allowed_processors = f->allowed_cores = 0;
    for (int i = 0; i < EN_DOCTOR_CPUS && i < CPU_SETSIZE; i++) {
        if (!CPU_ISSET(i, &set)) continue;
        f->allowed[i / 64] |= (uint64_t)1 << (i % 64);
        f->allowed_processors++;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/physical_package_id", i);
        const int package = int_at(path);
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/core_id", i);
        const int id = int_at(path), key = id < 0 ? -1 - i : package * 100000 + id;
        int k = 0;
        while (k < f->allowed_cores && core[k] != key) k++;
        if (k == f->allowed_cores) core[f->allowed_cores++] = key;
        for (int node = 0; node < 64; node++) {
            snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/node%d", i, node);
            if (access(path, F_OK) == 0) f->numa |= (uint64_t)1 << node;
        }
    }
}

/* ---- control groups ---------------------------------------------------------------------------------------------------- */

/* This process's group for a version 1 controller, or in the unified hierarchy (controller ""). */
static bool group_of(const char *controller, char *out, size_t size)
{
    char line[1024];
    FILE *f = fopen("/proc/self/cgroup", "r");
    bool found = false;
    while (f && !found && fgets(line, sizeof line, f)) {
        char *list = strchr(line, ':'), *path = list ? strchr(list + 1, ':') : NULL;
        if (!path) continue;
        *path++ = '\0';
        path[strcspn(path, "\n")] = '\0';
        char *save = NULL;
        if (!*controller && !list[1]) found = true;
        for (char *name = strtok_r(list + 1, ",", &save); name && !found && *controller; name = strtok_r(NULL, ",", &save))
            found = strcmp(name, controller) == 0;
        if (found) snprintf(out, size, "%s", path);
    }
    if (f) fclose(f);
    return found;
}

/* Calls `look` with every folder from the group up to the mount: a limit above binds as well. */
static void each_group(const char *mount, const char *group, void (*look)(const char *folder, en_doctor_facts *f), en_doctor_facts *f)
{
    char folder[1400];
    const size_t root = strlen(mount);
    snprintf(folder, sizeof folder, "%s%s", mount, strcmp(group, "/") == 0 ? "" : group);
    for (;;) {
        look(folder, f);
        char *slash = strrchr(folder, '/');
        if (strlen(folder) <= root || !slash) return;
        *slash = '\0';
    }
}

static void lower(int64_t *limit, int64_t value)
{
    if (value > 0 && value < (int64_t)1 << 60 && (*limit < 0 || value < *limit)) *limit = value;
}

static void look_v2(const char *folder, en_doctor_facts *f)
{
    char path[1500], text[64];
    snprintf(path, sizeof path, "%s/memory.max", folder);
    if (first_line(path, text, sizeof text)) lower(&f->memory_limit_bytes, strtoll(text, NULL, 10));   /* "max" is 0 */
    snprintf(path, sizeof path, "%s/cpu.max", folder);
    double quota, period;
    if (first_line(path, text, sizeof text) && sscanf(text, "%lf %lf", &quota, &period) == 2 && period > 0
        && (f->cpu_quota < 0 || quota / period < f->cpu_quota))
        f->cpu_quota = quota / period;
}

static void look_v1_memory(const char *folder, en_doctor_facts *f)
{
    char path[1500], text[64];
    snprintf(path, sizeof path, "%s/memory.limit_in_bytes", folder);
    if (first_line(path, text, sizeof text)) lower(&f->memory_limit_bytes, strtoll(text, NULL, 10));
}

static void look_v1_cpu(const char *folder, en_doctor_facts *f)
{
    char path[1500];
    snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", folder);
    const int quota = int_at(path);
    snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder);
    const int period = int_at(path);
    if (quota > 0 && period > 0 && (f->cpu_quota < 0 || (double)quota / period < f->cpu_quota)) f->cpu_quota = (double)quota / period;
}

static void probe_groups(en_doctor_facts *f)
{
    char group[1024];
    if (group_of("", group, sizeof group)) each_group("/sys/fs/cgroup", group, look_v2, f);
    if (group_of("memory", group, sizeof group)) each_group("/sys/fs/cgroup/memory", group, look_v1_memory, f);
    if (group_of("cpu", group, sizeof group)) each_group("/sys/fs/cgroup/cpu", group, look_v1_cpu, f);
}

/* ---- memory, limits, networks ------------------------------------------------------------------------------------------ */

static int64_t limit(rlim_t v) { return v == RLIM_INFINITY ? INT64_MAX : (int64_t)v; }

static void probe_limits(en_doctor_facts *f)
{
    struct statvfs v;
    struct rlimit r;
    char text[64];
    f->memory_bytes = kib_of("MemTotal");
    f->memory_available_bytes = kib_of("MemAvailable");
    if (statvfs("/dev/shm", &v) == 0) f->shm_free_bytes = (int64_t)v.f_bavail * (int64_t)v.f_frsize;
    if (getrlimit(RLIMIT_NOFILE, &r) == 0) {
        f->open_files = limit(r.rlim_cur);
        f->open_files_hard = limit(r.rlim_max);
    }
    if (getrlimit(RLIMIT_MEMLOCK, &r) == 0) f->locked_bytes = limit(r.rlim_cur);
    if (first_line("/sys/kernel/mm/transparent_hugepage/enabled", text, sizeof text)) {   /* always [madvise] never */
        const char *open = strchr(text, '[');
        if (open) snprintf(f->thp, sizeof f->thp, "%.*s", (int)strcspn(open + 1, "]"), open + 1);
    }
}

/* "eth0 10 Gbit/s, mlx5_0 400 Gb/sec (4X NDR)" */
static void probe_network(en_doctor_facts *f)
{
    struct ifaddrs *list = NULL;
    char path[600], text[64];
    size_t n = 0;
    if (getifaddrs(&list) != 0) list = NULL;
    for (const struct ifaddrs *a = list; a && n < sizeof f->network; a = a->ifa_next) {
        bool met = false;                      /* an interface comes once for each of its addresses */
        for (const struct ifaddrs *b = list; b != a && !met; b = b->ifa_next) met = strcmp(a->ifa_name, b->ifa_name) == 0;
        if (met || !(a->ifa_flags & IFF_UP) || (a->ifa_flags & IFF_LOOPBACK)) continue;
        snprintf(path, sizeof path, "/sys/class/net/%s/speed", a->ifa_name);
        const int speed = int_at(path);        /* Mbit/s; virtual ones say nothing, or -1 */
        n += (size_t)snprintf(f->network + n, sizeof f->network - n, speed > 0 ? "%s%s %g Gbit/s" : "%s%s", n ? ", " : "", a->ifa_name, speed / 1e3);
    }
    if (list) freeifaddrs(list);
    DIR *d = opendir("/sys/class/infiniband");
    for (const struct dirent *e; d && (e = readdir(d));) {
        snprintf(path, sizeof path, "/sys/class/infiniband/%s/ports/1/rate", e->d_name);
        if (e->d_name[0] == '.' || !first_line(path, text, sizeof text)) continue;
        f->infiniband++;
        if (n < sizeof f->network) n += (size_t)snprintf(f->network + n, sizeof f->network - n, "%s%s %s", n ? ", " : "", e->d_name, text);
    }
    if (d) closedir(d);
}

static void probe_system(en_doctor_facts *f)
{
    char line[256];
    struct utsname u;
    FILE *file = fopen("/etc/os-release", "r");
    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, "PRETTY_NAME=", 12) == 0) {
            const char *name = line + 12 + (line[12] == '"');
            snprintf(f->os, sizeof f->os, "%.*s", (int)strcspn(name, "\"\n"), name);
        }
    if (file) fclose(file);
    if (uname(&u) == 0) snprintf(f->kernel, sizeof f->kernel, "%s %s", u.release, u.machine);
}

void en_doctor_machine(en_doctor_facts *f)
{
    probe_processors(f);
    probe_groups(f);
    probe_limits(f);
    probe_network(f);
    probe_system(f);
}
