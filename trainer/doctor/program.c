/* doctor/program.c - which program this is, byte for byte, with which libraries, and which GPUs it finds. */
#define _GNU_SOURCE
#include "trainer/doctor/doctor.h"

#include "trainer/crc32c.h"

#include "revision.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <hdf5.h>
#include <jpeglib.h>
#include <mpi.h>
#include <omp.h>
#include <png.h>

#define STRING_(x) #x
#define STRING(x)  STRING_(x)

/* ---- files -------------------------------------------------------------------------------------------------------------- */

static void checksum(const char *path, int64_t *bytes, uint32_t *crc)
{
    static char part[1 << 16];
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    *bytes = 0;
    *crc = 0;
    for (ssize_t n; (n = read(fd, part, sizeof part)) > 0; *bytes += n) *crc = en_crc32c(*crc, part, (size_t)n);
    close(fd);
}

/* Where kernels/backend.c looks for the plugin */
static void checksum_plugin(en_doctor_facts *f)
{
    char self[3900] = "", path[4096];
    const char *named = getenv("EFFNET_CUDA_PLUGIN");
    if (named) {
        checksum(named, &f->plugin_bytes, &f->plugin_crc);
        return;
    }
    const ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    char *slash = n > 0 ? strrchr(self, '/') : NULL;
    if (!slash) return;
    *slash = 0;
    snprintf(path, sizeof path, "%s/libeffnet_cuda.so", self);
    if (access(path, F_OK) != 0) snprintf(path, sizeof path, "%s/../lib/effnet/libeffnet_cuda.so", self);
    checksum(path, &f->plugin_bytes, &f->plugin_crc);
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

/* The instruction sets that this machine runs, and the one that a run would take; "" when EN_ISA asks for another. */
static void probe_isa(en_doctor_facts *f)
{
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
        en_error_clear();
    }
}

/* ---- environment ------------------------------------------------------------------------------------------------------------ */

/* Which the launcher gives each rank is not of interest: those are not among these. */
static bool matters(const char *setting)
{
    static const char *const begins[] = { "OMP_", "EN_", "EFFNET_", "NCCL_", "UCX_", "HDF5_", "GLIBC_TUNABLES=", "MALLOC_", "LD_PRELOAD=", "CUBLAS" };
    for (size_t i = 0; i < sizeof begins / sizeof *begins; i++)
        if (strncmp(setting, begins[i], strlen(begins[i])) == 0) return strncmp(setting, "EFFNET_STARTED_AT=", 18) != 0;
    return false;
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static void probe_environment(en_doctor_facts *f)
{
    char *found[64];
    int n = 0;
    size_t used = 0;
    for (char **e = environ; *e && n < 64; e++)
        if (matters(*e)) found[n++] = *e;
    if (n) qsort(found, (size_t)n, sizeof *found, by_name);
    for (int i = 0; i < n && used < sizeof f->environment; i++)
        used += (size_t)snprintf(f->environment + used, sizeof f->environment - used, "%s%s", i ? " " : "", found[i]);
}

/* ---- GPUs -------------------------------------------------------------------------------------------------------------------- */

static void probe_gpus(en_doctor_facts *f)
{
    const char *missing = en_cuda_missing();
    snprintf(f->no_gpu, sizeof f->no_gpu, "%s", missing ? missing : "");
    if (!missing) en_cuda_devices(f->gpus, sizeof f->gpus);
    FILE *version = fopen("/sys/module/nvidia/version", "r");
    if (version && fgets(f->driver, sizeof f->driver, version)) f->driver[strcspn(f->driver, "\n")] = 0;
    if (version) fclose(version);
    DIR *d = opendir("/proc/driver/nvidia/gpus");
    for (const struct dirent *e; d && (e = readdir(d));) f->gpus_there += e->d_name[0] != '.';
    if (d) closedir(d);
}

void en_doctor_program(en_doctor_facts *f)
{
    snprintf(f->revision, sizeof f->revision, "%s%s%s%s", EN_VERSION, *EN_REVISION ? " (" : "", EN_REVISION, *EN_REVISION ? ")" : "");
    checksum("/proc/self/exe", &f->program_bytes, &f->program_crc);
    checksum_plugin(f);
    en_library_versions(f->mpi, f->hdf5);
#ifdef LIBJPEG_TURBO_VERSION
    snprintf(f->jpeg, sizeof f->jpeg, "libjpeg-turbo %s", STRING(LIBJPEG_TURBO_VERSION));
#else
    snprintf(f->jpeg, sizeof f->jpeg, "libjpeg %d", JPEG_LIB_VERSION);
#endif
    snprintf(f->png, sizeof f->png, "libpng %s", png_get_libpng_ver(NULL));
    f->openmp = _OPENMP;
    f->openmp_threads = omp_get_max_threads();
    probe_isa(f);
    probe_environment(f);
    probe_gpus(f);
    f->has_launcher = in_path("mpirun") || in_path("mpiexec") || in_path("srun");
    f->root_needs_consent = geteuid() == 0 && strncmp(f->mpi, "Open MPI", 8) == 0 && !getenv("OMPI_ALLOW_RUN_AS_ROOT");
}
