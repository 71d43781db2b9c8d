/* doctor/judge.c - findings about each host of a job: what was seen, and what to do.
 *
 * Binding is judged by counting: ranks whose processors all lie within a set that has fewer processors than such ranks must
 * share, whatever the launcher meant. */
#include "trainer/doctor/doctor.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static double gib(int64_t bytes) { return (double)bytes / (1 << 30); }

bool en_doctor_same_host(const en_doctor_facts *a, const en_doctor_facts *b) { return strcmp(a->host, b->host) == 0; }

bool en_doctor_leads(const en_doctor_facts *all, int rank)
{
    for (int r = 0; r < rank; r++)
        if (en_doctor_same_host(&all[r], &all[rank])) return false;
    return true;
}

const char *en_doctor_mask(const uint64_t *mask, char *out, size_t size)
{
    size_t n = 0;
    out[0] = '\0';
    for (int i = 0; i < EN_DOCTOR_CPUS && n + 16 < size; i++) {
        if (!(mask[i / 64] >> (i % 64) & 1)) continue;
        int end = i;
        while (end + 1 < EN_DOCTOR_CPUS && mask[(end + 1) / 64] >> ((end + 1) % 64) & 1) end++;
        n += (size_t)snprintf(out + n, size - n, end > i ? "%s%d-%d" : "%s%d", n ? "," : "", i, end);
        i = end;
    }
    return out;
}

static bool within(const uint64_t *a, const uint64_t *b)
{
    for (int i = 0; i < EN_DOCTOR_CPUS / 64; i++)
        if (a[i] & ~b[i]) return false;
    return true;
}

/* ---- binding -------------------------------------------------------------------------------------------------------------- */

void en_doctor_judge_binding(const en_doctor_job *j, en_findings *w)
{
    const en_doctor_facts *all = j->all;
    const int world_size = j->ranks;
    for (int r = 0; r < world_size; r++) {
        bool first = true;                     /* of the ranks of this host with this very mask */
        for (int q = 0; q < r && first; q++)
            first = !en_doctor_same_host(&all[q], &all[r]) || memcmp(all[q].allowed, all[r].allowed, sizeof all[r].allowed) != 0;
        if (!first || all[r].allowed_processors < 1) continue;
        char ranks[160] = "", mask[160];
        size_t used = 0;
        int confined = 0, local = -1;          /* counted as on the host, so that like hosts have one line */
        for (int q = 0; q < world_size; q++) {
            local += en_doctor_same_host(&all[q], &all[r]);
            if (!en_doctor_same_host(&all[q], &all[r]) || !within(all[q].allowed, all[r].allowed)) continue;
            confined++;
            if (used + 24 < sizeof ranks) used += (size_t)snprintf(ranks + used, sizeof ranks - used, "%s%d", used ? ", " : "", local);
        }
        en_doctor_mask(all[r].allowed, mask, sizeof mask);
        if (confined <= all[r].allowed_processors) continue;
        const bool whole = all[r].allowed_processors >= all[r].processors;
        en_find_on(w, r, false, "local ranks %s share %d processor%s (%s) and wait for each other; %s", ranks, all[r].allowed_processors,
             all[r].allowed_processors > 1 ? "s" : "", mask, whole ? "start fewer ranks on this host" :
             "bind them apart (mpirun --bind-to none, or --map-by slot:PE=N for N processors a rank) or start fewer");
    }
    for (int r = 0; r < world_size; r++) {     /* what no rank of the host may use */
        if (!en_doctor_leads(all, r)) continue;
        uint64_t used[EN_DOCTOR_CPUS / 64] = { 0 };
        int processors = 0, ranks = 0;
        for (int q = 0; q < world_size; q++) {
            if (!en_doctor_same_host(&all[q], &all[r])) continue;
            ranks++;
            for (int i = 0; i < EN_DOCTOR_CPUS / 64; i++) used[i] |= all[q].allowed[i];
        }
        for (int i = 0; i < EN_DOCTOR_CPUS; i++) processors += used[i / 64] >> (i % 64) & 1;
        if (world_size > 1 && processors > 0 && processors < all[r].processors)
            en_find_on(w, r, false, "the %d rank%s may use %d of %d processors; mpirun --bind-to none, or --map-by slot:PE=%d, gives them the rest "
                 "(unless the batch system keeps it for others)", ranks, ranks > 1 ? "s" : "", processors, all[r].processors,
                 all[r].processors / ranks > 0 ? all[r].processors / ranks : 1);
    }
}

/* ---- the machine ---------------------------------------------------------------------------------------------------------- */

void en_doctor_judge_host(const en_doctor_job *j, int rank, en_findings *w)
{
    const en_doctor_facts *f = &j->all[rank];
    if (!*f->isa)
        en_find_on(w, rank, true, "EN_ISA asks for an instruction set that this machine lacks; unset it or choose from: %s", f->isas);
    else if (strcmp(f->isas, "generic") == 0)
        en_find_on(w, rank, false, "the processor has none of the vector instructions that the passes were built for; they run, but slowly");
    if (f->cpu_quota > 0 && f->cpu_quota < f->allowed_processors)
        en_find_on(w, rank, false, "the control group grants the time of %.3g processors although %d are visible; use --threads %d, or raise the "
                   "limit (docker --cpus, Slurm --cpus-per-task)", f->cpu_quota, f->allowed_processors, f->cpu_quota < 1 ? 1 : (int)f->cpu_quota);
    const int64_t memory = f->memory_limit_bytes > 0 && f->memory_limit_bytes < f->memory_bytes ? f->memory_limit_bytes : f->memory_bytes;
    if (memory > 0 && memory < (int64_t)2 << 30)
        en_find_on(w, rank, false, "%.2g GiB of memory; efficientnet_b0 at 224 pixels needs about 2 GiB a rank: use a smaller --micro-batch or "
                   "--image-size", gib(memory));
    if (f->shm_free_bytes >= 0 && f->shm_free_bytes < (int64_t)256 << 20)
        en_find_on(w, rank, false, "/dev/shm has %.0f MiB; MPI moves data between ranks of a host through it: docker run --shm-size=1g",
             (double)f->shm_free_bytes / (1 << 20));
    if (f->open_files > 0 && f->open_files < 1024)
        en_find_on(w, rank, false, "at most %" PRId64 " open files; ulimit -n 4096", f->open_files);
    if (strcmp(f->thp, "never") == 0)
        en_find_on(w, rank, false, "transparent huge pages are off; as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled");
    if (!f->has_launcher && !f->launched)
        en_find_on(w, rank, false, "no mpirun, mpiexec or srun in PATH; for more than one rank install one (Debian, Ubuntu: apt install "
                   "openmpi-bin)");
    if (f->root_needs_consent && !f->launched)
        en_find_on(w, rank, false, "you are root, which Open MPI's mpirun refuses; use another account, or set OMPI_ALLOW_RUN_AS_ROOT=1 and "
             "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1");
    if (f->infiniband > 0 && f->locked_bytes >= 0 && f->locked_bytes < (int64_t)1 << 30)
        en_find_on(w, rank, false, "has InfiniBand, and may lock %" PRId64 " KiB of memory, too little for it; ulimit -l unlimited (also for the "
                   "batch system's daemon: /etc/security/limits.conf)", f->locked_bytes / 1024);
    if (strncmp(f->governor, "powersave", 9) == 0 && !strstr(f->governor, "pstate"))      /* of a driver that scales by itself it means little */
        en_find_on(w, rank, false, "the processors' governor is powersave; as root: cpupower frequency-set -g performance");
    if (f->gpus_there > 0 && !*f->gpus)
        en_find_on(w, rank, false, "the driver lists %d GPU%s, but a run would not use %s: %s", f->gpus_there, f->gpus_there > 1 ? "s" : "",
                f->gpus_there > 1 ? "them" : "it", f->no_gpu);
}
