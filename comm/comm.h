/* comm.h - ranks: who we are, and the sums that make many ranks one.
 *
 * A communicator is a small table, as a backend is.  Everything is a sum or a broadcast.  Collectives are called by all
 * ranks in the same order, also by a rank whose shard is empty or whose input failed; that rank says so in the step's
 * agreement instead of leaving (trainer/step.c).  A run has two of them:
 *
 *     control   `self` (one process, no MPI) or `mpi`: sums over host memory                     en_comm_open
 *     tensor    sums over the backend's memory, in the order of its queue.  On cpu it is the     en_comm_tensor_open
 *               control communicator itself; on cuda `self`, `nccl`, or `mpi` through host memory */
#ifndef EN_COMM_H
#define EN_COMM_H

#include "kernels/kernels.h"

typedef struct en_comm en_comm;
typedef struct en_request en_request;          /* one sum in flight; owned by the communicator, reused after wait */

struct en_comm_ops {
    /* out[i] = sum over ranks of in[i]; in == out is allowed.  The same bits on every rank.  Blocking; where `captures`,
     * queued: passes queued from here on see the sum, the host does not wait. */
    en_status (*sum_f64)(en_comm *c, const double *in, double *out, size_t n);
    /* Begins buf[i] = sum over ranks, in place, added in rank order: the same bits on every rank and in every run (nccl: on
     * every rank; in every run as far as NCCL chooses alike, README.md).  buf is borrowed until `sum_wait`.  Begun in the same
     * order on all ranks, at most 128 at a time (EN_EINVAL); waited for in any.  It may already be done when this returns, and
     * have waited for the other ranks (two ranks of one host, under MPI). */
    en_status (*sum_f32_begin)(en_comm *c, float *buf, size_t n, en_request **out);
    en_status (*sum_wait)(en_comm *c, en_request *r);
    en_status (*progress)(en_comm *c);         /* lets sums in flight advance, notices a peer that failed; cheap.  While a sum
                                                * is in flight all ranks call it or sum_f64 at least once, or none does */
    /* these three take host memory on every communicator, and block */
    en_status (*broadcast)(en_comm *c, void *buf, size_t bytes, int root);
    /* out (root only) = the blocks of all ranks, in rank order; every block `bytes` long */
    en_status (*gather)(en_comm *c, const void *in, size_t bytes, void *out, int root);
    en_status (*barrier)(en_comm *c);
    /* Ranks with equal `color` form a new communicator, ordered by rank. */
    en_status (*split)(en_comm *c, int color, en_comm **out);
    void      (*close)(en_comm *c);
};                                             /* every entry is called by the thread that opened the communicator */

/* `mpi` sums so few values over so few ranks in one round: each sends each all it has, below the 64 KiB that Open MPI
 * by itself sends unasked over TCP.  Whoever foretells or fits what a sum takes must know. */
enum { EN_SMALL_SUM_RANKS = 4, EN_SMALL_SUM_VALUES = 8000 };
/* So many bytes of gradients at most, and at least, go from a rank to another between two calls, where they are on several hosts. */
enum { EN_GRADIENT_CHUNK = 1000000, EN_LEAST_CHUNK = 65536 };

struct en_comm {
    const char               *name;            /* "self", "mpi", "nccl"                                        */
    const struct en_comm_ops *ops;
    int  rank, world_size;
    int  local_rank, local_size;               /* among the ranks of this host                                 */
    int  node, nodes;                          /* hosts numbered by their lowest rank                          */
    char host[64];
    bool captures;                             /* sums are queued beside the passes, also inside a recording   */
    char why[256];                             /* a tensor communicator that is not the one hoped for: why     */
    en_comm *control;                          /* of a tensor communicator, else NULL; borrowed by the world   */
    void *impl;
};

/* Opens `mpi` when the process was started by an MPI launcher (OMPI_COMM_WORLD_SIZE, PMI_SIZE or PMIX_RANK in the
 * environment), else `self`, which never calls MPI_Init.  EN_EUSAGE, *out NULL: srun started several tasks without MPI
 * between them, or the launcher belongs to another MPI: each turns one job of N ranks into N jobs of one.
 * From here to en_comm_close a rank that hangs, is silent or gone ends the job with EN_EPEER's exit code and a line that names it
 * (watch.h has the limits; half an hour, or EFFNET_STALL_S seconds in the environment, where they were not set; 0: never). */
en_status en_comm_open(en_comm **out);
/* Initialises MPI ahead of en_comm_open, which then takes it over as its own, for who calls single ranks by MPI before all meet.
 * *begun false: there is no launcher, and nothing was done.  It may wait for ranks that do not start, and nobody watches it. */
en_status en_comm_begin(bool *begun);
/* Finalises MPI when en_comm_open initialised it: all ranks call it, and leave it together.  Nothing may be left to do then
 * but exit: mpirun ends the other ranks as soon as one has left with a code that is not 0 (75 too).  NULL is fine. */
void      en_comm_close(en_comm *c);
/* Ends every rank at once with this exit code: for a rank that failed where the others cannot be told. */
_Noreturn void en_comm_abort(en_comm *c, int exit_code);

/* ---- tensors -------------------------------------------------------------------------------------------------------
 * Opens the communicator for sums over what be->ops->alloc gave, collectively.  kind is
 *     "nccl"   NCCL, or the reason why not: EN_EUSAGE when two ranks share a GPU, EN_ENOTSUP when there is no NCCL (or one
 *              before 2.18), EN_EPEER when it does not come up in time (5 minutes, or half of the limit of watch.h)
 *     "mpi"    control's sums, through host memory: works everywhere, slowly, and cannot be recorded
 *     "auto"   nccl where it can, else mpi, and (*out)->why says why
 * One rank alone needs neither ("auto", "mpi"): a sum from a place into itself is no work.  A backend in host memory gets
 * `control` itself, whatever the kind; so close it with en_comm_tensor_close.
 *
 * nccl sets be->watch: a host that waits for the device hears of a peer that failed, stays away for the limit of its section,
 * or broke the connection: the sums in flight are then given up, every call returns EN_EPEER, and the rank may abort.
 * A recording is collective: all ranks of the communicator record the same sums at the same time and replay that recording
 * together, or none does (NCCL's rule; one rank that replays beside another that does not may hang).  Its sums were done once
 * outside before, with the same sizes (NCCL connects at the first), all that were begun in it are waited for in it, and it
 * is freed before the communicator is closed.  A host that waits for nothing calls `progress` once a step. */
en_status en_comm_tensor_open(en_comm *control, en_backend *be, const char *kind, en_comm **out);
/* Closes `tensor`, unless it is control; before the backend, after communicators split from it.  NULL is fine. */
void      en_comm_tensor_close(en_comm *control, en_comm *tensor);

/* ---- gradient buckets ----------------------------------------------------------------------------------------------
 * Gradients live in one flat arena, in the order in which backward finishes them.  The arena is cut into buckets, the
 * first about 1 MiB (so that the first sum starts early), then about `bucket_bytes` (0: one bucket, nothing overlaps).  When backward has finished every
 * gradient below an offset it says so, and each bucket that is complete begins its all-reduce while backward goes on. */
typedef struct en_buckets en_buckets;
en_status en_buckets_open(en_comm *c, float *grads, size_t elems, size_t bucket_bytes, en_buckets **out);
void      en_buckets_begin(en_buckets *b);                      /* a new step: nothing is ready                            */
en_status en_buckets_ready(en_buckets *b, size_t elems_done);   /* grads[0 .. elems_done) are final; begins full buckets   */
/* Between two blocks of backward: lets sums move, unless `beside`, whose calls stand between the passes, does so. */
en_status en_buckets_move(en_buckets *b, const en_comm *beside);
en_status en_buckets_wait(en_buckets *b);                       /* begins what is left, waits for all: grads are sums (on
                                                                 * the queue, where c->captures)                          */
double    en_buckets_begun_s(const en_buckets *b);              /* seconds that beginning sums took before en_buckets_wait, since
                                                                 * en_buckets_begin; 0 where they are queued              */
double    en_buckets_exposed_s(const en_buckets *b);            /* seconds the last en_buckets_wait had to wait; 0 where the
                                                                 * sums are queued (c->captures): marks tell there        */
void      en_buckets_recut(en_buckets *b, size_t bucket_bytes); /* between two steps: other cuts from now on; what a device has
                                                                 * recorded with the old ones is to be recorded again     */
int       en_buckets_count(const en_buckets *b);
void      en_buckets_close(en_buckets *b);
/* The cuts of such an arena, of the sizes alone: bucket i is [cut[i], cut[i + 1]).  Returns how many buckets there are. */
enum { EN_BUCKETS_MOST = 64 };
int       en_buckets_cut(size_t elems, size_t bucket_bytes, size_t cut[EN_BUCKETS_MOST + 1]);

#endif
