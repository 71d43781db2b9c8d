/* mpi_inside.h - what mpi.c (ranks, small sums) and mpi_gradients.c (sums of gradients) share. */
#ifndef EN_MPI_INSIDE_H
#define EN_MPI_INSIDE_H

#include <mpi.h>
#include <stdlib.h>

#include "comm/internal.h"

enum { EN_MPI_WINDOW = 4, EN_MPI_GAPS = 512, EN_MPI_MAX_COUNT = 1 << 30, EN_MPI_TAGS = (1 << 14) - 1 };     /* gradients use the tags below 2 * EN_MPI_TAGS */

typedef enum { FREE, QUEUED, EXCHANGE, SHARE, DONE } sum_state;
enum mpi_seen { NOTHING, IN_TIME, TOO_LARGE };              /* of the chunk that came in a gap */

struct en_request {
    sum_state state;
    uint64_t  seq;
    float    *buf;                             /* borrowed until sum_wait                     */
    size_t    n, at, piece;                    /* elements; done so far; in the current piece */
};

/* To and from one other rank in one round: elements of the slices, and how far they are. */
typedef struct {
    const float *from;
    float       *to;
    size_t       send, sent, recv, got;
    int          chunks_sent, chunks_got;
    MPI_Request  out, in;                      /* MPI_REQUEST_NULL: nothing under way         */
} mpi_way;

typedef struct {
    float   *scratch;                          /* the other ranks' slices of one piece        */
    mpi_way *way;                              /* world_size of them, by how far the rank is from this one; [0] is not used */
} mpi_lane;

typedef struct {
    MPI_Comm comm;                             /* ours: a duplicate or a split                */
    bool     finalize;                         /* we called MPI_Init and close the world      */
    uint64_t oldest, next;                     /* first sum not DONE; first not begun         */
    struct en_request slot[EN_SUMS_IN_FLIGHT];
    mpi_lane lane[EN_MPI_WINDOW];              /* sum seq uses lane[seq % EN_MPI_WINDOW]      */
    bool     paced;                            /* ranks are on several hosts                  */
    struct { size_t chunk; bool found; } pace[EN_MPI_GAPS];      /* paced: elements to each rank in this gap of a step; found: more were once too many; equal on all ranks */
    int      unwaited;                         /* sums begun and not waited for: equal on all ranks, as oldest is not */
    int      gap;                              /* small sums since the first of them          */
    bool     handed_over, whole_chunk;         /* since en_mpi_look; one not cut by the end of a slice */
    unsigned char seen[EN_MPI_GAPS], told[EN_MPI_GAPS];          /* mpi_seen of this step's gaps; the largest of all ranks', once `telling` is through */
    MPI_Request telling;
    const float **source;                      /* world_size pointers, while adding           */
    double   *others;                          /* of small sums: EN_SMALL_SUM_VALUES of each other rank; NULL: more than EN_SMALL_SUM_RANKS */
} mpi_impl;

/* EN_EPEER, or EN_ENOMEM, with MPI's own words. */
en_status en_mpi_failed(const char *file, int line, const char *func, int rc, const char *call);
#define MPI_TRY(call)                                                                                                  \
    do { const int rc_ = (call); if (rc_ != MPI_SUCCESS) return en_mpi_failed(__FILE__, __LINE__, __func__, rc_, #call); } while (0)
/* a call in which other ranks may keep this one waiting */
#define MPI_MEET(what, call)                                                                                           \
    do { en_watch_enter(what);                                                                                         \
         const int rc_ = (call);                                                                                       \
         en_watch_leave();                                                                                             \
         if (rc_ != MPI_SUCCESS) return en_mpi_failed(__FILE__, __LINE__, __func__, rc_, #call); } while (0)
#define MPI_TRY_OUT(call)                                                                                              \
    do { const int rc_ = (call);                                                                                       \
         if (rc_ != MPI_SUCCESS) { status = en_mpi_failed(__FILE__, __LINE__, __func__, rc_, #call); goto out; } } while (0)

/* mpi_gradients.c: rows of en_comm_ops */
en_status en_mpi_sum_begin(en_comm *c, float *buf, size_t n, en_request **out);
en_status en_mpi_sum_wait(en_comm *c, en_request *r);
en_status en_mpi_progress(en_comm *c);
/* Around a small sum.  Before: takes what has arrived, hands nothing over, and learns from what has not.  Behind: hands over. */
en_status en_mpi_look(en_comm *c);
en_status en_mpi_hand_over(en_comm *c);
en_status en_mpi_gradients_open(en_comm *c);   /* lanes and pace, once ranks and hosts are known; freed by the next, also when it failed */
void      en_mpi_gradients_close(en_comm *c);

#endif
