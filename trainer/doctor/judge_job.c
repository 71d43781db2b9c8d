/* doctor/judge_job.c - findings about all ranks together: what breaks a job although each host alone is fine. */
#include "trainer/doctor/doctor.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double clocks_within_s = 1, shows_soon_s = 3, slow_disk = 20e6, slow_network = 50e6;

static double gib(double bytes) { return bytes / (1 << 30); }

/* ---- the folder of --run ---------------------------------------------------------------------------------------------------- */

static void judge_space(const en_doctor_job *j, en_findings *w)
{
    const en_doctor_facts *f = &j->all[0];     /* rank 0 writes */
    const double needed = (double)j->checkpoint_bytes * (double)j->checkpoints;
    if (f->disk_free_bytes >= 0 && j->checkpoint_bytes > 0 && (double)f->disk_free_bytes < needed)
        en_find_on(w, 0, j->folder_asked, "%.3g GiB free in %s, and %" PRId64 " checkpoints of %s take %.2g GiB (--keep, the best and the one "
                   "being written): free some, choose another --run, or --keep fewer", gib((double)f->disk_free_bytes), f->folder, j->checkpoints,
                   j->model, gib(needed));
    if (f->disk_free_files >= 0 && f->disk_free_files < 1000)
        en_find_on(w, 0, j->folder_asked && f->disk_free_files < 20, "room for %" PRId64 " more files in %s (df -i): remove some",
                   f->disk_free_files, f->folder);
    if (f->write_bytes_per_s > 0 && f->write_bytes_per_s < slow_disk)
        en_find_on(w, 0, false, "%s takes %.3g MB/s: a checkpoint of %s is written in %.0f s; training goes on meanwhile, but not into the next "
                   "one", f->folder, f->write_bytes_per_s / 1e6, j->model, (double)j->checkpoint_bytes / f->write_bytes_per_s);
}

static const char *filesystem_of(const en_doctor_facts *f) { return *f->filesystem ? f->filesystem : "unknown file system"; }

static void judge_folder(const en_doctor_job *j, en_findings *w)
{
    for (int r = 0; r < j->ranks; r++) {
        const en_doctor_facts *f = &j->all[r];
        if (f->writable == 0)
            en_find_on(w, r, j->folder_asked && r == 0, "%s (%s) cannot be written (%s); choose another folder for --run", f->folder,
                       filesystem_of(f), f->folder_trouble);
        else if (f->flock_works == 0 || f->fcntl_works == 0)
            en_find_on(w, r, false, "%s (%s) refuses file locks (%s), so nothing keeps two jobs out of one folder; mount it with locks (lustre: -o "
                       "flock), or see to it yourself, and set HDF5_USE_FILE_LOCKING=FALSE", f->folder, filesystem_of(f), f->folder_trouble);
        if (f->shared == 0)
            en_find_on(w, r, true, "%s is not the folder that rank 0 on %s has there: a file of it does not show within 10 s; a start with rank 0 "
                       "on another host would find no checkpoint: choose a --run on a file system that all hosts share", f->folder, j->all[0].host);
        if (f->shared == 1 && f->shown_after_s > shows_soon_s)
            en_find_on(w, r, false, "a file of rank 0 showed in %s after %.1f s only: a file system with long caches (NFS: -o actimeo=3)", f->folder,
                    f->shown_after_s);
        if (f->flock_excludes == 0 || f->fcntl_excludes == 0)
            en_find_on(w, r, f->flock_excludes == 0, "a lock (%s) of rank 0 on %s in %s (%s) does not hold here, so two jobs could train in one "
                       "folder; mount it with locks (lustre: -o flock, not -o localflock; nfs: not -o nolock, not -o local_lock)",
                       f->flock_excludes == 0 ? "flock" : "fcntl", j->all[0].host, f->folder, filesystem_of(f));
    }
    judge_space(j, w);
}

/* ---- the images of --data ------------------------------------------------------------------------------------------------- */

static void judge_data(const en_doctor_job *j, en_findings *w)
{
    for (int r = 0; r < j->ranks; r++)
        if (j->all[r].data_state == 0) en_find_on(w, r, true, "--data is refused: %s", j->all[r].data_trouble);
    if (j->all[0].data_state == 1 && j->all[0].train_images < j->ranks)
        en_find(w, true, "--data has %" PRId64 " training images for %d ranks; start fewer ranks", j->all[0].train_images, j->ranks);
    if (j->all[0].data_state == 1 && j->all[0].classes < 2)
        en_find(w, true, "--data has one class only: there is nothing to tell apart; give each class a folder of its own");
}

/* ---- the others ------------------------------------------------------------------------------------------------------------- */

static void judge_clocks(const en_doctor_job *j, en_findings *w)
{
    for (int r = 1; r < j->ranks; r++) {
        const en_doctor_facts *f = &j->all[r];
        if (f->met && fabs(f->clock_offset_s) - f->clock_error_s > clocks_within_s)
            en_find_on(w, r, false, "its clock is %.3g s %s that of %s: times in logs and of files mislead (make, tar, certificates); start chrony "
                       "or ntpd", fabs(f->clock_offset_s), f->clock_offset_s > 0 ? "ahead of" : "behind", j->all[0].host);
    }
}

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* What one figure of each host is ordinarily: the median.  Too few to say: 0. */
static double median(const en_doctor_job *j, double (*of)(const en_doctor_facts *), int fewest)
{
    double *v = malloc((size_t)j->ranks * sizeof *v), m = 0;
    int n = 0;
    for (int r = 0; v && r < j->ranks; r++)
        if (of(&j->all[r]) > 0) v[n++] = of(&j->all[r]);
    if (n >= fewest) {
        qsort(v, (size_t)n, sizeof *v, by_size);
        m = v[n / 2];
    }
    free(v);
    return m;
}

static double speed(const en_doctor_facts *f)  { return f->next[0] ? f->next_bytes_per_s : 0; }
static double trip(const en_doctor_facts *f)   { return f->round_trip_s; }

/* A third of what is ordinary, and a figure that could hurt: a stopwatch on a busy network errs by less. */
static void judge_network(const en_doctor_job *j, en_findings *w)
{
    const double ordinary = median(j, speed, 3), usual = median(j, trip, 3), any = median(j, speed, 1);
    if (any > 0 && any < slow_network)
        en_find(w, false, "neighbouring hosts exchange %.0f MB/s: the gradients of efficientnet_b0 (21 MB) take longer than most steps; is there a "
                "faster network (--mca btl_tcp_if_include INTERFACE)?", any / 1e6);
    for (int r = 0; r < j->ranks; r++) {
        const en_doctor_facts *f = &j->all[r];
        if (speed(f) > 0 && ordinary > 0 && 3 * speed(f) < ordinary)
            en_find_on(w, r, false, "exchanges %.0f MB/s with %s, others %.0f: look for a cable, a port or an interface of lower speed (a host in "
                       "two such lines has it)", speed(f) / 1e6, f->next, ordinary / 1e6);
        if (trip(f) > 0 && usual > 0 && trip(f) > 3 * usual && trip(f) > 200e-6)
            en_find_on(w, r, false, "%.3g ms there and back from %s, the others %.3g: batch norm over all ranks waits for the slowest (--bn-group "
                       "node)", 1e3 * trip(f), j->all[0].host, 1e3 * usual);
    }
}

static void judge_sums(const en_doctor_job *j, en_findings *w)
{
    for (int r = 0; r < j->ranks; r++) {
        const en_doctor_facts *f = &j->all[r];
        if (f->sum_right == 0)
            en_find_on(w, r, true, "a sum over the ranks came out wrong here: take this host out, and test its memory and network card");
        if (f->tensor_right == 0)
            en_find_on(w, r, true, "sums over the GPUs %s%s", *f->tensor_why ? "do not work: " : "are wrong: take this host out, and test its GPUs",
                    f->tensor_why);
    }
    const en_doctor_facts *f = &j->all[0];
    if (f->tensor_right == 1 && strcmp(f->tensor, "mpi") == 0)
        en_find(w, false, "the GPUs add up through host memory, slowly, because NCCL cannot: %s", f->tensor_why);
}

/* ---- devices ------------------------------------------------------------------------------------------------------------------ */

/* A rank as counted on its host: like hosts have one line. */
static int local(const en_doctor_job *j, int rank)
{
    int n = 0;
    for (int r = 0; r < rank; r++) n += en_doctor_same_host(&j->all[r], &j->all[rank]);
    return n;
}

static void judge_devices(const en_doctor_job *j, en_findings *w)
{
    int without = 0, with = 0;
    for (int r = 0; r < j->ranks; r++) {
        const en_doctor_facts *f = &j->all[r];
        *f->gpus ? with++ : without++;
        for (int q = 0; q < r && *f->device; q++)
            if (en_doctor_same_host(&j->all[q], f) && strcmp(j->all[q].device, f->device) == 0)
                en_find_on(w, r, false, "local ranks %d and %d share GPU %s; start one rank a GPU (launch/run --per-node)", local(j, q),
                           local(j, r), f->device);
        if (*f->device && f->device_numa >= 0 && f->device_numa < 64 && f->numa && !(f->numa >> f->device_numa & 1))
            en_find_on(w, r, false, "the GPU of local rank %d (%s) hangs on NUMA node %d, and the rank may run on processors of others only: bind "
                       "it there (launch/run --bind numa)", local(j, r), f->device, f->device_numa);
    }
    if (with && without)
        en_find(w, false, "%d of %d ranks find a GPU: --device auto takes the processor on all of them", with, j->ranks);
}

static void judge_names(const en_doctor_job *j, en_findings *w)
{
    int names = 0;
    for (int r = 0; r < j->ranks; r++) names += en_doctor_leads(j->all, r);
    if (names < j->hosts)
        en_find(w, false, "%d hosts have %d different names: messages of a run, and this report, do not tell them apart; give each a name of its "
                "own", j->hosts, names);
}

void en_doctor_judge_job(const en_doctor_job *j, en_findings *w)
{
    judge_names(j, w);
    judge_data(j, w);
    judge_folder(j, w);
    judge_devices(j, w);
    judge_sums(j, w);
    judge_network(j, w);
    judge_clocks(j, w);
}
