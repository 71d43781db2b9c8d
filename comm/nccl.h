/* nccl.h - what the files of the NCCL communicator share (nccl.c has the idea). */
#ifndef EN_NCCL_H
#define EN_NCCL_H

#include <stdint.h>

#include "comm/internal.h"
#include "comm/nccl_api.h"

enum { AHEAD = 64, GROUPS = 16, START_S = 300, END_S = 60, ABORT_S = 30 };

/* What the communicators of one world share. */
typedef struct {
    const struct en_nccl_api *nccl;
    en_backend     *be;                        /* borrowed                                                         */
    struct en_waits waits;
    cudaStream_t    compute, sums;             /* borrowed; owned                                                  */
    cudaEvent_t     ready, probe, recorded;    /* recorded: behind a sum in a recording, where no event can be asked */
    struct { cudaEvent_t done; const char *what; size_t n; bool queued; } flight[AHEAD];     /* sum i at i % AHEAD  */
    uint64_t        issued;
    bool            replays;                   /* some sums are inside recordings                                  */
    ncclComm_t      comm[GROUPS];              /* 0: the world's; NULL: free, or aborted                           */
    bool            failed;
    char            trouble[400];
    bool            probing;                   /* watch: `probe` stands in the queue since `waited` seconds        */
    double          waited, asked;
    bool            opening;                   /* under a limit of its own: who fails waits for the others in control's sum */
} wires;

#define CU_TRY(call, ...)                                                                                              \
    do { const cudaError_t e_ = (call);                                                                                \
         if (e_ != cudaSuccess) {                                                                                      \
             (void)cudaGetLastError();                                                                                 \
             en_raise(EN_ENOTSUP, __FILE__, __LINE__, __func__, "%s: %s", cudaGetErrorName(e_), cudaGetErrorString(e_)); \
             return en_raise(EN_ENOTSUP, __FILE__, __LINE__, __func__, __VA_ARGS__); } } while (0)

/* ---- nccl_watch.c -------------------------------------------------------------------------------------------------------- */

/* Gives all sums up, ends the kernels that wait for a peer, and returns EN_EPEER with the trouble, now and from then on. */
en_status en_nccl_broken(wires *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void      en_nccl_abort(wires *w);
#define WHOLE(w) do { if ((w)->failed) return en_nccl_broken((w), "NCCL was given up"); } while (0)

/* Asks until a call is through: NCCL's result, ncclInProgress when `within` seconds were not enough. */
ncclResult_t en_nccl_ask(wires *w, ncclComm_t comm, ncclResult_t r, double within);
/* The same as a status that says what was tried. */
en_status    en_nccl_settle(wires *w, ncclComm_t comm, ncclResult_t r, double within, const char *what);
const char  *en_nccl_words(wires *w, ncclComm_t comm, ncclResult_t r);
/* `seconds`, or less: a wait of ours ends before watch.c ends the process */
double       en_nccl_within(const wires *w, double seconds);

en_status en_nccl_look(wires *w);                /* has NCCL noticed a peer that failed?      */
en_status en_nccl_watch(void *wires_of_a_world); /* be->watch: that, and the limit of a wait  */
en_status en_nccl_make_room(wires *w);           /* until the sum AHEAD before this is done   */

#endif
