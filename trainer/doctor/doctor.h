/* doctor/doctor.h - what the ranks see of their machines, of the data and of each other, and what is made of it.
 *
 *     doctor/reach.c     do the hosts reach each other at all?  clocks, round trips, bandwidth     (before any collective)
 *     doctor/machine.c   processors, memory, limits: /proc, /sys, control groups
 *     doctor/program.c   which program, which libraries, which GPUs and networks
 *     doctor/folder.c    the folder of --run: is it one file system, do its locks exclude, how fast is it
 *     doctor/data.c      the images of --data
 *     doctor/sums.c      small sums over the ranks, and over their GPUs
 *               |  facts of each rank, gathered on rank 0
 *               v
 *     doctor/judge.c     findings about one host      doctor/judge_job.c   findings about all together
 *     doctor/compare.c   who differs                  doctor/findings.c    their list       (functions of the facts alone)
 *               |
 *               v
 *     doctor/print.c, doctor/json.c
 *
 * Looking never fails: what cannot be found out is EN_UNKNOWN, a text "". */
#ifndef EN_DOCTOR_H
#define EN_DOCTOR_H

#include "comm/comm.h"
#include "trainer/options.h"

enum { EN_DOCTOR_CPUS = 1024, EN_DOCTOR_MPI = 96, EN_DOCTOR_HDF5 = 32, EN_UNKNOWN = -1 };

/* Plain bytes: ranks send it as it is. */
typedef struct {
    char     host[64];
    int      launched;                         /* MPI runs between the ranks                                       */

    /* the machine */
    char     cpu[96], os[96], kernel[140], thp[16], governor[56];
    uint64_t allowed[EN_DOCTOR_CPUS / 64];     /* bit i: this process may run on processor i (sched_getaffinity)   */
    int      processors, allowed_processors, allowed_cores;    /* online; in the mask; distinct cores in the mask  */
    uint64_t numa;                             /* bit i: some of them belong to NUMA node i; 0: not known          */
    double   cpu_quota;                        /* processors' worth of time that the cgroup grants                 */
    int64_t  memory_bytes, memory_available_bytes, memory_limit_bytes, shm_free_bytes;
    int64_t  open_files, open_files_hard, locked_bytes;        /* INT64_MAX: no limit                              */
    char     network[256];                     /* interfaces that are up, and their speed; InfiniBand ports        */
    int      infiniband;                       /* ports                                                            */

    /* the program */
    char     revision[64];
    int64_t  program_bytes, plugin_bytes;      /* of /proc/self/exe and libeffnet_cuda.so                          */
    uint32_t program_crc, plugin_crc;
    char     mpi[EN_DOCTOR_MPI], hdf5[EN_DOCTOR_HDF5], jpeg[48], png[24], isa[16], isas[64];
    int      openmp, openmp_threads;
    char     environment[640];                 /* NAME=value of what changes how the program computes or sums      */
    int      root_needs_consent;               /* root, Open MPI, and no OMPI_ALLOW_RUN_AS_ROOT                    */
    int      has_launcher;                     /* mpirun, mpiexec or srun is in PATH                               */

    /* devices */
    char     gpus[600];                        /* one text a GPU, joined by "; "; "" and ...                       */
    char     no_gpu[400];                      /* ... why there is none                                            */
    int      gpus_there;                       /* as the driver lists them, whoever may see them                   */
    char     driver[32], cublas[64], nccl[64]; /* the driver's version; names of the libraries that were opened    */
    char     device[64]; int device_numa;      /* this rank's GPU, by its PCI bus id; the NUMA node it hangs on    */

    /* the folder of --run, or the working folder */
    char     folder[256], filesystem[24], folder_trouble[160];
    int64_t  disk_free_bytes, disk_free_files;
    int      writable, flock_works, fcntl_works;   /* 1, 0; EN_UNKNOWN when not tried                              */
    int      shared, flock_excludes, fcntl_excludes;   /* a file of rank 0 shows here; a lock of rank 0 keeps us out */
    double   shown_after_s;                    /* when it showed                                                   */
    double   write_bytes_per_s;                /* with fsync, rank 0 only                                          */

    /* the images of --data */
    int      data_state;                       /* 1 listed, 0 refused (data_trouble), EN_UNKNOWN not asked         */
    char     data_trouble[240];
    int64_t  train_images, val_images, classes, packed_bytes;
    uint64_t train_hash, val_hash; uint32_t packed_crc;        /* packed: of the file's first and last MiB         */
    double   data_s;

    /* the others */
    int      met;                              /* clock and round trip are known                                   */
    double   clock_offset_s, clock_error_s;    /* this host's clock less rank 0's, give or take                    */
    double   round_trip_s;                     /* with rank 0's host                                               */
    double   next_bytes_per_s; char next[64];  /* with the next host in a ring                                     */
    char     transport[160];
    int      sum_right, tensor_right;          /* 1, 0, EN_UNKNOWN                                                 */
    double   sum_s, sum_bytes_per_s, tensor_s;
    char     tensor[16], tensor_why[256];      /* "nccl", "mpi", "self"; why not the one hoped for                 */
} en_doctor_facts;

typedef struct {
    const en_doctor_facts *all; int ranks;     /* borrowed, in rank order                                          */
    int     hosts;                             /* that share memory within themselves, as MPI counts them          */
    bool    folder_asked;                      /* --run was given                                                  */
    const char *model; int64_t checkpoint_bytes, checkpoints;      /* of --model; how many lie there at most       */
} en_doctor_job;

/* ---- looking ------------------------------------------------------------------------------------------------------------- */

void en_doctor_nothing(en_doctor_facts *f);    /* nothing is known                                                 */
void en_doctor_machine(en_doctor_facts *f);
void en_doctor_program(en_doctor_facts *f);
/* "Open MPI v4.1.4", "1.10.8"; "" when it could not be found out */
void en_library_versions(char mpi[EN_DOCTOR_MPI], char hdf5[EN_DOCTOR_HDF5]);

/* These are collective, and fail where the other ranks fail (EN_EPEER). */
/* Before en_comm_open, for which it begins MPI where there is a launcher.  EN_EPEER: a rank or a host does not answer, and which: the ranks that know
 * of it tell it, so the job is to be aborted. */
en_status en_doctor_reach(en_doctor_facts *f);
void      en_doctor_transport(en_doctor_facts *f);             /* by which sockets it went                         */
/* run "": the working folder, each host for itself. */
en_status en_doctor_folder(en_comm *c, const char *run, en_doctor_facts *f);
en_status en_doctor_data(en_comm *c, const char *data, en_doctor_facts *f);
en_status en_doctor_sums(en_comm *c, en_doctor_facts *f);

/* ---- judging ------------------------------------------------------------------------------------------------------------- */

/* A finding is one line: what was seen, and what to do.  must: a job would fail, or go wrong. */
enum { EN_FINDINGS = 96, EN_FINDING = 900 };
typedef struct {
    struct { char text[640]; bool must, of_hosts; } item[EN_FINDINGS];
    int n, left_out, musts, ranks;
    unsigned char *whose;                      /* owned; (EN_FINDINGS, ranks): the finding is about this rank's host */
} en_findings;

bool en_findings_open(en_findings *w, int ranks);              /* false: no memory                                 */
void en_findings_close(en_findings *w);
void en_find(en_findings *w, bool must, const char *fmt, ...) __attribute__((format(printf, 3, 4)));                 /* of the job  */
void en_find_on(en_findings *w, int rank, bool must, const char *fmt, ...) __attribute__((format(printf, 4, 5)));    /* of its host */
/* "node1-node3: /dev/shm has 64 MiB; ..." */
void en_finding_text(const en_doctor_job *j, const en_findings *w, int i, char out[EN_FINDING]);
void en_doctor_judge_host(const en_doctor_job *j, int rank, en_findings *w);       /* of a rank that leads its host */
void en_doctor_judge_binding(const en_doctor_job *j, en_findings *w);
void en_doctor_judge_job(const en_doctor_job *j, en_findings *w);
void en_doctor_judge_likeness(const en_doctor_job *j, en_findings *w);             /* what the table below makes of it */

bool en_doctor_same_host(const en_doctor_facts *a, const en_doctor_facts *b);
bool en_doctor_leads(const en_doctor_facts *all, int rank);    /* is this rank the first of its host?              */
const char *en_doctor_mask(const uint64_t *mask, char *out, size_t size);          /* processors as "0-3,8"        */

/* ---- who differs ----------------------------------------------------------------------------------------------------------- */

typedef enum { EN_NOTE, EN_ADVICE, EN_MUST } en_weight;
typedef struct {
    const char *what;
    en_weight   weight;
    bool        per_rank;                      /* each rank has its own; else the first rank of a host speaks for it */
    const char *remedy;                        /* of a finding                                                     */
    void      (*value)(const en_doctor_job *j, int rank, char *out, size_t size);  /* "": has no say               */
} en_doctor_row;
enum { EN_VALUE = 700 };
extern const en_doctor_row en_doctor_rows[];
extern const int en_doctor_n_rows;

/* class_of[r] = which of the values rank r has, numbered as they come, -1: no say.  Returns how many there are. */
int  en_doctor_classes(const en_doctor_job *j, const en_doctor_row *row, int *class_of);
/* Whose class is k: "node1-node3, node5"; a host in parts: "node5 (ranks 4, 5)" */
void en_doctor_who(const en_doctor_job *j, const en_doctor_row *row, const int *class_of, int k, char *out, size_t size);

/* ---- telling --------------------------------------------------------------------------------------------------------------- */

void en_doctor_print(const en_doctor_job *j, const en_findings *w);
void en_doctor_print_json(const en_doctor_job *j, const en_findings *w);

#endif
