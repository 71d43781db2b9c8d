/* doctor_probe.c - reads the machine: /proc, /sys, cgroups, limits, libraries.  Nothing here fails; it finds out or not. */
#define _GNU_SOURCE                            /* sched_getaffinity, CPU_ISSET */
#include "trainer/doctor.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <hdf5.h>
#include <jpeglib.h>
#include <mpi.h>
#include <omp.h>
#include <png.h>

#define STRING_(x) #x
#define STRING(x)  STRING_(x)

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

/* ---- memory, limits, the working folder ---------------------------------------------------------------------------------- */

static void probe_limits(en_doctor_facts *f)
{
    struct statvfs v;
    struct rlimit r;
    char text[64];
    f->memory_bytes = kib_of("MemTotal");
    f->memory_available_bytes = kib_of("MemAvailable");
    if (statvfs("/dev/shm", &v) == 0) f->shm_free_bytes = (int64_t)v.f_bavail * (int64_t)v.f_frsize;
    if (getrlimit(RLIMIT_NOFILE, &r) == 0) {
        f->open_files = r.rlim_cur == RLIM_INFINITY ? INT64_MAX : (int64_t)r.rlim_cur;
        f->open_files_hard = r.rlim_max == RLIM_INFINITY ? INT64_MAX : (int64_t)r.rlim_max;
    }
    if (first_line("/sys/kernel/mm/transparent_hugepage/enabled", text, sizeof text)) {   /* always [madvise] never */
        const char *open = strchr(text, '[');
        if (open) snprintf(f->thp, sizeof f->thp, "%.*s", (int)strcspn(open + 1, "]"), open + 1);
    }
}

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

static void probe_folder(bool try_it, en_doctor_facts *f)
{
    struct statvfs v;
    struct statfs s;
    char name[160];
    if (!getcwd(f->folder, sizeof f->folder)) snprintf(f->folder, sizeof f->folder, ".");
    if (statvfs(".", &v) == 0) f->disk_free_bytes = (int64_t)v.f_bavail * (int64_t)v.f_frsize;
    if (statfs(".", &s) == 0) snprintf(f->filesystem, sizeof f->filesystem, "%s", filesystem_name((long)s.f_type));
    if (!try_it) return;
    snprintf(name, sizeof name, ".effnet-doctor-%s-%ld", f->host, (long)getpid());
    const int fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    f->writable = fd >= 0 && write(fd, "effnet", 6) == 6;
    if (fd < 0) return;
    struct flock whole = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
    f->flock_works = flock(fd, LOCK_EX | LOCK_NB) == 0;
    if (f->flock_works) flock(fd, LOCK_UN);
    f->fcntl_works = fcntl(fd, F_SETLK, &whole) == 0;
    close(fd);
    unlink(name);
}

/* ---- libraries ------------------------------------------------------------------------------------------------------------ */

void en_library_versions(char mpi[EN_DOCTOR_MPI], char hdf5[EN_DOCTOR_HDF5])
{
    char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int n = 0;
    unsigned major, minor, release;
    mpi[0] = hdf5[0] = 0;
    if (MPI_Get_library_version(text, &n) == MPI_SUCCESS) snprintf(mpi, EN_DOCTOR_MPI, "%.*s", (int)strcspn(text, ",\n"), text);
    if (H5get_libversion(&major, &minor, &release) >= 0) snprintf(hdf5, EN_DOCTOR_HDF5, "%u.%u.%u", major, minor, release);
}

static void probe_libraries(en_doctor_facts *f)
{
    en_library_versions(f->mpi, f->hdf5);
#ifdef LIBJPEG_TURBO_VERSION
    snprintf(f->jpeg, sizeof f->jpeg, "libjpeg-turbo %s", STRING(LIBJPEG_TURBO_VERSION));
#else
    snprintf(f->jpeg, sizeof f->jpeg, "libjpeg %d", JPEG_LIB_VERSION);
#endif
    snprintf(f->png, sizeof f->png, "libpng %s", png_get_libpng_ver(NULL));
    f->openmp = _OPENMP;
    f->openmp_threads = omp_get_max_threads();

    const char *missing = en_cuda_missing();
    snprintf(f->no_gpu, sizeof f->no_gpu, "%s", missing ? missing : "");
    if (!missing) en_cuda_devices(f->gpus, sizeof f->gpus);

    size_t used = 0;
    bool here;
    const char *isa;
    for (int i = 0; (isa = en_backend_isa(i, &here)); i++)
        if (here && used < sizeof f->isas) used += (size_t)snprintf(f->isas + used, sizeof f->isas - used, "%s%s", used ? " " : "", isa);
    en_backend *be;
    if (en_backend_open("cpu", &(en_backend_config){ .threads = 1 }, &be) == EN_OK) {
        snprintf(f->isa, sizeof f->isa, "%s", be->isa);
        en_backend_close(be);
    } else {
        en_error_clear();                      /* EN_ISA asks for what this machine lacks: isa stays "" */
    }
}

static bool in_path(const char *program)
{
    const char *path = getenv("PATH");
    char full[4096];
    while (path && *path) {
        const size_t n = strcspn(path, ":");
        snprintf(full, sizeof full, "%.*s/%s", (int)n, path, program);
        if (access(full, X_OK) == 0) return true;
        path += n + (path[n] == ':');
    }
    return false;
}

void en_doctor_probe(const en_comm *c, bool try_folder, en_doctor_facts *f)
{
    memset(f, 0, sizeof *f);                   /* padding too: ranks send and compare bytes */
    f->processors = f->allowed_processors = f->allowed_cores = EN_UNKNOWN;
    f->cpu_quota = EN_UNKNOWN;
    f->memory_bytes = f->memory_available_bytes = f->memory_limit_bytes = f->shm_free_bytes = f->disk_free_bytes = EN_UNKNOWN;
    f->open_files = f->open_files_hard = EN_UNKNOWN;
    f->writable = f->flock_works = f->fcntl_works = EN_UNKNOWN;
    snprintf(f->host, sizeof f->host, "%s", c->host);
    probe_processors(f);
    probe_groups(f);
    probe_limits(f);
    probe_folder(try_folder, f);
    probe_libraries(f);
    f->launched = strcmp(c->name, "mpi") == 0;
    f->has_launcher = in_path("mpirun") || in_path("mpiexec") || in_path("srun");
    f->root_needs_consent = geteuid() == 0 && strncmp(f->mpi, "Open MPI", 8) == 0 && !getenv("OMPI_ALLOW_RUN_AS_ROOT");
}
