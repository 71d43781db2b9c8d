/* comm.h - ranks: who we are, and the sums that make many ranks one.
 *
 * A communicator is a small table, as a backend is: `self` (one process, no MPI) and `mpi`.  Everything is a sum or a
 * broadcast.  Collectives are called by all ranks in the same order, also by a rank whose shard is empty or whose input
 * failed; that rank says so in the step's agreement instead of leaving (trainer/step.c). */
#ifndef EN_COMM_H
#define EN_COMM_H

#include "kernels/kernels.h"

typedef struct en_comm en_comm;
typedef struct en_request en_request;          /* one sum in flight; owned by the communicator, reused after wait */

struct en_comm_ops {
    /* out[i] = sum over ranks of in[i]; blocking; in == out is allowed.  The same bits on every rank. */
    en_status (*sum_f64)(en_comm *c, const double *in, double *out, size_t n);
    /* Begins buf[i] = sum over ranks, in place, added in rank order: the same bits on every rank and in every run.  buf is
     * borrowed until `sum_wait`.  Begun in the same order on all ranks, at most 128 at a time (EN_EINVAL); waited for in any. */
    en_status (*sum_f32_begin)(en_comm *c, float *buf, size_t n, en_request **out);
    en_status (*sum_wait)(en_comm *c, en_request *r);
    en_status (*progress)(en_comm *c);         /* lets sums in flight advance; cheap                             */
    en_status (*broadcast)(en_comm *c, void *buf, size_t bytes, int root);
    /* out (root only) = the blocks of all ranks, in rank order; every block `bytes` long */
    en_status (*gather)(en_comm *c, const void *in, size_t bytes, void *out, int root);
    en_status (*barrier)(en_comm *c);
    /* Ranks with equal `color` form a new communicator, ordered by rank. */
    en_status (*split)(en_comm *c, int color, en_comm **out);
    void      (*close)(en_comm *c);
};                                             /* every entry is called by the thread that opened the communicator */

struct en_comm {
    const char               *name;            /* "self", "mpi"                                                */
    const struct en_comm_ops *ops;
    int  rank, world_size;
    int  local_rank, local_size;               /* among the ranks of this host                                 */
    int  node, nodes;                          /* hosts numbered by their lowest rank                          */
    char host[64];
    void *impl;
};

/* Opens `mpi` when the process was started by an MPI launcher (OMPI_COMM_WORLD_SIZE, PMI_SIZE or PMIX_RANK in the
 * environment), else `self`, which never calls MPI_Init.  EN_EUSAGE, *out NULL: srun started several tasks without MPI
 * between them, or the launcher belongs to another MPI: each turns one job of N ranks into N jobs of one.
 * Under `mpi` a call that another rank keeps waiting for half an hour (EFFNET_STALL_S seconds in the environment, 0: for ever)
 * ends the job with EN_EPEER's exit code, and a rank that stayed away that long has said so by then (stall.c). */
en_status en_comm_open(en_comm **out);
/* Finalises MPI when en_comm_open initialised it: all ranks call it, and leave it together.  Nothing may be left to do then
 * but exit: mpirun ends the other ranks as soon as one has left with a code that is not 0 (75 too).  NULL is fine. */
void      en_comm_close(en_comm *c);
/* Ends every rank at once with this exit code: for a rank that failed where the others cannot be told. */
_Noreturn void en_comm_abort(en_comm *c, int exit_code);

/* ---- gradient buckets ----------------------------------------------------------------------------------------------
 * Gradients live in one flat arena, in the order in which backward finishes them.  The arena is cut into buckets, the
 * first about 1 MiB (so that the first sum starts early), then about `bucket_bytes`.  When backward has finished every
 * gradient below an offset it says so, and each bucket that is complete begins its all-reduce while backward goes on. */
typedef struct en_buckets en_buckets;
en_status en_buckets_open(en_comm *c, float *grads, size_t elems, size_t bucket_bytes, en_buckets **out);
void      en_buckets_begin(en_buckets *b);                      /* a new step: nothing is ready                            */
en_status en_buckets_ready(en_buckets *b, size_t elems_done);   /* grads[0 .. elems_done) are final; begins full buckets   */
en_status en_buckets_wait(en_buckets *b);                       /* begins what is left, waits for all: grads are sums      */
double    en_buckets_exposed_s(const en_buckets *b);            /* seconds the last en_buckets_wait had to wait            */
void      en_buckets_close(en_buckets *b);

#endif
