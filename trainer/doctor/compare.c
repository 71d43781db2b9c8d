/* doctor/compare.c - who differs: each row is one thing that the hosts of a job should have alike, each value stands with the hosts
 * that have it.
 *
 * A row says what a difference is worth: a job that fails or goes wrong (EN_MUST), one that is worse than need be (EN_ADVICE), or
 * something to know (EN_NOTE).  What ordinarily differs from minute to minute (free memory) is no row. */
#include "trainer/doctor/doctor.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- values ----------------------------------------------------------------------------------------------------------------- */

#define VALUE(name) static void name(const en_doctor_job *j, int rank, char *out, size_t size)
#define TEXT_VALUE(name, field)                                                                                                    \
    VALUE(name) { snprintf(out, size, "%s", *j->all[rank].field ? j->all[rank].field : "none"); }

TEXT_VALUE(mpi, mpi)         TEXT_VALUE(hdf5, hdf5)   TEXT_VALUE(isa, isa)           TEXT_VALUE(environment, environment)
TEXT_VALUE(cpu, cpu)         TEXT_VALUE(os, os)       TEXT_VALUE(kernel, kernel)     TEXT_VALUE(gpus, gpus)
TEXT_VALUE(driver, driver)   TEXT_VALUE(nccl, nccl)   TEXT_VALUE(cublas, cublas)     TEXT_VALUE(thp, thp)
TEXT_VALUE(governor, governor)   TEXT_VALUE(filesystem, filesystem)   TEXT_VALUE(folder, folder)

static void file_value(const char *what, int64_t bytes, uint32_t crc, char *out, size_t size)
{
    if (bytes < 0) snprintf(out, size, "none");
    else snprintf(out, size, "%s%s%" PRId64 " bytes, crc32c %08" PRIx32, what, *what ? ", " : "", bytes, crc);
}

VALUE(program) { file_value(j->all[rank].revision, j->all[rank].program_bytes, j->all[rank].program_crc, out, size); }
VALUE(plugin)  { file_value("", j->all[rank].plugin_bytes, j->all[rank].plugin_crc, out, size); }
VALUE(images)  { snprintf(out, size, "%s, %s", j->all[rank].jpeg, j->all[rank].png); }

VALUE(data)
{
    const en_doctor_facts *f = &j->all[rank];
    if (f->data_state == 0) snprintf(out, size, "refused");
    if (f->data_state != 1) return;
    const int n = snprintf(out, size, "%" PRId64 " training and %" PRId64 " validation images of %" PRId64 " classes, listings %016" PRIx64 " %016" PRIx64,
                           f->train_images, f->val_images, f->classes, f->train_hash, f->val_hash);
    if (f->packed_bytes >= 0 && n > 0 && (size_t)n < size)
        snprintf(out + n, size - (size_t)n, "; file of %" PRId64 " bytes, crc32c of its ends %08" PRIx32, f->packed_bytes, f->packed_crc);
}

VALUE(processors)
{
    const en_doctor_facts *f = &j->all[rank];
    if (f->cpu_quota > 0) snprintf(out, size, "%d online, the time of %.3g granted", f->processors, f->cpu_quota);
    else snprintf(out, size, "%d online", f->processors);
}

/* In GiB, so that what the firmware keeps for itself makes no difference */
VALUE(memory)
{
    const en_doctor_facts *f = &j->all[rank];
    const int64_t limit = f->memory_limit_bytes, all = f->memory_bytes;
    if (all >= 0) snprintf(out, size, "%.3g GiB%s", (double)(limit > 0 && limit < all ? limit : all) / (1 << 30), limit > 0 && limit < all ? " by control group" : "");
}

VALUE(ranks)
{
    int n = 0;
    for (int r = 0; r < j->ranks; r++) n += en_doctor_same_host(&j->all[r], &j->all[rank]);
    snprintf(out, size, "%d", n);
}

VALUE(binding)
{
    size_t n = 0;
    char mask[160];
    for (int r = 0; r < j->ranks && n < size; r++)
        if (en_doctor_same_host(&j->all[r], &j->all[rank]) && j->all[r].allowed_processors > 0)
            n += (size_t)snprintf(out + n, size - n, "%s%s", n ? " | " : "", en_doctor_mask(j->all[r].allowed, mask, sizeof mask));
}

VALUE(threads)    { snprintf(out, size, "%d", j->all[rank].openmp_threads); }
VALUE(open_files) { if (j->all[rank].open_files >= 0) snprintf(out, size, "%" PRId64, j->all[rank].open_files); }
VALUE(locked)
{
    const int64_t v = j->all[rank].locked_bytes;
    if (v == INT64_MAX) snprintf(out, size, "no limit");
    else if (v >= 0) snprintf(out, size, "%" PRId64 " KiB", v / 1024);
}

#define SAME_FILE "put the same file on every host (a file system that all share, or copies of one build)"
const en_doctor_row en_doctor_rows[] = {
    { "program",         EN_MUST,   true,  SAME_FILE, program },
    { "CUDA plugin",     EN_MUST,   true,  SAME_FILE, plugin },
    { "images of --data", EN_MUST,  true,  "give every host the same, complete copy", data },
    { "MPI",             EN_ADVICE, true,  "install the same one on every host", mpi },
    { "HDF5",            EN_ADVICE, true,  "install the same one on every host", hdf5 },
    { "JPEG, PNG",       EN_ADVICE, true,  "pictures may be decoded to slightly other pixels; install the same ones on every host", images },
    { "instruction set", EN_ADVICE, true,  "a run takes the fastest that all have; EN_ISA in the environment chooses one", isa },
    { "environment",     EN_ADVICE, true,  "give all ranks the same (mpirun -x NAME)", environment },
    { "GPUs",            EN_ADVICE, false, "a step takes as long as the slowest; start like ranks on like hosts", gpus },
    { "GPU driver",      EN_ADVICE, false, "install the same one on every host", driver },
    { "NCCL",            EN_ADVICE, true,  "install the same one on every host", nccl },
    { "cuBLASLt",        EN_ADVICE, true,  "install the same one on every host", cublas },
    { "ranks",           EN_NOTE,   false, "", ranks },
    { "processor",       EN_NOTE,   false, "", cpu },
    { "processors",      EN_NOTE,   false, "", processors },
    { "binding",         EN_NOTE,   false, "", binding },
    { "OpenMP threads",  EN_NOTE,   true,  "", threads },
    { "memory",          EN_NOTE,   false, "", memory },
    { "huge pages",      EN_NOTE,   false, "", thp },
    { "open files",      EN_NOTE,   false, "", open_files },
    { "locked memory",   EN_NOTE,   false, "", locked },
    { "governor",        EN_NOTE,   false, "", governor },
    { "system",          EN_NOTE,   false, "", os },
    { "kernel",          EN_NOTE,   false, "", kernel },
    { "folder",          EN_NOTE,   false, "", folder },
    { "file system",     EN_NOTE,   false, "", filesystem },
};
const int en_doctor_n_rows = sizeof en_doctor_rows / sizeof *en_doctor_rows;

/* ---- classes ---------------------------------------------------------------------------------------------------------------- */

int en_doctor_classes(const en_doctor_job *j, const en_doctor_row *row, int *class_of)
{
    int classes = 0;
    for (int r = 0; r < j->ranks; r++) {
        char mine[EN_VALUE] = "", other[EN_VALUE];
        class_of[r] = -1;
        if (row->per_rank || en_doctor_leads(j->all, r)) row->value(j, r, mine, sizeof mine);
        if (!mine[0]) continue;
        for (int k = 0, q = 0; k < classes && class_of[r] < 0; k++) {
            while (class_of[q] != k) q++;      /* the first of each class; they come in this order */
            other[0] = 0;
            row->value(j, q, other, sizeof other);
            if (strcmp(mine, other) == 0) class_of[r] = k;
        }
        if (class_of[r] < 0) class_of[r] = classes++;
    }
    return classes;
}

/* ---- names of hosts as ranges ----------------------------------------------------------------------------------------------- */

/* "node07.site" is node, 7 in two digits, .site; false: no number in its first part */
static bool take_apart(const char *name, size_t *begin, size_t *end, long *number)
{
    *end = strcspn(name, ".");
    while (*end > 0 && !isdigit((unsigned char)name[*end - 1])) --*end;
    *begin = *end;
    while (*begin > 0 && isdigit((unsigned char)name[*begin - 1])) --*begin;
    *number = *end - *begin < 10 ? strtol(name + *begin, NULL, 10) : 0;
    return *end > *begin && *end - *begin < 10;
}

static bool follows(const char *a, const char *b)
{
    size_t a0, a1, b0, b1;
    long m, n;
    return take_apart(a, &a0, &a1, &m) && take_apart(b, &b0, &b1, &n) && n == m + 1 && a0 == b0 && strncmp(a, b, a0) == 0
           && (a1 == b1 || (a[a0] != '0' && b[b0] != '0')) && strcmp(a + a1, b + b1) == 0;
}

static size_t add(char *out, size_t size, size_t n, const char *text)
{
    if (n >= size) return n;
    if (n + strlen(text) + 5 >= size) {        /* room for this, always */
        snprintf(out + n, size - n, ", ..");
        return size;
    }
    return n + (size_t)snprintf(out + n, size - n, "%s", text);
}

void en_doctor_who(const en_doctor_job *j, const en_doctor_row *row, const int *class_of, int k, char *out, size_t size)
{
    size_t n = 0;
    const char *last = NULL;                   /* of a range that is not told to its end */
    bool range = false;
    char text[256];
    out[0] = 0;
    for (int r = 0; r < j->ranks; r++) {
        const char *host = j->all[r].host;
        int mine = 0, all = 0;
        if (!en_doctor_leads(j->all, r)) continue;
        for (int q = r; q < j->ranks; q++) {
            if (!en_doctor_same_host(&j->all[q], &j->all[r])) continue;
            all += row->per_rank && class_of[q] != -1;
            mine += class_of[q] == k;
        }
        if (!mine) continue;
        if (last && follows(last, host) && !(row->per_rank && mine < all)) {
            last = host;
            range = true;
            continue;
        }
        if (range) {
            snprintf(text, sizeof text, "-%s", last);
            n = add(out, size, n, text);
        }
        range = false;
        last = NULL;
        snprintf(text, sizeof text, "%s%s", n ? ", " : "", host);
        n = add(out, size, n, text);
        if (!row->per_rank || mine == all) {
            last = host;
            continue;
        }
        bool first = true;
        for (int q = r; q < j->ranks; q++)
            if (en_doctor_same_host(&j->all[q], &j->all[r]) && class_of[q] == k) {
                snprintf(text, sizeof text, "%s%d", first ? mine > 1 ? " (ranks " : " (rank " : ", ", q);
                n = add(out, size, n, text);
                first = false;
            }
        n = add(out, size, n, ")");
    }
    if (range) {
        snprintf(text, sizeof text, "-%s", last);
        add(out, size, n, text);
    }
}

/* ---- findings ---------------------------------------------------------------------------------------------------------------- */

void en_doctor_judge_likeness(const en_doctor_job *j, en_findings *w)
{
    int *class_of = malloc((size_t)j->ranks * sizeof *class_of);
    for (int i = 0; class_of && i < en_doctor_n_rows; i++) {
        const en_doctor_row *row = &en_doctor_rows[i];
        const int classes = en_doctor_classes(j, row, class_of);
        if (classes < 2 || row->weight == EN_NOTE) continue;
        int most = 0, count = 0;               /* the value that most have is the ordinary one */
        for (int k = 0; k < classes; k++) {
            int n = 0;
            for (int r = 0; r < j->ranks; r++) n += class_of[r] == k;
            if (n > count) most = k, count = n;
        }
        for (int r = 0; r < j->ranks; r++)
            if (class_of[r] != most && class_of[r] >= 0) class_of[r] = -2;
        char others[200], ordinary[200];
        en_doctor_who(j, row, class_of, -2, others, sizeof others);
        en_doctor_who(j, row, class_of, most, ordinary, sizeof ordinary);
        en_find(w, row->weight == EN_MUST, "%s: not the same %s as on %s; %s", others, row->what, ordinary, row->remedy);
    }
    free(class_of);
}
