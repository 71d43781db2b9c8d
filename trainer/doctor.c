/* doctor.c - what this machine, or each host of a job, offers, and what stands in a run's way.
 *
 * Every rank looks around (doctor_probe.c), rank 0 gathers, prints one section a host and judges.  A finding is one line:
 * what was seen, and what to do.  Binding is judged by counting: ranks whose processors all lie within a set that has
 * fewer processors than such ranks must share, whatever the launcher meant. */
#include "trainer/commands.h"
#include "trainer/doctor.h"
#include "trainer/json.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_FINDINGS = 64 };

typedef struct { char text[MAX_FINDINGS][512]; int n, left_out; } findings;

__attribute__((format(printf, 2, 3)))
static void find(findings *w, const char *fmt, ...)
{
    if (w->n == MAX_FINDINGS) {
        w->left_out++;
        return;
    }
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(w->text[w->n++], sizeof w->text[0], fmt, ap);
    va_end(ap);
}

static double gib(int64_t bytes) { return (double)bytes / (1 << 30); }

static bool same_host(const en_doctor_facts *a, const en_doctor_facts *b) { return strcmp(a->host, b->host) == 0; }

/* Is this rank the first of its host? */
static bool leads(const en_doctor_facts *all, int rank)
{
    for (int r = 0; r < rank; r++)
        if (same_host(&all[r], &all[rank])) return false;
    return true;
}

/* Processors of a mask as "0-3,8", into out */
static const char *mask_text(const uint64_t *mask, char *out, size_t size)
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

/* ---- judging ------------------------------------------------------------------------------------------------------------ */

static void judge_binding(const en_doctor_facts *all, int world_size, findings *w)
{
    for (int r = 0; r < world_size; r++) {
        bool first = true;                     /* of the ranks of this host with this very mask */
        for (int q = 0; q < r && first; q++)
            first = !same_host(&all[q], &all[r]) || memcmp(all[q].allowed, all[r].allowed, sizeof all[r].allowed) != 0;
        if (!first || all[r].allowed_processors < 1) continue;
        char ranks[160] = "", mask[160];
        size_t used = 0;
        int confined = 0;
        for (int q = 0; q < world_size; q++) {
            if (!same_host(&all[q], &all[r]) || !within(all[q].allowed, all[r].allowed)) continue;
            confined++;
            if (used + 24 < sizeof ranks) used += (size_t)snprintf(ranks + used, sizeof ranks - used, "%s%d", used ? ", " : "", q);
        }
        mask_text(all[r].allowed, mask, sizeof mask);
        if (confined <= all[r].allowed_processors) continue;
        const bool whole = all[r].allowed_processors >= all[r].processors;
        find(w, "%s: ranks %s share %d processor%s (%s) and wait for each other; %s", all[r].host, ranks, all[r].allowed_processors,
             all[r].allowed_processors > 1 ? "s" : "", mask, whole ? "start fewer ranks on this host" :
             "bind them apart (mpirun --bind-to none, or --map-by slot:PE=N for N processors a rank) or start fewer");
    }
    for (int r = 0; r < world_size; r++) {     /* what no rank of the host may use */
        if (!leads(all, r)) continue;
        uint64_t used[EN_DOCTOR_CPUS / 64] = { 0 };
        int processors = 0, ranks = 0;
        for (int q = 0; q < world_size; q++) {
            if (!same_host(&all[q], &all[r])) continue;
            ranks++;
            for (int i = 0; i < EN_DOCTOR_CPUS / 64; i++) used[i] |= all[q].allowed[i];
        }
        for (int i = 0; i < EN_DOCTOR_CPUS; i++) processors += used[i / 64] >> (i % 64) & 1;
        if (world_size > 1 && processors > 0 && processors < all[r].processors)
            find(w, "%s: the %d rank%s may use %d of %d processors; mpirun --bind-to none, or --map-by slot:PE=%d, gives them the rest "
                 "(unless the batch system keeps it for others)", all[r].host, ranks, ranks > 1 ? "s" : "", processors, all[r].processors,
                 all[r].processors / ranks > 0 ? all[r].processors / ranks : 1);
    }
}

static void judge_host(const en_doctor_facts *f, findings *w)
{
    if (!*f->isa)
        find(w, "%s: EN_ISA asks for an instruction set that this machine lacks; unset it or choose from: %s", f->host, f->isas);
    else if (strcmp(f->isas, "generic") == 0)
        find(w, "%s: the processor has none of the vector instructions that the passes were built for; they run, but slowly", f->host);
    if (f->cpu_quota > 0 && f->cpu_quota < f->allowed_processors)
        find(w, "%s: the control group grants the time of %.3g processors although %d are visible; use --threads %d, or raise the limit "
             "(docker --cpus, Slurm --cpus-per-task)", f->host, f->cpu_quota, f->allowed_processors, f->cpu_quota < 1 ? 1 : (int)f->cpu_quota);
    const int64_t memory = f->memory_limit_bytes > 0 && f->memory_limit_bytes < f->memory_bytes ? f->memory_limit_bytes : f->memory_bytes;
    if (memory > 0 && memory < (int64_t)2 << 30)
        find(w, "%s: %.2g GiB of memory; efficientnet_b0 at 224 pixels needs about 2 GiB a rank: use a smaller --micro-batch or --image-size",
             f->host, gib(memory));
    if (f->shm_free_bytes >= 0 && f->shm_free_bytes < (int64_t)256 << 20)
        find(w, "%s: /dev/shm has %.0f MiB; MPI moves data between ranks of a host through it: docker run --shm-size=1g", f->host,
             (double)f->shm_free_bytes / (1 << 20));
    if (f->open_files > 0 && f->open_files < 1024)
        find(w, "%s: at most %" PRId64 " open files; ulimit -n 4096", f->host, f->open_files);
    if (f->writable == 0)
        find(w, "%s: %s cannot be written; choose another folder for --run", f->host, f->folder);
    if (f->flock_works == 0 || f->fcntl_works == 0)
        find(w, "%s: %s (%s) refuses file locks (%s), and HDF5 with them; set HDF5_USE_FILE_LOCKING=FALSE, or mount it with locks (lustre: "
             "-o flock)", f->host, f->folder, *f->filesystem ? f->filesystem : "unknown file system",
             f->flock_works == 0 ? "flock" : "fcntl");
    if (f->disk_free_bytes >= 0 && f->disk_free_bytes < (int64_t)1 << 30)
        find(w, "%s: %.2g GiB free in %s; four checkpoints of efficientnet_b0 take 0.4 GiB, of b7 4.3 GiB", f->host, gib(f->disk_free_bytes),
             f->folder);
    if (strcmp(f->thp, "never") == 0)
        find(w, "%s: transparent huge pages are off; as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled", f->host);
    if (!f->has_launcher && !f->launched)
        find(w, "%s: no mpirun, mpiexec or srun in PATH; for more than one rank install one (Debian, Ubuntu: apt install openmpi-bin)", f->host);
    if (f->root_needs_consent && !f->launched)
        find(w, "%s: you are root, which Open MPI's mpirun refuses; use another account, or set OMPI_ALLOW_RUN_AS_ROOT=1 and "
             "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1", f->host);
}

/* Hosts of one job should be alike: results depend on the instruction set, files on HDF5. */
static void judge_likeness(const en_doctor_facts *all, int world_size, findings *w)
{
    static const struct { const char *what; size_t at; } alike[] = {
        { "instruction sets (the bits of a run and its speed follow the rank; set EN_ISA to one that all have)", offsetof(en_doctor_facts, isa) },
        { "MPI libraries", offsetof(en_doctor_facts, mpi) }, { "HDF5 libraries", offsetof(en_doctor_facts, hdf5) } };
    for (size_t k = 0; k < sizeof alike / sizeof *alike; k++)
        for (int r = 1; r < world_size; r++) {
            const char *a = (const char *)&all[0] + alike[k].at, *b = (const char *)&all[r] + alike[k].at;
            if (strcmp(a, b) == 0) continue;
            find(w, "hosts differ in %s: %s has %s, %s has %s", alike[k].what, all[0].host, a, all[r].host, b);
            break;
        }
}

/* ---- printing ----------------------------------------------------------------------------------------------------------- */

static const char *yes(int v) { return v > 0 ? "works" : v == 0 ? "FAILS" : "not tried"; }

static void print_bytes(const char *what, int64_t bytes)
{
    if (bytes >= 0) printf("%s%.3g GiB", what, gib(bytes));
}

static void print_host(const en_doctor_facts *all, int world_size, int r)
{
    const en_doctor_facts *f = &all[r];
    char mask[160];
    printf("\nhost %s\n", f->host);
    printf("  processor     %s\n", f->cpu);
    printf("  processors    %d online", f->processors);
    if (f->cpu_quota > 0) printf("; the control group grants the time of %.3g", f->cpu_quota);
    printf("\n  passes for    %s (can run: %s)\n", *f->isa ? f->isa : "-", f->isas);
    printf("  OpenMP        %d, %d thread%s\n", f->openmp, f->openmp_threads, f->openmp_threads == 1 ? "" : "s");
    printf("  GPU           %s%s\n", *f->gpus ? "" : "none: ", *f->gpus ? f->gpus : f->no_gpu);
    printf("  memory        ");
    print_bytes("", f->memory_bytes);
    print_bytes(", available ", f->memory_available_bytes);
    print_bytes(", control group's limit ", f->memory_limit_bytes);
    print_bytes(", /dev/shm ", f->shm_free_bytes);
    if (*f->thp) printf(", huge pages: %s", f->thp);
    printf("\n  folder        %s (%s", f->folder, *f->filesystem ? f->filesystem : "unknown file system");
    print_bytes(", free ", f->disk_free_bytes);
    printf("); writing: %s, flock: %s, fcntl locks: %s\n", yes(f->writable), yes(f->flock_works), yes(f->fcntl_works));
    printf("  open files    %" PRId64 " (can be raised to %" PRId64 ")\n", f->open_files, f->open_files_hard);
    for (int q = 0; q < world_size; q++)
        if (same_host(&all[q], f))
            printf("  rank %-8d may run on %d processor%s, %d core%s: %s\n", q, all[q].allowed_processors, all[q].allowed_processors == 1 ? "" : "s",
                   all[q].allowed_cores, all[q].allowed_cores == 1 ? "" : "s", mask_text(all[q].allowed, mask, sizeof mask));
}

static void print_text(const en_comm *c, const en_doctor_facts *all, const findings *w)
{
    printf("effnet " EN_VERSION ", %d rank%s on %d host%s, %s\n\n", c->world_size, c->world_size == 1 ? "" : "s", c->nodes, c->nodes == 1 ? "" : "s",
           all[0].launched ? "started by an MPI launcher" : "started without an MPI launcher");
    printf("libraries\n  MPI           %s\n  HDF5          %s\n  JPEG          %s\n  PNG           %s\n", all[0].mpi, all[0].hdf5, all[0].jpeg, all[0].png);
    for (int r = 0; r < c->world_size; r++)
        if (leads(all, r)) print_host(all, c->world_size, r);
    printf("\nfindings\n");
    for (int i = 0; i < w->n; i++) printf("  - %s\n", w->text[i]);
    if (w->left_out) printf("  and %d more\n", w->left_out);
    if (!w->n) printf("  nothing stands in the way\n");
}

static void json_text(const char *key, const char *s)
{
    printf("\"%s\": ", key);
    en_json_print(s);
    printf(", ");
}

static void json_count(const char *key, int64_t v)
{
    if (v == EN_UNKNOWN) printf("\"%s\": null, ", key);
    else printf("\"%s\": %" PRId64 ", ", key, v);
}

static void json_bool(const char *key, int v) { printf("\"%s\": %s, ", key, v < 0 ? "null" : v ? "true" : "false"); }

static void json_host(const en_doctor_facts *all, int world_size, int r)
{
    const en_doctor_facts *f = &all[r];
    char mask[160];
    bool first = true;
    printf("{");
    json_text("host", f->host);
    json_text("cpu", f->cpu);
    json_count("processors", f->processors);
    if (f->cpu_quota > 0) printf("\"cpu_quota\": %.6g, ", f->cpu_quota);
    else json_count("cpu_quota", EN_UNKNOWN);
    json_text("isa", f->isa);
    json_text("isas", f->isas);
    json_text("gpus", f->gpus);
    json_text("no_gpu", f->no_gpu);
    json_count("openmp_threads", f->openmp_threads);
    json_count("memory_bytes", f->memory_bytes);
    json_count("memory_available_bytes", f->memory_available_bytes);
    json_count("memory_limit_bytes", f->memory_limit_bytes);
    json_count("shm_free_bytes", f->shm_free_bytes);
    json_text("huge_pages", f->thp);
    json_text("folder", f->folder);
    json_text("filesystem", f->filesystem);
    json_count("disk_free_bytes", f->disk_free_bytes);
    json_bool("writable", f->writable);
    json_bool("flock", f->flock_works);
    json_bool("fcntl_locks", f->fcntl_works);
    json_count("open_files", f->open_files);
    printf("\"ranks\": [");
    for (int q = 0; q < world_size; q++) {
        if (!same_host(&all[q], f)) continue;
        printf("%s{\"rank\": %d, \"processors\": \"%s\", \"cores\": %d}", first ? "" : ", ", q, mask_text(all[q].allowed, mask, sizeof mask),
               all[q].allowed_cores);
        first = false;
    }
    printf("]}");
}

static void print_json(const en_comm *c, const en_doctor_facts *all, const findings *w)
{
    bool first = true;
    printf("{\"version\": \"" EN_VERSION "\", \"ranks\": %d, \"nodes\": %d, ", c->world_size, c->nodes);
    json_bool("launched", all[0].launched);
    json_text("mpi", all[0].mpi);
    json_text("hdf5", all[0].hdf5);
    json_text("jpeg", all[0].jpeg);
    json_text("png", all[0].png);
    printf("\"hosts\": [");
    for (int r = 0; r < c->world_size; r++) {
        if (!leads(all, r)) continue;
        if (!first) printf(", ");
        json_host(all, c->world_size, r);
        first = false;
    }
    printf("], \"findings\": [");
    for (int i = 0; i < w->n; i++) {
        if (i) printf(", ");
        en_json_print(w->text[i]);
    }
    printf("]}\n");
}

/* ---- the command ---------------------------------------------------------------------------------------------------------- */

en_status en_command_doctor(const en_options *o)
{
    en_comm *c;
    en_status status = EN_OK;
    en_doctor_facts here, *all = NULL;
    findings *w = NULL;
    EN_TRY(en_comm_open(&c), "joining the other ranks");
    en_doctor_probe(c, c->local_rank == 0, &here);
    if (c->rank == 0) {
        all = calloc((size_t)c->world_size, sizeof *all);
        w = calloc(1, sizeof *w);
        if (!all || !w) {                      /* the others are on their way into the gather */
            en_report_error(c, en_raise(EN_ENOMEM, __FILE__, __LINE__, __func__, "no memory for the facts of %d ranks", c->world_size));
            en_comm_abort(c, en_status_exit_code(EN_ENOMEM));
        }
    }
    EN_TRY_OUT(c->ops->gather(c, &here, sizeof here, all, 0), "gathering what the ranks see");
    if (c->rank == 0) {
        for (int r = 0; r < c->world_size; r++)
            if (leads(all, r)) judge_host(&all[r], w);
        judge_binding(all, c->world_size, w);
        judge_likeness(all, c->world_size, w);
        if (o->json) print_json(c, all, w);
        else print_text(c, all, w);
    }
out:
    free(w);
    free(all);
    en_comm_close(c);
    return status;
}
