/* doctor.h - what one rank sees of its machine (doctor_probe.c), and what is made of it (doctor.c). */
#ifndef EN_DOCTOR_H
#define EN_DOCTOR_H

#include "comm/comm.h"

enum { EN_DOCTOR_CPUS = 1024, EN_DOCTOR_MPI = 96, EN_DOCTOR_HDF5 = 32, EN_UNKNOWN = -1 };

/* Plain bytes: ranks send it as it is.  Numbers that could not be found out are EN_UNKNOWN, texts "". */
typedef struct {
    char     host[64], cpu[96], folder[256], filesystem[24], mpi[EN_DOCTOR_MPI], hdf5[EN_DOCTOR_HDF5], jpeg[48], png[24], isa[16], isas[64], thp[16];
    uint64_t allowed[EN_DOCTOR_CPUS / 64];     /* bit i: this process may run on processor i (sched_getaffinity)   */
    int      processors, allowed_processors, allowed_cores;    /* online; in the mask; distinct cores in the mask  */
    double   cpu_quota;                        /* processors' worth of time that the cgroup grants                 */
    int64_t  memory_bytes, memory_available_bytes, memory_limit_bytes, shm_free_bytes, disk_free_bytes;
    int64_t  open_files, open_files_hard;
    int      openmp, openmp_threads;
    char     gpus[600];                        /* one text a GPU, joined by "; "; "" and ... */
    char     no_gpu[400];                      /* ... why there is none                      */
    int      writable, flock_works, fcntl_works;   /* 1, 0; EN_UNKNOWN when not tried                              */
    int      root_needs_consent;               /* root, Open MPI, and no OMPI_ALLOW_RUN_AS_ROOT                    */
    int      has_launcher;                     /* mpirun, mpiexec or srun is in PATH                               */
    int      launched;                         /* MPI runs between the ranks                                       */
} en_doctor_facts;

/* Never fails.  try_folder: write and lock a file in the working folder (one rank of a host is enough). */
void en_doctor_probe(const en_comm *c, bool try_folder, en_doctor_facts *f);
/* "Open MPI v4.1.4", "1.10.8"; "" when it could not be found out */
void en_library_versions(char mpi[EN_DOCTOR_MPI], char hdf5[EN_DOCTOR_HDF5]);

#endif
