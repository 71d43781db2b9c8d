/* doctor/print.c - what was found out, for people: the host of rank 0, what lies between the hosts, who differs, findings.
 *
 * Other hosts are not listed one by one: they are as the first one, but for the table. */
#include "trainer/doctor/doctor.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double gib(int64_t bytes) { return (double)bytes / (1 << 30); }
static const char *s_of(int64_t n) { return n == 1 ? "" : "s"; }
static const char *yes(int v) { return v > 0 ? "works" : v == 0 ? "FAILS" : "not tried"; }

/* "12 us", "3.2 ms", "1.5 s" */
static const char *time_text(double s, char out[24])
{
    if (s < 0.999e-3) snprintf(out, 24, "%.3g us", 1e6 * s);
    else if (s < 0.999) snprintf(out, 24, "%.3g ms", 1e3 * s);
    else snprintf(out, 24, "%.3g s", s);
    return out;
}

static const char *speed_text(double bytes_per_s, char out[24])
{
    if (bytes_per_s < 0.999e9) snprintf(out, 24, "%.0f MB/s", 1e-6 * bytes_per_s);
    else snprintf(out, 24, "%.3g GB/s", 1e-9 * bytes_per_s);
    return out;
}

static void print_bytes(const char *what, int64_t bytes)
{
    if (bytes >= 0) printf("%s%.3g GiB", what, gib(bytes));
}

/* ---- the host of rank 0 -------------------------------------------------------------------------------------------------- */

static void print_gpus(const en_doctor_facts *f)
{
    printf("  GPU           %s%s", *f->gpus ? "" : "none: ", *f->gpus ? f->gpus : f->no_gpu);
    if (*f->driver) printf("; driver %s", f->driver);
    if (*f->cublas) printf(", %s", f->cublas);
    if (*f->nccl) printf(", %s", f->nccl);
    printf("\n");
}

static void print_folder(const en_doctor_job *j, const en_doctor_facts *f)
{
    char text[24];
    printf("  folder        %s (%s", f->folder, *f->filesystem ? f->filesystem : "unknown file system");
    print_bytes(", free ", f->disk_free_bytes);
    printf("); writing: %s, flock: %s, fcntl locks: %s", yes(f->writable), yes(f->flock_works), yes(f->fcntl_works));
    if (f->write_bytes_per_s > 0) printf(", %s", speed_text(f->write_bytes_per_s, text));
    printf("\n");
    if (j->checkpoint_bytes > 0)
        printf("  checkpoints   of %s: %.3g MB each, %" PRId64 " of them %.3g GiB\n", j->model, (double)j->checkpoint_bytes / 1e6, j->checkpoints,
               gib(j->checkpoint_bytes * j->checkpoints));
}

static void print_ranks(const en_doctor_job *j, const en_doctor_facts *f)
{
    enum { MOST = 64 };
    char mask[160];
    int shown = 0;
    for (int q = 0; q < j->ranks && shown < MOST; q++) {
        const en_doctor_facts *g = &j->all[q];
        if (!en_doctor_same_host(g, f)) continue;
        printf("  rank %-8d may run on %d processor%s, %d core%s: %s", q, g->allowed_processors, s_of(g->allowed_processors), g->allowed_cores,
               s_of(g->allowed_cores), en_doctor_mask(g->allowed, mask, sizeof mask));
        if (*g->device) printf("; GPU %s", g->device);
        printf("\n");
        shown++;
    }
}

static void print_host(const en_doctor_job *j)
{
    const en_doctor_facts *f = &j->all[0];
    printf("\nhost %s%s\n", f->host, j->hosts > 1 ? " (the others are like it, but for what the table below names)" : "");
    printf("  system        %s, kernel %s\n", *f->os ? f->os : "unknown", *f->kernel ? f->kernel : "unknown");
    printf("  processor     %s\n", f->cpu);
    printf("  processors    %d online", f->processors);
    if (f->cpu_quota > 0) printf("; the control group grants the time of %.3g", f->cpu_quota);
    if (*f->governor) printf("; governor %s", f->governor);
    printf("\n  passes for    %s (can run: %s)\n", *f->isa ? f->isa : "-", f->isas);
    printf("  OpenMP        %d, %d thread%s\n", f->openmp, f->openmp_threads, s_of(f->openmp_threads));
    print_gpus(f);
    printf("  memory        ");
    print_bytes("", f->memory_bytes);
    print_bytes(", available ", f->memory_available_bytes);
    print_bytes(", control group's limit ", f->memory_limit_bytes);
    print_bytes(", /dev/shm ", f->shm_free_bytes);
    if (*f->thp) printf(", huge pages: %s", f->thp);
    printf("\n");
    print_folder(j, f);
    printf("  open files    %" PRId64 " (can be raised to %" PRId64 ")\n", f->open_files, f->open_files_hard);
    if (*f->network) printf("  network       %s\n", f->network);
    print_ranks(j, f);
}

/* ---- between the hosts ----------------------------------------------------------------------------------------------------- */

static void print_data(const en_doctor_job *j)
{
    const en_doctor_facts *f = &j->all[0];
    double slowest = 0;
    char text[24];
    int looked = 0;
    for (int r = 0; r < j->ranks; r++) {
        looked += j->all[r].data_state == 1;
        if (j->all[r].data_s > slowest) slowest = j->all[r].data_s;
    }
    if (f->data_state == EN_UNKNOWN) return;
    printf("\nimages of --data\n");
    if (f->data_state == 1)
        printf("  rank 0 sees   %" PRId64 " training and %" PRId64 " validation images of %" PRId64 " classes\n", f->train_images, f->val_images, f->classes);
    printf("  listed by     %d rank%s, one a host; the slowest took %s\n", looked, s_of(looked), time_text(slowest, text));
}

typedef double figure(const en_doctor_facts *f);
static double trip(const en_doctor_facts *f)   { return f->met && f->round_trip_s > 0 ? f->round_trip_s : -1; }
static double offset(const en_doctor_facts *f) { return f->met && f->round_trip_s > 0 ? fabs(f->clock_offset_s) : -1; }
static double speed(const en_doctor_facts *f)  { return *f->next ? f->next_bytes_per_s : -1; }
static double shown(const en_doctor_facts *f)  { return f->shared == 1 && f->shown_after_s > 0 ? f->shown_after_s : -1; }

/* The ranks with the least and the most of a figure; false: nobody has it. */
static bool extremes(const en_doctor_job *j, figure *of, const en_doctor_facts **least, const en_doctor_facts **most)
{
    *least = *most = NULL;
    for (int r = 0; r < j->ranks; r++) {
        const en_doctor_facts *f = &j->all[r];
        if (of(f) < 0) continue;
        if (!*least || of(f) < of(*least)) *least = f;
        if (!*most || of(f) > of(*most)) *most = f;
    }
    return *least != NULL;
}

/* True: they differ. */
static bool print_span(const char *what, double least, double most, const char *(*text)(double, char[24]))
{
    char a[24], b[24];
    text(least, a);
    text(most, b);
    const bool differ = strcmp(a, b) != 0;
    printf("%s%s%s%s", what, a, differ ? " to " : "", differ ? b : "");
    return differ;
}

static void print_folder_together(const en_doctor_job *j)
{
    const en_doctor_facts *a, *b;
    char text[24];
    int shared = 0, apart = 0, locks = 0, loose = 0;
    for (int r = 1; r < j->ranks; r++) {
        const en_doctor_facts *f = &j->all[r];
        shared += f->shared == 1;
        apart += f->shared == 0;
        locks += f->flock_excludes == 1 && f->fcntl_excludes == 1;
        loose += f->flock_excludes == 0 || f->fcntl_excludes == 0;
    }
    if (shared + apart == 0) return;
    printf("  folder        a file of rank 0 shows %s", apart ? shared ? "on some" : "nowhere else" : "everywhere");
    if (extremes(j, shown, &a, &b)) printf("%s%s", shown(b) < 0.1 ? " at once" : ", the last after ", shown(b) < 0.1 ? "" : time_text(shown(b), text));
    if (locks || loose) printf("; its locks %s", loose ? "DO NOT exclude the others" : "exclude the others");
    printf("\n");
}

static void print_between(const en_doctor_job *j)
{
    const en_doctor_facts *f = &j->all[0], *a, *b;
    char text[24], more[24];
    if (j->ranks < 2) return;
    printf("\nbetween the ranks\n");
    if (j->hosts > 1) printf("  transport     %s\n", *f->transport ? f->transport : "not TCP (rank 0 has no connection of MPI's)");
    if (extremes(j, trip, &a, &b)) {
        const bool differ = print_span("  round trip    ", trip(a), trip(b), time_text);
        printf(" from %s", f->host);
        if (differ) printf(", the slowest to %s", b->host);
        extremes(j, offset, &a, &b);
        printf("\n  clocks        ahead or behind by at most %s, give or take %s", time_text(offset(b), text), time_text(b->clock_error_s, more));
        if (j->hosts > 2) printf(" (%s)", b->host);
        printf("\n");
    }
    if (extremes(j, speed, &a, &b)) {
        const bool differ = print_span("  neighbours    exchange ", speed(a), speed(b), speed_text);
        printf(" each way");
        if (differ) printf(", the slowest are %s and %s", a->host, a->next);
        printf("\n");
    }
    if (f->sum_right != EN_UNKNOWN)
        printf("  sums          65 numbers in %s; 4 MiB at %s; %s\n", time_text(f->sum_s, text), speed_text(f->sum_bytes_per_s, more), f->sum_right ? "right" : "WRONG");
    if (f->tensor_right != EN_UNKNOWN && *f->tensor)
        printf("  over GPUs     %s: 65 numbers in %s, %s\n", f->tensor, time_text(f->tensor_s, text), f->tensor_right ? "right" : "WRONG");
    print_folder_together(j);
}

/* ---- who differs --------------------------------------------------------------------------------------------------------------- */

static void print_row(const en_doctor_job *j, const en_doctor_row *row, const int *class_of, int classes)
{
    for (int k = 0; k < classes; k++) {
        char who[200], value[EN_VALUE] = "";
        int r = 0;
        while (class_of[r] != k) r++;
        row->value(j, r, value, sizeof value);
        en_doctor_who(j, row, class_of, k, who, sizeof who);
        printf("%s %-16s %-20s  %s\n", k == 0 && row->weight == EN_MUST ? "!" : " ", k ? "" : row->what, who, value);
    }
}

static void print_table(const en_doctor_job *j)
{
    int *class_of = malloc((size_t)j->ranks * sizeof *class_of), differ = 0, compared = 0;
    if (!class_of || j->ranks < 2) {
        free(class_of);
        return;
    }
    for (int i = 0; i < en_doctor_n_rows; i++) {
        const int classes = en_doctor_classes(j, &en_doctor_rows[i], class_of);
        compared += classes > 0;
        if (classes < 2) continue;
        if (!differ++) printf("\nwho differs\n");
        print_row(j, &en_doctor_rows[i], class_of, classes);
    }
    if (differ) printf("  and %d things are the same everywhere\n", compared - differ);
    else printf("\nwho differs: nobody (%d things compared)\n", compared);
    free(class_of);
}

void en_doctor_print(const en_doctor_job *j, const en_findings *w)
{
    const en_doctor_facts *f = &j->all[0];
    char text[EN_FINDING];
    printf("effnet %s, %d rank%s on %d host%s, %s\n\n", f->revision, j->ranks, s_of(j->ranks), j->hosts, s_of(j->hosts),
           f->launched ? "started by an MPI launcher" : "started without an MPI launcher");
    printf("libraries\n  MPI           %s\n  HDF5          %s\n  JPEG          %s\n  PNG           %s\n", f->mpi, f->hdf5, f->jpeg, f->png);
    print_host(j);
    print_data(j);
    print_between(j);
    print_table(j);
    printf("\nfindings\n");
    for (int must = 1; must >= 0; must--)
        for (int i = 0; i < w->n; i++)
            if (w->item[i].must == (must == 1)) {
                en_finding_text(j, w, i, text);
                printf("  %s %s\n", must ? "!" : "-", text);
            }
    if (w->left_out) printf("  and %d more\n", w->left_out);
    if (w->musts) printf("  %d of them (!) would break a job: exit code 1\n", w->musts);
    else if (!w->n) printf("  nothing stands in the way\n");
}
